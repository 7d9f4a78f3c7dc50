"""The small process between worker and suite: it outlives the worker, and nothing outlives it.

`main` is the whole life of a process of its own, `python -I -S`, with the suite's
environment, the suite's command in the run's folder and a secret on standard
input. Standard library only and nothing that is slow to import: it starts in
about the time of a bare interpreter. Single-threaded, the only waiter of the
suite.

The order of what it does is the point:

1. Born with the run's lock, it becomes a child subreaper and forks the suite into a
   session of its own, which waits at a gate. Forked first, it holds nothing of what
   comes next.
2. It takes the room for a result, begins to hear requests to stop, writes who it is
   and who the suite is, and only then opens the gate. Nothing of a suite runs before
   it can be found.
3. It waits for the leader's end, the deadline, too long a silence, a limit that
   is met, or a request to stop. The reason for a stop is fixed before the first
   signal; after it the exit status of the suite no longer counts.
   `Popen.communicate` would wait for a grandchild's pipe.
4. It kills and reaps everything below it, whatever group or session it fled to.
5. Only then it writes the result: atomically, synced, sealed with the secret.
   A result that a suite has written is set aside, and told of.

Results are `name=value` lines, not JSON: importing a parser would cost more than
everything else here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import sys
import time

TYPE_CHECKING = False  # typing itself would take longer to import than all the rest
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from typing import NoReturn

    from staging_fsm.effects.limits import Group, Sampled
else:
    try:
        import _signal as signal  # without the enums of signal: 6 ms for the same functions
    except ImportError:
        import signal

try:
    from _blake2 import blake2b  # hashlib would load OpenSSL: 10 ms for the same function
except ImportError:
    from hashlib import blake2b

IS_LINUX = sys.platform == "linux"
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36
F_SETPIPE_SZ = 1031
POLLRDHUP = getattr(select, "POLLRDHUP", 0)  # without it, on macOS, POLLHUP has to do
PIPE_BYTES = READ_BYTES = 1024 * 1024
LATE_OUTPUT_SECONDS = 0.2
SWEEP_SECONDS = 10.0
SWEEP_PAUSE_SECONDS = 0.005
#: Of the looks at those who die of a killed group: one process takes less than the first pause,
#: and nobody who is only dying takes longer than the last one without another going before.
FIRST_PAUSE_SECONDS, PATIENCE_SECONDS = 0.0005, 0.016
#: A storm of forks must not keep us from looking at the clock.
REAPS_AT_ONCE = 1000
DRAIN_SECONDS = 1.0
POLL_MAX_SECONDS = 3600.0
SECRET_BYTES, SEAL_BYTES = 64, 32
RESULT_BYTES = 8192
DETAIL_CHARACTERS = 1000
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: Whoever uses up the machine gets no grace: it would only use up more. Nor who has lost its
#: fence: another machine may be about to start the next suite.
AT_ONCE = ("memory", "processes", "fence_lost")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
HAS_WAITID = hasattr(os, "waitid")  # macOS has it since Python 3.13
LOOK_ONLY = os.WEXITED | os.WNOHANG | os.WNOWAIT if HAS_WAITID else 0

_NOT_FOUND = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
_NOT_EXECUTABLE = {errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.EISDIR}
_BAD_ARGUMENTS = {errno.E2BIG, errno.EINVAL}


class BoundedLog:
    """Output on disk within a bound: the head is kept, and the newest part of the rest.

    The head goes to `output.log`. What follows goes to `output.tail`, which is set
    aside as `output.tail.old` each time it is full, so that between a quarter and
    half of the bound is always the newest output. `finish` joins the parts.
    """

    def __init__(self, folder: str, limit: int) -> None:
        self.path = os.path.join(folder, "output.log")
        self.tail = os.path.join(folder, "output.tail")
        self.head_left = limit // 2
        self.segment_limit = max(1, limit // 4)
        # Appended to: where the suite has cut its log short, it stays short.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self.fd = os.open(self.path, flags, 0o600)
        self.head_bytes = 0
        self.segment_fd: int | None = None
        self.segment_bytes = 0
        self.total = self.dropped = self.old_bytes = 0
        self.complete = True

    def write(self, block: bytes | memoryview) -> None:
        """Take one block of output; never raises, an unwritable log is only incomplete."""
        self.total += len(block)
        if not self.complete:
            return
        try:
            if self.head_left > 0:
                head = block[: self.head_left]
                write_all(self.fd, head)
                self.head_left -= len(head)
                self.head_bytes += len(head)
                block = block[len(head) :]
            # Only the newest two segments survive: what they push out need not be written.
            surplus = max(0, len(block) - 2 * self.segment_limit)
            self.dropped += surplus
            block = block[surplus:]
            while block:
                block = self._write_tail(block)
        except OSError:
            self.complete = False

    def _write_tail(self, block: bytes | memoryview) -> bytes | memoryview:
        fd = self.segment_fd
        if fd is None or self.segment_bytes >= self.segment_limit:
            fd = self._next_segment()
        part = block[: self.segment_limit - self.segment_bytes]
        write_all(fd, part)
        self.segment_bytes += len(part)
        return block[len(part) :]

    def _next_segment(self) -> int:
        if self.segment_fd is not None:
            os.close(self.segment_fd)
            if self.old_bytes:
                # To rename over it would make ext4 write out the new one: half of the speed.
                os.unlink(self.tail + ".old")
            self.dropped += self.old_bytes
            self.old_bytes = self.segment_bytes
            os.rename(self.tail, self.tail + ".old")
        self.segment_fd = os.open(self.tail, NEW_FILE | os.O_APPEND, 0o600)
        self.segment_bytes = 0
        return self.segment_fd

    def finish(self) -> None:
        """Join head and tail, with a line between them that says how much was dropped.

        A log that is longer or shorter than what was written is not what the suite printed.
        """
        try:
            note = b""
            if self.dropped:
                note = b"\n[staging_fsm: %d bytes of output dropped here]\n" % self.dropped
                write_all(self.fd, note)
            if self.segment_fd is not None:
                for path in (self.tail + ".old", self.tail):
                    self._append(path)
            os.fsync(self.fd)
            written = self.head_bytes + len(note) + self.old_bytes + self.segment_bytes
            if os.fstat(self.fd).st_size != written:
                self.complete = False
        except OSError:
            self.complete = False

    def facts(self) -> dict[str, object]:
        """Return what is known of the log, and what tells it from one put in its place."""
        found = os.fstat(self.fd)
        return {
            "log_bytes": self.total,
            "log_dropped_bytes": self.dropped,
            "log_complete": int(self.complete),
            "log_file": "%d:%d" % (found.st_ino, found.st_size),
        }

    def _append(self, path: str) -> None:
        if not os.path.exists(path):
            return
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        while block := os.read(source, READ_BYTES):
            write_all(self.fd, block)
        os.close(source)
        os.unlink(path)


def mark_of(path: str) -> str:
    """Return what tells a file as it is now from any other or a changed one; "" for none."""
    try:
        found = os.lstat(path)
    except OSError:
        return ""
    facts = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    return "%d:%d:%d:%d:%d" % facts


def write_all(fd: int, block: bytes | memoryview) -> None:
    """Write all of `block`."""
    view = memoryview(block)
    while view:
        view = view[os.write(fd, view) :]


def write_identity(folder: str, name: str, pid: int) -> None:
    """Put down who `pid` is, whole or not at all.

    Not synced: after a power cut there is nobody left to be identified.
    """
    path = os.path.join(folder, name)
    fd = os.open(path + ".new", NEW_FILE, 0o600)
    write_all(fd, lines_of(pid=pid, start=start_ticks(pid)).encode())
    os.close(fd)
    os.replace(path + ".new", path)


def reserve_result(folder: str) -> int:
    """Take the room that the result will need, before the suite can fill the disk."""
    fd = os.open(os.path.join(folder, "result.new"), NEW_FILE, 0o600)
    write_all(fd, bytes(RESULT_BYTES))
    return fd


def set_foreign_aside(folder: str) -> bool:
    """Move a result that is not ours aside, to stay as evidence; say whether there was one."""
    path = os.path.join(folder, "result")
    try:
        os.rename(path, path + ".foreign")
    except OSError:
        return os.path.lexists(path)
    return True


def write_result(folder: str, fd: int, result: bytes) -> None:
    """Write the result over its reserved room, and have it survive a power cut."""
    path = os.path.join(folder, "result")
    os.pwrite(fd, result, 0)
    os.truncate(fd, len(result))
    os.fsync(fd)
    os.replace(path + ".new", path)
    directory = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    os.fsync(directory)


def start_ticks(pid: int) -> int:
    """Return the kernel's start time of `pid`, or 0 where there is none to read."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def lines_of(**facts: object) -> str:
    """Return facts as `name=value` lines; None is an empty value."""
    return "".join("%s=%s\n" % (name, "" if fact is None else fact) for name, fact in facts.items())


def sealed(secret: bytes, text: str) -> bytes:
    """Return `text` with the keyed digest that proves who wrote it as its last line."""
    data = text.encode("utf-8", "backslashreplace")
    return data + blake2b(data, key=secret, digest_size=SEAL_BYTES).hexdigest().encode() + b"\n"


def system_prctl() -> Callable[..., int]:
    """Return the system's prctl, which takes up to five numbers."""
    try:
        # The core of ctypes, without all that ctypes builds on it: a third of our start.
        import _ctypes

        address = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]  # None is ourselves
        call = _ctypes.call_function
    except (ImportError, AttributeError, OSError):
        import ctypes

        found: Callable[..., int] = ctypes.CDLL(None).prctl
        return found
    return lambda *numbers: call(address, numbers)


def set_up_process() -> Callable[..., int] | None:
    """Make every orphan below us our child, and keep other processes of the user out."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    if not IS_LINUX:
        return None
    prctl = system_prctl()
    if prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        sys.exit("cannot become a child subreaper")
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    return prctl


class Suite:
    """The suite's leader and what is known of its end."""

    def __init__(
        self,
        folder: str,
        cwd: str,
        argv: list[str],
        prctl: Callable[..., int] | None,
        resources: dict[str, int],
    ) -> None:
        self.folder, self.cwd, self.argv, self.prctl = folder, cwd, argv, prctl
        #: Limits of each process, which it inherits: name in `resource` -> value.
        self.resources = resources
        self.pid = 0
        self.output = self.gate = self.errors = -1
        self.spawn_error: tuple[str, str] | None = None
        self.ended = False
        self.exit_code: int | None = None
        self.signal: int | None = None

    def start(self) -> None:
        """Fork the suite, which waits at the gate. There it ends if we end."""
        self.output, output_in = os.pipe()
        gate_out, self.gate = os.pipe()
        self.errors, errors_in = os.pipe()
        if IS_LINUX:
            try:
                fcntl.fcntl(self.output, F_SETPIPE_SZ, PIPE_BYTES)
            except OSError:
                pass  # a small pipe only costs time
        os.set_blocking(self.output, False)
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self.spawn_error = ("resources", "cannot fork: %s" % error)
            return
        if pid == 0:
            self._become_suite(parent, output_in, gate_out, errors_in)
        self.pid = pid
        for fd in (output_in, gate_out, errors_in):
            os.close(fd)

    def release(self, *, run: bool) -> None:
        """Write down who the suite is, and only then let it run, or let it go."""
        write_identity(self.folder, "leader", self.pid)
        try:
            os.write(self.gate, b"1" if run else b"")
        except OSError:
            pass  # it was killed at the gate
        os.close(self.gate)
        failure = b""
        while part := os.read(self.errors, 4096):
            failure += part
        os.close(self.errors)
        if failure:
            self.spawn_error = self._explain(failure.decode())

    def _become_suite(self, parent: int, output_in: int, gate_out: int, errors_in: int) -> NoReturn:
        stage = "prepare"
        try:
            os.setsid()
            if self.prctl is not None:
                self.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                if os.getppid() != parent:
                    os._exit(125)
            # Whatever a careless parent or Python itself ignored, the suite does not.
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(number, signal.SIG_DFL)
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(output_in, 1)
            os.dup2(output_in, 2)
            self._limit_resources()
            # Our own end of the gate would keep it from ever being at its end.
            os.close(self.gate)
            if not os.read(gate_out, 1):
                os._exit(125)
            stage = "chdir"
            os.chdir(self.cwd)
            stage = "exec"
            os.execvpe(self.argv[0], self.argv, os.environ)
        except OSError as error:
            os.write(errors_in, ("%s %d" % (stage, error.errno or 0)).encode())
        except BaseException as error:  # noqa: BLE001  # a forked child must never return
            os.write(errors_in, ("%s 0 %r" % (stage, error)).encode()[:4000])
        finally:
            os._exit(127)

    def _limit_resources(self) -> None:
        if not self.resources:
            return
        import resource

        for name, value in self.resources.items():
            number = getattr(resource, name)
            hard = resource.getrlimit(number)[1]
            least = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(number, (least, least))

    def _explain(self, failure: str) -> tuple[str, str]:
        stage, number = failure.split()[:2]
        code = int(number)
        if stage == "chdir":
            return "bad_working_directory", "%s: %s" % (self.cwd, os.strerror(code))
        detail = "%s: %s" % (self.argv[0], os.strerror(code) if code else failure)
        if stage != "exec":
            return "resources", detail
        if code in _NOT_FOUND and self._exists():
            return "bad_interpreter", detail
        for kind, codes in (
            ("not_found", _NOT_FOUND),
            ("not_executable", _NOT_EXECUTABLE),
            ("bad_arguments", _BAD_ARGUMENTS),
        ):
            if code in codes:
                return kind, detail
        return "resources", detail

    def _exists(self) -> bool:
        name = self.argv[0]
        if "/" in name:
            return os.path.exists(os.path.join(self.cwd, name))
        folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
        return any(os.path.exists(os.path.join(self.cwd, folder, name)) for folder in folders)

    def ending(self, stopped_by: str | None) -> dict[str, object]:
        """Return how the suite ended; nothing of its own counts where it was stopped."""
        kind, detail = self.spawn_error or (None, "")
        unjudged = stopped_by is not None or kind is not None
        return {
            "exit_code": None if unjudged else self.exit_code,
            "signal": None if unjudged else self.signal,
            "spawn_error": kind,
            "spawn_detail": detail[-DETAIL_CHARACTERS:].replace("\n", " "),
            "stopped_by": stopped_by,
        }

    def look(self) -> None:
        """See whether the leader has ended, without reaping it; reap orphans that have.

        The leader stays a zombie until the sweep, so its number cannot be given to
        another process while we signal its group.
        """
        if self.ended:
            return
        try:
            self._look_at_leader()
            for _ in range(REAPS_AT_ONCE):
                if self.ended or not HAS_WAITID:
                    return
                found = os.waitid(os.P_ALL, 0, LOOK_ONLY)
                if found is None or found.si_pid == self.pid:
                    return
                os.waitpid(found.si_pid, os.WNOHANG)
        except ChildProcessError:
            # Somebody took our leader's status away: unknown, and never a zero.
            self.ended = True

    def _look_at_leader(self) -> None:
        if HAS_WAITID:
            found = os.waitid(os.P_PID, self.pid, LOOK_ONLY)
            if found is None:
                return
            code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        else:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
        self.ended = True
        if code < 0:
            self.signal = -code
        else:
            self.exit_code = code

    def company(self) -> list[int]:
        """Return those of our children but the leader that are alive, and reap the dead."""
        children = direct_children(os.getpid())[-REAPS_AT_ONCE:]
        others = [pid for pid in children if pid != self.pid]
        return [pid for pid in others if os.waitpid(pid, os.WNOHANG)[0] == 0]

    def is_over(self) -> bool:
        """Say whether the leader has ended and left nobody in its group."""
        return self.ended and not any(os.getpgid(pid) == self.pid for pid in self.company())

    def signal_group(self, *numbers: int) -> None:
        """Signal the suite's process group; the leader, reaped or not, keeps its number ours."""
        for number in numbers:
            try:
                os.killpg(self.pid, number)
            except OSError:
                pass  # nobody is left in the group, or nobody we may signal


class Watch:
    """Waits for output, the suite's end, a stop signal and a point in time, all at once."""

    def __init__(
        self,
        suite: Suite,
        log: BoundedLog,
        limits: Group | Sampled | None,
        fences: tuple[int, ...],
    ) -> None:
        self.suite, self.log, self.limits = suite, log, limits
        self.buffer = memoryview(bytearray(READ_BYTES))
        self.wake, wake_in = os.pipe()
        for fd in (self.wake, wake_in):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
        self.poll = select.poll()
        self.poll.register(self.wake, select.POLLIN)
        for fd in limits.events if limits else []:
            self.poll.register(fd, select.POLLPRI)
        self.output_open = False
        self.last_output = 0.0
        # The handlers keep what happened; the pipe only wakes us, and may be full.
        self.stop_requested = self.child_ended = self.fence_lost = False
        # Ours to hold, not to read: only the end of a connection is of interest.
        self.fences = fences
        for fd in fences:
            self.poll.register(fd, POLLRDHUP)
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCHLD, self._on_child)

    def _on_stop(self, *_: object) -> None:
        self.stop_requested = True

    def _on_child(self, *_: object) -> None:
        self.child_ended = True

    def stop_reason(self) -> str | None:
        """Return why the suite must not go on, or None if it may."""
        breach = self.limits.breach if self.limits else lambda: None
        return self.asked_to_stop() or breach()

    def asked_to_stop(self) -> str | None:
        """Return how others have told us that the suite must not go on, or None."""
        if self.fence_lost:
            return "fence_lost"
        return "request" if self.stop_requested else None

    def open_output(self) -> None:
        """Begin to read what the suite prints."""
        self.poll.register(self.suite.output, select.POLLIN | select.POLLHUP)
        self.output_open = True
        self.last_output = time.monotonic()

    def until(self, condition: Callable[[], bool], deadline: float) -> bool:
        """Wait until `condition` holds or the monotonic `deadline` passes; say which."""
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.turn(min(left, POLL_MAX_SECONDS))
        return True

    def await_stop(self, deadline: float, idle: float) -> str | None:
        """Return why the suite must be stopped now, or wait for something to happen: None."""
        reason = self.stop_reason()
        if reason:
            return reason
        now = time.monotonic()
        if now >= deadline:
            return "deadline"
        silent_until = self.last_output + idle if idle else deadline
        if now >= silent_until:
            # We may have been asleep ourselves: what was printed meanwhile was printed.
            before = self.last_output
            self.turn(0)
            return "idle" if self.last_output == before and not self.suite.ended else None
        look = self.limits.seconds if self.limits else POLL_MAX_SECONDS
        self.turn(min(deadline - now, silent_until - now, look, POLL_MAX_SECONDS))
        return None

    def turn(self, seconds: float) -> None:
        """Take in the next output or signal, or return after `seconds`."""
        for fd, _ in self.poll.poll(seconds * 1000):
            if fd == self.wake:
                os.read(self.wake, 4096)
            elif fd == self.suite.output:
                self._read_output()
            elif fd in self.fences:
                self.fence_lost = True
                self.poll.unregister(fd)
            else:
                os.pread(fd, 4096, 0)  # a limit's events: read, or they would wake us again
        if self.child_ended:
            self.child_ended = False
            self.suite.look()

    def _read_output(self) -> None:
        try:
            size = os.readv(self.suite.output, [self.buffer])
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if size:
            self.last_output = time.monotonic()
            self.log.write(self.buffer[:size])
        else:
            # Closed is not ended: a suite may close its output and run on.
            self.poll.unregister(self.suite.output)
            self.output_open = False


def direct_children(pid: int) -> list[int]:
    """Return the children of `pid`, of all its threads."""
    children: list[int] = []
    try:
        for thread in os.listdir("/proc/%d/task" % pid):
            with open("/proc/%d/task/%s/children" % (pid, thread), "rb") as file:
                children += [int(child) for child in file.read().split()]
    except OSError:
        pass  # it ended while we looked
    return children


def kill_descendants() -> set[int]:
    """Send KILL to everything below us and reap the dead; return who was not dead yet.

    Our own children cannot be reaped by anybody else, so their numbers are safe,
    and so are those of their groups. A group is killed as one: between two forks
    of a storm there is no moment in which it gets away. Deeper ones are signalled
    through a pidfd that is checked after it was opened.
    """
    children = direct_children(os.getpid())
    for group in {os.getpgid(pid) for pid in children} - {os.getpgrp()}:
        kill_one(os.killpg, group)
    level = [pid for pid in children if os.waitpid(pid, os.WNOHANG)[0] == 0]
    found = set(level)
    while level:
        deeper = {pid for parent in level for pid in direct_children(parent)} - found
        found |= deeper
        for pid in deeper:
            kill_below(pid, {os.getpid(), *found})
        level = list(deeper)
    return found


def kill_below(pid: int, family: set[int]) -> None:
    """Kill `pid` if its parent still is one of `family`."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            parent = int(file.read().rpartition(b")")[2].split()[1])
        if parent in family:
            kill_one(signal.pidfd_send_signal, fd)
    except (OSError, IndexError, ValueError):
        pass  # it ended while we looked
    finally:
        os.close(fd)


def kill_one(send: Callable[[int, int], None], target: int) -> None:
    """Send KILL to `target`, if it is there and ours to signal."""
    try:
        send(target, signal.SIGKILL)
    except OSError:
        pass


def take_precedence(*, over_all: bool) -> None:
    """Get ahead of everybody, where we may, or back in line."""
    try:
        if over_all:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        else:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except (OSError, AttributeError):
        pass  # not root, or not Linux


def give_way(group: int, deadline: float) -> bool:
    """Leave the processor to a group that was just killed; say whether nobody is left below us.

    Whoever is orphaned becomes our child, so without a child there is nobody. It ends as
    soon as one of another group is seen, or when no more of them go.
    """
    # To be woken for each of many deaths would slow all of them down.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    before, pause = 0, FIRST_PAUSE_SECONDS
    while reap_all():
        children = direct_children(os.getpid())
        stuck = pause > PATIENCE_SECONDS and len(children) >= before
        fled = any(os.getpgid(pid) != group for pid in children)
        if stuck or fled or time.monotonic() > deadline:
            return False
        time.sleep(pause)
        before, pause = len(children), min(2 * pause, 2 * PATIENCE_SECONDS)
    return True


def sweep(suite: Suite, limits: Group | Sampled | None) -> int:
    """Kill and reap until nothing is left below us; return how many are left all the same.

    The group goes first, in one call; then whoever fled from it, until a pass
    finds nobody. Bounded: a process in uninterruptible sleep cannot be killed.
    """
    if limits:
        limits.kill()
    suite.signal_group(signal.SIGKILL)
    deadline = time.monotonic() + SWEEP_SECONDS
    if IS_LINUX and give_way(suite.pid, deadline):
        return 0
    known: set[int] = set()
    while time.monotonic() < deadline:
        # A storm of forks would leave us no time, and must not be left any; those who
        # are only dying need the processor for it.
        take_precedence(over_all=True)
        found = kill_descendants() if IS_LINUX else set()
        if not reap_all():
            return 0
        take_precedence(over_all=False)
        if found <= known:
            time.sleep(SWEEP_PAUSE_SECONDS)
        known |= found
    # Where the children cannot be listed, whoever is left is at least one.
    return max(1, len(direct_children(os.getpid())))


def reap_all() -> bool:
    """Reap dead children; say whether any child may be left."""
    try:
        for _ in range(REAPS_AT_ONCE):
            if not os.waitpid(-1, os.WNOHANG)[0]:
                break
    except ChildProcessError:
        return False
    return True


def supervise(suite: Suite, watch: Watch, order: dict[str, float], deadline: float) -> str | None:
    """Wait for the suite and end it; return why we stopped it, or None if it ended by itself."""
    watch.open_output()
    suite.look()
    # The reason stands before the first signal: no later exit status can lift it.
    stopped_by = None
    while not suite.ended and stopped_by is None:
        stopped_by = watch.await_stop(deadline, order["idle"])
    if suite.ended:
        # Stopped or suspended ourselves, we cannot say that it ended in time: then it did not.
        in_time = time.monotonic() <= deadline
        watch.until(lambda: not watch.output_open, time.monotonic() + LATE_OUTPUT_SECONDS)
        # A limit that was met is one, even if the suite got over it.
        return watch.stop_reason() or (None if in_time else "deadline")
    if stopped_by not in AT_ONCE:
        suite.signal_group(signal.SIGTERM, signal.SIGCONT)
        # A shell that dies of TERM leaves the real suite behind: the grace is for both.
        end = time.monotonic() + order["grace"]
        watch.until(lambda: watch.fence_lost or suite.is_over(), end)
    return stopped_by


def read_command(folder: str, digest: bytes) -> list[str]:
    """Return the suite's argument vector: from a file, as it may be too long for our own.

    Another suite may have been there since our worker wrote it and told us its digest.
    """
    with open(os.path.join(folder, "command"), "rb") as file:
        raw = file.read()
    if blake2b(raw, digest_size=SEAL_BYTES).digest() != digest:
        sys.exit("the command is not the one that was ordered")
    return [os.fsdecode(word) for word in raw.split(b"\0")]


def keep_to_ourselves(numbers: str) -> tuple[int, ...]:
    """Return the descriptors that `numbers` names, closed to every program we start."""
    fences = tuple(int(number) for number in numbers.split(",") if number)
    for fd in fences:
        os.set_inheritable(fd, False)  # noqa: FBT003  # it takes no keyword
    return fences


def oom_kills() -> int:
    """Return how many processes of the machine were killed for want of memory since it started."""
    try:
        with open("/proc/vmstat", "rb") as file:
            return int(file.read().partition(b"\noom_kill ")[2].split(b"\n", 1)[0])
    except (OSError, ValueError):
        return 0


def hold_limits(folder: str, memory: int, processes: int) -> Group | Sampled | None:
    """Return what holds the limits on the whole suite, written down for whoever comes after us."""
    if not IS_LINUX or not (memory or processes):
        return None
    if TYPE_CHECKING:
        from staging_fsm.effects import limits
    else:
        import limits
    held = limits.hold(os.path.basename(folder), memory, processes, direct_children)
    if isinstance(held, limits.Group):
        with open(os.path.join(folder, "group"), "xb") as file:
            file.write(os.fsencode(held.path))
    return held


def main(folder: str, cwd: str, report: str, locks: str, inherited: str, *words: str) -> None:
    """Run one suite and leave its sealed result in `folder`; `words` are `name=number`.

    `report` is where the suite leaves its test report, or nothing; the result says which
    file that was when the last process of the suite was gone.
    `locks` are the numbers of the run's locks, which our worker took and which are ours
    from our first moment on: whoever looks for us while we start finds that we live.
    `inherited` are the numbers of the connections that fence the run off, separated
    by commas: held for as long as we live, and the end of one is the end of the suite.
    """
    order = {name: float(value) for name, value in (word.split("=") for word in words)}
    secret, digest = sys.stdin.buffer.read(SECRET_BYTES), sys.stdin.buffer.read(SEAL_BYTES)
    if len(digest) < SEAL_BYTES:
        sys.exit("no secret: the worker is gone")
    keep_to_ourselves(locks)
    fences = keep_to_ourselves(inherited)
    resources = {
        name: int(order[key])
        for name, key in (("RLIMIT_NOFILE", "open_files"), ("RLIMIT_FSIZE", "file_bytes"))
        if order[key]
    }
    suite = Suite(folder, cwd, read_command(folder, digest), set_up_process(), resources)
    suite.start()
    room = reserve_result(folder)
    log = BoundedLog(folder, int(order["log"]))
    limits = hold_limits(folder, int(order["memory"]), int(order["processes"]))
    watch = Watch(suite, log, limits, fences)
    write_identity(folder, "shim", os.getpid())
    killed_before = oom_kills()
    watch.turn(0)
    stopped_by = watch.stop_reason()
    survivors = left = 0
    started = time.monotonic()
    if suite.pid:
        if limits:
            limits.add(suite.pid)
        suite.release(run=stopped_by is None)
    if suite.pid and stopped_by is None and suite.spawn_error is None:
        stopped_by = supervise(suite, watch, order, started + order["timeout"])
        survivors = len(suite.company()) if stopped_by is None else 0
    duration = time.monotonic() - started
    out_of_memory = oom_kills() > killed_before
    if suite.pid:
        left = sweep(suite, limits)
        watch.until(lambda: not watch.output_open, time.monotonic() + DRAIN_SECONDS)
    # Whoever ends everything at once reaches the suite a moment before us: what has come for
    # us by now came in time, though we hear of it only now.
    watch.turn(0)
    if limits:
        limits.end()
    log.finish()
    stopped_by = stopped_by or watch.asked_to_stop()
    text = lines_of(
        run=os.path.basename(folder),
        **suite.ending(stopped_by),
        out_of_memory=int(out_of_memory),
        duration_seconds="%.6f" % duration,
        survivors=survivors,
        processes_left=left,
        **log.facts(),
        report=mark_of(report) if report else "",
        foreign_result=int(set_foreign_aside(folder)),
    )
    write_result(folder, room, sealed(secret, text))

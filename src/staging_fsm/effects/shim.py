"""The small process between worker and suite: it outlives the worker, and nothing outlives it.

Started as a script, `python -I -S shim.py RUN_DIR CWD TIMEOUT GRACE LOG_MAX -- ARGV…`,
with the suite's environment as its own and a secret on standard input. Standard
library only and nothing that is slow to import: it starts in about the time of a
bare interpreter. Single-threaded, the only waiter of the suite.

The order of what it does is the point:

1. It becomes a child subreaper, takes the run's lock, and writes who it is.
2. It forks the suite into a session of its own, which waits at a pipe until its
   identity is on disk too. Nothing of a suite runs before it can be found.
3. It waits for the leader's end, the deadline, or a request to stop. The reason
   for a stop is fixed before the first signal; after it the exit status of the
   suite no longer counts. `Popen.communicate` would wait for a grandchild's pipe.
4. It kills and reaps everything below it, whatever group or session it fled to.
5. Only then it writes the result: atomically, synced, sealed with the secret.
   A suite that writes a result of its own cannot seal it.

Results are `name=value` lines, not JSON: importing a parser would cost more than
everything else here.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False  # typing itself would take longer to import than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

try:
    from _blake2 import blake2b  # hashlib would load OpenSSL: 10 ms for the same function
except ImportError:
    from hashlib import blake2b

IS_LINUX = sys.platform == "linux"
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36
F_SETPIPE_SZ = 1031
PIPE_BYTES = READ_BYTES = 1024 * 1024
LATE_OUTPUT_SECONDS = 0.2
SWEEP_SECONDS = 10.0
SWEEP_PAUSE_SECONDS = 0.005
DRAIN_SECONDS = 1.0
POLL_MAX_SECONDS = 3600.0
SEAL_BYTES = 32
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

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
        self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self.segment_fd: int | None = None
        self.segment_bytes = 0
        self.total = self.dropped = self.old_bytes = 0
        self.complete = True

    def write(self, block: bytes) -> None:
        """Take one block of output; never raises, an unwritable log is only incomplete."""
        self.total += len(block)
        try:
            if self.head_left > 0:
                head = block[: self.head_left]
                write_all(self.fd, head)
                self.head_left -= len(head)
                block = block[len(head) :]
            while block:
                block = self._write_tail(block)
        except OSError:
            self.complete = False

    def _write_tail(self, block: bytes) -> bytes:
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
            self.dropped += self.old_bytes
            self.old_bytes = self.segment_bytes
            os.replace(self.tail, self.tail + ".old")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self.segment_fd = os.open(self.tail, flags, 0o600)
        self.segment_bytes = 0
        return self.segment_fd

    def finish(self) -> None:
        """Join head and tail, with a line between them that says how much was dropped."""
        try:
            if self.dropped:
                note = "\n[staging_fsm: %d bytes of output dropped here]\n" % self.dropped
                write_all(self.fd, note.encode())
            if self.segment_fd is not None:
                for path in (self.tail + ".old", self.tail):
                    self._append(path)
            os.fsync(self.fd)
        except OSError:
            self.complete = False
        os.close(self.fd)

    def _append(self, path: str) -> None:
        if not os.path.exists(path):
            return
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        while block := os.read(source, READ_BYTES):
            write_all(self.fd, block)
        os.close(source)
        os.unlink(path)


def write_all(fd: int, block: bytes) -> None:
    """Write all of `block`."""
    view = memoryview(block)
    while view:
        view = view[os.write(fd, view) :]


def write_durably(folder: str, name: str, text: str) -> None:
    """Put a file in place whole or not at all, and have it survive a power cut."""
    temporary = os.path.join(folder, name + ".new")
    if os.path.lexists(temporary):
        os.unlink(temporary)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600)
    try:
        write_all(fd, text.encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, os.path.join(folder, name))
    directory = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    os.fsync(directory)
    os.close(directory)


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


def seal(secret: bytes, text: str) -> str:
    """Return the keyed digest that proves who wrote `text`."""
    return blake2b(text.encode(), key=secret, digest_size=SEAL_BYTES).hexdigest()


def set_up_process() -> Callable[..., int] | None:
    """Make every orphan below us our child, and keep other processes of the user out."""
    for number in (*STOP_SIGNALS, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    if not IS_LINUX:
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        sys.exit("cannot become a child subreaper")
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    return prctl


def take_lock(folder: str) -> int | None:
    """Return the held lock of the run, or None if the run is taken or has been closed."""
    fd = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return None
    return None if os.path.exists(os.path.join(folder, "closed")) else fd


class Suite:
    """The suite's leader and what is known of its end."""

    def __init__(
        self, folder: str, cwd: str, argv: list[str], prctl: Callable[..., int] | None
    ) -> None:
        self.folder, self.cwd, self.argv, self.prctl = folder, cwd, argv, prctl
        self.pid = 0
        self.output = -1
        self.spawn_error: tuple[str, str] | None = None
        self.ended = False
        self.exit_code: int | None = None
        self.signal: int | None = None

    def start(self) -> None:
        """Fork the suite, write down who it is, and only then let it run."""
        self.output, output_in = os.pipe()
        gate_out, gate_in = os.pipe()
        error_out, error_in = os.pipe()
        if IS_LINUX:
            try:
                fcntl.fcntl(self.output, F_SETPIPE_SZ, PIPE_BYTES)
            except OSError:
                pass  # a small pipe only costs time
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self.spawn_error = ("resources", "cannot fork: %s" % error)
            return
        if pid == 0:
            self._become_suite(parent, output_in, gate_out, gate_in, error_in)
        self.pid = pid
        for fd in (output_in, gate_out, error_in):
            os.close(fd)
        os.set_blocking(self.output, False)
        leader = lines_of(pid=self.pid, start=start_ticks(self.pid))
        write_durably(self.folder, "leader", leader)
        os.write(gate_in, b"1")
        os.close(gate_in)
        failure = b""
        while part := os.read(error_out, 4096):
            failure += part
        os.close(error_out)
        if failure:
            self.spawn_error = self._explain(failure.decode())

    def _become_suite(
        self, parent: int, output_in: int, gate_out: int, gate_in: int, error_in: int
    ) -> NoReturn:
        stage = "prepare"
        try:
            os.setsid()
            if self.prctl is not None:
                self.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                if os.getppid() != parent:
                    os._exit(125)
            for number in (*STOP_SIGNALS, signal.SIGCHLD, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(output_in, 1)
            os.dup2(output_in, 2)
            # Our own end of the gate would keep it from ever being at its end.
            os.close(gate_in)
            if not os.read(gate_out, 1):
                os._exit(125)
            stage = "chdir"
            os.chdir(self.cwd)
            stage = "exec"
            os.execvpe(self.argv[0], self.argv, os.environ)
        except OSError as error:
            os.write(error_in, ("%s %d" % (stage, error.errno or 0)).encode())
        except BaseException as error:  # noqa: BLE001  # a forked child must never return
            os.write(error_in, ("%s 0 %r" % (stage, error)).encode()[:4000])
        finally:
            os._exit(127)

    def _explain(self, failure: str) -> tuple[str, str]:
        stage, number = failure.split()[:2]
        code = int(number)
        if stage == "chdir":
            return "bad_working_directory", "%s: %s" % (self.cwd, os.strerror(code))
        detail = "%s: %s" % (self.argv[0], os.strerror(code) if code else failure)
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
        return any(os.path.exists(os.path.join(folder, name)) for folder in folders)

    def reap_orphans(self) -> None:
        """Reap whoever died but the leader; look at the leader without reaping it.

        The leader stays a zombie until the sweep, so its number cannot be given to
        another process while we signal its group.
        """
        while not self.ended:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                # Somebody took our leader's status away: unknown, and never a zero.
                self.ended = True
                return
            if found is None:
                return
            if found.si_pid != self.pid:
                os.waitpid(found.si_pid, os.WNOHANG)
                continue
            self.ended = True
            if found.si_code == os.CLD_EXITED:
                self.exit_code = found.si_status
            else:
                self.signal = found.si_status

    def signal_group(self, *numbers: int) -> None:
        """Signal the suite's process group; the leader, reaped or not, keeps its number ours."""
        for number in numbers:
            try:
                os.killpg(self.pid, number)
            except OSError:
                pass  # nobody is left in the group, or nobody we may signal


class Watch:
    """Waits for output, the suite's end, a stop signal and a point in time, all at once."""

    def __init__(self, suite: Suite, log: BoundedLog) -> None:
        self.suite, self.log = suite, log
        self.wake, wake_in = os.pipe()
        for fd in (self.wake, wake_in):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
        self.poll = select.poll()
        self.poll.register(self.wake, select.POLLIN)
        self.output_open = False
        self.stop_requested = False
        self.signals: set[int] = set()

    def open_output(self) -> None:
        """Begin to read what the suite prints."""
        self.poll.register(self.suite.output, select.POLLIN | select.POLLHUP)
        self.output_open = True

    def until(self, condition: Callable[[], bool], deadline: float) -> bool:
        """Wait until `condition` holds or the monotonic `deadline` passes; say which."""
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.turn(min(left, POLL_MAX_SECONDS))
        return True

    def turn(self, seconds: float) -> None:
        """Take in the next output or signal, or return after `seconds`."""
        for fd, _ in self.poll.poll(seconds * 1000):
            if fd == self.wake:
                self._read_signals()
            elif fd == self.suite.output:
                self._read_output()
        # Cheap, and independent of whether a signal's byte was lost in a full pipe.
        if self.signals:
            self.signals.clear()
            self.suite.reap_orphans()

    def _read_signals(self) -> None:
        try:
            self.signals.update(os.read(self.wake, 4096))
        except BlockingIOError:
            return
        if self.signals & set(STOP_SIGNALS):
            self.stop_requested = True

    def _read_output(self) -> None:
        try:
            block = os.read(self.suite.output, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            block = b""
        if block:
            self.log.write(block)
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


def kill_descendants() -> int:
    """Send KILL to everything below us; return how many were signalled.

    Our own children cannot be reaped by anybody else, so their numbers are safe.
    Deeper ones are signalled through a pidfd that is checked after it was opened.
    """
    me = os.getpid()
    count = 0
    level = direct_children(me)
    for pid in level:
        count += kill_one(os.kill, pid)
    seen = {me, *level}
    while level:
        deeper = []
        for parent in level:
            for pid in direct_children(parent):
                if pid not in seen:
                    seen.add(pid)
                    deeper.append(pid)
                    count += kill_below(pid, seen)
        level = deeper
    return count


def kill_below(pid: int, ancestors: set[int]) -> int:
    """Kill `pid` if it still is a child of one of `ancestors`; return 1 if it was signalled."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return 0
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            parent = int(file.read().rpartition(b")")[2].split()[1])
        if parent not in ancestors:
            return 0
        return kill_one(signal.pidfd_send_signal, fd)
    except (OSError, IndexError, ValueError):
        return 0
    finally:
        os.close(fd)


def kill_one(send: Callable[[int, int], None], target: int) -> int:
    """Send KILL to `target`; return 1 if there was somebody to signal."""
    try:
        send(target, signal.SIGKILL)
    except OSError:
        return 0
    return 1


def sweep(suite: Suite, watch: Watch) -> tuple[int, int]:
    """Kill and reap until nothing is left below us; return (survivors of the leader, left over).

    The group goes first, in one call; then whoever fled from it, until a pass
    finds nobody. Bounded: a process in uninterruptible sleep cannot be killed.
    """
    before = len([pid for pid in direct_children(os.getpid()) if pid != suite.pid])
    suite.signal_group(signal.SIGKILL)
    deadline = time.monotonic() + SWEEP_SECONDS
    while reap_all() and time.monotonic() < deadline:
        if IS_LINUX:
            kill_descendants()
        if reap_all():
            # A child's death ends the pause at once.
            watch.turn(SWEEP_PAUSE_SECONDS)
    left = len(direct_children(os.getpid())) if IS_LINUX else 0
    return before, left


def reap_all() -> bool:
    """Reap every dead child; say whether any child is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def supervise(suite: Suite, watch: Watch, timeout: float, grace: float) -> str | None:
    """Wait for the suite and end it; return why we stopped it, or None if it ended by itself."""
    watch.open_output()
    suite.reap_orphans()
    deadline = time.monotonic() + timeout
    ended = watch.until(lambda: suite.ended or watch.stop_requested, deadline)
    if suite.ended:
        # Stopped or suspended ourselves, we cannot say that it ended in time: then it did not.
        in_time = time.monotonic() <= deadline
        watch.until(lambda: not watch.output_open, time.monotonic() + LATE_OUTPUT_SECONDS)
        return None if in_time else "deadline"
    # The reason stands before the first signal: no later exit status can lift it.
    stopped_by = "request" if ended else "deadline"
    suite.signal_group(signal.SIGTERM, signal.SIGCONT)
    watch.until(lambda: suite.ended, time.monotonic() + grace)
    return stopped_by


def main(
    folder: str, cwd: str, timeout: float, grace: float, log_limit: int, argv: list[str]
) -> None:
    """Run one suite and leave its sealed result in `folder`."""
    secret = sys.stdin.buffer.read(64)
    if len(secret) < SEAL_BYTES:
        sys.exit("no secret: the worker is gone")
    prctl = set_up_process()
    lock = take_lock(folder)
    if lock is None:
        sys.exit("the run is taken or closed")
    write_durably(folder, "shim", lines_of(pid=os.getpid(), start=start_ticks(os.getpid())))
    log = BoundedLog(folder, log_limit)
    suite = Suite(folder, cwd, argv, prctl)
    watch = Watch(suite, log)
    started = time.monotonic()
    suite.start()
    stopped_by = None
    survivors = left = 0
    if suite.spawn_error is None:
        stopped_by = supervise(suite, watch, timeout, grace)
    duration = time.monotonic() - started
    if suite.pid:
        survivors, left = sweep(suite, watch)
        watch.until(lambda: not watch.output_open, time.monotonic() + DRAIN_SECONDS)
    log.finish()
    kind, detail = suite.spawn_error or (None, None)
    unjudged = stopped_by is not None or kind is not None
    text = lines_of(
        run=os.path.basename(folder),
        exit_code=None if unjudged else suite.exit_code,
        signal=None if unjudged else suite.signal,
        spawn_error=kind,
        spawn_detail=None if detail is None else detail.replace("\n", " "),
        stopped_by=stopped_by,
        duration_seconds="%.6f" % duration,
        survivors=survivors,
        processes_left=left,
        log_bytes=log.total,
        log_dropped_bytes=log.dropped,
        log_complete=int(log.complete),
    )
    write_durably(folder, "result", text + seal(secret, text) + "\n")


if __name__ == "__main__":
    main(
        sys.argv[1],
        sys.argv[2],
        float(sys.argv[3]),
        float(sys.argv[4]),
        int(sys.argv[5]),
        sys.argv[7:],
    )

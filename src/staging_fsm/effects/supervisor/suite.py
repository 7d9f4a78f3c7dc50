"""The suite: forked into a session of its own, held at a gate, let go, and seen to its end."""

from __future__ import annotations

import errno
import fcntl
import os

from .result import write_identity
from .sweep import REAPS_AT_ONCE, direct_children
from .system import HAS_WAITID, IS_LINUX, signal

TYPE_CHECKING = False  # typing itself would take longer to import than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

PR_SET_PDEATHSIG = 1
F_SETPIPE_SZ = 1031
PIPE_BYTES = 1024 * 1024
DETAIL_CHARACTERS = 1000
LOOK_ONLY = os.WEXITED | os.WNOHANG | os.WNOWAIT if HAS_WAITID else 0

_NOT_FOUND = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
_NOT_EXECUTABLE = {errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.EISDIR}
_BAD_ARGUMENTS = {errno.E2BIG, errno.EINVAL}


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

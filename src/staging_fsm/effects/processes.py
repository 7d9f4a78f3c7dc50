"""Who a process is: boot, process id and start time, never a process id alone.

A process id is reused within seconds on a busy machine, and after a reboot at
once. Start times are kept in the kernel's own ticks where it offers them: a
float made from them moves whenever the time of day is corrected. Whoever is
signalled here is held by a descriptor first and looked at second, so that no
bystander is hit that got the number in between.
"""

import contextlib
import errno
import functools
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from staging_fsm.core.errors import is_shortage
from staging_fsm.effects.supervisor.system import HAS_WAITID

if TYPE_CHECKING:
    import psutil

_PROC: Final = Path("/proc")
_DEAD: Final = frozenset("ZXx")
_HAS_PROC: Final = _PROC.joinpath("self/stat").exists()
#: What opening a descriptor of a process answers where there is no such process.
_NOBODY: Final = frozenset({errno.ESRCH, errno.EINVAL, errno.ENOENT})
#: The system takes milliseconds in 31 bits; longer waits are made of several.
_WAIT_MAX_SECONDS: Final = 3600.0
#: How often a process is looked at where the system cannot tell of its end.
_LOOK_SECONDS: Final = 0.02
#: How soon at first: the output of a process ends a moment before it does.
_FIRST_LOOK_SECONDS: Final = 0.001
#: How long those are killed who go on to be born, and the pause between two passes.
SWEEP_SECONDS: Final = 10.0
_KILL_PAUSE_SECONDS: Final = 0.005


def _has_pidfd() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


_HAS_PIDFD: Final = _has_pidfd()


@attrs.frozen
class ProcessIdentity:
    """One process of one boot of one machine, told apart from every other for ever.

    `scope` names machine, boot and process namespace; `pid` and `start` only mean
    something within it. `start` is in kernel ticks (Linux) or hundredths of a
    second since the epoch (elsewhere).
    """

    scope: str
    pid: int
    start: int

    def __str__(self) -> str:
        """Return the one-line form kept in rows."""
        return f"{self.scope}/{self.pid}/{self.start}"

    @classmethod
    def parse(cls, text: str) -> "ProcessIdentity":
        """Return the identity written by `str`; raises ValueError for anything else."""
        scope, pid, start = text.rsplit("/", 2)
        return cls(scope, int(pid), int(start))


@functools.cache
def this_scope() -> str:
    """Return the name of this machine, boot and process namespace."""
    host = socket.gethostname()
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = str((_PROC / "self/ns/pid").stat().st_ino)
    except OSError:
        import psutil

        boot, namespace = str(int(psutil.boot_time())), "0"
    return f"{host}:{boot}:{namespace}"


def this_process() -> ProcessIdentity:
    """Return the identity of the calling process."""
    return identify(os.getpid()) or ProcessIdentity(this_scope(), os.getpid(), 0)


def identify(pid: int) -> ProcessIdentity | None:
    """Return the identity of the live process `pid`, or None. A zombie is not alive."""
    start = start_ticks(pid)
    return None if start is None else ProcessIdentity(this_scope(), pid, start)


@attrs.frozen
class _Stat:
    """What `/proc/<pid>/stat` says of a process."""

    state: str
    session: int
    start: int


def _stat(pid: int) -> _Stat | None:
    try:
        text = (_PROC / str(pid) / "stat").read_bytes().decode("ascii", "replace")
    except OSError as error:
        # Out of descriptors nothing is known: that must not pass for dead.
        if is_shortage(error):
            raise
        return None
    # The name, in parentheses, may itself hold spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return _Stat(fields[0], int(fields[3]), int(fields[19]))


def start_ticks(pid: int) -> int | None:
    """Return when `pid` started, or None if it is gone, a zombie, or dead."""
    if not _HAS_PROC:
        return _start_by_psutil(pid)
    found = _stat(pid)
    return None if found is None or found.state in _DEAD else found.start


def _start_by_psutil(pid: int) -> int | None:
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        return round(process.create_time() * 100)
    except psutil.Error:
        return None


def is_alive(identity: ProcessIdentity) -> bool | None:
    """Say whether the process lives; None where this machine cannot know.

    Another boot of this machine means dead. Another machine, or another process
    namespace of this one, is not ours to judge. Raises OSError where there is no
    descriptor left to look.
    """
    if identity.scope == this_scope():
        return start_ticks(identity.pid) == identity.start
    (host, boot), (here, now) = _boot_of(identity.scope), _boot_of(this_scope())
    return False if host == here and boot != now else None


def is_of_this_boot(scope: str) -> bool:
    """Say whether a scope is of this machine, as it runs now, in whatever namespace."""
    return _HAS_PROC and _boot_of(scope)[1] == _boot_of(this_scope())[1]


def _boot_of(scope: str) -> tuple[str, str]:
    """Return the name of a scope's machine, and that of its boot."""
    host, _, boot = scope.rpartition(":")[0].rpartition(":")
    return host, boot


def age_seconds(identity: ProcessIdentity) -> float:
    """Return how long ago the process started, by a clock that nobody can set."""
    if not _HAS_PROC:
        return max(0.0, time.time() - identity.start / 100)
    ticks = os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - identity.start / ticks)


def is_stopped(identity: ProcessIdentity) -> bool:
    """Say whether the process is held by SIGSTOP or a tracer."""
    found = _stat(identity.pid)
    return found is not None and found.start == identity.start and found.state in "Tt"


@contextlib.contextmanager
def _held(pid: int) -> Iterator[int | None]:
    """Yield a descriptor that means this process for ever, or None if there is none."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError as error:
        # Out of descriptors, say, nobody knows whether there is one.
        if error.errno not in _NOBODY:
            raise
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def send_signal(identity: ProcessIdentity, number: signal.Signals) -> None:
    """Signal the process if it lives and is ours to signal; never another one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if not _HAS_PIDFD:
            if is_alive(identity):
                os.kill(identity.pid, number)
            return
        with _held(identity.pid) as descriptor:
            if descriptor is not None and is_alive(identity):
                signal.pidfd_send_signal(descriptor, number)


def wait_for_end(identity: ProcessIdentity, seconds: float) -> bool:
    """Wait until the process has ended, on Linux without polling; False after `seconds`."""
    deadline = time.monotonic() + seconds
    wait = _wait_by_descriptor if _HAS_PIDFD else _wait_by_looking
    while not wait(identity, min(seconds, _WAIT_MAX_SECONDS)):
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            return False
    return True


def _wait_by_descriptor(identity: ProcessIdentity, seconds: float) -> bool:
    with _held(identity.pid) as descriptor:
        # One that cannot be looked at is a zombie, which its descriptor tells, or hidden.
        if descriptor is None or start_ticks(identity.pid) not in (None, identity.start):
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))


def _wait_by_looking(identity: ProcessIdentity, seconds: float) -> bool:
    # Not by psutil: of a child of ours it would take the exit status away.
    deadline = time.monotonic() + seconds
    while is_alive(identity):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def status_at_end(pid: int, timeout: float | None = None) -> int | None:
    """Wait for the end of a child of ours, and leave it to be reaped; return its exit status.

    It is minus the signal that ended it, and None where the system cannot tell. Raises
    ChildProcessError where somebody else took it: the kernel, where we are to ignore SIGCHLD,
    or a host that reaps whatever ends. To Popen such a process has exited with 0. Raises
    TimeoutError while it lives on after `timeout`.
    """
    if not HAS_WAITID:
        return None
    deadline = None if timeout is None else time.monotonic() + timeout
    options = os.WEXITED | os.WNOWAIT | (0 if deadline is None else os.WNOHANG)
    pause = _FIRST_LOOK_SECONDS
    while (found := os.waitid(os.P_PID, pid, options)) is None:
        if deadline is not None and time.monotonic() >= deadline:
            message = f"process {pid} timed out: it was waited for, and lives on"
            raise TimeoutError(message)
        time.sleep(pause)
        pause = min(2 * pause, _LOOK_SECONDS)
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def kill_descendants(identity: ProcessIdentity) -> int:
    """Send KILL to everything below a process; return how many were alive."""
    import psutil

    if not is_alive(identity):
        return 0
    with contextlib.suppress(psutil.Error):
        below = psutil.Process(identity.pid).children(recursive=True)
        return sum(_kill(process) for process in below)
    return 0


def kill_marked(variable: str, value: str, leader: ProcessIdentity | None = None) -> int:
    """Send KILL to every process that carries `variable=value`; return how many were alive.

    A session is swept too, if its `leader` still is, at least as a zombie: only
    then its number cannot have been given to another session. Where there is /proc all
    are stopped before the first is killed: none sees another's end and goes on, as git
    does without a filter that died.
    """
    import psutil

    if not _HAS_PROC:
        marked = (found for found in psutil.process_iter() if _carries(found, variable, value))
        return sum(_kill(process) for process in marked)
    mark = f"{variable}={value}".encode()
    others = [pid for pid in psutil.pids() if pid != os.getpid()]
    found = [pid for pid in others if _signal_if(pid, signal.SIGSTOP, mark, leader)]
    # The leader last: by it the others of its session are known again.
    for pid in sorted(found, key=lambda pid: leader is not None and pid == leader.pid):
        _signal_if(pid, signal.SIGKILL, mark, leader)
    return len(found)


def repeat_kill(kill: Callable[[], int]) -> int:
    """Kill until a pass finds nobody, as new ones may be born during a pass; bounded."""
    deadline = time.monotonic() + SWEEP_SECONDS
    while (left := kill()) and time.monotonic() < deadline:
        time.sleep(_KILL_PAUSE_SECONDS)
    return left


def _signal_if(pid: int, number: int, mark: bytes, leader: ProcessIdentity | None) -> bool:
    with _held(pid) as descriptor:
        if descriptor is None or not (_is_marked(pid, mark) or _is_led_by(pid, leader)):
            return False
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(descriptor, number)
    return True


def _is_marked(pid: int, mark: bytes) -> bool:
    try:
        return mark in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError as error:
        if is_shortage(error):
            raise
        return False


def _is_led_by(pid: int, leader: ProcessIdentity | None) -> bool:
    found = _stat(pid)
    if leader is None or found is None or found.session != leader.pid or found.state in _DEAD:
        return False
    # Looked at last: if the number is still the leader's now, it was when we read the session.
    then = _stat(leader.pid)
    return then is not None and then.start == leader.start


def _carries(process: "psutil.Process", variable: str, value: str) -> bool:
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        return process.environ().get(variable) == value
    return False


def _kill(process: "psutil.Process") -> bool:
    import psutil

    with contextlib.suppress(psutil.Error):
        if process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            process.kill()
            return True
    return False

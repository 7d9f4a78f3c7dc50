"""Who a process is: boot, process id and start time, never a process id alone.

A process id is reused within seconds on a busy machine, and after a reboot at
once. Start times are kept in the kernel's own ticks where it offers them: a
float made from them moves whenever the time of day is corrected.
"""

import functools
import os
import socket
from pathlib import Path
from typing import Final

import attrs
import psutil

_PROC: Final = Path("/proc")
_DEAD: Final = frozenset("ZXx")


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
        boot, namespace = str(int(psutil.boot_time())), "0"
    return f"{host}:{boot}:{namespace}"


def this_process() -> ProcessIdentity:
    """Return the identity of the calling process."""
    return identify(os.getpid()) or ProcessIdentity(this_scope(), os.getpid(), 0)


def identify(pid: int) -> ProcessIdentity | None:
    """Return the identity of the live process `pid`, or None. A zombie is not alive."""
    start = start_ticks(pid)
    return None if start is None else ProcessIdentity(this_scope(), pid, start)


def start_ticks(pid: int) -> int | None:
    """Return when `pid` started, or None if it is gone, a zombie, or dead."""
    if not _PROC.joinpath("self/stat").exists():
        return _start_by_psutil(pid)
    try:
        text = (_PROC / str(pid) / "stat").read_bytes().decode("ascii", "replace")
    except OSError:
        return None
    # The name, in parentheses, may itself hold spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in _DEAD else int(fields[19])


def _start_by_psutil(pid: int) -> int | None:
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
    namespace of this one, is not ours to judge.
    """
    if identity.scope == this_scope():
        return start_ticks(identity.pid) == identity.start
    host, _, rest = identity.scope.rpartition(":")[0].rpartition(":")
    here, _, boot = this_scope().rpartition(":")[0].rpartition(":")
    if host == here and rest != boot:
        return False
    return None

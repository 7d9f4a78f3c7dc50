"""What a run may use of the machine, held by the kernel where it can be, else by looking.

Standard library only: the supervisor imports it, and only for a run that has such
a limit. A control group (cgroup v2) counts the whole suite, tells of itself when a
limit was met, and can be killed as one. Without one the supervisor looks ten times
a second. Resource limits are no way out: RLIMIT_AS is of one process and of
addresses instead of memory, RLIMIT_NPROC counts all that a user runs and does not
hold root, and neither says that it was met.

See https://docs.kernel.org/admin-guide/cgroup-v2.html.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False  # typing itself would take longer to import than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable

GROUP_PREFIX = "staging-"
LOOK_SECONDS = 0.1
#: Looking may take this share of the time at most, however many processes there are.
LOOK_SHARE = 0.1
REMOVE_TRIES = 200
REMOVE_PAUSE_SECONDS = 0.005
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
MEMORY, PROCESSES = "memory", "processes"


class Sampled:
    """Limits that hold because somebody looks: `breach` is to be asked at least every `seconds`."""

    def __init__(self, memory: int, processes: int, children: Callable[[int], list[int]]) -> None:
        self.memory, self.processes, self.children = memory, processes, children
        self.seconds = LOOK_SECONDS
        self.next_look = 0.0
        self.events: list[int] = []

    def add(self, pid: int) -> None:
        """Take in the suite's leader; whoever is below the supervisor is counted anyway."""

    def breach(self) -> str | None:
        """Return the limit that the processes below the caller are beyond, or None."""
        begun = time.monotonic()
        if begun < self.next_look:
            return None
        found = self._look()
        self.seconds = max(LOOK_SECONDS, (time.monotonic() - begun) / LOOK_SHARE)
        self.next_look = begun + self.seconds
        return found

    def _look(self) -> str | None:
        pids: list[int] = []
        level = [os.getpid()]
        while level:
            level = [child for pid in level for child in self.children(pid)]
            pids += level
        if self.processes and sum(map(threads, pids)) > self.processes:
            return PROCESSES
        if self.memory and sum(map(resident_bytes, pids)) > self.memory:
            # What many share was counted as often: the proportional size tells, and costs more.
            return MEMORY if sum(map(proportional_bytes, pids)) > self.memory else None
        return None

    def end(self) -> None:
        """Leave nothing behind."""

    def kill(self) -> None:
        """Kill whoever is held by the limits; without a group that is the sweep's business."""


class Group:
    """Limits that the kernel holds: a control group of the suite's own."""

    def __init__(self, path: str, memory: int, processes: int) -> None:
        """Make the group; raises OSError where that is not allowed or a limit is not to be had."""
        self.path = path
        self.seconds = float("inf")
        self.events: list[int] = []
        os.mkdir(path)
        try:
            if memory:
                self._set("memory.max", memory)
                # All of it or nothing: a suite that lost one process goes on to lie.
                self._set("memory.oom.group", 1)
                if os.path.exists(os.path.join(path, "memory.swap.max")):
                    self._set("memory.swap.max", 0)
            if processes:
                self._set("pids.max", processes)
            self.sources = {
                open_events(path, "memory.events"): (b"oom_kill", MEMORY),
                open_events(path, "pids.events"): (b"max", PROCESSES),
            }
        except OSError:
            os.rmdir(path)
            raise
        self.sources.pop(-1, None)
        self.events = list(self.sources)

    def _set(self, name: str, value: int) -> None:
        # Not created: where the controller is not switched on, there is no such file.
        fd = os.open(os.path.join(self.path, name), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"%d" % value)
        finally:
            os.close(fd)

    def add(self, pid: int) -> None:
        """Put a process, and whatever it will start, under the limits; raises OSError."""
        self._set("cgroup.procs", pid)

    def breach(self) -> str | None:
        """Return the limit that was met, or None. A read clears what woke the caller."""
        for fd, (name, limit) in self.sources.items():
            for line in os.pread(fd, 4096, 0).splitlines():
                word, _, count = line.partition(b" ")
                if word == name and int(count) > 0:
                    return limit
        return None

    def kill(self) -> None:
        """Kill everybody in the group at once: no fork gets away."""
        kill_group(self.path)

    def end(self) -> None:
        """Remove the group, which must be empty by now."""
        for fd in self.events:
            os.close(fd)
        remove_group(self.path)


def open_events(path: str, name: str) -> int:
    """Return a descriptor that becomes ready whenever the group's events change, or -1."""
    try:
        fd = os.open(os.path.join(path, name), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
    os.pread(fd, 4096, 0)
    return fd


def kill_group(path: str) -> None:
    """Kill everybody in the group at `path`, if it is there."""
    try:
        fd = os.open(os.path.join(path, "cgroup.kill"), os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return  # gone, or a kernel before 5.14
    try:
        os.write(fd, b"1")
    finally:
        os.close(fd)


def remove_group(path: str) -> None:
    """Remove the group at `path`, waiting a moment for the dying in it; it may stay for them."""
    for _ in range(REMOVE_TRIES):
        try:
            os.rmdir(path)
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(REMOVE_PAUSE_SECONDS)
        else:
            return


def hold(
    name: str, memory: int, processes: int, children: Callable[[int], list[int]]
) -> Group | Sampled:
    """Return what holds the limits: a group where one may be made, else somebody who looks."""
    for base in delegated():
        # Who moves a process between two groups must have a say in the one above both.
        if not os.access(os.path.join(base, "cgroup.procs"), os.W_OK):
            continue
        share_controllers(base)
        try:
            return Group(os.path.join(base, GROUP_PREFIX + name), memory, processes)
        except OSError:
            continue
    return Sampled(memory, processes, children)


def share_controllers(base: str) -> None:
    """Let groups below `base` have limits, where that is allowed and not done yet."""
    try:
        fd = os.open(os.path.join(base, "cgroup.subtree_control"), os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(fd, b"+memory +pids")
    except OSError:
        pass  # it holds processes, or has no such controller: what matters is tried next
    finally:
        os.close(fd)


def delegated() -> list[str]:
    """Return the groups below which the suite's own may be made: beside ours first, then below.

    A group that holds processes cannot share its controllers among groups below
    it, so a service is best run with `Delegate=yes` and `DelegateSubgroup=`.
    """
    try:
        with open("/proc/self/cgroup", "rb") as file:
            ours = [line[3:] for line in file.read().splitlines() if line.startswith(b"0::")]
        with open("/proc/self/mountinfo", "rb") as file:
            mounts = [line.split() for line in file if b" - cgroup2 " in line]
    except OSError:
        return []
    if not ours or not mounts:
        return []
    root, mount = os.fsdecode(mounts[0][3]), os.fsdecode(mounts[0][4])
    path = os.path.relpath(os.fsdecode(ours[0]), root)
    if path.startswith(".."):
        return []
    own = os.path.normpath(os.path.join(mount, path))
    if own == mount:
        return [own]
    return [base for base in (os.path.dirname(own), own) if is_delegated(base)]


def is_delegated(base: str) -> bool:
    """Say whether a group is ours to divide: root may write to all, systemd says which are meant.

    See https://systemd.io/CGROUP_DELEGATION/.
    """
    try:
        return os.getxattr(base, "user.delegate") == b"1"
    except OSError:
        return os.geteuid() != 0 and os.access(base, os.W_OK)


def threads(pid: int) -> int:
    """Return how many threads a process has, which is what the kernel counts; 0 for none."""
    return int((_read(pid, "stat").rpartition(b")")[2].split()[17:18] or [b"0"])[0])


def resident_bytes(pid: int) -> int:
    """Return how much memory a process has, with what it shares; 0 for none."""
    return int((_read(pid, "statm").split()[1:2] or [b"0"])[0]) * PAGE_BYTES


def proportional_bytes(pid: int) -> int:
    """Return how much memory a process has, with its part of what it shares."""
    for line in _read(pid, "smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return resident_bytes(pid)  # another user's, say


def _read(pid: int, name: str) -> bytes:
    try:
        with open("/proc/%d/%s" % (pid, name), "rb") as file:
            return file.read()
    except OSError:
        return b""

"""The end of everybody below the supervisor, whatever group or session they fled to."""

from __future__ import annotations

import os
import time

from .system import IS_LINUX, signal

TYPE_CHECKING = False  # typing itself would take longer to import than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable

    from .limits import Group, Sampled
    from .suite import Suite

SWEEP_SECONDS = 10.0
SWEEP_PAUSE_SECONDS = 0.005
#: Of the looks at those who die of a killed group: one process takes less than the first pause,
#: and nobody who is only dying takes longer than the last one without another going before.
FIRST_PAUSE_SECONDS, PATIENCE_SECONDS = 0.0005, 0.016
#: A storm of forks must not keep us from looking at the clock.
REAPS_AT_ONCE = 1000


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

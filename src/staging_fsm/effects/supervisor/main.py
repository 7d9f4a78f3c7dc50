"""The small process between worker and suite: it outlives the worker, and nothing outlives it.

`main` is the whole life of a process of its own, `python -I -S`, with the suite's
environment, the suite's command in the run's folder and a secret on standard
input. Single-threaded, the only waiter of the suite.

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
"""

from __future__ import annotations

import os
import sys
import time

from .log import BoundedLog
from .result import (
    SEAL_BYTES,
    SECRET_BYTES,
    lines_of,
    mark_of,
    reserve_result,
    sealed,
    set_foreign_aside,
    write_identity,
    write_result,
)
from .suite import Suite
from .sweep import direct_children, sweep
from .system import IS_LINUX, blake2b, signal, system_prctl
from .watch import Watch

TYPE_CHECKING = False  # typing itself would take longer to import than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable

    from .limits import Group, Sampled

PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36
LATE_OUTPUT_SECONDS = 0.2
DRAIN_SECONDS = 1.0
#: Whoever uses up the machine gets no grace: it would only use up more. Nor who has lost its
#: fence: another machine may be about to start the next suite.
AT_ONCE = ("memory", "processes", "fence_lost")


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


def supervise(
    suite: Suite, watch: Watch, order: dict[str, float], deadline: float, report: str
) -> tuple[str | None, str | None]:
    """Wait for the suite and end it; return why we stopped it, or None if it ended by itself.

    Also how its report was before our first signal, or None where we sent none.
    """
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
        return watch.stop_reason() or (None if in_time else "deadline"), None
    # What becomes of it from here on, our signals may have done.
    report_before = mark_of(report)
    if stopped_by not in AT_ONCE:
        suite.signal_group(signal.SIGTERM, signal.SIGCONT)
        # A shell that dies of TERM leaves the real suite behind: the grace is for both.
        end = time.monotonic() + order["grace"]
        watch.until(lambda: watch.fence_lost or suite.is_over(), end)
    return stopped_by, report_before


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
    from . import limits

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
    report_before, survivors, left = None, 0, 0
    started = time.monotonic()
    if suite.pid:
        if limits:
            limits.add(suite.pid)
        suite.release(run=stopped_by is None)
    if suite.pid and stopped_by is None and suite.spawn_error is None:
        deadline = started + order["timeout"]
        stopped_by, report_before = supervise(suite, watch, order, deadline, report)
        survivors = len(suite.company()) if stopped_by is None else 0
    duration, ended_at = time.monotonic() - started, time.time()
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
    report_now, asked = mark_of(report), watch.asked_to_stop()
    if report_before is None:
        report_before = "" if asked else report_now
    text = lines_of(
        run=os.path.basename(folder),
        **suite.ending(stopped_by or asked),
        out_of_memory=int(out_of_memory),
        duration_seconds="%.6f" % duration,
        ended_at="%.6f" % ended_at,
        survivors=survivors,
        processes_left=left,
        **log.facts(),
        report=report_now,
        report_before_stop=report_before,
        foreign_result=int(set_foreign_aside(folder)),
    )
    write_result(folder, room, sealed(secret, text))

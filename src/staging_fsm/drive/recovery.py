"""Attempts whose worker is gone: adopt the run, or reap it and count it as lost.

Liveness is that of a process identity (boot, pid, start time), never of a pid
alone and never a lease: a worker that is only slow is not gone. What cannot be
judged from this machine is left alone. Two workers that find the same attempt
are told apart by the compare-and-swap of the row.
"""

from collections.abc import Callable

from staging_fsm.core.jobs import JobRow
from staging_fsm.core.outcome import Reason
from staging_fsm.core.ports import RunCondition
from staging_fsm.core.snapshot import ADOPTIONS_MAX, Snapshot
from staging_fsm.core.spec import Event, State
from staging_fsm.drive.engine import Engine, Step, run_id_of
from staging_fsm.effects.processes import ProcessIdentity, is_alive

#: Says whether the worker of a snapshot lives; None where this machine cannot know.
Liveness = Callable[[str], bool | None]


def worker_is_alive(worker: str) -> bool | None:
    """Say whether the process named by `ProcessIdentity` text lives; None if unknown."""
    try:
        return is_alive(ProcessIdentity.parse(worker))
    except ValueError:
        return None


def take_up(engine: Engine, row: JobRow, snapshot: Snapshot) -> Snapshot:
    """Drive on an attempt whose worker is known to be gone.

    A RUNNING attempt's run is adopted while its supervisor lives or has left a
    result, at no cost to the budget. Otherwise what is left of it is reaped, and
    only then it counts as lost.
    """
    if snapshot.state is not State.RUNNING:
        return engine.drive(row, snapshot)
    condition = engine.suites.condition(run_id_of(snapshot))
    if condition is RunCondition.FOREIGN:
        return snapshot
    adopted = sum(move.row.event is Event.RUN_ADOPTED for move in snapshot.history)
    if condition is not RunCondition.LOST and adopted < ADOPTIONS_MAX:
        step = Step(Event.RUN_ADOPTED, f"run {snapshot.last_run.number} is {condition}")
    else:
        gone = f"worker {snapshot.worker} is gone"
        step = engine.lose(snapshot, Event.WORKER_LOST, Reason.WORKER_LOST, gone)
    return engine.drive(row, engine.move(row, snapshot, step))

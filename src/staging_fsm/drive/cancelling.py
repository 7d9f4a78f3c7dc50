"""Stopping an attempt on request: nothing is judged, and the job ends as cancelled.

Whether it is too late is the table's to say, and whose suite can be stopped from here
is the worker's name.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from staging_fsm.core.errors import (
    NothingToCancelError,
    RefusedError,
    StaleSnapshotError,
    TransitionRefusedError,
)
from staging_fsm.core.jobs import QUEUED, RUNNING, JobRow
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import TRANSITIONS, Event, State, reachable
from staging_fsm.drive.engine import Step

if TYPE_CHECKING:
    from staging_fsm.drive.runner import StagingRunner

#: How often a cancellation is asked for while the attempt moves, and the pause between two.
CANCEL_TRIES: Final = 200
CANCEL_PAUSE_SECONDS: Final = 0.05
_CANCELLABLE: Final = {row.source for row in TRANSITIONS if row.event is Event.CANCEL_REQUESTED}
_BEYOND: Final = frozenset(
    state for state in State if not reachable(TRANSITIONS, state) & _CANCELLABLE
)


def is_beyond(state: State) -> bool:
    """Say whether the table allows no cancellation any more, now or later."""
    return state in _BEYOND


def refuse_other_stage(row: JobRow, stage: str) -> None:
    """Raise RefusedError for a job that is not of `stage`, the host's word for ours."""
    if row.stage != stage:
        message = f"job {row.id} is of stage {row.stage}, and only {stage} has attempts"
        raise RefusedError(message)


def refuse_without_attempt(row: JobRow, snapshot: Snapshot | None) -> None:
    """Raise NothingToCancelError for a job that does not wait, and has no attempt.

    An agent has it, or had it: a cancellation would end the job and not the agent.
    """
    if snapshot is None and row.status != QUEUED:
        raise NothingToCancelError(row.id, row.status, in_work=row.status == RUNNING)


def _nobodys() -> bool:
    return False


def cancel(
    runner: "StagingRunner", job_id: Any, is_claimed_here: Callable[[], bool] = _nobodys
) -> Snapshot:
    """Stop an attempt, as `StagingIntercept.cancel` says.

    `is_claimed_here` says whether whoever asks has claimed the job, and starts no agent for
    it: then it may be cancelled before its attempt has begun.
    """
    row = runner.engine.rows.load(job_id)
    refuse_other_stage(row, runner.stage)
    snapshot = row.snapshot()
    if not (row.status == RUNNING and is_claimed_here()):
        refuse_without_attempt(row, snapshot)
    if snapshot and snapshot.state is State.RUNNING and runner.liveness(snapshot.worker) is None:
        message = (
            f"job {job_id} runs on another machine, or in another container, under worker"
            f" {snapshot.worker}, and its suite cannot be stopped from here: cancel it there"
        )
        raise RefusedError(message)
    return cancel_at(runner, row, snapshot)


def cancel_at(runner: "StagingRunner", row: JobRow, snapshot: Snapshot | None) -> Snapshot:
    """Stop an attempt that stands as it was looked at, None for none yet.

    Raises StaleSnapshotError if it has moved since, and TransitionRefusedError.
    """
    step = Step(Event.CANCEL_REQUESTED, "a person asked for it")
    moved = runner.engine.move(row, snapshot or runner.new_attempt(row), step)
    return runner.engine.drive(row, moved)


def cancel_in_the_end(
    runner: "StagingRunner",
    job_id: Any,
    wait: Callable[[float], object],
    is_claimed_here: Callable[[], bool] = _nobodys,
) -> bool:
    """Stop an attempt, asking again while it moves, and say whether it was; once judged it is not.

    Gives up after CANCEL_TRIES. `wait` waits for so many seconds. Raises what `cancel`
    does but for StaleSnapshotError and TransitionRefusedError.
    """
    for _ in range(CANCEL_TRIES):
        try:
            cancel(runner, job_id, is_claimed_here)
        except StaleSnapshotError:
            continue
        except TransitionRefusedError as error:
            if is_beyond(State(error.state)):
                break
            # A tool error: the next state is not far, and from there it can be.
            wait(CANCEL_PAUSE_SECONDS)
        else:
            return True
    return False

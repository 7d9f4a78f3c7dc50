"""What anybody may ask of a fleet, from anywhere that reaches its database."""

import contextlib
import time
from typing import Final

from staging_fsm.core.errors import StaleSnapshotError, UnansweredError
from staging_fsm.core.jobs import QUEUED, STAGE, JobRow
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import State
from staging_fsm.drive.cancelling import (
    cancel_at,
    is_beyond,
    refuse_other_stage,
    refuse_without_attempt,
)
from staging_fsm.drive.intercept import StagingIntercept
from staging_fsm.fleet.fence import Fence
from staging_fsm.fleet.fleet import Fleet
from staging_fsm.host.launcher import end_without_agent

#: Beyond the time after which a silent worker's jobs are delivered to another.
CANCEL_MARGIN_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 0.1


def cancel(fleet: Fleet, staging: StagingIntercept, job_id: int) -> Snapshot:
    """Stop an attempt wherever it runs: nothing is judged, and the job ends as cancelled.

    A job that waits is cancelled at once; the attempt of one that was declined stays as it
    is, and is returned. For one in work its worker is asked, again and
    again: another one may take it up meanwhile, or the one that has it wake up. Raises
    TransitionRefusedError where the table allows it no more, RefusedError for a job of
    another stage, or one in work or ended that has no attempt, and UnansweredError where
    no worker answered in time: it is asked to stop all the same.
    """
    deadline = time.monotonic() + fleet.settings.stalled_seconds + CANCEL_MARGIN_SECONDS
    asked = False
    while time.monotonic() < deadline:
        row = fleet.rows.load(job_id)
        refuse_other_stage(row, STAGE)
        snapshot = row.snapshot()
        refuse_without_attempt(row, snapshot)
        if asked and snapshot is not None and snapshot.state is State.CANCELLED:
            return snapshot
        if row.status == QUEUED and snapshot and snapshot.state is State.LLM_FALLBACK:
            if _end_declined(fleet, row, snapshot):
                return snapshot
        elif row.status == QUEUED or (snapshot and is_beyond(snapshot.state)):
            # A worker that took it up since is found by the next look, and asked.
            with contextlib.suppress(StaleSnapshotError):
                return _cancel_here(fleet, staging, row, snapshot)
        else:
            with fleet.engine.begin() as tx:
                fleet.deliveries.abort(tx, job_id)
            asked = True
        fleet.clock.wait(_PAUSE_SECONDS)
    message = f"no worker answered for job {job_id}: look at it again, and ask again"
    if row.status == QUEUED:
        message = f"job {job_id} waits, and its repository is in work: ask again once that is over"
    raise UnansweredError(message)


def _cancel_here(
    fleet: Fleet, staging: StagingIntercept, row: JobRow, snapshot: Snapshot | None
) -> Snapshot:
    # The very snapshot that was looked at: had it moved since, the write is refused.
    ended = cancel_at(staging.runner, row, snapshot)
    with fleet.engine.begin() as tx:
        fleet.deliveries.take_back(tx, row.id)
    return ended


def _end_declined(fleet: Fleet, row: JobRow, snapshot: Snapshot) -> bool:
    """End a job that waits for an agent; say whether it did so.

    Behind its fence, so that no worker starts one meanwhile: its attempt would not move.
    """
    with Fence(fleet.server, row.repo) as fence:
        if not fence.take() or fleet.rows.load(row.id).status != QUEUED:
            return False
        end_without_agent(fleet.rows, row.id, snapshot)
    with fleet.engine.begin() as tx:
        fleet.deliveries.take_back(tx, row.id)
    return True

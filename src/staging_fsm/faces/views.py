"""What the faces say about an attempt: one object for programs, the same facts for people."""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import attrs

from staging_fsm.core.artifact import fault
from staging_fsm.core.errors import SnapshotRefusedError
from staging_fsm.core.outcome import REASONS
from staging_fsm.core.ports import JobRow
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import State
from staging_fsm.effects.clock import parse_time

_STATUS: dict[State, str] = {
    State.ADVANCED: "SUCCESS",
    State.ROLLED_BACK: "FAILED",
    State.FAILED_CLOSED: "FAILED",
}


def attempt_view(row: JobRow, snapshot: Snapshot, next_stage: str | None) -> dict[str, Any]:
    """Return one attempt as `run --json` prints it.

    `status` is the word the gate read, or None where it read none. `reason` is
    why the last run ended, or why the attempt did without one.
    """
    reason = snapshot.runs and snapshot.last_run.reason
    return {
        "job_id": row.id,
        "repo": row.repo,
        "work_item": row.work_item,
        "attempt_id": snapshot.attempt_id,
        "state": str(snapshot.state),
        "status": _STATUS.get(snapshot.state),
        "reason": str(reason) if reason else snapshot.history[-1].reason,
        "fault": fault(snapshot) if reason else None,
        "revision": snapshot.plan.revision if snapshot.plan else None,
        "runs": [
            {
                "number": run.number,
                "exit_code": run.exit_code,
                "signal": run.signal,
                "reason": str(run.reason) if run.reason else None,
                "duration_seconds": run.duration_seconds,
                "detail": run.detail,
                "counts": attrs.asdict(run.counts) if run.counts else None,
                "log": run.log,
            }
            for run in snapshot.runs
        ],
        "history": [attrs.asdict(move) for move in snapshot.history],
        "next_run_at": snapshot.next_run_at,
        "artifact": snapshot.artifact.path if snapshot.artifact else None,
        "log": snapshot.last_run.log if snapshot.runs else None,
        "next_stage": next_stage,
    }


def sentence(snapshot: Snapshot) -> str:
    """Return why an attempt is where it is, for a person."""
    reason = snapshot.runs and snapshot.last_run.reason
    if reason and snapshot.state not in (State.LLM_FALLBACK, State.CANCELLED):
        return REASONS[reason].sentence
    return snapshot.history[-1].reason


def queue_view(rows: Iterable[JobRow], now: datetime) -> dict[str, Any]:
    """Return the unfinished attempts: counts by state, and each with what comes next.

    A row whose snapshot is refused is shown with the problem: it is what an
    operator has to look at first.
    """
    attempts, refused = [], []
    for row in rows:
        try:
            snapshot = row.snapshot()
        except SnapshotRefusedError as error:
            refused.append({"job_id": row.id, "work_item": row.work_item, "problem": error.problem})
            continue
        if snapshot is not None:
            attempts.append(_queued(row, snapshot, now))
    counts = Counter(attempt["state"] for attempt in attempts)
    return {"counts": dict(sorted(counts.items())), "attempts": attempts, "refused": refused}


def _queued(row: JobRow, snapshot: Snapshot, now: datetime) -> dict[str, Any]:
    since = parse_time(snapshot.history[-1].time)
    plan = snapshot.plan
    return {
        "job_id": row.id,
        "repo": row.repo,
        "work_item": row.work_item,
        "state": str(snapshot.state),
        "run": len(snapshot.runs),
        "runs_max": plan.budget.runs_max if plan else None,
        "seconds_in_state": round((now - since).total_seconds(), 1),
        "timeout_seconds": plan.suite.timeout_seconds if plan else None,
        "next_run_at": snapshot.next_run_at,
        "reason": sentence(snapshot),
        "worker": snapshot.worker,
    }

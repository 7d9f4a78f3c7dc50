"""What the faces say about an attempt: one object for programs, the same facts for people."""

import itertools
from collections.abc import Callable
from datetime import datetime
from operator import attrgetter
from typing import Any, Final

import attrs
from typing_extensions import TypedDict

from staging_fsm.core.artifact import evidence_of, fault
from staging_fsm.core.jobs import JobRow
from staging_fsm.core.outcome import REASONS
from staging_fsm.core.snapshot import Run, Snapshot
from staging_fsm.core.spec import State
from staging_fsm.core.times import parse_time
from staging_fsm.core.visible import visible

#: Below this many seconds a tenth of one is worth saying.
_TENTHS_BELOW: Final = 9.95
_TENTH_MIN: Final = 0.05
_MINUTE: Final = 60
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR
#: A damaged number would hide all others from a plot, and from a sum.
_SECONDS_MAX: Final = 30.0 * _DAY
#: So much of a text of a row is shown.
TEXT_CHARACTERS: Final = 300
_STATUS: dict[State, str] = {
    State.ADVANCED: "SUCCESS",
    State.ROLLED_BACK: "FAILED",
    State.FAILED_CLOSED: "FAILED",
}


def attempt_view(
    row: JobRow,
    snapshot: Snapshot,
    next_stage: str | None,
    log_of: Callable[[Run], str | None] = attrgetter("log"),
) -> dict[str, Any]:
    """Return one attempt as `run --json` prints it.

    `status` is the word the gate read, or None where it read none. `reason` is
    why the last run ended, or why the attempt did without one, and `evidence` what
    its outcome rests on, as `evidence_of` says it. `log_of` says where a run's output is.
    """
    reason, logs = snapshot.last_reason, [log_of(run) for run in snapshot.runs]
    return {
        "job_id": row.id,
        "repo": row.repo,
        "work_item": row.work_item,
        "attempt_id": snapshot.attempt_id,
        "state": str(snapshot.state),
        "status": _STATUS.get(snapshot.state),
        "reason": str(reason) if reason else _last_words(snapshot),
        "fault": fault(snapshot),
        "evidence": evidence_of(snapshot),
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
                "log": log,
            }
            for run, log in zip(snapshot.runs, logs, strict=True)
        ],
        "history": trail_view(snapshot),
        "next_run_at": snapshot.next_run_at,
        "artifact": snapshot.artifact.path if snapshot.artifact else None,
        "log": logs[-1] if logs else None,
        "next_stage": next_stage,
    }


def trail_view(snapshot: Snapshot) -> list[dict[str, str]]:
    """Return the moves of an attempt, each with the event and the target of its row."""
    return [
        {**attrs.asdict(move), "event": str(move.row.event), "target": str(move.row.target)}
        for move in snapshot.history
    ]


def sentence(snapshot: Snapshot) -> str:
    """Return why an attempt is where it is, for a person."""
    reason = snapshot.last_reason
    if reason and snapshot.state not in (State.LLM_FALLBACK, State.CANCELLED):
        return REASONS[reason].sentence
    return _last_words(snapshot)


def _last_words(snapshot: Snapshot) -> str:
    return snapshot.history[-1].reason if snapshot.history else "nothing has happened yet"


def duration_words(seconds: float) -> str:
    """Return a span of time as a person says it, to two units at most."""
    if _TENTH_MIN <= seconds < _TENTHS_BELOW and seconds != round(seconds):
        return f"{seconds:.1f} s"
    left = round(max(0.0, seconds))
    units = (("d", _DAY), ("h", _HOUR), ("min", _MINUTE), ("s", 1))
    for (unit, size), (smaller, part) in itertools.pairwise(units):
        if left >= size:
            rest = left % size // part
            return f"{left // size} {unit} {rest} {smaller}" if rest else f"{left // size} {unit}"
    return f"{left} s"


def plain(text: object, limit: int = TEXT_CHARACTERS) -> str:
    """Return a text of a row with nothing in it that moves a cursor, and not too much of it."""
    words = str(text)
    cut = words if len(words) <= limit else f"{words[:limit]}…"
    return visible(cut)


def credible_seconds(seconds: float) -> float:
    """Return how long something lasted, as far as a row is believed: 30 days at most."""
    return min(max(seconds, 0.0), _SECONDS_MAX)


def moment(text: str | None) -> datetime | None:
    """Return the time that a row holds; None where what it holds is no time."""
    try:
        return None if text is None else parse_time(text)
    except ValueError:
        return None


def job_id_of(row: JobRow) -> int | str:
    """Return the host's key as a JSON value."""
    return row.id if type(row.id) is int else plain(row.id)


class Names(TypedDict):
    """Whose attempt it is."""

    job_id: int | str
    repo: str
    work_item: str


def names_of(row: JobRow) -> Names:
    """Return whose attempt a row holds, as JSON values."""
    return {"job_id": job_id_of(row), "repo": plain(row.repo), "work_item": plain(row.work_item)}

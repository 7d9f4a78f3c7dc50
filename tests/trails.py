"""Stored attempts, walked move by move as the engine walks them, and ways to alter one by hand."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from staging_fsm.core.evidence import Counts, EvidenceState
from staging_fsm.core.machine import step
from staging_fsm.core.outcome import Reason
from staging_fsm.core.plan import Budget, Plan, Preset, SuitePlan
from staging_fsm.core.snapshot import Artifact, Run, Snapshot, dump_snapshot, fresh_snapshot
from staging_fsm.core.spec import Event
from staging_fsm.core.trail import walk

Document = dict[str, Any]
Path = tuple[str | int, ...]

NOW = "2026-01-01T00:00:00.000000Z"
DUE = "2026-01-01T00:01:00.000000Z"
LATER = "2026-01-01T00:03:00.000000Z"
PLAN = Plan(
    SuitePlan(("pytest", "-q"), Preset.PYTEST, "junit.xml", tool_exit_codes=(75,)),
    Budget(2),
    "4c1d0a7",
)
FIRST, SECOND = Run(1, NOW), Run(2, NOW, due_at=DUE)
SEEN: dict[str, Any] = {
    "ended_at": NOW,
    "rule": "J12",
    "duration_seconds": 8.5,
    "detail": "a detail",
    "evidence": EvidenceState.READ,
    "counts": Counts(3, 0, 0, 1),
    "log": "/runs/1/output.log",
    "log_sha256": "5e1f",
    "log_bytes": 100,
    "log_dropped_bytes": 0,
}
PASSED = attrs.evolve(FIRST, reason=Reason.PASSED, exit_code=0, **SEEN)
BROKEN = attrs.evolve(FIRST, reason=Reason.REPORT_MISSING, exit_code=0, **SEEN)
LOST = attrs.evolve(FIRST, reason=Reason.WORKER_LOST, **SEEN)
FAILED = attrs.evolve(FIRST, reason=Reason.TESTS_FAILED, exit_code=1, **SEEN)
BROKEN_AGAIN = attrs.evolve(SECOND, reason=Reason.STOPPED, signal=15, **SEEN)
WRITTEN = Artifact("/repo/15-staging-log.md", "ab12")

Walked = tuple[Event, dict[str, Any]]
CLAIM: Walked = (Event.JOB_CLAIMED, {"plan": PLAN, "runs": (FIRST,)})
ERROR: Walked = (Event.SUITE_NOT_EXECUTED, {"runs": (BROKEN,)})
WAIT: Walked = (Event.BUDGET_LEFT, {"next_run_at": DUE})
WAIT_AGAIN: Walked = (Event.BUDGET_LEFT, {"next_run_at": LATER})
CLAIM_AGAIN: Walked = (Event.JOB_CLAIMED, {"runs": (BROKEN, SECOND), "next_run_at": None})
ERROR_AGAIN: Walked = (Event.SUITE_NOT_EXECUTED, {"runs": (BROKEN, BROKEN_AGAIN)})
REFUSED: Walked = (Event.GATE_REFUSED, {"artifact": WRITTEN})


def walked(*steps: Walked, before: Snapshot | None = None, worker: str = "a worker") -> Snapshot:
    """Return the attempt that walked `steps`, each with what it stored."""
    snapshot = before or fresh_snapshot("7-3f", "w")
    for event, changes in steps:
        row = step(snapshot.state, event)
        snapshot = walk(snapshot, row, NOW, f"because of {event}", worker, changes)
    return snapshot


ATTEMPTS = {
    "declined": walked((Event.RUNNER_DECLINED, {})),
    "running": walked(CLAIM),
    "adopted": walked((Event.RUN_ADOPTED, {}), before=walked(CLAIM), worker="the worker after it"),
    "lost": walked(CLAIM, (Event.WORKER_LOST, {"runs": (LOST,)}), WAIT),
    "rolled back": walked(CLAIM, (Event.SUITE_FAILED, {"runs": (FAILED,)}), REFUSED),
    "deferred again": walked(
        *(CLAIM, ERROR, WAIT, CLAIM_AGAIN),
        ERROR_AGAIN,
        WAIT_AGAIN,
    ),
    "cancelled while it ran": walked(CLAIM, (Event.CANCEL_REQUESTED, {})),
    "deferred": walked(CLAIM, ERROR, WAIT),
    "declined between two runs": walked(CLAIM, ERROR, WAIT, (Event.RUNNER_DECLINED, {})),
    "running again": walked(CLAIM, ERROR, WAIT, CLAIM_AGAIN),
    "rolled back after a pass": walked(CLAIM, (Event.SUITE_PASSED, {"runs": (PASSED,)}), REFUSED),
    "advanced": walked(
        CLAIM, (Event.SUITE_PASSED, {"runs": (PASSED,)}), (Event.GATE_OPENED, REFUSED[1])
    ),
    "failed closed": walked(
        *(CLAIM, ERROR, WAIT, CLAIM_AGAIN),
        ERROR_AGAIN,
        (Event.BUDGET_SPENT, {}),
        REFUSED,
    ),
}


def document(snapshot: Snapshot) -> Document:
    """Return a snapshot as it comes out of a row."""
    stored: Document = json.loads(dump_snapshot(snapshot))
    return stored


def leaves(value: object, path: Path = ()) -> Iterator[Path]:
    """Yield the path of every leaf of a JSON value."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))
    else:
        yield path


def objects(value: object, path: Path = ()) -> Iterator[Path]:
    """Yield the path of every object in a JSON value."""
    if isinstance(value, dict):
        yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from objects(inner, (*path, key))


def at(value: Any, path: Path) -> Any:
    """Return what stands at `path`."""
    for key in path:
        value = value[key]
    return value


def put(path: Path, new: Any) -> Callable[[Document], None]:
    """Return a change that puts `new` at `path`."""

    def change(stored: Document) -> None:
        at(stored, path[:-1])[path[-1]] = new

    return change


def drop(*path: str | int) -> Callable[[Document], None]:
    """Return a change that removes what stands at `path`."""

    def change(stored: Document) -> None:
        del at(stored, path[:-1])[path[-1]]

    return change


def altered(value: Any) -> list[Any]:
    """Return other values of the same type, and one of the others."""
    match value:
        case bool():
            return [not value]
        case int() | float():
            return [value + 1, value * 2 + 1, 0 if value else 5]
        case str():
            return [value + "x", f"{value} ", value[:-1], ""] if value else ["x"]
        case _:
            return ["x", NOW, 0, 1.5, [], {}]

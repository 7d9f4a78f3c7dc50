"""One attempt in each version in which a row may hold it."""

from datetime import UTC, datetime, timedelta

import attrs

from staging_fsm.core.plan import Budget, Plan, SuitePlan
from staging_fsm.core.snapshot import Move, Run, Snapshot, fresh_snapshot
from staging_fsm.core.spec import State
from staging_fsm.core.times import format_time

NOW = datetime(2026, 3, 29, 1, 30, 0, 500_000, UTC)
LATER = NOW + timedelta(minutes=15)


def attempt(version: int) -> Snapshot:
    """Return an attempt that was written `version` times: it started, and then changed hands."""
    ids = ["T01", *["T18"] * (version - 1)]
    moves = tuple(Move(id_, format_time(NOW), "because it did", "w", "5e1f") for id_ in ids)
    plan = Plan(SuitePlan(("run-the-suite", "é\u2028\\")), Budget(), "abc123")
    fresh = fresh_snapshot("1-a", "w")
    return attrs.evolve(
        fresh,
        version=version,
        state=State.RUNNING,
        plan=plan,
        runs=(Run(1, format_time(NOW)),),
        history=moves,
    )

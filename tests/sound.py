"""Sound attempts, each by the rows of the table that it walked: no invariant speaks of one."""

import hashlib
from typing import Any

import attrs

from attempts import linked
from staging_fsm.core.outcome import Reason
from staging_fsm.core.plan import Budget, Plan, SuitePlan
from staging_fsm.core.snapshot import Artifact, Move, Run, Snapshot, replay
from staging_fsm.core.trail import NO_LINK

NOW = "2026-01-01T00:00:00.000000Z"
TEXT = "---\nstaging_status: SUCCESS\n---\n"
RED_TEXT = "---\nstaging_status: FAILED\n---\n"
PASSED = Run(1, NOW, NOW, Reason.PASSED, "J12", 0, None, 60.0)
FAILED = Run(1, NOW, NOW, Reason.EXIT_CODE, "J11", 1, None, 60.0)
BROKEN = Run(1, NOW, NOW, Reason.TOOL_EXIT_CODE, "J08", 126, None, 60.0)
OPEN = Run(1, NOW)
PLAN = Plan(SuitePlan(("suite",), timeout_seconds=60), Budget(infra_retries=1), "abc123")


def attempt(path: str, *runs: Run, plan: Plan | None = PLAN, **changes: Any) -> Snapshot:
    """Return a sound attempt that walked the rows of `path`."""
    moves = tuple(Move(id_, NOW, "because", "w", NO_LINK) for id_ in path.split())
    numbered = tuple(attrs.evolve(run, number=number) for number, run in enumerate(runs, 1))
    sound = Snapshot(len(moves), "1-a", replay(moves), "w", plan, numbered, moves, None, None)
    return linked(attrs.evolve(sound, **changes))


def artifact(text: str) -> Artifact:
    """Return the record of a written artifact."""
    return Artifact("/a", hashlib.sha256(text.encode()).hexdigest())

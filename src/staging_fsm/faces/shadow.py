"""What the shadow found: where agent and runner agree, where not, and what each cost."""

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum, unique
from typing import Any

from staging_fsm.core.errors import SnapshotRefusedError
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import State
from staging_fsm.core.times import parse_time
from staging_fsm.effects.shadow import Record
from staging_fsm.faces.views import sentence


@unique
class Comparison(StrEnum):
    """How the agent's launch and the runner's attempt compare."""

    #: The gate gave both the same answer.
    AGREED = "agreed"
    #: The gate opened for the agent, and the suite that really ran had failed.
    AGENT_ALONE_PASSED = "agent alone passed"
    #: The gate refused the agent, and the suite that really ran had passed.
    RUNNER_ALONE_PASSED = "runner alone passed"
    #: The suite could not be run within the budget: the runner has no verdict to compare.
    NO_VERDICT = "no verdict"
    #: The runner had a reason not to run: the record says which.
    NOT_RUN = "not run"
    #: What the runner noted of its attempt cannot be read: nothing more will come of it.
    DAMAGED = "damaged"
    #: The agent or the runner is still to come.
    WAITING = "waiting"


DISAGREED = (Comparison.AGENT_ALONE_PASSED, Comparison.RUNNER_ALONE_PASSED)
#: Where the runner ran, too, also to no verdict: only there are the costs comparable.
BOTH_RAN = (Comparison.AGREED, *DISAGREED, Comparison.NO_VERDICT)
_OPENED = {State.ADVANCED: True, State.ROLLED_BACK: False}
_WITHOUT = {
    State.FAILED_CLOSED: Comparison.NO_VERDICT,
    State.LLM_FALLBACK: Comparison.NOT_RUN,
}


def compare(record: Record, snapshot: Snapshot | None) -> Comparison:
    """Return how a launch and the attempt beside it compare."""
    if record.agent is None or snapshot is None or not snapshot.is_terminal:
        return Comparison.WAITING
    opened = _OPENED.get(snapshot.state)
    if opened is None:
        return _WITHOUT[snapshot.state]
    if opened == record.agent.opened:
        return Comparison.AGREED
    return Comparison.RUNNER_ALONE_PASSED if opened else Comparison.AGENT_ALONE_PASSED


def shadow_view(records: Iterable[Record]) -> dict[str, Any]:
    """Return the evidence for throwing the switch, as `shadow-report --json` prints it.

    Seconds and tokens are of the launches that both ran.
    """
    launches = [_launch_view(record) for record in records]
    both = [launch for launch in launches if launch["comparison"] in BOTH_RAN]
    counts = Counter(launch["comparison"] for launch in launches)
    told = [launch["agent"] for launch in both if launch["agent"]["output_tokens"] is not None]
    return {
        "counts": {str(kind): counts[kind] for kind in Comparison},
        "agent_seconds": _total(launch["agent"]["seconds"] for launch in both),
        "runner_seconds": _total(launch["runner"]["seconds"] for launch in both),
        "launches_with_tokens": len(told),
        "input_tokens": sum(agent["input_tokens"] or 0 for agent in told),
        "output_tokens": sum(agent["output_tokens"] for agent in told),
        "launches": launches,
    }


def _total(seconds: Iterable[float]) -> float:
    return round(sum(seconds), 3)


def _launch_view(record: Record) -> dict[str, Any]:
    launch, problem = record.launch, None
    try:
        snapshot = record.row.snapshot()
    except SnapshotRefusedError as error:
        snapshot, problem = None, error.problem
    return {
        "job_id": launch.job_id,
        "repo": launch.repo,
        "work_item": launch.work_item,
        "launched_at": launch.launched_at,
        "comparison": str(Comparison.DAMAGED if problem else compare(record, snapshot)),
        "agent": _agent_view(record),
        "runner": _runner_view(record, snapshot),
        "problem": problem,
    }


def _agent_view(record: Record) -> dict[str, Any] | None:
    agent = record.agent
    if agent is None:
        return None
    span = parse_time(agent.ended_at) - parse_time(record.launch.launched_at)
    path = record.agent_artifact
    return {
        "opened": agent.opened,
        "seconds": round(span.total_seconds(), 3),
        "input_tokens": agent.input_tokens,
        "output_tokens": agent.output_tokens,
        "artifact": path and str(path),
    }


def _runner_view(record: Record, snapshot: Snapshot | None) -> dict[str, Any] | None:
    if snapshot is None:
        return None
    path = record.runner_artifact if snapshot.artifact else None
    return {
        "state": str(snapshot.state),
        "reason": sentence(snapshot),
        "runs": len(snapshot.runs),
        "seconds": _total(run.duration_seconds or 0.0 for run in snapshot.runs),
        "revision": snapshot.plan and snapshot.plan.revision,
        "artifact": path and str(path),
        "log": snapshot.runs[-1].log if snapshot.runs else None,
    }

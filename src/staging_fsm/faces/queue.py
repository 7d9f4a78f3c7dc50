"""The block `staging_runner` of `GET /queue`: what is stuck, why, whose fault, what comes next.

One function builds it from any row store, so that a host can merge it into an
endpoint of its own; the page, the metrics and `staging-fsm queue` show the same.
It reads what is unfinished and a bounded number of the newest jobs, and nothing
it does writes: what it costs does not grow with what has ended.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import attrs
from typing_extensions import TypedDict

from staging_fsm.core.artifact import evidence_of, fault
from staging_fsm.core.config import RunnerConfig, load_config
from staging_fsm.core.errors import ConfigInvalidError, SnapshotRefusedError
from staging_fsm.core.jobs import QUEUED, RUNNING, JobRow, JobRows
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import ENDED_BY_GATE, TERMINAL, State
from staging_fsm.drive.recovery import worker_is_alive
from staging_fsm.effects.state_dir import StateDir, state_dir
from staging_fsm.faces.output import last_line, output_tail
from staging_fsm.faces.views import (
    TEXT_CHARACTERS,
    Names,
    duration_words,
    moment,
    names_of,
    plain,
    sentence,
)

#: How many of the newest jobs are looked at for what ended.
RECENT_JOBS: Final = 500
#: How many attempts and rows are listed; the counts count all.
LISTED_MAX: Final = 200
OUTCOMES_LISTED: Final = 20
#: How late something may be before it counts as stuck and not merely as slow.
STUCK_SECONDS: Final = 60.0
_LINE_BYTES: Final = 2048
_DAY: Final = timedelta(days=1)


class RefusedRow(Names):
    """A row whose attempt cannot be read. Nobody touches it until a person has looked."""

    problem: str


class ActiveAttempt(Names):
    """An attempt that has not ended, or whose job has not."""

    state: str
    #: The run in hand or the last one that ended, of at most `runs_max`.
    run: int
    runs_max: int | None
    #: How long the run in hand has lasted, against its deadline.
    elapsed_seconds: float | None
    timeout_seconds: float | None
    seconds_in_state: float | None
    last_output: str | None
    next_run_at: str | None
    reason: str
    fault: str | None
    worker: str
    #: What happens next, in words.
    next: str
    #: Why nothing will happen by itself, or None.
    stuck: str | None


class EndedAttempt(Names):
    """An attempt that has ended."""

    state: str
    runs: int
    reason: str
    fault: str | None
    #: What its outcome rests on: `exit-code` alone, `junit` for a report, None without one.
    evidence: str | None
    ended_at: str
    #: From its first move to its last, waits included.
    duration_seconds: float | None


class WaitingAttempt(Names):
    """The attempt that has waited longest for something else than its suite."""

    state: str
    seconds: float


class StagingRunnerBlock(TypedDict):
    """What the staging runner is doing. Refused rows come first: they need a person."""

    as_of: str
    enabled: bool
    #: It is, and only records: the LLM agent is the producer.
    shadow: bool
    #: Repositories in scope; `*` stands for all.
    scope: list[str]
    #: What is wrong with the configuration; the runner declines every job until it is right.
    problems: list[str]
    refused: list[RefusedRow]
    counts: dict[str, int]
    attempts: list[ActiveAttempt]
    oldest_waiting: WaitingAttempt | None
    last_outcomes: list[EndedAttempt]
    failed_closed_last_day: int
    #: False where more jobs were made in the last day than are looked at: then there may be more.
    last_day_is_whole: bool


class QueueDocument(TypedDict):
    """What `GET /queue` answers. A host merges the block into an answer of its own."""

    staging_runner: StagingRunnerBlock


def staging_runner_block(
    rows: JobRows,
    variables: Mapping[str, str] | None = None,
    now: datetime | None = None,
    *,
    has_agent: bool = True,
) -> StagingRunnerBlock:
    """Return the block from the jobs in `rows`, as JSON values.

    `variables` say what is configured; they default to the process's environment.
    `has_agent` says whether there is an agent that takes what the runner declines.
    Raises whatever the row store raises when it cannot be read.
    """
    variables = os.environ if variables is None else variables
    now = datetime.now(UTC) if now is None else now
    config, problems = _config(variables)
    unfinished, newest = rows.unfinished(), rows.recent(RECENT_JOBS)
    known = {row.id for row in unfinished}
    read = _Reading()
    active = [
        active_attempt(row, snapshot, variables, now, has_agent=has_agent)
        for row, snapshot in read.attempts(unfinished)
    ]
    active.sort(key=lambda one: (one["stuck"] is None, -(one["seconds_in_state"] or 0.0)))
    rest = [row for row in newest if row.id not in known]
    ended = [_ended(row, snapshot) for row, snapshot in read.attempts(rest) if snapshot.is_terminal]
    ended.sort(key=lambda one: one["ended_at"], reverse=True)
    yesterday = [moment(one["ended_at"]) or now for one in ended]
    failed = [
        when
        for one, when in zip(ended, yesterday, strict=True)
        if one["state"] == State.FAILED_CLOSED and now - when < _DAY
    ]
    return {
        "as_of": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "enabled": config is not None and config.enabled,
        "shadow": config is not None and config.enabled and config.shadow,
        "scope": [] if config is None else sorted(map(plain, config.repos)),
        "problems": list(map(plain, problems)),
        "refused": read.refused[:LISTED_MAX],
        "counts": dict(sorted(Counter(one["state"] for one in active).items())),
        "attempts": active[:LISTED_MAX],
        "oldest_waiting": _oldest_waiting(active),
        "last_outcomes": ended[:OUTCOMES_LISTED],
        "failed_closed_last_day": len(failed),
        "last_day_is_whole": len(newest) < RECENT_JOBS
        or any(now - when >= _DAY for when in yesterday),
    }


@attrs.define
class _Reading:
    """Reads rows, and keeps what could not be read."""

    refused: list[RefusedRow] = attrs.field(factory=list)

    def attempts(self, rows: Iterable[JobRow]) -> Iterator[tuple[JobRow, Snapshot]]:
        """Yield the attempts in `rows` that can be read."""
        for row in rows:
            try:
                snapshot = row.snapshot()
            except SnapshotRefusedError as error:
                # One that can have no attempt is the agent's.
                if not row.is_without_attempt:
                    self.refused.append({**names_of(row), "problem": plain(error.problem)})
                continue
            if snapshot is not None:
                yield row, snapshot


def _config(variables: Mapping[str, str]) -> tuple[RunnerConfig | None, list[str]]:
    try:
        return load_config(variables), []
    except ConfigInvalidError as error:
        return None, list(error.problems)


def active_attempt(
    row: JobRow,
    snapshot: Snapshot,
    variables: Mapping[str, str],
    now: datetime,
    *,
    has_agent: bool = True,
) -> ActiveAttempt:
    """Return what there is to say of an attempt now; `has_agent` as for the block."""
    plan = snapshot.plan
    since = moment(snapshot.history[-1].time) if snapshot.history else None
    running = snapshot.state is State.RUNNING
    started = moment(snapshot.last_run.started_at) if running else None
    return {
        **names_of(row),
        "state": str(snapshot.state),
        "run": len(snapshot.runs),
        "runs_max": plan.budget.runs_max if plan else None,
        "elapsed_seconds": _seconds(started, now),
        "timeout_seconds": plan.suite.timeout_seconds if plan else None,
        "seconds_in_state": _seconds(since, now),
        "last_output": _last_output(snapshot, variables) if running else None,
        "next_run_at": snapshot.next_run_at and plain(snapshot.next_run_at),
        "reason": plain(sentence(snapshot)),
        "fault": fault(snapshot),
        "worker": plain(snapshot.worker),
        "next": _next(snapshot, started, now),
        "stuck": _stuck_without_agent(row, snapshot, has_agent=has_agent)
        or _stuck(row, snapshot, since, started, variables, now),
    }


def _seconds(since: datetime | None, now: datetime) -> float | None:
    return None if since is None else round(max(0.0, (now - since).total_seconds()), 1)


def _last_output(snapshot: Snapshot, variables: Mapping[str, str]) -> str | None:
    tail = output_tail(snapshot, snapshot.last_run.number, variables, _LINE_BYTES)
    return last_line(tail)[:TEXT_CHARACTERS] or None


def _stuck_without_agent(row: JobRow, snapshot: Snapshot, *, has_agent: bool) -> str | None:
    if has_agent or row.status != QUEUED or snapshot.state is not State.LLM_FALLBACK:
        return None
    return (
        "It was declined, and no LLM agent is configured here: set ORCH_AGENT_COMMAND where the"
        " workers are, or cancel it, in a fleet, and queue the work item again."
    )


def _stuck(
    row: JobRow,
    snapshot: Snapshot,
    since: datetime | None,
    started: datetime | None,
    variables: Mapping[str, str],
    now: datetime,
) -> str | None:
    """Return why nothing will happen by itself, for a person who can do something about it."""
    if snapshot.state is State.DEFERRED:
        return _stuck_between_runs(row, _seconds_past(moment(snapshot.next_run_at), now))
    if snapshot.is_terminal:
        # Its gate ends the job along with it, and nobody does so once more.
        is_open = snapshot.state in ENDED_BY_GATE and row.status in (QUEUED, RUNNING)
        words = "Its attempt has ended, and the job was left open or opened again: end it by hand."
        return words if is_open else None
    if worker_is_alive(snapshot.worker, StateDir(state_dir(variables))) is False:
        return f"Its worker is gone: run staging-fsm recover, or start a worker. {_BEGUN_BY_RUN}"
    if snapshot.state is State.RUNNING:
        suite = snapshot.bound_plan.suite
        late = _seconds_past(started, now) - suite.timeout_seconds - suite.kill_grace_seconds
        words = f"Past its deadline by {duration_words(late)}: its worker does not answer."
    else:
        late = _seconds_past(since, now)
        words = f"Its hand-over has not succeeded for {duration_words(late)}: look at the alerts."
    return words if late > STUCK_SECONDS else None


def _stuck_between_runs(row: JobRow, late: float) -> str | None:
    if row.status not in (QUEUED, RUNNING):
        return f"Its job is {plain(row.status)}, so nobody claims it any more: no run follows."
    problem = f"no worker has claimed it: is one running? {_BEGUN_BY_RUN}"
    if row.status == RUNNING:
        problem = (
            "claimed, but its run has not begun: if whoever claimed it is gone, start a worker,"
            " or queue the job again."
        )
    words = f"Due {duration_words(late)} ago, and {problem}"
    return words if late > STUCK_SECONDS else None


def _seconds_past(then: datetime | None, now: datetime) -> float:
    return 0.0 if then is None else (now - then).total_seconds()


#: A worker asks the switch and the scope, and may leave the attempt to an agent; `run` does not.
_BEGUN_BY_RUN: Final = "What staging-fsm run began goes on if you type the same once more."

_NEXT: Final = {
    State.PENDING: "A worker claims the job.",
    State.VERDICT_PASSED: "The gate reads the artifact.",
    State.VERDICT_FAILED: "The gate reads the artifact and sends it back to its developer.",
    State.TOOL_ERROR: "The budget is asked for another run.",
    State.EXHAUSTED: "The gate refuses, and a person is alerted.",
    State.LLM_FALLBACK: "The LLM agent produces the verdict.",
}


def _next(snapshot: Snapshot, started: datetime | None, now: datetime) -> str:
    if snapshot.state is State.DEFERRED:
        left = -_seconds_past(moment(snapshot.next_run_at), now)
        number = f"Run {len(snapshot.runs) + 1} of {snapshot.bound_plan.budget.runs_max}"
        return f"{number} in {duration_words(left)}." if left > 0 else f"{number} is due now."
    if snapshot.state is State.RUNNING:
        left = snapshot.bound_plan.suite.timeout_seconds - _seconds_past(started, now)
        if left <= 0:
            return "It is being stopped: its deadline has passed."
        return f"Judged when it ends; stopped in {duration_words(left)}."
    return _NEXT.get(snapshot.state, "The host ends the job.")


def _ended(row: JobRow, snapshot: Snapshot) -> EndedAttempt:
    first, last = snapshot.history[0].time, snapshot.history[-1].time
    began, ended = moment(first), moment(last)
    return {
        **names_of(row),
        "state": str(snapshot.state),
        "runs": len(snapshot.runs),
        "reason": plain(sentence(snapshot)),
        "fault": fault(snapshot),
        "evidence": evidence_of(snapshot),
        "ended_at": plain(last),
        "duration_seconds": _seconds(began, ended) if ended else None,
    }


def _oldest_waiting(active: Iterable[ActiveAttempt]) -> WaitingAttempt | None:
    working = {str(state) for state in (State.RUNNING, *TERMINAL)}
    waiting = [one for one in active if one["state"] not in working]
    oldest = max(waiting, key=lambda one: one["seconds_in_state"] or 0.0, default=None)
    if oldest is None:
        return None
    return {
        "job_id": oldest["job_id"],
        "repo": oldest["repo"],
        "work_item": oldest["work_item"],
        "state": oldest["state"],
        "seconds": oldest["seconds_in_state"] or 0.0,
    }

"""The only speaker to OpenTelemetry: one trace for each attempt that ended, a span for each run.

Names and values are the semantic conventions for CI/CD
(https://opentelemetry.io/docs/specs/semconv/cicd/). An attempt is a pipeline run,
a run of the suite its task. The trace is made when the attempt has ended, from
its history alone, with the times that stand there: whatever crashed or changed
hands in between, it is whole. Where it goes is the business of the process: this
speaks to the API only, and without the package, or without an SDK that somebody
set up, nothing is done.
"""

import importlib.util
from collections.abc import Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from staging_fsm.core.jobs import STAGE, JobRow
from staging_fsm.core.outcome import REASONS, Reason, Verdict
from staging_fsm.core.snapshot import Run, Snapshot
from staging_fsm.core.spec import State
from staging_fsm.core.times import parse_time
from staging_fsm.effects.journal import log_error

TASK: Final = "staging suite"
#: `cicd.pipeline.result` of an attempt that ended so.
RESULTS: Final[Mapping[State, str]] = MappingProxyType(
    {
        State.ADVANCED: "success",
        State.ROLLED_BACK: "failure",
        State.FAILED_CLOSED: "error",
        State.LLM_FALLBACK: "skip",
        State.CANCELLED: "cancellation",
    }
)
_TASK_RESULTS: Final = {
    Verdict.PASSED: "success",
    Verdict.FAILED: "failure",
    Verdict.NOT_EXECUTED: "error",
}
_NANOSECONDS: Final = 1_000_000_000
Watcher = Callable[[JobRow, Snapshot], None]


def traced(watch: Watcher) -> Watcher:
    """Return `watch` as one that also traces each attempt that has ended. A trace never raises."""

    def watch_and_trace(row: JobRow, snapshot: Snapshot) -> None:
        watch(row, snapshot)
        if snapshot.is_terminal and importlib.util.find_spec("opentelemetry") is not None:
            try:
                trace_attempt(row, snapshot)
            except Exception as error:  # noqa: BLE001  # what is told of an attempt must not hurt it
                log_error("an attempt was not traced", job=str(row.id), error=str(error))

    return watch_and_trace


def trace_attempt(row: JobRow, snapshot: Snapshot) -> None:
    """Make the trace of an attempt that has ended. Raises what the exporter raises."""
    from opentelemetry import trace  # noqa: PLC0415  # optional: the extra "telemetry"

    tracer = trace.get_tracer("staging_fsm")
    # The first run is made ready a moment before the move that claims its job is stored.
    began = min([snapshot.history[0].time, *(run.started_at for run in snapshot.runs)])
    span = tracer.start_span(
        f"RUN {STAGE}",
        kind=trace.SpanKind.SERVER,
        context=trace.set_span_in_context(trace.INVALID_SPAN),
        start_time=_nanoseconds(began),
        attributes=_attempt_facts(row, snapshot),
    )
    for move in snapshot.history:
        facts = {"staging_fsm.transition.id": move.id, "staging_fsm.reason": move.reason}
        span.add_event(str(move.row.event), facts, timestamp=_nanoseconds(move.time))
    if snapshot.state is State.FAILED_CLOSED:
        span.set_status(trace.StatusCode.ERROR, REASONS[snapshot.judged_reason].sentence)
    for run in snapshot.runs:
        _trace_run(tracer, trace, span, snapshot, run)
    span.end(_nanoseconds(snapshot.history[-1].time))


def _trace_run(tracer: Any, trace: Any, parent: Any, snapshot: Snapshot, run: Run) -> None:
    span = tracer.start_span(
        TASK,
        context=trace.set_span_in_context(parent),
        start_time=_nanoseconds(run.started_at),
        attributes=_run_facts(snapshot, run),
    )
    if run.reason is not None and REASONS[run.reason].verdict is Verdict.NOT_EXECUTED:
        span.set_status(trace.StatusCode.ERROR, REASONS[run.reason].sentence)
    # A run that was cancelled has no end of its own.
    span.end(_nanoseconds(run.ended_at or snapshot.history[-1].time))


def _attempt_facts(row: JobRow, snapshot: Snapshot) -> dict[str, str | int]:
    facts: dict[str, str | int] = {
        "cicd.pipeline.name": STAGE,
        "cicd.pipeline.run.id": snapshot.attempt_id,
        "cicd.pipeline.action.name": "RUN",
        "cicd.pipeline.result": RESULTS[snapshot.state],
        "cicd.worker.id": snapshot.worker,
        "vcs.repository.name": row.repo,
        "staging_fsm.job": str(row.id),
        "staging_fsm.work_item": row.work_item,
        "staging_fsm.state": str(snapshot.state),
        "staging_fsm.runs": len(snapshot.runs),
    }
    if snapshot.plan is not None:
        facts["vcs.ref.head.revision"] = snapshot.plan.revision
    if snapshot.state is State.FAILED_CLOSED:
        facts["error.type"] = str(snapshot.judged_reason)
    return facts


def _run_facts(snapshot: Snapshot, run: Run) -> dict[str, str | int]:
    facts: dict[str, str | int] = {
        "cicd.pipeline.task.name": TASK,
        "cicd.pipeline.task.type": "test",
        "cicd.pipeline.task.run.id": f"{snapshot.attempt_id}.{run.number}",
        "cicd.pipeline.task.run.result": _task_result(run.reason),
    }
    if run.exit_code is not None:
        facts["process.exit.code"] = run.exit_code
    if run.reason is not None:
        facts["staging_fsm.reason"] = str(run.reason)
        if REASONS[run.reason].verdict is Verdict.NOT_EXECUTED:
            facts["error.type"] = str(run.reason)
    return facts


def _task_result(reason: Reason | None) -> str:
    if reason is None:
        return RESULTS[State.CANCELLED]
    if reason in (Reason.DEADLINE_EXCEEDED, Reason.IDLE_TIMEOUT):
        return "timeout"
    return _TASK_RESULTS[REASONS[reason].verdict]


def _nanoseconds(text: str) -> int:
    moment: datetime = parse_time(text)
    return int(moment.timestamp()) * _NANOSECONDS + moment.microsecond * 1000

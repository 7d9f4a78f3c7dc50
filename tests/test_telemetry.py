"""Traces of real attempts, in a real SDK's in-memory exporter."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import (
    cicd_attributes,
    error_attributes,
    process_attributes,
    vcs_attributes,
)

from served import ME, NOW, attempt
from staging_fsm.core.config import variable_name
from staging_fsm.core.jobs import JobRow
from staging_fsm.core.machine import step
from staging_fsm.core.spec import TERMINAL, Event, State
from staging_fsm.core.suites import SuiteEntry
from staging_fsm.core.times import format_time, parse_time
from staging_fsm.core.trail import walk
from staging_fsm.effects.telemetry import RESULTS, traced
from staging_fsm.faces.session import (
    AttemptDriver,
    one_suite,
    open_session,
    staging_job,
)

Carry = Callable[..., Sequence[ReadableSpan]]


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """Return where the process's spans end up."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # Once for a process, and never shut down: of that each later attempt would be told.
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def carry(exporter: InMemorySpanExporter, tmp_path: Path, repository: Path) -> Carry:
    """Return what runs a suite to the end of its attempt and returns the spans of it."""

    def run(*command: str, **entry: float) -> Sequence[ReadableSpan]:
        exporter.clear()
        settings = {"state_dir": tmp_path / "state", "enabled": "1", "repos": "*"}
        settings |= {"infra_retries": "1", "retry_backoff_seconds": "0.01"}
        variables = {variable_name(name): str(value) for name, value in settings.items()}
        session = open_session(None, {**os.environ, **variables})
        job_id = staging_job(session, session.store.register(repository), "WI-1")
        suites = one_suite(SuiteEntry(command=command, tool_exit_codes=(75,), **entry))  # type: ignore[arg-type]  # as given
        AttemptDriver(session, session.staging(suites=suites), job_id).drive()
        session.store.engine.dispose()
        return exporter.get_finished_spans()

    return run


def facts(span: ReadableSpan) -> Mapping[str, object]:
    """Return the attributes of a span."""
    assert span.attributes is not None
    return span.attributes


def test_attempt_is_a_pipeline_run_and_its_run_a_task(carry: Carry) -> None:
    """A passed attempt is one trace: the pipeline run, the suite within it, and its moves."""
    task, pipeline = carry("true")

    assert (pipeline.name, task.name) == ("RUN deploy-staging", "staging suite")
    assert pipeline.parent is None
    assert task.parent == pipeline.context
    assert facts(pipeline)[cicd_attributes.CICD_PIPELINE_RESULT] == "success"
    assert facts(task)[cicd_attributes.CICD_PIPELINE_TASK_RUN_RESULT] == "success"
    assert facts(task)["process.exit.code"] == 0
    assert [
        facts_["staging_fsm.transition.id"] for facts_ in map(event_facts, pipeline.events)
    ] == [
        "T01",
        "T03",
        "T11",
    ]
    assert all(
        a is not None and b is not None and a <= b
        for a, b in ((pipeline.start_time, task.start_time), (task.end_time, pipeline.end_time))
    )


def event_facts(event: object) -> Mapping[str, object]:
    """Return the attributes of an event."""
    found: Mapping[str, object] = getattr(event, "attributes", {})
    return found


def test_tool_error_is_an_error_and_each_run_a_span(carry: Carry) -> None:
    """An attempt that failed closed is an error with its reason, over a span for each run."""
    *tasks, pipeline = carry("sh", "-c", "exit 75")

    assert facts(pipeline)[cicd_attributes.CICD_PIPELINE_RESULT] == "error"
    assert facts(pipeline)["error.type"] == "tool_exit_code"
    assert pipeline.status.status_code is trace.StatusCode.ERROR
    assert [facts(task)["process.exit.code"] for task in tasks] == [75, 75]
    assert [task.parent for task in tasks] == [pipeline.context] * 2


def test_failure_of_the_code_is_no_error_of_the_pipeline(carry: Carry) -> None:
    """A suite that ran and failed is a failure, and the trace is not marked as an error."""
    task, pipeline = carry("false")

    assert facts(task)[cicd_attributes.CICD_PIPELINE_TASK_RUN_RESULT] == "failure"
    assert facts(pipeline)[cicd_attributes.CICD_PIPELINE_RESULT] == "failure"
    assert pipeline.status.status_code is trace.StatusCode.UNSET


def test_deadline_is_a_timeout(carry: Carry) -> None:
    """A suite that was stopped at its deadline is a timeout in the words of the conventions."""
    *tasks, _ = carry("sleep", "60", timeout_seconds=0.2)

    assert {facts(task)[cicd_attributes.CICD_PIPELINE_TASK_RUN_RESULT] for task in tasks} == {
        "timeout"
    }


def test_silence_is_a_timeout(carry: Carry) -> None:
    """A suite that was stopped for its silence is a timeout too."""
    *tasks, _ = carry("sleep", "60", idle_timeout_seconds=0.2)

    assert {facts(task)[cicd_attributes.CICD_PIPELINE_TASK_RUN_RESULT] for task in tasks} == {
        "timeout"
    }


def test_trace_is_of_its_own_and_of_its_time(exporter: InMemorySpanExporter) -> None:
    """A trace is no part of what the host traces just then, and each move is at its own moment."""
    exporter.clear()
    row = JobRow(1, "shop", "WI-1", "deploy-staging", "cancelled", None, None)
    cancelling = step(State.RUNNING, Event.CANCEL_REQUESTED)
    cancelled = walk(attempt(State.RUNNING), cancelling, format_time(NOW), "a person", ME, {})
    with trace.get_tracer("the host").start_as_current_span("a request"):
        traced(lambda _row, _snapshot: None)(row, cancelled)
    *_, pipeline = (span for span in exporter.get_finished_spans() if span.name != "a request")

    assert pipeline.parent is None
    assert [event.timestamp for event in pipeline.events] == [
        round(parse_time(move.time).timestamp() * 10**6) * 1000 for move in cancelled.history
    ]


def test_run_that_was_cancelled_is_a_task_that_ends_with_its_attempt(
    exporter: InMemorySpanExporter,
) -> None:
    """The run in hand when a person cancels the attempt has its span too: cancelled, no error."""
    exporter.clear()
    row = JobRow(1, "shop", "WI-1", "deploy-staging", "cancelled", None, None)
    cancelling = step(State.RUNNING, Event.CANCEL_REQUESTED)
    cancelled = walk(attempt(State.RUNNING), cancelling, format_time(NOW), "a person", ME, {})
    traced(lambda _row, _snapshot: None)(row, cancelled)
    task, pipeline = exporter.get_finished_spans()

    assert facts(task)[cicd_attributes.CICD_PIPELINE_TASK_RUN_RESULT] == "cancellation"
    assert facts(pipeline)[cicd_attributes.CICD_PIPELINE_RESULT] == "cancellation"
    assert task.end_time == pipeline.end_time
    assert task.status.status_code is trace.StatusCode.UNSET
    assert not facts(task).keys() & {"staging_fsm.reason", "error.type"}


def test_words_are_those_of_the_conventions(carry: Carry) -> None:
    """Every attribute is one of the semantic conventions, or begins with our own name."""
    known = {
        value
        for module in (cicd_attributes, error_attributes, process_attributes, vcs_attributes)
        for value in vars(module).values()
        if isinstance(value, str)
    }
    results = {member.value for member in cicd_attributes.CicdPipelineResultValues}
    used = {name for span in carry("sh", "-c", "exit 75") for name in facts(span)}

    assert [
        name for name in used if not name.startswith("staging_fsm.") and name not in known
    ] == []
    assert RESULTS.keys() == TERMINAL
    assert set(RESULTS.values()) <= results


def test_a_trace_that_cannot_be_made_hurts_nothing(
    exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """An attempt whose times nobody can read is watched all the same, and the loss is logged."""
    exporter.clear()
    row = JobRow(1, "shop", "WI-1", "deploy-staging", "done", None, None)
    ended = attempt(State.ADVANCED)
    first = attrs.evolve(ended.history[0], time="some day")
    broken = attrs.evolve(ended, history=(first, *ended.history[1:]))
    watched = []
    traced(lambda _row, snapshot: watched.append(snapshot))(row, broken)

    assert watched == [broken]
    assert "an attempt was not traced" in caplog.text
    assert exporter.get_finished_spans() == ()

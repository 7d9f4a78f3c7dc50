"""The metrics, scraped over HTTP and read by Prometheus' own parser."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from prometheus_client.parser import text_string_to_metric_families

from served import WAYS, Shelf, ask, attempt, serving
from sources import ROOT
from staging_fsm.core.config import variable_name
from staging_fsm.core.outcome import REASONS, Reason, Verdict
from staging_fsm.core.snapshot import Snapshot, dump_snapshot
from staging_fsm.core.spec import TERMINAL, State
from staging_fsm.core.times import format_time
from staging_fsm.faces import queue
from staging_fsm.faces.web import create_app
from staging_fsm.faces.web import metrics as web_metrics
from staging_fsm.faces.web.metrics import NO_REASON

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(port: int) -> Samples:
    """Return every sample but the times at which series were made."""
    answer = ask(port, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """Return one sample."""
    return samples[f"staging_fsm_{name}", tuple(sorted(labels.items()))]


def alive(state: State, **changes: Any) -> Snapshot:
    """Return an attempt whose moves and run ended a second from now: after the server's start."""
    later = datetime.now(UTC) + timedelta(seconds=1)
    found = attempt(state, ago=0, now=later)
    runs = tuple(
        attrs.evolve(run, ended_at=format_time(later), duration_seconds=42.0) for run in found.runs
    )
    return attrs.evolve(found, runs=runs, **changes)


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    """Return a database without jobs."""
    shelf = Shelf.at(tmp_path)
    yield shelf
    shelf.store.engine.dispose()


def test_each_move_is_counted_once(shelf: Shelf) -> None:
    """An attempt is counted as it goes, however often it is looked at, and once when it ends."""
    with serving(create_app(shelf.source())) as port:
        job = shelf.put(alive(State.DEFERRED))
        deferred = [scrape(port) for _ in range(2)][-1]
        shelf.set(job, dump_snapshot(alive(State.FAILED_CLOSED)), "done")
        ended = [scrape(port) for _ in range(2)][-1]
    reason = str(Reason.TOOL_EXIT_CODE)

    assert value(deferred, "deferrals_total") == 1
    assert value(deferred, "active_attempts", state="DEFERRED") == 1
    assert value(deferred, "attempts_total", outcome="FAILED_CLOSED", reason=reason) == 0
    assert value(ended, "attempts_total", outcome="FAILED_CLOSED", reason=reason) == 1
    assert value(ended, "runs_total", reason=reason) == 1
    assert value(ended, "active_attempts", state="DEFERRED") == 0


@pytest.mark.parametrize("state", [state for state in WAYS if state in TERMINAL])
def test_each_end_is_counted_by_outcome_and_reason(shelf: Shelf, state: State) -> None:
    """An attempt that ended between two looks is counted by how, why, and how long its run was."""
    with serving(create_app(shelf.source())) as port:
        before = scrape(port)
        end = alive(state)
        shelf.put(end)
        after = scrape(port)
    reason = end.runs[-1].reason if end.runs else None
    labels = {"outcome": str(state), "reason": str(reason or NO_REASON)}

    assert value(after, "attempts_total", **labels) == 1 + value(before, "attempts_total", **labels)
    assert value(after, "attempt_duration_seconds_count", outcome=str(state)) == 1
    if reason is not None:
        verdict = str(REASONS[reason].verdict)
        assert value(after, "run_duration_seconds_sum", verdict=verdict) == 42.0


def test_what_was_over_before_is_not_counted(shelf: Shelf) -> None:
    """Counters begin at nothing: what ended before the server started does not look like news."""
    shelf.put(attempt(State.ADVANCED, ago=60, now=datetime.now(UTC)))
    with serving(create_app(shelf.source())) as port:
        samples = scrape(port)

    assert {name for name, _ in samples if "attempts_total" in name}
    assert sum(count for (name, _), count in samples.items() if name.endswith("_total")) == 0


def test_end_of_an_old_job_is_counted(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that was unfinished is counted to its end, however many newer ones there are."""
    monkeypatch.setattr(web_metrics, "RECENT_JOBS", 2)
    with serving(create_app(shelf.source())) as port:
        job = shelf.put(alive(State.RUNNING))
        for _ in range(3):
            shelf.put(None)
        scrape(port)
        shelf.set(job, dump_snapshot(alive(State.ADVANCED)), "done")
        samples = scrape(port)

    assert value(samples, "attempts_total", outcome="ADVANCED", reason="passed") == 1


def test_gauges_say_what_a_person_has_to_do(shelf: Shelf) -> None:
    """Stuck attempts, refused rows and the age of the queue are gauges to alert on."""
    now = datetime.now(UTC)
    late = queue.STUCK_SECONDS + 40
    shelf.put(attempt(State.DEFERRED, ago=late, due=-late, now=now))
    shelf.put("17")
    with serving(create_app(shelf.source())) as port:
        samples = scrape(port)

    assert value(samples, "stuck_attempts") == 1
    assert value(samples, "refused_rows") == 1
    assert late <= value(samples, "queue_age_seconds") < late + 60
    assert value(samples, "enabled") == 0


@pytest.mark.parametrize("shadow", [1, 0])
def test_shadow_mode_is_a_gauge(shelf: Shelf, shadow: int) -> None:
    """That the runner only records stands beside that it is on: whoever looks at both knows who."""
    source = shelf.source()
    said = {variable_name("enabled"): "1", variable_name("shadow"): str(shadow)}
    source.variables = {**source.variables, **said}
    with serving(create_app(source)) as port:
        samples = scrape(port)

    assert (value(samples, "enabled"), value(samples, "shadow")) == (1, shadow)


def test_age_of_an_empty_queue_is_nothing(shelf: Shelf) -> None:
    """Once nobody waits any more the age of the queue says so."""
    with serving(create_app(shelf.source())) as port:
        job = shelf.put(attempt(State.DEFERRED, ago=500, now=datetime.now(UTC)))
        waiting = scrape(port)
        shelf.set(job, dump_snapshot(alive(State.ADVANCED)), "done")
        over = scrape(port)

    assert value(waiting, "queue_age_seconds") >= 500
    assert value(over, "queue_age_seconds") == 0


def test_run_that_began_before_the_server_is_counted(shelf: Shelf) -> None:
    """A run counts when it ends, however long before this server it was started."""
    end = alive(State.ADVANCED)
    runs = tuple(attrs.evolve(run, started_at="2020-01-01T00:00:00.000000Z") for run in end.runs)
    with serving(create_app(shelf.source())) as port:
        shelf.put(attrs.evolve(end, runs=runs))
        samples = scrape(port)

    assert value(samples, "runs_total", reason="passed") == 1


def test_row_that_was_unreadable_for_once_is_counted_once(shelf: Shelf) -> None:
    """What was counted of an attempt is not counted anew after its row could not be read."""
    with serving(create_app(shelf.source())) as port:
        job = shelf.put(alive(State.DEFERRED))
        scrape(port)
        shelf.set(job, "17")
        damaged = scrape(port)
        shelf.set(job, dump_snapshot(alive(State.DEFERRED)))
        mended = scrape(port)

    assert value(damaged, "refused_rows") == 1
    assert value(mended, "deferrals_total") == 1


def test_attempt_that_was_started_afresh_is_counted(shelf: Shelf) -> None:
    """Where a person removed a damaged attempt, the one that follows on the job is news."""
    with serving(create_app(shelf.source())) as port:
        job = shelf.put(alive(State.FAILED_CLOSED))
        scrape(port)
        for between in ("17", None):
            shelf.set(job, between)
            scrape(port)
        shelf.set(job, dump_snapshot(alive(State.ADVANCED, attempt_id="afresh")), "done")
        samples = scrape(port)

    assert value(samples, "attempts_total", outcome="ADVANCED", reason="passed") == 1
    assert value(samples, "runs_total", reason="passed") == 1


def test_jobs_without_an_attempt_are_not_looked_for_again(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a scrape costs does not grow with the jobs of other stages that there have been."""
    monkeypatch.setattr(web_metrics, "RECENT_JOBS", 1)
    source, loads = shelf.source(), list[object]()
    monkeypatch.setattr(source.rows, "load", loads.append)
    with serving(create_app(source)) as port:
        for _ in range(3):
            shelf.put(None)
            scrape(port)

    assert loads == []


def test_job_that_was_deleted_ends_no_scrape(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unfinished attempt whose job is gone is forgotten, and the others are told of."""
    monkeypatch.setattr(web_metrics, "RECENT_JOBS", 1)
    with serving(create_app(shelf.source())) as port:
        job = shelf.put(alive(State.DEFERRED))
        scrape(port)
        with shelf.store.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM jobs WHERE id = ?", (job,))
        samples = scrape(port)

    assert value(samples, "active_attempts", state="DEFERRED") == 0


def test_scrape_without_a_table_is_answered(shelf: Shelf) -> None:
    """Where the table goes between two looks a scrape is a 503 with a sentence, as a page is."""
    source = attrs.evolve(shelf.source(), pulse_seconds=3600.0)
    with serving(create_app(source)) as port:
        scrape(port)
        with shelf.store.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE jobs RENAME TO lost")
        answer = ask(port, "/metrics")

    assert answer.status == 503
    assert "the jobs cannot be read" in answer.text


MANY: Final = 60


def test_series_do_not_grow_with_repositories(shelf: Shelf) -> None:
    """Many repositories, work items and hostile names make not one more series."""
    with serving(create_app(shelf.source())) as port:
        shelf.put(alive(State.ADVANCED))
        few = scrape(port)
        for number in range(MANY):
            shelf.put(alive(State.ADVANCED), repo=f'r"\n{number}', work_item=f"w{number}")
        many = scrape(port)

    assert many.keys() == few.keys()
    assert value(many, "attempts_total", outcome="ADVANCED", reason="passed") == 1 + MANY


def test_every_reason_and_verdict_stands_at_nothing(shelf: Shelf) -> None:
    """A series is there before its first event, so that a rate sees the first one."""
    with serving(create_app(shelf.source())) as port:
        samples = scrape(port)

    assert [value(samples, "runs_total", reason=str(reason)) for reason in Reason] == [0] * len(
        Reason
    )
    assert [
        value(samples, "run_duration_seconds_count", verdict=str(verdict)) for verdict in Verdict
    ] == [0] * len(Verdict)


def test_every_metric_is_explained(shelf: Shelf) -> None:
    """The operator's page explains every metric with its labels, and no other."""
    with serving(create_app(shelf.source())) as port:
        text = ask(port, "/metrics").text
    # A time of its own making stands beside each counter and histogram; it is nobody's business.
    found = {
        re.sub(r"_(bucket|count|sum)$", "", sample.name): {*sample.labels} - {"le"}
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    page = (ROOT / "docs" / "operating.md").read_text()
    rows = re.findall(r"^\| `(staging_fsm_\w+)` \| (.*?) \|", page, re.MULTILINE)

    assert {name: set(re.findall(r"\w+", labels)) for name, labels in rows} == found

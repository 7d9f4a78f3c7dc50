"""The engine and time: what is early, what is claimed again, and how a deferred job is queued."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import attrs
import pytest

from staging_fsm.core.jobs import QUEUED, JobRow
from staging_fsm.core.outcome import REASONS, Reason, Retry, RunFacts
from staging_fsm.core.plan import Budget, Plan, SuitePlan
from staging_fsm.core.ports import AlertKind, RunCondition, RunReport
from staging_fsm.core.snapshot import Move, Run, Snapshot, fresh_snapshot
from staging_fsm.core.spec import TRANSITIONS, Event, State
from staging_fsm.core.times import format_time
from staging_fsm.drive.engine import TAIL_BYTES, Engine
from staging_fsm.drive.rulings import Ruling

NOW: Final = datetime(2030, 1, 1, tzinfo=UTC)
TICK: Final = timedelta(microseconds=1)
#: By so much a host may round a due time up: it keeps whole seconds, or parts of them.
COARSEST: Final = timedelta(seconds=1)
LONGEST: Final = timedelta(seconds=900)
DEFERRING: Final = next(row for row in TRANSITIONS if row.event is Event.BUDGET_LEFT)


class StoppedClock:
    """A clock at NOW."""

    def now(self) -> datetime:
        """Return NOW."""
        return NOW


@attrs.define
class Requeues:
    """Job rows that note how a job is queued again."""

    asked: list[tuple[datetime, int, bool]] = attrs.field(factory=list)

    def requeue(self, _id: Any, not_before: datetime, snapshot: Snapshot, *, once: bool) -> None:
        """Note what was asked."""
        self.asked.append((not_before, snapshot.version, once))


def engine(rows: Any = None) -> Engine:
    """Return an engine at NOW with nothing that these tests do not use."""
    unused: Any = None
    clock: Any = StoppedClock()
    return Engine(rows, unused, unused, unused, clock, unused, unused, "a worker")


def deferred(due: datetime) -> Snapshot:
    """Return an attempt that waits until `due` for its second run."""
    move = Move(DEFERRING.id, format_time(NOW), "why", "a worker", "5e1f")
    return attrs.evolve(
        fresh_snapshot("1-a", "a worker"),
        version=3,
        state=State.DEFERRED,
        plan=Plan(SuitePlan(("true",)), Budget(backoff_max_seconds=LONGEST.seconds), "abc123"),
        runs=(Run(1, format_time(NOW)),),
        history=(move,),
        next_run_at=format_time(due),
    )


def row(not_before: datetime | None, status: str = "running") -> JobRow:
    """Return a job's row."""
    return JobRow(1, "shop", "WI-1", "deploy-staging", status, not_before, None)


@pytest.mark.parametrize(
    ("due", "early"),
    [
        (NOW - TICK, False),
        (NOW, False),
        (NOW + TICK, True),
        (NOW + LONGEST, True),
        (NOW + LONGEST + TICK, False),
    ],
    ids=["past", "now", "next", "as far as a wait lasts", "farther"],
)
def test_attempt_is_early_until_it_is_due(due: datetime, *, early: bool) -> None:
    """A wait ends at its due time; one that is longer than any can be is none."""
    assert engine().is_early(deferred(due)) is early


@pytest.mark.parametrize(
    ("not_before", "once"),
    [(None, True), (NOW, True), (NOW + TICK, False), (NOW + 2 * TICK, False)],
    ids=["no due time", "earlier", "as due", "later"],
)
def test_only_who_saw_the_job_due_then_takes_its_claim_back(
    not_before: datetime | None, *, once: bool
) -> None:
    """A job is queued again once, unless the row that was loaded says it is queued for then."""
    rows, due = Requeues(), NOW + TICK
    engine(rows).drive(row(not_before), deferred(due))

    assert rows.asked == [(due, 3, once)]


def test_job_is_queued_for_no_later_than_the_longest_wait() -> None:
    """A due time beyond the longest wait, after the clock was set back, is brought forward."""
    rows = Requeues()
    engine(rows).drive(row(None), deferred(NOW + 2 * LONGEST))

    assert rows.asked == [(NOW + LONGEST, 3, True)]


def test_longest_wait_may_be_less_than_a_second() -> None:
    """A wait is as long as it is configured to be, to the microsecond."""
    plan = Plan(SuitePlan(("true",)), Budget(backoff_max_seconds=0.5), "abc123")
    waiting = attrs.evolve(deferred(NOW + timedelta(seconds=0.4)), plan=plan)

    assert engine().is_early(waiting)
    assert engine().latest_due(waiting) == NOW + timedelta(seconds=0.5)


def broken(*reasons: Reason, budget: Budget) -> Snapshot:
    """Return an attempt whose runs ended for `reasons`, and whose budget is to be spent."""
    runs = (
        Run(number, format_time(NOW), format_time(NOW), reason)
        for number, reason in enumerate(reasons, 1)
    )
    plan = Plan(SuitePlan(("true",)), budget, "abc123")
    return attrs.evolve(deferred(NOW), state=State.TOOL_ERROR, plan=plan, runs=tuple(runs))


@pytest.mark.parametrize("earlier", [0, 1, 2])
@pytest.mark.parametrize(
    "reason", [reason for reason, facts in REASONS.items() if facts.retry is not Retry.NEVER]
)
def test_deferral_lasts_as_long_as_the_budget_says(reason: Reason, earlier: int) -> None:
    """Whatever a run was lost for, the next one waits its backoff, and is told by its number."""
    budget = Budget(infra_retries=4, backoff_seconds=20, backoff_max_seconds=3600)
    lost = broken(*[Reason.TOOL_EXIT_CODE] * earlier, reason, budget=budget)
    step = engine()._spend_budget(row(None), lost)
    seconds = budget.delay_seconds(lost.attempt_id, 1 + earlier)

    assert step.event is Event.BUDGET_LEFT
    assert step.changes == {"next_run_at": format_time(NOW + timedelta(seconds=seconds))}
    assert step.reason == f"run {2 + earlier} of at most 5 in {seconds:.1f} s"


@pytest.mark.parametrize(
    ("not_before", "due"),
    [
        (None, NOW),
        (NOW - TICK, NOW),
        (NOW, NOW + TICK),
        (NOW + TICK, NOW + 2 * TICK),
        (NOW + COARSEST, NOW + COARSEST + TICK),
        (NOW + COARSEST + TICK, NOW),
    ],
)
def test_each_deferral_is_due_later_than_the_row_says(
    not_before: datetime | None, due: datetime
) -> None:
    """By its due time a job shows that it was queued again, though the host rounds it up.

    A row that is due later yet was claimed too early: its deferral goes by the clock.
    """
    lost = broken(Reason.TOOL_EXIT_CODE, budget=Budget(backoff_seconds=0))
    begun = attrs.evolve(lost.runs[0], due_at=format_time(NOW - LONGEST))
    for attempt in (lost, attrs.evolve(lost, runs=(begun,))):
        step = engine()._spend_budget(row(not_before), attempt)

        assert step.changes == {"next_run_at": format_time(due)}


@pytest.mark.parametrize(
    ("last", "due"),
    [
        (NOW - COARSEST, NOW),
        (NOW - COARSEST + TICK, NOW + TICK),
        (NOW, NOW + COARSEST),
        (NOW + COARSEST, NOW + 2 * COARSEST),
        (NOW + COARSEST + TICK, NOW),
    ],
)
@pytest.mark.parametrize("not_before", [None, NOW - LONGEST])
def test_each_deferral_is_due_later_than_the_one_before_it(
    not_before: datetime | None, last: datetime, due: datetime
) -> None:
    """A row that was read before it was queued for this run does not show for when that was.

    The host may have rounded it up: so there is a second between two deferrals.
    """
    lost = broken(Reason.TOOL_EXIT_CODE, budget=Budget(backoff_seconds=0))
    begun = attrs.evolve(lost.runs[0], due_at=format_time(last))
    step = engine()._spend_budget(row(not_before), attrs.evolve(lost, runs=(begun,)))

    assert step.changes == {"next_run_at": format_time(due)}


@pytest.mark.parametrize("status", [QUEUED, "running", "a", "z"])
@pytest.mark.parametrize(
    ("not_before", "made"),
    [(None, False), (NOW - TICK, False), (NOW, True), (NOW + TICK, True)],
    ids=["no due time", "earlier", "as due", "later"],
)
def test_deferred_job_is_claimed_again_once_it_was_queued_for_its_time(
    not_before: datetime | None, status: str, *, made: bool
) -> None:
    """A deferred job that is not queued has been claimed if its row kept the due time."""
    claimed = engine().is_claimed_again(row(not_before, status), deferred(NOW))

    assert claimed is (made and status != QUEUED)


def test_what_is_not_known_of_a_run_is_nothing() -> None:
    """Of a report that says no more than its facts nothing else is known: no time, no output."""
    facts = RunFacts()

    assert attrs.astuple(RunReport(facts), recurse=False) == (facts, *[None] * 6)


@pytest.mark.parametrize("kind", [AlertKind, RunCondition, Ruling])
def test_words_for_a_person_are_the_names(kind: type[AlertKind | RunCondition | Ruling]) -> None:
    """Alerts, conditions of runs and answers are told by the words that programs know them by."""
    assert [str(member) for member in kind] == [member.name.lower() for member in kind]


def test_alert_of_no_attempt_names_none() -> None:
    """An alert that is of no attempt in particular says so, and is sent as it is."""
    sent: list[tuple[object, ...]] = []

    class Sent:
        """Alerts that are kept."""

        @staticmethod
        def send(*alert: object) -> None:
            """Keep an alert."""
            sent.append(alert)

    unused: Any = None
    alerts: Any = Sent()
    told = Engine(unused, unused, unused, alerts, unused, unused, unused, "a worker")
    told.alert(AlertKind.INTERNAL_ERROR, 7, "why")

    assert sent == [(AlertKind.INTERNAL_ERROR, 7, "why", None)]


def test_artifact_shows_the_end_of_the_output() -> None:
    """Of a suite's output the artifact shows the last 32 KiB."""
    assert TAIL_BYTES == 32 * 1024

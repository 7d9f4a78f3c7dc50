"""The snapshot: what is stored comes back as it was, or is refused by name; nothing is guessed."""

import json
import re
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from attempts import attempts, linked
from conftest import Golden
from staging_fsm.core.errors import SnapshotRefusedError, StaleSnapshotError
from staging_fsm.core.evidence import Counts, EvidenceState
from staging_fsm.core.jobs import BrokenMetadata, JobRow
from staging_fsm.core.outcome import REASONS, Reason
from staging_fsm.core.plan import Budget, Plan, Preset, SuitePlan
from staging_fsm.core.snapshot import (
    FORMAT,
    Artifact,
    Move,
    Run,
    Snapshot,
    dump_snapshot,
    fresh_snapshot,
    load_snapshot,
    replay,
)
from staging_fsm.core.spec import INITIAL, ROW_BY_ID, TERMINAL, TRANSITIONS, Event, State
from staging_fsm.core.trail import NO_LINK
from trails import Document, Path, at, document, drop, leaves, objects, put

#: The load of the machine must not decide.
unhurried = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])

ROWS = {(row.source, row.event): row for row in TRANSITIONS}
PLAN = Plan(
    SuitePlan(
        ("python", "-m", "pytest"),
        Preset.PYTEST,
        report="junit.xml",
        tool_exit_codes=(75,),
        environment=("HOME",),
    ),
    Budget(3),
    "4c1d0a7",
)
#: A run of which everything is known.
FULL_RUN = Run(
    1,
    "2030-01-01T00:00:00.000000Z",
    "2030-01-01T00:00:09.000000Z",
    Reason.TOO_FEW_TESTS,
    "J09",
    0,
    9,
    8.5,
    "a detail",
    EvidenceState.READ,
    Counts(1, 0, 0, 1),
    "/logs/1",
    "5e1f",
    100,
    0,
)


def walked(*events: Event) -> tuple[Move, ...]:
    """Return the history of `events` from the first state on."""
    state, moves = INITIAL, []
    for event in events:
        row = ROWS[state, event]
        moves.append(Move(row.id, "2030-01-01T00:00:00.000000Z", "why", "a worker", NO_LINK))
        state = row.target
    return tuple(moves)


def attempt(*events: Event, runs: tuple[Run, ...] = (), **changes: Any) -> Snapshot:
    """Return an attempt after `events`, complete in every field."""
    history = walked(*events)
    fields = {
        "version": len(history),
        "attempt_id": "7-3f",
        "state": replay(history),
        "worker": "a worker",
        "plan": PLAN,
        "runs": runs,
        "history": history,
        "next_run_at": "2030-01-01T00:01:00.000000Z",
        "artifact": Artifact("/repo/15-staging-log.md", "ab12"),
    }
    return linked(Snapshot(**{**fields, **changes}))


PASSED = attrs.evolve(FULL_RUN, reason=Reason.PASSED, rule="J12", signal=None)
LOST = attrs.evolve(FULL_RUN, reason=Reason.WORKER_LOST)
TOOL_ERROR = (Event.JOB_CLAIMED, Event.SUITE_NOT_EXECUTED)
DEFERRED = attempt(*TOOL_ERROR, Event.BUDGET_LEFT, runs=(FULL_RUN,))
RUNNING = attempt(Event.JOB_CLAIMED, runs=(Run(1, "2030-01-01T00:00:00.000000Z"),))
#: After a tool error, a second run passed.
TWICE = attempt(
    *(*TOOL_ERROR, Event.BUDGET_LEFT, Event.JOB_CLAIMED, Event.SUITE_PASSED),
    runs=(FULL_RUN, attrs.evolve(PASSED, number=2)),
)
JUDGED = attempt(Event.JOB_CLAIMED, Event.SUITE_PASSED, runs=(PASSED,))
STORED = {"deferred": DEFERRED, "running": RUNNING, "judged": JUDGED}


def same(first: object, second: object) -> bool:
    """Say whether two JSON values are equal, where true is no 1, though 1.0 is 1."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same, first, second))
    return isinstance(first, bool) is isinstance(second, bool) and first == second


def refused_or_the_same(value: object) -> SnapshotRefusedError | None:
    """Return why `value` is refused; if it is not, it has to be stored as it was."""
    try:
        snapshot = load_snapshot(value)
    except SnapshotRefusedError as error:
        return error

    assert same(document(snapshot), value)
    return None


@unhurried
@given(attempts())
@example(DEFERRED)
@example(RUNNING)
@example(JUDGED)
def test_snapshot_comes_back_as_it_was(snapshot: Snapshot) -> None:
    """Whatever attempt is stored is the attempt that is loaded, from one line of plain text."""
    line = dump_snapshot(snapshot)

    assert line.isascii()
    assert line.isprintable()
    assert load_snapshot(json.loads(line)) == snapshot
    assert replay(snapshot.history) is snapshot.state
    assert snapshot.is_terminal is (snapshot.state in TERMINAL)


HEADER = """\
A stored attempt, as it stands in a host's rows, its links with it.
`pytest --rewrite` writes this file afresh. Commit that only along with another format
number and a way to read the older form: workers of two releases share a table, and an
attempt that is under way at an upgrade must not be refused.
"""


def test_stored_form_is_that_of_earlier_releases(golden: Golden) -> None:
    """What an earlier release stored is read by this one, and stored again as it stands."""
    text = "\n".join(json.dumps(document(stored), indent=2) for stored in (TWICE, DEFERRED))

    golden("attempt.txt", f"{text}\n", HEADER)


def test_facts_of_an_attempt() -> None:
    """The last run, the reasons so far and the plan are those that were stored."""
    running = attrs.evolve(
        DEFERRED,
        history=walked(*TOOL_ERROR, Event.BUDGET_LEFT, Event.JOB_CLAIMED),
        state=State.RUNNING,
        runs=(FULL_RUN, Run(2, "2030-01-01T00:02:00.000000Z")),
    )

    assert load_snapshot(document(running)) == running
    assert running.last_run.number == 2
    assert running.last_reason is None
    assert DEFERRED.last_reason is DEFERRED.judged_reason is Reason.TOO_FEW_TESTS
    assert running.reasons == (Reason.TOO_FEW_TESTS,)
    assert running.bound_plan is PLAN
    assert not running.is_terminal


def test_nothing_is_known_of_a_run_that_has_just_begun() -> None:
    """A new run has its number and its start, and nothing that looks like a result."""
    assert set(attrs.astuple(Run(1, "2030-01-01T00:00:00.000000Z"))) == {
        1,
        "2030-01-01T00:00:00.000000Z",
        None,
    }


def test_attempt_without_a_plan_says_so() -> None:
    """Asking an attempt that never ran for its plan is refused by name."""
    fresh = fresh_snapshot("7-3f", "a worker")

    assert fresh == Snapshot(0, "7-3f", INITIAL, "a worker", None, (), (), None, None, FORMAT)
    with pytest.raises(SnapshotRefusedError, match="attempt 7-3f was never bound to a plan"):
        _ = fresh.bound_plan


def test_attempt_without_a_judged_run_says_so() -> None:
    """Asking an attempt of which no run was judged why is refused by name."""
    fresh = fresh_snapshot("7-3f", "a worker")

    assert fresh.last_reason is None
    with pytest.raises(SnapshotRefusedError, match="attempt 7-3f has no run that was judged"):
        _ = fresh.judged_reason


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (None, "is without an attempt"),
        (0, "is in work with version 0 of attempt 12-3f"),
        (7, "is in work with version 7 of attempt 12-3f"),
    ],
)
def test_lost_claim_says_whose_and_which(version: int | None, expected: str) -> None:
    """A write that came too late is refused with the job and the attempt it relied on."""
    error = StaleSnapshotError(12, "12-3f", version)

    assert (error.job_id, error.attempt_id, error.version) == (12, "12-3f", version)
    assert str(error) == (
        f"job 12 no longer {expected}: another worker moved it, or a person did;"
        " nothing was written"
    )


def test_row_has_an_attempt_or_none_or_a_refusal() -> None:
    """A row without our key has no attempt; one whose metadata cannot be read is refused.

    There may be an attempt in it, unless whoever could not read it knows better.
    """
    row = JobRow(7, "shop", "WI-1", "deploy-staging", "running", None, None)
    broken = attrs.evolve(row, document=BrokenMetadata("the metadata is no JSON"))

    assert row.snapshot() is None
    assert attrs.evolve(row, document=document(RUNNING)).snapshot() == RUNNING
    with pytest.raises(SnapshotRefusedError, match="refused: the metadata is no JSON; nothing"):
        broken.snapshot()
    assert row.is_without_attempt
    assert not broken.is_without_attempt
    other = attrs.evolve(row, document=BrokenMetadata("no JSON", may_be_ours=False))
    assert other.is_without_attempt


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("plain", "plain"),
        ("é\U0001f600", "é\U0001f600"),
        ("a\0b", "a\\x00b"),
        ("é\0", "é\\x00"),
        ("a\udc80", "a\\udc80"),
        ("\ud83d\0", "\\ud83d\\x00"),
    ],
    ids=ascii,
)
def test_text_that_no_database_takes_is_kept_as_an_escape(text: str, kept: str) -> None:
    """A NUL or half a character is stored readably, in words and paths, and other text as it is."""
    move = Move("T01", "2030-01-01T00:00:00.000000Z", text, "a worker", NO_LINK)
    run = Run(1, "2030-01-01T00:00:00.000000Z", detail=text, log=text)

    assert [move.reason, run.detail, run.log, Artifact(text, "ab12").path] == [kept] * 4
    assert Run(1, "").detail is Run(1, "").log is None


def test_number_that_is_none_is_not_stored() -> None:
    """A snapshot that JSON cannot hold is not written."""
    endless = attrs.evolve(DEFERRED, runs=(attrs.evolve(FULL_RUN, duration_seconds=float("nan")),))

    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_snapshot(endless)


RUNS: Path = ("runs", 0)
SUITE: Path = ("plan", "suite")
HISTORY: Path = ("history", 0)
TRUE: Any = True
#: What is done to a deferred attempt, and the problem that is named.
REFUSED: dict[str, tuple[Callable[[Document], None], str]] = {
    "newer format": (
        put(("format",), FORMAT + 1),
        f"its format {FORMAT + 1} is newer than {FORMAT}, the newest this version knows",
    ),
    "older format": (put(("format",), 0), f"its format is 0, not {FORMAT}"),
    "format as text": (put(("format",), "1"), f"its format is '1', not {FORMAT}"),
    "format as truth": (put(("format",), TRUE), f"its format is True, not {FORMAT}"),
    "format as fraction": (put(("format",), 1.0), f"its format is 1.0, not {FORMAT}"),
    "newer format as fraction": (put(("format",), 2.0), f"its format is 2.0, not {FORMAT}"),
    "no format": (drop("format"), f"its format is None, not {FORMAT}"),
    "unknown state": (put(("state",), "JUDGED"), "Invalid enum value 'JUDGED' - at `$.state`"),
    "unknown reason": (
        put((*RUNS, "reason"), "luck"),
        "Invalid enum value 'luck' - at `$.runs[0].reason`",
    ),
    "unknown evidence": (
        put((*RUNS, "evidence"), "seen"),
        "Invalid enum value 'seen' - at `$.runs[0].evid",
    ),
    "unknown preset": (
        put((*SUITE, "preset"), "tox"),
        "Invalid enum value 'tox' - at `$.plan.suite.p",
    ),
    "unknown workspace": (
        put((*SUITE, "workspace"), "tmp"),
        "Invalid enum value 'tmp' - at `$.plan.suite.w",
    ),
    "truth as number": (put(("version",), TRUE), "Expected `int`, got `bool` - at `$.version`"),
    "number as truth": (put((*SUITE, "allow_dirty"), 0), "Expected `bool`, got `int`"),
    "text as number": (put((*RUNS, "exit_code"), "0"), "Expected `int | null`, got `str`"),
    "fraction as number": (put((*RUNS, "exit_code"), 0.0), "Expected `int | null`, got `float`"),
    "number as text": (put(("worker",), 7), "Expected `str`, got `int` - at `$.worker`"),
    "truth as fraction": (put((*SUITE, "timeout_seconds"), TRUE), "Expected `float`, got `bool`"),
    "no number": (
        put((*SUITE, "timeout_seconds"), float("nan")),
        "nan is no finite number",
    ),
    "endless": (
        put(("plan", "budget", "backoff_seconds"), float("inf")),
        "inf is no finite number",
    ),
    "number that would be rounded": (
        put((*RUNS, "duration_seconds"), 2**53 + 1),
        f"{2**53 + 1} is no finite number that is kept exactly - at runs.duration_seconds",
    ),
    "number that would be rounded up": (
        put((*RUNS, "duration_seconds"), 2**53 + 3),
        f"{2**53 + 3} is no finite number that is kept exactly - at runs.duration_seconds",
    ),
    "number beyond all fractions": (put((*RUNS, "duration_seconds"), 10**400), "OverflowError"),
    "text as list": (put(("runs",), "none"), "Expected `array`, got `str` - at `$.runs`"),
    "object as list": (
        put(("history",), {}),
        "history has keys ['id', 'link', 'reason', 'time', 'worker'], not []",
    ),
    "text as command": (
        put((*SUITE, "command"), "make"),
        "Expected `array`, got `str` - at `$.plan.suite.command`",
    ),
    "list as object": (
        put(("plan",), []),
        "Expected `object | null`, got `array` - at `$.plan`",
    ),
    "none where one is needed": (
        put(("worker",), None),
        "Expected `str`, got `null` - at `$.worker`",
    ),
    "no run": (put(RUNS, None), "Expected `object`, got `null` - at `$.runs[0]`"),
    "plan beyond its bounds": (put((*SUITE, "min_tests"), -1), "min_tests must be a finite number"),
    "budget beyond its bounds": (
        put(("plan", "budget", "infra_retries"), 21),
        "infra_retries must be from 0 to 20, not 21",
    ),
    "unknown row": (
        put((*HISTORY, "id"), "T99"),
        "move 1 is 'T99', which is no row of the table",
    ),
    "no path": (
        put(("history", 1, "id"), "T14"),
        "move 2, T14, leaves EXHAUSTED, but the attempt was in RUNNING",
    ),
    "no path from the first state": (
        drop(*HISTORY),
        "move 1, T05, leaves RUNNING, but the attempt was in PENDING",
    ),
    "state that the history does not lead to": (
        put(("state",), "ADVANCED"),
        "its history leads to DEFERRED, but its state is ADVANCED",
    ),
    "history that is too short": (
        drop("history", 2),
        "its history leads to TOOL_ERROR, but its state is DEFERRED",
    ),
    "version 0": (put(("version",), 0), "its version is 0"),
    "no attempt id": (put(("attempt_id",), ""), "it has no attempt id"),
    "run too few": (drop(*RUNS), "its history starts 1 runs, but it holds 0"),
    "run too many": (
        lambda stored: stored["runs"].append(stored["runs"][0]),
        "its history starts 1 runs, but it holds 2",
    ),
    "run with another number": (put((*RUNS, "number"), 2), "its runs are not numbered from 1"),
    "run numbered from 0": (put((*RUNS, "number"), 0), "its runs are not numbered from 1"),
    "run without a plan": (put(("plan",), None), "it ran without a plan"),
    "run without a reason": (
        put((*RUNS, "reason"), None),
        "run 1 has no reason although it ended",
    ),
    "run with another verdict": (
        put((*RUNS, "reason"), "exit_code"),
        "run 1 ended by SUITE_NOT_EXECUTED, but its reason is exit_code",
    ),
    "next run at no time": (
        put(("next_run_at",), "2030-01-01T00:00:00Z"),
        "next_run_at: '2030-01-01T00:00:00Z' is no time like 1970-01-01T00:00:00.000000Z",
    ),
    "move at no time": (
        put((*HISTORY, "time"), "soon"),
        "the time of move 1: 'soon' is no time like 1970-01-01T00:00:00.000000Z",
    ),
    "later move at no time": (
        put(("history", 2, "time"), "soon"),
        "the time of move 3: 'soon' is no time like 1970-01-01T00:00:00.000000Z",
    ),
    "run at no time": (
        put((*RUNS, "started_at"), ""),
        "started_at: '' is no time like 1970-01-01T00:00:00.000000Z",
    ),
    "run due at no time": (
        put((*RUNS, "due_at"), "tomorrow"),
        "due_at: 'tomorrow' is no time like 1970-01-01T00:00:00.000000Z",
    ),
    "run ended at no time": (
        put((*RUNS, "ended_at"), "2030-01-01"),
        "ended_at: '2030-01-01' is no time like 1970-01-01T00:00:00.000000Z",
    ),
    "no time for the next run": (
        put(("next_run_at",), None),
        "it is DEFERRED without a time for its next run",
    ),
}


def refusal(value: object) -> str:
    """Return the sentence by which `value` is refused."""
    with pytest.raises(SnapshotRefusedError) as refused:
        load_snapshot(value)

    assert str(refused.value) == (
        f"the staging_runner snapshot is refused: {refused.value.problem}; nothing was changed:"
        " correct the row by hand, or remove the key and queue the job again"
    )
    return refused.value.problem


@pytest.mark.parametrize("name", REFUSED)
def test_damaged_snapshot_is_refused_by_name(name: str) -> None:
    """A damaged snapshot is refused, and the refusal says what is wrong with it."""
    change, problem = REFUSED[name]
    stored = document(DEFERRED)
    change(stored)

    said = refusal(stored)

    assert said == problem or (said.startswith("it cannot be read (") and problem in said)


def test_each_deferral_has_a_time_for_its_next_run() -> None:
    """An attempt that was deferred once more waits for a time, as after its first run."""
    twice = attempt(
        *(*TOOL_ERROR, Event.BUDGET_LEFT, *TOOL_ERROR, Event.BUDGET_LEFT),
        runs=(FULL_RUN, attrs.evolve(FULL_RUN, number=2)),
    )

    assert load_snapshot(document(twice)) == twice
    assert refusal({**document(twice), "next_run_at": None}) == (
        "it is DEFERRED without a time for its next run"
    )


@pytest.mark.parametrize("value", [None, True, 1, "", "{}", [], [{}], 1.5], ids=repr)
def test_what_is_no_object_is_refused(value: object) -> None:
    """What is no JSON object is refused as what it is."""
    assert refusal(value) == f"it is a {type(value).__name__}, not an object"


@pytest.mark.parametrize("path", list(objects(document(DEFERRED))), ids=str)
def test_unknown_and_missing_keys_are_refused(path: Path) -> None:
    """An object with a key more or a key less is refused, with the keys it should have."""
    keys = sorted(at(document(DEFERRED), path))
    more = document(DEFERRED)
    at(more, path)["surplus"] = None

    assert f"has keys {keys}, not {sorted([*keys, 'surplus'])})" in refusal(more)
    for key in keys:
        less = document(DEFERRED)
        del at(less, path)[key]
        rest = [other for other in keys if other != key]

        said = refusal(less)

        assert key == "format" or f"has keys {keys}, not {rest})" in said
        assert key == "format" or bool(path) is ("(TypeError: the snapshot has keys" not in said)


@pytest.mark.parametrize(
    "events",
    [
        (),
        (Event.SUITE_PASSED,),
        (Event.SUITE_PASSED, Event.GATE_OPENED),
        (Event.SUITE_PASSED, Event.GATE_REFUSED),
    ],
    ids="-".join,
)
def test_attempt_that_ran_has_a_plan(events: tuple[Event, ...]) -> None:
    """In whatever state an attempt is, one that ran has the plan that it was bound to."""
    run = PASSED if events else RUNNING.runs[0]
    stored = document(attempt(Event.JOB_CLAIMED, *events, runs=(run,), plan=None))

    assert refusal(stored) == "it ran without a plan"


def test_runs_beyond_the_budget_are_refused() -> None:
    """More runs than the budget ever allowed are refused."""
    events = (*TOOL_ERROR, Event.BUDGET_LEFT)
    more = attempt(
        *events * 2,
        runs=(FULL_RUN, attrs.evolve(FULL_RUN, number=2)),
        plan=attrs.evolve(PLAN, budget=Budget(0)),
    )

    assert refusal(document(more)) == "it holds 2 runs, but its budget is 1"


def test_ended_attempt_has_no_more_runs_than_its_budget_either() -> None:
    """An attempt that advanced in a run that it was never allowed is refused as any other."""
    events = (*TOOL_ERROR, Event.BUDGET_LEFT, Event.JOB_CLAIMED, Event.SUITE_PASSED)
    more = attempt(
        *events,
        Event.GATE_OPENED,
        runs=(FULL_RUN, attrs.evolve(PASSED, number=2)),
        plan=attrs.evolve(PLAN, budget=Budget(0)),
        next_run_at=None,
    )

    assert refusal(document(more)) == "it holds 2 runs, but its budget is 1"


def test_run_under_way_counts_against_the_budget() -> None:
    """A run counts from its claim on: one that is under way beyond the budget is refused."""
    more = attempt(
        *(*TOOL_ERROR, Event.BUDGET_LEFT, Event.JOB_CLAIMED),
        runs=(FULL_RUN, Run(2, "2030-01-01T00:00:00.000000Z")),
        plan=attrs.evolve(PLAN, budget=Budget(0)),
    )

    assert refusal(document(more)) == "it holds 2 runs, but its budget is 1"


def test_runs_stand_in_their_order() -> None:
    """Runs that were exchanged are refused: the last one would be taken for the one in hand."""
    stored = document(TWICE)
    stored["runs"].reverse()

    assert refusal(stored) == "its runs are not numbered from 1"


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", ["started_at", "ended_at", "due_at"])
def test_times_of_every_run_are_times(name: str, number: int) -> None:
    """Each time of each run is looked at, of an earlier one as of the last."""
    stored = document(TWICE)
    stored["runs"][number][name] = "soon"

    assert refusal(stored) == f"{name}: 'soon' is no time like 1970-01-01T00:00:00.000000Z"


@pytest.mark.parametrize(
    "events",
    [
        (Event.SUITE_NOT_EXECUTED,),
        (Event.SUITE_NOT_EXECUTED, Event.BUDGET_SPENT),
        (Event.SUITE_PASSED,),
        (Event.SUITE_PASSED, Event.GATE_OPENED),
        (Event.SUITE_FAILED, Event.GATE_REFUSED),
        (Event.SUITE_NOT_EXECUTED, Event.BUDGET_LEFT, Event.CANCEL_REQUESTED),
        (Event.WORKER_LOST, Event.BUDGET_LEFT, Event.RUNNER_DECLINED),
    ],
    ids="-".join,
)
def test_run_that_was_judged_has_a_reason(events: tuple[Event, ...]) -> None:
    """In whatever state an attempt is, a run that ended has its reason, or the row is refused."""
    stored = document(
        attempt(Event.JOB_CLAIMED, *events, runs=(attrs.evolve(PASSED, reason=None),))
    )

    assert refusal(stored) == "run 1 has no reason although it ended"


def test_run_that_ended_is_not_running() -> None:
    """An attempt whose run has ended is not RUNNING."""
    stored = document(attrs.evolve(RUNNING, runs=(FULL_RUN,)))

    assert refusal(stored) == "run 1 has ended, but the attempt is RUNNING"


def test_only_the_last_run_may_be_open() -> None:
    """A run before the last has ended, whatever state the attempt is in."""
    events = (*TOOL_ERROR, Event.BUDGET_LEFT, Event.JOB_CLAIMED)
    open_runs = (Run(1, "2030-01-01T00:00:00.000000Z"), Run(2, "2030-01-01T00:00:00.000000Z"))

    for more in ((), (Event.CANCEL_REQUESTED,)):
        stored = document(attempt(*events, *more, runs=open_runs))
        assert refusal(stored) == "run 1 has no reason although it ended"


def test_reason_that_an_earlier_run_lost_is_missed() -> None:
    """An earlier run that ended has its reason, however many have ended after it."""
    stored = document(TWICE)
    stored["runs"][0]["reason"] = None

    assert refusal(stored) == "run 1 has no reason although it ended"


def test_cancelled_run_has_no_reason() -> None:
    """An attempt that was cancelled while it ran keeps its run as it was, open."""
    cancelled = attrs.evolve(
        RUNNING,
        state=State.CANCELLED,
        history=walked(Event.JOB_CLAIMED, Event.CANCEL_REQUESTED),
    )

    assert load_snapshot(document(cancelled)) == cancelled


@pytest.mark.parametrize("reason", Reason)
@pytest.mark.parametrize(
    ("event", "run"),
    [
        (Event.SUITE_PASSED, PASSED),
        (Event.SUITE_FAILED, attrs.evolve(FULL_RUN, reason=Reason.EXIT_CODE)),
        (Event.SUITE_NOT_EXECUTED, FULL_RUN),
        (Event.WORKER_LOST, LOST),
    ],
)
def test_reason_of_a_run_is_the_one_that_ended_it(event: Event, run: Run, reason: Reason) -> None:
    """A run whose reason has another verdict than the event that ended it is refused."""
    stored = document(attempt(Event.JOB_CLAIMED, event, runs=(run,)))
    assert refused_or_the_same(stored) is None
    ended_by = Event.SUITE_NOT_EXECUTED if event is Event.WORKER_LOST else event
    stored["runs"][0]["reason"] = str(reason)

    error = refused_or_the_same(stored)

    if REASONS[reason].verdict.event is ended_by:
        assert error is None
    else:
        assert error is not None
        assert error.problem == f"run 1 ended by {event}, but its reason is {reason}"


def test_reason_of_an_earlier_run_is_the_one_that_ended_it_too() -> None:
    """Not only the last run is looked at: an earlier one may not have failed and be run again."""
    events = (Event.JOB_CLAIMED, Event.SUITE_NOT_EXECUTED, Event.BUDGET_LEFT)
    second = attrs.evolve(PASSED, number=2)
    stored = document(
        attempt(*events, Event.JOB_CLAIMED, Event.SUITE_PASSED, runs=(FULL_RUN, second))
    )
    assert refused_or_the_same(stored) is None
    stored["runs"][0]["reason"] = "exit_code"

    error = refused_or_the_same(stored)

    assert error is not None
    assert error.problem == "run 1 ended by SUITE_NOT_EXECUTED, but its reason is exit_code"


@pytest.mark.parametrize("exit_code", [None, 1, -1, 255])
def test_pass_without_exit_code_0_is_refused(exit_code: int | None) -> None:
    """A stored pass whose exit code is not 0 is refused: it would advance without a suite."""
    stored = document(JUDGED)
    stored["runs"][0]["exit_code"] = exit_code

    assert refusal(stored) == f"run 1 passed with exit code {exit_code}"


#: Values of every JSON type, and of the kinds that are easily taken for another.
ALIENS: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2,
    2**53 + 1,
    1.5,
    1e308,
    float("nan"),
    float("-inf"),
    "",
    "1",
    "T03",
    "PENDING",
    "passed",
    [],
    [None],
    ["a"],
    {},
    {"a": 1},
]


@pytest.mark.parametrize("name", STORED)
def test_any_change_of_any_leaf_is_refused_or_kept(name: str) -> None:
    """Whatever stands in the place of a value is refused, or is stored again as it stands."""
    original = document(STORED[name])
    for path in leaves(original):
        for alien in ALIENS:
            stored = document(STORED[name])
            put(path, alien)(stored)

            refused_or_the_same(stored)


@pytest.mark.parametrize("name", STORED)
def test_value_of_another_type_is_refused(name: str) -> None:
    """No text is taken for a number, no number for a text, no truth for either, no list for one."""
    original = document(STORED[name])
    for path in leaves(original):
        value = at(original, path)
        if value is None:
            continue
        numbers = (int, float)
        allowed = numbers if isinstance(value, numbers) else (type(value),)
        allowed = (bool,) if isinstance(value, bool) else allowed
        for alien in ALIENS:
            if alien is None or type(alien) in allowed:
                continue
            stored = document(STORED[name])
            put(path, alien)(stored)

            assert refused_or_the_same(stored) is not None, (path, alien)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@unhurried
@given(json_values | st.dictionaries(st.just("format"), st.just(FORMAT) | json_values))
def test_any_document_is_refused_or_the_same(value: object) -> None:
    """Any JSON value at all is refused by name, or is a snapshot and stored again as it was."""
    refused_or_the_same(value)


@unhurried
@given(st.data())
def test_any_damage_is_refused_or_the_same(data: st.DataObject) -> None:
    """Any stored attempt with any value anywhere in it is refused by name, or kept as it is."""
    stored = document(data.draw(attempts()))
    path = data.draw(st.sampled_from([*objects(stored), *leaves(stored)]))
    if path:
        put(path, data.draw(json_values | st.sampled_from(ALIENS)))(stored)

    refused_or_the_same(stored)


@given(st.lists(st.sampled_from([*ROW_BY_ID, "", "T0", "t01"]), max_size=6))
def test_history_is_a_path_or_refused(ids: list[str]) -> None:
    """A list of moves either leads from row to row to a state, or names the move that does not."""
    known = [ROW_BY_ID.get(id_) for id_ in ids]
    sources = [INITIAL, *(row and row.target for row in known)]
    broken = [
        number
        for number, (row, source) in enumerate(zip(known, sources, strict=False), 1)
        if row is None or row.source is not source
    ]
    moves = tuple(Move(id_, "", "", "", NO_LINK) for id_ in ids)

    if broken:
        with pytest.raises(SnapshotRefusedError, match=re.escape(f"move {broken[0]}")):
            replay(moves)
    else:
        assert replay(moves) is sources[-1]

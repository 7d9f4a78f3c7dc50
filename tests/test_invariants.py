"""Each invariant speaks where its promise is broken, by name and in a sentence, and only there."""

from typing import Any

import attrs
import pytest

from attempts import linked
from conftest import Golden
from sound import BROKEN, FAILED, NOW, OPEN, PASSED, PLAN, RED_TEXT, TEXT, artifact, attempt
from staging_fsm.core.evidence import Counts, EvidenceState
from staging_fsm.core.invariants import (
    DEADLINE_MARGIN_SECONDS,
    INVARIANTS,
    Movement,
    Sight,
    Start,
    violations,
)
from staging_fsm.core.outcome import Reason
from staging_fsm.core.plan import Budget
from staging_fsm.core.ports import AlertKind
from staging_fsm.core.snapshot import ADOPTIONS_MAX, Move, Snapshot
from staging_fsm.core.spec import State
from staging_fsm.core.trail import NO_LINK

JUNIT = attrs.evolve(PLAN, suite=attrs.evolve(PLAN.suite, report="junit.xml", min_tests=3))

ADVANCED = attempt("T01 T03 T11", PASSED, artifact=artifact(TEXT))
FAILED_CLOSED = attempt("T01 T05 T07 T09 T05 T08 T14", BROKEN, BROKEN, artifact=artifact(RED_TEXT))
DEFERRED = attempt("T01 T05 T07", BROKEN)
RUNNING = attempt("T01", OPEN)


def with_report(evidence: EvidenceState, counts: Counts | None) -> Snapshot:
    """Return an advanced attempt whose plan asks for three tests, with this for evidence."""
    run = attrs.evolve(PASSED, evidence=evidence, counts=counts)
    return linked(attrs.evolve(ADVANCED, plan=JUNIT, runs=(run,)))


def passed_with(**changes: Any) -> Snapshot:
    """Return an advanced attempt whose run is not quite what a pass is."""
    return linked(attrs.evolve(ADVANCED, runs=(attrs.evolve(PASSED, **changes),)))


def after(*reasons: Reason) -> Snapshot:
    """Return an attempt that runs once more after runs that ended for these reasons."""
    ended = [attrs.evolve(BROKEN, reason=reason) for reason in reasons]
    path = "T01" + " T05 T07 T09" * len(ended)
    return attempt(path, *ended, OPEN, plan=attrs.evolve(PLAN, budget=Budget(infra_retries=5)))


SOUND = {
    "a pass": Sight(
        ADVANCED,
        earlier=attempt("T01 T03", PASSED),
        gate_text=TEXT,
        movements=(Movement.FORWARD,),
        developer_retries_spent=0,
        written=(TEXT, TEXT),
        starts=(Start(1, 1, older_artifact=False),),
        live_runs=(),
        job_ended=True,
        declined_in=(),
        foreign_before="{}",
        foreign_after="{}",
        raised=(),
        alerts=(),
    ),
    "a pass with evidence": Sight(with_report(EvidenceState.READ, Counts(4, 0, 0, 1))),
    "a pass that skipped exactly what it may": Sight(
        linked(
            attrs.evolve(
                with_report(EvidenceState.READ, Counts(100, 0, 0, 29)),
                plan=attrs.evolve(JUNIT, suite=attrs.evolve(JUNIT.suite, max_skipped_ratio=0.29)),
            )
        )
    ),
    "a pass whose late output took a moment": Sight(passed_with(duration_seconds=60.5)),
    "a pass at its deadline and the whole margin": Sight(
        passed_with(duration_seconds=60 + DEADLINE_MARGIN_SECONDS)
    ),
    "a pass of the one test that was asked for": Sight(
        linked(
            attrs.evolve(
                with_report(EvidenceState.READ, Counts(1, 0, 0, 0)),
                plan=attrs.evolve(JUNIT, suite=attrs.evolve(JUNIT.suite, min_tests=1)),
            )
        )
    ),
    "a failure": Sight(
        attempt("T01 T04 T13", FAILED, artifact=artifact(RED_TEXT)),
        movements=(Movement.BACK,),
        developer_retries_spent=1,
        written=(RED_TEXT,),
    ),
    "an altered artifact": Sight(
        attempt("T01 T03 T12", PASSED, artifact=artifact(TEXT)),
        gate_text=RED_TEXT,
        movements=(Movement.BACK,),
        developer_retries_spent=1,
    ),
    "exhaustion": Sight(
        FAILED_CLOSED,
        movements=(Movement.BACK,),
        developer_retries_spent=1,
        written=(RED_TEXT,),
        alerts=(AlertKind.FAILED_CLOSED,),
    ),
    "an ended attempt that stayed as it was": Sight(FAILED_CLOSED, earlier=FAILED_CLOSED),
    "an artifact with another word": Sight(
        FAILED_CLOSED, written=("---\nstaging_status: UNKNOWN\n---\n",)
    ),
    "a run after one that may come once": Sight(after(Reason.DEADLINE_EXCEEDED)),
    "a run after two that may come again": Sight(after(*[Reason.TOOL_EXIT_CODE] * 2)),
    "a run that was started when the next was counted": Sight(
        attempt("T01 T05 T07 T09", BROKEN, OPEN), starts=(Start(1, 2, older_artifact=False),)
    ),
    "a fallback before the first run": Sight(attempt("T02", plan=None), switched_off=False),
    "a run under way": Sight(RUNNING, live_runs=(1,), job_ended=False),
    "a cancelled run that is still to be reaped": Sight(
        attempt("T01 T16", OPEN), live_runs=(1,), job_ended=False
    ),
    "a cancelled run of whose job nobody knows whether it ended": Sight(
        attempt("T01 T16", OPEN), live_runs=(1,)
    ),
    "a run that changed hands as often as it may": Sight(
        attempt("T01" + " T18" * ADOPTIONS_MAX, OPEN)
    ),
    "a declined launch": Sight(
        attempt("T02", plan=None), declined_in=(None, State.LLM_FALLBACK), starts=()
    ),
    "a kill switch between two runs": Sight(
        attempt("T01 T05 T07 T10", BROKEN),
        switched_off=True,
        starts=(Start(1, 1, older_artifact=False),),
    ),
}
BREACHES: dict[str, tuple[str, Sight]] = {
    "the work item moved forwards, but the attempt is ROLLED_BACK": (
        "no_silent_advance",
        Sight(
            attempt("T01 T04 T13", FAILED, artifact=artifact(TEXT)), movements=(Movement.FORWARD,)
        ),
    ),
    "the work item moved forwards, but the attempt is FAILED_CLOSED": (
        "no_silent_advance",
        Sight(FAILED_CLOSED, movements=(Movement.BACK, Movement.FORWARD)),
    ),
    "the work item moved forwards, but the attempt is VERDICT_PASSED": (
        "no_silent_advance",
        Sight(attempt("T01 T03", PASSED), movements=(Movement.FORWARD,)),
    ),
    "the work item moved forwards, but the attempt is FAILED": (
        "no_silent_advance",
        Sight(FAILED_CLOSED, movements=(Movement.FORWARD, Movement.BACK)),
    ),
    "it is ADVANCED, and its history holds no SUITE_PASSED": (
        "no_silent_advance",
        Sight(attrs.evolve(FAILED_CLOSED, state=State.ADVANCED)),
    ),
    "it is VERDICT_PASSED, and its history holds no SUITE_PASSED": (
        "no_silent_advance",
        Sight(attrs.evolve(RUNNING, state=State.VERDICT_PASSED)),
    ),
    "it advanced without an artifact": (
        "no_silent_advance",
        Sight(attrs.evolve(ADVANCED, artifact=None)),
    ),
    "the artifact that the gate read is not the one that this attempt wrote": (
        "no_silent_advance",
        Sight(ADVANCED, gate_text=TEXT + " "),
    ),
    "the artifact that the gate read is not the one": (
        "no_silent_advance",
        Sight(ADVANCED, gate_text=""),
    ),
    "a suite passed, but there is no run or no plan": (
        "no_silent_advance",
        Sight(attrs.evolve(ADVANCED, plan=None)),
    ),
    "a suite passed, but there is no run or no": (
        "no_silent_advance",
        Sight(attrs.evolve(ADVANCED, runs=())),
    ),
    "run 1 passed, and its reason is tool_exit_code": (
        "no_silent_advance",
        Sight(passed_with(reason=Reason.TOOL_EXIT_CODE)),
    ),
    "run 1 passed with exit code 1 and signal None": (
        "no_silent_advance",
        Sight(passed_with(exit_code=1)),
    ),
    "run 1 passed with exit code 2 and signal None": (
        "no_silent_advance",
        Sight(attempt("T01 T03 T12", attrs.evolve(PASSED, exit_code=2))),
    ),
    "run 1 passed with exit code 3 and signal None": (
        "no_silent_advance",
        Sight(attempt("T01 T03", attrs.evolve(PASSED, exit_code=3))),
    ),
    "run 1 passed with exit code None and signal 9": (
        "no_silent_advance",
        Sight(passed_with(exit_code=None, signal=9)),
    ),
    "run 1 passed with exit code 0 and signal 9": (
        "no_silent_advance",
        Sight(passed_with(signal=9)),
    ),
    "run 1 passed after 62.0 s, past": (
        "no_silent_advance",
        Sight(passed_with(duration_seconds=62.0)),
    ),
    "run 1 passed after 1801.5 s, past": (
        "no_silent_advance",
        Sight(
            attrs.evolve(
                passed_with(duration_seconds=1801.5),
                plan=attrs.evolve(PLAN, suite=attrs.evolve(PLAN.suite, timeout_seconds=1800.0)),
            )
        ),
    ),
    "run 1 passed after None s, past": (
        "no_silent_advance",
        Sight(passed_with(duration_seconds=None)),
    ),
    "run 1 passed on no revision": (
        "no_silent_advance",
        Sight(attrs.evolve(ADVANCED, plan=attrs.evolve(PLAN, revision=""))),
    ),
    "the report it was asked for is missing": (
        "no_silent_advance",
        Sight(with_report(EvidenceState.MISSING, None)),
    ),
    "the report it was asked for is read": (
        "no_silent_advance",
        Sight(with_report(EvidenceState.READ, None)),
    ),
    "the report it was asked for is stale": (
        "no_silent_advance",
        Sight(with_report(EvidenceState.STALE, Counts(3, 0, 0, 0))),
    ),
    "run 1 passed, and its report shows failures": (
        "no_silent_advance",
        Sight(with_report(EvidenceState.READ, Counts(4, 1, 0, 0))),
    ),
    "its report shows failures or errors": (
        "no_silent_advance",
        Sight(with_report(EvidenceState.READ, Counts(4, 0, 1, 0))),
    ),
    "run 1 passed with 2 tests, fewer": (
        "no_silent_advance",
        Sight(with_report(EvidenceState.READ, Counts(4, 0, 0, 2))),
    ),
    "run 1 passed with 0 tests, fewer": (
        "no_silent_advance",
        Sight(
            attrs.evolve(
                with_report(EvidenceState.READ, Counts(4, 0, 0, 4)),
                plan=attrs.evolve(JUNIT, suite=attrs.evolve(JUNIT.suite, min_tests=0)),
            )
        ),
    ),
    "run 1 passed with 0 tests, fewer than": (
        "no_silent_advance",
        Sight(with_report(EvidenceState.READ, Counts(0, 0, 0, 0))),
    ),
    "run 1 passed with 1 of 5 tests skipped": (
        "no_silent_advance",
        Sight(
            attrs.evolve(
                with_report(EvidenceState.READ, Counts(5, 0, 0, 1)),
                plan=attrs.evolve(JUNIT, suite=attrs.evolve(JUNIT.suite, max_skipped_ratio=0.1)),
            )
        ),
    ),
    "it has an artifact without a verdict": (
        "tool_error_is_nobodys_fault",
        Sight(attrs.evolve(DEFERRED, artifact=artifact(RED_TEXT))),
    ),
    "it wrote a SUCCESS, and no suite passed": (
        "tool_error_is_nobodys_fault",
        Sight(FAILED_CLOSED, written=(TEXT,)),
    ),
    "it wrote a SUCCESS, and no suite": (
        "tool_error_is_nobodys_fault",
        Sight(FAILED_CLOSED, written=(TEXT, RED_TEXT)),
    ),
    "it cost 1 developer retries, and it is DEFERRED": (
        "tool_error_is_nobodys_fault",
        Sight(DEFERRED, developer_retries_spent=1),
    ),
    "it cost 1 developer retries, and it is ADVANCED": (
        "tool_error_is_nobodys_fault",
        Sight(ADVANCED, developer_retries_spent=1),
    ),
    "it cost 1 developer retries, and it is CANCELLED": (
        "tool_error_is_nobodys_fault",
        Sight(attempt("T01 T16", OPEN), developer_retries_spent=1),
    ),
    "it cost 1 developer retries, and it is LLM_FALLBACK": (
        "tool_error_is_nobodys_fault",
        Sight(attempt("T02", plan=None), developer_retries_spent=1),
    ),
    "it cost 2 developer retries, and it is FAILED_CLOSED": (
        "tool_error_is_nobodys_fault",
        Sight(FAILED_CLOSED, developer_retries_spent=2),
    ),
    "it failed closed, and nobody was alerted": (
        "tool_error_is_nobodys_fault",
        Sight(FAILED_CLOSED, alerts=(AlertKind.INTERNAL_ERROR,)),
    ),
    "it holds 3 runs, and its budget does not": (
        "budget_is_total",
        Sight(attempt("T01 T05 T07 T09 T05 T07 T09", BROKEN, BROKEN, OPEN)),
    ),
    "run 1 was started when 0 runs were counted": (
        "budget_is_total",
        Sight(RUNNING, starts=(Start(1, 0, older_artifact=False),)),
    ),
    "run 2 was started when 1 runs were counted": (
        "budget_is_total",
        Sight(
            attempt("T01 T05 T07 T09", BROKEN, OPEN),
            starts=(Start(1, 1, older_artifact=False), Start(2, 1, older_artifact=False)),
        ),
    ),
    "a run followed one that ended for usage_error": (
        "budget_is_total",
        Sight(after(Reason.USAGE_ERROR, Reason.STOPPED)),
    ),
    "a run followed one that ended for no_tests": (
        "budget_is_total",
        Sight(
            attempt("T01 T05 T07 T09", attrs.evolve(BROKEN, reason=Reason.NO_TESTS), OPEN),
        ),
    ),
    "a run followed two that ended for deadline_exceeded": (
        "budget_is_total",
        Sight(
            attempt(
                "T01 T05 T07 T09 T05 T07 T09",
                *[attrs.evolve(BROKEN, reason=Reason.DEADLINE_EXCEEDED)] * 2,
                OPEN,
                plan=attrs.evolve(PLAN, budget=Budget(infra_retries=5)),
            )
        ),
    ),
    "a run followed two that ended for idle_timeout": (
        "budget_is_total",
        Sight(after(Reason.IDLE_TIMEOUT, Reason.STOPPED, Reason.IDLE_TIMEOUT, Reason.STOPPED)),
    ),
    f"runs changed hands {ADOPTIONS_MAX + 1} times": (
        "budget_is_total",
        Sight(attempt("T01" + " T18" * (ADOPTIONS_MAX + 1), OPEN)),
    ),
    "it was FAILED_CLOSED and changed": (
        "terminal_is_forever",
        Sight(attrs.evolve(FAILED_CLOSED, worker="x"), earlier=FAILED_CLOSED),
    ),
    "its earlier history is no part": (
        "terminal_is_forever",
        Sight(RUNNING, earlier=attempt("T01 T18", OPEN)),
    ),
    "its earlier history is no part of its history": (
        "terminal_is_forever",
        Sight(
            attrs.evolve(RUNNING, history=(attrs.evolve(RUNNING.history[0], reason="another"),)),
            earlier=RUNNING,
        ),
    ),
    "attempt 1-a became 1-b": (
        "terminal_is_forever",
        Sight(attrs.evolve(RUNNING, attempt_id="1-b"), earlier=RUNNING),
    ),
    "attempt 1-a became 1-0": (
        "terminal_is_forever",
        Sight(attrs.evolve(RUNNING, attempt_id="1-0"), earlier=RUNNING),
    ),
    "move 2 is 'T99', which is no row": (
        "history_is_a_path",
        Sight(
            attrs.evolve(
                RUNNING,
                version=2,
                history=(*RUNNING.history, Move("T99", NOW, "because", "w", NO_LINK)),
            )
        ),
    ),
    "its history leads to RUNNING, and its state is DEFERRED": (
        "history_is_a_path",
        Sight(attrs.evolve(RUNNING, state=State.DEFERRED)),
    ),
    "its version is 2 after 1 moves": (
        "history_is_a_path",
        Sight(attrs.evolve(RUNNING, version=2)),
    ),
    "its version is 0 after 1 moves": (
        "history_is_a_path",
        Sight(attrs.evolve(RUNNING, version=0)),
    ),
    "and nothing… is stored": (
        "trail_is_unbroken",
        Sight(attrs.evolve(RUNNING, history=(attrs.evolve(RUNNING.history[0], link=""),))),
    ),
    "move 1, T01, or what was stored with it, is not what was linked": (
        "trail_is_unbroken",
        Sight(attrs.evolve(RUNNING, plan=JUNIT)),
    ),
    "its worker is x, and its last move was made by w": (
        "trail_is_unbroken",
        Sight(attrs.evolve(RUNNING, worker="x")),
    ),
    "run 1 was followed by another before it ended": (
        "one_live_run_per_job",
        Sight(attempt("T01 T05 T07 T09", OPEN, OPEN)),
    ),
    "run 1 was followed by another before": (
        "one_live_run_per_job",
        Sight(
            attempt(
                *("T01 T05 T07 T09 T05 T07 T09", OPEN, BROKEN, OPEN),
                plan=attrs.evolve(PLAN, budget=Budget(infra_retries=5)),
            )
        ),
    ),
    "runs (1, 2) are alive at the same time": (
        "one_live_run_per_job",
        Sight(attempt("T01 T05 T07 T09", BROKEN, OPEN), live_runs=(1, 2)),
    ),
    "run 1 was started more than once": (
        "one_live_run_per_job",
        Sight(RUNNING, starts=(Start(1, 1, older_artifact=False),) * 2),
    ),
    "run 1 was started more": (
        "one_live_run_per_job",
        Sight(
            attempt("T01 T05 T07 T09", BROKEN, OPEN),
            starts=tuple(Start(run, 2, older_artifact=False) for run in (1, 2, 1)),
        ),
    ),
    "run 1 was started more than": (
        "one_live_run_per_job",
        Sight(
            attempt("T01 T05 T07 T09", BROKEN, OPEN),
            starts=tuple(Start(run, 2, older_artifact=False) for run in (1, 1, 2)),
        ),
    ),
    "a process of run 1 is alive, and the attempt is DEFERRED": (
        "no_process_outlives_its_run",
        Sight(DEFERRED, live_runs=(1,)),
    ),
    "a process of run 1 is alive, and the attempt is RUNNING": (
        "no_process_outlives_its_run",
        Sight(attempt("T01 T05 T07 T09", BROKEN, OPEN), live_runs=(1,)),
    ),
    "a process of run 2 is alive, and the attempt is RUNNING": (
        "no_process_outlives_its_run",
        Sight(RUNNING, live_runs=(2,)),
    ),
    "a process of run 1 is alive, and the attempt is CANCELLED": (
        "no_process_outlives_its_run",
        Sight(attempt("T01 T16", OPEN), live_runs=(1,), job_ended=True),
    ),
    "run 1 was started with an older artifact in place": (
        "stale_artifact_is_never_read",
        Sight(RUNNING, starts=(Start(1, 1, older_artifact=True),)),
    ),
    "run 2 was started with an older artifact in place": (
        "stale_artifact_is_never_read",
        Sight(
            attempt("T01 T05 T07 T09", BROKEN, OPEN),
            starts=(Start(1, 1, older_artifact=False), Start(2, 2, older_artifact=True)),
        ),
    ),
    "a process of run 2 is alive, and the attempt is DEFERRED": (
        "no_process_outlives_its_run",
        Sight(DEFERRED, live_runs=(2,)),
    ),
    "a process of run 1 is alive": (
        "no_process_outlives_its_run",
        Sight(attempt("T01 T05 T07 T09", BROKEN, OPEN), live_runs=(2, 1)),
    ),
    "the gate was asked 2 times": (
        "hand_over_is_idempotent",
        Sight(attrs.evolve(ADVANCED, history=(*ADVANCED.history, ADVANCED.history[-1]))),
    ),
    "the work item moved 2 times for 1 answers of the gate": (
        "hand_over_is_idempotent",
        Sight(ADVANCED, movements=(Movement.FORWARD,) * 2),
    ),
    "the work item moved 0 times for 1 answers of the gate": (
        "hand_over_is_idempotent",
        Sight(ADVANCED, movements=()),
    ),
    "it wrote artifacts that differ": (
        "hand_over_is_idempotent",
        Sight(ADVANCED, written=(TEXT, TEXT + "\n")),
    ),
    "a launch went to the LLM path while the attempt was RUNNING": (
        "one_producer_per_launch",
        Sight(RUNNING, declined_in=(None, State.RUNNING)),
    ),
    "a launch went to the LLM path while the attempt was DEFERRED": (
        "one_producer_per_launch",
        Sight(DEFERRED, declined_in=(State.DEFERRED, None)),
    ),
    "run 1 is alive beside the LLM agent": (
        "one_producer_per_launch",
        Sight(attempt("T01 T05 T07 T10", BROKEN), live_runs=(1,)),
    ),
    "run 1 is alive beside the LLM": (
        "one_producer_per_launch",
        Sight(attempt("T01 T05 T07 T10", BROKEN), live_runs=(1, 2)),
    ),
    "a suite was started for a job that the runner never": (
        "one_producer_per_launch",
        Sight(attempt("T15", plan=None), starts=(Start(1, 0, older_artifact=False),)),
    ),
    "a suite was started for a job that the runner never took": (
        "one_producer_per_launch",
        Sight(attempt("T02", plan=None), starts=(Start(1, 1, older_artifact=False),)),
    ),
    'foreign metadata was {"a":1} and is {"a":2}': (
        "foreign_metadata_is_untouched",
        Sight(RUNNING, foreign_before='{"a":1}', foreign_after='{"a":2}'),
    ),
    "a launch raised OSError()": (
        "intercept_never_raises",
        Sight(RUNNING, raised=("OSError()",)),
    ),
    "it fell back to the LLM path after run 1 ended for exit_code": (
        "fallback_only_before_the_first_run_or_by_kill_switch",
        Sight(attempt("T01 T05 T07 T10", FAILED)),
    ),
    "it fell back to the LLM path after run 1 ended for None": (
        "fallback_only_before_the_first_run_or_by_kill_switch",
        Sight(attempt("T01 T05 T07 T10", OPEN)),
    ),
    "it fell back to the LLM path after run 1 ended for tests_failed": (
        "fallback_only_before_the_first_run_or_by_kill_switch",
        Sight(
            attempt(
                "T01 T05 T07 T09 T05 T07 T10",
                *(attrs.evolve(FAILED, reason=Reason.TESTS_FAILED), BROKEN),
            )
        ),
    ),
    "nobody had switched it off": (
        "fallback_only_before_the_first_run_or_by_kill_switch",
        Sight(attempt("T01 T05 T07 T10", BROKEN), switched_off=False),
    ),
    "the host had one job and has two jobs": (
        "shadow_touches_nothing",
        Sight(ADVANCED, shadow_before="one job", shadow_after="two jobs"),
    ),
}


@pytest.mark.parametrize("state", [None, *State])
def test_agent_is_started_for_no_attempt_but_one_that_fell_back(state: State | None) -> None:
    """A launch that goes to the LLM while an attempt is in any other state breaks a promise."""
    sight = Sight(attempt("T02", plan=None), declined_in=(state,))
    sound = state in (None, State.LLM_FALLBACK)

    assert violations(sight) == (
        []
        if sound
        else [
            f"one_producer_per_launch: a launch went to the LLM path while the attempt was {state}"
        ]
    )


@pytest.mark.parametrize("name", SOUND)
def test_no_invariant_speaks_of_a_sound_attempt(name: str) -> None:
    """An attempt that kept every promise is passed over in silence."""
    assert violations(SOUND[name]) == []


@pytest.mark.parametrize("name", SOUND)
def test_every_invariant_does_with_the_snapshot_alone(name: str) -> None:
    """Where nobody looked beside the snapshot, every invariant still answers."""
    assert violations(Sight(SOUND[name].snapshot)) == []


@pytest.mark.parametrize("sentence", BREACHES)
def test_broken_promise_is_named_and_told(sentence: str) -> None:
    """A broken promise is told in a sentence that says what was seen, under its own name."""
    name, sight = BREACHES[sentence]

    told = [line for line in violations(sight) if line.startswith(f"{name}: ")]

    assert any(sentence in line for line in told)


HEADER = """\
Each kind of broken promise, and every sentence in which it is told.
`pytest --rewrite` writes this file afresh. Commit that only if a promise was meant to be
asked otherwise, or to be told in other words: an auditor reads these.
"""


def test_broken_promises_are_told_in_the_agreed_words(golden: Golden) -> None:
    """All that is told of an attempt that broke a promise is what was agreed on, to the letter."""
    told = [line for _, sight in BREACHES.values() for line in ["", *violations(sight)]]

    golden("breaches.txt", "\n".join(told[1:]) + "\n", HEADER)


@pytest.mark.parametrize("other", [f"{TEXT}{number}" for number in range(8)])
def test_gate_that_read_anything_else_is_told(other: str) -> None:
    """Whatever the gate read in the place of this attempt's artifact is a broken promise."""
    told = violations(Sight(ADVANCED, gate_text=other))

    assert [line.partition(":")[0] for line in told] == ["no_silent_advance"]


@pytest.mark.parametrize("revision", [*map(str, range(8))])
def test_plan_that_was_exchanged_breaks_the_trail(revision: str) -> None:
    """Whatever a stored plan was changed to, the move that bound it is found."""
    altered = attrs.evolve(RUNNING, plan=attrs.evolve(PLAN, revision=revision))

    told = violations(Sight(altered))

    assert [line.partition(":")[0] for line in told] == ["trail_is_unbroken"]


@pytest.mark.parametrize("answered", [ADVANCED, FAILED_CLOSED], ids=["opened", "refused"])
def test_gate_that_was_asked_too_early_is_told(answered: Snapshot) -> None:
    """A gate that was asked while runs were left is a broken promise, whatever its answer."""
    early = attrs.evolve(DEFERRED, history=(*DEFERRED.history, answered.history[-1]))

    told = violations(Sight(early))

    assert (
        "tool_error_is_nobodys_fault: the gate was asked without a verdict and with budget left"
        in told
    )


def test_every_invariant_can_be_broken() -> None:
    """No invariant is there for show: for each there is an attempt of which it speaks."""
    assert {name for name, _ in BREACHES.values()} == {f.__name__ for f in INVARIANTS}


@pytest.mark.parametrize("invariant", INVARIANTS, ids=lambda function: function.__name__)
def test_every_invariant_is_a_promise_in_one_sentence(invariant: Any) -> None:
    """The docstring of an invariant is its promise, one sentence long."""
    assert invariant.__doc__.count("\n") == 0
    assert invariant.__doc__.endswith(".")

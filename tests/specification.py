"""`docs/specification.md`: each invariant, and what holds it. Generated; run `pytest --rewrite`."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

import attrs

from sources import ROOT, TESTS, functions
from staging_fsm.core.invariants import INVARIANTS
from staging_fsm.core.spec import RUN_ENDS, TRANSITIONS, Effect, Event, State, Transition
from staging_fsm.faces.diagrams.spin import LIVENESS, PROPERTIES

DOCUMENT: Final = ROOT / "docs" / "specification.md"
MODEL: Final = ROOT / "diagrams" / "staging.pml"
STORIES: Final = TESTS / "golden" / "stories"

#: A property that no bug can break is no property.
SEEDED: Final = "test_seeded_bug_leaves_a_trail"

INTRODUCTION: Final = """# Specification

What staging_fsm promises, and what holds each promise.
An invariant is one function of `core/invariants.py`; its sentence is that function's.
The simulation and the fault tests check every one of them after every step.
The model is `diagrams/staging.pml`, checked by SPIN.
A transcript is a file of `tests/golden/stories`.
This page is generated, and a test compares it with what stands in the code.
"""


@attrs.frozen
class Holds:
    """What holds an invariant: tests, properties of the model, transcripts, and rows involved."""

    tests: tuple[str, ...]
    stories: tuple[str, ...]
    rows: Callable[[Transition], bool]
    model: tuple[str, ...] = ()


def _enters(*states: State) -> Callable[[Transition], bool]:
    return lambda row: row.target in states


def _on(*events: Event) -> Callable[[Transition], bool]:
    return lambda row: row.event in events


def _owes(*effects: Effect) -> Callable[[Transition], bool]:
    return lambda row: row.effect in effects


def _every(_row: Transition) -> bool:
    return True


HELD_BY: Final[Mapping[str, Holds]] = MappingProxyType(
    {
        "no_silent_advance": Holds(
            tests=(
                "test_advanced_is_entered_by_one_row_after_a_passed_suite",
                "test_without_a_passed_suite_nothing_advances",
                "test_without_a_new_run_nothing_advances",
                "test_no_order_of_events_advances_silently",
                "test_pass_shows_everything",
                "test_stopped_suite_never_passes",
                "test_gate_reads_what_was_judged",
                "test_gate_stays_shut_for_anything_else",
                "test_forged_output_and_artifact_change_nothing",
            ),
            model=("no_silent_advance",),
            stories=("tc_01_passed_suite_advances", "gate_that_contradicts_the_verdict"),
            rows=_enters(State.VERDICT_PASSED, State.ADVANCED),
        ),
        "tool_error_is_nobodys_fault": Holds(
            tests=(
                "test_tool_error_is_nobodys_fault",
                "test_tool_errors_are_retried_within_the_budget",
                "test_exhausted_attempt_says_infrastructure",
            ),
            stories=("tc_03_tool_error_is_deferred", "tc_04_exhaustion_fails_closed"),
            rows=_enters(State.TOOL_ERROR, State.DEFERRED, State.EXHAUSTED, State.FAILED_CLOSED),
        ),
        "budget_is_total": Holds(
            tests=(
                "test_every_ring_of_the_graph_costs_a_run",
                "test_runs_beyond_the_budget_are_refused",
                "test_worker_killed_at_any_boundary_loses_nothing",
            ),
            model=("budget_is_total",),
            stories=("tc_04_exhaustion_fails_closed", "tc_09_missing_command_is_not_retried"),
            rows=_on(Event.JOB_CLAIMED, Event.BUDGET_LEFT, Event.BUDGET_SPENT),
        ),
        "terminal_is_forever": Holds(
            tests=("test_terminal_is_forever", "test_row_that_leaves_a_terminal_state_is_named"),
            model=("terminal_is_forever",),
            stories=("tc_13_second_delivery_changes_nothing",),
            rows=_enters(
                State.ADVANCED,
                State.ROLLED_BACK,
                State.FAILED_CLOSED,
                State.LLM_FALLBACK,
                State.CANCELLED,
            ),
        ),
        "history_is_a_path": Holds(
            tests=(
                "test_history_is_a_path_or_refused",
                "test_every_cell_is_a_row_or_a_refusal",
                "test_damaged_row_is_shown_and_never_touched",
            ),
            stories=("crash_while_the_suite_ran",),
            rows=_every,
        ),
        "trail_is_unbroken": Holds(
            tests=(
                "test_every_altered_field_is_found",
                "test_every_altered_order_is_found",
                "test_what_no_move_stored_is_found",
            ),
            stories=("tc_04_exhaustion_fails_closed",),
            rows=_every,
        ),
        "one_live_run_per_job": Holds(
            tests=(
                "test_of_two_first_saves_one_wins",
                "test_two_workers_that_recover_at_once_advance_once",
            ),
            model=("one_live_run_per_job",),
            stories=("crash_while_the_suite_ran", "crash_with_the_supervisor"),
            rows=_owes(Effect.RUN_SUITE, Effect.AWAIT_RUN),
        ),
        "no_process_outlives_its_run": Holds(
            tests=(
                "test_worker_killed_at_random_moments_loses_nothing",
                "test_machine_that_loses_worker_and_supervisor_counts_the_run",
            ),
            model=("no_process_outlives_its_run",),
            stories=("crash_with_the_supervisor", "tc_12_a_running_suite_can_be_cancelled"),
            rows=_on(*RUN_ENDS, Event.CANCEL_REQUESTED),
        ),
        "stale_artifact_is_never_read": Holds(
            tests=("test_agent_that_writes_nothing_is_not_judged_by_an_older_artifact",),
            model=("stale_artifact_is_never_read",),
            stories=("tc_10_stale_and_forged_artifacts_are_not_read",),
            rows=_owes(Effect.RUN_SUITE, Effect.HAND_OVER),
        ),
        "hand_over_is_idempotent": Holds(
            tests=(
                "test_gate_of_a_job_is_initiated_once",
                "test_artifact_is_the_same_each_time",
                "test_transaction_that_raises_leaves_nothing_behind",
            ),
            model=("work_item_moves_once",),
            stories=("crash_before_the_artifact", "gate_that_contradicts_the_verdict"),
            rows=_owes(Effect.HAND_OVER),
        ),
        "one_producer_per_launch": Holds(
            tests=(
                "test_judged_attempt_never_goes_to_the_llm",
                "test_spawn_is_the_only_transport",
                "test_spawn_is_called_by_launch_job_alone",
            ),
            model=("one_producer_per_launch",),
            stories=("tc_06_kill_switch_off_is_the_llm_path", "tc_11_kill_switch_between_two_runs"),
            rows=_owes(Effect.RUN_SUITE, Effect.SPAWN_AGENT),
        ),
        "foreign_metadata_is_untouched": Holds(
            tests=(
                "test_foreign_metadata_stays_as_it_is",
                "test_key_that_the_host_wrote_meanwhile_survives",
                "test_first_attempt_never_overwrites_damaged_metadata",
            ),
            stories=("tc_07_out_of_scope_is_the_llm_path",),
            rows=_every,
        ),
        "intercept_never_raises": Holds(
            tests=(
                "test_launch_gives_an_answer_whatever_breaks",
                "test_launch_gives_an_answer_when_everything_breaks",
                "test_row_that_cannot_be_read_is_held_unless_nothing_can_be_in_it",
            ),
            stories=(
                "tc_08_error_before_the_first_run_falls_back",
                "tc_08_invalid_configuration_falls_back",
                "tc_13_configuration_broken_between_two_runs",
            ),
            rows=_on(Event.RUNNER_DECLINED, Event.SUITE_NOT_EXECUTED),
        ),
        "fallback_only_before_the_first_run_or_by_kill_switch": Holds(
            tests=(
                "test_judged_attempt_never_goes_to_the_llm",
                "test_attempt_under_way_never_goes_to_the_llm",
                "test_kill_switch_between_two_runs_leads_to_the_llm",
            ),
            model=("one_producer_per_launch",),
            stories=(
                "tc_08_error_before_the_first_run_falls_back",
                "tc_11_kill_switch_between_two_runs",
                "tc_13_configuration_broken_between_two_runs",
            ),
            rows=_enters(State.LLM_FALLBACK),
        ),
        "shadow_touches_nothing": Holds(
            tests=(
                "test_shadow_touches_nothing",
                "test_agent_is_the_producer_in_shadow_mode",
                "test_launch_does_not_notice_a_broken_shadow",
                "test_kill_switch_wins_over_the_shadow",
                "test_suite_that_needs_the_checkout_is_not_run_beside_the_agent",
            ),
            stories=("shadow_mode_only_records",),
            rows=_every,
        ),
    }
)


@functools.cache
def test_functions() -> Mapping[str, str]:
    """Return the file of every test function."""
    return {
        node.name: path.name
        for path in sorted(TESTS.glob("test_*.py"))
        for node in functions(path)
        if node.name.startswith("test_")
    }


test_functions.__test__ = False  # type: ignore[attr-defined]  # a lister of tests, not one


def specification() -> str:
    """Return the whole document."""
    sections = [part for name in HELD_BY for part in _section(name)]
    return "\n".join([INTRODUCTION, *sections, *_properties_of_the_model()])


def _section(name: str) -> Iterator[str]:
    invariant = next(function for function in INVARIANTS if function.__name__ == name)
    holds, homes = HELD_BY[name], test_functions()
    rows = ", ".join(row.id for row in TRANSITIONS if holds.rows(row))
    yield f"\n## {name}\n"
    yield f"{inspect.getdoc(invariant)}\n"
    yield f"- transitions: {rows}"
    if holds.model:
        yield f"- model: {', '.join(f'`{item}`' for item in holds.model)}"
    yield from (f"- transcript: `{story}`" for story in holds.stories)
    yield from (f"- test: `{homes.get(test, '?')}::{test}`" for test in holds.tests)


def _properties_of_the_model() -> Iterator[str]:
    """Yield what only the model holds, because it is about every order of events at once."""
    homes = test_functions()
    safety = {name: text for name, text in PROPERTIES.items() if name not in HELD_BY}
    yield from _property(safety, "test_no_interleaving_breaks_a_property", homes)
    liveness = {LIVENESS: "Whatever happens, an attempt comes to an end, and its job with it."}
    yield from _property(liveness, "test_every_attempt_ends", homes)


def _property(sentences: Mapping[str, str], test: str, homes: Mapping[str, str]) -> Iterator[str]:
    for name, sentence in sentences.items():
        yield f"\n## {name}\n"
        yield f"{sentence}\n"
        yield f"- model: `{name}`"
        yield from (f"- test: `{homes[held]}::{held}`" for held in (test, SEEDED))

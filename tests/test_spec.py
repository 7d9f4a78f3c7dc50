"""The table: every cell of it, every way in which it may be wrong, and what its graph proves."""

import runpy
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from columns import aligned
from conftest import Golden
from staging_fsm.core import machine, spec
from staging_fsm.core.errors import TransitionRefusedError
from staging_fsm.core.machine import MACHINE, _Position, allowed_events, step
from staging_fsm.core.snapshot import Move, replay
from staging_fsm.core.spec import (
    ENDED_BY_GATE,
    GATE_EVENTS,
    INITIAL,
    INTERRUPTIONS,
    RUN_ENDS,
    TERMINAL,
    TRANSITIONS,
    Effect,
    Event,
    State,
    Transition,
    check_table,
    reachable,
)

TABLE_HEADER = """\
The table. Whoever changes a row changes what every stored history means.
`pytest --rewrite` writes this file afresh. Commit that only if the row that changed
was meant to change, its id was never given to another row, and the specification,
the diagrams and the model were read again with the new row in mind.
"""
Rows = tuple[Transition, ...]
ROWS = {(row.source, row.event): row for row in TRANSITIONS}
USUAL = tuple(row for row in TRANSITIONS if row.event not in INTERRUPTIONS)
#: Where the gate has yet to answer: a verdict, or the lack of one, is final.
HANDED_OVER = {row.source for row in TRANSITIONS if row.event in GATE_EVENTS}

each_row = pytest.mark.parametrize("row", TRANSITIONS, ids=lambda row: row.id)
each_state = pytest.mark.parametrize("state", State)
each_pair = pytest.mark.parametrize(
    ("first", "second"), list(combinations(TRANSITIONS, 2)), ids=lambda row: row.id
)
each_event = pytest.mark.parametrize("event", Event)


def without(rows: Rows, *gone: Transition) -> Rows:
    """Return `rows` less those that are `gone`."""
    return tuple(row for row in rows if row not in gone)


def replaced(row: Transition, new: Transition) -> Rows:
    """Return the table with `new` in the place of `row`."""
    return tuple(new if each is row else each for each in TRANSITIONS)


def successors(rows: Rows) -> dict[State, set[State]]:
    """Return what can come after each state, by Warshall's algorithm and not by `reachable`."""
    after = {state: {row.target for row in rows if row.source is state} for state in State}
    for middle in State:
        for state in State:
            if middle in after[state]:
                after[state] |= after[middle]
    return after


def test_table_is_the_golden_table(golden: Golden) -> None:
    """The rows, the first state, and the sets of states and events are the agreed ones."""
    rows = aligned(
        [
            ("id", "source", "event", "target", "effect"),
            *((row.id, row.source, row.event, row.target, row.effect) for row in TRANSITIONS),
        ]
    )
    sets = aligned(
        [
            ("initial", INITIAL),
            ("terminal", ", ".join(sorted(TERMINAL))),
            ("interruptions", ", ".join(sorted(INTERRUPTIONS))),
            ("gate events", ", ".join(sorted(GATE_EVENTS))),
            ("run ends", ", ".join(sorted(RUN_ENDS))),
        ]
    )

    golden("table.txt", f"{rows}\n{sets}", TABLE_HEADER)


@each_event
@each_state
def test_every_cell_is_a_row_or_a_refusal(state: State, event: Event) -> None:
    """An event is answered by its row; without one it is refused by name, and nothing moves."""
    row = ROWS.get((state, event))
    if row is not None:
        assert step(state, event) is row
        return
    allowed = tuple(row.event for row in TRANSITIONS if row.source is state)
    options = ", ".join(allowed) if allowed else "nothing, the attempt has ended"

    with pytest.raises(TransitionRefusedError) as refused:
        step(state, event)

    assert (refused.value.state, refused.value.event) == (state, event)
    assert refused.value.allowed == allowed == allowed_events(state)
    assert str(refused.value) == f"{event} is not allowed in {state}; allowed is {options}"
    assert refused.value.__suppress_context__


@each_event
@each_state
def test_machine_moves_along_rows_only(state: State, event: Event) -> None:
    """What the machine moves ends where the row says, or stays where it was."""
    position = _Position(state)
    row = ROWS.get((state, event))
    if row is not None:
        MACHINE.events[event.value].trigger(position)
    else:
        with pytest.raises(Exception, match=event.value):
            MACHINE.events[event.value].trigger(position)

    assert position.state == (row.target if row is not None else state).value


@each_state
def test_machine_has_the_triggers_of_the_table(state: State) -> None:
    """The machine knows no trigger, such as a jump to any state, that is not in the table."""
    of_the_table = [row.event.value for row in TRANSITIONS if row.source is state]

    assert sorted(MACHINE.get_triggers(state.value)) == sorted(of_the_table)


def test_machine_is_the_table() -> None:
    """The machine holds the table's states, events and first state, and no attempt."""
    assert set(MACHINE.states) == {state.value for state in State}
    assert set(MACHINE.events) == {event.value for event in Event}
    assert MACHINE.initial == INITIAL.value
    assert MACHINE.models == []
    assert not MACHINE.has_queue


@pytest.mark.parametrize(
    "other",
    [row for row in TRANSITIONS if row.target is not ROWS[INITIAL, Event.JOB_CLAIMED].target],
    ids=lambda row: row.id,
)
def test_machine_and_table_that_disagree_make_no_step(
    other: Transition, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that does not say where the machine went is no answer."""
    monkeypatch.setitem(machine._ROWS, (INITIAL, Event.JOB_CLAIMED), other)

    with pytest.raises(AssertionError, match=r"^machine and table disagree"):
        step(INITIAL, Event.JOB_CLAIMED)


def test_steps_that_meet_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that another thread takes in the middle of ours changes nothing of ours."""
    opened = MACHINE.events[Event.GATE_OPENED.value]
    trigger = opened.trigger

    def overtaken(position: _Position) -> None:
        step(INITIAL, Event.JOB_CLAIMED)
        trigger(position)

    monkeypatch.setattr(opened, "trigger", overtaken)
    row = ROWS[State.VERDICT_PASSED, Event.GATE_OPENED]

    assert step(row.source, row.event) is row


@each_row
def test_row_cannot_be_changed(row: Transition) -> None:
    """Nobody can change a row once the table has been checked, nor put another in its place."""
    for field in attrs.fields(Transition):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(row, field.name, getattr(row, field.name))
    assert type(TRANSITIONS) is tuple


def test_nothing_that_is_moved_shadows_an_event() -> None:
    """What the machine moves has no attribute of an event's name, which would disable the event."""
    assert not set(dir(_Position(INITIAL))) & {event.value for event in Event}


def test_names_are_values() -> None:
    """A state, event or effect is stored, logged and drawn under its own name."""
    for vocabulary in (State, Event, Effect):
        assert [member.value for member in vocabulary] == [member.name for member in vocabulary]


def test_table_is_sound() -> None:
    """Nothing is wrong with the table."""
    assert check_table(TRANSITIONS) == []


@each_pair
def test_two_rows_with_one_id_are_named(first: Transition, second: Transition) -> None:
    """An id that is given to two rows is named."""
    broken = replaced(second, attrs.evolve(second, id=first.id))

    assert check_table(broken) == [f"{first.id} names more than one row."]


@each_pair
def test_two_answers_to_one_event_are_named(first: Transition, second: Transition) -> None:
    """Two rows that answer the same event in the same state are both named."""
    broken = replaced(second, attrs.evolve(second, source=first.source, event=first.event))

    assert (
        f"{first.id} and {second.id} both answer {first.event} in {first.source}."
        in check_table(broken)
    )


@pytest.mark.parametrize("terminal", sorted(TERMINAL))
@each_row
def test_row_that_leaves_a_terminal_state_is_named(row: Transition, terminal: State) -> None:
    """A row that leaves a terminal state is named."""
    broken = replaced(row, attrs.evolve(row, source=terminal))

    assert f"{row.id} leaves {terminal}, which is terminal." in check_table(broken)


@pytest.mark.parametrize("state", [state for state in State if state is not INITIAL])
def test_state_that_only_an_interruption_enters_is_named(state: State) -> None:
    """A state that nothing, or nothing but a crash or a cancellation, leads to is named."""
    cancelled = state is State.CANCELLED
    kept = tuple(
        row
        for row in TRANSITIONS
        if row.target is not state or (row.event in INTERRUPTIONS and not cancelled)
    )
    how = "" if cancelled else " without a crash or a cancellation"

    assert f"{state} cannot be reached from {INITIAL}{how}." in check_table(kept)


def test_cancellation_of_what_nobody_reaches_is_no_way_to_cancel() -> None:
    """CANCELLED is reached by a path from the beginning: a row into it alone is not enough."""
    lost = (State.CANCELLED, State.DEFERRED)
    kept = tuple(row for row in TRANSITIONS if row.target not in lost)
    cancelled = next(
        row for row in TRANSITIONS if row.source is State.DEFERRED and row.target is State.CANCELLED
    )
    problem = f"{State.CANCELLED} cannot be reached from {INITIAL}."

    assert problem in check_table((*kept, cancelled))


@pytest.mark.parametrize("interruption", sorted(INTERRUPTIONS))
@pytest.mark.parametrize("state", [state for state in State if state not in TERMINAL])
def test_trap_hidden_by_an_interruption_is_named(state: State, interruption: Event) -> None:
    """A state that only a crash or a cancellation leaves is a trap, and is named."""
    kept = tuple(row for row in TRANSITIONS if row.source is not state)
    way_out = Transition("T99", state, interruption, State.CANCELLED, Effect.REAP_RUN)
    problem = f"{state} has no path to a terminal state but by a crash or a cancellation."

    assert problem in check_table(kept)
    assert problem in check_table((*kept, way_out))


def test_states_that_only_lead_to_each_other_are_named() -> None:
    """A ring of states without a way out is a trap, and each state in it is named."""
    ring = tuple(row for row in TRANSITIONS if row.target not in TERMINAL)

    named = [problem for problem in check_table(ring) if "has no path" in problem]

    assert len(named) == len(State) - len(TERMINAL)


@each_event
def test_event_in_no_row_is_named(event: Event) -> None:
    """An event that no row answers is named."""
    kept = tuple(row for row in TRANSITIONS if row.event is not event)

    assert f"Event {event} stands in no row." in check_table(kept)


@pytest.mark.parametrize("effect", Effect)
def test_effect_in_no_row_is_named(effect: Effect) -> None:
    """An effect that no row owes is named, and nothing else is wrong with such a table."""
    other = next(each for each in Effect if each is not effect)
    broken = tuple(
        attrs.evolve(row, effect=other) if row.effect is effect else row for row in TRANSITIONS
    )

    assert check_table(broken) == [f"Effect {effect} stands in no row."]


def single_changes(row: Transition) -> Iterator[Transition]:
    """Yield every row that differs from `row` in its source, event or target."""
    for state in State:
        yield attrs.evolve(row, source=state)
        yield attrs.evolve(row, target=state)
    for event in Event:
        yield attrs.evolve(row, event=event)


@each_row
def test_row_that_breaks_the_central_promise_is_named(row: Transition) -> None:
    """Any other way into ADVANCED, into VERDICT_PASSED or back to the LLM agent is named."""
    promises = {
        State.ADVANCED: (
            {(State.VERDICT_PASSED, Event.GATE_OPENED)},
            "enters ADVANCED without a passed verdict.",
        ),
        State.VERDICT_PASSED: (
            {(State.RUNNING, Event.SUITE_PASSED)},
            "enters VERDICT_PASSED without a suite that passed.",
        ),
        State.LLM_FALLBACK: (
            {(source, event) for source in (State.PENDING, State.DEFERRED) for event in Event},
            "goes back to the LLM agent after a run was judged.",
        ),
    }
    for new in single_changes(row):
        problems = check_table(replaced(row, new))
        for target, (ways, words) in promises.items():
            broken = new.target is target and (new.source, new.event) not in ways

            assert (f"{row.id} {words}" in problems) is broken


@each_row
def test_deleted_row_is_named_or_leaves_a_sound_table(row: Transition) -> None:
    """Without a row, everything that depended on it alone is named, and nothing else is."""
    rest = without(TRANSITIONS, row)
    usual = without(USUAL, row)
    after, usually_after = successors(rest), successors(usual)
    expected = [
        f"{state} cannot be reached from {INITIAL} without a crash or a cancellation."
        for state in State
        if state not in usually_after[INITIAL] | {INITIAL, State.CANCELLED}
    ]
    if State.CANCELLED not in after[INITIAL]:
        expected.append(f"{State.CANCELLED} cannot be reached from {INITIAL}.")
    expected += [
        f"{state} has no path to a terminal state but by a crash or a cancellation."
        for state in State
        if state not in TERMINAL and not usually_after[state] & TERMINAL
    ]
    if all(each.event is not row.event for each in rest):
        expected.append(f"Event {row.event} stands in no row.")
    if all(each.effect is not row.effect for each in rest):
        expected.append(f"Effect {row.effect} stands in no row.")

    assert check_table(rest) == expected


def test_wrong_table_cannot_be_imported(tmp_path: Path) -> None:
    """A table with a problem stops the import, and the error says every problem."""
    text = Path(spec.__file__).read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    broken = tmp_path / "spec.py"
    gone = ('T("T13"', 'T("T14"')
    broken.write_text("".join(line for line in lines if not line.strip().startswith(gone)))
    rest = tuple(row for row in TRANSITIONS if row.id not in ("T13", "T14"))

    with pytest.raises(ImportError) as refused:
        runpy.run_path(str(broken))

    assert str(refused.value) == f"The transition table is wrong: {' '.join(check_table(rest))}"


@each_row
def test_two_routes_find_the_same_paths(row: Transition) -> None:
    """`reachable` agrees with another algorithm, on the table and on the table less any row."""
    for rows in (TRANSITIONS, without(TRANSITIONS, row)):
        after = successors(rows)
        for state in State:
            assert reachable(rows, state) == after[state] | {state}


def test_advanced_is_entered_by_one_row_after_a_passed_suite() -> None:
    """One row enters ADVANCED; one enters the state that it leaves, and that is SUITE_PASSED."""
    (last,) = (row for row in TRANSITIONS if row.target is State.ADVANCED)
    (verdict,) = (row for row in TRANSITIONS if row.target is last.source)

    assert last.event is Event.GATE_OPENED
    assert (verdict.source, verdict.event) == (State.RUNNING, Event.SUITE_PASSED)


def test_without_a_passed_suite_nothing_advances() -> None:
    """With SUITE_PASSED cut out of the graph, no state that came before it reaches ADVANCED."""
    assert State.ADVANCED in successors(TRANSITIONS)[INITIAL]

    cut = tuple(row for row in TRANSITIONS if row.event is not Event.SUITE_PASSED)
    able = {state for state, after in successors(cut).items() if State.ADVANCED in after}

    assert able == {State.VERDICT_PASSED}


@pytest.mark.parametrize("state", [State.TOOL_ERROR, State.DEFERRED, State.PENDING])
def test_without_a_new_run_nothing_advances(state: State) -> None:
    """From a tool error, a deferral or the start, every path to ADVANCED goes through RUNNING."""
    assert State.ADVANCED in successors(TRANSITIONS)[state]

    cut = tuple(row for row in TRANSITIONS if row.target is not State.RUNNING)

    assert State.ADVANCED not in successors(cut)[state]


@pytest.mark.parametrize("state", [State.VERDICT_FAILED, State.EXHAUSTED, *sorted(TERMINAL)])
def test_what_was_refused_stays_refused(state: State) -> None:
    """From a failed verdict, a spent budget or an end, nothing leads to ADVANCED."""
    assert State.ADVANCED not in successors(TRANSITIONS)[state]


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_terminal_is_forever(state: State) -> None:
    """Nothing leaves a terminal state."""
    assert successors(TRANSITIONS)[state] == set()


def test_gate_ends_whatever_nobody_cancelled_and_no_agent_was_given() -> None:
    """Each end of an attempt is its gate's, but for a cancellation and a launch of the agent."""
    assert TERMINAL - {State.CANCELLED, State.LLM_FALLBACK} == ENDED_BY_GATE


@pytest.mark.parametrize("state", [*sorted(HANDED_OVER), *sorted(TERMINAL)])
def test_judged_attempt_never_goes_to_the_llm(state: State) -> None:
    """Once there is a verdict or a spent budget, no path leads to the LLM agent."""
    assert State.LLM_FALLBACK not in successors(TRANSITIONS)[state]


def test_tool_error_is_nobodys_fault() -> None:
    """Without a new run, a tool error ends in no rollback, which costs a developer retry."""
    cut = tuple(row for row in TRANSITIONS if row.target is not State.RUNNING)
    ends = successors(cut)[State.TOOL_ERROR] & TERMINAL

    assert ends == {State.FAILED_CLOSED, State.LLM_FALLBACK, State.CANCELLED}


def test_every_ring_of_the_graph_costs_a_run() -> None:
    """No attempt moves for ever on one run: each ring but an adoption holds a JOB_CLAIMED."""
    free = (Event.JOB_CLAIMED, Event.RUN_ADOPTED)
    cut = tuple(row for row in TRANSITIONS if row.event not in free)

    assert [state for state, after in successors(cut).items() if state in after] == []


def test_effects_are_owed_where_their_events_are_allowed() -> None:
    """Each state is entered owing the effect that brings the event which leaves it."""
    owed: dict[State, set[Effect]] = {state: set() for state in State}
    for row in TRANSITIONS:
        owed[row.target].add(row.effect)
    handing = {state for state, effects in owed.items() if Effect.HAND_OVER in effects}
    asking = {state for state, effects in owed.items() if Effect.SPEND_BUDGET in effects}

    assert handing == HANDED_OVER
    assert asking == {row.source for row in TRANSITIONS if row.event is Event.BUDGET_SPENT}
    assert all(len(effects) == 1 for state, effects in owed.items() if state in handing | asking)


@each_row
def test_run_is_started_by_a_claim_and_only_by_a_claim(row: Transition) -> None:
    """A row starts the suite exactly if it is JOB_CLAIMED, and spawns the agent if it declines."""
    assert (row.effect is Effect.RUN_SUITE) is (row.event is Event.JOB_CLAIMED)
    assert (row.effect is Effect.SPAWN_AGENT) is (row.event is Event.RUNNER_DECLINED)
    assert (row.effect is Effect.AWAIT_RUN) is (row.event is Event.RUN_ADOPTED)
    assert (row.effect is Effect.REAP_RUN) is (row.event is Event.CANCEL_REQUESTED)


@given(st.lists(st.sampled_from(Event), max_size=40))
def test_no_order_of_events_advances_silently(events: list[Event]) -> None:
    """Whatever events come in whatever order, ADVANCED has SUITE_PASSED in its last run."""
    state, walked = INITIAL, []
    for event in events:
        try:
            row = step(state, event)
        except TransitionRefusedError:
            continue
        walked.append(row)
        state = row.target
    history = [row.event for row in walked]

    assert replay(tuple(Move(row.id, "", "", "", "") for row in walked)) is state
    if state is State.ADVANCED:
        assert history[-2:] == [Event.SUITE_PASSED, Event.GATE_OPENED]
        assert history[-3] in (Event.JOB_CLAIMED, Event.RUN_ADOPTED)

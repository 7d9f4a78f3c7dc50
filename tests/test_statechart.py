"""The SCXML document: valid by the W3C's schema, and walked alike by an interpreter of others."""

import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
from defusedxml.ElementTree import fromstring
from statemachine import StateChart
from statemachine.io import load
from xmlschema import XMLSchema

from conftest import GOLDEN
from staging_fsm.core.errors import TransitionRefusedError
from staging_fsm.core.machine import step
from staging_fsm.core.spec import INITIAL, TERMINAL, TRANSITIONS, Event, State
from staging_fsm.faces.diagrams import Diagram, scxml
from staging_fsm.faces.diagrams.statechart import SCXML, TABLE

SCHEMA: Final = Path(__file__).parent / "w3c" / "scxml.xsd"
STORIES: Final = sorted((GOLDEN / "stories").glob("*.txt"))
DOCUMENT: Final = scxml(Diagram())


@cache
def schema() -> XMLSchema:
    """Return the W3C's schema."""
    return XMLSchema(SCHEMA)


@cache
def chart() -> type[StateChart[Any]]:
    """Return the document as python-statemachine reads it."""
    return load(DOCUMENT, format="scxml")


def walked_by_others(events: list[Event]) -> Iterator[State]:
    """Yield where python-statemachine stands at first and after each event."""
    machine = chart()()
    yield state_of(machine)
    for event in events:
        if not machine.is_terminated:
            machine.send(event)
        yield state_of(machine)


def state_of(machine: StateChart[Any]) -> State:
    """Return the one state of ours in which the machine is."""
    (state,) = {*machine.configuration_values} & {*State}
    return State(state)


def walked_by_us(events: list[Event]) -> Iterator[State]:
    """Yield where the table stands at first and after each event; a refused one moves nothing."""
    state = INITIAL
    yield state
    for event in events:
        with suppress(TransitionRefusedError):
            state = step(state, event).target
        yield state


def way_to(state: State) -> list[Event]:
    """Return the events of a shortest path to a state."""
    ways: dict[State, list[Event]] = {INITIAL: []}
    while state not in ways:
        ways = {
            row.target: [*ways[row.source], row.event] for row in TRANSITIONS if row.source in ways
        } | ways
    return ways[state]


def test_document_is_valid() -> None:
    """The document is valid against the XML Schema of SCXML 1.0."""
    schema().validate(DOCUMENT)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('version="1.0" name', "name"),
        ('id="DEFERRED"', 'id="RUNNING"'),
        ('event="JOB_CLAIMED"', 'event="JOB CLAIMED!"'),
        ("<final ", "<end "),
    ],
)
def test_schema_sees_what_is_wrong(right: str, wrong: str) -> None:
    """The schema is one that can say no: a slip in the document is invalid."""
    assert right in DOCUMENT
    assert not schema().is_valid(DOCUMENT.replace(right, wrong, 1))


def test_transitions_are_the_rows() -> None:
    """The document has exactly the table's rows, with their ids and effects."""
    root = fromstring(DOCUMENT)
    found = [
        (edge.get(f"{{{TABLE}}}id"), state.get("id"), edge.get("event"), edge.get("target"),
         edge.get(f"{{{TABLE}}}effect"))
        for state in root.iter(f"{{{SCXML}}}state")
        for edge in state.findall(f"{{{SCXML}}}transition")
    ]  # fmt: skip
    rows = [(row.id, row.source, row.event, row.target, row.effect) for row in TRANSITIONS]

    assert sorted(map(str, found)) == sorted(str(tuple(map(str, row))) for row in rows)
    assert {state.get("id") for state in root.findall(f"{{{SCXML}}}final")} == TERMINAL


@pytest.mark.parametrize("state", State)
def test_another_interpreter_agrees_in_every_cell(state: State) -> None:
    """Led to any state and given any event, an interpreter of others goes where the table goes."""
    ways = [[*way_to(state), event] for event in Event]

    assert [[*walked_by_others(way)] for way in ways] == [[*walked_by_us(way)] for way in ways]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.stem)
def test_another_interpreter_walks_every_story(story: Path) -> None:
    """An interpreter of others walks the path of each story, state by state."""
    moves = re.findall(r"^  T\d+ (\w+) --(\w+)--> (\w+)", story.read_text("utf-8"), re.MULTILINE)
    events = [Event(event) for _, event, _ in moves]

    assert [*walked_by_others(events)] == [INITIAL, *(State(target) for *_, target in moves)]

"""`step`: the table, executed by the `transitions` machine. Its only importer.

One machine serves every attempt: nothing is bound to it, so a step costs
microseconds and an attempt no memory. Auto-transitions are off, or every state
would accept a `to_<state>` event and a terminal attempt could jump anywhere.
"""

from typing import Final

import transitions

from staging_fsm.core.errors import TransitionRefusedError
from staging_fsm.core.spec import INITIAL, TRANSITIONS, Event, State, Transition

_ROWS: Final = {(row.source, row.event): row for row in TRANSITIONS}


class _Position:
    """What the machine moves: one state, and no attribute that could shadow an event."""

    def __init__(self, state: State) -> None:
        self.state: str = state.value


def _build() -> transitions.Machine:
    return transitions.Machine(
        model=None,
        states=[state.value for state in State],
        transitions=[
            {"trigger": row.event.value, "source": row.source.value, "dest": row.target.value}
            for row in TRANSITIONS
        ],
        initial=INITIAL.value,
        auto_transitions=False,
    )


MACHINE: Final = _build()


def allowed_events(state: State) -> tuple[Event, ...]:
    """Return the events that have a row in `state`, in table order."""
    return tuple(row.event for row in TRANSITIONS if row.source is state)


def step(state: State, event: Event) -> Transition:
    """Return the row that answers `event` in `state`.

    Raises TransitionRefusedError, which names state, event and what is allowed,
    if there is none. Pure: the caller makes the new state durable, and only then
    performs the row's effect.
    """
    position = _Position(state)
    try:
        MACHINE.events[event.value].trigger(position)
    except transitions.MachineError:
        raise TransitionRefusedError(state, event, allowed_events(state)) from None
    row = _ROWS[state, event]
    assert position.state == row.target.value, "machine and table disagree"  # noqa: S101  # two routes, one answer
    return row

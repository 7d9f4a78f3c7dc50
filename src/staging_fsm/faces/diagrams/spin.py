"""The table as a Promela model: SPIN tries every interleaving of crashes, launches and cancels.

The table's part of the model is made from its rows, so a changed row is a changed
model. The rest, a template beside this module, says in Promela what `drive` does
around the table, one atomic step for each thing that reaches disk or a process; a
worker may be killed between any two of them. `docs/model.md` says what is modelled
and what is left out.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from string import Template
from types import MappingProxyType
from typing import Final

from staging_fsm.core.spec import INITIAL, TERMINAL, TRANSITIONS, Effect, Event, State, Transition

FILE_NAME: Final = "staging.pml"
_TEMPLATE: Final = Path(__file__).with_name(f"{FILE_NAME}.template")

#: Each safety property with its sentence. The model checks it wherever it could break.
PROPERTIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "no_silent_advance": "The gate moves a work item forwards only for a suite that passed"
        " in this attempt, and the artifact in its place is the one this attempt wrote.",
        "budget_is_total": "There are never more runs than the budget allows, and none that was"
        " not counted before it was started.",
        "one_producer_per_launch": "The agent is never started beside a live suite, after a"
        " verdict, or after a run unless the runner was switched off; no suite starts after it."
        " Where nobody is killed and no launch is delivered twice, it is started once.",
        "one_live_run_per_job": "There are never two live runs of one job.",
        "no_process_outlives_its_run": "Nothing of a run is alive when its job ends.",
        "stale_artifact_is_never_read": "No suite starts while an older artifact is in sight.",
        "terminal_is_forever": "No write replaces a terminal state.",
        "work_item_moves_once": "However often a hand-over is repeated, the work item moves once.",
        "table_answers_every_event": "Nobody but the gate and a person raises an event"
        " that the table refuses.",
        "ended_job_is_terminal": "A job ends with its attempt in a terminal state,"
        " or with no attempt at all.",
    }
)
#: Effects that the engine leaves alone: the host starts its agent, and nothing is nothing.
NOT_PERFORMED: Final = frozenset({Effect.SPAWN_AGENT, Effect.NONE})
#: The one property that is not about a state but about every run of the model.
LIVENESS: Final = "every_attempt_ends"


def promela(rows: tuple[Transition, ...] = TRANSITIONS) -> str:
    """Return the model of `rows`, ready for `spin -a`."""
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        states=_mtype("State", State),
        events=_mtype("Event", Event),
        effects=_mtype("Effect", Effect),
        rows=_mtype("Row", ["UNWALKED", *sorted({row.id for row in rows})]),
        initial=INITIAL,
        terminal=" || ".join(f"(state) == {state}" for state in State if state in TERMINAL),
        properties="\n".join(
            f"/* {sentence} */\nbool {name} = true;" for name, sentence in PROPERTIES.items()
        ),
        walk="\n".join(map(_walk, rows)),
        owe="\n".join(_owe(effect, rows) for effect in Effect if effect not in NOT_PERFORMED),
        host=Effect.SPAWN_AGENT,
        liveness=LIVENESS,
    )


def _mtype(kind: str, names: Iterable[str | StrEnum]) -> str:
    return f"mtype:{kind} = {{\n    " + ",\n    ".join(map(str, names)) + "\n};"


def _walk(row: Transition) -> str:
    return (
        f"    /* {row.id} */ :: s.state == {row.source} && event == {row.event} ->"
        f" target = {row.target}; walked = {row.id}"
    )


def _owe(effect: Effect, rows: tuple[Transition, ...]) -> str:
    owing = " || ".join(f"s.walked == {row.id}" for row in rows if row.effect is effect)
    return f"    :: {owing or 'false'} -> effect = {effect}"

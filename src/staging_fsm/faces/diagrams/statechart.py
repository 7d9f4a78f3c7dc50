"""The table as SCXML (https://www.w3.org/TR/scxml/), for the tools of others.

Ids and effects of the rows stand as attributes of a namespace of our own, which
an interpreter leaves alone. Where the table refuses an event, an interpreter
drops it: either way nothing moves. A terminal state is a `final` of the whole
chart, so an interpreter stops there.
"""

from collections.abc import Iterator
from typing import Final

from staging_fsm.core.spec import INITIAL, TERMINAL, State
from staging_fsm.faces.diagrams.model import VERDICT_GROUP, Diagram

SCXML: Final = "http://www.w3.org/2005/07/scxml"
TABLE: Final = "urn:staging-fsm:table"
NAME: Final = "staging_attempt"


def scxml(diagram: Diagram) -> str:
    """Return the SCXML document of the rows, valid against the schema of the W3C."""
    names = f'xmlns="{SCXML}" xmlns:table="{TABLE}"'
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<scxml {names} version="1.0" name="{NAME}" datamodel="null" initial="{INITIAL}">',
    ]
    for state in State:
        if state not in VERDICT_GROUP:
            lines += _state(diagram, state, "  ")
        elif state is VERDICT_GROUP[0]:
            lines.append('  <state id="VERDICT">')
            for member in VERDICT_GROUP:
                lines += _state(diagram, member, "    ")
            lines.append("  </state>")
    return "\n".join([*lines, "</scxml>"]) + "\n"


def _state(diagram: Diagram, state: State, indent: str) -> Iterator[str]:
    if state in TERMINAL:
        yield f'{indent}<final id="{state}"/>'
        return
    yield f'{indent}<state id="{state}">'
    for row in diagram.rows:
        if row.source is state:
            yield (
                f'{indent}  <transition event="{row.event}" target="{row.target}"'
                f' table:id="{row.id}" table:effect="{row.effect}"/>'
            )
    yield f"{indent}</state>"

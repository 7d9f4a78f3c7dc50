"""The log of a process: one line a transition, whatever is in it."""

import logging
import re

import pytest

from staging_fsm.core.spec import TRANSITIONS, Transition
from staging_fsm.effects.journal import log_error, log_transition

HOSTILE = [
    "plain",
    "two words",
    'a"b=c',
    "one\ntwo\r\nthree\rfour",
    "\x1b[2J\x07\u2028\u2029\x85",
    "",
]
SHAPE = (
    r"event=transition id=(T\d\d) job=.* attempt=.* source=(\w+) on=(\w+)"
    r" target=(\w+) effect=(\w+) reason=.*"
)


@pytest.mark.parametrize("row", TRANSITIONS, ids=lambda row: row.id)
def test_transition_is_one_line_of_one_shape(
    row: Transition, caplog: pytest.LogCaptureFixture
) -> None:
    """Each transition is one line: the same names in the same order, and its row of the table."""
    caplog.set_level(logging.INFO, "staging_fsm")
    for text in HOSTILE:
        log_transition(text, text, row, text, text)
    found = [re.fullmatch(SHAPE, line) for line in caplog.messages]

    assert len(found) == len(HOSTILE)
    for match in found:
        assert match
        assert match.groups() == (row.id, row.source, row.event, row.target, row.effect)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_breaks_a_line_or_moves_a_cursor(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a row, a suite or an error says stands in one line, and nothing of it is control."""
    log_error(text, error=text, number=7)

    assert len(caplog.messages) == 1
    assert caplog.messages[0].isprintable()
    assert caplog.messages[0].endswith(" number=7")

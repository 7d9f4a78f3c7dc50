"""The log of a process: one line a transition, whatever is in it."""

import logging
import re
import sys

import pytest

from staging_fsm.core.spec import TRANSITIONS, Transition
from staging_fsm.effects import journal
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


class Broken(logging.Handler):
    """A host's handler with a fault of its own."""

    def handle(self, record: logging.LogRecord) -> bool:
        """Fail."""
        raise RuntimeError(record.getMessage())


def test_handler_that_raises_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """What a handler of the host's raises is not passed on to what is told of."""
    caplog.set_level(logging.INFO, "staging_fsm")
    handler, log = Broken(), logging.getLogger("staging_fsm")
    log.addHandler(handler)
    try:
        log_error("it failed")
        log_transition(7, "7-a", TRANSITIONS[0], "why", "5e1f")
    finally:
        log.removeHandler(handler)


def test_line_is_logged_where_nothing_can_be_loaded_any_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Out of descriptors no module can be loaded: a line is plainer then, and is there."""
    monkeypatch.setitem(sys.modules, "structlog", None)
    journal._renderer.cache_clear()
    log_error("it failed", job="7\n8")
    journal._renderer.cache_clear()

    (line,) = caplog.messages
    assert "it failed" in line
    assert "7\\n8" in line
    assert line.isprintable()


def test_line_is_as_ever_once_something_can_be_loaded_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that had no descriptor left for a while writes lines of logfmt afterwards."""
    journal._renderer.cache_clear()
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "structlog", None)
        log_error("it failed", error="two words")
    log_error("it failed", error="two words")

    assert caplog.messages[1] == 'event="it failed" error="two words"'

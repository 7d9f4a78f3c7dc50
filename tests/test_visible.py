"""Text made visible: nothing in it moves a cursor, ends a line or hides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attempts import hostile_texts
from staging_fsm.core.visible import visible, visible_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢 😀", "plain é 漢 😀"),
        ("a\nb", "a\nb"),
        ("a\r\nb\rc", "a\nb␍c"),
        ("\ta", "    a"),
        ("\x1b[31ma\r\x1b[0m\nb", "a\nb"),
        ("\x00\x07\x08\x0b\x0c\x1f", "␀␇␈␋␌␟"),
        ("\x1b[31mred\x1b[0m \x1b[1;32;40mx\x1b[K", "red x"),
        ("\x1b]0;title\x07a", "0;title␇a"),
        ("\x1bMa\x1b_b", "ab"),
        ("\x1b\x1b[0m[31ma", "␛[31ma"),
        ("\x1b", "␛"),
        ("\x7f\x85\x9b\u2028\u2029\u202e\u200b\ufeff\ud800", "\ufffd" * 9),
    ],
)
def test_control_characters_are_made_visible(text: str, shown: str) -> None:
    """Colours are removed, control characters become pictures, hidden ones are replaced."""
    assert visible(text) == shown


@given(st.text(st.characters()) | hostile_texts)
def test_visible_text_is_printable(text: str) -> None:
    """Text that was made visible is printable but for its line feeds, and stays as it is."""
    shown = visible(text)

    assert shown.replace("\n", "").isprintable()
    assert visible(shown) == shown


@given(st.text(st.characters()) | hostile_texts)
def test_visible_line_is_one_line(text: str) -> None:
    """A text that is shown on a line ends none, and is else what it is on several."""
    assert visible_line(text).isprintable()
    assert visible_line(text).replace("␊", "\n") == visible(text).replace("␊", "\n")

"""Text from elsewhere, made harmless to read: it moves no cursor and hides nothing."""

import re
from typing import Final

_ANSI: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")
_CONTROL_PICTURES: Final = 0x2400


def visible(text: str) -> str:
    """Return `text` with colours removed and control characters shown as pictures.

    Only the line feed stays what it is. Unicode's own line and paragraph
    separators and its direction marks become a replacement character.
    """
    without_colours = _ANSI.sub("", text).replace("\r\n", "\n")
    return "".join(_picture(character) for character in without_colours)


def visible_line(text: str) -> str:
    """Return `text` as `visible` does, its line feeds shown as pictures as well."""
    return visible(text).replace("\n", "\N{SYMBOL FOR LINE FEED}")


def _picture(character: str) -> str:
    if character == "\n" or character.isprintable():
        return character
    if character == "\t":
        return "    "
    if character < " ":
        return chr(_CONTROL_PICTURES + ord(character))
    return "\N{REPLACEMENT CHARACTER}"

"""Rows of words as aligned columns: how golden files show a table."""

from collections.abc import Iterable


def aligned(rows: Iterable[Iterable[object]]) -> str:
    """Return rows of words as a text of aligned columns."""
    words = [[str(word) for word in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*words, strict=True)]
    lines = (
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        for row in words
    )
    return "\n".join(lines) + "\n"

"""The plot of a repository's history: its geometry, drawn by a template as inline SVG."""

import math
from collections.abc import Iterator
from typing import Final

import attrs

from staging_fsm.faces.views import duration_words

_WIDTH_MAX: Final = 1200
_WIDTH_MIN: Final = 320
HEIGHT: Final = 180
_LEFT: Final = 64
_BOTTOM: Final = 22
_TOP: Final = 18
_BAR_MAX: Final = 28
_GLYPH_WIDTH: Final = 11
_TICKS: Final = 4
#: How a tone is drawn besides its colour.
GLYPHS: Final = {
    "good": "✓",
    "code": "↩",
    "bad": "✕",
    "running": "▶",
    "waiting": "◷",
    "quiet": "–",
}
#: Steps of an axis of time, in seconds, as a person counts it.
_STEPS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)


@attrs.frozen
class Bar:
    """One attempt: how long its suite ran in all, and how it ended."""

    seconds: float
    tone: str
    label: str
    job_id: int | str


@attrs.frozen
class Box:
    """A bar as it is drawn."""

    bar: Bar
    glyph: str
    x: float
    y: float
    width: float
    height: float


@attrs.frozen
class Plot:
    """Bars from the oldest to the newest, over an axis that starts at nothing."""

    bars: tuple[Bar, ...]
    height: int = HEIGHT

    @property
    def room(self) -> float:
        """Return how much of the width each bar has."""
        return min(_BAR_MAX / 0.8, (_WIDTH_MAX - _LEFT) / max(1, len(self.bars)))

    @property
    def width(self) -> int:
        """Return the width: no more than the bars need, and enough for the words below them."""
        return max(_WIDTH_MIN, _LEFT + math.ceil(self.room * len(self.bars)))

    @property
    def step(self) -> float:
        """Return the distance of two marks of the axis, in seconds."""
        longest = max((bar.seconds for bar in self.bars), default=0.0)
        for step in _STEPS:
            if step * _TICKS >= longest:
                return step
        return math.ceil(longest / _TICKS / _STEPS[-1]) * _STEPS[-1]

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Yield the marks of the axis: where, and what stands there."""
        for number in range(_TICKS + 1):
            yield self._y(number * self.step), duration_words(number * self.step)

    def boxes(self) -> Iterator[Box]:
        """Yield the bars as they are drawn; the shortest can still be seen."""
        width = self.room * 0.8
        for number, bar in enumerate(self.bars):
            y = min(self._y(bar.seconds), HEIGHT - _BOTTOM - 3)
            x = _LEFT + number * self.room
            glyph = GLYPHS[bar.tone] if width >= _GLYPH_WIDTH else ""
            yield Box(bar, glyph, round(x, 1), y, round(width, 1), round(HEIGHT - _BOTTOM - y, 1))

    def _y(self, seconds: float) -> float:
        room = HEIGHT - _BOTTOM - _TOP
        return round(HEIGHT - _BOTTOM - room * seconds / (self.step * _TICKS), 1)

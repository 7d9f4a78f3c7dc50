"""The diagram as SVG: placed by our own layout, so that nothing but Python draws it.

Every shape carries a class, and how it looks is said by STYLE alone: in a file
that stands alone as a `<style>` element, in a page under a strict content
security policy as part of its own stylesheet. No element has an id, so that
several drawings fit into one page.
"""

from functools import cache
from itertools import pairwise
from typing import Final
from xml.sax.saxutils import escape

from staging_fsm.core.spec import INITIAL, TERMINAL, Effect, State, Transition
from staging_fsm.faces.diagrams.layered import LOOP, Box, Edge, Layout, Route, layered
from staging_fsm.faces.diagrams.model import VERDICT_GROUP, Diagram

#: Sizes in pixels. A character of a monospaced font is six tenths of its size wide.
STATE_FONT: Final = 13
EDGE_FONT: Final = 11
STATE_HEIGHT: Final = 36
STATE_PADDING: Final = 14
LABEL_HEIGHT: Final = 30
#: An id and a count of seven digits, or three steps, fit: they move nothing.
LABEL_CHARACTERS: Final = 13
STEPS_SHOWN: Final = 3
#: The first edge of each state is where an attempt goes if nothing is wrong.
MAIN_WEIGHT: Final = 3
START_RADIUS: Final = 6
START_GAP: Final = 36
FRAME_PADDING: Final = 9
FRAME_TITLE: Final = 14
ARROW_LENGTH: Final = 8
ARROW_WIDTH: Final = 4
_FONT: Final = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"

#: Colours and weights, light and dark; contrast of text at least 4.5 to 1 (WCAG 2.2, 1.4.3).
STYLE: Final = """\
.fsm { color: #57606a; }
.fsm .paper { fill: #ffffff; }
.fsm text { fill: #1f2328; }
.fsm .frame rect { fill: #f6f8fa; stroke: #8c959f; stroke-dasharray: 4 4; }
.fsm .frame text { fill: #57606a; }
.fsm .state rect { fill: #ffffff; stroke: #57606a; stroke-width: 1.5; }
.fsm .current rect { stroke: #0969da; }
.fsm .state .end { stroke-width: 1; }
.fsm .ADVANCED rect { fill: #dafbe1; stroke: #1a7f37; }
.fsm .ROLLED_BACK rect { fill: #ffebe9; stroke: #cf222e; }
.fsm .FAILED_CLOSED rect { fill: #fff8c5; stroke: #9a6700; }
.fsm .LLM_FALLBACK rect { fill: #fbefff; stroke: #8250df; }
.fsm .CANCELLED rect { fill: #eaeef2; stroke: #57606a; }
.fsm.attempt { color: #afb8c1; }
.fsm.attempt text { fill: #6e7781; }
.fsm.attempt .state:not(.visited) rect { fill: #ffffff; stroke: #afb8c1; }
.fsm .edge.lit, .fsm .start.lit { color: #0969da; }
.fsm .edge.lit .line { stroke-width: 2.5; }
.fsm .edge.lit text, .fsm .visited text { fill: #1f2328; }
.fsm .edge.lit .mark { fill: #0969da; font-weight: 700; }
.fsm .current rect { stroke-width: 4; }
.fsm .current text { font-weight: 800; }
.fsm .never { color: #8c959f; }
.fsm .never .line { stroke-dasharray: 2 4; }
.fsm .never text { fill: #6e7781; }
.fsm .tens .line { stroke-width: 2; }
.fsm .hundreds .line { stroke-width: 3; }
.fsm .thousands .line { stroke-width: 4; }
@media (prefers-color-scheme: dark) {
  .fsm { color: #9198a1; }
  .fsm .paper { fill: #0d1117; }
  .fsm text { fill: #f0f6fc; }
  .fsm .frame rect { fill: #151b23; stroke: #656c76; }
  .fsm .frame text { fill: #9198a1; }
  .fsm .state rect { fill: #0d1117; stroke: #9198a1; }
  .fsm .current rect { stroke: #58a6ff; }
  .fsm .ADVANCED rect { fill: #12261e; stroke: #3fb950; }
  .fsm .ROLLED_BACK rect { fill: #25171c; stroke: #f85149; }
  .fsm .FAILED_CLOSED rect { fill: #272115; stroke: #d29922; }
  .fsm .LLM_FALLBACK rect { fill: #1f1a2e; stroke: #ab7df8; }
  .fsm .CANCELLED rect { fill: #212830; stroke: #9198a1; }
  .fsm.attempt { color: #3d444d; }
  .fsm.attempt text { fill: #848d97; }
  .fsm.attempt .state:not(.visited) rect { fill: #0d1117; stroke: #3d444d; }
  .fsm .edge.lit, .fsm .start.lit { color: #58a6ff; }
  .fsm .edge.lit text, .fsm .visited text { fill: #f0f6fc; }
  .fsm .edge.lit .mark { fill: #58a6ff; }
  .fsm .never { color: #656c76; }
  .fsm .never text { fill: #848d97; }
}
"""


def svg(diagram: Diagram, *, style: bool = True) -> str:
    """Return the diagram as an SVG document, the same to the byte on every machine.

    With `style` it stands alone, on paper of its own. Without, it has no `<style>`
    and no paper: the page that embeds it serves STYLE in its stylesheet.
    """
    places = _places(diagram.rows)
    height = places.height + START_GAP
    size = f'width="{places.width}" height="{height}"'
    kind = "fsm attempt" if diagram.path else "fsm"
    head = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="{kind}" role="img" {size}'
            f' viewBox="0 {-START_GAP} {places.width} {height}" fill="none" stroke="currentColor"'
            f' font-family="{_FONT}" font-size="{EDGE_FONT}" text-anchor="middle">'
        ),
        f"<title>{_title(diagram)}</title>",
        f"<desc>{escape(_description(diagram))}</desc>",
    ]
    if style:
        head.append(f"<style>\n{STYLE}</style>")
        head.append(f'<rect class="paper" y="{-START_GAP}" {size} stroke="none"/>')
    # What is lit is drawn last: it lies above what it crosses.
    rows = sorted(diagram.rows, key=lambda row: row.id in diagram.path)
    body = [
        _frame([places.nodes[state] for state in VERDICT_GROUP]),
        _start(diagram, places.nodes[INITIAL]),
        *(_edge(diagram, row, places.routes[row.id]) for row in rows),
        *(_state(diagram, state, places.nodes[state]) for state in State),
    ]
    return "\n".join([*head, *body, "</svg>"]) + "\n"


@cache
def _places(rows: tuple[Transition, ...]) -> Layout:
    sizes = {
        str(state): (_text_width(len(state), STATE_FONT) + 2 * STATE_PADDING, STATE_HEIGHT)
        for state in State
    }
    edges = []
    for number, row in enumerate(rows):
        is_first = all(row.source is not earlier.source for earlier in rows[:number])
        edges.append(
            Edge(
                row.id,
                row.source,
                row.target,
                _text_width(max(LABEL_CHARACTERS, len(row.event)), EDGE_FONT),
                LABEL_HEIGHT,
                MAIN_WEIGHT if is_first else 1,
            )
        )
    return layered(sizes, edges, [VERDICT_GROUP])


def _text_width(characters: int, size: int) -> int:
    return -(-characters * size * 6 // 10)


def _title(diagram: Diagram) -> str:
    if diagram.counts is not None:
        return "Staging attempts: how often each transition was walked"
    if diagram.path:
        return f"The path of one staging attempt to {diagram.current}"
    return "The states and transitions of a staging attempt"


def _description(diagram: Diagram) -> str:
    """Return in words what the picture shows, for whoever does not see it."""
    rows = {row.id: row for row in diagram.rows}
    if diagram.path:
        steps = enumerate((rows[id_] for id_ in diagram.path), 1)
        return " ".join(f"{number}. {_sentence(row)}." for number, row in steps)
    return " ".join(f"{_sentence(row)}{_behind(diagram, row)}." for row in diagram.rows)


def _sentence(row: Transition) -> str:
    return f"{row.id}: {row.source} to {row.target} on {row.event}"


def _behind(diagram: Diagram, row: Transition) -> str:
    note = diagram.note(row)
    return note and f" ({note})"


def _frame(members: list[Box]) -> str:
    left = min(box.left for box in members) - FRAME_PADDING
    top = min(box.top for box in members) - FRAME_PADDING
    width = max(box.right for box in members) + FRAME_PADDING - left
    height = max(box.bottom for box in members) + FRAME_PADDING + FRAME_TITLE - top
    return (
        f'<g class="frame"><rect x="{left}" y="{top}" width="{width}" height="{height}" rx="14"/>'
        + _text(left + width // 2, top + height - FRAME_TITLE // 2, "VERDICT")
        + "</g>"
    )


def _start(diagram: Diagram, first: Box) -> str:
    y = first.top - START_GAP + START_RADIUS
    lit = " lit" if diagram.path else ""
    return (
        f'<g class="start{lit}">'
        f'<circle cx="{first.x}" cy="{y}" r="{START_RADIUS}" fill="currentColor" stroke="none"/>'
        f'<path class="line" d="M{first.x} {y}V{first.top - ARROW_LENGTH}"/>'
        f"{_tip(first.x, first.top, 'down')}</g>"
    )


def _edge(diagram: Diagram, row: Transition, route: Route) -> str:
    label = route.label
    effect = "" if row.effect is Effect.NONE else f", then {row.effect}"
    mark = _mark(diagram, row)
    shown = mark and f' <tspan class="mark">{mark}</tspan>'
    line, tip = _loop(route) if row.source is row.target else _line(route)
    return (
        f'<g class="{_edge_class(diagram, row)}">'
        f"<title>{_sentence(row)}{effect}{_behind(diagram, row)}</title>"
        f'<path class="line" d="{line}"/>{tip}'
        + _text(label.x, label.y - 3, f'<tspan font-weight="700">{row.id}</tspan>{shown}')
        + _text(label.x, label.y + EDGE_FONT, row.event)
        + "</g>"
    )


def _mark(diagram: Diagram, row: Transition) -> str:
    """Return what is written beside an id: a count, or the first and last of its steps."""
    if diagram.counts is not None:
        return f"×{diagram.counts.get(row.id, 0):,}"
    steps = [f"#{number}" for number in diagram.steps(row)]
    if len(steps) > STEPS_SHOWN:
        steps[1:-1] = ["…"]
    return ",".join(steps)


def _edge_class(diagram: Diagram, row: Transition) -> str:
    if diagram.counts is not None:
        digits = len(str(diagram.counts.get(row.id, 0) or ""))
        weight = ("never", "", "tens", "hundreds", "thousands")[min(digits, 4)]
        return f"edge {weight}".rstrip()
    return "edge lit" if row.id in diagram.path else "edge"


def _line(route: Route) -> tuple[str, str]:
    """Return the path of an edge, open where its label stands, and its tip."""
    x, y = route.points[-1]
    falls = y > route.points[-2][1]
    points = [*route.points[:-1], (x, y - ARROW_LENGTH if falls else y + ARROW_LENGTH)]
    parts = [f"M{points[0][0]} {points[0][1]}"]
    for number, ((x1, y1), (x2, y2)) in enumerate(pairwise(points)):
        if number % 2 == 0:
            middle = (y1 + y2) // 2
            curve = f"C{x1} {middle} {x2} {middle} {x2} {y2}"
            parts.append(f"V{y2}" if x1 == x2 else curve)
        else:
            is_label = min(y1, y2) <= route.label.y <= max(y1, y2)
            parts.append(f"M{x2} {y2}" if is_label else f"V{y2}")
    return "".join(parts), _tip(x, y, "down" if falls else "up")


def _loop(route: Route) -> tuple[str, str]:
    (x, top), (_, bottom) = route.points
    far = x + LOOP
    line = f"M{x} {top}C{far} {top - 8} {far} {bottom + 8} {x + ARROW_LENGTH} {bottom}"
    return line, _tip(x, bottom, "left")


def _tip(x: int, y: int, towards: str) -> str:
    length, width = ARROW_LENGTH, ARROW_WIDTH
    corners = {
        "down": f"l{-width} {-length}h{2 * width}z",
        "up": f"l{-width} {length}h{2 * width}z",
        "left": f"l{length} {-width}v{2 * width}z",
    }
    return f'<path d="M{x} {y}{corners[towards]}" fill="currentColor" stroke="none"/>'


def _state(diagram: Diagram, state: State, box: Box) -> str:
    words = ["state", str(state)]
    words += ["visited"] if diagram.is_visited(state) else []
    words += ["current"] if state is diagram.current else []
    shapes = [_rect(box, 0, "")]
    if state in TERMINAL:
        shapes.append(_rect(box, 4, ' class="end"'))
    shapes.append(_text(box.x, box.y + 5, state, f' font-size="{STATE_FONT}" font-weight="600"'))
    return f'<g class="{" ".join(words)}">{"".join(shapes)}</g>'


def _rect(box: Box, inset: int, attributes: str) -> str:
    return (
        f'<rect{attributes} x="{box.left + inset}" y="{box.top + inset}"'
        f' width="{box.width - 2 * inset}" height="{box.height - 2 * inset}" rx="{8 - inset}"/>'
    )


def _text(x: int, y: int, content: str, attributes: str = "") -> str:
    return f'<text x="{x}" y="{y}" fill="currentColor" stroke="none"{attributes}>{content}</text>'

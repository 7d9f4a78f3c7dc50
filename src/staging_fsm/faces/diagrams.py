"""Diagrams from the table: one model, several renderers, no drawing program needed.

An edge that is not a row cannot be drawn, and a row that is not drawn fails the
test that compares the committed files with fresh output.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import attrs

from staging_fsm.core.spec import INITIAL, TERMINAL, TRANSITIONS, Effect, State, Transition

#: The brief's VERDICT: one state to a reader, two in the table.
VERDICT_GROUP: Final = (State.VERDICT_PASSED, State.VERDICT_FAILED)


@attrs.frozen
class Diagram:
    """What is drawn: the rows, how often each was walked, and where an attempt is."""

    rows: tuple[Transition, ...] = TRANSITIONS
    counts: Mapping[str, int] | None = None
    path: Collection[str] = ()
    current: State | None = None

    def label(self, row: Transition) -> str:
        """Return the text of an edge."""
        count = "" if self.counts is None else f" ({self.counts.get(row.id, 0)})"
        return f"{row.id} {row.event}{count}"


def mermaid(diagram: Diagram) -> str:
    """Return a Mermaid state diagram (https://mermaid.js.org/syntax/stateDiagram.html)."""
    lines = ["stateDiagram-v2", "    direction TB", f"    [*] --> {INITIAL}"]
    lines += ["    state VERDICT {", *(f"        {state}" for state in VERDICT_GROUP), "    }"]
    lines += [f"    {row.source} --> {row.target}: {diagram.label(row)}" for row in diagram.rows]
    lines += [f"    {state} --> [*]" for state in State if state in TERMINAL]
    walked = [str(state) for state in State if _is_on_path(diagram, state)]
    if walked:
        lines += ["    classDef walked stroke-width:3px", f"    class {','.join(walked)} walked"]
    if diagram.current is not None:
        lines += ["    classDef current font-weight:bold", f"    class {diagram.current} current"]
    return "\n".join(lines) + "\n"


def dot(diagram: Diagram) -> str:
    """Return a Graphviz digraph (https://graphviz.org/doc/info/lang.html)."""
    lines = [
        "digraph attempt {",
        "    rankdir=TB;",
        '    node [shape=box, style=rounded, fontname="sans-serif"];',
        '    edge [fontname="sans-serif", fontsize=10];',
        "    start [shape=point];",
        f"    start -> {INITIAL};",
        '    subgraph cluster_verdict { label="VERDICT"; '
        + " ".join(f"{state};" for state in VERDICT_GROUP)
        + " }",
    ]
    lines += [f"    {state}{_dot_node(diagram, state)};" for state in State]
    for row in diagram.rows:
        width = ", penwidth=3" if row.id in diagram.path else ""
        lines.append(f'    {row.source} -> {row.target} [label="{diagram.label(row)}"{width}];')
    return "\n".join([*lines, "}"]) + "\n"


def markdown_table(diagram: Diagram) -> str:
    """Return the table itself, as Markdown."""
    head = ["id", "source", "event", "target", "effect"]
    cells = [
        [
            row.id,
            row.source,
            row.event,
            row.target,
            "-" if row.effect is Effect.NONE else row.effect,
        ]
        for row in diagram.rows
    ]
    if diagram.counts is not None:
        head.append("walked")
        for row, line in zip(diagram.rows, cells, strict=True):
            line.append(str(diagram.counts.get(row.id, 0)))
    rows = [head, ["---"] * len(head), *cells]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _is_on_path(diagram: Diagram, state: State) -> bool:
    return any(row.id in diagram.path and state in (row.source, row.target) for row in diagram.rows)


def _dot_node(diagram: Diagram, state: State) -> str:
    facts = []
    if state in TERMINAL:
        facts.append("peripheries=2")
    if state is diagram.current:
        facts.append('style="rounded,bold"')
    elif _is_on_path(diagram, state):
        facts.append("penwidth=2")
    return f" [{', '.join(facts)}]" if facts else ""


#: File name -> renderer. Every file of this name is generated, and compared byte for byte.
RENDERERS: Final[Mapping[str, Callable[[Diagram], str]]] = MappingProxyType(
    {"attempt.mmd": mermaid, "attempt.dot": dot, "table.md": markdown_table}
)


def write_diagrams(folder: Path, diagram: Diagram) -> list[Path]:
    """Write every format into `folder`; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, renderer in RENDERERS.items():
        path = folder / name
        path.write_text(renderer(diagram), encoding="utf-8")
        written.append(path)
    return written


def outdated(folder: Path, diagram: Diagram) -> list[str]:
    """Return the names of the files in `folder` that differ from fresh output."""
    return [
        name
        for name, renderer in RENDERERS.items()
        if not (folder / name).is_file()
        or (folder / name).read_text(encoding="utf-8") != renderer(diagram)
    ]

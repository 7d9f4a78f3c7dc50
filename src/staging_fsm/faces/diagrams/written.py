"""The diagrams that are read as text: Mermaid, Graphviz, and the table itself."""

from staging_fsm.core.spec import INITIAL, TERMINAL, Effect, State
from staging_fsm.faces.diagrams.model import VERDICT_GROUP, Diagram


def mermaid(diagram: Diagram) -> str:
    """Return a Mermaid state diagram (https://mermaid.js.org/syntax/stateDiagram.html)."""
    lines = ["stateDiagram-v2", "    direction TB", f"    [*] --> {INITIAL}"]
    lines += ["    state VERDICT {", *(f"        {state}" for state in VERDICT_GROUP), "    }"]
    lines += [f"    {row.source} --> {row.target}: {diagram.label(row)}" for row in diagram.rows]
    lines += [f"    {state} --> [*]" for state in State if state in TERMINAL]
    walked = [str(state) for state in State if diagram.is_visited(state)]
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
    if diagram.counts is not None or diagram.path:
        head.append("walked")
        for row, line in zip(diagram.rows, cells, strict=True):
            line.append(diagram.note(row) or "-")
    rows = [head, ["---"] * len(head), *cells]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _dot_node(diagram: Diagram, state: State) -> str:
    facts = []
    if state in TERMINAL:
        facts.append("peripheries=2")
    if state is diagram.current:
        facts.append('style="rounded,bold"')
    elif diagram.is_visited(state):
        facts.append("penwidth=2")
    return f" [{', '.join(facts)}]" if facts else ""

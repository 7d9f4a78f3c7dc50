"""The diagrams: every edge is a row, and every row is an edge."""

import re
from collections import Counter
from pathlib import Path

import pytest

from staging_fsm.core.spec import TERMINAL, TRANSITIONS, State
from staging_fsm.faces.diagrams import (
    RENDERERS,
    Diagram,
    dot,
    markdown_table,
    mermaid,
    outdated,
    write_diagrams,
)

ROWS = Counter((str(row.source), str(row.target), f"{row.id} {row.event}") for row in TRANSITIONS)


def test_mermaid_edges_are_the_rows() -> None:
    """The Mermaid diagram has exactly the table's edges, with their ids."""
    edges = re.findall(r"^    (\w+) --> (\w+): (.+)$", mermaid(Diagram()), re.MULTILINE)

    assert Counter(edges) == ROWS


def test_dot_edges_are_the_rows() -> None:
    """The Graphviz diagram has exactly the table's edges, with their ids."""
    edges = re.findall(r'^    (\w+) -> (\w+) \[label="([^"]+)"', dot(Diagram()), re.MULTILINE)

    assert Counter(edges) == ROWS


def test_markdown_rows_are_the_rows() -> None:
    """The Markdown table has one line a row, in table order."""
    lines = markdown_table(Diagram()).splitlines()[2:]

    assert [line.split(" | ")[0].strip("| ") for line in lines] == [row.id for row in TRANSITIONS]


def test_every_terminal_state_ends() -> None:
    """Each terminal state, and no other, leads to the end mark."""
    ends = re.findall(r"^    (\w+) --> \[\*\]$", mermaid(Diagram()), re.MULTILINE)

    assert {State(name) for name in ends} == TERMINAL


def test_counts_stand_on_the_edges() -> None:
    """A diagram with counts says for every row how often it was walked, zero included."""
    drawn = mermaid(Diagram(counts={"T01": 7}))

    assert "T01 JOB_CLAIMED (7)" in drawn
    assert "T18 RUN_ADOPTED (0)" in drawn


def test_path_and_current_state_are_marked() -> None:
    """A diagram of one attempt marks the states it walked and the one it is in."""
    diagram = Diagram(path={"T01", "T03"}, current=State.VERDICT_PASSED)

    assert "class PENDING,RUNNING,VERDICT_PASSED walked" in mermaid(diagram)
    assert "class VERDICT_PASSED current" in mermaid(diagram)
    assert 'VERDICT_PASSED [style="rounded,bold"]' in dot(diagram)


@pytest.mark.parametrize("name", sorted(RENDERERS))
def test_a_changed_or_missing_file_is_outdated(tmp_path: Path, name: str) -> None:
    """One changed byte, or no file at all, is seen."""
    write_diagrams(tmp_path, Diagram())
    assert outdated(tmp_path, Diagram()) == []

    (tmp_path / name).write_text("x" + (tmp_path / name).read_text())
    assert outdated(tmp_path, Diagram()) == [name]

    (tmp_path / name).unlink()
    assert outdated(tmp_path, Diagram()) == [name]

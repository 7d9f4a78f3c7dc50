"""The diagrams: every edge is a row, and every row is an edge."""

import os
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element

import pytest
from defusedxml.ElementTree import fromstring
from hypothesis import given
from hypothesis import strategies as st

from staging_fsm.core.spec import INITIAL, TERMINAL, TRANSITIONS, State
from staging_fsm.faces.diagrams import (
    FILES,
    STYLE,
    Diagram,
    dot,
    markdown_table,
    mermaid,
    outdated,
    svg,
    write_diagrams,
)
from staging_fsm.faces.diagrams.layered import Box, Edge, Layout, layered

SVG: Final = "{http://www.w3.org/2000/svg}"
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
    diagram = Diagram(path=("T01", "T03"), current=State.VERDICT_PASSED)

    assert "class PENDING,RUNNING,VERDICT_PASSED walked" in mermaid(diagram)
    assert "class VERDICT_PASSED current" in mermaid(diagram)
    assert 'VERDICT_PASSED [style="rounded,bold"]' in dot(diagram)


def test_steps_stand_on_the_edges() -> None:
    """A diagram of one attempt says of each edge at which steps it was walked."""
    diagram = Diagram(path=("T01", "T05", "T07", "T09"), current=State.RUNNING)

    assert "T01 JOB_CLAIMED (step 1)" in dot(diagram)
    assert 'T10 RUNNER_DECLINED"' in dot(diagram)


def drawn(diagram: Diagram, *, style: bool = True) -> Element:
    """Return the SVG as elements."""
    root = fromstring(svg(diagram, style=style))
    assert isinstance(root, Element)
    return root


def classed(root: Element, word: str) -> list[Element]:
    """Return the groups of a class."""
    return [group for group in root.iter(f"{SVG}g") if word in group.get("class", "").split()]


def words(group: Element) -> list[str]:
    """Return the texts of a group, as they are read."""
    return ["".join(text.itertext()) for text in group.iter(f"{SVG}text")]


def test_svg_edges_are_the_rows() -> None:
    """The SVG has exactly the table's edges, each with its id and event beside it."""
    edges = [words(group) for group in classed(drawn(Diagram()), "edge")]

    assert sorted(edges) == [[row.id, row.event] for row in TRANSITIONS]


def test_svg_states_are_the_states() -> None:
    """The SVG has every state once, and those with a double border are the terminal ones."""
    states = classed(drawn(Diagram()), "state")
    double = {State(words(state)[0]) for state in states if len(state.findall(f"{SVG}rect")) == 2}

    assert [words(state) for state in states] == [[state] for state in State]
    assert double == TERMINAL


def test_svg_of_an_attempt_shows_its_path() -> None:
    """Walked edges are lit with the numbers of their steps, and the state it is in is marked."""
    path = ("T01", "T05", "T07", "T09", "T05", "T07", "T09", "T05", "T07", "T09", "T05")
    root = drawn(Diagram(path=path, current=State.TOOL_ERROR))

    assert {tuple(words(edge)) for edge in classed(root, "lit") if words(edge)} == {
        ("T01 #1", "JOB_CLAIMED"),
        ("T05 #2,…,#11", "SUITE_NOT_EXECUTED"),
        ("T07 #3,#6,#9", "BUDGET_LEFT"),
        ("T09 #4,#7,#10", "JOB_CLAIMED"),
    }
    assert [words(state) for state in classed(root, "current")] == [[State.TOOL_ERROR]]
    assert {words(state)[0] for state in classed(root, "visited")} == {
        INITIAL,
        State.RUNNING,
        State.TOOL_ERROR,
        State.DEFERRED,
    }


def test_svg_with_counts_shows_every_count() -> None:
    """Each edge says how often it was walked; one that never was looks like that."""
    root = drawn(Diagram(counts={"T01": 1_234_567, "T03": 12}))
    marks = {words(edge)[0] for edge in classed(root, "edge")}

    assert {"T01 ×1,234,567", "T03 ×12", "T18 ×0"} <= marks
    assert len(classed(root, "never")) == len(TRANSITIONS) - 2


def test_svg_says_in_words_what_it_shows() -> None:
    """Whoever does not see the picture is told the same: a name, and every edge or step."""
    table = drawn(Diagram())
    attempt = drawn(Diagram(path=("T01", "T03"), current=State.VERDICT_PASSED))

    assert table.get("role") == "img"
    assert table.findtext(f"{SVG}title")
    assert table.findtext(f"{SVG}desc", "").count(" on ") == len(TRANSITIONS)
    assert attempt.findtext(f"{SVG}title") == "The path of one staging attempt to VERDICT_PASSED"
    assert attempt.findtext(f"{SVG}desc") == (
        "1. T01: PENDING to RUNNING on JOB_CLAIMED."
        " 2. T03: RUNNING to VERDICT_PASSED on SUITE_PASSED."
    )


def test_svg_fits_under_a_strict_policy_and_more_than_once_into_a_page() -> None:
    """Without its style it has no style, script, reference or id, and no paper of its own."""
    text = svg(Diagram(), style=False)
    names = {name for element in drawn(Diagram(), style=False).iter() for name in element.attrib}

    assert STYLE in svg(Diagram())
    assert not re.search(r"<style|<script|url\(|class=\"paper\"", text)
    assert names.isdisjoint({"style", "id", "href", "onload", "onclick"})


def test_every_class_of_the_drawing_is_known_to_the_style() -> None:
    """What the drawing sets apart by a class, the style makes visible."""
    classes = {
        word
        for diagram in (
            Diagram(path=("T01",), current=State.RUNNING),
            Diagram(counts={"T01": 10, "T02": 100, "T03": 1000}),
        )
        for element in drawn(diagram).iter()
        for word in element.get("class", "").split()
    }
    plain = {"start", *(str(state) for state in State if state not in TERMINAL)}

    assert {word for word in classes - plain if f".{word}" not in STYLE} == set()


def luminance(colour: str) -> float:
    """Return the relative luminance of `#rrggbb` (WCAG 2.2)."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return sum(part * share for part, share in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scheme: str) -> None:
    """Every colour of text has a contrast of 4.5 to 1 to the paper, light and dark."""
    rules = STYLE.partition("@media")[::2][scheme == "dark"]
    paper = re.findall(r"\.paper \{ fill: (#\w+)", rules)[0]
    inks = re.findall(r"(?:text|mark) \{ fill: (#\w+)", rules)
    ratios = [
        (max(pair) + 0.05) / (min(pair) + 0.05)
        for pair in ((luminance(paper), luminance(ink)) for ink in inks)
    ]

    assert len(inks) >= 5
    assert min(ratios) >= 4.5


def overlaps(one: Box, other: Box) -> bool:
    """Say whether two boxes share a point inside."""
    return (
        one.left < other.right
        and other.left < one.right
        and one.top < other.bottom
        and other.top < one.bottom
    )


def collisions(layout: Layout) -> list[str]:
    """Return what lies on something else: boxes on boxes, and lines on boxes."""
    labels = {f"label {id_}": route.label for id_, route in layout.routes.items()}
    boxes = labels | {f"node {name}": box for name, box in layout.nodes.items()}
    found = [
        f"{one} on {other}"
        for one, other in combinations(boxes, 2)
        if overlaps(boxes[one], boxes[other])
    ]
    for id_, route in layout.routes.items():
        # Lines run sideways between the layers only: in a layer each is vertical.
        for (x1, y1), (x2, y2) in list(pairwise(route.points))[1::2]:
            line = Box((x1 + x2) // 2, (y1 + y2) // 2, 2 + abs(x1 - x2), abs(y1 - y2))
            found += [
                f"line {id_} on {name}"
                for name, box in boxes.items()
                if name != f"label {id_}" and overlaps(line, box)
            ]
    outside = Box(layout.width // 2, layout.height // 2, layout.width, layout.height)
    return found + [
        f"{name} is cut off"
        for name, box in boxes.items()
        if box.left < outside.left or box.right > outside.right or box.bottom > outside.bottom
    ]


nodes = st.integers(0, 6).map(str)
ways = st.lists(st.tuples(nodes, nodes), max_size=12).filter(
    lambda ways: max(Counter(one for one, other in ways if one == other).values(), default=0) <= 1
)


@given(ways, st.sets(nodes, max_size=3))
def test_nothing_lies_on_anything_else(ways: list[tuple[str, str]], group: set[str]) -> None:
    """Whatever the graph, no label, node or line covers a label or a node, or is cut off."""
    edges = [Edge(f"E{n}", *way, width=60, height=20) for n, way in enumerate(ways)]
    sizes = {str(node): (80, 30) for node in range(7)}
    layout = layered(sizes, edges, [sorted(group)])

    assert collisions(layout) == []
    assert layout.routes.keys() == {edge.id for edge in edges}


def test_drawing_is_the_same_in_every_process() -> None:
    """No order of a set or hash shows in the drawing: every process draws the same bytes."""
    code = "from staging_fsm.faces.diagrams import *; print(svg(Diagram()), end='')"
    seeds = ("1", "2")
    texts = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            encoding="utf-8",
        ).stdout
        for seed in seeds
    ]

    assert texts == [svg(Diagram())] * len(seeds)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_changed_or_missing_file_is_outdated(tmp_path: Path, name: str) -> None:
    """One changed byte, or no file at all, is seen."""
    write_diagrams(tmp_path, Diagram())
    assert outdated(tmp_path, Diagram()) == []

    (tmp_path / name).write_bytes(b"x" + (tmp_path / name).read_bytes())
    assert outdated(tmp_path, Diagram()) == [name]

    (tmp_path / name).unlink()
    assert outdated(tmp_path, Diagram()) == [name]

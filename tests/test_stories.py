"""The request's stories, each as a golden transcript of what happened, in order.

TC-14, the anti-drift rule, is `test_anti_drift.py`.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Golden
from script import FIRED, Script
from sources import ROOT
from staging_fsm.core.spec import TRANSITIONS
from stories import STORIES, Begin, tc_09_missing_command_is_not_retried

HEADER = """A transcript of a real run, compared to the byte.
Rewrite it (pytest --rewrite) only after a change of behaviour that is wanted, understood,
and named in CHANGELOG.md; then read the difference line by line."""


@pytest.fixture
def begin(tmp_path: Path, repository: Path) -> Begin:
    """Return a function that begins a story."""

    def begin_story(suite: str, **settings: object) -> Script:
        return Script(tmp_path, repository, suite, **settings)

    return begin_story


@pytest.mark.parametrize("story", STORIES, ids=lambda story: str(story.__name__))
def test_story(
    story: Callable[[Begin], Script],
    begin: Begin,
    golden: Golden,
    record_property: Callable[[str, object], None],
) -> None:
    """Each story goes as its transcript says, event by event and effect by effect."""
    before = FIRED.copy()
    text = f"{story.__doc__}\n----\n{story(begin).text()}"
    record_property("fired by stories", dict(FIRED - before))

    golden(f"stories/{story.__name__}.txt", text, HEADER)


def test_every_transition_is_fired_by_a_story(request: pytest.FixtureRequest) -> None:
    """No row of the table is without a story that walks it."""
    chosen = [item for item in request.session.items if item.name.startswith("test_story[")]
    if len(chosen) < len(STORIES):
        pytest.skip("only some of the stories were chosen")

    assert set(FIRED) == {row.id for row in TRANSITIONS}


def test_coverage_of_the_stories_can_be_drawn(tmp_path: Path) -> None:
    """`--draw-coverage` draws the table with how often the stories walked each transition."""
    drawing = tmp_path / "coverage.svg"
    story = f"{__file__}::test_story[{tc_09_missing_command_is_not_retried.__name__}]"
    command = [sys.executable, "-m", "pytest", "--quiet", story, "--draw-coverage", str(drawing)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    text = drawing.read_text(encoding="utf-8")

    assert "T08: TOOL_ERROR to EXHAUSTED on BUDGET_SPENT (1)" in text
    assert "T07: TOOL_ERROR to DEFERRED on BUDGET_LEFT (0)" in text

"""The generated specification: every promise has something that holds it, and it is current."""

import re

import pytest

from specification import DOCUMENT, HELD_BY, MODEL, STORIES, specification, test_functions
from staging_fsm.core.invariants import INVARIANTS


def test_every_invariant_is_specified() -> None:
    """Each invariant stands in the specification, in its order, and nothing else does."""
    assert list(HELD_BY) == [invariant.__name__ for invariant in INVARIANTS]


@pytest.mark.parametrize("name", sorted(HELD_BY))
def test_what_holds_an_invariant_is_there(name: str) -> None:
    """Each test, transcript and model property that is named exists, and there are some."""
    holds = HELD_BY[name]
    words = set(re.findall(r"\w+", MODEL.read_text(encoding="utf-8")))

    assert set(holds.tests) <= set(test_functions())
    assert all((STORIES / f"{story}.txt").is_file() for story in holds.stories)
    assert set(holds.model) <= words
    assert holds.tests
    assert holds.stories


def test_specification_is_current(request: pytest.FixtureRequest) -> None:
    """`docs/specification.md` is, byte for byte, what the code and the tests say."""
    if request.config.getoption("--rewrite"):
        DOCUMENT.write_text(specification(), encoding="utf-8")

    assert DOCUMENT.read_text(encoding="utf-8") == specification()

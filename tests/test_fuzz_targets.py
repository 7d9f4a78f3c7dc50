"""Hostile text: every promise of the fuzz targets, over their seeds and over any bytes."""

import io
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.harness import TARGETS, seeds, target
from staging_fsm.core.errors import ReportUnreadableError
from staging_fsm.core.evidence import read_junit

#: The load of the machine must not decide.
brief = settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
SEEDS = [(name, path) for name in TARGETS for path in seeds(name)]


@pytest.mark.parametrize(("name", "seed"), SEEDS, ids=[f"{n}-{path.name}" for n, path in SEEDS])
def test_promise_holds_for_a_seed(name: str, seed: Path) -> None:
    """What was once worth keeping as a seed, a crash among it, breaks no promise."""
    refused = seed.name.startswith(("refused-", "no-", "not-"))

    assert target(name).fuzz(seed.read_bytes()) is not refused


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_show_both_sides(name: str) -> None:
    """The seeds of a target hold both what is accepted and what is refused."""
    assert {target(name).fuzz(seed.read_bytes()) for seed in seeds(name)} == {True, False}


@pytest.mark.parametrize("name", TARGETS)
@brief
@given(data=st.binary())
def test_promise_holds_for_any_bytes(name: str, data: bytes) -> None:
    """Bytes of any kind break no promise."""
    target(name).fuzz(data)


@pytest.mark.parametrize("name", TARGETS)
@brief
@given(data=st.data())
def test_promise_holds_for_any_damage(name: str, data: st.DataObject) -> None:
    """A seed with a few pieces replaced by others, or a few values by others, breaks no promise."""
    module = target(name)
    text = data.draw(st.sampled_from(seeds(name))).read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        if hasattr(module, "mutate"):
            random = data.draw(st.randoms(use_true_random=False))
            text = module.mutate(text, random, lambda part: damaged(part, data))
        else:
            text = damaged(text, data)

    module.fuzz(text)


def damaged(part: bytes, data: st.DataObject) -> bytes:
    """Return `part` with a piece of it replaced by any bytes."""
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(part))] * 2)))
    return part[:start] + data.draw(st.binary(max_size=8)) + part[end:]


#: What a large report may be made of, `{}` being counted up, and whether it is a report at all.
GROWING = {
    "element names": ("<testsuite>", "<n{}/>", "</testsuite>", False),
    "attribute names": ("<testsuite>", "<a n{}=''/>", "</testsuite>", False),
    "attributes of one tag": ("<testsuite ", "n{}='' ", "/>", False),
    "prefixes": ("<testsuite>", "<a xmlns:n{}='u'/>", "</testsuite>", False),
    "namespaces": ("<testsuite>", "<a xmlns='n{}'/>", "</testsuite>", False),
    "one attribute": ("<testsuite a='", "word {}", "'/>", False),
    "one comment": ("<testsuite><!--", "word {}", "--></testsuite>", False),
    "one name": ("<testsuite><n", "n{}", "/></testsuite>", False),
    "one text": ("<testsuite>", "word {} ", "</testsuite>", True),
    "one quoted text": ("<testsuite><![CDATA[", "word {} ", "]]></testsuite>", True),
}


@pytest.mark.parametrize("name", GROWING)
def test_memory_stays_below_the_size_of_a_report(name: str) -> None:
    """Whatever a report of 8 MiB repeats, it is counted or refused in less memory than it has."""
    first, repeated, last, readable = GROWING[name]
    size = 8 * 1024 * 1024
    words = (repeated.format(number) for number in range(size // len(repeated)))
    stream = io.BytesIO(f"{first}{''.join(words)}{last}".encode())
    tracemalloc.start()
    try:
        read_junit(stream)
        read = True
    except ReportUnreadableError:
        read = False
    finally:
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert read is readable
    assert highest < size

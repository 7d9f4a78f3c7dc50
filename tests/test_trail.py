"""The trail: whatever is altered in a stored attempt, one field at a time, is found."""

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from attempts import attempts, linked
from staging_fsm.core.errors import SnapshotRefusedError
from staging_fsm.core.invariants import Sight, trail_is_unbroken, violations
from staging_fsm.core.plan import Budget, Plan, SuitePlan
from staging_fsm.core.snapshot import Move, Run, Snapshot, load_snapshot
from staging_fsm.core.spec import TERMINAL
from staging_fsm.core.trail import NO_LINK, link_of, links
from trails import (
    ATTEMPTS,
    DUE,
    ERROR,
    LOST,
    NOW,
    PASSED,
    WRITTEN,
    Document,
    altered,
    at,
    document,
    leaves,
    put,
    walked,
)


def found(stored: Document) -> list[str]:
    """Return what is said against a stored attempt."""
    try:
        return violations(Sight(load_snapshot(stored)))
    except SnapshotRefusedError as error:
        return [error.problem]


@pytest.mark.parametrize("name", ATTEMPTS)
def test_attempt_as_the_engine_stored_it_is_sound(name: str) -> None:
    """An attempt that nobody touched is passed over in silence, at each of its moves."""
    assert found(document(ATTEMPTS[name])) == []
    assert linked(ATTEMPTS[name]) == ATTEMPTS[name]


CASES = [
    pytest.param(name, path, id=f"{name}-{'.'.join(map(str, path))}")
    for name, snapshot in ATTEMPTS.items()
    for path in leaves(document(snapshot))
]


@pytest.mark.parametrize(("name", "path"), CASES)
def test_every_altered_field_is_found(name: str, path: tuple[str | int, ...]) -> None:
    """No field of a stored attempt can be altered by hand without a word against it."""
    stored = document(ATTEMPTS[name])
    before = at(stored, path)

    unseen = []
    for other in altered(before):
        put(path, other)(stored)
        if other != before and not found(stored):
            unseen.append(other)

    assert unseen == []


def test_altered_link_is_told_where_it_was_altered() -> None:
    """A link that was altered speaks against its own move and the next, and none beyond."""
    stored = document(ATTEMPTS["failed closed"])
    stored["history"][2]["link"] = "0" * 64

    assert re.findall(r"move (\d+)", "\n".join(found(stored))) == ["3", "4"]


STRUCTURE: dict[str, Callable[[Document], Any]] = {
    "a move removed": lambda stored: stored["history"].pop(1),
    "the last move removed": lambda stored: stored["history"].pop(),
    "the last move removed, and the rest made to fit": lambda stored: (
        stored["history"].pop(),
        stored.update(state="EXHAUSTED", version=6),
    ),
    "a move repeated": lambda stored: stored["history"].insert(2, stored["history"][2]),
    "two moves exchanged": lambda stored: stored["history"].insert(1, stored["history"].pop(4)),
    "the links of two moves exchanged": lambda stored: (
        moves := stored["history"],
        link := moves[1]["link"],
        moves[1].update(link=moves[4]["link"]),
        moves[4].update(link=link),
    ),
    "a run removed": lambda stored: stored["runs"].pop(),
    "two runs exchanged": lambda stored: stored["runs"].reverse(),
    "a run with the facts of another": lambda stored: stored["runs"][0].update(
        {**stored["runs"][1], "number": 1}
    ),
    "the plan removed": lambda stored: stored.update(plan=None),
    "the artifact removed": lambda stored: stored.update(artifact=None),
    "a wait made up": lambda stored: stored.update(next_run_at=DUE),
    "another attempt's name": lambda stored: stored.update(attempt_id="8-3f"),
    "a history of another attempt": lambda stored: stored.update(
        history=document(attrs.evolve(ATTEMPTS["failed closed"], attempt_id="8"))["history"],
        attempt_id="8",
    ),
}


@pytest.mark.parametrize("change", STRUCTURE.values(), ids=STRUCTURE)
def test_every_altered_order_is_found(change: Callable[[Document], Any]) -> None:
    """No part of a stored attempt can be removed, repeated or exchanged without a word."""
    stored = document(ATTEMPTS["failed closed"])

    change(stored)

    assert found(stored) != []


PLANTED: dict[str, tuple[str, Callable[[Document], Any], str]] = {
    "a plan": (
        "declined",
        lambda stored: stored.update(plan=document(ATTEMPTS["running"])["plan"]),
        "it has a plan, and no move bound it to one",
    ),
    "an artifact": (
        "running",
        lambda stored: stored.update(artifact=attrs.asdict(WRITTEN)),
        "it has an artifact, and no gate answered",
    ),
    "a wait": (
        "running again",
        lambda stored: stored.update(next_run_at=DUE),
        f"its next run is due at {DUE}, and no move deferred it",
    ),
    "an exit code": (
        "running",
        lambda stored: stored["runs"][0].update(exit_code=0),
        "run 1 has no end, and something is known of it",
    ),
    "a result": (
        "cancelled while it ran",
        lambda stored: stored["runs"][0].update(reason="passed", exit_code=0),
        "run 1 has no end, and something is known of it",
    ),
    "a worker": (
        "adopted",
        lambda stored: stored.update(worker="a worker"),
        "its worker is a worker, and its last move was made by the worker after it",
    ),
}


@pytest.mark.parametrize(("name", "change", "words"), PLANTED.values(), ids=PLANTED)
def test_what_no_move_stored_is_found(
    name: str, change: Callable[[Document], Any], words: str
) -> None:
    """Whatever stands in an attempt was stored by one of its moves."""
    stored = document(ATTEMPTS[name])

    change(stored)

    assert f"{trail_is_unbroken.__name__}: {words}" in found(stored)


def test_whole_chain_made_anew_is_not_found() -> None:
    """The chain has no key: who alters a row and makes every link anew leaves a sound one."""
    forged = attrs.evolve(ATTEMPTS["advanced"], runs=(attrs.evolve(PASSED, detail="another"),))

    assert list(trail_is_unbroken(Sight(forged))) != []
    assert list(trail_is_unbroken(Sight(linked(forged)))) == []


@pytest.mark.parametrize("seconds", [float("nan"), float("inf")])
def test_what_is_no_number_has_no_link(seconds: float) -> None:
    """No link covers what JSON has no number for: such an attempt is never stored."""
    move = ATTEMPTS["lost"].history[1]
    run = attrs.evolve(LOST, duration_seconds=seconds)

    with pytest.raises(ValueError, match="not JSON compliant"):
        link_of("7-3f", NO_LINK, move, {"run": run})


def test_move_counts_on_from_the_version_that_was_read() -> None:
    """A move is stored as the version after the one that was read, whatever was set by hand."""
    read = attrs.evolve(ATTEMPTS["running"], version=9)

    assert walked(ERROR, before=read).version == 10


def test_first_link_follows_nothing() -> None:
    """The first link is made with an empty text for the one before it."""
    first = ATTEMPTS["declined"].history[0]

    assert link_of("7-3f", "", first, {}) == first.link


@settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
@given(attempts(TERMINAL))
def test_links_are_those_of_any_text(snapshot: Snapshot) -> None:
    """Whatever text and number an attempt holds, its links are the same after a round trip."""
    stored = load_snapshot(document(snapshot))

    assert [move.link for move in stored.history] == list(links(stored))


@pytest.mark.parametrize("number", [1e-05, 1.5e16, 0.5, 30.0])
@pytest.mark.parametrize("part", ["suite", "budget"])
def test_link_of_a_claim_is_the_digest_of_the_canonical_text(part: str, number: float) -> None:
    """What a claim is bound to is linked as Python writes it, each of its numbers too."""
    budget = Budget(1, number, number) if part == "budget" else Budget(1)
    timeout = number if part == "suite" else 30.0
    plan = Plan(SuitePlan(("make",), timeout_seconds=timeout), budget, "4c1d0a7")
    move = Move("T01", NOW, "claimed", "w", NO_LINK)
    covered = {
        "attempt_id": "7-3f",
        "move": {"id": "T01", "time": NOW, "reason": "claimed", "worker": "w"},
        "previous": "",
        "stored": {"plan": attrs.asdict(plan)},
    }
    canonical = json.dumps(covered, sort_keys=True, separators=(",", ":"))

    linked = link_of("7-3f", "", move, {"plan": plan})
    assert linked == hashlib.sha256(canonical.encode()).hexdigest()


@settings(deadline=None, max_examples=300)
@given(
    st.text(),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
    st.none() | st.integers(),
)
@example("\x7f", 0.5, 1)
@example("\ud800", 0.5, 1)
@example("plain", 1e-5, 1)
@example("plain", 9.9e-5, 1)
@example("plain", 1e15, 1)
@example("plain", 1e16, 2**70)
@example("plain", -0.0, None)
def test_link_is_the_digest_of_the_canonical_text(
    text: str, seconds: float | None, number: int | None
) -> None:
    """A link is the SHA-256 of the canonical JSON as Python writes it, whatever it covers."""
    run = Run(1, NOW, detail="a detail", duration_seconds=seconds, log_bytes=number, rule=text)
    move = Move("T03", NOW, "passed", "w", NO_LINK)
    told = {"id": "T03", "time": NOW, "reason": "passed", "worker": "w"}
    covered = {
        "attempt_id": text,
        "move": told,
        "previous": "ab",
        "stored": {"run": attrs.asdict(run)},
    }
    canonical = json.dumps(covered, sort_keys=True, separators=(",", ":"))
    expected = hashlib.sha256(canonical.encode()).hexdigest()

    assert expected == link_of(text, "ab", move, {"run": run})

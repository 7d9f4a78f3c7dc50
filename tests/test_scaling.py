"""The simulated fleet: held against queueing theory, and its committed figures against itself."""

from random import Random

import pytest

from benchmarks import report
from benchmarks.scaling import (
    Assumptions,
    Fleet,
    erlang_c,
    fleet_row,
    late,
    simulate,
    slots_needed,
)
from staging_fsm.core.plan import Budget
from staging_fsm.core.spec import TERMINAL, State

#: What Erlang C is about: exponential durations, and nobody comes back.
TEXTBOOK = Assumptions(suite_sigma=0, tool_error=0)


@pytest.mark.parametrize(("slots", "utilisation"), [(1, 0.5), (10, 0.8)])
def test_simulation_agrees_with_erlang_c(slots: int, utilisation: float) -> None:
    """Where queueing theory has an answer, the simulated fleet gives the same one."""
    load = slots * utilisation
    waiting = erlang_c(slots, load)
    mean = waiting * TEXTBOOK.suite_seconds / (slots - load)

    found = simulate(slots, load / TEXTBOOK.suite_seconds, 30_000, TEXTBOOK, seed=4)

    assert found["waiting"] == pytest.approx(waiting, rel=0.1)
    assert found["mean"] == pytest.approx(mean, rel=0.2)


@pytest.mark.parametrize(
    ("slots", "load", "share"), [(1, 0.5, 0.5), (2, 1.0, 1 / 3), (3, 2.0, 4 / 9), (2, 2.0, 1.0)]
)
def test_erlang_c_is_that_of_the_tables(slots: int, load: float, share: float) -> None:
    """The share that waits is that of the published tables."""
    assert erlang_c(slots, load) == pytest.approx(share)


def test_slots_are_the_fewest_that_are_enough() -> None:
    """With the slots that are asked for 95 of 100 do not wait too long; with one fewer, more do."""
    slots = slots_needed(50.0, TEXTBOOK)

    assert late(slots, 50.0, TEXTBOOK) <= 0.05 < late(slots - 1, 50.0, TEXTBOOK)


def test_every_simulated_attempt_ends_by_the_table() -> None:
    """Each attempt reaches a terminal state, and only a spent budget makes one fail closed."""
    assumed = Assumptions(tool_error=0.5, budget=Budget(infra_retries=1))
    fleet = Fleet(4, assumed, Random(1))  # noqa: S311  # a simulation, not a secret

    fleet.play(0.005, 4000)

    assert sum(fleet.ends.values()) == 4000
    assert set(fleet.ends) <= TERMINAL
    assert fleet.ends[State.FAILED_CLOSED] / 4000 == pytest.approx(0.25, abs=0.03)
    assert fleet.deferrals / 4000 == pytest.approx(0.5, abs=0.03)


def test_committed_figures_come_out_again() -> None:
    """The same seed gives the committed figures again, to the last digit."""
    committed = report.simulated()

    assert fleet_row(1_000, Assumptions()) == committed["fleets"][0]

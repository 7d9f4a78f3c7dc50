"""`make scaling`: how many suites at once a fleet needs, by simulating it event by event.

An attempt arrives, waits for a free slot, runs, and is judged; a tool error waits for its
next run. Each move is one of the real table, and whether and when another run follows is
said by the real budget. Only the clock, the arrivals, the durations and the endings of the
suites are made up, from a seed: the same seed gives the same figures to the last digit.

A slot is one suite in hand of one worker. What is assumed stands in `Assumptions`, what
was measured in `results.json`; the report keeps the two apart.
"""
# ruff: noqa: S311, T201  # a simulation, not a secret; a program, and says how far it is

import argparse
import heapq
import itertools
import json
import math
import random
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from staging_fsm.core.machine import step
from staging_fsm.core.outcome import Reason
from staging_fsm.core.plan import Budget
from staging_fsm.core.spec import INITIAL, TERMINAL, Event, State

ROOT = Path(__file__).parent.parent
FIGURES = Path(__file__).with_name("scaling.json")
DAY_SECONDS = 86_400
#: The beginning, with its empty fleet, is no picture of a busy day.
WARM_UP = 0.2


@dataclass(frozen=True)
class Assumptions:
    """What nobody measured: it is a property of the suites and of the day, not of the runner."""

    suite_seconds: float = 300.0
    #: Of the logarithm of a suite's duration; 0 stands for exponential durations.
    suite_sigma: float = 1.0
    failed: float = 0.10
    tool_error: float = 0.02
    #: The busiest hour, as a multiple of the day's average.
    peak: float = 3.0
    #: The slots are enough if 95 of 100 attempts wait no longer than this for their first run.
    wait_seconds: float = 60.0
    budget: Budget = field(default_factory=Budget)

    def duration(self, chance: random.Random) -> float:
        """Return how long one run takes."""
        if self.suite_sigma == 0:
            return chance.expovariate(1 / self.suite_seconds)
        mean_of_log = math.log(self.suite_seconds) - self.suite_sigma**2 / 2
        return chance.lognormvariate(mean_of_log, self.suite_sigma)

    def ending(self, chance: random.Random) -> Event:
        """Return what one run shows."""
        number = chance.random()
        if number < self.tool_error:
            return Event.SUITE_NOT_EXECUTED
        return Event.SUITE_FAILED if number < self.tool_error + self.failed else Event.SUITE_PASSED

    def runs_of_an_attempt(self) -> float:
        """Return how many runs an attempt takes on average, with those that are tried again."""
        return sum(self.tool_error**n for n in range(self.budget.runs_max))


@dataclass
class Attempt:
    """One attempt: where it is, since when it is due, and why its runs ended without a verdict."""

    id: str
    due: float
    state: State = INITIAL
    reasons: tuple[Reason, ...] = ()

    def on(self, event: Event) -> None:
        """Walk one row of the table."""
        self.state = step(self.state, event).target


@dataclass
class Fleet:
    """Slots, a queue in order of due times, and what happened."""

    slots: int
    assumed: Assumptions
    chance: random.Random
    waits: list[float] = field(default_factory=list)
    ends: Counter[State] = field(default_factory=Counter)
    busy_seconds: float = 0.0
    deferrals: int = 0

    def play(self, rate: float, attempts: int) -> None:
        """Let `attempts` arrive at random, `rate` a second, and end."""
        agenda: list[tuple[float, int, Attempt]] = []
        queue: list[tuple[float, int, Attempt]] = []
        number = itertools.count()
        arrivals, now, free = self._arrivals(rate, attempts), 0.0, self.slots
        heapq.heappush(agenda, (0.0, next(number), next(arrivals)))
        while agenda:
            now, _, attempt = heapq.heappop(agenda)
            if attempt.state is State.RUNNING:
                free += 1
                if self._end_run(attempt, now):
                    heapq.heappush(agenda, (attempt.due, next(number), attempt))
            else:
                if attempt.state is INITIAL and (later := next(arrivals, None)):
                    heapq.heappush(agenda, (later.due, next(number), later))
                heapq.heappush(queue, (attempt.due, next(number), attempt))
            while free and queue:
                free -= 1
                _, _, claimed = heapq.heappop(queue)
                self._begin_run(claimed, now)
                seconds = self.assumed.duration(self.chance)
                self.busy_seconds += seconds
                heapq.heappush(agenda, (now + seconds, next(number), claimed))

    def _arrivals(self, rate: float, attempts: int) -> Iterator[Attempt]:
        now = 0.0
        for number in range(attempts):
            yield Attempt(str(number), now)
            now += self.chance.expovariate(rate)

    def _begin_run(self, attempt: Attempt, now: float) -> None:
        if attempt.state is INITIAL:
            self.waits.append(now - attempt.due)
        attempt.on(Event.JOB_CLAIMED)

    def _end_run(self, attempt: Attempt, now: float) -> bool:
        """Judge a run that has ended; say whether another one follows."""
        event = self.assumed.ending(self.chance)
        attempt.on(event)
        if attempt.state is State.TOOL_ERROR:
            attempt.reasons += (Reason.TOOL_EXIT_CODE,)
            attempt.on(self.assumed.budget.spend(attempt.reasons))
        if attempt.state is State.DEFERRED:
            self.deferrals += 1
            wait = self.assumed.budget.delay_seconds(attempt.id, len(attempt.reasons))
            attempt.due = now + wait
            return True
        passed = attempt.state is State.VERDICT_PASSED
        attempt.on(Event.GATE_OPENED if passed else Event.GATE_REFUSED)
        assert attempt.state in TERMINAL
        self.ends[attempt.state] += 1
        return False

    def settled_waits(self) -> list[float]:
        """Return the waits for the first run, sorted, without those of the beginning."""
        return sorted(self.waits[int(len(self.waits) * WARM_UP) :])


def simulate(
    slots: int, rate: float, attempts: int, assumed: Assumptions, seed: int
) -> dict[str, float]:
    """Return how long attempts wait in a fleet of `slots` at `rate` arrivals a second."""
    fleet = Fleet(slots, assumed, random.Random(seed))
    fleet.play(rate, attempts)
    waits = fleet.settled_waits()
    return {
        "waiting": round(sum(wait > 0 for wait in waits) / len(waits), 3),
        "mean": round(statistics.fmean(waits), 1),
        "median": round(waits[len(waits) // 2], 1),
        "p95": round(waits[len(waits) * 95 // 100], 1),
        "p99": round(waits[len(waits) * 99 // 100], 1),
        "failed_closed": fleet.ends[State.FAILED_CLOSED],
        "deferrals": fleet.deferrals,
    }


def erlang_c(slots: int, load: float) -> float:
    """Return the share of arrivals that wait: Erlang (1917), by the recursion for Erlang B."""
    if load >= slots:
        return 1.0
    blocked = 1.0
    for number in range(1, slots + 1):
        blocked = load * blocked / (number + load * blocked)
    return blocked / (1 - load / slots * (1 - blocked))


def late(slots: int, load: float, assumed: Assumptions) -> float:
    """Return the share that waits longer than is wanted, by Erlang C."""
    over = (slots - load) / assumed.suite_seconds * assumed.wait_seconds
    return erlang_c(slots, load) * math.exp(-over)


def slots_needed(load: float, assumed: Assumptions) -> int:
    """Return the fewest slots of which Erlang C says that 95 of 100 do not wait too long."""
    slots = math.floor(load) + 1
    while late(slots, load, assumed) > 0.05:
        slots += 1
    return slots


def fleet_row(per_day: int, assumed: Assumptions) -> dict[str, float]:
    """Return the size of a fleet for so many attempts a day, and its waits at the peak."""
    rate = per_day / DAY_SECONDS * assumed.peak
    load = rate * assumed.suite_seconds * assumed.runs_of_an_attempt()
    slots = slots_needed(load, assumed)
    attempts = max(20_000, min(1_000_000, per_day))
    return {
        "per_day": per_day,
        "per_second": round(rate, 3),
        "load": round(load, 1),
        "slots": slots,
        "utilisation": round(load / slots, 3),
        "simulated": attempts,
        **simulate(slots, rate, attempts, assumed, seed=per_day),
    }


def utilisation_row(slots: int, utilisation: float, assumed: Assumptions) -> dict[str, float]:
    """Return how long attempts wait in one fleet at one utilisation, and what Erlang C says."""
    load = slots * utilisation
    rate = load / assumed.suite_seconds / assumed.runs_of_an_attempt()
    waiting = erlang_c(slots, load)
    return {
        "slots": slots,
        "utilisation": utilisation,
        "erlang_waiting": round(waiting, 3),
        "erlang_mean": round(waiting * assumed.suite_seconds / (slots - load), 1),
        **simulate(slots, rate, 50_000, assumed, seed=round(1000 * utilisation)),
    }


SIZES = (1_000, 10_000, 100_000, 1_000_000)
UTILISATIONS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
SLOTS = 64


def figures(say: Callable[[str], None]) -> dict[str, list[dict[str, float]]]:
    """Return everything that is simulated for the document."""
    assumed = Assumptions()
    found: dict[str, list[dict[str, float]]] = {"fleets": [], "utilisation": []}
    for utilisation in UTILISATIONS:
        found["utilisation"].append(utilisation_row(SLOTS, utilisation, assumed))
        say(f"{SLOTS} slots at {utilisation:.0%}")
    for per_day in SIZES:
        found["fleets"].append(fleet_row(per_day, assumed))
        say(f"{per_day} attempts a day")
    return found


def main() -> int:
    """Simulate, and write the figures down or, with `--check`, compare them."""
    parser = argparse.ArgumentParser(description="Simulate fleets of staging workers.")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    check = parser.parse_args().check
    text = json.dumps(figures(print), indent=1) + "\n"
    if check:
        return 0 if FIGURES.read_text(encoding="utf-8") == text else 1
    FIGURES.write_text(text, encoding="utf-8")
    print(f"written: {FIGURES}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

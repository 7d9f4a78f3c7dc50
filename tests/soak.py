"""Volume: simulated worlds without end, or until a number of attempts is reached.

`python tests/soak.py --attempts N --seed S` plays worlds from seed S on, on every
core, and prints how many attempts ran, how often each transition fired, and every
broken promise with its seed and its moves. It ends with 1 if there was one.
"""
# ruff: noqa: T201  # it is a program, and its report goes to standard output

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

from chance import Tally, play
from simulated import ViolationError, simulation
from staging_fsm.core.spec import TRANSITIONS

#: How many worlds one process plays before it reports.
CHUNK = 200
#: How many broken promises are enough to stop.
BROKEN_MAX = 3


def play_chunk(first_seed: int) -> tuple[Tally, list[str]]:
    """Play CHUNK worlds; return what they came to, and every broken promise."""
    tally, broken = Tally(), []
    with simulation():
        for seed in range(first_seed, first_seed + CHUNK):
            try:
                tally.add(play(seed))
            except ViolationError as violation:
                broken.append(str(violation))
    return tally, broken


def chunks(first_seed: int, processes: int) -> Iterator[tuple[Tally, list[str]]]:
    """Yield the results of chunk after chunk, in the order of their seeds, for ever."""
    if processes == 1:
        while True:
            yield play_chunk(first_seed)
            first_seed += CHUNK
    with ProcessPoolExecutor(processes) as pool:
        while True:
            seeds = range(first_seed, first_seed + 4 * processes * CHUNK, CHUNK)
            yield from pool.map(play_chunk, seeds)
            first_seed = seeds[-1] + CHUNK


def soak(
    attempts: int,
    results: Iterable[tuple[Tally, list[str]]],
    is_over: Callable[[], bool] = lambda: False,
) -> tuple[Tally, list[str]]:
    """Add results up until there are enough attempts, too many broken promises, or it is over."""
    total = Tally()
    violations: list[str] = []
    for tally, broken in results:
        total.merge(tally)
        violations += broken
        if total.attempts >= attempts or len(violations) >= BROKEN_MAX or is_over():
            break
    return total, violations


def main() -> int:
    """Soak, and say what came of it."""
    parser = argparse.ArgumentParser(description="Simulate staging attempts in volume.")
    parser.add_argument("--attempts", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    began = time.monotonic()
    interrupts: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: interrupts.append(number))
    results = chunks(options.seed, options.processes)
    total, violations = soak(options.attempts, results, lambda: bool(interrupts))
    seconds = time.monotonic() - began
    never = [row.id for row in TRANSITIONS if row.id not in total.fired]
    for violation in violations:
        print(violation, end="\n\n")
    print(f"seeds from {options.seed}: {total.worlds} worlds, {total.moves} moves")
    for row in TRANSITIONS:
        print(f"  {row.id} {row.source} --{row.event}--> {row.target}: {total.fired[row.id]}")
    print(f"transitions fired: {len(TRANSITIONS) - len(never)}/{len(TRANSITIONS)}")
    rate = total.attempts / seconds
    print(f"attempts: {total.attempts} in {seconds:.0f} s, {rate:.0f} per second")
    print(f"violations: {len(violations)}")
    if interrupts:
        print(f"interrupted: {options.attempts} attempts were asked for")
    return 1 if violations or never or interrupts else 0


if __name__ == "__main__":
    sys.exit(main())

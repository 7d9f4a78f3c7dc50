"""The same durable jobs done by every contender, in interleaved rounds, against the floor.

Whatever else the machine does falls on all alike: each round has every contender once,
the next one in the opposite order, and a ratio is taken within its round.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS
from benchmarks.server import Server, postgresql

HERE = Path(__file__).parent
PEERS_PYTHON = HERE.parent / ".venv" / "bench" / "bin" / "python"
OURS = ("floor", "floor, as safe", "staging_fsm", "staging_fsm, supervised")
NEED_SERVER = ("absurd", "procrastinate", "dbos, PostgreSQL")
CONCURRENCIES = (1, 4)
#: The slope between two numbers of jobs is what one more job costs.
FEW, MANY = 10, 30


def run(name: str, jobs: int, concurrency: int, server: Server | None, *trace: str) -> Any:
    """Run one contender in a process of its own; return its cost, the server's included."""
    python = sys.executable if name in OURS else str(PEERS_PYTHON)
    uses = server if name in NEED_SERVER else None
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        options = {"jobs": jobs, "concurrency": concurrency, "folder": folder}
        if uses is not None:
            fresh_database(uses)
            options["dsn"] = uses.dsn("bench")
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        before = uses.cpu_seconds() if uses is not None else 0.0
        ended = subprocess.run(
            [*trace, python, str(HERE / "contenders.py"), name, *words],
            check=True,
            capture_output=True,
            text=True,
        )
        cost = json.loads(ended.stdout)
        if uses is not None:
            # Counted with its start of sessions and its schema: little, and the peers' own.
            cost["cpu_seconds"] += uses.cpu_seconds() - before
    return cost


def fresh_database(server: Server) -> None:
    """Give the server a database `bench` with nothing in it."""
    for statement in ("DROP DATABASE IF EXISTS bench", "CREATE DATABASE bench"):
        server.sql(statement)


def measure(jobs: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return what each contender costs relative to the floor, over all rounds."""
    with postgresql() as server:
        names = present(server)
        costs = list(play(names, jobs, rounds, server, say))
        rows = []
        for name in names:
            row: dict[str, Any] = {"name": name, "syncs": syncs_per_job(name, server)}
            for concurrency in CONCURRENCIES:
                mine = [one[name, concurrency] for one in costs]
                floors = [one["floor", concurrency] for one in costs]
                row[f"wall_c{concurrency}"] = spread(mine, floors, "wall_seconds")
                row[f"cpu_c{concurrency}"] = spread(mine, floors, "cpu_seconds")
                row[f"ms_c{concurrency}"] = round(
                    1000 * statistics.median(c["wall_seconds"] for c in mine) / jobs, 2
                )
            rows.append(row)
        return {
            "jobs": jobs,
            "rounds": rounds,
            "server": server.version if server else "no PostgreSQL on this machine",
            "rows": rows,
            "added_ms": added_ms(costs, jobs),
        }


def present(server: Server | None) -> list[str]:
    """Return the contenders that can be run here."""
    return [
        name
        for name in CONTENDERS
        if name in OURS
        or (PEERS_PYTHON.exists() and (server is not None or name not in NEED_SERVER))
    ]


def memory() -> dict[str, Any]:
    """Return the most memory that each contender's process held."""
    with postgresql() as server:
        return {
            "peak_mib": {
                name: round(run(name, MANY, 1, server)["peak_rss_mib"]) for name in present(server)
            }
        }


def play(
    names: list[str], jobs: int, rounds: int, server: Server | None, say: Callable[[str], None]
) -> Iterator[dict[tuple[str, int], Any]]:
    """Yield the costs of each round, by contender and concurrency."""
    for number in range(rounds):
        order = names if number % 2 == 0 else names[::-1]
        costs = {}
        for concurrency in CONCURRENCIES:
            for name in order:
                costs[name, concurrency] = run(name, jobs, concurrency, server)
        say(f"round {number + 1} of {rounds}")
        yield costs


def spread(mine: list[Any], floors: list[Any], what: str) -> list[float]:
    """Return the median of the ratios to the floor of the same round, and their extremes."""
    ratios = [one[what] / floor[what] for one, floor in zip(mine, floors, strict=True)]
    return [round(n, 2) for n in (statistics.median(ratios), min(ratios), max(ratios))]


def added_ms(costs: list[dict[tuple[str, int], Any]], jobs: int) -> list[float]:
    """Return how many milliseconds a supervised attempt takes longer than the floor's job."""
    added = [
        1000
        * (one["staging_fsm, supervised", 1]["wall_seconds"] - one["floor", 1]["wall_seconds"])
        / jobs
        for one in costs
    ]
    return [round(n, 1) for n in (statistics.median(added), min(added), max(added))]


def syncs_per_job(name: str, server: Server | None) -> float | None:
    """Return how often one more job makes somebody wait for the disk; None without strace."""
    try:
        few, many = (synced(name, jobs, server) for jobs in (FEW, MANY))
    except FileNotFoundError:
        return None
    return round((many - few) / (MANY - FEW), 2)


def synced(name: str, jobs: int, server: Server | None) -> int:
    """Count the calls of fsync and fdatasync of a contender, its children and its server."""
    before = server.syncs() if server else 0
    with tempfile.NamedTemporaryFile(prefix="bench-strace-") as counts:
        run(name, jobs, 1, server, "strace", "-f", "-c", "-U", "calls,name",
            "-e", "trace=fsync,fdatasync", "-o", counts.name)  # fmt: skip
        text = Path(counts.name).read_text(encoding="utf-8")
    client = sum(int(n) for n in re.findall(r"^ *(\d+) +(?:fsync|fdatasync)$", text, re.MULTILINE))
    server_syncs = server.syncs() - before if server and name in NEED_SERVER else 0
    return client + server_syncs

"""The tables of `docs/performance.md` and `docs/scaling.md`, made of the committed figures."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.scaling import DAY_SECONDS, Assumptions

HERE = Path(__file__).parent
Figures = dict[str, Any]
NOT_MEASURED = "Not measured yet"


def results() -> Figures:
    """Return what was measured last."""
    found: Figures = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
    return found


def simulated() -> Figures:
    """Return what was simulated last."""
    found: Figures = json.loads((HERE / "scaling.json").read_text(encoding="utf-8"))
    return found


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table."""
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def machine_rows() -> str:
    """Return the machine and the versions."""
    machine = results()["peers"]["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return table(
        ["", ""],
        [
            ["processor", f"{machine['processor']}, {machine['cores']} cores"],
            ["memory", f"{machine['memory_gib']} GiB"],
            ["file system", machine["file_system"]],
            ["kernel", machine["kernel"]],
            ["Python", machine["python"]],
            ["server", results()["peers"]["server"]],
            ["versions", versions],
            ["load average at the start", machine["load_at_start"]],
        ],
    )


def peer_rows() -> str:
    """Return the comparison with the floor and the peers, cheapest first."""
    found = results()
    rows = sorted(found["peers"]["rows"], key=lambda row: row["wall_c1"][0])
    held = found["peer_memory"]["peak_mib"]
    return table(
        [
            "contender",
            "wall, 1 at once",
            "wall, 4 at once",
            "CPU, 1 at once",
            "CPU, 4 at once",
            "ms a job",
            "syncs a job",
            "peak RSS",
        ],
        (
            [
                row["name"],
                *(spread(row[key]) for key in ("wall_c1", "wall_c4", "cpu_c1", "cpu_c4")),
                row["ms_c1"],
                "-" if row["syncs"] is None else f"{row['syncs']:g}",
                f"{held[row['name']]} MiB",
            ]
            for row in rows
        ),
    )


def spread(found: list[float]) -> str:
    """Return a median with its extremes."""
    return f"{found[0]:g} ({found[1]:g} to {found[2]:g})"


def queue_rows() -> str:
    """Return claim, recovery and queue page by the size of the table."""
    if "queue" not in results():
        return f"{NOT_MEASURED}: `make bench SECTIONS=queue`.\n"
    return table(
        ["database", "finished rows", "claim", "recovery", "queue page"],
        (
            [
                row["database"],
                f"{row['finished']:,}",
                *(f"{row[key]:g} ms" for key in ("claim_ms", "recover_ms", "queue_ms")),
            ]
            for row in results()["queue"]["rows"]
        ),
    )


def at_once_rows() -> str:
    """Return one worker with many suites in hand."""
    return table(
        ["suite", "in hand at once", "attempts a second", "CPU of the worker, an attempt"],
        (
            [
                f"`{row['suite']}`",
                row["concurrency"],
                f"{row['per_second']:g}",
                f"{row['worker_cpu_ms']:g} ms",
            ]
            for row in results()["at_once"]["rows"]
        ),
    )


def target_rows() -> str:
    """Return each target with what was measured, and whether it holds."""
    return table(
        ["what", "target", "measured", "holds"],
        (
            [what, target, measured, {True: "yes", False: "**no**", None: "not known"}[holds]]
            for what, target, measured, holds in targets(results())
        ),
    )


Target = tuple[str, str, str, bool | None]


def targets(found: Figures) -> Iterator[Target]:
    """Yield what is aimed at, in words, what was measured, and whether that is enough."""
    rows = {row["name"]: row for row in found["peers"]["rows"]}
    for key, words in (("c1", "1 at once"), ("c4", "4 at once")):
        wall, cpu = rows["staging_fsm"][f"wall_{key}"][0], rows["staging_fsm"][f"cpu_{key}"][0]
        yield f"attempt without supervisor, wall, {words}", "2 × floor", f"{wall:g} ×", wall <= 2
        yield f"attempt without supervisor, CPU, {words}", "2 × floor", f"{cpu:g} ×", cpu <= 2
    added = found["peers"]["added_ms"][0]
    yield "attempt with supervisor", "floor + 40 ms", f"floor + {added:g} ms", added <= 40
    machine = found["machine"]
    yield "a step of the machine", "10 µs", f"{machine['step_us']:g} µs", machine["step_us"] <= 10
    both = max(machine["load_us"], machine["store_us"])
    yield "a snapshot, loaded or stored", "50 µs", f"{both:g} µs", both <= 50
    held = found["memory"]["mib"]
    yield "10,000 live attempts", "50 MiB", f"{held:g} MiB", held <= 50
    yield from queue_targets(found)
    percent = found["output"]["of_cat_percent"]
    held = found["output"]["peak_mib"]
    words = f"{percent} %, the supervisor at {held:g} MiB"
    yield "2 GiB of output", "60 % of `cat > file`", words, percent >= 60
    core = found["waiting"]["core_percent"]
    yield "64 waiting suites", "0.1 % of a core", f"{core:g} %", core < 0.1
    start = found["start_up"]
    decision, help_ = start["decision_added_ms"], start["help_ms"]
    yield "the first decision", "interpreter + 80 ms", f"+ {decision} ms", decision <= 80
    yield "`staging-fsm --help`", "150 ms", f"{help_} ms", help_ <= 150
    yield rate_target(found, "simulation", "attempts_per_second", "simulated attempts")
    yield rate_target(found, "audit", "rows_per_second", "audited rows")


def rate_target(found: Figures, section: str, key: str, what: str) -> Target:
    """Return a rate with its target, or that it has not been measured."""
    if section not in found:
        return what, "20,000 a second", NOT_MEASURED.lower(), None
    rate = found[section][key]
    return what, "20,000 a second", f"{rate:,} a second", rate >= 20_000


def queue_targets(found: Figures) -> Iterator[Target]:
    """Yield how much slower each question becomes from the small table to the large one."""
    if "queue" not in found:
        yield "queue at 1,000,000 rows", "2 × of 1,000 rows", NOT_MEASURED.lower(), None
        return
    rows = found["queue"]["rows"]
    for database in dict.fromkeys(row["database"] for row in rows):
        small, large = (row for row in rows if row["database"] == database)
        for key, words in (
            ("claim_ms", "claim"),
            ("recover_ms", "recovery"),
            ("queue_ms", "queue"),
        ):
            # Below the resolution of the figures everything is as fast.
            ratio = large[key] / max(small[key], 0.01)
            what = f"{words}, {large['finished']:,} against {small['finished']:,} rows, {database}"
            yield what, "2 ×", f"{ratio:.1f} ×", ratio <= 2


def fleet_rows() -> str:
    """Return the size of fleets."""
    return table(
        ["attempts a day", "at the peak", "suites at once", "slots", "in use",
         "that wait", "median wait", "95 of 100", "99 of 100"],
        (
            [
                f"{row['per_day']:,}",
                f"{row['per_second']:.2f} a second",
                f"{row['load']:,.0f}",
                f"{row['slots']:,}",
                f"{row['utilisation']:.1%}",
                f"{row['waiting']:.0%}",
                *(f"{row[key]:.0f} s" for key in ("median", "p95", "p99")),
            ]
            for row in simulated()["fleets"]
        ),
    )  # fmt: skip


def utilisation_rows() -> str:
    """Return waits against utilisation, beside what Erlang C says of exponential durations."""
    return table(
        [
            "in use",
            "that wait",
            "by Erlang C",
            "mean wait",
            "by Erlang C",
            "95 of 100",
            "99 of 100",
        ],
        (
            [
                f"{row['utilisation']:.0%}",
                f"{row['waiting']:.1%}",
                f"{row['erlang_waiting']:.1%}",
                f"{row['mean']:.1f} s",
                f"{row['erlang_mean']:.1f} s",
                f"{row['p95']:.0f} s",
                f"{row['p99']:.0f} s",
            ]
            for row in simulated()["utilisation"]
        ),
    )


def utilisation_plot() -> str:
    """Return the 95th percentile of the wait as bars, one character for five seconds."""
    bars = (
        f"{row['utilisation']:5.0%} {'#' * round(row['p95'] / 5)} {row['p95']:.0f} s\n"
        for row in simulated()["utilisation"]
    )
    return "```text\n" + "".join(bars) + "```\n"


def assumption_rows() -> str:
    """Return what was assumed, because nobody can measure it here."""
    assumed = Assumptions()
    return table(
        ["assumption", "value"],
        [
            ["mean duration of a suite", f"{assumed.suite_seconds:g} s"],
            ["spread of durations (log-normal, sigma)", f"{assumed.suite_sigma:g}"],
            ["suites that fail", f"{assumed.failed:.0%}"],
            ["runs that end in a tool error", f"{assumed.tool_error:.0%}"],
            ["the busiest hour against the average one", f"{assumed.peak:g} ×"],
            ["wait that 95 of 100 attempts must not exceed", f"{assumed.wait_seconds:g} s"],
        ],
    )


def limits(found: Figures) -> Iterator[tuple[str, float, str]]:
    """Yield what is used up, by how many attempts a day, and from which figures that follows."""
    assumed = Assumptions()
    peers = {row["name"]: row for row in found["peers"]["rows"]}
    at_peak = DAY_SECONDS / assumed.peak
    ours = [row for row in found["at_once"]["rows"] if row["suite"] == "/bin/true"]
    best = max(row["per_second"] for row in ours)
    yield (
        "one machine of this size: processor, with suites that cost nothing",
        best * at_peak,
        f"{best:g} attempts a second, supervised, measured",
    )
    cost = peers["staging_fsm"]["ms_c4"]
    yield (
        "one SQLite file: its one writer",
        1000 / cost * at_peak,
        f"{cost:g} ms an attempt, 4 at once, without supervisor, measured",
    )
    slots = 64
    yield (
        f"one worker of {slots} slots",
        slots / assumed.suite_seconds * DAY_SECONDS / assumed.peak / assumed.runs_of_an_attempt(),
        f"{assumed.suite_seconds:g} s a suite, assumed",
    )


def limit_rows() -> str:
    """Return what breaks first: the least number of attempts a day stands first."""
    rows = sorted(limits(results()), key=lambda row: row[1])
    return table(
        ["what is used up", "at attempts a day", "from"],
        ([what, f"{per_day:,.0f}", source] for what, per_day, source in rows),
    )


BLOCKS = {
    ("docs/performance.md", "machine"): machine_rows,
    ("docs/performance.md", "targets"): target_rows,
    ("docs/performance.md", "peers"): peer_rows,
    ("docs/performance.md", "queue"): queue_rows,
    ("docs/performance.md", "at-once"): at_once_rows,
    ("docs/scaling.md", "assumptions"): assumption_rows,
    ("docs/scaling.md", "fleets"): fleet_rows,
    ("docs/scaling.md", "utilisation"): utilisation_rows,
    ("docs/scaling.md", "plot"): utilisation_plot,
    ("docs/scaling.md", "limits"): limit_rows,
}

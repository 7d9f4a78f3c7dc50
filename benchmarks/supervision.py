"""What supervision costs: start, kill, waiting, output and memory, each beside the bare thing.

`python benchmarks/supervision.py` prints one line a figure, the median of several
rounds, with its bound where one is promised. Quiet machine, nothing else running:
the figures are of this machine, and only their ratios travel.
"""

import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from staging_fsm.core.plan import UNVERSIONED, SuitePlan
from staging_fsm.core.ports import RunOrder
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.effects.suite import LocalSuites

ROUNDS: Final = 9
PROCESSES: Final = 500
OUTPUT_BYTES: Final = 1 << 30
SMALL_OUTPUT_BYTES: Final = 1 << 20
LOG_MAX_BYTES: Final = 16 << 20
WAIT_SECONDS: Final = 5.0
#: Prints when it runs, by the clock that counts from the machine's start.
NOW: Final = "import time; print(time.clock_gettime(time.CLOCK_BOOTTIME))"
#: Many processes that do not listen and hold a line, and say when they are all there.
CROWD: Final = f"""
import os, signal
line = os.open(os.environ["LINE"], os.O_WRONLY)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range({PROCESSES}):
    if os.fork() == 0:
        os.write(line, b".")
        while True:
            signal.pause()
while True:
    signal.pause()
"""
PYTHON: Final = (sys.executable, "-S", "-E", "-c")


class Bench:
    """A folder for runs, numbered from 1."""

    def __init__(self, root: Path) -> None:
        """Keep everything below `root`."""
        self.root, self.number = root, 0
        self.line = root / "line"
        os.mkfifo(self.line)
        self.state = StateDir(root / "state")
        self.suites = LocalSuites(self.state, {**os.environ, "LINE": str(self.line)})

    def start(self, *command: str, **plan: Any) -> str:
        """Start a run and return its name."""
        self.number += 1
        run_id = f"bench.{self.number}"
        given = {"kill_grace_seconds": 0.0, "environment": ("LINE",), **plan}
        suite = SuitePlan(command, log_max_bytes=LOG_MAX_BYTES, **given)
        self.suites.start(RunOrder(run_id, self.root, UNVERSIONED, suite))
        return run_id

    def supervisor(self, run_id: str) -> Path:
        """Return what the system says of a run's supervisor."""
        identity = self.state.run(run_id) / "leader"
        while not identity.exists():
            os.sched_yield()
        pid = identity.with_name("shim").read_text().split()[0].removeprefix("pid=")
        return Path("/proc", pid)


def boot_seconds() -> float:
    """Return the time since the machine started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def median_of(measure: Callable[[], float]) -> float:
    """Return the median of several rounds."""
    return statistics.median(measure() for _ in range(ROUNDS))


def start_of_a_run(bench: Bench) -> tuple[float, float]:
    """Return how long it takes until a program runs: started bare, and as a suite."""

    def bare() -> float:
        begun = boot_seconds()
        return float(subprocess.check_output([*PYTHON, NOW])) - begun

    def supervised() -> float:
        begun = boot_seconds()
        run_id = bench.start(*PYTHON, NOW)
        bench.suites.await_report(run_id)
        return float(bench.suites.log_tail(run_id, 100)) - begun

    return median_of(bare), median_of(supervised)


def await_crowd(line: int) -> None:
    """Wait until all have announced themselves."""
    left = PROCESSES
    while left:
        left -= len(os.read(line, left))


def await_end(line: int) -> None:
    """Wait until nobody holds the line."""
    while os.read(line, 4096):
        pass


def kill_of_a_tree(bench: Bench) -> tuple[float, float]:
    """Return how long it takes until a large tree is dead: by a bare killpg, and by us."""
    environment = {**os.environ, "LINE": str(bench.line)}

    def open_line() -> int:
        line = os.open(bench.line, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(line, True)
        return line

    def bare() -> float:
        line = open_line()
        with subprocess.Popen([*PYTHON, CROWD], env=environment, start_new_session=True) as process:
            wait_for_writer(line)
            await_crowd(line)
            begun = time.monotonic()
            os.killpg(process.pid, signal.SIGKILL)
            await_end(line)
            seconds = time.monotonic() - begun
        os.close(line)
        return seconds

    def supervised() -> float:
        line = open_line()
        run_id = bench.start(*PYTHON, CROWD)
        wait_for_writer(line)
        await_crowd(line)
        reaping = threading.Thread(target=bench.suites.reap, args=(run_id,))
        begun = time.monotonic()
        reaping.start()
        await_end(line)
        seconds = time.monotonic() - begun
        reaping.join()
        os.close(line)
        return seconds

    rounds = [(bare(), supervised()) for _ in range(ROUNDS)]
    # One beside the other: what else the machine does meets both.
    return statistics.median(a for a, _ in rounds), statistics.median(b for _, b in rounds)


def wait_for_writer(line: int) -> None:
    """Wait until somebody has opened the other end: before, a read says that all are gone."""
    poll = select.poll()
    poll.register(line, select.POLLIN)
    poll.poll()


def throughput(bench: Bench) -> tuple[float, float]:
    """Return how many bytes a second get to the disk: by `cat > file`, and as a suite's output."""
    command = f"head -c {OUTPUT_BYTES} /dev/zero"

    def bare() -> float:
        begun = time.monotonic()
        subprocess.run(["/bin/sh", "-c", f"{command} | cat > {bench.root}/copy"], check=True)
        return OUTPUT_BYTES / (time.monotonic() - begun)

    def supervised() -> float:
        begun = time.monotonic()
        bench.suites.await_report(bench.start("/bin/sh", "-c", command))
        return OUTPUT_BYTES / (time.monotonic() - begun)

    return median_of(bare), median_of(supervised)


def cost_of_waiting(bench: Bench) -> tuple[float, float]:
    """Return the processor time and the number of wake-ups of a supervisor that waits."""
    run_id = bench.start("/bin/sleep", "600")
    process = bench.supervisor(run_id)
    time.sleep(1.0)

    def used() -> tuple[float, int]:
        ticks = process.joinpath("stat").read_text().rpartition(")")[2].split()[11:13]
        switches = process.joinpath("status").read_text().split("\nvoluntary_ctxt_switches:")[1]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), int(switches.split()[0])

    before = used()
    time.sleep(WAIT_SECONDS)
    after = used()
    bench.suites.reap(run_id)
    return after[0] - before[0], float(after[1] - before[1])


def peak_bytes(bench: Bench, size: int) -> float:
    """Return the most memory that a supervisor held while its suite printed `size` bytes."""
    run_id = bench.start("/bin/sh", "-c", f"head -c {size} /dev/zero; sleep 600")
    process = bench.supervisor(run_id)
    log = bench.state.run(run_id)
    wanted = min(size, LOG_MAX_BYTES // 2)
    seen = -1
    while sum(path.stat().st_size for path in log.glob("output.*")) < wanted or seen < 0:
        seen = 0
        time.sleep(0.05)
    time.sleep(2.0)
    peak = int(process.joinpath("status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    bench.suites.reap(run_id)
    return float(peak)


def show(name: str, ours: str, bare: str, verdict: str) -> None:
    """Print one figure."""
    sys.stdout.write(f"{name:24}{ours:>12}   bare {bare:>12}   {verdict}\n")
    sys.stdout.flush()


def main() -> None:
    """Measure everything and print it."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        bare, ours = start_of_a_run(bench)
        more = f"{(ours - bare) * 1e3:.1f} ms more, promised 40 ms"
        show("start of a run", f"{ours * 1e3:.1f} ms", f"{bare * 1e3:.1f} ms", more)
        bare, ours = kill_of_a_tree(bench)
        ratio = f"{ours / bare:.2f} times, promised 1.5"
        show(
            f"death of {PROCESSES} processes", f"{ours * 1e3:.1f} ms", f"{bare * 1e3:.1f} ms", ratio
        )
        bare, ours = throughput(bench)
        share = f"{ours / bare:.2f} of it, promised 0.6"
        show("output", f"{ours / 1e6:.0f} MB/s", f"{bare / 1e6:.0f} MB/s", share)
        seconds, wakes = cost_of_waiting(bench)
        show(
            f"waiting for {WAIT_SECONDS:.0f} s",
            f"{seconds * 1e3:.1f} ms",
            "0",
            f"woke {wakes:.0f} times",
        )
        small, large = peak_bytes(bench, SMALL_OUTPUT_BYTES), peak_bytes(bench, OUTPUT_BYTES)
        more = f"{(large - small) / 2**20:.1f} MiB more, promised 16 MiB"
        show(
            "memory for 1 GiB of output",
            f"{large / 2**20:.1f} MiB",
            f"{small / 2**20:.1f} MiB",
            more,
        )


if __name__ == "__main__":
    main()

"""`make bench`: measure everything, or the sections that are named, and write the results down.

Each section is measured in processes of its own. `results.json` keeps what was found, with
the machine and the versions; `docs/performance.md` is written from it (`pytest --rewrite`).
"""
# ruff: noqa: T201  # it is a program, and says on standard output how far it is

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.parts import PARTS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"
JOBS, ROUNDS = 200, 3
OUR_LIBRARIES = ("transitions", "attrs", "msgspec", "SQLAlchemy", "psycopg")
PEERS = ("huey", "absurd-sdk", "procrastinate", "dbos")


def machine() -> dict[str, Any]:
    """Describe this machine, as far as it matters for the figures."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"^model name\s*: (.+)$", cpuinfo, re.MULTILINE)
    disk = subprocess.run(
        ["df", "--output=fstype", "/tmp"],  # noqa: S108  # where the measurements are made
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()[-1]
    return {
        "processor": model[1].strip() if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "file_system": disk,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 1),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of what was measured."""
    found = {name: importlib.metadata.version(name) for name in OUR_LIBRARIES}
    if peers.PEERS_PYTHON.exists():
        code = (
            "import importlib.metadata as m, json;"
            f"print(json.dumps({{name: m.version(name) for name in {PEERS!r}}}))"
        )
        ended = subprocess.run(
            [peers.PEERS_PYTHON, "-c", code], check=True, capture_output=True, text=True
        )
        found |= json.loads(ended.stdout)
    return found


def measure(section: str) -> dict[str, Any]:
    """Return the figures of a section."""
    if section == "peers":
        return peers.measure(JOBS, ROUNDS, print)
    if section == "peer_memory":
        return peers.memory()
    # Byte code is kept, as it is for whoever installs the package.
    environment = {n: v for n, v in os.environ.items() if n != "PYTHONDONTWRITEBYTECODE"}
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.parts", section],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    figures: dict[str, Any] = json.loads(ended.stdout)
    return figures


def main() -> None:
    """Measure, and write after each section what is known so far."""
    sections = ("peers", "peer_memory", *PARTS)
    wanted = sys.argv[1:] or sections
    if unknown := [name for name in wanted if name not in sections]:
        sys.exit(f"no section is called {', '.join(unknown)}; there are {', '.join(sections)}")
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for section in wanted:
        print(f"measuring {section}", flush=True)
        results[section] = {**measure(section), "machine": machine()}
        text = json.dumps(results, indent=1, sort_keys=True)
        RESULTS.write_text(text + "\n", encoding="utf-8")
    print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()

"""What one attempt costs the system, counted: a guard that no load of the machine can move.

docs/performance.md says why each of the synced writes is needed.
"""

import cProfile
import functools
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from benchmarks import contenders
from benchmarks.parts import attempt_host
from sources import ROOT
from staging_fsm.host.store import WorkItem
from staging_fsm.host.worker import Worker

FEW, MANY = 1, 4
#: 8,280 with Python 3.11, SQLAlchemy 2.1 and PyYAML 6, and some 150 more with Python 3.13.
#: Each folder that the test's own is deeper than another costs some eighty more.
CALLS_MAX = 8_600 if sys.version_info < (3, 12) else 8_800
#: 74 with Python 3.11, 76 with 3.13.
FILES_MAX = 74 if sys.version_info < (3, 12) else 76
COUNTED = "fsync,fdatasync,execve,openat"


@functools.cache
def calls_of_an_attempt(contender: str, folder: Path) -> dict[str, float]:
    """Return how often one more attempt makes each counted call, in all of its processes."""
    if shutil.which("strace") is None:
        pytest.skip("system calls are not counted: there is no strace")
    few, many = (traced(contender, jobs, folder) for jobs in (FEW, MANY))
    return {name: (many[name] - few[name]) / (MANY - FEW) for name in COUNTED.split(",")}


def traced(contender: str, jobs: int, folder: Path) -> Counter[str]:
    """Run some attempts below strace, and count the calls that succeed."""
    home = folder / f"{contender}-{jobs}"
    home.mkdir()
    # Without those that fail: where a loader looks for libraries depends on the processor.
    command = ["strace", "-f", "-z", "-e", f"trace={COUNTED}", "-o", str(home / "strace"),
               sys.executable, contenders.__file__, contender,
               "--jobs", str(jobs), "--concurrency", "1", "--folder", str(home)]  # fmt: skip
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    if "ptrace" in ended.stderr:
        pytest.skip(f"system calls are not counted: {ended.stderr.splitlines()[0]}")

    assert ended.returncode == 0, ended.stderr
    return Counter(re.findall(r"^\d+ +(\w+)\(", (home / "strace").read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder for all the tests of this module: what was counted is not counted again."""
    return tmp_path_factory.mktemp("syscalls")


@pytest.mark.parametrize(
    ("contender", "syncs"), [("staging_fsm", 7), ("staging_fsm, supervised", 10)]
)
def test_attempt_waits_for_the_disk_no_more_than_safety_asks(
    contender: str, syncs: int, folder: Path
) -> None:
    """From the job's row to the gate an attempt has as many synced writes as are accounted for."""
    calls = calls_of_an_attempt(contender, folder)

    assert calls["fsync"] + calls["fdatasync"] == syncs


@pytest.mark.parametrize(
    ("contender", "programs"), [("staging_fsm", 1), ("staging_fsm, supervised", 2)]
)
def test_attempt_starts_the_suite_its_supervisor_and_nothing_else(
    contender: str, programs: int, folder: Path
) -> None:
    """In a folder that is no repository an attempt executes the suite and its supervisor."""
    assert calls_of_an_attempt(contender, folder)["execve"] == programs


@pytest.mark.parametrize(
    ("contender", "files_max"), [("staging_fsm", 11), ("staging_fsm, supervised", FILES_MAX)]
)
def test_attempt_opens_few_files(contender: str, files_max: int, folder: Path) -> None:
    """An attempt loads no module and reads no file again that it has read before."""
    assert calls_of_an_attempt(contender, folder)["openat"] <= files_max


def test_attempt_takes_few_calls_of_functions(tmp_path: Path) -> None:
    """From its claim to its gate an attempt calls a bounded number of functions, in all of Python.

    Two fifths of them are the frozen gate's: it reads YAML in Python.
    """
    # In a process without other threads: Python 3.12 counts theirs as well.
    ended = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    assert float(ended.stdout) <= CALLS_MAX


def test_attempt_speaks_to_the_database_as_often_as_ever(tmp_path: Path) -> None:
    """An attempt takes a known number of statements and of commits, from its claim to its gate."""
    host, store = attempt_host(tmp_path, ["/bin/true"])
    asked: Counter[str] = Counter()

    def count_statement(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked[statement.split(maxsplit=1)[0]] += 1

    for number in range(2):
        item = WorkItem("shop", f"WI-{number}", "deploy-staging", 3, None)
        job = store.add_work_item(item, "deployer", host.clock.now())
        if number == 1:
            # Only the second one is counted: the first has looked at the table.
            sa.event.listen(store.engine, "before_cursor_execute", count_statement)
            sa.event.listen(store.engine, "commit", lambda _connection: asked.update(["COMMIT"]))
        Worker(host, "guard").run_one(only=job)

    assert dict(asked) == {"SELECT": 3, "UPDATE": 6, "INSERT": 1, "COMMIT": 4}


def calls_of_functions(folder: Path) -> float:
    """Return how many functions one attempt calls, on the average of some."""
    host, store = attempt_host(folder, ["/bin/true"])
    assert host.staging is not None
    host.staging.runner.engine.suites = contenders.plain_suites()
    worker, profile = Worker(host, "guard"), cProfile.Profile()
    for number in range(1 + MANY):
        item = WorkItem("shop", f"WI-{number}", "deploy-staging", 3, None)
        job = store.add_work_item(item, "deployer", host.clock.now())
        if number == 0:
            # Only the others are counted: the first one loads and compiles what they use.
            worker.run_one(only=job)
        else:
            profile.runcall(worker.run_one, only=job)
    return sum(entry.callcount for entry in profile.getstats()) / MANY


if __name__ == "__main__":
    sys.stdout.write(str(calls_of_functions(Path(sys.argv[1]))))

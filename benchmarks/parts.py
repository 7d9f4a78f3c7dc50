"""The parts of an attempt, each measured alone: machine, snapshot, rows, output, waiting, start."""

import contextlib
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks.contenders import plain_suites
from benchmarks.server import postgresql
from staging_fsm.core.jobs import SNAPSHOT_KEY
from staging_fsm.core.machine import step
from staging_fsm.core.plan import Budget, Plan, SuitePlan
from staging_fsm.core.ports import RunOrder
from staging_fsm.core.snapshot import (
    Artifact,
    Move,
    Run,
    Snapshot,
    dump_snapshot,
    fresh_snapshot,
    load_snapshot,
)
from staging_fsm.core.spec import Event, State
from staging_fsm.core.trail import as_begun, walk
from staging_fsm.effects.clock import SystemClock
from staging_fsm.effects.files import sha256_of_text
from staging_fsm.effects.rows import SqlRows
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.effects.suite import LocalSuites
from staging_fsm.faces.audit import audit_table
from staging_fsm.faces.queue import staging_runner_block
from staging_fsm.host.database import open_database
from staging_fsm.host.launcher import Host, launch_job, staging_intercept
from staging_fsm.host.settings import load_host_settings
from staging_fsm.host.store import Job, SqlHostStore, WorkItem
from staging_fsm.host.worker import Worker

ROOT = Path(__file__).parent.parent
TIME = "2026-01-01T00:00:00.000000Z"
WORKER = "host/boot/4026531836:4242:123456"
PLAN = Plan(SuitePlan(("python", "-m", "pytest", "-q")), Budget(), "0" * 40)
#: The usual life: claimed, passed, handed over.
WALK = ((State.PENDING, Event.JOB_CLAIMED), (State.RUNNING, Event.SUITE_PASSED),
        (State.VERDICT_PASSED, Event.GATE_OPENED))  # fmt: skip
REPEATS = 7


def best_us(work: Callable[[], object], number: int) -> float:
    """Return the microseconds of one call, the least of several rounds: the rest is noise."""
    return round(min(timeit.repeat(work, number=number, repeat=REPEATS)) / number * 1e6, 1)


def running(number: int) -> Snapshot:
    """Return a live attempt."""
    move = Move("T01", TIME, "run 1 of at most 3", WORKER, "0" * 64)
    return Snapshot(
        1,
        f"{number}-0123456789ab",
        State.RUNNING,
        WORKER,
        PLAN,
        (Run(1, TIME),),
        (move,),
        None,
        None,
    )


def machine() -> dict[str, Any]:
    """Measure a step, and a snapshot there and back."""
    text = dump_snapshot(running(1))
    document = json.loads(text)
    return {
        "step_us": round(best_us(lambda: [step(*at) for at in WALK], 2000) / len(WALK), 1),
        "store_us": best_us(lambda: dump_snapshot(running(1)), 2000),
        "load_us": best_us(lambda: load_snapshot(document), 2000),
    }


def resident_mib() -> float:
    """Return how much memory this process holds."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory() -> dict[str, Any]:
    """Measure what live attempts hold, each loaded from a row of its own."""
    texts = [dump_snapshot(running(number)) for number in range(10_000)]
    gc.collect()
    before = resident_mib()
    attempts = [load_snapshot(json.loads(text)) for text in texts]
    held = resident_mib() - before
    assert len(attempts) == len(texts)
    return {"attempts": len(attempts), "mib": round(held, 1)}


def attempt_host(folder: Path, command: list[str], url: str = "") -> tuple[Host, SqlHostStore]:
    """Return a host whose repository `shop` has `command` for its suite; by default on SQLite."""
    repository = folder / "shop"
    repository.mkdir()
    suites = folder / "suites.toml"
    suites.write_text(f"[repos.shop]\ncommand = {json.dumps(command)}\n")
    variables = {
        "ORCH_STAGING_RUNNER_ENABLED": "1",
        "ORCH_STAGING_RUNNER_REPOS": "shop",
        "ORCH_STAGING_RUNNER_SUITES_FILE": str(suites),
        "ORCH_STAGING_RUNNER_STATE_DIR": str(folder / "state"),
        "PATH": os.environ["PATH"],
    }
    store = SqlHostStore(open_database(url or f"sqlite:///{folder}/host.db"))
    store.create_schema()
    store.add_repository("shop", repository)
    clock = SystemClock()
    staging = staging_intercept(store, clock, variables)
    return Host(store, load_host_settings({}), clock, staging), store


QUEUE_SIZES = (1_000, 1_000_000)
QUEUE_CALLS = 3
FINISHED = """
INSERT INTO work_items (repo, id, stage, developer_retries, created_at, updated_at)
WITH RECURSIVE n (i) AS
 (SELECT CAST(:first AS INTEGER) UNION ALL SELECT i + 1 FROM n WHERE i < :last)
SELECT 'shop', 'WI-' || i, 'deploy', 3, :now, :now FROM n;
INSERT INTO jobs (repo, work_item, stage, agent, status, metadata, created_at, updated_at)
WITH RECURSIVE n (i) AS
 (SELECT CAST(:first AS INTEGER) UNION ALL SELECT i + 1 FROM n WHERE i < :last)
SELECT 'shop', 'WI-' || i, 'deploy-staging', 'deployer', 'done', :metadata, :now, :now FROM n
"""


def queue() -> dict[str, Any]:
    """Measure claim, recovery and the queue's page over few and over many finished rows."""
    rows = queue_rows("SQLite", lambda _finished: "")
    with postgresql() as server:
        if server is not None:
            for finished in QUEUE_SIZES:
                server.sql(f"CREATE DATABASE queue_{finished}")
            rows += queue_rows("PostgreSQL", lambda finished: server.dsn(f"queue_{finished}"))
    return {"rows": rows}


def queue_rows(database: str, url_of: Callable[[int], str]) -> list[dict[str, Any]]:
    """Return the milliseconds of each question, asked by turns of a table of each size."""
    with contextlib.ExitStack() as stack:
        asked = [queue_questions(stack, finished, url_of(finished)) for finished in QUEUE_SIZES]
        rows: list[dict[str, Any]] = [
            {"database": database, "finished": finished} for finished in QUEUE_SIZES
        ]
        for name in asked[0]:
            times: list[list[float]] = [[] for _ in asked]
            for _ in range(REPEATS):
                for questions, taken in zip(asked, times, strict=True):
                    taken.append(timeit.timeit(questions[name], number=QUEUE_CALLS) / QUEUE_CALLS)
            for row, taken in zip(rows, times, strict=True):
                row[name] = round(1000 * min(taken), 2)
    return rows


def queue_questions(
    stack: contextlib.ExitStack, finished: int, url: str
) -> dict[str, Callable[[], object]]:
    """Return what can be asked of a table with so many finished jobs, each asked once before."""
    name = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
    host, store = attempt_host(Path(name), ["/bin/true"], url)
    # Also after an error: a server waits for its last connection to end.
    stack.callback(store.engine.dispose)
    item = WorkItem("shop", "WI-0", "deploy-staging", 3, None)
    job = store.add_work_item(item, "deployer", host.clock.now())
    Worker(host, "benchmark").run_one()
    fill(store, 2, finished, store.job(job).metadata)
    for number in range(QUEUE_CALLS * REPEATS + 1):
        item = WorkItem("shop", f"due-{number}", "deploy-staging", 3, None)
        store.add_work_item(item, "deployer", host.clock.now())
    worker, rows = Worker(host, "benchmark", launch=lambda _host, _job: None), SqlRows(store.engine)
    questions: dict[str, Callable[[], object]] = {
        "claim_ms": worker.run_one,
        "recover_ms": worker.recover,
        # What `staging-fsm queue` and `GET /queue` read.
        "queue_ms": lambda: staging_runner_block(rows, {}),
    }
    for ask in questions.values():
        ask()
    return questions


#: To fill a table quickly: what is checked and synced here is not what is measured.
UNCHECKED = {
    "sqlite": "PRAGMA foreign_keys = OFF; PRAGMA synchronous = OFF",
    "postgresql": "SET session_replication_role = replica",
}
CHECKED = {
    "sqlite": "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON",
    "postgresql": "SET session_replication_role = origin",
}
#: Counted as well, and what was written on the disk: by its own processes in PostgreSQL, sooner
#: or later, and by whoever tends it in SQLite.
TENDED = {
    "sqlite": "ANALYZE; PRAGMA wal_checkpoint(TRUNCATE)",
    "postgresql": "VACUUM ANALYZE; CHECKPOINT",
}


def fill(store: SqlHostStore, first: int, last: int, metadata: str) -> None:
    """Add finished jobs to the table, from number `first` to number `last`, and tend it."""
    values = {"first": first, "last": last, "now": TIME, "metadata": metadata}
    database = store.engine.dialect.name
    with store.engine.connect() as connection:
        for statement in f"{UNCHECKED[database]};{FINISHED};COMMIT;{CHECKED[database]}".split(";"):
            used = {name: value for name, value in values.items() if f":{name}" in statement}
            if statement == "COMMIT":
                connection.commit()
            else:
                connection.execute(sa.text(statement), used)
        connection.commit()
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in TENDED[database].split(";"):
            connection.execute(sa.text(statement))


def output() -> dict[str, Any]:
    """Measure how fast output goes through the supervisor, against a pipe into a file."""
    gib = 2
    source = ["head", "-c", f"{gib}G", "/dev/zero"]
    ratios, ours, peaks = [], [], []
    for _ in range(3):
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            folder = Path(name)
            began = time.perf_counter()
            subprocess.run(["sh", "-c", f"{' '.join(source)} | cat > {folder}/cat.log"], check=True)
            cat = time.perf_counter() - began
            (folder / "cat.log").unlink()
            suites = LocalSuites(StateDir(folder / "state"), os.environ)
            began = time.perf_counter()
            suites.start(RunOrder("1-output.1", folder, "unversioned", SuitePlan(tuple(source))))
            with peak_of(folder / "state" / "runs" / "1-output.1" / "shim") as peak:
                report = suites.await_report("1-output.1")
            mine = time.perf_counter() - began
            assert report.facts.exit_code == 0
            assert report.log_bytes == gib * 2**30
            ratios.append(cat / mine)
            ours.append(gib / mine)
            peaks.append(peak[0])
    return {
        "gib": gib,
        "of_cat_percent": round(100 * statistics.median(ratios)),
        "gib_per_second": round(statistics.median(ours), 2),
        "peak_mib": round(max(peaks), 1),
    }


@contextlib.contextmanager
def peak_of(identity: Path) -> Iterator[list[float]]:
    """Yield the peak memory of the process that `identity` names, as last seen."""
    peak, over = [0.0], threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            with contextlib.suppress(OSError, TypeError):
                pid = re.search(r"pid=(\d+)", identity.read_text())
                status = Path(f"/proc/{pid[1]}/status").read_text()  # type: ignore[index]  # suppressed
                peak[0] = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]  # as above

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def waiting() -> dict[str, Any]:
    """Measure what suites cost that only wait, with their supervisors and our threads."""
    suites_count, seconds = 64, 10.0
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        suites = LocalSuites(StateDir(folder), os.environ)
        ids = [f"{number}-waiting.1" for number in range(suites_count)]
        for id_ in ids:
            suites.start(RunOrder(id_, folder, "unversioned", SuitePlan(("sleep", "600"))))
        threads = [threading.Thread(target=suites.await_report, args=[id_]) for id_ in ids]
        for thread in threads:
            thread.start()
        leaders = [folder / "runs" / id_ / "leader" for id_ in ids]
        while not all(path.exists() for path in leaders):
            time.sleep(0.05)
        time.sleep(1)
        shims = [
            int(re.findall(r"pid=(\d+)", (path.parent / "shim").read_text())[0]) for path in leaders
        ]
        before = on_cpu_seconds([os.getpid(), *shims])
        time.sleep(seconds)
        used = on_cpu_seconds([os.getpid(), *shims]) - before
        for id_ in ids:
            suites.reap(id_)
        for thread in threads:
            thread.join()
    return {"suites": suites_count, "core_percent": round(100 * used / seconds, 3)}


def on_cpu_seconds(pids: list[int]) -> float:
    """Return how long all threads of some processes have been on a processor."""
    tasks = (path for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(path.read_text().split()[0]) for path in tasks) / 1e9


DECISION = """
import staging_fsm

class Rows:
    def check(self):
        pass

    def load(self, job_id):
        return staging_fsm.JobRow(job_id, "shop", "WI-1", "deploy-staging", "running", None, None)

staging = staging_fsm.StagingIntercept.for_host(Rows(), None, None, {})
assert not staging.launch(1)
"""


def start_up() -> dict[str, Any]:
    """Measure the first decision and the help text against a bare interpreter."""
    script = Path(sys.executable).parent / "staging-fsm"
    commands = {
        "bare": [sys.executable, "-c", "pass"],
        "decision": [sys.executable, "-c", DECISION],
        "help": [str(script), "--help"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(21):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times[name].append(1000 * (time.perf_counter() - began))
    medians = {name: statistics.median(all_) for name, all_ in times.items()}
    return {
        "bare_ms": round(medians["bare"]),
        "decision_added_ms": round(medians["decision"] - medians["bare"]),
        "help_ms": round(medians["help"]),
    }


def launch_staging(host: Host, job: Job) -> None:
    """Launch jobs of the stage that is measured, and no other."""
    if job.stage == "deploy-staging":
        launch_job(host, job)


def at_once() -> dict[str, Any]:
    """Measure one worker with many suites in hand: suites that wait, and suites that work."""
    seconds, count = 2.0, 64
    rows = []
    for concurrency, kind, command in (
        (count, "sleep 2", ["sleep", str(seconds)]),
        *((n, "/bin/true", ["/bin/true"]) for n in (1, 2, 4, 8, count)),
    ):
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            host, store = attempt_host(Path(name), command)
            now = host.clock.now()
            for number in range(count):
                item = WorkItem("shop", f"WI-{number}", "deploy-staging", 3, None)
                store.add_work_item(item, "deployer", now)
            worker = Worker(host, "benchmark", launch_staging, concurrency=concurrency)
            cpu, began = time.process_time(), time.perf_counter()
            worker.run_until_idle()
            with store.transaction() as tx:
                stages = {store.work_item(tx, "shop", f"WI-{n}").stage for n in range(count)}
            assert stages == {"deploy"}
            wall = time.perf_counter() - began
            rows.append(
                {
                    "suite": kind,
                    "concurrency": concurrency,
                    "attempts": count,
                    "seconds": round(wall, 1),
                    "per_second": round(count / wall, 1),
                    "worker_cpu_ms": round(1000 * (time.process_time() - cpu) / count, 1),
                }
            )
    return {"cores": os.cpu_count(), "rows": rows}


def simulation() -> dict[str, Any]:
    """Measure how many attempts of the simulated world one core plays in a second."""
    soak = [sys.executable, str(ROOT / "tests" / "soak.py")]
    ended = subprocess.run(
        [*soak, "--attempts", "20000", "--seed", "1", "--processes", "1"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
    )
    found = re.search(r"(\d+) per second", ended.stdout)
    assert found
    return {"attempts_per_second": int(found[1])}


def audit() -> dict[str, Any]:
    """Measure how fast finished attempts are verified: rows, links, artifacts, work items."""
    # So many that the start of the other processes is a small part of it.
    count = 100_000
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        host, store = attempt_host(Path(name), ["/bin/true"])
        assert host.staging is not None
        host.staging.runner.engine.suites = plain_suites()
        item = WorkItem("shop", "WI-1", "deploy-staging", 3, None)
        job = store.add_work_item(item, "deployer", host.clock.now())
        Worker(host, "benchmark", launch_staging).run_one(only=job)
        rows, times = SqlRows(store.engine), []
        copy_attempt(rows, store, job, count)
        for _ in range(3):
            began = time.perf_counter()
            seen = audit_table(rows, store)
            times.append(time.perf_counter() - began)
        assert not seen.findings, seen.findings[:1]
        assert seen.attempts == count
    return {"rows": count, "rows_per_second": round(count / min(times))}


def copy_attempt(rows: SqlRows, store: SqlHostStore, job: int, count: int) -> None:
    """Add jobs whose attempts went as that of `job` did, until there are `count` attempts."""
    first = rows.load(job).snapshot()
    assert first is not None
    assert first.artifact is not None
    text = Path(first.artifact.path).read_text(encoding="utf-8")
    last = max(other.id for other in rows.recent(1))
    copies = []
    for number in range(last + 1, last + count):
        item = f"WI-{number}"
        folder = Path(first.artifact.path).parent.with_name(item)
        folder.mkdir()
        path = folder / Path(first.artifact.path).name
        path.write_text(text.replace("WI-1", item), encoding="utf-8")
        artifact = Artifact(str(path), sha256_of_text(text.replace("WI-1", item)))
        copied = fresh_snapshot(f"{number}-0123456789ab", first.worker)
        stored: tuple[dict[str, Any], ...] = (
            {"plan": first.plan, "runs": (as_begun(first.last_run),)},
            {"runs": first.runs},
            {"artifact": artifact},
        )
        for move, changes in zip(first.history, stored, strict=True):
            copied = walk(copied, move.row, move.time, move.reason, move.worker, changes)
        metadata = json.dumps({SNAPSHOT_KEY: json.loads(dump_snapshot(copied))})
        copies.append({"id": number, "item": item, "metadata": metadata, "now": TIME})
    with store.transaction() as tx:
        for statement in COPIED.split(";"):
            tx.execute(sa.text(statement), copies)


COPIED = """
INSERT INTO work_items (repo, id, stage, developer_retries, created_at, updated_at)
VALUES ('shop', :item, 'deploy', 3, :now, :now);
INSERT INTO jobs (id, repo, work_item, stage, agent, status, metadata, created_at, updated_at)
VALUES (:id, 'shop', :item, 'deploy-staging', 'deployer', 'done', :metadata, :now, :now)
"""


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "machine": machine,
    "memory": memory,
    "queue": queue,
    "output": output,
    "waiting": waiting,
    "start_up": start_up,
    "at_once": at_once,
    "simulation": simulation,
    "audit": audit,
}


def main() -> None:
    """Measure one part, in a process of its own, and print its figures."""
    json.dump(PARTS[sys.argv[1]](), sys.stdout)


if __name__ == "__main__":
    main()

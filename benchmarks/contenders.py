"""One contender of the comparison in one process: the same jobs, done its way, and their cost.

`python contenders.py NAME --jobs N --concurrency C --folder F [--dsn DSN]` does N durable
jobs, each of which runs `/bin/true` in a session of its own and has its exit code on record
when it is done. To queue them, one by one, is part of the work; to import, to create a
schema and to start a worker is not. What it cost is printed as one object of JSON.

The floor is what nobody can do without: a row that says it begins, the process, and a row
that says how it ended, each in a commit that survives a power cut. The safe floor keeps the
promises of staging_fsm by hand, and nothing else: its synced writes and the frozen gate.
"""
# ruff: noqa: PLC0415  # each contender imports what it needs, in the environment that has it

import argparse
import json
import os
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

COMMAND = ["/bin/true"]


@dataclass
class Cost:
    """What the jobs cost: wall time, CPU of this process and its children, its memory."""

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_rss_mib: float = 0.0


@dataclass(frozen=True)
class Task:
    """What a contender is asked for."""

    jobs: int
    concurrency: int
    folder: Path
    dsn: str

    @contextmanager
    def measured(self, cost: Cost) -> Iterator[None]:
        """Add what happens inside to `cost`."""
        cpu, began = cpu_seconds(), time.perf_counter()
        yield
        cost.wall_seconds += time.perf_counter() - began
        cost.cpu_seconds += cpu_seconds() - cpu

    def in_threads(self, work: Callable[[int], None]) -> None:
        """Do `work` for each job's number, `concurrency` of them at once."""
        if self.concurrency == 1:
            for number in range(self.jobs):
                work(number)
            return
        numbers = iter(range(self.jobs))
        lock = threading.Lock()

        def loop() -> None:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                work(number)

        threads = [threading.Thread(target=loop) for _ in range(self.concurrency)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, who))


def run_command() -> int:
    """Run the command in a session of its own and return its exit code."""
    with subprocess.Popen(
        COMMAND,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        return process.wait()


def floor(task: Task, cost: Cost) -> None:
    """Two durable commits on SQLite around the process."""
    path = task.folder / "floor.db"
    local = threading.local()

    def connection() -> sqlite3.Connection:
        if not hasattr(local, "connection"):
            local.connection = sqlite3.connect(path, isolation_level=None, timeout=30)
            local.connection.execute("PRAGMA journal_mode = WAL")
            local.connection.execute("PRAGMA synchronous = FULL")
        return local.connection  # type: ignore[no-any-return]  # a thread's own

    connection().execute("CREATE TABLE jobs (id INTEGER PRIMARY KEY, status TEXT, exit_code INT)")

    def work(number: int) -> None:
        database = connection()
        database.execute("INSERT INTO jobs (id, status) VALUES (?, 'running')", [number])
        code = run_command()
        database.execute("UPDATE jobs SET status = 'done', exit_code = ? WHERE id = ?",
                         [code, number])  # fmt: skip

    with task.measured(cost):
        task.in_threads(work)
    [[done]] = connection().execute("SELECT count(*) FROM jobs WHERE exit_code = 0")
    assert done == task.jobs


#: As long a front matter as an attempt's, which the gate reads to its end.
ARTIFACT = """---
staging_status: SUCCESS
producer: staging_fsm
work_item: "WI-{0}"
job: "{0}"
attempt: "{0}-0123456789ab"
run: 1
runs_max: 3
reason: passed
fault: none
exit_code: 0
signal: null
revision: "0123456789abcdef0123456789abcdef01234567"
---
"""
SAFE_TABLES = """
CREATE TABLE jobs (id INTEGER PRIMARY KEY, item INT, stage TEXT, status TEXT, metadata TEXT);
CREATE TABLE items (id INTEGER PRIMARY KEY, stage TEXT);
"""


def safe_floor(task: Task, cost: Cost) -> None:
    """Every write that an attempt has to wait for, and the gate, by hand on sqlite3."""
    from staging_fsm.host.contract.gate import ARTIFACT_NAME, check_staging_status

    local = threading.local()
    path = task.folder / "safe.db"

    def connection() -> sqlite3.Connection:
        if not hasattr(local, "connection"):
            local.connection = sqlite3.connect(path, isolation_level=None, timeout=30)
            local.connection.execute("PRAGMA journal_mode = WAL")
            local.connection.execute("PRAGMA synchronous = FULL")
        return local.connection  # type: ignore[no-any-return]  # a thread's own

    connection().executescript(SAFE_TABLES)

    def work(number: int) -> None:
        database, folder = connection(), task.folder / f"WI-{number}"
        note = "UPDATE jobs SET metadata = ? WHERE id = ?"
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO items VALUES (?, 'deploy-staging')", [number])
        queued = "INSERT INTO jobs (item, stage, status) VALUES (?, 'deploy-staging', 'queued')"
        job = database.execute(queued, [number]).lastrowid
        database.execute("COMMIT")
        database.execute("UPDATE jobs SET status = 'running' WHERE id = ?", [job])
        database.execute(note, ["RUNNING", job])
        code = run_command()
        database.execute(note, [f"VERDICT {code}", job])
        folder.mkdir()
        write_durably(folder / ARTIFACT_NAME, ARTIFACT.format(number))
        database.execute("BEGIN IMMEDIATE")
        stage = "deploy" if check_staging_status(folder) else "development"
        database.execute("UPDATE items SET stage = ? WHERE id = ?", [stage, number])
        database.execute("UPDATE jobs SET status = 'done', metadata = ? WHERE id = ?", [stage, job])
        database.execute("INSERT INTO jobs (item, stage, status) VALUES (?, ?, 'queued')",
                         [number, stage])  # fmt: skip
        database.execute("COMMIT")

    with task.measured(cost):
        task.in_threads(work)
    [[done]] = connection().execute("SELECT count(*) FROM items WHERE stage = 'deploy'")
    assert done == task.jobs


def write_durably(path: Path, text: str) -> None:
    """Write a file that a power cut leaves whole or not there."""
    waiting = path.with_suffix(".new")
    with waiting.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    waiting.rename(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def staging_fsm(task: Task, cost: Cost, *, supervised: bool) -> None:
    """Claim to gate on the reference host, with the real supervisor or a plain Popen."""
    from staging_fsm.effects.clock import SystemClock
    from staging_fsm.host.database import open_database
    from staging_fsm.host.launcher import Host, staging_intercept
    from staging_fsm.host.pipeline import work_item_dir
    from staging_fsm.host.settings import load_host_settings
    from staging_fsm.host.store import SqlHostStore, WorkItem
    from staging_fsm.host.worker import Worker

    repository = task.folder / "shop"
    repository.mkdir()
    suites = task.folder / "suites.toml"
    suites.write_text(f"[repos.shop]\ncommand = {json.dumps(COMMAND)}\n")
    variables = {
        "ORCH_STAGING_RUNNER_ENABLED": "1",
        "ORCH_STAGING_RUNNER_REPOS": "shop",
        "ORCH_STAGING_RUNNER_SUITES_FILE": str(suites),
        "ORCH_STAGING_RUNNER_STATE_DIR": str(task.folder / "state"),
        "PATH": os.environ["PATH"],
    }
    store = SqlHostStore(open_database(f"sqlite:///{task.folder}/host.db"))
    store.create_schema()
    store.add_repository("shop", repository)
    clock = SystemClock()
    staging = staging_intercept(store, clock, variables)
    if not supervised:
        staging.runner.engine.suites = plain_suites()
    worker = Worker(Host(store, load_host_settings({}), clock, staging), "benchmark")

    def work(number: int) -> None:
        item = WorkItem("shop", f"WI-{number}", "deploy-staging", 3, None)
        # As any stage before has left it.
        work_item_dir(repository, item.id).mkdir(parents=True)
        job = store.add_work_item(item, "deployer", clock.now())
        worker.run_one(only=job)

    with task.measured(cost):
        task.in_threads(work)
    with store.transaction() as tx:
        stages = {store.work_item(tx, "shop", f"WI-{n}").stage for n in range(task.jobs)}
    assert stages == {"deploy"}


def plain_suites() -> Any:
    """Return suites that run a command with Popen, wait, and know no supervisor."""
    from staging_fsm.core.evidence import NO_EVIDENCE_REQUIRED
    from staging_fsm.core.outcome import RunFacts, Supervision
    from staging_fsm.core.plan import SuitePlan
    from staging_fsm.core.ports import RunOrder, RunReport

    class PlainSuites:
        def __init__(self) -> None:
            self.codes: dict[str, int] = {}

        def start(self, order: RunOrder) -> None:
            self.codes[order.run_id] = run_command()

        def await_report(self, run_id: str) -> RunReport:
            facts = RunFacts(
                exit_code=self.codes.pop(run_id),
                log_complete=True,
                supervision=Supervision.SOUND,
                evidence=NO_EVIDENCE_REQUIRED,
            )
            return RunReport(facts, duration_seconds=0.001)

        def log_tail(self, _run_id: str, _size: int) -> bytes:
            return b""

        def shown_command(self, _run_id: str, suite: SuitePlan) -> tuple[str, ...]:
            return suite.command

    return PlainSuites()


def huey(task: Task, cost: Cost) -> None:
    """Keep the queue in SQLite, with fsync; results are stored by the library."""
    from huey import SqliteHuey

    app = SqliteHuey(filename=str(task.folder / "huey.db"), fsync=True)
    job = app.task()(run_command)

    with task.measured(cost):
        results = [job() for _ in range(task.jobs)]
        task.in_threads(lambda _: app.execute(app.dequeue()))
    assert [result.get() for result in results] == [0] * task.jobs


def absurd(task: Task, cost: Cost) -> None:
    """Tasks in PostgreSQL by stored procedures; results are stored by the library."""
    import psycopg
    from absurd_sdk import Absurd
    from absurdctl import BUNDLED_SCHEMA_SQL

    with psycopg.connect(task.dsn, autocommit=True) as connection:
        connection.execute(BUNDLED_SCHEMA_SQL)
    local = threading.local()

    def client() -> Any:
        if not hasattr(local, "client"):
            local.client = Absurd(task.dsn, queue_name="staging")
            local.client.register_task("job")(lambda _params, _context: run_command())
        return local.client

    client().create_queue()

    with task.measured(cost):
        spawned = [client().spawn("job", {}) for _ in range(task.jobs)]
        task.in_threads(lambda n: client().work_batch(worker_id=f"w{n}", batch_size=1))
    ended = [client().fetch_task_result(one["task_id"]) for one in spawned]
    assert [(one.state, one.result) for one in ended] == [("completed", 0)] * task.jobs


def procrastinate(task: Task, cost: Cost) -> None:
    """Jobs in PostgreSQL; it stores no results, so each job writes a row of its own."""
    import asyncio

    import psycopg
    from procrastinate import App, PsycopgConnector, SyncPsycopgConnector

    local = threading.local()

    def run_and_record(number: int) -> None:
        code = run_command()
        if not hasattr(local, "connection"):
            local.connection = psycopg.connect(task.dsn, autocommit=True)
        local.connection.execute("INSERT INTO results VALUES (%s, %s)", [number, code])

    client = App(connector=SyncPsycopgConnector(conninfo=task.dsn))
    app = App(connector=PsycopgConnector(conninfo=task.dsn, min_size=1, max_size=3))
    app.task(name="job")(run_and_record)
    with client.open():
        client.schema_manager.apply_schema()
        with psycopg.connect(task.dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE results (number INT PRIMARY KEY, exit_code INT)")

        async def work() -> None:
            async with app.open_async():
                with task.measured(cost):
                    for number in range(task.jobs):
                        client.configure_task("job").defer(number=number)
                    await app.run_worker_async(
                        wait=False,
                        concurrency=task.concurrency,
                        listen_notify=False,
                        install_signal_handlers=False,
                    )

        asyncio.run(work())
        with psycopg.connect(task.dsn, autocommit=True) as connection:
            [done] = connection.execute("SELECT count(*) FROM results WHERE exit_code = 0")
    assert done == (task.jobs,)


def dbos(task: Task, cost: Cost, *, database: str) -> None:
    """Call a workflow of one step for each job; its result is stored by the library."""
    from dbos import DBOS

    DBOS(
        config={
            "name": "bench",
            "system_database_url": database,
            "run_admin_server": False,
            "log_level": "ERROR",
        }
    )
    step = DBOS.step()(run_command)

    @DBOS.workflow()  # type: ignore[untyped-decorator]  # the library is in another environment
    def workflow() -> Any:
        return step()

    DBOS.launch()
    codes = []

    with task.measured(cost):
        task.in_threads(lambda _: codes.append(workflow()))
    DBOS.destroy()
    assert codes == [0] * task.jobs


CONTENDERS: dict[str, Callable[[Task, Cost], None]] = {
    "floor": floor,
    "floor, as safe": safe_floor,
    "huey": huey,
    "absurd": absurd,
    "procrastinate": procrastinate,
    "dbos, PostgreSQL": lambda task, cost: dbos(task, cost, database=task.dsn),
    "dbos, SQLite": lambda task, cost: dbos(
        task, cost, database=f"sqlite:///{task.folder}/dbos.db"
    ),
    "staging_fsm": lambda task, cost: staging_fsm(task, cost, supervised=False),
    "staging_fsm, supervised": lambda task, cost: staging_fsm(task, cost, supervised=True),
}


def main() -> None:
    """Do the jobs, and print what they cost."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--dsn", default="")
    asked = parser.parse_args()
    task, cost = Task(asked.jobs, asked.concurrency, asked.folder, asked.dsn), Cost()
    CONTENDERS[asked.name](task, cost)
    # Not by getrusage: that begins with what the process that started us held.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    cost.peak_rss_mib = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    json.dump(asdict(cost), sys.stdout)


if __name__ == "__main__":
    main()

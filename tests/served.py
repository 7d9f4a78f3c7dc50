"""Jobs in any state, and a real server over them."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

import attrs
import uvicorn

from staging_fsm.core.config import variable_name
from staging_fsm.core.jobs import SNAPSHOT_KEY
from staging_fsm.core.outcome import Reason
from staging_fsm.core.plan import Budget, Plan, SuitePlan
from staging_fsm.core.snapshot import Move, Run, Snapshot, dump_snapshot
from staging_fsm.core.spec import State
from staging_fsm.core.times import format_time
from staging_fsm.core.trail import NO_LINK
from staging_fsm.effects.processes import this_process
from staging_fsm.effects.rows import SqlRows
from staging_fsm.faces.web import Source
from staging_fsm.host.database import open_database
from staging_fsm.host.pipeline import place_of
from staging_fsm.host.store import SqlHostStore, WorkItem

NOW: Final = datetime(2026, 3, 29, 3, 0, 0, tzinfo=UTC)
ME: Final = str(this_process())
#: A process of this boot that can no longer live: pid 1 started with the machine.
GONE: Final = "/".join([ME.split("/")[0], "1", "1"])
PLAN: Final = Plan(SuitePlan(("make",), timeout_seconds=600.0), Budget(2, 30.0, 900.0), "abc")
#: The shortest way to each state that is not terminal.
WAYS: Final = {
    State.RUNNING: ["T01"],
    State.VERDICT_PASSED: ["T01", "T03"],
    State.VERDICT_FAILED: ["T01", "T04"],
    State.TOOL_ERROR: ["T01", "T05"],
    State.DEFERRED: ["T01", "T05", "T07"],
    State.EXHAUSTED: ["T01", "T05", "T08"],
    State.ADVANCED: ["T01", "T03", "T11"],
    State.ROLLED_BACK: ["T01", "T04", "T13"],
    State.FAILED_CLOSED: ["T01", "T05", "T08", "T14"],
    State.LLM_FALLBACK: ["T02"],
}
ENDINGS: Final = {"T03": Reason.PASSED, "T04": Reason.TESTS_FAILED, "T05": Reason.TOOL_EXIT_CODE}


def attempt(
    state: State, ago: float = 5.0, worker: str = ME, due: float = 40.0, now: datetime = NOW
) -> Snapshot:
    """Return an attempt whose last move was `ago` seconds before `now`; its next run is `due`."""
    when = format_time(now - timedelta(seconds=ago))
    history = tuple(Move(id_, when, "because", worker, NO_LINK) for id_ in WAYS[state])
    reason = next((ENDINGS[id_] for id_ in WAYS[state] if id_ in ENDINGS), None)
    code = None if reason is None else 0 if reason is Reason.PASSED else 1
    run = Run(1, when, reason=reason, exit_code=code)
    ran = "T01" in WAYS[state]
    next_run = format_time(now + timedelta(seconds=due)) if state is State.DEFERRED else None
    return Snapshot(
        len(history),
        "a",
        state,
        worker,
        PLAN if ran else None,
        (run,) if ran else (),
        history,
        next_run,
        None,
    )


@attrs.frozen
class Answer:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """Return the body as text."""
        return self.body.decode()

    @property
    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)


def ask(port: int, path: str, method: str = "GET", **headers: str) -> Answer:
    """Ask the server on this machine's `port`; `headers` with underscores."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=named)
    with connection.getresponse() as response:
        found = {name.lower(): value for name, value in response.getheaders()}
        answer = Answer(response.status, found, response.read())
    connection.close()
    return answer


@contextmanager
def serving(app: Any) -> Iterator[int]:
    """Serve an ASGI app by a real uvicorn; yield its port."""
    config = uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    started = threading.Event()
    startup = server.startup

    async def say_when_started(sockets: Any = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = say_when_started  # type: ignore[method-assign]  # uvicorn has no callback for it
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(30)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)


@attrs.frozen
class Shelf:
    """A real database of jobs, put there as they are wanted, and a state folder beside it."""

    folder: Path
    store: SqlHostStore

    @classmethod
    def at(cls, folder: Path) -> "Shelf":
        """Return an empty one."""
        store = SqlHostStore(open_database(f"sqlite:///{folder / 'orchestrator.db'}"))
        store.create_schema()
        return cls(folder, store)

    def put(
        self,
        snapshot: Snapshot | str | None,
        work_item: str = "",
        repo: str = "shop",
        status: str = "",
    ) -> int:
        """Add a job with an attempt, or with any text under our key; return its id."""
        self.store.add_repository(repo, self.folder / "repository")
        now = datetime.now(UTC)
        with self.store.engine.begin() as connection:
            count = connection.exec_driver_sql("SELECT count(*) FROM jobs").scalar_one()
        item = WorkItem(repo, work_item or f"WI-{count + 1}", "deploy-staging", 2, None)
        job_id = self.store.add_work_item(item, "deployer", now)
        ours = dump_snapshot(snapshot) if isinstance(snapshot, Snapshot) else snapshot
        ended = isinstance(snapshot, Snapshot) and snapshot.is_terminal
        self.set(job_id, ours, status or ("done" if ended else "running"))
        return job_id

    def set(self, job_id: int, ours: str | None, status: str = "running") -> None:
        """Write what stands under our key, past every fence."""
        metadata = "{}" if ours is None else f'{{"{SNAPSHOT_KEY}": {ours}}}'
        with self.store.engine.begin() as connection:
            connection.exec_driver_sql(
                "UPDATE jobs SET status = ?, metadata = ? WHERE id = ?", (status, metadata, job_id)
            )

    def run(self, statement: str) -> None:
        """Run a statement on the database, past everything."""
        with self.store.engine.begin() as connection:
            connection.exec_driver_sql(statement)

    def log(self, snapshot: Snapshot, text: str) -> None:
        """Write what the last run of an attempt printed."""
        folder = self.folder / "state" / "runs" / f"{snapshot.attempt_id}.{len(snapshot.runs)}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "output.log").write_text(text)

    def source(self) -> Source:
        """Return what the app reads, as fresh as can be."""
        variables = {variable_name("state_dir"): str(self.folder / "state")}
        return Source(
            SqlRows(self.store.engine),
            variables,
            partial(place_of, self.store),
            lambda row: self.store.find_work_item(row.repo, row.work_item),
            pulse_seconds=0.0,
        )

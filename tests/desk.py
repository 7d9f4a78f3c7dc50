"""A reference host with the runner switched on, and what a test wants to see or break of it."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from hosts import REPO, HostKit
from staging_fsm.core.jobs import JobRow
from staging_fsm.core.ports import AlertKind
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import State
from staging_fsm.core.suites import SuitesConfig, parse_suites
from staging_fsm.drive.engine import Engine
from staging_fsm.drive.intercept import UNSEEN, StagingIntercept
from staging_fsm.drive.rulings import Decision
from staging_fsm.drive.runner import StagingRunner
from staging_fsm.effects import preflight
from staging_fsm.effects.processes import this_process
from staging_fsm.host.launcher import staging_intercept
from staging_fsm.host.store import Job

PASSING: Final = '[default]\ncommand = ["true"]\nworkspace = "in-place"\n'
FAILING: Final = PASSING.replace("true", "false")
TOOL_ERROR: Final = PASSING.replace('["true"]', '["sh", "-c", "exit 126"]')
#: An agent that writes down how it was called.
AGENT: Final = """
import json, os, pathlib, sys
folder = pathlib.Path(os.environ["ORCH_WORK_ITEM_DIR"])
called = {k: v for k, v in os.environ.items() if k.startswith("ORCH_")} | {"argv": sys.argv[1:]}
with open(pathlib.Path(__file__).with_name("calls.jsonl"), "a") as calls:
    calls.write(json.dumps(called, sort_keys=True) + "\\n")
(folder / "15-staging-log.md").write_text("---\\nstaging_status: SUCCESS\\n---\\n")
"""


class Failing:
    """Stands for a part of the world of which one method fails, at least when `when` says so."""

    def __init__(
        self, whole: Any, method: str, error: Exception, when: Callable[..., bool] | None = None
    ) -> None:
        """Have `method` of `whole` raise `error`."""
        self._whole, self._method, self._error = whole, method, error
        self._when = when or (lambda *_: True)

    def __getattr__(self, name: str) -> Any:
        """Return what `whole` has, but for the one method."""
        found = getattr(self._whole, name)
        if name != self._method:
            return found

        def fail(*arguments: Any, **named: Any) -> Any:
            if self._when(*arguments):
                raise self._error
            return found(*arguments, **named)

        return fail


class LosesTheAnswer(Failing):
    """As above, but what was asked for is done before it fails."""

    def __getattr__(self, name: str) -> Any:
        """Return what `whole` has, but for the one method."""
        found = getattr(self._whole, name)
        if name != self._method:
            return found

        def do_and_fail(*arguments: Any, **named: Any) -> Any:
            result = found(*arguments, **named)
            if self._when(*arguments):
                raise self._error
            return result

        return do_and_fail


@attrs.define
class Heard:
    """Alerts that are kept as they are sent."""

    alerts: list[tuple[AlertKind, object, str, str | None]] = attrs.field(factory=list)

    def send(
        self, kind: AlertKind, job_id: object, text: str, attempt_id: str | None = None
    ) -> None:
        """Keep an alert."""
        self.alerts.append((kind, job_id, text, attempt_id))

    def deliver(self) -> None:
        """Owe nobody anything."""


@attrs.define
class Desk:
    """A host with a staging runner, one queued job, and everything there is to look at."""

    kit: HostKit
    folder: Path
    variables: dict[str, str]
    suites_file: str = PASSING
    staging: StagingIntercept = attrs.field(init=False)
    job_id: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Queue the job and start the runner."""
        self.job_id = self.kit.add("deploy-staging")
        self.staging = self.new_worker()

    def new_worker(self, **replaced: Any) -> StagingIntercept:
        """Return the intercept of a worker process that has just started."""
        replaced = {"suites": lambda _config: self.read_suites()} | replaced
        staging = staging_intercept(self.kit.store, self.kit.host.clock, self.variables, **replaced)
        staging.runner.engine.worker = str(this_process())
        return staging

    @property
    def engine(self) -> Engine:
        """Return the engine of this worker."""
        return self.staging.runner.engine

    def use_rows(self, rows: Any) -> None:
        """Have this worker see its jobs through other rows."""
        self.staging.rows = self.engine.rows = rows

    def break_runner(self) -> None:
        """Have no runner be made, as where what it is made of does not load."""

        def gone() -> StagingRunner:
            message = "gone"
            raise ImportError(message)

        self.staging = StagingIntercept(self.staging.rows, gone, self.variables)

    def read_suites(self) -> SuitesConfig:
        """Return the suites file."""
        return parse_suites(self.suites_file)

    def set(self, name: str, value: str | None) -> None:
        """Change a setting of the runner, or remove it."""
        self.variables.pop(f"ORCH_STAGING_RUNNER_{name}", None)
        if value is not None:
            self.variables[f"ORCH_STAGING_RUNNER_{name}"] = value

    def claim(self) -> Job:
        """Claim the job, as a worker does before it launches it."""
        job = self.kit.store.claim_next(self.kit.host.clock.now(), "w", self.job_id)
        assert job is not None
        return job

    def launch(self, metadata: object = UNSEEN) -> Decision:
        """Launch the job, claimed or not."""
        return self.staging.launch(self.job_id, metadata)

    def defer(self) -> None:
        """Have a first run end as a tool error, and the job be claimed again when it is due."""
        self.suites_file = TOOL_ERROR
        self.claim()
        self.launch()
        self.suites_file = PASSING

        assert self.snapshot().state is State.DEFERRED
        self.claim()

    def break_part(self, part: str, error: Exception, kind: type[Failing] = Failing) -> None:
        """Have a part of the world fail, like `rows.save` or `gate`."""
        name, _, method = part.partition(".")
        of_engine = method or name in ("gate", "place", "watch")
        owner = self.engine if of_engine and name != "variables" else self.staging.runner
        whole = getattr(owner, name)
        if method:
            setattr(owner, name, kind(whole, method, error))
            self.use_rows(self.engine.rows)
            self.staging.variables = self.staging.runner.variables
        else:
            setattr(owner, name, kind(SingleMethod(whole), "call", error).call)

    def row(self) -> JobRow:
        """Return the row, read past everything that is broken."""
        return self.new_worker().runner.engine.rows.load(self.job_id)

    def snapshot(self) -> Snapshot:
        """Return the attempt that is stored."""
        snapshot = self.row().snapshot()
        assert snapshot is not None
        return snapshot

    def state(self) -> State | None:
        """Return where the attempt is that is stored, or None."""
        snapshot = self.row().snapshot()
        return None if snapshot is None else snapshot.state

    def alerts(self) -> list[str]:
        """Return the kinds of all alerts there were."""
        path = self.folder / "state" / "alerts.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["kind"] for line in lines]

    def agent_calls(self) -> list[Any]:
        """Return how the agent was called, each time."""
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def raw_row(self) -> dict[str, Any]:
        """Return everything that the row holds but the moment of its last change."""
        with closing(sqlite3.connect(self.folder / "orchestrator.db")) as database, database:
            database.row_factory = sqlite3.Row
            row = database.execute("SELECT * FROM jobs WHERE id = ?", (self.job_id,)).fetchone()
        return {name: row[name] for name in row.keys() if not name.endswith("_at")}  # noqa: SIM118  # a Row is no mapping

    def write_metadata(self, metadata: str) -> None:
        """Write the metadata of the row by hand."""
        self.write("metadata", metadata)

    def write(self, column: str, value: str | None) -> None:
        """Write one column of the row by hand."""
        statement = f"UPDATE jobs SET {column} = ? WHERE id = ?"  # noqa: S608  # the tests' own words
        with closing(sqlite3.connect(self.folder / "orchestrator.db")) as database, database:
            database.execute(statement, (value, self.job_id))


@attrs.frozen
class SingleMethod:
    """A callable as an object with one method."""

    call: Callable[..., Any]


OFF: Final[dict[str, dict[str, str | None]]] = {
    "off": {"ENABLED": "0"},
    "not configured": {"ENABLED": None},
    "empty": {"ENABLED": ""},
    "off with an invalid rest": {"ENABLED": "off", "INFRA_RETRIES": "many", "TYPO": "1"},
    "out of scope": {"REPOS": "others"},
    "no scope": {"REPOS": None},
}


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no disk be large enough for a run."""
    monkeypatch.setattr(preflight, "FREE_BYTES_MIN", 2**80)


def first(desk: Desk) -> None:
    """Have the job claimed for its first launch."""
    desk.claim()


def deferred(desk: Desk) -> None:
    """Have a deferred attempt claimed for its second run, which will be its last."""
    desk.defer()
    desk.suites_file = TOOL_ERROR


def under_worker(desk: Desk, worker: str) -> None:
    """Have a suite be started by `worker` and left alone."""
    desk.claim()
    desk.engine.worker = worker
    desk.break_part("rows.save", OSError("boom"), LosesTheAnswer)
    desk.launch()
    desk.staging = desk.new_worker()


def made_desk(kit: HostKit, folder: Path) -> Desk:
    """Return a host whose runner is switched on, with one retry and no wait before it."""
    variables = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "ORCH_STAGING_RUNNER_ENABLED": "1",
        "ORCH_STAGING_RUNNER_REPOS": REPO,
        "ORCH_STAGING_RUNNER_INFRA_RETRIES": "1",
        "ORCH_STAGING_RUNNER_RETRY_BACKOFF_SECONDS": "0",
        "ORCH_STAGING_RUNNER_STATE_DIR": str(folder / "state"),
    }
    return Desk(kit, folder, variables)

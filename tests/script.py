"""Stories as scripts: events in, and everything that came of them as lines of text.

The host, the database, the suite and its processes are real. Around the engine's
ports stand recorders, so that effects are written down in the order in which
they happened; times, ids and paths are left out, so that a transcript is the
same on every machine.
"""

import re
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import yaml

from hosts import REPO, git
from staging_fsm.core.jobs import JobRow
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.suites import SuitesConfig, parse_suites
from staging_fsm.drive.intercept import StagingIntercept
from staging_fsm.drive.shadow import Shadow
from staging_fsm.effects.processes import this_process
from staging_fsm.faces.session import switched_on
from staging_fsm.faces.shadow import shadow_view
from staging_fsm.host.contract.gate import ARTIFACT_NAME, check_staging_status
from staging_fsm.host.database import open_database
from staging_fsm.host.launcher import Host, staging_intercept
from staging_fsm.host.pipeline import work_item_dir
from staging_fsm.host.settings import load_host_settings
from staging_fsm.host.store import SqlHostStore, WorkItem
from staging_fsm.host.worker import Worker

#: Which transitions the stories of this session fired.
FIRED: Counter[str] = Counter()
WORK_ITEM = "WI-1"
#: A person's LLM agent: it is called, and it claims a success.
AGENT = """
import os, pathlib
folder = pathlib.Path(os.environ["ORCH_WORK_ITEM_DIR"])
(folder / "15-staging-log.md").write_text("---\\nstaging_status: SUCCESS\\n---\\nTrust me.\\n")
"""
_FRONT_MATTER = ("staging_status", "reason", "fault", "run", "runs_max", "exit_code", "signal")


class Recorder:
    """Writes down every call of an object's methods that acts on the world."""

    QUIET = frozenset(
        {
            "load",
            "save",
            "transaction",
            "unfinished",
            "log_tail",
            "shown_command",
            "is_written",
            "deliver",
        }
    )

    def __init__(self, wrapped: Any, say: Callable[[str], None]) -> None:
        """Stand around `wrapped`."""
        self._wrapped, self._say = wrapped, say

    def __getattr__(self, name: str) -> Any:
        """Return a method of the recorded object that writes itself down."""
        method = getattr(self._wrapped, name)
        if name in self.QUIET:
            return method

        def call(*arguments: Any, **named: Any) -> Any:
            if name == "send":
                self._say(f"  alert {arguments[0]}")
            else:
                self._say(f"  {name.replace('_', ' ')}")
            return method(*arguments, **named)

        return call


@attrs.define
class Clock:
    """The machine's clock, which a story may set forward."""

    ahead: timedelta

    def now(self) -> datetime:
        """Return the time of day of the story."""
        return datetime.now(UTC) + self.ahead

    def wait(self, seconds: float) -> None:
        """Never wait: a story sets the clock forward."""

    def wake(self) -> None:
        """Nobody waits."""


class Script:
    """One story on one machine."""

    def __init__(self, folder: Path, repository: Path, suite: str, **settings: object) -> None:
        """Begin a story with one queued job of `deploy-staging`."""
        self.lines: list[str] = []
        self.repository = repository
        self.clock = Clock(timedelta())
        self.suites = parse_suites(f"[default]\n{suite}\n")
        self.variables = switched_on(
            {"PATH": "/usr/local/bin:/usr/bin:/bin", "FOLDER": str(folder)},
            state_dir=folder / "state",
            **{"infra_retries": 1, "retry_backoff_seconds": 60, "kill_grace_seconds": 0.1}
            | settings,
        )
        agent = folder / "agent.py"
        agent.write_text(AGENT)
        self.store = SqlHostStore(open_database(f"sqlite:///{folder}/orchestrator.db"))
        self.store.create_schema()
        self.store.add_repository(REPO, repository)
        self.database = folder / "orchestrator.db"
        self.settings = load_host_settings(
            {
                "ORCH_AGENT_COMMAND": f"{sys.executable} {agent}",
                "ORCH_LOG_DIR": str(folder / "agent-logs"),
            }
        )
        self.worker = str(this_process())
        item = WorkItem(REPO, WORK_ITEM, "deploy-staging", 2, None)
        self.job_id = self.store.add_work_item(item, "deployer", self.clock.now())
        self.staging = self.intercept()
        self._row = self._describe_row()
        self.say(f"suite: {suite}")
        self.say(f"row: {self._row}")

    def intercept(self) -> StagingIntercept:
        """Return the intercept of a new worker process, with recorders around its ports."""
        staging = staging_intercept(
            self.store,
            self.clock,
            self.variables,
            suites=lambda _config: self.read_suites(),
            watch=self._moved,
        )
        engine = staging.runner.engine
        staging.rows = engine.rows = Recorder(engine.rows, self.say)
        engine.suites = Recorder(engine.suites, self.say)
        engine.artifacts = Recorder(engine.artifacts, self.say)
        engine.alerts = Recorder(engine.alerts, self.say)
        engine.worker = self.worker
        gate = engine.gate

        def recorded_gate(row: JobRow, tx: Any) -> bool:
            opened = gate(row, tx)
            self.say(f"  gate {'opens' if opened else 'refuses'}")
            return opened

        engine.gate = recorded_gate
        return staging

    def read_suites(self) -> SuitesConfig:
        """Return the configured suites; a story may replace this by something that breaks."""
        return self.suites

    def say(self, text: str) -> None:
        """Write a line of the transcript."""
        self.lines.append(text)

    def _moved(self, _row: JobRow, snapshot: Snapshot) -> None:
        move = snapshot.history[-1]
        row = move.row
        FIRED[row.id] += 1
        reason = re.sub(r"worker \S+", "worker W", move.reason)
        reason = re.sub(r"in [\d.]+ s", "in N s", reason)
        self.say(f"  {row.id} {row.source} --{row.event}--> {row.target} ({reason})")

    def host(self) -> Host:
        """Return the host."""
        return Host(self.store, self.settings, self.clock, self.staging)

    def launch(self, *, show: bool = True) -> None:
        """Let the worker claim the job, if it is due, and launch it."""
        self.say("> launch")
        loop = Worker(self.host(), self.worker)
        if loop.run_one(self.job_id) is None:
            self.say("  nothing is due")
        if show:
            self._show()

    def deliver_again(self) -> None:
        """Deliver the launch of the job a second time."""
        self.say("> launch again")
        decision = self.staging.launch(self.job_id)
        self.say(f"  {decision.ruling}")
        self._show()

    def recover(self) -> None:
        """Let the next worker take up what the last one left."""
        self.say("> recover")
        self.staging.recover()
        self._show()

    def cancel(self) -> None:
        """Let a person cancel the attempt."""
        self.say("> cancel")
        self.staging.cancel(self.job_id)
        self._show()

    def shadow(self) -> None:
        """Let the runner make its own attempt beside the agent's launch, which has ended."""
        self.say("> shadow")
        beside = Shadow(self.variables, self.clock, lambda _config: self.read_suites())
        beside.run_once()
        (launch,) = shadow_view(beside.records.records())["launches"]
        runner = launch["runner"]
        agent = "opens" if launch["agent"]["opened"] else "refuses"
        self.say(f"  the gate {agent} for the agent; the runner is {runner['state']}")
        self.say(f"  {launch['comparison']}: {runner['reason']}")
        self._show()

    def wait(self, **span: float) -> None:
        """Let time pass."""
        self.say("> wait " + " ".join(f"{value} {name}" for name, value in span.items()))
        self.clock.ahead += timedelta(**span)

    def set(self, name: str, value: str) -> None:
        """Change a setting."""
        self.say(f"> set {name}={value}")
        self.variables[f"ORCH_STAGING_RUNNER_{name}"] = value

    def note(self, text: str) -> None:
        """Say what happens outside."""
        self.say(f"> {text}")

    def artifact_path(self) -> Path:
        """Return where the gate looks."""
        return work_item_dir(self.repository, WORK_ITEM) / ARTIFACT_NAME

    def commit(self, name: str, text: str) -> None:
        """Commit a file to the repository under test."""
        (self.repository / name).write_text(text)
        git(self.repository, "add", name)
        git(self.repository, "commit", "--quiet", "--message", name)

    def _describe_row(self) -> str:
        with sqlite3.connect(self.database) as database:
            job = database.execute(
                "SELECT status, metadata FROM jobs WHERE id = ?", (self.job_id,)
            ).fetchone()
            item = database.execute(
                "SELECT stage, developer_retries, blocked_reason FROM work_items"
            ).fetchone()
            later = database.execute(
                "SELECT agent FROM jobs WHERE id > ? ORDER BY id", (self.job_id,)
            ).fetchall()
        row = self.staging_row_state(job[1])
        after = ", ".join(agent for (agent,) in later) or "none"
        blocked = ", blocked" if item[2] else ""
        return (
            f"job {job[0]}, {row}; work item at {item[0]}, {item[1]} developer retries{blocked};"
            f" next jobs: {after}"
        )

    def staging_row_state(self, metadata: str) -> str:
        """Return what the metadata says of an attempt."""
        found = re.search(r'"state":"(\w+)"', metadata)
        return f"attempt {found.group(1)}" if found else "no attempt"

    def _show(self) -> None:
        row = self._describe_row()
        if row != self._row:
            self._row = row
            self.say(f"row: {row}")
        path = self.artifact_path()
        if path.exists():
            facts = yaml.safe_load(path.read_text().split("\n---\n")[0])
            shown = ", ".join(f"{key} {facts[key]}" for key in _FRONT_MATTER if key in facts)
            word = "yes" if check_staging_status(path.parent) else "no"
            self.say(f"artifact: {shown}; the gate says {word}")

    def text(self) -> str:
        """Return the transcript."""
        return "\n".join(self.lines) + "\n"

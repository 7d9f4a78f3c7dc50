"""What `launch_job` may rely on: the intercept's promises, over real rows and real suites."""

import contextlib
import json
import os
import re
import signal
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import sqlalchemy as sa

from conftest import REPO, HostKit
from staging_fsm.core.errors import (
    RunRefusedError,
    SnapshotRefusedError,
    StaleSnapshotError,
    TransitionRefusedError,
)
from staging_fsm.core.evidence import Counts, Evidence, EvidenceState
from staging_fsm.core.invariants import Sight, violations
from staging_fsm.core.jobs import SNAPSHOT_KEY, JobRow, Place
from staging_fsm.core.outcome import REASONS, Reason, RunFacts, Supervision, judge
from staging_fsm.core.ports import AlertKind, RunCondition, RunReport
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import Effect, Event, State
from staging_fsm.core.suites import Suites, parse_suites
from staging_fsm.core.times import format_time, parse_time
from staging_fsm.drive.engine import Engine
from staging_fsm.drive.intercept import UNSEEN, StagingIntercept
from staging_fsm.drive.rulings import Decision, Ruling
from staging_fsm.drive.runner import StagingRunner
from staging_fsm.effects import preflight
from staging_fsm.effects.clock import SystemClock
from staging_fsm.effects.processes import ProcessIdentity, this_process
from staging_fsm.effects.rows import SqlRows
from staging_fsm.host import launcher
from staging_fsm.host.contract.gate import ARTIFACT_NAME
from staging_fsm.host.launcher import Host, launch_job, staging_intercept
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

    def read_suites(self) -> Suites:
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
        with closing(sqlite3.connect(self.folder / "orchestrator.db")) as database, database:
            database.execute("UPDATE jobs SET metadata = ? WHERE id = ?", (metadata, self.job_id))


@attrs.frozen
class SingleMethod:
    """A callable as an object with one method."""

    call: Callable[..., Any]


@pytest.fixture
def desk(make_host: Callable[..., HostKit], tmp_path: Path) -> Desk:
    """Return a host whose runner is switched on, with one retry and no wait before it."""
    variables = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "ORCH_STAGING_RUNNER_ENABLED": "1",
        "ORCH_STAGING_RUNNER_REPOS": REPO,
        "ORCH_STAGING_RUNNER_INFRA_RETRIES": "1",
        "ORCH_STAGING_RUNNER_RETRY_BACKOFF_SECONDS": "0",
        "ORCH_STAGING_RUNNER_STATE_DIR": str(tmp_path / "state"),
    }
    return Desk(make_host(AGENT), tmp_path, variables)


OFF: Final[dict[str, dict[str, str | None]]] = {
    "off": {"ENABLED": "0"},
    "not configured": {"ENABLED": None},
    "empty": {"ENABLED": ""},
    "off with an invalid rest": {"ENABLED": "off", "INFRA_RETRIES": "many", "TYPO": "1"},
    "out of scope": {"REPOS": "others"},
    "no scope": {"REPOS": None},
}


@pytest.mark.parametrize("name", OFF)
def test_switched_off_runner_leaves_row_and_agent_as_they_are(desk: Desk, name: str) -> None:
    """Switched off or out of scope, the row and the agent's command are those without a runner."""
    for setting, value in OFF[name].items():
        desk.set(setting, value)
    job = desk.claim()
    before = desk.raw_row()

    without = attrs.evolve(desk.kit.host, staging=None)
    launch_job(without, job)
    row_without, calls_without = desk.raw_row(), desk.agent_calls()
    with closing(sqlite3.connect(desk.folder / "orchestrator.db")) as database, database:
        database.execute("UPDATE jobs SET status = 'running' WHERE id = ?", (desk.job_id,))
        database.execute("UPDATE work_items SET stage = 'deploy-staging'")
    assert desk.raw_row() == before
    launch_job(attrs.evolve(desk.kit.host, staging=desk.staging), job)

    assert desk.raw_row() == row_without
    assert desk.agent_calls() == calls_without * 2
    assert desk.alerts() == []


@pytest.mark.parametrize("stage", ["analysis", "deploy", "deploy-staging2", "testing"])
def test_other_stages_are_none_of_the_runners(desk: Desk, stage: str) -> None:
    """A job of another stage is declined, and nothing is written or said about it."""
    desk.job_id = desk.kit.add(stage, "WI-2")
    before = desk.raw_row()
    decision = desk.launch()

    assert decision.ruling is Ruling.DECLINED
    assert decision.reason == f"stage {stage} is not deploy-staging"
    assert desk.raw_row() == before
    assert desk.alerts() == []


INVALID: Final[dict[str, tuple[dict[str, str], str]]] = {
    "a number that is none": ({"INFRA_RETRIES": "many"}, PASSING),
    "a misspelt name": ({"ENABELD": "1"}, PASSING),
    "a switch that is neither": ({"ENABLED": "maybe"}, PASSING),
    "no suite for the repository": ({}, '[repos.other]\ncommand = ["true"]\n'),
    "a suites file that is no TOML": ({}, "[default"),
    "a suite that cannot be": ({}, "[default]\ncommand = []\n"),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_configuration_declines_loudly(desk: Desk, name: str) -> None:
    """Before the first run an invalid configuration leads to the LLM, with an alert and a trace."""
    settings, desk.suites_file = INVALID[name]
    for setting, value in settings.items():
        desk.set(setting, value)
    job = desk.claim()

    launch_job(attrs.evolve(desk.kit.host, staging=desk.staging), job)

    assert [move.id for move in desk.snapshot().history] == ["T02"]
    assert desk.alerts() == ["configuration_invalid"]
    assert len(desk.agent_calls()) == 1
    assert desk.kit.item().stage == "deploy"


BEFORE_THE_FIRST_RUN: Final = ("suites", "bind", "place", "rows.save")


@pytest.mark.parametrize("part", BEFORE_THE_FIRST_RUN)
def test_internal_error_before_the_first_run_declines(desk: Desk, part: str) -> None:
    """Whatever fails before a run is counted leads to the LLM, and somebody is told."""
    desk.claim()
    desk.break_part(part, RuntimeError("boom"))

    decision = desk.launch()

    assert (decision.ruling, bool(decision)) == (Ruling.DECLINED, False)
    assert "boom" in decision.reason
    assert set(desk.alerts()) == {"internal_error"}
    assert desk.state() is (None if part == "rows.save" else State.LLM_FALLBACK)


def test_dirty_tree_declines(desk: Desk) -> None:
    """A run in place over uncommitted changes is refused before it is counted."""
    (desk.kit.repository / "shop.py").write_text("PRICE = 4\n")
    desk.claim()

    decision = desk.launch()

    assert decision.ruling is Ruling.DECLINED
    assert "uncommitted changes" in decision.reason


def test_declined_launch_stays_declined(desk: Desk) -> None:
    """A launch that was declined is declined again, also when what was wrong is right."""
    desk.claim()
    desk.set("INFRA_RETRIES", "many")
    desk.launch()
    desk.set("INFRA_RETRIES", "1")

    assert desk.launch().ruling is Ruling.DECLINED
    assert (desk.staging.recover(), desk.new_worker().recover()) == ([], [])
    assert len(desk.snapshot().history) == 1


AFTER_THE_FIRST_RUN: Final = ("artifacts.set_aside", "suites.start", "suites.await_report", "place")


@pytest.mark.parametrize("part", AFTER_THE_FIRST_RUN)
def test_internal_error_after_a_run_was_counted_is_a_tool_error(desk: Desk, part: str) -> None:
    """Whatever fails once a run is counted ends that run as a tool error, and no agent starts."""
    desk.claim()
    if part == "place":
        # Fine when the attempt is bound, and gone when its suite starts.
        answers = [desk.engine.place]
        desk.engine.place = lambda row: answers.pop()(row)  # noqa: PLW0108  # popped late
    else:
        desk.break_part(part, RuntimeError("boom"))

    decision = desk.launch()

    assert decision.ruling is Ruling.TAKEN
    snapshot = desk.snapshot()
    assert [move.id for move in snapshot.history] == ["T01", "T05", "T07"]
    assert snapshot.reasons == (Reason.INTERNAL_ERROR,)
    told = "IndexError: pop from empty list" if part == "place" else "RuntimeError: boom"
    assert (snapshot.runs[0].rule, snapshot.runs[0].detail) == ("engine", told)
    assert desk.agent_calls() == []


def test_preparation_that_fails_is_a_tool_error(desk: Desk) -> None:
    """A run whose checkout cannot be made is counted, with what was wrong with it."""
    desk.claim()
    desk.suites_file = PASSING.replace("in-place", "worktree")
    desk.staging.runner.bind = lambda *_: "0" * 40

    assert desk.launch().ruling is Ruling.TAKEN
    assert desk.snapshot().reasons == (Reason.PREPARATION_FAILED,)
    assert "cannot be checked out" in str(desk.snapshot().last_run.detail)


def test_run_of_which_nothing_can_be_seen_is_held(desk: Desk) -> None:
    """A run that can be neither started nor reaped is held, and counts as lost once it can."""
    desk.claim()
    runs = desk.folder / "state" / "runs"
    runs.parent.mkdir()
    runs.write_text("a file where the folder of all runs should be")

    assert desk.launch().ruling is Ruling.HELD
    assert desk.state() is State.RUNNING
    runs.unlink()
    desk.staging.recover()
    assert desk.snapshot().reasons == (Reason.WORKER_LOST,)


@pytest.mark.parametrize("name", OFF)
def test_kill_switch_between_two_runs_leads_to_the_llm(desk: Desk, name: str) -> None:
    """A deferred attempt goes to the LLM when it is launched switched off or out of scope."""
    desk.defer()
    for setting, value in OFF[name].items():
        desk.set(setting, value)

    decision = desk.launch()

    assert decision.ruling is Ruling.DECLINED
    assert desk.snapshot().history[-1].id == "T10"
    assert desk.launch().ruling is Ruling.DECLINED
    assert desk.alerts() == []


def test_invalid_configuration_between_two_runs_is_a_counted_tool_error(desk: Desk) -> None:
    """A deferred attempt never goes to the LLM by a broken configuration: it costs a run."""
    desk.defer()
    desk.set("INFRA_RETRIES", "many")

    decision = desk.launch()

    assert decision.ruling is Ruling.TAKEN
    snapshot = desk.snapshot()
    assert snapshot.state is State.FAILED_CLOSED
    assert snapshot.reasons == (Reason.TOOL_EXIT_CODE, Reason.CONFIGURATION_INVALID)
    assert desk.alerts() == ["configuration_invalid", "failed_closed"]


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no disk be large enough for a run."""
    monkeypatch.setattr(preflight, "FREE_BYTES_MIN", 2**80)


def test_unfit_machine_declines_loudly_and_spends_no_run(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that cannot run a suite leaves the first launch to the LLM, and says so."""
    fill_the_disk(monkeypatch)
    desk.claim()

    decision = desk.launch()

    assert decision.ruling is Ruling.DECLINED
    assert "inodes are needed" in decision.reason
    assert desk.snapshot().runs == ()
    assert desk.alerts() == ["machine_unfit"]


def test_machine_that_becomes_unfit_between_two_runs_costs_one(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deferred attempt does not wait for ever for a better machine: it costs a run, loudly."""
    desk.defer()
    fill_the_disk(monkeypatch)

    desk.launch()

    assert desk.snapshot().reasons == (Reason.TOOL_EXIT_CODE, Reason.MACHINE_UNFIT)
    assert desk.state() is State.FAILED_CLOSED
    assert desk.alerts() == ["machine_unfit", "failed_closed"]


def test_machine_that_cannot_be_looked_at_between_two_runs_costs_one(desk: Desk) -> None:
    """A machine that cannot even be looked at costs a run: nothing is tried for ever, uncounted."""
    desk.defer()

    def broken(*_: object) -> str | None:
        message = "no such share"
        raise OSError(message)

    desk.staging.runner.preflight = broken

    desk.launch()

    assert desk.snapshot().reasons == (Reason.TOOL_EXIT_CODE, Reason.MACHINE_UNFIT)
    assert "no such share" in str(desk.snapshot().last_run.detail)
    assert desk.state() is State.FAILED_CLOSED


#: Where a save that fails leaves an attempt, and the suite that leads there.
ON_THE_WAY: Final = {
    "T03": (State.RUNNING, PASSING),
    "T04": (State.RUNNING, FAILING),
    "T05": (State.RUNNING, TOOL_ERROR),
    "T07": (State.TOOL_ERROR, TOOL_ERROR),
    "T11": (State.VERDICT_PASSED, PASSING),
    "T13": (State.VERDICT_FAILED, FAILING),
}


@pytest.mark.parametrize("id_", ON_THE_WAY)
def test_attempt_under_way_never_goes_to_the_llm(desk: Desk, id_: str) -> None:
    """Between its first run and its end nothing leads to the LLM but a deferral, switch or not."""
    state, desk.suites_file = ON_THE_WAY[id_]
    desk.claim()
    rows = desk.engine.rows
    desk.use_rows(
        Failing(rows, "save", OSError("boom"), lambda _id, saved, *_: saved.history[-1].id == id_)
    )
    assert desk.launch().ruling is Ruling.HELD
    assert desk.state() is state
    assert desk.alerts() == ["internal_error"]
    desk.use_rows(rows)
    desk.set("ENABLED", "0")

    decision = desk.launch()

    assert decision.ruling is Ruling.TAKEN
    assert desk.snapshot().state not in (state, State.LLM_FALLBACK)
    assert desk.agent_calls() == []


def test_finished_attempt_is_taken_and_left_alone(desk: Desk) -> None:
    """A launch that is delivered again after its end starts nothing and writes nothing."""
    desk.claim()
    desk.launch()
    before = desk.raw_row()

    decision = desk.launch()

    assert (decision.ruling, desk.raw_row()) == (Ruling.TAKEN, before)
    assert "ADVANCED" in decision.reason


def damaged_rows() -> dict[str, Callable[[str], str]]:
    """Return what may become of a row's metadata."""

    def changed(**changes: object) -> Callable[[str], str]:
        def change(metadata: str) -> str:
            document = json.loads(metadata)
            document[SNAPSHOT_KEY] |= changes
            return json.dumps(document)

        return change

    return {
        "cut short": lambda metadata: metadata[:-9],
        "a list": lambda _: "[]",
        "another type": lambda _: json.dumps({SNAPSHOT_KEY: "RUNNING"}),
        "a newer format": changed(format=2),
        "an unknown state": changed(state="PAUSED"),
        "a state that its history does not lead to": changed(state="VERDICT_PASSED"),
        "a key too many": changed(note="hello"),
    }


@pytest.mark.parametrize("name", damaged_rows())
def test_damaged_row_is_held_and_told_of(desk: Desk, name: str) -> None:
    """A row that cannot be trusted starts neither runner nor LLM, and is left as it is."""
    desk.defer()
    desk.write_metadata(damaged_rows()[name](desk.raw_row()["metadata"]))
    before = desk.raw_row()

    decision = desk.launch("{}")
    recovered = desk.new_worker().recover()

    assert (decision.ruling, bool(decision)) == (Ruling.HELD, True)
    assert recovered == []
    assert desk.raw_row() == before
    assert desk.alerts() == ["row_refused"]
    assert desk.kit.item().stage == "deploy-staging"


PARTS: Final = (
    "rows.load",
    "rows.save",
    "rows.requeue",
    "rows.transaction",
    "suites.start",
    "suites.await_report",
    "suites.condition",
    "suites.reap",
    "suites.log_tail",
    "suites.shown_command",
    "artifacts.set_aside",
    "artifacts.write",
    "artifacts.is_written",
    "alerts.send",
    "clock.now",
    "gate",
    "place",
    "watch",
    "bind",
    "suites",
    "liveness",
    "new_id",
    "variables.get",
)


def first(desk: Desk) -> None:
    """Have the job claimed for its first launch."""
    desk.claim()


def broken_configuration(desk: Desk) -> None:
    """Have the job claimed for a launch that will be declined."""
    desk.claim()
    desk.set("INFRA_RETRIES", "many")


def deferred(desk: Desk) -> None:
    """Have a deferred attempt claimed for its second run, which will be its last."""
    desk.defer()
    desk.suites_file = TOOL_ERROR


def abandoned(desk: Desk) -> None:
    """Have a worker die while its suite passed."""
    desk.claim()
    rows = desk.engine.rows
    desk.use_rows(
        Failing(rows, "save", OSError("boom"), lambda _id, saved, *_: saved.history[-1].id == "T03")
    )
    desk.launch()
    desk.use_rows(rows)


@pytest.mark.parametrize("scene", [first, broken_configuration, deferred, abandoned])
@pytest.mark.parametrize("part", PARTS)
def test_launch_gives_an_answer_whatever_breaks(
    desk: Desk, part: str, scene: Callable[[Desk], None]
) -> None:
    """A launch never raises; it declines only where no attempt is under way, and promises hold."""
    scene(desk)
    desk.break_part(part, KeyError("boom"))

    decision = desk.launch()

    state = desk.state()
    assert isinstance(decision, Decision)
    if decision.ruling is Ruling.DECLINED:
        assert state in (None, State.LLM_FALLBACK)
    if decision.ruling is Ruling.HELD and part != "alerts.send":
        assert "internal_error" in desk.alerts()
    if state is not None:
        assert violations(Sight(desk.snapshot())) == []


def test_misspelt_keyword_is_refused_at_once(desk: Desk) -> None:
    """A keyword that replaces nothing is a mistake of the host's author, and told as one."""
    parts = (desk.engine.rows, desk.engine.gate, desk.engine.place)
    with pytest.raises(TypeError, match=r"clok cannot be replaced; .*clock.* can"):
        StagingIntercept.for_host(*parts, clok=desk.engine.clock)  # type: ignore[call-arg]  # that is the point


@pytest.mark.parametrize("scene", [first, deferred, abandoned])
def test_whoever_looks_on_hurts_no_attempt(desk: Desk, scene: Callable[[Desk], None]) -> None:
    """What a host's own progress raises costs neither a run nor the verdict."""
    scene(desk)
    before = desk.alerts()
    desk.break_part("watch", RuntimeError("boom"))

    assert desk.launch().ruling is Ruling.TAKEN
    assert desk.snapshot().is_terminal
    assert "internal_error" not in desk.alerts()[len(before) :]


class CannotSayItself(Exception):  # noqa: N818  # it is one that a host could have written
    """An error whose text is an error."""

    def __str__(self) -> str:
        """Fail."""
        raise RuntimeError


class LateMapping(dict[str, object]):
    """Metadata that reads only when it is looked into, and then cannot."""

    def __contains__(self, _key: object) -> bool:
        """Fail."""
        raise OSError


@pytest.mark.parametrize("part", ["rows.load", "rows.save", "suites.start", "place"])
def test_error_that_cannot_say_itself_is_an_error_like_any(desk: Desk, part: str) -> None:
    """A launch, a recovery and an agent's end never raise, not even what cannot be told."""
    desk.claim()
    desk.break_part(part, CannotSayItself())

    assert isinstance(desk.launch("{}"), Decision)
    assert desk.staging.recover() is not None
    desk.staging.agent_ended(desk.job_id, opened=True)


@pytest.mark.parametrize("readable", [True, False])
def test_metadata_that_cannot_be_looked_into_says_nothing(desk: Desk, *, readable: bool) -> None:
    """Metadata that fails when it is read is as good as none that was given."""
    desk.claim()
    if not readable:
        desk.break_part("rows.load", OSError("boom"))

    ruling = desk.launch(LateMapping()).ruling

    assert ruling is (Ruling.TAKEN if readable else Ruling.HELD)


def test_recovery_waits_for_a_store_that_is_away(desk: Desk) -> None:
    """Where the rows cannot be read nothing is recovered, somebody is told, and nothing raised."""
    under_worker(desk, str(attrs.evolve(this_process(), start=1)))
    rows = desk.engine.rows
    desk.break_part("rows.unfinished", OSError("boom"))

    assert desk.staging.recover() == []
    assert desk.alerts() == ["internal_error", "internal_error"]

    desk.use_rows(rows)
    assert [row.id for row in desk.staging.recover()] == [desk.job_id]


@pytest.mark.parametrize("scene", [first, deferred, abandoned])
def test_launch_gives_an_answer_when_everything_breaks(
    desk: Desk, scene: Callable[[Desk], None]
) -> None:
    """With every part of the world broken at once a launch still answers, and never by a guess."""
    scene(desk)
    before = desk.raw_row()
    for part in PARTS:
        desk.break_part(part, OSError("boom"))

    assert desk.launch("{}" if scene is first else UNSEEN).ruling is (
        Ruling.DECLINED if scene is first else Ruling.HELD
    )
    assert desk.raw_row() == before


def test_interrupt_by_a_person_goes_through(desk: Desk) -> None:
    """An interrupt is no error: it ends the worker, and the run goes on for the next one."""
    desk.claim()
    desk.break_part("suites.await_report", KeyboardInterrupt())  # type: ignore[arg-type]  # no Exception, and that is the point

    with pytest.raises(KeyboardInterrupt):
        desk.launch()

    assert desk.state() is State.RUNNING
    desk.staging = desk.new_worker()
    assert desk.launch().ruling is Ruling.TAKEN
    assert desk.state() is State.ADVANCED


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (None, Ruling.DECLINED),
        ("", Ruling.DECLINED),
        ('{"theirs": 1}', Ruling.DECLINED),
        ({"theirs": 1}, Ruling.DECLINED),
        ('{"staging_runner": {}}', Ruling.HELD),
        ({"staging_runner": {}}, Ruling.HELD),
        (17, Ruling.HELD),
        (UNSEEN, Ruling.HELD),
    ],
)
def test_row_that_cannot_be_read_is_held_unless_nothing_can_be_in_it(
    desk: Desk,
    metadata: object,
    expected: Ruling,
) -> None:
    """Where the row cannot be read, only a launch known to be the first goes to the LLM."""
    desk.claim()
    desk.break_part("rows.load", OSError("boom"))

    assert desk.launch(metadata).ruling is expected
    assert desk.alerts() == ["internal_error"]


def test_job_whose_launch_failed_is_in_nobodys_hands(desk: Desk) -> None:
    """A launch that met an error keeps no later one of the same process from its job."""
    desk.claim()
    rows = desk.engine.rows
    desk.break_part("rows.load", OSError("boom"))
    first = desk.launch()
    desk.use_rows(rows)

    assert first.ruling is Ruling.HELD
    assert desk.launch().ruling is Ruling.TAKEN
    assert desk.snapshot().is_terminal


def test_first_launch_that_turns_out_not_to_be_one_is_held(desk: Desk) -> None:
    """What the row says counts for more than what the caller knew of it."""
    desk.defer()
    answers = [OSError("boom")]
    desk.staging.rows = desk.engine.rows = Failing(
        desk.engine.rows,
        "load",
        answers[0],
        lambda _id: bool(answers and answers.pop()),
    )

    assert desk.launch("{}").ruling is Ruling.HELD


def test_attempt_that_was_seen_is_not_forgotten(desk: Desk) -> None:
    """Once the row was read, what the caller knew of it counts no more, also when it is gone."""
    desk.defer()
    reads = [False]
    desk.staging.rows = desk.engine.rows = Failing(
        desk.engine.rows,
        "load",
        OSError("boom"),
        lambda _id: not reads or reads.pop(),
    )
    desk.break_part("clock.now", OSError("boom"))

    assert desk.launch("{}").ruling is Ruling.HELD
    assert desk.state() is State.DEFERRED


def test_damaged_row_is_held_also_when_it_is_read_late(desk: Desk) -> None:
    """A row that can be read only at the second try, and is damaged then, is held."""
    desk.claim()
    desk.write_metadata('{"staging_runner": 17}')
    answers = [OSError("boom")]
    desk.staging.rows = desk.engine.rows = Failing(
        desk.engine.rows,
        "load",
        answers[0],
        lambda _id: bool(answers and answers.pop()),
    )

    assert desk.launch("{}").ruling is Ruling.HELD


def lose_answer_and_store(desk: Desk, id_: str) -> None:
    """Have the store store a move, lose the answer, and be gone from then on."""
    rows, gone = desk.engine.rows, list[bool]()

    def lost(_id: object, saved: Snapshot, *_: object) -> bool:
        gone.append(saved.history[-1].id == id_)
        return gone[-1]

    losing = LosesTheAnswer(rows, "save", OSError("boom"), lost)
    desk.use_rows(Failing(losing, "load", OSError("gone"), lambda _id: True in gone))


def test_counted_run_is_never_taken_for_a_first_launch(desk: Desk) -> None:
    """A first run that was counted without an answer is held, though the caller knew of none."""
    desk.claim()
    lose_answer_and_store(desk, "T01")

    assert desk.launch("{}").ruling is Ruling.HELD
    assert desk.state() is State.RUNNING


def test_store_that_goes_away_during_the_first_run_holds_the_launch(desk: Desk) -> None:
    """A verdict that was stored without an answer is held, though this was the first launch."""
    desk.claim()
    lose_answer_and_store(desk, "T03")

    assert desk.launch("{}").ruling is Ruling.HELD
    assert desk.state() is State.VERDICT_PASSED


@pytest.mark.parametrize("id_", ["T02", "T10"])
def test_fallback_that_was_stored_without_an_answer_is_one(desk: Desk, id_: str) -> None:
    """A way back to the LLM that the row shows is taken, also when the store seemed to refuse."""
    if id_ == "T10":
        desk.defer()
        desk.set("ENABLED", "0")
    else:
        desk.claim()
        desk.set("INFRA_RETRIES", "many")
    desk.break_part("rows.save", OSError("boom"), LosesTheAnswer)

    assert desk.launch().ruling is Ruling.DECLINED
    assert desk.snapshot().history[-1].id == id_


def test_switch_that_cannot_be_stored_between_two_runs_holds_the_launch(desk: Desk) -> None:
    """Without its row T10 a deferred attempt must not have an agent beside it."""
    desk.defer()
    desk.set("ENABLED", "0")
    desk.break_part("rows.save", OSError("boom"))

    assert desk.launch().ruling is Ruling.HELD
    assert desk.state() is State.DEFERRED


def test_switch_that_comes_too_late_between_two_runs_starts_no_agent(desk: Desk) -> None:
    """Who steps aside from an attempt that another worker has moved on leaves it to that one."""
    desk.defer()
    rows, load = desk.engine.rows, desk.engine.rows.load
    other = desk.new_worker()

    class Overtaken:
        """Rows of a worker that another one overtakes once it has read its job."""

        def __getattr__(self, name: str) -> Any:
            return getattr(rows, name)

        def load(self, job_id: Any) -> JobRow:
            """Read the job, and have the other one launch it."""
            row = load(job_id)
            desk.set("ENABLED", "1")
            other.launch(job_id)
            desk.set("ENABLED", "0")
            return row

    desk.use_rows(Overtaken())
    decision = desk.launch()
    desk.use_rows(rows)

    assert decision.ruling is Ruling.TAKEN
    assert len(desk.snapshot().runs) == 2


def test_early_launch_with_the_switch_thrown_leads_to_the_llm(desk: Desk) -> None:
    """The kill switch is heard before the wait is: an attempt that waits is let go at once."""
    desk.set("RETRY_BACKOFF_SECONDS", "600")
    desk.set("RETRY_BACKOFF_MAX_SECONDS", "900")
    desk.suites_file = TOOL_ERROR
    desk.claim()
    desk.launch()
    desk.set("ENABLED", "0")

    assert desk.state() is State.DEFERRED
    assert desk.launch().reason == "the runner was switched off between two runs"
    assert desk.state() is State.LLM_FALLBACK


def test_early_launch_on_a_machine_that_cannot_costs_no_run(desk: Desk) -> None:
    """An attempt that still has to wait is not asked whether it could run now."""
    desk.set("RETRY_BACKOFF_SECONDS", "600")
    desk.suites_file = TOOL_ERROR
    desk.claim()
    desk.launch()
    before = desk.snapshot()
    desk.staging.runner.preflight = lambda *_: "there is no room"
    desk.launch()

    assert desk.snapshot() == before


def test_artifact_shows_no_secret_of_the_command(desk: Desk) -> None:
    """What the command says after a name that looks secret is not in what everybody may read."""
    desk.suites_file = PASSING.replace('["true"]', '["true", "--token=a-very-secret-word"]')
    desk.claim()
    desk.launch()
    text = (desk.engine.place(desk.row()).artifact_dir / ARTIFACT_NAME).read_text()

    assert "a-very-secret-word" not in text
    assert "--token=" in text


class SlowClock(SystemClock):
    """A clock by which an hour passes each time that it is looked at."""

    def now(self) -> datetime:
        """Return the time of day."""
        self.hours = getattr(self, "hours", 0) + 1
        return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(hours=self.hours)


def test_wait_is_counted_from_when_it_is_decided(desk: Desk) -> None:
    """The next run is due as long after the deferral as was said, however long the run took."""
    desk.set("RETRY_BACKOFF_SECONDS", "600")
    desk.suites_file = TOOL_ERROR
    desk.engine.clock = SlowClock()
    desk.claim()
    desk.launch()
    snapshot = desk.snapshot()
    seconds = snapshot.bound_plan.budget.delay_seconds(snapshot.attempt_id, 1)
    due = parse_time(str(snapshot.next_run_at)) - timedelta(seconds=seconds)
    deferred, ended = snapshot.history[-1].time, snapshot.history[-2].time

    assert parse_time(ended) < due < parse_time(deferred)


def test_row_that_is_due_too_late_is_queued_again(desk: Desk) -> None:
    """What a row says of its due time counts, also where the attempt says another."""
    desk.suites_file = TOOL_ERROR
    desk.claim()
    desk.launch()
    wanted = desk.snapshot().next_run_at
    with desk.kit.store.transaction() as tx:
        tx.exec_driver_sql("UPDATE jobs SET not_before = '2100-01-01T00:00:00.000000Z'")
    desk.staging.recover()
    due = desk.row().not_before

    assert due is not None
    assert format_time(due) == wanted


def test_claim_that_is_lost_at_the_gate_is_left_to_the_other(desk: Desk) -> None:
    """A worker whose claim another took before its gate asks once, and alerts nobody."""
    desk.claim()
    asked: list[bool] = []
    gate, rows = desk.engine.gate, desk.engine.rows

    def watched(row: JobRow, tx: Any) -> bool:
        asked.append(gate(row, tx))
        return asked[-1]

    desk.engine.gate = watched
    lost = StaleSnapshotError(desk.job_id, 3)
    desk.use_rows(Failing(rows, "save", lost, lambda _id, saved, *_: len(saved.history) == 3))
    decision = desk.launch()

    assert (decision.ruling, asked, desk.alerts()) == (Ruling.TAKEN, [True], [])


def test_recovery_holds_the_job_that_it_takes_up(desk: Desk) -> None:
    """A job that recovery has in hand is launched by nobody else of this process."""
    under_worker(desk, str(attrs.evolve(this_process(), start=1)))
    answers: list[Decision] = []
    suites = desk.engine.suites

    class Asked:
        """Suites at which the job is launched while recovery asks of its run."""

        def __getattr__(self, name: str) -> Any:
            return getattr(suites, name)

        @staticmethod
        def condition(run_id: str) -> RunCondition:
            """Launch the job, and answer."""
            answers.append(desk.launch())
            return suites.condition(run_id)

    asked: Any = Asked()
    desk.engine.suites = asked
    desk.staging.recover()

    assert [answer.reason for answer in answers] == ["this process is already working on it"]


@pytest.mark.parametrize(
    ("times", "state"), [(1, State.ADVANCED), (2, State.ADVANCED), (9, State.ROLLED_BACK)]
)
def test_artifact_that_somebody_was_at_is_written_again(
    desk: Desk, times: int, state: State
) -> None:
    """A gate that read another artifact than was written is asked again before its no stands."""
    desk.claim()
    gate, left = desk.engine.gate, [times]

    def meddled(row: JobRow, tx: Any) -> bool:
        left[0] -= 1
        if left[0] >= 0:
            (desk.engine.place(row).artifact_dir / ARTIFACT_NAME).write_text("")
        return gate(row, tx)

    desk.engine.gate = meddled
    desk.launch()

    assert desk.state() is state


def test_table_that_does_not_keep_an_attempt_runs_nothing(desk: Desk) -> None:
    """Where the table drops our key again no run could be counted: the agent has the job."""
    with desk.kit.store.transaction() as tx:
        tx.exec_driver_sql(
            "CREATE TRIGGER forgetful AFTER UPDATE OF metadata ON jobs BEGIN"
            " UPDATE jobs SET metadata = '{}' WHERE id = NEW.id; END"
        )
    desk.claim()
    decision = desk.launch()

    assert decision.ruling is Ruling.DECLINED
    assert "does not keep the key staging_runner" in decision.reason
    assert not (desk.folder / "state" / "runs").exists()
    assert desk.row().document is None


@pytest.mark.parametrize("error", [RuntimeError("boom"), OSError("boom")])
def test_gate_that_breaks_is_asked_once(desk: Desk, error: Exception) -> None:
    """Only a gate that contradicts the verdict is asked again; one that breaks holds the launch."""
    desk.claim()
    asked: list[Path] = []

    def gate(row: JobRow, tx: Any) -> bool:
        del tx
        asked.append(desk.engine.place(row).artifact_dir)
        raise error

    desk.engine.gate = gate

    assert desk.launch().ruling is Ruling.HELD
    assert len(asked) == 1
    assert desk.state() is State.VERDICT_PASSED


@pytest.mark.parametrize("metadata", ["{}", '{"staging_runner": {}}'])
def test_host_tells_what_it_found_when_it_claimed(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, metadata: str
) -> None:
    """Where the row cannot be read, what the host saw at its claim decides who has the job."""
    job = attrs.evolve(desk.claim(), metadata=metadata)
    desk.break_part("rows.load", OSError("boom"))
    host = attrs.evolve(desk.kit.host, staging=desk.staging)
    spawned: list[Job] = []

    def spawn(_host: Host, job: Job) -> int:
        spawned.append(job)
        return 1

    monkeypatch.setattr(launcher, "_spawn", spawn)
    launch_job(host, job)

    assert spawned == ([job] if metadata == "{}" else [])


def test_key_in_escapes_is_an_attempt_too(desk: Desk) -> None:
    """Metadata in which our key is spelt with escapes may hold an attempt: nobody is started."""
    desk.break_part("rows.load", OSError("boom"))

    assert desk.launch('{"staging\\u005frunner": {"version": 3}}').ruling is Ruling.HELD
    assert desk.launch('{"staging": {"version": 3}}').ruling is Ruling.DECLINED


def under_worker(desk: Desk, worker: str) -> None:
    """Have a suite be started by `worker` and left alone."""
    desk.claim()
    desk.engine.worker = worker
    desk.break_part("rows.save", OSError("boom"), LosesTheAnswer)
    desk.launch()
    desk.staging = desk.new_worker()


@pytest.mark.parametrize("living", [True, None])
def test_attempt_of_a_worker_that_may_live_is_left_to_it(
    desk: Desk,
    living: bool | None,  # noqa: FBT001  # pytest passes it by name
) -> None:
    """An attempt whose worker lives, or might, is taken by it alone, at launch and at recovery."""
    here = this_process()
    scope = here.scope if living else "elsewhere:boot:1"
    under_worker(desk, str(ProcessIdentity(scope, 1 if living else 7, here.start)))
    desk.staging.runner.liveness = lambda _worker: living
    before = desk.raw_row()

    decision = desk.launch()
    recovered = desk.staging.recover()

    assert (decision.ruling, recovered) == (Ruling.TAKEN, [])
    assert desk.raw_row() == before


def test_run_on_another_machine_is_not_cancelled_from_here(desk: Desk) -> None:
    """A run that cannot be stopped from here is not said to be cancelled."""
    elsewhere = "elsewhere:boot:1/4711/1"
    under_worker(desk, elsewhere)

    with pytest.raises(RunRefusedError, match=elsewhere):
        desk.staging.cancel(desk.job_id)
    assert desk.state() is State.RUNNING


def test_run_of_a_dead_worker_is_cancelled(desk: Desk) -> None:
    """A run whose worker is gone is stopped from its own machine, without a recovery first."""
    under_worker(desk, str(attrs.evolve(this_process(), start=1)))

    assert desk.staging.cancel(desk.job_id).state is State.CANCELLED
    assert desk.raw_row()["status"] == "cancelled"


def test_forked_worker_has_nothing_in_hand(desk: Desk) -> None:
    """What its parent worked on when it was forked is nothing that a process works on itself."""
    told, tell = os.pipe()
    with desk.staging._hold(desk.job_id):
        pid = os.fork()
        if pid == 0:
            try:
                with desk.staging._hold(desk.job_id) as ours:
                    os.write(tell, str(ours).encode())
            finally:
                os._exit(0)
    os.close(tell)
    with os.fdopen(told) as reading:
        answer = reading.read()
    os.waitpid(pid, 0)

    assert answer == "True"


@pytest.mark.parametrize("use", ["launch", "cancel"])
def test_forked_worker_has_its_own_name(desk: Desk, use: str) -> None:
    """After a fork an intercept drives under the name of who uses it, and waits for nobody."""
    told, tell = os.pipe()
    engine = desk.engine
    desk.break_part("rows.load", OSError("boom"))
    desk.staging._lock.acquire()
    # As by another thread, which the new process does not have.
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        try:
            with contextlib.suppress(OSError):
                getattr(desk.staging, use)(desk.job_id)
            os.write(tell, engine.worker.encode())
        finally:
            os._exit(0)
    desk.staging._lock.release()
    os.close(tell)
    with os.fdopen(told) as reading:
        name = reading.read()
    os.waitpid(pid, 0)

    assert ProcessIdentity.parse(name).pid == pid
    assert ProcessIdentity.parse(desk.engine.worker).pid == os.getpid()


def test_old_runs_are_looked_for_after_each_launch_and_recovery(desk: Desk) -> None:
    """What is kept is looked at after a launch and a recovery, with the attempts that need it."""
    asked: list[tuple[float, object]] = []
    desk.staging.runner.prune = lambda days, unfinished: asked.append((days, unfinished()))
    desk.set("RUN_RETENTION_DAYS", "7")
    desk.suites_file = TOOL_ERROR
    desk.claim()
    desk.launch()
    desk.staging.recover()

    assert asked == [(7.0, frozenset({desk.snapshot().attempt_id}))] * 2


def test_recovery_comes_before_the_tidying_up(desk: Desk) -> None:
    """What recovery has brought to its end is no longer kept for an attempt that has not ended."""
    desk.set("INFRA_RETRIES", "0")
    under_worker(desk, str(attrs.evolve(this_process(), start=1)))
    kept: list[object] = []
    desk.staging.runner.prune = lambda _days, unfinished: kept.append(unfinished())
    desk.staging.recover()

    assert desk.snapshot().is_terminal
    assert kept == [frozenset()]


def test_job_in_hand_is_not_even_read(desk: Desk) -> None:
    """A second launch of a job that this process has in hand is taken, whatever can be read."""
    desk.claim()
    desk.use_rows(Failing(desk.engine.rows, "load", OSError("boom")))
    with desk.staging._hold(desk.job_id):
        decision = desk.launch("{}")

    assert decision.ruling is Ruling.TAKEN


def test_nothing_is_removed_while_a_row_is_refused(desk: Desk) -> None:
    """While a row cannot be read, nobody knows what it needs, and nothing is removed."""
    removed: list[object] = []
    desk.staging.runner.prune = lambda _days, unfinished: removed.append(unfinished())
    desk.claim()
    desk.write_metadata('{"staging_runner": {"format": 1}}')
    desk.staging.recover()

    assert removed == []


def test_attempt_of_a_dead_worker_is_taken_up(desk: Desk) -> None:
    """An attempt whose worker is dead is taken up by the next launch, and its run is lost."""
    here = this_process()
    dead = str(ProcessIdentity(here.scope, here.pid, here.start + 1))
    under_worker(desk, dead)

    decision = desk.launch()

    assert decision.ruling is Ruling.TAKEN
    assert [move.row.event for move in desk.snapshot().history] == [
        Event.JOB_CLAIMED,
        Event.WORKER_LOST,
        Event.BUDGET_LEFT,
    ]
    assert desk.snapshot().last_run.detail == f"worker {dead} is gone"


def test_deferral_that_is_claimed_again_is_its_claimants(desk: Desk) -> None:
    """Recovery leaves a deferred job alone that was queued again and claimed: a launch may follow.

    Queued once more it would be claimed twice, and switched off both claims start an agent.
    """
    desk.defer()
    before = desk.raw_row()
    other = desk.new_worker(liveness=lambda _worker: False)
    other.runner.engine.worker = "another"

    assert other.recover() == []
    assert desk.raw_row() == before


def test_recovery_that_comes_late_takes_no_claim_away(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two recoveries of one deferral the second queues nothing, whoever has claimed it since."""
    desk.suites_file = TOOL_ERROR
    desk.claim()
    desk.break_part("rows.requeue", OSError("boom"))
    desk.launch()
    early, late = (desk.new_worker(liveness=lambda _worker: False) for _ in range(2))
    early.runner.engine.worker, late.runner.engine.worker = "early", "late"
    requeue = late.runner.engine.rows.requeue

    def overtaken(*order: Any, **how: Any) -> None:
        early.recover()
        desk.claim()
        requeue(*order, **how)

    monkeypatch.setattr(late.runner.engine.rows, "requeue", overtaken)
    late.recover()

    assert desk.state() is State.DEFERRED
    assert desk.row().status == "running"


def test_run_of_another_machine_is_left_to_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on another machine is neither adopted nor reaped, also where its worker is dead."""
    here = this_process()
    under_worker(desk, str(ProcessIdentity(here.scope, here.pid, here.start + 1)))
    before = desk.raw_row()
    monkeypatch.setattr(desk.engine.suites, "condition", lambda _run_id: RunCondition.FOREIGN)

    assert desk.launch().ruling is Ruling.TAKEN
    assert desk.raw_row() == before


def test_job_in_the_hands_of_this_process_is_not_taken_twice(desk: Desk) -> None:
    """A second launch or recovery of a job that this very process works on does nothing."""
    desk.claim()
    inner: list[Any] = []

    def watch(_row: JobRow, snapshot: Snapshot) -> None:
        if snapshot.state is State.RUNNING:
            inner.append(desk.launch())
            inner.append(desk.staging.recover())

    desk.engine.watch = watch

    assert desk.launch().ruling is Ruling.TAKEN
    assert [inner[0].ruling, inner[1]] == [Ruling.TAKEN, []]
    assert "this process is already working on it" in inner[0].reason
    assert desk.state() is State.ADVANCED


def test_of_two_workers_at_a_first_launch_one_runs_the_suite(desk: Desk) -> None:
    """A worker that is overtaken while it binds the attempt leaves it alone, and nobody is told."""
    desk.claim()
    other = desk.new_worker()

    def bind(_repository: Path, _suite: object) -> str:
        other.launch(desk.job_id)
        return "unversioned"

    desk.staging.runner.bind = bind

    assert desk.launch().ruling is Ruling.TAKEN
    assert [move.id for move in desk.snapshot().history] == ["T01", "T03", "T11"]
    assert desk.alerts() == []


def test_recovery_goes_on_behind_a_row_that_cannot_be_driven(desk: Desk) -> None:
    """A row that recovery cannot drive is told of, and every other row is driven all the same."""
    desk.claim()
    desk.break_part("suites.await_report", KeyboardInterrupt())  # type: ignore[arg-type]  # as a worker that is stopped
    with pytest.raises(KeyboardInterrupt):
        desk.launch()
    broken, desk.job_id = desk.job_id, desk.kit.add("deploy-staging", "WI-2")
    desk.claim()
    with pytest.raises(KeyboardInterrupt):
        desk.launch()
    desk.staging = desk.new_worker()
    engine = desk.engine
    place = engine.place

    def no_place(row: JobRow) -> Place:
        if row.id == broken:
            message = "boom"
            raise LookupError(message)
        return place(row)

    engine.place = no_place

    recovered = desk.staging.recover()

    assert [row.id for row in recovered] == [desk.job_id]
    assert desk.state() is State.ADVANCED
    assert desk.alerts() == ["internal_error"]


def test_recovery_says_nothing_of_rows_of_other_stages(desk: Desk) -> None:
    """A row of another stage is not the runner's to complain of, however broken."""
    desk.job_id = desk.kit.add("testing", "WI-2")
    desk.write_metadata("certainly not")

    assert desk.staging.recover() == []
    assert desk.alerts() == []


def test_job_that_never_ran_can_be_cancelled(desk: Desk) -> None:
    """A queued job is cancelled before anything of it has started."""
    snapshot = desk.staging.cancel(desk.job_id)

    assert snapshot.state is State.CANCELLED
    assert desk.raw_row()["status"] == "cancelled"
    with pytest.raises(TransitionRefusedError):
        desk.staging.cancel(desk.job_id)


def test_only_staging_jobs_can_be_cancelled(desk: Desk) -> None:
    """A job of another stage is not touched by a cancellation, which says so."""
    desk.job_id = desk.kit.add("testing", "WI-2")
    before = desk.raw_row()

    with pytest.raises(RunRefusedError, match="only deploy-staging has attempts"):
        desk.staging.cancel(desk.job_id)

    assert desk.raw_row() == before


def test_host_may_have_its_own_word_for_the_stage(desk: Desk) -> None:
    """A host's own word for the stage holds for launch, recovery and cancellation alike."""
    with closing(sqlite3.connect(desk.folder / "orchestrator.db")) as database, database:
        database.execute("UPDATE jobs SET stage = 'pre-production'")
    desk.claim()
    desk.staging = desk.new_worker(stage="pre-production")
    desk.break_part("rows.save", OSError("boom"), LosesTheAnswer)
    assert desk.launch().ruling is Ruling.HELD
    desk.staging = desk.new_worker(stage="pre-production")

    recovered = desk.staging.recover()

    assert [row.id for row in recovered] == [desk.job_id]
    assert desk.state() is State.DEFERRED
    assert desk.staging.cancel(desk.job_id).state is State.CANCELLED


def test_damaged_attempt_cannot_be_cancelled(desk: Desk) -> None:
    """A person who cancels a damaged attempt is told what is wrong with it."""
    desk.write_metadata('{"staging_runner": 17}')

    with pytest.raises(SnapshotRefusedError, match="it is a int, not an object"):
        desk.staging.cancel(desk.job_id)


def test_runner_and_agent_leave_the_same_traces_of_a_pass(desk: Desk) -> None:
    """After a pass the host's tables look as they do after an agent's SUCCESS."""
    launch_job(attrs.evolve(desk.kit.host, staging=desk.staging), desk.claim())
    other = desk.kit.add("deploy-staging", "WI-2")
    job = desk.kit.store.claim_next(desk.kit.host.clock.now(), "w", other)
    assert job is not None
    launch_job(desk.kit.host, job)

    ours, theirs = desk.kit.item("WI-1"), desk.kit.item("WI-2")
    assert attrs.evolve(ours, id="") == attrs.evolve(theirs, id="")
    assert desk.kit.store.job(desk.job_id).status == desk.kit.store.job(other).status == "done"
    for item in ("WI-1", "WI-2"):
        text = (desk.kit.repository / "docs/work-items" / item / ARTIFACT_NAME).read_text()
        assert text.startswith("---\nstaging_status: SUCCESS\n")


@pytest.mark.parametrize("metadata", [UNSEEN, None, "{}", '{"staging_runner": 1}'])
def test_launch_without_a_runner_is_declined(
    desk: Desk, metadata: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no runner can be made, a job that no run was counted for is the agent's."""
    desk.claim()
    desk.break_runner()
    decision = desk.launch(metadata)

    assert (decision.ruling, decision.reason) == (Ruling.DECLINED, "ImportError: gone")
    assert desk.row().document is None
    assert caplog.messages[-1].startswith('event="there is no runner"')


def test_attempt_is_held_where_there_is_no_runner(desk: Desk) -> None:
    """Where no runner can be made, an attempt is left for one that can, and no agent is started."""
    desk.defer()
    before = desk.row()
    desk.break_runner()
    decision = desk.launch()

    assert (decision.ruling, decision.reason) == (Ruling.HELD, "ImportError: gone")
    assert desk.row() == before


@pytest.mark.parametrize(
    ("metadata", "ruling"),
    [(UNSEEN, Ruling.HELD), ("{}", Ruling.DECLINED)],
    ids=["unseen", "without an attempt"],
)
def test_row_that_cannot_be_read_without_a_runner(
    desk: Desk, metadata: object, ruling: Ruling, caplog: pytest.LogCaptureFixture
) -> None:
    """With neither row nor runner, what the caller saw decides, and the log tells of both."""
    desk.claim()
    desk.use_rows(Failing(desk.engine.rows, "load", OSError("boom")))
    desk.break_runner()
    decision = desk.launch(metadata)

    assert (decision.ruling, decision.reason) == (ruling, "OSError: boom")
    assert caplog.messages[-1].startswith('event="there is no runner"')
    assert "ImportError: gone" in caplog.text


def test_end_of_an_agent_is_told_to_nobody_without_a_runner(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """An agent's end breaks nothing where no runner can be made; the log tells of it."""
    desk.break_runner()
    desk.staging.agent_ended(desk.job_id, opened=True)

    assert caplog.messages[0].startswith('event="an agent\'s end was not noted"')
    assert "ImportError: gone" in caplog.text


def test_recovery_without_a_runner_takes_up_nothing(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no runner can be made, recovery leaves every attempt as it is and stops no host."""
    under_worker(desk, str(attrs.evolve(this_process(), start=1)))
    before = desk.row()
    desk.break_runner()

    assert desk.staging.recover() == []
    assert desk.row() == before
    assert caplog.messages[-1].startswith('event="there is no runner"')


def test_one_runner_is_made_for_all_threads(desk: Desk) -> None:
    """Threads that launch their first jobs at once work with one runner, made once."""
    made: list[StagingRunner] = []
    runner = desk.staging.runner
    both = threading.Barrier(2)

    def make() -> StagingRunner:
        made.append(runner)
        # Time enough for the other one to ask as well.
        for _ in range(1000):
            os.sched_yield()
        return runner

    staging = StagingIntercept(desk.staging.rows, make, desk.variables)

    def first(_: int) -> StagingRunner:
        both.wait(60)
        return staging.runner

    with ThreadPoolExecutor(2) as pool:
        found = [*pool.map(first, range(2))]

    assert found == [runner, runner]
    assert len(made) == 1


def test_rows_that_do_not_fit_decline_every_first_launch(desk: Desk) -> None:
    """A mapping that does not fit is told of at start, raises nothing, and leads to the LLM."""
    with desk.kit.store.engine.begin() as connection:
        due = sa.text("UPDATE jobs SET not_before = '2026-01-31 12:00:00'")
        connection.execute(due)
    desk.claim()

    desk.staging = desk.new_worker()
    decision = desk.launch()

    assert decision.ruling is Ruling.DECLINED
    assert "say the form of yours with time_format" in decision.reason
    assert desk.state() is State.LLM_FALLBACK
    assert desk.alerts()[:2] == ["configuration_invalid", "configuration_invalid"]


def test_rows_that_name_no_table_decline_a_launch_that_is_known_to_be_the_first(
    desk: Desk,
) -> None:
    """With a table that is not there, only what the host knows of its row decides."""
    rows = SqlRows(desk.kit.store.engine, "tasks")
    engine = desk.engine
    staging = StagingIntercept.for_host(rows, engine.gate, engine.place, desk.variables)

    assert staging.launch(desk.job_id, "{}").ruling is Ruling.DECLINED
    assert staging.launch(desk.job_id).ruling is Ruling.HELD
    assert desk.alerts()[0] == "configuration_invalid"


def test_store_that_is_away_at_start_is_asked_again_at_each_launch(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that cannot be looked at is no configuration error: the next launch finds it."""
    rows = Failing(SqlRows(desk.kit.store.engine), "check", OSError("away"))
    engine = desk.engine
    staging = StagingIntercept.for_host(
        rows,
        engine.gate,
        engine.place,
        desk.variables,
        suites=lambda _config: desk.read_suites(),
    )
    desk.claim()

    assert caplog.messages[0].startswith('event="the rows could not be checked"')
    assert "OSError: away" in caplog.text
    assert staging.launch(desk.job_id).ruling is Ruling.TAKEN
    assert desk.state() is State.ADVANCED


def test_environment_of_the_process_is_what_counts(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without variables of its own an intercept goes by its process's, as they are at a launch."""
    monkeypatch.delenv("ORCH_STAGING_RUNNER_ENABLED", raising=False)
    engine = desk.engine
    staging = StagingIntercept.for_host(engine.rows, engine.gate, engine.place)
    desk.claim()

    assert staging.launch(desk.job_id).reason == "the runner is switched off"
    monkeypatch.setenv("ORCH_STAGING_RUNNER_ENABLED", "1")
    monkeypatch.setenv("ORCH_STAGING_RUNNER_REPOS", "another")
    assert staging.launch(desk.job_id).reason == f"repository {REPO} is not in scope"


def test_job_is_one_job_under_every_form_of_its_key(desk: Desk) -> None:
    """A key given in another form holds the same job: one thread of a process has it."""
    desk.claim()
    answers = []
    watch = desk.engine.watch

    def launch_meanwhile(row: JobRow, snapshot: Snapshot) -> None:
        watch(row, snapshot)
        if snapshot.state is State.RUNNING:
            answers.append(desk.staging.launch(str(desk.job_id)))

    desk.engine.watch = launch_meanwhile

    assert desk.launch().ruling is Ruling.TAKEN
    assert [answer.reason for answer in answers] == ["this process is already working on it"]


def test_key_of_any_text_names_no_folder_outside(desk: Desk) -> None:
    """An attempt's name, after which folders are called, holds nothing of a path."""
    row = attrs.evolve(desk.engine.rows.load(desk.job_id), id="../org/repo#7 é" + "x" * 99)

    name = desk.staging.runner._new_attempt(row).attempt_id

    assert re.fullmatch(r"_org_repo_7_x{52}-[0-9a-f]{12}", name)


def test_each_move_is_logged_and_watched_once_it_is_durable(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """Every move is one line of the log and one call of who watches, in the order of the trail."""
    watched: list[str] = []

    def watch(_row: JobRow, snapshot: Snapshot) -> None:
        assert desk.snapshot() == snapshot
        watched.append(snapshot.history[-1].id)

    caplog.set_level("INFO", "staging_fsm")
    desk.engine.watch = watch
    desk.defer()
    desk.launch()
    moves = desk.snapshot().history
    lines = [line for line in caplog.messages if line.startswith("event=transition ")]

    assert desk.state() is State.FAILED_CLOSED
    assert watched == [move.id for move in moves]
    for move, line in zip(moves, lines, strict=True):
        row, attempt = move.row, desk.snapshot().attempt_id
        assert f" id={row.id} job={desk.job_id} attempt={attempt} source={row.source}" in line
        assert f" on={row.event} target={row.target} effect={row.effect} reason=" in line


class Reporting:
    """Suites that run nothing and report what they are told."""

    def __init__(self, whole: Any, report: RunReport) -> None:
        """Stand for `whole`."""
        self._whole, self._report = whole, report

    def __getattr__(self, name: str) -> Any:
        """Return what is not about a run from the real suites."""
        return getattr(self._whole, name)

    def start(self, _order: Any) -> None:
        """Do nothing."""

    def await_report(self, _run_id: str) -> RunReport:
        """Return the report."""
        return self._report


@pytest.mark.parametrize(
    "facts",
    [
        RunFacts(
            exit_code=1,
            log_complete=True,
            supervision=Supervision.SOUND,
            evidence=Evidence(EvidenceState.READ, Counts(9, 1, 2, 3, dated=True)),
        ),
        RunFacts(signal=11, log_complete=True, supervision=Supervision.SOUND),
    ],
    ids=["failed", "crashed"],
)
def test_run_keeps_what_its_report_said(desk: Desk, facts: RunFacts) -> None:
    """Everything that a report says is stored with its run, and by which rule it was judged."""
    report = RunReport(facts, 1.5, "a detail", "/its/log", "0" * 64, 40, 2)
    desk.engine.suites = Reporting(desk.engine.suites, report)
    desk.claim()
    desk.launch()
    attempt = desk.snapshot()
    run, suite = attempt.runs[0], attempt.bound_plan.suite
    outcome = judge(facts, suite.judging_policy())

    assert (run.reason, run.rule) == (outcome.reason, outcome.rule)
    assert (run.exit_code, run.signal) == (facts.exit_code, facts.signal)
    assert (run.evidence, run.counts) == (facts.evidence.state, facts.evidence.counts)
    assert (run.duration_seconds, run.detail) == (1.5, "a detail")
    kept = (run.log, run.log_sha256, run.log_bytes, run.log_dropped_bytes)
    assert kept == ("/its/log", "0" * 64, 40, 2)


@pytest.mark.parametrize("suites", [PASSING, FAILING, TOOL_ERROR])
def test_run_says_when_it_began_and_ended(desk: Desk, suites: str) -> None:
    """However a run ends: it starts before the move that begins it, and ends before the next."""
    desk.suites_file = suites
    desk.claim()
    desk.launch()
    attempt = desk.snapshot()
    run, (began, ended, *_) = attempt.runs[0], attempt.history

    assert run.ended_at is not None
    times = [run.started_at, began.time, run.ended_at, ended.time]
    assert times == sorted(times)


def test_attempt_that_failed_closed_is_told_in_words(desk: Desk) -> None:
    """The alert of an attempt that failed closed names work item, run, reason and whose fault."""
    desk.set("INFRA_RETRIES", "0")
    desk.suites_file = TOOL_ERROR
    desk.claim()
    desk.launch()
    told = json.loads((desk.folder / "state" / "alerts.jsonl").read_text())

    assert desk.state() is State.FAILED_CLOSED
    assert told["text"] == (
        f"WI-1 in {REPO} failed closed in run 1: {REASONS[Reason.TOOL_EXIT_CODE].sentence}"
        f" ({Reason.TOOL_EXIT_CODE}) This is an infrastructure fault, not a verdict on the code."
    )


def test_alert_that_fails_is_logged(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """What an alert that fails was about stands in the log, and the attempt goes on."""
    desk.set("INFRA_RETRIES", "0")
    desk.suites_file = TOOL_ERROR
    desk.break_part("alerts.send", OSError("boom"))
    desk.claim()
    desk.launch()

    assert desk.state() is State.FAILED_CLOSED
    assert caplog.messages == [
        (
            f'event="an alert was lost" alert={AlertKind.FAILED_CLOSED} job={desk.job_id}'
            ' error="OSError: boom"'
        )
    ]


def test_what_is_owed_is_delivered_after_each_move_and_stops_nothing(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """After a move is told of, alerts that are owed are tried again, come what may."""
    heard: list[object] = []

    def is_tried() -> bool:
        heard.append("delivery")
        return True

    engine = desk.engine
    engine.watch = lambda _row, snapshot: heard.append(snapshot.state)
    engine.alerts = Failing(engine.alerts, "deliver", OSError("boom"), is_tried)
    desk.claim()
    desk.launch()

    assert heard == [
        State.RUNNING,
        "delivery",
        State.VERDICT_PASSED,
        "delivery",
        State.ADVANCED,
        "delivery",
    ]
    assert caplog.messages == ['event="alerts were not delivered" error="OSError: boom"'] * 3


@pytest.mark.parametrize(
    ("suites", "told"),
    [
        (
            FAILING,
            "the gate opened against the verdict: "
            + str(
                TransitionRefusedError(
                    State.VERDICT_FAILED, Event.GATE_OPENED, [Event.GATE_REFUSED]
                )
            ),
        ),
        (PASSING, "the gate opened, but the artifact it read is not the one that was written"),
    ],
    ids=["of a failed suite", "of another artifact"],
)
def test_gate_that_contradicts_the_verdict_is_told_in_words(
    desk: Desk, suites: str, told: str
) -> None:
    """An attempt that its gate contradicts stays where it is, and the alert says how."""

    def gate(row: JobRow, tx: Any) -> bool:  # noqa: ARG001  # the host would move the item by it
        if suites == PASSING:
            artifact = desk.engine.place(row).artifact_dir / ARTIFACT_NAME
            artifact.write_text("---\nstaging_status: SUCCESS\n---\n")
        return True

    desk.suites_file = suites
    desk.engine.gate = gate
    desk.claim()
    desk.launch()
    alerts = (desk.folder / "state" / "alerts.jsonl").read_text().splitlines()

    assert desk.snapshot().history[-1].row.effect is Effect.HAND_OVER
    assert [(json.loads(line)["kind"], json.loads(line)["text"]) for line in alerts] == [
        (AlertKind.GATE_CONTRADICTED_VERDICT, told)
    ]


def test_run_of_too_few_tests_says_how_many_are_missing(desk: Desk) -> None:
    """The detail of a run that executed too few tests says how many it did, and should have."""
    desk.suites_file = """
        [default]
        command = ["sh", "-c", 'echo "<testsuite><testcase/></testsuite>" > $STAGING_REPORT_DIR/r']
        workspace = "in-place"
        report = "r"
        min_tests = 3
    """
    desk.claim()
    desk.launch()
    run, plan = desk.snapshot().last_run, desk.snapshot().bound_plan

    assert run.reason is Reason.TOO_FEW_TESTS
    assert run.detail == plan.suite.shortfall(1)


def test_launch_answers_with_what_became_of_the_attempt(desk: Desk) -> None:
    """The answer to a launch names the state that the attempt came to, and why."""
    desk.claim()

    assert desk.launch() == Decision(Ruling.TAKEN, f"{State.ADVANCED}: the gate opened")


def test_cancellation_before_the_first_run_is_ended_by_recovery(desk: Desk) -> None:
    """A job that was cancelled before its first run ends, also where its worker died over it."""
    desk.claim()
    desk.break_part("rows.cancel", OSError("boom"))
    with pytest.raises(OSError, match="boom"):
        desk.staging.cancel(desk.job_id)
    desk.staging = desk.new_worker()
    desk.staging.recover()

    assert (desk.state(), desk.snapshot().runs) == (State.CANCELLED, ())
    assert desk.raw_row()["status"] == "cancelled"

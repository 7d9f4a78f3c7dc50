"""Shadow mode: the LLM agent is the producer, and the runner beside it only records."""

import hashlib
import json
import os
import re
import select
import shlex
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner

from hosts import REPO, HostKit, git
from staging_fsm.core.config import RunnerConfig
from staging_fsm.core.errors import JobNotFoundError, StaleSnapshotError
from staging_fsm.core.invariants import Sight, violations
from staging_fsm.core.jobs import SNAPSHOT_KEY, JobRow, Place
from staging_fsm.core.snapshot import fresh_snapshot
from staging_fsm.core.spec import State
from staging_fsm.core.suites import SuitesConfig, parse_suites
from staging_fsm.drive.rulings import Ruling
from staging_fsm.drive.runner import IN_SHADOW
from staging_fsm.drive.shadow import PAUSE_SECONDS, Shadow
from staging_fsm.effects.clock import SystemClock
from staging_fsm.effects.files import write_durably
from staging_fsm.effects.shadow import ShadowRecords
from staging_fsm.faces.cli import main
from staging_fsm.faces.session import switched_on
from staging_fsm.faces.shadow import Comparison, shadow_view
from staging_fsm.host.contract.gate import ARTIFACT_NAME, check_staging_status
from staging_fsm.host.launcher import Host, staging_intercept
from staging_fsm.host.worker import Worker
from trails import CLAIM, ERROR, WAIT, walked

#: An agent that says what its work item is called after, and what it cost.
AGENT = """
import json, os, pathlib
folder = pathlib.Path(os.environ["ORCH_WORK_ITEM_DIR"])
word = "FAILED" if "NO" in os.environ["ORCH_WORK_ITEM"] else "SUCCESS"
(folder / "15-staging-log.md").write_text(f"---\\nstaging_status: {word}\\n---\\nTrust me.\\n")
print("thinking ...")
print(json.dumps({"type": "result", "usage": {"input_tokens": 1200, "output_tokens": 34}}))
"""
PASSING = 'command = ["true"]'
FAILING = 'command = ["false"]'
BROKEN = 'command = ["no-such-command"]'
DEADLINE_SECONDS = 60
Maker = Callable[..., HostKit]


@attrs.frozen
class Beside:
    """A host in shadow mode, and the runner beside it."""

    kit: HostKit
    host: Host
    variables: dict[str, str]
    shadow: Shadow

    def launch(self, work_item: str = "WI-1") -> int:
        """Queue a staging job, and let the worker launch it."""
        job_id = self.kit.add("deploy-staging", work_item)
        assert Worker(self.host, "worker").run_one(job_id)
        return job_id

    def begin(self) -> int:
        """Queue a staging job, and have the launch declined to an agent that is still to end."""
        job_id = self.kit.add("deploy-staging")
        self.kit.store.claim_next(self.kit.host.clock.now(), "worker", job_id)
        assert self.host.staging is not None
        assert self.host.staging.launch(job_id).reason == IN_SHADOW
        return job_id

    def view(self) -> dict[str, Any]:
        """Return what the one launch's record says."""
        (launch,) = shadow_view(self.shadow.records.records())["launches"]
        assert isinstance(launch, dict)
        return launch


@pytest.fixture
def begin(
    make_host: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Beside]:
    """Return a maker of hosts in shadow mode; keywords are settings of the runner."""
    # However busy the machine is, a launch gets its note of what is checked out.
    monkeypatch.setattr("staging_fsm.drive.runner.GLIMPSE_SECONDS", DEADLINE_SECONDS)

    def make(suite: str = PASSING, **settings: object) -> Beside:
        kit = make_host(agent=AGENT)
        told = {"shadow": 1, "kill_grace_seconds": 0.1, "retry_backoff_seconds": 0}
        variables = switched_on(
            {"PATH": os.environ["PATH"], "FOLDER": str(tmp_path)},
            state_dir=tmp_path / "state",
            **told | settings,
        )
        suites = parse_suites(f"[default]\n{suite}\n")
        staging = staging_intercept(
            kit.store, kit.host.clock, variables, suites=lambda _config: suites
        )
        host = attrs.evolve(kit.host, staging=staging)
        return Beside(kit, host, variables, Shadow(variables, suites=lambda _config: suites))

    return make


Begin = Callable[..., Beside]


def everything_of_the_host(kit: HostKit) -> str:
    """Return all rows, the checkout with its artifacts, and the state of git, as one text."""
    path = kit.store.engine.url.database
    assert path is not None
    with sqlite3.connect(path) as database:
        rows = "\n".join(database.iterdump())
    files = {
        path.relative_to(kit.repository): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(kit.repository.rglob("*"))
        if path.is_file() and ".git" not in path.parts
    }
    told = [
        git(kit.repository, *command)
        for command in (
            ["for-each-ref"],
            ["rev-parse", "HEAD"],
            ["status", "--porcelain"],
            ["worktree", "list"],
        )
    ]
    return f"{rows}\n{files}\n{told}"


@pytest.mark.parametrize("suite", [PASSING, FAILING, BROKEN])
def test_shadow_touches_nothing(begin: Begin, suite: str) -> None:
    """Whatever the runner finds, nothing of the host moves and no promise breaks."""
    beside = begin(suite)
    beside.launch()
    before = everything_of_the_host(beside.kit)
    ran = beside.shadow.run_once()
    (record,) = beside.shadow.records.records()
    snapshot = record.row.snapshot()
    assert snapshot is not None
    sight = Sight(snapshot, shadow_before=before, shadow_after=everything_of_the_host(beside.kit))

    assert ran == 1
    assert snapshot.is_terminal
    assert violations(sight) == []


def test_agent_is_the_producer_in_shadow_mode(begin: Begin) -> None:
    """In shadow mode the agent's artifact moves the work item, and the row carries no attempt."""
    beside = begin(FAILING)
    job = beside.launch()
    beside.shadow.run_once()
    row = beside.kit.store.job(job)

    assert beside.kit.item().stage == "deploy"
    assert SNAPSHOT_KEY not in row.metadata
    assert "Trust me." in (beside.host.folder(row) / ARTIFACT_NAME).read_text()


def test_launch_in_shadow_mode_starts_nothing(begin: Begin) -> None:
    """The launch is declined at once: no suite is bound, started or prepared on its way."""
    beside = begin()
    staging = beside.host.staging
    assert staging is not None

    def refuse(*_: object) -> Any:
        pytest.fail("the launch did more than decline")

    staging.runner.suites = staging.runner.bind = staging.runner.engine.suites = refuse  # type: ignore[assignment]  # nobody may ask
    job = beside.kit.add("deploy-staging")
    decision = staging.launch(job)

    assert (decision.ruling, decision.reason) == (Ruling.DECLINED, IN_SHADOW)


def test_shadow_runs_in_folders_of_its_own(begin: Begin, tmp_path: Path) -> None:
    """What an attempt in the shadow leaves lies below the shadow's folder, and nowhere else."""
    beside = begin(PASSING)
    beside.launch()
    beside.shadow.run_once()

    # The worker that launched the agent has its lock beside it.
    left = {path.name for path in (tmp_path / "state").iterdir()}
    assert left == {"shadow", "workers"}


def test_kill_switch_ends_shadow_mode_too(begin: Begin) -> None:
    """With the kill switch thrown nothing is noted, whatever shadow mode says."""
    beside = begin(enabled="0")
    staging = beside.host.staging
    assert staging is not None
    job = beside.kit.add("deploy-staging")
    decision = staging.launch(job)

    assert (decision.ruling, decision.reason) == (Ruling.DECLINED, "the runner is switched off")
    assert [*beside.shadow.records.records()] == []


def test_launch_does_not_notice_a_broken_shadow(begin: Begin, tmp_path: Path) -> None:
    """Where the shadow can note nothing, the LLM path goes as if there were none."""
    beside = begin()
    (tmp_path / "state").write_text("no folder")
    beside.launch()

    assert beside.kit.item().stage == "deploy"


def test_configuration_that_is_broken_does_not_end_shadow_mode(begin: Begin) -> None:
    """In shadow mode a broken setting leaves no trace in the row, and runs nothing."""
    beside = begin(timeout_seconds="soon")
    job = beside.launch()

    assert SNAPSHOT_KEY not in beside.kit.store.job(job).metadata
    assert [*beside.shadow.records.records()] == []
    assert beside.shadow.run_once() == 0


def test_unclear_shadow_mode_never_makes_the_runner_the_producer(begin: Begin) -> None:
    """A word that is neither on nor off is an invalid configuration, and leads to the LLM path."""
    beside = begin(shadow="maybe")
    beside.launch()

    assert beside.kit.item().stage == "deploy"
    assert beside.shadow.run_once() == 0


def test_end_of_an_agent_is_noted_though_the_shadow_is_over(begin: Begin) -> None:
    """A launch that was noted is not left waiting for its agent, whatever is switched since."""
    beside = begin()
    staging = beside.host.staging
    assert staging is not None
    job_id = beside.kit.add("deploy-staging")
    beside.kit.store.claim_next(beside.kit.host.clock.now(), "w", job_id)
    decision = staging.launch(job_id)
    beside.variables["ORCH_STAGING_RUNNER_SHADOW"] = "0"
    staging.agent_ended(job_id, opened=False)
    ended = beside.shadow.records.record(job_id).agent

    assert not decision
    assert ended is not None
    assert not ended.opened


@pytest.mark.parametrize("switch", ["enabled", "repos", "shadow"])
def test_kill_switch_wins_over_the_shadow(begin: Begin, switch: str) -> None:
    """Switched off, out of scope or out of the shadow, no launch is noted and no suite is run."""
    name = f"ORCH_STAGING_RUNNER_{switch.upper()}"
    noted = begin()
    noted.launch()
    noted.variables[name] = "" if switch == "repos" else "0"
    ran = noted.shadow.run_once()
    if switch != "shadow":
        noted.launch("WI-2")

    assert ran == 0
    assert [record.launch.work_item for record in noted.shadow.records.records()] == ["WI-1"]


def test_attempt_of_the_shadow_has_the_budget_of_one_in_earnest(begin: Begin) -> None:
    """A suite that did not run is tried again when it is due, but not under the kill switch."""
    beside = begin('command = ["sh", "-c", "exit 75"]\ntool_exit_codes = [75]', infra_retries=1)
    beside.launch()
    states = []
    for switch in ("1", "0", "1", "1"):
        beside.variables["ORCH_STAGING_RUNNER_ENABLED"] = switch
        beside.shadow.run_once()
        states.append(beside.view()["runner"]["state"])

    assert states == [State.DEFERRED, State.DEFERRED, State.FAILED_CLOSED, State.FAILED_CLOSED]
    assert beside.view()["runner"]["runs"] == 2


@pytest.mark.parametrize(
    ("work_item", "suite", "comparison"),
    [
        ("YES", PASSING, Comparison.AGREED),
        ("NO", FAILING, Comparison.AGREED),
        ("YES", FAILING, Comparison.AGENT_ALONE_PASSED),
        ("NO", PASSING, Comparison.RUNNER_ALONE_PASSED),
        ("YES", BROKEN, Comparison.NO_VERDICT),
    ],
)
def test_agent_and_runner_are_compared(
    begin: Begin, work_item: str, suite: str, comparison: Comparison
) -> None:
    """What the gate said to the agent is held against what it would have said to the runner."""
    beside = begin(suite)
    beside.launch(work_item)
    waiting = beside.view()["comparison"]
    beside.shadow.run_once()
    view = beside.view()

    assert waiting == Comparison.WAITING
    assert view["comparison"] == comparison
    assert "Trust me." in Path(view["agent"]["artifact"]).read_text()
    assert check_staging_status(Path(view["runner"]["artifact"]).parent) == (suite == PASSING)


def test_report_is_read_where_the_state_folder_is_now(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state folder that was moved, or copied from another machine, has its report still."""
    beside = begin(FAILING)
    beside.launch("YES")
    beside.shadow.run_once()
    (tmp_path / "state").rename(tmp_path / "moved")
    monkeypatch.setenv("ORCH_STAGING_RUNNER_STATE_DIR", str(tmp_path / "moved"))
    ended = CliRunner().invoke(main, ["shadow-report"])

    assert ended.exit_code == 0, ended.output
    assert "staging_status: FAILED" in ended.output
    assert "Trust me." in ended.output


def test_cost_of_both_is_told(begin: Begin) -> None:
    """The report adds up what agent and runner took, and the tokens that agents tell of."""
    beside = begin()
    beside.launch("WI-1")
    beside.launch("WI-2")
    beside.shadow.run_once()
    view = shadow_view(beside.shadow.records.records())

    assert view["counts"][Comparison.AGREED] == 2
    assert (view["input_tokens"], view["output_tokens"]) == (2400, 68)
    assert view["launches_with_tokens"] == 2
    assert view["agent_seconds"] > 0
    assert view["runner_seconds"] > 0


def test_cost_of_a_launch_that_the_runner_did_not_run_is_not_held_against_the_agent(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seconds and tokens are added up where both ran, also to no verdict, and nowhere else."""
    beside = begin(BROKEN)
    beside.launch("WI-1")
    beside.shadow.run_once()
    alone = shadow_view(beside.shadow.records.records())
    (beside.kit.repository / ".git").rename(tmp_path / "elsewhere")
    beside.launch("WI-2")
    beside.shadow.run_once()
    view = shadow_view(beside.shadow.records.records())
    monkeypatch.setenv("ORCH_STAGING_RUNNER_STATE_DIR", str(tmp_path / "state"))
    told = CliRunner().invoke(main, ["shadow-report"]).output

    assert [view["counts"][kind] for kind in (Comparison.NO_VERDICT, Comparison.NOT_RUN)] == [1, 1]
    assert alone["agent_seconds"] > 0
    costs = ("agent_seconds", "runner_seconds", "launches_with_tokens", "output_tokens")
    assert [view[cost] for cost in costs] == [alone[cost] for cost in costs]
    assert "where both ran, the agent took" in told
    assert "34 out, as 1 launches tell" in told


@pytest.mark.parametrize(
    "line", ["", "done", "[]", "{}", '{"usage": 3}', '{"usage": {"output_tokens": "many"}}', "\xff"]
)
def test_log_that_tells_of_no_tokens_is_none(begin: Begin, line: str, tmp_path: Path) -> None:
    """An agent whose last line is anything else costs an unknown number of tokens."""
    beside = begin()
    job = beside.begin()
    log = tmp_path / "agent.log"
    log.write_bytes(line.encode("latin-1"))
    assert beside.host.staging is not None
    beside.host.staging.agent_ended(job, opened=True, log=log)

    assert beside.view()["agent"]["output_tokens"] is None


class Later(SystemClock):
    """A clock long after everything."""

    def now(self) -> datetime:
        """Return the time of day."""
        return datetime(2099, 1, 1, tzinfo=UTC)


def test_runner_looks_at_what_the_agent_saw(begin: Begin) -> None:
    """The runner is on the commit of the launch, whatever the agent or others committed since."""
    beside = begin()
    job = beside.begin()
    wanted = git(beside.kit.repository, "rev-parse", "HEAD")
    later = {"GIT_COMMITTER_DATE": "2098-01-01T00:00:00Z"}
    subprocess.run(
        ["git", "-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "--quiet",
         "--allow-empty", "--message", "later"],
        cwd=beside.kit.repository, env=os.environ | later, check=True,
    )  # fmt: skip
    beside.shadow.clock = Later()
    assert beside.host.staging is not None
    beside.host.staging.agent_ended(job, opened=True)
    beside.shadow.run_once()

    assert beside.view()["runner"]["revision"] == wanted
    assert git(beside.kit.repository, "rev-parse", "HEAD") != wanted


@pytest.mark.parametrize("how", ["at the same time", "long before", "amended"])
def test_commit_of_the_agent_is_not_what_it_was_launched_on(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The runner is on the commit of the launch, whatever date the agent's own commits bear."""
    beside = begin()
    job = beside.begin()
    wanted = git(beside.kit.repository, "rev-parse", "HEAD")
    launched_at = beside.view()["launched_at"]
    dates = {"at the same time": launched_at, "long before": "2020-01-01T00:00:00Z"}
    monkeypatch.setenv("GIT_COMMITTER_DATE", dates.get(how, launched_at))
    amend = ["--amend"] if how == "amended" else []
    words = ["--quiet", "--allow-empty", "--message", "Repaired."]
    git(beside.kit.repository, "commit", *amend, *words)
    assert beside.host.staging is not None
    beside.host.staging.agent_ended(job, opened=True)
    beside.shadow.run_once()

    assert beside.view()["runner"]["revision"] == wanted
    assert git(beside.kit.repository, "rev-parse", "HEAD") != wanted


def test_record_that_does_not_say_its_commit_goes_by_its_time(begin: Begin) -> None:
    """A launch that an earlier version noted is run on what was checked out at its time."""
    beside = begin()
    job = beside.launch()
    path = beside.shadow.records.folder(job) / "launch.json"
    note = json.loads(path.read_text())
    wanted = note.pop("revision")
    path.write_text(json.dumps(note))
    beside.shadow.run_once()

    assert beside.view()["runner"]["revision"] == wanted


def as_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a script in the place of git, with the real one behind it."""
    real = shutil.which("git")
    path = tmp_path / "bin" / "git"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\n{script}\nexec {real} "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")


def test_git_that_does_not_answer_does_not_hold_the_agent_up(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent's launch waits a moment for git; after that its commit is found by its time."""
    beside = begin()
    os.mkfifo(tmp_path / "never")
    with monkeypatch.context() as slow:
        as_git(tmp_path, slow, f"cat {shlex.quote(str(tmp_path / 'never'))}")
        slow.setattr("staging_fsm.drive.runner.GLIMPSE_SECONDS", 0.1)
        job = beside.begin()
    note = json.loads((beside.shadow.records.folder(job) / "launch.json").read_text())
    assert beside.host.staging is not None
    beside.host.staging.agent_ended(job, opened=True)
    beside.shadow.run_once()

    assert note["revision"] is None
    assert beside.view()["runner"]["revision"] == git(beside.kit.repository, "rev-parse", "HEAD")


def test_wait_for_git_is_none_of_the_time_of_the_agent(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent is launched once the note of it is taken: what that took is not the agent's."""
    beside = begin()
    asked = tmp_path / "asked"
    as_git(tmp_path, monkeypatch, f": > {shlex.quote(str(asked))}")

    class Since(SystemClock):
        def now(self) -> datetime:
            return datetime(2026, 1, 2 if asked.exists() else 1, tzinfo=UTC)

    assert beside.host.staging is not None
    beside.host.staging.runner.engine.clock = Since()
    beside.begin()

    assert beside.view()["launched_at"].startswith("2026-01-02")


def test_suite_that_needs_the_checkout_is_not_run_beside_the_agent(begin: Begin) -> None:
    """A suite that runs in place would be in the agent's way: it is not run, and that is told."""
    beside = begin(f'{PASSING}\nworkspace = "in-place"')
    beside.launch()
    beside.shadow.run_once()
    view = beside.view()

    assert view["comparison"] == Comparison.NOT_RUN
    assert "in the agent's way" in view["runner"]["reason"]


def test_nothing_is_run_before_the_agent_has_ended(begin: Begin) -> None:
    """A launch whose agent has not ended waits: a suite beside a working agent could disturb it."""
    beside = begin()
    job = beside.kit.add("deploy-staging")
    assert beside.host.staging is not None
    beside.host.staging.launch(job)

    assert beside.shadow.run_once() == 0
    assert beside.view()["comparison"] == Comparison.WAITING


def test_launch_of_a_host_with_another_word_for_the_stage_is_run(
    begin: Begin, tmp_path: Path
) -> None:
    """The shadow makes an attempt beside each launch, whatever the host calls its stage."""
    beside, now = begin(), datetime.now(UTC)
    row = JobRow("7", "shop", "WI-1", "staging", "running", None, None)
    beside.shadow.records.launched(row, beside.kit.repository, now)
    beside.shadow.records.agent_ended(
        row, Place(beside.kit.repository, tmp_path), now, opened=True, log=None
    )

    assert beside.shadow.run_once() == 1
    assert beside.view()["runner"]["state"] == State.ADVANCED


def test_each_launch_is_run_once(begin: Begin) -> None:
    """An attempt that has ended is not made again."""
    beside = begin()
    beside.launch()

    assert [beside.shadow.run_once() for _ in range(3)] == [1, 0, 0]


def test_attempt_that_waits_for_its_next_run_goes_to_the_agent(begin: Begin) -> None:
    """Shadow mode that begins between two runs hands the attempt to the LLM path."""
    beside = begin('command = ["sh", "-c", "exit 75"]\ntool_exit_codes = [75]', shadow=0)
    job = beside.kit.add("deploy-staging")
    worker = Worker(beside.host, "worker")
    worker.run_one(job)
    beside.variables["ORCH_STAGING_RUNNER_SHADOW"] = "1"
    worker.run_one(job)

    assert f'"{State.LLM_FALLBACK}"' in beside.kit.store.job(job).metadata
    assert beside.kit.item().stage == "deploy"


def test_job_that_the_shadow_never_saw_leaves_no_record(begin: Begin) -> None:
    """The end of an agent that was launched without a shadow is no news."""
    beside = begin(enabled=0)
    beside.launch()

    assert list(beside.shadow.records.records()) == []
    assert not beside.shadow.records.root.exists()


def test_artifact_that_is_no_file_is_not_waited_for(begin: Begin) -> None:
    """A pipe in the artifact's place does not hold the LLM path up, and is no artifact."""
    beside = begin()
    job = beside.begin()
    path = beside.host.folder(beside.kit.store.job(job)) / ARTIFACT_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    assert beside.host.staging is not None
    beside.host.staging.agent_ended(job, opened=False)

    assert beside.view()["agent"]["artifact"] is None


def test_runs_of_a_shadow_that_died_are_taken_up(begin: Begin, tmp_path: Path) -> None:
    """A shadow that is killed beside its suite loses nothing: the next one adopts the run."""
    started, hold = tmp_path / "started", tmp_path / "hold"
    script = f"echo > {shlex.quote(str(started))}; cat {shlex.quote(str(hold))}"
    suite = f"command = {json.dumps(['sh', '-c', script])}"
    os.mkfifo(started)
    os.mkfifo(hold)
    beside = begin(suite)
    beside.launch()
    (tmp_path / "suites.toml").write_text(f"[default]\n{suite}\n")
    variables = beside.variables | {"ORCH_STAGING_RUNNER_SUITES_FILE": f"{tmp_path}/suites.toml"}
    command = [sys.executable, "-m", "staging_fsm.faces", "shadow", "--once"]
    with subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL) as first:
        bell = os.open(started, os.O_RDONLY | os.O_NONBLOCK)
        assert select.select([bell], [], [], DEADLINE_SECONDS)[0], "the suite was not started"
        first.kill()
    os.close(bell)
    release = threading.Thread(target=hold.write_text, args=("go on\n",), daemon=True)
    release.start()
    ended = subprocess.run(command, env=variables, check=True, capture_output=True, text=True)
    release.join()

    assert ended.stdout == "attempts made beside the agent: 1\n"
    assert beside.view()["runner"]["state"] == State.ADVANCED
    assert beside.view()["runner"]["runs"] == 1


def test_of_two_shadows_each_counts_what_it_made(begin: Begin) -> None:
    """An attempt that another shadow made meanwhile is told of by that one alone."""
    beside = begin()
    beside.launch()
    suites, other = beside.shadow.suites, []

    def be_late(config: RunnerConfig) -> SuitesConfig:
        other.append(Shadow(beside.variables, suites=suites).run_once())
        return suites(config)

    beside.shadow.suites = be_late

    assert (beside.shadow.run_once(), other) == (0, [1])
    assert beside.view()["runner"]["state"] == State.ADVANCED


def test_of_two_shadows_one_writes(tmp_path: Path) -> None:
    """A version of an attempt is written once: whoever comes second finds out."""
    records = ShadowRecords(tmp_path)
    row = JobRow("a/../b", REPO, "WI-1", "deploy-staging", "running", None, None)
    records.launched(row, tmp_path, datetime.now(UTC))
    first = attrs.evolve(fresh_snapshot("a-1", "w"), version=1)
    records.save(row.id, first)

    with pytest.raises(StaleSnapshotError):
        records.save(row.id, first)
    with pytest.raises(StaleSnapshotError):
        records.save(row.id, attrs.evolve(first, version=3))
    with pytest.raises(JobNotFoundError):
        records.load("other")
    assert records.folder(row.id).parent == records.root
    assert records.load(row.id).snapshot() == first


def test_attempt_of_the_shadow_that_was_replaced_writes_nothing(tmp_path: Path) -> None:
    """Where a record was removed and made anew, whoever follows the removed attempt is refused."""
    records = ShadowRecords(tmp_path)
    row = JobRow(7, REPO, "WI-1", "deploy-staging", "running", None, None)
    records.launched(row, tmp_path, datetime.now(UTC))
    gone, stored = (
        attrs.evolve(fresh_snapshot(name, "w"), version=1) for name in ("7-gone", "7-stored")
    )
    records.save(7, stored)

    with pytest.raises(StaleSnapshotError, match="version 1 of attempt 7-gone"):
        records.save(7, attrs.evolve(gone, version=2))
    records.save(7, attrs.evolve(stored, version=2))

    document = records.load(7).document
    assert isinstance(document, dict)
    assert (document["attempt_id"], document["version"]) == ("7-stored", 2)


def test_version_of_an_attempt_in_the_shadow_survives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that the shadow counted stays counted: bytes and name are synced before `save` ends."""
    records = ShadowRecords(tmp_path)
    row = JobRow(7, REPO, "WI-1", "deploy-staging", "running", None, None)
    records.launched(row, tmp_path, datetime.now(UTC))
    sync, synced = os.fsync, list[tuple[bool, bool]]()
    path = records.folder(7) / "attempt.1.json"

    def watched(descriptor: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    records.save(7, attrs.evolve(fresh_snapshot("a-1", "w"), version=1))

    assert synced == [(False, False), (True, True)]


def test_recent_records_are_the_newest(tmp_path: Path) -> None:
    """Of many records those of the latest launches are looked at, the very latest first."""
    records = ShadowRecords(tmp_path)
    for day in (2, 4, 1, 3):
        row = JobRow(day, REPO, f"WI-{day}", "deploy-staging", "running", None, None)
        records.launched(row, tmp_path, datetime(2026, 1, day, tzinfo=UTC))

    assert [row.work_item for row in records.recent(2)] == ["WI-4", "WI-3"]
    assert [row.work_item for row in records.recent(9, REPO)] == ["WI-4", "WI-3", "WI-2", "WI-1"]
    assert records.recent(9, "another") == []


def test_job_launched_again_has_the_launch_of_the_agent_that_ended(tmp_path: Path) -> None:
    """A launch whose agent never ended is none to compare with, and one that ended stays.

    A job that is queued again by hand after that has a second record beside the first.
    """
    records, place = ShadowRecords(tmp_path), Place(tmp_path, tmp_path)
    row = JobRow(7, REPO, "WI-1", "deploy-staging", "running", None, None)
    times = [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3, 4)]
    for time in times[:2]:
        records.launched(row, tmp_path, time)
    records.agent_ended(row, place, times[1], opened=True, log=None)
    records.agent_ended(row, place, times[2], opened=False, log=None)
    records.launched(row, tmp_path, times[2])
    records.agent_ended(row, place, times[3], opened=False, log=None)
    found = [*records.records()]

    assert [record.launch.launched_at[:10] for record in found] == ["2026-01-02", "2026-01-03"]
    assert [record.agent and record.agent.opened for record in found] == [True, False]
    assert [record.launch.job_id for record in found] == ["7", "7"]
    assert [record.row.id for record in found] == ["7", "7~2"]
    assert records.load("7~2") == found[1].row


@pytest.mark.parametrize("differs", ["repo", "work_item", "repository"])
@pytest.mark.parametrize("job", ["7", "", "a/~2"])
def test_launch_of_another_job_with_the_same_id_has_its_own_record(
    tmp_path: Path, differs: str, job: str
) -> None:
    """The end of an agent is noted of its own launch, though databases share a state folder."""
    records, now = ShadowRecords(tmp_path), datetime(2026, 1, 1, tzinfo=UTC)
    row = JobRow(job, REPO, "WI-1", "deploy-staging", "running", None, None)
    other, repository = row, tmp_path
    if differs == "repository":
        repository = tmp_path / "another"
    else:
        changed: dict[str, Any] = {differs: "another"}
        other = attrs.evolve(row, **changed)
    records.launched(row, tmp_path, now)
    records.launched(other, repository, now + timedelta(days=1))
    records.agent_ended(other, Place(repository, tmp_path), now, opened=True, log=None)
    first, second = records.records()

    assert (first.agent, second.agent and second.agent.opened) == (None, True)
    assert (second.launch.repo, second.launch.work_item) == (other.repo, other.work_item)
    assert {records.load(one.row.id).work_item for one in (first, second)} == {
        row.work_item,
        other.work_item,
    }


@pytest.mark.parametrize("before", ["elsewhere", "same place", "nothing"])
def test_agent_ends_wherever_its_repository_is_by_then(tmp_path: Path, before: str) -> None:
    """The end of an agent is noted though its gate removed or moved the folder it worked in.

    Of several launches under way it is the last: any earlier one was ended by its worker's death.
    """
    records, now = ShadowRecords(tmp_path), datetime(2026, 1, 1, tzinfo=UTC)
    row = JobRow("7", REPO, "WI-1", "deploy-staging", "running", None, None)
    if before != "nothing":
        records.launched(row, tmp_path / before, now)
    records.launched(row, tmp_path / "same place", now + timedelta(days=1))
    records.agent_ended(row, Place(tmp_path / "merged", tmp_path), now, opened=True, log=None)
    *waiting, ended = records.records()

    assert ended.agent is not None
    assert ended.launch.launched_at.startswith("2026-01-02")
    assert [record.agent for record in waiting] == ([None] if before == "elsewhere" else [])


def test_agent_that_ended_where_it_was_launched_is_told_from_its_like(tmp_path: Path) -> None:
    """Of launches with the same names, in two databases, the one in the same folder has ended."""
    records, now = ShadowRecords(tmp_path), datetime(2026, 1, 1, tzinfo=UTC)
    row = JobRow("7", REPO, "WI-1", "deploy-staging", "running", None, None)
    records.launched(row, tmp_path / "first", now)
    records.launched(row, tmp_path / "second", now + timedelta(days=1))
    records.agent_ended(row, Place(tmp_path / "first", tmp_path), now, opened=True, log=None)
    first, second = records.records()

    assert (first.agent is not None, second.agent is not None) == (True, False)


def test_end_of_an_agent_that_no_launch_fits_is_logged(
    begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    """A launch that waits on because its job has other names by now is told of in the log."""
    beside = begin()
    job, staging = beside.begin(), beside.host.staging
    with sqlite3.connect(str(beside.kit.store.engine.url.database)) as database:
        database.execute("UPDATE jobs SET work_item = 'WI-9'")
    assert staging is not None
    staging.agent_ended(job, opened=True)

    assert beside.view()["agent"] is None
    assert caplog.messages[-1].startswith(f'event="an agent\'s end was not noted" job={job} ')
    assert "no launch of WI-9 in shop is noted, but WI-1 in shop" in caplog.messages[-1]


def test_job_whose_id_looks_like_a_further_launch_has_its_own_record(tmp_path: Path) -> None:
    """Whatever a host's ids look like, no two launches share a record."""
    records, now = ShadowRecords(tmp_path), datetime(2026, 1, 1, tzinfo=UTC)
    for job in ("7", "7", "7~2", "7~2", "7"):
        row = JobRow(job, REPO, "WI-1", "deploy-staging", "running", None, None)
        records.launched(row, tmp_path, now)
        records.agent_ended(row, Place(tmp_path, tmp_path), now, opened=True, log=None)
    found = sorted((record.launch.job_id, record.row.id) for record in records.records())

    assert [job for job, _ in found] == ["7", "7", "7", "7~2", "7~2"]
    assert len({record for _, record in found}) == len(found)


def test_each_launch_of_an_id_is_compared_with_its_own_attempt(begin: Begin) -> None:
    """A job that has the id of one that was removed is launched, run and told of by itself."""
    beside = begin(FAILING)
    first = beside.launch("YES")
    beside.shadow.run_once()
    with sqlite3.connect(str(beside.kit.store.engine.url.database)) as database:
        database.execute("DELETE FROM jobs")
    second = beside.launch("NO")
    beside.shadow.run_once()
    views = shadow_view(beside.shadow.records.records())["launches"]

    assert first == second
    assert [(view["work_item"], view["comparison"]) for view in views] == [
        ("YES", Comparison.AGENT_ALONE_PASSED),
        ("NO", Comparison.AGREED),
    ]
    assert {view["job_id"] for view in views} == {str(first)}


def test_damaged_record_is_left_out(tmp_path: Path) -> None:
    """A record that cannot be read is nobody's evidence, and does not hide the others."""
    records = ShadowRecords(tmp_path)
    for job in (1, 2, 3, 4):
        row = JobRow(job, REPO, f"WI-{job}", "deploy-staging", "running", None, None)
        records.launched(row, tmp_path, datetime(2026, 1, job, tzinfo=UTC))
    (records.folder(1) / "launch.json").write_text("{")
    note = records.folder(4) / "launch.json"
    note.write_text(note.read_text().replace("2026-01-04T", "yesterday"))
    (records.folder(2) / "attempt.1.json").write_text("{")
    # A launch that was interrupted before its note, and what is no record at all.
    records.folder(5).mkdir()
    (records.root / "notes.txt").write_text("theirs")
    views = shadow_view(records.records())["launches"]

    assert [view["work_item"] for view in views] == ["WI-2", "WI-3"]
    assert "no JSON" in views[0]["problem"]


def test_damaged_attempt_is_told_as_one(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt that cannot be read is waited for no more: the report says so, and counts it."""
    beside = begin()
    for work_item in ("WI-1", "WI-2"):
        job = beside.launch(work_item)
    beside.shadow.run_once()
    for path in beside.shadow.records.folder(job).glob("attempt.*.json"):
        path.write_text("{")
    view = shadow_view(beside.shadow.records.records())
    monkeypatch.setenv("ORCH_STAGING_RUNNER_STATE_DIR", str(tmp_path / "state"))
    told = CliRunner().invoke(main, ["shadow-report"])

    assert (view["counts"]["agreed"], view["counts"]["damaged"]) == (1, 1)
    assert (view["launches_with_tokens"], view["launches"][1]["runner"]) == (1, None)
    assert told.exit_code == 0, told.output
    assert "WI-2 in shop: damaged. the record is no JSON" in told.output
    assert "0 waiting, 1 damaged" in told.output


@pytest.mark.parametrize("job", [".", "..", "", "a/b", "../../etc", "%2E", "7"])
def test_record_stays_among_the_records(tmp_path: Path, job: str) -> None:
    """Whatever a host's ids look like, each has a folder of its own, directly among the others."""
    records = ShadowRecords(tmp_path)
    folder = records.folder(job)

    assert folder.resolve().parent == records.root.resolve()
    assert records.folder(f"{job}x") != folder


def test_agent_has_not_ended_until_its_artifact_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record says that the agent has ended only once what it left is there to compare with."""
    records = ShadowRecords(tmp_path)
    row = JobRow(7, REPO, "WI-1", "deploy-staging", "running", None, None)
    records.launched(row, tmp_path, datetime(2026, 1, 1, tzinfo=UTC))
    (tmp_path / ARTIFACT_NAME).write_text("---\nstaging_status: SUCCESS\n---\n")

    def refuse(path: Path, data: bytes) -> None:
        if path.name == "agent.md":
            message = "boom"
            raise OSError(message)
        write_durably(path, data)

    monkeypatch.setattr("staging_fsm.effects.shadow.write_durably", refuse)
    with pytest.raises(OSError, match="boom"):
        records.agent_ended(
            row, Place(tmp_path, tmp_path), datetime(2026, 1, 1, tzinfo=UTC), opened=True, log=None
        )

    assert records.record(7).agent is None


def test_shadow_that_is_switched_off_makes_no_further_attempt(begin: Begin) -> None:
    """The switch is heard between two attempts of one round."""
    beside = begin()
    for item in ("WI-1", "WI-2"):
        beside.launch(item)
    suites = beside.shadow.suites

    def switch_off(config: RunnerConfig) -> SuitesConfig:
        beside.variables["ORCH_STAGING_RUNNER_SHADOW"] = "0"
        return suites(config)

    beside.shadow.suites = switch_off

    assert beside.shadow.run_once() == 1


def test_old_records_are_removed_and_none_of_an_attempt_under_way(tmp_path: Path) -> None:
    """A record goes when nothing changed in it for long, unless it is needed or not readable."""
    records = ShadowRecords(tmp_path)
    jobs = ("young", "untried", "under way", "waiting", "unreadable", "damaged")
    for job in jobs:
        row = JobRow(job, REPO, "WI-1", "deploy-staging", "running", None, None)
        records.launched(row, tmp_path, datetime.now(UTC))
    records.save("under way", attrs.evolve(fresh_snapshot("a-1", "w"), version=1))
    for moves in ((CLAIM,), (CLAIM, ERROR), (CLAIM, ERROR, WAIT)):
        records.save("waiting", walked(*moves))
    (records.folder("unreadable") / "attempt.1.json").write_text("{")
    (records.folder("damaged") / "launch.json").write_text("{")
    for job in jobs[1:]:
        os.utime(records.folder(job), (0, 0))
    records.prune(0)
    before = len(list(records.root.iterdir()))
    records.prune(1)

    assert before == len(jobs)
    left = {path.name for path in records.root.iterdir()}
    assert left == {records.folder(job).name for job in jobs if job != "untried"}


def test_record_holds_an_attempt_of_many_moves(tmp_path: Path) -> None:
    """The last version of an attempt is the newest, and not the last by its name."""
    records = ShadowRecords(tmp_path)
    row = JobRow(7, REPO, "WI-1", "deploy-staging", "running", None, None)
    records.launched(row, tmp_path, datetime.now(UTC))
    for version in range(1, 13):
        records.save(7, attrs.evolve(fresh_snapshot("a-1", "w"), version=version))
    document = records.load(7).document

    assert isinstance(document, dict)
    assert document["version"] == 12


def test_records_are_in_the_order_of_their_launches(tmp_path: Path) -> None:
    """However the host's ids sort, what was launched later comes later."""
    records = ShadowRecords(tmp_path)
    for hour, job in enumerate((9, 10, 2)):
        row = JobRow(job, REPO, f"WI-{job}", "deploy-staging", "running", None, None)
        records.launched(row, tmp_path, datetime(2026, 1, 1, hour, tzinfo=UTC))

    assert [record.launch.job_id for record in records.records()] == ["9", "10", "2"]


def test_shadow_removes_its_old_records(begin: Callable[..., Beside]) -> None:
    """A shadow that looks for work removes attempts that ended before the retention of runs."""
    beside = begin()
    folder = beside.shadow.records.folder(beside.launch())
    beside.shadow.run_once()
    assert beside.view()["runner"]["state"] == State.ADVANCED
    os.utime(folder, (0, 0))

    assert beside.shadow.run_once() == 0
    assert not folder.exists()


@attrs.define
class Rounds:
    """A clock that stops a shadow after so many rounds, and notes how long it was to wait."""

    shadow: Shadow
    left: int
    waits: list[float] = attrs.field(factory=list)
    woken: bool = False

    def now(self) -> datetime:
        """Return the time of day."""
        return datetime.now(UTC)

    def wait(self, seconds: float) -> None:
        """Let a round be over."""
        self.waits.append(seconds)
        self.left -= 1
        if not self.left:
            self.shadow.stop()

    def wake(self) -> None:
        """Note that nobody is to wait any more."""
        self.woken = True


def test_shadow_looks_again_and_again_until_it_is_stopped(begin: Begin) -> None:
    """A shadow makes what attempts are due, waits a moment, and ends when it is told to."""
    beside = begin()
    beside.launch()
    clock = beside.shadow.clock = Rounds(beside.shadow, 3)
    beside.shadow.run_forever()

    assert (clock.waits, clock.woken) == ([PAUSE_SECONDS] * 3, True)
    assert beside.view()["runner"]["state"] == State.ADVANCED


def test_attempt_of_the_shadow_is_called_one(begin: Begin) -> None:
    """Wherever an attempt of the shadow is told of, its name says that it is none in earnest."""
    beside = begin()
    job = beside.launch()
    beside.shadow.run_once()
    snapshot = beside.shadow.records.load(job).snapshot()

    assert snapshot is not None
    assert re.fullmatch(rf"{job}-shadow-[0-9a-f]{{12}}", snapshot.attempt_id)


def test_shadow_shows_no_address_of_an_alert(begin: Begin) -> None:
    """What the runner keeps from its own papers it keeps from those of the shadow, too."""
    address = "json://host.example/bXktdG9rZW4"
    beside = begin(f'command = ["echo", "{address}"]', alert_urls=address)
    beside.launch()
    beside.shadow.run_once()
    shown = Path(beside.view()["runner"]["artifact"]).read_text()

    assert address not in shown
    assert "***" in shown


def test_shadow_alerts_nobody(begin: Begin, tmp_path: Path) -> None:
    """What the shadow finds stands in its report: no person is called for it."""
    beside = begin(PASSING.replace('"true"', '"no-such-command"'), infra_retries=0)
    beside.launch()
    beside.shadow.run_once()

    assert beside.view()["runner"]["state"] == State.FAILED_CLOSED
    assert not [*tmp_path.rglob("alerts.jsonl")]


def test_attempt_of_the_shadow_waits_for_its_time(begin: Begin) -> None:
    """The next run of an attempt of the shadow begins when it is due, and not before."""
    beside = begin('command = ["sh", "-c", "exit 126"]', retry_backoff_seconds=600)
    job = beside.launch()
    assert beside.shadow.run_once() == 1
    assert beside.shadow.run_once() == 0

    due = beside.shadow.records.load(job).not_before
    assert due is not None
    beside.shadow.clock = At(due)
    assert beside.shadow.run_once() == 1


class At(SystemClock):
    """A clock that stands still."""

    def __init__(self, time: datetime) -> None:
        """Stand at a time."""
        super().__init__()
        self.time = time

    def now(self) -> datetime:
        """Return the time of day."""
        return self.time


def test_folder_without_git_is_not_run_in_beside_the_agent(begin: Begin) -> None:
    """Where there is no commit to check out, a suite would be in the agent's way: none is run."""
    beside = begin()
    shutil.rmtree(beside.kit.repository / ".git")
    beside.launch()
    beside.shadow.run_once()

    assert beside.view()["comparison"] == Comparison.NOT_RUN


def test_repository_that_is_gone_since_is_said_to_be(begin: Begin, tmp_path: Path) -> None:
    """Where the folder of the launch is gone nothing is run, and the report says why."""
    beside = begin()
    beside.launch()
    beside.kit.repository.rename(tmp_path / "elsewhere")
    beside.shadow.run_once()
    view = beside.view()

    assert view["comparison"] == Comparison.NOT_RUN
    assert f"{beside.kit.repository} is gone since" in view["runner"]["reason"]


def test_shadow_with_a_broken_configuration_says_so(
    begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    """A shadow that does nothing for want of a configuration tells why in the log."""
    beside = begin()
    beside.variables["ORCH_STAGING_RUNNER_INFRA_RETRIES"] = "many"

    assert beside.shadow.run_once() == 0
    assert caplog.messages[0].startswith('event="the shadow does nothing" error=')
    assert "ORCH_STAGING_RUNNER_INFRA_RETRIES" in caplog.text

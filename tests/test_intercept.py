"""What `launch_job` may rely on: the intercept's promises, over real rows and real suites."""

import asyncio
import contextlib
import json
import logging
import re
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import attrs
import pytest

from desk import (
    FAILING,
    OFF,
    PASSING,
    TOOL_ERROR,
    Desk,
    Failing,
    Heard,
    LosesTheAnswer,
    deferred,
    fill_the_disk,
    first,
)
from hosts import REPO, no_descriptors_left
from staging_fsm.core.errors import (
    ConfigInvalidError,
    StagingError,
    TransitionRefusedError,
    UnansweredError,
    in_words,
)
from staging_fsm.core.invariants import Sight, violations
from staging_fsm.core.jobs import SNAPSHOT_KEY, JobRow, Place
from staging_fsm.core.outcome import Reason
from staging_fsm.core.plan import WITHOUT_REPORT, SuitePlan, Workspace
from staging_fsm.core.ports import AlertKind
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import Event, State
from staging_fsm.drive.engine import HAND_OVER_TRIES
from staging_fsm.drive.intercept import UNSEEN, StagingIntercept
from staging_fsm.drive.rulings import Decision, Ruling
from staging_fsm.effects.files import sha256_of_file
from staging_fsm.effects.preflight import Health
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.faces.doctor import examine
from staging_fsm.host import launcher
from staging_fsm.host.contract.gate import ARTIFACT_NAME
from staging_fsm.host.launcher import Host, launch_job
from staging_fsm.host.store import Job


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


def test_job_of_another_stage_is_declined_whatever_it_carries(desk: Desk) -> None:
    """A host that copies the metadata of a staging job into its next one has its agent started."""
    desk.claim()
    desk.launch()
    copied = desk.raw_row()["metadata"]
    desk.job_id = desk.kit.add("deploy", "WI-2")
    desk.write_metadata(copied)
    before = desk.raw_row()

    assert desk.launch().ruling is Ruling.DECLINED
    assert desk.raw_row() == before


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


@pytest.mark.parametrize(
    ("suites", "told"),
    [
        (
            '[repos.other]\ncommand = ["true"]\n',
            f"repository {REPO} is in scope, but no suite is configured for it",
        ),
        (PASSING + 'min_tests = "auto"\n', f"the suite of {REPO}: {WITHOUT_REPORT}"),
        (PASSING + "min_tests = 20\n", f"the suite of {REPO}: {WITHOUT_REPORT}"),
        (
            f'[repos.{REPO}]\ncommand = ["true"]\ntimeout_seconds = -5\n',
            f"the suite of {REPO}: timeout_seconds must be a finite number above 0, not -5.0",
        ),
    ],
)
def test_decline_says_whose_suite_cannot_be_run(desk: Desk, suites: str, told: str) -> None:
    """A launch that is declined for its suite says whose and why, and `doctor` says it before."""
    desk.suites_file = suites
    (desk.folder / "suites.toml").write_text(suites)
    desk.set("SUITES_FILE", str(desk.folder / "suites.toml"))
    desk.set("REPOS", REPO)
    state = StateDir(desk.folder / "state")
    failed = [
        check.words
        for check in examine(desk.variables, state, lambda: "a database")
        if check.name == "suite" and check.health is Health.FAILED
    ]

    assert failed == [told]
    assert desk.launch().reason == f"invalid configuration: {told}"


@pytest.mark.parametrize("stage", ["deploy-staging", "pre-production"])
def test_suite_has_to_run_what_last_passed_at_its_stage(desk: Desk, stage: str) -> None:
    """With `min_tests = "auto"` a plan asks for nine tenths of what last passed, where counted."""
    suite = f"""
[default]
command = ["cp", "{desk.folder}/junit.xml", "{{report_dir}}"]
report = "junit.xml"
min_tests = "auto"
workspace = "in-place"
"""
    plans = []
    desk.staging = StagingIntercept.of(attrs.evolve(desk.staging.runner, stage=stage))
    desk.engine.gate = lambda _row, _tx: True
    desk.job_id = desk.kit.add(stage, "WI-7")
    for tests in (20, 18):
        report = "<testsuite>" + '<testcase name="a"/>' * tests + "</testsuite>"
        (desk.folder / "junit.xml").write_text(report)
        desk.suites_file = suite
        desk.launch()
        assert desk.state() is State.ADVANCED
        plans.append(desk.snapshot().bound_plan.suite)
        desk.job_id = desk.kit.add(stage, f"WI-{tests}")
    desk.suites_file = PASSING
    desk.launch()
    plans.append(desk.snapshot().bound_plan.suite)

    assert [plan.tests_last_passed for plan in plans] == [None, 20, None]
    assert [plan.min_tests for plan in plans] == [1, 18, 1]


def test_worker_that_dies_over_a_decline_has_told_of_it(desk: Desk) -> None:
    """Somebody is told that a launch is declined before the row says so: no crash swallows it."""
    desk.set("INFRA_RETRIES", "many")
    desk.claim()
    desk.break_part("rows.save", KeyboardInterrupt())  # type: ignore[arg-type]  # as a worker that is stopped

    with pytest.raises(KeyboardInterrupt):
        desk.launch()

    assert desk.alerts() == ["configuration_invalid"]


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
    """A declined launch is declined again, by any worker, also when what was wrong is right."""
    desk.claim()
    desk.set("INFRA_RETRIES", "many")
    desk.launch()
    desk.set("INFRA_RETRIES", "1")

    other = desk.new_worker(liveness=lambda _worker: True)
    other.runner.engine.worker = "another"

    assert desk.launch().ruling is other.launch(desk.job_id).ruling is Ruling.DECLINED
    assert (desk.staging.recover(), other.recover()) == ([], [])
    assert len(desk.snapshot().history) == 1


AFTER_THE_FIRST_RUN: Final = ("artifacts.set_aside", "suites.start", "suites.await_report", "place")


@pytest.mark.parametrize("kind", [RuntimeError, OSError, ValueError])
@pytest.mark.parametrize("part", AFTER_THE_FIRST_RUN)
def test_internal_error_after_a_run_was_counted_is_a_tool_error(
    desk: Desk, part: str, kind: type[Exception]
) -> None:
    """Whatever fails once a run is counted ends that run as a tool error, and no agent starts."""
    desk.claim()
    if part == "place":
        # Fine when the attempt is bound, and gone when its suite starts.
        answers = [desk.engine.place]
        desk.engine.place = lambda row: answers.pop()(row)  # noqa: PLW0108  # popped late
    else:
        desk.break_part(part, kind("boom"))

    decision = desk.launch()

    assert decision.ruling is Ruling.TAKEN
    snapshot = desk.snapshot()
    assert [move.id for move in snapshot.history] == ["T01", "T05", "T07"]
    assert snapshot.reasons == (Reason.INTERNAL_ERROR,)
    told = "IndexError: pop from empty list" if part == "place" else f"{kind.__name__}: boom"
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


@pytest.mark.parametrize("status", ["done", "cancelled"])
def test_job_that_a_person_ended_is_not_queued_by_a_deferral(desk: Desk, status: str) -> None:
    """A job that was ended by its status while its run was under way stays ended."""

    def end(_row: JobRow, moved: Snapshot) -> None:
        if moved.state is State.DEFERRED:
            desk.write("status", status)

    desk.claim()
    desk.suites_file = TOOL_ERROR
    desk.engine.watch = end
    decision = desk.launch()

    assert (decision.ruling, desk.row().status) == (Ruling.TAKEN, status)
    assert (desk.state(), desk.alerts(), desk.agent_calls()) == (State.DEFERRED, [], [])
    assert desk.new_worker().recover() == []


def test_run_of_which_nothing_can_be_seen_is_held(desk: Desk) -> None:
    """A run that can be neither started nor reaped is held, and counts as lost once it can."""
    desk.claim()
    runs = desk.folder / "state" / "runs"
    # Broken after the machine was found fit, and before the run.
    look = desk.staging.runner.preflight

    def look_in_time(where: Place, suite: SuitePlan) -> str | None:
        found = look(where, suite)
        runs.write_text("a file where the folder of all runs should be")
        return found

    desk.staging.runner.preflight = look_in_time

    assert desk.launch().ruling is Ruling.HELD
    assert desk.state() is State.RUNNING
    runs.unlink()
    desk.staging.recover()
    assert desk.snapshot().reasons == (Reason.WORKER_LOST,)


@pytest.mark.parametrize("part", ["runs", "secret"])
def test_state_folder_that_is_not_all_ours_declines_and_spends_no_run(
    desk: Desk, part: str
) -> None:
    """What cannot be used within the state folder is told of before a run, not found out by one."""
    (desk.folder / "state").mkdir(exist_ok=True)
    (desk.folder / "state" / part).touch()
    desk.claim()

    decision = desk.launch()

    assert decision.ruling is Ruling.DECLINED
    assert f"state folder: {desk.folder / 'state' / part} " in decision.reason
    assert desk.snapshot().runs == ()
    assert desk.alerts() == ["machine_unfit"]


@pytest.mark.parametrize("workspace", Workspace)
def test_unfit_machine_declines_loudly_and_spends_no_run(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, workspace: Workspace
) -> None:
    """A machine that cannot run a suite leaves the first launch to the LLM, and says so."""
    desk.suites_file = PASSING.replace(Workspace.IN_PLACE, workspace)
    fill_the_disk(monkeypatch)
    desk.claim()

    decision = desk.launch()

    assert decision.ruling is Ruling.DECLINED
    assert "inodes are needed" in decision.reason
    assert desk.snapshot().runs == ()
    assert desk.alerts() == ["machine_unfit"]


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
        "a list": "[{}]".format,
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


@pytest.mark.parametrize("name", OFF)
def test_attempt_that_was_emptied_is_held_though_switched_off(desk: Desk, name: str) -> None:
    """Of an attempt that somebody emptied nobody knows how far it was: no agent is started."""
    desk.defer()
    for setting, value in OFF[name].items():
        desk.set(setting, value)
    desk.write_metadata(json.dumps({SNAPSHOT_KEY: {}}))

    assert desk.launch().ruling is Ruling.HELD
    assert desk.alerts() == ["row_refused"]


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


def broken_configuration(desk: Desk) -> None:
    """Have the job claimed for a launch that will be declined."""
    desk.claim()
    desk.set("INFRA_RETRIES", "many")


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
    with pytest.raises(TypeError, match=r"clok cannot be replaced; (\w+, )+clock(, \w+)+ can"):
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


def test_move_that_is_not_shown_is_logged_as_ever(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """After the line of each move the log says that, and why, whoever looks on did not see it."""
    caplog.set_level(logging.INFO, "staging_fsm")
    job = desk.claim()
    desk.break_part("watch", RuntimeError("boom"))
    desk.launch()

    lines = [line.split(" ", 1)[0] for line in caplog.messages[0::2]]
    assert lines == ["event=transition"] * len(desk.snapshot().history)
    hidden = f'event="a transition was not shown" job={job.id} error="RuntimeError: boom"'
    assert set(caplog.messages[1::2]) == {hidden}


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


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
@pytest.mark.parametrize(
    ("part", "left"),
    [
        ("place", None),
        ("suites.await_report", State.RUNNING),
        ("gate", State.VERDICT_PASSED),
    ],
)
def test_what_ends_a_process_goes_through(
    desk: Desk, part: str, left: State | None, error: type[BaseException]
) -> None:
    """What ends a process, and is no error, leaves a launch as a crash would, out of a gate too.

    Nobody is alerted, no agent starts, and the job is in nobody's hands: the next launch goes on.
    """
    desk.claim()
    desk.break_part(part, error())  # type: ignore[arg-type]  # no Exception, and that is the point

    with pytest.raises(error):
        desk.launch("{}")

    assert (desk.state(), desk.alerts(), desk.agent_calls()) == (left, [], [])
    assert desk.raw_row()["status"] == "running"
    assert not desk.staging._driving
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
        (MappingProxyType({"theirs": 1}), Ruling.DECLINED),
        (MappingProxyType({"staging_runner": 1}), Ruling.HELD),
        ('{"staging_runner": {}}', Ruling.HELD),
        ({"staging_runner": {}}, Ruling.HELD),
        (17, Ruling.HELD),
        (["theirs"], Ruling.HELD),
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


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (b'{"theirs": "\xc3\xa9"}', Ruling.DECLINED),
        (b'{"staging_runner": {}}', Ruling.HELD),
        (b'{"staging\\u005frunner": {}}', Ruling.HELD),
        (b'{"theirs": "\xff"}', Ruling.HELD),
        ('{"staging_runner": {}}'.encode("utf-16-le"), Ruling.HELD),
    ],
    ids=["no key", "a key", "a key in escapes", "no text", "another encoding"],
)
def test_metadata_in_bytes_says_what_its_text_would(
    desk: Desk, kind: Callable[[bytes], object], metadata: bytes, expected: Ruling
) -> None:
    """A host that reads its metadata as bytes of UTF-8 tells as much with them as with text."""
    desk.claim()
    desk.break_part("rows.load", OSError("boom"))

    assert desk.launch(kind(metadata)).ruling is expected


def test_key_that_can_be_none_stops_no_other_launch(desk: Desk) -> None:
    """A launch by what cannot be a key, a list say, is answered, and so is every later one."""
    answers: list[Ruling] = []

    def launch_both() -> None:
        answers.append(desk.staging.launch([desk.job_id]).ruling)
        answers.append(desk.launch().ruling)

    desk.claim()
    thread = threading.Thread(target=launch_both, daemon=True)
    thread.start()
    thread.join(60)

    assert answers == [Ruling.HELD, Ruling.TAKEN]


@pytest.mark.parametrize("problem", ["configuration", "internal"])
def test_alert_of_a_declined_launch_names_its_job(desk: Desk, problem: str) -> None:
    """Whoever hears that a launch was declined is told of which job, in words of the machine's."""
    heard = Heard()
    desk.engine.alerts = heard
    if problem == "internal":
        desk.break_part("bind", OSError("boom"))
    else:
        desk.set("INFRA_RETRIES", "many")
    reason = desk.launch().reason
    [(kind, job_id, text, _)] = heard.alerts

    assert (str(kind).partition("_")[0], job_id) == (problem, desk.job_id)
    assert text == f"declined to the LLM path: {reason}"


def test_same_typo_is_told_once_for_all_jobs(desk: Desk) -> None:
    """However many jobs are declined for one mistake, one message goes out."""
    desk.set("INFRA_RETRIES", "many")
    for item in ("WI-2", "WI-3"):
        assert desk.launch().ruling is Ruling.DECLINED
        desk.job_id = desk.kit.add("deploy-staging", item)

    assert desk.alerts() == ["configuration_invalid"]


def test_each_error_of_a_job_is_told(desk: Desk) -> None:
    """Of a job that meets one error after another, one of ours among them, each is told."""
    heard = Heard()
    desk.engine.alerts = heard
    desk.claim()
    for error in (OSError("first"), StagingError("the remote refuses it")):
        desk.engine.gate = Failing(desk.engine, "gate", error).gate
        assert desk.launch().ruling is Ruling.HELD

    told = [(kind, job_id) for kind, job_id, _, _ in heard.alerts]
    assert told == [(AlertKind.INTERNAL_ERROR, desk.job_id)] * 2
    assert ["first" in heard.alerts[0][2], "refuses" in heard.alerts[1][2]] == [True, True]
    assert [attempt_id for *_, attempt_id in heard.alerts] == [None, None]


@pytest.mark.parametrize("status", ["running", "queued"])
@pytest.mark.parametrize("suites", [PASSING, FAILING, TOOL_ERROR])
def test_job_that_is_opened_again_is_told_of(desk: Desk, suites: str, status: str) -> None:
    """A job whose attempt has ended, however, and that is in work again waits for a person."""
    desk.set("INFRA_RETRIES", "0")
    desk.suites_file = suites
    desk.claim()
    desk.launch()
    desk.write("status", status)
    heard = Heard()
    desk.engine.alerts = heard

    assert desk.launch().ruling is Ruling.TAKEN
    (alert,) = heard.alerts
    assert (alert[0], alert[-1]) == (AlertKind.ROW_REFUSED, desk.snapshot().attempt_id)
    ended = f"the job is {status} again, and its attempt has ended: {desk.state()}"
    assert alert[2] == f"{ended}; queue another job"


def test_rows_that_cannot_be_relied_on_are_told_of_without_a_job(desk: Desk) -> None:
    """That no first launch will be taken is told once, of no job, and with the problem."""
    heard = Heard()
    desk.engine.alerts = heard
    desk.staging.runner.cannot_rely_on_rows(ConfigInvalidError(["no such column"]))
    ((kind, job_id, text, _),) = heard.alerts

    assert (kind, job_id) == (AlertKind.CONFIGURATION_INVALID, "-")
    assert text.endswith("was not given its metadata: invalid configuration: no such column")


def test_error_of_ours_at_the_claim_is_in_doubt_as_any_other(desk: Desk) -> None:
    """Whatever a store answers to a claim, a second write keeps out one that comes later still."""
    desk.claim()
    rows = desk.engine.rows
    first = [True]
    unanswered = UnansweredError("no answer")
    desk.use_rows(Failing(rows, "save", unanswered, lambda *_: bool(first and first.pop())))

    decision = desk.launch("{}")
    assert decision == Decision(Ruling.DECLINED, in_words(unanswered))
    assert [move.id for move in desk.snapshot().history] == ["T02"]
    assert desk.alerts() == [AlertKind.INTERNAL_ERROR]


def test_claim_that_failed_and_cannot_be_looked_up_is_held_without_a_trace(desk: Desk) -> None:
    """Where neither claim nor row can be had, the launch is held, and no decline is written."""
    desk.claim()
    rows = desk.engine.rows
    saves, loads = [True], [False]
    breaking = Failing(rows, "save", OSError("boom"), lambda *_: bool(saves and saves.pop()))
    desk.use_rows(Failing(breaking, "load", OSError("boom"), lambda _id: not loads or loads.pop()))

    assert desk.launch("{}").ruling is Ruling.HELD
    assert desk.state() is None


def test_launch_that_can_write_nothing_and_then_read_nothing_is_the_agents(desk: Desk) -> None:
    """A store that took neither claim nor decline, and is away since, has likely taken nothing."""
    desk.claim()
    reads = [True, False, False]
    writing = Failing(desk.engine.rows, "save", OSError("boom"))
    desk.use_rows(Failing(writing, "load", OSError("boom"), lambda _id: not reads or reads.pop()))

    assert desk.launch("{}").ruling is Ruling.DECLINED
    assert desk.state() is None


def no_shadow(desk: Desk) -> None:
    """Have no launch be noted in shadow mode."""
    desk.set("SHADOW", "1")
    runner: Any = desk.staging.runner
    runner.shadow = Failing(runner.shadow, "launched", OSError("boom"))


@pytest.mark.parametrize(
    ("break_", "said"),
    [
        (lambda desk: desk.break_part("rows.save", OSError("boom")), "no trace was left"),
        (lambda desk: desk.break_part("rows.load", OSError("boom")), "the row could not be read"),
        (lambda desk: desk.break_part("prune", OSError("boom")), "old runs were not removed"),
        (no_shadow, "a launch was not noted"),
    ],
    ids=["save", "load", "prune", "shadow"],
)
def test_what_fails_beside_a_launch_is_in_the_log(
    desk: Desk, break_: Callable[[Desk], None], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What fails and decides nothing stands in the log, with its job where it is of one."""
    desk.claim()
    break_(desk)
    desk.launch("{}")

    job = "" if "old runs" in said else f" job={desk.job_id}"
    assert f'event="{said}"{job} error="OSError: boom"' in caplog.messages


def test_store_that_breaks_while_it_is_searched_is_no_configuration(desk: Desk) -> None:
    """A connection that is lost while the last pass is looked up is told as what it is."""
    desk.suites_file = PASSING + 'min_tests = "auto"\nreport = "r"\n'
    desk.break_part("rows.recent", OSError("away"))
    reason = desk.launch().reason

    assert reason == "OSError: away"
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


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [("{}", Ruling.DECLINED), (UNSEEN, Ruling.HELD)],
    ids=["seen", "unseen"],
)
def test_store_that_goes_away_before_the_first_run(
    desk: Desk, metadata: object, expected: Ruling
) -> None:
    """A row without an attempt is nobody else's only to a caller whose claim is exclusive."""
    desk.claim()
    desk.set("INFRA_RETRIES", "many")
    reads, gone = [False], OSError("gone")
    rows = Failing(desk.engine.rows, "load", gone, lambda _id: not reads or reads.pop())
    desk.use_rows(Failing(rows, "save", gone))

    assert desk.launch(metadata).ruling is expected
    assert desk.raw_row()["metadata"] == "{}"


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


@pytest.mark.parametrize("times", [1, 2, 9])
@pytest.mark.parametrize("suites", [PASSING, FAILING], ids=["passed", "failed"])
def test_artifact_that_somebody_was_at_is_written_again(
    desk: Desk, suites: str, times: int
) -> None:
    """A gate that read another artifact than was written is asked again before its no stands."""
    desk.suites_file = suites
    desk.claim()
    gate, left = desk.engine.gate, [times]

    def meddled(row: JobRow, tx: Any) -> bool:
        left[0] -= 1
        if left[0] >= 0:
            (desk.engine.place(row).artifact_dir / ARTIFACT_NAME).write_text("")
        return gate(row, tx)

    desk.engine.gate = meddled
    desk.launch()
    snapshot, is_ours = desk.snapshot(), times < HAND_OVER_TRIES

    advances = is_ours and suites == PASSING
    assert snapshot.state is (State.ADVANCED if advances else State.ROLLED_BACK)
    assert snapshot.artifact is not None
    assert (sha256_of_file(Path(snapshot.artifact.path)) == snapshot.artifact.sha256) is is_ours


def test_artifact_that_cannot_be_written_holds_the_launch(desk: Desk) -> None:
    """Where no artifact can be written no gate is asked, and none is accused of anything."""
    desk.break_part("artifacts.write", OSError("boom"))
    desk.claim()
    decision = desk.launch()

    assert (decision.ruling, desk.state()) == (Ruling.HELD, State.VERDICT_PASSED)
    assert desk.alerts() == ["internal_error"]


def test_gate_without_a_descriptor_to_look_costs_no_pass(desk: Desk) -> None:
    """A gate that cannot open the artifact says no to everything: the verdict is kept from it."""
    desk.claim()
    gate, shortage = desk.engine.gate, contextlib.ExitStack()

    def starved(row: JobRow, tx: Any) -> bool:
        shortage.enter_context(no_descriptors_left())
        return gate(row, tx)

    desk.engine.gate = starved
    with shortage:
        decision = desk.launch()
    kept = desk.state()
    desk.engine.gate = gate
    desk.staging.recover()

    assert (decision.ruling, kept) == (Ruling.HELD, State.VERDICT_PASSED)
    assert desk.state() is State.ADVANCED


def test_table_that_does_not_keep_an_attempt_runs_nothing(desk: Desk) -> None:
    """Where the table drops our key again no run could be counted: the agent has the job."""
    with desk.kit.store.transaction() as tx:
        tx.exec_driver_sql(
            "CREATE TRIGGER forgetful AFTER UPDATE OF metadata ON jobs BEGIN"
            " UPDATE jobs SET metadata = '{}' WHERE id = NEW.id; END"
        )
    desk.claim()
    # However often: who was found out once is not believed the next time.
    decisions = [desk.launch(), desk.launch()]

    assert {decision.ruling for decision in decisions} == {Ruling.DECLINED}
    for decision in decisions:
        assert "does not keep the key staging_runner" in decision.reason
    assert not (desk.folder / "state" / "runs").exists()
    assert desk.row().document is None


@attrs.frozen
class Nameless:
    """Rows without a name in one column, as of a host whose column may be empty."""

    whole: Any
    names: dict[str, str]

    def load(self, job_id: Any) -> JobRow:
        """Return the row without the name."""
        row: JobRow = attrs.evolve(self.whole.load(job_id), **self.names)
        return row

    def __getattr__(self, name: str) -> Any:
        """Return what the rows have."""
        return getattr(self.whole, name)


@pytest.mark.parametrize("name", ["repo", "work_item"])
@pytest.mark.parametrize("shadow", ["0", "1"])
def test_job_without_a_name_is_declined_loudly(desk: Desk, name: str, shadow: str) -> None:
    """A job that names no repository or no work item is the agent's, and its row stays as it is."""
    desk.set("REPOS", "*")
    desk.set("SHADOW", shadow)
    desk.claim()
    before = desk.raw_row()
    desk.use_rows(Nameless(desk.engine.rows, {name: ""}))
    decision = desk.launch()

    assert decision.ruling is Ruling.DECLINED
    assert f"has no {name.replace('repo', 'repository').replace('_', ' ')}" in decision.reason
    assert desk.raw_row() == before
    assert desk.alerts() == [AlertKind.ROW_REFUSED]


#: What no attempt can be kept in, and holds none.
NO_PLACE: Final = {
    "a list": "[]",
    "a text": '"{}"',
    "a number": "17",
    "NaN": '{"score": NaN}',
    "no JSON": "by hand",
}


@pytest.mark.parametrize("scene", OFF)
@pytest.mark.parametrize("metadata", NO_PLACE.values(), ids=NO_PLACE)
def test_switched_off_runner_declines_whatever_the_metadata_is(
    desk: Desk, metadata: str, scene: str
) -> None:
    """Metadata that is no JSON object and does not name our key keeps no agent from a job."""
    for name, value in OFF[scene].items():
        desk.set(name, value)
    desk.claim()
    desk.write_metadata(metadata)
    before = desk.raw_row()

    assert desk.launch().ruling is Ruling.DECLINED
    assert (desk.raw_row(), desk.alerts()) == (before, [])


@pytest.mark.parametrize("metadata", NO_PLACE.values(), ids=NO_PLACE)
def test_job_without_a_place_for_an_attempt_is_declined_loudly(desk: Desk, metadata: str) -> None:
    """A job in whose metadata no attempt can be kept is the agent's, and a person learns why."""
    desk.claim()
    desk.write_metadata(metadata)
    before = desk.raw_row()
    decision = desk.launch()

    assert decision.ruling is Ruling.DECLINED
    words = "without a key of ours, and with no place for one: make it a JSON object"
    assert decision.reason.endswith(f", {words}")
    assert (desk.raw_row(), desk.alerts()) == (before, [AlertKind.ROW_REFUSED])


@pytest.mark.parametrize("metadata", NO_PLACE.values(), ids=NO_PLACE)
def test_job_without_a_place_for_an_attempt_needs_no_runner(desk: Desk, metadata: str) -> None:
    """Where no runner can be made such a job is the agent's all the same."""
    desk.claim()
    desk.write_metadata(metadata)
    desk.break_runner()

    assert desk.launch().ruling is Ruling.DECLINED


@pytest.mark.parametrize("scene", ["off", "out of scope"])
@pytest.mark.parametrize(
    "metadata",
    ['{"staging_runner": {"vers', '{"staging\\u005frunner": NaN}', '[{"staging_runner": 1}]'],
)
def test_job_that_may_have_an_attempt_is_held(desk: Desk, metadata: str, scene: str) -> None:
    """Where our key may stand in metadata that cannot be read no agent starts, off or not."""
    for name, value in OFF[scene].items():
        desk.set(name, value)
    desk.claim()
    desk.write_metadata(metadata)

    assert desk.launch().ruling is Ruling.HELD
    assert desk.alerts() == [AlertKind.ROW_REFUSED]


def ignore(desk: Desk, column: str) -> None:
    """Have a trigger of the host's ignore every write of a column, and say nothing."""
    with desk.kit.store.transaction() as tx:
        tx.exec_driver_sql(
            f"CREATE TRIGGER frozen BEFORE UPDATE OF {column} ON jobs"
            " BEGIN SELECT RAISE(IGNORE); END"
        )


def test_first_launch_whose_claim_the_table_swallows_is_declined_loudly(desk: Desk) -> None:
    """Where a trigger ignores our write the agent has the job, and a person learns why."""
    desk.claim()
    ignore(desk, "metadata")
    decision = desk.launch()

    assert decision.ruling is Ruling.DECLINED
    assert "table 'jobs' does not take what is written" in decision.reason
    assert desk.alerts() == [AlertKind.INTERNAL_ERROR]
    assert not (desk.folder / "state" / "runs").exists()


def test_deferral_that_the_table_swallows_is_told_of(desk: Desk) -> None:
    """Where a trigger keeps a job from being queued again nobody is taken to have ended it."""
    desk.suites_file = TOOL_ERROR
    desk.claim()
    ignore(desk, "not_before")
    decision = desk.launch()
    touched = desk.staging.recover()

    assert (decision.ruling, desk.state(), touched) == (Ruling.HELD, State.DEFERRED, [])
    # The launch that is held, what is owed to it, and recovery's own try.
    assert desk.alerts() == [AlertKind.INTERNAL_ERROR] * 3
    with desk.kit.store.transaction() as tx:
        tx.exec_driver_sql("DROP TRIGGER frozen")
    desk.staging.recover()
    assert desk.row().status == "queued"


def test_job_that_no_recovery_would_find_is_declined(desk: Desk) -> None:
    """A status that is none of the words that stand for a claimed job is told of before a run."""
    desk.claim()
    with desk.kit.store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE jobs SET status = 'done'")
    decision = desk.launch()

    assert decision.ruling is Ruling.DECLINED
    assert "is 'done' while it is launched" in decision.reason
    assert desk.alerts() == [AlertKind.CONFIGURATION_INVALID]


def test_job_that_is_opened_again_after_its_end_is_told_of(desk: Desk) -> None:
    """An ended attempt does not run again, and a person learns that its job waits for nothing."""
    desk.claim()
    desk.launch()
    with desk.kit.store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE jobs SET status = 'queued' WHERE status = 'done'")
    before = desk.snapshot()
    desk.claim()
    decision = desk.launch()

    assert decision.ruling is Ruling.TAKEN
    assert desk.snapshot() == before
    assert desk.alerts() == [AlertKind.ROW_REFUSED]


class LandsLate(Failing):
    """Rows whose first write is answered with an error, and is committed before the next one."""

    def __getattr__(self, name: str) -> Any:
        """Return what `whole` has, but for the one method."""
        if name != self._method:
            return getattr(self._whole, name)
        return self._save

    def _save(self, *arguments: Any) -> None:
        late, self._late = getattr(self, "_late", None), arguments
        if late is None:
            raise self._error
        self._whole.save(*late)
        self._whole.save(*arguments)


class LandsBeforeTheTrace(LandsLate):
    """Rows whose second write is answered with an error too, after the first was committed."""

    def _save(self, *arguments: Any) -> None:
        late, self._late = getattr(self, "_late", None), arguments
        if late is not None:
            self._whole.save(*late)
        raise self._error


@pytest.mark.parametrize("kind", [LandsLate, LandsBeforeTheTrace])
def test_claim_that_is_committed_after_its_connection_was_lost_has_one_producer(
    desk: Desk, kind: type[LandsLate]
) -> None:
    """Where a first claim may still be committed, or is by now, no agent is started beside it."""
    desk.claim()
    rows = desk.engine.rows
    desk.use_rows(kind(rows, "save", OSError("the connection was lost")))
    decision = desk.launch()
    desk.use_rows(rows)

    assert decision.ruling is Ruling.HELD
    assert desk.state() is State.RUNNING
    assert desk.alerts() == [AlertKind.INTERNAL_ERROR]
    desk.staging.recover()
    assert desk.state() is State.DEFERRED


@pytest.mark.parametrize("answer", [None, 1, "refused", object()], ids=lambda it: type(it).__name__)
def test_gate_that_answers_neither_yes_nor_no_ends_nothing(desk: Desk, answer: object) -> None:
    """An answer that is no bool is an error of the host's, and opens and refuses nothing."""
    gate, answers = desk.engine.gate, [answer]

    def vague(row: JobRow, tx: Any) -> Any:
        opened = gate(row, tx)
        return answers.pop() if answers else opened

    desk.engine.gate = vague
    desk.claim()
    held = desk.launch()
    before, alerts = desk.state(), desk.alerts()
    desk.staging.recover()

    said = f"the gate answered with {type(answer).__name__}, neither True nor False"
    assert (held.ruling, before) == (Ruling.HELD, State.VERDICT_PASSED)
    assert said in held.reason
    assert alerts == [AlertKind.INTERNAL_ERROR]
    assert desk.state() is State.ADVANCED


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("boom"),
        OSError("boom"),
        # Of another attempt, which the host's own gate cancelled too late.
        TransitionRefusedError(State.ADVANCED, Event.CANCEL_REQUESTED, []),
    ],
    ids=lambda it: type(it).__name__,
)
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


def test_error_of_a_gate_says_where_it_was_raised(desk: Desk) -> None:
    """Whoever wrote a gate that breaks is told that it was the gate, and in which line of it."""
    desk.claim()

    kept = ValueError("no number")
    kept.add_note("a note of the host's own")

    def gate(row: JobRow, tx: Any) -> bool:
        del row, tx
        raise kept

    desk.engine.gate, line = gate, gate.__code__.co_firstlineno + 2
    said = [desk.launch().reason for _ in range(2)]

    words = "ValueError: no number; a note of the host's own; raised by the gate, in gate of"
    assert said == [f"{words} {__file__}:{line}"] * 2
    # One that cannot be called at all has no line.
    desk.engine.gate = None  # type: ignore[assignment]  # as a host without types may have it
    desk.staging.recover()
    assert desk.launch().reason.startswith("TypeError: 'NoneType' object is not callable")


class NotableError(Exception):
    """An error of a host's that takes no note."""

    def add_note(self, note: str) -> None:
        """Refuse it."""
        raise TypeError(note)


class NoteworthyError(Exception):
    """An error of a host's that has none in the place of its notes."""

    __notes__ = None  # type: ignore[assignment]  # as a host may have it


@pytest.mark.parametrize("error", [NotableError("no number"), NoteworthyError("no number")])
def test_error_that_takes_no_note_is_told_of_all_the_same(desk: Desk, error: Exception) -> None:
    """What a gate raised is told, also where nothing can be noted of it."""
    desk.claim()

    def gate(row: JobRow, tx: Any) -> bool:
        del row, tx
        raise error

    desk.engine.gate = gate

    assert desk.launch().reason == f"{type(error).__name__}: {error}"


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


@pytest.mark.parametrize("key", ["staging\\u005frunner", "\\u0073taging_runner"])
def test_key_in_escapes_is_an_attempt_too(desk: Desk, key: str) -> None:
    """Metadata in which our key is spelt with escapes may hold an attempt: nobody is started."""
    desk.break_part("rows.load", OSError("boom"))

    assert desk.launch(f'{{"{key}": {{"version": 3}}}}').ruling is Ruling.HELD
    assert desk.launch('{"staging": {"version": 3}}').ruling is Ruling.DECLINED


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


def test_what_the_host_found_counts_under_every_form_of_the_key(desk: Desk) -> None:
    """A host that found no attempt has its agent, also where it gave the key in another form."""
    desk.claim()
    rows = desk.engine.rows
    away = Failing(rows, "load", OSError("boom"), lambda job_id: job_id == desk.job_id)
    desk.use_rows(away)

    assert desk.staging.launch(str(desk.job_id), "{}").ruling is Ruling.DECLINED
    assert desk.staging.launch(str(desk.job_id)).ruling is Ruling.HELD


def test_key_of_any_text_names_no_folder_outside(desk: Desk) -> None:
    """An attempt's name, after which folders are called, holds nothing of a path."""
    row = attrs.evolve(desk.engine.rows.load(desk.job_id), id="../org/repo#7 é" + "x" * 99)

    name = desk.staging.runner.new_attempt(row).attempt_id

    assert re.fullmatch(r"_org_repo_7_x{52}-[0-9a-f]{12}", name)

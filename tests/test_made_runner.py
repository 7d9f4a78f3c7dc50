"""The runner behind the intercept: made once, from the environment, or not at all."""

import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest
import sqlalchemy as sa

from desk import FAILING, OFF, PASSING, Desk, Failing, under_worker
from hosts import REPO
from staging_fsm.core.jobs import STAGE
from staging_fsm.core.spec import State
from staging_fsm.drive import runner as runner_module
from staging_fsm.drive.intercept import UNSEEN, StagingIntercept
from staging_fsm.drive.rulings import Decision, Ruling
from staging_fsm.drive.runner import IN_SHADOW, StagingRunner
from staging_fsm.effects.alerts import FileAlerts
from staging_fsm.effects.processes import this_process
from staging_fsm.effects.rows import SqlRows
from staging_fsm.host.launcher import staging_intercept


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


def test_runner_without_records_is_in_the_shadow_all_the_same(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """A runner that is given no place for the records of the shadow declines and notes nothing."""
    desk.set("SHADOW", "1")
    desk.staging.runner.shadow = None
    desk.claim()
    decision = desk.launch()
    desk.staging.agent_ended(desk.job_id, opened=True)

    assert decision == Decision(Ruling.DECLINED, IN_SHADOW)
    assert decision.reason.startswith("shadow mode: ")
    assert caplog.messages == []


def test_end_of_an_agent_outside_of_the_shadow_is_left_alone(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a job that was not launched in shadow mode nothing is looked at when its agent ends."""
    desk.break_part("rows.load", OSError("boom"))
    desk.staging.agent_ended(desk.job_id, opened=True)

    assert caplog.messages == []


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


def test_claim_that_cannot_be_given_back_without_a_runner_is_in_the_log(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no runner can be made the log tells of a claim that was turned away, and of why."""
    desk.defer()
    desk.break_runner()
    with desk.staging._hold(desk.job_id):
        decision = desk.launch()

    assert decision.ruling is Ruling.TAKEN
    said = f"nobody was told of job {desk.job_id}: not launched and not queued again: "
    assert caplog.messages == [f'event="{said}ImportError: gone" error="ImportError: gone"']


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


@pytest.mark.parametrize("name", OFF)
def test_rows_are_looked_at_though_the_runner_is_switched_off(desk: Desk, name: str) -> None:
    """A host is told at its start what does not fit, though its runner is switched on later."""
    desk.write("not_before", "2026-01-31 12:00:00")
    before = desk.variables.copy()
    for setting, value in OFF[name].items():
        desk.set(setting, value)
    desk.staging = desk.new_worker()
    told = desk.alerts()
    desk.variables.clear()
    desk.variables |= before
    desk.claim()
    decision = desk.launch()

    assert told == ["configuration_invalid"]
    assert decision.ruling is Ruling.DECLINED
    assert "say the form of yours with time_format" in decision.reason


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


def test_everything_that_does_not_fit_is_told_at_once(desk: Desk) -> None:
    """Of a table that does not fit in more than one way a person is told of each at the start."""
    columns = {"repo": "project", "stage": "phase"}
    rows = SqlRows(desk.kit.store.engine, "jobs", columns)
    engine = desk.engine
    StagingIntercept.for_host(rows, engine.gate, engine.place, desk.variables)
    text = (desk.folder / "state" / "alerts.jsonl").read_text()

    assert all(f"no column '{name}'" in text for name in columns.values())


def test_intercept_of_a_runner_knows_its_stage(desk: Desk) -> None:
    """An intercept before a runner takes the jobs of that runner's stage, by the host's word."""
    runner = attrs.evolve(desk.staging.runner, stage="pre-production")
    runner.engine.gate = lambda _row, _tx: True
    staging = StagingIntercept.of(runner)
    desk.job_id = desk.kit.add("pre-production", "WI-2")
    desk.claim()

    assert staging.launch(desk.job_id).ruling is Ruling.TAKEN
    assert not staging.launch(desk.kit.add("deploy-staging", "WI-3"))


def test_host_may_look_at_its_machine_itself(desk: Desk) -> None:
    """A host's own look at the machine is the one that counts, and no other is taken."""
    desk.staging = desk.new_worker(preflight=lambda _place, _suite: "it rains")
    desk.claim()
    decision = desk.launch()

    assert (decision.ruling, "it rains" in decision.reason) == (Ruling.DECLINED, True)
    assert desk.alerts() == ["machine_unfit"]


@pytest.mark.parametrize(
    ("workspace", "ruling"), [("worktree", Ruling.DECLINED), ("in-place", Ruling.TAKEN)]
)
def test_state_folder_within_the_repository_is_none_for_checkouts(
    desk: Desk, workspace: str, ruling: Ruling
) -> None:
    """A runner whose checkouts would lie in the repository itself takes no job for one."""
    desk.set("STATE_DIR", str(desk.engine.place(desk.row()).repository / ".staging"))
    desk.suites_file = PASSING.replace("in-place", workspace)
    desk.staging = desk.new_worker()
    desk.claim()
    decision = desk.launch()

    assert decision.ruling is ruling
    assert ("lies within the repository" in decision.reason) == (ruling is Ruling.DECLINED)


def test_room_is_looked_for_as_a_log_may_take(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is asked for room for the whole log of a run, its artifact, and its own files.

    Where these are is said by the variables of whoever runs the suite.
    """
    desk.set("LOG_MAX_BYTES", "7654321")
    desk.suites_file = PASSING + "file_max_bytes = 99999999\n"
    asked: list[object] = []
    monkeypatch.setattr(runner_module, "unfit", lambda _state, *about: asked.append(about))
    desk.claim()
    desk.launch()
    place = desk.engine.place(desk.row())

    assert asked == [(desk.variables, 7654321, place.repository, place.artifact_dir)]


def test_answer_is_given_though_nothing_can_be_loaded_any_more(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that cannot even load the log, for want of descriptors say, gets its answer."""
    desk.claim()
    desk.break_runner()
    monkeypatch.setitem(sys.modules, "staging_fsm.effects.journal", None)

    assert desk.launch("{}").ruling is Ruling.DECLINED


def test_process_that_is_forked_before_there_is_a_runner_waits_for_nobody(desk: Desk) -> None:
    """A fork while another thread makes the first runner, or has a job in hand, leaves no lock."""
    staging = StagingIntercept(desk.staging.rows, lambda: desk.staging.runner, desk.variables)
    desk.claim()
    with staging._lock:
        staging._driving.add(desk.job_id)
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            code = 1
            try:
                code = 0 if staging.launch(desk.job_id).reason.startswith("ADVANCED") else 2
            finally:
                os._exit(code)
    _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert desk.state() is State.ADVANCED


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


def test_suites_file_is_read_at_each_launch(desk: Desk) -> None:
    """What an operator writes into the suites file counts from the next launch on."""
    path = desk.folder / "suites.toml"
    desk.set("SUITES_FILE", str(path))
    staging = staging_intercept(desk.kit.store, desk.kit.host.clock, desk.variables)
    seen = []
    for number, text in enumerate((PASSING, FAILING, PASSING), 1):
        path.write_text(text)
        desk.job_id = desk.kit.add("deploy-staging", f"WI-{number}0")
        desk.claim()
        staging.launch(desk.job_id)
        seen.append(desk.state())

    assert seen == [State.ADVANCED, State.ROLLED_BACK, State.ADVANCED]


def test_suite_gets_a_variable_as_it_is_today(desk: Desk) -> None:
    """A key that is exchanged in a running host is handed on, and masked, in its new value."""
    desk.suites_file = (
        '[default]\ncommand = ["sh", "-c", "echo $API_KEY"]\nenvironment = ["API_KEY"]\n'
        'workspace = "in-place"\n'
    )
    desk.variables["API_KEY"] = "the-old-value"
    desk.staging = desk.new_worker()
    desk.variables["API_KEY"] = "the-new-value"
    desk.claim()
    desk.launch()
    (log,) = (desk.folder / "state" / "runs").glob("*/output.log")
    artifact = desk.snapshot().artifact
    assert artifact is not None
    text = Path(artifact.path).read_text()

    assert log.read_text() == "the-new-value\n"
    assert "-value" not in text


def test_every_attempt_of_a_worker_has_a_word_of_its_own(desk: Desk) -> None:
    """Two attempts of one process share no name, and so no folder, whatever their jobs' keys."""
    runner = StagingRunner.for_host(
        desk.engine.rows, desk.engine.gate, desk.engine.place, desk.variables, STAGE
    )

    assert len({runner.new_id() for _ in range(3)}) == 3


def test_address_of_alerts_is_the_one_of_today(desk: Desk) -> None:
    """An address that is put right in the settings of a running host is the one that is used."""
    runner = StagingRunner.for_host(
        desk.engine.rows, desk.engine.gate, desk.engine.place, desk.variables, STAGE
    )
    assert isinstance(runner.engine.alerts, FileAlerts)
    seen = []
    for address in ("json://old", "json://new"):
        desk.set("ALERT_URLS", address)
        seen.append(runner.engine.alerts._urls())

    assert seen == [("json://old",), ("json://new",)]


def test_no_variables_are_not_those_of_the_process(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mapping that holds nothing, as yet, switches the runner off, whatever the environment."""
    monkeypatch.setenv("ORCH_STAGING_RUNNER_ENABLED", "1")
    monkeypatch.setenv("ORCH_STAGING_RUNNER_REPOS", REPO)
    engine, variables = desk.engine, dict[str, str]()
    staging = StagingIntercept.for_host(engine.rows, engine.gate, engine.place, variables)
    desk.claim()

    assert staging.launch(desk.job_id).reason == "the runner is switched off"
    variables |= desk.variables | {"ORCH_STAGING_RUNNER_REPOS": "another"}
    assert staging.launch(desk.job_id).reason == f"repository {REPO} is not in scope"


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

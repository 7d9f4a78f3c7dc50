"""What is kept and told of an attempt: its row, its artifact, the log, alerts."""

import json
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from desk import FAILING, PASSING, TOOL_ERROR, Desk, Failing, Heard
from hosts import REPO
from staging_fsm.core.errors import (
    TransitionRefusedError,
)
from staging_fsm.core.evidence import Counts, Evidence, EvidenceState
from staging_fsm.core.jobs import JobRow, Place
from staging_fsm.core.outcome import REASONS, Reason, RunFacts, Supervision, judge
from staging_fsm.core.ports import AlertKind, RunReport
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import Effect, Event, State
from staging_fsm.drive.engine import HAND_OVER_TRIES
from staging_fsm.drive.rulings import Decision, Ruling
from staging_fsm.effects.files import sha256_of_file, sha256_of_text
from staging_fsm.effects.processes import this_process
from staging_fsm.host.contract.gate import ARTIFACT_NAME
from staging_fsm.host.launcher import Host, finish_job, launch_job
from staging_fsm.host.settings import load_host_settings
from staging_fsm.host.store import Job
from staging_fsm.host.worker import Worker

OF_ANOTHER = "the gate opened, but the artifact it read is not the one that was written"


def test_artifact_shows_no_secret_of_the_command(desk: Desk) -> None:
    """What the command says after a name that looks secret is not in what everybody may read."""
    desk.suites_file = PASSING.replace('["true"]', '["true", "--token=a-very-secret-word"]')
    desk.claim()
    desk.launch()
    text = (desk.engine.place(desk.row()).artifact_dir / ARTIFACT_NAME).read_text()

    assert "a-very-secret-word" not in text
    assert "--token=" in text


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


@pytest.mark.parametrize("stage", ["deploy-staging", "testing"])
def test_agent_that_cannot_be_started_is_told_of(desk: Desk, stage: str) -> None:
    """A job that nobody can work on is not left in work in silence, on whatever stage it is."""
    desk.set("ENABLED", "0")
    said = {"ORCH_AGENT_COMMAND": "/nowhere/agent", "ORCH_LOG_DIR": str(desk.folder / "agents")}
    settings = load_host_settings(said)
    host = attrs.evolve(desk.kit.host, staging=desk.staging, settings=settings)
    job_id = desk.kit.add(stage, "WI-2")
    heard = Heard()
    desk.engine.alerts = heard
    Worker(host, str(this_process())).run_one(job_id)

    [(kind, about, text, _)] = heard.alerts
    assert (kind, about) == (AlertKind.INTERNAL_ERROR, job_id)
    assert "could not be launched for WI-2, and the job stays claimed until this worker" in text
    assert "/nowhere/agent" in text
    assert desk.kit.store.job(job_id).status == "running"


@pytest.mark.parametrize("status", ["cancelled", "done"])
def test_agent_that_comes_after_the_end_of_its_job_is_told_of(desk: Desk, status: str) -> None:
    """A person who ended a job is told of what its agent left, and not to queue the job again."""
    job_id, heard = desk.kit.add("testing", "WI-2"), Heard()
    host = attrs.evolve(desk.kit.host, staging=desk.staging)
    desk.engine.alerts = heard

    def launch(host: Host, job: Job) -> None:
        desk.kit.set_status(job.id, status)
        finish_job(host, job, 0)

    Worker(host, str(this_process()), launch).run_one(job_id)

    [(kind, about, text, _)] = heard.alerts
    assert (kind, about) == (AlertKind.INTERNAL_ERROR, job_id)
    assert "WI-2 has not moved: its job had ended before agent agent did" in text
    assert "queued" not in text
    assert desk.kit.store.job(job_id).status == status


def test_agent_that_nobody_can_end_is_told_of(desk: Desk) -> None:
    """A job that waits for the end of a dead worker's agent does not wait in silence."""
    job_id, gone = desk.kit.add("testing", "WI-2"), attrs.evolve(this_process(), start=1)
    assert desk.kit.store.claim_next(desk.kit.host.clock.now(), str(gone), job_id) is not None
    host, heard = attrs.evolve(desk.kit.host, staging=desk.staging), Heard()
    desk.engine.alerts = heard
    Worker(host, str(this_process()), end_agent=lambda *_: False).requeue_abandoned()

    [(kind, about, text, _)] = heard.alerts
    assert (kind, about) == (AlertKind.INTERNAL_ERROR, job_id)
    assert text == f"WI-2 waits: the agent that worker {gone} left stays alive, end it by hand"
    assert desk.kit.store.job(job_id).status == "running"


def test_each_move_is_logged_and_watched_once_it_is_durable(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """Every move is one line of the log and one call of who watches, in the order of the trail.

    The line tells what the row keeps of that very move: why it was made, and its link.
    """
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
        words = move.reason if " " not in move.reason else f'"{move.reason}"'
        assert line.endswith(f" reason={words} link={move.link}")


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
    report = RunReport(facts, 1.5, "a detail\nof two lines", "/its/log", "0" * 64, 40, 2)
    desk.engine.suites = Reporting(desk.engine.suites, report)
    desk.claim()
    desk.launch()
    attempt = desk.snapshot()
    run, suite = attempt.runs[0], attempt.bound_plan.suite
    outcome = judge(facts, suite.judging_policy())

    assert (run.reason, run.rule) == (outcome.reason, outcome.rule)
    assert (run.exit_code, run.signal) == (facts.exit_code, facts.signal)
    assert (run.evidence, run.counts) == (facts.evidence.state, facts.evidence.counts)
    assert (run.duration_seconds, run.detail) == (1.5, "a detail\nof two lines")
    kept = (run.log, run.log_sha256, run.log_bytes, run.log_dropped_bytes)
    assert kept == ("/its/log", "0" * 64, 40, 2)


def test_run_whose_supervisor_was_killed_names_its_log(desk: Desk) -> None:
    """Of a run that nobody vouches for the row names the output: it may say what happened."""
    desk.suites_file = PASSING.replace(
        '["true"]', '["sh", "-c", "echo last words; kill -KILL $PPID; exec sleep 600"]'
    )
    desk.claim()
    desk.launch()
    run = desk.snapshot().last_run

    assert (run.reason, run.log_sha256) == (Reason.SUPERVISOR_LOST, None)
    assert run.log is not None
    assert Path(run.log).name == "output.log"


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


def test_attempt_that_failed_closed_says_what_went_wrong_in_detail(desk: Desk) -> None:
    """The alert says what the last run's own words are, not only of which kind its fault is."""
    desk.suites_file = PASSING.replace('"true"', '"no-such-command"')
    desk.claim()
    desk.launch()
    told = json.loads((desk.folder / "state" / "alerts.jsonl").read_text())

    assert told["text"].endswith(
        " not a verdict on the code. Detail: no-such-command: No such file or directory"
    )


def test_alert_tells_of_the_run_that_was_the_last(desk: Desk) -> None:
    """An attempt whose runs were lost for different reasons fails closed for the last of them."""
    been, heard = desk.folder / "been", Heard()
    desk.suites_file = TOOL_ERROR.replace(
        "exit 126", f"test -e {been} && kill $$; > {been}; exit 126"
    )
    for _ in range(2):
        desk.engine.alerts = heard
        desk.claim()
        desk.launch()
    [(kind, job_id, text, attempt_id)] = heard.alerts

    assert desk.snapshot().reasons == (Reason.TOOL_EXIT_CODE, Reason.KILLED_BY_SIGNAL)
    assert (kind, job_id) == (AlertKind.FAILED_CLOSED, desk.job_id)
    assert f"in run 2: {REASONS[Reason.KILLED_BY_SIGNAL].sentence}" in text
    assert attempt_id == desk.snapshot().attempt_id


def test_artifact_shows_what_a_run_printed_before_it_was_lost(desk: Desk) -> None:
    """The output of a run of which there is no report is shown: it may say why there is none."""
    desk.set("INFRA_RETRIES", "0")
    desk.suites_file = PASSING.replace('["true"]', '["echo", "last words"]')
    whole = desk.engine.suites

    class Losing(Failing):
        """Suites whose report is lost once it is there."""

        def await_report(self, run_id: str) -> RunReport:
            whole.await_report(run_id)
            message = "boom"
            raise OSError(message)

    desk.engine.suites = Losing(whole, "", OSError())
    desk.claim()
    desk.launch()
    text = (desk.engine.place(desk.row()).artifact_dir / ARTIFACT_NAME).read_text()

    assert (desk.state(), desk.snapshot().last_run.log) == (State.FAILED_CLOSED, None)
    assert "\n    last words\n" in text


def test_every_problem_of_a_declined_launch_is_kept(desk: Desk) -> None:
    """However many settings are wrong, row and answer name each, and so does the next launch's."""
    names = ("INFRA_RETRIES", "BACKOFF_SECONDS", "TIMEOUT_SECONDS", "KILL_GRACE_SECONDS")
    for name in names:
        desk.set(name, "a value that is none at all")
    reason = desk.launch().reason

    assert len(reason) > 250
    assert all(f"ORCH_STAGING_RUNNER_{name}" in reason for name in names)
    assert desk.snapshot().history[-1].reason == desk.launch().reason == reason


ERRORS: Final = [OSError("boom"), RuntimeError("boom")]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_alert_that_fails_is_logged(
    desk: Desk, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """What an alert that fails was about stands in the log, and the attempt goes on."""
    desk.set("INFRA_RETRIES", "0")
    desk.suites_file = TOOL_ERROR
    desk.break_part("alerts.send", error)
    desk.claim()
    desk.launch()

    assert desk.state() is State.FAILED_CLOSED
    assert caplog.messages == [
        (
            f'event="an alert was lost" alert={AlertKind.FAILED_CLOSED} job={desk.job_id}'
            f' error="{type(error).__name__}: boom"'
        )
    ]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_what_is_owed_is_delivered_after_each_move_and_stops_nothing(
    desk: Desk, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """After a move is told of, alerts that are owed are tried again, come what may."""
    heard: list[object] = []

    def is_tried() -> bool:
        heard.append("delivery")
        return True

    engine = desk.engine
    engine.watch = lambda _row, snapshot: heard.append(snapshot.state)
    engine.alerts = Failing(engine.alerts, "deliver", error, is_tried)
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
    told = f'event="alerts were not delivered" error="{type(error).__name__}: boom"'
    assert caplog.messages == [told] * 3


def test_what_is_owed_is_delivered_whatever_a_watcher_does(desk: Desk) -> None:
    """A watcher that cannot look on keeps no alert that is owed from being tried again."""
    heard: list[object] = []
    engine = desk.engine

    def is_tried() -> bool:
        heard.append("delivery")
        return True

    def broken(_row: JobRow, _snapshot: Snapshot) -> None:
        message = "the terminal is closed"
        raise OSError(message)

    engine.watch = broken
    engine.alerts = Failing(engine.alerts, "deliver", OSError(), is_tried)
    desk.claim()
    desk.launch()

    assert len(heard) == len(desk.snapshot().history)


def test_artifact_shows_the_output_of_the_run_that_was_judged(desk: Desk) -> None:
    """After a deferral the artifact ends with what the last run printed, and not the first one."""
    been = desk.folder / "been"
    told = f"test -e {been} && echo of the second && exit; echo of the first; touch {been}; "
    desk.suites_file = TOOL_ERROR.replace("exit 126", f"{told}exit 126")
    for _ in range(2):
        desk.claim()
        desk.launch()
    text = (desk.engine.place(desk.row()).artifact_dir / ARTIFACT_NAME).read_text()

    assert "\n    of the second\n" in text
    assert "\n    of the first\n" not in text


def test_artifact_shows_no_output_of_a_run_that_was_not_judged(desk: Desk) -> None:
    """Where the last run printed nothing, the artifact shows nothing, whatever one before said."""
    been = desk.folder / "been"
    told = f"test -e {been} || echo of the first; touch {been}; "
    desk.suites_file = TOOL_ERROR.replace("exit 126", f"{told}exit 126")
    for _ in range(2):
        desk.claim()
        desk.launch()
    text = (desk.engine.place(desk.row()).artifact_dir / ARTIFACT_NAME).read_text()

    assert desk.state() is State.FAILED_CLOSED
    assert "\n    of the first\n" not in text


@pytest.mark.parametrize(
    ("suites", "meddling", "told"),
    [
        (
            FAILING,
            0,
            "the gate opened against the verdict: "
            + str(
                TransitionRefusedError(
                    State.VERDICT_FAILED, Event.GATE_OPENED, [Event.GATE_REFUSED]
                )
            ),
        ),
        (PASSING, HAND_OVER_TRIES, OF_ANOTHER),
        (FAILING, 1, OF_ANOTHER),
    ],
    ids=["of a failed suite", "of another artifact", "of another artifact in the end"],
)
def test_gate_that_contradicts_the_verdict_is_told_in_words(
    desk: Desk, suites: str, meddling: int, told: str
) -> None:
    """An attempt that its gate contradicts stays where it is, and the alert says how at last."""
    tries = iter(range(HAND_OVER_TRIES)[::-1])
    heard = Heard()

    def gate(row: JobRow, tx: Any) -> bool:  # noqa: ARG001  # the host would move the item by it
        if next(tries) < meddling:
            artifact = desk.engine.place(row).artifact_dir / ARTIFACT_NAME
            artifact.write_text("---\nstaging_status: SUCCESS\n---\n")
        return True

    desk.suites_file = suites
    desk.engine.gate, desk.engine.alerts = gate, heard
    desk.claim()
    desk.launch()

    assert desk.snapshot().history[-1].row.effect is Effect.HAND_OVER
    kind = AlertKind.GATE_CONTRADICTED_VERDICT
    assert heard.alerts == [(kind, desk.job_id, told, desk.snapshot().attempt_id)]


@pytest.mark.parametrize(
    "statement", ["DELETE FROM jobs WHERE id = 1", "UPDATE jobs SET metadata = '{}' WHERE id = 1"]
)
def test_gate_that_takes_its_job_out_of_its_row_is_told_of(desk: Desk, statement: str) -> None:
    """Where a gate removes its row, or our key in it, all is undone and a person learns of it."""
    asked: list[int] = []
    heard = Heard()

    def gate(row: JobRow, tx: Any) -> bool:
        asked.append(row.id)
        tx.exec_driver_sql("INSERT INTO repositories (name, path) VALUES ('next', '/next')")
        tx.exec_driver_sql(statement)
        return True

    desk.engine.gate, desk.engine.alerts = gate, heard
    desk.claim()
    decision = desk.launch()

    assert (decision.ruling, desk.state()) == (Ruling.TAKEN, State.VERDICT_PASSED)
    assert asked == [desk.job_id]
    ((kind, job_id, text, attempt_id),) = heard.alerts
    assert (kind, job_id) == (AlertKind.GATE_CONTRADICTED_VERDICT, desk.job_id)
    assert attempt_id == desk.snapshot().attempt_id
    assert "the gate removed the row of its own job, or wrote over our key" in text
    with desk.kit.store.transaction() as tx:
        assert tx.exec_driver_sql("SELECT 1 FROM repositories WHERE name = 'next'").all() == []


@pytest.mark.parametrize(
    ("suites", "state"), [(PASSING, State.ADVANCED), (FAILING, State.VERDICT_FAILED)]
)
def test_gate_that_ends_its_transaction_is_asked_once(
    desk: Desk, suites: str, state: State
) -> None:
    """What a gate has committed cannot be undone: against the verdict it is told, not repeated."""
    asked: list[int] = []

    def gate(row: JobRow, tx: Any) -> bool:
        asked.append(row.id)
        with tx.connection.driver_connection as database:
            database.execute("UPDATE jobs SET status = 'done'")
        return True

    desk.suites_file, desk.engine.gate = suites, gate
    desk.claim()
    decision = desk.launch()
    desk.staging.recover()

    assert (decision.ruling, asked, desk.state()) == (Ruling.TAKEN, [desk.job_id], state)
    told = [] if state is State.ADVANCED else [AlertKind.GATE_CONTRADICTED_VERDICT]
    assert desk.alerts() == told


@pytest.mark.parametrize("suites", [FAILING, TOOL_ERROR], ids=["failed", "exhausted"])
def test_artifact_that_is_written_over_is_written_again(desk: Desk, suites: str) -> None:
    """An artifact of somebody else at the gate is replaced, whatever the verdict it stands for."""
    written_over: list[bool] = []

    def gate(row: JobRow, tx: Any) -> bool:  # noqa: ARG001  # the host would move the item by it
        if not written_over:
            written_over.append(True)
            artifact = desk.engine.place(row).artifact_dir / ARTIFACT_NAME
            artifact.write_text("---\nstaging_status: FAILED\n---\nof somebody else\n")
        return False

    desk.set("INFRA_RETRIES", "0")
    desk.suites_file, desk.engine.gate = suites, gate
    desk.claim()
    desk.launch()
    ended = desk.snapshot()

    assert ended.is_terminal
    assert ended.artifact is not None
    assert sha256_of_file(Path(ended.artifact.path)) == ended.artifact.sha256


@pytest.mark.parametrize("suites", [FAILING, TOOL_ERROR], ids=["failed", "exhausted"])
def test_text_that_took_the_artifacts_place_is_not_vouched_for(desk: Desk, suites: str) -> None:
    """A row names the digest of what was written, and not of what somebody made of it at once."""
    whole, written = desk.engine.artifacts, list[str]()

    class Overwritten(Failing):
        """Artifacts that somebody writes over as soon as they are there."""

        def write(self, folder: Path, text: str) -> Path:
            """Write one."""
            path = whole.write(folder, text)
            written.append(text)
            path.write_text("---\nstaging_status: FAILED\n---\nof somebody else\n")
            return path

    desk.set("INFRA_RETRIES", "0")
    desk.suites_file = suites
    desk.engine.artifacts = Overwritten(whole, "", OSError())
    desk.claim()
    desk.launch()
    kept = desk.snapshot().artifact

    assert desk.snapshot().is_terminal
    assert kept is not None
    assert kept.sha256 == sha256_of_text(written[-1])
    assert kept.sha256 != sha256_of_file(Path(kept.path))


def test_run_of_too_few_tests_says_how_many_are_missing(desk: Desk) -> None:
    """The detail of a run that executed too few tests says how many it did, and should have."""
    desk.suites_file = """
        [default]
        command = [
            "sh", "-c", 'echo "<testsuite>$0$1</testsuite>" > $STAGING_REPORT_DIR/r',
            "<testcase name='a'/>", "<testcase name='b'><skipped/></testcase>",
        ]
        workspace = "in-place"
        report = "r"
        min_tests = 3
    """
    desk.claim()
    desk.launch()
    run, plan = desk.snapshot().last_run, desk.snapshot().bound_plan

    assert run.reason is Reason.TOO_FEW_TESTS
    assert run.detail == plan.suite.shortfall(1)


def test_shortfall_is_told_before_anything_else(desk: Desk) -> None:
    """A run of too few tests says how many are missing, whatever else there was to say of it."""
    evidence = Evidence(EvidenceState.READ, Counts(1, 0, 0, 0))
    facts = RunFacts(
        exit_code=0, log_complete=True, supervision=Supervision.SOUND, evidence=evidence
    )
    desk.engine.suites = Reporting(desk.engine.suites, RunReport(facts, 1.0, "another thing"))
    desk.suites_file = PASSING + 'report = "r"\nmin_tests = 3\n'
    desk.claim()
    desk.launch()

    assert desk.snapshot().last_run.reason is Reason.TOO_FEW_TESTS
    assert desk.snapshot().last_run.detail == desk.snapshot().bound_plan.suite.shortfall(1)


def test_artifact_shows_the_command_of_the_run_that_was_judged(desk: Desk) -> None:
    """The command is shown as it was masked for the last run, and not for one before it."""
    asked: list[str] = []
    shown = desk.engine.suites.shown_command

    def watched(run_id: str, suite: Any) -> tuple[str, ...]:
        asked.append(run_id)
        return shown(run_id, suite)

    desk.engine.suites.shown_command = watched  # type: ignore[method-assign]  # to look on
    desk.suites_file = TOOL_ERROR
    for _ in range(2):
        desk.claim()
        desk.launch()

    assert desk.state() is State.FAILED_CLOSED
    assert asked == [f"{desk.snapshot().attempt_id}.2"]


@pytest.mark.parametrize("part", ["suites.log_tail", "place"])
def test_budget_that_is_spent_is_told_of_before_the_artifact_is_made(desk: Desk, part: str) -> None:
    """An attempt that cannot be handed over now is told of all the same: nobody else will."""
    desk.set("INFRA_RETRIES", "0")
    desk.suites_file = TOOL_ERROR
    heard = Heard()
    desk.engine.alerts = heard
    desk.claim()
    if part == "place":
        place, asked = desk.engine.place, list[JobRow]()

        def lost(row: JobRow) -> Place:
            asked.append(row)
            if len(asked) > 2:
                message = "no such share"
                raise OSError(message)
            return place(row)

        desk.engine.place = lost
    else:
        desk.break_part(part, OSError("boom"))
    desk.launch()

    assert desk.state() is State.EXHAUSTED
    assert heard.alerts[0][0] is AlertKind.FAILED_CLOSED


def test_launch_answers_with_what_became_of_the_attempt(desk: Desk) -> None:
    """The answer to a launch names the state that the attempt came to, and why."""
    desk.claim()

    assert desk.launch() == Decision(Ruling.TAKEN, f"{State.ADVANCED}: the gate opened")

"""Attempts that exist already: the next run, the kill switch, two workers, forks, recovery."""

import contextlib
import errno
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import attrs
import pytest
import sqlalchemy as sa

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
    under_worker,
)
from forked import answer_of_fork
from hosts import git
from staging_fsm.core.errors import ConfigInvalidError, SnapshotRefusedError, StaleSnapshotError
from staging_fsm.core.evidence import EvidenceState
from staging_fsm.core.jobs import JobRow, Place
from staging_fsm.core.outcome import Reason
from staging_fsm.core.ports import AlertKind, RunCondition
from staging_fsm.core.snapshot import ADOPTIONS_MAX, Run, Snapshot
from staging_fsm.core.spec import Event, State
from staging_fsm.core.suites import SuitesConfig
from staging_fsm.core.times import format_time, parse_time
from staging_fsm.drive import recovery
from staging_fsm.drive.intercept import UNSEEN
from staging_fsm.drive.recovery import SILENCE_SECONDS, put_back
from staging_fsm.drive.rulings import Decision, Ruling
from staging_fsm.effects.clock import SystemClock
from staging_fsm.effects.processes import ProcessIdentity, identify, this_process
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.effects.worker_lock import has_ended
from staging_fsm.host.launcher import Host, launch_job, staging_intercept
from staging_fsm.host.store import Job, SqlHostStore
from staging_fsm.host.worker import Worker


class StoppedClock(SystemClock):
    """A clock that stands still."""

    def now(self) -> datetime:
        """Return one moment that is past."""
        return datetime(2026, 1, 1, tzinfo=UTC)


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


@pytest.mark.parametrize("fit", [True, False])
def test_invalid_configuration_between_two_runs_is_a_counted_tool_error(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, *, fit: bool
) -> None:
    """A deferred attempt never goes to the LLM by a broken configuration: it costs a run."""
    desk.defer()
    desk.set("INFRA_RETRIES", "many")
    if not fit:
        fill_the_disk(monkeypatch)

    decision = desk.launch()

    assert decision.ruling is Ruling.TAKEN
    snapshot = desk.snapshot()
    assert snapshot.state is State.FAILED_CLOSED
    assert snapshot.reasons == (Reason.TOOL_EXIT_CODE, Reason.CONFIGURATION_INVALID)
    assert desk.alerts() == ["configuration_invalid", "failed_closed"]


def test_attempt_stays_bound_to_its_plan_between_two_runs(desk: Desk) -> None:
    """A setting, a suite or a commit that comes between two runs is for the next attempt."""
    desk.suites_file = '[default]\ncommand = ["sh", "-c", "test -e new || exit 126"]\n'
    desk.claim()
    desk.launch()
    bound = desk.snapshot().bound_plan
    (desk.kit.repository / "new").write_text("")
    git(desk.kit.repository, "add", "new")
    git(desk.kit.repository, "commit", "--quiet", "--message", "new")
    desk.set("INFRA_RETRIES", "9")
    desk.suites_file = PASSING
    desk.claim()
    desk.launch()

    assert desk.snapshot().plan == bound
    assert desk.snapshot().reasons == (Reason.TOOL_EXIT_CODE, Reason.TOOL_EXIT_CODE)
    assert desk.state() is State.FAILED_CLOSED


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


@pytest.mark.parametrize("error", [OSError, RuntimeError])
def test_machine_that_cannot_be_looked_at_between_two_runs_costs_one(
    desk: Desk, error: type[Exception]
) -> None:
    """A machine that cannot even be looked at costs a run: nothing is tried for ever, uncounted."""
    desk.defer()

    def broken(*_: object) -> str | None:
        message = "no such share"
        raise error(message)

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

    assert desk.raw_row() == before
    assert decision == Decision(Ruling.TAKEN, f"ADVANCED: {desk.snapshot().history[-1].reason}")


def test_run_that_one_worker_adopts_again_and_again_is_given_up(desk: Desk) -> None:
    """A run that a living worker cannot finish is counted as lost in the end, like any other."""
    desk.claim()
    rows = desk.engine.rows
    desk.use_rows(
        Failing(rows, "save", OSError("boom"), lambda _id, saved, *_: saved.history[-1].id == "T03")
    )
    desk.launch()
    for _ in range(ADOPTIONS_MAX + 1):
        desk.staging.recover()
    events = [move.row.event for move in desk.snapshot().history]

    assert events.count(Event.RUN_ADOPTED) == ADOPTIONS_MAX
    assert desk.snapshot().reasons == (Reason.WORKER_LOST,)
    assert desk.state() is State.DEFERRED


def test_recovery_waits_for_a_store_that_is_away(desk: Desk) -> None:
    """Where the rows cannot be read nothing is recovered, somebody is told, and nothing raised."""
    under_worker(desk, str(attrs.evolve(this_process(), start=1)))
    rows = desk.engine.rows
    desk.break_part("rows.unfinished", OSError("boom"))

    assert desk.staging.recover() == []
    assert desk.alerts() == ["internal_error", "internal_error"]

    desk.use_rows(rows)
    assert [row.id for row in desk.staging.recover()] == [desk.job_id]


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


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("ENABLED", "0", "the runner was switched off between two runs"),
        ("REPOS", "bank", "repository shop left the scope"),
    ],
)
def test_early_launch_with_the_switch_thrown_leads_to_the_llm(
    desk: Desk, setting: str, value: str, reason: str
) -> None:
    """The kill switch is heard before the wait is: an attempt that waits is let go at once."""
    desk.set("RETRY_BACKOFF_SECONDS", "600")
    desk.set("RETRY_BACKOFF_MAX_SECONDS", "900")
    desk.suites_file = TOOL_ERROR
    desk.claim()
    desk.launch()
    desk.set(setting, value)

    assert desk.state() is State.DEFERRED
    assert desk.launch().reason == reason
    assert desk.state() is State.LLM_FALLBACK


@pytest.mark.parametrize("broken", ["machine", "configuration"])
def test_early_launch_where_nothing_can_run_costs_no_run(desk: Desk, broken: str) -> None:
    """An attempt that still has to wait is not asked whether it could run now."""
    desk.set("RETRY_BACKOFF_SECONDS", "600")
    desk.suites_file = TOOL_ERROR
    desk.claim()
    desk.launch()
    before = desk.snapshot()
    if broken == "machine":
        desk.staging.runner.preflight = lambda *_: "there is no room"
    else:
        desk.set("INFRA_RETRIES", "many")
    desk.launch()

    assert desk.snapshot() == before


#: In a thousand seconds every wait is over.
LONGEST_WAIT_LOOKS: Final = 1_000_000_000


class SlowClock(SystemClock):
    """A clock by which a microsecond passes each time that it is looked at."""

    looks: int = 0

    def now(self) -> datetime:
        """Return the time of day."""
        self.looks += 1
        return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(microseconds=self.looks)


@pytest.mark.parametrize("runs", [1, 2, 3])
def test_wait_is_counted_from_when_it_is_decided(desk: Desk, runs: int) -> None:
    """A wait is the budget's for this attempt and run, to the microsecond, from its decision on."""
    desk.set("RETRY_BACKOFF_SECONDS", "100")
    desk.set("INFRA_RETRIES", "3")
    desk.suites_file = TOOL_ERROR
    desk.engine.clock = clock = SlowClock()
    desk.claim()
    for _ in range(runs):
        desk.launch()
        clock.looks += LONGEST_WAIT_LOOKS
    snapshot = desk.snapshot()
    seconds = snapshot.bound_plan.budget.delay_seconds(snapshot.attempt_id, runs)
    due = parse_time(str(snapshot.next_run_at)) - timedelta(seconds=seconds)
    deferred, ended = snapshot.history[-1].time, snapshot.history[-2].time

    assert len(snapshot.runs) == runs
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
    other = desk.new_worker()

    def overtake(row: JobRow, snapshot: Snapshot) -> None:
        if snapshot.state is State.VERDICT_PASSED:
            other.runner.engine.drive(row, snapshot)

    def watched(row: JobRow, tx: Any) -> bool:  # noqa: ARG001  # the host would move the item by it
        asked.append(True)
        return True

    desk.engine.gate, desk.engine.watch = watched, overtake
    decision = desk.launch()

    assert (decision.ruling, asked, desk.alerts()) == (Ruling.TAKEN, [True], [])
    assert (desk.state(), desk.row().status) == (State.ADVANCED, "done")


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


@pytest.mark.parametrize("living", [True, None])
def test_attempt_of_a_worker_that_may_live_is_left_to_it(
    desk: Desk,
    living: bool | None,  # noqa: FBT001  # pytest passes it by name
) -> None:
    """An attempt whose worker lives, or might, is taken by it alone, at launch and at recovery."""
    here = this_process()
    scope = here.scope if living else "elsewhere:boot:1"
    worker = str(ProcessIdentity(scope, 1 if living else 7, here.start))
    under_worker(desk, worker)
    desk.staging.runner.liveness = lambda _worker: living
    before = desk.raw_row()

    decision = desk.launch()

    assert decision == Decision(Ruling.TAKEN, f"worker {worker} has it")
    assert desk.staging.recover() == []
    assert desk.raw_row() == before


def test_attempt_of_a_worker_that_cannot_be_looked_at_is_left_to_it(desk: Desk) -> None:
    """Where nobody can look whether a worker lives it passes for no dead one: nothing is moved."""

    def look(_worker: str) -> bool:
        raise OSError(errno.EMFILE, "Too many open files")

    here = this_process()
    under_worker(desk, str(ProcessIdentity(here.scope, 1, here.start)))
    desk.staging.runner.liveness = look
    before = desk.raw_row()

    decision = desk.launch()
    recovered = desk.staging.recover()

    assert (decision.ruling, recovered) == (Ruling.HELD, [])
    assert desk.raw_row() == before
    assert {*desk.alerts()} == {"internal_error"}


def test_deferral_that_is_queued_is_left_to_its_claimant(desk: Desk) -> None:
    """A deferred job that is queued, due or not, is none of recovery's: any worker may claim it."""
    desk.suites_file = TOOL_ERROR
    desk.claim()
    desk.launch()
    before = desk.raw_row()
    assert before["status"] == "queued"

    assert desk.staging.recover() == []
    assert desk.raw_row() == before


def test_deferral_of_the_longest_wait_is_left_waiting(desk: Desk) -> None:
    """A job that waits as long as a wait can last, to the microsecond, is none of recovery's."""
    desk.set("RETRY_BACKOFF_SECONDS", "900")
    desk.set("RETRY_BACKOFF_MAX_SECONDS", "900")
    desk.suites_file = TOOL_ERROR
    desk.engine.clock = StoppedClock()
    desk.claim()
    desk.launch()

    assert desk.engine.latest_due(desk.snapshot()) == desk.row().not_before
    assert desk.staging.recover() == []


def test_deferrals_at_one_moment_are_told_apart(desk: Desk) -> None:
    """A job that was to be queued again, and was not, is queued by recovery at any due time."""
    desk.set("RETRY_BACKOFF_SECONDS", "0")
    desk.set("RETRY_BACKOFF_MAX_SECONDS", "0")
    desk.set("INFRA_RETRIES", "3")
    desk.suites_file = TOOL_ERROR
    desk.engine.clock = StoppedClock()
    desk.claim()
    desk.launch()
    desk.claim()
    desk.break_part("rows.requeue", OSError("boom"))
    desk.launch()
    before = desk.raw_row()["status"]
    staging = desk.new_worker()
    staging.runner.engine.clock = StoppedClock()

    assert (before, len(desk.snapshot().runs)) == ("running", 2)
    assert [row.id for row in staging.recover()] == [desk.job_id]
    assert desk.raw_row()["status"] == "queued"


def test_deferral_without_a_due_time_is_left_waiting(desk: Desk) -> None:
    """A deferred job that waits in the queue of a host without due times is none of recovery's."""
    desk.suites_file = TOOL_ERROR
    desk.claim()
    desk.launch()
    desk.write("not_before", None)

    assert (desk.staging.recover(), desk.alerts()) == ([], [])


def test_lost_run_is_taken_up_though_its_job_was_queued(desk: Desk) -> None:
    """An attempt whose worker died in a run is taken up, also where its job was queued again."""
    under_worker(desk, str(attrs.evolve(this_process(), start=1)))
    desk.write("status", "queued")

    assert [row.id for row in desk.staging.recover()] == [desk.job_id]
    assert desk.snapshot().reasons == (Reason.WORKER_LOST,)


def test_attempt_that_is_gone_is_none_of_recoverys(desk: Desk) -> None:
    """A job whose attempt somebody removed meanwhile is left alone, and nobody is told."""
    desk.claim()
    before = desk.raw_row()
    failed: list[object] = []
    touched = recovery.recover(desk.staging.runner, desk.job_id, lambda *it: failed.append(it))
    put_back(desk.staging.runner, desk.job_id)

    assert (touched, failed, desk.alerts(), desk.raw_row()) == (False, [], [], before)


@pytest.mark.parametrize("part", ["rows.unfinished", "rows.requeue", "no runner"])
def test_recovery_says_what_it_left(desk: Desk, part: str) -> None:
    """Whoever recovers may be told what could not be taken up and why, or that nothing could."""
    under_worker(desk, str(attrs.evolve(this_process(), start=1)))
    if part == "no runner":
        desk.break_runner()
    else:
        desk.break_part(part, OSError("boom"))
    failed: list[tuple[object, str]] = []
    touched = desk.staging.recover(lambda job_id, error: failed.append((job_id, str(error))))

    whose = desk.job_id if part == "rows.requeue" else None
    assert (touched, failed) == ([], [(whose, "gone" if part == "no runner" else "boom")])


def test_recovery_that_was_overtaken_touched_nothing(desk: Desk) -> None:
    """An attempt that somebody moves while it is taken up is not among what was recovered."""
    under_worker(desk, str(attrs.evolve(this_process(), start=1)))
    desk.break_part("rows.requeue", StaleSnapshotError(desk.job_id, "7-3f", 1))

    assert desk.staging.recover() == []
    assert desk.state() is State.DEFERRED


def test_forked_worker_has_nothing_in_hand(desk: Desk) -> None:
    """What its parent worked on when it was forked is nothing that a process works on itself."""

    def hold() -> bool:
        with desk.staging._hold(desk.job_id) as ours:
            return ours

    with desk.staging._hold(desk.job_id):
        answer = answer_of_fork(hold)

    assert answer == "True"


def test_held_job_is_queued_once_its_row_can_be_read_again(desk: Desk) -> None:
    """A deferred job that was held for its row waits until that is corrected, and is queued."""
    desk.defer()
    metadata = desk.raw_row()["metadata"]
    desk.write_metadata('{"staging_runner": {"format": 1}}')
    held = desk.launch().ruling
    desk.staging.recover()
    desk.write_metadata(metadata)
    before = desk.raw_row()["status"]
    desk.staging.recover()

    assert (held, before) == (Ruling.HELD, "running")
    assert desk.raw_row()["status"] == "queued"


@pytest.mark.parametrize("part", ["rows.load", "rows.save"])
def test_job_that_was_held_while_its_store_was_away_is_queued_by_recovery(
    desk: Desk, part: str
) -> None:
    """A deferred job that was held for want of its store is queued again once there is one."""
    desk.defer()
    rows = desk.engine.rows
    desk.break_part(part, OSError("boom"))
    held = desk.launch('{"staging_runner": {}}').ruling
    desk.use_rows(rows)
    before = desk.raw_row()["status"]
    desk.staging.recover()

    assert (held, before) == (Ruling.HELD, "running")
    assert desk.raw_row()["status"] == "queued"


def test_forked_worker_owes_no_job_that_its_parent_has_to_give_back(desk: Desk) -> None:
    """A process that was just forked gives back no job for its parent, which does so itself."""
    desk.defer()
    with desk.staging._hold(desk.job_id):
        rows = desk.engine.rows
        desk.break_part("rows.load", OSError("boom"))
        desk.launch()
        desk.use_rows(rows)
    desk.kit.store.engine.dispose()  # no connection is for two processes
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        try:
            desk.staging.recover()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    before = desk.raw_row()["status"]
    desk.staging.recover()

    assert (before, desk.raw_row()["status"]) == ("running", "queued")


@pytest.mark.parametrize("use", ["launch", "cancel"])
def test_forked_worker_has_its_own_name(desk: Desk, use: str) -> None:
    """After a fork an intercept drives under the name of who uses it, and waits for nobody.

    That is a worker of whom other containers know when it has ended, too.
    """
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
    assert has_ended(StateDir(desk.folder / "state"), ProcessIdentity.parse(name))
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


def test_job_is_let_go_of_before_the_tidying_up(desk: Desk) -> None:
    """Whoever claims a job again that was just deferred need not wait for old runs to be gone."""
    answers: list[Ruling] = []

    def launch_again(_days: float, _unfinished: object) -> None:
        desk.claim()
        answers.append(desk.launch().ruling)

    desk.staging.runner.prune = launch_again
    desk.suites_file = TOOL_ERROR
    desk.claim()
    desk.launch()

    assert answers == [Ruling.TAKEN]
    assert desk.state() is State.FAILED_CLOSED


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


@pytest.mark.parametrize("metadata", ['{"staging_runner": {"format": 1}}', '{"staging_runner": '])
def test_nothing_is_removed_while_a_row_is_refused(desk: Desk, metadata: str) -> None:
    """While a row cannot be read, nobody knows what it needs, and nothing is removed."""
    removed: list[object] = []
    desk.staging.runner.prune = lambda _days, unfinished: removed.append(unfinished())
    desk.claim()
    desk.write_metadata(metadata)
    desk.staging.recover()

    assert removed == []


def test_attempt_of_a_dead_worker_is_taken_up(desk: Desk) -> None:
    """An attempt of a dead worker is taken up by the next launch: of its run nothing is known."""
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
    lost = desk.snapshot().last_run
    told = f"worker {dead} is gone"
    assert lost == Run(
        *(1, lost.started_at, lost.ended_at, Reason.WORKER_LOST, "engine"),
        detail=told,
        evidence=EvidenceState.NOT_REQUIRED,
    )


def test_worker_that_takes_up_an_attempt_queues_the_other_jobs_too(desk: Desk) -> None:
    """Of what dead workers left, attempts are taken up and agents' jobs queued, in one recovery."""
    here = this_process()
    dead = str(ProcessIdentity(here.scope, here.pid, here.start + 1))
    under_worker(desk, dead)
    host = attrs.evolve(desk.kit.host, staging=desk.staging)
    agents = desk.kit.add("testing", "WI-2")
    desk.kit.store.claim_next(host.clock.now(), dead, agents)

    Worker(host, str(here)).recover()

    assert desk.state() is State.DEFERRED
    assert desk.kit.store.job(agents).status == "queued"


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


@pytest.mark.parametrize("scene", [first, deferred])
def test_run_of_another_machine_is_left_to_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, scene: Callable[[Desk], None]
) -> None:
    """A run on another machine is neither adopted nor reaped, also where its worker is dead."""
    here = this_process()
    scene(desk)
    desk.engine.worker = str(ProcessIdentity(here.scope, here.pid, here.start + 1))
    desk.break_part("rows.save", OSError("boom"), LosesTheAnswer)
    desk.launch()
    desk.staging = desk.new_worker()
    assert desk.state() is State.RUNNING
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
            inner.extend([desk.launch(), desk.staging.recover(), desk.snapshot()])

    desk.engine.watch = watch

    assert desk.launch().ruling is Ruling.TAKEN
    assert [inner[0].ruling, inner[1], inner[2].state] == [Ruling.TAKEN, [], State.RUNNING]
    assert "this process is already working on it" in inner[0].reason
    assert desk.state() is State.ADVANCED


def test_job_is_looked_for_and_noted_in_one_step(desk: Desk) -> None:
    """Between a look at what this process has in hand and its note of it nobody else looks."""
    alone: list[bool] = []

    class Watched(set[Any]):
        """What is in hand, and whether each use of it keeps others out."""

        def __contains__(self, job_id: object) -> bool:
            alone.append(desk.staging._lock.locked())
            return super().__contains__(job_id)

        def add(self, job_id: Any) -> None:
            """Note a job."""
            alone.append(desk.staging._lock.locked())
            super().add(job_id)

        def discard(self, job_id: Any) -> None:
            """Let go of a job."""
            alone.append(desk.staging._lock.locked())
            super().discard(job_id)

    desk.staging._driving = Watched()
    with desk.staging._hold(desk.job_id) as ours:
        assert ours

    assert alone == [True, True, True]


def test_job_whose_attempt_is_taken_up_is_claimed_by_nobody(desk: Desk) -> None:
    """A dead worker's staging job is not queued before its attempt is taken up."""
    dead = str(attrs.evolve(this_process(), start=1))
    under_worker(desk, dead)
    with desk.kit.store.transaction() as tx:
        tx.exec_driver_sql("UPDATE jobs SET claimed_by = ?", (dead,))
    claims: list[object] = []

    def claim(_row: JobRow, _snapshot: Snapshot) -> None:
        now = desk.kit.host.clock.now()
        claims.append(desk.kit.store.claim_next(now, "another", desk.job_id))

    desk.engine.watch = claim
    Worker(attrs.evolve(desk.kit.host, staging=desk.staging), str(this_process())).recover()

    assert desk.state() is State.DEFERRED
    assert claims == [None, None]


def worker_of(desk: Desk, launch: Callable[[Host, Job], object] = launch_job) -> Worker:
    """Return the worker loop around the desk's runner."""
    host = attrs.evolve(desk.kit.host, staging=desk.staging)
    return Worker(host, str(this_process()), launch)


def test_attempt_that_a_person_removed_is_begun_anew(desk: Desk) -> None:
    """Who removes a damaged attempt need not queue its job: the living worker that has it does."""
    desk.write_metadata('{"staging_runner": 17}')
    living = worker_of(desk)
    living.run_one(desk.job_id)
    living.recover()
    before = desk.raw_row()["status"]
    desk.write_metadata("{}")
    living.recover()

    assert (before, desk.raw_row()["status"]) == ("running", "queued")
    living.run_one(desk.job_id)
    assert desk.state() is State.ADVANCED


def test_job_without_an_attempt_is_left_to_whoever_has_it_in_hand(desk: Desk) -> None:
    """A job whose attempt is about to begin is no removed one, though it was let go before."""
    found: list[list[Job]] = []

    def launch(_host: Host, _job: Job) -> None:
        found.append(living.requeue_abandoned())

    living = worker_of(desk, launch)
    living.run_one(desk.job_id)
    given_back = living.requeue_abandoned()
    living.run_one(desk.job_id)

    assert [job.id for job in given_back] == [desk.job_id]
    assert found == [[], []]


def test_job_that_another_thread_has_in_hand_is_not_given_back(desk: Desk) -> None:
    """Of two launches of a job in one worker the first is at it, also once the second has ended."""
    found: list[Job] = []
    launched: list[str] = []

    def launch(_host: Host, job: Job) -> None:
        launched.append(job.updated_at)
        if len(launched) == 1:
            desk.write("status", "queued")
            living.run_one(job.id)
            found.extend(living.requeue_abandoned())

    living = worker_of(desk, launch)
    living.run_one(desk.job_id)

    assert (len(launched), found) == (2, [])


@pytest.mark.parametrize("what", ["no runner", "an error", "an attempt", "another stage"])
def test_job_that_is_not_the_runners_to_begin_anew_stays_claimed(desk: Desk, what: str) -> None:
    """Given back is what the runner had and a person took from it, and nothing else.

    Neither a launch that failed, which a person looks at, nor what has an attempt.
    """

    def launch(_host: Host, _job: Job) -> None:
        if what == "an error":
            raise OSError

    if what == "another stage":
        desk.job_id = desk.kit.add("testing", "WI-2")
    if what == "an attempt":
        desk.write_metadata('{"staging_runner": {}}')
    living = worker_of(desk, launch)
    if what == "no runner":
        living.host = attrs.evolve(living.host, staging=None)
    living.run_one(desk.job_id)

    assert living.requeue_abandoned() == []
    assert desk.raw_row()["status"] == "running"


def test_job_that_is_let_go_during_a_look_is_not_given_back_by_it(desk: Desk) -> None:
    """What was read of a job before its launch had ended says nothing of what became of it."""

    class Store(SqlHostStore):
        """Has the worker claim and launch a job just before it is looked at."""

        def running_jobs(self) -> list[Job]:
            """Look."""
            living.run_one(desk.job_id)
            return super().running_jobs()

    living = worker_of(desk, lambda _host, _job: None)
    living.host = attrs.evolve(living.host, store=Store(desk.kit.store.engine))

    assert living.requeue_abandoned() == []


@pytest.mark.parametrize("tells", [False, True], ids=["unseen", "told"])
def test_claim_that_was_turned_away_is_not_lost(desk: Desk, *, tells: bool) -> None:
    """Who claims what this process has deferred, while it has it in hand, gives it back.

    That holds whether or not the host tells what it found in the row that it claimed.
    """
    desk.suites_file = TOOL_ERROR
    desk.claim()
    desk.launch()
    with desk.staging._hold(desk.job_id):
        found = desk.claim().metadata
        decision = desk.launch(found if tells else UNSEEN)

    assert decision.ruling is Ruling.TAKEN
    # Recovery would leave it to its claimant, who has gone.
    assert desk.raw_row()["status"] == "queued"
    desk.claim()
    desk.launch()
    assert desk.state() is State.FAILED_CLOSED


def test_job_that_is_queued_is_not_put_back(desk: Desk) -> None:
    """Who was turned away leaves a job that waits alone: it may be claimed at that very moment."""
    desk.suites_file = TOOL_ERROR
    desk.claim()
    desk.launch()
    before = desk.raw_row()
    desk.break_part("rows.requeue", AssertionError("queued again"))
    put_back(desk.staging.runner, desk.job_id)

    assert desk.raw_row() == before


def overdue(desk: Desk, late: timedelta = timedelta.resolution) -> Heard:
    """Let the longest time pass in which an attempt may not move, and so much more."""
    snapshot = desk.snapshot()
    suite, since = snapshot.bound_plan.suite, parse_time(snapshot.history[-1].time)
    longest = timedelta(seconds=suite.timeout_seconds + suite.kill_grace_seconds + SILENCE_SECONDS)
    clock: Any = SimpleNamespace(now=lambda: since + longest + late)
    desk.engine.clock, heard = clock, Heard()
    desk.engine.alerts = heard
    return heard


@pytest.mark.parametrize(
    ("worker", "late", "told"),
    [
        ("elsewhere:boot:1/4711/1", timedelta.resolution, True),
        ("elsewhere:boot:1/4711/1", timedelta(0), False),
        ("elsewhere:boot:1/4711/1", -timedelta.resolution, False),
        ("a worker", timedelta.resolution, True),
        (str(identify(os.getppid())), timedelta(days=1), False),
    ],
    ids=["elsewhere", "in time", "before that", "unreadable", "living"],
)
def test_attempt_of_whose_worker_nothing_is_known_is_told_of_once_it_is_overdue(
    desk: Desk, worker: str, late: timedelta, *, told: bool
) -> None:
    """An attempt in the hands of a machine or container that is gone is not silent for ever.

    Nothing is taken from a worker of which nobody knows that it is dead.
    """
    under_worker(desk, worker)
    before, heard = desk.raw_row(), overdue(desk, late)
    desk.staging.recover()

    assert desk.raw_row() == before
    assert [alert[0] for alert in heard.alerts] == [AlertKind.INTERNAL_ERROR] * told
    assert all(f"in the hands of worker {worker}" in text for _, _, text, _ in heard.alerts)


def test_attempt_of_the_dead_that_is_taken_up_late_is_not_told_of(desk: Desk) -> None:
    """However long nobody looked, an attempt that recovery can drive on alerts nobody."""
    under_worker(desk, str(attrs.evolve(this_process(), start=1)))
    heard = overdue(desk, timedelta(days=1))

    assert [row.id for row in desk.staging.recover()] == [desk.job_id]
    assert (desk.state(), heard.alerts) == (State.DEFERRED, [])


def test_attempt_that_has_ended_elsewhere_is_not_silent(desk: Desk) -> None:
    """Nobody waits for an attempt that has ended, also where its job was opened again by hand."""
    desk.claim()
    desk.engine.worker = "elsewhere:boot:1/4711/1"
    desk.launch()
    desk.kit.set_status(desk.job_id, "running")
    desk.staging = desk.new_worker()
    heard = overdue(desk, timedelta(days=1))

    assert (desk.staging.recover(), desk.state(), heard.alerts) == ([], State.ADVANCED, [])


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE jobs SET metadata = '{}'",
        "UPDATE jobs SET stage = 'analysis'",
        "UPDATE jobs SET stage = 'testing'",
    ],
)
def test_row_that_became_anothers_since_it_was_listed_is_left_alone(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """What a person or a host has taken from the runner meanwhile is neither driven nor told of."""
    under_worker(desk, str(attrs.evolve(this_process(), start=1)))
    listed = desk.engine.rows.unfinished()
    monkeypatch.setattr(desk.engine.rows, "unfinished", lambda: listed)
    with desk.kit.store.engine.begin() as connection:
        connection.exec_driver_sql(change)
    before, heard = desk.raw_row(), Heard()
    desk.engine.alerts = heard

    assert (desk.staging.recover(), heard.alerts) == ([], [])
    assert desk.raw_row() == before


def test_attempt_that_an_agent_has_got_since_it_was_listed_is_left_alone(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch that gave the job to its agent after the look of a recovery is not recovered."""
    desk.defer()
    listed = desk.engine.rows.unfinished()
    monkeypatch.setattr(desk.engine.rows, "unfinished", lambda: listed)
    desk.set("ENABLED", "0")
    desk.launch()

    assert (desk.staging.recover(), desk.state()) == ([], State.LLM_FALLBACK)


@pytest.mark.parametrize(
    ("stage", "told"), [("analysis", 0), ("deploy-staging", 1), ("testing", 0)]
)
def test_damaged_attempt_is_told_of_on_its_own_stage(desk: Desk, stage: str, told: int) -> None:
    """Of a row on another stage nobody is told that the runner cannot read it."""
    desk.claim()
    with desk.kit.store.engine.begin() as connection:
        damaged = sa.text("UPDATE jobs SET stage = :stage, metadata = :metadata")
        connection.execute(damaged, {"stage": stage, "metadata": '{"staging_runner": 1}'})
    heard = Heard()
    desk.engine.alerts = heard
    desk.staging.recover()

    assert [alert[0] for alert in heard.alerts] == [AlertKind.ROW_REFUSED] * told


@pytest.mark.parametrize(("late", "told"), [(timedelta(0), 0), (timedelta(seconds=1), 1)])
def test_run_that_nobody_here_can_wait_for_is_told_of_in_time(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, late: timedelta, told: int
) -> None:
    """A run in another container whose worker is gone is told of once it takes too long."""
    gone = str(attrs.evolve(this_process(), start=1))
    under_worker(desk, gone)
    before, heard = desk.raw_row(), overdue(desk, late)
    monkeypatch.setattr(desk.engine.suites, "condition", lambda _run_id: RunCondition.FOREIGN)
    left = f"in the hands of the supervisor that worker {gone} left in another container, of which"

    assert desk.staging.recover() == []
    assert desk.raw_row() == before
    assert [alert[0] for alert in heard.alerts] == [AlertKind.INTERNAL_ERROR] * told
    assert all(left in text for _, _, text, _ in heard.alerts)


@pytest.mark.parametrize("id_", ["T07", "T11", "T13"])
def test_attempt_that_is_silent_after_its_run_is_told_of_too(desk: Desk, id_: str) -> None:
    """A verdict that nobody hands over is told of, like a run of which nobody hears."""
    state, desk.suites_file = ON_THE_WAY[id_]
    desk.claim()
    desk.engine.worker = "elsewhere:boot:1/4711/1"
    desk.use_rows(
        Failing(
            desk.engine.rows,
            "save",
            OSError("boom"),
            lambda _id, saved, *_: saved.history[-1].id == id_,
        )
    )
    desk.launch()
    desk.staging = desk.new_worker()
    heard = overdue(desk)
    desk.staging.recover()
    [(kind, job_id, text, _)] = heard.alerts

    assert desk.state() is state
    assert (kind, job_id) == (AlertKind.INTERNAL_ERROR, desk.job_id)
    assert text.startswith(f"{state} since ")


def test_silence_of_an_attempt_begins_with_its_last_move(desk: Desk) -> None:
    """An attempt that just began its second run is not silent, however long ago its first was."""
    desk.defer()
    desk.engine.worker = "elsewhere:boot:1/4711/1"
    desk.break_part("rows.save", OSError("boom"), LosesTheAnswer)
    desk.launch()
    desk.staging = desk.new_worker()
    heard = overdue(desk, timedelta(0))
    desk.staging.recover()
    early = [*heard.alerts]
    heard = overdue(desk)
    desk.staging.recover()
    [(_, _, text, _)] = heard.alerts

    assert (desk.state(), len(desk.snapshot().runs)) == (State.RUNNING, 2)
    assert early == []
    assert text.startswith(f"{State.RUNNING} since {desk.snapshot().history[-1].time}, ")


def test_silence_is_told_in_the_same_words_however_long_it_lasts(desk: Desk) -> None:
    """An attempt that stays silent is one trouble: no recovery makes another message of it."""
    under_worker(desk, "elsewhere:boot:1/4711/1")
    told = []
    for hours in (1, 2, 30):
        heard = overdue(desk, timedelta(hours=hours))
        desk.staging.recover()
        told += heard.alerts

    assert len(told) == 3
    assert len({*told}) == 1
    assert told[0][3] == desk.snapshot().attempt_id


def test_job_that_cannot_be_put_back_is_told_of_and_put_back_by_recovery(desk: Desk) -> None:
    """A store that is away when somebody is turned away changes no answer, and loses no job."""
    desk.defer()
    rows = desk.engine.rows
    desk.break_part("rows.load", OSError("boom"))
    with desk.staging._hold(desk.job_id):
        assert desk.launch().ruling is Ruling.TAKEN
        desk.use_rows(rows)
        desk.staging.recover()
    before = desk.raw_row()["status"]
    desk.staging.recover()

    assert (before, desk.raw_row()["status"]) == ("running", "queued")
    assert desk.alerts() == ["internal_error"]
    told = (desk.folder / "state" / "alerts.jsonl").read_text()
    assert "not launched and not queued again: OSError: boom" in told

    # Once it has been put back, whoever claims it is left alone.
    desk.claim()
    desk.staging.recover()
    assert desk.raw_row()["status"] == "running"


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


def test_worker_with_a_broken_configuration_leaves_a_job_that_another_took(desk: Desk) -> None:
    """Who would decline a job is overtaken like anybody: the other's suite runs, and no agent."""
    desk.claim()
    sound = {**desk.variables}
    other = staging_intercept(
        desk.kit.store, desk.kit.host.clock, sound, suites=lambda _config: desk.read_suites()
    )

    def overtaken(_config: object) -> SuitesConfig:
        other.launch(desk.job_id)
        raise ConfigInvalidError(["no suite"])

    desk.staging.runner.suites = overtaken

    assert desk.launch().ruling is Ruling.TAKEN
    assert desk.state() is State.ADVANCED


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


def test_recovery_goes_through_all_there_is(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many attempts a crash has left, one recovery looks at each of them."""
    row = desk.row()
    rows = [attrs.evolve(row, id=number) for number in range(2000)]
    monkeypatch.setattr(recovery, "unfinished", lambda _runner, _failed: rows)
    monkeypatch.setattr(recovery, "recover", lambda _runner, _job_id, _failed: True)

    assert desk.staging.recover() == rows


@pytest.mark.parametrize("stage", ["analysis", "testing"])
def test_recovery_says_nothing_of_rows_of_other_stages(desk: Desk, stage: str) -> None:
    """A row of another stage is not the runner's to complain of, however broken."""
    desk.job_id = desk.kit.add(stage, "WI-2")
    desk.write_metadata("certainly not")

    assert desk.staging.recover() == []
    assert desk.alerts() == []


@pytest.mark.parametrize("whose", ["the agent's", "another stage's"])
def test_recovery_holds_no_job_that_is_not_its_own(desk: Desk, whose: str) -> None:
    """A launch that met recovery's hand on its job would be turned away, and nobody go on with it.

    So recovery does not even look at the row of a job that it has nothing to do for.
    """
    if whose == "the agent's":
        desk.set("INFRA_RETRIES", "many")
        desk.claim()
        assert desk.launch().ruling is Ruling.DECLINED
    else:
        desk.defer()
        desk.write("stage", "deploy")
    before = desk.alerts()
    desk.break_part("rows.load", OSError("boom"))

    assert desk.staging.recover() == []
    assert desk.alerts() == before


@pytest.mark.parametrize("metadata", ["[]", '{"score": NaN}', "by hand"])
def test_nobody_is_told_again_of_metadata_that_holds_no_attempt(desk: Desk, metadata: str) -> None:
    """Recovery leaves a job alone whose metadata cannot be read and does not name our key."""
    desk.claim()
    desk.write_metadata(metadata)

    assert (desk.staging.recover(), desk.alerts()) == ([], [])


def test_metadata_that_holds_no_attempt_keeps_no_old_run(desk: Desk) -> None:
    """Old runs are removed though the metadata of an unfinished job is no JSON object."""
    desk.claim()
    desk.write_metadata("[]")
    kept: list[Any] = []
    desk.staging.runner.prune = lambda _days, unfinished: kept.append(unfinished())
    desk.staging.recover()

    assert kept == [frozenset()]


def take_out(desk: Desk, status: str, metadata: str = '{"theirs": 1}') -> None:
    """Write over the row of a job at the next move of it, as a host with an older copy may."""

    def write(_row: JobRow, _snapshot: Snapshot) -> None:
        desk.write_metadata(metadata)
        desk.write("status", status)

    desk.engine.watch = write


@pytest.mark.parametrize(("status", "told"), [("running", 1), ("queued", 0), ("done", 0)])
def test_attempt_that_is_taken_out_of_its_row_is_told_of(
    desk: Desk, status: str, told: int
) -> None:
    """A job in work whose metadata was written over mid-run waits for a person, who is told."""
    desk.claim()
    take_out(desk, status)
    decision = desk.launch()
    before = desk.raw_row()

    assert decision.ruling is Ruling.TAKEN
    assert desk.alerts() == [AlertKind.ROW_REFUSED] * told
    assert (desk.staging.recover(), desk.raw_row()) == ([], before)


def test_alert_of_an_attempt_that_is_gone_says_which_and_what_to_do(desk: Desk) -> None:
    """Whoever is told of an attempt that was written over learns its name, and what to do."""
    desk.engine.alerts = heard = Heard()
    begun: list[str] = []
    desk.claim()
    take_out(desk, "running")
    write = desk.engine.watch

    def note(row: JobRow, snapshot: Snapshot) -> None:
        begun.append(snapshot.attempt_id)
        write(row, snapshot)

    desk.engine.watch = note
    desk.launch()
    ((kind, job_id, text, attempt_id),) = heard.alerts

    assert (kind, job_id, attempt_id) == (AlertKind.ROW_REFUSED, desk.job_id, begun[0])
    assert text.startswith(f"attempt {attempt_id} is gone from the job's metadata: ")
    assert text.endswith("If nobody has the job in work by now, queue it again")


def test_row_that_cannot_be_looked_at_after_a_move_is_in_the_log(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a move missed its row, and the row cannot be read since, the log says of which job."""
    desk.claim()

    def write(_row: JobRow, _snapshot: Snapshot) -> None:
        desk.write_metadata('{"theirs": 1}')
        desk.use_rows(Failing(desk.engine.rows, "load", OSError("boom")))

    desk.engine.watch = write
    desk.launch()

    said = f'event="the row could not be read" job={desk.job_id} error="OSError: boom"'
    assert said in caplog.messages


@pytest.mark.parametrize("broken", ["row", "store"])
def test_recovery_tells_its_caller_what_was_left(desk: Desk, broken: str) -> None:
    """Whoever has attempts recovered learns which of them could not be taken up, and why."""
    under_worker(desk, str(attrs.evolve(this_process(), start=1)))
    if broken == "row":
        desk.write_metadata('{"staging_runner": 17}')
    else:
        desk.use_rows(Failing(desk.engine.rows, "load", OSError("boom")))
    left: list[tuple[Any, Exception]] = []
    desk.staging.recover(lambda job_id, error: left.append((job_id, error)))
    ((job_id, error),) = left

    assert job_id == desk.job_id
    assert isinstance(error, SnapshotRefusedError if broken == "row" else OSError)


def test_each_attempt_that_is_taken_out_of_its_row_is_told_of(desk: Desk) -> None:
    """A job that was queued again, as an alert asked for, and loses its next attempt is told of."""
    for _ in range(2):
        desk.claim()
        take_out(desk, "running")
        desk.launch()
        desk.staging.recover()
        desk.write("status", "queued")

    assert desk.alerts() == [AlertKind.ROW_REFUSED] * 2


def test_attempt_that_is_taken_out_while_recovery_drives_it_is_told_of(desk: Desk) -> None:
    """Recovery tells of an attempt that is written over in its hands, as a launch does."""
    under_worker(desk, str(attrs.evolve(this_process(), start=1)))
    take_out(desk, "running", "[]")

    assert desk.staging.recover() == []
    assert desk.alerts()[-1] == AlertKind.ROW_REFUSED


def test_job_that_is_deleted_under_its_run_is_nobodys_concern(desk: Desk) -> None:
    """A job whose row is deleted mid-run ends with it, and nobody is alerted."""
    desk.claim()

    def delete(_row: JobRow, snapshot: Snapshot) -> None:
        if snapshot.state is State.RUNNING:
            with desk.kit.store.transaction() as tx:
                tx.exec_driver_sql("DELETE FROM jobs")

    desk.engine.watch = delete

    assert (desk.launch().ruling, desk.alerts()) == (Ruling.TAKEN, [])

"""Between two runs of an attempt: who is told, what waits, and what recovery finds."""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import attrs
import pytest

from desk import PASSING, TOOL_ERROR, Desk, Failing, Heard, fill_the_disk, under_worker
from staging_fsm.core.errors import JobNotFoundError, RefusedError, StaleSnapshotError
from staging_fsm.core.jobs import JobRow
from staging_fsm.core.outcome import Reason
from staging_fsm.core.ports import AlertKind, RunCondition
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import Event, State
from staging_fsm.core.suites import SuitesConfig
from staging_fsm.core.times import format_time
from staging_fsm.drive import engine
from staging_fsm.drive.intercept import StagingIntercept
from staging_fsm.drive.recovery import put_back
from staging_fsm.drive.rulings import Decision, Ruling
from staging_fsm.drive.runner import IN_SHADOW, StagingRunner
from staging_fsm.effects.processes import this_process
from staging_fsm.effects.rows import SqlRows
from staging_fsm.faces.audit import Severity, audit_job
from staging_fsm.host.contract.gate import ARTIFACT_NAME


@pytest.fixture(autouse=True)
def due_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no second between two deferrals: the database of a desk rounds nothing up."""
    monkeypatch.setattr(engine, "COARSEST_DUE_TIME", timedelta.resolution)


def deferred(desk: Desk, retries: int = 1) -> Heard:
    """Have a first run deferred, and the job claimed again; return who hears of it since."""
    desk.set("INFRA_RETRIES", str(retries))
    desk.defer()
    heard = Heard()
    desk.engine.alerts = heard
    return heard


def stop_after(desk: Desk, version: int) -> None:
    """Have the store take no later version of an attempt."""

    def is_later(_id: object, saved: Snapshot, *_: object) -> bool:
        return saved.version > version

    desk.use_rows(Failing(desk.engine.rows, "save", OSError("gone"), is_later))


def no_place(_row: JobRow) -> None:
    """Have no repository anywhere."""
    message = "no such share"
    raise OSError(message)


def broken_setting(desk: Desk, _monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a setting that cannot be used."""
    desk.set("INFRA_RETRIES", "many")


def full_disk(_desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no room for a run."""
    fill_the_disk(monkeypatch)


@pytest.mark.parametrize("trouble", [broken_setting, full_disk])
def test_every_run_that_is_lost_unstarted_is_told(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, trouble: Callable[..., None]
) -> None:
    """However many runs are left: whoever could mend what eats them hears of each, in one form.

    It is about the machine: the same words for every job, so that one message is sent.
    """
    heard = deferred(desk, retries=3)
    trouble(desk, monkeypatch)
    desk.launch()
    for _ in range(2):
        desk.claim()
        desk.launch()

    *lost, ended = heard.alerts
    details = [run.detail for run in desk.snapshot().runs[1:]]
    assert desk.state() is State.FAILED_CLOSED
    assert [text for _, _, text, _ in lost] == details
    assert len(lost) == 3
    assert {job_id for _, job_id, _, _ in lost} == {desk.job_id}
    assert all(f"job {desk.job_id}" not in text for _, _, text, _ in lost)
    assert ended[0] is AlertKind.FAILED_CLOSED


@pytest.mark.parametrize("trouble", [broken_setting, full_disk])
def test_run_that_is_lost_unstarted_is_told_before_its_end_is_stored(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, trouble: Callable[..., None]
) -> None:
    """A worker that dies over a run that it could not start has told of what is to be mended."""
    heard = deferred(desk, retries=3)
    trouble(desk, monkeypatch)
    stop_after(desk, desk.snapshot().version + 1)
    desk.launch()

    kind = AlertKind.CONFIGURATION_INVALID if trouble is broken_setting else AlertKind.MACHINE_UNFIT
    assert desk.state() is State.RUNNING
    assert [alert[0] for alert in heard.alerts] == [kind, AlertKind.INTERNAL_ERROR]


def test_repository_that_cannot_be_found_again_costs_a_run(desk: Desk) -> None:
    """A deferred attempt whose repository has no place any more is not tried for ever."""
    deferred(desk, retries=2)
    place = desk.engine.place
    desk.engine.place = no_place  # type: ignore[assignment]  # it only ever raises
    decision = desk.launch()
    desk.engine.place = place

    assert decision.ruling is Ruling.TAKEN
    assert desk.snapshot().reasons == (Reason.TOOL_EXIT_CODE, Reason.MACHINE_UNFIT)
    assert "no such share" in str(desk.snapshot().last_run.detail)


def test_each_run_is_told_by_its_number(desk: Desk) -> None:
    """The moves of an attempt say which run of how many each of them begins or waits for."""
    deferred(desk, retries=3)
    desk.suites_file = TOOL_ERROR
    desk.launch()
    for _ in range(2):
        desk.claim()
        desk.launch()

    told = [move.reason for move in desk.snapshot().history if move.id in ("T01", "T07", "T09")]
    waits = [f"run {number} of at most 4 in 0.0 s" for number in (2, 3, 4)]
    begun = [f"run {number} of at most 4" for number in (1, 2, 3, 4)]
    assert told == [begun[0], waits[0], begun[1], waits[1], begun[2], waits[2], begun[3]]


@pytest.mark.parametrize("broken", [False, True])
def test_shadow_mode_leads_a_waiting_attempt_to_the_agent(desk: Desk, *, broken: bool) -> None:
    """Switched to the shadow, a deferred attempt goes to the agent at once, before it is due too.

    A setting that is broken beside it changes nothing of that.
    """
    desk.set("RETRY_BACKOFF_SECONDS", "600")
    desk.suites_file = TOOL_ERROR
    desk.claim()
    desk.launch()
    desk.set("SHADOW", "1")
    if broken:
        desk.set("INFRA_RETRIES", "many")

    declined = Decision(Ruling.DECLINED, IN_SHADOW)

    assert desk.launch() == declined
    assert desk.state() is State.LLM_FALLBACK
    # Whoever launches it once more is told the same.
    assert desk.launch() == declined


def test_unclear_shadow_mode_costs_a_waiting_attempt_a_run(desk: Desk) -> None:
    """A word for the shadow that is neither on nor off is a broken setting, and no way out."""
    heard = deferred(desk, retries=2)
    desk.set("SHADOW", "maybe")

    assert desk.launch().ruling is Ruling.TAKEN
    assert desk.snapshot().reasons == (Reason.TOOL_EXIT_CODE, Reason.CONFIGURATION_INVALID)
    assert [kind for kind, *_ in heard.alerts] == [AlertKind.CONFIGURATION_INVALID]


def test_job_that_is_claimed_early_waits_all_the_same(desk: Desk) -> None:
    """A deferred job that was queued again, and is claimed and launched before its time, waits."""
    desk.set("RETRY_BACKOFF_SECONDS", "600")
    desk.suites_file = TOOL_ERROR
    desk.claim()
    desk.launch()
    before = desk.raw_row()
    desk.write("status", "running")

    assert desk.launch().ruling is Ruling.TAKEN
    assert desk.raw_row() == before
    assert len(desk.snapshot().runs) == 1


def test_run_begins_by_the_hosts_own_clock(desk: Desk) -> None:
    """When a run began is said by the clock that everything of its attempt is told by."""
    moment = desk.engine.clock.now() - timedelta(days=400)

    class Slow:
        """A clock that is a year late, and stands still."""

        @staticmethod
        def now() -> object:
            """Return its moment."""
            return moment

    desk.engine.clock = Slow()  # type: ignore[assignment]  # one method is all that is asked of it
    desk.claim()
    desk.launch()
    attempt = desk.snapshot()

    assert {attempt.runs[0].started_at, *(move.time for move in attempt.history)} == {
        format_time(moment)
    }


@pytest.mark.parametrize("items", [("WI-1", "WI-2", "WI-3"), ("WI-1",) * 3], ids=["three", "one"])
def test_recovery_goes_on_behind_a_job_in_hand(desk: Desk, items: tuple[str, ...]) -> None:
    """What a process works on itself keeps it from no other attempt that nobody works on.

    Nor does any attempt from another one at the same work item.
    """
    dead = str(attrs.evolve(this_process(), start=1))
    abandoned: list[int] = []
    for item in items:
        if abandoned:
            add = desk.kit.further if item == "WI-1" else partial(desk.kit.add, work_item=item)
            desk.job_id = add("deploy-staging")
        desk.claim()
        desk.engine.worker = dead
        stop_after(desk, 1)
        desk.launch()
        abandoned.append(desk.job_id)
        desk.staging = desk.new_worker()

    with desk.staging._hold(abandoned[0]):
        touched = [row.id for row in desk.staging.recover()]

    assert touched == abandoned[1:]


def test_far_due_time_is_brought_forward_whoever_waits_for_it(desk: Desk) -> None:
    """After a clock was set back a job is queued for no later than the longest wait by anybody."""
    desk.set("RETRY_BACKOFF_SECONDS", "60")
    desk.suites_file = TOOL_ERROR
    desk.claim()
    desk.launch()
    far = desk.engine.clock.now() + timedelta(days=40)
    desk.write("not_before", format_time(far))
    other = desk.new_worker(liveness=lambda _worker: True)
    other.runner.engine.worker = "another"

    assert [row.id for row in other.recover()] == [desk.job_id]
    due = desk.row().not_before
    assert due is not None
    assert due < far - timedelta(days=30)


def test_claim_that_cannot_be_given_back_is_told(desk: Desk) -> None:
    """Who is overtaken when he gives a claim back has nothing to do; a broken store is told."""
    deferred(desk)
    desk.break_part("rows.requeue", StaleSnapshotError(desk.job_id, "1-a", 3))
    put_back(desk.staging.runner, desk.job_id)
    desk.break_part("rows.requeue", OSError("away"))

    with pytest.raises(OSError, match="away"):
        put_back(desk.staging.runner, desk.job_id)


@pytest.mark.parametrize("state", ["RUNNING", "VERDICT_PASSED", "DEFERRED"])
def test_runs_of_every_unfinished_attempt_are_kept(desk: Desk, state: str) -> None:
    """Nothing of an attempt that has not ended is removed as old, wherever it stands."""
    if state == "DEFERRED":
        deferred(desk)
    else:
        desk.claim()
        stop_after(desk, {"RUNNING": 1, "VERDICT_PASSED": 2}[state])
        desk.launch()
        desk.staging = desk.new_worker()

    assert desk.state() is State[state]
    assert desk.staging.runner._unfinished_attempts() == {desk.snapshot().attempt_id}


@pytest.mark.parametrize(("switch", "days"), [("1", "0.5"), ("0", "0.5"), ("1", "7")])
def test_old_runs_are_removed_after_as_long_as_is_said(desk: Desk, switch: str, days: str) -> None:
    """Runs are kept for as many days as are set, half of one too, whether switched on or off."""
    asked: list[float] = []
    desk.staging.runner.prune = lambda kept, _unfinished: asked.append(kept)
    desk.set("RUN_RETENTION_DAYS", days)
    desk.set("ENABLED", switch)
    desk.staging.runner.tidy_up()

    assert asked == [float(days)]


def test_suite_that_changed_is_none_of_a_deferred_attempts(desk: Desk) -> None:
    """No suites file is read for a run whose plan is bound."""
    deferred(desk)

    def gone(_config: object) -> SuitesConfig:
        raise AssertionError

    desk.staging.runner.suites = gone
    desk.suites_file = PASSING
    desk.launch()

    assert desk.snapshot().reasons == (Reason.TOOL_EXIT_CODE, Reason.TOOL_EXIT_CODE)


def test_older_artifact_is_out_of_sight_before_each_run(desk: Desk) -> None:
    """Whatever is written into the gate's place between two runs, no suite runs beside it."""
    moved: list[str] = []
    set_aside = desk.engine.artifacts.set_aside

    def watched(folder: Path, suffix: str) -> None:
        moved.append(suffix)
        set_aside(folder, suffix)

    desk.engine.artifacts.set_aside = watched  # type: ignore[method-assign]  # to look on
    deferred(desk)
    artifact = desk.engine.place(desk.row()).artifact_dir / ARTIFACT_NAME
    artifact.parent.mkdir(parents=True)
    artifact.write_text("---\nstaging_status: SUCCESS\n---\n")
    desk.launch()
    name = desk.snapshot().attempt_id

    assert moved == [f"before-{name}.1", f"before-{name}.2"]
    assert "SUCCESS" not in artifact.read_text()


def test_run_has_ended_when_nothing_of_it_is_left(desk: Desk) -> None:
    """A run without a report ended when it had been reaped, however long that took."""
    moment = [desk.engine.clock.now()]

    class Clock:
        """A clock that a reaping sets forward."""

        @staticmethod
        def now() -> datetime:
            """Return its moment."""
            return moment[0]

    reap = desk.engine.suites.reap

    def slow(run_id: str) -> None:
        reap(run_id)
        moment[0] += timedelta(minutes=5)

    desk.engine.clock = Clock()  # type: ignore[assignment]  # one method is all that is asked of it
    begun = moment[0]
    desk.break_part("suites.await_report", OSError("boom"))
    desk.engine.suites.reap = slow  # type: ignore[method-assign]  # to take its time
    desk.claim()
    desk.launch()

    assert desk.snapshot().runs[0].ended_at == format_time(begun + timedelta(minutes=5))


def test_report_of_an_adopted_run_that_cannot_be_had_is_no_lost_worker(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that lives and cannot have the report of a run it adopted says so itself."""
    under_worker(desk, str(attrs.evolve(this_process(), start=1)))
    monkeypatch.setattr(desk.engine.suites, "condition", lambda _run_id: RunCondition.FINISHED)
    desk.break_part("suites.await_report", OSError("boom"))
    desk.launch()
    events = [move.row.event for move in desk.snapshot().history]

    assert events[:3] == [Event.JOB_CLAIMED, Event.RUN_ADOPTED, Event.SUITE_NOT_EXECUTED]
    assert desk.snapshot().reasons == (Reason.INTERNAL_ERROR,)


def test_worker_that_lost_the_claim_of_a_run_tells_of_no_trouble(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose machine is unfit, and that is overtaken, lost no run: nobody is alarmed."""
    heard = deferred(desk)
    fill_the_disk(monkeypatch)
    desk.break_part("rows.save", StaleSnapshotError(desk.job_id, "1-a", 3))
    assert desk.launch().ruling is Ruling.TAKEN

    assert heard.alerts == []


def test_nothing_is_removed_by_a_configuration_that_cannot_be_read(desk: Desk) -> None:
    """While a setting is broken nobody knows how long runs are kept, and none is removed."""
    asked: list[float] = []
    desk.staging.runner.prune = lambda days, _unfinished: asked.append(days)
    desk.set("INFRA_RETRIES", "many")
    desk.staging.runner.tidy_up()

    assert asked == []


def test_claim_is_given_back_where_no_due_times_are_kept(desk: Desk) -> None:
    """A host without due times has a deferred job back that this process had still in hand."""
    deferred(desk)
    desk.write("not_before", None)
    put_back(desk.staging.runner, desk.job_id)

    assert desk.raw_row()["status"] == "queued"


def test_trail_of_a_second_run_is_whole_where_no_due_times_are_kept(desk: Desk) -> None:
    """An audit finds nothing wrong with a run that was due at a time that its row never held."""
    rows = SqlRows(desk.kit.store.engine, constants={"not_before": None})
    desk.use_rows(rows)
    desk.defer()
    desk.launch()
    found = audit_job(rows, desk.kit.store, desk.job_id)

    assert len(desk.snapshot().runs) == 2
    assert found.of(Severity.DEVIATION) == []


@pytest.mark.parametrize("error", [OSError("away"), RuntimeError("away")], ids=repr)
def test_recovery_outlives_a_store_that_is_away(desk: Desk, error: Exception) -> None:
    """Whatever error a database has, recovery raises nothing into the host, and tells of it."""
    desk.break_part("rows.unfinished", error)

    assert desk.staging.recover() == []
    assert desk.alerts() == ["internal_error"]


def test_attempt_under_another_stage_keeps_its_runs(desk: Desk) -> None:
    """An unfinished attempt needs its runs, by whatever word the host calls its stage today."""
    deferred(desk)
    desk.write("stage", "staging")

    assert desk.staging.runner._unfinished_attempts() == {desk.snapshot().attempt_id}


def test_launch_that_leaves_no_trace_sees_what_another_has_begun(desk: Desk) -> None:
    """Where claim and decline are both refused, an agent starts only if nobody else has begun."""
    desk.claim()
    other = desk.new_worker()

    def is_refused(_job: object, saved: Snapshot, *_: object) -> bool:
        if saved.history[-1].id == "T02":
            other.launch(desk.job_id)
        return True

    desk.use_rows(Failing(desk.engine.rows, "save", OSError("boom"), is_refused))
    decision = desk.launch()

    assert decision.ruling is Ruling.HELD
    assert desk.state() is State.ADVANCED


@pytest.mark.parametrize("part", ["rows.load", "rows.save"])
def test_next_launch_that_was_held_is_not_lost(desk: Desk, part: str) -> None:
    """A store that is away for the moment of a launch between two runs costs the job nothing.

    Its claimant was told to leave it alone, so recovery queues it again, and does so once.
    """
    desk.defer()
    rows = desk.engine.rows
    desk.break_part(part, OSError("locked"))
    decision = desk.launch()
    desk.use_rows(rows)
    desk.staging.recover()

    assert (decision.ruling, desk.raw_row()["status"]) == (Ruling.HELD, "queued")
    assert desk.staging._owed == set()
    desk.claim()
    claimed = desk.raw_row()
    desk.staging.recover()
    assert desk.raw_row() == claimed
    assert desk.launch().ruling is Ruling.TAKEN
    assert len(desk.snapshot().runs) == 2


@pytest.mark.parametrize("damaged", [False, True], ids=["away", "damaged"])
def test_claim_that_could_not_be_given_back_is_not_lost(desk: Desk, *, damaged: bool) -> None:
    """Who claims what this process has in hand gives it back later where he cannot at once."""
    desk.defer()
    rows, whole = desk.engine.rows, desk.raw_row()["metadata"]
    with desk.staging._hold(desk.job_id):
        if damaged:
            desk.write_metadata(whole[:-9])
        else:
            desk.break_part("rows.load", OSError("locked"))
        assert desk.launch().ruling is Ruling.TAKEN
    desk.write_metadata(whole)
    desk.use_rows(rows)
    assert desk.raw_row()["status"] == "running"
    desk.staging.recover()

    assert desk.raw_row()["status"] == "queued"


def test_job_that_went_to_the_agent_is_nothing_to_come_back_to(desk: Desk) -> None:
    """A job whose row could not be read, and that went to the agent, is not looked at again."""
    desk.claim()
    desk.break_part("rows.load", OSError("away"))
    assert desk.launch("{}").ruling is Ruling.DECLINED
    told = desk.alerts()
    desk.staging.recover()

    assert desk.alerts() == told


def test_job_that_was_held_and_then_launched_is_not_queued_again(desk: Desk) -> None:
    """Where a later launch goes on with a job that was held, recovery leaves its next claim alone.

    Only a claim whose launch was held is nobody's.
    """
    desk.set("INFRA_RETRIES", "2")
    desk.defer()
    rows = desk.engine.rows
    desk.break_part("rows.load", OSError("locked"))
    assert desk.launch().ruling is Ruling.HELD
    desk.use_rows(rows)
    desk.suites_file = TOOL_ERROR
    desk.launch()
    desk.claim()
    desk.staging.recover()

    assert (desk.state(), desk.raw_row()["status"]) == (State.DEFERRED, "running")


def test_damaged_row_that_was_corrected_goes_on(desk: Desk) -> None:
    """A deferred job whose damaged row was held goes on once a person has corrected the row.

    Until then it is told of once, and left as it is.
    """
    desk.defer()
    whole = desk.raw_row()["metadata"]
    desk.write_metadata(whole[:-9])
    before = desk.raw_row()
    assert desk.launch().ruling is Ruling.HELD
    desk.staging.recover()
    assert (desk.raw_row(), desk.alerts()) == (before, ["row_refused"])
    desk.write_metadata(whole)
    desk.staging.recover()

    assert desk.raw_row()["status"] == "queued"


def test_job_that_was_held_where_no_runner_could_be_made_is_not_lost(desk: Desk) -> None:
    """A process that cannot make its runner for a moment goes on with its job afterwards."""
    desk.defer()
    runner, ready = desk.staging.runner, list[bool]()

    def make() -> StagingRunner:
        if not ready:
            raise OSError
        return runner

    desk.staging = StagingIntercept(desk.staging.rows, make, desk.variables)
    assert desk.launch().ruling is Ruling.HELD
    assert desk.staging.recover() == []
    ready.append(True)
    desk.staging.recover()

    assert desk.raw_row()["status"] == "queued"


@pytest.mark.parametrize("problem", [JobNotFoundError("gone"), RefusedError("no text")], ids=repr)
def test_job_that_is_gone_is_not_looked_for_without_end(desk: Desk, problem: Exception) -> None:
    """A job that was held and has no row any more, or no attempt, is nothing to come back to."""
    desk.defer()
    rows = desk.engine.rows
    desk.break_part("rows.load", OSError("locked"))
    desk.launch()
    desk.use_rows(rows)
    desk.break_part("rows.load", problem)
    desk.staging.recover()

    assert desk.staging._owed == set()

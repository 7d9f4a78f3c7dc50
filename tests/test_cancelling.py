"""Cancelling: nothing is judged, nothing is left running, and nothing else is touched."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import attrs
import pytest

from desk import Desk, under_worker
from staging_fsm.core.errors import (
    RefusedError,
    SnapshotRefusedError,
    StaleSnapshotError,
    TransitionRefusedError,
)
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import TRANSITIONS, Event, State, reachable
from staging_fsm.drive import cancelling
from staging_fsm.drive.cancelling import (
    CANCEL_PAUSE_SECONDS,
    CANCEL_TRIES,
    cancel,
    cancel_at,
    cancel_in_the_end,
    is_beyond,
)
from staging_fsm.drive.engine import Step, run_id_of
from staging_fsm.drive.rulings import Ruling
from staging_fsm.drive.runner import StagingRunner
from staging_fsm.effects.processes import this_process

#: Whether an attempt was cancelled in the end, and how long was waited for it each time.
Asked = Callable[..., tuple[bool, list[float]]]


def test_run_on_another_machine_is_not_cancelled_from_here(desk: Desk) -> None:
    """A run that cannot be stopped from here is not said to be cancelled."""
    elsewhere = "elsewhere:boot:1/4711/1"
    under_worker(desk, elsewhere)

    with pytest.raises(RefusedError, match=elsewhere):
        desk.staging.cancel(desk.job_id)
    assert desk.state() is State.RUNNING


def test_adopted_run_on_another_machine_is_not_cancelled_from_here(desk: Desk) -> None:
    """Whoever adopted a run has it, and only on its machine it can be stopped."""
    under_worker(desk, str(attrs.evolve(this_process(), start=1)))
    desk.engine.worker = "elsewhere:boot:1/4711/1"
    adopt = Step(Event.RUN_ADOPTED, "it lives")
    desk.engine.move(desk.row(), desk.snapshot(), adopt)

    with pytest.raises(RefusedError, match=desk.engine.worker):
        desk.staging.cancel(desk.job_id)
    assert desk.state() is State.RUNNING


def test_run_of_a_dead_worker_is_cancelled(desk: Desk) -> None:
    """A run whose worker is gone is stopped from its own machine, without a recovery first."""
    under_worker(desk, str(attrs.evolve(this_process(), start=1)))

    assert desk.staging.cancel(desk.job_id).state is State.CANCELLED
    assert desk.raw_row()["status"] == "cancelled"


def test_job_that_never_ran_can_be_cancelled(desk: Desk) -> None:
    """A queued job is cancelled before anything of it has started."""
    snapshot = desk.staging.cancel(desk.job_id)

    assert snapshot.state is State.CANCELLED
    assert desk.raw_row()["status"] == "cancelled"
    with pytest.raises(TransitionRefusedError):
        desk.staging.cancel(desk.job_id)


@pytest.mark.parametrize("stage", ["analysis", "testing"])
def test_only_staging_jobs_can_be_cancelled(desk: Desk, stage: str) -> None:
    """A job of another stage is not touched by a cancellation, which says so, however broken."""
    desk.job_id = desk.kit.add(stage, "WI-2")
    desk.write_metadata("certainly not")
    before = desk.raw_row()

    with pytest.raises(RefusedError, match="only deploy-staging has attempts"):
        desk.staging.cancel(desk.job_id)

    assert desk.raw_row() == before


def test_attempt_that_moved_since_it_was_looked_at_is_not_cancelled(desk: Desk) -> None:
    """A cancellation is of the attempt as it was looked at, and never of what it has become."""
    looked = desk.row()
    under_worker(desk, "elsewhere:boot:1/4711/1")

    with pytest.raises(StaleSnapshotError):
        cancel_at(desk.staging.runner, looked, None)
    assert desk.state() is State.RUNNING


def test_job_in_work_without_an_attempt_is_not_cancelled(desk: Desk) -> None:
    """A claimed job without an attempt may be in an agent's hands: it is refused, and untouched."""
    desk.claim()
    before = desk.raw_row()

    with pytest.raises(
        RefusedError, match=r"is running without an attempt.* an agent may be at it"
    ):
        desk.staging.cancel(desk.job_id)

    assert desk.raw_row() == before


@pytest.mark.parametrize("status", ["done", "cancelled"])
def test_job_that_has_ended_without_an_attempt_is_not_cancelled(desk: Desk, status: str) -> None:
    """What an agent has brought to its end, or a person has ended, is not ended anew."""
    desk.write("status", status)
    before = desk.raw_row()

    with pytest.raises(RefusedError, match=rf"is {status} without an attempt.* it neither waits"):
        desk.staging.cancel(desk.job_id)

    assert desk.raw_row() == before


def test_declined_job_is_not_cancelled(desk: Desk) -> None:
    """A job that the runner has declined is its agent's, and a cancellation changes nothing."""
    desk.set("INFRA_RETRIES", "many")
    desk.claim()
    desk.launch()
    before = desk.raw_row()

    with pytest.raises(TransitionRefusedError, match="not allowed in LLM_FALLBACK"):
        desk.staging.cancel(desk.job_id)

    assert desk.raw_row() == before


def test_suite_of_a_job_that_was_ended_by_its_status_is_stopped(desk: Desk) -> None:
    """Who ended a job by its status alone still stops its suite, and the status stays his."""
    under_worker(desk, str(attrs.evolve(this_process(), start=1)))
    desk.write("status", "done")

    assert desk.staging.cancel(desk.job_id).state is State.CANCELLED
    assert desk.raw_row()["status"] == "done"


@pytest.mark.parametrize("status", ["running", "done"])
def test_claimant_that_starts_no_agent_cancels_before_the_first_run(
    desk: Desk, status: str
) -> None:
    """Who has claimed a job and has no agent at it may cancel it at once, unless it has ended."""
    desk.claim()
    desk.write("status", status)
    runner, has_ended = desk.staging.runner, status == "done"
    ending = pytest.raises(RefusedError, match="it neither waits") if has_ended else nullcontext()
    with ending:
        assert cancel_in_the_end(runner, desk.job_id, lambda _: None, lambda: True)

    assert desk.raw_row()["status"] == ("done" if has_ended else "cancelled")


def test_damaged_attempt_cannot_be_cancelled(desk: Desk) -> None:
    """A person who cancels a damaged attempt is told what is wrong with it."""
    desk.write_metadata('{"staging_runner": 17}')

    with pytest.raises(SnapshotRefusedError, match="it is a int, not an object"):
        desk.staging.cancel(desk.job_id)


def test_cancellation_before_the_first_run_is_ended_by_recovery(desk: Desk) -> None:
    """A job that was cancelled before its first run ends, also where its worker died over it."""
    desk.break_part("rows.cancel", OSError("boom"))
    with pytest.raises(OSError, match="boom"):
        desk.staging.cancel(desk.job_id)
    desk.staging = desk.new_worker()
    desk.staging.recover()

    assert (desk.state(), desk.snapshot().runs) == (State.CANCELLED, ())
    assert desk.raw_row()["status"] == "cancelled"


@pytest.mark.parametrize("living", [True, False, None])
def test_deferral_is_cancelled_from_anywhere(desk: Desk, *, living: bool | None) -> None:
    """Between two runs nothing has to be stopped: whoever is asked to cancel does so."""
    desk.defer()
    desk.staging = desk.new_worker(liveness=lambda _worker: living)
    desk.engine.worker = "another"

    assert desk.staging.cancel(desk.job_id).state is State.CANCELLED
    assert desk.raw_row()["status"] == "cancelled"


def test_cancelled_deferral_is_reaped(desk: Desk) -> None:
    """What the last run of a deferred attempt may have left is looked for once more at its end."""
    desk.defer()
    run_id = run_id_of(desk.snapshot())
    reaped: list[str] = []
    reap = desk.engine.suites.reap
    desk.engine.suites.reap = lambda run_id: (reaped.append(run_id), reap(run_id))  # type: ignore[method-assign, assignment, func-returns-value]  # to look on
    desk.staging.cancel(desk.job_id)

    assert reaped == [run_id]


def test_cancellation_that_was_not_finished_is_no_opened_job(desk: Desk) -> None:
    """A launch ends a job whose cancellation was broken off, and alarms nobody for it."""
    desk.break_part("rows.cancel", OSError("boom"))
    with pytest.raises(OSError, match="boom"):
        desk.staging.cancel(desk.job_id)
    desk.staging = desk.new_worker()
    desk.claim()

    assert desk.launch().ruling is Ruling.TAKEN
    assert (desk.alerts(), desk.raw_row()["status"]) == ([], "cancelled")


@pytest.mark.parametrize("living", [True, None])
def test_cancellation_in_other_hands_is_left_to_them(desk: Desk, *, living: bool | None) -> None:
    """Recovery ends no job whose run another worker, which lives or might, is about to reap."""
    desk.break_part("rows.cancel", OSError("boom"))
    with pytest.raises(OSError, match="boom"):
        desk.staging.cancel(desk.job_id)
    other = desk.new_worker(liveness=lambda _worker: living)
    other.runner.engine.worker = "another"
    before = desk.raw_row()

    assert other.recover() == []
    assert desk.raw_row() == before


@pytest.mark.parametrize(
    ("broken", "expected"),
    [(None, Ruling.TAKEN), ("rows.cancel", Ruling.HELD), ("rows.load", Ruling.HELD)],
)
def test_cancelled_job_starts_nobody(desk: Desk, broken: str | None, expected: Ruling) -> None:
    """A launch that comes after a cancellation starts no agent, whatever goes wrong with it."""
    desk.staging.cancel(desk.job_id)
    if broken is not None:
        desk.break_part(broken, OSError("boom"))

    assert desk.launch().ruling is expected
    assert desk.state() is State.CANCELLED


@pytest.fixture
def answer_first(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Return what has a cancellation fail so often before it works; its answer, and its waits."""

    def ask(*errors: Exception) -> tuple[bool, list[float]]:
        waits, left = list[float](), [*errors]

        def fail_first(runner: StagingRunner, job_id: Any, *how: Any) -> Snapshot:
            if left:
                raise left.pop(0)
            return cancel(runner, job_id, *how)

        monkeypatch.setattr(cancelling, "cancel", fail_first)
        return cancel_in_the_end(desk.staging.runner, desk.job_id, waits.append), waits

    return ask


def refused_in(state: State) -> TransitionRefusedError:
    """Return how a cancellation is refused in a state."""
    return TransitionRefusedError(state, Event.CANCEL_REQUESTED, ())


def test_cancellation_is_asked_for_again_while_the_attempt_moves(
    desk: Desk, answer_first: Asked
) -> None:
    """Who asks while an attempt moves asks again, and waits where it is between two states."""
    under_worker(desk, str(attrs.evolve(this_process(), start=1)))
    moved = StaleSnapshotError(desk.job_id, "7-3f", 1)
    answer = answer_first(moved, refused_in(State.TOOL_ERROR), moved)

    assert answer == (True, [CANCEL_PAUSE_SECONDS])
    assert desk.state() is State.CANCELLED


def test_job_is_not_ended_while_its_run_cannot_be_reaped(desk: Desk) -> None:
    """Where a run cannot be looked at, its job stays in work, and recovery comes back to it."""
    under_worker(desk, str(attrs.evolve(this_process(), start=1)))
    desk.break_part("suites.reap", OSError("no descriptor"))
    with pytest.raises(OSError, match="no descriptor"):
        desk.staging.cancel(desk.job_id)
    before = desk.raw_row()["status"]
    desk.staging = desk.new_worker()
    desk.staging.recover()

    assert (before, desk.raw_row()["status"]) == ("running", "cancelled")


@pytest.mark.parametrize("state", [State.VERDICT_PASSED, State.EXHAUSTED, State.ADVANCED])
def test_cancellation_that_is_too_late_is_given_up(answer_first: Asked, state: State) -> None:
    """Once an attempt is judged nobody waits for its end: no cancellation will be allowed there."""
    assert answer_first(refused_in(state), RuntimeError("asked again")) == (False, [])


def test_cancellation_is_not_asked_for_without_end(desk: Desk, answer_first: Asked) -> None:
    """An attempt that neither ends nor lets itself be cancelled is given up in the end."""
    under_worker(desk, str(attrs.evolve(this_process(), start=1)))

    answer = answer_first(*[refused_in(State.TOOL_ERROR)] * CANCEL_TRIES)

    assert answer == (False, [CANCEL_PAUSE_SECONDS] * CANCEL_TRIES)
    assert desk.state() is State.RUNNING


def test_cancellation_of_what_always_moves_is_given_up(desk: Desk, answer_first: Asked) -> None:
    """An attempt that somebody else moves each time is asked for so often, and no more."""
    under_worker(desk, str(attrs.evolve(this_process(), start=1)))
    moved = StaleSnapshotError(desk.job_id, "7-3f", 1)

    assert answer_first(*[moved] * CANCEL_TRIES) == (False, [])
    assert desk.state() is State.RUNNING


@pytest.mark.parametrize("state", State)
def test_it_is_too_late_where_no_way_leads_to_a_cancellation(state: State) -> None:
    """Where the table has no way to CANCELLED it is too late to ask, and nowhere else."""
    leads_there = State.CANCELLED in reachable(TRANSITIONS, state) - {state}

    assert is_beyond(state) is not leads_there

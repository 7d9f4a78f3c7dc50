"""The fleet, on a real server with real worker processes that are killed, frozen and cut off."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleets import FleetStand, await_that, fleet_stand
from staging_fsm.core.errors import TransitionRefusedError
from staging_fsm.core.outcome import Reason
from staging_fsm.core.spec import Event, State


@pytest.fixture
def fleet(tmp_path: Path, postgres_url: str) -> Iterator[FleetStand]:
    """Return a fleet without workers."""
    with fleet_stand(tmp_path, postgres_url) as stand:
        yield stand


def events(fleet: FleetStand, job_id: int) -> list[Event]:
    """Return what happened to an attempt."""
    return [move.row.event for move in fleet.attempt(job_id).history]


def test_verdicts_reach_the_branches_of_their_work_items(fleet: FleetStand) -> None:
    """Artifact and log of a pass and of a fail are on the remote when the gate has decided."""
    passing = fleet.submit("shop", "WI-1")
    failing = fleet.submit("shop", "WI-2", verdict=1)
    fleet.machine("one").start()

    assert fleet.await_end(passing).state == State.ADVANCED
    assert fleet.await_end(failing).state == State.ROLLED_BACK
    assert "staging_status: SUCCESS" in fleet.published("shop", "WI-1")
    assert "staging_status: FAILED" in fleet.published("shop", "WI-2")
    assert fleet.published("shop", "WI-1", "15-staging-output.log") == ""
    assert await_that(lambda: not fleet.deliveries(), "every delivery is done")


def test_suite_outlives_its_worker_and_the_next_one_judges_it(fleet: FleetStand) -> None:
    """A worker that is killed costs nothing: its suite goes on, and another takes the result."""
    job = fleet.submit("shop", "WI-1", hold=True)
    fleet.machine("one").start()
    fleet.await_starts(1)
    fleet.machine("one").workers[0].kill()
    fleet.machine("one").start()
    await_that(lambda: fleet.deliveries() and fleet.deliveries()[0][1] == "todo", "redelivered")
    fleet.let_go("WI-1")
    ended = fleet.await_end(job)

    assert ended.state == State.ADVANCED
    assert [run.number for run in ended.runs] == [1]
    assert Event.RUN_ADOPTED in events(fleet, job)
    assert len(fleet.ledger("start")) == 1


def test_run_of_a_dead_machine_is_lost_when_its_fence_has_fallen(fleet: FleetStand) -> None:
    """Another machine waits while a suite may be alive, and counts it as lost once it is not."""
    job = fleet.submit("shop", "WI-1", hold=True)
    dead = fleet.machine("one")
    dead.start()
    fleet.await_starts(1)
    dead.workers[0].kill()
    fleet.machine("two").start()
    await_that(
        lambda: any(status == "todo" for _, status, _ in fleet.deliveries()), "it is refused"
    )

    assert fleet.attempt(job).state == State.RUNNING
    assert len(fleet.ledger("start")) == 1

    dead.kill_supervisors()
    fleet.await_starts(2)
    fleet.let_go("WI-1")
    ended = fleet.await_end(job)

    assert ended.state == State.ADVANCED
    assert [run.reason for run in ended.runs] == [Reason.WORKER_LOST, Reason.PASSED]
    assert fleet.ledger("overlap") == []


def test_run_of_another_machine_is_left_to_its_workers(fleet: FleetStand) -> None:
    """A result that lies on a machine with a worker is fetched there, and not run again."""
    job = fleet.submit("shop", "WI-1", hold=True)
    one = fleet.machine("one")
    one.start()
    fleet.await_starts(1)
    fleet.machine("two").start()
    one.workers[0].kill()
    fleet.let_go("WI-1")
    one.start()
    ended = fleet.await_end(job)

    assert [run.reason for run in ended.runs] == [Reason.PASSED]
    assert len(fleet.ledger("start")) == 1


def test_frozen_worker_keeps_its_fence_and_ends_what_it_began(fleet: FleetStand) -> None:
    """Nobody runs or judges what a frozen worker has in hand; awake again it goes on."""
    job = fleet.submit("shop", "WI-1", hold=True)
    frozen = fleet.machine("one").start()
    fleet.await_starts(1)
    os.kill(frozen.pid, signal.SIGSTOP)
    fleet.let_go("WI-1")
    fleet.machine("two").start()
    # It was given to somebody else, who stood before the fence.
    await_that(
        lambda: any(status == "todo" for _, status, _ in fleet.deliveries()), "it is refused"
    )

    assert fleet.attempt(job).state == State.RUNNING

    os.kill(frozen.pid, signal.SIGCONT)
    ended = fleet.await_end(job)

    assert ended.state == State.ADVANCED
    assert len(fleet.ledger("start")) == 1


def test_attempt_is_cancelled_from_anywhere(fleet: FleetStand) -> None:
    """A running suite is stopped on request of a machine that is not its own; a queued job too."""
    running = fleet.submit("shop", "WI-1", hold=True)
    queued = fleet.submit("shop", "WI-2")
    fleet.machine("one").start()
    fleet.await_starts(1)
    for job in (queued, running):
        assert fleet.call("cancel", str(job)).stdout == f"job {job}: CANCELLED\n"

    assert fleet.row(running).status == fleet.row(queued).status == "cancelled"
    assert fleet.ledger("end") == []
    with pytest.raises(TransitionRefusedError, match="not allowed in CANCELLED"):
        fleet.cancel(running)


def test_deferred_attempt_holds_up_no_other_of_its_repository(
    tmp_path: Path, postgres_url: str
) -> None:
    """While one attempt waits for its next run, others of the same repository go on."""
    backoff = {
        "ORCH_STAGING_RUNNER_RETRY_BACKOFF_SECONDS": "3600",
        "ORCH_STAGING_RUNNER_RETRY_BACKOFF_MAX_SECONDS": "3600",
    }
    with fleet_stand(tmp_path, postgres_url, **backoff) as fleet:
        waiting = fleet.submit("shop", "WI-1", verdict=126)
        fleet.machine("one").start()
        await_that(
            lambda: fleet.row(waiting).document and fleet.attempt(waiting).state == State.DEFERRED,
            "it is deferred",
        )
        other = fleet.submit("shop", "WI-2")

        assert fleet.await_end(other).state == State.ADVANCED
        assert fleet.attempt(waiting).state == State.DEFERRED

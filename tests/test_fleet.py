"""The fleet, on a real server with real worker processes that are killed, frozen and cut off."""

import contextlib
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import procrastinate
import pytest
import sqlalchemy as sa

from fleets import (
    PATIENCE_SECONDS,
    PATIENT,
    FleetStand,
    await_that,
    fleet_stand,
    present_machine,
    with_agent,
)
from hosts import git
from staging_fsm.core.errors import (
    StaleSnapshotError,
    TransitionRefusedError,
    UnansweredError,
)
from staging_fsm.core.outcome import Reason
from staging_fsm.core.ports import AlertKind
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import Event, State
from staging_fsm.core.times import format_time
from staging_fsm.drive.cancelling import cancel_at
from staging_fsm.effects.alerts import Alert, Outbox
from staging_fsm.effects.processes import this_process
from staging_fsm.faces.exits import ExitCode
from staging_fsm.fleet import requests, worker
from staging_fsm.fleet.fence import Fence, Presence
from staging_fsm.fleet.publisher import LOG_NAME
from staging_fsm.fleet.worker import WorkerExit, run_worker
from staging_fsm.host.store import SqlHostStore
from trails import CLAIM, CLAIM_AGAIN, ERROR, ERROR_AGAIN, FAILED, PASSED, WAIT, walked
from webhooks import webhooks


@pytest.fixture
def fleet(tmp_path: Path, postgres_url: str) -> Iterator[FleetStand]:
    """Return a fleet without workers."""
    with fleet_stand(tmp_path, postgres_url) as stand:
        yield stand


@pytest.fixture
def patient_fleet(tmp_path: Path, postgres_url: str) -> Iterator[FleetStand]:
    """Return a fleet that waits for an hour after a tool error."""
    with fleet_stand(tmp_path, postgres_url, **PATIENT) as stand:
        yield stand


JUDGED = {
    State.VERDICT_PASSED: walked(CLAIM, (Event.SUITE_PASSED, {"runs": (PASSED,)})),
    State.VERDICT_FAILED: walked(CLAIM, (Event.SUITE_FAILED, {"runs": (FAILED,)})),
    State.EXHAUSTED: walked(CLAIM, ERROR, WAIT, CLAIM_AGAIN, ERROR_AGAIN, (Event.BUDGET_SPENT, {})),
}


def test_verdicts_reach_the_branches_of_their_work_items(patient_fleet: FleetStand) -> None:
    """Artifact and log are on the remote when the gate has decided; who waits holds up nobody."""
    fleet = patient_fleet
    passing = fleet.submit("shop", "WI-1")
    failing = fleet.submit("shop", "WI-2", verdict=1)
    fleet.machine("one").start()

    assert fleet.await_end(passing).state == State.ADVANCED
    assert fleet.await_end(failing).state == State.ROLLED_BACK
    assert "staging_status: SUCCESS" in fleet.published("shop", "WI-1")
    assert "staging_status: FAILED" in fleet.published("shop", "WI-2")
    assert fleet.published("shop", "WI-1", LOG_NAME) == "suite of WI-1"
    assert await_that(lambda: not fleet.deliveries(), "every delivery is done")

    # The same worker: an attempt that waits for its next run holds up no other.
    waiting = fleet.submit("shop", "WI-3", verdict=126)
    await_that(lambda: len(fleet.ledger("end")) == 3, "it has had its first run")
    other = fleet.submit("shop", "WI-4")

    assert fleet.await_end(other).state == State.ADVANCED
    assert fleet.attempt(waiting).state == State.DEFERRED


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "told to end"])
def test_suite_outlives_its_worker_and_the_next_one_judges_it(
    fleet: FleetStand, how: signal.Signals
) -> None:
    """A worker that ends costs nothing: its suite goes on, and another adopts the run."""
    job = fleet.submit("shop", "WI-1", hold=True)
    replace_worker(fleet, job, how)
    fleet.let_go("WI-1")
    ended = fleet.await_end(job)

    assert ended.state == State.ADVANCED
    assert [run.number for run in ended.runs] == [1]
    assert len(fleet.ledger("start")) == 1


def replace_worker(fleet: FleetStand, job: int, how: signal.Signals = signal.SIGKILL) -> None:
    """End the worker of a job whose suite is held, and wait until another has adopted it."""
    one = fleet.machine("one")
    one.start()
    fleet.await_starts(1)
    one.workers[0].send_signal(how)
    one.workers[0].wait(PATIENCE_SECONDS)
    one.start()
    await_that(lambda: Event.RUN_ADOPTED in fleet.events(job), "the run is adopted")


def test_adopted_run_is_cancelled_like_any_other(fleet: FleetStand) -> None:
    """A suite that outlived its worker is stopped on request, by the worker that adopted it."""
    job = fleet.submit("shop", "WI-1", hold=True)
    replace_worker(fleet, job)

    assert fleet.cancel(job).state == State.CANCELLED
    assert fleet.ledger("end") == []


def test_cancellation_is_asked_of_the_successor_too(
    fleet: FleetStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a worker dies that was asked to stop an attempt, the one that adopts it is asked."""

    def overtaken(*looked: Any) -> NoReturn:
        # While its job is queued for the successor, whoever asks may end it himself.
        raise StaleSnapshotError(looked[2].id, "", None)

    monkeypatch.setattr(requests, "_cancel_here", overtaken)
    job = fleet.submit("shop", "WI-1", hold=True)
    one = fleet.machine("one")
    one.start()
    fleet.await_starts(1)
    one.workers[0].kill()
    one.workers[0].wait()
    with ThreadPoolExecutor(1) as threads:
        cancelled = threads.submit(fleet.cancel, job)
        await_that(fleet.aborted, "the dead worker is asked")
        one.start()

        assert cancelled.result().state == State.CANCELLED
    assert Event.RUN_ADOPTED in fleet.events(job)
    assert fleet.ledger("end") == []


def test_cancellation_that_an_adoption_overtakes_looks_again(
    fleet: FleetStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is adopted between a cancellation's look and its write is cancelled all the same.

    So it goes where a worker takes up the job that a dead one had, and which is queued again.
    """
    job, running = fleet.submit("shop", "WI-1"), walked(CLAIM)
    fleet.set_attempt(job, running)
    adoptions = iter([walked((Event.RUN_ADOPTED, {}), before=running)])

    def overtaken(*looked: Any) -> Snapshot:
        for adopted in adoptions:
            fleet.set_attempt(job, adopted)
        return cancel_at(*looked)

    monkeypatch.setattr(requests, "cancel_at", overtaken)

    assert fleet.cancel(job).state == State.CANCELLED
    assert Event.RUN_ADOPTED in fleet.events(job)
    assert fleet.waiting() == []


def test_worker_that_was_frozen_is_asked_to_stop_when_it_is_awake(fleet: FleetStand) -> None:
    """A run is cancelled though its worker was silent for so long that its delivery was given up.

    Those that stand before its fence meanwhile are asked, too, and have nothing to stop.
    """
    job = fleet.submit("shop", "WI-1", hold=True)
    frozen = fleet.machine("one").start()
    fleet.await_starts(1)
    os.kill(frozen.pid, signal.SIGSTOP)
    fleet.machine("two").start()
    fleet.await_refusals()
    os.kill(frozen.pid, signal.SIGCONT)

    assert fleet.cancel(job).state == State.CANCELLED
    assert fleet.ledger("end") == []


def test_cancellation_that_nobody_answers_is_told_of(
    fleet: FleetStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks to stop an attempt is not told that it stopped before it has.

    And the delivery that waits for a worker is left to it: otherwise nobody would be found
    to ask, as long as it is asked for.
    """
    job = fleet.submit("shop", "WI-1")
    waiting = fleet.waiting()
    worker = f"one-0a1b/{this_process()}"
    assert fleet.desk.store.claim_next(fleet.desk.clock.now(), worker, job) is not None
    fleet.set_attempt(job, walked(CLAIM, worker=worker))
    monkeypatch.setattr(requests, "CANCEL_MARGIN_SECONDS", 0)

    with pytest.raises(UnansweredError, match=f"no worker answered for job {job}"):
        fleet.cancel(job)
    assert fleet.attempt(job).state == State.RUNNING
    assert fleet.waiting() == waiting != []


def test_engine_is_told_how_often_workers_give_a_sign_and_when_they_count_as_gone(
    fleet: FleetStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short stalled time without heartbeats as short takes deliveries from living workers."""
    told: list[dict[str, Any]] = []

    async def end_at_once(_: procrastinate.App, **how: Any) -> None:
        told.append(how)

    monkeypatch.setattr(procrastinate.App, "run_worker_async", end_at_once)
    there = fleet.seen_from("one")
    settings, presence = there.settings, Presence(there.server, there.machine)
    monkeypatch.setattr(worker, "Presence", lambda *_: presence)
    with contextlib.closing(presence._connection):
        assert run_worker(there, 1) == WorkerExit.STOPPED

    assert [(how["update_heartbeat_interval"], how["stalled_worker_timeout"]) for how in told] == [
        (settings.heartbeat_seconds, settings.stalled_seconds)
    ]


def test_notice_that_names_no_job_is_not_heard(fleet: FleetStand) -> None:
    """Whoever may connect may say anything to the workers of a fleet; they live on."""
    there = fleet.seen_from("one")
    presence, heard = Presence(there.server, there.machine), list[int]()
    presence.hear(heard.append)
    with contextlib.closing(presence._connection):
        for words in ("everybody", "", "-1", "17"):
            with fleet.engine.begin() as tx:
                notice = {"channel": there.server.channel, "words": words}
                tx.execute(sa.text("SELECT pg_notify(:channel, :words)"), notice)
        await_that(lambda: presence.is_lost() or heard, "the last one is heard")

    assert heard == [17]


def test_run_of_a_dead_machine_is_lost_when_its_fence_has_fallen(fleet: FleetStand) -> None:
    """Another machine waits while a suite may be alive, and counts it as lost once it is not."""
    job = fleet.submit("shop", "WI-1", hold=True)
    dead = fleet.machine("one")
    dead.start()
    fleet.await_starts(1)
    dead.workers[0].kill()
    fleet.machine("two").start()
    fleet.await_refusals()

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
    one.start()
    await_that(lambda: fleet.workers() == 3, "all workers are there")
    one.workers[0].kill()
    fleet.let_go("WI-1")
    ended = fleet.await_end(job)

    assert [run.reason for run in ended.runs] == [Reason.PASSED]
    assert len(fleet.ledger("start")) == 1


@pytest.mark.parametrize("successor", ["one", "two"])
def test_verdict_is_published_once_whoever_hands_it_over(fleet: FleetStand, successor: str) -> None:
    """A worker that dies between push and gate leaves papers that the next one, anywhere, keeps."""
    job = fleet.kill_at_its_push("post-receive")
    fleet.machine(successor).start()

    assert fleet.await_end(job).state == State.ADVANCED
    assert fleet.published("shop", "WI-1", LOG_NAME) == "suite of WI-1"
    assert fleet.published("shop", "WI-1").endswith("\n    suite of WI-1")
    commits = git(fleet.remote("shop"), "log", "--format=%H", "WI-1").split()
    assert len(commits) == 2, "the suite's own and one of ours"


def test_verdict_of_another_machine_is_left_to_its_workers(fleet: FleetStand) -> None:
    """Whoever has the output hands the verdict over: a job in that state is passed on to it."""
    job = fleet.kill_at_its_push("pre-receive")
    with present_machine(fleet.seen_from("one")):
        fleet.deliver(job, "two")
    assert fleet.attempt(job).state == State.VERDICT_PASSED
    fleet.machine("one").start()

    assert fleet.await_end(job).state == State.ADVANCED
    assert fleet.published("shop", "WI-1").endswith("\n    suite of WI-1")


def test_frozen_worker_keeps_its_fence_and_ends_what_it_began(fleet: FleetStand) -> None:
    """Nobody runs or judges what a frozen worker has in hand; awake again it goes on."""
    job = fleet.submit("shop", "WI-1", hold=True)
    frozen = fleet.machine("one").start()
    fleet.await_starts(1)
    os.kill(frozen.pid, signal.SIGSTOP)
    fleet.let_go("WI-1")
    fleet.machine("two").start()
    fleet.await_refusals()

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

    assert fleet.cancel(queued).state == State.CANCELLED
    assert fleet.call("cancel", str(running)).stdout == f"job {running}: CANCELLED\n"
    assert fleet.row(running).status == fleet.row(queued).status == "cancelled"
    assert fleet.ledger("end") == []
    with pytest.raises(TransitionRefusedError, match="not allowed in CANCELLED"):
        fleet.cancel(running)
    await_that(lambda: not fleet.deliveries(), "nothing is left of the deliveries")


def test_declined_job_that_nobody_takes_is_told_of_and_can_be_cancelled(
    fleet: FleetStand,
) -> None:
    """A job that waits for an agent where none is configured is stuck, and ends on request."""
    job = fleet.submit("shop", "WI-1")
    fleet.set_attempt(job, walked((Event.RUNNER_DECLINED, {})))

    assert "no LLM agent is configured" in fleet.call("queue").stdout
    assert fleet.call("cancel", str(job)).stdout == (
        f"job {job}: cancelled; it was declined, and its attempt stays LLM_FALLBACK\n"
    )
    assert fleet.row(job).status == "cancelled"
    assert fleet.attempt(job).state == State.LLM_FALLBACK
    assert fleet.deliveries() == []
    assert fleet.call("queue").stdout == "no unfinished attempt\n"
    with pytest.raises(TransitionRefusedError):
        fleet.cancel(job)


def test_declined_job_is_not_cancelled_beside_the_agent_that_takes_it(
    fleet: FleetStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a worker has the repository it may be about to start the agent: it is waited for."""
    job = fleet.submit("shop", "WI-1")
    fleet.set_attempt(job, walked((Event.RUNNER_DECLINED, {})))
    monkeypatch.setattr(requests, "CANCEL_MARGIN_SECONDS", 0)
    with Fence(fleet.desk.server, "shop") as fence:
        assert fence.take()
        with pytest.raises(UnansweredError, match="waits, and its repository is in work"):
            fleet.cancel(job)

    assert fleet.row(job).status == "queued"


@pytest.mark.parametrize("state", [State.VERDICT_PASSED, State.VERDICT_FAILED, State.EXHAUSTED])
def test_cancellation_that_comes_too_late_is_refused_at_once(
    fleet: FleetStand, state: State
) -> None:
    """Of an attempt that is judged no worker is asked to stop, and whoever asks is told so."""
    job = fleet.submit("shop", "WI-1")
    store = SqlHostStore(fleet.engine)
    assert store.claim_next(fleet.desk.clock.now(), "one-0a1b/of:a:boot/1/2", job) is not None
    fleet.set_attempt(job, JUDGED[state])

    with pytest.raises(TransitionRefusedError, match=f"not allowed in {state}"):
        fleet.cancel(job)


def test_worker_without_its_database_ends_to_be_started_again(fleet: FleetStand) -> None:
    """A worker that cannot reach the server says so in a line, and ends."""
    fleet.settings["ORCH_DB_URL"] = "postgresql://postgres@127.0.0.1:1/nowhere"

    assert fleet.machine("one").start().wait(PATIENCE_SECONDS) == ExitCode.DECLINED
    assert (
        (fleet.root / "one.log")
        .read_text()
        .startswith("staging-fsm: the database cannot be reached")
    )


def test_worker_whose_branch_is_no_longer_the_fleets_ends(fleet: FleetStand) -> None:
    """A worker that runs while another branch is noted ends at its next job, and says why."""
    fleet.call("fleet-setup")
    worker = fleet.machine("one").start()
    await_that(fleet.workers, "it is at work")
    fleet.settings["ORCH_FLEET_BRANCH"] = "feature/{work_item}"
    fleet.call("fleet-setup")
    job = fleet.submit("shop", "WI-1")

    assert worker.wait(PATIENCE_SECONDS) == ExitCode.DECLINED
    assert "have `staging-fsm fleet-setup` note" in (fleet.root / "one.log").read_text()

    # Those that go by what was noted get the job, and have a branch of their own.
    git(fleet.remote("shop"), "branch", "feature/WI-1", "WI-1")
    fleet.machine("two").start()

    assert fleet.await_end(job).state == State.ADVANCED
    assert git(fleet.remote("shop"), "log", "--format=%an", "-1", "feature/WI-1") == "staging_fsm"


#: The first one works for long; whoever comes after it looks whether it still does.
LASTING_AGENT = """\
if [ -e "$FLEET/agent" ]; then
    # Nothing, of a process that has ended.
    [ -z "$(tr -d '\\0' 2>&- <"/proc/$(cat "$FLEET/agent")/cmdline")" ] || touch "$FLEET/beside"
    touch "$FLEET/looked"
else
    echo $$ >"$FLEET/agent"
    sleep 600
fi
"""


def test_agent_of_a_dead_worker_ends_before_the_next_one_begins(
    tmp_path: Path, postgres_url: str
) -> None:
    """What a killed worker's agent still does is ended: no two of one job are at work at once."""
    off = {"ORCH_STAGING_RUNNER_ENABLED": "0", **with_agent(tmp_path, LASTING_AGENT)}
    with fleet_stand(tmp_path, postgres_url, **off) as fleet:
        fleet.submit("shop", "WI-1")
        one = fleet.machine("one")
        worker = one.start()
        await_that((tmp_path / "agent").exists, "the agent is at work")
        worker.kill()
        one.start()
        await_that((tmp_path / "looked").exists, "another agent has looked")

        assert not (tmp_path / "beside").exists()


def test_work_item_goes_all_the_way_to_done(tmp_path: Path, postgres_url: str) -> None:
    """A fleet works on every stage: what staging refuses is mended, pushed, staged and deployed."""
    with fleet_stand(tmp_path, postgres_url, **with_agent(tmp_path)) as fleet:
        job = fleet.submit("shop", "WI-1", verdict=1)
        fleet.machine("one").start()
        await_that(lambda: fleet.stage_of("WI-1") == "done", "it is done")
        attempts = [row.snapshot() for row in fleet.desk.rows.attempts()]
        revisions = [attempt.bound_plan.revision for attempt in attempts if attempt]

        assert fleet.attempt(job).state == State.ROLLED_BACK
        assert [attempt and attempt.state for attempt in attempts] == [
            State.ROLLED_BACK,
            State.ADVANCED,
        ]
        assert git(fleet.remote("shop"), "rev-parse", "deployed/WI-1") == revisions[1]
        assert git(fleet.remote("shop"), "show", "WI-1:verdict") == "0"
        await_that(lambda: not fleet.deliveries(), "every delivery is done")


@pytest.mark.parametrize("started", [True, False], ids=["worker", "recover"])
def test_alert_that_a_machine_owes_is_delivered_though_no_job_moves_there(
    tmp_path: Path, postgres_url: str, *, started: bool
) -> None:
    """What a machine could not tell, its workers tell when they start and from then on.

    And so does `recover` there.
    """
    with webhooks() as make:
        address = make()
        urls = {"ORCH_STAGING_RUNNER_ALERT_URLS": address.url}
        with fleet_stand(tmp_path, postgres_url, **urls) as fleet:
            desk = fleet.desk
            # Another machine has neither what is owed here, nor always the sweep to itself.
            fleet.machine("other").start()

            def owe_and_see(text: str) -> None:
                alert = Alert(format_time(desk.clock.now()), AlertKind.FAILED_CLOSED, "7", text)
                Outbox(desk.state.outbox).put(text, alert)
                if not started:
                    fleet.call("recover")
                elif text == "before":
                    fleet.machine("desk").start()
                address.wait_for(lambda: text in address.text)

            owe_and_see("before")
            owe_and_see("meanwhile")

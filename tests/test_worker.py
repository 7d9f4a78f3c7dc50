"""The worker's loop: many jobs in hand, whoever dies, is slow, or does not answer."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import attrs
import pytest
import sqlalchemy as sa

from hosts import DEADLINE_SECONDS, HostKit, Maker, NoWaiting, worker
from staging_fsm.effects.clock import SystemClock
from staging_fsm.effects.processes import (
    ProcessIdentity,
    identify,
    is_alive,
    send_signal,
    this_process,
    wait_for_end,
)
from staging_fsm.host import launcher
from staging_fsm.host.launcher import CLAIM_MARK, Host, finish_job
from staging_fsm.host.store import Job, SqlHostStore
from staging_fsm.host.worker import IDLE_SECONDS, Worker


def dead_worker() -> ProcessIdentity:
    """Return the name of a worker of this machine that is gone."""
    here = this_process()
    return ProcessIdentity(here.scope, here.pid, here.start + 1)


def test_only_jobs_of_dead_workers_are_queued_again(make_host: Maker) -> None:
    """A job of a dead worker is queued again; one of a live or of a foreign worker is not."""
    kit = make_host()
    other = identify(os.getppid())
    assert other is not None
    claims = {
        kit.add("analysis", "dead"): dead_worker(),
        kit.add("analysis", "alive"): other,
        kit.add("analysis", "foreign"): ProcessIdentity("elsewhere:boot:1", 1, 1),
    }
    for job_id, claim in claims.items():
        kit.store.claim_next(kit.host.clock.now(), str(claim), job_id)

    requeued = worker(kit).requeue_abandoned()

    assert [job.work_item for job in requeued] == ["dead"]


@contextlib.contextmanager
def agent_of(claim: ProcessIdentity, job_id: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Have an agent be at work for a claim of a job."""
    mark = {CLAIM_MARK: f"{claim}/{job_id}"}
    with subprocess.Popen(["sleep", "600"], env={**os.environ, **mark}) as agent:
        try:
            yield agent
        finally:
            agent.kill()


def test_agent_of_a_killed_worker_is_ended_before_another_is_started(
    make_host: Maker, tmp_path: Path
) -> None:
    """Whatever a killed worker's agent has started is dead when its job is launched again."""
    told = tmp_path / "told"
    os.mkfifo(told)
    script = tmp_path / "agent.sh"
    script.write_text(f"sleep 600 & echo $$ $! >{told}; wait\n")
    kit = make_host(agent_command=f"sh {script}")
    kit.add("development")
    begin = (
        "import sys; from staging_fsm.faces.cli import main;"
        f"main(['worker', '--db', 'sqlite:///{tmp_path}/orchestrator.db'])"
    )
    variables = {
        **os.environ,
        "ORCH_AGENT_COMMAND": f"sh {script}",
        "ORCH_STAGING_RUNNER_STATE_DIR": str(tmp_path / "state"),
        "ORCH_LOG_DIR": str(tmp_path / "agent-logs"),
    }
    with subprocess.Popen([sys.executable, "-c", begin], env=variables) as killed:
        agents = [identify(int(pid)) for pid in told.read_text().split()]
        killed.kill()
    lived = [agent is not None and is_alive(agent) for agent in agents]
    ended: list[bool] = []

    def look(_host: Host, _job: Job) -> None:
        ended.extend(wait_for_end(agent, DEADLINE_SECONDS) for agent in agents if agent)

    restarted = Worker(kit.host, str(this_process()), look)
    restarted.run_until_idle()
    for agent in filter(None, agents):
        send_signal(agent, signal.SIGKILL)

    assert lived == [True, True]
    assert ended == [True, True]


def test_agent_of_another_claim_is_left_alone(make_host: Maker) -> None:
    """Who takes a dead worker's job ends no agent that works for a living worker's claim of it."""
    kit = make_host()
    job_id, dead = kit.add("development"), dead_worker()
    kit.store.claim_next(kit.host.clock.now(), str(dead), job_id)
    with agent_of(dead, job_id) as left, agent_of(this_process(), job_id) as ours:
        requeued = worker(kit).requeue_abandoned()
        is_at_it = ours.poll() is None
        how = left.wait(DEADLINE_SECONDS)

    assert [job.id for job in requeued] == [job_id]
    assert (how, is_at_it) == (-signal.SIGKILL, True)


def out_of_descriptors(*_arguments: object) -> int:
    """Fail to look."""
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize("kill", [lambda *_: 1, out_of_descriptors], ids=["stays", "unknown"])
def test_job_whose_agent_stays_alive_waits(
    make_host: Maker, monkeypatch: pytest.MonkeyPatch, kill: Callable[..., int]
) -> None:
    """A dead worker's job is left as it is while its agent may be alive, and holds up no other."""
    kit = make_host()
    host = attrs.evolve(kit.host, clock=NoWaiting())
    jobs = [kit.add("development", name) for name in ("WI-1", "WI-2")]
    dead = dead_worker()
    for job_id in jobs:
        kit.store.claim_next(kit.host.clock.now(), str(dead), job_id)
    looked_for = f"{dead}/{jobs[0]}"
    monkeypatch.setattr(
        launcher, "kill_marked", lambda mark, value: kill(mark) if value == looked_for else 0
    )
    looking = Worker(host, str(this_process()), lambda _host, _job: None)

    assert [job.id for job in looking.requeue_abandoned()] == jobs[1:]
    assert kit.store.job(jobs[0]).claimed_by == str(dead)

    monkeypatch.undo()

    assert [job.id for job in looking.requeue_abandoned()] == jobs[:1]


def claimed_by_another(kit: HostKit, job: Job) -> None:
    """Have another recovery take the claim back first, and a live worker claim the job."""
    assert kit.store.requeue_abandoned(job, kit.host.clock.now())
    assert kit.store.claim_next(kit.host.clock.now(), "alive", job.id) is not None


def ended(kit: HostKit, job: Job) -> None:
    """Have the job's gate be asked."""
    finish_job(kit.host, job, 0)


def cancelled(kit: HostKit, job: Job) -> None:
    """Have the job be cancelled."""
    kit.set_status(job.id, "cancelled")


@pytest.mark.parametrize("meanwhile", [claimed_by_another, ended, cancelled])
def test_claim_that_has_changed_is_not_taken_back(
    make_host: Maker, meanwhile: Callable[[HostKit, Job], None]
) -> None:
    """A recovery that comes late leaves a job that was ended, or claimed anew, as it is."""
    kit = make_host()
    job_id = kit.add("development")
    kit.store.claim_next(kit.host.clock.now(), "dead", job_id)
    [seen] = kit.store.running_jobs()
    meanwhile(kit, seen)
    before = kit.store.job(job_id)

    assert not kit.store.requeue_abandoned(seen, kit.host.clock.now())
    assert kit.store.job(job_id) == before


@pytest.mark.parametrize("command", ["", "/nowhere/agent"], ids=["none", "not installed"])
def test_job_that_cannot_be_launched_does_not_stop_the_worker(
    make_host: Maker, command: str
) -> None:
    """A worker whose agent cannot be started leaves the job claimed and goes on with the next."""
    kit = make_host(agent_command=command)
    first = kit.add("analysis", "WI-1")
    kit.add("deploy", "WI-2")

    launched = worker(kit).run_until_idle()

    assert launched == 3
    assert kit.store.job(first).status == "running"
    assert kit.item("WI-2").stage == "done"


def test_worker_has_many_jobs_in_hand_at_once(make_host: Maker) -> None:
    """A worker launches as many due jobs at once as it may, and no job twice."""
    kit = make_host()
    jobs = [kit.add("analysis", f"WI-{number}") for number in range(5)]
    all_at_once = threading.Barrier(2)
    launched = []

    def launch(_host: Host, job: Job) -> None:
        # The first four jobs need each other to go on, two by two.
        if job.id != jobs[-1]:
            all_at_once.wait(DEADLINE_SECONDS)
        launched.append(job.id)

    worker = Worker(kit.host, "worker", launch=launch, concurrency=2)

    assert worker.run_until_idle() == len(jobs)
    assert sorted(launched) == jobs


class Emptied(SqlHostStore):
    """A host's database that tells when it was asked for a job and none was due."""

    def __init__(self, engine: sa.Engine) -> None:
        """Have had a job for everybody so far."""
        super().__init__(engine)
        self.nothing_is_due = threading.Event()

    def claim_next(self, now: datetime, claimed_by: str, only: int | None = None) -> Job | None:
        """Claim a job as ever, and tell where there was none."""
        job = super().claim_next(now, claimed_by, only)
        if job is None:
            self.nothing_is_due.set()
        return job


def test_worker_goes_on_with_what_a_job_in_hand_has_queued(make_host: Maker) -> None:
    """Nothing is due is only true once no job in hand can queue another."""
    kit = make_host()
    kit.add("analysis")
    store = Emptied(kit.store.engine)
    launched = []

    def launch(_host: Host, job: Job) -> None:
        launched.append(job.work_item)
        if job.work_item == "WI-1":
            assert store.nothing_is_due.wait(DEADLINE_SECONDS)
            kit.add("analysis", "WI-2")

    host = attrs.evolve(kit.host, store=store)
    worker = Worker(host, "worker", launch=launch, concurrency=4)

    assert worker.run_until_idle() == 2
    assert launched == ["WI-1", "WI-2"]


def test_worker_takes_up_what_comes_while_a_job_in_hand_lasts(make_host: Maker) -> None:
    """A job that lasts keeps no other waiting that is queued meanwhile, while there is room."""
    kit = make_host()
    kit.add("analysis")
    store, other_is_done = Emptied(kit.store.engine), threading.Event()
    done_meanwhile = list[bool]()

    def launch(_host: Host, job: Job) -> None:
        if job.work_item == "WI-2":
            other_is_done.set()
            return
        assert store.nothing_is_due.wait(DEADLINE_SECONDS)
        kit.add("analysis", "WI-2")
        done_meanwhile.append(other_is_done.wait(DEADLINE_SECONDS))

    host = attrs.evolve(kit.host, store=store)
    Worker(host, "worker", launch=launch, concurrency=2).run_until_idle()

    assert done_meanwhile == [True]


def test_queued_job_that_a_worker_still_has_is_ended(make_host: Maker) -> None:
    """A job that recovery has queued beside the worker that has it is ended by its gate, once."""
    kit = make_host()
    job_id = kit.add("development")

    with kit.store.transaction() as tx:
        assert kit.store.finish_job(tx, job_id, kit.host.clock.now())
        assert not kit.store.finish_job(tx, job_id, kit.host.clock.now())

    assert kit.store.claim_next(kit.host.clock.now(), "w") is None


def test_claim_whose_answer_was_lost_is_queued_again(make_host: Maker) -> None:
    """A job that was claimed for a live worker that never heard of it is nobody's."""
    kit = make_host(agent="")
    job_id = kit.add("development")
    unaware = worker(kit)
    kit.store.claim_next(kit.host.clock.now(), unaware.identity)
    other = kit.add("development", "WI-2")
    broken = Worker(kit.host, unaware.identity)
    broken.run_one(other)

    assert [job.id for job in broken.requeue_abandoned()] == [job_id]


def test_later_claim_whose_answer_was_lost_is_queued_again(make_host: Maker) -> None:
    """A job that a live worker has had before is nobody's if it never heard of the later claim."""
    kit = make_host()
    job_id = kit.add("development")

    def give_back(_host: Host, job: Job) -> None:
        assert kit.store.requeue_abandoned(job, kit.host.clock.now())

    had_it = Worker(kit.host, str(this_process()), give_back)
    had_it.run_one()
    kit.store.claim_next(kit.host.clock.now(), had_it.identity)

    assert [job.id for job in had_it.requeue_abandoned()] == [job_id]


def test_claim_that_a_worker_is_about_to_hear_of_is_not_taken_from_it(make_host: Maker) -> None:
    """What was claimed is nobody's only once the answer to the claim is lost, and not yet late."""
    kit = make_host()
    kit.add("development")

    class Store(SqlHostStore):
        """Answers late: meanwhile somebody looks for claims that nobody has heard of."""

        def claim_next(self, now: datetime, claimed_by: str, only: int | None = None) -> Job | None:
            super().claim_next(now, claimed_by, only)
            assert claiming.requeue_abandoned() == []
            message = "the answer is lost"
            raise OSError(message)

    host = attrs.evolve(kit.host, store=Store(kit.store.engine))
    claiming = Worker(host, str(this_process()), lambda _host, _job: None)
    with pytest.raises(OSError, match="the answer is lost"):
        claiming.run_one()

    assert [job.work_item for job in claiming.requeue_abandoned()] == ["WI-1"]


def test_claim_that_is_heard_of_during_a_look_is_not_taken(make_host: Maker) -> None:
    """A claim whose answer comes between a look at the claims and its verdict is the worker's."""
    kit = make_host()
    kit.add("development")

    class Store(SqlHostStore):
        """Has the worker claim a job just before it is looked at."""

        def running_jobs(self) -> list[Job]:
            assert looking.run_one() is not None
            return super().running_jobs()

    host = attrs.evolve(kit.host, store=Store(kit.store.engine))
    looking = Worker(host, str(this_process()), lambda _host, _job: None)

    assert looking.requeue_abandoned() == []


def test_claim_that_was_made_anew_since_it_was_looked_at_stays(make_host: Maker) -> None:
    """Who looked at a claim before it was given back, and made again, takes nothing back."""
    kit = make_host()
    job_id, me = kit.add("development"), str(this_process())
    now = kit.host.clock.now()
    kit.store.claim_next(now, me, job_id)
    [seen] = kit.store.running_jobs()
    assert kit.store.requeue_abandoned(seen, now)
    kit.store.claim_next(now + timedelta(seconds=1), me, job_id)

    assert not kit.store.requeue_abandoned(seen, now)
    assert kit.store.job(job_id).status == "running"


def test_worker_forgets_the_claims_of_jobs_that_have_ended(make_host: Maker) -> None:
    """What a worker keeps of its claims does not grow with the jobs that it has done."""
    kit = make_host()
    busy = Worker(kit.host, str(this_process()), lambda _host, _job: None)
    kept = kit.add("development", "kept")
    done = kit.add("development", "done")
    for job_id in (kept, done):
        busy.run_one(job_id)
    with kit.store.transaction() as tx:
        kit.store.finish_job(tx, done, kit.host.clock.now())

    assert busy.requeue_abandoned() == []
    assert set(busy._claimed) == busy._let_go == {kept}
    assert not busy._in_hand


def test_claim_that_is_made_again_during_a_look_is_not_forgotten(make_host: Maker) -> None:
    """A job that had ended for a look, and was claimed before its verdict, is the worker's."""
    kit = make_host()
    job_id = kit.add("development")

    class Store(SqlHostStore):
        """Has the job be claimed again right after it was looked for."""

        def running_jobs(self) -> list[Job]:
            running = super().running_jobs()
            if not running:
                busy.run_one(job_id)
            return running

    store = Store(kit.store.engine)
    busy = Worker(
        attrs.evolve(kit.host, store=store), str(this_process()), lambda _host, _job: None
    )
    [job] = [busy.run_one(job_id)]
    assert job is not None
    [claimed] = store.running_jobs()
    store.requeue_abandoned(claimed, kit.host.clock.now())

    assert busy.requeue_abandoned() == []
    assert busy.requeue_abandoned() == []
    assert kit.store.job(job_id).status == "running"


@pytest.mark.parametrize("what_fails", ["claim_next", "running_jobs"])
def test_statement_that_fails_keeps_no_job_waiting_for_one_in_hand(
    make_host: Maker, what_fails: str
) -> None:
    """While a job lasts, a store that failed once is asked again, and other jobs are begun."""
    kit = make_host(recovery_seconds=str(IDLE_SECONDS))
    long, clock = kit.add("testing", "long"), NoWaiting()
    begun, failed = threading.Event(), threading.Event()

    class Store(SqlHostStore):
        """Away once, as soon as the long job is in hand."""

        def claim_next(self, now: datetime, claimed_by: str, only: int | None = None) -> Job | None:
            self.fail("claim_next")
            return super().claim_next(now, claimed_by, only)

        def running_jobs(self) -> list[Job]:
            self.fail("running_jobs")
            return super().running_jobs()

        def fail(self, asked: str) -> None:
            if asked == what_fails and begun.is_set() and not failed.is_set():
                failed.set()
                message = "away"
                raise OSError(message)

    def launch(_host: Host, job: Job) -> None:
        if job.id == long:
            begun.set()
            clock.wait(IDLE_SECONDS)
            assert failed.wait(DEADLINE_SECONDS)
            kit.add("testing", "other")
            done_meanwhile.append(other_is_done.wait(DEADLINE_SECONDS))
        else:
            other_is_done.set()

    done_meanwhile, other_is_done = list[bool](), threading.Event()
    store = Store(kit.store.engine)
    host = attrs.evolve(kit.host, store=store, clock=clock)
    working = Worker(host, str(this_process()), launch=launch, concurrency=2)

    assert working.run_until_idle() == 2
    assert done_meanwhile == [True]


STOPPED = """
import faulthandler, random, signal
from staging_fsm.effects.clock import SystemClock

faulthandler.dump_traceback_later(60, exit=True)
chance = random.Random(7)
for _ in range(1500):
    clock, stopped = SystemClock(), []
    signal.signal(signal.SIGALRM, lambda *_: (stopped.append(1), clock.wake()))
    signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.00002, 0.0006))
    while not stopped:
        clock.wait(0.0002)
"""


def test_wait_can_be_ended_by_a_signal_at_any_moment() -> None:
    """A worker that is told to end as its wait is over ends, and does not wait for itself."""
    subprocess.run([sys.executable, "-c", STOPPED], check=True)


def test_wait_that_was_ended_stays_ended() -> None:
    """After a wake every wait is over at once, however long it was to be."""
    clock = SystemClock()
    clock.wake()

    for _ in range(2):
        clock.wait(DEADLINE_SECONDS)


def test_worker_has_heard_of_every_job_it_has_in_hand(make_host: Maker) -> None:
    """None of the jobs that a worker has in hand at once is taken back from it."""
    kit = make_host()
    busy = Worker(kit.host, str(this_process()), lambda _host, _job: None)
    for name in ("WI-1", "WI-2"):
        busy.run_one(kit.add("development", name))

    assert busy.requeue_abandoned() == []


@pytest.mark.parametrize("times_away", [0, 1, 3])
def test_worker_recovers_before_it_looks_for_work(make_host: Maker, times_away: int) -> None:
    """What a dead worker left is taken up before any job is claimed, however long that fails."""
    kit = make_host(recovery_seconds="3600")
    done: list[str] = []

    class Store(SqlHostStore):
        """Tells what it was asked, and stops the worker at its first claim."""

        def running_jobs(self) -> list[Job]:
            """Say that somebody recovers, and be away for the first times."""
            done.append("recover")
            if len(done) <= times_away:
                message = "away"
                raise OSError(message)
            return super().running_jobs()

        def claim_next(self, now: datetime, claimed_by: str, only: int | None = None) -> Job | None:
            """Say that somebody looks for work, who need not look again."""
            done.append("claim")
            starting.stop()
            return super().claim_next(now, claimed_by, only)

    host = attrs.evolve(kit.host, store=Store(kit.store.engine), clock=NoWaiting())
    starting = Worker(host, str(this_process()))
    starting.run_forever()

    assert done == ["recover"] * times_away + ["recover", "claim"]


def test_store_that_is_away_is_not_asked_without_a_pause(make_host: Maker) -> None:
    """A worker waits between two looks at a store that is away."""
    kit = make_host()
    asked: list[str] = []

    class Away(SqlHostStore):
        """Away, and asked a few times at most."""

        def running_jobs(self) -> list[Job]:
            """Fail, and stop the worker in the end."""
            asked.append("look")
            if asked.count("look") == 3:
                waiting.stop()
            message = "away"
            raise OSError(message)

    class Clock(NoWaiting):
        """Tells of each wait."""

        def wait(self, seconds: float) -> None:
            """Say that somebody waits."""
            asked.append("wait")
            super().wait(seconds)

    host = attrs.evolve(kit.host, store=Away(kit.store.engine), clock=Clock())
    waiting = Worker(host, str(this_process()))
    waiting.run_forever()

    assert asked == ["look", "wait", "look", "wait", "look"]


def test_idle_worker_recovers_again_and_outlives_its_store(make_host: Maker) -> None:
    """A worker recovers at start and whenever idle for long, and waits for a store that is away."""
    kit = make_host(recovery_seconds="0")
    looks: list[int] = []

    class Store(SqlHostStore):
        """Away at first."""

        def running_jobs(self) -> list[Job]:
            """Fail once, and stop the worker at the third time."""
            looks.append(1)
            if len(looks) == 1:
                message = "away"
                raise OSError(message)
            if len(looks) == 3:
                tireless.stop()
            return super().running_jobs()

    tireless = Worker(
        attrs.evolve(kit.host, store=Store(kit.store.engine), clock=NoWaiting()),
        str(this_process()),
    )
    tireless.run_forever()

    assert len(looks) == 3


class Watched(SqlHostStore):
    """Tells at which time somebody looked for jobs that others have left."""

    def __init__(self, engine: sa.Engine, clock: NoWaiting) -> None:
        """Tell the time that was waited on `clock`."""
        super().__init__(engine)
        self.clock, self.looks = clock, list[float]()

    def running_jobs(self) -> list[Job]:
        """Tell of the look, and find nothing."""
        self.looks.append(self.clock.waited)
        return []


@pytest.mark.parametrize("seconds", [3 * IDLE_SECONDS, -3600.0], ids=["passed", "set back"])
def test_worker_that_is_never_idle_recovers_all_the_same(make_host: Maker, seconds: float) -> None:
    """Between two jobs a worker looks for what others left, once it is time, or the clock jumps."""
    kit = make_host(recovery_seconds=str(3 * IDLE_SECONDS))
    clock = NoWaiting()
    store = Watched(kit.store.engine, clock)
    jobs = [kit.add("testing", f"WI-{number}") for number in range(4)]

    def launch(_host: Host, job: Job) -> None:
        clock.wait(seconds if job.id == jobs[1] else 0.1)

    host = attrs.evolve(kit.host, store=store, clock=clock)
    assert Worker(host, str(this_process()), launch=launch).run_until_idle() == len(jobs)
    assert store.looks == [0, seconds + 0.1]


def test_worker_that_recovers_all_the_time_comes_to_rest(make_host: Maker) -> None:
    """Where no pause is asked for there is a short one: a worker with nothing to do says so."""
    kit = make_host(recovery_seconds="0")

    class Ending(Watched):
        """Ends a worker that looks again."""

        def running_jobs(self) -> list[Job]:
            """Look."""
            if self.looks:
                restless.stop()
            return super().running_jobs()

    clock = NoWaiting()
    store = Ending(kit.store.engine, clock)
    restless = Worker(attrs.evolve(kit.host, store=store, clock=clock), str(this_process()))
    restless.run_until_idle()

    assert store.looks == [0]


def test_idle_worker_recovers_as_often_as_it_is_told(make_host: Maker) -> None:
    """A worker that waits for work looks for what others left at the pace of its setting."""
    kit = make_host(recovery_seconds=str(3 * IDLE_SECONDS))

    class Clock(NoWaiting):
        """Stops the worker in the end."""

        def wait(self, seconds: float) -> None:
            """Let time pass."""
            super().wait(seconds)
            if self.waited >= 10 * IDLE_SECONDS:
                idle.stop()

    clock = Clock()
    store = Watched(kit.store.engine, clock)
    idle = Worker(attrs.evolve(kit.host, store=store, clock=clock), str(this_process()))
    idle.run_forever()

    assert store.looks == [0, 3, 6, 9]


def test_job_in_hand_keeps_nobody_from_recovering(make_host: Maker) -> None:
    """While a job lasts, what a dead worker left is queued again, and taken up beside it."""
    kit = make_host(recovery_seconds=str(IDLE_SECONDS))
    clock = NoWaiting()
    kit.add("testing", "WI-1")
    left, here = kit.add("testing", "WI-2"), this_process()
    dead = ProcessIdentity(here.scope, here.pid, here.start + 1)
    kit.store.claim_next(clock.now(), str(dead), only=left)
    done = list[str]()
    other_is_done = threading.Event()

    class FirstBlind(Watched):
        """Finds what there is at the second look."""

        def running_jobs(self) -> list[Job]:
            """Look, but for the first time."""
            return super().running_jobs() if not self.looks else SqlHostStore.running_jobs(self)

    def launch(_host: Host, job: Job) -> None:
        if job.id == left:
            other_is_done.set()
            return
        clock.wait(IDLE_SECONDS)
        assert other_is_done.wait(DEADLINE_SECONDS)
        done.append(job.work_item)

    store = FirstBlind(kit.store.engine, clock)
    host = attrs.evolve(kit.host, store=store, clock=clock)
    Worker(host, str(this_process()), launch=launch, concurrency=2).run_until_idle()

    assert done == ["WI-1"]

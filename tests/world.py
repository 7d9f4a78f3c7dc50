"""A simulated world: the real engine, intercept, recovery and host between simulated ends.

There is one thread, no file, no process and no real time. Everything that a
worker does to the world is a point at which it stands still until the world lets
it go on, so any worker may be overtaken by any other, fail or die, before or
after what it does there. Nothing here is drawn by chance: whoever moves the
world, a seeded runner or Hypothesis, says what happens next, and the same moves
give the same world. After each move the promises of `core/invariants.py` are
checked for every attempt that could have changed.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import auto
from typing import Final, NoReturn, cast

import attrs
from greenlet import getcurrent, greenlet

from memory import (
    TEXTS_KEPT,
    Record,
    Tables,
    Transaction,
    foreign,
    stored_attempt,
    with_member,
)
from simulated import (
    ENDINGS,
    FORGERIES,
    POINTS_MAX,
    REPO,
    ROOT,
    Crash,
    Doing,
    Facts,
    Fate,
    File,
    Named,
    Run,
    Task,
    ViolationError,
    Worker,
)
from staging_fsm.core.config import RunnerConfig
from staging_fsm.core.errors import StagingError
from staging_fsm.core.invariants import (
    INVARIANTS,
    Movement,
    Sight,
    Start,
    history_is_a_path,
    trail_is_unbroken,
    violations,
)
from staging_fsm.core.jobs import SNAPSHOT_KEY, STAGE
from staging_fsm.core.ports import RunOrder, RunReport
from staging_fsm.core.snapshot import FORMAT, Snapshot
from staging_fsm.core.spec import State
from staging_fsm.core.suites import SuitesConfig, parse_suites
from staging_fsm.core.times import format_time
from staging_fsm.effects.processes import ProcessIdentity
from staging_fsm.host import launcher
from staging_fsm.host.launcher import finish_job
from staging_fsm.host.store import WorkItem

EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
SUITES: Final = {
    "exit-code": parse_suites('[default]\ncommand = ["run-the-suite"]\n'),
    "junit": parse_suites('[default]\ncommand = ["pytest"]\nreport = "junit.xml"\n'),
}


class Damage(Named):
    """What may become of our key in a row."""

    CUT_SHORT = auto()
    NEWER_FORMAT = auto()
    NO_PATH = auto()


def damaged(metadata: str, damage: Damage) -> str:
    """Return the metadata of a row with an attempt after something happened to it."""
    if damage is Damage.CUT_SHORT:
        return metadata[: len(metadata) // 2]
    document = json.loads(metadata)
    ours = document[SNAPSHOT_KEY]
    if damage is Damage.NEWER_FORMAT:
        ours |= {"format": FORMAT + 1, "version": ours["version"] + 1}
    else:
        ours |= {"state": "ADVANCED", "version": ours["version"] + 1}
    return json.dumps(document)


@attrs.frozen
class Shape:
    """What a world is made of."""

    jobs: int = 1
    #: The machine of each worker process there is at first.
    machines: tuple[str, ...] = ("m:boot:1", "m:boot:1")
    policy: str = "exit-code"
    infra_retries: int = 1
    backoff_seconds: int = 30
    developer_retries: int = 2
    foreign: str = '{"ticket":7.50}'
    #: Whether an artifact with a SUCCESS lies about from earlier.
    older_artifact: bool = True
    enabled: bool = True


class World:
    """Everything there is."""

    def __init__(self, shape: Shape) -> None:
        """Begin with queued jobs of `deploy-staging` and idle workers."""
        self.shape = shape
        self.time, self.moves = EPOCH, 0
        self.trace: list[str] = [f"world {shape}"]
        self.fired: Counter[str] = Counter()
        self._accusations: list[str] = []
        self.broken = False
        self._workers_made = 0
        self.commits = 0
        self.variables: dict[str, str] = {
            "ORCH_STAGING_RUNNER_ENABLED": "1" if shape.enabled else "0",
            "ORCH_STAGING_RUNNER_REPOS": REPO,
            "ORCH_STAGING_RUNNER_SHADOW": "0",
            "ORCH_STAGING_RUNNER_INFRA_RETRIES": str(shape.infra_retries),
            "ORCH_STAGING_RUNNER_RETRY_BACKOFF_SECONDS": str(shape.backoff_seconds),
            "ORCH_STAGING_RUNNER_RETRY_BACKOFF_MAX_SECONDS": str(4 * shape.backoff_seconds),
        }
        self.excluded_at = -1
        #: Since when the runner may only record; None while it may do more.
        self.shadowed_at: int | None = None
        self.bewitched = False
        self.files: dict[str, File] = {}
        self.runs: dict[str, Run] = {}
        self.facts: dict[int, Facts] = {}
        self.touched: set[int] = set()
        self.tables = Tables()
        self.tables.committed = self._committed
        self.tables.repositories[REPO] = ROOT
        for number in range(1, shape.jobs + 1):
            item = WorkItem(REPO, f"WI-{number}", STAGE, shape.developer_retries, None)
            self.tables.items[REPO, item.id] = item
            self._queue(item)
            if shape.older_artifact:
                self.files[item.id] = File(FORGERIES["a success"] or "", older=True)
        self.workers: list[Worker] = []
        for machine in shape.machines:
            self._new_worker(machine)

    # What the simulated ends ask and tell.

    def now(self) -> datetime:
        """Return the time of day."""
        return self.time

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.time += timedelta(seconds=seconds)

    def wake(self) -> None:
        """Nobody waits in earnest."""

    def lives(self, name: str, machine: str) -> bool | None:
        """Say whether a worker lives, as far as `machine` can know."""
        if ProcessIdentity.parse(name).scope != machine:
            return None
        return any(name == worker.identity and worker.alive for worker in self.workers)

    def read_suites(self, _config: RunnerConfig) -> SuitesConfig:
        """Return the suites file."""
        return SUITES[self.shape.policy]

    def excluded(self) -> bool:
        """Say whether kill switch, scope or shadow mode keep the runner away."""
        return (
            self.variables["ORCH_STAGING_RUNNER_ENABLED"] != "1"
            or self.variables["ORCH_STAGING_RUNNER_REPOS"] != REPO
            or self.variables["ORCH_STAGING_RUNNER_SHADOW"] != "0"
        )

    def run(self, run_id: str, machine: str) -> Run:
        """Return a run; one that nobody started is there as soon as somebody looks for it."""
        job_id, number = _parse_run_id(run_id)
        junit = self.shape.policy == "junit"
        nothing = Run(run_id, job_id, number, machine, junit, supervised=False)
        return self.runs.setdefault(run_id, nothing)

    def started(self, order: RunOrder, machine: str) -> None:
        """Take note of a suite that starts."""
        job_id, number = _parse_run_id(order.run_id)
        facts = self.facts[job_id]
        file = self.files.get(self.tables.jobs[job_id].work_item)
        counted = len(facts.snapshot.runs) if facts.snapshot else 0
        older = file is not None and file.older
        facts.starts = (*facts.starts, Start(number, counted, older))
        begun = cast("Task", getcurrent()).began
        if self.shadowed_at is not None and self.shadowed_at < begun and number == 1:
            self.accuse(f"run 1 of job {job_id} was started by a launch in shadow mode")
        junit = order.suite.report is not None
        self.runs[order.run_id] = Run(order.run_id, job_id, number, machine, junit)
        self.touch(job_id)

    def wrote(self, work_item: str, text: str) -> None:
        """Take note of an artifact that the runner writes."""
        self.files[work_item] = File(text)
        found = re.search(r"\nattempt: \W?(\d+)-a\W?\n", text)
        assert found is not None, text
        job_id = int(found.group(1))
        facts = self.facts[job_id]
        facts.written = (*facts.written, text)
        self.touch(job_id)

    def declined(self, job_id: int) -> None:
        """Take note of a launch that goes to the LLM path."""
        facts, task = self.facts[job_id], cast("Task", getcurrent())
        if facts.damaged_at is not None and task.read_at > facts.damaged_at:
            # Who has not read the row since cannot know: the state before it is judged below.
            self.accuse(f"job {job_id} is damaged, and its launch went to the LLM path")
        snapshot = facts.snapshot
        state = None if snapshot is None else snapshot.state
        cancelled = state is State.CANCELLED and snapshot is not None and not snapshot.runs
        if not task.has_read and (cancelled or facts.delivered_again):
            # Who cannot read the row cannot know of a person who cancelled since it was
            # claimed, nor of a delivery beside the claim that it was told is exclusive.
            state = None
        facts.declined_in = (*facts.declined_in, state)
        task.declined.add(job_id)
        self.touch(job_id)

    def touch(self, job_id: int) -> None:
        """Have a job checked after this move."""
        self.touched.add(job_id)

    def _committed(self, tx: Transaction) -> None:
        self.commits += 1
        task = getcurrent()
        for job_id in tx.saved:
            self._stored(job_id, self.tables.jobs[job_id], task)
        self.touched.update(tx.jobs.keys() & self.facts.keys())
        if tx.ended_job in self.facts:
            self._ended(self.facts[tx.ended_job], tx, task)

    def _stored(self, job_id: int, record: Record, task: greenlet) -> None:
        facts, snapshot = self.facts[job_id], record.row.snapshot()
        assert snapshot is not None
        self._accusations += [f"job {job_id}: {sentence}" for sentence in _broken(record.metadata)]
        facts.earlier, facts.snapshot, facts.damaged_at = facts.snapshot, snapshot, None
        self.fired[snapshot.history[-1].id] += 1
        if len(snapshot.history) == 1:
            file = self.files.get(self.tables.jobs[job_id].work_item)
            if file is not None:
                file.older = True
        if snapshot.state is State.LLM_FALLBACK and isinstance(task, Task):
            facts.switched_off = self.excluded() or self.excluded_at >= task.began

    def _ended(self, facts: Facts, tx: Transaction, task: greenlet) -> None:
        job = tx.jobs[cast("int", tx.ended_job)]
        item = tx.items[job.repo, job.work_item]
        if not tx.by_runner:
            facts.ended_by_agent = True
            return
        assert isinstance(task, Task)
        forward = item.stage == "deploy"
        facts.movements = (*facts.movements, Movement.FORWARD if forward else Movement.BACK)
        before = cast("WorkItem", tx.items_before[job.repo, job.work_item])
        facts.spent += before.developer_retries - item.developer_retries
        facts.gate_text = task.gate_text

    # What may happen next. Each of these is one move.

    def begin(self, worker: Worker, doing: Doing, job_id: int) -> Task:
        """Have a worker begin something."""
        actions: dict[Doing, Callable[[], object]] = {
            Doing.WORK: lambda: worker.loop.run_one(job_id),
            Doing.DELIVER_AGAIN: lambda: self._deliver_again(worker, job_id),
            Doing.RECOVER: worker.loop.recover,
            Doing.CANCEL: lambda: worker.staging.cancel(job_id),
        }
        about = "" if doing is Doing.RECOVER else f" job {job_id}"
        task = Task(worker, f"{doing}{about}", actions[doing])
        worker.tasks.append(task)
        self._move(f"{task}: begin")
        self._switch(task, Fate.GO)
        self.check()
        return task

    def _deliver_again(self, worker: Worker, job_id: int) -> None:
        # A host that may deliver a launch twice cannot say that one is the first.
        job = self.tables.jobs[job_id].job()
        self.facts[job_id].delivered_again = True
        if not worker.staging.launch(job_id):
            finish_job(worker.host, job, launcher._spawn(worker.host, job))

    def advance(self, task: Task, fate: Fate = Fate.GO) -> None:
        """Let a worker go on from where it stands."""
        self._move(f"{task}: {task.point}" + ("" if fate is Fate.GO else f" -> {fate}"))
        if fate is Fate.CRASH_BEFORE:
            self._end(task.worker)
        else:
            self._switch(task, fate)
        self.check()

    def kill(self, worker: Worker) -> None:
        """Kill a worker."""
        self._move(f"{worker.name} is killed")
        self._end(worker)
        self.check()

    def replace(self, worker: Worker) -> Worker:
        """Start a new worker in the place of a dead one."""
        self._move(f"{worker.name} is replaced")
        self.workers.remove(worker)
        return self._new_worker(worker.machine)

    def end_run(self, run: Run, ending: str) -> None:
        """Have a suite end, and its supervisor leave a result."""
        self._move(f"run {run.id} ends: {ending}")
        facts, evidence = ENDINGS[ending]
        if run.junit:
            facts = attrs.evolve(facts, evidence=evidence)
        run.report = RunReport(facts, 1.0, None, "/log", "0" * 64, 34, 0)
        run.supervised = False
        # Whoever forged a result may well live on.
        run.orphans = ending == "forged"
        self.touch(run.job_id)
        self.check()

    def lose_supervisor(self, run: Run) -> None:
        """Have a supervisor be killed; the processes of its suite live on."""
        self._move(f"run {run.id} loses its supervisor")
        run.supervised, run.orphans = False, True
        self.check()

    def pass_time(self, seconds: float) -> None:
        """Let the clock go on, or be set, forwards or back."""
        self._move(f"the clock moves by {seconds:g} s")
        self.time += timedelta(seconds=seconds)

    def set(self, name: str, value: str) -> None:
        """Change the configuration of the runner."""
        self._move(f"{name}={value}")
        if self.excluded():
            self.excluded_at = self.moves
        if name == "SHADOW":
            self.shadowed_at = self.moves if value == "1" else None
        self.variables[f"ORCH_STAGING_RUNNER_{name}"] = value

    def forge(self, work_item: str, forgery: str) -> None:
        """Have somebody write where the gate looks."""
        self._move(f"somebody leaves {forgery} for {work_item}")
        text = FORGERIES[forgery]
        if text is None:
            self.files.pop(work_item, None)
        else:
            self.files[work_item] = File(text)

    def bewitch(self, *, opens: bool) -> None:
        """Have the gate open whatever it reads, or stop that."""
        self._move(f"the gate {'always opens' if opens else 'reads again'}")
        self.bewitched = opens

    def damage(self, job_id: int, damage: Damage) -> bool:
        """Damage the attempt in a row; False where there is none."""
        record = self.tables.jobs[job_id]
        facts = self.facts[job_id]
        if facts.snapshot is None or facts.damaged or self.tables.writer is not None:
            return False
        self._move(f"job {job_id} is damaged: {damage}")
        self.tables.jobs[job_id] = attrs.evolve(record, metadata=damaged(record.metadata, damage))
        facts.damaged_at = self.moves
        return True

    def note(self, job_id: int, text: str) -> bool:
        """Have the host write a key of its own into a row; False while somebody else writes."""
        record = self.tables.jobs[job_id]
        if self.facts[job_id].damaged or self.tables.writer is not None:
            return False
        self._move(f"the host notes {text} on job {job_id}")
        metadata = with_member(record.metadata, "note", json.dumps(text))
        self.tables.jobs[job_id] = attrs.evolve(record, metadata=metadata)
        self.facts[job_id].foreign = foreign(metadata)
        return True

    def send_back(self, work_item: str) -> bool:
        """Have a developer bring a work item back to staging; False where it is not his."""
        item = self.tables.items[REPO, work_item]
        if item.stage != "development" or item.blocked_reason or self.tables.writer is not None:
            return False
        self._move(f"{work_item} comes back")
        item = attrs.evolve(item, stage=STAGE)
        self.tables.items[REPO, work_item] = item
        for record in self.tables.jobs.values():
            if record.work_item == work_item and record.status == "queued":
                self.tables.jobs[record.id] = attrs.evolve(record, status="done")
        self._queue(item)
        return True

    # What can be seen.

    def tasks(self) -> list[Task]:
        """Return everything that some worker is doing."""
        return [task for worker in self.workers for task in worker.tasks]

    def live_workers(self) -> list[Worker]:
        """Return the workers that live."""
        return [worker for worker in self.workers if worker.alive]

    def live_runs(self) -> list[Run]:
        """Return the runs that have a supervisor."""
        return [run for run in self.runs.values() if run.supervised]

    def is_due(self, job: Record) -> bool:
        """Say whether a queued job may be claimed."""
        return job.not_before is None or job.not_before <= format_time(self.time)

    def can_cancel(self) -> bool:
        """Say whether a person may cancel: a run is only reaped from the machine that it is on."""
        return len({*self.shape.machines}) == 1

    def is_hopeless(self, job_id: int) -> bool:
        """Say whether an attempt is damaged, or has lost its job to an agent."""
        facts = self.facts[job_id]
        return facts.damaged or facts.ended_by_agent

    def staging_jobs(self) -> list[Record]:
        """Return the rows of the jobs that are ours to watch, as they are stored."""
        return [self.tables.jobs[job_id] for job_id in self.facts]

    def check(self) -> None:
        """Fail if any promise is broken for an attempt that this move could have touched."""
        for job_id in self.touched:
            facts = self.facts[job_id]
            if facts.snapshot is not None:
                broken = violations(self.sight(job_id, facts.snapshot), _BESIDE)
                self._accusations += [f"job {job_id}: {sentence}" for sentence in broken]
            elif facts.starts or facts.movements or facts.written:
                self.accuse(f"job {job_id}: something was done for it without an attempt")
        self.touched.clear()
        if self._accusations:
            self.fail("; ".join(self._accusations))

    def sight(self, job_id: int, snapshot: Snapshot) -> Sight:
        """Return an attempt and everything that is known beside it."""
        facts, record = self.facts[job_id], self.tables.jobs[job_id]
        return Sight(
            snapshot,
            earlier=facts.earlier,
            gate_text=facts.gate_text,
            movements=facts.movements,
            developer_retries_spent=facts.spent,
            written=facts.written,
            starts=facts.starts,
            live_runs=tuple(
                run.number for run in self.runs.values() if run.alive and run.job_id == job_id
            ),
            job_ended=record.status not in ("queued", "running"),
            declined_in=facts.declined_in,
            switched_off=facts.switched_off,
            foreign_before=facts.foreign,
            foreign_after=facts.foreign if facts.damaged else foreign(record.metadata),
            raised=facts.raised,
            alerts=facts.alerts,
        )

    def accuse(self, text: str) -> None:
        """Say that a promise was broken; the move in hand still ends."""
        self._accusations.append(text)

    def fail(self, text: str) -> NoReturn:
        """Fail, and show everything that happened."""
        self.broken = True
        message = text + "\n  " + "\n  ".join(self.trace)
        raise ViolationError(message)

    # How it all ends.

    def settle(self, ending: str = "passed") -> None:
        """Let nothing go wrong any more, and fail unless every attempt comes to its end.

        First the workers go on as they are, and only dead ones are replaced: what
        has not ended then must have alerted somebody. Then all of them are started
        afresh: what has not ended then must be damaged, or no longer the runner's.
        """
        self._move("nothing goes wrong any more")
        self.bewitched = False
        self._work_until_idle(ending)
        for job_id, facts in self.facts.items():
            ended = facts.snapshot is None or facts.snapshot.is_terminal or facts.ended_by_agent
            if not ended and not facts.alerts:
                self.fail(f"job {job_id} does not end, and nobody was alerted")
        if not self.open_jobs():
            return
        for worker in list(self.workers):
            self.kill(worker)
            self.replace(worker)
        self._work_until_idle(ending)
        for job_id in self.open_jobs():
            if not self.is_hopeless(job_id):
                self.fail(f"job {job_id} never ends")

    def open_jobs(self) -> list[int]:
        """Return the jobs that have not come to their end."""
        return [
            job_id
            for job_id, facts in self.facts.items()
            if (facts.snapshot is not None and not facts.snapshot.is_terminal)
            or self.tables.jobs[job_id].status in ("queued", "running")
        ]

    def _work_until_idle(self, ending: str) -> None:
        """Have every worker recover and work, as long as there is something to wait for."""
        rounds = 2 * (3 + self.shape.infra_retries)
        for number in range(2 * rounds):
            self.finish_tasks(ending)
            if not self.open_jobs():
                return
            # Some have died of what was under way when nothing more went wrong.
            for worker in [worker for worker in self.workers if not worker.alive]:
                self.replace(worker)
            commits = self.commits
            for worker in list(self.workers):
                self.begin(worker, Doing.RECOVER, 0)
                self.finish_tasks(ending)
            queued = [job for job in self.staging_jobs() if job.status == "queued"]
            for job in queued:
                self.begin(self.workers[job.id % len(self.workers)], Doing.WORK, job.id)
            self.finish_tasks(ending)
            if not queued and self.commits == commits:
                return
            # First as long as any wait may be; then until everything is due that a clock
            # which was set back has put off for the host.
            self.pass_time(self.shape.backoff_seconds * 5 if number < rounds else 86_400)

    def finish_tasks(self, ending: str = "passed") -> None:
        """Let everything that was begun come to its end, and every suite with it."""
        while tasks := self.tasks():
            ready = [task for task in tasks if task.ready()]
            for task in ready:
                # Another may have begun to write meanwhile.
                if not task.dead and task.ready():
                    self.advance(task)
            if not ready:
                runs = self.live_runs()
                if not runs:
                    self.fail("nobody can go on: " + ", ".join(map(str, tasks)))
                self.end_run(runs[0], ending)

    # How it moves.

    def _move(self, text: str) -> None:
        self.moves += 1
        self.trace.append(text)

    def _switch(self, task: Task, fate: Fate) -> None:
        if task.points > POINTS_MAX:
            self.fail(f"{task} never ends")
        if task.points:
            task.switch(fate)
        else:
            task.switch()
        if task.dead:
            task.worker.tasks.remove(task)
            if task.failure is not None and not _is_an_answer(task):
                self._end(task.worker)

    def _end(self, worker: Worker) -> None:
        """End a worker's process and everything that it was doing."""
        worker.alive = False
        tasks, worker.tasks = worker.tasks, []
        for task in tasks:
            task.throw(Crash)

    def _new_worker(self, machine: str) -> Worker:
        self._workers_made += 1
        worker = Worker(self, self._workers_made, machine)
        self.workers.append(worker)
        return worker

    def _queue(self, item: WorkItem) -> None:
        job_id = 1 + len(self.tables.jobs)
        foreign_ = self.shape.foreign
        record = Record(job_id, REPO, item.id, STAGE, "deployer", "queued", metadata=foreign_)
        self.tables.jobs[job_id] = record
        self.facts[job_id] = Facts(foreign(foreign_))


#: What these say depends on what is stored alone, so the same text is not asked twice.
_ALONE: Final = (history_is_a_path, trail_is_unbroken)
_BESIDE: Final = tuple(invariant for invariant in INVARIANTS if invariant not in _ALONE)


@functools.lru_cache(TEXTS_KEPT)
def _broken(metadata: str) -> tuple[str, ...]:
    """Return the promises that a stored attempt breaks, whatever is known beside it."""
    snapshot = stored_attempt(metadata)
    return () if snapshot is None else tuple(violations(Sight(snapshot), _ALONE))


def _parse_run_id(run_id: str) -> tuple[int, int]:
    """Return job and number of a run, from a name like `1-a.2`."""
    attempt, _, number = run_id.rpartition(".")
    return int(attempt.removesuffix("-a")), int(number)


def _is_an_answer(task: Task) -> bool:
    """Say whether what a task raised is an answer to a person, and no end of its worker."""
    return task.doing.startswith(Doing.CANCEL) and isinstance(task.failure, StagingError)

"""A simulated world: the real engine, intercept, recovery and host between simulated ends.

There is one thread, no file, no process and no real time. Everything that a
worker does to the world is a point at which it stands still until the world lets
it go on, so any worker may be overtaken by any other, fail or die, before or
after what it does there. Nothing here is drawn by chance: whoever moves the
world, a seeded runner or Hypothesis, says what happens next, and the same moves
give the same world. After each move the promises of `core/invariants.py` are
checked for every attempt that could have changed.
"""

import contextlib
import functools
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum, auto
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar, cast

import attrs
import yaml
from greenlet import getcurrent, greenlet

from memory import (
    STORE_ERRORS,
    TEXTS_KEPT,
    Errors,
    MemoryRows,
    MemoryStore,
    Record,
    Tables,
    Transaction,
    foreign,
    stored_attempt,
    with_member,
)
from staging_fsm.core.config import RunnerConfig
from staging_fsm.core.errors import PreparationError, StagingError
from staging_fsm.core.evidence import NO_EVIDENCE_REQUIRED, Counts, Evidence, EvidenceState
from staging_fsm.core.invariants import (
    INVARIANTS,
    Movement,
    Sight,
    Start,
    history_is_a_path,
    trail_is_unbroken,
    violations,
)
from staging_fsm.core.jobs import SNAPSHOT_KEY, JobRow, Place
from staging_fsm.core.outcome import RunFacts, SpawnError, Stop, Supervision
from staging_fsm.core.plan import SuitePlan
from staging_fsm.core.ports import AlertKind, RunCondition, RunOrder, RunReport
from staging_fsm.core.snapshot import FORMAT, Snapshot
from staging_fsm.core.spec import State
from staging_fsm.core.suites import SuitesConfig, parse_suites
from staging_fsm.core.times import format_time
from staging_fsm.drive.engine import Engine
from staging_fsm.drive.intercept import STAGE, UNSEEN, StagingIntercept
from staging_fsm.drive.rulings import Decision, Ruling
from staging_fsm.drive.runner import StagingRunner
from staging_fsm.effects.processes import ProcessIdentity
from staging_fsm.host import launcher, pipeline
from staging_fsm.host.contract import gate as gate_module
from staging_fsm.host.contract.gate import _parse_staging_status
from staging_fsm.host.launcher import Host, finish_job
from staging_fsm.host.pipeline import JobAlreadyEndedError, initiate_gate, work_item_dir
from staging_fsm.host.settings import load_host_settings
from staging_fsm.host.store import Job, WorkItem
from staging_fsm.host.worker import Worker as Loop

T = TypeVar("T")
REPO: Final = "shop"
ROOT: Final = Path("/simulated/shop")
EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
FILE_ERRORS: Final[Errors] = (OSError, OSError)
#: More points than any single thing that a worker does can have; beyond it, it hangs.
POINTS_MAX: Final = 2_000
#: What ends a worker's process, as it would end a real one.
FATAL: Final = (*STORE_ERRORS, OSError, JobAlreadyEndedError, StagingError)


class Crash(BaseException):
    """The worker was killed: no error, so nothing in the product may catch it."""


class ViolationError(AssertionError):
    """A promise was broken."""


class _Named(StrEnum):
    @staticmethod
    def _generate_next_value_(name: str, _start: int, _count: int, _last_values: list[str]) -> str:
        return name.lower().replace("_", " ")


class Fate(_Named):
    """What becomes of a worker at a point."""

    GO = auto()
    #: What it was about to do fails, and nothing was done.
    REFUSED = auto()
    #: What it did is done, and yet it fails.
    LOST = auto()
    CRASH_BEFORE = auto()
    CRASH_AFTER = auto()


class Doing(_Named):
    """What a worker may begin."""

    #: Claim the job if it is due, and launch it.
    WORK = auto()
    #: Launch the job although it is claimed: the launch was delivered twice.
    DELIVER_AGAIN = auto()
    RECOVER = auto()
    CANCEL = auto()


def _counts(tests: int, failures: int = 0, skipped: int = 0) -> Evidence:
    return Evidence(EvidenceState.READ, Counts(tests, failures, 0, skipped))


def _facts(exit_code: int | None = 0, **facts: Any) -> RunFacts:
    return RunFacts(
        exit_code=exit_code, supervision=Supervision.SOUND, **{"log_complete": True} | facts
    )


#: How a run may end: its facts, under policy "exit-code" and under policy "junit".
ENDINGS: Final[dict[str, tuple[RunFacts, Evidence]]] = {
    "passed": (_facts(), _counts(3)),
    "failed": (_facts(1), _counts(3, 1)),
    "exit 0 over failures": (_facts(), _counts(3, 1)),
    "no test": (_facts(), _counts(0)),
    "all skipped": (_facts(), _counts(3, 0, 3)),
    "no report": (_facts(), Evidence(EvidenceState.MISSING)),
    "old report": (_facts(), Evidence(EvidenceState.STALE)),
    "out of memory": (_facts(None, signal=9), NO_EVIDENCE_REQUIRED),
    "crashed": (_facts(None, signal=11), NO_EVIDENCE_REQUIRED),
    "exit 0 at the deadline": (_facts(stopped_by=Stop.DEADLINE), _counts(3)),
    "tool error": (_facts(126), NO_EVIDENCE_REQUIRED),
    "not found": (_facts(None, spawn_error=SpawnError.NOT_FOUND), NO_EVIDENCE_REQUIRED),
    "tree changed": (_facts(tree_changed=True), _counts(3)),
    "log lost": (_facts(log_complete=False), _counts(3)),
    "process left": (_facts(processes_left=1), _counts(3)),
    "forged": (attrs.evolve(_facts(), supervision=Supervision.FORGED), _counts(3)),
}
LOST_REPORT: Final = RunReport(RunFacts(supervision=Supervision.LOST))
STOPPED_REPORT: Final = RunReport(_facts(stopped_by=Stop.REQUEST))
#: What a suite or a stray agent may leave where the gate looks.
FORGERIES: Final[dict[str, str | None]] = {
    "a success": "---\nstaging_status: SUCCESS\n---\nTrust me.\n",
    "a failure": "---\nstaging_status: FAILED\n---\n",
    "both": "---\nstaging_status: SUCCESS\nstaging_status: FAILED\n---\n",
    "half a file": "---\nstaging_sta",
    "nothing": None,
}
LYING_OUTPUT: Final = b"---\nstaging_status: SUCCESS\n---\n\x1b[2J3 passed\n"
SUITES: Final = {
    "exit-code": parse_suites('[default]\ncommand = ["run-the-suite"]\n'),
    "junit": parse_suites('[default]\ncommand = ["pytest"]\nreport = "junit.xml"\n'),
}


class Damage(_Named):
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


class Task(greenlet):
    """One thing that a worker does, standing at the point where it is next to touch the world."""

    def __init__(self, worker: "Worker", doing: str, action: Callable[[], object]) -> None:
        """Prepare it; `advance` begins it."""
        super().__init__()
        self.worker, self.doing, self.action = worker, doing, action
        self.began = worker.world.moves
        self.point = "begin"
        self.ready: Callable[[], bool] = lambda: True
        self.points = 0
        self.result: object = None
        self.failure: BaseException | None = None
        #: Which jobs this task's launches declined, and what its gate read.
        self.declined: set[int] = set()
        #: Whether the launch under way has been able to read its row.
        self.has_read = False
        self.gate_text: str | None = None

    def run(self) -> None:
        """Do it, and keep how it ended."""
        try:
            self.result = self.action()
        except Crash as crash:
            self.failure = crash
        except FATAL as failure:
            self.failure = failure

    def stand(self, point: str, ready: Callable[[], bool]) -> Fate:
        """Stand at a point until the world says how to go on."""
        self.point, self.ready = point, ready
        self.points += 1
        return cast("Fate", cast("greenlet", self.parent).switch())

    def __str__(self) -> str:
        """Return who does what."""
        return f"{self.worker.name} {self.doing}"


@attrs.define(eq=False)
class Run:
    """One run as the machine sees it."""

    id: str
    job_id: int
    number: int
    machine: str
    junit: bool
    supervised: bool = True
    #: Processes of a suite whose supervisor is gone.
    orphans: bool = False
    report: RunReport | None = None
    #: Nobody may start it any more.
    closed: bool = False

    @property
    def alive(self) -> bool:
        """Say whether any process of the run is alive."""
        return self.supervised or self.orphans


@attrs.define
class File:
    """An artifact in its place."""

    text: str
    #: Whether it was there before the attempt began that is under way.
    older: bool = False


@attrs.define
class Facts:
    """What the world knows of one job beside its row."""

    foreign: str
    snapshot: Snapshot | None = None
    earlier: Snapshot | None = None
    gate_text: str | None = None
    movements: tuple[Movement, ...] = ()
    spent: int = 0
    written: tuple[str, ...] = ()
    starts: tuple[Start, ...] = ()
    declined_in: tuple[State | None, ...] = ()
    switched_off: bool | None = None
    raised: tuple[str, ...] = ()
    alerts: tuple[AlertKind, ...] = ()
    damaged: bool = False
    #: The host delivered the job beside a claim, which then is not the exclusive one it says.
    delivered_again: bool = False
    #: An agent ended the job: an attempt that a second delivery began comes to nothing.
    ended_by_agent: bool = False


class SimulatedSuites:
    """`Suites` of one worker: the runs of its machine."""

    def __init__(self, worker: "Worker") -> None:
        """Act for `worker`."""
        self._worker, self._world = worker, worker.world

    def start(self, order: RunOrder) -> None:
        """Start a run; refused where its name is taken or closed."""
        self._worker.do("start", lambda: self._start(order), (PreparationError, RuntimeError))

    def _start(self, order: RunOrder) -> None:
        if order.run_id in self._world.runs:
            self._reap(order.run_id)
            message = f"run {order.run_id} exists"
            raise PreparationError(message)
        self._world.started(order, self._worker.machine)

    def await_report(self, run_id: str) -> RunReport:
        """Wait until nothing of the run is alive, and report."""
        run = self._world.runs.get(run_id)
        errors: Errors = (PreparationError, OSError)
        return self._worker.do(
            "await", lambda: self._report(run), errors, lambda: run is None or not run.supervised
        )

    def _report(self, run: Run | None) -> RunReport:
        if run is None:
            message = "the order of the run cannot be read"
            raise PreparationError(message)
        self._world.touch(run.job_id)
        run.orphans = False
        return run.report or LOST_REPORT

    def condition(self, run_id: str) -> RunCondition:
        """Say what there is of a run; one that is lost is closed."""
        return self._worker.do("condition", lambda: self._condition(run_id), FILE_ERRORS)

    def _condition(self, run_id: str) -> RunCondition:
        run = self._world.run(run_id, self._worker.machine)
        if run.machine != self._worker.machine:
            return RunCondition.FOREIGN
        if run.supervised:
            return RunCondition.LIVE
        if run.report is not None:
            return RunCondition.FINISHED
        run.closed = True
        return RunCondition.LOST

    def reap(self, run_id: str) -> None:
        """Stop whatever is left of a run."""
        self._worker.do("reap", lambda: self._reap(run_id), FILE_ERRORS)

    def _reap(self, run_id: str) -> None:
        run = self._world.run(run_id, self._worker.machine)
        if run.machine != self._worker.machine:
            return
        self._world.touch(run.job_id)
        if run.supervised:
            run.report = STOPPED_REPORT
        run.supervised = run.orphans = False
        run.closed = True

    def log_tail(self, run_id: str, _size: int) -> bytes:
        """Return the end of a run's output: every suite here prints a forged verdict."""
        return self._worker.do(
            "log tail", lambda: LYING_OUTPUT if run_id in self._world.runs else b"", FILE_ERRORS
        )

    def shown_command(self, _run_id: str, suite: SuitePlan) -> tuple[str, ...]:
        """Return a command as it is: nobody here has a secret."""
        return self._worker.do("shown command", lambda: suite.command, FILE_ERRORS)


class SimulatedArtifacts:
    """`Artifacts` of one worker: one file for each work item."""

    def __init__(self, worker: "Worker") -> None:
        """Act for `worker`."""
        self._worker, self._world = worker, worker.world

    def set_aside(self, folder: Path, _suffix: str) -> None:
        """Take the artifact out of the gate's sight."""
        files = self._world.files
        self._worker.do("set aside", lambda: files.pop(folder.name, None), FILE_ERRORS)

    def write(self, folder: Path, text: str) -> Path:
        """Write the artifact."""
        self._worker.do("write", lambda: self._world.wrote(folder.name, text), FILE_ERRORS)
        return folder / "15-staging-log.md"

    def is_written(self, folder: Path, text: str) -> bool:
        """Say whether the artifact is exactly `text`."""
        files = self._world.files
        return self._worker.do(
            "is written",
            lambda: folder.name in files and files[folder.name].text == text,
            FILE_ERRORS,
        )


class SimulatedAlerts:
    """`Alerts` of one worker. They may fail, as a host's own may."""

    def __init__(self, worker: "Worker") -> None:
        """Act for `worker`."""
        self._worker = worker

    def deliver(self) -> None:
        """Do nothing: what was sent has arrived."""

    def send(
        self, kind: AlertKind, job_id: object, _text: str, _attempt_id: str | None = None
    ) -> None:
        """Alert a person."""
        facts = self._worker.world.facts[cast("int", job_id)]

        def deliver() -> None:
            facts.alerts = (*facts.alerts, kind)
            self._worker.world.touch(cast("int", job_id))

        try:
            self._worker.do(f"alert {kind}", deliver, (ConnectionError, ConnectionError))
        except ConnectionError:
            # Whether it arrived is no longer the product's doing: it was sent.
            deliver()
            raise


class Intercept(StagingIntercept):
    """The real intercept, with somebody who looks at its answers."""

    sim: "Worker"

    def launch(self, job_id: Any, metadata: object = UNSEEN) -> Decision:
        """Answer as the real one does."""
        facts = self.sim.world.facts[job_id]
        cast("Task", getcurrent()).has_read = False
        try:
            decision = super().launch(job_id, metadata)
        except Exception as error:
            facts.raised = (*facts.raised, repr(error))
            self.sim.world.touch(job_id)
            raise
        if decision.ruling is Ruling.DECLINED:
            self.sim.world.declined(job_id)
        return decision


class Worker:
    """One process that works on jobs; its `Hands`, its intercept and its loop."""

    def __init__(self, world: "World", number: int, machine: str) -> None:
        """Start the process."""
        self.world, self.machine, self.name = world, machine, f"w{number}"
        self.identity = str(ProcessIdentity(machine, number, 1))
        self.alive = True
        self.tasks: list[Task] = []
        store = MemoryStore(world.tables, self)
        folders = {item: work_item_dir(ROOT, item) for _, item in world.tables.items}

        def place(row: JobRow) -> Place:
            return Place(ROOT, folders[row.work_item])

        def gate(row: JobRow, tx: Transaction) -> bool:
            # As in host.launcher.staging_intercept.
            tx.by_runner = True
            return initiate_gate(store, tx, row, 0, folders[row.work_item], world.now()).opened

        engine = Engine(
            MemoryRows(world.tables, self),
            SimulatedSuites(self),
            SimulatedArtifacts(self),
            SimulatedAlerts(self),
            world,
            gate,
            place,
            self.identity,
        )
        runner = StagingRunner(
            engine,
            world.variables,
            STAGE,
            suites=world.read_suites,
            bind=self._bind,
            liveness=lambda name: world.lives(ProcessIdentity.parse(name), machine),
            new_id=lambda: "a",
        )
        self.staging = cast("Intercept", Intercept.of(runner))
        self.staging.sim = self
        self.host = Host(store, SETTINGS, world, self.staging)
        self.loop = Loop(
            self.host, self.identity, self._launch, lambda who: world.lives(who, machine)
        )

    def _launch(self, host: Host, job: Job) -> None:
        """Launch a job as the host does, and tell of errors that no world could cause."""
        try:
            launcher.launch_job(host, job)
        except FATAL:
            raise
        except Exception as error:  # noqa: BLE001  # the loop would keep it to itself
            self.world.accuse(f"launching job {job.id} raised {error!r}")

    def _bind(self, _repository: Path, _suite: SuitePlan) -> str:
        return self.do("bind", lambda: "c0ffee", (PreparationError, RuntimeError))

    def do(
        self,
        point: str,
        effect: Callable[[], T],
        errors: Errors = STORE_ERRORS,
        ready: Callable[[], bool] = lambda: True,
    ) -> T:
        """Stand at `point`, and then perform `effect`, or fail, or die."""
        if not self.alive:
            raise Crash
        fate = cast("Task", getcurrent()).stand(point, ready)
        if fate is Fate.REFUSED:
            message = f"{point}: refused"
            raise errors[0](message)
        result = effect()
        if fate is not Fate.LOST and point == "load":
            cast("Task", getcurrent()).has_read = True
        if fate is Fate.LOST:
            message = f"{point}: done, and nobody knows"
            raise errors[1](message)
        if fate is Fate.CRASH_AFTER:
            raise Crash
        return result


SETTINGS: Final = load_host_settings({"ORCH_AGENT_COMMAND": "agent"})


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

    def lives(self, who: ProcessIdentity, machine: str) -> bool | None:
        """Say whether a worker lives, as far as `machine` can know."""
        if who.scope != machine:
            return None
        return any(str(who) == worker.identity and worker.alive for worker in self.workers)

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
        facts = self.facts[job_id]
        if facts.damaged:
            self.accuse(f"job {job_id} is damaged, and its launch went to the LLM path")
        task, snapshot = cast("Task", getcurrent()), facts.snapshot
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
        facts.earlier, facts.snapshot, facts.damaged = facts.snapshot, snapshot, False
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
        facts.damaged = True
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
        for worker in [worker for worker in self.workers if not worker.alive]:
            self.replace(worker)
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


def _spawn(host: Host, job: Job) -> int:  # noqa: ARG001  # as the real one
    """Stand in for `host.launcher._spawn`: the agent writes a SUCCESS, whatever was asked."""
    task = cast("Task", getcurrent())
    worker, world = task.worker, task.worker.world
    if job.id not in task.declined:
        world.accuse(f"job {job.id}: an agent was started, and no launch had been declined")
    worker.do("agent starts", lambda: world.files.pop(job.work_item, None), FILE_ERRORS)
    success = File(FORGERIES["a success"] or "")
    worker.do("agent ends", lambda: world.files.update({job.work_item: success}), FILE_ERRORS)
    return 0


def _check_staging_status(folder: Path | str) -> bool:
    """Stand in for the gate's reading of a file; what it reads is parsed by the real parser."""
    task = cast("Task", getcurrent())
    world = task.worker.world

    def read() -> str | None:
        file = world.files.get(Path(folder).name)
        return None if file is None else file.text

    try:
        task.gate_text = task.worker.do("read artifact", read, FILE_ERRORS)
    except OSError:
        return False
    if task.gate_text is None:
        return world.bewitched
    # Cut as the real one cuts what it reads.
    head = "".join(task.gate_text.partition("\n---\n")[:2])
    return world.bewitched or _parsed(head) == "SUCCESS"


#: The same text is the same verdict.
_parsed = functools.lru_cache(maxsize=100_000)(_parse_staging_status)


@contextlib.contextmanager
def simulation() -> Iterator[None]:
    """Put the simulated ends in the places of what the host would do for real."""
    spawn, gate = launcher._spawn, pipeline.ARTIFACT_GATES[STAGE]
    quiet = logging.root.manager.disable
    launcher._spawn = _spawn
    pipeline.ARTIFACT_GATES[STAGE] = _check_staging_status
    # What is read here is tame, and YAML in C takes a tenth of the time.
    in_python = gate_module._Loader
    vars(gate_module)["_Loader"] = getattr(yaml, "CSafeLoader", in_python)
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        launcher._spawn, pipeline.ARTIFACT_GATES[STAGE] = spawn, gate
        vars(gate_module)["_Loader"] = in_python
        logging.disable(quiet)

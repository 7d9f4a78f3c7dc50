"""The simulated ends of a world: all that a worker does to it, point by point.

The engine, the intercept, recovery and the host are the real ones. Everything that they
do to the world is a point at which a task stands still until the world lets it go on:
then it does so, or fails, or dies, before or after what it does there.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from enum import StrEnum, auto
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import attrs
import yaml
from greenlet import getcurrent, greenlet

from memory import (
    STORE_ERRORS,
    Errors,
    MemoryRows,
    MemoryStore,
    Transaction,
)
from staging_fsm.core.errors import PreparationError, StagingError
from staging_fsm.core.evidence import NO_EVIDENCE_REQUIRED, Counts, Evidence, EvidenceState
from staging_fsm.core.invariants import (
    Movement,
    Start,
)
from staging_fsm.core.jobs import STAGE, JobRow, Place
from staging_fsm.core.outcome import RunFacts, SpawnError, Stop, Supervision
from staging_fsm.core.plan import SuitePlan
from staging_fsm.core.ports import AlertKind, RunCondition, RunOrder, RunReport
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import State
from staging_fsm.drive.engine import Engine
from staging_fsm.drive.intercept import UNSEEN, StagingIntercept
from staging_fsm.drive.rulings import Decision, Ruling
from staging_fsm.drive.runner import StagingRunner
from staging_fsm.effects.processes import ProcessIdentity
from staging_fsm.host import launcher, pipeline
from staging_fsm.host.contract import gate as gate_module
from staging_fsm.host.contract.gate import _parse_staging_status
from staging_fsm.host.launcher import Host
from staging_fsm.host.pipeline import JobAlreadyEndedError, initiate_gate, work_item_dir
from staging_fsm.host.settings import load_host_settings
from staging_fsm.host.store import Job
from staging_fsm.host.worker import Worker as Loop

if TYPE_CHECKING:
    from world import World

T = TypeVar("T")
REPO: Final = "shop"
ROOT: Final = Path("/simulated/shop")
FILE_ERRORS: Final[Errors] = (OSError, OSError)
#: More points than any single thing that a worker does can have; beyond it, it hangs.
POINTS_MAX: Final = 2_000
#: What ends a worker's process, as it would end a real one.
FATAL: Final = (*STORE_ERRORS, OSError, JobAlreadyEndedError, StagingError)


class Crash(BaseException):
    """The worker was killed: no error, so nothing in the product may catch it."""


class ViolationError(AssertionError):
    """A promise was broken."""


class Named(StrEnum):
    """Words that say themselves: `CRASH_BEFORE` is "crash before"."""

    @staticmethod
    def _generate_next_value_(name: str, _start: int, _count: int, _last_values: list[str]) -> str:
        return name.lower().replace("_", " ")


class Fate(Named):
    """What becomes of a worker at a point."""

    GO = auto()
    #: What it was about to do fails, and nothing was done.
    REFUSED = auto()
    #: What it did is done, and yet it fails.
    LOST = auto()
    CRASH_BEFORE = auto()
    CRASH_AFTER = auto()


class Doing(Named):
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
        #: At which move the launch under way began, and at which the row was read last.
        self.launched_at = self.read_at = -1
        self.gate_text: str | None = None

    def run(self) -> None:
        """Do it, and keep how it ended."""
        try:
            self.result = self.action()
        except Crash as crash:
            self.failure = crash
        except FATAL as failure:
            self.failure = failure

    @property
    def has_read(self) -> bool:
        """Say whether the launch under way has been able to read its row."""
        return self.read_at > self.launched_at

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
    #: At which move somebody damaged the stored attempt; None where it is sound.
    damaged_at: int | None = None
    #: The host delivered the job beside a claim, which then is not the exclusive one it says.
    delivered_again: bool = False
    #: An agent ended the job: an attempt that a second delivery began comes to nothing.
    ended_by_agent: bool = False

    @property
    def damaged(self) -> bool:
        """Say whether somebody damaged the stored attempt."""
        return self.damaged_at is not None


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
        cast("Task", getcurrent()).launched_at = self.sim.world.moves
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
            preflight=lambda _place, _suite: None,
            prune=lambda _days, _unfinished: None,
            shadow=None,
            suites=world.read_suites,
            bind=self._bind,
            liveness=lambda name: world.lives(name, machine),
            new_id=lambda: "a",
        )
        self.staging = cast("Intercept", Intercept.of(runner))
        self.staging.sim = self
        self.host = Host(store, SETTINGS, world, self.staging)
        self.loop = Loop(
            self.host,
            self.identity,
            self._launch,
            lambda name: world.lives(name, machine),
            # Here an agent is part of its worker's task, and dies along with it.
            end_agent=lambda _clock, _job: True,
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
        if fate is not Fate.LOST and point in ("claim", "load"):
            cast("Task", getcurrent()).read_at = self.world.moves
        if fate is Fate.LOST:
            message = f"{point}: done, and nobody knows"
            raise errors[1](message)
        if fate is Fate.CRASH_AFTER:
            raise Crash
        return result


SETTINGS: Final = load_host_settings({"ORCH_AGENT_COMMAND": "agent"})


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

"""One delivered job on one machine: take the fence, take the job, launch it as any host would.

Whoever holds the fence of a repository is alone at it, in the whole fleet, and is
the only one that may write a verdict. So an attempt that another worker has begun
is nobody's any more when we hold its fence: nothing of its suite is alive, and
whatever that worker still tries is refused by the compare-and-swap of the row.
"""

import contextlib
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs

from staging_fsm.core.config import RunnerConfig, is_shadow, is_switched_off, load_config
from staging_fsm.core.errors import (
    ConfigInvalidError,
    JobNotFoundError,
    MachineUnfitError,
    NothingToCancelError,
    PreparationError,
    SnapshotRefusedError,
    StagingError,
    in_words,
)
from staging_fsm.core.jobs import QUEUED, RUNNING, STAGE, JobRow, Place
from staging_fsm.core.plan import Budget, SuitePlan, Workspace
from staging_fsm.core.ports import AlertKind, RunCondition
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import TRANSITIONS, Effect, State
from staging_fsm.drive.cancelling import CANCEL_PAUSE_SECONDS, CANCEL_TRIES, cancel_in_the_end
from staging_fsm.drive.engine import Engine, run_id_of
from staging_fsm.drive.intercept import StagingIntercept
from staging_fsm.drive.planning import read_suites, suite_of
from staging_fsm.drive.recovery import worker_is_alive
from staging_fsm.drive.runner import StagingRunner
from staging_fsm.effects.preflight import unfit
from staging_fsm.effects.remote import Mirror
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.effects.worktree import is_versioned
from staging_fsm.fleet.deliveries import DATABASE_ERRORS, OtherPapersError, queue_of
from staging_fsm.fleet.fence import Fence, is_present
from staging_fsm.fleet.fleet import (
    Fleet,
    FleetStore,
    FleetSuites,
    machine_of,
)
from staging_fsm.fleet.publisher import (
    PublishedArtifacts,
    Publisher,
)
from staging_fsm.fleet.settings import WORKTREES_ONLY
from staging_fsm.host.contract.gate import ARTIFACT_NAME
from staging_fsm.host.launcher import (
    AGENT_MARK,
    FINALIZER,
    RESERVED_AGENTS,
    Host,
    deployed_tag,
    end_agents,
    launch_job,
)
from staging_fsm.host.pipeline import initiate_gate, work_item_dir
from staging_fsm.host.store import Job, SqlHostStore

#: How soon a job is delivered again whose repository somebody is at.
BUSY_SECONDS: Final = 1.0
#: Waits between two looks at a remote that does not answer.
REMOTE_BACKOFF: Final = Budget()
#: What a person is alerted to where no run may be begun.
_ALERTS: Final[Mapping[type[StagingError], AlertKind]] = {
    ConfigInvalidError: AlertKind.CONFIGURATION_INVALID,
    MachineUnfitError: AlertKind.MACHINE_UNFIT,
}
#: A worker that has lost the database ends, and a job that is gone needs no delivery.
_NOT_COUNTED: Final = (*DATABASE_ERRORS, JobNotFoundError)
#: The states in which what is to be done needs a run's files.
_OF_ONE_MACHINE: Final = frozenset(
    {row.target for row in TRANSITIONS if row.effect in (Effect.RUN_SUITE, Effect.HAND_OVER)}
)


@attrs.define
class Delivery:
    """One delivered job, worked on in a thread of its own."""

    fleet: Fleet
    job_id: int
    repo: str
    tries: int = 0
    _staging: StagingIntercept | None = attrs.field(default=None, init=False)
    _has_ended: bool = attrs.field(default=False, init=False)

    def run(self) -> None:
        """Work on the job, or have it delivered again later.

        Raises OtherPapersError where this machine may take no job any more, and whatever
        else went wrong. What the database raises is left to the sweep, and all else counted.
        """
        try:
            self._run()
        except _NOT_COUNTED:
            raise
        except OtherPapersError as error:
            self.fleet.alerts.send(AlertKind.CONFIGURATION_INVALID, self.job_id, str(error))
            self._again(BUSY_SECONDS)
            raise
        except Exception as error:
            # Delivered by the sweep it would count as looked at for the first time, for ever.
            self._later(error)
            raise
        finally:
            self._has_ended = True

    def _run(self) -> None:
        with Fence(self.fleet.server, self.repo) as fence:
            taken = fence.take()
            row = self.fleet.rows.load(self.job_id)
            if row.status not in (QUEUED, RUNNING):
                return
            # What holds for all may have been noted anew since this worker began.
            self.fleet.refuse_other_papers()
            # Before anything of the job is touched, such as an agent that is at it.
            if self._is_a_strangers(row) or self._wants_for_an_agent(row):
                return
            if not taken and not self._is_orphan_of_ours(row):
                self._again(BUSY_SECONDS)
            elif not self._pass_on(row):
                self._work(row, fence)

    def _is_a_strangers(self, row: JobRow) -> bool:
        """Say whether somebody has claimed the job who is none of the fleet, and may be alive."""
        fleet = self.fleet
        return row.status != QUEUED and _has_a_stranger(fleet.state, fleet.store.job(self.job_id))

    def _wants_for_an_agent(self, row: JobRow) -> bool:
        """Tell a person of a job that only an LLM agent can do, where none is configured.

        It is left as it is, and looked at again by every sweep.
        """
        agent = self.fleet.store.job(self.job_id).agent
        if row.stage == STAGE or agent in RESERVED_AGENTS or self.fleet.host_settings.has_agent:
            return False
        words = f"{row.work_item} waits for agent {agent}: set ORCH_AGENT_COMMAND for the fleet"
        self.fleet.alerts.send(AlertKind.CONFIGURATION_INVALID, self.job_id, words)
        return True

    def _is_orphan_of_ours(self, row: JobRow) -> bool:
        """Say whether the fence is held by a supervisor of this machine whose worker is gone.

        Its run may be adopted, and waited for; the fence is taken when it has ended.
        """
        snapshot = _readable(row)
        if snapshot is None or snapshot.state is not State.RUNNING:
            return False
        machine, _, worker = snapshot.worker.partition("/")
        if machine != self.fleet.machine or worker_is_alive(worker) is not False:
            return False
        return self.fleet.suites.condition(run_id_of(snapshot)) is RunCondition.LIVE

    def _again(self, seconds: float, **how: Any) -> None:
        """Have the job delivered again, as often tried as it was unless `how` says otherwise."""
        how = {"tries": self.tries} | how
        due = self.fleet.clock.now() + timedelta(seconds=seconds)
        self.fleet.deliver(self.job_id, self.repo, due, **how)

    def _pass_on(self, row: JobRow) -> bool:
        """Leave a run of another machine to a worker there, if there is one.

        It has the result, and the output that the artifact quotes.
        """
        snapshot = _readable(row)
        if snapshot is None or snapshot.state not in _OF_ONE_MACHINE:
            return False
        machine = machine_of(snapshot.worker)
        if machine in (None, self.fleet.machine):
            return False
        with self.fleet.engine.begin() as tx:
            present = is_present(tx, self.fleet.server, str(machine))
        if present:
            self._again(0, queue=queue_of(str(machine)))
        return present

    def _work(self, row: JobRow, fence: Fence) -> None:
        mirror = self.fleet.mirror(row)
        publisher = self.fleet.publisher(mirror)
        try:
            revision = mirror.head(self.fleet.branch(row))
            root = publisher.open(row)
            folder = str(work_item_dir(root, row.work_item))
            # The agent of a worker that died may be at it still, and may have written here.
            if not end_agents(AGENT_MARK, folder, lambda: publisher.open(row)):
                publisher.close(row)
                message = f"an earlier agent of {row.work_item} is still at it, and stays alive"
                raise PreparationError(message)  # noqa: TRY301  # it is waited for as any other
        except PreparationError as error:
            self._later(error)
            return
        except OSError as error:
            # Neither a mirror nor a checkout can be made here: elsewhere they may.
            self._later(MachineUnfitError(in_words(error)), AlertKind.MACHINE_UNFIT)
            return
        workplace = Workplace(mirror, publisher, root, revision)
        try:
            problem = self._unfitness(row, workplace)
            if problem is None:
                self._launch(row, fence, workplace)
            else:
                self._later(problem, _ALERTS[type(problem)])
        finally:
            publisher.close(row)

    def _unfitness(self, row: JobRow, workplace: "Workplace") -> StagingError | None:
        """Return why no run may be begun on this machine now, if a launch of the job would.

        The launch itself would decline the job or count a run, as on a host of one machine.
        Here another machine may be fit, and one that is not, quick as it is, would spoil
        every job it gets. What is configured counts as the machine's: one that was given
        another suites file than the rest, or none, is no fitter than one that is full.
        """
        snapshot, variables = _readable(row), self.fleet.variables
        waits = snapshot is not None and snapshot.state is State.DEFERRED
        if row.stage != STAGE or not (waits or row.document is None):
            return None
        if is_switched_off(variables) or is_shadow(variables):
            return None
        try:
            config = load_config(variables)
            if not config.in_scope(row.repo):
                return None
            if not waits:
                self._check_suite(row, config, workplace)
        except ConfigInvalidError as error:
            return error
        place, state, log_max_bytes = workplace.place(row), self.fleet.state, config.log_max_bytes
        problem = unfit(state, variables, log_max_bytes, place.repository, place.artifact_dir)
        return None if problem is None else MachineUnfitError(problem)

    def _check_suite(self, row: JobRow, config: RunnerConfig, workplace: "Workplace") -> None:
        """Raise ConfigInvalidError where no suite can be made of what is configured here.

        A repository that has none is left to the agent, if there is one.
        """
        entry = read_suites(config).entry(row.repo)
        if entry is not None or not self.fleet.host_settings.has_agent:
            _bound(suite_of(row.repo, entry, config), workplace.revision)

    def _later(self, error: Exception, kind: AlertKind = AlertKind.INTERNAL_ERROR) -> None:
        """Look again later, here or elsewhere, and tell a person where it does not pass.

        Without the remote there is neither a commit nor a place for papers.
        """
        number = min(self.tries + 1, REMOTE_BACKOFF.runs_max * 10)
        if self.tries == REMOTE_BACKOFF.infra_retries:
            words = str(error) if isinstance(error, StagingError) else in_words(error)
            self.fleet.alerts.send(kind, self.job_id, f"waiting: {words}")
        seconds = REMOTE_BACKOFF.delay_seconds(f"delivery-{self.job_id}", number)
        self._again(seconds, tries=self.tries + 1)

    def _launch(self, row: JobRow, fence: Fence, workplace: "Workplace") -> None:
        fleet = self.fleet
        job = self._claim(row)
        if job is None:
            return
        store = FleetStore(fleet.engine, fleet.deliveries, workplace.root)
        if row.stage == STAGE:
            self._staging = self._intercept(row, fence, workplace, store)
        host = Host(
            store,
            fleet.host_settings,
            fleet.clock,
            self._staging,
            bring=lambda _job, name: self._bring(row, workplace, name),
            withdraw=lambda _job: workplace.withdraw(row, fence.check),
            publish=lambda job, exit_code: self._publish(job, exit_code, row, fence, workplace),
        )
        try:
            launch_job(host, job)
        except Exception as error:  # noqa: BLE001  # left claimed, the job would wait for ever unseen
            # Unless the job has ended, or is somebody else's by now.
            if fleet.store.requeue_abandoned(job, fleet.clock.now()):
                self._later(error)

    def _claim(self, row: JobRow) -> Job | None:
        """Claim the job, from whoever had it; None if it is not due or not ours to take.

        Raises OtherPapersError, and leaves it unclaimed then.
        """
        fleet, store = self.fleet, self.fleet.store
        if row.status != QUEUED:
            held = store.job(self.job_id)
            if _has_a_stranger(fleet.state, held):
                return None
            store.requeue_abandoned(held, fleet.clock.now())
        job = store.claim_next(fleet.clock.now(), fleet.worker, self.job_id)
        if job is None and row.not_before is not None:
            fleet.deliver(self.job_id, self.repo, row.not_before, tries=self.tries)
        if job is not None:
            try:
                # Once more: whatever is claimed after it was noted is worked on as it says.
                fleet.refuse_other_papers()
            except OtherPapersError:
                store.requeue_abandoned(job, fleet.clock.now())
                raise
        return job

    def _intercept(
        self, row: JobRow, fence: Fence, workplace: "Workplace", store: SqlHostStore
    ) -> StagingIntercept:
        fleet = self.fleet
        place = workplace.place(row)
        rows, suites = fleet.rows, FleetSuites(fleet, workplace.mirror, fence, place.artifact_dir)

        def gate(row: JobRow, tx: Any) -> bool:
            return initiate_gate(store, tx, row, 0, place.artifact_dir, fleet.clock.now()).opened

        def log(size: int) -> bytes:
            found = rows.load(self.job_id).snapshot()
            return suites.log_tail(run_id_of(found), size) if found and found.runs else b""

        engine = Engine(
            rows=rows,
            suites=suites,
            artifacts=PublishedArtifacts(
                workplace.publisher, row, workplace.root, log, fence.check
            ),
            alerts=fleet.alerts,
            clock=fleet.clock,
            gate=gate,
            place=lambda _row: place,
            worker=fleet.worker,
        )
        runner = StagingRunner.over(
            engine,
            fleet.suites,
            fleet.state,
            fleet.variables,
            STAGE,
            bind=lambda _repository, suite: _bound(suite, workplace.revision),
            liveness=partial(_lives_beside_us, fleet.state),
            # The checkout that an agent works in is gone with its launch.
            shadow=None,
        )
        return StagingIntercept.of(runner)

    def _bring(self, row: JobRow, workplace: "Workplace", name: str) -> tuple[Path, str]:
        """Return the mirror, with a commit in it, and the commit's name: a checkout may be none.

        Raises PreparationError for one that the remote does not have, and ConnectionError
        where it does not answer: then the job waits, and nobody is to blame.
        """
        mirror = workplace.mirror
        commit = workplace.revision if name == "HEAD" else name
        try:
            if not mirror.has(commit):
                mirror.fetch(commit)
        except PreparationError:
            try:
                mirror.head(self.fleet.branch(row))
            except PreparationError as error:
                raise ConnectionError(str(error)) from error
            raise
        return mirror.path, commit

    def _publish(
        self, job: Job, exit_code: int, row: JobRow, fence: Fence, workplace: "Workplace"
    ) -> None:
        """Publish what the producer of this launch left."""
        # Every machine's mirror keeps the tags that were made there, and only this one is new.
        if job.agent == FINALIZER and exit_code == 0:
            workplace.mirror.push_tag(deployed_tag(job.work_item), fence.check)
        self._publish_agents(row, fence, workplace)

    def _publish_agents(self, row: JobRow, fence: Fence, workplace: "Workplace") -> None:
        """Publish what an LLM agent left in the checkout."""
        if is_versioned(workplace.root):
            workplace.mirror.push_work(workplace.root, self.fleet.branch(row), fence.check)
        folder = work_item_dir(workplace.root, row.work_item)
        papers: dict[str, bytes | None] = {
            str(path.relative_to(workplace.root)): path.read_bytes()
            for path in sorted(folder.glob("*"))
            if path.is_file() and not path.is_symlink()
        }
        if row.stage == STAGE:
            # What the agent did not leave the gate must not find, whoever has put it there.
            papers.setdefault(workplace.artifact(row), None)
        if papers:
            workplace.publisher.publish(row, papers, fence.check)

    def cancel(self) -> None:
        """Stop the attempt, once it is in hand, unless it is too late."""
        wait = self.fleet.clock.wait
        for _ in range(CANCEL_TRIES):
            if self._has_ended:
                # It stood before the fence, say, of the worker that has the attempt.
                return
            if self._staging is not None:
                # Without an attempt, an agent is at the job: it is not the runner's to stop.
                with contextlib.suppress(NothingToCancelError):
                    cancel_in_the_end(self._staging.runner, self.job_id, wait)
                return
            wait(CANCEL_PAUSE_SECONDS)


@attrs.frozen
class Workplace:
    """What a job is worked on with: its mirror, its publisher, its folder, the branch's commit."""

    mirror: Mirror
    publisher: Publisher
    root: Path
    revision: str

    def place(self, row: JobRow) -> Place:
        """Return where commits to run are, and where the gate looks."""
        return Place(self.mirror.path, work_item_dir(self.root, row.work_item))

    def artifact(self, row: JobRow) -> str:
        """Return the path of the job's artifact below the folder."""
        folder = work_item_dir(self.root, row.work_item)
        return str((folder / ARTIFACT_NAME).relative_to(self.root))

    def withdraw(self, row: JobRow, permitted: Callable[[], None]) -> None:
        """Take the job's artifact from where everybody finds it; raises as `publish` does."""
        self.publisher.publish(row, {self.artifact(row): None}, permitted)


def _has_a_stranger(state: StateDir, job: Job) -> bool:
    """Say whether a job is claimed by somebody of no fleet who is not known to be dead."""
    holder = job.claimed_by or ""
    return machine_of(holder) is None and worker_is_alive(holder, state) is not False


def _readable(row: JobRow) -> Snapshot | None:
    try:
        return row.snapshot()
    except SnapshotRefusedError:
        # Refused again, with an alert, by the intercept.
        return None


def _bound(suite: SuitePlan, revision: str) -> str:
    if suite.workspace is Workspace.IN_PLACE:
        raise ConfigInvalidError([WORKTREES_ONLY])
    return revision


def _lives_beside_us(state: StateDir, worker: str) -> bool | None:
    """Say whether a worker is at the job whose fence we hold: no other one of the fleet can be."""
    return False if machine_of(worker) is not None else worker_is_alive(worker, state)

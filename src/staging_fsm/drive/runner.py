"""What takes jobs: begins an attempt, goes on with one, or leaves the job to the LLM path.

The intercept asks only for a job that may be ours. What it promises is kept here:
before the first run everything leads to the LLM path; once a run has been counted
nothing does but the kill switch between two runs.
"""

import re
import secrets
from collections.abc import Callable, Container, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack

import attrs

from staging_fsm.core.config import (
    RunnerConfig,
    alert_urls,
    is_shadow,
    is_switched_off,
    load_config,
)
from staging_fsm.core.errors import (
    ConfigInvalidError,
    MachineUnfitError,
    SnapshotRefusedError,
    StagingError,
    StaleSnapshotError,
    in_words,
)
from staging_fsm.core.jobs import QUEUED, RUNNING, Gate, JobRow, JobRows, Place
from staging_fsm.core.outcome import Reason
from staging_fsm.core.plan import SuitePlan, Workspace
from staging_fsm.core.ports import AlertKind
from staging_fsm.core.snapshot import Run, Snapshot, fresh_snapshot
from staging_fsm.core.spec import ENDED_BY_GATE, Event, State
from staging_fsm.core.suites import SuitesConfig
from staging_fsm.core.times import format_time
from staging_fsm.drive.engine import Engine, Step
from staging_fsm.drive.planning import plan_of, read_suites, unfitness
from staging_fsm.drive.recovery import Liveness, is_abandoned, take_up, worker_is_alive
from staging_fsm.drive.rulings import Decision, Ruling
from staging_fsm.effects.alerts import FileAlerts
from staging_fsm.effects.clock import SystemClock
from staging_fsm.effects.files import ArtifactFiles
from staging_fsm.effects.journal import log_error
from staging_fsm.effects.preflight import misplaced, unfit
from staging_fsm.effects.processes import this_process
from staging_fsm.effects.shadow import ShadowRecords
from staging_fsm.effects.state_dir import StateDir, state_dir
from staging_fsm.effects.suite import LocalSuites
from staging_fsm.effects.telemetry import traced
from staging_fsm.effects.worker_lock import WorkerLock
from staging_fsm.effects.worktree import bind_revision, glimpsed_revision

if TYPE_CHECKING:
    from staging_fsm.drive.intercept import Replaced

_ID_CHARACTERS_MAX: Final = 64
IN_SHADOW: Final = "shadow mode: the LLM agent is the producer, the runner only records"
#: How long the launch of an agent may wait for the note of what is checked out.
GLIMPSE_SECONDS: Final = 2.0
#: What a person is alerted to, and what a run is counted as, where it could not be started.
_ALERTS: Final[Mapping[type[Exception], AlertKind]] = {
    ConfigInvalidError: AlertKind.CONFIGURATION_INVALID,
    MachineUnfitError: AlertKind.MACHINE_UNFIT,
}
_REASONS: Final[Mapping[type[Exception], Reason]] = {
    ConfigInvalidError: Reason.CONFIGURATION_INVALID,
    MachineUnfitError: Reason.MACHINE_UNFIT,
}


@attrs.define
class StagingRunner:
    """The runner behind the intercept. Its fields are what a test replaces."""

    engine: Engine
    variables: Mapping[str, str]
    #: The host's word for the stage that is ours.
    stage: str
    #: Returns why this machine cannot run a suite now, or None.
    preflight: Callable[[Place, SuitePlan], str | None]
    #: Removes what runs left behind: after how many days, and which attempts not.
    prune: Callable[[float, Callable[[], Container[str]]], None]
    #: Where launches are noted in shadow mode; None notes nothing.
    shadow: ShadowRecords | None
    suites: Callable[[RunnerConfig], SuitesConfig] = read_suites
    bind: Callable[[Path, SuitePlan], str] = bind_revision
    liveness: Liveness = worker_is_alive
    #: Returns the name of the process that asks.
    name: Callable[[], str] = lambda: str(this_process())
    new_id: Callable[[], str] = lambda: secrets.token_hex(6)
    #: Why the rows cannot be relied on; every first launch is declined for it.
    misfit: ConfigInvalidError | None = None

    @classmethod
    def over(
        cls,
        engine: Engine,
        runs: LocalSuites,
        state: StateDir,
        variables: Mapping[str, str],
        stage: str,
        **replaced: Any,
    ) -> "StagingRunner":
        """Return a runner that drives by `engine` on this machine, with all that belongs to one.

        Each attempt that has ended is traced, the machine is looked at before a run, what
        old ones left is removed by `runs`, and launches in shadow mode are noted;
        but for what is `replaced`.
        """

        def preflight(where: Place, suite: SuitePlan) -> str | None:
            log_max_bytes = suite.log_max_bytes
            found = unfit(state, variables, log_max_bytes, where.repository, where.artifact_dir)
            if found is None and suite.workspace is Workspace.WORKTREE:
                found = misplaced(state, where.repository)
            return found

        own: dict[str, Any] = {
            "preflight": preflight,
            "prune": runs.prune,
            "liveness": partial(worker_is_alive, state=state),
            "shadow": ShadowRecords(state.shadow),
        }
        tracing = attrs.evolve(engine, watch=traced(engine.watch))
        return cls(tracing, variables, stage, **(own | replaced))

    @classmethod
    def for_host(
        cls,
        rows: JobRows,
        gate: Gate,
        place: Callable[[JobRow], Place],
        variables: Mapping[str, str],
        stage: str,
        **replaced: Unpack["Replaced"],
    ) -> "StagingRunner":
        """Return a runner over the real world."""
        state, clock = StateDir(state_dir(variables)), SystemClock()
        lock = WorkerLock(state)
        runs = LocalSuites(state, variables, worker=lock)
        engine = Engine(
            rows=rows,
            suites=runs,
            artifacts=ArtifactFiles(),
            alerts=FileAlerts(state, clock, lambda: alert_urls(variables)),
            clock=replaced.pop("clock", clock),
            gate=gate,
            place=place,
            worker=lock.take(),
            watch=replaced.pop("watch", lambda _row, _snapshot: None),
        )
        return cls.over(engine, runs, state, variables, stage, name=lock.take, **replaced)

    def cannot_rely_on_rows(self, problem: ConfigInvalidError) -> None:
        """Decline every first launch from now on, and tell a person why."""
        self.misfit = problem
        text = (
            "every first launch is declined, or held where the row cannot be read and `launch` was"
            f" not given its metadata: {problem}"
        )
        self.engine.alert(AlertKind.CONFIGURATION_INVALID, "-", text)

    def launch(self, row: JobRow) -> Decision:
        """Launch a job of our stage that has an attempt, or may have its first."""
        try:
            snapshot = row.snapshot()
        except SnapshotRefusedError as error:
            return self._hold_or_decline(row, error)
        if snapshot is None:
            return self._first_launch(row)
        if snapshot.state is State.LLM_FALLBACK:
            return Decision(Ruling.DECLINED, snapshot.history[-1].reason)
        if snapshot.state is State.DEFERRED:
            return self._next_launch(row, snapshot)
        if snapshot.state in ENDED_BY_GATE and row.status in (QUEUED, RUNNING):
            # Its gate ended the job along with it; nothing here will end it once more.
            words = (
                f"the job is {row.status} again, and its attempt has ended: {snapshot.state};"
                " queue another job"
            )
            self.engine.alert(AlertKind.ROW_REFUSED, row.id, words, snapshot.attempt_id)
        return self._take_up(row, snapshot)

    def _hold_or_decline(self, row: JobRow, error: SnapshotRefusedError) -> Decision:
        """Hold a job whose attempt cannot be read; decline one that has none, and can have none."""
        ruling, reason = Ruling.HELD, str(error)
        if row.is_without_attempt:
            no_key = "without a key of ours, and with no place for one: make it a JSON object"
            ruling, reason = Ruling.DECLINED, f"declined to the LLM path: {error.problem}, {no_key}"
        self.engine.alert(AlertKind.ROW_REFUSED, row.id, reason)
        return Decision(ruling, reason)

    def _first_launch(self, row: JobRow) -> Decision:
        if not (row.repo and row.work_item):
            return self._decline_nameless(row)
        if is_shadow(self.variables):
            return self._stay_in_shadow(row)
        attempt = self.new_attempt(row)
        try:
            plan = plan_of(self, row, load_config(self.variables))
        except Exception as error:  # noqa: BLE001  # before the first run everything leads to the LLM path
            return self._step_aside(row, attempt, error)
        claim = Step(
            Event.JOB_CLAIMED,
            f"run 1 of at most {plan.budget.runs_max}",
            {"plan": plan, "runs": (self._new_run(1),)},
        )
        try:
            claimed = self.engine.move(row, attempt, claim)
        except StaleSnapshotError:
            raise
        except Exception as error:  # noqa: BLE001  # a launch must not break the host
            return self._after_claim_in_doubt(row, attempt, error)
        try:
            return self._drive(row, claimed)
        except StaleSnapshotError:
            raise
        except Exception as error:  # noqa: BLE001  # as above
            # A run was counted, so what the caller knew of the row is void.
            return self.after_failure(row.id, error, first_launch=False)

    def _after_claim_in_doubt(self, row: JobRow, attempt: Snapshot, error: Exception) -> Decision:
        """Decide after a claim that failed, and may be committed all the same, even later.

        A connection can be lost while its commit is still under way, and a look at the row
        shows nothing of it. Only a write waits for that one: whichever is there first wins.
        """
        decision = self.after_failure(row.id, error, first_launch=False)
        if decision.ruling is not Ruling.DECLINED or isinstance(error, ConfigInvalidError):
            return decision
        try:
            self.engine.move(row, attempt, Step(Event.RUNNER_DECLINED, decision.reason))
        except StaleSnapshotError:
            # The claim was committed after all: it is left for recovery.
            return Decision(Ruling.HELD, decision.reason)
        except Exception as failure:  # noqa: BLE001  # a store that takes no write leaves the job to the LLM
            # Likely it took no claim either. One that is committed later still is not seen here,
            # but whatever another delivery of this launch has begun meanwhile is.
            log_error("no trace was left", job=str(row.id), error=in_words(failure))
            return self.after_failure(row.id, failure, first_launch=True)
        return decision

    def _decline_nameless(self, row: JobRow) -> Decision:
        """Decline a job without a repository or a work item, and leave its row as it is.

        Whatever belongs to it, all that has no name would have in common.
        """
        missing = "work item" if row.repo else "repository"
        reason = f"declined to the LLM path: job {row.id} has no {missing}; correct the row by hand"
        self.engine.alert(AlertKind.ROW_REFUSED, row.id, reason)
        return Decision(Ruling.DECLINED, reason)

    def _stay_in_shadow(self, row: JobRow) -> Decision:
        """Decline at once, and note for the shadow that the agent was launched."""
        try:
            if self.shadow is not None and load_config(self.variables).in_scope(row.repo):
                repository = self.engine.place(row).repository
                revision = glimpsed_revision(repository, GLIMPSE_SECONDS)
                # After git: what that takes is none of the agent's time.
                self.shadow.launched(row, repository, self.engine.clock.now(), revision)
        except Exception as error:  # noqa: BLE001  # the LLM path must not notice its shadow
            log_error("a launch was not noted", job=str(row.id), error=in_words(error))
        return Decision(Ruling.DECLINED, IN_SHADOW)

    def agent_ended(self, job_id: Any, *, opened: bool, log: Path | None = None) -> None:
        """Keep for the shadow how a launch of the LLM agent ended. Never raises."""
        try:
            if self.shadow is not None and self.shadow.is_noted(job_id):
                row = self.engine.rows.load(job_id)
                place, now = self.engine.place(row), self.engine.clock.now()
                self.shadow.agent_ended(row, place, now, opened=opened, log=log)
        except Exception as error:  # noqa: BLE001  # the LLM path must not notice its shadow
            log_error("an agent's end was not noted", job=str(job_id), error=in_words(error))

    def _step_aside(self, row: JobRow, attempt: Snapshot, error: Exception) -> Decision:
        """Decline before the first run, and leave a trace of it in the row.

        Where that fails, the row is looked at again: no trace, no run, still declined.
        """
        kind = _ALERTS.get(type(error))
        reason = str(error) if kind else in_words(error)
        kind = kind or AlertKind.INTERNAL_ERROR
        self.engine.alert(kind, row.id, f"declined to the LLM path: {reason}")
        self.engine.move(row, attempt, Step(Event.RUNNER_DECLINED, reason))
        return Decision(Ruling.DECLINED, reason)

    def _next_launch(self, row: JobRow, snapshot: Snapshot) -> Decision:
        """Launch a deferred attempt again: step aside if switched off, else start its next run."""
        problem: StagingError | None = None
        if is_switched_off(self.variables):
            return self._switched_off(row, snapshot, "the runner was switched off between two runs")
        if is_shadow(self.variables):
            return self._switched_off(row, snapshot, IN_SHADOW)
        try:
            config = load_config(self.variables)
            if not config.in_scope(row.repo):
                return self._switched_off(row, snapshot, f"repository {row.repo} left the scope")
        except ConfigInvalidError as error:
            problem = error
        if self.engine.is_early(snapshot):
            # Launched early, by a crash or by hand: the wait is part of the attempt.
            return self._drive(row, snapshot)
        problem = problem or unfitness(self, row, snapshot)
        number = snapshot.last_run.number + 1
        run = self._new_run(number, due_at=snapshot.next_run_at)
        claim = Step(
            Event.JOB_CLAIMED,
            f"run {number} of at most {snapshot.bound_plan.budget.runs_max}",
            {"runs": (*snapshot.runs, run), "next_run_at": None},
        )
        running = self.engine.move(row, snapshot, claim)
        if problem is not None:
            # Counted, though nothing was started: to wait for a better day without counting
            # could last for ever, and then there is no verdict and nobody who looks.
            self.engine.alert(_ALERTS[type(problem)], row.id, str(problem))
            lost = self.engine.run_without_result(
                running, Event.SUITE_NOT_EXECUTED, _REASONS[type(problem)], str(problem)
            )
            running = self.engine.move(row, running, lost)
        return self._drive(row, running)

    def _switched_off(self, row: JobRow, snapshot: Snapshot, reason: str) -> Decision:
        # Not a courtesy here: without this row, recovery would run the suite beside the agent.
        self.engine.move(row, snapshot, Step(Event.RUNNER_DECLINED, reason))
        return Decision(Ruling.DECLINED, reason)

    def _drive(self, row: JobRow, snapshot: Snapshot) -> Decision:
        ended = self.engine.drive(row, snapshot)
        return Decision(Ruling.TAKEN, f"{ended.state}: {ended.history[-1].reason}")

    def _take_up(self, row: JobRow, snapshot: Snapshot) -> Decision:
        if not is_abandoned(self, snapshot):
            return Decision(Ruling.TAKEN, f"worker {snapshot.worker} has it")
        ended = take_up(self.engine, row, snapshot)
        return Decision(Ruling.TAKEN, f"{ended.state}: {ended.history[-1].reason}")

    def _new_run(self, number: int, due_at: str | None = None) -> Run:
        return Run(number, format_time(self.engine.clock.now()), due_at=due_at)

    def new_attempt(self, row: JobRow) -> Snapshot:
        """Return an attempt at a job that has had none, not stored yet."""
        # Folders are named after it, and a host's key may be any text.
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", str(row.id))[:_ID_CHARACTERS_MAX]
        return fresh_snapshot(f"{name}-{self.new_id()}", self.engine.worker)

    def after_failure(self, job_id: Any, error: Exception, *, first_launch: bool) -> Decision:
        """Decide after an unexpected error: whether a run was counted is read from the row.

        `first_launch` decides where the row cannot be read.
        """
        reason = in_words(error)
        self.engine.alert(AlertKind.INTERNAL_ERROR, job_id, reason)
        try:
            row = self.engine.rows.load(job_id)
            first_launch = False
            snapshot = row.snapshot()
            first_launch = snapshot is None or snapshot.state is State.LLM_FALLBACK
        except Exception as failure:  # noqa: BLE001  # the store is down: what the caller knows must do
            log_error("the row could not be read", job=str(job_id), error=in_words(failure))
        if first_launch:
            return Decision(Ruling.DECLINED, reason)
        return Decision(Ruling.HELD, reason)

    def tidy_up(self) -> None:
        """Remove what old runs left behind, and deliver the alerts that are owed."""
        self.prune_runs()
        self.engine.deliver_alerts()

    def prune_runs(self) -> None:
        """Remove what old runs left behind, but nothing of an attempt that has not ended."""
        try:
            self.prune(load_config(self.variables).run_retention_days, self._unfinished_attempts)
        except Exception as error:  # noqa: BLE001  # a full disk is no reason to break a launch
            log_error("old runs were not removed", error=in_words(error))

    def _unfinished_attempts(self) -> frozenset[str]:
        # A row that is refused raises here: while one cannot be read, nothing is removed.
        rows = self.engine.rows.unfinished()
        snapshots = [row.snapshot() for row in rows if not row.is_without_attempt]
        return frozenset(snapshot.attempt_id for snapshot in snapshots if snapshot is not None)

    def take_name(self) -> None:
        """Go by the name of the process that this is now."""
        self.engine.worker = self.name()

"""What `launch_job` calls: the runner takes a job, or declines it with a reason.

It never raises an Exception. Before the first run there is always a way back to the LLM path:
whatever goes wrong, the job is declined. Once a run has been counted there is
none but the kill switch between two runs: whatever goes wrong is a counted tool
error, or is left for recovery. Where it cannot be known which of the two holds,
because the row cannot be read, the job is held: neither producer is started.

Here is only what it takes to decline. What it takes to take a job, the `StagingRunner`,
is made when first a job may be one of ours: a host whose runner is switched off, or
whose jobs are of other stages, does not even load it.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict, Unpack

import attrs

from staging_fsm.core.config import is_switched_off, load_config
from staging_fsm.core.errors import (
    ConfigInvalidError,
    JobNotFoundError,
    RefusedError,
    SnapshotRefusedError,
    StaleSnapshotError,
    in_words,
)
from staging_fsm.core.jobs import (
    SNAPSHOT_KEY,
    STAGE,
    Gate,
    JobRow,
    JobRows,
    Place,
    may_name_our_key,
)
from staging_fsm.drive.rulings import Decision, Ruling
from staging_fsm.effects.forks import begin_anew_after_forks

if TYPE_CHECKING:
    from collections.abc import Container

    from staging_fsm.core.config import RunnerConfig
    from staging_fsm.core.plan import SuitePlan
    from staging_fsm.core.ports import Clock
    from staging_fsm.core.snapshot import Snapshot
    from staging_fsm.core.suites import SuitesConfig
    from staging_fsm.drive.recovery import Failed, Liveness
    from staging_fsm.drive.runner import StagingRunner
    from staging_fsm.effects.shadow import ShadowRecords

#: Stands for metadata that the caller of a launch has not read.
UNSEEN: Final = object()


def _tell_nobody(_job_id: Any, _error: Exception) -> None:
    """Stand for whoever does not ask what a recovery left."""


class Replaced(TypedDict, total=False):
    """What may be given in the place of our own, each by its name."""

    #: Called after each durable transition, with the row and the attempt. What it raises
    #: stops nothing.
    watch: "Callable[[JobRow, Snapshot], None]"
    clock: "Clock"
    #: The suites, where they do not come out of the suites file.
    suites: "Callable[[RunnerConfig], SuitesConfig]"
    #: Returns the revision that an attempt is bound to.
    bind: "Callable[[Path, SuitePlan], str]"
    #: Returns why this machine cannot run a suite now, or None.
    preflight: "Callable[[Place, SuitePlan], str | None]"
    #: Says whether a worker lives; None where that cannot be known here.
    liveness: "Liveness"
    shadow: "ShadowRecords | None"
    new_id: "Callable[[], str]"
    prune: "Callable[[float, Callable[[], Container[str]]], None]"


@attrs.define(eq=False)
class StagingIntercept:
    """The runner's side of `launch_job`. Safe to call from several threads; one for a process.

    Recovery takes an attempt of this process that this intercept has not in hand for one
    whose drive has failed: two intercepts over one table would take each other's.

    `for_host` builds one over the real world, `of` over a runner that is there.
    """

    rows: JobRows
    _make_runner: Callable[[], "StagingRunner"]
    variables: Mapping[str, str]
    #: The host's word for the stage that is ours.
    stage: str = STAGE
    _runner: "StagingRunner | None" = attrs.field(default=None, init=False)
    _driving: set[Any] = attrs.field(factory=set, init=False)
    #: Jobs whose launch was turned away or held here, and that are not queued again yet.
    _owed: set[Any] = attrs.field(factory=set, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def __attrs_post_init__(self) -> None:
        """Have every process that is forked from this one be another worker."""
        begin_anew_after_forks(self)

    @classmethod
    def for_host(
        cls,
        rows: JobRows,
        gate: Gate,
        place: Callable[[JobRow], Place],
        variables: Mapping[str, str] | None = None,
        *,
        stage: str = STAGE,
        **replaced: Unpack[Replaced],
    ) -> "StagingIntercept":
        """Return an intercept for a host's jobs.

        `gate(row, tx)` is what the host does when a stage's producer has ended: it
        reads the artifact, moves the work item through `tx`, and says whether the
        gate opened. `place(row)` says where the repository is and in which folder
        the gate looks for `15-staging-log.md`. `variables` are read afresh at each
        launch; they default to the process's environment. `stage` is the host's word
        for `deploy-staging`; what else may be replaced stands in `Replaced`. Raises
        TypeError for any other keyword.

        The rows are checked. What does not fit is told to a person in sentences and
        declines every first launch: nothing is raised for it, so a host that starts
        with a broken mapping works on with its LLM path.
        """
        variables = os.environ if variables is None else variables
        if unknown := sorted(replaced.keys() - Replaced.__annotations__.keys()):
            allowed = ", ".join(Replaced.__annotations__)
            message = f"{', '.join(unknown)} cannot be replaced; {allowed} can"
            raise TypeError(message)

        def make() -> "StagingRunner":
            from staging_fsm.drive.runner import StagingRunner  # noqa: PLC0415  # see above

            return StagingRunner.for_host(rows, gate, place, variables, stage, **replaced)

        intercept = cls(rows, make, variables, stage)
        intercept._check_rows()
        return intercept

    @classmethod
    def of(cls, runner: "StagingRunner") -> "StagingIntercept":
        """Return the intercept before a runner."""
        return cls(runner.engine.rows, lambda: runner, runner.variables, runner.stage)

    def _check_rows(self) -> None:
        try:
            try:
                self.rows.check()
            except ConfigInvalidError as error:
                self.runner.cannot_rely_on_rows(error)
        except Exception as error:  # noqa: BLE001  # the store may be down just now: each launch looks again
            _log("the rows could not be checked", error)

    @property
    def runner(self) -> "StagingRunner":
        """Return what takes jobs, under the name of this very process."""
        with self._lock:
            if self._runner is None:
                self._runner = self._make_runner()
            return self._runner

    def launch(self, job_id: Any, metadata: object = UNSEEN) -> Decision:
        """Take the claimed job `job_id`, or decline it. Blocks while a suite runs.

        Never raises an Exception. What is none, such as SystemExit out of a handler for a
        signal, or out of a gate, goes through, and leaves what a crash would.

        `metadata` is what a caller whose claims are exclusive found in the row that
        it claimed: text, its bytes in UTF-8, a mapping, or None. It only matters when
        the row cannot be read here: a launch without a key of ours in it is then
        declined, and any other is held. What happened to the row meanwhile is then not
        known: an agent may start for a job that a person has just cancelled.
        """
        first_launch = _is_without_attempt(metadata)
        try:
            with self._hold(job_id) as ours:
                if not ours:
                    self._put_back(job_id)
                    return Decision(Ruling.TAKEN, "this process is already working on it")
                self._owed.discard(job_id)
                row = self.rows.load(job_id)
                if row.id != job_id:
                    # Another form of the same key, such as a UUID as text: one name to hold it by.
                    return self.launch(row.id, metadata)
                first_launch = first_launch and row.is_without_attempt
                reason = self._reason_to_decline(row)
                if reason is not None:
                    return Decision(Ruling.DECLINED, reason)
                decision = self._hand_on(row)
                if decision.ruling is Ruling.HELD:
                    self._owed.add(job_id)
        except StaleSnapshotError as error:
            self._tell_if_lost(error)
            return Decision(Ruling.TAKEN, str(error))
        except Exception as error:  # noqa: BLE001  # a launch must not break the host
            return self._after_failure(job_id, error, first_launch=first_launch)
        if row.document is None and decision.ruling is Ruling.TAKEN:
            # Not in hand any more: whoever claims a deferred job again need not wait for this.
            self.runner.prune_runs()
        return decision

    def _hand_on(self, row: JobRow) -> Decision:
        try:
            runner = self.runner
        except Exception as error:  # noqa: BLE001  # a launch must not break the host
            # Nothing has been begun here, and what the row shows others may have in hand.
            _log("there is no runner", error)
            ruling = Ruling.DECLINED if row.is_without_attempt else Ruling.HELD
            return Decision(ruling, in_words(error))
        return runner.launch(row)

    def _reason_to_decline(self, row: JobRow) -> str | None:
        """Return why a job is none of ours as far as stage, switch and scope tell, or None."""
        if row.stage != self.stage:
            return f"stage {row.stage} is not {self.stage}"
        if not row.is_without_attempt:
            return None
        if is_switched_off(self.variables):
            return "the runner is switched off"
        # What is wrong with the configuration is told of by the runner.
        with contextlib.suppress(ConfigInvalidError):
            if not load_config(self.variables).in_scope(row.repo):
                return f"repository {row.repo} is not in scope"
        return None

    def _after_failure(self, job_id: Any, error: Exception, *, first_launch: bool) -> Decision:
        """Decide after an unexpected error; `first_launch` decides where no runner can be made."""
        try:
            decision = self.runner.after_failure(job_id, error, first_launch=first_launch)
        except Exception as failure:  # noqa: BLE001  # a launch must not break the host
            _log("there is no runner", failure)
            ruling = Ruling.DECLINED if first_launch else Ruling.HELD
            decision = Decision(ruling, in_words(error))
        if decision.ruling is Ruling.HELD:
            with contextlib.suppress(TypeError):  # no key of any job, and no job to look at again
                self._owed.add(job_id)
        return decision

    def _tell_if_lost(self, error: StaleSnapshotError) -> None:
        from staging_fsm.drive.recovery import tell_if_lost  # noqa: PLC0415  # it came with the runner

        tell_if_lost(self.runner, error)

    def agent_ended(self, job_id: Any, *, opened: bool, log: Path | None = None) -> None:
        """Keep for the shadow how a launch of the LLM agent ended. Never raises.

        To be called after the gate, with its answer; `log` is the agent's output,
        whose last line may tell of tokens. A job that was not launched in shadow
        mode is left alone.
        """
        try:
            self.runner.agent_ended(job_id, opened=opened, log=log)
        except Exception as error:  # noqa: BLE001  # the LLM path must not notice its shadow
            _log("an agent's end was not noted", error)

    def recover(self, failed: "Failed" = _tell_nobody) -> list[JobRow]:
        """Take up every attempt whose worker is gone; return the rows that were touched.

        Each is driven to a terminal state or its next deferral. A row that cannot
        be driven now is left as it is, with an alert, and all of them where no runner
        can be made, or where the rows cannot be read. `failed` is called with the id of
        each such row and what was raised; with None for all of them. Never raises, but
        what `failed` does.
        """
        try:
            runner = self.runner
        except Exception as error:  # noqa: BLE001  # the host works on with its LLM path
            _log("there is no runner", error)
            failed(None, error)
            return []
        from staging_fsm.drive.recovery import recover, unfinished  # noqa: PLC0415  # it came with the runner

        for job_id in tuple(self._owed):
            with self._hold(job_id) as ours:
                # In hand it needs nobody: what goes on with it is here.
                if ours:
                    self._put_back(job_id)
        touched = []
        for row in unfinished(runner, failed):
            with self._hold(row.id) as ours:
                if ours and recover(runner, row.id, failed):
                    touched.append(row)
        runner.tidy_up()
        return touched

    def cancel(self, job_id: Any) -> "Snapshot":
        """Stop an attempt: nothing is judged, and the job ends as cancelled.

        Raises TransitionRefusedError where the table allows it no more,
        StaleSnapshotError if the attempt moved at the same moment: ask again,
        SnapshotRefusedError for an attempt that cannot be read, and RefusedError for a
        job of another stage, one whose suite runs on another machine, since from here it
        could not be stopped, and one that has no attempt and does not wait either: an
        agent may be at it, or it has ended.
        """
        from staging_fsm.drive.cancelling import cancel  # noqa: PLC0415  # seldom needed

        return cancel(self.runner, job_id)

    def begin_anew(self) -> None:
        """Have nothing in hand, under the name of the process that was just forked."""
        self._lock, self._driving, self._owed = threading.Lock(), set(), set()
        if self._runner is not None:
            self._runner.take_name()

    def _put_back(self, job_id: Any) -> None:
        """Let somebody claim a job again that was turned away or held, if it may wait for one."""
        try:
            from staging_fsm.drive.recovery import put_back  # noqa: PLC0415  # seldom needed

            put_back(self.runner, job_id)
            self._owed.discard(job_id)
        except SnapshotRefusedError:
            # Recovery tells of it. Once a person has corrected the row it is looked at again.
            self._owed.add(job_id)
        except (JobNotFoundError, RefusedError):
            # Without a row, or without an attempt in it, no run is waited for.
            self._owed.discard(job_id)
        except Exception as error:  # noqa: BLE001  # a launch must not break the host
            # To recovery it looks as if its claimant were about to launch it.
            self._owed.add(job_id)
            self.tell(job_id, f"not launched and not queued again: {in_words(error)}")

    def tell(self, job_id: Any, text: str) -> None:
        """Alert a person to what went wrong with a job, as an internal error. Never raises.

        Where no runner can be made it stands in the log alone.
        """
        try:
            from staging_fsm.core.ports import AlertKind  # noqa: PLC0415  # seldom needed

            self.runner.engine.alert(AlertKind.INTERNAL_ERROR, job_id, text)
        except Exception as error:  # noqa: BLE001  # a launch must not break the host
            _log(f"nobody was told of job {job_id}: {text}", error)

    @contextlib.contextmanager
    def _hold(self, job_id: Any) -> Iterator[bool]:
        """Yield whether this thread now is the only one of this process at the job."""
        with self._lock:
            ours = job_id not in self._driving
            self._driving.add(job_id)
        try:
            yield ours
        finally:
            if ours:
                with self._lock:
                    self._driving.discard(job_id)


def _is_without_attempt(metadata: object) -> bool:
    """Say whether metadata that was read holds no key of ours, however it was decoded."""
    if metadata is None:
        return True
    try:
        if isinstance(metadata, bytes | bytearray | memoryview):
            metadata = bytes(metadata).decode()
        if isinstance(metadata, str):
            return not may_name_our_key(metadata)
        return isinstance(metadata, Mapping) and SNAPSHOT_KEY not in metadata
    except Exception:  # noqa: BLE001  # a mapping that reads late may fail to, and says nothing then
        return False


def _log(text: str, error: Exception) -> None:
    # Out of descriptors, say, nothing can be loaded any more: the answer is given all the same.
    with contextlib.suppress(Exception):
        from staging_fsm.effects.journal import log_error  # noqa: PLC0415  # seldom needed

        log_error(text, error=in_words(error))

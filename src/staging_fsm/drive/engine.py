"""The engine: event, step, persist, effect, next event. The one place where effects happen.

Everything an attempt does goes through `Engine.drive`. It looks at the row's last
transition, performs the effect that is owed for it, takes the event that comes
out of it, and makes the next state durable before anything else happens. So a
crash between any two lines leaves a row that says what is owed, and driving it
again, here or in another worker, gives the same result.

A worker that lost its claim is stopped by the compare-and-swap of the row: its
next write raises StaleSnapshotError, and it changes nothing any more.
"""

import contextlib
import traceback
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import attrs

from staging_fsm.core.errors import (
    GateContradictedVerdictError,
    GateEndedTransactionError,
    JobNotFoundError,
    PreparationError,
    SnapshotRefusedError,
    StaleSnapshotError,
    TransitionRefusedError,
    in_words,
)
from staging_fsm.core.jobs import QUEUED, Gate, JobRow, JobRows, Place
from staging_fsm.core.machine import step
from staging_fsm.core.outcome import REASONS, Outcome, Reason, RunFacts, judge
from staging_fsm.core.ports import AlertKind, Alerts, Artifacts, Clock, RunOrder, RunReport, Suites
from staging_fsm.core.snapshot import Artifact, Run, Snapshot
from staging_fsm.core.spec import Effect, Event, State
from staging_fsm.core.times import format_time, parse_time
from staging_fsm.core.trail import walk
from staging_fsm.effects.files import sha256_of_text
from staging_fsm.effects.journal import log_error, log_transition
from staging_fsm.host.contract.self_deploy import map_exit_code_to_status

TAIL_BYTES: Final = 32 * 1024
_BY_GATE: Final = "raised by the gate"
#: A gate that contradicts the verdict, or an artifact that will not stay written, is
#: tried this often before the attempt is left for a person.
HAND_OVER_TRIES: Final = 3
#: By how much a host may round a due time up.
COARSEST_DUE_TIME: Final = timedelta(seconds=1)
_GATE_TOOK_ROW: Final = (
    "the gate removed the row of its own job, or wrote over our key in its metadata, and all that"
    " it wrote is undone: the attempt ends in that row, so end the job there, and remove it later"
)
_NOTHING_KNOWN: Final = RunFacts()


@attrs.frozen
class Step:
    """An event with what else is stored along with it."""

    event: Event
    reason: str
    changes: dict[str, Any] = attrs.field(factory=dict)


@attrs.define
class Engine:
    """Drives attempts of one worker."""

    rows: JobRows
    suites: Suites
    artifacts: Artifacts
    alerts: Alerts
    clock: Clock
    gate: Gate
    place: Callable[[JobRow], Place]
    worker: str
    #: Called after each durable transition: progress for a person. What it raises stops nothing.
    watch: Callable[[JobRow, Snapshot], None] = lambda _row, _snapshot: None

    def drive(self, row: JobRow, snapshot: Snapshot) -> Snapshot:
        """Perform what is owed, again and again, until nothing is or the attempt waits.

        Returns the attempt as stored: terminal, DEFERRED, or in a state whose
        hand-over did not succeed and is left for recovery. Raises
        StaleSnapshotError when another worker has moved the attempt.
        """
        while snapshot.history:
            moved = self._perform(snapshot.history[-1].row.effect, row, snapshot)
            if moved is None:
                break
            snapshot = moved
        return snapshot

    def move(self, row: JobRow, snapshot: Snapshot, step_: Step, tx: Any = None) -> Snapshot:
        """Make the state after an event durable and return it; nothing is performed here.

        Raises TransitionRefusedError if the table has no such row, and
        StaleSnapshotError if somebody else moved the attempt.
        """
        walked = step(snapshot.state, step_.event)
        now = format_time(self.clock.now())
        moved = walk(snapshot, walked, now, step_.reason, self.worker, step_.changes)
        self.rows.save(row.id, moved, tx)
        if tx is None:
            self._announce(row, moved)
        return moved

    def alert(
        self, kind: AlertKind, job_id: object, text: str, attempt_id: str | None = None
    ) -> None:
        """Alert a person. An alert that fails stops nothing: what it tells of goes on."""
        try:
            self.alerts.send(kind, job_id, text, attempt_id)
        except Exception as error:  # noqa: BLE001  # a host's own alerts may break their promise
            log_error("an alert was lost", alert=str(kind), job=str(job_id), error=in_words(error))

    def deliver_alerts(self) -> None:
        """Try again what could not be delivered; what goes wrong with it stops nothing."""
        try:
            self.alerts.deliver()
        except Exception as error:  # noqa: BLE001  # a host's own alerts may break their promise
            log_error("alerts were not delivered", error=in_words(error))

    def _announce(self, row: JobRow, moved: Snapshot) -> None:
        entry = moved.history[-1]
        log_transition(row.id, moved.attempt_id, entry.row, entry.reason, entry.link)
        try:
            self.watch(row, moved)
        except Exception as error:  # noqa: BLE001  # whoever looks on must not hurt what he looks at
            log_error("a transition was not shown", job=str(row.id), error=in_words(error))
        self.deliver_alerts()

    def _perform(self, effect: Effect, row: JobRow, snapshot: Snapshot) -> Snapshot | None:
        """Perform one effect: the only function that does.

        Returns the attempt after the event that the effect led to, or None if it
        led to none and the attempt rests where it is.
        """
        match effect:
            case Effect.RUN_SUITE:
                return self.move(row, snapshot, self._judged(row, snapshot, self._run_suite))
            case Effect.AWAIT_RUN:
                return self.move(row, snapshot, self._judged(row, snapshot, self._await_run))
            case Effect.SPEND_BUDGET:
                return self.move(row, snapshot, self._spend_budget(row, snapshot))
            case Effect.HAND_OVER:
                return self._hand_over(row, snapshot)
            case Effect.REQUEUE_JOB:
                self._requeue_job(row, snapshot)
            case Effect.REAP_RUN:
                self._reap_run(row, snapshot)
            case Effect.SPAWN_AGENT | Effect.NONE:
                pass
        return None

    def _run_suite(self, row: JobRow, snapshot: Snapshot) -> RunReport:
        place, plan = self.place(row), snapshot.bound_plan
        run_id = run_id_of(snapshot)
        # A SUCCESS of an earlier attempt is a false green in waiting.
        self.artifacts.set_aside(place.artifact_dir, f"before-{run_id}")
        self.suites.start(RunOrder(run_id, place.repository, plan.revision, plan.suite))
        return self.suites.await_report(run_id)

    def _await_run(self, _row: JobRow, snapshot: Snapshot) -> RunReport:
        return self.suites.await_report(run_id_of(snapshot))

    def _judged(
        self, row: JobRow, snapshot: Snapshot, run: Callable[[JobRow, Snapshot], RunReport]
    ) -> Step:
        """Return the verdict on a run; whatever goes wrong with it is a counted tool error.

        Raises only if a run that went wrong cannot be reaped: it counts as under way then,
        and is left for recovery.
        """
        try:
            report = run(row, snapshot)
            suite, counts = snapshot.bound_plan.suite, report.facts.evidence.counts
            outcome = judge(report.facts, suite.judging_policy())
            if outcome.reason is Reason.TOO_FEW_TESTS and counts is not None:
                report = attrs.evolve(report, detail=suite.shortfall(counts.executed))
        except Exception as error:  # noqa: BLE001  # once a run is counted, our own fault is one of the tool
            reason, detail = Reason.INTERNAL_ERROR, in_words(error)
            if isinstance(error, PreparationError):
                reason, detail = Reason.PREPARATION_FAILED, str(error)
            return self.lose(snapshot, Event.SUITE_NOT_EXECUTED, reason, detail)
        ended = self._ended_run(snapshot.last_run, report, outcome)
        return Step(outcome.event, outcome.reason, {"runs": (*snapshot.runs[:-1], ended)})

    def _ended_run(self, run: Run, report: RunReport, outcome: Outcome) -> Run:
        facts = report.facts
        return attrs.evolve(
            run,
            ended_at=format_time(self.clock.now()),
            reason=outcome.reason,
            rule=outcome.rule,
            exit_code=facts.exit_code,
            signal=facts.signal,
            duration_seconds=report.duration_seconds,
            detail=report.detail,
            evidence=facts.evidence.state,
            counts=facts.evidence.counts,
            log=report.log,
            log_sha256=report.log_sha256,
            log_bytes=report.log_bytes,
            log_dropped_bytes=report.log_dropped_bytes,
        )

    def lose(self, snapshot: Snapshot, event: Event, reason: Reason, detail: str) -> Step:
        """Stop what is left of the run in hand; return the step that ends it as a tool error.

        In this order: when the run counts as ended, nothing of it may be left.
        """
        self.suites.reap(run_id_of(snapshot))
        return self.run_without_result(snapshot, event, reason, detail)

    def run_without_result(
        self, snapshot: Snapshot, event: Event, reason: Reason, detail: str
    ) -> Step:
        """Return the step that ends the run in hand as a tool error of which nothing is known."""
        report = RunReport(_NOTHING_KNOWN, detail=detail)
        ended = self._ended_run(snapshot.last_run, report, Outcome(reason, "engine"))
        return Step(event, reason, {"runs": (*snapshot.runs[:-1], ended)})

    def _spend_budget(self, row: JobRow, snapshot: Snapshot) -> Step:
        budget = snapshot.bound_plan.budget
        event = budget.spend(snapshot.reasons)
        number = snapshot.last_run.number
        if event is Event.BUDGET_SPENT:
            return Step(event, f"run {number} of at most {budget.runs_max} was the last")
        seconds = budget.delay_seconds(snapshot.attempt_id, number)
        changes = {"next_run_at": format_time(self._next_due(row, snapshot, seconds))}
        return Step(
            event, f"run {number + 1} of at most {budget.runs_max} in {seconds:.1f} s", changes
        )

    def _next_due(self, row: JobRow, snapshot: Snapshot, seconds: float) -> datetime:
        """Return when the next run is due: later than the row was, and than any deferral before.

        By its due time it is seen whether the job was queued again after this one.
        """
        now, before = self.clock.now(), row.not_before
        due = now + timedelta(seconds=seconds)
        # What is far away is of a time before the clock was set back.
        if before is not None and before <= now + COARSEST_DUE_TIME:
            due = max(due, before + timedelta.resolution)
        # The row may have been read before it was queued for the run in hand.
        last = snapshot.last_run.due_at and parse_time(snapshot.last_run.due_at)
        if last and last <= now + COARSEST_DUE_TIME:
            due = max(due, last + COARSEST_DUE_TIME)
        return due

    def is_early(self, snapshot: Snapshot) -> bool:
        """Say whether a deferred attempt still has to wait for its next run.

        A wait beyond the longest possible one is none: the clock was set back.
        """
        due = _next_run_time(snapshot)
        return self.clock.now() < due <= self.latest_due(snapshot)

    def latest_due(self, snapshot: Snapshot) -> datetime:
        """Return the moment beyond which no wait that begins now can last."""
        longest = snapshot.bound_plan.budget.backoff_max_seconds
        return self.clock.now() + timedelta(seconds=longest)

    def _requeue_job(self, row: JobRow, snapshot: Snapshot) -> None:
        # A clock that was set back must not stall the job for longer than the longest wait.
        due = min(_next_run_time(snapshot), self.latest_due(snapshot))
        # Whoever saw the job due then has its claim, too early; everybody else may be late.
        seen = row.not_before is not None and row.not_before >= due
        self.rows.requeue(row.id, due, snapshot, once=not seen)

    def is_claimed_again(self, row: JobRow, snapshot: Snapshot) -> bool:
        """Say whether a deferred attempt's job was queued again, and has been claimed since.

        Where no due time is kept that cannot be seen.
        """
        made = row.not_before is not None and row.not_before >= _next_run_time(snapshot)
        return row.status != QUEUED and made

    def _reap_run(self, row: JobRow, snapshot: Snapshot) -> None:
        if snapshot.runs:
            self.suites.reap(run_id_of(snapshot))
        self.rows.cancel(row.id, snapshot)

    def _hand_over(self, row: JobRow, snapshot: Snapshot) -> Snapshot | None:
        """Write the artifact, initiate the gate, and end the attempt in one transaction.

        Returns None if the gate contradicted the verdict every time, took the attempt out of
        its row, or ended the transaction: it stays where it is, and a person is alerted.
        """
        if snapshot.state is State.EXHAUSTED:
            # Before the end is durable: a crash may double this alert, never swallow it.
            words = _failed_closed_words(row, snapshot)
            self.alert(AlertKind.FAILED_CLOSED, row.id, words, snapshot.attempt_id)
        text = self._artifact_text(row, snapshot)
        folder = self.place(row).artifact_dir
        problem = ""
        for tries_left in reversed(range(HAND_OVER_TRIES)):
            written = Artifact(str(self.artifacts.write(folder, text)), sha256_of_text(text))
            try:
                ended = self._initiate_gate(row, snapshot, folder, text, written, tries_left)
            except GateContradictedVerdictError as error:
                problem = str(error)
                continue
            except GateEndedTransactionError as error:
                problem = str(error)
                break
            except StaleSnapshotError:
                if not self._is_as_it_was(row, snapshot):
                    raise
                problem = _GATE_TOOK_ROW
                break
            self._announce(row, ended)
            return ended
        kind = AlertKind.GATE_CONTRADICTED_VERDICT
        self.alert(kind, row.id, problem, snapshot.attempt_id)
        return None

    def _is_as_it_was(self, row: JobRow, snapshot: Snapshot) -> bool:
        """Say whether nobody has moved the attempt, once all that a gate wrote is undone."""
        try:
            return self.rows.load(row.id).snapshot() == snapshot
        except (JobNotFoundError, SnapshotRefusedError):
            return False

    def _initiate_gate(
        self,
        row: JobRow,
        snapshot: Snapshot,
        folder: Path,
        text: str,
        written: Artifact,
        tries_left: int,
    ) -> Snapshot:
        with self.rows.transaction() as tx:
            opened = self._ask_gate(row, tx)
            event = Event.GATE_OPENED if opened else Event.GATE_REFUSED
            words = "the gate opened" if opened else "the gate refused"
            # At last a no is safe, whatever was read; until then somebody may have been in the way.
            if (opened or tries_left) and not self.artifacts.is_written(folder, text):
                message = f"{words}, but the artifact it read is not the one that was written"
                raise GateContradictedVerdictError(message)
            try:
                return self.move(row, snapshot, Step(event, words, {"artifact": written}), tx)
            except TransitionRefusedError as error:
                # Raised inside the transaction: whatever the gate moved is undone with it.
                message = f"the gate opened against the verdict: {error}"
                raise GateContradictedVerdictError(message) from error

    def _ask_gate(self, row: JobRow, tx: Any) -> bool:
        """Return the gate's answer; what it raises says that it was the gate, and where in it."""
        try:
            opened = self.gate(row, tx)
        except Exception as error:
            # An error of a host's own may take no notes, or have something else in their place.
            with contextlib.suppress(Exception):
                # One that a host keeps and raises again has it already.
                if not any(note.startswith(_BY_GATE) for note in getattr(error, "__notes__", ())):
                    error.add_note(_BY_GATE + _where(error))
            raise
        if type(opened) is not bool:
            # A coroutine that nobody awaits, say, or a result that is true whatever it holds.
            message = f"the gate answered with {type(opened).__name__}, neither True nor False"
            raise TypeError(message)
        return opened

    def _artifact_text(self, row: JobRow, snapshot: Snapshot) -> str:
        from staging_fsm.core.artifact import StagingLog, render  # noqa: PLC0415  # it loads YAML

        run = snapshot.last_run
        passed = snapshot.state is State.VERDICT_PASSED
        # The status word is made by the host's own function; the rules only say
        # whether it may be asked about this exit code.
        code = run.exit_code if passed and run.exit_code is not None else 1
        tail = self.suites.log_tail(run_id_of(snapshot), TAIL_BYTES)
        command = self.suites.shown_command(run_id_of(snapshot), snapshot.bound_plan.suite)
        status = map_exit_code_to_status(code)
        log = StagingLog(row.work_item, str(row.id), status, tail, command)
        return render(snapshot, log)


def _where(error: Exception) -> str:
    """Return where a gate raised: the last line that is of the gate's own file."""
    called = [(it.f_code, line) for it, line in traceback.walk_tb(error.__traceback__)][1:]
    of_gate = [at for at in called if at[0].co_filename == called[0][0].co_filename]
    if not of_gate:
        return ""
    code, line = of_gate[-1]
    return f", in {code.co_name} of {code.co_filename}:{line}"


def run_id_of(snapshot: Snapshot) -> str:
    """Return the name of the run in hand, the same for every worker."""
    return f"{snapshot.attempt_id}.{snapshot.last_run.number}"


def _next_run_time(snapshot: Snapshot) -> datetime:
    assert snapshot.next_run_at is not None  # noqa: S101  # a DEFERRED snapshot without it is refused
    return parse_time(snapshot.next_run_at)


def _failed_closed_words(row: JobRow, snapshot: Snapshot) -> str:
    reason, detail = snapshot.judged_reason, snapshot.last_run.detail
    return (
        f"{row.work_item} in {row.repo} failed closed in run {len(snapshot.runs)}:"
        f" {REASONS[reason].sentence} ({reason}) This is an infrastructure fault,"
        " not a verdict on the code."
    ) + (f" Detail: {detail}" if detail else "")

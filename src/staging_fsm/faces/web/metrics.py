"""What a monitoring system scrapes, in words of Prometheus.

Everything is read off the job rows when it is asked for, so workers need no
server of their own, and what one of them did is counted wherever it ran.
Counters begin at nothing when the server starts and count each move once, by its
place in its attempt's history; what was over before is not counted. Between two
looks no more than RECENT_JOBS new jobs are seen, which a scrape a minute never
comes near.

No label takes its values from a row: states, reasons and verdicts are closed
vocabularies, and a repository is none. Thousands of them make no further series.
"""

import threading
from datetime import UTC, datetime
from typing import Any, Final

import attrs
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from staging_fsm.core.errors import JobNotFoundError, SnapshotRefusedError
from staging_fsm.core.jobs import JobRow
from staging_fsm.core.outcome import REASONS, Reason, Verdict
from staging_fsm.core.snapshot import Move, Snapshot
from staging_fsm.core.spec import TERMINAL, State
from staging_fsm.faces.queue import RECENT_JOBS, StagingRunnerBlock
from staging_fsm.faces.views import credible_seconds, moment
from staging_fsm.faces.web.source import Source, reading

MEDIA_TYPE: Final = CONTENT_TYPE_LATEST
#: Seconds; a staging suite lasts from moments to hours.
BUCKETS: Final = (1, 5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
#: The reason of an attempt that ended without a run that did.
NO_REASON: Final = "none"


def _reasons_of(outcome: State) -> list[str]:
    """Return the reasons for which an attempt usually ends so: their counters stand at 0."""
    verdicts = {
        State.ADVANCED: (Verdict.PASSED,),
        State.ROLLED_BACK: (Verdict.FAILED, Verdict.PASSED),
        State.FAILED_CLOSED: (Verdict.NOT_EXECUTED,),
    }.get(outcome)
    if verdicts is None:
        return [NO_REASON]
    return [str(reason) for reason in Reason if REASONS[reason].verdict in verdicts]


class _Instruments:
    """Every metric, with every series that can be foreseen."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def made(kind: Any, name: str, words: str, *labels: str, **settings: Any) -> Any:
            return kind(f"staging_fsm_{name}", words, labels, registry=registry, **settings)

        self.attempts = made(Counter, "attempts_total", "Attempts that ended.", "outcome", "reason")
        self.runs = made(Counter, "runs_total", "Runs of a suite that ended.", "reason")
        self.deferrals = made(Counter, "deferrals_total", "Runs put off to a later time.")
        self.run_seconds = made(
            Histogram, "run_duration_seconds", "How long runs lasted.", "verdict", buckets=BUCKETS
        )
        self.attempt_seconds = made(
            Histogram,
            "attempt_duration_seconds",
            "How long attempts lasted, their waits included.",
            "outcome",
            buckets=BUCKETS,
        )
        self.active = made(Gauge, "active_attempts", "Attempts that have not ended.", "state")
        self.stuck = made(Gauge, "stuck_attempts", "Attempts that will not go on by themselves.")
        self.refused = made(Gauge, "refused_rows", "Rows whose attempt cannot be read.")
        self.queue_age = made(
            Gauge, "queue_age_seconds", "How long the oldest waiting attempt has waited."
        )
        self.enabled = made(Gauge, "enabled", "Whether the runner is switched on where this runs.")
        self.shadow = made(
            Gauge, "shadow", "Whether it only records, and the LLM agent is the producer."
        )
        for outcome in sorted(TERMINAL):
            self.attempt_seconds.labels(outcome)
            for reason in _reasons_of(outcome):
                self.attempts.labels(outcome, reason)
        for reason in Reason:
            self.runs.labels(reason)
        for verdict in Verdict:
            self.run_seconds.labels(verdict)

    def show(self, block: StagingRunnerBlock) -> None:
        """Set what holds now."""
        for state in State:
            if state not in TERMINAL:
                self.active.labels(state).set(block["counts"].get(state, 0))
        self.stuck.set(sum(one["stuck"] is not None for one in block["attempts"]))
        self.refused.set(len(block["refused"]))
        waiting = block["oldest_waiting"]
        self.queue_age.set(waiting["seconds"] if waiting else 0)
        self.enabled.set(block["enabled"])
        self.shadow.set(block["shadow"])

    def count_move(self, snapshot: Snapshot, move: Move) -> None:
        """Count what a move stands for."""
        if move.row.target is State.DEFERRED:
            self.deferrals.inc()
        if move.row.target in TERMINAL:
            self.attempts.labels(move.row.target, snapshot.last_reason or NO_REASON).inc()
            began, ended = moment(snapshot.history[0].time), moment(move.time)
            if began and ended:
                seconds = credible_seconds((ended - began).total_seconds())
                self.attempt_seconds.labels(move.row.target).observe(seconds)

    def count_run(self, reason: Reason, seconds: float | None) -> None:
        """Count a run that has ended."""
        self.runs.labels(reason).inc()
        if seconds is not None:
            self.run_seconds.labels(REASONS[reason].verdict).observe(credible_seconds(seconds))


@attrs.frozen
class _Counted:
    """How much of an attempt has been counted."""

    attempt_id: str
    moves: int = 0
    runs: int = 0
    is_terminal: bool = False


class Metrics:
    """The metrics of one server. Safe to use from several threads."""

    def __init__(self, source: Source) -> None:
        """Count from now on."""
        self._source = source
        self._registry = CollectorRegistry()
        self._instruments = _Instruments(self._registry)
        self._since = datetime.now(UTC)
        self._counted: dict[Any, _Counted] = {}
        self._lock = threading.Lock()

    def text(self) -> bytes:
        """Return what is scraped. Raises JobsUnreadableError."""
        block = self._source.block()
        with self._lock, reading():
            self._instruments.show(block)
            rows = self._rows()
            # What is in neither list any more has been counted to its end, or has no attempt.
            counted = {row.id: self._count(row) for row in rows.values()}
            self._counted = {job: count for job, count in counted.items() if count is not None}
            return generate_latest(self._registry)

    def _rows(self) -> dict[Any, JobRow]:
        """Return what is new, what is unfinished, and what was so the last time."""
        source = self._source.rows
        rows = {row.id: row for row in (*source.recent(RECENT_JOBS), *source.unfinished())}
        for job_id, counted in self._counted.items():
            if job_id not in rows and not counted.is_terminal:
                try:
                    rows[job_id] = source.load(job_id)
                except JobNotFoundError:
                    continue
        return rows

    def _count(self, row: JobRow) -> _Counted | None:
        before = self._counted.get(row.id)
        try:
            snapshot = row.snapshot()
        except SnapshotRefusedError:
            return before
        if snapshot is None:
            return None
        if before is None or before.attempt_id != snapshot.attempt_id:
            before = _Counted(snapshot.attempt_id)
        for move in snapshot.history[before.moves :]:
            if self._is_new(move.time):
                self._instruments.count_move(snapshot, move)
        ended = [run for run in snapshot.runs if run.reason is not None]
        for run in ended[before.runs :]:
            if run.reason is not None and self._is_new(run.ended_at):
                self._instruments.count_run(run.reason, run.duration_seconds)
        moves, ended_runs = len(snapshot.history), len(ended)
        return _Counted(snapshot.attempt_id, moves, ended_runs, snapshot.is_terminal)

    def _is_new(self, time: str | None) -> bool:
        when = moment(time)
        return when is not None and when >= self._since

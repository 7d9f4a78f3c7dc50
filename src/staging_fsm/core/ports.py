"""What the drive needs of the world, as values and protocols.

The effects layer answers with the real thing; the simulation in the tests
answers with a world whose every fault is chosen by a seed.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from enum import StrEnum, unique
from pathlib import Path
from typing import Any, Final, Protocol

import attrs

from staging_fsm.core.errors import SnapshotRefusedError
from staging_fsm.core.outcome import RunFacts
from staging_fsm.core.plan import SuitePlan
from staging_fsm.core.snapshot import Snapshot, load_snapshot


@attrs.frozen
class BrokenMetadata:
    """Stands for our key where the metadata as a whole cannot be read, and says why."""

    problem: str


#: The word of `JobRow.status` for a job that waits to be claimed.
QUEUED: Final = "queued"


@attrs.frozen
class JobRow:
    """A host's job row as we see it. `id` is whatever the host's key is.

    `status` is one of our own words where the host's word stands for one, else
    the host's word.

    `snapshot` is the decoded value under our key of the metadata, or None where
    there is none; loading it may be refused.
    """

    id: Any
    repo: str
    work_item: str
    stage: str
    status: str
    not_before: datetime | None
    document: object

    def snapshot(self) -> Snapshot | None:
        """Return the stored attempt or None; raises SnapshotRefusedError."""
        if isinstance(self.document, BrokenMetadata):
            raise SnapshotRefusedError(self.document.problem)
        return None if self.document is None else load_snapshot(self.document)


class JobRows(Protocol):
    """A host's jobs. Every write is fenced by the version of the snapshot."""

    def check(self) -> None:
        """Look at the store once, at start; raises ConfigInvalidError in sentences."""
        ...

    def load(self, job_id: Any) -> JobRow:
        """Return the row; raises JobNotFoundError."""
        ...

    def save(self, job_id: Any, snapshot: Snapshot, tx: Any = None) -> None:
        """Store `snapshot` if the stored version is one less, else raise StaleSnapshotError.

        With `tx`, as part of that transaction. Durable when it returns, or when
        the transaction has ended.
        """
        ...

    def requeue(
        self, job_id: Any, not_before: datetime, version: int, *, once: bool = False
    ) -> None:
        """Queue the job again, due later, if the stored version still is `version`.

        With `once`, a job that is due at that very moment already is left as it is: it
        has been queued again before, and whoever has claimed it since is not to lose it.
        """
        ...

    def cancel(self, job_id: Any, version: int) -> None:
        """End the job as cancelled, if the stored version still is `version`."""
        ...

    def transaction(self) -> AbstractContextManager[Any]:
        """Return all or nothing: what is done with what it yields is committed or rolled back."""
        ...

    def unfinished(self) -> list[JobRow]:
        """Return every queued or running row that carries our key, however broken."""
        ...

    def attempts(self) -> Iterator[JobRow]:
        """Yield every row that carries our key, ended or not, however broken, in order of ids."""
        ...

    def recent(self, limit: int, repo: str | None = None) -> list[JobRow]:
        """Return the `limit` rows with the greatest ids, greatest first; of `repo` alone if given.

        A bounded read by the primary key: of a table of millions no more is looked
        at than of a small one. With `repo`, what is returned are the rows of that
        repository among those `limit`.
        """
        ...


@attrs.frozen
class RunOrder:
    """One run that is to be started."""

    run_id: str
    repository: Path
    revision: str
    suite: SuitePlan


@attrs.frozen
class RunReport:
    """What became of a run, once nothing of it is alive any more."""

    facts: RunFacts
    duration_seconds: float | None = None
    detail: str | None = None
    log: str | None = None
    log_sha256: str | None = None
    log_bytes: int | None = None
    log_dropped_bytes: int | None = None


@unique
class AlertKind(StrEnum):
    """What a person is alerted to."""

    FAILED_CLOSED = "failed_closed"
    ROW_REFUSED = "row_refused"
    GATE_CONTRADICTED_VERDICT = "gate_contradicted_verdict"
    CONFIGURATION_INVALID = "configuration_invalid"
    MACHINE_UNFIT = "machine_unfit"
    INTERNAL_ERROR = "internal_error"


@unique
class RunCondition(StrEnum):
    """What can be said of a run whose worker is gone."""

    #: Its supervisor lives.
    LIVE = "live"
    #: Its supervisor has left a result.
    FINISHED = "finished"
    #: Nothing will ever come of it; it can no longer start.
    LOST = "lost"
    #: It is another machine's: not ours to judge.
    FOREIGN = "foreign"


class Suites(Protocol):
    """Runs of suites on this machine."""

    def start(self, order: RunOrder) -> None:
        """Make ready what the run needs and start it. Raises PreparationError."""
        ...

    def await_report(self, run_id: str) -> RunReport:
        """Wait until nothing of the run is alive, remove its checkout, and report."""
        ...

    def condition(self, run_id: str) -> RunCondition:
        """Say what there is of a run. Once it said LOST, the run can no longer start."""
        ...

    def reap(self, run_id: str) -> None:
        """Stop whatever is left of a run and remove its checkout. Safe to repeat."""
        ...

    def log_tail(self, run_id: str, size: int) -> bytes:
        """Return the last `size` bytes of a run's output."""
        ...

    def shown_command(self, run_id: str, suite: SuitePlan) -> tuple[str, ...]:
        """Return the words of a run's command as they may be shown."""
        ...


class Artifacts(Protocol):
    """The artifact's place in the work item's folder."""

    def set_aside(self, folder: Path, suffix: str) -> None:
        """Move an existing artifact out of the gate's sight."""
        ...

    def write(self, folder: Path, text: str) -> Path:
        """Write the artifact, atomically and durably; return its path."""
        ...

    def is_written(self, folder: Path, text: str) -> bool:
        """Say whether the artifact is exactly `text`."""
        ...


class Alerts(Protocol):
    """Somebody to tell."""

    def send(
        self, kind: AlertKind, job_id: object, text: str, attempt_id: str | None = None
    ) -> None:
        """Alert a person, of an attempt where `attempt_id` names one. Never raises or waits."""
        ...

    def deliver(self) -> None:
        """Try again what could not be delivered, if anything is due. Never raises or waits."""
        ...

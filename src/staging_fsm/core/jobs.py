"""A host's jobs: their rows and what every store of them has to do, their gate, their places.

All that a launch needs before it knows whether the job is ours, and so nothing else.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs

from staging_fsm.core.errors import SnapshotRefusedError

if TYPE_CHECKING:
    from staging_fsm.core.snapshot import Snapshot


#: The host's word for the stage that is ours, where it says no other.
STAGE: Final = "deploy-staging"
#: Our key within a row's metadata.
SNAPSHOT_KEY: Final = "staging_runner"
#: The word of `JobRow.status` for a job that waits to be claimed.
QUEUED: Final = "queued"
#: The word for a job that is in work.
RUNNING: Final = "running"


def may_name_our_key(text: str) -> bool:
    """Say whether our key's name may stand in a text, also in escapes or in a wider encoding."""
    return SNAPSHOT_KEY in text or "\\u" in text or "\0" in text


@attrs.frozen
class BrokenMetadata:
    """Stands for our key where metadata or row as a whole cannot be read, and says why."""

    problem: str
    #: Whether there may be an attempt all the same; not where our key's name is nowhere in it.
    may_be_ours: bool = True


@attrs.frozen
class JobRow:
    """A host's job row as we see it. `id` is whatever the host's key is.

    `status` is one of our own words where the host's word stands for one, else
    the host's word.

    `document` is the decoded value under our key of the metadata, or None where
    there is none; `snapshot()`, which loads it, may be refused.
    """

    id: Any
    repo: str
    work_item: str
    stage: str
    status: str
    not_before: datetime | None
    document: object

    @property
    def is_without_attempt(self) -> bool:
        """Say whether there is surely no attempt, also where the metadata cannot be read."""
        document = self.document
        if isinstance(document, BrokenMetadata):
            return not document.may_be_ours
        return document is None

    def snapshot(self) -> "Snapshot | None":
        """Return the stored attempt or None; raises SnapshotRefusedError."""
        if isinstance(self.document, BrokenMetadata):
            raise SnapshotRefusedError(self.document.problem)
        if self.document is None:
            return None
        from staging_fsm.core.snapshot import load_snapshot  # noqa: PLC0415  # most rows have none

        return load_snapshot(self.document)


class JobRows(Protocol):
    """A host's jobs. Every write is fenced by the name of the attempt and its version.

    The version alone would not do: where a person removes our key, another attempt of the
    job reaches the same version, and the worker of the first may still be alive.
    """

    def check(self) -> None:
        """Look at the store once, at start; raises ConfigInvalidError in sentences."""
        ...

    def load(self, job_id: Any) -> JobRow:
        """Return the row; raises JobNotFoundError."""
        ...

    def save(self, job_id: Any, snapshot: "Snapshot", tx: Any = None) -> None:
        """Store `snapshot` if it follows the stored one, else raise StaleSnapshotError.

        It follows the same `attempt_id` with a `version` of one less; version 1 follows
        nothing, and needs a row without an attempt. With `tx`, as part of that transaction.
        Durable when it returns, or when the transaction has ended.
        """
        ...

    def requeue(
        self, job_id: Any, not_before: datetime, snapshot: "Snapshot", *, once: bool = False
    ) -> None:
        """Queue the job again, due later, if it is unfinished and `snapshot` is still stored.

        With `once`, a job that is due at that very moment already is left as it is: it
        has been queued again before, and whoever has claimed it since is not to lose it.
        Raises StaleSnapshotError.
        """
        ...

    def cancel(self, job_id: Any, snapshot: "Snapshot") -> None:
        """End the job as cancelled, if `snapshot` is still stored.

        One that has ended already stays as it is. Raises StaleSnapshotError.
        """
        ...

    def transaction(self) -> AbstractContextManager[Any]:
        """Return all or nothing: what is done with what it yields is committed or rolled back."""
        ...

    def unfinished(self) -> list[JobRow]:
        """Return every queued or running row that carries our key, however broken."""
        ...

    def attempts(self) -> Iterator[JobRow]:
        """Yield every row that carries our key, ended or not, however broken, in order of ids.

        And every one whose metadata is no whole JSON: nobody knows which keys it held.
        """
        ...

    def recent(self, limit: int, repo: str | None = None) -> list[JobRow]:
        """Return the `limit` rows with the greatest ids, greatest first; of `repo` alone if given.

        A bounded read by the primary key: of a table of millions no more is looked
        at than of a small one. With `repo`, what is returned are the rows of that
        repository among those `limit`.
        """
        ...


class Gate(Protocol):
    """The host's gate: what it does when the producer of a stage has ended."""

    def __call__(self, row: JobRow, tx: Any) -> bool:
        """Read the artifact, move the work item, say whether the gate opened.

        Everything it writes goes through `tx`, so that the move of the stage and
        the end of the attempt are one transaction.
        """
        ...


@attrs.frozen
class Place:
    """Where a job's repository is, and where the gate looks for its artifact."""

    repository: Path
    artifact_dir: Path

"""Job rows that are no SQL: documents in a dictionary behind one lock.

The smallest adapter that holds the contract of `staging_fsm.testing`, and what its
broken variants are made of.
"""

import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import attrs

from staging_fsm.core.errors import JobNotFoundError, StaleSnapshotError
from staging_fsm.core.jobs import QUEUED, RUNNING, SNAPSHOT_KEY, JobRow
from staging_fsm.core.snapshot import Snapshot, as_json


@attrs.define
class Document:
    """One job."""

    repo: str
    metadata: dict[str, Any]
    status: str = "running"
    due: datetime | None = None


Documents = dict[int, Document]


class DictRows:
    """`JobRows` over documents in memory; a transaction is a copy that replaces them at its end."""

    def __init__(self) -> None:
        """Start empty."""
        self.documents: Documents = {}
        self.lock = threading.RLock()

    def check(self) -> None:
        """Find nothing."""

    def load(self, job_id: Any) -> JobRow:
        """Return the row; raises JobNotFoundError."""
        with self.lock:
            if job_id not in self.documents:
                message = f"there is no job {job_id}"
                raise JobNotFoundError(message)
            return self.row(job_id)

    def row(self, job_id: int) -> JobRow:
        """Return the row of a job that is there."""
        found = self.documents[job_id]
        ours = copy.deepcopy(found.metadata.get(SNAPSHOT_KEY))
        return JobRow(job_id, found.repo, "WI-1", "deploy-staging", found.status, found.due, ours)

    def unfinished(self) -> list[JobRow]:
        """Return every queued or running row that carries our key, however broken."""
        with self.lock:
            rows = [self.row(job_id) for job_id in self.documents]
            return [row for row in rows if row.document is not None and row.status != "cancelled"]

    def attempts(self) -> Iterator[JobRow]:
        """Yield every row that carries our key, in order of ids."""
        with self.lock:
            rows = [self.row(job_id) for job_id in sorted(self.documents)]
        yield from (row for row in rows if row.document is not None)

    def recent(self, limit: int, repo: str | None = None) -> list[JobRow]:
        """Return the `limit` rows with the greatest ids, greatest first; of `repo` if given."""
        with self.lock:
            rows = [self.row(job_id) for job_id in sorted(self.documents, reverse=True)[:limit]]
            return [row for row in rows if repo in (None, row.repo)]

    @contextmanager
    def transaction(self) -> Iterator[Documents]:
        """Yield documents that replace the present ones at the end."""
        with self.lock:
            changed = copy.deepcopy(self.documents)
            yield changed
            self.documents = changed

    def save(self, job_id: Any, snapshot: Snapshot, tx: Documents | None = None) -> None:
        """Store `snapshot` if it follows the stored one, else raise StaleSnapshotError."""
        if tx is None:
            with self.transaction() as own:
                self.save(job_id, snapshot, own)
            return
        found = self.fenced(tx, job_id, snapshot.attempt_id, snapshot.version - 1 or None)
        found.metadata[SNAPSHOT_KEY] = as_json(snapshot)

    def requeue(
        self, job_id: Any, not_before: datetime, snapshot: Snapshot, *, once: bool = False
    ) -> None:
        """Queue the job again, due later, if it is unfinished and `snapshot` is still stored."""
        with self.transaction() as tx:
            found = self.fenced(tx, job_id, snapshot.attempt_id, snapshot.version)
            if once and found.due == not_before:
                return
            if self.has_ended(found):
                raise StaleSnapshotError(job_id, snapshot.attempt_id, snapshot.version)
            found.status, found.due = QUEUED, not_before

    def cancel(self, job_id: Any, snapshot: Snapshot) -> None:
        """End the job as cancelled, if `snapshot` is still stored."""
        with self.transaction() as tx:
            found = self.fenced(tx, job_id, snapshot.attempt_id, snapshot.version)
            if not self.has_ended(found):
                found.status = "cancelled"

    def has_ended(self, found: Document) -> bool:
        """Say whether a job neither waits nor is in work."""
        return found.status not in (QUEUED, RUNNING)

    def fenced(self, tx: Documents, job_id: int, attempt_id: str, version: int | None) -> Document:
        """Return the document if it holds that version of the attempt, or None of any.

        Raises StaleSnapshotError.
        """
        found = tx.get(job_id)
        ours = found.metadata.get(SNAPSHOT_KEY) if found else None
        expected = None if version is None else (attempt_id, version)
        stored = self.told(ours) if isinstance(ours, dict) else ours
        if found is None or stored != expected:
            raise StaleSnapshotError(job_id, attempt_id, version)
        return found

    def told(self, ours: dict[str, Any]) -> object:
        """Return which version of which attempt is stored."""
        return ours.get("attempt_id"), ours.get("version")


@attrs.frozen
class DictBench:
    """A bench for rows over documents in memory."""

    rows: DictRows

    def add(self, metadata: Mapping[str, Any], repo: str = "shop") -> int:
        """Add a claimed job, and return its id."""
        job_id = len(self.rows.documents) + 1
        self.rows.documents[job_id] = Document(repo, copy.deepcopy(dict(metadata)))
        return job_id

    def missing(self) -> int:
        """Return an id that no job has."""
        return 0

    def metadata(self, job_id: int) -> dict[str, Any]:
        """Return the job's metadata as stored."""
        return copy.deepcopy(self.rows.documents[job_id].metadata)

    def set_key(self, job_id: int, key: str, value: Any) -> None:
        """Set one key of the metadata."""
        with self.rows.lock:
            self.rows.documents[job_id].metadata[key] = value

    def remove_key(self, job_id: int, key: str) -> None:
        """Remove one key of the metadata."""
        with self.rows.lock:
            del self.rows.documents[job_id].metadata[key]

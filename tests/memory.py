"""The host's tables in memory: job rows and store with the same answers as the SQL ones.

One writer at a time, a transaction is all or nothing, and everybody else sees
what was committed last. `tests/test_rows.py` holds these rows and the SQL ones
to one contract. What a worker does here goes through its `Hands`, so that a
simulation may stop, fail or end the worker before and after everything it does.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import attrs

from staging_fsm.core.errors import JobNotFoundError, StaleSnapshotError
from staging_fsm.core.jobs import SNAPSHOT_KEY, JobRow
from staging_fsm.core.snapshot import Snapshot, dump_snapshot
from staging_fsm.core.times import format_time, parse_time
from staging_fsm.effects.metadata import _refuse_constant, our_document
from staging_fsm.host.store import Job, WorkItem

T = TypeVar("T")
_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)
_SPACES: Final = frozenset(" \t\n\r")
UNFINISHED: Final = frozenset({"queued", "running"})
#: So many texts are kept with what they hold: worlds of other seeds store the same ones again.
TEXTS_KEPT: Final = 4096


class StoreError(Exception):
    """The store could not do what it was asked for; nothing was written."""


class ConnectionLostError(StoreError):
    """The connection was lost on the way back: what was asked for has been done."""


Errors = tuple[type[Exception], type[Exception]]
#: What a store raises before and after it did what it was asked for.
STORE_ERRORS: Final[Errors] = (StoreError, ConnectionLostError)


class Hands(Protocol):
    """How one worker touches the world."""

    def do(
        self,
        point: str,
        effect: Callable[[], T],
        errors: Errors = STORE_ERRORS,
        ready: Callable[[], bool] = lambda: True,
    ) -> T:
        """Perform `effect` once `ready` says that it can be, and return what it returns.

        `errors` are what may be raised instead before it, and in spite of it after.
        """
        ...


class SureHands:
    """Hands that nothing happens to."""

    def do(
        self,
        point: str,
        effect: Callable[[], T],
        errors: Errors = STORE_ERRORS,
        ready: Callable[[], bool] = lambda: True,
    ) -> T:
        """Perform `effect` at once."""
        if not ready():
            message = f"{point}: somebody else is writing"
            raise errors[0](message)
        return effect()


@attrs.frozen
class _Row(JobRow):
    """A row whose attempt is not loaded twice from the same text."""

    text: str

    def snapshot(self) -> Snapshot | None:
        """Return the stored attempt or None; raises SnapshotRefusedError."""
        return stored_attempt(self.text)


#: Pure, and the bulk of the work: the same text always holds the same.
_document: Final = functools.lru_cache(TEXTS_KEPT)(our_document)


@functools.lru_cache(TEXTS_KEPT)
def stored_attempt(text: str) -> Snapshot | None:
    """Return the attempt in metadata or None, as the runner loads it."""
    return JobRow(0, "", "", "", "", None, _document(text)).snapshot()


@attrs.frozen
class Record:
    """One row of `jobs`."""

    id: int
    repo: str
    work_item: str
    stage: str
    agent: str
    status: str
    not_before: str | None = None
    claimed_by: str | None = None
    metadata: str = "{}"
    updated_at: str = ""

    @functools.cached_property
    def row(self) -> JobRow:
        """Return the row as the runner sees it."""
        return _Row(
            self.id,
            self.repo,
            self.work_item,
            self.stage,
            self.status,
            None if self.not_before is None else parse_time(self.not_before),
            _document(self.metadata),
            self.metadata,
        )

    def job(self) -> Job:
        """Return the row as the host sees it."""
        return Job(
            self.id,
            self.repo,
            self.work_item,
            self.stage,
            self.agent,
            self.status,
            self.claimed_by,
            self.metadata,
            self.updated_at,
        )


@functools.lru_cache(TEXTS_KEPT)
def members(text: str) -> tuple[tuple[str, str], ...]:
    """Return the members of a JSON object, each value as it is written; raises StoreError."""
    try:
        at = _skip(text, _skip(text, 0, "{"))
        found: list[tuple[str, str]] = []
        while text[at] != "}":
            name, at = _DECODER.raw_decode(text, at)
            start = _skip(text, _skip(text, at, ":"))
            _, at = _DECODER.raw_decode(text, start)
            found.append((name, text[start:at]))
            at = _skip(text, at)
            at = _skip(text, _skip(text, at, ",")) if text[at] == "," else at
    except (ValueError, IndexError, RecursionError) as error:
        message = f"malformed JSON: {error}"
        raise StoreError(message) from error
    return tuple(found)


def _skip(text: str, at: int, expected: str = "") -> int:
    while text[at] in _SPACES:
        at += 1
    if expected and text[at] != expected:
        message = f"{expected!r} expected at {at}"
        raise ValueError(message)
    return at + len(expected)


@functools.lru_cache(TEXTS_KEPT)
def foreign(text: str) -> str:
    """Return the metadata without our key, each other member as it is written."""
    return _object(member for member in members(text) if member[0] != SNAPSHOT_KEY)


def _object(found: Iterable[tuple[str, str]]) -> str:
    return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in found) + "}"


def with_member(text: str, key: str, value: str) -> str:
    """Return the metadata with one member set, in its place or at the end."""
    return _object((dict(members(text)) | {key: value}).items())


class Tables:
    """The committed rows, and who is writing."""

    def __init__(self) -> None:
        """Start empty."""
        self.jobs: dict[int, Record] = {}
        self.items: dict[tuple[str, str], WorkItem] = {}
        self.repositories: dict[str, Path] = {}
        self.writer: Transaction | None = None
        #: Called with each transaction right after it was committed.
        self.committed: Callable[[Transaction], None] = lambda _tx: None


class Transaction:
    """Changes that are all committed, or none."""

    def __init__(self, tables: Tables) -> None:
        """Start with no change."""
        self.tables = tables
        self.jobs: dict[int, Record] = {}
        self.items: dict[tuple[str, str], WorkItem] = {}
        self.items_before: dict[tuple[str, str], WorkItem | None] = {}
        #: The jobs whose attempts were stored, for whoever looks at the world.
        self.saved: set[int] = set()
        self.ended_job: int | None = None
        #: Whether the gate was initiated by the runner, and not after an agent.
        self.by_runner = False

    def free(self) -> bool:
        """Say whether nobody else is writing."""
        return self.tables.writer in (None, self)

    def job(self, job_id: int) -> Record | None:
        """Return a job as this transaction sees it."""
        return self.jobs.get(job_id) or self.tables.jobs.get(job_id)

    def item(self, key: tuple[str, str]) -> WorkItem:
        """Return a work item as this transaction sees it; raises LookupError."""
        return self.items.get(key) or self.tables.items[key]

    def change(self, record: Record) -> None:
        """Change or add a job."""
        self.tables.writer = self
        self.jobs[record.id] = record

    def change_item(self, item: WorkItem) -> None:
        """Change or add a work item."""
        self.tables.writer = self
        self.items[item.repo, item.id] = item

    def commit(self) -> None:
        """Make every change visible at once."""
        self.items_before = {key: self.tables.items.get(key) for key in self.items}
        self.tables.jobs.update(self.jobs)
        self.tables.items.update(self.items)
        self.close()
        self.tables.committed(self)

    def close(self) -> None:
        """Let others write: what was not committed is gone."""
        if self.tables.writer is self:
            self.tables.writer = None


class _Connected:
    """Tables as one worker reaches them."""

    def __init__(self, tables: Tables, hands: Hands) -> None:
        self.tables, self.hands = tables, hands

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Yield a transaction, committed at the end unless something is raised."""
        tx = Transaction(self.tables)
        try:
            yield tx
            self.hands.do("commit", tx.commit)
        finally:
            tx.close()

    def _write(self, point: str, change: Callable[[Transaction], T], tx: Transaction | None) -> T:
        """Make a change within `tx`, or in a transaction of its own."""
        if tx is not None:
            return self.hands.do(point, lambda: change(tx), ready=tx.free)
        own = Transaction(self.tables)

        def change_and_commit() -> T:
            try:
                result = change(own)
                own.commit()
            finally:
                own.close()
            return result

        return self.hands.do(point, change_and_commit, ready=own.free)


class MemoryRows(_Connected):
    """`JobRows` over tables in memory."""

    def check(self) -> None:
        """Find nothing: these rows fit."""

    def load(self, job_id: Any) -> JobRow:
        """Return the row; raises JobNotFoundError."""
        return self.hands.do("load", lambda: self._load(job_id))

    def _load(self, job_id: int) -> JobRow:
        record = self.tables.jobs.get(job_id)
        if record is None:
            message = f"there is no job {job_id}"
            raise JobNotFoundError(message)
        return record.row

    def unfinished(self) -> list[JobRow]:
        """Return every queued or running row that carries our key, however broken."""
        return self.hands.do("unfinished", self._unfinished)

    def _unfinished(self) -> list[JobRow]:
        rows = [job.row for job in self.tables.jobs.values() if job.status in UNFINISHED]
        return [row for row in rows if row.document is not None]

    def attempts(self) -> Iterator[JobRow]:
        """Yield every row that carries our key, ended or not, in order of ids."""
        rows = [self.tables.jobs[id_].row for id_ in sorted(self.tables.jobs)]
        yield from (row for row in rows if row.document is not None)

    def recent(self, limit: int, repo: str | None = None) -> list[JobRow]:
        """Return the `limit` rows with the greatest ids, greatest first; of `repo` if given."""
        jobs = sorted(self.tables.jobs.values(), key=lambda job: job.id, reverse=True)[:limit]
        rows = [job.row for job in jobs if repo in (None, job.repo)]
        return self.hands.do("recent", lambda: rows)

    def save(self, job_id: Any, snapshot: Snapshot, tx: Transaction | None = None) -> None:
        """Store `snapshot` if it follows the stored one, else raise StaleSnapshotError."""

        def change(tx: Transaction) -> None:
            version = snapshot.version - 1 or None
            record, found = _fenced(tx, job_id, snapshot.attempt_id, version)
            found[SNAPSHOT_KEY] = dump_snapshot(snapshot)
            tx.change(attrs.evolve(record, metadata=_object(found.items())))
            tx.saved.add(job_id)

        self._write(f"save {snapshot.history[-1].id}", change, tx)

    def requeue(
        self, job_id: Any, not_before: datetime, snapshot: Snapshot, *, once: bool = False
    ) -> None:
        """Queue the job again, due later, if it is unfinished and `snapshot` is still stored."""

        def change(tx: Transaction) -> None:
            record, _ = _fenced(tx, job_id, snapshot.attempt_id, snapshot.version)
            due = format_time(not_before)
            if once and record.not_before == due:
                return
            if record.status not in UNFINISHED:
                raise StaleSnapshotError(job_id, snapshot.attempt_id, snapshot.version)
            tx.change(attrs.evolve(record, status="queued", not_before=due))

        self._write("requeue", change, None)

    def cancel(self, job_id: Any, snapshot: Snapshot) -> None:
        """End the job as cancelled, if `snapshot` is still stored."""

        def change(tx: Transaction) -> None:
            record, _ = _fenced(tx, job_id, snapshot.attempt_id, snapshot.version)
            if record.status in UNFINISHED:
                tx.change(attrs.evolve(record, status="cancelled"))

        self._write("cancel", change, None)


def _fenced(
    tx: Transaction, job_id: int, attempt_id: str, version: int | None
) -> tuple[Record, dict[str, str]]:
    """Return the job and its metadata if that version of the attempt is stored, or None of any.

    Raises StaleSnapshotError.
    """
    record = tx.job(job_id)
    if record is None:
        raise StaleSnapshotError(job_id, attempt_id, version)
    empty = record.metadata in ("", "null")
    try:
        found = dict(members("{}" if empty else record.metadata))
    except StoreError:
        raise StaleSnapshotError(job_id, attempt_id, version) from None
    ours = found.get(SNAPSHOT_KEY, "null")
    stored = None if ours == "null" else _told(ours)
    if stored != (None if version is None else (attempt_id, version)):
        raise StaleSnapshotError(job_id, attempt_id, version)
    return record, found


@functools.lru_cache(TEXTS_KEPT)
def _told(ours: str) -> tuple[object, object]:
    """Return which version of which attempt is stored."""
    document = _DECODER.decode(ours)
    found = document if isinstance(document, dict) else {}
    return found.get("attempt_id"), found.get("version")


class MemoryStore(_Connected):
    """`HostStore` over tables in memory."""

    def claim_next(self, now: datetime, claimed_by: str, only: int | None = None) -> Job | None:
        """Take one due queued job for the worker `claimed_by`, or return None."""
        moment = format_time(now)

        def change(tx: Transaction) -> Job | None:
            due = [
                record
                for record in self.tables.jobs.values()
                if record.status == "queued"
                and (record.not_before is None or record.not_before <= moment)
                and only in (None, record.id)
            ]
            if not due:
                return None
            first = min(due, key=lambda record: (record.not_before or "", record.id))
            claimed = attrs.evolve(
                first, status="running", claimed_by=claimed_by, updated_at=moment
            )
            tx.change(claimed)
            return claimed.job()

        return self._write("claim", change, None)

    def running_jobs(self) -> list[Job]:
        """Return every job that some worker has claimed."""
        jobs = self.tables.jobs
        return self.hands.do(
            "running jobs",
            lambda: [record.job() for record in jobs.values() if record.status == "running"],
        )

    def requeue_abandoned(self, job: Job, _now: datetime) -> bool:
        """Queue a running job again whose claim has not changed since it was read."""

        def change(tx: Transaction) -> bool:
            record = tx.job(job.id)
            seen = ("running", job.claimed_by, job.updated_at)
            if record is None or (record.status, record.claimed_by, record.updated_at) != seen:
                return False
            tx.change(attrs.evolve(record, status="queued", claimed_by=None))
            return True

        return self._write("requeue abandoned", change, None)

    def job_before(self, job: Job, stage: str) -> Job | None:
        """Return the newest job of the same work item at `stage` that was queued before `job`."""
        jobs = [record.job() for record in self.tables.jobs.values() if record.id < job.id]
        of_item = (job.repo, job.work_item, stage)
        found = [one for one in jobs if (one.repo, one.work_item, one.stage) == of_item]
        return max(found, key=lambda one: one.id, default=None)

    def finish_job(self, tx: Transaction, job_id: int, _now: datetime) -> bool:
        """End a job that has not ended; False if it has."""

        def change(tx: Transaction) -> bool:
            record = tx.job(job_id)
            if record is None or record.status not in UNFINISHED:
                return False
            tx.change(attrs.evolve(record, status="done"))
            tx.ended_job = job_id
            return True

        return self._write("finish", change, tx)

    def work_item(self, tx: Transaction, repo: str, work_item: str) -> WorkItem:
        """Return a work item; raises LookupError."""
        return tx.item((repo, work_item))

    def move_work_item(self, tx: Transaction, item: WorkItem, _now: datetime) -> None:
        """Store stage, developer retries and blocked reason of `item`."""
        self._write("move work item", lambda tx: tx.change_item(item), tx)

    def enqueue(self, tx: Transaction, item: WorkItem, agent: str, _now: datetime) -> int:
        """Queue a job for the stage of `item`; return its id."""

        def change(tx: Transaction) -> int:
            job_id = 1 + len(tx.tables.jobs | tx.jobs)
            tx.change(Record(job_id, item.repo, item.id, item.stage, agent, "queued"))
            return job_id

        return self._write("enqueue", change, tx)

    def repository_path(self, repo: str) -> Path:
        """Return where the repository lies; raises LookupError."""
        return self.tables.repositories[repo]

    def record(self, job_id: int, key: str, value: str) -> None:
        """Set one string key of the job's metadata and leave every other as it is."""

        def change(tx: Transaction) -> None:
            record = tx.job(job_id)
            if record is not None:
                metadata = with_member(record.metadata or "{}", key, json.dumps(value))
                tx.change(attrs.evolve(record, metadata=metadata))

        self._write("record", change, None)

"""The contract of job rows, held by our adapters, and missed by broken ones test by test."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import sqlalchemy as sa

from dict_rows import DictBench, DictRows, Document, Documents
from staging_fsm.core.errors import StaleSnapshotError
from staging_fsm.core.jobs import SNAPSHOT_KEY, JobRow
from staging_fsm.core.snapshot import Snapshot, as_json, load_snapshot
from staging_fsm.effects.rows import SqlRows
from staging_fsm.host.database import open_database
from staging_fsm.testing import Bench, JobRowsContract

RULES: Final = sorted(name for name in vars(JobRowsContract) if name.startswith("test_"))


class TestDictRows(JobRowsContract):
    """Documents in memory."""

    def bench(self) -> Bench:
        """Return an empty bench."""
        return DictBench(DictRows())


@attrs.frozen
class SqlBench:
    """A bench for our own rows over a host's table."""

    rows: SqlRows
    kind: str

    def add(self, metadata: Mapping[str, Any], repo: str = "shop") -> int:
        """Add a claimed job, and return its id."""
        names = "repo, work_item, stage, status, metadata"
        values = f":repo, 'WI-1', 'deploy-staging', 'running', CAST(:metadata AS {self.kind})"
        statement = f"INSERT INTO jobs ({names}) VALUES ({values}) RETURNING id"  # noqa: S608  # a test's own
        return int(self._run(statement, repo=repo, metadata=json.dumps(metadata)))

    def missing(self) -> int:
        """Return an id that no job has."""
        return 0

    def metadata(self, job_id: int) -> dict[str, Any]:
        """Return the job's metadata as stored, decoded."""
        text = self._run("SELECT CAST(metadata AS TEXT) FROM jobs WHERE id = :id", id=job_id)
        found: dict[str, Any] = json.loads(text)
        return found

    def set_key(self, job_id: int, key: str, value: Any) -> None:
        """Set one key by a statement of the host's own."""
        setting = "json_set(metadata, '$.' || :key, json(:value))"
        if self.rows.engine.dialect.name == "postgresql":
            path, ours = "ARRAY[CAST(:key AS TEXT)]", "CAST(metadata AS jsonb)"
            setting = f"CAST(jsonb_set({ours}, {path}, CAST(:value AS jsonb)) AS {self.kind})"
        statement = f"UPDATE jobs SET metadata = {setting} WHERE id = :id RETURNING id"  # noqa: S608  # a test's own
        self._run(statement, id=job_id, key=key, value=json.dumps(value))

    def remove_key(self, job_id: int, key: str) -> None:
        """Remove one key by a statement of the host's own."""
        setting = "json_remove(metadata, '$.' || :key)"
        if self.rows.engine.dialect.name == "postgresql":
            setting = f"CAST(CAST(metadata AS jsonb) - CAST(:key AS TEXT) AS {self.kind})"
        statement = f"UPDATE jobs SET metadata = {setting} WHERE id = :id RETURNING id"  # noqa: S608  # a test's own
        self._run(statement, id=job_id, key=key)

    def _run(self, statement: str, **values: Any) -> Any:
        with self.rows.engine.begin() as connection:
            return connection.execute(sa.text(statement), values).scalar_one()


class TestSqlRows(JobRowsContract):
    """Our own rows, in SQLite and in each kind of column of PostgreSQL."""

    @pytest.fixture(
        params=[("sqlite", "TEXT"), ("postgresql", "jsonb"), ("postgresql", "json")], autouse=True
    )
    def database(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
        """Make an empty table of a host."""
        dialect, self.kind = request.param
        url = f"sqlite:///{tmp_path}/jobs.db"
        key = "INTEGER PRIMARY KEY"
        if dialect == "postgresql":
            url = request.getfixturevalue("postgres_url")
            key = "bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY"
        self.engine = open_database(url)
        with self.engine.begin() as connection:
            connection.exec_driver_sql(
                f"CREATE TABLE jobs (id {key}, repo TEXT, work_item TEXT, stage TEXT, status TEXT,"
                f" not_before TEXT, metadata {self.kind})"
            )
        yield
        self.engine.dispose()

    def bench(self) -> Bench:
        """Return a bench over the table."""
        return SqlBench(SqlRows(self.engine), self.kind)


class Unfenced(DictRows):
    """Believes every worker that it still has its claim."""

    def fenced(self, tx: Documents, job_id: int, attempt_id: str, version: int | None) -> Document:
        """Compare nothing."""
        return tx[job_id] if job_id in tx else super().fenced(tx, job_id, attempt_id, version)


class OfAnyAttempt(DictRows):
    """Compares versions, whichever attempt they are of."""

    def fenced(self, tx: Documents, job_id: int, attempt_id: str, version: int | None) -> Document:
        """Take the stored attempt for the one in hand."""
        ours = job_id in tx and tx[job_id].metadata.get(SNAPSHOT_KEY)
        stored = str(ours.get("attempt_id")) if isinstance(ours, dict) else attempt_id
        return super().fenced(tx, job_id, stored, version)


class Skipping(DictRows):
    """Stores whatever is newer than what is there, and not the next version alone."""

    def save(self, job_id: Any, snapshot: Snapshot, tx: Documents | None = None) -> None:
        """Leave out the versions in between."""
        where = self.documents if tx is None else tx
        ours = job_id in where and where[job_id].metadata.get(SNAPSHOT_KEY)
        if isinstance(ours, dict) and ours.get("version") in range(1, snapshot.version):
            ours["version"] = snapshot.version - 1
        super().save(job_id, snapshot, tx)


class CancelsByName(DictRows):
    """Ends the job of an attempt, whichever version of it is stored."""

    def cancel(self, job_id: Any, snapshot: Snapshot) -> None:
        """Compare the attempt alone."""
        stored = load_snapshot(self.documents[job_id].metadata[SNAPSHOT_KEY])
        is_ours = stored.attempt_id == snapshot.attempt_id
        super().cancel(job_id, stored if is_ours else snapshot)


class Reopening(DictRows):
    """Queues again what somebody has ended."""

    def has_ended(self, found: Document) -> bool:
        """Take no job for ended."""
        return found.status == "ended"


class UnfencedStatus(DictRows):
    """Fences what it saves, and queues and cancels for everybody."""

    def requeue(
        self,
        job_id: Any,
        not_before: datetime,
        snapshot: Snapshot,  # noqa: ARG002  # what it should have compared
        *,
        once: bool = False,
    ) -> None:
        """Queue, whatever is stored."""
        stored = load_snapshot(self.documents[job_id].metadata[SNAPSHOT_KEY])
        super().requeue(job_id, not_before, stored, once=once)


class QueuesTwice(DictRows):
    """Queues again what was queued before, whoever has claimed it since."""

    def requeue(
        self,
        job_id: Any,
        not_before: datetime,
        snapshot: Snapshot,
        *,
        once: bool = False,  # noqa: ARG002  # what it should have looked at
    ) -> None:
        """Queue every time."""
        super().requeue(job_id, not_before, snapshot)


class QueuesNever(DictRows):
    """Takes for queued before whatever is asked for once."""

    def requeue(
        self, job_id: Any, not_before: datetime, snapshot: Snapshot, *, once: bool = False
    ) -> None:
        """Queue nothing that is to be queued once."""
        with self.transaction() as tx:
            self.fenced(tx, job_id, snapshot.attempt_id, snapshot.version)
        if not once:
            super().requeue(job_id, not_before, snapshot)


class Upserting(DictRows):
    """Stores a first attempt whatever is there, and any other also where none is."""

    def fenced(self, tx: Documents, job_id: int, attempt_id: str, version: int | None) -> Document:
        """Take what is damaged or gone for what was expected."""
        found = tx.get(job_id)
        ours = found and found.metadata.get(SNAPSHOT_KEY)
        if found is not None and not (isinstance(ours, dict) and ours.get("version")):
            return found
        return super().fenced(tx, job_id, attempt_id, version)


class LosesOtherKeys(DictRows):
    """Takes the metadata for its own."""

    def save(self, job_id: Any, snapshot: Snapshot, tx: Documents | None = None) -> None:
        """Replace the whole document."""
        super().save(job_id, snapshot, tx)
        where = self.documents if tx is None else tx
        where[job_id].metadata = {SNAPSHOT_KEY: as_json(snapshot)}


class RemembersOtherKeys(DictRows):
    """Writes back the other keys as it saw them when it last looked."""

    def __init__(self) -> None:
        """Start having seen nothing."""
        super().__init__()
        self.seen: dict[int, dict[str, Any]] = {}

    def load(self, job_id: Any) -> JobRow:
        """Look, and remember."""
        row = super().load(job_id)
        self.seen[job_id] = dict(self.documents[job_id].metadata)
        return row

    def save(self, job_id: Any, snapshot: Snapshot, tx: Documents | None = None) -> None:
        """Write what was seen, with our key."""
        super().save(job_id, snapshot, tx)
        if tx is None:
            document = self.documents[job_id]
            document.metadata = {**self.seen.pop(job_id, document.metadata)}
            document.metadata[SNAPSHOT_KEY] = as_json(snapshot)


class NotAtomic(DictRows):
    """Writes at once what a transaction should write at its end."""

    @contextmanager
    def transaction(self) -> Iterator[Documents]:
        """Yield the documents themselves."""
        with self.lock:
            yield self.documents


class ForgetsOnCommit(DictRows):
    """Writes only what is saved outside a transaction."""

    @contextmanager
    def transaction(self) -> Iterator[Documents]:
        """Yield documents that nobody looks at again."""
        before = self.documents
        with super().transaction() as changed:
            yield changed
            if sum(changed[job_id] != before[job_id] for job_id in before) > 1:
                changed.update(before)


class Early(DictRows):
    """Rounds due times down."""

    def requeue(
        self, job_id: Any, not_before: datetime, snapshot: Snapshot, *, once: bool = False
    ) -> None:
        """Queue too early by less than a second."""
        super().requeue(job_id, not_before.replace(microsecond=0), snapshot, once=once)


class Blind(DictRows):
    """Shows recovery only what can be read."""

    def unfinished(self) -> list[JobRow]:
        """Leave out what is damaged."""
        return [row for row in super().unfinished() if isinstance(row.document, dict)]


class Oldest(DictRows):
    """Shows the oldest rows for the newest."""

    def recent(self, limit: int, repo: str | None = None) -> list[JobRow]:
        """Start at the wrong end."""
        return super().recent(10**6, repo)[::-1][:limit]


class Guessing(DictRows):
    """Takes what cannot be read under our key for nothing."""

    def row(self, job_id: int) -> JobRow:
        """Leave out what is damaged."""
        row = super().row(job_id)
        return row if isinstance(row.document, dict) else attrs.evolve(row, document=None)


#: Broken adapter -> a rule that it misses.
BROKEN: Final[dict[type[DictRows], str]] = {
    Unfenced: "test_worker_that_lost_its_claim_changes_nothing",
    OfAnyAttempt: "test_worker_of_an_attempt_that_was_replaced_changes_nothing",
    Skipping: "test_worker_that_lost_its_claim_changes_nothing",
    CancelsByName: "test_worker_that_lost_its_claim_changes_nothing",
    Reopening: "test_job_that_has_ended_is_not_queued_again",
    UnfencedStatus: "test_worker_that_lost_its_claim_changes_nothing",
    Upserting: "test_attempt_that_somebody_removed_stays_removed",
    LosesOtherKeys: "test_other_keys_stay_as_they_are",
    RemembersOtherKeys: "test_key_that_the_host_wrote_meanwhile_stays",
    NotAtomic: "test_transaction_that_raises_leaves_nothing_behind",
    ForgetsOnCommit: "test_transaction_that_ends_commits_all",
    Early: "test_requeued_job_waits",
    QueuesTwice: "test_job_that_was_queued_again_is_not_queued_once_more",
    QueuesNever: "test_job_that_was_queued_again_is_not_queued_once_more",
    Blind: "test_unfinished_are_the_queued_and_running_rows_with_our_key",
    Oldest: "test_recent_are_the_rows_with_the_greatest_ids",
    Guessing: "test_damaged_attempt_is_refused_and_never_written_over",
}


def missed(make: Callable[[], DictRows]) -> set[str]:
    """Return the rules of the contract that rows miss."""

    class Contract(JobRowsContract):
        """The contract, held against the rows that are made."""

        def bench(self) -> Bench:
            """Return a bench over new rows."""
            return DictBench(make())

    found = set()
    for rule in RULES:
        try:
            getattr(Contract(), rule)()
        except (AssertionError, KeyError, StaleSnapshotError):
            found.add(rule)
    return found


@pytest.mark.parametrize("broken", BROKEN, ids=lambda kind: kind.__name__)
def test_broken_adapter_is_found_out(broken: type[DictRows]) -> None:
    """An adapter that breaks one promise fails the rule that names it."""
    assert BROKEN[broken] in missed(broken)


def test_contract_needs_no_pytest_to_be_imported() -> None:
    """The package and its contract can be imported where pytest is not installed."""
    code = "import sys; sys.modules['pytest'] = None; import staging_fsm.testing"

    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)

    assert ended.returncode == 0, ended.stderr.decode()

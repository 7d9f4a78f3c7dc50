"""The host's tables behind a few named operations.

`HostStore` is what the host asks for; `SqlHostStore` answers with SQLAlchemy
Core. Times go in and out as `format_time` writes them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol

import attrs
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from staging_fsm.effects.clock import format_time

SCHEMA_FILE: Final = Path(__file__).parent / "contract" / "schema.sql"
BUSY_TIMEOUT_SECONDS: Final = 30


@attrs.frozen
class Job:
    """One row of `jobs`: one launch of one agent for one work item."""

    id: int
    repo: str
    work_item: str
    stage: str
    agent: str
    status: str
    claimed_by: str | None
    metadata: str


@attrs.frozen
class WorkItem:
    """One row of `work_items`."""

    repo: str
    id: str
    stage: str
    developer_retries: int
    blocked_reason: str | None


class HostStore(Protocol):
    """What the host needs of its tables. `tx` is whatever `transaction` yields."""

    def transaction(self) -> Any:
        """Return a context manager: all or nothing of what is done with what it yields."""
        ...

    def claim_next(self, now: datetime, claimed_by: str, only: int | None = None) -> Job | None:
        """Take one due queued job for the worker `claimed_by`, or return None."""
        ...

    def running_jobs(self) -> list[Job]:
        """Return every job that some worker has claimed."""
        ...

    def requeue_abandoned(self, job: Job, now: datetime) -> bool:
        """Queue a running job again whose claim has not changed since it was read."""
        ...

    def finish_job(self, tx: Any, job_id: int, now: datetime) -> bool:
        """End a running job; False if it is not running (any more)."""
        ...

    def work_item(self, tx: Any, repo: str, work_item: str) -> WorkItem:
        """Return a work item; raises LookupError."""
        ...

    def move_work_item(self, tx: Any, item: WorkItem, now: datetime) -> None:
        """Store stage, developer retries and blocked reason of `item`."""
        ...

    def enqueue(self, tx: Any, item: WorkItem, agent: str, now: datetime) -> int:
        """Queue a job for the stage of `item`; return its id."""
        ...

    def repository_path(self, repo: str) -> Path:
        """Return where the repository lies; raises LookupError."""
        ...

    def record(self, job_id: int, key: str, value: str) -> None:
        """Set one string key of the job's metadata and leave every other as it is."""
        ...


class SqlHostStore:
    """The tables of `schema.sql` in a SQL database."""

    def __init__(self, engine: Engine) -> None:
        """Bind to `engine`; call `create_schema` once for a new database."""
        self.engine = engine

    def create_schema(self) -> None:
        """Create the tables where they are missing. Safe when several workers start at once."""
        with self.engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            if not sa.inspect(connection).has_table("jobs"):
                for statement in _statements(SCHEMA_FILE.read_text(encoding="utf-8")):
                    connection.exec_driver_sql(statement)
            connection.exec_driver_sql("COMMIT")

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Yield a connection inside one transaction."""
        with self.engine.begin() as connection:
            yield connection

    def add_repository(self, name: str, path: Path) -> None:
        """Register a repository; a second call with the same name moves it."""
        statement = sa.text(
            "INSERT INTO repositories (name, path) VALUES (:name, :path)"
            " ON CONFLICT (name) DO UPDATE SET path = excluded.path"
        )
        with self.engine.begin() as connection:
            connection.execute(statement, {"name": name, "path": str(path)})

    def add_work_item(self, item: WorkItem, agent: str, now: datetime) -> int:
        """Store a new work item with a queued job for its stage; return the job's id."""
        statement = sa.text(
            "INSERT INTO work_items (repo, id, stage, developer_retries, created_at, updated_at)"
            " VALUES (:repo, :id, :stage, :retries, :now, :now)"
        )
        with self.engine.begin() as connection:
            connection.execute(
                statement,
                {
                    "repo": item.repo,
                    "id": item.id,
                    "stage": item.stage,
                    "retries": item.developer_retries,
                    "now": format_time(now),
                },
            )
            return self.enqueue(connection, item, agent, now)

    def claim_next(self, now: datetime, claimed_by: str, only: int | None = None) -> Job | None:
        """Take one due queued job for the worker `claimed_by`, or return None."""
        statement = sa.text(
            "UPDATE jobs SET status = 'running', claimed_by = :claimed_by, updated_at = :now"
            " WHERE id = (SELECT id FROM jobs WHERE status = 'queued'"
            " AND (not_before IS NULL OR not_before <= :now)"
            " AND (:only IS NULL OR id = :only) ORDER BY not_before, id LIMIT 1)"
            " AND status = 'queued' RETURNING *"
        )
        values = {"now": format_time(now), "claimed_by": claimed_by, "only": only}
        with self.engine.begin() as connection:
            row = connection.execute(statement, values).mappings().one_or_none()
        return None if row is None else _job(row)

    def running_jobs(self) -> list[Job]:
        """Return every job that some worker has claimed."""
        statement = sa.text("SELECT * FROM jobs WHERE status = 'running' ORDER BY id")
        with self.engine.connect() as connection:
            return [_job(row) for row in connection.execute(statement).mappings()]

    def requeue_abandoned(self, job: Job, now: datetime) -> bool:
        """Queue a running job again whose claim has not changed since it was read."""
        statement = sa.text(
            "UPDATE jobs SET status = 'queued', claimed_by = NULL, updated_at = :now"
            " WHERE id = :id AND status = 'running' AND claimed_by IS :claimed_by"
        )
        values = {"id": job.id, "claimed_by": job.claimed_by, "now": format_time(now)}
        with self.engine.begin() as connection:
            return connection.execute(statement, values).rowcount == 1

    def finish_job(self, tx: Connection, job_id: int, now: datetime) -> bool:
        """End a running job; False if it is not running (any more)."""
        statement = sa.text(
            "UPDATE jobs SET status = 'done', updated_at = :now"
            " WHERE id = :id AND status = 'running'"
        )
        return tx.execute(statement, {"id": job_id, "now": format_time(now)}).rowcount == 1

    def work_item(self, tx: Connection, repo: str, work_item: str) -> WorkItem:
        """Return a work item; raises LookupError."""
        statement = sa.text(
            "SELECT repo, id, stage, developer_retries, blocked_reason"
            " FROM work_items WHERE repo = :repo AND id = :id"
        )
        row = tx.execute(statement, {"repo": repo, "id": work_item}).mappings().one_or_none()
        if row is None:
            message = f"there is no work item {work_item!r} in repository {repo!r}"
            raise LookupError(message)
        return WorkItem(**row)

    def move_work_item(self, tx: Connection, item: WorkItem, now: datetime) -> None:
        """Store stage, developer retries and blocked reason of `item`."""
        statement = sa.text(
            "UPDATE work_items SET stage = :stage, developer_retries = :developer_retries,"
            " blocked_reason = :blocked_reason, updated_at = :now WHERE repo = :repo AND id = :id"
        )
        tx.execute(statement, {**attrs.asdict(item), "now": format_time(now)})

    def enqueue(self, tx: Connection, item: WorkItem, agent: str, now: datetime) -> int:
        """Queue a job for the stage of `item`; return its id."""
        statement = sa.text(
            "INSERT INTO jobs (repo, work_item, stage, agent, status, created_at, updated_at)"
            " VALUES (:repo, :id, :stage, :agent, 'queued', :now, :now) RETURNING id"
        )
        values = {**attrs.asdict(item), "agent": agent, "now": format_time(now)}
        return int(tx.execute(statement, values).scalar_one())

    def repository_path(self, repo: str) -> Path:
        """Return where the repository lies; raises LookupError."""
        statement = sa.text("SELECT path FROM repositories WHERE name = :name")
        with self.engine.connect() as connection:
            path = connection.execute(statement, {"name": repo}).scalar_one_or_none()
        if path is None:
            message = f"repository {repo!r} is not registered"
            raise LookupError(message)
        return Path(path)

    def record(self, job_id: int, key: str, value: str) -> None:
        """Set one string key of the job's metadata and leave every other as it is."""
        statement = sa.text(
            "UPDATE jobs SET metadata = json_set(metadata, :path, :value) WHERE id = :id"
        )
        with self.engine.begin() as connection:
            connection.execute(statement, {"path": f'$."{key}"', "value": value, "id": job_id})

    def job(self, job_id: int) -> Job:
        """Return a job; raises LookupError."""
        with self.engine.connect() as connection:
            row = (
                connection.execute(sa.text("SELECT * FROM jobs WHERE id = :id"), {"id": job_id})
                .mappings()
                .one_or_none()
            )
        if row is None:
            message = f"there is no job {job_id}"
            raise LookupError(message)
        return _job(row)


def _job(row: Any) -> Job:
    return Job(**{field.name: row[field.name] for field in attrs.fields(Job)})


def _statements(script: str) -> list[str]:
    without_comments = "\n".join(line.split("--")[0] for line in script.splitlines())
    return [part.strip() for part in without_comments.split(";") if part.strip()]


def open_database(url: str) -> Engine:
    """Return an engine for `url`; SQLite gets durable commits and patient locks.

    WAL with `synchronous=FULL`: a commit that returned survives a power cut
    (https://www.sqlite.org/pragma.html#pragma_synchronous).
    """
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    for pragma in (
        f"busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000}",
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")

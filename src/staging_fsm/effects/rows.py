"""The only writer of job rows: a host's own table, under the host's own names.

Nothing here creates or alters a table. Every write is one statement that touches
our key of the metadata and is fenced by the version stored there, so a worker
that has lost its claim changes nothing, and a host that writes other keys at the
same time loses nothing.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, RowMapping

from staging_fsm.core.errors import (
    ConfigInvalidError,
    JobNotFoundError,
    StaleSnapshotError,
)
from staging_fsm.core.ports import QUEUED, BrokenMetadata, JobRow
from staging_fsm.core.snapshot import SNAPSHOT_KEY, Snapshot, dump_snapshot
from staging_fsm.effects.clock import format_time, parse_time

#: Our names for what we need of a job row; a host maps its own to them.
COLUMNS: Final = (
    "id",
    "repo",
    "work_item",
    "stage",
    "status",
    "not_before",
    "metadata",
)
#: The status words we write or look for; a host maps its own to them.
STATUSES: Final = (QUEUED, "running", "cancelled")
_PATH: Final = f"$.{SNAPSHOT_KEY}"


class SqlRows:
    """Job rows in a SQL table that belongs to somebody else."""

    def __init__(
        self,
        engine: Engine,
        table: str = "jobs",
        columns: Mapping[str, str] | None = None,
        statuses: Mapping[str, str] | None = None,
    ) -> None:
        """Bind to `table` of `engine`.

        `columns` maps our names (COLUMNS) to the host's where they differ, and
        `statuses` our words (STATUSES) to the host's. The table is looked at on
        first use; ConfigInvalidError then lists everything that does not fit.
        """
        self.engine = engine
        self._name = table
        self._columns = {name: name for name in COLUMNS} | dict(columns or {})
        self._statuses = {word: word for word in STATUSES} | dict(statuses or {})
        unknown = sorted(({*self._columns} - {*COLUMNS}) | ({*self._statuses} - {*STATUSES}))
        if unknown:
            raise ConfigInvalidError(
                [f"{name!r} is none of {', '.join(COLUMNS + STATUSES)}" for name in unknown]
            )

    @cached_property
    def _table(self) -> sa.Table:
        if self.engine.dialect.name != "sqlite":
            raise ConfigInvalidError(
                [f"SqlRows works on SQLite, not on {self.engine.dialect.name}"]
            )
        try:
            table = sa.Table(self._name, sa.MetaData(), autoload_with=self.engine)
        except sa.exc.NoSuchTableError:
            raise ConfigInvalidError([f"there is no table {self._name!r}"]) from None
        names = ", ".join(column.name for column in table.columns)
        problems = [
            f"table {self._name!r} has no column {actual!r} for {ours!r} (it has {names})"
            for ours, actual in self._columns.items()
            if actual not in table.columns
        ]
        if problems:
            raise ConfigInvalidError(problems)
        return table

    def _column(self, name: str) -> sa.Column[Any]:
        return self._table.columns[self._columns[name]]

    @cached_property
    def _document(self) -> sa.ColumnElement[str]:
        # As text, whatever the column's type: decoding is ours, so that broken JSON is refused.
        return sa.type_coerce(self._column("metadata"), sa.Text)

    @property
    def _metadata(self) -> sa.ColumnElement[str]:
        """Return the metadata for a write: a host that has none yet has an empty object."""
        return sa.func.coalesce(sa.func.nullif(self._document, ""), "{}")

    def check(self) -> None:
        """Look at the table now; raises ConfigInvalidError if something does not fit."""
        self.load_many(sa.false())

    def load(self, job_id: Any) -> JobRow:
        """Return the row; raises JobNotFoundError."""
        rows = self.load_many(self._column("id") == job_id)
        if not rows:
            message = f"there is no job {job_id} in table {self._name!r}"
            raise JobNotFoundError(message)
        return rows[0]

    def load_many(self, condition: sa.ColumnElement[bool]) -> list[JobRow]:
        """Return the rows that fulfil `condition`, in order of their ids."""
        wanted = [self._column(name).label(name) for name in COLUMNS if name != "metadata"]
        statement = (
            sa.select(*wanted, self._document.label("metadata"))
            .where(condition)
            .order_by(self._column("id"))
        )
        with self.engine.connect() as connection:
            return [self._job_row(row) for row in connection.execute(statement).mappings()]

    def _job_row(self, row: RowMapping) -> JobRow:
        facts = {name: row[name] for name in ("id", "repo", "work_item", "stage")}
        ours = {actual: word for word, actual in self._statuses.items()}
        return JobRow(
            **facts,
            status=ours.get(row["status"], row["status"]),
            not_before=_from_host_time(row["not_before"]),
            document=_our_document(row["metadata"]),
        )

    def unfinished(self) -> list[JobRow]:
        """Return every queued or running row that carries our key, however broken."""
        words = [self._statuses[QUEUED], self._statuses["running"]]
        rows = self.load_many(self._column("status").in_(words))
        return [row for row in rows if row.document is not None]

    def recent(self, limit: int, repo: str | None = None) -> list[JobRow]:
        """Return the `limit` rows with the greatest ids, greatest first; of `repo` alone if given.

        A bounded read by the primary key. What is no attempt of ours is not read out
        of the database, however much of it there is.
        """
        wanted = [self._column(name).label(name) for name in COLUMNS if name != "metadata"]
        ours = sa.case((self._document.contains(f'"{SNAPSHOT_KEY}"'), self._document))
        newest = (
            sa.select(*wanted, ours.label("metadata"))
            .order_by(self._column("id").desc())
            .limit(limit)
            .subquery()
        )
        statement = sa.select(newest).order_by(newest.c.id.desc())
        if repo is not None:
            statement = statement.where(newest.c.repo == repo)
        with self.engine.connect() as connection:
            return [self._job_row(row) for row in connection.execute(statement).mappings()]

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Yield a connection inside one transaction."""
        with self.engine.begin() as connection:
            yield connection

    def save(self, job_id: Any, snapshot: Snapshot, tx: Connection | None = None) -> None:
        """Store `snapshot` if the stored version is one less, else raise StaleSnapshotError."""
        expected = snapshot.version - 1 or None
        value = sa.func.json_set(self._metadata, _PATH, sa.func.json(dump_snapshot(snapshot)))
        self._write(job_id, expected, {"metadata": value}, tx)

    def requeue(self, job_id: Any, not_before: datetime, version: int) -> None:
        """Queue the job again, due later, if the stored version still is `version`."""
        values = {
            "status": self._statuses[QUEUED],
            "not_before": self._to_host_time(not_before),
        }
        self._write(job_id, version, values, None)

    def cancel(self, job_id: Any, version: int) -> None:
        """End the job as cancelled, if the stored version still is `version`."""
        self._write(job_id, version, {"status": self._statuses["cancelled"]}, None)

    def _write(
        self, job_id: Any, version: int | None, values: Mapping[str, Any], tx: Connection | None
    ) -> None:
        stored = sa.func.json_extract(self._metadata, f"{_PATH}.version")
        # Into anything but an object json_set would write nothing and say nothing.
        absent = sa.and_(
            sa.func.json_type(self._metadata) == "object",
            sa.func.json_type(self._metadata, _PATH).is_(None),
        )
        statement = (
            sa.update(self._table)
            .where(self._column("id") == job_id)
            .where(absent if version is None else stored == version)
            .values({self._columns[name]: value for name, value in values.items()})
        )
        if tx is None:
            with self.engine.begin() as connection:
                changed = connection.execute(statement).rowcount
        else:
            changed = tx.execute(statement).rowcount
        if changed != 1:
            raise StaleSnapshotError(job_id, version)

    def _to_host_time(self, moment: datetime) -> object:
        kind = self._column("not_before").type
        if isinstance(kind, sa.DateTime):
            return moment if kind.timezone else moment.astimezone(UTC).replace(tzinfo=None)
        if isinstance(kind, sa.Numeric | sa.Float | sa.Integer):
            return math.ceil(moment.timestamp())
        return format_time(moment)


def _from_host_time(value: object) -> datetime | None:
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    try:
        if isinstance(value, int | float | Decimal):
            return datetime.fromtimestamp(float(value), UTC)
        return parse_time(str(value))
    except (ValueError, OverflowError, OSError):
        return None


def _our_document(text: str | None) -> object:
    """Return the decoded value under our key, None where there is none."""
    if text is None or text == "":
        return None
    try:
        # Looking at every pair takes longer than reading it all: only where there may be two.
        doubtful = text.count(SNAPSHOT_KEY) > 1 or "\\u" in text
        pairs_hook = _refuse_second_key if doubtful else None
        metadata = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=pairs_hook)
    except (ValueError, RecursionError) as error:
        return BrokenMetadata(f"the row's metadata is no JSON ({error})")
    if not isinstance(metadata, dict):
        return BrokenMetadata(f"the row's metadata is a {type(metadata).__name__}, not an object")
    return metadata.get(SNAPSHOT_KEY)


def _refuse_second_key(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # Readers do not agree on which of the two counts.
    if [name for name, _ in pairs].count(SNAPSHOT_KEY) > 1:
        message = f"it holds the key {SNAPSHOT_KEY} twice"
        raise ValueError(message)
    return dict(pairs)


def _refuse_constant(word: str) -> object:
    message = f"{word} is no JSON"
    raise ValueError(message)

"""Our part of a host's job rows, in its own table and under its own names.

Nothing here creates or alters a table. Every write is one transaction that touches
our key of the metadata and is fenced by the version stored there, so a worker
that has lost its claim changes nothing, and a host that writes other keys at the
same time loses nothing.
"""

import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from functools import cached_property
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import DOMAIN, JSONB
from sqlalchemy.engine import Connection, Engine

from staging_fsm.core.errors import (
    ConfigInvalidError,
    JobNotFoundError,
    StaleSnapshotError,
)
from staging_fsm.core.jobs import QUEUED, SNAPSHOT_KEY, JobRow
from staging_fsm.core.snapshot import Snapshot, dump_snapshot
from staging_fsm.effects.due import SQLITE_FORMAT, DueTimes, NoDueTimes, Seconds, Timestamps, Words
from staging_fsm.effects.metadata import (
    Documents,
    JsonbDocuments,
    LockedDocuments,
    SqliteDocuments,
    our_document,
)

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
#: The names that may stand for one value in every row, of a host without such a column.
CONSTANTS: Final = ("repo", "work_item", "stage", "not_before")
#: The status words we write or look for; a host maps its own to them.
STATUSES: Final = (QUEUED, "running", "cancelled")
#: The columns that are written, in our names.
WRITTEN: Final = ("status", "not_before", "metadata")
DIALECTS: Final = ("sqlite", "postgresql")
#: An attempt with many runs takes some tens of thousands of characters.
METADATA_LENGTH_MIN: Final = 65_536
_SAMPLE_ROWS: Final = 20
#: How likely SQLite is to take a row for an unfinished one. ANALYZE counts how many different
#: values there are, not how often each occurs: of 'done' and 'queued' each seems to be half of
#: the table, and no index worth its while (https://www.sqlite.org/lang_corefunc.html#likelihood).
SELDOM: Final = "0.0001"
_NUMBERS: Final = (sa.Integer, sa.Numeric, sa.Float)
#: How many rows a walk through the whole table holds at a time.
BATCH_ROWS: Final = 1000
#: The greatest integer that a database can be asked for.
_INTEGER_MAX: Final = 2**63 - 1


class SqlRows:
    """Job rows in a SQL table that belongs to somebody else: SQLite or PostgreSQL."""

    def __init__(
        self,
        engine: Engine,
        table: str = "jobs",
        columns: Mapping[str, str] | None = None,
        statuses: Mapping[str, Any] | None = None,
        *,
        constants: Mapping[str, str | None] | None = None,
        schema: str | None = None,
        where: str | None = None,
        time_format: str | None = None,
    ) -> None:
        """Bind to `table` of `engine`, in `schema` if it is not where the engine looks.

        `columns` maps our names (COLUMNS) to the host's where they differ, and
        `statuses` our words (STATUSES) to the host's, texts or numbers. `constants`
        gives a value to those of CONSTANTS that the table has no column for;
        `not_before` can only be None. `where` is a condition in SQL on the rows that
        are jobs, of this tenant for instance; every other row is never read or
        written, so it has to hold until the attempt has ended. `time_format` is how
        the host writes due times as text, in UTC and for `strftime`, where that is
        not `2026-01-31T12:00:00.000000Z`.

        Raises ConfigInvalidError for a name that is none of ours. The table is
        looked at on first use.
        """
        self.engine = engine
        self._name, self._schema, self._where = table, schema, where
        self._time_format = time_format
        self._constants = dict(constants or {})
        self._columns = {name: name for name in COLUMNS if name not in self._constants}
        self._columns |= dict(columns or {})
        self._statuses = {word: word for word in STATUSES} | dict(statuses or {})
        self._words = {actual: word for word, actual in self._statuses.items()}
        #: Whether an attempt was seen to be there after it was stored.
        self._keeps = False
        problems = list(self._misspelt())
        if problems:
            raise ConfigInvalidError(problems)

    def _misspelt(self) -> Iterator[str]:
        known = {"columns": (self._columns, COLUMNS), "statuses": (self._statuses, STATUSES)}
        known["constants"] = (self._constants, CONSTANTS)
        for parameter, (given, ours) in known.items():
            for name in sorted({*given} - {*ours}):
                yield f"{name!r} of {parameter} is none of {', '.join(ours)}"
        for name in sorted({*self._columns} & {*self._constants}):
            yield f"{name!r} is both a column and a constant"
        if self._constants.get("not_before") is not None:
            yield "the constant 'not_before' can only be None: no job has a due time"

    @property
    def _full_name(self) -> str:
        return repr(f"{self._schema}.{self._name}" if self._schema else self._name)

    @cached_property
    def _table(self) -> sa.Table:
        dialect = self.engine.dialect.name
        if dialect not in DIALECTS:
            raise ConfigInvalidError([f"SqlRows works on {' and '.join(DIALECTS)}, not {dialect}"])
        try:
            with warnings.catch_warnings():
                # Types that only columns of no concern to us have.
                warnings.simplefilter("ignore", sa.exc.SAWarning)
                found = sa.inspect(self.engine).get_columns(self._name, self._schema)
        except sa.exc.NoSuchTableError:
            raise ConfigInvalidError([f"there is no table {self._full_name}"]) from None
        names = ", ".join(column["name"] for column in found)
        problems = [
            f"table {self._full_name} has no column {actual!r} for {ours!r} (it has {names})"
            for ours, actual in self._columns.items()
            if actual not in {column["name"] for column in found}
        ]
        if problems:
            raise ConfigInvalidError(problems)
        columns = [sa.Column(column["name"], _base(column["type"])) for column in found]
        table = sa.Table(self._name, sa.MetaData(), *columns, schema=self._schema)
        problems = list(self._misfits(table))
        if problems:
            raise ConfigInvalidError(problems)
        return table

    def _misfits(self, table: sa.Table) -> Iterator[str]:
        """Yield what cannot be kept in a column because of its type."""
        kinds = {ours: table.columns[actual].type for ours, actual in self._columns.items()}
        strict = self.engine.dialect.name != "sqlite"
        metadata = kinds["metadata"]
        if strict and not isinstance(metadata, sa.JSON | sa.String):
            yield f"{self._called('metadata')} is {metadata}, not jsonb, json or text"
        if strict and 0 < (getattr(metadata, "length", None) or 0) < METADATA_LENGTH_MIN:
            yield f"{self._called('metadata')} is {metadata}, too short for an attempt: use text"
        due = kinds.get("not_before", sa.Text())
        kept = (sa.String, sa.DateTime, *_NUMBERS, sa.types.NullType)
        if isinstance(due, sa.Enum) or not isinstance(due, kept):
            yield f"{self._called('not_before')} is {due}, which holds no moment"
        is_text = isinstance(due, sa.String | sa.types.NullType) or not strict
        if self._time_format is not None and (not is_text or isinstance(due, _NUMBERS)):
            yield f"{self._called('not_before')} is {due}: time_format is only for text"
        for word, actual in self._statuses.items():
            problem = _unfit_word(kinds["status"], actual, strict=strict)
            if problem:
                yield f"{self._called('status')} cannot hold {actual!r} for {word!r}: {problem}"

    def _called(self, name: str) -> str:
        return f"column {self._columns.get(name)!r} of {self._full_name}"

    def _column(self, name: str) -> sa.Column[Any]:
        return self._table.columns[self._columns[name]]

    @cached_property
    def _documents(self) -> Documents:
        column = self._column("metadata")
        if self.engine.dialect.name == "sqlite":
            return SqliteDocuments(column)
        if isinstance(column.type, JSONB):
            return JsonbDocuments(column)
        return LockedDocuments(column, self._mine)

    @cached_property
    def _due(self) -> DueTimes:
        if "not_before" in self._constants:
            return NoDueTimes()
        column = self._column("not_before")
        if isinstance(column.type, _NUMBERS):
            return Seconds(column)
        if not isinstance(column.type, sa.DateTime):
            return Words(column, self._time_format)
        if self.engine.dialect.name == "sqlite":
            return Words(column, self._time_format or SQLITE_FORMAT)
        return Timestamps(column, with_zone=bool(column.type.timezone))

    def check(self) -> None:
        """Look at the table now: its columns, their types, some due times, and our rights.

        Raises ConfigInvalidError with a sentence for everything that does not fit.
        """
        problems = []
        keyed_by = self._column("id").name
        if not self._where and not self._is_unique(keyed_by):
            problems.append(f"{self._called('id')} is no key: two rows may have the same")
        with self._reading() as connection:
            due = self._due.selected()
            sample = sa.select(due).where(self._ours(), due.is_not(None)).limit(_SAMPLE_ROWS)
            found = (self._due.problem(value) for value in connection.execute(sample).scalars())
            first = next((problem for problem in found if problem), None)
            if first:
                problems.append(f"{self._called('not_before')} {first}")
            problems += self._missing_rights(connection)
        if problems:
            raise ConfigInvalidError(problems)

    def _is_unique(self, name: str) -> bool:
        """Say whether no two rows can have the same value there; a view is taken at its word."""
        inspector = sa.inspect(self.engine)
        keys: list[Any] = [
            inspector.get_pk_constraint(self._name, self._schema)["constrained_columns"]
        ]
        indexes = inspector.get_indexes(self._name, self._schema)
        unique = inspector.get_unique_constraints(self._name, self._schema)
        keys += [index["column_names"] for index in indexes if index["unique"]]
        keys += [constraint["column_names"] for constraint in unique]
        return [name] in keys or self._name in inspector.get_view_names(self._schema)

    def _missing_rights(self, connection: Connection) -> list[str]:
        if self.engine.dialect.name == "sqlite":
            return []
        # As a value, and not within a statement, where a per cent sign is doubled.
        table = self.engine.dialect.identifier_preparer.format_table(self._table).replace("%%", "%")
        wanted = [(ours, "SELECT") for ours in self._columns]
        wanted += [(ours, "UPDATE") for ours in self._columns if ours in WRITTEN]
        allowed = [
            sa.func.has_column_privilege(table, self._columns[ours], right)
            for ours, right in wanted
        ]
        answers = connection.execute(sa.select(*allowed)).one()
        return [
            f"{self._called(ours)} may not be used: {self.engine.url.username} needs {right} on it"
            for (ours, right), answer in zip(wanted, answers, strict=True)
            if not answer
        ]

    def _ours(self) -> sa.ColumnElement[bool]:
        """Return the condition on the rows that are jobs."""
        if self._where is None:
            return sa.true()
        return sa.literal_column(f"({self._where})", sa.Boolean())

    @cached_property
    def _mine(self) -> sa.ColumnElement[bool]:
        """Return the condition on one job's row; `_names` says which."""
        column = self._column("id")
        return sa.and_(column == sa.bindparam("our_id", type_=column.type), self._ours())

    def _names(self, job_id: Any) -> dict[str, Any]:
        """Return the parameter of `_mine`."""
        return {"our_id": self._key(job_id)}

    def _key(self, job_id: Any) -> Any:
        """Return a job's id as its column holds it: a UUID has two forms, and a text."""
        kind = self._column("id").type
        try:
            if isinstance(kind, sa.Uuid) and not isinstance(job_id, uuid.UUID):
                return uuid.UUID(str(job_id))
            if isinstance(kind, sa.Integer):
                number = int(job_id)
                if abs(number) > _INTEGER_MAX or (number != job_id and type(job_id) is float):
                    raise ValueError(number)  # noqa: TRY301  # refused as a text that is no number
                return number
        except (ValueError, TypeError):
            message = f"there is no job {job_id} in table {self._full_name}"
            raise JobNotFoundError(message) from None
        if isinstance(kind, sa.String):
            is_bare = isinstance(job_id, uuid.UUID) and kind.length == len(job_id.hex)
            return job_id.hex if is_bare else str(job_id)
        return job_id

    def load(self, job_id: Any) -> JobRow:
        """Return the row; raises JobNotFoundError."""
        rows = self._fetch(self._loading, self._names(job_id))
        if not rows:
            message = f"there is no job {job_id} in table {self._full_name}"
            raise JobNotFoundError(message)
        return rows[0]

    def unfinished(self) -> list[JobRow]:
        """Return every queued or running row that carries our key, however broken."""
        words = (self._statuses[QUEUED], self._statuses["running"])
        status = self._column("status")
        few: sa.ColumnElement[bool] = sa.or_(*(status == word for word in words))
        if self.engine.dialect.name == "sqlite":
            few = sa.func.likelihood(few, sa.literal_column(SELDOM))
        rows = self._fetch(
            self._select(self._documents.text).where(few, self._ours()).order_by(self._column("id"))
        )
        return [row for row in rows if row.document is not None]

    def recent(self, limit: int, repo: str | None = None) -> list[JobRow]:
        """Return the `limit` rows with the greatest ids, greatest first; of `repo` alone if given.

        A bounded read by the primary key. What is no attempt of ours is not read out
        of the database, however much of it there is.
        """
        text = self._documents.text
        statement = (
            self._select(sa.case((text.contains(f'"{SNAPSHOT_KEY}"'), text)))
            .where(self._ours())
            .order_by(self._column("id").desc())
            .limit(limit)
        )
        rows = self._fetch(statement)
        return rows if repo is None else [row for row in rows if row.repo == repo]

    def attempts(self, after: Any = None, upto: Any = None) -> Iterator[JobRow]:
        """Yield every row that carries our key, ended or not, however broken, in order of ids.

        Read in batches by the primary key: however long the table, little of it is
        in memory, and no transaction is open between two batches. `after` and `upto`
        bound the ids.
        """
        id_, text = self._column("id"), self._documents.text
        # A key in escapes is ours too.
        ours = sa.or_(text.contains(f'"{SNAPSHOT_KEY}"'), text.contains("\\u", autoescape=True))
        batch = self._select(text).where(ours, self._ours()).order_by(id_).limit(BATCH_ROWS)
        if upto is not None:
            batch = batch.where(id_ <= upto)
        found = self._read(batch if after is None else batch.where(id_ > after))
        while found:
            # One by one: of many documents at a time the memory's collector takes its share.
            yield from (row for row in map(self._job_row, found) if row.document is not None)
            found = self._read(batch.where(id_ > found[-1]["id"]))

    def spans(self, size: int) -> Iterator[tuple[Any, Any]]:
        """Yield the bounds for `attempts` that part the table into pieces of `size` rows."""
        id_ = self._column("id")
        piece = sa.select(id_).where(self._ours()).order_by(id_).limit(size)
        after, last = None, self._last_of(piece)
        while last is not None:
            yield after, last
            after, last = last, self._last_of(piece.where(id_ > last))

    def _last_of(self, piece: sa.Select[Any]) -> Any:
        with self._reading() as connection:
            return connection.execute(sa.select(sa.func.max(piece.subquery().c[0]))).scalar()

    @cached_property
    def _loading(self) -> sa.Select[Any]:
        return self._select(self._documents.text).where(self._mine)

    def _select(self, metadata: sa.ColumnElement[Any]) -> sa.Select[Any]:
        facts = ("id", "repo", "work_item", "stage", "status")
        wanted = [self._column(name).label(name) for name in facts if name in self._columns]
        due = self._due.selected().label("not_before")
        return sa.select(*wanted, due, metadata.label("metadata"))

    def _fetch(
        self, statement: sa.Select[Any], values: Mapping[str, Any] | None = None
    ) -> list[JobRow]:
        return list(map(self._job_row, self._read(statement, values)))

    def _read(
        self, statement: sa.Select[Any], values: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        with self._reading() as connection:
            found = connection.execute(statement, values)
            # SQLAlchemy's own mappings take longer than to read the row.
            names = tuple(found.keys())
            return [dict(zip(names, row, strict=True)) for row in found]

    def _job_row(self, row: Mapping[str, Any]) -> JobRow:
        facts = {**row, **self._constants}
        return JobRow(
            id=facts["id"],
            **{name: str(facts[name]) for name in ("repo", "work_item", "stage")},
            status=self._words.get(facts["status"], str(facts["status"])),
            not_before=self._due.read(facts["not_before"]),
            document=our_document(facts["metadata"]),
        )

    def _reading(self) -> AbstractContextManager[Connection]:
        return self.engine.connect()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Yield a connection inside one transaction."""
        with self.engine.begin() as connection:
            yield connection

    def save(self, job_id: Any, snapshot: Snapshot, tx: Connection | None = None) -> None:
        """Store `snapshot` if the stored version is one less, else raise StaleSnapshotError.

        The first time it is looked at again: raises ConfigInvalidError, and nothing is
        stored, where the table does not keep it.
        """
        expected = snapshot.version - 1 or None
        with self._within(tx) as connection:
            self._write(connection, job_id, expected, {}, dump_snapshot(snapshot))
            if not self._keeps and not self._holds(connection, job_id, snapshot.version):
                # A trigger of the host's, say. Without the row no run would ever be counted.
                message = f"{self._called('metadata')} does not keep the key {SNAPSHOT_KEY}"
                raise ConfigInvalidError([message])
        self._keeps = True

    def requeue(
        self,
        job_id: Any,
        not_before: datetime,
        version: int,
        tx: Connection | None = None,
        *,
        once: bool = False,
    ) -> None:
        """Queue the job again, due later, if the stored version still is `version`.

        With `once` a job that is due at that very moment already is left as it is. A host
        without due times cannot be asked.
        """
        values = {self._columns["status"]: self._statuses[QUEUED]}
        due = self._due.values(not_before)
        made = [
            self._table.columns[name].is_not_distinct_from(value)
            for name, value in due.items()
            if once
        ]
        with self._within(tx) as connection:
            try:
                self._write(connection, job_id, version, {**values, **due}, unless=made)
            except StaleSnapshotError:
                if not made or not self._holds(connection, job_id, version, *made):
                    raise

    def cancel(self, job_id: Any, version: int) -> None:
        """End the job as cancelled, if the stored version still is `version`."""
        values = {self._columns["status"]: self._statuses["cancelled"]}
        with self.transaction() as connection:
            self._write(connection, job_id, version, values)

    def _within(self, tx: Connection | None) -> AbstractContextManager[Connection]:
        return self.transaction() if tx is None else nullcontext(tx)

    def _write(
        self,
        connection: Connection,
        job_id: Any,
        version: int | None,
        values: dict[str, Any],
        snapshot: str | None = None,
        unless: Sequence[sa.ColumnElement[bool]] = (),
    ) -> None:
        first, mine = version is None, self._names(job_id)
        statement = self._saving[first] if snapshot is not None else self._updating(first=first)
        if values:
            statement = statement.values(values)
        if unless:
            statement = statement.where(*map(sa.not_, unless))
        asked = self._documents.values(connection, mine, version, snapshot)
        # Raised inside the transaction: where an id stands for two rows, neither is written.
        if connection.execute(statement, {**mine, **asked}).rowcount != 1:
            raise StaleSnapshotError(job_id, version)

    def _holds(
        self, connection: Connection, job_id: Any, version: int, *facts: sa.ColumnElement[bool]
    ) -> bool:
        """Say whether the stored version is `version`, and `facts` hold of the row."""
        mine, guard = self._names(job_id), self._documents.guard(first=False)
        found = sa.select(self._column("id")).where(self._mine, guard, *facts)
        asked = self._documents.values(connection, mine, version, None)
        return len(connection.execute(found, {**mine, **asked}).all()) == 1

    @cached_property
    def _saving(self) -> Mapping[bool, sa.Update]:
        """Return the statements that store an attempt, by whether it is for the first time."""
        values = {self._columns["metadata"]: self._documents.document}
        return {first: self._updating(first=first).values(values) for first in (False, True)}

    def _updating(self, *, first: bool) -> sa.Update:
        return sa.update(self._table).where(self._mine, self._documents.guard(first=first))


def _base(kind: Any) -> Any:
    """Return a column's type; for a domain the one that it is made of."""
    return kind.data_type if isinstance(kind, DOMAIN) else kind


def _unfit_word(kind: Any, word: Any, *, strict: bool) -> str | None:
    """Say why a status column of this type cannot hold `word`, or return None."""
    if isinstance(kind, sa.Enum):
        return None if word in kind.enums else f"it is one of {', '.join(kind.enums)}"
    if isinstance(kind, sa.Integer) and not isinstance(word, int):
        return "it holds numbers"
    if not strict or not isinstance(kind, sa.String):
        return None
    if not isinstance(word, str):
        return "it holds texts"
    return f"it is {kind}" if kind.length and len(word) > kind.length else None

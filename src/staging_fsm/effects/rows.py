"""Our part of a host's job rows, in its own table and under its own names.

Nothing here creates or alters a table. Every write is one transaction that touches
our key of the metadata and is fenced by the attempt and the version stored there,
so a worker that has lost its claim changes nothing, and a host that writes other
keys at the same time loses nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from staging_fsm.core.errors import (
    ConfigInvalidError,
    GateContradictedVerdictError,
    GateEndedTransactionError,
    JobNotFoundError,
    RefusedError,
    StaleSnapshotError,
)
from staging_fsm.core.jobs import QUEUED, SNAPSHOT_KEY, BrokenMetadata, JobRow
from staging_fsm.core.snapshot import Snapshot, dump_snapshot
from staging_fsm.effects.forks import begin_anew_after_forks
from staging_fsm.effects.host_table import HostTable
from staging_fsm.effects.lent import LentConnection
from staging_fsm.effects.metadata import Expected, our_document
from staging_fsm.effects.once import once

#: How likely SQLite is to take a row for an unfinished one. ANALYZE counts how many different
#: values there are, not how often each occurs: of 'done' and 'queued' each seems to be half of
#: the table, and no index worth its while (https://www.sqlite.org/lang_corefunc.html#likelihood).
SELDOM: Final = "0.0001"
#: What a row says of its job, in our names.
FACTS: Final = ("repo", "work_item", "stage")
#: How many rows a walk through the whole table holds at a time.
BATCH_ROWS: Final = 1000
#: What is tried on no row may be due at any time.
_SOME_MOMENT: Final = datetime(2026, 1, 31, 12, tzinfo=UTC)
#: What is raised for a statement that the database will never take.
REFUSALS: Final = (sa.exc.ProgrammingError, sa.exc.DataError)
#: SQLite's code for a statement that is refused for what it is.
_SQLITE_ERROR: Final = 1
#: The pools that SQLite's databases in memory are held by.
_IN_MEMORY: Final = (sa.pool.SingletonThreadPool, sa.pool.StaticPool)


class SqlRows:
    """Job rows in a SQL table that belongs to somebody else: SQLite or PostgreSQL."""

    _refusals: ClassVar[tuple[type[Exception], ...]] = REFUSALS
    #: What may be a refusal by SQLite.
    _failures: ClassVar[tuple[type[Exception], ...]] = (sa.exc.OperationalError,)

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

        Raises ConfigInvalidError for a name that is none of ours, and for an engine of
        asyncio's. The table is looked at on first use.
        """
        _refuse_async(engine)
        self.engine = engine
        self._host = HostTable(
            engine,
            table,
            columns,
            statuses,
            constants=constants,
            schema=schema,
            where=where,
            time_format=time_format,
        )
        #: Whether an attempt was seen to be there after it was stored.
        self._keeps = False
        #: By the identity of what `transaction` has yielded and not taken back yet.
        self._lent: dict[int, LentConnection] = {}
        #: What belongs to the process that this one was forked from. To close it would be to
        #: speak for that process, so it is kept from being collected.
        self._not_ours: list[Any] = []
        begin_anew_after_forks(self)

    def begin_anew(self) -> None:
        """Leave every connection to the process that this one was forked from.

        Both would speak over one socket, and each would read the other's answers; in a file
        each would move the other's place. A database in memory is in its connection.
        """
        pool = self.engine.pool
        if not (self.engine.dialect.name == "sqlite" and isinstance(pool, _IN_MEMORY)):
            self._not_ours.append(pool)
            self.engine.dispose(close=False)

    def check(self) -> None:
        """Look at the table now: its columns, their types, some due times, and our rights.

        Every statement that an attempt may need is tried on no row. Raises
        ConfigInvalidError with a sentence for everything that does not fit.
        """
        try:
            problems = self._host.problems(self._reading) + self._further_problems()
            if problems:
                raise ConfigInvalidError(problems)
            with self._begun() as connection:
                self._refuse_autocommit(connection)
                self._try_on_no_row(connection)
        except (*self._refusals, *self._failures) as error:
            cause = getattr(error, "orig", None) or error.__cause__ or error
            if not (isinstance(error, self._refusals) or _is_refusal(cause)):
                raise
            said = str(cause).partition("\n")[0]
            message = (
                f"table {self._host.full_name} does not take a statement that is needed: {said};"
                " correct the type of the column, the mapping or the condition"
            )
            raise ConfigInvalidError([message]) from error

    def _further_problems(self) -> list[str]:
        """Return a sentence for everything that does not fit for who else writes the rows."""
        return []

    def _try_on_no_row(self, connection: Any) -> None:
        """Have the database look at what recovery, a deferral and a cancellation will ask for.

        It refuses what it cannot compare or write, whether there is such a row or not: better
        now than after a run.
        """
        connection.execute(self._recovering.limit(0))
        # No id equals nothing.
        nobody, after, first = {"our_id": None}, Expected("", 0), Expected("", None)
        queued, made = self._queued_at(_SOME_MOMENT)
        written = self._updating(first=False)
        deferred, ended = written.values(queued), written.values(self._status("cancelled"))
        for statement, expected, document in (
            (self._saving[True], first, "{}"),
            (self._saving[False], after, "{}"),
            (deferred.where(self._host.unfinished, *map(sa.not_, made)), after, None),
            (ended.where(self._host.unfinished), after, None),
        ):
            asked = self._host.documents.values(connection, nobody, expected, document)
            connection.execute(statement, {**nobody, **asked})

    def _refuse_autocommit(self, connection: Any) -> None:
        """Raise ConfigInvalidError where no statement waits for the end of its transaction.

        A gate that opens against a verdict could not be undone.
        """
        column = self._host.column("metadata")
        # Some drivers begin a transaction with its first write, and not before.
        connection.execute(sa.update(self._host.table).values({column: column}).where(sa.false()))
        if not self._is_in_transaction(connection):
            message = (
                f"table {self._host.full_name} is written in AUTOCOMMIT, in which nothing can be"
                " undone: give an engine with another isolation_level"
            )
            raise ConfigInvalidError([message])

    def _is_in_transaction(self, connection: Any) -> bool:
        driver = self._driver(connection)
        if self.engine.dialect.name == "sqlite":
            return bool(driver.in_transaction)
        # The status of libpq, which not every driver tells; 0 is "idle".
        return getattr(getattr(driver, "info", None), "transaction_status", None) != 0

    def load(self, job_id: Any) -> JobRow:
        """Return the row, whose `id` is as the table has it; raises JobNotFoundError.

        Raises RefusedError for a row without an attempt of ours whose repository or work
        item is no text: under another name nothing may be begun. One that is empty is
        returned as an empty text; the row of an attempt that has lost it is refused.
        """
        found = self._read(self._loading, self._host.names(job_id))
        if not found and (other := self._host.other_name(job_id)):
            found = self._read(self._loading, other)
        if not found:
            message = f"there is no job {job_id} in table {self._host.full_name}"
            raise JobNotFoundError(message)
        row, problem = self._job_row(found[0]), self._illegible(found[0])
        if problem is not None and row.document is None:
            message = f"job {job_id} cannot be worked on: {problem}; correct the row by hand"
            raise RefusedError(message)
        return row

    def unfinished(self) -> list[JobRow]:
        """Return every queued or running row that carries our key, however broken."""
        rows = self._fetch(self._recovering)
        return [row for row in rows if row.document is not None]

    @once
    def _recovering(self) -> sa.Select[Any]:
        few = self._host.unfinished
        if self.engine.dialect.name == "sqlite":
            few = sa.func.likelihood(few, sa.literal_column(SELDOM))
        found = self._select(self._host.documents.selected).where(few, self._host.ours)
        return found.order_by(self._host.column("id"))

    def recent(self, limit: int, repo: str | None = None) -> list[JobRow]:
        """Return the `limit` rows with the greatest ids, greatest first; of `repo` alone if given.

        A bounded read by the primary key. What is no attempt of ours is not read out
        of the database, however much of it there is.
        """
        text, selected = self._host.documents.text, self._host.documents.selected
        statement = (
            self._select(sa.case((text.contains(f'"{SNAPSHOT_KEY}"'), selected)))
            .where(self._host.ours)
            .order_by(self._host.column("id").desc())
            .limit(limit)
        )
        rows = self._fetch(statement)
        return rows if repo is None else [row for row in rows if row.repo == repo]

    def attempts(self, after: Any = None, upto: Any = None) -> Iterator[JobRow]:
        """Yield every row that carries our key, ended or not, however broken, in order of ids.

        Metadata that is no whole JSON counts as ours: nobody knows which keys it held. Read
        in batches by the primary key: however long the table, little of it is in memory, and
        no transaction is open between two batches. `after` and `upto` bound the ids.
        """
        id_, text = self._host.column("id"), self._host.documents.text
        # A key in escapes is ours too.
        ours = sa.or_(
            text.contains(f'"{SNAPSHOT_KEY}"'),
            text.contains("\\u", autoescape=True),
            self._host.documents.broken,
        )
        selected = self._host.documents.selected
        batch = self._select(selected).where(ours, self._host.ours).order_by(id_).limit(BATCH_ROWS)
        if upto is not None:
            batch = batch.where(id_ <= upto)
        found = self._read(batch if after is None else batch.where(id_ > after))
        while found:
            # One by one: of many documents at a time the memory's collector takes its share.
            yield from (row for row in map(self._job_row, found) if row.document is not None)
            found = self._read(batch.where(id_ > found[-1]["id"]))

    def spans(self, size: int) -> Iterator[tuple[Any, Any]]:
        """Yield the bounds for `attempts` that part the table into pieces of `size` rows."""
        id_ = self._host.column("id")
        piece = sa.select(id_).where(self._host.ours).order_by(id_).limit(size)
        after, last = None, self._last_of(piece)
        while last is not None:
            yield after, last
            after, last = last, self._last_of(piece.where(id_ > last))

    def _last_of(self, piece: sa.Select[Any]) -> Any:
        with self._reading() as connection:
            return connection.execute(sa.select(sa.func.max(piece.subquery().c[0]))).scalar()

    @once
    def _loading(self) -> sa.Select[Any]:
        return self._select(self._host.documents.selected).where(self._host.mine)

    def _select(self, metadata: sa.ColumnElement[Any]) -> sa.Select[Any]:
        # As they are: a host's key and its words for a status are compared with its own.
        keys = [self._host.unpadded(name).label(name) for name in ("id", "status")]
        facts = [name for name in FACTS if name in self._host.columns]
        wanted = [self._host.selected(name).label(name) for name in (*facts, "not_before")]
        return sa.select(*keys, *wanted, metadata.label("metadata"))

    def _fetch(self, statement: sa.Select[Any]) -> list[JobRow]:
        return list(map(self._job_row, self._read(statement)))

    def _read(
        self, statement: sa.Select[Any], values: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        with self._reading() as connection:
            found = connection.execute(statement, values)
            # SQLAlchemy's own mappings take longer than to read the row.
            names = tuple(found.keys())
            return [dict(zip(names, row, strict=True)) for row in found]

    def _job_row(self, row: Mapping[str, Any]) -> JobRow:
        facts = {**row, **self._host.constants}
        document = our_document(facts["metadata"])
        if document is not None and (problem := self._illegible(row) or self._empty(row)):
            may_be_ours = not isinstance(document, BrokenMetadata) or document.may_be_ours
            document = BrokenMetadata(problem, may_be_ours)
        return JobRow(
            id=facts["id"],
            **{name: _named(facts[name]) for name in FACTS},
            status=self._host.word(facts["status"]),
            not_before=self._host.due.read(_shown(facts["not_before"])),
            document=document,
        )

    def _illegible(self, row: Mapping[str, Any]) -> str | None:
        """Say which name in a row is no text, or return None. In SQLite any bytes may be one."""
        for name in ("repo", "work_item"):
            value = row.get(name)
            if isinstance(value, bytes) and _shown(value).encode() != value:
                return f"{self._host.called(name)} is no text in UTF-8"
        return None

    def _empty(self, row: Mapping[str, Any]) -> str | None:
        """Say which name in a row is empty, or return None."""
        for name in ("repo", "work_item"):
            if name in self._host.columns and row[name] is None:
                return f"{self._host.called(name)} is empty"
        return None

    def _reading(self) -> AbstractContextManager[Connection]:
        return self.engine.connect()

    def _begun(self) -> AbstractContextManager[Connection]:
        return self.engine.begin()

    def _driver(self, connection: Any) -> Any:
        return connection.connection.driver_connection

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Yield a connection inside one transaction, to be lent to a gate.

        How the driver's own connection reads rows and texts is put back, whatever the gate
        has made of it. Raises GateEndedTransactionError where the gate has closed it, also
        from `save`, and where what would be undone is seen to be committed.
        """
        with self._begun() as connection:
            lent = self._lent[id(connection)] = LentConnection(self._driver(connection))
            try:
                yield connection
            except (GateContradictedVerdictError, GateEndedTransactionError) as error:
                if not lent.is_ended():
                    raise
                if lent.is_closed():
                    self._drop(connection)
                raise GateEndedTransactionError from error
            finally:
                del self._lent[id(connection)]
                lent.give_back()

    def _drop(self, connection: Any) -> None:
        """Keep a connection that was closed out of the pool, where the next one would find it."""
        connection.invalidate()

    def save(self, job_id: Any, snapshot: Snapshot, tx: Connection | None = None) -> None:
        """Store `snapshot` if it follows the stored one, else raise StaleSnapshotError.

        Raises ConfigInvalidError where the table does not take it. The first time it is
        looked at again: raises ConfigInvalidError, and nothing is stored, where the table
        does not keep it, or keeps it before the transaction ends.
        """
        expected = Expected(snapshot.attempt_id, snapshot.version - 1 or None)
        with self._within(tx) as connection:
            if not self._keeps:
                self._refuse_autocommit(connection)
            self._write(connection, job_id, expected, {}, document=dump_snapshot(snapshot))
            if not self._keeps and not self._holds(connection, job_id, _stored(snapshot)):
                # A trigger of the host's, say. Without the row no run would ever be counted.
                message = f"{self._host.called('metadata')} does not keep the key {SNAPSHOT_KEY}"
                raise ConfigInvalidError([message])
        self._keeps = True

    def requeue(
        self,
        job_id: Any,
        not_before: datetime,
        snapshot: Snapshot,
        tx: Connection | None = None,
        *,
        once: bool = False,
    ) -> None:
        """Queue the job again, due later, if it is unfinished and `snapshot` is still stored.

        A job that somebody has ended meanwhile stays so: raises StaleSnapshotError. With
        `once` a job that is due at that very moment already is left as it is. A host
        without due times cannot be asked. Raises ConfigInvalidError where the table does
        not take it.
        """
        values, made = self._queued_at(not_before)
        made = made if once else []
        expected, wanted = _stored(snapshot), [self._host.unfinished, *map(sa.not_, made)]
        with self._within(tx) as connection:
            try:
                self._write(connection, job_id, expected, values, *wanted)
            except StaleSnapshotError:
                if not made or not self._holds(connection, job_id, expected, *made):
                    raise

    def _queued_at(self, moment: datetime) -> tuple[dict[str, Any], list[sa.ColumnElement[bool]]]:
        """Return what to write for a job that is due at `moment`, and what holds if it is."""
        due = self._host.due.values(moment)
        columns = self._host.table.columns
        made = [columns[name].is_not_distinct_from(value) for name, value in due.items()]
        return self._status(QUEUED) | due, made

    def _status(self, word: str) -> dict[str, Any]:
        return {self._host.columns["status"]: self._host.statuses[word]}

    def cancel(self, job_id: Any, snapshot: Snapshot) -> None:
        """End the job as cancelled, if `snapshot` is still stored.

        One that has ended already, however, stays as it is. Raises StaleSnapshotError, and
        ConfigInvalidError where the table does not take it.
        """
        expected, is_open = _stored(snapshot), self._host.unfinished
        with self._begun() as connection:
            try:
                self._write(connection, job_id, expected, self._status("cancelled"), is_open)
            except StaleSnapshotError:
                if not self._holds(connection, job_id, expected, sa.not_(is_open)):
                    raise

    def _within(self, tx: Connection | None) -> AbstractContextManager[Connection]:
        if tx is None:
            return self._begun()
        # What follows is read as we read it, whatever a gate made of the connection.
        if (lent := self._lent.get(id(tx))) is not None:
            if lent.is_closed():
                raise GateEndedTransactionError
            lent.give_back()
        return nullcontext(tx)

    def _write(
        self,
        connection: Connection,
        job_id: Any,
        expected: Expected,
        values: dict[str, Any],
        *facts: sa.ColumnElement[bool],
        document: str | None = None,
    ) -> None:
        """Write `values`, and `document` under our key, where `expected` and `facts` hold."""
        first, mine = expected.version is None, self._host.names(job_id)
        statement = self._saving[first] if document is not None else self._updating(first=first)
        if values:
            statement = statement.values(values)
        if facts:
            statement = statement.where(*facts)
        asked = self._host.documents.values(connection, mine, expected, document)
        written = connection.execute(statement, {**mine, **asked}).rowcount
        if written != 1:
            # Raised inside the transaction: where an id stands for two rows, neither is written.
            self._refuse_swallowed(connection, job_id, expected, facts, written)
            raise StaleSnapshotError(job_id, expected.attempt_id, expected.version)

    def _refuse_swallowed(
        self,
        connection: Connection,
        job_id: Any,
        expected: Expected,
        facts: Sequence[sa.ColumnElement[bool]],
        written: int,
    ) -> None:
        """Raise ConfigInvalidError where a write that should have changed one row did not.

        Nobody has moved the attempt then, and whoever took it for moved would leave the job
        alone for ever: a trigger, a rule or row security drops the write and says nothing.
        """
        if written > 1:
            problem = f"{self._host.called('id')} is no key: {written} rows have {job_id!r}"
            raise ConfigInvalidError([problem])
        looking = sa.select(self._host.documents.selected).where(self._host.mine, *facts)
        found = connection.execute(looking, self._host.names(job_id)).scalars().all()
        if any(expected.is_under(our_document(metadata)) for metadata in found):
            problem = (
                f"table {self._host.full_name} does not take what is written: the row of job"
                f" {job_id} is as it was expected, and was not changed; a trigger, a rule or row"
                " security is in the way"
            )
            raise ConfigInvalidError([problem])

    def _holds(
        self, connection: Connection, job_id: Any, stored: Expected, *facts: sa.ColumnElement[bool]
    ) -> bool:
        """Say whether `stored` is what is stored, and `facts` hold of the row."""
        mine, guard = self._host.names(job_id), self._host.documents.guard(first=False)
        found = sa.select(self._host.column("id")).where(self._host.mine, guard, *facts)
        asked = self._host.documents.values(connection, mine, stored, None)
        return len(connection.execute(found, {**mine, **asked}).all()) == 1

    @once
    def _saving(self) -> Mapping[bool, sa.Update]:
        """Return the statements that store an attempt, by whether it is for the first time."""
        values = {self._host.columns["metadata"]: self._host.documents.document}
        return {first: self._updating(first=first).values(values) for first in (False, True)}

    def _updating(self, *, first: bool) -> sa.Update:
        return sa.update(self._host.table).where(
            self._host.mine, self._host.documents.guard(first=first)
        )


def _refuse_async(engine: Any) -> None:
    """Raise ConfigInvalidError for an engine that only works where somebody awaits it."""
    if not engine.dialect.is_async:
        return
    problem = (
        f"the engine for {engine.url!r} is one of asyncio's, and nobody awaits it here: give one"
        " that sqlalchemy.create_engine makes of the same address, by a driver that does not"
        " need it, such as postgresql+psycopg:// or sqlite://"
    )
    raise ConfigInvalidError([problem])


def _is_refusal(error: BaseException) -> bool:
    """Say whether SQLite refuses a statement for what it is: it has one class for all that fails.

    A database that is locked, or cannot be opened, has a code of its own
    (https://www.sqlite.org/rescode.html#error).
    """
    return getattr(error, "sqlite_errorcode", None) == _SQLITE_ERROR


def _shown(value: Any) -> Any:
    """Return a text that was read as its bytes; what is no UTF-8 in it is replaced."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _named(value: Any) -> str:
    """Return a value as a name; nothing is no name, and not the text None."""
    return "" if value is None else str(_shown(value))


def _stored(snapshot: Snapshot) -> Expected:
    return Expected(snapshot.attempt_id, snapshot.version)

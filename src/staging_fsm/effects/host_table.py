"""A host's table of jobs under our names: how it is spelt, of which types, which rows are jobs.

The table belongs to somebody else and is only looked at here. Whether it can be worked on
at all is said once, in sentences, when the runner starts.
"""

import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import DOMAIN, JSONB
from sqlalchemy.engine import Connection, Engine

from staging_fsm.core.errors import ConfigInvalidError, JobNotFoundError
from staging_fsm.core.jobs import QUEUED, RUNNING
from staging_fsm.effects.due import (
    PRECISION,
    SQLITE_FORMAT,
    DueTimes,
    NoDueTimes,
    Seconds,
    Timestamps,
    Words,
)
from staging_fsm.effects.metadata import (
    Documents,
    JsonbDocuments,
    LockedDocuments,
    SqliteDocuments,
    as_stored,
)
from staging_fsm.effects.once import once

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
STATUSES: Final = (QUEUED, RUNNING, "cancelled")
#: The columns that are written, in our names.
WRITTEN: Final = ("status", "not_before", "metadata")
#: The columns whose values are taken as they are, in our names.
_AS_THEY_ARE: Final = ("id", "repo", "work_item", "stage", "status")
DIALECTS: Final = ("sqlite", "postgresql")
#: An attempt with many runs takes some tens of thousands of characters.
METADATA_LENGTH_MIN: Final = 65_536
_SAMPLE_ROWS: Final = 20
#: How many rows are looked at for an id that two of them have.
_NEWEST_ROWS: Final = 1000
#: What is noted of a column whose type is a domain.
_IN_DOMAIN: Final = "in a domain"
_NUMBERS: Final = (sa.Integer, sa.Numeric, sa.Float)
#: The greatest integer that a database can be asked for.
_INTEGER_MAX: Final = 2**63 - 1


class HostTable:
    """The table, which is looked at on first use.

    Whatever needs it raises ConfigInvalidError where it cannot be worked on.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        columns: Mapping[str, str] | None,
        statuses: Mapping[str, Any] | None,
        *,
        constants: Mapping[str, str | None] | None,
        schema: str | None,
        where: str | None,
        time_format: str | None,
    ) -> None:
        """Take what `SqlRows` is told; raises ConfigInvalidError for a name that is not ours."""
        self._engine = engine
        self._name, self._schema, self._where = name, schema, where
        self._time_format = time_format
        self.constants = dict(constants or {})
        self.columns = {name: name for name in COLUMNS if name not in self.constants}
        self.columns |= dict(columns or {})
        self.statuses = {word: word for word in STATUSES} | dict(statuses or {})
        self._words: dict[Any, str] = {actual: word for word, actual in self.statuses.items()}
        problems = list(self._misspelt())
        if problems:
            raise ConfigInvalidError(problems)

    def _misspelt(self) -> Iterator[str]:
        known = {"columns": (self.columns, COLUMNS), "statuses": (self.statuses, STATUSES)}
        known["constants"] = (self.constants, CONSTANTS)
        for parameter, (given, ours) in known.items():
            for name in sorted({*given} - {*ours}):
                yield f"{name!r} of {parameter} is none of {', '.join(ours)}"
        for name in sorted({*self.columns} & {*self.constants}):
            yield f"{name!r} is both a column and a constant"
        for actual, words in self._shared_words():
            yield (
                f"{actual!r} stands for {' and '.join(words)} in statuses: a job that waits, one"
                " in work and one that was cancelled could not be told apart"
            )
        for name in ("repo", "work_item", "stage"):
            if name in self.constants and self.constants[name] is None:
                yield f"the constant {name!r} has to be a text: no job is without one"
        if self.constants.get("not_before") is not None:
            yield "the constant 'not_before' can only be None: no job has a due time"

    def _shared_words(self) -> Iterator[tuple[Any, list[str]]]:
        """Yield each status of the host's that stands for more than one of our words."""
        for actual in self._words:
            words = [word for word, theirs in self.statuses.items() if theirs == actual]
            if len(words) > 1:
                yield actual, words

    @property
    def full_name(self) -> str:
        """Return how the table is called in a sentence."""
        return repr(f"{self._schema}.{self._name}" if self._schema else self._name)

    @once
    def table(self) -> sa.Table:
        """Return the table, with a column for each of the host's."""
        dialect = self._engine.dialect.name
        if dialect not in DIALECTS:
            raise ConfigInvalidError([f"SqlRows works on {' and '.join(DIALECTS)}, not {dialect}"])
        try:
            with warnings.catch_warnings():
                # Types that only columns of no concern to us have.
                warnings.simplefilter("ignore", sa.exc.SAWarning)
                found = sa.inspect(self._engine).get_columns(self._name, self._schema)
        except sa.exc.NoSuchTableError:
            raise ConfigInvalidError([f"there is no table {self.full_name}"]) from None
        except TypeError as error:
            # Not even its version: where no encoding is told psycopg returns bytes for a text.
            if dialect != "postgresql":
                raise
            raise ConfigInvalidError([f"{self._no_encoding()} ({error})"]) from error
        names = ", ".join(column["name"] for column in found)
        problems = [
            f"table {self.full_name} has no column {actual!r} for {ours!r} (it has {names})"
            for ours, actual in self.columns.items()
            if actual not in {column["name"] for column in found}
        ]
        if problems:
            raise ConfigInvalidError(problems)
        columns = [
            sa.Column(it["name"], self._kind(it), info={_IN_DOMAIN: isinstance(it["type"], DOMAIN)})
            for it in found
        ]
        table = sa.Table(self._name, sa.MetaData(), *columns, schema=self._schema)
        problems = list(self._misfits(table))
        if problems:
            raise ConfigInvalidError(problems)
        return table

    def _kind(self, column: Any) -> Any:
        """Return the type of a column that was found; none where SQLite's says nothing of it.

        There any value may stand in any column, and a type that is not known counts as one
        of numbers: read as such a key is rounded or becomes a Decimal, and a text fails.
        """
        kind = _base(column["type"])
        is_plain = column["name"] in {self.columns.get(name) for name in _AS_THEY_ARE}
        if self._engine.dialect.name != "sqlite" or not is_plain:
            return kind
        return kind if isinstance(kind, sa.Integer | sa.String) else sa.types.NullType()

    def _misfits(self, table: sa.Table) -> Iterator[str]:
        """Yield what cannot be kept in a column because of its type."""
        kinds = {ours: table.columns[actual].type for ours, actual in self.columns.items()}
        strict = self._engine.dialect.name != "sqlite"
        metadata = kinds["metadata"]
        if strict and not isinstance(metadata, sa.JSON | sa.String):
            yield f"{self.called('metadata')} is {metadata}, not jsonb, json or text"
        if strict and 0 < (getattr(metadata, "length", None) or 0) < METADATA_LENGTH_MIN:
            yield f"{self.called('metadata')} is {metadata}, too short for an attempt: use text"
        yield from self._misfits_of_due_times(table, strict=strict)
        for word, actual in self.statuses.items():
            problem = _unfit_word(kinds["status"], actual, strict=strict)
            if problem:
                yield f"{self.called('status')} cannot hold {actual!r} for {word!r}: {problem}"

    def _misfits_of_due_times(self, table: sa.Table, *, strict: bool) -> Iterator[str]:
        if "not_before" in self.constants:
            return
        column, called = table.columns[self.columns["not_before"]], self.called("not_before")
        due = column.type
        kept = (sa.String, sa.DateTime, *_NUMBERS, sa.types.NullType)
        if isinstance(due, sa.Enum) or not isinstance(due, kept):
            yield f"{called} is {due}, which holds no moment"
            return
        is_text = isinstance(due, sa.String | sa.types.NullType) or not strict
        if is_text and not isinstance(due, _NUMBERS):
            longest = getattr(due, "length", None) if strict else None
            problem = Words(column, self._time_format).unfit(longest)
            if problem:
                yield f"{called} {problem}"
        elif self._time_format is not None:
            yield f"{called} is {due}: time_format is only for text"

    def called(self, name: str) -> str:
        """Return how the host's column for one of our names is called in a sentence."""
        return f"column {self.columns.get(name)!r} of {self.full_name}"

    def column(self, name: str) -> sa.Column[Any]:
        """Return the host's column for one of our names."""
        return self.table.columns[self.columns[name]]

    def unpadded(self, name: str) -> sa.ColumnElement[Any]:
        """Return a column as it is, of PostgreSQL's char(n) without the blanks that fill it up."""
        column = self.column(name)
        return sa.cast(column, sa.Text) if self._is_padded(column) else column

    def _is_padded(self, column: sa.Column[Any]) -> bool:
        return isinstance(column.type, sa.CHAR) and self._engine.dialect.name != "sqlite"

    def selected(self, name: str) -> sa.ColumnElement[Any]:
        """Return what to select for one of our names: of a text in SQLite, its bytes."""
        column = self.due.selected() if name == "not_before" else self.unpadded(name)
        is_text = isinstance(column.type, sa.String | sa.types.NullType)
        return as_stored(column) if is_text and self._engine.dialect.name == "sqlite" else column

    @once
    def documents(self) -> Documents:
        """Return how our key of the metadata is read and written."""
        column = self.column("metadata")
        if self._engine.dialect.name == "sqlite":
            return SqliteDocuments(column)
        if isinstance(column.type, JSONB):
            return JsonbDocuments(column)
        return LockedDocuments(column, self.mine)

    @once
    def due(self) -> DueTimes:
        """Return how due times are read and written."""
        if "not_before" in self.constants:
            return NoDueTimes()
        column = self.column("not_before")
        if isinstance(column.type, _NUMBERS):
            return Seconds(column)
        if not isinstance(column.type, sa.DateTime):
            return Words(column, self._time_format)
        if self._engine.dialect.name == "sqlite":
            return Words(column, self._time_format or SQLITE_FORMAT)
        digits = getattr(column.type, "precision", None)
        with_zone = bool(column.type.timezone)
        return Timestamps(column, with_zone, PRECISION if digits is None else digits)

    def problems(self, reading: Callable[[], AbstractContextManager[Any]]) -> list[str]:
        """Return a sentence for everything that does not fit: types, due times, rights, the key.

        `reading` returns a connection to ask.
        """
        problems = []
        is_unique = self._is_unique(self.column("id").name)
        if not self._where and not is_unique:
            problems.append(f"{self.called('id')} is no key: two rows may have the same")
        due = self.due.selected()
        sample = sa.select(due).where(self.ours, due.is_not(None)).limit(_SAMPLE_ROWS)
        with reading() as connection:
            if self._where and not is_unique and (shared := self._shared_id(connection)):
                problems.append(f"{self.called('id')} is no key: two rows have {shared[0]!r}")
            found = (self.due.problem(value) for value in connection.execute(sample).scalars())
            first = next((problem for problem in found if problem), None)
            further = self._missing_rights(connection) + self._unfit_encoding(connection)
        if first:
            problems.append(f"{self.called('not_before')} {first}")
        return problems + further

    def _unfit_encoding(self, connection: Connection) -> list[str]:
        """Say what an attempt cannot be kept in for its characters: it holds paths and messages."""
        if self._engine.dialect.name == "sqlite":
            return []
        asked = sa.select(sa.func.current_setting("server_encoding", type_=sa.Text))
        encoding = connection.execute(asked).scalar()
        if encoding == "SQL_ASCII":
            return [self._no_encoding()]
        # A text, and json, keep a character that is an escape as it is written.
        if encoding == "UTF8" or not isinstance(self.column("metadata").type, JSONB):
            return []
        problem = (
            f"{self.called('metadata')} is jsonb in a database in {encoding}, which cannot hold"
            " every character of a path or a message: make it json or text, or use a database"
            " in UTF8"
        )
        return [problem]

    def _no_encoding(self) -> str:
        return (
            f"table {self.full_name} is in a database in SQL_ASCII, whose texts are bytes in no"
            " encoding that is known: use a database in UTF8"
        )

    def _is_unique(self, name: str) -> bool:
        """Say whether no two rows can have the same value there; a view is taken at its word."""
        inspector = sa.inspect(self._engine)
        keys: list[Any] = [
            inspector.get_pk_constraint(self._name, self._schema)["constrained_columns"]
        ]
        indexes = inspector.get_indexes(self._name, self._schema)
        unique = inspector.get_unique_constraints(self._name, self._schema)
        keys += [index["column_names"] for index in indexes if _is_of_all(index)]
        keys += [constraint["column_names"] for constraint in unique]
        return [name] in keys or self._name in inspector.get_view_names(self._schema)

    def _shared_id(self, connection: Connection) -> Any:
        """Return an id that two of the newest jobs have, as a row of one value, or None.

        Which of a table's rows a condition leaves no constraint says, so some are looked at.
        """
        column = self.column("id")
        newest = sa.select(column).where(self.ours).order_by(column.desc()).limit(_NEWEST_ROWS)
        id_ = newest.subquery().c[0]
        shared = sa.select(id_).group_by(id_).having(sa.func.count() > 1).limit(1)
        return connection.execute(shared).first()

    def _missing_rights(self, connection: Connection) -> list[str]:
        if self._engine.dialect.name == "sqlite":
            return []
        # As a value, and not within a statement, where a per cent sign is doubled.
        table = self._engine.dialect.identifier_preparer.format_table(self.table).replace("%%", "%")
        wanted = [(ours, "SELECT") for ours in self.columns]
        wanted += [(ours, "UPDATE") for ours in self.columns if ours in WRITTEN]
        allowed = [
            sa.func.has_column_privilege(table, self.columns[ours], right) for ours, right in wanted
        ]
        answers = connection.execute(sa.select(*allowed)).one()
        return [
            f"{self.called(ours)} may not be used: {self._engine.url.username} needs {right} on it"
            for (ours, right), answer in zip(wanted, answers, strict=True)
            if not answer
        ]

    @property
    def ours(self) -> sa.ColumnElement[bool]:
        """Return the condition on the rows that are jobs."""
        if self._where is None:
            return sa.true()
        return sa.literal_column(f"({self._where})", sa.Boolean())

    @once
    def mine(self) -> sa.ColumnElement[bool]:
        """Return the condition on one job's row; `names` says which."""
        column = self.column("id")
        return sa.and_(column == sa.bindparam("our_id", type_=column.type), self.ours)

    @once
    def unfinished(self) -> sa.ColumnElement[bool]:
        """Return the condition on a job that waits or is in work."""
        column = self.column("status")
        # A word is compared with an enumeration, and not with a domain over it.
        is_hidden = isinstance(column.type, sa.Enum) and column.info[_IN_DOMAIN]
        status = sa.cast(column, column.type) if is_hidden else column
        return sa.or_(*(status == self.statuses[word] for word in (QUEUED, RUNNING)))

    def names(self, job_id: Any) -> dict[str, Any]:
        """Return the parameter of `mine`; raises JobNotFoundError for what can be no id here."""
        return {"our_id": self._key(job_id)}

    def other_name(self, job_id: Any) -> dict[str, Any] | None:
        """Return the parameter of `mine` for a UUID's text in a column of its hex digits.

        To be asked for what is no id as it is: in SQLite such a column may hold any text.
        """
        kind = self.column("id").type
        if not (isinstance(job_id, str) and isinstance(kind, sa.String)):
            return None
        try:
            value = uuid.UUID(job_id)
        except ValueError:
            return None
        is_dashed = kind.length == len(value.hex) and job_id.lower() == str(value)
        return {"our_id": value.hex} if is_dashed else None

    def word(self, status: Any) -> str:
        """Return our word for a status of the host's, or the host's own."""
        return self._words.get(status, str(status))

    def _key(self, job_id: Any) -> Any:
        """Return a job's id as its column holds it: a UUID has two forms, and a text."""
        kind = self.column("id").type
        if isinstance(kind, sa.types.NullType):
            return _plain(job_id)
        try:
            if isinstance(kind, sa.Uuid) and not isinstance(job_id, uuid.UUID):
                return uuid.UUID(str(job_id))
            if isinstance(kind, sa.Integer):
                number = int(job_id)
                if abs(number) > _INTEGER_MAX or (number != job_id and type(job_id) is float):
                    raise ValueError(number)  # noqa: TRY301  # refused as a text that is no number
                return number
        except (ValueError, TypeError):
            message = f"there is no job {job_id} in table {self.full_name}"
            raise JobNotFoundError(message) from None
        if isinstance(kind, sa.String):
            is_bare = isinstance(job_id, uuid.UUID) and kind.length == len(job_id.hex)
            text = job_id.hex if is_bare else str(job_id)
            return text.rstrip(" ") if self._is_padded(self.column("id")) else text
        return job_id


def _plain(job_id: Any) -> Any:
    """Return an id as a driver takes it that knows neither Decimal nor UUID."""
    if isinstance(job_id, Decimal):
        return int(job_id) if job_id == job_id.to_integral_value() else float(job_id)
    return str(job_id) if isinstance(job_id, uuid.UUID) else job_id


def _is_of_all(index: Mapping[str, Any]) -> bool:
    """Say whether an index is unique, and one of every row, not of some of them."""
    options = index.get("dialect_options", {})
    return bool(index["unique"]) and not any(name.endswith("_where") for name in options)


def _base(kind: Any) -> Any:
    """Return a column's type; for a domain the one that it is made of, also by way of others."""
    while isinstance(kind, DOMAIN):
        kind = kind.data_type
    return kind


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

"""Job rows of a Django model: our statements on Django's own connection.

The gate runs inside `transaction.atomic`, so that what it does with models and the
end of the attempt are one transaction.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, tzinfo
from typing import Any, Final

import sqlalchemy as sa
from django.db import (
    DataError,
    OperationalError,
    ProgrammingError,
    connections,
    models,
    transaction,
)
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.engine.result import IteratorResult, SimpleResultMetaData

from staging_fsm.effects.rows import REFUSALS, SqlRows

_SOME_YEAR: Final = 2026


class DjangoRows(SqlRows):
    """Job rows in the table of a Django model, managed or not."""

    _refusals = (*REFUSALS, DataError, ProgrammingError)
    _failures = (*SqlRows._failures, OperationalError)  # noqa: SLF001  # its own base's

    def __init__(self, model: Any, *arguments: Any, using: str = "default", **named: Any) -> None:
        """Bind to the table of `model` in the database `using`.

        Everything else is as for SqlRows; columns are named as the database does
        (`project_id` for a foreign key `project`).
        """
        self._using = using
        self._model = model
        vendor = connections[using].vendor
        address = sa.URL.create(
            "sqlite" if vendor == "sqlite" else f"{vendor}+psycopg",
            username=connections[using].settings_dict["USER"] or None,
        )
        # Only looks at the table; everything else goes through Django's connection itself.
        engine = sa.create_engine(address, creator=self._connect, poolclass=sa.pool.NullPool)
        super().__init__(engine, model._meta.db_table, *arguments, **named)  # noqa: SLF001  # Django's public name

    def _further_problems(self) -> list[str]:
        """Say where Django's due times are not those that they seem to be.

        In a column without a time zone it keeps the time of a clock on some wall. To write that
        would not do: once a year such a clock shows an hour twice, and a due time in it would
        be another when it is read again.
        """
        due = self._host.columns.get("not_before")
        fields = {it.column: it for it in getattr(self._model._meta, "fields", ())}  # noqa: SLF001  # as above
        if due is None or not isinstance(fields.get(due), models.DateTimeField):
            return []
        if getattr(self._host.column("not_before").type, "timezone", False):
            return []
        # None is that of the process.
        zone = connections[self._using].timezone
        if _is_utc(zone):
            return []
        problem = (
            f"{self._host.called('not_before')} has no time zone, and Django keeps the time of"
            f" {zone or 'this machine'} there, not UTC, in which due times are written and read:"
            " set USE_TZ = True, without a TIME_ZONE of the database; or TIME_ZONE = 'UTC'; or"
            " keep due times as numbers of seconds"
        )
        return [problem]

    def _connect(self) -> Any:
        """Return a connection of its own, as Django makes them: with all that the settings say.

        What a receiver of `connection_created` does to one is done to it as well.
        """
        beside = connections[self._using].copy()
        # Whoever closes a connection out of a pool would have to give it back there.
        beside.settings_dict["OPTIONS"].pop("pool", None)
        beside.connect()
        return beside.connection

    def begin_anew(self) -> None:
        """Leave Django's connection, too, to the process that this one was forked from.

        Not SQLite's: Django's own tests share one with the processes that they fork.
        """
        super().begin_anew()
        for connection in connections.all(initialized_only=True):
            if connection.alias == self._using and connection.vendor != "sqlite":
                # Where the settings ask for a pool, it stands there for the whole process.
                pools = getattr(connection, "_connection_pools", {})
                self._not_ours += [connection, pools.pop(self._using, None)]
                del connections[self._using]

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        yield self._connected()

    @contextmanager
    def _begun(self) -> Iterator[Any]:
        """Yield Django's connection inside `transaction.atomic`; a gate may leave it alone."""
        connected = self._connected()
        # Within another one nothing would be durable when it has to be, before its effect.
        with transaction.atomic(using=self._using, durable=True):
            yield connected

    def _driver(self, connection: Any) -> Any:
        return connection.connection.connection

    def _drop(self, connection: Any) -> None:
        """Leave it to Django, which opens another one."""

    def _is_in_transaction(self, connection: Any) -> bool:
        return bool(connection.connection.in_atomic_block)

    def _connected(self) -> "_Connected":
        connection = connections[self._using]
        if not connection.in_atomic_block:
            # A worker has no requests, after which Django would do this.
            connection.close_if_unusable_or_obsolete()
        return _Connected(connection, self.engine.dialect)


def _is_utc(zone: tzinfo | None) -> bool:
    """Say whether a clock in `zone`, or of this process, shows UTC all through the year."""
    months = (datetime(_SOME_YEAR, month, 1, tzinfo=zone) for month in range(1, 13))
    return not any((it if zone else it.astimezone()).utcoffset() for it in months)


class _Connected:
    """Django's connection as far as SqlRows asks for one of SQLAlchemy."""

    def __init__(self, connection: Any, dialect: Dialect) -> None:
        self.connection = connection
        # Django's cursors take this style for both databases.
        kind: Any = type(dialect)
        self._dialect: Dialect = kind(paramstyle="pyformat")

    def execute(self, statement: Any, values: Any = None) -> "_Result":
        compiled = statement.compile(dialect=self._dialect)
        with self.connection.cursor() as cursor:
            cursor.execute(str(compiled), compiled.construct_params(values))
            names = [column[0] for column in cursor.description or ()]
            rows = cursor.fetchall() if names else []
            return _Result(names, rows, cursor.rowcount)

    def scalar(self, statement: Any) -> Any:
        return self.execute(statement).scalar()


class _Result(IteratorResult[Any]):
    def __init__(self, names: list[str], rows: list[tuple[Any, ...]], rowcount: int) -> None:
        super().__init__(SimpleResultMetaData(names), iter(rows))
        self.rowcount = rowcount

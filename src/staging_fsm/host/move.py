"""The host's rows in another database, all of them or none, each byte as it was.

A row is taken as it stands: keys, times, metadata. Nobody may be at work, or what he
does next would be known to one of the two databases alone; so a job in work is refused,
and whoever wants to write meanwhile waits.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from staging_fsm.core.errors import RefusedError

#: In the order in which rows refer to each other, each with its key.
TABLES: Final = {"repositories": ("name",), "work_items": ("repo", "id"), "jobs": ("id",)}


def move_rows(source: Engine, target: Engine) -> dict[str, int]:
    """Copy every row of `source` into the empty tables of `target`; return how many of each.

    Each row is read back and compared before anything is committed. Raises
    RefusedError, and leaves `target` as it was, where a job is in work, where the
    target has rows already, where it cannot hold one as it is, or where it is `source`.
    """
    if _is_one(source, target):
        # The lock on the one would be waited for at the other.
        message = f"the new database is the old one, {source.url.database}: name another one"
        raise RefusedError(message)
    with _still(source, "SHARE") as reading, _still(target, "EXCLUSIVE") as writing:
        _refuse_work(reading)
        for table in TABLES:
            if writing.execute(sa.text(f"SELECT 1 FROM {table} LIMIT 1")).first():  # noqa: S608  # a name of ours
                message = f"the new database has {table} already: rows are moved into an empty one"
                raise RefusedError(message)
        moved = {table: _copy(reading, writing, table) for table in TABLES}
        if target.dialect.name == "postgresql":
            number = "SELECT setval(pg_get_serial_sequence('jobs', 'id'), max(id)) FROM jobs"
            writing.execute(sa.text(number))
        writing.commit()
    return moved


def _is_one(source: Engine, target: Engine) -> bool:
    """Say whether two addresses, however they are spelt, lead to the same tables."""
    if source.dialect.name != target.dialect.name:
        return False
    if source.dialect.name == "sqlite":
        return Path(str(source.url.database)).samefile(str(target.url.database))
    table = sa.text("SELECT to_regclass('jobs')::oid")
    # No other database has it, and nobody else in this one.
    key = {"key": secrets.randbits(62)}
    with source.connect() as old, target.connect() as new:
        old.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), key)
        is_free = new.execute(sa.text("SELECT pg_try_advisory_xact_lock(:key)"), key).scalar()
        return not is_free and old.execute(table).scalar() == new.execute(table).scalar()


@contextmanager
def _still(engine: Engine, mode: str) -> Iterator[Connection]:
    """Yield a connection in a transaction beside which nobody writes; undone unless committed."""
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            tables = ", ".join(TABLES)
            connection.exec_driver_sql(f"LOCK TABLE {tables} IN {mode} MODE")
        else:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection


def _refuse_work(reading: Connection) -> None:
    query = sa.text("SELECT id FROM jobs WHERE status = 'running' ORDER BY id LIMIT 10")
    jobs = reading.execute(query).scalars().all()
    if jobs:
        message = (
            f"jobs are in work ({', '.join(map(str, jobs))}): let their workers end them,"
            " or take up what dead ones left with `staging-fsm worker --once`"
        )
        raise RefusedError(message)


def _copy(reading: Connection, writing: Connection, table: str) -> int:
    rows = _rows(reading, table)
    if rows:
        names = list(rows[0])
        values = ", ".join(f":{name}" for name in names)
        statement = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({values})"  # noqa: S608  # names of the schema
        try:
            writing.execute(sa.text(statement), rows)
        except sa.exc.StatementError as error:
            message = f"the new database cannot hold a row of {table} as it is: {error.orig}"
            raise RefusedError(message) from error
    if _rows(writing, table) != rows:
        message = f"the new database changed rows of {table} as they were written"
        raise RefusedError(message)
    return len(rows)


def _rows(connection: Connection, table: str) -> list[dict[str, Any]]:
    """Return the rows of a table, ordered here: two databases do not sort texts alike."""
    found = connection.execute(sa.text(f"SELECT * FROM {table}")).mappings()  # noqa: S608  # a name of ours
    return sorted(map(dict, found), key=lambda row: [row[name] for name in TABLES[table]])

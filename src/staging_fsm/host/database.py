"""Connections to the host's database: durable, patient, and given up when they are dead."""

import os
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import attrs
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from staging_fsm.core.masking import looks_secret

BUSY_TIMEOUT_SECONDS: Final = 30
#: To be the first to open a file takes milliseconds, and on a disk that is busy seconds. One
#: that was emptied under open connections counts as new and stays locked by them: nobody
#: should wait for that as long as for a writer.
SWITCH_TIMEOUT_SECONDS: Final = 10
_SWITCH_PAUSE_SECONDS: Final = 0.02
#: When we give a silent connection to PostgreSQL up. The kernel looks, for whichever
#: process has it (https://www.postgresql.org/docs/current/libpq-connect.html).
CLIENT_KEEPALIVE: Final = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 11_000,
    "connect_timeout": 10,
}
#: When the server does, at least three times as late: by the time that a session's locks
#: fall, whoever had them knows it for long
#: (https://www.postgresql.org/docs/current/runtime-config-connection.html).
SERVER_KEEPALIVE: Final = {
    "tcp_keepalives_idle": 20,
    "tcp_keepalives_interval": 5,
    "tcp_keepalives_count": 5,
    "tcp_user_timeout": 45_000,
    # A process that is frozen inside a transaction must not hold its rows for ever.
    "idle_in_transaction_session_timeout": 60_000,
}


def open_database(url: str | sa.URL, *, only_to_look: bool = False) -> Engine:
    """Return an engine for `url`, of SQLite or PostgreSQL (`postgresql://…`, by psycopg 3).

    SQLite gets durable commits and patient locks: WAL with `synchronous=FULL`, so a
    commit that returned survives a power cut
    (https://www.sqlite.org/pragma.html#pragma_synchronous). A connection to PostgreSQL
    that was lost while nobody used it is opened afresh, and one that is cut off without
    a word is given up by both sides, within a minute: whatever it had locked is free then.

    `only_to_look` is for who writes nothing: no file is made where there is none, whenever a
    connection is opened; one that is there stays in the journal mode that it has, and may be
    one that this user cannot write, such as an archived copy.
    """
    address = sa.make_url(url)
    if address.drivername == "postgresql":
        address = address.set(drivername="postgresql+psycopg")
    if address.get_backend_name() == "postgresql":
        given = {name: it for name, it in CLIENT_KEEPALIVE.items() if name not in address.query}
        engine = sa.create_engine(address, pool_pre_ping=True, connect_args=given)
        sa.event.listen(engine, "connect", _prepare_postgresql)
        return engine
    # As many connections as there are threads: one that waits for a second one inside its
    # transaction must not wait for those that wait for its lock. The last one used comes
    # first: it still knows its statements.
    is_sqlite, in_memory = address.get_backend_name() == "sqlite", address.database == ":memory:"
    in_a_file = address.database if is_sqlite and not in_memory else None
    options: dict[str, Any] = {"pool_size": 0, "pool_use_lifo": True} if in_a_file else {}
    if only_to_look and in_a_file and _is_read_only(Path(in_a_file)):
        connect = partial(_connect_read_only, Path(in_a_file).absolute())
        # Each look is at the file as it is then: whoever may write it may begin to.
        options = {"creator": connect, "poolclass": sa.pool.NullPool}
    engine = sa.create_engine(address, **options)
    if engine.dialect.name == "sqlite":
        if not only_to_look:
            sa.event.listen(engine, "connect", _keep_a_log)
        elif in_a_file:
            sa.event.listen(engine, "do_connect", _connect_to_what_is_there)
        sa.event.listen(engine, "connect", _prepare_sqlite)
    if in_a_file:
        turns = _Turns()
        sa.event.listen(engine, "before_cursor_execute", turns.await_turn)
        sa.event.listen(engine, "checkin", turns.pass_on)
    if (file := file_of(address)) and file != ":memory:":
        place = _Place(Path(file).absolute())
        sa.event.listen(engine, "connect", place.remember)
        sa.event.listen(engine, "checkout", place.check)
    return engine


def file_of(address: sa.URL) -> str | None:
    """Return the file that an address of SQLite names, as a path or as a URI; else None."""
    if address.get_backend_name() != "sqlite":
        return None
    file = address.database
    is_uri = file is not None and file.startswith("file:") and "uri" in address.query
    return unquote(urlsplit(file).path) if file and is_uri else file


def shown_address(address: sa.URL) -> str:
    """Return the address of a database for a person to read, without what is secret in it."""
    pairs = address.normalized_query.items()
    said = ((name, "***" if looks_secret(name) else it) for name, them in pairs for it in them)
    query = urlencode(list(said), safe="*/")
    return str(address.set(query={})) + (f"?{query}" if query else "")


@attrs.frozen
class _Place:
    """The file at which a connection was opened, which must be there still.

    SQLite goes on with a file that has been removed or replaced (its own check leaves out
    WAL), and whatever is committed to it is gone with the last connection.
    """

    path: Path

    def remember(self, _connection: Any, record: Any) -> None:
        """Note which file it is."""
        record.info["file"] = self._file()

    def check(self, _connection: Any, record: Any, _proxy: Any) -> None:
        """Raise sqlite3.OperationalError where it is another one by now, or none."""
        if record.info["file"] != self._file():
            message = f"{self.path} was removed or replaced while it was in use"
            raise sqlite3.OperationalError(message)

    def _file(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.path)  # noqa: PTH116  # at each use of a connection: half of the time
        except OSError:
            return None
        return found.st_dev, found.st_ino


#: How a statement begins that never writes. None of the others has to.
_READS: Final = ("SELECT", "PRAGMA")


class _Turns:
    """One writer of this process after the other, each woken when its turn comes.

    SQLite knows one writer at a time, and whoever finds another sleeps, longer each
    time, for up to a tenth of a second (https://www.sqlite.org/c3ref/busy_timeout.html):
    of some threads that write most of the time most are asleep, and the file idle.
    Against writers of other processes it is all there is.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()

    def await_turn(
        self, connection: Connection, _cursor: Any, statement: str, *_details: Any
    ) -> None:
        """Wait before the first statement of a transaction that may write."""
        if statement.startswith(_READS) or "turn" in connection.info:
            return
        # No lock but a turn: who has waited as long as SQLite would goes on, and is told by it.
        if self._turn.acquire(timeout=BUSY_TIMEOUT_SECONDS):
            connection.info["turn"] = True

    def pass_on(self, _connection: Any, record: Any) -> None:
        """Let the next one write: whatever became of the transaction, it is over."""
        if record.info.pop("turn", False):
            self._turn.release()


def keep_alive(connection: Any) -> None:
    """Have the server look after the session of a psycopg connection. Raises psycopg.Error."""
    calls = ", ".join(
        f"set_config('{name}', '{it}', false)" for name, it in SERVER_KEEPALIVE.items()
    )
    connection.execute(f"SELECT {calls}")


def _prepare_postgresql(connection: Any, _record: Any) -> None:
    keep_alive(connection)
    # What is set in a transaction goes with it.
    connection.commit()


def _switch_to_wal(connection: Any) -> None:
    """Have a database keep a write-ahead log, as soon as nobody is in the way.

    Of two that switch a new file at once SQLite refuses one without a wait, however long it
    may: each holds what the other one needs.
    """
    connection.execute("PRAGMA busy_timeout = 100")
    deadline = time.monotonic() + SWITCH_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # The last byte says what it is, all before it why: also for want of a recovery.
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() > deadline:
                raise
            time.sleep(_SWITCH_PAUSE_SECONDS)
        else:
            return


def _is_read_only(file: Path) -> bool:
    """Say whether there is a database that this user can read and not write."""
    if not file.exists():
        return False
    return not all(os.access(path, os.W_OK) for path in (file, file.absolute().parent))


def _connect_read_only(file: Path) -> sqlite3.Connection:
    """Connect to a file that cannot be written, nor can anything beside it.

    Without the files that its writers leave beside it nobody is at it, and SQLite is told
    so: to look for them it would have to write (https://www.sqlite.org/wal.html#readonly).
    """
    in_use = any(file.with_name(file.name + end).exists() for end in ("-wal", "-journal"))
    how = "mode=ro" if in_use else "mode=ro&immutable=1"
    return sqlite3.connect(f"{file.as_uri()}?{how}", uri=True, check_same_thread=False)


def _connect_to_what_is_there(
    dialect: sa.Dialect, _record: Any, arguments: Sequence[Any], options: Mapping[str, Any]
) -> Any:
    """Connect to a file that is there: SQLite would make one that is not, or is no more."""
    file = arguments[0]
    uri = file if options.get("uri") else Path(file).as_uri()
    name, _, query = uri.partition("?")
    # Who says how it is to be opened may mean one in memory, which is no file.
    how = query if "mode" in parse_qs(query) else f"{query}&mode=rw".lstrip("&")
    return dialect.connect(f"{name}?{how}", **{**options, "uri": True})


def _keep_a_log(connection: Any, _record: Any) -> None:
    _switch_to_wal(connection)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    for pragma in (
        f"busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000}",
        "synchronous = FULL",
        "foreign_keys = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")

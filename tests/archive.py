"""Attempts that really ran, archived with their artifacts and logs, for tests to tamper with."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from click.testing import CliRunner, Result

from hosts import REPO, git
from staging_fsm.core.jobs import SNAPSHOT_KEY
from staging_fsm.core.spec import State
from staging_fsm.core.suites import SuiteEntry
from staging_fsm.faces.audit import Audit, Finding, Severity, audit_table
from staging_fsm.faces.cli import main
from staging_fsm.faces.session import (
    AttemptDriver,
    Session,
    one_suite,
    open_session,
    staging_job,
    switched_on,
)

#: What each job's suite does, and where that leads.
SUITES = {
    "WI-1": ("true", State.ADVANCED),
    "WI-2": ("exit 7", State.ROLLED_BACK),
    "WI-3": ("exit 127", State.FAILED_CLOSED),
}


@attrs.frozen
class Archive:
    """Attempts that really ran, and a copy of their database to tamper with."""

    database: Path
    session: Session

    def sql(self, statement: str, *values: object) -> None:
        """Do what somebody with the database at hand can do."""
        with sqlite3.connect(self.database) as connection:
            assert connection.execute(statement, values).rowcount == 1
        connection.close()

    def sql_of_many(self, statement: str) -> None:
        """Do what somebody can do to as many rows as there are."""
        with sqlite3.connect(self.database) as connection:
            connection.execute(statement)
        connection.close()

    def queue(self, work_item: str, stage: str, status: str) -> int:
        """Add a job of a work item, which stays where it is; return its id."""
        store, now = self.session.store, self.session.clock.now()
        with store.transaction() as tx:
            item = store.work_item(tx, REPO, work_item)
            job_id = store.enqueue(tx, attrs.evolve(item, stage=stage), "agent", now)
        self.sql("UPDATE jobs SET status = ? WHERE id = ?", status, job_id)
        return job_id

    def stage(self, job_id: int, suite: str) -> None:
        """Have a suite of one command run for a job, to the end of its attempt."""
        staging = self.session.staging(suites=one_suite(SuiteEntry(("sh", "-c", suite))))
        AttemptDriver(self.session, staging, job_id).drive()

    def stored(self, job_id: int) -> dict[str, Any]:
        """Return a stored attempt as JSON."""
        document = self.session.rows.load(job_id).document
        assert isinstance(document, dict)
        return document

    def set(self, job_id: int, path: str, value: object) -> None:
        """Put a JSON value at a path of a stored attempt."""
        self.sql(
            "UPDATE jobs SET metadata = json_set(metadata, ?, json(?)) WHERE id = ?",
            f"$.{SNAPSHOT_KEY}.{path}",
            json.dumps(value),
            job_id,
        )

    def audit(self) -> Audit:
        """Audit the whole table."""
        return audit_table(self.session.rows, self.session.store)

    def deviations(self) -> list[Finding]:
        """Return what deviates."""
        return self.audit().of(Severity.DEVIATION)

    def artifact(self, job_id: int) -> Path:
        """Return where a job's artifact lies."""
        return Path(self.stored(job_id)["artifact"]["path"])

    def log(self, job_id: int) -> Path:
        """Return where the log of a job's first run lies."""
        return Path(self.stored(job_id)["runs"][0]["log"])

    def call(self, *arguments: str) -> Result:
        """Call `staging-fsm audit` on the database."""
        url = f"sqlite:///{self.database}"
        return CliRunner().invoke(main, ["audit", *arguments, "--db", url])


def run_attempts(folder: Path) -> None:
    """Put a database, artifacts and logs of three attempts that really run into a folder."""
    repository = folder / REPO
    repository.mkdir()
    git(repository, "init", "--quiet", "--initial-branch=main")
    git(repository, "commit", "--quiet", "--allow-empty", "--message", "The shop opens.")
    session = open_session(f"sqlite:///{folder}/jobs.db", variables(folder))
    session.store.add_repository(REPO, repository)
    for work_item, (suite, state) in SUITES.items():
        entry = SuiteEntry(("sh", "-c", f"echo out; {suite}"))
        staging = session.staging(suites=one_suite(entry))
        job_id = staging_job(session, REPO, work_item)
        AttemptDriver(session, staging, job_id).drive()
        snapshot = session.rows.load(job_id).snapshot()
        assert snapshot is not None
        assert snapshot.state is state
    session.store.engine.dispose()


def variables(folder: Path) -> dict[str, str]:
    """Return the settings of the attempts."""
    own = {"state_dir": folder / "state", "infra_retries": 1, "retry_backoff_seconds": 0.01}
    return switched_on({"PATH": "/usr/bin:/bin"}, **own)


@contextmanager
def opened_archive(ran: Path, tmp_path: Path) -> Iterator[Archive]:
    """Yield an archive of what ran; altered files are as they were when it is closed."""
    kept = {path: path.read_bytes() for path in ran.rglob("*.md")}
    kept |= {path: path.read_bytes() for path in ran.rglob("output.log")}
    shutil.copy(ran / "jobs.db", tmp_path)
    session = open_session(f"sqlite:///{tmp_path}/jobs.db", variables(ran))
    yield Archive(tmp_path / "jobs.db", session)
    session.store.engine.dispose()
    for path in {*kept, *ran.rglob("*.md")} - kept.keys():
        path.unlink()
    for path, content in kept.items():
        path.unlink(missing_ok=True)
        path.write_bytes(content)


def jobs(archive: Archive) -> dict[State, int]:
    """Return the job of each end."""
    rows = archive.session.rows.attempts()
    return {snapshot.state: row.id for row in rows if (snapshot := row.snapshot())}

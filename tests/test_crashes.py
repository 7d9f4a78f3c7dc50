"""Real crashes: workers killed with SIGKILL, and what the next worker makes of it."""

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import attrs
import psutil
import pytest
import sqlalchemy as sa

from crashing_worker import CrashingWorker, suite, variables
from staging_fsm.core.plan import RUN_VARIABLE
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import State
from staging_fsm.effects.processes import identify, wait_for_end
from staging_fsm.faces.session import (
    AttemptDriver,
    Session,
    one_suite,
    open_session,
    staging_job,
)

STORIES = {
    "pass": (["sh", "-c", 'echo run >> "$COUNTER"'], State.ADVANCED),
    "tool-error": (["sh", "-c", 'echo run >> "$COUNTER"; exit 75'], State.FAILED_CLOSED),
}


@attrs.define
class Site:
    """A place where workers die: one database, one repository, one state folder."""

    folder: Path
    repository: Path
    session: Session
    repo: str
    database: str

    def job(self, work_item: str) -> int:
        """Return a new staging job."""
        return staging_job(self.session, self.repo, work_item)

    def worker(self, job_id: int, point: int, command: list[str]) -> CrashingWorker:
        """Start a worker that dies at a boundary."""
        state, counter = str(self.folder / "state"), str(self.counter(job_id))
        return CrashingWorker(self.database, state, job_id, point, command, counter)

    def counter(self, job_id: int) -> Path:
        """Return the file to which the suite adds a line each time it runs."""
        return self.folder / f"runs-of-{job_id}"

    def recover(self, job_id: int, command: list[str]) -> Snapshot:
        """Take the job up as the next worker would, and drive it to its end."""
        variables = {**self.session.variables, "COUNTER": str(self.counter(job_id))}
        session = attrs.evolve(self.session, variables=variables)
        staging = session.staging(suites=one_suite(suite(command)))
        staging.recover()
        AttemptDriver(session, staging, job_id).drive()
        snapshot = self.session.rows.load(job_id).snapshot()
        assert snapshot is not None
        return snapshot

    def check(self, job_id: int, snapshot: Snapshot, expected: set[State]) -> None:
        """Assert what must hold of every job whose worker was killed, wherever it was killed."""
        counter = self.counter(job_id)
        executed = len(counter.read_text().splitlines()) if counter.exists() else 0
        assert snapshot.state in expected
        assert executed <= len(snapshot.runs) <= snapshot.bound_plan.budget.runs_max
        assert list(self._alive(snapshot.attempt_id)) == []
        assert self._jobs_after(job_id) == 1
        worktrees = self.folder / "state" / "worktrees"
        assert not worktrees.exists() or list(worktrees.iterdir()) == []

    def _alive(self, attempt_id: str) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            try:
                run_id = process.environ().get(RUN_VARIABLE, "")
            except psutil.Error:
                continue
            if run_id.startswith(attempt_id + ".") and process.status() != psutil.STATUS_ZOMBIE:
                yield process

    def _jobs_after(self, job_id: int) -> int:
        """Return how many jobs followed: two would be a double advance."""
        statement = sa.text(
            "SELECT count(*) FROM jobs AS later JOIN jobs AS mine ON mine.id = :id"
            " WHERE later.work_item = mine.work_item AND later.id > mine.id"
        )
        with self.session.store.engine.connect() as connection:
            return int(connection.execute(statement, {"id": job_id}).scalar_one())


def open_site(folder: Path, repository: Path, database: str) -> Site:
    """Return a place where workers die, over a database."""
    session = open_session(database, variables(str(folder / "state")))
    repo = session.store.register(repository)
    return Site(folder, repository, session, repo, database)


@pytest.fixture
def site(tmp_path: Path, repository: Path) -> Site:
    """Return a place where workers die, over SQLite."""
    return open_site(tmp_path, repository, f"sqlite:///{tmp_path / 'orchestrator.db'}")


@pytest.fixture
def postgres_site(tmp_path: Path, repository: Path, postgres_url: str) -> Iterator[Site]:
    """Return a place where workers die, over PostgreSQL."""
    site = open_site(tmp_path, repository, postgres_url)
    yield site
    site.session.store.engine.dispose()


@pytest.mark.parametrize("story", sorted(STORIES))
def test_worker_killed_at_any_boundary_loses_nothing(site: Site, story: str) -> None:
    """Killed before or after any call to the world, a job still ends where it would have ended.

    Or, where the run itself was lost, in the end that its remaining budget allows. In the
    story with two runs a worker dies after each call, which is before the next one.
    """
    command, end = STORIES[story]
    whole = site.worker(site.job("whole"), 0, command)
    first, every = (1, 1) if story == "pass" else (2, 2)
    for point in range(first, whole.boundaries() + 1, every):
        job_id = site.job(f"killed-at-{point}")
        assert site.worker(job_id, point, command).end() == -signal.SIGKILL
        site.check(job_id, site.recover(job_id, command), {end})


def test_worker_killed_at_random_moments_loses_nothing(site: Site) -> None:
    """Killed at twenty random moments of a run, each job ends legally, once, with nothing left."""
    command = ["sh", "-c", 'echo run >> "$COUNTER"; (sleep 600 &); sleep 0.3']
    chance = random.Random(20)  # noqa: S311  # a seed, not a secret
    for number in range(20):
        job_id = site.job(f"random-{number}")
        worker = site.worker(job_id, 0, command)
        worker.process.join(chance.uniform(0.0, 1.0))
        worker.kill()
        site.check(job_id, site.recover(job_id, command), {State.ADVANCED})


def test_machine_that_loses_worker_and_supervisor_counts_the_run(site: Site) -> None:
    """Where the supervisor dies with its worker, the suite is reaped and the run is counted."""
    started = site.folder / "started"
    os.mkfifo(started)
    once = (
        f'if test -p {started}; then echo > {started}; exec sleep 600; fi; echo run >> "$COUNTER"'
    )
    command = ["sh", "-c", once]
    job_id = site.job("machine-lost")
    worker = site.worker(job_id, 0, command)
    # Read to its end: a suite that writes to nobody would die of it.
    started.read_text()
    started.unlink()
    worker.kill()
    snapshot = site.session.rows.load(job_id).snapshot()
    assert snapshot is not None
    shim = site.session.state.run(f"{snapshot.attempt_id}.1") / "shim"
    supervisor = identify(int(shim.read_text().splitlines()[0].removeprefix("pid=")))
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    # Killed is not yet gone: while it dies it still holds the run, which then would be adopted.
    assert wait_for_end(supervisor, 60)
    ended = site.recover(job_id, command)

    site.check(job_id, ended, {State.ADVANCED})
    assert [move.id for move in ended.history] == ["T01", "T06", "T07", "T09", "T03", "T11"]


def test_two_workers_that_recover_at_once_advance_once(site: Site) -> None:
    """Two processes that find the same lost attempt end it once."""
    command, _ = STORIES["pass"]
    for point in (6, 10, 14):
        job_id = site.job(f"contested-{point}")
        assert site.worker(job_id, point, command).end() == -signal.SIGKILL
        recoverers = [site.worker(job_id, 0, command) for _ in range(3)]
        assert [recoverer.end() for recoverer in recoverers] == [0, 0, 0]
        site.check(job_id, site.recover(job_id, command), {State.ADVANCED})


def test_worker_killed_over_postgresql_loses_nothing(postgres_site: Site) -> None:
    """Over PostgreSQL, too, a killed worker's job ends once, though two recover it at once."""
    command, end = STORIES["pass"]
    for point in (5, 11):
        job_id = postgres_site.job(f"killed-at-{point}")
        assert postgres_site.worker(job_id, point, command).end() == -signal.SIGKILL
        recoverers = [postgres_site.worker(job_id, 0, command) for _ in range(2)]
        assert [recoverer.end() for recoverer in recoverers] == [0, 0]
        postgres_site.check(job_id, postgres_site.recover(job_id, command), {end})

"""PostgreSQL that goes away, restarts, or refuses: nothing is lost, and nothing happens twice."""

import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import sqlalchemy as sa

import postgres
from conftest import NO_POSTGRESQL
from crashing_worker import suite, variables
from cutting_proxy import Cut, CuttingProxy
from staging_fsm.core.jobs import JobRow
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import State
from staging_fsm.drive.rulings import Decision, Ruling
from staging_fsm.faces.session import (
    AttemptDriver,
    Session,
    one_suite,
    open_session,
    staging_job,
)
from staging_fsm.host.database import SERVER_KEEPALIVE, open_database
from staging_fsm.host.store import SqlHostStore

PASSING: Final = ["true"]
TOOL_ERROR: Final = ["sh", "-c", "exit 75"]
#: More than an attempt of any of these stories commits.
COMMITS_MAX: Final = 12
DEADLINE_SECONDS: Final = 60


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    """Return a server that these tests may stop and crash."""
    if postgres.binaries() is None:
        pytest.skip(NO_POSTGRESQL)
    with postgres.own_server() as own:
        own.start()
        yield own


@attrs.frozen
class RunInHand:
    """A suite that runs until it is let go."""

    command: list[str]
    go_on: Path
    launched: Future[Decision]

    def end(self) -> Decision:
        """Let the suite pass, and return what its launch came to."""
        self.go_on.write_text("")
        return self.launched.result(DEADLINE_SECONDS)


@attrs.define
class Site:
    """One job on a server that will fail, and the way to drive it."""

    url: str
    folder: Path
    repository: Path
    job_id: int = 0

    def session(self, url: str | None = None) -> Session:
        """Return the orchestrator as a worker that has just started sees it."""
        return open_session(url or self.url, variables(str(self.folder / "state")))

    def claimed(self) -> int:
        """Queue a job and claim it."""
        session = self.session()
        repo = session.store.register(self.repository)
        self.job_id = staging_job(session, repo, "WI-1")
        session.store.claim_next(session.clock.now(), session.worker, self.job_id)
        session.store.engine.dispose()
        return self.job_id

    def launch(self, session: Session, command: list[str], **replaced: Any) -> Decision:
        """Launch the job once."""
        staging = session.staging(suites=one_suite(suite(command)))
        for name, part in replaced.items():
            setattr(staging.runner.engine, name, part)
        staging.rows = staging.runner.engine.rows
        return staging.launch(self.job_id)

    @contextmanager
    def running(self) -> Iterator["RunInHand"]:
        """Yield a launch whose suite has begun, and passes as soon as it is let go."""
        started, go_on = self.folder / "started", self.folder / "go-on"
        for fifo in (started, go_on):
            os.mkfifo(fifo)
        # Run again after its pipe was taken away, it passes at once.
        command = ["sh", "-c", f"test -p {go_on} || exit 0; echo > {started}; cat {go_on}"]
        self.claimed()
        session = self.session()
        with ThreadPoolExecutor(1) as pool:
            launched = pool.submit(self.launch, session, command)
            started.read_text()
            yield RunInHand(command, go_on, launched)
        session.store.engine.dispose()

    def end(self, command: list[str]) -> Snapshot:
        """Take the job up as the next worker would, drive it to its end, and count what moved."""
        session = self.session()
        staging = session.staging(suites=one_suite(suite(command)))
        staging.recover()
        driver = AttemptDriver(session, staging, self.job_id)
        decision = driver.drive()
        snapshot = session.rows.load(self.job_id).snapshot()
        with session.store.engine.connect() as connection:
            jobs = connection.execute(sa.text("SELECT count(*) FROM jobs")).scalar_one()
        session.store.engine.dispose()
        assert decision is None
        assert snapshot is not None
        assert jobs == 2, "one move, one next job"
        assert snapshot.version == len(snapshot.history)
        return snapshot


@pytest.fixture
def site(server: postgres.Server, tmp_path: Path, repository: Path) -> Iterator[Site]:
    """Return an empty orchestrator on the server."""
    with postgres.new_schema(server.url) as url:
        yield Site(url, tmp_path, repository)


def through(url: str, folder: str) -> str:
    """Return the same address by way of a proxy in `folder`."""
    address = sa.make_url(url).update_query_dict({"host": folder})
    return address.render_as_string(hide_password=False)


@pytest.mark.parametrize(
    ("cut", "command", "end"),
    [
        (Cut.BEFORE, PASSING, State.ADVANCED),
        (Cut.AFTER, PASSING, State.ADVANCED),
        (Cut.AFTER, TOOL_ERROR, State.FAILED_CLOSED),
    ],
)
def test_connection_lost_at_any_commit_loses_nothing(
    server: postgres.Server,
    tmp_path: Path,
    repository: Path,
    cut: Cut,
    command: list[str],
    end: State,
) -> None:
    """Whichever commit is cut, before or after it was done, the job ends where it would have."""
    cuts = 0
    for commit in range(1, COMMITS_MAX):
        with (
            postgres.new_schema(server.url) as url,
            tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as folder,
        ):
            site = Site(url, tmp_path / str(commit), repository)
            site.claimed()
            proxy = CuttingProxy(Path(folder), server.folder, cut)
            session = site.session(through(url, folder))
            proxy.arm(commit)
            decision = site.launch(session, command)
            session.store.engine.dispose()
            proxy.close()
            if decision.ruling is Ruling.DECLINED:
                # An agent has it: nobody may find it as if nothing had been said.
                looking = site.session()
                snapshot = looking.rows.load(site.job_id).snapshot()
                looking.store.engine.dispose()
                assert snapshot is not None
                assert snapshot.state is State.LLM_FALLBACK
            else:
                assert site.end(command).state is end
        if not proxy.was_cut:
            break
        cuts += 1

    assert 3 <= cuts < COMMITS_MAX - 1


def test_server_that_restarts_during_a_run_is_found_again(
    server: postgres.Server, site: Site
) -> None:
    """A server that crashed and recovered while the suite ran is written to as if nothing was."""
    with site.running() as run:
        server.crash()
        server.start()
        decision = run.end()

    assert decision.ruling is Ruling.TAKEN
    assert [move.id for move in site.end(run.command).history] == ["T01", "T03", "T11"]


def test_server_that_is_away_when_the_suite_ends_loses_no_verdict(
    server: postgres.Server, site: Site
) -> None:
    """A verdict that cannot be stored is held, and recovery takes the run up from its result."""
    with site.running() as run:
        server.stop()
        decision = run.end()
        server.start()

    assert decision.ruling is Ruling.HELD
    run.go_on.unlink()
    ended = site.end(run.command)
    assert (ended.state, ended.history[1].id) == (State.ADVANCED, "T18")


def test_connection_that_falls_silent_is_given_up_by_both_sides() -> None:
    """Whoever is cut off without a word holds no lock for hours: kernel and server look for it."""
    with postgres.own_server() as own, socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
        found.close()
        own.start(listen_addresses="127.0.0.1", port=str(port))
        engine = open_database(
            f"postgresql://postgres@127.0.0.1:{port}/postgres?keepalives_count=4"
        )
        # The second use finds the settings of the first, whose transaction was undone.
        for _ in range(2):
            with engine.connect() as connection:
                names = ", ".join(f"current_setting('{name}')" for name in SERVER_KEEPALIVE)
                kept = connection.execute(sa.text(f"SELECT {names}")).one()  # names of ours
                descriptor = connection.connection.driver_connection.fileno()  # type: ignore[union-attr]  # psycopg's own
                with socket.socket(fileno=os.dup(descriptor)) as ours:
                    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
                    looks = [ours.getsockopt(socket.IPPROTO_TCP, option) for option in options]
        engine.dispose()

    assert kept == ("20", "5", "5", "45000", "1min")
    assert looks == [5, 2, 4], "what an address says goes before"


def test_process_that_freezes_inside_a_transaction_lets_go(
    server: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a silent session has locked is free for others after a while, unwritten."""
    monkeypatch.setitem(SERVER_KEEPALIVE, "idle_in_transaction_session_timeout", 500)
    with postgres.new_schema(server.url) as url:
        frozen, other = open_database(url), open_database(url)
        with other.begin() as connection:
            connection.execute(sa.text("CREATE TABLE papers (word TEXT)"))
            connection.execute(sa.text("INSERT INTO papers VALUES ('as it was')"))
        with pytest.raises(sa.exc.DBAPIError):
            write_around(frozen, other)
        with other.connect() as connection:
            words = connection.execute(sa.text("SELECT word FROM papers")).scalars().all()
            assert words == ["as it was, for others"]
        for engine in (frozen, other):
            engine.dispose()


def write_around(frozen: sa.Engine, other: sa.Engine) -> None:
    """Write what `frozen` has written to, and not committed, by `other`."""
    with frozen.begin() as connection:
        connection.execute(sa.text("UPDATE papers SET word = 'frozen'"))
        with other.begin() as theirs:
            theirs.execute(sa.text("UPDATE papers SET word = word || ', for others'"))


def test_backend_that_is_terminated_inside_the_gate_moves_nothing(site: Site) -> None:
    """A gate whose connection is killed after it moved the work item has moved nothing."""
    site.claimed()
    session = site.session()
    gate = session.staging().runner.engine.gate

    def killed(row: JobRow, tx: Any) -> bool:
        gate(row, tx)
        pid = tx.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        with session.store.engine.connect() as other:
            other.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        return True

    decision = site.launch(session, PASSING, gate=killed)

    session.store.engine.dispose()
    assert decision.ruling is Ruling.HELD
    assert [move.id for move in site.end(PASSING).history] == ["T01", "T03", "T11"]


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_serialization_failure_in_the_gate_moves_nothing(site: Site, isolation: Any) -> None:
    """A host that writes the row while its own gate runs at a strict isolation loses no move."""
    site.claimed()
    session = site.session()
    plain = session.store.engine
    session.store.engine = plain.execution_options(isolation_level=isolation)
    gate = session.staging().runner.engine.gate
    store = SqlHostStore(plain)

    def contested(row: JobRow, tx: Any) -> bool:
        tx.execute(sa.text("SELECT count(*) FROM jobs")).scalar_one()
        store.record(row.id, "note", "written meanwhile")
        return bool(gate(row, tx))

    decision = site.launch(session, PASSING, gate=contested)

    plain.dispose()
    assert decision.ruling is Ruling.HELD
    assert site.end(PASSING).state is State.ADVANCED


def test_threads_at_once_run_each_job_once(site: Site) -> None:
    """Threads that claim at the same time run each suite once, and move each work item once."""
    jobs, workers = 6, 3
    counter = site.folder / "runs"
    command = ["sh", "-c", f"echo run >> {counter}"]
    session = site.session()
    staging = session.staging(suites=one_suite(suite(command)))
    repo = session.store.register(site.repository)
    ours = {staging_job(session, repo, f"WI-{number}") for number in range(jobs)}
    together = threading.Barrier(workers)

    def work() -> None:
        together.wait()
        while (job := session.store.claim_next(session.clock.now(), session.worker)) is not None:
            if job.id in ours:
                staging.launch(job.id, job.metadata)

    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(work) for _ in range(workers)]:
            done.result()

    found = [row.snapshot() for row in session.rows.attempts()]
    session.store.engine.dispose()
    assert [attempt and attempt.state for attempt in found] == [State.ADVANCED] * jobs
    assert counter.read_text().count("run") == jobs

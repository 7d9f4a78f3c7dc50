"""The command line's own orchestrator: its database, and the drive of one job to its end."""

import contextlib
import functools
import os
import signal
import sqlite3
import subprocess
import threading
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import attrs
import pytest
import sqlalchemy as sa

from crashing_worker import TOOL_EXIT_CODE, suite, variables
from desk import LosesTheAnswer
from staging_fsm.core.errors import RefusedError, RunRefusedError
from staging_fsm.core.jobs import QUEUED, JobRow
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import State
from staging_fsm.drive.rulings import Decision, Ruling
from staging_fsm.effects.processes import ProcessIdentity, this_process
from staging_fsm.effects.rows import SqlRows
from staging_fsm.faces.session import (
    LOOK_AGAIN_SECONDS,
    AttemptDriver,
    Session,
    name_problem,
    one_suite,
    open_session,
    staging_job,
    work_item_problem,
)
from staging_fsm.host import database, launcher
from staging_fsm.host.database import open_database
from staging_fsm.host.store import SqlHostStore

DEAD = attrs.evolve(this_process(), start=this_process().start + 1)
ELSEWHERE = ProcessIdentity("elsewhere:boot:namespace", 1, 1)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Return a session of the command line over a database of its own."""
    return open_session(None, variables(str(tmp_path / "state")))


@pytest.mark.parametrize(
    "name",
    [
        *("WI-1", "a", "1.2.3", "WI.1", "a.lock.b", "a.LOCK", "lock", "alock", "A_-.b", "a" * 100),
        *("WI..1", "a...b", "WI.", "a.lock", "a..lock", "a.lock.lock"),
    ],
)
def test_work_item_is_called_what_git_takes_in_a_tag(name: str) -> None:
    """A name is refused for a work item exactly where its deployment could not be tagged."""
    asked = ["git", "check-ref-format", f"refs/tags/deployed/{name}"]
    is_taken = subprocess.run(asked, check=False).returncode == 0

    assert name_problem(name) is None
    assert (work_item_problem(name) is None) is is_taken


@pytest.mark.parametrize("name", [".a", "-a", "a/b", "a b", "a\n", "é"])
def test_name_that_may_lead_elsewhere_is_refused(name: str) -> None:
    """A name that is no plain name of a folder is refused for repositories and work items alike."""
    assert name_problem(name) == work_item_problem(name)
    assert "must be letters, digits, dots, dashes and underscores" in str(name_problem(name))


def test_name_that_is_too_long_is_told_its_limit() -> None:
    """A name of more than 100 characters is refused for its length, whatever they are."""
    for name in ("a" * 101, "é" * 101):
        assert name_problem(name) == work_item_problem(name)
        assert "has 101 characters, and at most 100 are allowed" in str(name_problem(name))


def test_name_that_is_empty_is_no_name() -> None:
    """An empty name is refused for repositories and work items alike, and said to be empty."""
    assert name_problem("") == work_item_problem("")
    assert "it is empty" in str(name_problem(""))


@pytest.mark.parametrize(
    ("claimant", "waits"),
    [(str(DEAD), False), (str(ELSEWHERE), True), ("w", True), ("", True)],
    ids=["dead", "elsewhere", "unreadable", "nobody"],
)
def test_claimed_job_is_taken_from_a_dead_worker_only(
    session: Session, repository: Path, claimant: str, *, waits: bool
) -> None:
    """A claimed job without an attempt is waited for, unless its worker is known to be dead."""
    job_id = staging_job(session, session.store.register(repository), "WI-1")
    session.store.claim_next(session.clock.now(), claimant, job_id)
    staging = session.staging(suites=one_suite(suite(["true"])))
    held: list[str] = []

    def give_back(_row: JobRow, snapshot: Snapshot | None) -> None:
        """Have the claimant give the job back where it still has it."""
        job = session.store.job(job_id)
        if snapshot is None and job.status == "running":
            held.append(job.claimed_by or "")
            session.store.requeue_abandoned(job, session.clock.now())

    decision = AttemptDriver(session, staging, job_id, give_back).drive()
    ended = session.rows.load(job_id).snapshot()

    assert decision is None
    assert ended is not None
    assert (ended.state, held) == (State.ADVANCED, [claimant] * waits)


@pytest.mark.parametrize("ends", [True, False], ids=["killed", "stays"])
def test_agent_of_a_dead_worker_is_ended_before_a_run(
    session: Session, repository: Path, monkeypatch: pytest.MonkeyPatch, *, ends: bool
) -> None:
    """Where a dead worker's agent is alive, it is ended before a suite is started, or none is."""
    job_id = staging_job(session, session.store.register(repository), "WI-1")
    session.store.claim_next(session.clock.now(), str(DEAD), job_id)
    if not ends:
        monkeypatch.setattr(launcher, "kill_marked", lambda *_: 1)
    staging = session.staging(suites=one_suite(suite(["true"])))
    mark = {launcher.CLAIM_MARK: f"{DEAD}/{job_id}"}
    with subprocess.Popen(["sleep", "600"], env={**os.environ, **mark}) as agent:
        refused = contextlib.nullcontext() if ends else pytest.raises(RunRefusedError)
        try:
            with refused:
                AttemptDriver(session, staging, job_id).drive()
            how = agent.wait(60) if ends else agent.poll()
        finally:
            agent.kill()
    ended = session.rows.load(job_id).snapshot()

    assert how == (-signal.SIGKILL if ends else None)
    assert (ended is not None) is ends
    assert (session.store.job(job_id).claimed_by == str(DEAD)) is not ends


@pytest.mark.parametrize("how", ["done", "cancelled"])
def test_job_that_an_agent_has_ended_is_not_waited_for(
    session: Session, repository: Path, how: str
) -> None:
    """Who waits for a job that ends without an attempt is told so, and does not wait for ever."""
    job_id = staging_job(session, session.store.register(repository), "WI-1")
    assert session.store.claim_next(session.clock.now(), str(ELSEWHERE), job_id) is not None

    def end(*_: object) -> None:
        with session.store.transaction() as tx:
            words = sa.text("UPDATE jobs SET status = :how WHERE id = :id")
            tx.execute(words, {"how": how, "id": job_id})

    driver = AttemptDriver(session, session.staging(), job_id, waiting=end)

    with pytest.raises(RefusedError, match=f"job {job_id} is {how} without an attempt"):
        driver.drive()


def test_attempt_that_another_began_and_put_off_is_not_taken_for_ours(
    session: Session, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is overtaken by a whole run, up to its deferral, looks at whose it is before the next."""
    job_id = staging_job(session, session.store.register(repository), "WI-1")
    claim_next = SqlHostStore.claim_next
    theirs = session.staging(suites=one_suite(suite(["sh", "-c", f"exit {TOOL_EXIT_CODE}"])))

    def late(store: SqlHostStore, now: datetime, claimed_by: str, only: int | None) -> Any:
        monkeypatch.undo()
        claim_next(store, now, claimed_by, only)
        theirs.launch(only)
        return claim_next(store, now + timedelta(hours=1), claimed_by, only)

    def refuse(_snapshot: Snapshot) -> None:
        raise RefusedError

    monkeypatch.setattr(SqlHostStore, "claim_next", late)
    ours = session.staging(suites=one_suite(suite(["true"])))
    with pytest.raises(RefusedError):
        AttemptDriver(session, ours, job_id, accept=refuse).drive()
    row = session.rows.load(job_id)
    left = row.snapshot()

    assert left is not None
    assert (row.status, left.state, len(left.runs)) == (QUEUED, State.DEFERRED, 1)


def test_cancellation_that_comes_too_late_lets_the_drive_wait_as_before(
    session: Session, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a drive whose attempt was cancelled need not wait any more: any other would spin."""
    repo = session.store.register(repository)
    staging = session.staging(suites=one_suite(suite(["true"])))
    judged, queued = (
        AttemptDriver(session, staging, staging_job(session, repo, name)) for name in "AB"
    )
    judged.drive()
    woken: list[str] = []
    for driver, name in ((judged, "judged"), (queued, "queued")):
        monkeypatch.setattr(session.clock, "wake", functools.partial(woken.append, name))
        driver.cancel()

    assert woken == ["queued"]


def test_what_cannot_be_cancelled_from_here_is_waited_for_no_more(
    session: Session, repository: Path
) -> None:
    """Whoever interrupts a wait for another machine's suite is told why it goes on, and is free."""
    job_id = staging_job(session, session.store.register(repository), "WI-1")
    row = session.rows.load(job_id)
    theirs = session.staging(suites=one_suite(suite(["true"]))).runner
    theirs.engine.worker = str(ELSEWHERE)
    theirs.engine.rows = LosesTheAnswer(theirs.engine.rows, "save", OSError("boom"))
    session.store.claim_next(session.clock.now(), str(ELSEWHERE), job_id)
    theirs.launch(row)
    staging = session.staging(suites=one_suite(suite(["true"])))
    threads: list[threading.Thread] = []

    def interrupt(*_: object) -> None:
        assert not threads, "it waits on"
        threads.append(threading.Thread(target=driver.cancel))
        threads[0].start()
        threads[0].join()

    driver = AttemptDriver(session, staging, job_id, interrupt)

    with pytest.raises(RefusedError, match="cancel it there"):
        driver.drive()


def test_interrupted_drive_leaves_a_job_to_the_agent_that_has_it(
    session: Session, repository: Path
) -> None:
    """Who interrupts a wait for another's job is told who is at it, and waits no more."""
    job_id = staging_job(session, session.store.register(repository), "WI-1")
    session.store.claim_next(session.clock.now(), "elsewhere:boot:1/4711/1", job_id)
    before = session.store.job(job_id)
    driver = AttemptDriver(session, session.staging(), job_id)
    driver.waiting = lambda _row, _snapshot: driver.cancel()

    with pytest.raises(RefusedError, match="is running without an attempt"):
        driver.drive()
    assert session.store.job(job_id) == before


def test_interrupted_drive_cancels_what_it_has_claimed_itself(
    session: Session, repository: Path
) -> None:
    """Who interrupts a drive before its first run has begun has the job cancelled, and no run."""
    job_id = staging_job(session, session.store.register(repository), "WI-1")
    session.store.claim_next(session.clock.now(), session.worker, job_id)
    driver = AttemptDriver(session, session.staging(), job_id)
    driver.cancel()

    assert driver.drive() is None
    assert session.rows.load(job_id).status == "cancelled"


def test_address_of_the_option_goes_before_that_of_the_environment(tmp_path: Path) -> None:
    """A database that is named on the command line is the one that is opened."""
    said, meant = (f"sqlite:///{tmp_path}/{name}.db" for name in ("said", "meant"))
    told = variables(str(tmp_path / "state")) | {"ORCH_DB_URL": said}

    assert str(open_session(meant, told).store.engine.url) == meant
    assert str(open_session(None, told).store.engine.url) == said


@pytest.mark.parametrize("name", ["team%2Fshop", "100%", "what?one", "a#b", "a b", "é", "a:b@c"])
def test_database_lies_in_the_state_folder_whatever_that_is_called(
    tmp_path: Path, name: str
) -> None:
    """The embedded database is in its own state folder, and no other folder has it too."""
    root = tmp_path / name
    opened = open_session(None, variables(str(root)))

    assert [*tmp_path.rglob("*.db")] == [root / "orchestrator.db"]
    assert [*tmp_path.iterdir()] == [root]
    again = open_session(None, variables(str(root)), create=False, only_to_look=True)
    assert again.store.engine.url == opened.store.engine.url


def test_database_that_is_to_be_read_has_to_be_there(tmp_path: Path) -> None:
    """Whoever named it, an address of nothing is refused where something is to be seen."""
    url = f"sqlite:///{tmp_path}/mistyped.db"
    told = variables(str(tmp_path / "state"))
    for option, environment in ((url, {}), (None, {"ORCH_DB_URL": url})):
        with pytest.raises(RefusedError, match="there is no database at"):
            open_session(option, told | environment, create=False)

    assert not (tmp_path / "mistyped.db").exists()


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_who_only_looks_waits_for_no_writer(
    session: Session, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """While somebody writes, for as long as he likes, the jobs can be looked at."""
    monkeypatch.setattr(database, "BUSY_TIMEOUT_SECONDS", 0)
    monkeypatch.setattr(database, "SWITCH_TIMEOUT_SECONDS", 0)
    session.store.engine.dispose()
    with contextlib.closing(sqlite3.connect(session.state.database)) as writer:
        writer.execute(f"PRAGMA journal_mode = {mode}")
        writer.execute("BEGIN IMMEDIATE")
        for create in (True, False):
            looking = open_session(None, session.variables, create=create, only_to_look=True)
            assert looking.rows.unfinished() == []
            looking.store.engine.dispose()

        [[found]] = writer.execute("PRAGMA journal_mode")
    assert found == mode.lower()


@pytest.mark.parametrize("name", ["o.db", "a b.db", "100%25#1.db", "why?.db"])
@pytest.mark.parametrize("as_uri", [False, True], ids=["path", "uri"])
def test_who_only_looks_makes_no_database_where_one_went_away(
    tmp_path: Path, name: str, *, as_uri: bool
) -> None:
    """A file that is removed under who only looks stays away, whatever it is called."""
    file = tmp_path / name
    database = quote(f"file:{file}", safe="/:") if as_uri else str(file)
    url = sa.URL.create("sqlite", database=database, query={"uri": "true"} if as_uri else {})
    made = SqlHostStore(open_database(url))
    made.create_schema()
    made.engine.dispose()
    rows = SqlRows(open_database(url, only_to_look=True))
    assert rows.unfinished() == []
    file.rename(tmp_path / "away")
    for _ in range(2):
        with pytest.raises(sa.exc.OperationalError):
            rows.unfinished()
    assert not file.exists()
    (tmp_path / "away").rename(file)

    assert rows.unfinished() == []


def test_looking_at_a_database_in_memory_needs_no_file() -> None:
    """A database in memory, which is none of files, can be looked at as it could be written."""
    for address in ("", "/:memory:", "/file::memory:?uri=true"):
        engine = open_database(f"sqlite://{address}", only_to_look=True)
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE seen (what)")
            assert sa.inspect(connection).has_table("seen")
        engine.dispose()


def test_new_work_item_has_as_many_retries_as_are_set(tmp_path: Path, repository: Path) -> None:
    """How often a work item may go back to development is what the host's setting says."""
    told = variables(str(tmp_path / "state")) | {"ORCH_DEVELOPER_RETRIES": "7"}
    session = open_session(None, told)
    repo = session.store.register(repository)
    staging_job(session, repo, "WI-1")
    item = session.store.find_work_item(repo, "WI-1")

    assert item is not None
    assert item.developer_retries == 7


def test_launch_that_is_held_is_the_answer(
    session: Session, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt that cannot be driven on is not asked for again and again: its drive says why."""
    job_id = staging_job(session, session.store.register(repository), "WI-1")
    session.store.claim_next(session.clock.now(), session.worker, job_id)
    staging = session.staging(suites=one_suite(suite(["true"])))
    driver = AttemptDriver(session, staging, job_id)
    held = Decision(Ruling.HELD, "the store is away")
    driver.staging = SimpleNamespace(launch=lambda _job_id: held)  # type: ignore[assignment]  # one method is all that is asked of it

    monkeypatch.setattr(session.clock, "wait", lambda _seconds: pytest.fail("it waits"))

    assert driver.drive() is held


@pytest.mark.parametrize(("due", "most"), [(900.0, LOOK_AGAIN_SECONDS), (-5.0, 0.001), (0.1, 0.2)])
def test_waiting_drive_looks_again_before_its_time(
    session: Session, repository: Path, due: float, most: float
) -> None:
    """However far off the next run is, what becomes of the attempt elsewhere is seen soon."""
    job_id = staging_job(session, session.store.register(repository), "WI-1")
    driver = AttemptDriver(session, session.staging(), job_id)
    later = session.clock.now() + timedelta(seconds=due)
    row = attrs.evolve(session.rows.load(job_id), not_before=later)

    assert 0 < driver._seconds_to_wait(row) <= most


def test_signal_is_not_answered_in_its_handler(
    session: Session, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is interrupted may have the database in hand: it is cancelled by another thread."""
    job_id = staging_job(session, session.store.register(repository), "WI-1")
    driver = AttemptDriver(session, session.staging(), job_id)
    by: list[threading.Thread] = []
    done = threading.Event()

    def cancel(_driver: AttemptDriver) -> None:
        by.append(threading.current_thread())
        done.set()

    monkeypatch.setattr(AttemptDriver, "cancel", cancel)
    for number in (signal.SIGINT, signal.SIGTERM):
        done.clear()
        with driver.cancelled_by_signals():
            os.kill(os.getpid(), number)
            assert done.wait(60)

    assert threading.main_thread() not in by
    assert len(by) == 2

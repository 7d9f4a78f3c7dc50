"""The embedded orchestrator of the command line: its database, its host, one attempt at a time."""

import os
import re
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from staging_fsm.core.config import RunnerConfig, variable_name
from staging_fsm.core.errors import (
    ConfigInvalidError,
    JobNotFoundError,
    NoDatabaseError,
    RefusedError,
    RunRefusedError,
)
from staging_fsm.core.jobs import QUEUED, RUNNING, STAGE, JobRow, Place
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import ENDED_BY_GATE, State
from staging_fsm.core.suites import SuiteEntry, SuitesConfig
from staging_fsm.drive.cancelling import cancel_in_the_end
from staging_fsm.drive.intercept import StagingIntercept
from staging_fsm.drive.recovery import put_back, worker_is_alive
from staging_fsm.drive.rulings import Decision, Ruling
from staging_fsm.effects.clock import SystemClock
from staging_fsm.effects.processes import this_process
from staging_fsm.effects.rows import SqlRows
from staging_fsm.effects.state_dir import StateDir, refuse_unknown_home, state_dir
from staging_fsm.effects.worker_lock import WorkerLock
from staging_fsm.faces.extras import require_extra
from staging_fsm.faces.output import log_of
from staging_fsm.faces.views import attempt_view
from staging_fsm.host.contract.stages import STAGE_AGENTS
from staging_fsm.host.database import file_of, open_database
from staging_fsm.host.launcher import Host, end_agent_of_dead, staging_intercept
from staging_fsm.host.settings import HostSettings, load_host_settings
from staging_fsm.host.store import Job, SqlHostStore, WorkItem

NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NAME_CHARACTERS_MAX: Final = 100
LOOK_AGAIN_SECONDS: Final = 0.5


@attrs.define
class Session:
    """One process at the embedded orchestrator."""

    variables: Mapping[str, str]
    state: StateDir
    store: SqlHostStore
    rows: SqlRows
    settings: HostSettings
    clock: SystemClock
    worker: str
    _lock: WorkerLock

    def host(self, staging: StagingIntercept | None) -> Host:
        """Return the host around an intercept."""
        inherited = self._lock.descriptors
        return Host(self.store, self.settings, self.clock, staging, inherited=inherited)

    def staging(self, **replaced: Any) -> StagingIntercept:
        """Return the intercept of this orchestrator: from now on it may claim jobs."""
        self._lock.take()
        return staging_intercept(self.store, self.clock, self.variables, **replaced)

    def check_database(self) -> None:
        """Look whether work could begin here, changing nothing.

        Raises RefusedError where a table or a column is missing, or nothing can be written.
        """
        with _reaching(self.store.engine.url):
            self.store.check_schema()
            self.store.check_writable()

    def liveness(self, worker: str) -> bool | None:
        """Say whether a worker lives; None where that cannot be known here."""
        return worker_is_alive(worker, self.state)

    def view(self, row: JobRow, snapshot: Snapshot) -> dict[str, Any]:
        """Return what the faces say about the attempt in a row."""
        return attempt_view(
            row,
            snapshot,
            self.next_stage(row),
            lambda run: log_of(snapshot, run, self.variables),
        )

    def next_stage(self, row: JobRow) -> str | None:
        """Return the stage at which the job's work item is now."""
        item = self.store.find_work_item(row.repo, row.work_item)
        return None if item is None else item.stage


def address_of(file: Path) -> sa.URL:
    """Return the address of a database that is a file, whatever the file is called."""
    # As a text with % or ? in it, it would be read as that of another file.
    return sa.URL.create("sqlite", database=str(file))


def open_session(
    db_url: str | sa.URL | None,
    variables: Mapping[str, str] | None = None,
    *,
    create: bool = True,
    only_to_look: bool = False,
) -> Session:
    """Open the orchestrator's database, with `create` making its tables where they are missing.

    Raises ConfigInvalidError for settings that cannot be used, the address among them, and
    RefusedError where the state folder cannot be made, the database cannot be reached, no
    driver for it is installed, or, without `create`, there is none: a mistyped address is
    no orchestrator without jobs. That is a NoDatabaseError where nothing at all is there.
    Who may create them has a table or a column that is missing refused as well.
    `only_to_look` is for who writes nothing.
    """
    variables = os.environ if variables is None else variables
    refuse_unknown_home(variables)
    state = _state_folder(variables)
    settings = load_host_settings(variables)
    url = db_url or settings.db_url or address_of(state.database)
    store = SqlHostStore(_database(url, only_to_look=only_to_look))
    _look_for_tables(store, create=create, only_to_look=only_to_look)
    return Session(
        variables=variables,
        state=state,
        store=store,
        rows=SqlRows(store.engine),
        settings=settings,
        clock=SystemClock(),
        worker=str(this_process()),
        lock=WorkerLock(state),
    )


def _state_folder(variables: Mapping[str, str]) -> StateDir:
    """Return the state folder, made where it was not there; refuse one that cannot be made."""
    state = StateDir(state_dir(variables))
    try:
        state.ensure()
    except OSError as error:
        message = (
            f"the state folder {state.root} cannot be made: {error.strerror}. Set"
            f" {variable_name('state_dir')} to a folder that can be, or remove what is in its way"
        )
        raise RefusedError(message) from error
    return state


def _look_for_tables(store: SqlHostStore, *, create: bool, only_to_look: bool) -> None:
    """Refuse a database that is none, or lacks tables, which `create` makes before."""
    address = store.engine.url
    file = file_of(address)
    if address.get_backend_name() == "sqlite" and file in (None, "", ":memory:"):
        problem = (
            f"{address} is a database in memory, which ends with its process: name a file, as in"
            " sqlite:////folder/file.db"
        )
        raise ConfigInvalidError([problem])
    if not create and file and not Path(file).exists():
        message = f"there is no database at {file}"
        raise NoDatabaseError(message)
    with _reaching(address):
        if create and only_to_look and file and not Path(file).exists():
            # Who only looks makes no file, also where that may be made.
            maker = SqlHostStore(open_database(address))
            maker.create_schema()
            maker.engine.dispose()
        if create:
            store.create_schema()
            if not only_to_look:
                store.check_schema()
        elif not store.has_schema():
            if store.is_empty():
                message = f"the database {address.database} is empty"
                raise NoDatabaseError(message)
            message = f"the database {address.database} has no table 'jobs': it is another one"
            raise RefusedError(message)


@contextmanager
def _reaching(address: sa.URL) -> Iterator[None]:
    """Turn what a database answers that cannot be used into RefusedError."""
    try:
        yield
    except sa.exc.DatabaseError as error:
        file = file_of(address)
        named = f"the database {file}" if file else "the database"
        message = f"{named} cannot be reached: {str(error.orig).strip()}"
        raise RefusedError(message) from error


def _database(url: str | sa.URL, *, only_to_look: bool) -> Engine:
    if str(url).startswith("postgresql"):
        require_extra("postgres")
    try:
        return open_database(url, only_to_look=only_to_look)
    except (sa.exc.ArgumentError, ValueError, ImportError) as error:
        # Not what it is: there may be a password in it.
        problem = (
            "ORCH_DB_URL, or the option in its place, is no address of a database:"
            " sqlite:////folder/file.db and postgresql://user@host/name are some"
        )
        raise ConfigInvalidError([problem]) from error


def stored_attempt(session: Session, job_id: int | str) -> tuple[JobRow, Snapshot]:
    """Return a job and its attempt; raises JobNotFoundError if the runner never had it."""
    row = session.rows.load(job_id)
    snapshot = row.snapshot()
    if snapshot is None:
        message = f"job {job_id} has no staging attempt: the runner never had it"
        raise JobNotFoundError(message)
    return row, snapshot


def staging_job(session: Session, repo: str, work_item: str) -> int:
    """Return the unfinished staging job of a work item, or a new one."""
    item = WorkItem(repo, work_item, STAGE, session.settings.developer_retries, None)
    return session.store.job_at(item, STAGE_AGENTS[STAGE], session.clock.now())


def name_problem(name: str) -> str | None:
    """Return why neither a repository nor a work item can be called `name`, or None."""
    if not name:
        return "it is empty: if a variable was to name it, that one is not set"
    if len(name) > NAME_CHARACTERS_MAX:
        limit = f"{len(name)} characters, and at most {NAME_CHARACTERS_MAX} are allowed"
        return f"the name that begins with {name[:20]!r} has {limit}"
    if NAME_PATTERN.fullmatch(name):
        return None
    return (
        f"{name!r} must be letters, digits, dots, dashes and underscores, and begin with a letter"
        " or a digit"
    )


def work_item_problem(name: str) -> str | None:
    """Return why no work item can be called `name`, or None: it has to go into a tag of git."""
    problem = name_problem(name)
    if problem is None and (".." in name or name.endswith((".", ".lock"))):
        return (
            f"{name!r} must not hold two dots in a row, nor end in a dot or in '.lock': git takes"
            " no such tag, so what passed staging could never be deployed"
        )
    return problem


def new_work_item() -> str:
    """Return a name for a work item that has none."""
    return f"WI-{secrets.token_hex(4)}"


@attrs.define
class AttemptDriver:
    """Drives one job of `deploy-staging` to its end, waiting through deferrals."""

    session: Session
    staging: StagingIntercept
    job_id: int
    #: Called while the attempt waits: for its next run, or for another worker; may refuse to.
    waiting: Callable[[JobRow, Snapshot | None], None] = lambda _row, _snapshot: None
    #: Called with an attempt that somebody else has begun, before it is waited for; may refuse it.
    accept: Callable[[Snapshot], None] = lambda _snapshot: None
    #: Whether the attempt is the one that was asked for.
    _is_accepted: bool = attrs.field(default=False, init=False)
    #: Why it was not cancelled when that was asked for: it is not ours to stop.
    _refusal: RefusedError | None = attrs.field(default=None, init=False)

    def drive(self) -> Decision | None:
        """Return None when the attempt is terminal, else why it cannot be driven.

        Raises what `accept` and `waiting` raise, RefusedError for a job that was opened
        again or has ended without an attempt, or that was to be cancelled while somebody
        has it who cannot be stopped from here, and RunRefusedError where an agent that a
        dead worker left cannot be ended.
        """
        while True:
            row = self.session.rows.load(self.job_id)
            snapshot = row.snapshot()
            if snapshot is not None and not self._is_accepted:
                self.accept(snapshot)
                self._is_accepted = True
            if (
                snapshot is not None
                and snapshot.is_terminal
                and row.status not in (QUEUED, RUNNING)
            ):
                return None
            if snapshot is None and row.status not in (QUEUED, RUNNING):
                message = (
                    f"job {self.job_id} is {row.status} without an attempt: an agent had it, or a"
                    " person ended it, and the runner never began. Ask for a new run"
                )
                raise RefusedError(message)
            if snapshot is not None and snapshot.state in ENDED_BY_GATE:
                # Its gate ends the job along with it: somebody has opened the job again.
                message = (
                    f"job {self.job_id} is {row.status}, and its attempt has ended: it is"
                    f" {snapshot.state}. Set its status to done, and ask again"
                )
                raise RefusedError(message)
            if self._refusal is not None:
                raise self._refusal
            decision = self._launch(row, snapshot)
            if decision is None:
                self.waiting(row, snapshot)
                self.session.clock.wait(self._seconds_to_wait(row))
                if self._refusal is not None:
                    raise self._refusal
            elif decision.ruling is not Ruling.TAKEN:
                return decision

    def _launch(self, row: JobRow, snapshot: Snapshot | None) -> Decision | None:
        """Launch the job if it is due or left behind; None if there is nothing to do yet."""
        session = self.session
        if row.status == QUEUED:
            job = session.store.claim_next(session.clock.now(), session.worker, self.job_id)
            if job is None:
                return None
            if snapshot is None and self.session.rows.load(self.job_id).document is not None:
                # Somebody has begun it and put it off since it was looked at.
                put_back(self.staging.runner, self.job_id)
                return None
            # A claim is exclusive: what it begins is ours, and no answer of another's.
            self._is_accepted = True
            return self.staging.launch(self.job_id)
        job = session.store.job(self.job_id)
        without_run = snapshot is None or snapshot.state is State.LLM_FALLBACK
        if without_run and job.claimed_by != session.worker:
            # Claimed, but nothing begun: if its worker is gone the job is anybody's.
            is_anybodys = session.liveness(job.claimed_by or "") is False
            if is_anybodys:
                self._end_agent(job)
                session.store.requeue_abandoned(job, session.clock.now())
            if is_anybodys or snapshot is None:
                return None
        decision = self.staging.launch(self.job_id)
        moved = self.session.rows.load(self.job_id)
        unmoved = moved.status == row.status and moved.document == row.document
        return None if decision.ruling is Ruling.TAKEN and unmoved else decision

    def _end_agent(self, job: Job) -> None:
        """End what is alive of a dead worker's agent; raises RunRefusedError where it stays."""
        if not end_agent_of_dead(self.session.clock, job):
            message = (
                f"job {job.id} was in the hands of worker {job.claimed_by}, which is gone, and its"
                " agent stays alive: nothing was started. End that agent, and ask again"
            )
            raise RunRefusedError(message)

    def _seconds_to_wait(self, row: JobRow) -> float:
        if row.not_before is None:
            return LOOK_AGAIN_SECONDS
        due = (row.not_before - self.session.clock.now()).total_seconds()
        return min(max(due, 0.0) + 0.001, LOOK_AGAIN_SECONDS)

    @contextmanager
    def cancelled_by_signals(self) -> Iterator[None]:
        """Cancel the attempt on SIGINT or SIGTERM, in a thread: the drive goes on until it ends."""

        def on_signal(_number: int, _frame: object) -> None:
            threading.Thread(target=self.cancel, daemon=True).start()

        before = {
            number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def cancel(self) -> None:
        """Cancel the attempt, unless it is too late, and have whoever waits for it look again.

        What is not ours to stop is left alone, and not waited for any more.
        """
        try:
            has_ended = cancel_in_the_end(
                self.staging.runner, self.job_id, threading.Event().wait, self._is_claimed_here
            )
        except RefusedError as error:
            self._refusal, has_ended = error, True
        if has_ended:
            # Nobody waits after that: woken any earlier, a drive that goes on never would again.
            self.session.clock.wake()

    def _is_claimed_here(self) -> bool:
        # This process starts no agent: what it has claimed is its own to end.
        return self.session.store.job(self.job_id).claimed_by == self.session.worker


def place_in(session: Session, folder: Path) -> Callable[[JobRow], Place]:
    """Return a `place` that puts artifacts below `folder` instead of into the repository."""

    def place(row: JobRow) -> Place:
        return Place(session.store.repository_path(row.repo), folder / row.work_item)

    return place


def one_suite(entry: SuiteEntry) -> Callable[[RunnerConfig], SuitesConfig]:
    """Return the suites of an orchestrator that knows one command for everything."""
    return lambda _config: SuitesConfig(default=entry)


def switched_on(variables: Mapping[str, str], **changes: object) -> dict[str, str]:
    """Return `variables` with the runner on for every repository, and `changes` of its settings.

    Shadow mode is off: there is no agent that the runner could be beside.
    """
    said = {name: str(value) for name, value in changes.items() if value is not None}
    settings = {"enabled": "1", "repos": "*", "shadow": "0", **said}
    return {**variables, **{variable_name(name): value for name, value in settings.items()}}

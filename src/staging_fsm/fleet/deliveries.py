"""The engine's side of a job: Procrastinate delivers it to one worker, at its time.

A delivery says no more than "look at this job": the job's row decides what is done.
Two deliveries of one job do no harm, and a lost one is made again by the sweep. So
nothing here is ever retried or recycled; each delivery is a row of the engine's own
tables that is deleted when it has been worked on, and ids are never used again by a
worker that was thought dead.
"""

import contextlib
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Final

import attrs
import procrastinate
import sqlalchemy as sa
from procrastinate.exceptions import AlreadyEnqueued, ConnectorException

from staging_fsm.core.errors import RefusedError
from staging_fsm.fleet.fence import SESSION_ERRORS, Server

TASK: Final = "staging_fsm.attempt"
QUEUE: Final = "staging"
#: What is raised where the database cannot be used, by whichever library.
DATABASE_ERRORS: Final = (*SESSION_ERRORS, ConnectorException)
_UNDELIVERED: Final = """
    SELECT id, repo, status, claimed_by FROM jobs
    WHERE status IN ('queued', 'running') AND NOT EXISTS (
        SELECT 1 FROM procrastinate_jobs AS delivery
        WHERE delivery.args ->> 'job_id' = CAST(jobs.id AS text)
        AND delivery.task_name = :task AND delivery.status IN ('todo', 'doing'))
    ORDER BY id
"""
_OF_JOB: Final = """
    SELECT id FROM procrastinate_jobs
    WHERE args ->> 'job_id' = :job_id AND task_name = :task
    AND status = CAST(:status AS procrastinate_job_status)
"""
_STALLED: Final = """
    DELETE FROM procrastinate_jobs WHERE id IN (
        SELECT delivery.id FROM procrastinate_jobs AS delivery
        LEFT JOIN procrastinate_workers AS worker ON worker.id = delivery.worker_id
        WHERE delivery.status = 'doing' AND (worker.id IS NULL
            OR worker.last_heartbeat < now() - make_interval(secs => :seconds)))
    RETURNING task_name, args ->> 'job_id', args ->> 'repo'
"""
_ADDRESSED: Final = """
    SELECT DISTINCT queue_name FROM procrastinate_jobs
    WHERE status = 'todo' AND queue_name LIKE :queues
"""
_NOTE: Final = (
    "SELECT format('COMMENT ON SCHEMA %I IS %L', CAST(:schema AS text), CAST(:papers AS text))"
)
_NOTED: Final = "SELECT obj_description(to_regnamespace(:schema), 'pg_namespace')"
#: No branch has a blank in its name.
_MARKED: Final = ", marked "
_READDRESS: Final = """
    UPDATE procrastinate_jobs SET queue_name = :home
    WHERE status = 'todo' AND queue_name = :queue
"""


@attrs.frozen
class Note:
    """Where a fleet's papers go, as it was set up, and the mark of the shared folder if one is."""

    papers: str
    mark: str | None = None

    def __str__(self) -> str:
        """Return the note as it is kept, and shown."""
        return self.papers if self.mark is None else f"{self.papers}{_MARKED}{self.mark}"

    @classmethod
    def of(cls, text: str) -> "Note":
        """Return the note in a text; one of a fleet that was set up before has no mark."""
        papers, _, mark = text.partition(_MARKED)
        return cls(papers, mark or None)


def queue_of(machine: str) -> str:
    """Return the queue that only the workers of `machine` listen to."""
    return f"{QUEUE}:{machine}"


def _driver(tx: sa.Connection) -> Any:
    """Return psycopg's own connection, which is in the transaction of `tx`."""
    return tx.connection.driver_connection


class OtherPapersError(RefusedError):
    """This machine would stage another branch than the fleet's others: it may take no job."""


@attrs.frozen
class Deliveries:
    """Deliveries of one fleet, made and looked at within the host's transactions."""

    server: Server
    _client: procrastinate.App = attrs.field(
        factory=lambda: procrastinate.App(connector=procrastinate.SyncPsycopgConnector()),
        init=False,
    )

    def set_up(self, engine: sa.Engine) -> bool:
        """Create the engine's schema and tables; False if they are there already.

        Nothing outside that schema is touched, and either all of it is made or nothing.
        """
        schema = self.server.schema
        with engine.begin() as connection:
            connection.execute(
                sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:k, 0))"),
                {"k": self.server.key("schema", schema)},
            )
            if sa.inspect(connection).has_table("procrastinate_jobs", schema):
                return False
            connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {schema}")
            with self._engine_first(connection):
                _driver(connection).execute(self._client.schema_manager.get_schema())
        return True

    def note(self, engine: sa.Engine, note: Note) -> None:
        """Note where the fleet's papers go, as a comment on the engine's schema."""
        facts = {"schema": self.server.schema, "papers": str(note)}
        with engine.begin() as connection:
            # It takes no parameters, so the database itself is to quote them.
            statement = connection.execute(sa.text(_NOTE), facts).scalar_one()
            connection.execution_options(no_parameters=True).exec_driver_sql(statement)

    def noted(self, engine: sa.Engine) -> Note | None:
        """Return where the fleet's papers go, as it was noted; None where it never was."""
        with engine.connect() as connection:
            found = connection.execute(sa.text(_NOTED), {"schema": self.server.schema}).scalar()
        return None if found is None else Note.of(found)

    def refuse_other_papers(self, engine: sa.Engine, papers: str) -> None:
        """Raise OtherPapersError where something else than `papers` was noted.

        A stale branch of another name may be there, and a verdict on it would be none.
        """
        noted = self.noted(engine)
        if noted is not None and noted.papers != papers:
            message = (
                f"the fleet was set up so that {noted.papers}, and here {papers}: give this machine"
                " the same ORCH_FLEET_BRANCH and ORCH_FLEET_SHARED_DIR, or have `staging-fsm"
                " fleet-setup` note what is to hold for all"
            )
            raise OtherPapersError(message)

    def defer(
        self,
        tx: sa.Connection,
        job_id: int,
        repo: str,
        due: datetime,
        *,
        queue: str = QUEUE,
        tries: int = 0,
    ) -> None:
        """Have a job delivered at `due`, if the transaction `tx` is committed.

        A job that waits for its delivery already is left at that. The due time is the
        priority too: otherwise a job that is due later would hold up all others of its
        repository.
        """
        deferrer = self._client.configure_task(
            TASK,
            queue=queue,
            lock=f"repo:{repo}",
            queueing_lock=f"attempt:{job_id}",
            priority=-int(due.timestamp()),
            schedule_at=due,
            connection=_driver(tx),
        )
        with (
            contextlib.suppress(AlreadyEnqueued),
            tx.begin_nested(),
            self._engine_first(tx),
        ):
            deferrer.defer(job_id=job_id, repo=repo, tries=tries)

    def undelivered(self, tx: sa.Connection) -> list[tuple[int, str, str, str | None]]:
        """Return each unfinished job that nobody will be told of.

        Its id, its repository, its status, and who has claimed it.
        """
        with self._engine_first(tx):
            return [tuple(row) for row in tx.execute(sa.text(_UNDELIVERED), {"task": TASK})]

    def take_stalled(self, tx: sa.Connection, seconds: float) -> dict[int, str]:
        """Remove deliveries whose worker is silent since `seconds`; return jobs and repositories.

        A worker that was only slow finds its delivery gone when it has ended, and no harm
        done: whoever gets the job next stands before its fence.
        """
        with self._engine_first(tx):
            found = tx.execute(sa.text(_STALLED), {"seconds": seconds}).all()
        return {int(job_id): repo for task, job_id, repo in found if task == TASK}

    def bring_home(self, tx: sa.Connection, is_present: Callable[[str], bool]) -> None:
        """Give deliveries that wait for a machine of which no worker is left to all others."""
        with self._engine_first(tx):
            queues = tx.execute(sa.text(_ADDRESSED), {"queues": queue_of("%")}).scalars().all()
            for queue in queues:
                if not is_present(queue.removeprefix(queue_of(""))):
                    tx.execute(sa.text(_READDRESS), {"queue": queue, "home": QUEUE})

    def abort(self, tx: sa.Connection, job_id: int) -> None:
        """Have the worker told that works on a job to stop.

        By its delivery, and by the job's id: of one that was silent for long the delivery is
        gone, and it may live. One that still waits is left: whoever gets it is asked next.
        """
        self._cancel(tx, job_id, "doing", abort=True)
        notice = {"channel": self.server.channel, "job_id": str(job_id)}
        tx.execute(sa.text("SELECT pg_notify(:channel, :job_id)"), notice)

    def take_back(self, tx: sa.Connection, job_id: int) -> None:
        """Remove a delivery that waits, of a job of which there is nothing left to do."""
        self._cancel(tx, job_id, "todo", delete_job=True)

    def _cancel(self, tx: sa.Connection, job_id: int, status: str, **how: bool) -> None:
        facts = {"job_id": str(job_id), "task": TASK, "status": status}
        with self._engine_first(tx):
            for delivery in tx.execute(sa.text(_OF_JOB), facts).scalars().all():
                self._client.job_manager.cancel_job_by_id(delivery, connection=_driver(tx), **how)

    @contextlib.contextmanager
    def _engine_first(self, tx: sa.Connection) -> Iterator[None]:
        """Have names found in the engine's schema, and afterwards where they were before."""
        read = sa.text("SELECT current_setting('search_path')")
        write = sa.text("SELECT set_config('search_path', :path, true)")
        before = tx.execute(read).scalar_one()
        tx.execute(write, {"path": f"{self.server.schema}, {before}"})
        yield
        tx.execute(write, {"path": before})

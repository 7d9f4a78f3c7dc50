"""What every worker of a machine shares, and the host's store, rows and suites as a fleet has them.

A job that is queued is delivered by the same transaction, and a run is one of a commit
that is fetched from elsewhere, behind the fence of its repository.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import sqlalchemy as sa

from staging_fsm.core.jobs import JobRow
from staging_fsm.core.ports import RunCondition, RunOrder
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.effects.alerts import FileAlerts
from staging_fsm.effects.clock import SystemClock
from staging_fsm.effects.remote import Mirror
from staging_fsm.effects.rows import SqlRows
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.effects.suite import LocalSuites
from staging_fsm.fleet.deliveries import Deliveries
from staging_fsm.fleet.fence import Fence, Server
from staging_fsm.fleet.publisher import GitBranch, Publisher, SharedFolder, published_log
from staging_fsm.fleet.settings import FleetSettings
from staging_fsm.host.settings import HostSettings
from staging_fsm.host.store import SqlHostStore, WorkItem


def machine_of(worker: str) -> str | None:
    """Return the machine in the name of a fleet's worker; None for any other worker's name."""
    machine, slash, _ = worker.partition("/")
    return machine if slash and ":" not in machine else None


@attrs.frozen
class Fleet:
    """What every worker of a machine shares."""

    server: Server
    engine: sa.Engine
    deliveries: Deliveries
    settings: FleetSettings
    host_settings: HostSettings
    variables: Mapping[str, str]
    state: StateDir
    clock: SystemClock
    machine: str
    worker: str
    store: "FleetStore"
    rows: "FleetRows"
    #: Every run on this machine, whatever its repository.
    suites: LocalSuites
    #: The machine's: who has it told delivers what others could not as well.
    alerts: FileAlerts

    def mirror(self, row: JobRow) -> Mirror:
        """Return this machine's mirror of the job's repository."""
        url = self.store.repository_url(row.repo)
        return Mirror.below(self.state.mirrors, row.repo, url)

    def branch(self, row: JobRow) -> str:
        """Return the branch of the job's work item."""
        return self.settings.branch.replace("{work_item}", row.work_item)

    def refuse_other_papers(self) -> None:
        """Raise OtherPapersError where this machine would stage another branch than the others."""
        self.deliveries.refuse_other_papers(self.engine, self.settings.papers)

    def publisher(self, mirror: Mirror) -> Publisher:
        """Return how papers reach the host."""
        if self.settings.shared_dir is not None:
            noted = self.deliveries.noted(self.engine)
            return SharedFolder(self.settings.shared_dir, None if noted is None else noted.mark)
        return GitBranch(mirror, self.branch, self.state.checkouts)

    def deliver(self, job_id: int, repo: str, due: datetime, **how: Any) -> None:
        """Have a job delivered, in a transaction of its own."""
        with self.engine.begin() as tx:
            self.deliveries.defer(tx, job_id, repo, due, **how)


class FleetStore(SqlHostStore):
    """The host's tables; a job that is queued is delivered by the same transaction."""

    def __init__(
        self, engine: sa.Engine, deliveries: Deliveries, checkout: Path | None = None
    ) -> None:
        """Bind to `engine`; `checkout` is what stands for a repository on this machine."""
        super().__init__(engine)
        self._deliveries, self._checkout = deliveries, checkout

    def enqueue(self, tx: sa.Connection, item: WorkItem, agent: str, now: datetime) -> int:
        """Queue a job for the stage of `item`; return its id."""
        job_id = super().enqueue(tx, item, agent, now)
        self._deliveries.defer(tx, job_id, item.repo, now)
        return job_id

    def repository_path(self, repo: str) -> Path:
        """Return the checkout at hand, else where the host's own lies."""
        return self._checkout or super().repository_path(repo)


class FleetRows(SqlRows):
    """The host's job rows; a job that is queued again is delivered by the same transaction."""

    def __init__(self, engine: sa.Engine, deliveries: Deliveries) -> None:
        """Bind to the reference host's table of jobs."""
        super().__init__(engine)
        self._deliveries = deliveries

    def requeue(
        self,
        job_id: Any,
        not_before: datetime,
        snapshot: Snapshot,
        tx: sa.Connection | None = None,
        *,
        once: bool = False,
    ) -> None:
        """Queue the job again, due later, if it is unfinished and `snapshot` is still stored.

        One that was queued before, where it is to be `once`, is only delivered once more.
        """
        repo = self.load(job_id).repo
        own: AbstractContextManager[Any] = self.transaction() if tx is None else nullcontext(tx)
        with own as connection:
            super().requeue(job_id, not_before, snapshot, connection, once=once)
            self._deliveries.defer(connection, job_id, repo, not_before)


class FleetSuites(LocalSuites):
    """Runs on this machine, of commits that are fetched from elsewhere, behind a fence."""

    def __init__(self, fleet: Fleet, mirror: Mirror, fence: Fence, papers: Path) -> None:
        """Keep runs below the machine's state folder; supervisors inherit the fence.

        `papers` is the work item's folder, as it is published.
        """
        super().__init__(fleet.state, fleet.variables, fence.descriptors)
        self._mirror, self._papers = mirror, papers

    def start(self, order: RunOrder) -> None:
        """Fetch the bound commit and start the run. Raises PreparationError."""
        self._mirror.fetch(order.revision)
        super().start(order)

    def log_tail(self, run_id: str, size: int) -> bytes:
        """Return the last `size` bytes of a run's output: as published, if it is published."""
        attempt_id, _, number = run_id.rpartition(".")
        published = published_log(self._papers, attempt_id, int(number))
        return super().log_tail(run_id, size) if published is None else published[-size:]

    def condition(self, run_id: str) -> RunCondition:
        """Say what there is of a run. We hold its fence, so nothing of it is alive."""
        found = super().condition(run_id)
        if found is not RunCondition.FOREIGN:
            return found
        # Of an earlier boot or container with this same state folder: its result counts.
        left = (self._state.run(run_id) / "result").exists()
        return RunCondition.FINISHED if left else RunCondition.LOST

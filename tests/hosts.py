"""A reference host over an embedded database, and git as the tests call it."""

import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import attrs
import sqlalchemy as sa

from staging_fsm.effects.clock import SystemClock
from staging_fsm.effects.processes import this_process
from staging_fsm.host.contract.stages import STAGE_AGENTS
from staging_fsm.host.launcher import Host
from staging_fsm.host.store import SqlHostStore, WorkItem
from staging_fsm.host.worker import Worker

REPO = "shop"
#: How long a test waits for what must happen before it calls it a failure.
DEADLINE_SECONDS = 60


@attrs.frozen
class HostKit:
    """A host over an embedded database, with one git repository named `shop`."""

    host: Host
    store: SqlHostStore
    repository: Path

    def add(self, stage: str, work_item: str = "WI-1", retries: int = 2, repo: str = REPO) -> int:
        """Queue a job for a new work item at `stage`; return the job's id."""
        agents = {"deploy-staging": "deployer", "deploy": "deploy-finalizer"}
        agent = agents.get(stage, "post-deploy-monitor" if stage == "post-deploy" else "agent")
        item = WorkItem(repo, work_item, stage, retries, None)
        return self.store.add_work_item(item, agent, self.host.clock.now())

    def further(self, stage: str) -> int:
        """Bring the work item that is there to a stage, and queue one more job; return its id."""
        now = self.host.clock.now()
        with self.store.transaction() as tx:
            moved = attrs.evolve(self.store.work_item(tx, REPO, "WI-1"), stage=stage)
            self.store.move_work_item(tx, moved, now)
            return self.store.enqueue(tx, moved, STAGE_AGENTS[stage], now)

    def set_status(self, job_id: int, status: str) -> None:
        """Set the status of a job, as a person does."""
        with self.store.engine.begin() as connection:
            connection.execute(
                sa.text("UPDATE jobs SET status = :status WHERE id = :id"),
                {"status": status, "id": job_id},
            )

    def item(self, work_item: str = "WI-1", repo: str = REPO) -> WorkItem:
        """Return the work item as stored."""
        with self.store.transaction() as tx:
            return self.store.work_item(tx, repo, work_item)


def git(repository: Path, *arguments: str) -> str:
    """Run git in `repository` and return what it prints."""
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    ended = subprocess.run(
        ["git", "-C", str(repository), *identity, *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return ended.stdout.strip()


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Let this process open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def ends_of_children_unseen() -> Iterator[None]:
    """Have the kernel take the exit status of whatever ends, as a host may have it do."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


#: Makes hosts: the fixture `make_host`.
Maker = Callable[..., HostKit]


class NoWaiting(SystemClock):
    """A clock on which every wait is over at once."""

    def __init__(self) -> None:
        """Begin with the machine's own time."""
        super().__init__()
        self.waited = 0.0

    def now(self) -> datetime:
        """Return the time of day as it would be."""
        return super().now() + timedelta(seconds=self.waited)

    def wait(self, seconds: float) -> None:
        """Do not wait."""
        self.waited += seconds


def worker(kit: HostKit) -> Worker:
    """Return a worker of this process."""
    return Worker(kit.host, str(this_process()))

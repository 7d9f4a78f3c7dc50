"""A reference host over an embedded database, and git as the tests call it."""

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from staging_fsm.host.launcher import Host
from staging_fsm.host.store import SqlHostStore, WorkItem

REPO = "shop"


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

"""A fleet under attack: killed, frozen, cut off, its server restarted; and what must be true after.

`make fleet-soak` runs it for volume; `test_fleet_chaos.py` runs a small one. Faults
are drawn from a seed and dealt as jobs end, so that a slow machine sees as many as
a fast one.
"""

import argparse
import collections
import contextlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs
import psutil
import sqlalchemy as sa

import postgres
from fleets import MARK, FleetStand, Machine
from hosts import git
from networks import Link, has_namespaces, namespaces, proxies
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import State
from staging_fsm.effects.rows import SqlRows
from staging_fsm.host.contract.gate import ARTIFACT_NAME
from staging_fsm.host.database import CLIENT_KEEPALIVE

#: What a suite's exit code leads to, whatever happens to the workers.
ENDS: Final = {0: State.ADVANCED, 1: State.ROLLED_BACK, 126: State.FAILED_CLOSED}
VERDICTS: Final = (0, 0, 1, 0, 126, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0)
JOBS_OF_ITEM: Final = 3
#: A connection that is silent for so long is given up by the worker, and not by the server.
BLACKOUT_SECONDS: Final = CLIENT_KEEPALIVE["tcp_user_timeout"] / 1000 + 4


@attrs.define
class Chaos:
    """One fleet, its jobs, and who mistreats it."""

    stand: FleetStand
    server: postgres.Server
    links: dict[str, Link]
    workers_each: int
    random: random.Random
    #: What was done to it, by kind.
    faults: collections.Counter[str] = attrs.field(factory=collections.Counter)
    _over: threading.Event = attrs.field(factory=threading.Event)

    @property
    def machines(self) -> list[Machine]:
        """Return the machines that have workers."""
        return [self.stand.machine(name) for name in self.links]

    def keep(self) -> None:
        """Start each worker again whenever it ends, as an init system does."""
        while not self._over.wait(0.2):
            for machine in self.machines:
                machine.workers[:] = [w for w in machine.workers if w.poll() is None]
                while len(machine.workers) < self.workers_each:
                    machine.start()

    def victim(self) -> int:
        """Return the process id of some worker."""
        found = [worker.pid for machine in self.machines for worker in machine.workers]
        return self.random.choice(found) if found else 0

    def pause(self) -> None:
        """Wait for a while that is drawn."""
        self._over.wait(self.random.uniform(0.3, 3.0))

    def kill(self) -> None:
        """Kill a worker."""
        if pid := self.victim():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def freeze(self) -> None:
        """Stop a worker, and let it go on after it was taken for dead, or before."""
        if pid := self.victim():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                self.pause()
                os.kill(pid, signal.SIGCONT)

    def cut(self) -> None:
        """Cut a machine off from the server for a while."""
        link = self.random.choice(list(self.links.values()))
        link.cut()
        self.pause()
        link.mend()

    def blackout(self) -> None:
        """Cut a machine off for longer than it waits for the server."""
        link = self.random.choice(list(self.links.values()))
        link.cut()
        self._over.wait(BLACKOUT_SECONDS)
        link.mend()

    def orphan(self) -> None:
        """Kill every supervisor of a machine."""
        self.random.choice(self.machines).kill_supervisors()

    def restart(self) -> None:
        """Restart the server."""
        self.server.stop()
        self.server.start()

    def deal(self, kind: str) -> None:
        """Do one thing to the fleet."""
        self.faults[kind] += 1
        {
            "kill": self.kill,
            "freeze": self.freeze,
            "cut": self.cut,
            "blackout": self.blackout,
            "orphan": self.orphan,
            "restart": self.restart,
        }[kind]()

    def end(self) -> None:
        """Let nobody be started any more, and stop every worker as an init system does."""
        self._over.set()
        for machine in self.machines:
            for worker in machine.workers:
                worker.terminate()
        for machine in self.machines:
            for worker in machine.workers:
                worker.wait()

    def run(self, jobs: dict[int, int], faults: list[str], seconds: float) -> None:
        """Deal `faults` while `jobs` end; raises AssertionError if they do not in time."""
        keeper = threading.Thread(target=self.keep, daemon=True)
        keeper.start()
        deadline = time.monotonic() + seconds
        dealt = 0
        while len(ended := self.ended(jobs)) < len(jobs) or not self.is_idle():
            # Evenly over the jobs, but for the last: nobody is left to be mistreated then.
            while dealt < len(faults) and len(ended) * len(faults) >= dealt * len(jobs):
                self.deal(faults[dealt])
                dealt += 1
            assert time.monotonic() < deadline, f"{len(ended)} of {len(jobs)} jobs have ended"
            self._over.wait(0.2)
        self.end()
        keeper.join()

    def is_idle(self) -> bool:
        """Say whether no work item has a next job, as far as the server answers."""
        query = sa.text("SELECT count(*) FROM jobs WHERE status IN ('queued', 'running')")
        try:
            with self.stand.engine.connect() as connection:
                left = int(connection.execute(query).scalar_one())
            return left == 0 and not self.stand.deliveries()
        except sa.exc.OperationalError:
            return False

    def ended(self, jobs: dict[int, int]) -> set[int]:
        """Return the jobs that are at their end, as far as the server answers."""
        query = sa.text("SELECT id FROM jobs WHERE status IN ('done', 'cancelled')")
        try:
            with self.stand.engine.connect() as connection:
                return set(connection.execute(query).scalars()) & set(jobs)
        except sa.exc.OperationalError:
            return set()


def check(chaos: Chaos, jobs: dict[int, int]) -> Iterator[str]:
    """Yield what is wrong at the end, one sentence for each offender; nothing should be."""
    stand = chaos.stand
    rows = SqlRows(stand.engine)
    runs: set[str] = set()
    for job_id, verdict in jobs.items():
        row = rows.load(job_id)
        snapshot = row.snapshot()
        if snapshot is None or snapshot.state is not ENDS[verdict] or row.status != "done":
            state = snapshot and snapshot.state
            yield f"job {job_id} is {state}, {row.status}: not {ENDS[verdict]}"
            continue
        runs |= {f"{snapshot.attempt_id}.{run.number}" for run in snapshot.runs}
        yield from _papers(stand, row.repo, row.work_item, snapshot)
    yield from _moved_once(stand, jobs)
    yield from _ledger(stand, runs)
    left = [found.pid for found in psutil.process_iter() if _is_of(found, stand)]
    if left:
        yield f"processes are left: {left}"
    if stand.deliveries():
        yield f"deliveries are left: {stand.deliveries()}"
    audit = stand.call("audit", "--verify", check=False)
    if audit.returncode != 0:
        yield f"audit --verify: {audit.stdout}{audit.stderr}"


def _papers(stand: FleetStand, repo: str, item: str, snapshot: Snapshot) -> Iterator[str]:
    path = f"docs/work-items/{item}/{ARTIFACT_NAME}"
    commits = git(stand.remote(repo), "log", "--format=%H", item, "--", path).split()
    if len(commits) != 1:
        yield f"{item} has {len(commits)} verdicts on its branch"
    artifact = snapshot.artifact
    if artifact is None or stand.published_digest(repo, item) != artifact.sha256:
        yield f"the verdict on the branch of {item} is not the one of its attempt"


def _moved_once(stand: FleetStand, jobs: dict[int, int]) -> Iterator[str]:
    query = sa.text(
        "SELECT work_items.id, developer_retries, count(jobs.id) FROM work_items"
        " JOIN jobs ON jobs.repo = work_items.repo AND jobs.work_item = work_items.id"
        " GROUP BY work_items.repo, work_items.id, developer_retries"
    )
    expected = {f"WI-{number}": verdict for number, verdict in enumerate(jobs.values())}
    with stand.engine.connect() as connection:
        for item, retries, count in connection.execute(query):
            # Staging, deploy and post-deploy; or staging, and two developers who give up.
            if retries != (2 if expected[item] == 0 else 0) or count != JOBS_OF_ITEM:
                yield f"{item} moved more or less often: {retries} retries left, {count} jobs"


def _ledger(stand: FleetStand, runs: set[str]) -> Iterator[str]:
    for line in stand.ledger("overlap"):
        yield f"two suites of one repository at once: {line}"
    current: dict[str, str] = {}
    seen: set[str] = set()
    for line in (stand.root / "ledger").read_text().splitlines():
        word, repo, run = line.split()
        if word == "start":
            if run in seen:
                yield f"{run} was started twice"
            seen.add(run)
            current[repo] = run
        elif word == "end" and current.get(repo) != run:
            yield f"{run} ended after {current.get(repo)} of {repo} had begun"
    if not seen <= runs:
        yield f"nobody knows of runs {sorted(seen - runs)}"


def _is_of(process: psutil.Process, stand: FleetStand) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        environment = process.environ()
        return str(stand.root) in (environment.get(MARK), environment.get("FLEET"))
    return False


@contextlib.contextmanager
def chaos(
    root: Path, server: postgres.Server, links: Sequence[Link], workers_each: int, seed: int
) -> Iterator[Chaos]:
    """Yield a fleet with a machine at the end of each link, which is closed at the end."""
    settings = {
        "ORCH_STAGING_RUNNER_INFRA_RETRIES": "10",
        "ORCH_STAGING_RUNNER_RETRY_BACKOFF_MAX_SECONDS": "1",
        # Every developer gives up at once, so that each work item comes to an end.
        "ORCH_AGENT_COMMAND": "false",
        "ORCH_LOG_DIR": str(root / "agents"),
    }
    named = {f"machine-{number}": link for number, link in enumerate(links)}
    stand = FleetStand(root, server.url, "staging_engine", settings)
    for name, link in named.items():
        stand.machine(name).link = link
    try:
        stand.set_up()
        yield Chaos(stand, server, named, workers_each, random.Random(seed))  # noqa: S311  # faults, not secrets
    finally:
        stand.tear_down()
        for link in links:
            link.close()


def queue_jobs(stand: FleetStand, count: int, repositories: int) -> dict[int, int]:
    """Queue `count` jobs on so many repositories; return the verdict that each is to have."""
    found = {}
    for number in range(count):
        verdict = VERDICTS[number % len(VERDICTS)]
        found[
            stand.submit(f"repo-{number % repositories}", f"WI-{number}", verdict, seconds=0.3)
        ] = verdict
    return found


def main() -> int:
    """Run for volume; print what was done, and what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--repositories", type=int, default=20)
    parser.add_argument("--machines", type=int, default=2)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3600)
    given = parser.parse_args()
    network = namespaces if has_namespaces() else proxies
    kinds = ["kill"] * 6 + ["freeze"] * 5 + ["cut"] * 3 + ["blackout", "orphan", "restart"]
    with tempfile.TemporaryDirectory() as folder, postgres.own_server() as server:
        server.start()
        with (
            network(server, given.machines) as links,
            chaos(Path(folder), server, links, given.workers, given.seed) as fleet,
        ):
            jobs = queue_jobs(fleet.stand, given.jobs, given.repositories)
            faults = [fleet.random.choice(kinds) for _ in range(given.faults)]
            begun = time.monotonic()
            fleet.run(jobs, faults, given.seconds)
            seconds = time.monotonic() - begun
            problems = list(check(fleet, jobs))
            suites = len(fleet.stand.ledger("start"))
    dealt = ", ".join(f"{count} {kind}" for kind, count in sorted(fleet.faults.items()))
    sys.stdout.write(
        f"seed {given.seed}: {given.jobs} jobs on {given.repositories} repositories,"
        f" {given.machines} machines ({network.__name__}) with {given.workers} workers,"
        f" in {seconds:.0f} s;"
        f" {suites} suites started; {dealt}; {len(problems)} problems\n"
    )
    sys.stdout.writelines(f"{problem}\n" for problem in problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

"""A real fleet for the tests: a database, remotes, machines, and worker processes to mistreat.

A machine is a state folder. A suite appends `start` and `end` to one ledger, and takes
a lock of its repository that the kernel frees when its last process is gone: a suite
that does not get it writes `overlap`, which no test ever wants to see.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import sqlalchemy as sa

from forkserver import staging_fsm_of_fork
from hosts import git
from networks import Link
from staging_fsm.core.jobs import SNAPSHOT_KEY, JobRow
from staging_fsm.core.snapshot import Snapshot, dump_snapshot
from staging_fsm.core.spec import Event, State
from staging_fsm.effects.processes import kill_marked
from staging_fsm.effects.rows import SqlRows
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.fleet import requests
from staging_fsm.fleet.deliveries import TASK
from staging_fsm.fleet.delivery import Delivery
from staging_fsm.fleet.fleet import Fleet
from staging_fsm.fleet.worker import open_fleet
from staging_fsm.host.database import open_database
from staging_fsm.host.launcher import staging_intercept
from staging_fsm.host.store import SqlHostStore, WorkItem

#: How long a test waits for what must happen before it calls it a failure.
PATIENCE_SECONDS = 240.0
#: A suite that ends when it may, with the exit code that its branch carries.
SUITE = """\
repo=$(cat repo)
exec 9>>"$FLEET/locks/$repo"
flock --nonblock 9 || echo "overlap $repo $STAGING_ATTEMPT" >>"$FLEET/ledger"
echo "start $repo $STAGING_ATTEMPT" >>"$FLEET/ledger"
echo "suite of $(cat item)"
while [ -e "$FLEET/hold/$(cat item)" ]; do sleep 0.05; done
sleep "$(cat seconds)"
echo "end $repo $STAGING_ATTEMPT" >>"$FLEET/ledger"
exit $(cat verdict)
"""
REFUSALS = 3
#: An agent for every stage: the developer mends what staging found, the others have no objection.
AGENT = """\
[ "$ORCH_STAGE" != development ] || {
    echo 0 >verdict
    git -c user.name=A -c user.email=a@example.org commit --quiet --all --message "Mend it"
}
"""
#: What a fleet is told that waits for an hour after a tool error.
PATIENT = {
    f"ORCH_STAGING_RUNNER_RETRY_{name}_SECONDS": "3600" for name in ("BACKOFF", "BACKOFF_MAX")
}
#: What a worker inherits, so that whoever is left behind can be found.
MARK = "FLEET_OF_TEST"


def await_that(condition: Callable[[], Any], what: str) -> Any:
    """Wait until `condition` holds; return what it returned."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        pause.wait(0.05)
    return found


@attrs.define
class Machine:
    """One machine of the fleet: a state folder, and the workers that were started on it."""

    fleet: "FleetStand"
    name: str
    workers: list[subprocess.Popen[bytes]] = attrs.field(factory=list)
    #: How it reaches the database, if not as everybody does.
    link: Link | None = None

    @property
    def state(self) -> Path:
        """Return the state folder."""
        return self.fleet.root / self.name

    def start(self) -> subprocess.Popen[bytes]:
        """Start one more worker."""
        prefix = () if self.link is None else self.link.prefix
        with (self.fleet.root / f"{self.name}.log").open("ab") as log:
            worker = subprocess.Popen(
                [*prefix, sys.executable, "-m", "staging_fsm.faces", "fleet-worker"],
                env=self.fleet.environment(self),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.workers.append(worker)
        return worker

    def kill_supervisors(self) -> None:
        """Kill every supervisor of a suite, as the end of the machine would."""
        for path in self.state.glob("runs/*/shim"):
            pid = int(path.read_text().splitlines()[0].removeprefix("pid="))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@attrs.define
class FleetStand:
    """A fleet over one database."""

    root: Path
    url: str
    schema: str
    settings: dict[str, str] = attrs.field(factory=dict)
    machines: dict[str, Machine] = attrs.field(factory=dict)
    engine: sa.Engine = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Make the folders, the suite and its configuration."""
        self.engine = open_database(self.url)
        for name in ("locks", "hold", "remotes"):
            (self.root / name).mkdir()
        if shared := self.settings.get("ORCH_FLEET_SHARED_DIR"):
            Path(shared).mkdir(exist_ok=True)
        (self.root / "ledger").touch()
        (self.root / "suite.sh").write_text(SUITE)
        (self.root / "suites.toml").write_text(
            f'[default]\ncommand = ["sh", "{self.root}/suite.sh"]\n'
            'environment = ["FLEET"]\ntimeout_seconds = 300\nkill_grace_seconds = 0.2\n'
        )

    def environment(self, machine: Machine) -> dict[str, str]:
        """Return the environment of a process on a machine."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root),
            "LC_ALL": "C.UTF-8",
            MARK: str(self.root),
            "FLEET": str(self.root),
            "ORCH_DB_URL": self.url if machine.link is None else machine.link.url,
            "ORCH_STAGING_RUNNER_ENABLED": "1",
            "ORCH_STAGING_RUNNER_REPOS": "*",
            "ORCH_STAGING_RUNNER_SUITES_FILE": str(self.root / "suites.toml"),
            "ORCH_STAGING_RUNNER_STATE_DIR": str(machine.state),
            "ORCH_STAGING_RUNNER_RETRY_BACKOFF_SECONDS": "0.2",
            "ORCH_FLEET_SCHEMA": self.schema,
            "ORCH_FLEET_HEARTBEAT_SECONDS": "0.5",
            "ORCH_FLEET_STALLED_SECONDS": "2",
            "ORCH_FLEET_SWEEP_SECONDS": "1",
            **self.settings,
        }

    def machine(self, name: str) -> Machine:
        """Return the machine of this name."""
        return self.machines.setdefault(name, Machine(self, name))

    @property
    def desk(self) -> Fleet:
        """Return the fleet as somebody sees it who runs no worker."""
        return self.seen_from("desk")

    def seen_from(self, name: str) -> Fleet:
        """Return the fleet as a process on a machine sees it, in this process."""
        machine = self.machine(name)
        return open_fleet(self.engine, StateDir(machine.state), self.environment(machine))

    def call(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command where no worker is."""
        ended = staging_fsm_of_fork(arguments, self.environment(self.machine("desk")))
        if check:
            ended.check_returncode()
        return ended

    def remote(self, repo: str) -> Path:
        """Return the bare remote of a repository, made with its first use."""
        path = self.root / "remotes" / f"{repo}.git"
        if not path.exists():
            git(self.root, "init", "--quiet", "--bare", "--initial-branch=main", str(path))
        return path

    def submit(
        self, repo: str, item: str, verdict: int = 0, *, hold: bool = False, seconds: float = 0
    ) -> int:
        """Push a branch whose suite ends with `verdict`, and queue its work item."""
        remote, tree = self.remote(repo), self.root / "trees" / item
        git(self.root, "init", "--quiet", f"--initial-branch={item}", str(tree))
        facts = {"repo": repo, "item": item, "verdict": verdict, "seconds": seconds}
        for name, content in facts.items():
            (tree / name).write_text(str(content))
        git(tree, "add", ".")
        git(tree, "commit", "--quiet", "-m", item)
        git(tree, "push", "--quiet", str(remote), item)
        if hold:
            (self.root / "hold" / item).touch()
        store, now = (desk := self.desk).store, desk.clock.now()
        store.add_repository(repo, str(remote))
        work_item = WorkItem(repo, item, "deploy-staging", 2, None)
        return store.add_work_item(work_item, "deployer", now)

    def stage_again(self, repo: str, item: str) -> int:
        """Queue a work item for staging once more; return the job."""
        desk = self.desk
        work_item = WorkItem(repo, item, "deploy-staging", 2, None)
        return desk.store.job_at(work_item, "deployer", desk.clock.now())

    def develop(self, repo: str, item: str) -> str:
        """Push one commit more on top of a work item's branch; return it."""
        remote, tree = str(self.remote(repo)), self.root / "trees" / item
        git(tree, "pull", "--quiet", "--rebase", remote, item)
        git(tree, "commit", "--quiet", "--allow-empty", "-m", "On.")
        git(tree, "push", "--quiet", remote, f"HEAD:{item}")
        return git(tree, "rev-parse", "HEAD")

    def replace_history(self, repo: str, item: str, *, forget: bool = True) -> None:
        """Rewrite a branch of the remote, and forget what was there or keep it."""
        remote = self.remote(repo)
        tree = git(remote, "rev-parse", f"{item}^{{tree}}")
        git(remote, "update-ref", f"refs/heads/{item}", git(remote, "commit-tree", "-m", "-", tree))
        if forget:
            git(remote, "reflog", "expire", "--expire=now", "--all")
            git(remote, "gc", "--quiet", "--prune=now")

    def cancel(self, job_id: int) -> Snapshot:
        """Stop an attempt from the desk."""
        desk = self.desk
        staging = staging_intercept(desk.store, desk.clock, desk.variables)
        return requests.cancel(desk, staging, job_id)

    def let_go(self, item: str) -> None:
        """Let a suite that is held end."""
        (self.root / "hold" / item).unlink()

    def ledger(self, word: str) -> list[str]:
        """Return the lines of the ledger that begin with `word`, without it."""
        lines = (self.root / "ledger").read_text().splitlines()
        return [line.partition(" ")[2] for line in lines if line.startswith(word)]

    def row(self, job_id: int) -> JobRow:
        """Return a job's row."""
        return SqlRows(self.engine).load(job_id)

    def attempt(self, job_id: int) -> Snapshot:
        """Return a job's attempt, which it must have."""
        snapshot = self.row(job_id).snapshot()
        assert snapshot is not None
        return snapshot

    def await_end(self, job_id: int) -> Snapshot:
        """Wait until an attempt is terminal; return it."""

        def ended() -> Snapshot | None:
            snapshot = self.row(job_id).snapshot()
            return snapshot if snapshot is not None and snapshot.is_terminal else None

        found = await_that(ended, f"job {job_id} ends")
        assert isinstance(found, Snapshot)
        return found

    def await_starts(self, count: int) -> None:
        """Wait until so many suites have started."""
        await_that(lambda: len(self.ledger("start")) >= count, f"{count} suites start")

    def events(self, job_id: int) -> list[Event]:
        """Return what happened to an attempt."""
        return [move.row.event for move in self.attempt(job_id).history]

    def deliver(self, job_id: int, machine: str = "one") -> Fleet:
        """Work on a job in this process, as a worker of a machine would that was given it now."""
        there = self.seen_from(machine)
        Delivery(there, job_id, self.row(job_id).repo).run()
        return there

    def stage_of(self, item: str) -> str:
        """Return where a work item of the shop is."""
        store = self.desk.store
        with store.transaction() as tx:
            return store.work_item(tx, "shop", item).stage

    def kill_at_its_push(self, moment: str) -> int:
        """Kill a worker of machine one when the remote gets its verdict, or has it; return the job.

        `moment` is a hook of the remote.
        """
        job = self.submit("shop", "WI-1", hold=True)
        worker = self.machine("one").start()
        self.await_starts(1)
        hook = self.remote("shop") / "hooks" / moment
        # Before it is received, it is refused, too.
        hook.write_text(f"#!/bin/sh\nkill -9 {worker.pid}\nexit 1\n")
        hook.chmod(0o755)
        self.let_go("WI-1")
        worker.wait()
        hook.unlink()
        assert self.attempt(job).state == State.VERDICT_PASSED
        return job

    def end_sessions(self) -> None:
        """End every other session of the server that holds a lock, as its restart does."""
        query = sa.text(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            " AND pid <> pg_backend_pid()"
        )
        with self.engine.begin() as connection:
            connection.execute(query)

    def deliveries(self) -> list[int]:
        """Return the ids of deliveries that have not been worked on."""
        return self._deliveries("true")

    def aborted(self) -> list[int]:
        """Return the ids of deliveries whose worker is asked to stop."""
        return self._deliveries("abort_requested")

    def waiting(self) -> list[int]:
        """Return the ids of deliveries that a worker may fetch."""
        return self._deliveries("status = 'todo'")

    def _deliveries(self, condition: str) -> list[int]:
        jobs = f"{self.schema}.procrastinate_jobs"
        query = f"SELECT id FROM {jobs} WHERE task_name = :task AND {condition}"  # noqa: S608  # names of ours
        with self.engine.connect() as connection:
            return list(connection.execute(sa.text(query), {"task": TASK}).scalars())

    def take_delivery(self) -> int:
        """Take the one delivery there is, as a worker would; return how often it was tried.

        The fence of a look before it may still be held: the server lets go when it has seen
        that the connection is closed.
        """
        await_that(lambda: not self.fences(), "the server has let go of the last look's fence")
        query = (
            "DELETE FROM procrastinate_jobs WHERE task_name = :task"
            " RETURNING CAST(args ->> 'tries' AS integer)"
        )
        with self.engine.begin() as connection:
            # Its triggers find the engine's tables by that.
            connection.execute(sa.text(f"SET LOCAL search_path TO {self.schema}"))
            return int(connection.execute(sa.text(query), {"task": TASK}).scalar_one())

    def fences(self) -> int:
        """Return how many fences are held."""
        query = (
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        with self.engine.connect() as connection:
            return int(connection.execute(sa.text(query)).scalar_one())

    def set_attempt(self, job_id: int, snapshot: Snapshot) -> None:
        """Put an attempt into a job's row, as if it had come so far."""
        metadata = json.dumps({SNAPSHOT_KEY: json.loads(dump_snapshot(snapshot))})
        query = sa.text("UPDATE jobs SET metadata = :metadata WHERE id = :id")
        with self.engine.begin() as connection:
            connection.execute(query, {"metadata": metadata, "id": job_id})

    def await_refusals(self) -> None:
        """Wait until a job was given to workers that stood before its fence, again and again."""
        seen: set[int] = set()

        def refused() -> bool:
            seen.update(self.deliveries())
            # The first is the dead worker's, the second the sweep's; all others were refused.
            return len(seen) > REFUSALS + 2

        await_that(refused, "it is refused")

    def workers(self) -> int:
        """Return how many workers the engine knows."""
        query = f"SELECT count(*) FROM {self.schema}.procrastinate_workers"  # noqa: S608  # a name of ours
        with self.engine.connect() as connection:
            return int(connection.execute(sa.text(query)).scalar_one())

    def published(self, repo: str, item: str, name: str = "15-staging-log.md") -> str:
        """Return a paper of a work item as it is on its branch of the remote."""
        return git(self.remote(repo), "show", f"{item}:docs/work-items/{item}/{name}")

    def published_digest(self, repo: str, item: str) -> str:
        """Return the SHA-256 of the artifact on the branch."""
        path = f"{item}:docs/work-items/{item}/15-staging-log.md"
        shown = subprocess.run(
            ["git", "-C", str(self.remote(repo)), "show", path], capture_output=True, check=True
        )
        return hashlib.sha256(shown.stdout).hexdigest()

    def set_up(self) -> None:
        """Make the host's tables and the engine's."""
        SqlHostStore(self.engine).create_schema()
        assert self.desk.deliveries.set_up(self.engine)

    def tear_down(self) -> None:
        """End every process of the fleet, and remove the engine's schema."""
        for machine in self.machines.values():
            for worker in machine.workers:
                worker.kill()
                worker.wait()
            machine.kill_supervisors()
        while kill_marked("FLEET", str(self.root)) or kill_marked(MARK, str(self.root)):
            pass
        with self.engine.begin() as connection:
            connection.execute(sa.text(f"DROP SCHEMA IF EXISTS {self.schema} CASCADE"))
        self.engine.dispose()


@contextlib.contextmanager
def fleet_stand(root: Path, url: str, **settings: str) -> Iterator[FleetStand]:
    """Yield a fleet that is set up; nothing of it is left at the end."""
    stand = FleetStand(root, url, f"engine_{os.getpid()}_{root.name[-6:]}".lower(), settings)
    stand.schema = "".join(c if c.isalnum() else "_" for c in stand.schema)
    try:
        stand.set_up()
        yield stand
    finally:
        stand.tear_down()


def with_agent(root: Path, text: str = AGENT) -> dict[str, str]:
    """Return the settings of a fleet whose agents do what `text` says."""
    (root / "agent.sh").write_text(text)
    command = f"sh {root / 'agent.sh'}"
    return {"ORCH_AGENT_COMMAND": command, "ORCH_LOG_DIR": str(root / "agents")}


@contextlib.contextmanager
def present_machine(there: Fleet) -> Iterator[None]:
    """Give the sign of a worker, which another machine's workers see."""
    with there.server.connect() as connection:
        key = [there.server.key("machine", there.machine)]
        connection.execute("SELECT pg_advisory_lock_shared(hashtextextended(%s, 0))", key)
        yield
        # The server notices later that a connection has ended.
        connection.execute("SELECT pg_advisory_unlock_shared(hashtextextended(%s, 0))", key)

"""Workers in other containers: what lives in one is left alone, and what a dead one left is not.

A container is a process namespace here, as the system makes one for any container.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest

from desk import PASSING, Desk
from hosts import DEADLINE_SECONDS, Maker
from staging_fsm.core.outcome import Reason
from staging_fsm.core.plan import UNVERSIONED, SuitePlan
from staging_fsm.core.ports import RunCondition, RunOrder
from staging_fsm.core.spec import State
from staging_fsm.drive.recovery import worker_is_alive
from staging_fsm.effects.processes import ProcessIdentity, this_process, this_scope
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.effects.suite import LocalSuites
from staging_fsm.effects.worker_lock import WorkerLock, has_ended, prune
from staging_fsm.faces.queue import staging_runner_block
from staging_fsm.host.worker import Worker
from stand import RUN, Stand, await_that

#: The first that this system allows is taken; the second needs nothing but user namespaces.
CONTAINERS = (
    ["unshare", "--pid", "--fork", "--mount-proc"],
    ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"],
)
#: Holds the lock of its worker, starts `cat` with it, says who it is, and waits to be killed.
#: Or, with another word, forks one that says who it is as well, once it holds a lock of its own.
HOLDER = (
    sys.executable,
    "-c",
    """
import os, pathlib, subprocess, sys
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.effects.suite import LocalSuites
from staging_fsm.effects.worker_lock import WorkerLock
lock = WorkerLock(StateDir(pathlib.Path(sys.argv[1])))
name = lock.take()
if "child" in sys.argv:
    subprocess.Popen(["cat"], pass_fds=lock.descriptors)
print(name, flush=True)
if "fork" in sys.argv and os.fork() == 0:
    print(lock.take(), flush=True)
sys.stdin.read()
""",
)


def container() -> list[str]:
    """Return the words that start a command in a container of its own, or skip the test."""
    for words in CONTAINERS:
        with contextlib.suppress(OSError):
            if subprocess.run([*words, "true"], check=False, capture_output=True).returncode == 0:
                return words
    pytest.skip("this system allows no process namespace")


def kill_container(outer: "subprocess.Popen[Any]") -> None:
    """Kill the first process of a container, and with it everything in there."""
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text()
    os.kill(int(children.split()[0]), signal.SIGKILL)
    outer.wait(DEADLINE_SECONDS)


@contextlib.contextmanager
def holder(*words: str) -> Iterator["subprocess.Popen[str]"]:
    """Have another process hold its lock, started by `words`; it lives until its input ends."""
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:
        try:
            yield it
        finally:
            it.kill()


def told_by(process: "subprocess.Popen[str]") -> str:
    """Return the name by which a holder calls itself, once its lock is held."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def as_seen_elsewhere(worker: str) -> ProcessIdentity:
    """Return a worker as it looks from another container: of a namespace that is not ours."""
    identity = ProcessIdentity.parse(worker)
    host, boot, _ = identity.scope.split(":")
    return attrs.evolve(identity, scope=f"{host}:{boot}:1")


def lock_of(state: StateDir, worker: ProcessIdentity) -> Path:
    """Return an empty lock of a worker of another container, which nobody holds."""
    _, boot, namespace = worker.scope.split(":")
    path = state.workers / f"{boot}.{namespace}.{worker.pid}.{worker.start}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


# The lock.


def test_worker_whose_process_can_be_seen_lives_whatever_became_of_its_lock(tmp_path: Path) -> None:
    """A process that is seen to live is no dead worker, also where its lock is nobody's."""
    state, me = StateDir(tmp_path), this_process()
    lock_of(state, me)

    assert has_ended(state, me)
    assert worker_is_alive(str(me), state) is True


def test_worker_of_another_container_is_known_to_have_ended_once_it_has(tmp_path: Path) -> None:
    """Of a worker in another container nothing is known while it lives, and then that it is dead.

    It is asked by its name alone, as it stands in a row.
    """
    state = StateDir(tmp_path)
    with holder(*container(), *HOLDER, str(tmp_path)) as outer:
        worker = told_by(outer)
        before = worker_is_alive(worker, state)
        kill_container(outer)

    assert ProcessIdentity.parse(worker).scope != this_scope()
    assert before is None
    assert worker_is_alive(worker, state) is False
    assert worker_is_alive(worker) is None


@pytest.mark.parametrize("alive", ["worker", "child"])
def test_lock_is_held_while_the_worker_or_what_it_started_lives(tmp_path: Path, alive: str) -> None:
    """A worker counts as ended once neither it nor any supervisor or agent of it is alive."""
    state = StateDir(tmp_path)
    with holder(*HOLDER, str(tmp_path), alive) as process:
        worker = ProcessIdentity.parse(told_by(process))
        if alive == "child":
            # Its input is the worker's: the child lives for as long as that is open.
            process.kill()
            process.wait(DEADLINE_SECONDS)
        while_alive = has_ended(state, worker)
        assert process.stdin is not None
        process.stdin.close()
        assert process.stdout is not None
        process.stdout.read()

    assert while_alive is False
    await_that(lambda: has_ended(state, worker))


def test_worker_without_a_lock_is_unknown(tmp_path: Path) -> None:
    """A worker of another container whose lock is not to be found never passes for dead."""
    state, elsewhere = StateDir(tmp_path), as_seen_elsewhere(str(this_process()))
    before = worker_is_alive(str(elsewhere), state)
    lock_of(state, elsewhere)

    assert before is None
    assert worker_is_alive(str(elsewhere), state) is False


def test_lock_says_nothing_of_another_boot(tmp_path: Path) -> None:
    """A lock is of one kernel: of a worker of another it says nothing, whatever its file is called.

    A folder that two machines share would have each take the other's workers for dead.
    """
    state, here = StateDir(tmp_path), this_process()
    _, boot, namespace = here.scope.split(":")
    elsewhere = attrs.evolve(here, scope=f"elsewhere:another{boot}:{namespace}")
    lock_of(state, elsewhere)

    assert worker_is_alive(str(elsewhere), state) is None


def test_lock_that_is_a_link_says_nothing(tmp_path: Path) -> None:
    """A link in the place of a lock is not followed."""
    state, elsewhere = StateDir(tmp_path), as_seen_elsewhere(str(this_process()))
    path = lock_of(state, elsewhere)
    path.unlink()
    path.symlink_to(lock_of(state, attrs.evolve(elsewhere, pid=7)))

    assert worker_is_alive(str(elsewhere), state) is None


def test_worker_has_not_ended_the_moment_its_lock_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks as soon as a worker's lock has its name finds it held."""
    state, link, seen = StateDir(tmp_path), os.link, []

    def link_and_look(source: Path, path: Path) -> None:
        link(source, path)
        seen.append(has_ended(state, this_process()))

    monkeypatch.setattr(os, "link", link_and_look)
    lock = WorkerLock(state)
    lock.take()

    assert lock.descriptors
    assert seen == [False]


def test_parts_of_one_process_hold_one_lock(tmp_path: Path) -> None:
    """Two intercepts of one process keep it alive together: it has not ended with the first."""
    state = StateDir(tmp_path)
    first, second = WorkerLock(state), WorkerLock(state)
    name = first.take()
    assert (second.take(), second.take()) == (name, name)
    files = [path.name for path in state.workers.iterdir()]
    del first
    with_one = has_ended(state, ProcessIdentity.parse(name))
    del second

    assert files == [lock_of(state, this_process()).name]
    assert with_one is False
    assert has_ended(state, this_process()) is True


def test_forked_worker_holds_a_lock_of_its_own(tmp_path: Path) -> None:
    """A process that was forked from a worker is known by a lock of its own, and by no other."""
    state = StateDir(tmp_path)
    lock = WorkerLock(state)
    lock.take()
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            name = lock.take()
            os.write(tell, f"{name} {len(lock.descriptors)}".encode())
        os._exit(0)
    os.close(tell)
    os.waitpid(pid, 0)
    with os.fdopen(told) as pipe:
        name, count = pipe.read().split()

    assert (ProcessIdentity.parse(name).pid, count) == (pid, "1")
    assert has_ended(state, ProcessIdentity.parse(name)) is True
    assert has_ended(state, this_process()) is False


def test_worker_has_ended_though_one_that_was_forked_from_it_lives(tmp_path: Path) -> None:
    """A worker counts as ended once it is dead, though one that was forked from it works on."""
    state = StateDir(tmp_path)
    with holder(*HOLDER, str(tmp_path), "fork") as process:
        workers = [ProcessIdentity.parse(told_by(process)) for _ in range(2)]
        process.kill()
        process.wait(DEADLINE_SECONDS)
        ended = [has_ended(state, worker) for worker in workers]

    assert ended == [True, False]


def test_worker_whose_lock_cannot_be_held_works_all_the_same(desk: Desk) -> None:
    """Where the lock of a worker cannot be made its jobs are done, and its end is not known."""
    state = StateDir(desk.folder / "other")
    state.ensure()
    state.workers.write_text("in the way")
    desk.set("STATE_DIR", str(state.root))
    desk.staging = desk.new_worker()
    desk.claim()
    desk.launch()
    prune(state, 1.0)

    assert desk.state() is State.ADVANCED
    assert worker_is_alive(str(as_seen_elsewhere(desk.snapshot().worker)), state) is None


def test_old_locks_are_removed_and_none_that_is_held(tmp_path: Path) -> None:
    """A lock that was free for long is removed; one that is held counts from its last holder on."""
    state = StateDir(tmp_path)
    lock = WorkerLock(state)
    held = lock_of(state, ProcessIdentity.parse(lock.take()))
    old, young = (lock_of(state, ProcessIdentity("a:b:1", pid, 1)) for pid in (1, 2))
    for path in (held, old):
        os.utime(path, (0, 0))
    prune(state, 1.0)

    assert {*state.workers.iterdir()} == {held, young}
    assert held.stat().st_mtime > 1.0


# What a container leaves behind.


def test_attempt_of_a_container_that_is_gone_is_taken_up(desk: Desk, tmp_path: Path) -> None:
    """A suite that dies with its container is lost, and run again by the next worker there is.

    While the container lives its attempt is left alone, and nobody is told that it is stuck.
    """
    told, suites = tmp_path / "told", tmp_path / "suites.toml"
    os.mkfifo(told)
    suites.write_text(f'[default]\ncommand = ["sh", "-c", "echo >{told}; exec sleep 600"]\n')
    desk.set("SUITES_FILE", str(suites))
    words = "import sys; from staging_fsm.faces.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", words, "worker", "--db", str(desk.kit.store.engine.url)]
    variables = {**os.environ, **desk.variables}
    with subprocess.Popen([*container(), *command], env=variables) as outer:
        told.read_text()
        before, recovered = desk.raw_row(), desk.staging.recover()
        stuck = staging_runner_block(desk.staging.rows, desk.variables)["attempts"][0]["stuck"]
        kill_container(outer)
    gone = staging_runner_block(desk.staging.rows, desk.variables)["attempts"][0]["stuck"]

    assert (recovered, stuck) == ([], None)
    assert "Its worker is gone" in str(gone)
    assert [row.id for row in desk.staging.recover()] == [desk.job_id]
    assert before["status"] == "running"
    assert desk.state() is State.DEFERRED
    assert desk.snapshot().reasons == (Reason.WORKER_LOST,)


def test_verdict_of_a_container_that_is_gone_counts(stand: Stand) -> None:
    """A result that a supervisor in another container has left is taken, once its lock is free."""
    stand.run("true")
    host, boot, _ = this_scope().split(":")
    stand.reorder(scope=f"{host}:{boot}:1")
    with stand.file("lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        while_held = stand.suites.condition(RUN)
        stand.suites.reap(RUN)
    free = stand.suites.condition(RUN)
    stand.file("result").unlink()

    assert (while_held, free) == (RunCondition.FOREIGN, RunCondition.FINISHED)
    assert stand.suites.condition(RUN) is RunCondition.LOST
    assert stand.file("closed").exists()


def test_supervisor_holds_the_lock_of_its_worker(stand: Stand) -> None:
    """A worker counts as alive elsewhere while a supervisor of its is, and its suite has no part.

    A daemon that a suite leaves behind would otherwise keep its worker alive for ever.
    """
    lock = WorkerLock(stand.state)
    me = ProcessIdentity.parse(lock.take())
    suites = LocalSuites(stand.state, stand.variables, worker=lock)
    show = "ls -l /proc/self/fd; echo > $LIFELINE; exec cat $RELEASE"
    plan = SuitePlan(("/bin/sh", "-c", show), environment=("LIFELINE", "RELEASE"))
    suites.start(RunOrder(RUN, stand.root / "tree", UNVERSIONED, plan))
    stand.lifeline.await_members(1)
    del lock, suites
    during = has_ended(stand.state, me)
    stand.let_go()
    report = stand.collect()

    assert during is False
    assert has_ended(stand.state, me) is True
    assert report.facts.exit_code == 0
    assert "/workers/" not in stand.log().decode()


def test_supervisor_of_a_run_of_a_host_holds_the_lock_of_its_worker(desk: Desk) -> None:
    """The runner of a host has its worker's lock held by what it starts, without being told to."""
    desk.suites_file = PASSING.replace('["true"]', '["sh", "-c", "ls -l /proc/$PPID/fd"]')
    desk.claim()
    desk.launch()
    log = desk.snapshot().last_run.log

    assert log is not None
    assert f"{desk.folder / 'state'}/workers/" in Path(log).read_text()


def test_job_of_a_container_that_is_gone_is_queued_again(make_host: Maker, tmp_path: Path) -> None:
    """An agent's job is queued again once its worker's container is gone, and not before."""
    kit, state = make_host(), StateDir(tmp_path / "state")
    job_id = kit.add("development")
    with holder(*HOLDER, str(state.root)) as process:
        name = told_by(process)
        elsewhere = as_seen_elsewhere(name)
        lock_of(state, ProcessIdentity.parse(name)).rename(lock_of(state, elsewhere))
        kit.store.claim_next(kit.host.clock.now(), str(elsewhere), job_id)
        looking = Worker(
            kit.host, str(this_process()), liveness=partial(worker_is_alive, state=state)
        )
        before = looking.requeue_abandoned()
        process.kill()
        process.wait(DEADLINE_SECONDS)

    assert before == []
    assert [job.id for job in looking.requeue_abandoned()] == [job_id]


def test_agent_holds_the_lock_of_its_worker(make_host: Maker, tmp_path: Path) -> None:
    """No other container queues a job again while the agent that a dead worker left may live."""
    state = StateDir(tmp_path / "state")
    lock = WorkerLock(state)
    lock.take()
    kit = make_host(agent="import os; print(*map(os.path.realpath, os.scandir('/proc/self/fd')))")
    job_id = kit.add("development")
    host = attrs.evolve(kit.host, inherited=lock.descriptors)
    Worker(host, str(this_process())).run_one(job_id)
    said = (tmp_path / "agent-logs" / f"job-{job_id}.log").read_text()

    assert str(state.workers) in said

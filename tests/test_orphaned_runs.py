"""Runs whose worker is gone: adopted, collected, stopped, given up, and in the end removed."""

import errno
import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from staging_fsm.core.errors import PreparationError
from staging_fsm.core.outcome import Stop, Supervision
from staging_fsm.core.plan import RUN_VARIABLE, Workspace
from staging_fsm.core.ports import RunCondition, RunReport
from staging_fsm.effects import suite as suite_module
from staging_fsm.effects import supervised, worktree
from staging_fsm.effects.processes import ProcessIdentity, start_ticks, this_scope, wait_for_end
from staging_fsm.effects.run_folder import RunFolder
from staging_fsm.effects.suite import LocalSuites
from stand import PATIENCE_SECONDS, RUN, Stand, has_ended, patch_supervisor, program, worker_command

# A worker that is gone.


@pytest.fixture
def orphaned(stand: Stand) -> Callable[..., Stand]:
    """Return a starter of runs whose worker is killed as soon as the run has begun."""

    def start(*command: str) -> Stand:
        abandoning = subprocess.Popen(
            worker_command(stand, "abandon", *command),
            env={**os.environ, **stand.variables},
            stdout=subprocess.PIPE,
        )
        with abandoning:
            assert abandoning.stdout is not None
            assert abandoning.stdout.readline() == b"started\n"
            stand.pid("leader")
            abandoning.kill()
        return stand

    return start


def test_run_outlives_its_worker_and_is_collected_by_another(
    orphaned: Callable[..., Stand],
) -> None:
    """A run goes on when its worker is killed; another worker adopts it and gets its result."""
    stand = orphaned(*program("closer"))
    stand.lifeline.await_members(1)

    assert stand.suites.condition(RUN) == RunCondition.LIVE
    stand.let_go()
    assert (stand.collect().facts.exit_code, stand.log()) == (3, b"the last words\n")


def test_run_of_a_worker_without_standard_input_is_held_by_its_supervisor(stand: Stand) -> None:
    """A worker that was started with its input closed has its runs be adopted as any other's."""
    waiting = "echo > $LIFELINE; until test -e go; do sleep 0.01; done; exit 3"
    command = worker_command(stand, "abandon", "/bin/sh", "-c", waiting)
    with subprocess.Popen(
        ["/bin/sh", "-c", 'exec "$@" <&-', "sh", *command],
        env={**os.environ, **stand.variables},
        stdout=subprocess.PIPE,
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"started\n"
        stand.lifeline.await_members(1)
        worker.kill()

    assert stand.suites.condition(RUN) == RunCondition.LIVE
    (stand.root / "go").touch()
    assert stand.collect().facts.exit_code == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_terminal_that_ends_a_worker_does_not_end_its_run(
    stand: Stand, number: signal.Signals
) -> None:
    """What a terminal sends to its worker and to all of its group does not reach a run."""
    waiting = "echo > $LIFELINE; until test -e go; do sleep 0.01; done; exit 3"
    with subprocess.Popen(
        worker_command(stand, "abandon", "/bin/sh", "-c", waiting),
        env={**os.environ, **stand.variables},
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"started\n"
        stand.lifeline.await_members(1)
        os.killpg(worker.pid, number)
        has_ended(worker.pid)
        worker.kill()
    (stand.root / "go").touch()
    facts = stand.collect().facts

    assert worker.returncode == -number
    assert (facts.stopped_by, facts.exit_code) == (None, 3)


def test_run_that_ended_without_its_worker_is_finished(orphaned: Callable[..., Stand]) -> None:
    """A run whose worker died is finished when its result is there, and has lost nothing."""
    stand = orphaned("/bin/sh", "-c", "exit 4")
    assert has_ended(stand.pid())

    assert stand.suites.condition(RUN) == RunCondition.FINISHED
    assert stand.collect().facts.exit_code == 4


def test_run_that_ends_while_it_is_looked_at_is_finished(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor lets go of its lock after its result is there: so that is looked for last."""
    stand.start("true")
    stand.await_result()
    assert has_ended(stand.pid())
    result, elsewhere, lock = stand.file("result"), stand.file("elsewhere"), RunFolder.lock
    result.rename(elsewhere)

    def end_meanwhile(folder: RunFolder) -> AbstractContextManager[int | None]:
        elsewhere.rename(result)
        return lock(folder)

    monkeypatch.setattr(RunFolder, "lock", end_meanwhile)

    assert stand.suites.condition(RUN) == RunCondition.FINISHED


def test_live_run_of_another_worker_can_be_stopped(orphaned: Callable[..., Stand]) -> None:
    """A run can be reaped by a worker that did not start it."""
    stand = orphaned(*program("tree", "crowd", "stay"))
    stand.lifeline.await_members(1)
    stand.suites.reap(RUN)

    assert stand.lifeline.is_cut()
    assert stand.suites.condition(RUN) == RunCondition.FINISHED


def test_adopted_run_keeps_its_deadline(
    orphaned: Callable[..., Stand], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adopted supervisor that hangs has the time left that it had, not its whole time again.

    Its grace it has whole.
    """
    waits: list[float] = []

    def wait(identity: ProcessIdentity, seconds: float) -> bool:
        waits.append(seconds)
        return wait_for_end(identity, 0.0)

    monkeypatch.setattr(supervised, "wait_for_end", wait)
    monkeypatch.setattr(supervised, "age_seconds", lambda _: PATIENCE_SECONDS)
    stand = orphaned(*program("tree", "plain", "stay"))
    stand.lifeline.await_members(1)
    grace = RunFolder(stand.state, RUN).order().kill_grace_seconds
    stand.collect()

    assert waits[:2] == [supervised.LATE_SECONDS, grace + supervised.LATE_SECONDS]


def test_run_that_was_given_up_can_no_longer_start(stand: Stand) -> None:
    """Once a run is said to be lost, nobody can start it."""
    assert stand.suites.condition(RUN) == RunCondition.LOST

    with pytest.raises(PreparationError):
        stand.start("/usr/bin/touch", "it-ran")
    assert not (stand.root / "tree" / "it-ran").exists()


def test_reaping_of_a_finished_run_ends_what_is_left_of_it(stand: Stand) -> None:
    """A run that has a result is reaped of what it could not stop itself."""
    stand.run("true")
    mark = {RUN_VARIABLE: RUN}
    left = subprocess.Popen(["sleep", "600"], env={**stand.variables, **mark})
    try:
        stand.suites.reap(RUN)
        ended = left.wait(PATIENCE_SECONDS)
    finally:
        left.kill()
        left.wait()

    assert ended == -signal.SIGKILL


def test_run_is_closed_before_anybody_else_gets_its_lock(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that asks for the lock of a run while it is given up does not get it."""
    close, taken = RunFolder.close, list[int | None]()

    def ask_meanwhile(folder: RunFolder) -> None:
        with folder.lock() as lock:
            taken.append(lock)
        close(folder)

    monkeypatch.setattr(RunFolder, "close", ask_meanwhile)

    assert stand.suites.condition(RUN) == RunCondition.LOST
    assert taken == [None]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_run_whose_lock_cannot_be_looked_at_is_left_alone(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Where a lock cannot be opened nobody knows whose it is: its run is neither lost nor ended."""
    stand.start(*program("closer"))
    stand.lifeline.await_members(1)
    lock, real = stand.file("lock"), os.open

    def refuse(path: Any, *how: Any, **where: Any) -> int:
        if path == lock:
            raise OSError(number, os.strerror(number))
        return real(path, *how, **where)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        for look in (stand.suites.condition, stand.suites.reap):
            with pytest.raises(OSError, match=os.strerror(number)):
                look(RUN)
    stand.let_go()

    assert not stand.file("closed").exists()
    assert stand.collect().facts.exit_code == 3


@pytest.fixture
def asleep(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> "subprocess.Popen[bytes]":
    """Return the supervisor of a run, stopped before it did anything."""
    patch_supervisor(monkeypatch, "", before="import os; os.kill(os.getpid(), 19); ")
    stand.start("/usr/bin/touch", "it-ran")
    supervisor, _ = supervised._CHILDREN[stand.state.run(RUN)]
    os.waitid(os.P_PID, supervisor.pid, os.WSTOPPED | os.WNOWAIT)
    return supervisor


def test_supervisor_lives_from_its_first_moment(
    stand: Stand, asleep: "subprocess.Popen[bytes]"
) -> None:
    """A run whose supervisor has only just been started is live, though nobody waits for it."""
    assert stand.suites.condition(RUN) == RunCondition.LIVE
    asleep.send_signal(signal.SIGCONT)

    assert stand.collect().facts.exit_code == 0
    assert (stand.root / "tree" / "it-ran").exists()


def test_supervisor_that_never_begins_is_ended_by_another_worker(
    stand: Stand, asleep: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that does not say who it is in time is found by its mark, and ended."""
    monkeypatch.setattr(supervised, "START_SECONDS", 0.1)
    monkeypatch.setattr(supervised, "_CHILDREN", {})
    stand.suites.reap(RUN)

    assert asleep.wait() == -signal.SIGKILL
    assert stand.suites.condition(RUN) == RunCondition.LOST
    assert not (stand.root / "tree" / "it-ran").exists()


def test_session_of_a_lost_runs_leader_is_swept(stand: Stand) -> None:
    """Who is still in the session of a lost run's leader is killed, though it carries no mark."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as leader, ExitStack() as stack:
        stack.callback(leader.kill)
        stand.file("leader").parent.mkdir(parents=True)
        stand.file("leader").write_text(f"pid={leader.pid}\nstart={start_ticks(leader.pid)}\n")
        stand.suites.sweep(RUN)

        assert leader.wait(PATIENCE_SECONDS) == -signal.SIGKILL


def test_supervisor_of_ours_that_died_leaves_no_zombie(stand: Stand) -> None:
    """A supervisor that came to no end is waited for by the worker that started it, once reaped."""
    stand.start(*program("tree", "plain", "stay"))
    stand.lifeline.await_members(1)
    supervisor = stand.pid()
    os.kill(supervisor, signal.SIGKILL)
    assert has_ended(supervisor)
    stand.suites.reap(RUN)

    with pytest.raises(ProcessLookupError):
        os.kill(supervisor, 0)
    assert stand.lifeline.is_cut()


def test_run_has_one_supervisor(stand: Stand) -> None:
    """While its supervisor lives, nobody else gets the lock of a run, and then anybody does."""
    stand.start(*program("closer"))
    stand.lifeline.await_members(1)
    folder = RunFolder(stand.state, RUN)
    with folder.lock() as taken:
        stand.let_go()
    stand.collect()
    with folder.lock() as free:
        pass

    assert taken is None
    assert free is not None


def test_who_waits_for_a_run_that_is_stopped_learns_of_it(stand: Stand) -> None:
    """A worker that waits for a run which somebody else reaps is told that it was stopped."""
    stand.start(*program("tree", "plain", "stay"))
    stand.lifeline.await_members(1)
    reports: list[RunReport] = []
    waiting = threading.Thread(target=lambda: reports.append(stand.collect()))
    waiting.start()
    stand.suites.reap(RUN)
    waiting.join()

    assert [report.facts.stopped_by for report in reports] == [Stop.REQUEST]


class BusyLock:
    """A lock that another thread has, whoever asks for it first."""

    def __init__(self) -> None:
        """Make the lock."""
        self.lock, self.asked = threading.Lock(), 0

    def acquire(self, *how: Any) -> bool:
        """Take the lock, if this is not the first time that it is asked for."""
        self.asked += 1
        return self.asked > 1 and self.lock.acquire(*how)

    def release(self) -> None:
        """Give the lock back."""
        self.lock.release()


def test_two_that_wait_for_a_supervisor_both_learn_how_it_ended(stand: Stand) -> None:
    """A thread that asks how a supervisor ended while another does waits for the answer."""
    stand.start("true")
    child, _ = supervised._CHILDREN[stand.state.run(RUN)]
    busy = BusyLock()
    child._waitpid_lock = busy  # type: ignore[attr-defined]  # the standard library's own

    assert stand.collect().facts.supervision == Supervision.SOUND
    assert busy.asked > 1


def test_run_is_started_once(stand: Stand) -> None:
    """A run that was started once is not started again: it is one execution."""
    stand.run("true")

    with pytest.raises(PreparationError, match="exists"):
        stand.start("/usr/bin/touch", "it-ran")
    assert not (stand.root / "tree" / "it-ran").exists()


def test_run_of_another_machine_is_left_alone(stand: Stand) -> None:
    """A run that another machine started is neither judged nor touched."""
    stand.run("true")
    stand.reorder(scope="elsewhere:boot:1", workspace=Workspace.WORKTREE)
    stand.file("result").unlink()
    stand.state.worktree(RUN).mkdir(parents=True)
    stand.suites.reap(RUN)

    assert stand.suites.condition(RUN) == RunCondition.FOREIGN
    assert not stand.file("closed").exists()
    assert stand.state.worktree(RUN).exists()


def test_bystander_with_the_number_of_a_supervisor_is_never_signalled(stand: Stand) -> None:
    """A process that was given the number of a supervisor that is gone survives its reaping."""
    stand.run("true")
    stand.file("result").unlink()
    with (
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as bystander,
        stand.file("lock").open("rb") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        start = start_ticks(bystander.pid)
        assert start is not None
        for name in ("shim", "leader"):
            stand.file(name).write_text(f"pid={bystander.pid}\nstart={start - 1}\n")
        assert stand.suites.condition(RUN) == RunCondition.LIVE
        stand.suites.reap(RUN)
        answer, _ = bystander.communicate(b"alive")

    assert (answer, bystander.returncode) == (b"alive", 0)


def test_bystander_with_another_mark_survives_the_sweep(stand: Stand) -> None:
    """A sweep kills whoever carries the mark of its run, to the letter, and nobody else."""
    environment = {"STAGING_ATTEMPT": RUN + "0", "PATH": os.environ["PATH"]}
    with subprocess.Popen(
        ["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as bystander:
        left = stand.suites.sweep(RUN)
        answer, _ = bystander.communicate(b"alive")

    assert (left, answer) == (0, b"alive")


def test_run_of_an_earlier_boot_is_this_machines(stand: Stand) -> None:
    """After a reboot what was under way is lost, and not another machine's to look after."""
    stand.run("true")
    host, _, namespace = this_scope().rsplit(":", 2)
    stand.reorder(scope=f"{host}:another-boot:{namespace}")
    stand.file("result").unlink()

    assert stand.suites.condition(RUN) is RunCondition.LOST


def test_suite_that_leaves_somebody_elsewhere_is_stopped_at_once(stand: Stand) -> None:
    """Nobody waits out the grace of a stop for who has left the suite's session."""
    left = "setsid sh -c 'echo > $LIFELINE; exec sleep 600' & echo > $LIFELINE; exec sleep 600"
    stand.start("/bin/sh", "-c", left, kill_grace_seconds=2 * PATIENCE_SECONDS)
    stand.lifeline.await_members(2)
    reaping = threading.Thread(target=stand.suites.reap, args=(RUN,), daemon=True)
    reaping.start()
    reaping.join(PATIENCE_SECONDS)

    assert not reaping.is_alive()
    assert stand.lifeline.is_cut()


# What is kept.


def test_old_runs_are_removed_and_none_that_is_needed(stand: Stand) -> None:
    """What ended long ago is removed, but for unfinished attempts, live runs and other machines."""
    for run in ("old.1", "unfinished.1", "foreign.1", "young.1"):
        stand.run("true", run_id=run)
    stand.start(*program("closer"), run_id="live.1")
    stand.lifeline.await_members(1)
    stand.reorder("foreign.1", scope="elsewhere:boot:1")
    runs = stand.state.root / "runs"
    for run in ("old.1", "unfinished.1", "foreign.1", "live.1"):
        os.utime(runs / run, (0, 0))
    stand.suites.prune(0, lambda: {"unfinished"})
    before = sorted(stand.state.run_ids())
    stand.suites.prune(1, lambda: {"unfinished"})
    left = sorted(stand.state.run_ids())
    stand.let_go()

    assert before == ["foreign.1", "live.1", "old.1", "unfinished.1", "young.1"]
    assert left == ["foreign.1", "live.1", "unfinished.1", "young.1"]
    assert not stand.state.reports("old.1").exists()
    assert stand.collect("live.1").facts.exit_code == 3


@pytest.mark.parametrize("kind", [PermissionError, PreparationError])
def test_run_that_cannot_be_looked_at_keeps_no_other(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    """What is no run, or cannot be looked at, stays, and every old run around it is removed."""
    suites = stand.suites
    condition = type(suites).condition

    def asked(suites: LocalSuites, run_id: str) -> RunCondition:
        if run_id == "c.1":
            raise kind(run_id)
        return condition(suites, run_id)

    runs = stand.state.root / "runs"
    for run in ("a.1", "c.1", "e.1"):
        stand.run("true", run_id=run)
        os.utime(runs / run, (0, 0))
    (runs / "b.1").write_text("no folder")
    (runs / "d.1").symlink_to(stand.state.root)
    monkeypatch.setattr(type(suites), "condition", asked)
    suites.prune(1, frozenset)

    left = sorted(path.name for path in runs.iterdir())
    for name in ("b.1", "d.1"):
        (runs / name).unlink()

    assert left == ["b.1", "c.1", "d.1"]


def test_nobody_is_asked_while_nothing_is_old(stand: Stand) -> None:
    """As long as there is nothing to remove, the database is left alone."""
    stand.suites.prune(1, lambda: pytest.fail("asked"))
    stand.run("true")

    stand.suites.prune(1, lambda: pytest.fail("asked"))


def test_old_runs_are_not_looked_for_at_each_launch(stand: Stand) -> None:
    """All run folders are looked at once in a while, however many launches there are."""
    of_one_worker = stand.suites
    of_one_worker.prune(1, lambda: pytest.fail("asked"))
    stand.run("true", run_id="old.1")
    os.utime(stand.state.root / "runs" / "old.1", (0, 0))
    of_one_worker.prune(1, frozenset)
    left = stand.state.run_ids()
    stand.suites.prune(1, frozenset)

    assert left == ["old.1"]
    assert stand.state.run_ids() == []


def old(stand: Stand, *runs: str) -> None:
    """Have runs be there that ended long ago."""
    for run in runs:
        stand.run("true", run_id=run)
        os.utime(stand.state.root / "runs" / run, (0, 0))


def test_run_is_its_attempts_whatever_its_number(stand: Stand) -> None:
    """Of an attempt that has not ended the tenth run is kept as the first, and no other's."""
    old(stand, "a.1", "a.10", "a.1.1", "a.112")
    stand.suites.prune(1, lambda: {"a"})

    assert stand.state.run_ids() == ["a.1", "a.10", "a.112"]


def test_run_that_was_lost_is_removed_as_any_other(stand: Stand) -> None:
    """What is left of a run without a result is not kept for ever."""
    old(stand, "a.1")
    stand.file("result", "a.1").unlink()
    os.utime(stand.state.root / "runs" / "a.1", (0, 0))
    stand.suites.prune(1, frozenset)

    assert stand.state.run_ids() == []


def test_run_stays_while_its_checkout_cannot_be_removed(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its run a checkout is found again: so the run goes last."""
    old(stand, "a.1")
    stand.state.worktree("a.1").mkdir(parents=True)

    def refuse(*_: object) -> None:
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(worktree, "remove_worktree", refuse)
    stand.suites.prune(1, frozenset)
    left = stand.state.run_ids()
    monkeypatch.undo()
    stand.suites.prune(1, frozenset)

    assert left == ["a.1"]
    assert stand.state.run_ids() == []
    assert not stand.state.worktree("a.1").exists()


@pytest.mark.parametrize("order", ["in place", "forged", None])
def test_checkout_of_an_old_run_goes_whatever_its_order_says(
    stand: Stand, order: str | None
) -> None:
    """What a suite has written into its order keeps no checkout from being removed."""
    old(stand, "a.1")
    stand.state.worktree("a.1").mkdir(parents=True)
    if order == "in place":
        stand.reorder("a.1", workspace=Workspace.IN_PLACE)
    elif order == "forged":
        stand.file("order", "a.1").write_text("[]")
    os.utime(stand.state.root / "runs" / "a.1", (0, 0))
    stand.suites.prune(1, frozenset)

    assert not stand.state.worktree("a.1").exists()
    assert stand.state.run_ids() == []


def test_old_runs_are_looked_for_by_a_clock_that_nobody_sets(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far the time of day is set back, old runs are looked for again ten minutes later."""
    now, asked = [0.0, time.time()], list[bool]()
    clock = SimpleNamespace(monotonic=lambda: now[0], time=lambda: now[1])
    old(stand, "a.1")
    monkeypatch.setattr(suite_module, "time", clock)
    suites = stand.suites

    def ask() -> frozenset[str]:
        asked.append(True)
        return frozenset({"a"})

    for later, moment in ((0.0, 0.0), (1.0, 0.0), (suite_module.PRUNE_SECONDS, -86_400.0 * 30)):
        now[0] += later
        now[1] += moment
        suites.prune(1, ask)

    assert asked == [True, True]


def test_store_that_is_away_is_not_asked_at_each_launch_what_to_keep(stand: Stand) -> None:
    """Where nobody can say what is needed, old runs are looked for again ten minutes later."""
    old(stand, "a.1")
    suites, asked = stand.suites, list[bool]()

    def away() -> frozenset[str]:
        asked.append(True)
        message = "away"
        raise OSError(message)

    with pytest.raises(OSError, match="away"):
        suites.prune(1, away)
    suites.prune(1, away)

    assert asked == [True]
    assert stand.state.run_ids() == ["a.1"]


def test_run_whose_supervisor_never_said_who_it_is_is_not_waited_for(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks for a supervisor that dies before its first word learns it by its lock at once."""
    stand.run("true")
    stand.file("shim").unlink()
    waits: list[float] = []
    folder = RunFolder(stand.state, RUN)
    taken = os.open(stand.file("lock"), os.O_RDWR)
    fcntl.flock(taken, fcntl.LOCK_EX)

    def die(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            os.close(taken)
        assert len(waits) < 10

    monkeypatch.setattr(time, "sleep", die)

    assert supervised._await_identity(folder) is None
    assert len(waits) == 3


def test_supervisor_is_waited_for_by_a_clock_that_nobody_sets(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far the time of day is set back, a supervisor without a word is given up in time."""
    stand.run("true")
    stand.file("shim").unlink()
    now = [0.0]

    def pass_by(_seconds: float) -> None:
        now[0] += 1.0
        assert now[0] < 100

    clock = SimpleNamespace(monotonic=lambda: now[0], time=lambda: -1000 * now[0], sleep=pass_by)
    monkeypatch.setattr(supervised, "time", clock)
    taken = os.open(stand.file("lock"), os.O_RDWR)
    fcntl.flock(taken, fcntl.LOCK_EX)
    found = supervised._await_identity(RunFolder(stand.state, RUN))
    os.close(taken)

    assert found is None
    assert now[0] == supervised.START_SECONDS


def test_suite_of_a_hung_supervisor_is_killed_until_nobody_is_left(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who forks while it is killed is killed again, for as long as a pass finds somebody."""
    stand.run("true")
    left = [3, 2, 1, 0, 0]
    monkeypatch.setattr(supervised, "_ends", lambda *_: False)
    monkeypatch.setattr(supervised, "send_signal", lambda *_: None)
    monkeypatch.setattr(supervised, "wait_for_end", lambda *_: True)
    monkeypatch.setattr(supervised, "kill_descendants", lambda _identity: left.pop(0))
    supervised.await_supervisor(RunFolder(stand.state, RUN), 0.0, 0.0)

    assert left == [0]


def test_supervisor_is_told_to_stop_once_it_can_hear(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is reaped in the moment of its start ends with a word, and not unheard."""
    go = stand.root / "go"
    waiting = f"while not main.os.path.exists({str(go)!r}): main.os.sched_yield()"
    patch_supervisor(monkeypatch, f"exec({waiting!r});")
    pause = time.sleep

    def let_go(seconds: float) -> None:
        go.touch()
        pause(seconds)

    stand.start("sleep", "600")
    monkeypatch.setattr(supervised, "time", SimpleNamespace(monotonic=time.monotonic, sleep=let_go))
    stand.suites.reap(RUN)
    monkeypatch.undo()

    assert stand.suites.condition(RUN) is RunCondition.FINISHED
    assert stand.collect().facts.stopped_by == Stop.REQUEST


def test_fence_is_never_what_a_supervisor_reads(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that a worker holds in the place of its input has another number there."""
    given: list[tuple[int, ...]] = []
    real = subprocess.Popen

    def watched(*arguments: Any, **named: Any) -> Any:
        given.append(named["pass_fds"])
        return real(*arguments, **named)

    monkeypatch.setattr(subprocess, "Popen", watched)
    stand.start("true", inherited=[0])
    monkeypatch.undo()
    stand.collect()

    assert len(given[0]) == 2
    assert min(given[0]) > 2

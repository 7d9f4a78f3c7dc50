"""A suite against its supervisor: whatever it kills, forges or replaces, there is no pass."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest

from staging_fsm.core.errors import PreparationError
from staging_fsm.core.evidence import EvidenceState
from staging_fsm.core.outcome import Stop, Supervision, Verdict
from staging_fsm.core.plan import UNVERSIONED, SuitePlan
from staging_fsm.core.ports import RunCondition, RunOrder
from staging_fsm.effects import supervised
from staging_fsm.effects.processes import (
    ProcessIdentity,
    identify,
    is_stopped,
    this_process,
    wait_for_end,
)
from staging_fsm.effects.run_folder import RunFolder
from staging_fsm.effects.suite import LocalSuites
from staging_fsm.effects.supervisor.result import lines_of, sealed
from stand import (
    ATTEMPT,
    PATIENCE_SECONDS,
    RUN,
    Stand,
    await_that,
    has_ended,
    patch_supervisor,
    program,
    verdict,
)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGUSR1])
def test_suite_that_kills_its_supervisor_gets_no_verdict(
    stand: Stand, number: signal.Signals
) -> None:
    """A suite whose supervisor died has no verdict, and nobody of it is left."""
    facts = stand.facts(*program("parricide", str(number.value), "once"))

    assert (facts.supervision, verdict(facts)) == (Supervision.LOST, Verdict.NOT_EXECUTED)
    assert stand.lifeline.is_cut()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_suite_that_terminates_its_supervisor_is_stopped(
    stand: Stand, number: signal.Signals
) -> None:
    """A suite whose supervisor is told to end, interrupted or hung up has asked to be stopped."""
    facts = stand.facts(*program("parricide", str(number.value), "once"))

    assert facts.stopped_by == Stop.REQUEST
    assert stand.lifeline.is_cut()


def test_supervisor_that_was_stopped_is_woken_at_the_deadline(stand: Stand) -> None:
    """A suite that stops its supervisor ends at its deadline all the same."""
    facts = stand.facts(
        *program("parricide", str(signal.SIGSTOP.value), "once"), timeout_seconds=0.3
    )

    assert (facts.supervision, facts.stopped_by) == (Supervision.SOUND, Stop.DEADLINE)
    assert stand.lifeline.is_cut()


def test_suite_that_ended_unseen_has_not_ended_in_time(stand: Stand) -> None:
    """A suite that ended while its supervisor was stopped, until after the deadline, is late."""
    facts = stand.facts(
        *program("parricide", str(signal.SIGSTOP.value), "leave"), timeout_seconds=0.3
    )

    assert (facts.stopped_by, facts.exit_code) == (Stop.DEADLINE, None)


#: A supervisor that is held up between the suite's first moment and its own first look.
LATECOMER = """
clock, opened, late = main.time.monotonic, main.Watch.open_output, [0.0]
def open_late(watch):
    late[0] = 60.0
    opened(watch)
main.time.monotonic = lambda: clock() + late[0]
main.Watch.open_output = open_late
"""


def test_deadline_counts_from_the_first_moment_of_a_suite(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suite that stops its supervisor at once gains no time by it."""
    patch_supervisor(monkeypatch, f"exec({LATECOMER!r});")
    facts = stand.facts("true", timeout_seconds=30)

    assert (facts.stopped_by, facts.exit_code) == (Stop.DEADLINE, None)


#: A supervisor that is held up, by its clock for an hour, before it sees that the suite has ended.
OVERSLEEPER = """
clock, look, late = main.time.monotonic, main.Suite.look, [0.0]
def see(suite):
    look(suite)
    late[0] = 3600.0 * suite.ended
main.time.monotonic = lambda: clock() + late[0]
main.Suite.look = see
"""


def test_end_that_is_seen_after_the_deadline_is_late(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exit code of 0 that is found after the deadline is none: nobody saw it come in time."""
    patch_supervisor(monkeypatch, f"exec({OVERSLEEPER!r});")
    facts = stand.facts("true")

    assert (facts.stopped_by, facts.exit_code) == (Stop.DEADLINE, None)


def test_supervisor_that_was_stopped_can_be_told_to_stop(stand: Stand) -> None:
    """A run whose supervisor is stopped can be reaped."""
    stand.start(*program("parricide", str(signal.SIGSTOP.value), "once"))
    stand.lifeline.await_members(1)
    stand.suites.reap(RUN)

    assert stand.lifeline.is_cut()


#: A supervisor that has something left to do until it is released.
BUSY = """
real = main.sweep
def sweep(*arguments):
    open(main.os.environ["RELEASE"]).read()
    return real(*arguments)
main.sweep = sweep
"""


def test_supervisor_that_was_stopped_once_has_its_time_to_end(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that was woken has the same time to do what is left as any other."""
    monkeypatch.setattr(supervised, "LATE_SECONDS", 0.05)
    release_when_waiting(stand, monkeypatch, supervised.MARGIN_SECONDS)
    patch_supervisor(monkeypatch, f"exec({BUSY!r});")
    stand.start(*program("parricide", str(signal.SIGSTOP.value), "once"))
    supervisor = identify(stand.pid())
    assert supervisor is not None
    await_that(lambda: is_stopped(supervisor))
    stand.suites.reap(RUN)
    facts = stand.collect().facts

    assert (facts.supervision, facts.stopped_by) == (Supervision.SOUND, Stop.REQUEST)
    assert stand.lifeline.is_cut()


def test_supervisor_that_was_stopped_in_its_grace_may_come_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A supervisor that its suite stops once more, while it ends it, is woken once more."""
    ends, woken = iter([False, False, True]), list[signal.Signals]()
    monkeypatch.setattr(supervised, "wait_for_end", lambda *_: next(ends))
    monkeypatch.setattr(supervised, "is_stopped", lambda _: True)
    monkeypatch.setattr(supervised, "send_signal", lambda _, number: woken.append(number))

    assert supervised._ends(this_process(), 0.0, 0.0)
    assert woken == [signal.SIGCONT] * 2


@pytest.mark.parametrize("theirs", [False, True], ids=["ours", "another's"])
def test_suite_that_is_reaped_has_its_whole_grace(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, *, theirs: bool
) -> None:
    """A suite that another worker stops may clean up for as long as its plan says."""
    for name in ("STOP_SECONDS", "LATE_SECONDS", "MARGIN_SECONDS"):
        monkeypatch.setattr(supervised, name, 0.05)
    release_when_waiting(stand, monkeypatch, PATIENCE_SECONDS + 0.05)
    script = (
        "trap 'cat $RELEASE; echo cleaned up; exit 0' TERM;"
        "echo > $LIFELINE; while :; do sleep 0.01; done"
    )
    start = in_another_worker if theirs else Stand.start
    start(stand, "/bin/sh", "-c", script, kill_grace_seconds=PATIENCE_SECONDS)
    stand.lifeline.await_members(1)
    stand.suites.reap(RUN)

    assert b"cleaned up" in stand.log()


def in_another_worker(stand: Stand, *command: str, **plan: Any) -> None:
    """Have a run be started by a process that is gone at once."""
    pid = os.fork()
    if pid == 0:
        try:
            stand.start(*command, **plan)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def release_when_waiting(stand: Stand, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let go when somebody waits for the end of a supervisor for so long, to the letter."""

    def wait(identity: ProcessIdentity, wanted: float) -> bool:
        if wanted == seconds:
            stand.let_go()
        return wait_for_end(identity, wanted)

    monkeypatch.setattr(supervised, "wait_for_end", wait)


def test_suite_that_never_lets_its_supervisor_go_gets_no_verdict(stand: Stand) -> None:
    """A suite that stops its supervisor again and again is killed over its head."""
    facts = stand.facts(
        *program("parricide", str(signal.SIGSTOP.value), "again"), timeout_seconds=0.3
    )

    assert verdict(facts) == Verdict.NOT_EXECUTED
    assert stand.lifeline.is_cut()


def test_nobody_flees_without_a_mark_from_a_supervisor_that_hangs(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who left its environment and its session behind is killed while it is below its supervisor.

    Once that is dead nothing would tell whose it was.
    """
    monkeypatch.setattr(supervised, "MARGIN_SECONDS", 0.1)
    patch_supervisor(
        monkeypatch, "import select; main.supervise = lambda *_: select.poll().poll();"
    )
    fleeing = "env -i setsid /bin/sh -c 'echo; exec sleep 600' > $LIFELINE & exec sleep 600"
    stand.start("/bin/sh", "-c", fleeing)
    stand.lifeline.await_members(1)
    stand.suites.reap(RUN)

    assert stand.lifeline.is_cut()


@pytest.mark.parametrize("kind", ["crowd", "daemon"])
def test_supervisor_that_hangs_is_ended_with_all_that_is_below_it(
    stand: Stand, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that does not do its work in time loses it, and nobody gets away."""
    monkeypatch.setattr(supervised, "MARGIN_SECONDS", 0.1)
    patch_supervisor(
        monkeypatch, "import select; main.supervise = lambda *_: select.poll().poll();"
    )
    stand.start(*program("tree", kind, "stay"), timeout_seconds=0.1)
    stand.lifeline.await_members(1)
    facts = stand.collect().facts

    assert facts.supervision == Supervision.LOST
    assert stand.lifeline.is_cut()


@pytest.mark.parametrize(
    "deed",
    ["success", "unsealed", "garbage", "empty", "pipe", "link", "folder", "huge", "immovable"],
)
def test_result_that_the_suite_wrote_is_found_out(stand: Stand, deed: str) -> None:
    """Whatever a suite puts in the place of its result, it is no result and nobody waits for it."""
    facts = stand.facts(*program("forger", "result", deed))

    assert (facts.supervision, facts.exit_code) == (Supervision.FORGED, None)
    assert verdict(facts) == Verdict.NOT_EXECUTED
    # What was put there is kept for a person to look at, where it can be moved.
    assert os.path.lexists(stand.file("result.foreign")) or deed == "immovable"


def test_sealed_result_of_another_run_is_found_out(stand: Stand) -> None:
    """A result is of one run: sealed as it is, it proves nothing in another."""
    assert stand.facts("true", run_id=f"{ATTEMPT}.0").supervision == Supervision.SOUND

    assert stand.facts(*program("forger", "result", "replay")).supervision == Supervision.FORGED


def test_seal_is_of_one_run_of_one_attempt(stand: Stand) -> None:
    """What is sealed for a run holds in its own folder, and not in that of the attempt's next."""
    earlier = RunFolder(stand.state, f"{ATTEMPT}.0")
    stand.run("true", run_id=earlier.run_id)
    later = RunFolder(stand.state, RUN)
    later.path.mkdir()
    shutil.copy(earlier.path / "result", later.path)

    assert earlier.sealed("result")
    assert later.sealed("result") == {}


@pytest.mark.parametrize("deed", ["success", "empty", "pipe", "link", "folder", "huge", "nothing"])
def test_no_file_of_the_control_folder_makes_a_pass(stand: Stand, deed: str) -> None:
    """A suite that tampers with what its result is made from gets no result."""
    facts = stand.facts(*program("forger", "result.new", deed))

    assert facts.supervision != Supervision.SOUND
    assert verdict(facts) == Verdict.NOT_EXECUTED


@pytest.mark.parametrize("name", ["shim", "leader", "shim.stderr", "lock", "closed", "command"])
@pytest.mark.parametrize("deed", ["garbage", "pipe", "link", "huge", "nothing"])
def test_tampering_elsewhere_never_hangs(stand: Stand, name: str, deed: str) -> None:
    """Whatever else a suite does to its control folder, its run ends and is judged by its end."""
    facts = stand.facts(*program("forger", name, deed))

    assert (facts.supervision, facts.exit_code) == (Supervision.SOUND, 0)


@pytest.mark.parametrize("deed", ["garbage", "pipe", "link", "huge", "nothing"])
def test_log_that_was_replaced_is_incomplete(stand: Stand, deed: str) -> None:
    """A suite that replaces its own log has not passed, and nobody waits for what it put there."""
    facts = stand.facts(*program("forger", "output.log", deed))

    assert verdict(facts) == Verdict.NOT_EXECUTED
    assert len(stand.suites.log_tail(RUN, 100)) <= 100


@pytest.mark.parametrize("deed", ["cut short", "longer"])
def test_log_of_another_length_is_incomplete(stand: Stand, deed: str) -> None:
    """A suite that makes its own log longer or shorter than what it printed has not passed."""
    facts = stand.facts(*program("forger", "output.log", deed))

    assert (facts.exit_code, facts.log_complete) == (0, False)
    assert verdict(facts) == Verdict.NOT_EXECUTED


@pytest.mark.parametrize("deed", ["cut short", "longer"])
def test_log_with_a_gap_is_of_its_length_too(stand: Stand, deed: str) -> None:
    """A suite that prints more than is kept may still not make its log longer or shorter."""
    log, change = stand.file("output.log"), "truncate -s " + ("-5" if deed == "cut short" else "+5")
    printed = "head -c 300000 /dev/zero | tr '\\0' x"
    # Once all that is kept of the beginning is there.
    wait = f"until test $(stat -c %s {log}) -ge 32768; do sleep 0.01; done"
    facts = stand.facts("/bin/sh", "-c", f"{printed}; {wait}; {change} {log}", log_max_bytes=65536)

    assert (facts.exit_code, facts.log_complete) == (0, False)


@pytest.mark.parametrize("deed", ["cut short", "longer", "another of its size"])
def test_log_that_changes_after_the_end_is_incomplete(stand: Stand, deed: str) -> None:
    """Between the end of a run and its report nobody can put another log in its place."""
    stand.start("/bin/sh", "-c", "echo hello")
    stand.await_result()
    log = stand.file("output.log")
    if deed == "another of its size":
        log.with_name("another").write_bytes(b"HELLO\n")
        log.with_name("another").replace(log)
    else:
        os.truncate(log, 3 if deed == "cut short" else 30)

    assert not stand.collect().facts.log_complete


@pytest.mark.parametrize("deed", ["garbage", "deep", "pipe", "link", "folder", "huge", "nothing"])
def test_order_that_was_replaced_ends_the_run(stand: Stand, deed: str) -> None:
    """A run whose order cannot be read any more has no verdict, and nobody of it is left."""
    forger = " ".join(program("forger", "order", deed))
    stand.start("/bin/sh", "-c", f"{forger}; echo > $LIFELINE; exec sleep 600")
    stand.lifeline.await_members(1)

    with pytest.raises(PreparationError, match="order"):
        stand.collect()
    assert has_ended(stand.pid("leader"))


@pytest.mark.parametrize(
    "text", ["[]", "7", "null", "{}", '{"environment": []}', '{"environment": 7}', '"an order"']
)
def test_order_of_another_shape_ends_the_run(stand: Stand, text: str) -> None:
    """An order that is sealed and none of ours is none: the run is ended and can be reaped."""
    stand.start(*program("tree", "plain", "stay"))
    stand.lifeline.await_members(1)
    RunFolder(stand.state, RUN).seal("order", order=text)

    with pytest.raises(PreparationError, match="order"):
        stand.collect()
    stand.suites.reap(RUN)
    assert stand.lifeline.is_cut()


def test_order_that_its_suite_has_changed_ends_the_run(stand: Stand) -> None:
    """A suite that rewrites what was ordered, so that less is looked at, has no verdict by it."""
    order = stand.file("order")
    forgery = f"sed 's/{UNVERSIONED}/abc123/' {order} > f && ! cmp -s f {order} && cp f {order}"
    stand.start("/bin/sh", "-c", f"{forgery} && echo > $LIFELINE")
    stand.lifeline.await_members(1)
    stand.await_result()

    with pytest.raises(PreparationError, match="nobody of this machine has sealed it"):
        stand.collect()


def test_order_that_its_worker_gave_is_not_read_back(stand: Stand) -> None:
    """The worker that ordered a run knows what it ordered, whatever the suite makes of that."""
    order = stand.file("order")
    worker = stand.start("/bin/sh", "-c", f"rm {order} && echo forged > {order} && exit 7")
    stand.await_result()
    facts = worker.await_report(RUN).facts

    assert (facts.exit_code, facts.supervision) == (7, Supervision.SOUND)


def test_result_that_leads_nowhere_is_found_out(stand: Stand) -> None:
    """A suite that ends its supervisor, and leaves a dangling link for a result, has forged one."""
    stand.run("true")
    stand.file("result").unlink()
    stand.file("result").symlink_to("nowhere")

    assert stand.suites.condition(RUN) is RunCondition.FINISHED
    assert stand.collect().facts.supervision == Supervision.FORGED


def test_lock_that_was_replaced_is_nobodys(stand: Stand) -> None:
    """A link in the place of the lock keeps a run that nobody supervises from passing for live."""
    stand.run("true")
    stand.file("result").unlink()
    stand.file("lock").unlink()
    stand.file("lock").symlink_to("nowhere")

    assert stand.suites.condition(RUN) is RunCondition.LOST


def test_last_words_of_a_suite_are_not_its_supervisors(stand: Stand) -> None:
    """Of a supervisor that was killed without a word none is told, whatever the suite printed.

    What is shown as the end of the output is its log's, and not what a suite calls that.
    """
    tail, log = stand.file("tail"), stand.file("output.log")
    kept = f"until grep -q seven {log}; do sleep 0.01; done"
    script = f"echo seven; {kept}; echo eight > {tail}; kill -9 $PPID; exec sleep 600"
    stand.start("/bin/sh", "-c", script)
    assert has_ended(stand.pid())
    report = stand.collect()

    assert (report.facts.supervision, report.detail) == (Supervision.LOST, None)
    assert stand.suites.log_tail(RUN, 100) == b"seven\n"


#: A supervisor whose clock goes an hour ahead while it waits for late output.
WAITER = """
clock, until, late = main.time.monotonic, main.Watch.until, [0.0]
def wait(watch, is_so, deadline):
    if watch.suite.ended:
        late[0] = 3600.0
    return until(watch, is_so, deadline)
main.time.monotonic = lambda: clock() + late[0]
main.Watch.until = wait
"""


def test_suite_that_ended_in_time_did_so_whoever_held_its_output(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long a supervisor waits for late output is no time of the suite's."""
    patch_supervisor(monkeypatch, f"exec({WAITER!r});")
    facts = stand.facts("/bin/sh", "-c", "sleep 600 & exit 0", timeout_seconds=PATIENCE_SECONDS)

    assert (facts.stopped_by, facts.exit_code) == (None, 0)


def test_forger_that_killed_its_supervisor_leaves_nobody(stand: Stand) -> None:
    """A forged result does not keep what the dead supervisor left from being killed."""
    stand.start(*program("tree", "crowd", "stay"))
    stand.lifeline.await_members(1)
    os.kill(stand.pid(), signal.SIGKILL)
    stand.file("result").write_text(f"run={RUN}\nexit_code=0\n" + "0" * 64 + "\n")

    assert stand.collect().facts.supervision == Supervision.FORGED
    assert stand.lifeline.is_cut()


def test_result_that_nobody_sealed_is_there_to_be_judged(stand: Stand) -> None:
    """A run whose supervisor left nothing but a forged result is not lost: the forgery is told."""
    stand.start("true")
    stand.await_result()
    stand.file("result").write_text(f"run={RUN}\nexit_code=0\n" + "0" * 64 + "\n")

    assert stand.collect().facts.supervision == Supervision.FORGED
    assert stand.suites.condition(RUN) is RunCondition.FINISHED


@pytest.mark.parametrize("killed", ["supervisor killed", "supervisor alive"])
def test_result_sealed_with_a_stolen_secret_is_none(stand: Stand, *, killed: str) -> None:
    """A suite that takes the secret and seals a result of its own has no verdict by it."""
    stand.start("/bin/sh", "-c", "until test -e go; do sleep 0.01; done; exit 1")
    supervisor = stand.pid()
    facts = {"run": RUN, "exit_code": 0, "signal": "", "spawn_error": "", "stopped_by": ""}
    facts |= {"out_of_memory": 0, "spawn_detail": "", "duration_seconds": 1, "survivors": 0}
    facts |= {"processes_left": 0, "log_bytes": 0, "log_dropped_bytes": 0, "log_complete": 1}
    found = stand.file("output.log").stat()
    facts |= {"log_file": f"{found.st_ino}:{found.st_size}", "report": "", "foreign_result": 0}
    forged = sealed(stand.state.secret(), lines_of(**facts))
    stand.file("result").write_bytes(forged)
    if killed == "supervisor killed":
        os.kill(supervisor, signal.SIGKILL)
    (stand.root / "tree" / "go").touch()

    assert stand.collect().facts.supervision == Supervision.FORGED


def test_command_of_another_suite_is_not_run(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changes what a run was ordered to do, before it begins, makes it a tool error."""
    start = subprocess.Popen

    def meddled(*arguments: Any, **how: Any) -> Any:
        stand.file("command").write_bytes(b"/bin/true")
        return start(*arguments, **how)

    monkeypatch.setattr(subprocess, "Popen", meddled)
    report = stand.run("/bin/false")

    assert report.facts.supervision == Supervision.LOST
    assert report.detail == "the command is not the one that was ordered"


@pytest.mark.parametrize("way", ["the folder of its worker", "a variable of its plan"])
def test_code_under_test_does_not_become_its_supervisor(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A supervisor imports nothing from the tree, wherever its worker stands."""
    tree = stand.root / "tree"
    for name in ("supervisor", "main", "limits", "select"):
        (tree / f"{name}.py").write_text("raise SystemExit('the tree was imported')\n")
    variables, named = stand.variables, ("LIFELINE",)
    if way == "the folder of its worker":
        monkeypatch.chdir(tree)
    else:
        variables["PYTHONPATH"], named = str(tree), ("PYTHONPATH",)
    suites = LocalSuites(stand.state, variables)
    suites.start(RunOrder(RUN, tree, UNVERSIONED, SuitePlan(("true",), environment=named)))
    report = suites.await_report(RUN)

    assert (report.facts.supervision, report.detail) == (Supervision.SOUND, None)


def test_supervisor_finds_nothing_but_the_standard_library(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that has begun can import what a bare interpreter can, and none of our files."""
    bare = [sys.executable, "-I", "-S", "-c", "import sys; print(*sys.path)"]
    expected = subprocess.run(bare, check=True, capture_output=True, text=True).stdout
    patch_supervisor(monkeypatch, "print(*sys.path, file=open(sys.argv[2] + '/path', 'w'));")
    stand.run("true")

    assert stand.file("path").read_text() == expected


@pytest.mark.parametrize("how", [Stop.REQUEST, Stop.FENCE_LOST])
def test_stop_that_is_heard_of_after_the_end_is_one(stand: Stand, how: Stop) -> None:
    """A suite that ends because everything is ended, its supervisor too, has not passed.

    Nor has it failed, whatever it reports: it may have been hit before its supervisor heard.
    """
    ours, theirs = socket.socketpair()
    tree = stand.root / "tree"
    report = "echo '<testsuite failures=\"1\"/>' > $STAGING_REPORT_DIR/junit.xml"
    waiting = f"touch up; until test -e go; do sleep 0.01; done; {report}"
    with ours, theirs:
        stand.start("/bin/sh", "-c", waiting, inherited=[ours.fileno()], report="junit.xml")
        # From then on it needs its supervisor no more.
        await_that((tree / "up").exists)
        leader, supervisor = stand.pid("leader"), stand.pid()
        os.kill(supervisor, signal.SIGSTOP)
        if how is Stop.REQUEST:
            os.kill(supervisor, signal.SIGTERM)
        else:
            theirs.close()
        (tree / "go").touch()
        assert has_ended(leader)
        os.kill(supervisor, signal.SIGCONT)

        facts = stand.collect().facts
    assert (facts.stopped_by, facts.evidence.state) == (how, EvidenceState.LATE)


def test_result_that_was_altered_after_the_run_is_found_out(stand: Stand) -> None:
    """A sealed result in which one character is changed is no result any more."""
    stand.start("/bin/sh", "-c", "exit 1")
    assert has_ended(stand.pid())
    result = stand.file("result")
    result.write_text(result.read_text().replace("exit_code=1", "exit_code=0"))

    assert stand.collect().facts.supervision == Supervision.FORGED


def test_result_of_a_supervisor_that_broke_is_not_believed(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that did not end well has no result, whatever stands in the place of it."""
    patch_supervisor(
        monkeypatch, "real = main.main; main.main = lambda *a: (real(*a), sys.exit(3));"
    )
    facts = stand.facts("true")

    assert facts.supervision == Supervision.FORGED
    assert verdict(facts) == Verdict.NOT_EXECUTED


#: A supervisor whose clock goes an hour ahead while it sweeps.
SWEEPER = """
clock, sweep, late = main.time.monotonic, main.sweep, [0.0]
def slow(*arguments):
    late[0] = 3600.0
    return sweep(*arguments)
main.time.monotonic = lambda: clock() + late[0]
main.sweep = slow
"""


def test_sweep_is_no_time_of_the_suite(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a supervisor takes to kill what a suite has left is not told as its duration."""
    patch_supervisor(monkeypatch, f"exec({SWEEPER!r});")
    report = stand.run("/bin/sh", "-c", "sleep 600 & exit 0")

    assert report.facts.exit_code == 0
    assert report.duration_seconds is not None
    assert report.duration_seconds < 600

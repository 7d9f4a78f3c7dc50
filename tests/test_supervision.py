"""Supervision with real process trees: nothing leaks, nothing hangs, nothing is fooled."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from staging_fsm.core.errors import PreparationError
from staging_fsm.core.evidence import EvidenceState
from staging_fsm.core.outcome import SpawnError, Stop, Supervision
from staging_fsm.core.plan import UNVERSIONED, SuitePlan
from staging_fsm.core.ports import RunCondition, RunOrder, RunReport
from staging_fsm.effects.files import StateDir
from staging_fsm.effects.processes import identify
from staging_fsm.effects.suite import RUN_VARIABLE, LocalSuites

RUN = "7-feedface0000.1"
PATH = os.environ["PATH"]
Runner = Callable[..., RunReport]


def order(folder: Path, *command: str, **plan: object) -> RunOrder:
    """Return the order of a run in a folder without git, with a short grace."""
    settings = {"kill_grace_seconds": 0.2, "timeout_seconds": 30.0, **plan}
    suite = SuitePlan(command, **settings)  # type: ignore[arg-type]  # checked by the plan itself
    return RunOrder(RUN, folder, UNVERSIONED, suite)


@pytest.fixture
def suites(tmp_path: Path) -> LocalSuites:
    """Return runs below a state folder, with a secret in the orchestrator's environment."""
    variables = {"PATH": PATH, "HOME": str(tmp_path), "ORCH_TOKEN": "hunter2", "NAMED": "yes"}
    return LocalSuites(StateDir(tmp_path / "state"), variables)


@pytest.fixture
def run(suites: LocalSuites, tmp_path: Path) -> Runner:
    """Return a function that runs a command to its end and checks that nothing of it is left."""
    work = tmp_path / "work"
    work.mkdir()

    def run_command(*command: str, **plan: object) -> RunReport:
        suites.start(order(work, *command, **plan))
        report = suites.await_report(RUN)
        assert [process.pid for process in alive()] == []
        return report

    return run_command


def alive() -> Iterator[psutil.Process]:
    """Yield every live process of the run."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_VARIABLE) == RUN:
                yield process
        except psutil.Error:
            continue


def python(code: str) -> tuple[str, ...]:
    """Return a command that runs Python code without site packages."""
    return (sys.executable, "-I", "-S", "-c", code)


@pytest.mark.parametrize("code", [0, 1, 3, 126, 127, 137, 255])
def test_exit_code_is_kept_as_it_is(run: Runner, code: int) -> None:
    """An exit code arrives as an exit code, also one that a shell would use for a signal."""
    facts = run("sh", "-c", f"exit {code}").facts

    assert (facts.exit_code, facts.signal, facts.stopped_by) == (code, None, None)
    assert facts.supervision is Supervision.SOUND


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGTERM])
def test_signal_is_no_exit_code(run: Runner, number: signal.Signals) -> None:
    """A suite that dies by a signal has that signal and no exit code."""
    facts = run("sh", "-c", f"kill -{number.value} $$").facts

    assert (facts.exit_code, facts.signal) == (None, number)


def test_spawn_errors_are_told_apart(run: Runner, tmp_path: Path) -> None:
    """A command that is not there, cannot be executed, or has no interpreter is named as such."""
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    assert run("no-such-command").facts.spawn_error is SpawnError.NOT_FOUND


@pytest.mark.parametrize(
    ("text", "mode", "expected"),
    [
        ("#!/no/such/interpreter\n", 0o755, SpawnError.BAD_INTERPRETER),
        ("#!/bin/sh\n", 0o644, SpawnError.NOT_EXECUTABLE),
        ("neither script nor program\n", 0o755, SpawnError.NOT_EXECUTABLE),
    ],
)
def test_script_that_cannot_be_executed_is_a_spawn_error(
    run: Runner, tmp_path: Path, text: str, mode: int, expected: SpawnError
) -> None:
    """A script without its interpreter, its mode or its first line never ran."""
    script = tmp_path / "script"
    script.write_text(text)
    script.chmod(mode)

    assert run(str(script)).facts.spawn_error is expected


def test_environment_is_clean_and_declared(run: Runner) -> None:
    """The suite gets the base, the named variables and ours, and no secret of the orchestrator."""
    code = "import os; print(sorted(n for n in os.environ if n not in ('LC_CTYPE', 'PWD')))"
    report = run(*python(code), environment=("NAMED",))

    names = ["CI", "HOME", "NAMED", "PATH", RUN_VARIABLE, "STAGING_REPORT_DIR"]
    assert Path(report.log or "").read_text().strip() == str(sorted(names))


def test_suite_sees_no_descriptor_of_ours(run: Runner) -> None:
    """Standard input is empty, and descriptors 0, 1 and 2 are all there is."""
    code = "import os, sys; print(sys.stdin.read() == '', sorted(os.listdir('/proc/self/fd'))[:4])"
    report = run(*python(code))

    # The fourth is the listing's own.
    assert Path(report.log or "").read_text().strip() == "True ['0', '1', '2', '3']"


def test_suite_leads_a_session_of_its_own(run: Runner) -> None:
    """The suite's leader is the leader of its session and of its group."""
    code = "import os; print(os.getpid() == os.getsid(0) == os.getpgrp())"
    report = run(*python(code))

    assert Path(report.log or "").read_text().strip() == "True"


@pytest.mark.parametrize(
    "command",
    [
        "trap 'exit 0' TERM; while :; do sleep 0.02; done",
        "trap '' TERM; while :; do sleep 0.02; done",
        "kill -STOP $$; exit 0",
    ],
    ids=["exits 0 on TERM", "ignores TERM", "is stopped"],
)
def test_suite_past_its_deadline_has_no_exit_code(run: Runner, command: str) -> None:
    """After a signal of ours nothing counts: not an exit code 0, not anything else."""
    facts = run("sh", "-c", command, timeout_seconds=0.3).facts

    assert (facts.stopped_by, facts.exit_code, facts.signal) == (Stop.DEADLINE, None, None)


ESCAPES = {
    "background": "import subprocess; subprocess.Popen(['sleep', '600'])",
    "own session": (
        "import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True)"
    ),
    "double fork": (
        "import os, subprocess\n"
        "if os.fork() == 0:\n    os.setsid()\n"
        "    if os.fork() == 0:\n        os.execvp('sleep', ['sleep', '600'])\n    os._exit(0)\n"
        "os.wait()"
    ),
    "empty environment": (
        "import subprocess; subprocess.Popen(['sleep', '600'], env={}, start_new_session=True)"
    ),
    "forty of them": (
        "import subprocess\nfor n in range(40):\n"
        "    subprocess.Popen(['sleep', '600'], start_new_session=n % 4 == 0)"
    ),
}


@pytest.mark.parametrize("name", sorted(ESCAPES))
def test_nobody_escapes(run: Runner, tmp_path: Path, name: str) -> None:
    """Whoever a suite leaves behind, in whatever session, is gone when its run has ended.

    Each of them inherits the write end of a pipe: only when all are gone it is at its end.
    """
    lifeline = tmp_path / "lifeline"
    os.mkfifo(lifeline)
    reader = os.open(lifeline, os.O_RDONLY | os.O_NONBLOCK)
    hold = f"import os; os.set_inheritable(os.open({str(lifeline)!r}, os.O_WRONLY), True)\n"
    code = hold + ESCAPES[name].replace("600']", "600'], close_fds=False")
    facts = run(*python(code)).facts

    assert (facts.exit_code, facts.processes_left) == (0, 0)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_held_output_delays_nothing(run: Runner) -> None:
    """A grandchild that holds the output open does not hold up the end of the run."""
    report = run("sh", "-c", "sleep 600 & echo done")

    assert report.facts.exit_code == 0
    assert Path(report.log or "").read_text() == "done\n"


def test_closed_output_is_no_end(run: Runner) -> None:
    """A suite that closes its output runs on, and its exit code counts."""
    assert run("sh", "-c", "exec >&- 2>&-; sleep 0.2; exit 4").facts.exit_code == 4


def test_output_is_bounded_and_says_what_was_dropped(run: Runner) -> None:
    """Of much output head and tail are kept, and the log says how much is missing between them."""
    code = "import sys\nfor n in range(200_000):\n    print(f'line {n:06}')"
    report = run(*python(code), log_max_bytes=65536)
    text = Path(report.log or "").read_text()

    assert report.facts.log_complete
    assert report.log_bytes == 200_000 * 12
    assert text.startswith("line 000000\n")
    assert text.endswith("line 199999\n")
    assert f"{report.log_dropped_bytes} bytes of output dropped here" in text
    assert len(text) < 65536 + 200


def test_hostile_bytes_are_kept_as_they_are(run: Runner) -> None:
    """NUL, invalid UTF-8 and a line of megabytes go through the log unchanged."""
    data = b"\0\xff\x1b[2J" + b"x" * 3_000_000
    code = f"import sys; sys.stdout.buffer.write({data[:6]!r} + b'x' * 3_000_000)"
    report = run(*python(code))

    assert Path(report.log or "").read_bytes() == data


def test_forged_result_is_found_out(run: Runner, tmp_path: Path) -> None:
    """A suite that finds the control folder and writes a result there is not believed."""
    result = tmp_path / "state" / "runs" / RUN / "result"
    text = f"run={RUN}\nexit_code=0\nsignal=\nlog_complete=1\n{'0' * 64}\n"
    facts = run(*python(f"open({str(result)!r}, 'w').write({text!r}); raise SystemExit(1)")).facts

    assert facts.supervision is Supervision.FORGED


def test_killed_supervisor_leaves_no_pass_and_no_process(run: Runner) -> None:
    """A suite that kills its supervisor is swept, and its run has no result."""
    command = "sleep 600 & kill -9 $PPID; sleep 600"

    assert run("sh", "-c", command).facts.supervision is Supervision.LOST


def test_ignored_sigchld_does_not_make_a_failure_a_pass(
    suites: LocalSuites, tmp_path: Path
) -> None:
    """A careless parent that ignores SIGCHLD does not turn exit code 3 into 0."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        suites.start(order(tmp_path, "sh", "-c", "exit 3"))
        report = suites.await_report(RUN)
    finally:
        signal.signal(signal.SIGCHLD, before)

    assert report.facts.exit_code == 3


def test_live_run_is_collected_by_another_worker(tmp_path: Path) -> None:
    """A run goes on without the worker that started it, and another one takes its result."""
    state, go = StateDir(tmp_path / "state"), tmp_path / "go"
    wait = f"until test -e {go}; do sleep 0.02; done; exit 5"
    script = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent)]!r}\n"
        "from test_supervision import *\n"
        f"suites = LocalSuites(StateDir(Path({str(state.root)!r})), {{'PATH': PATH}})\n"
        f"suites.start(order(Path({str(tmp_path)!r}), 'sh', '-c', {wait!r}))\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    other = LocalSuites(state, {"PATH": PATH})
    while not (state.run(RUN) / "shim").exists():
        os.sched_yield()
    condition = other.condition(RUN)
    go.touch()
    report = other.await_report(RUN)

    assert condition is RunCondition.LIVE
    assert (report.facts.exit_code, report.facts.supervision) == (5, Supervision.SOUND)


def test_run_that_was_found_lost_cannot_start_any_more(suites: LocalSuites, tmp_path: Path) -> None:
    """Once a run counts as lost it is closed: nobody can start it later."""
    condition = suites.condition(RUN)

    assert condition is RunCondition.LOST
    assert (tmp_path / "state" / "runs" / RUN / "closed").exists()
    with pytest.raises(PreparationError):
        suites.start(order(tmp_path, "true"))


def test_reap_stops_a_run_in_other_hands(suites: LocalSuites, tmp_path: Path) -> None:
    """Reaping a live run stops its suite; whoever waits for it learns that it was stopped."""
    started = tmp_path / "started"
    os.mkfifo(started)
    suites.start(order(tmp_path, "sh", "-c", f"echo > {started}; exec sleep 600"))
    reports: list[RunReport] = []
    waiter = threading.Thread(target=lambda: reports.append(suites.await_report(RUN)))
    waiter.start()
    started.read_text()
    suites.reap(RUN)
    waiter.join()

    assert list(alive()) == []
    assert reports[0].facts.exit_code is None


def test_bystander_with_a_reused_number_is_not_signalled(
    suites: LocalSuites, tmp_path: Path
) -> None:
    """A recorded process whose start time is another one is never signalled."""
    bystander = subprocess.Popen(["sleep", "600"], start_new_session=True)
    suites.start(order(tmp_path, "true"))
    suites.await_report(RUN)
    folder = tmp_path / "state" / "runs" / RUN
    (folder / "result").unlink()
    for name in ("shim", "leader"):
        (folder / name).write_text(f"pid={bystander.pid}\nstart=1\n")
    suites.reap(RUN)

    assert identify(bystander.pid) is not None
    bystander.kill()
    bystander.wait()


REPORT = '<testsuite tests="1"><testcase name="a"/></testsuite>'


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (f"printf '{REPORT}' > $STAGING_REPORT_DIR/junit.xml", EvidenceState.READ),
        ("true", EvidenceState.MISSING),
        ("mkfifo $STAGING_REPORT_DIR/junit.xml", EvidenceState.UNREADABLE),
        ("mkdir $STAGING_REPORT_DIR/junit.xml", EvidenceState.UNREADABLE),
        ("ln -s /etc/passwd $STAGING_REPORT_DIR/junit.xml", EvidenceState.UNREADABLE),
        ("printf '<testsuite>' > $STAGING_REPORT_DIR/junit.xml", EvidenceState.UNREADABLE),
    ],
    ids=["fresh", "missing", "pipe", "folder", "link", "truncated"],
)
def test_only_a_fresh_regular_report_is_evidence(
    run: Runner, command: str, expected: EvidenceState
) -> None:
    """A report is read if it is a complete regular file of this run, and never waited for."""
    assert run("sh", "-c", command, report="junit.xml").facts.evidence.state is expected


def test_report_from_before_the_run_is_stale(run: Runner, tmp_path: Path) -> None:
    """A report outside the run's folder that the run did not write is stale."""
    report = tmp_path / "junit.xml"
    report.write_text(REPORT)

    assert run("true", report=str(report)).facts.evidence.state is EvidenceState.STALE


def test_run_is_ordered_once(suites: LocalSuites, tmp_path: Path) -> None:
    """A second start of the same run is refused: a run is one execution."""
    suites.start(order(tmp_path, "true"))
    suites.await_report(RUN)

    with pytest.raises(PreparationError, match="File exists"):
        suites.start(order(tmp_path, "true"))

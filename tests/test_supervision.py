"""Supervision, with real process trees: it cannot leak or hang, and says how a suite ended."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from staging_fsm.core.errors import PreparationError
from staging_fsm.core.outcome import SpawnError, Stop, Supervision, Verdict
from staging_fsm.core.plan import UNVERSIONED, SuitePlan, Workspace
from staging_fsm.core.ports import RunCondition, RunOrder
from staging_fsm.effects.run_folder import Order, RunFolder
from staging_fsm.effects.suite import LocalSuites
from staging_fsm.effects.supervisor import sweep as sweeping
from staging_fsm.effects.supervisor.result import RESULT_BYTES
from staging_fsm.effects.supervisor.suite import Suite
from staging_fsm.effects.uncached_go import uncached_go
from stand import (
    ATTEMPT,
    PATIENCE_SECONDS,
    RUN,
    Stand,
    as_nobody,
    has_ended,
    patch_supervisor,
    program,
    verdict,
    worker_command,
)

KINDS = (
    "plain", "orphan", "session", "group", "daemon",
    "stubborn", "stopped", "chain", "crowd", "keeper",
)  # fmt: skip


# How a suite ends.


@pytest.mark.parametrize("code", [0, 1, 3, 126, 127, 137, 255])
def test_exit_code_is_the_suites_own(stand: Stand, code: int) -> None:
    """An exit code is reported as it is, also one that a shell would use for something else."""
    facts = stand.facts("/bin/sh", "-c", f"exit {code}")

    assert (facts.exit_code, facts.signal, facts.spawn_error) == (code, None, None)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGUSR1])
def test_signal_is_kept_apart_from_exit_codes(stand: Stand, number: signal.Signals) -> None:
    """A suite that died by a signal has a signal and no exit code."""
    facts = stand.facts("/bin/sh", "-c", f"kill -{number.value} $$")

    assert (facts.exit_code, facts.signal, facts.stopped_by) == (None, number, None)


def test_signal_that_left_a_core_is_a_signal(stand: Stand) -> None:
    """A suite that died by a signal has no exit code, also where the kernel dumped its core."""
    script = f'ulimit -c "$(ulimit -Hc)"; kill -{signal.SIGQUIT.value} $$'
    facts = stand.facts("/bin/sh", "-c", script)

    assert (facts.exit_code, facts.signal, facts.stopped_by) == (None, signal.SIGQUIT, None)


def test_parent_that_ignores_signals_does_not_turn_a_failure_into_success(stand: Stand) -> None:
    """The exit code survives a worker whose parent ignored SIGCHLD and blocked others."""
    shown = worker(stand, "careless", "/bin/sh", "-c", "exit 3")

    assert shown[:3] == [Supervision.SOUND, 3, None]


#: A supervisor whose suite was reaped by somebody else before its own first look.
ROBBED = """
opened = main.Watch.open_output
def open_late(watch):
    opened(watch)
    main.os.waitpid(watch.suite.pid, 0)
main.Watch.open_output = open_late
"""


def test_suite_whose_status_was_taken_away_has_not_passed(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How a suite ended that somebody else has reaped is unknown, and unknown is not zero."""
    patch_supervisor(monkeypatch, f"exec({ROBBED!r});")
    facts = stand.facts("true")

    assert (facts.supervision, facts.stopped_by) == (Supervision.SOUND, None)
    assert (facts.exit_code, facts.signal) == (None, None)
    assert verdict(facts) is Verdict.NOT_EXECUTED


def test_suite_gets_default_signals_whatever_the_worker_ignores(stand: Stand) -> None:
    """Nothing that a worker's parent ignored or blocked is ignored or blocked in the suite."""
    worker(stand, "careless", "grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")
    masks = [int(line.split()[1], 16) for line in stand.log().splitlines()]
    # The C library keeps 32 and 33 to itself, and ignores them in what it spawns, as make does.
    ours = sum(1 << number - 1 for number in signal.valid_signals())

    assert [mask & ours for mask in masks] == [0, 0]


def worker(stand: Stand, mode: str, *command: str, before: tuple[str, ...] = ()) -> list[Any]:
    """Run a worker in a process of its own and return what it prints."""
    ended = subprocess.run(
        [*before, *worker_command(stand, mode, *command)],
        env={**os.environ, **stand.variables},
        stdout=subprocess.PIPE,
        check=True,
    )
    shown: list[Any] = json.loads(ended.stdout)
    return shown


def test_supervisor_hears_no_signal_of_its_workers_terminal(stand: Stand) -> None:
    """An interrupt at the worker's terminal, or one of its whole group, leaves the run alone."""
    stand.start("sleep", "600")
    supervisor = stand.pid()
    led = os.getsid(supervisor), os.getpgid(supervisor)
    stand.suites.reap(RUN)

    assert led == (supervisor, supervisor)


def test_room_for_the_result_is_taken_before_the_suite_can_fill_the_disk(stand: Stand) -> None:
    """A suite that fills the disk does not swallow what is to be said of it: blocks are held."""
    room = stand.file("result.new")
    stand.run("stat", "--format", "%b", str(room))

    # In blocks of 512 bytes; a hole of that length would have none.
    assert int(stand.log()) * 512 >= RESULT_BYTES


# What a suite is given.


def test_suite_sees_three_descriptors_and_no_input(stand: Stand) -> None:
    """A suite gets its own session, an empty input, its output, and not one descriptor more."""
    stand.run(*program("probe"))
    seen = json.loads(stand.log())

    assert seen["descriptors"] == [0, 1, 2]
    assert seen["input"] == ""
    assert seen["leads_its_session"]
    assert seen["folder"] == str((stand.root / "tree").resolve())


def test_suite_environment_is_declared(stand: Stand) -> None:
    """A suite gets the base variables, those its plan names and the runner's own, and no other."""
    kept = ("DATABASE_PASSWORD", "SSH_AUTH_SOCK", "DOCKER_HOST", "XDG_RUNTIME_DIR", "PYTHONPATH")
    offered = {**dict.fromkeys(kept, "/worker"), **stand.variables}
    offered |= {"HOME": "/nowhere", "NAMED": "yes"}
    plan = SuitePlan(("/usr/bin/env",), environment=("NAMED", "ABSENT"))
    suites = LocalSuites(stand.state, offered)
    suites.start(RunOrder(RUN, stand.root, UNVERSIONED, plan))
    suites.await_report(RUN)
    seen = dict(line.split("=", 1) for line in stand.log().decode().splitlines())

    assert seen == {
        "PATH": offered["PATH"],
        "HOME": "/nowhere",
        "LANG": "C.UTF-8",
        "NAMED": "yes",
        "CI": "true",
        "STAGING_REPORT_DIR": str(stand.state.reports(RUN)),
        "STAGING_ATTEMPT": RUN,
        "GOENV": str(RunFolder(stand.state, RUN).go_settings),
    }


def test_suite_has_its_go_tests_run(stand: Stand) -> None:
    """No `go test` of a suite answers from its cache; what the machine tells `go` else holds."""
    settings = stand.root / "settings"
    settings.write_text("GOFLAGS=-mod=mod\nGOPROXY=off\n")
    offered = {**stand.variables, "GOENV": str(settings)}
    plan = SuitePlan(("/bin/sh", "-c", 'cat "$GOENV"'), environment=("GOENV",))
    suites = LocalSuites(stand.state, offered)
    suites.start(RunOrder(RUN, stand.root, UNVERSIONED, plan))
    suites.await_report(RUN)

    assert stand.log() == b"GOPROXY=off\nGOFLAGS=-count=1 -mod=mod\n"
    assert settings.read_text() == "GOFLAGS=-mod=mod\nGOPROXY=off\n"


@pytest.mark.skipif(sys.platform == "darwin", reason="there settings lie elsewhere")
@pytest.mark.parametrize(
    ("given", "settings", "expected"),
    [
        ({}, None, "GOFLAGS=-count=1\n"),
        ({}, "", "GOFLAGS=-count=1\n"),
        (
            {},
            "GOPROXY=off\nGOFLAGS=-mod=mod -tags=a=b\n",
            "GOPROXY=off\nGOFLAGS=-count=1 -mod=mod -tags=a=b\n",
        ),
        ({"GOFLAGS": ""}, "GOFLAGS=-mod=mod", "GOFLAGS=-count=1 -mod=mod\n"),
        ({}, "GOFLAGS=-v\nGOFLAGS=-x\n", "GOFLAGS=-count=1 -x\n"),
        ({}, "#GOFLAGS=-v\nGOFLAGS", "#GOFLAGS=-v\nGOFLAGS=-count=1\n"),
        ({}, "GOFLAGS=-v\0", "GOFLAGS=-count=1\n"),
        ({"GOENV": "off"}, "GOPROXY=off", "GOFLAGS=-count=1\n"),
        ({"GOENV": "env"}, "GOPROXY=off", "GOFLAGS=-count=1\n"),
    ],
)
def test_options_of_a_user_for_go_are_kept(
    tmp_path: Path, given: dict[str, str], settings: str | None, expected: str
) -> None:
    """What `go env -w` has set is set in a suite, too, its options behind ours, where they win."""
    home = tmp_path / ".config" / "go" / "env"
    home.parent.mkdir(parents=True)
    if settings is not None:
        elsewhere = tmp_path / "dotfile"
        elsewhere.write_text(settings)
        home.symlink_to(elsewhere)

    own = tmp_path / "own"
    with pytest.MonkeyPatch.context() as patch:
        # A folder that is not absolute is none: `go` itself runs elsewhere.
        patch.chdir(home.parent)
        for where in ({"HOME": str(tmp_path)}, {"XDG_CONFIG_HOME": str(tmp_path / ".config")}):
            assert uncached_go({**where, **given}, own) == {"GOENV": str(own)}
            assert own.read_text() == expected


@pytest.mark.parametrize("given", ["-trimpath -tags=a", "-count=3"])
def test_options_of_a_suite_for_go_stand_behind_ours(tmp_path: Path, given: str) -> None:
    """Where a suite is given GOFLAGS, `go` reads no file for them: ours are put before its own."""
    assert uncached_go({"GOFLAGS": given}, tmp_path / "own") == {"GOFLAGS": f"-count=1 {given}"}


def test_suite_is_given_no_options_for_go(stand: Stand) -> None:
    """A suite without GOFLAGS finds none, so that its makefile's own default holds."""
    suites = LocalSuites(stand.state, stand.variables)
    plan = SuitePlan(("/bin/sh", "-c", "echo ${GOFLAGS-none}"))
    suites.start(RunOrder(RUN, stand.root, UNVERSIONED, plan))
    suites.await_report(RUN)

    assert stand.log() == b"none\n"


def test_settings_for_go_that_are_no_file_are_none(tmp_path: Path) -> None:
    """A pipe or a folder in the place of the settings of `go` keeps no run waiting."""
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "absent"):
        uncached_go({"GOENV": str(tmp_path / name)}, tmp_path / "own")
        assert (tmp_path / "own").read_text() == "GOFLAGS=-count=1\n"


def test_suite_below_another_run_is_of_its_own(stand: Stand) -> None:
    """A suite whose worker is itself below a run carries the mark and the folder of its own run."""
    own = {
        "CI": "true",
        "STAGING_REPORT_DIR": str(stand.state.reports(RUN)),
        "STAGING_ATTEMPT": RUN,
    }
    outer = {**stand.variables, **dict.fromkeys(own, "outer")}
    suites = LocalSuites(stand.state, outer)
    plan = SuitePlan(("/usr/bin/env",), environment=tuple(own))
    suites.start(RunOrder(RUN, stand.root, UNVERSIONED, plan))
    suites.await_report(RUN)
    seen = dict(line.split("=", 1) for line in stand.log().decode().splitlines())

    assert {name: seen[name] for name in own} == own


# Suites that cannot be started.


def test_missing_command_is_not_found(stand: Stand) -> None:
    """A command that does not exist, by name or by path, is a spawn error of its own."""
    by_name = stand.facts("no-such-command-anywhere")
    by_path = stand.facts("./no/such/command", run_id=f"{ATTEMPT}.2")

    assert by_name.spawn_error == by_path.spawn_error == SpawnError.NOT_FOUND
    assert (by_name.exit_code, by_name.signal) == (None, None)


def test_command_with_any_name_is_reported(stand: Stand) -> None:
    """A command whose name is no text is reported missing like any other."""
    report = stand.run("/no\udcff\r\u2028=\nsuch")

    assert report.facts.spawn_error == SpawnError.NOT_FOUND
    assert report.facts.supervision == Supervision.SOUND


@pytest.mark.parametrize("content", ["exit 0\n", "#!/bin/sh\nexit 0\n", "\x7fELF broken"])
@pytest.mark.parametrize("mode", [0o644, 0o755])
def test_file_that_cannot_be_executed_is_named_so(stand: Stand, content: str, mode: int) -> None:
    """A command without execute rights, or in no format the kernel knows, is not executable."""
    command = stand.root / "tree" / "suite"
    command.write_text(content)
    command.chmod(mode)
    facts = stand.facts("./suite")

    runs = content.startswith("#!") and mode == 0o755
    assert facts.spawn_error == (None if runs else SpawnError.NOT_EXECUTABLE)
    assert facts.exit_code == (0 if runs else None)


def test_folder_as_a_command_is_not_executable(stand: Stand) -> None:
    """A folder is no command."""
    assert stand.facts(str(stand.root)).spawn_error == SpawnError.NOT_EXECUTABLE


@pytest.mark.parametrize("named", ["./suite", "suite"])
def test_script_without_its_interpreter_is_told_from_a_missing_command(
    stand: Stand, named: str
) -> None:
    """A script that exists, but whose interpreter does not, is a bad interpreter."""
    command = stand.root / "tree" / "suite"
    command.write_text("#!/no/such/interpreter\n")
    command.chmod(0o755)
    suites = LocalSuites(stand.state, {"PATH": f"{command.parent}:/usr/bin"})
    suites.start(RunOrder(RUN, command.parent, UNVERSIONED, SuitePlan((named,))))

    assert suites.await_report(RUN).facts.spawn_error == SpawnError.BAD_INTERPRETER


def test_sweep_that_is_given_up_never_says_that_nobody_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where nobody below a supervisor can be listed, whoever would not die is at least one."""
    monkeypatch.setattr(sweeping, "SWEEP_SECONDS", 0.0)
    monkeypatch.setattr(sweeping, "IS_LINUX", False)
    monkeypatch.setattr(sweeping, "direct_children", lambda _pid: [])
    suite: Any = SimpleNamespace(signal_group=lambda _number: None)

    assert sweeping.sweep(suite, None) == 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EACCES, "not_executable"),
        (errno.ENOEXEC, "not_executable"),
        (errno.ETXTBSY, "resources"),
        (errno.ENOMEM, "resources"),
        (errno.EMFILE, "resources"),
        (errno.EIO, "resources"),
        (errno.ENOENT, "not_found"),
        (errno.E2BIG, "bad_arguments"),
    ],
)
def test_error_of_a_start_is_for_good_only_where_the_command_is_at_fault(
    code: int, kind: str
) -> None:
    """What may be another thing at the next run, a program that is just written say, is tried."""
    leader: Any = Suite.__new__(Suite)
    leader.argv, leader.cwd = ["/no/such/program"], "/"

    assert leader._explain(f"exec {code}")[0] == kind


def test_program_is_looked_for_from_where_the_suite_runs(stand: Stand) -> None:
    """A folder of PATH that is named relatively is one of the tree's, also for what is missing."""
    script = stand.root / "tree" / "bin" / "suite"
    script.parent.mkdir()
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    suites = LocalSuites(stand.state, {**stand.variables, "PATH": "bin"})
    suite = SuitePlan(("suite",), workspace=Workspace.IN_PLACE)
    suites.start(RunOrder(RUN, stand.root / "tree", UNVERSIONED, suite))

    assert suites.await_report(RUN).facts.spawn_error == SpawnError.BAD_INTERPRETER


@pytest.mark.parametrize("named", ["./suite", "suite"])
def test_link_to_nowhere_is_no_command(stand: Stand, named: str) -> None:
    """A command that is a link to nothing does not exist, and has no interpreter to be missing."""
    (stand.root / "tree" / "suite").symlink_to("nowhere")
    suites = LocalSuites(stand.state, {"PATH": f"{stand.root / 'tree'}:/usr/bin"})
    suite = SuitePlan((named,), workspace=Workspace.IN_PLACE)
    suites.start(RunOrder(RUN, stand.root / "tree", UNVERSIONED, suite))

    assert suites.await_report(RUN).facts.spawn_error == SpawnError.NOT_FOUND


def test_sweep_is_given_up_though_somebody_new_is_always_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever is born faster than a sweep kills holds up no result for longer than its time."""
    now, numbers = [0.0], iter(range(1, 100))

    def find() -> set[int]:
        now[0] += 1.0
        return {next(numbers)}

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda _: pytest.fail("it rested"))
    monkeypatch.setattr(sweeping, "time", clock)
    monkeypatch.setattr(sweeping, "kill_descendants", find)
    for name, answer in (("give_way", False), ("reap_all", True), ("direct_children", [7])):
        monkeypatch.setattr(sweeping, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(sweeping, "take_precedence", lambda **_: None)
    suite: Any = SimpleNamespace(signal_group=lambda _number: None, pid=1)

    assert sweeping.sweep(suite, None) == 1
    assert now[0] == sweeping.SWEEP_SECONDS


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="there are no descriptors of processes")
def test_process_is_held_before_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gets the number of a descendant after the look is not the one that is killed."""
    with subprocess.Popen(["sleep", "600"]) as bystander:
        held, opened = [], os.pidfd_open

        def end_at_once(pid: int) -> int:
            # The number is a descendant's until just now: it ends, and is given away.
            held.append(pid)
            return opened(bystander.pid)

        monkeypatch.setattr(os, "pidfd_open", end_at_once)
        sweeping.kill_below(2**22, {os.getpid()})
        looked = held == [2**22]
        is_alive = bystander.poll() is None
        bystander.kill()

    assert (looked, is_alive) == (True, True)


def test_suite_that_cannot_be_started_is_told_by_its_first_word(stand: Stand) -> None:
    """What could not be started is named, and what it was to be told, a secret say, is not."""
    report = stand.run("no-such-program", "--token=hunter22", "hunter23")

    assert report.detail == "no-such-program: No such file or directory"
    long = stand.run(f"./{'x' * 200}/{'y' * 2000}", run_id=f"{ATTEMPT}.2").detail
    assert long is not None
    assert long.endswith("yyy: No such file or directory")
    assert len(long) == 1000


@pytest.mark.parametrize("folder", ["absent", "file"])
def test_missing_working_directory_is_a_spawn_error(stand: Stand, folder: str) -> None:
    """A working directory that does not exist, or is none, is a spawn error of its own."""
    (stand.root / "file").touch()
    order = RunOrder(RUN, stand.root / folder, UNVERSIONED, SuitePlan(("true",)))
    stand.suites.start(order)

    assert stand.collect().facts.spawn_error == SpawnError.BAD_WORKING_DIRECTORY


@pytest.mark.parametrize("words", [["x" * 200_000], ["x" * 100_000] * 40])
def test_argument_list_that_is_too_long_is_a_spawn_error(stand: Stand, words: list[str]) -> None:
    """A command line that the system does not take is a permanent error of its own."""
    assert stand.facts("/bin/true", *words).spawn_error == SpawnError.BAD_ARGUMENTS


def test_every_word_of_a_command_is_an_argument(stand: Stand) -> None:
    """A word that is empty, or a blank, is an argument as any other, at the end too."""
    stand.run("/usr/bin/printf", "%s|", "a", "", " ", "b", "")

    assert stand.log() == b"a|| |b||"


def test_whole_log_is_on_the_disk_before_its_digest_counts(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is synced of a log is all of it, the newest part too: a power cut takes nothing."""
    order = (
        "from supervisor import log; sync, join = log.os.fsync, log.BoundedLog._append;"
        "told = open(sys.argv[2] + '/told', 'w');"
        "log.os.fsync = lambda fd: (print('sync', file=told, flush=True), sync(fd))[1];"
        "log.BoundedLog._append = "
        "lambda s, p: (print('join', file=told, flush=True), join(s, p))[1];"
    )
    patch_supervisor(monkeypatch, order)
    stand.run("/bin/sh", "-c", "head -c 60000 /dev/zero", log_max_bytes=65536)

    assert stand.file("told").read_text().split()[:3] == ["join", "join", "sync"]


#: A supervisor that keeps for how long it waits, each time, when it has begun to end a suite.
PATIENT = """
until, ends = main.Watch.until, open(sys.argv[2] + "/waits", "w")
def wait(watch, is_so, end):
    print(end - main.time.monotonic(), file=ends, flush=True)
    return until(watch, is_so, end)
main.Watch.until = wait
"""


def test_suite_without_grace_is_not_waited_for(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grace of no time is none."""
    patch_supervisor(monkeypatch, f"exec({PATIENT!r});")
    stand.run("/bin/sleep", "600", timeout_seconds=0.1, kill_grace_seconds=0.0)
    grace, _ = map(float, stand.file("waits").read_text().split())

    assert grace <= 0


def test_output_that_nobody_ends_is_not_waited_for(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is printed after the end is read for a second at most, however long a run may take."""
    patch_supervisor(monkeypatch, f"exec({PATIENT!r});")
    stand.run("true", timeout_seconds=3600)
    late, drain = map(float, stand.file("waits").read_text().split())

    assert late <= 1
    assert drain <= 1


def test_nul_in_a_command_is_refused_before_there_is_a_run() -> None:
    """A command with a NUL in it never becomes a plan."""
    with pytest.raises(ValueError, match="NUL"):
        SuitePlan(("true", "a\0b"))


# Deadline and stop.


def test_deadline_is_a_reason_and_not_an_exit_code(stand: Stand) -> None:
    """A suite past its deadline is stopped, and its own end counts no longer."""
    facts = stand.facts("/bin/sleep", "600", timeout_seconds=0.3)

    assert (facts.stopped_by, facts.exit_code, facts.signal) == (Stop.DEADLINE, None, None)
    assert facts.supervision == Supervision.SOUND


def test_suite_that_ignores_every_signal_ends_at_its_deadline(stand: Stand) -> None:
    """A suite that ignores TERM is killed when its grace is over."""
    facts = stand.facts(
        "/bin/sh", "-c", "trap '' TERM HUP INT; while :; do sleep 1; done", timeout_seconds=0.3
    )

    assert facts.stopped_by == Stop.DEADLINE


def test_suite_that_stops_itself_ends_at_its_deadline(stand: Stand) -> None:
    """A suite that is stopped by SIGSTOP is past its deadline like any other."""
    facts = stand.facts("/bin/sh", "-c", "kill -STOP $$", timeout_seconds=0.3)

    assert facts.stopped_by == Stop.DEADLINE


def test_suite_that_stopped_itself_hears_that_it_has_to_end(stand: Stand) -> None:
    """A suite that is held is let go with the signal that ends it: its grace is its own."""
    script = "trap 'touch heard; exit 0' TERM; kill -STOP $$; sleep 600"
    facts = stand.facts(
        "/bin/sh", "-c", script, timeout_seconds=0.2, kill_grace_seconds=PATIENCE_SECONDS
    )

    assert facts.stopped_by == Stop.DEADLINE
    assert (stand.root / "tree" / "heard").exists()


def test_success_after_our_signal_is_none(stand: Stand) -> None:
    """A suite that traps TERM, cleans up and exits 0 has no exit code, and has not passed."""
    stand.start(*program("polite"), kill_grace_seconds=PATIENCE_SECONDS)
    stand.lifeline.await_members(1)
    stand.suites.reap(RUN)
    facts = stand.collect().facts

    assert b"cleaned up" in stand.log()
    assert (facts.stopped_by, facts.exit_code) == (Stop.REQUEST, None)
    assert verdict(facts) == Verdict.NOT_EXECUTED


def test_grace_is_for_everybody_below_the_leader(stand: Stand) -> None:
    """A wrapper that dies of TERM at once does not cost the real suite its grace."""
    stand.start(*program("nurse"), kill_grace_seconds=PATIENCE_SECONDS)
    stand.lifeline.await_members(1)
    stand.suites.reap(RUN)

    assert b"cleaned up" in stand.log()


def test_timeout_of_any_length_can_be_waited_for(stand: Stand) -> None:
    """A deadline further away than a system call can wait is a deadline all the same."""
    assert stand.facts("true", timeout_seconds=1e12).exit_code == 0


def test_request_to_stop_that_comes_before_the_suite_keeps_it_from_running(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is stopped between its supervisor's start and its own never runs."""
    patch_supervisor(
        monkeypatch,
        "import os; write = main.write_identity;"
        "main.write_identity = lambda *a: (write(*a), os.kill(os.getpid(), 15));"
        "main.supervise = None;",
    )
    facts = stand.facts("/usr/bin/touch", "it-ran")

    assert facts.stopped_by == Stop.REQUEST
    assert not (stand.root / "tree" / "it-ran").exists()


@pytest.mark.parametrize("moment", ["before the order", "after the order", "before the lock"])
def test_run_that_was_said_to_be_lost_starts_no_more(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A worker that was overtaken by a recovery before its supervisor starts none any more."""
    write, lock, said = RunFolder.write_order, RunFolder.lock, list[RunCondition]()

    def be_overtaken(at: str) -> None:
        if at == moment and not said:
            with monkeypatch.context() as patch:
                patch.setattr(RunFolder, "lock", lock)
                said.append(stand.suites.condition(RUN))

    def write_late(folder: RunFolder, order: Order) -> None:
        be_overtaken("before the order")
        write(folder, order)
        be_overtaken("after the order")

    def lock_late(folder: RunFolder) -> AbstractContextManager[int | None]:
        be_overtaken("before the lock")
        return lock(folder)

    monkeypatch.setattr(RunFolder, "write_order", write_late)
    monkeypatch.setattr(RunFolder, "lock", lock_late)
    with pytest.raises(PreparationError, match="taken or closed"):
        stand.start("/usr/bin/touch", "it-ran")

    assert said == [RunCondition.LOST]
    assert not (stand.root / "tree" / "it-ran").exists()


#: A supervisor that keeps in what order it does what its promises hang on.
DIARIST = """
import os, stat, sys
diary, write, replace, fsync = open(sys.argv[2] + "/diary", "w"), os.write, os.replace, os.fsync
def note(word):
    print(word, file=diary, flush=True)
class Limits:
    seconds, events = 3600.0, ()
    breach = kill = end = lambda _: None
    add = lambda *_: note("limits")
def release(fd, data):
    if data == b"1":
        note("gate")
    return write(fd, data)
def rename(source, target):
    replace(source, target)
    note(os.path.basename(target))
def sync(fd):
    fsync(fd)
    note("synced folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "synced file")
def noted(word, real):
    def call(*arguments):
        found = real(*arguments)
        note(word)
        return found
    return call
os.write, os.replace, os.fsync, main.sweep = release, rename, sync, noted("swept", main.sweep)
os.pwrite, os.truncate = noted("written", os.pwrite), noted("cut to length", os.truncate)
main.hold_limits = lambda *_: Limits()
"""


@pytest.mark.parametrize("timeout_seconds", [PATIENCE_SECONDS, 0.05], ids=["ended", "stopped"])
def test_order_of_what_a_supervisor_does_is_the_promise(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, timeout_seconds: float
) -> None:
    """A suite is known and held to its limits before it runs; its result comes last, for ever."""
    patch_supervisor(monkeypatch, f"exec({DIARIST!r});")
    command = "true" if timeout_seconds == PATIENCE_SECONDS else "sleep 600"
    stand.run("/bin/sh", "-c", command, timeout_seconds=timeout_seconds)

    assert stand.file("diary").read_text().splitlines() == [
        *("shim", "limits", "leader", "gate", "swept", "synced file"),
        *("written", "cut to length", "synced file", "result", "synced folder"),
    ]


#: A supervisor whose suite ends in the middle of its second look, at an orphan of the suite's.
OVERTAKEN = """
look, looks = main.Suite.look, []
def see(suite):
    look(suite)
    looks.append(suite)
    if len(looks) == 2:
        open(main.os.environ["RELEASE"], "w").close()
        main.os.waitid(main.os.P_PID, suite.pid, main.os.WEXITED | main.os.WNOWAIT)
main.Suite.look = see
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere an orphan is another's")
def test_end_in_the_middle_of_a_look_is_seen(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite that ends while its supervisor looks after an orphan has ended, and in its time."""
    patch_supervisor(monkeypatch, f"exec({OVERTAKEN!r});")
    facts = stand.facts("/bin/sh", "-c", "(true &); : < $RELEASE; exit 3")

    assert (facts.stopped_by, facts.exit_code) == (None, 3)


# Nobody is left.


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_outlives_a_suite_that_ends(stand: Stand, kind: str) -> None:
    """Whatever a suite leaves behind when it ends is dead before there is a report."""
    facts = stand.facts(*program("tree", kind, "exit"))

    stand.lifeline.await_members(1)
    assert stand.lifeline.is_cut()
    assert (facts.exit_code, facts.stopped_by, facts.processes_left) == (0, None, 0)


@pytest.mark.parametrize("kind", ["session", "chain"])
def test_who_is_below_others_is_not_killed_by_number(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Only our own children cannot be mistaken: of all others the one that was looked at is hit."""
    patch_supervisor(monkeypatch, "import os; os.kill = None;")
    facts = stand.facts(*program("tree", kind, "exit"))

    assert facts.supervision == Supervision.SOUND
    assert stand.lifeline.is_cut()


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_outlives_a_suite_that_is_stopped(stand: Stand, kind: str) -> None:
    """Whoever a suite has started is dead when it has been stopped."""
    stand.start(*program("tree", kind, "stay"))
    stand.lifeline.await_members(1)
    stand.suites.reap(RUN)

    assert stand.lifeline.is_cut()
    assert stand.collect().facts.stopped_by == Stop.REQUEST


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "daemon"])
def test_nobody_outlives_a_supervisor_that_is_killed(stand: Stand, kind: str) -> None:
    """If the supervisor is killed, the run is lost, and whoever carries its mark is killed."""
    stand.start(*program("tree", kind, "stay"))
    stand.lifeline.await_members(1)
    os.kill(stand.pid(), signal.SIGKILL)
    facts = stand.collect().facts

    assert stand.lifeline.is_cut()
    assert facts.supervision == Supervision.LOST
    assert verdict(facts) == Verdict.NOT_EXECUTED


def test_what_a_supervisor_could_not_stop_its_worker_does(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that says it left somebody alive is believed: the worker looks and kills."""
    patch_supervisor(monkeypatch, "main.sweep = lambda *_: 1;")
    facts = stand.facts(*program("tree", "session", "exit"))

    assert stand.lifeline.is_cut()
    assert (facts.exit_code, facts.processes_left) == (0, 1)


def test_leader_dies_with_its_supervisor(stand: Stand) -> None:
    """The kernel kills the leader of a suite whose supervisor is gone, though nobody looks."""
    stand.start(*program("tree", "plain", "stay"))
    stand.lifeline.await_members(1)
    leader = stand.pid("leader")
    os.kill(stand.pid(), signal.SIGKILL)

    assert has_ended(leader)


#: A supervisor that dies right after its suite, still at the gate but let go, has looked for it.
FORSAKER = """
import os, select
become, getppid = main.Suite._become_suite, os.getppid
def become_late(suite, parent, output_in, gate_out, errors_in):
    def look():
        found = getppid()
        select.select([gate_out], [], [])
        os.kill(parent, 9)
        while getppid() == parent:
            os.sched_yield()
        return found
    os.getppid = look
    become(suite, parent, output_in, gate_out, errors_in)
main.Suite._become_suite = become_late
"""


def test_leader_whose_supervisor_dies_while_it_is_looked_for_never_runs(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no moment at which a supervisor that dies leaves a suite to run alone."""
    patch_supervisor(monkeypatch, f"exec({FORSAKER!r});")
    stand.start("/usr/bin/touch", "it-ran")

    assert has_ended(stand.pid("leader"))
    assert not (stand.root / "tree" / "it-ran").exists()
    assert stand.collect().facts.supervision == Supervision.LOST


def test_storm_of_forks_ends(stand: Stand) -> None:
    """A suite that forks and flees while it is being killed is killed."""
    stand.start(*program("storm", "20", "100000"))
    stand.lifeline.await_members(20)
    stand.suites.reap(RUN)

    assert stand.lifeline.is_cut()
    assert stand.collect().facts.processes_left == 0


def test_what_outlived_the_suite_is_said(stand: Stand) -> None:
    """A report says how many processes outlived the suite."""
    report = stand.run(*program("tree", "session", "exit"))

    assert report.detail == "1 processes outlived the suite and were killed"


def test_grandchild_that_holds_the_output_does_not_delay_the_end(stand: Stand) -> None:
    """A run ends with its leader, not with the last one that could still print."""
    report = stand.run(*program("holder"))

    assert (report.facts.exit_code, report.facts.stopped_by) == (0, None)
    assert report.duration_seconds is not None
    assert report.duration_seconds < PATIENCE_SECONDS
    assert stand.lifeline.is_cut()


def test_end_of_output_is_not_the_end_of_the_suite(stand: Stand) -> None:
    """A suite that closes its output runs on and has the exit code that it ends with."""
    stand.start(*program("closer"))
    stand.lifeline.await_members(1)
    stand.let_go()

    assert stand.collect().facts.exit_code == 3
    assert stand.log() == b"the last words\n"


# Who is nobody's root, and other machines.


def test_supervision_needs_no_root(stand: Stand) -> None:
    """Without root, a run is supervised, swept and collected like any other."""
    command = program("tree", "crowd", "exit")
    shown = worker(stand, "collect", *command, before=as_nobody(*stand.paths))

    assert shown[:3] == [Supervision.SOUND, 0, None]
    assert shown[3] != 0
    assert stand.lifeline.is_cut()


def test_supervisor_keeps_its_secret(stand: Stand) -> None:
    """A suite of the same user cannot look into the supervisor that holds the seal."""
    looks = "for file in environ maps mem; do head -c 1 /proc/$PPID/$file && exit 1; done; exit 0"
    shown = worker(stand, "collect", "/bin/sh", "-c", looks, before=as_nobody(*stand.paths))

    assert shown[:2] == [Supervision.SOUND, 0]


@pytest.mark.parametrize(("code", "ends"), [("exit 3", (3, None)), ("kill -9 $$", (None, 9))])
def test_supervisor_works_with_what_macos_has(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, code: str, ends: tuple[int | None, int | None]
) -> None:
    """Where there is no subreaper, no pidfd and no waitid, a suite is supervised all the same."""
    without = "import os, sys; sys.platform = 'darwin'; del os.waitid, os.pidfd_open;"
    patch_supervisor(monkeypatch, "", before=without)
    facts = stand.facts("/bin/sh", "-c", code)
    left = stand.facts(*program("tree", "plain", "exit"), run_id=f"{ATTEMPT}.3")
    late = stand.facts("/bin/sleep", "600", run_id=f"{ATTEMPT}.2", timeout_seconds=0.2)

    assert (facts.exit_code, facts.signal) == ends
    assert (left.exit_code, stand.lifeline.is_cut()) == (0, True)
    assert late.stopped_by == Stop.DEADLINE


# Waiting costs nothing.


def activity(task: Path) -> tuple[str, ...]:
    """Return how often a thread gave up the processor, and how long it had it."""
    status = (task / "status").read_text()
    times = (task / "stat").read_text().rpartition(")")[2].split()[11:13]
    return (status.split("\nvoluntary_ctxt_switches:")[1].split()[0], *times)


def test_waiting_costs_nothing(stand: Stand) -> None:
    """While a suite says nothing, neither its supervisor nor its worker ever wakes up."""
    stand.start(*program("closer"))
    stand.lifeline.await_members(1)
    waiting = threading.Thread(target=stand.collect)
    waiting.start()
    tasks = [Path(f"/proc/{stand.pid()}"), Path(f"/proc/self/task/{waiting.native_id}")]
    deadline = time.monotonic() + PATIENCE_SECONDS
    before: list[tuple[str, ...]] = []
    after = [activity(task) for task in tasks]
    # At first both still have something to do; who polls never comes to rest.
    while before != after and time.monotonic() < deadline:
        before = after
        assert not has_ended(stand.pid(), 0.5)
        after = [activity(task) for task in tasks]
    stand.let_go()
    waiting.join()

    assert after == before

"""The command line, as a shell sees it: real processes, real exit codes, real JSON."""

import contextlib
import json
import os
import pkgutil
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import attrs
import click
import pytest
from click.testing import CliRunner

from forkserver import staging_fsm_of_fork
from hosts import DEADLINE_SECONDS, git
from staging_fsm.core.ports import AlertKind
from staging_fsm.core.spec import State
from staging_fsm.effects.processes import ProcessIdentity, this_process
from staging_fsm.faces import commands
from staging_fsm.faces.cli import COMMANDS, main
from staging_fsm.faces.commands.show import print_end
from staging_fsm.faces.demo import STORIES
from staging_fsm.faces.exits import ExitCode
from staging_fsm.faces.session import AttemptDriver, open_session, staging_job
from staging_fsm.faces.settings import every_setting
from staging_fsm.host.contract.gate import check_staging_status
from stand import bound_by_modes
from webhooks import webhooks

PYTHON = sys.executable
PASSING = "def test_it():\n    assert True\n"


@attrs.frozen
class Shell:
    """Runs `staging-fsm` with a state folder of its own."""

    folder: Path
    repository: Path

    def environment(self, **settings: str) -> dict[str, str]:
        """Return the environment of a command; `settings` without their prefix."""
        own = {"STATE_DIR": str(self.folder / "state"), "RETRY_BACKOFF_SECONDS": "0.05"}
        names = {f"ORCH_STAGING_RUNNER_{key}": value for key, value in {**own, **settings}.items()}
        return {**os.environ, **names, "COLUMNS": "200"}

    def command(self, *arguments: str) -> list[str]:
        """Return the argument vector of a command."""
        return [PYTHON, "-m", "staging_fsm.faces", *arguments]

    def call(self, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        return staging_fsm_of_fork(arguments, self.environment(**settings))

    def run(self, *arguments: str, **settings: str) -> tuple[int, dict[str, Any]]:
        """Run `run --json` on the repository; return exit code and object."""
        ended = self.call("run", "--repo", str(self.repository), "--json", *arguments, **settings)
        assert ended.stdout, ended.stderr
        view: dict[str, Any] = json.loads(ended.stdout)
        return ended.returncode, view

    def queue(self) -> dict[str, Any]:
        """Return the block that `queue --json` prints."""
        block: dict[str, Any] = json.loads(self.call("queue", "--json").stdout)["staging_runner"]
        return block


@pytest.fixture
def shell(tmp_path: Path, repository: Path) -> Shell:
    """Return a shell over a repository with one passing pytest."""
    (repository / "test_it.py").write_text(PASSING)
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "A suite.")
    return Shell(tmp_path, repository)


def test_passing_suite_advances(shell: Shell) -> None:
    """A suite that ran and passed exits 0, and the artifact opens the gate."""
    code, view = shell.run("--", PYTHON, "-m", "pytest", "-q")

    assert (code, view["state"], view["status"]) == (ExitCode.ADVANCED, "ADVANCED", "SUCCESS")
    assert view["next_stage"] == "deploy"
    assert [run["exit_code"] for run in view["runs"]] == [0]
    assert view["revision"] == git(shell.repository, "rev-parse", "HEAD")
    assert check_staging_status(Path(view["artifact"]).parent)
    assert Path(view["log"]).is_file()


def test_failing_suite_rolls_back(shell: Shell) -> None:
    """A suite that ran and failed exits 1 and sends the work item back to development."""
    code, view = shell.run("--", "sh", "-c", "exit 7")

    assert (code, view["state"], view["status"]) == (ExitCode.ROLLED_BACK, "ROLLED_BACK", "FAILED")
    assert (view["next_stage"], view["runs"][0]["exit_code"]) == ("development", 7)


def test_missing_command_fails_closed_at_once(shell: Shell) -> None:
    """A command that does not exist exits 3 after one run: the same would happen again.

    `show` tells what went wrong in detail.
    """
    code, view = shell.run("--", "no-such-interpreter", "-m", "pytest")
    shown = shell.call("show", str(view["job_id"])).stdout

    assert "\n  detail: no-such-interpreter: No such file or directory\n" in shown

    assert (code, view["state"]) == (ExitCode.FAILED_CLOSED, "FAILED_CLOSED")
    assert (view["reason"], view["fault"]) == ("command_not_found", "infrastructure")
    assert len(view["runs"]) == 1
    assert "infrastructure" in Path(view["artifact"]).read_text()


def test_tool_errors_are_retried_within_the_budget(shell: Shell) -> None:
    """A transient tool error is tried again, once for each retry, and then fails closed."""
    code, view = shell.run(
        "--infra-retries", "1", "--tool-exit-code", "75", "--", "sh", "-c", "exit 75"
    )

    assert code == ExitCode.FAILED_CLOSED
    assert [run["reason"] for run in view["runs"]] == ["tool_exit_code", "tool_exit_code"]


def test_suite_past_its_deadline_is_no_verdict(shell: Shell) -> None:
    """A suite that traps our TERM and exits 0 has not passed."""
    trap = "trap 'exit 0' TERM; while :; do sleep 0.05; done"
    code, view = shell.run(
        "--timeout-seconds", "0.4", "--infra-retries", "0", "--", "sh", "-c", trap
    )

    assert (code, view["reason"]) == (ExitCode.FAILED_CLOSED, "deadline_exceeded")
    assert view["runs"][0]["exit_code"] is None


def test_pytest_that_ran_nothing_is_no_pass(shell: Shell) -> None:
    """Exit code 0 without a test that ran is a tool error, and not worth a second run."""
    skipping = "import pytest\n\n@pytest.mark.skip\ndef test_it():\n    pass\n"
    (shell.repository / "test_it.py").write_text(skipping)
    git(shell.repository, "commit", "--quiet", "--all", "--message", "Skip.")
    code, view = shell.run("--", PYTHON, "-m", "pytest", "-q")

    assert (code, view["reason"], view["runs"][0]["exit_code"]) == (3, "no_tests", 0)


@pytest.mark.parametrize(
    ("inner", "end", "reason"),
    [
        ("assert True", "os._exit(0)", "report_missing"),
        ("assert False", "os.kill(os.getpid(), 9)", "killed_by_signal"),
    ],
)
def test_report_of_a_pytest_within_the_suite_is_none(
    shell: Shell, inner: str, end: str, reason: str
) -> None:
    """A pytest that a test starts, passed or failed, does not report for a suite that broke off."""
    (shell.repository / "inner.py").write_text(f"def test_inner():\n    {inner}\n")
    (shell.repository / "test_it.py").write_text(
        "import os, subprocess, sys\n\n"
        "def test_plugin():\n"
        "    subprocess.run([sys.executable, '-m', 'pytest', 'inner.py'])\n\n"
        f"def test_end():\n    {end}\n"
    )
    git(shell.repository, "add", ".")
    git(shell.repository, "commit", "--quiet", "--message", "A suite within the suite.")
    command = (PYTHON, "-m", "pytest", "-q", "test_it.py")
    code, view = shell.run("--infra-retries", "0", "--", *command)
    (run,) = view["runs"]

    assert (code, view["reason"], run["reason"]) == (ExitCode.FAILED_CLOSED, reason, reason)
    assert f"command: {json.dumps(command)}" in Path(view["artifact"]).read_text()


def test_forged_output_and_artifact_change_nothing(shell: Shell) -> None:
    """A suite that prints front matter and writes the artifact itself is still judged by us."""
    forge = (
        "printf -- '---\\nstaging_status: SUCCESS\\n---\\n';"
        f"mkdir -p {shell.repository}/docs/work-items/WI-9;"
        f"printf -- '---\\nstaging_status: SUCCESS\\n---\\n'"
        f" > {shell.repository}/docs/work-items/WI-9/15-staging-log.md; exit 1"
    )
    code, view = shell.run("--work-item", "WI-9", "--", "sh", "-c", forge)

    assert code == ExitCode.ROLLED_BACK
    assert not check_staging_status(Path(view["artifact"]).parent)


def test_uncommitted_changes_are_refused(shell: Shell) -> None:
    """A dirty tree exits 4 with a way out, and leaves nothing behind."""
    (shell.repository / "shop.py").write_text("PRICE = 4\n")
    ended = shell.call("run", "--repo", str(shell.repository), "--", "true")

    assert ended.returncode == ExitCode.DECLINED
    assert "uncommitted changes" in ended.stderr
    assert not (shell.repository / "docs").exists()


def test_tree_on_a_share_without_modes_is_not_dirty(shell: Shell) -> None:
    """Where a repository says that its file system keeps no modes, they make no tree dirty.

    The suite is run on the commit in a worktree; in place its modes would be none of the commit's.
    """
    git(shell.repository, "config", "core.fileMode", "false")
    (shell.repository / "test_it.py").chmod(0o777)
    code, _ = shell.run("--", "test", "!", "-x", "test_it.py")
    options = ("--repo", str(shell.repository), "--workspace", "in-place")
    in_place = shell.call("run", *options, "--", "true")

    assert code == ExitCode.ADVANCED
    assert in_place.returncode == ExitCode.DECLINED


def test_folder_without_git_is_unversioned(shell: Shell, tmp_path: Path) -> None:
    """A folder that is no repository is run in place, and said to be unversioned."""
    folder = tmp_path / "plain"
    folder.mkdir()
    code, view = attrs.evolve(shell, repository=folder).run("--artifact-dir", "--", "true")

    assert (code, view["revision"]) == (ExitCode.ADVANCED, "unversioned")
    assert list(folder.iterdir()) == []
    assert Path(view["artifact"]).is_relative_to(tmp_path / "state")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--repo", "/no/such/folder", "--", "true"],
        ["run", "--repo", "."],
        ["run", "--repo", ".", "--work-item", "../escape", "--", "true"],
        ["run", "--repo", ".", "--work-item", "WI/../../../escape", "--", "true"],
        ["run", "--repo", ".", "--work-item", "WI-1\n", "--", "true"],
        ["run", "--repo", ".", "--work-item", "WI..1", "--", "true"],
        ["fleet-submit", "--repo", "shop", "--work-item", "WI.lock"],
        ["fleet-submit", "--repo", "../shop", "--work-item", "WI-1"],
        ["fleet-submit", "--repo", "", "--work-item", "WI-1"],
        ["fleet-submit", "--repo", "shop", "--work-item", ""],
        ["run", "--repo", ".", "--min-tests", "-1", "--allow-dirty", "--", "true"],
        ["run", "--repo", ".", "--min-tests", "many", "--allow-dirty", "--", "true"],
        ["run", "--repo", ".", "--min-tests", "auto", "--allow-dirty", "--", "true"],
        ["run", "--repo", ".", "--no-such-option", "--", "true"],
    ],
)
def test_wrong_usage_exits_2(shell: Shell, arguments: list[str]) -> None:
    """A command line that makes no sense exits 2 with a sentence, before anything is done."""
    ended = shell.call(*arguments)

    assert ended.returncode == ExitCode.USAGE
    assert "Error:" in ended.stderr


@pytest.mark.parametrize("name", ["WI..1", "WI-1.lock", "WI-1."])
def test_work_item_that_could_never_be_deployed_is_refused(shell: Shell, name: str) -> None:
    """A work item that git takes in no tag is refused before it is staged, with the reason."""
    ended = shell.call("run", "--repo", str(shell.repository), "--work-item", name, "--", "true")

    assert ended.returncode == ExitCode.USAGE
    assert (
        f"Invalid value for --work-item: '{name}' must not hold two dots in a row" in ended.stderr
    )
    assert "git takes no such tag" in ended.stderr
    assert not (shell.folder / "state" / "orchestrator.db").exists()


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--timeout-seconds", "0", "0.0 is not from 0.1 to 86400"),
        ("--kill-grace-seconds", "nan", "nan is not from 0 to 3600"),
        ("--idle-timeout-seconds", "86401", "86401.0 is not from 0 to 86400"),
        ("--memory-max-bytes", "-1", "-1 is not from 0 to"),
        ("--processes-max", "-1", "-1 is not from 0 to"),
        ("--open-files-max", "-1", "-1 is not from 0 to"),
        ("--file-max-bytes", "-1", "-1 is not from 0 to"),
        ("--infra-retries", "21", "21 is not from 0 to 20"),
        ("--tool-exit-code", "256", "256 is not in the range 1<=x<=255"),
        ("--max-skipped-ratio", "1.1", "1.1 is not in the range 0<=x<=1"),
        ("--min-tests", "-1", "'-1' is neither a number of at least 0 nor auto"),
        ("--min-tests", "2", "--min-tests and --max-skipped-ratio need a report"),
    ],
)
def test_option_out_of_range_is_refused_by_its_name(
    shell: Shell, option: str, value: str, problem: str
) -> None:
    """A number that an option does not take is wrong usage: it exits 2 and says which, and why.

    It is told by the option that was typed, never by a variable or a key that was not.
    """
    ended = shell.call("run", "--repo", str(shell.repository), option, value, "--", "true")

    assert ended.returncode == ExitCode.USAGE
    assert problem in ended.stderr
    assert option in ended.stderr
    assert "ORCH_" not in ended.stderr
    assert option[2:].replace("-", "_") not in ended.stderr


@pytest.mark.parametrize("option", ["--repo", "--work-item", "--report", "--env"])
def test_empty_name_is_refused(shell: Shell, option: str) -> None:
    """An empty name is refused as usage, before anything is done: a variable was not set.

    It stands neither for a new work item nor for the folder one happens to be in, nor for a
    report that nobody could leave.
    """
    named = {"--repo": str(shell.repository), "--work-item": "WI-1"} | {option: ""}
    words = [word for pair in named.items() for word in pair]
    ended = shell.call("run", *words, "--allow-dirty", "--artifact-dir", "--", "true")

    assert ended.returncode == ExitCode.USAGE
    assert "it is empty: if a variable was to name it, that one is not set" in ended.stderr
    assert option in ended.stderr
    assert not (shell.folder / "state" / "orchestrator.db").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_is_cancelled(shell: Shell, number: signal.Signals) -> None:
    """An interrupt, or a TERM as of a CI system, stops the suite, judges nothing, and exits 5."""
    started = shell.folder / "started"
    os.mkfifo(started)
    suite = f"echo > {started}; exec sleep 600"
    command = shell.command(
        "run", "--repo", str(shell.repository), "--json", "--", "sh", "-c", suite
    )
    process = subprocess.Popen(command, env=shell.environment(), stdout=subprocess.PIPE, text=True)
    started.read_text()
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)

    assert process.returncode == ExitCode.CANCELLED
    view = json.loads(output)
    assert (view["state"], view["status"], view["artifact"]) == ("CANCELLED", None, None)


def test_log_of_a_cancelled_run_is_named(shell: Shell) -> None:
    """What a suite had printed when it was stopped is there, and `run` and `show` say where."""
    started = shell.folder / "started"
    os.mkfifo(started)
    suite = f"echo halfway; echo > {started}; exec sleep 600"
    command = shell.command("run", "--repo", str(shell.repository), "--", "sh", "-c", suite)
    process = subprocess.Popen(command, env=shell.environment(), stdout=subprocess.PIPE, text=True)
    started.read_text()
    job = str(shell.queue()["attempts"][0]["job_id"])
    running = json.loads(shell.call("show", job, "--json").stdout)
    shell.call("cancel", job)
    output, _ = process.communicate()
    view = json.loads(shell.call("show", job, "--json").stdout)

    assert Path(view["log"]).read_text() == "halfway\n"
    assert [run["log"] for run in view["runs"]] == [view["log"]] == [running["log"]]
    assert f"\n  log: {view['log']}\n" in output
    assert f"\n  log: {view['log']}\n" in shell.call("show", job).stdout
    shutil.rmtree(shell.folder / "state" / "runs")
    assert "log:" not in shell.call("show", job).stdout


def test_run_that_is_interrupted_before_it_began_judges_nothing(shell: Shell) -> None:
    """An interrupt before anything ran exits 5, too: 1 would say that the suite failed."""
    started, git_ = shell.folder / "started", shell.folder / "bin" / "git"
    os.mkfifo(started)
    git_.parent.mkdir()
    git_.write_text(f"#!/bin/sh\necho > {started}\nexec sleep 600\n")
    git_.chmod(0o755)
    environment = shell.environment()
    environment["PATH"] = f"{git_.parent}:{environment['PATH']}"
    # As at a terminal, whatever has started the tests: in the background an interrupt is ignored.
    at_a_terminal = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        " from staging_fsm.faces.cli import main; main()"
    )
    command = [PYTHON, "-c", at_a_terminal, "run", "--repo", str(shell.repository), "--", "true"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        started.read_text()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()

    assert (process.returncode, errors) == (ExitCode.CANCELLED, "staging-fsm: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_that_comes_too_late_changes_no_exit_code(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """An interrupt that comes while the end of a run is told changes nothing of that end."""
    cancel, is_over = AttemptDriver.cancel, threading.Event()

    def cancelled(driver: AttemptDriver) -> None:
        cancel(driver)
        is_over.set()

    def interrupted(*told: Any) -> None:
        signal.raise_signal(number)
        assert is_over.wait(DEADLINE_SECONDS)
        print_end(*told)

    monkeypatch.setattr(AttemptDriver, "cancel", cancelled)
    monkeypatch.setattr("staging_fsm.faces.commands.run.print_end", interrupted)
    # In the place of the system's, which would end whoever runs the tests.
    before = signal.signal(number, signal.default_int_handler)
    try:
        words = ["run", "--repo", str(shell.repository), "--", "true"]
        ended = CliRunner().invoke(main, words, env=shell.environment())
    finally:
        signal.signal(number, before)

    assert ended.exit_code == ExitCode.ADVANCED
    assert ": ADVANCED. The suite ran and passed." in ended.stdout


def test_cancel_from_elsewhere_ends_the_run(shell: Shell) -> None:
    """`cancel JOB` of another process stops a running suite; its `run` exits 5."""
    started = shell.folder / "started"
    os.mkfifo(started)
    suite = f"echo > {started}; exec sleep 600"
    command = shell.command(
        "run", "--repo", str(shell.repository), "--json", "--", "sh", "-c", suite
    )
    process = subprocess.Popen(command, env=shell.environment(), stdout=subprocess.PIPE, text=True)
    started.read_text()
    queued = shell.queue()
    cancelled = shell.call("cancel", str(queued["attempts"][0]["job_id"]))
    process.communicate(timeout=60)

    assert queued["counts"] == {"RUNNING": 1}
    assert (cancelled.returncode, process.returncode) == (0, ExitCode.CANCELLED)


def test_cancel_that_comes_too_late_says_how_it_ended(shell: Shell) -> None:
    """`cancel` of what has ended exits 4, says so and how, and changes nothing.

    So it does while the gate has yet to answer: the last run is over.
    """
    job = str(shell.run("--", "true")[1]["job_id"])
    ended = shell.call("cancel", job)
    begun = (
        "UPDATE jobs SET status = 'running', metadata = json_set("
        " json_remove(metadata, '$.staging_runner.history[#-1]'),"
        " '$.staging_runner.state', 'VERDICT_PASSED', '$.staging_runner.artifact', NULL,"
        " '$.staging_runner.version', 2) WHERE id = ?"
    )
    with sqlite3.connect(shell.folder / "state" / "orchestrator.db") as database:
        database.execute(begun, (job,))
    before = list(database.execute("SELECT * FROM jobs"))
    judged = shell.call("cancel", job)

    words = f"staging-fsm: job {job} can no longer be cancelled, its"
    passed = "The suite ran and passed.\n"
    assert ended.stderr == f"{words} attempt has ended: ADVANCED. {passed}"
    assert judged.stderr == f"{words} last run has ended: VERDICT_PASSED. {passed}"
    assert (ended.returncode, judged.returncode) == (ExitCode.DECLINED, ExitCode.DECLINED)
    assert list(database.execute("SELECT * FROM jobs")) == before


def test_run_takes_up_a_deferred_attempt(shell: Shell) -> None:
    """A second `run` on a work item that waits goes on with its attempt, not with a new one."""
    flag = shell.folder / "staging-is-up"
    suite = ("--tool-exit-code", "75", "--work-item", "WI-5", "--", "sh", "-c")
    arguments = [*suite, f"test -e {flag} || exit 75"]
    job_id = left_waiting(shell, *arguments)
    flag.touch()
    make_due(shell, job_id)
    code, view = shell.run(*arguments)

    assert (code, view["job_id"]) == (ExitCode.ADVANCED, job_id)
    assert [run["reason"] for run in view["runs"]] == ["tool_exit_code", "passed"]


def left_waiting(shell: Shell, *arguments: str) -> int:
    """Return the job of a `run` that was killed while its attempt waited for its next run."""
    command = shell.command("run", "--repo", str(shell.repository), "--json", *arguments)
    environment = shell.environment(RETRY_BACKOFF_SECONDS="600")
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert any("DEFERRED" in line for line in process.stderr)
        process.kill()
    return int(shell.queue()["attempts"][0]["job_id"])


def make_due(shell: Shell, job_id: int) -> None:
    """Let the deferred job's time come, in row and snapshot."""
    past = "2020-01-01T00:00:00.000000Z"
    with sqlite3.connect(shell.folder / "state" / "orchestrator.db") as database:
        database.execute(
            "UPDATE jobs SET not_before = ?, metadata ="
            " json_set(metadata, '$.staging_runner.next_run_at', ?) WHERE id = ?",
            (past, past, job_id),
        )


def test_run_answers_for_nothing_else(shell: Shell) -> None:
    """An unfinished attempt with another suite, or on another commit, is not what was asked for."""
    ask = ("--work-item", "WI-1", "--", "sh", "-c")
    left_waiting(shell, *ask, "exit 126")
    another = shell.call("run", "--repo", str(shell.repository), *ask, "true")
    weaker = shell.call(
        *("run", "--repo", str(shell.repository), "--report", "junit.xml", *ask, "exit 126")
    )
    git(shell.repository, "commit", "--quiet", "--allow-empty", "--message", "Another.")
    later = shell.call("run", "--repo", str(shell.repository), *ask, "exit 126")

    assert (another.returncode, later.returncode) == (ExitCode.DECLINED, ExitCode.DECLINED)
    assert "is bound to another suite" in another.stderr
    assert (weaker.returncode, "another suite" in weaker.stderr) == (ExitCode.DECLINED, True)
    assert "is bound to commit" in later.stderr


def test_commands_hear_how_processes_end_whatever_started_them(shell: Shell) -> None:
    """A parent that ignored the end of its children does not make a run impossible."""
    careless = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = shell.command("run", "--repo", str(shell.repository), "--", "true")
    ended = subprocess.run(
        [PYTHON, "-c", careless, *command], env=shell.environment(), check=False, timeout=120
    )

    assert ended.returncode == ExitCode.ADVANCED


def test_run_that_was_overtaken_answers_for_nothing_else(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two runs of a work item at one moment none answers with what the other's suite did."""
    drive = AttemptDriver.drive
    overtaken_by = []

    def late(driver: AttemptDriver) -> Any:
        overtaken_by.append(shell.run("--work-item", "WI-1", "--", "true")[1]["state"])
        return drive(driver)

    monkeypatch.setattr(AttemptDriver, "drive", late)
    for name, value in shell.environment().items():
        monkeypatch.setenv(name, value)
    asked = ["run", "--repo", str(shell.repository), "--work-item", "WI-1", "--", "false"]
    code = main.main(asked, standalone_mode=False)

    assert overtaken_by == [State.ADVANCED]
    assert code == ExitCode.DECLINED
    assert "is bound to another suite" in capsys.readouterr().err


def test_run_runs_whatever_the_environment_says_of_shadow_mode(shell: Shell) -> None:
    """Whoever asks for a run gets one, in an environment with shadow mode on, too."""
    code, view = shell.run("--", "false", SHADOW="1")

    assert (code, view["state"]) == (ExitCode.ROLLED_BACK, "ROLLED_BACK")


@pytest.mark.parametrize("for_long", [False, True], ids=["then it takes it", "still not"])
def test_declined_run_leaves_no_job_to_an_agent(
    shell: Shell,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    for_long: bool,
) -> None:
    """`run` ends a job that was declined, also where the database took no word of it at first.

    Where it takes none at all, the reason is told, and what is to be done.
    """
    drive, file = AttemptDriver.drive, shell.folder / "state" / "orchestrator.db"
    full = (
        "CREATE TRIGGER full BEFORE UPDATE OF metadata ON jobs"
        " BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
    )

    def on_a_full_disk(driver: AttemptDriver) -> Any:
        with sqlite3.connect(file) as database:
            database.execute(full)
        decision = drive(driver)
        with sqlite3.connect(file) as database:
            database.execute("SELECT 1" if for_long else "DROP TRIGGER full")
        return decision

    monkeypatch.setattr(AttemptDriver, "drive", on_a_full_disk)
    for name, value in shell.environment().items():
        monkeypatch.setenv(name, value)
    asked = ["run", "--repo", str(shell.repository), "--work-item", "WI-1", "--json", "--", "true"]
    with pytest.raises(SystemExit) as ended:
        main.main(asked)
    output, errors = capsys.readouterr()
    with sqlite3.connect(file) as database:
        (status,) = database.execute("SELECT status FROM jobs").fetchone()

    assert ended.value.code == ExitCode.DECLINED
    if for_long:
        assert (status, output) == ("running", "")
        assert "staging-fsm: job 1 was declined, and no word of it could be written" in errors
        assert "ask again once the database takes writes" in errors
    else:
        view = json.loads(output)
        assert (status, view["state"]) == ("cancelled", "LLM_FALLBACK")
        assert "the disk is full" in view["history"][-1]["reason"]


def test_run_does_not_wait_for_a_job_that_was_opened_again(shell: Shell) -> None:
    """A job whose attempt has ended, and that somebody opened by hand, is no job to wait for."""
    ask = ("--work-item", "WI-1", "--", "true")
    shell.run(*ask)
    with sqlite3.connect(shell.folder / "state" / "orchestrator.db") as database:
        database.execute("UPDATE jobs SET status = 'running' WHERE stage = 'deploy-staging'")
    again = shell.call("run", "--repo", str(shell.repository), *ask)

    assert again.returncode == ExitCode.DECLINED
    assert "its attempt has ended" in again.stderr


def test_queue_tells_people_what_has_to_be_done(shell: Shell) -> None:
    """The queue says of an attempt that will not go on by itself why, and of a broken setting too.

    Where nothing was ever run there is nothing to do.
    """
    empty = shell.call("queue")
    left_waiting(shell, "--work-item", "WI-1", "--", "sh", "-c", "exit 126")
    with sqlite3.connect(shell.folder / "state" / "orchestrator.db") as database:
        past = "2020-01-01T00:00:00.000000Z"
        database.execute(
            "UPDATE jobs SET status = 'queued', not_before = ?, metadata ="
            " json_set(metadata, '$.staging_runner.next_run_at', ?)",
            (past, past),
        )
    stuck = shell.call("queue", INFRA_RETRIES="many")

    assert (empty.returncode, empty.stdout) == (0, "no unfinished attempt\n")
    assert "no worker has claimed it" in stuck.stdout
    assert "The configuration is invalid, so the runner begins no job" in stuck.stdout


def test_show_and_queue_speak_json(shell: Shell) -> None:
    """`show` repeats what `run` said, and a finished attempt is not in the queue."""
    _, view = shell.run("--", "true")
    shown = json.loads(shell.call("show", str(view["job_id"]), "--json").stdout)
    queued = shell.queue()

    assert shown == view
    assert (queued["counts"], queued["attempts"], queued["refused"]) == ({}, [], [])
    assert [end["job_id"] for end in queued["last_outcomes"]] == [view["job_id"]]


def test_end_of_a_run_names_its_job_and_its_evidence(shell: Shell) -> None:
    """Whoever sees how a run ended sees its job's id, and what shows that any test ran.

    A pass of which the exit code alone is known looks like no other: the words are those of the
    artifact, in `run` and in `show`, and programs have one for each policy.
    """
    run = ("run", "--repo", str(shell.repository), "--work-item")
    hidden = shell.call(*run, "WI-1", "--", "sh", "-c", f"{PYTHON} -m pytest -q | cat").stdout
    counted = shell.call(*run, "WI-2", "--", PYTHON, "-m", "pytest", "-q").stdout
    ended = {end["work_item"]: end for end in shell.queue()["last_outcomes"]}

    for item, end, policy, words in (
        ("WI-1", hidden, "exit-code", "the exit code alone. No test report was asked for"),
        ("WI-2", counted, "junit", "the JUnit report `junit.xml` counts 1 tests, 1 executed"),
    ):
        job = str(ended[item]["job_id"])
        shown = shell.call("show", job).stdout
        view = json.loads(shell.call("show", job, "--json").stdout)
        evidence = [line for line in end.splitlines() if line.startswith("  evidence: ")]
        assert f"\n  job: {job}\n" in end
        assert f"  evidence: {words}" in evidence[0]
        said = evidence[0].partition(": ")[2]
        assert f"\nEvidence: {said}\n" in Path(view["artifact"]).read_text()
        assert shown.startswith(end[end.index(f"{item}: ADVANCED") :])
        assert (view["evidence"], ended[item]["evidence"]) == (policy, policy)


def test_diagram_of_a_job_shows_its_path(shell: Shell) -> None:
    """`diagram --job` prints one attempt with its steps, in the format that was asked for."""
    _, view = shell.run("--", "true")
    drawn = shell.call("diagram", "--job", str(view["job_id"])).stdout
    written = shell.call("diagram", "--job", str(view["job_id"]), "--format", "dot").stdout

    assert 'class="edge lit"' in drawn
    assert "T03 SUITE_PASSED (step 2)" in written


def test_diagram_with_counts_counts_all_history(shell: Shell) -> None:
    """`diagram --counts` counts the moves of every stored attempt, and names what it refuses."""
    for command in ("true", "true", "false"):
        _, view = shell.run("--", command)
    before = shell.call("diagram", "--counts", "--format", "table").stdout
    with sqlite3.connect(shell.folder / "state" / "orchestrator.db") as database:
        database.execute(
            "UPDATE jobs SET metadata = json_set(metadata, '$.staging_runner.state', 'RUNNING')"
            " WHERE id = ?",
            (view["job_id"],),
        )
    after = shell.call("diagram", "--counts", "--format", "table")

    assert "| T03 | RUNNING | SUITE_PASSED | VERDICT_PASSED | HAND_OVER | 2 |" in before
    assert "| T01 | PENDING | JOB_CLAIMED | RUNNING | RUN_SUITE | 3 |" in before
    assert "| T01 | PENDING | JOB_CLAIMED | RUNNING | RUN_SUITE | 2 |" in after.stdout
    assert f"job {view['job_id']} is not counted: its history leads to" in after.stderr


def test_diagram_is_of_one_thing(shell: Shell) -> None:
    """`diagram` compares, or shows a job, or counts: two at once are a usage error."""
    assert shell.call("diagram", "--job", "1", "--counts").returncode == ExitCode.USAGE


def test_unknown_job_is_a_sentence(shell: Shell) -> None:
    """A job that does not exist is an error in words, not a traceback."""
    ended = shell.call("show", "4711")

    assert ended.returncode == ExitCode.DECLINED
    assert ended.stderr.strip() == "staging-fsm: there is no job 4711 in table 'jobs'"


def test_suite_that_destroys_the_database_is_no_verdict(shell: Shell) -> None:
    """What becomes of its own tables does not end with the exit code of a suite that failed."""
    database = shell.folder / "state" / "orchestrator.db"
    ended = shell.call("run", "--repo", str(shell.repository), "--", "rm", str(database))

    assert ended.returncode == ExitCode.DECLINED
    assert "was removed or replaced while it was in use" in ended.stderr


def test_error_that_nobody_foresaw_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of our own shows its traceback, and ends with no exit code of a suite."""
    monkeypatch.setattr("staging_fsm.faces.commands.config.every_setting", lambda: 1 / 0)
    ended = CliRunner().invoke(main, ["config"])

    assert ended.exit_code == ExitCode.DECLINED
    assert "Traceback" in ended.stderr
    assert "staging-fsm: internal error: ZeroDivisionError: division by zero" in ended.stderr


def test_damaged_row_is_shown_and_never_touched(shell: Shell) -> None:
    """A row whose snapshot is damaged stands in the queue as refused, and `recover` leaves it."""
    import sqlite3  # noqa: PLC0415  # the operator's own tool

    _, view = shell.run("--", "true")
    database = sqlite3.connect(shell.folder / "state" / "orchestrator.db")
    with database:
        database.execute(
            "UPDATE jobs SET status = 'running', metadata ="
            " json_set(metadata, '$.staging_runner.state', 'RUNNING') WHERE id = ?",
            (view["job_id"],),
        )
    before = database.execute("SELECT * FROM jobs").fetchall()
    recovered = shell.call("recover", "--json")
    queued = shell.queue()

    assert (recovered.returncode, json.loads(recovered.stdout)) == (ExitCode.DECLINED, [])
    assert f"staging-fsm: job {view['job_id']} was not recovered: the " in recovered.stderr
    assert "its history leads to ADVANCED" in queued["refused"][0]["problem"]
    assert database.execute("SELECT * FROM jobs").fetchall() == before


def test_recover_says_what_became_of_each_job(shell: Shell) -> None:
    """`recover` tells of each job it took up, and exits 4 while one could not be."""
    suite = ("--tool-exit-code", "75", "--work-item", "WI-5", "--", "sh", "-c", "exit 75")
    job_id = left_waiting(shell, *suite)
    trigger = (
        "CREATE TRIGGER full BEFORE UPDATE ON jobs"
        " BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
    )
    path = shell.folder / "state" / "orchestrator.db"
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        # As a worker leaves it that claimed it too early, and died.
        database.execute("UPDATE jobs SET status = 'running', not_before = NULL")
        database.execute(trigger)
    failed = shell.call("recover")
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("DROP TRIGGER full")
    recovered, again = shell.call("recover"), shell.call("recover")

    assert (failed.returncode, failed.stdout) == (ExitCode.DECLINED, "")
    assert failed.stderr.splitlines()[-1] == (
        f"staging-fsm: job {job_id} was not recovered: the database cannot be used: database or"
        " disk is full: mend that, and ask again"
    )
    words = "The exit code says that the suite did not run properly."
    assert (recovered.returncode, recovered.stderr) == (0, "")
    assert recovered.stdout == f"job {job_id}, WI-5: DEFERRED. {words}\n"
    assert (again.returncode, again.stdout) == (0, "nothing to recover\n")


@pytest.mark.parametrize("command", ["run", "cancel"])
def test_database_that_takes_no_more_is_a_sentence(shell: Shell, command: str) -> None:
    """A database that cannot be written, as on a full disk, is told of in one line, and how."""
    job_id = left_waiting(shell, "--tool-exit-code", "75", "--", "sh", "-c", "exit 75")
    with contextlib.closing(sqlite3.connect(shell.folder / "state" / "orchestrator.db")) as file:
        for change in ("INSERT", "UPDATE"):
            file.execute(
                f"CREATE TRIGGER full_at_{change} BEFORE {change} ON jobs"
                " BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
            )
    arguments = {"run": ["--repo", str(shell.repository), "--", "true"], "cancel": [str(job_id)]}
    ended = shell.call(command, *arguments[command])

    assert ended.returncode == ExitCode.DECLINED
    assert ended.stderr == (
        "staging-fsm: the database cannot be used: database or disk is full: mend that, and ask"
        " again\n"
    )


def test_state_folder_that_may_not_be_entered_is_a_sentence(shell: Shell) -> None:
    """What this user may not look at is named in one line, and no traceback is shown."""
    shell.call("queue")
    state = shell.folder / "state"
    state.chmod(0)
    ended = [
        subprocess.run(
            [*bound_by_modes(), *shell.command(command)],
            env=shell.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        for command in ("queue", "doctor")
    ]
    state.chmod(0o700)

    words = f"{state}/orchestrator.db cannot be used: Permission denied: mend that, and ask again"
    assert (ended[0].returncode, ended[1].returncode) == (ExitCode.DECLINED, 1)
    assert ended[0].stderr == f"staging-fsm: {words}\n"
    assert f"failed   database: {words}\n" in ended[1].stdout


@pytest.mark.parametrize("command", [["queue"], ["queue", "--json"], ["config"]])
def test_answer_that_cannot_be_printed_is_a_sentence(shell: Shell, command: list[str]) -> None:
    """Where nothing can be printed any more that is said, in one line, on the other stream."""
    environment = {**shell.environment(), "PYTHONUNBUFFERED": ""}
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            shell.command(*command),
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert ended.returncode == ExitCode.DECLINED
    assert ended.stderr == (
        "staging-fsm: nothing can be printed: No space left on device: have it go elsewhere, and"
        " ask again\n"
    )


def test_tree_that_a_suite_shuts_has_changed(shell: Shell) -> None:
    """A suite that leaves a tree that nobody may enter is told of by that, as no fault of ours."""
    run = ["run", "--repo", str(shell.repository), "--infra-retries", "0", "--json"]
    ended = subprocess.run(
        [*bound_by_modes(), *shell.command(*run, "--", "chmod", "0", ".")],
        env=shell.environment(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == ExitCode.FAILED_CLOSED, ended.stderr
    assert json.loads(ended.stdout)["reason"] == "tree_changed"


def test_follow_shows_the_output(shell: Shell) -> None:
    """`--follow` copies what the suite prints."""
    ended = shell.call(
        "run", "--repo", str(shell.repository), "--follow", "--", "echo", "adding up"
    )

    assert "adding up" in ended.stdout


def test_follow_waits_for_no_pipe(shell: Shell) -> None:
    """A suite that puts a pipe in the place of its log ends as a tool error, and so does `run`."""
    log = f"{shell.folder}/state/runs/$STAGING_ATTEMPT/output.log"
    ended = shell.call(
        *("run", "--repo", str(shell.repository), "--infra-retries", "0", "--follow", "--"),
        *("sh", "-c", f"rm {log} && mkfifo {log}"),
    )

    assert ended.returncode == ExitCode.FAILED_CLOSED


@pytest.mark.parametrize("how", ["--follow", "--json"])
@pytest.mark.parametrize(("suite", "code"), [("true", 0), ("exit 7", 1)])
def test_closed_pipe_changes_no_verdict(shell: Shell, how: str, suite: str, code: int) -> None:
    """Whoever reads the output may go away: the attempt ends, and the exit code is its own."""
    release = shell.folder / "release"
    waiting = f"echo on; until test -e {release}; do sleep 0.01; done; {suite}"
    with subprocess.Popen(
        shell.command("run", "--repo", str(shell.repository), how, "--", "sh", "-c", waiting),
        env=shell.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        release.touch()
        assert process.wait(timeout=120) == code


@pytest.mark.parametrize("how", ["--follow", "--json"])
@pytest.mark.parametrize("trouble", ["full disk", "no sign for it"])
def test_output_that_cannot_be_printed_changes_no_verdict(
    shell: Shell, how: str, trouble: str
) -> None:
    """Where the output goes may be full, or have no sign for what is said: the verdict stands.

    On a full disk it is said that the result was lost, and where it is to be had.
    """
    environment = shell.environment()
    if trouble == "no sign for it":
        environment["PYTHONIOENCODING"] = "ascii"
    with Path("/dev/full" if trouble == "full disk" else os.devnull).open("w") as output:
        ended = subprocess.run(
            shell.command("run", "--repo", str(shell.repository), how, "--", "echo", "é → ü"),
            env=environment,
            stdout=output,
            stderr=subprocess.PIPE,
            check=False,
            timeout=120,
        )

    assert (ended.returncode, b"Traceback" in ended.stderr) == (ExitCode.ADVANCED, False)
    words = (
        b"staging-fsm: the result cannot be printed: No space left on device: `staging-fsm show 1`"
        b" has it\n"
    )
    assert (words in ended.stderr) == (trouble == "full disk")


@pytest.mark.parametrize("trouble", ["full disk", "closed pipe"])
@pytest.mark.parametrize(
    ("refused", "code"),
    [
        ("dirty tree", ExitCode.DECLINED),
        ("invalid setting", ExitCode.DECLINED),
        ("unknown option", ExitCode.USAGE),
    ],
)
def test_refusal_that_nobody_can_read_is_no_verdict(
    shell: Shell, trouble: str, refused: str, code: int
) -> None:
    """Where a refusal cannot be printed the exit code is the same: 1 would blame the code."""
    if refused == "dirty tree":
        (shell.repository / "test_it.py").write_text("")
    settings = {"INFRA_RETRIES": "many"} if refused == "invalid setting" else {}
    options = ["--bogus"] if refused == "unknown option" else []
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe, Path("/dev/full").open("w") as full:  # noqa: PTH123  # a descriptor
        ended = subprocess.run(
            shell.command("run", *options, "--repo", str(shell.repository), "--", "true"),
            env=shell.environment(**settings),
            stderr=pipe if trouble == "closed pipe" else full,
            check=False,
            timeout=120,
        )

    assert ended.returncode == code


@pytest.mark.parametrize("command", [["queue"], ["show", "1"], ["audit", "1"], ["shadow-report"]])
def test_look_that_nobody_reads_finds_nothing(shell: Shell, command: list[str]) -> None:
    """A command whose reader has gone away exits 4: 1 would say that a suite or a row failed."""
    shell.run("--artifact-dir", "--", "false")
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:  # noqa: PTH123  # a descriptor
        ended = subprocess.run(
            shell.command(*command),
            env=shell.environment(),
            stdout=pipe,
            stderr=subprocess.PIPE,
            check=False,
            timeout=120,
        )

    assert (ended.returncode, ended.stderr) == (ExitCode.DECLINED, b"")


def test_number_of_tests_does_not_drop_unseen(shell: Shell) -> None:
    """With `--min-tests auto` a suite that lost many tests since it last passed is no pass."""
    for tests in (10, 9, 5):
        cases = '<testcase name="a"/>' * tests
        (shell.folder / f"{tests}.xml").write_text(f"<testsuite>{cases}</testsuite>")

    def run(tests: int) -> tuple[int, dict[str, Any]]:
        copy = f"cp {shell.folder}/{tests}.xml $STAGING_REPORT_DIR/junit.xml"
        options = ("--report", "junit.xml", "--min-tests", "auto")
        return shell.run(*options, "--", "sh", "-c", copy)

    first, fewer, (code, view) = run(10)[0], run(9)[0], run(5)

    assert (first, fewer, code) == (ExitCode.ADVANCED, ExitCode.ADVANCED, ExitCode.FAILED_CLOSED)
    assert view["reason"] == "too_few_tests"
    assert (
        "Detail: 5 tests were executed, and at least 9 are required:"
        " the last passed run of the repository executed 9"
    ) in Path(view["artifact"]).read_text()


def test_attempt_with_as_many_tests_as_last_time_is_gone_on_with(shell: Shell) -> None:
    """A second `run --min-tests auto` on its own waiting attempt is the same, after a pass too."""
    report = 'echo "<testsuite><testcase name=\\"a\\"/></testsuite>" > $STAGING_REPORT_DIR/r'
    options = ("--report", "r", "--min-tests", "auto", "--tool-exit-code", "75", "--work-item")
    flag = shell.folder / "staging-is-up"
    script = f"{report}; test -e {flag} || exit 75"
    flag.touch()
    passed, _ = shell.run(*options, "WI-1", "--", "sh", "-c", script)
    flag.unlink()
    job_id = left_waiting(shell, *options, "WI-2", "--", "sh", "-c", script)
    flag.touch()
    make_due(shell, job_id)
    code, view = shell.run(*options, "WI-2", "--", "sh", "-c", script)

    assert (passed, code, view["job_id"]) == (ExitCode.ADVANCED, ExitCode.ADVANCED, job_id)


def test_option_goes_before_the_environment(shell: Shell) -> None:
    """What is said on the command line counts, whatever the environment says of it."""
    code, _ = shell.run("--timeout-seconds", "60", "--", "true", ENABLED="0", TIMEOUT_SECONDS="-1")

    assert code == ExitCode.ADVANCED


def test_artifact_is_named_by_its_whole_path(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of artifacts that was named relatively is found again from any other folder."""
    monkeypatch.chdir(shell.folder)
    code, view = shell.run("--artifact-dir", "out", "--work-item", "WI-1", "--", "true")

    assert code == ExitCode.ADVANCED
    assert Path(view["artifact"]) == shell.folder / "out" / "WI-1" / "15-staging-log.md"


def test_repository_with_a_filter_is_not_dirty(shell: Shell) -> None:
    """Files that a filter of the repository's own keeps in another form are no changes."""
    git(shell.repository, "config", "filter.capitals.clean", "tr a-z A-Z")
    git(shell.repository, "config", "filter.capitals.smudge", "tr A-Z a-z")
    (shell.repository / ".gitattributes").write_text("*.txt filter=capitals\n")
    (shell.repository / "words.txt").write_text("some words\n")
    git(shell.repository, "add", ".")
    git(shell.repository, "commit", "--quiet", "--message", "A filter.")

    assert shell.run("--", "true")[0] == ExitCode.ADVANCED


def test_no_secret_is_shown(shell: Shell) -> None:
    """A secret that the suite prints stands neither on the console nor in the artifact."""
    suite = ("--env", "STAGE_URL", "--env", "MISSING", "--", "sh", "-c")
    command = shell.command(
        "run", "--repo", str(shell.repository), "--follow", "--work-item", "WI-1", *suite
    )
    (shell.folder / "leak").write_text("t0psecret")
    given = {"STAGE_URL": "https://stage.example/x", "DEPLOY_TOKEN": "t0psecret"}
    ended = subprocess.run(
        [*command, f"echo said $STAGE_URL $(cat {shell.folder}/leak)"],
        env={**shell.environment(), **given},
        capture_output=True,
        text=True,
        check=True,
    )
    artifact = shell.repository / "docs" / "work-items" / "WI-1" / "15-staging-log.md"

    assert "said *** ***" in ended.stdout
    assert "    said *** ***" in artifact.read_text()
    assert "t0psecret" not in ended.stdout + ended.stderr + artifact.read_text()


def test_secret_that_is_half_printed_is_not_shown(shell: Shell) -> None:
    """Of a secret that a suite prints in two halves `--follow` shows neither."""
    halves = [shell.folder / name for name in ("begun", "ended")]
    for half, words in zip(halves, ("said t0ps", "ecret."), strict=True):
        half.write_text(words)
    release = shell.folder / "release"
    suite = f"cat {halves[0]}; until test -e {release}; do sleep 0.01; done; cat {halves[1]}"
    with subprocess.Popen(
        shell.command(
            *("run", "--repo", str(shell.repository), "--follow"),
            *("--timeout-seconds", "600", "--", "sh", "-c", suite),
        ),
        env={**shell.environment(), "DEPLOY_TOKEN": "t0psecret"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        shown = ""
        while not shown.endswith("said ") and (letter := process.stdout.read(1)):
            shown += letter
        release.touch()
        shown += process.stdout.read()

    assert process.returncode == ExitCode.ADVANCED
    assert "said ***." in shown
    assert "t0ps" not in shown


@pytest.mark.parametrize("lives", [True, None, False], ids=["alive", "elsewhere", "dead"])
def test_run_ends_no_job_that_an_agent_of_another_has(shell: Shell, *, lives: bool | None) -> None:
    """`run` leaves a declined job to the agent of the worker that has it, unless that is dead."""
    ours = this_process()
    scope = ours.scope if lives is not None else "elsewhere:boot:namespace"
    claimant = str(ProcessIdentity(scope, ours.pid, ours.start + (lives is False)))
    session = open_session(None, shell.environment(ENABLED="1", REPOS="*"))
    job_id = staging_job(session, session.store.register(shell.repository), "WI-1")
    session.store.claim_next(session.clock.now(), claimant, job_id)
    assert not session.staging().launch(job_id)
    before = session.rows.load(job_id), session.store.job(job_id)
    options = ("--repo", str(shell.repository), "--work-item", "WI-1")
    ended = shell.call("run", *options, "--", "true")
    after = session.rows.load(job_id), session.store.job(job_id)

    assert ended.returncode == ExitCode.DECLINED
    assert before[0].status == "running"
    if lives is False:
        assert after[0].status == "cancelled"
    else:
        assert after == before
        assert f"job {job_id} was declined" in ended.stderr
        assert f"worker {claimant}, which has it: nothing was changed" in ended.stderr


def test_run_waits_for_no_worker_that_cannot_be_known(shell: Shell) -> None:
    """A job that is in the hands of another machine's worker is refused, and it says whose."""
    session = open_session(None, shell.environment(ENABLED="1", REPOS="*"))
    job_id = staging_job(session, session.store.register(shell.repository), "WI-1")
    session.store.claim_next(session.clock.now(), "elsewhere:boot:namespace/1/1", job_id)
    before = session.store.job(job_id)
    ended = shell.call("run", "--repo", str(shell.repository), "--work-item", "WI-1", "--", "true")

    assert ended.returncode == ExitCode.DECLINED
    assert f"job {job_id} is in the hands of worker elsewhere:boot:namespace/1/1" in ended.stderr
    assert session.store.job(job_id) == before


@pytest.mark.parametrize("as_json", [False, True], ids=["for people", "for programs"])
def test_run_says_whom_it_waits_for(shell: Shell, *, as_json: bool) -> None:
    """Who waits for a job that a living worker has is told so, and goes on when it is free.

    A program that reads the result has nothing but that on standard output.
    """
    session = open_session(None, shell.environment(ENABLED="1", REPOS="*"))
    job_id = staging_job(session, session.store.register(shell.repository), "WI-1")
    session.store.claim_next(session.clock.now(), session.worker, job_id)
    options = ("--repo", str(shell.repository), "--work-item", "WI-1", *["--json"] * as_json)
    with subprocess.Popen(
        shell.command("run", *options, "--", "true"),
        env=shell.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        streams = process.stdout, process.stderr
        # It goes on waiting until somebody has read that, on whichever of them it stands.
        [told], _, _ = select.select(streams, [], [])
        said = told.readline()
        session.store.requeue_abandoned(session.store.job(job_id), session.clock.now())
        printed, rest = process.stdout.read(), process.stderr.read()

    assert told is streams[as_json]
    assert said == f"WI-1 waits: worker {session.worker} has job {job_id}\n"
    assert "WI-1 waits" not in printed + rest
    assert process.returncode == ExitCode.ADVANCED
    assert not as_json or json.loads(printed)["state"] == State.ADVANCED


@pytest.mark.parametrize(
    "arguments",
    [
        *(["queue"], ["recover"], ["show", "1"], ["cancel", "1"], ["diagram", "--counts"]),
        ["serve", "--port", "0"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_mistyped_database_is_made_by_nobody_who_only_looks(
    shell: Shell, tmp_path: Path, arguments: list[str]
) -> None:
    """Where a database that was named is not there, or another's, that is said, and none made."""
    missing, others = tmp_path / "typo.db", tmp_path / "others.db"
    with sqlite3.connect(others) as database:
        database.execute("CREATE TABLE birds (name TEXT)")
    absent = shell.call(*arguments, "--db", f"sqlite:///{missing}")
    foreign = shell.call(*arguments, "--db", f"sqlite:///{others}")

    assert absent.returncode == foreign.returncode == ExitCode.DECLINED
    assert f"there is no database at {missing}" in absent.stderr
    assert f"the database {others} has no table 'jobs'" in foreign.stderr
    assert not missing.exists()
    with sqlite3.connect(others) as database:
        assert database.execute("SELECT name FROM sqlite_schema").fetchall() == [("birds",)]


def test_nothing_is_moved_from_a_mistyped_database(shell: Shell, tmp_path: Path) -> None:
    """A move from where nothing is says so, and makes neither of the two databases."""
    old, new = tmp_path / "typo.db", tmp_path / "new.db"
    moved = shell.call("move", "--from", f"sqlite:///{old}", "--to", f"sqlite:///{new}")

    assert moved.returncode == ExitCode.DECLINED
    assert f"there is no database at {old}" in moved.stderr
    assert not old.exists()
    assert not new.exists()


@pytest.mark.parametrize("in_use", [False, True], ids=["at rest", "in use"])
def test_database_that_cannot_be_written_is_read(
    shell: Shell, tmp_path: Path, *, in_use: bool
) -> None:
    """Who may not write a database, nor anything beside it, sees what was last written to it."""
    assert shell.run("--work-item", "WI-1", "--", "true")[0] == ExitCode.ADVANCED
    archive = tmp_path / "archive"
    archive.mkdir()
    copy = archive / "copy.db"
    shutil.copy(shell.folder / "state" / "orchestrator.db", copy)
    # While a worker is at it, what the file says is no longer so: the last word is beside it.
    for status in ("queued", "done"):
        worker = sqlite3.connect(copy)
        worker.execute("UPDATE jobs SET status = ? WHERE id = 1", (status,))
        worker.commit()
        if status == "queued" or not in_use:
            worker.close()
    for path in (*archive.iterdir(), archive):
        path.chmod(0o555 if path == archive else 0o444)
    told = {}
    for command in (["audit", "--verify"], ["queue"], ["show", "1"], ["diagram", "--counts"]):
        asked = [*bound_by_modes(), *shell.command(*command, "--db", f"sqlite:///{copy}")]
        ended = subprocess.run(
            asked, env=shell.environment(), capture_output=True, text=True, check=False
        )
        told[command[0]] = (ended.returncode, ended.stdout, ended.stderr)
    archive.chmod(0o755)
    worker.close()

    assert {code for code, _, _ in told.values()} == {0}, told
    assert "1 attempts in 1 rows: 0 deviations" in told["audit"][1]
    assert told["queue"][1] == "no unfinished attempt\n"
    assert "ADVANCED" in told["show"][1]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("ALTER TABLE jobs DROP COLUMN claimed_by", "table 'jobs' has no column 'claimed_by'"),
        ("DROP TABLE repositories", "there is no table 'repositories'"),
    ],
    ids=["a column", "a table"],
)
@pytest.mark.parametrize("command", ["worker", "run", "move"])
def test_database_of_another_version_is_refused_in_a_sentence(
    shell: Shell, tmp_path: Path, command: str, change: str, problem: str
) -> None:
    """Where a table or a column is missing nobody begins to work, and it is said what is."""
    older = tmp_path / "older.db"
    url = f"sqlite:///{older}"
    open_session(url, shell.environment()).store.engine.dispose()
    with sqlite3.connect(older) as database:
        database.execute(change)
    arguments = {
        "worker": ["--db", url],
        "run": ["--db", url, "--repo", str(shell.repository), "--", "true"],
        "move": ["--from", url, "--to", f"{url}.new"],
    }
    ended = shell.call(command, *arguments[command])

    assert ended.returncode == ExitCode.DECLINED
    assert ended.stderr.startswith(f"staging-fsm: the database {older} is of another version")
    assert problem in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_database_in_memory_is_refused(shell: Shell, url: str) -> None:
    """A database that ends with its process keeps no job, and is told of before any work."""
    ended = shell.call("worker", "--once", "--db", url)

    assert ended.returncode == ExitCode.DECLINED
    assert "is a database in memory" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_machine_without_a_job_yet_has_an_empty_queue(shell: Shell) -> None:
    """The database of the state folder may be a new one: nobody has named it."""
    asked, recovered = shell.call("queue"), shell.call("recover")

    assert (asked.returncode, asked.stdout) == (0, "no unfinished attempt\n")
    assert (recovered.returncode, recovered.stdout) == (0, "nothing to recover\n")


def test_queue_says_that_shadow_mode_is_on(shell: Shell) -> None:
    """Whoever looks at the queue in shadow mode is told that the runner is not the producer."""
    asked = shell.call("queue", ENABLED="1", SHADOW="1")

    assert asked.stdout == (
        "shadow mode: the LLM agent is the producer, the runner only records\n"
        "no unfinished attempt\n"
    )


def test_doctor_names_what_is_missing(shell: Shell) -> None:
    """`doctor` exits 1 and says in words what is wrong with the configuration."""
    ended = shell.call("doctor", ENABLED="1", REPOS="shop", TIMEOUT_SECONDS="soon")

    assert ended.returncode == 1
    assert "TIMEOUT_SECONDS: 'soon' is not a number" in ended.stdout


@pytest.mark.parametrize(
    ("database", "health", "words"),
    [
        ("absent", "warning", "there is no database at PATH: look whether its address is right"),
        ("empty", "warning", "the database PATH is empty: look whether its address is right"),
        ("another's", "failed", "the database PATH has no table 'jobs': it is another one"),
        ("older", "failed", "the database PATH is of another version, or another's"),
        (
            "unwritable",
            "failed",
            "the database PATH cannot be reached: attempt to write a readonly",
        ),
        ("ours", "ok", "sqlite:///PATH"),
    ],
)
def test_doctor_changes_no_database(
    shell: Shell, tmp_path: Path, database: str, health: str, words: str
) -> None:
    """`doctor` says whether work could begin in the database that is named, and writes nothing."""
    folder = tmp_path / "named"
    folder.mkdir()
    path = folder / "tasks.db"
    if database in ("older", "unwritable", "ours"):
        open_session(f"sqlite:///{path}", shell.environment()).store.engine.dispose()
    with contextlib.closing(sqlite3.connect(path)) as file, file:
        if database == "another's":
            file.execute("CREATE TABLE tasks (name TEXT)")
        if database == "older":
            file.execute("ALTER TABLE jobs DROP COLUMN claimed_by")
    if database == "absent":
        path.unlink()
    before = path.exists() and path.read_bytes()
    path.parent.chmod(0o555 if database == "unwritable" else 0o755)
    ended = subprocess.run(
        [*bound_by_modes(), *shell.command("doctor", "--db", f"sqlite:///{path}")],
        env=shell.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    path.parent.chmod(0o755)

    assert f"{health:8} database: {words.replace('PATH', str(path))}" in ended.stdout
    assert ended.returncode == (1 if health == "failed" else 0)
    assert (path.exists() and path.read_bytes()) == before
    assert [*folder.iterdir()] == ([] if database == "absent" else [path])


def test_doctor_on_a_new_machine_makes_no_database(shell: Shell) -> None:
    """The database of the state folder need not be there yet: the first run makes it."""
    ended = shell.call("doctor")

    assert (
        "ok       database: none yet: the first run makes it, in the state folder" in ended.stdout
    )
    assert ended.returncode == 0
    assert not (shell.folder / "state" / "orchestrator.db").exists()


@pytest.mark.parametrize("end", ["\r", " ", ""])
def test_address_of_a_database_ends_at_its_last_sign(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Blanks around the address count for nothing, as a carriage return that an .env file has."""
    monkeypatch.setenv("ORCH_DB_URL", f"sqlite:///{shell.folder}/jobs.db{end}")
    open_session(None, shell.environment()).store.engine.dispose()

    assert shell.call("queue").returncode == 0
    assert [path.name for path in shell.folder.glob("jobs*")] == ["jobs.db"]


def test_address_of_blanks_is_none(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing but blanks for an address the database is the state folder's."""
    monkeypatch.setenv("ORCH_DB_URL", "\r")

    assert shell.call("doctor").returncode == 0


def test_doctor_hides_secrets_of_the_address(shell: Shell) -> None:
    """`doctor` shows which database it found, and no password, wherever in its address one is."""
    url = f"sqlite:///file:{shell.folder}/jobs.db?uri=true&password=hunter2&mode=rwc"
    absent = shell.call("doctor", "--db", url)
    open_session(url, shell.environment()).store.engine.dispose()
    ended = shell.call("doctor", "--db", url)

    assert f"there is no database at {shell.folder}/jobs.db:" in absent.stdout
    assert f"{shell.folder}/jobs.db?" in ended.stdout
    assert "password=***" in ended.stdout
    assert "mode=rwc" in ended.stdout
    assert "hunter2" not in absent.stdout + absent.stderr + ended.stdout + ended.stderr


def test_config_hides_secrets(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """`config` shows every setting by its whole name, and no value that may hold a password."""
    monkeypatch.setenv("COLUMNS", "40")
    secrets = [setting for setting in every_setting() if setting.is_secret]
    for setting in secrets:
        monkeypatch.setenv(setting.name, "json://user:hunter2@localhost")
    ended = shell.call("config", REPOS="shop,[/red]")

    assert ended.returncode == 0
    assert ended.stdout.count("<set>") == len(secrets)
    assert "hunter2" not in ended.stdout
    assert "shop,[/red]" in ended.stdout
    assert [it.name for it in every_setting() if it.name not in ended.stdout] == []


@pytest.mark.parametrize("home", ["~bob/state", "~"])
@pytest.mark.parametrize(
    "arguments", [["queue"], ["doctor"], ["worker", "--once"], ["run", "--repo", ".", "true"]]
)
def test_state_folder_in_no_known_home_is_made_nowhere(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], home: str
) -> None:
    """A state folder in a home that is not known is told of, and not made in the current folder."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", "")
    ended = shell.call(*arguments, STATE_DIR=home)

    assert ended.returncode == (1 if arguments == ["doctor"] else ExitCode.DECLINED)
    words = f"ORCH_STAGING_RUNNER_STATE_DIR: {home!r} is in no known home folder"
    assert words in ended.stdout + ended.stderr
    assert [*here.iterdir()] == []


@pytest.mark.parametrize("command", ["queue", "config", "doctor"])
@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("ORCH_DEVELOPER_RETRIES", "many", "'many' is not a number from 0 to 1000"),
        ("ORCH_MONITOR_PROBES", "-3", "'-3' is not from 1 to 1000"),
        ("ORCH_AGENT_COMMAND", "ask 'me", "its value is no command line: no closing quotation"),
    ],
)
def test_setting_that_cannot_be_used_is_a_sentence(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, command: str, name: str, value: str, problem: str
) -> None:
    """Whatever setting cannot be used is told of by its name, whichever command comes upon it."""
    monkeypatch.setenv(name, value)
    ended = shell.call(command)

    assert ended.returncode == (1 if command == "doctor" else ExitCode.DECLINED)
    assert f"{name}: {problem}" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "url", ["nonsense", "oracle://me:hunter2@host/db", "postgresql://me@host:hunter2/db"]
)
def test_address_of_no_database_is_a_sentence(shell: Shell, url: str) -> None:
    """What is no address of a database is refused, and not shown: it may hold a password."""
    ended = shell.call("queue", "--db", url)

    assert ended.returncode == ExitCode.DECLINED
    assert ended.stderr.startswith("staging-fsm: invalid configuration: ORCH_DB_URL, or")
    assert "hunter2" not in ended.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("audit", "--html", "PATH"),
        ("attest", "--generate-key", "PATH"),
        ("diagram", "--output", "PATH"),
    ],
)
def test_output_that_cannot_be_written_is_a_sentence(
    shell: Shell, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """A file that was asked for where none can be is told of by the name that was said."""
    shell.call("queue")
    (tmp_path / "letter").touch()
    path = str(tmp_path / "letter" / "output")
    ended = shell.call(*(path if word == "PATH" else word for word in command))

    assert ended.returncode == ExitCode.DECLINED
    assert ended.stderr == f"staging-fsm: {path} cannot be written: Not a directory\n"


@pytest.mark.parametrize("place", ["letter", "letter/state"])
@pytest.mark.parametrize("command", [["queue"], ["show", "1"], ["run"], ["doctor"]])
def test_state_folder_that_cannot_be_is_a_sentence(
    shell: Shell, tmp_path: Path, command: list[str], place: str
) -> None:
    """A state folder that is a file, or below one, is told of with the setting that names it."""
    (tmp_path / "letter").touch()
    options = ["--repo", str(shell.repository), "--", "true"] if command == ["run"] else []
    ended = shell.call(*command, *options, STATE_DIR=str(tmp_path / place))

    assert ended.returncode == (1 if command == ["doctor"] else ExitCode.DECLINED)
    said = f"the state folder {tmp_path / place} cannot be made: "
    assert said in ended.stdout + ended.stderr
    assert "Set ORCH_STAGING_RUNNER_STATE_DIR to a folder" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(("command", "code"), [("queue", ExitCode.DECLINED), ("doctor", 1)])
def test_user_without_a_home_is_told_what_to_set(
    monkeypatch: pytest.MonkeyPatch, command: str, code: int
) -> None:
    """Where nobody knows a home folder the state folder has to be named, and that is said."""

    def nobody(_user: int) -> NoReturn:
        raise KeyError

    for name in ("HOME", "XDG_STATE_HOME", "ORCH_STAGING_RUNNER_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    ended = CliRunner().invoke(main, [command])

    assert ended.exit_code == code
    assert "no home folder is known: set ORCH_STAGING_RUNNER_STATE_DIR, or HOME" in ended.output
    assert "Traceback" not in ended.output


def test_repository_that_no_row_can_name_is_wrong_usage(shell: Shell, tmp_path: Path) -> None:
    """A path that is not in UTF-8 is refused in words: it could be kept in no database."""
    repository = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(repository)  # noqa: PTH102  # a path of bytes
    ended = shell.call("run", "--repo", os.fsdecode(repository), "--", "true")

    assert ended.returncode == ExitCode.USAGE
    assert "its path is not in UTF-8, and could be kept in no row" in ended.stderr


@pytest.mark.parametrize("command", [["run", "--repo", ".", "--", "true"], ["diagram"]])
def test_folder_that_was_removed_is_a_sentence(
    shell: Shell, tmp_path: Path, command: list[str]
) -> None:
    """Who stands in a folder that is no more is told so, not shown a traceback."""
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    script = 'rmdir "$PWD" && exec "$@"'
    ended = subprocess.run(
        ["sh", "-c", script, "sh", *shell.command(*command)],
        cwd=nowhere,
        env=shell.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert ended.returncode == ExitCode.DECLINED
    assert "Traceback" not in ended.stderr
    assert ended.stderr.startswith("staging-fsm: ")


def test_file_that_is_no_database_is_a_sentence(shell: Shell, tmp_path: Path) -> None:
    """A file that is none of SQLite's is refused in a sentence."""
    (tmp_path / "letter").write_text("Dear Sir, this is no database. " * 100)
    ended = shell.call("queue", "--db", f"sqlite:///{tmp_path}/letter")

    assert ended.returncode == ExitCode.DECLINED
    words = f"the database {tmp_path}/letter cannot be reached: file is not a database"
    assert ended.stderr == f"staging-fsm: {words}\n"


def test_worker_runs_the_finalizer_after_a_pass(shell: Shell) -> None:
    """`worker --once` goes on where `run` ended: the deployed revision is tagged."""
    _, view = shell.run("--work-item", "WI-7", "--", "true")
    ended = shell.call("worker", "--once")

    assert ended.returncode == 0, ended.stderr
    assert git(shell.repository, "rev-parse", "deployed/WI-7") == view["revision"]


def test_worker_says_what_it_could_not_launch(shell: Shell) -> None:
    """`worker --once` is no success where an agent cannot be started; the next one tries again."""
    shell.run("--work-item", "WI-7", "--", "false")
    for _ in range(2):
        ended = shell.call("worker", "--once")

        assert ended.returncode == ExitCode.DECLINED
        assert ended.stdout == "0 jobs launched\n"
        assert "no agent command is configured: set ORCH_AGENT_COMMAND" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert "1 more could not be launched: the next worker tries them again" in ended.stderr


def test_demo_goes_three_ways(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo ends its three ways, each with its artifact, and what it says to type works.

    Also where temporary folders are below one of an odd name.
    """
    temporary = tmp_path / "100%2F 'b'?"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    ended = shell.call("demo")

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert [story.end for story in STORIES] == [
        State.ADVANCED,
        State.ROLLED_BACK,
        State.FAILED_CLOSED,
    ]
    listed = ended.stdout.partition("What the gate read:")[2].splitlines()[1:4]
    assert [line.split()[0] for line in listed] == [str(story.end) for story in STORIES]
    assert all(Path(line.split(maxsplit=1)[1]).is_file() for line in listed)
    advice = ended.stdout.rpartition("Look again: ")[2]
    looked = subprocess.run(advice, shell=True, capture_output=True, text=True, check=True)  # noqa: S602  # as a person types it
    assert STORIES[0].end in looked.stdout


def test_demo_leaves_the_repository_of_its_caller_alone(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a hook or an alias of git the demo commits into its own repository, and in no other."""
    place = {
        "GIT_DIR": str(shell.repository / ".git"),
        "GIT_WORK_TREE": str(shell.repository),
        "GIT_INDEX_FILE": str(shell.repository / ".git" / "index"),
    }
    before = [git(shell.repository, *ask) for ask in (["log", "--all"], ["status", "--porcelain"])]
    with monkeypatch.context() as patch:
        for name, value in place.items():
            patch.setenv(name, value)
        ended = shell.call("demo")
    after = [git(shell.repository, *ask) for ask in (["log", "--all"], ["status", "--porcelain"])]

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert after == before
    shop = Path(ended.stdout.partition("Database: ")[2].splitlines()[0]).with_name("shop")
    subjects = git(shop, "log", "--reverse", "--format=%s").splitlines()
    assert subjects == [f"{story.work_item}: {story.words}" for story in STORIES]


def test_demo_heeds_no_setting_of_a_person(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's failure alerts none of one's people, and no setting of one's own holds it up."""
    monkeypatch.setenv("ORCH_MONITOR_PROBES", "none")
    with webhooks() as make:
        webhook = make()
        ended = shell.call("demo", ALERT_URLS=webhook.url, TIMEOUT="a misspelt setting")

    assert (ended.returncode, webhook.messages) == (0, []), ended.stdout + ended.stderr
    folder = Path(ended.stdout.partition("Database: ")[2].splitlines()[0]).parent
    told = (folder / "state" / "alerts.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in told] == [AlertKind.FAILED_CLOSED]


def test_demo_does_not_heed_how_a_person_has_git_set_up(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signatures, hooks, templates, ignored files and line ends of one's own hold no demo up."""
    template, ignored, home = (tmp_path / name for name in ("template", "ignored", "home"))
    hooks = template / "hooks"
    for folder in (home, hooks, template / "info"):
        folder.mkdir(parents=True)
    for hook in ("pre-commit", "commit-msg"):
        (hooks / hook).write_text("#!/bin/sh\nexit 1\n")
        (hooks / hook).chmod(0o755)
    for path in (ignored, template / "info" / "exclude"):
        path.write_text("*.py\n")
    (home / ".gitconfig").write_text(
        "[commit]\ngpgSign = true\n[gpg]\nprogram = false\n"
        f"[init]\ntemplateDir = {template}\n"
        f"[core]\nhooksPath = {hooks}\nexcludesFile = {ignored}\n"
        "autocrlf = true\neol = crlf\nsafecrlf = true\n"
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("GIT_CONFIG_GLOBAL", raising=False)
    ended = shell.call("demo")

    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_every_command_is_listed_once() -> None:
    """The commands that `--help` lists are the modules of `commands`, and each of them loads."""
    modules = {module.name.replace("_", "-") for module in pkgutil.iter_modules(commands.__path__)}
    context = click.Context(main)

    assert modules == COMMANDS.keys()
    assert [main.get_command(context, name).name for name in COMMANDS] == list(COMMANDS)  # type: ignore[union-attr]  # each is there


def test_help_loads_no_command() -> None:
    """`staging-fsm --help` is answered without the database library or the console's."""
    code = (
        "import sys; from staging_fsm.faces.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print({'sqlalchemy', 'rich', 'transitions'} & {*sys.modules}, file=sys.stderr)"
    )
    ended = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True)

    assert ended.stderr.strip() == "set()"


def test_people_can_read_it_in_80_columns(shell: Shell) -> None:
    """`show` and `queue` cut no state, no time and no name, and hostile text is shown as text."""
    _, view = shell.run("--work-item", "WI-1", "--", "sh", "-c", "exit 7")
    job = str(view["job_id"])
    with sqlite3.connect(shell.folder / "state" / "orchestrator.db") as database:
        database.execute("PRAGMA foreign_keys = OFF")
        database.execute("UPDATE jobs SET work_item = '[/red] \x1b[2Jgone', status = 'running'")
    environment = {**shell.environment(), "COLUMNS": "80"}
    texts = [
        subprocess.run(
            shell.command(*command), env=environment, capture_output=True, text=True, check=True
        ).stdout
        for command in (("show", job), ("queue",))
    ]

    for text in texts:
        assert "[/red] gone" in text
        assert "ROLLED_BACK" in text
        assert "\x1b" not in text
    for move in view["history"]:
        assert f"{move['time'][:19]}Z" in texts[0]
        assert str(move["id"]) in texts[0]

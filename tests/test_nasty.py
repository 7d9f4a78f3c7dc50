"""Nasty suites, each through the whole of `run --json`: the right reason, nobody left, no forgery.

One row is one program. What it does to supervision alone is in `test_supervision`;
here it is what a shell sees of it: state, reason, artifact, and who is still alive.
"""

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner

from hosts import git
from staging_fsm.core.outcome import Reason
from staging_fsm.core.spec import State
from staging_fsm.effects.processes import kill_marked
from staging_fsm.faces.cli import main
from staging_fsm.host.contract.gate import check_staging_status

MARK = "STAGING_NASTY_MARK"
PYTHON = (sys.executable, "-S", "-E", "-c")
PASS, FAIL, CLOSED = State.ADVANCED, State.ROLLED_BACK, State.FAILED_CLOSED
#: The control folder of the run, where a suite has nothing to look for.
CONTROL = "$(dirname $(dirname $STAGING_REPORT_DIR))/runs/$STAGING_ATTEMPT"
#: Where the artifact goes, from the worktree below the state folder.
ARTIFACT = "$REPO/docs/work-items/$ITEM/15-staging-log.md"
SUCCESS = "printf -- '---\\nstaging_status: SUCCESS\\n---\\n'"
CASE = '<testcase name="a"/>'


def sh(script: str) -> tuple[str, ...]:
    """Return the command of a shell script."""
    return ("/bin/sh", "-c", script)


def py(code: str) -> tuple[str, ...]:
    """Return the command of a Python program."""
    return (*PYTHON, f"import os, signal, sys\n{code}")


def report(text: str, then: str = "exit 0") -> tuple[str, ...]:
    """Return the command of a suite that leaves a report and then does something."""
    return sh(f"echo {shlex.quote(text)} > $STAGING_REPORT_DIR/r.xml; {then}")


@attrs.frozen
class Nasty:
    """What a suite does, what it is asked, and what must come of it."""

    command: tuple[str, ...]
    state: State
    reason: Reason
    options: tuple[str, ...] = ()


JUNIT = ("--report", "r.xml")
IN_PLACE = ("--workspace", "in-place")
SOON = ("--timeout-seconds", "0.3")
R = Reason
NASTY: dict[str, Nasty] = {
    # How it ends.
    "passes": Nasty(sh("exit 0"), PASS, R.PASSED),
    "fails": Nasty(sh("exit 1"), FAIL, R.EXIT_CODE),
    "fails with 255": Nasty(sh("exit 255"), FAIL, R.EXIT_CODE),
    "exit code of a shell that found nothing": Nasty(sh("exit 127"), CLOSED, R.TOOL_EXIT_CODE),
    "exit code of a shell that may not": Nasty(sh("exit 126"), CLOSED, R.TOOL_EXIT_CODE),
    "claims to be killed": Nasty(sh("exit 137"), CLOSED, R.KILLED_BY_SIGNAL),
    "claims to have crashed": Nasty(sh("exit 139"), FAIL, R.CRASHED),
    "kills itself": Nasty(sh("kill -9 $$"), CLOSED, R.KILLED_BY_SIGNAL),
    "terminates its group": Nasty(sh("kill -TERM 0"), CLOSED, R.KILLED_BY_SIGNAL),
    "hangs itself up": Nasty(sh("kill -HUP $$"), CLOSED, R.KILLED_BY_SIGNAL),
    "crashes": Nasty(sh("kill -SEGV $$"), FAIL, R.CRASHED),
    "aborts": Nasty(py("os.abort()"), FAIL, R.CRASHED),
    "exit code that wraps to 0, with a report asked": Nasty(
        py("sys.exit(256)"), CLOSED, R.REPORT_MISSING, JUNIT
    ),
    # How it does not begin.
    "is not there": Nasty(("no-such-suite",), CLOSED, R.COMMAND_NOT_FOUND),
    "is a folder": Nasty(("/",), CLOSED, R.COMMAND_NOT_EXECUTABLE),
    "is no program": Nasty(("./shop.py",), CLOSED, R.COMMAND_NOT_EXECUTABLE),
    "has no interpreter": Nasty(("./lost",), CLOSED, R.BAD_INTERPRETER),
    "has too long a word": Nasty(("true", "x" * 200_000), CLOSED, R.BAD_ARGUMENTS),
    # How it does not end.
    "hangs": Nasty(("sleep", "600"), CLOSED, R.DEADLINE_EXCEEDED, SOON),
    "hangs without output": Nasty(
        sh("exec >&- 2>&-; sleep 600"), CLOSED, R.DEADLINE_EXCEEDED, SOON
    ),
    "says it passed when it is stopped": Nasty(
        sh("trap 'exit 0' TERM; while :; do sleep 0.02; done"), CLOSED, R.DEADLINE_EXCEEDED, SOON
    ),
    "does not listen": Nasty(
        sh("trap '' TERM INT HUP; while :; do sleep 0.02; done"), CLOSED, R.DEADLINE_EXCEEDED, SOON
    ),
    "stops itself": Nasty(sh("kill -STOP $$"), CLOSED, R.DEADLINE_EXCEEDED, SOON),
    "stops its group": Nasty(sh("sleep 600 & kill -STOP 0"), CLOSED, R.DEADLINE_EXCEEDED, SOON),
    "prints without end": Nasty(("yes",), CLOSED, R.DEADLINE_EXCEEDED, SOON),
    "is silent": Nasty(("sleep", "600"), CLOSED, R.IDLE_TIMEOUT, ("--idle-timeout-seconds", "0.2")),
    "waits for input": Nasty(sh("read answer || exit 4"), FAIL, R.EXIT_CODE),
    "asks the terminal": Nasty(sh("read answer < /dev/tty || exit 4"), FAIL, R.EXIT_CODE),
    # Whom it leaves behind.
    "leaves a child": Nasty(sh("sleep 600 & exit 0"), PASS, R.PASSED),
    "leaves a child and fails": Nasty(sh("sleep 600 & exit 1"), FAIL, R.EXIT_CODE),
    "leaves one in another session": Nasty(sh("setsid -f sleep 600"), PASS, R.PASSED),
    "leaves one that ignores hangups": Nasty(sh("nohup sleep 600 & exit 0"), PASS, R.PASSED),
    "leaves one that is stopped": Nasty(
        py("if os.fork() == 0: os.setsid(); os.kill(os.getpid(), 19)"), PASS, R.PASSED
    ),
    "leaves one that holds its output": Nasty(
        sh("(trap '' TERM HUP; setsid sleep 600) & exit 1"), FAIL, R.EXIT_CODE
    ),
    "leaves one while it hangs": Nasty(
        sh("setsid -f sleep 600; sleep 600"), CLOSED, R.DEADLINE_EXCEEDED, SOON
    ),
    "leaves a generation of them": Nasty(
        py(
            "for _ in range(6):\n    os.fork() or os.setsid()\nif os.getppid() != 1: signal.pause()"
        ),
        CLOSED,
        R.DEADLINE_EXCEEDED,
        SOON,
    ),
    "has too many children": Nasty(
        sh("for i in $(seq 50); do sleep 600 & done; wait"),
        CLOSED,
        R.PROCESS_LIMIT,
        ("--processes-max", "20"),
    ),
    "eats memory": Nasty(
        py("hoard = []\nwhile True: hoard.append(b'x' * (1 << 20))"),
        CLOSED,
        R.MEMORY_LIMIT,
        ("--memory-max-bytes", "80000000"),
    ),
    "writes too large a file": Nasty(
        sh("exec head -c 3000000 /dev/zero > big"),
        CLOSED,
        R.FILE_SIZE_LIMIT,
        ("--file-max-bytes", "1000000"),
    ),
    # What it prints.
    "prints a verdict": Nasty(sh(f"{SUCCESS}; exit 1"), FAIL, R.EXIT_CODE),
    "prints what nobody can read": Nasty(
        sh(r"printf '\000\377\376\033[2J\033]0;x\007\r\n'; exit 1"), FAIL, R.EXIT_CODE
    ),
    "prints one endless line": Nasty(
        sh("head -c 30000000 /dev/zero | tr '\\0' x; exit 1"), FAIL, R.EXIT_CODE
    ),
    # What it writes where it should not.
    "writes the artifact": Nasty(
        sh(f"mkdir -p $(dirname {ARTIFACT}); {SUCCESS} > {ARTIFACT}; exit 1"), FAIL, R.EXIT_CODE
    ),
    "goes on writing the artifact": Nasty(
        sh(
            f"mkdir -p $(dirname {ARTIFACT});"
            f"(while :; do {SUCCESS} > {ARTIFACT}; sleep 0.01; done) & exit 1"
        ),
        FAIL,
        R.EXIT_CODE,
    ),
    "makes the artifact a pipe": Nasty(
        sh(f"mkdir -p $(dirname {ARTIFACT}); mkfifo {ARTIFACT}; exit 1"), FAIL, R.EXIT_CODE
    ),
    "makes the artifact a folder": Nasty(sh(f"mkdir -p {ARTIFACT}; exit 1"), FAIL, R.EXIT_CODE),
    "makes the artifact a link": Nasty(
        sh(
            f"mkdir -p $(dirname {ARTIFACT}); {SUCCESS} > $REPO/docs/forged;"
            f"ln -s $REPO/docs/forged {ARTIFACT}; exit 1"
        ),
        FAIL,
        R.EXIT_CODE,
    ),
    "writes its result": Nasty(
        sh(f"printf 'exit_code=0\\n' > {CONTROL}/result"), CLOSED, R.RESULT_UNTRUSTED
    ),
    "replaces its log": Nasty(
        sh(f"rm {CONTROL}/output.log; ln -s /dev/zero {CONTROL}/output.log"),
        CLOSED,
        R.LOG_INCOMPLETE,
    ),
    "kills its supervisor": Nasty(sh("kill -9 $PPID; sleep 600"), CLOSED, R.SUPERVISOR_LOST),
    "stops its supervisor": Nasty(
        sh("kill -STOP $PPID; sleep 600"), CLOSED, R.DEADLINE_EXCEEDED, SOON
    ),
    "terminates its supervisor": Nasty(sh("kill -TERM $PPID; sleep 600"), CLOSED, R.STOPPED),
    "says that its tree is unchanged": Nasty(
        sh(f'echo > shop.py; printf "run=$STAGING_ATTEMPT\ntree_changed=0\n" > {CONTROL}/tree'),
        CLOSED,
        R.TREE_CHANGED,
    ),
    "flees when it is told to stop": Nasty(
        py(
            "def flee(*_):\n"
            "    for _ in range(5):\n"
            "        if os.fork() == 0:\n"
            "            os.setsid()\n"
            "            os.execv('/bin/sleep', ['sleep', '600'])\n"
            "    os._exit(0)\n"
            "signal.signal(15, flee)\nwhile True: signal.pause()"
        ),
        CLOSED,
        R.DEADLINE_EXCEEDED,
        SOON,
    ),
    # What it does to the tree.
    "hides what it changes": Nasty(
        sh("git update-index --assume-unchanged shop.py; echo > shop.py"), CLOSED, R.TREE_CHANGED
    ),
    "puts another commit in the place of its own": Nasty(
        sh(
            "I='-c user.name=x -c user.email=x'; echo > shop.py; git $I commit -qam x;"
            "git replace -f HEAD~1 HEAD; git reset -q --soft HEAD~1"
        ),
        CLOSED,
        R.TREE_CHANGED,
    ),
    "changes what it tests": Nasty(sh("echo > shop.py"), CLOSED, R.TREE_CHANGED),
    "changes what it tests in place": Nasty(sh("echo > shop.py"), CLOSED, R.TREE_CHANGED, IN_PLACE),
    "commits": Nasty(
        sh("git -c user.name=x -c user.email=x commit -q --allow-empty -m x"),
        CLOSED,
        R.TREE_CHANGED,
    ),
    "removes its checkout": Nasty(sh('rm -rf "$PWD"'), CLOSED, R.TREE_CHANGED),
    "removes its git": Nasty(sh("rm .git"), CLOSED, R.TREE_CHANGED),
    "locks its checkout up": Nasty(
        sh("mkdir deep && touch deep/x && chmod 0 deep; git worktree lock ."), PASS, R.PASSED
    ),
    "digs too deep to be followed": Nasty(
        py("for _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')"), PASS, R.PASSED
    ),
    "leaves rubbish in its checkout": Nasty(
        sh("mkfifo a; ln -s / b; touch -- -rf"), PASS, R.PASSED
    ),
    # Its report.
    "leaves no report": Nasty(sh("exit 0"), CLOSED, R.REPORT_MISSING, JUNIT),
    "leaves an empty report": Nasty(report(""), CLOSED, R.REPORT_UNREADABLE, JUNIT),
    "leaves half a report": Nasty(report(f"<testsuite>{CASE}"), CLOSED, R.REPORT_UNREADABLE, JUNIT),
    "leaves a bomb": Nasty(
        report('<!DOCTYPE a [<!ENTITY b "c">]><testsuite>&b;</testsuite>'),
        CLOSED,
        R.REPORT_UNREADABLE,
        JUNIT,
    ),
    "leaves a report of nothing": Nasty(
        report('<testsuite tests="9"/>'), CLOSED, R.NO_TESTS, JUNIT
    ),
    "leaves a report of skipped tests": Nasty(
        report("<testsuite><testcase name='a'><skipped/></testcase></testsuite>"),
        CLOSED,
        R.NO_TESTS,
        JUNIT,
    ),
    "leaves a report of too few tests": Nasty(
        report(f"<testsuite>{CASE}</testsuite>"),
        CLOSED,
        R.TOO_FEW_TESTS,
        (*JUNIT, "--min-tests", "2"),
    ),
    "leaves an old report": Nasty(
        report(f'<testsuite timestamp="2020-01-01T00:00:00Z">{CASE}</testsuite>'),
        CLOSED,
        R.REPORT_STALE,
        JUNIT,
    ),
    "leaves a report that is a pipe": Nasty(
        sh("mkfifo $STAGING_REPORT_DIR/r.xml"), CLOSED, R.REPORT_UNREADABLE, JUNIT
    ),
    "leaves a report without end": Nasty(
        sh("ln -s /dev/zero $STAGING_REPORT_DIR/r.xml"), CLOSED, R.REPORT_UNREADABLE, JUNIT
    ),
    "removes the report folder": Nasty(
        sh("rm -rf $STAGING_REPORT_DIR"), CLOSED, R.REPORT_MISSING, JUNIT
    ),
    "leaves a report that is of no test run": Nasty(
        report(f"<html>{CASE}</html>"), CLOSED, R.REPORT_UNREADABLE, JUNIT
    ),
    "leaves a report with an old suite in it": Nasty(
        report(
            f"<testsuites><testsuite>{CASE}</testsuite>"
            f'<testsuite timestamp="2020-01-01T00:00:00Z">{CASE}</testsuite></testsuites>'
        ),
        CLOSED,
        R.REPORT_STALE,
        JUNIT,
    ),
    "reports a failure and exits 0": Nasty(
        report("<testsuite><testcase name='a'><failure/></testcase></testsuite>"),
        FAIL,
        R.TESTS_FAILED,
        JUNIT,
    ),
    "reports an error and exits 0": Nasty(
        report("<testsuites><testsuite><error/></testsuite></testsuites>"),
        FAIL,
        R.TESTS_FAILED,
        JUNIT,
    ),
    "reports a failure and hangs": Nasty(
        report("<testsuite><testcase name='a'><failure/></testcase></testsuite>", "sleep 600"),
        FAIL,
        R.TESTS_FAILED,
        (*JUNIT, *SOON),
    ),
    "reports a pass and exits 1": Nasty(
        report(f"<testsuite>{CASE}</testsuite>", "exit 1"), FAIL, R.EXIT_CODE, JUNIT
    ),
    "reports a pass and hangs": Nasty(
        report(f"<testsuite>{CASE}</testsuite>", "sleep 600"),
        CLOSED,
        R.DEADLINE_EXCEEDED,
        (*JUNIT, *SOON),
    ),
}


@pytest.fixture
def shop(repository: Path) -> Iterator[Path]:
    """Return a repository with a script that cannot run; whatever a failed test left is killed."""
    (repository / "lost").write_text("#!/no/such/interpreter\n")
    (repository / "lost").chmod(0o755)
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "A lost suite.")
    yield repository
    kill_marked(MARK, str(repository))


def run(shop: Path, nasty: Nasty) -> dict[str, Any]:
    """Run a suite to its end and return what `--json` prints."""
    fixed = ["run", "--json", "--repo", str(shop), "--work-item", "WI-1", "--infra-retries", "0"]
    names = [word for name in (MARK, "REPO", "ITEM") for word in ("--env", name)]
    variables = {
        MARK: str(shop),
        "REPO": str(shop),
        "ITEM": "WI-1",
        "ORCH_STAGING_RUNNER_STATE_DIR": str(shop.parent / "state"),
        "ORCH_STAGING_RUNNER_KILL_GRACE_SECONDS": "0.1",
        "ORCH_STAGING_RUNNER_LOG_MAX_BYTES": str(1 << 20),
    }
    command = [*fixed, *names, *nasty.options, "--", *nasty.command]
    ended = CliRunner().invoke(main, command, env=variables)
    view: dict[str, Any] = json.loads(ended.stdout)
    return view


def survivors(shop: Path) -> list[str]:
    """Return the names of processes that carry the mark."""
    mark = f"{MARK}={shop}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "comm").read_text().strip())
        except OSError:
            continue
    return found


@pytest.mark.parametrize("name", NASTY)
def test_nasty_suite_gets_what_it_deserves(shop: Path, name: str) -> None:
    """A suite that behaves badly gets its own reason, leaves nobody, and forges nothing."""
    nasty = NASTY[name]

    view = run(shop, nasty)

    assert (view["state"], view["reason"]) == (nasty.state, nasty.reason)
    assert survivors(shop) == []
    assert check_staging_status(Path(view["artifact"]).parent) is (nasty.state is PASS)
    assert len(view["runs"]) == 1
    assert not [*(shop.parent / "state").glob("worktrees/*")]

"""A place for real runs: programs with a line to the test, a state folder, a fresh worker.

Every process of a suite in `suites/` holds the line, a pipe it inherits. The line's end, and
nothing less, shows that nobody is left.
"""

import contextlib
import os
import secrets
import select
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from staging_fsm.core.outcome import RunFacts, Verdict, judge
from staging_fsm.core.plan import UNVERSIONED, SuitePlan, Workspace
from staging_fsm.core.ports import RunOrder, RunReport
from staging_fsm.effects import supervised
from staging_fsm.effects.run_folder import RunFolder
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.effects.suite import LocalSuites

SUITES = Path(__file__).parent / "suites"
PYTHON = (sys.executable, "-S", "-E")
#: How long a test waits for what must happen before it calls it a failure.
PATIENCE_SECONDS = 60.0
MEBIBYTE = 1024 * 1024
#: A sweep kills whoever carries the run's name: that of another session of tests is another.
ATTEMPT = f"attempt-{secrets.token_hex(4)}"
RUN = f"{ATTEMPT}.1"


class Lifeline:
    """The reading end of the line that every process of a suite holds."""

    def __init__(self, path: Path) -> None:
        """Make the pipe at `path`."""
        self.path = path
        os.mkfifo(path)
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def await_members(self, count: int) -> None:
        """Wait until `count` processes have announced themselves."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while count > 0:
            assert is_ready(self.fd, deadline - time.monotonic()), "nobody announced itself"
            # Between two who hold it in turn the line is at its end, which the second takes back.
            with contextlib.suppress(BlockingIOError):
                count -= len(os.read(self.fd, count))

    def is_cut(self) -> bool:
        """Say whether everybody who held the line is gone, if anybody ever took it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                if not os.read(self.fd, 4096):
                    return True
            except BlockingIOError:
                if not is_ready(self.fd, deadline - time.monotonic()):
                    return False


def is_ready(fd: int, seconds: float = PATIENCE_SECONDS) -> bool:
    """Wait until `fd` can be read, or is at its end."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def await_that(is_so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        os.sched_yield()


def has_ended(pid: int, seconds: float = PATIENCE_SECONDS) -> bool:
    """Wait for the end of a process."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return is_ready(fd, seconds)
    finally:
        os.close(fd)


def program(name: str, *arguments: str) -> tuple[str, ...]:
    """Return the command of a program in `suites/`."""
    return (*PYTHON, str(SUITES / f"{name}.py"), *arguments)


@attrs.frozen
class Stand:
    """A place for real runs, in a folder without git."""

    root: Path
    lifeline: Lifeline
    release: Path

    @property
    def variables(self) -> dict[str, str]:
        """Return the worker's environment."""
        own = {"LIFELINE": str(self.lifeline.path), "RELEASE": str(self.release)}
        return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **own}

    @property
    def state(self) -> StateDir:
        """Return the state folder."""
        return StateDir(self.root / "state")

    @property
    def suites(self) -> LocalSuites:
        """Return a fresh worker's view of the runs."""
        return LocalSuites(self.state, self.variables)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Return what a worker without root must own."""
        return (self.root, self.root / "tree", self.lifeline.path, self.release)

    def start(
        self, *command: str, run_id: str = RUN, inherited: Sequence[int] = (), **plan: Any
    ) -> LocalSuites:
        """Start a run in place; return its worker."""
        plan = {"timeout_seconds": PATIENCE_SECONDS, "kill_grace_seconds": 0.2, **plan}
        plan.setdefault("environment", ("LIFELINE", "RELEASE"))
        plan.setdefault("workspace", Workspace.IN_PLACE)
        order = RunOrder(run_id, self.root / "tree", UNVERSIONED, SuitePlan(command, **plan))
        worker = LocalSuites(self.state, self.variables, inherited)
        worker.start(order)
        return worker

    def await_result(self) -> None:
        """Wait until the supervisor has said how the run ended."""
        await_that(self.file("result").exists)

    def collect(self, run_id: str = RUN) -> RunReport:
        """Wait for a run's end, as a worker that adopts it."""
        return self.suites.await_report(run_id)

    def run(self, *command: str, run_id: str = RUN, **plan: Any) -> RunReport:
        """Start a run and wait for its end, as one worker."""
        return self.start(*command, run_id=run_id, **plan).await_report(run_id)

    def facts(self, *command: str, **plan: Any) -> RunFacts:
        """Return the facts of a run."""
        return self.run(*command, **plan).facts

    def file(self, name: str, run_id: str = RUN) -> Path:
        """Return a file of a run's control folder."""
        return self.state.run(run_id) / name

    def reorder(self, run_id: str = RUN, **changes: Any) -> None:
        """Have a run ordered otherwise than it was."""
        folder = RunFolder(self.state, run_id)
        folder.write_order(attrs.evolve(folder.order(), **changes))

    def pid(self, name: str = "shim", run_id: str = RUN) -> int:
        """Return the process id of a run's supervisor, or of its leader."""
        await_that(self.file(name, run_id).exists)
        return int(self.file(name, run_id).read_text().splitlines()[0].removeprefix("pid="))

    def log(self) -> bytes:
        """Return the log of the run."""
        return self.file("output.log").read_bytes()

    def let_go(self) -> None:
        """Release a program that waits for it."""
        with self.release.open("wb"):
            pass


@contextmanager
def made_stand(folder: Path) -> Iterator[Stand]:
    """Yield a stand in a folder; whatever a failed test left running is killed."""
    (folder / "tree").mkdir()
    release = folder / "release"
    os.mkfifo(release)
    stand = Stand(folder, Lifeline(folder / "lifeline"), release)
    yield stand
    for run in (stand.root / "state" / "runs").glob("*"):
        stand.suites.reap(run.name)
    os.close(stand.lifeline.fd)


def verdict(facts: RunFacts) -> Verdict:
    """Return what a run shows where nothing but its exit code is asked."""
    return judge(facts, SuitePlan(("suite",)).judging_policy()).verdict


def worker_command(stand: Stand, mode: str, *command: str) -> list[str]:
    """Return the command line of a worker in a process of its own."""
    return [sys.executable, str(SUITES / "worker.py"), str(stand.state.root), RUN, mode, *command]


def patch_supervisor(monkeypatch: pytest.MonkeyPatch, code: str, before: str = "") -> None:
    """Run `code` in the supervisor before its `main`, and `before` before its import."""
    real = supervised.SUPERVISOR_CODE
    patched = real.replace("main.main(", f"{code}main.main(")
    patched = patched.replace("from supervisor", f"{before}from supervisor")
    monkeypatch.setattr(supervised, "SUPERVISOR_CODE", patched)


def as_nobody(*paths: Path) -> tuple[str, ...]:
    """Return what makes a command run without root, as the owner of `paths`."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("root, and cannot run anything without")
    nobody = 65534
    for path in paths:
        os.chown(path, nobody, nobody)
    # The right to read is kept: this interpreter may stand where only root may look.
    rights = "+dac_read_search"
    return (
        "setpriv", f"--reuid={nobody}", f"--regid={nobody}", "--clear-groups",
        f"--inh-caps={rights}", f"--ambient-caps={rights}",
    )  # fmt: skip


def bound_by_modes() -> tuple[str, ...]:
    """Return what makes a command heed the modes of files, as a command of root does not."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("root, and cannot run anything with less rights")
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search")

"""The worker's side of a run: make ready, start the supervisor, wait, collect, clean up.

What worker and supervisor leave for each other stands in the control folder of the run
(`run_folder.py`), what is judged is collected by `run_report.py`, and what may be shown
of it is said by `run_output.py`.
"""

import contextlib
import fcntl
import functools
import hashlib
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import attrs

from staging_fsm.core.errors import PreparationError, in_words
from staging_fsm.core.plan import (
    BASE_ENVIRONMENT,
    PRESETS,
    REPORT_DIR_PLACEHOLDER,
    UNVERSIONED,
    SuitePlan,
    Workspace,
)
from staging_fsm.core.ports import RunCondition, RunOrder, RunReport
from staging_fsm.effects import shim, worktree
from staging_fsm.effects.files import DIRECTORY_MODE, FILE_MODE, sha256_of_text
from staging_fsm.effects.processes import (
    ProcessIdentity,
    age_seconds,
    identify,
    is_alive,
    is_stopped,
    kill_descendants,
    kill_marked,
    send_signal,
    this_scope,
    wait_for_end,
)
from staging_fsm.effects.run_folder import Order, RunFolder
from staging_fsm.effects.run_output import RunOutput
from staging_fsm.effects.run_report import report_of
from staging_fsm.effects.state_dir import StateDir

#: How much longer than deadline or grace a supervisor may take before it is woken.
SUPERVISOR_LATE_SECONDS: Final = 0.5
#: How long it may take after that, with its sweep and its log, before it counts as hung.
SUPERVISOR_MARGIN_SECONDS: Final = 20.0
#: How long a supervisor may take from its start to its lock.
SUPERVISOR_START_SECONDS: Final = 10.0
STOP_SECONDS: Final = 5.0
SWEEP_SECONDS: Final = 10.0
#: How long after a look at all run folders the next one comes at the earliest.
PRUNE_SECONDS: Final = 600.0
_PAUSE_SECONDS: Final = 0.005
#: Imported, not run as a script: so its byte code is cached, which saves half of its start.
SUPERVISOR_CODE: Final = (
    "import sys; sys.path.append(sys.argv[1]); import shim; shim.main(*sys.argv[2:])"
)
RUN_VARIABLE: Final = "STAGING_ATTEMPT"


class LocalSuites:
    """Runs of suites on this machine, below one state folder."""

    def __init__(
        self,
        state: StateDir,
        variables: Mapping[str, str] | None = None,
        inherited: Sequence[int] = (),
    ) -> None:
        """Keep runs below `state`; `variables` is the environment suites may inherit from.

        `inherited` are descriptors of connections that a supervisor, and nobody below
        it, holds for as long as it lives: a lock that is bound to one outlives the
        worker. Where one of them is closed by its other side, the suite is killed.
        """
        self._state, self._inherited = state, inherited
        self._variables = os.environ if variables is None else variables
        self._output = RunOutput(state, self._variables)
        self._prune_at = -math.inf

    def _folder(self, run_id: str) -> RunFolder:
        return RunFolder(self._state, run_id)

    def start(self, order: RunOrder) -> None:
        """Make ready what the run needs and start it. Raises PreparationError."""
        try:
            self._start(order)
        except (OSError, ValueError, subprocess.SubprocessError, PreparationError) as error:
            self.reap(order.run_id)
            words = str(error) if isinstance(error, PreparationError) else in_words(error)
            message = f"the run could not be prepared: {words}"
            raise PreparationError(message) from error

    def _start(self, order: RunOrder) -> None:
        self._state.ensure()
        folder, reports = self._folder(order.run_id), self._state.reports(order.run_id)
        for path in (folder.path, reports):
            path.mkdir(mode=DIRECTORY_MODE, parents=True)
        unversioned = order.revision == UNVERSIONED
        in_place = unversioned or order.suite.workspace is Workspace.IN_PLACE
        dirty_allowed = in_place and not unversioned and order.suite.allow_dirty
        tree = order.repository if in_place else self._state.worktree(order.run_id)
        report = _report_path(order.suite, reports)
        written = Order(
            scope=this_scope(),
            repository=str(order.repository),
            tree=str(tree),
            workspace=str(Workspace.IN_PLACE if in_place else Workspace.WORKTREE),
            revision=order.revision,
            started_at=time.time(),
            timeout_seconds=order.suite.timeout_seconds,
            kill_grace_seconds=order.suite.kill_grace_seconds,
            changes=worktree.tracked_changes(tree, filtered=False) if dirty_allowed else "",
            report=None if report is None else str(report),
            report_before="" if report is None else shim.mark_of(str(report)),
            environment=order.suite.environment,
        )
        folder.write_order(written)
        if not in_place:
            worktree.add_worktree(order.repository, order.revision, tree)
            # Attributes that the committed files contradict make even a fresh checkout differ.
            if changes := worktree.tracked_changes(tree, filtered=False):
                folder.write_order(attrs.evolve(written, changes=changes))
        with folder.lock() as lock, self._report_lock(report, reports) as others:
            if lock is None or folder.holds("closed"):
                message = f"run {order.run_id} is taken or closed"
                raise PreparationError(message)
            self._start_supervisor((lock, *others), tree, report, order)

    @contextlib.contextmanager
    def _report_lock(self, report: Path | None, own: Path) -> Iterator[tuple[int, ...]]:
        """Yield a lock on a report outside of the run's `own` folder, which other runs may write.

        Raises PreparationError while one of them is under way: whose report it is could
        not be told.
        """
        if report is None or report.is_relative_to(own):
            yield ()
            return
        locks = self._state.locks
        locks.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        path = locks / sha256_of_text(os.path.realpath(report))
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags, FILE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield (descriptor,)
        except BlockingIOError:
            message = f"another run that writes the report {report} is under way"
            raise PreparationError(message) from None
        finally:
            os.close(descriptor)

    def _start_supervisor(
        self, locks: tuple[int, ...], tree: Path, report: Path | None, order: RunOrder
    ) -> None:
        folder, reports = self._state.run(order.run_id), self._state.reports(order.run_id)
        suite = order.suite
        command = [word.replace(REPORT_DIR_PLACEHOLDER, str(reports)) for word in suite.command]
        words = b"\0".join(os.fsencode(word) for word in command)
        (folder / "command").write_bytes(words)
        # What it must not take from anybody else: whoever knows the folder may write there.
        told = self._state.secret() + hashlib.blake2b(words, digest_size=shim.SEAL_BYTES).digest()
        self._output.keep_command(order.run_id, suite)
        arguments = [
            str(Path(shim.__file__).parent),
            str(folder),
            str(tree),
            str(report or ""),
            ",".join(map(str, locks)),
            ",".join(map(str, self._inherited)),
            f"timeout={suite.timeout_seconds}",
            f"grace={suite.kill_grace_seconds}",
            f"idle={suite.idle_timeout_seconds}",
            f"log={suite.log_max_bytes}",
            f"memory={suite.memory_max_bytes}",
            f"processes={suite.processes_max}",
            f"open_files={suite.open_files_max}",
            f"file_bytes={suite.file_max_bytes}",
        ]
        # Lock and secret are there before it is: whatever becomes of us, it goes on.
        with (folder / "shim.stderr").open("wb") as errors, _pipe_of(told) as pipe:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", SUPERVISOR_CODE, *arguments],
                stdin=pipe,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=self._environment(suite, order.run_id, reports),
                start_new_session=True,
                pass_fds=(*locks, *self._inherited),
            )
        _CHILDREN[str(folder)] = process, identify(process.pid)

    def _environment(self, suite: SuitePlan, run_id: str, reports: Path) -> dict[str, str]:
        names = (*BASE_ENVIRONMENT, *suite.environment)
        environment = {name: self._variables[name] for name in names if name in self._variables}
        environment |= {"CI": "true", "STAGING_REPORT_DIR": str(reports), RUN_VARIABLE: run_id}
        preset = PRESETS[suite.preset]
        wanted = preset.option is not None and not any(
            word.startswith(("--junitxml", "--junit-xml")) for word in suite.command
        )
        if preset.variable and wanted and suite.report and not Path(suite.report).is_absolute():
            option = shlex.quote(f"{preset.option}={reports / suite.report}")
            inherited = environment.get(preset.variable, "")
            environment[preset.variable] = f"{inherited} {option}".strip()
        return environment

    def await_report(self, run_id: str) -> RunReport:
        """Wait until nothing of the run is alive, remove its checkout, and report."""
        folder = self._folder(run_id)
        try:
            order = folder.order()
        except PreparationError:
            self.reap(run_id)
            raise
        has_ended = self._await_supervisor(folder, order.timeout_seconds, order.kill_grace_seconds)
        result = folder.sealed("result")
        if result and not has_ended:
            result = {}
        if not result or int(result["processes_left"]) > 0 or not shim.IS_LINUX:
            # The supervisor is gone or could not finish its work: finish it from here.
            self.sweep(run_id)
        try:
            # Before the run is judged: from then on its artifact may be written.
            self._output.keep_tail(run_id)
            return report_of(folder, order, result)
        finally:
            self._remove_checkout(run_id, order)

    def _await_supervisor(self, folder: RunFolder, timeout: float, grace: float) -> bool:
        """Wait for the supervisor's end; wake it when it is late, end it when it is hung.

        Returns False for one of our own that did not come to its end: whatever stands in
        its place, no result is its.
        """
        child, identity = _CHILDREN.get(str(folder.path), (None, None))
        if child is None:
            identity = _await_identity(folder)
        if identity is not None and not _ends(identity, timeout, grace):
            # Everything of the suite is below it for as long as it lives.
            _repeat(functools.partial(kill_descendants, identity))
            send_signal(identity, signal.SIGKILL)
            wait_for_end(identity, STOP_SECONDS)
        if child is None:
            return True
        _CHILDREN.pop(str(folder.path), None)
        try:
            # Not by poll: while another thread asks, it says that the process goes on.
            return child.wait(STOP_SECONDS) == 0
        except subprocess.TimeoutExpired:
            return False

    def condition(self, run_id: str) -> RunCondition:
        """Say what there is of a run. Once it said LOST, the run can no longer start."""
        folder = self._folder(run_id)
        order = folder.order_if_any()
        if order is not None and is_alive(ProcessIdentity(order.scope, 0, 0)) is None:
            return RunCondition.FOREIGN
        with folder.lock() as lock:
            if lock is None:
                return RunCondition.LIVE
            if folder.holds("result"):
                return RunCondition.FINISHED
            # First closed, then swept: a supervisor that was paused before its lock
            # must not start the suite later.
            folder.close()
            return RunCondition.LOST

    def reap(self, run_id: str) -> None:
        """Stop whatever is left of a run and remove its checkout. Safe to repeat."""
        folder = self._folder(run_id)
        condition = self.condition(run_id)
        if condition is RunCondition.FOREIGN:
            return
        order = folder.order_if_any()
        if condition is RunCondition.LIVE and (identity := _await_identity(folder)) is not None:
            send_signal(identity, signal.SIGTERM)
        # One that found the run closed before it began is waited for too, if it is our child.
        if condition is RunCondition.LIVE or str(folder.path) in _CHILDREN:
            grace = STOP_SECONDS if order is None else order.kill_grace_seconds
            self._await_supervisor(folder, 0.0, grace)
            self.condition(run_id)
        self.sweep(run_id)
        self._remove_checkout(run_id, order)

    def sweep(self, run_id: str) -> int:
        """Kill every process that carries the run's variable; return how many are left.

        For a run whose supervisor is gone: its orphans are no longer below anybody
        of ours, and only their environment tells whose they are, or their session
        while its leader is still to be seen.
        """
        folder = self._folder(run_id)
        folder.kill_group()
        leader = folder.identity("leader")
        return _repeat(functools.partial(kill_marked, RUN_VARIABLE, run_id, leader))

    def prune(self, days: float, unfinished: Callable[[], Container[str]]) -> None:
        """Remove the folders of runs in which nothing changed for `days`; 0 removes none.

        Nothing of the attempts that `unfinished` names, of a run that lives, or of one
        of another machine. It is only asked if there is anything to remove. After a look
        nothing is looked at for PRUNE_SECONDS.
        """
        # Years of runs may be there: not each of a worker's many launches goes through them all.
        if days == 0 or time.monotonic() < self._prune_at:
            return
        self._prune_at = time.monotonic() + PRUNE_SECONDS
        before = time.time() - days * 86_400
        old = [run for run in self._state.run_ids() if self._state.last_change(run) < before]
        kept = unfinished() if old else ()
        for run_id in old:
            attempt = run_id.rpartition(".")[0]
            if attempt in kept or self.condition(run_id) in (
                RunCondition.LIVE,
                RunCondition.FOREIGN,
            ):
                continue
            if os.path.lexists(self._state.worktree(run_id)):
                # It could not be removed in its time, or nobody came back for it.
                self._remove_checkout(run_id, None)
            self._state.remove_run(run_id)

    def log_tail(self, run_id: str, size: int) -> bytes:
        """Return the last `size` bytes of a run's output, as `RunOutput.tail` does."""
        return self._output.tail(run_id, size)

    def shown_command(self, run_id: str, suite: SuitePlan) -> tuple[str, ...]:
        """Return the words of a run's command, as `RunOutput.shown_command` does."""
        return self._output.shown_command(run_id, suite)

    def _remove_checkout(self, run_id: str, order: Order | None) -> None:
        checkout = self._state.worktree(run_id)
        if order is None:
            # Whose checkout it is, it may know itself.
            worktree.remove_worktree(checkout, checkout)
        elif order.workspace == Workspace.WORKTREE:
            worktree.remove_worktree(Path(order.repository), checkout)


#: Supervisors that this process started: their end must be waited for by their parent.
_CHILDREN: Final[dict[str, tuple["subprocess.Popen[bytes]", ProcessIdentity | None]]] = {}


def _pipe_of(data: bytes) -> BinaryIO:
    """Return a pipe that holds `data`, which has to be short, and its end."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(data)
    return os.fdopen(reading, "rb")


def _ends(identity: ProcessIdentity, timeout: float, grace: float) -> bool:
    """Wait for a supervisor's end, for as long as it can need; False if it is hung.

    A suite may have stopped it with SIGSTOP. Woken, it sees for itself that its
    time is over, and does what is left to do.
    """
    left = max(0.0, timeout - age_seconds(identity))
    hindered = False
    for seconds in (left, grace, 0.0):
        if wait_for_end(identity, seconds + SUPERVISOR_LATE_SECONDS):
            return True
        hindered = is_stopped(identity)
        send_signal(identity, signal.SIGCONT)
    return not hindered and wait_for_end(identity, SUPERVISOR_MARGIN_SECONDS)


def _repeat(kill: Callable[[], int]) -> int:
    """Kill until a pass finds nobody, as new ones may be born during a pass; bounded."""
    deadline = time.monotonic() + SWEEP_SECONDS
    while (left := kill()) and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
    return left


def _await_identity(folder: RunFolder) -> ProcessIdentity | None:
    """Return who supervises the run, waiting a moment for one that was just started."""
    deadline = time.monotonic() + SUPERVISOR_START_SECONDS
    while not folder.holds("shim") and time.monotonic() < deadline:
        with folder.lock() as lock:
            if lock is not None:
                break
        time.sleep(_PAUSE_SECONDS)
    return folder.identity("shim")


def _report_path(suite: SuitePlan, reports: Path) -> Path | None:
    return None if suite.report is None else reports / suite.report

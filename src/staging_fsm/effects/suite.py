"""The worker's side of a run: make ready, start the supervisor, wait, collect, clean up.

The supervisor (`shim.py`) outlives the worker, so everything that is needed to
judge a run stands in its control folder before it starts:

    order.json   what was ordered, by whom, and how things looked before
    lock         held by the supervisor for as long as it lives
    closed       written by a recovery that found no supervisor: none may start now
    shim, leader who they are
    output.log   what the suite printed
    result       sealed; written when nothing of the run is alive any more
"""

import contextlib
import fcntl
import hashlib
import hmac
import json
import math
import os
import select
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import psutil

from staging_fsm.core.errors import PreparationError, ReportUnreadableError
from staging_fsm.core.evidence import (
    NO_EVIDENCE_REQUIRED,
    REPORT_MAX_BYTES,
    Evidence,
    EvidenceState,
    read_junit,
)
from staging_fsm.core.outcome import RunFacts, SpawnError, Stop, Supervision
from staging_fsm.core.plan import PRESETS, REPORT_DIR_PLACEHOLDER, UNVERSIONED, SuitePlan, Workspace
from staging_fsm.core.ports import RunCondition, RunOrder, RunReport
from staging_fsm.effects import shim, worktree
from staging_fsm.effects.files import StateDir, read_tail, sha256_of_file, write_durably
from staging_fsm.effects.processes import ProcessIdentity, is_alive, start_ticks, this_scope

#: How much longer than deadline and grace a supervisor may take before it counts as hung.
SUPERVISOR_MARGIN_SECONDS: Final = 20.0
#: How long a supervisor may take from its start to its lock.
SUPERVISOR_START_SECONDS: Final = 10.0
STOP_SECONDS: Final = 5.0
SWEEP_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 0.02
_RESULT_MAX_BYTES: Final = 64 * 1024
#: What every suite gets of the worker's environment; the rest is named in its plan.
BASE_ENVIRONMENT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "USER")
RUN_VARIABLE: Final = "STAGING_ATTEMPT"


@attrs.frozen
class _Order:
    """`order.json`."""

    scope: str
    repository: str
    tree: str
    workspace: str
    revision: str
    timeout_seconds: float
    kill_grace_seconds: float
    changes: str
    report: str | None
    report_before: tuple[int, ...] | None


class LocalSuites:
    """Runs of suites on this machine, below one state folder."""

    def __init__(self, state: StateDir, variables: Mapping[str, str] | None = None) -> None:
        """Keep runs below `state`; `variables` is the environment suites may inherit from."""
        self._state = state
        self._variables = os.environ if variables is None else variables

    def start(self, order: RunOrder) -> None:
        """Make ready what the run needs and start it. Raises PreparationError."""
        try:
            self._start(order)
        except (OSError, ValueError, subprocess.SubprocessError, PreparationError) as error:
            self.reap(order.run_id)
            message = f"the run could not be prepared: {type(error).__name__}: {error}"
            raise PreparationError(message) from error

    def _start(self, order: RunOrder) -> None:
        self._state.ensure()
        folder, reports = self._state.run(order.run_id), self._state.reports(order.run_id)
        for path in (folder, reports):
            path.mkdir(mode=0o700, parents=True)
        unversioned = order.revision == UNVERSIONED
        in_place = unversioned or order.suite.workspace is Workspace.IN_PLACE
        tree = order.repository if in_place else self._state.worktree(order.run_id)
        report = _report_path(order.suite, reports)
        written = _Order(
            scope=this_scope(),
            repository=str(order.repository),
            tree=str(tree),
            workspace=str(Workspace.IN_PLACE if in_place else Workspace.WORKTREE),
            revision=order.revision,
            timeout_seconds=order.suite.timeout_seconds,
            kill_grace_seconds=order.suite.kill_grace_seconds,
            changes="" if unversioned or not in_place else worktree.tracked_changes(tree),
            report=None if report is None else str(report),
            report_before=None if report is None else _fingerprint(report),
        )
        write_durably(folder / "order.json", json.dumps(attrs.asdict(written)).encode())
        if not in_place:
            worktree.add_worktree(order.repository, order.revision, tree)
        self._start_supervisor(folder, tree, reports, order)

    def _start_supervisor(self, folder: Path, tree: Path, reports: Path, order: RunOrder) -> None:
        suite = order.suite
        command = [word.replace(REPORT_DIR_PLACEHOLDER, str(reports)) for word in suite.command]
        arguments: list[str] = [
            str(folder),
            str(tree),
            str(suite.timeout_seconds),
            str(suite.kill_grace_seconds),
            str(suite.log_max_bytes),
            "--",
            *command,
        ]
        with (folder / "shim.stderr").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", shim.__file__, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=self._environment(suite, order.run_id, reports),
                start_new_session=True,
            )
        _CHILDREN[str(folder)] = process
        assert process.stdin is not None  # noqa: S101  # for the type checker
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(self._state.secret())

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
        folder = self._state.run(run_id)
        order = _read_order(folder)
        limit = order.timeout_seconds + order.kill_grace_seconds + SUPERVISOR_MARGIN_SECONDS
        self._wait_for_supervisor(folder, limit)
        result = self._result(folder)
        if result is None or int(result.get("processes_left", "0")) > 0 or not shim.IS_LINUX:
            # The supervisor is gone or could not finish its work: finish it from here.
            self.sweep(run_id)
        try:
            return self._report(run_id, order, result)
        finally:
            self._remove_checkout(run_id, order)

    def _wait_for_supervisor(self, folder: Path, seconds: float) -> None:
        child = _CHILDREN.pop(str(folder), None)
        if child is not None:
            if not _wait_for_end(child.pid, None, seconds):
                child.kill()
            child.wait()
            return
        identity = _read_identity(folder / "shim")
        if identity is not None and not _wait_for_end(identity.pid, identity, seconds):
            _kill(identity)

    def _result(self, folder: Path) -> dict[str, str] | None:
        """Return the sealed result; empty where there is one that nobody sealed."""
        raw = _read_small_file(folder / "result")
        if raw is None:
            return None
        text, _, tail = raw.rpartition(b"\n")[0].rpartition(b"\n")
        text += b"\n"
        expected = hashlib.blake2b(
            text, key=self._state.secret(), digest_size=shim.SEAL_BYTES
        ).hexdigest()
        if not hmac.compare_digest(expected.encode(), tail):
            return {}
        facts = dict(line.split("=", 1) for line in text.decode().splitlines())
        return facts if facts["run"] == folder.name else {}

    def _report(self, run_id: str, order: _Order, result: dict[str, str] | None) -> RunReport:
        folder = self._state.run(run_id)
        log = folder / "output.log"
        sha256 = sha256_of_file(log)
        kept: dict[str, Any] = {
            "log": str(log) if sha256 else None,
            "log_sha256": sha256,
            "log_bytes": log.stat().st_size if sha256 else None,
            "log_dropped_bytes": 0,
        }
        if not result:
            supervision = Supervision.LOST if result is None else Supervision.FORGED
            stderr = read_tail(folder / "shim.stderr", 500).decode("utf-8", "replace").strip()
            return RunReport(RunFacts(supervision=supervision), detail=stderr or None, **kept)
        kept |= {
            "log_bytes": int(result["log_bytes"]),
            "log_dropped_bytes": int(result["log_dropped_bytes"]),
        }
        facts = RunFacts(
            exit_code=_optional_int(result["exit_code"]),
            signal=_optional_int(result["signal"]),
            spawn_error=SpawnError(result["spawn_error"]) if result["spawn_error"] else None,
            stopped_by=Stop(result["stopped_by"]) if result["stopped_by"] else None,
            tree_changed=_tree_changed(order),
            log_complete=result["log_complete"] == "1" and sha256 is not None,
            processes_left=int(result["processes_left"]),
            supervision=Supervision.SOUND,
            evidence=_evidence(order),
        )
        return RunReport(
            facts,
            duration_seconds=float(result["duration_seconds"]),
            detail=_detail(result),
            **kept,
        )

    def condition(self, run_id: str) -> RunCondition:
        """Say what there is of a run. Once it said LOST, the run can no longer start."""
        folder = self._state.run(run_id)
        try:
            order = _read_order(folder)
        except PreparationError:
            order = None
        if order is not None and is_alive(ProcessIdentity(order.scope, 0, 0)) is None:
            return RunCondition.FOREIGN
        with _run_lock(folder) as taken:
            if not taken:
                return RunCondition.LIVE
            if os.path.lexists(folder / "result"):
                return RunCondition.FINISHED
            # First closed, then swept: a supervisor that was paused before its lock
            # must not start the suite later.
            write_durably(folder / "closed", b"")
            return RunCondition.LOST

    def reap(self, run_id: str) -> None:
        """Stop whatever is left of a run and remove its checkout. Safe to repeat."""
        folder = self._state.run(run_id)
        if self.condition(run_id) is RunCondition.LIVE:
            identity = _read_identity(folder / "shim")
            if identity is not None:
                _signal(identity, signal.SIGTERM)
                limit = _read_order(folder).kill_grace_seconds + SUPERVISOR_MARGIN_SECONDS
                if not _wait_for_end(identity.pid, identity, limit):
                    _kill(identity)
            self.condition(run_id)
        self.sweep(run_id)
        with contextlib.suppress(PreparationError):
            self._remove_checkout(run_id, _read_order(folder))

    def sweep(self, run_id: str) -> int:
        """Kill every process that carries the run's variable; return how many are left.

        For a run whose supervisor is gone: its orphans are no longer below anybody
        of ours, and only their environment tells whose they are. Repeated until a
        pass finds nobody, as new ones may be born during a pass.
        """
        deadline = time.monotonic() + SWEEP_SECONDS
        while found := list(_processes_of(run_id)):
            if time.monotonic() > deadline:
                break
            for process in found:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(found, timeout=_PAUSE_SECONDS)
        return len(found)

    def log_tail(self, run_id: str, size: int) -> bytes:
        """Return the last `size` bytes of a run's output, also while it is running."""
        folder = self._state.run(run_id)
        parts = (folder / name for name in ("output.log", "output.tail.old", "output.tail"))
        return b"".join(read_tail(part, size) for part in parts)[-size:]

    def _remove_checkout(self, run_id: str, order: _Order) -> None:
        if order.workspace == Workspace.WORKTREE:
            worktree.remove_worktree(Path(order.repository), self._state.worktree(run_id))


#: Supervisors that this process started: their end must be waited for by their parent.
_CHILDREN: Final[dict[str, "subprocess.Popen[bytes]"]] = {}


def _wait_for_end(pid: int, identity: ProcessIdentity | None, seconds: float) -> bool:
    """Wait until `pid` has ended, without polling; False after `seconds`.

    `identity` guards against a number that was given to another process; a child
    of ours needs none, as nobody else can reap it.
    """
    if not hasattr(os, "pidfd_open"):
        return _wait_by_psutil(pid, seconds)
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return True
    try:
        if identity is not None and start_ticks(pid) != identity.start:
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(math.ceil(seconds * 1000)))
    finally:
        os.close(descriptor)


def _wait_by_psutil(pid: int, seconds: float) -> bool:
    try:
        psutil.Process(pid).wait(seconds)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def _signal(identity: ProcessIdentity, number: signal.Signals) -> None:
    if is_alive(identity):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(identity.pid, number)


def _kill(identity: ProcessIdentity) -> None:
    _signal(identity, signal.SIGKILL)
    _wait_for_end(identity.pid, identity, STOP_SECONDS)


def _processes_of(run_id: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) and (
                process.environ().get(RUN_VARIABLE) == run_id
            ):
                yield process


@contextlib.contextmanager
def _run_lock(folder: Path) -> Iterator[bool]:
    """Yield whether the run's lock could be taken: not, while its supervisor lives."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _read_order(folder: Path) -> _Order:
    try:
        facts = json.loads((folder / "order.json").read_bytes())
        if facts["report_before"] is not None:
            facts["report_before"] = tuple(facts["report_before"])
        return _Order(**facts)
    except (OSError, ValueError, TypeError, KeyError) as error:
        message = f"the order of run {folder.name} cannot be read: {error}"
        raise PreparationError(message) from error


def _read_identity(path: Path) -> ProcessIdentity | None:
    """Return who wrote its identity to `path`, waiting a moment for a process just started."""
    deadline = time.monotonic() + SUPERVISOR_START_SECONDS
    while True:
        try:
            facts = dict(line.split("=", 1) for line in path.read_text().splitlines())
            return ProcessIdentity(this_scope(), int(facts["pid"]), int(facts["start"]))
        except FileNotFoundError:
            if time.monotonic() > deadline:
                return None
            with _run_lock(path.parent) as nobody:
                if nobody:
                    return None
            time.sleep(_PAUSE_SECONDS)
        except (OSError, ValueError, KeyError):
            return None


def _read_small_file(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        try:
            return file.read(_RESULT_MAX_BYTES)
        except OSError:
            return b""


def _report_path(suite: SuitePlan, reports: Path) -> Path | None:
    return None if suite.report is None else reports / suite.report


def _fingerprint(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _evidence(order: _Order) -> Evidence:
    if order.report is None:
        return NO_EVIDENCE_REQUIRED
    path = Path(order.report)
    now = _fingerprint(path)
    if now is None:
        return Evidence(EvidenceState.MISSING)
    if now == order.report_before:
        return Evidence(EvidenceState.STALE)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_size > REPORT_MAX_BYTES:
                return Evidence(EvidenceState.UNREADABLE)
            return Evidence(EvidenceState.READ, read_junit(file))
    except (OSError, ReportUnreadableError):
        return Evidence(EvidenceState.UNREADABLE)


def _tree_changed(order: _Order) -> bool:
    if order.revision == UNVERSIONED:
        return False
    tree = Path(order.tree)
    try:
        return worktree.head_revision(tree) != order.revision or bool(
            worktree.tracked_changes(tree)
        )
    except PreparationError:
        # A tree that cannot be looked at any more is not the one that was checked out.
        return True


def _detail(result: dict[str, str]) -> str | None:
    if result["spawn_detail"]:
        return result["spawn_detail"]
    if result["survivors"] != "0":
        return f"{result['survivors']} processes outlived the suite and were killed"
    return None


def _optional_int(text: str) -> int | None:
    return int(text) if text else None

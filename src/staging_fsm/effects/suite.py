"""The worker's side of a run: make ready, start the supervisor, wait, collect, clean up.

The supervisor (`shim.py`) outlives the worker, so everything that is needed to
judge a run stands in its control folder before it starts:

    order.json   what was ordered, by whom, and how things looked before
    command      the argument vector, its words separated by NUL
    lock         held by the supervisor for as long as it lives
    closed       written by a recovery that found no supervisor: none may start now
    shim, leader who they are
    group        the control group that holds the suite, if there is one
    output.log   what the suite printed
    tail         its end without secrets; written once the run has ended
    shown        sealed; the command without secrets, if there are any in it
    result       sealed; written when nothing of the run is alive any more
    tree         sealed; whether the tree moved, written before the checkout is removed
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import hmac
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

import attrs

from staging_fsm.core.errors import (
    PreparationError,
    ReportStaleError,
    ReportUnreadableError,
    in_words,
)
from staging_fsm.core.evidence import (
    NO_EVIDENCE_REQUIRED,
    Evidence,
    EvidenceState,
    RunWindow,
    read_junit,
)
from staging_fsm.core.masking import Masker
from staging_fsm.core.outcome import RunFacts, SpawnError, Stop, Supervision
from staging_fsm.core.plan import PRESETS, REPORT_DIR_PLACEHOLDER, UNVERSIONED, SuitePlan, Workspace
from staging_fsm.core.ports import RunCondition, RunOrder, RunReport
from staging_fsm.effects import limits, shim, worktree
from staging_fsm.effects.files import (
    StateDir,
    open_regular,
    sha256_of_file,
    sha256_of_text,
    write_durably,
    write_whole,
)
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
#: How much of the end of a run's output is kept without secrets.
KEPT_TAIL_BYTES: Final = 64 * 1024
_PAUSE_SECONDS: Final = 0.005
_SMALL_FILE_BYTES: Final = 64 * 1024
#: What a suite put in the place of its lock is held by nobody: a link, a folder, a socket.
_NO_LOCK: Final = frozenset({errno.ELOOP, errno.EISDIR, errno.ENXIO})
_NOBODYS_LOCK: Final = -1
#: Imported, not run as a script: so its byte code is cached, which saves half of its start.
SUPERVISOR_CODE: Final = (
    "import sys; sys.path.append(sys.argv[1]); import shim; shim.main(*sys.argv[2:])"
)
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
    #: By the wall clock, in seconds since the epoch.
    started_at: float
    timeout_seconds: float
    kill_grace_seconds: float
    #: How the tree differed from the commit, as `worktree.tracked_changes` says it.
    changes: str
    report: str | None
    #: What was there before the run, as `shim.mark_of` says it.
    report_before: str
    #: Names of variables that the suite was given.
    environment: tuple[str, ...]


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
        self._prune_at = -math.inf

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
        folder, reports = self._state.run(order.run_id), self._state.reports(order.run_id)
        for path in (folder, reports):
            path.mkdir(mode=0o700, parents=True)
        unversioned = order.revision == UNVERSIONED
        in_place = unversioned or order.suite.workspace is Workspace.IN_PLACE
        dirty_allowed = in_place and not unversioned and order.suite.allow_dirty
        tree = order.repository if in_place else self._state.worktree(order.run_id)
        report = _report_path(order.suite, reports)
        written = _Order(
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
        _write_order(folder, written)
        if not in_place:
            worktree.add_worktree(order.repository, order.revision, tree)
            # Attributes that the committed files contradict make even a fresh checkout differ.
            if changes := worktree.tracked_changes(tree, filtered=False):
                _write_order(folder, attrs.evolve(written, changes=changes))
        with _run_lock(folder) as lock, self._report_lock(report, reports) as others:
            if lock is None or os.path.lexists(folder / "closed"):
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
        locks = self._state.root / "locks"
        locks.mkdir(mode=0o700, exist_ok=True)
        path = locks / sha256_of_text(os.path.realpath(report))
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
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
        self._keep_command(order.run_id, suite)
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
        folder = self._state.run(run_id)
        try:
            order = _read_order(folder)
        except PreparationError:
            self.reap(run_id)
            raise
        has_ended = self._await_supervisor(folder, order.timeout_seconds, order.kill_grace_seconds)
        result = self._sealed(folder / "result")
        if result and not has_ended:
            result = {}
        if not result or int(result["processes_left"]) > 0 or not shim.IS_LINUX:
            # The supervisor is gone or could not finish its work: finish it from here.
            self.sweep(run_id)
        try:
            # Kept before the run is judged: an artifact that is written again is the same, though
            # a secret was changed meanwhile.
            self._keep_tail(run_id)
            return self._report(run_id, order, result)
        finally:
            self._remove_checkout(run_id, order)

    def _await_supervisor(self, folder: Path, timeout: float, grace: float) -> bool:
        """Wait for the supervisor's end; wake it when it is late, end it when it is hung.

        Returns False for one of our own that did not come to its end: whatever stands in
        its place, no result is its.
        """
        child, identity = _CHILDREN.get(str(folder), (None, None))
        if child is None:
            identity = _await_identity(folder)
        if identity is not None and not _ends(identity, timeout, grace):
            # Everything of the suite is below it for as long as it lives.
            _repeat(functools.partial(kill_descendants, identity))
            send_signal(identity, signal.SIGKILL)
            wait_for_end(identity, STOP_SECONDS)
        if child is None:
            return True
        _CHILDREN.pop(str(folder), None)
        try:
            # Not by poll: while another thread asks, it says that the process goes on.
            return child.wait(STOP_SECONDS) == 0
        except subprocess.TimeoutExpired:
            return False

    def _sealed(self, path: Path) -> dict[str, str] | None:
        """Return the facts in a sealed file; none of them where nobody sealed it for this run."""
        if not os.path.lexists(path):
            return None
        try:
            secret = self._state.secret()
        except (OSError, PreparationError):
            return {}
        raw = _read_small_file(path)
        text, _, tail = raw.rpartition(b"\n")[0].rpartition(b"\n")
        text += b"\n"
        expected = hashlib.blake2b(text, key=secret, digest_size=shim.SEAL_BYTES).hexdigest()
        if not hmac.compare_digest(expected.encode(), tail):
            return {}
        facts = dict(line.split("=", 1) for line in text.decode().split("\n")[:-1])
        return facts if facts["run"] == path.parent.name else {}

    def _tree_changed(self, folder: Path, order: _Order) -> bool:
        """Say whether the tree moved, as it was first seen: of a checkout nothing is left later."""
        path = folder / "tree"
        seen = (self._sealed(path) or {}).get("tree_changed")
        if seen is None:
            seen = str(int(_tree_changed(order)))
            text = shim.lines_of(run=folder.name, tree_changed=seen)
            # Not synced: after a power cut the run is at worst tried again. Nor on a full disk.
            with contextlib.suppress(OSError):
                write_whole(path, shim.sealed(self._state.secret(), text))
        return seen == "1"

    def _report(self, run_id: str, order: _Order, result: dict[str, str] | None) -> RunReport:
        folder = self._state.run(run_id)
        log = folder / "output.log"
        if not result or result.get("foreign_result") == "1":
            supervision = Supervision.LOST if result is None else Supervision.FORGED
            words = _read_tail(folder / "shim.stderr", 500).decode("utf-8", "replace").strip()
            name = str(log) if log.is_file() else None
            return RunReport(RunFacts(supervision=supervision), detail=words or None, log=name)
        # Only the file that the supervisor wrote: to read another could take for ever.
        sha256 = sha256_of_file(log) if _log_identity(log) == result["log_file"] else None
        facts = RunFacts(
            exit_code=_optional_int(result["exit_code"]),
            signal=_optional_int(result["signal"]),
            spawn_error=SpawnError(result["spawn_error"]) if result["spawn_error"] else None,
            stopped_by=Stop(result["stopped_by"]) if result["stopped_by"] else None,
            out_of_memory=result["out_of_memory"] == "1",
            tree_changed=self._tree_changed(folder, order),
            log_complete=result["log_complete"] == "1" and sha256 is not None,
            processes_left=int(result["processes_left"]),
            supervision=Supervision.SOUND,
            evidence=_evidence(order, result.get("report", "")),
        )
        return RunReport(
            facts,
            duration_seconds=float(result["duration_seconds"]),
            detail=_detail(result),
            log=str(log) if sha256 else None,
            log_sha256=sha256,
            log_bytes=int(result["log_bytes"]),
            log_dropped_bytes=int(result["log_dropped_bytes"]),
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
        with _run_lock(folder) as lock:
            if lock is None:
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
        condition = self.condition(run_id)
        if condition is RunCondition.FOREIGN:
            return
        try:
            order = _read_order(folder)
        except PreparationError:
            order = None
        if condition is RunCondition.LIVE and (identity := _await_identity(folder)) is not None:
            send_signal(identity, signal.SIGTERM)
        # One that found the run closed before it began is waited for too, if it is our child.
        if condition is RunCondition.LIVE or str(folder) in _CHILDREN:
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
        folder = self._state.run(run_id)
        _kill_group(folder)
        leader = _identity_in(folder / "leader")
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
        """Return the last `size` bytes of a run's output, without secrets; also while it runs.

        Of a run that has ended no more than KEPT_TAIL_BYTES, always the same.
        """
        kept = self._state.run(run_id) / "tail"
        if os.path.lexists(kept):
            return _read_tail(kept, size)
        return self._masked_tail(run_id, size)

    def _masked_tail(self, run_id: str, size: int) -> bytes:
        folder = self._state.run(run_id)
        masker = self.masker(run_id)
        parts = (folder / name for name in ("output.log", "output.tail.old", "output.tail"))
        # A secret that begins before the tail is masked as a whole, and only then cut off.
        wanted = size + masker.reach
        output = b"".join(_read_tail(part, wanted) for part in parts)[-wanted:]
        return masker.mask(output)[-size:]

    def masker(self, run_id: str) -> Masker:
        """Return what masks the secrets of this worker, and those that the suite was given."""
        folder = self._state.run(run_id)
        try:
            names = _read_order(folder).environment
        except PreparationError:
            names = ()
        return self._masker(names, _read_command(folder))

    def _masker(self, names: tuple[str, ...], command: tuple[str, ...]) -> Masker:
        return Masker.of(self._variables, set(names) - set(BASE_ENVIRONMENT), command)

    def shown_command(self, run_id: str, suite: SuitePlan) -> tuple[str, ...]:
        """Return the words of a run's command without secrets, always the same.

        They are masked where nothing is left of the run, too, or nothing ever was here.
        """
        kept = self._sealed(self._state.run(run_id) / "shown")
        if kept:
            return tuple(json.loads(kept["command"]))
        return self._masker(suite.environment, suite.command).mask_words(suite.command)

    def _keep_command(self, run_id: str, suite: SuitePlan) -> None:
        shown = self.shown_command(run_id, suite)
        if shown != suite.command:
            # A secret that is changed meanwhile is none to whoever writes the artifact again.
            text = shim.lines_of(run=run_id, command=json.dumps(shown))
            path = self._state.run(run_id) / "shown"
            write_whole(path, shim.sealed(self._state.secret(), text))

    def _keep_tail(self, run_id: str) -> None:
        folder = self._state.run(run_id)
        with contextlib.suppress(OSError):
            # Not synced: after a power cut it is made again, as good as ever.
            write_whole(folder / "tail", self._masked_tail(run_id, KEPT_TAIL_BYTES))

    def _remove_checkout(self, run_id: str, order: _Order | None) -> None:
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


@contextlib.contextmanager
def _run_lock(folder: Path) -> Iterator[int | None]:
    """Yield the run's lock, or None while its supervisor lives.

    The lock is of the open file, not of the process: a supervisor that inherits it
    has it for as long as it lives, whatever becomes of whoever took it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(folder / "lock", flags, 0o600)
    except OSError as error:
        if error.errno not in _NO_LOCK:
            raise
        yield _NOBODYS_LOCK
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield None
    else:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_order(folder: Path, order: _Order) -> None:
    # Not synced: after a power cut nothing of the run is left that it could tell of.
    write_whole(folder / "order.json", json.dumps(attrs.asdict(order)).encode())


def _read_order(folder: Path) -> _Order:
    try:
        facts = json.loads(_read_small_file(folder / "order.json"))
        facts["environment"] = tuple(facts["environment"])
        return _Order(**facts)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        message = f"the order of run {folder.name} cannot be read: {error}"
        raise PreparationError(message) from error


def _read_command(folder: Path) -> tuple[str, ...]:
    return tuple(map(os.fsdecode, _read_small_file(folder / "command").split(b"\0")))


def _identity_in(path: Path) -> ProcessIdentity | None:
    try:
        facts = dict(line.split("=", 1) for line in _read_small_file(path).decode().splitlines())
        return ProcessIdentity(this_scope(), int(facts["pid"]), int(facts["start"]))
    except (ValueError, KeyError):
        return None


def _kill_group(folder: Path) -> None:
    """Kill and remove the control group that a supervisor which is gone has left."""
    group = Path(os.fsdecode(_read_small_file(folder / "group")))
    # The suite may have written that file: only a group with the name of its own run counts.
    if group.name == limits.GROUP_PREFIX + folder.name:
        limits.kill_group(str(group))
        limits.remove_group(str(group))


def _await_identity(folder: Path) -> ProcessIdentity | None:
    """Return who supervises the run, waiting a moment for one that was just started."""
    deadline = time.monotonic() + SUPERVISOR_START_SECONDS
    while not os.path.lexists(folder / "shim") and time.monotonic() < deadline:
        with _run_lock(folder) as lock:
            if lock is not None:
                break
        time.sleep(_PAUSE_SECONDS)
    return _identity_in(folder / "shim")


def _read_small_file(path: Path) -> bytes:
    file = open_regular(path)
    if file is None:
        return b""
    with file:
        return file.read(_SMALL_FILE_BYTES)


def _read_tail(path: Path, size: int) -> bytes:
    file = open_regular(path)
    if file is None:
        return b""
    with file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read(size)


def _log_identity(path: Path) -> str | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return f"{found.st_ino}:{found.st_size}"


def _report_path(suite: SuitePlan, reports: Path) -> Path | None:
    return None if suite.report is None else reports / suite.report


def _evidence(order: _Order, left: str) -> Evidence:
    """Return what the report shows, if it is the one that was there when the suite had ended."""
    if order.report is None:
        return NO_EVIDENCE_REQUIRED
    if not left:
        return Evidence(EvidenceState.MISSING)
    path = Path(order.report)
    if left == order.report_before or left != shim.mark_of(str(path)):
        return Evidence(EvidenceState.STALE)
    file = open_regular(path)
    if file is None:
        return Evidence(EvidenceState.UNREADABLE)
    with file:
        try:
            return Evidence(EvidenceState.READ, read_junit(file, _window(order)))
        except ReportStaleError:
            state = EvidenceState.STALE
        except (OSError, ReportUnreadableError):
            state = EvidenceState.UNREADABLE
    return Evidence(state)


def _window(order: _Order) -> RunWindow:
    begin, now = datetime.fromtimestamp(order.started_at, UTC), datetime.now(UTC)
    return RunWindow(begin, now, now.astimezone().tzinfo or UTC)


def _tree_changed(order: _Order) -> bool:
    if order.revision == UNVERSIONED:
        return False
    tree = Path(order.tree)
    try:
        moved = worktree.head_revision(tree) != order.revision
        whole = order.workspace == Workspace.WORKTREE
        return moved or (
            worktree.tracked_changes(tree, filtered=False, whole=whole) != order.changes
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

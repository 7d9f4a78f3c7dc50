"""Attempts whose worker is gone: adopt the run, or reap it and count it as lost.

Liveness is that of a process identity (boot, pid, start time), never of a pid
alone and never a lease: a worker that is only slow is not gone. What cannot be
judged from this machine is left alone. Two workers that find the same attempt
are told apart by the compare-and-swap of the row.
"""

import contextlib
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from staging_fsm.core.errors import SnapshotRefusedError, StaleSnapshotError, in_words
from staging_fsm.core.jobs import QUEUED, RUNNING, JobRow
from staging_fsm.core.outcome import Reason
from staging_fsm.core.ports import AlertKind, RunCondition
from staging_fsm.core.snapshot import ADOPTIONS_MAX, Snapshot
from staging_fsm.core.spec import Event, State
from staging_fsm.core.times import parse_time
from staging_fsm.drive.engine import Engine, Step, run_id_of
from staging_fsm.effects.journal import log_error
from staging_fsm.effects.processes import ProcessIdentity, is_alive
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.effects.worker_lock import has_ended

if TYPE_CHECKING:
    from staging_fsm.drive.runner import StagingRunner

#: So much longer than its run may take nobody is told of an attempt that has not moved.
SILENCE_SECONDS: Final = 60.0
#: Says whether the worker of a snapshot lives; None where this machine cannot know.
Liveness = Callable[[str], bool | None]
#: Called with a row that could not be taken up and why; with None where that holds for all.
Failed = Callable[[Any, Exception], None]


def worker_is_alive(worker: str, state: StateDir | None = None) -> bool | None:
    """Say whether the process named by `ProcessIdentity` text lives; None if unknown.

    Of one in another container only its end can be known, by the lock below `state`.
    """
    try:
        identity = ProcessIdentity.parse(worker)
    except ValueError:
        return None
    alive = is_alive(identity)
    return False if alive is None and state and has_ended(state, identity) else alive


def is_abandoned(runner: "StagingRunner", snapshot: Snapshot) -> bool:
    """Say whether nobody works on an attempt that this thread holds."""
    # Our own name, and not in another thread's hands: an earlier drive of ours failed.
    return snapshot.worker == runner.engine.worker or runner.liveness(snapshot.worker) is False


def unfinished(runner: "StagingRunner", failed: Failed) -> list[JobRow]:
    """Return every row that may be abandoned; none, and an alert, where nobody can know."""
    try:
        return [row for row in runner.engine.rows.unfinished() if _is_the_runners(runner, row)]
    except Exception as error:  # noqa: BLE001  # a store that is away comes back
        text = f"nothing could be recovered: {in_words(error)}"
        runner.engine.alert(AlertKind.INTERNAL_ERROR, "-", text)
        failed(None, error)
        return []


def _is_the_runners(runner: "StagingRunner", row: JobRow) -> bool:
    """Say whether a row is ours to recover: to hold any other would keep its launch away."""
    try:
        return _attempt_of(runner, row) is not None
    except SnapshotRefusedError:
        return not row.is_without_attempt  # somebody has to be told


def _attempt_of(runner: "StagingRunner", row: JobRow) -> Snapshot | None:
    """Return a row's attempt if it is the runner's; raises SnapshotRefusedError."""
    if row.stage != runner.stage:
        return None
    snapshot = row.snapshot()
    return None if snapshot is None or snapshot.state is State.LLM_FALLBACK else snapshot


def recover(runner: "StagingRunner", job_id: Any, failed: Failed) -> bool:
    """Take up an attempt if its worker is gone, and say whether it was touched.

    It is driven to a terminal state or its next deferral. A row that cannot be
    driven now is left as it is, with an alert, and `failed` is told of it. Never raises.
    """
    try:
        return _recover(runner, runner.engine.rows.load(job_id))
    except StaleSnapshotError as error:
        tell_if_lost(runner, error)
    except SnapshotRefusedError as error:
        runner.engine.alert(AlertKind.ROW_REFUSED, job_id, str(error))
        failed(job_id, error)
    except Exception as error:  # noqa: BLE001  # one broken row must not keep the others waiting
        text = f"recovery failed: {in_words(error)}"
        runner.engine.alert(AlertKind.INTERNAL_ERROR, job_id, text)
        failed(job_id, error)
    return False


def tell_if_lost(runner: "StagingRunner", error: StaleSnapshotError) -> None:
    """Alert somebody of a job in work whose attempt is gone from its row. Never raises.

    Its host, or a person, wrote over it while it was under way: no recovery finds it again.
    """
    try:
        row = runner.engine.rows.load(error.job_id)
    except Exception as failure:  # noqa: BLE001  # without its row a job is in nobody's hands
        log_error("the row could not be read", job=str(error.job_id), error=in_words(failure))
        return
    if row.is_without_attempt and row.status == RUNNING:
        text = (
            f"attempt {error.attempt_id} is gone from the job's metadata: somebody wrote over the"
            " key staging_runner, or removed it, while a run was under way. If nobody has the job"
            " in work by now, queue it again"
        )
        # Queued again as it says, the job may lose the next one too: that is another alert.
        runner.engine.alert(AlertKind.ROW_REFUSED, row.id, text, error.attempt_id)


def _recover(runner: "StagingRunner", row: JobRow) -> bool:
    snapshot = _attempt_of(runner, row)
    if snapshot is None:
        return False
    if snapshot.state is State.DEFERRED and row.status == QUEUED:
        # Nothing is owed to a job that waits, unless the clock was set back meanwhile.
        if row.not_before is None or row.not_before <= runner.engine.latest_due(snapshot):
            return False
    elif snapshot.state is State.DEFERRED and runner.engine.is_claimed_again(row, snapshot):
        # Its claimant may be about to launch it, and which process that is only its host knows.
        return False
    elif not is_abandoned(runner, snapshot):
        if runner.liveness(snapshot.worker) is None:
            _tell_of_silence(runner, row, snapshot, f"worker {snapshot.worker}")
        return False
    moved = take_up(runner.engine, row, snapshot)
    is_foreign = moved is snapshot and snapshot.state is State.RUNNING
    if is_foreign:
        # Nobody may be left to wait for it where it is.
        supervisor = f"the supervisor that worker {snapshot.worker} left in another container"
        _tell_of_silence(runner, row, snapshot, supervisor)
    return not is_foreign


def _tell_of_silence(runner: "StagingRunner", row: JobRow, snapshot: Snapshot, holder: str) -> None:
    """Alert somebody of an attempt that for too long nobody has moved of whom anything is known.

    Its `holder`, a worker or what it left, may live on a machine or in a container that cannot
    be looked at from here.
    """
    if snapshot.is_terminal:
        return
    suite, since = snapshot.bound_plan.suite, snapshot.history[-1].time
    longest = suite.timeout_seconds + suite.kill_grace_seconds + SILENCE_SECONDS
    if runner.engine.clock.now() - parse_time(since) <= timedelta(seconds=longest):
        return
    text = (
        f"{snapshot.state} since {since}, longer than a run may take, in the hands of {holder},"
        " of which nothing can be known from here: look at its machine or container. If that is"
        " gone for good, remove the key staging_runner from the job's metadata, and queue the job"
        " again"
    )
    runner.engine.alert(AlertKind.INTERNAL_ERROR, row.id, text, snapshot.attempt_id)


def put_back(runner: "StagingRunner", job_id: Any) -> None:
    """Queue a deferred attempt's job again whose claimant does not go on with it.

    He claimed what this process had just queued, and still has in hand, or his launch was
    held. To recovery it looks as if he were about to launch it. A job that is in work may
    be queued.
    """
    row = runner.engine.rows.load(job_id)
    snapshot = row.snapshot()
    if snapshot and snapshot.state is State.DEFERRED and row.status != QUEUED:
        with contextlib.suppress(StaleSnapshotError):
            runner.engine.drive(row, snapshot)


def take_up(engine: Engine, row: JobRow, snapshot: Snapshot) -> Snapshot:
    """Drive on an attempt whose worker is known to be gone.

    A RUNNING attempt's run is adopted while its supervisor lives or has left a
    result, at no cost to the budget. Otherwise what is left of it is reaped, and
    only then it counts as lost.
    """
    if snapshot.state is not State.RUNNING:
        return engine.drive(row, snapshot)
    condition = engine.suites.condition(run_id_of(snapshot))
    if condition is RunCondition.FOREIGN:
        return snapshot
    adopted = sum(move.row.event is Event.RUN_ADOPTED for move in snapshot.history)
    if condition is not RunCondition.LOST and adopted < ADOPTIONS_MAX:
        step = Step(Event.RUN_ADOPTED, f"run {snapshot.last_run.number} is {condition}")
    else:
        gone = f"worker {snapshot.worker} is gone"
        step = engine.lose(snapshot, Event.WORKER_LOST, Reason.WORKER_LOST, gone)
    return engine.drive(row, engine.move(row, snapshot, step))

"""The worker's side of a run: make ready, start the supervisor, wait, collect, clean up.

What worker and supervisor leave for each other stands in the control folder of the run
(`run_folder.py`), what is judged is collected by `run_report.py`, and what may be shown
of it is said by `run_output.py`.
"""

import functools
import math
import os
import subprocess
import time
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from staging_fsm.core.errors import PreparationError, in_words
from staging_fsm.core.plan import (
    RUN_VARIABLE,
    UNVERSIONED,
    SuitePlan,
    Workspace,
    environment_of,
)
from staging_fsm.core.ports import RunCondition, RunOrder, RunReport
from staging_fsm.effects import worker_lock, worktree
from staging_fsm.effects.files import DIRECTORY_MODE
from staging_fsm.effects.journal import log_error
from staging_fsm.effects.processes import (
    ProcessIdentity,
    is_alive,
    is_of_this_boot,
    kill_marked,
    repeat_kill,
    this_scope,
)
from staging_fsm.effects.run_folder import Order, RunFolder
from staging_fsm.effects.run_output import RunOutput
from staging_fsm.effects.run_report import has_moved, report_of
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.effects.supervised import (
    STOP_SECONDS,
    await_supervisor,
    is_child,
    request_stop,
    start_supervisor,
)
from staging_fsm.effects.supervisor.result import mark_of
from staging_fsm.effects.supervisor.system import IS_LINUX
from staging_fsm.effects.uncached_go import uncached_go

#: How long after a look at all run folders the next one comes at the earliest.
PRUNE_SECONDS: Final = 600.0


class LocalSuites:
    """Runs of suites on this machine, below one state folder."""

    def __init__(
        self,
        state: StateDir,
        variables: Mapping[str, str] | None = None,
        inherited: Sequence[int] = (),
        worker: worker_lock.WorkerLock | None = None,
    ) -> None:
        """Keep runs below `state`; `variables` is the environment suites may inherit from.

        `inherited` are descriptors of connections that a supervisor, and nobody below
        it, holds for as long as it lives: a lock that is bound to one outlives the
        worker. Where one of them is closed by its other side, the suite is killed.
        The lock of our `worker` a supervisor holds as well.
        """
        self._state, self._inherited, self._worker = state, inherited, worker
        self._variables = os.environ if variables is None else variables
        self._output = RunOutput(state, self._variables)
        self._ordered: dict[str, Order] = {}
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
        folder, suite = self._folder(order.run_id), order.suite
        for path in (folder.path, folder.reports):
            path.mkdir(mode=DIRECTORY_MODE, parents=True)
        unversioned = order.revision == UNVERSIONED
        in_place = unversioned or suite.workspace is Workspace.IN_PLACE
        bound_in_place = in_place and not unversioned
        tree = order.repository if in_place else self._state.worktree(order.run_id)
        report = suite.report_in(folder.reports)
        written = Order(
            scope=this_scope(),
            repository=str(order.repository),
            tree=str(tree),
            workspace=str(Workspace.IN_PLACE if in_place else Workspace.WORKTREE),
            revision=order.revision,
            started_at=time.time(),
            timeout_seconds=suite.timeout_seconds,
            kill_grace_seconds=suite.kill_grace_seconds,
            # In this order: whoever changes a file between the two is found out by one of them.
            changes=_as_it_is(tree) if bound_in_place else "",
            # No filter is asked: who has run here before may have one that hides what he changed.
            uncommitted=bound_in_place and worktree.tracked_changes(tree, filtered=False) != "",
            report=None if report is None else str(report),
            report_before="" if report is None else mark_of(str(report)),
            environment=suite.environment,
            last_of_head=worktree.last_of_head(tree) if bound_in_place else None,
            report_within=None if report is None else folder.report_within(report),
        )
        folder.write_order(written)
        dirty = written.uncommitted and not suite.allow_dirty
        if in_place and (has_moved(written) or dirty):
            is_there = worktree.head_revision(tree) == order.revision
            message = f"{tree} is not as it was bound: it has moved from {order.revision}"
            if is_there:
                message = (
                    f"{tree} is not as it was bound: tracked files differ from {order.revision}."
                    " `git status` there says which, and has git look again at any that a filter"
                    " such as Git LFS is for"
                )
            raise PreparationError(message)
        if not in_place:
            worktree.add_worktree(order.repository, order.revision, tree, order.run_id)
            written = attrs.evolve(
                written,
                # Attributes that the committed files contradict make even a fresh checkout differ.
                changes=_as_it_is(tree),
                last_of_head=worktree.last_of_head(tree),
            )
            folder.write_order(written)
        with folder.lock() as lock, folder.report_lock(report) as others:
            if lock is None or folder.holds("closed"):
                message = f"run {order.run_id} is taken or closed"
                raise PreparationError(message)
            self._output.keep_command(order.run_id, suite)
            environment = environment_of(suite, self._variables, order.run_id, folder.reports)
            environment |= uncached_go(environment, folder.go_settings)
            locks = (lock, *others, *(self._worker.descriptors if self._worker else ()))
            start_supervisor(folder, suite, tree, report, environment, locks, self._inherited)
        self._ordered[order.run_id] = written

    def await_report(self, run_id: str) -> RunReport:
        """Wait until nothing of the run is alive, remove its checkout, and report."""
        folder = self._folder(run_id)
        try:
            # What was ordered from here is not read back from where its suite can write.
            order = self._ordered.pop(run_id, None) or folder.order()
        except PreparationError:
            self.reap(run_id)
            raise
        has_ended = await_supervisor(folder, order.timeout_seconds, order.kill_grace_seconds)
        result = folder.sealed("result")
        if result and not has_ended:
            result = {}
        if not result or int(result["processes_left"]) > 0 or not IS_LINUX:
            # The supervisor is gone or could not finish its work: finish it from here.
            self.sweep(run_id)
        try:
            # Before the run is judged: from then on its artifact may be written.
            self._output.keep_tail(run_id, order.environment)
            shown = functools.partial(self._output.line, run_id, order.environment)
            return report_of(folder, order, result, shown)
        finally:
            self._remove_checkout(run_id, order)

    def condition(self, run_id: str) -> RunCondition:
        """Say what there is of a run. Once it said LOST, the run can no longer start."""
        folder = self._folder(run_id)
        order = folder.order_if_any()
        elsewhere = order is not None and is_alive(ProcessIdentity(order.scope, 0, 0)) is None
        if order is not None and elsewhere and not is_of_this_boot(order.scope):
            return RunCondition.FOREIGN
        with folder.lock() as lock:
            if lock is None:
                # A supervisor in another container can be neither waited for nor stopped.
                return RunCondition.FOREIGN if elsewhere else RunCondition.LIVE
            if folder.holds("result"):
                return RunCondition.FINISHED
            # First closed, then swept: a supervisor that was paused before its lock
            # must not start the suite later.
            folder.close()
            return RunCondition.LOST

    def reap(self, run_id: str) -> None:
        """Stop whatever is left of a run and remove its checkout. Safe to repeat."""
        self._ordered.pop(run_id, None)
        folder = self._folder(run_id)
        condition = self.condition(run_id)
        if condition is RunCondition.FOREIGN:
            return
        order = folder.order_if_any()
        if condition is RunCondition.LIVE:
            request_stop(folder)
        # One that found the run closed before it began is waited for too, if it is our child.
        if condition is RunCondition.LIVE or is_child(folder):
            grace = STOP_SECONDS if order is None else order.kill_grace_seconds
            await_supervisor(folder, 0.0, grace)
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
        return repeat_kill(functools.partial(kill_marked, RUN_VARIABLE, run_id, leader))

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
        worker_lock.prune(self._state, before)
        old = [run for run in self._state.run_ids() if self._state.is_unchanged_since(run, before)]
        kept = unfinished() if old else ()
        for run_id in old:
            try:
                if run_id.rpartition(".")[0] not in kept:
                    self._remove_old(run_id)
            except (OSError, PreparationError) as error:
                # One that cannot be looked at keeps no other.
                log_error("an old run was not removed", run=run_id, error=in_words(error))

    def _remove_old(self, run_id: str) -> None:
        if self.condition(run_id) in (RunCondition.LIVE, RunCondition.FOREIGN):
            return
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
        if os.path.lexists(checkout):
            # No verdict waits for it; but nobody else looks.
            log_error("a checkout could not be removed", run=run_id, path=str(checkout))


def _as_it_is(tree: Path) -> str:
    """Return how a tree differs from its commit, for a look at it once the suite has run."""
    return worktree.tracked_changes(tree, filtered=False, as_it_is=True)

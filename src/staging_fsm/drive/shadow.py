"""Shadow mode: the runner beside the LLM agent, which it cannot help, hinder or replace.

The agent is the producer. When its launch has ended, and nothing waits for it any
more, the runner makes an attempt of its own on the commit that was checked out
when the agent was launched: by the same engine, judge, budget and artifact, but
over the shadow's records for rows, in folders of the shadow, and with a gate that
only reads. There is no way from here to a host's row, work item or artifact.
"""

import secrets
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs

from staging_fsm.core.config import RunnerConfig, load_config, variable_name
from staging_fsm.core.errors import ConfigInvalidError, RunRefusedError
from staging_fsm.core.jobs import QUEUED, JobRow, Place
from staging_fsm.core.plan import UNVERSIONED, SuitePlan, Workspace
from staging_fsm.core.ports import AlertKind, Clock
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.suites import SuitesConfig
from staging_fsm.core.times import parse_time
from staging_fsm.drive.intercept import StagingIntercept
from staging_fsm.drive.planning import read_suites
from staging_fsm.drive.rulings import Ruling
from staging_fsm.effects.clock import SystemClock
from staging_fsm.effects.journal import log_error
from staging_fsm.effects.shadow import Launch, Record, ShadowRecords
from staging_fsm.effects.state_dir import StateDir, state_dir
from staging_fsm.effects.worktree import revision_at
from staging_fsm.host.contract.gate import check_staging_status

#: How long a launch may have to wait until it is seen.
PAUSE_SECONDS: Final = 1.0


class _Nobody:
    """Alerts nobody: what the shadow found stands in its report."""

    def send(
        self, kind: AlertKind, job_id: object, text: str, attempt_id: str | None = None
    ) -> None:
        """Do nothing."""

    def deliver(self) -> None:
        """Do nothing."""


@attrs.define
class Shadow:
    """The runner's side of shadow mode: it works through the launches that were noted."""

    variables: Mapping[str, str]
    clock: Clock = attrs.field(factory=SystemClock)
    suites: Callable[[RunnerConfig], SuitesConfig] = read_suites
    stopping: bool = False

    @property
    def records(self) -> ShadowRecords:
        """Return the records of this machine."""
        return ShadowRecords(StateDir(state_dir(self.variables)).shadow)

    def is_on(self) -> bool:
        """Say whether shadow mode is on: the kill switch wins over it, and an error too."""
        try:
            config = load_config(self.variables)
        except ConfigInvalidError as error:
            log_error("the shadow does nothing", error=str(error))
            return False
        return config.enabled and config.shadow

    def stop(self) -> None:
        """Let `run_forever` end after the attempt in hand; may be called by a signal handler."""
        self.stopping = True
        self.clock.wake()

    def run_forever(self) -> None:
        """Make attempts as they become due, until `stop` is called."""
        while not self.stopping:
            self.run_once()
            self.clock.wait(PAUSE_SECONDS)

    def run_once(self) -> int:
        """Make every attempt that is due, one after the other; return how many it drove on."""
        if not self.is_on():
            return 0
        # What an earlier process of the shadow left behind, first: it is bound already.
        taken_up = len(self._intercept().recover())
        driven = taken_up + sum(self._attempt(record) for record in self.records.records())
        self.records.prune(load_config(self.variables).run_retention_days)
        return driven

    def _attempt(self, record: Record) -> bool:
        row, now = record.row, self.clock.now()
        is_due = row.not_before is None or row.not_before <= now
        if record.agent is None or row.status != QUEUED or not is_due or not self.is_on():
            return False
        bind, moves = partial(_bound_beside, record.launch), list[Snapshot]()
        beside = self._intercept(bind=bind, watch=lambda _row, attempt: moves.append(attempt))
        # It is taken, too, where another shadow was first: then nothing was moved from here.
        return beside.launch(row.id).ruling is Ruling.TAKEN and bool(moves)

    def _intercept(self, **replaced: Any) -> StagingIntercept:
        """Return an intercept over the shadow's own world, and nothing else."""
        records, folder = self.records, StateDir(state_dir(self.variables)).shadow

        def place(row: JobRow) -> Place:
            launch = records.record(row.id).launch
            return Place(Path(launch.repository), records.folder(row.id))

        def gate(row: JobRow, tx: object) -> bool:
            del tx  # it moves nothing
            return check_staging_status(records.folder(row.id))

        own = {
            variable_name("shadow"): "0",
            variable_name("state_dir"): str(folder),
        }
        intercept = StagingIntercept.for_host(
            records,
            gate,
            place,
            {**self.variables, **own},
            clock=self.clock,
            suites=self.suites,
            # Where a log line tells of an attempt, it must not be taken for one in earnest.
            new_id=lambda: f"shadow-{secrets.token_hex(6)}",
            shadow=None,
            **replaced,
        )
        intercept.runner.engine.alerts = _Nobody()
        return intercept


def _bound_beside(launch: Launch, repository: Path, suite: SuitePlan) -> str:
    """Return the commit the agent was launched on; raises RunRefusedError without a worktree."""
    if not repository.is_dir():
        message = (
            f"{repository} is gone since the agent was launched there, or was moved: its commit"
            " cannot be checked out"
        )
        raise RunRefusedError(message)
    # By its time alone for want of a note: a commit may be dated as its author likes.
    revision = revision_at(repository, parse_time(launch.launched_at))
    if revision != UNVERSIONED and launch.revision is not None:
        revision = launch.revision
    if suite.workspace is Workspace.IN_PLACE or revision == UNVERSIONED:
        message = (
            f"a run in {repository} itself would be in the agent's way:"
            " in shadow mode a suite runs in a worktree of its own, or not at all"
        )
        raise RunRefusedError(message)
    return revision

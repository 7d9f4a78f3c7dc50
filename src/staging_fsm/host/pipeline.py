"""What happens when a stage's producer has ended: gate, stage move, next job.

The caller does not say who the producer was. An LLM agent that ended and any
other producer of the same artifact are the same thing here.
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol

import attrs

from staging_fsm.core.jobs import STAGE, JobRow, Place
from staging_fsm.host.contract.gate import check_staging_status
from staging_fsm.host.contract.stages import STAGE_AGENTS, STAGE_TRANSITIONS, GateOutcome
from staging_fsm.host.store import HostStore

WORK_ITEMS_DIR: Final = Path("docs") / "work-items"
#: Stages whose gate reads an artifact. Every other stage passes on the agent's exit code.
ARTIFACT_GATES: Final[dict[str, Callable[[Path], bool]]] = {STAGE: check_staging_status}


@attrs.frozen
class GateResult:
    """What a gate decided and where it sent the work item."""

    opened: bool
    next_stage: str
    next_job: int | None
    blocked_reason: str | None


class EndedJob(Protocol):
    """What a gate must know of a job whose producer has ended."""

    @property
    def id(self) -> Any:
        """The key of the row."""

    @property
    def repo(self) -> str:
        """The repository."""

    @property
    def work_item(self) -> str:
        """The work item."""

    @property
    def stage(self) -> str:
        """The stage whose gate it is."""


class JobAlreadyEndedError(RuntimeError):
    """The job is not running: its gate was initiated before, or a person ended it."""


def work_item_dir(repository: Path, work_item: str) -> Path:
    """Return the folder of a work item's artifacts inside its repository."""
    return repository / WORK_ITEMS_DIR / work_item


def place_of(store: HostStore, row: JobRow) -> Place:
    """Return where a job's repository is, and where its gate looks. Raises LookupError."""
    repository = store.repository_path(row.repo)
    return Place(repository, work_item_dir(repository, row.work_item))


def initiate_gate(
    store: HostStore, tx: Any, job: EndedJob, exit_code: int, folder: Path, now: datetime
) -> GateResult:
    """Ask the gate of `job`'s stage and move the work item, all within `tx`.

    `exit_code` is the producer's, and only counts for stages without an artifact.
    A failure costs one developer retry; with none left the work item is blocked
    for a person. Raises JobAlreadyEndedError if this job has ended, by its gate or
    a person: that check is also the write that makes a second caller wait.
    """
    if not store.finish_job(tx, job.id, now):
        message = (
            f"job {job.id} is not running: its gate was initiated before, or a person ended it"
        )
        raise JobAlreadyEndedError(message)
    gate = ARTIFACT_GATES.get(job.stage)
    opened = gate(folder) if gate else exit_code == 0
    item = store.work_item(tx, job.repo, job.work_item)
    outcome: GateOutcome = "success" if opened else "failure"
    next_stage = STAGE_TRANSITIONS[job.stage, outcome]
    retries = item.developer_retries - (0 if opened else 1)
    blocked = None
    if retries < 0:
        blocked = f"no developer retry left after the {job.stage} gate of job {job.id}"
    moved = attrs.evolve(
        item, stage=next_stage, developer_retries=max(retries, 0), blocked_reason=blocked
    )
    store.move_work_item(tx, moved, now)
    next_job = None
    if blocked is None and next_stage in STAGE_AGENTS:
        next_job = store.enqueue(tx, moved, STAGE_AGENTS[next_stage], now)
    return GateResult(opened, next_stage, next_job, blocked)

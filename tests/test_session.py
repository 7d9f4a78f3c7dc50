"""The command line's own orchestrator: its database, and the drive of one job to its end."""

from pathlib import Path

import attrs
import pytest

from crashing_worker import suite, variables
from staging_fsm.core.jobs import JobRow
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import State
from staging_fsm.effects.processes import ProcessIdentity, this_process
from staging_fsm.faces.session import (
    AttemptDriver,
    Session,
    one_suite,
    open_session,
    staging_job,
)

DEAD = attrs.evolve(this_process(), start=this_process().start + 1)
ELSEWHERE = ProcessIdentity("elsewhere:boot:namespace", 1, 1)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Return a session of the command line over a database of its own."""
    return open_session(None, variables(str(tmp_path / "state")))


@pytest.mark.parametrize(
    ("claimant", "waits"),
    [(str(DEAD), False), (str(ELSEWHERE), True), ("w", True), ("", True)],
    ids=["dead", "elsewhere", "unreadable", "nobody"],
)
def test_claimed_job_is_taken_from_a_dead_worker_only(
    session: Session, repository: Path, claimant: str, *, waits: bool
) -> None:
    """A claimed job without an attempt is waited for, unless its worker is known to be dead."""
    job_id = staging_job(session, session.store.register(repository), "WI-1")
    session.store.claim_next(session.clock.now(), claimant, job_id)
    staging = session.staging(suites=one_suite(suite(["true"])))
    held: list[str] = []

    def give_back(_row: JobRow, snapshot: Snapshot | None) -> None:
        """Have the claimant give the job back where it still has it."""
        job = session.store.job(job_id)
        if snapshot is None and job.status == "running":
            held.append(job.claimed_by or "")
            session.store.requeue_abandoned(job, session.clock.now())

    decision = AttemptDriver(session, staging, job_id, give_back).drive()
    ended = session.rows.load(job_id).snapshot()

    assert decision is None
    assert ended is not None
    assert (ended.state, held) == (State.ADVANCED, [claimant] * waits)

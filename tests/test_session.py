"""The command line's own orchestrator: its database, and the drive of one job to its end."""

import functools
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest

from crashing_worker import TOOL_EXIT_CODE, suite, variables
from staging_fsm.core.errors import RefusedError
from staging_fsm.core.jobs import QUEUED, JobRow
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
from staging_fsm.host.store import SqlHostStore

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


def test_attempt_that_another_began_and_put_off_is_not_taken_for_ours(
    session: Session, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is overtaken by a whole run, up to its deferral, looks at whose it is before the next."""
    job_id = staging_job(session, session.store.register(repository), "WI-1")
    claim_next = SqlHostStore.claim_next
    theirs = session.staging(suites=one_suite(suite(["sh", "-c", f"exit {TOOL_EXIT_CODE}"])))

    def late(store: SqlHostStore, now: datetime, claimed_by: str, only: int | None) -> Any:
        monkeypatch.undo()
        claim_next(store, now, claimed_by, only)
        theirs.launch(only)
        return claim_next(store, now + timedelta(hours=1), claimed_by, only)

    def refuse(_snapshot: Snapshot) -> None:
        raise RefusedError

    monkeypatch.setattr(SqlHostStore, "claim_next", late)
    ours = session.staging(suites=one_suite(suite(["true"])))
    with pytest.raises(RefusedError):
        AttemptDriver(session, ours, job_id, accept=refuse).drive()
    row = session.rows.load(job_id)
    left = row.snapshot()

    assert left is not None
    assert (row.status, left.state, len(left.runs)) == (QUEUED, State.DEFERRED, 1)


def test_cancellation_that_comes_too_late_lets_the_drive_wait_as_before(
    session: Session, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a drive whose attempt was cancelled need not wait any more: any other would spin."""
    repo = session.store.register(repository)
    staging = session.staging(suites=one_suite(suite(["true"])))
    judged, queued = (
        AttemptDriver(session, staging, staging_job(session, repo, name)) for name in "AB"
    )
    judged.drive()
    woken: list[str] = []
    for driver, name in ((judged, "judged"), (queued, "queued")):
        monkeypatch.setattr(session.clock, "wake", functools.partial(woken.append, name))
        driver.cancel()

    assert woken == ["queued"]

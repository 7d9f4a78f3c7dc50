"""A small fleet on a server of its own: the server restarts, and everything else at once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import postgres
from conftest import NO_POSTGRESQL
from fleet_soak import chaos, check, queue_jobs
from fleets import PATIENCE_SECONDS, fleet_stand
from networks import proxies
from staging_fsm.core.outcome import Reason
from staging_fsm.core.spec import State
from staging_fsm.fleet.worker import WorkerExit

#: One of each kind, and two of what happens most; dealt evenly while the jobs end.
FAULTS = ["kill", "freeze", "cut", "restart", "orphan", "kill"]
CHAOS_SECONDS = 300


@pytest.fixture
def server() -> Iterator[postgres.Server]:
    """Return a server that a test may restart."""
    if postgres.binaries() is None:
        pytest.skip(NO_POSTGRESQL)
    with postgres.own_server() as server:
        server.start()
        yield server


def test_server_that_restarts_costs_a_run_and_nothing_else(
    tmp_path: Path, server: postgres.Server
) -> None:
    """With the server every fence falls: suites are killed, workers end, and all begins again."""
    with fleet_stand(tmp_path, server.url) as fleet:
        job = fleet.submit("shop", "WI-1", hold=True)
        worker = fleet.machine("one").start()
        fleet.await_starts(1)
        server.stop()

        assert worker.wait(PATIENCE_SECONDS) == WorkerExit.LOST

        server.start()
        fleet.machine("one").start()
        fleet.await_starts(2)
        fleet.let_go("WI-1")
        ended = fleet.await_end(job)

        assert ended.state == State.ADVANCED
        assert ended.reasons == (Reason.FENCE_LOST, Reason.PASSED)
        assert fleet.ledger("overlap") == []


def test_fleet_under_attack_ends_every_job_once(tmp_path: Path, server: postgres.Server) -> None:
    """Whatever happens to workers, network and server: one suite at a time, one verdict a job."""
    with (
        proxies(server, 2) as links,
        chaos(tmp_path, server, links, workers_each=2, seed=1) as fleet,
    ):
        jobs = queue_jobs(fleet.stand, 8, 3)
        fleet.run(jobs, FAULTS, CHAOS_SECONDS)

        assert list(check(fleet, jobs)) == []
        assert fleet.faults.total() == len(FAULTS)

"""One contract for each port, held by its real part and by the one that stands in for it.

What the simulation shows of the engine is worth as much as its runs and artifacts are like
the real ones. Job rows have contracts of their own in `test_rows.py` and `test_job_rows.py`.
"""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, cast

import attrs
import pytest

from simulated import Fate, Task, Worker
from staging_fsm.core.errors import PreparationError
from staging_fsm.core.machine import step
from staging_fsm.core.outcome import Supervision
from staging_fsm.core.plan import UNVERSIONED, SuitePlan, Workspace
from staging_fsm.core.ports import Artifacts, RunCondition, RunOrder, Suites
from staging_fsm.core.snapshot import Run, fresh_snapshot
from staging_fsm.core.spec import INITIAL, Event
from staging_fsm.core.times import format_time
from staging_fsm.core.trail import walk
from staging_fsm.effects.files import ArtifactFiles
from stand import PATIENCE_SECONDS, RUN, Stand, await_that, has_ended
from world import EPOCH, Shape, World

ENDINGS = {"passed": 0, "failed": 1}


class Runs(Protocol):
    """Runs, and the hands of the suite and of fate."""

    @property
    def suites(self) -> Suites:
        """Return the runs as a fresh look at them shows them."""

    @property
    def run_id(self) -> str:
        """Return the name of the run."""

    def start(self) -> None:
        """Start the run of a suite that waits until it is told how to end."""

    def end(self, ending: str) -> None:
        """Have the suite end in one of the ways of ENDINGS, and its supervisor with it."""

    def lose_supervisor(self) -> None:
        """Have the supervisor be killed."""


@attrs.frozen
class RealRuns:
    """Processes."""

    stand: Stand
    run_id: str = RUN

    @property
    def suites(self) -> Suites:
        """Return a fresh worker's view."""
        return self.stand.suites

    def start(self) -> None:
        """Start a shell that reads its exit code."""
        command = ("sh", "-c", 'read -r code < "$RELEASE"; echo "$code"; exit "$code"')
        plan = SuitePlan(
            command,
            workspace=Workspace.IN_PLACE,
            environment=("RELEASE",),
            timeout_seconds=PATIENCE_SECONDS,
            kill_grace_seconds=0.2,
        )
        self.suites.start(RunOrder(self.run_id, self.stand.root / "tree", UNVERSIONED, plan))

    def end(self, ending: str) -> None:
        """Tell it."""
        self.stand.release.write_text(f"{ENDINGS[ending]}\n")
        self.stand.await_result()
        assert has_ended(self.stand.pid())

    def lose_supervisor(self) -> None:
        """Kill the supervisor of a suite that has begun."""
        pid = self.stand.pid()
        await_that(self.stand.file("leader").exists)
        os.kill(pid, signal.SIGKILL)
        assert has_ended(pid)


@attrs.frozen
class Driven:
    """A port of a simulated worker, each call of which goes on until it has ended."""

    worker: Worker
    port: object

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a method that is driven from point to point."""

        def call(*arguments: Any) -> Any:
            method = getattr(self.port, name)
            task = Task(self.worker, "contract", lambda: method(*arguments))
            task.switch()
            while not task.dead:
                assert task.ready()
                task.switch(Fate.GO)
            if task.failure is not None:
                raise task.failure
            return task.result

        return call


@attrs.frozen
class SimulatedRuns:
    """What the simulation has for processes."""

    world: World
    run_id: str = "1-a.1"

    @property
    def worker(self) -> Worker:
        """Return the worker."""
        return self.world.workers[0]

    @property
    def suites(self) -> Suites:
        """Return the worker's view."""
        return cast("Suites", Driven(self.worker, self.worker.staging.runner.engine.suites))

    def start(self) -> None:
        """Start a run of the attempt."""
        plan = SuitePlan(("run-the-suite",))
        self.suites.start(RunOrder(self.run_id, Path("/simulated"), UNVERSIONED, plan))

    def end(self, ending: str) -> None:
        """Have it end."""
        self.world.end_run(self.world.runs[self.run_id], ending)

    def lose_supervisor(self) -> None:
        """Have the supervisor be killed."""
        self.world.lose_supervisor(self.world.runs[self.run_id])


def one_job() -> World:
    """Return a world of one job, whose first run is counted."""
    world = World(Shape(older_artifact=False))
    fresh = fresh_snapshot("1-a", world.workers[0].identity)
    claimed, now = step(INITIAL, Event.JOB_CLAIMED), format_time(EPOCH)
    changes = {"runs": (Run(1, now),)}
    world.facts[1].snapshot = walk(fresh, claimed, now, "run 1", fresh.worker, changes)
    return world


@pytest.fixture(params=["real", "simulated"])
def runs(request: pytest.FixtureRequest) -> Iterator[Runs]:
    """Yield the runs of either world."""
    if request.param == "real":
        yield RealRuns(request.getfixturevalue("stand"))
    else:
        yield SimulatedRuns(one_job())


@pytest.mark.parametrize("ending", ENDINGS)
def test_run_that_ends_is_reported_as_it_ended(runs: Runs, ending: str) -> None:
    """A run is live, then finished, and its report is its exit code, each time it is asked for."""
    runs.start()
    began = runs.suites.condition(runs.run_id)
    runs.end(ending)
    ended = runs.suites.condition(runs.run_id)
    first, second = (runs.suites.await_report(runs.run_id) for _ in range(2))

    assert (began, ended) == (RunCondition.LIVE, RunCondition.FINISHED)
    assert (first.facts.exit_code, first.facts.stopped_by) == (ENDINGS[ending], None)
    assert first.facts.supervision is Supervision.SOUND
    assert first.facts.log_complete
    assert second == first


def test_run_is_started_once(runs: Runs) -> None:
    """A second start of a run is refused, and nothing is left of the first."""
    runs.start()

    with pytest.raises(PreparationError):
        runs.start()

    assert runs.suites.condition(runs.run_id) is not RunCondition.LIVE


def test_run_that_is_said_to_be_lost_never_starts(runs: Runs) -> None:
    """A run that nobody has started is lost, and once that was said it can no longer start."""
    assert runs.suites.condition(runs.run_id) is RunCondition.LOST

    with pytest.raises(PreparationError):
        runs.start()

    assert runs.suites.condition(runs.run_id) is RunCondition.LOST


def test_run_that_nobody_started_has_no_report(runs: Runs) -> None:
    """Nobody can wait for a run that was never ordered."""
    with pytest.raises(PreparationError):
        runs.suites.await_report(runs.run_id)


def test_reaped_run_was_stopped_and_is_no_pass(runs: Runs) -> None:
    """Reaping stops a live run, may be repeated, and leaves a report that we stopped it."""
    runs.start()
    for _ in range(2):
        runs.suites.reap(runs.run_id)

    assert runs.suites.condition(runs.run_id) is RunCondition.FINISHED
    assert runs.suites.await_report(runs.run_id).facts.stopped_by is not None


def test_reaped_run_keeps_how_it_had_ended(runs: Runs) -> None:
    """A run that had ended before it was reaped is reported as it ended."""
    runs.start()
    runs.end("passed")
    before = runs.suites.await_report(runs.run_id)
    runs.suites.reap(runs.run_id)

    assert runs.suites.await_report(runs.run_id) == before


def test_reaped_run_never_starts(runs: Runs) -> None:
    """A run that was reaped before it was started can no longer start."""
    runs.suites.reap(runs.run_id)

    with pytest.raises(PreparationError):
        runs.start()

    assert runs.suites.condition(runs.run_id) is RunCondition.LOST


def test_run_without_its_supervisor_is_lost(runs: Runs) -> None:
    """A run whose supervisor was killed has no status, whatever its suite does then."""
    runs.start()
    runs.lose_supervisor()
    report = runs.suites.await_report(runs.run_id)

    assert (report.facts.supervision, report.facts.exit_code) == (Supervision.LOST, None)
    assert runs.suites.condition(runs.run_id) is RunCondition.LOST


def test_output_of_a_run_that_is_not_there_is_empty(runs: Runs) -> None:
    """Of a run that nobody knows there is no output, and its command is shown as it is."""
    plan = SuitePlan(("make", "check"))

    assert runs.suites.log_tail(runs.run_id, 100) == b""
    assert runs.suites.shown_command(runs.run_id, plan) == ("make", "check")


@pytest.fixture(params=["real", "simulated"])
def artifacts(request: pytest.FixtureRequest) -> Artifacts:
    """Return the artifact's place in either world."""
    if request.param == "real":
        return ArtifactFiles()
    worker = one_job().workers[0]
    return cast("Artifacts", Driven(worker, worker.staging.runner.engine.artifacts))


ARTIFACT = '---\nstaging_status: SUCCESS\nattempt: "1-a"\n---\n'


def test_artifact_is_exactly_what_was_written(artifacts: Artifacts, tmp_path: Path) -> None:
    """What was written is there as it was written, and nothing else passes for it."""
    folder = tmp_path / "WI-1"
    before = artifacts.is_written(folder, ARTIFACT)
    path = artifacts.write(folder, ARTIFACT)

    assert (before, path) == (False, folder / "15-staging-log.md")
    assert artifacts.is_written(folder, ARTIFACT)
    assert not artifacts.is_written(folder, f"{ARTIFACT}more")
    assert not artifacts.is_written(folder, ARTIFACT[:-1])


def test_artifact_that_is_written_again_replaces_the_older_one(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    """The artifact that was written last is the one that is there."""
    folder = tmp_path / "WI-1"
    artifacts.write(folder, ARTIFACT)
    artifacts.write(folder, f"{ARTIFACT}again")

    assert artifacts.is_written(folder, f"{ARTIFACT}again")
    assert not artifacts.is_written(folder, ARTIFACT)


def test_artifact_that_is_set_aside_is_out_of_sight(artifacts: Artifacts, tmp_path: Path) -> None:
    """Setting aside takes the artifact away, whether there is one or none."""
    folder = tmp_path / "WI-1"
    artifacts.set_aside(folder, "before-1")
    artifacts.write(folder, ARTIFACT)
    artifacts.set_aside(folder, "before-2")
    artifacts.set_aside(folder, "before-3")

    assert not artifacts.is_written(folder, ARTIFACT)

"""The promises hold in simulated worlds: in those played by seed and in those made up freely."""

import contextlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

import soak
from chance import Tally, play
from simulated import (
    ENDINGS,
    FORGERIES,
    Doing,
    Fate,
    SimulatedArtifacts,
    Task,
    ViolationError,
    Worker,
    simulation,
)
from staging_fsm.core.invariants import Movement
from staging_fsm.core.spec import TRANSITIONS, State
from staging_fsm.drive.intercept import StagingIntercept
from staging_fsm.drive.rulings import Decision, Ruling
from world import Damage, Shape, World

WORLDS = 900
MACHINES = (("m:boot:1",), ("m:boot:1", "m:boot:1"), ("m:boot:1", "n:boot:1"))


@pytest.fixture(autouse=True)
def _simulated() -> Iterator[None]:
    with simulation():
        yield


def test_every_promise_holds_in_every_played_world(
    record_property: Callable[[str, object], None],
) -> None:
    """In every world that is played by seed no promise breaks, and every transition fires."""
    total = Tally()
    for seed in range(WORLDS):
        total.add(play(seed))

    fired = [row.id for row in TRANSITIONS if total.fired[row.id]]
    record_property("fired by simulation", dict(total.fired))

    assert fired == [row.id for row in TRANSITIONS]


def test_world_is_the_same_for_the_same_seed() -> None:
    """A seed makes the same moves in the same order every time."""
    assert play(29).trace == play(29).trace


@pytest.mark.parametrize("ending", ENDINGS)
def test_quiet_world_ends_as_its_suites_did(ending: str) -> None:
    """Where nothing goes wrong, a suite that passed advances its work item, and no other does."""
    world = World(Shape(jobs=2, policy="junit", infra_retries=0))

    world.settle(ending)

    states = {facts.snapshot.state for facts in world.facts.values() if facts.snapshot}
    moved = {facts.movements for facts in world.facts.values()}
    assert (states == {State.ADVANCED}) == (ending == "passed")
    assert moved == {(Movement.FORWARD if ending == "passed" else Movement.BACK,)}


def stand_at(world: World, task: Task, point: str) -> None:
    """Let a task go on until it stands at a point."""
    while task.point != point:
        world.advance(task)


def refused_once() -> tuple[World, Task, Worker]:
    """Return a launch whose first look at its row was refused, its world, and another worker."""
    world = World(Shape(machines=("m:boot:1", "m:boot:1"), older_artifact=False))
    claiming, other = world.workers
    launch = world.begin(claiming, Doing.WORK, 1)
    stand_at(world, launch, "load")
    world.advance(launch, Fate.REFUSED)
    return world, launch, other


def test_agent_of_a_job_that_was_cancelled_unseen_moves_nothing() -> None:
    """Where a row cannot be read an agent may start for a job that is cancelled as it is claimed.

    It ends nothing.
    """
    world = World(Shape(machines=("m:boot:1", "m:boot:1"), older_artifact=False))
    claiming, cancelling = world.workers
    # The cancellation has seen the job wait, and comes to write after it was claimed.
    cancel = world.begin(cancelling, Doing.CANCEL, 1)
    stand_at(world, cancel, "save T15")
    launch = world.begin(claiming, Doing.WORK, 1)
    stand_at(world, launch, "load")
    world.advance(launch, Fate.REFUSED)
    while not cancel.dead:
        world.advance(cancel)
    stand_at(world, launch, "load")

    world.advance(launch, Fate.REFUSED)
    while not launch.dead:
        world.advance(launch)

    assert launch.declined == {1}
    assert world.tables.jobs[1].status == "cancelled"
    assert world.facts[1].movements == ()


def test_delivery_beside_a_claim_that_cannot_read_its_row_ends_the_job_once() -> None:
    """Told that its claim is exclusive, a launch that cannot read declines; the job ends once."""
    world, launch, second = refused_once()
    beside = world.begin(second, Doing.DELIVER_AGAIN, 1)
    stand_at(world, beside, "start")
    stand_at(world, launch, "load")
    world.advance(launch, Fate.REFUSED)
    world.settle("passed")

    assert launch.declined == {1}
    assert len(world.facts[1].starts) == 1
    assert world.tables.jobs[1].status == "done"
    assert len(world.facts[1].movements) <= 1


def test_stored_decline_stands_where_the_row_was_damaged_unseen() -> None:
    """A decline that was stored without an answer stands, though somebody damages its row then."""
    world = World(Shape())
    launch = world.begin(world.workers[0], Doing.WORK, 1)
    stand_at(world, launch, "bind")
    world.advance(launch, Fate.LOST)
    stand_at(world, launch, "save T02")
    world.advance(launch, Fate.LOST)
    world.damage(1, Damage.NEWER_FORMAT)
    stand_at(world, launch, "load")

    world.advance(launch, Fate.LOST)

    assert launch.declined == {1}
    assert world.facts[1].declined_in == (State.LLM_FALLBACK,)


def test_agent_of_a_row_that_was_seen_damaged_is_a_broken_promise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A launch that reads a damaged row and goes to the LLM path is reported."""
    world = World(Shape())
    killed, second = world.workers[:2]
    stand_at(world, world.begin(killed, Doing.WORK, 1), "start")
    world.kill(killed)
    world.damage(1, Damage.NEWER_FORMAT)
    declined = Decision(Ruling.DECLINED, "whatever it reads")
    monkeypatch.setattr(StagingIntercept, "_hand_on", lambda *_: declined)
    launch = world.begin(second, Doing.DELIVER_AGAIN, 1)
    stand_at(world, launch, "load")

    with pytest.raises(ViolationError, match="is damaged, and its launch went to the LLM path"):
        world.advance(launch)


def test_broken_promise_shows_its_seed_and_its_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken promise is reported by name, with the seed and every move that led to it."""
    monkeypatch.setattr(SimulatedArtifacts, "set_aside", lambda *_: None)

    _, broken = soak.soak(100, [soak.play_chunk(0)])

    name, seed, shape, *moves = broken[0].split("\n  ")
    assert "stale_artifact_is_never_read: run 1 was started with an older artifact" in name
    assert seed.startswith("seed ")
    assert shape.startswith("world Shape(")
    assert moves[-1].endswith(": start")


def test_soak_counts_attempts_until_there_are_enough() -> None:
    """A soak stops as soon as enough attempts ran, and adds up what fired."""
    tally, broken = soak.play_chunk(5000)

    total, violations = soak.soak(tally.attempts + 1, iter([(tally, broken)] * 3))

    assert violations == []
    assert total.attempts == 2 * tally.attempts
    assert total.fired == tally.fired + tally.fired


def test_soak_that_is_interrupted_says_how_far_it_came() -> None:
    """A soak that is told to end has the worlds counted that were played until then."""
    tally, broken = soak.play_chunk(5000)

    total, _ = soak.soak(tally.attempts + 1, iter([(tally, broken)] * 3), lambda: True)

    assert total.attempts == tally.attempts


shapes = st.builds(
    Shape,
    jobs=st.integers(1, 2),
    machines=st.sampled_from(MACHINES),
    policy=st.sampled_from(["exit-code", "junit"]),
    infra_retries=st.integers(0, 2),
    backoff_seconds=st.sampled_from([30, 0]),
    developer_retries=st.sampled_from([2, 0]),
    older_artifact=st.booleans(),
    enabled=st.sampled_from([True, True, True, False]),
)
nth = st.integers(0, 7)


class AnyWorld(RuleBasedStateMachine):
    """A world in which Hypothesis says what happens next."""

    world: World

    def __init__(self) -> None:
        """Enter the simulation."""
        super().__init__()
        self._exits = contextlib.ExitStack()
        self._exits.enter_context(simulation())

    @initialize(shape=shapes)
    def begin_world(self, shape: Shape) -> None:
        """Begin."""
        self.world = World(shape)

    @rule(worker=nth, doing=st.sampled_from(list(Doing)), job=nth)
    def begin(self, worker: int, doing: Doing, job: int) -> None:
        """A worker begins something, and a dead one is replaced first."""
        workers, jobs = self.world.workers, self.world.staging_jobs()
        chosen = workers[worker % len(workers)]
        if not chosen.alive:
            chosen = self.world.replace(chosen)
        job_id = jobs[job % len(jobs)].id
        if doing is not Doing.CANCEL or self.world.can_cancel():
            self.world.begin(chosen, doing, job_id)

    @precondition(lambda self: self.world.tasks())
    @rule(task=nth, steps=st.integers(1, 20), fate=st.sampled_from(list(Fate)))
    def go_on(self, task: int, steps: int, fate: Fate) -> None:
        """A worker does a few things, and at the last one something may happen to it."""
        tasks = self.world.tasks()
        chosen = tasks[task % len(tasks)]
        for step in range(1, steps + 1):
            now = fate if step == steps else Fate.GO
            early = now in (Fate.REFUSED, Fate.CRASH_BEFORE)
            if chosen.dead or not (early or chosen.ready()):
                return
            self.world.advance(chosen, now)

    @precondition(lambda self: self.world.live_runs())
    @rule(run=nth, ending=st.sampled_from([*ENDINGS, None]))
    def end_run(self, run: int, ending: str | None) -> None:
        """A suite ends, or its supervisor is killed."""
        runs = self.world.live_runs()
        chosen = runs[run % len(runs)]
        if ending is None:
            self.world.lose_supervisor(chosen)
        else:
            self.world.end_run(chosen, ending)

    @rule(
        change=st.sampled_from(
            [
                ("ENABLED", "0"),
                ("ENABLED", "1"),
                ("ENABLED", "maybe"),
                ("REPOS", ""),
                ("REPOS", "shop"),
                ("SHADOW", "1"),
                ("SHADOW", "0"),
                ("INFRA_RETRIES", "many"),
                ("INFRA_RETRIES", "1"),
            ]
        )
    )
    def configure(self, change: tuple[str, str]) -> None:
        """Somebody changes the configuration."""
        self.world.set(*change)

    @rule(seconds=st.sampled_from([31, -31, 86_400, -86_400]))
    def set_clock(self, seconds: int) -> None:
        """Time passes, or the clock is set."""
        self.world.pass_time(seconds)

    @rule(job=nth, forgery=st.sampled_from(list(FORGERIES)))
    def forge(self, job: int, forgery: str) -> None:
        """A suite or a stray agent writes where the gate looks."""
        jobs = self.world.staging_jobs()
        self.world.forge(jobs[job % len(jobs)].work_item, forgery)

    @rule(opens=st.booleans())
    def bewitch(self, opens: bool) -> None:  # noqa: FBT001  # Hypothesis draws it
        """The gate opens whatever it reads, or reads again."""
        self.world.bewitch(opens=opens)

    @rule(job=nth, damage=st.sampled_from([*Damage, None]))
    def write_row(self, job: int, damage: Damage | None) -> None:
        """Somebody damages an attempt, or the host writes a key of its own."""
        jobs = self.world.staging_jobs()
        job_id = jobs[job % len(jobs)].id
        if damage is None:
            self.world.note(job_id, "seen")
        else:
            self.world.damage(job_id, damage)

    @rule(worker=nth)
    def kill(self, worker: int) -> None:
        """A worker is killed."""
        workers = self.world.workers
        self.world.kill(workers[worker % len(workers)])

    def teardown(self) -> None:
        """Let the world come to rest, unless a promise is broken already."""
        with self._exits:
            if hasattr(self, "world") and not self.world.broken:
                self.world.settle()


def test_every_promise_holds_in_any_world() -> None:
    """Whatever Hypothesis makes happen, in whatever order, no promise breaks, and all ends."""
    run_state_machine_as_test(
        AnyWorld,
        settings=settings(
            max_examples=300,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_shrunk_failure_is_a_short_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """A promise that Hypothesis sees broken is reported with its moves, shrunk to a few."""
    monkeypatch.setattr(SimulatedArtifacts, "set_aside", lambda *_: None)

    with pytest.raises(ViolationError) as broken:
        run_state_machine_as_test(
            AnyWorld,
            settings=settings(
                max_examples=500, deadline=None, derandomize=True, database=None, print_blob=False
            ),
        )

    assert "stale_artifact_is_never_read" in str(broken.value)
    assert len(str(broken.value).split("\n")) < 30

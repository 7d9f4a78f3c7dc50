"""A fault at every boundary: each story is told again and again, with one thing going wrong."""

from collections.abc import Callable, Iterator
from typing import Final

import attrs
import pytest

from simulated import Doing, Fate, Task, Worker, simulation
from staging_fsm.core.ports import AlertKind
from staging_fsm.core.snapshot import ADOPTIONS_MAX, Snapshot
from staging_fsm.core.spec import Event, State
from staging_fsm.core.times import format_time
from staging_fsm.drive import engine
from world import Damage, Shape, World

Fates = Callable[[int, str], Fate]
NO_FAULT: Final[Fates] = lambda _number, _point: Fate.GO  # noqa: E731  # a fate, not a function
EARLY: Final = frozenset({Fate.REFUSED, Fate.CRASH_BEFORE})


@pytest.fixture(autouse=True)
def _simulated() -> Iterator[None]:
    with simulation():
        yield


class Teller:
    """Tells a story in a world of its own, and lets `fates` decide at each of its points."""

    def __init__(self, fates: Fates = NO_FAULT, policy: str = "exit-code") -> None:
        """Begin with one queued job and two idle workers."""
        self.world = World(Shape(policy=policy, infra_retries=1, backoff_seconds=30))
        self.fates, self.points = fates, 0
        self.endings: list[str] = []
        #: The points at which something went wrong.
        self.struck: set[str] = set()

    def worker(self) -> Worker:
        """Return a live worker; one is started if there is none."""
        live = self.world.live_workers()
        return live[0] if live else self.world.replace(self.world.workers[0])

    def launch(self, *endings: str, until: str = "") -> None:
        """Have a worker claim the job and launch it; its suites end as said."""
        self.endings = [*endings]
        self._tell(self.world.begin(self.worker(), Doing.WORK, 1), until)

    def recover(self, *endings: str, until: str = "") -> None:
        """Have a worker recover."""
        self.endings = [*endings]
        self._tell(self.world.begin(self.worker(), Doing.RECOVER, 0), until)

    def cancel(self) -> None:
        """Have another worker cancel the job."""
        self._tell(self.world.begin(self.world.live_workers()[-1], Doing.CANCEL, 1))

    def wait(self) -> None:
        """Let the longest wait pass."""
        self.world.pass_time(4 * self.world.shape.backoff_seconds)

    def kill_the_first_worker(self) -> None:
        """Kill whoever launched the job."""
        self.world.kill(self.world.workers[0])

    def go_on(self) -> None:
        """Let whatever still stands somewhere come to its end."""
        for task in self.world.tasks():
            self._tell(task)

    def _tell(self, task: Task, until: str = "") -> None:
        while not task.dead and task.point != until:
            fate = self.fates(self.points + 1, task.point)
            if not (task.ready() or fate in EARLY):
                self.world.end_run(self.world.live_runs()[0], self.endings[0])
                self.endings = self.endings[1:] or self.endings
                continue
            self.points += 1
            if fate is not Fate.GO:
                self.struck.add(task.point)
            self.world.advance(task, fate)

    def end(self, ending: str) -> State | None:
        """Let nothing go wrong any more; return where the attempt ended, None for nowhere."""
        self.go_on()
        self.world.settle(ending)
        return self.state

    def snapshot(self) -> Snapshot:
        """Return the attempt."""
        snapshot = self.world.facts[1].snapshot
        assert snapshot is not None
        return snapshot

    @property
    def state(self) -> State | None:
        """Return where the attempt is."""
        snapshot = self.world.facts[1].snapshot
        return None if snapshot is None else snapshot.state


def passes(story: Teller) -> None:
    """Tell of a suite that passes."""
    story.launch("passed")


def fails(story: Teller) -> None:
    """Tell of a suite that fails."""
    story.launch("failed")


def fails_at_first(story: Teller) -> None:
    """Tell of a tool error and of a second run that passes."""
    story.launch("tool error")
    story.wait()
    story.launch("passed")


def is_exhausted(story: Teller) -> None:
    """Tell of two tool errors."""
    story.launch("out of memory")
    story.wait()
    story.launch("log lost")


def is_switched_off(story: Teller) -> None:
    """Tell of a kill switch that is thrown while the second run is waited for."""
    story.launch("tool error")
    story.world.set("ENABLED", "0")
    story.wait()
    story.launch()


def is_adopted(story: Teller) -> None:
    """Tell of a worker that is killed while its suite runs on."""
    story.launch(until="await")
    story.kill_the_first_worker()
    story.recover("passed")


def is_lost(story: Teller) -> None:
    """Tell of a worker that is killed with the supervisor of its suite."""
    story.launch(until="await")
    story.kill_the_first_worker()
    for run in story.world.live_runs():
        story.world.lose_supervisor(run)
    story.recover()
    story.wait()
    story.launch("passed")


def is_cancelled(story: Teller) -> None:
    """Tell of a person who stops a suite."""
    story.launch("failed", until="await")
    story.cancel()
    story.go_on()


def is_declined(story: Teller) -> None:
    """Tell of a configuration that is invalid from the beginning."""
    story.world.set("INFRA_RETRIES", "many")
    story.launch()
    story.world.set("INFRA_RETRIES", "1")


@attrs.frozen
class Story:
    """A story, how the suites end that run after it, where it ends, and where else it may."""

    tell: Callable[[Teller], None]
    ending: str
    end: State
    #: Where a fault may take it. A "no" is always safe, and so is the LLM before the first run.
    other_ends: frozenset[State | None]


_FALLEN_BACK: Final = frozenset({State.LLM_FALLBACK, None})
_REFUSED: Final = _FALLEN_BACK | {State.ROLLED_BACK}
#: The second run may be the one that the fault befalls.
_CLOSED: Final = _REFUSED | {State.FAILED_CLOSED}
STORIES: Final = {
    story.tell.__name__: story
    for story in (
        Story(passes, "passed", State.ADVANCED, _REFUSED),
        Story(fails, "failed", State.ROLLED_BACK, _FALLEN_BACK),
        Story(fails_at_first, "passed", State.ADVANCED, _CLOSED),
        Story(is_exhausted, "tool error", State.FAILED_CLOSED, _FALLEN_BACK),
        Story(is_switched_off, "failed", State.LLM_FALLBACK, _REFUSED),
        Story(is_adopted, "passed", State.ADVANCED, _REFUSED),
        Story(is_lost, "passed", State.ADVANCED, _CLOSED),
        Story(
            is_cancelled,
            "failed",
            State.CANCELLED,
            _REFUSED,
        ),
        Story(is_declined, "failed", State.LLM_FALLBACK, _REFUSED),
    )
}


def once(fate: Fate, number: int) -> Fates:
    """Return the fates in which one thing goes wrong once."""
    return lambda now, _point: fate if now == number else Fate.GO


def from_then_on(fate: Fate, number: int) -> Fates:
    """Return the fates in which what goes wrong once goes wrong for ever."""
    broken = set[str]()

    def decide(now: int, point: str) -> Fate:
        if now == number:
            broken.add(point)
        return fate if point in broken else Fate.GO

    return decide


def everything_from_then_on(fate: Fate, number: int) -> Fates:
    """Return the fates in which from some moment on nothing succeeds."""
    return lambda now, _point: fate if now >= number else Fate.GO


FAULTS: Final = {
    "refused once": (Fate.REFUSED, once),
    "refused for ever": (Fate.REFUSED, from_then_on),
    "everything refused": (Fate.REFUSED, everything_from_then_on),
    "answer lost once": (Fate.LOST, once),
    "answer lost for ever": (Fate.LOST, from_then_on),
    "crash before": (Fate.CRASH_BEFORE, once),
    "crash after": (Fate.CRASH_AFTER, once),
}


@pytest.mark.parametrize("name", STORIES)
def test_story_without_a_fault_ends_as_it_should(name: str) -> None:
    """Where nothing goes wrong, each story comes to its end by itself."""
    story, teller = STORIES[name], Teller()

    story.tell(teller)

    snapshot = teller.world.facts[1].snapshot
    assert snapshot is not None
    assert snapshot.state is story.end
    assert teller.points > 5


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", STORIES)
def test_fault_at_any_boundary_breaks_no_promise(name: str, fault: str) -> None:
    """Whatever fails, wherever, before or after: every promise holds, and the end is legal."""
    story, (fate, when) = STORIES[name], FAULTS[fault]
    told = Teller()
    story.tell(told)
    ends = set()
    for number in range(1, told.points + 1):
        teller = Teller(when(fate, number))

        story.tell(teller)
        end = teller.end(story.ending)
        ends.add(end)

        if story.ending == "passed" and end is State.ROLLED_BACK:
            # Only a gate that could not read may send back what passed.
            assert "read artifact" in teller.struck
    assert ends <= story.other_ends | {story.end}
    assert story.end in ends


def test_clock_that_is_set_back_does_not_stall_a_waiting_job() -> None:
    """A clock that is set back by years delays the next run by the longest wait, and no more."""
    story = Teller()
    story.launch("tool error")
    story.world.pass_time(-10 * 365 * 86_400)
    story.recover()
    story.wait()

    story.launch("passed")

    assert story.state is State.ADVANCED


def test_clock_that_was_ahead_when_a_job_was_given_back_does_not_stall_it() -> None:
    """A due time that a wrong clock wrote is not waited for once the clock is right."""
    story = Teller()
    story.world.pass_time(365 * 86_400)
    story.launch("tool error", until="requeue")
    story.world.pass_time(-365 * 86_400)
    story.go_on()
    story.recover()
    story.wait()

    story.launch("passed")

    assert story.state is State.ADVANCED


def test_launch_before_its_time_gives_the_job_back() -> None:
    """A deferred attempt that is launched early starts nothing and waits as long as before."""
    story = Teller()
    story.launch("tool error")
    due = story.world.tables.jobs[1].not_before
    jobs = story.world.tables.jobs
    jobs[1] = attrs.evolve(jobs[1], not_before=None)

    story.launch()

    assert (jobs[1].status, jobs[1].not_before) == ("queued", due)
    assert [start.run for start in story.world.facts[1].starts] == [1]


def test_due_time_is_forgotten_when_the_next_run_starts() -> None:
    """A deferred attempt says when its next run is due, and no more once it has started."""
    story = Teller()
    story.launch("tool error")
    deferred = story.world.facts[1].snapshot
    story.wait()

    story.launch("passed")

    ended = story.world.facts[1].snapshot
    assert deferred is not None
    assert deferred.next_run_at == story.world.tables.jobs[1].not_before
    assert ended is not None
    assert ended.next_run_at is None


def test_job_that_waits_is_left_waiting_by_recovery() -> None:
    """Recovery does not touch a deferred attempt that waits for its time."""
    story = Teller()
    story.launch("tool error")
    before = story.world.tables.jobs[1]
    story.kill_the_first_worker()
    begun = len(story.world.trace)

    story.recover()

    assert story.world.tables.jobs[1] == before
    assert not [move for move in story.world.trace[begun:] if move.endswith(": requeue")]


def test_recovery_looks_again_at_what_it_has_listed() -> None:
    """What another worker has ended since recovery listed it is left alone, and nobody is told."""
    story = Teller()
    story.launch("passed", until="write")
    story.kill_the_first_worker()
    late = story.world.begin(story.worker(), Doing.RECOVER, 0)
    while late.point != "unfinished":
        story.world.advance(late)
    story.world.advance(late)

    early = story.world.begin(story.world.replace(story.world.workers[0]), Doing.RECOVER, 0)
    while not early.dead:
        story.world.advance(early)
    while not late.dead:
        story.world.advance(late)

    facts = story.world.facts[1]
    assert (story.state, len(facts.written), facts.alerts) == (State.ADVANCED, 1, ())


def test_of_two_recoveries_one_takes_up_the_attempt_and_nobody_is_told() -> None:
    """To be overtaken by another recovery is no error: the attempt is in good hands."""
    story = Teller()
    story.launch(until="await")
    story.kill_the_first_worker()
    late = story.world.begin(story.worker(), Doing.RECOVER, 0)
    while not late.point.startswith("save"):
        story.world.advance(late)

    early = story.world.begin(story.world.replace(story.world.workers[0]), Doing.RECOVER, 0)
    while early.point != "await":
        story.world.advance(early)
    while not late.dead:
        story.world.advance(late)

    story.endings = ["passed"]
    assert story.world.facts[1].alerts == ()
    assert story.end("passed") is State.ADVANCED


@pytest.mark.parametrize("damage", Damage)
def test_damaged_attempt_is_held_and_told_of(damage: Damage) -> None:
    """A damaged attempt is neither advanced nor given to the LLM, and recovery alerts somebody."""
    story = Teller()
    story.launch("passed", until="save T03")
    story.kill_the_first_worker()
    story.world.damage(1, damage)
    before = story.world.tables.jobs[1].metadata

    story.recover()
    # The host gives the job of a dead worker to the next one.
    story.launch()

    facts = story.world.facts[1]
    assert story.world.tables.jobs[1].metadata == before
    assert facts.movements == ()
    assert facts.declined_in == ()
    assert facts.alerts == (AlertKind.ROW_REFUSED, AlertKind.ROW_REFUSED)


def test_gate_that_always_opens_advances_nothing_that_failed() -> None:
    """A gate that opens against the verdict is undone and told of, however often it is asked."""
    story = Teller()
    story.world.bewitch(opens=True)

    story.launch("failed")

    facts = story.world.facts[1]
    assert facts.snapshot is not None
    assert facts.snapshot.state is State.VERDICT_FAILED
    assert facts.movements == ()
    assert story.world.tables.jobs[1].status == "running"
    assert facts.alerts == (AlertKind.GATE_CONTRADICTED_VERDICT,)


@pytest.mark.parametrize(
    ("ending", "asked"), [("passed", 0), ("exit 0 over failures", 1), ("crashed", 1)]
)
def test_hosts_own_map_says_the_status_word(
    monkeypatch: pytest.MonkeyPatch, ending: str, asked: int
) -> None:
    """The word in the artifact is the host's for the exit code, which is never 0 without a pass."""
    codes: list[int] = []

    def is_strict(code: int) -> str:
        codes.append(code)
        return "FAILED"

    monkeypatch.setattr(engine, "map_exit_code_to_status", is_strict)
    story = Teller(policy="junit")

    story.launch(ending)

    assert (codes, story.state) == ([asked], State.ROLLED_BACK)


def test_forged_artifact_in_the_moment_of_the_gate_opens_nothing() -> None:
    """A SUCCESS that is written over the artifact just before the gate reads it is no pass."""
    for ending in ("passed", "failed"):
        story = Teller()
        story.launch(ending, until="read artifact")
        story.world.forge("WI-1", "a success")

        story.go_on()

        facts = story.world.facts[1]
        assert facts.snapshot is not None
        # The forgery is found out, and the artifact is written again.
        assert facts.snapshot.state is (State.ADVANCED if ending == "passed" else State.ROLLED_BACK)
        assert len(facts.written) == 2


@pytest.mark.parametrize("forged", ["a success", "half a file"])
@pytest.mark.parametrize("ending", ["passed", "failed"])
def test_forged_artifact_is_found_out_by_whoever_hands_over(ending: str, forged: str) -> None:
    """A verdict of a dead worker is handed over with the same look at what the gate read."""
    story = Teller()
    story.launch(ending, until="write")
    story.kill_the_first_worker()
    story.recover(until="read artifact")
    story.world.forge("WI-1", forged)

    story.go_on()

    assert story.state is (State.ADVANCED if ending == "passed" else State.ROLLED_BACK)
    assert len(story.world.facts[1].written) == 2


def test_attempts_without_end_of_adoption_are_bounded() -> None:
    """A run whose workers are killed again and again is counted as lost in the end."""
    story = Teller()
    story.launch(until="await")
    for _ in range(40):
        change_hands(story)

    deferred = story.snapshot()
    assert deferred.state is State.DEFERRED
    assert format_time(story.world.time) <= str(deferred.next_run_at)


def test_finished_run_is_adopted_no_more_often_than_a_live_one() -> None:
    """A result that is never collected, whoever tries, is given up like a run that never ends."""
    story = Teller()
    story.launch(until="await")
    (run,) = story.world.live_runs()
    story.world.end_run(run, "passed")
    for _ in range(ADOPTIONS_MAX + 1):
        change_hands(story)
    events = [move.row.event for move in story.snapshot().history]

    assert events.count(Event.RUN_ADOPTED) == ADOPTIONS_MAX
    assert Event.WORKER_LOST in events


def test_adoptions_are_those_of_the_whole_attempt() -> None:
    """What the first run of an attempt used up of its adoptions its next run does not get anew."""
    story = Teller()
    story.launch(until="await")
    while story.state is State.RUNNING:
        change_hands(story)
    story.wait()
    story.launch(until="await")
    begun = story.snapshot()
    change_hands(story)

    events = [move.row.event for move in story.snapshot().history]
    assert (begun.state, begun.last_run.number) == (State.RUNNING, 2)
    assert events.count(Event.RUN_ADOPTED) == ADOPTIONS_MAX
    assert story.state is State.FAILED_CLOSED


def test_later_run_is_adopted_as_often_as_a_first() -> None:
    """What a first run did not use up of an attempt's adoptions is there for the next one."""
    story = Teller()
    story.launch("tool error")
    story.wait()
    story.launch(until="await")
    for _ in range(ADOPTIONS_MAX):
        change_hands(story)

    events = [move.row.event for move in story.snapshot().history]
    assert events.count(Event.RUN_ADOPTED) == ADOPTIONS_MAX
    assert story.state is State.RUNNING


def test_adoption_names_the_run_that_is_adopted() -> None:
    """However often a run changes hands, its trail and its log name it by its own number."""
    story = Teller()
    story.launch("tool error")
    story.wait()
    story.launch(until="await")
    for _ in range(3):
        change_hands(story)
    moves = story.snapshot().history
    told = [move.reason for move in moves if move.row.event is Event.RUN_ADOPTED]

    assert told == ["run 2 is live"] * 3


def change_hands(story: Teller) -> None:
    """Kill the worker of a run, and have another one recover."""
    story.world.kill(story.worker())
    story.world.replace(story.world.workers[0])
    story.recover(until="await")

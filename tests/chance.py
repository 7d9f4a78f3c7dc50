"""A seeded player of the simulated world: the same seed makes the same moves, for volume."""

from collections import Counter
from random import Random
from typing import Final

import attrs

from simulated import ENDINGS, FORGERIES, Doing, Fate, Task
from world import Damage, Shape, World

#: How likely it is that something goes wrong at a point; chosen once for each world.
STORMS: Final = (0.0, 0.0, 0.02, 0.08, 0.2)
FAULTS: Final = (Fate.REFUSED, Fate.LOST, Fate.CRASH_BEFORE, Fate.CRASH_AFTER)
MOVES_PER_JOB: Final = 60
#: How often a world that has nothing to do looks for something before it comes to rest.
IDLE_MAX: Final = 2
#: How many things a worker does before another one has its turn.
BURSTS: Final = (1, 1, 2, 3, 8, 40)
_ENDINGS: Final = tuple(ENDINGS)
_FORGERIES: Final = tuple(FORGERIES)
_DAMAGES: Final = tuple(Damage)
_FOREIGN: Final = (
    "{}",
    '{"ticket":7.50}',
    ' { "a" : [1e3, {"staging_runner": 2}], "é":"\\u00e9" }',
)
_MACHINES: Final = (
    ("m:boot:1", "m:boot:1"),
    ("m:boot:1", "m:boot:1", "m:boot:1"),
    ("m:boot:1", "m:boot:1", "n:boot:1"),
)


@attrs.define
class Tally:
    """What a number of worlds came to."""

    worlds: int = 0
    attempts: int = 0
    moves: int = 0
    fired: Counter[str] = attrs.field(factory=Counter)

    def add(self, world: World) -> None:
        """Count a world in."""
        self.worlds += 1
        self.attempts += sum(facts.snapshot is not None for facts in world.facts.values())
        self.moves += world.moves
        self.fired += world.fired

    def merge(self, other: "Tally") -> None:
        """Count many worlds in."""
        self.worlds += other.worlds
        self.attempts += other.attempts
        self.moves += other.moves
        self.fired += other.fired


def play(seed: int) -> World:
    """Play one world to its end; raises ViolationError, which shows every move, and the seed."""
    player = Player(seed)
    player.play()
    return player.world


class Player:
    """Moves one world by chance."""

    def __init__(self, seed: int) -> None:
        """Choose a world and its weather."""
        self.chance = Random(seed)  # noqa: S311  # it chooses moves, not keys
        draw = self.chance.choice
        self.storm = draw(STORMS)
        self.idle = 0
        shape = Shape(
            jobs=draw((1, 2, 3, 6)),
            machines=draw(_MACHINES),
            policy=draw(("exit-code", "junit")),
            infra_retries=draw((0, 1, 1, 2, 3)),
            backoff_seconds=draw((0, 30)),
            developer_retries=draw((0, 2)),
            foreign=draw(_FOREIGN),
            older_artifact=draw((True, False)),
            enabled=draw((True,) * 9 + (False,)),
        )
        self.world = World(shape)
        self.world.trace.insert(0, f"seed {seed}, storm {self.storm}")

    def play(self) -> None:
        """Move the world for a while, then let it come to rest."""
        world = self.world
        for _ in range(MOVES_PER_JOB * world.shape.jobs):
            self.move()
            if self.idle > IDLE_MAX or not world.open_jobs():
                break
        world.settle(self._ending())

    def move(self) -> None:
        """Make one move."""
        world, draw = self.world, self.chance.random()
        if draw < self.storm / 3:
            self._outside()
            return
        tasks = world.tasks()
        if tasks and draw < 0.8:
            self._go_on(self.chance.choice(tasks))
            return
        runs = world.live_runs()
        if runs and draw < 0.9:
            world.end_run(self.chance.choice(runs), self._ending())
            return
        self._begin()

    def _go_on(self, task: Task) -> None:
        """Let a worker do a few things in a row, or many."""
        for _ in range(self.chance.choice(BURSTS)):
            fate = Fate.GO
            if self.storm and self.chance.random() < self.storm:
                fate = self.chance.choice(FAULTS)
            # What fails before it was done can fail while it waits.
            if not task.ready() and fate not in (Fate.REFUSED, Fate.CRASH_BEFORE):
                return
            self.world.advance(task, fate)
            if task.dead:
                return

    def _ending(self) -> str:
        draw = self.chance.random()
        if draw < 0.5:
            return "passed"
        return "tool error" if draw < 0.65 else self.chance.choice(_ENDINGS)

    def _begin(self) -> None:
        """Have a worker begin something, or have come what it waits for."""
        world, chance = self.world, self.chance
        worker = chance.choice(world.workers)
        if not worker.alive:
            world.replace(worker)
            return
        draw, jobs = chance.random(), world.staging_jobs()
        queued = [job for job in jobs if job.status == "queued"]
        job = chance.choice(queued or jobs)
        if draw < self.storm / 4:
            world.begin(worker, Doing.DELIVER_AGAIN, chance.choice(jobs).id)
        elif draw < self.storm / 2 and world.can_cancel():
            world.begin(worker, Doing.CANCEL, job.id)
        elif queued and world.is_due(job):
            world.begin(worker, Doing.WORK, job.id)
        elif queued:
            world.pass_time(world.shape.backoff_seconds)
        elif draw > 0.9:
            world.send_back(job.work_item)
        elif not world.tasks():
            self.idle += 1
            world.begin(worker, Doing.RECOVER, 0)

    def _outside(self) -> None:  # noqa: C901, PLR0912  # one case for each thing that may happen
        """Have something happen that no worker does."""
        world, chance = self.world, self.chance
        job = chance.choice(world.staging_jobs())
        match chance.randrange(12):
            case 0:
                world.set("ENABLED", chance.choice(("1", "1", "0", "maybe")))
            case 1:
                world.set("REPOS", chance.choice(("shop", "shop", "", "*,other")))
            case 2:
                world.set("INFRA_RETRIES", chance.choice(("1", "2", "many")))
            case 3:
                world.pass_time(chance.choice((-86_400, -31, 31, 86_400)))
            case 4 | 5:
                world.forge(job.work_item, chance.choice(_FORGERIES))
            case 6:
                world.bewitch(opens=not world.bewitched)
            case 7:
                if runs := world.live_runs():
                    world.lose_supervisor(chance.choice(runs))
            case 8:
                world.damage(job.id, chance.choice(_DAMAGES))
            case 9:
                world.set("SHADOW", chance.choice(("0", "0", "1")))
            case 10:
                world.note(job.id, chance.choice(("once", "twice")))
            case _:
                if workers := world.live_workers():
                    world.kill(chance.choice(workers))

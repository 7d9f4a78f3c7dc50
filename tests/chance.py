"""A seeded player of the simulated world: the same seed makes the same moves, for volume."""

from collections import Counter
from random import Random
from typing import Final

import attrs

from world import ENDINGS, FORGERIES, Damage, Doing, Fate, Shape, World

#: How likely it is that something goes wrong at a point; chosen once for each world.
STORMS: Final = (0.0, 0.0, 0.02, 0.08, 0.2)
FAULTS: Final = (Fate.REFUSED, Fate.LOST, Fate.CRASH_BEFORE, Fate.CRASH_AFTER)
MOVES_PER_JOB: Final = 60
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
            if not world.open_jobs():
                break
            self.move()
        world.settle(self._ending())

    def move(self) -> None:
        """Make one move."""
        world, draw = self.world, self.chance.random()
        if draw < self.storm / 3:
            self._outside()
            return
        tasks = world.tasks()
        if tasks and draw < 0.8:
            task = self.chance.choice(tasks)
            if self.chance.random() < self.storm:
                fate = self.chance.choice(FAULTS)
                if task.ready() or fate in (Fate.REFUSED, Fate.CRASH_BEFORE):
                    world.advance(task, fate)
                return
            if task.ready():
                world.advance(task)
                return
        runs = world.live_runs()
        if runs and draw < 0.9:
            world.end_run(self.chance.choice(runs), self._ending())
            return
        self._begin()

    def _ending(self) -> str:
        draw = self.chance.random()
        if draw < 0.5:
            return "passed"
        return "tool error" if draw < 0.65 else self.chance.choice(_ENDINGS)

    def _begin(self) -> None:
        world, chance = self.world, self.chance
        worker = chance.choice(world.workers)
        if not worker.alive:
            world.replace(worker)
            return
        draw = chance.random()
        job = chance.choice(world.staging_jobs())
        if draw < 0.2:
            world.begin(worker, Doing.RECOVER, 0)
        elif draw < 0.2 + self.storm / 2:
            world.begin(worker, Doing.DELIVER_AGAIN, job.id)
        elif draw < 0.2 + self.storm and world.can_cancel(worker, job.id):
            world.begin(worker, Doing.CANCEL, job.id)
        elif job.status == "queued":
            world.begin(worker, Doing.WORK, job.id)
        elif not world.send_back(job.work_item):
            world.pass_time(world.shape.backoff_seconds)

    def _outside(self) -> None:  # noqa: C901  # one case for each thing that may happen
        """Have something happen that no worker does."""
        world, chance = self.world, self.chance
        job = chance.choice(world.staging_jobs())
        match chance.randrange(11):
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
                world.note(job.id, chance.choice(("once", "twice")))
            case _:
                if workers := world.live_workers():
                    world.kill(chance.choice(workers))

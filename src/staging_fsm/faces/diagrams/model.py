"""What every format draws: the rows, how often each was walked, and where an attempt is."""

from collections.abc import Mapping
from typing import Final, Self

import attrs

from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import TRANSITIONS, State, Transition

#: The brief's VERDICT: one state to a reader, two in the table.
VERDICT_GROUP: Final = (State.VERDICT_PASSED, State.VERDICT_FAILED)


@attrs.frozen
class Diagram:
    """The table, with counts on its edges or with the path of one attempt lit.

    `path` holds the ids of the rows that were walked, in their order; a row may
    stand in it more than once. `current` is the state the attempt is in.
    """

    rows: tuple[Transition, ...] = TRANSITIONS
    counts: Mapping[str, int] | None = None
    path: tuple[str, ...] = ()
    current: State | None = None

    @classmethod
    def of_attempt(cls, snapshot: Snapshot) -> Self:
        """Return the diagram of one attempt: its path lit, the state it is in marked."""
        return cls(path=tuple(move.id for move in snapshot.history), current=snapshot.state)

    def note(self, row: Transition) -> str:
        """Return what stands behind an edge's event: its count, or when it was walked."""
        if self.counts is not None:
            return f"{self.counts.get(row.id, 0)}"
        steps = [str(number) for number in self.steps(row)]
        return f"step{'s'[: len(steps) > 1]} {', '.join(steps)}" if steps else ""

    def label(self, row: Transition) -> str:
        """Return the text of an edge."""
        note = self.note(row)
        return f"{row.id} {row.event} ({note})" if note else f"{row.id} {row.event}"

    def steps(self, row: Transition) -> list[int]:
        """Return at which steps of the path, from 1, a row was walked."""
        return [number for number, id_ in enumerate(self.path, 1) if id_ == row.id]

    def is_visited(self, state: State) -> bool:
        """Say whether the path led through `state`."""
        ends = {end for row in self.rows if row.id in self.path for end in (row.source, row.target)}
        return state in ends or state is self.current

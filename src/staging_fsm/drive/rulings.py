"""The answers to a launch."""

from enum import StrEnum, unique

import attrs


@unique
class Ruling(StrEnum):
    """What became of a launch."""

    #: The runner had it: it ended, it waits for its next run, or it is in other hands.
    TAKEN = "taken"
    #: The LLM path has it.
    DECLINED = "declined"
    #: Nobody may start anything: the row could not be read, or is refused.
    HELD = "held"


@attrs.frozen
class Decision:
    """The answer to a launch: false only where the host should spawn its agent."""

    ruling: Ruling
    reason: str

    def __bool__(self) -> bool:
        """Say whether the host must leave the job alone."""
        return self.ruling is not Ruling.DECLINED

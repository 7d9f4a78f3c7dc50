"""What the commands tell the shell."""

import enum


class ExitCode(enum.IntEnum):
    """What `staging-fsm run` tells the shell."""

    #: The work item moved forwards.
    ADVANCED = 0
    #: The suite ran and failed: back to the developer.
    ROLLED_BACK = 1
    #: The command line was wrong; nothing was done.
    USAGE = 2
    #: The suite could not be run: nobody's fault, and nothing advanced.
    FAILED_CLOSED = 3
    #: The runner declined, refused, or broke: look at what it said, and at the row.
    DECLINED = 4
    #: Somebody cancelled it.
    CANCELLED = 5

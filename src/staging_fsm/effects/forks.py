"""What a process that was forked from another must not keep of it.

That is its name, its locks, its threads and its connections.

A server that loads first and forks then would give all its workers one name, and each
would take the others' attempts for its own; a lock that some thread held at the
fork is held for ever, by nobody; and over one socket each would read the others' answers.
"""

import os
from typing import Protocol
from weakref import WeakSet


class Forkable(Protocol):
    """Something that has a life of its own in each process."""

    def begin_anew(self) -> None:
        """Forget what only the process had that this one was forked from."""


_KNOWN: "WeakSet[Forkable]" = WeakSet()


def begin_anew_after_forks(it: Forkable) -> None:
    """Have `it.begin_anew()` be called in every process that is forked from now on, first of all.

    No other thread is there yet (https://docs.python.org/3/library/os.html#os.register_at_fork).
    """
    _KNOWN.add(it)


def _begin_anew() -> None:
    for it in list(_KNOWN):
        it.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)

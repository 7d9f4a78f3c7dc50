"""What is worked out once and kept, also where several threads ask for it at the same moment.

`functools.cached_property` lets each of them work it out since Python 3.12
(https://docs.python.org/3/library/functools.html#functools.cached_property): of one table
there were two then, and a statement over both.
"""

import os
import threading
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, overload

Value = TypeVar("Value")


class once(Generic[Value]):  # noqa: N801  # it stands where a decorator does
    """A property whose value is worked out by one thread, for all; what it raises is not kept.

    Whoever asks one object waits for no other: each has a turn of its own.
    """

    def __init__(self, work: Callable[[Any], Value]) -> None:
        """Work the value out by `work`, whose name it has."""
        self._work = work
        self.__doc__ = work.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Value: ...

    def __get__(self, instance: object | None, owner: type) -> Self | Value:
        """Return the value. From then on it is found in the object itself, before this is asked."""
        if instance is None:
            return self
        known, name = instance.__dict__, self._work.__name__
        with turn_of(instance):
            if name not in known:
                known[name] = self._work(instance)
            found: Value = known[name]
            return found


def turn_of(instance: object) -> Any:
    """Return the lock of whoever works something out for an object in this process.

    Whose turn it was when a process was forked is in the parent alone.
    """
    return instance.__dict__.setdefault(f"_turn_in_{os.getpid()}", threading.RLock())

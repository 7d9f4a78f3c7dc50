"""What is worked out once and kept, also where several threads ask for it at the same moment.

`functools.cached_property` lets each of them work it out since Python 3.12
(https://docs.python.org/3/library/functools.html#functools.cached_property): of one table
there were two then, and a statement over both.
"""

import threading
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, overload

from staging_fsm.effects.forks import begin_anew_after_forks

Value = TypeVar("Value")


class _Turn:
    """Whose turn it is to work something out."""

    def __init__(self) -> None:
        self.lock: Any = threading.RLock()

    def begin_anew(self) -> None:
        """Have it be nobody's turn: who had it at a fork is in the parent alone."""
        self.lock = threading.RLock()


_TURN = _Turn()
begin_anew_after_forks(_TURN)


class once(Generic[Value]):  # noqa: N801  # it stands where a decorator does
    """A property whose value is worked out by one thread, for all; what it raises is not kept."""

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
        with _TURN.lock:
            known, name = instance.__dict__, self._work.__name__
            if name not in known:
                known[name] = self._work(instance)
            found: Value = known[name]
            return found

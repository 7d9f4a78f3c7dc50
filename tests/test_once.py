"""What threads work out together: once, by one of them, for all."""

import threading

import pytest

from staging_fsm.effects import once as module
from staging_fsm.effects.once import once

#: How long a test waits for what must happen before it calls it a failure.
PATIENCE_SECONDS = 60


class Asked:
    """A lock that says when somebody else wants it."""

    def __init__(self) -> None:
        """Be nobody's."""
        self._lock, self.again = threading.RLock(), threading.Event()
        self._first = threading.get_ident()

    def __enter__(self) -> None:
        """Take it, or wait for it."""
        if threading.get_ident() != self._first:
            self.again.set()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self._lock.release()


def test_value_is_worked_out_by_one_of_two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that asks while another works a value out waits, and has the same one."""
    lock, found = Asked(), []
    monkeypatch.setattr(module._TURN, "lock", lock)

    class Table:
        """Something that takes its time."""

        @once
        def columns(self) -> object:
            """Return something that is like no other."""
            if not lock.again.is_set():
                other.start()
                assert lock.again.wait(PATIENCE_SECONDS)
            return object()

    table = Table()
    other = threading.Thread(target=lambda: found.append(table.columns))
    mine = table.columns
    other.join(PATIENCE_SECONDS)

    assert found == [mine]
    assert table.columns is mine


def test_value_that_could_not_be_worked_out_is_asked_for_again() -> None:
    """What failed is tried again by whoever asks next; the description is that of the work."""
    tries: list[int] = []

    class Table:
        """Something that is away at first."""

        @once
        def columns(self) -> int:
            """Return how often it was asked."""
            tries.append(1)
            if len(tries) == 1:
                message = "away"
                raise OSError(message)
            return len(tries)

    table = Table()
    with pytest.raises(OSError, match="away"):
        _ = table.columns

    assert (table.columns, table.columns) == (2, 2)
    assert Table.columns.__doc__ == "Return how often it was asked."

"""What threads work out together: once, by one of them, for all."""

import os
import threading

import pytest

from staging_fsm.effects.once import once, turn_of

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


class Table:
    """Something that another thread asks for while it is worked out."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self.lock, self.tries = Asked(), 0
        self.__dict__[f"_turn_in_{os.getpid()}"] = self.lock
        self.found: list[object] = []
        self.other = threading.Thread(target=lambda: self.found.append(self.columns))

    @once
    def columns(self) -> object:
        """Return something that is like no other."""
        self.tries += 1
        if self.tries == 1:
            self.other.start()
            assert self.lock.again.wait(PATIENCE_SECONDS)
        return object()


class Away:
    """Something that cannot be worked out at first."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self.tries = 0

    @once
    def columns(self) -> int:
        """Return how often it was asked."""
        self.tries += 1
        if self.tries == 1:
            message = "away"
            raise OSError(message)
        return self.tries


def test_value_is_worked_out_by_one_of_two_threads() -> None:
    """A thread that asks while another works a value out waits, and has the same one."""
    table = Table()
    mine = table.columns
    table.other.join(PATIENCE_SECONDS)

    assert table.found == [mine]
    assert (table.columns is mine, table.tries) == (True, 1)


def test_value_that_could_not_be_worked_out_is_asked_for_again() -> None:
    """What failed is tried again by whoever asks next; the description is that of the work."""
    table = Away()
    with pytest.raises(OSError, match="away"):
        _ = table.columns

    assert (table.columns, table.columns) == (2, 2)
    assert Away.columns.__doc__ == "Return how often it was asked."


def test_turn_is_of_one_object_in_one_process() -> None:
    """Whoever asks one table waits for no other's, nor for a thread of the process it came from."""
    one, another = Away(), Away()
    with turn_of(one):
        pid = os.fork()
        if pid == 0:
            # A lock that some thread held at the fork would be held for ever.
            free = threading.Thread(target=lambda: turn_of(one).acquire(), daemon=True)
            free.start()
            free.join(PATIENCE_SECONDS)
            os._exit(free.is_alive())
        _, status = os.waitpid(pid, 0)
        apart = turn_of(one) is turn_of(one) and turn_of(one) is not turn_of(another)

    assert (os.waitstatus_to_exitcode(status), apart) == (0, True)

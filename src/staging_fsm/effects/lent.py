"""The driver's connection while a gate has it in hand, and how it was before.

It goes back into a pool: what a host's code changes of it would be there for everybody. And
its transaction is not the gate's to end: what it wrote could not be undone any more.
"""

from typing import Any, Final

#: What a driver lets its user say of how rows and texts are read.
_SETTINGS: Final = ("row_factory", "text_factory", "cursor_factory")


class LentConnection:
    """A driver's connection, as it was lent."""

    def __init__(self, driver: Any) -> None:
        """Note how rows and texts are read by `driver`, and how much it has written."""
        self._driver = driver
        self._noted = {it: getattr(driver, it) for it in _SETTINGS if hasattr(driver, it)}
        self._changes: int | None = getattr(driver, "total_changes", None)

    def give_back(self) -> None:
        """Have rows and texts be read as before."""
        for name, value in self._noted.items():
            if getattr(self._driver, name) is not value:
                setattr(self._driver, name, value)

    def is_ended(self) -> bool:
        """Say whether whoever had it has closed it, or in SQLite committed what was written.

        There the end of a savepoint commits as well: its driver begins no transaction before
        one. A commit alone on PostgreSQL is not seen, nor one in SQLite after which something
        was written anew.
        """
        if self.is_closed():
            return True
        if self._changes is None:
            return False
        return bool(self._driver.total_changes > self._changes and not self._driver.in_transaction)

    def is_closed(self) -> bool:
        """Say whether whoever had it has closed it; one that was lost is not."""
        if self._changes is None:
            closed, broken = (getattr(self._driver, it, False) for it in ("closed", "broken"))
            return bool(closed and not broken)
        try:
            return bool(self._driver.total_changes < 0)
        except self._driver.ProgrammingError:
            return True

"""The driver's connection while a gate has it in hand, and how it was before.

It goes back into a pool: what a host's code changes of it would be there for everybody.
"""

from typing import Any, Final

#: What a driver lets its user say of how rows and texts are read.
_SETTINGS: Final = ("row_factory", "text_factory", "cursor_factory")


class LentConnection:
    """A driver's connection, as it was lent."""

    def __init__(self, driver: Any) -> None:
        """Note how rows and texts are read by `driver`."""
        self._driver = driver
        self._noted = {it: getattr(driver, it) for it in _SETTINGS if hasattr(driver, it)}

    def give_back(self) -> None:
        """Have rows and texts be read as before."""
        for name, value in self._noted.items():
            if getattr(self._driver, name) is not value:
                setattr(self._driver, name, value)

"""The time of day of the drive and the host, and their waiting: what a test replaces."""

import threading
from datetime import UTC, datetime


class SystemClock:
    """The machine's clock."""

    def __init__(self) -> None:
        """Start awake-able: `wake` may be called from a signal handler."""
        self._woken = threading.Event()

    def now(self) -> datetime:
        """Return the time of day, aware and in UTC."""
        return datetime.now(UTC)

    def wait(self, seconds: float) -> None:
        """Return after `seconds`, or sooner when somebody calls `wake`."""
        self._woken.wait(max(0.0, seconds))

    def wake(self) -> None:
        """End the current and every later `wait` at once."""
        self._woken.set()

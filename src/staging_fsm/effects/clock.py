"""The time of day of the drive and the host, and their waiting: what a test replaces."""

import contextlib
import queue
from datetime import UTC, datetime


class SystemClock:
    """The machine's clock."""

    def __init__(self) -> None:
        """Start awake-able: `wake` may be called from a signal handler."""
        # Unlike an Event it takes no lock that the code under a signal may hold.
        self._woken = queue.SimpleQueue[None]()

    def now(self) -> datetime:
        """Return the time of day, aware and in UTC."""
        return datetime.now(UTC)

    def wait(self, seconds: float) -> None:
        """Return after `seconds`, or sooner when somebody calls `wake`."""
        with contextlib.suppress(queue.Empty):
            self._woken.get(timeout=max(0.0, seconds))
            self._woken.put(None)

    def wake(self) -> None:
        """End the current and every later `wait` at once."""
        self._woken.put(None)

"""What the supervisor waits for, all at once: output, the suite's end, time, a reason to stop."""

from __future__ import annotations

import os
import select
import time

from .suite import PIPE_BYTES
from .system import signal

TYPE_CHECKING = False  # typing itself would take longer to import than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable

    from .limits import Group, Sampled
    from .log import BoundedLog
    from .suite import Suite

POLLRDHUP = getattr(select, "POLLRDHUP", 0)  # without it, on macOS, POLLHUP has to do
POLL_MAX_SECONDS = 3600.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Watch:
    """Waits for output, the suite's end, a stop signal and a point in time, all at once."""

    def __init__(
        self,
        suite: Suite,
        log: BoundedLog,
        limits: Group | Sampled | None,
        fences: tuple[int, ...],
    ) -> None:
        self.suite, self.log, self.limits = suite, log, limits
        self.buffer = memoryview(bytearray(PIPE_BYTES))
        self.wake, wake_in = os.pipe()
        for fd in (self.wake, wake_in):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
        self.poll = select.poll()
        self.poll.register(self.wake, select.POLLIN)
        for fd in limits.events if limits else []:
            self.poll.register(fd, select.POLLPRI)
        self.output_open = False
        self.last_output = 0.0
        # The handlers keep what happened; the pipe only wakes us, and may be full.
        self.stop_requested = self.child_ended = self.fence_lost = False
        # Ours to hold, not to read: only the end of a connection is of interest.
        self.fences = fences
        for fd in fences:
            self.poll.register(fd, POLLRDHUP)
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCHLD, self._on_child)

    def _on_stop(self, *_: object) -> None:
        self.stop_requested = True

    def _on_child(self, *_: object) -> None:
        self.child_ended = True

    def stop_reason(self) -> str | None:
        """Return why the suite must not go on, or None if it may."""
        breach = self.limits.breach if self.limits else lambda: None
        return self.asked_to_stop() or breach()

    def asked_to_stop(self) -> str | None:
        """Return how others have told us that the suite must not go on, or None."""
        if self.fence_lost:
            return "fence_lost"
        return "request" if self.stop_requested else None

    def open_output(self) -> None:
        """Begin to read what the suite prints."""
        self.poll.register(self.suite.output, select.POLLIN | select.POLLHUP)
        self.output_open = True
        self.last_output = time.monotonic()

    def until(self, condition: Callable[[], bool], deadline: float) -> bool:
        """Wait until `condition` holds or the monotonic `deadline` passes; say which."""
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.turn(min(left, POLL_MAX_SECONDS))
        return True

    def await_stop(self, deadline: float, idle: float) -> str | None:
        """Return why the suite must be stopped now, or wait for something to happen: None."""
        reason = self.stop_reason()
        if reason:
            return reason
        now = time.monotonic()
        if now >= deadline:
            return "deadline"
        silent_until = self.last_output + idle if idle else deadline
        if now >= silent_until:
            # We may have been asleep ourselves: what was printed meanwhile was printed.
            before = self.last_output
            self.turn(0)
            return "idle" if self.last_output == before and not self.suite.ended else None
        look = self.limits.seconds if self.limits else POLL_MAX_SECONDS
        self.turn(min(deadline - now, silent_until - now, look, POLL_MAX_SECONDS))
        return None

    def turn(self, seconds: float) -> None:
        """Take in the next output or signal, or return after `seconds`."""
        for fd, _ in self.poll.poll(seconds * 1000):
            if fd == self.wake:
                os.read(self.wake, 4096)
            elif fd == self.suite.output:
                self._read_output()
            elif fd in self.fences:
                self.fence_lost = True
                self.poll.unregister(fd)
            else:
                os.pread(fd, 4096, 0)  # a limit's events: read, or they would wake us again
        if self.child_ended:
            self.child_ended = False
            self.suite.look()

    def _read_output(self) -> None:
        try:
            size = os.readv(self.suite.output, [self.buffer])
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if size:
            self.last_output = time.monotonic()
            self.log.write(self.buffer[:size])
        else:
            # Closed is not ended: a suite may close its output and run on.
            self.poll.unregister(self.suite.output)
            self.output_open = False

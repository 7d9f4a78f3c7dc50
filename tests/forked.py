"""What a process says that was forked from the one of the tests."""

import os
import signal
from collections.abc import Callable

from stand import PATIENCE_SECONDS


def answer_of_fork(ask: Callable[[], object]) -> str:
    """Return what `ask` returns in a process that is forked now, as text; none if it raises."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)
        try:
            os.write(tell, str(ask()).encode())
        finally:
            os._exit(0)
    os.close(tell)
    with os.fdopen(told) as reading:
        answer = reading.read()
    os.waitpid(pid, 0)
    return answer

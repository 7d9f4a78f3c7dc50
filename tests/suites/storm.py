"""Forks faster than it is looked at: each lane forks its successor, flees from it and ends.

`storm.py LANES FORKS`: bounded, each lane ends by itself after FORKS of them.
"""

import os
import signal
import sys

from lifeline import announce, stay

LANES, FORKS = int(sys.argv[1]), int(sys.argv[2])


def lane() -> None:
    """Fork and flee."""
    for _ in range(FORKS):
        try:
            if os.fork():
                os._exit(0)
        except OSError:
            continue  # the machine is full of us
        os.setsid()
    os._exit(0)


signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(LANES):
    if os.fork() == 0:
        lane()
announce(LANES)
stay()

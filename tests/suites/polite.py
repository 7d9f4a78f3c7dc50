"""Cleans up when it is told to end, and then claims that all is well."""

import os
import signal
import sys

from lifeline import announce, stay


def leave(*_: object) -> None:
    """End with success."""
    os.write(1, b"cleaned up\n")
    sys.exit(0)


signal.signal(signal.SIGTERM, leave)
announce()
stay()

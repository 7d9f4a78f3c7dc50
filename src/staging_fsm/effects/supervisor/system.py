"""What the supervisor needs of the system, by the shortest way to import it."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing itself would take longer to import than all the rest
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
else:
    try:
        import _signal as signal  # without the enums of signal: 6 ms for the same functions
    except ImportError:
        import signal

try:
    from _blake2 import blake2b  # hashlib would load OpenSSL: 10 ms for the same function
except ImportError:
    from hashlib import blake2b

__all__ = ["HAS_WAITID", "IS_LINUX", "NEW_FILE", "blake2b", "signal", "system_prctl", "write_all"]

IS_LINUX = sys.platform == "linux"
HAS_WAITID = hasattr(os, "waitid")  # macOS has it since Python 3.13
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def system_prctl() -> Callable[..., int]:
    """Return the system's prctl, which takes up to five numbers."""
    try:
        # The core of ctypes, without all that ctypes builds on it: a third of our start.
        import _ctypes

        address = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]  # None is ourselves
        call = _ctypes.call_function
    except (ImportError, AttributeError, OSError):
        import ctypes

        found: Callable[..., int] = ctypes.CDLL(None).prctl
        return found
    return lambda *numbers: call(address, numbers)


def write_all(fd: int, block: bytes | memoryview) -> None:
    """Write all of `block`."""
    view = memoryview(block)
    while view:
        view = view[os.write(fd, view) :]

"""Standard streams that take no more: what is said there may be lost, and nothing else ends by it.

Python ends with exit code 1 where it cannot print, and that is what a suite that failed
ends with.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import IO


@contextlib.contextmanager
def lossy(file: IO[str], lost: Callable[[OSError], None] = lambda _error: None) -> Iterator[None]:
    """Let what is printed be lost where `file` takes no more: a closed pipe, a full disk.

    `lost` is told, but of no reader who went away: he wants to hear no more.
    """
    try:
        yield
    except BrokenPipeError:
        give_up(file)
    except OSError as error:
        give_up(file)
        lost(error)


def takes_no_more(file: IO[str] | None) -> bool:
    """Say whether what `file` was told last is still with us, since nobody takes it."""
    try:
        if file is not None:
            file.flush()
    except OSError:
        return True
    return False


def give_up(file: IO[str]) -> None:
    """Have nothing arrive any more of what `file` is told."""
    # What is still in its buffer has to go somewhere when the process ends.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file.fileno())
    os.close(nowhere)

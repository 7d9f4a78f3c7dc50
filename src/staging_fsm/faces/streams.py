"""Standard streams that take no more: what is said there may be lost, and nothing else ends by it.

Python ends with exit code 1 where it cannot print, and that is what a suite that failed
ends with.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import IO


@contextlib.contextmanager
def lossy(file: IO[str]) -> Iterator[None]:
    """Let what is printed be lost where `file` takes no more: a closed pipe, a full disk."""
    try:
        yield
    except OSError:
        give_up(file)


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

"""The output of a command that carries an attempt: it may be lost, and the attempt goes on.

Elsewhere a closed pipe ends the process with exit code 1, and that is what a suite that
failed ends with.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import IO

from rich.console import Console


class PatientConsole(Console):
    """A console that is quiet once its reader has gone away."""

    def on_broken_pipe(self) -> None:
        """Print nothing any more."""
        self.quiet = True
        _give_up(self.file)


@contextlib.contextmanager
def lossy(file: IO[str]) -> Iterator[None]:
    """Let what is printed be lost where `file` takes no more: a closed pipe, a full disk."""
    try:
        yield
    except OSError:
        _give_up(file)


def _give_up(file: IO[str]) -> None:
    # What is still in its buffer has to go somewhere when the process ends.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file.fileno())
    os.close(nowhere)

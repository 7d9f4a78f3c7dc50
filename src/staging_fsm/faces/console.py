"""The output of a command that carries an attempt: its reader may go away, and the attempt goes on.

Elsewhere a closed pipe ends the process with exit code 1, and that is what a suite that
failed ends with.
"""

import os
import sys
from typing import IO

import click
from rich.console import Console


class PatientConsole(Console):
    """A console that is quiet once its reader has gone away."""

    def on_broken_pipe(self) -> None:
        """Print nothing any more."""
        self.quiet = True
        _give_up(self.file)


def echo(text: str) -> None:
    """Print a line on standard output, or nothing if nobody reads it."""
    try:
        click.echo(text)
    except BrokenPipeError:
        _give_up(sys.stdout)


def _give_up(file: IO[str]) -> None:
    # What is still in its buffer has to go somewhere when the process ends.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file.fileno())
    os.close(nowhere)

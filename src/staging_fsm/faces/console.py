"""What a command prints on whose reader may go away: an attempt goes on, a look is over."""

from rich.console import Console

from staging_fsm.faces.streams import give_up


class PatientConsole(Console):
    """A console that is quiet once its reader has gone away."""

    def on_broken_pipe(self) -> None:
        """Print nothing any more."""
        self.quiet = True
        give_up(self.file)


class LookingConsole(Console):
    """A console of a command that only looks: without its reader there is nothing left to do."""

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, where rich ends with 1: that says what a suite or audit found."""
        raise BrokenPipeError

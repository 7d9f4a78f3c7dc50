"""The output of a command that carries an attempt: it may be lost, and the attempt goes on."""

from rich.console import Console

from staging_fsm.faces.streams import give_up


class PatientConsole(Console):
    """A console that is quiet once its reader has gone away."""

    def on_broken_pipe(self) -> None:
        """Print nothing any more."""
        self.quiet = True
        give_up(self.file)

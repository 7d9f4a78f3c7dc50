"""`staging-fsm`: the commands by name. What each does stands in `commands`, loaded when it runs."""

import importlib
import io
import logging
import os
import signal
import sys
import traceback
from typing import Any, Final

import click

from staging_fsm.core.errors import StagingError, in_words
from staging_fsm.faces.exits import ExitCode
from staging_fsm.faces.streams import give_up, lossy, takes_no_more
from staging_fsm.faces.trouble import trouble

#: What `--help` says of each command: here, so that saying it imports none of them.
COMMANDS: Final = {
    "demo": "Carry three work items their three ways.",
    "run": "Run one staging attempt of a repository, to its end.",
    "worker": "Work on the jobs of the embedded orchestrator.",
    "serve": "Serve the queue, the pages and the metrics over HTTP.",
    "recover": "Take up every attempt whose worker is gone.",
    "queue": "Show every unfinished attempt, and why it waits.",
    "show": "Show one attempt: its state, history and runs.",
    "audit": "Show the trail, and verify that it is what was written.",
    "attest": "Sign what an attempt showed, or verify what was signed.",
    "cancel": "Stop an attempt: nothing is judged.",
    "move": "Copy the embedded orchestrator into another database.",
    "fleet-setup": "Make a PostgreSQL database the database of a fleet.",
    "fleet-worker": "Work on the staging jobs of a fleet.",
    "fleet-submit": "Queue a work item for a fleet.",
    "shadow": "Make an attempt beside each launch of the LLM agent.",
    "shadow-report": "Compare what agent and runner found in shadow mode.",
    "diagram": "Write the diagrams of the table, or compare them.",
    "config": "Show every setting, its value and its meaning.",
    "doctor": "Look at everything that a run needs.",
}


class _Commands(click.Group):
    """Loads a command when it is asked for, and turns our own errors into a sentence."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names, in the order in which a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command from the module of its name."""
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        module = importlib.import_module(f"staging_fsm.faces.commands.{name}")
        command: click.Command = getattr(module, name)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error of ours is a sentence and an exit code, no traceback.

        So is what the system or the database refuses, such as a disk that is full or a
        folder that may not be entered. One that nobody foresaw shows its traceback. Neither
        it nor an interrupt is a verdict, nor that nobody hears what is said: Python's own
        exit code 1 would say that the suite ran and failed.
        """
        try:
            return super().invoke(ctx)
        except click.exceptions.Exit:
            raise
        except click.ClickException as error:
            with lossy(sys.stderr):
                error.show()
            code = error.exit_code
        except (KeyboardInterrupt, click.Abort):
            _tell("interrupted")
            code = ExitCode.CANCELLED
        except BrokenPipeError:
            give_up(sys.stdout)
            code = ExitCode.DECLINED
        except StagingError as error:
            _tell(str(error))
            code = ExitCode.DECLINED
        except Exception as error:  # noqa: BLE001  # whatever it is, it is no verdict
            words = _in_a_sentence(error)
            if words is None:
                _tell(f"internal error: {in_words(error)}", traceback.format_exc())
            else:
                _tell(words)
            code = ExitCode.DECLINED
        ctx.exit(code)
        return None


def _in_a_sentence(error: Exception) -> str | None:
    """Return what the world refused and what to do; None for an error that nobody foresaw."""
    if isinstance(error, FileNotFoundError) and _is_nowhere():
        return "the current folder was removed: change to one that is there, and ask again"
    if isinstance(error, OSError) and takes_no_more(sys.stdout):
        give_up(sys.stdout)
        return f"nothing can be printed: {error.strerror}: have it go elsewhere, and ask again"
    return trouble(error)


def _is_nowhere() -> bool:
    try:
        os.getcwd()  # noqa: PTH109  # nothing is made of it
    except FileNotFoundError:
        return True
    return False


def _tell(sentence: str, before: str = "") -> None:
    with lossy(sys.stderr):
        click.echo(f"{before}staging-fsm: {sentence}", err=True)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="staging-fsm")
def main() -> None:
    """Run staging suites deterministically: no verdict without a suite that ran."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal has no sign for is no reason to end anything.
            stream.reconfigure(errors="replace")
    # Whoever started us may have ignored it, and then no process that ends says how it did.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(message)s")

"""`staging-fsm demo`: three work items go their three ways."""

import logging
import sys

import click

from staging_fsm.faces.console import PatientConsole
from staging_fsm.faces.demo import run_demo


@click.command()
def demo() -> None:
    """Carry three work items their three ways: advanced, rolled back, failed closed."""
    # The third story's alert is part of the story; its log line would only disturb it.
    logging.getLogger("staging_fsm").setLevel(logging.CRITICAL)
    sys.exit(0 if run_demo(PatientConsole(highlight=False)) else 1)

"""`staging-fsm shadow`: the runner beside the LLM agent."""

import logging
import os
import signal

import click

from staging_fsm.drive.shadow import Shadow


@click.command()
@click.option("--once", is_flag=True, help="Make the attempts that are due, then end.")
def shadow(*, once: bool) -> None:
    """Make an attempt beside each launch of the LLM agent, and only record it.

    Does nothing unless shadow mode is on and the kill switch is not thrown.
    """
    logging.getLogger("staging_fsm").setLevel(logging.INFO)
    beside = Shadow(os.environ)
    if once:
        click.echo(f"attempts made beside the agent: {beside.run_once()}")
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: beside.stop())
    beside.run_forever()

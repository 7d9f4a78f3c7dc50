"""`staging-fsm fleet-worker`: one worker of a fleet, to be started again whenever it ends."""

import logging
import os
from collections.abc import Mapping

import click

from staging_fsm.core.config import is_shadow, is_switched_off, load_config, variable_name
from staging_fsm.drive.planning import read_suites
from staging_fsm.faces.fleet import open_fleet, require_fleet
from staging_fsm.faces.options import db_option
from staging_fsm.faces.session import open_session


@click.command("fleet-worker")
@db_option
@click.option(
    "--concurrency",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="How many suites this worker runs at once.",
)
def fleet_worker(db: str | None, concurrency: int) -> None:
    """Work on the staging jobs of a fleet until told to stop, or until the database is lost.

    Exit code 0 after SIGTERM or SIGINT, 4 where its settings are refused, else 75. Whatever
    it is, start it again: running suites do not end with their worker, and the next one
    takes them up.
    """
    logging.getLogger("staging_fsm").setLevel(logging.INFO)
    session = open_session(db)
    fleet = open_fleet(session)
    require_fleet(session)
    fleet.refuse_other_papers()
    _refuse_invalid(session.variables)
    from staging_fsm.fleet.worker import run_worker  # noqa: PLC0415  # the extra "fleet"

    click.echo(f"worker {fleet.worker}", err=True)
    code = run_worker(fleet, concurrency)
    # Not by sys.exit: it would wait for the threads that wait for suites.
    os._exit(code)


def _refuse_invalid(variables: Mapping[str, str]) -> None:
    """Raise ConfigInvalidError where no job at all could be run with what is configured.

    Where the runner is plainly off, or only looks on, none is to be. A switch that is not
    there may be one that is misspelt.
    """
    says_off = variable_name("enabled") in variables and is_switched_off(variables)
    if not (says_off or is_shadow(variables)):
        config = load_config(variables)
        if config.enabled:
            read_suites(config)

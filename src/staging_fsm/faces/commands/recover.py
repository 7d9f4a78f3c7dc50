"""`staging-fsm recover`: every attempt whose worker is gone is taken up."""

import json

import click

from staging_fsm.faces.console import PatientConsole
from staging_fsm.faces.fleet import is_fleet_session, open_fleet
from staging_fsm.faces.options import db_option, json_option
from staging_fsm.faces.progress import Progress
from staging_fsm.faces.session import Session, open_session, stored_attempt


@click.command()
@db_option
@json_option
def recover(db: str | None, *, as_json: bool) -> None:
    """Take up every attempt whose worker is gone, and drive it on."""
    session = open_session(db, create=db is None)
    if is_fleet_session(session):
        _redeliver(session, as_json=as_json)
        return
    console = PatientConsole(stderr=as_json, highlight=False)
    progress = Progress(console, session.state, session.variables)
    staging = session.staging(watch=progress.moved)
    touched = staging.recover()
    progress.stop()
    views = [session.view(*stored_attempt(session, row.id)) for row in touched]
    if as_json:
        click.echo(json.dumps(views))
    elif not views:
        click.echo("nothing to recover")


def _redeliver(session: Session, *, as_json: bool) -> None:
    """Have a fleet's workers look again at what stalled workers had and nobody was told of."""
    fleet = open_fleet(session)
    from staging_fsm.fleet.worker import redeliver  # noqa: PLC0415  # the extra "fleet"

    jobs = redeliver(fleet)
    if as_json:
        attempts = [(row, row.snapshot()) for row in map(session.rows.load, jobs)]
        views = [session.view(row, found) for row, found in attempts if found is not None]
        click.echo(json.dumps(views))
    else:
        words = ", ".join(map(str, jobs))
        click.echo(f"delivered again: {words}" if jobs else "nothing to recover")

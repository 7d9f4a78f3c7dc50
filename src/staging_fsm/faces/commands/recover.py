"""`staging-fsm recover`: every attempt whose worker is gone is taken up."""

import json

import click
from rich.console import Console

from staging_fsm.faces.options import db_option, json_option
from staging_fsm.faces.progress import Progress
from staging_fsm.faces.session import open_session, stored_view


@click.command()
@db_option
@json_option
def recover(db: str | None, *, as_json: bool) -> None:
    """Take up every attempt whose worker is gone, and drive it on."""
    session = open_session(db)
    console = Console(stderr=as_json, highlight=False)
    progress = Progress(console, session.state, session.variables)
    staging = session.staging(watch=progress.moved)
    touched = staging.recover()
    progress.stop()
    views = [stored_view(session, session.rows.load(row.id)) for row in touched]
    if as_json:
        click.echo(json.dumps(views))
    elif not views:
        click.echo("nothing to recover")

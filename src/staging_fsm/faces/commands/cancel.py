"""`staging-fsm cancel`: nothing is judged, and the job ends as cancelled."""

import click

from staging_fsm.faces.fleet import is_fleet_session, open_fleet
from staging_fsm.faces.options import db_option
from staging_fsm.faces.session import open_session


@click.command()
@click.argument("job", type=int)
@db_option
def cancel(job: int, db: str | None) -> None:
    """Stop an attempt: its suite is stopped, nothing is judged, the job ends as cancelled."""
    session = open_session(db, create=db is None)
    if is_fleet_session(session):
        fleet = open_fleet(session)
        from staging_fsm.fleet import requests  # noqa: PLC0415  # the extra "fleet"

        ended = requests.cancel(fleet, session.staging(), job)
    else:
        ended = session.staging().cancel(job)
    click.echo(f"job {job}: {ended.state}")

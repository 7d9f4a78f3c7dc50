"""`staging-fsm fleet-setup`: the engine's schema, once."""

import click

from staging_fsm.faces.fleet import open_fleet
from staging_fsm.faces.options import db_option
from staging_fsm.faces.session import open_session


@click.command("fleet-setup")
@db_option
def fleet_setup(db: str | None) -> None:
    """Create the engine's own schema in the database; the host's tables are not touched."""
    session = open_session(db)
    fleet = open_fleet(session)
    from staging_fsm.fleet.worker import redeliver  # noqa: PLC0415  # the extra "fleet"

    created = fleet.deliveries.set_up(fleet.engine)
    words = "created, with the engine's tables in it" if created else "is there already"
    click.echo(f"schema {fleet.settings.schema}: {words}")
    fleet.deliveries.note(fleet.engine, fleet.papers)
    click.echo(fleet.papers)
    waiting = redeliver(fleet)
    click.echo(f"jobs that waited for a fleet: {len(waiting)}")

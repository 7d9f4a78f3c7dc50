"""`staging-fsm fleet-setup`: the engine's schema, once."""

import click

from staging_fsm.faces.fleet import open_fleet
from staging_fsm.faces.options import db_option
from staging_fsm.faces.session import open_session


@click.command("fleet-setup")
@db_option
def fleet_setup(db: str | None) -> None:
    """Create the engine's own schema in the database; the host's tables are not touched.

    With a shared folder, which must be there, a mark is left in it.
    """
    session = open_session(db)
    fleet = open_fleet(session)
    from staging_fsm.fleet.deliveries import Note  # noqa: PLC0415  # the extra "fleet"
    from staging_fsm.fleet.publisher import SharedFolder  # noqa: PLC0415  # the extra "fleet"
    from staging_fsm.fleet.worker import redeliver  # noqa: PLC0415  # the extra "fleet"

    # First: where it is not there, nothing is set up for it.
    shared = fleet.settings.shared_dir
    note = Note(fleet.settings.papers, None if shared is None else SharedFolder(shared).marked())
    created = fleet.deliveries.set_up(fleet.engine)
    words = "created, with the engine's tables in it" if created else "is there already"
    click.echo(f"schema {fleet.settings.schema}: {words}")
    fleet.deliveries.note(fleet.engine, note)
    click.echo(note)
    waiting = redeliver(fleet)
    click.echo(f"jobs that waited for a fleet: {len(waiting)}")

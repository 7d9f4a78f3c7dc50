"""`staging-fsm move`: the embedded orchestrator's rows, in another database."""

import click

from staging_fsm.faces.session import open_session
from staging_fsm.host.move import move_rows


@click.command()
@click.option("--from", "source", metavar="URL", help="Where they are; default: as everywhere.")
@click.option("--to", "target", required=True, metavar="URL", help="The new, empty database.")
def move(source: str | None, target: str) -> None:
    """Copy every repository, work item and job into another database, as they are.

    All or nothing: each row is compared before anything is committed. Refused while a
    job is in work. End every worker of the old database before, and put it away after:
    what waits is in both.
    """
    old = open_session(source, create=False)
    old.store.check_schema()
    moved = move_rows(old.store.engine, open_session(target).store.engine)
    click.echo("moved: " + ", ".join(f"{count} {table}" for table, count in moved.items()))

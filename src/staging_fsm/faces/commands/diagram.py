"""`staging-fsm diagram`: the diagrams of the table, written or compared."""

import sys
from pathlib import Path

import click

from staging_fsm.faces.diagrams import Diagram, outdated, write_diagrams


@click.command()
@click.option("--check", is_flag=True, help="Compare the files instead of writing them.")
@click.option(
    "--output",
    default="diagrams",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the diagrams.",
)
def diagram(output: Path, *, check: bool) -> None:
    """Write the diagrams of the transition table, or check that they are current."""
    if not check:
        for path in write_diagrams(output, Diagram()):
            click.echo(path)
        return
    stale = outdated(output, Diagram())
    for name in stale:
        click.echo(f"{output / name} differs from the table: run `staging-fsm diagram`", err=True)
    sys.exit(1 if stale else 0)

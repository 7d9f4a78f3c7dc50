"""`staging-fsm diagram`: the diagrams of the table, of one attempt, or of all history."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import click

from staging_fsm.core.errors import SnapshotRefusedError
from staging_fsm.core.jobs import JobRow
from staging_fsm.faces.diagrams import (
    Diagram,
    dot,
    markdown_table,
    mermaid,
    outdated,
    svg,
    write_diagrams,
)
from staging_fsm.faces.options import db_option
from staging_fsm.faces.papers import writing

FORMATS: Final[dict[str, Callable[[Diagram], str]]] = {
    "svg": svg,
    "mermaid": mermaid,
    "dot": dot,
    "table": markdown_table,
}


@click.command()
@click.option("--check", is_flag=True, help="Compare the files instead of writing them.")
@click.option(
    "--output",
    default="diagrams",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the diagrams.",
)
@click.option("--job", type=int, help="Print the diagram of this job's attempt, its path lit.")
@click.option("--counts", is_flag=True, help="Print the diagram with counts over all attempts.")
@click.option(
    "--format",
    "format_",
    default="svg",
    type=click.Choice([*FORMATS]),
    help="Format of what --job and --counts print.",
)
@db_option
def diagram(
    output: Path, job: int | None, format_: str, db: str | None, *, check: bool, counts: bool
) -> None:
    """Write the diagrams of the transition table, or check that they are current.

    With --job or --counts, print one diagram of what is stored instead.
    """
    if (job is not None) + counts + check > 1:
        message = "--check, --job and --counts exclude each other"
        raise click.UsageError(message)
    if job is not None or counts:
        click.echo(FORMATS[format_](_stored(db, job)), nl=False)
    elif check:
        _check(output)
    else:
        with writing(output):
            written = write_diagrams(output, Diagram())
        for path in written:
            click.echo(path)


def _check(output: Path) -> None:
    stale = outdated(output, Diagram())
    for name in stale:
        click.echo(f"{output / name} differs from the table: run `staging-fsm diagram`", err=True)
    sys.exit(1 if stale else 0)


def _stored(db: str | None, job: int | None) -> Diagram:
    # The database's packages are needed here only: the table is drawn without them.
    from staging_fsm.faces.session import open_session, stored_attempt  # noqa: PLC0415  # see above

    session = open_session(db, create=db is None, only_to_look=True)
    if job is not None:
        _, snapshot = stored_attempt(session, job)
        return Diagram.of_attempt(snapshot)
    return Diagram(counts=transition_counts(session.rows.attempts()))


def transition_counts(rows: Iterable[JobRow]) -> Counter[str]:
    """Return how often each transition was walked in the attempts of `rows`.

    A refused attempt is no evidence of anything: it is named on the error stream
    and not counted.
    """
    counts: Counter[str] = Counter()
    for row in rows:
        try:
            snapshot = row.snapshot()
        except SnapshotRefusedError as error:
            click.echo(f"job {row.id} is not counted: {error.problem}", err=True)
            continue
        if snapshot is not None:
            counts.update(move.id for move in snapshot.history)
    return counts

"""`staging-fsm show`: one attempt, its history and its runs."""

import json
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from staging_fsm.core.snapshot import Snapshot
from staging_fsm.faces.options import db_option, json_option
from staging_fsm.faces.session import open_session, stored_attempt, stored_view
from staging_fsm.faces.views import sentence


@click.command()
@click.argument("job", type=int)
@db_option
@json_option
def show(job: int, db: str | None, *, as_json: bool) -> None:
    """Show one attempt: its state, its history, its runs."""
    session = open_session(db)
    row, snapshot = stored_attempt(session, job)
    view = stored_view(session, row)
    if as_json:
        click.echo(json.dumps(view))
        return
    console = Console(highlight=False)
    print_end(console, view, snapshot)
    history = Table("time", "id", "source", "event", "target", "why", title="History")
    for move in snapshot.history:
        where = (move.row.source, move.row.event, move.row.target)
        history.add_row(move.time, move.id, *map(str, where), move.reason)
    runs = Table("run", "started", "seconds", "exit code", "signal", "reason", title="Runs")
    for run_ in snapshot.runs:
        facts = (run_.duration_seconds, run_.exit_code, run_.signal, run_.reason)
        cells = ["-" if fact is None else str(fact) for fact in facts]
        runs.add_row(str(run_.number), run_.started_at, *cells)
    console.print(history, runs)


def print_end(console: Console, view: dict[str, Any], snapshot: Snapshot) -> None:
    """Print where an attempt is and why, and where its papers are."""
    console.print(f"{view['work_item']}: {view['state']}. {sentence(snapshot)}", soft_wrap=True)
    for name in ("revision", "artifact", "log", "next_stage"):
        if view[name]:
            console.print(f"  {name.replace('_', ' ')}: {view[name]}", soft_wrap=True)

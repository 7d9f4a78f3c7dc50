"""`staging-fsm queue`: what is not finished, and why."""

import json

import click
from rich.console import Console
from rich.table import Table

from staging_fsm.faces.options import db_option, json_option
from staging_fsm.faces.session import open_session
from staging_fsm.faces.views import queue_view


@click.command()
@db_option
@json_option
def queue(db: str | None, *, as_json: bool) -> None:
    """Show every unfinished attempt: state, run, time, what is next, and why."""
    session = open_session(db)
    view = queue_view(session.rows.unfinished(), session.clock.now())
    if as_json:
        click.echo(json.dumps(view))
        return
    table = Table("job", "repo", "work item", "state", "run", "for", "next run", "why")
    for attempt in view["attempts"]:
        table.add_row(
            str(attempt["job_id"]),
            attempt["repo"],
            attempt["work_item"],
            attempt["state"],
            f"{attempt['run']} of {attempt['runs_max']}",
            f"{attempt['seconds_in_state']:.0f} s",
            attempt["next_run_at"] or "-",
            attempt["reason"],
        )
    for row in view["refused"]:
        table.add_row(
            str(row["job_id"]), "", row["work_item"], "REFUSED", "", "", "", row["problem"]
        )
    Console(highlight=False).print(table if table.row_count else "no unfinished attempt")

"""`staging-fsm queue`: what is not finished, and why."""

import json
import os
from collections.abc import Iterator

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from staging_fsm.faces.options import db_option, json_option
from staging_fsm.faces.queue import (
    ActiveAttempt,
    QueueDocument,
    StagingRunnerBlock,
    staging_runner_block,
)
from staging_fsm.faces.session import open_session
from staging_fsm.faces.views import duration_words


@click.command()
@db_option
@json_option
def queue(db: str | None, *, as_json: bool) -> None:
    """Show every unfinished attempt: state, run, time, what is next, and why."""
    block = staging_runner_block(open_session(db).rows, os.environ)
    if as_json:
        click.echo(json.dumps(QueueDocument(staging_runner=block)))
        return
    console = Console(highlight=False)
    for line in _summary_lines(block):
        console.print(escape(line), soft_wrap=True)
    table = Table("job", "work item", "state", "run", "time", "why, and what is next")
    for name in ("job", "state", "run", "time"):
        next(column for column in table.columns if column.header == name).no_wrap = True
    for row in block["refused"]:
        names = str(row["job_id"]), escape(f"{row['repo']} {row['work_item']}")
        table.add_row(*names, "REFUSED", "", "", escape(row["problem"]))
    for attempt in block["attempts"]:
        table.add_row(*map(escape, _cells(attempt)))
    console.print(table if table.row_count else "no unfinished attempt")


def _summary_lines(block: StagingRunnerBlock) -> Iterator[str]:
    for problem in block["problems"]:
        yield f"The configuration is invalid, so every job is declined: {problem}"
    if number := block["failed_closed_last_day"]:
        at_least = "" if block["last_day_is_whole"] else "at least "
        yield f"{at_least}{number} failed closed in the last day"


def _cells(attempt: ActiveAttempt) -> Iterator[str]:
    yield str(attempt["job_id"])
    yield f"{attempt['repo']} {attempt['work_item']}"
    yield attempt["state"]
    yield f"{attempt['run']} of {attempt['runs_max'] or '?'}"
    yield _time_words(attempt)
    why = f"{attempt['reason']} " if attempt["fault"] else ""
    yield why + (attempt["stuck"] or attempt["next"])


def _time_words(attempt: ActiveAttempt) -> str:
    elapsed, timeout = attempt["elapsed_seconds"], attempt["timeout_seconds"]
    if elapsed is not None and timeout is not None:
        return f"{duration_words(elapsed)} of {duration_words(timeout)}"
    return "-" if (since := attempt["seconds_in_state"]) is None else duration_words(since)

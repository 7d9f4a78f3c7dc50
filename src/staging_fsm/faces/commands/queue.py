"""`staging-fsm queue`: what is not finished, and why."""

import json
import os
from collections.abc import Iterator
from typing import Final

import click

from staging_fsm.drive.runner import IN_SHADOW
from staging_fsm.faces.console import LookingConsole
from staging_fsm.faces.options import db_option, json_option
from staging_fsm.faces.queue import (
    ActiveAttempt,
    QueueDocument,
    StagingRunnerBlock,
    staging_runner_block,
)
from staging_fsm.faces.session import open_session
from staging_fsm.faces.views import duration_words

_INDENT: Final = " " * 5


@click.command()
@db_option
@json_option
def queue(db: str | None, *, as_json: bool) -> None:
    """Show every unfinished attempt: state, run, time, what is next, and why."""
    # The machine's own database may be a new one; one that was named may be mistyped.
    session = open_session(db, create=db is None, only_to_look=True)
    has_agent = session.settings.has_agent
    block = staging_runner_block(session.rows, os.environ, has_agent=has_agent)
    if as_json:
        click.echo(json.dumps(QueueDocument(staging_runner=block)))
        return
    console = LookingConsole(highlight=False, markup=False)
    for line in (*_summary_lines(block), *_refused_lines(block), *_attempt_lines(block)):
        console.print(line, soft_wrap=not line.startswith(_INDENT))


def _summary_lines(block: StagingRunnerBlock) -> Iterator[str]:
    for problem in block["problems"]:
        yield f"The configuration is invalid, so the runner begins no job: {problem}"
    if block["shadow"]:
        yield IN_SHADOW
    if number := block["failed_closed_last_day"]:
        at_least = "" if block["last_day_is_whole"] else "at least "
        yield f"{at_least}{number} failed closed in the last day"


def _refused_lines(block: StagingRunnerBlock) -> Iterator[str]:
    for row in block["refused"]:
        yield f"{row['job_id']:>4} {row['repo']} {row['work_item']}: REFUSED"
        yield f"{_INDENT}{row['problem']}"


def _attempt_lines(block: StagingRunnerBlock) -> Iterator[str]:
    for one in block["attempts"]:
        run = f"run {one['run']} of {one['runs_max'] or '?'}"
        names = f"{one['job_id']:>4} {one['repo']} {one['work_item']}"
        yield f"{names}: {one['state']}, {run}, {_time_words(one)}"
        if one["fault"]:
            yield f"{_INDENT}{one['reason']}"
        yield f"{_INDENT}{one['stuck'] or one['next']}"
        if one["last_output"]:
            yield f"{_INDENT}│ {one['last_output']}"
    if not block["attempts"] and not block["refused"]:
        yield "no unfinished attempt"


def _time_words(attempt: ActiveAttempt) -> str:
    elapsed, timeout = attempt["elapsed_seconds"], attempt["timeout_seconds"]
    if elapsed is not None and timeout is not None:
        return f"{duration_words(elapsed)} of {duration_words(timeout)}"
    return "-" if (since := attempt["seconds_in_state"]) is None else duration_words(since)

"""`staging-fsm show`: one attempt, its history and its runs."""

import json
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from staging_fsm.core.artifact import ended_by, evidence_words
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.faces.console import LookingConsole
from staging_fsm.faces.options import db_option, json_option
from staging_fsm.faces.session import open_session, stored_attempt
from staging_fsm.faces.views import duration_words, moment, plain, sentence

#: A path may be as long as the system lets it be.
LINE_CHARACTERS: Final = 5000


@click.command()
@click.argument("job", type=int)
@db_option
@json_option
def show(job: int, db: str | None, *, as_json: bool) -> None:
    """Show one attempt: its state, its history, its runs."""
    session = open_session(db, create=db is None, only_to_look=True)
    row, snapshot = stored_attempt(session, job)
    view = session.view(row, snapshot)
    if as_json:
        click.echo(json.dumps(view))
        return
    console = LookingConsole(highlight=False, markup=False)
    print_end(console, view, snapshot)
    history = _table("time", "id", "event", "target", "why")
    for move in snapshot.history:
        where = (str(move.row.event), str(move.row.target))
        history.add_row(_second(move.time), move.id, *where, plain(move.reason))
    runs = _table("run", "started", "took", "ended by", "reason")
    for run in snapshot.runs:
        took = "-" if run.duration_seconds is None else duration_words(run.duration_seconds)
        reason = "-" if run.reason is None else str(run.reason)
        facts = (str(run.number), _second(run.started_at), took, ended_by(run) or "-", reason)
        runs.add_row(*facts)
    console.print("", history, "", runs, sep="\n")


def _table(*names: str) -> Table:
    """Return a table that fits 80 columns: its last column wraps, and no other."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, no_wrap=name != names[-1])
    return table


def _second(time: str) -> str:
    """Return a time to the second, in which text order still is time order."""
    when = moment(time)
    return plain(time) if when is None else when.strftime("%Y-%m-%dT%H:%M:%SZ")


def print_end(console: Console, view: dict[str, Any], snapshot: Snapshot) -> None:
    """Print where an attempt is and why, what that rests on, and where its papers are."""
    lines = [f"{view['work_item']}: {view['state']}. {sentence(snapshot)}"]
    if snapshot.runs and (detail := snapshot.last_run.detail):
        lines.append(f"  detail: {detail}")
    words = evidence_words(snapshot) if view["evidence"] else None
    facts = {"job": view["job_id"], "revision": view["revision"], "evidence": words}
    facts |= {name: view[name] for name in ("artifact", "log", "next_stage")}
    lines += [f"  {name.replace('_', ' ')}: {fact}" for name, fact in facts.items() if fact]
    for line in lines:
        console.print(plain(line, LINE_CHARACTERS), soft_wrap=True, markup=False)

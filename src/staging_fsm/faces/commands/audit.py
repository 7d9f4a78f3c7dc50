"""`staging-fsm audit`: the trail, and whether it is what was written."""

import json
import sys
from pathlib import Path
from typing import Any, Final

import attrs
import click
from rich.console import Console
from rich.table import Table

from staging_fsm.core.errors import SnapshotRefusedError
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import TRANSITIONS
from staging_fsm.core.visible import visible
from staging_fsm.effects.files import write_durably
from staging_fsm.faces.audit import Audit, Finding, Severity, audit_job, audit_table
from staging_fsm.faces.audit_html import html_report
from staging_fsm.faces.console import LookingConsole
from staging_fsm.faces.options import db_option, json_option
from staging_fsm.faces.papers import writing
from staging_fsm.faces.session import Session, open_session, stored_attempt
from staging_fsm.faces.views import trail_view

LINK_CHARACTERS: Final = 12
#: By the worst that was found; files that are missing are part of the course of things.
EXIT_CODES: Final = {Severity.DEVIATION: 1, Severity.UNCLEAR: 3}


@click.command()
@click.argument("job", required=False)
@click.option("--verify", is_flag=True, help="Exit 1 if anything deviates, 3 if it may.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Verify, and write one self-contained report.",
)
@db_option
@json_option
def audit(
    job: str | None, db: str | None, html: Path | None, *, verify: bool, as_json: bool
) -> None:
    """Show the trail of JOB, or what all attempts walked; with --verify, judge it.

    Every stored attempt is replayed through the table and every invariant; links,
    artifacts, logs, the job and its work item must agree with it. A file that is
    gone is told, and is no deviation. What jobs that are gone leave unclear may be one.
    """
    session = open_session(db, create=False, only_to_look=True)
    snapshot = None if job is None else _attempt(session, job)
    seen = (
        audit_table(session.rows, session.store, session.state)
        if job is None
        else audit_job(session.rows, session.store, job, session.state)
    )
    if html is not None:
        report = html_report(seen, session.clock.now(), snapshot).encode()
        with writing(html):
            write_durably(html.absolute(), report)
    judged = verify or html is not None
    if as_json:
        click.echo(json.dumps(_view(seen, snapshot, judged=judged)))
    else:
        console = LookingConsole(highlight=False)
        if snapshot is not None or not judged:
            _print_trail(console, seen, snapshot)
        if judged:
            _print_findings(seen)
    found = [code for severity, code in EXIT_CODES.items() if judged and seen.counts[severity]]
    sys.exit(next(iter(found), 0))


def _attempt(session: Session, job: str) -> Snapshot | None:
    try:
        return stored_attempt(session, job)[1]
    except SnapshotRefusedError:
        # The audit says so in a sentence.
        return None


def _view(seen: Audit, snapshot: Snapshot | None, *, judged: bool) -> dict[str, Any]:
    view: dict[str, Any] = {
        "rows": seen.rows,
        "attempts": seen.attempts,
        "states": dict(sorted(seen.states.items())),
        "walked": {row.id: seen.walked[row.id] for row in TRANSITIONS},
    }
    if snapshot is not None:
        view["trail"] = trail_view(snapshot)
    if judged:
        for severity in Severity:
            found = [_finding_view(finding) for finding in seen.of(severity)]
            view[severity] = {"count": seen.counts[severity], "findings": found}
    return view


def _finding_view(finding: Finding) -> dict[str, Any]:
    return {
        **attrs.asdict(finding),
        "job_id": finding.job_id if isinstance(finding.job_id, int) else str(finding.job_id),
        "sentence": finding.sentence,
    }


def _print_trail(console: Console, seen: Audit, snapshot: Snapshot | None) -> None:
    if snapshot is None:
        table = Table("id", "source", "event", "target", "walked")
        for row in TRANSITIONS:
            table.add_row(row.id, row.source, row.event, row.target, str(seen.walked[row.id]))
    else:
        table = Table("time", "id", "event", "target", "reason", "worker", "link")
        for move in trail_view(snapshot):
            link = move["link"][:LINK_CHARACTERS]
            cells = (move["time"], move["id"], move["event"], move["target"], move["reason"])
            table.add_row(*cells, move["worker"], link)
    console.print(table)


def _print_findings(seen: Audit) -> None:
    for severity in Severity:
        found = seen.of(severity)
        for finding in found:
            # One line each, whatever a row holds: a line of its own would be a finding of its own.
            click.echo(visible(f"{severity}: {finding.sentence}").replace("\n", " "))
        if more := seen.counts[severity] - len(found):
            click.echo(f"{severity}: {more} more of the kind")
    unclear = seen.counts[Severity.UNCLEAR]
    click.echo(
        f"{seen.attempts} attempts in {seen.rows} rows:"
        f" {seen.counts[Severity.DEVIATION]} deviations,"
        f" {seen.counts[Severity.MISSING]} files missing"
        f"{f', {unclear} unclear' if unclear else ''}"
    )

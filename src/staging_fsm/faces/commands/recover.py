"""`staging-fsm recover`: every attempt whose worker is gone is taken up."""

import json
import sys

import click

from staging_fsm.core.errors import in_words
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import State
from staging_fsm.faces.commands.show import LINE_CHARACTERS
from staging_fsm.faces.console import PatientConsole
from staging_fsm.faces.exits import ExitCode
from staging_fsm.faces.fleet import is_fleet_session, open_fleet
from staging_fsm.faces.options import db_option, json_option
from staging_fsm.faces.progress import Progress
from staging_fsm.faces.session import Session, open_session, stored_attempt
from staging_fsm.faces.trouble import trouble
from staging_fsm.faces.views import plain, sentence


@click.command()
@db_option
@json_option
def recover(db: str | None, *, as_json: bool) -> None:
    """Take up every attempt whose worker is gone, and drive it on.

    Exit code 4 if one could not be taken up, or brought to its end or its next run.
    """
    session = open_session(db, create=db is None)
    if is_fleet_session(session):
        _redeliver(session, as_json=as_json)
        return
    console = PatientConsole(stderr=as_json, highlight=False)
    progress = Progress(console, session.state, session.variables)
    staging = session.staging(watch=progress.moved)
    left: list[str] = []

    def failed(job_id: object, error: Exception) -> None:
        what = "nothing could be recovered" if job_id is None else f"job {job_id} was not recovered"
        left.append(f"{what}: {trouble(error) or in_words(error)}")

    touched = staging.recover(failed)
    progress.stop()
    attempts = [stored_attempt(session, row.id) for row in touched]
    left += [
        f"job {row.id} was not brought to its end: it stays {found.state}, and an alert says why"
        for row, found in attempts
        if not _rests(found) and found.worker == session.worker
    ]
    for words in left:
        click.echo(f"staging-fsm: {words}", err=True)
    if as_json:
        click.echo(json.dumps([session.view(*found) for found in attempts]))
    for row, found in () if as_json else attempts:
        words = f"job {row.id}, {row.work_item}: {found.state}. {sentence(found)}"
        click.echo(plain(words, LINE_CHARACTERS))
    if not (as_json or attempts or left):
        click.echo("nothing to recover")
    sys.exit(ExitCode.DECLINED if left else 0)


def _rests(attempt: Snapshot) -> bool:
    """Say whether an attempt is where recovery brings it: at its end, or before its next run."""
    return attempt.is_terminal or attempt.state is State.DEFERRED


def _redeliver(session: Session, *, as_json: bool) -> None:
    """Have a fleet's workers look again at what stalled workers had and nobody was told of."""
    fleet = open_fleet(session)
    fleet.alerts.deliver()
    from staging_fsm.fleet.worker import redeliver  # noqa: PLC0415  # the extra "fleet"

    jobs = redeliver(fleet)
    if as_json:
        attempts = [(row, row.snapshot()) for row in map(session.rows.load, jobs)]
        views = [session.view(row, found) for row, found in attempts if found is not None]
        click.echo(json.dumps(views))
    else:
        words = ", ".join(map(str, jobs))
        click.echo(f"delivered again: {words}" if jobs else "nothing to recover")

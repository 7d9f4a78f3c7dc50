"""`staging-fsm cancel`: nothing is judged, and the job ends as cancelled."""

import click

from staging_fsm.core.errors import RefusedError, TransitionRefusedError
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import State
from staging_fsm.drive.cancelling import is_beyond
from staging_fsm.faces.fleet import is_fleet_session, open_fleet
from staging_fsm.faces.options import db_option
from staging_fsm.faces.session import Session, open_session, stored_attempt
from staging_fsm.faces.views import plain, sentence


@click.command()
@click.argument("job", type=int)
@db_option
def cancel(job: int, db: str | None) -> None:
    """Stop an attempt: its suite is stopped, nothing is judged, the job ends as cancelled."""
    session = open_session(db, create=db is None)
    try:
        ended = _cancelled(session, job)
    except TransitionRefusedError as error:
        if not is_beyond(State(error.state)):
            raise
        raise RefusedError(_too_late(session, job)) from error
    was_declined = ended.state is State.LLM_FALLBACK
    stays = "cancelled; it was declined, and its attempt stays " if was_declined else ""
    click.echo(f"job {job}: {stays}{ended.state}")


def _cancelled(session: Session, job: int) -> Snapshot:
    if is_fleet_session(session):
        fleet = open_fleet(session)
        from staging_fsm.fleet import requests  # noqa: PLC0415  # the extra "fleet"

        return requests.cancel(fleet, session.staging(), job)
    return session.staging().cancel(job)


def _too_late(session: Session, job: int) -> str:
    """Return why an attempt is beyond every cancellation: how far it is, and how it came there."""
    _, snapshot = stored_attempt(session, job)
    what = "attempt" if snapshot.is_terminal else "last run"
    how = f"{snapshot.state}. {plain(sentence(snapshot))}"
    return f"job {job} can no longer be cancelled, its {what} has ended: {how}"

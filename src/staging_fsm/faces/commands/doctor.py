"""`staging-fsm doctor`: everything that a run needs, in words."""

import json
import os
import sys

import attrs
import click

from staging_fsm.core.errors import ConfigInvalidError, NoDatabaseError
from staging_fsm.effects.preflight import Check, Health
from staging_fsm.effects.state_dir import StateDir, state_dir
from staging_fsm.faces.doctor import examine, examine_fleet
from staging_fsm.faces.options import db_option, json_option
from staging_fsm.faces.session import Session, open_session
from staging_fsm.host.database import shown_address


@click.command()
@db_option
@json_option
def doctor(db: str | None, *, as_json: bool) -> None:
    """Look at everything a run needs; exit code 1 if something is missing."""
    sessions = list[Session]()

    def address() -> str:
        try:
            session = open_session(db, create=False, only_to_look=True)
        except NoDatabaseError:
            if db is not None:
                raise
            return "none yet: the first run makes it, in the state folder"
        session.check_database()
        sessions.append(session)
        return shown_address(session.store.engine.url)

    try:
        findings = [*examine(os.environ, StateDir(state_dir(os.environ)), address)]
        findings += [found for session in sessions for found in examine_fleet(session)]
    except ConfigInvalidError as error:
        # Without a state folder there is no place for anything that could be looked at.
        findings = [Check("state folder", Health.FAILED, str(error))]
    if as_json:
        click.echo(json.dumps([attrs.asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            click.echo(f"{finding.health:8} {finding.name}: {finding.words}")
    sys.exit(1 if any(finding.health is Health.FAILED for finding in findings) else 0)

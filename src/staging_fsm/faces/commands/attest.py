"""`staging-fsm attest`: what an attempt showed, signed, for somebody elsewhere to verify."""

import json
import os
from pathlib import Path

import click

from staging_fsm.core.config import load_config
from staging_fsm.core.errors import AttestationRefusedError
from staging_fsm.effects.files import write_durably
from staging_fsm.faces.attestation import (
    PUBLIC_MODE,
    contradiction,
    generate_key,
    sign,
    statement_of,
    verify,
)
from staging_fsm.faces.audit import Severity, audit_job
from staging_fsm.faces.extras import require_extra
from staging_fsm.faces.options import db_option
from staging_fsm.faces.output import shown_command
from staging_fsm.faces.papers import writing
from staging_fsm.faces.session import Session, open_session, stored_attempt

_file = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("job", required=False)
@click.option("--output", type=_file, help="File of the envelope; default: standard output.")
@click.option("--verify", "envelope", type=_file, help="Verify this envelope instead.")
@click.option("--public-key", type=_file, help="Whose signature is asked for.")
@click.option("--generate-key", "new_key", type=_file, help="Write a new key, and its .pub.")
@db_option
def attest(
    job: str | None,
    db: str | None,
    output: Path | None,
    envelope: Path | None,
    public_key: Path | None,
    new_key: Path | None,
) -> None:
    """Attest the verdict on JOB: an in-toto test result in a signed DSSE envelope.

    Signed with the key that ORCH_STAGING_RUNNER_ATTEST_KEY names. With --verify an
    envelope is verified, and with JOB besides, compared with what is stored, which is
    audited: what deviates is refused.
    """
    require_extra("attest")
    if new_key is not None:
        with writing(new_key):
            public = generate_key(new_key)
        click.echo(f"{new_key}\n{public}")
    elif envelope is not None:
        if public_key is None:
            message = "say whose signature is asked for"
            raise click.BadParameter(message, param_hint="--public-key")
        _verify(envelope, public_key, db, job)
    elif job is None:
        message = "say which job, or --verify FILE, or --generate-key FILE"
        raise click.UsageError(message)
    else:
        _attest(db, job, output)


def _attest(db: str | None, job: str, output: Path | None) -> None:
    key = load_config(os.environ).attest_key
    if key is None:
        message = (
            "no key is configured: set ORCH_STAGING_RUNNER_ATTEST_KEY to a private key in PEM,"
            " such as --generate-key writes"
        )
        raise AttestationRefusedError(job, message)
    session = open_session(db, create=db is None, only_to_look=True)
    _refuse_deviations(session, job)
    row, snapshot = stored_attempt(session, job)
    command = shown_command(snapshot, session.variables) if snapshot.plan else ()
    text = sign(statement_of(job, row.work_item, snapshot, command), key)
    if output is None:
        click.echo(text, nl=False)
    else:
        with writing(output):
            write_durably(output.absolute(), text.encode(), PUBLIC_MODE)
        click.echo(output)


def _verify(envelope: Path, public_key: Path, db: str | None, job: str | None) -> None:
    try:
        text = envelope.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AttestationRefusedError(None, f"it cannot be read: {error}") from error
    statement = verify(text, public_key)
    if job is not None:
        session = open_session(db, create=db is None, only_to_look=True)
        problem = contradiction(statement, stored_attempt(session, job)[1])
        if problem is not None:
            raise AttestationRefusedError(job, problem)
        # The last link is only as good as the row behind it, and the papers beside it.
        _refuse_deviations(session, job)
    click.echo(json.dumps(statement, indent=2))


def _refuse_deviations(session: Session, job: str) -> None:
    """Raise AttestationRefusedError with everything that the audit finds against an attempt."""
    seen = audit_job(session.rows, session.store, job, session.state)
    deviations = seen.of(Severity.DEVIATION)
    if deviations:
        found = " ".join(finding.sentence for finding in deviations)
        raise AttestationRefusedError(job, f"it deviates: {found}")

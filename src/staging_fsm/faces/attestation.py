"""Attestations: what an attempt showed, as an in-toto statement that somebody signed.

The statement is in-toto v1 with the test-result predicate v0.1
(https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md),
in a DSSE envelope. Only an attempt with a verdict that its gate followed is
attested, and only while the audit finds nothing against it: without a verdict
there is neither PASSED nor FAILED.

The statement holds the last link of the trail. Whoever has it can tell an attempt
that was made anew, chain and all, which the chain alone cannot show.
"""

import hashlib
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from staging_fsm.core.errors import AttestationRefusedError, in_words
from staging_fsm.core.outcome import Verdict
from staging_fsm.core.plan import UNVERSIONED, Workspace
from staging_fsm.core.snapshot import Snapshot, as_json
from staging_fsm.core.spec import Event, State
from staging_fsm.effects.files import write_durably

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner, SSlibKey

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://in-toto.io/attestation/test-result/v0.1"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
#: What was handed over, and the gate's answer -> the predicate's word. A pass that was refused
#: is none.
_RESULTS: Final = {
    (State.VERDICT_PASSED, Event.GATE_OPENED): Verdict.PASSED,
    (State.VERDICT_FAILED, Event.GATE_REFUSED): Verdict.FAILED,
}
PUBLIC_MODE: Final = 0o644
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_FOLDER: Final = "staging_fsm/attempt"


def statement_of(
    job_id: object, work_item: str, snapshot: Snapshot, command: Sequence[str]
) -> dict[str, Any]:
    """Return the in-toto statement of an attempt; raises AttestationRefusedError in words.

    `command` are the words of the suite's as they may be shown: whoever gets the statement
    sees no others. The digest is of the plan as it is stored.
    """
    last = snapshot.history[-1]
    result = _RESULTS.get((last.row.source, last.row.event))
    if result is None or snapshot.artifact is None:
        raise AttestationRefusedError(job_id, _why_not(snapshot))
    plan, run = snapshot.bound_plan, snapshot.last_run
    if plan.revision == UNVERSIONED:
        raise AttestationRefusedError(job_id, "it ran on no commit: there is no subject")
    if plan.suite.workspace is Workspace.IN_PLACE and plan.suite.allow_dirty:
        message = "it ran in place with allow_dirty: what it ran on may be another than the commit"
        raise AttestationRefusedError(job_id, message)
    stored = json.dumps(as_json(plan), sort_keys=True, separators=(",", ":"))
    shown = as_json(plan)
    shown["suite"]["command"] = list(command)
    attempt = {
        "attempt_id": snapshot.attempt_id,
        "job": str(job_id),
        "work_item": work_item,
        "runs": len(snapshot.runs),
        "reason": str(run.reason),
        "rule": run.rule,
        "exit_code": run.exit_code,
        "evidence": None if run.evidence is None else str(run.evidence),
        "counts": None if run.counts is None else attrs.asdict(run.counts),
        "log_sha256": run.log_sha256,
        "ended_at": last.time,
    }
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": "revision", "digest": {"gitCommit": plan.revision}},
            {
                "name": Path(snapshot.artifact.path).name,
                "digest": {"sha256": snapshot.artifact.sha256},
            },
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "result": result.name,
            "configuration": [
                {
                    "name": "plan",
                    "digest": {"sha256": hashlib.sha256(stored.encode()).hexdigest()},
                    "annotations": shown,
                },
                {"name": _FOLDER, "digest": {"sha256": last.link}, "annotations": attempt},
            ],
        },
    }


def _why_not(snapshot: Snapshot) -> str:
    if not snapshot.is_terminal:
        return f"it has not ended: it is {snapshot.state}"
    return {
        State.ROLLED_BACK: "its suite passed, and the gate did not read that from its artifact",
        State.FAILED_CLOSED: "its suite did not run to a verdict: there is nothing to attest",
        State.LLM_FALLBACK: "the LLM agent was its producer, and no suite of ours ran to a verdict",
        State.CANCELLED: "it was cancelled, and nothing was judged",
    }[snapshot.state]


def sign(statement: dict[str, Any], key_file: Path) -> str:
    """Return the statement in a DSSE envelope signed with a private key, as JSON text."""
    from securesystemslib.dsse import Envelope  # noqa: PLC0415  # optional: the extra "attest"

    payload = json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(_signer(key_file))
    return json.dumps(envelope.to_dict(), indent=2) + "\n"


def verify(text: str, public_key_file: Path) -> dict[str, Any]:
    """Return the statement that an envelope holds, if the key signed it.

    Raises AttestationRefusedError: what is in an envelope that nobody signed is nobody's word.
    """
    from securesystemslib.dsse import Envelope  # noqa: PLC0415  # optional: the extra "attest"
    from securesystemslib.exceptions import VerificationError  # noqa: PLC0415  # as above

    try:
        envelope = Envelope.from_dict(json.loads(text))
    except Exception as error:
        message = f"it is no DSSE envelope ({in_words(error)})"
        raise AttestationRefusedError(None, message) from error
    try:
        envelope.verify([_public_key(public_key_file)], threshold=1)
    except VerificationError as error:
        message = f"the key in {public_key_file} did not sign it, or it was altered"
        raise AttestationRefusedError(None, message) from error
    statement = json.loads(envelope.payload) if envelope.payload_type == PAYLOAD_TYPE else {}
    kinds = (statement.get("_type"), statement.get("predicateType"))
    if kinds != (STATEMENT_TYPE, PREDICATE_TYPE):
        message = f"it is signed, and is no statement of a test result: {kinds}"
        raise AttestationRefusedError(None, message)
    return dict(statement)


def contradiction(statement: dict[str, Any], snapshot: Snapshot) -> str | None:
    """Return how a stored attempt differs from what was attested of it, or None."""
    attested = statement["predicate"]["configuration"][1]
    whose, stored = attested["annotations"]["attempt_id"], snapshot.history[-1].link
    if whose != snapshot.attempt_id:
        return f"it attests attempt {whose}, and attempt {snapshot.attempt_id} is stored"
    if attested["digest"]["sha256"] != stored:
        link = attested["digest"]["sha256"]
        return f"the last link was {link[:12]}…, and {stored[:12]}… is stored: it was made anew"
    return None


def generate_key(path: Path) -> Path:
    """Write a new Ed25519 key to `path` and its public half beside it; return where that is."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415  # optional
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415  # as above
        Ed25519PrivateKey,
    )

    public = path.with_name(f"{path.name}.pub")
    for taken in (path, public):
        if os.path.lexists(taken):
            raise AttestationRefusedError(None, f"{taken} exists, and is not overwritten")
    pem, key = serialization.Encoding.PEM, Ed25519PrivateKey.generate()
    plain_text = serialization.NoEncryption()
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain_text)
    shown = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    write_durably(path.absolute(), secret)
    write_durably(public.absolute(), shown, PUBLIC_MODE)
    return public


def _signer(path: Path) -> "CryptoSigner":
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415  # optional
        load_pem_private_key,
    )
    from securesystemslib.signer import CryptoSigner  # noqa: PLC0415  # as above

    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            pem = file.read()
    except OSError as error:
        raise AttestationRefusedError(None, f"the key cannot be read: {error}") from error
    if mode & _OTHERS:
        message = f"others may use the key in {path}: chmod 600 it, and ask who had it"
        raise AttestationRefusedError(None, message)
    try:
        return CryptoSigner(load_pem_private_key(pem, password=None))
    except Exception as error:
        message = f"{path} holds no private key in PEM that can be used here: {error}"
        raise AttestationRefusedError(None, message) from error


def _public_key(path: Path) -> "SSlibKey":
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415  # optional
        load_pem_public_key,
    )
    from securesystemslib.signer import SSlibKey  # noqa: PLC0415  # as above

    try:
        return SSlibKey.from_crypto(load_pem_public_key(path.read_bytes()))
    except Exception as error:
        message = f"{path} holds no public key in PEM that can be used here: {error}"
        raise AttestationRefusedError(None, message) from error

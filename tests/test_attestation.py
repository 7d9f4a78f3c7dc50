"""Attestations: signed words about verdicts, believed by tools of others, and by nobody else's key.

The signature is verified by plain `cryptography`, the statement by in-toto's own classes.
"""

import base64
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner, Result
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_pem_public_key,
)
from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement

from archive import Archive, jobs
from staging_fsm.core.errors import AttestationRefusedError
from staging_fsm.core.machine import step
from staging_fsm.core.outcome import Reason
from staging_fsm.core.plan import UNVERSIONED, Workspace
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import Event, State
from staging_fsm.core.trail import walk
from staging_fsm.faces.attestation import PAYLOAD_TYPE, contradiction, sign, statement_of
from staging_fsm.faces.cli import main
from staging_fsm.faces.exits import ExitCode
from trails import (
    ATTEMPTS,
    BROKEN,
    CLAIM,
    CLAIM_AGAIN,
    ERROR,
    LATER,
    SECOND,
    SEEN,
    WAIT,
    WRITTEN,
    walked,
)

KEY = "ORCH_STAGING_RUNNER_ATTEST_KEY"
Attest = Callable[..., Result]


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """Return a private key that the product made, and its public half."""
    private = tmp_path / "key.pem"
    assert CliRunner().invoke(main, ["attest", "--generate-key", str(private)]).exit_code == 0
    return private, private.with_name("key.pem.pub")


@pytest.fixture
def attest(archive: Archive, keys: tuple[Path, Path]) -> Attest:
    """Return `staging-fsm attest` on an archive, with the key configured."""

    def call(*arguments: object, **variables: str) -> Result:
        url = f"sqlite:///{archive.database}"
        words = ["attest", *map(str, arguments), "--db", url]
        return CliRunner().invoke(main, words, env={KEY: str(keys[0]), **variables})

    return call


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return what a DSSE signature is over (github.com/secure-systems-lab/dsse, protocol.md)."""
    kind = payload_type.encode()
    return b" ".join([b"DSSEv1", b"%d" % len(kind), kind, b"%d" % len(payload), payload])


def opened_by_others(envelope: str, public_key: Path) -> dict[str, Any]:
    """Return the statement in an envelope, verified without the library that signed it."""
    found = json.loads(envelope)
    key = load_pem_public_key(public_key.read_bytes())
    assert isinstance(key, Ed25519PublicKey)
    payload = base64.b64decode(found["payload"])
    [signature] = found["signatures"]
    key.verify(base64.b64decode(signature["sig"]), pae(found["payloadType"], payload))
    statement: dict[str, Any] = json.loads(payload)
    return statement


@pytest.mark.parametrize("command", ["attest", "audit", "show"])
def test_job_that_the_runner_never_had_is_told_from_others(
    archive: Archive, keys: tuple[Path, Path], command: str
) -> None:
    """Whoever asks for an attempt where there is none is told so, in the same words everywhere."""
    job_id = jobs(archive)[State.ADVANCED]
    archive.sql("UPDATE jobs SET metadata = '{}' WHERE id = ?", job_id)
    words = [command, str(job_id), "--db", f"sqlite:///{archive.database}"]
    ended = CliRunner().invoke(main, words, env={KEY: str(keys[0])})

    said = f"staging-fsm: job {job_id} has no staging attempt: the runner never had it"
    assert (ended.stderr.strip(), ended.exit_code) == (said, ExitCode.DECLINED)


@pytest.mark.parametrize(
    ("state", "result"), [(State.ADVANCED, "PASSED"), (State.ROLLED_BACK, "FAILED")]
)
def test_verdict_is_attested_and_others_verify_it(
    attest: Attest, archive: Archive, keys: tuple[Path, Path], state: State, result: str
) -> None:
    """A verdict is signed with its commit and its artifact, and tools of others believe it."""
    job_id = jobs(archive)[state]
    stored = archive.stored(job_id)
    ended = attest(job_id)
    statement = opened_by_others(ended.output, keys[1])
    predicate = statement["predicate"]
    subjects = [ResourceDescriptor(**subject) for subject in statement["subject"]]
    theirs = Statement([s.pb for s in subjects], statement["predicateType"], predicate)
    theirs.validate()

    assert ended.exit_code == 0
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    assert ParseDict(predicate, test_result_pb2.TestResult()).result == result
    assert [subject["digest"] for subject in statement["subject"]] == [
        {"gitCommit": stored["plan"]["revision"]},
        {"sha256": stored["artifact"]["sha256"]},
    ]
    assert predicate["configuration"][1]["digest"] == {"sha256": stored["history"][-1]["link"]}
    assert predicate["configuration"][0]["annotations"] == stored["plan"]
    plan = json.dumps(stored["plan"], sort_keys=True, separators=(",", ":")).encode()
    assert predicate["configuration"][0]["digest"] == {"sha256": hashlib.sha256(plan).hexdigest()}


def test_envelope_is_verified_and_compared_with_the_row(
    attest: Attest, archive: Archive, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    """`attest --verify` believes what the key signed, and finds a row that was made anew since."""
    job_id = jobs(archive)[State.ADVANCED]
    envelope = tmp_path / "envelope.json"
    verify = ("--verify", envelope, "--public-key", keys[1])
    written = attest(job_id, "--output", envelope)
    sound = attest(job_id, *verify)
    # Somebody makes the whole chain anew: only the last link is needed to tell.
    archive.set(job_id, "history[2].link", "0" * 64)
    forged = attest(job_id, *verify)

    assert (written.exit_code, sound.exit_code) == (0, 0)
    assert json.loads(sound.output)["predicate"]["result"] == "PASSED"
    assert forged.exit_code == ExitCode.DECLINED
    assert "it was made anew" in forged.output
    # Whoever reads on is not told of a pass first.
    assert "PASSED" not in forged.output
    assert envelope.stat().st_mode & 0o777 == 0o644
    assert attest(*verify).exit_code == 0


def _alter_the_commit(archive: Archive, job_id: int) -> None:
    archive.set(job_id, "plan.revision", "0123456789012345678901234567890123456789")


def _alter_the_artifact(archive: Archive, job_id: int) -> None:
    with archive.artifact(job_id).open("a") as file:
        file.write("and all is well\n")


def _alter_the_log(archive: Archive, job_id: int) -> None:
    archive.log(job_id).write_text("all is well\n")


@pytest.mark.parametrize(
    ("alter", "checks"),
    [
        ([_alter_the_commit], ["trail_is_unbroken"]),
        ([_alter_the_artifact], ["artifact"]),
        ([_alter_the_commit, _alter_the_log], ["trail_is_unbroken", "log"]),
    ],
    ids=["the commit", "the artifact", "the commit and a log"],
)
def test_envelope_is_no_word_for_a_row_that_deviates(
    attest: Attest,
    archive: Archive,
    keys: tuple[Path, Path],
    tmp_path: Path,
    alter: list[Callable[[Archive, int], None]],
    checks: list[str],
) -> None:
    """`attest --verify` of a job audits it: what was altered since is refused, each thing by name.

    Its last link may still be the one that was signed.
    """
    job_id = jobs(archive)[State.ADVANCED]
    envelope = tmp_path / "envelope.json"
    attest(job_id, "--output", envelope)
    link = archive.stored(job_id)["history"][-1]["link"]
    for change in alter:
        change(archive, job_id)
    ended = attest(job_id, "--verify", envelope, "--public-key", keys[1])

    assert archive.stored(job_id)["history"][-1]["link"] == link
    assert ended.exit_code == ExitCode.DECLINED
    assert f"job {job_id}" in ended.output
    assert [check for check in checks if f": {check}: " not in ended.output] == []
    assert "PASSED" not in ended.stdout


def test_envelope_outlives_the_files_of_its_attempt(
    attest: Attest, archive: Archive, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    """That logs and artifact are gone, as old ones are, is nothing against what was attested."""
    job_id = jobs(archive)[State.ADVANCED]
    envelope = tmp_path / "envelope.json"
    attest(job_id, "--output", envelope)
    archive.log(job_id).unlink()
    archive.artifact(job_id).unlink()

    assert attest(job_id, "--verify", envelope, "--public-key", keys[1]).exit_code == 0


def _altered(text: str) -> str:
    envelope = json.loads(text)
    payload = base64.b64decode(envelope["payload"]).replace(b'"FAILED"', b'"PASSED"')
    return json.dumps({**envelope, "payload": base64.b64encode(payload).decode()})


def test_altered_envelope_is_refused_by_all(
    attest: Attest, archive: Archive, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    """A FAILED that was made a PASSED after it was signed is believed by nobody."""
    envelope = tmp_path / "envelope.json"
    envelope.write_text(_altered(attest(jobs(archive)[State.ROLLED_BACK]).output))
    ended = attest("--verify", envelope, "--public-key", keys[1])

    assert ended.exit_code == ExitCode.DECLINED
    assert "did not sign it, or it was altered" in ended.output
    with pytest.raises(InvalidSignature):
        opened_by_others(envelope.read_text(), keys[1])


def test_another_key_is_not_believed(
    attest: Attest, archive: Archive, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    """What another key signed is refused, and so is what is no envelope."""
    attest("--generate-key", tmp_path / "another.pem")
    envelope = tmp_path / "envelope.json"
    attest(jobs(archive)[State.ADVANCED], "--output", envelope)
    by_another = attest("--verify", envelope, "--public-key", tmp_path / "another.pem.pub")
    envelope.write_text("{}")
    no_envelope = attest("--verify", envelope, "--public-key", keys[1])

    assert "did not sign it" in by_another.output
    assert "it is no DSSE envelope" in no_envelope.output
    assert {by_another.exit_code, no_envelope.exit_code} == {int(ExitCode.DECLINED)}


def _signed_as(envelope: str, private_key: Path, payload_type: str, **changes: str) -> str:
    """Return the envelope with a changed statement of that type, signed anew by the same key."""
    found = json.loads(envelope)
    key = load_pem_private_key(private_key.read_bytes(), password=None)
    assert isinstance(key, Ed25519PrivateKey)
    payload = json.dumps(json.loads(base64.b64decode(found["payload"])) | changes).encode()
    [signature] = found["signatures"]
    signature["sig"] = base64.b64encode(key.sign(pae(payload_type, payload))).decode()
    found["payload"] = base64.b64encode(payload).decode()
    return json.dumps({**found, "payloadType": payload_type})


@pytest.mark.parametrize(
    ("payload_type", "changes"),
    [
        ("application/json", {}),
        (PAYLOAD_TYPE, {"_type": "https://in-toto.io/Statement/v0.1"}),
        (PAYLOAD_TYPE, {"predicateType": "https://slsa.dev/provenance/v1"}),
    ],
    ids=["no statement", "a statement of another version", "a statement of something else"],
)
def test_only_a_test_result_is_believed(
    attest: Attest,
    archive: Archive,
    keys: tuple[Path, Path],
    tmp_path: Path,
    payload_type: str,
    changes: dict[str, str],
) -> None:
    """What the key signed as anything but a statement of a test result attests no verdict."""
    signed = attest(jobs(archive)[State.ADVANCED]).output
    envelope = tmp_path / "envelope.json"
    envelope.write_text(_signed_as(signed, keys[0], payload_type, **changes))
    opened_by_others(envelope.read_text(), keys[1])
    ended = attest("--verify", envelope, "--public-key", keys[1])

    assert ended.exit_code == ExitCode.DECLINED
    assert "is no statement of a test result" in ended.output


NO_VERDICT = {
    "declined": "the LLM agent was its producer",
    "running": "it has not ended: it is RUNNING",
    "deferred": "it has not ended: it is DEFERRED",
    "cancelled while it ran": "it was cancelled, and nothing was judged",
    "failed closed": "its suite did not run to a verdict",
    "rolled back after a pass": "its suite passed, and the gate did not read that",
}


@pytest.mark.parametrize(("name", "words"), NO_VERDICT.items(), ids=NO_VERDICT)
def test_without_a_verdict_nothing_is_attested(name: str, words: str) -> None:
    """Without a verdict there is neither PASSED nor FAILED, and the refusal says why."""
    with pytest.raises(AttestationRefusedError, match=words):
        statement_of(7, "WI-1", ATTEMPTS[name], ())


def _advanced(**plan: Any) -> Snapshot:
    snapshot = ATTEMPTS["advanced"]
    return attrs.evolve(snapshot, plan=attrs.evolve(snapshot.bound_plan, **plan))


def test_run_that_was_judged_is_attested() -> None:
    """What is attested of an attempt is its last run and its end, whatever came before them."""
    run = attrs.evolve(SECOND, **SEEN | {"reason": Reason.PASSED, "exit_code": 0, "log": "/2"})
    run = attrs.evolve(run, log_sha256="70c1", rule="J99")
    passed = (Event.SUITE_PASSED, {"runs": (BROKEN, run)})
    judged = walked(CLAIM, ERROR, WAIT, CLAIM_AGAIN, passed)
    opened = step(judged.state, Event.GATE_OPENED)
    ended = walk(judged, opened, LATER, "the gate opened", "w", {"artifact": WRITTEN})
    told = statement_of(7, "WI-1", ended, ())["predicate"]["configuration"][1]["annotations"]

    assert (told["runs"], told["reason"], told["rule"]) == (2, Reason.PASSED, "J99")
    assert (told["exit_code"], told["log_sha256"], told["ended_at"]) == (0, "70c1", LATER)


def test_verdict_on_no_commit_is_not_attested() -> None:
    """A folder without git has no revision that a verdict could be on."""
    with pytest.raises(AttestationRefusedError, match="it ran on no commit"):
        statement_of(7, "WI-1", _advanced(revision=UNVERSIONED), ())


def test_verdict_on_a_tree_that_may_have_differed_is_not_attested() -> None:
    """What ran in place with uncommitted changes allowed says nothing of a commit."""
    plan = _advanced().bound_plan
    dirty = attrs.evolve(plan.suite, workspace=Workspace.IN_PLACE, allow_dirty=True)
    in_worktree = attrs.evolve(dirty, workspace=Workspace.WORKTREE)

    with pytest.raises(AttestationRefusedError, match="allow_dirty"):
        statement_of(7, "WI-1", _advanced(suite=dirty), ())
    assert statement_of(7, "WI-1", _advanced(suite=in_worktree), ())


def test_statement_shows_no_secret_of_the_command(
    attest: Attest, archive: Archive, keys: tuple[Path, Path]
) -> None:
    """What is signed for others tells the command as the artifact does, and digests the whole."""
    job_id = jobs(archive)[State.ADVANCED]
    plan = archive.stored(job_id)["plan"]
    statement = opened_by_others(attest(job_id, DEPLOY_KEY="echo out").output, keys[1])
    told = statement["predicate"]["configuration"][0]
    text = json.dumps(plan, sort_keys=True, separators=(",", ":")).encode()

    assert plan["suite"]["command"] == ["sh", "-c", "echo out; true"]
    assert told["annotations"]["suite"]["command"] == ["sh", "-c", "***; true"]
    assert told["digest"] == {"sha256": hashlib.sha256(text).hexdigest()}


def test_attestation_of_another_attempt_is_told() -> None:
    """An attestation is of one attempt, and of no other of the same job."""
    statement = statement_of(7, "WI-1", ATTEMPTS["advanced"], ())

    assert contradiction(statement, ATTEMPTS["advanced"]) is None
    assert "it attests attempt 7-3f" in str(
        contradiction(statement, attrs.evolve(ATTEMPTS["advanced"], attempt_id="7-b"))
    )


def test_attempt_that_deviates_is_not_attested(attest: Attest, archive: Archive) -> None:
    """What the audit finds something against is not signed."""
    job_id = jobs(archive)[State.ADVANCED]
    archive.set(job_id, "runs[0].detail", "all well")
    ended = attest(job_id)

    assert ended.exit_code == ExitCode.DECLINED
    assert "it deviates" in ended.output
    assert "trail_is_unbroken" in ended.output


def test_key_must_be_a_secret(attest: Attest, archive: Archive, keys: tuple[Path, Path]) -> None:
    """A key that is missing, that others may read, or that is none signs nothing; the file says."""
    job_id = jobs(archive)[State.ADVANCED]
    none = attest(job_id, **{KEY: ""})
    missing = attest(job_id, **{KEY: f"{keys[0]}.gone"})
    public = attest(job_id, **{KEY: str(keys[1])})
    keys[0].chmod(0o640)
    open_to_others = attest(job_id)
    keys[0].write_text("no key")
    keys[0].chmod(0o600)
    no_key = attest(job_id)

    assert "no key is configured" in none.output
    assert "the key cannot be read" in missing.output
    assert "others may use the key" in public.output
    assert "chmod 600" in open_to_others.output
    assert "holds no private key" in no_key.output
    ends = (none, missing, public, open_to_others, no_key)
    assert {ended.exit_code for ended in ends} == {int(ExitCode.DECLINED)}


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o610, 0o604, 0o602, 0o601])
def test_key_that_others_may_use_signs_nothing(keys: tuple[Path, Path], mode: int) -> None:
    """A key that somebody else may read, replace or run, of its group or not, signs nothing."""
    keys[0].chmod(mode)

    with pytest.raises(AttestationRefusedError, match="others may use the key"):
        sign({}, keys[0])


def test_new_key_is_its_owners_alone(keys: tuple[Path, Path]) -> None:
    """A generated key is readable by its owner only, and never written over another."""
    again = CliRunner().invoke(main, ["attest", "--generate-key", str(keys[0])])

    assert [path.stat().st_mode & 0o777 for path in keys] == [0o600, 0o644]
    assert again.exit_code == ExitCode.DECLINED
    assert "exists, and is not overwritten" in again.output


def test_key_on_a_volume_that_is_not_there_is_kept(tmp_path: Path) -> None:
    """A link in the place of a key leads to one, also while nobody can follow it."""
    link = tmp_path / "key.pem"
    link.symlink_to("/no/such/volume/key.pem")
    ended = CliRunner().invoke(main, ["attest", "--generate-key", str(link)])

    assert ended.exit_code == ExitCode.DECLINED
    assert link.is_symlink()


def test_log_of_a_copied_state_folder_is_looked_at(
    attest: Attest, archive: Archive, tmp_path: Path
) -> None:
    """Where the state folder was copied, a log that is altered in the copy is not attested."""
    job_id = jobs(archive)[State.ADVANCED]
    log = archive.log(job_id)
    folder = shutil.copytree(log.parents[2], tmp_path / "copied")
    log.unlink()
    copy = folder.joinpath(*log.parts[-3:])
    in_use = {"ORCH_STAGING_RUNNER_STATE_DIR": str(folder)}
    sound = attest(job_id, **in_use)
    copy.write_text("all well")
    altered = attest(job_id, **in_use)

    assert sound.exit_code == 0, sound.output
    assert altered.exit_code == ExitCode.DECLINED
    assert f"{copy} was altered" in altered.stderr


def test_verdict_is_attested_after_its_runs_were_removed(attest: Attest, archive: Archive) -> None:
    """That the folders of its runs are gone, as old ones are, is nothing against a verdict."""
    job_id = jobs(archive)[State.ADVANCED]
    before = attest(job_id).exit_code
    for log in [run["log"] for run in archive.stored(job_id)["runs"]]:
        Path(log).unlink()

    assert (before, attest(job_id).exit_code) == (0, 0)


def test_public_half_of_an_older_key_is_kept(keys: tuple[Path, Path]) -> None:
    """No new key takes the place of the public half by which older attestations are verified."""
    before = keys[1].read_bytes()
    keys[0].rename(keys[0].with_name("moved.pem"))
    ended = CliRunner().invoke(main, ["attest", "--generate-key", str(keys[0])])

    assert ended.exit_code == ExitCode.DECLINED
    assert keys[1].read_bytes() == before
    assert not keys[0].exists()

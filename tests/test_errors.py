"""Errors: each keeps its facts as attributes, and says them in a sentence."""

import pytest

from staging_fsm.core.errors import (
    AttestationRefusedError,
    ConfigInvalidError,
    ExtraMissingError,
    MachineUnfitError,
    SnapshotRefusedError,
    StagingError,
    StaleSnapshotError,
    TransitionRefusedError,
)

SAID = [
    (
        TransitionRefusedError("RUNNING", "gate_opened", ["suite_passed", "worker_lost"]),
        {"state": "RUNNING", "event": "gate_opened", "allowed": ("suite_passed", "worker_lost")},
        "gate_opened is not allowed in RUNNING; allowed is suite_passed, worker_lost",
    ),
    (
        TransitionRefusedError("ADVANCED", "job_claimed", []),
        {"state": "ADVANCED", "event": "job_claimed", "allowed": ()},
        "job_claimed is not allowed in ADVANCED; allowed is nothing, the attempt has ended",
    ),
    (
        SnapshotRefusedError("it has no attempt id"),
        {"problem": "it has no attempt id"},
        (
            "the staging_runner snapshot is refused: it has no attempt id; nothing was changed:"
            " correct the row by hand, or remove the key and queue the job again"
        ),
    ),
    (
        StaleSnapshotError(7, "7-3f", 3),
        {"job_id": 7, "attempt_id": "7-3f", "version": 3},
        (
            "job 7 no longer is in work with version 3 of attempt 7-3f: another worker moved it,"
            " or a person did; nothing was written"
        ),
    ),
    (
        StaleSnapshotError("a-b", "7-3f", None),
        {"job_id": "a-b", "attempt_id": "7-3f", "version": None},
        (
            "job a-b no longer is without an attempt: another worker moved it, or a person did;"
            " nothing was written"
        ),
    ),
    (
        ConfigInvalidError(["one is wrong", "so is another"]),
        {"problems": ("one is wrong", "so is another")},
        "invalid configuration: one is wrong; so is another",
    ),
    (
        MachineUnfitError("the disk is full"),
        {"problem": "the disk is full"},
        "this machine cannot run a suite now: the disk is full",
    ),
    (
        ExtraMissingError("web"),
        {"extra": "web"},
        "this needs the extra `web`: pip install 'staging-fsm[web]'",
    ),
    (
        AttestationRefusedError(7, "it has not passed"),
        {"job_id": 7, "problem": "it has not passed"},
        "job 7 is not attested: it has not passed",
    ),
    (
        AttestationRefusedError(None, "nobody signed it"),
        {"job_id": None, "problem": "nobody signed it"},
        "the attestation is refused: nobody signed it",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("error", "facts", "sentence"), SAID)
def test_error_says_what_it_keeps(
    error: StagingError, facts: dict[str, object], sentence: str
) -> None:
    """An error has its facts for a program, and a sentence of them for a person."""
    assert vars(error) == facts
    assert str(error) == sentence

"""Artifact: whatever a suite prints and an attempt is named, the gate reads what was judged."""

import json
import tempfile
from pathlib import Path

from fuzz.fuzz_snapshot import mutate
from staging_fsm.core.artifact import StagingLog, render
from staging_fsm.core.errors import SnapshotRefusedError
from staging_fsm.core.snapshot import load_snapshot
from staging_fsm.core.spec import TRANSITIONS, Effect, State
from staging_fsm.host.contract.gate import (
    ARTIFACT_NAME,
    _parse_staging_status,
    check_staging_status,
)

__all__ = ["fuzz", "mutate"]

#: The states in which an artifact is written.
_JUDGED = {row.target for row in TRANSITIONS if row.effect is Effect.HAND_OVER}
_FOLDER = tempfile.TemporaryDirectory()


def fuzz(data: bytes) -> bool:
    """Return whether `data` is the JSON of a judged attempt, a line feed and any output.

    The JSON is a list: the snapshot, the work item and the job's id.
    """
    line, _, output = data.partition(b"\n")
    try:
        document, work_item, job = json.loads(line)
        snapshot = load_snapshot(document)
    except (ValueError, TypeError, RecursionError, SnapshotRefusedError):
        return False
    if snapshot.state not in _JUDGED:
        return False
    status = "SUCCESS" if snapshot.state is State.VERDICT_PASSED else "FAILED"
    command = snapshot.bound_plan.suite.command
    text = render(snapshot, StagingLog(str(work_item), str(job), status, output, command))
    assert _parse_staging_status(text) == status
    (Path(_FOLDER.name) / ARTIFACT_NAME).write_bytes(text.encode())
    assert check_staging_status(_FOLDER.name) is (status == "SUCCESS")
    return True

"""The end of what a run printed, without secrets, for whoever shows an attempt."""

from collections.abc import Mapping

from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.visible import visible
from staging_fsm.effects.run_output import RunOutput
from staging_fsm.effects.state_dir import StateDir, state_dir


def output_tail(snapshot: Snapshot, run: int, variables: Mapping[str, str], size: int) -> bytes:
    """Return the end of what a run printed; nothing if it is not below the state folder.

    The attempt's id is a text of the row: it may name no folder but one of the
    runs', whatever it says and whatever somebody linked there.
    """
    state = StateDir(state_dir(variables))
    run_id = f"{snapshot.attempt_id}.{run}"
    try:
        runs, folder = (path.resolve() for path in (state.run("."), state.run(run_id)))
    except (OSError, ValueError, RuntimeError):
        return b""
    if folder.parent != runs:
        return b""
    return RunOutput(state, variables).tail(run_id, size)


def last_line(output: bytes) -> str:
    """Return the last line of an output that is not blank, made visible; "" without one."""
    return visible(output.decode("utf-8", "replace")).strip().split("\n")[-1].strip()

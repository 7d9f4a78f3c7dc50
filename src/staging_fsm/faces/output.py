"""What a run printed and its command, without secrets, for whoever shows an attempt."""

from collections.abc import Mapping

from staging_fsm.core.snapshot import Run, Snapshot
from staging_fsm.core.visible import visible
from staging_fsm.effects.run_folder import RunFolder
from staging_fsm.effects.run_output import RunOutput
from staging_fsm.effects.state_dir import StateDir, state_dir


def output_tail(snapshot: Snapshot, run: int, variables: Mapping[str, str], size: int) -> bytes:
    """Return the end of what a run printed; nothing if it is not below the state folder."""
    output, run_id = _of_run(snapshot, run, variables)
    return output.tail(run_id, size) if run_id else b""


def log_of(snapshot: Snapshot, run: Run, variables: Mapping[str, str]) -> str | None:
    """Return where the output of a run is; None if that is not known, and not to be seen here.

    Of one that was not judged, since it lasts or was stopped, no place is kept in the row.
    """
    if run.log is not None:
        return run.log
    output, run_id = _of_run(snapshot, run.number, variables)
    if run_id is None:
        return None
    folder = RunFolder(output.state, run_id)
    return str(folder.log) if folder.holds(folder.log.name) else None


def shown_command(snapshot: Snapshot, variables: Mapping[str, str]) -> tuple[str, ...]:
    """Return the words of an attempt's command as its artifact shows them, where that is kept.

    Else they are without the secrets that `variables` and the command itself tell of.
    """
    output, run_id = _of_run(snapshot, len(snapshot.runs), variables)
    suite = snapshot.bound_plan.suite
    return output.shown_command(run_id, suite) if run_id else output.masked_command(suite)


def _of_run(
    snapshot: Snapshot, run: int, variables: Mapping[str, str]
) -> tuple[RunOutput, str | None]:
    """Return what shows runs, and a run's name, None if that is no folder of the runs'.

    The attempt's id is a text of the row: it may name no other, whatever it says and
    whatever somebody linked there.
    """
    state = StateDir(state_dir(variables))
    run_id = f"{snapshot.attempt_id}.{run}"
    try:
        runs, folder = (path.resolve() for path in (state.run("."), state.run(run_id)))
    except (OSError, ValueError, RuntimeError):
        return RunOutput(state, variables), None
    return RunOutput(state, variables), run_id if folder.parent == runs else None


def last_line(output: bytes) -> str:
    """Return the last line of an output that is not blank, made visible; "" without one."""
    return visible(output.decode("utf-8", "replace")).strip().split("\n")[-1].strip()

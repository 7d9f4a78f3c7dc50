"""What a run showed, collected once nothing of it is alive: the facts that are judged."""

import contextlib
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from staging_fsm.core.errors import PreparationError, ReportStaleError, ReportUnreadableError
from staging_fsm.core.evidence import (
    NO_EVIDENCE_REQUIRED,
    Evidence,
    EvidenceState,
    RunWindow,
    read_noted,
)
from staging_fsm.core.outcome import RunFacts, SpawnError, Stop, Supervision
from staging_fsm.core.plan import UNVERSIONED, Workspace
from staging_fsm.core.ports import RunReport
from staging_fsm.effects import worktree
from staging_fsm.effects.files import open_regular, read_tail, sha256_of_file
from staging_fsm.effects.run_folder import Order, RunFolder, place_of
from staging_fsm.effects.supervisor.result import mark_of

#: So much of what a supervisor said at its end is told.
_LAST_WORDS_BYTES: Final = 500
_OUT_OF_MEMORY: Final = (
    "the kernel killed a process for want of memory while the suite ran, maybe one of the suite's"
)
_UNCOMMITTED: Final = (
    "uncommitted changes were tested too, and the revision alone does not say what ran"
)


def report_of(
    folder: RunFolder,
    order: Order,
    result: dict[str, str] | None,
    shown: Callable[[str], str],
) -> RunReport:
    """Return the report on a run that has ended.

    `result` is what its supervisor sealed; None where it left nothing, and empty where
    what it left is not to be believed. `shown` makes a text harmless that may hold words
    of the suite's. Raises OSError, and PreparationError.
    """
    log = folder.log
    if not result or result.get("foreign_result") == "1":
        supervision = Supervision.LOST if result is None else Supervision.FORGED
        words = read_tail(folder.shim_errors, _LAST_WORDS_BYTES).decode("utf-8", "replace").strip()
        name = str(log) if log.is_file() else None
        return RunReport(RunFacts(supervision=supervision), detail=words or None, log=name)
    # Only the file that the supervisor wrote: to read another could take for ever.
    sha256 = sha256_of_file(log) if _log_identity(log) == result["log_file"] else None
    evidence, doubt = _evidence(order, result)
    tree = _seen_of_tree(folder, order)
    facts = RunFacts(
        exit_code=_optional_int(result["exit_code"]),
        signal=_optional_int(result["signal"]),
        spawn_error=SpawnError(result["spawn_error"]) if result["spawn_error"] else None,
        stopped_by=Stop(result["stopped_by"]) if result["stopped_by"] else None,
        out_of_memory=result["out_of_memory"] == "1",
        tree_changed=tree["tree_changed"] == "1",
        log_complete=result["log_complete"] == "1" and sha256 is not None,
        processes_left=int(result["processes_left"]),
        supervision=Supervision.SOUND,
        evidence=evidence,
    )
    return RunReport(
        facts,
        duration_seconds=float(result["duration_seconds"]),
        detail=_detail(order, result, tree, shown(doubt) if doubt else None),
        log=str(log) if sha256 else None,
        log_sha256=sha256,
        log_bytes=int(result["log_bytes"]),
        log_dropped_bytes=int(result["log_dropped_bytes"]),
    )


def _log_identity(path: Path) -> str | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return f"{found.st_ino}:{found.st_size}"


def _seen_of_tree(folder: RunFolder, order: Order) -> dict[str, str]:
    """Return what there is to say of the tree, as first seen: of a checkout nothing is left later.

    That is whether it moved, and how much of the commit was not in it.
    """
    seen = folder.sealed("tree") or {}
    if "tree_changed" not in seen:
        state = _as_bound(order)
        seen = {"tree_changed": str(int(state is None))}
        if state is not None:
            seen |= {"left_out": str(state.left_out), "empty": str(state.empty)}
        # On a full disk the run is at worst tried again.
        with contextlib.suppress(OSError):
            folder.seal("tree", **seen)
    return seen


def has_moved(order: Order) -> bool:
    """Say whether the tree of a run is, or was, on another commit; an unversioned one never is.

    Raises PreparationError where git does not answer.
    """
    tree = Path(order.tree)
    if order.revision == UNVERSIONED:
        return False
    if worktree.head_revision(tree) != order.revision:
        return True
    # It may have been elsewhere while the suite ran, and be back.
    last = order.last_of_head
    return last is not None and worktree.has_left(tree, order.revision, last)


def _as_bound(order: Order) -> worktree.TreeState | None:
    """Return the state of a tree that is the one that the run was bound to, else None."""
    if order.revision == UNVERSIONED:
        return worktree.TreeState()
    tree = Path(order.tree)
    try:
        if has_moved(order):
            return None
        whole = order.workspace == Workspace.WORKTREE
        state = worktree.tree_state(tree, filtered=False, as_it_is=True, whole=whole)
    except PreparationError:
        # A tree that cannot be looked at any more is not the one that was checked out.
        return None
    return state if state.changes == order.changes else None


def _evidence(order: Order, result: dict[str, str]) -> tuple[Evidence, str | None]:
    """Return what the report shows, if it is the one that was there when the suite had ended.

    With it comes what is wrong with one that is there, in words that may be the suite's own,
    or why it counts nothing.
    """
    if order.report is None:
        return NO_EVIDENCE_REQUIRED, None
    path = Path(order.report)
    unread = _why_unread(path, order, result)
    if unread is not None:
        state, doubt = unread
        return Evidence(state), doubt
    file = open_regular(path)
    if file is None:
        return Evidence(EvidenceState.UNREADABLE), "the report is no regular file"
    with file:
        try:
            window = _window(order, result)
            counts, note = read_noted(file, window)
            written = os.fstat(file.fileno()).st_mtime
        except (OSError, ReportStaleError, ReportUnreadableError) as error:
            is_stale = isinstance(error, ReportStaleError)
            return Evidence(EvidenceState.STALE if is_stale else EvidenceState.UNREADABLE), str(
                error
            )
    if counts.dated or window.holds_file_time(written):
        return Evidence(EvidenceState.READ, counts), note
    doubt = f"the file of the report was last written outside of this run, which was {window}"
    return Evidence(EvidenceState.STALE), doubt


def _why_unread(
    path: Path, order: Order, result: dict[str, str]
) -> tuple[EvidenceState, str | None] | None:
    """Return why a report is not even read, or None."""
    left = result.get("report", "")
    if not left:
        return EvidenceState.MISSING, None
    if left == order.report_before:
        return EvidenceState.STALE, "the report was there before this run, which did not write it"
    if left != mark_of(str(path)):
        return EvidenceState.STALE, "the report was written again after the suite had ended"
    if _is_elsewhere(path, order.report_within):
        return EvidenceState.STALE, "a link leads to the report, to where others may write it"
    if result["stopped_by"] and result.get("report_before_stop", left) != left:
        # A suite that is terminated may well report, and what fails then may fail by our signal.
        return EvidenceState.LATE, None
    return None


def _is_elsewhere(path: Path, within: str | None) -> bool:
    # A link that came meanwhile leads to where other runs write as well.
    return within is not None and not place_of(path).is_relative_to(within)


def _window(order: Order, result: dict[str, str]) -> RunWindow:
    now = datetime.now(UTC)
    begin, end = datetime.fromtimestamp(order.started_at, UTC), now
    if ended_at := float(result.get("ended_at") or 0.0):
        # By the clock of its end alone: it may have been set, back too, since the run began.
        end = datetime.fromtimestamp(ended_at, UTC)
        begin = end - timedelta(seconds=float(result["duration_seconds"]))
    return RunWindow(begin, end, now.astimezone().tzinfo or UTC)


def _detail(
    order: Order, result: dict[str, str], tree: dict[str, str], doubt: str | None
) -> str | None:
    if result["spawn_detail"]:
        return result["spawn_detail"]
    told = [doubt] if doubt else []
    if order.uncommitted:
        told.append(_UNCOMMITTED)
    told += _not_in_tree(int(tree.get("left_out", 0)), int(tree.get("empty", 0)))
    if result["out_of_memory"] == "1" and result["exit_code"] != "0":
        # A runner of tests that outlives its workers reports each that was killed as a failure.
        told.append(_OUT_OF_MEMORY)
    if result["survivors"] != "0":
        told.append(f"{result['survivors']} processes outlived the suite and were killed")
    return "; ".join(told) or None


def _not_in_tree(left_out: int, empty: int) -> list[str]:
    """Return in words what of the commit the suite did not find."""
    told = []
    if left_out:
        files = "1 tracked file" if left_out == 1 else f"{left_out} tracked files"
        be = "is" if left_out == 1 else "are"
        told.append(f"{files} of the commit {be} not in the tree (sparse checkout)")
    if empty:
        told.append("1 submodule is empty" if empty == 1 else f"{empty} submodules are empty")
    return told


def _optional_int(text: str) -> int | None:
    return int(text) if text else None

"""What stands on the pages: plain values from rows, made harmless before a template sees them."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import attrs
from markupsafe import Markup

from staging_fsm.core.artifact import ended_by, fault
from staging_fsm.core.errors import SnapshotRefusedError
from staging_fsm.core.jobs import JobRow
from staging_fsm.core.outcome import REASONS, RULES, Verdict
from staging_fsm.core.snapshot import Move, Run, Snapshot
from staging_fsm.core.spec import State
from staging_fsm.core.visible import visible
from staging_fsm.effects.files import read_small
from staging_fsm.faces.diagrams import Diagram, svg
from staging_fsm.faces.output import output_tail, shown_command
from staging_fsm.faces.queue import active_attempt
from staging_fsm.faces.views import (
    credible_seconds,
    duration_words,
    job_id_of,
    moment,
    names_of,
    plain,
    sentence,
)
from staging_fsm.faces.web.plot import Bar, Plot
from staging_fsm.faces.web.source import Source
from staging_fsm.host.contract.gate import ARTIFACT_NAME

#: How many of the newest jobs a repository's history is looked for in, and how much is shown.
HISTORY_JOBS: Final = 5000
HISTORY_LISTED: Final = 100
#: How much of a run's output, and of an artifact, stands on a page.
TAIL_BYTES: Final = 16 * 1024
ARTIFACT_BYTES: Final = 256 * 1024
_RUNNING: Final = "The suite is running."
_RULES: Final = {rule.id: rule.sentence for rule in RULES}
#: What a state means to somebody who has to act, and how it is drawn.
TONES: Final[Mapping[State, str]] = {
    State.PENDING: "waiting",
    State.RUNNING: "running",
    State.VERDICT_PASSED: "good",
    State.VERDICT_FAILED: "code",
    State.TOOL_ERROR: "bad",
    State.DEFERRED: "waiting",
    State.EXHAUSTED: "bad",
    State.ADVANCED: "good",
    State.ROLLED_BACK: "code",
    State.FAILED_CLOSED: "bad",
    State.LLM_FALLBACK: "quiet",
    State.CANCELLED: "quiet",
}
FAULTS: Final[Mapping[str | None, str]] = {
    None: "not known yet",
    "none": "nobody’s",
    "code": "code",
    "infrastructure": "infrastructure",
}


def attempt_page(source: Source, row: JobRow, now: datetime) -> dict[str, Any]:
    """Return one attempt, or why it cannot be read."""
    names = names_of(row)
    try:
        snapshot = row.snapshot()
    except SnapshotRefusedError as error:
        return {**names, "attempt": None, "problem": plain(error.problem, 2000)}
    if snapshot is None:
        problem = "the runner has not had this job: it waits for its worker, or it is not for us"
        return {**names, "attempt": None, "problem": problem}
    runs = [_run(snapshot, run, source) for run in snapshot.runs]
    return {
        **names,
        "attempt": active_attempt(row, snapshot, source.variables, now, has_agent=source.has_agent),
        "attempt_id": plain(snapshot.attempt_id),
        "terminal": snapshot.is_terminal,
        "sentence": _RUNNING if snapshot.state is State.RUNNING else plain(sentence(snapshot)),
        "fault": fault(snapshot),
        "history": _history(snapshot.history),
        "runs": list(reversed(runs)),
        "facts": _facts(source, row, snapshot),
        "artifact": _artifact(source, row, snapshot),
        # Drawn from the table and ids of its rows: no text of the row or a suite is in it.
        "diagram": Markup(svg(Diagram.of_attempt(snapshot), style=False)),  # noqa: S704  # as said
    }


def _history(history: tuple[Move, ...]) -> list[dict[str, Any]]:
    first = moment(history[0].time) if history else None
    entries = []
    for move in history:
        when = moment(move.time)
        after = None if when is None or first is None else (when - first).total_seconds()
        entries.append(
            {
                "id": move.id,
                "time": plain(move.time),
                "after": after,
                "source": str(move.row.source),
                "event": str(move.row.event),
                "target": move.row.target,
                "reason": plain(move.reason),
                "worker": plain(move.worker),
            }
        )
    return entries


def _run(snapshot: Snapshot, run: Run, source: Source) -> dict[str, Any]:
    facts = REASONS[run.reason] if run.reason else None
    tail = output_tail(snapshot, run.number, source.variables, TAIL_BYTES)
    return {
        "number": run.number,
        "started_at": plain(run.started_at),
        "seconds": run.duration_seconds,
        "ended_by": ended_by(run),
        "reason": run.reason and str(run.reason),
        "sentence": facts.sentence if facts else _RUNNING,
        "tone": _TONE_OF_VERDICT[facts.verdict] if facts else "running",
        "rule": _RULES.get(run.rule or ""),
        "detail": run.detail and plain(run.detail, 2000),
        "counts": attrs.asdict(run.counts) if run.counts else None,
        "log": run.log and plain(run.log),
        "log_bytes": run.log_bytes,
        "log_dropped_bytes": run.log_dropped_bytes,
        "output": visible(tail.decode("utf-8", "replace")),
        "output_is_whole": len(tail) < TAIL_BYTES,
    }


_TONE_OF_VERDICT: Final = {
    Verdict.PASSED: "good",
    Verdict.FAILED: "code",
    Verdict.NOT_EXECUTED: "bad",
}


def _facts(source: Source, row: JobRow, snapshot: Snapshot) -> dict[str, Any]:
    """Return what an attempt is bound to, and how its work item stands."""
    facts: dict[str, Any] = {}
    if (plan := snapshot.plan) is not None:
        suite = plan.suite
        facts["Revision"] = plain(plan.revision)
        facts["Command"] = plain(" ".join(shown_command(snapshot, source.variables)), 1000)
        facts["Evidence"] = (
            f"JUnit report {plain(suite.report)}; tests asked for: {suite.min_tests}"
            if suite.report
            else "the exit code alone"
        )
        facts["Deadline"] = duration_words(suite.timeout_seconds)
        facts["Budget"] = f"{plan.budget.runs_max} runs at most"
    item = source.work_item_of(row)
    if item is not None:
        facts["Stage now"] = plain(item.stage)
        facts["Developer retries left"] = str(item.developer_retries)
        if item.blocked_reason:
            facts["Blocked"] = plain(item.blocked_reason)
    facts["Worker"] = plain(snapshot.worker)
    return facts


def _artifact(source: Source, row: JobRow, snapshot: Snapshot) -> dict[str, Any] | None:
    """Return the artifact: where, whether it still is what the gate read, and then its text.

    Nothing is read but a file of the artifact's own name inside the job's
    repository, links followed, whose digest is the recorded one.
    """
    written = snapshot.artifact
    if written is None:
        return None
    found = {"path": plain(written.path), "sha256": plain(written.sha256), "text": None}
    path = _inside(source, row, Path(written.path))
    if path is None:
        return {**found, "is": "not where this server may read"}
    data = read_small(path, ARTIFACT_BYTES)
    if data is None:
        return {**found, "is": "gone, or larger than what was written"}
    if hashlib.sha256(data).hexdigest() != written.sha256:
        return {**found, "is": "no longer what was written"}
    return {**found, "is": "what the gate read", "text": visible(data.decode("utf-8", "replace"))}


def _inside(source: Source, row: JobRow, path: Path) -> Path | None:
    """Return the file behind `path` if it is an artifact of the job's repository."""
    place = source.place_of(row) if path.name == ARTIFACT_NAME else None
    if place is None:
        return None
    try:
        repository = place.repository.resolve(strict=True)
        found = path.resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        return None
    return found if found.is_relative_to(repository) and found.name == ARTIFACT_NAME else None


def repository_page(source: Source, name: str, now: datetime) -> dict[str, Any]:
    """Return a repository's history, newest first, and a plot of it, oldest first."""
    entries, refused = [], 0
    for row in source.recent(HISTORY_JOBS, name):
        try:
            snapshot = row.snapshot()
        except SnapshotRefusedError:
            refused += 1
            continue
        if snapshot is not None and snapshot.history:
            entries.append(_entry(row, snapshot, now))
    bars = [
        Bar(entry["seconds"], entry["tone"], entry["label"], entry["job_id"])
        for entry in reversed(entries[:HISTORY_LISTED])
    ]
    return {
        "repo": plain(name),
        "entries": entries[:HISTORY_LISTED],
        "total": len(entries),
        "refused": refused,
        "counts": dict(Counter(str(entry["state"]) for entry in entries)),
        "plot": Plot(tuple(bars)),
        "jobs": HISTORY_JOBS,
    }


def _entry(row: JobRow, snapshot: Snapshot, now: datetime) -> dict[str, Any]:
    began, last = moment(snapshot.history[0].time), moment(snapshot.history[-1].time)
    seconds = credible_seconds(sum(run.duration_seconds or 0.0 for run in snapshot.runs))
    return {
        "job_id": job_id_of(row),
        "work_item": plain(row.work_item),
        "state": snapshot.state,
        "tone": TONES[snapshot.state],
        "sentence": _RUNNING if snapshot.state is State.RUNNING else plain(sentence(snapshot)),
        "fault": fault(snapshot),
        "runs": len(snapshot.runs),
        "seconds": seconds,
        "began_at": plain(snapshot.history[0].time),
        "ago": None if last is None else max(0.0, (now - last).total_seconds()),
        "total_seconds": None
        if began is None or last is None
        else max(0.0, (last - began).total_seconds()),
        "label": f"{plain(row.work_item)}: {snapshot.state}, {duration_words(seconds)} of suite",
    }

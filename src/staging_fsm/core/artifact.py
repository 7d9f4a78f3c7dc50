"""`15-staging-log.md`: what the gate reads, and what a person reads below it.

The text is made from the snapshot and the tail of the log alone, so writing it
again after a crash gives the same bytes. The suite's output stands below the
front matter, indented by four spaces and with every control character made
visible: nothing a suite prints can look like front matter, close a fence or move
a terminal's cursor.

The front matter says whose verdict it is and what it is; the gate reads all of it,
key by key and slowly. What else is known of the run stands below, in the same form.
"""

import json
import re
from itertools import starmap
from typing import Any, Final

import attrs

from staging_fsm.core.evidence import EvidenceState
from staging_fsm.core.outcome import REASONS, Reason, Verdict
from staging_fsm.core.snapshot import Run, Snapshot
from staging_fsm.core.spec import State
from staging_fsm.core.visible import visible, visible_line
from staging_fsm.host.contract.gate import STATUS_KEY

TAIL_LINES: Final = 60
TAIL_LINE_CHARACTERS: Final = 400
#: A page of facts has no room for more.
COMMAND_CHARACTERS: Final = 4000

_ENCODER: Final = json.JSONEncoder(ensure_ascii=False)
#: To YAML 1.1 a number with an exponent and no point is a text.
_NO_POINT: Final = re.compile(r"^(-?\d+)e")
_FAULTS: Final = {Verdict.PASSED: "none", Verdict.FAILED: "code"}
_UNDATED: Final = "so nothing but the time of its file says when it was made."
#: How far a report's own time stamps say that it is of its run.
_DATED: Final = {
    True: "Its time stamps are of this run.",
    None: f"A time stamp in it cannot be read, {_UNDATED}",
    False: f"It carries no time stamps, {_UNDATED}",
}
#: What stands bare in the front matter: words of ours, none of which YAML takes for
#: anything but a text. Whatever comes from elsewhere is quoted.
_BARE: Final = frozenset(
    {
        "SUCCESS",
        "FAILED",
        "staging_fsm",
        "infrastructure",
        "exit-code",
        "junit",
        *_FAULTS.values(),
        *Reason,
    }
)


@attrs.frozen
class StagingLog:
    """What the artifact says besides the snapshot: whose work item, and what may be shown of it."""

    work_item: str
    job_id: str
    status: str
    output_tail: bytes
    command: tuple[str, ...]


def fault(snapshot: Snapshot) -> str | None:
    """Return whose fault the last run's outcome is: "none", "code" or "infrastructure".

    None as long as there is no outcome.
    """
    reason = snapshot.last_reason
    return None if reason is None else _FAULTS.get(REASONS[reason].verdict, "infrastructure")


def ended_by(run: Run) -> str | None:
    """Return how the suite of a run ended, in words; None if it did not, or nobody knows."""
    if run.signal is not None:
        return f"signal {run.signal}"
    return None if run.exit_code is None else f"exit code {run.exit_code}"


def evidence_of(snapshot: Snapshot) -> str | None:
    """Return what the last run's outcome rests on: "exit-code" alone, or "junit" for a report.

    None as long as there is no outcome.
    """
    if snapshot.last_reason is None:
        return None
    return "exit-code" if snapshot.bound_plan.suite.report is None else "junit"


def front_matter(snapshot: Snapshot, log: StagingLog) -> dict[str, Any]:
    """Return the keys and values of the front matter, in the order they are written."""
    run, plan = snapshot.last_run, snapshot.bound_plan
    return {
        STATUS_KEY: log.status,
        "producer": "staging_fsm",
        "work_item": log.work_item,
        "job": log.job_id,
        "attempt": snapshot.attempt_id,
        "run": run.number,
        "runs_max": plan.budget.runs_max,
        "reason": str(snapshot.judged_reason),
        "fault": fault(snapshot),
        "exit_code": run.exit_code,
        "signal": run.signal,
        "revision": plan.revision,
    }


def facts(snapshot: Snapshot, log: StagingLog) -> dict[str, Any]:
    """Return what else is known of the last run, in the order it is written below."""
    run = snapshot.last_run
    known: dict[str, Any] = {
        "rule": run.rule,
        "duration_seconds": run.duration_seconds,
        "ended_at": run.ended_at,
        "command": _shortened(log.command),
        "evidence": evidence_of(snapshot),
        "log": run.log,
        "log_sha256": run.log_sha256,
        "log_bytes": run.log_bytes,
        "log_dropped_bytes": run.log_dropped_bytes,
    }
    if run.counts is not None:
        known |= {**attrs.asdict(run.counts), "executed": run.counts.executed}
    return known


def written(key: str, value: object) -> str:
    """Return a line of YAML: a value as JSON writes it, which YAML reads, all of it in ASCII.

    Not by a YAML library: in Python it takes a millisecond for this page.
    """
    if isinstance(value, str) and value in _BARE:
        return f"{key}: {value}"
    text = _ENCODER.encode(value).replace("\x7f", "\\x7f")
    if isinstance(value, float):
        text = _NO_POINT.sub(r"\1.0e", text)
    # As one escape for each character, where JSON's own form has two halves for some.
    return f"{key}: {text.encode('ascii', 'backslashreplace').decode('ascii')}"


def line_of(text: str, key: str) -> str | None:
    """Return the line of an artifact's front matter that is of `key`, to compare with `written`.

    None if there is none, or more than one, or no front matter.
    """
    head, end, _ = f"{text}\n".partition("\n---\n")
    begun = f"\n{key}:"
    if not end or not head.startswith("---\n") or head.count(begun) != 1:
        return None
    return begun[1:] + head.partition(begun)[2].partition("\n")[0]


def said(text: str, key: str) -> str | None:
    """Return the plain text that front matter has for `key`, quoted or not, whoever wrote it."""
    line = line_of(text, key)
    return None if line is None else line.partition(":")[2].strip().strip("'\"")


def is_of_run(text: str, attempt_id: str, number: int) -> bool:
    """Say whether an artifact's front matter names this run of this attempt as its own."""
    whose = {"attempt": attempt_id, "run": number}
    return all(line_of(text, key) == written(key, value) for key, value in whose.items())


def _shortened(command: tuple[str, ...]) -> list[str]:
    words: list[str] = []
    left = COMMAND_CHARACTERS
    for word in command:
        if len(word) > left:
            # Below zero where the word before it just fitted in, without the blank behind it.
            return [*words, f"{word[: max(left, 0)]} … ({len(command)} words in all)"]
        words.append(word)
        left -= len(word) + 1
    return words


def render(snapshot: Snapshot, log: StagingLog) -> str:
    """Return the whole artifact; refused with SnapshotRefusedError before a run was judged."""
    head = "\n".join(starmap(written, front_matter(snapshot, log).items()))
    parts = [
        f"---\n{head}\n---\n",
        f"# Staging log: {log.status}\n",
        _summary(snapshot),
        _runs_table(snapshot),
        f"Evidence: {evidence_words(snapshot)}\n",
        _facts(snapshot, log),
        _output(log.output_tail, snapshot.last_run),
    ]
    return "\n".join(parts)


def _summary(snapshot: Snapshot) -> str:
    lines = [REASONS[snapshot.judged_reason].sentence]
    if detail := snapshot.last_run.detail:
        lines.append(f"Detail: {visible_line(detail)}")
    if snapshot.state is State.EXHAUSTED:
        lines.append(
            "This is an infrastructure fault and no verdict on the code:"
            " no run is left, so the gate stays shut and a person was alerted."
        )
    return "\n".join(lines) + "\n"


def _runs_table(snapshot: Snapshot) -> str:
    rows = [
        f"| {run.number} | {visible_line(run.started_at)} | {_seconds(run)}"
        f" | {ended_by(run) or '-'} | {run.reason} |"
        for run in snapshot.runs
    ]
    return (
        "\n".join(
            [
                "| run | started | seconds | ended by | reason |",
                "| --- | --- | --- | --- | --- |",
                *rows,
            ]
        )
        + "\n"
    )


def _facts(snapshot: Snapshot, log: StagingLog) -> str:
    lines = [f"    {written(key, value)}" for key, value in facts(snapshot, log).items()]
    return "\n".join([f"What is known of run {snapshot.last_run.number}:\n", *lines]) + "\n"


def _seconds(run: Run) -> str:
    return "-" if run.duration_seconds is None else f"{run.duration_seconds:.2f}"


def evidence_words(snapshot: Snapshot) -> str:
    """Return what shows that the last run, which was judged, ran any test, in words."""
    run, suite = snapshot.last_run, snapshot.bound_plan.suite
    if suite.report is None:
        return (
            "the exit code alone. No test report was asked for,"
            " so nothing proves how many tests ran."
        )
    report = f"the JUnit report `{visible_line(suite.report)}`"
    if run.evidence in (None, EvidenceState.NOT_REQUIRED):
        return f"{report} was asked for, and nothing is known of it."
    if run.counts is None:
        return f"{report} was asked for and is {run.evidence}."
    counts = run.counts
    return (
        f"{report} counts {counts.tests} tests,"
        f" {counts.executed} executed, {counts.failures} failures, {counts.errors} errors,"
        f" {counts.skipped} skipped. {_DATED[counts.dated]}"
    )


def _output(tail: bytes, run: Run) -> str:
    lines = visible(tail.decode("utf-8", "replace")).split("\n")
    if lines[-1] == "":
        lines.pop()
    shown = [f"    {_cut(line)}" for line in lines[-TAIL_LINES:]]
    if not shown:
        return "The suite printed nothing.\n"
    size = "" if run.log_bytes is None else f"{run.log_bytes} bytes of "
    title = f"The last {len(shown)} lines of {size}output:\n"
    return "\n".join([title, *shown]) + "\n"


def _cut(line: str) -> str:
    if len(line) <= TAIL_LINE_CHARACTERS:
        return line
    return f"{line[:TAIL_LINE_CHARACTERS]} … ({len(line)} characters)"

"""`staging-fsm audit`: every stored attempt against the table, the invariants and its own papers.

A row is judged from what is stored and from what lies beside it: the chain of
links, the artifact and the logs by their digests, the host's word for the job, and
where its work item went. What deviates, or may, is read once more before it is told: a
row that moved between two looks is no deviation.

A file that is gone is told as missing, not as a deviation: logs are deleted in the
course of things, and nothing can be said of what is not there. Jobs that are gone may
be all that would tell a work item that passed from one that was moved by hand: that is
told as unclear.
"""

import functools
import hashlib
import itertools
import os
import re
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from enum import StrEnum, unique
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import attrs

from staging_fsm.core.artifact import line_of, said, written
from staging_fsm.core.errors import JobNotFoundError, RefusedError, SnapshotRefusedError
from staging_fsm.core.invariants import Movement, Sight, violations
from staging_fsm.core.jobs import QUEUED, RUNNING, STAGE, JobRow
from staging_fsm.core.snapshot import Artifact, Run, Snapshot
from staging_fsm.core.spec import ENDED_BY_GATE, GATE_EVENTS, TRANSITIONS, State
from staging_fsm.core.visible import visible_line
from staging_fsm.effects.files import read_small, sha256_of_file
from staging_fsm.effects.rows import SqlRows
from staging_fsm.effects.run_folder import RunFolder
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.host.contract.gate import STATUS_KEY
from staging_fsm.host.contract.stages import STAGE_TRANSITIONS
from staging_fsm.host.database import open_database
from staging_fsm.host.store import SqlHostStore, Went, stages_ahead

SPAN_ROWS: Final = 1000
#: So many spans are audited here; only a longer table is worth the start of other processes.
SPANS_ALONE: Final = 4
#: No artifact of ours is larger; of a larger file in its place only the digest is taken.
ARTIFACT_BYTES_MAX: Final = 1024 * 1024

#: So many findings of each severity are kept word for word; beyond them they are counted.
FINDINGS_KEPT: Final = 1000

_FORWARD: Final = STAGE_TRANSITIONS[STAGE, "success"]
_AHEAD: Final = stages_ahead(STAGE)
_LIVE: Final = (QUEUED, RUNNING)
_NOBODY_KNOWS: Final = Went()
#: Where an artifact may be written that is not stored yet.
_HANDING_OVER: Final = frozenset(row.source for row in TRANSITIONS if row.event in GATE_EVENTS)
#: The name of an attempt of one of the host's jobs, and how its artifact tells of what made it.
_OF_RUNNER: Final = re.compile(r"[1-9][0-9]{0,17}-[\w-]+", re.ASCII)
_PRODUCER: Final = "staging_fsm"
#: How lines of an artifact begin that tell of one run and no other, wherever it was staged.
_OF_RUN: Final = ("    log: ", "    ended_at: ")
_RUN_CELL: Final = "| "

RESTORE: Final = "Compare the row with a backup, the log of transitions and links noted elsewhere"
STOP: Final = "Stop what was deployed on it, and run the suite again"
KEEP: Final = "Restore the file from a backup, or note who deleted it and why"
CORRECT: Final = "Restore the row from a backup: until then nobody will touch it"
COMPARE: Final = "Compare the file with a backup, and ask who wrote to its folder"
ASK_OTHERS: Final = "Ask in which table that attempt is, and restore the file from a backup"
ASK_HOST: Final = "Ask who moved the job or its work item by hand"
FIND_THE_JOB: Final = (
    "Look in a backup or the log of transitions for a job that passed after this one,"
    " and where there is none stop what was deployed on it, and run the suite again"
)
TO_DO: Final = {"no_silent_advance": STOP}


@unique
class Severity(StrEnum):
    """How bad a finding is."""

    #: What is stored contradicts itself, the table, an invariant, or its own papers.
    DEVIATION = "deviation"
    #: A file is gone, so nothing can be said of it.
    MISSING = "missing"
    #: Jobs are gone, or somebody went by them: what is left does not tell which.
    UNCLEAR = "unclear"


@attrs.frozen
class Finding:
    """One thing that is not as it should be, of one job."""

    job_id: Any
    repo: str
    work_item: str
    severity: Severity
    #: The invariant, or the thing that was looked at.
    check: str
    #: What was expected and what was found, without the full stop.
    problem: str
    to_do: str

    @property
    def sentence(self) -> str:
        """Return the finding as one sentence, and what to do about it."""
        whose = f"job {self.job_id} ({self.repo} {self.work_item})"
        return f"{whose}: {self.check}: {self.problem}. {self.to_do}."


@attrs.define
class Audit:
    """What was seen: how many rows and attempts, what they walked, what was found."""

    rows: int = 0
    states: Counter[str] = attrs.field(factory=Counter)
    #: How often each row of the table was walked.
    walked: Counter[str] = attrs.field(factory=Counter)
    #: How many findings there are; of each severity only the first FINDINGS_KEPT are kept.
    counts: Counter[Severity] = attrs.field(factory=Counter)
    findings: list[Finding] = attrs.field(factory=list)

    def add(self, other: "Audit") -> None:
        """Take what was seen of other rows."""
        self.rows += other.rows
        self.states.update(other.states)
        self.walked.update(other.walked)
        self.findings += [
            finding
            for severity in Severity
            for finding in other.of(severity)[: max(0, FINDINGS_KEPT - self.counts[severity])]
        ]
        self.counts.update(other.counts)

    @property
    def attempts(self) -> int:
        """Return how many attempts could be read."""
        return self.states.total()

    def of(self, severity: Severity) -> list[Finding]:
        """Return the kept findings of one severity, in the order of their jobs."""
        return [finding for finding in self.findings if finding.severity is severity]


def audit_job(
    rows: SqlRows, store: SqlHostStore | None, job_id: Any, state: StateDir | None = None
) -> Audit:
    """Audit one job. Raises JobNotFoundError.

    A log that is not where the row says is looked for among the runs of `state`.
    """
    row = rows.load(job_id)
    return _audited(_Beside(rows, store, state), [row], _went(store, row))


def audit_table(rows: SqlRows, store: SqlHostStore, state: StateDir | None = None) -> Audit:
    """Audit every row of the table, in bounded memory; a long one on every processor.

    Logs are looked for as `audit_job` does.
    """
    seen, beside = Audit(), _Beside(rows, store, state)
    spans = rows.spans(SPAN_ROWS)
    alone = [*itertools.islice(spans, SPANS_ALONE)]
    here = (_audited_span(beside, store, *span) for span in alone)
    # With its password: the other processes open the database themselves.
    url = store.engine.url.render_as_string(hide_password=False)
    for part in _in_processes(url, state, spans, here):
        seen.add(part)
    return seen


def _in_processes(
    url: str, state: StateDir | None, spans: Iterator[tuple[Any, Any]], here: Iterator[Audit]
) -> Iterator[Audit]:
    """Yield `here`, and `spans` audited on every processor, a few ahead of what is taken.

    What is audited here is so while the other processes start.
    """
    first = next(spans, None)
    if first is None:
        yield from here
        return
    processes = os.cpu_count() or 1
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        asked = (
            pool.submit(_audited_elsewhere, url, state, *span)
            for span in itertools.chain([first], spans)
        )
        ahead = deque(itertools.islice(asked, 2 * processes))
        yield from here
        while ahead:
            ahead.extend(itertools.islice(asked, 1))
            yield ahead.popleft().result()


@functools.cache
def _opened(url: str) -> tuple[SqlRows, SqlHostStore]:
    engine = open_database(url, only_to_look=True)
    return SqlRows(engine), SqlHostStore(engine)


def _audited_elsewhere(url: str, state: StateDir | None, after: Any, upto: Any) -> Audit:
    rows, store = _opened(url)
    return _audited_span(_Beside(rows, store, state), store, after, upto)


def _audited_span(beside: "_Beside", store: SqlHostStore, after: Any, upto: Any) -> Audit:
    rows = beside.rows.attempts(after, upto)
    return _audited(beside, rows, store.went_to(STAGE, after, upto))


def _went(store: SqlHostStore | None, row: JobRow) -> Mapping[Any, Went]:
    """Return where one job's work item went, if anybody can tell."""
    return {} if store is None else store.went_to(STAGE, row.id - 1, row.id)


def _audited(beside: "_Beside", page: Iterable[JobRow], went: Mapping[Any, Went]) -> Audit:
    seen = Audit()
    for row in page:
        snapshot, found = examine(row, went.get(row.id, _NOBODY_KNOWS), beside)
        if any(finding.severity is not Severity.MISSING for finding in found):
            snapshot, found = _looked_at_again(beside, row)
        seen.rows += 1
        for finding in found:
            seen.findings.append(finding)
            seen.counts[finding.severity] += 1
        if snapshot is not None:
            seen.states[snapshot.state] += 1
            for move in snapshot.history:
                seen.walked[move.id] += 1
    return seen


def _looked_at_again(beside: "_Beside", row: JobRow) -> tuple[Snapshot | None, list[Finding]]:
    """Return what is found in a row now: between two looks an honest one may have moved."""
    went = _went(beside.store, row)
    try:
        return examine(beside.rows.load(row.id), went.get(row.id, _NOBODY_KNOWS), beside)
    except JobNotFoundError:
        return None, []


def examine(
    row: JobRow, went: Went = _NOBODY_KNOWS, beside: "_Beside | None" = None
) -> tuple[Snapshot | None, list[Finding]]:
    """Return the attempt in a row, if there is one that can be read, and what is wrong with it.

    `went` is where its work item went after this job, as far as that is known,
    and `beside` what else there is to look at.
    """
    try:
        snapshot = row.snapshot()
    except SnapshotRefusedError as error:
        return None, [_finding(row, _Problem("row_refused", error.problem, CORRECT))]
    if snapshot is None:
        return None, []
    text, papers = _artifact(row, snapshot, beside)
    movements = _movements(snapshot, went)
    unclear = [] if movements is None else list(_jobs_gone(row, snapshot, movements, beside))
    sight = Sight(
        snapshot,
        movements=None if unclear else movements,
        written=None if text is None else (text,),
    )
    broken = [line.partition(": ") for line in violations(sight)]
    problems = [
        *(_Problem(name, words, TO_DO.get(name, RESTORE)) for name, _, words in broken),
        *unclear,
        *papers,
        *(problem for run in snapshot.runs for problem in _log(snapshot, run, beside)),
        *_host_words(row, snapshot, went),
    ]
    return snapshot, [_finding(row, problem) for problem in problems]


@attrs.frozen
class _Problem:
    check: str
    words: str
    to_do: str
    severity: Severity = Severity.DEVIATION


def _finding(row: JobRow, problem: _Problem) -> Finding:
    return Finding(
        row.id,
        row.repo,
        row.work_item,
        problem.severity,
        problem.check,
        problem.words,
        problem.to_do,
    )


def _movements(snapshot: Snapshot, went: Went) -> tuple[Movement, ...] | None:
    """Return how the gates of an attempt moved its work item, as far as that is known."""
    if snapshot.state is State.LLM_FALLBACK:
        return None
    if went.ahead is not None or went.stage in _AHEAD:
        return (Movement.FORWARD,)
    if went.stage is None:
        return None
    return (Movement.BACK,) if snapshot.state in ENDED_BY_GATE else ()


def _jobs_gone(
    row: JobRow,
    snapshot: Snapshot,
    movements: Collection[Movement],
    beside: "_Beside | None",
) -> Iterator[_Problem]:
    """Yield that a work item moved forwards, where jobs that are gone may have moved it."""
    if Movement.FORWARD not in movements or snapshot.state is State.ADVANCED:
        return
    if beside is not None and beside.may_lack_jobs_after(row):
        words = (
            f"the work item moved forwards, and the attempt is {snapshot.state}:"
            " its later jobs that moved it are gone, or it was moved by hand"
        )
        yield _Problem("no_silent_advance", words, FIND_THE_JOB, Severity.UNCLEAR)


def _artifact(
    row: JobRow, snapshot: Snapshot, beside: "_Beside | None"
) -> tuple[str | None, list[_Problem]]:
    """Return the artifact's text if it is the one that was written, and what is wrong with it."""
    if snapshot.artifact is None or snapshot.state not in ENDED_BY_GATE:
        return None, []
    raw = read_small(snapshot.artifact.path, ARTIFACT_BYTES_MAX)
    if raw is None or hashlib.sha256(raw).hexdigest() != snapshot.artifact.sha256:
        raw, problem = _artifact_set_aside(row, snapshot, snapshot.artifact, beside)
        if raw is None:
            return None, [problem]
    text = raw.decode("utf-8", "replace")
    return text, list(_artifact_words(row, snapshot, text))


def _artifact_set_aside(
    row: JobRow, snapshot: Snapshot, artifact: Artifact, beside: "_Beside | None"
) -> tuple[bytes | None, _Problem]:
    """Look for the artifact among those that later attempts set aside, or say what became of it.

    Returns its bytes, or None with the problem.
    """
    path = Path(artifact.path)
    papers: dict[Path, tuple[str, str]] = {}
    for candidate in sorted(path.parent.glob(f"{path.stem}*{path.suffix}")):
        found = sha256_of_file(candidate)
        if found is None:
            continue
        raw = read_small(candidate, ARTIFACT_BYTES_MAX) or b""
        if found == artifact.sha256:
            return raw, _missing(f"{path} is set aside")
        papers[candidate] = (found, raw.decode("utf-8", "replace"))
    problem = _not_there(row, path, papers.get(path, (None, ""))[1], beside)
    digests = {found for found, _ in papers.values()}
    for candidate, (found, text) in papers.items():
        paper = _Paper(text, found, is_in_place=candidate == path)
        if _was_ours(row, snapshot, paper, digests, beside):
            expected = artifact.sha256
            words = f"{candidate} was altered: SHA-256 {expected} was written, {found} is there"
            problem = _Problem("artifact", words, COMPARE)
    return None, problem


def _not_there(row: JobRow, path: Path, text: str, beside: "_Beside | None") -> _Problem:
    """Say what is where an artifact was, which is not there: another paper's `text`, or none."""
    if not os.path.lexists(path):
        return _missing(f"{path} is gone: nothing can be said of it")
    if not _may_be_read(path):
        return _missing(f"{path} may not be read: nothing can be said of it")
    if not _is_regular(path) and not (beside is not None and beside.is_staged_after(row)):
        words = f"{path} was replaced by what is no regular file"
        return _Problem("artifact", words, COMPARE)
    whose, what, to_do = said(text, "attempt") or "", "something else", KEEP
    if _OF_RUNNER.fullmatch(whose):
        what = f"what names attempt {whose}"
        if beside is not None and beside.holder_of(whose) is None:
            what, to_do = f"{what}, which this table does not know,", ASK_OTHERS
    return _missing(f"{path} is not what was written: {what} is in its place", to_do)


def _missing(words: str, to_do: str = KEEP) -> _Problem:
    return _Problem("artifact", words, to_do, Severity.MISSING)


def _is_regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


@attrs.frozen
class _Paper:
    """A file where an artifact may be."""

    text: str
    sha256: str
    #: Whether it is where the gate looks, and was not set aside.
    is_in_place: bool

    def tells_of(self, run: Run) -> bool:
        """Say whether it tells of a run's log or moments, which are those of no other run."""
        lines = self.text.split("\n")
        facts = {"log": run.log, "ended_at": run.ended_at}
        own = {f"    {written(key, value)}" for key, value in facts.items() if value is not None}
        # The first that begins so: what the suite printed comes after.
        told = {next((line for line in lines if line.startswith(key)), None) for key in _OF_RUN}
        row = f"{_RUN_CELL}{run.number} | {visible_line(run.started_at)} |"
        return bool(own & told) or any(line.startswith(row) for line in lines)


def _was_ours(
    row: JobRow,
    snapshot: Snapshot,
    paper: _Paper,
    digests: Collection[str],
    beside: "_Beside | None",
) -> bool:
    """Say whether a paper has to be this attempt's own, altered: nobody else can have written it.

    `digests` are those of all the papers there are.
    """
    whose = said(paper.text, "attempt") or ""
    if whose == snapshot.attempt_id or any(map(paper.tells_of, snapshot.runs)):
        return True
    if said(paper.text, "producer") != _PRODUCER:
        # An agent writes as it likes, into the folder of a job of its own.
        return paper.is_in_place and not (beside is not None and beside.has_agent_after(row))
    job_id = whose.partition("-")[0]
    facts = {"job": job_id, "work_item": row.work_item}
    if not _OF_RUNNER.fullmatch(whose) or any(
        line_of(paper.text, key) != written(key, value) for key, value in facts.items()
    ):
        # The runner writes none that contradicts itself.
        return True
    return beside is not None and _is_nobodys(row, whose, paper, digests, beside)


def _is_nobodys(
    row: JobRow, whose: str, paper: _Paper, digests: Collection[str], beside: "_Beside"
) -> bool:
    """Say whether the other attempt that a paper names cannot have written it."""
    other = beside.holder_of(whose)
    known = None if other is None else _attempt_in(other)
    if other is None or known is None:
        # Its host may have removed it, or it is of another table, which has numbers of its own.
        return False
    if (other.work_item, other.stage) != (row.work_item, STAGE):
        return True
    if known.artifact is None:
        return known.state not in _HANDING_OVER
    # Where that attempt's own paper is missing as well it is that one which was altered.
    return known.artifact.sha256 != paper.sha256 and known.artifact.sha256 in digests


def _attempt_in(row: JobRow) -> Snapshot | None:
    """Return the attempt in a row, if there is one that can be read."""
    try:
        return row.snapshot()
    except SnapshotRefusedError:
        return None


@attrs.frozen
class _Beside:
    """What lies beside a row: other rows, and the runs of the state folder that is in use.

    Asked only where an artifact, a log or a later job is not at hand.
    """

    rows: SqlRows
    store: SqlHostStore | None
    state: StateDir | None

    def log_of(self, attempt_id: str, number: int) -> Path | None:
        """Return where the log of a run is in this state folder, or None where it cannot be."""
        if self.state is None or not _OF_RUNNER.fullmatch(attempt_id):
            return None
        return RunFolder(self.state, f"{attempt_id}.{number}").log

    def load(self, job_id: int) -> JobRow | None:
        """Return the row of a job, or None where there is none that can be read."""
        try:
            return self.rows.load(job_id)
        except (JobNotFoundError, RefusedError):
            return None

    def holder_of(self, attempt_id: str) -> JobRow | None:
        """Return the row that holds an attempt with a runner's name, or None where none does."""
        row = self.load(int(attempt_id.partition("-")[0]))
        known = None if row is None else _attempt_in(row)
        return row if known is not None and known.attempt_id == attempt_id else None

    def may_lack_jobs_after(self, row: JobRow) -> bool:
        """Say whether the jobs that moved a work item on after a job may have been removed."""
        return self.store is not None and self.store.may_lack_jobs_after(row.id, STAGE)

    def has_agent_after(self, row: JobRow) -> bool:
        """Say whether an agent may have staged the work item after a job."""
        return any(map(_is_of_agent, self._staged_after(row)))

    def is_staged_after(self, row: JobRow) -> bool:
        """Say whether anybody may have written an artifact of the work item after a job."""
        return any(map(_may_have_written, self._staged_after(row)))

    def _staged_after(self, row: JobRow) -> Iterator[JobRow]:
        if self.store is not None:
            later = self.store.jobs_after(row.id, row.repo, row.work_item, STAGE)
            yield from filter(None, map(self.load, later))


def _is_of_agent(row: JobRow) -> bool:
    try:
        snapshot = row.snapshot()
    except SnapshotRefusedError:
        return False
    # Of one that waits for its launch nobody has written anything.
    has_none = snapshot is None and row.status != QUEUED
    return has_none or (snapshot is not None and snapshot.state is State.LLM_FALLBACK)


def _may_have_written(row: JobRow) -> bool:
    snapshot = _attempt_in(row)
    has_written = snapshot is not None and snapshot.artifact is not None
    return has_written or _is_of_agent(row)


def _artifact_words(row: JobRow, snapshot: Snapshot, text: str) -> Iterator[_Problem]:
    """Yield what an artifact that is the right one says otherwise than the row."""
    passed = snapshot.history[-1].row.source is State.VERDICT_PASSED
    word = "SUCCESS" if passed else "FAILED"
    if line_of(text, STATUS_KEY) != written(STATUS_KEY, word):
        words = f"the attempt is {snapshot.state}, and the artifact's {STATUS_KEY} is not {word}"
        yield _Problem("artifact", words, STOP)
    if line_of(text, "work_item") != written("work_item", row.work_item):
        words = f"the row is of work item {row.work_item!r}, and the artifact of another"
        yield _Problem("artifact", words, RESTORE)


def _log(snapshot: Snapshot, run: Run, beside: "_Beside | None") -> Iterator[_Problem]:
    """Yield what is wrong with a run's log."""
    if run.log is None or run.log_sha256 is None:
        return
    kept, found = Path(run.log), sha256_of_file(Path(run.log))
    if found == run.log_sha256:
        return
    if found is None and not _may_be_read(kept) and beside is not None:
        # Of a state folder that was copied or moved the row tells only where it was.
        elsewhere = beside.log_of(snapshot.attempt_id, run.number)
        if elsewhere is not None and _may_be_read(elsewhere):
            kept, found = elsewhere, sha256_of_file(elsewhere)
    if found is not None and found != run.log_sha256:
        words = f"{kept} was altered: SHA-256 {run.log_sha256} was kept, {found} is there"
        yield _Problem("log", words, COMPARE)
    elif found is None and _may_be_read(kept):
        yield _Problem("log", f"{kept} was replaced by what is no regular file", COMPARE)
    elif found is None:
        words = f"{run.log} of run {run.number} is gone or may not be read"
        yield _Problem("log", words, KEEP, Severity.MISSING)


def _may_be_read(path: Path) -> bool:
    return os.path.lexists(path) and os.access(path, os.R_OK)


def _host_words(row: JobRow, snapshot: Snapshot, went: Went) -> Iterator[_Problem]:
    """Yield where the host's columns contradict the attempt."""
    whose = snapshot.attempt_id.rpartition("-")[0]
    if whose != str(row.id):
        words = f"it holds attempt {snapshot.attempt_id}, which is of job {whose or 'none'}"
        yield _Problem("row", words, RESTORE)
    if row.stage != STAGE:
        words = f"it holds an attempt, and its stage is {row.stage} and not {STAGE}"
        yield _Problem("row", words, RESTORE)
    if snapshot.state in ENDED_BY_GATE and row.status in (*_LIVE, "cancelled"):
        words = f"the attempt is {snapshot.state}, and the job is {row.status} and not ended"
        yield _Problem("job_status", words, ASK_HOST)
    if snapshot.state is State.CANCELLED and row.status not in (*_LIVE, "cancelled"):
        words = f"the attempt is CANCELLED, and the job is {row.status}"
        yield _Problem("job_status", words, ASK_HOST)
    if not snapshot.is_terminal and row.status not in _LIVE:
        words = (
            f"the job is {row.status}, and the attempt has not ended: it is {snapshot.state};"
            " the end of its history was cut off, or somebody ended the job"
        )
        yield _Problem("job_status", words, RESTORE)
    if snapshot.state is State.ADVANCED and went.stage not in (None, *_AHEAD):
        words = (
            f"the attempt is ADVANCED, and its work item went to {went.stage}, not to {_FORWARD}"
        )
        yield _Problem("work_item", words, ASK_HOST)
    if went.astray is not None:
        own, last = went.astray
        words = f"its work item is at {own}, and its last job, which has not ended, at {last}"
        yield _Problem("work_item", words, ASK_HOST)

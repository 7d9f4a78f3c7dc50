"""The snapshot of one attempt, and its strict form in the job row's metadata.

A snapshot is frozen. It is stored under one key as a JSON object with a format
number. Loading either gives back exactly what was stored or refuses by name:
unknown keys, missing keys, wrong types, a newer format, and a history that is no
path through the table are never guessed at.
"""

import json
import math
from collections.abc import Iterator
from typing import Any, Final, get_args

import attrs
import msgspec

from staging_fsm.core.errors import SnapshotRefusedError, in_words
from staging_fsm.core.evidence import Counts, EvidenceState
from staging_fsm.core.outcome import REASONS, Reason, Verdict
from staging_fsm.core.plan import Plan
from staging_fsm.core.spec import INITIAL, ROW_BY_ID, RUN_ENDS, TERMINAL, Event, State, Transition
from staging_fsm.core.times import parse_time

FORMAT: Final = 1
#: How often a run may change hands. Beyond it a run counts as lost, so that a
#: history is bounded even where workers crash for ever.
ADOPTIONS_MAX: Final = 32

#: The verdict of a run that an event ended; one that is no verdict itself leaves it without.
_SHOWN_BY: Final = dict.fromkeys(RUN_ENDS, Verdict.NOT_EXECUTED) | {
    verdict.event: verdict for verdict in Verdict
}


def _storable(text: str) -> str:
    # Error messages and paths may hold both, jsonb refuses both
    # (https://www.postgresql.org/docs/current/datatype-json.html), and a link covers the text.
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


@attrs.frozen
class Move:
    """One transition that happened: its row, when, why, by which worker, and its link.

    `link` is a digest over the link before it, the move itself and what was stored
    along with it; `trail.py` says how.
    """

    id: str
    time: str
    #: A NUL or half a character is written as an escape here, in `Run` and in `Artifact`.
    reason: str = attrs.field(converter=_storable)
    worker: str
    link: str

    @property
    def row(self) -> Transition:
        """Return the row of the table that was walked."""
        return ROW_BY_ID[self.id]


@attrs.frozen
class Run:
    """One execution of the suite. While it runs, nothing but number and times is known."""

    number: int
    started_at: str
    ended_at: str | None = None
    reason: Reason | None = None
    rule: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    duration_seconds: float | None = None
    detail: str | None = attrs.field(default=None, converter=attrs.converters.optional(_storable))
    evidence: EvidenceState | None = None
    counts: Counts | None = None
    log: str | None = attrs.field(default=None, converter=attrs.converters.optional(_storable))
    log_sha256: str | None = None
    log_bytes: int | None = None
    log_dropped_bytes: int | None = None
    #: What `next_run_at` said when the run was claimed; None for the first.
    due_at: str | None = None


@attrs.frozen
class Artifact:
    """The artifact that this attempt wrote: where, and the digest of its bytes."""

    path: str = attrs.field(converter=_storable)
    sha256: str


@attrs.frozen
class Snapshot:
    """One attempt: where it is, what it is bound to, what happened so far.

    `version` counts writes and is what compare-and-swap compares. `worker` is the
    process that drives the attempt; only it, or whoever finds it dead, may move it.
    """

    version: int
    attempt_id: str
    state: State
    worker: str
    plan: Plan | None
    runs: tuple[Run, ...]
    history: tuple[Move, ...]
    next_run_at: str | None
    artifact: Artifact | None
    format: int = FORMAT

    @property
    def is_terminal(self) -> bool:
        """Say whether nothing can happen to this attempt any more."""
        return self.state in TERMINAL

    @property
    def last_run(self) -> Run:
        """Return the run in hand or the last one that ended."""
        return self.runs[-1]

    @property
    def bound_plan(self) -> Plan:
        """Return the plan; only an attempt that never ran has none."""
        if self.plan is None:
            message = f"attempt {self.attempt_id} was never bound to a plan"
            raise SnapshotRefusedError(message)
        return self.plan

    @property
    def last_reason(self) -> Reason | None:
        """Return why the last run ended; None without a run, while it lasts, or if cancelled."""
        return self.last_run.reason if self.runs else None

    @property
    def judged_reason(self) -> Reason:
        """Return why the last run ended; refused where there is no verdict or tool error yet."""
        if self.last_reason is None:
            message = f"attempt {self.attempt_id} has no run that was judged"
            raise SnapshotRefusedError(message)
        return self.last_reason

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Return why each ended run ended, in order."""
        return tuple(run.reason for run in self.runs if run.reason is not None)


def fresh_snapshot(attempt_id: str, worker: str) -> Snapshot:
    """Return an attempt that has not been stored yet: version 0, in the first state."""
    return Snapshot(0, attempt_id, INITIAL, worker, None, (), (), None, None)


@attrs.frozen
class _Form:
    """What the conversion does not look at: which keys an object has, and its fractions."""

    keys: frozenset[str]
    fractions: tuple[str, ...]
    #: Which keys hold objects of ours, alone or in a list.
    parts: "dict[str, _Form]"


def _form_of(kind: type) -> _Form:
    fields = attrs.fields(attrs.resolve_types(kind))
    inner = {field.name: (field.type, *get_args(field.type)) for field in fields}
    return _Form(
        keys=frozenset(inner),
        fractions=tuple(name for name, types in inner.items() if float in types),
        parts={
            name: _form_of(part)
            for name, types in inner.items()
            for part in types
            if attrs.has(part)
        },
    )


_FORM: Final = _form_of(Snapshot)
_NUMBERS: Final = (int, float)


def fractions_of(kind: type) -> tuple[str, ...]:
    """Return where objects of a kind hold numbers with a fraction, as dotted names."""

    def walk(form: _Form, path: str) -> Iterator[str]:
        yield from (f"{path}{name}" for name in form.fractions)
        for name, part in form.parts.items():
            yield from walk(part, f"{path}{name}.")

    return tuple(walk(_form_of(kind), ""))


def _check_form(form: _Form, where: str, value: object) -> None:
    """Refuse what would not come back as it is: a key too many or too few, a rounded number."""
    if type(value) is not dict:
        return  # nothing, or the conversion says what it should be
    if value.keys() != form.keys:
        message = f"{where} has keys {sorted(form.keys)}, not {sorted(value)}"
        raise TypeError(message)
    for name in form.fractions:
        number = value[name]
        if type(number) in _NUMBERS and not (math.isfinite(number) and float(number) == number):
            message = f"{number!r} is no finite number that is kept exactly - at {where}.{name}"
            raise ValueError(message)
    for name, part in form.parts.items():
        inner = value[name]
        if type(inner) is list:
            for item in inner:
                _check_form(part, name, item)
        else:
            _check_form(part, name, inner)


#: Not msgspec's: it writes what is no number as null, and refuses a lone surrogate.
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def as_json(value: object) -> Any:
    """Return a part of a snapshot as the JSON value that stands for it in a row."""
    return msgspec.to_builtins(value)


def dump_snapshot(snapshot: Snapshot) -> str:
    """Return the snapshot as one line of JSON."""
    return _ENCODER.encode(as_json(snapshot))


def load_snapshot(document: object) -> Snapshot:
    """Return the snapshot that `document`, a decoded JSON value, holds.

    Raises SnapshotRefusedError, naming the first thing wrong with it.
    """
    if type(document) is not dict:
        message = f"it is a {type(document).__name__}, not an object"
        raise SnapshotRefusedError(message)
    format_ = document.get("format")
    if type(format_) is int and format_ > FORMAT:
        message = f"its format {format_} is newer than {FORMAT}, the newest this version knows"
        raise SnapshotRefusedError(message)
    if type(format_) is not int or format_ != FORMAT:
        message = f"its format is {format_!r}, not {FORMAT}"
        raise SnapshotRefusedError(message)
    try:
        _check_form(_FORM, "the snapshot", document)
        snapshot = msgspec.convert(document, Snapshot)
    except Exception as error:
        # Whatever a converter raises for a value it cannot read, the answer is the same.
        message = f"it cannot be read ({in_words(error)})"
        raise SnapshotRefusedError(message) from error
    problem = next(_problems(snapshot), None)
    if problem is not None:
        raise SnapshotRefusedError(problem)
    return snapshot


def replay(history: tuple[Move, ...]) -> State:
    """Return the state that `history` leads to; raises SnapshotRefusedError if it is no path."""
    state = INITIAL
    for position, move in enumerate(history, 1):
        row = ROW_BY_ID.get(move.id)
        if row is None:
            message = f"move {position} is {move.id!r}, which is no row of the table"
            raise SnapshotRefusedError(message)
        if row.source is not state:
            message = (
                f"move {position}, {row.id}, leaves {row.source}, but the attempt was in {state}"
            )
            raise SnapshotRefusedError(message)
        state = row.target
    return state


def _problems(snapshot: Snapshot) -> Iterator[str]:
    """Yield what is inconsistent in a snapshot whose types are right."""
    led_to = replay(snapshot.history)
    if led_to is not snapshot.state:
        yield f"its history leads to {led_to}, but its state is {snapshot.state}"
    if snapshot.version < 1:
        yield f"its version is {snapshot.version}"
    if not snapshot.attempt_id:
        yield "it has no attempt id"
    claims = sum(move.row.event is Event.JOB_CLAIMED for move in snapshot.history)
    if claims != len(snapshot.runs):
        yield f"its history starts {claims} runs, but it holds {len(snapshot.runs)}"
    if [run.number for run in snapshot.runs] != list(range(1, claims + 1)):
        yield "its runs are not numbered from 1"
    if claims and snapshot.plan is None:
        yield "it ran without a plan"
    if snapshot.plan is not None and claims > snapshot.plan.budget.runs_max:
        yield f"it holds {claims} runs, but its budget is {snapshot.plan.budget.runs_max}"
    yield from _time_problems(snapshot)
    yield from _run_problems(snapshot)


def _time_problems(snapshot: Snapshot) -> Iterator[str]:
    stored = [("next_run_at", snapshot.next_run_at)]
    stored += [
        (f"the time of move {number}", move.time) for number, move in enumerate(snapshot.history, 1)
    ]
    for run in snapshot.runs:
        stored += [
            ("started_at", run.started_at),
            ("ended_at", run.ended_at),
            ("due_at", run.due_at),
        ]
    for name, text in stored:
        try:
            if text is not None:
                parse_time(text)
        except ValueError as error:
            yield f"{name}: {error}"


def _run_problems(snapshot: Snapshot) -> Iterator[str]:
    endings = [move.row.event for move in snapshot.history if move.row.event in RUN_ENDS]
    for run in snapshot.runs:
        if run.reason is None and run.number <= len(endings):
            yield f"run {run.number} has no reason although it ended"
        if run.reason is Reason.PASSED and run.exit_code != 0:
            yield f"run {run.number} passed with exit code {run.exit_code}"
    for run, event in zip(snapshot.runs, endings, strict=False):
        if run.reason is not None and REASONS[run.reason].verdict is not _SHOWN_BY[event]:
            yield f"run {run.number} ended by {event}, but its reason is {run.reason}"
    if snapshot.state is State.RUNNING and snapshot.last_reason is not None:
        yield f"run {snapshot.last_run.number} has ended, but the attempt is RUNNING"
    if snapshot.state is State.DEFERRED and snapshot.next_run_at is None:
        yield "it is DEFERRED without a time for its next run"

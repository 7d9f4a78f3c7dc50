"""The trail: what happened to an attempt, so linked that no part of it can be altered alone.

Every move carries a link: the SHA-256 of the canonical JSON of

    {"attempt_id": …, "move": …, "previous": …, "stored": …}

where `previous` is the link of the move before ("" for the first), `move` is the
move without its link, and `stored` is what was stored along with it: the plan and
the new run with a claim, the ended run with its end, the time of the next run with
a deferral, the artifact with the gate's answer, nothing with the rest. All of it
can be made again from the snapshot as it is now, so a chain is verified from the
row alone. What no link covers must follow from the history, and is compared.

Canonical is JSON with sorted keys, no blanks and ASCII escapes: RFC 8785 for what
a snapshot holds, but for the numbers and escapes, which are written as Python does.

The chain has no key. It shows every change by somebody who does not make all later
links anew. Who does, or who cuts moves off its end, is found out only by what lies
elsewhere: a link that somebody noted, the artifact, the job, a signed attestation.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any, Final

import attrs
import msgspec

from staging_fsm.core.plan import Plan
from staging_fsm.core.snapshot import Move, Run, Snapshot, as_json, fractions_of
from staging_fsm.core.spec import GATE_EVENTS, ROW_BY_ID, RUN_ENDS, Event, Transition

#: The link before the first move.
NO_LINK: Final = ""

_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
_FAST_ENCODER: Final = msgspec.json.Encoder(order="sorted")
#: Where the numbers with a fraction are that a link may cover.
_FRACTIONS: Final[Mapping[type, Callable[[Any], Any]]] = {
    kind: attrgetter(*fractions_of(kind)) for kind in (Plan, Run)
}
#: Python writes no exponent from here to there.
_LEAST: Final = 1e-4
_MOST: Final = 1e15
_DELETE: Final = b"\x7f"


def walk(
    snapshot: Snapshot,
    row: Transition,
    time: str,
    reason: str,
    worker: str,
    changes: Mapping[str, Any],
) -> Snapshot:
    """Return the attempt after one more move, linked to all before it."""
    after = attrs.evolve(
        snapshot, version=snapshot.version + 1, state=row.target, worker=worker, **changes
    )
    move = Move(row.id, time, reason, worker, NO_LINK)
    stored = _stored(row.event, after, len(after.runs), after.next_run_at)
    previous = snapshot.history[-1].link if snapshot.history else NO_LINK
    linked = attrs.evolve(move, link=link_of(snapshot.attempt_id, previous, move, stored))
    return attrs.evolve(after, history=(*snapshot.history, linked))


def link_of(attempt_id: str, previous: str, move: Move, stored: Mapping[str, object]) -> str:
    """Return the link of `move`, whatever link it carries."""
    told = {"id": move.id, "time": move.time, "reason": move.reason, "worker": move.worker}
    payload = {"attempt_id": attempt_id, "move": told, "previous": previous, "stored": stored}
    return hashlib.sha256(_canonical(payload, stored.values())).hexdigest()


def _canonical(payload: Mapping[str, Any], parts: Iterable[object]) -> bytes:
    """Return `payload`, in which `parts` are objects of ours, as canonical JSON.

    msgspec takes a fifth of the time, and writes the same but for what is asked here:
    text that is not printable ASCII, and numbers that are written with an exponent.
    """
    if all(map(_is_plainly_written, parts)):
        try:
            text = _FAST_ENCODER.encode(payload)
        except UnicodeEncodeError:  # half a character
            return _ENCODER.encode(as_json(payload)).encode()
        if text.isascii() and _DELETE not in text:
            return text
    return _ENCODER.encode(as_json(payload)).encode()


def _is_plainly_written(part: object) -> bool:
    """Say whether no number of a part is so small, so large or so odd that it has an exponent."""
    where = _FRACTIONS.get(type(part))
    found = () if where is None else where(part)
    # A loop: `all` takes twice as long, and a whole table is asked.
    for number in found if type(found) is tuple else (found,):
        if number and not _LEAST <= abs(number) < _MOST:
            return False
    return True


def links(snapshot: Snapshot) -> Iterator[str]:
    """Yield the link that each move should carry, if the link before it is right."""
    previous, number = NO_LINK, 0
    for move in snapshot.history:
        event = ROW_BY_ID[move.id].event if move.id in ROW_BY_ID else None
        number += event is Event.JOB_CLAIMED
        # What the next claim cleared stands in the run it began.
        begun = number < len(snapshot.runs)
        due_at = snapshot.runs[number].due_at if begun else snapshot.next_run_at
        stored = _stored(event, snapshot, number, due_at)
        yield link_of(snapshot.attempt_id, previous, move, stored)
        previous = move.link


def unlinked(snapshot: Snapshot) -> Iterator[str]:
    """Yield a sentence for each thing that no link covers and no move accounts for."""
    events = [ROW_BY_ID[move.id].event for move in snapshot.history if move.id in ROW_BY_ID]
    if snapshot.plan is not None and Event.JOB_CLAIMED not in events:
        yield "it has a plan, and no move bound it to one"
    if snapshot.artifact is not None and not GATE_EVENTS.intersection(events):
        yield "it has an artifact, and no gate answered"
    waits = [event for event in events if event in (Event.BUDGET_LEFT, Event.JOB_CLAIMED)]
    if snapshot.next_run_at is not None and waits[-1:] != [Event.BUDGET_LEFT]:
        yield f"its next run is due at {snapshot.next_run_at}, and no move deferred it"
    for run in snapshot.runs[sum(event in RUN_ENDS for event in events) :]:
        if run != as_begun(run):
            yield f"run {run.number} has no end, and something is known of it"
    if snapshot.history and snapshot.worker != snapshot.history[-1].worker:
        last = snapshot.history[-1].worker
        yield f"its worker is {snapshot.worker}, and its last move was made by {last}"


def as_begun(run: Run) -> Run:
    """Return a run as it was stored when it was claimed."""
    return Run(run.number, run.started_at, due_at=run.due_at)


def _stored(
    event: Event | None, snapshot: Snapshot, number: int, due_at: str | None
) -> Mapping[str, object]:
    """Return what was stored along with an event after which `number` runs were counted."""
    run = snapshot.runs[number - 1] if 0 < number <= len(snapshot.runs) else None
    if event is Event.JOB_CLAIMED and run is not None:
        return {"plan": snapshot.plan, "run": as_begun(run)}
    if event in RUN_ENDS:
        return {"run": run}
    if event is Event.BUDGET_LEFT:
        return {"next_run_at": due_at}
    if event in GATE_EVENTS:
        return {"artifact": snapshot.artifact}
    return {}

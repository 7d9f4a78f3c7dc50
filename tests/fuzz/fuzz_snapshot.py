"""Snapshot: any JSON is refused by name, or is a snapshot that is stored again as it was."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from staging_fsm.core.errors import SnapshotRefusedError
from staging_fsm.core.evidence import EvidenceState
from staging_fsm.core.outcome import Reason
from staging_fsm.core.snapshot import dump_snapshot, load_snapshot
from staging_fsm.core.spec import TRANSITIONS, State

#: What a snapshot says by words of a closed vocabulary, and values of every JSON type.
_VALUES: tuple[Any, ...] = (
    *State,
    *Reason,
    *EvidenceState,
    *(row.id for row in TRANSITIONS),
    *(None, True, False, 0, -1, 1, 0.5, 2**53 + 1, 1e308, float("nan"), "", "1", [], {}),
)


def fuzz(data: bytes) -> bool:
    """Return whether `data` is the JSON of a snapshot."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        # No row gives out what is no JSON.
        return False
    try:
        snapshot = load_snapshot(document)
    except SnapshotRefusedError:
        return False
    again = json.loads(dump_snapshot(snapshot))
    assert again == document
    assert load_snapshot(again) == snapshot
    return True


def mutate(data: bytes, random: Random, mutate_bytes: Callable[[bytes], bytes]) -> bytes:
    """Return `data` with one place in the JSON of its first line changed, or any bytes of it.

    Bytes alone would seldom leave a snapshot whole enough to be asked more than its keys.
    """
    line, newline, rest = data.partition(b"\n")
    if rest and random.random() < 0.5:
        return line + newline + mutate_bytes(rest)
    try:
        document = json.loads(line)
        _change(document, random, mutate_bytes)
        return json.dumps(document, separators=(",", ":")).encode() + newline + rest
    except (ValueError, LookupError, RecursionError):
        # It is no JSON, it has no place to change, or it is too deep.
        return mutate_bytes(data)


def _change(document: Any, random: Random, mutate_bytes: Callable[[bytes], bytes]) -> None:
    places = _places(document)
    if not places:
        message = "it has no place to change"
        raise LookupError(message)
    container, key = random.choice(places)
    value = container[key]
    match random.randrange(8):
        case 0:
            container[key] = random.choice(_VALUES)
        case 1:
            other, other_key = random.choice(places)
            # A copy: nothing may stand inside itself.
            container[key] = json.loads(json.dumps(other[other_key]))
        case 2:
            del container[key]
        case 3 if isinstance(container, list):
            container.insert(random.randrange(len(container) + 1), value)
        case _ if isinstance(value, str):
            changed = mutate_bytes(value.encode("utf-8", "surrogatepass"))
            container[key] = changed.decode("utf-8", "surrogateescape")
        case _ if isinstance(value, int | float):
            container[key] = value + random.choice((-1, 1, 0.5, 2**40))
        case _:
            container[key] = random.choice(_VALUES)


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Return every place that holds a value, as its container and its key or index there."""
    places: list[tuple[Any, Any]] = []
    containers = [document] if isinstance(document, dict | list) else []
    for container in containers:
        keys = container if isinstance(container, dict) else range(len(container))
        places += [(container, key) for key in keys]
        containers += [container[key] for key in keys if isinstance(container[key], dict | list)]
    return places

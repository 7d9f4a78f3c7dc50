"""Front matter: whatever stands there, the gate never raises and says yes only to a SUCCESS."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import yaml

from staging_fsm.host.contract.gate import (
    ARTIFACT_NAME,
    STATUS_KEY,
    _parse_staging_status,
    check_staging_status,
)

#: The time that YAML takes grows with the square of the depth.
INPUT_MAX_BYTES = 512
WORDS = (
    *(f"{STATUS_KEY}: SUCCESS", f"{STATUS_KEY}: FAILED", f"'{STATUS_KEY}'", "SUCCESS"),
    *("---", "--- ", "...", "? ", ": ", "- ", "<<: ", "&a ", "*a", "|", "# "),
    *("!!str ", "!!int ", "!!map ", "!x ", "%TAG ! tag:yaml.org,2002:", "%YAML 1.1"),
    *("\\x53", "\\u0053", "\\U00000053", "\r\n", "\x85", "\u2028", "\ufeff", "[1]", "{a: 1}"),
)
_FOLDER = tempfile.TemporaryDirectory()
_FRONT_MATTER = re.compile(r"---\n((?:[^\n]*\n)*?)---(?:\n|\Z)")
_STRING_TAGS = (None, "!", "tag:yaml.org,2002:str")


def fuzz(data: bytes) -> bool:
    """Return whether the gate says yes to a file that is `---` and then `data`."""
    text = "---\n" + data.decode("utf-8", "surrogateescape")
    status = _parse_staging_status(text)
    opens = status == "SUCCESS"
    if opens:
        found = _FRONT_MATTER.match(text)
        assert found
        assert _is_one_plain_success(found[1])
        assert _loads_as_success(found[1])
    (Path(_FOLDER.name) / ARTIFACT_NAME).write_bytes(b"---\n" + data)
    assert check_staging_status(_FOLDER.name) is opens
    return opens


def mutate(data: bytes, random: Random, mutate_bytes: Callable[[bytes], bytes]) -> bytes:
    """Return `data` with one line more, less, twice or changed, or any bytes of it changed."""
    lines = data.split(b"\n")
    place = random.randrange(len(lines))
    match random.randrange(5):
        case 0:
            lines.insert(place, random.choice(WORDS).encode())
        case 1:
            lines.insert(place, random.choice(lines))
        case 2:
            lines[place] = mutate_bytes(lines[place])
        case 3:
            del lines[place]
        case _:
            return mutate_bytes(data)
    return b"\n".join(lines)


def _is_one_plain_success(front_matter: str) -> bool:
    """Read what the parser tells piece by piece; the gate reads a composed document."""
    depth, documents = 0, 0
    roots: list[yaml.NodeEvent] = []
    top: list[yaml.NodeEvent] = []
    for event in yaml.parse(front_matter, Loader=yaml.SafeLoader):
        documents += isinstance(event, yaml.DocumentStartEvent)
        if isinstance(event, yaml.AliasEvent):
            return False
        if isinstance(event, yaml.NodeEvent) and depth < 2:
            (top if depth else roots).append(event)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
    # Keys and values take turns.
    keys = [key.value for key in top[::2] if isinstance(key, yaml.ScalarEvent)]
    if documents != 1 or len(keys) != len(top[::2]) or keys.count(STATUS_KEY) != 1:
        return False
    value = top[2 * keys.index(STATUS_KEY) + 1]
    return (
        isinstance(roots[0], yaml.MappingStartEvent)
        and isinstance(value, yaml.ScalarEvent)
        and (value.tag, value.value) in [(tag, "SUCCESS") for tag in _STRING_TAGS]
    )


def _loads_as_success(front_matter: str) -> bool:
    try:
        document = yaml.safe_load(front_matter)
    except Exception:  # noqa: BLE001  # a date 2024-99-99, a tag nobody knows, a list as a key
        # The gate does not ask what the values of other keys are.
        return True
    return isinstance(document, dict) and document[STATUS_KEY] == "SUCCESS"

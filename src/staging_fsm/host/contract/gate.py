"""The staging gate: reads a verdict from an artifact, and takes nothing else for a yes.

The gate reads the YAML front matter of `15-staging-log.md` and only its key
`staging_status`. A missing file, a missing key, another word, a duplicate key,
an alias, a tag on the verdict or broken YAML are all "no": a gate that has to guess stays shut.
"""

import os
import stat
from pathlib import Path
from typing import Final

import yaml

ARTIFACT_NAME: Final = "15-staging-log.md"
STATUS_KEY: Final = "staging_status"
#: Front matter is a page of facts; anything larger is not ours to read.
FRONT_MATTER_MAX_BYTES: Final = 64 * 1024
#: What YAML makes of text that is none: an escape far beyond Unicode overflows before Python 3.13.
_UNREADABLE: Final = (yaml.YAMLError, ValueError, OverflowError, RecursionError)


class _Loader(yaml.SafeLoader):
    """The loader in Python, not the one in C: that one ends the process at deep nesting."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next node; an alias, which could be anything, is broken YAML here."""
        if self.check_event(yaml.AliasEvent):
            message = "an alias"
            raise yaml.YAMLError(message)
        return super().compose_node(parent, index)


def check_staging_status(work_item_dir: Path | str) -> bool:
    """Say whether the staging artifact in `work_item_dir` is a well-formed SUCCESS.

    Never raises for anything a file can be: whatever cannot be read is a "no".
    """
    try:
        text = _read_regular_file(Path(work_item_dir) / ARTIFACT_NAME)
        return _parse_staging_status(text) == "SUCCESS"
    except (OSError, ValueError):
        return False


def _parse_staging_status(text: str) -> str | None:
    """Return the value of the one `staging_status` key in the front matter, or None.

    The front matter opens with a first line `---` and ends with the next such
    line. None stands for every way in which it is not exactly one plain string.
    """
    front_matter = _front_matter(text)
    if front_matter is None:
        return None
    try:
        root = yaml.compose(front_matter, Loader=_Loader)
    except _UNREADABLE:
        return None
    if not isinstance(root, yaml.MappingNode):
        return None
    keys = [key.value for key, _ in root.value if _is_plain_string(key)]
    # A key that is no plain string (a merge `<<`, a list, a tag) could hide another verdict.
    if len(keys) != len(root.value) or len(set(keys)) != len(keys):
        return None
    for key, value in root.value:
        if key.value == STATUS_KEY:
            return str(value.value) if _is_plain_string(value) else None
    return None


def _is_plain_string(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str"


def _front_matter(text: str) -> str | None:
    lines = text.split("\n")
    if lines[0] != "---":
        return None
    try:
        end = lines.index("---", 1)
    except ValueError:
        return None
    return "\n".join(lines[1:end]) + "\n"


def _read_regular_file(path: Path) -> str:
    # O_NONBLOCK: a FIFO in the artifact's place must not hang the gate.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            message = f"{path} is not a regular file"
            raise ValueError(message)
        raw = os.read(descriptor, FRONT_MATTER_MAX_BYTES)
    finally:
        os.close(descriptor)
    # The body may be cut in the middle of a character; the front matter may not.
    head = raw.partition(b"\n---\n")
    return b"".join(head[:2]).decode("utf-8")

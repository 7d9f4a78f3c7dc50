"""The machine-readable blocks of documents, as the tests read them."""

import re
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parent.parent


def yaml_block(document: str) -> dict[str, Any]:
    """Return what the one YAML block of a document says."""
    text = (ROOT / document).read_text(encoding="utf-8")
    [block] = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    facts: dict[str, Any] = yaml.safe_load(block)
    return facts

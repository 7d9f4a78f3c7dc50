"""The machine-readable blocks of documents, as the tests read them."""

import re
from typing import Any, Final

import yaml

from sources import ROOT


def yaml_block(document: str) -> dict[str, Any]:
    """Return what the one YAML block of a document says."""
    text = (ROOT / document).read_text(encoding="utf-8")
    [block] = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    facts: dict[str, Any] = yaml.safe_load(block)
    return facts


#: Where an LLM, a process or the network can be reached.
SITES: Final = yaml_block("docs/llm-call-sites.md")

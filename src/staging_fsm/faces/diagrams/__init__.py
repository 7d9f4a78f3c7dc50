"""Diagrams from the table: one model, several formats, no drawing program needed.

An edge that is not a row cannot be drawn, and a row that is not drawn fails the
test that compares the committed files with fresh output.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from staging_fsm.faces.diagrams.drawing import STYLE, svg
from staging_fsm.faces.diagrams.model import Diagram
from staging_fsm.faces.diagrams.spin import FILE_NAME, promela
from staging_fsm.faces.diagrams.statechart import scxml
from staging_fsm.faces.diagrams.written import dot, markdown_table, mermaid

__all__ = [
    "FILES",
    "STYLE",
    "Diagram",
    "dot",
    "markdown_table",
    "mermaid",
    "outdated",
    "scxml",
    "svg",
    "write_diagrams",
]

#: File name -> content. Every file of this name is generated, and compared byte for byte.
FILES: Final[Mapping[str, Callable[[Diagram], str]]] = MappingProxyType(
    {
        "attempt.mmd": mermaid,
        "attempt.dot": dot,
        "attempt.svg": svg,
        "attempt.scxml": scxml,
        "table.md": markdown_table,
        FILE_NAME: lambda diagram: promela(diagram.rows),
    }
)


def write_diagrams(folder: Path, diagram: Diagram) -> list[Path]:
    """Write every format into `folder`; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, render in FILES.items():
        path = folder / name
        path.write_bytes(render(diagram).encode())
        written.append(path)
    return written


def outdated(folder: Path, diagram: Diagram) -> list[str]:
    """Return the names of the files in `folder` that differ from fresh output."""
    return [
        name
        for name, render in FILES.items()
        if not (folder / name).is_file() or (folder / name).read_bytes() != render(diagram).encode()
    ]

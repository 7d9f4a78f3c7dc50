"""The files of the repository, and what the syntax tree of one says of it."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parent
ROOT: Final = TESTS.parent
SOURCE: Final = ROOT / "src" / "staging_fsm"

#: Layer -> layers it may import. An import only ever points down this table.
LAYERS: Final = {
    "host/contract": (),
    "core": ("host/contract",),
    "effects/supervisor": (),
    "effects": ("host/contract", "core", "effects/supervisor"),
    "drive": ("host/contract", "core", "effects"),
    "host": ("host/contract", "core", "effects", "drive"),
    "fleet": ("host/contract", "core", "effects", "drive", "host"),
    "testing": ("host/contract", "core"),
    "faces": ("host/contract", "core", "effects/supervisor", "effects", "drive", "host", "fleet"),
}

MODULES: Final = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))


@functools.cache
def tree(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Return the dotted names that a file imports anywhere in it."""
    names = set[str]()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative name is one of ours as well: each dot leads one folder up.
            above = path.relative_to(SOURCE.parent).parts[: -node.level] if node.level else ()
            source = ".".join((*above, *filter(None, [node.module])))
            names.update([source, *(f"{source}.{alias.name}" for alias in node.names)])
    return frozenset(names)


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function of a file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def nodes(node: ast.AST, function: str = "<module>") -> Iterator[tuple[str, ast.AST]]:
    """Yield every node with the innermost function it stands in."""
    for child in ast.iter_child_nodes(node):
        yield function, child
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from nodes(child, child.name)
        else:
            yield from nodes(child, function)

"""Our own operators: what a general tool does not change, above all tables and statements.

An `Edit` replaces one span of a source text. The general operators, on signs, numbers
and conditions, come from cosmic-ray (`mutation.general`).
"""

import ast
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

Words = Mapping[str, tuple[str, ...]]
#: By how many others a word in a table is replaced: each state, event and effect by every other.
OTHERS_MAX = 12
#: Calls that only compute: what is done before or after them is the same.
_COMPUTING = frozenset({"len", "min", "max", "sum", "str", "int", "sorted", "tuple", "frozenset"})


@attrs.frozen
class Edit:
    """One change: what kind of change it is, and which characters become what."""

    operator: str
    start: int
    end: int
    text: str
    #: Whether an entry of a table at module level is changed.
    in_table: bool = False

    def apply(self, source: str) -> str:
        """Return `source` with this change."""
        return source[: self.start] + self.text + source[self.end :]


def vocabularies(folder: Path) -> Words:
    """Return the members of each enumeration that the modules in `folder` define, by its names."""
    trees = [ast.parse(path.read_text("utf-8")) for path in sorted(folder.glob("*.py"))]
    bodies = [node for tree in trees for node in tree.body]
    words = {
        node.name: names
        for node in bodies
        if isinstance(node, ast.ClassDef) and (names := _members(node))
    }
    for node in bodies:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
            for short, long in zip(node.targets[0].elts, _elements(node.value), strict=False):
                if isinstance(long, ast.Name) and long.id in words:
                    words[ast.unparse(short)] = words[long.id]
    return words


def _members(node: ast.ClassDef) -> tuple[str, ...]:
    bases = {ast.unparse(base) for base in node.bases}
    assigned = [child.targets[0] for child in node.body if isinstance(child, ast.Assign)]
    names = tuple(target.id for target in assigned if isinstance(target, ast.Name))
    return names if bases & {"StrEnum", "_Name"} else ()


@attrs.define
class Source:
    """A module's text, its tree, and the places that no operator looks at."""

    text: str
    words: Words
    tree: ast.Module = attrs.field(init=False)
    _starts: list[int] = attrs.field(init=False)
    _silent: set[int] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Read the text; columns of a tree count bytes, so only ASCII lines are like characters."""
        self.tree = ast.parse(self.text)
        self._starts = [0]
        for line in self.text.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._silent = {id(child) for node in silent(self.tree) for child in ast.walk(node)}

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Return where a node begins and ends."""
        place: Any = node
        return (
            self._offset(place.lineno, place.col_offset),
            self._offset(place.end_lineno, place.end_col_offset),
        )

    def _offset(self, line: int, column: int) -> int:
        start = self._starts[line - 1]
        text = self.text[start : self._starts[line]].encode()
        return start + len(text[:column].decode())

    def segment(self, node: ast.AST) -> str:
        """Return the text of a node."""
        start, end = self.span(node)
        return self.text[start:end]

    def nodes(self) -> Iterator[ast.AST]:
        """Yield every node that says what the program does."""
        return (node for node in ast.walk(self.tree) if id(node) not in self._silent)

    def replace(self, operator: str, node: ast.AST, text: str) -> Edit:
        """Return the change of a whole node."""
        return Edit(operator, *self.span(node), text)


def silent(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield docstrings and annotations: readers and mypy judge them, no test can."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield first
        for field in ("annotation", "returns"):
            annotation = getattr(node, field, None)
            if annotation is not None:
                yield annotation


def edits(source: Source) -> Iterator[Edit]:
    """Yield every change that our own operators make."""
    tables = [source.span(table) for table in _tables(source)]
    for operator in (
        entry_deleted,
        entries_swapped,
        word_replaced,
        retry_given,
        statement_deleted,
        statements_swapped,
        nothing_returned,
        condition_forced,
        operand_dropped,
        keyword_dropped,
        constant_changed,
    ):
        for edit in operator(source):
            inside = any(start <= edit.start and edit.end <= end for start, end in tables)
            yield attrs.evolve(edit, in_table=inside)


def _tables(source: Source) -> list[ast.expr]:
    """Return every display of several entries at module level, and the calls around them."""
    values = [
        node.value
        for node in source.tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
    ]
    return [
        value
        for value in values
        if any(len(_elements(node)) > 1 for node in ast.walk(value) if isinstance(node, ast.expr))
        and not isinstance(value, ast.Subscript)
        and not (isinstance(value, ast.Tuple) and isinstance(value.elts[0], ast.Name))
    ]


def _elements(node: ast.expr) -> Sequence[ast.expr]:
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return node.elts
    return node.values if isinstance(node, ast.Dict) else ()


def _entries(source: Source) -> Iterator[tuple[ast.expr, list[tuple[int, int]]]]:
    """Yield each display in a table, with the spans of its entries."""
    for table in _tables(source):
        for display in ast.walk(table):
            if isinstance(display, ast.Dict):
                yield (
                    display,
                    [
                        (
                            source.span(key)[0]
                            if key
                            else source.text.rindex("**", 0, source.span(value)[0]),
                            source.span(value)[1],
                        )
                        for key, value in zip(display.keys, display.values, strict=True)
                    ],
                )
            elif isinstance(display, ast.Tuple | ast.List | ast.Set):
                yield display, [source.span(element) for element in display.elts]


def entry_deleted(source: Source) -> Iterator[Edit]:
    """Delete an entry of a table."""
    for _, spans in _entries(source):
        for (start, end), following in zip(spans, [*spans[1:], None], strict=True):
            if following:
                yield Edit("entry deleted", start, following[0], "")
            elif len(spans) > 1:
                yield Edit("entry deleted", spans[-2][1], end, "")


def entries_swapped(source: Source) -> Iterator[Edit]:
    """Swap an entry of an ordered table with its neighbour."""
    for display, spans in _entries(source):
        if not isinstance(display, ast.Tuple | ast.List):
            continue
        for (start, end), (next_start, next_end) in itertools.pairwise(spans):
            between = source.text[end:next_start]
            text = source.text[next_start:next_end] + between + source.text[start:end]
            yield Edit("entries swapped", start, next_end, text)


def word_replaced(source: Source) -> Iterator[Edit]:
    """Replace a word of a vocabulary: in a table by each other one, elsewhere by the next."""
    values = {
        id(node)
        for display, _ in _entries(source)
        for element in _elements(display)
        for node in ast.walk(element)
    }
    for node in source.nodes():
        if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
            continue
        words = source.words.get(node.value.id, ())
        if node.attr in words:
            after = words.index(node.attr) + 1
            others = (words[after:] + words[:after])[:-1]
            for word in others[:OTHERS_MAX] if id(node) in values else others[:1]:
                yield source.replace("word replaced", node, f"{node.value.id}.{word}")


def retry_given(source: Source) -> Iterator[Edit]:
    """Say of a reason how often it may be tried again, where the default is meant."""
    for table in _tables(source):
        for node in ast.walk(table):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "_tool"
                and not node.args[1:]
            ):
                end = source.span(node.args[0])[1]
                for word in ("ONCE", "NEVER"):
                    yield Edit("word replaced", end, end, f", Retry.{word}")


def _blocks(source: Source) -> Iterator[list[ast.stmt]]:
    """Yield the statements of every block inside a function, without its docstring."""
    for function in source.nodes():
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            for field in ("body", "orelse", "finalbody"):
                block = getattr(node, field, None)
                if isinstance(block, list):
                    yield [child for child in block if not _is_idle(child)]


def _is_idle(node: ast.stmt) -> bool:
    documents = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return documents or isinstance(node, ast.Pass | ast.FunctionDef | ast.Import | ast.ImportFrom)


def statement_deleted(source: Source) -> Iterator[Edit]:
    """Delete a statement."""
    for block in _blocks(source):
        for node in block:
            # `elif` is an `if` of its own to the tree, and no statement to the text.
            if not source.segment(node).startswith("elif"):
                yield source.replace("statement deleted", node, "pass")


def statements_swapped(source: Source) -> Iterator[Edit]:
    """Swap two statements that both do something."""
    leaving = (ast.Return, ast.Raise, ast.Break, ast.Continue)
    for block in _blocks(source):
        for first, second in itertools.pairwise(block):
            if (
                not (_acts(first) and _acts(second))
                or isinstance(first, leaving)
                or isinstance(second, leaving)
            ):
                continue
            if isinstance(first, ast.Assign) and isinstance(second, ast.Assign):
                continue  # two facts are taken down; an effect would be no assignment
            (start, end), (next_start, next_end) = source.span(first), source.span(second)
            between = source.text[end:next_start]
            text = source.text[next_start:next_end] + between + source.text[start:end]
            yield Edit("statements swapped", start, next_end, text)


def _acts(statement: ast.stmt) -> bool:
    calls = (node.func for node in ast.walk(statement) if isinstance(node, ast.Call))
    return any(not isinstance(f, ast.Name) or f.id not in _COMPUTING for f in calls)


def nothing_returned(source: Source) -> Iterator[Edit]:
    """Return None instead of a value."""
    for node in source.nodes():
        if isinstance(node, ast.Return) and node.value is not None:
            yield source.replace("nothing returned", node.value, "None")


def condition_forced(source: Source) -> Iterator[Edit]:
    """Take a condition for true, and for false."""
    for node in source.nodes():
        if isinstance(node, ast.If | ast.IfExp):
            yield source.replace("condition forced", node.test, "True")
            yield source.replace("condition forced", node.test, "False")
        elif isinstance(node, ast.While):
            yield source.replace("condition forced", node.test, "False")
        elif isinstance(node, ast.comprehension):
            for test in node.ifs:
                yield source.replace("condition forced", test, "True")
                yield source.replace("condition forced", test, "False")


def operand_dropped(source: Source) -> Iterator[Edit]:
    """Drop an operand of `and` or `or`."""
    for node in source.nodes():
        if isinstance(node, ast.BoolOp):
            word = " and " if isinstance(node.op, ast.And) else " or "
            operands = [f"({source.segment(value)})" for value in node.values]
            for index in range(len(operands)):
                text = word.join(operands[:index] + operands[index + 1 :])
                yield source.replace("operand dropped", node, f"({text})")


def keyword_dropped(source: Source) -> Iterator[Edit]:
    """Leave a keyword of a call to its default."""
    for node in source.nodes():
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                start, end = source.span(keyword)
                rest = source.text[end:]
                comma = len(rest) - len(rest.lstrip()) + 1 if rest.lstrip().startswith(",") else 0
                if keyword.arg and node.args + node.keywords != [keyword]:
                    if not comma:
                        start = source.text.rindex(",", 0, start)
                    yield Edit("keyword dropped", start, end + comma, "")


def constant_changed(source: Source) -> Iterator[Edit]:
    """Change a text or a None; numbers, True and False are the general operators' business."""
    compared = {
        id(operand)
        for node in source.nodes()
        if isinstance(node, ast.Compare)
        for operand in node.comparators
    }
    joined = {
        id(part)
        for node in source.nodes()
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part is not node and isinstance(part, ast.JoinedStr | ast.Constant)
    }
    for node in source.nodes():
        if isinstance(node, ast.JoinedStr) and id(node) not in joined:
            yield source.replace("constant changed", node, "'XX'")
        elif isinstance(node, ast.Constant) and id(node) not in joined | compared:
            if isinstance(node.value, str):
                yield source.replace("constant changed", node, repr("XX" + node.value))
            elif isinstance(node.value, bytes):
                yield source.replace("constant changed", node, repr(b"XX" + node.value))
            elif node.value is None:
                yield source.replace("constant changed", node, "0")

"""The general operators: cosmic-ray's, each where it changes what a program does.

cosmic-ray walks a tree of parso's and changes one node at a time. Here a copy of the
node is changed, and what became of its text is the edit.
"""

import copy
from collections.abc import Iterator
from typing import Any

import cosmic_ray.ast
import cosmic_ray.plugins

from mutation.operators import Edit

#: Only names and `is` tell these apart for members of enumerations and None.
_TWINS = {("Is", "Eq"), ("IsNot", "NotEq"), ("Eq", "Is"), ("NotEq", "IsNot")}
#: One neighbour for each sign of a calculation: the others fall to the same tests.
_SIGNS = {
    ("Add", "Sub"),
    ("Sub", "Add"),
    ("Mul", "Add"),
    ("Div", "Mul"),
    ("FloorDiv", "Mul"),
    ("Mod", "Mul"),
    ("Pow", "Mul"),
    ("BitOr", "BitAnd"),
    ("BitAnd", "BitOr"),
    ("BitXor", "BitAnd"),
    ("LShift", "RShift"),
    ("RShift", "LShift"),
}
#: They need to be told a variable's name.
_ASKING = {"VariableReplacer", "VariableInserter"}


def operators() -> dict[str, Any]:
    """Return cosmic-ray's operators that are used, by name."""
    chosen = {}
    for full_name in cosmic_ray.plugins.operator_names():
        name = full_name.partition("/")[2]
        kind, _, pair = name.partition("_")
        before, _, after = pair.partition("_")
        if kind == "ReplaceComparisonOperator":
            ordered = {before, after} & {"Is", "IsNot"} and {before, after} & {
                "Lt",
                "LtE",
                "Gt",
                "GtE",
            }
            wanted = not ordered and (before, after) not in _TWINS
        else:
            wanted = kind != "ReplaceBinaryOperator" or (before, after) in _SIGNS
        if wanted and name not in _ASKING:
            chosen[name] = cosmic_ray.plugins.get_operator(full_name)()
    return chosen


def edits(text: str) -> Iterator[Edit]:
    """Yield every change that cosmic-ray's operators make."""
    tree = cosmic_ray.ast.get_ast(text)
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    chosen = operators()
    for node in cosmic_ray.ast.ast_nodes(tree):
        for name, operator in chosen.items():
            for index, _ in enumerate(operator.mutation_positions(node)):
                # The copy keeps the parent, by which an operator knows its place.
                alone = copy.deepcopy(node, {id(node.parent): node.parent})
                try:
                    changed = operator.mutate(alone, index)
                except AttributeError:
                    # What is caught there is no plain name, and it only replaces such.
                    continue
                (line, column), (end_line, end_column) = node.start_pos, node.end_pos
                start, end = starts[line - 1] + column, starts[end_line - 1] + end_column
                if changed is None:
                    # A decorator, with the end of its line: its indentation goes too.
                    yield Edit(name, start - column, end, "")
                else:
                    code = changed.get_code(include_prefix=False).lstrip(" ")
                    yield Edit(name, start, end, code)

"""Mutation testing: the mutants that are promised are made, and found killed or alive."""

import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mutation.operators import Edit, Source, edits, vocabularies
from mutation.runner import PACKAGE, ROOT, SURVIVORS, Tally, all_modules, mutants
from staging_fsm.core.outcome import REASONS, RULES, Reason, Retry, Verdict
from staging_fsm.core.spec import TRANSITIONS, Transition

#: Small programs, and what each of our own operators makes of them.
EXAMPLES = {
    "entry deleted": ("X = {1: 2, 3: 4}\n", {"X = {3: 4}\n", "X = {1: 2}\n"}),
    "entries swapped": ("X = (1, 2)\n", {"X = (2, 1)\n"}),
    "statement deleted": ("def f():\n    g()\n", {"def f():\n    pass\n"}),
    "statements swapped": (
        "def f():\n    save()\n    act()\n    n = len(x)\n",
        {"def f():\n    act()\n    save()\n    n = len(x)\n"},
    ),
    "nothing returned": ("def f():\n    return 1\n", {"def f():\n    return None\n"}),
    "condition forced": (
        "y = 1 if x else 2\n",
        {"y = 1 if True else 2\n", "y = 1 if False else 2\n"},
    ),
    "operand dropped": ("y = a and b\n", {"y = ((b))\n", "y = ((a))\n"}),
    "keyword dropped": ("f(a, b=1)\n", {"f(a)\n"}),
    "constant changed": (
        "f('é', 'a', b'b', None, f'{c}')\n",
        {
            "f('XXé', 'a', b'b', None, f'{c}')\n",
            "f('é', 'XXa', b'b', None, f'{c}')\n",
            "f('é', 'a', b'XXb', None, f'{c}')\n",
            "f('é', 'a', b'b', 0, f'{c}')\n",
            "f('é', 'a', b'b', None, 'XX')\n",
        },
    ),
}
LAMP = '''
WORDS = {"on": 1, "off": 0, "broken": 0}


def lit(word: str) -> bool:
    """Say whether the lamp is lit."""
    if not word:
        return False
    return WORDS[word] > 0
'''
LAMP_TEST = """
from staging_fsm.core.lamp import lit


def test_lamp() -> None:
    assert lit("on")
    assert lit("off") is False
"""
#: Nobody tests the empty word and the broken lamp.
LAMP_ANSWERS = """\
survived lit statement deleted pass
killed lit statement deleted pass
survived lit statement deleted pass
survived lit nothing returned return None
killed lit condition forced if True:
survived lit condition forced if False:
killed - entry deleted WORDS = {"off": 0, "broken": 0}
killed - entry deleted WORDS = {"on": 1, "broken": 0}
survived - entry deleted WORDS = {"on": 1, "off": 0}
killed - constant changed WORDS = {'XXon': 1, "off": 0, "broken": 0}
killed - constant changed WORDS = {"on": 1, 'XXoff': 0, "broken": 0}
survived - constant changed WORDS = {"on": 1, "off": 0, 'XXbroken': 0}
"""
#: Tries every mutant of a tree's only module, in a process that has not imported the product.
PROGRAM = """
import sys
from pathlib import Path
from mutation.operators import Source, edits
from mutation.runner import Tally, Workshop, mutants

root, folder = map(Path, sys.argv[1:])
text = (root / "src/staging_fsm/core/lamp.py").read_text()
tried = list(mutants(text, edits(Source(text, {})), Tally("lamp")))
out = open(folder / "answers", "w")
workshop = Workshop.build(folder, root, {"core/lamp.py": ("lamp",)})
for mutant, answer in workshop.try_all("core/lamp.py", tried):
    print(answer, mutant.where or "-", mutant.operator, mutant.becomes.split("\\n")[0], file=out)
"""


@cache
def edited(module: str) -> tuple[str, list[Edit]]:
    """Return the text of a module of the product, and what our own operators change in it."""
    text = (ROOT / PACKAGE / module).read_text("utf-8")
    return text, list(edits(Source(text, vocabularies(ROOT / PACKAGE / "core"))))


@pytest.mark.parametrize("operator", EXAMPLES)
def test_each_operator_makes_its_mutants(operator: str) -> None:
    """An operator changes one place at a time, and nothing else."""
    text, expected = EXAMPLES[operator]
    made = {edit.apply(text) for edit in edits(Source(text, {})) if edit.operator == operator}

    assert made == expected


@pytest.mark.parametrize("row", TRANSITIONS, ids=lambda row: row.id)
def test_each_row_of_the_table_is_mutated(row: Transition) -> None:
    """A row is deleted, and its source, event, target and effect become each other word."""
    text, made_of_it = edited("core/spec.py")
    start = text.index(f'T("{row.id}"')
    end = text.index("\n", start)
    inside = [
        edit for edit in made_of_it if edit.in_table and edit.start < end and start < edit.end
    ]
    words = [type(row.source), type(row.event), type(row.target), type(row.effect)]
    made = {
        (edit.start, edit.text.partition(".")[2])
        for edit in inside
        if edit.operator == "word replaced" and start <= edit.start
    }

    assert any(edit.operator == "entry deleted" for edit in inside)
    assert len({position for position, _ in made}) == len(words)
    assert len(made) == sum(len(vocabulary) - 1 for vocabulary in words)


def test_each_rule_is_mutated() -> None:
    """A rule of judgement is deleted, and swapped with its neighbour."""
    text, made_of_it = edited("core/outcome.py")
    ids = [rule.id for rule in RULES]
    made = {
        tuple(re.findall(r'Rule\(\s*"(J\d+)"', edit.apply(text)))
        for edit in made_of_it
        if edit.in_table
    }
    expected = [ids[:n] + ids[n + 1 :] for n in range(len(ids))]
    expected += [[*ids[:n], ids[n + 1], ids[n], *ids[n + 2 :]] for n in range(len(ids) - 1)]

    assert {tuple(each) for each in expected} <= made


def test_each_reason_is_mutated() -> None:
    """Whose fault a reason is and how often it is tried again become each other word."""
    text, made_of_it = edited("core/outcome.py")
    start = text.index("REASONS: Final")
    end = text.index("\n)\n", start)
    made: set[tuple[str, str, str]] = set()
    for edit in made_of_it:
        if edit.operator == "word replaced" and start <= edit.start < end:
            made |= facts_that_differ(edit, text)
    expected = {
        (reason.name, verdict.name, facts.retry.name)
        for reason, facts in REASONS.items()
        for verdict in Verdict
        if verdict is not facts.verdict is not Verdict.NOT_EXECUTED
    } | {
        (reason.name, facts.verdict.name, retry.name)
        for reason, facts in REASONS.items()
        for retry in Retry
        if facts.verdict is Verdict.NOT_EXECUTED and retry is not facts.retry
    }

    assert expected <= made


def facts_that_differ(edit: Edit, text: str) -> set[tuple[str, str, str]]:
    """Return the reasons whose verdict or retry a change of the module's text changes."""
    module: dict[str, Any] = {"__name__": "staging_fsm.core.outcome"}
    exec(edit.apply(text), module)  # noqa: S102  # a mutant of our own, of data alone
    changed = {reason.name: facts for reason, facts in module["REASONS"].items()}
    return {
        (name, facts.verdict.name, facts.retry.name)
        for name, facts in changed.items()
        if (facts.verdict.name, facts.retry.name)
        != (REASONS[Reason[name]].verdict.name, REASONS[Reason[name]].retry.name)
    }


def test_mutant_lives_until_a_test_fails(tmp_path: Path) -> None:
    """What no test notices survives; what one notices is killed, in a function or a table."""
    root, folder = tmp_path / "lamp", tmp_path / "scratch"
    core = root / "src" / "staging_fsm" / "core"
    core.mkdir(parents=True)
    (root / "tests").mkdir()
    folder.mkdir()
    (core / "__init__.py").touch()
    (core.parent / "__init__.py").touch()
    (core / "lamp.py").write_text(LAMP)
    (root / "tests" / "test_lamp.py").write_text(LAMP_TEST)
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root), str(folder)],
        check=False,
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
    )

    assert ended.returncode == 0, ended.stderr
    # To the compiler of Python 3.12 what is never done is the same as what is not there.
    never = "survived lit condition forced if False:\n" if sys.version_info >= (3, 12) else ""
    assert (folder / "answers").read_text() == LAMP_ANSWERS.replace(never, "")


HOARD = """
from mutation.runner import in_child

def hoard():
    kept = []
    while True:
        # Asked of the system, and never written to: it costs no memory.
        kept.append(bytes(1 << 30))

print(int(in_child(hoard, 60)), int(in_child(lambda: 0, 60)))
"""


def test_mutant_that_hoards_is_killed() -> None:
    """A mutant that takes all the memory it may is found out, and ends no runner."""
    ended = subprocess.run(
        [sys.executable, "-c", HOARD],
        check=False,
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
    )

    assert (ended.stdout, ended.returncode) == ("1 0\n", 0), ended.stderr


def test_same_program_is_not_tried_twice() -> None:
    """A change that makes no program, the same program, or one made before is skipped.

    What stands under TYPE_CHECKING is in no program.
    """
    text = "x = 1\nif TYPE_CHECKING:\n    import y\n"
    changes = [(4, 5, "2"), (4, 5, "2 "), (4, 5, "1  # one"), (4, 5, ""), (9, 22, "False")]
    tally = Tally("x")
    made = list(mutants(text, (Edit("any", *change) for change in changes), tally))

    assert [mutant.becomes for mutant in made] == ["x = 2"]
    assert (tally.mutants, tally.skipped) == (5, 4)


def test_each_survivor_is_explained_in_a_sentence() -> None:
    """Whoever lets a mutant of a module live says why."""
    rows = tomllib.loads(SURVIVORS.read_text("utf-8"))["survivor"]

    assert {row["module"] for row in rows} <= set(all_modules())
    assert [row for row in rows if not row["because"].endswith(".")] == []

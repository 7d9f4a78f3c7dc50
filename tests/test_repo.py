"""The style of the repository, as rules that a machine checks."""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from sources import LAYERS, MODULES, ROOT, SOURCE, TESTS, functions, imports
from staging_fsm.faces.commands.config import env_file
from staging_fsm.faces.diagrams import Diagram, outdated

#: What the core may not touch: it gets time, environment, files and processes as arguments.
IMPURE = {"os", "subprocess", "time", "random", "secrets", "socket", "psutil", "sqlalchemy"}
#: Each side effect has one home: module -> who may import it.
HOMES = {
    "transitions": {"core/machine.py"},
    "sqlalchemy": {
        "effects/django_rows.py",
        "effects/due.py",
        "effects/host_table.py",
        "effects/metadata.py",
        "effects/rows.py",
        "host/database.py",
        "host/store.py",
        "host/move.py",
        "faces/session.py",
        "fleet/deliveries.py",
        "fleet/fleet.py",
        "fleet/fence.py",
        "fleet/worker.py",
    },
    "procrastinate": {"fleet/deliveries.py", "fleet/worker.py"},
    "psycopg": {"fleet/fence.py"},
    "psutil": {"effects/processes.py"},
    "fcntl": {"effects/files.py", "effects/supervisor/suite.py"},
    "apprise": {"effects/alerts.py"},
    "subprocess": {
        "effects/suite.py",
        "effects/supervised.py",
        "effects/worktree.py",
        "host/launcher.py",
    },
    "structlog": {"effects/journal.py"},
    "securesystemslib": {"faces/attestation.py"},
    "cryptography": {"faces/attestation.py"},
    "opentelemetry": {"effects/telemetry.py"},
}
FUNCTION_LINES_MAX = 70
TEST_FILES = sorted(path.name for path in TESTS.glob("test_*.py"))


def layer_of(module: str) -> str | None:
    """Return the layer of a module, the longest folder name that fits; None outside all."""
    fitting = [layer for layer in LAYERS if module.startswith(layer + "/")]
    return max(fitting, key=len, default=None)


@pytest.mark.parametrize("module", MODULES)
def test_module_stands_in_a_layer(module: str) -> None:
    """Every module but the package's own face belongs to exactly one declared layer."""
    assert module == "__init__.py" or layer_of(module) is not None


@pytest.mark.parametrize("module", [m for m in MODULES if m != "__init__.py"])
def test_imports_point_down(module: str) -> None:
    """A layer imports itself and the layers below it, never one above."""
    layer = layer_of(module)
    assert layer is not None
    allowed = {layer, *LAYERS[layer]}
    ours = {
        name.removeprefix("staging_fsm.").replace(".", "/") + "/"
        for name in imports(SOURCE / module)
        if name.startswith("staging_fsm.")
    }
    upward = {name for name in ours if (target := layer_of(name)) and target not in allowed}

    assert not upward


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("core/")])
def test_core_is_pure(module: str) -> None:
    """The core has no clock, no environment, no file, no process and no randomness."""
    names = {name.split(".")[0] for name in imports(SOURCE / module)}
    text = (SOURCE / module).read_text(encoding="utf-8")

    assert not names & IMPURE
    assert not re.search(r"\b(open|print)\(|\.now\(|environ\[", text)


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("effects/supervisor/")])
def test_supervisor_is_made_of_itself_and_the_standard_library(module: str) -> None:
    """What runs without our packages imports none, and no file of it is called as one it uses."""
    tops = {name.split(".")[0] for name in imports(SOURCE / module)}

    assert tops <= {"staging_fsm", *sys.stdlib_module_names}
    assert Path(module).stem not in sys.stdlib_module_names


@pytest.mark.parametrize("home", sorted(HOMES))
def test_each_side_effect_has_its_home(home: str) -> None:
    """What can act on the world is imported where its home is, and nowhere else."""
    users = {
        module
        for module in MODULES
        if home in {name.split(".")[0] for name in imports(SOURCE / module)}
    }

    assert users == HOMES[home]


@pytest.mark.parametrize("module", MODULES)
def test_functions_fit_on_a_screen(module: str) -> None:
    """No function is longer than 70 lines."""
    long = [
        node.name
        for node in functions(SOURCE / module)
        if (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES_MAX
    ]

    assert not long


@pytest.mark.parametrize("name", TEST_FILES)
def test_each_test_states_a_rule(name: str) -> None:
    """Each test's docstring is one rule of the product, a sentence with its full stop."""
    without = [
        node.name
        for node in functions(TESTS / name)
        if node.name.startswith("test_")
        and not re.search(r"[.\"»)]$", (ast.get_docstring(node) or "").strip().split("\n\n")[0])
    ]

    assert not without


@pytest.mark.parametrize("name", TEST_FILES)
def test_tests_do_not_sleep(name: str) -> None:
    """A test waits for a condition, never for a time."""
    text = (TESTS / name).read_text(encoding="utf-8")

    assert not re.search(r"\btime\.sleep\(", text)


@pytest.mark.parametrize("name", TEST_FILES)
def test_tests_do_not_import_each_other(name: str) -> None:
    """What two test files need stands in a module that is none: no test file imports another."""
    parts = {part for dotted in imports(TESTS / name) for part in dotted.split(".")}
    imported = parts & {Path(other).stem for other in TEST_FILES}

    assert not imported


def suppressions() -> Iterator[str]:
    """Yield every lint or type suppression that gives no reason."""
    for folder in ("src", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for token in tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline):
                if token.type != tokenize.COMMENT:
                    continue
                found = re.search(r"# (noqa|type: ignore)\b[^#]*(#.*)?$", token.string)
                if found and not found.group(2):
                    yield f"{path.relative_to(ROOT)}:{token.start[0]}: {token.string}"


def test_each_suppression_has_a_reason() -> None:
    """A suppressed warning says why, in a comment behind it."""
    assert list(suppressions()) == []


def test_no_module_is_a_drawer() -> None:
    """No module is called utils, helpers, manager or common."""
    drawers = {"utils", "helpers", "helper", "manager", "common", "misc"}

    assert not {Path(module).stem for module in MODULES} & drawers


def test_committed_diagrams_are_current() -> None:
    """The committed diagrams are, byte for byte, what the table gives."""
    assert outdated(ROOT / "diagrams", Diagram()) == []


def test_env_example_is_current() -> None:
    """`.env.example` is, byte for byte, what the configuration declares."""
    assert (ROOT / ".env.example").read_text(encoding="utf-8") == env_file()


def test_repository_names_no_index_and_no_machine() -> None:
    """No file names a package index or a path of somebody's machine."""
    banned = re.compile(r"index-url|find-links|pypi\.org|/home/\w|/root/")
    texts = [*ROOT.glob("*.*"), ROOT / "Makefile", *ROOT.glob("docs/*"), *SOURCE.rglob("*.py")]
    naming = [
        path.name for path in texts if path.is_file() and banned.search(path.read_text("utf-8"))
    ]

    assert naming == []

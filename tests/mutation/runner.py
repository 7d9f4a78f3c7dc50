"""The runner: every mutant of a module against the tests that can see it; survivors are explained.

`python -m mutation.runner [MODULE...]` works in a copy of the tree. What the product and
its tests need is imported once, and each mutant gets a process forked from there. Where a
mutant changes nothing but functions, the process also has the product and the collected
tests, and the changed functions are exchanged in it: that takes milliseconds. Only the
tests that call a changed function are run then, first those that are fast for the mutants
that they have killed so far. Any other mutant is imported afresh, and so is one that
survives this although its function was called while modules were imported, or by no test
of this process. The first test that fails, or a process that does not end, kills a mutant.
"""

import ast
import contextlib
import cProfile
import gc
import importlib
import json
import mmap
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import attrs
import hypothesis
import pytest

from mutation.operators import Edit, Source, edits, silent, vocabularies

ROOT = Path(__file__).parents[2]
SURVIVORS = Path(__file__).with_name("survivors.toml")
PACKAGE = Path("src/staging_fsm")
#: Besides the core and the drive: the compare-and-swap, the writer of artifacts, the state folder.
FURTHER_MODULES = (
    "effects/rows.py",
    "effects/host_table.py",
    "effects/metadata.py",
    "effects/files.py",
    "effects/folders.py",
    "effects/state_dir.py",
)
#: What is held of launches, in parts.
LAUNCHES = ("intercept", "take_up", "between_runs", "cancelling", "made_runner", "telling")
#: Besides the test file of its own name: the tests that hold a module's promises.
FURTHER_TESTS = {
    "core/outcome.py": ("stories",),
    "core/machine.py": ("spec",),
    "core/plan.py": ("config", "outcome"),
    "core/settings.py": ("config",),
    "core/config.py": ("plan", *LAUNCHES, "shadow", "attestation"),
    "core/jobs.py": ("rows", "invariants", *LAUNCHES, "public"),
    "core/suites.py": ("config", "plan", *LAUNCHES),
    "core/errors.py": ("spec", "snapshot", "config", "rows"),
    "core/ports.py": ("rows", "invariants", "stories", "engine"),
    "core/times.py": ("snapshot", "stories"),
    "core/evidence.py": ("fuzz_targets",),
    "core/trail.py": ("snapshot", "invariants"),
    "core/snapshot.py": ("invariants", "stories"),
    "core/artifact.py": ("stories",),
    "core/visible.py": ("artifact",),
    "drive/cancelling.py": ("stories", "faults", "take_up"),
    "drive/planning.py": (*LAUNCHES, "stories", "faults"),
    "drive/recovery.py": ("stories", "faults", *LAUNCHES, "worker_lock"),
    "drive/engine.py": ("stories", "faults", *LAUNCHES, "alerts"),
    "drive/intercept.py": ("stories", "faults", *LAUNCHES, "public", "shadow"),
    "drive/rulings.py": (*LAUNCHES, "engine"),
    "drive/runner.py": (*LAUNCHES, "alerts", "stories", "faults", "shadow"),
    "effects/rows.py": ("foreign_tables", "job_rows", "postgres_faults", "queue"),
    "effects/host_table.py": ("rows", "foreign_tables", "job_rows"),
    "effects/metadata.py": ("rows", "foreign_tables", "job_rows"),
    "effects/files.py": ("artifact", "state_dir", *LAUNCHES, "processes"),
    "effects/folders.py": ("state_dir", "worktree"),
    "effects/state_dir.py": (*LAUNCHES, "processes"),
}
#: The table, and the rules and reasons: each mutant of an entry has to be killed.
UNEXPLAINABLE = ("core/spec.py", "core/outcome.py")
RUNNER_FAILED = 70
#: Beyond this a mutant has an endless loop that hoards.
MEMORY_MAX_BYTES = 8 * 1024**3
#: What computes so many times as long as without a mutant, and some seconds, or waits so many
#: seconds longer, hangs: a test, or a process with all that it runs.
TIME_FACTOR, TIME_SECONDS, WAIT_SECONDS = 4, 5, 120


@attrs.frozen
class Mutant:
    """One changed module, and the change as a person reads it: the lines that differ."""

    operator: str
    where: str
    was: str
    becomes: str
    in_table: bool
    text: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Return what tells this mutant from others, whatever its line number."""
        return self.where, self.was, self.becomes


@attrs.define
class Tally:
    """What became of the mutants of a module."""

    module: str
    mutants: int = 0
    #: Not run: no program, or the same program as the original or as another mutant.
    skipped: int = 0
    killed: int = 0
    explained: int = 0
    survivors: list[Mutant] = attrs.field(factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        """Return one line of the summary."""
        tested = self.mutants - self.skipped
        return (
            f"{self.module:20} {self.mutants:5} mutants {self.skipped:5} skipped"
            f" {self.killed:5} killed {self.explained:4} explained"
            f" {len(self.survivors):4} unexplained {100 * self.killed / tested:6.1f} %"
            f" {self.seconds:5.0f} s"
        )


def all_modules() -> list[str]:
    """Return every module that is mutated."""
    package = ROOT / PACKAGE
    paths = [*package.glob("core/*.py"), *package.glob("drive/*.py")]
    names = sorted(path.relative_to(package).as_posix() for path in paths)
    return [name for name in names if not name.endswith("__init__.py")] + [*FURTHER_MODULES]


def tests_of(module: str) -> tuple[str, ...]:
    """Return the names of the test files of a module, the closest one first."""
    own = Path(module).stem
    further = FURTHER_TESTS.get(module, ())
    return (own, *further) if (ROOT / "tests" / f"test_{own}.py").exists() else further


def program(text: str) -> object:
    """Return what a text says as a program, without what only a reader or mypy sees."""
    tree = ast.parse(text)
    for node in silent(tree):
        if isinstance(node, ast.Expr):
            node.value = ast.Constant(value=None)
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if getattr(node, name, None) is not None:
                setattr(node, name, ast.Constant(value=None, lineno=1, col_offset=0))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.test = ast.Constant(value=False)
    return _unplaced(compile(ast.fix_missing_locations(tree), "mutant", "exec"))


def mutants(text: str, found: Iterator[Edit], tally: Tally) -> Iterator[Mutant]:
    """Yield each different program that the edits make of a text."""
    tree = ast.parse(text)
    known = {program(text)}
    for edit in found:
        tally.mutants += 1
        changed = edit.apply(text)
        try:
            said = program(changed)
        except SyntaxError:
            said = None
        if said is None or said in known:
            tally.skipped += 1
            continue
        known.add(said)
        was, becomes = differing_lines(text, changed)
        where = qualified_name(tree, text.count("\n", 0, edit.start) + 1)
        yield Mutant(edit.operator, where, was, becomes, edit.in_table, changed)


def differing_lines(text: str, changed: str) -> tuple[str, str]:
    """Return the lines that differ, in both texts, without their indentation."""
    before, after = text.splitlines(), changed.splitlines()
    for _ in range(2):
        # From the front, then, turned round, from the back.
        while before and after and before[0] == after[0]:
            del before[0], after[0]
        before.reverse()
        after.reverse()
    was, becomes = ("\n".join(line.strip() for line in lines) for lines in (before, after))
    return was, becomes


def qualified_name(tree: ast.Module, line: int) -> str:
    """Return the function or class that a line is in, or nothing."""
    names: list[str] = []
    body: list[Any] = [tree]
    while body:
        node = body.pop()
        for child in ast.iter_child_nodes(node):
            if getattr(child, "lineno", line + 1) <= line <= getattr(child, "end_lineno", 0):
                if isinstance(child, ast.FunctionDef | ast.ClassDef):
                    names.append(child.name)
                body.append(child)
    return ".".join(names)


@attrs.define
class Tests:
    """A pytest plugin that, once tests are collected, tries mutants in forked processes."""

    path: Path
    tried: list[Mutant]
    tell: Callable[[int, str], None]
    _items: list[pytest.Item] = attrs.field(factory=list)
    _called: dict[str, set[int]] = attrs.field(factory=dict)
    _seconds: dict[str, float] = attrs.field(factory=dict)
    #: How many mutants each test has killed, and which of the tests a child was at last.
    _kills: Counter[str] = attrs.field(factory=Counter)
    _at: mmap.mmap = attrs.field(factory=lambda: mmap.mmap(-1, 4))
    _profile: cProfile.Profile = attrs.field(factory=cProfile.Profile)
    _at_import: set[int] = attrs.field(factory=set)

    def watch(self) -> None:
        """Note every function that is called from now on."""
        self._profile = cProfile.Profile(builtins=False)
        self._profile.enable()

    def called(self) -> set[int]:
        """Return the codes of the functions that were called since, and stop noting them."""
        self._profile.disable()
        return {id(each.code) for each in self._profile.getstats()}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the tests without a mutant, then the mutants, instead of the tests."""
        self._items = session.items
        self._at_import = self.called()
        # Each has one that follows, so that what a whole session shares is kept for the mutants.
        for item, following in _followed(self._items):
            begun = time.monotonic()
            self.watch()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            self._called[item.nodeid] = self.called()
            self._seconds[item.nodeid] = time.monotonic() - begun
            if session.testsfailed:
                self.tell(-1, f"{item.nodeid} fails without a mutant")
                return True
        self.tell(-1, f"{sum(self._seconds.values()):.0f}")
        original = self.path.read_text("utf-8")
        functions = [
            function
            for function in gc.get_objects()
            # Not by isinstance: it asks objects that stand in for others, which may refuse.
            if type(function) is FunctionType and function.__code__.co_filename == str(self.path)
        ]
        for number, mutant in enumerate(self.tried):
            pairs = changed_functions(original, mutant.text, functions)
            self.path.write_text(mutant.text, "utf-8")
            self.tell(number, self._try(session, pairs) if pairs else "cold")
        self.path.write_text(original, "utf-8")
        session._setupstate.teardown_exact(None)
        return True

    def _try(self, session: pytest.Session, pairs: list[tuple[FunctionType, CodeType]]) -> str:
        codes = {id(function.__code__) for function, _ in pairs}
        items = [item for item in self._items if codes & self._called[item.nodeid]]
        items.sort(key=lambda item: self._seconds[item.nodeid] / (1 + self._kills[item.nodeid]))

        def run() -> int:
            for function, code in pairs:
                function.__code__ = code
            for number, (item, following) in enumerate(_followed(items)):
                self._at[:] = number.to_bytes(4)
                limit_time(self._seconds[item.nodeid])
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if session.testsfailed:
                    return 1
            return 0

        if in_child(run, sum(self._seconds[item.nodeid] for item in items)):
            self._kills[items[int.from_bytes(self._at[:])].nodeid] += 1
            return "killed"
        # What is called in another process, one that a test forks, is seen by no profile.
        return "cold" if not items or codes & self._at_import else "survived"


def _followed(items: list[pytest.Item]) -> Iterator[tuple[pytest.Item, pytest.Item]]:
    return zip(items, [*items[1:], *items[:1]], strict=True)


def changed_functions(
    original: str, changed: str, functions: list[FunctionType]
) -> list[tuple[FunctionType, CodeType]]:
    """Return each live function that differs, with its new code; none if anything else does."""
    with warnings.catch_warnings():
        # A mutant may be what the compiler warns of, and pytest makes errors of warnings.
        warnings.simplefilter("ignore")
        codes = [compile(text, "module", "exec") for text in (original, changed)]
    pairs = list(changed_codes(*codes))
    exchanged = []
    for old, new in pairs:
        live = [function for function in functions if function.__code__ == old]
        if new is None or len(live) != 1 or old.co_freevars != new.co_freevars:
            return []
        exchanged.append((live[0], new))
    return exchanged


def changed_codes(old: CodeType, new: CodeType) -> Iterator[tuple[CodeType, CodeType | None]]:
    """Yield the outermost functions that differ; a None where what is no function differs."""
    is_function = bool(old.co_flags & 1)  # CO_OPTIMIZED: the code of a module or class has it not
    inner_old, inner_new = (
        [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        for code in (old, new)
    )
    if is_function:
        if _unplaced(old) != _unplaced(new):
            yield old, new
        return
    if len(inner_old) != len(inner_new) or _own(old) != _own(new):
        yield old, None
        return
    for one, other in zip(inner_old, inner_new, strict=True):
        yield from changed_codes(one, other)


def _own(code: CodeType) -> object:
    constants = [c for c in code.co_consts if not isinstance(c, CodeType)]
    return code.co_code, code.co_names, code.co_varnames, repr(constants)


def _unplaced(code: CodeType) -> object:
    """Return what a code does, without the lines it stands in."""
    inner = tuple(_unplaced(c) for c in code.co_consts if isinstance(c, CodeType))
    return _own(code), code.co_freevars, code.co_exceptiontable, inner


def in_child(run: Callable[[], int], seconds: float) -> int:
    """Return what `run` returns in a forked process; below 0 if it hangs."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX_BYTES, MEMORY_MAX_BYTES))
            limit_time(seconds)
            code = run()
        except MemoryError:
            # In a test, or in what comes between two: whoever hoards without an end is found out.
            code = pytest.ExitCode.TESTS_FAILED
        except BaseException:  # noqa: BLE001  # it is told as an exit code
            traceback.print_exc()
            code = RUNNER_FAILED
        os._exit(code)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    if code == RUNNER_FAILED:
        message = "the runner itself failed"
        raise RuntimeError(message)
    return code


def limit_time(seconds: float) -> None:
    """Have this process killed by what hangs, from now on, where `seconds` are usual."""
    computing = TIME_FACTOR * seconds + TIME_SECONDS
    signal.setitimer(signal.ITIMER_PROF, computing)
    signal.setitimer(signal.ITIMER_REAL, computing + WAIT_SECONDS)


class Deterministic:
    """A pytest plugin: a failure is enough, nobody reads the smallest one."""

    @staticmethod
    def pytest_configure() -> None:
        """Let Hypothesis look for examples, and not shrink them."""
        phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
        hypothesis.settings.register_profile("mutation", hypothesis.settings(), phases=phases)
        hypothesis.settings.load_profile("mutation")


@attrs.define
class Workshop:
    """A copy of a tree in which mutants are tried, and the tests of each module."""

    root: Path
    tests: Mapping[str, tuple[str, ...]]

    @classmethod
    def build(cls, folder: Path, root: Path, tests: Mapping[str, tuple[str, ...]]) -> "Workshop":
        """Copy the tree into `folder` and import what its tests need, but nothing of it."""
        hidden = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis")
        workshop = cls(folder / "tree", tests)
        shutil.copytree(root, workshop.root, ignore=hidden)
        os.chdir(workshop.root)
        source = str(workshop.root / "src")
        os.environ |= {"PYTHONPATH": source, "CI": "1"}
        sys.path[:] = [source, *(p for p in sys.path if p and Path(p) != ROOT / "tests")]
        names = folder / "modules"

        def collect() -> int:
            sys.dont_write_bytecode = False
            code = workshop.pytest(list(tests), "--collect-only")
            names.write_text("\n".join(_foreign_modules(workshop.root)), "utf-8")
            return code

        if in_child(collect, 60):
            message = "the tests cannot be collected"
            raise SystemExit(message)
        for name in names.read_text("utf-8").split("\n"):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        # From here on nothing may be kept of a module: the next one differs.
        sys.dont_write_bytecode = True
        gc.freeze()
        return workshop

    def pytest(self, modules: list[str], *arguments: str, plugins: tuple[object, ...] = ()) -> int:
        """Run the tests of some modules in this process, silently."""
        files = dict.fromkeys(f"tests/test_{name}.py" for m in modules for name in self.tests[m])
        return self.pytest_files(list(files), *arguments, plugins=plugins)

    def pytest_files(
        self, files: list[str], *arguments: str, plugins: tuple[object, ...] = ()
    ) -> int:
        """Run test files in this process, silently; return pytest's exit code."""
        with (self.root.parent / "output").open("wb") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        base = f"--basetemp={self.root.parent / 'base'}"
        # What is imported before pytest can rewrite its assertions is told as a warning.
        ignored = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        ignored += ["--disable-plugin-autoload", "-p", "_hypothesis_pytestplugin"]
        return int(
            pytest.main(
                ["-x", "-q", base, *ignored, *arguments, *files], [Deterministic(), *plugins]
            )
        )

    def try_all(self, module: str, tried: list[Mutant]) -> Iterator[tuple[Mutant, str]]:
        """Yield each mutant with what became of it: killed or survived."""
        path = self.root / PACKAGE / module
        original = path.read_text("utf-8")
        cold = []
        seconds = 0.0
        for number, answer in self._try_hot(module, path, tried):
            if number < 0:
                seconds = float(answer)
            elif answer == "cold":
                cold.append(tried[number])
            else:
                yield tried[number], answer
        for mutant in cold:
            path.write_text(mutant.text, "utf-8")
            killed = self._is_killed_afresh(module, seconds)
            path.write_text(original, "utf-8")
            yield mutant, "killed" if killed else "survived"

    def _try_hot(self, module: str, path: Path, tried: list[Mutant]) -> Iterator[tuple[int, str]]:
        """Yield what became of each mutant by its number, and first, as -1, how long tests take."""
        reading, writing = os.pipe()

        def serve() -> int:
            lines = os.fdopen(writing, "w", buffering=1)
            tests = Tests(path, tried, lambda *answer: print(json.dumps(answer), file=lines))
            tests.watch()
            return self.pytest([module], plugins=(tests,))

        if os.fork() == 0:
            try:
                serve()
            except BaseException:  # noqa: BLE001  # it is told below, by the answers that are missing
                traceback.print_exc()
            os._exit(0)
        os.close(writing)
        number = -1
        with os.fdopen(reading) as answers:
            for line in answers:
                number, answer = json.loads(line)
                if number < 0 and not answer.isdecimal():
                    output = (self.root.parent / "output").read_text("utf-8", "replace")
                    raise SystemExit(f"{output}\n{answer}")  # noqa: EM102, TRY003  # said once
                yield number, answer
        _, status = os.wait()
        if number + 1 < len(tried):
            output = (self.root.parent / "output").read_text("utf-8", "replace")
            message = f"{number + 1} of {len(tried)} mutants tried, then status {status}:\n{output}"
            raise RuntimeError(message)

    def _is_killed_afresh(self, module: str, seconds: float) -> bool:
        first, *rest = (f"tests/test_{name}.py" for name in self.tests[module])
        name = ".".join((PACKAGE.name, *Path(module).with_suffix("").parts))

        def run(files: list[str]) -> int:
            try:
                importlib.import_module(name)
            except Exception:  # noqa: BLE001  # what cannot be imported needs no test
                return 1
            return self.pytest_files(files)

        batches = [[first], rest] if rest else [[first]]
        return any(in_child(partial(run, batch), seconds) for batch in batches)


def _foreign_modules(root: Path) -> Iterator[str]:
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and not file.startswith((str(root), str(ROOT / "src"))):
            yield name


def examine(workshop: Workshop, module: str, explained: dict[tuple[str, str, str], str]) -> Tally:
    """Try every mutant of a module; tell each survivor that nobody has explained."""
    from mutation import general  # noqa: PLC0415  # only MUTATE_VENV has what it needs

    begun = time.monotonic()
    tally = Tally(module)
    text = (workshop.root / PACKAGE / module).read_text("utf-8")
    own = edits(Source(text, vocabularies(workshop.root / PACKAGE / "core")))
    found = [*own, *general.edits(text)]
    tried = list(mutants(text, iter(found), tally))
    open_ = dict(explained)
    for mutant, answer in workshop.try_all(module, tried):
        if answer == "killed":
            tally.killed += 1
        elif mutant.key in explained and not (mutant.in_table and module in UNEXPLAINABLE):
            tally.explained += 1
            open_.pop(mutant.key, None)
        else:
            tally.survivors.append(mutant)
            tell(entry(module, mutant))
    for where, was, becomes in open_:
        tell(f"# explained, but no survivor any more: {module} {where}: {was} -> {becomes}")
    tally.seconds = time.monotonic() - begun
    return tally


def tell(text: str) -> None:
    """Print for a person at a terminal, or in a log."""
    print(text, flush=True)  # noqa: T201  # that is where it is read


def entry(module: str, mutant: Mutant) -> str:
    """Return a survivor as it is written into the file of explanations."""
    facts = {"module": module, "where": mutant.where, "was": mutant.was, "becomes": mutant.becomes}
    lines = [f"{name} = {json.dumps(value)}" for name, value in facts.items()]
    return "\n".join(["[[survivor]]", *lines, 'because = ""', f"# {mutant.operator}", ""])


def explanations(module: str) -> dict[tuple[str, str, str], str]:
    """Return the explained survivors of a module."""
    document = tomllib.loads(SURVIVORS.read_text("utf-8"))
    return {
        (row["where"], row["was"], row["becomes"]): row["because"]
        for row in document.get("survivor", [])
        if row["module"] == module and row["because"]
    }


def main(*modules: str) -> int:
    """Examine the modules, all if none is named; return 1 if a survivor is not explained."""
    with tempfile.TemporaryDirectory(prefix="staging-fsm-mutate-") as folder:
        tests = {module: tests_of(module) for module in modules or all_modules()}
        workshop = Workshop.build(Path(folder), ROOT, tests)
        tallies = []
        for module in tests:
            tallies.append(examine(workshop, module, explanations(module)))
            tell(str(tallies[-1]))
        os.chdir(ROOT)
    return int(any(tally.survivors for tally in tallies))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

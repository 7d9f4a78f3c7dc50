"""The documents: every example in them is run, and what can be generated is generated.

A document is read from top to bottom by somebody who does what it says, in an empty
home folder: a fenced block with a title is saved as that file, a `python` block is
executed, and the commands of a `console` block (`$ `, continued by `> `) are typed into
one bash whose output must be the block's. `pytest --rewrite` writes outputs and generated
blocks afresh; whoever commits that has read the difference.
"""

import ast
import difflib
import inspect
import json
import os
import re
import select
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import attrs
import pytest
import sqlalchemy as sa
from sybil import Document, Example, Region
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

from benchmarks.report import BLOCKS
from hosts import git
from sources import LAYERS, ROOT, TESTS, functions
from staging_fsm import Effect, Event, Ruling, State
from staging_fsm.core.config import RunnerConfig
from staging_fsm.core.jobs import STAGE
from staging_fsm.core.outcome import REASONS, RULES, Reason, Verdict
from staging_fsm.core.ports import AlertKind
from staging_fsm.core.settings import declared
from staging_fsm.core.snapshot import ADOPTIONS_MAX, load_snapshot
from staging_fsm.core.suites import SuiteEntry, parse_suites
from staging_fsm.drive.recovery import SILENCE_SECONDS
from staging_fsm.effects import run_folder
from staging_fsm.effects.clock import SystemClock
from staging_fsm.effects.host_table import COLUMNS, STATUSES
from staging_fsm.faces.diagrams import Diagram, markdown_table
from staging_fsm.faces.exits import ExitCode
from staging_fsm.faces.shadow import Comparison
from staging_fsm.fleet.settings import FleetSettings, load_fleet_settings
from staging_fsm.host.contract.gate import ARTIFACT_NAME
from staging_fsm.host.contract.stages import STAGE_AGENTS, STAGE_TRANSITIONS
from staging_fsm.host.database import open_database
from staging_fsm.host.launcher import RESERVED_AGENTS
from staging_fsm.host.pipeline import ARTIFACT_GATES
from staging_fsm.host.settings import HostSettings
from staging_fsm.host.store import SqlHostStore, WorkItem
from stories import STORIES

EXAMPLES: Final = ROOT / "examples"
DOCUMENTS: Final = sorted(
    path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
)
FLEET_DOCUMENT: Final = "docs/fleet.md"
#: Their readers have been given a database, by this variable.
GIVEN: Final = {
    FLEET_DOCUMENT: "ORCH_DB_URL",
    "docs/howto-grow.md": "DATABASE_URL",
    "docs/howto-procrastinate.md": "DATABASE_URL",
}
ANTI_DRIFT: Final = "test_anti_drift.py"
COMMAND_SECONDS: Final = 120

#: What differs from run to run, and nothing else. Both sides of a comparison go through it.
VARYING: Final = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), "<time>"),
    (re.compile(r"\b\d\d:\d\d:\d\d\b"), "<clock>"),
    (re.compile(r"(127\.0\.0\.1:)\d+"), r"\1<port>"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<sha256>"),
    (re.compile(r"\b[0-9a-f]{40}\b"), "<commit>"),
    (re.compile(r"\b(\d+(?:-shadow)?)-[0-9a-f]{12}\b"), r"\1-<attempt>"),
    (re.compile(r"\b(\d+ min )?\d+(\.\d+)? ?s\b|\b\d+ min\b"), "<seconds>"),
    (re.compile(r"(duration_seconds: |<time> \| )\d+\.\d+"), r"\1<seconds>"),
    (re.compile(r"(<time> *│ *)\d+\.\d+"), r"\1<seconds>"),
    # A suite that prints how long it took prints more or fewer characters.
    (re.compile(r"(log_bytes: |lines of )\d+"), r"\1<bytes>"),
    (re.compile(r"(staging-fsm-demo-)\w+"), r"\1<name>"),
    # Tables are drawn as wide as what stands in them.
    (re.compile(r"[─━]+"), "─"),
    (re.compile(r"[ \t]+"), " "),
)


class Bash:
    """One shell into which commands are typed one after the other."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        """Start in `folder`, in a process group of its own."""
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        """Return the shell."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the shell, and whatever it left in the background."""
        with self._process:
            os.killpg(self._process.pid, signal.SIGTERM)

    def type(self, command: str) -> str:
        """Run one command, and return what it printed on either stream."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # The end mark keeps `$?` what the command left, for the next one to ask.
        mark = f"--end-of-{os.urandom(8).hex()}--"
        typed = f"eval {shlex.quote(command)} </dev/null; s=$?; echo {mark}; (exit $s)\n"
        self._process.stdin.write(typed.encode())
        self._process.stdin.flush()
        output = b""
        deadline = time.monotonic() + COMMAND_SECONDS
        while f"{mark}\n".encode() not in output:
            left = deadline - time.monotonic()
            if not select.select([self._process.stdout], [], [], max(left, 0))[0]:
                pytest.fail(f"no end after {COMMAND_SECONDS} s: {command}\n{output.decode()}")
            block = os.read(self._process.stdout.fileno(), 65536)
            if not block:
                pytest.fail(f"the shell ended: {command}\n{output.decode()}")
            output += block
        return output.decode().partition(mark)[0]


@attrs.define
class Reader:
    """Does what a document says, in an empty home folder."""

    home: Path
    temporary: Path
    bash: Bash
    #: Console blocks with their output as it is now: (start, end, text) in the document.
    fresh: list[tuple[int, int, str]] = attrs.field(factory=list)

    def document(self, path: Path) -> Document:
        """Return a document whose examples are this reader's to evaluate."""
        return Document.parse(
            str(path),
            PythonCodeBlockParser(),
            CodeBlockParser("console", self.type_commands),
            self.titled_blocks,
        )

    def titled_blocks(self, document: Document) -> Iterable[Region]:
        """Yield the fenced blocks that are files."""
        for region in FencedCodeBlockLexer(r'\w+ title="[^"\n]+"')(document):
            region.evaluator = self.save_file
            region.parsed = region.lexemes["source"]
            yield region

    def save_file(self, example: Example) -> str | None:
        """Save a block under its title; a suites file must be one."""
        name = str(example.region.lexemes["language"]).partition('title="')[2].rstrip('"')
        (self.home / name).write_text(example.parsed)
        if name.endswith("suites.toml"):
            parse_suites(example.parsed)
        return None

    def type_commands(self, example: Example) -> str | None:
        """Type the commands of a block; return a difference in what they print, if any."""
        source = example.region.lexemes["source"]
        commands = list(console_commands(source))
        now = [(command, shown(self.bash.type(command), self)) for command, _ in commands]
        expected = [part for command, text in commands for part in (f"$ {command}", *text)]
        actual = [part for command, text in now for part in (f"$ {command}", *text)]
        before, after = ([steady(line) for line in part] for part in (expected, actual))
        if before == after:
            return None
        start = example.region.start + source.offset
        text = "".join(f"{line}\n" for command, out in now for line in (*typed(command), *out))
        self.fresh.append((start, start + len(source), text))
        return "\n".join(difflib.unified_diff(before, after, "document", "now", lineterm=""))


def console_commands(source: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each command of a console block with the lines it is said to print."""
    lines = source.splitlines()
    while lines:
        first = lines.pop(0)
        assert first.startswith("$ "), f"a console block must begin with a command, not {first!r}"
        command = [first.removeprefix("$ ")]
        while lines and lines[0].startswith("> "):
            command.append(lines.pop(0).removeprefix("> "))
        printed = []
        while lines and not lines[0].startswith("$ "):
            printed.append(lines.pop(0))
        yield "\n".join(command), printed


def typed(command: str) -> list[str]:
    """Return a command as a console block shows it."""
    return [("> " if number else "$ ") + line for number, line in enumerate(command.split("\n"))]


def shown(output: str, reader: Reader) -> list[str]:
    """Return the lines of an output as a document shows them: the reader's folders by name."""
    text = output.replace(str(reader.home), "~").replace(str(reader.temporary), "/tmp")  # noqa: S108  # a name to show
    return [line.rstrip() for line in text.splitlines()]


def steady(line: str) -> str:
    """Return `line` without what differs from run to run."""
    for pattern, word in VARYING:
        line = pattern.sub(word, line)
    return line.strip()


@pytest.fixture
def fleet_url(postgres_url: str) -> Iterator[str]:
    """Return the address of a database that carries no fleet, and will carry none."""
    yield postgres_url
    engine = open_database(postgres_url)
    with engine.begin() as connection:
        schema = load_fleet_settings({}).schema
        connection.exec_driver_sql(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
    engine.dispose()


@pytest.fixture
def reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Reader]:
    """Return a reader whose environment is that of a newcomer, with the product on the PATH."""
    home, temporary = tmp_path.resolve() / "home", tmp_path.resolve() / "tmp"
    for folder in (home, temporary):
        folder.mkdir()
    (home / ".gitconfig").write_text(
        "[user]\n\tname = Ada\n\temail = ada@example.org\n[init]\n\tdefaultBranch = main\n"
    )
    for name in list(os.environ):
        if name.startswith(("ORCH_", "XDG_", "GIT_", "PYTEST_")):
            monkeypatch.delenv(name)
    for document, variable in GIVEN.items():
        if document in request.node.name:
            monkeypatch.setenv(variable, request.getfixturevalue("fleet_url"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    newcomer = {"PATH": path, "HOME": str(home), "TMPDIR": str(temporary), "LC_ALL": "C.UTF-8"}
    for name, value in {**newcomer, "COLUMNS": "140", "GIT_CONFIG_NOSYSTEM": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(home)
    with Bash(home, os.environ) as bash:
        yield Reader(home, temporary, bash)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_example_does_what_the_document_says(
    name: str, reader: Reader, request: pytest.FixtureRequest
) -> None:
    """Whoever types what a document says sees what it shows, from its first line to its last."""
    rewriting = request.config.getoption("--rewrite")
    for example in reader.document(ROOT / name):
        try:
            example.evaluate()
        except AssertionError:
            if not (rewriting and reader.fresh):
                raise
    text = (ROOT / name).read_text(encoding="utf-8")
    for start, end, output in reversed(reader.fresh):
        text = text[:start] + output + text[end:]
    if reader.fresh:
        (ROOT / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_block_is_one_that_is_run_or_said_not_to_be(name: str) -> None:
    """A fenced block has a language that is run, or one of the few that only show something."""
    text = (ROOT / name).read_text(encoding="utf-8")
    opened = re.findall(r"^```(.*)$", text, re.MULTILINE)[::2]
    known = re.compile(r'python|console|sh|text|yaml|\w+ title="[^"]+"')

    assert [language for language in opened if not known.fullmatch(language)] == []


def cells(*words: object) -> str:
    """Return one row of a Markdown table."""
    return f"| {' | '.join(map(str, words))} |\n"


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table."""
    names = list(head)
    return cells(*names) + cells(*["---"] * len(names)) + "".join(cells(*row) for row in rows)


def setting_rows(declaration: type) -> str:
    """Return the settings that a class declares."""
    rows = ((f"`{row.name}`", f"`{row.default}`", row.help) for row in declared(declaration))
    return table(["variable", "default", "meaning"], rows).replace("``", "")


def file_block(name: str, language: str) -> str:
    """Return an example file as a block that a reader saves under its name."""
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    return f'```{language} title="{name}"\n{text}```\n'


def rule_rows() -> str:
    """Return the rules in their order."""
    return table(["rule", "first match wins"], ((rule.id, rule.sentence) for rule in RULES))


def reason_rows() -> str:
    """Return the vocabulary of reasons."""
    rows = (
        (
            f"`{reason}`",
            f"`{facts.verdict}`",
            retry_words(facts.verdict, facts.retry),
            facts.sentence,
        )
        for reason, facts in REASONS.items()
    )
    return table(["reason", "verdict", "another run", "meaning"], rows)


def retry_words(verdict: Verdict, retry: str) -> str:
    """Return whether another run may follow; after a verdict none does."""
    return retry.replace("_", " ") if verdict is Verdict.NOT_EXECUTED else "-"


def example_block(name: str) -> str:
    """Return an example file as a block that a reader saves as `orchestrator.py`."""
    return (
        f'```python title="orchestrator.py"\n{(EXAMPLES / name).read_text(encoding="utf-8")}```\n'
    )


def example_patch() -> str:
    """Return what is added to the foreign orchestrator, as a patch that git applies."""
    before, after = (
        (EXAMPLES / name).read_text(encoding="utf-8").splitlines()
        for name in ("foreign_orchestrator_before.py", "foreign_orchestrator.py")
    )
    names = ("a/orchestrator.py", "b/orchestrator.py")
    lines = difflib.unified_diff(before, after, *names, lineterm="", n=1)
    return '```diff title="staging.patch"\n' + "\n".join(lines) + "\n```\n"


def stage_rows() -> str:
    """Return the stages with who works on them and where each outcome leads."""
    kinds = dict.fromkeys(RESERVED_AGENTS, "code") | {
        STAGE_AGENTS[STAGE]: "staging runner, else LLM"
    }
    rows = (
        (
            f"`{stage}`",
            f"`{agent}`",
            kinds.get(agent, "LLM"),
            f"`{ARTIFACT_NAME}`" if stage in ARTIFACT_GATES else "exit code",
            f"`{STAGE_TRANSITIONS[stage, 'success']}`",
            f"`{STAGE_TRANSITIONS[stage, 'failure']}`",
        )
        for stage, agent in STAGE_AGENTS.items()
    )
    return table(["stage", "agent", "producer", "the gate reads", "success", "failure"], rows)


def first_paragraph(docstring: str | None) -> str:
    """Return a docstring's first paragraph on one line, as a table has it."""
    return (docstring or "").partition("\n\n")[0].replace("\n", " ")


def case_rows() -> str:
    """Return the request's cases with the tests that hold them."""
    held = [
        (
            f"TC-{story.__name__.split('_')[1]}",
            first_paragraph(inspect.getdoc(story)),
            f"`test_stories.py::test_story[{story.__name__}]`",
        )
        for story in STORIES
        if story.__name__.startswith("tc_")
    ]
    held += [
        ("TC-14", first_paragraph(ast.get_docstring(test)), f"`{ANTI_DRIFT}::{test.name}`")
        for test in functions(TESTS / ANTI_DRIFT)
        if test.name.startswith("test_")
    ]
    return table(["case", "rule", "held by"], held)


def test_every_case_of_the_request_is_held() -> None:
    """Each of TC-01 to TC-14 is held by at least one test, and no other case is named."""
    cases = re.findall(r"^\| (TC-\d\d) \|", case_rows(), re.MULTILINE)

    assert len(cases) == len(case_rows().splitlines()) - 2
    assert list(dict.fromkeys(cases)) == [f"TC-{number:02}" for number in range(1, 15)]


#: (document, marker) -> what stands between `<!-- marker:begin -->` and `<!-- marker:end -->`.
GENERATED: Final[Mapping[tuple[str, str], Callable[[], str]]] = {
    ("README.md", "table"): lambda: markdown_table(Diagram()),
    ("docs/configuration.md", "settings"): lambda: setting_rows(RunnerConfig),
    ("docs/configuration.md", "host-settings"): lambda: setting_rows(HostSettings),
    ("docs/judging.md", "rules"): rule_rows,
    ("docs/judging.md", "reasons"): reason_rows,
    (FLEET_DOCUMENT, "fleet-settings"): lambda: setting_rows(FleetSettings),
    (FLEET_DOCUMENT, "unit"): lambda: file_block("staging-fsm-fleet@.service", "ini"),
    (FLEET_DOCUMENT, "compose"): lambda: file_block("fleet-compose.yaml", "yaml"),
    ("docs/embedding.md", "before"): lambda: example_block("foreign_orchestrator_before.py"),
    ("docs/embedding.md", "patch"): example_patch,
    ("docs/pipeline.md", "stages"): stage_rows,
    ("docs/test-cases.md", "test-cases"): case_rows,
    **BLOCKS,
}


@pytest.mark.parametrize(("name", "marker"), GENERATED, ids=lambda word: word)
def test_generated_block_is_current(name: str, marker: str, request: pytest.FixtureRequest) -> None:
    """What a document repeats of the code is, byte for byte, what the code says."""
    path = ROOT / name
    begin, end = f"<!-- {marker}:begin -->\n", f"<!-- {marker}:end -->"
    head, _, rest = path.read_text(encoding="utf-8").partition(begin)
    block, _, tail = rest.partition(end)
    wanted = f"\n{GENERATED[name, marker]()}\n"
    if request.config.getoption("--rewrite"):
        path.write_text(f"{head}{begin}{wanted}{end}{tail}", encoding="utf-8")
        block = wanted

    assert block == wanted


def test_no_marker_is_forgotten() -> None:
    """Every pair of markers in a document has a generator, and every generator its markers."""
    found = {
        (name, marker)
        for name in DOCUMENTS
        for marker in re.findall(r"<!-- (\S+):begin -->", (ROOT / name).read_text("utf-8"))
    }

    assert found == set(GENERATED)


def section(name: str, title: str) -> str:
    """Return the text of one section of a document, up to the next heading."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"{name} has no section {title!r}"
    return found.group(1)


def first_cells(text: str) -> list[str]:
    """Return the first cell of each row of the tables in `text`, without its back quotes."""
    rows = re.findall(r"^\| (.+?) \|", text, re.MULTILINE)
    return [cell.strip("`") for cell in rows if cell.startswith("`")]


def listed(text: str) -> list[str]:
    """Return the terms that a list explains: - `TERM`: ..."""
    return re.findall(r"^- `([^`]+)`: ", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("title", "members"),
    [
        ("States", State),
        ("Events", Event),
        ("Effects", Effect),
        ("Verdicts", Verdict),
        ("Rulings", Ruling),
        ("Comparisons", Comparison),
        ("Alerts", AlertKind),
    ],
)
def test_glossary_explains_the_vocabulary(title: str, members: Iterable[str]) -> None:
    """The glossary explains every member of a vocabulary, in its order, and no other word."""
    assert listed(section("docs/glossary.md", title)) == [str(member) for member in members]


def test_operators_are_told_of_every_state() -> None:
    """The operator's page says of every state, in its order, what it means and what to do."""
    assert first_cells(section("docs/operating.md", "States")) == [str(state) for state in State]


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_statements_for_operators_begin_a_job_anew(
    dialect: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """What an operator is told to type removes an attempt, keeps the rest, and queues the job."""
    document = (ROOT / "docs/operating.md").read_text(encoding="utf-8")
    removal, queueing = re.findall(r"^UPDATE jobs SET .*;$", document, re.MULTILINE)
    [there] = re.findall(r"In PostgreSQL the first one sets `(.*?)`", document)
    url = f"sqlite:///{tmp_path}/jobs.db"
    if dialect == "postgresql":
        url = request.getfixturevalue("postgres_url")
        removal = removal.replace("json_remove(metadata, '$.staging_runner')", there)
    store, now = SqlHostStore(open_database(url)), SystemClock().now()
    store.create_schema()
    store.add_repository("shop", tmp_path)
    for number in range(17):
        store.add_work_item(WorkItem("shop", f"WI-{number}", STAGE, 3, None), "deployer", now)
    store.claim_next(now, "gone", 17)
    with store.engine.begin() as connection:
        theirs = {"staging_runner": {"version": "damaged"}, "theirs": [1, 2]}
        kept = sa.text("UPDATE jobs SET metadata = :theirs WHERE id = 17")
        connection.execute(kept, {"theirs": json.dumps(theirs)})
        for statement in (removal, queueing):
            assert connection.exec_driver_sql(statement).rowcount == 1
    job = store.claim_next(now, "next", 17)
    store.engine.dispose()

    assert job is not None
    assert json.loads(job.metadata) == {"theirs": [1, 2]}


def test_glossary_names_every_reason() -> None:
    """The glossary names every reason, in the order of the vocabulary."""
    named = re.findall(r"`(\w+)`", section("docs/glossary.md", "Reasons"))

    assert named == [str(reason) for reason in Reason]


def test_every_rule_has_its_origin() -> None:
    """For each rule of the judgement the documentation says where it comes from."""
    text = (ROOT / "docs/judging.md").read_text(encoding="utf-8")

    assert re.findall(r"^### (J\d\d)\b", text, re.MULTILINE) == [rule.id for rule in RULES]


def test_documented_number_of_adoptions_is_the_one_allowed() -> None:
    """The page on supervision says after how many adoptions a run counts as lost."""
    text = (ROOT / "docs/supervision.md").read_text(encoding="utf-8")
    found = re.findall(r"^After (\d+) adoptions a run counts as lost", text, re.MULTILINE)

    assert found == [str(ADOPTIONS_MAX)]


def test_documented_silence_is_the_one_that_is_waited_for() -> None:
    """How much longer than a run may take an attempt may be silent is said where it is promised."""
    text = (ROOT / "docs/supervision.md").read_text(encoding="utf-8")

    assert "has not moved for a minute longer than a run may take" in text
    assert SILENCE_SECONDS == 60


def test_suites_file_reference_has_every_key() -> None:
    """The reference of the suites file explains every key that is read, in its order."""
    explained = first_cells(section("docs/configuration.md", "Keys of a suite"))

    assert explained == [field.name for field in attrs.fields(SuiteEntry)]


@pytest.mark.parametrize(("title", "names"), [("Columns", COLUMNS), ("Status words", STATUSES)])
def test_embedding_explains_every_name_to_map(title: str, names: tuple[str, ...]) -> None:
    """The how-to explains every column and status word that a host may map."""
    assert first_cells(section("docs/embedding.md", title)) == list(names)


def test_embedding_explains_every_ruling() -> None:
    """The how-to says for every ruling what the host does with it."""
    explained = first_cells(section("docs/embedding.md", "What a Decision means"))

    assert explained == [ruling.name for ruling in Ruling]


def test_what_a_run_leaves_behind_is_told_in_full() -> None:
    """What may stand in a run's folder is the same for operators as for whoever reads the code."""
    listed = re.findall(r"^ {4}(\S+(?:, \S+)*) {2,}", run_folder.__doc__ or "", re.MULTILINE)
    left = section("docs/supervision.md", "What a run leaves behind")
    rows = re.findall(r"^\| (`runs/.+?) \|", left, re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}

    assert {name for names in listed for name in names.split(", ")} == {
        name.removeprefix("runs/<run>/") for name in told
    }


def test_readme_names_the_layers() -> None:
    """The README's layers and what each may import are those that are enforced."""
    rows = re.findall(
        r"^\| `([^`]+)` \| .+ \| (.+) \|$", section("README.md", "Layers"), re.MULTILINE
    )
    stated = {layer: tuple(re.findall(r"`([^`]+)`", below)) for layer, below in rows}

    assert stated == LAYERS


def test_readme_names_the_exit_codes() -> None:
    """The README's exit codes are those of the command line."""
    rows = re.findall(r"^\| (\d) \| `(\w+)` \|", section("README.md", "Exit codes"), re.MULTILINE)

    assert rows == [(str(code.value), code.name) for code in ExitCode]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_somewhere(name: str) -> None:
    """A relative link leads to a file that is there, and to a heading that is in it."""
    text = (ROOT / name).read_text(encoding="utf-8")
    broken = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        target = (ROOT / name).parent / file if file else ROOT / name
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)

    assert broken == []


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- The foreign orchestrator: what an embedding author gets, run for real.

SUITES = """
[repos.shop]
command = ["python", "-m", "pytest", "-q"]
"""
#: An LLM deployer as bad as they come: it says SUCCESS whatever it is asked.
DEPLOYER = """
import pathlib, sys
folder = pathlib.Path(sys.argv[1])
(folder / "15-staging-log.md").write_text("---\\nstaging_status: SUCCESS\\n---\\nBy the agent.\\n")
"""


@attrs.frozen
class Foreign:
    """The foreign orchestrator in a folder of its own, over a repository `shop`."""

    home: Path

    def work(self, *tickets: str, script: str = "foreign_orchestrator.py", **said: str) -> str:
        """Queue tickets and work until nothing is due; return what the orchestrator printed."""
        variables = {f"ORCH_STAGING_RUNNER_{name}": value for name, value in said.items()}
        ended = subprocess.run(
            [sys.executable, EXAMPLES / script, *tickets],
            cwd=self.home,
            env={
                **os.environ,
                "DEPLOYER": f"{sys.executable} {self.home}/deployer.py",
                **variables,
            },
            capture_output=True,
            text=True,
            check=True,
            timeout=COMMAND_SECONDS,
        )
        return ended.stdout

    def commit(self, test: str) -> None:
        """Commit a suite of one test."""
        (self.home / "shop" / "test_shop.py").write_text(test)
        git(self.home / "shop", "add", ".")
        git(self.home / "shop", "commit", "--quiet", "--message", "Another test.")

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """Return the rows that a query gives on the orchestrator's database."""
        with sqlite3.connect(self.home / "tasks.db") as database:
            return list(database.execute(query))

    def dump(self) -> list[str]:
        """Return the database as SQL, schema and rows."""
        with sqlite3.connect(self.home / "tasks.db") as database:
            return list(database.iterdump())

    def schema(self) -> list[tuple[Any, ...]]:
        """Return every table, index, view and trigger as it was created."""
        return self.ask("SELECT * FROM sqlite_master ORDER BY name")


@pytest.fixture
def foreign(reader: Reader) -> Foreign:
    """Return the foreign orchestrator, with a repository whose one test passes."""
    (reader.home / "suites.toml").write_text(SUITES)
    (reader.home / "deployer.py").write_text(DEPLOYER)
    git(reader.home, "init", "--quiet", "shop")
    foreign = Foreign(reader.home)
    foreign.commit("def test_total():\n    assert 3 + 4 == 7\n")
    return foreign


ON: Final = {"ENABLED": "1", "REPOS": "shop", "SUITES_FILE": "suites.toml"}


def test_foreign_orchestrator_advances_and_rolls_back(foreign: Foreign) -> None:
    """A host with its own names gets both verdicts from suites that ran, on its own schema."""
    foreign.work(script="foreign_orchestrator_before.py")
    schema = foreign.schema()

    passed = foreign.work("shop/T-1", **ON)
    foreign.commit("def test_total():\n    assert 3 + 4 == 8\n")
    failed = foreign.work("shop/T-2", **ON)

    rows = foreign.ask(
        "SELECT ticket, state, json_extract(extra, '$.staging_runner') FROM tasks"
        " WHERE step = 'deploy-staging'"
    )
    ends = [(ticket, state, load_snapshot(json.loads(text)).state) for ticket, state, text in rows]
    assert (passed, failed) == (
        "T-1: deploy-staging -> deploy\n",
        "T-2: deploy-staging -> development\n",
    )
    assert ends == [("T-1", "finished", State.ADVANCED), ("T-2", "finished", State.ROLLED_BACK)]
    assert foreign.schema() == schema


@pytest.mark.parametrize(
    "said",
    [
        {},
        {**ON, "ENABLED": "0"},
        {**ON, "REPOS": "bakery"},
        {"ENABLED": "0", "TIMEOUT_SECONDS": "soon", "SUITES_FILE": "no-such-file"},
    ],
    ids=["unset", "off", "out of scope", "off and invalid"],
)
def test_foreign_orchestrator_without_the_runner_is_what_it_was(
    foreign: Foreign, said: dict[str, str]
) -> None:
    """Switched off or out of scope, the LLM path leaves every byte of the table as ever."""
    foreign.work("shop/T-1", **said)
    with_us = foreign.dump()
    (foreign.home / "tasks.db").unlink()
    foreign.work("shop/T-1", script="foreign_orchestrator_before.py")

    assert with_us == foreign.dump()
    artifact = foreign.home / "tickets" / "shop" / "T-1" / "15-staging-log.md"
    assert artifact.read_text().endswith("By the agent.\n")


def test_foreign_orchestrator_gets_a_deferred_task_back(foreign: Foreign) -> None:
    """A tool error queues the task again in the host's own words, due later, and moves nothing."""
    (foreign.home / "suites.toml").write_text(
        '[repos.shop]\ncommand = ["sh", "-c", "exit 75"]\ntool_exit_codes = [75]\n'
    )
    before = time.time()

    said = foreign.work("shop/T-1", **ON, RETRY_BACKOFF_SECONDS="600")

    [(state, due, extra)] = foreign.ask("SELECT state, due, extra FROM tasks")
    assert (said, state) == ("", "waiting")
    assert due - before >= 600
    assert load_snapshot(json.loads(extra)["staging_runner"]).state is State.DEFERRED

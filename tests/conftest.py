"""What more than one test file needs: a host with a real database and repository, golden files."""

import importlib
import os
import pkgutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol, cast

import pytest
from hypothesis import settings

import postgres
import staging_fsm
from archive import Archive, opened_archive, run_attempts
from desk import AGENT, Desk, made_desk
from hosts import REPO, HostKit, git
from sources import TESTS
from staging_fsm.core.spec import TRANSITIONS
from staging_fsm.effects.clock import SystemClock
from staging_fsm.faces.diagrams import Diagram, svg
from staging_fsm.host.database import open_database
from staging_fsm.host.launcher import Host
from staging_fsm.host.settings import load_host_settings
from staging_fsm.host.store import SqlHostStore
from stand import Stand, made_stand

PROCESSES_MAX: Final = 4
NO_CHROMIUM = "no Chromium was found (Debian's package chromium)"
#: What the transitions that tests recorded as fired are counted by.
FIRED_BY: Final = ("stories", "simulation")
# The same examples on every machine, and no judgement by the clock: a test says what is
# promised, not how fast the machine is that runs it.
settings.register_profile("specification", deadline=None, derandomize=True, database=None)
settings.load_profile("specification")
# Hypothesis takes constants for its examples from every module that is loaded: with all of them
# loaded they are the same in whatever order, and how many processes, the tests are run.
for _module in pkgutil.walk_packages(staging_fsm.__path__, "staging_fsm."):
    importlib.import_module(_module.name)
NO_POSTGRESQL = f"there is no PostgreSQL: set {postgres.VARIABLE}, or install one"
GOLDEN = TESTS / "golden"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return in how many processes the tests run: many of them wait, most of the time."""
    return min(PROCESSES_MAX, 1 + (os.cpu_count() or 1))


class Golden(Protocol):
    """Compares a text with the golden file of that name, or writes it under `--rewrite`."""

    def __call__(self, name: str, text: str, header: str) -> None:
        """Fail unless `tests/golden/<name>` is `header`, as a comment, and `text`, to the byte."""
        ...


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--rewrite` and `--draw-coverage`."""
    parser.addoption("--rewrite", action="store_true", help="write the golden files afresh")
    parser.addoption(
        "--draw-coverage",
        metavar="FILE",
        type=Path,
        help="draw the table as SVG, with how often the stories walked each transition",
    )


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say how many rows of the table were walked, and what was not found."""
    skipped = terminalreporter.getreports("skipped")
    for reason in (NO_POSTGRESQL, NO_CHROMIUM):
        without = [report for report in skipped if reason in str(report.longrepr)]
        if without:
            terminalreporter.write_line(f"{len(without)} tests did not run: {reason}")

    for by in FIRED_BY:
        fired = _fired(terminalreporter, by)
        if fired:
            never = [row.id for row in TRANSITIONS if row.id not in fired]
            terminalreporter.write_line(
                f"transitions fired by {by}: {len(fired)}/{len(TRANSITIONS)}"
                + (f", never fired: {', '.join(never)}" if never else "")
            )
    drawing = config.getoption("--draw-coverage")
    if drawing is not None:
        drawing.write_bytes(svg(Diagram(counts=_fired(terminalreporter, "stories"))).encode())
        terminalreporter.write_line(f"transitions drawn with their counts: {drawing}")


def _fired(terminalreporter: pytest.TerminalReporter, by: str) -> Counter[str]:
    """Add up what tests recorded as fired: they may have run in several processes."""
    fired: Counter[str] = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, counts in report.user_properties:
                if name == f"fired by {by}":
                    fired.update(cast("dict[str, int]", counts))
    return fired


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Return the address of a PostgreSQL database in which schemas may be created."""
    given = os.environ.get(postgres.VARIABLE)
    if given:
        yield given
    elif postgres.binaries() is None:
        pytest.skip(NO_POSTGRESQL)
    else:
        with postgres.own_server() as server:
            server.start()
            yield server.url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """Return the address of an empty schema in PostgreSQL."""
    with postgres.new_schema(postgres_server) as url:
        yield url


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Return the comparison with a golden file; its header says when it may be rewritten."""

    def compare(name: str, text: str, header: str) -> None:
        comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
        wanted = f"{comment}\n{text}"
        path = GOLDEN / name
        if request.config.getoption("--rewrite"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(wanted.encode())

        assert path.is_file(), f"{path} is missing: pytest --rewrite writes it"
        assert path.read_bytes().decode() == wanted

    return compare


@pytest.fixture
def synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return, for each sync of the test's folder to come, the names that were in it."""
    names: list[list[str]] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == tmp_path.stat().st_ino:
            names.append(sorted(path.name for path in tmp_path.iterdir()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    return names


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    """Return a place for real runs."""
    with made_stand(tmp_path) as stand:
        yield stand


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a database, artifacts and logs of three attempts that really ran."""
    folder = tmp_path_factory.mktemp("audit")
    run_attempts(folder)
    return folder


@pytest.fixture
def archive(ran: Path, tmp_path: Path) -> Iterator[Archive]:
    """Return an archive; files that a test altered are as they were when the next begins."""
    with opened_archive(ran, tmp_path) as archive:
        yield archive


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a git repository with one commit."""
    path = tmp_path / REPO
    path.mkdir()
    git(path, "init", "--quiet", "--initial-branch=main")
    (path / "shop.py").write_text("PRICE = 3\n")
    git(path, "add", ".")
    git(path, "commit", "--quiet", "-m", "The shop opens.")
    return path


@pytest.fixture
def make_host(tmp_path: Path, repository: Path) -> Callable[..., HostKit]:
    """Return a maker of hosts; its keywords are `ORCH_*` settings without the prefix."""

    def make(agent: str = "", **settings: str) -> HostKit:
        variables = {f"ORCH_{name.upper()}": value for name, value in settings.items()}
        variables.setdefault("ORCH_LOG_DIR", str(tmp_path / "agent-logs"))
        if agent:
            script = tmp_path / "agent.py"
            script.write_text(agent)
            variables["ORCH_AGENT_COMMAND"] = f"{sys.executable} {script}"
        store = SqlHostStore(open_database(f"sqlite:///{tmp_path}/orchestrator.db"))
        store.create_schema()
        store.add_repository(REPO, repository)
        host = Host(store, load_host_settings(variables), SystemClock())
        return HostKit(host, store, repository)

    return make


@pytest.fixture
def desk(make_host: Callable[..., HostKit], tmp_path: Path) -> Desk:
    """Return a host whose runner is switched on, with an agent that writes a verdict of its own."""
    return made_desk(make_host(AGENT), tmp_path)

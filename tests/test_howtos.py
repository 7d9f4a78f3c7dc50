"""The hosts of the how-to guides on PostgreSQL, and what the runner leaves of their schemas."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa
import yaml

import postgres
from hosts import git
from sources import ROOT
from staging_fsm.core.spec import State
from staging_fsm.effects.rows import SqlRows
from staging_fsm.faces.exits import ExitCode
from staging_fsm.host.database import open_database

NAMES: Final = {
    "repo": "project",
    "work_item": "ticket",
    "stage": "step",
    "status": "state",
    "not_before": "due",
    "metadata": "extra",
}
STATUSES: Final = {"queued": "waiting", "running": "busy", "cancelled": "dropped"}
DEPLOYER: Final = """
import sys
from pathlib import Path
Path(sys.argv[1], "15-staging-log.md").write_text("---\\nstaging_status: SUCCESS\\n---\\n")
"""


def files_of(document: str) -> Mapping[str, str]:
    """Return the titled files of a document, as a reader saves them."""
    text = (ROOT / "docs" / f"{document}.md").read_text(encoding="utf-8")
    blocks = (block.partition("\n") for block in text.split("```")[1::2])
    return {
        head.partition('title="')[2].rstrip('"'): body
        for head, _, body in blocks
        if 'title="' in head
    }


@pytest.fixture
def site(tmp_path: Path, repository: Path) -> Path:
    """Return a folder with a deployer and a repository `shop` whose only test passes."""
    (repository / "test_shop.py").write_text("def test_total():\n    assert 3 + 4 == 7\n")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "A test.")
    (tmp_path / "deployer.py").write_text(DEPLOYER)
    return tmp_path


def run_host(site: Path, script: str, *tickets: str, **variables: str) -> str:
    """Run a guide's host over some tickets, and return what it printed."""
    environment = {
        **os.environ,
        "DEPLOYER": f"{sys.executable} {site / 'deployer.py'}",
        "ORCH_STAGING_RUNNER_SUITES_FILE": str(site / "suites.toml"),
        "ORCH_STAGING_RUNNER_STATE_DIR": str(site / "state"),
        "ORCH_STAGING_RUNNER_REPOS": "shop",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **variables,
    }
    ended = subprocess.run(
        [sys.executable, script, *tickets],
        cwd=site,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def schema_of(url: sa.URL) -> str:
    """Return the schema as the database's own tool dumps it, without data."""
    if url.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(str(url.database))) as database:
            found = database.execute("SELECT type, name, tbl_name, sql FROM sqlite_master")
            return "\n".join(map(str, found))
    where = postgres.binaries()
    program = shutil.which("pg_dump") if where is None else str(where / "pg_dump")
    assert program is not None
    schema = str(url.query["options"]).partition("search_path=")[2]
    address = url.difference_update_query(["options"]).render_as_string(hide_password=False)
    command = [program, "--schema-only", "--no-owner", f"--schema={schema}", address]
    dumped = subprocess.run(command, capture_output=True, text=True, check=True)
    # A random word in newer dumps, against injection by a hostile server.
    return "\n".join(line for line in dumped.stdout.split("\n") if "restrict" not in line)


@pytest.mark.parametrize("guide", ["howto-django", "howto-sqlalchemy"])
@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_host_of_a_guide_moves_by_its_own_models(
    site: Path, guide: str, dialect: str, request: pytest.FixtureRequest
) -> None:
    """A guide's host advances by its own models in the attempt's transaction.

    A tool error comes back when it is due, and the schema's dump is the same to the byte.
    """
    variables: dict[str, Any] = {}
    url = sa.make_url(f"sqlite:///{site / 'tasks.db'}")
    if dialect == "postgresql":
        url = sa.make_url(request.getfixturevalue("postgres_url"))
        variables = {
            "PGHOST": url.query.get("host", url.host),
            "PGDATABASE": url.database,
            "PGUSER": url.username,
            "PGOPTIONS": url.query["options"],
            "DATABASE_URL": url.set(drivername="postgresql+psycopg").render_as_string(
                hide_password=False
            ),
        }
    for name, body in files_of(guide).items():
        if name != "deployer.py":
            (site / name).write_text(body)
    run_host(site, "project.py", "shop/T-1", **variables)
    before = schema_of(url)
    variables["ORCH_STAGING_RUNNER_ENABLED"] = "1"

    advanced = run_host(site, "project.py", "shop/T-2", **variables)
    (site / "suites.toml").write_text(
        '[repos.shop]\ncommand = ["sh", "-c", "exit 75"]\ntool_exit_codes = [75]\n'
    )
    deferred = run_host(site, "project.py", "shop/T-3", **variables)

    engine = open_database(url.render_as_string(hide_password=False))
    rows = SqlRows(engine, "tasks", NAMES, STATUSES)
    attempts = {row.work_item: row for row in rows.attempts()}
    engine.dispose()
    assert schema_of(url) == before
    assert (advanced, deferred) == ("T-2: deploy-staging -> deploy\n", "")
    snapshots = {name: row.snapshot() for name, row in attempts.items()}
    states = {name: snapshot and snapshot.state for name, snapshot in snapshots.items()}
    assert states == {"T-2": State.ADVANCED, "T-3": State.DEFERRED}
    assert [attempts[name].status for name in ("T-2", "T-3")] == ["finished", "queued"]
    assert attempts["T-3"].not_before is not None


def commands_of(found: Any) -> Iterator[str]:
    """Yield the commands of a workflow that start the runner, wherever they stand in it."""
    if isinstance(found, str) and found.startswith("staging-fsm "):
        yield found
    elif isinstance(found, dict):
        yield from (command for part in found.values() for command in commands_of(part))
    elif isinstance(found, list):
        yield from (command for part in found for command in commands_of(part))


@pytest.mark.parametrize("workflow", [".github/workflows/staging.yml", ".gitlab-ci.yml"])
@pytest.mark.parametrize(
    ("test", "code"),
    [
        ("def test_total(): assert 3 + 4 == 7", ExitCode.ADVANCED),
        ("def test_total(): assert 3 + 4 == 8", ExitCode.ROLLED_BACK),
        # Nothing to run: that is no verdict on the code.
        ("", ExitCode.FAILED_CLOSED),
    ],
)
def test_workflow_says_by_its_exit_code_whose_move_it_is(
    repository: Path, tmp_path: Path, workflow: str, test: str, code: ExitCode
) -> None:
    """The command of each workflow ends with the exit code that the guide says."""
    (command,) = commands_of(yaml.safe_load(files_of("howto-ci")[workflow]))
    (repository / "test_shop.py").write_text(test)
    (repository / ".gitignore").write_text("staging\n")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "A test.")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "GITHUB_RUN_ID": "17",
        "GITHUB_RUN_ATTEMPT": "1",
        "CI_JOB_ID": "17",
        "ORCH_STAGING_RUNNER_STATE_DIR": str(tmp_path / "state"),
        "ORCH_STAGING_RUNNER_RETRY_BACKOFF_SECONDS": "0.01",
    }

    ended = subprocess.run(
        ["bash", "-e", "-c", command],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == code, ended.stdout + ended.stderr
    assert list((repository / "staging").glob("*/15-staging-log.md"))

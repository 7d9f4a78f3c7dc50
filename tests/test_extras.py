"""Optional parts: each says in the same words what to install, before anything is done."""

import logging
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from sources import ROOT
from staging_fsm.core.config import variable_name
from staging_fsm.faces.cli import main
from staging_fsm.faces.exits import ExitCode
from staging_fsm.faces.extras import EXTRAS
from staging_fsm.host.database import open_database
from staging_fsm.host.store import SqlHostStore


@pytest.mark.parametrize("extra", EXTRAS)
def test_extra_brings_what_is_looked_for(extra: str) -> None:
    """Whatever package an optional part looks for is one that its extra installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    brought = [re.split(r"[\[<>=]", it)[0] for it in project["optional-dependencies"][extra]]

    assert {name.replace("_", "-") for name in EXTRAS[extra]} <= set(brought)


@pytest.mark.parametrize(
    ("extra", "command"),
    [
        ("attest", ["attest", "1"]),
        ("demo", ["demo"]),
        ("postgres", ["queue", "--db", "postgresql://me@127.0.0.1:1/none"]),
        ("web", ["serve"]),
    ],
)
def test_part_that_is_not_installed_is_refused_in_the_same_words(
    extra: str,
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A command whose packages are missing says which extra brings them, and does nothing."""
    # What a command does to the level ends with the test, as with the command's process.
    caplog.set_level(logging.NOTSET, "staging_fsm")
    monkeypatch.setenv(variable_name("state_dir"), str(tmp_path / "state"))
    monkeypatch.setitem(sys.modules, EXTRAS[extra][-1], None)
    refused = CliRunner().invoke(main, command)

    assert refused.exit_code == ExitCode.DECLINED
    assert refused.stderr == (
        f"staging-fsm: this needs the extra `{extra}`: pip install 'staging-fsm[{extra}]'\n"
    )


def test_alerts_that_cannot_be_sent_are_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`doctor` says which extra sends alerts where there are addresses and no packages for them."""
    monkeypatch.setenv(variable_name("state_dir"), str(tmp_path / "state"))
    monkeypatch.setenv(variable_name("alert_urls"), "json://localhost")
    monkeypatch.setitem(sys.modules, "apprise", None)
    found = CliRunner().invoke(main, ["doctor"])

    assert (
        "alerts: this needs the extra `alerts`: pip install 'staging-fsm[alerts]'" in found.stdout
    )


@pytest.mark.parametrize("command", ["fleet-setup", "cancel 1", "recover"])
def test_fleet_without_its_packages_is_refused(
    command: str, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a fleet is asked for without its packages says which extra brings them."""
    monkeypatch.setenv(variable_name("state_dir"), str(tmp_path / "state"))
    engine = open_database(postgres_url)
    SqlHostStore(engine).create_schema()
    with engine.begin() as connection:
        schema = connection.exec_driver_sql("SELECT current_schema()").scalar_one()
        # By this a fleet is known: somebody has set one up.
        connection.exec_driver_sql("CREATE TABLE procrastinate_jobs ()")
    engine.dispose()
    monkeypatch.setenv("ORCH_FLEET_SCHEMA", schema)
    missing = (
        "import sys; sys.modules['procrastinate'] = None; from staging_fsm.faces.cli import main"
    )
    refused = subprocess.run(
        [sys.executable, "-c", f"{missing}; main()", *command.split(), "--db", postgres_url],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (refused.returncode, refused.stderr) == (
        ExitCode.DECLINED,
        "staging-fsm: this needs the extra `fleet`: pip install 'staging-fsm[fleet]'\n",
    )

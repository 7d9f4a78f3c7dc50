"""What a fleet is kept running with: the files in `examples/`, as their tools read them."""

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from fleets import PATIENCE_SECONDS, fleet_stand
from sources import ROOT
from staging_fsm.core.spec import State
from staging_fsm.faces.cli import COMMANDS
from staging_fsm.faces.settings import every_setting

EXAMPLES: Final = ROOT / "examples"
UNIT: Final = EXAMPLES / "staging-fsm-fleet@.service"
COMPOSE: Final = EXAMPLES / "fleet-compose.yaml"
#: What a test puts in the place of what an example says.
ADDRESSES: Final = ("ORCH_DB_URL", "ORCH_STAGING_RUNNER_SUITES_FILE")


def compose() -> dict[str, Any]:
    """Return the Compose file."""
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return found


def unit() -> configparser.ConfigParser:
    """Return the systemd unit."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # the documented way to keep case
    parser.read(UNIT, encoding="utf-8")
    return parser


def test_worker_is_started_again_however_it_ends() -> None:
    """Unit and Compose file start a worker again, always and without giving up."""
    assert unit()["Service"]["Restart"] == compose()["services"]["worker"]["restart"] == "always"
    assert unit()["Unit"]["StartLimitIntervalSec"] == "0"


def test_restart_of_a_worker_leaves_its_suites_alone() -> None:
    """The unit ends the worker and nobody else: its supervisors go on."""
    assert unit()["Service"]["KillMode"] == "process"


def test_commands_of_the_examples_are_ours() -> None:
    """Whatever an example starts is a command that there is."""
    started = [unit()["Service"]["ExecStart"].split()]
    started += [
        service["command"] for service in compose()["services"].values() if "command" in service
    ]

    assert {Path(words[0]).name for words in started} == {"staging-fsm"}
    assert {words[1] for words in started} <= {*COMMANDS}


def started_by(folder: Path) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Return each command that the examples start, with what it gets from them."""
    found = {
        name: (service["command"], service["environment"])
        for name, service in compose()["services"].items()
        if "command" in service
    }
    service = unit()["Service"]
    # %S is where systemd keeps the folders that a StateDirectory names.
    name, _, value = service["Environment"].replace("%S", str(folder)).partition("=")
    (folder / service["StateDirectory"]).mkdir()
    found["unit"] = (service["ExecStart"].split(), {name: value})
    return found


def test_commands_of_the_examples_do_their_work(tmp_path: Path, postgres_url: str) -> None:
    """What unit and Compose file start sets a fleet up, works on its jobs, and ends when told to.

    Docker and systemd are not asked: each command is a plain process, in the environment
    that they would give it, but for the addresses of the database and the suites file.
    """
    with fleet_stand(tmp_path, postgres_url) as fleet:
        with fleet.engine.begin() as connection:
            connection.exec_driver_sql(f"DROP SCHEMA {fleet.schema} CASCADE")
        for name, (words, variables) in started_by(tmp_path).items():
            own = fleet.environment(fleet.machine(name))
            theirs = {it: value for it, value in variables.items() if it not in ADDRESSES}
            program = Path(sys.executable).with_name(Path(words[0]).name)
            process = subprocess.Popen([program, *words[1:]], env={**own, **theirs})
            fleet.machine(name).workers.append(process)
            if words[1] != "fleet-setup":
                assert fleet.await_end(fleet.submit("shop", name)).state is State.ADVANCED, name
                process.terminate()

            assert process.wait(PATIENCE_SECONDS) == 0, name


def test_variables_of_the_examples_are_settings() -> None:
    """Whatever an example sets is a setting that there is."""
    known = {setting.name for setting in every_setting()}
    named = re.findall(r"\bORCH_[A-Z_]+\b(?!\*)", UNIT.read_text() + COMPOSE.read_text())

    assert {name for name in named if not name.endswith("_")} <= known


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not there")
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    """`systemd-analyze verify` reads the unit without a word."""
    text = UNIT.read_text(encoding="utf-8")
    here = text.replace("/opt/staging-fsm/bin", os.path.dirname(sys.executable))  # noqa: PTH120  # a text
    (tmp_path / UNIT.name).write_text(here)
    said = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / UNIT.name)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert [line for line in said.stderr.splitlines() if UNIT.stem.rstrip("@") in line] == []
    assert said.returncode == 0

"""Every setting: what is declared of it, its bounds, and that all that is wrong is told at once."""

from pathlib import Path

import pytest

from columns import aligned
from conftest import Golden
from staging_fsm.core.config import load_config
from staging_fsm.core.settings import declared, expand_home
from staging_fsm.faces.settings import every_setting, problems
from staging_fsm.fleet.settings import FleetSettings, load_fleet_settings
from staging_fsm.host.settings import HostSettings, load_host_settings

HEADER = """\
Every setting, its default and its help, as `.env.example` and the docs show them.
`pytest --rewrite` writes this file afresh. Commit that only if the change was meant:
a setting that goes or is renamed makes the configurations that hold it invalid.
"""
DAY = "86400"
#: Number -> its lowest and highest, and texts that are beyond them.
BOUNDS: dict[str, tuple[str, str, list[str]]] = {
    "ORCH_DEVELOPER_RETRIES": ("0", "1000", ["-1", "1001"]),
    "ORCH_RECOVERY_SECONDS": ("0", DAY, ["-1", "86401", "nan", "inf"]),
    "ORCH_MONITOR_PROBES": ("1", "1000", ["-3", "0", "1001"]),
    "ORCH_MONITOR_INTERVAL_SECONDS": ("0", DAY, ["-1", "86401", "nan", "inf"]),
    "ORCH_FLEET_HEARTBEAT_SECONDS": ("0.1", DAY, ["-1", "0", "86401", "nan", "inf"]),
    "ORCH_FLEET_STALLED_SECONDS": ("0.1", DAY, ["-1", "0", "86401", "nan", "inf"]),
    "ORCH_FLEET_SWEEP_SECONDS": ("1", "59", ["0", "60", "-1"]),
}


def test_settings_are_the_golden_settings(golden: Golden) -> None:
    """Names, defaults and help are declared once, and are those that were agreed on."""
    rows = [(setting.name, setting.default, setting.help) for setting in every_setting()]

    golden("settings.txt", aligned(rows), HEADER)


def test_every_default_may_be_written_out() -> None:
    """With every default written out, as in `.env.example`, everything is as with nothing set."""
    said = {setting.name: setting.default for setting in every_setting()}

    assert load_config(said) == load_config({})
    assert load_host_settings(said) == load_host_settings({})
    assert load_fleet_settings(said) == load_fleet_settings({})


def test_defaults_of_host_and_fleet_are_what_they_say() -> None:
    """With nothing set, host and fleet do what is said of each of their settings."""
    host, fleet = load_host_settings({}), load_fleet_settings({})

    assert {it.field: getattr(host, it.field) for it in declared(HostSettings)} == {
        "db_url": "",
        "agent_command": (),
        "developer_retries": 3,
        "recovery_seconds": 60.0,
        "log_dir": Path("agent-logs"),
        "monitor_command": (),
        "monitor_url": "",
        "monitor_probes": 3,
        "monitor_interval_seconds": 10.0,
    }
    assert {it.field: getattr(fleet, it.field) for it in declared(FleetSettings)} == {
        "branch": "{work_item}",
        "shared_dir": None,
        "schema": "staging_engine",
        "heartbeat_seconds": 10.0,
        "stalled_seconds": 90.0,
        "sweep_seconds": 30,
    }


@pytest.mark.parametrize(
    ("name", "text", "low", "high"),
    [
        (name, text, low, high)
        for name, (low, high, beyond) in BOUNDS.items()
        for text in [*beyond, "", "soon"]
    ],
)
def test_number_that_cannot_be_used_is_told_by_its_name(
    name: str, text: str, low: str, high: str
) -> None:
    """A number of host or fleet beyond its bounds, or none, is told of with name and bounds."""
    what = "is not a number" if text in ("", "soon") else "is not"

    assert problems({name: text}) == (
        f"{name}: {text!r} {what} from {float(low):g} to {float(high):g}",
    )


@pytest.mark.parametrize("end", [False, True], ids=["lowest", "highest"])
@pytest.mark.parametrize("name", BOUNDS)
def test_number_at_its_bound_is_taken(name: str, *, end: bool) -> None:
    """A number of host or fleet at its lowest or highest is none that cannot be used."""
    low, high, _ = BOUNDS[name]
    said = {name: high if end else low}

    assert [it for it in problems(said) if not it.endswith("ORCH_FLEET_STALLED_SECONDS")] == []


@pytest.mark.parametrize(("stalled", "is_refused"), [("3", False), ("2.9", True)])
def test_worker_that_misses_one_heartbeat_is_not_stalled(stalled: str, *, is_refused: bool) -> None:
    """A worker is stalled after three heartbeats at the earliest, or the settings are refused."""
    said = {"ORCH_FLEET_HEARTBEAT_SECONDS": "1", "ORCH_FLEET_STALLED_SECONDS": stalled}
    problem = "ORCH_FLEET_HEARTBEAT_SECONDS: 1 is more than a 3rd of ORCH_FLEET_STALLED_SECONDS"

    assert problems(said) == ((problem,) if is_refused else ())


@pytest.mark.parametrize("name", ["ORCH_AGENT_COMMAND", "ORCH_MONITOR_COMMAND"])
def test_command_is_read_as_a_shell_reads_it(name: str) -> None:
    """A command is words, quoted as for a shell; one that is not is told of, and not shown."""
    field = name.removeprefix("ORCH_").lower()

    assert getattr(load_host_settings({name: "ask 'a b' c"}), field) == ("ask", "a b", "c")
    assert problems({name: "ask --key 's3cret"}) == (
        f"{name}: its value is no command line: no closing quotation",
    )


@pytest.mark.parametrize("name", ["ORCH_AGENT_COMMAND", "ORCH_MONITOR_COMMAND"])
def test_command_holds_no_comment(name: str) -> None:
    """A word of a command that begins with # is a word: nothing behind it is cut off."""
    field = name.removeprefix("ORCH_").lower()
    words = ("ask", "--issue", "#7", "--safe", "#")

    assert getattr(load_host_settings({name: " ".join(words)}), field) == words


@pytest.mark.parametrize("name", ["Robert'); DROP", "Engine", "", "1st", "a" * 52])
def test_schema_is_a_plain_name(name: str) -> None:
    """The engine's schema has a plain lower-case name: it stands in statements as it is."""
    assert problems({"ORCH_FLEET_SCHEMA": name}) == (
        f"ORCH_FLEET_SCHEMA: {name!r} is no plain lower-case name",
    )
    assert load_fleet_settings({"ORCH_FLEET_SCHEMA": "a" * 51}).schema == "a" * 51


def test_everything_that_is_wrong_is_told_at_once() -> None:
    """What is wrong with runner, host and fleet is told together, each by its variable."""
    said = {
        "ORCH_FLEET_SWEEP_SECOND": "5",
        "ORCH_FLEET_SWEEP_SECONDS": "x",
        "ORCH_MONITOR_PROBES": "-3",
        "ORCH_DEVELOPER_RETRIES": "many",
        "ORCH_STAGING_RUNNER_INFRA_RETRIES": "many",
        "ORCH_WORK_ITEM_DIR": "somebody else's",
    }

    assert problems(said) == (
        "ORCH_STAGING_RUNNER_INFRA_RETRIES: 'many' is not a number from 0 to 20",
        "ORCH_DEVELOPER_RETRIES: 'many' is not a number from 0 to 1000",
        "ORCH_MONITOR_PROBES: '-3' is not from 1 to 1000",
        "ORCH_FLEET_SWEEP_SECONDS: 'x' is not a number from 1 to 59",
        "ORCH_FLEET_SWEEP_SECOND is not a known setting",
    )


def test_path_begins_in_the_home_that_stands_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any path may begin with `~`: the HOME beside the setting, not that of whoever reads it."""
    monkeypatch.setenv("HOME", "/home/the-process")
    names = [setting.name for setting in every_setting() if setting.is_path]
    said = {**dict.fromkeys(names, " ~/papers "), "HOME": "/home/fleet"}

    assert load_config(said).state_dir == Path("/home/fleet/papers")
    assert load_host_settings(said).log_dir == Path("/home/fleet/papers")
    assert load_fleet_settings(said).shared_dir == Path("/home/fleet/papers")
    assert load_fleet_settings({**said, "ORCH_FLEET_BRANCH": "~/x"}).branch == "~/x"
    assert problems({**said, "HOME": ""}) == tuple(
        f"{name}: '~/papers' is in no known home folder: write it out, or set HOME"
        for name in names
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [("~", "/h"), (" ~/a/~ ", "/h/a/~"), ("~a/b", "~a/b"), ("/a/b", "/a/b"), ("a", "a"), (" ", "")],
)
def test_only_a_leading_tilde_is_a_home(text: str, expected: str) -> None:
    """Only a `~` of its own at the beginning means a home, and only one that is absolute."""
    assert expand_home(text, {"HOME": "/h"}) == expected
    assert expand_home(text, {"HOME": "h"}) == text.strip()


def test_secrets_are_declared() -> None:
    """What may hold a password or a key is declared a secret, which nobody is shown."""
    assert {setting.name for setting in every_setting() if setting.is_secret} == {
        "ORCH_STAGING_RUNNER_ALERT_URLS",
        "ORCH_STAGING_RUNNER_HTTP_TOKEN",
        "ORCH_DB_URL",
        "ORCH_AGENT_COMMAND",
        "ORCH_MONITOR_COMMAND",
        "ORCH_MONITOR_URL",
    }

"""The configuration: each setting and its bounds, all problems at once, a strict suites file."""

from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from staging_fsm.core.config import (
    INFRA_RETRIES_MAX,
    PREFIX,
    RunnerConfig,
    alert_urls,
    is_switched_off,
    load_config,
    variable_name,
)
from staging_fsm.core.errors import ConfigInvalidError
from staging_fsm.core.plan import PRESETS, Budget, Preset, SuitePlan, Workspace
from staging_fsm.core.settings import declared
from staging_fsm.core.suites import SuiteEntry, SuitesConfig, budget_of, parse_suites

#: The load of the machine must not decide.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

FIELDS = list(RunnerConfig.__annotations__)
DAY = 86_400
#: Setting -> what it becomes at its lowest and highest, and texts that are beyond them.
BOUNDS: dict[str, tuple[str, str, list[str]]] = {
    "timeout_seconds": ("0.1", str(DAY), ["0.09", "0", "-1", "86400.1", "inf", "nan"]),
    "kill_grace_seconds": ("0", "3600", ["-0.1", "3600.1", "nan", "-inf"]),
    "infra_retries": ("0", str(INFRA_RETRIES_MAX), ["-1", str(INFRA_RETRIES_MAX + 1)]),
    "retry_backoff_seconds": ("0", str(DAY), ["-0.1", "86400.1", "nan"]),
    "retry_backoff_max_seconds": ("0", str(DAY), ["-0.1", "86400.1", "nan"]),
    "idle_timeout_seconds": ("0", str(DAY), ["-0.1", "86400.1", "nan"]),
    "memory_max_bytes": ("0", str(2**60), ["-1", str(2**62)]),
    "processes_max": ("0", str(2**22), ["-1", str(2**22 + 1)]),
    "open_files_max": ("0", str(2**30), ["-1", str(2**30 + 1)]),
    "file_max_bytes": ("0", str(2**60), ["-1", str(2**62)]),
    "min_tests_share": ("0", "1", ["-0.1", "1.1", "nan"]),
    "run_retention_days": ("0", "36500", ["-1", "36501", "nan"]),
    "log_max_bytes": ("4096", str(2**40), ["4095", "0", "-1", str(2**40 + 1)]),
}
ON = ["1", "true", "yes", "on", "TRUE", "Yes", " on "]
OFF = ["0", "false", "no", "off", "", "FALSE", "Off", " 0 ", " "]
NEITHER = ["2", "enabled", "y", "t", "onn", "1,1", "da", "\N{FULLWIDTH DIGIT ONE}", "-1", "1.0"]
NO_SWITCH = "is neither on (1, true, yes, on) nor off (0, false, no, off)"


def load(**settings_: str) -> RunnerConfig:
    """Return the configuration of settings, named without their prefix."""
    return load_config({variable_name(name): value for name, value in settings_.items()})


def problems_of(**settings_: str) -> tuple[str, ...]:
    """Return what is wrong with settings."""
    with pytest.raises(ConfigInvalidError) as refused:
        load(**settings_)

    said = "; ".join(refused.value.problems)
    assert str(refused.value) == f"invalid configuration: {said}"
    return refused.value.problems


def test_defaults_are_what_they_say() -> None:
    """With nothing set the runner is off, in scope of nothing, and defaults are as shown."""
    config = load_config({})

    assert {name: getattr(config, name) for name in FIELDS} == {
        "enabled": False,
        "repos": frozenset(),
        "shadow": False,
        "suites_file": None,
        "timeout_seconds": 1800.0,
        "kill_grace_seconds": 10.0,
        "infra_retries": 2,
        "retry_backoff_seconds": 30.0,
        "retry_backoff_max_seconds": 900.0,
        "state_dir": None,
        "log_max_bytes": 16 * 1024 * 1024,
        "idle_timeout_seconds": 0.0,
        "memory_max_bytes": 0,
        "processes_max": 0,
        "open_files_max": 0,
        "file_max_bytes": 0,
        "min_tests_share": 0.9,
        "run_retention_days": 30.0,
        "alert_urls": (),
        "attest_key": None,
        "http_token": "",
    }


def test_every_setting_is_named_after_its_field() -> None:
    """A setting's variable is the prefix and its field, and there is none besides."""
    assert PREFIX == "ORCH_STAGING_RUNNER"
    assert [setting.name for setting in declared(RunnerConfig)] == list(map(variable_name, FIELDS))
    assert variable_name("enabled") == "ORCH_STAGING_RUNNER_ENABLED"


def test_configuration_cannot_be_changed() -> None:
    """A configuration that was read stays as it was read."""
    config: Any = load_config({})

    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.enabled = True


@pytest.mark.parametrize("text", [*ON, *OFF])
def test_switch_takes_words_for_on_and_off(text: str) -> None:
    """The kill switch is on for 1, true, yes and on, and off for 0, false, no, off and nothing."""
    assert load(enabled=text).enabled is (text in ON)
    assert is_switched_off({variable_name("enabled"): text}) is (text in OFF)


@pytest.mark.parametrize("text", NEITHER)
def test_switch_takes_no_other_word(text: str) -> None:
    """A kill switch that says neither on nor off is a problem, and not taken for off."""
    assert problems_of(enabled=text) == (f"ORCH_STAGING_RUNNER_ENABLED: {text!r} {NO_SWITCH}",)
    assert not is_switched_off({variable_name("enabled"): text})


def test_switch_that_is_not_set_is_off() -> None:
    """Without a kill switch the runner is off, whatever else is set or wrong."""
    assert is_switched_off({})
    assert is_switched_off({variable_name("timeout_seconds"): "soon", f"{PREFIX}_X": "1"})
    assert not is_switched_off({variable_name("enabled"): "1", f"{PREFIX}_X": "1"})


@pytest.mark.parametrize("end", [False, True], ids=["lowest", "highest"])
@pytest.mark.parametrize("name", BOUNDS)
def test_number_at_its_bound_is_taken(name: str, *, end: bool) -> None:
    """A number at its lowest or highest is taken as it is."""
    low, high, _ = BOUNDS[name]
    text = high if end else low

    assert getattr(load(**{name: text}), name) == float(text)
    assert getattr(load(**{name: f" {text} "}), name) == float(text)


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, (_, _, beyond) in BOUNDS.items() for text in beyond]
)
def test_number_beyond_its_bound_is_refused(name: str, text: str) -> None:
    """A number beyond its bounds, endless or none is a problem that says the bounds."""
    low, high, _ = BOUNDS[name]

    assert problems_of(**{name: text}) == (
        f"{variable_name(name)}: {text!r} is not from {float(low):g} to {float(high):g}",
    )


@pytest.mark.parametrize("text", ["", "soon", "1h", "1,5", "0x10", "1 2", "ten"])
@pytest.mark.parametrize("name", BOUNDS)
def test_what_is_no_number_is_refused(name: str, text: str) -> None:
    """A text that is no number is a problem that says the bounds."""
    low, high, _ = BOUNDS[name]

    assert problems_of(**{name: text}) == (
        f"{variable_name(name)}: {text!r} is not a number from {float(low):g} to {float(high):g}",
    )


@pytest.mark.parametrize("name", ["infra_retries", "log_max_bytes"])
def test_count_is_no_fraction(name: str) -> None:
    """A count that is given as a fraction is a problem."""
    (problem,) = problems_of(**{name: "10000.0"})

    assert "'10000.0' is not a number from" in problem


def test_all_problems_are_said_at_once() -> None:
    """Every wrong value and every unknown name is said, values in the order of the settings."""
    variables = {
        f"{PREFIX}_ENABLE": "1",
        f"{PREFIX}_TIMEOUT": "5",
        variable_name("infra_retries"): "many",
        variable_name("enabled"): "maybe",
        variable_name("timeout_seconds"): "0",
    }

    with pytest.raises(ConfigInvalidError) as refused:
        load_config(variables)

    assert refused.value.problems == (
        f"ORCH_STAGING_RUNNER_ENABLED: 'maybe' {NO_SWITCH}",
        "ORCH_STAGING_RUNNER_TIMEOUT_SECONDS: '0' is not from 0.1 to 86400",
        "ORCH_STAGING_RUNNER_INFRA_RETRIES: 'many' is not a number from 0 to 20",
        "ORCH_STAGING_RUNNER_ENABLE is not a known setting",
        "ORCH_STAGING_RUNNER_TIMEOUT is not a known setting",
    )


@pytest.mark.parametrize("name", ["ENABLE", "enabled", "REPO", "", "ENABLED_"])
def test_unknown_name_with_our_prefix_is_refused(name: str) -> None:
    """A misspelt setting is a problem: it must not be taken for one that is not set."""
    with pytest.raises(ConfigInvalidError) as refused:
        load_config({f"{PREFIX}_{name}": "1"})

    assert refused.value.problems == (f"ORCH_STAGING_RUNNER_{name} is not a known setting",)


@pytest.mark.parametrize(
    "name",
    ["CI", "PATH", "ORCH_DB_URL", "ORCH_STAGING_RUNNERS_X", PREFIX, "XORCH_STAGING_RUNNER_X"],
)
def test_other_names_are_not_ours(name: str) -> None:
    """A variable without our prefix is somebody else's."""
    assert load_config({name: "?"}) == load_config({})


@unhurried
@given(
    st.dictionaries(
        st.sampled_from([setting.name for setting in declared(RunnerConfig)] + [f"{PREFIX}_X"]),
        st.text(max_size=4) | st.sampled_from([*ON, *OFF, "1", "10000", "~", "~x", "nan"]),
    )
)
def test_any_variables_are_a_configuration_or_problems(variables: dict[str, str]) -> None:
    """Whatever the variables say, there is a configuration or a list of problems that name them."""
    problems: tuple[str, ...] | None = None
    try:
        load_config(variables)
    except ConfigInvalidError as error:
        problems = error.problems

    assert problems is None or problems
    assert all(any(name in problem for name in variables) for problem in problems or ())


@pytest.mark.parametrize("token", ["x" * 15, "é" * 20, "a\tb" * 10, "\x7f" * 20])
def test_token_that_could_be_guessed_is_refused(token: str) -> None:
    """What a server asks for has sixteen characters at least, which a header can hold."""
    [problem] = problems_of(http_token=token)

    assert problem == (
        "ORCH_STAGING_RUNNER_HTTP_TOKEN: its value is not a token of at least 16 printable ASCII"
        " characters"
    )
    assert load(http_token="x" * 16).http_token == "x" * 16
    assert load().http_token == ""


@pytest.mark.parametrize(
    "repos", ['"*"', "'*'", '"shop,inn"', '"shop,inn', 'shop,inn"', "shop,'inn'", '"']
)
def test_repository_in_quotes_is_refused(repos: str) -> None:
    """Quotes that were left around the scope make it invalid: no repository would be in it."""
    words = "names a repository in quotes: write the names without"

    assert problems_of(enabled="1", repos=repos) == (f"{PREFIX}_REPOS: {repos!r} {words}",)


def test_name_of_a_repository_is_the_hosts() -> None:
    """A name may hold blanks, quotes and semicolons: it is the host's, and commas end it."""
    config = load(enabled="1", repos="/srv/my shop, the miller's;old")

    assert config.repos == {"/srv/my shop", "the miller's;old"}


@pytest.mark.parametrize(
    ("repos", "expected"),
    [
        ("", set()),
        (" , ,", set()),
        ("shop", {"shop"}),
        ("shop,till", {"shop", "till"}),
        (" shop , till ,", {"shop", "till"}),
        ("*", {"shop", "till", "*", "shop till", "Shop", ""}),
        ("depot, *", {"shop", "till", "*", "shop till", "Shop", ""}),
        ("sh*", set()),
        ("shop till", {"shop till"}),
    ],
)
def test_scope_is_a_list_or_everything(repos: str, expected: set[str]) -> None:
    """Repositories are in scope by their exact name, or all by a star, and only if enabled."""
    candidates = ["shop", "till", "*", "shop till", "Shop", ""]
    on, off = load(enabled="1", repos=repos), load(enabled="0", repos=repos)

    assert {name for name in candidates if on.in_scope(name)} == expected
    assert not any(off.in_scope(name) for name in candidates)


@pytest.mark.parametrize("name", [it.field for it in declared(RunnerConfig) if it.is_path])
def test_path_is_taken_from_home_or_not_at_all(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path may begin with the home folder that the variables name; blanks are no path."""
    monkeypatch.setenv("HOME", "/home/the-process")
    variables = {variable_name(name): "~/staging", "HOME": "/home/somebody"}

    assert getattr(load_config(variables), name) == Path("/home/somebody/staging")
    assert getattr(load(**{name: "/srv/staging"}), name) == Path("/srv/staging")
    assert getattr(load(**{name: "  "}), name) is None


@pytest.mark.parametrize("path", ["~no-such-user/staging", "~/staging", "~"])
def test_path_of_nobody_is_refused(path: str) -> None:
    """A path in a home folder that the variables do not name is a problem."""
    (problem,) = problems_of(state_dir=path)

    assert problem == (
        f"ORCH_STAGING_RUNNER_STATE_DIR: {path!r} is in no known home folder:"
        " write it out, or set HOME"
    )


def test_alert_addresses_are_read_whatever_else_is_wrong() -> None:
    """Who is alerted is known also where the rest of the configuration is invalid."""
    variables = {variable_name("alert_urls"): " json://a  mailto://b\n", f"{PREFIX}_X": "1"}

    assert alert_urls(variables) == ("json://a", "mailto://b")
    assert alert_urls({}) == ()
    assert load(alert_urls="json://a mailto://b").alert_urls == ("json://a", "mailto://b")


def test_budget_is_the_configured_one() -> None:
    """An attempt's budget is what the settings say."""
    config = load(infra_retries="5", retry_backoff_seconds="1.5", retry_backoff_max_seconds="60")

    assert budget_of(config) == Budget(5, 1.5, 60.0)


FULL = """
[default]
command = ["make", "check"]

[repos.shop]
command = ["pytest", "-q"]
preset = "none"
report = "out.xml"
min_tests = 7
max_skipped_ratio = 0.5
tool_exit_codes = [75]
timeout_seconds = 60
kill_grace_seconds = 1.5
idle_timeout_seconds = 5
memory_max_bytes = 1000000
processes_max = 50
open_files_max = 100
file_max_bytes = 2000000
workspace = "in-place"
allow_dirty = true
environment = ["HOME", "LANG"]
"""


def test_suites_file_names_suites() -> None:
    """A repository has its own suite or else the default one, with all that is said of it."""
    suites = parse_suites(FULL)

    assert suites.entry("till") == SuiteEntry(("make", "check"))
    assert suites.entry("shop") == SuiteEntry(
        command=("pytest", "-q"),
        preset=Preset.NONE,
        report="out.xml",
        min_tests=7,
        max_skipped_ratio=0.5,
        tool_exit_codes=(75,),
        timeout_seconds=60.0,
        kill_grace_seconds=1.5,
        idle_timeout_seconds=5.0,
        memory_max_bytes=1_000_000,
        processes_max=50,
        open_files_max=100,
        file_max_bytes=2_000_000,
        workspace=Workspace.IN_PLACE,
        allow_dirty=True,
        environment=("HOME", "LANG"),
    )


@pytest.mark.parametrize("repo", ["bank/shop", "shop/till", "Shop", "shop.git", "sho", ""])
def test_suite_is_that_of_the_exact_name(repo: str) -> None:
    """A repository whose name is only like one that the file names has the default suite."""
    assert parse_suites(FULL).entry(repo) == SuiteEntry(("make", "check"))


@pytest.mark.parametrize("text", ["", "[repos]", '[repos.till]\ncommand = ["make"]'])
def test_repository_without_a_suite_has_none(text: str) -> None:
    """Without a default, a repository that the file does not name has no suite."""
    assert parse_suites(text).entry("shop") is None
    assert parse_suites("") == SuitesConfig()


SHOP = "the suites file: repos.shop"
REFUSED_SUITES = {
    "no TOML": ("command = [", "the suites file is no TOML: "),
    "key twice": ("a = 1\na = 2", "the suites file is no TOML: "),
    "unknown table": ("[suites.shop]\ncommand = ['make']", "the suites file: unknown key suites"),
    "unknown key": (
        "[repos.shop]\ncommand = ['make']\ntimeout = 5",
        f"{SHOP}: unknown key timeout",
    ),
    "unknown key of the default": (
        "[default]\ncommand = ['make']\nretries = 5",
        "the suites file: default: unknown key retries",
    ),
    "no command": ("[repos.shop]\nmin_tests = 1", f"{SHOP}: the key command is missing"),
    "no command of the default": ("[default]", "default: the key command is missing"),
    "command as text": (
        "[repos.shop]\ncommand = 'make check'",
        f"{SHOP}.command: Expected `array`, got `str`",
    ),
    "command of numbers": (
        "[repos.shop]\ncommand = [1]",
        f"{SHOP}.command: Expected `str`, got `int`",
    ),
    "suite as text": ("[repos]\nshop = 'make check'", f"{SHOP} is no table"),
    "suites as text": ("repos = 'make check'", "the suites file: repos is no table"),
    "a number that would be rounded down": (
        f"[repos.shop]\ncommand = ['make']\ntimeout_seconds = {2**53 + 1}",
        f"{SHOP}.timeout_seconds: {2**53 + 1} is no finite number",
    ),
    "a number that would be rounded up": (
        f"[repos.shop]\ncommand = ['make']\ntimeout_seconds = {2**53 + 3}",
        f"{SHOP}.timeout_seconds: {2**53 + 3} is no finite number",
    ),
    "number as text": (
        "[repos.shop]\ncommand = ['make']\nmin_tests = '7'",
        f"{SHOP}.min_tests: Invalid enum value",
    ),
    "truth as number": (
        "[repos.shop]\ncommand = ['make']\nmin_tests = true",
        f"{SHOP}.min_tests: Expected `int",
    ),
    "fraction as number": (
        "[repos.shop]\ncommand = ['make']\nmin_tests = 1.0",
        f"{SHOP}.min_tests: Expected `int",
    ),
    "number as truth": (
        "[repos.shop]\ncommand = ['make']\nallow_dirty = 1",
        f"{SHOP}.allow_dirty: Expected `bool",
    ),
    "no number": (
        "[repos.shop]\ncommand = ['make']\ntimeout_seconds = nan",
        f"{SHOP}.timeout_seconds: nan is no finite number",
    ),
    "endless": (
        "[repos.shop]\ncommand = ['make']\ntimeout_seconds = inf",
        f"{SHOP}.timeout_seconds: inf is no finite number",
    ),
    "exit code as number": (
        "[repos.shop]\ncommand = ['make']\ntool_exit_codes = 75",
        f"{SHOP}.tool_exit_codes: Expected `array",
    ),
    "exit code as text": (
        "[repos.shop]\ncommand = ['make']\ntool_exit_codes = ['75']",
        f"{SHOP}.tool_exit_codes: Expected `int`, got `str`",
    ),
    "environment as text": (
        "[repos.shop]\ncommand = ['make']\nenvironment = 'HOME'",
        f"{SHOP}.environment: Expected `array",
    ),
    "unknown preset": (
        "[repos.shop]\ncommand = ['make']\npreset = 'tox'",
        f"{SHOP}.preset: Invalid enum value 'tox'",
    ),
    "unknown workspace": (
        "[repos.shop]\ncommand = ['make']\nworkspace = 'tmp'",
        f"{SHOP}.workspace: Invalid enum value 'tmp'",
    ),
    "date as text": (
        "[repos.shop]\ncommand = ['make']\nreport = 2030-01-01",
        f"{SHOP}.report: Expected `str",
    ),
}


@pytest.mark.parametrize(
    ("share", "last", "wanted"),
    [
        ("0.9", None, 1),
        ("0.9", 0, 1),
        ("0.9", 1, 1),
        ("0.9", 10, 9),
        ("0.9", 11, 10),
        ("0.5", 300, 150),
        ("1", 300, 300),
        ("0", 300, 1),
    ],
)
def test_tests_that_are_asked_for_follow_those_that_last_passed(
    share: str, last: int | None, wanted: int
) -> None:
    """With `min_tests = "auto"` a share of what last passed is asked for, rounded up."""
    entry = SuiteEntry(("make",), min_tests="auto", report="junit.xml")
    plan = entry.plan(load(min_tests_share=share), last)

    assert (plan.min_tests, plan.tests_last_passed) == (wanted, last)
    assert attrs.evolve(entry, min_tests=7).plan(load(), last) == attrs.evolve(
        plan, min_tests=7, tests_last_passed=None
    )


def test_tests_are_not_asked_for_without_a_report() -> None:
    """Without a report nothing can be counted, and `auto` is refused as any number is."""
    for last in (300, None):
        with pytest.raises(ValueError, match="report"):
            SuiteEntry(("make",), min_tests="auto").plan(load(), last)
    assert SuiteEntry(("make",)).plan(load(), 300).tests_last_passed is None


def test_nothing_is_known_of_a_last_pass_that_nobody_names() -> None:
    """Where nobody says what last passed, one test is asked for, and no pass is made up."""
    plan = SuiteEntry(("make",), min_tests="auto", report="junit.xml").plan(load())

    assert (plan.min_tests, plan.tests_last_passed) == (1, None)


@pytest.mark.parametrize("name", REFUSED_SUITES)
def test_wrong_suites_file_is_refused(name: str) -> None:
    """A suites file that is not exactly right is refused, with what is wrong and where."""
    text, problem = REFUSED_SUITES[name]

    with pytest.raises(ConfigInvalidError) as refused:
        parse_suites(text)

    (said,) = refused.value.problems
    assert problem in said


def test_all_problems_of_a_suites_file_are_said_at_once() -> None:
    """Every problem of every suite is said."""
    text = "[default]\ncommand = 'make'\n[repos.shop]\nmin_tests = '1'\n[repos.till]\ncommand = [1]"

    with pytest.raises(ConfigInvalidError) as refused:
        parse_suites(text)

    assert refused.value.problems == (
        "the suites file: default.command: Expected `array`, got `str`",
        "the suites file: repos.shop.min_tests: Invalid enum value '1'",
        "the suites file: repos.shop: the key command is missing",
        "the suites file: repos.till.command: Expected `str`, got `int` - at `$[0]`",
    )


#: A suite of one line: any key with any value, right or wrong.
toml_suites = st.builds(
    "[{}]\n{} = {}\n".format,
    st.sampled_from(["default", "repos.shop", "repos", "other"]),
    st.sampled_from([field.name for field in attrs.fields(SuiteEntry)]),
    st.sampled_from(["1", "-1.5", "nan", "true", "'a'", "[]", "['a', 1]", "{}", "2030-01-01"]),
)


@unhurried
@given(st.text() | toml_suites)
def test_any_text_is_suites_or_problems(text: str) -> None:
    """Whatever the suites file holds, there are suites or problems."""
    problems: tuple[str, ...] | None = None
    try:
        parse_suites(text)
    except ConfigInvalidError as error:
        problems = error.problems

    assert problems is None or problems


#: What both a setting and a suite can say, each with a number of its own.
OF_EVERY_SUITE = {
    name: float(number)
    for number, name in enumerate(FIELDS, 100)
    if name in attrs.fields_dict(SuitePlan)
}
OF_EVERY_SUITE["log_max_bytes"] = 5000.0
CONFIG = load(**{name: f"{value:g}" for name, value in OF_EVERY_SUITE.items()})


def test_plan_takes_what_is_not_said_from_the_configuration() -> None:
    """Deadline, grace and limits come from the settings where the suite says nothing."""
    plan = SuiteEntry(("make",)).plan(CONFIG)

    assert plan == SuitePlan(("make",), **OF_EVERY_SUITE)  # type: ignore[arg-type]  # numbers


def test_plan_takes_what_is_said_from_the_suite() -> None:
    """Whatever a suite says of itself goes before the settings and the preset."""
    entry = parse_suites(FULL).entry("shop")
    assert entry is not None
    said = attrs.asdict(entry)

    plan = attrs.asdict(entry.plan(CONFIG))

    assert {name: plan[name] for name in said} == said
    assert plan["log_max_bytes"] == OF_EVERY_SUITE["log_max_bytes"]


@pytest.mark.parametrize("name", sorted({*OF_EVERY_SUITE} - {"timeout_seconds", "log_max_bytes"}))
def test_suite_may_say_that_it_has_no_limit(name: str) -> None:
    """A suite that says 0 of a limit or of its grace has none, whatever the settings say."""
    entry = parse_suites(f"[default]\ncommand = ['make']\n{name} = 0").entry("shop")
    assert entry is not None

    no_limit: dict[str, Any] = {**OF_EVERY_SUITE, name: 0}

    assert entry.plan(CONFIG) == SuitePlan(("make",), **no_limit)


@pytest.mark.parametrize(
    ("command", "preset", "expected"),
    [
        (("pytest",), None, Preset.PYTEST),
        (("make",), None, Preset.NONE),
        (("make",), Preset.PYTEST, Preset.PYTEST),
        (("pytest",), Preset.NONE, Preset.NONE),
    ],
)
def test_preset_is_said_or_detected(
    command: tuple[str, ...], preset: Preset | None, expected: Preset
) -> None:
    """The preset is the one that is said, else that of the command; it brings its report."""
    plan = SuiteEntry(command, preset).plan(CONFIG)

    assert (plan.preset, plan.report) == (expected, PRESETS[expected].report)


@pytest.mark.parametrize("preset", Preset)
def test_said_report_goes_before_that_of_the_preset(preset: Preset) -> None:
    """A report that is said is asked for, with any preset."""
    assert SuiteEntry(("make",), preset, report="other.xml").plan(CONFIG).report == "other.xml"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("command = []", "command must name a program"),
        ('command = ["a\\u0000"]', "command must not hold a NUL"),
        ("command = ['make']\nreport = ''", "report must name a file, not ''"),
        ('command = ["make"]\nreport = "a\\u0000"', "report must name a file"),
        ("command = ['make']\nmin_tests = -1", "min_tests must be"),
        ("command = ['make']\nmax_skipped_ratio = 1.5", "max_skipped_ratio must be"),
        ("command = ['make']\ntool_exit_codes = [0]", "tool_exit_codes must be"),
        ("command = ['make']\ntimeout_seconds = 0", "timeout_seconds must be"),
        ("command = ['make']\nkill_grace_seconds = -1", "kill_grace_seconds must be"),
    ],
)
def test_suite_beyond_its_bounds_has_no_plan(text: str, problem: str) -> None:
    """A suite that cannot be run or judged has no plan."""
    entry = parse_suites(f"[default]\n{text}").entry("shop")
    assert entry is not None

    with pytest.raises(ValueError, match=problem):
        entry.plan(CONFIG)


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000 + "]" * 5000], ids=["digits", "depth"])
def test_suites_file_that_no_parser_can_hold_is_a_problem(value: str) -> None:
    """A number or a nesting beyond what can be read is a problem of the file like any other."""
    with pytest.raises(ConfigInvalidError):
        parse_suites(f"[default]\nx = {value}\n")

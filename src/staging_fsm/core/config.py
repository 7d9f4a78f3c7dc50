"""The runner's configuration, declared once. Help, `.env.example` and docs come from here.

Pure: variables come in as a mapping and the suites file as text, both read
afresh at each launch by the caller. Every problem is reported, not the first.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import attrs
import environ
import msgspec

from staging_fsm.core.errors import ConfigInvalidError
from staging_fsm.core.plan import (
    INFRA_RETRIES_MAX,
    PRESETS,
    WITHOUT_REPORT,
    Budget,
    Preset,
    SuitePlan,
    Workspace,
    detect_preset,
)

PREFIX: Final = "ORCH_STAGING_RUNNER"
_YES: Final = frozenset({"1", "true", "yes", "on"})
_NO: Final = frozenset({"0", "false", "no", "off", ""})
_DAY_SECONDS: Final = 86_400
#: What nobody guesses by trying: 16 random characters of base 16 are 64 bits.
TOKEN_CHARACTERS_MIN: Final = 16


@attrs.frozen
class _Problem:
    """Stands in for a value that could not be converted, until all are collected."""

    text: str


def _checked(convert: Callable[[str], Any]) -> Callable[[Any], Any]:
    def collect(value: Any) -> Any:
        try:
            return convert(str(value))
        except ValueError as error:
            return _Problem(f"{value!r} {error}")

    return collect


def _secret(convert: Callable[[str], Any]) -> Callable[[Any], Any]:
    def collect(value: Any) -> Any:
        try:
            return convert(str(value))
        except ValueError as error:
            return _Problem(f"its value {error}")

    return collect


def _switch(text: str) -> bool:
    word = text.strip().lower()
    if word not in _YES | _NO:
        message = "is neither on (1, true, yes, on) nor off (0, false, no, off)"
        raise ValueError(message)
    return word in _YES


def _repos(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())


def _number(kind: type[int] | type[float], low: float, high: float) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            message = f"is not a number from {low:g} to {high:g}"
            raise ValueError(message) from None
        if not low <= value <= high:
            message = f"is not from {low:g} to {high:g}"
            raise ValueError(message)
        return value

    return convert


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _token(text: str) -> str:
    if text and not (len(text) >= TOKEN_CHARACTERS_MIN and text.isascii() and text.isprintable()):
        message = f"is not a token of at least {TOKEN_CHARACTERS_MIN} printable ASCII characters"
        raise ValueError(message)
    return text


def _path(text: str) -> Path | None:
    if text.startswith("~"):
        message = "is in no known home folder: write it out, or set HOME"
        raise ValueError(message)
    return Path(text) if text.strip() else None


def expand_home(path: str, variables: Mapping[str, str]) -> str:
    """Return `path` with a leading `~` replaced by the HOME of `variables`; raises ValueError.

    Not by that of this process: a configuration means the same wherever it is read.
    """
    first, slash, rest = path.partition("/")
    home = variables.get("HOME", "")
    if first == "~" and not home.startswith("/"):
        message = "there is no HOME"
        raise ValueError(message)
    return f"{home}{slash}{rest}" if first == "~" else path


@environ.config(prefix=PREFIX, frozen=True)
class RunnerConfig:
    """`ORCH_STAGING_RUNNER_*`. Off unless enabled."""

    enabled: bool = environ.var(
        "0", converter=_checked(_switch), help="The kill switch: off means the LLM path, untouched."
    )
    repos: frozenset[str] = environ.var(
        "", converter=_checked(_repos), help="Repositories in scope, comma separated; * for all."
    )
    shadow: bool = environ.var(
        "0",
        converter=_checked(_switch),
        help="Shadow mode: the LLM agent stays the producer, and the runner only records.",
    )
    suites_file: Path | None = environ.var(
        "", converter=_checked(_path), help="TOML file that names the suite of each repository."
    )
    timeout_seconds: float = environ.var(
        "1800",
        converter=_checked(_number(float, 0.1, _DAY_SECONDS)),
        help="Deadline of one run of the suite.",
    )
    kill_grace_seconds: float = environ.var(
        "10",
        converter=_checked(_number(float, 0, 3600)),
        help="Time between TERM and KILL for a suite past its deadline.",
    )
    infra_retries: int = environ.var(
        "2",
        converter=_checked(_number(int, 0, INFRA_RETRIES_MAX)),
        help="How often a suite that did not run is tried again.",
    )
    retry_backoff_seconds: float = environ.var(
        "30",
        converter=_checked(_number(float, 0, _DAY_SECONDS)),
        help="Wait before the first retry; doubled for each further one.",
    )
    retry_backoff_max_seconds: float = environ.var(
        "900",
        converter=_checked(_number(float, 0, _DAY_SECONDS)),
        help="Longest wait between two runs.",
    )
    state_dir: Path | None = environ.var(
        "",
        converter=_checked(_path),
        help="Folder of runs, logs and alerts; default: staging-fsm in the user's state folder.",
    )
    log_max_bytes: int = environ.var(
        str(16 * 1024 * 1024),
        converter=_checked(_number(int, 4096, 2**40)),
        help="How much output of a run is kept; head and tail survive.",
    )
    idle_timeout_seconds: float = environ.var(
        "0",
        converter=_checked(_number(float, 0, _DAY_SECONDS)),
        help="How long a suite may print nothing before it is stopped; 0: as long as it likes.",
    )
    memory_max_bytes: int = environ.var(
        "0",
        converter=_checked(_number(int, 0, 2**60)),
        help="How much memory a whole suite may use; 0: no limit.",
    )
    processes_max: int = environ.var(
        "0",
        converter=_checked(_number(int, 0, 2**22)),
        help="How many processes and threads a suite may have at a time; 0: no limit.",
    )
    open_files_max: int = environ.var(
        "0",
        converter=_checked(_number(int, 0, 2**30)),
        help="How many files each process of a suite may have open; 0: as the worker.",
    )
    file_max_bytes: int = environ.var(
        "0",
        converter=_checked(_number(int, 0, 2**60)),
        help="How large a file a suite may write; 0: no limit.",
    )
    min_tests_share: float = environ.var(
        "0.9",
        converter=_checked(_number(float, 0, 1)),
        help="Share of what the last passed run executed that min_tests = auto requires.",
    )
    run_retention_days: float = environ.var(
        "30",
        converter=_checked(_number(float, 0, 36_500)),
        help="How long what an ended run left behind is kept; 0: for ever.",
    )
    alert_urls: tuple[str, ...] = environ.var(
        "",
        converter=_checked(_words),
        help="Apprise addresses that are alerted, separated by blanks.",
    )
    attest_key: Path | None = environ.var(
        "",
        converter=_checked(_path),
        help="Private key in PEM with which `staging-fsm attest` signs.",
    )
    http_token: str = environ.var(
        "",
        converter=_secret(_token),
        help="What `staging-fsm serve` asks for; it must be set to serve beyond this machine.",
    )

    def in_scope(self, repo: str) -> bool:
        """Say whether the runner is switched on for `repo`."""
        return self.enabled and ("*" in self.repos or repo in self.repos)

    def budget(self) -> Budget:
        """Return the budget of a new attempt."""
        return Budget(
            self.infra_retries, self.retry_backoff_seconds, self.retry_backoff_max_seconds
        )


def variable_name(field: str) -> str:
    """Return the environment variable of a field of RunnerConfig."""
    return f"{PREFIX}_{field.upper()}"


def load_config(variables: Mapping[str, str]) -> RunnerConfig:
    """Return the configuration in `variables`.

    Raises ConfigInvalidError with every problem: a value out of its range, and a
    name with our prefix that is not one of ours (a misspelt kill switch must not
    be taken for one that is not set).
    """
    # A worker's variables are the same from launch to launch: read each time, checked once.
    said = {name: value for name, value in variables.items() if _concerns_us(name)}
    return _checked_config(tuple(said.items()))


def _concerns_us(name: str) -> bool:
    return name == "HOME" or name.startswith(PREFIX + "_")


@functools.lru_cache(maxsize=8)
def _checked_config(found: tuple[tuple[str, str], ...]) -> RunnerConfig:
    variables = dict(found)
    said = dict(variables)
    for name in (variable_name("suites_file"), variable_name("state_dir")):
        # What names no home folder that is known is left as it is, and refused as a path.
        with contextlib.suppress(ValueError):
            said[name] = expand_home(said.get(name, "").strip(), variables)
    config: RunnerConfig = environ.to_config(RunnerConfig, environ=said)
    fields = attrs.fields_dict(RunnerConfig)  # type: ignore[arg-type]  # environ.config is an attrs class
    known = {variable_name(field): field for field in fields}
    problems = [
        f"{name}: {getattr(config, field).text}"
        for name, field in known.items()
        if isinstance(getattr(config, field), _Problem)
    ]
    problems += [
        f"{name} is not a known setting"
        for name in sorted(variables)
        if name.startswith(PREFIX + "_") and name not in known
    ]
    if problems:
        raise ConfigInvalidError(problems)
    return config


def is_switched_off(variables: Mapping[str, str]) -> bool:
    """Say whether the kill switch plainly says off, whatever else is wrong with the rest."""
    try:
        return not _switch(variables.get(variable_name("enabled"), ""))
    except ValueError:
        return False


def is_shadow(variables: Mapping[str, str]) -> bool:
    """Say whether shadow mode is plainly on, whatever else is wrong with the rest."""
    try:
        return _switch(variables.get(variable_name("shadow"), ""))
    except ValueError:
        return False


def attest_key(variables: Mapping[str, str]) -> Path | None:
    """Return the key that signs attestations; raises ConfigInvalidError."""
    return load_config(variables).attest_key


def alert_urls(variables: Mapping[str, str]) -> tuple[str, ...]:
    """Return who is alerted, also where the rest of the configuration is invalid."""
    return _words(variables.get(variable_name("alert_urls"), ""))


@attrs.frozen
class Setting:
    """One declared setting, for help and docs."""

    name: str
    default: str
    help: str


def settings() -> tuple[Setting, ...]:
    """Return every declared setting in declaration order."""
    rows: list[dict[str, Any]] = []

    def keep(found: list[dict[str, Any]], **_: object) -> str:
        rows.extend(found)
        return ""

    environ.generate_help(RunnerConfig, formatter=keep, display_defaults=True)
    return tuple(Setting(row["var_name"], row["default"], row["help_str"]) for row in rows)


#: The word for as many tests as the last passed run had, about.
AUTO: Final = "auto"

#: Settings that a suite has where the suites file says nothing else.
OF_EVERY_SUITE: Final = (
    "timeout_seconds",
    "kill_grace_seconds",
    "log_max_bytes",
    "idle_timeout_seconds",
    "memory_max_bytes",
    "processes_max",
    "open_files_max",
    "file_max_bytes",
)


@attrs.frozen
class SuiteEntry:
    """What the suites file may say of one suite. Only `command` is needed."""

    command: tuple[str, ...]
    preset: Preset | None = None
    report: str | None = None
    min_tests: int | Literal["auto"] | None = None
    max_skipped_ratio: float | None = None
    tool_exit_codes: tuple[int, ...] | None = None
    timeout_seconds: float | None = None
    kill_grace_seconds: float | None = None
    idle_timeout_seconds: float | None = None
    memory_max_bytes: int | None = None
    processes_max: int | None = None
    open_files_max: int | None = None
    file_max_bytes: int | None = None
    workspace: Workspace | None = None
    allow_dirty: bool | None = None
    environment: tuple[str, ...] | None = None

    def plan(self, config: RunnerConfig, tests_last_passed: int | None = None) -> SuitePlan:
        """Return the suite plan, with what is not said taken from preset and configuration.

        `tests_last_passed` is what the last passed run of the repository executed.
        Raises ValueError for what does not go together.
        """
        preset = detect_preset(self.command) if self.preset is None else self.preset
        said = {
            field.name: value
            for field in attrs.fields(SuiteEntry)
            if (value := getattr(self, field.name)) is not None
        }
        if self.min_tests == AUTO:
            said["min_tests"] = max(1, math.ceil(config.min_tests_share * (tests_last_passed or 0)))
            said["tests_last_passed"] = tests_last_passed
        plan = SuitePlan(
            **{
                "report": PRESETS[preset].report,
                **{name: getattr(config, name) for name in OF_EVERY_SUITE},
                **said,
                "preset": preset,
            }
        )
        if self.min_tests == AUTO and plan.report is None:
            raise ValueError(WITHOUT_REPORT)
        return plan


@attrs.frozen
class Suites:
    """The suites file: a suite for each repository, and one for all others if `default` is set."""

    default: SuiteEntry | None = None
    repos: Mapping[str, SuiteEntry] = attrs.field(factory=dict)

    def entry(self, repo: str) -> SuiteEntry | None:
        """Return the suite of `repo`, or None if the file names none for it."""
        return self.repos.get(repo, self.default)


@functools.lru_cache(maxsize=8)
def parse_suites(text: str) -> Suites:
    """Return the suites that the TOML `text` names; raises ConfigInvalidError with every problem.

    The file is the orchestrator's own. It is never read from the tree under test:
    the code must not choose its judge. The same text is only parsed once.
    """
    import tomllib  # noqa: PLC0415  # a launch that is declined does not pay for it

    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # Besides its own error tomllib lets through what a huge number or a deep list raises.
        raise ConfigInvalidError([f"the suites file is no TOML: {error}"]) from error
    problems: list[str] = []
    suites = _read_suites(document, problems)
    if problems:
        raise ConfigInvalidError([f"the suites file: {problem}" for problem in problems])
    return suites


def _read_suites(document: dict[str, Any], problems: list[str]) -> Suites:
    fields = [field.name for field in attrs.fields(Suites)]
    problems += [f"unknown key {name}" for name in document if name not in fields]
    default = (
        _read_entry("default", document["default"], problems) if "default" in document else None
    )
    repos = document.get("repos", {})
    if type(repos) is not dict:
        problems.append("repos is no table")
        repos = {}
    entries = {repo: _read_entry(f"repos.{repo}", said, problems) for repo, said in repos.items()}
    known = {repo: entry for repo, entry in entries.items() if entry is not None}
    return Suites(default, MappingProxyType(known))


def _read_entry(where: str, said: object, problems: list[str]) -> SuiteEntry | None:
    """Return what the file says of one suite, or None and what is wrong with it."""
    if type(said) is not dict:
        problems.append(f"{where} is no table")
        return None
    fields = attrs.fields_dict(SuiteEntry)
    found, before = {}, len(problems)
    for name, value in said.items():
        try:
            found[name] = _read_value(fields[name].type, value)
        except KeyError:
            problems.append(f"{where}: unknown key {name}")
        except (ValueError, OverflowError) as error:
            problems.append(f"{where}.{name}: {error}")
    if "command" not in said:
        problems.append(f"{where}: the key command is missing")
    return None if len(problems) > before else SuiteEntry(**found)


def _read_value(kind: Any, said: object) -> Any:
    # Strict: a number given as text, or a list given as one word, is an error.
    value = msgspec.convert(said, kind)
    if type(value) is float and not (math.isfinite(value) and value == said):
        message = f"{said!r} is no finite number that is kept exactly"
        raise ValueError(message)
    return value

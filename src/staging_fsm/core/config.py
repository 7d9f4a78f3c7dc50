"""The runner's configuration, declared once. Help, `.env.example` and docs come from here.

Pure: variables come in as a mapping, read afresh at each launch by the caller. Every
problem is reported, not the first.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import environ

from staging_fsm.core.errors import ConfigInvalidError

PREFIX: Final = "ORCH_STAGING_RUNNER"
_YES: Final = frozenset({"1", "true", "yes", "on"})
_NO: Final = frozenset({"0", "false", "no", "off", ""})
_DAY_SECONDS: Final = 86_400
#: More runs than these no attempt may have: its history is bounded.
INFRA_RETRIES_MAX: Final = 20
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


#: The settings that name a file or a folder, and may begin with `~`.
PATHS: Final = tuple(
    name for name, kind in RunnerConfig.__annotations__.items() if kind == Path | None
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
    for name in map(variable_name, PATHS):
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

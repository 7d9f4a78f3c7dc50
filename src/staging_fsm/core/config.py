"""The runner's configuration, declared once. Help, `.env.example` and docs come from here.

Pure: variables come in as a mapping, read afresh at each launch by the caller.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import environ

from staging_fsm.core.settings import (
    DAY_SECONDS,
    checked,
    load,
    number,
    path_if_any,
    secret,
    switch,
    words,
)

PREFIX: Final = "ORCH_STAGING_RUNNER"
#: More runs than these no attempt may have: its history is bounded.
INFRA_RETRIES_MAX: Final = 20
#: What nobody guesses by trying: 16 random characters of base 16 are 64 bits.
TOKEN_CHARACTERS_MIN: Final = 16
_QUOTES: Final = "\"'"


def _repos(text: str) -> frozenset[str]:
    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    if any(name[0] in _QUOTES or name[-1] in _QUOTES for name in names):
        # Whoever leaves them there, such as `docker --env-file`, means none of them.
        message = "names a repository in quotes: write the names without"
        raise ValueError(message)
    return names


def _token(text: str) -> str:
    if text and not (len(text) >= TOKEN_CHARACTERS_MIN and text.isascii() and text.isprintable()):
        message = f"is not a token of at least {TOKEN_CHARACTERS_MIN} printable ASCII characters"
        raise ValueError(message)
    return text


@environ.config(prefix=PREFIX, frozen=True)
class RunnerConfig:
    """`ORCH_STAGING_RUNNER_*`. Off unless enabled."""

    enabled: bool = environ.var(
        "0", converter=checked(switch), help="The kill switch: off means the LLM path, untouched."
    )
    repos: frozenset[str] = environ.var(
        "", converter=checked(_repos), help="Repositories in scope, comma separated; * for all."
    )
    shadow: bool = environ.var(
        "0",
        converter=checked(switch),
        help="Shadow mode: the LLM agent stays the producer, and the runner only records.",
    )
    suites_file: Path | None = environ.var(
        "",
        converter=checked(path_if_any),
        help="TOML file that names the suite of each repository.",
    )
    timeout_seconds: float = environ.var(
        "1800",
        converter=checked(number(float, 0.1, DAY_SECONDS)),
        help="Deadline of one run of the suite.",
    )
    kill_grace_seconds: float = environ.var(
        "10",
        converter=checked(number(float, 0, 3600)),
        help="Time between TERM and KILL for a suite past its deadline.",
    )
    infra_retries: int = environ.var(
        "2",
        converter=checked(number(int, 0, INFRA_RETRIES_MAX)),
        help="How often a suite that did not run is tried again.",
    )
    retry_backoff_seconds: float = environ.var(
        "30",
        converter=checked(number(float, 0, DAY_SECONDS)),
        help="Wait before the first retry; doubled for each further one.",
    )
    retry_backoff_max_seconds: float = environ.var(
        "900",
        converter=checked(number(float, 0, DAY_SECONDS)),
        help="Longest wait between two runs.",
    )
    state_dir: Path | None = environ.var(
        "",
        converter=checked(path_if_any),
        help="Folder of runs, logs and alerts; default: staging-fsm in the user's state folder.",
    )
    log_max_bytes: int = environ.var(
        str(16 * 1024 * 1024),
        converter=checked(number(int, 4096, 2**40)),
        help="How much output of a run is kept; head and tail survive.",
    )
    idle_timeout_seconds: float = environ.var(
        "0",
        converter=checked(number(float, 0, DAY_SECONDS)),
        help="How long a suite may print nothing before it is stopped; 0: as long as it likes.",
    )
    memory_max_bytes: int = environ.var(
        "0",
        converter=checked(number(int, 0, 2**60)),
        help="How much memory a whole suite may use; 0: no limit.",
    )
    processes_max: int = environ.var(
        "0",
        converter=checked(number(int, 0, 2**22)),
        help="How many processes and threads a suite may have at a time; 0: no limit.",
    )
    open_files_max: int = environ.var(
        "0",
        converter=checked(number(int, 0, 2**30)),
        help="How many files each process of a suite may have open; 0: as the worker.",
    )
    file_max_bytes: int = environ.var(
        "0",
        converter=checked(number(int, 0, 2**60)),
        help="How large a file a suite may write; 0: no limit.",
    )
    min_tests_share: float = environ.var(
        "0.9",
        converter=checked(number(float, 0, 1)),
        help="Share of what the last passed run executed that min_tests = auto requires.",
    )
    run_retention_days: float = environ.var(
        "30",
        converter=checked(number(float, 0, 36_500)),
        help="How long what an ended run left behind is kept; 0: for ever.",
    )
    alert_urls: tuple[str, ...] = environ.var(
        "",
        converter=secret(words),
        help="Apprise addresses that are alerted, separated by blanks.",
    )
    attest_key: Path | None = environ.var(
        "",
        converter=checked(path_if_any),
        help="Private key in PEM with which `staging-fsm attest` signs.",
    )
    http_token: str = environ.var(
        "",
        converter=secret(_token),
        help="What `staging-fsm serve` asks for; it must be set to serve beyond this machine.",
    )

    def in_scope(self, repo: str) -> bool:
        """Say whether the runner is switched on for `repo`."""
        return self.enabled and ("*" in self.repos or repo in self.repos)


def variable_name(field: str) -> str:
    """Return the environment variable of a field of RunnerConfig."""
    return f"{PREFIX}_{field.upper()}"


def load_config(variables: Mapping[str, str]) -> RunnerConfig:
    """Return the configuration in `variables`; raises ConfigInvalidError with every problem.

    A name with our prefix that is none of ours is one: a misspelt kill switch must not
    be taken for one that is not set.
    """
    return load(RunnerConfig, variables, PREFIX)


def is_switched_off(variables: Mapping[str, str]) -> bool:
    """Say whether the kill switch plainly says off, whatever else is wrong with the rest."""
    try:
        return not switch(variables.get(variable_name("enabled"), ""))
    except ValueError:
        return False


def is_shadow(variables: Mapping[str, str]) -> bool:
    """Say whether shadow mode is plainly on, whatever else is wrong with the rest."""
    try:
        return switch(variables.get(variable_name("shadow"), ""))
    except ValueError:
        return False


def alert_urls(variables: Mapping[str, str]) -> tuple[str, ...]:
    """Return who is alerted, also where the rest of the configuration is invalid."""
    return words(variables.get(variable_name("alert_urls"), ""))

"""The suites file: which suite each repository has, and what is asked of it.

The file is the orchestrator's own. It is never read from the tree under test: the code
must not choose its judge. Every problem is reported, not the first.
"""

import functools
import math
import tomllib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import attrs
import msgspec

from staging_fsm.core.config import RunnerConfig
from staging_fsm.core.errors import ConfigInvalidError
from staging_fsm.core.plan import (
    PRESETS,
    WITHOUT_REPORT,
    Budget,
    Preset,
    SuitePlan,
    Workspace,
    detect_preset,
)

#: The word for as many tests as the last passed run had, about.
AUTO: Final = "auto"

#: What a suite takes from the settings where the suites file says nothing: all of one name.
OF_EVERY_SUITE: Final = tuple(
    field.name for field in attrs.fields(SuitePlan) if field.name in RunnerConfig.__annotations__
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
        if self.report is not None and (not self.report or "\0" in self.report):
            # Not a matter of the plan's: one that was bound before has to come to its end.
            message = f"report must name a file, not {self.report!r}"
            raise ValueError(message)
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
class SuitesConfig:
    """The suites file: a suite for each repository, and one for all others if `default` is set."""

    default: SuiteEntry | None = None
    repos: Mapping[str, SuiteEntry] = attrs.field(factory=dict)

    def entry(self, repo: str) -> SuiteEntry | None:
        """Return the suite of `repo`, or None if the file names none for it."""
        return self.repos.get(repo, self.default)


@functools.lru_cache(maxsize=8)
def parse_suites(text: str) -> SuitesConfig:
    """Return the suites that the TOML `text` names; raises ConfigInvalidError with every problem.

    The same text is only parsed once.
    """
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


def _read_suites(document: dict[str, Any], problems: list[str]) -> SuitesConfig:
    fields = [field.name for field in attrs.fields(SuitesConfig)]
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
    return SuitesConfig(default, MappingProxyType(known))


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


def budget_of(config: RunnerConfig) -> Budget:
    """Return the budget of a new attempt."""
    return Budget(
        config.infra_retries, config.retry_backoff_seconds, config.retry_backoff_max_seconds
    )

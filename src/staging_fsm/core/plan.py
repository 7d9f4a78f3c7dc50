"""What an attempt is bound to: the suite, what it is asked for, and its budget.

The plan is fixed when the attempt starts and stored with it, so that neither a
change of configuration nor a crash changes the judge between two runs.
"""

import hashlib
import itertools
import shlex
import sys
from collections.abc import Mapping
from enum import StrEnum, unique
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import attrs

from staging_fsm.core.config import INFRA_RETRIES_MAX
from staging_fsm.core.outcome import REASONS, JudgingPolicy, Reason, Retry
from staging_fsm.core.spec import Event

#: In the suite command this stands for the folder that STAGING_REPORT_DIR names.
REPORT_DIR_PLACEHOLDER: Final = "{report_dir}"
#: The variable that names the run to each process of it, so that all of them can be found.
RUN_VARIABLE: Final = "STAGING_ATTEMPT"
WITHOUT_REPORT: Final = "min_tests and max_skipped_ratio need a report: name one, or take a preset"
EXIT_CODE_MAX: Final = 255
#: What is above it is infinite, or will be where it is a fraction.
_FINITE_MAX: Final = sys.float_info.max


@unique
class Workspace(StrEnum):
    """Where the suite runs."""

    #: A private checkout of exactly the bound commit, removed afterwards.
    WORKTREE = "worktree"
    #: The repository's own folder.
    IN_PLACE = "in-place"


@unique
class Preset(StrEnum):
    """What is known about a kind of suite."""

    NONE = "none"
    PYTEST = "pytest"


#: What every suite gets of the worker's environment; the rest is named in its plan.
BASE_ENVIRONMENT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "USER")


@attrs.frozen
class PresetFacts:
    """Exit codes that are tool errors, and how the suite can be told to leave a report."""

    exit_reasons: Mapping[int, Reason]
    report: str | None = None
    #: The variable with options of the suite, and the option that names its report.
    reporting: tuple[str, str] | None = None


#: 126 and 127 are a shell's "cannot execute" and "not found" (POSIX, 2.8.2); the
#: rest are pytest's (https://docs.pytest.org/en/stable/reference/exit-codes.html).
_SHELL_REASONS: Final = {126: Reason.TOOL_EXIT_CODE, 127: Reason.TOOL_EXIT_CODE}
PRESETS: Final[Mapping[Preset, PresetFacts]] = MappingProxyType(
    {
        Preset.NONE: PresetFacts(_SHELL_REASONS),
        Preset.PYTEST: PresetFacts(
            {
                **_SHELL_REASONS,
                2: Reason.TOOL_EXIT_CODE,
                3: Reason.TOOL_EXIT_CODE,
                4: Reason.USAGE_ERROR,
                5: Reason.NO_TESTS,
            },
            report="junit.xml",
            reporting=("PYTEST_ADDOPTS", "--junit-xml"),
        ),
    }
)

_PYTEST_NAMES: Final = ("pytest", "py.test")
#: With the word `run` they start the program that is named next, like `env` without a word.
_RUNNERS: Final = ("uv", "poetry", "pipenv", "pdm")
#: What their exit codes hide: docs/judging.md, J11.
_HIDING: Final = ("make", "gmake", "npm", "yarn", "pnpm", "tox", "nox")


def detect_preset(command: tuple[str, ...]) -> Preset:
    """Return the preset of a command that plainly is pytest, else NONE."""
    return Preset.NONE if _place_of_pytest(command) is None else Preset.PYTEST


def _place_of_pytest(command: tuple[str, ...]) -> int | None:
    """Return where in a command that plainly is pytest the word for it stands, else None."""
    place = _place_of_program(command)
    if _program_at(command, place) in _PYTEST_NAMES:
        return place
    pairs = enumerate(itertools.pairwise(command), start=1)
    return next((place for place, pair in pairs if pair == ("-m", "pytest")), None)


def _place_of_program(command: tuple[str, ...]) -> int:
    """Return where the program stands that is started, behind launchers without an option."""
    place = 0
    while True:
        launcher = _program_at(command, place)
        if launcher == "env":
            words = command[place + 1 :]
            place += 1 + len([*itertools.takewhile(_is_assignment, words)])
        elif launcher in _RUNNERS and command[place + 1 : place + 2] == ("run",):
            place += 2
        else:
            return place


def _program_at(command: tuple[str, ...], place: int) -> str:
    """Return the name of the program at a place, without its folder; nothing past the end."""
    return "".join(command[place : place + 1]).rpartition("/")[2]


def _is_assignment(word: str) -> bool:
    return "=" in word and not word.startswith("-")


def _positive(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not 0 < value <= _FINITE_MAX:
        message = f"{attribute.name} must be a finite number above 0, not {value!r}"
        raise ValueError(message)


def _not_negative(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not 0 <= value <= _FINITE_MAX:
        message = f"{attribute.name} must be a finite number of at least 0, not {value!r}"
        raise ValueError(message)


def _ratio(_: object, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not 0 <= value <= 1:
        message = f"{attribute.name} must be between 0 and 1, not {value!r}"
        raise ValueError(message)


def _argument_vector(_: object, attribute: "attrs.Attribute[Any]", value: tuple[str, ...]) -> None:
    if not value or not value[0]:
        message = f"{attribute.name} must name a program"
        raise ValueError(message)
    if any("\0" in word for word in value):
        message = f"{attribute.name} must not hold a NUL character"
        raise ValueError(message)


def _exit_codes(_: object, attribute: "attrs.Attribute[Any]", value: tuple[int, ...]) -> None:
    if any(not 1 <= code <= EXIT_CODE_MAX for code in value):
        message = (
            f"{attribute.name} must be exit codes from 1 to {EXIT_CODE_MAX}, not {list(value)}"
        )
        raise ValueError(message)


@attrs.frozen
class SuitePlan:
    """How the suite is run and what its result is asked for.

    `report` is a JUnit file, relative to the run's report folder or absolute;
    None means policy "exit-code": nothing but the exit code is asked.
    """

    command: tuple[str, ...] = attrs.field(validator=_argument_vector)
    preset: Preset = Preset.NONE
    report: str | None = None
    min_tests: int = attrs.field(default=1, validator=_not_negative)
    #: What the last passed run executed, if `min_tests` was made from it.
    tests_last_passed: int | None = None
    max_skipped_ratio: float = attrs.field(default=1.0, validator=_ratio)
    tool_exit_codes: tuple[int, ...] = attrs.field(default=(), validator=_exit_codes)
    timeout_seconds: float = attrs.field(default=1800.0, validator=_positive)
    kill_grace_seconds: float = attrs.field(default=10.0, validator=_not_negative)
    log_max_bytes: int = attrs.field(default=16 * 1024 * 1024, validator=_positive)
    #: The following are limits, and 0 is none.
    idle_timeout_seconds: float = attrs.field(default=0.0, validator=_not_negative)
    #: Of the whole suite, like the number of its processes and threads.
    memory_max_bytes: int = attrs.field(default=0, validator=_not_negative)
    processes_max: int = attrs.field(default=0, validator=_not_negative)
    #: Of each process.
    open_files_max: int = attrs.field(default=0, validator=_not_negative)
    file_max_bytes: int = attrs.field(default=0, validator=_not_negative)
    workspace: Workspace = Workspace.WORKTREE
    #: In place only: run although tracked files differ from the commit.
    allow_dirty: bool = False
    environment: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        """Refuse to be asked for what only a report can show where there is none."""
        if self.report is None and (self.min_tests > 1 or self.max_skipped_ratio < 1):
            raise ValueError(WITHOUT_REPORT)

    def shortfall(self, executed: int) -> str:
        """Return in words how far `executed` tests are from what is required."""
        words = f"{executed} tests were executed, and at least {self.min_tests} are required"
        if self.tests_last_passed is None:
            return words
        return f"{words}: the last passed run of the repository executed {self.tests_last_passed}"

    def command_in(self, reports: Path) -> tuple[str, ...]:
        """Return the command of a run whose report folder is `reports`, as it is started.

        One that plainly is pytest is told right after that word where its report is wanted,
        so that no other pytest is that its tests start, and what it says itself later wins.
        """
        words = [word.replace(REPORT_DIR_PLACEHOLDER, str(reports)) for word in self.command]
        place, asked = _place_of_pytest(self.command), _asked_report(self, reports)
        if place is not None and asked is not None:
            words.insert(place + 1, asked[1])
        return tuple(words)

    def report_in(self, reports: Path) -> Path | None:
        """Return where a run leaves its report whose report folder is `reports`; None for none."""
        return None if self.report is None else reports / self.report

    def judging_policy(self) -> JudgingPolicy:
        """Return what the rule table needs to know of this plan.

        The exit codes of pytest are only those of a command that plainly is pytest: make ends
        with 2 for whatever failed below it, and so does a check of coverage behind the tests.
        """
        configured = dict.fromkeys(self.tool_exit_codes, Reason.TOOL_EXIT_CODE)
        ends_as = Preset.NONE if _place_of_pytest(self.command) is None else self.preset
        return JudgingPolicy(
            exit_reasons={**configured, **PRESETS[ends_as].exit_reasons},
            report_required=self.report is not None,
            min_tests=self.min_tests,
            max_skipped_ratio=self.max_skipped_ratio,
        )


def hiding_program(suite: SuitePlan) -> str | None:
    """Return the program of a suite whose exit code alone hides whether it ran any test, or None.

    None where a report is asked for: a run without one is a tool error then.
    """
    program = _program_at(suite.command, _place_of_program(suite.command))
    return program if suite.report is None and program in _HIDING else None


def _asked_report(suite: SuitePlan, reports: Path) -> tuple[str, str] | None:
    """Return the variable and the option by which a preset's suite is told where to report.

    None where it cannot be told, where its command tells it already, and where no report is
    wanted, or one elsewhere.
    """
    reporting, report = PRESETS[suite.preset].reporting, suite.report
    # A wrapper may be given it within a word: make ARGS=--junitxml=…, or a script of a shell.
    named = any(name in word for word in suite.command for name in ("--junitxml", "--junit-xml"))
    if reporting is None or report is None or named or Path(report).is_absolute():
        return None
    variable, option = reporting
    return variable, f"{option}={reports / report}"


def environment_of(
    suite: SuitePlan, variables: Mapping[str, str], run_id: str, reports: Path
) -> dict[str, str]:
    """Return the variables of a run: those of the worker's that its plan lets through, and its own.

    Of a preset whose suite leaves a report where a variable says so, that variable names the
    one that is wanted where the command does not say where the option for it belongs: every
    process of the suite inherits it.
    """
    names = (*BASE_ENVIRONMENT, *suite.environment)
    environment = {name: variables[name] for name in names if name in variables}
    environment |= {"CI": "true", "STAGING_REPORT_DIR": str(reports), RUN_VARIABLE: run_id}
    asked = _asked_report(suite, reports)
    if asked is not None and _place_of_pytest(suite.command) is None:
        variable, option = asked
        environment[variable] = f"{environment.get(variable, '')} {shlex.quote(option)}".strip()
    return environment


def temporary_folder(variables: Mapping[str, str]) -> str:
    """Return where a suite of a worker with `variables` makes its temporary files.

    The variable for it is one of those that every suite gets, and without it there is POSIX's.
    """
    return variables.get("TMPDIR") or "/tmp"  # noqa: S108  # nothing is made there, only looked at


@attrs.frozen
class Budget:
    """How many runs an attempt has and how long it waits between them."""

    infra_retries: int = attrs.field(default=2)
    backoff_seconds: float = attrs.field(default=30.0, validator=_not_negative)
    backoff_max_seconds: float = attrs.field(default=900.0, validator=_not_negative)

    @infra_retries.validator
    def _check_infra_retries(self, _: object, value: int) -> None:
        if not 0 <= value <= INFRA_RETRIES_MAX:
            message = f"infra_retries must be from 0 to {INFRA_RETRIES_MAX}, not {value}"
            raise ValueError(message)

    @property
    def runs_max(self) -> int:
        """Return how many runs an attempt has at most, whatever happens to them."""
        return 1 + self.infra_retries

    def spend(self, reasons: tuple[Reason, ...]) -> Event:
        """Return BUDGET_LEFT or BUDGET_SPENT after runs that ended for `reasons`, in order."""
        retry = REASONS[reasons[-1]].retry
        spent = (
            len(reasons) >= self.runs_max
            or retry is Retry.NEVER
            or (retry is Retry.ONCE and reasons.count(reasons[-1]) > 1)
        )
        return Event.BUDGET_SPENT if spent else Event.BUDGET_LEFT

    def delay_seconds(self, attempt_id: str, run_number: int) -> float:
        """Return the wait before the run after `run_number`.

        Exponential, capped, with up to a quarter added as jitter. The jitter is
        computed from attempt and run, so a replay waits exactly as long.
        """
        exponential = self.backoff_seconds * 2.0 ** (run_number - 1)
        digest = hashlib.sha256(f"{attempt_id}/{run_number}".encode()).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        return min(self.backoff_max_seconds, exponential * (1 + share / 4))


@attrs.frozen
class Plan:
    """Everything an attempt is bound to."""

    suite: SuitePlan
    budget: Budget
    #: The commit under test, or "unversioned" for a folder without git.
    revision: str


UNVERSIONED: Final = "unversioned"

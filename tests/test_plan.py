"""The plan: what a budget allows, how long it waits, and which plans are refused."""

import itertools
import math
import re
import shlex
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from staging_fsm.core.config import INFRA_RETRIES_MAX
from staging_fsm.core.evidence import Counts, Evidence, EvidenceState
from staging_fsm.core.outcome import (
    REASONS,
    Reason,
    Retry,
    RunFacts,
    Supervision,
    Verdict,
    judge,
)
from staging_fsm.core.plan import (
    BASE_ENVIRONMENT,
    PRESETS,
    REPORT_DIR_PLACEHOLDER,
    RUN_VARIABLE,
    UNVERSIONED,
    Budget,
    Preset,
    SuitePlan,
    Workspace,
    detect_preset,
    environment_of,
)
from staging_fsm.core.spec import Event

#: The load of the machine must not decide.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

LEFT, SPENT = Event.BUDGET_LEFT, Event.BUDGET_SPENT
TOOL_ERRORS = [reason for reason, facts in REASONS.items() if facts.verdict is Verdict.NOT_EXECUTED]
tool_errors = st.sampled_from(TOOL_ERRORS)


def of(retry: Retry) -> list[Reason]:
    """Return the tool errors that may be tried again as often as `retry` says."""
    return [reason for reason in TOOL_ERRORS if REASONS[reason].retry is retry]


def runs_until_spent(budget: Budget, causes: list[Reason]) -> int:
    """Return how many runs there are if they end for `causes`, over and over."""
    for runs in range(1, 10 * INFRA_RETRIES_MAX):
        reasons = tuple(itertools.islice(itertools.cycle(causes), runs))
        if budget.spend(reasons) is SPENT:
            return runs
    pytest.fail("the budget is never spent")


@pytest.mark.parametrize("retries", [0, 1, 2, INFRA_RETRIES_MAX])
@pytest.mark.parametrize("reason", TOOL_ERRORS)
def test_budget_is_spent_as_the_reason_says(reason: Reason, retries: int) -> None:
    """A reason is tried again never, once, or within the budget; and never beyond it."""
    allowed = {Retry.NEVER: 1, Retry.ONCE: 2, Retry.WITHIN_BUDGET: 1 + retries}

    runs = runs_until_spent(Budget(retries), [reason])

    assert runs == min(allowed[REASONS[reason].retry], 1 + retries)


@unhurried
@given(st.integers(0, INFRA_RETRIES_MAX), st.lists(tool_errors, min_size=1, max_size=30))
def test_budget_is_total(retries: int, causes: list[Reason]) -> None:
    """Whatever mix of causes comes, an attempt has at most one run and its retries."""
    budget = Budget(retries)

    assert budget.runs_max == 1 + retries
    assert 1 <= runs_until_spent(budget, causes) <= budget.runs_max


@pytest.mark.parametrize("last", of(Retry.NEVER))
def test_permanent_error_is_not_tried_again(last: Reason) -> None:
    """An error that will happen again spends the budget, whatever came before it."""
    assert Budget(INFRA_RETRIES_MAX).spend((Reason.SPAWN_FAILED, last)) is SPENT


@pytest.mark.parametrize("once", of(Retry.ONCE))
def test_second_deadline_is_no_accident(once: Reason) -> None:
    """What may be tried once more is not tried a third time, whatever came in between."""
    budget = Budget(INFRA_RETRIES_MAX)
    other = Reason.WORKER_LOST

    assert budget.spend((once,)) is LEFT
    assert budget.spend((other, once)) is LEFT
    assert budget.spend((once, other)) is LEFT
    assert budget.spend((once, once)) is SPENT
    assert budget.spend((once, other, other, once)) is SPENT
    assert budget.spend((other, once, once)) is SPENT
    assert budget.spend((other, other, once)) is LEFT
    for another in set(of(Retry.ONCE)) - {once}:
        assert budget.spend((another, once)) is LEFT


def test_budget_that_is_overdrawn_is_spent() -> None:
    """However many runs there were, beyond the budget there is no further one."""
    assert Budget(1).spend((of(Retry.WITHIN_BUDGET)[0],) * 5) is SPENT


def test_every_kind_of_retry_has_its_reasons() -> None:
    """There are tool errors of each kind, and a verdict is never tried again."""
    assert all(of(retry) for retry in Retry)
    assert {REASONS[reason].retry for reason in set(Reason) - set(TOOL_ERRORS)} == {Retry.NEVER}


@pytest.mark.parametrize(
    ("attempt", "run", "seconds"),
    [
        ("7-3f", 1, 34.1002),
        ("7-3f", 2, 62.7339),
        ("7-3f", 3, 140.8079),
        ("8-3f", 1, 30.0543),
        ("7-3f", 6, 900.0),
    ],
)
def test_wait_is_what_it_always_was(attempt: str, run: int, seconds: float) -> None:
    """The wait after a run is computed from attempt and run alone: a replay waits as long."""
    assert Budget(20, 30.0, 900.0).delay_seconds(attempt, run) == pytest.approx(seconds, abs=1e-4)


waits = st.floats(0, 1e6)


@unhurried
@given(waits, waits, st.text(), st.integers(1, INFRA_RETRIES_MAX))
def test_wait_is_bounded(base: float, cap: float, attempt: str, run: int) -> None:
    """A wait is the doubled one with up to a quarter added, and at most the longest."""
    wait = Budget(INFRA_RETRIES_MAX, base, cap).delay_seconds(attempt, run)
    plain = base * 2 ** (run - 1)

    assert min(plain, cap) <= wait <= min(plain * 1.25, cap)


@unhurried
@given(waits, waits, st.text())
def test_wait_never_gets_shorter(base: float, cap: float, attempt: str) -> None:
    """Each wait of an attempt is at least as long as the one before it."""
    budget = Budget(INFRA_RETRIES_MAX, base, cap)
    all_waits = [budget.delay_seconds(attempt, run) for run in range(1, INFRA_RETRIES_MAX + 1)]

    assert all_waits == sorted(all_waits)


def test_waits_of_many_attempts_are_spread() -> None:
    """Attempts that failed together do not come back together."""
    budget = Budget(2, 100.0, 900.0)
    all_waits = sorted(budget.delay_seconds(f"{job}-aa", 1) for job in range(1000))
    gaps = [after - before for before, after in itertools.pairwise(all_waits)]

    assert len(set(all_waits)) == 1000
    assert all_waits[0] < 100.5
    assert all_waits[-1] > 124.5
    assert max(gaps) < 0.5


@pytest.mark.parametrize("retries", [0, INFRA_RETRIES_MAX])
def test_budget_at_its_bounds_is_taken(retries: int) -> None:
    """As many retries as the bounds allow are taken."""
    assert Budget(retries, 0.0, 0.0).runs_max == 1 + retries


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"infra_retries": -1}, f"infra_retries must be from 0 to {INFRA_RETRIES_MAX}, not -1"),
        (
            {"infra_retries": INFRA_RETRIES_MAX + 1},
            f"infra_retries must be from 0 to {INFRA_RETRIES_MAX}, not {INFRA_RETRIES_MAX + 1}",
        ),
        *(
            ({name: value}, f"{name} must be a finite number of at least 0, not {value!r}")
            for name in ("backoff_seconds", "backoff_max_seconds")
            for value in (-0.1, math.nan, math.inf, 10**400)
        ),
    ],
)
def test_budget_beyond_its_bounds_is_refused(changes: dict[str, Any], problem: str) -> None:
    """A budget that is negative, endless or no number is refused in words."""
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}$"):
        Budget(**changes)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"command": ()}, "command must name a program"),
        ({"command": ("",)}, "command must name a program"),
        ({"command": ("", "-q")}, "command must name a program"),
        ({"command": ("make", "a\0b")}, "command must not hold a NUL character"),
        ({"command": ("ma\0ke",)}, "command must not hold a NUL character"),
        ({"min_tests": -1}, "min_tests must be a finite number of at least 0, not -1"),
        *(
            (
                change,
                "min_tests and max_skipped_ratio need a report: name one, or take a preset",
            )
            for change in ({"min_tests": 2}, {"max_skipped_ratio": 0.99})
        ),
        *(
            (
                {"max_skipped_ratio": value},
                f"max_skipped_ratio must be between 0 and 1, not {value}",
            )
            for value in (-0.1, 1.1, math.nan)
        ),
        *(
            (
                {"tool_exit_codes": (75, value)},
                f"tool_exit_codes must be exit codes from 1 to 255, not [75, {value}]",
            )
            for value in (0, -1, 256)
        ),
        *(
            ({name: value}, f"{name} must be a finite number above 0, not {value!r}")
            for name in ("timeout_seconds", "log_max_bytes")
            for value in (0, -1, math.nan, math.inf, 10**400)
        ),
        *(
            (
                {"kill_grace_seconds": value},
                f"kill_grace_seconds must be a finite number of at least 0, not {value!r}",
            )
            for value in (-0.1, math.nan, math.inf, 10**400)
        ),
        *(
            ({name: -1}, f"{name} must be a finite number of at least 0, not -1")
            for name in (
                "idle_timeout_seconds",
                "memory_max_bytes",
                "processes_max",
                "open_files_max",
                "file_max_bytes",
            )
        ),
    ],
)
def test_plan_beyond_its_bounds_is_refused(changes: dict[str, Any], problem: str) -> None:
    """A plan that cannot be run or judged is refused in words that name the field."""
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}$"):
        SuitePlan(**{"command": ("make",), **changes})


def test_words_of_a_plan_are_stored_as_they_are() -> None:
    """What a suites file and a stored plan call things by stays the same for ever."""
    assert (REPORT_DIR_PLACEHOLDER, UNVERSIONED) == ("{report_dir}", "unversioned")
    assert [*Preset] == ["none", "pytest"]
    assert [*Workspace] == ["worktree", "in-place"]


@pytest.mark.parametrize(
    "changes",
    [
        {"command": ("make", "")},
        {"min_tests": 0},
        {"max_skipped_ratio": 0.0, "report": "out.xml"},
        {"max_skipped_ratio": 1.0},
        {"min_tests": 1},
        {"min_tests": 2, "report": "out.xml"},
        {"tool_exit_codes": (1, 255)},
        {"timeout_seconds": 0.1},
        {"kill_grace_seconds": 0.0},
        {"log_max_bytes": 1},
    ],
    ids=str,
)
def test_plan_at_its_bounds_is_taken(changes: dict[str, Any]) -> None:
    """A plan that uses a bound to the full is taken as it is."""
    plan = SuitePlan(**{"command": ("make",), **changes})

    assert {name: getattr(plan, name) for name in changes} == changes


def test_plan_of_a_bare_command_has_careful_defaults() -> None:
    """What is not said is the private checkout, half an hour, and the exit code as evidence."""
    assert attrs.asdict(SuitePlan(("make", "check"))) == {
        "command": ("make", "check"),
        "preset": Preset.NONE,
        "report": None,
        "min_tests": 1,
        "tests_last_passed": None,
        "max_skipped_ratio": 1.0,
        "tool_exit_codes": (),
        "timeout_seconds": 1800.0,
        "kill_grace_seconds": 10.0,
        "log_max_bytes": 16 * 1024 * 1024,
        "idle_timeout_seconds": 0.0,
        "memory_max_bytes": 0,
        "processes_max": 0,
        "open_files_max": 0,
        "file_max_bytes": 0,
        "workspace": Workspace.WORKTREE,
        "allow_dirty": False,
        "environment": (),
    }
    assert Budget() == Budget(2, 30.0, 900.0)


@pytest.mark.parametrize(
    "command",
    [
        "pytest",
        "pytest -q tests",
        "py.test",
        "/usr/bin/pytest",
        ".venv/bin/py.test -x",
        "python -m pytest",
        "/usr/bin/python3 -m pytest -q",
        "python -X dev -m pytest",
        "uv run python -m pytest",
        "env pytest",
        "/usr/bin/env A=1 B=/x/y .venv/bin/pytest -q",
        "env A=1 python -m pytest",
        "uv run pytest",
        "poetry run pytest -x",
        "pipenv run py.test",
        "pdm run /opt/pytest",
        "env A=1 uv run env B=2 pytest",
    ],
)
def test_plain_pytest_is_recognised(command: str) -> None:
    """A command that plainly is pytest gets its preset."""
    assert detect_preset(tuple(command.split())) is Preset.PYTEST


@pytest.mark.parametrize(
    "command",
    [
        "make test",
        "tox -e pytest",
        "echo pytest",
        "python pytest.py",
        "python -m pytester",
        "python -m unittest pytest",
        "python pytest -m",
        "pytest3",
        "pytest/run",
        "my-pytest",
        "env",
        "env A=1",
        "env A=/bin/pytest make",
        "env -i pytest",
        "env --chdir=tests pytest",
        "A=1 pytest",
        "uv run",
        "uv pytest",
        "uv tool run pytest",
        "uv run A=1 pytest",
        "uv run --frozen pytest",
        "run pytest",
        "npm run pytest",
    ],
)
def test_anything_else_is_not_taken_for_pytest(command: str) -> None:
    """A command that only mentions pytest gets no preset."""
    assert detect_preset(tuple(command.split())) is Preset.NONE


def test_policy_asks_what_the_plan_says() -> None:
    """The rules are told what the plan asks for: report, tests, skips and exit codes."""
    plan = SuitePlan(
        ("make",),
        report="out.xml",
        min_tests=7,
        max_skipped_ratio=0.25,
        tool_exit_codes=(1, 75, 255),
    )
    policy = plan.judging_policy()

    assert (policy.report_required, policy.min_tests, policy.max_skipped_ratio) == (True, 7, 0.25)
    assert policy.exit_reasons == {
        **PRESETS[Preset.NONE].exit_reasons,
        1: Reason.TOOL_EXIT_CODE,
        75: Reason.TOOL_EXIT_CODE,
        255: Reason.TOOL_EXIT_CODE,
    }
    assert not SuitePlan(("make",)).judging_policy().report_required


@pytest.mark.parametrize(
    "asked", [{"report": ""}, {"report": "out.xml", "min_tests": 0, "max_skipped_ratio": 1.0}]
)
def test_report_that_is_named_is_asked_for(asked: dict[str, Any]) -> None:
    """A report whose name came out empty, or that need hold no test, is not silently waived."""
    assert SuitePlan(("make",), **asked).judging_policy().report_required


@pytest.mark.parametrize("preset", Preset)
def test_preset_knows_better_than_a_configured_code(preset: Preset) -> None:
    """An exit code that the preset knows keeps the preset's reason."""
    codes = PRESETS[preset].exit_reasons
    plan = SuitePlan(("pytest",), preset=preset, tool_exit_codes=tuple(codes))

    assert plan.judging_policy().exit_reasons == codes


@pytest.mark.parametrize(
    ("command", "preset"),
    [
        ("pytest -q", Preset.PYTEST),
        ("env A=1 uv run pytest", Preset.PYTEST),
        ("timeout 600 python -m pytest", Preset.PYTEST),
        ("make test", Preset.NONE),
        ("tox -e pytest", Preset.NONE),
        ("uv run --frozen pytest", Preset.NONE),
    ],
)
def test_exit_codes_of_pytest_are_those_of_plain_pytest(command: str, preset: Preset) -> None:
    """What a wrapper exits with is its own, whatever preset is said: only plain pytest has 2 to 5.

    Codes that are configured hold for a wrapper too.
    """
    codes = {7: Reason.TOOL_EXIT_CODE, **PRESETS[preset].exit_reasons}
    plan = SuitePlan(tuple(command.split()), Preset.PYTEST, "r.xml", tool_exit_codes=(7,))

    assert plan.judging_policy().exit_reasons == codes


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (Evidence(EvidenceState.READ, Counts(3, 0, 0, 0)), Reason.EXIT_CODE),
        (Evidence(EvidenceState.READ, Counts(3, 1, 0, 0)), Reason.TESTS_FAILED),
        (Evidence(EvidenceState.READ, Counts(3, 0, 0, 3)), Reason.NO_TESTS),
        (Evidence(EvidenceState.MISSING), Reason.REPORT_MISSING),
    ],
)
def test_wrapper_of_pytest_is_judged_by_its_report(
    code: int, evidence: Evidence, reason: Reason
) -> None:
    """A wrapper that fails over a whole report has failed; without one, or a test, it did not run.

    What fails may be another step than the tests: a limit of coverage, a linter.
    """
    plan = SuitePlan(("make", "test"), Preset.PYTEST, "r.xml")
    facts = RunFacts(
        exit_code=code, log_complete=True, supervision=Supervision.SOUND, evidence=evidence
    )

    assert judge(facts, plan.judging_policy()).reason is reason


def test_shortfall_is_said_in_numbers() -> None:
    """Too few tests are told with what is required, and with the last passed run where known."""
    suite = SuitePlan(("true",), report="r", min_tests=3)

    assert suite.shortfall(1) == "1 tests were executed, and at least 3 are required"
    assert attrs.evolve(suite, tests_last_passed=4).shortfall(1) == (
        "1 tests were executed, and at least 3 are required:"
        " the last passed run of the repository executed 4"
    )


REPORTS = Path("/state/re ports/7-a.1")
#: What a run is told whatever its plan is.
TOLD = {"CI": "true", "STAGING_REPORT_DIR": str(REPORTS), RUN_VARIABLE: "7-a.1"}


def test_suite_gets_what_its_plan_names_and_nothing_else() -> None:
    """A suite has the base of the worker's variables, what its plan names of them, and the run's.

    A variable that names the run or its report folder is the run's own, whatever the worker has.
    """
    worker = dict.fromkeys((*BASE_ENVIRONMENT, "TOKEN", "SECRET", *TOLD), "the worker's")
    plan = SuitePlan(("suite",), environment=("TOKEN", "ABSENT"))
    given = environment_of(plan, worker, "7-a.1", REPORTS)

    assert given == dict.fromkeys((*BASE_ENVIRONMENT, "TOKEN"), "the worker's") | TOLD


def test_every_suite_has_the_same_base() -> None:
    """Where to find programs and to put files, whose they are, language and zone; and its run."""
    base = {"PATH", "HOME", "TMPDIR", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ"}
    worker = dict.fromkeys((*base, "PYTHONPATH", "ORCH_DB", "SHELL"), "the worker's")
    given = environment_of(SuitePlan(("suite",)), worker, "7-a.1", REPORTS)

    assert given.keys() == base | {"CI", "STAGING_REPORT_DIR", "STAGING_ATTEMPT"}


@pytest.mark.parametrize(
    ("plan", "inherited", "expected"),
    [
        ({"report": "junit.xml"}, None, [f"--junit-xml={REPORTS}/junit.xml"]),
        ({"report": "junit.xml"}, "-x", ["-x", f"--junit-xml={REPORTS}/junit.xml"]),
        ({"report": "junit.xml", "preset": Preset.NONE}, "-x", ["-x"]),
        ({"report": "/elsewhere/junit.xml"}, "-x", ["-x"]),
        ({}, "-x", ["-x"]),
        ({"command": ("suite", "--junitxml=mine"), "report": "mine"}, "-x", ["-x"]),
        ({"command": ("suite", "--junit-xml", "mine"), "report": "mine"}, "-x", ["-x"]),
        ({"command": ("suite", "ARGS=--junitxml=mine"), "report": "mine"}, "-x", ["-x"]),
        ({"command": ("suite", "pytest --junit-xml mine"), "report": "mine"}, "-x", ["-x"]),
        (
            {"command": ("suite", "--junit-prefix=unit"), "report": "r"},
            "-x",
            ["-x", f"--junit-xml={REPORTS}/r"],
        ),
    ],
)
def test_preset_asks_a_wrapper_for_the_report_by_a_variable(
    plan: dict[str, Any], inherited: str | None, expected: list[str]
) -> None:
    """A pytest that a wrapper starts is told where to report, unless told already, or not to."""
    suite = SuitePlan(
        **{"command": ("suite",), "preset": Preset.PYTEST, "environment": ("PYTEST_ADDOPTS",)}
        | plan
    )
    variables = {} if inherited is None else {"PYTEST_ADDOPTS": inherited}
    given = environment_of(suite, variables, "7-a.1", REPORTS)

    assert shlex.split(given["PYTEST_ADDOPTS"]) == expected
    assert given.keys() == {"PYTEST_ADDOPTS", *TOLD}
    assert suite.command_in(REPORTS) == suite.command


ASKED = f"--junit-xml={REPORTS}/in/r.xml"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("pytest",), ("pytest", ASKED)),
        (("/bin/py.test", "--", "a"), ("/bin/py.test", ASKED, "--", "a")),
        (("pytest", "-m", "pytest"), ("pytest", ASKED, "-m", "pytest")),
        (("python", "-m", "pytest", "-x"), ("python", "-m", "pytest", ASKED, "-x")),
        (
            ("coverage", "run", "-m", "pytest", "-m", "pytest"),
            ("coverage", "run", "-m", "pytest", ASKED, "-m", "pytest"),
        ),
        (("env", "A=1", "pytest", "-x"), ("env", "A=1", "pytest", ASKED, "-x")),
        (("uv", "run", "pytest", "-m", "pytest"), ("uv", "run", "pytest", ASKED, "-m", "pytest")),
        (("pytest", "--basetemp={report_dir}"), ("pytest", ASKED, f"--basetemp={REPORTS}")),
    ],
)
def test_pytest_is_asked_for_its_report_in_its_command(
    command: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    """What plainly is pytest is asked right after that word, and none that it starts is asked.

    The command's own options come later and win. Options of the worker stay as they are.
    """
    suite = SuitePlan(command, Preset.PYTEST, "in/r.xml", environment=("PYTEST_ADDOPTS",))

    assert (suite.command_in(REPORTS), suite.command) == (expected, command)
    assert environment_of(suite, {}, "7-a.1", REPORTS) == TOLD
    given = environment_of(suite, {"PYTEST_ADDOPTS": "-x"}, "7-a.1", REPORTS)
    assert given == {"PYTEST_ADDOPTS": "-x"} | TOLD


@pytest.mark.parametrize(
    "plan",
    [
        {"preset": Preset.NONE},
        {"report": None},
        {"report": "/elsewhere/junit.xml"},
        {"command": ("pytest", "--junitxml=mine")},
        {"command": ("python", "-m", "pytest", "--junit-xml", "mine")},
    ],
)
def test_pytest_that_is_not_asked_is_left_alone(plan: dict[str, Any]) -> None:
    """A command that names a report itself, or of which none or another is wanted, is not added to.

    No variable is set for it either.
    """
    suite = SuitePlan(**{"command": ("pytest",), "preset": Preset.PYTEST, "report": "r"} | plan)

    assert suite.command_in(REPORTS) == suite.command
    assert environment_of(suite, {"PYTEST_ADDOPTS": "-x"}, "7-a.1", REPORTS) == TOLD


def test_options_of_the_worker_reach_no_suite_unasked() -> None:
    """Options that the worker itself was started with are a suite's only where its plan says so."""
    suite = SuitePlan(("suite",), Preset.PYTEST, "r")
    given = environment_of(suite, {"PYTEST_ADDOPTS": "-k smoke"}, "7-a.1", REPORTS)

    assert shlex.split(given["PYTEST_ADDOPTS"]) == [f"--junit-xml={REPORTS}/r"]


def test_variable_that_is_set_to_nothing_is_set() -> None:
    """A variable without a value is told from one that is not there."""
    plan = SuitePlan(("suite",), environment=("EMPTY", "ABSENT"))
    given = environment_of(plan, {"EMPTY": "", "TZ": ""}, "7-a.1", REPORTS)

    assert given == {"EMPTY": "", "TZ": ""} | TOLD


def test_run_reports_where_it_is_told_to() -> None:
    """A report is in the run's own folder unless it is named absolutely; the command names it."""
    command = (
        "suite",
        f"--out={REPORT_DIR_PLACEHOLDER}/a",
        f"{REPORT_DIR_PLACEHOLDER} b {REPORT_DIR_PLACEHOLDER}",
    )
    plan = SuitePlan(command, report="in/junit.xml")

    assert plan.command_in(REPORTS) == ("suite", f"--out={REPORTS}/a", f"{REPORTS} b {REPORTS}")
    assert plan.report_in(REPORTS) == REPORTS / "in" / "junit.xml"
    assert attrs.evolve(plan, report="/a.xml").report_in(REPORTS) == Path("/a.xml")
    assert attrs.evolve(plan, report=None).report_in(REPORTS) is None

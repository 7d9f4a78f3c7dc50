"""What an attempt is bound to, and whether this machine can run it now.

Whatever is raised here is raised before a run is counted: before the first one it
leads to the LLM path.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from staging_fsm.core.config import RunnerConfig
from staging_fsm.core.errors import (
    ConfigInvalidError,
    MachineUnfitError,
    SnapshotRefusedError,
    in_words,
)
from staging_fsm.core.jobs import QUEUED, RUNNING, JobRow, JobRows
from staging_fsm.core.plan import Plan, SuitePlan
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import State
from staging_fsm.core.suites import AUTO, SuiteEntry, SuitesConfig, budget_of, parse_suites

if TYPE_CHECKING:
    from staging_fsm.drive.runner import StagingRunner

#: How many of the newest rows are searched for the last passed run of a repository.
RECENT_ROWS: Final = 500


def read_suites(config: RunnerConfig) -> SuitesConfig:
    """Return the suites that the configured file names; raises ConfigInvalidError."""
    if config.suites_file is None:
        return SuitesConfig()
    try:
        text = config.suites_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalidError([f"the suites file cannot be read: {error}"]) from error
    return parse_suites(text)


def plan_of(runner: "StagingRunner", row: JobRow, config: RunnerConfig) -> Plan:
    """Return what the first attempt at a job is bound to.

    Raises ConfigInvalidError where no suite can be made of what is configured, or rows and
    status cannot be relied on, MachineUnfitError, and what binding the revision raises.
    """
    if runner.misfit is not None:
        raise runner.misfit
    if row.status not in (QUEUED, RUNNING):
        unknown = (
            f"the status of job {row.id} is {row.status!r} while it is launched, so that no"
            " recovery would find it again: map your word for a claimed job to 'running'"
        )
        raise ConfigInvalidError([unknown])
    last_passed = partial(last_passed_tests, runner.engine.rows, runner.stage, row.repo)
    suite = suite_of(row.repo, runner.suites(config).entry(row.repo), config, last_passed)
    where = runner.engine.place(row)
    plan = Plan(suite, budget_of(config), runner.bind(where.repository, suite))
    problem = runner.preflight(where, suite)
    if problem is not None:
        raise MachineUnfitError(problem)
    return plan


def suite_of(
    repo: str,
    entry: SuiteEntry | None,
    config: RunnerConfig,
    last_passed: Callable[[tuple[str, ...]], int | None] = lambda _command: None,
) -> SuitePlan:
    """Return the suite of a repository whose entry is `entry`, None for one that has none.

    `last_passed` is only asked, for its command, where the entry counts on what passed
    last. Raises ConfigInvalidError where no suite can be made of it: what a launch
    declines with, and `doctor` tells before.
    """
    if entry is None:
        raise ConfigInvalidError(
            [f"repository {repo} is in scope, but no suite is configured for it"]
        )
    try:
        return entry.plan(config, last_passed(entry.command) if entry.min_tests == AUTO else None)
    except ValueError as error:
        raise ConfigInvalidError([f"the suite of {repo}: {error}"]) from error


def last_passed_tests(rows: JobRows, stage: str, repo: str, command: tuple[str, ...]) -> int | None:
    """Return what the newest passed run of `command` in `repo` executed, on whatever machine.

    Where none of that command has passed it is the newest of any, and None where there
    is none at all. Rows are what a fleet shares, and they outlive every state folder.
    """
    of_any = None
    for row in rows.recent(RECENT_ROWS, repo):
        with contextlib.suppress(SnapshotRefusedError):
            snapshot = row.snapshot() if row.stage == stage else None
            if snapshot is None or snapshot.state is not State.ADVANCED:
                continue
            if snapshot.last_run.counts is not None:
                executed = snapshot.last_run.counts.executed
                if snapshot.bound_plan.suite.command == command:
                    return executed
                of_any = executed if of_any is None else of_any
    return of_any


def unfitness(runner: "StagingRunner", row: JobRow, snapshot: Snapshot) -> MachineUnfitError | None:
    """Return why no run can be made here now; not to be able to tell is a reason too."""
    try:
        problem = runner.preflight(runner.engine.place(row), snapshot.bound_plan.suite)
    except Exception as error:  # noqa: BLE001  # raised on, it would be met again for ever, uncounted
        problem = in_words(error)
    return None if problem is None else MachineUnfitError(problem)

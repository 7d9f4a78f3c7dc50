"""`staging-fsm run`: one attempt of one repository, to its end, with an exit code for the shell."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import attrs
import click
from rich.console import Console

from staging_fsm.core.config import RunnerConfig, load_config
from staging_fsm.core.errors import RunRefusedError, in_words
from staging_fsm.core.jobs import RUNNING, JobRow
from staging_fsm.core.plan import EXIT_CODE_MAX, UNVERSIONED, Preset, Workspace
from staging_fsm.core.settings import problem_of
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import Event, State
from staging_fsm.core.suites import AUTO, OF_EVERY_SUITE, SuiteEntry
from staging_fsm.drive.engine import Step
from staging_fsm.drive.rulings import Decision, Ruling
from staging_fsm.drive.runner import StagingRunner
from staging_fsm.effects.worktree import head_revision, is_dirty
from staging_fsm.faces.commands.show import print_end
from staging_fsm.faces.console import PatientConsole
from staging_fsm.faces.exits import ExitCode
from staging_fsm.faces.fleet import refuse_fleet
from staging_fsm.faces.options import db_option, json_option
from staging_fsm.faces.progress import Progress
from staging_fsm.faces.session import (
    AttemptDriver,
    Session,
    name_problem,
    new_work_item,
    one_suite,
    open_session,
    place_in,
    staging_job,
    switched_on,
    work_item_problem,
)
from staging_fsm.faces.streams import lossy
from staging_fsm.host.launcher import end_without_agent

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Names = TypeVar("_Names", str, tuple[str, ...], None)
_EXIT_CODES = {
    State.ADVANCED: ExitCode.ADVANCED,
    State.ROLLED_BACK: ExitCode.ROLLED_BACK,
    State.FAILED_CLOSED: ExitCode.FAILED_CLOSED,
    State.LLM_FALLBACK: ExitCode.DECLINED,
    State.CANCELLED: ExitCode.CANCELLED,
}


def _min_tests(_context: object, _option: object, said: str | None) -> int | str | None:
    if said is None or said == AUTO:
        return said
    message = f"{said!r} is neither a number of at least 0 nor {AUTO}"
    try:
        number = int(said)
    except ValueError as error:
        raise click.BadParameter(message) from error
    if number < 0:
        raise click.BadParameter(message)
    return number


def _of_setting(_context: object, option: click.Parameter, said: float | None) -> float | None:
    """Refuse what the setting of the option's name does not take, by the name that was typed."""
    problem = None if said is None else problem_of(RunnerConfig, str(option.name), said)
    if problem is not None:
        raise click.BadParameter(problem)
    return said


def _setting_option(
    name: str, kind: type[int] | type[float], words: str
) -> Callable[[_Command], _Command]:
    return click.option(name, type=kind, callback=_of_setting, help=words)


def _named(_context: object, _option: object, said: _Names) -> _Names:
    """Refuse an empty name, alone or among several."""
    if said is not None and "" in (said if isinstance(said, tuple) else (said,)):
        raise click.BadParameter(str(name_problem("")))
    return said


class _Folder(click.Path):
    """A folder that is there, by its whole path; an empty name is none, and not the current one."""

    def __init__(self) -> None:
        super().__init__(exists=True, file_okay=False, resolve_path=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail(str(name_problem("")), param, ctx)
        return super().convert(value, param, ctx)


@click.command()
@click.option(
    "--repo",
    required=True,
    type=_Folder(),
    help="Folder under test; a git repository, or any folder.",
)
@click.option("--work-item", metavar="ID", help="Name of the work item; default: a new one.")
@db_option
@_setting_option("--timeout-seconds", float, "Deadline of one run.")
@_setting_option("--kill-grace-seconds", float, "Time between TERM and KILL.")
@_setting_option("--idle-timeout-seconds", float, "Longest silence of a suite; 0: any.")
@_setting_option("--memory-max-bytes", int, "Memory of the whole suite; 0: no limit.")
@_setting_option("--processes-max", int, "Processes and threads of it; 0: no limit.")
@_setting_option("--open-files-max", int, "Open files of each process; 0: as here.")
@_setting_option("--file-max-bytes", int, "Largest file it may write; 0: no limit.")
@_setting_option("--infra-retries", int, "Further runs after tool errors.")
@click.option(
    "--report",
    metavar="FILE",
    callback=_named,
    help="JUnit report, below $STAGING_REPORT_DIR or absolute.",
)
@click.option(
    "--min-tests",
    metavar="N|auto",
    callback=_min_tests,
    help="Fewest executed tests that count as a pass; auto: about as many as the last time.",
)
@click.option(
    "--max-skipped-ratio",
    type=click.FloatRange(0, 1),
    help="Largest share of skipped tests, 0 to 1.",
)
@click.option(
    "--tool-exit-code",
    type=click.IntRange(1, EXIT_CODE_MAX),
    multiple=True,
    help="Exit code that is a tool error.",
)
@click.option(
    "--preset",
    type=click.Choice([preset.value for preset in Preset]),
    help="Kind of suite; default: detected.",
)
@click.option(
    "--workspace",
    type=click.Choice([workspace.value for workspace in Workspace]),
    help="Default: worktree.",
)
@click.option("--allow-dirty", is_flag=True, help="Run although there are uncommitted changes.")
@click.option(
    "--env",
    multiple=True,
    metavar="NAME",
    callback=_named,
    help="Variable the suite gets from yours.",
)
@click.option(
    "--artifact-dir",
    is_flag=False,
    flag_value="",
    metavar="[DIR]",
    help="Write the artifact to DIR/<work item>, or to the state folder, not into the repository"
    " (where `recover` or a worker ends what this run began, it goes there all the same).",
)
@click.option("--follow", is_flag=True, help="Show the suite's output as it comes.")
@json_option
@click.argument("argv", nargs=-1, required=True)
def run(argv: tuple[str, ...], **options: Any) -> None:
    """Run one staging attempt of a repository with the suite ARGV, to its end.

    Exit code: 0 advanced, 1 rolled back, 2 usage, 3 failed closed, 4 declined or
    refused, 5 cancelled.
    """
    if not _is_utf8(options["repo"]):
        message = "its path is not in UTF-8, and could be kept in no row"
        raise click.BadParameter(message, param_hint="--repo")
    work_item = new_work_item() if options["work_item"] is None else options["work_item"]
    if problem := work_item_problem(work_item):
        raise click.BadParameter(problem, param_hint="--work-item")
    _refuse_dirty(options)
    session = open_session(options["db"], _run_variables(options))
    refuse_fleet(session, "fleet-submit")
    try:
        entry = _suite_entry(argv, options)
        entry.plan(load_config(session.variables))
    except ValueError as error:
        raise click.UsageError(_by_options(str(error))) from error
    console = PatientConsole(stderr=options["as_json"], highlight=False)
    progress = Progress(console, session.state, session.variables, follow=options["follow"])
    replaced: dict[str, Any] = {"suites": one_suite(entry), "watch": progress.moved}
    if options["artifact_dir"] is not None:
        folder = Path(options["artifact_dir"] or session.state.artifacts).absolute()
        replaced["place"] = place_in(session, folder)
    staging = session.staging(**replaced)
    repo = session.store.register(options["repo"])
    job_id = staging_job(session, repo, work_item)

    def accept(snapshot: Snapshot) -> None:
        _refuse_another_plan(session, job_id, snapshot, entry, options["repo"])

    waiting = _Waiting(session, console)
    driver = AttemptDriver(session, staging, job_id, waiting, accept)
    with driver.cancelled_by_signals():
        try:
            decision = driver.drive()
        finally:
            progress.stop()
        # What has been judged is judged: an interrupt that comes too late changes no exit code.
        code = _end_of_run(session, driver, decision, console, as_json=options["as_json"])
    sys.exit(code)


def _by_options(problem: str) -> str:
    """Return what is wrong with a suite with the names of options for those of its keys."""
    for name in ("min_tests", "max_skipped_ratio"):
        problem = problem.replace(name, f"--{name.replace('_', '-')}")
    return problem


def _is_utf8(path: Path) -> bool:
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:
        return False
    return True


def _refuse_dirty(options: dict[str, Any]) -> None:
    """Raise RunRefusedError for a dirty tree: a person expects what they see to be tested."""
    repository = options["repo"]
    if options["allow_dirty"] or head_revision(repository) == UNVERSIONED:
        return
    if is_dirty(repository):
        message = (
            f"{repository} has uncommitted changes to tracked files. A verdict is on"
            " a commit: commit or stash them, or say --allow-dirty (with the worktree workspace"
            " the commit is tested without them)."
        )
        raise RunRefusedError(message)


def _refuse_another_plan(
    session: Session, job_id: int, snapshot: Snapshot, entry: SuiteEntry, repository: Path
) -> None:
    """Raise RunRefusedError where an attempt of another's is bound to another suite or commit.

    What it shows would be taken for what was asked for.
    """
    if snapshot.plan is None:
        return
    bound, asked = snapshot.plan, entry.plan(load_config(session.variables))
    if entry.min_tests == AUTO:
        last = bound.suite.tests_last_passed
        asked = attrs.evolve(asked, min_tests=bound.suite.min_tests, tests_last_passed=last)
    revision = head_revision(repository)
    if (bound.suite, bound.revision) != (asked, revision):
        what = "another suite" if bound.suite != asked else f"commit {bound.revision}"
        message = (
            f"job {job_id} has an attempt already, which is bound to {what}: take it up with"
            f" `staging-fsm recover`, stop it with `staging-fsm cancel {job_id}`, or name another"
            " work item"
        )
        raise RunRefusedError(message)


@attrs.define
class _Waiting:
    """Says whose job is waited for, once each, and refuses to wait for whom nobody can know."""

    session: Session
    console: Console
    _told: set[str] = attrs.field(factory=set, init=False)

    def __call__(self, row: JobRow, snapshot: Snapshot | None) -> None:
        """Raise RunRefusedError where nobody here can know whether the job's worker lives."""
        if row.status != RUNNING:
            return
        if snapshot is not None and snapshot.state is not State.DEFERRED:
            worker = snapshot.worker
        else:
            worker = self.session.store.job(row.id).claimed_by or "(unknown)"
        lives = worker == self.session.worker or self.session.liveness(worker)
        if lives is None:
            message = (
                f"job {row.id} is in the hands of worker {worker}, of which nothing can be known"
                " from here: nothing was started. Wait for it there, or name another work item"
            )
            raise RunRefusedError(message)
        if lives and worker not in self._told:
            self._told.add(worker)
            words = f"{row.work_item} waits: worker {worker} has job {row.id}"
            self.console.print(words, markup=False, soft_wrap=True)


def _run_variables(options: dict[str, Any]) -> dict[str, str]:
    names = ("infra_retries", *OF_EVERY_SUITE)
    return switched_on(dict(os.environ), **{name: options.get(name) for name in names})


def _suite_entry(argv: tuple[str, ...], options: dict[str, Any]) -> SuiteEntry:
    return SuiteEntry(
        command=argv,
        preset=options["preset"] and Preset(options["preset"]),
        report=options["report"],
        min_tests=options["min_tests"],
        max_skipped_ratio=options["max_skipped_ratio"],
        tool_exit_codes=options["tool_exit_code"] or None,
        workspace=options["workspace"] and Workspace(options["workspace"]),
        allow_dirty=options["allow_dirty"],
        environment=options["env"] or None,
    )


def _refuse_anothers_claim(session: Session, job_id: int) -> None:
    """Raise RunRefusedError for a declined job that another worker has: its agent is at work."""
    claimant = session.store.job(job_id).claimed_by
    if claimant != session.worker:
        message = (
            f"job {job_id} was declined, it is LLM_FALLBACK, and its verdict is up to the agent of"
            f" worker {claimant or '(unknown)'}, which has it: nothing was changed. Wait for that"
            " verdict, or name another work item"
        )
        raise RunRefusedError(message)


def _note_declined(session: Session, runner: StagingRunner, row: JobRow, reason: str) -> Snapshot:
    """Write down that a job of ours was declined, which could not be written at that moment.

    Left as it was, it would look as if its agent were to be started. Raises RunRefusedError.
    """
    try:
        if session.store.job(row.id).claimed_by == session.worker:
            step = Step(Event.RUNNER_DECLINED, reason)
            return runner.engine.move(row, runner.new_attempt(row), step)
    except Exception as error:
        message = (
            f"job {row.id} was declined, and no word of it could be written: {in_words(error)}. It"
            " stays claimed: ask again once the database takes writes"
        )
        raise RunRefusedError(message) from error
    raise RunRefusedError(reason)


def _end_of_run(
    session: Session,
    driver: AttemptDriver,
    decision: Decision | None,
    console: Console,
    *,
    as_json: bool,
) -> ExitCode:
    job_id = driver.job_id
    row = session.rows.load(job_id)
    snapshot = row.snapshot()
    if snapshot is None:
        reason = "nothing was run" if decision is None else decision.reason
        if decision is None or decision.ruling is not Ruling.DECLINED:
            raise RunRefusedError(reason)
        snapshot = _note_declined(session, driver.staging.runner, row, reason)
    if snapshot.state is State.LLM_FALLBACK and row.status == RUNNING:
        _refuse_anothers_claim(session, job_id)
        # The reason stays on its row.
        end_without_agent(session.rows, job_id, snapshot)
    view = session.view(row, snapshot)

    def lost(error: OSError) -> None:
        words = (
            f"the result cannot be printed: {error.strerror}: `staging-fsm show {job_id}` has it"
        )
        with lossy(sys.stderr):
            click.echo(f"staging-fsm: {words}", err=True)

    with lossy(sys.stdout if as_json else console.file, lost):
        if as_json:
            click.echo(json.dumps(view))
        else:
            print_end(console, view, snapshot)
    return _EXIT_CODES.get(snapshot.state, ExitCode.DECLINED)

"""`staging-fsm`: the commands. What they do stands in the modules they import."""

import enum
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import attrs
import click
from rich.console import Console
from rich.table import Table

from staging_fsm.core.config import SuiteEntry, load_config, settings
from staging_fsm.core.errors import JobNotFoundError, StagingError
from staging_fsm.core.plan import UNVERSIONED, Preset, Workspace
from staging_fsm.core.ports import JobRow
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import State
from staging_fsm.drive.intercept import Decision
from staging_fsm.effects.files import StateDir, state_dir
from staging_fsm.effects.worktree import head_revision, tracked_changes
from staging_fsm.faces.diagrams import Diagram, outdated, write_diagrams
from staging_fsm.faces.progress import Progress
from staging_fsm.faces.session import (
    WORK_ITEM_PATTERN,
    AttemptDriver,
    Session,
    new_work_item,
    one_suite,
    open_session,
    place_in,
    register_repository,
    staging_job,
    switched_on,
)
from staging_fsm.faces.views import attempt_view, queue_view, sentence


class ExitCode(enum.IntEnum):
    """What `staging-fsm run` tells the shell."""

    #: The work item moved forwards.
    ADVANCED = 0
    #: The suite ran and failed: back to the developer.
    ROLLED_BACK = 1
    #: The command line was wrong; nothing was done.
    USAGE = 2
    #: The suite could not be run: nobody's fault, and nothing advanced.
    FAILED_CLOSED = 3
    #: The runner declined or refused; nothing was judged.
    DECLINED = 4
    #: Somebody cancelled it.
    CANCELLED = 5


_EXIT_CODES = {
    State.ADVANCED: ExitCode.ADVANCED,
    State.ROLLED_BACK: ExitCode.ROLLED_BACK,
    State.FAILED_CLOSED: ExitCode.FAILED_CLOSED,
    State.LLM_FALLBACK: ExitCode.DECLINED,
    State.CANCELLED: ExitCode.CANCELLED,
}

_db_option = click.option(
    "--db", metavar="URL", envvar="ORCH_DB_URL", help="Database; default: SQLite, state folder."
)
_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout.")


class _Commands(click.Group):
    """Turns our own errors into a sentence and an exit code, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except StagingError as error:
            click.echo(f"staging-fsm: {error}", err=True)
            ctx.exit(ExitCode.DECLINED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="staging-fsm")
def main() -> None:
    """Run staging suites deterministically: no verdict without a suite that ran."""
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(message)s")


@main.command()
def demo() -> None:
    """Carry three work items their three ways: advanced, rolled back, failed closed."""
    from staging_fsm.faces.demo import run_demo  # noqa: PLC0415  # only this command needs it

    # The third story's alert is part of the story; its log line would only disturb it.
    logging.getLogger("staging_fsm").setLevel(logging.CRITICAL)
    sys.exit(0 if run_demo(Console(highlight=False)) else 1)


@main.command(context_settings={"ignore_unknown_options": False})
@click.option(
    "--repo",
    required=True,
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    help="Folder under test; a git repository, or any folder.",
)
@click.option("--work-item", metavar="ID", help="Name of the work item; default: a new one.")
@_db_option
@click.option("--timeout-seconds", type=float, help="Deadline of one run.")
@click.option("--kill-grace-seconds", type=float, help="Time between TERM and KILL.")
@click.option("--infra-retries", type=int, help="Further runs after tool errors.")
@click.option(
    "--report", metavar="FILE", help="JUnit report, below $STAGING_REPORT_DIR or absolute."
)
@click.option("--min-tests", type=int, help="Fewest executed tests that count as a pass.")
@click.option("--max-skipped-ratio", type=float, help="Largest share of skipped tests, 0 to 1.")
@click.option("--tool-exit-code", type=int, multiple=True, help="Exit code that is a tool error.")
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
@click.option("--env", multiple=True, metavar="NAME", help="Variable the suite gets from yours.")
@click.option(
    "--artifact-dir",
    is_flag=False,
    flag_value="",
    metavar="[DIR]",
    help="Write the artifact to DIR/<work item>, or to the state folder, not into the repository.",
)
@click.option("--follow", is_flag=True, help="Show the suite's output as it comes.")
@_json_option
@click.argument("argv", nargs=-1, required=True)
def run(argv: tuple[str, ...], **options: Any) -> None:
    """Run one staging attempt of a repository with the suite ARGV, to its end.

    Exit code: 0 advanced, 1 rolled back, 2 usage, 3 failed closed, 4 declined or
    refused, 5 cancelled.
    """
    work_item = options["work_item"] or new_work_item()
    if not WORK_ITEM_PATTERN.fullmatch(work_item):
        message = f"{work_item!r} must be letters, digits, dots, dashes and underscores"
        raise click.BadParameter(message, param_hint="--work-item")
    _refuse_dirty(options)
    session = open_session(options["db"], _run_variables(options))
    try:
        entry = _suite_entry(argv, options)
        entry.plan(load_config(session.variables))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    console = Console(stderr=options["as_json"], highlight=False)
    progress = Progress(console, session.state, follow=options["follow"])
    replaced: dict[str, Any] = {"suites": one_suite(entry), "watch": progress.moved}
    if options["artifact_dir"] is not None:
        folder = Path(options["artifact_dir"] or session.state.root / "artifacts").absolute()
        replaced["place"] = place_in(session, folder)
    repo = register_repository(session.store, options["repo"])
    job_id = staging_job(session, repo, work_item)
    driver = AttemptDriver(session, session.staging(**replaced), job_id)
    with driver.cancelled_by_signals():
        decision = driver.drive()
    progress.stop()
    sys.exit(_end_of_run(session, job_id, decision, console, as_json=options["as_json"]))


def _refuse_dirty(options: dict[str, Any]) -> None:
    """Refuse a dirty tree in either workspace: a person expects what they see to be tested."""
    repository = options["repo"]
    if options["allow_dirty"] or head_revision(repository) == UNVERSIONED:
        return
    if tracked_changes(repository):
        click.echo(
            f"staging-fsm: {repository} has uncommitted changes to tracked files. A verdict is on"
            " a commit: commit or stash them, or say --allow-dirty (with the worktree workspace"
            " the commit is tested without them).",
            err=True,
        )
        sys.exit(ExitCode.DECLINED)


def _run_variables(options: dict[str, Any]) -> dict[str, str]:
    names = ("timeout_seconds", "kill_grace_seconds", "infra_retries")
    return switched_on(dict(os.environ), **{name: options[name] for name in names})


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


def _end_of_run(
    session: Session, job_id: int, decision: Decision | None, console: Console, *, as_json: bool
) -> ExitCode:
    row = session.rows.load(job_id)
    snapshot = row.snapshot()
    if snapshot is None:
        click.echo(f"staging-fsm: {decision.reason if decision else 'nothing was run'}", err=True)
        return ExitCode.DECLINED
    if snapshot.state is State.LLM_FALLBACK and row.status == "running":
        # There is no agent here to hand it to: the job ends with the reason on its row.
        session.rows.cancel(job_id, snapshot.version)
    view = attempt_view(row, snapshot, session.next_stage(row))
    if as_json:
        click.echo(json.dumps(view))
    else:
        _print_end(console, view, snapshot)
    return _EXIT_CODES.get(snapshot.state, ExitCode.DECLINED)


def _print_end(console: Console, view: dict[str, Any], snapshot: Snapshot) -> None:
    console.print(f"{view['work_item']}: {view['state']}. {sentence(snapshot)}", soft_wrap=True)
    for name in ("revision", "artifact", "log", "next_stage"):
        if view[name]:
            console.print(f"  {name.replace('_', ' ')}: {view[name]}", soft_wrap=True)


@main.command()
@_db_option
@_json_option
def recover(db: str | None, *, as_json: bool) -> None:
    """Take up every attempt whose worker is gone, and drive it on."""
    session = open_session(db)
    console = Console(stderr=as_json, highlight=False)
    progress = Progress(console, session.state)
    staging = session.staging(watch=progress.moved)
    touched = staging.recover()
    progress.stop()
    views = [_view(session, session.rows.load(row.id)) for row in touched]
    if as_json:
        click.echo(json.dumps(views))
    elif not views:
        click.echo("nothing to recover")


@main.command()
@_db_option
@click.option("--once", is_flag=True, help="Work until nothing is due, then end.")
def worker(db: str | None, *, once: bool) -> None:
    """Work on the jobs of the embedded orchestrator, staging jobs by the runner if it is on."""
    from staging_fsm.host.worker import Worker  # noqa: PLC0415  # only this command needs it

    logging.getLogger("staging_fsm").setLevel(logging.INFO)
    session = open_session(db)
    loop = Worker(session.host(session.staging()), session.worker)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: loop.stop())
    if once:
        loop.recover()
        click.echo(f"{loop.run_until_idle()} jobs launched")
    else:
        loop.run_forever()


@main.command()
@_db_option
@_json_option
def queue(db: str | None, *, as_json: bool) -> None:
    """Show every unfinished attempt: state, run, time, what is next, and why."""
    session = open_session(db)
    view = queue_view(session.rows.unfinished(), session.clock.now())
    if as_json:
        click.echo(json.dumps(view))
        return
    table = Table("job", "repo", "work item", "state", "run", "for", "next run", "why")
    for attempt in view["attempts"]:
        table.add_row(
            str(attempt["job_id"]),
            attempt["repo"],
            attempt["work_item"],
            attempt["state"],
            f"{attempt['run']} of {attempt['runs_max']}",
            f"{attempt['seconds_in_state']:.0f} s",
            attempt["next_run_at"] or "-",
            attempt["reason"],
        )
    for row in view["refused"]:
        table.add_row(
            str(row["job_id"]), "", row["work_item"], "REFUSED", "", "", "", row["problem"]
        )
    Console(highlight=False).print(table if table.row_count else "no unfinished attempt")


@main.command()
@click.argument("job", type=int)
@_db_option
@_json_option
def show(job: int, db: str | None, *, as_json: bool) -> None:
    """Show one attempt: its state, its history, its runs."""
    session = open_session(db)
    row = session.rows.load(job)
    snapshot = row.snapshot()
    if snapshot is None:
        message = f"job {job} has no staging attempt: the runner never had it"
        raise JobNotFoundError(message)
    view = _view(session, row)
    if as_json:
        click.echo(json.dumps(view))
        return
    console = Console(highlight=False)
    _print_end(console, view, snapshot)
    history = Table("time", "id", "source", "event", "target", "why", title="History")
    for move in snapshot.history:
        where = (move.row.source, move.row.event, move.row.target)
        history.add_row(move.time, move.id, *map(str, where), move.reason)
    runs = Table("run", "started", "seconds", "exit code", "signal", "reason", title="Runs")
    for run_ in snapshot.runs:
        facts = (run_.duration_seconds, run_.exit_code, run_.signal, run_.reason)
        cells = ["-" if fact is None else str(fact) for fact in facts]
        runs.add_row(str(run_.number), run_.started_at, *cells)
    console.print(history, runs)


def _view(session: Session, row: JobRow) -> dict[str, Any]:
    snapshot = row.snapshot()
    assert snapshot is not None  # noqa: S101  # the caller has looked
    return attempt_view(row, snapshot, session.next_stage(row))


@main.command()
@click.argument("job", type=int)
@_db_option
def cancel(job: int, db: str | None) -> None:
    """Stop an attempt: its suite is stopped, nothing is judged, the job ends as cancelled."""
    session = open_session(db)
    ended = session.staging().cancel(job)
    click.echo(f"job {job}: {ended.state}")


@main.command()
@click.option("--check", is_flag=True, help="Compare the files instead of writing them.")
@click.option(
    "--output",
    default="diagrams",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the diagrams.",
)
def diagram(output: Path, *, check: bool) -> None:
    """Write the diagrams of the transition table, or check that they are current."""
    if not check:
        for path in write_diagrams(output, Diagram()):
            click.echo(path)
        return
    stale = outdated(output, Diagram())
    for name in stale:
        click.echo(f"{output / name} differs from the table: run `staging-fsm diagram`", err=True)
    sys.exit(1 if stale else 0)


@main.command()
@click.option("--env-example", is_flag=True, help="Print an .env file with every default.")
def config(*, env_example: bool) -> None:
    """Show every setting, what it is now, and what it means."""
    if env_example:
        click.echo(env_file(), nl=False)
        return
    table = Table("setting", "value", "meaning")
    for setting in settings():
        value = os.environ.get(setting.name)
        secret = setting.name.endswith(("_URLS", "_TOKEN"))
        shown = setting.default if value is None else ("<set>" if secret else value)
        table.add_row(setting.name, shown, setting.help)
    Console(highlight=False).print(table)
    load_config(os.environ)


def env_file() -> str:
    """Return `.env.example`: every declared setting with its meaning and default."""
    lines = ["# Generated by `staging-fsm config --env-example`."]
    for setting in settings():
        lines += ["", f"# {setting.help}", f"{setting.name}={setting.default}"]
    return "\n".join(lines) + "\n"


@main.command()
@_db_option
@_json_option
def doctor(db: str | None, *, as_json: bool) -> None:
    """Look at everything a run needs; exit code 1 if something is missing."""
    from staging_fsm.faces.doctor import Health, examine  # noqa: PLC0415  # only this command needs it

    state = StateDir(state_dir(os.environ))
    findings = list(examine(os.environ, state, lambda: open_session(db).store.engine.url))
    if as_json:
        click.echo(json.dumps([attrs.asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            click.echo(f"{finding.health:8} {finding.name}: {finding.words}")
    sys.exit(1 if any(finding.health is Health.FAILED for finding in findings) else 0)

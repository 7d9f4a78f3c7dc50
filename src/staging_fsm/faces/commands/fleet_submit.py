"""`staging-fsm fleet-submit`: one work item for a fleet."""

import click

from staging_fsm.faces.fleet import open_fleet, require_fleet
from staging_fsm.faces.options import db_option
from staging_fsm.faces.session import (
    name_problem,
    open_session,
    staging_job,
    work_item_problem,
)


@click.command("fleet-submit")
@click.option("--repo", required=True, metavar="NAME", help="Name of the repository.")
@click.option("--remote", metavar="URL", help="Where it lies; needed the first time.")
@click.option("--work-item", required=True, metavar="ID", help="Name of the work item.")
@db_option
def fleet_submit(repo: str, remote: str | None, work_item: str, db: str | None) -> None:
    """Queue a staging job for a work item, and print the job's id."""
    problems = {"--work-item": work_item_problem(work_item), "--repo": name_problem(repo)}
    for option, problem in problems.items():
        if problem is not None:
            raise click.BadParameter(problem, param_hint=option)
    session = open_session(db)
    fleet = open_fleet(session)
    require_fleet(session)
    session.store = fleet.store
    if remote is not None:
        session.store.add_repository(repo, remote)
    else:
        try:
            session.store.repository_url(repo)
        except LookupError as error:
            message = f"{error}: say --remote"
            raise click.UsageError(message) from error
    click.echo(staging_job(session, repo, work_item))

"""`staging-fsm worker`: the embedded orchestrator's loop."""

import logging
import signal

import click

from staging_fsm.core.errors import RefusedError
from staging_fsm.faces.fleet import refuse_fleet
from staging_fsm.faces.options import db_option
from staging_fsm.faces.session import open_session
from staging_fsm.host.worker import Worker


@click.command()
@db_option
@click.option("--once", is_flag=True, help="Work until nothing is due, then end.")
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many jobs are worked on at once.",
)
def worker(db: str | None, *, once: bool, concurrency: int) -> None:
    """Work on the jobs of the embedded orchestrator, staging jobs by the runner.

    Jobs of one repository may run at the same time. Each has a worktree of its own;
    suites that run in place share the repository's folder.
    """
    logging.getLogger("staging_fsm").setLevel(logging.INFO)
    session = open_session(db)
    refuse_fleet(session, "fleet-worker")
    host = session.host(session.staging())
    loop = Worker(host, session.worker, liveness=session.liveness, concurrency=concurrency)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: loop.stop())
    if once:
        launched = loop.run_until_idle()
        click.echo(f"{launched - loop.failed} jobs launched")
        if loop.failed:
            message = f"{loop.failed} more could not be launched: the next worker tries them again"
            raise RefusedError(message)
    else:
        loop.run_forever()

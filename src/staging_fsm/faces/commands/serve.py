"""`staging-fsm serve`: the page, `GET /queue` and the metrics of the embedded orchestrator."""

import os
from typing import Final

import click

from staging_fsm.core.config import load_config, variable_name
from staging_fsm.core.errors import ConfigInvalidError
from staging_fsm.faces.extras import require_extra
from staging_fsm.faces.options import db_option
from staging_fsm.faces.session import open_session

LOOPBACK_ADDRESSES: Final = ("127.0.0.1", "::1", "localhost")


@click.command()
@db_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8115, show_default=True, type=click.IntRange(0, 65535))
def serve(db: str | None, host: str, port: int) -> None:
    """Serve the queue, the pages and the metrics, to be read and not to be changed."""
    require_extra("web")
    token = load_config(os.environ).http_token
    if host not in LOOPBACK_ADDRESSES and not token:
        name = variable_name("http_token")
        raise ConfigInvalidError([f"to serve on {host}, where others can reach it, set {name}"])
    from staging_fsm.faces.web.server import run  # noqa: PLC0415  # optional: the extra "web"

    run(open_session(db, create=db is None, only_to_look=True), host, port, token)

"""The app over the embedded orchestrator, run by uvicorn."""

from functools import partial
from typing import Any, Final

import click
import uvicorn

from staging_fsm.core.errors import RefusedError
from staging_fsm.faces.session import Session
from staging_fsm.faces.web.app import create_app
from staging_fsm.faces.web.guard import LOOPBACK_HOSTS
from staging_fsm.faces.web.source import Source
from staging_fsm.host.pipeline import place_of

#: How long open answers may take to end once the server is told to.
GRACE_SECONDS: Final = 2
CONCURRENCY_MAX: Final = 200


def source_of(session: Session) -> Source:
    """Return what the pages of the embedded orchestrator are made from."""
    store = session.store
    return Source(
        session.rows,
        session.variables,
        place=partial(place_of, store),
        work_item=lambda row: store.find_work_item(row.repo, row.work_item),
        has_agent=session.settings.has_agent,
    )


def run(session: Session, host: str, port: int, token: str) -> None:
    """Serve until SIGINT or SIGTERM; raises RefusedError where that cannot be begun."""

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            try:
                await super().startup(sockets)
            except SystemExit as error:
                # It has logged the reason, and would end with what FAILED_CLOSED ends with.
                message = f"nothing is served on {host} port {port}: {error.__context__}"
                raise RefusedError(message) from error
            for server in self.servers:
                for socket in server.sockets:
                    click.echo(f"serving on {_address(socket.getsockname())}")

    hosts = None if token else LOOPBACK_HOSTS
    app = create_app(source_of(session), token=token, hosts=hosts)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        limit_concurrency=CONCURRENCY_MAX,
    )
    Server(config).run()


def _address(name: tuple[Any, ...]) -> str:
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"http://{host}:{name[1]}/"

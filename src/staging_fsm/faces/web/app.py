"""The ASGI app: every address it answers. It reads, and has nothing that writes."""

from collections.abc import Collection
from http import HTTPStatus
from typing import Annotated, Final, Literal

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBasic, HTTPBearer
from pydantic import Field
from typing_extensions import TypedDict

from staging_fsm.faces.queue import QueueDocument
from staging_fsm.faces.web.guard import LOOPBACK_HOSTS, Guard
from staging_fsm.faces.web.source import JobsUnreadableError, Source

DESCRIPTION: Final = "What the staging runner is doing. Every address reads; none writes."


class Problem(TypedDict):
    """Why there is no answer."""

    detail: str


class Health(TypedDict):
    """The jobs can be read."""

    status: Annotated[Literal["ok"], Field(description="Always `ok`.")]


def create_app(
    source: Source, *, token: str = "", hosts: Collection[str] | None = LOOPBACK_HOSTS
) -> FastAPI:
    """Return the app over `source`, to be run or to be mounted in another ASGI app.

    `token` is asked for with every request if it is not empty. `hosts` are the
    names by which the app may be asked for: None is for an app behind a token, or
    mounted in a host that answers for who may read.
    """
    security = [Depends(HTTPBearer(auto_error=False)), Depends(HTTPBasic(auto_error=False))]
    app = FastAPI(
        title="staging_fsm",
        version="1",
        description=DESCRIPTION,
        docs_url=None,  # they come from somebody else's server
        redoc_url=None,
        dependencies=security if token else [],
        responses={
            HTTPStatus.SERVICE_UNAVAILABLE: {"model": Problem, "description": "No jobs to read"}
        },
    )
    app.add_middleware(Guard, token=token, hosts=hosts)
    app.add_exception_handler(JobsUnreadableError, _unavailable)
    _add_data(app, source)
    return app


def _add_data(app: FastAPI, source: Source) -> None:
    """Add what programs read."""

    @app.get("/queue", summary="What is stuck, why, whose fault, and what comes next")
    def queue() -> QueueDocument:
        return {"staging_runner": source.block()}

    @app.get("/healthz", summary="Whether the jobs can be read")
    def healthz() -> Health:
        source.block()
        return {"status": "ok"}


def _unavailable(_request: Request, error: Exception) -> Response:
    return JSONResponse(Problem(detail=str(error)), HTTPStatus.SERVICE_UNAVAILABLE)

"""The ASGI app: every address it answers. It reads, and has nothing that writes."""

from collections.abc import Collection
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi.security import HTTPBasic, HTTPBearer
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from typing_extensions import TypedDict

from staging_fsm.core.errors import JobNotFoundError
from staging_fsm.faces.diagrams import STYLE
from staging_fsm.faces.queue import QueueDocument
from staging_fsm.faces.web.events import Streams, fingerprint
from staging_fsm.faces.web.guard import HEADERS, LOOPBACK_HOSTS, Guard
from staging_fsm.faces.web.html import page
from staging_fsm.faces.web.metrics import MEDIA_TYPE, Metrics
from staging_fsm.faces.web.pages import attempt_page, repository_page
from staging_fsm.faces.web.source import JobsUnreadableError, Source

DESCRIPTION: Final = "What the staging runner is doing. Every address reads; none writes."
STATIC: Final = Path(__file__).parent / "static"


class Problem(TypedDict):
    """Why there is no answer."""

    detail: str


class Health(TypedDict):
    """The jobs can be read."""

    status: Annotated[Literal["ok"], Field(description="Always `ok`.")]


_Responses = dict[int | str, dict[str, Any]]
#: What a document may answer instead of what was asked for.
_UNREADABLE: Final[_Responses] = {
    503: {"model": Problem, "description": "The jobs cannot be read."}
}
#: The same of a page: a sentence on a page to a browser, as JSON to everybody else.
_AS_ASKED: Final = {
    "application/json": {"schema": {"$ref": "#/components/schemas/Problem"}},
    "text/html": {"schema": {"type": "string"}},
}
_NO_PAGE: Final[_Responses] = {
    503: {"content": _AS_ASKED, "description": "The jobs cannot be read."}
}
_UNSCRAPED: Final[_Responses] = {
    503: {
        "content": {"application/json": _AS_ASKED["application/json"]},
        "description": "The jobs cannot be read.",
    }
}
_NO_JOB: Final[_Responses] = {
    404: {"content": _AS_ASKED, "description": "There is no such job."},
    **_NO_PAGE,
}


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
    )
    app.add_middleware(Guard, token=token, hosts=hosts)
    for kind in (JobNotFoundError, JobsUnreadableError, HTTPException):
        app.add_exception_handler(kind, _problem)
    # Answered outside of the guard, and raised again for the server's log.
    app.add_exception_handler(Exception, _failure)

    # The diagram's own sheet: it stands in no file, but where the diagram is drawn.
    @app.get("/static/diagram.css", include_in_schema=False)
    def diagram_style() -> Response:
        return Response(STYLE, media_type="text/css")

    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    _add_data(app, source)
    _add_pages(app, source)
    return app


def _add_data(app: FastAPI, source: Source) -> None:
    """Add what programs read."""
    streams, metrics = Streams(), Metrics(source)

    @app.get("/queue", responses=_UNREADABLE)
    def queue() -> QueueDocument:
        """Return what is stuck, why, whose fault it is, and what comes next."""
        return {"staging_runner": source.block()}

    @app.get("/healthz", responses=_UNREADABLE)
    def healthz() -> Health:
        """Say whether the jobs can be read. Asks for no token."""
        source.block()
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse, responses=_UNSCRAPED)
    def scrape() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(metrics.text(), media_type=MEDIA_TYPE)

    # No part of the OpenAPI document, which has no words for a stream without an end.
    @app.get("/events", include_in_schema=False)
    def events(request: Request, job: str | None = None) -> Response:
        def look() -> str:
            seen = fingerprint(source.block())
            return seen if job is None else f"{seen}-{source.version(job)}"

        return streams.answer(request, look)


def _add_pages(app: FastAPI, source: Source) -> None:
    """Add what people read."""

    @app.get("/", response_class=HTMLResponse, responses=_NO_PAGE)
    def dashboard(request: Request) -> Response:
        """Return the page of the queue."""
        block = source.block()
        facts = {
            "block": block,
            "active": sum(block["counts"].values()),
            "stuck": [one for one in block["attempts"] if one["stuck"]],
        }
        return page(request, "queue", facts)

    @app.get("/attempts/{job:path}", response_class=HTMLResponse, responses=_NO_JOB)
    def attempt(request: Request, job: str) -> Response:
        """Return the page of one attempt: its way, its runs, its papers."""
        row = source.load(job)
        facts = attempt_page(source, row, datetime.now(UTC))
        return page(request, "attempt", facts, events=f"?job={quote(job, safe='')}")

    @app.get("/repositories/{name:path}", response_class=HTMLResponse, responses=_NO_PAGE)
    def repository(request: Request, name: str) -> Response:
        """Return the page of one repository: its history, and a plot of it."""
        return page(request, "repository", repository_page(source, name, datetime.now(UTC)))


def _failure(_request: Request, _error: Exception) -> Response:
    """Answer where the server itself failed: with a sentence, and the headers of every answer."""
    words = "This server failed: its log says more.\n"
    return PlainTextResponse(words, HTTPStatus.INTERNAL_SERVER_ERROR, HEADERS)


def _problem(request: Request, error: Exception) -> Response:
    """Answer with a sentence: as a page to a browser, as JSON to everybody else."""
    status, headers = HTTPStatus.SERVICE_UNAVAILABLE, None
    words = str(error)
    if isinstance(error, JobNotFoundError):
        status = HTTPStatus.NOT_FOUND
    elif isinstance(error, HTTPException):
        status, headers, words = HTTPStatus(error.status_code), error.headers, error.detail
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse(Problem(detail=words), status, headers)
    answer = page(request, "problem", {"status": status.phrase, "detail": words}, status=status)
    answer.headers.update(headers or {})
    return answer

"""Live updates: server-sent events that say no more than that a page has changed.

See https://html.spec.whatwg.org/multipage/server-sent-events.html. A stream ends
by itself after a while, and a browser asks for it again: a reader who went away
unnoticed holds nothing for long.
"""

import hashlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any, Final

import anyio
from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from staging_fsm.core.errors import StagingError
from staging_fsm.faces.queue import StagingRunnerBlock

#: How many streams one server holds at a time; what is asked for beyond is told to wait.
STREAMS_MAX: Final = 64
LOOK_SECONDS: Final = 1.0
STREAM_SECONDS: Final = 600.0
#: While something is active its times go on, and the page is fetched anew this often.
ACTIVE_SECONDS: Final = 5
_RETRY_MILLISECONDS: Final = 3000


def fingerprint(block: StagingRunnerBlock) -> str:
    """Return a text that changes when the block says something else than before."""
    active = [
        {name: value for name, value in one.items() if not name.endswith("_seconds")}
        for one in block["attempts"]
    ]
    for one in active:
        one.pop("next")
    clock = int(time.time()) // ACTIVE_SECONDS if active else 0
    facts = {**block, "as_of": clock, "attempts": active, "oldest_waiting": None}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


class Streams:
    """The streams of one server."""

    def __init__(self) -> None:
        """Start with none."""
        self._free = threading.BoundedSemaphore(STREAMS_MAX)

    def answer(self, request: Request, look: Callable[[], str]) -> Response:
        """Return a stream of what `look` returns, each time that it changes."""
        if not self._free.acquire(blocking=False):
            return PlainTextResponse(
                f"There are {STREAMS_MAX} streams already; reload the page to update it.\n",
                HTTPStatus.SERVICE_UNAVAILABLE,
                {"Retry-After": "30"},
            )
        return _Stream(_changes(request, look), self._free)


class _Stream(StreamingResponse):
    """A stream that gives back its place, however it ends."""

    def __init__(self, content: AsyncIterator[str], place: threading.BoundedSemaphore) -> None:
        super().__init__(content, media_type="text/event-stream")
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._place.release()


async def _changes(request: Request, look: Callable[[], Any]) -> AsyncIterator[str]:
    yield f"retry: {_RETRY_MILLISECONDS}\n\n"
    known = None
    ends = time.monotonic() + STREAM_SECONDS
    while time.monotonic() < ends and not await request.is_disconnected():
        try:
            seen = await run_in_threadpool(look)
        except StagingError:
            seen = "unreadable"
        if known is None:
            yield f"event: listening\ndata: {seen}\n\n"
        elif known != seen:
            yield f"event: changed\ndata: {seen}\n\n"
        else:
            # A comment, so that a connection which is gone is noticed.
            yield ":\n\n"
        known = seen
        await anyio.sleep(LOOK_SECONDS)

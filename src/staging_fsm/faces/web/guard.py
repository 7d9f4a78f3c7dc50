"""Who may read: the only place where a request is let in or turned away.

Without a token a request must name this machine's loopback address as its host,
so that a page of somebody else's, whose name was pointed here (DNS rebinding),
reads nothing. With a token every request must carry it. Every answer carries the
headers that keep a browser from running, framing, guessing at or keeping it.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: The names by which a browser on this machine reaches its loopback address.
LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
#: What anybody may ask: it says nothing but whether there is an answer.
OPEN_PATHS: Final = frozenset({"/healthz"})
#: https://developer.mozilla.org/docs/Web/HTTP/Reference/Headers/Content-Security-Policy
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self';"
    " img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware around the app."""

    def __init__(self, app: ASGIApp, token: str, hosts: Collection[str] | None) -> None:
        """Ask for `token` if there is one, and for a host in `hosts` unless that is None."""
        self._app = app
        self._token = _digest(token.encode()) if token else None
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the app answer, with our headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._refusal(scope) or self._app
        await answer(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        headers = Headers(scope=scope)
        if self._hosts is not None and _host_name(headers.get("host", "")) not in self._hosts:
            return PlainTextResponse(
                f"This server answers to {', '.join(sorted(self._hosts))} only.\n", 421
            )
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if self._token is None or path in OPEN_PATHS:
            return None
        if hmac.compare_digest(_digest(_credential(headers)), self._token):
            return None
        return PlainTextResponse(
            "This server asks for a token: as Bearer, or as the password of any user.\n",
            401,
            {"WWW-Authenticate": 'Basic realm="staging_fsm", charset="UTF-8"'},
        )


def _digest(credential: bytes) -> bytes:
    # Of one length, so that a comparison tells nothing about the token's.
    return hashlib.sha256(credential).digest()


def _credential(headers: Headers) -> bytes:
    """Return the token that a request carries, as Bearer (RFC 6750) or Basic (RFC 7617)."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


def _host_name(host: str) -> str:
    """Return the name in a Host header, without its port."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()

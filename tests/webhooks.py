"""A real HTTP server for alerts, at an address of Apprise's `json://`."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import attrs

PATIENCE_SECONDS = 30


@attrs.define
class Webhook:
    """An address of Apprise's `json://`: it takes messages, refuses them, or hangs."""

    port: int = 0
    refuses: bool = False
    #: Set while it answers; a request that comes meanwhile waits.
    answers: threading.Event = attrs.field(factory=threading.Event)
    asked: int = 0
    messages: list[dict[str, Any]] = attrs.field(factory=list)
    changed: threading.Condition = attrs.field(factory=threading.Condition)

    @property
    def url(self) -> str:
        """Return the address."""
        return f"json://127.0.0.1:{self.port}"

    def take(self, message: dict[str, Any]) -> int:
        """Take one request; return the HTTP status."""
        with self.changed:
            self.asked += 1
            self.changed.notify_all()
        self.answers.wait(PATIENCE_SECONDS)
        with self.changed:
            if not self.refuses:
                self.messages.append(message)
            self.changed.notify_all()
        return 500 if self.refuses else 200

    def wait_for(self, seen: Callable[[], bool]) -> None:
        """Wait until something is true of what was asked or taken."""
        with self.changed:
            assert self.changed.wait_for(seen, PATIENCE_SECONDS)

    @property
    def text(self) -> str:
        """Return the text of everything taken."""
        return "\n".join(f"{message['title']}\n{message['message']}" for message in self.messages)


@contextlib.contextmanager
def webhooks() -> Iterator[Callable[[], Webhook]]:
    """Yield a maker of webhooks that answer."""
    servers: list[tuple[ThreadingHTTPServer, threading.Thread, Webhook]] = []

    def make() -> Webhook:
        webhook = Webhook()
        webhook.answers.set()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = webhook.take(json.loads(body))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        webhook.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        servers.append((server, thread, webhook))
        return webhook

    try:
        yield make
    finally:
        for server, thread, webhook in servers:
            webhook.answers.set()
            server.shutdown()
            thread.join()
            server.server_close()

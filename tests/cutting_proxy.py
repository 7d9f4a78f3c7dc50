"""A way to PostgreSQL that is cut at the Nth commit, before or after the server has done it."""

import selectors
import socket
import threading
from enum import Enum, unique
from pathlib import Path
from typing import Final

SOCKET_NAME: Final = ".s.PGSQL.5432"
_BLOCK: Final = 65536


@unique
class Cut(Enum):
    """Where the connection is lost."""

    #: The commit never arrives: nothing was done.
    BEFORE = "before"
    #: The answer never arrives: all was done, and nobody here knows.
    AFTER = "after"


class CuttingProxy:
    """A Unix socket in `folder` that leads to the server's, and once cuts a connection."""

    def __init__(self, folder: Path, server: Path, cut: Cut) -> None:
        """Lead to the socket of `server`."""
        self._server, self._cut, self._left = server, cut, 0
        self.was_cut = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / SOCKET_NAME))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, commit: int) -> None:
        """Cut at commit number `commit` from now on."""
        self._left = commit

    def close(self) -> None:
        """Take no more connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._lead, args=(client,), daemon=True).start()

    def _lead(self, client: socket.socket) -> None:
        with (
            client,
            socket.socket(socket.AF_UNIX) as server,
            selectors.DefaultSelector() as waiting,
        ):
            server.connect(str(self._server / SOCKET_NAME))
            waiting.register(client, selectors.EVENT_READ, server)
            waiting.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in waiting.select():
                    source, target = key.fileobj, key.data
                    assert isinstance(source, socket.socket)
                    block = source.recv(_BLOCK)
                    if not block:
                        return
                    if source is client and b"COMMIT" in block and self._is_the_one():
                        if self._cut is Cut.AFTER:
                            target.sendall(block)
                            server.recv(_BLOCK)
                        self.was_cut = True
                        return
                    target.sendall(block)

    def _is_the_one(self) -> bool:
        self._left -= 1
        return self._left == 0

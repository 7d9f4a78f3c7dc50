"""The network between a machine of a fleet and the server, which can be cut.

By a proxy anybody can have one. Where network namespaces may be made, a machine is one,
and its link is taken down as a cable is pulled: nobody is told.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from postgres import Server

#: A network for the machines of one run; nothing else of ours is there.
SUBNET: Final = "10.213.77"
BRIDGE: Final = "fsm-soak"
PORT: Final = 5432
_BLOCK: Final = 65536


class Link(Protocol):
    """What one machine reaches the server by."""

    #: The server's address, as the machine sees it.
    url: str
    #: What a process of the machine is started by.
    prefix: tuple[str, ...]

    def cut(self) -> None:
        """Let nothing through."""

    def mend(self) -> None:
        """Let everything through again."""

    def close(self) -> None:
        """End, and leave nothing."""


class Proxy:
    """A link through a process: both ends are told at once when it is cut."""

    #: What a process of the machine is started by.
    prefix: tuple[str, ...] = ()

    def __init__(self, target: Path) -> None:
        """Listen on a free port, and lead to the server's Unix socket at `target`."""
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        self._open: set[socket.socket] = set()
        self._is_cut = False
        self._serving = threading.Thread(target=self._serve)
        self._serving.start()

    def _serve(self) -> None:
        threads = []
        with self._listener, contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threads.append(threading.Thread(target=self._carry_both, args=[client]))
                threads[-1].start()
        for thread in threads:
            thread.join()

    def _carry_both(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            if self._is_cut:
                return
            with contextlib.suppress(OSError):
                server.connect(str(self._target))
                self._open |= {client, server}
                back = threading.Thread(target=self._carry, args=[server, client])
                back.start()
                self._carry(client, server)
                back.join()
            self._open -= {client, server}

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(_BLOCK):
                sink.sendall(block)
        _break(source, sink)

    def cut(self) -> None:
        """Break every connection, and let none through."""
        self._is_cut = True
        _break(*self._open.copy())

    def mend(self) -> None:
        """Let connections through again."""
        self._is_cut = False

    def close(self) -> None:
        """End, and wait until nothing is carried any more."""
        self.cut()
        _break(self._listener)
        self._serving.join()


def _break(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class Namespace:
    """A link to a network namespace: cut, it is silent, as a network that is gone."""

    def __init__(self, number: int) -> None:
        """Make the namespace and its link to the bridge."""
        self._name = f"{BRIDGE}-{number}"
        self._outside = f"{BRIDGE}{number}"
        self.prefix: tuple[str, ...] = ("ip", "netns", "exec", self._name)
        self.url = f"postgresql://postgres@{SUBNET}.1:{PORT}/postgres"
        ip("netns", "add", self._name)
        inside = ("name", "eth0", "netns", self._name)
        ip("link", "add", self._outside, "type", "veth", "peer", *inside)
        ip("link", "set", self._outside, "master", BRIDGE, "up")
        ip("-n", self._name, "addr", "add", f"{SUBNET}.{number + 2}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", self._name, "link", "set", device, "up")

    def cut(self) -> None:
        """Take the link down."""
        ip("link", "set", self._outside, "down")

    def mend(self) -> None:
        """Bring the link up."""
        ip("link", "set", self._outside, "up")

    def close(self) -> None:
        """Remove link and namespace."""
        ip("link", "del", self._outside)
        ip("netns", "del", self._name)


@contextlib.contextmanager
def bridge() -> Iterator[None]:
    """Make what the namespaces of one run are linked to, with the server's address on it."""
    _remove_leftovers()
    ip("link", "add", BRIDGE, "type", "bridge")
    try:
        ip("addr", "add", f"{SUBNET}.1/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        yield
    finally:
        ip("link", "del", BRIDGE)


@contextlib.contextmanager
def proxies(server: Server, count: int) -> Iterator[list[Link]]:
    """Yield so many proxies to the server."""
    yield [Proxy(server.folder / ".s.PGSQL.5432") for _ in range(count)]


@contextlib.contextmanager
def namespaces(server: Server, count: int) -> Iterator[list[Link]]:
    """Restart the server for them, and yield so many network namespaces."""
    with bridge():
        server.stop()
        server.admit(f"{SUBNET}.0/24")
        server.start(listen_addresses=f"{SUBNET}.1", port=str(PORT))
        yield [Namespace(number) for number in range(count)]


def _remove_leftovers() -> None:
    """Remove what a run has left that was killed."""
    for name in ip("netns", "list").split():
        if name.startswith(BRIDGE):
            ip("netns", "del", name)
    if Path("/sys/class/net", BRIDGE).exists():
        ip("link", "del", BRIDGE)


def ip(*arguments: str) -> str:
    """Call iproute2; return what it says. Raises CalledProcessError."""
    return subprocess.run(["ip", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def has_namespaces() -> bool:
    """Say whether we may make network namespaces, and know how."""
    return os.geteuid() == 0 and shutil.which("ip") is not None

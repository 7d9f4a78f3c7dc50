"""`staging-fsm` in processes of its own that need not load it first.

A process that has loaded every command waits, and whoever asks gets one that is forked
from it: with an argument vector, an environment, streams and an end of its own, and
without the third of a second of processor time that importing takes. What Python itself
reads when it starts is that of the process that waits, so a test that is about this, or
that has to hold the process while it runs, starts one the plain way.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from staging_fsm.faces import commands

#: More than any environment takes.
ORDER_BYTES_MAX = 1 << 20
#: A command that takes longer is ended by an alarm.
PATIENCE_SECONDS = 120


def staging_fsm_of_fork(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end and to that of its output, as `subprocess.run` does."""
    order = {"arguments": arguments, "environment": dict(environment), "folder": os.getcwd()}  # noqa: PTH109  # a text
    pipes = [os.pipe() for _ in range(3)]
    socket.send_fds(_server(), [json.dumps(order).encode()], [writing for _, writing in pipes])
    for _, writing in pipes:
        os.close(writing)
    with ThreadPoolExecutor(len(pipes)) as pool:
        texts = [pool.submit(_text, reading) for reading, _ in pipes]
        output, error, ended = (text.result() for text in texts)
    assert ended, "the process that waits for commands has ended"
    return subprocess.CompletedProcess(list(arguments), int(ended), output, error)


def _text(reading: int) -> str:
    with os.fdopen(reading, encoding="utf-8") as file:
        return file.read()


@functools.cache
def _server() -> socket.socket:
    """Return the link to this process's own server, which ends with it."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ORDER_BYTES_MAX)
    with there:
        server = subprocess.Popen(
            [sys.executable, __file__, str(there.fileno())],
            stdin=subprocess.DEVNULL,
            # As a command's own: what they are is seen when Python starts.
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[there.fileno()],
        )
    atexit.register(_end, server, here)
    return here


def _end(server: "subprocess.Popen[bytes]", link: socket.socket) -> None:
    link.close()
    server.communicate()


def _wait_for_orders(link: socket.socket) -> dict[str, Any]:
    """Fork a process for each order; return only in such a process, what it is to run."""
    while True:
        order, descriptors, _, _ = socket.recv_fds(link, ORDER_BYTES_MAX, 3)
        if not order:
            sys.exit(0)
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    link.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    output, error, ended = descriptors
    command = os.fork()
    if command == 0:
        os.dup2(output, 1)
        os.dup2(error, 2)
    os.close(output)
    os.close(error)
    if command != 0:
        _, status = os.waitpid(command, 0)
        os.write(ended, str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    os.close(ended)
    signal.alarm(PATIENCE_SECONDS)
    known: dict[str, Any] = json.loads(order)
    return known


def _main() -> None:
    for module in pkgutil.iter_modules(commands.__path__, f"{commands.__name__}."):
        importlib.import_module(module.name)
    gc.freeze()
    # Nobody waits for a process that only waits for its command.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    order = _wait_for_orders(socket.socket(fileno=int(sys.argv[1])))
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    time.tzset()
    sys.argv = ["staging-fsm", *order["arguments"]]
    runpy.run_module("staging_fsm.faces", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()

"""Grows a tree of processes that is hard to find or hard to kill, then ends or stays.

`tree.py KIND exit|stay`: the leader announces the tree once everybody is in place.
"""

import ctypes
import os
import signal
import sys

from lifeline import LINE, announce, stay

PLACES_OUT, PLACES_IN = os.pipe()
PR_SET_CHILD_SUBREAPER = 36


def settle() -> None:
    """Tell the leader that this process is where it belongs, and stay."""
    os.write(PLACES_IN, b".")
    stay()


def child() -> bool:
    """Fork; true in the child."""
    return os.fork() == 0


def plain() -> int:
    """One child."""
    if child():
        settle()
    return 1


def orphan() -> int:
    """A grandchild whose parent is gone."""
    if child():
        if child():
            settle()
        os._exit(0)
    return 1


def session() -> int:
    """A child in a session of its own."""
    if child():
        os.setsid()
        settle()
    return 1


def group() -> int:
    """A child in a process group of its own."""
    if child():
        os.setpgid(0, 0)
        settle()
    return 1


def daemon() -> int:
    """An orphan in a session of its own, with another program and an emptied environment."""
    if child():
        os.setsid()
        if child():
            os.write(PLACES_IN, b".")
            os.execve("/bin/sleep", ["sleep", "600"], {})  # noqa: S606  # a program of its own
        os._exit(0)
    return 1


def stubborn() -> int:
    """Children that ignore every signal that can be ignored."""
    for _ in range(2):
        if child():
            os.setsid()
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(number, signal.SIG_IGN)
            settle()
    return 2


def stopped() -> int:
    """Stopped processes, in the leader's session and out of it."""
    for away in (False, True):
        if child():
            if away:
                os.setsid()
            os.write(PLACES_IN, b".")
            os.kill(os.getpid(), signal.SIGSTOP)
            stay()
    return 2


def chain() -> int:
    """A chain, each link in a session of its own and the child of the one before."""
    links = 40
    for _ in range(links):
        if not child():
            if os.getpid() == LEADER:
                return links
            settle()
        os.setsid()
    settle()
    return links


def crowd() -> int:
    """Three hundred children, each third an orphan in a session of its own."""
    count = 300
    for number in range(count):
        if child():
            if number % 3 == 0:
                os.setsid()
                if not child():
                    os._exit(0)
            settle()
    return count


def keeper() -> int:
    """A child that keeps its orphans to itself, as a subreaper of its own."""
    if child():
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if child():
            if child():
                settle()
            os._exit(0)
        settle()
    return 2


LEADER = os.getpid()
KIND, END = sys.argv[1:]
GROW = {
    kind.__name__: kind
    for kind in (
        plain, orphan, session, group, daemon, stubborn, stopped, chain, crowd, keeper,
    )
}  # fmt: skip
expected = GROW[KIND]()
in_place = 0
while in_place < expected:
    in_place += len(os.read(PLACES_OUT, expected))
announce(expected)
if END == "stay":
    stay()
os.close(LINE)

"""A connection that keeps others off: who holds it, and what follows when it breaks."""

import signal
import socket
import sys
from collections.abc import Iterator

import pytest

from staging_fsm.core.outcome import Stop
from stand import PATIENCE_SECONDS, RUN, Stand, is_ready, patch_supervisor, program


@pytest.fixture
def fence() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return both sides of a connection: the worker's, and whoever's it leads to."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_supervisor_holds_the_fence_for_as_long_as_it_lives(
    stand: Stand, fence: tuple[socket.socket, socket.socket]
) -> None:
    """A fence stands until its run has ended, although its worker is gone."""
    ours, theirs = fence
    stand.start(*program("tree", "plain", "stay"), inherited=[ours.fileno()])
    stand.lifeline.await_members(1)
    ours.close()

    assert not is_ready(theirs.fileno(), 0)
    stand.suites.reap(RUN)
    assert is_ready(theirs.fileno())
    assert theirs.recv(1) == b""


def test_suite_has_no_descriptor_but_the_usual(
    stand: Stand, fence: tuple[socket.socket, socket.socket]
) -> None:
    """A suite cannot speak on the connection that fences it off: it does not get it."""
    listing = "import os; print(*sorted(os.listdir('/proc/self/fd')))"
    stand.start(sys.executable, "-c", listing, inherited=[fence[0].fileno()])
    stand.collect()

    # The fourth is the list's own.
    assert stand.log().split() == [b"0", b"1", b"2", b"3"]


#: A supervisor that keeps by which signals it ends its suite.
SIGNALLER = """
signals, sent = shim.Suite.signal_group, open(sys.argv[2] + "/signals", "w")
def signal_group(suite, *numbers):
    print(*map(int, numbers), file=sent, flush=True)
    signals(suite, *numbers)
shim.Suite.signal_group = signal_group
"""


def test_suite_that_lost_its_fence_is_killed_at_once(
    stand: Stand, fence: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the fence breaks, a suite is killed without grace or a word, and has not passed."""
    patch_supervisor(monkeypatch, f"exec({SIGNALLER!r});")
    stubborn = program("tree", "stubborn", "stay")
    stand.start(*stubborn, inherited=[fence[0].fileno()], kill_grace_seconds=100 * PATIENCE_SECONDS)
    stand.lifeline.await_members(1)
    fence[1].close()

    assert stand.lifeline.is_cut()
    assert stand.collect().facts.stopped_by == Stop.FENCE_LOST
    assert stand.file("signals").read_text().split() == [str(signal.SIGKILL.value)]


def test_suite_does_not_start_behind_a_broken_fence(
    stand: Stand, fence: tuple[socket.socket, socket.socket]
) -> None:
    """A worker that was frozen until its fence broke starts nothing any more."""
    fence[1].close()
    stand.start("/usr/bin/touch", "it-ran", inherited=[fence[0].fileno()])

    assert stand.collect().facts.stopped_by == Stop.FENCE_LOST
    assert not (stand.root / "tree" / "it-ran").exists()

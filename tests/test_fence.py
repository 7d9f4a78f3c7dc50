"""A connection that keeps others off: who holds it, and what follows when it breaks."""

import signal
import socket
import sys
from collections.abc import Iterator

import pytest

from staging_fsm.core.outcome import Stop
from staging_fsm.effects.processes import identify, is_stopped, send_signal
from stand import PATIENCE_SECONDS, RUN, Stand, await_that, is_ready, patch_supervisor, program


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
    # A report outside of the run's folder has a lock of its own.
    report = str(stand.root / "tree" / "report.xml")
    stand.start(sys.executable, "-c", listing, inherited=[fence[0].fileno()], report=report)
    stand.collect()

    # The fourth is the list's own.
    assert stand.log().split() == [b"0", b"1", b"2", b"3"]


#: A supervisor that keeps by which signals it ends its suite.
SIGNALLER = """
signals, sent = main.Suite.signal_group, open(sys.argv[2] + "/signals", "w")
def signal_group(suite, *numbers):
    print(*map(int, numbers), file=sent, flush=True)
    signals(suite, *numbers)
main.Suite.signal_group = signal_group
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


def test_each_of_several_fences_is_watched(
    stand: Stand, fence: tuple[socket.socket, socket.socket]
) -> None:
    """A run that is fenced off by several connections is stopped where any one of them breaks."""
    further, theirs = socket.socketpair()
    with further, theirs:
        both = [fence[0].fileno(), further.fileno()]
        stand.start(*program("tree", "plain", "stay"), inherited=both)
        stand.lifeline.await_members(1)
        theirs.close()

        assert stand.collect().facts.stopped_by == Stop.FENCE_LOST


#: A supervisor to which something is told between its suite's first moment and its first look.
TOLD = """
wait = main.Watch.await_stop
def tell(watch, deadline, idle):
    for name in {names!r}:
        setattr(watch, name, True)
    return wait(watch, {deadline}, idle)
main.Watch.await_stop = tell
"""


@pytest.mark.parametrize(
    ("names", "deadline", "stop"),
    [
        (["fence_lost"], "0.0", Stop.FENCE_LOST),
        (["stop_requested"], "0.0", Stop.REQUEST),
        (["fence_lost", "stop_requested"], "deadline", Stop.FENCE_LOST),
        ([], "0.0", Stop.DEADLINE),
    ],
)
def test_of_several_reasons_to_stop_the_most_pressing_is_told(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, names: list[str], deadline: str, stop: Stop
) -> None:
    """A lost fence comes before a request and a request before the time: it has the least grace."""
    code = TOLD.format(names=names, deadline=deadline)
    patch_supervisor(monkeypatch, f"exec({code!r});")

    assert stand.facts(*program("tree", "plain", "stay")).stopped_by == stop


def test_fence_that_its_server_has_left_is_lost(stand: Stand) -> None:
    """A connection whose other side only says that it will send no more keeps nobody off."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    with ours, theirs:
        stand.start(*program("tree", "plain", "stay"), inherited=[ours.fileno()])
        stand.lifeline.await_members(1)
        theirs.shutdown(socket.SHUT_WR)

        assert stand.lifeline.is_cut()
        assert stand.collect().facts.stopped_by == Stop.FENCE_LOST


def test_suite_that_lost_its_fence_has_no_more_grace(
    stand: Stand, fence: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suite that is being stopped is killed at once where the fence breaks meanwhile."""
    patch_supervisor(monkeypatch, f"exec({SIGNALLER!r});")
    grace, signals = 2 * PATIENCE_SECONDS, stand.file("signals")
    stubborn = program("parricide", str(signal.SIGTERM.value), "once")
    stand.start(*stubborn, inherited=[fence[0].fileno()], kill_grace_seconds=grace)
    await_that(lambda: signals.exists() and str(signal.SIGTERM.value) in signals.read_text())
    fence[1].close()

    assert stand.lifeline.is_cut()
    assert stand.collect().facts.stopped_by == Stop.REQUEST


def test_suite_does_not_start_behind_a_broken_fence(
    stand: Stand, fence: tuple[socket.socket, socket.socket]
) -> None:
    """A worker that was frozen until its fence broke starts nothing any more."""
    fence[1].close()
    stand.start("/usr/bin/touch", "it-ran", inherited=[fence[0].fileno()])

    assert stand.collect().facts.stopped_by == Stop.FENCE_LOST
    assert not (stand.root / "tree" / "it-ran").exists()


def test_fence_that_falls_while_what_is_left_is_killed_counts(
    stand: Stand,
    fence: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Up to its result a run is behind its fence: another may have begun before it was written."""
    stop = (
        "import os; sweep = main.sweep;"
        "main.sweep = lambda *a: (os.kill(os.getpid(), 19), sweep(*a))[1];"
    )
    patch_supervisor(monkeypatch, stop)
    stand.start("true", inherited=[fence[0].fileno()])
    supervisor = identify(stand.pid())
    assert supervisor is not None
    await_that(lambda: is_stopped(supervisor))
    fence[1].close()
    send_signal(supervisor, signal.SIGCONT)

    assert stand.collect().facts.stopped_by == Stop.FENCE_LOST

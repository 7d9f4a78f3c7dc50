"""The line to the test that every process of a suite holds: at its end, nobody is left."""

import os
import signal

#: Inherited by every process that is forked or started from here on.
LINE = os.open(os.environ["LIFELINE"], os.O_WRONLY)
os.set_inheritable(LINE, True)  # noqa: FBT003  # the standard library's signature


def announce(count: int = 1) -> None:
    """Tell the test that `count` processes hold the line."""
    os.write(LINE, b"." * count)


def await_release() -> None:
    """Wait until the test lets go."""
    with open(os.environ["RELEASE"], "rb") as release:  # noqa: PTH123  # pathlib is slow to import
        release.read()


def stay() -> None:
    """Stay for ever."""
    while True:
        signal.pause()

"""One supervisor: started, waited for, woken when it is late, ended when it is hung.

It outlives the worker that started it, so whoever waits for one may have found it by the
control folder of its run alone. Whatever of the suite is below it is killed before it is.
"""

import functools
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from staging_fsm.core.plan import SuitePlan
from staging_fsm.effects.files import above_standard
from staging_fsm.effects.processes import (
    ProcessIdentity,
    age_seconds,
    identify,
    is_stopped,
    kill_descendants,
    repeat_kill,
    send_signal,
    wait_for_end,
)
from staging_fsm.effects.run_folder import RunFolder
from staging_fsm.effects.supervisor.result import SEAL_BYTES

#: How much longer than deadline or grace a supervisor may take before it is woken.
LATE_SECONDS: Final = 0.5
#: How long it may take after that, with its sweep and its log, before it counts as hung.
MARGIN_SECONDS: Final = 20.0
#: How long a supervisor may take from its start to its lock.
START_SECONDS: Final = 10.0
#: How long one that was killed may take to be gone.
STOP_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.005
#: Imported, not run as a script: so its byte code is cached, which saves half of its start.
#: Its neighbours it finds by their package: on its path there is only the standard library.
SUPERVISOR_CODE: Final = (
    "import sys; sys.path.append(sys.argv[1]); from supervisor import main; sys.path.pop();"
    " main.main(*sys.argv[2:])"
)
#: Those that this process started: their end must be waited for by their parent.
_CHILDREN: Final[dict[Path, tuple["subprocess.Popen[bytes]", ProcessIdentity | None]]] = {}


def start_supervisor(
    folder: RunFolder,
    suite: SuitePlan,
    tree: Path,
    report: Path | None,
    environment: Mapping[str, str],
    locks: Sequence[int],
    inherited: Sequence[int],
) -> None:
    """Start a run's supervisor, which starts the suite in `tree` with `environment`.

    It is born with the descriptors `locks` and `inherited`. Raises OSError and ValueError,
    and PreparationError where the secret that seals its result cannot be read.
    """
    words = folder.write_command(suite.command_in(folder.reports))
    # What it must not take from anybody else: whoever knows the folder may write there.
    digest = hashlib.blake2b(words, digest_size=SEAL_BYTES).digest()
    told = folder.state.secret() + digest
    places = [str(Path(__file__).parent), str(folder.path), str(tree), str(report or "")]
    settings = [
        f"timeout={suite.timeout_seconds}",
        f"grace={suite.kill_grace_seconds}",
        f"idle={suite.idle_timeout_seconds}",
        f"log={suite.log_max_bytes}",
        f"memory={suite.memory_max_bytes}",
        f"processes={suite.processes_max}",
        f"open_files={suite.open_files_max}",
        f"file_bytes={suite.file_max_bytes}",
    ]
    # Lock and secret are there before it is: whatever becomes of us, it goes on.
    with (
        folder.shim_errors.open("wb") as errors,
        _pipe_of(told) as pipe,
        above_standard(locks) as held,
        above_standard(inherited) as fences,
    ):
        numbers = [",".join(map(str, descriptors)) for descriptors in (held, fences)]
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", SUPERVISOR_CODE, *places, *numbers, *settings],
            stdin=pipe,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
            start_new_session=True,
            pass_fds=(*held, *fences),
        )
    _CHILDREN[folder.path] = process, identify(process.pid)


def _pipe_of(data: bytes) -> BinaryIO:
    """Return a pipe that holds `data`, which has to be short, and its end."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(data)
    return os.fdopen(reading, "rb")


def is_child(folder: RunFolder) -> bool:
    """Say whether a run's supervisor was started by this process, and not yet waited for."""
    return folder.path in _CHILDREN


def request_stop(folder: RunFolder) -> None:
    """Have a run's supervisor, if there is one, end the suite and itself."""
    identity = _await_identity(folder)
    if identity is not None:
        send_signal(identity, signal.SIGTERM)


def await_supervisor(folder: RunFolder, timeout: float, grace: float) -> bool:
    """Wait for the supervisor's end; wake it when it is late, end it when it is hung.

    Returns False for one of our own that did not come to its end: whatever stands in
    its place, no result is its.
    """
    child, identity = _CHILDREN.get(folder.path, (None, None))
    if child is None:
        identity = _await_identity(folder)
    if identity is not None and not _ends(identity, timeout, grace):
        # Everything of the suite is below it for as long as it lives.
        repeat_kill(functools.partial(kill_descendants, identity))
        send_signal(identity, signal.SIGKILL)
        wait_for_end(identity, STOP_SECONDS)
    if child is None:
        return True
    _CHILDREN.pop(folder.path, None)
    try:
        # Not by poll: while another thread asks, it says that the process goes on.
        return child.wait(STOP_SECONDS) == 0
    except subprocess.TimeoutExpired:
        return False


def _ends(identity: ProcessIdentity, timeout: float, grace: float) -> bool:
    """Wait for a supervisor's end, for as long as it can need; False if it is hung.

    A suite may have stopped it with SIGSTOP. Woken, it sees for itself that its
    time is over, and does what is left to do.
    """
    left = max(0.0, timeout - age_seconds(identity))
    hindered = False
    for seconds in (left, grace, 0.0):
        if wait_for_end(identity, seconds + LATE_SECONDS):
            return True
        hindered = is_stopped(identity)
        send_signal(identity, signal.SIGCONT)
    return not hindered and wait_for_end(identity, MARGIN_SECONDS)


def _await_identity(folder: RunFolder) -> ProcessIdentity | None:
    """Return who supervises the run, waiting a moment for one that was just started."""
    deadline = time.monotonic() + START_SECONDS
    while not folder.holds("shim") and time.monotonic() < deadline:
        with folder.lock() as lock:
            if lock is not None:
                break
        time.sleep(_PAUSE_SECONDS)
    return folder.identity("shim")

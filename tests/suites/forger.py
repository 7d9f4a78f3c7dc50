"""Finds the control folder of its own run and tampers with it: `forger.py FILE DEED`, exit 0."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

NAME, DEED = sys.argv[1:]
RUN = os.environ["STAGING_ATTEMPT"]
RUNS = Path(os.environ["STAGING_REPORT_DIR"]).parent.parent / "runs"
TARGET = RUNS / RUN / NAME
SUCCESS = f"""run={RUN}
exit_code=0
signal=
spawn_error=
spawn_detail=
stopped_by=
duration_seconds=1.0
survivors=0
processes_left=0
log_bytes=0
log_dropped_bytes=0
log_complete=1
"""


def write(data: bytes) -> None:
    """Put a file there, whatever was there before."""
    forged = TARGET.with_name("forged")
    forged.write_bytes(data)
    forged.replace(TARGET)


def huge() -> None:
    """Put a file there that nobody can read in a lifetime."""
    write(b"")
    os.truncate(TARGET, 1 << 42)


def immovable() -> None:
    """Put a file there that cannot be set aside, because its place is taken."""
    write(b"")
    (TARGET.with_name(f"{NAME}.foreign") / "taken").mkdir(parents=True)


DEEDS: dict[str, Callable[[], object]] = {
    "success": lambda: write(SUCCESS.encode() + b"0" * 64 + b"\n"),
    "unsealed": lambda: write(SUCCESS.encode()),
    "garbage": lambda: write(b"\0\xff\n\n=\n"),
    "empty": lambda: write(b""),
    "deep": lambda: write(b"[" * 50_000),
    "replay": lambda: write((RUNS / RUN.replace(".1", ".0") / "result").read_bytes()),
    "pipe": lambda: os.mkfifo(TARGET),
    "link": lambda: TARGET.symlink_to("/dev/zero"),
    "folder": TARGET.mkdir,
    "huge": huge,
    "immovable": immovable,
    "nothing": lambda: None,
}
#: What is done to the file itself, once something is in it.
TO_ITSELF: dict[str, Callable[[], object]] = {
    "cut short": lambda: os.truncate(TARGET, 0),
    "longer": lambda: os.truncate(TARGET, 5000),
}
if DEED in TO_ITSELF:
    print("A" * 1000, flush=True)  # noqa: T201  # it is what is tampered with
    while TARGET.stat().st_size < 1000:
        os.sched_yield()
    TO_ITSELF[DEED]()
    print("the end")  # noqa: T201  # it is what comes after
else:
    TARGET.unlink(missing_ok=True)
    DEEDS[DEED]()

"""Progress a person can follow: one line a transition, and a live line while a suite runs."""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.status import Status
from rich.text import Text

from staging_fsm.core.jobs import JobRow
from staging_fsm.core.masking import MaskedStream
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import State
from staging_fsm.core.times import parse_time
from staging_fsm.drive.engine import run_id_of
from staging_fsm.effects.files import open_regular
from staging_fsm.effects.run_folder import RunFolder
from staging_fsm.effects.run_output import RunOutput
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.faces.output import last_line

REFRESH_SECONDS: Final = 0.25
_LINE_CHARACTERS: Final = 60
_FOLLOW_BYTES: Final = 256 * 1024
_STYLES: Final = {
    State.ADVANCED: "green",
    State.VERDICT_PASSED: "green",
    State.ROLLED_BACK: "yellow",
    State.VERDICT_FAILED: "yellow",
    State.FAILED_CLOSED: "red",
    State.TOOL_ERROR: "red",
    State.EXHAUSTED: "red",
}


class Progress:
    """Prints what attempts do. Plain lines where the console is no terminal.

    With `follow` the suite's output is copied to the console as it is written.
    """

    def __init__(
        self,
        console: Console,
        state: StateDir,
        variables: Mapping[str, str],
        *,
        follow: bool = False,
    ) -> None:
        """Print on `console`; logs are looked up in `state`, and secrets in `variables`."""
        self._console, self._state, self._follow = console, state, follow
        self._output = RunOutput(state, variables)
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    def moved(self, row: JobRow, snapshot: Snapshot) -> None:
        """Print the last transition; begin or end the live part."""
        move = snapshot.history[-1]
        line = Text(f"{parse_time(move.time):%H:%M:%S} {row.work_item} {move.id} ")
        line.append(f"{move.row.source} → ")
        line.append(str(move.row.target), style=_STYLES.get(move.row.target, "bold"))
        line.append(f"  {move.reason}", style="dim")
        self.stop()
        self._console.print(line, soft_wrap=True)
        if snapshot.state is State.RUNNING:
            self._start(snapshot)

    def stop(self) -> None:
        """End the live part."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _start(self, snapshot: Snapshot) -> None:
        self._ended = threading.Event()
        parts = []
        if self._follow:
            parts.append(self._copy_output)
        elif self._console.is_terminal:
            parts.append(self._show_live_line)
        for part in parts:
            thread = threading.Thread(target=part, args=(snapshot, self._ended), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _show_live_line(self, snapshot: Snapshot, ended: threading.Event) -> None:
        started = time.monotonic()
        plan = snapshot.bound_plan
        run_id = run_id_of(snapshot)
        with Status("", console=self._console, refresh_per_second=1 / REFRESH_SECONDS) as status:
            while not ended.wait(REFRESH_SECONDS):
                output = self._output.tail(run_id, 1024)
                status.update(
                    Text(
                        f"run {snapshot.last_run.number} of {plan.budget.runs_max}, "
                        f"{time.monotonic() - started:.0f} of {plan.suite.timeout_seconds:g} s  "
                        f"{last_line(output)[:_LINE_CHARACTERS]}"
                    )
                )

    def _copy_output(self, snapshot: Snapshot, ended: threading.Event) -> None:
        run_id = run_id_of(snapshot)
        path = RunFolder(self._state, run_id).log
        position, stream = 0, None
        while True:
            last = ended.wait(REFRESH_SECONDS)
            while block := _read_from(path, position):
                position += len(block)
                # What the suite was given is known from when it is there.
                stream = stream or MaskedStream(self._output.masker(run_id))
                self._show(stream.feed(block))
            if last:
                self._show(stream.end() if stream else b"")
                return

    def _show(self, output: bytes) -> None:
        self._console.out(output.decode("utf-8", "replace"), end="", highlight=False)


def _read_from(path: Path, position: int) -> bytes:
    # The suite may have put a pipe there, which could be waited for for ever.
    file = open_regular(path)
    if file is None:
        return b""
    with file:
        file.seek(position)
        return file.read(_FOLLOW_BYTES)

"""What may be shown of a run: the end of its output and its command, without secrets.

What was shown once stays as it was: an artifact that is written again after a crash is
the same, though a secret was changed meanwhile.
"""

import contextlib
import json
from collections.abc import Mapping
from typing import Final

import attrs

from staging_fsm.core.masking import Masker
from staging_fsm.core.plan import BASE_ENVIRONMENT, SuitePlan
from staging_fsm.core.visible import visible_line
from staging_fsm.effects.files import read_tail, write_whole
from staging_fsm.effects.run_folder import RunFolder
from staging_fsm.effects.state_dir import StateDir

#: How much of the end of a run's output is kept without secrets.
KEPT_TAIL_BYTES: Final = 64 * 1024
#: So much is told of what is wrong with a report, in words that may be the suite's own.
_LINE_CHARACTERS: Final = 500


@attrs.frozen
class RunOutput:
    """The output and the commands of the runs below `state`, for whoever has `variables`."""

    state: StateDir
    variables: Mapping[str, str]

    def tail(self, run_id: str, size: int) -> bytes:
        """Return the last `size` bytes of a run's output; also while it runs.

        Of a run that has ended no more than KEPT_TAIL_BYTES, always the same.
        """
        folder = RunFolder(self.state, run_id)
        if folder.holds("tail"):
            return read_tail(folder.path / "tail", size)
        return _masked(self.masker(run_id), folder, size)

    def keep_tail(self, run_id: str, given: tuple[str, ...]) -> None:
        """Keep the end of the output of a run that has ended, as it may be shown now.

        `given` are the names of the variables that its suite was given.
        """
        folder = RunFolder(self.state, run_id)
        with contextlib.suppress(OSError):
            # Not synced: after a power cut it is made again, as good as ever.
            masker = self._masker(given, folder.command())
            write_whole(folder.path / "tail", _masked(masker, folder, KEPT_TAIL_BYTES))

    def line(self, run_id: str, given: tuple[str, ...], text: str) -> str:
        """Return a text with words of a run's suite in it: one short line, without secrets.

        `given` are the names of the variables that its suite was given.
        """
        masker = self._masker(given, RunFolder(self.state, run_id).command())
        masked = masker.mask_whole(text.encode("utf-8", "surrogateescape"))
        return visible_line(masked.decode("utf-8", "replace"))[:_LINE_CHARACTERS]

    def masker(self, run_id: str) -> Masker:
        """Return what masks the secrets of this worker, and those that the suite was given."""
        folder = RunFolder(self.state, run_id)
        order = folder.order_if_any()
        return self._masker(() if order is None else order.environment, folder.command())

    def _masker(self, names: tuple[str, ...], command: tuple[str, ...]) -> Masker:
        return Masker.of(self.variables, set(names) - set(BASE_ENVIRONMENT), command)

    def shown_command(self, run_id: str, suite: SuitePlan) -> tuple[str, ...]:
        """Return the words of a run's command, always the same.

        They are masked where nothing is left of the run, too, or nothing ever was here.
        """
        kept = RunFolder(self.state, run_id).sealed("shown")
        if kept:
            return tuple(json.loads(kept["command"]))
        return self.masked_command(suite)

    def masked_command(self, suite: SuitePlan) -> tuple[str, ...]:
        """Return the words of a command without the secrets that are known here and now."""
        return self._masker(suite.environment, suite.command).mask_words(suite.command)

    def keep_command(self, run_id: str, suite: SuitePlan) -> None:
        """Keep the command as it may be shown now, if that is not as it is."""
        shown = self.shown_command(run_id, suite)
        if shown != suite.command:
            RunFolder(self.state, run_id).seal("shown", command=json.dumps(shown))


def _masked(masker: Masker, folder: RunFolder, size: int) -> bytes:
    # A secret that begins before the tail is masked as a whole, and only then cut off.
    wanted = size + masker.reach
    parts = ("output.log", "output.tail.old", "output.tail")
    output = b"".join(read_tail(folder.path / part, wanted) for part in parts)[-wanted:]
    return masker.mask(output)[-size:]

"""How a verdict reaches the place where the host looks for it, from a machine that shares no disk.

The gate stays as it is: it reads the artifact in a folder. A publisher says which
folder that is on this machine, brought up to date, and makes what is written there
the host's before the gate is asked. Two are given; a host may bring its own.
"""

import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

import attrs

from staging_fsm.core.artifact import is_of_run
from staging_fsm.core.errors import PreparationError
from staging_fsm.core.jobs import JobRow
from staging_fsm.effects.files import (
    ARTIFACT_MODE,
    ArtifactFiles,
    make_durably,
    read_small,
    set_aside,
    write_durably,
)
from staging_fsm.effects.remote import Mirror
from staging_fsm.host.contract.gate import ARTIFACT_NAME

#: The output of the last run, published beside the artifact; its newest part if it is long.
LOG_NAME: Final = "15-staging-output.log"
LOG_MAX_BYTES: Final = 1024 * 1024
#: What lies in a shared folder, and not below the place where it is to be mounted.
MARK_NAME: Final = ".staging-fsm-fleet"
_MARK: Final = re.compile(r"[0-9a-f]{16}")


class Publisher(Protocol):
    """Carries the papers of work items to the host."""

    def open(self, row: JobRow) -> Path:
        """Return the folder that stands for the repository where the job's gate looks.

        Raises PreparationError where it cannot be brought up to date.
        """
        ...

    def publish(
        self, row: JobRow, files: Mapping[str, bytes | None], permitted: Callable[[], None]
    ) -> None:
        """Make `files`, by paths below the opened folder, the host's. Safe to repeat.

        In the place of one of None nothing is left, neither for the host nor in the opened
        folder. `permitted` is asked as late as possible, and forbids by raising. Raises
        PreparationError or OSError where the papers did not reach the host.
        """
        ...

    def close(self, row: JobRow) -> None:
        """Give back what `open` made."""
        ...


@attrs.frozen
class SharedFolder:
    """Papers in a folder that the host and every machine see, one folder a repository."""

    root: Path
    #: The mark that must lie in it, as the fleet was set up; None where none was noted.
    mark: str | None = None

    def open(self, row: JobRow) -> Path:
        """Return the repository's folder below the shared one.

        Raises PreparationError where that is not there, or is another one: what a worker
        wrote below a place where nothing is mounted, no host would ever read.
        """
        self.check()
        # Absolute in any case: agents are told of it, who run in a folder of their own.
        return self.root.absolute() / row.repo

    def check(self) -> None:
        """Raise PreparationError unless the shared folder is there, with its mark in it."""
        self._require()
        found = None if self.mark is None else self._found()
        if found != self.mark:
            message = (
                f"the shared folder {self.root} is not the fleet's: {MARK_NAME} in it says"
                f" {found or 'nothing'}, and the fleet was set up with {self.mark}. Mount the right"
                " one, or run `staging-fsm fleet-setup` again if it is to be this one"
            )
            raise PreparationError(message)

    def marked(self) -> str:
        """Return the mark of the shared folder, made where there is none.

        Raises PreparationError where the folder is not there, or its mark is none of ours,
        and OSError where it cannot be written.
        """
        self._require()
        path = self.root / MARK_NAME
        if not os.path.lexists(path):
            # Every worker is to read it, whoever it is there.
            write_durably(path, f"{secrets.token_hex(8)}\n".encode(), ARTIFACT_MODE)
        found = self._found()
        if found is None:
            message = f"{path} is no mark of a fleet: remove it, and set up again"
            raise PreparationError(message)
        return found

    def _require(self) -> None:
        if not self.root.is_dir():
            message = (
                f"the shared folder {self.root} is not there, and no worker makes it: mount it, or"
                " set ORCH_FLEET_SHARED_DIR to where it is"
            )
            raise PreparationError(message)

    def _found(self) -> str | None:
        try:
            text = (read_small(self.root / MARK_NAME, 100) or b"").decode("ascii", "replace")
        except OSError:
            return None
        return text.strip() if _MARK.fullmatch(text.strip()) else None

    def publish(
        self, row: JobRow, files: Mapping[str, bytes | None], permitted: Callable[[], None]
    ) -> None:
        """Replace each file, whole or not at all; one that is to go is kept beside its place."""
        for name, content in files.items():
            path = self.open(row) / name
            make_durably(path.parent)
            permitted()
            if content is None:
                set_aside(path, "removed")
            else:
                write_durably(path, content, ARTIFACT_MODE)

    def close(self, row: JobRow) -> None:
        """Do nothing."""


@attrs.frozen
class GitBranch:
    """Papers as a commit on the work item's branch of the remote."""

    mirror: Mirror
    branch: Callable[[JobRow], str]
    checkouts: Path

    def open(self, row: JobRow) -> Path:
        """Return a checkout of the branch as it is now. Raises PreparationError."""
        target = self._target(row)
        self.mirror.checkout(self.branch(row), target)
        return target

    def publish(
        self, row: JobRow, files: Mapping[str, bytes | None], permitted: Callable[[], None]
    ) -> None:
        """Push one commit on top of the branch, and move the checkout there."""
        words = f"{row.work_item}: staging of job {row.id}"
        self.mirror.publish(self._target(row), self.branch(row), files, words, permitted)

    def close(self, row: JobRow) -> None:
        """Remove the checkout."""
        self.mirror.discard(self._target(row))

    def _target(self, row: JobRow) -> Path:
        return self.checkouts / f"job-{row.id}"


def published_log(folder: Path, attempt_id: str, number: int) -> bytes | None:
    """Return the log beside the artifact in `folder`, if they are those of this run.

    Another machine has published them, and died before the gate was asked: it may
    have had more of the output than this one, and was the first. Whoever hands over
    after it quotes the same, so that the same verdict is not published twice.
    """
    artifact = read_small(folder / ARTIFACT_NAME, LOG_MAX_BYTES) or b""
    if not is_of_run(artifact.decode("utf-8", "replace"), attempt_id, number):
        return None
    return read_small(folder / LOG_NAME, LOG_MAX_BYTES)


@attrs.frozen
class PublishedArtifacts:
    """The artifact's place, for an engine: what is written there is published."""

    publisher: Publisher
    row: JobRow
    root: Path
    #: The newest output of the last run, as much as asked for, as far as this machine has it.
    log: Callable[[int], bytes]
    permitted: Callable[[], None]
    files: ArtifactFiles = attrs.field(factory=ArtifactFiles)

    def set_aside(self, folder: Path, suffix: str) -> None:
        """Move an existing artifact out of everybody's sight, not of the gate's alone.

        Raises PreparationError or OSError where it stays in anybody's.
        """
        self.permitted()
        path = folder / ARTIFACT_NAME
        if os.path.lexists(path):
            self.files.set_aside(folder, suffix)
            gone = {str(path.relative_to(self.root)): None}
            self.publisher.publish(self.row, gone, self.permitted)

    def write(self, folder: Path, text: str) -> Path:
        """Publish the artifact and the log; return the artifact's path."""
        below = folder.relative_to(self.root)
        # The log first: whoever sees the artifact of a run sees its log beside it.
        papers = {
            str(below / LOG_NAME): self.log(LOG_MAX_BYTES),
            str(below / ARTIFACT_NAME): text.encode(),
        }
        self.publisher.publish(self.row, papers, self.permitted)
        return folder / ARTIFACT_NAME

    def is_written(self, folder: Path, text: str) -> bool:
        """Say whether the artifact is exactly `text` where the gate reads it."""
        return self.files.is_written(folder, text)

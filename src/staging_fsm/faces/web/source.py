"""What the pages are made from: a host's jobs, and what else a host can say of them."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import attrs

from staging_fsm.core.errors import JobNotFoundError, StagingError, in_words
from staging_fsm.core.jobs import JobRow, JobRows, Place
from staging_fsm.effects.journal import log_error
from staging_fsm.faces.queue import StagingRunnerBlock, staging_runner_block
from staging_fsm.host.store import WorkItem

#: The table is looked at no more often than this, however many ask.
PULSE_SECONDS: Final = 0.5


class JobsUnreadableError(StagingError):
    """The row store could not be read. Whoever asked may ask again."""


@contextmanager
def reading() -> Iterator[None]:
    """Turn whatever a row store raises into JobsUnreadableError, and log it."""
    try:
        yield
    except JobNotFoundError:
        raise
    except Exception as error:
        log_error("the jobs cannot be read", error=in_words(error))
        message = f"the jobs cannot be read ({type(error).__name__}): the server's log says more"
        raise JobsUnreadableError(message) from error


@attrs.define
class Source:
    """A host's jobs. Safe to use from several threads.

    `variables` say what is configured; they default to the process's environment.
    `place` says where a job's artifact may lie, `work_item` how its work item
    stands; a host that cannot say leaves them out, and the pages say less. `has_agent`
    says whether there is an agent that takes what the runner declines.
    """

    rows: JobRows
    variables: Mapping[str, str] = attrs.field(factory=lambda: os.environ)
    place: Callable[[JobRow], Place] | None = None
    work_item: Callable[[JobRow], WorkItem | None] | None = None
    pulse_seconds: float = PULSE_SECONDS
    has_agent: bool = True
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _block: StagingRunnerBlock | None = attrs.field(default=None, init=False)
    _read_at: float = attrs.field(default=0.0, init=False)

    def block(self) -> StagingRunnerBlock:
        """Return the block, not older than `pulse_seconds`. Raises JobsUnreadableError."""
        with self._lock, reading():
            if self._block is None or time.monotonic() - self._read_at >= self.pulse_seconds:
                self._block = staging_runner_block(
                    self.rows, self.variables, has_agent=self.has_agent
                )
                self._read_at = time.monotonic()
            return self._block

    def load(self, job: str) -> JobRow:
        """Return the row whose id is written `job`; raises JobNotFoundError."""
        with reading():
            return self.rows.load(job)

    def recent(self, limit: int, repo: str) -> list[JobRow]:
        """Return the rows of `repo` among the newest `limit`. Raises JobsUnreadableError."""
        with reading():
            return self.rows.recent(limit, repo)

    def place_of(self, row: JobRow) -> Place | None:
        """Return where a job's artifact may lie; None if unknown. Raises JobsUnreadableError."""
        with reading():
            try:
                return None if self.place is None else self.place(row)
            except (OSError, ValueError, LookupError, RuntimeError):
                return None

    def work_item_of(self, row: JobRow) -> WorkItem | None:
        """Return how a job's work item stands; None if unknown. Raises JobsUnreadableError."""
        with reading():
            return None if self.work_item is None else self.work_item(row)

    def version(self, job: str) -> object:
        """Return what changes with each move of an attempt; None if there is no such job."""
        try:
            document = self.load(job).document
        except JobNotFoundError:
            return None
        return document.get("version") if isinstance(document, dict) else None

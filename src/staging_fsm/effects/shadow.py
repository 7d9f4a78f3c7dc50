"""The shadow's records: one folder for each launch that the LLM agent kept.

    launch.json         what was launched last, written when the runner declined
    agent.json          how the agent's launch ended, written after its gate
    agent.md            the artifact that the agent left to its gate
    attempt.<n>.json    the runner's own attempt, one file for each version
    15-staging-log.md   the runner's own artifact

A folder is called after its job, and one of a further launch after its number, too.
Each file has one writer and is written once, or replaced as a whole. To the engine
the records are job rows; the host's rows are neither read nor written.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

import attrs
import msgspec

from staging_fsm.core.errors import (
    JobNotFoundError,
    SnapshotRefusedError,
    StaleSnapshotError,
)
from staging_fsm.core.jobs import QUEUED, RUNNING, STAGE, BrokenMetadata, JobRow, Place
from staging_fsm.core.snapshot import Snapshot, dump_snapshot, load_snapshot
from staging_fsm.core.spec import State
from staging_fsm.core.times import format_time, parse_time
from staging_fsm.effects.files import (
    DIRECTORY_MODE,
    artifact_in,
    create_durably,
    create_whole,
    open_regular,
    read_tail,
    write_durably,
    write_whole,
)

#: What is kept of an agent's artifact, and read of the end of its log.
ARTIFACT_BYTES_MAX: Final = 1024 * 1024
LOG_TAIL_BYTES: Final = 64 * 1024
#: What stands between a job's id and the number of a launch after its first.
_NUMBERED: Final = "~"
#: The status of a record whose attempt is terminal.
ENDED: Final = "done"


@attrs.frozen
class Launch:
    """A launch that went to the LLM agent while the runner stood in its shadow."""

    job_id: str
    repo: str
    work_item: str
    stage: str
    repository: str
    launched_at: str
    #: What was checked out; None where git did not say, and in records that have none.
    revision: str | None = None

    def is_again(self, row: JobRow, repository: Path) -> bool:
        """Say whether a launch of `row` is of the same job, and not of one elsewhere."""
        return self.is_of(row) and self.repository == str(repository)

    def is_of(self, row: JobRow) -> bool:
        """Say whether it may be a launch of `row`, wherever its repository is by now."""
        mine = (self.job_id, self.repo, self.work_item)
        return mine == (str(row.id), row.repo, row.work_item)


@attrs.frozen
class AgentEnd:
    """How the agent's launch ended; the tokens are None where its log does not say."""

    ended_at: str
    opened: bool
    input_tokens: int | None
    output_tokens: int | None


@attrs.frozen
class Record:
    """What is known of one launch. `row` is the runner's own attempt, as a job row.

    The row's id is the record's, which is the job's for its first launch alone.
    """

    folder: Path
    launch: Launch
    agent: AgentEnd | None
    row: JobRow

    @property
    def agent_artifact(self) -> Path | None:
        """Return the copy of the artifact that the agent left, if it left one."""
        path = self.folder / "agent.md"
        return path if path.is_file() else None

    @property
    def runner_artifact(self) -> Path | None:
        """Return the runner's own artifact, if it is here, wherever the record was when it ran."""
        path = artifact_in(self.folder)
        return path if path.is_file() else None


class ShadowRecords:
    """The folder of records, and `JobRows` over it."""

    def __init__(self, root: Path) -> None:
        """Keep records below `root`, which is made when the first one is written."""
        self.root = root / "launches"

    def folder(self, record_id: Any) -> Path:
        """Return the folder of a record, whatever the host's ids look like."""
        return self.root / (quote(str(record_id), safe="").replace(".", "%2E") or "%")

    def launched(
        self, row: JobRow, repository: Path, now: datetime, revision: str | None = None
    ) -> None:
        """Note that `row` goes to the LLM agent, which has not begun, and the commit it will see.

        A job that is launched again before its agent has ended is noted anew: its worker or
        its agent died, and whoever ends was launched on what is checked out now. Any other
        launch has a record of its own, also one of a job with the same id: where databases
        share a state folder, or give an id that was free again, it is another job.
        """
        launch = Launch(
            job_id=str(row.id),
            repo=row.repo,
            work_item=row.work_item,
            stage=row.stage,
            repository=str(repository),
            launched_at=format_time(now),
            revision=revision,
        )
        note = msgspec.json.encode(launch)
        # Not synced: a launch must not wait for a disk, and a lost note costs a comparison.
        for folder, noted in self._under_way(row):
            if noted.is_again(row, repository):
                write_whole(folder / "launch.json", note)
                return
        number = max(self._numbered(launch.job_id), default=1)
        while not _begin(self.folder(_record_id(launch.job_id, number)), note):
            number += 1

    def is_noted(self, job_id: Any) -> bool:
        """Say whether a job with this id was launched in shadow mode."""
        return bool(self._numbered(job_id))

    def agent_ended(
        self, row: JobRow, place: Place, now: datetime, *, opened: bool, log: Path | None
    ) -> None:
        """Keep how the agent's launch ended: the artifact it left, and its gate's answer.

        Of several launches under way it is the last one in the same repository, or else the
        last: its gate may have removed the checkout it was launched in. Does nothing where
        none with the id of `row` is noted whose agent has not ended; raises
        JobNotFoundError where there are such, and none is of `row`.
        """
        under_way = self._under_way(row)
        if not under_way:
            return
        # The sort is stable: the last launch stays the first one of each kind.
        theirs = sorted(
            (it for it in under_way if it[1].is_of(row)),
            key=lambda it: not it[1].is_again(row, place.repository),
        )
        if not theirs:
            told = ", ".join(f"{it.work_item} in {it.repo}" for _, it in under_way)
            message = (
                f"of job {row.id} no launch of {row.work_item} in {row.repo} is noted, but"
                f" {told}, which waits on: a job keeps its names until its agent has ended"
            )
            raise JobNotFoundError(message)
        folder = theirs[0][0]
        text = _read_regular(artifact_in(place.artifact_dir), ARTIFACT_BYTES_MAX)
        if text is not None:
            write_durably(folder / "agent.md", text)
        tokens = _tokens(read_tail(log, LOG_TAIL_BYTES) if log else b"")
        end = AgentEnd(format_time(now), opened, *tokens)
        create_durably(folder / "agent.json", msgspec.json.encode(end))

    def _under_way(self, row: JobRow) -> list[tuple[Path, Launch]]:
        """Return the records with a job's id whose agent has not ended, the last one first."""
        found = []
        for _, folder in sorted(self._numbered(row.id).items(), reverse=True):
            with contextlib.suppress(OSError, ValueError):
                if not _has_ended(folder) and (noted := _noted(folder)).job_id == str(row.id):
                    found.append((folder, noted))
        return found

    def _numbered(self, job_id: Any) -> dict[int, Path]:
        """Return what there is of a job's records by their numbers, and of whose ids look so."""
        first, further = (self.folder(f"{job_id}{end}").name for end in ("", _NUMBERED))
        found = {}
        for folder in self.root.iterdir() if self.root.is_dir() else ():
            number = folder.name.removeprefix(further)
            if folder.name == first:
                found[1] = folder
            elif number != folder.name and number.isdecimal():
                found[int(number)] = folder
        return found

    def records(self) -> Iterator[Record]:
        """Yield every record in order of launch; one that cannot be read is left out."""
        found = []
        for folder in self.root.iterdir() if self.root.is_dir() else ():
            with contextlib.suppress(OSError, ValueError):
                found.append(_record(folder))
        yield from sorted(found, key=lambda record: record.launch.launched_at)

    def prune(self, days: float) -> None:
        """Remove the records in which nothing changed for `days`; 0 removes none.

        Nothing of an attempt that has not ended, and nothing that cannot be read.
        """
        before = time.time() - days * 86_400
        for folder in self.root.iterdir() if days and self.root.is_dir() else ():
            with contextlib.suppress(OSError, ValueError):
                if folder.stat().st_mtime >= before:
                    continue
                row = _record(folder).row
                if row.document is None or row.status == ENDED:
                    shutil.rmtree(folder)

    def record(self, record_id: Any) -> Record:
        """Return a record, by the id of its row; raises JobNotFoundError."""
        try:
            return _record(self.folder(record_id))
        except (OSError, ValueError) as error:
            message = f"job {record_id} has no record in the shadow: {error}"
            raise JobNotFoundError(message) from error

    def load(self, job_id: Any) -> JobRow:
        """Return the record as a job row; raises JobNotFoundError."""
        return self.record(job_id).row

    def save(self, job_id: Any, snapshot: Snapshot, tx: Any = None) -> None:
        """Store `snapshot` if it follows the stored one, else raise StaleSnapshotError."""
        del tx  # A record has no transaction: its gate moves nothing that could be rolled back.
        folder = self.folder(job_id)
        expected = snapshot.version - 1
        path = _attempt_file(folder, snapshot.version)
        is_next = expected == 0 or _attempt_id(folder, expected) == snapshot.attempt_id
        if not (is_next and create_durably(path, dump_snapshot(snapshot).encode())):
            raise StaleSnapshotError(job_id, snapshot.attempt_id, expected or None)

    def check(self) -> None:
        """Nothing can fail to fit: the records are of our own making."""

    def requeue(
        self, job_id: Any, not_before: datetime, snapshot: Snapshot, *, once: bool = False
    ) -> None:
        """Nothing is owed: when a deferred attempt is due stands in its snapshot."""

    def cancel(self, job_id: Any, snapshot: Snapshot) -> None:
        """Nothing is owed: a record is no job that could end."""

    @contextmanager
    def transaction(self) -> Iterator[object]:
        """Yield a token: there is nothing that a rollback could undo."""
        yield self

    def attempts(self) -> Iterator[JobRow]:
        """Yield every record with an attempt."""
        yield from (record.row for record in self.records() if record.row.document is not None)

    def unfinished(self) -> list[JobRow]:
        """Return every record whose attempt has not ended."""
        return [row for row in self.attempts() if row.status != ENDED]

    def recent(self, limit: int, repo: str | None = None) -> list[JobRow]:
        """Return the `limit` newest records, newest first; those of `repo` alone if given."""
        rows = [record.row for record in self.records()][::-1][:limit]
        return [row for row in rows if repo in (None, row.repo)]


def _record_id(job_id: str, number: int) -> str:
    return job_id if number == 1 else f"{job_id}{_NUMBERED}{number}"


def _begin(folder: Path, note: bytes) -> bool:
    """Begin a record with the note of its launch; False where there is one already."""
    folder.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    return not _has_ended(folder) and create_whole(folder / "launch.json", note)


def _has_ended(folder: Path) -> bool:
    """Say whether an agent has ended, or an attempt was begun, which is never done before."""
    return (folder / "agent.json").exists() or _attempt_file(folder, 1).exists()


def _noted(folder: Path) -> Launch:
    return msgspec.json.decode((folder / "launch.json").read_bytes(), type=Launch)


def _record(folder: Path) -> Record:
    launch = _noted(folder)
    agent = None
    with contextlib.suppress(FileNotFoundError):
        agent = msgspec.json.decode((folder / "agent.json").read_bytes(), type=AgentEnd)
    for moment in (launch.launched_at, *((agent.ended_at,) if agent else ())):
        # Whoever has the record computes with its times: one that is none cannot be read.
        parse_time(moment)
    return Record(folder, launch, agent, _row(folder, launch))


def _attempt_file(folder: Path, version: int) -> Path:
    return folder / f"attempt.{version}.json"


def _attempt_id(folder: Path, version: int) -> object:
    """Return whose version it is, or None where none can be read."""
    with contextlib.suppress(OSError, ValueError):
        document = json.loads(_attempt_file(folder, version).read_bytes())
        return document.get("attempt_id") if isinstance(document, dict) else None
    return None


def _row(folder: Path, launch: Launch) -> JobRow:
    version = 0
    while _attempt_file(folder, version + 1).exists():
        version += 1
    document: Any = None
    snapshot = None
    if version:
        try:
            document = json.loads(_attempt_file(folder, version).read_bytes())
            snapshot = load_snapshot(document)
        except ValueError as error:
            document = BrokenMetadata(f"the record is no JSON ({error})")
        except SnapshotRefusedError:
            pass  # whoever asks the row for its snapshot is told
    status, due = QUEUED, snapshot and snapshot.next_run_at
    if snapshot is not None and snapshot.state is not State.DEFERRED:
        status = ENDED if snapshot.is_terminal else RUNNING
    return JobRow(
        unquote(folder.name.removesuffix("%")),
        launch.repo,
        launch.work_item,
        # Only launches of our stage are noted, and here it has our own name.
        STAGE,
        status,
        parse_time(due) if due else None,
        document,
    )


def _tokens(log: bytes) -> tuple[int | None, int | None]:
    """Return the tokens in and out that the last line of an agent's log tells of, as JSON.

    That is how agents with a JSON output end: an object whose `usage` holds
    `input_tokens` and `output_tokens`.
    """
    with contextlib.suppress(ValueError, TypeError, KeyError, IndexError, AttributeError):
        usage = json.loads(log.decode("utf-8", "replace").strip().splitlines()[-1])["usage"]
        found = [usage.get(name) for name in ("input_tokens", "output_tokens")]
        one, other = (number if type(number) is int else None for number in found)
        return one, other
    return None, None


def _read_regular(path: Path, size: int) -> bytes | None:
    """Return up to `size` bytes of a file that an agent left, or None if it is none."""
    file = open_regular(path)
    if file is None:
        return None
    with file:
        return file.read(size)

"""The control folder of one run: what worker and supervisor leave for each other.

The supervisor (`supervisor/`) outlives the worker, so everything that is needed to
judge a run stands here before it starts, and what the supervisor saw of it when it is over:

    order            sealed; what was ordered, by whom, and how things looked before
    command          the argument vector, its words separated by NUL
    go.env           what `go` has for its settings in the suite
    lock             held by the supervisor for as long as it lives
    closed           written by a recovery that found no supervisor: none may start now
    shim, leader     who supervisor and suite are
    shim.stderr      what the supervisor itself complained of
    group            the control group that holds the suite, if there is one
    output.log       what the suite printed
    output.tail      the newest part of it, while the run lasts and its head is full
    output.tail.old  what came just before that
    tail             its end without secrets; written once the run has ended
    shown            sealed; the command without secrets, if there are any in it
    result           sealed; written when nothing of the run is alive any more
    result.foreign   what somebody else had put in the place of the result
    tree             sealed; whether the tree moved, written before the checkout is removed

A suite of the same user may write here as well. So what decides anything is sealed
with the secret of the machine, and nothing but a regular file is ever read.
"""

import contextlib
import errno
import functools
import hashlib
import hmac
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from staging_fsm.core.errors import PreparationError, is_shortage
from staging_fsm.effects.files import (
    DIRECTORY_MODE,
    FILE_MODE,
    locked,
    named_on_machine,
    open_regular,
    sha256_of_text,
    write_durably,
    write_whole,
)
from staging_fsm.effects.processes import ProcessIdentity, this_scope
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.effects.supervisor import limits
from staging_fsm.effects.supervisor.result import SEAL_BYTES, lines_of, sealed

_SMALL_FILE_BYTES: Final = 64 * 1024
#: What a suite put in the place of its lock is held by nobody: a link, a folder, a socket.
_NO_LOCK: Final = frozenset({errno.ELOOP, errno.EISDIR, errno.ENXIO})
_NOBODYS_LOCK: Final = -1
#: What the name of a report that is being written begins with.
_REPORT_NAME: Final = "staging-fsm report "


@attrs.frozen
class Order:
    """`order`: what was ordered, and how things looked before."""

    scope: str
    repository: str
    tree: str
    workspace: str
    revision: str
    #: By the wall clock, in seconds since the epoch.
    started_at: float
    timeout_seconds: float
    kill_grace_seconds: float
    #: How the tree differed from the commit before the suite, with no filter having a say, as
    #: `worktree.tracked_changes` says it.
    changes: str
    report: str | None
    #: What was there before the run, as `result.mark_of` says it.
    report_before: str
    #: Names of variables that the suite was given.
    environment: tuple[str, ...]
    #: The newest entry of the log of HEAD, as `worktree.last_of_head` marks it; None without git.
    last_of_head: str | None = None
    #: Where the report has to be, without links, or below what; None where there is none.
    report_within: str | None = None
    #: Whether tracked files were others than the commit has: only a suite that allows it is run.
    uncommitted: bool = False


@attrs.frozen
class RunFolder:
    """The control folder of the run `run_id` of a machine."""

    state: StateDir
    run_id: str

    # Asked for at every step of a run.
    @functools.cached_property
    def path(self) -> Path:
        """Return where it is."""
        return self.state.run(self.run_id)

    @property
    def reports(self) -> Path:
        """Return where the suite is told to leave its report."""
        return self.state.reports(self.run_id)

    @property
    def log(self) -> Path:
        """Return where the output of the suite is."""
        return self.path / "output.log"

    @property
    def go_settings(self) -> Path:
        """Return what `go` has for its settings in the suite."""
        return self.path / "go.env"

    @property
    def shim_errors(self) -> Path:
        """Return where the supervisor itself complains."""
        return self.path / "shim.stderr"

    def holds(self, name: str) -> bool:
        """Say whether there is anything of that name."""
        return os.path.lexists(self.path / name)

    def write_order(self, order: Order) -> None:
        """Store what was ordered. Raises as `seal` does."""
        # After a power cut nothing of the run is left that it could tell of.
        self.seal("order", order=json.dumps(attrs.asdict(order)))

    def order(self) -> Order:
        """Return what was ordered; raises PreparationError where that cannot be read."""
        try:
            facts = json.loads(self._sealed_order())
            facts["environment"] = tuple(facts["environment"])
            return Order(**facts)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            message = f"the order of run {self.run_id} cannot be read: {error}"
            raise PreparationError(message) from error

    def _sealed_order(self) -> str:
        facts = self.sealed("order")
        if not facts:
            message = "nobody of this machine has sealed it"
            raise ValueError(message)
        return facts["order"]

    def order_if_any(self) -> Order | None:
        """Return what was ordered, or None where that cannot be read."""
        try:
            return self.order()
        except PreparationError:
            return None

    def write_command(self, command: tuple[str, ...]) -> bytes:
        """Store the words of the command; return them as the supervisor reads them."""
        words = b"\0".join(map(os.fsencode, command))
        (self.path / "command").write_bytes(words)
        return words

    def command(self) -> tuple[str, ...]:
        """Return the words of the command, as the supervisor was given them."""
        return tuple(map(os.fsdecode, self.read("command").split(b"\0")))

    def identity(self, name: str) -> ProcessIdentity | None:
        """Return who wrote the file `name` of a process, or None."""
        try:
            facts = dict(line.split("=", 1) for line in self.read(name).decode().splitlines())
            return ProcessIdentity(this_scope(), int(facts["pid"]), int(facts["start"]))
        except (ValueError, KeyError):
            return None

    def kill_group(self) -> None:
        """Kill and remove the control group that a supervisor which is gone has left."""
        group = Path(os.fsdecode(self.read("group")))
        # The suite may have written that file: only a group with the name of its own run counts.
        if group.name == limits.GROUP_PREFIX + self.run_id:
            limits.kill_group(str(group))
            limits.remove_group(str(group))

    @contextlib.contextmanager
    def lock(self) -> Iterator[int | None]:
        """Yield the run's lock, or None while its supervisor lives.

        A supervisor that inherits it has it for as long as it lives, as `files.locked` says.
        """
        self.path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        try:
            descriptor = _open_lock(self.path / "lock")
        except OSError as error:
            if error.errno not in _NO_LOCK:
                raise
            yield _NOBODYS_LOCK
            return
        with locked(descriptor) as is_ours:
            yield descriptor if is_ours else None

    @contextlib.contextmanager
    def report_lock(self, report: Path | None) -> Iterator[tuple[int, ...]]:
        """Yield a lock on a report outside of the run's own folder, which other runs may write.

        Raises PreparationError while one of them is under way: whose report it is could
        not be told. A run of another state folder is seen where the kernel keeps names.
        """
        if report is None or self._is_own(report):
            yield ()
            return
        self.state.locks.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        name = sha256_of_text(self.report_within(report))
        descriptor = _open_lock(self.state.locks / name)
        with locked(descriptor) as is_ours, named_on_machine(_REPORT_NAME + name) as named:
            if not is_ours or named is None:
                message = f"another run that writes the report {report} is under way"
                raise PreparationError(message)
            yield (descriptor, *named)

    def _is_own(self, report: Path) -> bool:
        # As a text "../junit.xml" is below the run's own folder, and other runs may write it.
        return Path(os.path.normpath(report)).is_relative_to(self.reports)

    def report_within(self, report: Path) -> str:
        """Return where a report has to be: in the run's own folder, or at the place it locks."""
        return os.path.realpath(self.reports) if self._is_own(report) else str(place_of(report))

    def close(self) -> None:
        """Let no supervisor start the suite from now on. The lock has to be held."""
        write_durably(self.path / "closed", b"")

    def seal(self, name: str, **facts: object) -> None:
        """Write a file of facts that nobody but this machine's workers and supervisors can make.

        Not synced: after a power cut its facts are found anew, or the run is tried again.
        Raises OSError, and PreparationError where the secret cannot be read.
        """
        text = lines_of(run=self.run_id, **facts)
        write_whole(self.path / name, sealed(self.state.secret(), text))

    def sealed(self, name: str) -> dict[str, str] | None:
        """Return the facts in a sealed file; none of them where nobody sealed it for this run.

        Returns None where there is no such file at all. Raises OSError where there is no
        descriptor left to look.
        """
        if not self.holds(name):
            return None
        try:
            secret = self.state.secret()
        except PreparationError:
            return {}
        except OSError as error:
            # Nobody is accused of a forgery where nobody could look.
            if is_shortage(error):
                raise
            return {}
        text, _, tail = self.read(name).rpartition(b"\n")[0].rpartition(b"\n")
        text += b"\n"
        expected = hashlib.blake2b(text, key=secret, digest_size=SEAL_BYTES).hexdigest()
        if not hmac.compare_digest(expected.encode(), tail):
            return {}
        facts = dict(line.split("=", 1) for line in text.decode().split("\n")[:-1])
        return facts if facts["run"] == self.run_id else {}

    def read(self, name: str) -> bytes:
        """Return what a small file holds, and nothing where there is none."""
        file = open_regular(self.path / name)
        if file is None:
            return b""
        with file:
            return file.read(_SMALL_FILE_BYTES)


def place_of(path: Path) -> Path:
    """Return where a file is, or would be: without the links on the way to it."""
    return Path(os.path.realpath(path.parent)) / path.name


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, FILE_MODE)

"""How a file is written, read and locked where others write too: artifacts, run folders, notes.

What has to be whole is written to a temporary name and renamed: a reader sees the old
file or the whole new one. What was promised is synced too: a power cut does not undo it.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from staging_fsm.core.errors import is_shortage
from staging_fsm.effects.supervisor.system import IS_LINUX

DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600
_BLOCK_BYTES: Final = 1024 * 1024
#: How many there are of input, output and errors.
_STANDARD: Final = 3


def write_durably(path: Path, data: bytes, mode: int = FILE_MODE) -> None:
    """Replace `path` by a file holding `data`, as `write_whole` does, for ever. Raises OSError."""
    _write(path, data, mode, sync=True)
    sync_directory(path.parent)


def write_whole(path: Path, data: bytes, mode: int = FILE_MODE) -> None:
    """Replace `path` by a file holding `data`, whole or not at all. Raises OSError.

    A power cut may undo it. A symbolic link, a pipe or anything else but a folder in its
    place is replaced, never followed or opened. A folder in its place is moved away first.
    """
    _write(path, data, mode, sync=False)


def create_durably(path: Path, data: bytes) -> bool:
    """Write a new file, as `create_whole` does, for ever. Raises OSError."""
    created = _create(path, data, sync=True)
    if created:
        sync_directory(path.parent)
    return created


def create_whole(path: Path, data: bytes) -> bool:
    """Write a new file, whole or not at all; False, and nothing written, if `path` is taken.

    A power cut may undo it. Raises OSError.
    """
    return _create(path, data, sync=False)


def _write(path: Path, data: bytes, mode: int, *, sync: bool) -> None:
    with _written_beside(path, data, mode, sync=sync) as temporary:
        if path.is_dir() and not path.is_symlink():
            set_aside(path, "in-the-way")
        temporary.replace(path)


def _create(path: Path, data: bytes, *, sync: bool) -> bool:
    with _written_beside(path, data, FILE_MODE, sync=sync) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        return True


@contextlib.contextmanager
def _written_beside(path: Path, data: bytes, mode: int, *, sync: bool) -> Iterator[Path]:
    """Yield a file of ours beside `path` that holds `data`, synced or not; leave none behind."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        yield temporary
    finally:
        # Where it took the name itself there is none left.
        temporary.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_durably(folder: Path) -> None:
    """Make a folder, and those above it, where there are none, for ever. Raises OSError."""
    if not folder.is_dir():
        make_durably(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_directory(folder.parent)


def set_aside(path: Path, suffix: str) -> Path | None:
    """Rename whatever is at `path` to a free name beside it; return that name, or None."""
    if not os.path.lexists(path):
        return None
    number = 1
    while os.path.lexists(target := path.with_name(f"{path.stem}.{suffix}.{number}{path.suffix}")):
        number += 1
    path.rename(target)
    sync_directory(path.parent)
    return target


@contextlib.contextmanager
def locked(descriptor: int) -> Iterator[bool]:
    """Yield whether the lock of an open file is ours now, without a wait; close the file.

    The lock is of the open file, not of the process: whoever inherits it has it for as long
    as it is open there, whatever becomes of whoever took it.
    """
    try:
        yield _take_lock(descriptor)
    finally:
        os.close(descriptor)


def _take_lock(descriptor: int) -> bool:
    # Apart from the block that has it: there the same error may come of something else.
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def named_on_machine(name: str) -> Iterator[tuple[int, ...] | None]:
    """Yield descriptors that have a name to themselves on this machine; None if it is taken.

    The name is in no folder that somebody may remove or have for himself: the kernel keeps it
    until the last of them is closed, for all users of one network namespace. Where it
    keeps no such names, as on macOS, there are no descriptors, and it is never taken. Raises
    OSError where there is no descriptor left.
    """
    if not IS_LINUX:
        yield ()
        return
    import socket  # noqa: PLC0415  # only where it is asked for

    with contextlib.ExitStack() as stack:
        held: tuple[int, ...] | None = ()
        try:
            own = stack.enter_context(socket.socket(socket.AF_UNIX))
            own.bind(b"\0" + name.encode())
            held = (own.fileno(),)
        except OSError as error:
            if is_shortage(error):
                raise
            if error.errno == errno.EADDRINUSE:
                held = None
        yield held


def locked_with_others(path: Path) -> int:
    """Return a descriptor of `path`, made where there is none, whose lock others may have too.

    Nobody sees a file of ours that is not locked yet. Raises OSError, and BlockingIOError
    while somebody has the lock for himself.
    """
    path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    with _written_beside(path, b"", FILE_MODE, sync=False) as temporary:
        descriptor = _take_with_others(temporary)
        try:
            os.link(temporary, path)
        except OSError as error:
            os.close(descriptor)
            if not isinstance(error, FileExistsError):
                raise
        else:
            return descriptor
    return _take_with_others(path)


def _take_with_others(path: Path) -> int:
    descriptor = open_as_it_is(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_as_it_is(path: Path | str) -> int:
    """Return a descriptor for reading whatever is at `path`: never of a link's target, or waiting.

    Raises OSError.
    """
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)


@contextlib.contextmanager
def above_standard(descriptors: Sequence[int]) -> Iterator[list[int]]:
    """Yield doubles of `descriptors` that are none of 0, 1 and 2.

    A process that was started with those closed has them given to whatever it opens first,
    and what it starts has others in their place.
    """
    doubles: list[int] = []
    try:
        doubles.extend(
            fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _STANDARD) for number in descriptors
        )
        yield doubles
    finally:
        for number in doubles:
            os.close(number)


def open_regular(path: Path) -> BinaryIO | None:
    """Open a file that somebody else may have replaced by a pipe, a link or a folder.

    Returns None for anything but a regular file. Raises OSError where there is no
    descriptor left to look: a file that is there must not pass for none.
    """
    descriptor = _descriptor_of(path)
    return None if descriptor is None else os.fdopen(descriptor, "rb")


def _descriptor_of(path: Path | str) -> int | None:
    try:
        descriptor = open_as_it_is(path)
    except OSError as error:
        if is_shortage(error):
            raise
        return None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def _buffer_bytes(descriptor: int, size_max: int) -> int:
    """Return how much to read at once: most files are small, and a buffer is not for nothing."""
    return min(size_max, os.fstat(descriptor).st_size) + 1


def sha256_of_file(path: Path) -> str | None:
    """Return the digest of a regular file, or None if there is none; raises as `open_regular`."""
    file = open_regular(path)
    if file is None:
        return None
    digest = hashlib.sha256()
    with file:
        try:
            size = _buffer_bytes(file.fileno(), _BLOCK_BYTES)
            while block := file.read(size):
                digest.update(block)
        except OSError:
            return None
    return digest.hexdigest()


def read_small(path: Path | str, size_max: int) -> bytes | None:
    """Return what a regular file holds; None if there is none, or it holds more than `size_max`.

    Raises OSError as `open_regular` does.
    """
    descriptor = _descriptor_of(path)
    if descriptor is None:
        return None
    data = b""
    try:
        # By the descriptor itself: a file object takes as long as all the rest.
        size = _buffer_bytes(descriptor, size_max)
        while len(data) <= size_max and (block := os.read(descriptor, size)):
            data += block
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return data if len(data) <= size_max else None


def read_tail(path: Path, size: int) -> bytes:
    """Return the last `size` bytes of a regular file, and nothing where there is none.

    Raises OSError as `open_regular` does, and where it cannot be read.
    """
    file = open_regular(path)
    if file is None:
        return b""
    with file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read(size)


def sha256_of_text(text: str) -> str:
    """Return the digest of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


ARTIFACT_MODE: Final = 0o644


def artifact_in(folder: Path) -> Path:
    """Return the artifact's path in a work item's folder."""
    from staging_fsm.host.contract.gate import ARTIFACT_NAME  # noqa: PLC0415  # it loads YAML

    return folder / ARTIFACT_NAME


class ArtifactFiles:
    """The artifact's place in a work item's folder."""

    def set_aside(self, folder: Path, suffix: str) -> None:
        """Move an existing artifact out of the gate's sight."""
        set_aside(artifact_in(folder), suffix)

    def write(self, folder: Path, text: str) -> Path:
        """Write the artifact, atomically and durably; return its path."""
        make_durably(folder)
        path = artifact_in(folder)
        write_durably(path, text.encode(), ARTIFACT_MODE)
        return path

    def is_written(self, folder: Path, text: str) -> bool:
        """Say whether the artifact is exactly `text`."""
        return sha256_of_file(artifact_in(folder)) == sha256_of_text(text)

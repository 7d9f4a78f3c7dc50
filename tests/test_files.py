"""Files: whole or not at all, for ever once it was promised, and never through somebody's link."""

import errno
import fcntl
import hashlib
import io
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from forked import answer_of_fork
from hosts import no_descriptors_left
from staging_fsm.effects import files
from staging_fsm.effects.files import (
    ARTIFACT_MODE,
    FILE_MODE,
    ArtifactFiles,
    create_durably,
    create_whole,
    locked,
    named_on_machine,
    open_regular,
    read_small,
    read_tail,
    set_aside,
    sha256_of_file,
    write_whole,
)
from staging_fsm.host.contract.gate import ARTIFACT_NAME

OLD, NEW = "---\nstaging_status: SUCCESS\n---\n", "---\nstaging_status: FAILED\n---\n"


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """Return the path of an artifact that is there already."""
    path = tmp_path / ARTIFACT_NAME
    path.write_text(OLD)
    return path


def test_artifact_is_synced_before_it_has_its_name_and_its_folder_after(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut leaves the old artifact or the whole new one, and no promised one is undone."""
    synced: list[tuple[bool, int, str]] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        facts = os.fstat(descriptor)
        is_folder = stat.S_ISDIR(facts.st_mode)
        synced.append((is_folder, 0 if is_folder else facts.st_size, artifact.read_text()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)

    assert ArtifactFiles().write(artifact.parent, NEW) == artifact
    assert synced == [(False, len(NEW), OLD), (True, 0, NEW)]


def test_writer_that_is_killed_leaves_the_old_artifact_and_holds_up_nobody(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed writer left under another name is neither read nor in anybody's way."""
    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(os, "getpid", os.getppid)
        monkeypatch.setattr(os, "fsync", lambda _descriptor: os._exit(0))
        ArtifactFiles().write(artifact.parent, NEW)
        os._exit(1)
    status = os.waitpid(pid, 0)[1]
    old = artifact.read_text()
    ArtifactFiles().write(artifact.parent, NEW)

    assert (status, old, artifact.read_text()) == (0, OLD, NEW)


def test_nothing_that_stands_under_another_name_is_written_to(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link under the very name that a writer has chosen is refused and never followed."""
    monkeypatch.setattr(secrets, "token_hex", lambda _size: "chosen")
    victim = artifact.with_name("victim")
    artifact.with_name(f".{ARTIFACT_NAME}.{os.getpid()}.chosen.new").symlink_to(victim)
    with pytest.raises(FileExistsError):
        ArtifactFiles().write(artifact.parent, NEW)

    assert (artifact.read_text(), victim.exists()) == (OLD, False)


def test_artifact_that_is_there_is_synced_all_the_same(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An artifact that is written again may be one that no disk has yet: it is made durable."""
    ArtifactFiles().write(artifact.parent, NEW)
    sync, synced = os.fsync, list[int]()

    def watched(descriptor: int) -> None:
        synced.append(descriptor)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    ArtifactFiles().write(artifact.parent, NEW)

    assert len(synced) == 2


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_artifact_that_cannot_be_synced_is_not_written(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Where the disk refuses, or a person breaks off, nothing is written or left beside it."""

    def refuse(_descriptor: int) -> None:
        message = "boom"
        raise error(message)

    monkeypatch.setattr(os, "fsync", refuse)

    with pytest.raises(error, match="boom"):
        ArtifactFiles().write(artifact.parent, NEW)

    assert artifact.read_text() == OLD
    assert list(artifact.parent.iterdir()) == [artifact]


def test_artifact_whose_folder_cannot_be_synced_is_not_written(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that a power cut could undo counts for nothing, even if the bytes are on the disk."""
    sync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)

    with pytest.raises(OSError, match="Input/output error"):
        ArtifactFiles().write(artifact.parent, NEW)


def test_artifact_can_be_read_by_the_host(tmp_path: Path) -> None:
    """The artifact is a file that everybody may read, in a folder that is made for it."""
    folder = tmp_path / "work" / "items"
    old = os.umask(0)
    try:
        written = ArtifactFiles().write(folder, NEW)
    finally:
        os.umask(old)

    assert list(folder.iterdir()) == [written]
    assert written.read_text() == NEW
    assert stat.S_IMODE(written.stat().st_mode) == ARTIFACT_MODE


@pytest.mark.parametrize("is_folder", [False, True], ids=["of a file", "of a folder"])
def test_artifact_replaces_a_link_and_follows_none(artifact: Path, *, is_folder: bool) -> None:
    """A link in the artifact's place is replaced, and what it points to stays as it is."""
    other = artifact.rename(artifact.with_name("other"))
    target = artifact.with_name("folder") if is_folder else other
    if is_folder:
        target.mkdir()
    artifact.symlink_to(target)
    ArtifactFiles().write(artifact.parent, NEW)

    assert (artifact.is_symlink(), artifact.read_text()) == (False, NEW)
    assert other.read_text() == OLD
    assert {*artifact.parent.iterdir()} == {artifact, other, target}


def test_folder_in_the_way_of_an_artifact_is_moved_away(artifact: Path) -> None:
    """A folder in the artifact's place is kept under another name."""
    artifact.unlink()
    (artifact / "kept").mkdir(parents=True)
    ArtifactFiles().write(artifact.parent, NEW)
    others = [path for path in artifact.parent.iterdir() if path != artifact]

    assert artifact.read_text() == NEW
    assert [[kept.name for kept in other.iterdir()] for other in others] == [["kept"]]


def test_each_older_artifact_is_kept_out_of_sight(artifact: Path) -> None:
    """Setting aside moves the artifact to a free name each time, and needs none to be there."""
    files, folder = ArtifactFiles(), artifact.parent
    files.set_aside(folder, "before-1")
    files.set_aside(folder, "before-1")
    artifact.write_text(NEW)
    files.set_aside(folder, "before-1")

    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        f"{artifact.stem}.before-1.1{artifact.suffix}": OLD,
        f"{artifact.stem}.before-1.2{artifact.suffix}": NEW,
    }


def test_what_was_set_aside_is_never_replaced(artifact: Path) -> None:
    """A name is free where nothing is: a link to nowhere has its name as well."""
    taken = artifact.with_name(f"{artifact.stem}.before-1.1{artifact.suffix}")
    taken.symlink_to("nowhere")
    moved = set_aside(artifact, "before-1")

    assert moved == artifact.with_name(f"{artifact.stem}.before-1.2{artifact.suffix}")
    assert taken.is_symlink()


def test_name_that_became_free_is_used_again(artifact: Path) -> None:
    """However many names are free, what stands under one that is taken is never replaced."""
    names = [artifact.with_name(f"{artifact.stem}.before-1.{number}.md") for number in (1, 2)]
    names[1].write_text("kept")

    assert set_aside(artifact, "before-1") == names[0]
    assert [name.read_text() for name in names] == [OLD, "kept"]


def test_older_artifact_stays_out_of_sight_after_a_power_cut(
    artifact: Path, synced: list[list[str]]
) -> None:
    """What was set aside is synced under its new name, a link to nowhere like any other."""
    artifact.unlink()
    artifact.symlink_to("nowhere")
    moved = set_aside(artifact, "before-1")

    assert moved == artifact.with_name(f"{artifact.stem}.before-1.1{artifact.suffix}")
    assert synced == [[moved.name]]


def test_artifact_is_written_if_it_is_the_very_text(artifact: Path) -> None:
    """An artifact that differs, is gone, or is no file is not the one that was written."""
    files, folder = ArtifactFiles(), artifact.parent

    assert files.is_written(folder, OLD)
    assert not files.is_written(folder, NEW)
    copy = artifact.rename(artifact.with_name("copy"))
    assert not files.is_written(folder, OLD)
    artifact.symlink_to(copy)
    assert not files.is_written(folder, OLD)
    artifact.unlink()
    artifact.mkdir()
    assert not files.is_written(folder, OLD)
    artifact.rmdir()
    os.mkfifo(artifact)
    assert not files.is_written(folder, "")


@pytest.mark.parametrize(
    "altered",
    [OLD.replace("\n", "\r\n"), OLD.replace("\n", "\r"), f"\ufeff{OLD}", f"{OLD} ", f"{OLD}\0"],
    ids=["CRLF", "CR", "byte order mark", "blank", "NUL"],
)
def test_artifact_is_written_if_it_is_those_very_bytes(artifact: Path, altered: str) -> None:
    """Line ends, marks and blanks that a reader would overlook make another artifact."""
    artifact.write_bytes(altered.encode())

    assert not ArtifactFiles().is_written(artifact.parent, OLD)


@pytest.mark.parametrize("altered", [0, 64 * 1024, 1024 * 1024 - 1])
def test_artifact_is_compared_to_its_last_byte(artifact: Path, altered: int) -> None:
    """However long an artifact is, it is written if none of its bytes differs."""
    text = "é" * (512 * 1024)
    ArtifactFiles().write(artifact.parent, text)
    whole = ArtifactFiles().is_written(artifact.parent, text)
    found = bytearray(artifact.read_bytes())
    found[altered] ^= 1
    artifact.write_bytes(found)

    assert (whole, ArtifactFiles().is_written(artifact.parent, text)) == (True, False)


def test_folder_that_is_made_for_an_artifact_outlives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each folder that is made for an artifact is synced under its name, the topmost one first."""
    synced: list[int] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    folder = ArtifactFiles().write(tmp_path / "work" / "items", NEW).parent

    assert synced == [path.stat().st_ino for path in (tmp_path, folder.parent, folder)]


def test_older_artifact_that_cannot_be_moved_is_told(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older artifact that stays in the gate's sight is an error, for no suite may start then."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "rename", refuse)

    with pytest.raises(PermissionError):
        ArtifactFiles().set_aside(artifact.parent, "before-1")
    assert artifact.read_text() == OLD


def test_file_that_is_there_is_never_replaced_by_a_new_one(
    tmp_path: Path, synced: list[list[str]]
) -> None:
    """Of two who make the same new file one does, for its own eyes; nothing else is left."""
    path = tmp_path / "new"

    assert create_durably(path, b"mine")
    assert synced[-1] == ["new"]
    assert not create_durably(path, b"yours")
    assert not create_durably(path, b"mine")
    assert (path.read_bytes(), [*tmp_path.iterdir()]) == (b"mine", [path])
    assert stat.S_IMODE(path.stat().st_mode) == FILE_MODE


def test_what_was_not_promised_waits_for_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that a power cut may take is whole for every reader, and nothing of it is synced."""
    monkeypatch.setattr(os, "fsync", None)
    path = tmp_path / "new"

    assert (create_whole(path, b"mine"), create_whole(path, b"yours")) == (True, False)
    assert path.read_bytes() == b"mine"
    write_whole(path, b"theirs")
    assert (path.read_bytes(), [*tmp_path.iterdir()]) == (b"theirs", [path])


#: What may stand where a file is expected, and is none that can be read.
STRANGERS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda _path: None,
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link": lambda path: path.symlink_to(Path(__file__)),
}


#: Whatever reads a file that somebody else may have put there.
READERS: tuple[Callable[[Path], bytes | str | None], ...] = (
    sha256_of_file,
    lambda path: read_small(path, 9),
    lambda path: read_tail(path, 9),
)


@pytest.mark.parametrize("stranger", STRANGERS)
def test_only_a_regular_file_is_read(tmp_path: Path, stranger: str) -> None:
    """A folder, a pipe or a link in the place of a file is no file, and costs no descriptor."""
    path = tmp_path / "file"
    STRANGERS[stranger](path)
    free = os.dup(0)
    os.close(free)

    assert [bool(read(path)) for read in READERS] == [False] * len(READERS)
    assert open_regular(path) is None
    assert os.dup(0) == free
    os.close(free)


def test_file_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    """A file is read up to the size that was asked for, and its digest is that of all of it."""
    path, data = tmp_path / "file", os.urandom(2**20 + 1)
    path.write_bytes(data)

    assert sha256_of_file(path) == hashlib.sha256(data).hexdigest()
    assert read_small(path, len(data)) == data
    assert read_small(path, len(data) - 1) is None


@pytest.mark.parametrize(("size", "tail"), [(0, b""), (2, b"en"), (5, b"seven"), (9, b"seven")])
def test_end_of_a_file_is_as_long_as_was_asked_for(tmp_path: Path, size: int, tail: bytes) -> None:
    """Of a longer file no more than the end that was asked for is read, of a shorter one all."""
    path = tmp_path / "file"
    path.write_bytes(b"seven")

    assert read_tail(path, size) == tail


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="there is no such file")
def test_file_is_read_to_its_end_whatever_size_it_tells() -> None:
    """A file that tells no size, or grows while it is read, is read to its end all the same."""
    path = Path("/proc/self/cmdline")
    assert path.stat().st_size == 0

    assert read_small(path, 2**20) == path.read_bytes()
    assert sha256_of_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_small(path, len(path.read_bytes()) - 1) is None


def test_without_a_descriptor_to_look_no_file_is_missing(tmp_path: Path) -> None:
    """Where no descriptor is left a file that is there passes neither for gone nor for another."""
    path = tmp_path / "file"
    path.write_bytes(b"seven\n")
    with no_descriptors_left():
        for read in (*READERS, open_regular):
            with pytest.raises(OSError, match="Too many open files"):
                read(path)


def test_without_a_descriptor_to_look_no_artifact_is_anothers(artifact: Path) -> None:
    """A worker that cannot look at the artifact says so, and not that it is a foreign one."""
    with no_descriptors_left(), pytest.raises(OSError, match="Too many open files"):
        ArtifactFiles().is_written(artifact.parent, OLD)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="there is no such file")
def test_file_that_cannot_be_read_is_none() -> None:
    """A file whose bytes the system does not give has no digest and no content."""
    path = Path("/proc/self/mem")

    assert (sha256_of_file(path), read_small(path, 9)) == (None, None)


def test_new_file_that_cannot_be_made_is_no_file_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a name that is taken is answered with False; a file system without links is an error."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)

    with pytest.raises(PermissionError):
        create_durably(tmp_path / "new", b"mine")
    assert [*tmp_path.iterdir()] == []


def test_lock_that_cannot_be_had_at_all_is_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file system knows no locks that is told, and never taken for a lock of another's."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    descriptor = os.open(tmp_path, os.O_RDONLY)

    with pytest.raises(OSError, match="No locks"), locked(descriptor):
        pass
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_older_artifact_that_may_come_back_lets_no_suite_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the folder cannot be synced an older artifact is not out of sight, and that is told."""
    (tmp_path / ARTIFACT_NAME).write_text("---\nstaging_status: SUCCESS\n---\n")

    def refuse(_: Path) -> None:
        raise OSError(errno.EIO, "no sync")

    monkeypatch.setattr(files, "sync_directory", refuse)

    with pytest.raises(OSError, match="no sync"):
        ArtifactFiles().set_aside(tmp_path, "before-1")


def test_link_to_nowhere_is_moved_out_of_sight(tmp_path: Path) -> None:
    """A dangling link in the artifact's place is one too: a suite could make what it leads to."""
    (tmp_path / ARTIFACT_NAME).symlink_to(tmp_path / "nowhere")
    ArtifactFiles().set_aside(tmp_path, "before-1")

    assert not os.path.lexists(tmp_path / ARTIFACT_NAME)
    assert [path.is_symlink() for path in tmp_path.iterdir()] == [True]


def test_folder_that_two_make_at_once_is_there_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that make one folder each has it, synced under its name, before it goes on."""
    synced: list[Path] = []
    make = Path.mkdir

    def overtaken(path: Path, **named: bool) -> None:
        make(path)
        make(path, **named)

    monkeypatch.setattr(Path, "mkdir", overtaken)
    monkeypatch.setattr(files, "sync_directory", synced.append)
    files.make_durably(tmp_path / "a" / "b")

    assert synced == [tmp_path, tmp_path / "a"]


def test_folder_in_the_way_stays_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in the artifact's place is moved away by what replaces it, and by nothing else."""
    (tmp_path / ARTIFACT_NAME).mkdir()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        ArtifactFiles().write(tmp_path, "text")

    assert [path.name for path in tmp_path.iterdir()] == [ARTIFACT_NAME]


def test_tail_is_no_longer_than_asked_for_while_the_file_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written while the end of a file is read makes the answer no longer."""
    log = tmp_path / "log"
    log.write_bytes(b"0123456789")

    class Growing(io.BufferedReader):
        """A file that grows as soon as its end was found."""

        def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
            """Go there, and have more be written."""
            found = super().seek(offset, whence)
            with log.open("ab") as more:
                more.write(b"x" * 1000)
            return found

    monkeypatch.setattr(files, "open_regular", lambda path: Growing(io.FileIO(path)))

    assert read_tail(log, 4) == b"6789"


def test_name_is_nobodys_where_no_descriptor_is_left_to_hold_it() -> None:
    """Whoever has no descriptor left for a name of this machine is told so, and has it not."""
    # No other run of the tests has this one.
    name = f"staging-fsm-test-{os.getpid()}"
    with named_on_machine(name) as held:
        assert held is not None
    with (
        no_descriptors_left(),
        pytest.raises(OSError, match="Too many open files"),
        named_on_machine(name),
    ):
        pass


def test_double_takes_the_place_of_no_standard_file() -> None:
    """Where input, output and errors are closed, what is opened has 0, and no double 1 or 2."""

    def double() -> list[object]:
        os.closerange(0, 3)
        first = os.open(os.devnull, os.O_RDONLY)
        with files.above_standard([first] * 3) as doubles:
            return [first, *(number > 2 for number in doubles)]

    assert answer_of_fork(double) == "[0, True, True, True]"


def test_doubles_that_cannot_all_be_made_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the last double of some descriptors cannot be made, none of the others stays open."""
    before = len([*Path("/proc/self/fd").iterdir()])
    real = fcntl.fcntl
    made: list[int] = []

    def shortage(number: int, *arguments: int) -> int:
        if made:
            raise OSError(errno.EMFILE, "Too many open files")
        made.append(real(number, *arguments))
        return made[0]

    monkeypatch.setattr(fcntl, "fcntl", shortage)
    with pytest.raises(OSError, match="Too many"), files.above_standard([0, 1]):
        pass

    assert len([*Path("/proc/self/fd").iterdir()]) == before

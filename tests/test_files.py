"""Files: whole or not at all, for ever once it was promised, and never through somebody's link."""

import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hosts import no_descriptors_left
from staging_fsm.effects.files import (
    ARTIFACT_MODE,
    DIRECTORY_MODE,
    FILE_MODE,
    ArtifactFiles,
    StateDir,
    _mounts_in,
    create_durably,
    create_whole,
    open_regular,
    read_small,
    remove_folder,
    set_aside,
    sha256_of_file,
    state_dir,
    write_durably,
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


@pytest.fixture
def synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return, for each sync of the test's folder to come, the names that were in it."""
    names: list[list[str]] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == tmp_path.stat().st_ino:
            names.append(sorted(path.name for path in tmp_path.iterdir()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    return names


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


@pytest.mark.parametrize("stranger", STRANGERS)
def test_only_a_regular_file_is_read(tmp_path: Path, stranger: str) -> None:
    """A folder, a pipe or a link in the place of a file is no file, and costs no descriptor."""
    path = tmp_path / "file"
    STRANGERS[stranger](path)
    free = os.dup(0)
    os.close(free)

    assert (open_regular(path), read_small(path, 9), sha256_of_file(path)) == (None, None, None)
    assert os.dup(0) == free
    os.close(free)


def test_file_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    """A file is read up to the size that was asked for, and its digest is that of all of it."""
    path, data = tmp_path / "file", os.urandom(2**20 + 1)
    path.write_bytes(data)

    assert sha256_of_file(path) == hashlib.sha256(data).hexdigest()
    assert read_small(path, len(data)) == data
    assert read_small(path, len(data) - 1) is None


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
    path, folder = tmp_path / "file", tmp_path / "folder"
    path.write_bytes(b"seven\n")
    folder.mkdir()
    with no_descriptors_left():
        for read in (open_regular, sha256_of_file, lambda path: read_small(path, 9)):
            with pytest.raises(OSError, match="Too many open files"):
                read(path)
        remove_folder(folder)

    # What may be mounted in it nobody could tell.
    assert folder.is_dir()
    remove_folder(folder)
    assert not folder.exists()


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="there is no such file")
def test_file_that_cannot_be_read_is_none() -> None:
    """A file whose bytes the system does not give has no digest and no content."""
    path = Path("/proc/self/mem")

    assert (sha256_of_file(path), read_small(path, 9)) == (None, None)


def test_state_is_for_its_user_only(tmp_path: Path) -> None:
    """The state folder and the secret in it are nobody else's, and the secret stays as it is."""
    state = StateDir(tmp_path / "a" / "state")
    old = os.umask(0)
    try:
        secret = state.secret()
    finally:
        os.umask(old)

    assert (len(secret), state.secret()) == (64, secret)
    assert StateDir(tmp_path / "b").secret() != secret
    assert stat.S_IMODE(state.root.stat().st_mode) == DIRECTORY_MODE
    assert stat.S_IMODE((state.root / "secret").stat().st_mode) == FILE_MODE


def test_run_is_removed_with_its_reports_and_no_other(tmp_path: Path) -> None:
    """A removed run leaves nothing behind, another one everything; no run is no error."""
    state = StateDir(tmp_path)
    assert state.run_ids() == []
    for run in ("b.1", "a.1"):
        write_durably(made(state.run(run)) / "result", b"")
        write_durably(made(state.reports(run)) / "junit.xml", b"")
    state.remove_run("b.1")
    state.remove_run("b.1")

    assert state.run_ids() == ["a.1"]
    assert [*state.reports("b.1").parent.iterdir()] == [state.reports("a.1")]
    assert state.last_change("a.1") == state.run("a.1").stat().st_mtime


def test_removal_that_broke_off_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of which half was removed is still found, and nothing of it stays for ever."""
    state, remove, removed = StateDir(tmp_path), shutil.rmtree, list[Path]()
    for folder in (state.run("a.1"), state.reports("a.1")):
        made(folder)

    def break_off(folder: Path, **how: Any) -> None:
        if removed:
            raise KeyboardInterrupt
        removed.append(folder)
        remove(folder, **how)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", break_off)
        with pytest.raises(KeyboardInterrupt):
            state.remove_run("a.1")
    for run_id in state.run_ids():
        state.remove_run(run_id)

    assert [*tmp_path.glob("*/*")] == []


def made(folder: Path) -> Path:
    """Make a folder and return it."""
    folder.mkdir(parents=True)
    return folder


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


def test_what_is_mounted_beside_a_folder_is_not_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder whose name only begins like another's keeps what is mounted in it."""
    read, mounts = Path.read_bytes, [tmp_path / "7-a.10", tmp_path / "7-a.1" / "in"]
    told = "".join(f"36 25 0:32 / {mount} rw - tmpfs tmpfs rw\n" for mount in mounts)
    mine = {"/proc/self/mountinfo": told.encode()}
    monkeypatch.setattr(Path, "read_bytes", lambda path: mine.get(str(path)) or read(path))

    assert _mounts_in(tmp_path / "7-a.1") == [str(mounts[1])]
    assert _mounts_in(tmp_path / "7-a.10") == [str(mounts[0])]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"ORCH_STAGING_RUNNER_STATE_DIR": " /s ", "XDG_STATE_HOME": "/x", "HOME": "/h"}, "/s"),
        ({"ORCH_STAGING_RUNNER_STATE_DIR": "~/s", "HOME": "/h"}, "/h/s"),
        ({"ORCH_STAGING_RUNNER_STATE_DIR": " ", "XDG_STATE_HOME": "/x"}, "/x/staging-fsm"),
        ({"XDG_STATE_HOME": "x", "HOME": "/h"}, "/h/.local/state/staging-fsm"),
        ({"HOME": "/h"}, "/h/.local/state/staging-fsm"),
        ({}, str(Path.home() / ".local/state/staging-fsm")),
    ],
)
def test_state_lies_where_the_settings_say(variables: dict[str, str], expected: str) -> None:
    """The state folder is the configured one, else that of the user's state, absolute in any case.

    See https://specifications.freedesktop.org/basedir-spec/latest/.
    """
    assert state_dir(variables) == Path(expected)


def test_relative_state_folder_is_taken_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative state folder is made absolute at once; one in no known home is left to be told."""
    monkeypatch.chdir(tmp_path)

    assert state_dir({"ORCH_STAGING_RUNNER_STATE_DIR": "s"}) == tmp_path / "s"
    assert state_dir({"ORCH_STAGING_RUNNER_STATE_DIR": "~/s"}) == tmp_path / "~/s"


def test_secret_outlives_a_power_cut(tmp_path: Path, synced: list[list[str]]) -> None:
    """The secret is in its folder for ever before anything is sealed with it."""
    StateDir(tmp_path).secret()

    assert synced == [["secret"]]


def test_first_users_of_a_state_folder_have_one_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two who need the secret for the first time at once one makes it, and both have it."""
    make, others = secrets.token_bytes, list[bytes]()

    def make_while_another_does(size: int) -> bytes:
        monkeypatch.setattr(secrets, "token_bytes", make)
        others.append(StateDir(tmp_path).secret())
        return make(size)

    monkeypatch.setattr(secrets, "token_bytes", make_while_another_does)

    assert [StateDir(tmp_path).secret()] == others

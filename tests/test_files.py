"""Files: whole or not at all, for ever once it was promised, and never through somebody's link."""

import os
import stat
from pathlib import Path

import pytest

from staging_fsm.effects.files import ARTIFACT_MODE, ArtifactFiles
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


def test_artifact_that_cannot_be_synced_is_not_written(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the disk refuses, the old artifact stays, and nothing is left beside it."""

    def refuse(_descriptor: int) -> None:
        message = "boom"
        raise OSError(message)

    monkeypatch.setattr(os, "fsync", refuse)

    with pytest.raises(OSError, match="boom"):
        ArtifactFiles().write(artifact.parent, NEW)

    assert artifact.read_text() == OLD
    assert list(artifact.parent.iterdir()) == [artifact]


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


def test_artifact_is_written_if_it_is_the_very_text(artifact: Path) -> None:
    """An artifact that differs, is gone, or is no file is not the one that was written."""
    files, folder = ArtifactFiles(), artifact.parent

    assert files.is_written(folder, OLD)
    assert not files.is_written(folder, NEW)
    copy = artifact.rename(artifact.with_name("copy"))
    assert not files.is_written(folder, OLD)
    artifact.symlink_to(copy)
    assert not files.is_written(folder, OLD)

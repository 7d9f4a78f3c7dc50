"""Folders that a suite has written in are removed, however they were left, and no others."""

import subprocess
import sys
from pathlib import Path

import pytest

from hosts import no_descriptors_left
from staging_fsm.effects.folders import _mounts_in, remove_folder
from stand import as_nobody


def test_folder_whose_rights_were_taken_away_is_removed(tmp_path: Path) -> None:
    """Whatever rights a suite has taken from its own folders, they go with what is in them."""
    folder = tmp_path / "reports"
    shut = folder / "in" / "shut"
    shut.mkdir(parents=True)
    (shut / "junit.xml").touch()
    command = as_nobody(tmp_path, folder, folder / "in", shut, shut / "junit.xml")
    shut.chmod(0o500)
    shut.parent.chmod(0)
    code = "import sys; from pathlib import Path; from staging_fsm.effects.folders import *; "
    code += "remove_folder(Path(sys.argv[1]))"
    subprocess.run([*command, sys.executable, "-c", code, str(folder)], check=True)

    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("is_folder", [False, True], ids=["to a file", "to a folder"])
def test_link_in_the_place_of_a_folder_is_removed_and_not_followed(
    tmp_path: Path, *, is_folder: bool
) -> None:
    """A link that a suite has put in a folder's place goes, and what it leads to stays."""
    target, link = tmp_path / "target", tmp_path / "link"
    kept = target / "kept" if is_folder else target
    kept.parent.mkdir(exist_ok=True)
    kept.touch()
    link.symlink_to(target)
    remove_folder(link)

    assert (link.is_symlink(), kept.exists()) == (False, True)


def test_what_a_link_in_a_folder_leads_to_keeps_its_rights(tmp_path: Path) -> None:
    """A folder is opened up to be removed, and none that only a link in it leads to is."""
    shared, folder = tmp_path / "shared", tmp_path / "folder"
    kept = (shared, shared / "in")
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "link").symlink_to(shared)
    for path in kept:
        path.mkdir()
        path.chmod(0o755)
    remove_folder(folder)

    assert not folder.exists()
    assert [path.stat().st_mode & 0o777 for path in kept] == [0o755, 0o755]


def test_folder_that_is_gone_is_removed(tmp_path: Path) -> None:
    """To remove what is not there is no error."""
    remove_folder(tmp_path / "gone")

    assert [*tmp_path.iterdir()] == []


def test_without_a_descriptor_to_look_no_folder_is_removed(tmp_path: Path) -> None:
    """What may be mounted in a folder nobody can tell without a descriptor: it stays."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with no_descriptors_left():
        remove_folder(folder)

    assert folder.is_dir()
    remove_folder(folder)
    assert not folder.exists()


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


def test_mount_is_found_whatever_its_folder_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with a blank in its name, or that is reached by a link, shows what is mounted in it.

    A link in the place of the folder itself does not: it is removed, and not followed.
    """
    real = tmp_path / "a state"
    mount = real / "7-a.1" / "in"
    mount.mkdir(parents=True)
    (tmp_path / "state").symlink_to(real)
    (tmp_path / "7-a.2").symlink_to(real / "7-a.1")
    told = "36 25 0:32 / {} rw - tmpfs tmpfs rw\n".format(str(mount).replace(" ", r"\040"))
    read, mine = Path.read_bytes, {"/proc/self/mountinfo": told.encode()}
    monkeypatch.setattr(Path, "read_bytes", lambda path: mine.get(str(path)) or read(path))

    assert _mounts_in(real / "7-a.1") == [str(mount)]
    assert _mounts_in(tmp_path / "state" / "7-a.1") == [str(mount)]
    assert _mounts_in(tmp_path / "7-a.2") == []

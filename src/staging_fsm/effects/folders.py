"""How a folder is removed that a suite has written in: no mount is emptied, and no link followed.

A suite may have made it deeper than Python can go, and have taken the rights on it away.
"""

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Final

_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
#: How the kernel writes blanks and the like in the name of a mount point.
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


def is_all_ours(folder: Path) -> bool:
    """Say whether nothing is mounted in a folder, having unmounted whatever was, if we may.

    To remove a folder with a mount in it would empty what is mounted there: the real
    files of somebody else.
    """
    try:
        mounts = _mounts_in(folder)
        if mounts:
            _unmount(mounts)
        return not mounts or not _mounts_in(folder)
    except OSError:
        # Nobody can tell.
        return False


def _unmount(mounts: list[str]) -> None:
    import ctypes  # noqa: PLC0415  # only where a suite has mounted something

    unmount = ctypes.CDLL(None).umount2
    for mount in reversed(mounts):
        unmount(os.fsencode(mount), _MNT_DETACH | _UMOUNT_NOFOLLOW)


def remove_folder(folder: Path) -> None:
    """Remove a folder and what is in it, as far as we may, and nothing that is mounted there.

    What else has taken its place is removed too: of a link the link, not where it leads.
    """
    if not is_all_ours(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        with contextlib.suppress(OSError):
            folder.unlink()
        return
    _open_up(folder)
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:
        # It is deeper than Python can go.
        with contextlib.suppress(OSError):
            _flatten(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _open_up(folder: Path) -> None:
    """Give ourselves the rights on a folder without which what is in it cannot be deleted."""
    # Not by os.walk: before Python 3.12 it goes no deeper than Python can.
    waiting = [str(folder)]
    while waiting:
        parent = waiting.pop()
        with contextlib.suppress(OSError):
            os.chmod(parent, 0o700)  # noqa: PTH101  # a Path of each would take longer than the rest
            with os.scandir(parent) as found:
                waiting += [one.path for one in found if one.is_dir(follow_symlinks=False)]


def _flatten(folder: Path) -> None:
    """Empty the folders in a folder, whose own are moved up, until there is none."""
    while inner := [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]:
        for parent in inner:
            for path in parent.iterdir():
                if path.is_dir() and not path.is_symlink():
                    path.rename(folder / secrets.token_hex(8))
                else:
                    path.unlink()
            parent.rmdir()


def _mounts_in(folder: Path) -> list[str]:
    """Return what is mounted at a folder or below, in order; nothing on a system without Linux's.

    Raises OSError.
    """
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except FileNotFoundError:
        return []
    top = os.path.join(os.path.realpath(folder.parent), folder.name)  # noqa: PTH118  # no link at its end is followed
    points = [
        _OCTAL.sub(lambda found: bytes([int(found[1], 8)]), line.split()[4]) for line in lines
    ]
    return [point for point in map(os.fsdecode, points) if f"{point}/".startswith(f"{top}/")]

"""What supervisor and worker leave for each other: who somebody is, and how a run ended, sealed.

`name=value` lines, not JSON: importing a parser would cost more than everything else here.
"""

from __future__ import annotations

import os

from .system import NEW_FILE, blake2b, write_all

SECRET_BYTES, SEAL_BYTES = 64, 32
RESULT_BYTES = 8192


def mark_of(path: str) -> str:
    """Return what tells a file as it is now from any other or a changed one; "" for none."""
    try:
        found = os.lstat(path)
    except OSError:
        return ""
    facts = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    return "%d:%d:%d:%d:%d" % facts


def write_identity(folder: str, name: str, pid: int) -> None:
    """Put down who `pid` is, whole or not at all.

    Not synced: after a power cut there is nobody left to be identified.
    """
    path = os.path.join(folder, name)
    fd = os.open(path + ".new", NEW_FILE, 0o600)
    write_all(fd, lines_of(pid=pid, start=start_ticks(pid)).encode())
    os.close(fd)
    os.replace(path + ".new", path)


def start_ticks(pid: int) -> int:
    """Return the kernel's start time of `pid`, or 0 where there is none to read."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def reserve_result(folder: str) -> int:
    """Take the room that the result will need, before the suite can fill the disk."""
    fd = os.open(os.path.join(folder, "result.new"), NEW_FILE, 0o600)
    write_all(fd, bytes(RESULT_BYTES))
    return fd


def set_foreign_aside(folder: str) -> bool:
    """Move a result that is not ours aside, to stay as evidence; say whether there was one."""
    path = os.path.join(folder, "result")
    try:
        os.rename(path, path + ".foreign")
    except OSError:
        return os.path.lexists(path)
    return True


def write_result(folder: str, fd: int, result: bytes) -> None:
    """Write the result over its reserved room, and have it survive a power cut."""
    path = os.path.join(folder, "result")
    os.pwrite(fd, result, 0)
    os.truncate(fd, len(result))
    os.fsync(fd)
    os.replace(path + ".new", path)
    directory = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    os.fsync(directory)


def lines_of(**facts: object) -> str:
    """Return facts as `name=value` lines; None is an empty value."""
    return "".join("%s=%s\n" % (name, "" if fact is None else fact) for name, fact in facts.items())


def sealed(secret: bytes, text: str) -> bytes:
    """Return `text` with the keyed digest that proves who wrote it as its last line."""
    data = text.encode("utf-8", "backslashreplace")
    return data + blake2b(data, key=secret, digest_size=SEAL_BYTES).hexdigest().encode() + b"\n"

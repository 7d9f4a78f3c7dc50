"""`staging-fsm doctor`: what a run needs, looked at before one is spent."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum, unique
from pathlib import Path

import attrs

from staging_fsm.core.config import is_switched_off, load_config
from staging_fsm.core.errors import ConfigInvalidError
from staging_fsm.drive.intercept import read_suites
from staging_fsm.effects.files import StateDir

FREE_BYTES_MIN = 256 * 1024 * 1024
FREE_INODES_MIN = 1024


@unique
class Health(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@attrs.frozen
class Finding:
    """One thing that was looked at, and what was seen, in words."""

    name: str
    health: Health
    words: str


def examine(
    variables: Mapping[str, str], state: StateDir, open_database: Callable[[], object]
) -> Iterator[Finding]:
    """Yield the findings of every check; none stops the others."""
    yield _python()
    yield _git()
    yield _supervision()
    yield _state_dir(state)
    yield _disk(state.root)
    yield _database(open_database)
    yield from _configuration(variables)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", Health.OK, f"{version} at {sys.executable}")


def _git() -> Finding:
    path = shutil.which("git")
    if path is None:
        words = "not found: repositories count as unversioned, and runs happen in place"
        return Finding("git", Health.WARNING, words)
    return Finding("git", Health.OK, path)


def _supervision() -> Finding:
    if sys.platform == "linux" and hasattr(os, "pidfd_open"):
        return Finding("supervision", Health.OK, "child subreaper and pidfd: nothing can flee")
    words = "no child subreaper here: a process that leaves its session may survive a run"
    return Finding("supervision", Health.WARNING, words)


def _state_dir(state: StateDir) -> Finding:
    try:
        state.ensure()
        probe = state.root / f".doctor.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        return Finding("state folder", Health.FAILED, f"{state.root} cannot be written: {error}")
    return Finding("state folder", Health.OK, str(state.root))


def _disk(folder: Path) -> Finding:
    try:
        found = os.statvfs(folder)
    except OSError as error:
        return Finding("disk", Health.FAILED, f"{folder} cannot be looked at: {error}")
    free = found.f_bavail * found.f_frsize
    words = f"{free // 2**20} MiB and {found.f_favail} inodes free at {folder}"
    few_inodes = found.f_files > 0 and found.f_favail < FREE_INODES_MIN
    bad = free < FREE_BYTES_MIN or few_inodes
    return Finding("disk", Health.FAILED if bad else Health.OK, words)


def _database(open_database: Callable[[], object]) -> Finding:
    try:
        url = open_database()
    except Exception as error:  # noqa: BLE001  # whatever a driver raises is the finding
        return Finding("database", Health.FAILED, f"{type(error).__name__}: {error}")
    return Finding("database", Health.OK, str(url))


def _configuration(variables: Mapping[str, str]) -> Iterator[Finding]:
    try:
        config = load_config(variables)
        suites = read_suites(config)
    except ConfigInvalidError as error:
        for problem in error.problems:
            yield Finding("configuration", Health.FAILED, problem)
        return
    if is_switched_off(variables):
        yield Finding("configuration", Health.WARNING, "the runner is switched off")
    elif not config.repos:
        yield Finding("configuration", Health.WARNING, "no repository is in scope")
    else:
        yield Finding("configuration", Health.OK, f"on for {', '.join(sorted(config.repos))}")
    for repo in sorted(config.repos - {"*"}):
        entry = suites.entry(repo)
        if entry is None:
            yield Finding("suite", Health.FAILED, f"{repo} is in scope but has no suite")
        elif "/" not in entry.command[0] and shutil.which(entry.command[0]) is None:
            yield Finding("suite", Health.FAILED, f"{repo}: {entry.command[0]} is not on the PATH")
        else:
            yield Finding("suite", Health.OK, f"{repo}: {' '.join(entry.command)}")

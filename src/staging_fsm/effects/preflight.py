"""What a run needs of this machine, looked at before one is spent, in words for a person.

A launch asks `unfit`: before the first run a machine that is not fit makes it
decline, between two runs it costs one of them. `doctor` shows all findings. Whether
the command exists is only asked by `doctor`: in a checkout that is not there yet
nobody can know, and a command that is missing is a fault of the plan, which its one
run says for good, not of the machine.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from enum import StrEnum, unique
from itertools import chain
from pathlib import Path
from typing import Final

import attrs

from staging_fsm.core.errors import PreparationError
from staging_fsm.core.masking import Masker
from staging_fsm.core.plan import temporary_folder
from staging_fsm.effects.state_dir import StateDir

#: What there must be besides the log: a report, a result, a database that grows.
FREE_BYTES_MIN: Final = 32 * 1024 * 1024
FREE_INODES_MIN: Final = 1024


@unique
class Health(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@attrs.frozen
class Check:
    """One thing that was looked at, and what was seen, in words."""

    name: str
    health: Health
    words: str


def unfit(
    state: StateDir,
    variables: Mapping[str, str],
    log_max_bytes: int,
    repository: Path,
    artifact_dir: Path,
) -> str | None:
    """Return why this machine cannot run a suite now, all reasons in one text, or None.

    `variables` are the worker's, of which the suite gets some.
    """
    findings = (
        *machine_findings(state, variables, log_max_bytes),
        folder_finding("repository", repository, os.R_OK | os.X_OK),
        folder_finding("artifact folder", _existing(artifact_dir), os.W_OK | os.X_OK),
    )
    failed = [f"{found.name}: {found.words}" for found in findings if found.health is Health.FAILED]
    return "; ".join(failed) or None


def misplaced(state: StateDir, repository: Path) -> str | None:
    """Return why no commit of `repository` can be checked out below the state folder, or None.

    A program looks for its settings above the folder that it is started in as well.
    """
    root, tree = state.root.resolve(), repository.resolve()
    if not root.is_relative_to(tree) or not os.path.lexists(tree / ".git"):
        return None
    return (
        f"state folder: {root} lies within the repository {tree}, so that a checkout below it"
        " would find what lies about there, committed or not: set"
        " ORCH_STAGING_RUNNER_STATE_DIR to a folder outside of it"
    )


def machine_findings(
    state: StateDir,
    variables: Mapping[str, str],
    log_max_bytes: int,
    besides: tuple[str, ...] = (),
) -> Iterator[Check]:
    """Yield what runs of any suite need: a state folder that takes files, and room for theirs.

    `besides` are folders in it that must be usable, too, if they are there.
    """
    found = _state_finding(state, besides)
    yield found
    if found.health is Health.OK:
        yield disk_finding(state.root, log_max_bytes + FREE_BYTES_MIN)
    yield _temporary_finding(temporary_folder(variables))


def _temporary_finding(folder: str) -> Check:
    """Return whether there is room where suites keep what they need for a while.

    One without room fails tests that are right. Without such a folder many programs take
    another, and which one is theirs to say: so that is a warning.
    """
    name = "temporary folder"
    # A Path's own look raises where a folder above may not be searched, or a name is too long.
    is_folder = os.path.isabs(folder) and os.path.isdir(folder)  # noqa: PTH112, PTH117  # see above
    if not (is_folder and os.access(folder, os.W_OK | os.X_OK)):
        words = f"{folder} is no folder that can be written: a suite may take another, or fail"
        return Check(name, Health.WARNING, words)
    return disk_finding(folder, FREE_BYTES_MIN, name)


def _state_finding(state: StateDir, besides: tuple[str, ...]) -> Check:
    try:
        state.ensure()
        # Without a name where the system can: many threads look at one folder at once.
        tempfile.TemporaryFile(dir=state.root).close()
    except OSError as error:
        words = f"{state.root} cannot be written: {error}"
        return Check("state folder", Health.FAILED, words)
    # What is not there yet is made by the first run, and is this user's then.
    access = os.R_OK | os.W_OK | os.X_OK
    for folder in filter(os.path.lexists, state.of_runs + besides):
        if not (os.path.isdir(folder) and os.access(folder, access)):  # noqa: PTH112  # a Path costs more than the look
            return folder_finding("state folder", Path(folder), access)
    try:
        state.check_secret()
    except (OSError, PreparationError) as error:
        return Check("state folder", Health.FAILED, str(error))
    return Check("state folder", Health.OK, str(state.root))


def disk_finding(folder: Path | str, free_bytes_min: int, name: str = "disk") -> Check:
    """Return whether there are blocks and inodes left where `folder` is."""
    try:
        found = os.statvfs(folder)
    except OSError as error:
        return Check(name, Health.FAILED, f"{folder} cannot be looked at: {error}")
    free = found.f_bavail * found.f_frsize
    words = f"{free // 2**20} MiB and {found.f_favail} inodes free at {folder}"
    # A file system without a table of inodes, such as btrfs, has a number of 0.
    few_inodes = found.f_files > 0 and found.f_favail < FREE_INODES_MIN
    if free < free_bytes_min or few_inodes:
        needed = f"at least {free_bytes_min // 2**20} MiB and {FREE_INODES_MIN} inodes are needed"
        return Check(name, Health.FAILED, f"{words}, and {needed}")
    return Check(name, Health.OK, words)


def folder_finding(name: str, folder: Path, access: int) -> Check:
    """Return whether `folder` is there and may be used as `access` says."""
    if not folder.is_dir():
        return Check(name, Health.FAILED, f"{folder} is no folder")
    if not os.access(folder, access):
        return Check(name, Health.FAILED, f"{folder} may not be used by this user")
    return Check(name, Health.OK, str(folder))


def command_finding(repo: str, command: tuple[str, ...], variables: Mapping[str, str]) -> Check:
    """Return whether the program of a suite is found, unless it stands in the tree under test."""
    program = command[0]
    in_tree = "/" in program and not program.startswith("/")
    if not in_tree and shutil.which(program, path=variables.get("PATH", os.defpath)) is None:
        return Check("suite", Health.FAILED, f"{repo}: {program} is not to be found or executed")
    shown = Masker.of(variables, (), command).mask_words(command)
    return Check("suite", Health.OK, f"{repo}: {' '.join(shown)}")


def _existing(folder: Path) -> Path:
    """Return `folder`, or the nearest one above it that exists: there it would be made."""
    return next(path for path in chain((folder,), folder.parents) if path.exists())

"""The bound revision: which commit is under test, where it is checked out, whether it moved.

Git runs without hooks, pagers and file-system monitors, so that the tree under
test has no say in it. Once a suite has run it starts no program at all: no filter, no
transport to a remote, and none of a submodule either. Files that a filter is for are
compared as they are then, with what they were before it.
"""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import attrs

from staging_fsm.core.errors import PreparationError, RunRefusedError
from staging_fsm.core.plan import RUN_VARIABLE, UNVERSIONED, SuitePlan, Workspace
from staging_fsm.effects.files import read_tail
from staging_fsm.effects.folders import is_all_ours, remove_folder
from staging_fsm.effects.processes import status_at_end

GIT_TIMEOUT_SECONDS: Final = 300
_QUIET: Final = (
    *("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false"),
    # A file counts as unchanged only if all that the system says of it is as it was.
    *("-c", "core.trustctime=true", "-c", "core.checkStat=default"),
    # A repository on a share without links has a text in the place of each, and says so.
    *("-c", "core.symlinks=true"),
    # Whoever has all that is his signed is not there to unlock the key for what is ours.
    *("-c", "commit.gpgSign=false", "-c", "tag.gpgSign=false", "-c", "push.gpgSign=false"),
    # A file that became executable is another, whatever is said of a share that knows no modes.
    *("-c", "core.fileMode=true"),
)
#: How a remote may be reached is the operator's to say; everything else of git's is ours, and
#: what is the orchestrator's own is nothing to a repository's filters.
_NOT_PASSED_ON: Final = ("GIT_", "ORCH_")
_REACHING: Final = frozenset(
    {"GIT_SSH", "GIT_SSH_COMMAND", "GIT_SSH_VARIANT", "GIT_ASKPASS", "GIT_LFS_SKIP_SMUDGE"}
)
_REACHING_BEGIN: Final = ("GIT_SSL_", "GIT_HTTP_", "GIT_PROXY_")
#: Whoever may be anybody is no remote: not by a variable, and not by a setting in one.
_UNVERIFIED: Final = ("GIT_SSL_NO_VERIFY", "sslverify")
#: What may be set in variables.
_REACHING_SETTINGS: Final = re.compile(
    r"(http|credential)\..+|url\..+\.(push)?insteadof|core\.sshcommand",
    re.IGNORECASE | re.DOTALL,
)
_UNATTENDED: Final = {
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    # A commit is what its digest says, not what somebody has put in its place.
    "GIT_NO_REPLACE_OBJECTS": "1",
    # A folder on which something is mounted belongs to the repository above it all the same.
    "GIT_DISCOVERY_ACROSS_FILESYSTEM": "1",
    "LC_ALL": "C",
}
#: The work items' folders are where artifacts are written: they are not under test.
_TRACKED_CHANGES: Final = (
    # Every file counts as binary: git prints its digest, not its text, however large it is.
    "-c",
    "core.bigFileThreshold=1",
    "diff",
    "HEAD",
    "--full-index",
    "--no-ext-diff",
    "--no-textconv",
    # It would ask a git within the submodule, which heeds the settings there and not ours.
    "--ignore-submodules=dirty",
    "--",
    ".",
    ":(exclude)docs/work-items",
)
#: How `git ls-files -v` marks files whose changes git was told not to look for.
_HIDDEN_MARKS: Final = ("h", "s", "S")
_SUBMODULE_MODE: Final = "160000"
_LINK_MODE: Final = "120000"
#: Without and with the right to be executed by its owner: git knows of no other.
_FILE_MODES: Final = ("100644", "100755")
#: What a commit has of a file, and what it has of one that is not in it.
_ModeAndDigest = tuple[str, str]
_NOTHING: Final[_ModeAndDigest] = ("", "")
_SHA256_DIGITS: Final = 64
#: Under these settings of a filter git compares files as they are, and runs no program.
_OFF: Final = {"clean": "", "process": "", "required": "false"}
#: What a remote is reached by, where none may be: a partial clone would fetch what it lacks.
_ALONE: Final = {"GIT_ALLOW_PROTOCOL": ""}
_PATHS_AT_ONCE: Final = 500
#: So many entries of the log of HEAD are looked through for what a suite made in it.
_HEAD_ENTRIES_MAX: Final = 1000
#: How often, and after what pause, a checkout is tried again that git could not make.
_FURTHER_TRIES, _TRY_SECONDS = 3, 0.1
#: Git's own exit codes end here; beyond are those of a program of its that a signal ended.
_EXIT_CODE_OF_GIT_MAX: Final = 128
NO_SETTINGS: Final[Mapping[str, str]] = MappingProxyType({})


def run_git(
    folder: Path,
    *arguments: str,
    settings: Mapping[str, str] = NO_SETTINGS,
    alone: bool = False,
    run_id: str | None = None,
    seconds: float | None = None,
    paths: Sequence[str] = (),
    index: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run git in `folder`, whatever it answers; `settings` go over those of the repository.

    `alone` it reaches no remote. Of a run, `run_id`, whoever sweeps that finds it, and what it
    has started. What it prints is as it printed it: the name of a file may hold any byte.
    `seconds` is its limit where it has one of its own, `paths` is what it reads, each with a
    NUL behind it, and `index` what it has for the repository's index.
    Raises PreparationError if it cannot be run, or if nobody can tell how it ended: a
    GitTooSlowError if it was ended past its limit, with what it has started.
    """
    command = ["git", *_QUIET, "-C", str(folder), *arguments]
    mark = {} if run_id is None else {RUN_VARIABLE: run_id}
    own = _UNATTENDED | (_ALONE if alone else {}) | mark
    own |= {} if index is None else {"GIT_INDEX_FILE": str(index)}
    limit = GIT_TIMEOUT_SECONDS if seconds is None else seconds
    try:
        with _Child(
            command,
            stdin=subprocess.PIPE if paths else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_variables(settings) | own,
            # Its filters are to end with it. No terminal's Ctrl-C reaches them there: we do.
            start_new_session=True,
        ) as child:
            read = os.fsencode("".join(f"{path}\0" for path in paths))
            out, err = child.communicate(input=read or None, timeout=limit)
    except (TimeoutError, subprocess.TimeoutExpired) as error:
        message = f"git took longer than {limit:g} s in {folder}, and was ended"
        raise GitTooSlowError(message) from error
    except (OSError, subprocess.SubprocessError) as error:
        message = f"git could not be run in {folder}: {error}"
        raise PreparationError(message) from error
    said = err.decode("utf-8", "replace")
    return subprocess.CompletedProcess(command, child.returncode, os.fsdecode(out), said)


class GitTooSlowError(PreparationError):
    """Git took longer than it may."""


class _Child(subprocess.Popen[bytes]):
    """A process whose end is known, or an error: to Popen one that others reaped exited with 0.

    It leads a session. Whoever is interrupted, at whatever moment, kills it with all that
    is in its group, and does not wait for it.
    """

    def __init__(self, *words: Any, **how: Any) -> None:
        """Start it; whoever is interrupted meanwhile, and knows of it by then, kills it."""
        try:
            super().__init__(*words, **how)
        except OSError:
            raise
        except BaseException:
            if getattr(self, "pid", None) is not None:
                self._kill_group()
                with contextlib.suppress(ChildProcessError):
                    self.wait()
            raise

    def __exit__(self, *error: Any) -> None:
        """Wait for the end; kill first where an exception is under way."""
        if error[0] is not None:
            self._kill_group()
            self.kill()
        super().__exit__(*error)

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError, ChildProcessError):
            if self.returncode is None:
                # One that others reaped may have left its number to a stranger's group.
                with contextlib.suppress(TimeoutError):
                    status_at_end(self.pid, 0.0)
                os.killpg(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status; raises as `status_at_end`."""
        if self.returncode is None and (status := status_at_end(self.pid, timeout)) is not None:
            super().wait(timeout)
            self.returncode = status
        return super().wait(timeout)


def _variables(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a git: the worker's that are for it, and settings, ours last."""
    passed = {name: value for name, value in os.environ.items() if _is_passed_on(name)}
    # Not by -c: the name of a filter may hold an equals sign.
    pairs = [*_operators_settings(), *settings.items()]
    if pairs:
        passed["GIT_CONFIG_COUNT"] = str(len(pairs))
    for number, (key, value) in enumerate(pairs):
        passed |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return passed


def _is_passed_on(name: str) -> bool:
    reaches = name in _REACHING or name.startswith(_REACHING_BEGIN)
    return not name.startswith(_NOT_PASSED_ON) or (reaches and name not in _UNVERIFIED)


def _operators_settings() -> Iterator[tuple[str, str]]:
    """Yield the settings in variables that say how a remote is reached, and no others.

    See https://git-scm.com/docs/git-config#Documentation/git-config.txt-GITCONFIGCOUNT.
    """
    count = os.environ.get("GIT_CONFIG_COUNT", "")
    for number in range(int(count) if count.isdecimal() else 0):
        key = os.environ.get(f"GIT_CONFIG_KEY_{number}")
        value = os.environ.get(f"GIT_CONFIG_VALUE_{number}")
        if key is None or value is None:
            # Git itself would refuse to do anything.
            return
        verified = key.rpartition(".")[2].lower() not in _UNVERIFIED
        if verified and _REACHING_SETTINGS.fullmatch(key):
            yield key, value


def is_versioned(repository: Path) -> bool:
    """Say whether `repository` is the top of a git work tree; if not, it is in none.

    Raises PreparationError where there is a `.git`, in it or above it, but no git or none that
    answers, no commit, or another folder that git takes for the top: who meant to bind a run to a
    commit gets none that is bound to nothing.
    """
    if not os.path.lexists(repository / ".git"):
        _refuse_part_of_repository(repository)
        return False
    if shutil.which("git") is None:
        message = f"{repository} is a git repository, and there is no git on the PATH: install it"
        raise PreparationError(message)
    found = run_git(repository, "rev-parse", "HEAD", "--show-toplevel")
    if found.returncode == 0:
        # The name of a folder may hold any sign but one, line feeds too.
        top = found.stdout.partition("\n")[2].removesuffix("\n")
        if Path(top).resolve() == repository.resolve():
            return True
        shown = os.fsencode(top).decode("utf-8", "replace")
        message = f"git takes {shown} for the work tree of {repository}: see core.worktree there"
        raise PreparationError(message)
    branches = run_git(repository, "for-each-ref", "--count=1")
    # Of a branch that was lost, which was the only one, the log still tells.
    past = run_git(repository, "rev-list", "--reflog", "--max-count=1")
    if branches.returncode == 0 and not (branches.stdout or branches.stderr or past.stdout):
        message = f"{repository} is a git repository without a commit: commit what is to be run"
    else:
        message = f"the revision of {repository} cannot be read: {found.stderr.strip()}"
    raise PreparationError(message)


def is_in_repository(folder: Path) -> bool:
    """Say whether `folder` is a git repository or lies in one.

    Raises PreparationError where it is not there, and where there is a `.git` in it or
    above it of which git does not answer: what cannot be read must not pass for none.
    """
    found = run_git(folder, "rev-parse", "--is-inside-work-tree")
    if found.returncode == 0:
        return True
    real = folder.resolve()
    if not real.is_dir():
        message = f"{folder} is no folder that could be looked at: bring the repository back"
        raise PreparationError(message)
    for parent in (real, *real.parents):
        if os.path.lexists(parent / ".git"):
            message = f"git does not answer for the repository {parent}: {found.stderr.strip()}"
            raise PreparationError(message)
    return False


def _refuse_part_of_repository(folder: Path) -> None:
    """Raise PreparationError for a folder of a git work tree, which is on a commit all the same.

    One that git has nothing of, such as a build folder, is on none, unless that is so of all
    that the repository has; where git does not say, nobody knows. A bare repository and what
    lies in one is refused, too: its commits are there, their files are not.
    """
    if _is_bare(folder):
        message = f"{folder} is a bare git repository, without files to run: name a work tree of it"
        raise PreparationError(message)
    for parent in folder.resolve().parents:
        if _is_bare(parent):
            message = (
                f"{folder} lies in the bare git repository {parent}, which has no files to run:"
                " name a work tree of it"
            )
            raise PreparationError(message)
        if os.path.lexists(f"{parent}/.git"):
            _refuse_part_of_work_tree(folder, parent)
            return


def _is_bare(folder: Path) -> bool:
    """Say whether git itself would take `folder` for a repository without files."""
    # What it has to have: https://git-scm.com/docs/gitrepository-layout.
    # A folder that may not be entered has none of it: to look raises nothing.
    # Asked of each folder on the way up, before a first run: as a text it costs the least.
    return all(os.path.lexists(f"{folder}/{name}") for name in ("HEAD", "objects", "refs"))


def _refuse_part_of_work_tree(folder: Path, top: Path) -> None:
    if shutil.which("git") is None:
        message = (
            f"{folder} is in the git repository {top}, and there is no git on the PATH: install it"
        )
        raise PreparationError(message)
    listed = _answer_in(folder, top, "ls-files", "-z", "--", ".")
    if not listed:
        if run_git(folder, "rev-parse", "--verify", "--quiet", "HEAD").returncode != 0:
            message = (
                f"{folder} is a part of the git repository {top}, which is on no commit:"
                " commit there what is to be run"
            )
            raise PreparationError(message)
        # An index that is gone lists nothing either, and the commit has the files all the same.
        listed = _answer_in(folder, top, "ls-tree", "-z", "HEAD")
    if listed:
        message = (
            f"{folder} is a part of the git repository {top}: name that one, and have"
            " the suite change into the folder"
        )
        raise PreparationError(message)


def _answer_in(folder: Path, top: Path, *arguments: str) -> str:
    """Return what git prints in a folder of the work tree `top`.

    Raises PreparationError where it does not answer: of what cannot be read nobody knows
    that there is nothing.
    """
    found = run_git(folder, *arguments)
    if found.returncode != 0:
        message = (
            f"{folder} is in the git repository {top}, and what that has of it cannot be read:"
            f" {found.stderr.strip()}"
        )
        raise PreparationError(message)
    return found.stdout


def head_revision(repository: Path) -> str:
    """Return the checked-out commit, or "unversioned" for a folder that is no repository."""
    if not is_versioned(repository):
        return UNVERSIONED
    return run_git(repository, "rev-parse", "HEAD").stdout.strip()


def glimpsed_revision(repository: Path, seconds: float) -> str | None:
    """Return the checked-out commit by one question to git, for whoever cannot wait for more.

    None where git does not say within `seconds`. A folder without a `.git` is
    "unversioned": whether it lies in a repository is not looked at.
    """
    if not os.path.lexists(repository / ".git"):
        return UNVERSIONED
    try:
        found = run_git(repository, "rev-parse", "--verify", "HEAD", seconds=seconds)
    except PreparationError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def revision_at(repository: Path, moment: datetime) -> str:
    """Return the commit that was checked out at `moment`, as far as the reflog goes back.

    See https://git-scm.com/docs/gitrevisions, `<refname>@{<date>}`. Without a
    reflog it is the one that is checked out now.
    """
    revision = head_revision(repository)
    if revision == UNVERSIONED:
        return revision
    then = moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    found = run_git(repository, "rev-parse", "--verify", "--quiet", f"HEAD@{{{then}}}")
    return found.stdout.strip() if found.returncode == 0 else revision


def last_of_head(tree: Path) -> str:
    """Return a mark of the newest entry of git's log of HEAD; empty where git keeps none.

    Raises PreparationError where git does not answer.
    """
    return _mark_of_newest(_log_of_head(tree))


def has_left(tree: Path, revision: str, last: str) -> bool:
    """Say whether HEAD was on another commit than `revision` since `last` marked its newest entry.

    Git writes an entry also where nothing moves, for a reset to where it is. Raises as
    `last_of_head` does.
    """
    entries = _log_of_head(tree)
    for place, entry in enumerate(entries):
        if _mark_of_newest(entries[place:]) == last:
            return False
        if not entry.startswith(revision):
            return True
    # One that is not found was removed, or so many came that it cannot be seen any more.
    return last != ""


def _mark_of_newest(entries: list[str]) -> str:
    """Return the first of some entries, and the number of entries like it.

    Git's moments are whole seconds: who comes to a commit, leaves it and comes back by the
    same words within one makes two entries that are the same.
    """
    return f"{entries.count(entries[0])} {entries[0]}" if entries else ""


def _log_of_head(tree: Path) -> list[str]:
    """Return the newest entries of the log of HEAD, the last one first."""
    # Of a signature git would ask a program, which the repository names.
    ask = ("log", "--walk-reflogs", "--no-show-signature", f"--max-count={_HEAD_ENTRIES_MAX}")
    found = run_git(tree, *ask, "--date=raw", "--format=%H %gd %gs", "HEAD", "--", alone=True)
    if found.returncode != 0:
        message = f"the log of HEAD in {tree} cannot be read: {found.stderr.strip()}"
        raise PreparationError(message)
    return found.stdout.split("\n")[:-1]


def is_dirty(tree: Path) -> bool:
    """Say whether tracked files differ from the commit, as the repository itself sees it.

    On a share that keeps no modes it says so, and then nobody but us would call every
    file changed. Raises PreparationError where git does not answer.
    """
    found = run_git(tree, "config", "--local", "--type=bool", "--get", "core.fileMode")
    without_modes = ("-c", "core.fileMode=false") if found.stdout.strip() == "false" else ()
    return bool(tracked_changes(tree, filtered=True, options=without_modes))


@attrs.frozen
class TreeState:
    """How a tree differs from its commit, and what of the commit is not in it."""

    #: A digest; empty for a clean tree.
    changes: str = ""
    #: Tracked files that a sparse checkout leaves out.
    left_out: int = 0
    #: Submodules that are not checked out.
    empty: int = 0


def tracked_changes(
    tree: Path,
    *,
    filtered: bool,
    as_it_is: bool = False,
    whole: bool = False,
    options: tuple[str, ...] = (),
) -> str:
    """Return a digest of how tracked files differ from the commit; empty for a clean tree.

    The arguments are those of `tree_state`.
    """
    return tree_state(
        tree, filtered=filtered, as_it_is=as_it_is, whole=whole, options=options
    ).changes


def tree_state(
    tree: Path,
    *,
    filtered: bool,
    as_it_is: bool = False,
    whole: bool = False,
    options: tuple[str, ...] = (),
) -> TreeState:
    """Return how tracked files differ from the commit, and how many are not there.

    `filtered` is whether the repository's own filters have a say in it. They are
    programs: once a suite has run, whose filters they are nobody knows. A file that one is
    for then differs as soon as git's index does not know it. With `as_it_is` it differs if it
    is stored in another form, whatever the index knows: so a tree is compared with what it
    was before. `whole` is whether every file was checked out: then one that is not there was
    removed. `options` are git's, and go over ours. Raises PreparationError where git does not
    answer.
    """
    filters = [] if filtered else _filters(tree)
    settings = {f"{name}.{key}": value for name in filters for key, value in _OFF.items()}
    listed = _answer_about(
        tree, run_git(tree, "ls-files", "-v", "--stage", "-z", *_TRACKED_CHANGES[-3:])
    )
    shown: list[str] = []
    hidden: list[str] = []
    submodules: list[tuple[str, bool]] = []
    for line in filter(None, listed.split("\0")):
        mark, mode, *_ = line.split(" ")
        path = line.partition("\t")[2]
        if mode == _SUBMODULE_MODE:
            submodules.append((path, mark in _HIDDEN_MARKS))
        else:
            (hidden if mark in _HIDDEN_MARKS else shown).append(path)
    there = [path for path in hidden if whole or os.path.lexists(tree / path)]
    beside = _those_with_filter(tree, shown, filters) if as_it_is else []
    with _index_without(tree, beside, settings) as index:
        found = run_git(
            tree, *options, *_TRACKED_CHANGES, settings=settings, alone=not filtered, index=index
        )
    changes = _answer_about(tree, found) + _hidden_changes(tree, [*there, *beside], settings)
    left_out, empty = len(hidden) - len(there), 0
    for path, is_hidden in submodules:
        if is_hidden:
            changes += _moved_submodule(tree, path)
        # One that is not checked out has no git of its own.
        if os.path.lexists(tree / path / ".git"):
            below = tree_state(tree / path, filtered=filtered, as_it_is=as_it_is, options=options)
            changes += below.changes
            left_out, empty = left_out + below.left_out, empty + below.empty
        else:
            empty += not _holds_anything(tree / path)
    digest = hashlib.sha256(os.fsencode(changes)).hexdigest() if changes else ""
    return TreeState(digest, left_out, empty)


def _holds_anything(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except OSError:
        return False


def _answer_about(tree: Path, found: subprocess.CompletedProcess[str]) -> str:
    if found.returncode != 0:
        message = f"the state of {tree} cannot be read: {found.stderr.strip()}"
        raise PreparationError(message)
    return found.stdout


def _filters(tree: Path) -> list[str]:
    """Return the filters that git has a program for, each as it is named in the settings."""
    found = run_git(tree, "config", "--null", "--name-only", "--get-regexp", r"^filter\.")
    return sorted({key.rpartition(".")[0] for key in found.stdout.split("\0") if key})


def _those_with_filter(tree: Path, paths: list[str], filters: list[str]) -> list[str]:
    """Return those of `paths` that one of `filters` is for."""
    if not (paths and filters):
        return []
    found = run_git(tree, "check-attr", "-z", "--stdin", "filter", paths=paths)
    # A path, the name of the attribute, and what it is, each with a NUL behind it.
    facts = _answer_about(tree, found).split("\0")
    pairs = zip(facts[::3], facts[2::3], strict=False)
    return [path for path, name in pairs if f"filter.{name}" in filters]


@contextlib.contextmanager
def _index_without(
    tree: Path, paths: list[str], settings: Mapping[str, str]
) -> Iterator[Path | None]:
    """Yield a copy of the index by which git does not look at `paths`; None if there are none.

    By the index itself git opens one of them or not as it was written before or after it, and
    as somebody has asked for the status since: the same file would differ and then not.
    """
    if not paths:
        yield None
        return
    where = ("rev-parse", "--path-format=absolute", "--git-path", "index")
    # What the index shares with others stays where it is.
    mark = ("-c", "core.splitIndex=false", "update-index", "-z", "--assume-unchanged", "--stdin")
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="staging-fsm-"))
            index = Path(folder) / "index"
            # With its time: what is as new as the index has to be looked at.
            shutil.copy2(_answer_about(tree, run_git(tree, *where)).removesuffix("\n"), index)
        except OSError as error:
            message = f"the state of {tree} cannot be read: {error}"
            raise PreparationError(message) from error
        marked = run_git(tree, *mark, settings=settings, alone=True, paths=paths, index=index)
        _answer_about(tree, marked)
        yield index


def _hidden_changes(tree: Path, paths: list[str], settings: Mapping[str, str]) -> str:
    """Return how files differ that git's own comparison leaves out, as they are.

    Those that were marked assume-unchanged or skip-worktree: a suite can be run on them all
    the same, and a sparse checkout in place marks all those so that it leaves out. And those
    that a filter is for, where no filter has a say.
    """
    changes = ""
    for begin in range(0, len(paths), _PATHS_AT_ONCE):
        some = paths[begin : begin + _PATHS_AT_ONCE]
        committed = _as_committed(tree, some)
        now = _as_they_are(tree, some, committed, settings)
        if now != committed:
            changes += f"{some} {now}"
    return changes


def _as_committed(tree: Path, paths: list[str]) -> list[_ModeAndDigest]:
    """Return what the commit has of each of `paths`; nothing of one that it has not."""
    listed = run_git(tree, "--literal-pathspecs", "ls-tree", "-z", "HEAD", *paths, alone=True)
    found = {}
    for line in filter(None, listed.stdout.split("\0")):
        facts, _, path = line.partition("\t")
        mode, _, digest = facts.split(" ")
        found[path] = (mode, digest)
    return [found.get(path, _NOTHING) for path in paths]


def _as_they_are(
    tree: Path, paths: list[str], committed: list[_ModeAndDigest], settings: Mapping[str, str]
) -> list[_ModeAndDigest]:
    """Return what is at each of `paths`, as git would commit it."""
    modes = [_mode_of(tree / path) for path in paths]
    files = [path for path, mode in zip(paths, modes, strict=True) if mode in _FILE_MODES]
    # It would read what a link leads to.
    read = run_git(tree, "hash-object", "--", *files, settings=settings) if files else None
    digests = iter(read.stdout.split() if read is not None and read.returncode == 0 else [])
    found = []
    for path, mode, (_, wanted) in zip(paths, modes, committed, strict=True):
        digest = next(digests, "") if mode in _FILE_MODES else ""
        if mode == _LINK_MODE:
            digest = _digest_of_link(tree / path, len(wanted))
        found.append((mode, digest))
    return found


def _mode_of(path: Path) -> str:
    """Return the mode that git knows a file or a link by; nothing for anything else."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return ""
    if stat.S_ISLNK(mode):
        return _LINK_MODE
    return _FILE_MODES[bool(mode & stat.S_IXUSR)] if stat.S_ISREG(mode) else ""


def _digest_of_link(path: Path, length: int) -> str:
    """Return git's digest of the text of a link, of the kind that has that many digits."""
    text = os.fsencode(path.readlink())
    digest = hashlib.sha256() if length == _SHA256_DIGITS else hashlib.sha1(usedforsecurity=False)
    digest.update(b"blob %d\0%s" % (len(text), text))
    return digest.hexdigest()


def _moved_submodule(tree: Path, path: str) -> str:
    """Return where a submodule is that was marked as those files, if not where it belongs.

    Of one that is marked git's own comparison says nothing.
    """
    place = tree / path
    if place.is_symlink() or (os.path.lexists(place) and not place.is_dir()):
        return f"{path} is no folder"
    if not os.path.lexists(place / ".git"):
        return ""
    now = run_git(place, "rev-parse", "HEAD", alone=True)
    committed = run_git(tree, "rev-parse", f"HEAD:{path}", alone=True)
    is_there = now.returncode == 0 and now.stdout == committed.stdout
    return "" if is_there else f"{path} {now.stdout}"


def bind_revision(repository: Path, suite: SuitePlan) -> str:
    """Return the revision that an attempt is bound to.

    Raises RunRefusedError for a run in place over tracked files that differ from
    the commit, unless the suite allows it: its verdict would be on no revision.
    """
    revision = head_revision(repository)
    in_place = suite.workspace is Workspace.IN_PLACE and revision != UNVERSIONED
    if in_place and not suite.allow_dirty and tracked_changes(repository, filtered=True):
        message = (
            f"{repository} has uncommitted changes, so a run in place would be a verdict on no"
            " revision: commit or stash them, use the worktree workspace, or allow a dirty tree"
        )
        raise RunRefusedError(message)
    return revision


def add_worktree(repository: Path, revision: str, target: Path, run_id: str | None = None) -> None:
    """Check all of `revision` out into the new folder `target`, detached; for a run, if any.

    Raises PreparationError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    found = _add(repository, revision, target, run_id)
    for _ in range(_FURTHER_TRIES):
        # One that was killed had nobody in its way: its run was cancelled, or is lost.
        if found.returncode == 0 or not 0 < found.returncode <= _EXIT_CODE_OF_GIT_MAX:
            break
        # Git reads its notes of every checkout, also one that another process is just making.
        time.sleep(_TRY_SECONDS)
        remove_worktree(repository, target)
        found = _add(repository, revision, target, run_id)
    if found.returncode != 0:
        message = f"revision {revision} cannot be checked out: {found.stderr.strip()[-500:]}"
        raise PreparationError(message)


def _add(
    repository: Path, revision: str, target: Path, run_id: str | None
) -> subprocess.CompletedProcess[str]:
    add = ("worktree", "add", "--detach", "--force", str(target), revision)
    try:
        return run_git(repository, *add, settings={"core.sparseCheckout": "false"}, run_id=run_id)
    except GitTooSlowError as error:
        message = (
            f"the checkout of {revision} took longer than {GIT_TIMEOUT_SECONDS:g} s: a filter"
            " such as Git LFS, or a slow disk"
        )
        raise PreparationError(message) from error


def remove_worktree(repository: Path, target: Path) -> None:
    """Remove a checkout made by `add_worktree`, whatever is left of it. Safe to repeat.

    One in which something is mounted that cannot be unmounted stays: it is not ours to empty.
    """
    if not is_all_ours(target):
        return
    if _remove_by_git(repository, target):
        return
    if os.path.lexists(target):
        remove_folder(target)
        # Its files are gone; now git takes it off its list, even where it was locked.
        if _remove_by_git(repository, target):
            return
    _remove_empty_note(repository, target)


def _remove_empty_note(repository: Path, target: Path) -> None:
    """Remove git's note of a checkout where a power cut left it empty.

    Git then can neither read it, nor make or remove any other checkout.
    """
    with contextlib.suppress(PreparationError, OSError):
        found = run_git(repository, "rev-parse", "--path-format=absolute", "--git-common-dir")
        note = Path(found.stdout.strip()) / "worktrees" / target.name
        if found.returncode == 0 and read_tail(note / "commondir", 1) == b"":
            remove_folder(note)


def _remove_by_git(repository: Path, target: Path) -> bool:
    try:
        found = run_git(repository, "worktree", "remove", "--force", "--force", str(target))
    except PreparationError:
        return False
    return found.returncode == 0

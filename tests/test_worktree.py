"""The bound revision: a verdict is on exactly one commit, or there is none."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest

from hosts import ends_of_children_unseen, git
from staging_fsm.core.errors import PreparationError, RunRefusedError
from staging_fsm.core.evidence import EvidenceState
from staging_fsm.core.outcome import RunFacts, Supervision
from staging_fsm.core.plan import UNVERSIONED, SuitePlan, Workspace
from staging_fsm.core.ports import RunOrder
from staging_fsm.effects import worktree
from staging_fsm.effects.processes import start_ticks
from staging_fsm.effects.run_folder import RunFolder
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.effects.suite import LocalSuites
from staging_fsm.effects.worktree import (
    add_worktree,
    bind_revision,
    head_revision,
    remove_worktree,
    revision_at,
    run_git,
    tracked_changes,
)
from stand import RUN, as_nobody, await_that

IN_PLACE = SuitePlan(("true",), workspace=Workspace.IN_PLACE)
DIRTY = attrs.evolve(IN_PLACE, allow_dirty=True)


@attrs.frozen
class Site:
    """A repository and runs of shell scripts on it."""

    repository: Path
    state: StateDir

    @property
    def suites(self) -> LocalSuites:
        """Return a fresh worker's view of the runs."""
        return LocalSuites(self.state)

    @property
    def checkout(self) -> Path:
        """Return where the run's private checkout is."""
        return self.state.worktree(RUN)

    def start(self, script: str, revision: str | None = None, **plan: Any) -> None:
        """Start a run of a shell script on a revision."""
        suite = SuitePlan(("/bin/sh", "-c", script), timeout_seconds=60, **plan)
        bound = bind_revision(self.repository, suite) if revision is None else revision
        self.suites.start(RunOrder(RUN, self.repository, bound, suite))

    def run(self, script: str, revision: str | None = None, **plan: Any) -> RunFacts:
        """Run a shell script on a revision."""
        self.start(script, revision, **plan)
        facts = self.suites.await_report(RUN).facts
        assert facts.supervision == Supervision.SOUND
        return facts

    def output(self) -> str:
        """Return what the run printed."""
        return (self.state.run(RUN) / "output.log").read_text()

    def checkouts(self) -> list[str]:
        """Return git's own list of checkouts of the repository."""
        listed = git(self.repository, "worktree", "list", "--porcelain").splitlines()
        return [line for line in listed if line.startswith("worktree ")]


@pytest.fixture
def site(repository: Path, tmp_path: Path) -> Iterator[Site]:
    """Return a repository with two commits and a place for runs; nothing runs afterwards."""
    (repository / "docs" / "work-items" / "WI-1").mkdir(parents=True)
    (repository / "docs" / "work-items" / "WI-1" / "log.md").write_text("old\n")
    (repository / "docs" / "prices.md").write_text("Prices\n")
    commit(repository, "shop.py", "PRICE = 4\n")
    site = Site(repository, StateDir(tmp_path / "state"))
    yield site
    site.suites.reap(RUN)


def commit(repository: Path, name: str, text: str) -> str:
    """Commit everything with one file changed; return the commit."""
    (repository / name).write_text(text)
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", f"{name} changes.")
    return git(repository, "rev-parse", "HEAD")


# Which commit.


def test_attempt_is_bound_to_the_checked_out_commit(site: Site) -> None:
    """The bound revision is the commit that is checked out when the attempt starts."""
    assert bind_revision(site.repository, SuitePlan(("true",))) == git(
        site.repository, "rev-parse", "HEAD"
    )


def test_folder_without_git_is_unversioned(tmp_path: Path, site: Site) -> None:
    """A folder that is no repository, or of which git has nothing, is unversioned."""
    empty = tmp_path / "empty"
    empty.mkdir()

    untracked = site.repository / "build"
    untracked.mkdir()
    for folder in (empty, untracked, tmp_path / "absent"):
        assert bind_revision(folder, IN_PLACE) == UNVERSIONED


def test_part_of_a_repository_is_not_unversioned(site: Site) -> None:
    """A folder that git has files of is on a commit, and its top is what can be bound to it."""
    with pytest.raises(PreparationError, match="is a part of the git repository"):
        bind_revision(site.repository / "docs", IN_PLACE)


def test_part_of_a_repository_behind_a_link_is_not_unversioned(site: Site, tmp_path: Path) -> None:
    """A folder of a repository is one by whatever way it is reached."""
    (tmp_path / "link").symlink_to(site.repository / "docs")

    with pytest.raises(PreparationError, match="is a part of the git repository"):
        head_revision(tmp_path / "link")


def test_repository_without_a_branch_of_its_own_is_not_unversioned(
    site: Site, tmp_path: Path
) -> None:
    """A repository with commits from elsewhere and none checked out is not run on no commit."""
    fetched = tmp_path / "fetched"
    git(tmp_path, "init", "--quiet", str(fetched))
    git(fetched, "fetch", "--quiet", str(site.repository), "HEAD:refs/remotes/origin/main")

    with pytest.raises(PreparationError, match="cannot be read"):
        head_revision(fetched)


def test_machine_without_git_binds_no_repository(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where git is not installed a folder is unversioned, and a repository is refused."""
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(shutil, "which", lambda _: None)

    assert head_revision(tmp_path / "folder") == UNVERSIONED
    with pytest.raises(PreparationError, match="no git on the PATH"):
        bind_revision(site.repository, IN_PLACE)


def test_machine_without_git_binds_no_part_of_a_repository(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where git is not installed nobody knows what a repository has of a folder in it."""
    monkeypatch.setattr(shutil, "which", lambda _: None)

    with pytest.raises(PreparationError, match=r"is in the git repository .*: install it"):
        bind_revision(site.repository / "docs", IN_PLACE)


def break_off_the_index(repository: Path) -> None:
    """Leave of the index what a full disk would."""
    index = repository / ".git" / "index"
    index.write_bytes(index.read_bytes()[:20])


def lose_the_repository(repository: Path) -> None:
    """Leave a work tree of a repository that is not there."""
    shutil.rmtree(repository / ".git")
    (repository / ".git").write_text(f"gitdir: {repository}/lost.git/worktrees/shop\n")


def give_away(repository: Path) -> None:
    """Make the repository another user's."""
    if os.geteuid() != 0:
        pytest.skip("only root may give a folder away")
    for path in (repository, repository / ".git"):
        os.chown(path, 65534, 65534)


@pytest.mark.parametrize("damage", [break_off_the_index, lose_the_repository, give_away])
@pytest.mark.parametrize("name", ["docs", "build"])
def test_part_of_a_repository_that_does_not_answer_is_not_unversioned(
    site: Site, name: str, damage: Callable[[Path], None]
) -> None:
    """Where git does not say what it has of a folder, nobody runs it as one without a commit."""
    (site.repository / "build").mkdir()
    damage(site.repository)

    with pytest.raises(PreparationError, match=r"is in the git repository .* cannot be read: \w"):
        bind_revision(site.repository / name, IN_PLACE)


def test_part_of_a_repository_without_an_index_is_not_unversioned(site: Site) -> None:
    """What the commit has of a folder is there, though git's list of files is lost."""
    (site.repository / ".git" / "index").unlink()

    with pytest.raises(PreparationError, match="is a part of the git repository"):
        bind_revision(site.repository / "docs", IN_PLACE)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("name", ["docs", "build"])
def test_folder_of_a_repository_is_one_on_another_file_system_too(site: Site, name: str) -> None:
    """A folder on which something is mounted is judged like any other of its repository."""
    folder = site.repository / name
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)

    if name == "build":
        assert bind_revision(folder, IN_PLACE) == UNVERSIONED
        return
    with pytest.raises(PreparationError, match="is a part of the git repository"):
        bind_revision(folder, IN_PLACE)


def test_repository_whose_files_are_elsewhere_is_refused(site: Site, tmp_path: Path) -> None:
    """Where git compares other files than those of the folder, the folder is not unversioned."""
    git(site.repository, "config", "core.worktree", str(tmp_path))

    with pytest.raises(PreparationError, match="work tree"):
        bind_revision(site.repository, IN_PLACE)


def test_repository_whose_only_branch_is_lost_is_not_unversioned(tmp_path: Path) -> None:
    """A repository that had a commit and shows none any more is no folder without one."""
    lost = tmp_path / "lost"
    git(tmp_path, "init", "--quiet", "--initial-branch=main", str(lost))
    commit(lost, "shop.py", "PRICE = 4\n")
    (lost / ".git" / "refs" / "heads" / "main").unlink()

    with pytest.raises(PreparationError, match="cannot be read"):
        bind_revision(lost, IN_PLACE)


def test_bare_repository_is_not_unversioned(site: Site, tmp_path: Path) -> None:
    """A repository without files is no folder without a repository: no suite is run in it."""
    bare = tmp_path / "shop.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(site.repository), str(bare))

    with pytest.raises(PreparationError, match="bare git repository"):
        bind_revision(bare, IN_PLACE)


@pytest.mark.parametrize("name", ["in", "deep/in", "refs"])
def test_folder_in_a_bare_repository_is_not_unversioned(
    site: Site, tmp_path: Path, name: str
) -> None:
    """A folder within a repository without files is none without a repository, however deep."""
    bare = tmp_path / "shop.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(site.repository), str(bare))
    (bare / name).mkdir(parents=True, exist_ok=True)

    with pytest.raises(PreparationError, match=r"lies in the bare git repository .*shop\.git,"):
        bind_revision(bare / name, IN_PLACE)


def test_checkout_in_a_bare_repository_is_like_any_other(site: Site, tmp_path: Path) -> None:
    """A work tree that lies in its bare repository is bound, and a build folder in it to none."""
    bare = tmp_path / "shop.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(site.repository), str(bare))
    git(bare, "worktree", "add", "--quiet", "--detach", str(bare / "main"))
    build = bare / "main" / "build"
    build.mkdir()

    assert head_revision(bare / "main") == head_revision(site.repository)
    assert head_revision(build) == UNVERSIONED
    with pytest.raises(PreparationError, match=r"is a part of the git repository .*main: name"):
        head_revision(bare / "main" / "docs")


@pytest.mark.parametrize("ignored", ["", "deep\n"], ids=["untracked", "ignored"])
def test_folder_of_a_repository_without_a_commit_is_not_unversioned(
    tmp_path: Path, ignored: str
) -> None:
    """Where nothing was ever committed, a folder that git has nothing of is no build folder."""
    shop = tmp_path / "shop"
    git(tmp_path, "init", "--quiet", str(shop))
    (shop / "deep" / "in").mkdir(parents=True)
    (shop / "deep" / "in" / "suite").touch()
    (shop / ".gitignore").write_text(ignored)

    with pytest.raises(PreparationError, match=r"repository .*shop, which is on no commit: commit"):
        bind_revision(shop / "deep" / "in", IN_PLACE)


def test_repository_without_a_commit_is_not_unversioned(tmp_path: Path) -> None:
    """Whoever forgot the first commit, or whose commit failed, has no run that is bound to none."""
    shop = tmp_path / "shop"
    git(tmp_path, "init", "--quiet", str(shop))
    (shop / "shop.py").touch()
    git(shop, "add", ".")

    with pytest.raises(PreparationError, match="without a commit: commit what is to be run"):
        bind_revision(shop, IN_PLACE)


@pytest.mark.parametrize("damage", ["HEAD", "refs/heads/main"])
def test_repository_that_cannot_be_read_is_no_unversioned_folder(site: Site, damage: str) -> None:
    """A repository whose commit cannot be read is an error, and never passes for a bare folder."""
    (site.repository / ".git" / damage).write_text("garbage\n")

    with pytest.raises(PreparationError, match="revision"):
        bind_revision(site.repository, IN_PLACE)


@pytest.mark.parametrize("name", ["a{}b", "{}b", "a{}"])
@pytest.mark.parametrize("sign", ["\n", "\f", "\u2028", " ", "é", '"'])
def test_name_of_a_repository_may_hold_any_sign(site: Site, sign: str, name: str) -> None:
    """A repository is one whatever its folder is called."""
    moved = site.repository.rename(site.repository.with_name(name.format(sign)))
    head = git(moved, "rev-parse", "HEAD")

    assert head_revision(moved) == head


def test_repository_may_be_reached_by_a_link(site: Site, tmp_path: Path) -> None:
    """A repository is bound by whatever way its host reaches it, by a link to it or above it."""
    above = tmp_path / "above"
    above.symlink_to(site.repository.parent)
    by_link = tmp_path / "link"
    by_link.symlink_to(site.repository)
    head = git(site.repository, "rev-parse", "HEAD")

    for way in (by_link, above / site.repository.name):
        assert bind_revision(way, IN_PLACE) == head


@pytest.mark.parametrize("zone", ["HERE+5", "THERE-5"])
def test_commit_of_a_moment_is_what_was_checked_out_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    """Which commit was checked out at a moment does not depend on branches or time zones."""
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    heads = []
    for hour, branch in ((12, "main"), (13, "other"), (14, "main")):
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"2026-01-01T{hour}:00:00Z")
        git(tmp_path, "checkout", "--quiet", "-B", branch)
        git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", f"It is {hour}.")
        heads.append(git(tmp_path, "rev-parse", "HEAD"))
    monkeypatch.setenv("TZ", zone)
    moments = [datetime(2026, 1, 1, hour, 30, tzinfo=UTC) for hour in (12, 13, 14)]

    assert heads == [revision_at(tmp_path, moment) for moment in moments]


def test_hostile_variables_do_not_lead_git_astray(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables that tell git to look elsewhere are not passed on to it."""
    wanted = head_revision(site.repository)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))

    assert head_revision(site.repository) == wanted
    assert tracked_changes(site.repository, filtered=True) == ""


def test_dirty_tree_is_refused_in_place(site: Site) -> None:
    """A run in place over uncommitted changes is refused before it is a run."""
    (site.repository / "shop.py").write_text("PRICE = 5\n")

    with pytest.raises(RunRefusedError, match="uncommitted"):
        bind_revision(site.repository, IN_PLACE)


#: How git is told not to look at a file: by one mark, by the other, or by both.
UNSEEN = [["--assume-unchanged"], ["--skip-worktree"], ["--assume-unchanged", "--skip-worktree"]]


@pytest.mark.parametrize("marks", UNSEEN, ids="-".join)
def test_change_that_git_was_told_not_to_see_is_a_change(site: Site, marks: list[str]) -> None:
    """A file that git does not compare any more is compared all the same."""
    for mark in marks:
        git(site.repository, "update-index", mark, "shop.py")
    assert tracked_changes(site.repository, filtered=True) == ""
    (site.repository / "shop.py").write_text("PRICE = 5\n")
    hidden = "".join(f"git update-index {mark} shop.py; " for mark in marks)

    with pytest.raises(RunRefusedError, match="uncommitted"):
        bind_revision(site.repository, IN_PLACE)
    assert site.run(f"{hidden} echo >> shop.py").tree_changed


@pytest.mark.parametrize("marks", UNSEEN, ids="-".join)
def test_file_that_git_was_told_not_to_miss_is_missed(site: Site, marks: list[str]) -> None:
    """A file that a suite removes is missed, though it tells git not to look for it."""
    hidden = "".join(f"git update-index {mark} shop.py; " for mark in marks)

    assert site.run(f"{hidden} rm shop.py").tree_changed


def test_each_of_many_hidden_files_is_compared(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many files git was told not to look at, a change of any of them is seen."""
    names = ["a.py", "b.py", "c.py"]
    for name in names:
        commit(site.repository, name, "PRICE = 4\n")
    git(site.repository, "update-index", "--assume-unchanged", *names)
    monkeypatch.setattr(worktree, "_PATHS_AT_ONCE", 2)
    seen = []
    for name in names:
        (site.repository / name).write_text("PRICE = 5\n")
        seen.append(tracked_changes(site.repository, filtered=True) != "")
        (site.repository / name).write_text("PRICE = 4\n")

    assert seen == [True] * len(names)
    assert tracked_changes(site.repository, filtered=True) == ""


@pytest.mark.parametrize(
    "name", ["caf\udce9.py", "Icon\r", "a\tb.py", "\ta.py", "a b.py "], ids=ascii
)
def test_hidden_file_of_any_name_is_compared(site: Site, name: str) -> None:
    """The name of a file that git was told not to look at may hold any byte but one."""
    commit(site.repository, name, "PRICE = 4\n")
    git(site.repository, "update-index", "--assume-unchanged", name)
    clean = tracked_changes(site.repository, filtered=True)
    (site.repository / name).write_text("PRICE = 5\n")

    assert clean == ""
    assert tracked_changes(site.repository, filtered=True) != ""


def test_git_whose_end_nobody_knows_has_said_nothing(site: Site) -> None:
    """Where the exit status of a git was taken away, it is no 0: nothing passes for clean."""
    with (
        ends_of_children_unseen(),
        pytest.raises(PreparationError, match="could not be run"),
    ):
        tracked_changes(site.repository, filtered=True)


@pytest.mark.parametrize("whose", ["--local", "--global"])
@pytest.mark.parametrize("name", ["a=b", "a.b", "a.b.clean", "A"])
@pytest.mark.parametrize("kind", ["clean", "process"])
def test_filter_of_a_suite_hides_nothing_and_is_not_run(
    site: Site, monkeypatch: pytest.MonkeyPatch, kind: str, name: str, whose: str
) -> None:
    """A filter that a suite sets up hides no change, and the worker's git does not run it."""
    monkeypatch.setenv("HOME", str(site.repository.parent))
    ran = site.repository.parent / "ran"
    suite = (
        f"git config {whose} filter.{name}.{kind} 'touch {ran}; git show HEAD:shop.py'\n"
        f"git config {whose} filter.{name}.required true\n"
        "mkdir -p $(git rev-parse --git-common-dir)/info\n"
        f"echo 'shop.py filter={name}' > $(git rev-parse --git-common-dir)/info/attributes\n"
        "echo >> shop.py"
    )

    assert site.run(suite).tree_changed
    assert not ran.exists()


@pytest.mark.parametrize("setting", ["diff.a.textconv", "diff.a.command", "diff.external"])
def test_program_of_a_suite_that_shows_a_difference_hides_none(site: Site, setting: str) -> None:
    """What a suite sets up to show differences is not run by the worker's git, and hides none."""
    ran = site.repository.parent / "ran"
    suite = (
        f"git config {setting} 'touch {ran}; true'\n"
        "mkdir -p $(git rev-parse --git-common-dir)/info\n"
        "echo 'shop.py diff=a' > $(git rev-parse --git-common-dir)/info/attributes\n"
        "echo >> shop.py"
    )

    assert site.run(suite).tree_changed
    assert not ran.exists()


@pytest.fixture
def submodule(site: Site, tmp_path: Path) -> Path:
    """Return the repository that the folder `parts` of the site's is a submodule of."""
    parts = tmp_path / "parts"
    git(tmp_path, "init", "--quiet", str(parts))
    commit(parts, "part.py", "SIZE = 1\n")
    head = git(parts, "rev-parse", "HEAD")
    git(site.repository, "update-index", "--add", "--cacheinfo", f"160000,{head},parts")
    git(site.repository, "commit", "--quiet", "-m", "A submodule.")
    return parts


@pytest.mark.parametrize(
    ("deed", "moves"),
    [
        ("true", False),
        ("touch parts/new", False),
        ("echo >> parts/part.py", True),
        ("git -C parts commit --quiet --allow-empty -m x", True),
    ],
)
@pytest.mark.parametrize("where", ["", "--separate-git-dir $STAGING_REPORT_DIR/parts.git "])
def test_submodule_that_moved_is_a_change(
    site: Site, submodule: Path, deed: str, where: str, *, moves: bool
) -> None:
    """A tracked file of a submodule that was checked out, or its commit, is part of the tree.

    Git itself leaves a file there that says where the rest of the submodule's repository is.
    """
    named = "export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=b"
    suite = f"{named}; rmdir parts && git clone --quiet {where}{submodule} parts && {deed}"

    facts = site.run(suite)

    assert facts.exit_code == 0
    assert facts.tree_changed == moves


@pytest.mark.parametrize("marks", UNSEEN, ids="-".join)
@pytest.mark.parametrize("kind", ["commit", "change", "link", "file"])
def test_submodule_that_git_was_told_not_to_see_is_compared(
    site: Site, submodule: Path, marks: list[str], kind: str
) -> None:
    """A submodule that git does not compare any more has to be as it was committed all the same."""
    parts = site.repository / "parts"
    for mark in marks:
        git(site.repository, "update-index", mark, "parts")
    unseen = [tracked_changes(site.repository, filtered=True)]
    git(site.repository, "clone", "--quiet", str(submodule), "parts")
    unseen.append(tracked_changes(site.repository, filtered=True))
    if kind == "commit":
        commit(parts, "part.py", "SIZE = 2\n")
    elif kind == "change":
        (parts / "part.py").write_text("SIZE = 2\n")
    else:
        moved = parts.rename(site.repository.parent / "moved")
        parts.symlink_to(moved) if kind == "link" else parts.touch()

    assert unseen == ["", ""]
    with pytest.raises(RunRefusedError, match="uncommitted"):
        bind_revision(site.repository, IN_PLACE)


def test_submodule_that_a_suite_hides_is_compared(site: Site, submodule: Path) -> None:
    """A submodule that a suite moves is another, though the suite tells git not to look at it."""
    git(site.repository, "clone", "--quiet", str(submodule), "parts")
    commit(site.repository / "parts", "part.py", "SIZE = 2\n")
    git(site.repository / "parts", "checkout", "--quiet", "HEAD~1")
    suite = "git update-index --skip-worktree parts; git -C parts checkout --quiet -"

    assert site.run(suite, workspace=Workspace.IN_PLACE).tree_changed


def test_programs_of_a_submodule_are_not_run(site: Site, submodule: Path) -> None:
    """Git in a submodule that a suite set up runs nothing of it, and a change there is seen."""
    ran = site.repository.parent / "ran"
    suite = (
        f"rmdir parts; git clone --quiet {submodule} parts; cd parts\n"
        f"git config filter.a.clean 'touch {ran}; git show HEAD:part.py'\n"
        f"git config core.fsmonitor 'touch {ran}'\n"
        "echo 'part.py filter=a' > .git/info/attributes; printf 'SIZE = 2\\n' > part.py"
    )

    assert site.run(suite).tree_changed
    assert not ran.exists()


def test_remote_that_a_suite_set_up_is_not_asked(site: Site) -> None:
    """Git fetches nothing that a suite has removed, which would run whatever the suite likes."""
    ran = site.repository.parent / "ran"
    suite = (
        "common=$(git rev-parse --git-common-dir); tree=$(git rev-parse HEAD^{tree})\n"
        "git config core.repositoryformatversion 1; git config extensions.partialClone origin\n"
        "git config remote.origin.promisor true; git config protocol.ext.allow always\n"
        f"git config remote.origin.url 'ext::sh -c touch% {ran}'\n"
        "rm -f $common/objects/$(echo $tree | cut -c1-2)/$(echo $tree | cut -c3-)"
    )

    assert site.run(suite).tree_changed
    assert not ran.exists()


def test_file_made_to_look_unchanged_is_compared(site: Site) -> None:
    """Settings by which git looks less closely at files do not hide a change."""
    git(site.repository, "config", "core.trustctime", "false")
    git(site.repository, "config", "core.checkStat", "minimal")
    os.utime(site.repository / "shop.py", (0, 0))
    git(site.repository, "update-index", "--refresh")
    suite = (
        # Git compares whole seconds, and the clock of files is a moment late.
        "until test $(date +%s) -gt $(($(stat -c %Z shop.py) + 1)); do :; done\n"
        "touch -r shop.py old; printf 'PRICE = 5\\n' > shop.py; touch -r old shop.py; rm old"
    )

    assert site.run(suite, workspace=Workspace.IN_PLACE).tree_changed


def test_submodule_with_a_filter_of_its_own_is_clean(site: Site, tmp_path: Path) -> None:
    """A submodule whose files are stored in another form is compared by it before a run."""
    parts = site.repository / "parts"
    git(tmp_path, "init", "--quiet", str(parts))
    git(parts, "config", "filter.upper.clean", "tr a-z A-Z")
    commit(parts, ".gitattributes", "*.py filter=upper\n")
    head = commit(parts, "lower.py", "price = 3\n")
    git(site.repository, "update-index", "--add", "--cacheinfo", f"160000,{head},parts")
    git(site.repository, "commit", "--quiet", "-m", "A submodule.")
    os.utime(parts / "lower.py", (0, 0))

    assert bind_revision(site.repository, IN_PLACE) == head_revision(site.repository)


@pytest.fixture(params=["false", "true"], ids=["optional", "required"])
def in_capitals(site: Site, request: pytest.FixtureRequest) -> Path:
    """Return a file that the repository stores in another form than it is checked out in.

    Its filter may be one without which git is to give up, as that of Git LFS is.
    """
    git(site.repository, "config", "filter.upper.required", request.param)
    git(site.repository, "config", "filter.upper.clean", "tr a-z A-Z")
    git(site.repository, "config", "filter.upper.smudge", "tr A-Z a-z")
    commit(site.repository, ".gitattributes", "*.py filter=upper\n")
    commit(site.repository, "lower.py", "price = 3\n")
    return site.repository / "lower.py"


@pytest.mark.usefixtures("in_capitals")
def test_filter_of_the_repository_itself_changes_nothing(site: Site) -> None:
    """A repository whose files are stored in another form has its verdict as any other."""
    assert tracked_changes(site.repository, filtered=True) == ""
    assert not site.run("true").tree_changed


def test_clean_repository_with_a_filter_is_bound_in_place(site: Site, in_capitals: Path) -> None:
    """Files that are as they were committed are clean, in whatever form they are stored."""
    os.utime(in_capitals, (0, 0))

    assert bind_revision(site.repository, IN_PLACE) == git(site.repository, "rev-parse", "HEAD")


@pytest.fixture
def known(site: Site, in_capitals: Path) -> Path:
    """Return that file, and git knows it as it is: who asked for the status has refreshed it."""
    os.utime(in_capitals, (0, 0))
    git(site.repository, "status")
    return in_capitals


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("workspace", list(Workspace))
@pytest.mark.parametrize(
    "does",
    ["touch lower.py", "touch -d 2001-01-01 lower.py; git status", "git add --renormalize ."],
)
def test_file_with_a_filter_may_be_touched(site: Site, workspace: Workspace, does: str) -> None:
    """A file that is stored in another form is as it was, whoever has looked at it meanwhile."""
    assert not site.run(does, workspace=workspace).tree_changed


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("workspace", list(Workspace))
@pytest.mark.parametrize(
    "does",
    [
        "echo 'price = 4' > lower.py",
        "echo 'price = 4' > lower.py; git add lower.py; git status",
        # To the filter it is the same.
        "echo 'Price = 3' > lower.py; git status",
        "rm lower.py",
        "chmod +x lower.py",
        "rm lower.py; ln -s .gitattributes lower.py",
        "echo 'size = 2' > shop.py",
        "git config filter.upper.clean 'git show HEAD:lower.py #'; echo 4 > lower.py; git status",
        "git config --remove-section filter.upper; echo 4 > lower.py",
        "echo '*.py -filter' >> $(git rev-parse --git-path info/attributes); echo 4 > lower.py",
        "git update-index --assume-unchanged lower.py; echo 4 > lower.py",
        # What cannot be looked at any more.
        "rm $(git rev-parse --git-path index)",
    ],
)
def test_file_with_a_filter_that_was_changed_is_noticed(
    site: Site, workspace: Workspace, does: str
) -> None:
    """A suite that changes a file which is stored in another form has moved the tree."""
    assert site.run(does, workspace=workspace).tree_changed


def test_allowed_dirt_is_compared_without_the_filters(site: Site, in_capitals: Path) -> None:
    """A dirty tree that stays as it was has not moved, and its filters are no part of that."""
    in_capitals.write_text("price = 4\n")
    ran = site.repository.parent / "ran"
    git(site.repository, "config", "filter.upper.clean", f"touch {ran}; tr a-z A-Z")

    assert not site.run("true", workspace=Workspace.IN_PLACE, allow_dirty=True).tree_changed
    assert not ran.exists()


def test_sparse_checkout_is_clean(site: Site) -> None:
    """Files that a sparse checkout leaves out are no changes."""
    git(site.repository, "sparse-checkout", "set", "--no-cone", "/other/")

    assert not (site.repository / "shop.py").exists()
    assert tracked_changes(site.repository, filtered=True) == ""


def test_sparse_checkout_is_a_tree_like_any_other(site: Site) -> None:
    """A run in place misses no file that was left out of the repository's own checkout."""
    git(site.repository, "sparse-checkout", "set", "--no-cone", "/other/")

    assert not site.run("true", workspace=Workspace.IN_PLACE).tree_changed


@pytest.mark.parametrize(
    ("kept", "workspace", "told"),
    [
        ("docs", Workspace.IN_PLACE, "1 tracked file of the commit is not in the tree (sparse"),
        ("other", Workspace.IN_PLACE, "2 tracked files of the commit are not in the tree (sparse"),
        ("other", Workspace.WORKTREE, None),
    ],
)
def test_run_on_a_part_of_the_commit_says_so(
    site: Site, kept: str, workspace: Workspace, told: str | None
) -> None:
    """A run in place says how many files a sparse checkout has left out; a worktree has all."""
    git(site.repository, "sparse-checkout", "set", "--no-cone", f"/{kept}/")
    left_out = git(site.repository, "ls-files", "-t").splitlines()
    assert "S shop.py" in left_out
    site.start("true", workspace=workspace)
    report = site.suites.await_report(RUN)

    assert not report.facts.tree_changed
    assert report.detail == (told and f"{told} checkout)")


@pytest.mark.parametrize("workspace", Workspace)
@pytest.mark.parametrize("others", [0, 1])
def test_run_without_its_submodules_says_so(
    site: Site, submodule: Path, workspace: Workspace, others: int
) -> None:
    """A run whose submodules are not checked out, as in every worktree, says how many are not.

    Also of those in place that git was told not to look at.
    """
    head = git(submodule, "rev-parse", "HEAD")
    for number in range(others):
        more = f"160000,{head},more-{number}"
        git(site.repository, "update-index", "--add", "--cacheinfo", more)
    git(site.repository, "commit", "--quiet", "--allow-empty", "-m", "More.")
    git(site.repository, "checkout", "--quiet", "--", ".")
    for number in range(others):
        git(site.repository, "update-index", "--assume-unchanged", f"more-{number}")
    site.start("true", workspace=workspace)
    report = site.suites.await_report(RUN)

    assert not report.facts.tree_changed
    assert report.detail == ("2 submodules are empty" if others else "1 submodule is empty")


def test_run_without_the_submodules_of_a_submodule_says_so(
    site: Site, submodule: Path, tmp_path: Path
) -> None:
    """What a submodule that is checked out lacks itself is told of like the tree's own."""
    inner = tmp_path / "inner"
    git(tmp_path, "init", "--quiet", str(inner))
    commit(inner, "screw.py", "SIZE = 0\n")
    head = git(inner, "rev-parse", "HEAD")
    git(submodule, "update-index", "--add", "--cacheinfo", f"160000,{head},inner")
    git(submodule, "commit", "--quiet", "-m", "A submodule of its own.")
    commit_of_both = f"160000,{git(submodule, 'rev-parse', 'HEAD')},parts"
    git(site.repository, "update-index", "--cacheinfo", commit_of_both)
    git(site.repository, "commit", "--quiet", "-m", "Newer parts.")
    git(site.repository, "clone", "--quiet", str(submodule), "parts")
    parts = site.repository / "parts"
    git(parts, "sparse-checkout", "set", "--no-cone", "/inner/")
    site.start("true", workspace=Workspace.IN_PLACE)

    told = site.suites.await_report(RUN).detail or ""
    assert "1 submodule is empty" in told
    assert "1 tracked file of the commit is not in the tree (sparse checkout)" in told


@pytest.mark.parametrize("deed", ["git clone --quiet {} parts", "mkdir -p parts; touch parts/own"])
def test_run_whose_suite_brings_its_submodules_says_nothing(
    site: Site, submodule: Path, deed: str
) -> None:
    """A submodule that the suite itself has filled is not called empty."""
    site.start(deed.format(submodule))
    report = site.suites.await_report(RUN)

    assert not report.facts.tree_changed
    assert report.detail is None


def test_work_items_are_left_out_where_the_host_keeps_them_and_nowhere_else(site: Site) -> None:
    """A tracked file below another folder of that name is part of what is tested."""
    nested = site.repository / "services" / "a" / "docs" / "work-items"
    nested.mkdir(parents=True)
    (nested / "prices.md").write_text("1\n")
    commit(site.repository, "other.py", "")
    before = tracked_changes(site.repository, filtered=True)
    (site.repository / "docs/work-items/WI-1/log.md").write_text("new\n")
    beside = tracked_changes(site.repository, filtered=True)
    (nested / "prices.md").write_text("2\n")

    assert (before, beside) == ("", "")
    assert tracked_changes(site.repository, filtered=True) != ""


def test_all_there_is_to_say_of_a_run_is_said(site: Site) -> None:
    """A run over uncommitted changes that also left processes behind is told with both."""
    (site.repository / "shop.py").write_text("PRICE = 5\n")
    site.start("sleep 600 & exit 0", workspace=Workspace.IN_PLACE, allow_dirty=True)
    detail = site.suites.await_report(RUN).detail or ""

    assert "uncommitted changes" in detail
    assert "outlived the suite" in detail


@pytest.mark.parametrize("left", ["all", "the note alone"])
def test_note_of_a_checkout_that_a_power_cut_left_empty_is_removed(site: Site, left: str) -> None:
    """A note that git can no longer read keeps no other checkout from being made."""
    revision, broken, next_one = head_revision(site.repository), site.checkout, "a.2"
    add_worktree(site.repository, revision, broken)
    note = site.repository / ".git" / "worktrees" / broken.name
    (note / "commondir").write_bytes(b"")
    if left != "all":
        shutil.rmtree(broken)
    with pytest.raises(PreparationError, match="commondir"):
        add_worktree(site.repository, revision, broken.with_name(next_one))

    remove_worktree(site.repository, broken)
    add_worktree(site.repository, revision, broken.with_name(next_one))

    assert not os.path.lexists(broken)
    assert not note.exists()
    assert (broken.with_name(next_one) / "shop.py").is_file()


def test_note_of_another_checkout_is_left_alone(site: Site) -> None:
    """Only the note of the checkout that is removed goes with it, however broken others are."""
    other = site.checkout.with_name("other")
    add_worktree(site.repository, head_revision(site.repository), other)
    commondir = site.repository / ".git" / "worktrees" / "other" / "commondir"
    whole = commondir.read_bytes()
    commondir.write_bytes(b"")
    remove_worktree(site.repository, site.checkout)
    commondir.write_bytes(whole)

    assert str(other) in " ".join(site.checkouts())


def test_checkout_that_others_were_in_the_way_of_is_tried_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Git that met the note of a checkout another process is just making is asked once more."""
    revision, other = head_revision(site.repository), site.checkout.with_name("other")
    add_worktree(site.repository, revision, other)
    commondir = site.repository / ".git" / "worktrees" / "other" / "commondir"
    whole = commondir.read_bytes()
    commondir.write_bytes(b"")
    # The other process ends what it was at.
    monkeypatch.setattr(time, "sleep", lambda _: commondir.write_bytes(whole))

    add_worktree(site.repository, revision, site.checkout)

    assert (site.checkout / "shop.py").is_file()


def test_folder_that_an_order_names_is_not_removed(site: Site, tmp_path: Path) -> None:
    """A suite that writes another folder into its order has no verdict, and that folder stays."""
    precious = tmp_path / "precious"
    precious.mkdir()
    order = site.state.run(RUN) / "order"
    pattern = f's#"tree": *"[^"]*"#"tree": "{precious}"#'
    site.start(f"sed -i '{pattern}' {order}; grep -q {precious} {order}")
    # As by a worker that comes later: the one that began has read its order before.
    await_that((order.parent / "result").exists)
    with pytest.raises(PreparationError, match="order"):
        site.suites.await_report(RUN)
    site.suites.reap(RUN)

    assert precious.is_dir()
    assert not os.path.lexists(site.checkout)


@pytest.mark.parametrize(
    ("interruption", "met"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(), SystemExit),
        (subprocess.TimeoutExpired("git", 300), PreparationError),
    ],
)
def test_git_of_a_worker_that_is_interrupted_is_ended(
    site: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interruption: BaseException,
    met: type[BaseException],
) -> None:
    """Whoever interrupts a worker while git works leaves neither git nor a program of its."""
    children: list[subprocess.Popen[bytes]] = []
    pid = tmp_path / "pid"

    def interrupted(child: subprocess.Popen[bytes], **_: object) -> None:
        children.append(child)
        await_that(pid.exists)
        raise interruption

    monkeypatch.setattr(worktree._Child, "communicate", interrupted)
    script = f"echo $$ > {pid}.new; mv {pid}.new {pid}; sleep 600"
    with pytest.raises(met):
        run_git(site.repository, "-c", f"alias.slow=!{script}", "slow")

    await_that(lambda: start_ticks(int(pid.read_text())) is None)
    await_that(lambda: children[0].poll() == -signal.SIGKILL)


def test_git_of_a_worker_that_is_interrupted_at_its_start_is_ended(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever interrupts a worker that is just starting a git leaves none behind either."""
    pid = tmp_path / "pid"
    start = vars(subprocess.Popen)["_execute_child"]

    def interrupted(*arguments: Any) -> None:
        start(*arguments)
        await_that(pid.exists)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "_execute_child", interrupted)
    script = f"echo $$ > {pid}.new; mv {pid}.new {pid}; sleep 600"
    with pytest.raises(KeyboardInterrupt):
        run_git(site.repository, "-c", f"alias.slow=!{script}", "slow")

    await_that(lambda: start_ticks(int(pid.read_text())) is None)


def slow_filter(site: Site, pid: Path) -> str:
    """Commit a file whose filter never ends and writes its number to `pid`; return the commit."""
    script = f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 600"
    git(site.repository, "config", "filter.slow.smudge", script)
    return commit(site.repository, ".gitattributes", "*.py filter=slow\n")


def test_git_of_a_lost_run_is_ended(site: Site, tmp_path: Path) -> None:
    """Where a worker was killed in a checkout, whoever takes the run up ends git and its filter."""
    pid = tmp_path / "pid"
    revision = slow_filter(site, pid)
    code = (
        "import sys; from pathlib import Path\n"
        "from staging_fsm.core.plan import SuitePlan\n"
        "from staging_fsm.core.ports import RunOrder\n"
        "from staging_fsm.effects.state_dir import StateDir\n"
        "from staging_fsm.effects.suite import LocalSuites\n"
        "state, repository, run, revision = sys.argv[1:]\n"
        "order = RunOrder(run, Path(repository), revision, SuitePlan(('true',)))\n"
        "LocalSuites(StateDir(Path(state))).start(order)\n"
    )
    told = [str(site.state.root), str(site.repository), RUN, revision]
    with subprocess.Popen([sys.executable, "-c", code, *told]) as worker:
        await_that(pid.exists)
        worker.kill()
    site.suites.reap(RUN)

    assert start_ticks(int(pid.read_text())) is None
    assert not site.checkout.exists()


def test_checkout_of_a_run_that_was_cancelled_is_not_tried_again(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkout whose git was killed ends there: nobody was in its way."""
    pid, asked = tmp_path / "pid", []
    revision = slow_filter(site, pid)

    def count(*arguments: Any, **how: Any) -> "subprocess.CompletedProcess[str]":
        asked.extend(["add"] * ("add" in arguments))
        return run_git(*arguments, **how)

    def cancelled() -> None:
        await_that(pid.exists)
        site.suites.reap(RUN)

    monkeypatch.setattr(worktree, "run_git", count)
    with ThreadPoolExecutor() as threads:
        cancelling = threads.submit(cancelled)
        with pytest.raises(PreparationError, match="cannot be checked out"):
            site.start("true", revision)
        cancelling.result()

    assert asked == ["add"]
    assert start_ticks(int(pid.read_text())) is None


def test_further_checkout_is_of_the_whole_commit(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkout that has to be tried again has all files, though the repository's is sparse."""
    git(site.repository, "sparse-checkout", "set", "--no-cone", "/other/")
    revision, asked = head_revision(site.repository), []

    def fail_at_first(*arguments: Any, **how: Any) -> "subprocess.CompletedProcess[str]":
        adds = "add" in arguments
        asked.extend(["add"] * adds)
        if adds and len(asked) == 1:
            return subprocess.CompletedProcess([], 128, "", "another was in the way")
        return run_git(*arguments, **how)

    monkeypatch.setattr(worktree, "run_git", fail_at_first)
    add_worktree(site.repository, revision, site.checkout)

    assert asked == ["add", "add"]
    assert (site.checkout / "shop.py").is_file()


def test_hidden_file_that_became_a_dangling_link_is_a_change(site: Site) -> None:
    """A link to nowhere in the place of a file is there, and is not what was committed."""
    git(site.repository, "update-index", "--skip-worktree", "shop.py")
    (site.repository / "shop.py").unlink()
    assert tracked_changes(site.repository, filtered=True) == ""
    (site.repository / "shop.py").symlink_to("nowhere")

    assert tracked_changes(site.repository, filtered=True) != ""


def test_suite_runs_on_all_of_the_commit(site: Site) -> None:
    """A suite sees every file of its commit, though the repository's own checkout is sparse."""
    git(site.repository, "sparse-checkout", "set", "--no-cone", "/other/")
    facts = site.run("cat shop.py docs/prices.md")

    assert facts.exit_code == 0
    assert not facts.tree_changed


def test_link_of_a_commit_is_one_in_its_checkout(site: Site) -> None:
    """A suite finds links, though the repository lies on a share that has none."""
    (site.repository / "link").symlink_to("docs")
    git(site.repository, "add", "link")
    git(site.repository, "commit", "--quiet", "-m", "A link.")
    git(site.repository, "config", "core.symlinks", "false")

    assert site.run("test -L link && cat link/prices.md").exit_code == 0
    shutil.rmtree(site.state.root)
    assert site.run("rm link; printf docs > link").tree_changed
    # In place nothing can be mended: a text is not the link that was committed.
    (site.repository / "link").unlink()
    (site.repository / "link").write_text("docs")
    with pytest.raises(RunRefusedError, match="uncommitted"):
        bind_revision(site.repository, IN_PLACE)


def test_mode_is_part_of_a_commit_whatever_git_was_told(site: Site) -> None:
    """A file that became executable is a change, though git was told to look at no modes."""
    git(site.repository, "config", "core.fileMode", "false")
    unmoved = site.run("true")
    shutil.rmtree(site.state.root)
    moved = site.run("chmod +x shop.py")
    (site.repository / "shop.py").chmod(0o755)

    assert (unmoved.tree_changed, moved.tree_changed) == (False, True)
    with pytest.raises(RunRefusedError, match="uncommitted"):
        bind_revision(site.repository, IN_PLACE)


def test_executable_file_of_a_commit_is_one_in_its_checkout(site: Site) -> None:
    """A suite may start what its commit has as a program, on whatever share the repository lies."""
    (site.repository / "tool.sh").touch()
    (site.repository / "tool.sh").chmod(0o755)
    git(site.repository, "add", "tool.sh")
    git(site.repository, "commit", "--quiet", "-m", "A tool.")
    git(site.repository, "config", "core.fileMode", "false")

    facts = site.run("./tool.sh")

    assert facts.exit_code == 0
    assert not facts.tree_changed


@pytest.mark.parametrize("marks", UNSEEN, ids="-".join)
@pytest.mark.parametrize(
    ("name", "deed", "changes"),
    [
        ("shop.py", "cp shop.py x; mv x shop.py", False),
        ("shop.py", "chmod +x shop.py", True),
        ("shop.py", "cp shop.py x; ln -sf x shop.py", True),
        ("shop.py", "rm shop.py; mkfifo shop.py", True),
        ("link", "ln -sf shop.py link", False),
        ("link", "cp shop.py x; ln -sf x link", True),
        ("link", "rm link; printf shop.py > link", True),
    ],
)
def test_kind_of_a_file_that_git_was_told_not_to_see_is_compared(
    site: Site, marks: list[str], name: str, deed: str, *, changes: bool
) -> None:
    """A hidden file has to be what was committed: a file or a link, executable or not."""
    (site.repository / "link").symlink_to("shop.py")
    commit(site.repository, "other.py", "")
    for mark in marks:
        git(site.repository, "update-index", mark, name)
    before = tracked_changes(site.repository, filtered=True)
    subprocess.run(["/bin/sh", "-c", deed], cwd=site.repository, check=True)
    after = tracked_changes(site.repository, filtered=True)

    assert (before, after != "") == ("", changes)


def test_staged_change_is_a_change(site: Site) -> None:
    """A change that is staged and not committed makes a tree dirty too."""
    (site.repository / "new.py").write_text("")
    git(site.repository, "add", "new.py")

    with pytest.raises(RunRefusedError, match="uncommitted"):
        bind_revision(site.repository, IN_PLACE)


def test_dirty_tree_may_be_allowed(site: Site) -> None:
    """A dirty tree is bound in place where the suite allows it, and in a worktree always."""
    (site.repository / "shop.py").write_text("PRICE = 5\n")
    head = git(site.repository, "rev-parse", "HEAD")

    assert bind_revision(site.repository, DIRTY) == head
    assert bind_revision(site.repository, SuitePlan(("true",))) == head


@pytest.mark.parametrize("workspace", Workspace)
@pytest.mark.parametrize("text", ["PRICE = 4\n", "PRICE = 5\n"], ids=["clean", "dirty"])
def test_run_over_uncommitted_changes_says_so(site: Site, workspace: Workspace, text: str) -> None:
    """A run in place over a tree that differed says that its revision does not say what ran."""
    (site.repository / "shop.py").write_text(text)
    site.start("true", workspace=workspace, allow_dirty=True)
    detail = site.suites.await_report(RUN).detail
    differed = workspace is Workspace.IN_PLACE and "5" in text

    assert ("uncommitted changes were tested" in (detail or "")) is differed


# In a worktree.


def test_suite_runs_on_exactly_the_bound_commit(site: Site) -> None:
    """A suite sees the files of the bound commit, whatever is checked out or lying about."""
    older = git(site.repository, "rev-parse", "HEAD~1")
    (site.repository / "shop.py").write_text("PRICE = 5\n")
    (site.repository / "untracked").write_text("")
    facts = site.run("cat shop.py; git rev-parse HEAD; git status --short; pwd; ls", older)

    assert facts.exit_code == 0
    assert not facts.tree_changed
    assert site.output() == f"PRICE = 3\n{older}\n{site.checkout.resolve()}\nshop.py\n"


@pytest.mark.parametrize("workspace", Workspace)
def test_commit_is_what_its_digest_says(site: Site, workspace: Workspace) -> None:
    """What somebody put in a commit's place with `git replace` is neither run nor compared with."""
    head, older = git(site.repository, "rev-parse", "HEAD", "HEAD~1").split()
    git(site.repository, "replace", head, older)
    if workspace is Workspace.IN_PLACE:
        git(site.repository, "reset", "--quiet", "--hard")
        assert git(site.repository, "status", "--short") == ""
        with pytest.raises(RunRefusedError, match="uncommitted"):
            bind_revision(site.repository, IN_PLACE)
    else:
        assert site.run("cat shop.py", head).exit_code == 0
        assert site.output() == "PRICE = 4\n"


def test_checkout_is_gone_when_the_run_is_over(site: Site) -> None:
    """A private checkout is removed after its run, from the disk and from git's list."""
    before = site.checkouts()
    site.start("git branch | cat")
    assert len(site.checkouts()) == 2
    site.suites.await_report(RUN)

    assert not site.checkout.exists()
    assert site.checkouts() == before
    assert (site.repository / "shop.py").read_text() == "PRICE = 4\n"


@pytest.mark.parametrize(
    "deed",
    [
        "rm -rf ../$STAGING_ATTEMPT",
        "rm .git",
        "rm .git; mkdir .git",
        "echo gitdir: /nowhere > .git",
        "git worktree lock .",
        "git worktree lock .; rm .git",
        "mkdir -p a/b; touch a/b/c; chmod 500 a/b; chmod 0 a; rm .git",
        "cd ..; mv $STAGING_ATTEMPT elsewhere; ln -s $PWD/elsewhere $STAGING_ATTEMPT",
        "cd ..; rm -rf $STAGING_ATTEMPT; touch $STAGING_ATTEMPT",
        "cd ..; rm -rf $STAGING_ATTEMPT; ln -s nowhere $STAGING_ATTEMPT",
    ],
)
def test_checkout_is_removed_whatever_the_suite_made_of_it(site: Site, deed: str) -> None:
    """A checkout that the suite damaged, hid or locked is removed all the same."""
    before = site.checkouts()
    site.run(deed)

    assert not os.path.lexists(site.checkout)
    assert site.checkouts() == before


@pytest.mark.parametrize("deed", ["rm -rf ../$STAGING_ATTEMPT", "rm .git", "rm .git; mkdir .git"])
def test_checkout_that_is_none_any_more_has_no_verdict(site: Site, deed: str) -> None:
    """A tree that cannot be compared with its commit any more counts as moved."""
    assert site.run(deed).tree_changed


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """Return a folder that a suite may mount, where this machine lets it."""
    folder, probe = tmp_path / "else where", tmp_path / "probe"
    folder.mkdir()
    probe.mkdir()
    (folder / "precious").mkdir(mode=0o755)
    mounted = subprocess.run(["mount", "--bind", folder, probe], check=False, capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("nothing may be mounted here")
    subprocess.run(["umount", probe], check=True)
    yield folder
    left = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in (path for path in left if path.startswith(str(tmp_path))):
        subprocess.run(["umount", "--lazy", mount], check=True)


@pytest.mark.parametrize("place", ["deep/in", ".", "$STAGING_REPORT_DIR"])
def test_what_a_suite_mounted_is_not_emptied(site: Site, elsewhere: Path, place: str) -> None:
    """Whatever folder a suite mounts where we clean up is unmounted, and as it was."""
    site.run(f"mkdir -p {place}; mount --bind '{elsewhere}' {place}")
    os.utime(site.state.run(RUN), (0, 0))
    site.suites.prune(1, tuple)

    assert elsewhere.joinpath("precious").stat().st_mode & 0o777 == 0o755
    assert not site.checkout.exists()
    assert not site.state.reports(RUN).exists()
    assert str(site.state.root) not in Path("/proc/mounts").read_text()


def test_what_we_may_not_unmount_stays(tmp_path: Path, elsewhere: Path) -> None:
    """A folder with a mount in it that is not ours to undo is not ours to remove."""
    code = "import sys; from pathlib import Path; from staging_fsm.effects.folders import *; "
    code += "sys.exit(is_all_ours(Path(sys.argv[1])))"
    folder = tmp_path / "folder"
    (folder / "in").mkdir(parents=True)
    subprocess.run(["mount", "--bind", elsewhere, folder / "in"], check=True)
    asked = [*as_nobody(folder), sys.executable, "-c", code, str(folder)]
    ended = subprocess.run(asked, check=False, capture_output=True)

    assert ended.returncode == 0, ended.stderr
    assert (folder / "in" / "precious").exists()


@pytest.mark.parametrize("deed", ["true", "echo > shop.py"])
def test_what_became_of_the_tree_outlives_the_checkout(site: Site, deed: str) -> None:
    """A worker whose verdict was not stored leaves the next one the same facts to judge."""
    first = site.run(deed)
    assert not site.checkout.exists()

    assert site.suites.await_report(RUN).facts == first
    assert first.tree_changed is (deed != "true")


@pytest.mark.parametrize("seal", ["", "0000"])
def test_tree_that_the_suite_calls_unchanged_is_looked_at(site: Site, seal: str) -> None:
    """What a suite says of its tree in our place is not believed."""
    control = "$(dirname $(dirname $STAGING_REPORT_DIR))/runs/$STAGING_ATTEMPT"
    forged = f"run={RUN}\\ntree_changed=0\\n{seal}\\n"

    assert site.run(f"echo > shop.py; printf '{forged}' > {control}/tree").tree_changed


def test_checkout_that_nobody_came_back_for_goes_with_its_run(site: Site) -> None:
    """A checkout that could not be removed in its time is removed along with its old run."""
    before = site.checkouts()
    site.run("true")
    add_worktree(site.repository, "HEAD", site.checkout)
    os.utime(site.state.run(RUN), (0, 0))

    site.suites.prune(1, tuple)

    assert not site.checkout.exists()
    assert site.checkouts() == before
    assert site.state.run_ids() == []


def test_checkout_of_a_lost_run_is_removed(site: Site) -> None:
    """A checkout does not outlive its run, however the run ends."""
    before = site.checkouts()
    site.start("kill -KILL $PPID; sleep 600")

    assert site.suites.await_report(RUN).facts.supervision == Supervision.LOST
    assert not site.checkout.exists()
    assert site.checkouts() == before


def test_checkout_of_a_crashed_start_is_removed(site: Site) -> None:
    """What a worker left that was killed in the middle of a checkout is removed by the next."""
    before = site.checkouts()
    site.start("sleep 600")
    shim = site.state.run(RUN) / "shim"
    while not shim.exists():
        os.sched_yield()
    os.kill(int(shim.read_text().splitlines()[0].removeprefix("pid=")), signal.SIGKILL)
    git(site.repository, "worktree", "lock", "--reason", "initializing", str(site.checkout))
    (site.checkout / "shop.py").unlink()
    site.suites.reap(RUN)
    site.suites.reap(RUN)

    assert not site.checkout.exists()
    assert site.checkouts() == before


def test_removal_needs_no_repository(site: Site) -> None:
    """A checkout is removed though its repository is gone."""
    add_worktree(site.repository, "HEAD", site.checkout)
    shutil.rmtree(site.repository)
    remove_worktree(site.repository, site.checkout)
    remove_worktree(site.repository, site.checkout)

    assert not site.checkout.exists()


@pytest.mark.parametrize("depth", [1500, 5000])
def test_removal_goes_deeper_than_python_and_paths_can(tmp_path: Path, depth: int) -> None:
    """A checkout that git cannot remove is removed however deep its folders are."""
    code = "import os, sys\nfor _ in range(int(sys.argv[1])):\n    os.mkdir('d')\n    os.chdir('d')"
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    subprocess.run([sys.executable, "-c", code, str(depth)], cwd=checkout, check=True)
    remove_worktree(tmp_path / "gone", checkout)

    assert not checkout.exists()


def test_removal_needs_no_right_that_the_suite_took(tmp_path: Path) -> None:
    """A checkout is removed though the suite left folders in it that may not be written to."""
    checkout = tmp_path / "checkout"
    (checkout / "a" / "b").mkdir(parents=True)
    (checkout / "a" / "b" / "file").touch()
    paths = (tmp_path, checkout, checkout / "a", checkout / "a" / "b")
    before = as_nobody(*paths)
    for path in reversed(paths[1:]):
        path.chmod(0)
    code = (
        "import pathlib, sys; from staging_fsm.effects.worktree import remove_worktree;"
        "remove_worktree(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([*before, sys.executable, "-c", code, str(checkout)], check=True)

    assert not checkout.exists()


def test_checkout_that_could_not_be_removed_is_told_of(site: Site, tmp_path: Path) -> None:
    """Where another user's files keep a checkout there, the log says so and says where."""
    if os.geteuid() != 0:
        pytest.skip("only root may leave another user's files")
    (site.checkout / "build").mkdir(parents=True)
    (site.checkout / "build" / "out.o").touch()
    before = as_nobody(tmp_path, site.state.root, site.checkout.parent, site.checkout)
    code = (
        "import sys; from pathlib import Path\n"
        "from staging_fsm.effects.state_dir import StateDir\n"
        "from staging_fsm.effects.suite import LocalSuites\n"
        "LocalSuites(StateDir(Path(sys.argv[1]))).reap(sys.argv[2])\n"
    )
    ended = subprocess.run(
        [*before, sys.executable, "-c", code, str(site.state.root), RUN],
        check=True,
        capture_output=True,
        text=True,
    )

    assert "a checkout could not be removed" in ended.stderr
    assert f"path={site.checkout}\n" in ended.stderr
    assert site.state.checkouts_of_ended() == [site.checkout]


def test_revision_that_does_not_exist_cannot_be_prepared(site: Site) -> None:
    """A run on a commit that is not there is a preparation error and leaves nothing behind."""
    before = site.checkouts()

    with pytest.raises(PreparationError, match="checked out"):
        site.start("true", "0" * 40)
    assert not site.checkout.exists()
    assert site.checkouts() == before


def test_filter_of_the_repository_learns_nothing_of_the_orchestrator(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that a checkout runs, as the repository asks, has none of our variables."""
    monkeypatch.setenv("ORCH_STAGING_RUNNER_HTTP_TOKEN", "a-token-of-the-orchestrator")
    git(site.repository, "config", "filter.spy.smudge", f"env > {tmp_path}/seen; cat")
    site.run("true", commit(site.repository, ".gitattributes", "*.py filter=spy\n"))

    assert "PATH=" in (tmp_path / "seen").read_text()
    assert "ORCH_" not in (tmp_path / "seen").read_text()


def test_hooks_of_the_repository_do_not_run(site: Site, tmp_path: Path) -> None:
    """The code under test has no say in its own checkout."""
    hook = site.repository / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hook-ran\n")
    hook.chmod(0o755)
    site.run("true")

    assert not (tmp_path / "hook-ran").exists()


def test_git_that_hangs_is_given_up(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkout whose filter hangs is a preparation error, though the filter holds the output."""
    revision = slow_filter(site, tmp_path / "pid")
    monkeypatch.setattr(worktree, "GIT_TIMEOUT_SECONDS", 1.0)

    with pytest.raises(PreparationError, match=r"the checkout of \w+ took longer than 1 s: a filt"):
        site.start("true", revision)


def test_git_that_closes_its_output_and_does_not_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A git that has said all that it has to say has as much time as any other to end."""
    stub = tmp_path / "git"
    stub.write_text("#!/bin/sh\nexec >&- 2>&-\nexec sleep 600\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(worktree, "GIT_TIMEOUT_SECONDS", 0.1)

    with pytest.raises(PreparationError, match=r"git took longer than 0\.1 s in .*, and was ended"):
        tracked_changes(tmp_path, filtered=True)


def test_checkout_that_differs_from_the_start_is_not_the_suites_doing(site: Site) -> None:
    """Files that the repository's own attributes make differ are no change of the run."""
    (site.repository / "dos.txt").write_bytes(b"one\r\ntwo\r\n")
    git(site.repository, "add", ".")
    git(site.repository, "commit", "--quiet", "-m", "Committed as it is.")
    (site.repository / ".gitattributes").write_text("*.txt text eol=crlf\n")
    git(site.repository, "add", ".gitattributes")
    git(site.repository, "commit", "--quiet", "-m", "Now it should be another.")
    site.start("git status --short")
    report = site.suites.await_report(RUN)
    unmoved, printed = report.facts, site.output()
    shutil.rmtree(site.state.root)

    assert printed == " M dos.txt\n"
    assert (unmoved.tree_changed, report.detail) == (False, None)
    assert site.run("echo three >> dos.txt").tree_changed


def test_report_at_a_place_of_its_own_has_one_writer_and_is_of_its_run(
    site: Site, tmp_path: Path
) -> None:
    """A suite in a checkout that reports elsewhere shares that place with no other run."""
    path, other = tmp_path / "report.xml", f"{RUN}0"
    path.write_text('<testsuite><testcase name="a"/></testsuite>')
    revision = head_revision(site.repository)
    wait = "until test -e $STAGING_REPORT_DIR/go; do sleep 0.01; done"
    site.start(wait, revision, report=str(path))
    suite = SuitePlan(("true",), report=str(path))
    with pytest.raises(PreparationError, match="another run that writes the report"):
        site.suites.start(RunOrder(other, site.repository, revision, suite))
    (site.state.reports(RUN) / "go").touch()

    assert site.suites.await_report(RUN).facts.evidence.state is EvidenceState.STALE


# A tree that moves.

MOVES = {
    "change": ("echo 'PRICE = 9' > shop.py", True),
    "deletion": ("rm shop.py", True),
    "mode": ("chmod +x shop.py", True),
    "link": ("rm shop.py; ln -s /dev/null shop.py", True),
    "staged file": ("touch new; git add new", True),
    "same length": ("printf 'PRICE = 5\\n' > shop.py; touch -r .git shop.py", True),
    "moved head": ("git checkout --quiet --detach HEAD~1", True),
    "commit": ("git -c user.name=a -c user.email=b commit --quiet --allow-empty -m x", True),
    "nothing": ("true", False),
    "touched": ("touch shop.py", False),
    "untracked": ("touch new; mkdir -p build; touch build/made", False),
    "document": ("echo new > docs/prices.md", True),
    "work item": ("echo new > docs/work-items/WI-1/log.md", False),
    "undone": ("cp shop.py kept; echo > shop.py; mv kept shop.py", False),
}


@pytest.mark.parametrize("workspace", Workspace)
@pytest.mark.parametrize("move", MOVES)
def test_tree_that_moved_during_the_run_has_no_verdict(
    site: Site, workspace: Workspace, move: str
) -> None:
    """A tracked file or HEAD that moved makes a run void; what is untracked does not."""
    script, moves = MOVES[move]
    facts = site.run(script, workspace=workspace)

    assert facts.exit_code == 0
    assert facts.tree_changed == moves


AWAY = {
    "another commit": ("git checkout --quiet HEAD~1; git checkout --quiet -", True),
    "reset": ("git reset --quiet --hard HEAD~1; git reset --quiet --hard HEAD@{1}", True),
    "commit": ("git commit --quiet --allow-empty -m x; git reset --quiet --soft HEAD~1", True),
    "no log": ("git checkout --quiet HEAD~1; git checkout --quiet -; rm -r .git/logs", True),
    "same place": ("git reset --quiet --hard; git checkout --quiet -b same", False),
    "looks": ("git status; git diff; git log -1; cat shop.py; git stash list", False),
    "upkeep": ("git branch new; git tag new; git worktree add -q ../w; git gc --quiet", False),
    "others": ("git fetch --quiet . HEAD:new; git stash --quiet; git pack-refs --all", False),
}


@pytest.mark.parametrize("kept_in", ["repository", "linked", "private"])
@pytest.mark.parametrize("deed", AWAY)
def test_tree_that_was_elsewhere_has_no_verdict(
    site: Site, tmp_path: Path, deed: str, kept_in: str
) -> None:
    """A run has no verdict if another commit was checked out meanwhile, and only then.

    In place that holds also where git keeps the rest of a person's repository elsewhere.
    """
    tree = site.repository
    workspace = Workspace.WORKTREE if kept_in == "private" else Workspace.IN_PLACE
    if kept_in == "linked":
        tree = tmp_path / "linked"
        git(site.repository, "worktree", "add", "--quiet", str(tree))
    named = "export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=b"
    script, left = AWAY[deed]
    script = script.replace(".git/logs", "$(git rev-parse --git-path logs)")
    facts = Site(tree, site.state).run(f"{named}; {script}", workspace=workspace)

    assert facts.exit_code == 0
    assert facts.tree_changed == left


def test_tree_without_a_log_of_its_commits_is_run_on_in_place(site: Site) -> None:
    """Where git does not note which commits were checked out, a run in place has its verdict."""
    git(site.repository, "config", "core.logAllRefUpdates", "false")
    shutil.rmtree(site.repository / ".git" / "logs")

    assert not site.run("git checkout --quiet -b same", workspace=Workspace.IN_PLACE).tree_changed


@pytest.mark.parametrize("moment", ["2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"])
def test_tree_that_came_back_as_it_had_come_before_was_elsewhere(
    site: Site, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """What git notes of a suite in the words of before the run is told apart from that.

    By its moment, or where that is the same second, by there being one more of it.
    """
    there_and_back = ("checkout --quiet HEAD~1", "checkout --quiet -")
    with monkeypatch.context() as earlier:
        earlier.setenv("GIT_COMMITTER_DATE", "2026-01-01T00:00:00Z")
        for words in there_and_back:
            git(site.repository, *words.split())
    suite = "; ".join(f"git {words}" for words in there_and_back)
    dated = f"export GIT_COMMITTER_DATE={moment}; {suite}"

    assert site.run(dated, workspace=Workspace.IN_PLACE).tree_changed


def test_tree_that_had_come_and_gone_before_is_run_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That somebody left a commit and came back within one second before a run is not its fault."""
    with monkeypatch.context() as earlier:
        earlier.setenv("GIT_COMMITTER_DATE", "2026-01-01T00:00:00Z")
        for words in ("checkout --quiet HEAD~1", "checkout --quiet -") * 2:
            git(site.repository, *words.split())

    suite = "git reset --quiet --hard"
    assert not site.run(suite, workspace=Workspace.IN_PLACE).tree_changed


@pytest.mark.parametrize(
    ("deed", "left"),
    [
        ("git checkout --quiet HEAD~1; git checkout --quiet -", True),
        ("git checkout --quiet -b same", False),
    ],
)
def test_tree_whose_log_was_empty_is_looked_for_in_it(site: Site, deed: str, *, left: bool) -> None:
    """Git's log of HEAD tells of a run in place also where nothing stood in it at the start."""
    git(site.repository, "reflog", "expire", "--expire=all", "--all")

    assert site.run(deed, workspace=Workspace.IN_PLACE).tree_changed == left


def test_program_that_looks_at_signatures_is_not_run(site: Site) -> None:
    """Git that looks where a tree has been asks no program whether its commits are signed."""
    ran, raw = site.repository.parent / "ran", site.repository.parent / "raw"
    head, empty, words = git(site.repository, "cat-file", "commit", "HEAD").partition("\n\n")
    raw.write_text(f"{head}\ngpgsig -----BEGIN PGP SIGNATURE-----{empty}{words}\n")
    signed = git(site.repository, "hash-object", "-t", "commit", "-w", str(raw))
    git(site.repository, "update-ref", "HEAD", signed)
    suite = (
        f"printf '#!/bin/sh\\ntouch {ran}\\n' > .git/gpg; chmod +x .git/gpg\n"
        "git config gpg.program $PWD/.git/gpg; git config log.showSignature true"
    )

    assert not site.run(suite, workspace=Workspace.IN_PLACE).tree_changed
    assert not ran.exists()
    # The program is one that git would ask.
    git(site.repository, "log", "-1")
    assert ran.exists()


def test_allowed_dirt_is_no_movement_and_more_of_it_is(site: Site) -> None:
    """Where a dirty tree is allowed it must stay as it was, to the byte, during the run."""
    (site.repository / "shop.py").write_text("PRICE = 5\n")
    unmoved = site.run("true", workspace=Workspace.IN_PLACE, allow_dirty=True)
    shutil.rmtree(site.state.root)
    moved = site.run("echo 'PRICE = 6' > shop.py", workspace=Workspace.IN_PLACE, allow_dirty=True)

    assert not unmoved.tree_changed
    assert moved.tree_changed


@pytest.mark.parametrize("end", ["exit 1", "kill -9 $$"])
def test_tree_is_looked_at_however_the_suite_ended(site: Site, end: str) -> None:
    """A failure on a tree that moved is no verdict on the commit either."""
    assert site.run(f"echo 'PRICE = 9' > shop.py; {end}").tree_changed
    shutil.rmtree(site.state.root)
    assert not site.run(end).tree_changed


@pytest.mark.parametrize("deed", ["git checkout --quiet shop.py", "git stash --quiet"])
def test_allowed_dirt_that_is_taken_back_is_a_movement(site: Site, deed: str) -> None:
    """A dirty tree that became clean is not what the suite began with."""
    (site.repository / "shop.py").write_text("PRICE = 5\n")
    named = "export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=b"
    facts = site.run(f"{named}; {deed}", workspace=Workspace.IN_PLACE, allow_dirty=True)

    assert facts.exit_code == 0
    assert facts.tree_changed


def test_hidden_file_of_a_dirty_tree_must_stay_as_it_was(site: Site) -> None:
    """Allowed dirt that git was told not to see is compared by its content, as all other is."""
    git(site.repository, "update-index", "--assume-unchanged", "shop.py")
    (site.repository / "shop.py").write_text("PRICE = 5\n")
    how: dict[str, Any] = {"workspace": Workspace.IN_PLACE, "allow_dirty": True}
    unmoved = site.run("true", **how)
    shutil.rmtree(site.state.root)

    assert not unmoved.tree_changed
    assert site.run("echo 'PRICE = 6' > shop.py", **how).tree_changed


def test_file_that_is_hidden_in_a_dirty_tree_is_compared(site: Site) -> None:
    """A suite hides no change in a tree in which another file was allowed to differ."""
    (site.repository / "docs" / "prices.md").write_text("Dear\n")
    hide = "git update-index --assume-unchanged shop.py; echo 'PRICE = 6' > shop.py"

    assert site.run(hide, workspace=Workspace.IN_PLACE, allow_dirty=True).tree_changed


def test_order_stands_before_there_is_a_checkout(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies while it checks out leaves behind whose checkout it was."""

    def die(*_arguments: object) -> None:
        raise SystemExit

    monkeypatch.setattr(worktree, "add_worktree", die)
    with pytest.raises(SystemExit):
        site.start("true")

    assert RunFolder(site.state, RUN).order().repository == str(site.repository)


@pytest.mark.parametrize("moves", [True, False])
def test_whether_the_tree_moved_stays_as_it_was_seen_first(site: Site, *, moves: bool) -> None:
    """Whoever takes the run up after a crash judges it by what was seen when it had ended."""
    script = "echo 'PRICE = 6' > shop.py" if moves else "true"
    first = site.run(script, workspace=Workspace.IN_PLACE)
    (site.repository / "shop.py").write_text("PRICE = 4\n" if moves else "PRICE = 7\n")
    again = site.suites.await_report(RUN).facts

    assert (first.tree_changed, again.tree_changed) == (moves, moves)


@pytest.mark.parametrize("suite", [IN_PLACE, DIRTY], ids=["clean", "dirty allowed"])
def test_head_that_moved_before_a_run_in_place_keeps_it_from_starting(
    site: Site, suite: SuitePlan
) -> None:
    """A run in place begins on the bound commit or not at all, whatever is checked out later."""
    revision = bind_revision(site.repository, suite)
    commit(site.repository, "shop.py", "PRICE = 6\n")
    back = f"touch ran; git checkout --quiet --detach {revision}"

    with pytest.raises(PreparationError, match=f"it has moved from {revision}"):
        site.run(back, revision, workspace=Workspace.IN_PLACE, allow_dirty=suite.allow_dirty)
    assert not (site.repository / "ran").exists()


def test_tree_that_became_dirty_before_a_run_in_place_keeps_it_from_starting(site: Site) -> None:
    """A tree in place that moved between binding and run is not run on, unless it may be dirty."""
    revision = bind_revision(site.repository, IN_PLACE)
    (site.repository / "shop.py").write_text("PRICE = 5\n")

    with pytest.raises(PreparationError, match=f"bound: tracked files differ from {revision}"):
        site.run("true", revision, workspace=Workspace.IN_PLACE)
    shutil.rmtree(site.state.root)
    how: dict[str, Any] = {"workspace": Workspace.IN_PLACE, "allow_dirty": True}
    assert not site.run("true", revision, **how).tree_changed


@pytest.mark.parametrize("allow_dirty", [False, True])
@pytest.mark.parametrize("workspace", Workspace)
def test_unversioned_folder_runs_in_place_and_never_moves(
    tmp_path: Path, workspace: Workspace, *, allow_dirty: bool
) -> None:
    """A folder without git is run in as it is, whatever its suite says of trees."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("old\n")
    site = Site(folder, StateDir(tmp_path / "state"))
    facts = site.run("echo new > file; pwd", workspace=workspace, allow_dirty=allow_dirty)

    assert not facts.tree_changed
    assert site.output() == f"{folder.resolve()}\n"


def test_size_of_a_change_costs_no_memory(site: Site) -> None:
    """A tracked file of any size is compared by its digest, not by its text."""
    commit(site.repository, "large.txt", "one line\n" * 100_000)
    (site.repository / "large.txt").write_text("another line\n" * 100_000)
    said = worktree.run_git(site.repository, *worktree._TRACKED_CHANGES).stdout

    assert re.search(r"index [0-9a-f]{40}\.\.[0-9a-f]{40}", said)
    assert len(said) < 1000

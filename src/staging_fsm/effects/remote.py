"""A repository that lies elsewhere: its branches, one commit of it, one commit more.

Every machine keeps a bare mirror of each repository it has worked on, as a cache
and nothing else: it may be deleted at any time. What cannot be fetched or pushed
is a `PreparationError`, never a verdict.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import attrs

from staging_fsm.core.errors import PreparationError
from staging_fsm.effects.files import DIRECTORY_MODE
from staging_fsm.effects.worktree import add_worktree, remove_worktree, run_git

#: How often a push is tried while others push to the same branch.
PUSH_TRIES: Final = 5
_AUTHOR: Final = ("-c", "user.name=staging_fsm", "-c", "user.email=staging_fsm@localhost")
#: No process of git's own may stay behind to tidy up.
_TIDY_LATER: Final = ("-c", "gc.auto=0", "-c", "maintenance.auto=false")
_COMMIT: Final = re.compile(r"[0-9a-f]{40,64}")


@attrs.frozen
class Mirror:
    """A bare copy of a remote repository, below the state folder of one machine."""

    url: str
    path: Path

    @classmethod
    def below(cls, folder: Path, name: str, url: str) -> "Mirror":
        """Return the mirror of the repository `name` at `url`; its place is made from both."""
        digest = hashlib.sha256(f"{name}\0{url}".encode()).hexdigest()[:16]
        return cls(url, folder / f"{digest}.git")

    def head(self, branch: str) -> str:
        """Return the commit at which a branch of the remote is now. Raises PreparationError."""
        found = self._at(f"refs/heads/{branch}")
        if not found:
            message = _sentence(f"there is no branch {branch!r}", self.url)
            raise PreparationError(message)
        return found

    def fetch(self, commit: str) -> None:
        """Have `commit`, exactly, in the mirror. Raises PreparationError."""
        if not _COMMIT.fullmatch(commit):
            message = f"{commit!r} is no commit that a remote could be asked for"
            raise PreparationError(message)
        if not self.has(commit):
            # Kept by a name of its own: what no name leads to may be tidied away.
            wanted = (self.url, f"{commit}:refs/staging/{commit}")
            fetching = ("fetch", "--quiet", "--no-tags", *wanted)
            try:
                self._git(*fetching)
            except PreparationError:
                if not self._unlock():
                    raise
                self._git(*fetching)

    def has(self, commit: str) -> bool:
        """Say whether a commit is in the mirror already, by whatever name it is known there."""
        return run_git(self.path, "cat-file", "-e", f"{commit}^{{commit}}").returncode == 0

    def checkout(self, branch: str, target: Path) -> str:
        """Check the branch's newest commit out into the new folder `target`; return it."""
        commit = self.head(branch)
        self.fetch(commit)
        remove_worktree(self.path, target)
        add_worktree(self.path, commit, target)
        return commit

    def discard(self, target: Path) -> None:
        """Remove a checkout."""
        remove_worktree(self.path, target)

    def publish(
        self,
        tree: Path,
        branch: str,
        files: Mapping[str, bytes | None],
        words: str,
        permitted: Callable[[], None],
    ) -> str:
        """Put `files` on top of the remote's branch as one commit; return that commit.

        One of None is removed. `tree` is a checkout of ours: it is moved to the commit that
        was pushed, and what it holds in the places of `files` is what that holds. If
        somebody else pushes at the same time, the commit is made again on top of
        theirs; nothing of theirs is ever overwritten. `permitted` is asked after the
        branch was read and before it is written, and forbids by raising: whoever was
        forbidden in between has been overtaken, and the push is refused.
        """
        for _ in range(PUSH_TRIES):
            base = self.head(branch)
            permitted()
            self.fetch(base)
            commit = self._commit(tree, base, files, words)
            if commit == base or self._push(branch, base, commit):
                return commit
        message = _sentence(f"branch {branch!r} moved {PUSH_TRIES} times in a row", self.url)
        raise PreparationError(message)

    def push_work(self, tree: Path, branch: str, permitted: Callable[[], None]) -> None:
        """Push what somebody committed in `tree`, a checkout of ours, on top of the branch.

        Raises PreparationError where the branch went another way meanwhile.
        """
        base, own = self.head(branch), self._in(tree, "rev-parse", "HEAD").strip()
        permitted()
        self.fetch(base)
        if self._is_ancestor(own, base):
            return
        if not (self._is_ancestor(base, own) and self._push(branch, base, own)):
            message = _sentence(f"branch {branch!r} moved beside what was committed", self.url)
            raise PreparationError(message)

    def push_tag(self, name: str, permitted: Callable[[], None]) -> None:
        """Have a tag of the mirror, if there is one, on the remote too, wherever it was there.

        `permitted` is asked as by `publish`: whoever was overtaken moves no tag of others.
        Raises PreparationError.
        """
        ref = f"refs/tags/{name}"
        if run_git(self.path, "show-ref", "--verify", "--quiet", ref).returncode != 0:
            return
        before = self._at(ref)
        permitted()
        lease = f"--force-with-lease={ref}:{before}"
        self._git("push", "--quiet", lease, self.url, f"{ref}:{ref}")

    def _at(self, ref: str) -> str:
        """Return what a name of the remote leads to now; empty where there is none of it."""
        answer = self._git("ls-remote", "--refs", "--", self.url, ref)
        found = [line.split("\t")[0] for line in answer.splitlines() if line.endswith(f"\t{ref}")]
        return found[0] if found else ""

    def _is_ancestor(self, one: str, other: str) -> bool:
        return run_git(self.path, "merge-base", "--is-ancestor", one, other).returncode == 0

    def _commit(self, tree: Path, base: str, files: Mapping[str, bytes | None], words: str) -> str:
        self._in(tree, "checkout", "--quiet", "--force", "--detach", base)
        for name, content in files.items():
            self._refuse_links(tree, name)
            path = tree / name
            if content is None:
                self._remove(tree, name)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(content)
            self._in(tree, "add", "--force", "--", name)
        if run_git(tree, "diff", "--cached", "--quiet").returncode:
            self._in(tree, *_AUTHOR, "commit", "--quiet", "--no-verify", "--message", words)
        return self._in(tree, "rev-parse", "HEAD").strip()

    def _remove(self, tree: Path, name: str) -> None:
        """Have nothing in the place of a file, neither in the commit nor in the checkout."""
        path = tree / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif os.path.lexists(path):
            path.unlink()
        gone = ("rm", "-r", "--quiet", "--cached", "--ignore-unmatch", "--", name)
        self._in(tree, "--literal-pathspecs", *gone)

    def _refuse_links(self, tree: Path, name: str) -> None:
        """Raise PreparationError where a folder on the way to a file is a link."""
        for folder in Path(name).parents:
            if (tree / folder).is_symlink():
                message = _sentence(f"{folder} is a link, and nothing is put behind it", self.url)
                raise PreparationError(message)

    def _push(self, branch: str, base: str, commit: str) -> bool:
        """Push a child of `base` if the branch still is at `base`; False if it moved."""
        ref = f"refs/heads/{branch}"
        lease = f"--force-with-lease={ref}:{base}"
        answer = run_git(self.path, "push", "--porcelain", lease, self.url, f"{commit}:{ref}")
        if answer.returncode == 0:
            return True
        if self.head(branch) != base:
            return False
        message = _sentence("nothing can be pushed", self.url, answer.stderr)
        raise PreparationError(message)

    def _unlock(self) -> bool:
        """Remove what a git that was killed has left locked; say whether there was any."""
        locks = list(self.path.rglob("*.lock"))
        for lock in locks:
            lock.unlink(missing_ok=True)
        return bool(locks)

    def _git(self, *arguments: str) -> str:
        self._ensure()
        return self._in(self.path, *_TIDY_LATER, *arguments)

    def _ensure(self) -> None:
        if not (self.path / "HEAD").exists():
            self.path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            self._in(self.path, "init", "--quiet", "--bare")

    def _in(self, folder: Path, *arguments: str) -> str:
        answer = run_git(folder, *arguments)
        if answer.returncode != 0:
            message = _sentence("git failed", self.url, answer.stderr)
            raise PreparationError(message)
        return answer.stdout


def _sentence(what: str, url: str, said: str = "") -> str:
    # An address may carry a password, and git repeats it; cut first, it would not be known as one.
    what, said = (re.sub(r"://[^/@\s]*@", "://", words) for words in (f"{what} ({url})", said))
    return f"{what} {said.strip()[-500:]}".strip()

"""A repository that lies elsewhere: real remotes, real pushes, nothing overwritten."""

import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import attrs
import pytest

from hosts import git
from staging_fsm.core.errors import PreparationError, StagingError
from staging_fsm.effects.remote import PUSH_TRIES, Mirror
from staging_fsm.effects.worktree import run_git

BRANCH = "WI-1"
PAPERS = {"docs/work-items/WI-1/15-staging-log.md": b"---\nstaging_status: SUCCESS\n---\n"}


def nothing_forbidden() -> None:
    """Permit."""


@attrs.frozen
class Site:
    """A developer's clone, the remote, and a mirror of it on a worker's machine."""

    clone: Path
    remote: Path
    mirror: Mirror
    tree: Path

    def develop(self, text: str) -> str:
        """Commit and push something; return the commit."""
        (self.clone / "shop.py").write_text(text)
        git(self.clone, "commit", "--quiet", "--all", "-m", "On.")
        git(self.clone, "push", "--quiet", str(self.remote), f"HEAD:refs/heads/{BRANCH}")
        return git(self.clone, "rev-parse", "HEAD")

    def publish(self, permitted: Callable[[], None] = nothing_forbidden) -> str:
        """Publish the papers."""
        return self.mirror.publish(self.tree, BRANCH, PAPERS, "WI-1: papers", permitted)

    def remote_head(self) -> str:
        """Return the branch's commit on the remote."""
        return git(self.remote, "rev-parse", f"refs/heads/{BRANCH}")


@pytest.fixture
def site(tmp_path: Path, repository: Path) -> Site:
    """Return a site whose remote has the branch."""
    remote = tmp_path / "remote.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(repository), str(remote))
    mirror = Mirror.below(tmp_path / "mirrors", "shop", str(remote))
    site = Site(repository, remote, mirror, tmp_path / "tree")
    site.develop("PRICE = 4\n")
    return site


def test_checkout_is_the_branchs_newest_commit(site: Site) -> None:
    """A checkout holds the commit at which the remote's branch is when it is made."""
    site.mirror.checkout(BRANCH, site.tree)
    newer = site.develop("PRICE = 5\n")

    assert site.mirror.checkout(BRANCH, site.tree) == newer
    assert (site.tree / "shop.py").read_text() == "PRICE = 5\n"


def test_exactly_the_commit_that_was_asked_for_is_fetched(site: Site) -> None:
    """A commit that no branch is at any more is still the one that is fetched."""
    bound = site.mirror.head(BRANCH)
    site.develop("PRICE = 5\n")
    site.mirror.fetch(bound)

    assert git(site.mirror.path, "for-each-ref", "--format=%(objectname)") == bound


@pytest.mark.parametrize("commit", ["0" * 40, "main", "--upload-pack=touch it-ran"])
def test_commit_that_cannot_be_had_is_no_verdict(site: Site, commit: str) -> None:
    """A commit that the remote does not have, and a word that is none, is a tool error."""
    with pytest.raises(PreparationError):
        site.mirror.fetch(commit)


def test_missing_branch_and_missing_remote_are_said(site: Site, tmp_path: Path) -> None:
    """What is missing is named, and a password in an address is not."""
    nowhere = Mirror.below(tmp_path, "shop", "https://ada:secret@127.0.0.1:1/shop.git")
    with pytest.raises(PreparationError, match="no branch 'WI-2'"):
        site.mirror.head("WI-2")
    with pytest.raises(PreparationError, match=r"127\.0\.0\.1:1") as refused:
        nowhere.head(BRANCH)
    assert "secret" not in str(refused.value)


def test_branch_is_the_one_of_exactly_that_name(site: Site) -> None:
    """A branch whose name only ends like the wanted one is another branch."""
    wanted = site.remote_head()
    (site.clone / "shop.py").write_text("PRICE = 9\n")
    git(site.clone, "commit", "--quiet", "--all", "-m", "On another branch.")
    # Listed before the wanted one.
    other = f"HEAD:refs/heads/A/refs/heads/{BRANCH}"
    git(site.clone, "push", "--quiet", str(site.remote), other)

    assert site.mirror.head(BRANCH) == wanted


#: A program that stands for ssh: it reaches the remote by the path in its last argument.
SSH = """\
#!/bin/sh
[ "$1" != -G ] || exit 1
for command; do :; done
eval "exec $command"
"""


@pytest.mark.parametrize("variable", ["GIT_SSH", "GIT_SSH_COMMAND"])
def test_operator_says_how_a_remote_is_reached(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """A remote is reached by the program that the operator names for it, key or jump host."""
    program = tmp_path / "reach"
    program.write_text(SSH)
    program.chmod(0o755)
    monkeypatch.setenv(variable, str(program))
    mirror = Mirror.below(tmp_path / "mirrors", "shop", f"ssh://nowhere.invalid{site.remote}")

    assert mirror.head(BRANCH) == site.remote_head()


def test_operator_may_say_that_a_remote_is_elsewhere(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting in variables that leads to the remote is heeded, though others are left out."""
    address = "https://nowhere.invalid/shop.git"
    told = [("core.hooksPath", "/dev"), (f"url.file://{site.remote}.insteadOf", address)]
    monkeypatch.setenv("GIT_CONFIG_COUNT", str(len(told)))
    for number, (key, value) in enumerate(told):
        monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", key)
        monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", value)
    mirror = Mirror.below(tmp_path / "mirrors", "shop", address)

    assert mirror.head(BRANCH) == site.remote_head()


def gits_variables(folder: Path, **how: Any) -> dict[str, str]:
    """Return what git has in its environment."""
    said = run_git(folder, "-c", "alias.variables=!env -0", "variables", **how).stdout
    return dict(line.split("=", 1) for line in said.split("\0") if line)


@pytest.mark.parametrize(
    ("variable", "passes"),
    [
        *((f"GIT_SSL_{name}", True) for name in ("CAINFO", "CAPATH", "CERT", "KEY")),
        ("GIT_SSL_NO_VERIFY", False),
        *((f"GIT_{name}", True) for name in ("PROXY_COMMAND", "PROXY_SSL_CAINFO", "ASKPASS")),
        *((f"GIT_{name}", True) for name in ("HTTP_LOW_SPEED_TIME", "HTTP_USER_AGENT")),
        *((f"GIT_{name}", True) for name in ("SSH_VARIANT", "LFS_SKIP_SMUDGE")),
        *((f"GIT_{name}", False) for name in ("CONFIG_GLOBAL", "CONFIG_SYSTEM", "NAMESPACE")),
        *(
            (f"GIT_{name}", False)
            for name in ("OBJECT_DIRECTORY", "ATTR_SOURCE", "LITERAL_PATHSPECS")
        ),
        ("HTTPS_PROXY", True),
        ("ORCH_GIT_SSL_CAINFO", False),
    ],
)
def test_variables_that_say_how_a_remote_is_reached_come_to_git(
    site: Site, monkeypatch: pytest.MonkeyPatch, *, variable: str, passes: bool
) -> None:
    """The operator's certificates, proxies and the like come to git; what changes a tree does not.

    Nor does the one that has whoever answers pass for the remote.
    """
    monkeypatch.setenv(variable, "/what the operator says")

    assert (variable in gits_variables(site.clone)) == passes


@pytest.mark.parametrize(
    ("key", "passes"),
    [
        ("http.extraHeader", True),
        ("http.https://git.example/.sslCAInfo", True),
        ("HTTP.proxy", True),
        ("credential.helper", True),
        ("credential.https://git.example.username", True),
        ("url.https://a/.pushInsteadOf", True),
        ("core.sshCommand", True),
        ("http.sslVerify", False),
        ("http.https://git.example/.SSLVERIFY", False),
        ("safe.directory", False),
        ("core.autocrlf", False),
        ("core.attributesFile", False),
        ("filter.http.smudge", False),
        ("include.path", False),
        ("includeIf.gitdir:http.path", False),
        ("protocol.allow", False),
    ],
)
def test_settings_in_variables_are_of_the_way_to_a_remote_alone(
    site: Site, monkeypatch: pytest.MonkeyPatch, *, key: str, passes: bool
) -> None:
    """Of settings in variables those reach git that are of the way to a remote, ours after them."""
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", key)
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "theirs")
    found = gits_variables(site.clone, settings={"filter.x.clean": ""})
    pairs = [
        (found[f"GIT_CONFIG_KEY_{number}"], found[f"GIT_CONFIG_VALUE_{number}"])
        for number in range(int(found["GIT_CONFIG_COUNT"]))
    ]

    assert pairs == [(key, "theirs")] * passes + [("filter.x.clean", "")]


@pytest.mark.parametrize("count", ["", "-1", "many", "2", "9" * 30])
def test_settings_in_variables_that_are_broken_off_stop_no_git(
    site: Site, monkeypatch: pytest.MonkeyPatch, count: str
) -> None:
    """Where the settings in variables are not those that are counted, git answers all the same."""
    monkeypatch.setenv("GIT_CONFIG_COUNT", count)
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "http.proxy")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "")

    assert run_git(site.clone, "rev-parse", "HEAD").returncode == 0


class Quiet(BaseHTTPRequestHandler):
    """Keeps no log of what it answers."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def served(handler: type[Quiet]) -> Iterator[str]:
    """Yield host and port of a server that answers by `handler`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def closed_remote() -> Iterator[str]:
    """Return the address of a remote that asks for a password."""

    class Handler(Quiet):
        def do_GET(self) -> None:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="shop"')
            self.end_headers()

    with served(Handler) as where:
        yield f"http://{where}/shop.git"


@pytest.fixture
def moved_remote() -> Iterator[str]:
    """Return host and port of a remote that sends whoever asks for it to a page of its own.

    Asked for `long.git`, to one whose address, with what stands before it, is 500 characters.
    """

    class Handler(Quiet):
        def do_GET(self) -> None:
            is_page, page = self.path.startswith("/login"), "/login?"
            if self.path.startswith("/long.git"):
                page = page.ljust(500 - len(f"ada:secret@{self.headers['Host']}"), "x")
            self.send_response(200 if is_page else 302)
            self.send_header(*(("Content-Length", "0") if is_page else ("Location", page)))
            self.end_headers()

    with served(Handler) as where:
        yield where


def test_nobody_is_asked_for_a_password(
    tmp_path: Path, closed_remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A remote that wants a password is an error at once: nobody sits at the worker's terminal."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for variable in ("GIT_ASKPASS", "SSH_ASKPASS"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(PreparationError, match="terminal prompts disabled"):
        Mirror.below(tmp_path, "shop", closed_remote).head(BRANCH)


@pytest.mark.parametrize("name", ["shop.git", "long.git"])
def test_password_that_git_repeats_is_not_told(
    tmp_path: Path, moved_remote: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What git says of a remote is told without the password of the address that it repeats.

    That holds wherever what it says is cut.
    """
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    mirror = Mirror.below(tmp_path, "shop", f"http://ada:secret@{moved_remote}/{name}")

    with pytest.raises(PreparationError) as refused:
        mirror.head(BRANCH)
    assert "secret" not in str(refused.value)


def test_fetch_that_was_killed_does_not_stand_in_the_way(site: Site) -> None:
    """What a killed git has left locked is unlocked by the next one."""
    bound = site.mirror.head(BRANCH)
    lock = site.mirror.path / "refs" / "staging" / f"{bound}.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    site.mirror.fetch(bound)

    assert git(site.mirror.path, "cat-file", "-t", bound) == "commit"


def test_papers_are_one_commit_on_top_of_the_branch(site: Site) -> None:
    """Published papers are on the remote's branch, in one commit of theirs alone."""
    base = site.mirror.checkout(BRANCH, site.tree)
    commit = site.publish()
    (path,) = PAPERS

    assert site.remote_head() == commit
    assert git(site.remote, "rev-parse", f"{commit}^") == base
    assert git(site.remote, "diff", "--name-only", base, commit) == path
    assert (site.tree / path).read_bytes() == PAPERS[path]


def test_publishing_twice_is_publishing_once(site: Site) -> None:
    """Papers that are there already are not committed again."""
    site.mirror.checkout(BRANCH, site.tree)

    assert site.publish() == site.publish()


def test_papers_are_published_though_the_repository_ignores_them(site: Site) -> None:
    """What the repository has git ignore is published all the same."""
    (site.clone / ".gitignore").write_text("docs/\n*.md\n")
    git(site.clone, "add", ".gitignore")
    site.develop("PRICE = 5\n")
    site.mirror.checkout(BRANCH, site.tree)
    site.publish()
    (path,) = PAPERS

    assert git(site.remote, "show", f"{BRANCH}:{path}") == PAPERS[path].decode().strip()


def test_link_in_the_place_of_a_paper_is_replaced(site: Site, tmp_path: Path) -> None:
    """Where the repository has a link in the place of a paper, what it leads to is not written."""
    (path,) = PAPERS
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious\n")
    (site.clone / path).parent.mkdir(parents=True)
    (site.clone / path).symlink_to(elsewhere)
    git(site.clone, "add", path)
    site.develop("PRICE = 5\n")
    site.mirror.checkout(BRANCH, site.tree)
    site.publish()

    assert elsewhere.read_text() == "precious\n"
    assert git(site.remote, "ls-tree", BRANCH, path).startswith("100644 ")
    assert git(site.remote, "show", f"{BRANCH}:{path}") == PAPERS[path].decode().strip()


@pytest.mark.parametrize("place", ["docs", "docs/work-items/WI-1"])
def test_link_on_the_way_to_a_paper_is_not_followed(site: Site, tmp_path: Path, place: str) -> None:
    """Where the repository has a link for a folder of papers, nothing is written behind it."""
    (path,) = PAPERS
    elsewhere = tmp_path / "elsewhere"
    below = elsewhere / Path(path).relative_to(place)
    below.parent.mkdir(parents=True)
    below.write_text("precious\n")
    (site.clone / place).parent.mkdir(parents=True, exist_ok=True)
    (site.clone / place).symlink_to(elsewhere)
    git(site.clone, "add", place)
    site.develop("PRICE = 5\n")
    site.mirror.checkout(BRANCH, site.tree)

    with pytest.raises(PreparationError, match=f"{place} is a link"):
        site.publish()
    assert below.read_text() == "precious\n"


@pytest.mark.parametrize("leftover", [None, "link", "folder"])
def test_paper_that_is_taken_away_is_gone_from_branch_and_checkout(
    site: Site, leftover: str | None
) -> None:
    """What is taken away is nowhere any more, in one commit; twice is once, and the rest stays."""
    (path,) = PAPERS
    folder = Path(path).parent
    site.mirror.checkout(BRANCH, site.tree)
    site.mirror.publish(
        site.tree, BRANCH, {**PAPERS, f"{folder}/notes.md": b"."}, "-", nothing_forbidden
    )
    base = site.remote_head()
    if leftover is not None:
        (site.tree / path).unlink()
    if leftover == "link":
        (site.tree / path).symlink_to(site.tree / folder / "notes.md")
    elif leftover == "folder":
        (site.tree / path / "in-it").mkdir(parents=True)
    gone = {path: None}
    commits = [
        site.mirror.publish(site.tree, BRANCH, gone, "-", nothing_forbidden) for _ in range(2)
    ]

    assert commits == [site.remote_head()] * 2
    assert git(site.remote, "diff", "--name-status", base, BRANCH) == f"D\t{path}"
    assert [entry.name for entry in (site.tree / folder).iterdir()] == ["notes.md"]


def test_what_is_published_asks_for_no_signature(site: Site) -> None:
    """Papers and tags reach the remote though everything is to be signed on the machine."""
    head = site.mirror.checkout(BRANCH, site.tree)
    for name in ("commit", "tag", "push"):
        git(site.mirror.path, "config", f"{name}.gpgSign", "true")
    git(site.mirror.path, "config", "gpg.program", "false")
    commit = site.publish()
    git(site.mirror.path, "tag", "--no-sign", "deployed/WI-1", head)
    site.mirror.push_tag("deployed/WI-1", nothing_forbidden)

    assert site.remote_head() == commit != head
    assert git(site.remote, "rev-parse", "deployed/WI-1") == head


def test_push_of_somebody_else_is_never_overwritten(site: Site) -> None:
    """Where the branch moves while papers are published, they go on top of what moved it."""
    site.mirror.checkout(BRANCH, site.tree)
    theirs: list[str] = []

    def somebody_pushes() -> None:
        if not theirs:
            theirs.append(site.develop("PRICE = 6\n"))

    commit = site.publish(somebody_pushes)

    assert git(site.remote, "rev-parse", f"{commit}^") == theirs[0]
    assert site.remote_head() == commit


def test_branch_that_never_stands_still_is_given_up(site: Site) -> None:
    """A push that is always too late is given up after so many tries, and says so."""
    site.mirror.checkout(BRANCH, site.tree)
    prices = iter(range(100))

    def somebody_pushes() -> None:
        site.develop(f"PRICE = {next(prices)}.5\n")

    with pytest.raises(PreparationError, match=f"moved {PUSH_TRIES} times"):
        site.publish(somebody_pushes)


def test_publisher_that_is_forbidden_pushes_nothing(site: Site) -> None:
    """Whoever has lost the right to publish is stopped between reading and writing the branch."""
    base = site.mirror.checkout(BRANCH, site.tree)

    def forbid() -> None:
        message = "overtaken"
        raise StagingError(message)

    with pytest.raises(StagingError, match="overtaken"):
        site.publish(forbid)
    assert site.remote_head() == base


def test_work_beside_a_branch_that_moved_is_not_pushed(site: Site) -> None:
    """What was committed beside somebody else's push overwrites nothing of theirs, and is told."""
    site.mirror.checkout(BRANCH, site.tree)
    git(site.tree, "commit", "--quiet", "--allow-empty", "-m", "Work.")
    theirs = site.develop("PRICE = 6\n")

    with pytest.raises(PreparationError, match="moved beside what was committed"):
        site.mirror.push_work(site.tree, BRANCH, nothing_forbidden)
    assert site.remote_head() == theirs


def test_work_of_the_overtaken_is_not_pushed(site: Site) -> None:
    """Whoever is overtaken between reading the branch and writing it pushes on top of nobody."""
    site.mirror.checkout(BRANCH, site.tree)
    git(site.tree, "commit", "--quiet", "--allow-empty", "-m", "Work.")
    first = git(site.tree, "rev-parse", "HEAD")
    git(site.tree, "commit", "--quiet", "--allow-empty", "-m", "More work.")

    def somebody_pushes_the_first() -> None:
        git(site.tree, "push", "--quiet", str(site.remote), f"{first}:refs/heads/{BRANCH}")

    with pytest.raises(PreparationError, match="moved beside what was committed"):
        site.mirror.push_work(site.tree, BRANCH, somebody_pushes_the_first)
    assert site.remote_head() == first


def test_tag_is_where_it_was_made_last_unless_somebody_moves_it_meanwhile(site: Site) -> None:
    """A tag replaces an older one of its name, and none that came after it was looked at."""
    first = site.mirror.checkout(BRANCH, site.tree)
    git(site.remote, "tag", "deployed/WI-1", f"{first}^")
    git(site.mirror.path, "tag", "deployed/WI-1", first)
    site.mirror.push_tag("deployed/WI-1", nothing_forbidden)
    replaced = git(site.remote, "rev-parse", "deployed/WI-1")
    theirs = site.develop("PRICE = 6\n")

    def somebody_tags() -> None:
        git(site.remote, "tag", "--force", "deployed/WI-1", theirs)

    with pytest.raises(PreparationError, match="deployed/WI-1"):
        site.mirror.push_tag("deployed/WI-1", somebody_tags)
    assert replaced == first
    assert git(site.remote, "rev-parse", "deployed/WI-1") == theirs


def test_remote_that_refuses_is_a_tool_error(site: Site) -> None:
    """A remote whose hook refuses the push is said, with what it answered."""
    site.mirror.checkout(BRANCH, site.tree)
    hook = site.remote / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho 'frozen for the release' >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(PreparationError, match="frozen for the release"):
        site.publish()


def test_checkout_is_gone_when_it_is_discarded(site: Site) -> None:
    """A discarded checkout leaves neither a folder nor an entry in the mirror."""
    site.mirror.checkout(BRANCH, site.tree)
    site.mirror.discard(site.tree)
    listed = subprocess.run(
        ["git", "-C", str(site.mirror.path), "worktree", "list"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert not site.tree.exists()
    assert str(site.tree) not in listed.stdout

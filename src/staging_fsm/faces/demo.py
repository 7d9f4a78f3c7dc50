"""`staging-fsm demo`: three work items go their three ways, for real, in seconds.

A real git repository with a real pytest suite in a temporary folder, and the
embedded orchestrator on SQLite. Nothing is simulated: the third work item fails
because its suite looks for a staging database that is not there.
"""

import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import attrs
from rich.console import Console

from staging_fsm.core.errors import PreparationError
from staging_fsm.core.spec import State
from staging_fsm.core.suites import SuiteEntry
from staging_fsm.effects.worktree import run_git
from staging_fsm.faces.diagrams import Diagram, write_diagrams
from staging_fsm.faces.extras import require_extra
from staging_fsm.faces.progress import Progress
from staging_fsm.faces.session import (
    AttemptDriver,
    Session,
    address_of,
    one_suite,
    open_session,
    staging_job,
    stored_attempt,
    switched_on,
)
from staging_fsm.faces.views import sentence

#: What a suite returns when the environment it needs is not there (sysexits.h, EX_TEMPFAIL).
NO_STAGING_EXIT_CODE: Final = 75

_SHOP: Final = '''"""A very small shop."""


def total(prices: list[int], discount: int = 0) -> int:
    """Return what a customer pays."""
    return sum(prices) - discount
'''
_TESTS: Final = '''"""The staging suite."""

from shop import total


def test_total() -> None:
    print("adding up a basket")
    assert total([3, 4]) == 7


def test_discount() -> None:
    print("taking off a discount")
    assert total([3, 4], discount=2) == 5
'''
_NO_DATABASE: Final = f'''"""Staging needs its database."""

import socket

import pytest


def pytest_sessionstart() -> None:
    try:
        socket.create_connection(("127.0.0.1", 1), timeout=1).close()
    except OSError as error:
        pytest.exit(f"the staging database is unreachable: {{error}}", {NO_STAGING_EXIT_CODE})
'''
#: A file is committed with the line ends that it has, which git could be told to refuse.
_SETTINGS: Final = {
    "user.name": "Demo",
    "user.email": "demo@example.org",
    "core.autocrlf": "false",
    "core.safecrlf": "false",
}


@attrs.frozen
class Story:
    """One work item of the demo: what is committed before it is launched, and its end."""

    work_item: str
    words: str
    files: dict[str, str]
    end: State


STORIES: Final = (
    Story(
        "WI-1-discount",
        "a change that works",
        {"shop.py": _SHOP, "test_shop.py": _TESTS},
        State.ADVANCED,
    ),
    Story(
        "WI-2-taxes",
        "a change that breaks a test",
        {"shop.py": _SHOP.replace("- discount", "+ discount")},
        State.ROLLED_BACK,
    ),
    Story(
        "WI-3-orders",
        "a change that nobody can judge: staging is down",
        {"shop.py": _SHOP, "conftest.py": _NO_DATABASE},
        State.FAILED_CLOSED,
    ),
)


def run_demo(console: Console) -> bool:
    """Run the demo; say whether each work item came to its end.

    Raises ExtraMissingError, and PreparationError where git makes no repository for it.
    """
    require_extra("demo")
    folder = Path(tempfile.mkdtemp(prefix="staging-fsm-demo-"))
    session = open_session(address_of(folder / "orchestrator.db"), _variables(folder))
    repository = folder / "shop"
    # A template is for a person's own repositories: its hooks and ignored files are not ours.
    _git(folder, "init", "--quiet", "--template=", "--initial-branch=main", str(repository))
    repo = session.store.register(repository)
    views = []
    for story in STORIES:
        console.print(f"\n[bold]{story.work_item}[/]: {story.words}")
        _commit(repository, story)
        views.append(_carry(console, session, repo, story))
    _summary(console, folder, views)
    return [view["state"] for view in views] == [str(story.end) for story in STORIES]


def _variables(folder: Path) -> dict[str, str]:
    """Return the demo's own settings: a person's are of other jobs, and say who is alerted."""
    return switched_on(
        {name: value for name, value in os.environ.items() if not name.startswith("ORCH_")},
        state_dir=folder / "state",
        timeout_seconds=60,
        infra_retries=1,
        retry_backoff_seconds=1,
    )


def _carry(console: Console, session: Session, repo: str, story: Story) -> dict[str, Any]:
    entry = SuiteEntry(
        command=(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
        tool_exit_codes=(NO_STAGING_EXIT_CODE,),
        min_tests=2,
    )
    progress = Progress(console, session.state, session.variables)
    staging = session.staging(suites=one_suite(entry), watch=progress.moved)
    job_id = staging_job(session, repo, story.work_item)
    AttemptDriver(session, staging, job_id).drive()
    row, snapshot = stored_attempt(session, job_id)
    return {**session.view(row, snapshot), "why": sentence(snapshot)}


def _summary(console: Console, folder: Path, views: list[dict[str, Any]]) -> None:
    console.print("\nThree ways:")
    for view in views:
        fault, stage = f"fault: {view['fault']},", f"next stage: {view['next_stage']}"
        console.print(f"  {view['work_item']:14} {view['state']:14} {fault:22} {stage}")
        console.print(f"  {'':14} {view['why']}")
    console.print("\nWhat the gate read:")
    for view in views:
        console.print(f"  {view['state']:14} {view['artifact']}", soft_wrap=True)
    counts: dict[str, int] = {}
    for view in views:
        for move in view["history"]:
            counts[move["id"]] = counts.get(move["id"], 0) + 1
    write_diagrams(folder / "diagrams", Diagram(counts=counts))
    console.print(f"\nDatabase: {folder / 'orchestrator.db'}", soft_wrap=True)
    console.print(f"Diagrams: {folder / 'diagrams'}", soft_wrap=True)
    installed = Path(sys.executable).with_name("staging-fsm")
    command = "staging-fsm" if shutil.which("staging-fsm") else str(installed)
    words = (command, "show", "1", "--db", str(address_of(folder / "orchestrator.db")))
    console.print(f"Look again: {shlex.join(words)}", soft_wrap=True)


def _commit(repository: Path, story: Story) -> None:
    for name, text in story.files.items():
        (repository / name).write_text(text, encoding="utf-8")
    # Also what this person has git ignore everywhere.
    _git(repository, "add", "--force", "--", *story.files)
    _git(repository, "commit", "--quiet", "--message", f"{story.work_item}: {story.words}")


def _git(folder: Path, *arguments: str) -> None:
    found = run_git(folder, *arguments, settings=_SETTINGS)
    if found.returncode != 0:
        message = (
            f"the repository of the demo cannot be made in {folder}: git {arguments[0]} says:"
            f" {found.stderr.strip()}. Mend what it names, and ask again"
        )
        raise PreparationError(message)

"""The state folder: where it lies, for whose eyes it is, and what of a run is removed from it."""

import os
import secrets
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from staging_fsm.effects.files import DIRECTORY_MODE, FILE_MODE, write_durably
from staging_fsm.effects.state_dir import StateDir, state_dir


def test_state_is_for_its_user_only(tmp_path: Path) -> None:
    """The state folder and the secret in it are nobody else's, and the secret stays as it is."""
    state = StateDir(tmp_path / "a" / "state")
    old = os.umask(0)
    try:
        secret = state.secret()
    finally:
        os.umask(old)

    assert (len(secret), state.secret()) == (64, secret)
    assert StateDir(tmp_path / "b").secret() != secret
    assert stat.S_IMODE(state.root.stat().st_mode) == DIRECTORY_MODE
    assert stat.S_IMODE((state.root / "secret").stat().st_mode) == FILE_MODE


def test_run_is_removed_with_its_reports_and_no_other(tmp_path: Path) -> None:
    """A removed run leaves nothing behind, another one everything; no run is no error."""
    state = StateDir(tmp_path)
    assert state.run_ids() == []
    for run in ("b.1", "a.1"):
        write_durably(made(state.run(run)) / "result", b"")
        write_durably(made(state.reports(run)) / "junit.xml", b"")
    state.remove_run("b.1")
    state.remove_run("b.1")

    assert state.run_ids() == ["a.1"]
    assert [*state.reports("b.1").parent.iterdir()] == [state.reports("a.1")]
    changed = state.run("a.1").stat().st_mtime
    assert [state.is_unchanged_since("a.1", changed + late) for late in (0, 1)] == [False, True]
    assert not state.is_unchanged_since("b.1", changed + 1)


def made(folder: Path) -> Path:
    """Make a folder and return it."""
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"ORCH_STAGING_RUNNER_STATE_DIR": " /s ", "XDG_STATE_HOME": "/x", "HOME": "/h"}, "/s"),
        ({"ORCH_STAGING_RUNNER_STATE_DIR": "~/s", "HOME": "/h"}, "/h/s"),
        ({"ORCH_STAGING_RUNNER_STATE_DIR": " ", "XDG_STATE_HOME": "/x"}, "/x/staging-fsm"),
        ({"XDG_STATE_HOME": "x", "HOME": "/h"}, "/h/.local/state/staging-fsm"),
        ({"HOME": "/h"}, "/h/.local/state/staging-fsm"),
        ({}, str(Path.home() / ".local/state/staging-fsm")),
    ],
)
def test_state_lies_where_the_settings_say(variables: dict[str, str], expected: str) -> None:
    """The state folder is the configured one, else that of the user's state, absolute in any case.

    See https://specifications.freedesktop.org/basedir-spec/latest/.
    """
    assert state_dir(variables) == Path(expected)


def test_relative_state_folder_is_taken_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative state folder is made absolute at once; one in no known home is left to be told."""
    monkeypatch.chdir(tmp_path)

    assert state_dir({"ORCH_STAGING_RUNNER_STATE_DIR": "s"}) == tmp_path / "s"
    assert state_dir({"ORCH_STAGING_RUNNER_STATE_DIR": "~/s"}) == tmp_path / "~/s"


def test_secret_outlives_a_power_cut(tmp_path: Path, synced: list[list[str]]) -> None:
    """The secret is in its folder for ever before anything is sealed with it."""
    StateDir(tmp_path).secret()

    assert synced == [["secret"]]


def test_removal_that_broke_off_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of which half was removed is still found, and nothing of it stays for ever."""
    state, remove, removed = StateDir(tmp_path), shutil.rmtree, list[Path]()
    for folder in (state.run("a.1"), state.reports("a.1")):
        made(folder)

    def break_off(folder: Path, **how: Any) -> None:
        if removed:
            raise KeyboardInterrupt
        removed.append(folder)
        remove(folder, **how)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", break_off)
        with pytest.raises(KeyboardInterrupt):
            state.remove_run("a.1")
    for run_id in state.run_ids():
        state.remove_run(run_id)

    assert [*tmp_path.glob("*/*")] == []


def test_first_users_of_a_state_folder_have_one_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two who need the secret for the first time at once one makes it, and both have it."""
    make, others = secrets.token_bytes, list[bytes]()

    def make_while_another_does(size: int) -> bytes:
        monkeypatch.setattr(secrets, "token_bytes", make)
        others.append(StateDir(tmp_path).secret())
        return make(size)

    monkeypatch.setattr(secrets, "token_bytes", make_while_another_does)

    assert [StateDir(tmp_path).secret()] == others

"""The frozen host contract: what it says, and that nobody has touched it."""

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from staging_fsm.host import contract
from staging_fsm.host.contract.gate import (
    ARTIFACT_NAME,
    _parse_staging_status,
    check_staging_status,
)
from staging_fsm.host.contract.self_deploy import map_exit_code_to_status
from staging_fsm.host.contract.stages import STAGE_AGENTS, STAGE_TRANSITIONS, STAGES

FROZEN = {
    "stages.py": "00bce8b5ba54573123292f73dcbe3b265ec882612ce57fb973fa9483b023333e",
    "gate.py": "5affae7a9ffddf9b8e93f4ab96834a978abb81879a63d7bbc9635e364c14f05f",
    "self_deploy.py": "a6ba7ea50b656bef6a715ff80e45c475858abe65b9a36f6c7489b5d56d9e81ea",
    "schema.sql": "b613d0d4afae1ee09fdb49626ae801797b4b79876460c86718158c99e7afa5bf",
}


@pytest.mark.parametrize("name", sorted(FROZEN))
def test_frozen_file_is_unchanged(name: str) -> None:
    """The host contract is byte for byte what it was before there was a runner."""
    folder = Path(contract.__file__).parent

    assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == FROZEN[name]


def test_every_stage_but_the_last_has_both_outcomes_and_an_agent() -> None:
    """STAGE_TRANSITIONS answers success and failure of every stage that is worked on."""
    assert set(STAGE_TRANSITIONS) == {
        (stage, outcome) for stage in STAGES[:-1] for outcome in ("success", "failure")
    }
    assert set(STAGE_TRANSITIONS.values()) <= set(STAGES)
    assert set(STAGE_AGENTS) == set(STAGES[:-1])


@given(st.integers())
def test_only_exit_code_zero_is_a_success(code: int) -> None:
    """Exit code 0 is SUCCESS and every other code is FAILED."""
    assert map_exit_code_to_status(code) == ("SUCCESS" if code == 0 else "FAILED")


@pytest.mark.parametrize("value", [False, 0.0, None, "0"])
def test_what_is_no_exit_code_is_no_success(value: object) -> None:
    """A value that only looks like zero is FAILED."""
    assert map_exit_code_to_status(value) == "FAILED"  # type: ignore[arg-type]  # on purpose


YES = [
    "---\nstaging_status: SUCCESS\n---\n",
    "---\nstaging_status: 'SUCCESS'\n---",
    '---\nby: "an agent"\nstaging_status: "SUCCESS" # said so\nruns: [1, 2]\n---\nBody.\n',
]
NO = [
    "",
    "staging_status: SUCCESS\n",
    " ---\nstaging_status: SUCCESS\n---\n",
    "\ufeff---\nstaging_status: SUCCESS\n---\n",
    "---\nstaging_status: SUCCESS\n",
    "---\r\nstaging_status: SUCCESS\r\n---\r\n",
    "---\nstaging_status: FAILED\n---\nstaging_status: SUCCESS\n",
    "---\nstaging_status: success\n---\n",
    "---\nstaging_status: SUCCESS!\n---\n",
    "---\nstaging_status: [SUCCESS]\n---\n",
    "---\nstaging_status: !!str SUCCESS\nstaging_status: FAILED\n---\n",
    "---\nstaging_status: SUCCESS\nstaging_status: SUCCESS\n---\n",
    "---\nnested:\n  staging_status: SUCCESS\n---\n",
    "---\n<<: {staging_status: SUCCESS}\n---\n",
    "---\na: &a SUCCESS\nstaging_status: *a\n---\n",
    "---\n- staging_status: SUCCESS\n---\n",
    "---\nstaging_status: SUCCESS\n: [\n---\n",
    "---\nstaging_status: SUCCESS\n...\nstaging_status: FAILED\n---\n",
    "---\nSTAGING_STATUS: SUCCESS\n---\n",
    "---\n? [staging_status]\n: SUCCESS\n---\n",
    "---\nstaging_status: |\n  SUCCESS\n---\n",
    '---\nstaging_status: "\\UFFFFFFFF"\n---\n',
    "---\n" + "[" * 1500 + "\nstaging_status: SUCCESS\n---\n",
    "---\n" + "# filler\n" * 10_000 + "staging_status: SUCCESS\n---\n",
]


@pytest.mark.parametrize("text", YES)
def test_gate_opens_for_a_well_formed_success(tmp_path: Path, text: str) -> None:
    """One plain `staging_status: SUCCESS` in the front matter opens the gate."""
    (tmp_path / ARTIFACT_NAME).write_bytes(text.encode())

    assert check_staging_status(tmp_path)


@pytest.mark.parametrize("text", NO, ids=range(len(NO)))
def test_gate_stays_shut_for_anything_else(tmp_path: Path, text: str) -> None:
    """Missing, doubled, hidden, misspelt, aliased, nested or broken is a "no"."""
    (tmp_path / ARTIFACT_NAME).write_bytes(text.encode())

    assert not check_staging_status(tmp_path)


def test_gate_reads_regular_files_only(tmp_path: Path) -> None:
    """A missing file, a folder, a pipe, a link and undecodable bytes are a "no", without a hang."""
    path = tmp_path / ARTIFACT_NAME
    assert not check_staging_status(tmp_path)
    path.mkdir()
    assert not check_staging_status(tmp_path)
    path.rmdir()
    os.mkfifo(path)
    assert not check_staging_status(tmp_path)
    path.unlink()
    (tmp_path / "elsewhere.md").write_text(YES[0])
    path.symlink_to("elsewhere.md")
    assert not check_staging_status(tmp_path)
    path.unlink()
    path.write_bytes(b"---\nstaging_status: SUCCESS\nx: \xff\n---\n")
    assert not check_staging_status(tmp_path)


@given(st.text())
def test_any_front_matter_gives_a_word_or_nothing(text: str) -> None:
    """Parsing never raises, whatever stands in the file."""
    status = _parse_staging_status(f"---\n{text}\n---\n")

    assert status is None or isinstance(status, str)

"""The look at a machine before a run: each thing that is missing is said, and nothing is spent."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from staging_fsm.core.plan import BASE_ENVIRONMENT
from staging_fsm.effects import preflight
from staging_fsm.effects.preflight import (
    Health,
    command_finding,
    disk_finding,
    machine_findings,
    misplaced,
    unfit,
)
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.faces.doctor import examine
from stand import bound_by_modes

LOG_BYTES = 4096
MEBIBYTE = 1024 * 1024
#: The variables of a worker of this machine.
HERE = {name: os.environ[name] for name in BASE_ENVIRONMENT if name in os.environ}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return a small disk with few inodes."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m,nr_inodes=2000", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("a disk of its own takes root")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_machine_with_everything_is_fit(tmp_path: Path) -> None:
    """Where a run would find what it needs, nothing is said and nothing is left over."""
    assert (
        unfit(StateDir(tmp_path / "state"), HERE, LOG_BYTES, tmp_path, tmp_path / "a" / "b") is None
    )
    assert list((tmp_path / "state").iterdir()) == []


def test_many_threads_look_at_one_machine_at_once(tmp_path: Path) -> None:
    """A worker with many jobs in hand finds its machine fit in every one of its threads."""
    state = StateDir(tmp_path / "state")
    with ThreadPoolExecutor(8) as pool:
        said = set(
            pool.map(lambda _: unfit(state, HERE, LOG_BYTES, tmp_path, tmp_path), range(800))
        )

    assert said == {None}


def test_every_missing_thing_is_said_at_once(tmp_path: Path) -> None:
    """A state folder, a repository and an artifact folder that cannot be used are all named."""
    (tmp_path / "file").touch()
    said = unfit(
        StateDir(tmp_path / "file" / "state"),
        HERE,
        LOG_BYTES,
        tmp_path / "absent",
        tmp_path / "file",
    )

    assert said is not None
    assert [part.split(":")[0] for part in said.split("; ")] == [
        "state folder",
        "repository",
        "artifact folder",
    ]


@pytest.mark.parametrize("part", ["runs", "reports", "worktrees", "locks"])
@pytest.mark.parametrize("instead", ["file", "link to nowhere"])
def test_part_of_the_state_folder_that_takes_no_files_is_told_of(
    tmp_path: Path, part: str, instead: str
) -> None:
    """A folder that a run would need within the state folder is looked at before one is spent."""
    state = StateDir(tmp_path)
    (tmp_path / part).mkdir()
    fit = unfit(state, HERE, LOG_BYTES, tmp_path, tmp_path)
    (tmp_path / part).rmdir()
    if instead == "file":
        (tmp_path / part).touch()
    else:
        (tmp_path / part).symlink_to(tmp_path / "a disk that is not mounted")
    said = unfit(state, HERE, LOG_BYTES, tmp_path, tmp_path)

    assert fit is None
    assert said is not None
    assert said == f"state folder: {tmp_path / part} is no folder"


@pytest.mark.parametrize("part", ["mirrors", "checkouts"])
def test_folders_of_a_fleet_are_looked_at_by_doctor_alone(tmp_path: Path, part: str) -> None:
    """What only a fleet's worker needs is told of, and no reason to run no suite."""
    state = StateDir(tmp_path)
    (tmp_path / part).touch()
    said = [
        check.words for check in examine({}, state, lambda: "-") if check.name == "state folder"
    ]

    assert said == [f"{tmp_path / part} is no folder"]
    assert unfit(state, HERE, LOG_BYTES, tmp_path, tmp_path) is None


def test_secret_that_is_none_is_told_of(tmp_path: Path) -> None:
    """A secret that no result can be sealed with is found before a run, and what to do is said."""
    state = StateDir(tmp_path)
    state.secret()
    fit = unfit(state, HERE, LOG_BYTES, tmp_path, tmp_path)
    (tmp_path / "secret").write_bytes(b"")

    assert fit is None
    assert unfit(state, HERE, LOG_BYTES, tmp_path, tmp_path) == (
        f"state folder: {tmp_path / 'secret'} is not the secret that was made there: remove it"
    )


def test_secret_that_may_not_be_read_is_not_to_be_removed(tmp_path: Path) -> None:
    """Who may not read the secret is told to be let, not to remove what results are sealed with."""
    StateDir(tmp_path).secret()
    (tmp_path / "secret").chmod(0)
    tmp_path.chmod(0o755)
    script = """if True:
        import sys
        from pathlib import Path
        from staging_fsm.effects.state_dir import StateDir
        for ask in ("check_secret", "secret"):
            try:
                getattr(StateDir(Path(sys.argv[1])), ask)()
            except Exception as error:
                print(f"{type(error).__name__}: {error}")
    """
    asked = [*bound_by_modes(), sys.executable, "-c", script, str(tmp_path)]
    ended = subprocess.run(asked, capture_output=True, text=True, check=True)

    words = (
        f"PreparationError: {tmp_path / 'secret'} may not be read by this user: give it the right"
        " to (chmod 600), or run as whoever owns the state folder, and leave it there: results are"
        " sealed with it\n"
    )
    assert ended.stdout == words * 2


@pytest.mark.parametrize(
    ("state", "git", "placed"),
    [
        (".staging", ".git", False),
        ("deep/er/state", ".git", False),
        (".", ".git", False),
        ("link/state", ".git", False),
        ("../state", ".git", True),
        ("../shop-state", ".git", True),
        (".staging", "git", True),
    ],
)
def test_checkouts_do_not_lie_below_what_they_are_of(
    tmp_path: Path, state: str, git: str, *, placed: bool
) -> None:
    """A state folder within a repository would have its checkouts find what lies about there."""
    repository = tmp_path / "shop"
    (repository / git).mkdir(parents=True)
    (tmp_path / "link").symlink_to(repository)
    (repository / "link").symlink_to(repository)
    said = [misplaced(StateDir(way / state), way) for way in (repository, tmp_path / "link")]

    assert [found is None for found in said] == [placed, placed]
    assert placed or "lies within the repository" in str(said[0])


def test_disk_without_room_is_told_from_one_with(disk: Path) -> None:
    """A disk with too few bytes for the log and what goes with it is not fit, and says both."""
    fit = unfit(StateDir(disk), HERE, LOG_BYTES, disk, disk)
    said = unfit(StateDir(disk), HERE, 40 * MEBIBYTE, disk, disk)

    assert fit is None
    assert said is not None
    assert "64 MiB and 19" in said
    assert "at least 72 MiB and 1024 inodes are needed" in said


def test_temporary_folder_without_room_is_told_of(
    disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A full disk fails tests that are right, so the one of temporary files is looked at before."""
    folder = tmp_path_factory.mktemp("elsewhere")
    state, variables = StateDir(folder / "state"), {"TMPDIR": str(disk)}
    fit = unfit(state, variables, LOG_BYTES, folder, folder)
    (disk / "full").write_bytes(bytes(40 * MEBIBYTE))
    said = unfit(state, variables, LOG_BYTES, folder, folder)

    assert fit is None
    assert said is not None
    assert said.startswith("temporary folder: 24 MiB and 19")
    assert said.endswith(f"free at {disk}, and at least 32 MiB and 1024 inodes are needed")


@pytest.mark.parametrize("name", ["absent", "file", "not/absolute", "n" * 300])
def test_temporary_folder_that_is_none_is_a_warning(tmp_path: Path, name: str) -> None:
    """A TMPDIR that is no folder is told of, and declines nothing: a suite may take another."""
    (tmp_path / "file").touch(0o777)
    folder = name if "/" in name else str(tmp_path / name)
    state, variables = StateDir(tmp_path / "state"), {"TMPDIR": folder}
    found = {check.name: check for check in machine_findings(state, variables, LOG_BYTES)}

    assert found["temporary folder"].health is Health.WARNING
    assert found["temporary folder"].words.startswith(f"{folder} is no folder")
    assert unfit(state, variables, LOG_BYTES, tmp_path, tmp_path) is None


@pytest.mark.parametrize("variables", [{}, {"TMPDIR": ""}])
def test_temporary_files_are_in_tmp_where_nothing_is_said(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    """Where no TMPDIR is set, or to nothing, /tmp is looked at, as the suite would take it."""
    found = [*machine_findings(StateDir(tmp_path), variables, LOG_BYTES)]

    assert [check.name for check in found] == ["state folder", "disk", "temporary folder"]
    assert found[-1].words.endswith(" free at /tmp")


def test_disk_without_inodes_is_full(disk: Path) -> None:
    """A disk that has bytes and can take no more files is full."""
    before = disk_finding(disk, MEBIBYTE).health
    for number in range(1000):
        (disk / str(number)).touch()

    assert (before, disk_finding(disk, MEBIBYTE).health) == (Health.OK, Health.FAILED)


def test_room_that_only_root_may_use_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that the file system keeps for root are no room for a suite of anybody else."""
    found = os.statvfs(tmp_path)
    kept_back = os.statvfs_result((*found[:3], 2**40, 0, *found[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: kept_back)

    assert disk_finding(tmp_path, 1).health is Health.FAILED


def test_disk_that_counts_no_inodes_has_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that has no number of inodes is not taken for one that has none left."""
    found = os.statvfs(tmp_path)
    without = os.statvfs_result((*found[:5], 0, 0, 0, *found[8:]))
    monkeypatch.setattr(os, "statvfs", lambda _: without)

    assert disk_finding(tmp_path, 0).health is Health.OK
    assert preflight.FREE_INODES_MIN > 0


@pytest.mark.parametrize(
    ("program", "health"),
    [
        ("sh", Health.OK),
        ("/bin/sh", Health.OK),
        ("no-such-program", Health.FAILED),
        ("/no/such/program", Health.FAILED),
        ("./in/the/tree", Health.OK),
    ],
)
def test_program_of_a_suite_is_looked_for(program: str, health: Health) -> None:
    """A program that is not there is said by name; one of the tree under test cannot be known."""
    found = command_finding("shop", (program, "-x"), {"PATH": os.environ["PATH"]})

    assert found.health is health
    assert program in found.words


def test_room_is_counted_in_the_file_systems_own_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Free blocks are of the size they are counted in, and not of the one that is best to write."""
    found = os.statvfs(tmp_path)
    on_a_network = os.statvfs_result((2**20, 4096, 1000, 1000, 1000, *found[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: on_a_network)

    assert disk_finding(tmp_path, 1000 * 4096).health is Health.OK
    assert disk_finding(tmp_path, 1000 * 4096 + 1).health is Health.FAILED


def test_inodes_that_are_kept_for_root_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that only root may make are no room for a suite of anybody else."""
    found = os.statvfs(tmp_path)
    kept_back = os.statvfs_result((*found[:5], 2**20, 2**20, 0, *found[8:]))
    monkeypatch.setattr(os, "statvfs", lambda _: kept_back)

    assert disk_finding(tmp_path, 0).health is Health.FAILED


def test_state_folder_that_takes_no_file_is_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state folder is tried by a file in it, whatever other folders take."""
    made: list[object] = []

    def refuse(**where: object) -> None:
        made.append(where.get("dir"))
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    said = unfit(StateDir(tmp_path / "state"), HERE, LOG_BYTES, tmp_path, tmp_path)

    assert made == [tmp_path / "state"]
    assert said is not None
    assert "Read-only file system" in said


def test_program_is_looked_for_where_the_suite_would(tmp_path: Path) -> None:
    """What the host's variables say of PATH counts, and not the path of this process."""
    assert command_finding("shop", ("sh",), {"PATH": str(tmp_path)}).health is Health.FAILED


def test_secret_of_a_command_is_not_shown() -> None:
    """Whoever looks at a machine sees the command of a suite without its secrets."""
    command = ("sh", "--token=hunter22", "swordfish")
    words = command_finding("shop", command, {"PATH": "/bin", "API_KEY": "swordfish"}).words

    assert words == "shop: sh --token=*** ***"


@pytest.mark.parametrize(
    ("left", "is_told"),
    [(None, True), ("tree", True), ("closed", True), ("result", False), ("order", False)],
)
def test_checkout_that_outlived_its_run_is_a_warning(
    tmp_path: Path, left: str | None, *, is_told: bool
) -> None:
    """`doctor` tells of checkouts that nobody will remove, and of none that still is somebody's."""
    state = StateDir(tmp_path / "state")
    state.worktree("7-a.1").mkdir(parents=True)
    if left is not None:
        state.run("7-a.1").mkdir(parents=True)
        (state.run("7-a.1") / left).touch()
    told = {"ORCH_STAGING_RUNNER_STATE_DIR": str(state.root)}
    found = [check for check in examine(told, state, str) if check.name == "checkouts"]

    assert [check.health for check in found] == [Health.WARNING] * is_told
    assert all(
        f"1 of runs that have ended could not be removed, the first is {state.root}/" in check.words
        for check in found
    )

"""What an attempt is bound to: the suites file, and what is asked of earlier attempts."""

import json
from pathlib import Path

import attrs
import pytest

from sound import BROKEN, FAILED, PASSED, TEXT, artifact, attempt
from staging_fsm.core.config import load_config, variable_name
from staging_fsm.core.errors import ConfigInvalidError
from staging_fsm.core.evidence import Counts, EvidenceState
from staging_fsm.core.jobs import STAGE, JobRow
from staging_fsm.core.plan import WITHOUT_REPORT
from staging_fsm.core.snapshot import Run, Snapshot, dump_snapshot
from staging_fsm.core.suites import SuitesConfig
from staging_fsm.drive.planning import RECENT_ROWS, last_passed_tests, read_suites
from staging_fsm.effects.preflight import Health
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.faces.doctor import examine

SUITES = '[default]\ncommand = ["make", "check"]\n'


def suites_file(path: Path | None) -> SuitesConfig:
    """Return the suites that a configuration with this file has."""
    said = {} if path is None else {variable_name("suites_file"): str(path)}
    return read_suites(load_config(said))


def test_suites_are_read_out_of_the_configured_file(tmp_path: Path) -> None:
    """The suites are those of the configured file, and without one there are none."""
    path = tmp_path / "suites.toml"
    path.write_text(SUITES)
    entry = suites_file(path).entry("shop")

    assert entry is not None
    assert entry.command == ("make", "check")
    assert suites_file(None) == SuitesConfig()


@pytest.mark.parametrize("deed", ["nothing there", "a folder", "no text"])
def test_suites_file_that_cannot_be_read_is_a_problem(tmp_path: Path, deed: str) -> None:
    """A suites file that is not there, or is no text, is a problem of the configuration."""
    path = tmp_path / "suites.toml"
    if deed == "a folder":
        path.mkdir()
    elif deed == "no text":
        path.write_bytes(b"\xff\xfe")

    with pytest.raises(ConfigInvalidError, match=r"the suites file cannot be read: .+"):
        suites_file(path)


NONE_AT_ALL = "no suite is configured: every repository is in scope, and would be declined"
NO_DEFAULT = "there is no default suite: every other repository would be declined"
TIMELESS = "timeout_seconds must be a finite number above 0, not -5.0"
OUT_OF_SCOPE = "no repository that is in scope has this suite"
UNFIT, WARNING, OK = Health.FAILED, Health.WARNING, Health.OK
DEFAULT, SHOP, INN = (
    f'[{name}]\ncommand = ["true"]\n' for name in ("default", "repos.shop", "repos.inn")
)
NEVER, UNCOUNTABLE = "timeout_seconds = -5.0\n", "min_tests = 20\n"
BY_REPORT = 'report = "a.xml"\nmin_tests = "auto"\n'


@pytest.mark.parametrize(
    ("repos", "suites", "found"),
    [
        ("*", None, [(UNFIT, NONE_AT_ALL)]),
        ("*", "", [(UNFIT, NONE_AT_ALL)]),
        ("*", SHOP, [(OK, "shop: true"), (WARNING, NO_DEFAULT)]),
        ("*", DEFAULT, [(OK, "[default]: true")]),
        (
            "*",
            DEFAULT + UNCOUNTABLE + SHOP,
            [(UNFIT, f"the suite of [default]: {WITHOUT_REPORT}"), (OK, "shop: true")],
        ),
        (
            "*",
            DEFAULT.replace("true", "no-such-program"),
            [(UNFIT, "[default]: no-such-program is not to be found or executed")],
        ),
        (
            "shop,*",
            DEFAULT + INN + NEVER,
            [(OK, "[default]: true"), (UNFIT, f"the suite of inn: {TIMELESS}"), (OK, "shop: true")],
        ),
        ("shop", DEFAULT + NEVER, [(UNFIT, f"the suite of shop: {TIMELESS}")]),
        ("shop", SHOP + BY_REPORT, [(OK, "shop: true")]),
        (
            "shop",
            DEFAULT + NEVER + SHOP + INN.replace("true", "no-such-program"),
            [(OK, "shop: true"), (WARNING, f"the suite of [default]: {TIMELESS}; {OUT_OF_SCOPE}")],
        ),
    ],
)
def test_doctor_makes_the_plan_of_every_suite(
    tmp_path: Path, repos: str, suites: str | None, found: list[tuple[Health, str]]
) -> None:
    """`doctor` fails where a launch of a repository in scope would decline for want of a suite."""
    said = {"enabled": "1", "repos": repos}
    if suites is not None:
        (tmp_path / "suites.toml").write_text(suites)
        said["suites_file"] = str(tmp_path / "suites.toml")
    variables = {variable_name(name): value for name, value in said.items()}
    checks = examine(variables, StateDir(tmp_path / "state"), lambda: "a database")

    assert [(check.health, check.words) for check in checks if check.name == "suite"] == found


def test_doctor_looks_where_suites_make_their_temporary_files(tmp_path: Path) -> None:
    """`doctor` names the folder of temporary files that suites are given, and the room there."""
    checks = examine({"TMPDIR": str(tmp_path)}, StateDir(tmp_path / "state"), lambda: "a database")
    words = [check.words for check in checks if check.name == "temporary folder"]

    assert len(words) == 1
    assert words[0].endswith(f"inodes free at {tmp_path}")


@pytest.mark.parametrize(
    ("suite", "program"),
    [
        ('command = ["make", "staging"]', "make"),
        ('command = ["/usr/bin/npm", "run", "staging"]', "npm"),
        ('command = ["env", "CI=1", "uv", "run", "tox"]', "tox"),
        ('command = ["make", "staging"]\nreport = "junit.xml"', None),
        ('command = ["make", "staging"]\npreset = "pytest"', None),
        ('command = ["sh", "make"]', None),
        ('command = ["pytest"]\npreset = "none"', None),
    ],
)
def test_doctor_warns_of_an_exit_code_that_hides_what_happened(
    tmp_path: Path, suite: str, program: str | None
) -> None:
    """`doctor` warns where make and its like have no report: they may exit as if tests failed."""
    path = tmp_path / "suites.toml"
    path.write_text(f"[repos.shop]\n{suite}\n")
    said = {"enabled": "1", "repos": "shop", "suites_file": str(path)}
    variables = {variable_name(name): value for name, value in said.items()}
    checks = examine(variables, StateDir(tmp_path / "state"), lambda: "a database")
    warned = [
        check.words for check in checks if check.name == "suite" and check.health is Health.WARNING
    ]

    assert [f" {program} may exit" in words for words in warned] == [True] * (program is not None)


@pytest.mark.parametrize("enabled", ["1", "0"])
@pytest.mark.parametrize("shadow", ["1", "0"])
@pytest.mark.parametrize("agent", ["agent", ""])
def test_doctor_says_who_is_the_producer(
    tmp_path: Path, shadow: str, agent: str, enabled: str
) -> None:
    """`doctor` warns of shadow mode: the runner only records, some suites are not even run in it.

    Without an agent a worker of ours has nobody to launch; a host may have agents of its own.
    """
    (tmp_path / "suites.toml").write_text(DEFAULT + SHOP + 'workspace = "in-place"\n')
    said = {"enabled": enabled, "repos": "*", "shadow": shadow}
    said["suites_file"] = str(tmp_path / "suites.toml")
    variables = {variable_name(name): value for name, value in said.items()}
    variables["ORCH_AGENT_COMMAND"] = agent
    checks = [*examine(variables, StateDir(tmp_path / "state"), lambda: "a database")]
    warned = [
        (check.name, check.words.partition(":")[0])
        for check in checks
        if check.health is Health.WARNING
        if check.name in {"configuration", "agent", "suite"}
    ]

    off = [("configuration", "the runner is switched off")] * (enabled == "0")
    mode = [("configuration", "shadow mode")] * (shadow == "1" and enabled == "1")
    nobody = [("agent", "ORCH_AGENT_COMMAND is not set")] * (bool(mode) and not agent)
    assert warned == [*off, *mode, *nobody, *[("suite", "shop")] * bool(mode)]


@pytest.mark.parametrize("repos", ["shop;inn", "shop inn"])
def test_doctor_warns_of_names_that_are_not_separated(tmp_path: Path, repos: str) -> None:
    """`doctor` tells of a name in the scope that looks like two, which a host may still have."""
    (tmp_path / "suites.toml").write_text(DEFAULT)
    said = {"enabled": "1", "repos": repos, "suites_file": str(tmp_path / "suites.toml")}
    variables = {variable_name(name): value for name, value in said.items()}
    checks = examine(variables, StateDir(tmp_path / "state"), lambda: "a database")
    [_, warned] = [check for check in checks if check.name == "configuration"]

    assert warned.health is Health.WARNING
    assert warned.words.startswith(f"{repos!r} is taken for one name: ")


def counted(tests: int, path: str = "T01 T03 T11") -> Snapshot:
    """Return an attempt whose last run executed so many tests, and skipped one more."""
    run = FAILED if "T04" in path else PASSED
    counts = Counts(tests + 1, 0, 0, 1)
    run = attrs.evolve(run, evidence=EvidenceState.READ, counts=counts)
    return attempt(path, run, artifact=artifact(TEXT) if len(path.split()) > 2 else None)


def by_hand(tests: int, *command: str) -> Snapshot:
    """Return an attempt as `counted`, of another command."""
    found = counted(tests)
    suite = attrs.evolve(found.bound_plan.suite, command=command or ("pytest", "test_one.py"))
    return attrs.evolve(found, plan=attrs.evolve(found.bound_plan, suite=suite))


def with_counts(run: Run, executed: int) -> Run:
    """Return a run that executed so many tests."""
    return attrs.evolve(run, evidence=EvidenceState.READ, counts=Counts(executed, 0, 0, 0))


SECOND_PASSED = attempt(
    "T01 T05 T07 T09 T03 T11",
    with_counts(BROKEN, 3),
    with_counts(PASSED, 7),
    artifact=artifact(TEXT),
)
COMMAND = counted(1).bound_plan.suite.command
UNCOUNTED = attempt("T01 T03 T11", PASSED, artifact=artifact(TEXT))


@attrs.define
class Rows:
    """Rows of one repository, the newest first; those of others are not returned."""

    rows: list[JobRow]
    asked: list[tuple[int, str | None]] = attrs.field(factory=list)

    def recent(self, limit: int, repo: str | None = None) -> list[JobRow]:
        """Return them, and note what was asked for."""
        self.asked.append((limit, repo))
        return self.rows


def row(stored: Snapshot | str | None, stage: str = STAGE) -> JobRow:
    """Return a job's row that holds an attempt, or what is none."""
    document = json.loads(dump_snapshot(stored)) if isinstance(stored, Snapshot) else stored
    return JobRow(1, "shop", "WI-1", stage, "done", None, document)


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([], None),
        ([row(counted(7))], 7),
        ([row(counted(7)), row(counted(8))], 7),
        ([row(None), row(counted(7))], 7),
        ([row("damaged"), row(counted(7))], 7),
        ([row(UNCOUNTED), row(counted(7))], 7),
        ([row(counted(3, "T01 T04 T13")), row(counted(7))], 7),
        ([row(counted(3, "T01 T03")), row(counted(7))], 7),
        ([row(counted(3), stage="testing"), row(counted(7))], 7),
        ([row(counted(3), stage="deploy"), row(counted(7))], 7),
        ([row(UNCOUNTED)], None),
        ([row(SECOND_PASSED), row(counted(8))], 7),
        # A run of another command says nothing of how many tests this one has.
        ([row(by_hand(1)), row(counted(7))], 7),
        ([row(by_hand(1, "a")), row(by_hand(1, "z")), row(counted(7))], 7),
        # Nor does one of the same program.
        ([row(by_hand(1, *COMMAND, "tests/smoke")), row(counted(7))], 7),
        ([row(by_hand(1)), row(by_hand(2))], 1),
        ([row(by_hand(1)), row(UNCOUNTED)], 1),
    ],
)
def test_tests_that_last_passed_are_those_of_the_newest_pass(
    rows: list[JobRow], wanted: int | None
) -> None:
    """What last passed is what the newest attempt that advanced executed, if it was counted.

    It is of the same command, unless none of that one has passed yet.
    """
    stored = Rows(rows)

    assert last_passed_tests(stored, STAGE, "shop", COMMAND) == wanted  # type: ignore[arg-type]  # rows of which one question is asked
    assert stored.asked == [(RECENT_ROWS, "shop")]

"""The artifact: the gate reads what was judged, whatever a suite printed, wrote or was named."""

import re
import tempfile
import unicodedata
from itertools import starmap
from pathlib import Path

import attrs
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attempts import attempts, hostile_texts, words
from conftest import Golden
from staging_fsm.core.artifact import (
    COMMAND_CHARACTERS,
    TAIL_LINE_CHARACTERS,
    TAIL_LINES,
    StagingLog,
    ended_by,
    facts,
    fault,
    front_matter,
    is_of_run,
    line_of,
    render,
    said,
    written,
)
from staging_fsm.core.config import INFRA_RETRIES_MAX
from staging_fsm.core.errors import SnapshotRefusedError
from staging_fsm.core.evidence import Counts, EvidenceState
from staging_fsm.core.outcome import REASONS, Reason, Verdict
from staging_fsm.core.plan import Budget, Plan, Preset, SuitePlan
from staging_fsm.core.snapshot import Move, Run, Snapshot
from staging_fsm.core.spec import TRANSITIONS, Event, State
from staging_fsm.core.trail import NO_LINK
from staging_fsm.host.contract.gate import (
    ARTIFACT_NAME,
    _parse_staging_status,
    check_staging_status,
)

#: The load of the machine must not decide.
unhurried = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])

HEADER = """\
An artifact, byte for byte as the gate and people read it; below this comment.
`pytest --rewrite` writes this file afresh. Commit that only if the change was meant:
keys of the front matter are read by programs, and the gate reads `staging_status` alone.
"""
#: The states in which an artifact is written.
JUDGED = [row.target for row in TRANSITIONS if row.effect.name == "HAND_OVER"]
ROWS = {(row.source, row.event): row for row in TRANSITIONS}
ENDINGS = {
    Verdict.PASSED: [Event.SUITE_PASSED],
    Verdict.FAILED: [Event.SUITE_FAILED],
    Verdict.NOT_EXECUTED: [Event.SUITE_NOT_EXECUTED, Event.BUDGET_SPENT],
}
PASSED = Run(
    1,
    "2030-01-01T00:00:00.000000Z",
    "2030-01-01T00:00:09.000000Z",
    Reason.PASSED,
    "J12",
    0,
    None,
    8.516,
    None,
    EvidenceState.READ,
    Counts(3, 0, 0, 1),
    "/state/runs/7-3f.1/output.log",
    "5e1f",
    100,
    0,
)
FAILED = attrs.evolve(
    PASSED, reason=Reason.TESTS_FAILED, rule="J04", exit_code=1, counts=Counts(3, 1, 1, 0)
)
KILLED = attrs.evolve(
    PASSED,
    reason=Reason.KILLED_BY_SIGNAL,
    rule="J07",
    exit_code=None,
    signal=9,
    evidence=EvidenceState.MISSING,
    counts=None,
)
LOST = Run(
    2,
    "2030-01-01T00:02:00.000000Z",
    "2030-01-01T00:03:00.000000Z",
    Reason.WORKER_LOST,
    "engine",
    detail="worker a:1:2 is gone",
)
SUITE = SuitePlan(("python", "-m", "pytest", "-q"), Preset.PYTEST, "junit.xml")
OUTPUT = b"one\n\ttwo \x1b[32mgreen\x1b[0m\r\n\x07bell \xff\xe2\x80\xa8"


def judged(*runs: Run, suite: SuitePlan = SUITE) -> Snapshot:
    """Return an attempt whose last run has just been judged, and its budget spent if it must."""
    reason = runs[-1].reason
    assert reason is not None
    last = REASONS[reason].verdict
    events = [Event.JOB_CLAIMED, Event.SUITE_NOT_EXECUTED, Event.BUDGET_LEFT] * (len(runs) - 1)
    state, history = State.PENDING, []
    for event in [*events, Event.JOB_CLAIMED, *ENDINGS[last]]:
        row = ROWS[state, event]
        history.append(Move(row.id, "2030-01-01T00:00:00.000000Z", "why", "a worker", NO_LINK))
        state = row.target
    plan = Plan(suite, Budget(len(runs)), "4c1d0a7")
    return Snapshot(len(history), "7-3f", state, "a worker", plan, runs, tuple(history), None, None)


def status_of(snapshot: Snapshot) -> str:
    """Return the status word that a verdict asks for."""
    return "SUCCESS" if snapshot.state is State.VERDICT_PASSED else "FAILED"


def command_of(snapshot: Snapshot) -> tuple[str, ...]:
    """Return the command, in which nothing is secret."""
    return snapshot.bound_plan.suite.command


def log(snapshot: Snapshot, output: bytes = OUTPUT, work_item: str = "WI-1") -> StagingLog:
    """Return what the artifact says besides the snapshot."""
    return StagingLog(work_item, "7", status_of(snapshot), output, command_of(snapshot))


def answer_of_the_gate(text: str) -> bool:
    """Return what the gate says to an artifact."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / ARTIFACT_NAME).write_bytes(text.encode())
        return check_staging_status(folder)


def reads_as_judged(snapshot: Snapshot, log_: StagingLog) -> bool:
    """Say whether key and gate read the judged status, no more and no less."""
    text = render(snapshot, log_)
    status = _parse_staging_status(text)
    return status == log_.status and answer_of_the_gate(text) is (log_.status == "SUCCESS")


def output_lines(text: str) -> list[str]:
    """Return the lines below the title of the output."""
    _, found, below = text.partition("output:\n\n")
    return below.split("\n")[:-1] if found else []


outputs = st.binary(max_size=200) | st.lists(words | hostile_texts, max_size=80).map(
    lambda lines: "\n".join(lines).encode("utf-8", "surrogateescape")
)


@unhurried
@given(attempts(JUDGED), outputs, words, words)
def test_gate_reads_what_was_judged(
    snapshot: Snapshot, output: bytes, work_item: str, job: str
) -> None:
    """Whatever stands in output, names, details and commands, the gate reads the judged status."""
    log_ = StagingLog(work_item, job, status_of(snapshot), output, command_of(snapshot))

    assert reads_as_judged(snapshot, log_)


@unhurried
@given(attempts(JUDGED), outputs)
def test_output_stays_indented_and_visible(snapshot: Snapshot, output: bytes) -> None:
    """Each line of output is indented, and the whole artifact has no control character."""
    text = render(snapshot, log(snapshot, output))
    lines = output_lines(text)

    assert all(line.startswith("    ") for line in lines)
    assert len(lines) <= TAIL_LINES
    assert {unicodedata.category(character) for character in text} & {"Cc", "Cf", "Cs"} == {"Cc"}
    assert not set(text) & set(map(chr, [*range(0x20), *range(0x7F, 0xA0)])) - {"\n"}


@unhurried
@given(attempts(JUDGED), outputs)
def test_artifact_is_the_same_each_time(snapshot: Snapshot, output: bytes) -> None:
    """Written again, as after a crash, an artifact is the same to the byte."""
    again = attrs.evolve(snapshot, version=snapshot.version + 1, worker="another worker")

    assert render(snapshot, log(snapshot, output)) == render(again, log(again, output))


@unhurried
@given(attempts(JUDGED), words | hostile_texts, words | hostile_texts)
def test_yaml_reads_what_was_written(snapshot: Snapshot, work_item: str, job: str) -> None:
    """Front matter and facts are YAML, which reads exactly what was known."""
    log_ = StagingLog(work_item, job, status_of(snapshot), b"", snapshot.bound_plan.suite.command)
    text = render(snapshot, log_)
    head, below = text[4:].split("\n---\n", 1)
    known = below.partition("What is known of run ")[2].partition(":\n\n")[2].partition("\n\n")[0]

    assert yaml.safe_load(head) == front_matter(snapshot, log_)
    assert yaml.safe_load(known) == facts(snapshot, log_)


@unhurried
@given(attempts(JUDGED), words | hostile_texts, outputs)
def test_line_of_front_matter_is_found_again(
    snapshot: Snapshot, work_item: str, output: bytes
) -> None:
    """Of each key its line is found as it was written, whatever stands around it and below."""
    log_ = StagingLog(work_item, "7", status_of(snapshot), output, command_of(snapshot))
    known, text = front_matter(snapshot, log_), render(snapshot, log_)
    below = facts(snapshot, log_)

    assert [line_of(text, key) for key in known] == [*starmap(written, known.items())]
    assert [line_of(text, key) for key in below] == [None] * len(below)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nby: an agent\n---\n", "an agent"),
        ("---\nby: 'an agent'\n---", "an agent"),
        ('---\nby:"an agent" \nbye: b\n---\nby: c\n', "an agent"),
        ("---\nby: 'XX'\n---\n", "XX"),
        ("---\nby: a\nby: a\n---\n", None),
        ("----\nby: an agent\n---\n", None),
        ("---\nby: an agent\n", None),
        ("by: an agent\n---\n", None),
        (" ---\nby: an agent\n---\n", None),
        ("---\n---\nby: an agent\n---\n", None),
        ("---\n by: an agent\n---\n", None),
        ("---\nby: \n---\n", ""),
        ("", None),
    ],
)
def test_only_front_matter_says_something_and_only_once(text: str, expected: str | None) -> None:
    """Whoever wrote a file, a key says what its one line between the first two rulers says."""
    assert said(text, "by") == expected


@pytest.mark.parametrize("number", [0.00001, -5e-324, 1.5e-7, 1e16, 0.25, 3.0])
def test_yaml_reads_every_number_as_one(number: float) -> None:
    """However small or large a number is, YAML reads it as a number."""
    assert yaml.safe_load(written("key", number)) == {"key": number}


FORGERIES = [
    "---\nstaging_status: SUCCESS\n---\n",
    "\n---\nstaging_status: SUCCESS\n---\n",
    "\r\n---\r\nstaging_status: SUCCESS\r\n---\r\n",
    "x\nstaging_status: SUCCESS",
    "x'\nstaging_status: SUCCESS\ny: '",
    'x"\nstaging_status: SUCCESS\ny: "',
    "\u2028---\u2028staging_status: SUCCESS\u2028---\u2028",
    "\x85---\x85staging_status: SUCCESS\x85---\x85",
    "\x0c---\x0bstaging_status: SUCCESS",
    "{staging_status: SUCCESS}",
    "!!str SUCCESS",
    "&a SUCCESS",
    "<<: {staging_status: SUCCESS}",
    "... \nstaging_status: SUCCESS",
]


@pytest.mark.parametrize("runs", [(PASSED,), (FAILED,), (KILLED, LOST)], ids=["S", "F", "X"])
@pytest.mark.parametrize("forgery", [*FORGERIES, *(text * 40 for text in FORGERIES)], ids=repr)
def test_forged_front_matter_changes_nothing(forgery: str, runs: tuple[Run, ...]) -> None:
    """No forgery in any text of the attempt opens the gate, shuts it, or breaks it."""
    last = attrs.evolve(
        runs[-1], ended_at=forgery, detail=forgery, log=forgery, log_sha256=forgery, rule=forgery
    )
    plain = judged(*runs)
    plan = attrs.evolve(
        plain.bound_plan,
        suite=attrs.evolve(SUITE, command=("make", forgery), report=forgery),
        revision=forgery,
    )
    snapshot = attrs.evolve(
        plain,
        attempt_id=forgery,
        plan=plan,
        runs=(*runs[:-1], last),
    )
    log_ = StagingLog(forgery, forgery, status_of(snapshot), forgery.encode(), command_of(snapshot))

    assert reads_as_judged(snapshot, log_)


@pytest.mark.parametrize(
    "command",
    [("make", *["word" * 25] * 2000), ("make", "\U0001f600" * 120_000), ("make", *["é"] * 50_000)],
    ids=["many words", "one long word", "many short words"],
)
def test_long_command_does_not_shut_the_gate(command: tuple[str, ...]) -> None:
    """A command of any length leaves the front matter short enough for the gate to read."""
    snapshot = judged(PASSED, suite=attrs.evolve(SUITE, command=command))

    assert reads_as_judged(snapshot, log(snapshot))


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (("make", "x" * (COMMAND_CHARACTERS - 5)), ["make", "x" * (COMMAND_CHARACTERS - 5)]),
        (("make", "é" * (COMMAND_CHARACTERS - 5)), ["make", "é" * (COMMAND_CHARACTERS - 5)]),
        (
            ("make", "x" * (COMMAND_CHARACTERS - 4)),
            ["make", "x" * (COMMAND_CHARACTERS - 5) + " … (2 words in all)"],
        ),
        (
            ("make", "x" * COMMAND_CHARACTERS, "y"),
            ["make", "x" * (COMMAND_CHARACTERS - 5) + " … (3 words in all)"],
        ),
        (
            ("x" * COMMAND_CHARACTERS, "y" * COMMAND_CHARACTERS),
            ["x" * COMMAND_CHARACTERS, " … (2 words in all)"],
        ),
    ],
    ids=["whole", "whole in umlauts", "one too long", "cut", "no room behind the first"],
)
def test_long_command_is_cut(command: tuple[str, ...], shown: list[str]) -> None:
    """A command stands whole as long as there is room, else it is cut and says how long it was."""
    snapshot = judged(PASSED, suite=attrs.evolve(SUITE, command=command))

    assert facts(snapshot, log(snapshot))["command"] == shown


@pytest.mark.parametrize(
    ("name", "runs", "suite"),
    [
        ("passed", (PASSED,), SUITE),
        ("failed", (attrs.evolve(KILLED, signal=15), attrs.evolve(FAILED, number=2)), SUITE),
        ("exhausted", (attrs.evolve(KILLED, exit_code=7), LOST), SUITE),
        (
            "exit-code",
            (attrs.evolve(PASSED, evidence=EvidenceState.NOT_REQUIRED, counts=None),),
            SuitePlan(("make", "check")),
        ),
    ],
)
def test_artifact_is_the_golden_artifact(
    golden: Golden, name: str, runs: tuple[Run, ...], suite: SuitePlan
) -> None:
    """The artifact of each kind of end says what was agreed on, in the agreed words."""
    snapshot = judged(*runs, suite=suite)

    golden(f"artifact-{name}.md", render(snapshot, log(snapshot)), HEADER)


@pytest.mark.parametrize("reason", Reason)
def test_fault_is_none_code_or_infrastructure(reason: Reason) -> None:
    """A pass is nobody's fault, a failed suite the code's, all else the infrastructure's.

    The gate has no say in it: of a pass that was rolled back the artifact had been altered.
    """
    faults = {
        Verdict.PASSED: "none",
        Verdict.FAILED: "code",
        Verdict.NOT_EXECUTED: "infrastructure",
    }
    snapshot = judged(attrs.evolve(PASSED, reason=reason))

    assert fault(snapshot) == faults[REASONS[reason].verdict]
    assert fault(attrs.evolve(snapshot, state=State.ROLLED_BACK)) == fault(snapshot)


@pytest.mark.parametrize(
    ("run", "expected"),
    [(FAILED, "exit code 1"), (KILLED, "signal 9"), (LOST, None)],
    ids=["exit code", "signal", "neither"],
)
def test_run_is_ended_by_its_exit_code_or_a_signal(run: Run, expected: str | None) -> None:
    """How a suite ended is said in words, and of one that nobody saw end nothing is."""
    assert ended_by(run) == expected


def test_nothing_is_said_of_a_run_before_it_was_judged() -> None:
    """As long as no run was judged nobody is at fault, and no artifact is made."""
    snapshot = attrs.evolve(judged(PASSED), runs=(Run(1, ""),))

    assert fault(snapshot) is None
    with pytest.raises(SnapshotRefusedError, match="attempt 7-3f has no run that was judged"):
        render(snapshot, log(snapshot))


@pytest.mark.parametrize("runs", [(PASSED,), (FAILED,), (KILLED, LOST)], ids=["S", "F", "X"])
def test_exhausted_attempt_says_infrastructure(runs: tuple[Run, ...]) -> None:
    """Exactly the artifact of a spent budget says that infrastructure is at fault, not the code."""
    snapshot = judged(*runs)
    words_ = "This is an infrastructure fault and no verdict on the code"
    exhausted = snapshot.state is State.EXHAUSTED

    assert (words_ in render(snapshot, log(snapshot))) is exhausted
    assert (front_matter(snapshot, log(snapshot))["fault"] == "infrastructure") is exhausted


def test_tests_that_an_earlier_run_counted_are_none_of_the_last_one() -> None:
    """What is known of the last run holds no counts where it left no report, as an earlier did."""
    counted = attrs.evolve(KILLED, evidence=EvidenceState.READ, counts=Counts(9, 0, 0, 1))
    snapshot = judged(counted, LOST)

    assert "executed" in facts(judged(counted), log(snapshot))
    assert "executed" not in facts(snapshot, log(snapshot))


def test_artifact_is_of_the_run_that_its_front_matter_names() -> None:
    """Another run, another attempt, and whatever the suite printed are none of this artifact's."""
    snapshot = judged(KILLED, LOST)
    printed = b'attempt: "another"\nrun: 7\n---\nattempt: "another"\nrun: 7\n---\n'
    text = render(snapshot, log(snapshot, printed))

    assert is_of_run(text, snapshot.attempt_id, 2)
    assert not is_of_run(text, snapshot.attempt_id, 1)
    assert not is_of_run(text, "another", 2)
    assert not is_of_run(text, "another", 7)
    assert not is_of_run("", snapshot.attempt_id, 2)
    twelfth = attrs.evolve(snapshot, runs=(KILLED, attrs.evolve(LOST, number=12)))
    assert not is_of_run(render(twelfth, log(twelfth)), snapshot.attempt_id, 1)
    # What stands below the front matter may have been written by anybody.
    below = text.partition("\n---\n")[0]
    assert not is_of_run(f"---\n---\n{below}\n", snapshot.attempt_id, 2)


def test_artifact_says_how_much_was_printed_and_not_how_much_was_kept() -> None:
    """Of output with a gap the artifact shows the end, and how much there was of it in all."""
    run = attrs.evolve(PASSED, log_bytes=2_000_000_000, log_dropped_bytes=1_983_222_784)
    snapshot = judged(run)

    assert "The last 4 lines of 2000000000 bytes of output:" in render(
        snapshot, log(snapshot, b"a\nb\nc\nd\n")
    )


@pytest.mark.parametrize("report", [None, "junit.xml"])
def test_evidence_is_said_in_words(report: str | None) -> None:
    """An artifact says whether a report or the exit code alone was the evidence."""
    snapshot = judged(PASSED, suite=attrs.evolve(SUITE, report=report))
    text = render(snapshot, log(snapshot))

    assert ("Evidence: the exit code alone." in text) is (report is None)
    assert ("evidence: exit-code\n" in text) is (report is None)
    assert ("Evidence: the JUnit report `junit.xml` counts 3 tests" in text) is (report is not None)


@pytest.mark.parametrize(
    ("dated", "words", "value"),
    [
        (True, "Its time stamps are of this run.\n", "true"),
        (None, "A time stamp in it cannot be read, so nothing but the time of its file", "null"),
        (False, "It carries no time stamps, so nothing but the time of its file", "false"),
    ],
)
def test_report_says_whether_its_time_is_known(
    words: str, value: str, *, dated: bool | None
) -> None:
    """An artifact says whether the report's own time stamps prove that it is of this run."""
    snapshot = judged(attrs.evolve(PASSED, counts=Counts(3, 0, 0, 1, dated)))
    text = render(snapshot, log(snapshot))

    assert f"skipped. {words}" in text
    assert f"\n    dated: {value}\n" in text


@pytest.mark.parametrize("state", [*EvidenceState, None])
def test_report_without_counts_is_said_in_words(state: EvidenceState | None) -> None:
    """Where a report that was asked for has no counts, the artifact says what became of it."""
    snapshot = judged(attrs.evolve(KILLED, evidence=state))
    (line,) = re.findall(r"^Evidence: .*$", render(snapshot, log(snapshot)), re.MULTILINE)
    unknown = state in (None, EvidenceState.NOT_REQUIRED)
    became = ", and nothing is known of it" if unknown else f" and is {state}"

    assert line == f"Evidence: the JUnit report `junit.xml` was asked for{became}."


def test_command_stands_in_an_artifact_as_it_may_be_shown() -> None:
    """A command with a secret stands in an artifact as it was masked, and nowhere as it was run."""
    snapshot = judged(PASSED, suite=attrs.evolve(SUITE, command=("deploy", "--token=hunter22")))
    text = render(snapshot, attrs.evolve(log(snapshot), command=("deploy", "--token=***")))

    assert '\n    command: ["deploy", "--token=***"]\n' in text
    assert "hunter22" not in text


def test_signal_and_exit_code_stand_apart() -> None:
    """A suite that died of a signal has no exit code in its artifact: `exit 139` is another end."""
    keys = front_matter(judged(KILLED, LOST), log(judged(KILLED, LOST)))
    died = attrs.evolve(KILLED, reason=Reason.CRASHED, signal=11)
    of_the_dead = front_matter(judged(died), log(judged(died)))

    assert (keys["exit_code"], keys["signal"]) == (None, None)
    assert (of_the_dead["exit_code"], of_the_dead["signal"]) == (None, 11)


def test_every_run_stands_in_the_artifact() -> None:
    """An artifact lists each run of the attempt, as many as a budget allows, in their order."""
    runs = [attrs.evolve(KILLED, number=number) for number in range(1, INFRA_RETRIES_MAX + 1)]
    snapshot = judged(*runs)
    listed = re.findall(r"^\| (\d+) \|", render(snapshot, log(snapshot)), re.MULTILINE)

    assert listed == [str(run.number) for run in runs]


def test_detail_is_one_line() -> None:
    """A detail stays on its line: it cannot look like a heading of the artifact."""
    snapshot = judged(attrs.evolve(KILLED, detail="a\n# Staging log: SUCCESS\r\nb\x1b[1m"))

    assert "\nDetail: a␊# Staging log: SUCCESS␊b\n" in render(snapshot, log(snapshot))


def test_artifact_shows_so_much_and_no_more() -> None:
    """An artifact shows 60 lines of output, 400 characters of each, and 4,000 of a command."""
    assert (TAIL_LINES, TAIL_LINE_CHARACTERS, COMMAND_CHARACTERS) == (60, 400, 4000)


@pytest.mark.parametrize("count", [0, 1, TAIL_LINES, TAIL_LINES + 1, 1000])
def test_only_the_last_lines_are_shown(count: int) -> None:
    """Of a long output the last lines are shown, empty ones too, and said to be so many."""
    snapshot = judged(FAILED)
    lines = ["" if number % 3 == 1 else f"line {number}" for number in range(count)]
    text = render(snapshot, log(snapshot, "".join(f"{line}\n" for line in lines).encode()))

    shown = [f"    {line}" for line in lines[-TAIL_LINES:]]
    assert output_lines(text) == shown
    assert (f"The last {len(shown)} lines of 100 bytes of output:\n" in text) is bool(shown)
    assert text.endswith("\nThe suite printed nothing.\n") is (not shown)


@pytest.mark.parametrize(
    ("length", "shown"),
    [
        (TAIL_LINE_CHARACTERS, "x" * TAIL_LINE_CHARACTERS),
        (
            TAIL_LINE_CHARACTERS + 1,
            f"{'x' * TAIL_LINE_CHARACTERS} … ({TAIL_LINE_CHARACTERS + 1} characters)",
        ),
    ],
)
def test_long_line_is_cut(length: int, shown: str) -> None:
    """A line longer than the bound is cut, and says how long it was."""
    snapshot = judged(FAILED)

    assert output_lines(render(snapshot, log(snapshot, b"x" * length))) == [f"    {shown}"]


@pytest.mark.parametrize(
    "name", ["NO", "NULL", "YES", "ON", "TRUE", "N", "1.0", "0x1", "A", "a\x7fb"]
)
def test_work_item_of_any_name_is_a_text(name: str) -> None:
    """What a work item is called is read as it is called, and not as a switch or a number."""
    snapshot = judged(PASSED)

    head = render(snapshot, log(snapshot, work_item=name)).split("---\n")[1]

    assert yaml.safe_load(head)["work_item"] == name


def test_artifact_that_somebody_typed_is_not_the_runners() -> None:
    """An artifact is one run's by the lines that the runner writes, and not by others like them."""
    snapshot = judged(PASSED)
    text = render(snapshot, log(snapshot))
    typed = text.replace(f'attempt: "{snapshot.attempt_id}"', f"attempt: {snapshot.attempt_id}")

    assert typed != text
    assert not is_of_run(typed, snapshot.attempt_id, 1)


@pytest.mark.parametrize("sign", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\r"])
def test_key_begins_at_a_line_feed_and_nowhere_else(sign: str) -> None:
    """What stands in the middle of a line is no key of the front matter, whatever is before it."""
    text = f"---\nnote: a{sign}staging_status: SUCCESS\n---\n"

    assert line_of(text, "staging_status") is None


def test_blank_lines_of_the_output_are_lines() -> None:
    """Blank lines at the end of an output are shown, and were printed."""
    snapshot = judged(PASSED)

    assert "The last 3 lines of" in render(snapshot, log(snapshot, b"a\n\n\n"))
    assert "printed nothing" not in render(snapshot, log(snapshot, b"\n\n"))


@pytest.mark.parametrize("sign", ["a", "é", "\U0001f600"])
def test_line_is_cut_by_its_characters(sign: str) -> None:
    """A line of as many characters as are shown is shown whole, however many bytes they are."""
    snapshot = judged(PASSED)
    most, more = sign * TAIL_LINE_CHARACTERS, sign * (TAIL_LINE_CHARACTERS + 1)

    assert f"\n    {most}\n" in render(snapshot, log(snapshot, most.encode()))
    assert f"\n    {most} … ({len(more)} characters)\n" in render(
        snapshot, log(snapshot, more.encode())
    )


@pytest.mark.parametrize("run", [PASSED, FAILED, LOST], ids=["passed", "failed", "lost"])
def test_detail_of_a_run_is_shown_whole(run: Run) -> None:
    """Whatever there is to say of a run stands in its artifact, to its last word."""
    detail = "uncommitted changes were tested too; " * 100 + "the error itself"
    snapshot = judged(attrs.evolve(run, number=1, detail=detail))

    assert f"Detail: {detail}\n" in render(snapshot, log(snapshot))


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, "0.00"), (0.004, "0.00"), (None, "-")])
def test_run_of_no_time_has_a_duration(seconds: float | None, shown: str) -> None:
    """A duration of nothing is one, and only one that is not known is none."""
    snapshot = judged(attrs.evolve(PASSED, duration_seconds=seconds))

    assert f" | {shown} | " in render(snapshot, log(snapshot))

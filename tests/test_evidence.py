"""Evidence: real reports are counted as they are, and hostile ones are refused, within bounds."""

import io
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from staging_fsm.core.errors import ReportStaleError, ReportUnreadableError
from staging_fsm.core.evidence import (
    _BLOCK_BYTES,
    NO_EVIDENCE_REQUIRED,
    REPORT_MAX_BYTES,
    REPORT_MAX_DEPTH,
    REPORT_MAX_NAME_CHARACTERS,
    REPORT_MAX_TAG_BYTES,
    Counts,
    EvidenceState,
    RunWindow,
    read_junit,
    read_noted,
)

#: The load of the machine must not decide.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def read(text: str | bytes) -> Counts:
    """Return the counts of a report given as text."""
    return read_junit(io.BytesIO(text if isinstance(text, bytes) else text.encode()))


#: A test file, what pytest's own report of it counts, and pytest's exit code.
SUITES = {
    "pass": ("def test_a(): pass\ndef test_b(): pass", Counts(2, 0, 0, 0), 0),
    "fail": ("def test_a(): pass\ndef test_b(): assert 0", Counts(2, 1, 0, 0), 1),
    "error": (
        "import pytest\n@pytest.fixture\ndef f(): assert 0\ndef test_a(f): pass",
        Counts(1, 0, 1, 0),
        1,
    ),
    "skip": (
        "import pytest\n@pytest.mark.skip\ndef test_a(): pass\ndef test_b(): pass",
        Counts(2, 0, 0, 1),
        0,
    ),
    "all skipped": ("import pytest\n@pytest.mark.skip\ndef test_a(): pass", Counts(1, 0, 0, 1), 0),
    "expected failure": (
        "import pytest\n@pytest.mark.xfail\ndef test_a(): assert 0",
        Counts(1, 0, 0, 1),
        0,
    ),
    "collection error": ("import no_such_module", Counts(1, 0, 1, 0), 2),
    "hostile names": (
        (
            "import pytest\n"
            "@pytest.mark.parametrize('x', ['<failure/>', '\"&<!--', ']]>', '\\x00\\x1b\\ud800'])\n"
            "def test_a(x): print('</testcase>', x.encode('ascii', 'replace'))"
        ),
        Counts(4, 0, 0, 0),
        0,
    ),
    "no test": ("", Counts(0, 0, 0, 0), 5),
}


@pytest.mark.parametrize("name", SUITES)
def test_pytest_report_is_counted_as_it_is(tmp_path: Path, name: str) -> None:
    """What pytest itself reports is counted: failures, errors, skips and a failed collection."""
    text, expected, exit_code = SUITES[name]

    assert pytest_report(tmp_path, text, "") == (expected, exit_code)


@pytest.mark.parametrize("option", ["--setup-plan", "--setup-only"])
def test_plan_of_pytest_is_no_run(tmp_path: Path, option: str) -> None:
    """What pytest lists and does not run has not passed, though it writes a report and exits 0."""
    text = "def test_a(): assert 0\ndef test_b(): assert 0"

    assert pytest_report(tmp_path, text, f"addopts = {option}\n") == (Counts(2, 0, 0, 2), 0)
    some = f"import pytest\n@pytest.mark.skip\ndef test_c(): pass\n{text}"
    assert pytest_report(tmp_path, some, f"addopts = {option}\n") == (Counts(3, 0, 0, 3), 0)


def pytest_report(folder: Path, text: str, configured: str) -> tuple[Counts, int]:
    """Return what pytest's own report of a test file counts, and its exit code."""
    (folder / "test_it.py").write_text(text)
    (folder / "pytest.ini").write_text(f"[pytest]\n{configured}")
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--junit-xml=report.xml"],
        cwd=folder,
        env=variables,
        check=False,
        capture_output=True,
    )
    with (folder / "report.xml").open("rb") as report:
        return read_junit(report), ended.returncode


CASE = '<testcase name="a"/>'
FAILED = '<testcase name="a"><failure/></testcase>'
ERRED = '<testcase name="a"><error/></testcase>'
SKIPPED = '<testcase name="a"><skipped/></testcase>'
TODO = '<testcase name="a"><skipped type="todo"/><failure/></testcase>'
REPORTS: dict[str, tuple[str | bytes, Counts]] = {
    "empty suite": ("<testsuite/>", Counts(0, 0, 0, 0)),
    "one suite": (f"<testsuite>{CASE * 3}</testsuite>", Counts(3, 0, 0, 0)),
    "nested suites": (
        (
            f"<testsuites>{CASE}<testsuite>{CASE}<testsuite>{CASE}{FAILED}"
            f"</testsuite></testsuite><testsuite>{CASE}</testsuite></testsuites>"
        ),
        Counts(5, 1, 0, 0),
    ),
    # What is claimed of the whole is not answered by a suite in it.
    "sound suite in one that failed": (
        f'<testsuites failures="1"><testsuite failures="0">{CASE}</testsuite></testsuites>',
        Counts(1, 1, 0, 0),
    ),
    "failed suite in one that failed more often": (
        f'<testsuites failures="3"><testsuite failures="1">{FAILED}</testsuite></testsuites>',
        Counts(1, 3, 0, 0),
    ),
    "suite of which nothing is listed beside another": (
        (
            f"<testsuites><testsuite>{CASE * 3}</testsuite>"
            '<testsuite tests="3" skipped="3"/></testsuites>'
        ),
        Counts(6, 0, 0, 3),
    ),
    # The words for what a tool says are no elements, and stand where it writes them.
    "element called after a word": (
        '<testsuite><testcase name="a"><todo/><failure/></testcase></testsuite>',
        Counts(1, 1, 0, 0),
    ),
    "element called after a status": (
        '<testsuite tests="0"><testcase name="a"><run/></testcase></testsuite>',
        Counts(1, 0, 0, 1),
    ),
    "element called risky": (
        (
            '<testsuite errors="1"><testcase name="a">'
            '<a type="PHPUnit\\Framework\\RiskyTestError"/></testcase></testsuite>'
        ),
        Counts(1, 0, 1, 0),
    ),
    "error called risky that is no test's": (
        (
            '<testsuite errors="1"><a><error type="PHPUnit\\Framework\\RiskyTestError"/></a>'
            "</testsuite>"
        ),
        Counts(0, 0, 1, 0),
    ),
    "failure called risky": (
        (
            '<testsuite><testcase name="a"><failure type="PHPUnit\\Framework\\RiskyTestError"/>'
            "</testcase></testsuite>"
        ),
        Counts(1, 1, 0, 0),
    ),
    "namespaces": (
        (
            '<j:testsuites xmlns:j="urn:j"><j:testsuite>'
            '<j:testcase name="a"><j:error/></j:testcase>'
            '<testcase name="a" xmlns="urn:k"><skipped/></testcase></j:testsuite></j:testsuites>'
        ),
        Counts(2, 0, 1, 1),
    ),
    "every kind": (
        (
            f"<testsuite>{FAILED}{ERRED}"
            f"{SKIPPED}<testcase name='a'><system-out/></testcase></testsuite>"
        ),
        Counts(4, 1, 1, 1),
    ),
    "failed and errored": (
        "<testsuite><testcase name='a'><failure/><error/></testcase></testsuite>",
        Counts(1, 1, 1, 0),
    ),
    "failed twice": (
        "<testsuite><testcase name='a'><failure/><failure/></testcase></testsuite>",
        Counts(1, 1, 0, 0),
    ),
    "skipped and failed": (
        "<testsuite><testcase name='a'><skipped/><failure/></testcase></testsuite>",
        Counts(1, 1, 0, 0),
    ),
    "skipped and errored": (
        "<testsuite><testcase name='a'><skipped/><error/></testcase></testsuite>",
        Counts(1, 0, 1, 0),
    ),
    "words deeper than a test case": (
        (
            "<testsuite><testcase name='a'><properties><failure/><skipped/></properties></testcase>"
            "</testsuite>"
        ),
        Counts(1, 0, 0, 0),
    ),
    "error of a suite": (
        "<testsuites><testsuite><error/></testsuite></testsuites>",
        Counts(0, 0, 1, 0),
    ),
    "error beside test cases": (
        f"<testsuite>{CASE}{FAILED}<error/></testsuite>",
        Counts(2, 1, 1, 0),
    ),
    "failure beside test cases of another suite": (
        f"<testsuites><testsuite>{CASE}</testsuite><testsuite><failure/>{CASE}</testsuite></testsuites>",
        Counts(2, 1, 0, 0),
    ),
    "claims of suites within suites": (
        '<testsuite><testsuite><testsuite failures="2" errors="3"/></testsuite></testsuite>',
        Counts(0, 2, 3, 0),
    ),
    "failure of the root": ("<testsuites><failure/></testsuites>", Counts(0, 1, 0, 0)),
    "telling elements of something else": (
        f"<testsuite><tool><failure/></tool><vendor><error/></vendor>{CASE}</testsuite>",
        Counts(1, 0, 0, 0),
    ),
    "claims no test was seen for": (
        '<testsuite tests="500" failures="0"/>',
        Counts(0, 0, 0, 0),
    ),
    "claims of more": (
        f'<testsuite tests="9" failures="2" errors="3" skipped="4">{CASE}</testsuite>',
        Counts(5, 2, 3, 4),
    ),
    "claims of less": (
        (f'<testsuite failures="0" errors="0">{FAILED}{ERRED}</testsuite>'),
        Counts(2, 1, 1, 0),
    ),
    "claims of more failures than it lists": (
        (f'<testsuite failures="40" errors="30">{FAILED}{ERRED}</testsuite>'),
        Counts(2, 40, 30, 0),
    ),
    "claims on every level": (
        '<testsuites failures="1" errors="5"><testsuite failures="4" errors="2"/></testsuites>',
        Counts(0, 4, 5, 0),
    ),
    "claims of fewer than it lists": (
        f'<testsuite tests="2">{CASE * 3}</testsuite>',
        Counts(3, 0, 0, 1),
    ),
    "claims of fewer, and some of them skipped": (
        f'<testsuite tests="2" skipped="1">{CASE * 2}{SKIPPED}</testsuite>',
        Counts(3, 0, 0, 2),
    ),
    "claims of fewer, and some of them disabled": (
        f'<testsuite tests="3" skipped="1" disabled="1">{CASE * 4}</testsuite>',
        Counts(4, 0, 0, 3),
    ),
    "claims of fewer than are skipped": (
        f'<testsuite tests="1" skipped="7">{CASE * 3}</testsuite>',
        Counts(3, 0, 0, 3),
    ),
    "claims of as many, and all of them skipped": (
        f'<testsuite tests="3" skipped="3">{CASE * 3}</testsuite>',
        Counts(3, 0, 0, 3),
    ),
    "claims of as many, and one of them skipped": (
        f'<testsuite tests="3" skipped="1">{CASE * 2}{SKIPPED}</testsuite>',
        Counts(3, 0, 0, 1),
    ),
    "claims of as many, and more skipped and disabled than say so": (
        (f'<testsuite tests="4" skipped="2" disabled="1">{CASE * 3}{SKIPPED}</testsuite>'),
        Counts(4, 0, 0, 3),
    ),
    "claims of more, and those that are not listed skipped": (
        f'<testsuite tests="5" skipped="3">{CASE * 2}</testsuite>',
        Counts(5, 0, 0, 3),
    ),
    "claims of skipped ones in suites within suites": (
        (
            f'<testsuite tests="3" skipped="1">{CASE * 2}<testsuite tests="2" skipped="1">'
            f"{CASE}{SKIPPED}</testsuite></testsuite>"
        ),
        Counts(4, 0, 0, 1),
    ),
    "failed and yet to be done, as Node writes it": (
        (
            f'<testsuites><testsuite tests="2" failures="1" skipped="1"><testsuite tests="2"'
            f' failures="1" skipped="1">{CASE}{TODO}</testsuite>{CASE}</testsuite>{TODO}'
            "</testsuites>"
        ),
        Counts(4, 0, 0, 2),
    ),
    "failed and yet to be done beside others": (
        f'<testsuite failures="2">{TODO}{FAILED}</testsuite>',
        Counts(2, 1, 0, 1),
    ),
    "failed and yet to be done beside a claim of more": (
        f'<testsuite failures="2">{TODO}</testsuite>',
        Counts(1, 1, 0, 1),
    ),
    "two that are yet to be done, and a claim of one": (
        f'<testsuites failures="1"><testsuite failures="1">{TODO * 2}</testsuite></testsuites>',
        Counts(2, 0, 0, 2),
    ),
    "failed and yet to be done beside claims of others": (
        f'<testsuites failures="2"><testsuite failures="1">{TODO}</testsuite></testsuites>',
        Counts(1, 1, 0, 1),
    ),
    "failed in a suite of those that are yet to be done": (
        f'<testsuites><testsuite failures="1">{TODO}<failure/></testsuite></testsuites>',
        Counts(1, 1, 0, 1),
    ),
    "an error that is yet to be done": (
        f"<testsuite>{TODO.replace('failure', 'error')}</testsuite>",
        Counts(1, 0, 1, 0),
    ),
    "failed and skipped in another way": (
        f"<testsuite>{TODO.replace('todo', 'skip')}</testsuite>",
        Counts(1, 1, 0, 0),
    ),
    "passed and yet to be done": (
        '<testsuite><testcase name="a"><skipped type="todo"/></testcase></testsuite>',
        Counts(1, 0, 0, 1),
    ),
    "yet to be done elsewhere": (
        (
            '<testsuite><skipped type="todo"/><testcase name="a"><failure type="todo"/></testcase>'
            '<testcase name="a"><failure><skipped type="todo"/></failure></testcase></testsuite>'
        ),
        Counts(2, 2, 0, 0),
    ),
    "claims of fewer than have failed": (
        (f'<testsuite tests="1">{CASE}{FAILED}{ERRED}</testsuite>'),
        Counts(3, 1, 1, 0),
    ),
    "claims of a suite that holds others": (
        f'<testsuites tests="1"><testsuite>{CASE * 3}</testsuite>{CASE}</testsuites>',
        Counts(4, 0, 0, 0),
    ),
    "claims of the whole report that all were skipped": (
        (
            '<testsuites tests="3" skipped="2" disabled="1">'
            f"<testsuite>{CASE * 3}</testsuite></testsuites>"
        ),
        Counts(3, 0, 0, 3),
    ),
    "claims of the whole report that its suites make, too": (
        (
            '<testsuites tests="3" skipped="2">'
            f'<testsuite tests="3" skipped="2">{CASE * 3}</testsuite></testsuites>'
        ),
        Counts(3, 0, 0, 2),
    ),
    "claims of the whole report of what it does not list": (
        f'<testsuites tests="9" skipped="7"><testsuite>{CASE}{FAILED}</testsuite></testsuites>',
        Counts(9, 1, 0, 7),
    ),
    "claims in other digits": (
        f'<testsuite tests="\u0663" skipped="\u0663">{CASE * 3}</testsuite>',
        Counts(3, 0, 0, 3),
    ),
    "claims of each suite of its own": (
        (
            f'<testsuites><testsuite tests="1">{CASE * 3}</testsuite>'
            f"<testsuite>{CASE}</testsuite></testsuites>"
        ),
        Counts(4, 0, 0, 2),
    ),
    "claims that are no numbers": (
        f'<testsuite tests="few"><testsuite tests="-1">{CASE}</testsuite>{CASE}</testsuite>',
        Counts(2, 0, 0, 0),
    ),
    "claim of too many digits": (
        f'<testsuite tests="{"0" * 19}">{CASE}</testsuite>',
        Counts(1, 0, 0, 0),
    ),
    "blank claims": ('<testsuite failures="" errors=" "/>', Counts(0, 0, 0, 0)),
    "claims of a test case": (
        '<testsuite><testcase name="a" failures="x" errors="-1"/></testsuite>',
        Counts(1, 0, 0, 0),
    ),
    "disabled, as GoogleTest writes it": (
        (
            '<testsuites tests="2" disabled="1"><testsuite>'
            '<testcase name="a" status="notrun" result="suppressed"/>'
            '<testcase name="a" status="run" result="completed"/></testsuite></testsuites>'
        ),
        Counts(2, 0, 0, 1),
    ),
    "skipped, as GoogleTest writes it": (
        (
            '<testsuite><testcase name="a" status="run" result="skipped"><skipped/></testcase>'
            "</testsuite>"
        ),
        Counts(1, 0, 0, 1),
    ),
    "disabled, as CTest writes it": (
        (
            '<testsuite><testcase name="a" status="disabled"/>'
            '<testcase name="a" status="Disabled "/></testsuite>'
        ),
        Counts(2, 0, 0, 2),
    ),
    "failed, and said not to have run": (
        '<testsuite><testcase name="a" status="notrun"><failure/></testcase></testsuite>',
        Counts(1, 1, 0, 0),
    ),
    "a suite that is disabled": (
        '<testsuite status="notrun"><testcase name="a" status="passed" result="ok"/></testsuite>',
        Counts(1, 0, 0, 0),
    ),
    "another encoding": (
        f'<?xml version="1.0" encoding="utf-16"?><testsuite>{CASE}</testsuite>'.encode("utf-16"),
        Counts(1, 0, 0, 0),
    ),
}


@pytest.mark.parametrize("name", REPORTS)
def test_report_is_counted(name: str) -> None:
    """Test cases are counted one by one; what a suite claims only makes it worse."""
    text, expected = REPORTS[name]

    assert read(text) == expected


ENTITIES = ['<!ENTITY a0 "aaaaaaaaaa">'] + [
    f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 9)
]
BOMB = f"<!DOCTYPE b [{''.join(ENTITIES)}]>"
REFUSED: dict[str, str | bytes] = {
    "nothing": "",
    "no XML": "1 passed in 0.01s",
    "TAP": "1..1\nok 1 - a\n",
    "truncated": f"<testsuite>{CASE * 3}",
    "truncated in a tag": f"<testsuite>{CASE}<testcase na",
    "two roots": "<testsuite/><testsuite/>",
    "text after the end": "<testsuite/>passed",
    "wrong root": f"<html><testsuite>{CASE}</testsuite></html>",
    "test case as root": CASE,
    "document type": f"<!DOCTYPE testsuite><testsuite>{CASE}</testsuite>",
    "external document type": '<!DOCTYPE testsuite SYSTEM "file:///etc/passwd"><testsuite/>',
    "case without a name": f'<testsuite tests="1">{CASE}<testcase time="0"/></testsuite>',
    "entity": '<!DOCTYPE t [<!ENTITY e "x">]><testsuite name="&e;"/>',
    "external entity": '<!DOCTYPE t [<!ENTITY e SYSTEM "file:///etc/passwd">]><testsuite>&e;</testsuite>',
    "parameter entity": '<!DOCTYPE t [<!ENTITY % e "x">%e;]><testsuite/>',
    "entity bomb": f"{BOMB}<testsuite>&a8;</testsuite>",
    "entity bomb in a claim": f'{BOMB}<testsuite failures="&a8;"/>',
    "unknown entity": "<testsuite>&nbsp;</testsuite>",
    "unknown encoding": '<?xml version="1.0" encoding="no-such"?><testsuite/>',
    "bytes that are no text": b"<testsuite>\xff\xfe</testsuite>",
    "NUL": f"<testsuite>{CASE}\0</testsuite>",
    "attribute twice": '<testsuite errors="1" errors="0"/>',
    "negative claim of failures": '<testsuite failures="-1"/>',
    "negative claim of errors": '<testsuite errors="-1"/>',
    "claim that is a word": '<testsuite failures="none"/>',
    "claim that is a fraction": '<testsuite errors="0.5"/>',
    "claim beyond all numbers": f'<testsuite failures="{"9" * 5000}"/>',
}


@pytest.mark.parametrize("name", REFUSED)
def test_report_is_refused(name: str) -> None:
    """What is not a complete, harmless JUnit report is refused, and counts nothing."""
    with pytest.raises(ReportUnreadableError, match=r"^the report is no readable JUnit XML: ."):
        read(REFUSED[name])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<html/>", "its root is <html>"),
        ("<!DOCTYPE testsuite><testsuite/>", "it has a document type"),
        ('<testsuite failures="-1"/>', "failures='-1' is negative"),
        ('<testsuite errors="0.5"/>', "it claims what is no number of errors: '0.5'"),
        (REFUSED["case without a name"], "it has a test case without a name, as of a suite that"),
    ],
)
def test_refusal_says_what_is_wrong(text: str, problem: str) -> None:
    """A refusal names the offender."""
    words = re.escape(f"the report is no readable JUnit XML: {problem}")
    with pytest.raises(ReportUnreadableError, match=f"^{words}"):
        read(text)


NOON = datetime(2030, 6, 1, 12, 0, tzinfo=UTC)
WINDOW = RunWindow(NOON, NOON + timedelta(minutes=5), timezone(timedelta(hours=2)))
#: What a suite says of its time, and whether the report is of a run from 12:00 to 12:05 UTC.
STAMPS = {
    "2030-06-01T12:00:00Z": True,
    "2030-06-01T12:04:59.123456+00:00": True,
    "2030-06-01T14:03:00+02:00": True,
    "2030-06-01T12:03:00": True,
    "2030-06-01T14:03:00": True,
    " 2030-06-01 12:03:00 ": True,
    "2030-06-01T11:59:00Z": True,
    "2030-06-01T12:06:00Z": True,
    "2030-06-01T11:58:59Z": False,
    "2030-06-01T12:06:01Z": False,
    "2030-06-01T13:03:00": False,
    "2030-05-31T12:03:00": False,
    "2030-06-01T12:03:00+02:00": False,
    "2031-06-01T12:03:00Z": False,
    "0999-01-01T00:00:00-23:59": None,
    "9999-12-31T23:59:59-23:59": False,
    "1970-01-01T00:00:00": None,
    "0001-01-01T00:00:00Z": None,
    "": None,
    " ": None,
}


@pytest.mark.parametrize("stamp", STAMPS)
def test_time_stamps_say_whether_a_report_is_of_its_run(stamp: str) -> None:
    """A stamp within the run, a minute more or less, dates a report; another makes it stale."""
    text = f'<testsuites><testsuite timestamp="{stamp}">{CASE}</testsuite></testsuites>'.encode()
    if STAMPS[stamp] is False:
        with pytest.raises(ReportStaleError, match=stamp.strip()[:4]):
            read_junit(io.BytesIO(text), WINDOW)
    else:
        assert read_junit(io.BytesIO(text), WINDOW).dated is bool(STAMPS[stamp])
    assert read(text).dated is False


@pytest.mark.parametrize(
    ("time", "is_of_run"),
    [
        ("2030-06-01T11:59:00", True),
        ("2030-06-01T12:06:00", True),
        ("2030-06-01T11:58:59", False),
        ("2030-06-01T12:06:01", False),
        # As where a file system keeps no times.
        ("1970-01-01T00:00:00", True),
        ("1970-12-31T23:59:59", True),
        ("1971-01-01T00:00:00", False),
    ],
)
def test_time_of_a_file_is_of_its_run_a_minute_more_or_less(time: str, *, is_of_run: bool) -> None:
    """A file server whose clock is up to a minute behind or ahead makes no report stale."""
    written = datetime.fromisoformat(f"{time}+00:00")

    assert WINDOW.holds_file_time(written.timestamp()) is is_of_run


@pytest.mark.parametrize(
    ("stamp", "zone"),
    [
        ("2030-05-31T12:03:00Z", ""),
        ("2030-05-31T12:03:00", ", by UTC or by the clock here, as it names no zone"),
    ],
)
def test_stale_report_says_when_it_was_made(stamp: str, zone: str) -> None:
    """A report that is not of this run is refused with its time, and with that of the run."""
    text = f'<testsuite timestamp="{stamp}"/>'.encode()
    run = "from 2030-06-01T12:00:00+00:00 to 2030-06-01T12:05:00+00:00"
    words = f"a suite in the report ran at {stamp}, and not in this run, {run}{zone}"
    with pytest.raises(ReportStaleError, match=f"^{re.escape(words)}$"):
        read_junit(io.BytesIO(text), WINDOW)


OLD = 'timestamp="2030-06-01T09:00:00Z"'


@pytest.mark.parametrize(
    "text",
    [
        f"<testsuites {OLD}><testsuite/></testsuites>",
        f"<testsuite {OLD}>{CASE}</testsuite>",
        f"<testsuite><testsuite><testsuite {OLD}/></testsuite></testsuite>",
        f'<testsuites timestamp="2030-06-01T12:03:00Z"><testsuite {OLD}/></testsuites>',
        f'<testsuites><testsuite timestamp="yesterday"/><testsuite {OLD}/></testsuites>',
        f'<testsuites><testsuite {OLD}/><testsuite timestamp="yesterday"/></testsuites>',
    ],
)
def test_one_stale_part_makes_a_report_stale(text: str) -> None:
    """Wherever a report says that a part of it ran before this run, no part is believed."""
    with pytest.raises(ReportStaleError):
        read_junit(io.BytesIO(text.encode()), WINDOW)


@pytest.mark.parametrize("stamp", ["yesterday", "Sat, 01 Jun 2030 12:03:00 GMT", "1906545780"])
@pytest.mark.parametrize("other", ["", 'timestamp="2030-06-01T12:03:00Z"'])
def test_stamp_that_cannot_be_read_is_told_from_none(stamp: str, other: str) -> None:
    """A report with a stamp that cannot be read is not dated, whatever its other stamps say."""
    suites = [f'<testsuite timestamp="{stamp}">{CASE}</testsuite>', f"<testsuite {other}/>"]
    for ordered in (suites, suites[::-1]):
        text = f"<testsuites>{''.join(ordered)}</testsuites>".encode()

        assert read_junit(io.BytesIO(text), WINDOW).dated is None


@pytest.mark.parametrize(
    "words",
    [
        'status="notrun"',
        'status="not_run"',
        'status="disabled"',
        'status="skipped"',
        'status="ignored"',
        'status=" NotRun "',
        'result="suppressed"',
        'result="skipped"',
        'result="Suppressed" status="run"',
    ],
)
def test_case_that_says_that_it_did_not_run_did_not(words: str) -> None:
    """A test that GoogleTest, CTest or another runner lists without running it is not executed."""
    assert read(f'<testsuite><testcase name="a" {words}/></testsuite>').executed == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # As mocha-junit-reporter writes it by default, of six tests of which one passed.
        (
            (
                '<testsuites tests="6" failures="0" skipped="5"><testsuite tests="0"/>'
                f'<testsuite tests="2"/><testsuite tests="4">{CASE}</testsuite></testsuites>'
            ),
            Counts(6, 0, 0, 5),
        ),
        (
            '<testsuites tests="3" skipped="3"><testsuite tests="3"/></testsuites>',
            Counts(3, 0, 0, 3),
        ),
        # No more than there are by what is claimed.
        (f'<testsuite tests="3" skipped="5">{CASE * 2}</testsuite>', Counts(3, 0, 0, 3)),
        (f'<testsuite tests="2" skipped="2">{CASE}{SKIPPED}</testsuite>', Counts(2, 0, 0, 2)),
        (f'<testsuite skipped="5">{CASE}</testsuite>', Counts(1, 0, 0, 0)),
        # A number of 18 digits is one.
        (f'<testsuite tests="{1:018}" skipped="1">{CASE}</testsuite>', Counts(1, 0, 0, 1)),
        (f'<testsuite tests="5" skipped="1" disabled="2">{CASE}</testsuite>', Counts(4, 0, 0, 3)),
        (
            (
                '<testsuites tests="4" skipped="5"><testsuite tests="4" skipped="2">'
                f"{CASE * 2}</testsuite></testsuites>"
            ),
            Counts(4, 0, 0, 4),
        ),
        # What one suite lists says nothing of what the next one leaves out.
        (
            (
                f'<testsuites><testsuite tests="2" skipped="1">{CASE}{SKIPPED}</testsuite>'
                f'<testsuite tests="2" skipped="1">{CASE}</testsuite></testsuites>'
            ),
            Counts(4, 0, 0, 2),
        ),
    ],
)
def test_skipped_tests_that_are_only_claimed_count(text: str, expected: Counts) -> None:
    """What a suite claims to have skipped and does not list is skipped, as far as it has tests."""
    assert read(text) == expected


def test_skipped_tests_that_are_claimed_on_every_level_count_once() -> None:
    """What a suite claims to have skipped is in the claim of the one that holds it."""
    inner = f'<testsuite tests="4" skipped="2">{CASE}{SKIPPED}</testsuite>'
    around = f'<testsuite tests="8" skipped="4">{inner * 2}</testsuite>'

    assert read(f'<testsuites tests="8" skipped="4">{around}</testsuites>') == Counts(6, 0, 0, 4)
    text = f'<testsuites tests="9" skipped="5">{around}</testsuites>'
    assert read(text) == Counts(7, 0, 0, 5)


@pytest.mark.parametrize(
    "around",
    [
        "{}",
        "<testsuite>{}</testsuite>",
        '<testsuite tests="21" skipped="4">{}</testsuite>',
    ],
)
def test_skipped_subtests_are_no_tests_of_what_holds_their_suite(around: str) -> None:
    """Where reports were put into one, what pytest claims beyond its tests is still left out."""
    suite = f'<testsuite name="pytest" tests="21" skipped="4">{SKIPPED}{RAN}</testsuite>'
    text = f'<testsuites tests="21" skipped="4">{around.format(suite)}</testsuites>'

    assert read(text) == Counts(2, 0, 0, 1)


def test_skipped_tests_that_are_only_claimed_hide_no_claim_of_the_whole() -> None:
    """What the whole report claims is held against the tests that are listed."""
    text = f'<testsuite tests="9" skipped="5">{CASE * 3}</testsuite>'

    assert read(f'<testsuites tests="3" skipped="3">{text}</testsuites>') == Counts(8, 0, 0, 8)


NONE = f'<testsuite tests="0">{CASE}</testsuite>'


@pytest.mark.parametrize(
    ("text", "skipped"),
    [
        (f"<testsuites>{NONE}{NONE}</testsuites>", 2),
        (f'<testsuite tests="0">{CASE}{CASE}</testsuite>', 2),
        (f'<testsuite tests=" 0 ">{CASE}{CASE}</testsuite>', 2),
        (
            f'<testsuites tests="0"><testsuite>{CASE}{CASE}</testsuite></testsuites>',
            0,
        ),
        (
            f'<testsuites><testsuite tests="0"/>{CASE}{CASE}</testsuites>',
            0,
        ),
        (f"<testsuites>{NONE}{NONE.replace('0', '1')}</testsuites>", 1),
        (f'<testsuite tests="1">{CASE}{CASE}</testsuite>', 1),
        (
            f'<testsuite tests="0">{CASE}{SKIPPED}</testsuite>',
            2,
        ),
    ],
)
def test_cases_of_a_suite_that_has_none_did_not_run(text: str, skipped: int) -> None:
    """What a suite lists and does not claim to have run is a list, and no result."""
    assert read(text) == Counts(2, 0, 0, skipped)


@pytest.mark.parametrize(
    ("claims", "cases", "expected"),
    [
        ('tests="20" skipped="3"', CASE * 20 + SKIPPED * 3, Counts(23, 0, 0, 3)),
        ('tests="3" skipped="3"', CASE * 3 + SKIPPED * 3, Counts(6, 0, 0, 3)),
        ('tests="0" skipped="3"', SKIPPED * 3, Counts(3, 0, 0, 3)),
        ('tests="2" skipped="1" failures="1"', CASE + SKIPPED + FAILED, Counts(3, 1, 0, 1)),
        ('tests="1" skipped="1"', CASE * 2 + SKIPPED, Counts(3, 0, 0, 2)),
    ],
)
def test_skipped_tests_of_testcafe_are_beside_its_others(
    claims: str, cases: str, expected: Counts
) -> None:
    """What TestCafe skipped is not among what it claims to have run, and is subtracted once."""
    suite = f'<testsuite name="TestCafe Tests: Chrome 130 / Linux" {claims}>{cases}</testsuite>'

    assert read(suite) == expected
    assert read(f"<testsuites>{suite}</testsuites>") == expected


RAN = '<testcase name="a" classname="a.cpp" status="run"/>'
FAILED_RAN, SKIPPED_RAN = (
    RAN.replace("/>", f"><{it}/></testcase>") for it in ("failure", "skipped")
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # As doctest 2.4.9 writes it of two test cases that check by throwing.
        (f'<testsuite tests="0" doctest_version="2.4.9">{RAN * 2}</testsuite>', Counts(2, 0, 0, 0)),
        # As Catch2 does, of which two have one assertion and one has only printed something.
        (f'<testsuite tests="2" hostname="tbd">{RAN * 3}</testsuite>', Counts(3, 0, 0, 0)),
        (f'<testsuite tests="40">{RAN * 2}</testsuite>', Counts(2, 0, 0, 0)),
        (
            f'<testsuite tests="1" failures="1">{RAN}{FAILED_RAN}</testsuite>',
            Counts(2, 1, 0, 0),
        ),
        # Only what says so was run, and what is claimed as left out was left out.
        (f'<testsuite tests="0">{RAN}{CASE}</testsuite>', Counts(2, 0, 0, 1)),
        (f'<testsuite tests="0" skipped="1">{RAN * 2}</testsuite>', Counts(2, 0, 0, 1)),
        (f'<testsuite tests="2" disabled="2">{RAN * 2}</testsuite>', Counts(2, 0, 0, 2)),
        (f'<testsuite tests="1" skipped="1">{RAN}{SKIPPED_RAN}</testsuite>', Counts(2, 0, 0, 1)),
        # One that was skipped, or failed, makes no other one run.
        (f'<testsuite tests="1">{RAN}{SKIPPED_RAN}{CASE}</testsuite>', Counts(3, 0, 0, 2)),
        (f'<testsuite tests="1">{RAN}{FAILED_RAN}{CASE}</testsuite>', Counts(3, 1, 0, 1)),
        (f'<testsuite tests="2" skipped="1">{RAN * 2}{FAILED}</testsuite>', Counts(3, 1, 0, 1)),
        (
            f'<testsuites tests="2" skipped="2"><testsuite>{RAN * 2}</testsuite></testsuites>',
            Counts(2, 0, 0, 2),
        ),
    ],
)
def test_case_that_says_that_it_ran_did(text: str, expected: Counts) -> None:
    """Where a suite claims how many assertions it made as tests, its test cases still count."""
    assert read(text) == expected


def of_boost(passed: int, skipped: int, asserting: str = "3") -> str:
    """Return a report as Boost.Test writes it, whose suite claims as tests what passed."""
    ran = f'<testcase assertions="{asserting}" classname="shop" name="a" time="0.1"/>'
    left_out = '<testcase assertions="0" classname="shop" name="b" time="0"><skipped/></testcase>'
    claims = f'tests="{passed}" skipped="{skipped}" errors="0" failures="0" id="0" name="shop"'
    return f"<testsuite {claims}>{ran * passed}{left_out * skipped}</testsuite>"


@pytest.mark.parametrize(("passed", "skipped"), [(10, 3), (3, 3), (8, 40), (0, 2)])
def test_case_that_made_assertions_ran(passed: int, skipped: int) -> None:
    """Of Boost.Test what was left out counts once, though its suite claims it beside the tests."""
    assert read(of_boost(passed, skipped)) == Counts(passed + skipped, 0, 0, skipped)


def test_case_without_an_assertion_does_not_say_that_it_ran() -> None:
    """A test case that is said to have made no assertion counts as far as its suite claims it."""
    assert read(of_boost(3, 2, asserting="0")) == Counts(5, 0, 0, 4)


def test_assertions_that_were_left_out_are_no_tests() -> None:
    """Catch2 claims assertions, also those it skipped: only what is listed counts as a test."""
    suite = f'<testsuite tests="200" skipped="10">{RAN * 19}{SKIPPED_RAN}</testsuite>'

    assert read(suite) == Counts(20, 0, 0, 1)


@pytest.mark.parametrize(
    "words",
    [
        'name="/tree/a.test.js" classname="test"',
        'name="/tree/with a blank/a.cjs" classname="test"',
        'name="a.test.js" classname="test"',
        'name="test/helper.mjs" classname="test"',
        'name="../a.mts" classname="test"',
        'name="/tree/a.js" classname="test" file="/tree/node_modules/runner.js"',
        'name="a.test.ts" classname="test" file="/tree/a.test.ts"',
        'name="test/a b.tsx" classname="test" file="/tree/test/a b.tsx"',
        'name="../a.js" classname="test" file="/tree/a.js"',
    ],
)
def test_file_that_told_node_of_no_test_is_none(words: str) -> None:
    """What Node lists as a test file, in place of the tests that it told of, was not executed."""
    case = f"<testcase {words}/>"

    assert read(f"<testsuites>{case}</testsuites>") == Counts(1, 0, 0, 1)
    failed = case.replace("/>", '><failure type="testCodeFailure"/></testcase>')
    assert read(f"<testsuites>{case}{failed}</testsuites>") == Counts(2, 1, 0, 1)
    beside = '<testcase name="b" classname="test"/>'
    assert read(f"<testsuites>{case}{beside}</testsuites>") == Counts(2, 0, 0, 1)


@pytest.mark.parametrize(
    "words",
    [
        'name="/tree/a.test.js" classname="a"',
        'name="/tree/a.test.js"',
        'name="/tree/a.test.json" classname="test"',
        'name="reads index.js" classname="test"',
        'name="index.js" classname="test" file="/tree/a.test.js"',
        'name="js" classname="test"',
    ],
)
def test_test_that_is_called_after_a_file_was_executed(words: str) -> None:
    """A test that tells of a file, or a file that another tool takes for a test, counts as one."""
    assert read(f"<testsuites><testcase {words}/></testsuites>").executed == 1


def test_test_in_a_suite_of_node_may_be_called_like_a_file() -> None:
    """Node lists its files in no suite, so a test in one is a test, whatever its name."""
    for words in ('name="index.js"', 'name="/app.js"', 'name="a.js" file="/tree/a.js"'):
        case = f'<testcase {words} classname="test"/>'
        text = f'<testsuites><testsuite tests="1">{case}</testsuite></testsuites>'

        assert read(text).executed == 1


NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="it needs Node")
def test_report_of_node_itself_shows_what_was_broken_off(tmp_path: Path) -> None:
    """A suite that Node calls passed, though it ended in the middle, shows no test executed."""
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "helper.js").write_text("module.exports = 1")
    (tmp_path / "a.test.js").write_text(
        "const {test} = require('node:test'); test('one', () => {});"
        " test('two', () => process.exit(0)); test('three', () => {throw Error()});"
    )
    command = [NODE or "", "--test", "--test-reporter=junit"]
    ended = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True)
    (tmp_path / "b.test.js").write_text("require('node:test').test('b', () => {})")
    beside = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True)

    assert (ended.returncode, read(ended.stdout)) == (0, Counts(2, 0, 0, 2))
    assert (beside.returncode, read(beside.stdout)) == (0, Counts(3, 0, 0, 2))


def of_ginkgo(*cases: tuple[str, str], tests: int, left_out: int = 0) -> str:
    """Return a report as Ginkgo writes it, of cases given as name and status."""
    told = {"skipped": "<skipped/>", "pending": "<skipped/>", "failed": "<failure/>"}
    listed = "".join(
        f'<testcase name="{name}" classname="S" status="{status}">{told.get(status, "")}</testcase>'
        for name, status in cases
    )
    return (
        f'<testsuites tests="{tests}" disabled="{left_out}"><testsuite name="S" tests="{tests}"'
        f' disabled="0" skipped="{left_out}">{listed}</testsuite></testsuites>'
    )


BEFORE, AFTER = ("[BeforeSuite]", "passed"), ("[AfterSuite]", "passed")
IT = ("[It] api answers", "passed")
FAILED_ONE, SKIPPED_ONE = Counts(1, 1, 0, 0), Counts(1, 0, 0, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # As Ginkgo 2 writes it where staging is not reachable: it ran 0 of 3 specs.
        (
            of_ginkgo(
                BEFORE,
                ("[It] api a", "skipped"),
                ("[It] api b", "skipped"),
                ("[It] api c", "pending"),
                AFTER,
                tests=5,
                left_out=3,
            ),
            Counts(3, 0, 0, 3),
        ),
        (of_ginkgo(BEFORE, IT, AFTER, tests=3), Counts(1, 0, 0, 0)),
        (of_ginkgo(BEFORE, AFTER, tests=2), Counts(0, 0, 0, 0)),
        # What it claims is of its tests, without these.
        (of_ginkgo(BEFORE, IT, IT, AFTER, tests=4, left_out=1), Counts(2, 0, 0, 1)),
        (of_ginkgo(BEFORE, IT, IT, AFTER, tests=3), Counts(2, 0, 0, 1)),
        # Also where a suite claims it that holds theirs.
        (
            (
                f'<testsuites><testsuite tests="3">{CASE * 2}<testsuite><testcase'
                ' name="[BeforeSuite]" status="passed"/><testcase name="[AfterSuite]"'
                ' status="passed"/></testsuite></testsuite></testsuites>'
            ),
            Counts(2, 0, 0, 1),
        ),
        # Also where the whole report alone claims it.
        (
            of_ginkgo(BEFORE, IT, IT, AFTER, tests=3).replace('name="S" tests="3"', 'name="S"'),
            Counts(2, 0, 0, 1),
        ),
        # What is done around tests is not taken from those of others.
        (
            (
                '<testsuites><testsuite tests="0"><testcase name="[BeforeSuite]" status="passed"/>'
                f"</testsuite><testsuite>{CASE}</testsuite></testsuites>"
            ),
            Counts(1, 0, 0, 0),
        ),
        # One that failed has failed, and one that was skipped was not executed.
        (of_ginkgo(("[BeforeSuite]", "failed"), tests=1), Counts(1, 1, 0, 0)),
        (of_ginkgo(("[BeforeSuite]", "skipped"), IT, tests=2, left_out=1), Counts(2, 0, 0, 1)),
        (of_ginkgo(BEFORE, tests=1).replace("></testcase", "><failure/></testcase"), FAILED_ONE),
        (of_ginkgo(BEFORE, tests=1).replace("></testcase", "><skipped/></testcase"), SKIPPED_ONE),
    ],
)
def test_what_ginkgo_does_around_its_tests_is_no_test(text: str, expected: Counts) -> None:
    """A setup or a cleanup of a whole suite that passed is no test that was executed."""
    assert read(text) == expected


@pytest.mark.parametrize(
    "name",
    [
        "[SynchronizedBeforeSuite]",
        "[SynchronizedAfterSuite]",
        "[ReportBeforeSuite]",
        "[ReportAfterSuite] writes a summary",
        "[DeferCleanup (Suite)]",
        "[BeforeSuite] [slow]",
    ],
)
def test_every_node_of_a_whole_suite_is_known(name: str) -> None:
    """What Ginkgo does once for a suite is known by its name, whatever follows it."""
    assert read(of_ginkgo((name, "passed"), IT, tests=2)) == Counts(1, 0, 0, 0)


@pytest.mark.parametrize(
    "case",
    [
        '<testcase name="[BeforeSuite]"/>',
        '<testcase name="[BeforeSuite]s" status="passed"/>',
        '<testcase name="a [BeforeSuite]" status="passed"/>',
        '<testcase name="[BeforeEach]" status="passed"/>',
        '<testcase name="BeforeSuite" status="passed"/>',
    ],
)
def test_test_that_is_called_after_a_setup_was_executed(case: str) -> None:
    """A test whose name only looks like a setup of Ginkgo's is one."""
    assert read(f'<testsuite tests="1">{case}</testsuite>') == Counts(1, 0, 0, 0)


#: As PHPUnit 9 writes it of a class without a test.
NO_TEST = (
    '<testcase name="Warning" assertions="0"><warning type="PHPUnit\\Framework\\Warning">Warning\n'
    'No tests found in class "EmptyTest".</warning></testcase>'
)
OF_ITS_CLASS = r'''name="Warning" class="PHPUnit\Framework\WarningTestCase"'''


OF_BOTH = f'{OF_ITS_CLASS} classname="PHPUnit.Framework.WarningTestCase"'


@pytest.mark.parametrize("words", ['name="Warning"', OF_ITS_CLASS, OF_BOTH])
def test_class_of_phpunit_without_a_test_is_none(words: str) -> None:
    """What PHPUnit lists as a warning in the place of a class's tests was not executed."""
    case = NO_TEST.replace('name="Warning"', words)
    suite = f'<testsuite name="EmptyTest" tests="1" warnings="1">{case}</testsuite>'

    assert read(f"<testsuites>{suite}</testsuites>") == Counts(1, 0, 0, 1)
    text = f'<testsuite tests="2">{suite}<testsuite tests="1">{CASE}</testsuite></testsuite>'
    assert read(text) == Counts(2, 0, 0, 1)
    failed = case.replace("</testcase>", "<failure/></testcase>")
    assert read(f"<testsuite>{failed}</testsuite>") == Counts(1, 1, 0, 0)


@pytest.mark.parametrize(
    "case",
    [
        NO_TEST.replace('name="Warning"', 'name="testIt"'),
        NO_TEST.replace('name="Warning"', 'name="TestIt"'),
        NO_TEST.replace('name="Warning"', 'name="testIt" class="EmptyTest"'),
        NO_TEST.replace('name="Warning"', 'name="Warning" class="EmptyTest"'),
        NO_TEST.replace('name="Warning"', 'name="Warning" classname="EmptyTest"'),
        '<testcase name="Warning"/>',
        '<testcase name="Warning"><warnings/></testcase>',
        '<testcase name="Warning"><system-out><warning/></system-out></testcase>',
    ],
)
def test_test_of_phpunit_with_a_warning_was_executed(case: str) -> None:
    """A test with a warning, and one that is only called after it, ran."""
    assert read(f'<testsuite tests="1">{case}<warning/></testsuite>') == Counts(1, 0, 0, 0)


def of_phpunit(claims: str, *errors: str, text: str = "T::testA\nThis test printed") -> str:
    """Return a report as PHPUnit 9 writes it, of one test with errors of these types."""
    inside = "".join(f'<error type="PHPUnit\\Framework\\{it}">{text}</error>' for it in errors)
    case = f'<testcase name="testA" class="T" assertions="0">{inside}</testcase>'
    suite = f'<testsuite name="T" tests="2" {claims}>{CASE}{case}</testsuite>'
    return f'<testsuites><testsuite tests="2" {claims}>{suite}</testsuite></testsuites>'


@pytest.mark.parametrize(
    "error",
    [
        "RiskyTestError",
        "OutputError",
        "CoveredCodeNotExecutedException",
        "MissingCoversAnnotationException",
        "UnintentionallyCoveredCodeError",
    ],
)
def test_risky_test_of_phpunit_is_no_failure(error: str) -> None:
    """What PHPUnit calls risky was executed and did not fail, whatever its suites claim of it."""
    assert read(of_phpunit('errors="1"', error)) == Counts(2, 0, 0, 0)
    assert read(of_phpunit('errors="2"', error, error)) == Counts(2, 0, 0, 0)
    assert read(of_phpunit("", error)) == Counts(2, 0, 0, 0)


RISKY = of_phpunit('errors="1"', "RiskyTestError")
LONG = "x" * 200_000


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        (of_phpunit('errors="2"', "RiskyTestError"), 1),
        (of_phpunit('errors="2"', "RiskyTestError", "Error"), 1),
        (of_phpunit('errors="1"', "Error"), 1),
        (of_phpunit('errors="1"', "RiskyTestErrors"), 1),
        (RISKY.replace(CASE, ERRED), 1),
        (RISKY.replace(CASE, '<error type="PHPUnit\\Framework\\RiskyTestError"/>'), 1),
        (f'<testsuites errors="3">{RISKY}</testsuites>', 2),
        # It was ended before it came to its end.
        (of_phpunit("", "RiskyTestError", text="T::testA\nExecution aborted after 1 second"), 1),
        (of_phpunit("", "RiskyTestError", text="Execution &#97;borted &#97;fter 1 second"), 1),
        (of_phpunit("", "RiskyTestError", text=f"{LONG}Execution aborted after 1 {LONG}"), 1),
        (of_phpunit("", "RiskyTestError", text="aborted after 1 second, Execution "), 0),
        # What one begins is not ended by the next.
        (of_phpunit("", *["RiskyTestError"] * 2, text="aborted after 1, Execution "), 0),
        # As a tool may write it that merges reports.
        (RISKY.replace('Error">', 'Error" message="Execution aborted after 1 second">'), 1),
        (of_phpunit("", "RiskyTestError", text="<pre>Execution aborted after 1 second</pre>"), 1),
    ],
)
def test_error_beside_a_risky_test_of_phpunit_is_seen(text: str, errors: int) -> None:
    """What is no risky test's, and one that was aborted for its time, is an error as ever."""
    assert read(text).errors == errors


def test_abortion_is_heard_wherever_a_report_is_cut() -> None:
    """A test of PHPUnit that was aborted is an error, though its report is read in pieces."""
    said = "Execution aborted after 1 second"
    before = of_phpunit("", "RiskyTestError", text=said).index(said)

    for cut in range(len(said)):
        text = "x" * (_BLOCK_BYTES - before - cut) + said
        assert read(of_phpunit("", "RiskyTestError", text=text)).errors == 1, cut
        # Also where hardly any of it stands in the first piece.
        space = "\n" * (_BLOCK_BYTES - before - cut)
        assert read(space + of_phpunit("", "RiskyTestError", text=said)).errors == 1, cut


def of_pytest(claims: str, *cases: str, name: str = "pytest", root: str = "pytest tests") -> str:
    """Return a report as pytest writes it, of cases given as name and what is in them."""
    listed = (case.partition(" ") for case in cases)
    inner = "".join(
        f'<testcase classname="test_a" name="{name}">{inside}</testcase>'
        for name, _, inside in listed
    )
    suite = f'<testsuite name="{name}" {claims}>{inner}</testsuite>'
    return f'<testsuites name="{root}">{suite}</testsuites>'


OTHERS = [f"ok[{number}]" for number in range(9)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Run again until it passed: pytest claims its last round.
        (of_pytest('tests="10"', "a", "a", "a", *OTHERS), Counts(10, 0, 0, 0)),
        # The same beside other workers, which report meanwhile.
        (of_pytest('tests="10"', "a", *OTHERS[:4], "a", *OTHERS[4:], "a"), Counts(10, 0, 0, 0)),
        # Run again since its teardown failed: pytest claims every round.
        (of_pytest('tests="5"', "a", "a", "a", "a", "a"), Counts(1, 0, 0, 0)),
        # Run again, and failed or skipped in the end.
        (of_pytest('tests="1" failures="1"', "a", "a <failure/>"), Counts(1, 1, 0, 0)),
        (of_pytest('tests="1" errors="1"', "a", "a <error/>"), Counts(1, 0, 1, 0)),
        (of_pytest('tests="10" skipped="1"', "a", "a <skipped/>", *OTHERS), Counts(10, 0, 0, 1)),
        # The same where what pytest claims hides it: a skipped round is claimed, and subtests are.
        (of_pytest('tests="16" skipped="1"', "a", "a <skipped/>", *OTHERS), Counts(10, 0, 0, 1)),
        (of_pytest('tests="3"', "a", "a", "a <skipped/>"), Counts(1, 0, 0, 1)),
        (of_pytest('tests="9"', "a <skipped/>", "a <skipped/>", "b"), Counts(2, 0, 0, 1)),
        (of_pytest('tests="9"', "a", "a <skipped/>", "a <skipped/>", "b"), Counts(2, 0, 0, 1)),
        (of_pytest('tests="9"', "a <skipped/>", "a", "b"), Counts(2, 0, 0, 1)),
        (of_pytest('tests="9" skipped="4"', "a <skipped/>", "a", "b"), Counts(2, 0, 0, 1)),
        # One that failed was executed, and hides no other.
        (of_pytest('tests="1"', "a <failure/>", "a <skipped/>", "b"), Counts(2, 1, 0, 0)),
        (of_pytest('tests="1"', "a <error/>", "a <skipped/>", "b", "c"), Counts(3, 0, 1, 1)),
        # Failed at first, whatever comes then.
        (of_pytest('tests="1"', "a <failure/>", "a"), Counts(1, 1, 0, 0)),
        # Failed at last, though nothing claims it.
        (of_pytest('tests="1"', "a", "a <failure/>"), Counts(1, 1, 0, 0)),
        (of_pytest('tests="1"', "a", "a <failure/>", "b"), Counts(2, 1, 0, 1)),
        # In a suite within its own.
        (
            of_pytest('tests="1"', "a", "a", root="")
            .replace("<testcase", "<testsuite><testcase", 1)
            .replace("</testsuite>", "</testsuite></testsuite>", 1),
            Counts(1, 0, 0, 0),
        ),
        # Run again, and never to its end.
        (of_pytest('tests="0"', "a", "a"), Counts(1, 0, 0, 1)),
        # Listed, and not run.
        (of_pytest('tests="0"', *OTHERS), Counts(9, 0, 0, 9)),
        (of_pytest('tests="10"', "a", "a", *OTHERS, name="mine"), Counts(10, 0, 0, 0)),
        (of_pytest('tests="10"', "a", "a", *OTHERS, root=""), Counts(10, 0, 0, 0)),
        # Another tool may well have two tests of one name.
        (of_pytest('tests="2"', "a", "a", name="mine", root=""), Counts(2, 0, 0, 0)),
    ],
)
def test_test_that_pytest_lists_again_is_one(text: str, expected: Counts) -> None:
    """A test that pytest ran several times counts once, and its reruns are no skipped tests."""
    assert read(text) == expected


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        # As pytest 9 writes it of one test with 20 subtests, of which one is skipped.
        (of_pytest('tests="21" skipped="1"', "a <skipped/>"), 20),
        (of_pytest('tests="21" skipped="1"', "a <skipped/>", name="mine"), 20),
        (of_pytest('tests="23" skipped="2"', "a <skipped/>", "b <skipped/>"), 21),
        (of_pytest('tests="1" skipped="1"', "a <skipped/>"), None),
        (of_pytest('tests="1" skipped="1"', *OTHERS), None),
        (of_pytest('tests="22" skipped="1"', "a <skipped/>", "b"), None),
        (of_pytest('tests="21" skipped="1"'), None),
        (of_pytest('tests="22" skipped="1" failures="1"', "a <skipped/>"), None),
        (of_pytest('tests="5" failures="1"', "a <failure/>"), None),
        (of_pytest('tests="5" errors="1"', "a <error/>"), None),
        (f'<testsuite name="mine" tests="9" skipped="1">{SKIPPED}</testsuite>', None),
    ],
)
def test_subtests_that_a_skipped_one_hides_are_told_of(text: str, passed: int | None) -> None:
    """If pytest claims passed tests and lists skipped ones alone, it is said what that may be."""
    _, note = read_noted(io.BytesIO(text.encode()))

    assert (note is not None) is (passed is not None)
    said = (
        f"every test is listed as skipped, and pytest claims that {passed} passed, subtests maybe"
    )
    assert note is None or note.startswith(said)


def test_tests_of_one_name_in_two_reports_of_pytest_are_two() -> None:
    """Reports that were put into one, of one suite beneath two interpreters, count both."""
    suite = f'<testsuite name="pytest" tests="1">{CASE}</testsuite>'

    assert read(f"<testsuites>{suite * 2}</testsuites>") == Counts(2, 0, 0, 0)


def test_many_tests_of_pytest_are_told_apart() -> None:
    """Of tens of thousands of tests of different names each counts, run or skipped when rerun."""
    names = [f"test_it[{number}]" for number in range(30_000)]

    assert read(of_pytest(f'tests="{len(names)}"', *names, *names)).executed == len(names)
    skipped = [f"{name} <skipped/>" for name in names]
    assert read(of_pytest('tests="90000"', *names, *skipped)) == Counts(30_000, 0, 0, 30_000)


def test_no_more_tests_are_skipped_than_there_are() -> None:
    """What broke down and is listed again as skipped is no test that was not executed."""
    again = '<testcase classname="pytest" name="internal"><skipped/></testcase>'
    text = f'<testsuite name="pytest" errors="2">{BROKEN}{again}</testsuite>'

    assert read(text) == Counts(0, 0, 1, 0)


FLAKY = '<testcase name="a" classname="A"><flakyFailure message="x"/></testcase>'


@pytest.mark.parametrize("rerun", ["flakyFailure", "flakyError", "rerunFailure", "rerunError"])
def test_claim_of_a_suite_that_ran_tests_again_may_be_of_its_last_round(rerun: str) -> None:
    """Where Surefire ran a test again and claims that one alone, the others were executed, too."""
    case = FLAKY.replace("flakyFailure", rerun)

    assert read(f'<testsuite tests="1">{CASE * 9}{case}</testsuite>') == Counts(10, 0, 0, 0)
    text = f'<testsuite tests="1">{CASE * 8}{SKIPPED}{case}</testsuite>'
    assert read(text) == Counts(10, 0, 0, 1)
    assert read(f"<testsuites>{text}</testsuites>") == Counts(10, 0, 0, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f'<testsuite tests="1" failures="1">{FLAKY}{CASE}</testsuite>', Counts(2, 1, 0, 0)),
        (f'<testsuite tests="1">{FLAKY}{FAILED}{ERRED}</testsuite>', Counts(3, 1, 1, 0)),
        (f'<testsuite tests="2" skipped="1">{FLAKY}{CASE}</testsuite>', Counts(2, 0, 0, 1)),
        (f'<testsuite tests="1"><flakyFailure/>{CASE * 2}</testsuite>', Counts(2, 0, 0, 1)),
        (f'<testsuite tests="1"><a><flakyFailure/></a>{CASE * 2}</testsuite>', Counts(2, 0, 0, 1)),
        (
            f'<testsuites><testsuite tests="2" skipped="1">{FLAKY}{CASE}</testsuite></testsuites>',
            Counts(2, 0, 0, 1),
        ),
        (
            (
                f'<testsuites><testsuite tests="5" skipped="4">{FLAKY}{CASE * 2}</testsuite>'
                "</testsuites>"
            ),
            Counts(5, 0, 0, 4),
        ),
        (
            (
                f'<testsuites><testsuite>{FLAKY}</testsuite><testsuite tests="1">{CASE * 2}'
                "</testsuite></testsuites>"
            ),
            Counts(3, 0, 0, 1),
        ),
        (
            (
                f'<testsuites tests="3" skipped="3"><testsuite tests="1">{CASE * 2}{FLAKY}'
                "</testsuite></testsuites>"
            ),
            Counts(3, 0, 0, 3),
        ),
    ],
)
def test_test_that_was_run_again_hides_nothing_else(text: str, expected: Counts) -> None:
    """What failed or is claimed as skipped beside a test that was run again counts as ever."""
    assert read(text) == expected


BREAKDOWN = '<error message="internal error"/>'
BROKEN = f'<testcase classname="pytest" name="internal">{BREAKDOWN}</testcase>'
#: Two reports in one, as whoever merges them writes it.
SEVERAL = (
    f'<testsuites tests="3" errors="1"><testsuite tests="2">{CASE * 2}</testsuite>'
    f'<testsuite tests="1" errors="1">{BROKEN}</testsuite></testsuites>'
)


@pytest.mark.parametrize(
    "text",
    [
        f'<testsuites><testsuite tests="2" errors="1">{CASE}{BROKEN}</testsuite></testsuites>',
        f'<testsuite tests="1" errors="1">{BROKEN}</testsuite>',
        f'<testsuites errors="1"><testsuite errors="1">{BROKEN}</testsuite></testsuites>',
        (
            f'<testsuites><testsuite errors="1"><testsuite errors="1">{BROKEN}</testsuite>'
            "</testsuite></testsuites>"
        ),
        SEVERAL,
        f'<testsuite errors="2">{BROKEN.replace(BREAKDOWN, BREAKDOWN * 2)}</testsuite>',
        f"<testsuite>{CASE}{BROKEN}{TODO}{SKIPPED}</testsuite>",
    ],
)
def test_report_of_pytest_that_broke_down_is_none(text: str) -> None:
    """An internal error of pytest is no failure of a test, and no report of a whole run either."""
    words = "XML: it tells of an internal error of pytest itself, and of no failure$"
    with pytest.raises(ReportUnreadableError, match=words):
        read(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f'<testsuite failures="1" errors="1">{FAILED}{BROKEN}</testsuite>', Counts(1, 1, 0, 0)),
        (f'<testsuite errors="2">{ERRED}{BROKEN}</testsuite>', Counts(1, 0, 1, 0)),
        (f"<testsuite>{FAILED}{ERRED}{BROKEN}</testsuite>", Counts(2, 1, 1, 0)),
        (f'<testsuite errors="2">{CASE}{BROKEN}</testsuite>', Counts(1, 0, 1, 0)),
        (f'<testsuite failures="1">{CASE}{BROKEN}</testsuite>', Counts(1, 1, 0, 0)),
        (
            f'<testsuite tests="2" errors="1">{CASE * 2}{BROKEN}<failure/></testsuite>',
            Counts(2, 1, 0, 1),
        ),
        (
            f'<testsuites errors="2"><testsuite errors="1">{BROKEN}</testsuite></testsuites>',
            Counts(0, 0, 1, 0),
        ),
        (f"<testsuite>{BROKEN.replace('internal error', 'x')}</testsuite>", Counts(1, 0, 1, 0)),
        (f"<testsuite>{BROKEN.replace('internal', 'a', 1)}</testsuite>", Counts(1, 0, 1, 0)),
        (f"<testsuite>{BROKEN.replace('pytest', 'a')}</testsuite>", Counts(1, 0, 1, 0)),
        (f"<testsuite>{BROKEN.replace('error ', 'failure ')}</testsuite>", Counts(1, 1, 0, 0)),
        (f"<testsuite>{BROKEN.replace('/><', '/><error/><')}</testsuite>", Counts(1, 0, 1, 0)),
    ],
)
def test_failure_beside_a_breakdown_of_pytest_fails(text: str, expected: Counts) -> None:
    """What failed before pytest broke down has failed, and only its own words are of pytest."""
    assert read(text) == expected


def test_internal_error_of_pytest_itself_is_found(tmp_path: Path) -> None:
    """Where pytest breaks down at its end, exits 3 and writes a report, nobody's test failed."""
    breakdown = "def pytest_runtestloop(session):\n    raise RuntimeError"
    (tmp_path / "conftest.py").write_text(breakdown)

    with pytest.raises(ReportUnreadableError, match="internal error of pytest itself"):
        pytest_report(tmp_path, "def test_a(): pass", "")


def test_failure_in_a_suite_that_has_none_is_seen() -> None:
    """A case that failed was run, whatever its suite says."""
    text = f'<testsuite tests="0">{FAILED}{CASE}</testsuite>'

    assert read(text) == Counts(2, 1, 0, 1)


@pytest.mark.parametrize("words", ['status="run"', 'result="completed"', 'classname="notrun"', ""])
def test_case_that_says_nothing_of_the_kind_ran(words: str) -> None:
    """Only the words for it, in their own attributes, say that a test did not run."""
    assert read(f'<testsuite><testcase name="a" {words}/></testsuite>').executed == 1


@pytest.mark.parametrize(
    "claim", ["", 'tests="0"', 'tests="1"', 'skipped="1"', 'disabled="1"', 'time="0"', 'errors="0"']
)
def test_one_old_suite_makes_a_report_stale(claim: str) -> None:
    """A report of many suites is as old as its oldest, whatever that one claims to hold."""
    of_now = '<testsuite timestamp="2030-06-01T12:01:00Z">'
    old = f'<testsuite {claim} timestamp="2030-06-01T09:00:00Z">'
    report = f"<testsuites>{of_now}{CASE}</testsuite>{old}{CASE}</testsuite></testsuites>"

    with pytest.raises(ReportStaleError):
        read_junit(io.BytesIO(report.encode()), WINDOW)


def test_bounds_of_a_report_are_known() -> None:
    """A report has at most 16 MiB, 100 levels, 1 MiB in a tag and 64 Ki characters of names."""
    assert (REPORT_MAX_BYTES, REPORT_MAX_DEPTH) == (2**24, 100)
    assert (REPORT_MAX_TAG_BYTES, REPORT_MAX_NAME_CHARACTERS) == (2**20, 2**16)


def test_depth_of_a_report_is_bounded() -> None:
    """A report may nest as deep as the bound, and no deeper."""

    def nested(depth: int) -> str:
        return "<testsuite>" * depth + "</testsuite>" * depth

    assert read(nested(REPORT_MAX_DEPTH)) == Counts(0, 0, 0, 0)
    with pytest.raises(ReportUnreadableError, match=f"nests deeper than {REPORT_MAX_DEPTH} "):
        read(nested(REPORT_MAX_DEPTH + 1))


def test_size_of_a_report_is_bounded() -> None:
    """A report of exactly the largest size is read; of one byte more it is refused."""
    report = f"<testsuite>{CASE}</testsuite>".encode()
    filled = report + b"\n" * (REPORT_MAX_BYTES - len(report))

    assert read(filled) == Counts(1, 0, 0, 0)
    with pytest.raises(ReportUnreadableError, match=f"larger than {REPORT_MAX_BYTES} bytes"):
        read(filled + b"\n")


@pytest.mark.parametrize("form", ['<testcase name="{}"/>', "<testcase name='a'/><!--{}-->"])
def test_what_the_parser_holds_is_bounded(form: str) -> None:
    """A tag or a comment may be long; one beyond the bound is refused before it ends."""

    def report(size: int) -> str:
        return f"<testsuite>{form.format('x' * size)}</testsuite>"

    assert read(report(REPORT_MAX_TAG_BYTES // 2)) == Counts(1, 0, 0, 0)
    # Also where it begins at the end of a piece that is read, and ends in the one after.
    longest, filling = report(REPORT_MAX_TAG_BYTES - 100), "\n" * _BLOCK_BYTES
    assert read(filling[50:] + longest + filling) == Counts(1, 0, 0, 0)
    with pytest.raises(ReportUnreadableError, match=f"larger than {REPORT_MAX_TAG_BYTES} bytes"):
        read(report(2 * REPORT_MAX_TAG_BYTES))


def test_long_tag_at_the_end_of_a_report_is_read() -> None:
    """What a parser puts off until more has come of a long tag counts also where no more comes."""
    failed = f'<testcase name="{"x" * (2 * _BLOCK_BYTES)}"><failure/></testcase>'

    assert read(f"<testsuite>{CASE}{failed}</testsuite>") == Counts(2, 1, 0, 0)


def test_long_output_of_a_test_is_read() -> None:
    """The text in a report may be longer than any tag: it is not kept."""
    output = "x" * (2 * REPORT_MAX_TAG_BYTES)

    report = (
        f"<testsuite><testcase name='a'><system-out>{output}</system-out></testcase></testsuite>"
    )

    assert read(report) == Counts(1, 0, 0, 0)


@pytest.mark.parametrize(
    "form",
    ["<{}/>", '<a {}=""/>', '<a xmlns:{}="u"/>', '<a xmlns:p="{}"/>'],
    ids=["elements", "attributes", "prefixes", "namespaces"],
)
def test_names_in_a_report_are_bounded(form: str) -> None:
    """One name may come as often as it likes; of different ones there is room for so many."""
    size = 1000

    def report(different: int, times: int) -> str:
        names = [f"n{number}".ljust(size, "x") for number in range(different)] * times
        return f"<testsuite>{''.join(map(form.format, names))}</testsuite>"

    room = REPORT_MAX_NAME_CHARACTERS // (2 * size)
    assert read(report(room, 10)) == Counts(0, 0, 0, 0)
    with pytest.raises(ReportUnreadableError, match=f"more than {REPORT_MAX_NAME_CHARACTERS} "):
        read(report(2 * room + 3, 1))
    # Also where the last of them is the one that is too much.
    with pytest.raises(ReportUnreadableError, match=f"more than {REPORT_MAX_NAME_CHARACTERS} "):
        read(f"<testsuite>{form.format('n' * (REPORT_MAX_NAME_CHARACTERS + 1))}</testsuite>")


@pytest.mark.parametrize("too_many", [0, 1])
def test_room_for_names_is_used_to_its_last_character(too_many: int) -> None:
    """Names of exactly so many characters in all are read, and one more is refused."""
    name = "n" * (REPORT_MAX_NAME_CHARACTERS - len("testsuite") + too_many)
    text = f"<testsuite><{name}/></testsuite>"

    if too_many:
        with pytest.raises(ReportUnreadableError, match="more than"):
            read(text)
    else:
        assert read(text) == Counts(0, 0, 0, 0)


class Endless(io.BytesIO):
    """A report that never ends and counts what was taken of it."""

    taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Hand out as much as is asked for; nobody may ask for all of it."""
        assert size is not None
        assert size > 0
        block = b" " * size if self.taken else b"<testsuite>".ljust(size)
        self.taken += size
        return block


def test_endless_report_is_left_alone() -> None:
    """No more of a report is read than the bound and one block."""
    report = Endless()

    with pytest.raises(ReportUnreadableError):
        read_junit(report)

    assert REPORT_MAX_BYTES < report.taken <= REPORT_MAX_BYTES + 64 * 1024


@pytest.mark.parametrize(
    "element",
    [
        "<testcase name='a'><failure>x</failure></testcase>",
        "<other/>text",
        "<testsuite><o/></testsuite>",
        "<testcase classname='test_a' name='test_{}'/>",
    ],
    ids=["test cases", "unknown elements", "suites", "tests of pytest"],
)
def test_memory_does_not_grow_with_a_report(element: str) -> None:
    """Reading fifty times as many elements takes no more memory."""

    def peak(elements: int) -> int:
        inner = "".join(map(element.format, range(elements)))
        report = io.BytesIO(f'<testsuites name="pytest tests">{inner}</testsuites>'.encode())
        tracemalloc.start()
        read_junit(report)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    assert peak(50_000) < peak(1_000) + 256 * 1024


words = st.sampled_from(
    ["testsuites", "testsuite", "testcase", "failure", "error", "skipped", "other"]
)
claims = st.dictionaries(
    st.sampled_from(["tests", "failures", "errors", "skipped"]),
    st.sampled_from(["", "0", "1", "7"]),
)


@st.composite
def elements(draw: st.DrawFn, depth: int = 4) -> str:
    """Return an element with whatever children, well formed."""
    name, attributes = draw(words), draw(claims)
    inner = draw(st.lists(elements(depth - 1), max_size=3)) if depth else []
    said = "".join(f' {key}="{value}"' for key, value in attributes.items())
    return f"<{name}{said}>{''.join(inner)}</{name}>"


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return a report of which a piece was replaced by any bytes."""
    text = draw(elements()).encode()
    start, end = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    return text[:start] + draw(st.binary(max_size=8)) + text[end:]


@unhurried
@given(st.binary() | elements().map(str.encode) | damaged())
@example(b"<testsuite><testcase name='a'/></testsuite>")
def test_any_bytes_are_counts_or_a_refusal(report: bytes) -> None:
    """Whatever a report holds, there are sensible counts or a refusal by name."""
    try:
        counts = read(report)
    except ReportUnreadableError:
        return

    assert min(counts.tests, counts.failures, counts.errors, counts.skipped) >= 0
    assert 0 <= counts.executed == counts.tests - counts.skipped <= counts.tests


@unhurried
@given(elements())
def test_no_failure_goes_unseen(text: str) -> None:
    """Where a report that is read shows a failed test case, or claims one, it is counted."""
    try:
        counts = read(text)
    except ReportUnreadableError:
        return

    assert (counts.failures > 0) or "<testcase><failure" not in text
    assert (counts.errors > 0) or "<testcase><error" not in text
    assert (counts.tests > 0) is ("<testcase" in text)


def test_no_evidence_counts_nothing() -> None:
    """Where no report is asked for there are no counts."""
    assert NO_EVIDENCE_REQUIRED.state is EvidenceState.NOT_REQUIRED
    assert NO_EVIDENCE_REQUIRED.counts is None


def test_words_for_what_became_of_a_report_stay() -> None:
    """Rows hold these words for ever, so none is ever spelt in another way."""
    words = ["not_required", "missing", "stale", "late", "unreadable", "read"]

    assert [state.value for state in EvidenceState] == words

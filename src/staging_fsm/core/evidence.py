"""Evidence that tests ran: JUnit XML in, counts out.

An exit code does not prove that anything ran. A report does, if it is of this
run, can be read, and counts. It is hostile text: parsed by defusedxml, without
document types and entities, as a stream, and within bounds.
"""

import hashlib
import re
from datetime import UTC, datetime, timedelta, tzinfo
from enum import StrEnum, unique
from typing import BinaryIO, Final

import attrs

from staging_fsm.core.errors import ReportStaleError, ReportUnreadableError

REPORT_MAX_BYTES: Final = 16 * 1024 * 1024
REPORT_MAX_DEPTH: Final = 100
REPORT_MAX_TAG_BYTES: Final = 1024 * 1024
#: How many characters the different names of elements, attributes and namespaces may have.
REPORT_MAX_NAME_CHARACTERS: Final = 64 * 1024
#: Stamps are cut to seconds, and a suite may ask another machine for the time.
STAMP_SLACK: Final = timedelta(seconds=60)
#: The zero of some clock: whoever writes it has no time to tell.
NO_TIME_YEAR: Final = 1970
_TIMED_SINCE: Final = datetime(NO_TIME_YEAR + 1, 1, 1, tzinfo=UTC).timestamp()
_ROOTS: Final = frozenset({"testsuites", "testsuite"})
_TELLING: Final = frozenset({"failure", "error", "skipped"})
#: What GoogleTest and CTest write in the place of <skipped>, for a test that is disabled
#: (https://google.github.io/googletest/advanced.html#generating-an-xml-report).
_NOT_RUN: Final = {
    "status": frozenset({"notrun", "not_run", "disabled", "skipped", "ignored"}),
    "result": frozenset({"suppressed", "skipped"}),
}
#: What GoogleTest, doctest and Catch2 write of a test case that they ran, as its status. The
#: latter two claim how many assertions were made as `tests`, which may be fewer than their test
#: cases; Boost.Test, which writes how many were made of each, claims those that passed alone.
_RAN: Final = "run"
_ASSERTIONS: Final = "assertions"
#: What Node's test runner writes in a <skipped> of a test that is yet to be made to pass: it
#: may fail, and the run passes (https://nodejs.org/api/test.html).
_TODO: Final = "todo"
#: What Node's test runner calls every test of its own, and what it takes for a test file.
_NODE_CLASS: Final = "test"
_NODE_FILE: Final = re.compile(r".*\.[cm]?[jt]sx?", re.DOTALL)
#: What Ginkgo writes, as a passed case, of what it does before and after all tests
#: (https://onsi.github.io/ginkgo/#suite-setup-and-cleanup-beforesuite-and-aftersuite).
_SUITE_NODE: Final = re.compile(
    r"\[((Synchronized|Report)?(Before|After)Suite|DeferCleanup \(Suite\))\]( .*)?", re.DOTALL
)
_NO_TEST: Final = "no test"
#: What pytest writes where it broke down itself, in the middle of a run or at its end, and
#: exits 3 (https://docs.pytest.org/en/stable/reference/exit-codes.html).
_BREAKDOWN: Final = {"classname": "pytest", "name": "internal"}
_BREAKDOWN_MESSAGE: Final = "internal error"
_MAY_BREAK: Final = "may break"
_BROKEN: Final = "broken"
#: What pytest calls its suite, and what holds it: of one that is named otherwise the latter.
_OF_PYTEST: Final = frozenset({"pytest", "pytest tests"})
_AGAIN: Final = "again"
#: Said of a test of pytest that failed or was skipped, beside what names it.
_TOLD: Final = "told"
_SUBTESTS: Final = (
    "every test is listed as skipped, and pytest claims that {passed} passed, subtests maybe:"
    " one that is skipped marks its whole test as skipped"
)
#: What PHPUnit 9 writes, beside a <warning>, in the place of the tests of a class that has none.
_PLACEHOLDER: Final = "Warning"
_PLACEHOLDER_CLASSES: Final = frozenset(
    {None, r"PHPUnit\Framework\WarningTestCase", "PHPUnit.Framework.WarningTestCase"}
)
#: What PHPUnit 9 writes as an <error> of a test that did not fail and is no good test: it exits
#: 0, unless failOnRisky is set (https://docs.phpunit.de/en/9.6/risky-tests.html).
_RISKY: Final = frozenset(
    rf"PHPUnit\Framework\{name}"
    for name in (
        "RiskyTestError",
        "OutputError",
        "CoveredCodeNotExecutedException",
        "MissingCoversAnnotationException",
        "UnintentionallyCoveredCodeError",
    )
)
_NO_ERROR: Final = "no error"
#: What it says in one of these of a test that it did not let run to its end.
_TIMED_OUT: Final = "Execution aborted after "
#: What Surefire writes in a test case that it ran more than once. What a suite claims then may
#: be of the last round alone
#: (https://maven.apache.org/surefire/maven-surefire-plugin/examples/rerun-failing-tests.html).
_RERUNS: Final = frozenset({"flakyFailure", "flakyError", "rerunFailure", "rerunError"})
#: What the suite of TestCafe's xunit reporter is called. It claims its skipped tests beside the
#: others, not among them, and lists them all.
_OF_TESTCAFE: Final = "TestCafe Tests: "
#: A claim of more digits is no number of tests.
_CLAIM_MAX_DIGITS: Final = 18
_BLOCK_BYTES: Final = 64 * 1024
_SEEN_BYTES: Final = 512 * 1024
#: How many bits stand for each that was seen, and of how many bytes of its digest each is made.
_SEEN_MARKS: Final = 8
_MARK_BYTES: Final = 4


@unique
class EvidenceState(StrEnum):
    """What became of the test report."""

    #: No report was asked for: policy "exit-code".
    NOT_REQUIRED = "not_required"
    MISSING = "missing"
    #: It is there, but it is not of this run.
    STALE = "stale"
    #: It is there, but it was written after the suite was told to stop.
    LATE = "late"
    UNREADABLE = "unreadable"
    READ = "read"


@attrs.frozen
class Counts:
    """What a report counts. `executed` is `tests` less `skipped`."""

    tests: int
    failures: int
    errors: int
    skipped: int
    #: Whether its own time stamps say that it is of this run: False where there are none, None
    #: where one cannot be read. Of when it was made nothing is known in either case.
    dated: bool | None = False

    @property
    def executed(self) -> int:
        """Return how many tests really ran."""
        return self.tests - self.skipped


@attrs.frozen
class Evidence:
    """What became of the report, with its counts if it was read."""

    state: EvidenceState
    counts: Counts | None = None


NO_EVIDENCE_REQUIRED: Final = Evidence(EvidenceState.NOT_REQUIRED)


@attrs.frozen
class RunWindow:
    """When a run was under way, by the wall clock."""

    begin: datetime
    end: datetime
    #: The zone of a time stamp that names none and is not in UTC.
    local_zone: tzinfo = UTC

    def __str__(self) -> str:
        """Return its first and its last moment in words."""
        begin, end = (time.isoformat(timespec="seconds") for time in (self.begin, self.end))
        return f"from {begin} to {end}"

    def holds(self, stamp: datetime) -> bool:
        """Say whether `stamp` is of this run, in any zone that it may be meant in."""
        zones = (UTC, self.local_zone) if stamp.tzinfo is None else (stamp.tzinfo,)
        return any(
            self.begin - STAMP_SLACK <= stamp.replace(tzinfo=zone) <= self.end + STAMP_SLACK
            for zone in zones
        )

    def holds_file_time(self, seconds: float) -> bool:
        """Say whether a file that was written so many seconds after the epoch is of this run.

        One that is as old as NO_TIME_YEAR, or older, carries no time.
        """
        slack = STAMP_SLACK.total_seconds()
        earliest, latest = self.begin.timestamp() - slack, self.end.timestamp() + slack
        return seconds < _TIMED_SINCE or earliest <= seconds <= latest


def read_junit(stream: BinaryIO, window: RunWindow | None = None) -> Counts:
    """Return the counts of the JUnit XML report in `stream`.

    Test cases are counted one by one; the totals that a suite claims in its
    attributes only ever add failures, errors, and tests that were skipped, never one
    that was executed. Memory stays flat whatever the report holds: nothing is kept but
    one tag, the different names, and a table of one size for the test cases that pytest
    may list again.
    Raises ReportUnreadableError for anything that is not a complete, harmless
    report of at most REPORT_MAX_BYTES, and ReportStaleError if a suite in it says
    that it ran outside `window`: a build cache gives old reports a new file time.
    """
    return read_noted(stream, window)[0]


def read_noted(stream: BinaryIO, window: RunWindow | None = None) -> tuple[Counts, str | None]:
    """Return what `read_junit` does, and in words what may explain it, if anything.

    Raises as `read_junit`.
    """
    try:
        return _count(stream, window)
    except (SyntaxError, ValueError, LookupError) as error:
        # What is no XML is a SyntaxError to the parser, and what is harmful a ValueError.
        message = f"the report is no readable JUnit XML: {error}"
        raise ReportUnreadableError(message) from error


@attrs.define
class _Seen:
    """What was seen, in a table that never grows (a Bloom filter).

    What was seen is always known again. One of a great many that was not may be taken for
    one that was: of the first 100,000 none, of 200,000 some three.
    """

    table: bytearray = attrs.field(factory=lambda: bytearray(_SEEN_BYTES))

    def add(self, *words: str) -> bool:
        """Add what these words name; return whether it was seen before."""
        text = "\0".join(words).encode()
        digest = hashlib.blake2b(text, digest_size=_SEEN_MARKS * _MARK_BYTES).digest()
        seen = True
        for start in range(0, len(digest), _MARK_BYTES):
            mark = int.from_bytes(digest[start : start + _MARK_BYTES]) % (_SEEN_BYTES * 8)
            place, bit = divmod(mark, 8)
            seen = seen and bool(self.table[place] & 1 << bit)
            self.table[place] |= 1 << bit
        return seen


@attrs.define
class _OpenSuite:
    """What a suite claims of its tests, and what it lists itself, not within another one."""

    #: None where it does not say how many tests it ran, or tried to.
    tests: int | None
    #: How many of these it left out.
    left_out: int
    failures: int
    errors: int
    #: How many of the errors are no test's, but of a runner that broke down.
    broken: int = 0
    #: How many of the tests are none, but what was done before and after them.
    around: int = 0
    #: How many of the errors are none, but what PHPUnit calls risky.
    risky: int = 0
    #: Those of its own that failed and were yet to be done, a suite of nothing worse included.
    forgiven: int = 0
    number: int = 0
    of_pytest: bool = False
    #: Whether any suite within it is.
    holds_pytest: bool = False
    #: Whether any of its own was run more than once, by what it says itself.
    reruns: bool = False
    listed: int = 0
    #: Those of the listed that ran and passed, and that did not run, by what they say themselves.
    said_run: int = 0
    said_skipped: int = 0
    #: Those of the listed that did not run, or failed, by what they say themselves.
    telling: int = 0
    #: How many tests, and how many skipped ones, the report had told of when it was opened.
    told_before: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, attributes: dict[str, str]) -> "_OpenSuite":
        tests, *left_out = (_number(attributes, name) for name in ("tests", "skipped", "disabled"))
        failures, errors = (_claimed(attributes, name) for name in ("failures", "errors"))
        beside = attributes.get("name", "").startswith(_OF_TESTCAFE)
        of_tests = 0 if beside else sum(number or 0 for number in left_out)
        return cls(tests, of_tests, failures, errors)

    @property
    def ran(self) -> int:
        """Return how many tests it ran by what it claims, or what more of its own say."""
        claimed = (self.tests or 0) - self.left_out
        said = self.said_run - max(0, self.left_out - self.said_skipped)
        return max(0, max(claimed, said) - self.broken - self.around)

    def listed_only(self) -> int:
        """Return how many tests are listed that did not run, by what the suite claims.

        It ran no more than it claims, and nothing of what it left out, also where no test
        case says so: `pytest --setup-plan` lists every test and claims those it skipped.
        """
        if self.tests is None or (self.reruns and self.tests < self.listed):
            return 0
        return max(0, self.listed - self.telling - self.ran)

    def unlisted(self, told: tuple[int, int]) -> int:
        """Return how many tests it claims to have left out and nothing within it tells of.

        `told` is as `told_before`, at its end. mocha-junit-reporter lists no pending test
        unless it is asked to. pytest lists whatever it skips; what it claims beyond that are
        subtests, and rounds of one test. What Catch2 claims are assertions.
        """
        if self.tests is None or self.of_pytest or self.holds_pytest or self.said_run:
            return 0
        tests, skipped = (now - then for now, then in zip(told, self.told_before, strict=True))
        return max(0, min(self.left_out - skipped, self.tests - tests))


@attrs.define
class _Tally:
    """What a parser meets, counted at once and then forgotten. Its methods are the parser's."""

    window: RunWindow | None
    tests: int = 0
    failures: int = 0
    errors: int = 0
    skipped: int = 0
    #: Skipped tests that no test case tells of.
    unlisted: int = 0
    claimed_failures: int = 0
    claimed_errors: int = 0
    #: By what suites of pytest claim.
    claimed_passed: int = 0
    #: The elements that are open, each with the telling children it had so far.
    open_elements: list[tuple[str, set[str]]] = attrs.field(factory=list)
    open_suites: list[_OpenSuite] = attrs.field(factory=list)
    dated: bool | None = False
    broken: bool = False
    suites: int = 0
    seen: _Seen = attrs.field(factory=_Seen)
    #: What names the test case that was begun last, within a suite of pytest.
    case: tuple[str, ...] = ()
    #: The end of what was said so far in what may be no error.
    said: str = ""
    names: set[str] = attrs.field(factory=set)
    names_left: int = REPORT_MAX_NAME_CHARACTERS

    def start_ns(self, prefix: str, uri: str) -> None:
        self._learn(prefix, uri)

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        name = _local_name(tag)
        if not self.open_elements and name not in _ROOTS:
            message = f"its root is <{name}>"
            raise ValueError(message)
        self._learn(tag, *attributes)
        if name == "testcase" and "name" not in attributes:
            # pytest writes it of a test in which the suite was ended, with exit code 0 maybe.
            message = "it has a test case without a name, as of a suite that was broken off"
            raise ValueError(message)
        self.open_elements.append((name, self._said_at_once(name, attributes)))
        if len(self.open_elements) > REPORT_MAX_DEPTH:
            message = f"it nests deeper than {REPORT_MAX_DEPTH} elements"
            raise ValueError(message)
        if name in _ROOTS:
            self._check_time(attributes.get("timestamp", ""))
            self._open_suite(attributes)

    def _said_at_once(self, name: str, attributes: dict[str, str]) -> set[str]:
        """Return what an element says by its attributes, within the open ones."""
        parent, inside = self.open_elements[-1] if self.open_elements else ("", set[str]())
        if name == "testcase":
            not_run = _is_not_run(attributes) or _is_file_of_node(attributes, parent)
            may_break = _BREAKDOWN.items() <= attributes.items()
            told = {
                "skipped": not_run,
                _MAY_BREAK: may_break,
                _AGAIN: self._is_again(attributes),
                _NO_TEST: _is_suite_node(attributes),
                _RAN: attributes.get("status") == _RAN or _number(attributes, _ASSERTIONS),
                _PLACEHOLDER: _is_placeholder(attributes),
            }
            return {word for word, holds in told.items() if holds}
        if name == "skipped" and attributes.get("type") == _TODO:
            return {_TODO}
        if name == "error" and parent == "testcase" and attributes.get("type") in _RISKY:
            self.said = ""
            return set() if _TIMED_OUT in attributes.get("message", "") else {_NO_ERROR}
        # PHPUnit writes no element into one: what has some was written by others.
        inside.discard(_NO_ERROR)
        is_breakdown = name == "error" and attributes.get("message") == _BREAKDOWN_MESSAGE
        return {_BROKEN} if is_breakdown and _MAY_BREAK in inside else set()

    def _open_suite(self, attributes: dict[str, str]) -> None:
        suite = _OpenSuite.of(attributes)
        self.suites += 1
        suite.number = self.suites
        suite.told_before = self._told()
        within = bool(self.open_suites) and self.open_suites[-1].of_pytest
        suite.of_pytest = within or attributes.get("name") in _OF_PYTEST
        self.open_suites.append(suite)

    def _told(self) -> tuple[int, int]:
        return self.tests + self.unlisted, self.skipped + self.unlisted

    def _is_again(self, attributes: dict[str, str]) -> bool:
        """Say whether pytest lists a test again: each time that it was run and was to be rerun."""
        suite = self.open_suites[-1]
        self.case = (str(suite.number), attributes.get("classname", ""), attributes["name"])
        return suite.of_pytest and self.seen.add(*self.case)

    def data(self, text: str) -> None:
        inside = self.open_elements[-1][1]
        if _NO_ERROR in inside:
            # The parser hands it over in pieces.
            said = self.said + text
            self.said = said[1 - len(_TIMED_OUT) :]
            if _TIMED_OUT in said:
                inside.remove(_NO_ERROR)

    def end(self, _tag: str) -> None:
        name, inside = self.open_elements.pop()
        if name == "testcase":
            self._end_case(inside)
        if name == "testcase" or name in _ROOTS:
            # An error may stand on a suite itself, outside any test case: a failed collection.
            self.failures += "failure" in inside
            self.errors += "error" in inside
        if name in _ROOTS:
            self._end_suite(self.open_suites.pop())
        if name in _RERUNS and self.open_elements[-1][0] == "testcase":
            self.open_suites[-1].reruns = True
        if name == "warning" and _PLACEHOLDER in self.open_elements[-1][1]:
            self.open_elements[-1][1].add("skipped")
        if _BROKEN in inside and name == "error":
            self.broken = True
            self.open_suites[-1].broken += 1
            self.open_elements[-1][1].add(_BROKEN)
        elif _NO_ERROR in inside:
            self.open_suites[-1].risky += 1
        elif self.open_elements and name in _TELLING:
            self.open_elements[-1][1].update({name}, inside & {_TODO} if name == "skipped" else ())

    def _end_case(self, inside: set[str]) -> None:
        suite = self.open_suites[-1]
        if {_TODO, "failure"} <= inside:
            # One that is yet to be done was not executed, and may fail.
            inside.remove("failure")
            suite.forgiven += 1
        failed = bool(inside & {"failure", "error"})
        if _NO_TEST in inside and not failed and "skipped" not in inside:
            suite.around += 1
            return
        if _BROKEN in inside and not failed:
            # It is no further test.
            return
        not_run = "skipped" in inside and not failed
        is_new = _AGAIN not in inside
        self.tests += is_new
        suite.listed += is_new
        suite.said_run += is_new and _RAN in inside and not (not_run or failed)
        tells = not_run or (failed and is_new)
        if tells and suite.of_pytest:
            # What is listed again may be skipped then, and that was one test all the same.
            tells = not self.seen.add(_TOLD, *self.case)
        self.skipped += not_run and tells
        suite.said_skipped += not_run and tells
        suite.telling += tells

    def _end_suite(self, suite: _OpenSuite) -> None:
        self.skipped += suite.listed_only()
        if not self.open_suites and suite.tests is not None and suite.tests >= self.tests:
            # What is said of the whole report no suite in it need say.
            self.skipped = max(self.skipped, self.tests - suite.ran)
        self.unlisted += suite.unlisted(self._told())
        self.claimed_errors = max(self.claimed_errors, suite.errors - suite.broken - suite.risky)
        failures = max(0, suite.failures - suite.forgiven)
        self.claimed_failures = max(self.claimed_failures, failures)
        self.claimed_passed += suite.ran if suite.of_pytest else 0
        if self.open_suites:
            self.open_suites[-1].broken += suite.broken
            self.open_suites[-1].around += suite.around
            self.open_suites[-1].holds_pytest |= suite.of_pytest or suite.holds_pytest
            self.open_suites[-1].risky += suite.risky
            # To the one that holds it, a suite in which one failed has failed, once.
            self.open_suites[-1].forgiven += suite.failures > 0 and failures == 0

    def _check_time(self, text: str) -> None:
        if self.window is None or not text.strip():
            return
        try:
            stamp = datetime.fromisoformat(text.strip())
        except ValueError:
            # No more than none, and what others of the report say is not said of this part.
            self.dated = None
            return
        if stamp.year <= NO_TIME_YEAR:
            return
        if not self.window.holds(stamp):
            zone = "" if stamp.tzinfo else ", by UTC or by the clock here, as it names no zone"
            message = (
                f"a suite in the report ran at {text.strip()}, and not in this run,"
                f" {self.window}{zone}"
            )
            raise ReportStaleError(message)
        if self.dated is not None:
            self.dated = True

    def _learn(self, *names: str) -> None:
        # The parser never forgets a name, so a report of nothing but names would fill the memory.
        new = set(names) - self.names
        self.names |= new
        self.names_left -= sum(map(len, new))
        if self.names_left < 0:
            message = f"its names have more than {REPORT_MAX_NAME_CHARACTERS} characters in all"
            raise ValueError(message)

    def counts(self) -> Counts:
        failures = max(self.failures, self.claimed_failures)
        errors = max(self.errors, self.claimed_errors)
        if self.broken and failures + errors == 0:
            # Whatever the exit code says, nobody knows what else would have been seen.
            message = "it tells of an internal error of pytest itself, and of no failure"
            raise ValueError(message)
        # One that is listed again, and was no test at first, may be skipped.
        skipped = min(self.skipped, self.tests) + self.unlisted
        return Counts(self.tests + self.unlisted, failures, errors, skipped, self.dated)

    def note(self, counts: Counts) -> str | None:
        """Say why nothing may have been executed by a report in which pytest claims passed tests.

        None in any other.
        """
        nothing = counts.tests > 0 and counts.executed + counts.failures + counts.errors == 0
        passed = self.claimed_passed
        return _SUBTESTS.format(passed=passed) if nothing and passed else None


def _count(stream: BinaryIO, window: RunWindow | None) -> tuple[Counts, str | None]:
    from defusedxml.common import DTDForbidden  # noqa: PLC0415  # only where a report is read
    from defusedxml.ElementTree import XMLParser  # noqa: PLC0415  # likewise

    tally = _Tally(window)
    parser = XMLParser(target=tally, forbid_dtd=True)
    size = 0
    while block := stream.read(_BLOCK_BYTES):
        size += len(block)
        if size > REPORT_MAX_BYTES:
            message = f"it is larger than {REPORT_MAX_BYTES} bytes"
            raise ValueError(message)
        try:
            parser.feed(block)
        except DTDForbidden as error:
            message = "it has a document type"
            raise ValueError(message) from error
        # What the parser has not told of yet, it holds: a tag or a comment without an end.
        if size - parser.parser.CurrentByteIndex > REPORT_MAX_TAG_BYTES:
            message = f"a tag or comment in it is larger than {REPORT_MAX_TAG_BYTES} bytes"
            raise ValueError(message)
    parser.close()
    counts = tally.counts()
    return counts, tally.note(counts)


def _is_not_run(attributes: dict[str, str]) -> bool:
    said = {name: attributes.get(name, "").strip().lower() for name in _NOT_RUN}
    return any(said[name] in words for name, words in _NOT_RUN.items())


def _is_file_of_node(attributes: dict[str, str], parent: str) -> bool:
    """Say whether a test case is what Node's runner writes of a file that reported no test.

    Such a file holds none, or it was ended before it had told of any, with exit code 0. Node
    20 writes its whole path, Node 22 the one below the working directory, and Node 24 that
    one beside `file`, the file in which a test stands.
    """
    name, file = attributes.get("name", ""), attributes.get("file")
    is_file = attributes.get("classname") == _NODE_CLASS and _NODE_FILE.fullmatch(name)
    if parent != "testsuites" or not is_file:
        return False
    if name.startswith("/"):
        return True
    if file is not None:
        return file.endswith("/" + re.sub(r"^(\.\.?/)+", "", name))
    # Without `file` only the looks of a name tell it from a test's own.
    return not re.search(r"\s", name)


def _is_suite_node(attributes: dict[str, str]) -> bool:
    """Say whether a test case is what Ginkgo writes of a setup or a cleanup that passed."""
    is_node = _SUITE_NODE.fullmatch(attributes.get("name", ""))
    return attributes.get("status") == "passed" and is_node is not None


def _is_placeholder(attributes: dict[str, str]) -> bool:
    """Say whether a test case may be what PHPUnit writes of a class without a test."""
    classes = {attributes.get("class"), attributes.get("classname")}
    return attributes.get("name") == _PLACEHOLDER and classes <= _PLACEHOLDER_CLASSES


def _local_name(tag: str) -> str:
    return tag.rpartition("}")[2]


def _number(attributes: dict[str, str], attribute: str) -> int | None:
    text = attributes.get(attribute, "").strip()
    is_number = text.isdecimal() and len(text) <= _CLAIM_MAX_DIGITS
    return int(text) if is_number else None


def _claimed(attributes: dict[str, str], attribute: str) -> int:
    value = attributes.get(attribute)
    if value is None or not value.strip():
        return 0
    try:
        count = int(value)
    except ValueError as error:
        message = f"it claims what is no number of {attribute}: '{value}'"
        raise ValueError(message) from error
    if count < 0:
        message = f"{attribute}='{value}' is negative"
        raise ValueError(message)
    return count

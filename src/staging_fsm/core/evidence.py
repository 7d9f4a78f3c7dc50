"""Evidence that tests ran: JUnit XML in, counts out.

An exit code does not prove that anything ran. A report does, if it is of this
run, can be read, and counts. It is hostile text: parsed by defusedxml, without
document types and entities, as a stream, and within bounds.
"""

from enum import StrEnum, unique
from typing import BinaryIO, Final
from xml.etree.ElementTree import Element, ParseError

import attrs
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import iterparse

from staging_fsm.core.errors import ReportUnreadableError

REPORT_MAX_BYTES: Final = 16 * 1024 * 1024
REPORT_MAX_DEPTH: Final = 100
_ROOTS: Final = frozenset({"testsuites", "testsuite"})
_TELLING: Final = frozenset({"failure", "error", "skipped"})
_BLOCK_BYTES: Final = 64 * 1024


@unique
class EvidenceState(StrEnum):
    """What became of the test report."""

    #: No report was asked for: policy "exit-code".
    NOT_REQUIRED = "not_required"
    MISSING = "missing"
    #: It is there, but it is not of this run.
    STALE = "stale"
    UNREADABLE = "unreadable"
    READ = "read"


@attrs.frozen
class Counts:
    """What a report counts. `executed` is `tests` less `skipped`."""

    tests: int
    failures: int
    errors: int
    skipped: int

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


def read_junit(stream: BinaryIO) -> Counts:
    """Return the counts of the JUnit XML report in `stream`.

    Test cases are counted one by one; the totals that a suite claims in its
    attributes only ever add failures and errors, never tests. Memory stays flat
    whatever the report holds. Raises ReportUnreadableError for anything that is
    not a complete, harmless report of at most REPORT_MAX_BYTES.
    """
    try:
        return _count(_Bounded(stream))
    except (DefusedXmlException, ParseError, ValueError, LookupError) as error:
        message = f"the report is no readable JUnit XML: {error}"
        raise ReportUnreadableError(message) from error


class _Bounded:
    """A reader that refuses to hand out more than REPORT_MAX_BYTES."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._left = stream, REPORT_MAX_BYTES

    def read(self, size: int = -1) -> bytes:
        block = self._stream.read(min(size, _BLOCK_BYTES) if size > 0 else _BLOCK_BYTES)
        self._left -= len(block)
        if self._left < 0:
            message = f"it is larger than {REPORT_MAX_BYTES} bytes"
            raise ValueError(message)
        return block


@attrs.define
class _Tally:
    tests: int = 0
    failures: int = 0
    errors: int = 0
    skipped: int = 0
    claimed_failures: int = 0
    claimed_errors: int = 0

    def add(self, element: Element, inside: set[str]) -> None:
        """Count a finished test case or suite whose direct children are named `inside`."""
        name = _local_name(element)
        if name == "testcase":
            self.tests += 1
            self.skipped += "skipped" in inside and not inside & {"failure", "error"}
        elif name in _ROOTS:
            self.claimed_failures = max(self.claimed_failures, _claimed(element, "failures"))
            self.claimed_errors = max(self.claimed_errors, _claimed(element, "errors"))
        else:
            return
        # An error may stand on a suite itself, outside any test case: a failed collection.
        self.failures += "failure" in inside
        self.errors += "error" in inside

    def counts(self) -> Counts:
        return Counts(
            self.tests,
            max(self.failures, self.claimed_failures),
            max(self.errors, self.claimed_errors),
            self.skipped,
        )


def _count(source: _Bounded) -> Counts:
    tally = _Tally()
    open_elements: list[tuple[Element, set[str]]] = []
    for moment, element in iterparse(source, events=("start", "end"), forbid_dtd=True):
        if moment == "start":
            if not open_elements and _local_name(element) not in _ROOTS:
                message = f"its root is <{_local_name(element)}>"
                raise ValueError(message)
            open_elements.append((element, set()))
            if len(open_elements) > REPORT_MAX_DEPTH:
                message = f"it nests deeper than {REPORT_MAX_DEPTH} elements"
                raise ValueError(message)
            continue
        tally.add(*open_elements.pop())
        if open_elements:
            parent, names = open_elements[-1]
            if _local_name(element) in _TELLING:
                names.add(_local_name(element))
            # Counted, so forgotten: a report of millions of elements must not be kept.
            parent.remove(element)
    return tally.counts()


def _local_name(element: Element) -> str:
    return element.tag.rpartition("}")[2]


def _claimed(element: Element, attribute: str) -> int:
    value = element.get(attribute)
    if value is None or not value.strip():
        return 0
    count = int(value)
    if count < 0:
        message = f"{attribute}={value!r} is negative"
        raise ValueError(message)
    return count

"""Report: any bytes are sensible counts or a refusal, and small bytes never fill the memory."""

import io
import tracemalloc

from staging_fsm.core.errors import ReportUnreadableError
from staging_fsm.core.evidence import read_junit

WORDS = (
    *(
        "<testsuites>",
        "</testsuites>",
        "<testsuite>",
        "</testsuite>",
        "<testcase name='a'/>",
        "<testcase name='a'>",
    ),
    *("<testsuites name='pytest tests'>", "<testcase classname='a' name='b'/>", "<flakyError/>"),
    *("<testcase classname='pytest' name='internal'><error message='internal error'/>",),
    *("</testcase>", "<failure/>", "<error/>", "<skipped/>", ' failures="1"', ' errors="-1"'),
    *('<?xml version="1.0" encoding="utf-16"?>', "<!DOCTYPE a [", "<!ENTITY", "]>", "&a;", "&#9;"),
    *(' xmlns="a"', ' xmlns:a="b"', "a:", "<![CDATA[", "]]>", "<!--", "-->", "<?a b?>"),
)
#: An honest report stays far below; an entity that unfolds does not.
_MEMORY_FLOOR = 1024 * 1024
_MEMORY_GROWTH = 64


def fuzz(data: bytes) -> bool:
    """Return whether `data` is a report."""
    tracemalloc.start()
    try:
        counts = read_junit(io.BytesIO(data))
    except ReportUnreadableError:
        return False
    finally:
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert highest <= _MEMORY_FLOOR + _MEMORY_GROWTH * len(data)
    assert min(counts.tests, counts.failures, counts.errors, counts.skipped) >= 0
    assert 0 <= counts.executed <= counts.tests
    return True

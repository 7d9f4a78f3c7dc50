"""Times: one form for every moment, in which the order of texts is the order of time."""

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from staging_fsm.core.times import format_time, parse_time

NOON = datetime(2030, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
#: Moments of anybody's clock, none of which is in a year that UTC has not.
moments = st.datetimes(
    datetime(1, 1, 3),  # noqa: DTZ001  # they are given a zone of their own
    datetime(9999, 12, 29),  # noqa: DTZ001  # likewise
    timezones=st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)


@given(moments)
def test_moment_comes_back_as_it_was_written(moment: datetime) -> None:
    """A moment that was written is read as that very one, to the microsecond."""
    assert parse_time(format_time(moment)) == moment


@given(moments, moments)
def test_order_of_texts_is_the_order_of_time(one: datetime, other: datetime) -> None:
    """Of two moments the earlier one is the lesser text, whatever the zones they are given in."""
    assert (format_time(one) < format_time(other)) == (one < other)


def test_moment_of_any_zone_is_written_in_utc() -> None:
    """A moment is written as ISO 8601 in UTC with microseconds and a Z."""
    elsewhere = NOON.astimezone(timezone(timedelta(hours=5, minutes=45)))

    assert format_time(elsewhere) == "2030-01-31T12:00:00.123456Z"
    assert format_time(NOON.replace(microsecond=0)) == "2030-01-31T12:00:00.000000Z"


def test_moment_is_read_in_utc_wherever_that_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A moment that was written is read in UTC, in whatever zone the reader is."""
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    try:
        found = parse_time(format_time(NOON))
    finally:
        monkeypatch.undo()
        time.tzset()

    assert found.isoformat() == "2030-01-31T12:00:00.123456+00:00"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2030-01-31T12:00:00Z",
        "2030-01-31T12:00:00.123Z",
        "2030-01-31T12:00:00.1234567Z",
        "2030-01-31T12:00:00.123456",
        "2030-01-31T12:00:00.123456z",
        "2030-01-31T12:00:00.123456+00:00",
        "2030-01-31T14:00:00.123456+02:00",
        "2030-01-31 12:00:00.123456Z",
        "2030-01-31T12:00:00.123456Z\n",
        "2030-01-31T24:00:00.123456Z",
        "2030-02-30T12:00:00.123456Z",
        "٢030-01-31T12:00:00.123456Z",
    ],
)
def test_any_other_form_is_refused(text: str) -> None:
    """What was not written in the one form is refused, also where it names a moment all the same.

    Its text would not sort by its time.
    """
    with pytest.raises(ValueError, match=r"is no time like 1970-01-01T00:00:00\.000000Z|day"):
        parse_time(text)

"""A host's due times: read whatever they are, and written so that the host's comparison holds.

A moment that the column cannot hold exactly is written too late by less than a
second, never too early.
"""

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final, Protocol

import attrs
import sqlalchemy as sa

from staging_fsm.core.times import format_time

#: How SQLite's own functions, SQLAlchemy and Django write a date and time as text.
SQLITE_FORMAT: Final = "%Y-%m-%d %H:%M:%S.%f"
#: A number of seconds beyond the year 5000 is one of milliseconds.
_SECONDS_MAX: Final = 1e11
_SECOND_CHARACTERS: Final = len("2026-01-31T12:00:00")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: How many digits of a second PostgreSQL keeps where the type does not say.
PRECISION: Final = 6
#: Moments in their order: from one to the next another part of the date or time grows.
_LADDER: Final = tuple(
    datetime(*parts, tzinfo=UTC)
    for parts in (
        (2026, 9, 9, 9, 9, 8),
        (2026, 9, 9, 9, 9, 9),
        (2026, 9, 9, 9, 10, 1),
        (2026, 9, 9, 10, 1, 1),
        (2026, 9, 9, 13, 1, 1),
        (2026, 9, 10, 1, 1, 1),
        (2026, 10, 1, 1, 1, 1),
        (2027, 1, 1, 1, 1, 1),
    )
)


class DueTimes(Protocol):
    """How due times are kept in one kind of column."""

    def selected(self) -> sa.ColumnElement[Any]:
        """Return what `read` is to be given."""
        ...

    def read(self, value: Any) -> datetime | None:
        """Return the moment, or None where there is none or it cannot be read."""
        ...

    def values(self, moment: datetime) -> dict[str, object]:
        """Return what to write, by the host's name of the column."""
        ...

    def problem(self, value: Any) -> str | None:
        """Say why a due time of the host does not go together with those that are written."""
        ...


class NoDueTimes:
    """A host without due times: a job that is queued again may be claimed at once."""

    def selected(self) -> sa.ColumnElement[Any]:
        """Select nothing."""
        return sa.null()

    def read(self, _value: Any) -> datetime | None:
        """Return None: there is none."""
        return None

    def values(self, _moment: datetime) -> dict[str, object]:
        """Write nothing."""
        return {}

    def problem(self, _value: Any) -> str | None:
        """Find nothing."""
        return None


@attrs.frozen
class Timestamps:
    """PostgreSQL's timestamps; one without a time zone is kept in UTC."""

    column: sa.Column[Any]
    with_zone: bool
    #: How many digits of a second the column keeps; the database rounds to the nearest.
    precision: int

    def selected(self) -> sa.ColumnElement[Any]:
        """Select seconds since the epoch: no driver reads 'infinity' as a date."""
        return sa.extract("epoch", self.column)

    def read(self, value: Any) -> datetime | None:
        """Read seconds since the epoch."""
        return _from_seconds(value)

    def values(self, moment: datetime) -> dict[str, object]:
        """Write the moment as it is, or the next one that the column can hold."""
        step = timedelta(microseconds=10 ** (PRECISION - self.precision))
        utc = moment.astimezone(UTC) + (_EPOCH - moment) % step
        return {self.column.name: utc if self.with_zone else utc.replace(tzinfo=None)}

    def problem(self, _value: Any) -> str | None:
        """Find nothing: the column has an order of its own."""
        return None


@attrs.frozen
class Seconds:
    """Numbers of seconds since the epoch, written as whole ones."""

    column: sa.Column[Any]

    def selected(self) -> sa.ColumnElement[Any]:
        """Select the number."""
        return sa.type_coerce(self.column, sa.types.NullType())

    def read(self, value: Any) -> datetime | None:
        """Read a number, or in SQLite whatever else is there."""
        return _from_seconds(value)

    def values(self, moment: datetime) -> dict[str, object]:
        """Write the next whole second."""
        return {self.column.name: math.ceil(moment.timestamp())}

    def problem(self, value: Any) -> str | None:
        """Find milliseconds, and text."""
        if isinstance(value, int | float | Decimal) and abs(float(value)) < _SECONDS_MAX:
            return None
        return f"holds {value!r}, which is no number of seconds since the epoch"


@attrs.frozen
class Words:
    """Text in one form throughout, so that text order is time order."""

    column: sa.Column[Any]
    #: For `strftime`, in UTC; None is the form of `format_time`.
    form: str | None

    def selected(self) -> sa.ColumnElement[Any]:
        """Select the text as it is, whatever SQLite's declared type would make of it."""
        return sa.type_coerce(self.column, sa.types.NullType())

    def read(self, value: Any) -> datetime | None:
        """Read text in our form or in any of ISO 8601."""
        if value is None:
            return None
        if isinstance(value, int | float | Decimal):
            return _from_seconds(value)
        # A char(n) of PostgreSQL is filled up with blanks.
        text = str(value).rstrip(" ")
        for parse in (datetime.fromisoformat, self._parse):
            try:
                moment = parse(text)
            except ValueError:
                continue
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return None

    def _parse(self, text: str) -> datetime:
        return datetime.strptime(text, self.form or SQLITE_FORMAT).replace(tzinfo=UTC)

    def values(self, moment: datetime) -> dict[str, object]:
        """Write text in our form."""
        # As text, whatever SQLite's declared type would take.
        return {self.column.name: sa.literal(self.as_text(moment), sa.Text())}

    def as_text(self, moment: datetime) -> str:
        """Return a moment in the host's form: the next whole second, if it has no part of one."""
        if self.form is None:
            return format_time(moment)
        if "%f" not in self.form and moment.microsecond:
            moment = moment.replace(microsecond=0) + timedelta(seconds=1)
        return moment.astimezone(UTC).strftime(self.form)

    def unfit(self, longest: int | None) -> str | None:
        """Say why due times in our form do not keep their order; None if they do.

        `longest` is how many characters the column holds.
        """
        written = [self.as_text(moment) for moment in _LADDER]
        if longest is not None and longest < max(map(len, written)):
            return f"holds {longest} characters, too few for a due time such as {written[0]!r}"
        for (before, text), moment in zip(pairwise(written), _LADDER[1:], strict=True):
            if not before < text or self.read(text) != moment:
                return (
                    f"would hold {before!r} and then {text!r} by its time_format: such text has"
                    " to sort by time, down to the second, and to be read again"
                )
        return None

    def problem(self, value: Any) -> str | None:
        """Find text of another form: a fraction of a second may be missing, nothing else."""
        moment = self.read(value)
        written = None if moment is None else self.as_text(moment)
        if written is not None and written[:_SECOND_CHARACTERS] == str(value)[:_SECOND_CHARACTERS]:
            return None
        example = written or self.as_text(datetime(2026, 1, 31, 12, tzinfo=UTC))
        return (
            f"holds {value!r}, among which a due time as it would be written, {example!r},"
            " does not sort by time: say the form of yours with time_format"
        )


def _from_seconds(value: Any) -> datetime | None:
    try:
        return datetime.fromtimestamp(float(value), UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return None

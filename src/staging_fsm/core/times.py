"""A moment as text: the one form in which it is stored, logged and shown."""

import re
from datetime import UTC, datetime
from typing import Final

#: What `format_time` writes; `datetime` still has to know the day.
_FORM: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{6}Z"
)


def format_time(moment: datetime) -> str:
    """Return `moment` as ISO 8601 in UTC with microseconds and a Z: text order is time order."""
    in_utc = moment.astimezone(UTC).replace(tzinfo=None)
    return in_utc.isoformat(timespec="microseconds") + "Z"


def parse_time(text: str) -> datetime:
    """Return the moment written by `format_time`; raises ValueError for anything else."""
    if _FORM.fullmatch(text) is None:
        message = f"{text!r} is no time like {format_time(datetime.fromtimestamp(0, UTC))}"
        raise ValueError(message)
    return datetime.fromisoformat(text)

"""A moment as text: the one form in which it is stored, logged and shown."""

from datetime import UTC, datetime


def format_time(moment: datetime) -> str:
    """Return `moment` as ISO 8601 in UTC with microseconds and a Z: text order is time order."""
    in_utc = moment.astimezone(UTC).replace(tzinfo=None)
    return in_utc.isoformat(timespec="microseconds") + "Z"


def parse_time(text: str) -> datetime:
    """Return the moment written by `format_time`; raises ValueError for anything else."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None or format_time(moment) != text:
        message = f"{text!r} is no time like {format_time(datetime.fromtimestamp(0, UTC))}"
        raise ValueError(message)
    return moment

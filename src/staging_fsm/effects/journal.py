"""The log: one line per transition, always of the same shape.

Lines go through the standard `logging` of the process under the name
`staging_fsm`, rendered by structlog as logfmt, so a host keeps its own handlers
and levels. Nothing here raises: what is told of goes on, whoever cannot hear it.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from staging_fsm.core.spec import Transition
from staging_fsm.core.visible import visible

_LOG: Final = logging.getLogger("staging_fsm")


@functools.cache
def _renderer() -> Callable[[Any, str, dict[str, Any]], Any]:
    import structlog  # noqa: PLC0415  # 100 ms that a launch which is declined does not pay

    return structlog.processors.LogfmtRenderer(key_order=["event"])


def _line(event: str, facts: Mapping[str, object]) -> str:
    try:
        return str(_renderer()(None, "", _harmless({"event": event, **facts})))
    except Exception:  # noqa: BLE001  # out of descriptors nothing can be loaded any more
        return f"event={event!r} {facts!r}"


def _harmless(facts: Mapping[str, object]) -> dict[str, object]:
    # A row or an exception may hold what ends a line or moves a terminal's cursor.
    return {
        name: value if not isinstance(value, str) or value.isprintable() else visible(value)
        for name, value in facts.items()
    }


def _log(level: int, event: str, **facts: object) -> None:
    # What a host's own handler raises is not for us to pass on.
    with contextlib.suppress(Exception):
        _LOG.log(level, _line(event, facts), stacklevel=3)


def log_transition(
    job_id: object, attempt_id: str, row: Transition, reason: str, link: str
) -> None:
    """Log that an attempt walked a row of the table."""
    if not _LOG.isEnabledFor(logging.INFO):
        return  # before structlog is loaded, and before anything is rendered for nobody
    _log(
        logging.INFO,
        "transition",
        id=row.id,
        job=str(job_id),
        attempt=attempt_id,
        source=str(row.source),
        on=str(row.event),
        target=str(row.target),
        effect=str(row.effect),
        reason=reason,
        link=link,
    )


def log_error(text: str, **facts: object) -> None:
    """Log an error."""
    _log(logging.ERROR, text, **facts)

"""The log: one line per transition, always of the same shape.

Lines go through the standard `logging` of the process under the name
`staging_fsm`, rendered by structlog as logfmt, so a host keeps its own handlers
and levels.
"""

import functools
import logging
from collections.abc import MutableMapping
from typing import Any, Final

from staging_fsm.core.spec import Transition

_LOG: Final = logging.getLogger("staging_fsm")


@functools.cache
def _logger() -> Any:
    import structlog  # noqa: PLC0415  # 100 ms that a launch which is declined does not pay

    return structlog.wrap_logger(
        _LOG,
        processors=[_harmless, structlog.processors.LogfmtRenderer(key_order=["event"])],
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def _harmless(_logger: object, _method: str, facts: MutableMapping[str, Any]) -> dict[str, Any]:
    from staging_fsm.core.artifact import visible  # noqa: PLC0415  # it loads YAML

    # A row or an exception may hold what ends a line or moves a terminal's cursor.
    return {
        name: value if not isinstance(value, str) or value.isprintable() else visible(value)
        for name, value in facts.items()
    }


def log_transition(
    job_id: object, attempt_id: str, row: Transition, reason: str, link: str
) -> None:
    """Log that an attempt walked a row of the table."""
    if not _LOG.isEnabledFor(logging.INFO):
        return  # before structlog is loaded, and before anything is rendered for nobody
    _logger().info(
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
    _logger().error(text, **facts)

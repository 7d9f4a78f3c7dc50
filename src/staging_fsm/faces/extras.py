"""What the optional parts of the command line need installed."""

import importlib.util
from collections.abc import Mapping
from typing import Final

from staging_fsm.core.errors import ExtraMissingError

#: Extra -> the packages that it brings, by the names they are imported by.
EXTRAS: Final[Mapping[str, tuple[str, ...]]] = {
    "alerts": ("apprise",),
    "attest": ("securesystemslib",),
    "demo": ("pytest",),
    "fleet": ("procrastinate", "psycopg"),
    "postgres": ("psycopg",),
    "web": ("fastapi", "jinja2", "prometheus_client", "uvicorn"),
}


def require_extra(extra: str) -> None:
    """Raise ExtraMissingError unless every package of an extra can be imported."""
    if any(importlib.util.find_spec(name) is None for name in EXTRAS[extra]):
        raise ExtraMissingError(extra)

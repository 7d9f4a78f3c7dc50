"""What a system or a database that refuses its service is told by: one sentence, no traceback."""

import sys
from typing import Final

from staging_fsm.core.errors import StagingError, in_words

_ADVICE: Final = "mend that, and ask again"


def trouble(error: Exception) -> str | None:
    """Return what happened and what to do, in one line; None for an error that nobody foresaw."""
    if isinstance(error, StagingError):
        return str(error)
    if isinstance(error, OSError):
        said = error.strerror or in_words(error)
        what = (
            "the system refused" if error.filename is None else f"{error.filename} cannot be used"
        )
        return _line(f"{what}: {said}: {_ADVICE}")
    # Where a library is not loaded nothing can have been raised by it.
    libraries = [sys.modules[name] for name in ("sqlalchemy.exc", "sqlite3") if name in sys.modules]
    if not any(isinstance(error, library.DatabaseError) for library in libraries):
        return None
    # What a library says around it is of the statement, and of no use to who only asks.
    cause = getattr(error, "orig", None) or error
    return _line(f"the database cannot be used: {cause}: {_ADVICE}")


def _line(words: str) -> str:
    return " ".join(words.split())

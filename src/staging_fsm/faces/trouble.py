"""What a system or a database that refuses its service is told by: one sentence, no traceback."""

import sqlite3
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
    # Where it is not loaded nothing can have been raised by it.
    library = sys.modules.get("sqlalchemy.exc")
    if library is not None and isinstance(error, library.DatabaseError):
        error = error.orig if isinstance(error.orig, Exception) else error
    elif not isinstance(error, sqlite3.DatabaseError):
        return None
    return _line(f"the database cannot be used: {error}: what is stored in it stands; {_ADVICE}")


def _line(words: str) -> str:
    return " ".join(words.split())

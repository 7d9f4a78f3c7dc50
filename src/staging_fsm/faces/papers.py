"""Files that a command was asked to write, at a place that a person named."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from staging_fsm.core.errors import RefusedError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise RefusedError, in words for whoever named `path`, where it cannot be written."""
    try:
        yield
    except OSError as error:
        # Its own name of a file may be that of one which was to be renamed.
        message = f"{path} cannot be written: {error.strerror or error}"
        raise RefusedError(message) from error

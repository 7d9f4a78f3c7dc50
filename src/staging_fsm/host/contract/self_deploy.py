"""The one place where an exit code becomes a status word."""

from typing import Literal

StagingStatus = Literal["SUCCESS", "FAILED"]


def map_exit_code_to_status(exit_code: int) -> StagingStatus:
    """Return `"SUCCESS"` for exit code 0 and `"FAILED"` for every other value.

    Only the integer zero counts: `False`, `0.0` and `None` are no exit codes.
    """
    return "SUCCESS" if type(exit_code) is int and exit_code == 0 else "FAILED"

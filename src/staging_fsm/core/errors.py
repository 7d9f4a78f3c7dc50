"""One family of errors. Facts are attributes; the sentence is made from them."""

import contextlib
import errno
from collections.abc import Sequence
from typing import Final

#: What a system answers that has no room left to look.
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class StagingError(Exception):
    """Anything that staging_fsm refuses, with what happened and what to do about it."""


def in_words(error: Exception) -> str:
    """Return the type of an error, what it says, and what was noted of it.

    A host's own may be one that cannot say it.
    """
    words = type(error).__name__
    # Whatever that raises, it is told of an error, and raises none.
    with contextlib.suppress(Exception):
        words = f"{words}: {error}"
        words = "; ".join([words, *getattr(error, "__notes__", ())])
    return words


def is_shortage(error: OSError) -> bool:
    """Say whether the system had no room to look: of what was asked for nothing is known then."""
    return error.errno in _SHORTAGES


class TransitionRefusedError(StagingError):
    """An event came in a state whose row of the table does not allow it. Nothing moved."""

    def __init__(self, state: str, event: str, allowed: Sequence[str]) -> None:
        """Keep state, event and what would be allowed."""
        self.state, self.event, self.allowed = state, event, tuple(allowed)
        options = ", ".join(self.allowed) if self.allowed else "nothing, the attempt has ended"
        super().__init__(f"{event} is not allowed in {state}; allowed is {options}")


class SnapshotRefusedError(StagingError):
    """A job row's snapshot cannot be trusted, so nothing is guessed and nothing moves."""

    def __init__(self, problem: str) -> None:
        """Keep the problem, a sentence without its full stop."""
        self.problem = problem
        super().__init__(
            f"the staging_runner snapshot is refused: {problem};"
            " nothing was changed: correct the row by hand, or remove the key and queue the job"
            " again"
        )


class StaleSnapshotError(StagingError):
    """Somebody else moved the attempt or ended the job: this worker has lost its claim."""

    def __init__(self, job_id: object, attempt_id: str, version: int | None) -> None:
        """Keep the job, and which version of which attempt was expected; None for no attempt."""
        self.job_id, self.attempt_id, self.version = job_id, attempt_id, version
        expected = f"is in work with version {version} of attempt {attempt_id}"
        if version is None:
            expected = "is without an attempt"
        super().__init__(
            f"job {job_id} no longer {expected}: another worker moved it, or a person did;"
            " nothing was written"
        )


class ConfigInvalidError(StagingError):
    """The configuration has problems, all of them listed."""

    def __init__(self, problems: Sequence[str]) -> None:
        """Keep the problems, one sentence each."""
        self.problems = tuple(problems)
        super().__init__("invalid configuration: " + "; ".join(self.problems))


class ReportUnreadableError(StagingError):
    """A test report is no JUnit XML that can be trusted."""


class ReportStaleError(StagingError):
    """A test report is of another run: its own time stamps say so."""


class RefusedError(StagingError):
    """What was asked for is refused, and nothing was changed."""


class NoDatabaseError(RefusedError):
    """Where a database was looked for there is nothing yet: a mistyped address, or a new one."""

    def __init__(self, found: str) -> None:
        """Keep what was found there."""
        self.found = found
        super().__init__(f"{found}, and in a new one there would be nothing to see")


class NothingToCancelError(RefusedError):
    """A job without an attempt is in work, or has ended: it is none of the runner's to cancel."""

    def __init__(self, job_id: object, status: str, *, in_work: bool) -> None:
        """Keep the job, and its status."""
        self.job_id, self.status = job_id, status
        what = "it neither waits nor is in work, and nothing of it could be stopped"
        if in_work:
            what = (
                "somebody has claimed it, and an agent may be at it, which no cancellation would"
                " stop: end that agent and the job by the means of their orchestrator, or ask"
                " again once it has an attempt"
            )
        super().__init__(
            f"job {job_id} is {status} without an attempt, and was not cancelled: {what}"
        )


class RunRefusedError(RefusedError):
    """A run was refused before anything was started: there is no verdict, and no run was spent."""


class ExtraMissingError(RefusedError):
    """What was asked for is an optional part, whose packages are not installed."""

    def __init__(self, extra: str) -> None:
        """Keep the extra that brings them."""
        self.extra = extra
        super().__init__(f"this needs the extra `{extra}`: pip install 'staging-fsm[{extra}]'")


class UnansweredError(StagingError):
    """Whoever was asked gave no answer in time: it may be done yet, or not."""


class MachineUnfitError(StagingError):
    """What every run needs of the machine is not there: no run was started."""

    def __init__(self, problem: str) -> None:
        """Keep the problem."""
        self.problem = problem
        super().__init__(f"this machine cannot run a suite now: {problem}")


class PreparationError(StagingError):
    """What a run needs could not be made ready: a tool error."""


class GateContradictedVerdictError(StagingError):
    """A gate opened although the attempt has no passed verdict. Its move was rolled back."""


class GateEndedTransactionError(StagingError):
    """A gate ended the transaction that it was lent: what it wrote cannot be undone any more."""

    def __init__(self) -> None:
        """Say what it did, and what to do."""
        super().__init__(
            "the gate ended the transaction that it was lent, by a commit or a close, as at the"
            " end of `with` on the driver's connection: what it wrote may stay, and the end of"
            " the attempt was not stored with it; write through `tx`, leave its end to the runner,"
            " and put this job right by hand"
        )


class AttestationRefusedError(StagingError):
    """An attempt is not attested, or an attestation is not believed."""

    def __init__(self, job_id: object | None, problem: str) -> None:
        """Keep the job, None for an attestation at hand, and the problem."""
        self.job_id, self.problem = job_id, problem
        what = "the attestation is refused" if job_id is None else f"job {job_id} is not attested"
        super().__init__(f"{what}: {problem}")


class JobNotFoundError(StagingError):
    """There is no job with this id."""

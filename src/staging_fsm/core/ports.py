"""What the drive needs of the world, as values and protocols.

The effects layer answers with the real thing; the simulation in the tests
answers with a world whose every fault is chosen by a seed.
"""

from datetime import datetime
from enum import StrEnum, unique
from pathlib import Path
from typing import Protocol

import attrs

from staging_fsm.core.outcome import RunFacts
from staging_fsm.core.plan import SuitePlan


@attrs.frozen
class RunOrder:
    """One run that is to be started."""

    run_id: str
    repository: Path
    revision: str
    suite: SuitePlan


@attrs.frozen
class RunReport:
    """What became of a run, once nothing of it is alive any more."""

    facts: RunFacts
    duration_seconds: float | None = None
    detail: str | None = None
    log: str | None = None
    log_sha256: str | None = None
    log_bytes: int | None = None
    log_dropped_bytes: int | None = None


@unique
class AlertKind(StrEnum):
    """What a person is alerted to."""

    FAILED_CLOSED = "failed_closed"
    ROW_REFUSED = "row_refused"
    GATE_CONTRADICTED_VERDICT = "gate_contradicted_verdict"
    CONFIGURATION_INVALID = "configuration_invalid"
    MACHINE_UNFIT = "machine_unfit"
    INTERNAL_ERROR = "internal_error"


@unique
class RunCondition(StrEnum):
    """What can be said of a run whose worker is gone."""

    #: Its supervisor lives.
    LIVE = "live"
    #: Its supervisor has left a result.
    FINISHED = "finished"
    #: Nothing will ever come of it; it can no longer start.
    LOST = "lost"
    #: It is another machine's: not ours to judge.
    FOREIGN = "foreign"


class Suites(Protocol):
    """Runs of suites on this machine."""

    def start(self, order: RunOrder) -> None:
        """Make ready what the run needs and start it. Raises PreparationError."""
        ...

    def await_report(self, run_id: str) -> RunReport:
        """Wait until nothing of the run is alive, remove its checkout, and report."""
        ...

    def condition(self, run_id: str) -> RunCondition:
        """Say what there is of a run. Once it said LOST, the run can no longer start."""
        ...

    def reap(self, run_id: str) -> None:
        """Stop whatever is left of a run and remove its checkout. Safe to repeat."""
        ...

    def log_tail(self, run_id: str, size: int) -> bytes:
        """Return the last `size` bytes of a run's output."""
        ...

    def shown_command(self, run_id: str, suite: SuitePlan) -> tuple[str, ...]:
        """Return the words of a run's command as they may be shown."""
        ...


class Artifacts(Protocol):
    """The artifact's place in the work item's folder."""

    def set_aside(self, folder: Path, suffix: str) -> None:
        """Move an existing artifact out of the gate's sight."""
        ...

    def write(self, folder: Path, text: str) -> Path:
        """Write the artifact, atomically and durably; return its path."""
        ...

    def is_written(self, folder: Path, text: str) -> bool:
        """Say whether the artifact is exactly `text`."""
        ...


class Alerts(Protocol):
    """Somebody to tell."""

    def send(
        self, kind: AlertKind, job_id: object, text: str, attempt_id: str | None = None
    ) -> None:
        """Alert a person, of an attempt where `attempt_id` names one. Never raises or waits."""
        ...

    def deliver(self) -> None:
        """Try again what could not be delivered, if anything is due. Never raises or waits."""
        ...


class Clock(Protocol):
    """Time as the drive and host layers see it."""

    def now(self) -> datetime:
        """Return the time of day, aware and in UTC."""
        ...

    def wait(self, seconds: float) -> None:
        """Return after `seconds`, or sooner when somebody calls `wake`."""
        ...

    def wake(self) -> None:
        """End the current and every later `wait` at once."""
        ...

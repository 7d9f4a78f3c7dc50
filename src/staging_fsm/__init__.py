"""A deterministic staging runner for LLM orchestrators.

What an orchestrator author needs, and nothing more. Names are looked up when
they are first used, so importing the package costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from staging_fsm.core.errors import StagingError
    from staging_fsm.core.jobs import SNAPSHOT_KEY, JobRow, JobRows, Place
    from staging_fsm.core.snapshot import Snapshot
    from staging_fsm.core.spec import TRANSITIONS, Effect, Event, State, Transition
    from staging_fsm.drive.intercept import StagingIntercept
    from staging_fsm.drive.rulings import Decision, Ruling
    from staging_fsm.effects.django_rows import DjangoRows
    from staging_fsm.effects.rows import SqlRows
    from staging_fsm.faces.queue import staging_runner_block
    from staging_fsm.host.contract.gate import check_staging_status

_HOMES = {
    "SNAPSHOT_KEY": "staging_fsm.core.jobs",
    "TRANSITIONS": "staging_fsm.core.spec",
    "Decision": "staging_fsm.drive.rulings",
    "DjangoRows": "staging_fsm.effects.django_rows",
    "Effect": "staging_fsm.core.spec",
    "Event": "staging_fsm.core.spec",
    "JobRow": "staging_fsm.core.jobs",
    "JobRows": "staging_fsm.core.jobs",
    "Place": "staging_fsm.core.jobs",
    "Ruling": "staging_fsm.drive.rulings",
    "Snapshot": "staging_fsm.core.snapshot",
    "SqlRows": "staging_fsm.effects.rows",
    "StagingError": "staging_fsm.core.errors",
    "StagingIntercept": "staging_fsm.drive.intercept",
    "State": "staging_fsm.core.spec",
    "Transition": "staging_fsm.core.spec",
    "check_staging_status": "staging_fsm.host.contract.gate",
    "staging_runner_block": "staging_fsm.faces.queue",
}

__all__ = [
    "SNAPSHOT_KEY",
    "TRANSITIONS",
    "Decision",
    "DjangoRows",
    "Effect",
    "Event",
    "JobRow",
    "JobRows",
    "Place",
    "Ruling",
    "Snapshot",
    "SqlRows",
    "StagingError",
    "StagingIntercept",
    "State",
    "Transition",
    "check_staging_status",
    "staging_runner_block",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOMES:
        message = f"module 'staging_fsm' has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__

"""What a fleet can be told: `ORCH_FLEET_*`, declared once. The same on every machine."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import environ

from staging_fsm.core.errors import ConfigInvalidError
from staging_fsm.core.settings import DAY_SECONDS, checked, load, number, path_if_any

PREFIX: Final = "ORCH_FLEET"
#: A worker must miss several heartbeats before it counts as stalled.
HEARTBEATS_MISSED_MIN: Final = 3
#: The shortest time between two heartbeats: each is a statement of the engine.
HEARTBEAT_SECONDS_MIN: Final = 0.1
#: What the seconds field of a cron line can say.
SWEEP_SECONDS_MAX: Final = 59
#: What is said of a suite that would run in the repository's folder: no machine has that.
WORKTREES_ONLY: Final = "a fleet runs suites in worktrees only, not in-place"
_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,50}")


def _schema(text: str) -> str:
    if not _SCHEMA.fullmatch(text):
        message = "is no plain lower-case name"
        raise ValueError(message)
    return text


@environ.config(prefix=PREFIX, frozen=True)
class FleetSettings:
    """A fleet's own settings. The staging runner's stand in `core/config.py`."""

    branch: str = environ.var(
        "{work_item}", help="Branch of a work item on its remote; {work_item} is filled in."
    )
    shared_dir: Path | None = environ.var(
        "",
        converter=checked(path_if_any),
        help="Folder that every machine and the host see, for artifacts and logs;"
        " default: they are committed to the work item's branch.",
    )
    schema: str = environ.var(
        "staging_engine", converter=checked(_schema), help="Schema of the engine's own tables."
    )
    heartbeat_seconds: float = environ.var(
        "10",
        converter=checked(number(float, HEARTBEAT_SECONDS_MIN, DAY_SECONDS)),
        help="Time between two signs of life of a worker.",
    )
    stalled_seconds: float = environ.var(
        "90",
        converter=checked(number(float, HEARTBEAT_SECONDS_MIN, DAY_SECONDS)),
        help="Silence after which a worker's jobs are delivered again.",
    )
    sweep_seconds: int = environ.var(
        "30",
        converter=checked(number(int, 1, SWEEP_SECONDS_MAX)),
        help="Time between two looks for stalled and undelivered jobs, 1 to 59.",
    )

    @property
    def papers(self) -> str:
        """Say where papers go, and which commit of a work item is staged: as all machines must."""
        branch = f"each work item is on the branch {self.branch}"
        shared = self.shared_dir is not None
        return f"{branch}; its papers go {'to a shared folder' if shared else 'there'}"


def load_fleet_settings(variables: Mapping[str, str]) -> FleetSettings:
    """Return the settings declared in `variables`; raises ConfigInvalidError with every problem."""
    settings = load(FleetSettings, variables, PREFIX)
    longest = settings.stalled_seconds / HEARTBEATS_MISSED_MIN
    if settings.heartbeat_seconds > longest:
        problem = (
            f"{PREFIX}_HEARTBEAT_SECONDS: {settings.heartbeat_seconds:g} is more than"
            f" a {HEARTBEATS_MISSED_MIN}rd of {PREFIX}_STALLED_SECONDS"
        )
        raise ConfigInvalidError([problem])
    return settings

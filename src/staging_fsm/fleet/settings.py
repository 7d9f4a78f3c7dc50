"""What a fleet can be told: `ORCH_FLEET_*`, declared once. The same on every machine."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import environ

from staging_fsm.core.config import expand_home
from staging_fsm.core.errors import ConfigInvalidError

PREFIX: Final = "ORCH_FLEET"
#: A worker must miss several heartbeats before it counts as stalled.
HEARTBEATS_MISSED_MIN: Final = 3
_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,50}")


def _folder(text: str) -> Path | None:
    return Path(text).absolute() if text else None


@environ.config(prefix=PREFIX, frozen=True)
class FleetSettings:
    """A fleet's own settings. The staging runner's stand in `core/config.py`."""

    branch: str = environ.var(
        "{work_item}", help="Branch of a work item on its remote; {work_item} is filled in."
    )
    shared_dir: Path | None = environ.var(
        "",
        converter=_folder,
        help="Folder that every machine and the host see, for artifacts and logs;"
        " default: they are committed to the work item's branch.",
    )
    schema: str = environ.var("staging_engine", help="Schema of the engine's own tables.")
    heartbeat_seconds: float = environ.var(
        "10", converter=float, help="Time between two signs of life of a worker."
    )
    stalled_seconds: float = environ.var(
        "90", converter=float, help="Silence after which a worker's jobs are delivered again."
    )
    sweep_seconds: int = environ.var(
        "30",
        converter=int,
        help="Time between two looks for stalled and undelivered jobs, 1 to 59.",
    )


def load_fleet_settings(variables: Mapping[str, str]) -> FleetSettings:
    """Return the settings declared in `variables`; raises ConfigInvalidError."""
    shared_dir = f"{PREFIX}_SHARED_DIR"
    try:
        said = {shared_dir: expand_home(variables.get(shared_dir, "").strip(), variables)}
        settings: FleetSettings = environ.to_config(FleetSettings, environ={**variables, **said})
    except ValueError as error:
        raise ConfigInvalidError([f"{PREFIX}_*: {error}"]) from error
    problems = []
    if not _SCHEMA.fullmatch(settings.schema):
        problems.append(f"{PREFIX}_SCHEMA: {settings.schema!r} is no plain lower-case name")
    if not 1 <= settings.sweep_seconds <= 59:  # noqa: PLR2004  # the seconds field of a cron line
        problems.append(f"{PREFIX}_SWEEP_SECONDS: {settings.sweep_seconds} is not from 1 to 59")
    longest = settings.stalled_seconds / HEARTBEATS_MISSED_MIN
    if not 0 < settings.heartbeat_seconds <= longest:
        problems.append(
            f"{PREFIX}_HEARTBEAT_SECONDS: {settings.heartbeat_seconds:g} is not above 0 and at most"
            f" a {HEARTBEATS_MISSED_MIN}rd of {PREFIX}_STALLED_SECONDS"
        )
    if problems:
        raise ConfigInvalidError(problems)
    return settings

"""Every setting that there is, of the runner, of the reference host and of a fleet."""

from collections.abc import Callable, Mapping
from typing import Final

from staging_fsm.core.config import RunnerConfig, load_config
from staging_fsm.core.errors import ConfigInvalidError
from staging_fsm.core.settings import Setting, declared
from staging_fsm.fleet.settings import FleetSettings, load_fleet_settings
from staging_fsm.host.settings import HostSettings, load_host_settings

#: Who declares settings, with what reads them.
_READERS: Final[Mapping[type, Callable[[Mapping[str, str]], object]]] = {
    RunnerConfig: load_config,
    HostSettings: load_host_settings,
    FleetSettings: load_fleet_settings,
}


def every_setting() -> tuple[Setting, ...]:
    """Return every declared setting, the runner's first."""
    return tuple(setting for declaration in _READERS for setting in declared(declaration))


def problems(variables: Mapping[str, str]) -> tuple[str, ...]:
    """Return everything that is wrong with the settings in `variables`."""
    found: list[str] = []
    for read in _READERS.values():
        try:
            read(variables)
        except ConfigInvalidError as error:
            found += error.problems
    return tuple(found)

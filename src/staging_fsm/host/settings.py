"""What the reference host can be told: `ORCH_*`, declared once."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import environ

from staging_fsm.core.settings import DAY_SECONDS, checked, load, number, path, secret

#: Of a work item, and of a look at a deployed service: more is a slip of the keyboard.
COUNT_MAX: Final = 1000


def _command(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        message = f"is no command line: {str(error).lower()}"
        raise ValueError(message) from None


@environ.config(prefix="ORCH", frozen=True)
class HostSettings:
    """The host's own settings. The staging runner's stand in `core/config.py`."""

    db_url: str = environ.var(
        "",
        # An .env file with Windows line ends leaves a carriage return at the end.
        converter=secret(str.strip),
        help="Database; default: orchestrator.db in the state folder.",
    )
    agent_command: tuple[str, ...] = environ.var(
        "",
        converter=secret(_command),
        help="LLM agent command; {agent}, {stage}, {work_item} and {repo} are filled in.",
    )
    developer_retries: int = environ.var(
        "3",
        converter=checked(number(int, 0, COUNT_MAX)),
        help="How many failed gates a work item survives before a person must look.",
    )
    recovery_seconds: float = environ.var(
        "60",
        converter=checked(number(float, 0, DAY_SECONDS)),
        help="How often a worker looks for what others left behind.",
    )
    log_dir: Path = environ.var(
        "agent-logs", converter=checked(path), help="Where agent output is kept."
    )
    monitor_command: tuple[str, ...] = environ.var(
        "",
        converter=secret(_command),
        help="Probe of post-deploy-monitor: exit code 0 means healthy.",
    )
    monitor_url: str = environ.var(
        "", converter=secret(str), help="Probe of post-deploy-monitor: a 2xx means healthy."
    )
    # One at least: of no probe at all it could be said that none has failed.
    monitor_probes: int = environ.var(
        "3", converter=checked(number(int, 1, COUNT_MAX)), help="How many probes in a row."
    )
    monitor_interval_seconds: float = environ.var(
        "10",
        converter=checked(number(float, 0, DAY_SECONDS)),
        help="Pause between two probes.",
    )

    @property
    def has_agent(self) -> bool:
        """Say whether an LLM agent is configured; what it is, is the business of its launch."""
        return bool(self.agent_command)


def load_host_settings(variables: Mapping[str, str]) -> HostSettings:
    """Return the settings declared in `variables`; raises ConfigInvalidError with every problem."""
    # The prefix is not the host's alone: others have names with it, too.
    return load(HostSettings, variables)

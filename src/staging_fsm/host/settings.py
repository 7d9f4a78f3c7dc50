"""What the reference host can be told: `ORCH_*`, declared once."""

import shlex
from collections.abc import Mapping
from pathlib import Path

import environ


def _words(text: str) -> tuple[str, ...]:
    return tuple(shlex.split(text))


@environ.config(prefix="ORCH", frozen=True)
class HostSettings:
    """The host's own settings. The staging runner's stand in `core/config.py`."""

    db_url: str = environ.var("", help="Database; default: orchestrator.db in the state folder.")
    agent_command: tuple[str, ...] = environ.var(
        "",
        converter=_words,
        help="LLM agent command; {agent}, {stage}, {work_item} and {repo} are filled in.",
    )
    developer_retries: int = environ.var(
        3,
        converter=int,
        help="How many failed gates a work item survives before a person must look.",
    )
    recovery_seconds: float = environ.var(
        60.0,
        converter=float,
        help="How often an idle worker looks for what others left behind.",
    )
    log_dir: Path = environ.var("agent-logs", converter=Path, help="Where agent output is kept.")
    monitor_command: tuple[str, ...] = environ.var(
        "", converter=_words, help="Probe of post-deploy-monitor: exit code 0 means healthy."
    )
    monitor_url: str = environ.var("", help="Probe of post-deploy-monitor: a 2xx means healthy.")
    monitor_probes: int = environ.var(3, converter=int, help="How many probes in a row.")
    monitor_interval_seconds: float = environ.var(
        10.0, converter=float, help="Pause between two probes."
    )

    @property
    def has_agent(self) -> bool:
        """Say whether an LLM agent is configured; what it is, is the business of its launch."""
        return bool(self.agent_command)


def load_host_settings(variables: Mapping[str, str]) -> HostSettings:
    """Return the settings declared in `variables`; raises ValueError for a bad number."""
    settings: HostSettings = environ.to_config(HostSettings, environ=dict(variables))
    return settings

"""`staging-fsm doctor`: what a run needs, looked at before one is spent."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping

from staging_fsm.core.config import alert_urls, is_switched_off, load_config
from staging_fsm.core.errors import ConfigInvalidError, in_words
from staging_fsm.drive.runner import read_suites
from staging_fsm.effects import limits
from staging_fsm.effects.alerts import Outbox
from staging_fsm.effects.files import StateDir
from staging_fsm.effects.preflight import Finding, Health, command_finding, machine_findings


def examine(
    variables: Mapping[str, str], state: StateDir, open_database: Callable[[], object]
) -> Iterator[Finding]:
    """Yield the findings of every check; none stops the others."""
    yield _python()
    yield _git()
    yield _supervision()
    yield _limits()
    yield from machine_findings(state, _log_max_bytes(variables))
    yield _database(open_database)
    yield from _configuration(variables)
    yield _alerts(variables, state)


def _alerts(variables: Mapping[str, str], state: StateDir) -> Finding:
    owed = Outbox(state.alerts.with_suffix("")).owed()
    if owed:
        tries = max(alert.tries for alert in owed)
        words = f"{len(owed)} undelivered since {owed[0].time}, tried {tries} times: {owed[0].line}"
        return Finding("alerts", Health.FAILED, words)
    urls = alert_urls(variables)
    if urls and importlib.util.find_spec("apprise") is None:
        words = "Apprise is not installed: install staging-fsm[alerts]"
        return Finding("alerts", Health.FAILED, words)
    if not urls:
        return Finding("alerts", Health.WARNING, f"nobody is told: only {state.alerts} keeps them")
    return Finding("alerts", Health.OK, f"{len(urls)} addresses, nothing undelivered")


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", Health.OK, f"{version} at {sys.executable}")


def _git() -> Finding:
    path = shutil.which("git")
    if path is None:
        words = "not found: repositories count as unversioned, and runs happen in place"
        return Finding("git", Health.WARNING, words)
    return Finding("git", Health.OK, path)


def _supervision() -> Finding:
    if sys.platform == "linux" and hasattr(os, "pidfd_open"):
        return Finding("supervision", Health.OK, "child subreaper and pidfd: nothing can flee")
    words = "no child subreaper here: a process that leaves its session may survive a run"
    return Finding("supervision", Health.WARNING, words)


def _limits() -> Finding:
    if sys.platform != "linux":
        words = "none of memory and processes on this system"
        return Finding("limits", Health.WARNING, words)
    held = limits.hold(f"doctor-{os.getpid()}", 2**40, 2**20, lambda _: [])
    held.end()
    words = "memory and processes of a suite are looked at ten times a second"
    if isinstance(held, limits.Group):
        words = "memory and processes of a suite are held by a control group"
    return Finding("limits", Health.OK, words)


def _log_max_bytes(variables: Mapping[str, str]) -> int:
    try:
        return load_config(variables).log_max_bytes
    except ConfigInvalidError:
        return load_config({}).log_max_bytes


def _database(open_database: Callable[[], object]) -> Finding:
    try:
        url = open_database()
    except Exception as error:  # noqa: BLE001  # whatever a driver raises is the finding
        return Finding("database", Health.FAILED, in_words(error))
    return Finding("database", Health.OK, str(url))


def _configuration(variables: Mapping[str, str]) -> Iterator[Finding]:
    try:
        config = load_config(variables)
        suites = read_suites(config)
    except ConfigInvalidError as error:
        for problem in error.problems:
            yield Finding("configuration", Health.FAILED, problem)
        return
    if is_switched_off(variables):
        yield Finding("configuration", Health.WARNING, "the runner is switched off")
    elif not config.repos:
        yield Finding("configuration", Health.WARNING, "no repository is in scope")
    else:
        yield Finding("configuration", Health.OK, f"on for {', '.join(sorted(config.repos))}")
    for repo in sorted(config.repos - {"*"}):
        entry = suites.entry(repo)
        if entry is None:
            yield Finding("suite", Health.FAILED, f"{repo} is in scope but has no suite")
        else:
            yield command_finding(repo, entry.command, variables)

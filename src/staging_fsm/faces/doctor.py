"""`staging-fsm doctor`: what a run needs, looked at before one is spent."""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from staging_fsm.core.config import (
    RunnerConfig,
    alert_urls,
    is_switched_off,
    load_config,
    variable_name,
)
from staging_fsm.core.errors import (
    ConfigInvalidError,
    ExtraMissingError,
    NoDatabaseError,
    StagingError,
    in_words,
)
from staging_fsm.core.plan import Workspace, hiding_program
from staging_fsm.core.suites import SuiteEntry, SuitesConfig
from staging_fsm.drive.planning import read_suites, suite_of
from staging_fsm.drive.runner import IN_SHADOW
from staging_fsm.effects.alerts import Outbox, is_known_address
from staging_fsm.effects.preflight import Check, Health, command_finding, machine_findings
from staging_fsm.effects.state_dir import StateDir, refuse_unknown_home
from staging_fsm.effects.supervisor import limits
from staging_fsm.faces.extras import require_extra
from staging_fsm.faces.fleet import check_shared_folder, is_fleet_session, refuse_other_papers
from staging_fsm.faces.session import Session
from staging_fsm.faces.settings import problems
from staging_fsm.faces.trouble import trouble
from staging_fsm.fleet.settings import PREFIX as FLEET_PREFIX
from staging_fsm.fleet.settings import WORKTREES_ONLY, FleetSettings, load_fleet_settings
from staging_fsm.host.settings import load_host_settings

#: What the suite of all repositories without one of their own is called.
DEFAULT: Final = "[default]"
#: What somebody may have taken for what separates names.
_LOOKS_LIKE_TWO: Final = re.compile(r"[\s;]")


def examine(
    variables: Mapping[str, str], state: StateDir, open_database: Callable[[], object]
) -> Iterator[Check]:
    """Yield the findings of every check; none stops the others."""
    yield _python()
    yield _git()
    yield _supervision()
    yield _limits()
    yield from _machine(variables, state)
    yield _database(open_database)
    yield from _configuration(variables)
    yield from _alerts(variables, state)


def _machine(variables: Mapping[str, str], state: StateDir) -> Iterator[Check]:
    try:
        refuse_unknown_home(variables)
    except ConfigInvalidError as error:
        # To look at it would make it.
        yield from (Check("state folder", Health.FAILED, problem) for problem in error.problems)
        return
    yield from machine_findings(state, variables, _log_max_bytes(variables), state.of_fleet)
    left = state.checkouts_of_ended()
    if left:
        words = (
            f"{len(left)} of runs that have ended could not be removed, the first is {left[0]}:"
            " what is in it is another user's, or mounted there; remove it as whoever may"
        )
        yield Check("checkouts", Health.WARNING, words)


def _alerts(variables: Mapping[str, str], state: StateDir) -> Iterator[Check]:
    urls = alert_urls(variables)
    problem = _address_problem(urls)
    if problem is not None:
        yield Check("alerts", Health.FAILED, problem)
    owed = Outbox(state.outbox).owed()
    if owed:
        tries = max(alert.tries for alert in owed)
        words = f"{len(owed)} undelivered since {owed[0].time}, tried {tries} times: {owed[0].line}"
        yield Check("alerts", Health.FAILED, words)
    elif not urls:
        yield Check("alerts", Health.WARNING, f"nobody is told: only {state.alerts} keeps them")
    elif problem is None:
        yield Check("alerts", Health.OK, f"{len(urls)} addresses, nothing undelivered")


def _address_problem(urls: tuple[str, ...]) -> str | None:
    """Return why nobody could be told at these addresses, or None."""
    if not urls:
        return None
    try:
        require_extra("alerts")
    except ExtraMissingError as error:
        return str(error)
    unknown = [str(at) for at, url in enumerate(urls, 1) if not is_known_address(url)]
    if not unknown:
        return None
    # By their places: an address may hold a secret.
    return (
        f"{variable_name('alert_urls')}: of {len(urls)} addresses Apprise does not know number"
        f" {' and '.join(unknown)}: write them as in mailto://user:password@example.org or"
        " json://host/path, without quotes, and with blanks in between"
    )


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", Health.OK, f"{version} at {sys.executable}")


def _git() -> Check:
    path = shutil.which("git")
    if path is None:
        words = "not found: no run in a repository, only in folders that are in none"
        return Check("git", Health.WARNING, words)
    return Check("git", Health.OK, path)


def _supervision() -> Check:
    if sys.platform == "linux" and hasattr(os, "pidfd_open"):
        return Check("supervision", Health.OK, "child subreaper and pidfd: nothing can flee")
    words = "no child subreaper here: a process that leaves its session may survive a run"
    return Check("supervision", Health.WARNING, words)


def _limits() -> Check:
    if sys.platform != "linux":
        words = "none of memory and processes on this system"
        return Check("limits", Health.WARNING, words)
    held = limits.hold(f"doctor-{os.getpid()}", 2**40, 2**20, lambda _: [])
    held.end()
    words = "memory and processes of a suite are looked at ten times a second"
    if isinstance(held, limits.Group):
        words = "memory and processes of a suite are held by a control group"
    return Check("limits", Health.OK, words)


def _log_max_bytes(variables: Mapping[str, str]) -> int:
    try:
        return load_config(variables).log_max_bytes
    except ConfigInvalidError:
        return load_config({}).log_max_bytes


def _database(open_database: Callable[[], object]) -> Check:
    try:
        url = open_database()
    except NoDatabaseError as error:
        words = f"{error.found}: look whether its address is right; a run or a worker makes it"
        return Check("database", Health.WARNING, words)
    except Exception as error:  # noqa: BLE001  # whatever a driver raises is the finding
        return Check("database", Health.FAILED, trouble(error) or in_words(error))
    return Check("database", Health.OK, str(url))


def _configuration(variables: Mapping[str, str]) -> Iterator[Check]:
    found = problems(variables)
    try:
        config = load_config(variables)
        suites = read_suites(config)
    except ConfigInvalidError as error:
        found = tuple(dict.fromkeys((*found, *error.problems)))
    if found:
        for problem in found:
            yield Check("configuration", Health.FAILED, problem)
        return
    if is_switched_off(variables):
        yield Check("configuration", Health.WARNING, "the runner is switched off")
    elif not config.repos:
        yield Check("configuration", Health.WARNING, "no repository is in scope")
    elif config.shadow:
        yield from _in_shadow(config, variables)
    else:
        yield Check("configuration", Health.OK, f"on for {', '.join(sorted(config.repos))}")
    for name in sorted(name for name in config.repos if _LOOKS_LIKE_TWO.search(name)):
        # A host may call its repositories as it likes.
        words = f"{name!r} is taken for one name: names of repositories are separated by commas"
        yield Check("configuration", Health.WARNING, words)
    yield from _suites(config, suites, variables)


def _in_shadow(config: RunnerConfig, variables: Mapping[str, str]) -> Iterator[Check]:
    """Yield what whoever takes the runner for the producer has to know."""
    words = f"{IN_SHADOW}; in scope: {', '.join(sorted(config.repos))}"
    yield Check("configuration", Health.WARNING, words)
    if not load_host_settings(variables).has_agent:
        # A host with a `launch_job` of its own has agents of its own.
        words = (
            "ORCH_AGENT_COMMAND is not set: in shadow mode `staging-fsm worker` has nobody to"
            " launch, and each staging job stays claimed"
        )
        yield Check("agent", Health.WARNING, words)


def _suites(
    config: RunnerConfig, suites: SuitesConfig, variables: Mapping[str, str]
) -> Iterator[Check]:
    """Yield what a launch of each repository would say to its suite, in the launch's words."""
    everywhere = "*" in config.repos
    configured, asked = _configured(suites), _asked(config, suites)
    for name, entry in sorted(asked.items()):
        problem = _refusal(name, entry, config)
        if problem is not None:
            yield Check("suite", Health.FAILED, problem)
        elif entry is not None:
            yield command_finding(name, entry.command, variables)
            yield from _hiding(name, entry, config)
            yield from _in_the_agents_way(name, entry, config)
    if everywhere and not configured:
        words = "no suite is configured: every repository is in scope, and would be declined"
        yield Check("suite", Health.FAILED, words)
    elif everywhere and suites.default is None:
        words = "there is no default suite: every other repository would be declined"
        yield Check("suite", Health.WARNING, words)
    for name, entry in sorted(configured.items()):
        problem = None if entry in asked.values() else _refusal(name, entry, config)
        if problem is not None:
            # Until somebody widens the scope.
            words = f"{problem}; no repository that is in scope has this suite"
            yield Check("suite", Health.WARNING, words)


def _hiding(name: str, entry: SuiteEntry, config: RunnerConfig) -> Iterator[Check]:
    """Yield a warning of a suite whose exit code is no sign that it ran, and that has no report."""
    program = hiding_program(suite_of(name, entry, config))
    if program is not None:
        words = (
            f"{name}: no report is asked for, and {program} may exit as if tests had failed where"
            " none ran, so that what this machine lacks is charged to the code: name a report"
        )
        yield Check("suite", Health.WARNING, words)


def _in_the_agents_way(name: str, entry: SuiteEntry, config: RunnerConfig) -> Iterator[Check]:
    """Yield a warning of a suite that in shadow mode is not run beside the agent."""
    if (
        config.enabled
        and config.shadow
        and suite_of(name, entry, config).workspace is Workspace.IN_PLACE
    ):
        words = (
            f"{name}: it runs in place, where it would be in the agent's way, so in shadow mode it"
            " is not run and nothing is compared: use the worktree workspace"
        )
        yield Check("suite", Health.WARNING, words)


def _configured(suites: SuitesConfig) -> dict[str, SuiteEntry]:
    """Return every suite by its name."""
    default = {} if suites.default is None else {DEFAULT: suites.default}
    return {**suites.repos, **default}


def _asked(config: RunnerConfig, suites: SuitesConfig) -> dict[str, SuiteEntry | None]:
    """Return the suites that are in scope, by their names; None for a repository without one."""
    everywhere = _configured(suites) if "*" in config.repos else {}
    return {repo: suites.entry(repo) for repo in config.repos - {"*"}} | everywhere


def examine_fleet(session: Session) -> Iterator[Check]:
    """Yield what a worker of the fleet, or a launch of it, would refuse; nothing without a fleet.

    What is wrong with the settings themselves `examine` tells.
    """
    try:
        settings = load_fleet_settings(session.variables)
        if is_fleet_session(session):
            yield from _of_fleet(session, settings)
        elif settings != load_fleet_settings({}):
            words = (
                f"{FLEET_PREFIX}_* is set, and the database carries no fleet in the schema"
                f" {settings.schema}: run `staging-fsm fleet-setup` once, if it is to have one"
            )
            yield Check("fleet", Health.WARNING, words)
    except ConfigInvalidError:
        return
    except Exception as error:  # noqa: BLE001  # whatever a driver raises is the finding
        yield Check("fleet", Health.FAILED, trouble(error) or in_words(error))


def _of_fleet(session: Session, settings: FleetSettings) -> Iterator[Check]:
    require_extra("fleet")
    is_fit = True
    for words in _refusals_of_fleet(session):
        is_fit = False
        yield Check("fleet", Health.FAILED, words)
    if is_fit:
        yield Check("fleet", Health.OK, settings.papers)


def _refusals_of_fleet(session: Session) -> Iterator[str]:
    for check in (refuse_other_papers, check_shared_folder):
        try:
            check(session)
        except StagingError as error:
            yield str(error)
    config = load_config(session.variables)
    for name, entry in sorted(_asked(config, read_suites(config)).items()):
        if _refusal(name, entry, config) is None:
            suite = suite_of(name, entry, config)
            if suite.workspace is Workspace.IN_PLACE:
                yield f"the suite of {name}: {WORKTREES_ONLY}"


def _refusal(name: str, entry: SuiteEntry | None, config: RunnerConfig) -> str | None:
    """Return why no plan can be made of a suite, or None."""
    try:
        suite_of(name, entry, config)
    except ConfigInvalidError as error:
        return "; ".join(error.problems)
    return None

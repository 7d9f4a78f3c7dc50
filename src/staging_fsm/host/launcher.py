"""`launch_job`: who works on a claimed job. `_spawn`: the only way to start an LLM."""

import json
import os
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import attrs

from staging_fsm.core.artifact import said
from staging_fsm.core.errors import PreparationError, RefusedError, StagingError, in_words
from staging_fsm.core.jobs import STAGE, JobRow, JobRows, Place
from staging_fsm.core.plan import UNVERSIONED
from staging_fsm.core.spec import State
from staging_fsm.drive.intercept import StagingIntercept
from staging_fsm.effects.files import above_standard, set_aside
from staging_fsm.effects.metadata import our_document
from staging_fsm.effects.processes import kill_marked, status_at_end
from staging_fsm.effects.rows import SqlRows
from staging_fsm.effects.worktree import is_in_repository, run_git
from staging_fsm.host.contract.gate import ARTIFACT_NAME
from staging_fsm.host.pipeline import GateResult, initiate_gate, place_of, work_item_dir
from staging_fsm.host.settings import HostSettings
from staging_fsm.host.store import HostStore, Job, SqlHostStore

if TYPE_CHECKING:
    from staging_fsm.core.ports import Clock
    from staging_fsm.core.snapshot import Snapshot

PROBE_TIMEOUT_SECONDS: Final = 10


@attrs.frozen
class Host:
    """What a launch needs: tables, settings, a clock."""

    store: HostStore
    settings: HostSettings
    clock: "Clock"
    #: Takes jobs of deploy-staging from the LLM; None is a host without a runner.
    staging: StagingIntercept | None = None
    #: Brings a commit, or HEAD, to this machine; says in which repository it is, by what name.
    #: None is the repository of the tables, which has everything.
    bring: Callable[[Job, str], tuple[Path, str]] | None = None
    #: Takes what an earlier launch left to the gate from where everybody finds it, once it is
    #: set aside here and before an agent begins.
    withdraw: Callable[[Job], None] = lambda _job: None
    #: Brings what an agent left, which ended with that exit code, to where everybody finds it,
    #: before its gate is asked.
    publish: Callable[[Job, int], None] = lambda _job, _exit_code: None
    #: Descriptors that an agent is born with: the lock that tells whether its worker has ended.
    inherited: Sequence[int] = ()

    def folder(self, job: Job) -> Path:
        """Return the folder of the job's work item."""
        return work_item_dir(self.store.repository_path(job.repo), job.work_item)

    def commit(self, job: Job, name: str) -> tuple[Path, str]:
        """Return the repository in which a commit of the job's is at hand, and its name there.

        Raises PreparationError for one that cannot be had, and OSError while nobody can tell.
        """
        if self.bring is not None:
            return self.bring(job, name)
        return self.store.repository_path(job.repo), name


def launch_job(host: Host, job: Job) -> GateResult | None:
    """Have somebody work on a claimed job, and initiate its gate when they are done.

    Returns what the gate decided, or None where the staging runner has the job.
    Reserved agents are code of this module; everybody else is an LLM agent behind
    `_spawn`.
    """
    if reserved := RESERVED_AGENTS.get(job.agent):
        exit_code = reserved(host, job)
    elif _run_staging_runner_job(host, job):
        # The runner has initiated the gate itself, or will when its next run has ended.
        return None
    else:
        exit_code = _spawn(host, job)
    host.publish(job, exit_code)
    result = finish_job(host, job, exit_code)
    if host.staging is not None and job.stage == STAGE:
        host.staging.agent_ended(job.id, opened=result.opened, log=_agent_log(host, job))
    return result


def finish_job(host: Host, job: Job, exit_code: int) -> GateResult:
    """Initiate the gate of a job whose producer has ended, in one transaction."""
    with host.store.transaction() as tx:
        return initiate_gate(host.store, tx, job, exit_code, host.folder(job), host.clock.now())


def end_without_agent(rows: JobRows, job_id: int, declined: "Snapshot") -> None:
    """End a job that was `declined` where there is no agent to take it, as cancelled.

    Raises StaleSnapshotError if its attempt has moved since.
    """
    rows.cancel(job_id, declined)


def agent_command(host: Host, job: Job) -> list[str]:
    """Return the argument vector of the LLM agent for `job`."""
    names = {"agent": job.agent, "stage": job.stage, "work_item": job.work_item, "repo": job.repo}
    words = list(host.settings.agent_command)
    for name, value in names.items():
        words = [word.replace("{" + name + "}", value) for word in words]
    return words


#: Says which folder an agent works for, to the agent, and to whoever looks for what it left.
AGENT_MARK: Final = "ORCH_WORK_ITEM_DIR"
#: Says by whose claim of which job it works: a folder may be that of a living worker's agent too.
CLAIM_MARK: Final = "ORCH_CLAIM"
#: How often an agent that a dead worker left is killed; one of another user cannot be.
AGENT_KILLS: Final = 20
#: What one that was killed is given to die.
AGENT_PAUSE_SECONDS: Final = 0.05


def end_agents(mark: str, value: str, after_kill: Callable[[], object]) -> bool:
    """Kill agents by what stands in their environment; say whether none is left. Bounded.

    `after_kill` is called each time that one was alive. Raises what it raises, and
    OSError where there is no descriptor left to look.
    """
    for _ in range(AGENT_KILLS):
        if not kill_marked(mark, value):
            return True
        after_kill()
    return False


def end_agent_of_dead(clock: "Clock", job: Job) -> bool:
    """Kill the agent, and all that it started, of the dead worker that has `job`.

    Says whether nothing of it is left: only then may anything else be started for the
    job. No agent of another claim is touched. Raises OSError as `end_agents`.
    """
    return end_agents(CLAIM_MARK, _claim_of(job), lambda: clock.wait(AGENT_PAUSE_SECONDS))


def _claim_of(job: Job) -> str:
    return f"{job.claimed_by}/{job.id}"


def _agent_log(host: Host, job: Job) -> Path:
    return host.settings.log_dir / f"job-{job.id}.log"


def _spawn(host: Host, job: Job) -> int:
    """Start the LLM agent for `job`, wait for its end, and return its exit code.

    The agent's verdict, if its stage has one, is the artifact it leaves in the
    work item's folder. An artifact of an earlier launch is set aside first, or
    an agent that wrote nothing would be judged by it. Raises RefusedError where no
    command is configured, and ChildProcessError where nobody can tell how it ended.
    """
    command = agent_command(host, job)
    if not command:
        message = "no agent command is configured: set ORCH_AGENT_COMMAND"
        raise RefusedError(message)
    folder = host.folder(job)
    folder.mkdir(parents=True, exist_ok=True)
    if job.stage == STAGE and set_aside(folder / ARTIFACT_NAME, f"before-job-{job.id}"):
        host.withdraw(job)
    host.settings.log_dir.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "ORCH_AGENT": job.agent,
        "ORCH_STAGE": job.stage,
        "ORCH_WORK_ITEM": job.work_item,
        AGENT_MARK: str(folder),
        CLAIM_MARK: _claim_of(job),
    }
    with _agent_log(host, job).open("ab") as log, above_standard(host.inherited) as locks:
        process = subprocess.Popen(
            command,
            cwd=host.store.repository_path(job.repo),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=locks,
        )
        return _exit_code(process)


def _exit_code(process: "subprocess.Popen[bytes]", timeout: float | None = None) -> int:
    """Wait for the end of a process and return how it ended; raises as `status_at_end`."""
    try:
        status = status_at_end(process.pid, timeout)
    except ChildProcessError:
        # It has ended, and Popen, which would ask for it once more, is to know.
        process.wait()
        raise
    reaped = process.wait(timeout)
    return reaped if status is None else status


def _run_staging_runner_job(host: Host, job: Job) -> bool:
    """Hand the job to the staging runner; False if it declines and the LLM must do it."""
    if host.staging is None or job.stage != STAGE:
        return False
    return bool(host.staging.launch(job.id, job.metadata))


def staging_intercept(
    store: SqlHostStore,
    clock: "Clock",
    variables: Mapping[str, str] | None = None,
    place: Callable[[JobRow], Place] | None = None,
    **replaced: Any,
) -> StagingIntercept:
    """Return the intercept of this host: its gate, its folders, its job rows."""
    where = once_for_each_row(place or partial(place_of, store))

    def gate(row: JobRow, tx: Any) -> bool:
        # Exactly what happens when an LLM deployer has ended.
        folder = where(row).artifact_dir
        return initiate_gate(store, tx, row, 0, folder, clock.now()).opened

    return StagingIntercept.for_host(
        SqlRows(store.engine), gate, where, variables, clock=clock, **replaced
    )


def once_for_each_row(place: Callable[[JobRow], Place]) -> Callable[[JobRow], Place]:
    """Return `place`, asked once by each thread for as long as it has the same row in hand.

    Whoever launches a job loads its row once, so that nobody sees its repository move
    between run and gate, and the database is asked once.
    """
    last = threading.local()

    def found(row: JobRow) -> Place:
        if getattr(last, "row", None) is not row:
            last.place = place(row)
            last.row = row
        known: Place = last.place
        return known

    return found


def _run_deploy_finalizer_job(host: Host, job: Job) -> int:
    """Tag the deployed revision and record it on the job.

    What the runner has passed is deployed at the revision of its attempt, and nothing
    else is; after an agent it is the one that the artifact names, else the checked-out one.
    Only where there is none of them it is "unversioned".
    """
    try:
        revision = _deployed(host, job)
    except StagingError as error:
        host.store.record(job.id, "deploy_error", str(error)[-500:])
        return 1
    host.store.record(job.id, "deployed_revision", revision)
    return 0


def deployed_tag(work_item: str) -> str:
    """Return the name of the tag that leads to what is deployed of a work item."""
    return f"deployed/{work_item}"


def _deployed(host: Host, job: Job) -> str:
    """Tag what staging has passed; return its revision. Raises PreparationError and its like."""
    tag = deployed_tag(job.work_item)
    staged = host.store.job_before(job, STAGE)
    attempt = None if staged is None else _attempt_of(staged)
    if staged is None or attempt is None or attempt.state is State.LLM_FALLBACK:
        named = _staged_revision(host.folder(job))
        repository, wanted = host.commit(job, named or "HEAD")
        if named is None and not is_in_repository(repository):
            return UNVERSIONED
        return _tagged(repository, wanted, tag)
    if attempt.state is not State.ADVANCED:
        message = (
            f"staging of {job.work_item} in job {staged.id} is {attempt.state}, and only what has"
            " ADVANCED is deployed: run staging again"
        )
        raise RefusedError(message)
    revision = attempt.bound_plan.revision
    return revision if revision == UNVERSIONED else _tagged(*host.commit(job, revision), tag)


def _attempt_of(job: Job) -> "Snapshot | None":
    """Return the attempt that a job holds; raises SnapshotRefusedError."""
    document = our_document(job.metadata)
    return JobRow(job.id, job.repo, job.work_item, job.stage, job.status, None, document).snapshot()


def _tagged(repository: Path, wanted: str, tag: str) -> str:
    """Put a tag on the commit that is wanted; return it. Raises PreparationError."""
    found = run_git(repository, "rev-parse", "--verify", f"{wanted}^{{commit}}")
    revision = found.stdout.strip()
    if found.returncode == 0:
        found = run_git(repository, "tag", "--force", tag, revision)
    if found.returncode != 0:
        message = f"{wanted} cannot be tagged in {repository}: {found.stderr.strip()}"
        raise PreparationError(message)
    return revision


def _staged_revision(folder: Path) -> str | None:
    try:
        found = said((folder / ARTIFACT_NAME).read_text(encoding="utf-8"), "revision")
    except (OSError, UnicodeDecodeError):
        return None
    return None if found == UNVERSIONED else found


def _run_post_deploy_monitor_job(host: Host, job: Job) -> int:
    """Probe the deployed service for a while and record what was seen.

    Healthy means that every probe was; with no probe configured that is said.
    """
    settings = host.settings
    if not settings.monitor_url and not settings.monitor_command:
        host.store.record(job.id, "monitor", "no probe is configured")
        return 0
    failures = []
    for number in range(settings.monitor_probes):
        if number:
            host.clock.wait(settings.monitor_interval_seconds)
        problem = _probe(settings)
        if problem:
            failures.append(problem)
    seen = {"probes": settings.monitor_probes, "failed": len(failures), "last": failures[-1:]}
    host.store.record(job.id, "monitor", json.dumps(seen))
    return 1 if failures else 0


def _probe(settings: HostSettings) -> str | None:
    """Return what is wrong with the deployed service, or None."""
    try:
        if settings.monitor_command:
            exit_code = _probe_by_command(settings.monitor_command)
            return f"exit code {exit_code}" if exit_code else None
        if urllib.parse.urlsplit(settings.monitor_url).scheme not in ("http", "https"):
            return "the address of the probe begins with neither http:// nor https://"
        opener = urllib.request.build_opener(_NowhereElse)
        with opener.open(settings.monitor_url, timeout=PROBE_TIMEOUT_SECONDS):
            return None
    except Exception as error:  # noqa: BLE001  # whatever keeps us from an answer, there is none
        return in_words(error)


def _probe_by_command(command: Sequence[str]) -> int:
    """Return the exit code of a probe. What it prints nobody reads; what it leaves behind goes on.

    Raises TimeoutError, and ChildProcessError where nobody can tell how it ended.
    """
    nothing = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing) as process:
        try:
            return _exit_code(process, PROBE_TIMEOUT_SECONDS)
        except BaseException:
            process.kill()
            raise


class _NowhereElse(urllib.request.HTTPRedirectHandler):
    """Takes an answer that leads elsewhere for the answer that it is, and no 2xx."""

    def redirect_request(self, *_: object) -> None:
        """Follow nobody: what another address says is not what was asked."""


#: The agent that tags what is deployed.
FINALIZER: Final = "deploy-finalizer"
#: Agents that are code of this module, not an LLM.
RESERVED_AGENTS: Final[Mapping[str, Callable[[Host, Job], int]]] = MappingProxyType(
    {
        FINALIZER: _run_deploy_finalizer_job,
        "post-deploy-monitor": _run_post_deploy_monitor_job,
    }
)

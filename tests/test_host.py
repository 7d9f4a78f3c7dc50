"""The reference host on its own: a work item is carried over the LLM path by any agent command."""

import contextlib
import errno
import functools
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
import sqlalchemy as sa

from hosts import REPO, HostKit, git
from staging_fsm.core.artifact import written
from staging_fsm.core.errors import RefusedError
from staging_fsm.core.spec import Event
from staging_fsm.effects.clock import SystemClock
from staging_fsm.effects.processes import (
    ProcessIdentity,
    identify,
    is_alive,
    send_signal,
    this_process,
    wait_for_end,
)
from staging_fsm.effects.rows import SqlRows
from staging_fsm.host import launcher
from staging_fsm.host.contract.gate import ARTIFACT_NAME
from staging_fsm.host.contract.stages import STAGE_AGENTS, STAGE_TRANSITIONS
from staging_fsm.host.database import open_database
from staging_fsm.host.launcher import CLAIM_MARK, Host, finish_job, once_for_each_row
from staging_fsm.host.pipeline import ARTIFACT_GATES, JobAlreadyEndedError
from staging_fsm.host.store import Job, SqlHostStore, WorkItem
from staging_fsm.host.worker import IDLE_SECONDS, Worker
from trails import FAILED, FIRST, PASSED, PLAN, WRITTEN, walked

DEADLINE_SECONDS = 60
Maker = Callable[..., HostKit]

#: An agent that writes a verdict on deploy-staging and exits 0 everywhere.
AGENT = """
import os, pathlib
folder = pathlib.Path(os.environ["ORCH_WORK_ITEM_DIR"])
if os.environ["ORCH_STAGE"] == "deploy-staging":
    (folder / "15-staging-log.md").write_text("---\\nstaging_status: {status}\\n---\\nIt ran.\\n")
"""


class NoWaiting(SystemClock):
    """A clock on which every wait is over at once."""

    def __init__(self) -> None:
        """Begin with the machine's own time."""
        super().__init__()
        self.waited = 0.0

    def now(self) -> datetime:
        """Return the time of day as it would be."""
        return super().now() + timedelta(seconds=self.waited)

    def wait(self, seconds: float) -> None:
        """Do not wait."""
        self.waited += seconds


def worker(kit: HostKit) -> Worker:
    """Return a worker of this process."""
    return Worker(kit.host, str(this_process()))


def dead_worker() -> ProcessIdentity:
    """Return the name of a worker of this machine that is gone."""
    here = this_process()
    return ProcessIdentity(here.scope, here.pid, here.start + 1)


def test_llm_path_carries_a_work_item_from_analysis_to_done(make_host: Maker) -> None:
    """Without a runner, any agent command carries a work item through every stage."""
    kit = make_host(AGENT.replace("{status}", "SUCCESS"))
    kit.add("analysis")

    launched = worker(kit).run_until_idle()

    assert launched == 8
    assert kit.item().stage == "done"
    assert git(kit.repository, "tag", "--list") == "deployed/WI-1"


def test_failed_verdict_of_the_llm_costs_one_developer_retry(make_host: Maker) -> None:
    """A FAILED artifact sends the work item back to development and costs one developer retry."""
    kit = make_host(AGENT.replace("{status}", "FAILED"))
    kit.add("deploy-staging", retries=2)

    worker(kit).run_one()

    assert (kit.item().stage, kit.item().developer_retries) == ("development", 1)


@pytest.mark.parametrize("stage", sorted(STAGE_AGENTS))
def test_failure_of_any_stage_costs_one_developer_retry(make_host: Maker, stage: str) -> None:
    """Whichever gate refuses, it costs one developer retry: no work item goes round for ever."""
    kit = make_host()
    job_id = kit.add(stage, retries=2)
    finish_job(kit.host, kit.store.job(job_id), 1)

    assert kit.item().stage == STAGE_TRANSITIONS[stage, "failure"]
    assert kit.item().developer_retries == 1


def test_work_item_without_developer_retries_is_blocked_for_a_person(make_host: Maker) -> None:
    """A work item whose developer retries are spent is blocked where its gate sends it."""
    kit = make_host(AGENT.replace("{status}", "FAILED"))
    kit.add("deploy-staging", retries=0)

    launched = worker(kit).run_until_idle()

    assert (launched, kit.item().stage) == (1, "development")
    assert "no developer retry left" in str(kit.item().blocked_reason)


@pytest.mark.parametrize("stage", sorted(STAGE_AGENTS))
def test_no_stage_goes_on_without_developer_retries(make_host: Maker, stage: str) -> None:
    """Whichever gate refuses when no retry is left, nobody is launched again before a person looks.

    That holds for a stage that is its own successor after a failure, too.
    """
    kit = make_host()
    result = finish_job(kit.host, kit.store.job(kit.add(stage, retries=0)), 1)

    assert "no developer retry left" in str(kit.item().blocked_reason)
    assert result.next_job is None
    assert kit.store.claim_next(kit.host.clock.now(), "w") is None


def test_work_item_that_moves_on_is_blocked_no_more(make_host: Maker) -> None:
    """A blocked work item whose job a person queued is free once its gate has opened."""
    kit = make_host()
    finish_job(kit.host, kit.store.job(kit.add("review", retries=0)), 1)
    blocked = kit.item()
    with kit.store.transaction() as tx:
        job_id = kit.store.enqueue(tx, blocked, "developer", kit.host.clock.now())
    finish_job(kit.host, kit.store.job(job_id), 0)

    following = kit.store.claim_next(kit.host.clock.now(), "w")

    assert blocked.blocked_reason is not None
    assert kit.item() == attrs.evolve(blocked, stage="review", blocked_reason=None)
    assert following is not None
    assert following.stage == "review"


def test_gate_moves_a_work_item_on_from_the_stage_of_its_job(make_host: Maker) -> None:
    """An agent that comes late to a work item that a person moved on gives it no staging pass."""
    kit = make_host()
    job_id = kit.add("testing")
    with kit.store.transaction() as tx:
        moved = attrs.evolve(kit.store.work_item(tx, REPO, "WI-1"), stage="deploy-staging")
        kit.store.move_work_item(tx, moved, kit.host.clock.now())
    finish_job(kit.host, kit.store.job(job_id), 0)
    following = kit.store.claim_next(kit.host.clock.now(), "w")

    assert kit.item().stage == "deploy-staging"
    assert following is not None
    assert following.agent == "deployer"


def test_work_item_that_is_run_again_keeps_what_is_left_of_its_retries(make_host: Maker) -> None:
    """Bringing a known work item to a stage frees it, and gives it no developer retries anew."""
    kit = make_host()
    finish_job(kit.host, kit.store.job(kit.add("review", retries=0)), 1)
    anew = WorkItem(REPO, "WI-1", "deploy-staging", 3, None)
    kit.store.job_at(anew, "deployer", kit.host.clock.now())

    assert kit.item() == attrs.evolve(anew, developer_retries=0)


def test_job_of_a_stage_that_has_to_be_passed_anew_is_cancelled(make_host: Maker) -> None:
    """What was queued before a work item was brought back would go on past the stage it is at."""
    kit = make_host()
    now = kit.host.clock.now()
    deploy, other = kit.add("deploy"), kit.add("deploy", "WI-2")
    staged = kit.store.job_at(attrs.evolve(kit.item(), stage="deploy-staging"), "deployer", now)

    assert [kit.store.job(job).status for job in (deploy, other)] == ["cancelled", "queued"]
    assert (kit.item().stage, kit.store.job(staged).status) == ("deploy-staging", "queued")


def further(kit: HostKit, stage: str) -> int:
    """Bring the work item to a stage, a new one if there is none, and queue its job there."""
    now = kit.host.clock.now()
    with kit.store.transaction() as tx:
        try:
            item = kit.store.work_item(tx, REPO, "WI-1")
        except LookupError:
            item = None
        if item is not None:
            moved = attrs.evolve(item, stage=stage)
            kit.store.move_work_item(tx, moved, now)
            return kit.store.enqueue(tx, moved, STAGE_AGENTS[stage], now)
    return kit.add(stage)


def test_work_item_is_not_taken_away_from_who_works_on_it(make_host: Maker) -> None:
    """While a job of another stage is in work, a work item is brought nowhere, and who has it said.

    Nothing is changed: what waits is left as it is, too.
    """
    kit = make_host()
    now, before = kit.host.clock.now(), kit.add("development")
    waiting = further(kit, "deploy")
    assert kit.store.claim_next(now, "w", before) is not None

    with pytest.raises(RefusedError, match=f"is in work at stage development, in job {before}"):
        kit.store.job_at(attrs.evolve(kit.item(), stage="deploy-staging"), "deployer", now)
    assert [kit.store.job(job).status for job in (before, waiting)] == ["running", "queued"]
    assert kit.item().stage == "deploy"


def staged(kit: HostKit, *moves: Any, revision: str | None = None) -> str:
    """Have staging of the work item end by some moves, on the checked-out commit; return it."""
    head = git(kit.repository, "rev-parse", "HEAD")
    job, rows = kit.store.job(further(kit, "deploy-staging")), SqlRows(kit.store.engine)
    plan = attrs.evolve(PLAN, revision=head if revision is None else revision)
    claim = (Event.JOB_CLAIMED, {"plan": plan, "runs": (FIRST,)})
    for number in range(1, len(moves) + 2):
        rows.save(job.id, walked(claim, *moves[: number - 1]))
    with kit.store.transaction() as tx:
        kit.store.finish_job(tx, job.id, kit.host.clock.now())
    return head


OPENED = ((Event.SUITE_PASSED, {"runs": (PASSED,)}), (Event.GATE_OPENED, {"artifact": WRITTEN}))
TURNED_DOWN = (
    (Event.SUITE_FAILED, {"runs": (FAILED,)}),
    (Event.GATE_REFUSED, {"artifact": WRITTEN}),
)


@pytest.mark.parametrize("artifact", [None, "another", "nonsense"])
def test_what_staging_passed_is_deployed_whatever_is_checked_out(
    make_host: Maker, artifact: str | None
) -> None:
    """The revision of a deployment is that of the attempt, whatever became of papers and tree."""
    kit = make_host()
    head = staged(kit, *OPENED)
    job_id = further(kit, "deploy")
    git(kit.repository, "commit", "--quiet", "--allow-empty", "--message", "Later")
    if artifact is not None:
        folder = kit.host.folder(kit.store.job(job_id))
        folder.mkdir(parents=True)
        named = git(kit.repository, "rev-parse", "HEAD") if artifact == "another" else artifact
        (folder / ARTIFACT_NAME).write_text(f"---\n{written('revision', named)}\n---\n")
    worker(kit).run_one()

    assert git(kit.repository, "rev-parse", "deployed/WI-1") == head
    assert kit.item().stage == "post-deploy"


def test_what_staging_refused_is_not_deployed(make_host: Maker) -> None:
    """A job that deploys goes back to development where the staging before it did not pass."""
    kit = make_host()
    staged(kit, *TURNED_DOWN)
    job_id = further(kit, "deploy")
    worker(kit).run_one()

    assert git(kit.repository, "tag", "--list") == ""
    assert kit.item().stage == "development"
    assert "is ROLLED_BACK, and only what has ADVANCED" in kit.store.job(job_id).metadata


def test_staging_of_what_is_deployed_is_the_one_before_it(make_host: Maker) -> None:
    """What is staged after a deployment was queued is no part of that deployment."""
    kit = make_host()
    head = staged(kit, *OPENED)
    job_id = further(kit, "deploy")
    git(kit.repository, "commit", "--quiet", "--allow-empty", "--message", "Later")
    staged(kit, *TURNED_DOWN)
    job = kit.store.claim_next(kit.host.clock.now(), "w", job_id)
    assert job is not None
    launcher.launch_job(kit.host, job)

    assert git(kit.repository, "rev-parse", "deployed/WI-1") == head


def test_what_was_passed_without_a_revision_is_deployed_without_one(make_host: Maker) -> None:
    """No commit is made out to be deployed where the suite was run on none."""
    kit = make_host()
    staged(kit, *OPENED, revision="unversioned")
    job_id = further(kit, "deploy")
    worker(kit).run_one()

    assert json.loads(kit.store.job(job_id).metadata) == {"deployed_revision": "unversioned"}
    assert git(kit.repository, "tag", "--list") == ""


def test_damaged_attempt_is_not_deployed(make_host: Maker) -> None:
    """Where nobody can say whether staging has passed, nothing is deployed, and it is said why."""
    kit = make_host()
    before = kit.add("deploy-staging")
    with kit.store.transaction() as tx:
        tx.execute(
            sa.text("UPDATE jobs SET status = 'done', metadata = :damaged WHERE id = :id"),
            {"damaged": '{"staging_runner": 17}', "id": before},
        )
    job_id = further(kit, "deploy")
    worker(kit).run_one()

    assert git(kit.repository, "tag", "--list") == ""
    assert "snapshot is refused" in kit.store.job(job_id).metadata


def test_agent_that_writes_nothing_is_not_judged_by_an_older_artifact(make_host: Maker) -> None:
    """An artifact of an earlier launch is set aside before the agent starts."""
    kit = make_host("pass")
    job = kit.add("deploy-staging")
    folder = kit.repository / "docs" / "work-items" / "WI-1"
    folder.mkdir(parents=True)
    (folder / ARTIFACT_NAME).write_text("---\nstaging_status: SUCCESS\n---\n")

    worker(kit).run_one()

    assert kit.item().stage == "development"
    assert (folder / f"15-staging-log.before-job-{job}.1.md").exists()


def test_every_older_artifact_is_kept(make_host: Maker) -> None:
    """However often one job is launched, no artifact of an earlier launch is overwritten."""
    kit = make_host("pass")
    job = kit.add("deploy-staging")
    folder = kit.repository / "docs" / "work-items" / "WI-1"
    folder.mkdir(parents=True)
    for text in ("first", "second"):
        (folder / ARTIFACT_NAME).write_text(text)
        launcher._spawn(kit.host, kit.store.job(job))

    kept = folder.glob(f"15-staging-log.before-job-{job}.*.md")
    assert sorted(path.read_text() for path in kept) == ["first", "second"]


def at_once(*work: Callable[[], object]) -> list[object]:
    """Do some work in a thread each, all at once; return what came of it."""
    barrier = threading.Barrier(len(work))

    def start(one: Callable[[], object]) -> object:
        barrier.wait()
        return one()

    with ThreadPoolExecutor(len(work)) as pool:
        return list(pool.map(start, work))


@pytest.mark.parametrize("go", range(5))
def test_repositories_that_come_at_once_have_a_name_each(
    make_host: Maker, tmp_path: Path, go: int
) -> None:
    """Of repositories whose folders have the same name none is taken for another."""
    store = make_host().store
    paths = [tmp_path / "one" / f"till-{go}", tmp_path / "two" / f"till-{go}"]
    names = at_once(*(functools.partial(store.register, path) for path in paths * 2))

    assert [store.repository_path(str(name)) for name in names] == paths * 2
    assert len({*names}) == 2


@pytest.mark.parametrize("go", range(5))
def test_work_item_that_comes_twice_at_once_has_one_job(make_host: Maker, go: int) -> None:
    """Whoever brings a work item to a stage at the same moment shares its job."""
    kit = make_host()
    item = WorkItem(REPO, f"WI-{go}", "deploy-staging", 3, None)
    bring = functools.partial(kit.store.job_at, item, "deployer", kit.host.clock.now())
    for _ in range(2):
        [job] = {*at_once(*[bring] * 4)}
        with kit.store.transaction() as tx:
            assert kit.store.finish_job(tx, int(str(job)), kit.host.clock.now())
            kit.store.move_work_item(
                tx, attrs.evolve(item, stage="development"), kit.host.clock.now()
            )

    assert kit.item(f"WI-{go}").stage == "development"


def test_work_item_that_is_in_work_has_no_second_job(make_host: Maker) -> None:
    """Whoever brings a work item to a stage where its job is in work shares that job."""
    kit = make_host()
    job_id = kit.add("deploy-staging")
    now = kit.host.clock.now()
    assert kit.store.claim_next(now, "w") is not None

    assert kit.store.job_at(kit.item(), "deployer", now) == job_id


def test_agent_finds_no_older_artifact_at_its_start(
    make_host: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older verdict is out of the way before the agent is started, not after it."""
    kit = make_host("pass")
    kit.add("deploy-staging")
    older = kit.repository / "docs" / "work-items" / "WI-1" / ARTIFACT_NAME
    older.parent.mkdir(parents=True, exist_ok=True)
    older.write_text("---\nstaging_status: SUCCESS\n---\n")
    start, seen = subprocess.Popen, list[bool]()

    def watched(*arguments: Any, **how: Any) -> Any:
        seen.append(older.exists())
        return start(*arguments, **how)

    monkeypatch.setattr(subprocess, "Popen", watched)
    worker(kit).run_one()

    assert seen == [False]


def test_agent_is_told_of_its_own_job(make_host: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent is told its own job, also by a worker that is itself the work of an agent."""
    told = {"ORCH_AGENT": "deployer", "ORCH_STAGE": "deploy-staging", "ORCH_WORK_ITEM": "WI-1"}
    for name in (*told, "ORCH_WORK_ITEM_DIR", CLAIM_MARK):
        monkeypatch.setenv(name, "/the/outer/one")
    kit = make_host("import json, os; print(json.dumps(dict(os.environ)))")
    job_id = kit.add("deploy-staging")

    worker(kit).run_one()

    seen = json.loads((kit.host.settings.log_dir / f"job-{job_id}.log").read_text())
    folder = str(kit.repository / "docs" / "work-items" / "WI-1")
    assert {name: seen[name] for name in (*told, "ORCH_WORK_ITEM_DIR", CLAIM_MARK)} == {
        **told,
        "ORCH_WORK_ITEM_DIR": folder,
        CLAIM_MARK: f"{this_process()}/{job_id}",
    }


def test_agent_works_in_its_repository(make_host: Maker) -> None:
    """An agent begins in the repository, where the paths of its command and its prompt lead."""
    kit = make_host("import os; print(os.getcwd())")
    job = kit.store.job(kit.add("testing"))
    launcher._spawn(kit.host, job)

    log = kit.host.settings.log_dir / f"job-{job.id}.log"
    assert log.read_text() == f"{kit.repository}\n"


def test_agent_that_is_killed_has_not_ended_well(make_host: Maker) -> None:
    """An agent that ends by a signal, for want of memory say, has failed its gate."""
    kit = make_host(agent_command="sh -c 'kill -9 $$'")
    kit.add("testing", retries=2)

    worker(kit).run_one()

    assert (kit.item().stage, kit.item().developer_retries) == ("development", 1)


@pytest.mark.parametrize("stage", ["deploy-staging", "testing"])
@pytest.mark.parametrize("code", [0, 3])
def test_what_an_agent_left_is_published_before_its_gate(
    make_host: Maker, stage: str, code: int
) -> None:
    """However an agent ended, what it left is where everybody finds it when its gate is asked."""
    kit = make_host(f"raise SystemExit({code})")
    job_id = kit.add(stage)
    published: list[tuple[int, str]] = []

    def publish(job: Job) -> None:
        published.append((job.id, kit.item().stage))

    worker(attrs.evolve(kit, host=attrs.evolve(kit.host, publish=publish))).run_one()

    assert published == [(job_id, stage)]


def test_exit_code_says_nothing_where_an_artifact_speaks(make_host: Maker) -> None:
    """A deployer's artifact is its verdict, whatever its agent's exit code."""
    kit = make_host(AGENT.replace("{status}", "SUCCESS") + "raise SystemExit(3)\n")
    kit.add("deploy-staging")

    worker(kit).run_one()

    assert kit.item().stage == "deploy"


def test_place_is_that_of_the_threads_own_row() -> None:
    """However many threads ask where their jobs are, each is told of its own."""
    both = threading.Barrier(2)
    rows: list[Any] = [object(), object()]

    def place(row: Any) -> Any:
        both.wait(DEADLINE_SECONDS)
        return f"the place of {rows.index(row)}"

    found = once_for_each_row(place)

    def ask(number: int) -> list[Any]:
        answers: list[Any] = [found(rows[number])]
        both.wait(DEADLINE_SECONDS)
        return [*answers, found(rows[number])]

    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(ask, range(2))] == [[f"the place of {n}"] * 2 for n in range(2)]


def test_place_that_cannot_be_found_is_not_that_of_another_row() -> None:
    """A place that could not be found is looked for again, and the one before is never taken."""
    rows: list[Any] = [object(), object()]
    answers = iter(["of the first", OSError("away"), "of the second"])

    def place(_row: Any) -> Any:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    found = once_for_each_row(place)
    told: list[Any] = [found(rows[0])]
    with pytest.raises(OSError, match="away"):
        found(rows[1])

    assert [*told, found(rows[1])] == ["of the first", "of the second"]


def test_place_is_asked_anew_for_a_row_that_was_loaded_anew(make_host: Maker) -> None:
    """A row that was loaded later has a place of its own, though it looks like the one before."""
    kit = make_host()
    job_id = kit.add("deploy-staging")
    rows = SqlRows(kit.store.engine)
    first, later = rows.load(job_id), rows.load(job_id)
    places: Iterator[Any] = iter(["before the move", "after the move"])
    found = once_for_each_row(lambda _: next(places))
    answers: list[Any] = [found(row) for row in (first, first, later)]

    assert first == later
    assert answers == ["before the move"] * 2 + ["after the move"]


def test_agent_that_writes_nothing_has_not_said_yes(make_host: Maker) -> None:
    """An agent that ends well and leaves no artifact has failed its gate: silence is a no."""
    kit = make_host("pass")
    kit.add("deploy-staging")

    worker(kit).run_one()

    assert kit.item().stage == "development"


def test_gate_of_a_job_is_initiated_once(make_host: Maker) -> None:
    """A second end of the same job is refused and moves nothing."""
    kit = make_host(AGENT.replace("{status}", "SUCCESS"))
    job_id = kit.add("deploy-staging")
    worker(kit).run_one()

    with pytest.raises(JobAlreadyEndedError, match=f"job {job_id} is not running"):
        finish_job(kit.host, kit.store.job(job_id), 0)

    assert kit.item().stage == "deploy"


def test_gate_of_an_ended_job_is_not_even_asked(
    make_host: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is second is turned away before the gate reads: the artifact may be another's now."""
    kit = make_host()
    job = kit.store.job(kit.add("deploy-staging"))
    asked: list[Path] = []

    def gate(folder: Path) -> bool:
        asked.append(folder)
        return False

    monkeypatch.setitem(ARTIFACT_GATES, job.stage, gate)
    finish_job(kit.host, job, 0)

    with pytest.raises(JobAlreadyEndedError):
        finish_job(kit.host, job, 0)

    assert len(asked) == 1


def set_status(kit: HostKit, job_id: int, status: str) -> None:
    """Write the status of a job by hand."""
    with kit.store.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE jobs SET status = :status WHERE id = :id"),
            {"status": status, "id": job_id},
        )


@pytest.mark.parametrize("status", ["cancelled", "done"])
def test_gate_of_an_ended_job_is_not_initiated(make_host: Maker, status: str) -> None:
    """An agent that comes late to a job that was ended meanwhile moves nothing."""
    kit = make_host()
    job_id = kit.add("development")
    kit.store.claim_next(kit.host.clock.now(), "late", job_id)
    set_status(kit, job_id, status)

    with pytest.raises(JobAlreadyEndedError, match=f"job {job_id} is not running"):
        finish_job(kit.host, kit.store.job(job_id), 0)

    assert (kit.item().stage, kit.store.job(job_id).status) == ("development", status)


def test_finalizer_tags_the_staged_revision_and_records_it(make_host: Maker) -> None:
    """The deploy-finalizer tags the revision that was staged, and its job says which."""
    kit = make_host()
    revision = git(kit.repository, "rev-parse", "HEAD")
    folder = kit.repository / "docs" / "work-items" / "WI-1"
    folder.mkdir(parents=True)
    (folder / ARTIFACT_NAME).write_text(
        f'---\nstaging_status: SUCCESS\nrevision: "{revision}"\n---\n'
    )
    git(kit.repository, "commit", "--quiet", "--allow-empty", "-m", "Somebody else went on.")
    job_id = kit.add("deploy")

    worker(kit).run_one()

    assert git(kit.repository, "rev-parse", "deployed/WI-1") == revision
    assert json.loads(kit.store.job(job_id).metadata) == {"deployed_revision": revision}


def test_finalizer_takes_no_revision_from_what_an_artifact_quotes(make_host: Maker) -> None:
    """Only an artifact's front matter names what was staged: its quoted output says nothing."""
    kit = make_host()
    other = git(kit.repository, "rev-parse", "HEAD")
    git(kit.repository, "commit", "--quiet", "--allow-empty", "-m", "This is what was staged.")
    folder = kit.repository / "docs" / "work-items" / "WI-1"
    folder.mkdir(parents=True)
    quoted = f"---\nstaging_status: SUCCESS\n---\nIt printed:\nrevision: {other}\n"
    (folder / ARTIFACT_NAME).write_text(quoted)
    kit.add("deploy")

    worker(kit).run_one()

    assert git(kit.repository, "rev-parse", "deployed/WI-1") != other


def test_finalizer_moves_the_tag_of_an_earlier_deployment(make_host: Maker) -> None:
    """A work item that is deployed a second time has its tag where it was deployed last."""
    kit = make_host()
    git(kit.repository, "tag", "deployed/WI-1")
    git(kit.repository, "commit", "--quiet", "--allow-empty", "-m", "It is mended.")
    kit.add("deploy")

    worker(kit).run_one()

    head = git(kit.repository, "rev-parse", "HEAD")
    assert (kit.item().stage, git(kit.repository, "rev-parse", "deployed/WI-1")) == (
        "post-deploy",
        head,
    )


def test_finalizer_that_cannot_tag_says_why(make_host: Maker) -> None:
    """A revision that is not there is not deployed: its job says so, and it goes back."""
    kit = make_host()
    folder = kit.repository / "docs" / "work-items" / "WI-1"
    folder.mkdir(parents=True)
    (folder / ARTIFACT_NAME).write_text(f"---\nrevision: {'0' * 40}\n---\n")
    job_id = kit.add("deploy")

    worker(kit).run_one()

    assert "deploy_error" in json.loads(kit.store.job(job_id).metadata)
    assert kit.item().stage == "development"


def test_finalizer_without_git_says_so(make_host: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which git cannot be run leaves no deployment behind that nobody ends."""
    kit = make_host()
    job_id = kit.add("deploy")
    monkeypatch.setenv("PATH", "")

    worker(kit).run_one()

    assert "git could not be run" in json.loads(kit.store.job(job_id).metadata)["deploy_error"]
    assert kit.item().stage == "development"


def test_finalizer_of_a_folder_without_git_says_so(make_host: Maker, tmp_path: Path) -> None:
    """What is in no repository of git is deployed as unversioned, and no revision is made up."""
    kit = make_host()
    (tmp_path / "plain").mkdir()
    kit.store.add_repository("plain", tmp_path / "plain")
    job_id = kit.add("deploy", repo="plain")

    worker(kit).run_one()

    assert json.loads(kit.store.job(job_id).metadata) == {"deployed_revision": "unversioned"}
    assert kit.item(repo="plain").stage == "post-deploy"


def test_finalizer_tags_what_is_a_folder_of_a_repository(make_host: Maker) -> None:
    """Where one repository holds many services, each is deployed by the revision of them all."""
    kit = make_host()
    (kit.repository / "till").mkdir()
    kit.store.add_repository("till", kit.repository / "till")
    job_id = kit.add("deploy", repo="till")

    worker(kit).run_one()

    head = git(kit.repository, "rev-parse", "HEAD")
    assert json.loads(kit.store.job(job_id).metadata) == {"deployed_revision": head}
    assert git(kit.repository, "rev-parse", "deployed/WI-1") == head


def test_finalizer_runs_no_program_of_the_repository(make_host: Maker) -> None:
    """What was deployed has no say in its own tag: none of its hooks is run."""
    kit = make_host()
    hook = kit.repository / ".git" / "hooks" / "reference-transaction"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    kit.add("deploy")

    worker(kit).run_one()

    assert kit.item().stage == "post-deploy"
    assert git(kit.repository, "tag") == "deployed/WI-1"


@pytest.mark.parametrize(
    ("probe", "stage", "failed"),
    [
        ("true", "done", 0),
        ("exit 3", "development", 3),
        ("kill -9 $$", "development", 3),
        ("test -e seen || { touch seen; exit 3; }", "development", 1),
    ],
)
def test_monitor_probes_and_records(
    make_host: Maker, tmp_path: Path, probe: str, stage: str, failed: int
) -> None:
    """The post-deploy-monitor passes only if every probe was healthy, and records what it saw."""
    command = shlex.join(["sh", "-c", f"cd {tmp_path}; {probe}"])
    kit = make_host(monitor_command=command, monitor_interval_seconds="0")
    job_id = kit.add("post-deploy")

    worker(kit).run_one()

    assert kit.item().stage == stage
    seen = json.loads(json.loads(kit.store.job(job_id).metadata)["monitor"])
    assert (seen["probes"], seen["failed"]) == (3, failed)


def test_monitor_shows_the_problem_that_it_saw_last(make_host: Maker, tmp_path: Path) -> None:
    """Of the problems of a deployment its record shows the one that was there at the end."""
    counting = f"cd {tmp_path}; echo >>seen; exit $(wc -l <seen)"
    command = shlex.join(["sh", "-c", counting])
    kit = make_host(monitor_command=command, monitor_interval_seconds="0")
    job_id = kit.add("post-deploy")

    worker(kit).run_one()

    seen = json.loads(json.loads(kit.store.job(job_id).metadata)["monitor"])
    assert seen == {"probes": 3, "failed": 3, "last": ["exit code 3"]}


@pytest.mark.parametrize("probe", ["true", "false"])
def test_deployment_is_watched_for_as_long_as_is_said(make_host: Maker, probe: str) -> None:
    """Between two probes the interval passes, well or not: a service may come up and go down."""
    kit = make_host(monitor_command=probe, monitor_interval_seconds="7")
    kit.add("post-deploy")
    clock = NoWaiting()

    worker(attrs.evolve(kit, host=attrs.evolve(kit.host, clock=clock))).run_one()

    assert clock.waited == 2 * 7


@pytest.mark.parametrize(
    ("status", "stage"),
    [
        (200, "done"),
        (204, "done"),
        (304, "development"),
        (404, "development"),
        (500, "development"),
    ],
)
def test_service_is_healthy_by_the_status_that_it_answers(
    make_host: Maker, status: int, stage: str
) -> None:
    """A deployed service that answers is healthy only where it says so, with a status of 2xx."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/health"
        kit = make_host(monitor_url=url, monitor_probes="1")
        kit.add("post-deploy")
        probing = threading.Thread(target=worker(kit).run_one, daemon=True)
        probing.start()
        taken, _ = server.accept()
        with taken:
            taken.recv(4096)
            taken.sendall(f"HTTP/1.0 {status} So\r\n\r\n".encode())
        probing.join(DEADLINE_SECONDS)

    assert kit.item().stage == stage


@pytest.mark.parametrize(
    "url", ["localhost:1/health", "localhost/health", "http://[", "http://a:b"]
)
def test_address_that_is_none_is_an_unhealthy_service(make_host: Maker, url: str) -> None:
    """A monitor whose address cannot be asked says so on its job, and ends it as any other."""
    kit = make_host(monitor_url=url, monitor_probes="1")
    job_id = kit.add("post-deploy")

    worker(kit).run_one()

    assert (kit.item().stage, kit.store.job(job_id).status) == ("development", "done")
    assert json.loads(json.loads(kit.store.job(job_id).metadata)["monitor"])["failed"] == 1


def test_probe_that_does_not_answer_is_an_unhealthy_one(
    make_host: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe that is not done in time is ended, and sends the work item back to development."""
    monkeypatch.setattr(launcher, "PROBE_TIMEOUT_SECONDS", 0.01)
    kit = make_host(monitor_command="sleep 600", monitor_probes="1")
    job_id = kit.add("post-deploy")

    worker(kit).run_one()

    assert (kit.item().stage, kit.store.job(job_id).status) == ("development", "done")


def test_service_that_never_answers_is_an_unhealthy_one(
    make_host: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deployed service that takes a connection and says nothing is not waited for for ever."""
    monkeypatch.setattr(launcher, "PROBE_TIMEOUT_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        kit = make_host(monitor_url=url, monitor_probes="1")
        kit.add("post-deploy")
        probing = threading.Thread(target=worker(kit).run_one, daemon=True)
        probing.start()
        probing.join(DEADLINE_SECONDS)

    assert not probing.is_alive()
    assert kit.item().stage == "development"


def test_service_that_answers_nonsense_is_an_unhealthy_one(make_host: Maker) -> None:
    """What is no answer of HTTP is an unhealthy probe, and ends the job as any other."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kit = make_host(
            monitor_url=f"http://127.0.0.1:{server.getsockname()[1]}/", monitor_probes="1"
        )
        job_id = kit.add("post-deploy")
        probing = threading.Thread(target=worker(kit).run_one, daemon=True)
        probing.start()
        taken, _ = server.accept()
        with taken:
            taken.recv(4096)
            taken.sendall(b"what?\r\n\r\n")
        probing.join(DEADLINE_SECONDS)

    assert (kit.item().stage, kit.store.job(job_id).status) == ("development", "done")


def test_command_of_an_agent_may_hold_braces(make_host: Maker) -> None:
    """What stands in braces and is no name of a job's stays as it is, JSON for one."""
    words = ("agent", '{"stage": "{stage}"}', "{work_item}{", "{}", "{other}")
    kit = make_host(agent_command=shlex.join(words))
    job = kit.store.job(kit.add("testing"))

    assert launcher.agent_command(kit.host, job) == [
        *("agent", '{"stage": "testing"}', "WI-1{", "{}", "{other}")
    ]


def test_what_an_agent_printed_outlives_its_next_launch(make_host: Maker) -> None:
    """A job that is launched again keeps what its first agent printed, and why it died."""
    kit = make_host(agent_command="sh -c 'echo told once; echo why >&2; exit 1'")
    job = kit.store.job(kit.add("testing"))
    for _ in range(2):
        launcher._spawn(kit.host, job)

    log = kit.host.settings.log_dir / f"job-{job.id}.log"
    assert log.read_text() == "told once\nwhy\n" * 2


def test_workers_that_start_at_once_have_one_schema(tmp_path: Path) -> None:
    """Of workers that start over a new database at once none finds a table in its way."""
    together = threading.Barrier(4)

    def start(_: int) -> None:
        store = SqlHostStore(open_database(f"sqlite:///{tmp_path}/new.db"))
        together.wait(DEADLINE_SECONDS)
        store.create_schema()
        store.engine.dispose()

    for _ in range(5):
        (tmp_path / "new.db").unlink(missing_ok=True)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(start, range(4)))


def test_repository_that_is_registered_again_has_moved(make_host: Maker, tmp_path: Path) -> None:
    """A repository that is registered at another place is there from then on."""
    kit = make_host()
    kit.store.add_repository(REPO, tmp_path / "moved")

    assert kit.store.repository_url(REPO) == str(tmp_path / "moved")


def test_only_jobs_of_dead_workers_are_queued_again(make_host: Maker) -> None:
    """A job of a dead worker is queued again; one of a live or of a foreign worker is not."""
    kit = make_host()
    other = identify(os.getppid())
    assert other is not None
    claims = {
        kit.add("analysis", "dead"): dead_worker(),
        kit.add("analysis", "alive"): other,
        kit.add("analysis", "foreign"): ProcessIdentity("elsewhere:boot:1", 1, 1),
    }
    for job_id, claim in claims.items():
        kit.store.claim_next(kit.host.clock.now(), str(claim), job_id)

    requeued = worker(kit).requeue_abandoned()

    assert [job.work_item for job in requeued] == ["dead"]


@contextlib.contextmanager
def agent_of(claim: ProcessIdentity, job_id: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Have an agent be at work for a claim of a job."""
    mark = {CLAIM_MARK: f"{claim}/{job_id}"}
    with subprocess.Popen(["sleep", "600"], env={**os.environ, **mark}) as agent:
        try:
            yield agent
        finally:
            agent.kill()


def test_agent_of_a_killed_worker_is_ended_before_another_is_started(
    make_host: Maker, tmp_path: Path
) -> None:
    """Whatever a killed worker's agent has started is dead when its job is launched again."""
    told = tmp_path / "told"
    os.mkfifo(told)
    script = tmp_path / "agent.sh"
    script.write_text(f"sleep 600 & echo $$ $! >{told}; wait\n")
    kit = make_host(agent_command=f"sh {script}")
    kit.add("development")
    begin = (
        "import sys; from staging_fsm.faces.cli import main;"
        f"main(['worker', '--db', 'sqlite:///{tmp_path}/orchestrator.db'])"
    )
    variables = {
        **os.environ,
        "ORCH_AGENT_COMMAND": f"sh {script}",
        "ORCH_STAGING_RUNNER_STATE_DIR": str(tmp_path / "state"),
        "ORCH_LOG_DIR": str(tmp_path / "agent-logs"),
    }
    with subprocess.Popen([sys.executable, "-c", begin], env=variables) as killed:
        agents = [identify(int(pid)) for pid in told.read_text().split()]
        killed.kill()
    lived = [agent is not None and is_alive(agent) for agent in agents]
    ended: list[bool] = []

    def look(_host: Host, _job: Job) -> None:
        ended.extend(wait_for_end(agent, DEADLINE_SECONDS) for agent in agents if agent)

    restarted = Worker(kit.host, str(this_process()), look)
    restarted.run_until_idle()
    for agent in filter(None, agents):
        send_signal(agent, signal.SIGKILL)

    assert lived == [True, True]
    assert ended == [True, True]


def test_agent_of_another_claim_is_left_alone(make_host: Maker) -> None:
    """Who takes a dead worker's job ends no agent that works for a living worker's claim of it."""
    kit = make_host()
    job_id, dead = kit.add("development"), dead_worker()
    kit.store.claim_next(kit.host.clock.now(), str(dead), job_id)
    with agent_of(dead, job_id) as left, agent_of(this_process(), job_id) as ours:
        requeued = worker(kit).requeue_abandoned()
        is_at_it = ours.poll() is None
        how = left.wait(DEADLINE_SECONDS)

    assert [job.id for job in requeued] == [job_id]
    assert (how, is_at_it) == (-signal.SIGKILL, True)


def out_of_descriptors(*_arguments: object) -> int:
    """Fail to look."""
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize("kill", [lambda *_: 1, out_of_descriptors], ids=["stays", "unknown"])
def test_job_whose_agent_stays_alive_waits(
    make_host: Maker, monkeypatch: pytest.MonkeyPatch, kill: Callable[..., int]
) -> None:
    """A dead worker's job is left as it is while its agent may be alive, and holds up no other."""
    kit = make_host()
    host = attrs.evolve(kit.host, clock=NoWaiting())
    jobs = [kit.add("development", name) for name in ("WI-1", "WI-2")]
    dead = dead_worker()
    for job_id in jobs:
        kit.store.claim_next(kit.host.clock.now(), str(dead), job_id)
    looked_for = f"{dead}/{jobs[0]}"
    monkeypatch.setattr(
        launcher, "kill_marked", lambda mark, value: kill(mark) if value == looked_for else 0
    )
    looking = Worker(host, str(this_process()), lambda _host, _job: None)

    assert [job.id for job in looking.requeue_abandoned()] == jobs[1:]
    assert kit.store.job(jobs[0]).claimed_by == str(dead)

    monkeypatch.undo()

    assert [job.id for job in looking.requeue_abandoned()] == jobs[:1]


def claimed_by_another(kit: HostKit, job: Job) -> None:
    """Have another recovery take the claim back first, and a live worker claim the job."""
    assert kit.store.requeue_abandoned(job, kit.host.clock.now())
    assert kit.store.claim_next(kit.host.clock.now(), "alive", job.id) is not None


def ended(kit: HostKit, job: Job) -> None:
    """Have the job's gate be asked."""
    finish_job(kit.host, job, 0)


def cancelled(kit: HostKit, job: Job) -> None:
    """Have the job be cancelled."""
    set_status(kit, job.id, "cancelled")


@pytest.mark.parametrize("meanwhile", [claimed_by_another, ended, cancelled])
def test_claim_that_has_changed_is_not_taken_back(
    make_host: Maker, meanwhile: Callable[[HostKit, Job], None]
) -> None:
    """A recovery that comes late leaves a job that was ended, or claimed anew, as it is."""
    kit = make_host()
    job_id = kit.add("development")
    kit.store.claim_next(kit.host.clock.now(), "dead", job_id)
    [seen] = kit.store.running_jobs()
    meanwhile(kit, seen)
    before = kit.store.job(job_id)

    assert not kit.store.requeue_abandoned(seen, kit.host.clock.now())
    assert kit.store.job(job_id) == before


def test_work_item_is_known_by_repository_and_name(make_host: Maker) -> None:
    """A work item of the same name in another repository is neither moved nor run for it."""
    kit = make_host()
    kit.store.add_repository("bank", kit.repository)
    job_id = kit.add("development")
    others = kit.add("development", repo="bank")
    before = kit.item(repo="bank")
    finish_job(kit.host, kit.store.job(job_id), 0)

    assert (kit.item().stage, kit.item(repo="bank")) == ("review", before)
    at_development = functools.partial(kit.store.job_at, agent="a", now=kit.host.clock.now())
    assert at_development(before) == others
    assert at_development(WorkItem(REPO, "WI-1", "development", 2, None)) not in (job_id, others)


def test_where_a_work_item_went_is_told_by_its_own_next_job(make_host: Maker) -> None:
    """Neither what came later nor a work item of another repository tells where one went."""
    kit = make_host()
    kit.store.add_repository("bank", kit.repository)
    staged = kit.add("deploy-staging")
    item, now = kit.item(), kit.host.clock.now()
    with kit.store.transaction() as tx:
        kit.store.move_work_item(tx, attrs.evolve(item, stage="done"), now)
    kit.add("review", repo="bank")
    alone = kit.store.went_to("deploy-staging", None, staged)
    with kit.store.transaction() as tx:
        for stage in ("development", "deploy"):
            kit.store.enqueue(tx, attrs.evolve(item, stage=stage), "agent", now)

    assert alone == {staged: "done"}
    assert kit.store.went_to("deploy-staging", None, staged) == {staged: "development"}


@pytest.mark.parametrize("command", ["", "/nowhere/agent"], ids=["none", "not installed"])
def test_job_that_cannot_be_launched_does_not_stop_the_worker(
    make_host: Maker, command: str
) -> None:
    """A worker whose agent cannot be started leaves the job claimed and goes on with the next."""
    kit = make_host(agent_command=command)
    first = kit.add("analysis", "WI-1")
    kit.add("deploy", "WI-2")

    launched = worker(kit).run_until_idle()

    assert launched == 3
    assert kit.store.job(first).status == "running"
    assert kit.item("WI-2").stage == "done"


def test_worker_has_many_jobs_in_hand_at_once(make_host: Maker) -> None:
    """A worker launches as many due jobs at once as it may, and no job twice."""
    kit = make_host()
    jobs = [kit.add("analysis", f"WI-{number}") for number in range(5)]
    all_at_once = threading.Barrier(2)
    launched = []

    def launch(_host: Host, job: Job) -> None:
        # The first four jobs need each other to go on, two by two.
        if job.id != jobs[-1]:
            all_at_once.wait(DEADLINE_SECONDS)
        launched.append(job.id)

    worker = Worker(kit.host, "worker", launch=launch, concurrency=2)

    assert worker.run_until_idle() == len(jobs)
    assert sorted(launched) == jobs


def test_worker_goes_on_with_what_a_job_in_hand_has_queued(make_host: Maker) -> None:
    """Nothing is due is only true once no job in hand can queue another."""
    kit = make_host()
    kit.add("analysis")
    nothing_is_due = threading.Event()
    launched = []

    class Store(SqlHostStore):
        def claim_next(self, now: datetime, claimed_by: str, only: int | None = None) -> Job | None:
            job = super().claim_next(now, claimed_by, only)
            if job is None:
                nothing_is_due.set()
            return job

    def launch(_host: Host, job: Job) -> None:
        launched.append(job.work_item)
        if job.work_item == "WI-1":
            assert nothing_is_due.wait(DEADLINE_SECONDS)
            kit.add("analysis", "WI-2")

    host = attrs.evolve(kit.host, store=Store(kit.store.engine))
    worker = Worker(host, "worker", launch=launch, concurrency=4)

    assert worker.run_until_idle() == 2
    assert launched == ["WI-1", "WI-2"]


def test_worker_takes_up_what_comes_while_a_job_in_hand_lasts(make_host: Maker) -> None:
    """A job that lasts keeps no other waiting that is queued meanwhile, while there is room."""
    kit = make_host()
    kit.add("analysis")
    nothing_is_due, other_is_done = threading.Event(), threading.Event()
    done_meanwhile = list[bool]()

    class Store(SqlHostStore):
        def claim_next(self, now: datetime, claimed_by: str, only: int | None = None) -> Job | None:
            job = super().claim_next(now, claimed_by, only)
            if job is None:
                nothing_is_due.set()
            return job

    def launch(_host: Host, job: Job) -> None:
        if job.work_item == "WI-2":
            other_is_done.set()
            return
        assert nothing_is_due.wait(DEADLINE_SECONDS)
        kit.add("analysis", "WI-2")
        done_meanwhile.append(other_is_done.wait(DEADLINE_SECONDS))

    host = attrs.evolve(kit.host, store=Store(kit.store.engine))
    Worker(host, "worker", launch=launch, concurrency=2).run_until_idle()

    assert done_meanwhile == [True]


def test_many_threads_have_a_connection_each_at_once(make_host: Maker) -> None:
    """A thread that needs a second connection inside its transaction gets it at once."""
    engine = make_host().store.engine

    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(engine.connect()) for _ in range(64)]

        assert {connection.scalar(sa.text("SELECT 1")) for connection in connections} == {1}


def test_threads_that_write_at_once_wait_for_their_turn_and_not_for_the_database(
    make_host: Maker,
) -> None:
    """No writer of one process ever finds the database locked by another of the same process."""
    kit, threads, writes = make_host(), 4, 25
    engine = kit.store.engine
    # SQLite itself waits for nobody now: who found it locked would be told at once.
    sa.event.listen(engine, "connect", lambda one, _: one.execute("PRAGMA busy_timeout = 0"))
    engine.dispose()
    together = threading.Barrier(threads)

    def fail(job_id: int) -> None:
        with kit.store.transaction() as tx:
            kit.store.finish_job(tx, job_id, kit.host.clock.now())
            kit.store.work_item(tx, "shop", "none")

    def write(thread: int) -> None:
        together.wait(DEADLINE_SECONDS)
        for number in range(writes):
            kit.store.register(kit.repository / f"{thread}-{number}")
            job_id = kit.add("analysis", f"WI-{thread}-{number}")
            with pytest.raises(LookupError):
                fail(job_id)

    with ThreadPoolExecutor(threads) as pool:
        assert list(pool.map(write, range(threads))) == [None] * threads


def test_queued_job_that_a_worker_still_has_is_ended(make_host: Maker) -> None:
    """A job that recovery has queued beside the worker that has it is ended by its gate, once."""
    kit = make_host()
    job_id = kit.add("development")

    with kit.store.transaction() as tx:
        assert kit.store.finish_job(tx, job_id, kit.host.clock.now())
        assert not kit.store.finish_job(tx, job_id, kit.host.clock.now())

    assert kit.store.claim_next(kit.host.clock.now(), "w") is None


def test_claim_whose_answer_was_lost_is_queued_again(make_host: Maker) -> None:
    """A job that was claimed for a live worker that never heard of it is nobody's."""
    kit = make_host(agent="")
    job_id = kit.add("development")
    unaware = worker(kit)
    kit.store.claim_next(kit.host.clock.now(), unaware.identity)
    other = kit.add("development", "WI-2")
    broken = Worker(kit.host, unaware.identity)
    broken.run_one(other)

    assert [job.id for job in broken.requeue_abandoned()] == [job_id]


def test_later_claim_whose_answer_was_lost_is_queued_again(make_host: Maker) -> None:
    """A job that a live worker has had before is nobody's if it never heard of the later claim."""
    kit = make_host()
    job_id = kit.add("development")

    def give_back(_host: Host, job: Job) -> None:
        assert kit.store.requeue_abandoned(job, kit.host.clock.now())

    had_it = Worker(kit.host, str(this_process()), give_back)
    had_it.run_one()
    kit.store.claim_next(kit.host.clock.now(), had_it.identity)

    assert [job.id for job in had_it.requeue_abandoned()] == [job_id]


def test_claim_that_a_worker_is_about_to_hear_of_is_not_taken_from_it(make_host: Maker) -> None:
    """What was claimed is nobody's only once the answer to the claim is lost, and not yet late."""
    kit = make_host()
    kit.add("development")

    class Store(SqlHostStore):
        """Answers late: meanwhile somebody looks for claims that nobody has heard of."""

        def claim_next(self, now: datetime, claimed_by: str, only: int | None = None) -> Job | None:
            super().claim_next(now, claimed_by, only)
            assert claiming.requeue_abandoned() == []
            message = "the answer is lost"
            raise OSError(message)

    host = attrs.evolve(kit.host, store=Store(kit.store.engine))
    claiming = Worker(host, str(this_process()), lambda _host, _job: None)
    with pytest.raises(OSError, match="the answer is lost"):
        claiming.run_one()

    assert [job.work_item for job in claiming.requeue_abandoned()] == ["WI-1"]


def test_claim_that_is_heard_of_during_a_look_is_not_taken(make_host: Maker) -> None:
    """A claim whose answer comes between a look at the claims and its verdict is the worker's."""
    kit = make_host()
    kit.add("development")

    class Store(SqlHostStore):
        """Has the worker claim a job just before it is looked at."""

        def running_jobs(self) -> list[Job]:
            assert looking.run_one() is not None
            return super().running_jobs()

    host = attrs.evolve(kit.host, store=Store(kit.store.engine))
    looking = Worker(host, str(this_process()), lambda _host, _job: None)

    assert looking.requeue_abandoned() == []


def test_claim_that_was_made_anew_since_it_was_looked_at_stays(make_host: Maker) -> None:
    """Who looked at a claim before it was given back, and made again, takes nothing back."""
    kit = make_host()
    job_id, me = kit.add("development"), str(this_process())
    now = kit.host.clock.now()
    kit.store.claim_next(now, me, job_id)
    [seen] = kit.store.running_jobs()
    assert kit.store.requeue_abandoned(seen, now)
    kit.store.claim_next(now + timedelta(seconds=1), me, job_id)

    assert not kit.store.requeue_abandoned(seen, now)
    assert kit.store.job(job_id).status == "running"


def test_worker_forgets_the_claims_of_jobs_that_have_ended(make_host: Maker) -> None:
    """What a worker keeps of its claims does not grow with the jobs that it has done."""
    kit = make_host()
    busy = Worker(kit.host, str(this_process()), lambda _host, _job: None)
    kept = kit.add("development", "kept")
    done = kit.add("development", "done")
    for job_id in (kept, done):
        busy.run_one(job_id)
    with kit.store.transaction() as tx:
        kit.store.finish_job(tx, done, kit.host.clock.now())

    assert busy.requeue_abandoned() == []
    assert set(busy._claimed) == {kept}


def test_claim_that_is_made_again_during_a_look_is_not_forgotten(make_host: Maker) -> None:
    """A job that had ended for a look, and was claimed before its verdict, is the worker's."""
    kit = make_host()
    job_id = kit.add("development")

    class Store(SqlHostStore):
        """Has the job be claimed again right after it was looked for."""

        def running_jobs(self) -> list[Job]:
            running = super().running_jobs()
            if not running:
                busy.run_one(job_id)
            return running

    store = Store(kit.store.engine)
    busy = Worker(
        attrs.evolve(kit.host, store=store), str(this_process()), lambda _host, _job: None
    )
    [job] = [busy.run_one(job_id)]
    assert job is not None
    [claimed] = store.running_jobs()
    store.requeue_abandoned(claimed, kit.host.clock.now())

    assert busy.requeue_abandoned() == []
    assert busy.requeue_abandoned() == []
    assert kit.store.job(job_id).status == "running"


@pytest.mark.parametrize("what_fails", ["claim_next", "running_jobs"])
def test_statement_that_fails_keeps_no_job_waiting_for_one_in_hand(
    make_host: Maker, what_fails: str
) -> None:
    """While a job lasts, a store that failed once is asked again, and other jobs are begun."""
    kit = make_host(recovery_seconds=str(IDLE_SECONDS))
    long, clock = kit.add("testing", "long"), NoWaiting()
    begun, failed = threading.Event(), threading.Event()

    class Store(SqlHostStore):
        """Away once, as soon as the long job is in hand."""

        def claim_next(self, now: datetime, claimed_by: str, only: int | None = None) -> Job | None:
            self.fail("claim_next")
            return super().claim_next(now, claimed_by, only)

        def running_jobs(self) -> list[Job]:
            self.fail("running_jobs")
            return super().running_jobs()

        def fail(self, asked: str) -> None:
            if asked == what_fails and begun.is_set() and not failed.is_set():
                failed.set()
                message = "away"
                raise OSError(message)

    def launch(_host: Host, job: Job) -> None:
        if job.id == long:
            begun.set()
            clock.wait(IDLE_SECONDS)
            assert failed.wait(DEADLINE_SECONDS)
            kit.add("testing", "other")
            done_meanwhile.append(other_is_done.wait(DEADLINE_SECONDS))
        else:
            other_is_done.set()

    done_meanwhile, other_is_done = list[bool](), threading.Event()
    store = Store(kit.store.engine)
    host = attrs.evolve(kit.host, store=store, clock=clock)
    working = Worker(host, str(this_process()), launch=launch, concurrency=2)

    assert working.run_until_idle() == 2
    assert done_meanwhile == [True]


STOPPED = """
import faulthandler, random, signal
from staging_fsm.effects.clock import SystemClock

faulthandler.dump_traceback_later(60, exit=True)
chance = random.Random(7)
for _ in range(1500):
    clock, stopped = SystemClock(), []
    signal.signal(signal.SIGALRM, lambda *_: (stopped.append(1), clock.wake()))
    signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.00002, 0.0006))
    while not stopped:
        clock.wait(0.0002)
"""


def test_wait_can_be_ended_by_a_signal_at_any_moment() -> None:
    """A worker that is told to end as its wait is over ends, and does not wait for itself."""
    subprocess.run([sys.executable, "-c", STOPPED], check=True)


def test_wait_that_was_ended_stays_ended() -> None:
    """After a wake every wait is over at once, however long it was to be."""
    clock = SystemClock()
    clock.wake()

    for _ in range(2):
        clock.wait(DEADLINE_SECONDS)


def test_worker_has_heard_of_every_job_it_has_in_hand(make_host: Maker) -> None:
    """None of the jobs that a worker has in hand at once is taken back from it."""
    kit = make_host()
    busy = Worker(kit.host, str(this_process()), lambda _host, _job: None)
    for name in ("WI-1", "WI-2"):
        busy.run_one(kit.add("development", name))

    assert busy.requeue_abandoned() == []


@pytest.mark.parametrize("times_away", [0, 1, 3])
def test_worker_recovers_before_it_looks_for_work(make_host: Maker, times_away: int) -> None:
    """What a dead worker left is taken up before any job is claimed, however long that fails."""
    kit = make_host(recovery_seconds="3600")
    done: list[str] = []

    class Store(SqlHostStore):
        """Tells what it was asked, and stops the worker at its first claim."""

        def running_jobs(self) -> list[Job]:
            """Say that somebody recovers, and be away for the first times."""
            done.append("recover")
            if len(done) <= times_away:
                message = "away"
                raise OSError(message)
            return super().running_jobs()

        def claim_next(self, now: datetime, claimed_by: str, only: int | None = None) -> Job | None:
            """Say that somebody looks for work, who need not look again."""
            done.append("claim")
            starting.stop()
            return super().claim_next(now, claimed_by, only)

    host = attrs.evolve(kit.host, store=Store(kit.store.engine), clock=NoWaiting())
    starting = Worker(host, str(this_process()))
    starting.run_forever()

    assert done == ["recover"] * times_away + ["recover", "claim"]


def test_store_that_is_away_is_not_asked_without_a_pause(make_host: Maker) -> None:
    """A worker waits between two looks at a store that is away."""
    kit = make_host()
    asked: list[str] = []

    class Away(SqlHostStore):
        """Away, and asked a few times at most."""

        def running_jobs(self) -> list[Job]:
            """Fail, and stop the worker in the end."""
            asked.append("look")
            if asked.count("look") == 3:
                waiting.stop()
            message = "away"
            raise OSError(message)

    class Clock(NoWaiting):
        """Tells of each wait."""

        def wait(self, seconds: float) -> None:
            """Say that somebody waits."""
            asked.append("wait")
            super().wait(seconds)

    host = attrs.evolve(kit.host, store=Away(kit.store.engine), clock=Clock())
    waiting = Worker(host, str(this_process()))
    waiting.run_forever()

    assert asked == ["look", "wait", "look", "wait", "look"]


def test_idle_worker_recovers_again_and_outlives_its_store(make_host: Maker) -> None:
    """A worker recovers at start and whenever idle for long, and waits for a store that is away."""
    kit = make_host(recovery_seconds="0")
    looks: list[int] = []

    class Store(SqlHostStore):
        """Away at first."""

        def running_jobs(self) -> list[Job]:
            """Fail once, and stop the worker at the third time."""
            looks.append(1)
            if len(looks) == 1:
                message = "away"
                raise OSError(message)
            if len(looks) == 3:
                tireless.stop()
            return super().running_jobs()

    tireless = Worker(
        attrs.evolve(kit.host, store=Store(kit.store.engine), clock=NoWaiting()),
        str(this_process()),
    )
    tireless.run_forever()

    assert len(looks) == 3


class Watched(SqlHostStore):
    """Tells at which time somebody looked for jobs that others have left."""

    def __init__(self, engine: sa.Engine, clock: NoWaiting) -> None:
        """Tell the time that was waited on `clock`."""
        super().__init__(engine)
        self.clock, self.looks = clock, list[float]()

    def running_jobs(self) -> list[Job]:
        """Tell of the look, and find nothing."""
        self.looks.append(self.clock.waited)
        return []


@pytest.mark.parametrize("seconds", [3 * IDLE_SECONDS, -3600.0], ids=["passed", "set back"])
def test_worker_that_is_never_idle_recovers_all_the_same(make_host: Maker, seconds: float) -> None:
    """Between two jobs a worker looks for what others left, once it is time, or the clock jumps."""
    kit = make_host(recovery_seconds=str(3 * IDLE_SECONDS))
    clock = NoWaiting()
    store = Watched(kit.store.engine, clock)
    jobs = [kit.add("testing", f"WI-{number}") for number in range(4)]

    def launch(_host: Host, job: Job) -> None:
        clock.wait(seconds if job.id == jobs[1] else 0.1)

    host = attrs.evolve(kit.host, store=store, clock=clock)
    assert Worker(host, str(this_process()), launch=launch).run_until_idle() == len(jobs)
    assert store.looks == [0, seconds + 0.1]


def test_worker_that_recovers_all_the_time_comes_to_rest(make_host: Maker) -> None:
    """Where no pause is asked for there is a short one: a worker with nothing to do says so."""
    kit = make_host(recovery_seconds="0")

    class Ending(Watched):
        """Ends a worker that looks again."""

        def running_jobs(self) -> list[Job]:
            """Look."""
            if self.looks:
                restless.stop()
            return super().running_jobs()

    clock = NoWaiting()
    store = Ending(kit.store.engine, clock)
    restless = Worker(attrs.evolve(kit.host, store=store, clock=clock), str(this_process()))
    restless.run_until_idle()

    assert store.looks == [0]


def test_idle_worker_recovers_as_often_as_it_is_told(make_host: Maker) -> None:
    """A worker that waits for work looks for what others left at the pace of its setting."""
    kit = make_host(recovery_seconds=str(3 * IDLE_SECONDS))

    class Clock(NoWaiting):
        """Stops the worker in the end."""

        def wait(self, seconds: float) -> None:
            """Let time pass."""
            super().wait(seconds)
            if self.waited >= 10 * IDLE_SECONDS:
                idle.stop()

    clock = Clock()
    store = Watched(kit.store.engine, clock)
    idle = Worker(attrs.evolve(kit.host, store=store, clock=clock), str(this_process()))
    idle.run_forever()

    assert store.looks == [0, 3, 6, 9]


def test_job_in_hand_keeps_nobody_from_recovering(make_host: Maker) -> None:
    """While a job lasts, what a dead worker left is queued again, and taken up beside it."""
    kit = make_host(recovery_seconds=str(IDLE_SECONDS))
    clock = NoWaiting()
    kit.add("testing", "WI-1")
    left, here = kit.add("testing", "WI-2"), this_process()
    dead = ProcessIdentity(here.scope, here.pid, here.start + 1)
    kit.store.claim_next(clock.now(), str(dead), only=left)
    done = list[str]()
    other_is_done = threading.Event()

    class FirstBlind(Watched):
        """Finds what there is at the second look."""

        def running_jobs(self) -> list[Job]:
            """Look, but for the first time."""
            return super().running_jobs() if not self.looks else SqlHostStore.running_jobs(self)

    def launch(_host: Host, job: Job) -> None:
        if job.id == left:
            other_is_done.set()
            return
        clock.wait(IDLE_SECONDS)
        assert other_is_done.wait(DEADLINE_SECONDS)
        done.append(job.work_item)

    store = FirstBlind(kit.store.engine, clock)
    host = attrs.evolve(kit.host, store=store, clock=clock)
    Worker(host, str(this_process()), launch=launch, concurrency=2).run_until_idle()

    assert done == ["WI-1"]

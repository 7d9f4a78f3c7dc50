"""The reference host on its own: a work item is carried over the LLM path by any agent command."""

import contextlib
import functools
import json
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
import sqlalchemy as sa

from hosts import DEADLINE_SECONDS, REPO, Maker, ends_of_children_unseen, git, worker
from staging_fsm.core.errors import RefusedError
from staging_fsm.effects.processes import (
    this_process,
)
from staging_fsm.effects.rows import SqlRows
from staging_fsm.host import launcher
from staging_fsm.host.contract.gate import ARTIFACT_NAME
from staging_fsm.host.contract.stages import STAGE_AGENTS, STAGE_TRANSITIONS
from staging_fsm.host.database import open_database
from staging_fsm.host.launcher import CLAIM_MARK, finish_job, once_for_each_row
from staging_fsm.host.pipeline import ARTIFACT_GATES, JobAlreadyEndedError
from staging_fsm.host.store import Job, SqlHostStore, Went, WorkItem

#: An agent that writes a verdict on deploy-staging and exits 0 everywhere.
AGENT = """
import os, pathlib
folder = pathlib.Path(os.environ["ORCH_WORK_ITEM_DIR"])
if os.environ["ORCH_STAGE"] == "deploy-staging":
    (folder / "15-staging-log.md").write_text("---\\nstaging_status: {status}\\n---\\nIt ran.\\n")
"""


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


def test_work_item_of_the_same_name_elsewhere_is_another(make_host: Maker) -> None:
    """Bringing a work item to a stage asks nobody about one of its name in another repository."""
    kit = make_host()
    now, named = kit.host.clock.now(), WorkItem("other", "WI-1", "deploy", 3, None)
    kit.add("development")
    kit.store.add_repository("other", kit.repository)
    theirs = [kit.store.add_work_item(named, "finalizer", now)]
    with kit.store.transaction() as tx:
        theirs.append(kit.store.enqueue(tx, named, "finalizer", now))
    assert kit.store.claim_next(now, "w", theirs[0]) is not None
    staged = kit.store.job_at(attrs.evolve(kit.item(), stage="deploy-staging"), "deployer", now)

    assert [kit.store.job(job).status for job in theirs] == ["running", "queued"]
    assert kit.store.job(staged).repo == REPO


def test_work_item_is_not_taken_away_from_who_works_on_it(make_host: Maker) -> None:
    """While a job of another stage is in work, a work item is brought nowhere, and who has it said.

    Nothing is changed: what waits is left as it is, too.
    """
    kit = make_host()
    now, before = kit.host.clock.now(), kit.add("development")
    waiting = kit.further("deploy")
    assert kit.store.claim_next(now, "w", before) is not None

    with pytest.raises(RefusedError, match=f"is in work at stage development, in job {before}"):
        kit.store.job_at(attrs.evolve(kit.item(), stage="deploy-staging"), "deployer", now)
    assert [kit.store.job(job).status for job in (before, waiting)] == ["running", "queued"]
    assert kit.item().stage == "deploy"


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

    def publish(job: Job, _exit_code: int) -> None:
        published.append((job.id, kit.item().stage))

    worker(attrs.evolve(kit, host=attrs.evolve(kit.host, publish=publish))).run_one()

    assert published == [(job_id, stage)]


def test_agent_whose_end_nobody_knows_has_not_succeeded(make_host: Maker) -> None:
    """Where the exit code of an agent was taken away, it is no 0: its job stays for a person."""
    kit = make_host("raise SystemExit(3)")
    job_id = kit.add("testing")
    with ends_of_children_unseen():
        worker(kit).run_one()

    assert kit.item().stage == "testing"
    assert kit.store.job(job_id).status == "running"


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


@pytest.mark.parametrize("status", ["cancelled", "done"])
def test_gate_of_an_ended_job_is_not_initiated(make_host: Maker, status: str) -> None:
    """An agent that comes late to a job that was ended meanwhile moves nothing."""
    kit = make_host()
    job_id = kit.add("development")
    kit.store.claim_next(kit.host.clock.now(), "late", job_id)
    kit.set_status(job_id, status)

    with pytest.raises(JobAlreadyEndedError, match=f"job {job_id} is not running"):
        finish_job(kit.host, kit.store.job(job_id), 0)

    assert (kit.item().stage, kit.store.job(job_id).status) == ("development", status)


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
        kit.store.finish_job(tx, staged, now)
        kit.store.move_work_item(tx, attrs.evolve(item, stage="done"), now)
    kit.add("review", repo="bank")
    alone = kit.store.went_to("deploy-staging", None, staged)
    with kit.store.transaction() as tx:
        kit.store.enqueue(tx, attrs.evolve(item, stage="development"), "agent", now)
        kit.store.move_work_item(tx, attrs.evolve(item, stage="testing"), now)
        tx.execute(sa.text("UPDATE jobs SET status = 'done'"))
    followed = kit.store.went_to("deploy-staging", None, staged)

    assert alone == {staged: Went("done", ahead="done")}
    assert followed == {staged: Went("development")}


def test_job_of_another_moment_does_not_tell_where_a_work_item_went(make_host: Maker) -> None:
    """A gate queues the next job as it ends its own: one of another moment is not of that gate."""
    kit = make_host()
    staged = kit.add("deploy-staging")
    item, now = kit.item(), kit.host.clock.now()
    with kit.store.transaction() as tx:
        kit.store.finish_job(tx, staged, now)
        later = attrs.evolve(item, stage="development")
        kit.store.move_work_item(tx, later, now)
        kit.store.enqueue(tx, later, "agent", now + timedelta(seconds=1))

    assert kit.store.went_to("deploy-staging", None, staged) == {staged: Went()}


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

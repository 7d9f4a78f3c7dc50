"""One delivery at a time, worked on in this process: a real server, real remotes, real suites."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import psycopg
import pytest
import sqlalchemy as sa

from desk import fill_the_disk
from fleets import PATIENT, FleetStand, await_that, fleet_stand, present_machine, with_agent
from hosts import git
from staging_fsm.core.artifact import written
from staging_fsm.core.errors import (
    JobNotFoundError,
    NothingToCancelError,
    PreparationError,
    RefusedError,
)
from staging_fsm.core.jobs import QUEUED, RUNNING, STAGE, JobRow
from staging_fsm.core.outcome import Reason
from staging_fsm.core.ports import RunCondition
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.spec import Event, State
from staging_fsm.core.times import format_time
from staging_fsm.drive import runner
from staging_fsm.drive.engine import run_id_of
from staging_fsm.effects import telemetry
from staging_fsm.effects.files import ARTIFACT_MODE
from staging_fsm.effects.processes import identify, this_process
from staging_fsm.effects.remote import Mirror
from staging_fsm.effects.run_folder import RunFolder
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.effects.suite import LocalSuites
from staging_fsm.faces.exits import ExitCode
from staging_fsm.fleet import delivery
from staging_fsm.fleet.deliveries import QUEUE, TASK, Note, OtherPapersError, queue_of
from staging_fsm.fleet.delivery import BUSY_SECONDS, REMOTE_BACKOFF, Delivery
from staging_fsm.fleet.fence import Fence, FenceLostError, Presence, Server, is_present
from staging_fsm.fleet.fleet import FleetRows, FleetSuites
from staging_fsm.fleet.publisher import (
    LOG_MAX_BYTES,
    LOG_NAME,
    MARK_NAME,
    GitBranch,
    PublishedArtifacts,
    SharedFolder,
)
from staging_fsm.fleet.worker import open_fleet, redeliver
from staging_fsm.host import launcher
from staging_fsm.host.contract.gate import ARTIFACT_NAME, check_staging_status
from staging_fsm.host.database import CLIENT_KEEPALIVE, open_database
from staging_fsm.host.launcher import AGENT_MARK, Host, staging_intercept
from staging_fsm.host.pipeline import work_item_dir
from staging_fsm.host.store import Job, SqlHostStore, WorkItem
from trails import CLAIM, ERROR, WAIT, walked
from webhooks import webhooks

SUITES_FILE = "ORCH_STAGING_RUNNER_SUITES_FILE"


@pytest.fixture
def fleet(tmp_path: Path, postgres_url: str) -> Iterator[FleetStand]:
    """Return a fleet without workers."""
    with fleet_stand(tmp_path, postgres_url) as stand:
        yield stand


def test_setting_up_makes_one_schema_and_leaves_everything_else(
    tmp_path: Path, postgres_url: str
) -> None:
    """`fleet-setup` says what it did, does it once, and does not touch the host's tables."""
    with fleet_stand(tmp_path, postgres_url) as fleet:
        before = tables(fleet)
        with fleet.engine.begin() as connection:
            connection.execute(sa.text(f"DROP SCHEMA {fleet.schema} CASCADE"))
        said = [fleet.call("fleet-setup").stdout.splitlines()[0] for _ in range(2)]

        assert said == [
            f"schema {fleet.schema}: created, with the engine's tables in it",
            f"schema {fleet.schema}: is there already",
        ]
        assert tables(fleet) == before


@pytest.mark.parametrize("setting", ["ORCH_FLEET_BRANCH", "ORCH_FLEET_SHARED_DIR"])
def test_worker_that_would_stage_another_branch_does_not_start(
    fleet: FleetStand, setting: str
) -> None:
    """A machine whose branches or papers are elsewhere than the fleet's others is refused."""
    fleet.call("fleet-setup")
    fleet.settings[setting] = "feature/{work_item}" if "BRANCH" in setting else str(fleet.root)
    refused = fleet.call("fleet-worker", check=False)

    assert refused.returncode == ExitCode.DECLINED
    assert "the fleet was set up so that each work item is on the branch {" in refused.stderr
    assert setting in refused.stderr
    # What is noted anew holds for all.
    assert fleet.call("fleet-setup").stdout.splitlines()[1] == str(
        fleet.desk.deliveries.noted(fleet.engine)
    )


@pytest.mark.parametrize("moment", ["before", "meanwhile"])
def test_machine_takes_no_job_once_another_branch_is_noted(
    fleet: FleetStand, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A worker of before does not stage the branch that was noted then: the job is for others.

    It is asked before anything is looked at, and once more when the job is claimed.
    """
    fleet.call("fleet-setup")
    job = fleet.submit("shop", "WI-1")
    fleet.take_delivery()
    there = fleet.seen_from("one")
    opened = GitBranch.open

    def note_first(publisher: GitBranch, row: JobRow) -> Path:
        root = opened(publisher, row)
        note_another_branch(fleet)
        return root

    if moment == "before":
        note_another_branch(fleet)
        fleet.remote("shop").rename(fleet.root / "away")
    else:
        monkeypatch.setattr(GitBranch, "open", note_first)
    with pytest.raises(OtherPapersError, match="have `staging-fsm fleet-setup` note"):
        Delivery(there, job, "shop", tries=1).run()
    (alert,) = map(json.loads, there.state.alerts.read_text().splitlines())

    assert fleet.row(job).status == QUEUED
    assert fleet.row(job).document is None
    assert alert["kind"] == "configuration_invalid"
    assert fleet.take_delivery() == 1


def note_another_branch(fleet: FleetStand) -> None:
    """Have the fleet told that its work items are on branches of another name."""
    settings = {**fleet.environment(fleet.machine("desk")), "ORCH_FLEET_BRANCH": "x/{work_item}"}
    told = open_fleet(fleet.engine, StateDir(fleet.machine("desk").state), settings)
    told.deliveries.note(fleet.engine, Note(told.settings.papers))


IN_PLACE = '[default]\ncommand = ["true"]\nworkspace = "in-place"\n'


@pytest.mark.parametrize(
    ("deed", "found"),
    [
        (
            "nothing",
            "ok       fleet: each work item is on the branch {work_item}; its papers go to",
        ),
        ("another branch", "failed   fleet: the fleet was set up so that each work item is on"),
        ("no shared folder", "failed   fleet: the shared folder {shared} is not there"),
        ("in-place", "failed   fleet: the suite of [default]: a fleet runs suites in worktrees"),
        ("another schema", "warning  fleet: ORCH_FLEET_* is set, and the database carries no"),
    ],
)
def test_doctor_asks_what_a_fleets_worker_is_asked(
    tmp_path: Path, postgres_url: str, deed: str, found: str
) -> None:
    """`doctor` says of a fleet's machine what its worker, or a launch there, would refuse."""
    shared = tmp_path / "shared"
    with fleet_stand(tmp_path, postgres_url, ORCH_FLEET_SHARED_DIR=str(shared)) as fleet:
        fleet.call("fleet-setup")
        match deed:
            case "another branch":
                fleet.settings["ORCH_FLEET_BRANCH"] = "feature/{work_item}"
            case "no shared folder":
                shared.rename(tmp_path / "away")
            case "in-place":
                (tmp_path / "suites.toml").write_text(IN_PLACE)
            case "another schema":
                fleet.settings["ORCH_FLEET_SCHEMA"] = f"{fleet.schema}_2"
        ended = fleet.call("doctor", check=False)

        assert found.replace("{shared}", str(shared)) in ended.stdout
        assert ended.stdout.count(" fleet: ") == 1
        assert ended.returncode == (1 if found.startswith("failed") else 0)


def tables(fleet: FleetStand) -> list[tuple[Any, ...]]:
    """Return every column of every table that the host has."""
    query = sa.text(
        "SELECT table_name, column_name, data_type, column_default, is_nullable"
        " FROM information_schema.columns WHERE table_schema = current_schema() ORDER BY 1, 2"
    )
    with fleet.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(query)]


def test_job_and_delivery_are_one_transaction(fleet: FleetStand) -> None:
    """A job that is not queued after all is not delivered either."""
    store, item = fleet.desk.store, WorkItem("shop", "WI-1", "deploy-staging", 2, None)
    fleet.submit(item.repo, item.id)
    fleet.take_delivery()
    with pytest.raises(ZeroDivisionError), store.transaction() as tx:  # noqa: PT012  # the transaction is what raises
        store.enqueue(tx, item, "deployer", fleet.desk.clock.now())
        raise ZeroDivisionError

    assert fleet.deliveries() == []


def test_job_that_is_queued_again_is_delivered_by_the_same_transaction(
    fleet: FleetStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job whose delivery cannot be stored is not queued again either."""
    job = fleet.submit("shop", "WI-1")
    there = fleet.seen_from("one")
    assert there.store.claim_next(there.clock.now(), there.worker, job) is not None
    deferred = walked(CLAIM, ERROR, WAIT)
    fleet.set_attempt(job, deferred)

    def refuse(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(type(there.deliveries), "defer", refuse)

    with pytest.raises(ZeroDivisionError):
        there.rows.requeue(job, there.clock.now(), deferred)
    assert fleet.row(job).status == "running"


@pytest.mark.parametrize("living", [True, False])
def test_run_of_the_own_machine_is_taken_up_whoever_began_it(
    fleet: FleetStand, *, living: bool
) -> None:
    """Who holds the fence takes up what another worker of his machine began, and is alone at it."""
    job, there = fleet.submit("shop", "WI-1"), fleet.seen_from("one")
    process = identify(os.getppid())
    assert process is not None
    worker = f"{there.machine}/{process if living else attrs.evolve(process, start=1)}"
    assert there.store.claim_next(there.clock.now(), worker, job) is not None
    fleet.set_attempt(job, walked(CLAIM, worker=worker))
    with contextlib.closing(Presence(there.server, there.machine)._connection):
        Delivery(there, job, "shop").run()

    assert fleet.attempt(job).reasons == (Reason.WORKER_LOST,)


@pytest.mark.parametrize("ended", [True, False])
def test_launch_that_breaks_is_made_again_unless_the_job_has_ended(
    fleet: FleetStand, monkeypatch: pytest.MonkeyPatch, *, ended: bool
) -> None:
    """A job that ended before its launch broke is neither queued nor delivered again."""
    job = fleet.submit("shop", "WI-1")
    fleet.take_delivery()

    def launch(host: Host, job: Job) -> None:
        if ended:
            with host.store.transaction() as tx:
                host.store.finish_job(tx, job.id, host.clock.now())
        raise ZeroDivisionError

    monkeypatch.setattr(delivery, "launch_job", launch)
    Delivery(fleet.seen_from("one"), job, "shop", tries=9).run()

    assert fleet.row(job).status == ("done" if ended else QUEUED)
    assert len(fleet.deliveries()) == (0 if ended else 1)
    assert ended or fleet.take_delivery() == 10


@pytest.mark.parametrize(
    ("worker", "condition"),
    [
        ("elsewhere:boot:1/7/1", RunCondition.LIVE),
        (str(attrs.evolve(this_process(), start=1)), RunCondition.FINISHED),
    ],
    ids=["a worker that may live", "a run that has ended"],
)
def test_without_the_fence_only_a_living_run_of_a_dead_worker_is_adopted(
    fleet: FleetStand, monkeypatch: pytest.MonkeyPatch, worker: str, condition: RunCondition
) -> None:
    """While somebody else has the fence, a run is neither taken from the living nor judged."""
    job, there = fleet.submit("shop", "WI-1"), fleet.seen_from("one")
    worker = f"{there.machine}/{worker}"
    assert there.store.claim_next(there.clock.now(), worker, job) is not None
    fleet.set_attempt(job, walked(CLAIM, worker=worker))
    fleet.take_delivery()
    monkeypatch.setattr(LocalSuites, "condition", lambda *_: condition)
    monkeypatch.setattr(LocalSuites, "await_report", lambda *_: pytest.fail("it was adopted"))
    before = fleet.attempt(job)
    with Fence(there.server, "shop") as fence:
        assert fence.take()
        Delivery(there, job, "shop").run()

    assert fleet.attempt(job) == before
    assert len(fleet.deliveries()) == 1


def test_run_of_a_machine_that_is_gone_is_delivered_to_nobody_there(fleet: FleetStand) -> None:
    """A run that is taken up from a machine without workers is not given to it as well."""
    job = fleet.submit("shop", "WI-1")
    worker = f"two-0a1b/{this_process()}"
    assert fleet.desk.store.claim_next(fleet.desk.clock.now(), worker, job) is not None
    fleet.set_attempt(job, walked(CLAIM, worker=worker))
    fleet.take_delivery()
    fleet.deliver(job)

    assert fleet.attempt(job).state is State.DEFERRED
    assert queues(fleet) == [QUEUE]


def test_job_that_nobody_was_told_of_is_delivered(fleet: FleetStand) -> None:
    """A job that was queued behind the fleet's back is found, once."""
    store, item = SqlHostStore(fleet.engine), WorkItem("shop", "WI-1", "deploy-staging", 2, None)
    store.add_repository("shop", "nowhere")
    job = store.add_work_item(item, "deployer", fleet.desk.clock.now())

    assert redeliver(fleet.desk) == [job]
    assert redeliver(fleet.desk) == []


@pytest.mark.parametrize(
    ("holder", "found"), [("one-0a1b/of:a:boot/1/2", True), ("host:boot/1/2", False)]
)
def test_job_whose_worker_and_delivery_are_both_lost_is_delivered(
    fleet: FleetStand, holder: str, *, found: bool
) -> None:
    """Whatever a worker of the fleet had claimed is found, on every stage; a stranger's is his."""
    store, item = SqlHostStore(fleet.engine), WorkItem("shop", "WI-1", "deploy", 2, None)
    store.add_repository("shop", "nowhere")
    now = fleet.desk.clock.now()
    job = store.add_work_item(item, "deployer", now)
    assert store.claim_next(now, holder) is not None

    assert redeliver(fleet.desk) == ([job] if found else [])
    assert redeliver(fleet.desk) == []


@pytest.mark.parametrize(
    ("moves", "found"), [((CLAIM,), True), (((Event.RUNNER_DECLINED, {}),), False)]
)
def test_attempt_that_a_stranger_had_in_hand_is_delivered(
    fleet: FleetStand, moves: tuple[Any, ...], *, found: bool
) -> None:
    """What the runner of another host has begun the fleet goes on with, and no agent's job."""
    job, now = fleet.submit("shop", "WI-1"), fleet.desk.clock.now()
    fleet.take_delivery()
    assert SqlHostStore(fleet.engine).claim_next(now, "host:boot/1/2", job) is not None
    fleet.set_attempt(job, walked(*moves))

    assert redeliver(fleet.desk) == ([job] if found else [])


def test_delivery_to_a_machine_that_is_gone_is_everybodys(fleet: FleetStand) -> None:
    """A job that was passed on to a machine waits for it as long as it lives, and no longer."""
    job, there = fleet.submit("shop", "WI-1"), fleet.seen_from("one")
    fleet.take_delivery()
    with fleet.engine.begin() as tx:
        now = there.clock.now()
        there.deliveries.defer(tx, job, "shop", now, queue=queue_of(there.machine))
    with present_machine(there):
        redeliver(fleet.desk)
        present = queues(fleet)
    redeliver(fleet.desk)

    assert present == [queue_of(there.machine)]
    assert queues(fleet) == [QUEUE]


def queues(fleet: FleetStand) -> list[str]:
    """Return the queues in which deliveries wait."""
    query = f"SELECT queue_name FROM {fleet.schema}.procrastinate_jobs WHERE task_name = :task"  # noqa: S608  # a name of ours
    with fleet.engine.connect() as connection:
        return list(connection.execute(sa.text(query), {"task": TASK}).scalars())


def test_sweep_whose_worker_has_died_breaks_no_other(fleet: FleetStand) -> None:
    """What a dead worker swept is not taken for a job, and the next sweep finds what is lost."""
    job = fleet.submit("shop", "WI-1")
    fleet.take_delivery()
    statement = sa.text(
        "INSERT INTO procrastinate_jobs (queue_name, task_name, args, status)"
        " VALUES (:queue, 'staging_fsm.sweep', CAST(:args AS jsonb), 'doing')"
    )
    with fleet.engine.begin() as connection:
        connection.execute(sa.text(f"SET LOCAL search_path TO {fleet.schema}"))
        connection.execute(statement, {"queue": QUEUE, "args": '{"timestamp": 1}'})

    assert redeliver(fleet.desk) == [job]


def test_delivery_of_a_worker_that_is_off_the_list_is_made_again(fleet: FleetStand) -> None:
    """A delivery whose worker the engine has struck off is nobody's, and its job is found, once."""
    job = fleet.submit("shop", "WI-1")
    statement = sa.text("UPDATE procrastinate_jobs SET status = 'doing' WHERE task_name = :task")
    with fleet.engine.begin() as connection:
        connection.execute(sa.text(f"SET LOCAL search_path TO {fleet.schema}"))
        connection.execute(statement, {"task": TASK})

    assert redeliver(fleet.desk) == [job]
    assert redeliver(fleet.desk) == []


def test_only_jobs_of_its_stage_are_cancelled(fleet: FleetStand) -> None:
    """Whoever mistypes an id ends no developer's job."""
    store, item = SqlHostStore(fleet.engine), WorkItem("shop", "WI-1", "development", 2, None)
    store.add_repository("shop", "nowhere")
    job = store.add_work_item(item, "developer", fleet.desk.clock.now())

    with pytest.raises(RefusedError, match="development"):
        fleet.cancel(job)
    assert fleet.row(job).status == QUEUED


@pytest.mark.parametrize("status", ["running", "done"])
def test_job_that_an_agent_has_or_had_is_not_cancelled(fleet: FleetStand, status: str) -> None:
    """Of a job without an attempt no worker is asked to stop: it is refused, and at once."""
    job = fleet.submit("shop", "WI-1")
    assert fleet.desk.store.claim_next(fleet.desk.clock.now(), "one-0a1b/a:b:c/1/2", job)
    with fleet.engine.begin() as connection:
        connection.execute(sa.text("UPDATE jobs SET status = :status"), {"status": status})

    with pytest.raises(NothingToCancelError, match=f"job {job} is {status} without an attempt"):
        fleet.cancel(job)
    assert fleet.row(job).status == status


def test_worker_that_is_asked_to_stop_an_agents_job_goes_on(fleet: FleetStand) -> None:
    """A request to stop that comes for a job without an attempt, late, ends no worker."""
    job = fleet.submit("shop", "WI-1")
    assert fleet.desk.store.claim_next(fleet.desk.clock.now(), "one-0a1b/a:b:c/1/2", job)
    delivery = Delivery(fleet.desk, job, "shop")
    delivery._staging = staging_intercept(fleet.desk.store, fleet.desk.clock, {})
    delivery.cancel()

    assert fleet.row(job).status == RUNNING


def test_delivery_that_only_stood_before_the_fence_has_nothing_to_stop(
    fleet: FleetStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request to stop waits for an attempt no longer than the delivery that it came for."""
    delivery = Delivery(there := fleet.seen_from("one"), fleet.submit("shop", "WI-1"), "shop")
    with Fence(there.server, "shop") as fence:
        assert fence.take()
        delivery.run()
    waits: list[float] = []
    monkeypatch.setattr(type(there.clock), "wait", lambda _, seconds: waits.append(seconds))
    delivery.cancel()

    assert waits == []


def test_branch_of_a_work_item_is_the_one_that_is_configured(
    tmp_path: Path, postgres_url: str
) -> None:
    """What is judged, and where the verdict goes, is the branch that the fleet's setting names."""
    with fleet_stand(tmp_path, postgres_url, ORCH_FLEET_BRANCH="wi/{work_item}/it") as fleet:
        row = fleet.row(fleet.submit("shop", "WI-1"))

        assert fleet.desk.branch(row) == "wi/WI-1/it"


def test_delivery_that_comes_too_early_is_made_again_for_its_time(fleet: FleetStand) -> None:
    """A job that is not due yet is claimed by nobody, and delivered once when it is."""
    job, store = fleet.submit("shop", "WI-1"), SqlHostStore(fleet.engine)
    fleet.take_delivery()
    later = fleet.desk.clock.now().replace(microsecond=0) + timedelta(hours=1)
    with fleet.engine.begin() as connection:
        statement = sa.text("UPDATE jobs SET not_before = :due WHERE id = :id")
        connection.execute(statement, {"due": format_time(later), "id": job})
    fleet.deliver(job)

    assert times_of_deliveries(fleet) == [later]
    assert store.job(job).status == QUEUED


def times_of_deliveries(fleet: FleetStand) -> list[datetime]:
    """Return when deliveries are due that wait."""
    query = f"SELECT scheduled_at FROM {fleet.schema}.procrastinate_jobs WHERE task_name = :task"  # noqa: S608  # a name of ours
    with fleet.engine.connect() as connection:
        return list(connection.execute(sa.text(query), {"task": TASK}).scalars())


def test_connection_of_a_fence_is_watched_from_both_sides(
    fleet: FleetStand, postgres_url: str
) -> None:
    """Client and server notice a network that is gone, and what the address says is heeded."""
    address = sa.make_url(postgres_url)
    options = f"{address.query.get('options', '')} -c lock_timeout=4321"
    chosen = address.update_query_dict({"options": options.strip()})
    engine = open_database(chosen.render_as_string(hide_password=False))
    with Server.behind(engine, fleet.schema).connect() as fence:
        kept = [one_of(fence, f"SHOW {name}") for name in ("lock_timeout", "search_path")]
        ours = one_of(fence, "SHOW idle_in_transaction_session_timeout")
        told = fence.info.get_parameters()
    engine.dispose()

    assert kept == ["4321ms", fleet.schema]
    assert ours == "1min"
    assert {name: told.get(name) for name in CLIENT_KEEPALIVE} == {
        name: str(it) for name, it in CLIENT_KEEPALIVE.items()
    }


def one_of(connection: psycopg.Connection[Any], query: Any) -> Any:
    """Return the one value that a query gives."""
    found = connection.execute(query).fetchone()
    assert found is not None
    return found[0]


def test_job_of_a_stranger_is_taken_once_his_worker_is_known_to_be_dead(
    fleet: FleetStand,
) -> None:
    """A job that no worker of the fleet has claimed stays whose it is, unless he is surely dead."""
    job = fleet.submit("shop", "WI-1")
    store, now = SqlHostStore(fleet.engine), fleet.desk.clock.now()
    strangers = [str(this_process()), "elsewhere:boot:1/4711/1", "a worker"]
    holders = []
    for stranger in (*strangers, str(attrs.evolve(this_process(), start=1))):
        assert store.claim_next(now, stranger, job) is not None
        there = fleet.deliver(job)
        held = store.job(job)
        holders.append(held.claimed_by)
        store.requeue_abandoned(held, now)

    assert holders == [*strangers, there.worker]
    assert fleet.attempt(job).state == State.ADVANCED


def test_stranger_who_claims_a_job_while_its_branch_is_fetched_keeps_it(
    fleet: FleetStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose the job is, is asked once more when it is launched: fetching a branch takes time."""
    job = fleet.submit("shop", "WI-1")
    store, now, opened = SqlHostStore(fleet.engine), fleet.desk.clock.now(), GitBranch.open
    assert store.claim_next(now, f"two-0a1b/{this_process()}", job) is not None

    def lose_the_job(publisher: GitBranch, row: JobRow) -> Path:
        store.requeue_abandoned(store.job(job), now)
        assert store.claim_next(now, str(this_process()), job) is not None
        return opened(publisher, row)

    monkeypatch.setattr(GitBranch, "open", lose_the_job)
    fleet.deliver(job)

    assert store.job(job).claimed_by == str(this_process())
    assert fleet.row(job).document is None


def test_relative_shared_folder_is_taken_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shared folder is absolute in any case: an agent is told of it, who runs elsewhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "papers").mkdir()
    row = JobRow(1, "shop", "WI-1", STAGE, "running", None, None)

    assert SharedFolder(Path("papers")).open(row) == tmp_path / "papers" / "shop"


def test_agent_of_a_stranger_is_left_alone(tmp_path: Path, postgres_url: str) -> None:
    """What a living stranger's agent does in the shared folder is not ended: the job is his."""
    shared = tmp_path / "shared"
    settings = {"ORCH_FLEET_SHARED_DIR": str(shared), **with_agent(tmp_path)}
    with fleet_stand(tmp_path, postgres_url, **settings) as fleet:
        job = fleet.submit("shop", "WI-1")
        claimed = SqlHostStore(fleet.engine).claim_next(fleet.desk.clock.now(), str(this_process()))
        mark = {AGENT_MARK: str(work_item_dir(shared / "shop", "WI-1"))}
        with subprocess.Popen(["sleep", "600"], env={**os.environ, **mark}) as agent:
            fleet.deliver(job)
            is_at_it = agent.poll() is None
            agent.kill()

        assert claimed is not None
        assert (claimed.id, is_at_it) == (job, True)


@pytest.mark.parametrize("command", [["worker", "--once"], ["run", "--repo", "/", "--", "true"]])
def test_nobody_works_beside_a_fleet(fleet: FleetStand, command: list[str]) -> None:
    """A command that would run suites without a fence refuses a fleet's database."""
    refused = fleet.call(*command, check=False)

    assert refused.returncode == ExitCode.DECLINED
    assert "belongs to a fleet: use `staging-fsm fleet-" in refused.stderr


def test_papers_reach_a_shared_folder(tmp_path: Path, postgres_url: str) -> None:
    """With a shared folder artifact and log are there, where the host's gate reads them."""
    shared = tmp_path / "shared"
    with fleet_stand(tmp_path, postgres_url, ORCH_FLEET_SHARED_DIR=str(shared)) as fleet:
        job = fleet.submit("shop", "WI-1")
        fleet.deliver(job)
        folder = shared / "shop" / "docs" / "work-items" / "WI-1"

        assert fleet.attempt(job).state == State.ADVANCED
        assert check_staging_status(folder)
        assert sorted(path.name for path in folder.iterdir()) == [ARTIFACT_NAME, LOG_NAME]


@pytest.mark.parametrize("left", ["not mounted", "nothing", "another one", "no mark"])
def test_papers_go_to_no_folder_but_the_fleets(
    tmp_path: Path, postgres_url: str, left: str
) -> None:
    """Where the shared folder is not mounted nothing is written, the job waits, and a person hears.

    Once it is there again, the job goes on.
    """
    shared = tmp_path / "shared"
    with fleet_stand(tmp_path, postgres_url, ORCH_FLEET_SHARED_DIR=str(shared)) as fleet:
        fleet.call("fleet-setup")
        job = fleet.submit("shop", "WI-1")
        away = shared.rename(tmp_path / "away")
        if left != "nothing":
            shared.mkdir()
        if left in ("another one", "no mark"):
            text = "0123456789abcdef\n" if left == "another one" else "fleet"
            (shared / MARK_NAME).write_text(text)
        before = sorted(tmp_path.glob("shared/**"))
        there = fleet.seen_from("one")
        for _ in range(REMOTE_BACKOFF.runs_max):
            Delivery(there, job, "shop", fleet.take_delivery()).run()

        assert sorted(tmp_path.glob("shared/**")) == before
        assert (fleet.row(job).status, fleet.row(job).document) == (QUEUED, None)
        assert f"waiting: the shared folder {shared} is not" in there.state.alerts.read_text()

        if left != "nothing":
            shared.rename(tmp_path / "mount point")
        away.rename(shared)
        fleet.deliver(job)

        assert fleet.attempt(job).state == State.ADVANCED
        assert check_staging_status(work_item_dir(shared / "shop", "WI-1"))


def test_folder_that_goes_away_while_a_suite_runs_gets_no_verdict(tmp_path: Path) -> None:
    """A folder that was unmounted since it was opened is not written to, and not made again."""
    row = JobRow(7, "shop", "WI-1", STAGE, "running", None, None)
    root = tmp_path / "shared"
    root.mkdir()
    publisher = SharedFolder(root, SharedFolder(root).marked())
    publisher.open(row)
    root.rename(tmp_path / "away")
    for made in (False, True):
        if made:
            root.mkdir()
        with pytest.raises(PreparationError):
            publisher.publish(row, {"log": b"it passed"}, lambda: None)

    assert list(root.iterdir()) == []


def test_shared_folder_is_marked_once(tmp_path: Path) -> None:
    """A fleet that is set up again keeps the mark of its shared folder; no mark is no mark."""
    shared = SharedFolder(tmp_path)
    first = shared.marked()
    path = tmp_path / MARK_NAME

    assert shared.marked() == first
    assert path.stat().st_mode & 0o777 == ARTIFACT_MODE

    path.write_text("a mark")

    with pytest.raises(PreparationError, match="is no mark of a fleet"):
        shared.marked()


def test_fleet_is_not_set_up_for_a_shared_folder_that_is_not_there(fleet: FleetStand) -> None:
    """`fleet-setup` makes no shared folder, and notes none that is not there."""
    fleet.settings["ORCH_FLEET_SHARED_DIR"] = str(fleet.root / "nowhere")
    refused = fleet.call("fleet-setup", check=False)

    assert refused.returncode == ExitCode.DECLINED
    assert "nowhere is not there" in refused.stderr
    assert not (fleet.root / "nowhere").exists()
    assert fleet.desk.deliveries.noted(fleet.engine) is None


def test_fleet_that_was_set_up_before_its_folder_was_marked_goes_on(
    tmp_path: Path, postgres_url: str
) -> None:
    """A note without a mark holds as it did: of the shared folder it asks only that it is there."""
    shared = tmp_path / "shared"
    with fleet_stand(tmp_path, postgres_url, ORCH_FLEET_SHARED_DIR=str(shared)) as fleet:
        fleet.desk.deliveries.note(fleet.engine, Note(fleet.desk.settings.papers))
        job = fleet.submit("shop", "WI-1")
        fleet.deliver(job)

        assert fleet.attempt(job).state == State.ADVANCED


@pytest.mark.parametrize("agent", [False, True], ids=["runner", "agent"])
def test_deployment_is_tagged_where_papers_lie_in_a_shared_folder(
    tmp_path: Path, postgres_url: str, *, agent: bool
) -> None:
    """The remote has the tag of a deployment, also where no machine has a checkout."""
    settings = {"ORCH_FLEET_SHARED_DIR": str(tmp_path / "shared")}
    if agent:
        says = f'echo "---\nstaging_status: SUCCESS\n---" >"$ORCH_WORK_ITEM_DIR/{ARTIFACT_NAME}"'
        settings |= {"ORCH_STAGING_RUNNER_ENABLED": "0", **with_agent(tmp_path, says)}
    with fleet_stand(tmp_path, postgres_url, **settings) as fleet:
        fleet.deliver(fleet.submit("shop", "WI-1"))
        head = git(fleet.remote("shop"), "rev-parse", "WI-1")
        deploy = newest(fleet)
        fleet.deliver(deploy, "two")

        assert said_of(fleet, deploy) == {"deployed_revision": head}
        assert git(fleet.remote("shop"), "rev-parse", "deployed/WI-1") == head
        assert fleet.stage_of("WI-1") == "post-deploy"


def test_tag_of_a_deployment_is_moved_by_the_next_deployment_alone(fleet: FleetStand) -> None:
    """No job but a finalizer's that has tagged moves the tag, whichever machine works on it."""
    fleet.deliver(fleet.submit("shop", "WI-1"))
    fleet.deliver(newest(fleet))
    second, remote = fleet.develop("shop", "WI-1"), fleet.remote("shop")
    fleet.deliver(fleet.stage_again("shop", "WI-1"), "two")
    fleet.deliver(newest(fleet), "two")
    deployed = git(remote, "rev-parse", "deployed/WI-1")
    # Its mirror has the tag of the first deployment.
    fleet.deliver(newest(fleet))
    monitored = git(remote, "rev-parse", "deployed/WI-1")
    fleet.develop("shop", "WI-1")
    fleet.deliver(fleet.stage_again("shop", "WI-1"), "two")
    fleet.replace_history("shop", "WI-1")
    failing = newest(fleet)
    fleet.deliver(failing)

    assert "deploy_error" in said_of(fleet, failing)
    assert git(remote, "rev-parse", "deployed/WI-1") == second
    assert deployed == monitored == second


def newest(fleet: FleetStand) -> int:
    """Return the job that was queued last."""
    return int(max(row.id for row in fleet.desk.rows.recent(2)))


def said_of(fleet: FleetStand, job_id: int) -> Any:
    """Return what a reserved agent has put down on its job."""
    return json.loads(SqlHostStore(fleet.engine).job(job_id).metadata)


@pytest.mark.parametrize("what", ["branch rewritten", "commit gone", "remote away"])
def test_commit_of_a_deployment_is_fetched_by_whoever_deploys_it(
    fleet: FleetStand, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """What staging passed is deployed as long as the remote has it, and waits for a remote."""
    fleet.deliver(fleet.submit("shop", "WI-1"))
    deploy, remote, fetched = newest(fleet), fleet.remote("shop"), Mirror.fetch
    passed = fleet.attempt(1).bound_plan.revision
    fleet.replace_history("shop", "WI-1", forget=what == "commit gone")

    def fetch(mirror: Mirror, commit: str) -> None:
        if commit == passed and what == "remote away":
            remote.rename(remote.with_suffix(".away"))
        fetched(mirror, commit)

    monkeypatch.setattr(Mirror, "fetch", fetch)
    fleet.deliver(deploy, "two")
    said, stage = said_of(fleet, deploy), fleet.stage_of("WI-1")

    if what == "branch rewritten":
        assert (said, stage) == ({"deployed_revision": passed}, "post-deploy")
        assert git(remote, "rev-parse", "deployed/WI-1") == passed
    elif what == "commit gone":
        assert ([*said], stage) == (["deploy_error"], "development")
    else:
        assert (said, stage, fleet.row(deploy).status) == ({}, "deploy", QUEUED)


@pytest.mark.parametrize(
    ("lost_after", "left"), [(0, []), (1, [LOG_NAME]), (2, [ARTIFACT_NAME, LOG_NAME])]
)
def test_right_to_write_is_asked_before_each_paper(
    tmp_path: Path, lost_after: int, left: list[str]
) -> None:
    """Whoever loses its hold while it writes to a shared folder leaves a log without a verdict."""
    row = JobRow(7, "shop", "WI-1", STAGE, "running", None, None)
    publisher, times = SharedFolder(tmp_path), iter(range(lost_after))
    folder = work_item_dir(publisher.open(row), "WI-1")
    folder.mkdir(parents=True)

    def permitted() -> None:
        if next(times, None) is None:
            raise FenceLostError

    artifacts = PublishedArtifacts(publisher, row, publisher.open(row), lambda _: b"", permitted)
    lost = pytest.raises(FenceLostError) if len(left) < 2 else contextlib.nullcontext()
    with lost:
        artifacts.write(folder, "SUCCESS")

    assert sorted(path.name for path in folder.iterdir()) == left
    assert all(path.stat().st_mode & 0o777 == ARTIFACT_MODE for path in folder.iterdir())


def test_folder_of_a_work_item_is_in_the_shared_folder_for_ever(
    tmp_path: Path, synced: list[list[str]]
) -> None:
    """A power cut of the file server takes no folder in which papers were published."""
    row = JobRow(7, "shop", "WI-1", STAGE, "running", None, None)
    SharedFolder(tmp_path).publish(row, {"docs/WI-1/log": b"it passed"}, lambda: None)

    assert synced == [["shop"]]
    assert (tmp_path / "shop" / "docs" / "WI-1" / "log").read_bytes() == b"it passed"


def test_remote_that_does_not_answer_is_waited_for(fleet: FleetStand) -> None:
    """Without its remote a job is neither judged nor given to an agent: it waits, and goes on."""
    job = fleet.submit("shop", "WI-1")
    remote = fleet.remote("shop")
    away = remote.rename(remote.with_suffix(".away"))
    fleet.deliver(job)

    assert fleet.row(job).snapshot() is None
    assert fleet.row(job).status == QUEUED
    assert len(fleet.deliveries()) == 1

    away.rename(remote)
    fleet.deliver(job)

    assert fleet.attempt(job).state == State.ADVANCED


def test_remote_that_stays_away_is_told_of_once(fleet: FleetStand) -> None:
    """Each look at a remote that does not answer is counted, and after a few a person is told."""
    job = fleet.submit("shop", "WI-1")
    remote = fleet.remote("shop")
    remote.rename(remote.with_suffix(".away"))
    there, told = fleet.seen_from("one"), []
    looks = REMOTE_BACKOFF.runs_max + 1
    for _ in range(looks):
        Delivery(there, job, "shop", fleet.take_delivery()).run()
        alerts = there.state.alerts
        told.append(alerts.read_text().count("waiting: ") if alerts.exists() else 0)

    assert fleet.take_delivery() == looks
    assert told == [*[0] * REMOTE_BACKOFF.infra_retries, 1, 1]


def test_remote_that_stays_away_is_asked_later_and_later(fleet: FleetStand) -> None:
    """Each look in vain doubles the wait before the next one, as after a tool error."""
    job = fleet.submit("shop", "WI-1")
    fleet.remote("shop").rename(fleet.root / "away")
    fleet.take_delivery()
    for tries in range(4):
        there, before = fleet.seen_from("one"), fleet.desk.clock.now()
        Delivery(there, job, "shop", tries).run()
        delay = REMOTE_BACKOFF.delay_seconds(f"delivery-{job}", tries + 1)
        wait = times_of_deliveries(fleet)[0] - before
        assert wait >= timedelta(seconds=delay) > timedelta(seconds=BUSY_SECONDS)
        assert fleet.take_delivery() == tries + 1


def test_commit_that_vanished_is_a_tool_error(fleet: FleetStand) -> None:
    """A bound commit that cannot be fetched any more is a counted tool error, never a verdict."""
    job = fleet.submit("shop", "WI-1", verdict=126)
    fleet.deliver(job)
    first = fleet.attempt(job)
    fleet.replace_history("shop", "WI-1")
    await_that(lambda: not fleet.desk.clock.now() < due(fleet, job), "the next run is due")
    fleet.deliver(job, "two")
    second = fleet.attempt(job)

    assert first.bound_plan == second.bound_plan
    assert second.reasons == (Reason.TOOL_EXIT_CODE, Reason.PREPARATION_FAILED)


def test_machine_that_is_not_fit_leaves_its_jobs_to_others(
    fleet: FleetStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full machine neither spends a run nor gives the job to an agent: another may run it."""
    first, next_one = fleet.submit("shop", "WI-1"), fleet.submit("shop", "WI-2", verdict=126)
    fleet.deliver(next_one)
    await_that(lambda: not fleet.desk.clock.now() < due(fleet, next_one), "the next run is due")
    before = [fleet.row(first), fleet.row(next_one)]
    fill_the_disk(monkeypatch)
    for job in (first, next_one):
        fleet.deliver(job, "full")

    assert [fleet.row(first), fleet.row(next_one)] == before
    assert len(fleet.deliveries()) == 2

    monkeypatch.undo()
    fleet.deliver(first, "two")

    assert fleet.attempt(first).state == State.ADVANCED


@pytest.mark.parametrize(("name", "value"), [("ENABLED", "0"), ("REPOS", "bank"), ("SHADOW", "1")])
def test_job_of_an_agent_needs_no_room_for_a_run(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """A full machine gives what is not the runner's to its agent, as an empty one does."""
    settings = {f"ORCH_STAGING_RUNNER_{name}": value, **with_agent(tmp_path)}
    with fleet_stand(tmp_path, postgres_url, **settings) as fleet:
        job = fleet.submit("shop", "WI-1")
        fill_the_disk(monkeypatch)
        fleet.deliver(job, "full")

        assert fleet.row(job).status == "done"


def test_person_is_told_of_a_machine_that_stays_unfit(
    fleet: FleetStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look in vain at a full machine is counted, and after a few a person is told why."""
    job = fleet.submit("shop", "WI-1")
    fill_the_disk(monkeypatch)
    there = fleet.seen_from("full")
    for _ in range(REMOTE_BACKOFF.runs_max):
        Delivery(there, job, "shop", fleet.take_delivery()).run()
    (alert,) = map(json.loads, there.state.alerts.read_text().splitlines())

    assert alert["kind"] == "machine_unfit"
    assert "MiB" in alert["text"]


@pytest.mark.parametrize(
    ("part", "elsewhere"), [("mirrors", "/gone"), ("mirrors", "/proc"), ("checkouts", "/gone")]
)
def test_machine_whose_folders_cannot_be_used_waits_and_is_told_of(
    fleet: FleetStand, part: str, elsewhere: str
) -> None:
    """Where no mirror or no checkout can be made each look is counted, and a person told why."""
    job = fleet.submit("shop", "WI-1")
    there = fleet.seen_from("one")
    (there.state.root / part).symlink_to(elsewhere)
    for tries in range(REMOTE_BACKOFF.runs_max):
        assert fleet.take_delivery() == tries
        Delivery(there, job, "shop", tries).run()
    (alert,) = map(json.loads, there.state.alerts.read_text().splitlines())

    assert fleet.row(job).document is None
    assert alert["kind"] == "machine_unfit"
    assert str(there.state.root / part) in alert["text"]

    fleet.deliver(job, "two")

    assert fleet.attempt(job).state == State.ADVANCED


def test_delivery_that_breaks_is_counted_whatever_broke_it(fleet: FleetStand) -> None:
    """What nobody foresaw is raised, to be logged, and told of when it happens again and again."""
    job = fleet.submit("shop", "WI-1")
    there = fleet.seen_from("one")
    with fleet.engine.begin() as connection:
        connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
        connection.execute(sa.text("DELETE FROM repositories"))
    for tries in range(REMOTE_BACKOFF.runs_max):
        assert fleet.take_delivery() == tries
        with pytest.raises(LookupError):
            Delivery(there, job, "shop", tries).run()
    (alert,) = map(json.loads, there.state.alerts.read_text().splitlines())

    assert alert["kind"] == "internal_error"
    assert "waiting: LookupError" in alert["text"]


def test_delivery_of_a_job_that_is_gone_is_over(fleet: FleetStand) -> None:
    """A job whose row was removed is not delivered again."""
    job = fleet.submit("shop", "WI-1")
    with fleet.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM jobs"))
    fleet.take_delivery()
    with pytest.raises(JobNotFoundError):
        Delivery(fleet.seen_from("one"), job, "shop").run()

    assert fleet.deliveries() == []


def test_verdict_of_a_machine_that_is_full_is_handed_over(
    fleet: FleetStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was judged on a machine that has no room for another run is brought to its end."""
    job = fleet.kill_at_its_push("pre-receive")
    fill_the_disk(monkeypatch)
    fleet.deliver(job)

    assert fleet.attempt(job).state == State.ADVANCED


def test_launch_looks_at_mirror_and_checkout(
    fleet: FleetStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folders that have to be usable are those of this machine, not the host's own."""
    looked: list[tuple[object, ...]] = []
    monkeypatch.setattr(runner, "unfit", lambda _state, *about: looked.append(about))
    job = fleet.submit("shop", "WI-1")
    there = fleet.deliver(job)
    checkout = there.state.root / "checkouts" / f"job-{job}"

    assert [(about[0], *about[2:]) for about in looked] == [
        (there.variables, there.mirror(fleet.row(job)).path, work_item_dir(checkout, "WI-1"))
    ]


def test_attempt_of_a_fleet_is_traced(fleet: FleetStand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt that has ended on a machine of the fleet is one trace, and no other move is."""
    traces: list[tuple[int, State]] = []
    monkeypatch.setattr(
        telemetry, "trace_attempt", lambda row, attempt: traces.append((row.id, attempt.state))
    )
    job = fleet.submit("shop", "WI-1")
    fleet.deliver(job)

    assert traces == [(job, State.ADVANCED)]


def test_old_runs_are_removed_from_a_machine(tmp_path: Path, postgres_url: str) -> None:
    """A machine keeps no run for ever but one whose attempt goes on, and seldom looks for old ones.

    How long ago it looked is known to the machine's worker, not to one delivery.
    """
    with fleet_stand(tmp_path, postgres_url, **PATIENT) as fleet:
        there = fleet.seen_from("one")
        ended, waiting = fleet.submit("shop", "WI-1"), fleet.submit("shop", "WI-2", verdict=126)
        for job in (ended, waiting):
            fleet.deliver(job)
        runs = {job: run_id_of(fleet.attempt(job)) for job in (ended, waiting)}
        for run in runs.values():
            os.utime(there.state.run(run), (0, 0))
        third, fourth = fleet.submit("shop", "WI-3"), fleet.submit("shop", "WI-4")
        Delivery(there, third, "shop").run()

        assert there.state.run_ids() == sorted([runs[waiting], run_id_of(fleet.attempt(third))])

        os.utime(there.state.run(run_id_of(fleet.attempt(third))), (0, 0))
        Delivery(there, fourth, "shop").run()

        assert len(there.state.run_ids()) == 3


def test_launch_in_shadow_mode_is_not_noted_in_a_fleet(tmp_path: Path, postgres_url: str) -> None:
    """In shadow mode a fleet's agent works alone: the checkout that it had is gone with it."""
    said = {"ORCH_STAGING_RUNNER_SHADOW": "1", **with_agent(tmp_path)}
    with fleet_stand(tmp_path, postgres_url, **said) as fleet:
        job = fleet.submit("shop", "WI-1")
        there = fleet.deliver(job)

        assert (fleet.row(job).status, fleet.row(job).document) == ("done", None)
        assert not there.state.shadow.exists()


def due(fleet: FleetStand, job_id: int) -> datetime:
    """Return when a job is due."""
    found = fleet.row(job_id).not_before
    assert found is not None
    return found


def left_by_an_earlier_container(
    fleet: FleetStand, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, RunFolder]:
    """Return a job whose container has ended before its verdict was stored, and its run."""
    job, save = fleet.submit("shop", "WI-1"), FleetRows.save

    def fail_at_the_verdict(rows: FleetRows, job_id: Any, snapshot: Snapshot, tx: Any) -> None:
        if snapshot.state is State.VERDICT_PASSED:
            message = "the container ends"
            raise OSError(message)
        save(rows, job_id, snapshot, tx)

    monkeypatch.setattr(FleetRows, "save", fail_at_the_verdict)
    there = fleet.deliver(job)
    run = RunFolder(there.state, run_id_of(fleet.attempt(job)))
    run.write_order(attrs.evolve(run.order(), scope="an-earlier-one:boot:1"))
    monkeypatch.undo()
    return job, run


def test_machine_is_a_state_folder_wherever_it_is_mounted(fleet: FleetStand) -> None:
    """Each of two containers with one path to their state folders is a machine of its own.

    What a machine is called goes with its folder, so that it finds again what it has run.
    """
    one = fleet.seen_from("one").machine
    fleet.machine("one").state.rename(fleet.machine("elsewhere").state)

    assert fleet.seen_from("elsewhere").machine == one
    assert fleet.seen_from("one").machine != one


def test_result_of_an_earlier_container_counts(
    fleet: FleetStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run showed that ended in another container of the same machine is not run again."""
    job, _ = left_by_an_earlier_container(fleet, monkeypatch)
    fleet.deliver(job)

    assert len(fleet.ledger("start")) == 1
    assert fleet.events(job) == [
        *(Event.JOB_CLAIMED, Event.RUN_ADOPTED, Event.SUITE_PASSED, Event.GATE_OPENED)
    ]


def test_run_that_an_earlier_container_left_unfinished_is_lost(
    fleet: FleetStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that went down with its container is a counted tool error, and its job goes on."""
    job, run = left_by_an_earlier_container(fleet, monkeypatch)
    (run.path / "result").unlink()
    fleet.deliver(job)

    assert fleet.attempt(job).state is State.DEFERRED
    assert fleet.attempt(job).reasons == (Reason.WORKER_LOST,)


def test_long_log_that_was_published_is_the_first_and_only_one(
    fleet: FleetStand, tmp_path: Path
) -> None:
    """However much of an output was published, a machine without it does not publish less."""
    there = fleet.seen_from("one")
    row = fleet.row(fleet.submit("shop", "WI-1"))
    whose = f"{written('attempt', '7-3f')}\n{written('run', 2)}"
    (tmp_path / ARTIFACT_NAME).write_text(f"---\n{whose}\n---\n")
    (tmp_path / LOG_NAME).write_bytes(b"x" * LOG_MAX_BYTES)
    suites = FleetSuites(there, there.mirror(row), Fence(there.server, "shop"), tmp_path)

    assert suites.log_tail("7-3f.2", LOG_MAX_BYTES) == b"x" * LOG_MAX_BYTES


#: A suite that finds no tool in its first run, and prints the number of each.
SECOND_TIME = """\
[default]
command = ["sh", "-c", '''
echo >>"$FLEET/runs"; set -- $(wc -l <"$FLEET/runs"); echo "run $1"; test $1 -eq 2 || exit 126
''']
environment = ["FLEET"]
"""


def test_log_beside_a_verdict_is_of_the_run_that_it_is_of(fleet: FleetStand) -> None:
    """Whoever reads why a suite ended as it did reads the output of that run, and of no earlier."""
    (fleet.root / "suites.toml").write_text(SECOND_TIME)
    job = fleet.submit("shop", "WI-1")
    fleet.deliver(job)
    await_that(lambda: not fleet.desk.clock.now() < due(fleet, job), "the next run is due")
    fleet.deliver(job)

    assert fleet.attempt(job).state is State.ADVANCED
    assert fleet.published("shop", "WI-1", LOG_NAME) == "run 2"


def test_end_of_a_published_log_is_quoted(fleet: FleetStand, tmp_path: Path) -> None:
    """A machine without the output quotes the end of it, as it was published by another."""
    there = fleet.seen_from("one")
    row = fleet.row(fleet.submit("shop", "WI-1"))
    whose = f"{written('attempt', '7-3f')}\n{written('run', 2)}"
    (tmp_path / ARTIFACT_NAME).write_text(f"---\n{whose}\n---\n")
    (tmp_path / LOG_NAME).write_text("it began\nit failed\n")
    suites = FleetSuites(there, there.mirror(row), Fence(there.server, "shop"), tmp_path)

    assert suites.log_tail("7-3f.2", 10) == b"it failed\n"
    assert suites.log_tail("7-3f.1", 10) == b""


@pytest.mark.parametrize(
    ("suites", "words"),
    [
        (None, "the suites file cannot be read"),
        ("[default", "the suites file"),
        ('[repos.other]\ncommand = ["true"]\n', "no suite is configured"),
        ('[default]\ncommand = ["true"]\nworkspace = "in-place"\n', "in worktrees only"),
    ],
    ids=["none", "broken", "without it", "in place"],
)
def test_machine_whose_suites_cannot_be_run_leaves_its_jobs_to_others(
    fleet: FleetStand, suites: str | None, words: str
) -> None:
    """Where a fleet can make no suite of what is configured a job waits, and a person is told."""
    job, here = fleet.submit("shop", "WI-1"), fleet.root / "here.toml"
    if suites is not None:
        here.write_text(suites)
    there = fleet.seen_from("one")
    there = attrs.evolve(there, variables={**there.variables, SUITES_FILE: str(here)})
    for tries in range(REMOTE_BACKOFF.runs_max):
        assert fleet.take_delivery() == tries
        Delivery(there, job, "shop", tries).run()
    (alert,) = map(json.loads, there.state.alerts.read_text().splitlines())

    assert (fleet.row(job).status, fleet.row(job).document) == (QUEUED, None)
    assert alert["kind"] == "configuration_invalid"
    assert words in alert["text"]

    fleet.deliver(job, "two")

    assert fleet.attempt(job).state == State.ADVANCED


def test_run_that_is_due_is_not_spent_on_an_invalid_configuration(fleet: FleetStand) -> None:
    """Between two runs, too, a machine whose settings are invalid leaves the job to others."""
    job = fleet.submit("shop", "WI-1", verdict=126)
    fleet.deliver(job)
    await_that(lambda: not fleet.desk.clock.now() < due(fleet, job), "the next run is due")
    before = fleet.row(job)
    fleet.settings["ORCH_STAGING_RUNNER_TIMEOUT_SECOND"] = "900"
    fleet.deliver(job)

    assert fleet.row(job) == before


@pytest.mark.parametrize(
    ("settings", "has_agent"), [({"ENABLED": "0"}, False), ({"SHADOW": "1"}, False), ({}, True)]
)
def test_job_that_is_an_agents_needs_no_suite(
    tmp_path: Path, postgres_url: str, settings: dict[str, str], *, has_agent: bool
) -> None:
    """Switched off, looking on, or without a suite where there is an agent, a job is its own."""
    named = {f"ORCH_STAGING_RUNNER_{name}": value for name, value in settings.items()}
    (tmp_path / "here.toml").write_text('[repos.other]\ncommand = ["true"]\n' if has_agent else "[")
    named |= {SUITES_FILE: str(tmp_path / "here.toml"), **with_agent(tmp_path)}
    with fleet_stand(tmp_path, postgres_url, **named) as fleet:
        job = fleet.submit("shop", "WI-1")
        fleet.deliver(job)

        assert fleet.row(job).status == "done"


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("TIMEOUT_SECOND", "900", "TIMEOUT_SECOND"),
        ("TIMEOUT_SECONDS", "15m", "TIMEOUT_SECONDS"),
        ("SUITES_FILE", "/gone.toml", "the suites file cannot be read"),
    ],
)
def test_worker_whose_configuration_is_invalid_does_not_start(
    fleet: FleetStand, setting: str, value: str, words: str
) -> None:
    """A machine on which nothing could be run takes no job, and says what is wrong."""
    fleet.settings[f"ORCH_STAGING_RUNNER_{setting}"] = value
    refused = fleet.call("fleet-worker", check=False)

    assert refused.returncode == ExitCode.DECLINED
    assert refused.stderr.startswith("staging-fsm: invalid configuration: ")
    assert words in refused.stderr


def test_worker_whose_kill_switch_is_misspelt_does_not_start(fleet: FleetStand) -> None:
    """A switch that is not there is not taken for one that says off, whatever else is named so."""
    variables = fleet.environment(fleet.machine("desk"))
    variables["ORCH_STAGING_RUNNER_ENABELD"] = variables.pop("ORCH_STAGING_RUNNER_ENABLED")
    worker = [sys.executable, "-m", "staging_fsm.faces", "fleet-worker"]
    refused = subprocess.run(worker, env=variables, capture_output=True, text=True, check=False)

    assert refused.returncode == ExitCode.DECLINED
    assert "ENABELD" in refused.stderr


def test_agent_takes_over_where_the_runner_is_off(tmp_path: Path, postgres_url: str) -> None:
    """With the kill switch off the agent works in a checkout, and its verdict is published."""
    agent = tmp_path / "agent.sh"
    agent.write_text(
        'printf -- "---\\nstaging_status: SUCCESS\\n---\\n"'
        ' >"$ORCH_WORK_ITEM_DIR/15-staging-log.md"\n'
    )
    off = {
        "ORCH_STAGING_RUNNER_ENABLED": "0",
        "ORCH_AGENT_COMMAND": f"sh {agent}",
        "ORCH_LOG_DIR": str(tmp_path / "agents"),
    }
    with fleet_stand(tmp_path, postgres_url, **off) as fleet:
        job = fleet.submit("shop", "WI-1")
        fleet.deliver(job)

        assert fleet.row(job).status == "done"
        assert fleet.published("shop", "WI-1") == "---\nstaging_status: SUCCESS\n---"


#: What an agent does that has no verdict.
NO_VERDICT = {
    "it fails": "exit 1",
    "it says nothing": ":",
    "it checks everything out afresh": "git checkout --quiet --force HEAD -- .",
    "somebody pushes the old one again": """\
git clone --quiet --branch WI-1 "{remote}" "{root}/theirs" && cd "{root}/theirs"
git -c user.name=A -c user.email=a@example.org revert --no-edit HEAD && git push --quiet
""",
}


def staged_by_an_agent(fleet: FleetStand, text: str) -> int:
    """Have the runner pass the work item, and an agent stage it once more; return that job."""
    fleet.deliver(fleet.submit("shop", "WI-1"))
    assert fleet.stage_of("WI-1") == "deploy"
    fleet.settings |= {"ORCH_STAGING_RUNNER_ENABLED": "0", **with_agent(fleet.root, text)}
    job = fleet.stage_again("shop", "WI-1")
    fleet.deliver(job)
    return job


@pytest.mark.parametrize("does", NO_VERDICT)
@pytest.mark.parametrize("shared", [False, True], ids=["branch", "folder"])
def test_agent_that_leaves_no_verdict_is_not_judged_by_an_earlier_one(
    tmp_path: Path, postgres_url: str, does: str, *, shared: bool
) -> None:
    """A SUCCESS of an earlier attempt, published as it is, opens no gate of a later launch."""
    settings = {"ORCH_FLEET_SHARED_DIR": str(tmp_path / "shared")} if shared else {}
    with fleet_stand(tmp_path, postgres_url, **settings) as fleet:
        text = NO_VERDICT[does].format(remote=fleet.remote("shop"), root=tmp_path)
        job = staged_by_an_agent(fleet, text)
        listed = git(fleet.remote("shop"), "ls-tree", "-r", "--name-only", "WI-1", "docs")

        assert (fleet.row(job).status, fleet.stage_of("WI-1")) == ("done", "development")
        assert ARTIFACT_NAME not in [Path(name).name for name in listed.splitlines()]
        assert not list(tmp_path.glob(f"shared/**/{ARTIFACT_NAME}"))


def test_link_in_the_place_of_a_verdict_is_taken_away(tmp_path: Path, postgres_url: str) -> None:
    """A link that an agent leaves for its artifact is none, in a shared folder as on a branch."""
    shared = tmp_path / "shared"
    leaves = f'cd "$ORCH_WORK_ITEM_DIR"; ln -s nowhere {ARTIFACT_NAME}'
    with fleet_stand(tmp_path, postgres_url, ORCH_FLEET_SHARED_DIR=str(shared)) as fleet:
        job = staged_by_an_agent(fleet, leaves)
        folder = work_item_dir(shared / "shop", "WI-1")

        assert (fleet.row(job).status, fleet.stage_of("WI-1")) == ("done", "development")
        assert not (folder / ARTIFACT_NAME).is_symlink()


LISTED = "git -C '{remote}' ls-tree -r --name-only WI-1 docs >'{root}/seen'"


@pytest.mark.parametrize("agent", [False, True], ids=["suite", "agent"])
def test_earlier_verdict_is_read_by_nobody_while_a_new_one_is_made(
    tmp_path: Path, postgres_url: str, *, agent: bool
) -> None:
    """Before a suite or an agent begins, the artifact of an earlier attempt is off the branch."""
    with fleet_stand(tmp_path, postgres_url) as fleet:
        look = LISTED.format(remote=fleet.remote("shop"), root=tmp_path)
        if agent:
            staged_by_an_agent(fleet, look)
        else:
            fleet.deliver(fleet.submit("shop", "WI-1"))
            (tmp_path / "suites.toml").write_text(
                f"[default]\ncommand = {json.dumps(['sh', '-c', look])}\n"
            )
            job = fleet.stage_again("shop", "WI-1")
            fleet.deliver(job)
            assert fleet.attempt(job).state == State.ADVANCED
        seen = (tmp_path / "seen").read_text().splitlines()

    assert [Path(name).name for name in seen] == [LOG_NAME]


@pytest.mark.parametrize("agent", [False, True], ids=["suite", "agent"])
def test_nothing_begins_while_an_earlier_verdict_stays_on_the_branch(
    tmp_path: Path, postgres_url: str, *, agent: bool
) -> None:
    """Where the remote refuses to let an old artifact go, neither suite nor agent is started."""
    with fleet_stand(tmp_path, postgres_url, **PATIENT, **with_agent(tmp_path)) as fleet:
        fleet.deliver(fleet.submit("shop", "WI-1"))
        hook = fleet.remote("shop") / "hooks" / "pre-receive"
        hook.write_text("#!/bin/sh\nexit 1\n")
        hook.chmod(0o755)
        fleet.settings["ORCH_STAGING_RUNNER_ENABLED"] = "0" if agent else "1"
        job = fleet.stage_again("shop", "WI-1")
        fleet.deliver(job)

        assert len(fleet.ledger("start")) == 1
        assert not list(tmp_path.glob("agents/*"))
        assert (fleet.row(job).status, fleet.stage_of("WI-1")) == (QUEUED, STAGE)
        if not agent:
            assert fleet.attempt(job).reasons == (Reason.PREPARATION_FAILED,)


def test_what_an_agent_links_to_is_not_published(tmp_path: Path, postgres_url: str) -> None:
    """Of what an agent leaves only its files are published, and nothing that lies elsewhere."""
    secret = tmp_path / "secret"
    secret.write_text("a key of the worker")
    leaves = f'cd "$ORCH_WORK_ITEM_DIR"; echo all well >notes.md; ln -s "{secret}" more.md'
    off = {"ORCH_STAGING_RUNNER_ENABLED": "0", **with_agent(tmp_path, leaves)}
    with fleet_stand(tmp_path, postgres_url, **off) as fleet:
        job = fleet.submit("shop", "WI-1")
        fleet.deliver(job)
        listed = git(fleet.remote("shop"), "ls-tree", "-r", "--name-only", "WI-1", "docs")

        assert fleet.row(job).status == "done"
        assert listed == "docs/work-items/WI-1/notes.md"


def test_agent_that_stays_alive_is_waited_for(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier agent that cannot be killed keeps its job waiting, and no worker in a loop."""
    off = {"ORCH_STAGING_RUNNER_ENABLED": "0", **with_agent(tmp_path)}
    with fleet_stand(tmp_path, postgres_url, **off) as fleet:
        job = fleet.submit("shop", "WI-1")
        monkeypatch.setattr(launcher, "kill_marked", lambda *_: 1)
        fleet.deliver(job)

        assert fleet.row(job).status == QUEUED

        monkeypatch.undo()
        fleet.deliver(job)

        assert fleet.row(job).status == "done"


def test_job_without_an_agent_is_told_of_and_waits(fleet: FleetStand) -> None:
    """A job that only an LLM agent can do is not claimed where none is configured."""
    fleet.deliver(fleet.submit("shop", "WI-1", verdict=1))
    following = max(row.id for row in fleet.desk.rows.recent(2))
    machine = fleet.deliver(following)

    assert fleet.row(following).status == QUEUED
    assert "waits for agent developer" in machine.state.alerts.read_text()


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
def test_alert_of_a_fleet_reaches_the_address_that_is_configured(
    tmp_path: Path, postgres_url: str
) -> None:
    """What a worker of a fleet tells of is sent, and not only kept on its machine."""
    with webhooks() as make:
        address = make()
        with fleet_stand(
            tmp_path, postgres_url, ORCH_STAGING_RUNNER_ALERT_URLS=address.url
        ) as fleet:
            fleet.deliver(fleet.submit("shop", "WI-1", verdict=1))
            following = max(row.id for row in fleet.desk.rows.recent(2))
            fleet.deliver(following)
            address.wait_for(lambda: bool(address.messages))

    assert "waits for agent developer" in address.text


def test_work_that_cannot_be_pushed_moves_nothing(tmp_path: Path, postgres_url: str) -> None:
    """What an agent committed is on the remote before its gate is asked, or the job waits."""
    with fleet_stand(tmp_path, postgres_url, **with_agent(tmp_path)) as fleet:
        fleet.deliver(fleet.submit("shop", "WI-1", verdict=1))
        following = max(row.id for row in fleet.desk.rows.recent(2))
        hook = fleet.remote("shop") / "hooks" / "pre-receive"
        hook.write_text("#!/bin/sh\nexit 1\n")
        hook.chmod(0o755)
        fleet.deliver(following)

        assert (fleet.row(following).status, fleet.stage_of("WI-1")) == (QUEUED, "development")

        hook.unlink()
        fleet.deliver(following)

        assert (fleet.row(following).status, fleet.stage_of("WI-1")) == ("done", "review")


def test_nothing_is_published_behind_a_fallen_fence(fleet: FleetStand) -> None:
    """Whoever lost its hold on the repository writes no verdict and moves nobody else's away."""
    row = fleet.row(fleet.submit("shop", "WI-1"))
    there = fleet.seen_from("one")
    mirror = there.mirror(row)
    publisher = there.publisher(mirror)
    root = publisher.open(row)
    before = mirror.head("WI-1")
    folder = work_item_dir(root, "WI-1")
    folder.mkdir(parents=True)
    (folder / ARTIFACT_NAME).write_text("a successor's")
    with Fence(there.server, "shop") as fence:
        fence.check()
        artifacts = PublishedArtifacts(publisher, row, root, lambda _size: b"", fence.check)
        fleet.end_sessions()
        with pytest.raises(FenceLostError):
            artifacts.write(folder, "SUCCESS")
        with pytest.raises(FenceLostError):
            artifacts.set_aside(folder, "before-7-3f")

    assert mirror.head("WI-1") == before
    assert (folder / ARTIFACT_NAME).read_text() == "a successor's"


NO_RUNNER = {"ORCH_STAGING_RUNNER_ENABLED": "0"}
COMMITS = "git -c user.name=A -c user.email=a@example.org commit --quiet --allow-empty --message x"


@pytest.mark.parametrize(
    ("push", "agent"),
    [
        ("publish", None),
        ("publish", 'echo all well >"$ORCH_WORK_ITEM_DIR/notes.md"'),
        ("push_work", COMMITS),
    ],
    ids=["the runner's verdict", "an agent's papers", "an agent's commits"],
)
def test_nothing_is_pushed_once_the_fence_has_fallen(
    tmp_path: Path,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    push: str,
    agent: str | None,
) -> None:
    """A worker that loses its fence before a push leaves branch and work item to its successor."""
    settings = {} if agent is None else {**NO_RUNNER, **with_agent(tmp_path, agent)}
    with fleet_stand(tmp_path, postgres_url, **settings) as fleet:
        job, pushed, lost = fleet.submit("shop", "WI-1"), getattr(Mirror, push), []

        def lose_the_fence(mirror: Mirror, *arguments: Any) -> None:
            fleet.end_sessions()
            lost.append(push)
            pushed(mirror, *arguments)

        monkeypatch.setattr(Mirror, push, lose_the_fence)
        before = git(fleet.remote("shop"), "rev-parse", "WI-1")
        fleet.deliver(job)

        assert lost
        assert git(fleet.remote("shop"), "rev-parse", "WI-1") == before
        assert fleet.stage_of("WI-1") == STAGE


def test_fence_lets_in_one_of_the_whole_fleet(fleet: FleetStand) -> None:
    """While one holds a repository nobody else gets it; another repository is another fence."""
    server = fleet.desk.server
    with Fence(server, "shop") as ours, Fence(server, "shop") as theirs:
        with Fence(server, "bank") as other:
            assert (ours.take(), theirs.take(), other.take()) == (True, False, True)
        with pytest.raises(FenceLostError, match="somebody else has it"):
            theirs.check()
    with Fence(server, "shop") as again:
        # The server hears of the end of a connection when it comes to it.
        await_that(again.take, "the repository is free again")


def test_look_for_a_machine_is_no_sign_of_it(fleet: FleetStand) -> None:
    """Whoever has looked for a machine is not taken for it, though its connection stays."""
    with fleet.engine.connect() as one, fleet.engine.connect() as another:
        for connection in (one, another):
            with connection.begin():
                assert not is_present(connection, fleet.desk.server, "away")

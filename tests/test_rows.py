"""One contract for job rows, held by the SQL rows on SQLite and by the simulation's rows alike."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import attrs
import pytest
import sqlalchemy as sa
from hypothesis import example, given
from hypothesis import strategies as st

from memory import MemoryRows, MemoryStore, Record, SureHands, Tables
from postgres import engine_with
from staging_fsm.core.errors import (
    JobNotFoundError,
    RefusedError,
    SnapshotRefusedError,
    StaleSnapshotError,
)
from staging_fsm.core.jobs import SNAPSHOT_KEY, BrokenMetadata, JobRows
from staging_fsm.core.snapshot import FORMAT, dump_snapshot
from staging_fsm.core.times import format_time
from staging_fsm.effects import rows as rows_module
from staging_fsm.effects.metadata import our_document, with_key
from staging_fsm.effects.rows import SqlRows
from staging_fsm.host import database
from staging_fsm.host.database import BUSY_TIMEOUT_SECONDS, open_database
from staging_fsm.host.store import SqlHostStore, WorkItem
from versions import LATER, NOW, attempt

JOB = 1


class Kit(Protocol):
    """Rows, and a way round them to the table beneath."""

    @property
    def rows(self) -> JobRows:
        """Return the rows."""

    @property
    def store(self) -> Any:
        """Return the host's store over the same tables."""

    def add(self, metadata: str, status: str = "running") -> None:
        """Add job JOB."""

    def raw(self, job_id: int = JOB) -> tuple[str, str | None, str]:
        """Return status, not-before time and metadata as they are stored."""


@attrs.frozen
class MemoryKit:
    """The simulation's rows."""

    tables: Tables = attrs.field(factory=Tables)

    @property
    def rows(self) -> MemoryRows:
        """Return the rows."""
        return MemoryRows(self.tables, SureHands())

    @property
    def store(self) -> MemoryStore:
        """Return the host's store over the same tables."""
        return MemoryStore(self.tables, SureHands())

    def add(self, metadata: str, status: str = "running") -> None:
        """Add job JOB."""
        self.tables.items["shop", "WI-1"] = WorkItem("shop", "WI-1", "deploy-staging", 2, None)
        self.tables.jobs[JOB] = Record(
            JOB, "shop", "WI-1", "deploy-staging", "deployer", status, metadata=metadata
        )

    def raw(self, job_id: int = JOB) -> tuple[str, str | None, str]:
        """Return status, not-before time and metadata as they are stored."""
        record = self.tables.jobs[job_id]
        return record.status, record.not_before, record.metadata


@attrs.frozen
class SqlKit:
    """The SQL rows over the reference host's own tables."""

    engine: sa.Engine

    @property
    def rows(self) -> SqlRows:
        """Return the rows."""
        return SqlRows(self.engine)

    @property
    def store(self) -> SqlHostStore:
        """Return the host's store over the same tables."""
        return SqlHostStore(self.engine)

    def add(self, metadata: str, status: str = "running") -> None:
        """Add job JOB."""
        item = WorkItem("shop", "WI-1", "deploy-staging", 2, None)
        self.store.add_repository("shop", Path("/nowhere"))
        job_id = self.store.add_work_item(item, "deployer", NOW)
        statement = sa.text("UPDATE jobs SET status = :status, metadata = :metadata WHERE id = :id")
        with self.engine.begin() as connection:
            connection.execute(statement, {"status": status, "metadata": metadata, "id": job_id})

    def raw(self, job_id: int = JOB) -> tuple[str, str | None, str]:
        """Return status, not-before time and metadata as they are stored."""
        statement = sa.text("SELECT status, not_before, metadata FROM jobs WHERE id = :id")
        with self.engine.connect() as connection:
            row = connection.execute(statement, {"id": job_id}).one()
        return row.status, row.not_before, row.metadata


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kit]:
    """Return each kind of rows in turn."""
    if request.param == "memory":
        yield MemoryKit()
        return
    url = f"sqlite:///{tmp_path}/orchestrator.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    engine = open_database(url)
    SqlHostStore(engine).create_schema()
    yield SqlKit(engine)
    engine.dispose()


def tokens(metadata: str) -> Any:
    """Return decoded JSON that keeps order, double keys and the spelling of every number."""
    return json.loads(metadata, object_pairs_hook=list, parse_int=str, parse_float=str)


def test_what_was_saved_is_loaded(kit: Kit) -> None:
    """A saved attempt comes back exactly as it was, whatever text it holds."""
    kit.add("{}")

    kit.rows.save(JOB, attempt(1))
    kit.rows.save(JOB, attempt(2))

    assert kit.rows.load(JOB).snapshot() == attempt(2)


def test_row_tells_what_the_host_wrote(kit: Kit) -> None:
    """A row without our key has no attempt, and everything else as the host wrote it."""
    kit.add("{}")

    row = kit.rows.load(JOB)

    assert (row.id, row.repo, row.work_item, row.stage) == (JOB, "shop", "WI-1", "deploy-staging")
    assert (row.status, row.not_before, row.document) == ("running", None, None)
    assert row.snapshot() is None


def test_job_that_is_not_there_is_named(kit: Kit) -> None:
    """Loading a job that does not exist says so, and saving to it is refused as stale."""
    kit.add("{}")

    with pytest.raises(JobNotFoundError, match="there is no job 17"):
        kit.rows.load(17)
    with pytest.raises(StaleSnapshotError, match="job 17 no longer is without an attempt"):
        kit.rows.save(17, attempt(1))


def test_of_two_first_saves_one_wins(kit: Kit) -> None:
    """The first save of an attempt needs a row without one: the second worker is refused."""
    kit.add("{}")
    first = attrs.evolve(attempt(1), attempt_id="1-first")
    kit.rows.save(JOB, first)

    with pytest.raises(StaleSnapshotError, match="no longer is without an attempt"):
        kit.rows.save(JOB, attrs.evolve(attempt(1), attempt_id="1-second"))

    assert kit.rows.load(JOB).snapshot() == first


@pytest.mark.parametrize("version", [2, 4, 5])
def test_save_of_a_worker_that_lost_its_claim_changes_nothing(kit: Kit, version: int) -> None:
    """A save is refused unless the stored version is exactly one less."""
    kit.add('{"theirs": 1}')
    for number in (1, 2, 3):
        kit.rows.save(JOB, attempt(number))
    before = kit.raw()
    if version == 4:
        kit.rows.save(JOB, attempt(4))
        before = kit.raw()

    with pytest.raises(StaleSnapshotError):
        kit.rows.save(JOB, attempt(version))

    assert kit.raw() == before


@pytest.mark.parametrize("stored", ["1.9", '"1x"', "[1]"])
def test_version_that_is_no_whole_number_is_nobodys(kit: Kit, stored: str) -> None:
    """A stored version that only begins like the one that was read fences its worker off."""
    kit.add(f'{{"{SNAPSHOT_KEY}":{{"version":{stored}}}}}')
    before = kit.raw()

    with pytest.raises(StaleSnapshotError):
        kit.rows.save(JOB, attempt(2))

    assert kit.raw() == before


def test_save_without_an_attempt_in_the_row_is_refused(kit: Kit) -> None:
    """An attempt whose key somebody removed is not brought back by its worker."""
    kit.add('{"theirs": 1}')

    with pytest.raises(StaleSnapshotError, match="in work with version 1 of attempt 1-a"):
        kit.rows.save(JOB, attempt(2))

    assert kit.raw()[2] == '{"theirs": 1}'


FOREIGN = {
    "numbers": '{"a":1e5,"b":0.10,"big":12345678901234567890123,"minus":-0.0}',
    "nesting": '{"z":{"y":[1,{"x":null}]},"a":[],"m":{}}',
    "texts": '{"\\u00e9":"\\u00e9\\/\\ud83d\\ude00","\\"":"\\"staging_runner\\"","":"\\u0000"}',
    "spaces": ' {  "a" : 1 ,\n "b":\t2 } ',
    "ours first": f'{{"{SNAPSHOT_KEY}":OURS,"a":1}}',
    "ours between": f'{{"b":1,"{SNAPSHOT_KEY}":OURS,"a":2}}',
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_metadata_stays_as_it_is(kit: Kit, name: str) -> None:
    """Every foreign key keeps its value, its spelling and its place, whatever we write."""
    kit.add(FOREIGN[name].replace("OURS", dump_snapshot(attempt(1))))
    version = 2 if "OURS" in FOREIGN[name] else 1
    before = [pair for pair in tokens(kit.raw()[2]) if pair[0] != SNAPSHOT_KEY]

    kit.rows.save(JOB, attempt(version))
    kit.rows.save(JOB, attempt(version + 1))
    kit.rows.requeue(JOB, LATER, attempt(version + 1))
    kit.rows.cancel(JOB, attempt(version + 1))

    after = [pair for pair in tokens(kit.raw()[2]) if pair[0] != SNAPSHOT_KEY]
    assert after == before
    assert kit.rows.load(JOB).snapshot() == attempt(version + 1)


def test_key_that_the_host_wrote_meanwhile_survives(kit: Kit) -> None:
    """A key that the host writes between our read and our write is kept."""
    kit.add("{}")
    kit.rows.save(JOB, attempt(1))
    kit.store.record(JOB, "note", "written in between")

    kit.rows.save(JOB, attempt(2))

    assert json.loads(kit.raw()[2])["note"] == "written in between"


@pytest.mark.parametrize("metadata", ["", "null", "{}", " { } ", '{"staging_runner":null}'])
def test_row_without_metadata_takes_a_first_attempt(kit: Kit, metadata: str) -> None:
    """Metadata that is empty, as text, null or object, has no attempt and takes one."""
    kit.add(metadata)

    assert kit.rows.load(JOB).document is None
    kit.rows.save(JOB, attempt(1))
    assert kit.rows.load(JOB).snapshot() == attempt(1)


BROKEN = {
    "no JSON": ("certainly not", "the row's metadata is no JSON"),
    "cut short": ('{"a": 1, "staging_runner": {"vers', "the row's metadata is no JSON"),
    "NaN": ('{"a": NaN}', "the row's metadata is no JSON"),
    "nested too deeply": ("[" * 100_000, "the row's metadata is no JSON"),
    "a list": ('[{"staging_runner": 1}]', "the row's metadata is a list, not an object"),
    "null with a space": ("null ", "the row's metadata is a NoneType, not an object"),
    "a number": ("17", "the row's metadata is a int, not an object"),
    "our key twice, once with another letter escaped": (
        '{"staging_runner": {"version": 1}, "stagin\\u0067_runner": {"version": 2}}',
        "staging_runner twice",
    ),
    "a number that is none, beside an escape": ('{"a": NaN, "b": "\\u0041"}', "NaN is no JSON"),
    "our key twice, once in escapes": (
        '{"staging_runner": {"version": 1}, "staging\\u005frunner": {"version": 2}}',
        "twice",
    ),
    "our key twice": ('{"staging_runner": 1, "a": 2, "staging_runner": 3}', "twice"),
    "our key twice, once with a blank behind it": (
        '{"staging_runner" : {"version": 1}, "staging_runner":{"version": 2}}',
        "twice",
    ),
}
DAMAGED = {
    "our key is no object": ('{"staging_runner": 17}', "it is a int, not an object"),
    "our key is empty": ('{"staging_runner": {}}', "its format is None, not 1"),
    "newer format": (
        json.dumps({SNAPSHOT_KEY: {"format": FORMAT + 1, "version": 1}}),
        f"its format {FORMAT + 1} is newer than {FORMAT}",
    ),
    "no such state": (
        json.dumps({SNAPSHOT_KEY: {**json.loads(dump_snapshot(attempt(1))), "state": "PAUSED"}}),
        "it cannot be read",
    ),
    "no such path": (
        json.dumps({SNAPSHOT_KEY: {**json.loads(dump_snapshot(attempt(1))), "state": "ADVANCED"}}),
        "its history leads to RUNNING, but its state is ADVANCED",
    ),
}


@pytest.mark.parametrize("name", BROKEN | DAMAGED)
def test_damaged_metadata_is_refused_by_name(kit: Kit, name: str) -> None:
    """Metadata that cannot be trusted is seen by recovery, refused by name, and never written."""
    metadata, problem = (BROKEN | DAMAGED)[name]
    kit.add(metadata)

    row = kit.rows.load(JOB)

    with pytest.raises(SnapshotRefusedError) as refused:
        row.snapshot()
    assert problem in str(refused.value)
    assert [found.id for found in kit.rows.unfinished()] == [JOB]


def test_number_that_is_none_survives_beside_an_attempt(kit: Kit) -> None:
    """Metadata that its host made no JSON of mid-run is left as it is, whoever could read it."""
    metadata = f'{{"score": NaN, "{SNAPSHOT_KEY}": {dump_snapshot(attempt(1))}}}'
    kit.add(metadata)
    before = kit.raw()

    with pytest.raises(StaleSnapshotError):
        kit.rows.save(JOB, attempt(2))
    assert kit.raw() == before


@pytest.mark.parametrize("name", BROKEN | DAMAGED)
def test_first_attempt_never_overwrites_damaged_metadata(kit: Kit, name: str) -> None:
    """A first save over metadata that cannot be trusted raises, and leaves it as it is."""
    kit.add((BROKEN | DAMAGED)[name][0])
    before = kit.raw()

    with pytest.raises(StaleSnapshotError):
        kit.rows.save(JOB, attempt(1))

    assert kit.raw() == before


def test_transaction_that_ends_commits_all(kit: Kit) -> None:
    """What rows and host write in one transaction is there together afterwards."""
    kit.add("{}")
    kit.rows.save(JOB, attempt(1))

    with kit.rows.transaction() as tx:
        assert kit.store.finish_job(tx, JOB, NOW)
        item = kit.store.work_item(tx, "shop", "WI-1")
        kit.store.move_work_item(tx, attrs.evolve(item, stage="deploy"), NOW)
        next_job = kit.store.enqueue(tx, attrs.evolve(item, stage="deploy"), "finalizer", NOW)
        kit.rows.save(JOB, attempt(2), tx)

    assert kit.raw()[0] == "done"
    assert kit.rows.load(JOB).snapshot() == attempt(2)
    assert kit.rows.load(next_job).stage == "deploy"
    with kit.store.transaction() as tx:
        assert kit.store.work_item(tx, "shop", "WI-1").stage == "deploy"


def test_transaction_that_raises_leaves_nothing_behind(kit: Kit) -> None:
    """A save that is refused takes everything back that was written beside it."""
    kit.add("{}")
    kit.rows.save(JOB, attempt(1))
    before = kit.raw()

    def advance_with_a_stale_save() -> None:
        with kit.rows.transaction() as tx:
            kit.store.finish_job(tx, JOB, NOW)
            item = kit.store.work_item(tx, "shop", "WI-1")
            kit.store.move_work_item(tx, attrs.evolve(item, stage="deploy"), NOW)
            kit.store.enqueue(tx, item, "finalizer", NOW)
            kit.rows.save(JOB, attempt(7), tx)

    with pytest.raises(StaleSnapshotError):
        advance_with_a_stale_save()

    assert kit.raw() == before
    with kit.store.transaction() as tx:
        assert kit.store.work_item(tx, "shop", "WI-1").stage == "deploy-staging"
    with pytest.raises(JobNotFoundError):
        kit.rows.load(2)


def test_transaction_is_seen_by_nobody_else_before_its_end(kit: Kit) -> None:
    """What is written in a transaction is invisible outside it, and visible inside."""
    kit.add("{}")

    with kit.rows.transaction() as tx:
        assert kit.store.finish_job(tx, JOB, NOW)
        kit.rows.save(JOB, attempt(1), tx)

        assert kit.rows.load(JOB).document is None
        assert not kit.store.finish_job(tx, JOB, NOW)


def test_requeue_queues_the_job_for_later(kit: Kit) -> None:
    """A requeued job is queued and due at exactly the moment that was given."""
    kit.add("{}")
    kit.rows.save(JOB, attempt(1))

    kit.rows.requeue(JOB, LATER, attempt(1))

    assert kit.raw()[:2] == ("queued", format_time(LATER))
    assert kit.rows.load(JOB).not_before == LATER
    assert kit.store.claim_next(LATER - timedelta(microseconds=1), "w") is None
    assert kit.store.claim_next(LATER, "w").id == JOB


def test_job_that_was_due_before_is_queued_once_more(kit: Kit) -> None:
    """A job is left as it is where it is due at that very moment, and not for an earlier wait."""
    kit.add("{}")
    kit.rows.save(JOB, attempt(1))
    for due in (NOW, LATER):
        kit.rows.requeue(JOB, due, attempt(1), once=True)
        assert kit.raw()[:2] == ("queued", format_time(due))
        assert kit.store.claim_next(LATER, "w").id == JOB

    kit.rows.requeue(JOB, LATER, attempt(1), once=True)

    assert kit.raw()[:2] == ("running", format_time(LATER))


def test_cancel_ends_the_job(kit: Kit) -> None:
    """A cancelled job is neither claimed nor finished nor found by recovery any more."""
    kit.add("{}", status="queued")
    kit.rows.save(JOB, attempt(1))

    kit.rows.cancel(JOB, attempt(1))

    assert kit.raw()[0] == "cancelled"
    assert kit.rows.unfinished() == []
    assert kit.store.claim_next(LATER, "w") is None


def test_job_that_has_ended_otherwise_is_not_cancelled(kit: Kit) -> None:
    """A job that its gate or a person has ended keeps its status, whoever cancels its attempt."""
    kit.add("{}", status="done")
    kit.rows.save(JOB, attempt(1))
    before = kit.raw()

    kit.rows.cancel(JOB, attempt(1))
    with pytest.raises(StaleSnapshotError):
        kit.rows.cancel(JOB, attempt(2))

    assert kit.raw() == before


@pytest.mark.parametrize("version", [0, 1, 3])
def test_requeue_and_cancel_of_a_worker_that_lost_its_claim_change_nothing(
    kit: Kit, version: int
) -> None:
    """Queueing and cancelling are refused unless the stored version is the one given."""
    kit.add("{}")
    kit.rows.save(JOB, attempt(1))
    kit.rows.save(JOB, attempt(2))
    before = kit.raw()

    with pytest.raises(StaleSnapshotError):
        kit.rows.requeue(JOB, LATER, attempt(version))
    with pytest.raises(StaleSnapshotError):
        kit.rows.cancel(JOB, attempt(version))

    assert kit.raw() == before


def test_unfinished_are_the_queued_and_running_rows_with_our_key(kit: Kit) -> None:
    """Recovery is shown queued and running rows with an attempt, and no other row."""
    kit.add("{}")
    with kit.store.transaction() as tx:
        item = kit.store.work_item(tx, "shop", "WI-1")
        others = [kit.store.enqueue(tx, item, "deployer", NOW) for _ in range(4)]
    for job_id in (JOB, *others[1:]):
        kit.rows.save(job_id, attempt(1))
    kit.rows.cancel(others[1], attempt(1))
    kit.store.claim_next(NOW, "w", others[2])
    with kit.store.transaction() as tx:
        kit.store.finish_job(tx, others[2], NOW)

    assert [row.id for row in kit.rows.unfinished()] == [JOB, others[3]]


def test_unfinished_are_all_there_are(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recovery sees the last of the attempts that wait, however many there are before it."""
    monkeypatch.setattr(rows_module, "BATCH_ROWS", 2)
    kit.add("{}")
    with kit.store.transaction() as tx:
        item = kit.store.work_item(tx, "shop", "WI-1")
        jobs = [JOB, *(kit.store.enqueue(tx, item, "deployer", NOW) for _ in range(4))]
    for job in jobs:
        kit.rows.save(job, attempt(1))

    assert [row.id for row in kit.rows.unfinished()] == jobs


def test_recent_are_the_rows_with_the_greatest_ids(kit: Kit) -> None:
    """The newest rows are found by id, newest first, with and without an attempt."""
    kit.add("{}")
    with kit.store.transaction() as tx:
        item = kit.store.work_item(tx, "shop", "WI-1")
        others = [kit.store.enqueue(tx, item, "deployer", NOW) for _ in range(3)]
    kit.rows.save(others[1], attempt(1))
    found = kit.rows.recent(3)

    assert [row.id for row in found] == others[::-1]
    assert [row.snapshot() for row in found] == [None, attempt(1), None]


def test_every_attempt_is_walked_in_batches(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk over all attempts yields each once, ended or not, and no row without one."""
    monkeypatch.setattr(rows_module, "BATCH_ROWS", 2)
    kit.add("{}")
    with kit.store.transaction() as tx:
        item = kit.store.work_item(tx, "shop", "WI-1")
        others = [kit.store.enqueue(tx, item, "deployer", NOW) for _ in range(6)]
    for job_id in (JOB, *others[1:]):
        kit.rows.save(job_id, attempt(1))
    kit.rows.cancel(others[2], attempt(1))

    assert [row.id for row in kit.rows.attempts()] == [JOB, *others[1:]]


def test_recent_of_a_repository_are_those_among_the_newest(kit: Kit) -> None:
    """Asked for one repository, the newest rows are searched, and no row beyond them."""
    kit.add("{}")

    assert [row.id for row in kit.rows.recent(5, "shop")] == [JOB]
    assert kit.rows.recent(5, "sho%") == []
    assert kit.rows.recent(0, "shop") == []


def test_new_job_comes_before_one_that_was_deferred(kit: Kit) -> None:
    """What was just queued waits behind no job that is due again, in whatever database."""
    kit.add("{}", status="queued")
    kit.rows.save(JOB, attempt(1))
    kit.rows.requeue(JOB, NOW, attempt(1))
    with kit.store.transaction() as tx:
        item = kit.store.work_item(tx, "shop", "WI-1")
        later = kit.store.enqueue(tx, item, "deployer", NOW)

    assert [kit.store.claim_next(LATER, "w").id for _ in range(2)] == [later, JOB]


@pytest.mark.parametrize("name", [name for name in FOREIGN if "OURS" not in FOREIGN[name]])
def test_note_of_the_host_respells_nothing(kit: Kit, name: str) -> None:
    """A note of the reference host leaves every other key as it was spelt, whoever wrote it."""
    kit.add(FOREIGN[name])

    kit.store.record(JOB, "note", "written")

    assert tokens(kit.raw()[2]) == [*tokens(FOREIGN[name]), ("note", "written")]


def test_work_item_is_brought_to_a_stage_by_one_at_a_time(postgres_url: str) -> None:
    """Between the look for a work item's job and its queueing nobody else queues one, anywhere."""
    kit = SqlKit(open_database(postgres_url))
    beside = SqlKit(engine_with(postgres_url, "lock_timeout TO '200ms'"))
    kit.store.create_schema()
    kit.add("{}", status="done")
    item = WorkItem("shop", "WI-1", "deploy-staging", 2, None)
    kept_off: list[str] = []

    def overtake(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "FROM work_items" in statement:
            try:
                beside.store.job_at(item, "deployer", NOW)
            except sa.exc.OperationalError:
                kept_off.append(statement)

    sa.event.listen(kit.engine, "before_cursor_execute", overtake)
    job = kit.store.job_at(item, "deployer", NOW)
    sa.event.remove(kit.engine, "before_cursor_execute", overtake)
    found = beside.store.job_at(item, "deployer", NOW)
    for each in (kit, beside):
        each.engine.dispose()

    assert len(kept_off) == 1
    assert found == job


@pytest.mark.parametrize("moment", ["UPDATE jobs", "status = 'running'"])
def test_work_item_is_taken_away_from_nobody_who_claims_its_job_meanwhile(
    postgres_url: str, moment: str
) -> None:
    """Who claims a job while its work item is brought elsewhere has it, or it is cancelled."""
    kit = SqlKit(open_database(postgres_url))
    beside = SqlKit(engine_with(postgres_url, "lock_timeout TO '10s'"))
    kit.store.create_schema()
    kit.add("{}", status="queued")
    item = WorkItem("shop", "WI-1", "development", 2, None)
    claims: list[object] = []

    def claim(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if moment in statement:
            claims.append(beside.store.claim_next(LATER, "w"))

    sa.event.listen(kit.engine, "before_cursor_execute", claim)
    try:
        kit.store.job_at(item, "developer", NOW)
        brought = True
    except RefusedError:
        brought = False
    sa.event.remove(kit.engine, "before_cursor_execute", claim)
    status = kit.raw()[0]
    for each in (kit, beside):
        each.engine.dispose()

    assert len(claims) == 1
    assert (brought, status) == ((True, "cancelled") if claims == [None] else (False, "running"))


def test_job_that_somebody_has_locked_keeps_no_worker_from_the_others(postgres_url: str) -> None:
    """While a host hangs in a transaction over one job, every other job is claimed all the same."""
    kit = SqlKit(open_database(postgres_url))
    beside = SqlKit(engine_with(postgres_url, "lock_timeout TO '10s'"))
    kit.store.create_schema()
    kit.add("{}", status="queued")
    with kit.store.transaction() as tx:
        other = kit.store.enqueue(tx, kit.store.work_item(tx, "shop", "WI-1"), "deployer", NOW)
    with kit.store.transaction() as tx:
        tx.execute(sa.text("SELECT 1 FROM jobs WHERE id = 1 FOR UPDATE"))
        claimed = [beside.store.claim_next(LATER, "w") for _ in range(2)]
    for each in (kit, beside):
        each.engine.dispose()

    assert [job and job.id for job in claimed] == [other, None]


def test_note_of_the_host_writes_over_no_move(postgres_url: str) -> None:
    """Between the look of the host at the metadata and its note nobody moves the attempt there."""
    kit = SqlKit(open_database(postgres_url))
    beside = SqlKit(engine_with(postgres_url, "lock_timeout TO '200ms'"))
    kit.store.create_schema()
    kit.add("{}")
    kit.rows.save(JOB, attempt(1))
    kept_off: list[str] = []

    def overtake(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE"):
            try:
                beside.rows.save(JOB, attempt(2))
            except sa.exc.OperationalError:
                kept_off.append(statement)

    sa.event.listen(kit.engine, "before_cursor_execute", overtake)
    kit.store.record(JOB, "note", "written")
    sa.event.remove(kit.engine, "before_cursor_execute", overtake)
    beside.rows.save(JOB, attempt(2))
    stored = json.loads(kit.raw()[2])
    for each in (kit, beside):
        each.engine.dispose()

    assert (len(kept_off), stored["note"], stored[SNAPSHOT_KEY]["version"]) == (1, "written", 2)


def test_rows_of_two_connections_are_fenced_alike(tmp_path: Path) -> None:
    """Two processes' rows over one database refuse each other's stale writes."""
    url = f"sqlite:///{tmp_path}/orchestrator.db"
    mine, theirs = SqlKit(open_database(url)), SqlKit(open_database(url))
    mine.store.create_schema()
    mine.add("{}")
    with closing(mine.engine.raw_connection()), closing(theirs.engine.raw_connection()):
        theirs.rows.save(JOB, attempt(1))

        with pytest.raises(StaleSnapshotError):
            mine.rows.save(JOB, attempt(1))

        mine.rows.save(JOB, attempt(2))
    assert theirs.rows.load(JOB).snapshot() == attempt(2)
    mine.engine.dispose()
    theirs.engine.dispose()


def test_database_that_was_emptied_is_not_waited_for(tmp_path: Path) -> None:
    """A database that somebody empties under an open connection is refused without patience."""
    database = tmp_path / "orchestrator.db"
    kit = SqlKit(open_database(f"sqlite:///{database}"))
    kit.store.create_schema()
    kit.add("{}")
    with closing(kit.engine.raw_connection()):
        os.truncate(database, 0)
        begun = time.monotonic()

        with pytest.raises(sa.exc.OperationalError, match="locked"):
            kit.rows.load(JOB)

        assert time.monotonic() - begun < BUSY_TIMEOUT_SECONDS
    kit.engine.dispose()


def test_database_is_where_its_relative_path_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that changes its folder, as a daemon does, goes on with the same database."""
    monkeypatch.chdir(tmp_path)
    kit = SqlKit(open_database("sqlite:///orchestrator.db"))
    kit.store.create_schema()
    kit.add("{}")
    monkeypatch.chdir("/")
    kit.rows.save(JOB, attempt(1))
    # Also over a connection that is opened only now.
    kit.engine.dispose()

    assert kit.rows.load(JOB).snapshot() == attempt(1)
    kit.engine.dispose()


def test_database_behind_a_link_that_is_moved_takes_nothing_more(tmp_path: Path) -> None:
    """Where the path of a database leads to another file by now, nothing goes to the old one."""
    link = tmp_path / "orchestrator.db"
    link.symlink_to("old.db")
    kit = SqlKit(open_database(f"sqlite:///{link}"))
    kit.store.create_schema()
    kit.add("{}")
    rows = kit.rows
    rows.load(JOB)
    link.unlink()
    link.symlink_to("new.db")
    (tmp_path / "new.db").touch()

    with pytest.raises(sa.exc.OperationalError, match="was removed or replaced"):
        rows.save(JOB, attempt(1))

    link.unlink()
    link.symlink_to("old.db")
    assert rows.load(JOB).document is None
    kit.engine.dispose()


def test_writer_that_waited_in_vain_takes_nobodys_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever gives up waiting for a writer is told that it is busy, and that one goes on."""
    monkeypatch.setattr(database, "BUSY_TIMEOUT_SECONDS", 0)
    kit = SqlKit(open_database(f"sqlite:///{tmp_path}/orchestrator.db"))
    kit.store.create_schema()
    kit.add("{}")
    with kit.store.transaction() as tx:
        assert kit.store.finish_job(tx, JOB, NOW)
        with pytest.raises(sa.exc.OperationalError, match="locked"):
            kit.rows.save(JOB, attempt(1))
    kit.rows.save(JOB, attempt(1))

    assert kit.raw()[0] == "done"
    assert kit.rows.load(JOB).snapshot() == attempt(1)
    kit.engine.dispose()


@pytest.mark.parametrize("driver", ["sqlite", "sqlite+pysqlite"])
@pytest.mark.parametrize("successor", [None, b""], ids=["removed", "replaced"])
def test_database_that_was_removed_takes_nothing_more(
    tmp_path: Path, successor: bytes | None, driver: str
) -> None:
    """What would be stored in a file that nobody finds again is refused, and nothing is stored."""
    database = tmp_path / "orchestrator.db"
    kit = SqlKit(open_database(f"{driver}:///{database}"))
    kit.store.create_schema()
    kit.add("{}")
    kept = tmp_path / "elsewhere.db"
    database.rename(kept)
    if successor is not None:
        database.write_bytes(successor)

    with pytest.raises(sa.exc.OperationalError, match="was removed or replaced"):
        kit.rows.save(JOB, attempt(1))

    assert not database.exists() or database.stat().st_size == 0
    kept.rename(database)
    assert kit.rows.load(JOB).document is None
    kit.engine.dispose()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, '{"our":7}'),
        ("null", '{"our":7}'),
        ("{ }", '{ "our":7}'),
        ('{"our": {"our": 1}, "x": 2}', '{"our": 7, "x": 2}'),
        ('{"our_own": 1, "ou": 2}', '{"our_own": 1, "ou": 2,"our":7}'),
        ('{"OUR": 1, " our": 2}', '{"OUR": 1, " our": 2,"our":7}'),
        ('{"x": {"our": 1}}', '{"x": {"our": 1},"our":7}'),
        ('{"x": "\\"our\\": 1" , "o\\u0075r" : 2 }', '{"x": "\\"our\\": 1" , "o\\u0075r" : 7 }'),
    ],
)
def test_one_key_is_set_and_every_other_byte_stays(text: str | None, expected: str) -> None:
    """Only the value of the very key is another; what is like it by name or by place is not."""
    assert with_key(text, "our", "7") == expected


@pytest.mark.parametrize("text", ["[]", "7", '"our"', "{", '{"x": 1', '{"x" 1}', '{"x": 1 "y": 2}'])
def test_key_is_set_in_nothing_but_an_object(text: str) -> None:
    """What is no JSON object is left alone."""
    with pytest.raises(ValueError, match=r"expected|Expecting|delimiter"):
        with_key(text, "our", "7")


def spelt(text: str) -> st.SearchStrategy[str]:
    """Return the ways to write a text in JSON: characters as they are, or as escapes."""
    return st.booleans().map(lambda escaped: json.dumps(text, ensure_ascii=escaped))


TEXTS = st.text(max_size=5).flatmap(spelt)
NUMBERS = st.from_regex(r"-?[0-9]{1,40}(\.[0-9]{0,40})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
#: Documents of JSON as they may be written, and some that are almost JSON.
DOCUMENTS = st.recursive(
    st.sampled_from(["null", "true", "false", "NaN", "-Infinity"]) | NUMBERS | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]")
        | st.lists(st.tuples(TEXTS, inner), max_size=3).map(
            lambda pairs: f"{{{','.join(f'{name} :{value}' for name, value in pairs)}}}"
        )
    ),
    max_leaves=6,
)


def refuse(word: str) -> None:
    """Take no word that is not of JSON."""
    raise ValueError(word)


@given(DOCUMENTS, st.sampled_from(["", " \n", ",", "}", "\0"]))
@example("-" + "1" * 400, "")
@example("1e400", "")
@example('"\\ud800"', "")
@example('"\ud800"', "")
def test_metadata_is_read_as_python_reads_json(value: str, rest: str) -> None:
    """Whichever decoder reads a row, every value is the standard library's, and every refusal."""
    text = f'{{"{SNAPSHOT_KEY}": {value}}}{rest}'
    try:
        expected = json.loads(text, parse_constant=refuse)[SNAPSHOT_KEY]
    except ValueError:
        assert isinstance(our_document(text), BrokenMetadata)
    else:
        assert repr(our_document(text)) == repr(expected)

"""A host's own table, under its own names and types, in SQLite and in PostgreSQL."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import attrs
import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

import postgres
from conftest import NO_POSTGRESQL
from forked import answer_of_fork
from postgres import engine_with, new_schema
from staging_fsm.core.errors import (
    ConfigInvalidError,
    GateContradictedVerdictError,
    GateEndedTransactionError,
    JobNotFoundError,
    RefusedError,
    SnapshotRefusedError,
    StaleSnapshotError,
)
from staging_fsm.core.jobs import SNAPSHOT_KEY, Place
from staging_fsm.core.snapshot import Artifact, dump_snapshot
from staging_fsm.core.spec import State
from staging_fsm.core.times import format_time
from staging_fsm.drive.intercept import StagingIntercept
from staging_fsm.effects import rows as rows_module
from staging_fsm.effects.rows import SqlRows
from staging_fsm.host.database import open_database
from versions import LATER, attempt

SQLITE, POSTGRESQL = "sqlite", "postgresql"
TABLE: Final = "Agent Runs"
NAMES: Final = {
    "id": "uid",
    "repo": "project",
    "work_item": "ticket",
    "stage": "phase",
    "status": "Condition",
    "not_before": "run after",
    "metadata": "extra",
}
STATUSES: Final = {"queued": "WAITING", "running": "BUSY", "cancelled": "STOPPED"}


@attrs.frozen
class Foreign:
    """A host's database with one table and one job in it."""

    engine: sa.Engine

    def create(
        self,
        uid: str = "TEXT PRIMARY KEY",
        condition: str = "TEXT",
        due: str = "TEXT",
        extra: str = "TEXT",
        job: Any = "j-1",
        status: Any = "BUSY",
    ) -> SqlRows:
        """Create the table with one claimed job, and return rows over it."""
        self.run(
            f'CREATE TABLE "{TABLE}" (uid {uid}, project TEXT, ticket TEXT, phase TEXT,'
            f' "Condition" {condition}, "run after" {due}, extra {extra}, tenant INTEGER)'
        )
        self.insert(job, status)
        return SqlRows(self.engine, TABLE, NAMES, STATUSES)

    def insert(self, job: Any, status: Any = "BUSY", tenant: int = 1) -> None:
        """Add a job."""
        values = ":job, 'shop', 'WI-1', 'deploy-staging', :status, NULL, NULL, :tenant"
        statement = f'INSERT INTO "{TABLE}" VALUES ({values})'  # noqa: S608  # a test's own
        self.run(statement, job=job, status=status, tenant=tenant)

    def run(self, statement: str, **values: Any) -> None:
        """Run a statement of the host's own."""
        with self.engine.begin() as connection:
            connection.execute(sa.text(statement), values)

    def set(self, assignment: str, **values: Any) -> None:
        """Update the table by a statement of the host's own."""
        self.run(f'UPDATE "{TABLE}" SET {assignment}', **values)  # noqa: S608  # a test's own

    def ask(self, expression: str) -> Any:
        """Return the value of an expression on the first job's row."""
        with self.engine.connect() as connection:
            statement = f'SELECT {expression} FROM "{TABLE}" ORDER BY tenant'  # noqa: S608  # a test's own
            return connection.execute(sa.text(statement)).scalars().first()


@pytest.fixture
def make_foreign(
    tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[[str], Foreign]]:
    """Return a maker of a foreign host's database."""
    engines = []

    def make(dialect: str) -> Foreign:
        url = f"sqlite:///{tmp_path}/foreign.db"
        if dialect == POSTGRESQL:
            url = request.getfixturevalue("postgres_url")
        engines.append(open_database(url))
        return Foreign(engines[-1])

    yield make
    for engine in engines:
        engine.dispose()


@pytest.fixture(params=[SQLITE, POSTGRESQL])
def foreign(request: pytest.FixtureRequest, make_foreign: Callable[[str], Foreign]) -> Foreign:
    """Return a foreign host's database, of each kind in turn."""
    return make_foreign(request.param)


def problems_of(rows: SqlRows) -> tuple[str, ...]:
    """Return what a check finds."""
    with pytest.raises(ConfigInvalidError) as refused:
        rows.check()
    return refused.value.problems


METADATA_KINDS = [
    (SQLITE, "TEXT"),
    (SQLITE, "JSON"),
    (SQLITE, "VARCHAR(9000)"),
    (SQLITE, ""),
    (POSTGRESQL, "text"),
    (POSTGRESQL, "json"),
    (POSTGRESQL, "jsonb"),
    (POSTGRESQL, "varchar(100000)"),
]


@pytest.mark.parametrize("form", ["AsyncEngine", "sync_engine"])
def test_engine_of_asyncio_is_refused(form: str) -> None:
    """An engine that somebody has to await is refused when it is given, with what to give."""
    engine: Any = create_async_engine("postgresql+psycopg://user:secret@host/name")
    with pytest.raises(ConfigInvalidError, match=r"sqlalchemy\.create_engine makes") as refused:
        SqlRows(engine if form == "AsyncEngine" else engine.sync_engine)

    assert "postgresql+psycopg://user:***@host/name" in str(refused.value)


def test_engine_that_commits_every_statement_is_refused(foreign: Foreign) -> None:
    """Where nothing can be undone nothing is stored: a gate could open against a verdict."""
    rows = foreign.create()
    rows.engine = foreign.engine.execution_options(isolation_level="AUTOCOMMIT")
    [problem] = problems_of(rows)
    with pytest.raises(ConfigInvalidError, match="AUTOCOMMIT"):
        rows.save("j-1", attempt(1))
    # The first write of a worker may be one at the gate.
    with pytest.raises(ConfigInvalidError, match="AUTOCOMMIT"), rows.transaction() as tx:
        rows.save("j-1", attempt(1), tx)

    assert "nothing can be undone" in problem
    assert rows.load("j-1").document is None


@pytest.mark.parametrize(("dialect", "extra"), METADATA_KINDS)
def test_foreign_names_and_types_are_used_throughout(
    make_foreign: Callable[[str], Foreign], dialect: str, extra: str
) -> None:
    """A host keeps its table, its column names, its column types and its words for a status."""
    foreign = make_foreign(dialect)
    rows = foreign.create(extra=extra)
    rows.check()

    assert (rows.load("j-1").status, rows.load("j-1").snapshot()) == ("running", None)
    rows.save("j-1", attempt(1))
    rows.save("j-1", attempt(2))
    with pytest.raises(StaleSnapshotError):
        rows.save("j-1", attempt(2))
    assert [row.id for row in rows.unfinished()] == ["j-1"]
    assert [row.snapshot() for row in rows.recent(1, "shop")] == [attempt(2)]
    rows.requeue("j-1", LATER, attempt(2))
    assert (rows.load("j-1").status, rows.load("j-1").snapshot()) == ("queued", attempt(2))
    assert rows.load("j-1").not_before == LATER
    rows.cancel("j-1", attempt(2))
    assert foreign.ask('"Condition"') == "STOPPED"
    assert rows.load("j-1").status == "cancelled"


@pytest.mark.parametrize(("dialect", "extra"), METADATA_KINDS)
@pytest.mark.parametrize("document", [None, "null", "{}", '{"staging_runner": null}'])
def test_empty_metadata_of_every_kind_takes_an_attempt(
    make_foreign: Callable[[str], Foreign], dialect: str, extra: str, document: str | None
) -> None:
    """What an ORM writes for "nothing yet" is no metadata: it has no attempt, and takes one."""
    foreign = make_foreign(dialect)
    rows = foreign.create(extra=extra)
    kind = extra if dialect == POSTGRESQL else "TEXT"
    foreign.set(f"extra = CAST(:document AS {kind})", document=document)

    assert rows.load("j-1").document is None
    rows.save("j-1", attempt(1))
    assert rows.load("j-1").snapshot() == attempt(1)


@pytest.mark.parametrize(("dialect", "extra"), METADATA_KINDS)
def test_metadata_that_is_no_object_is_never_written_over(
    make_foreign: Callable[[str], Foreign], dialect: str, extra: str
) -> None:
    """Whatever the column: a list, or another value under our key, stays, and the save is stale."""
    foreign = make_foreign(dialect)
    rows = foreign.create(extra=extra)
    kind = extra if dialect == POSTGRESQL else "TEXT"
    for document in (
        *("[1]", '"text"', "true"),
        *('{"staging_runner": 17}', '{"staging_runner": {"version": null}}'),
    ):
        foreign.set(f"extra = CAST(:document AS {kind})", document=document)

        with pytest.raises(StaleSnapshotError):
            rows.save("j-1", attempt(1))

        stored = foreign.ask("CAST(extra AS TEXT)" if dialect == POSTGRESQL else "extra")
        assert json.loads(stored) == json.loads(document)


@pytest.mark.parametrize("extra", ["BLOB", "TEXT", "JSON", ""])
@pytest.mark.parametrize("theirs", ["{}", '{"theirs": "\u00e9", "n": 1e400}', "null", ""])
def test_metadata_in_bytes_is_the_text_that_it_is(
    make_foreign: Callable[[str], Foreign], extra: str, theirs: str
) -> None:
    """Bytes of JSON in UTF-8 take an attempt, are read, fenced and written, and stay bytes."""
    foreign = make_foreign(SQLITE)
    rows = foreign.create(extra=extra)
    foreign.set("extra = :theirs", theirs=theirs.encode())
    rows.check()

    assert rows.load("j-1").document is None
    rows.save("j-1", attempt(1))
    with pytest.raises(StaleSnapshotError):
        rows.save("j-1", attempt(1))
    rows.save("j-1", attempt(2))
    rows.requeue("j-1", LATER, attempt(2))

    for found in (rows.unfinished(), rows.recent(1), list(rows.attempts())):
        assert [row.snapshot() for row in found] == [attempt(2)]
    stored = foreign.ask("extra")
    assert type(stored) is bytes
    theirs = theirs.removesuffix("null").removesuffix("}").replace(" ", "")
    assert stored.decode().replace(" ", "").startswith(theirs)


def test_metadata_that_nobody_wrote_yet_is_of_the_columns_kind(
    make_foreign: Callable[[str], Foreign],
) -> None:
    """The first attempt goes into a strict column of bytes as bytes, and as text into any other."""
    foreign = make_foreign(SQLITE)
    for extra, kind in (("BLOB", bytes), ("TEXT", str), ("JSON", str)):
        foreign.run(f'DROP TABLE IF EXISTS "{TABLE}"')
        rows = foreign.create(extra=extra)
        rows.save("j-1", attempt(1))

        assert type(foreign.ask("extra")) is kind
        assert rows.load("j-1").snapshot() == attempt(1)
    foreign.run(f'DROP TABLE "{TABLE}"')
    foreign.run(
        f'CREATE TABLE "{TABLE}" (uid TEXT PRIMARY KEY, "Condition" TEXT, extra BLOB) STRICT'
    )
    foreign.run(f"""INSERT INTO "{TABLE}" VALUES ('j-1', 'BUSY', NULL)""")  # noqa: S608  # a test's own
    said = {"repo": "shop", "stage": "deploy-staging", "not_before": None}
    names = {name: NAMES[name] for name in ("id", "status", "metadata")} | {"work_item": "uid"}
    rows = SqlRows(foreign.engine, TABLE, names, STATUSES, constants=said)
    rows.save("j-1", attempt(1))
    assert rows.load("j-1").snapshot() == attempt(1)


#: SQLite's own binary form of {"a":1}, and an object in UTF-16.
BINARY_JSON, WIDE_JSON = "X'4c17611331'", "X'7b007d00'"
ILLEGIBLE = "is no text in UTF-8"


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ("X'7b2261223a22ff227d'", "the row's metadata is no text in UTF-8"),
        ("CAST(X'7b2261223a22ff227d' AS TEXT)", "the row's metadata is no text in UTF-8"),
        (BINARY_JSON, "the row's metadata is no JSON"),
        (WIDE_JSON, "the row's metadata is no JSON"),
        ("5", "the row's metadata is a int, not an object"),
    ],
)
def test_row_that_cannot_be_read_keeps_no_other_away(
    make_foreign: Callable[[str], Foreign], metadata: str, problem: str
) -> None:
    """Metadata that is no text, or no JSON, is refused for its own row alone."""
    foreign = make_foreign(SQLITE)
    rows = foreign.create(extra="")
    foreign.set(f"extra = {metadata}")
    foreign.insert("j-2")
    rows.save("j-2", attempt(1))

    for found in (rows.unfinished(), [rows.load("j-1"), rows.load("j-2")]):
        assert [row.id for row in found] == ["j-1", "j-2"]
        assert found[1].snapshot() == attempt(1)
        with pytest.raises(SnapshotRefusedError, match=problem):
            found[0].snapshot()


@pytest.mark.parametrize("metadata", [BINARY_JSON, WIDE_JSON, "5", "X'00'", "X'5b5d'"])
def test_bytes_that_are_no_json_object_are_never_written_over(
    make_foreign: Callable[[str], Foreign], metadata: str
) -> None:
    """A first save over bytes that hold no JSON object raises, and leaves them as they are."""
    foreign = make_foreign(SQLITE)
    rows = foreign.create(extra="")
    foreign.set(f"extra = {metadata}")
    before = foreign.ask("quote(extra)")

    with pytest.raises(Exception, match=r"no longer is without an attempt|malformed JSON"):
        rows.save("j-1", attempt(1))
    assert foreign.ask("quote(extra)") == before


@pytest.mark.parametrize("name", ["project", "ticket"])
def test_name_that_is_no_text_keeps_no_other_row_away(
    make_foreign: Callable[[str], Foreign], name: str
) -> None:
    """A row whose repository or work item is no text is refused alone, with an attempt or not."""
    foreign = make_foreign(SQLITE)
    rows = foreign.create()
    for job in ("j-2", "j-3"):
        foreign.insert(job)
        rows.save(job, attempt(1))
    broken = "uid IN ('j-1', 'j-2')"
    foreign.set(f"{name} = CASE WHEN {broken} THEN CAST(X'ff41' AS TEXT) ELSE {name} END")
    foreign.set(f"phase = CASE WHEN {broken} THEN CAST(X'ff' AS TEXT) ELSE phase END")
    foreign.set(f"\"run after\" = CASE WHEN {broken} THEN CAST(X'ff' AS TEXT) END")

    for found in (rows.unfinished(), list(rows.attempts()), rows.recent(2)[::-1]):
        assert [row.id for row in found] == ["j-2", "j-3"]
        assert found[1].snapshot() == attempt(1)
        with pytest.raises(SnapshotRefusedError, match=f"'{name}' of '{TABLE}' {ILLEGIBLE}"):
            found[0].snapshot()
    with pytest.raises(RefusedError, match=f"job j-1 .*'{name}' of '{TABLE}' {ILLEGIBLE}"):
        rows.load("j-1")
    assert rows.load("j-2").not_before is None


@pytest.mark.parametrize("name", ["project", "ticket"])
def test_name_that_is_empty_is_no_name(foreign: Foreign, name: str) -> None:
    """A repository or work item of NULL is no name, and an attempt that lost its own is refused."""
    rows = foreign.create()
    foreign.insert("j-2")
    rows.save("j-2", attempt(1))
    foreign.set(f"{name} = NULL")

    row = rows.load("j-1")
    assert "" in (row.repo, row.work_item)
    assert row.document is None
    for found in (rows.load("j-2"), *rows.unfinished(), *rows.attempts(), rows.recent(1)[0]):
        with pytest.raises(SnapshotRefusedError, match=f"'{name}' of '{TABLE}' is empty"):
            found.snapshot()


@pytest.mark.parametrize("name", ["repo", "work_item", "stage"])
def test_constant_that_is_a_name_is_one(foreign: Foreign, name: str) -> None:
    """What stands in every row as repository, work item or stage has to be a text."""
    with pytest.raises(ConfigInvalidError, match=f"the constant '{name}' has to be a text"):
        SqlRows(foreign.engine, constants={name: None})


def test_texts_of_a_database_in_utf_16_are_read(tmp_path: Path) -> None:
    """In a database that keeps its texts in UTF-16 names and attempts are what they are."""
    engine = open_database(f"sqlite:///{tmp_path}/wide.db")
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA encoding = 'UTF-16'")
        connection.commit()
    foreign = Foreign(engine)
    rows = foreign.create()
    foreign.set("ticket = :name, extra = :theirs", name="WI-\u00e9", theirs='{"\u00e9": 1}')
    rows.save("j-1", attempt(1))

    assert foreign.ask("length(CAST(ticket AS BLOB))") == 2 * len("WI-\u00e9")
    assert [row.work_item for row in rows.unfinished()] == ["WI-\u00e9"]
    assert rows.load("j-1").snapshot() == attempt(1)
    engine.dispose()


def test_text_that_jsonb_refuses_is_stored_readably(
    make_foreign: Callable[[str], Foreign],
) -> None:
    """A NUL or half a character in a message or path is stored as an escape, and stays as it is."""
    rows = make_foreign(POSTGRESQL).create(extra="jsonb")
    snapshot = attempt(1)
    hostile = "a\0b\ud800c\U0001f600\\u0000"
    run = attrs.evolve(snapshot.runs[0], log=hostile, detail=hostile)
    move = attrs.evolve(snapshot.history[0], reason=hostile)
    stored = attrs.evolve(
        snapshot, runs=(run,), history=(move,), artifact=Artifact(hostile, "0" * 64)
    )

    rows.save("j-1", stored)

    assert run.log == "a\\x00b\\ud800c\U0001f600\\u0000"
    assert rows.load("j-1").snapshot() == stored


def test_metadata_that_has_no_room_left_is_not_cut(make_foreign: Callable[[str], Foreign]) -> None:
    """Where attempt and host's keys do not fit together, the write fails and nothing is lost."""
    foreign = make_foreign(POSTGRESQL)
    rows = foreign.create(extra="varchar(65536)")
    theirs = json.dumps({"theirs": "x" * 65_500})
    foreign.set("extra = :theirs", theirs=theirs)
    rows.check()

    with pytest.raises(sa.exc.DataError, match="too long"):
        rows.save("j-1", attempt(1))
    assert foreign.ask("extra") == theirs


@pytest.mark.parametrize(("dialect", "extra"), METADATA_KINDS)
def test_only_the_very_version_lets_anybody_write(
    make_foreign: Callable[[str], Foreign], dialect: str, extra: str
) -> None:
    """Whatever the column: who knows an older or a newer version writes nothing."""
    foreign = make_foreign(dialect)
    rows = foreign.create(extra=extra)
    document = f'{{"theirs": 1, "{SNAPSHOT_KEY}": {dump_snapshot(attempt(10))}}}'
    kind = extra if dialect == POSTGRESQL else "TEXT"
    foreign.set(f"extra = CAST(:document AS {kind})", document=document)
    everything = 'CAST(extra AS TEXT) || "Condition" || COALESCE("run after", \'-\')'
    before = foreign.ask(everything)
    for version in (1, 2, 9, 11, 100):
        for write in (
            partial(rows.save, "j-1", attempt(version + 1)),
            partial(rows.requeue, "j-1", LATER, attempt(version)),
            partial(rows.requeue, "j-1", LATER, attempt(version), once=True),
            partial(rows.cancel, "j-1", attempt(version)),
        ):
            with pytest.raises(
                StaleSnapshotError,
                match=f"no longer is in work with version {version} of attempt 1-a:",
            ):
                write()
    with pytest.raises(StaleSnapshotError, match="no longer is without an attempt:"):
        rows.save("j-1", attempt(1))

    assert foreign.ask(everything) == before
    rows.requeue("j-1", LATER, attempt(10), once=True)
    rows.requeue("j-1", LATER, attempt(10), once=True)
    with pytest.raises(StaleSnapshotError):
        rows.requeue("j-1", LATER, attempt(9), once=True)
    rows.save("j-1", attempt(11))
    assert rows.load("j-1").snapshot() == attempt(11)


@pytest.mark.parametrize(("dialect", "extra"), METADATA_KINDS)
def test_concurrent_host_loses_no_key_and_we_lose_no_version(
    make_foreign: Callable[[str], Foreign], dialect: str, extra: str
) -> None:
    """While the host sets keys of its own, each of them and each of our versions arrives."""
    foreign = make_foreign(dialect)
    rows = foreign.create(extra=extra)
    rows.save("j-1", attempt(1))
    setting = "json_set(extra, :path, 1)"
    if dialect == POSTGRESQL:
        setting = f"CAST(jsonb_set(CAST(extra AS jsonb), :path, '1') AS {extra})"
    failures = []

    def write_keys() -> None:
        try:
            for number in range(20):
                path = f"{{k{number}}}" if dialect == POSTGRESQL else f"$.k{number}"
                foreign.set(f"extra = {setting}", path=path)
        except Exception as error:  # noqa: BLE001  # told by the test
            failures.append(error)

    host = threading.Thread(target=write_keys)
    host.start()
    for version in range(2, 22):
        rows.save("j-1", attempt(version))
    host.join()

    assert failures == []
    stored = foreign.ask("CAST(extra AS TEXT)" if dialect == POSTGRESQL else "extra")
    document = json.loads(stored)
    assert sorted(document) == sorted([SNAPSHOT_KEY, *(f"k{number}" for number in range(20))])
    assert document[SNAPSHOT_KEY] == json.loads(dump_snapshot(attempt(21)))


@pytest.mark.parametrize("extra", ["json", "text"])
def test_overtaken_worker_queues_no_job(
    make_foreign: Callable[[str], Foreign], postgres_url: str, extra: str
) -> None:
    """Between the look of a worker at a row and its write nobody moves the attempt there."""
    rows = make_foreign(POSTGRESQL).create(extra=extra)
    rows.save("j-1", attempt(1))
    beside = engine_with(postgres_url, "lock_timeout TO '200ms'")
    overtaking = SqlRows(beside, TABLE, NAMES, STATUSES)
    kept_off = []

    def overtake(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE"):
            try:
                overtaking.save("j-1", attempt(2))
            except sa.exc.OperationalError:
                kept_off.append(statement)

    sa.event.listen(rows.engine, "before_cursor_execute", overtake)
    rows.requeue("j-1", LATER, attempt(1))
    rows.cancel("j-1", attempt(1))
    sa.event.remove(rows.engine, "before_cursor_execute", overtake)
    beside.dispose()

    assert len(kept_off) == 2
    assert rows.load("j-1").snapshot() == attempt(1)


@pytest.mark.parametrize("dialect", [SQLITE, POSTGRESQL])
def test_of_two_writers_at_once_one_wins(
    make_foreign: Callable[[str], Foreign], dialect: str
) -> None:
    """Of saves of the same version at the same time exactly one is accepted."""
    rows = make_foreign(dialect).create()
    start, accepted = threading.Barrier(2), []

    def save(name: str) -> None:
        for version in range(1, 11):
            start.wait()
            try:
                rows.save("j-1", attrs.evolve(attempt(version), worker=name))
            except StaleSnapshotError:
                continue
            accepted.append((version, name))

    other = threading.Thread(target=save, args=("other",))
    other.start()
    save("mine")
    other.join()

    assert [version for version, _ in accepted] == list(range(1, 11))


KEYS = [
    (SQLITE, "INTEGER PRIMARY KEY", 7, "7"),
    # No float tells it from its neighbours.
    (SQLITE, "INTEGER PRIMARY KEY", 2**53 + 1, str(2**53 + 1)),
    (SQLITE, "CHAR(32) PRIMARY KEY", uuid.UUID(int=7).hex, uuid.UUID(int=7)),
    (SQLITE, "CHAR(36) PRIMARY KEY", str(uuid.UUID(int=7)), uuid.UUID(int=7)),
    (SQLITE, "TEXT UNIQUE", "org/repo#7", "org/repo#7"),
    # Types that SQLite takes for numbers, whatever they are called.
    (SQLITE, "NUMERIC(20, 0) PRIMARY KEY", 2**53 + 1, Decimal(2**53 + 1)),
    (SQLITE, "BIGSERIAL PRIMARY KEY", 7, "7"),
    (SQLITE, "NUMBER PRIMARY KEY", 7.5, Decimal("7.5")),
    (SQLITE, "UUID PRIMARY KEY", str(uuid.UUID(int=7)), uuid.UUID(int=7)),
    (SQLITE, "DATETIME PRIMARY KEY", "2026-01-31 12:00:00", "2026-01-31 12:00:00"),
    (SQLITE, "TEXT UNIQUE", str(uuid.UUID(int=7)), uuid.UUID(int=7)),
    (POSTGRESQL, "bigint PRIMARY KEY", 2**60, str(2**60)),
    (POSTGRESQL, "bigint PRIMARY KEY", 2**53 + 1, str(2**53 + 1)),
    (POSTGRESQL, "uuid PRIMARY KEY", uuid.UUID(int=7), str(uuid.UUID(int=7))),
    (POSTGRESQL, "text PRIMARY KEY", "org/repo#7", "org/repo#7"),
]


@pytest.mark.parametrize(("dialect", "kind", "job", "other_form"), KEYS)
def test_keys_of_every_type_are_found_in_every_form(
    make_foreign: Callable[[str], Foreign], dialect: str, kind: str, job: Any, other_form: Any
) -> None:
    """A job is found by its key as the database returns it, and as a person or an ORM writes it."""
    rows = make_foreign(dialect).create(uid=kind, job=job)
    rows.check()

    rows.save(other_form, attempt(1))

    assert rows.load(other_form).id == rows.load(job).id == job


@pytest.mark.parametrize("dialect", [SQLITE, POSTGRESQL])
def test_uuid_is_found_by_its_text_among_hex_digits(
    make_foreign: Callable[[str], Foreign], dialect: str
) -> None:
    """Where an ORM keeps UUIDs as 32 digits, a queue's text with dashes finds the job."""
    foreign, key = make_foreign(dialect), uuid.UUID(int=7**40)
    rows = foreign.create(uid="CHAR(32) PRIMARY KEY", job=key.hex)

    assert rows.load(str(key)).id == rows.load(str(key).upper()).id == key.hex
    for other in (f"{{{key}}}", key.urn, str(uuid.UUID(int=8)), str(key)[:-1]):
        with pytest.raises(JobNotFoundError):
            rows.load(other)


def test_text_with_dashes_that_is_a_key_is_no_other(make_foreign: Callable[[str], Foreign]) -> None:
    """Two keys that are texts of one UUID stay two: each is found by its very text."""
    foreign, key = make_foreign(SQLITE), uuid.UUID(int=7**40)
    rows = foreign.create(uid="CHAR(32) PRIMARY KEY", job=key.hex)
    foreign.insert(str(key))

    assert [rows.load(it).id for it in (key.hex, str(key))] == [key.hex, str(key)]

    # A text is a text where nothing says that it is a UUID.
    foreign.run(f'DROP TABLE "{TABLE}"')
    rows = foreign.create(uid="TEXT PRIMARY KEY", job=key.hex)
    with pytest.raises(JobNotFoundError):
        rows.load(str(key))


@pytest.mark.parametrize("kind", ["NUMERIC", "DECIMAL(20, 0)", "BIGSERIAL", "NUMBER"])
def test_key_of_sqlite_is_no_other_by_rounding(
    make_foreign: Callable[[str], Foreign], kind: str
) -> None:
    """In SQLite a great key of any type is the whole number that it is, and not its neighbour."""
    first = 2**53
    foreign = make_foreign(SQLITE)
    rows = foreign.create(uid=f"{kind} PRIMARY KEY", job=first)
    foreign.insert(first + 1)
    rows.check()

    rows.save(first + 1, attempt(1))
    rows.save(first + 1, attempt(2))

    assert rows.load(first).document is None
    assert [row.id for row in rows.attempts()] == [first + 1]
    # As its gate needs it: sqlite3 takes no Decimal.
    assert type(rows.load(first + 1).id) is int
    assert list(rows.spans(1)) == [(None, first), (first, first + 1)]


@pytest.mark.parametrize("kind", ["STRING", "ENUM", "NUMERIC", "BOOLEAN", "DATETIME"])
def test_columns_of_sqlite_hold_what_they_hold(
    make_foreign: Callable[[str], Foreign], kind: str
) -> None:
    """In SQLite names and words for a status are read and written in columns of any type."""
    foreign = make_foreign(SQLITE)
    foreign.run(
        f'CREATE TABLE "{TABLE}" (uid INTEGER PRIMARY KEY, project {kind}, ticket {kind},'
        f' phase {kind}, "Condition" {kind}, "run after" TEXT, extra TEXT, tenant INTEGER)'
    )
    foreign.insert(7)
    rows = SqlRows(foreign.engine, TABLE, NAMES, STATUSES)
    rows.check()
    rows.save(7, attempt(1))

    [row] = rows.unfinished()
    assert (row.repo, row.work_item, row.stage) == ("shop", "WI-1", "deploy-staging")
    assert (row.status, row.snapshot()) == ("running", attempt(1))
    rows.cancel(7, attempt(1))
    assert foreign.ask('"Condition"') == "STOPPED"


def test_blanks_that_fill_up_a_column_are_no_part_of_its_value(
    make_foreign: Callable[[str], Foreign],
) -> None:
    """In PostgreSQL keys, names, status words and due times may be of type char(n)."""
    foreign = make_foreign(POSTGRESQL)
    kind = "char(30)"
    foreign.run(
        f'CREATE TABLE "{TABLE}" (uid {kind} PRIMARY KEY, project {kind}, ticket {kind},'
        f' phase {kind}, "Condition" {kind}, "run after" {kind}, extra text, tenant INTEGER)'
    )
    foreign.insert("j-1")
    foreign.insert("j-2")
    rows = SqlRows(foreign.engine, TABLE, NAMES, STATUSES)
    rows.check()

    for key in ("j-1", "j-1".ljust(30)):
        row = rows.load(key)
        assert (row.id, row.repo, row.work_item) == ("j-1", "shop", "WI-1")
        assert (row.stage, row.status) == ("deploy-staging", "running")
    rows.save("j-1", attempt(1))
    rows.save("j-1".ljust(30), attempt(2))
    rows.requeue("j-1", LATER, attempt(2))
    rows.requeue("j-1", LATER, attempt(2), once=True)
    rows.check()
    [row] = rows.unfinished()
    assert (row.status, row.not_before, row.snapshot()) == ("queued", LATER, attempt(2))
    rows.save("j-2", attempt(1))
    spans = list(rows.spans(1))
    assert [row.id for span in spans for row in rows.attempts(*span)] == ["j-1", "j-2"]


@pytest.mark.parametrize("kind", ["bigint PRIMARY KEY", "uuid PRIMARY KEY"])
def test_key_that_cannot_be_one_names_no_job(
    make_foreign: Callable[[str], Foreign], kind: str
) -> None:
    """A word that the key's type cannot hold is no job, and no error of the database."""
    job = 7 if "bigint" in kind else uuid.UUID(int=7)
    rows = make_foreign(POSTGRESQL).create(uid=kind, job=job)

    with pytest.raises(JobNotFoundError, match="there is no job WI-1"):
        rows.load("WI-1")


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**40])
def test_number_that_is_no_key_names_no_job(foreign: Foreign, number: int) -> None:
    """A number beyond every integer of a database is no job, and no error of the database."""
    rows = foreign.create(uid="bigint PRIMARY KEY", job=7)

    with pytest.raises(JobNotFoundError, match=f"there is no job {number}"):
        rows.load(number)


def test_status_may_be_an_enumeration_or_a_number(make_foreign: Callable[[str], Foreign]) -> None:
    """Native enumerations and status numbers are read and written as what they are."""
    foreign = make_foreign(POSTGRESQL)
    foreign.run("CREATE TYPE condition AS ENUM ('WAITING', 'BUSY', 'STOPPED', 'ON_HOLD')")
    rows = foreign.create(condition="condition")
    rows.check()
    rows.save("j-1", attempt(1))
    rows.cancel("j-1", attempt(1))

    assert rows.load("j-1").status == "cancelled"
    assert rows.unfinished() == []

    foreign.run(f'DROP TABLE "{TABLE}"')
    foreign.create(condition="smallint", status=1)
    numbers = {"queued": 0, "running": 1, "cancelled": 9}
    rows = SqlRows(foreign.engine, TABLE, NAMES, numbers)
    rows.check()
    rows.save("j-1", attempt(1))
    assert [row.status for row in rows.unfinished()] == ["running"]
    rows.cancel("j-1", attempt(1))
    assert foreign.ask('"Condition"') == 9


@pytest.mark.parametrize("status", ["BUSY", "FINISHED", "ON_HOLD", "STOPPED", None])
def test_job_that_an_agent_of_the_host_has_or_had_is_not_cancelled(
    foreign: Foreign, tmp_path: Path, status: str | None
) -> None:
    """A host's job without an attempt is cancelled while it waits, and by no other word of his."""
    state = {"ORCH_STAGING_RUNNER_STATE_DIR": str(tmp_path / "state")}
    staging = StagingIntercept.for_host(
        foreign.create(), lambda _row, _tx: True, lambda _row: Place(tmp_path, tmp_path), state
    )
    foreign.set('"Condition" = :status', status=status)
    with pytest.raises(RefusedError, match="without an attempt, and was not cancelled"):
        staging.cancel("j-1")
    assert (foreign.ask('"Condition"'), foreign.ask("extra")) == (status, None)
    foreign.set("\"Condition\" = 'WAITING'")

    assert staging.cancel("j-1").state is State.CANCELLED
    assert foreign.ask('"Condition"') == "STOPPED"


def test_attempt_whose_job_the_host_has_ended_is_cancelled_beside_it(foreign: Foreign) -> None:
    """A host's own word for a job that neither waits nor is in work stays as the host wrote it."""
    rows = foreign.create(status="FINISHED")
    rows.save("j-1", attempt(1))
    rows.cancel("j-1", attempt(1))

    assert foreign.ask('"Condition"') == "FINISHED"


def test_status_word_of_the_host_that_is_none_of_ours_is_passed_through(foreign: Foreign) -> None:
    """A status that has no word of ours is shown as the host wrote it."""
    rows = foreign.create(status="ON_HOLD")

    assert rows.load("j-1").status == "ON_HOLD"


WHOLE_SECOND = LATER + timedelta(seconds=0.5)


@pytest.mark.parametrize(
    ("dialect", "kind", "expected"),
    [
        (SQLITE, "TEXT", LATER),
        (SQLITE, "DATETIME", LATER),
        (SQLITE, "TIMESTAMP", LATER),
        # Whole seconds, and never too early.
        (SQLITE, "INTEGER", WHOLE_SECOND),
        (SQLITE, "REAL", WHOLE_SECOND),
        (SQLITE, "NUMERIC", WHOLE_SECOND),
        (POSTGRESQL, "text", LATER),
        (POSTGRESQL, "timestamptz", LATER),
        (POSTGRESQL, "timestamp", LATER),
        (POSTGRESQL, "bigint", WHOLE_SECOND),
        (POSTGRESQL, "double precision", WHOLE_SECOND),
        (POSTGRESQL, "numeric", WHOLE_SECOND),
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu"])
def test_not_before_is_written_in_the_hosts_own_kind(
    make_foreign: Callable[[str], Foreign],
    dialect: str,
    kind: str,
    expected: datetime,
    zone: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A due time is written as the column wants it, whatever zone we are in, never too early."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        rows = make_foreign(dialect).create(due=kind)
        rows.save("j-1", attempt(1))

        rows.requeue("j-1", LATER, attempt(1))
        rows.check()
        assert rows.load("j-1").not_before == expected

        quarter = LATER - timedelta(seconds=0.25)
        rows.requeue("j-1", quarter, attempt(1))
        rounded = WHOLE_SECOND if expected == WHOLE_SECOND else quarter
        assert rows.load("j-1").not_before == rounded

        rows.requeue("j-1", WHOLE_SECOND, attempt(1))
        assert rows.load("j-1").not_before == WHOLE_SECOND
    finally:
        monkeypatch.undo()
        time.tzset()


def test_not_before_in_sqlite_is_written_as_by_an_orm(
    make_foreign: Callable[[str], Foreign],
) -> None:
    """In a DATETIME column our due times have the form of the host's own, and sort among them."""
    foreign = make_foreign(SQLITE)
    rows = foreign.create(due="DATETIME")
    rows.save("j-1", attempt(1))
    rows.requeue("j-1", LATER, attempt(1))
    dialect = rows.engine.dialect
    written = sa.DateTime().dialect_impl(dialect).bind_processor(dialect)

    assert written is not None
    assert foreign.ask('CAST("run after" AS TEXT)') == written(LATER.replace(tzinfo=None))


@pytest.mark.parametrize("kind", ["timestamp", "timestamptz"])
@pytest.mark.parametrize("digits", range(6))
def test_not_before_of_few_digits_is_no_earlier(
    make_foreign: Callable[[str], Foreign], kind: str, digits: int
) -> None:
    """A column that rounds to the nearest part of a second is given the next one that it holds."""
    rows = make_foreign(POSTGRESQL).create(due=f"{kind}({digits})")
    rows.save("j-1", attempt(1))
    part, begin = timedelta(microseconds=10 ** (6 - digits)), WHOLE_SECOND
    for due in (begin, begin + timedelta(microseconds=1), begin + part / 3, begin + part):
        rows.requeue("j-1", due, attempt(1))

        assert rows.load("j-1").not_before == (begin if due == begin else begin + part)


def test_not_before_agrees_with_the_databases_own_clock(
    make_foreign: Callable[[str], Foreign],
) -> None:
    """A native due time is the same moment to the database, whatever zone its sessions are in."""
    foreign = make_foreign(POSTGRESQL)
    rows = foreign.create(due="timestamptz")
    rows.save("j-1", attempt(1))

    rows.requeue("j-1", LATER, attempt(1))

    foreign.run("SET timezone TO 'Asia/Kathmandu'")
    assert foreign.ask('extract(epoch FROM "run after")') == pytest.approx(LATER.timestamp())


@pytest.mark.parametrize("kind", ["timestamp", "timestamptz"])
def test_zone_of_a_session_moves_no_due_time(
    make_foreign: Callable[[str], Foreign], postgres_url: str, kind: str
) -> None:
    """A native due time without a zone is in UTC, whatever zone the sessions are in."""
    foreign = make_foreign(POSTGRESQL)
    foreign.create(due=kind)
    engine = engine_with(postgres_url, "timezone TO 'Asia/Kathmandu'")
    rows = SqlRows(engine, TABLE, NAMES, STATUSES)
    rows.save("j-1", attempt(1))
    rows.requeue("j-1", LATER, attempt(1))
    stored = foreign.ask("extract(epoch FROM \"run after\" AT TIME ZONE 'UTC')")
    engine.dispose()

    utc = stored if kind == "timestamp" else foreign.ask('extract(epoch FROM "run after")')
    assert float(utc) == pytest.approx(LATER.timestamp())


@pytest.mark.parametrize(
    ("dialect", "kind", "value"),
    [
        (SQLITE, "TEXT", "tomorrow"),
        (SQLITE, "REAL", 1e300),
        (SQLITE, "NUMERIC", -1e18),
        (SQLITE, "INTEGER", 2**62),
        (SQLITE, "DATETIME", "tomorrow"),
        (POSTGRESQL, "timestamptz", "infinity"),
        (POSTGRESQL, "timestamp", "-infinity"),
        (POSTGRESQL, "double precision", float("nan")),
        (POSTGRESQL, "text", "tomorrow"),
    ],
)
def test_not_before_that_is_no_moment_is_taken_for_none(
    make_foreign: Callable[[str], Foreign], dialect: str, kind: str, value: object
) -> None:
    """A due time that cannot be read keeps nobody from reading the row."""
    foreign = make_foreign(dialect)
    rows = foreign.create(due=kind)
    foreign.set('"run after" = :value', value=value)

    assert rows.load("j-1").not_before is None


@pytest.mark.parametrize("dialect", [SQLITE, POSTGRESQL])
@pytest.mark.parametrize(
    ("theirs", "time_format"),
    [
        ("2026-03-29 01:44:59", "%Y-%m-%d %H:%M:%S"),
        ("2026-03-29T01:44:59", None),
        ("2026-03-29 01:44:59.900000+00:00", "%Y-%m-%d %H:%M:%S.%f+00:00"),
        ("20260329014459", "%Y%m%d%H%M%S"),
        ("2026.03.29 01:44:59", "%Y.%m.%d %H:%M:%S"),
    ],
)
def test_text_due_times_sort_among_the_hosts_own(
    make_foreign: Callable[[str], Foreign], dialect: str, theirs: str, time_format: str | None
) -> None:
    """A due time as text is written in the form that the host says it compares."""
    foreign = make_foreign(dialect)
    foreign.create()
    foreign.set('"run after" = :theirs', theirs=theirs)
    rows = SqlRows(foreign.engine, TABLE, NAMES, STATUSES, time_format=time_format)
    rows.check()
    rows.save("j-1", attempt(1))

    for due in (LATER, LATER - timedelta(seconds=0.25)):
        rows.requeue("j-1", due, attempt(1))

        assert foreign.ask('"run after"') > theirs
        found = rows.load("j-1").not_before
        assert found is not None
        assert timedelta(0) <= found - due < timedelta(seconds=1)


@pytest.mark.parametrize("form", ["%Y%m%d%H%M%S.%f", "%Y.%m.%d %H:%M:%S.%f"])
def test_text_due_times_are_in_utc_wherever_they_are_read(
    make_foreign: Callable[[str], Foreign], monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """A due time as text is the same moment, whatever its form and whatever zone a worker is in."""
    foreign = make_foreign(SQLITE)
    foreign.create()
    rows = SqlRows(foreign.engine, TABLE, NAMES, STATUSES, time_format=form)
    rows.save("j-1", attempt(1))
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    try:
        rows.requeue("j-1", LATER, attempt(1))
        rows.check()
        found = rows.load("j-1").not_before
    finally:
        monkeypatch.undo()
        time.tzset()

    assert foreign.ask('"run after"') == LATER.strftime(form)
    assert found == LATER


@pytest.mark.parametrize(
    ("kind", "theirs", "words"),
    [
        ("TEXT", "2026-03-29 01:44:59", "say the form of yours with time_format"),
        ("TEXT", "2026-03-29T03:44:59+02:00", "say the form of yours with time_format"),
        ("TEXT", "tomorrow", "say the form of yours with time_format"),
        ("BIGINT", 1_774_748_699_000, "is no number of seconds since the epoch"),
    ],
)
def test_due_times_of_another_form_are_refused(
    foreign: Foreign, kind: str, theirs: object, words: str
) -> None:
    """Due times among which ours would not sort are found at start, and one is shown."""
    rows = foreign.create(due=kind)
    foreign.set('"run after" = :theirs', theirs=theirs)

    (problem,) = problems_of(rows)
    # A queue that is idle tells as much by the jobs that have ended.
    foreign.set("\"Condition\" = 'OVER'")

    assert repr(theirs) in problem
    assert words in problem
    assert problems_of(rows) == (problem,)


@pytest.mark.parametrize("ours", ["j-1", "j-2"])
def test_due_time_of_another_form_is_found_among_ours(foreign: Foreign, ours: str) -> None:
    """One due time of another form is found at start, whichever of the table's is read first."""
    rows = foreign.create()
    foreign.insert("j-2")
    foreign.set('"run after" = :theirs', theirs="2026-03-29 01:44:59")
    foreign.set('"run after" = :ours WHERE uid = :uid', ours=format_time(LATER), uid=ours)

    [problem] = problems_of(rows)
    assert "holds '2026-03-29 01:44:59'" in problem


def test_names_may_hold_any_sign(foreign: Foreign) -> None:
    """Names that SQL quotes, and signs that drivers take for their own, are names like others."""
    ours = ("id", "stage", "not_before", "metadata", "status")
    names = ("i:d", "s%t", 'd"q', "m%%s", "s t")
    columns = dict(zip(ours, names, strict=True))
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    kinds = ("INTEGER PRIMARY KEY", *["TEXT"] * 4)
    made = ", ".join(map(" ".join, zip(quoted, kinds, strict=True)))
    for statement in (
        f"CREATE TABLE \"a%b:c\" ({made}, repo TEXT DEFAULT 'shop', work_item TEXT DEFAULT 'W')",
        f"""INSERT INTO "a%b:c" ({quoted[0]}, {quoted[4]}) VALUES (1, 'running')""",  # noqa: S608  # names of ours
    ):
        foreign.run(statement.replace(":", r"\:"))
    rows = SqlRows(foreign.engine, "a%b:c", columns)
    rows.check()
    rows.save(1, attempt(1))
    rows.requeue(1, LATER, attempt(1), once=True)

    assert rows.load(1).snapshot() == attempt(1)
    assert (rows.load(1).status, rows.load(1).not_before) == ("queued", LATER)


def test_host_without_some_columns_says_what_stands_in_every_row(foreign: Foreign) -> None:
    """A table without work item, repository, stage or due time is bound by constants for them."""
    foreign.run("CREATE TABLE deploys (id INTEGER PRIMARY KEY, status TEXT, metadata TEXT)")
    foreign.run("INSERT INTO deploys VALUES (1, 'running', NULL)")
    said = {"repo": "shop", "work_item": "WI-1", "stage": "deploy-staging", "not_before": None}
    rows = SqlRows(foreign.engine, "deploys", constants=said)
    rows.check()
    rows.save(1, attempt(1))
    rows.requeue(1, LATER, attempt(1))

    row = rows.load(1)
    assert (row.repo, row.work_item, row.stage) == ("shop", "WI-1", "deploy-staging")
    assert (row.status, row.not_before) == ("queued", None)


@pytest.mark.parametrize("size", [1, 2, 4, 5, 100])
def test_long_table_is_parted_into_spans_that_hold_each_row_once(
    foreign: Foreign, size: int
) -> None:
    """Spans of `size` rows of ours, whatever is between their ids, are the table as a whole."""
    foreign.run(
        "CREATE TABLE deploys (id INTEGER PRIMARY KEY, tenant INTEGER, status TEXT, metadata TEXT)"
    )
    ours = [2, 3, 5, 8, 13]
    for number in range(20):
        foreign.run(f"INSERT INTO deploys VALUES ({number}, {number in ours:d}, 'done', NULL)")  # noqa: S608  # numbers of ours
    said = {"repo": "shop", "work_item": "WI-1", "stage": "deploy-staging", "not_before": None}
    rows = SqlRows(foreign.engine, "deploys", constants=said, where="tenant = 1")
    for number in ours:
        rows.save(number, attempt(1))

    spans = list(rows.spans(size))
    found = [[row.id for row in rows.attempts(*span)] for span in spans]
    assert found == [ours[begin : begin + size] for begin in range(0, len(ours), size)]
    assert spans[0][0] is None
    assert list(SqlRows(foreign.engine, "deploys", constants=said, where="1 = 0").spans(size)) == []


@pytest.mark.parametrize("dialect", [SQLITE, POSTGRESQL])
@pytest.mark.parametrize(
    ("text", "is_seen"),
    [
        ('{"staging', True),
        ('{"a": {"b": 1}', True),
        ('"b": 1}', True),
        ("certainly not", True),
        (' {"a": {"b": 1}} ', False),
        ('{"a": "{"}', False),
        ("{}", False),
        ("null", False),
        ("", False),
    ],
)
def test_metadata_that_is_no_whole_json_is_walked_too(
    make_foreign: Callable[[str], Foreign], dialect: str, text: str, *, is_seen: bool
) -> None:
    """Of what is cut short nobody knows which keys it held: it is shown to an audit."""
    foreign = make_foreign(dialect)
    rows = foreign.create(extra="text")
    foreign.set(f"extra = '{text}'")

    assert len(list(rows.attempts())) == is_seen


@pytest.mark.parametrize("within", [False, True], ids=["alone", "at the gate"])
def test_first_write_that_is_not_kept_is_told(
    make_foreign: Callable[[str], Foreign], *, within: bool
) -> None:
    """Where a trigger of the host's drops our key nothing is believed to be stored."""
    foreign = make_foreign(SQLITE)
    rows = foreign.create()
    forgetting = f"""UPDATE "{TABLE}" SET extra = '{{}}' WHERE uid = NEW.uid"""  # noqa: S608  # a test's own
    foreign.run(
        f'CREATE TRIGGER forgetful AFTER UPDATE OF extra ON "{TABLE}" BEGIN {forgetting}; END'
    )
    transaction = rows.transaction() if within else nullcontext()
    with pytest.raises(ConfigInvalidError, match="does not keep the key"), transaction as tx:
        rows.save("j-1", attempt(1), tx)


#: What a host may have that drops a write of ours, and says nothing.
_ROW_SECURITY: Final = (
    f'ALTER TABLE "{TABLE}" ENABLE ROW LEVEL SECURITY',
    f'CREATE POLICY reading ON "{TABLE}" FOR SELECT USING (true)',
)
_KEEP: Final = "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
_FREEZE: Final = f'CREATE TRIGGER k BEFORE UPDATE ON "{TABLE}" FOR EACH ROW EXECUTE FUNCTION keep()'
_SWALLOWING: Final = {
    "a trigger": (_KEEP, _FREEZE),
    "a rule": (f'CREATE RULE k AS ON UPDATE TO "{TABLE}" DO INSTEAD NOTHING',),
    "row security": _ROW_SECURITY,
}


def assert_swallowed(rows: SqlRows) -> None:
    """Assert that no write is taken, and that none of them counts as overtaken."""
    for write in (
        partial(rows.save, "j-1", attempt(2)),
        partial(rows.requeue, "j-1", LATER, attempt(1)),
        partial(rows.requeue, "j-1", LATER, attempt(1), once=True),
        partial(rows.cancel, "j-1", attempt(1)),
    ):
        with pytest.raises(ConfigInvalidError, match="does not take what is written"):
            write()
    # Whoever did lose his claim is told that, and no more.
    with pytest.raises(StaleSnapshotError):
        rows.save("j-1", attempt(3))
    with pytest.raises(ConfigInvalidError, match="the row of job j-2 is as it was expected"):
        rows.save("j-2", attempt(1))


@pytest.mark.parametrize("extra", ["jsonb", "json", "text"])
@pytest.mark.parametrize("means", _SWALLOWING)
def test_write_that_the_table_swallows_is_told(
    make_foreign: Callable[[str], Foreign], means: str, extra: str
) -> None:
    """A write that changes nothing although nobody was faster is no claim of another worker's."""
    foreign = make_foreign(POSTGRESQL)
    foreign.create(extra=extra).save("j-1", attempt(1))
    foreign.insert("j-2")
    for statement in _SWALLOWING[means]:
        foreign.run(statement)
    with allowed(foreign, "SELECT, UPDATE") as rows:
        rows.check()
        assert_swallowed(rows)


def test_write_that_a_trigger_of_sqlite_ignores_is_told(
    make_foreign: Callable[[str], Foreign],
) -> None:
    """In SQLite, too, a write that a trigger ignores is told, and not taken for another's."""
    foreign = make_foreign(SQLITE)
    rows = foreign.create()
    rows.save("j-1", attempt(1))
    foreign.insert("j-2")
    foreign.run(f'CREATE TRIGGER frozen BEFORE UPDATE ON "{TABLE}" BEGIN SELECT RAISE(IGNORE); END')

    assert_swallowed(rows)


@pytest.mark.parametrize("kind", ["text", "json"])
@pytest.mark.parametrize("letter", range(len(SNAPSHOT_KEY)))
def test_attempt_is_walked_however_its_key_is_spelt(
    make_foreign: Callable[[str], Foreign], kind: str, letter: int
) -> None:
    """Whichever letter of our key a host writes as an escape, its attempt is shown to an audit."""
    foreign = make_foreign(POSTGRESQL)
    rows = foreign.create(extra=kind)
    escape = f"\\u{ord(SNAPSHOT_KEY[letter]):04x}"
    key = SNAPSHOT_KEY[:letter] + escape + SNAPSHOT_KEY[letter + 1 :]
    text = f'{{"{key}": {dump_snapshot(attempt(1))}}}'
    foreign.set(f"extra = CAST(:text AS {kind})", text=text)

    assert [row.snapshot() for row in rows.attempts()] == [attempt(1)]


def test_driver_that_does_not_tell_of_transactions_is_believed(
    make_foreign: Callable[[str], Foreign],
) -> None:
    """A driver of PostgreSQL without libpq has no status of it, and no host is refused for that."""
    rows = make_foreign(POSTGRESQL).create()
    driver = SimpleNamespace(driver_connection=object())

    assert rows._is_in_transaction(SimpleNamespace(connection=driver))


def test_forked_worker_speaks_over_no_connection_of_its_parent(
    make_foreign: Callable[[str], Foreign],
) -> None:
    """A host may fork after its first look: each process has a session of its own in PostgreSQL."""
    rows = make_foreign(POSTGRESQL).create()
    rows.check()

    def session() -> object:
        with rows.transaction() as tx:
            return tx.scalar(sa.text("SELECT pg_backend_pid()"))

    before = session()
    answers = {answer_of_fork(session) for _ in range(2)}

    assert session() == before
    assert len({*answers, str(before)}) == 3
    assert all(answer.isdecimal() for answer in answers)


@pytest.mark.parametrize("name", ["foreign.db", ":memory:"])
def test_forked_worker_opens_a_file_of_its_own(tmp_path: Path, name: str) -> None:
    """After a fork SQLite's file is opened anew, and a database in memory is still what it was."""
    opened = []
    place = {"poolclass": sa.pool.StaticPool} if name == ":memory:" else {}
    path = name if name == ":memory:" else tmp_path / name
    engine = sa.create_engine(f"sqlite:///{path}", **place)
    sa.event.listen(engine, "connect", lambda *_: opened.append(1))
    rows = Foreign(engine).create()
    rows.check()
    before = len(opened)

    def asked() -> object:
        return rows.load("j-1").status, len(opened) - before

    assert answer_of_fork(asked) == str(("running", 0 if name == ":memory:" else 1))
    assert asked() == ("running", 0)
    engine.dispose()


@pytest.mark.parametrize("extra", ["json", "text"])
def test_row_that_somebody_has_locked_is_waited_for(
    make_foreign: Callable[[str], Foreign], extra: str
) -> None:
    """A host that is writing a key of its own makes a save wait, and not one that came too late."""
    foreign = make_foreign(POSTGRESQL)
    rows = foreign.create(extra=extra)
    rows.save("j-1", attempt(1))
    saved: list[bool] = []

    def save() -> None:
        rows.save("j-1", attempt(2))
        saved.append(True)

    with foreign.engine.begin() as connection:
        connection.execute(sa.text(f'SELECT 1 FROM "{TABLE}" FOR UPDATE'))  # noqa: S608  # a test's own
        saving = threading.Thread(target=save)
        saving.start()
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        while saving.is_alive() and not connection.execute(sa.text(waiting)).scalar():
            connection.execute(sa.text("SELECT pg_stat_clear_snapshot()"))
    saving.join()

    assert saved == [True]


@pytest.mark.parametrize("extra", ["json", "text"])
def test_row_in_work_may_be_referred_to(
    make_foreign: Callable[[str], Foreign], postgres_url: str, extra: str
) -> None:
    """While a save is under way a host may add rows of its own that refer to the job."""
    foreign = make_foreign(POSTGRESQL)
    rows = foreign.create(extra=extra, uid="text PRIMARY KEY")
    foreign.run(f'CREATE TABLE notes (job text REFERENCES "{TABLE}" (uid))')
    beside = engine_with(postgres_url, "lock_timeout TO '20s'")
    with rows.transaction() as tx:
        rows.save("j-1", attempt(1), tx)
        with beside.begin() as connection:
            connection.execute(sa.text("INSERT INTO notes VALUES ('j-1')"))
    beside.dispose()

    assert rows.load("j-1").snapshot() == attempt(1)


def test_walk_misses_nothing_when_rows_before_it_go(
    foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that deletes old jobs while all are walked has each of the others shown once."""
    monkeypatch.setattr(rows_module, "BATCH_ROWS", 2)
    rows = foreign.create()
    jobs = ["j-1", "j-2", "j-3", "j-4", "j-5"]
    for job in jobs[1:]:
        foreign.insert(job)
    for job in jobs:
        rows.save(job, attempt(1))
    walk = rows.attempts()
    found = [next(walk).id]
    foreign.run(f"""DELETE FROM "{TABLE}" WHERE uid = 'j-1'""")  # noqa: S608  # a test's own

    assert found + [row.id for row in walk] == jobs


def test_attempt_behind_a_long_queue_is_found(make_foreign: Callable[[str], Foreign]) -> None:
    """Recovery is shown the last unfinished job of a queue of any length."""
    foreign, many = make_foreign(SQLITE), 10_500
    rows = foreign.create()
    foreign.run(
        f'INSERT INTO "{TABLE}" WITH RECURSIVE numbers(i) AS'  # noqa: S608  # a test's own
        f" (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < {many}) SELECT 'n-' || i,"
        " 'shop', 'WI-1', 'deploy-staging', 'WAITING', NULL, :ours, 1 FROM numbers",
        ours='{"staging_runner": 1}',
    )

    assert len(rows.unfinished()) == many


def test_rows_outside_the_condition_are_neither_seen_nor_written(foreign: Foreign) -> None:
    """With `where`, a row of somebody else with the same id and version stays as it is."""
    foreign.create(uid="TEXT")
    foreign.insert("j-1", tenant=2)
    first, second = (
        SqlRows(foreign.engine, TABLE, NAMES, STATUSES, where=f"tenant = {n} AND '%:x' <> ''")
        for n in (1, 2)
    )
    # A due time of theirs is none of ours to judge.
    foreign.set("\"run after\" = 'tomorrow' WHERE tenant = 2")
    either = SqlRows(foreign.engine, TABLE, NAMES, STATUSES, where="tenant = 9 OR tenant = 2")
    first.check()
    assert "holds 'tomorrow'" in problems_of(second)[0]
    first.save("j-1", attempt(1))
    second.save("j-1", attempt(1))
    for rows in (first, second):
        for found in (rows.unfinished(), [*rows.attempts()], rows.recent(5)):
            assert len(found) == 1

    second.save("j-1", attempt(2))
    # An OR in it opens no way past the id and the version.
    with pytest.raises(StaleSnapshotError):
        either.save("j-1", attempt(2))
    with pytest.raises(JobNotFoundError):
        either.load("j-2")
    second.cancel("j-1", attempt(2))

    assert (first.load("j-1").snapshot(), first.load("j-1").status) == (attempt(1), "running")
    assert [row.snapshot() for row in second.recent(5)] == [attempt(2)]
    with pytest.raises(JobNotFoundError):
        SqlRows(foreign.engine, TABLE, NAMES, STATUSES, where="tenant = 3").load("j-1")


def test_id_that_is_no_key_is_refused(foreign: Foreign) -> None:
    """A column that may hold an id twice is no key, and no write touches two rows."""
    rows = foreign.create(uid="TEXT")
    foreign.insert("j-1", tenant=2)

    (problem,) = problems_of(rows)
    with pytest.raises(ConfigInvalidError, match="is no key: 2 rows have 'j-1'"):
        rows.save("j-1", attempt(1))

    assert problem == f"column 'uid' of {TABLE!r} is no key: two rows may have the same"
    assert [row.document for row in rows.recent(2)] == [None, None]


def test_id_that_two_jobs_share_is_refused_within_a_condition(foreign: Foreign) -> None:
    """Where a condition says which rows are jobs, an id that two of them have is named at start."""
    foreign.create(uid="TEXT")
    foreign.insert("j-1", tenant=2)
    foreign.insert("j-2", tenant=2)
    rows = SqlRows(foreign.engine, TABLE, NAMES, STATUSES, where="tenant = 2")
    rows.check()
    foreign.insert("j-2", tenant=2)

    (problem,) = problems_of(rows)

    assert problem == f"column 'uid' of {TABLE!r} is no key: two rows have 'j-2'"


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("behind", "(tenant, uid)"),
        ("before", "(uid, tenant)"),
        ("partial", "(uid) WHERE tenant = 1"),
    ],
)
def test_half_of_a_key_is_no_key(foreign: Foreign, name: str, columns: str) -> None:
    """An id that is a key with another column only, or of some rows only, may stand there twice."""
    rows = foreign.create(uid="TEXT")
    foreign.run(f'CREATE UNIQUE INDEX {name} ON "{TABLE}" {columns}')
    foreign.insert("j-1", tenant=2)

    assert problems_of(rows) == (
        f"column 'uid' of {TABLE!r} is no key: two rows may have the same",
    )


def test_table_in_another_schema_is_found_by_its_full_name(
    make_foreign: Callable[[str], Foreign], postgres_url: str
) -> None:
    """A table that is not where the connection looks is named with its schema."""
    foreign = make_foreign(POSTGRESQL)
    rows = foreign.create()
    schema = foreign.ask("current_schema()")
    engine = open_database(postgres_url.partition("&options")[0])
    elsewhere = SqlRows(engine, TABLE, NAMES, STATUSES, schema=schema)
    elsewhere.check()

    elsewhere.save("j-1", attempt(1))

    assert rows.load("j-1").snapshot() == attempt(1)
    with pytest.raises(JobNotFoundError, match=f"table '{schema}.{TABLE}'"):
        elsewhere.load("j-2")
    engine.dispose()


def test_view_in_another_schema_is_taken_at_its_word(
    make_foreign: Callable[[str], Foreign], postgres_url: str
) -> None:
    """Jobs may be a view, which has no key of its own, wherever it is: the host answers for it."""
    foreign = make_foreign(POSTGRESQL)
    foreign.create()
    foreign.run(f'CREATE VIEW tasks AS TABLE "{TABLE}"')
    engine = open_database(postgres_url.partition("&options")[0])
    schema = foreign.ask("current_schema()")
    elsewhere = SqlRows(engine, "tasks", NAMES, STATUSES, schema=schema)
    elsewhere.check()
    elsewhere.save("j-1", attempt(1))

    assert elsewhere.load("j-1").snapshot() == attempt(1)
    engine.dispose()


@contextmanager
def allowed(foreign: Foreign, right: str) -> Iterator[SqlRows]:
    """Yield rows as a database user sees them who has a right on the table, and no other."""
    schema, role = foreign.ask("current_schema()"), f"reader_{uuid.uuid4().hex[:8]}"
    foreign.run(f"CREATE ROLE {role} LOGIN")
    foreign.run(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    foreign.run(f'GRANT {right} ON "{TABLE}" TO {role}')
    engine = sa.create_engine(foreign.engine.url.set(username=role))
    try:
        yield SqlRows(engine, TABLE, NAMES, STATUSES)
    finally:
        engine.dispose()
        foreign.run(f"DROP OWNED BY {role}")
        foreign.run(f"DROP ROLE {role}")


def test_right_to_write_is_none_to_read(make_foreign: Callable[[str], Foreign]) -> None:
    """A database user that may write our key and not read it is told so at start."""
    foreign = make_foreign(POSTGRESQL)
    foreign.create()
    read = ", ".join(f'"{NAMES[name]}"' for name in NAMES if name != "metadata")
    with allowed(foreign, f"UPDATE, SELECT ({read})") as rows:
        [problem] = problems_of(rows)

    assert problem.startswith("column 'extra' of ")
    assert problem.endswith("needs SELECT on it")


def test_missing_rights_are_named(make_foreign: Callable[[str], Foreign]) -> None:
    """A database user that may not read or write a column is told so at start."""
    foreign = make_foreign(POSTGRESQL)
    foreign.create()
    with allowed(foreign, "SELECT") as rows:
        problems = problems_of(rows)
        role = rows.engine.url.username

    assert [problem.partition(" of ")[0] for problem in problems] == [
        "column 'Condition'",
        "column 'run after'",
        "column 'extra'",
    ]
    assert problems[0].endswith(f"may not be used: {role} needs UPDATE on it")


def test_table_that_is_missing_is_named(foreign: Foreign) -> None:
    """A table that is not there is a configuration error that names it."""
    foreign.create()

    assert problems_of(SqlRows(foreign.engine, "jobs")) == ("there is no table 'jobs'",)


def test_every_column_that_is_missing_is_named(foreign: Foreign) -> None:
    """All columns that are not there are listed at once, with those that are."""
    foreign.create()
    rows = SqlRows(foreign.engine, TABLE, {"id": "uid", "repo": "project", "stage": "step"})

    with pytest.raises(ConfigInvalidError) as refused:
        rows.load("j-1")

    problems = refused.value.problems
    named = [problem.split(" has no column ")[1].split(" (")[0] for problem in problems]
    assert named == [
        "'work_item' for 'work_item'",
        "'step' for 'stage'",
        "'status' for 'status'",
        "'not_before' for 'not_before'",
        "'metadata' for 'metadata'",
    ]
    assert "it has uid, project, ticket" in problems[0]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"extra": "text[]"}, "'extra' of 'Agent Runs' is ARRAY, not jsonb, json or text"),
        ({"extra": "varchar(255)"}, "is VARCHAR(255), too short for an attempt: use text"),
        ({"due": "date"}, "'run after' of 'Agent Runs' is DATE, which holds no moment"),
        ({"due": "interval"}, "is INTERVAL, which holds no moment"),
        ({"due": "mood"}, "'run after' of 'Agent Runs' is VARCHAR(7), which holds no moment"),
        ({"due": "varchar(26)"}, "'run after' of 'Agent Runs' holds 26 characters, too few for"),
        ({"condition": "mood"}, "cannot hold 'WAITING' for 'queued': it is one of BUSY, ON_HOLD"),
        ({"condition": "integer"}, "cannot hold 'WAITING' for 'queued': it holds numbers"),
        ({"condition": "varchar(5)"}, "cannot hold 'WAITING' for 'queued': it is VARCHAR(5)"),
    ],
)
def test_column_that_cannot_hold_what_is_written_is_refused(
    make_foreign: Callable[[str], Foreign], columns: dict[str, str], sentence: str
) -> None:
    """A type that cannot hold an attempt, a moment or a status word is named at start."""
    foreign = make_foreign(POSTGRESQL)
    foreign.run("CREATE TYPE mood AS ENUM ('BUSY', 'ON_HOLD')")
    status = 1 if columns.get("condition") == "integer" else "BUSY"

    problems = problems_of(foreign.create(**columns, status=status))

    assert sentence in problems[0]


@pytest.mark.parametrize("extra", ["jsonb", "json", "text"])
@pytest.mark.parametrize("due", ["timestamptz", "timestamp(3)", "text", "bigint"])
def test_domain_is_what_it_is_made_of(
    make_foreign: Callable[[str], Foreign], extra: str, due: str
) -> None:
    """A column whose type is a domain of the host's own is used as one of the type beneath."""
    foreign = make_foreign(POSTGRESQL)
    foreign.run(f"CREATE DOMAIN papers AS {extra}")
    foreign.run(f"CREATE DOMAIN moment AS {due}")
    rows = foreign.create(extra="papers", due="moment")
    rows.check()
    rows.save("j-1", attempt(1))
    rows.requeue("j-1", LATER, attempt(1))

    assert rows.load("j-1").snapshot() == attempt(1)
    found = rows.load("j-1").not_before
    assert found is not None
    assert timedelta(0) <= found - LATER < timedelta(seconds=1)


@pytest.fixture
def apart(postgres_server: str) -> Iterator[str]:
    """Return the name of a schema in which no connection looks."""
    with new_schema(postgres_server) as url:
        yield str(sa.make_url(url).query["options"]).rpartition("=")[2]


@pytest.mark.parametrize("is_apart", [False, True])
@pytest.mark.parametrize("condition", ["mood", "words", "mood_again", "words_again"])
def test_status_may_be_in_a_domain(
    make_foreign: Callable[[str], Foreign], apart: str, condition: str, *, is_apart: bool
) -> None:
    """A status in a domain over an enumeration, a text or another domain is read and written."""
    foreign, place = make_foreign(POSTGRESQL), f"{apart}." if is_apart else ""
    foreign.run(f"CREATE TYPE {place}kind AS ENUM ('WAITING', 'BUSY', 'STOPPED', 'ON_HOLD')")
    foreign.run(f"CREATE DOMAIN {place}mood AS {place}kind")
    foreign.run(f"CREATE DOMAIN {place}words AS varchar(9)")
    for name in ("mood", "words"):
        foreign.run(f"CREATE DOMAIN {place}{name}_again AS {place}{name}")
    rows = foreign.create(condition=f"{place}{condition}", extra="jsonb")
    rows.check()
    rows.save("j-1", attempt(1))

    assert [row.status for row in rows.unfinished()] == ["running"]
    rows.requeue("j-1", LATER, attempt(1), once=True)
    assert rows.load("j-1").status == "queued"
    rows.cancel("j-1", attempt(1))
    assert rows.unfinished() == []
    assert foreign.ask('"Condition"') == "STOPPED"


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ('ALTER "Condition" TYPE boolean USING NULL', "operator does not exist: boolean = "),
        ('ALTER "Condition" TYPE json USING NULL', "operator does not exist: json = "),
        (
            'DROP "run after", ADD "run after" bigint GENERATED ALWAYS AS (tenant) STORED',
            'column "run after" can only be updated to DEFAULT',
        ),
    ],
)
def test_statement_that_the_table_refuses_is_told_before_a_run(
    make_foreign: Callable[[str], Foreign], change: str, refused: str
) -> None:
    """What recovery, a deferral or a cancellation will ask for is tried on no row at start."""
    foreign = make_foreign(POSTGRESQL)
    rows = foreign.create()
    foreign.run(f'ALTER TABLE "{TABLE}" {change}')

    [problem] = problems_of(rows)

    assert problem.startswith(f"table '{TABLE}' does not take a statement that is needed: ")
    assert refused in problem
    assert problem.endswith("correct the type of the column, the mapping or the condition")
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        (
            ['DROP COLUMN "run after"', 'ADD COLUMN "run after" TEXT AS (NULL)'],
            'cannot UPDATE generated column "run after"',
        ),
        (
            ['DROP COLUMN "Condition"', """ADD COLUMN "Condition" TEXT AS ('BUSY')"""],
            'cannot UPDATE generated column "Condition"',
        ),
        (["RENAME TO jobs"], "cannot modify Agent Runs because it is a view"),
    ],
)
def test_statement_that_a_table_of_sqlite_refuses_is_told_before_a_run(
    make_foreign: Callable[[str], Foreign], changes: list[str], refused: str
) -> None:
    """SQLite, too, is asked at start for all that is needed, though it has one class of errors."""
    foreign = make_foreign(SQLITE)
    rows = foreign.create(uid="TEXT")
    for change in changes:
        foreign.run(f'ALTER TABLE "{TABLE}" {change}')
    if "RENAME TO jobs" in changes:
        foreign.run(f'CREATE VIEW "{TABLE}" AS SELECT * FROM jobs')  # noqa: S608  # a test's own
    else:
        foreign.run(f'CREATE UNIQUE INDEX one ON "{TABLE}" (uid)')

    [problem] = problems_of(rows)

    assert problem.startswith(
        f"table '{TABLE}' does not take a statement that is needed: {refused};"
    )


@pytest.mark.parametrize("condition", ["tenat = 7", "tenant = nobody(7)", "tenant = "])
def test_condition_that_sqlite_cannot_read_is_told_in_a_sentence(
    make_foreign: Callable[[str], Foreign], condition: str
) -> None:
    """A condition with a mistyped name is a fault of the mapping in SQLite as well."""
    foreign = make_foreign(SQLITE)
    foreign.create()

    [problem] = problems_of(SqlRows(foreign.engine, TABLE, NAMES, STATUSES, where=condition))

    assert "does not take a statement that is needed: " in problem


def test_database_that_is_locked_says_nothing_of_its_table(tmp_path: Path) -> None:
    """A store that is busy or gone just now is no fault of the mapping: each launch looks again."""
    address = sa.URL.create("sqlite", database=f"{tmp_path}/foreign.db")
    foreign = Foreign(sa.create_engine(address, connect_args={"timeout": 0}))
    rows = foreign.create()

    with foreign.engine.connect() as other:
        other.exec_driver_sql("BEGIN EXCLUSIVE")
        with pytest.raises(sa.exc.OperationalError, match="locked"):
            rows.check()
    rows.check()


def test_server_that_is_not_up_yet_says_nothing_of_its_table(tmp_path: Path) -> None:
    """A host that starts before its PostgreSQL is told of no fault of the mapping either."""
    address = sa.URL.create("postgresql+psycopg", query={"host": str(tmp_path)})
    rows = SqlRows(sa.create_engine(address), TABLE, NAMES, STATUSES)

    with pytest.raises(sa.exc.OperationalError, match="connection"):
        rows.check()


def test_condition_that_is_no_sql_is_told_in_a_sentence(
    make_foreign: Callable[[str], Foreign],
) -> None:
    """A condition that the database cannot read is a fault of the mapping, and is said at start."""
    foreign = make_foreign(POSTGRESQL)
    foreign.create()

    [problem] = problems_of(SqlRows(foreign.engine, TABLE, NAMES, STATUSES, where="tenat = 7"))

    assert 'column "tenat" does not exist; correct' in problem


@pytest.fixture(scope="module")
def encoded() -> Iterator[Callable[[str], str]]:
    """Return a maker of PostgreSQL databases in a given encoding, which returns their address."""
    if postgres.binaries() is None:
        pytest.skip(NO_POSTGRESQL)
    with postgres.own_server() as server:
        server.start()

        def make(encoding: str) -> str:
            name = f"of_{uuid.uuid4().hex}"
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute(
                    f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0"
                    " LC_COLLATE 'C' LC_CTYPE 'C'"
                )
            return str(sa.make_url(server.url).set(database=name))

        yield make


@pytest.mark.parametrize("extra", ["json", "text"])
def test_attempt_is_kept_in_a_database_of_few_characters(
    encoded: Callable[[str], str], extra: str
) -> None:
    """In a database in LATIN1 an attempt keeps any path in json and in text, as escapes."""
    engine = open_database(encoded("LATIN1"))
    rows = Foreign(engine).create(extra=extra)
    stored = attrs.evolve(attempt(1), artifact=Artifact("stan-żółw", "0" * 64))
    rows.check()
    rows.save("j-1", stored)

    assert rows.load("j-1").snapshot() == stored
    engine.dispose()


def test_jsonb_of_few_characters_is_refused(encoded: Callable[[str], str]) -> None:
    """A verdict whose path jsonb could not hold could never be stored: it is refused at start."""
    engine = open_database(encoded("LATIN1"))

    [problem] = problems_of(Foreign(engine).create(extra="jsonb"))

    assert problem == (
        "column 'extra' of 'Agent Runs' is jsonb in a database in LATIN1, which cannot hold every"
        " character of a path or a message: make it json or text, or use a database in UTF8"
    )
    engine.dispose()


@pytest.mark.parametrize("told", [{}, {"client_encoding": "utf8"}], ids=["bytes", "texts"])
def test_database_of_bytes_is_refused(encoded: Callable[[str], str], told: dict[str, str]) -> None:
    """In a database in SQL_ASCII a name may be any bytes: it is refused, however it is read."""
    url = sa.make_url(encoded("SQL_ASCII"))
    clear = sa.create_engine(
        url.set(drivername="postgresql+psycopg"), connect_args={"client_encoding": "utf8"}
    )
    Foreign(clear).create()
    engine = sa.create_engine(url.set(drivername="postgresql+psycopg"), connect_args=told)

    [problem] = problems_of(SqlRows(engine, TABLE, NAMES, STATUSES))

    assert problem.startswith(
        "table 'Agent Runs' is in a database in SQL_ASCII, whose texts are bytes in no encoding"
        " that is known: use a database in UTF8"
    )
    engine.dispose()
    clear.dispose()


def test_status_word_is_as_long_as_its_characters(make_foreign: Callable[[str], Foreign]) -> None:
    """A status word of any alphabet fits where its characters do, however they are encoded."""
    foreign = make_foreign(POSTGRESQL)
    foreign.create(condition="varchar(5)", status="läuft")
    words = {"queued": "ждёт", "running": "läuft", "cancelled": "стоит"}
    rows = SqlRows(foreign.engine, TABLE, NAMES, words)
    rows.check()
    rows.save("j-1", attempt(1))
    rows.cancel("j-1", attempt(1))

    assert foreign.ask('"Condition"') == "стоит"


@pytest.mark.parametrize(
    "form",
    [
        *("%Y-%m-%d %H:%M", "%Y-%m-%d", "%H:%M:%S", "%Y-%m %H:%M:%S", "%Y-%m-%d %M:%S"),
        # All is said, and does not sort.
        *("%d.%m.%Y %H:%M:%S", "%m/%d/%Y %H:%M:%S", "%Y-%m-%d %I:%M:%S %p", "%Y-%b-%d %H:%M:%S"),
        # It sorts, and nobody reads it again.
        "due at %s",
    ],
)
def test_form_of_times_that_does_not_sort_or_forgets_is_refused(
    foreign: Foreign, form: str
) -> None:
    """A form in which a due time is no moment, or earlier than it is, is shown by an example."""
    foreign.create()
    rows = SqlRows(foreign.engine, TABLE, NAMES, STATUSES, time_format=form)

    (problem,) = problems_of(rows)

    assert "column 'run after' of 'Agent Runs' would hold '" in problem
    assert "down to the second, and to be read again" in problem


def test_due_time_that_exactly_fits_is_stored(make_foreign: Callable[[str], Foreign]) -> None:
    """A text column needs room for a due time and no more; SQLite's has no length."""
    for dialect, length in ((POSTGRESQL, 27), (SQLITE, 5)):
        rows = make_foreign(dialect).create(due=f"varchar({length})")
        rows.check()
        rows.save("j-1", attempt(1))
        rows.requeue("j-1", LATER, attempt(1))

        assert rows.load("j-1").not_before == LATER


@pytest.mark.parametrize(
    ("dialect", "due"),
    [
        *((SQLITE, "BIGINT"), (POSTGRESQL, "BIGINT")),
        *((POSTGRESQL, "TIMESTAMP"), (POSTGRESQL, "TIMESTAMPTZ")),
    ],
)
@pytest.mark.parametrize("form", ["%Y", "%Y-%m-%d %H:%M:%S"])
def test_form_of_times_is_only_for_text(
    make_foreign: Callable[[str], Foreign], dialect: str, due: str, form: str
) -> None:
    """A form for due times beside a column that has its own is refused, were it a good one."""
    foreign = make_foreign(dialect)
    foreign.create(due=due)
    rows = SqlRows(foreign.engine, TABLE, NAMES, STATUSES, time_format=form)

    (problem,) = problems_of(rows)

    assert problem.endswith(f"is {due.removesuffix('TZ')}: time_format is only for text")


def test_names_that_are_none_of_ours_are_all_refused(foreign: Foreign) -> None:
    """A misspelt name in the mapping is refused when the rows are made."""
    with pytest.raises(ConfigInvalidError) as refused:
        SqlRows(
            foreign.engine,
            columns={"due": "x", "repo": "y"},
            statuses={"runing": "y", "queued": "z"},
            constants={"id": "1", "repo": "shop", "not_before": "now"},
        )

    assert [problem.split(" is ")[0] for problem in refused.value.problems] == [
        "'due' of columns",
        "'runing' of statuses",
        "'id' of constants",
        "'repo'",
        "the constant 'not_before' can only be None: no job has a due time",
    ]


@pytest.mark.parametrize(
    ("statuses", "shared"),
    [
        ({"queued": "open", "running": "open"}, "queued and running"),
        ({"queued": "gone", "cancelled": "gone"}, "queued and cancelled"),
        ({"running": "cancelled"}, "running and cancelled"),
        (dict.fromkeys(["queued", "running", "cancelled"], 1), "queued and running and cancelled"),
    ],
)
def test_status_that_stands_for_two_of_our_words_is_refused(
    foreign: Foreign, statuses: dict[str, Any], shared: str
) -> None:
    """What waits, what is in work and what was cancelled is told apart by its status alone."""
    with pytest.raises(ConfigInvalidError) as refused:
        SqlRows(foreign.engine, statuses=statuses)

    [problem] = refused.value.problems
    assert f" stands for {shared} in statuses" in problem


def test_other_databases_are_refused_by_name() -> None:
    """A database that is neither SQLite nor PostgreSQL is refused before anything is asked."""
    engine = sa.create_mock_engine("mysql+pymysql://", executor=lambda *_: None)

    rows = SqlRows(engine)  # type: ignore[arg-type]  # only its dialect is looked at

    assert problems_of(rows) == ("SqlRows works on sqlite and postgresql, not mysql",)


@pytest.mark.parametrize("raises", [False, True])
def test_gate_that_has_rows_read_in_its_own_way_changes_nobody_elses(
    foreign: Foreign, *, raises: bool
) -> None:
    """What a gate sets on the driver's connection, such as a row factory, ends with its turn."""
    rows = foreign.create(extra="jsonb" if foreign.engine.dialect.name == POSTGRESQL else "TEXT")
    rows.save("j-1", attempt(1))
    before = []

    def gate(tx: sa.Connection) -> None:
        driver: Any = tx.connection.driver_connection
        before.extend([driver, driver.row_factory])
        driver.row_factory = psycopg.rows.dict_row
        if foreign.engine.dialect.name == SQLITE:
            driver.row_factory = lambda _cursor, _row: {}
            driver.text_factory = bytes
        if raises:
            message = "the host's own"
            raise RuntimeError(message)

    with (
        pytest.raises(RuntimeError, match="own") if raises else nullcontext(),
        rows.transaction() as tx,
    ):
        gate(tx)
        with pytest.raises(StaleSnapshotError):
            rows.save("j-1", attempt(3), tx)
        rows.save("j-1", attempt(2), tx)

    assert rows.load("j-1").snapshot() == attempt(1 if raises else 2)
    with foreign.engine.connect() as connection:
        # The very one: a pool lends it to whoever comes next.
        driver = connection.connection.driver_connection
        assert [driver, driver.row_factory] == before  # type: ignore[union-attr]  # of both drivers


def leave_with(tx: sa.Connection) -> None:
    """End the transaction as `with` on the driver's connection does; psycopg closes that, too."""
    driver: Any = tx.connection.driver_connection
    with driver:
        driver.execute(f"""UPDATE "{TABLE}" SET "Condition" = 'done'""")  # noqa: S608  # a test's own


def close(tx: sa.Connection) -> None:
    """Close the driver's connection, whose transaction is undone by that."""
    driver: Any = tx.connection.driver_connection
    driver.execute(f"""UPDATE "{TABLE}" SET "Condition" = 'done'""")  # noqa: S608  # as above
    driver.close()


def store(rows: SqlRows, gate: Callable[[sa.Connection], object]) -> None:
    """Ask a gate, and store the end of its attempt."""
    with rows.transaction() as tx:
        gate(tx)
        rows.save("j-1", attempt(2), tx)


def contradict(rows: SqlRows, gate: Callable[[sa.Connection], object]) -> None:
    """Ask a gate that opens against the verdict."""
    with rows.transaction() as tx:
        gate(tx)
        message = "it opened"
        raise GateContradictedVerdictError(message)


@pytest.mark.parametrize("handle", [store, contradict])
@pytest.mark.parametrize("end", [close, leave_with])
def test_gate_that_closes_its_connection_is_told_of(
    foreign: Foreign,
    end: Callable[[sa.Connection], None],
    handle: Callable[[SqlRows, Callable[[sa.Connection], object]], None],
) -> None:
    """What a gate has ended itself is no part of the attempt's end, which is not stored alone."""
    rows = foreign.create()
    rows.save("j-1", attempt(1))
    if end is leave_with and foreign.engine.dialect.name == SQLITE and handle is store:
        # It is still open, and what a driver committed of itself looks the same.
        handle(rows, end)
        assert rows.load("j-1").snapshot() == attempt(2)
        return

    with pytest.raises(GateEndedTransactionError, match="ended the transaction that it was lent"):
        handle(rows, end)

    assert rows.load("j-1").snapshot() == attempt(1)
    # Whoever has the connection next finds it open.
    store(rows, lambda _tx: None)
    assert rows.load("j-1").snapshot() == attempt(2)


def test_gate_that_commits_what_its_connection_writes_first_is_told_of(
    make_foreign: Callable[[str], Foreign],
) -> None:
    """A connection that has written nothing yet shows what a gate has committed like any other."""
    foreign = make_foreign(SQLITE)
    rows = foreign.create()
    rows.save("j-1", attempt(1))
    foreign.engine.dispose()

    with pytest.raises(GateEndedTransactionError, match="ended the transaction that it was lent"):
        contradict(rows, leave_with)


def test_gate_may_use_savepoints(foreign: Foreign) -> None:
    """A gate that writes within a savepoint has ended nothing, whatever the driver makes of it."""
    rows = foreign.create()
    rows.save("j-1", attempt(1))

    def gate(tx: sa.Connection) -> None:
        with tx.begin_nested():
            tx.execute(sa.text(f"""UPDATE "{TABLE}" SET "Condition" = 'done'"""))  # noqa: S608  # as above

    store(rows, gate)
    assert rows.load("j-1").snapshot() == attempt(2)
    assert foreign.ask('"Condition"') == "done"


def test_connection_that_was_lost_was_not_ended_by_its_gate(
    make_foreign: Callable[[str], Foreign],
) -> None:
    """A server that goes away while the gate is asked undoes what it wrote, and is blamed."""
    foreign = make_foreign(POSTGRESQL)
    rows = foreign.create()

    def gate(tx: sa.Connection) -> None:
        driver: Any = tx.connection.driver_connection
        foreign.run("SELECT pg_terminate_backend(:pid)", pid=driver.info.backend_pid)
        with pytest.raises(psycopg.OperationalError):
            driver.execute("SELECT 1")

    with pytest.raises(sa.exc.OperationalError):
        store(rows, gate)
    rows.save("j-1", attempt(1))


def look(tx: sa.Connection) -> None:
    """Write nothing."""
    tx.execute(sa.text("SELECT 1"))


def fail(tx: sa.Connection) -> None:
    """Have a statement fail, and go on."""
    with pytest.raises(sa.exc.DBAPIError):
        tx.execute(sa.text("SELECT no_such_column"))


@pytest.mark.parametrize("gate", [look, fail])
def test_gate_that_writes_nothing_has_ended_nothing(
    foreign: Foreign, gate: Callable[[sa.Connection], None]
) -> None:
    """A gate that only looks, or whose statement fails, is not accused of an end."""
    rows = foreign.create()
    with pytest.raises(GateContradictedVerdictError):
        contradict(rows, gate)

"""Moving the embedded orchestrator to another database: all of it or nothing, to the byte."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa
from psycopg.errors import LockNotAvailable

from postgres import new_schema
from staging_fsm.core.errors import RefusedError
from staging_fsm.effects.clock import SystemClock
from staging_fsm.host.database import open_database
from staging_fsm.host.move import TABLES, move_rows
from staging_fsm.host.store import SqlHostStore, WorkItem

#: Text that a reader of JSON would write otherwise.
METADATA: Final = '{ "b":1.50, "a" : "\\u00e9é\\u0000", "b": 1e2 }'
NOW: Final = SystemClock().now()


@pytest.fixture
def stores(tmp_path: Path, postgres_url: str) -> Iterator[tuple[SqlHostStore, SqlHostStore]]:
    """Yield a database with three jobs and a gap in their ids, and an empty one."""
    found = []
    for url in (f"sqlite:///{tmp_path / 'orchestrator.db'}", postgres_url):
        found.append(SqlHostStore(open_database(url)))
        found[-1].create_schema()
    old, new = found
    old.add_repository("shop", "/srv/shop")
    for number in range(4):
        item = WorkItem("shop", f"Wi-{number}" if number % 2 else f"wI-{number}", "review", 2, None)
        old.add_work_item(item, "reviewer", NOW)
    change(old, "DELETE FROM jobs WHERE id = 2")
    change(old, "UPDATE jobs SET metadata = :text WHERE id = 3", text=METADATA)
    yield old, new
    for store in found:
        store.engine.dispose()


def change(store: SqlHostStore, statement: str, **values: Any) -> None:
    """Do something to a store."""
    with store.engine.begin() as connection:
        connection.execute(sa.text(statement), values)


def content(store: SqlHostStore) -> dict[str, list[Any]]:
    """Return every row of every table."""
    with store.engine.connect() as connection:
        return {
            table: sorted(map(tuple, connection.execute(sa.text(f"SELECT * FROM {table}"))))  # noqa: S608  # a name of ours
            for table in TABLES
        }


def test_every_row_arrives_as_it_was(stores: tuple[SqlHostStore, SqlHostStore]) -> None:
    """Rows keep their ids and every byte, in either direction, and the next job is a new one."""
    old, new = stores

    assert move_rows(old.engine, new.engine) == {"repositories": 1, "work_items": 4, "jobs": 3}
    assert content(new) == content(old)
    for table in TABLES:
        change(old, f"DELETE FROM {[*TABLES][::-1][[*TABLES].index(table)]}")  # noqa: S608  # a name of ours
    move_rows(new.engine, old.engine)
    assert content(new) == content(old)
    for store in stores:
        with store.transaction() as tx:
            assert store.enqueue(tx, store.work_item(tx, "shop", "Wi-1"), "reviewer", NOW) == 5


def test_who_wants_to_write_meanwhile_waits(stores: tuple[SqlHostStore, SqlHostStore]) -> None:
    """While rows are read out of PostgreSQL nobody queues a job there that the copy would miss."""
    old, new = stores
    move_rows(old.engine, new.engine)
    for table in [*TABLES][::-1]:
        change(old, f"DELETE FROM {table}")  # noqa: S608  # a name of ours
    item = WorkItem("shop", "Wi-1", "review", 2, None)
    came_to = set[object]()

    def write(*_: object) -> None:
        try:
            with new.transaction() as tx:
                tx.exec_driver_sql("SET LOCAL lock_timeout = 10")
                came_to.add(new.enqueue(tx, item, "reviewer", NOW))
        except sa.exc.OperationalError as error:
            came_to.add(type(error.orig))

    sa.event.listen(old.engine, "before_cursor_execute", write)
    move_rows(new.engine, old.engine)
    sa.event.remove(old.engine, "before_cursor_execute", write)

    assert came_to == {LockNotAvailable}
    assert content(new) == content(old)


def test_who_wants_to_write_to_sqlite_meanwhile_waits(
    stores: tuple[SqlHostStore, SqlHostStore],
) -> None:
    """While rows are read out of SQLite no other process queues a job that the copy would miss."""
    old, new = stores
    beside = SqlHostStore(open_database(old.engine.url.render_as_string()))
    # Who would have to wait is told at once.
    sa.event.listen(beside.engine, "connect", lambda one, _: one.execute("PRAGMA busy_timeout = 0"))
    item = WorkItem("shop", "Wi-1", "review", 2, None)
    came_to = set[str]()

    def write(*_: object) -> None:
        try:
            with beside.transaction() as tx:
                came_to.add(str(beside.enqueue(tx, item, "reviewer", NOW)))
        except sa.exc.OperationalError as error:
            came_to.add(str(error.orig))

    sa.event.listen(new.engine, "before_cursor_execute", write)
    move_rows(old.engine, new.engine)
    sa.event.remove(new.engine, "before_cursor_execute", write)
    beside.engine.dispose()

    assert came_to == {"database is locked"}
    assert content(new) == content(old)


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_rows_are_moved_between_databases_of_one_kind(
    stores: tuple[SqlHostStore, SqlHostStore], tmp_path: Path, postgres_server: str, dialect: str
) -> None:
    """A move within SQLite or PostgreSQL is one like others, and the next job is a new one."""
    old, new = stores
    if dialect == "postgresql":
        move_rows(old.engine, new.engine)
        old = new
    with new_schema(postgres_server) as schema:
        url = schema if dialect == "postgresql" else f"sqlite:///{tmp_path / 'new.db'}"
        third = SqlHostStore(open_database(url))
        third.create_schema()
        move_rows(old.engine, third.engine)
        moved = content(third)
        with third.transaction() as tx:
            following = third.enqueue(tx, third.work_item(tx, "shop", "Wi-1"), "reviewer", NOW)
        third.engine.dispose()

    assert moved == content(old)
    assert following == 5


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_nothing_is_moved_onto_itself(
    stores: tuple[SqlHostStore, SqlHostStore], tmp_path: Path, dialect: str
) -> None:
    """A database under another spelling of its address is refused as its own successor."""
    one = stores[dialect == "postgresql"].engine
    if dialect == "sqlite":
        (tmp_path / "link.db").symlink_to(tmp_path / "orchestrator.db")
        other = open_database(f"sqlite:///{tmp_path}/link.db")
    else:
        other = open_database(
            one.url.update_query_dict({"application_name": "x"}).render_as_string()
        )

    with pytest.raises(RefusedError, match="the new database is the old one"):
        move_rows(one, other)
    other.dispose()


#: A database that keeps only the beginning of a text, as one does whose columns are too short.
CUT: Final = (
    "CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS"
    " 'BEGIN NEW.metadata = left(NEW.metadata, 9); RETURN NEW; END';"
    " CREATE TRIGGER cut BEFORE INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION cut()"
)

Spoil = Callable[[SqlHostStore, SqlHostStore], None]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda old, _: old.claim_next(NOW, "somebody"), r"jobs are in work \(1\)"),
        (lambda _, new: new.add_repository("bank", "/srv/bank"), "has repositories already"),
        (
            lambda old, _: change(old, "UPDATE jobs SET claimed_by = :text", text="a\0b"),
            "cannot hold a row of jobs",
        ),
        (lambda _, new: change(new, CUT), "changed rows of jobs as they were written"),
    ],
    ids=["in work", "not empty", "unfit", "altered"],
)
def test_what_cannot_be_moved_whole_is_not_moved(
    stores: tuple[SqlHostStore, SqlHostStore], spoil: Spoil, words: str
) -> None:
    """A move that is refused says why, and leaves both databases as they were."""
    spoil(*stores)
    before = [content(store) for store in stores]

    with pytest.raises(RefusedError, match=words):
        move_rows(*(store.engine for store in stores))
    assert [content(store) for store in stores] == before

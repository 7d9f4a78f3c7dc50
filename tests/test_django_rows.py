"""Job rows in a Django model's table: in its own database, over its own connection."""

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import django
import psycopg
import pytest
import sqlalchemy as sa
from django.conf import settings
from django.db import OperationalError, connections, models, transaction
from django.db.backends.signals import connection_created
from django.test import override_settings

import postgres
from conftest import NO_POSTGRESQL
from forked import answer_of_fork
from staging_fsm.core.errors import ConfigInvalidError, SnapshotRefusedError
from staging_fsm.core.machine import step
from staging_fsm.core.snapshot import Snapshot, fresh_snapshot
from staging_fsm.core.spec import INITIAL, Event
from staging_fsm.core.times import format_time
from staging_fsm.core.trail import walk
from staging_fsm.effects.clock import SystemClock
from staging_fsm.effects.django_rows import DjangoRows
from staging_fsm.host.database import open_database
from staging_fsm.host.store import SqlHostStore, WorkItem

#: A host with two databases, whose jobs are not in the default one.
USING = "jobs"


@pytest.fixture
def databases(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Return Django's settings of databases, of which "default" is an empty one."""
    if not settings.configured:
        settings.configure(DATABASES={}, USE_TZ=True)
        django.setup()
    before = dict(connections.settings)
    connections.settings |= configured("default", f"sqlite:///{tmp_path}/other.db")
    yield connections.settings
    connections.close_all()
    for alias in ("default", USING):
        if hasattr(connections._connections, alias):
            del connections[alias]
    connections.settings.clear()
    connections.settings |= before


def configured(alias: str, url: str) -> dict[str, Any]:
    """Return Django's settings of the database at `url`."""
    address = sa.make_url(url)
    is_sqlite = address.get_backend_name() == "sqlite"
    told = {
        "ENGINE": f"django.db.backends.{'sqlite3' if is_sqlite else 'postgresql'}",
        "NAME": address.database,
        "USER": address.username or "",
        "PASSWORD": address.password or "",
        "HOST": address.query.get("host", address.host or ""),
        "PORT": address.query.get("port", str(address.port or "")),
    }
    known: dict[str, Any] = connections.configure_settings({"default": {}, alias: told})
    return {alias: known[alias]}


def schema_of(url: str) -> str:
    """Return the schema in which connections to `url` look."""
    return str(sa.make_url(url).query["options"]).rpartition("=")[2]


def rows_at(url: str, databases: dict[str, Any], schema: str | None = None) -> DjangoRows:
    """Return rows over a host's table with one job, as Django sees it."""
    store = SqlHostStore(open_database(url))
    store.create_schema()
    store.add_repository("shop", Path())
    store.add_work_item(
        WorkItem("shop", "WI-1", "deploy-staging", 1, None), "deployer", SystemClock().now()
    )
    store.engine.dispose()
    databases |= configured(USING, url)
    model = SimpleNamespace(_meta=SimpleNamespace(db_table="jobs"))
    return DjangoRows(model, using=USING, schema=schema)


@contextlib.contextmanager
def rows_on_server(
    url: str, databases: dict[str, Any]
) -> Iterator[tuple[DjangoRows, "psycopg.Connection[Any]"]]:
    """Yield rows over such a table in PostgreSQL, and a connection beside Django's."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as beside:
        schema = beside.execute("SELECT current_schema()").fetchone()
        assert schema is not None
        yield rows_at(url, databases, schema[0]), beside


def first() -> Snapshot:
    """Return an attempt as it is first stored."""
    row = step(INITIAL, Event.RUNNER_DECLINED)
    return walk(fresh_snapshot("1-a", "w"), row, format_time(SystemClock().now()), "why", "w", {})


def test_transaction_is_one_of_the_models_own_database(
    tmp_path: Path, databases: dict[str, Any]
) -> None:
    """What a transaction that raises has stored is undone, in whatever database the jobs are."""
    rows = rows_at(f"sqlite:///{tmp_path}/jobs.db", databases)

    def stores_and_raises() -> None:
        with rows.transaction() as tx:
            rows.save(1, first(), tx)
            message = "the gate contradicts the verdict"
            raise RuntimeError(message)

    with pytest.raises(RuntimeError, match="contradicts"):
        stores_and_raises()

    assert rows.load(1).document is None
    saved = first()
    rows.save(1, saved)
    assert rows.load(1).snapshot() == saved


def test_gate_that_has_rows_read_in_its_own_way_changes_nothing_for_django(
    tmp_path: Path, databases: dict[str, Any]
) -> None:
    """A row factory that a gate sets on the driver's connection of Django ends with its turn."""
    rows = rows_at(f"sqlite:///{tmp_path}/jobs.db", databases)

    with rows.transaction() as tx:
        tx.connection.connection.row_factory = lambda _cursor, _row: {}
        rows.save(1, first(), tx)

    assert rows.load(1).snapshot() is not None
    assert connections[USING].connection.row_factory is None


def test_transaction_of_the_hosts_outlives_a_look_at_its_job(
    tmp_path: Path, databases: dict[str, Any]
) -> None:
    """What a host writes in a transaction of its own is kept, though it launches a job there."""
    rows = rows_at(f"sqlite:///{tmp_path}/jobs.db", databases)
    with transaction.atomic(using=USING):
        with connections[USING].cursor() as cursor:
            cursor.execute("UPDATE work_items SET stage = 'review'")
        rows.load(1)
        with pytest.raises(RuntimeError, match="durable"):
            rows.save(1, first())

    with connections[USING].cursor() as cursor:
        cursor.execute("SELECT stage FROM work_items")
        assert cursor.fetchall() == [("review",)]


def test_each_thread_has_a_connection_of_its_own(tmp_path: Path, databases: dict[str, Any]) -> None:
    """A Django host may launch its jobs in threads: none works with the connection of another."""
    rows = rows_at(f"sqlite:///{tmp_path}/jobs.db", databases)
    rows.check()

    def save() -> Snapshot | None:
        try:
            rows.save(1, first())
            return rows.load(1).snapshot()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        saved = pool.submit(save).result()

    assert saved is not None
    assert rows.load(1).snapshot() == saved


def test_table_is_looked_at_with_the_password_that_django_has(databases: dict[str, Any]) -> None:
    """A host whose PostgreSQL asks for a password tells it to Django, and to nobody else."""
    if postgres.binaries() is None:
        pytest.skip(NO_POSTGRESQL)
    with postgres.own_server() as server:
        server.ask_for_password("till")
        server.start()
        with psycopg.connect(server.url, autocommit=True) as beside:
            beside.execute("CREATE ROLE till SUPERUSER LOGIN PASSWORD 'open sesame'")
        url = server.url.replace("//postgres@", "//till:open%20sesame@")
        rows = rows_at(url, databases)
        rows.check()

        assert rows.load(1).id == 1
        connections[USING].close()


def test_table_is_looked_at_where_the_settings_say_as_text(databases: dict[str, Any]) -> None:
    """A port that is written as text, as in Django's own documents, is the port of the server."""
    if postgres.binaries() is None:
        pytest.skip(NO_POSTGRESQL)
    with postgres.own_server() as server:
        server.start(port="5433")
        rows = rows_at(server.url, databases)
        rows.check()

        assert connections[USING].settings_dict["PORT"] == "5433"
        assert rows.load(1).id == 1
        connections[USING].close()


def test_table_is_looked_at_in_a_file_that_the_settings_name_by_its_path(
    tmp_path: Path, databases: dict[str, Any]
) -> None:
    """A database that is named as `startproject` does it, by a path that is no text, is found."""
    file = tmp_path / "jobs.db"
    rows_at(f"sqlite:///{file}", databases)
    connections[USING].close()
    del connections[USING]
    databases[USING]["NAME"] = file
    rows = DjangoRows(SimpleNamespace(_meta=SimpleNamespace(db_table="jobs")), using=USING)
    rows.check()

    assert rows.load(1).id == 1


@pytest.mark.parametrize("pool", [None, {"min_size": 1, "max_size": 1}])
@pytest.mark.parametrize("is_told", ["in the settings", "when it connects"])
def test_table_is_looked_at_where_django_looks(
    databases: dict[str, Any], postgres_url: str, is_told: str, pool: dict[str, int] | None
) -> None:
    """Whatever the settings say of a connection, or a receiver does to it, holds for the look."""
    rows_at(postgres_url, databases)
    place = f"search_path={schema_of(postgres_url)}"
    databases[USING]["OPTIONS"] = {"pool": pool} if pool else {}

    def look_there(connection: Any, **_told: object) -> None:
        connection.cursor().execute(f"SET {place}")

    if is_told == "when it connects":
        connection_created.connect(look_there)
    else:
        databases[USING]["OPTIONS"]["options"] = f"-c {place}"
    try:
        rows = DjangoRows(SimpleNamespace(_meta=SimpleNamespace(db_table="jobs")), using=USING)
        rows.check()

        assert rows.load(1).id == 1
    finally:
        connection_created.disconnect(look_there)
        connections[USING].close()
        connections[USING].close_pool()


def test_table_in_memory_is_looked_at(databases: dict[str, Any]) -> None:
    """A database in memory that connections share, as in Django's own tests, is found."""
    name = "file:jobs_in_memory?mode=memory&cache=shared"
    databases |= configured(USING, "sqlite://")
    databases[USING]["NAME"] = name
    with connections[USING].cursor() as cursor:
        cursor.execute(
            "CREATE TABLE jobs (id INTEGER PRIMARY KEY, repo TEXT, work_item TEXT, stage TEXT,"
            " status TEXT, not_before TEXT, metadata TEXT)"
        )
        cursor.execute("INSERT INTO jobs (id, repo, work_item) VALUES (1, 'shop', 'WI-1')")
    rows = DjangoRows(SimpleNamespace(_meta=SimpleNamespace(db_table="jobs")), using=USING)
    rows.check()

    assert rows.load(1).id == 1


def test_nothing_is_stored_within_a_transaction_of_the_hosts(
    tmp_path: Path, databases: dict[str, Any]
) -> None:
    """What a transaction around it all could take back is no run that was counted."""
    rows = rows_at(f"sqlite:///{tmp_path}/jobs.db", databases)
    with transaction.atomic(using=USING), pytest.raises(RuntimeError, match="durable"):
        rows.save(1, first())

    assert rows.load(1).document is None


def cut_off(rows: DjangoRows, beside: psycopg.Connection[Any]) -> None:
    """Have the server drop the connection over which Django has just read."""
    rows.load(1)
    pid = connections[USING].connection.info.backend_pid
    beside.execute("SELECT pg_terminate_backend(%s, 60000)", (pid,))


def test_first_write_after_a_restart_is_stored(
    databases: dict[str, Any], postgres_url: str
) -> None:
    """A verdict is not lost to a connection that was dropped while its suite ran."""
    with rows_on_server(postgres_url, databases) as (rows, beside):
        cut_off(rows, beside)
    saved = first()
    rows.save(1, saved)

    assert rows.load(1).snapshot() == saved


@pytest.mark.parametrize("pool", [False, True])
def test_forked_worker_speaks_over_no_connection_of_its_parent(
    databases: dict[str, Any], postgres_url: str, *, pool: bool
) -> None:
    """A Django host may fork after its first look, with a pool or without: each has a session."""
    with rows_on_server(postgres_url, databases) as (rows, _):
        pass
    kept = {"OPTIONS": {"pool": {"min_size": 1, "max_size": 1}}} if pool else {"CONN_MAX_AGE": None}
    databases[USING] |= kept
    rows.check()

    def session() -> object:
        with rows.transaction() as tx:
            return tx.scalar(sa.text("SELECT pg_backend_pid()"))

    before = session()
    if pool:
        # It is in the pool again, from which the other process would take it.
        connections[USING].close()
    answer = answer_of_fork(session)

    assert session() == before
    assert answer.isdecimal()
    assert answer != str(before)
    connections[USING].close()
    connections[USING].close_pool()


def test_connection_to_sqlite_is_djangos_own_after_a_fork(
    tmp_path: Path, databases: dict[str, Any]
) -> None:
    """What Django has of SQLite is left to it: a database in memory may be all that there is."""
    rows = rows_at(f"sqlite:///{tmp_path}/jobs.db", databases)
    rows.check()
    held = connections[USING].connection
    assert held is not None

    assert answer_of_fork(lambda: connections[USING].connection is held) == "True"


def test_statement_that_the_table_refuses_is_told_in_a_sentence(
    databases: dict[str, Any], postgres_url: str
) -> None:
    """Over Django's connection, too, what cannot be compared is said at start, before a run."""
    with rows_on_server(postgres_url, databases) as (rows, beside):
        beside.execute("ALTER TABLE jobs DROP status CASCADE, ADD status boolean")

    with pytest.raises(ConfigInvalidError, match="needed: operator does not exist: boolean = "):
        rows.check()


def test_condition_that_sqlite_cannot_read_is_told_in_a_sentence(
    tmp_path: Path, databases: dict[str, Any]
) -> None:
    """Over Django's connection, too, a mistyped name in a condition is said at start."""
    rows_at(f"sqlite:///{tmp_path}/jobs.db", databases)
    model = SimpleNamespace(_meta=SimpleNamespace(db_table="jobs"))

    with pytest.raises(ConfigInvalidError, match="needed: no such column: tenat; correct"):
        DjangoRows(model, using=USING, where="tenat = 7").check()


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Return what has this process live in another time zone."""

    def live_in(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield live_in
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("use_tz", "local", "of_database", "kept"),
    [
        (False, "America/New_York", None, "this machine"),
        # In summer it is another one.
        (False, "Europe/London", None, "this machine"),
        (False, "UTC", None, None),
        (True, "Europe/Berlin", None, None),
        (True, "UTC", "Europe/Berlin", "Europe/Berlin"),
        (True, "Europe/Berlin", "UTC", None),
    ],
)
def test_due_times_that_django_keeps_in_another_zone_are_refused(
    tmp_path: Path,
    databases: dict[str, Any],
    zone: Callable[[str], None],
    use_tz: bool,  # noqa: FBT001  # a parameter
    local: str,
    of_database: str | None,
    kept: str | None,
) -> None:
    """Where Django takes due times in UTC for those of a wall clock it is told at start."""
    rows_at(f"sqlite:///{tmp_path}/jobs.db", databases)
    databases[USING]["TIME_ZONE"] = of_database
    zone(local)
    due = models.DateTimeField()
    due.set_attributes_from_name("not_before")
    model = SimpleNamespace(_meta=SimpleNamespace(db_table="jobs", fields=[due]))

    with override_settings(USE_TZ=use_tz):
        with pytest.raises(ConfigInvalidError) if kept else contextlib.nullcontext() as told:
            DjangoRows(model, using=USING).check()
        # Numbers, and a host without due times, are the same in every zone.
        DjangoRows(model, using=USING, constants={"not_before": None}).check()
        model._meta.fields = []
        DjangoRows(model, using=USING).check()

    if kept:
        assert told is not None
        [problem] = told.value.problems
        assert f"has no time zone, and Django keeps the time of {kept} there" in problem


@pytest.mark.parametrize("lasts_seconds", [0, None], ids=["one use", "for ever"])
def test_worker_outlives_a_restart_of_its_database(
    databases: dict[str, Any], postgres_url: str, lasts_seconds: float | None
) -> None:
    """A connection that the server has dropped fails at most once: then there is a new one."""
    with rows_on_server(postgres_url, databases) as (rows, beside):
        databases[USING]["CONN_MAX_AGE"] = lasts_seconds
        cut_off(rows, beside)
    with contextlib.suppress(OperationalError):
        rows.load(1)

    assert rows.load(1).id == 1


def test_bytes_are_read_and_written_as_the_text_that_they_are(
    tmp_path: Path, databases: dict[str, Any]
) -> None:
    """Over Django's connection, too, bytes of JSON are metadata, and no bad row hides another."""
    rows = rows_at(f"sqlite:///{tmp_path}/jobs.db", databases)
    with connections[USING].cursor() as cursor:
        cursor.execute("UPDATE jobs SET metadata = CAST('{\"theirs\": 1}' AS BLOB)")
        columns = "repo, work_item, stage, agent, status, metadata, created_at, updated_at"
        values = "repo, work_item, stage, agent, status, X'ff', created_at, updated_at"
        cursor.execute(f"INSERT INTO jobs ({columns}) SELECT {values} FROM jobs")  # noqa: S608  # the test's own words
    rows.save(1, first())
    found = rows.unfinished()

    assert found[0].snapshot() is not None
    with pytest.raises(SnapshotRefusedError, match="no text in UTF-8"):
        found[1].snapshot()
    with connections[USING].cursor() as cursor:
        cursor.execute("SELECT metadata FROM jobs WHERE id = 1")
        assert cursor.fetchone()[0].startswith(b'{"theirs":1,')

"""What is asked of a long table is answered from the host's own indexes, whatever was counted."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from served import NOW
from staging_fsm.effects.clock import SystemClock
from staging_fsm.effects.rows import SqlRows
from staging_fsm.faces.queue import staging_runner_block
from staging_fsm.host.database import open_database
from staging_fsm.host.launcher import Host, staging_intercept
from staging_fsm.host.settings import load_host_settings
from staging_fsm.host.store import SqlHostStore, WorkItem
from staging_fsm.host.worker import Worker

FINISHED = 5_000
FILL = """
INSERT INTO jobs (repo, work_item, stage, agent, status, created_at, updated_at)
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :many)
SELECT 'shop', 'WI-1', 'deploy-staging', 'deployer', 'done', '', '' FROM n
"""
#: Before the database counted anything; after it found nothing but finished jobs; and after
#: it found a queued one among them.
COUNTED = ("never", "when all were done", "when one was queued")


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlHostStore]:
    """Return a store of each database."""
    url = f"sqlite:///{tmp_path}/host.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    store = SqlHostStore(open_database(url))
    store.create_schema()
    yield store
    store.engine.dispose()


def fill(store: SqlHostStore, counted: str) -> None:
    """Add many finished jobs and a queued one, and have them counted."""
    item = WorkItem("shop", "WI-1", "deploy-staging", 2, None)
    store.add_repository("shop", Path("/nowhere"))
    first = store.add_work_item(item, "deployer", NOW)
    with store.transaction() as tx:
        tx.execute(sa.text(FILL), {"many": FINISHED})
        store.finish_job(tx, first, NOW)
    if counted == "when all were done":
        analyze(store)
    with store.transaction() as tx:
        store.enqueue(tx, item, "deployer", NOW)
    if counted == "when one was queued":
        analyze(store)


def analyze(store: SqlHostStore) -> None:
    """Have the database count what is in the table."""
    with store.transaction() as tx:
        tx.execute(sa.text("ANALYZE"))


def plans(store: SqlHostStore, ask: Callable[[], object]) -> list[str]:
    """Return how the database goes about each statement on jobs that `ask` makes."""
    asked: list[tuple[str, Any]] = []

    def keep(_conn: Any, _cursor: Any, text: str, values: Any, _context: Any, _many: bool) -> None:  # noqa: FBT001  # SQLAlchemy's signature
        if "FROM jobs" in text and "RETURNING" not in text.partition("FROM jobs")[0]:
            asked.append((text, values))

    sa.event.listen(store.engine, "before_cursor_execute", keep)
    ask()
    sa.event.remove(store.engine, "before_cursor_execute", keep)
    is_sqlite = store.engine.dialect.name == "sqlite"
    explain = "EXPLAIN QUERY PLAN" if is_sqlite else "EXPLAIN"
    with store.engine.connect() as connection:
        return [
            "\n".join(
                str(row[-1]) for row in connection.exec_driver_sql(f"{explain} {text}", values)
            )
            for text, values in asked
        ]


@pytest.mark.parametrize("counted", COUNTED)
def test_no_question_scans_the_table(store: SqlHostStore, counted: str) -> None:
    """Claim, recovery and the queue's page find their rows by an index, also after ANALYZE."""
    fill(store, counted)
    clock, rows = SystemClock(), SqlRows(store.engine)
    staging = staging_intercept(store, clock, {})
    worker = Worker(Host(store, load_host_settings({}), clock, staging), "w")
    rows.unfinished()

    unfinished, newest = plans(store, lambda: staging_runner_block(rows, {}, NOW))
    recovery = plans(store, worker.recover)
    claim = plans(store, lambda: store.claim_next(clock.now(), "w"))

    assert len(recovery) == 2
    assert len(claim) == 1
    for plan in (unfinished, *recovery, *claim):
        assert "jobs_by_status" in plan
        assert "SCAN jobs" not in plan
        assert "Seq Scan" not in plan
    # The newest rows: read from the end of the primary key, and no further than the limit.
    assert newest.startswith(("SCAN jobs", "Limit"))
    assert "TEMP B-TREE" not in newest
    assert "Sort" not in newest

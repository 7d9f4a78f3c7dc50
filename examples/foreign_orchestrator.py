"""A small orchestrator of somebody else: plain sqlite3, its own table, columns and words."""

# ruff: noqa: INP001, T201  # a script, and what it prints is its face

import os
import shlex
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine

from staging_fsm import JobRow, Place, SqlRows, StagingIntercept

SCHEMA = """CREATE TABLE IF NOT EXISTS tasks (
    task_id INTEGER PRIMARY KEY,
    project TEXT NOT NULL,
    ticket  TEXT NOT NULL,
    step    TEXT NOT NULL,
    state   TEXT NOT NULL DEFAULT 'waiting',  -- waiting, busy, finished, dropped
    due     INTEGER NOT NULL DEFAULT 0,       -- seconds since the epoch
    extra   TEXT                              -- JSON, shared by all who work on the task
)"""


def folder_of(project: str, ticket: str) -> Path:
    """Return where the agents of a ticket leave what they write."""
    return Path("tickets", project, ticket).absolute()


def end_task(db: sqlite3.Connection, task_id: int, project: str, ticket: str) -> bool:
    """Ask the gate, end the task, queue the next step; return whether the gate opened."""
    log = folder_of(project, ticket) / "15-staging-log.md"
    opened = log.is_file() and log.read_text().startswith("---\nstaging_status: SUCCESS\n")
    step = "deploy" if opened else "development"
    db.execute("UPDATE tasks SET state = 'finished' WHERE task_id = ?", (task_id,))
    values = (project, ticket, step)
    db.execute("INSERT INTO tasks (project, ticket, step) VALUES (?, ?, ?)", values)
    print(f"{ticket}: deploy-staging -> {step}")
    return opened


def staging_runner() -> StagingIntercept:
    """Return the runner for the table `tasks`, with our names for its own."""
    rows = SqlRows(
        create_engine("sqlite:///tasks.db"),
        table="tasks",
        columns={
            "id": "task_id",
            "repo": "project",
            "work_item": "ticket",
            "stage": "step",
            "status": "state",
            "not_before": "due",
            "metadata": "extra",
        },
        statuses={"queued": "waiting", "running": "busy", "cancelled": "dropped"},
    )

    def gate(row: JobRow, tx: Any) -> bool:
        return end_task(tx.connection.driver_connection, row.id, row.repo, row.work_item)

    def place(row: JobRow) -> Place:
        return Place(Path(row.repo).absolute(), folder_of(row.repo, row.work_item))

    return StagingIntercept.for_host(rows, gate, place)


def launch(db: sqlite3.Connection, task: sqlite3.Row, staging: StagingIntercept) -> None:
    """Have the runner or the LLM deployer work on a claimed task, then end it."""
    if staging.launch(task["task_id"], task["extra"]):
        return
    folder = folder_of(task["project"], task["ticket"])
    folder.mkdir(parents=True, exist_ok=True)
    agent = [*shlex.split(os.environ["DEPLOYER"]), str(folder)]
    subprocess.run(agent, cwd=task["project"], check=False)
    with db:
        end_task(db, task["task_id"], task["project"], task["ticket"])


def claim(db: sqlite3.Connection) -> sqlite3.Row | None:
    """Take the next staging task that is due, if there is one."""
    with db:
        found: sqlite3.Row | None = db.execute(
            "UPDATE tasks SET state = 'busy' WHERE task_id = (SELECT task_id FROM tasks"
            " WHERE step = 'deploy-staging' AND state = 'waiting' AND due <= ? LIMIT 1)"
            " RETURNING *",
            (time.time(),),
        ).fetchone()
    return found


def main() -> None:
    """Queue the tickets that are named, then work until nothing is due."""
    db = sqlite3.connect("tasks.db")
    db.row_factory = sqlite3.Row
    with db:
        db.execute(SCHEMA)
        for name in sys.argv[1:]:
            values = (*name.split("/"), "deploy-staging")
            db.execute("INSERT INTO tasks (project, ticket, step) VALUES (?, ?, ?)", values)
    staging = staging_runner()
    staging.recover()
    while (task := claim(db)) is not None:
        launch(db, task, staging)


if __name__ == "__main__":
    main()

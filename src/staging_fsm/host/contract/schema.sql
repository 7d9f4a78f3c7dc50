-- The reference host's tables. Times are ISO 8601 in UTC with microseconds and
-- a trailing Z, so that text order is time order.

CREATE TABLE repositories (
    name        TEXT PRIMARY KEY,
    path        TEXT NOT NULL
);

CREATE TABLE work_items (
    repo               TEXT NOT NULL REFERENCES repositories (name),
    id                 TEXT NOT NULL,
    stage              TEXT NOT NULL,
    developer_retries  INTEGER NOT NULL,    -- how many are left
    blocked_reason     TEXT,                -- not null: blocked for a person
    created_at         TEXT NOT NULL,
    updated_at         TEXT NOT NULL,
    PRIMARY KEY (repo, id)
);

-- One row per launch.
CREATE TABLE jobs (
    id          INTEGER PRIMARY KEY,
    repo        TEXT NOT NULL,
    work_item   TEXT NOT NULL,
    stage       TEXT NOT NULL,
    agent       TEXT NOT NULL,
    status      TEXT NOT NULL CHECK (status IN ('queued', 'running', 'done', 'cancelled')),
    not_before  TEXT,                       -- null: as soon as possible
    claimed_by  TEXT,                       -- the worker process that has it
    metadata    TEXT NOT NULL DEFAULT '{}', -- a JSON object, shared by all who work on the job
    created_at  TEXT NOT NULL,
    updated_at  TEXT NOT NULL,
    FOREIGN KEY (repo, work_item) REFERENCES work_items (repo, id)
);

CREATE INDEX jobs_by_status ON jobs (status, not_before);
CREATE INDEX jobs_by_work_item ON jobs (repo, work_item);

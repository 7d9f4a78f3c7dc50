"""The audit: whatever was altered by hand, in a row, a history, an artifact or a log, is told."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner

from archive import SUITES, Archive, jobs, variables
from hosts import REPO, git
from staging_fsm.core.jobs import QUEUED, STAGE, JobRow
from staging_fsm.core.snapshot import Artifact
from staging_fsm.core.spec import State
from staging_fsm.core.suites import SuiteEntry
from staging_fsm.core.times import format_time
from staging_fsm.effects.files import sha256_of_text
from staging_fsm.effects.rows import SqlRows
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.faces import audit as auditing
from staging_fsm.faces.audit import Audit, Finding, Severity, audit_job, audit_table
from staging_fsm.faces.cli import main
from staging_fsm.faces.exits import ExitCode
from staging_fsm.faces.session import AttemptDriver, one_suite, open_session, staging_job
from staging_fsm.host.contract.gate import ARTIFACT_NAME
from staging_fsm.host.move import move_rows
from staging_fsm.host.store import Went
from trails import ATTEMPTS, altered, at, document, leaves


def test_what_ran_is_sound(archive: Archive) -> None:
    """Attempts that nobody touched are passed over in silence, and counted."""
    seen = archive.audit()

    assert seen.findings == []
    assert seen.states == {state: 1 for _, state in SUITES.values()}
    assert (seen.walked["T01"], seen.walked["T09"], seen.walked["T11"]) == (3, 1, 1)


@pytest.mark.parametrize("state", [state for _, state in SUITES.values()])
def test_every_field_altered_in_the_row_is_found(archive: Archive, state: State) -> None:
    """Each field of a stored attempt, altered by one statement of SQL, is found."""
    job_id = jobs(archive)[state]
    stored = archive.stored(job_id)
    unseen = []
    for path in leaves(stored):
        name = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)[1:]
        before = at(stored, path)
        other = next(value for value in altered(before) if value != before)
        archive.set(job_id, name, other)
        if not audit_job(archive.session.rows, archive.session.store, job_id).findings:
            unseen.append(name)
        archive.set(job_id, name, before)

    assert unseen == []
    assert archive.deviations() == []


OTHERS = (
    "UPDATE jobs SET metadata = (SELECT metadata FROM jobs WHERE work_item = 'WI-1'"
    " AND stage = 'deploy-staging') WHERE id = :id"
)
CUT_OFF = (
    "UPDATE jobs SET metadata = json_set(json_remove(metadata, '$.staging_runner.history[2]'),"
    " '$.staging_runner.state', 'VERDICT_PASSED', '$.staging_runner.version', 2,"
    " '$.staging_runner.artifact', NULL) WHERE id = :id"
)
CUT_BACK = (
    "UPDATE jobs SET metadata = json_set(json_remove(metadata, '$.staging_runner.history[6]',"
    " '$.staging_runner.history[5]', '$.staging_runner.history[4]',"
    " '$.staging_runner.history[3]', '$.staging_runner.runs[1]'),"
    " '$.staging_runner.state', 'DEFERRED', '$.staging_runner.version', 3,"
    " '$.staging_runner.artifact', NULL, '$.staging_runner.next_run_at',"
    " json_extract(metadata, '$.staging_runner.runs[1].due_at')) WHERE id = :id"
)
LONGER_NUMBER = (
    "UPDATE jobs SET metadata = json_set(metadata, '$.staging_runner.attempt_id', id || '0-f')"
    " WHERE id = :id"
)
ROW: dict[str, tuple[State, str, str]] = {
    "a job that is queued again": (
        State.ADVANCED,
        "UPDATE jobs SET status = 'queued' WHERE id = :id",
        "job_status: the attempt is ADVANCED, and the job is queued",
    ),
    "a job that is cancelled afterwards": (
        State.ROLLED_BACK,
        "UPDATE jobs SET status = 'cancelled' WHERE id = :id",
        "job_status: the attempt is ROLLED_BACK, and the job is cancelled",
    ),
    "a stage that has no attempts": (
        State.ADVANCED,
        "UPDATE jobs SET stage = 'review' WHERE id = :id",
        "row: it holds an attempt, and its stage is review",
    ),
    "an attempt under another work item": (
        State.ADVANCED,
        "UPDATE jobs SET work_item = 'WI-2' WHERE id = :id",
        "artifact: the row is of work item 'WI-2', and the artifact of another",
    ),
    "an attempt copied into another job": (
        State.ROLLED_BACK,
        OTHERS,
        "row: it holds attempt",
    ),
    "an attempt of a job whose number begins alike": (
        State.ADVANCED,
        LONGER_NUMBER,
        "0-f, which is of job",
    ),
    "metadata that is cut short within our key": (
        State.ADVANCED,
        "UPDATE jobs SET metadata = substr(metadata, 1, 9) WHERE id = :id",
        "row_refused: the row's metadata is no JSON",
    ),
    "broken metadata": (
        State.ADVANCED,
        "UPDATE jobs SET metadata = replace(metadata, '}}', '}') WHERE id = :id",
        "row_refused: the row's metadata is no JSON",
    ),
    "an end that was cut off": (
        State.ADVANCED,
        CUT_OFF,
        "job_status: the job is done, and the attempt has not ended: it is VERDICT_PASSED",
    ),
    "an end that was cut off up to a wait": (
        State.FAILED_CLOSED,
        CUT_BACK,
        "job_status: the job is done, and the attempt has not ended: it is DEFERRED",
    ),
    "a work item moved forwards after a failure": (
        State.ROLLED_BACK,
        "UPDATE jobs SET stage = 'deploy' WHERE work_item = 'WI-2' AND id > :id",
        "no_silent_advance: the work item moved forwards, but the attempt is ROLLED_BACK",
    ),
    "a work item that was set forwards after a failure": (
        State.ROLLED_BACK,
        "UPDATE work_items SET stage = 'deploy' WHERE id = 'WI-2' AND :id",
        "no_silent_advance: the work item moved forwards, but the attempt is ROLLED_BACK",
    ),
    "a work item that was set back beside the job that waits": (
        State.ADVANCED,
        "UPDATE work_items SET stage = 'review' WHERE id = 'WI-1' AND :id",
        "its work item is at review, and its last job, which has not ended, at deploy",
    ),
    "a work item that was set aside beside the job that waits": (
        State.ROLLED_BACK,
        "UPDATE work_items SET stage = 'review' WHERE id = 'WI-2' AND :id",
        "its work item is at review, and its last job, which has not ended, at development",
    ),
    "a job in work at another stage than its work item": (
        State.ADVANCED,
        "UPDATE jobs SET status = 'running', stage = 'review' WHERE stage = 'deploy' AND :id",
        "its work item is at deploy, and its last job, which has not ended, at review",
    ),
    "a work item moved back after a pass": (
        State.ADVANCED,
        "UPDATE jobs SET stage = 'development' WHERE work_item = 'WI-1' AND id > :id",
        "work_item: the attempt is ADVANCED, and its work item went to development",
    ),
}


@pytest.mark.parametrize(("state", "statement", "expected"), ROW.values(), ids=ROW)
def test_altered_row_is_told(archive: Archive, state: State, statement: str, expected: str) -> None:
    """What somebody did to a job's row is told in a sentence that names the job and what to do."""
    job_id = jobs(archive)[state]
    archive.sql(statement.replace(":id", str(job_id)))
    found = [finding for finding in archive.deviations() if finding.job_id == job_id]

    assert any(expected in finding.sentence for finding in found), found
    assert all(finding.sentence.startswith(f"job {job_id} ({REPO} WI-") for finding in found)
    assert all(finding.to_do for finding in found)


@pytest.mark.parametrize("status", ["queued", "done"])
@pytest.mark.parametrize("between", [0, 1], ids=["at once", "after what came next"])
def test_deploy_job_after_a_failure_is_told(archive: Archive, status: str, between: int) -> None:
    """A job of the next stage without another staging before it is told, wherever it stands."""
    job_id = jobs(archive)[State.ROLLED_BACK]
    archive.sql("UPDATE jobs SET status = 'cancelled' WHERE work_item = 'WI-2' AND id > ?", job_id)
    for stage in [*["review"] * between, "deploy"]:
        archive.queue("WI-2", stage, status)
    told = [finding.job_id for finding in archive.deviations() if "forwards" in finding.problem]

    assert told == [job_id]


#: What a host may do to rows that its work items have left behind, each to one row or more.
REMOVALS = {
    "nothing": "UPDATE jobs SET id = id",
    "what was cancelled": "DELETE FROM jobs WHERE status = 'cancelled'",
    "all other stages": "DELETE FROM jobs WHERE stage <> 'deploy-staging'",
    "all that have ended of other stages": (
        "DELETE FROM jobs WHERE stage <> 'deploy-staging' AND status IN ('done', 'cancelled')"
    ),
}


@pytest.mark.parametrize("statement", REMOVALS.values(), ids=REMOVALS)
def test_work_item_that_was_staged_again_is_sound(archive: Archive, statement: str) -> None:
    """A work item staged again says nothing of the attempt before, whichever rows a host keeps."""
    for work_item, suite in (("WI-1", "true"), ("WI-1", "exit 7"), ("WI-2", "true")):
        archive.stage(staging_job(archive.session, REPO, work_item), suite)
    archive.sql_of_many(statement)

    assert archive.deviations() == []


@pytest.mark.parametrize("after", ["post-deploy", "done", "development"])
def test_work_item_that_went_on_after_a_pass_is_sound(archive: Archive, after: str) -> None:
    """Where a work item went after its deployment says nothing of its staging."""
    archive.sql_of_many("DELETE FROM jobs WHERE stage = 'deploy'")
    if after != "done":
        archive.queue("WI-1", after, "queued")
    archive.sql("UPDATE work_items SET stage = ? WHERE id = 'WI-1'", after)

    assert archive.deviations() == []


@pytest.mark.parametrize("suites", [("true", "exit 7"), ("exit 7", "true")])
@pytest.mark.parametrize("is_reversed", [False, True], ids=["in turn", "the second first"])
def test_two_jobs_that_were_queued_at_once_are_sound(
    archive: Archive, suites: tuple[str, str], *, is_reversed: bool
) -> None:
    """Of two staging jobs of one work item at once, each is held against its own next job."""
    first = staging_job(archive.session, REPO, "WI-6")
    both = [first, archive.queue("WI-6", STAGE, "queued")]
    for job_id, suite in zip(reversed(both) if is_reversed else both, suites, strict=True):
        archive.stage(job_id, suite)

    assert archive.deviations() == []


#: What a host may remove of what came after an attempt that did not pass, :id, whose work item
#: then passed in another.
GONE = {
    "the job that passed": (
        "DELETE FROM jobs WHERE id = (SELECT MAX(id) FROM jobs WHERE stage = 'deploy-staging')"
    ),
    "all that came later": "DELETE FROM jobs WHERE work_item = 'WI-2' AND id > :id",
}


@pytest.mark.parametrize("statement", GONE.values(), ids=GONE)
@pytest.mark.parametrize("is_cancelled", [False, True], ids=["failed", "cancelled"])
def test_work_item_whose_later_jobs_are_gone_is_unclear(
    archive: Archive, tmp_path: Path, statement: str, *, is_cancelled: bool
) -> None:
    """A work item that may have passed in a job that is gone is told as unclear, with what to do.

    Nobody is told to stop what may be sound, and nobody that it is: a watched exit code is its own.
    """
    job_id = jobs(archive)[State.ROLLED_BACK]
    if is_cancelled:
        job_id = staging_job(archive.session, REPO, "WI-2")
        archive.session.staging(suites=one_suite(SuiteEntry(("true",)))).cancel(job_id)
    archive.stage(staging_job(archive.session, REPO, "WI-2"), "true")
    sound = archive.deviations()
    archive.sql_of_many(statement.replace(":id", str(job_id)))
    # Of another work item, and in SQLite with a number that was another's.
    archive.queue("WI-1", "review", "done")
    seen = archive.audit()
    told = {(found.job_id, found.severity, found.check) for found in seen.findings}
    page = tmp_path / "report.html"
    ended = archive.call("--verify", "--html", str(page))

    assert sound == []
    assert (job_id, Severity.UNCLEAR, "no_silent_advance") in told
    assert seen.counts[Severity.DEVIATION] == 0
    assert ended.exit_code == 3
    assert archive.call().exit_code == 0
    assert f", {seen.counts[Severity.UNCLEAR]} unclear\n" in ended.output
    assert "its later jobs that moved it are gone, or it was moved by hand" in ended.output
    assert ">UNCLEAR<" in page.read_text()


#: What somebody may do to WI-2 by hand that no removed job can have done.
BY_HAND = {
    "a job for which no number is free": (
        "UPDATE work_items SET stage = 'deploy', updated_at = '9' WHERE id = 'WI-2'",
        "UPDATE jobs SET status = 'cancelled' WHERE stage = 'development' AND work_item = 'WI-2'",
        (
            "INSERT INTO jobs SELECT id + 1, repo, 'WI-2', 'deploy', '', 'done', NULL, NULL, '{}',"
            " '8', '8' FROM jobs WHERE id = (SELECT MAX(id) FROM jobs)"
        ),
    ),
    "a job of which its work item does not tell": (
        "UPDATE jobs SET status = 'cancelled' WHERE stage = 'development' AND work_item = 'WI-2'",
        (
            "INSERT INTO jobs SELECT 99, repo, 'WI-2', 'deploy', agent, 'done', NULL, NULL, '{}',"
            " '9', '9' FROM jobs WHERE id = (SELECT MAX(id) FROM jobs)"
        ),
    ),
    "its next job, with another removed behind it": (
        "UPDATE work_items SET stage = 'deploy', updated_at = '9' WHERE id = 'WI-2'",
        (
            "UPDATE jobs SET stage = 'deploy', id = 99"
            " WHERE stage = 'development' AND work_item = 'WI-2'"
        ),
    ),
    "a work item whose last job waits": (
        "UPDATE work_items SET stage = 'deploy', updated_at = '9' WHERE id = 'WI-2'",
    ),
    "a work item that has not moved since": (
        "UPDATE work_items SET stage = 'deploy' WHERE id = 'WI-2'",
        "DELETE FROM jobs WHERE stage = 'development' AND work_item = 'WI-2'",
    ),
}


@pytest.mark.parametrize("statements", BY_HAND.values(), ids=BY_HAND)
def test_work_item_that_no_job_can_have_moved_deviates(
    archive: Archive, statements: tuple[str, ...]
) -> None:
    """Where no job can be gone, a work item that is further on than its attempt deviates."""
    job_id = jobs(archive)[State.ROLLED_BACK]
    for statement in statements:
        archive.sql_of_many(statement)
    told = _told(archive, job_id)

    assert (Severity.DEVIATION, "no_silent_advance") in told
    assert (Severity.UNCLEAR, "no_silent_advance") not in told
    assert archive.call("--verify").exit_code == 1


def test_work_item_without_an_attempt_is_not_looked_at(archive: Archive) -> None:
    """Of a work item that the runner never staged nothing is said, wherever it stands."""
    archive.sql_of_many(
        "INSERT INTO work_items SELECT repo, 'WI-9', 'deploy', 2, NULL, created_at, updated_at"
        " FROM work_items WHERE id = 'WI-1'"
    )
    archive.queue("WI-9", "deploy", "queued")

    assert archive.audit().findings == []


def test_deploy_job_that_was_queued_again_is_sound(archive: Archive) -> None:
    """What passed may be deployed though a later staging of the work item was cancelled."""
    deploy = jobs(archive)[State.ADVANCED] + 1
    job_id = staging_job(archive.session, REPO, "WI-1")
    archive.session.staging(suites=one_suite(SuiteEntry(("true",)))).cancel(job_id)
    later = format_time(archive.session.clock.now())
    archive.sql("UPDATE jobs SET status = 'done', updated_at = ? WHERE id = ?", later, deploy)
    archive.queue("WI-1", "post-deploy", "queued")
    archive.sql("UPDATE work_items SET stage = 'post-deploy' WHERE id = 'WI-1'")

    assert archive.deviations() == []


def test_staging_by_an_agent_is_no_word_on_the_attempt_before(archive: Archive) -> None:
    """After a failure an agent may stage the work item, and it may go on from there."""
    archive.sql_of_many("UPDATE jobs SET status = 'done'")
    archive.queue("WI-2", STAGE, "done")
    archive.queue("WI-2", "deploy", "done")
    archive.sql("UPDATE work_items SET stage = 'done' WHERE id = 'WI-2'")

    assert archive.deviations() == []


def test_cancelled_attempt_whose_job_was_ended_otherwise_is_told(archive: Archive) -> None:
    """The job of a cancelled attempt is cancelled: one that is done has had a gate or an agent."""
    job_id = staging_job(archive.session, REPO, "WI-4")
    archive.session.staging(suites=one_suite(SuiteEntry(("true",)))).cancel(job_id)
    sound = archive.deviations()
    archive.sql("UPDATE jobs SET status = 'done' WHERE id = ?", job_id)
    [finding] = archive.deviations()

    assert sound == []
    assert (finding.job_id, finding.check) == (job_id, "job_status")
    assert finding.problem == "the attempt is CANCELLED, and the job is done"


@pytest.mark.parametrize("name", ATTEMPTS)
def test_work_item_that_moved_forwards_is_told_of_all_that_did_not_advance(name: str) -> None:
    """A work item that moved forwards is told, unless its attempt advanced or an agent judged."""
    snapshot = ATTEMPTS[name]
    row = JobRow(7, REPO, "WI-1", STAGE, QUEUED, None, document(snapshot))
    _, found = auditing.examine(row, Went("deploy"))
    told = [finding.check for finding in found if "moved forwards" in finding.problem]
    sound = snapshot.state in (State.ADVANCED, State.LLM_FALLBACK)

    assert told == ([] if sound else ["no_silent_advance"])


def _swap(old: str, new: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(path.read_text().replace(old, new))


def _forge(path: Path, **facts: str) -> None:
    """Have an artifact say SUCCESS, and something else of what it tells."""
    text = path.read_text()
    for key, value in {"staging_status": "SUCCESS", **facts}.items():
        text = re.sub(rf"(?m)^( *{key}:) .*$", rf'\1 "{value}"', text, count=1)
    path.write_text(text)


def _make_anew(path: Path, name: str = "150-0123456789ab", kept: str = "nothing") -> None:
    """Have an artifact say SUCCESS of another attempt and its run, but for one thing of it."""
    facts = {"attempt": name, "job": name.partition("-")[0]}
    if kept != "log":
        facts["log"] = "output.log"
    if kept != "end":
        facts["ended_at"] = "2020-01-01T00:00:00.000000Z"
    _forge(path, **facts)
    if kept != "start":
        path.write_text(re.sub(r"(?m)^\| 1 \| 20", "| 1 | 19", path.read_text()))


def _become_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


def _become_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


FILES: dict[str, tuple[str, State, Callable[[Path], object], str]] = {
    "an artifact that says SUCCESS": (
        "artifact",
        State.ROLLED_BACK,
        _swap("staging_status: FAILED", "staging_status: SUCCESS"),
        "was altered",
    ),
    "an artifact with one more blank": (
        "artifact",
        State.ADVANCED,
        lambda path: path.write_text(path.read_text() + " "),
        "was altered",
    ),
    "an artifact that names no attempt": (
        "artifact",
        State.ADVANCED,
        lambda path: path.write_text("---\nstaging_status: SUCCESS\n---\n"),
        "was altered",
    ),
    "an altered artifact that was set aside": (
        "artifact",
        State.ADVANCED,
        lambda path: (
            path.rename(path.with_name("15-staging-log.before-9-f.1.md")),
            _swap("exit_code: 0", "exit_code: 1")(path.with_name("15-staging-log.before-9-f.1.md")),
        ),
        "was altered",
    ),
    "an artifact that names another attempt": (
        "artifact",
        State.ROLLED_BACK,
        lambda path: _forge(path, attempt="150-0123456789ab"),
        "was altered",
    ),
    "an artifact that names another attempt and its job": (
        "artifact",
        State.ROLLED_BACK,
        lambda path: _forge(path, attempt="1-0123456789ab", job="1"),
        "was altered",
    ),
    "an artifact that names no attempt and no producer": (
        "artifact",
        State.ROLLED_BACK,
        lambda path: _forge(path, attempt="", producer="deployer"),
        "was altered",
    ),
    "an artifact that tells of another log as well": (
        "artifact",
        State.ROLLED_BACK,
        lambda path: _forge(path, attempt="150-0123456789ab", job="150", log="output.log"),
        "was altered",
    ),
    **{
        f"an artifact that is made anew but for the {kept} of its run": (
            "artifact",
            State.ROLLED_BACK,
            partial(_make_anew, kept=kept),
            "was altered",
        )
        for kept in ("start", "end", "log")
    },
    "an artifact of a job with more digits than any": (
        "artifact",
        State.ROLLED_BACK,
        lambda path: _forge(path, attempt="9" * 5000 + "-f", job="9" * 5000, log="output.log"),
        "was altered",
    ),
    "another artifact that was set aside": (
        "artifact",
        State.ROLLED_BACK,
        lambda path: _forge(
            path.rename(path.with_name("15-staging-log.before-9-f.1.md")),
            attempt="150-0123456789ab",
        ),
        "was altered",
    ),
    "a pipe in an artifact's place": (
        "artifact",
        State.ROLLED_BACK,
        _become_a_pipe,
        "was replaced by what is no regular file",
    ),
    "an artifact that is a link": (
        "artifact",
        State.ROLLED_BACK,
        _become_a_link,
        "was replaced by what is no regular file",
    ),
    "an altered log": ("log", State.ADVANCED, _swap("out", "all well"), "was altered"),
    "an altered log of an earlier run": (
        "log",
        State.FAILED_CLOSED,
        _swap("out", "all well"),
        "was altered",
    ),
    "a log that is a link": (
        "log",
        State.ADVANCED,
        _become_a_link,
        "was replaced by what is no regular file",
    ),
}


@pytest.mark.parametrize(("kind", "state", "change", "expected"), FILES.values(), ids=FILES)
def test_altered_file_is_told(
    archive: Archive, kind: str, state: State, change: Callable[[Path], object], expected: str
) -> None:
    """An artifact or a log that is not what was written is told, with its path."""
    job_id = jobs(archive)[state]
    path: Path = getattr(archive, kind)(job_id)
    change(path)
    [finding] = archive.deviations()

    assert (finding.job_id, finding.check) == (job_id, kind)
    assert expected in finding.problem
    assert str(path.parent) in finding.problem


@pytest.mark.parametrize("kind", ["artifact", "log"])
def test_missing_file_is_no_deviation(archive: Archive, kind: str) -> None:
    """A file that is gone is told as missing, and does not fail the audit."""
    job_id = jobs(archive)[State.ADVANCED]
    getattr(archive, kind)(job_id).unlink()
    seen = archive.audit()
    ended = archive.call("--verify")

    assert [(found.severity, found.check) for found in seen.findings] == [(Severity.MISSING, kind)]
    assert (ended.exit_code, "1 files missing" in ended.output) == (0, True)


def test_artifact_that_a_later_attempt_set_aside_is_found(archive: Archive) -> None:
    """An artifact is looked for under the name it got when a later attempt set it aside."""
    path = archive.artifact(jobs(archive)[State.ADVANCED])
    path.rename(path.with_name("15-staging-log.before-9-f.1.md"))
    path.write_text("---\nstaging_status: FAILED\nattempt: 9-f\n---\n")

    assert archive.audit().findings == []


@pytest.mark.parametrize("spans", [1, 4], ids=["in processes", "alone"])
def test_log_is_looked_for_in_the_state_folder_in_use(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spans: int
) -> None:
    """A log that is not where it was is looked for in the state folder in use, by its run's id."""
    job_id = jobs(archive)[State.FAILED_CLOSED]
    folder = shutil.copytree(archive.log(job_id).parents[2], tmp_path / "copied")
    copies = [folder.joinpath(*path.parts[-3:]) for path in _forget_logs(archive, job_id)]
    monkeypatch.setenv("ORCH_STAGING_RUNNER_STATE_DIR", str(folder))
    monkeypatch.setattr(auditing, "SPAN_ROWS", 1)
    monkeypatch.setattr(auditing, "SPANS_ALONE", spans)
    sound = archive.call("--verify")
    copies[0].write_text("all well")
    altered_there = [archive.call("--verify"), archive.call(str(job_id), "--verify")]
    copies[0].unlink()
    copies[0].symlink_to(copies[1])
    replaced = archive.call("--verify")

    assert sound.output.endswith("0 deviations, 0 files missing\n")
    for told in altered_there:
        assert f"deviation: job {job_id} (" in told.output
        assert f"{copies[0]} was altered" in told.output
    assert f"{copies[0]} was replaced" in replaced.output


def test_altered_log_is_told_beside_a_sound_copy(archive: Archive, tmp_path: Path) -> None:
    """A log that is where its row says is looked at there, whatever the folder in use has of it."""
    job_id = jobs(archive)[State.ADVANCED]
    log = archive.log(job_id)
    copied = StateDir(shutil.copytree(log.parents[2], tmp_path / "copied"))
    log.write_text("all well")
    [found] = audit_table(archive.session.rows, archive.session.store, copied).findings

    assert (found.job_id, found.severity, found.check) == (job_id, Severity.DEVIATION, "log")
    assert f"{log} was altered" in found.problem


def _forget_logs(archive: Archive, job_id: int) -> list[Path]:
    """Remove the logs of a job; return where they were."""
    paths = [Path(run["log"]) for run in archive.stored(job_id)["runs"]]
    for path in paths:
        path.unlink()
    return paths


def test_log_is_looked_for_nowhere_by_the_name_of_no_run(archive: Archive, tmp_path: Path) -> None:
    """A name that is no attempt's leads to no file outside of the folder of the runs."""
    job_id = jobs(archive)[State.ADVANCED]
    _forget_logs(archive, job_id)
    folder = tmp_path / "copied" / "outside.1"
    folder.mkdir(parents=True)
    (folder / "output.log").write_text("all well")
    archive.set(job_id, "attempt_id", "1-/../../outside")
    seen = audit_table(archive.session.rows, archive.session.store, StateDir(tmp_path / "copied"))

    assert (Severity.MISSING, "log") in [(found.severity, found.check) for found in seen.findings]


def _forget(archive: Archive, work_item: str) -> tuple[int, Path]:
    """Run a suite anew, and remove the artifact that was set aside; return its job and place."""
    job_id = staging_job(archive.session, REPO, work_item)
    archive.stage(job_id, "true")
    path = archive.artifact(job_id)
    for kept in path.parent.glob("*.before-*"):
        kept.unlink()
    return job_id, path


def _told(archive: Archive, job_id: int) -> list[tuple[Severity, str]]:
    found = archive.audit().findings
    return [(finding.severity, finding.check) for finding in found if finding.job_id == job_id]


@pytest.mark.parametrize("keep_row", [True, False], ids=["kept", "removed by its host"])
def test_artifact_of_a_later_attempt_is_no_altered_one(archive: Archive, *, keep_row: bool) -> None:
    """Where a later attempt has written and what it set aside was removed, that one is missing."""
    job_id = jobs(archive)[State.ROLLED_BACK]
    later, _ = _forget(archive, "WI-2")
    if not keep_row:
        archive.sql("DELETE FROM jobs WHERE id = ?", later)
        archive.sql_of_many("UPDATE work_items SET stage = 'development'")
        archive.sql("UPDATE jobs SET stage = 'development' WHERE id = ?", later + 1)

    assert _told(archive, job_id) == [(Severity.MISSING, "artifact")]


def test_altered_artifact_is_told_of_whose_it_was(archive: Archive) -> None:
    """An altered one is told of the attempt that wrote it, and of no other that misses its own."""
    job_id = jobs(archive)[State.ROLLED_BACK]
    later, path = _forget(archive, "WI-2")
    path.write_text(path.read_text() + " ")

    assert _told(archive, job_id) == [(Severity.MISSING, "artifact")]
    assert _told(archive, later) == [(Severity.DEVIATION, "artifact")]


def test_artifact_under_the_name_of_another_attempt_is_told(archive: Archive) -> None:
    """One that was made another attempt's is told where that attempt's own is at hand."""
    job_id = jobs(archive)[State.ROLLED_BACK]
    path = archive.artifact(job_id)
    later = staging_job(archive.session, REPO, "WI-2")
    archive.stage(later, "true")
    other = archive.stored(later)["attempt_id"]
    [kept] = path.parent.glob("*.before-*")
    _make_anew(kept, other)

    assert _told(archive, job_id) == [(Severity.DEVIATION, "artifact")]
    assert _told(archive, later) == []


def test_artifact_of_a_job_of_another_work_item_is_told(archive: Archive) -> None:
    """An attempt of another work item has written none beside this one's."""
    job_id = jobs(archive)[State.ROLLED_BACK]
    other = jobs(archive)[State.ADVANCED]
    name = archive.stored(other)["attempt_id"]
    _make_anew(archive.artifact(job_id), name)

    assert _told(archive, job_id) == [(Severity.DEVIATION, "artifact")]


@pytest.mark.parametrize("number", ["of another work item", "of its own", "of none"])
def test_artifact_of_another_table_is_no_altered_one(
    archive: Archive, tmp_path: Path, number: str
) -> None:
    """What somebody with a database of his own staged and committed is named where it lies.

    Its job has a number of its own, whatever job has that one here.
    """
    job_id = jobs(archive)[State.ROLLED_BACK]
    clone, theirs = tmp_path / "clone", f"sqlite:///{tmp_path}/theirs.db"
    git(tmp_path, "clone", "--quiet", str(archive.session.store.repository_path(REPO)), str(clone))
    desk = Archive(tmp_path / "theirs.db", open_session(theirs, variables(tmp_path)))
    desk.session.store.add_repository(REPO, clone)
    before = {"of another work item": 0, "of its own": job_id - 1, "of none": 50}
    for other in range(before[number]):
        staging_job(desk.session, REPO, f"WI-9{other}")
    staged = staging_job(desk.session, REPO, "WI-2")
    desk.stage(staged, "echo mended")
    shutil.copy(desk.artifact(staged), archive.artifact(job_id))
    name = desk.stored(staged)["attempt_id"]
    desk.session.store.engine.dispose()
    [finding] = archive.audit().findings

    assert (finding.job_id, finding.severity) == (job_id, Severity.MISSING)
    assert f"what names attempt {name}, which this table does not know," in finding.problem
    assert finding.to_do.startswith("Ask in which table that attempt is")


def test_artifact_under_the_name_of_an_attempt_that_wrote_none_is_told(archive: Archive) -> None:
    """An attempt that is in the table and was cancelled has written no artifact."""
    earlier = staging_job(archive.session, REPO, "WI-4")
    archive.session.staging(suites=one_suite(SuiteEntry(("true",)))).cancel(earlier)
    job_id = staging_job(archive.session, REPO, "WI-4")
    archive.stage(job_id, "exit 7")
    name = archive.stored(earlier)["attempt_id"]
    _make_anew(archive.artifact(job_id), name)

    assert _told(archive, job_id) == [(Severity.DEVIATION, "artifact")]


def test_what_is_in_an_artifacts_place_is_told(archive: Archive) -> None:
    """Where another attempt's artifact is in the place of one that is missing, that is said."""
    job_id = jobs(archive)[State.ROLLED_BACK]
    later, path = _forget(archive, "WI-2")
    [told] = [found for found in archive.audit().findings if found.job_id == job_id]
    path.unlink()
    path.mkdir()
    [replaced] = [found for found in archive.audit().findings if found.job_id == job_id]
    path.rmdir()

    whose = f"what names attempt {archive.stored(later)['attempt_id']}"
    assert told.problem == f"{path} is not what was written: {whose} is in its place"
    assert replaced.problem == f"{path} is not what was written: something else is in its place"


def test_artifact_of_an_agent_is_no_altered_one(archive: Archive) -> None:
    """Where an agent has staged the work item since, what it wrote is not held against a row."""
    job_id = jobs(archive)[State.ROLLED_BACK]
    path = archive.artifact(job_id)
    path.write_text("---\nstaging_status: SUCCESS\nattempt: 1\n---\n")
    agents = archive.queue("WI-2", STAGE, "queued")
    before = _told(archive, job_id)
    archive.sql("UPDATE jobs SET status = 'done' WHERE id = ?", agents)

    assert (Severity.DEVIATION, "artifact") in before
    assert (Severity.MISSING, "artifact") in _told(archive, job_id)
    assert (Severity.DEVIATION, "artifact") not in _told(archive, job_id)


def _say_otherwise(text: str) -> str:
    """Have the front matter say FAILED, and the quoted output what it said."""
    said = "staging_status: SUCCESS"
    return f"{text.replace(said, 'staging_status: FAILED')}{said}\n"


@pytest.mark.parametrize(
    ("state", "change", "broken"),
    [
        (
            State.ROLLED_BACK,
            lambda text: text.replace("staging_status: FAILED", "staging_status: SUCCESS"),
            {"tool_error_is_nobodys_fault"},
        ),
        (State.ADVANCED, _say_otherwise, set()),
    ],
    ids=["no to yes", "yes to no"],
)
def test_artifact_with_another_word_than_the_gate_is_told(
    archive: Archive, state: State, change: Callable[[str], str], broken: set[str]
) -> None:
    """An artifact whose word is not the one that the gate's answer needs is told, digest or not."""
    job_id = jobs(archive)[state]
    path = archive.artifact(job_id)
    path.write_text(change(path.read_text()))
    forged = Artifact(str(path), sha256_of_text(path.read_text()))
    archive.set(job_id, "artifact", attrs.asdict(forged))
    told = {finding.check for finding in archive.deviations()}

    assert told == {"trail_is_unbroken", "artifact", *broken}


def test_pass_that_its_gate_refused_is_sound(archive: Archive) -> None:
    """A gate may refuse what passed: the artifact says SUCCESS all the same, and rightly so."""
    job_id = staging_job(archive.session, REPO, "WI-4")
    staging = archive.session.staging(suites=one_suite(SuiteEntry(("true",))))
    gate, engine = staging.runner.engine.gate, staging.runner.engine

    def ask(row: JobRow, tx: Any) -> bool:
        """Ask the gate while the artifact is out of its sight."""
        artifact = engine.place(row).artifact_dir / ARTIFACT_NAME
        away = artifact.rename(artifact.with_name("away"))
        opened = gate(row, tx)
        away.rename(artifact)
        return opened

    engine.gate = ask
    AttemptDriver(archive.session, staging, job_id).drive()

    assert [move["id"] for move in archive.stored(job_id)["history"]] == ["T01", "T03", "T12"]
    assert "\nstaging_status: SUCCESS\n" in archive.artifact(job_id).read_text()
    assert archive.audit().findings == []


def test_row_that_moves_while_it_is_read_is_no_deviation(archive: Archive) -> None:
    """What deviated at the first look and not at the second was a row that moved between them."""

    class Moving(SqlRows):
        def attempts(self, after: Any = None, upto: Any = None) -> Iterator[JobRow]:
            yield from (attrs.evolve(row, status="queued") for row in super().attempts(after, upto))

    rows = Moving(archive.session.store.engine)

    assert audit_table(rows, archive.session.store).findings == []


def test_long_table_is_audited_in_processes(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of many rows is audited in two processes, to the same findings in the same order."""
    for job_id in jobs(archive).values():
        archive.set(job_id, "runs[0].detail", "all well")
    alone = archive.audit()
    # An attempt and the job that it led to: in each of them something is to be found.
    monkeypatch.setattr(auditing, "SPAN_ROWS", 2)
    monkeypatch.setattr(auditing, "SPANS_ALONE", 1)

    assert archive.audit() == alone
    assert [finding.job_id for finding in alone.findings] == sorted(jobs(archive).values())


def test_audit_says_the_same_on_both_databases(archive: Archive, postgres_url: str) -> None:
    """Moved to PostgreSQL the same rows are audited to the same findings, host's words included."""
    job_id = jobs(archive)[State.ADVANCED]
    archive.sql("UPDATE work_items SET stage = 'development' WHERE id = 'WI-1'")
    archive.sql("DELETE FROM jobs WHERE work_item = 'WI-1' AND id > ?", job_id)
    archive.sql("UPDATE work_items SET stage = 'done', updated_at = '9' WHERE id = 'WI-2'")
    archive.sql("DELETE FROM jobs WHERE work_item = 'WI-2' AND stage = 'development'")
    archive.set(job_id, "runs[0].detail", "all well")
    moved = open_session(postgres_url, {})
    move_rows(archive.session.store.engine, moved.store.engine)

    seen = audit_table(moved.rows, moved.store)
    moved.store.engine.dispose()

    assert seen == archive.audit()
    assert seen.counts[Severity.UNCLEAR] == 1
    checks = {finding.check for finding in seen.of(Severity.DEVIATION)}
    assert {"trail_is_unbroken", "work_item"} <= checks


def test_findings_are_bounded_and_counted() -> None:
    """However much deviates, a bounded number of findings is kept, and all are counted."""
    finding = Finding(1, "shop", "WI-1", Severity.DEVIATION, "row", "it is odd", "Look")
    part = Audit(1, findings=[finding] * 600)
    part.counts[Severity.DEVIATION] = 600
    seen = Audit()
    for _ in range(3):
        seen.add(part)

    assert len(seen.findings) == auditing.FINDINGS_KEPT
    assert (seen.counts[Severity.DEVIATION], seen.rows) == (1800, 3)


def test_verify_says_by_its_exit_code(archive: Archive) -> None:
    """`audit --verify` exits 0 while all is sound and 1 once anything deviates."""
    sound = archive.call("--verify")
    job_id = jobs(archive)[State.FAILED_CLOSED]
    archive.set(job_id, "runs[1].signal", 9)
    broken = archive.call("--verify", "--json")
    view = json.loads(broken.output)

    assert (sound.exit_code, broken.exit_code) == (0, 1)
    assert sound.output == "3 attempts in 3 rows: 0 deviations, 0 files missing\n"
    assert view["deviation"]["count"] == 1
    assert view["deviation"]["findings"][0]["job_id"] == job_id
    assert archive.call().exit_code == 0


def test_damaged_row_is_a_deviation_of_its_own_audit(archive: Archive, tmp_path: Path) -> None:
    """A row that cannot be read is found by who asks for that very job, with all that was asked."""
    job_id = jobs(archive)[State.ADVANCED]
    archive.set(job_id, "state", "PAUSED")
    report = tmp_path / "report.html"
    audited = archive.call(str(job_id), "--verify", "--html", str(report))

    assert audited.exit_code == 1
    assert "deviation: " in audited.output
    assert report.is_file()


def test_finding_is_one_line_whatever_a_row_holds(archive: Archive) -> None:
    """What a row holds begins no line, which would be a finding or a sum of its own."""
    job_id = jobs(archive)[State.ADVANCED]
    name = "WI-1\n3 attempts in 3 rows: 0 deviations, 0 files missing"
    archive.sql("UPDATE jobs SET work_item = ? WHERE id = ?", name, job_id)
    seen = archive.audit()
    told = archive.call("--verify").output.splitlines()

    assert "0 deviations" not in told[-1]
    assert len(told) == seen.counts.total() + 1
    assert all(line.startswith(f"deviation: job {job_id} (") for line in told[:-1])


def test_program_is_told_of_all_that_deviates(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is listed is bounded, and what is counted is not, for a program as for a person."""
    monkeypatch.setattr(auditing, "FINDINGS_KEPT", 1)
    for job_id in list(jobs(archive).values())[:3]:
        archive.set(job_id, "state", "PAUSED")
    told = json.loads(archive.call("--verify", "--json").output)["deviation"]

    assert (told["count"] >= 3, len(told["findings"])) == (True, 1)


def test_trail_of_a_job_is_shown(archive: Archive) -> None:
    """The trail of one attempt is every move with time, id, event, reason, worker and link."""
    job_id = jobs(archive)[State.ADVANCED]
    view = json.loads(archive.call(str(job_id), "--json").output)

    assert [move["id"] for move in view["trail"]] == ["T01", "T03", "T11"]
    assert set(view["trail"][0]) == {
        *("id", "time", "reason", "worker", "link", "event", "target"),
    }
    assert [move["link"] for move in view["trail"]] == [
        move["link"] for move in archive.stored(job_id)["history"]
    ]
    assert archive.call("999").exit_code != 0


def test_report_is_one_file_that_needs_nothing(archive: Archive, tmp_path: Path) -> None:
    """The report loads nothing, runs nothing, and shows what a row holds as text."""
    job_id = jobs(archive)[State.ADVANCED]
    for place in ("attempt_id", "history[0].reason"):
        archive.set(job_id, place, f"<script>alert('{place}')</script>")
    report = tmp_path / "report.html"
    ended = archive.call("--html", str(report))
    one = archive.call(str(job_id), "--html", str(tmp_path / "one.html"))
    text, attempt = report.read_text(), (tmp_path / "one.html").read_text()

    assert (ended.exit_code, one.exit_code) == (1, 1)
    assert text.index("DEVIATIONS") < text.index("trail_is_unbroken") < text.index("<svg")
    assert "&lt;script&gt;" in attempt
    for page in (text, attempt):
        assert "<script" not in page
        assert re.findall(r"(?:src|href|url)\s*[=(]", page) == []


def test_audit_of_a_database_that_is_not_there_is_none(tmp_path: Path) -> None:
    """A mistyped address is no empty table in which nothing deviates, and none is made there."""
    missing = tmp_path / "typo.db"
    audited = CliRunner().invoke(main, ["audit", "--verify", "--db", f"sqlite:///{missing}"])

    assert audited.exit_code == ExitCode.DECLINED
    assert f"there is no database at {missing}" in audited.stderr
    assert not missing.exists()

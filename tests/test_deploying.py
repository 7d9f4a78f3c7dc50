"""What comes after staging: the finalizer tags what was passed, and the monitor watches it."""

import json
import os
import shlex
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import attrs
import pytest
import sqlalchemy as sa

from hosts import DEADLINE_SECONDS, HostKit, Maker, NoWaiting, ends_of_children_unseen, git, worker
from staging_fsm.core.artifact import written
from staging_fsm.core.spec import Event, State
from staging_fsm.effects.rows import SqlRows
from staging_fsm.host import launcher
from staging_fsm.host.contract.gate import ARTIFACT_NAME
from trails import FAILED, FIRST, PASSED, PLAN, WRITTEN, walked


def staged(kit: HostKit, job_id: int, *moves: Any, revision: str | None = None) -> str:
    """Have staging of the work item end by some moves, on the checked-out commit; return it."""
    head = git(kit.repository, "rev-parse", "HEAD")
    rows = SqlRows(kit.store.engine)
    plan = attrs.evolve(PLAN, revision=head if revision is None else revision)
    claim = (Event.JOB_CLAIMED, {"plan": plan, "runs": (FIRST,)})
    for number in range(1, len(moves) + 2):
        rows.save(job_id, walked(claim, *moves[: number - 1]))
    with kit.store.transaction() as tx:
        kit.store.finish_job(tx, job_id, kit.host.clock.now())
    return head


OPENED = ((Event.SUITE_PASSED, {"runs": (PASSED,)}), (Event.GATE_OPENED, {"artifact": WRITTEN}))
TURNED_DOWN = (
    (Event.SUITE_FAILED, {"runs": (FAILED,)}),
    (Event.GATE_REFUSED, {"artifact": WRITTEN}),
)


@pytest.mark.parametrize("artifact", [None, "another", "nonsense"])
def test_what_staging_passed_is_deployed_whatever_is_checked_out(
    make_host: Maker, artifact: str | None
) -> None:
    """The revision of a deployment is that of the attempt, whatever became of papers and tree."""
    kit = make_host()
    head = staged(kit, kit.add("deploy-staging"), *OPENED)
    job_id = kit.further("deploy")
    git(kit.repository, "commit", "--quiet", "--allow-empty", "--message", "Later")
    if artifact is not None:
        folder = kit.host.folder(kit.store.job(job_id))
        folder.mkdir(parents=True)
        named = git(kit.repository, "rev-parse", "HEAD") if artifact == "another" else artifact
        (folder / ARTIFACT_NAME).write_text(f"---\n{written('revision', named)}\n---\n")
    worker(kit).run_one()

    assert git(kit.repository, "rev-parse", "deployed/WI-1") == head
    assert kit.item().stage == "post-deploy"


@pytest.mark.parametrize(
    ("moves", "state"),
    [
        (TURNED_DOWN, State.ROLLED_BACK),
        ([(Event.CANCEL_REQUESTED, {})], State.CANCELLED),
        (OPENED[:1], State.VERDICT_PASSED),
        ([], State.RUNNING),
    ],
)
def test_what_staging_did_not_pass_is_not_deployed(
    make_host: Maker, moves: list[Any], state: State
) -> None:
    """A job that deploys goes back to development where the staging before it did not pass."""
    kit = make_host()
    staged(kit, kit.add("deploy-staging"), *moves)
    job_id = kit.further("deploy")
    worker(kit).run_one()

    assert git(kit.repository, "tag", "--list") == ""
    assert kit.item().stage == "development"
    assert f"is {state}, and only what has ADVANCED" in kit.store.job(job_id).metadata


def test_staging_of_what_is_deployed_is_the_one_before_it(make_host: Maker) -> None:
    """What is staged after a deployment was queued is no part of that deployment."""
    kit = make_host()
    head = staged(kit, kit.add("deploy-staging"), *OPENED)
    job_id = kit.further("deploy")
    git(kit.repository, "commit", "--quiet", "--allow-empty", "--message", "Later")
    staged(kit, kit.further("deploy-staging"), *TURNED_DOWN)
    job = kit.store.claim_next(kit.host.clock.now(), "w", job_id)
    assert job is not None
    launcher.launch_job(kit.host, job)

    assert git(kit.repository, "rev-parse", "deployed/WI-1") == head


def test_newest_staging_before_a_deployment_is_the_one_that_counts(make_host: Maker) -> None:
    """What is deployed is what staging passed last, whatever it passed or refused before."""
    kit = make_host()
    staged(kit, kit.add("deploy-staging"), *OPENED)
    staged(kit, kit.further("deploy-staging"), *TURNED_DOWN)
    git(kit.repository, "commit", "--quiet", "--allow-empty", "--message", "Mended")
    head = staged(kit, kit.further("deploy-staging"), *OPENED)
    kit.further("deploy")
    worker(kit).run_one()

    assert git(kit.repository, "rev-parse", "deployed/WI-1") == head


def test_what_was_passed_without_a_revision_is_deployed_without_one(make_host: Maker) -> None:
    """No commit is made out to be deployed where the suite was run on none."""
    kit = make_host()
    staged(kit, kit.add("deploy-staging"), *OPENED, revision="unversioned")
    job_id = kit.further("deploy")
    worker(kit).run_one()

    assert json.loads(kit.store.job(job_id).metadata) == {"deployed_revision": "unversioned"}
    assert git(kit.repository, "tag", "--list") == ""


def spoil(kit: HostKit, how: str) -> None:
    """Have git answer no more for the repository."""
    if how == "moved away":
        kit.repository.rename(kit.repository.with_name("elsewhere"))
    elif how == "without git":
        (kit.repository / ".git").rename(kit.repository / "git.away")
    else:
        (kit.repository / ".git" / "config").write_text("[broken")


@pytest.mark.parametrize("how", ["moved away", "without git", "broken"])
def test_commit_that_staging_passed_is_deployed_by_name_or_not_at_all(
    make_host: Maker, how: str
) -> None:
    """A deployment of a bound commit never passes for one without a revision."""
    kit = make_host()
    head = staged(kit, kit.add("deploy-staging"), *OPENED)
    job_id = kit.further("deploy")
    spoil(kit, how)
    worker(kit).run_one()
    said = json.loads(kit.store.job(job_id).metadata)

    assert list(said) == ["deploy_error"]
    assert head in said["deploy_error"]
    assert kit.item().stage == "development"


@pytest.mark.parametrize("how", ["moved away", "broken"])
def test_repository_that_cannot_be_read_is_not_taken_for_a_plain_folder(
    make_host: Maker, how: str
) -> None:
    """After an agent, too, nothing is deployed as unversioned that may well have a revision."""
    kit = make_host()
    job_id = kit.add("deploy")
    spoil(kit, how)
    worker(kit).run_one()
    said = json.loads(kit.store.job(job_id).metadata)

    assert list(said) == ["deploy_error"]
    assert str(kit.repository) in said["deploy_error"]
    assert kit.item().stage == "development"


def test_revision_that_an_agent_names_is_looked_for_outside_of_git_too(
    make_host: Maker, tmp_path: Path
) -> None:
    """What an artifact names is deployed, or nothing is: not a folder without any revision."""
    kit = make_host()
    kit.store.add_repository("plain", tmp_path / "plain")
    job_id = kit.add("deploy", repo="plain")
    folder = kit.host.folder(kit.store.job(job_id))
    folder.mkdir(parents=True)
    (folder / ARTIFACT_NAME).write_text(f"---\n{written('revision', '0' * 40)}\n---\n")
    worker(kit).run_one()

    assert list(json.loads(kit.store.job(job_id).metadata)) == ["deploy_error"]


def test_damaged_attempt_is_not_deployed(make_host: Maker) -> None:
    """Where nobody can say whether staging has passed, nothing is deployed, and it is said why."""
    kit = make_host()
    before = kit.add("deploy-staging")
    with kit.store.transaction() as tx:
        tx.execute(
            sa.text("UPDATE jobs SET status = 'done', metadata = :damaged WHERE id = :id"),
            {"damaged": '{"staging_runner": 17}', "id": before},
        )
    job_id = kit.further("deploy")
    worker(kit).run_one()

    assert git(kit.repository, "tag", "--list") == ""
    assert "snapshot is refused" in kit.store.job(job_id).metadata


def test_finalizer_tags_the_staged_revision_and_records_it(make_host: Maker) -> None:
    """The deploy-finalizer tags the revision that was staged, and its job says which."""
    kit = make_host()
    revision = git(kit.repository, "rev-parse", "HEAD")
    folder = kit.repository / "docs" / "work-items" / "WI-1"
    folder.mkdir(parents=True)
    (folder / ARTIFACT_NAME).write_text(
        f'---\nstaging_status: SUCCESS\nrevision: "{revision}"\n---\n'
    )
    git(kit.repository, "commit", "--quiet", "--allow-empty", "-m", "Somebody else went on.")
    job_id = kit.add("deploy")

    worker(kit).run_one()

    assert git(kit.repository, "rev-parse", "deployed/WI-1") == revision
    assert json.loads(kit.store.job(job_id).metadata) == {"deployed_revision": revision}


def test_finalizer_takes_no_revision_from_what_an_artifact_quotes(make_host: Maker) -> None:
    """Only an artifact's front matter names what was staged: its quoted output says nothing."""
    kit = make_host()
    other = git(kit.repository, "rev-parse", "HEAD")
    git(kit.repository, "commit", "--quiet", "--allow-empty", "-m", "This is what was staged.")
    folder = kit.repository / "docs" / "work-items" / "WI-1"
    folder.mkdir(parents=True)
    quoted = f"---\nstaging_status: SUCCESS\n---\nIt printed:\nrevision: {other}\n"
    (folder / ARTIFACT_NAME).write_text(quoted)
    kit.add("deploy")

    worker(kit).run_one()

    assert git(kit.repository, "rev-parse", "deployed/WI-1") != other


def test_finalizer_moves_the_tag_of_an_earlier_deployment(make_host: Maker) -> None:
    """A work item that is deployed a second time has its tag where it was deployed last."""
    kit = make_host()
    git(kit.repository, "tag", "deployed/WI-1")
    git(kit.repository, "commit", "--quiet", "--allow-empty", "-m", "It is mended.")
    kit.add("deploy")

    worker(kit).run_one()

    head = git(kit.repository, "rev-parse", "HEAD")
    assert (kit.item().stage, git(kit.repository, "rev-parse", "deployed/WI-1")) == (
        "post-deploy",
        head,
    )


def test_finalizer_that_cannot_tag_says_why(make_host: Maker) -> None:
    """A revision that is not there is not deployed: its job says so, and it goes back."""
    kit = make_host()
    folder = kit.repository / "docs" / "work-items" / "WI-1"
    folder.mkdir(parents=True)
    (folder / ARTIFACT_NAME).write_text(f"---\nrevision: {'0' * 40}\n---\n")
    job_id = kit.add("deploy")

    worker(kit).run_one()

    assert "deploy_error" in json.loads(kit.store.job(job_id).metadata)
    assert kit.item().stage == "development"


def test_finalizer_without_git_says_so(make_host: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which git cannot be run leaves no deployment behind that nobody ends."""
    kit = make_host()
    job_id = kit.add("deploy")
    monkeypatch.setenv("PATH", "")

    worker(kit).run_one()

    assert "git could not be run" in json.loads(kit.store.job(job_id).metadata)["deploy_error"]
    assert kit.item().stage == "development"


def test_finalizer_of_a_folder_without_git_says_so(make_host: Maker, tmp_path: Path) -> None:
    """What is in no repository of git is deployed as unversioned, and no revision is made up."""
    kit = make_host()
    (tmp_path / "plain").mkdir()
    kit.store.add_repository("plain", tmp_path / "plain")
    job_id = kit.add("deploy", repo="plain")

    worker(kit).run_one()

    assert json.loads(kit.store.job(job_id).metadata) == {"deployed_revision": "unversioned"}
    assert kit.item(repo="plain").stage == "post-deploy"


def test_finalizer_tags_what_is_a_folder_of_a_repository(make_host: Maker) -> None:
    """Where one repository holds many services, each is deployed by the revision of them all."""
    kit = make_host()
    (kit.repository / "till").mkdir()
    kit.store.add_repository("till", kit.repository / "till")
    job_id = kit.add("deploy", repo="till")

    worker(kit).run_one()

    head = git(kit.repository, "rev-parse", "HEAD")
    assert json.loads(kit.store.job(job_id).metadata) == {"deployed_revision": head}
    assert git(kit.repository, "rev-parse", "deployed/WI-1") == head


def test_finalizer_asks_for_no_signature(make_host: Maker) -> None:
    """A tag is made though all tags are to be signed: nobody is there to unlock a key for it."""
    kit = make_host()
    git(kit.repository, "config", "tag.gpgSign", "true")
    git(kit.repository, "config", "gpg.program", "false")
    head = git(kit.repository, "rev-parse", "HEAD")
    kit.add("deploy")

    worker(kit).run_one()

    assert git(kit.repository, "rev-parse", "deployed/WI-1") == head
    assert kit.item().stage == "post-deploy"


def test_finalizer_runs_no_program_of_the_repository(make_host: Maker) -> None:
    """What was deployed has no say in its own tag: none of its hooks is run."""
    kit = make_host()
    hook = kit.repository / ".git" / "hooks" / "reference-transaction"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    kit.add("deploy")

    worker(kit).run_one()

    assert kit.item().stage == "post-deploy"
    assert git(kit.repository, "tag") == "deployed/WI-1"


@pytest.mark.parametrize(
    ("probe", "stage", "failed"),
    [
        ("true", "done", 0),
        ("exit 3", "development", 3),
        ("kill -9 $$", "development", 3),
        ("test -e seen || { touch seen; exit 3; }", "development", 1),
    ],
)
def test_monitor_probes_and_records(
    make_host: Maker, tmp_path: Path, probe: str, stage: str, failed: int
) -> None:
    """The post-deploy-monitor passes only if every probe was healthy, and records what it saw."""
    command = shlex.join(["sh", "-c", f"cd {tmp_path}; {probe}"])
    kit = make_host(monitor_command=command, monitor_interval_seconds="0")
    job_id = kit.add("post-deploy")

    worker(kit).run_one()

    assert kit.item().stage == stage
    seen = json.loads(json.loads(kit.store.job(job_id).metadata)["monitor"])
    assert (seen["probes"], seen["failed"]) == (3, failed)


def test_monitor_shows_the_problem_that_it_saw_last(make_host: Maker, tmp_path: Path) -> None:
    """Of the problems of a deployment its record shows the one that was there at the end."""
    counting = f"cd {tmp_path}; echo >>seen; exit $(wc -l <seen)"
    command = shlex.join(["sh", "-c", counting])
    kit = make_host(monitor_command=command, monitor_interval_seconds="0")
    job_id = kit.add("post-deploy")

    worker(kit).run_one()

    seen = json.loads(json.loads(kit.store.job(job_id).metadata)["monitor"])
    assert seen == {"probes": 3, "failed": 3, "last": ["exit code 3"]}


@pytest.mark.parametrize("probe", ["true", "false"])
def test_deployment_is_watched_for_as_long_as_is_said(make_host: Maker, probe: str) -> None:
    """Between two probes the interval passes, well or not: a service may come up and go down."""
    kit = make_host(monitor_command=probe, monitor_interval_seconds="7")
    kit.add("post-deploy")
    clock = NoWaiting()

    worker(attrs.evolve(kit, host=attrs.evolve(kit.host, clock=clock))).run_one()

    assert clock.waited == 2 * 7


def probed(make_host: Maker, answer: bytes) -> tuple[HostKit, int]:
    """Return a host whose monitor has asked a service that gives one answer, and its job."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/health"
        kit = make_host(monitor_url=url, monitor_probes="1")
        job_id = kit.add("post-deploy")
        probing = threading.Thread(target=worker(kit).run_one, daemon=True)
        probing.start()
        taken, _ = server.accept()
        with taken:
            taken.recv(4096)
            taken.sendall(answer)
        probing.join(DEADLINE_SECONDS)
    return kit, job_id


@pytest.mark.parametrize(
    ("status", "stage"),
    [
        (200, "done"),
        (204, "done"),
        (304, "development"),
        (404, "development"),
        (500, "development"),
    ],
)
def test_service_is_healthy_by_the_status_that_it_answers(
    make_host: Maker, status: int, stage: str
) -> None:
    """A deployed service that answers is healthy only where it says so, with a status of 2xx."""
    kit, _ = probed(make_host, f"HTTP/1.0 {status} So\r\n\r\n".encode())

    assert kit.item().stage == stage


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:1/health", "localhost/health", "http://[", "http://a:b"),
        *("file:///etc/hosts", "data:,healthy", "ftp://localhost:1/health"),
    ],
)
def test_address_that_is_none_is_an_unhealthy_service(make_host: Maker, url: str) -> None:
    """A monitor whose address cannot be asked says so on its job, and ends it as any other."""
    kit = make_host(monitor_url=url, monitor_probes="1")
    job_id = kit.add("post-deploy")

    worker(kit).run_one()

    assert (kit.item().stage, kit.store.job(job_id).status) == ("development", "done")
    assert json.loads(json.loads(kit.store.job(job_id).metadata)["monitor"])["failed"] == 1


class _Moved(BaseHTTPRequestHandler):
    """Sends whoever asks for its health to a page that is there for everybody."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(302 if self.path == "/health" else 200)
        self.send_header("Location", "/sorry")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_answer_of_another_address_is_no_sign_of_health(make_host: Maker) -> None:
    """A service that sends its monitor to another page, of an outage say, is not healthy."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Moved) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/health"
        kit = make_host(monitor_url=url, monitor_probes="1")
        job_id = kit.add("post-deploy")
        worker(kit).run_one()
        server.shutdown()
        serving.join()

    assert kit.item().stage == "development"
    assert "302" in kit.store.job(job_id).metadata


def test_probe_is_over_when_its_command_is(make_host: Maker, tmp_path: Path) -> None:
    """What a probe leaves in the background, with its output open, is not waited for."""
    end = tmp_path / "end"
    os.mkfifo(end)
    command = shlex.join(["sh", "-c", f"cat {end} & exit 0"])
    kit = make_host(monitor_command=command, monitor_probes="1")
    kit.add("post-deploy")
    worker(kit).run_one()
    os.close(os.open(end, os.O_WRONLY))

    assert kit.item().stage == "done"


def test_probe_whose_end_nobody_knows_is_not_healthy(make_host: Maker) -> None:
    """Where the exit code of a probe was taken away, it is no 0."""
    kit = make_host(monitor_command="false", monitor_probes="1")
    kit.add("post-deploy")
    with ends_of_children_unseen():
        worker(kit).run_one()

    assert kit.item().stage == "development"


def test_probe_that_does_not_answer_is_an_unhealthy_one(
    make_host: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe that is not done in time is ended, and sends the work item back to development."""
    monkeypatch.setattr(launcher, "PROBE_TIMEOUT_SECONDS", 0.01)
    kit = make_host(monitor_command="sleep 600", monitor_probes="1")
    job_id = kit.add("post-deploy")

    worker(kit).run_one()

    assert (kit.item().stage, kit.store.job(job_id).status) == ("development", "done")


def test_service_that_never_answers_is_an_unhealthy_one(
    make_host: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deployed service that takes a connection and says nothing is not waited for for ever."""
    monkeypatch.setattr(launcher, "PROBE_TIMEOUT_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        kit = make_host(monitor_url=url, monitor_probes="1")
        kit.add("post-deploy")
        probing = threading.Thread(target=worker(kit).run_one, daemon=True)
        probing.start()
        probing.join(DEADLINE_SECONDS)

    assert not probing.is_alive()
    assert kit.item().stage == "development"


def test_service_that_answers_nonsense_is_an_unhealthy_one(make_host: Maker) -> None:
    """What is no answer of HTTP is an unhealthy probe, and ends the job as any other."""
    kit, job_id = probed(make_host, b"what?\r\n\r\n")

    assert (kit.item().stage, kit.store.job(job_id).status) == ("development", "done")

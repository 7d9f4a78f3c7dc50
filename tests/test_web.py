"""The queue, the pages and the metrics, asked for over real HTTP."""

import base64
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from pathlib import Path
from types import SimpleNamespace
from typing import Final, NoReturn
from urllib.parse import urlsplit

import attrs
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import staging_fsm
from forkserver import staging_fsm_of_fork
from served import GONE, PLAN, Shelf, ask, attempt, serving
from staging_fsm.core.config import TOKEN_CHARACTERS_MIN, variable_name
from staging_fsm.core.jobs import JobRow
from staging_fsm.core.outcome import Reason
from staging_fsm.core.snapshot import Artifact, dump_snapshot
from staging_fsm.core.spec import TERMINAL, State
from staging_fsm.effects.files import sha256_of_text
from staging_fsm.effects.run_output import RunOutput
from staging_fsm.effects.state_dir import StateDir, state_dir
from staging_fsm.faces.exits import ExitCode
from staging_fsm.faces.session import Session, open_session
from staging_fsm.faces.web import Source, create_app
from staging_fsm.faces.web import app as web_app
from staging_fsm.faces.web import events as web_events
from staging_fsm.faces.web import source as web_source
from staging_fsm.faces.web.guard import HEADERS
from staging_fsm.faces.web.pages import TONES
from staging_fsm.faces.web.server import source_of
from staging_fsm.host.contract.gate import ARTIFACT_NAME
from stand import bound_by_modes

TOKEN: Final = "correct-horse-battery-staple"  # noqa: S105  # a test's own


@attrs.frozen
class Desk:
    """The embedded orchestrator with a state folder of its own, by its commands."""

    folder: Path
    repository: Path

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment of its commands."""
        own = {variable_name("state_dir"): str(self.folder / "state")}
        return {**os.environ, **own, variable_name("retry_backoff_seconds"): "600"}

    def command(self, *arguments: str) -> list[str]:
        """Return the argument vector of a command."""
        return [sys.executable, "-m", "staging_fsm.faces", *arguments]

    def run(self, work_item: str, *suite: str, options: tuple[str, ...] = ()) -> int:
        """Run a suite to the end of its attempt; return the exit code."""
        arguments = ("run", "--repo", str(self.repository), "--work-item", work_item, *options)
        return staging_fsm_of_fork([*arguments, "--", *suite], self.variables).returncode

    def session(self) -> Session:
        """Return the orchestrator itself."""
        return open_session(None, self.variables)

    def source(self) -> Source:
        """Return what the app reads, as fresh as can be."""
        return attrs.evolve(source_of(self.session()), pulse_seconds=0.0)


@pytest.fixture
def desk(tmp_path: Path, repository: Path) -> Desk:
    """Return an orchestrator that has done nothing yet."""
    return Desk(tmp_path, repository)


def test_queue_is_the_block_under_its_name(desk: Desk) -> None:
    """`GET /queue` answers with the block `staging_runner`, what has ended in it included."""
    desk.run("WI-1", "true")
    desk.run("WI-2", "no-such-command")
    with serving(create_app(desk.source())) as port:
        answer = ask(port, "/queue")
    block = answer.json["staging_runner"]

    assert answer.status == HTTPStatus.OK
    assert answer.headers["content-type"] == "application/json"
    assert [(end["work_item"], end["state"]) for end in block["last_outcomes"]] == [
        ("WI-2", State.FAILED_CLOSED),
        ("WI-1", State.ADVANCED),
    ]
    assert (block["failed_closed_last_day"], block["last_day_is_whole"]) == (1, True)


def test_host_merges_the_block_into_its_own_answer(desk: Desk) -> None:
    """One public function gives the block, and it is what the app and the command give."""
    desk.run("WI-1", "false")
    block = staging_fsm.staging_runner_block(desk.session().rows, desk.variables)
    printed = subprocess.run(
        desk.command("queue", "--json"), env=desk.variables, capture_output=True, check=True
    )
    others = [json.loads(printed.stdout)["staging_runner"]]
    with serving(create_app(desk.source())) as port:
        others.append(ask(port, "/queue").json["staging_runner"])

    assert [{**other, "as_of": block["as_of"]} for other in others] == [block, block]


def test_every_answer_carries_the_headers(desk: Desk) -> None:
    """Whatever is answered, refusals included, tells a browser to run, frame and keep nothing."""
    with serving(create_app(desk.source())) as port:
        answers = [
            ask(port, "/queue"),
            ask(port, "/nowhere"),
            ask(port, "/queue", method="POST"),
            ask(port, "/queue", Host="evil.example"),
        ]

    assert [answer.status for answer in answers] == [200, 404, 405, 421]
    for answer in answers:
        assert {name: answer.headers[name.lower()] for name in HEADERS} == HEADERS


def test_policy_lets_a_page_run_and_load_what_is_the_servers_own(desk: Desk) -> None:
    """Nothing inline and nothing of anybody else's runs, is loaded, or is sent to."""
    with serving(create_app(desk.source())) as port:
        policy = ask(port, "/").headers["content-security-policy"]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))

    assert directives.pop("default-src") == "'none'"
    assert set(directives) >= {"script-src", "style-src", "connect-src", "base-uri", "form-action"}
    assert set(directives.values()) == {"'self'", "'none'"}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8115", "127.0.0.1.evil.example", ""]
)
def test_page_of_somebody_elses_name_reads_nothing(desk: Desk, host: str) -> None:
    """Without a token only the names of the loopback address are answered: no DNS rebinding."""
    with serving(create_app(desk.source())) as port:
        assert ask(port, "/queue", Host=host).status == HTTPStatus.MISDIRECTED_REQUEST


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8115", "[::1]:8115"])
def test_this_machines_own_names_are_answered(desk: Desk, host: str) -> None:
    """By any name of its loopback address, and any port, this machine is answered."""
    with serving(create_app(desk.source())) as port:
        assert ask(port, "/queue", Host=host).status == HTTPStatus.OK


def basic(user: str, password: str) -> str:
    """Return the value of a Basic Authorization header."""
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


GOOD: Final = [f"Bearer {TOKEN}", f"bearer {TOKEN}", basic("", TOKEN), basic("me", TOKEN)]
BAD: Final = [
    "",
    TOKEN,
    "Bearer",
    "Bearer ",
    f"Bearer {TOKEN}x",
    f"Bearer {TOKEN[:-1]}",
    "Bearer \xe9",
    basic(TOKEN, ""),
    basic("me", "guess"),
    f"Basic {TOKEN}",
    "Basic !",
]


#: Whatever a server has to show.
PATHS: Final = (
    *("/", "/queue", "/metrics", "/attempts/1", "/repositories/shop"),
    *("/static/diagram.css", "/static/page.css"),
)


def test_token_is_asked_for_with_every_request(desk: Desk) -> None:
    """With a token, Bearer or the password of Basic lets in, and nothing else does."""
    with serving(create_app(desk.source(), token=TOKEN, hosts=None)) as port:
        let_in = [ask(port, "/queue", Authorization=value, Host="ops.example") for value in GOOD]
        turned_away = [ask(port, "/queue", Authorization=value) for value in BAD]
        turned_away += [ask(port, path) for path in (*PATHS, "/nowhere", "/openapi.json")]
        health = ask(port, "/healthz")
        with events(port) as stream:
            listening = stream.status

    assert listening == HTTPStatus.UNAUTHORIZED
    assert {answer.status for answer in let_in} == {HTTPStatus.OK}
    assert {answer.status for answer in turned_away} == {HTTPStatus.UNAUTHORIZED}
    assert turned_away[0].headers["www-authenticate"].startswith("Basic ")
    assert (health.status, health.json) == (HTTPStatus.OK, {"status": "ok"})


@contextmanager
def serve(desk: Desk, *, by: tuple[str, ...] = (), **settings: str) -> Iterator[str]:
    """Run `staging-fsm serve` on any free port, by another program's hand; yield the address."""
    named = {variable_name(name): value for name, value in settings.items()}
    process = subprocess.Popen(
        [*by, *desk.command("serve", "--port", "0")],
        env={**desk.variables, **named},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().removeprefix("serving on ").strip()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def test_serve_says_where_and_answers(desk: Desk) -> None:
    """`staging-fsm serve` listens on the loopback address, and on nothing else unasked."""
    with serve(desk) as address, urllib.request.urlopen(f"{address}queue") as answer:  # noqa: S310  # our own http
        block = json.load(answer)["staging_runner"]

    assert address.startswith("http://127.0.0.1:")
    assert block["attempts"] == []


def test_serve_reads_a_database_that_cannot_be_written(desk: Desk) -> None:
    """Who may not write the database can serve it, and shows what others write into it."""
    assert desk.run("WI-1", "true") == ExitCode.ADVANCED
    state = desk.folder / "state"
    (state / "orchestrator.db").chmod(0o444)
    state.chmod(0o555)
    with serve(desk, by=bound_by_modes()) as address:
        before = [ask(port_of(address), f"/attempts/{job}").status for job in (1, 3)]
        state.chmod(0o755)
        (state / "orchestrator.db").chmod(0o644)
        assert desk.run("WI-2", "true") == ExitCode.ADVANCED
        state.chmod(0o555)
        after = ask(port_of(address), "/attempts/3")
        queue = ask(port_of(address), "/queue")
    state.chmod(0o755)

    assert before == [HTTPStatus.OK, HTTPStatus.NOT_FOUND]
    assert (after.status, queue.status) == (HTTPStatus.OK, HTTPStatus.OK)
    assert "WI-2" in after.text


def test_serve_asks_for_the_token_that_is_set(desk: Desk) -> None:
    """With a token in its settings `staging-fsm serve` answers whoever has it, by any name."""
    with serve(desk, http_token=TOKEN) as address:
        port = port_of(address)
        answers = [
            ask(port, "/queue"),
            ask(port, "/healthz"),
            ask(port, "/queue", Authorization=f"Bearer {TOKEN}", Host="ops.example"),
        ]

    assert [answer.status for answer in answers] == [401, 200, 200]


def test_serve_without_a_token_answers_to_this_machines_names_only(desk: Desk) -> None:
    """`staging-fsm serve` reads nothing to a page of somebody else's name."""
    with serve(desk) as address:
        assert ask(port_of(address), "/queue", Host="evil.example").status == 421


def test_serve_ends_though_a_page_is_open(desk: Desk) -> None:
    """Told to end, `staging-fsm serve` does not wait until the last listener has gone."""
    with ExitStack() as listeners:
        with serve(desk) as address:
            stream = listeners.enter_context(events(port_of(address)))
            while stream.readline() != b"event: listening\n":
                pass
        with pytest.raises(IncompleteRead):
            stream.read()


def port_of(address: str) -> int:
    """Return the port of an address."""
    return urlsplit(address).port or 0


@pytest.mark.parametrize("token", ["", "x" * (TOKEN_CHARACTERS_MIN - 1)])
def test_serve_beyond_this_machine_needs_a_token(desk: Desk, token: str) -> None:
    """Without a token of some length no other address is listened on, and the setting is named."""
    ended = subprocess.run(
        desk.command("serve", "--host", "0.0.0.0", "--port", "0"),  # noqa: S104  # what is refused
        env={**desk.variables, variable_name("http_token"): token},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert ended.returncode == ExitCode.DECLINED
    assert variable_name("http_token") in ended.stderr
    assert not token or token not in ended.stderr


def test_serve_on_a_port_that_is_taken_is_a_sentence(desk: Desk) -> None:
    """Where nothing can be served it is said where and why, with the exit code of a refusal."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = subprocess.run(
            desk.command("serve", "--port", str(port)),
            env=desk.variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    assert (ended.returncode, ended.stdout) == (ExitCode.DECLINED, "")
    assert f"staging-fsm: nothing is served on 127.0.0.1 port {port}: " in ended.stderr
    assert "ddress already in use" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_app_is_mounted_below_a_path(desk: Desk) -> None:
    """Mounted in a host's own app, below any path, it answers there."""
    app = Starlette(routes=[Mount("/ops/staging", create_app(desk.source(), hosts=None))])
    with serving(app) as port:
        answers = [ask(port, f"/ops/staging{path}", Host="ops.example") for path in ("/queue",)]

    assert [answer.status for answer in answers] == [HTTPStatus.OK]


def test_mounted_app_keeps_below_its_path(desk: Desk) -> None:
    """Below a path all that a page leads to is below it, and health needs no token."""
    desk.run("WI-1", "true")
    inner = create_app(desk.source(), token=TOKEN, hosts=None)
    with serving(Starlette(routes=[Mount("/ops/staging", inner)])) as port:
        health = ask(port, "/ops/staging/healthz")
        closed = ask(port, "/ops/staging/queue")
        pages = [
            ask(port, f"/ops/staging{path}", Authorization=f"Bearer {TOKEN}").body.decode()
            for path in ("/", "/attempts/1")
        ]

    assert (health.status, closed.status) == (HTTPStatus.OK, HTTPStatus.UNAUTHORIZED)
    for page in pages:
        leads = re.findall(r'(?:href|src|data-[\w-]+)="(/[^"]*)"', page)
        assert leads
        assert [lead for lead in leads if not lead.startswith("/ops/staging/")] == []


def test_jobs_that_cannot_be_read_are_said_to_be(desk: Desk) -> None:
    """Where the table cannot be read the answer is 503 and a sentence, no traceback."""
    source = desk.source()
    with sqlite3.connect(desk.folder / "state" / "orchestrator.db") as database:
        database.execute("ALTER TABLE jobs RENAME TO lost")
    paths = ("/queue", "/healthz", "/", "/metrics", "/attempts/1", "/repositories/shop")
    with serving(create_app(source)) as port:
        answers = [ask(port, path) for path in paths]

    said = "the jobs cannot be read (ConfigInvalidError): the server's log says more"
    assert [answer.status for answer in answers] == [HTTPStatus.SERVICE_UNAVAILABLE] * len(paths)
    assert {answer.json["detail"] for answer in answers} == {said}


def test_jobs_that_can_be_read_no_more_are_not_shown_as_they_were(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that has shown the queue shows it to nobody once it cannot be read."""
    now, pulse = [0.0], 0.5
    monkeypatch.setattr(web_source, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with serving(create_app(attrs.evolve(desk.source(), pulse_seconds=pulse))) as port:
        before = ask(port, "/healthz").status
        with sqlite3.connect(desk.folder / "state" / "orchestrator.db") as database:
            database.execute("ALTER TABLE jobs RENAME TO lost")
        # All of them ask in the moment in which the first of them makes it look again.
        now[0] += pulse
        answers = [ask(port, path) for path in ("/healthz", "/queue", "/")]

    # No statement, and no address: health asks for no token.
    said = "the jobs cannot be read (OperationalError): the server's log says more"
    assert before == HTTPStatus.OK
    assert {answer.status for answer in answers} == {HTTPStatus.SERVICE_UNAVAILABLE}
    assert {answer.json["detail"] for answer in answers} == {said}


def test_database_that_goes_away_under_a_server_is_not_made_anew(desk: Desk) -> None:
    """Where the database is moved away the answer is 503, no file is made, and it may come back."""
    file, away = desk.folder / "state" / "orchestrator.db", desk.folder / "away"
    looking = open_session(None, desk.variables, only_to_look=True)
    source = attrs.evolve(source_of(looking), pulse_seconds=0.0)
    with serving(create_app(source)) as port:
        before = ask(port, "/queue").status
        file.rename(away)
        answers = [ask(port, path).status for path in ("/queue", "/healthz", "/", "/queue")]
        is_made = file.exists()
        away.rename(file)
        after = ask(port, "/queue").status

    assert not is_made
    assert set(answers) == {HTTPStatus.SERVICE_UNAVAILABLE}
    assert before == after == HTTPStatus.OK


@pytest.mark.parametrize("table", ["work_items", "repositories"])
def test_page_without_what_stands_beside_a_job_is_said_to_be(desk: Desk, table: str) -> None:
    """Where work items or repositories cannot be read, a page is a 503 with a sentence, too."""
    assert desk.run("WI-1", "true") == ExitCode.ADVANCED
    source = desk.source()
    with sqlite3.connect(desk.folder / "state" / "orchestrator.db") as database:
        database.execute(f"ALTER TABLE {table} RENAME TO lost")
    with serving(create_app(source)) as port:
        answer = ask(port, "/attempts/1")

    assert answer.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert answer.headers.items() >= {name.lower(): word for name, word in HEADERS.items()}.items()


def test_failure_of_the_server_itself_carries_the_headers(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the server fails it says so in a sentence, without a trace, as guarded as ever."""

    def fail(*_: object) -> None:
        message = "a secret of ours"
        raise RuntimeError(message)

    monkeypatch.setattr(web_app, "repository_page", fail)
    with serving(create_app(desk.source())) as port:
        answer = ask(port, "/repositories/shop")

    assert answer.status == HTTPStatus.INTERNAL_SERVER_ERROR
    assert answer.text == "This server failed: its log says more.\n"
    assert answer.headers.items() >= {name.lower(): word for name, word in HEADERS.items()}.items()


def test_table_is_read_once_for_many_who_ask(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many look at once, the table is looked at as often as its pulse says."""
    looks = list[int]()
    source = attrs.evolve(desk.source(), pulse_seconds=3600.0)
    unfinished = source.rows.unfinished

    def look() -> list[JobRow]:
        looks.append(1)
        return unfinished()

    monkeypatch.setattr(source.rows, "unfinished", look)
    with serving(create_app(source)) as port:
        answers = [ask(port, "/queue").status for _ in range(5)]

    assert answers == [HTTPStatus.OK] * 5
    assert len(looks) == 1


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    """Return a database without jobs."""
    shelf = Shelf.at(tmp_path)
    yield shelf
    shelf.store.engine.dispose()


PROGRAM: Final = "application/json"
BROWSER: Final = "text/html,application/xhtml+xml"


@pytest.mark.parametrize("job", ["4711", "x", "9" * 30, "-1", "..%2f..%2fetc%2fpasswd", "%00", ""])
def test_job_that_does_not_exist_is_not_found(shelf: Shelf, job: str) -> None:
    """Whatever is asked for that is no job: a page says so to a browser, JSON to a program."""
    with serving(create_app(shelf.source())) as port:
        page = ask(port, f"/attempts/{job}", Accept=BROWSER)
        document = ask(port, f"/attempts/{job}", Accept=PROGRAM)

    assert (page.status, document.status) == (HTTPStatus.NOT_FOUND, HTTPStatus.NOT_FOUND)
    assert page.headers["content-type"].startswith("text/html")
    assert "there is no job" in document.json["detail"]


def test_nothing_is_written(shelf: Shelf) -> None:
    """Whatever is asked for, by whatever method, no row and no file changes."""
    running = attempt(State.RUNNING, now=datetime.now(UTC))
    shelf.log(running, "output\n")
    job = shelf.put(running)
    shelf.put("17")
    paths = ["/", "/queue", "/healthz", f"/attempts/{job}", "/attempts/2", "/repositories/shop"]
    before = _everything(shelf)
    with serving(create_app(shelf.source())) as port:
        for path in paths:
            assert ask(port, path).status == HTTPStatus.OK
            for method in ("POST", "PUT", "PATCH", "DELETE"):
                assert ask(port, path, method=method).status == HTTPStatus.METHOD_NOT_ALLOWED

    assert _everything(shelf) == before


def _everything(shelf: Shelf) -> tuple[list[str], dict[str, bytes]]:
    """Return every row, and every file of the state folder."""
    with sqlite3.connect(shelf.folder / "orchestrator.db") as database:
        rows = list(database.iterdump())
    files = (shelf.folder / "state").rglob("*")
    return rows, {str(path): path.read_bytes() for path in files if path.is_file()}


ARTIFACT: Final = "---\nstaging_status: SUCCESS\n---\n<b>tail</b>\n"


def handed_over(shelf: Shelf, path: Path, text: str = ARTIFACT) -> str:
    """Return the page of an attempt that says it wrote `text` to `path`."""
    advanced = attempt(State.ADVANCED, now=datetime.now(UTC))
    written = Artifact(str(path), sha256_of_text(text))
    job = shelf.put(attrs.evolve(advanced, artifact=written), work_item="WI-1")
    with serving(create_app(shelf.source())) as port:
        return ask(port, f"/attempts/{job}").text


def test_artifact_is_shown_as_long_as_it_is_what_was_written(shelf: Shelf) -> None:
    """The artifact stands on the page, escaped, with the word that it is what the gate read."""
    path = shelf.folder / "repository" / "docs" / "work-items" / "WI-1" / ARTIFACT_NAME
    path.parent.mkdir(parents=True)
    path.write_text(ARTIFACT)
    page = handed_over(shelf, path)

    assert "what the gate read" in page
    assert "&lt;b&gt;tail&lt;/b&gt;" in page


def test_artifact_that_was_altered_is_said_to_be_and_not_shown(shelf: Shelf) -> None:
    """An artifact whose digest is another now is called altered; its text is nobody's verdict."""
    path = shelf.folder / "repository" / ARTIFACT_NAME
    path.parent.mkdir(parents=True)
    path.write_text(ARTIFACT.replace("tail", "forged"))
    page = handed_over(shelf, path)

    assert "no longer what was written" in page
    assert "forged" not in page


def test_secrets_of_a_command_are_shown_to_nobody(shelf: Shelf) -> None:
    """What is secret among the words of a command, by its option or its value, is no page's."""
    secret, named = "hunter22-of-ours", "value-of-a-token"
    plan = attrs.evolve(
        PLAN,
        suite=attrs.evolve(
            PLAN.suite, command=("curl", "--password", secret, named), environment=("API_TOKEN",)
        ),
    )
    job = shelf.put(attrs.evolve(attempt(State.RUNNING), plan=plan))
    source = shelf.source()
    source.variables = {**source.variables, "API_TOKEN": named}
    with serving(create_app(source)) as port:
        page = ask(port, f"/attempts/{job}").text

    assert "curl" in page
    assert secret not in page
    assert named not in page


def test_command_is_shown_as_its_artifact_shows_it(shelf: Shelf) -> None:
    """A server that was not given what a worker knew for a secret shows none of it either."""
    ended = attempt(State.ADVANCED)
    suite = attrs.evolve(PLAN.suite, command=("deploy", "value-of-a-token"))
    ended = attrs.evolve(ended, plan=attrs.evolve(PLAN, suite=suite))
    shelf.log(ended, "deployed")
    worker = {**shelf.source().variables, "DEPLOY_TOKEN": "value-of-a-token"}
    RunOutput(StateDir(state_dir(worker)), worker).keep_command(f"{ended.attempt_id}.1", suite)
    job = shelf.put(ended)
    with serving(create_app(shelf.source())) as port:
        page = ask(port, f"/attempts/{job}").text

    assert "deploy ***" in page
    assert "value-of-a-token" not in page


def test_run_is_drawn_as_it_was_judged(shelf: Shelf) -> None:
    """A run that ended with 0 and showed no test is drawn as what it was: not executed."""
    empty = attempt(State.FAILED_CLOSED)
    runs = tuple(attrs.evolve(run, reason=Reason.NO_TESTS, exit_code=0) for run in empty.runs)
    jobs = [
        shelf.put(attrs.evolve(empty, runs=runs)),
        shelf.put(attempt(State.ROLLED_BACK)),
        shelf.put(attempt(State.ADVANCED)),
    ]
    with serving(create_app(shelf.source())) as port:
        pages = [ask(port, f"/attempts/{job}").text for job in jobs]

    assert [re.findall(r'class="run (\w+)"', page) for page in pages] == [
        ["bad"],
        ["code"],
        ["good"],
    ]


def test_only_what_passed_is_drawn_as_good() -> None:
    """Each state is drawn as who has to act: nobody, the developer, the operator, or not yet."""
    assert {state: TONES[state] for state in TERMINAL} == {
        State.ADVANCED: "good",
        State.ROLLED_BACK: "code",
        State.FAILED_CLOSED: "bad",
        State.LLM_FALLBACK: "quiet",
        State.CANCELLED: "quiet",
    }
    assert {state for state, tone in TONES.items() if tone == "good"} == {
        State.ADVANCED,
        State.VERDICT_PASSED,
    }


def test_damaged_rows_of_a_repository_are_counted(shelf: Shelf) -> None:
    """A repository's page says how many of its rows are refused, and one wild number hides none."""
    shelf.put("17")
    wild = attempt(State.ADVANCED)
    runs = tuple(attrs.evolve(run, duration_seconds=1e308) for run in wild.runs)
    shelf.put(attrs.evolve(wild, runs=runs))
    with serving(create_app(shelf.source())) as port:
        page = ask(port, "/repositories/shop")

    assert page.status == HTTPStatus.OK
    assert "1 refused" in page.text
    assert "30 d" in page.text


@pytest.mark.parametrize("what", ["stuck", "no agent", "refused", "invalid"])
def test_page_says_what_needs_a_person(shelf: Shelf, what: str) -> None:
    """Each thing that a person has to see to stands by itself where people look first."""
    source = shelf.source()
    if what == "stuck":
        shelf.put(attempt(State.RUNNING, worker=GONE))
    elif what == "no agent":
        source.has_agent = False
        shelf.put(attempt(State.LLM_FALLBACK), status="queued")
    elif what == "refused":
        shelf.put("17")
    else:
        wrong = {variable_name("enabled"): "1", variable_name("timeout_seconds"): "soon"}
        source.variables = {**source.variables, **wrong}
    with serving(create_app(source)) as port:
        page = ask(port, "/").text
    needs = page.partition('<section class="needs"')[2].partition("</section>")[0]

    words_ = {
        "stuck": "worker is gone",
        "no agent": "no LLM agent is configured",
        "refused": "its row is refused",
        "invalid": "soon",
    }
    assert words_[what] in needs


@pytest.mark.parametrize("shadow", ["1", "0"])
def test_page_says_who_is_the_producer(shelf: Shelf, shadow: str) -> None:
    """In shadow mode the page does not call the runner on: the LLM agent is the producer."""
    source = shelf.source()
    said = {"enabled": "1", "shadow": shadow, "repos": "*"}
    source.variables = {**source.variables, **{variable_name(k): v for k, v in said.items()}}
    with serving(create_app(source)) as port:
        page = ask(port, "/").text
    tile = page.partition("<dt>Runner</dt>")[2].partition("</div>")[0]

    assert ("<dd>shadow</dd>" in tile, "<dd>on</dd>" in tile) == (shadow == "1", shadow == "0")
    assert ("the LLM agent is the producer" in tile) == (shadow == "1")
    assert "all repositories" in tile


def test_command_that_is_no_text_has_its_page(shelf: Shelf) -> None:
    """A row may hold half a character in a command: its attempt is shown all the same."""
    document = dump_snapshot(attempt(State.RUNNING))
    assert '"make"' in document
    job = shelf.put(document.replace('"make"', '"make\\ud800"'))
    with serving(create_app(shelf.source())) as port:
        page = ask(port, f"/attempts/{job}")

    assert page.status == HTTPStatus.OK
    assert "make\\ud800" in page.text


@pytest.mark.parametrize("way", ["nul", "not registered"])
def test_artifact_that_lies_nowhere_is_said_to(shelf: Shelf, way: str) -> None:
    """A path that can be none, or a repository that nobody knows, is a word on the page."""
    path = shelf.folder / ("\0" if way == "nul" else ".") / ARTIFACT_NAME
    source = shelf.source()
    if way == "not registered":
        (shelf.folder / ARTIFACT_NAME).write_text(ARTIFACT)
        source.place = unknown
    written = Artifact(str(path), sha256_of_text(ARTIFACT))
    job = shelf.put(attrs.evolve(attempt(State.ADVANCED), artifact=written))
    with serving(create_app(source)) as port:
        answer = ask(port, f"/attempts/{job}")

    assert answer.status == HTTPStatus.OK
    assert "not where this server may read" in answer.text


def unknown(row: JobRow) -> NoReturn:
    """Know no repository."""
    raise LookupError(row.repo)


@pytest.mark.parametrize("way", ["elsewhere", "link", "linked folder", "dots", "other name"])
def test_no_file_outside_the_repository_is_read(shelf: Shelf, way: str) -> None:
    """A path in a row that leads out of the repository, or to another name, shows no file."""
    repository, outside = shelf.folder / "repository", shelf.folder / "outside"
    for folder in (repository, outside):
        folder.mkdir()
    secret = outside / ARTIFACT_NAME
    secret.write_text("secret")
    (outside / "secret.txt").write_text("secret")
    (repository / "secret.txt").write_text("secret")
    (repository / "folder").symlink_to(outside)
    (repository / ARTIFACT_NAME).symlink_to(outside / "secret.txt")
    path = {
        "elsewhere": secret,
        "link": repository / ARTIFACT_NAME,
        "linked folder": repository / "folder" / ARTIFACT_NAME,
        "dots": repository / ".." / "outside" / ARTIFACT_NAME,
        "other name": repository / "secret.txt",
    }[way]
    page = handed_over(shelf, path, "secret")

    assert "not where this server may read" in page
    assert "<samp>secret" not in page


def test_pages_are_of_bounded_size(shelf: Shelf) -> None:
    """However much rows and logs hold, a page stays below a megabyte."""
    huge = "<&\"'>" * 200_000
    running = attempt(State.RUNNING, now=datetime.now(UTC))
    moves = tuple(attrs.evolve(move, reason=huge) for move in running.history)
    shelf.log(running, huge)
    job = shelf.put(attrs.evolve(running, history=moves, worker=huge), work_item="x" * 100_000)
    with serving(create_app(shelf.source())) as port:
        sizes = [len(ask(port, path).body) for path in ("/", "/queue", f"/attempts/{job}")]

    assert max(sizes) < 1_000_000


@contextmanager
def events(port: int, query: str = "") -> Iterator[HTTPResponse]:
    """Yield a stream of events, or what is answered instead."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", f"/events{query}")
        with connection.getresponse() as answer:
            yield answer


@pytest.mark.parametrize("query", ["", "?job=1"])
def test_a_move_is_an_event(shelf: Shelf, query: str) -> None:
    """Whoever listens is told when an attempt has moved, and nothing of what it did."""
    job = shelf.put(attempt(State.EXHAUSTED, now=datetime.now(UTC)))
    with serving(create_app(shelf.source())) as port, events(port, query) as stream:
        while stream.readline() != b"event: listening\n":
            pass
        shelf.set(job, dump_snapshot(attempt(State.FAILED_CLOSED, now=datetime.now(UTC))), "done")
        while (line := stream.readline()) != b"event: changed\n":
            assert line in (b":\n", b"\n") or line.startswith(b"data: ")
        data = stream.readline()

    assert stream.headers["content-type"].startswith("text/event-stream")
    assert re.fullmatch(rb"data: [0-9a-f]{16}(-\d+)?\n", data)


CHANGES: Final[dict[str, Callable[[Shelf], object]]] = {
    "a row is refused": lambda shelf: shelf.put("17"),
    "the jobs cannot be read": lambda shelf: shelf.run("ALTER TABLE jobs RENAME TO lost"),
    "something failed closed": lambda shelf: shelf.put(
        attempt(State.FAILED_CLOSED, now=datetime.now(UTC))
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_a_person_would_see_is_an_event(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """An open page is told of all that changes on it, and never shows old news as live."""
    monkeypatch.setattr(web_events, "LOOK_SECONDS", 0.01)
    with serving(create_app(shelf.source())) as port, events(port) as stream:
        while stream.readline() != b"event: listening\n":
            pass
        CHANGES[change](shelf)
        while (line := stream.readline()) != b"event: changed\n":
            assert line in (b":\n", b"\n") or line.startswith(b"data: ")


def test_time_of_a_running_suite_goes_on(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """While something runs an open page is told to come again, though nothing has moved."""
    monkeypatch.setattr(web_events, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(web_events, "ACTIVE_SECONDS", 1)
    shelf.put(attempt(State.RUNNING, now=datetime.now(UTC)))
    with serving(create_app(shelf.source())) as port, events(port) as stream:
        while (line := stream.readline()) != b"event: changed\n":
            assert line


def test_streams_are_numbered(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many listeners a further one is told to come again, until one has gone."""
    monkeypatch.setattr(web_events, "STREAMS_MAX", 2)
    monkeypatch.setattr(web_events, "LOOK_SECONDS", 0.01)
    with serving(create_app(shelf.source())) as port:
        with events(port), events(port), events(port) as third:
            refused = (third.status, third.headers["retry-after"])
        for _ in range(1000):
            with events(port) as again:
                if again.status == HTTPStatus.OK:
                    break

    assert refused == (HTTPStatus.SERVICE_UNAVAILABLE, "30")
    assert again.status == HTTPStatus.OK


def test_openapi_document_is_kept(shelf: Shelf) -> None:
    """Whatever schemathesis makes of the OpenAPI document, every answer is one it describes."""
    for state in (State.RUNNING, State.DEFERRED, State.ADVANCED):
        shelf.put(attempt(state, now=datetime.now(UTC)))
    shelf.put("17")
    with serving(create_app(shelf.source())) as port:
        ended = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")),
                "run",
                f"http://127.0.0.1:{port}/openapi.json",
                "--max-examples=20",
                "--seed=1",
                "--no-color",
            ],
            cwd=shelf.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    assert ended.returncode == 0, ended.stdout
    assert re.search(r"(\d+) generated, \1 passed", ended.stdout)

"""The queue, the pages and the metrics, asked for over real HTTP."""

import base64
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

import staging_fsm
from staging_fsm.core.config import TOKEN_CHARACTERS_MIN, variable_name
from staging_fsm.core.spec import State
from staging_fsm.faces.exits import ExitCode
from staging_fsm.faces.session import Session, open_session
from staging_fsm.faces.web import Source, create_app
from staging_fsm.faces.web.guard import HEADERS
from staging_fsm.faces.web.server import source_of

TOKEN: Final = "correct-horse-battery-staple"  # noqa: S105  # a test's own


@attrs.frozen
class Answer:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """Return the body as text."""
        return self.body.decode()

    @property
    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)


def ask(port: int, path: str, method: str = "GET", **headers: str) -> Answer:
    """Ask the server on this machine's `port`; `headers` with underscores."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=named)
    with connection.getresponse() as response:
        found = {name.lower(): value for name, value in response.getheaders()}
        answer = Answer(response.status, found, response.read())
    connection.close()
    return answer


@contextmanager
def serving(app: Any) -> Iterator[int]:
    """Serve an ASGI app by a real uvicorn; yield its port."""
    config = uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    started = threading.Event()
    startup = server.startup

    async def say_when_started(sockets: Any = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = say_when_started  # type: ignore[method-assign]  # uvicorn has no callback for it
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(30)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)


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
        return subprocess.run(
            self.command(*arguments, "--", *suite),
            env=self.variables,
            check=False,
            timeout=60,
            capture_output=True,
        ).returncode

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


def test_token_is_asked_for_with_every_request(desk: Desk) -> None:
    """With a token, Bearer or the password of Basic lets in, and nothing else does."""
    with serving(create_app(desk.source(), token=TOKEN, hosts=None)) as port:
        let_in = [ask(port, "/queue", Authorization=value, Host="ops.example") for value in GOOD]
        turned_away = [ask(port, "/queue", Authorization=value) for value in BAD]
        turned_away += [ask(port, path) for path in ("/queue", "/nowhere", "/openapi.json")]
        health = ask(port, "/healthz")

    assert {answer.status for answer in let_in} == {HTTPStatus.OK}
    assert {answer.status for answer in turned_away} == {HTTPStatus.UNAUTHORIZED}
    assert turned_away[0].headers["www-authenticate"].startswith("Basic ")
    assert (health.status, health.json) == (HTTPStatus.OK, {"status": "ok"})


@contextmanager
def serve(desk: Desk, *arguments: str, **settings: str) -> Iterator[str]:
    """Run `staging-fsm serve` on any free port; yield the address it says."""
    named = {variable_name(name): value for name, value in settings.items()}
    process = subprocess.Popen(
        desk.command("serve", "--port", "0", *arguments),
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


def test_app_is_mounted_below_a_path(desk: Desk) -> None:
    """Mounted in a host's own app, below any path, it answers there."""
    app = Starlette(routes=[Mount("/ops/staging", create_app(desk.source(), hosts=None))])
    with serving(app) as port:
        answers = [ask(port, f"/ops/staging{path}", Host="ops.example") for path in ("/queue",)]

    assert [answer.status for answer in answers] == [HTTPStatus.OK]


def test_jobs_that_cannot_be_read_are_said_to_be(desk: Desk) -> None:
    """Where the table cannot be read the answer is 503 and a sentence, no traceback."""
    source = desk.source()
    with sqlite3.connect(desk.folder / "state" / "orchestrator.db") as database:
        database.execute("ALTER TABLE jobs RENAME TO lost")
    with serving(create_app(source)) as port:
        answers = [ask(port, path) for path in ("/queue", "/healthz")]

    assert [answer.status for answer in answers] == [HTTPStatus.SERVICE_UNAVAILABLE] * 2
    assert answers[0].json["detail"].startswith("the jobs cannot be read (")

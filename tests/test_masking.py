"""Secrets in output: what is taken for one, in which forms it is found, and what is left alone."""

import base64
import itertools
import json
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from staging_fsm.core.masking import (
    CUT_MIN_BYTES,
    DROPPED_NOTE,
    MASK,
    SECRET_MIN_BYTES,
    MaskedStream,
    Masker,
    looks_secret,
)
from staging_fsm.effects.shim import BoundedLog

SECRET = 's3cr+t/ü"p@ss w0rd'  # noqa: S105  # nobody's
KEY = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----\n"
MASKER = Masker.of({"API_TOKEN": SECRET, "SSH_KEY": KEY})

secrets = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Zs"]), min_size=8, max_size=20
)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("GITHUB_TOKEN", True),
        ("client_secret", True),
        ("DB_PASSWORD", True),
        ("MYSQL_PWD", True),
        ("APIKEY", True),
        ("AWS_ACCESS_KEY_ID", True),
        ("GOOGLE_CREDENTIALS", True),
        ("SENTRY_DSN", True),
        ("NPM_AUTH", True),
        ("ORCH_STAGING_RUNNER_ALERT_URLS", True),
        ("PATH", False),
        ("PWD", False),
        ("OLDPWD", False),
        ("KEYBOARD", False),
        ("GIT_AUTHOR_NAME", False),
        ("SSH_AUTH_SOCK", False),
        ("LANG", False),
    ],
)
def test_names_tell_secrets(name: str, secret: bool) -> None:  # noqa: FBT001  # a table of answers
    """A variable holds a secret if a word of its name says so."""
    assert looks_secret(name) is secret


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (("t", "--api-token=hunter22"), ("t", "--api-token=***")),
        (("t", "--password", "two words"), ("t", "--password", "***")),
        (("t", "DB_PASSWORD=hunter22"), ("t", "DB_PASSWORD=***")),
        (("t", "-Dclient.secret=hunter22"), ("t", "-Dclient.secret=***")),
        (("curl", "-H", "Authorization: Bearer hunter22"), ("curl", "-H", "Authorization: ***")),
        (("t", "--token", "Bearer", "hunter22"), ("t", "--token", "Bearer", "***")),
        (("sh", "-c", "t; A_TOKEN=hunter22 t -v"), ("sh", "-c", "t; A_TOKEN=*** t -v")),
        (("sh", "-c", "t --token 'hunter22'; u"), ("sh", "-c", "t --token '***'; u")),
        (("t", "--token=hunter22", "hunter22"), ("t", "--token=***", "***")),
        (("t", "pg://me:hunter22@host/db"), ("t", "pg://me:***@host/db")),
    ],
)
def test_secret_in_a_command_is_masked(command: tuple[str, ...], shown: tuple[str, ...]) -> None:
    """What a command line says after a name that looks secret is one, in a script as well."""
    assert Masker.of({}, (), command).mask_words(command) == shown


@pytest.mark.parametrize(
    "command",
    [
        ("pytest", "tests/test_auth.py::test_token", "-k", "token or secret"),
        ("t", "--sort-key=duration", "--tokens", "--other", "something"),
        ("t", "--token", "$API_TOKEN", "--password=$(cat password)"),
        ("t", "--private-key-file=/etc/keys/one", "--token-env", "API_TOKEN"),
        ("t", "\udcff\udcfe"),
    ],
)
def test_command_without_a_secret_is_shown_as_it_is(command: tuple[str, ...]) -> None:
    """Names of tests, of files and of variables in a command are no secrets."""
    assert Masker.of({}, (), command).mask_words(command) == command


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        json.dumps(SECRET),
        quote(SECRET),
        quote(SECRET, safe=""),
        base64.b64encode(SECRET.encode()).decode(),
        base64.b64encode(b"user:" + SECRET.encode() + b"!").decode(),
        base64.urlsafe_b64encode(b"me:" + SECRET.encode()).decode(),
    ],
)
def test_secret_is_found_in_every_usual_form(form: str) -> None:
    """A secret is masked as it is, and as JSON, addresses and base64 write it."""
    masked = MASKER.mask(b"before " + form.encode() + b" after")

    assert MASK in masked
    assert masked.startswith(b"before ")
    assert masked.endswith(b" after")
    assert SECRET.encode() not in masked
    assert SECRET[4:12].encode() not in masked
    assert base64.b64encode(SECRET.encode())[4:16] not in masked


def test_secret_of_several_lines_is_found_line_by_line() -> None:
    """Of a secret of several lines each line is one, however they are indented."""
    output = "\n".join(f"  | {line}" for line in KEY.splitlines())

    assert MASKER.mask(output.encode()) == b"\n".join([b"  | ***"] * 4)


def test_password_in_an_address_is_a_secret_whatever_its_variable() -> None:
    """The password in an address is masked, and the address is not."""
    masker = Masker.of({"ORCH_DB_URL": "postgresql://me:hunt%2Fer2@db.example/shop"})

    assert masker.mask(b"hunt%2Fer2 hunt/er2 db.example") == b"*** *** db.example"


def test_named_variables_are_secret_and_others_are_not() -> None:
    """What a suite is given by name is a secret; any other variable is one by its own name."""
    masker = Masker.of({"STAGE_URL": "https://stage.example", "EDITOR": "emacs-nox"}, ["STAGE_URL"])

    assert masker.mask(b"https://stage.example emacs-nox") == b"*** emacs-nox"


def test_short_values_are_left_alone() -> None:
    """A value that is too short is a word like any other."""
    short = "x" * (SECRET_MIN_BYTES - 1)

    assert Masker.of({"TOKEN": short}).mask(short.encode()) == short.encode()
    assert Masker.of({"TOKEN": short + "x"}).mask(short.encode() + b"x") == MASK


@pytest.mark.parametrize("cut", range(CUT_MIN_BYTES, len(SECRET.encode()) - CUT_MIN_BYTES))
def test_secret_that_is_cut_is_masked(cut: int) -> None:
    """A secret of which the edge of the output, or its gap, left a part is masked there too."""
    raw = SECRET.encode()
    note = b"\n[staging_fsm: 7 bytes of output dropped here]\n"
    output = raw[-cut:] + b" and " + raw[:cut] + note + raw[-cut:] + b" end"

    assert MASKER.mask(output) == MASK + b" and " + MASK + note + MASK + b" end"


def test_gap_is_known_by_the_note_in_the_log(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The note that the supervisor leaves where it dropped output is the one that is looked for."""
    folder = tmp_path_factory.mktemp("log")
    log = BoundedLog(str(folder), 64)
    for _ in range(64):
        log.write(b"x" * 64)
    log.finish()

    assert len(DROPPED_NOTE.findall((folder / "output.log").read_bytes())) == 1


@settings(max_examples=40)
@given(
    secret=secrets,
    around=st.binary(max_size=20),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
)
def test_stream_shows_what_the_whole_would(secret: str, around: bytes, sizes: list[int]) -> None:
    """Output that comes piece by piece is shown as the whole would be, and no piece tells more."""
    masker = Masker.of({"TOKEN": secret})
    output = around + secret.encode() + b" " + around + secret.encode() + b"."
    stream, shown, at = MaskedStream(masker), b"", 0
    for size in itertools.cycle(sizes):
        if at >= len(output):
            break
        shown += stream.feed(output[at : at + size])
        at += size
    shown += stream.end()

    assert not any(form in shown for form in masker.forms)
    assert shown == masker.mask_whole(output)


@given(st.binary())
def test_output_without_secrets_is_left_as_it_is(output: bytes) -> None:
    """Where nothing is secret, nothing is changed."""
    assert Masker.of({"HOME": "/home", "EDITOR": "emacs-nox"}).mask(output) == output

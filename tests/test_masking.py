"""Secrets in output: what is taken for one, in which forms it is found, and what is left alone."""

import base64
import itertools
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from staging_fsm.core.masking import (
    CUT_MIN_BYTES,
    DROPPED_NOTE,
    MASK,
    MaskedStream,
    Masker,
    looks_secret,
)
from staging_fsm.effects.supervisor.log import BoundedLog

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
        ("SESSION_COOKIE", True),
        ("COOKIE_JAR", True),
        ("GPG_PASSPHRASE", True),
        ("SSH_PASSCODE", True),
        ("API_KEY2", True),
        ("AUTHORIZATION", True),
        ("HTTP_AUTHORIZATION", True),
        ("AUTHORS", False),
        ("SIGNING_KEY1", True),
        ("JWT_KEYS", True),
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
        (("t", "redis://:hunter22@cache"), ("t", "redis://:***@cache")),
        (("t", "--api-key=hunter22"), ("t", "--api-key=***")),
        (("t", "--access-key=hunter22"), ("t", "--access-key=***")),
        (("t", "--auth-key=hunter22"), ("t", "--auth-key=***")),
        (("t", "--private-key=hunter22"), ("t", "--private-key=***")),
        (("t", "--signing-key=hunter22"), ("t", "--signing-key=***")),
        (("t", "--encryption-key", "hunter22"), ("t", "--encryption-key", "***")),
        (("t", "--auth-token=hunter22", "hunter-23"), ("t", "--auth-token=***", "hunter-23")),
        (("curl", "-H", "Authorization:", "hunter22"), ("curl", "-H", "Authorization:", "***")),
        (("t", "--token", "basic", "hunter22"), ("t", "--token", "basic", "***")),
        (("t", "--token", "TOKEN", "hunter22"), ("t", "--token", "TOKEN", "***")),
        (("t", "--token", "digest", "hunter22"), ("t", "--token", "***", "hunter22")),
        (
            ("t", "-H", "Cookie: hunter22", "Bearer hunter22"),
            ("t", "-H", "Cookie: ***", "Bearer ***"),
        ),
        (("t", "-H", "Cookie: Token hun'ter22", "hun'ter22"), ("t", "-H", "Cookie: ***", "***")),
        (("t", "--password=my hunter22", "hunter22"), ("t", "--password=***", "hunter22")),
        (("sh", "-c", "t;A_TOKEN=hunter22"), ("sh", "-c", "t;A_TOKEN=***")),
        (("t", "--private-key=-----BEGIN-----\nMIIEvQ\n-----END-----"), ("t", "--private-key=***")),
        (("t", "Cookie: hunter\n22"), ("t", "Cookie: ***")),
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
        ("pytest", "-k", "password", "resetting"),
        ("t", "--private-key-file=/etc/keys/one", "--token-env", "API_TOKEN"),
        ("t", "\udcff\udcfe"),
    ],
)
def test_command_without_a_secret_is_shown_as_it_is(command: tuple[str, ...]) -> None:
    """Names of tests, of files and of variables in a command are no secrets."""
    assert Masker.of({}, (), command).mask_words(command) == command


def test_command_of_half_a_character_is_shown() -> None:
    """What a row holds may be no text that a command could have: it is shown, and masked."""
    command = ("t", "a\ud800", "--token=\udfffhunter22", "\udfffhunter22")

    assert Masker.of({}, (), command).mask_words(command) == ("t", "a\\ud800", "--token=***", "***")


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        json.dumps(SECRET),
        quote(SECRET),
        quote(SECRET, safe=""),
        quote_plus(SECRET),
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


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("size", range(7, 10))
def test_of_base64_all_that_is_only_secret_is_masked(
    encode: Callable[[bytes], bytes], before: int, size: int
) -> None:
    """Of a secret that is encoded with its surroundings, what they share in is left."""
    secret = "\u03ff" * (size // 2) + "~" * (size % 2)
    raw = secret.encode()
    encoded = encode(b"/" * before + raw + b"/" * 3)
    # A character stands for six bits.
    own = [at for at in range(len(encoded)) if before * 8 <= at * 6 <= (before + size) * 8 - 6]
    masked = Masker.of({"TOKEN": secret}).mask_whole(encoded)

    assert masked == encoded[: own[0]] + MASK + encoded[own[-1] + 1 :]


def test_longest_secret_is_looked_for_first() -> None:
    """Of a secret that begins with another one nothing is left."""
    masker = Masker.of({"A_TOKEN": "hunter22", "B_TOKEN": "hunter22-and-more"})

    assert masker.mask(b"hunter22-and-more hunter22") == b"*** ***"


def test_secret_may_be_any_bytes() -> None:
    """A secret that is no text is one, too: variables may hold any bytes."""
    assert Masker.of({"TOKEN": "secr\udce9t"}).mask(b"a secr\xe9t") == b"a ***"


def test_addresses_in_a_secret_are_each_one() -> None:
    """Of several secret addresses in one variable each is masked by itself."""
    masker = Masker.of({"ALERT_URLS": "json://one.example slack://two.example"})
    words = Masker.of({"PASSPHRASE": "correct horse:/battery"})

    assert masker.mask_whole(b"slack://two.example, json://one.example") == b"***, ***"
    assert words.mask(b"a horse:/battery now") == b"a horse:/battery now"


def test_cut_may_have_gone_through_the_longest_form() -> None:
    """A secret may reach as far before a cut as its longest form is long; without one, nothing."""
    assert MASKER.reach == max(map(len, MASKER.forms))
    assert Masker((b"the longest", b"one")).reach == len(b"the longest")
    assert Masker.of({}).reach == 0


def test_secret_of_several_lines_is_found_as_a_whole() -> None:
    """A secret of several lines is one, too: JSON writes it on one line."""
    assert MASKER.mask(json.dumps(KEY.strip()).encode()) == b'"***"'


def test_secret_of_several_lines_is_found_line_by_line() -> None:
    """Of a secret of several lines each line is one, however they are indented."""
    output = "\n".join(f"  | {line}" for line in KEY.splitlines())

    assert MASKER.mask(output.encode()) == b"\n".join([b"  | ***"] * 4)


def test_password_in_an_address_is_a_secret_whatever_its_variable() -> None:
    """The password in an address is masked, and the address is not."""
    masker = Masker.of({"ORCH_DB_URL": "postgresql://me:hunt%2Fer2@db.example/shop"})

    assert masker.mask(b"hunt%2Fer2 hunt/er2 db.example") == b"*** *** db.example"
    # As it is, and not only as we would write it.
    assert Masker.of({"URL": "pg://me:hunt%2fer2@db"}).mask(b"hunt%2fer2") == MASK
    assert Masker.of({"URL": "redis://:hunter22@cache"}).mask(b"hunter22") == MASK
    # A plus is a plus in this part of an address, and a colon there ends nothing.
    assert Masker.of({"URL": "pg://me:a+b%2Fc99@db"}).mask(b"a+b/c99 a+b%2Fc99") == b"*** ***"
    assert Masker.of({"URL": "pg://me:hun:ter22@db"}).mask(b"hun:ter22") == MASK


def test_named_variables_are_secret_and_others_are_not() -> None:
    """What a suite is given by name is a secret; any other variable is one by its own name."""
    variables = {"STAGE_URL": "https://stage.example", "EDITOR": "emacs-nox", "TOKEN": "hunter22"}
    masker = Masker.of(variables, ["STAGE_URL"])

    assert masker.mask(b"https://stage.example emacs-nox hunter22") == b"*** emacs-nox ***"


def test_short_values_are_left_alone() -> None:
    """A value of less than six bytes is a word like any other, and so are three of a longer one."""
    short = "xyzzy"

    assert Masker.of({"TOKEN": short}).mask(short.encode()) == short.encode()
    assert Masker.of({"TOKEN": short + "x"}).mask(short.encode() + b"x") == MASK
    assert MASKER.mask(b"seen: s3c") == b"seen: s3c"
    assert MASKER.mask(b"seen: s3cr") == b"seen: ***"


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

    assert stream.end() == b""
    assert not any(form in shown for form in masker.forms)
    assert shown == masker.mask_whole(output)


@given(st.binary())
def test_output_without_secrets_is_left_as_it_is(output: bytes) -> None:
    """Where nothing is secret, nothing is changed."""
    assert Masker.of({"HOME": "/home", "EDITOR": "emacs-nox"}).mask(output) == output


@pytest.mark.parametrize("cut", range(CUT_MIN_BYTES, len(SECRET.encode())))
def test_stream_that_ends_inside_a_secret_does_not_show_its_beginning(cut: int) -> None:
    """Of a secret that the end of the output cut off, what was held back is masked."""
    stream = MaskedStream(MASKER)
    shown = stream.feed(b"seen: " + SECRET.encode()[:cut])

    assert (shown, stream.end()) == (b"seen: ", MASK)


def test_stream_without_secrets_holds_nothing_back() -> None:
    """Output that nothing can be secret in is shown as it comes, to its last byte."""
    stream = MaskedStream(Masker.of({}))

    assert (stream.feed(b"one\ntwo"), stream.feed(b"!"), stream.end()) == (b"one\ntwo", b"!", b"")

"""Output without secrets: what counts as one, in which forms it is printed, and what replaces it.

Secrets are the values of the variables that a suite is given by name, the values of
all whose names look secret, passwords inside of addresses, and what a command line
says after a name that looks secret. Each is looked for as it is, line by line, and as
JSON, addresses and base64 write it. What a program computes from a secret in any other
way is not found.
"""

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import quote, quote_plus, unquote

import attrs

MASK: Final = b"***"
#: Shorter values are words and numbers that stand everywhere: to mask them would hide
#: the output and tell the secret.
SECRET_MIN_BYTES: Final = 6
#: What is left of a secret where the output was cut is one from this length on.
CUT_MIN_BYTES: Final = 4
DROPPED_NOTE: Final = re.compile(rb"(\n\[staging_fsm: \d+ bytes of output dropped here\]\n)")
_SECRET_NAME: Final = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|PASSCODE|_PWD|CREDENTIAL|COOKIE|DSN|ALERT_URLS"
    r"|KEYS?(?=_|\d|$)|AUTH(?!ORS?(_|$)|_SOCK)",
    re.IGNORECASE,
)
_ADDRESS_PASSWORD: Final = re.compile(r"://[^\s/:@]*:([^\s/@]+)@")
#: Fewer names than of variables: `--sort-key=name` is no secret, and neither is where one lies.
_SECRET_OPTION: Final = re.compile(
    r"(TOKEN|SECRET|PASSW|PASSPHRASE|PASSCODE|_PWD|CREDENTIAL|COOKIE|DSN|AUTHORIZATION"
    r"|(API|ACCESS|AUTH|PRIVATE|SIGNING|ENCRYPTION)_?KEY)(?!.*_(FILE|PATH|DIR|NAME|ENV)$)",
    re.IGNORECASE,
)
#: A name with the value that belongs to it, or one that the next word belongs to.
_OPTION: Final = re.compile(r"-{0,2}([A-Za-z_][\w.-]*)(?:=(.*)|(:)(?:\s+(.*))?)?", re.DOTALL)
#: What stands between the name of a header and its secret.
_SCHEMES: Final = frozenset({"basic", "bearer", "token"})
#: Half a character, which JSON can name and no bytes can hold; the other halves stand for bytes.
_HALF: Final = re.compile(r"[\ud800-\udc7f\udd00-\udfff]")
#: What a shell takes for a word, in a script that is an argument.
_SHELL_WORD: Final = re.compile(r"[^\s'\"`;|&()<>]+")


def looks_secret(name: str) -> bool:
    """Say whether a variable of this name holds a secret, as far as its name tells."""
    return _SECRET_NAME.search(name) is not None


@attrs.frozen
class Masker:
    """Replaces secrets. `forms` are all that is looked for, the longest first."""

    forms: tuple[bytes, ...]

    @classmethod
    def of(
        cls,
        variables: Mapping[str, str],
        names: Iterable[str] = (),
        command: Sequence[str] = (),
    ) -> "Masker":
        """Return a masker for the secrets in `variables` and in a `command`.

        The values of all of `names` are taken for secrets.
        """
        named = frozenset(names)
        found = set(_secrets_in_command(command))
        for name, value in variables.items():
            found.update(_secrets(value, whole=name in named or looks_secret(name)))
        forms = {
            form for secret in found for form in _forms(secret) if len(form) >= SECRET_MIN_BYTES
        }
        return cls(tuple(sorted(forms, key=lambda form: (-len(form), form))))

    @property
    def reach(self) -> int:
        """Return how many bytes before a cut may belong to a secret that goes on behind it."""
        return len(self.forms[0]) if self.forms else 0

    def mask(self, output: bytes) -> bytes:
        """Return `output` without secrets, those that its edges or a gap in it cut included."""
        return b"".join(map(self._mask_part, DROPPED_NOTE.split(output)))

    def _mask_part(self, part: bytes) -> bytes:
        part = self.mask_whole(part)
        begun = max((self._overlap(form, part) for form in self.forms), default=0)
        if begun >= CUT_MIN_BYTES:
            part = MASK + part[begun:]
        ended = self.unfinished(part)
        return part[:-ended] + MASK if ended >= CUT_MIN_BYTES else part

    def mask_whole(self, output: bytes) -> bytes:
        """Return `output` without the secrets that stand in it as a whole."""
        for form in self.forms:
            output = output.replace(form, MASK)
        return output

    def mask_words(self, command: Sequence[str]) -> tuple[str, ...]:
        """Return the words of a command without the secrets in them."""
        masked = (self.mask_whole(_as_bytes(word)) for word in command)
        return tuple(word.decode("utf-8", "surrogateescape") for word in masked)

    def unfinished(self, output: bytes) -> int:
        """Return how many bytes at the end of `output` may be the beginning of a secret."""
        return max((self._overlap(output, form) for form in self.forms), default=0)

    @staticmethod
    def _overlap(before: bytes, after: bytes) -> int:
        """Return how much of the end of `before` is the beginning of `after`."""
        longest = min(len(before), len(after))
        return next(n for n in range(longest, -1, -1) if before.endswith(after[:n]))


@attrs.define
class MaskedStream:
    """Output without secrets as it comes: what may be the beginning of one is held back."""

    masker: Masker
    _held: bytes = b""

    def feed(self, block: bytes) -> bytes:
        """Take the next output; return what can be shown."""
        output = self.masker.mask_whole(self._held + block)
        shown = len(output) - self.masker.unfinished(output)
        self._held = output[shown:]
        return output[:shown]

    def end(self) -> bytes:
        """Return what was held back, at the end of the output."""
        rest, self._held = self._held, b""
        return self.masker.mask(rest)


def _secrets(value: str, *, whole: bool) -> Iterator[str]:
    """Yield the secrets in the value of a variable: all of it, its lines, its passwords."""
    if whole:
        yield value.strip()
        yield from (line.strip() for line in value.splitlines())
        if "://" in value:
            yield from value.split()
    for password in _ADDRESS_PASSWORD.findall(value):
        yield password
        yield unquote(password)


def _secrets_in_command(command: Sequence[str]) -> Iterator[str]:
    """Yield what follows names that look secret, and passwords in addresses, also in scripts."""
    yield from _named_secrets(command)
    for word in command:
        yield from _secrets(word, whole=False)
        yield from _named_secrets(_SHELL_WORD.findall(word))


def _named_secrets(words: Sequence[str]) -> Iterator[str]:
    expected = False
    for word in words:
        if expected and not word.startswith("-"):
            expected = word.lower() in _SCHEMES
            # What a shell will put there is not here to be seen.
            if not expected and not word.startswith("$"):
                yield word
            continue
        option = _OPTION.fullmatch(word)
        expected = False
        if option is None or not _SECRET_OPTION.search(option[1].replace("-", "_")):
            continue
        value = (option[2] or option[4] or "").strip()
        expected = not value and (word.startswith("-") or option[3] is not None)
        if value and not value.startswith("$"):
            yield value
            scheme, _, rest = value.partition(" ")
            if scheme.lower() in _SCHEMES:
                yield rest.strip()


def _as_bytes(text: str) -> bytes:
    """Return the bytes of a text, which may come out of a row: half a character as its number."""
    written = _HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", text)
    return written.encode("utf-8", "surrogateescape")


def _forms(secret: str) -> Iterator[bytes]:
    raw = _as_bytes(secret)
    yield raw
    yield json.dumps(secret)[1:-1].encode()
    yield quote(raw, safe="").encode()
    yield quote(raw).encode()
    yield quote_plus(raw).encode()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            # Encoded with something before it, only the characters in between are its own.
            encoded = encode(bytes(before) + raw)
            yield encoded[(before * 8 + 5) // 6 : (before + len(raw)) * 8 // 6]

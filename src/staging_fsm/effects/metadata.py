"""Our key within a host's metadata: read strictly, and written without touching another."""

import json
from collections.abc import Mapping
from typing import Any, Final, Protocol

import attrs
import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Connection

from staging_fsm.core.jobs import SNAPSHOT_KEY, BrokenMetadata, may_name_our_key

#: What a host's column holds while nobody has written a key: nothing, or what an ORM writes for it.
_EMPTY: Final = ("", "null")
_PATH: Final = f"$.{SNAPSHOT_KEY}"
_SPACES: Final = " \t\n\r"


def our_document(text: str | bytes | None) -> object:
    """Return the decoded value under our key, None where there is none.

    Bytes are the text that they are in UTF-8. Where that is no JSON object BrokenMetadata
    stands for the value.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
    except UnicodeDecodeError as error:
        return BrokenMetadata(f"the row's metadata is no text in UTF-8 ({error.reason})")
    if text is None or text in _EMPTY:
        return None
    try:
        metadata = _decoded(text)
    except (ValueError, RecursionError) as error:
        problem = f"the row's metadata is no JSON ({error})"
    else:
        if isinstance(metadata, dict):
            return metadata.get(SNAPSHOT_KEY)
        problem = f"the row's metadata is a {type(metadata).__name__}, not an object"
    return BrokenMetadata(problem, may_name_our_key(text))


def _decoded(text: str) -> object:
    """Return the JSON value, in which our key does not stand twice; raises ValueError."""
    # Looking at every pair takes longer than reading it all: only where there may be two.
    if text.count(SNAPSHOT_KEY) > 1 or "\\u" in text:
        return _SUSPICIOUS_DECODER.decode(text)
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        # It refuses a little that is JSON, a number beyond every float for one.
        return _DECODER.decode(text)


def _refuse_second_key(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # Readers do not agree on which of the two counts.
    if [name for name, _ in pairs].count(SNAPSHOT_KEY) > 1:
        message = f"it holds the key {SNAPSHOT_KEY} twice"
        raise ValueError(message)
    return dict(pairs)


def _refuse_constant(word: str) -> object:
    message = f"{word} is no JSON"
    raise ValueError(message)


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)
_SUSPICIOUS_DECODER: Final = json.JSONDecoder(
    parse_constant=_refuse_constant, object_pairs_hook=_refuse_second_key
)


def as_stored(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """Return what to select for a text in SQLite: its bytes, which no driver decodes.

    Any bytes may be called a text there, and of one row whose are no UTF-8 the driver would
    let the whole statement fail, and so keep every other row away. A database that keeps its
    texts in UTF-16 has them converted, and then there is nothing that cannot be decoded.
    """
    in_utf8 = sa.literal_column("length(CAST('a' AS BLOB)) = 1", sa.Boolean())
    is_text = sa.func.typeof(column) == "text"
    plain = sa.type_coerce(column, sa.types.NullType())
    as_bytes = sa.type_coerce(sa.cast(plain, sa.LargeBinary), sa.types.NullType())
    return sa.case((sa.and_(is_text, in_utf8), as_bytes), else_=plain)


def with_key(text: str | None, key: str, value: str) -> str:
    """Return the JSON object `text` with `key` set to the JSON `value`; every other byte stays.

    Raises ValueError for a text that is no JSON object.
    """
    if text is None or text in _EMPTY:
        text = "{}"
    at = _skip(text, _expect(text, _skip(text, 0), "{"))
    comma = ""
    while text[at : at + 1] != "}":
        name, at = _DECODER.raw_decode(text, at)
        start = _skip(text, _expect(text, _skip(text, at), ":"))
        _, at = _DECODER.raw_decode(text, start)
        if name == key:
            return text[:start] + value + text[at:]
        at, comma = _skip(text, at), ","
        if text[at : at + 1] != "}":
            at = _skip(text, _expect(text, at, ","))
    return f"{text[:at]}{comma}{json.dumps(key)}:{value}{text[at:]}"


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in _SPACES and at < len(text):
        at += 1
    return at


def _expect(text: str, at: int, sign: str) -> int:
    if text[at : at + 1] != sign:
        message = f"{sign!r} expected at character {at}"
        raise ValueError(message)
    return at + 1


@attrs.frozen
class Expected:
    """What a write expects under our key: a version of an attempt, or None for nothing."""

    attempt_id: str
    version: int | None

    def is_under(self, ours: object) -> bool:
        """Say whether it is what stands under our key, as `our_document` reads it."""
        if self.version is None:
            return ours is None
        stored = ours if isinstance(ours, dict) else {}
        told = stored.get("attempt_id"), stored.get("version")
        return told == (self.attempt_id, self.version)


class Documents(Protocol):
    """How our key is fenced and written in one kind of column.

    Its conditions are made once, with parameters whose values come with each write.
    """

    @property
    def text(self) -> sa.ColumnElement[Any]:
        """Return the metadata as text, for conditions on it."""

    @property
    def selected(self) -> sa.ColumnElement[Any]:
        """Return what to select for `our_document`."""

    @property
    def document(self) -> sa.ColumnElement[Any]:
        """Return the metadata with our key set, to be written under the guard."""

    @property
    def broken(self) -> sa.ColumnElement[bool]:
        """Return a condition on every text that is no whole JSON; on some others it may hold."""

    def guard(self, *, first: bool) -> sa.ColumnElement[bool]:
        """Return the condition under which a row may be written.

        It is that the stored attempt and its version are the ones that are asked for, or,
        for the first write, that nothing is stored under our key.
        """
        ...

    def values(
        self,
        connection: Connection,
        mine: Mapping[str, Any],
        expected: Expected,
        snapshot: str | None,
    ) -> dict[str, Any]:
        """Return the parameters of one write to the row that `mine` stands for."""
        ...


class SqliteDocuments:
    """JSON as text in SQLite: one statement that sets our key and leaves the others' text.

    Bytes are taken for the text that they are, and stay bytes. Without the cast SQLite's own
    functions would take them for text, refuse them, or read them as its binary form of JSON,
    each version in its way.
    """

    def __init__(self, column: sa.Column[Any]) -> None:
        """Take the host's column, of whatever declared type."""
        self.text: sa.ColumnElement[Any] = sa.cast(sa.type_coerce(column, sa.Text), sa.Text)
        self.selected = as_stored(self.text)
        nothing = sa.func.nullif(sa.func.nullif(self.text, _EMPTY[0]), _EMPTY[1])
        self._object = sa.func.coalesce(nothing, "{}")
        self.broken: sa.ColumnElement[bool] = sa.func.json_valid(self._object) == 0
        ours = sa.func.json(sa.bindparam("our_snapshot", type_=sa.Text))
        with_ours: sa.ColumnElement[Any] = sa.func.json_set(self._object, _PATH, ours)
        # Nobody's bytes become a text, which their reader, or a strict table, may not take.
        are_bytes = sa.func.typeof(column) == "blob"
        if isinstance(column.type, sa.LargeBinary):
            are_bytes = sa.or_(are_bytes, column.is_(None))
        self.document: sa.ColumnElement[Any] = sa.case(
            (are_bytes, sa.cast(with_ours, sa.LargeBinary)), else_=with_ours
        )

    def guard(self, *, first: bool) -> sa.ColumnElement[bool]:
        """Compare within the statement itself.

        Newer versions of SQLite read a NaN as well, and would write null in its place.
        """
        is_json = sa.func.json_valid(self._object) == 1
        if not first:
            version = sa.func.json_extract(self._object, f"{_PATH}.version")
            attempt_id = sa.func.json_extract(self._object, f"{_PATH}.attempt_id")
            return sa.and_(
                is_json,
                version == sa.bindparam("our_version", type_=sa.Integer),
                attempt_id == sa.bindparam("our_attempt", type_=sa.Text),
            )
        # Into anything but an object json_set would write nothing and say nothing.
        return sa.and_(
            is_json,
            sa.func.json_type(self._object) == "object",
            sa.func.json_extract(self._object, _PATH).is_(None),
        )

    def values(
        self,
        _connection: Connection,
        _mine: Mapping[str, Any],
        expected: Expected,
        snapshot: str | None,
    ) -> dict[str, Any]:
        """Compare and set within the statement."""
        return _parameters(expected, expected.version, snapshot)


class JsonbDocuments:
    """PostgreSQL's jsonb: one statement that sets our key, whoever writes another meanwhile."""

    def __init__(self, column: sa.Column[Any]) -> None:
        """Take the host's column."""
        self.text = self.selected = sa.cast(column, sa.Text)
        self.broken: sa.ColumnElement[bool] = sa.false()
        null: sa.ColumnElement[Any] = sa.literal_column("'null'::jsonb")
        empty: sa.ColumnElement[Any] = sa.literal_column("'{}'::jsonb")
        self._object: sa.ColumnElement[Any] = sa.func.coalesce(sa.func.nullif(column, null), empty)
        path: sa.ColumnElement[Any] = sa.literal_column(f"'{{{SNAPSHOT_KEY}}}'")
        ours = sa.cast(sa.bindparam("our_snapshot", type_=sa.Text), JSONB)
        self.document: sa.ColumnElement[Any] = sa.func.jsonb_set(self._object, path, ours)

    def guard(self, *, first: bool) -> sa.ColumnElement[bool]:
        """Compare within the statement itself."""
        key = sa.literal(SNAPSHOT_KEY, sa.Text)
        if not first:
            stored = self._object.op("->")(key)
            version = stored.op("->>")(sa.literal("version", sa.Text))
            attempt_id = stored.op("->>")(sa.literal("attempt_id", sa.Text))
            return sa.and_(
                version == sa.bindparam("our_version", type_=sa.Text),
                attempt_id == sa.bindparam("our_attempt", type_=sa.Text),
            )
        ours = self._object.op("->>")(key)
        return sa.and_(sa.func.jsonb_typeof(self._object) == "object", ours.is_(None))

    def values(
        self,
        _connection: Connection,
        _mine: Mapping[str, Any],
        expected: Expected,
        snapshot: str | None,
    ) -> dict[str, Any]:
        """Compare and set within the statement."""
        return _parameters(expected, str(expected.version), snapshot)


class LockedDocuments:
    """PostgreSQL's json or text: the row is locked, and our key is replaced in its text.

    No function of PostgreSQL sets one key of such a document and leaves the spelling of
    the others; and on json with an escaped NUL anywhere in it, none works at all.
    """

    def __init__(self, column: sa.Column[Any], mine: sa.ColumnElement[bool]) -> None:
        """Take the host's column, and the condition on one row."""
        self.text = self.selected = sa.cast(column, sa.Text)
        self.broken = sa.false() if isinstance(column.type, sa.JSON) else _is_cut(self.text)
        self._locking = sa.select(self.text).where(mine).with_for_update(key_share=True)
        document = sa.bindparam("our_document", type_=sa.Text)
        # No cast to a text of limited length: it would cut what is too long, and say nothing.
        is_json = isinstance(column.type, sa.JSON)
        self.document: sa.ColumnElement[Any] = (
            sa.cast(document, column.type) if is_json else document
        )

    def guard(self, *, first: bool) -> sa.ColumnElement[bool]:  # noqa: ARG002  # compared in `values`
        """Take the word of `values`."""
        return sa.bindparam("our_guard", type_=sa.Boolean) == sa.true()

    def values(
        self,
        connection: Connection,
        mine: Mapping[str, Any],
        expected: Expected,
        snapshot: str | None,
    ) -> dict[str, Any]:
        """Lock the row until the transaction ends, compare here, and set our key in its text."""
        found = connection.execute(self._locking, mine).all()
        text = found[0][0] if found else None
        ours = our_document(text) if found else BrokenMetadata("there is no such row")
        guard = expected.is_under(ours)
        if snapshot is None:
            return {"our_guard": guard}
        # What is no object the guard has refused, and nothing is written.
        document = with_key(text, SNAPSHOT_KEY, snapshot) if guard else None
        return {"our_guard": guard, "our_document": document}


def _is_cut(text: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """Return a condition on every text of which an end is missing, for want of a test for JSON."""
    opened, closed = (sa.func.length(sa.func.replace(text, sign, "")) for sign in "{}")
    return sa.or_(sa.func.btrim(text, _SPACES).not_like("{%}"), opened != closed)


def _parameters(expected: Expected, version: object, snapshot: str | None) -> dict[str, Any]:
    """Return the parameters that the statement has; `version` as its column's kind compares it."""
    fence = {"our_attempt": expected.attempt_id, "our_version": version}
    document = {} if snapshot is None else {"our_snapshot": snapshot}
    return document if expected.version is None else fence | document

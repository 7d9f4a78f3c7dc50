"""Settings: declared by a class, read out of variables, and every problem told, not the first.

Pure: variables come in as a mapping. What is declared, and for whom, stands elsewhere;
here is how a text becomes a value, and what is said where it becomes none.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import environ

from staging_fsm.core.errors import ConfigInvalidError

_YES: Final = frozenset({"1", "true", "yes", "on"})
_NO: Final = frozenset({"0", "false", "no", "off", ""})
DAY_SECONDS: Final = 86_400
_PATHS: Final = (Path, Path | None)
Declared = TypeVar("Declared")


@attrs.frozen
class _Problem:
    """Stands in for a value that could not be converted, until all are collected."""

    text: str


@attrs.frozen
class _Converter:
    """Converts the text of a setting, whose value is shown to nobody if it is a secret."""

    convert: Callable[[str], Any]
    is_secret: bool

    def __call__(self, value: Any) -> Any:
        try:
            return self.convert(str(value))
        except ValueError as error:
            said = "its value" if self.is_secret else repr(value)
            return _Problem(f"{said} {error}")


def checked(convert: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Return a converter; the words of a ValueError follow the value in the sentence."""
    return _Converter(convert, is_secret=False)


def secret(convert: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Return a converter of a value that may hold a secret, and is shown nowhere."""
    return _Converter(convert, is_secret=True)


def switch(text: str) -> bool:
    """Say whether a word means on; raises ValueError for one that means neither on nor off."""
    word = text.strip().lower()
    if word not in _YES | _NO:
        message = "is neither on (1, true, yes, on) nor off (0, false, no, off)"
        raise ValueError(message)
    return word in _YES


def number(kind: type[int] | type[float], low: float, high: float) -> Callable[[str], Any]:
    """Return what converts a number from `low` to `high`, and raises ValueError for any other."""

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            message = f"is not a number from {low:g} to {high:g}"
            raise ValueError(message) from None
        if not low <= value <= high:
            message = f"is not from {low:g} to {high:g}"
            raise ValueError(message)
        return value

    return convert


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text, which blanks separate."""
    return tuple(text.split())


def path(text: str) -> Path:
    """Return a path; raises ValueError for a home folder that is not known."""
    if text.startswith("~"):
        message = "is in no known home folder: write it out, or set HOME"
        raise ValueError(message)
    return Path(text)


def path_if_any(text: str) -> Path | None:
    """Return a path, None for blanks; raises ValueError for a home folder that is not known."""
    return path(text) if text.strip() else None


def expand_home(text: str, variables: Mapping[str, str]) -> str:
    """Return a path without blanks around it, a leading `~` replaced by the HOME of `variables`.

    Not by that of this process: a configuration means the same wherever it is read.
    Where they name no HOME the `~` stays, for `path` to refuse.
    """
    first, slash, rest = text.strip().partition("/")
    home = variables.get("HOME", "")
    known = first == "~" and home.startswith("/")
    return f"{home if known else first}{slash}{rest}"


@attrs.frozen
class Setting:
    """One declared setting: for whoever reads it, and for help and docs."""

    name: str
    default: str
    help: str
    #: The attribute that has its value.
    field: str
    is_path: bool
    is_secret: bool


@functools.cache
def declared(declaration: type) -> tuple[Setting, ...]:
    """Return every setting of a class of environ-config, in the order of its declaration."""
    rows: list[dict[str, Any]] = []

    def keep(found: list[dict[str, Any]], **_: object) -> str:
        rows.extend(found)
        return ""

    environ.generate_help(declaration, formatter=keep)
    return tuple(
        Setting(
            row["var_name"],
            row["default"],
            row["help_str"],
            field.name,
            is_path=field.type in _PATHS,
            is_secret=isinstance(field.converter, _Converter) and field.converter.is_secret,
        )
        for row, field in zip(rows, attrs.fields(declaration), strict=True)
    )


def problem_of(declaration: type, field: str, value: object) -> str | None:
    """Return what is wrong with `value` for a declared setting, by its attribute, or None.

    In the words that follow the setting's name where it is read out of variables.
    """
    converter: Any = attrs.fields_dict(declaration)[field].converter
    made = converter(value)
    return made.text if isinstance(made, _Problem) else None


def load(
    declaration: type[Declared], variables: Mapping[str, str], prefix: str | None = None
) -> Declared:
    """Return the settings that a class of environ-config declares, as `variables` have them.

    Raises ConfigInvalidError with every problem: a value that cannot be converted, and,
    where `prefix` is nobody else's, a name with it that is not declared: a misspelt
    setting must not be taken for one that is not set.
    """
    key: type = declaration
    names = frozenset(setting.name for setting in declared(key))
    said = tuple(
        (name, value)
        for name, value in variables.items()
        if name == "HOME" or name in names or (prefix and name.startswith(prefix + "_"))
    )
    # A worker's variables are the same from launch to launch: read each time, checked once.
    settings: Declared = _converted(key, said)
    return settings


@functools.lru_cache(maxsize=16)
def _converted(declaration: type, found: tuple[tuple[str, str], ...]) -> Any:
    variables, settings = dict(found), declared(declaration)
    paths = {
        setting.name: expand_home(variables.get(setting.name, setting.default), variables)
        for setting in settings
        if setting.is_path
    }
    values: Any = environ.to_config(declaration, environ={**variables, **paths})
    problems = [
        f"{setting.name}: {value.text}"
        for setting in settings
        if isinstance(value := getattr(values, setting.field), _Problem)
    ]
    unknown = variables.keys() - {"HOME"} - {setting.name for setting in settings}
    problems += [f"{name} is not a known setting" for name in sorted(unknown)]
    if problems:
        raise ConfigInvalidError(problems)
    return values

"""Strict conversion of decoded JSON and TOML into our classes: nothing is bent to fit.

A number given as text, a list given as one string, a boolean given as a number,
an unknown key: each is an error, never a best effort.
"""

import math
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import cattrs


def strict_converter(*, detailed: bool) -> cattrs.Converter:
    """Return a converter that refuses wrong types and unknown keys.

    `detailed` collects every problem, for people; without it the first one is
    raised, which is several times faster.
    """
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=detailed)
    for kind in (int, str, bool):
        converter.register_structure_hook(kind, _exactly(kind))
    converter.register_structure_hook(float, _exactly(float, int))
    converter.register_structure_hook_factory(_is_tuple, lambda kind: _from_list(kind, converter))
    converter.register_structure_hook_factory(_is_optional, lambda kind: _or_none(kind, converter))
    return converter


def describe(error: BaseException, _: type | None = None) -> str:
    """Return one problem found by a detailed converter as words."""
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        return f"unknown keys: {', '.join(sorted(error.extra_fields))}"
    return "a key is missing" if isinstance(error, KeyError) else str(error)


def _exactly(*accepted: type) -> Any:
    def structure(value: Any, target: Any) -> Any:
        # type() and not isinstance: a bool is an int to Python, and never to us.
        if type(value) not in accepted:
            message = f"{value!r} is no {target.__name__}"
            raise TypeError(message)
        if type(value) is float and not math.isfinite(value):
            message = f"{value!r} is no finite number"
            raise ValueError(message)
        # The target may be an enumeration of strings: an unknown word raises here.
        structured = target(value)
        if structured != value:
            message = f"{value!r} is no exact {target.__name__}"
            raise ValueError(message)
        return structured

    return structure


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple


def _from_list(kind: Any, converter: cattrs.Converter) -> Any:
    inner = get_args(kind)[0]

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not list:
            message = f"{value!r} is no list"
            raise TypeError(message)
        return tuple(converter.structure(item, inner) for item in value)

    return structure


def _is_optional(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind)


def _or_none(kind: Any, converter: cattrs.Converter) -> Any:
    inner = next(part for part in get_args(kind) if part is not NoneType)

    def structure(value: Any, _: Any) -> Any:
        return None if value is None else converter.structure(value, inner)

    return structure

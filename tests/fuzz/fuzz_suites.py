"""Suites: whatever the suites file holds, it is suites that can be stored, or a named problem."""

import json

import attrs

from staging_fsm.core.config import load_config
from staging_fsm.core.errors import ConfigInvalidError
from staging_fsm.core.plan import Plan, Preset, Workspace
from staging_fsm.core.snapshot import dump_snapshot, fresh_snapshot, load_snapshot
from staging_fsm.core.suites import SuiteEntry, SuitesConfig, budget_of, parse_suites

WORDS = (
    *("[default]\n", "[repos.shop]\n", '[repos."a b"]\n', 'command = ["make"]\n', '"""', "'''"),
    *(f"{field.name} = " for field in attrs.fields(SuiteEntry)),
    *(f'"{word}"' for word in (*Preset, *Workspace)),
    *("true", "false", "inf", "nan", "0x10", "1e3", "1979-05-27T07:32:00Z", "{ a = 1 }", "\\u0041"),
)
_CONFIG = load_config({})
_STORED = attrs.evolve(fresh_snapshot("7-3f", "a worker"), version=1)


def fuzz(data: bytes) -> bool:
    """Return whether `data` is a suites file."""
    try:
        suites = parse_suites(data.decode("utf-8", "surrogateescape"))
    except ConfigInvalidError as error:
        if not error.problems:
            raise
        return False
    assert isinstance(suites, SuitesConfig)
    for entry in filter(None, (suites.default, *suites.repos.values())):
        try:
            suite = entry.plan(_CONFIG)
        except ValueError:
            # What the intercept declines for, by name.
            continue
        bound = attrs.evolve(_STORED, plan=Plan(suite, budget_of(_CONFIG), "4c1d0a7"))
        assert load_snapshot(json.loads(dump_snapshot(bound))) == bound
    return True

"""The options of the `go` command that has no test of a suite answered from a cache.

`go test` gives the result of an earlier run for one whose code and files are the same, and
takes no notice of what the test asked of staging. Its report is then as new as any.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from staging_fsm.effects.files import read_small

#: The variable with options for whatever `go` command knows them (`go help environment`).
GO_FLAGS: Final = "GOFLAGS"
_FRESH: Final = "-count=1"
#: Where `go env -w` keeps its settings, below the folder of a user's settings.
_SETTINGS: Final = Path("go", "env")
_SETTINGS_MAX_BYTES: Final = 64 * 1024
_HOME_SETTINGS: Final = "Library/Application Support" if sys.platform == "darwin" else ".config"


def fresh_go_flags(environment: Mapping[str, str]) -> str:
    """Return the `GOFLAGS` of a suite that is given `environment`: its own, and each test is run.

    Its own are those of the variable, or where it has none those that `go env -w` has set,
    as the variable would hide them. They come last, so a number of rounds in them holds: with
    any number tests are run. Raises OSError where there is no descriptor left to look.
    """
    own = environment.get(GO_FLAGS) or _set_by_go_env(environment)
    return f"{_FRESH} {own}".rstrip()


def _set_by_go_env(environment: Mapping[str, str]) -> str:
    path = _settings_file(environment)
    if path is None or not path.is_absolute():
        return ""
    # Whoever keeps settings elsewhere has a link there.
    data = read_small(os.path.realpath(path), _SETTINGS_MAX_BYTES) or b""
    lines = (line.partition("=") for line in os.fsdecode(data).split("\n"))
    values = [value for name, _, value in lines if name == GO_FLAGS and "\0" not in value]
    return values[-1] if values else ""


def _settings_file(environment: Mapping[str, str]) -> Path | None:
    # As `go` looks for it: https://pkg.go.dev/os#UserConfigDir
    if named := environment.get("GOENV"):
        return None if named == "off" else Path(named)
    if sys.platform != "darwin" and (folder := environment.get("XDG_CONFIG_HOME")):
        return Path(folder, _SETTINGS)
    home = environment.get("HOME")
    return Path(home, _HOME_SETTINGS, _SETTINGS) if home else None

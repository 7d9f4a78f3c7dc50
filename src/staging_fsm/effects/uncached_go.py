"""How no `go test` of a suite is answered from a cache.

`go test` gives the result of an earlier run for a test whose code and files are the same, and
takes no notice of what the test asked of staging. Its report is then as new as any.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from staging_fsm.effects.files import read_small, write_whole

#: Options for whatever `go` command knows them, and the file with what `go env -w` has set, where
#: they may stand as well (https://pkg.go.dev/cmd/go#hdr-Environment_variables).
_FLAGS: Final = "GOFLAGS"
_FILE: Final = "GOENV"
_FRESH: Final = "-count=1"
#: Where that file is if nothing says otherwise, below the folder of a user's settings.
_SETTINGS: Final = Path("go", "env")
_SETTINGS_MAX_BYTES: Final = 64 * 1024
_HOME_SETTINGS: Final = "Library/Application Support" if sys.platform == "darwin" else ".config"


def uncached_go(environment: Mapping[str, str], settings: Path) -> dict[str, str]:
    """Return the variables by which a suite that is given `environment` has each Go test run.

    A suite without `GOFLAGS` is given none: its makefile may have a default for it, or hand it
    to commands that know no such option. It gets a copy of what `go env -w` has set, with our
    option before its own, in the file `settings`. Where it has `GOFLAGS`, `go` does not look
    there, and ours stands before those. With any number of rounds in them tests are run.
    Raises OSError where the file cannot be written, or no descriptor is left to look.
    """
    if own := environment.get(_FLAGS):
        return {_FLAGS: f"{_FRESH} {own}"}
    lines = _lines_of(environment)
    flags = [value for name, _, value in map(_parted, lines) if name == _FLAGS]
    fresh = f"{_FLAGS}={_FRESH} {flags[-1] if flags else ''}".rstrip()
    others = [line for line in lines if _parted(line)[0] != _FLAGS]
    write_whole(settings, os.fsencode("\n".join([*others, fresh, ""])))
    return {_FILE: str(settings)}


def _parted(line: str) -> tuple[str, str, str]:
    return line.partition("=")


def _lines_of(environment: Mapping[str, str]) -> list[str]:
    """Return what `go env -w` has set; nothing where that cannot be read as `go` would."""
    path = _settings_file(environment)
    if path is None or not path.is_absolute():
        return []
    # Whoever keeps settings elsewhere has a link there.
    data = read_small(os.path.realpath(path), _SETTINGS_MAX_BYTES) or b""
    return [line for line in os.fsdecode(data).split("\n") if line and "\0" not in line]


def _settings_file(environment: Mapping[str, str]) -> Path | None:
    # As `go` looks for it: https://pkg.go.dev/os#UserConfigDir
    if named := environment.get(_FILE):
        return None if named == "off" else Path(named)
    if sys.platform != "darwin" and (folder := environment.get("XDG_CONFIG_HOME")):
        return Path(folder, _SETTINGS)
    home = environment.get("HOME")
    return Path(home, _HOME_SETTINGS, _SETTINGS) if home else None

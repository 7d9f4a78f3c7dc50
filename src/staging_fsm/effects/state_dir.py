"""The state folder of a machine: what lies where in it, and the secret that seals its results."""

import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

import attrs

from staging_fsm.core.config import variable_name
from staging_fsm.core.errors import ConfigInvalidError, PreparationError
from staging_fsm.core.settings import expand_home, path_if_any
from staging_fsm.effects.files import DIRECTORY_MODE, create_durably, read_small
from staging_fsm.effects.folders import remove_folder
from staging_fsm.effects.supervisor.result import SECRET_BYTES


@attrs.frozen
class StateDir:
    """What lies where in the state folder of one machine."""

    root: Path

    def ensure(self) -> None:
        """Create the folder, for this user only."""
        self.root.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)

    def run(self, run_id: str) -> Path:
        """Return the control folder of a run; its supervisor's, unknown to the suite."""
        return self.root / "runs" / run_id

    def reports(self, run_id: str) -> Path:
        """Return the report folder of a run, which the suite is told of."""
        return self.root / "reports" / run_id

    def worktree(self, run_id: str) -> Path:
        """Return the private checkout of a run."""
        return self.root / "worktrees" / run_id

    @property
    def of_runs(self) -> tuple[str, ...]:
        """Return the folders in which a run may have to leave something."""
        # As texts: each attempt looks at all of them.
        root = os.fspath(self.root)
        return (f"{root}/runs", f"{root}/reports", f"{root}/worktrees", f"{root}/locks")

    @property
    def of_fleet(self) -> tuple[str, ...]:
        """Return the folders that a fleet's worker needs besides."""
        return (os.fspath(self.mirrors), os.fspath(self.checkouts))

    def run_ids(self) -> list[str]:
        """Return the names of all runs that left something behind; what is no folder is none."""
        try:
            with os.scandir(self.root / "runs") as found:
                return sorted(one.name for one in found if one.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []

    def checkouts_of_ended(self) -> list[Path]:
        """Return the private checkouts that are still there, though nobody will come for them."""
        try:
            found = sorted(self.worktree("").iterdir())
        except OSError:
            return []
        # Both are the last that is written of a run before its checkout is removed.
        return [path for path in found if self._has_ended(self.run(path.name))]

    def _has_ended(self, run: Path) -> bool:
        is_over = any(os.path.lexists(run / name) for name in ("tree", "closed"))
        return is_over or not os.path.lexists(run)

    def is_unchanged_since(self, run_id: str, moment: float) -> bool:
        """Say whether the folder of a run is there, and as it was before `moment`, of the epoch."""
        try:
            return self.run(run_id).lstat().st_mtime < moment
        except FileNotFoundError:
            return False

    def remove_run(self, run_id: str) -> None:
        """Remove what a run left behind, its reports first."""
        remove_folder(self.reports(run_id))
        remove_folder(self.run(run_id))

    @property
    def locks(self) -> Path:
        """Return the folder of locks on the reports that lie outside of their runs' folders."""
        return self.root / "locks"

    @property
    def workers(self) -> Path:
        """Return the folder of the locks by which workers in other containers are known to live."""
        return self.root / "workers"

    @property
    def artifacts(self) -> Path:
        """Return the folder of the artifacts that are to go to no repository."""
        return self.root / "artifacts"

    @property
    def shadow(self) -> Path:
        """Return the folder in which shadow mode keeps everything that is its own."""
        return self.root / "shadow"

    @property
    def mirrors(self) -> Path:
        """Return the folder of a fleet's clones of remotes."""
        return self.root / "mirrors"

    @property
    def checkouts(self) -> Path:
        """Return the folder of the checkouts that a fleet publishes from."""
        return self.root / "checkouts"

    @property
    def alerts(self) -> Path:
        """Return the file that keeps every alert."""
        return self.root / "alerts.jsonl"

    @property
    def outbox(self) -> Path:
        """Return the folder of the alerts that have not reached everybody."""
        return self.root / "alerts"

    @property
    def database(self) -> Path:
        """Return the file of the embedded orchestrator's database."""
        return self.root / "orchestrator.db"

    def check_secret(self) -> None:
        """Raise PreparationError where `secret` would, without opening it, and make none."""
        try:
            found = os.lstat(self._secret)
        except FileNotFoundError:
            return
        if not (stat.S_ISREG(found.st_mode) and found.st_size == SECRET_BYTES):
            raise self._no_secret()
        if not os.access(self._secret, os.R_OK):
            raise self._kept_secret()

    @property
    def _secret(self) -> Path:
        return self.root / "secret"

    def _no_secret(self) -> PreparationError:
        return PreparationError(f"{self._secret} is not the secret that was made there: remove it")

    def _kept_secret(self) -> PreparationError:
        message = (
            f"{self._secret} may not be read by this user: give it the right to (chmod 600), or run"
            " as whoever owns the state folder, and leave it there: results are sealed with it"
        )
        return PreparationError(message)

    def secret(self) -> bytes:
        """Return the machine's secret that seals results, making it on first use.

        Raises PreparationError where something else is in its place, or it may not be read.
        """
        path = self._secret
        if not os.path.lexists(path):
            self.ensure()
            # Of two first users one wins, and both read it.
            create_durably(path, secrets.token_bytes(SECRET_BYTES))
        # A suite may have put a pipe there, which could be waited for for ever.
        found = read_small(path, SECRET_BYTES)
        if found is None or len(found) < SECRET_BYTES:
            # One that may not be read is not told to be removed.
            self.check_secret()
            raise self._no_secret()
        return found


def refuse_unknown_home(variables: Mapping[str, str]) -> None:
    """Raise ConfigInvalidError where the configured state folder is in no known home folder.

    Else it would be made below the current folder, under the name that stands for the home.
    """
    name = variable_name("state_dir")
    configured = expand_home(variables.get(name, ""), variables)
    try:
        path_if_any(configured)
    except ValueError as error:
        raise ConfigInvalidError([f"{name}: {configured!r} {error}"]) from None


def state_dir(variables: Mapping[str, str]) -> Path:
    """Return the configured state folder, by default `$XDG_STATE_HOME/staging-fsm`.

    See https://specifications.freedesktop.org/basedir-spec/latest/. Raises
    ConfigInvalidError where none is configured, and no home folder is known.
    """
    # One that cannot be found is a problem of the configuration, and told of there.
    configured = expand_home(variables.get(variable_name("state_dir"), ""), variables)
    if configured:
        return Path(configured).absolute()
    base = variables.get("XDG_STATE_HOME", "")
    if base.startswith("/"):
        return Path(base) / "staging-fsm"
    try:
        home = Path(variables.get("HOME") or Path.home())
    except RuntimeError as error:
        problem = f"no home folder is known: set {variable_name('state_dir')}, or HOME"
        raise ConfigInvalidError([problem]) from error
    return home / ".local/state" / "staging-fsm"

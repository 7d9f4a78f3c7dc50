"""What tells one container of the end of a worker in another: a lock, held while any of it lives.

A process id means nothing outside of its namespace, so nobody can look at the worker of
a container that was started anew. But the containers of a machine have one kernel, and
its locks are seen by all that share a state folder. A worker holds one on a file that is
named after it, and every supervisor and agent that it starts is born with it: once it is
free, neither the worker nor anything that it has started is alive.
"""

import contextlib
import os
from pathlib import Path

from staging_fsm.core.errors import in_words
from staging_fsm.effects.files import locked, locked_with_others, open_as_it_is
from staging_fsm.effects.journal import log_error
from staging_fsm.effects.processes import ProcessIdentity, is_of_this_boot, this_process
from staging_fsm.effects.state_dir import StateDir


class WorkerLock:
    """The lock of this process, held for as long as this object or what inherited it is there."""

    def __init__(self, state: StateDir) -> None:
        """Hold nothing yet; the lock will be below `state`."""
        self._state = state
        self._path: Path | None = None
        self._descriptor = -1

    def take(self) -> str:
        """Return the name of this very process, once its lock is held. Never raises.

        Where it cannot be held, other containers will know nothing of this process's end.
        """
        me = this_process()
        path = _path_of(self._state, me)
        if self._path != path:
            # Of a process that was forked the other one is its parent's.
            self._let_go()
            try:
                self._descriptor = locked_with_others(path)
                self._path = path
            except OSError as error:
                log_error("the lock of this worker is not held", error=in_words(error))
        return str(me)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Return what has to be inherited by whatever this process starts."""
        return () if self._path is None else (self._descriptor,)

    def _let_go(self) -> None:
        if self._path is not None:
            self._path = None
            os.close(self._descriptor)

    def __del__(self) -> None:
        """Close the file. What was started by then has it still."""
        self._let_go()


def has_ended(state: StateDir, worker: ProcessIdentity) -> bool:
    """Say whether it is certain that nothing is alive of a worker of any namespace of this boot."""
    if not is_of_this_boot(worker.scope):
        return False
    with contextlib.suppress(OSError), locked(open_as_it_is(_path_of(state, worker))) as is_free:
        return is_free
    return False


def prune(state: StateDir, before: float) -> None:
    """Remove the files of locks that nobody has held since `before`, of the epoch.

    Where that cannot be done it is left for later.
    """
    with contextlib.suppress(OSError), os.scandir(state.workers) as found:
        for one in found:
            with contextlib.suppress(OSError):
                _remove_if_old(Path(one.path), before)


def _remove_if_old(path: Path, before: float) -> None:
    descriptor = open_as_it_is(path)
    with locked(descriptor) as is_free:
        if not is_free:
            os.utime(descriptor)
        elif os.fstat(descriptor).st_mtime < before:
            path.unlink()


def _path_of(state: StateDir, worker: ProcessIdentity) -> Path:
    # The host's name may change while a container lives; the boot's is of this machine alone.
    within = worker.scope.partition(":")[2].replace(":", ".").replace("/", "-")
    return state.workers / f"{within}.{worker.pid}.{worker.start}"

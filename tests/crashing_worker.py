"""A real worker that is killed with SIGKILL at its Nth boundary.

It drives one job as any worker would. Every call of the engine to the world is two
boundaries, one before and one after it. At boundary `point` the process kills
itself: no handler, no cleanup, as by the kernel. Point 0 never comes: then the
number of boundaries is told.

Workers are forked from a server that has imported what they need, so that one costs
as little as what it does.
"""

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from typing import Any, Final

from staging_fsm.core.suites import SuiteEntry
from staging_fsm.faces.session import AttemptDriver, one_suite, open_session, switched_on

TOOL_EXIT_CODE = 75


class Boundary:
    """Counts boundaries and dies at one of them."""

    def __init__(self, point: int) -> None:
        """Die at `point`."""
        self.point, self.passed = point, 0

    def cross(self) -> None:
        """Cross one boundary."""
        self.passed += 1
        if self.passed == self.point:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, wrapped: Any) -> Any:
        """Return `wrapped`, a callable or an object whose methods are called, with boundaries."""
        if not callable(wrapped):
            return _Proxy(self, wrapped)

        def call(*arguments: Any, **named: Any) -> Any:
            self.cross()
            result = wrapped(*arguments, **named)
            self.cross()
            return result

        return call


class _Proxy:
    def __init__(self, boundary: Boundary, wrapped: Any) -> None:
        self._boundary, self._wrapped = boundary, wrapped

    def __getattr__(self, name: str) -> Any:
        return self._boundary.around(getattr(self._wrapped, name))


def variables(state_dir: str) -> dict[str, str]:
    """Return the configuration of worker and recovery."""
    return switched_on(
        dict(os.environ),
        state_dir=state_dir,
        infra_retries=1,
        retry_backoff_seconds=0.01,
        kill_grace_seconds=0.2,
    )


def suite(command: list[str]) -> SuiteEntry:
    """Return the suite of worker and recovery."""
    return SuiteEntry(
        command=tuple(command), tool_exit_codes=(TOOL_EXIT_CODE,), environment=("COUNTER",)
    )


def drive(
    database: str, state_dir: str, job_id: int, point: int, command: list[str], counter: str,
    boundaries: "Connection[int, int]",
) -> None:  # fmt: skip
    """Drive one job and die at a boundary, or tell how many there were."""
    os.environ["COUNTER"] = counter
    boundary = Boundary(point)
    session = open_session(database, variables(state_dir))
    staging = session.staging(suites=one_suite(suite(command)))
    engine = staging.runner.engine
    for name in ("rows", "suites", "artifacts", "alerts", "gate"):
        setattr(engine, name, boundary.around(getattr(engine, name)))
    staging.rows = engine.rows
    AttemptDriver(session, staging, job_id).drive()
    boundaries.send(boundary.passed)


_SERVER: Final = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([__name__])


class CrashingWorker:
    """A worker's process, which begins at once."""

    def __init__(self, *arguments: Any) -> None:
        """Start it, with all but the last argument of `drive`."""
        self._boundaries, told = _SERVER.Pipe(duplex=False)
        self.process = _SERVER.Process(target=drive, args=(*arguments, told))
        self.process.start()
        told.close()

    def end(self, seconds: float = 120) -> int:
        """Wait for its end and return its exit code, negative for a signal."""
        self.process.join(seconds)
        code = self.process.exitcode
        assert code is not None, "the worker hangs"
        return code

    def boundaries(self) -> int:
        """Return how many boundaries it crossed on its way to a regular end."""
        assert self.end() == 0
        passed: int = self._boundaries.recv()
        return passed

    def kill(self) -> None:
        """Kill it wherever it is."""
        self.process.kill()
        self.end()

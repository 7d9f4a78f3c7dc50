"""Recovery: whose worker is gone is known by a process's identity, and by nothing else."""

import os
import subprocess
import sys

import attrs
import pytest

from hosts import no_descriptors_left
from staging_fsm.drive.recovery import worker_is_alive
from staging_fsm.effects.processes import ProcessIdentity, identify, this_process


def test_worker_lives_while_its_process_does() -> None:
    """The worker of a snapshot is alive exactly as long as the process that it names."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        worker = str(identify(process.pid))
        before = worker_is_alive(worker)
        process.communicate()

    assert before is True
    assert worker_is_alive(worker) is False


def test_worker_of_another_start_is_gone() -> None:
    """A process that was given the pid of a worker later is not that worker."""
    worker = attrs.evolve(this_process(), start=this_process().start + 1)

    assert worker_is_alive(str(this_process())) is True
    assert worker_is_alive(str(worker)) is False


def test_worker_that_cannot_be_looked_at_does_not_pass_for_dead() -> None:
    """Without a descriptor left nobody can be looked at: that is told, and nothing is taken."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        worker = str(identify(process.pid))
        with no_descriptors_left(), pytest.raises(OSError, match="Too many open files"):
            worker_is_alive(worker)
        process.communicate()


def test_worker_of_another_machine_is_unknown() -> None:
    """What lives on another machine cannot be known here, so nothing is taken from it."""
    worker = ProcessIdentity("elsewhere:boot:namespace", os.getpid(), 1)

    assert worker_is_alive(str(worker)) is None


def test_worker_without_an_identity_is_unknown() -> None:
    """A worker whose name is no process identity is never taken for a dead one."""
    assert worker_is_alive("somebody") is None
    assert worker_is_alive("scope/many/few") is None

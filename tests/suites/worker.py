"""A worker in a process of its own: `worker.py STATE_DIR RUN_ID MODE COMMAND…`.

MODE `abandon` starts a run and stays to be killed; `collect` prints what became of
it; `careless` does so as the child of somebody who ignores and blocks signals.
"""

import json
import os
import signal
import sys
from pathlib import Path

from staging_fsm.core.plan import UNVERSIONED, SuitePlan
from staging_fsm.core.ports import RunOrder
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.effects.suite import LocalSuites

state, run_id, mode, *command = sys.argv[1:]
if mode == "careless":
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR2})
if mode == "abandon":
    # As at a terminal, whatever has started the tests: `nohup` has a hang-up be ignored.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
suites = LocalSuites(StateDir(Path(state)))
plan = SuitePlan(
    tuple(command),
    timeout_seconds=60,
    kill_grace_seconds=0.2,
    environment=("LIFELINE", "RELEASE"),
)
suites.start(RunOrder(run_id, Path(state).parent, UNVERSIONED, plan))
if mode == "abandon":
    sys.stdout.write("started\n")
    sys.stdout.flush()
    signal.pause()
report = suites.await_report(run_id)
facts = report.facts
json.dump([facts.supervision, facts.exit_code, facts.signal, os.getuid()], sys.stdout)

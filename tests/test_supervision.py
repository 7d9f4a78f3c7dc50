"""Supervision, with real process trees: it cannot leak, hang, or be fooled.

Every process of a suite in `suites/` holds a line to the test, a pipe it inherits.
The line's end, and nothing less, shows that nobody is left.
"""

import fcntl
import json
import os
import resource
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from staging_fsm.core.errors import PreparationError
from staging_fsm.core.evidence import REPORT_MAX_BYTES, EvidenceState
from staging_fsm.core.outcome import Reason, RunFacts, SpawnError, Stop, Supervision, Verdict, judge
from staging_fsm.core.plan import UNVERSIONED, SuitePlan, Workspace
from staging_fsm.core.ports import RunCondition, RunOrder, RunReport
from staging_fsm.effects import limits, shim
from staging_fsm.effects import suite as suite_module
from staging_fsm.effects.files import StateDir
from staging_fsm.effects.processes import ProcessIdentity, start_ticks, wait_for_end
from staging_fsm.effects.run_folder import Order, RunFolder
from staging_fsm.effects.shim import BoundedLog
from staging_fsm.effects.suite import LocalSuites

SUITES = Path(__file__).parent / "suites"
PYTHON = (sys.executable, "-S", "-E")
#: How long a test waits for what must happen before it calls it a failure.
PATIENCE_SECONDS = 60.0
MEBIBYTE = 1024 * 1024
FLAT_BYTES = 16 * MEBIBYTE
#: A sweep kills whoever carries the run's name: that of another session of tests is another.
ATTEMPT = f"attempt-{secrets.token_hex(4)}"
RUN = f"{ATTEMPT}.1"

KINDS = (
    "plain", "orphan", "session", "group", "daemon",
    "stubborn", "stopped", "chain", "crowd", "keeper",
)  # fmt: skip


class Lifeline:
    """The reading end of the line that every process of a suite holds."""

    def __init__(self, path: Path) -> None:
        """Make the pipe at `path`."""
        self.path = path
        os.mkfifo(path)
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def await_members(self, count: int) -> None:
        """Wait until `count` processes have announced themselves."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while count > 0:
            assert is_ready(self.fd, deadline - time.monotonic()), "nobody announced itself"
            count -= len(os.read(self.fd, count))

    def is_cut(self) -> bool:
        """Say whether everybody who held the line is gone, if anybody ever took it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                if not os.read(self.fd, 4096):
                    return True
            except BlockingIOError:
                if not is_ready(self.fd, deadline - time.monotonic()):
                    return False


def is_ready(fd: int, seconds: float = PATIENCE_SECONDS) -> bool:
    """Wait until `fd` can be read, or is at its end."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def has_ended(pid: int, seconds: float = PATIENCE_SECONDS) -> bool:
    """Wait for the end of a process."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return is_ready(fd, seconds)
    finally:
        os.close(fd)


def program(name: str, *arguments: str) -> tuple[str, ...]:
    """Return the command of a program in `suites/`."""
    return (*PYTHON, str(SUITES / f"{name}.py"), *arguments)


@attrs.frozen
class Stand:
    """A place for real runs, in a folder without git."""

    root: Path
    lifeline: Lifeline
    release: Path

    @property
    def variables(self) -> dict[str, str]:
        """Return the worker's environment."""
        own = {"LIFELINE": str(self.lifeline.path), "RELEASE": str(self.release)}
        return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **own}

    @property
    def state(self) -> StateDir:
        """Return the state folder."""
        return StateDir(self.root / "state")

    @property
    def suites(self) -> LocalSuites:
        """Return a fresh worker's view of the runs."""
        return LocalSuites(self.state, self.variables)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Return what a worker without root must own."""
        return (self.root, self.root / "tree", self.lifeline.path, self.release)

    def start(
        self, *command: str, run_id: str = RUN, inherited: Sequence[int] = (), **plan: Any
    ) -> None:
        """Start a run in place."""
        plan = {"timeout_seconds": PATIENCE_SECONDS, "kill_grace_seconds": 0.2, **plan}
        plan.setdefault("environment", ("LIFELINE", "RELEASE"))
        plan.setdefault("workspace", Workspace.IN_PLACE)
        order = RunOrder(run_id, self.root / "tree", UNVERSIONED, SuitePlan(command, **plan))
        LocalSuites(self.state, self.variables, inherited).start(order)

    def await_result(self) -> None:
        """Wait until the supervisor has said how the run ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.file("result").exists():
            assert time.monotonic() < deadline
            os.sched_yield()

    def collect(self, run_id: str = RUN) -> RunReport:
        """Wait for a run's end."""
        return self.suites.await_report(run_id)

    def run(self, *command: str, run_id: str = RUN, **plan: Any) -> RunReport:
        """Start a run and wait for its end."""
        self.start(*command, run_id=run_id, **plan)
        return self.collect(run_id)

    def facts(self, *command: str, **plan: Any) -> RunFacts:
        """Return the facts of a run."""
        return self.run(*command, **plan).facts

    def file(self, name: str, run_id: str = RUN) -> Path:
        """Return a file of a run's control folder."""
        return self.state.run(run_id) / name

    def pid(self, name: str = "shim", run_id: str = RUN) -> int:
        """Return the process id of a run's supervisor, or of its leader."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.file(name, run_id).exists():
            assert time.monotonic() < deadline
            os.sched_yield()
        return int(self.file(name, run_id).read_text().splitlines()[0].removeprefix("pid="))

    def log(self) -> bytes:
        """Return the log of the run."""
        return self.file("output.log").read_bytes()

    def let_go(self) -> None:
        """Release a program that waits for it."""
        with self.release.open("wb"):
            pass


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    """Return a stand; whatever a failed test left running is killed."""
    (tmp_path / "tree").mkdir()
    release = tmp_path / "release"
    os.mkfifo(release)
    stand = Stand(tmp_path, Lifeline(tmp_path / "lifeline"), release)
    yield stand
    for run in (stand.root / "state" / "runs").glob("*"):
        stand.suites.reap(run.name)
    os.close(stand.lifeline.fd)


def verdict(facts: RunFacts) -> Verdict:
    """Return what a run shows where nothing but its exit code is asked."""
    return judge(facts, SuitePlan(("suite",)).judging_policy()).verdict


# How a suite ends.


@pytest.mark.parametrize("code", [0, 1, 3, 126, 127, 137, 255])
def test_exit_code_is_the_suites_own(stand: Stand, code: int) -> None:
    """An exit code is reported as it is, also one that a shell would use for something else."""
    facts = stand.facts("/bin/sh", "-c", f"exit {code}")

    assert (facts.exit_code, facts.signal, facts.spawn_error) == (code, None, None)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGUSR1])
def test_signal_is_kept_apart_from_exit_codes(stand: Stand, number: signal.Signals) -> None:
    """A suite that died by a signal has a signal and no exit code."""
    facts = stand.facts("/bin/sh", "-c", f"kill -{number.value} $$")

    assert (facts.exit_code, facts.signal, facts.stopped_by) == (None, number, None)


def test_parent_that_ignores_signals_does_not_turn_a_failure_into_success(stand: Stand) -> None:
    """The exit code survives a worker whose parent ignored SIGCHLD and blocked others."""
    shown = worker(stand, "careless", "/bin/sh", "-c", "exit 3")

    assert shown[:3] == [Supervision.SOUND, 3, None]


def test_suite_gets_default_signals_whatever_the_worker_ignores(stand: Stand) -> None:
    """Nothing that a worker's parent ignored or blocked is ignored or blocked in the suite."""
    worker(stand, "careless", "grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")
    masks = [int(line.split()[1], 16) for line in stand.log().splitlines()]
    # The C library keeps 32 and 33 to itself, and ignores them in what it spawns, as make does.
    ours = sum(1 << number - 1 for number in signal.valid_signals())

    assert [mask & ours for mask in masks] == [0, 0]


def worker(stand: Stand, mode: str, *command: str, before: tuple[str, ...] = ()) -> list[Any]:
    """Run a worker in a process of its own and return what it prints."""
    ended = subprocess.run(
        [*before, *worker_command(stand, mode, *command)],
        env={**os.environ, **stand.variables},
        stdout=subprocess.PIPE,
        check=True,
    )
    shown: list[Any] = json.loads(ended.stdout)
    return shown


def worker_command(stand: Stand, mode: str, *command: str) -> list[str]:
    """Return the command line of a worker in a process of its own."""
    return [sys.executable, str(SUITES / "worker.py"), str(stand.state.root), RUN, mode, *command]


# What a suite is given.


def test_suite_sees_three_descriptors_and_no_input(stand: Stand) -> None:
    """A suite gets its own session, an empty input, its output, and not one descriptor more."""
    stand.run(*program("probe"))
    seen = json.loads(stand.log())

    assert seen["descriptors"] == [0, 1, 2]
    assert seen["input"] == ""
    assert seen["leads_its_session"]
    assert seen["folder"] == str((stand.root / "tree").resolve())


def test_suite_environment_is_declared(stand: Stand) -> None:
    """A suite gets the base variables, those its plan names and its own three, and no other."""
    offered = {**stand.variables, "HOME": "/nowhere", "NAMED": "yes", "DATABASE_PASSWORD": "secret"}
    plan = SuitePlan(("/usr/bin/env",), environment=("NAMED", "ABSENT"))
    suites = LocalSuites(stand.state, offered)
    suites.start(RunOrder(RUN, stand.root, UNVERSIONED, plan))
    suites.await_report(RUN)
    seen = dict(line.split("=", 1) for line in stand.log().decode().splitlines())

    assert seen == {
        "PATH": offered["PATH"],
        "HOME": "/nowhere",
        "LANG": "C.UTF-8",
        "NAMED": "yes",
        "CI": "true",
        "STAGING_REPORT_DIR": str(stand.state.reports(RUN)),
        "STAGING_ATTEMPT": RUN,
    }


# Suites that cannot be started.


def test_missing_command_is_not_found(stand: Stand) -> None:
    """A command that does not exist, by name or by path, is a spawn error of its own."""
    by_name = stand.facts("no-such-command-anywhere")
    by_path = stand.facts("./no/such/command", run_id=f"{ATTEMPT}.2")

    assert by_name.spawn_error == by_path.spawn_error == SpawnError.NOT_FOUND
    assert (by_name.exit_code, by_name.signal) == (None, None)


def test_command_with_any_name_is_reported(stand: Stand) -> None:
    """A command whose name is no text is reported missing like any other."""
    report = stand.run("/no\udcff\r\u2028=\nsuch")

    assert report.facts.spawn_error == SpawnError.NOT_FOUND
    assert report.facts.supervision == Supervision.SOUND


@pytest.mark.parametrize("content", ["exit 0\n", "#!/bin/sh\nexit 0\n", "\x7fELF broken"])
@pytest.mark.parametrize("mode", [0o644, 0o755])
def test_file_that_cannot_be_executed_is_named_so(stand: Stand, content: str, mode: int) -> None:
    """A command without execute rights, or in no format the kernel knows, is not executable."""
    command = stand.root / "tree" / "suite"
    command.write_text(content)
    command.chmod(mode)
    facts = stand.facts("./suite")

    runs = content.startswith("#!") and mode == 0o755
    assert facts.spawn_error == (None if runs else SpawnError.NOT_EXECUTABLE)
    assert facts.exit_code == (0 if runs else None)


def test_folder_as_a_command_is_not_executable(stand: Stand) -> None:
    """A folder is no command."""
    assert stand.facts(str(stand.root)).spawn_error == SpawnError.NOT_EXECUTABLE


@pytest.mark.parametrize("named", ["./suite", "suite"])
def test_script_without_its_interpreter_is_told_from_a_missing_command(
    stand: Stand, named: str
) -> None:
    """A script that exists, but whose interpreter does not, is a bad interpreter."""
    command = stand.root / "tree" / "suite"
    command.write_text("#!/no/such/interpreter\n")
    command.chmod(0o755)
    suites = LocalSuites(stand.state, {"PATH": f"{command.parent}:/usr/bin"})
    suites.start(RunOrder(RUN, command.parent, UNVERSIONED, SuitePlan((named,))))

    assert suites.await_report(RUN).facts.spawn_error == SpawnError.BAD_INTERPRETER


@pytest.mark.parametrize("folder", ["absent", "file"])
def test_missing_working_directory_is_a_spawn_error(stand: Stand, folder: str) -> None:
    """A working directory that does not exist, or is none, is a spawn error of its own."""
    (stand.root / "file").touch()
    order = RunOrder(RUN, stand.root / folder, UNVERSIONED, SuitePlan(("true",)))
    stand.suites.start(order)

    assert stand.collect().facts.spawn_error == SpawnError.BAD_WORKING_DIRECTORY


@pytest.mark.parametrize("words", [["x" * 200_000], ["x" * 100_000] * 40])
def test_argument_list_that_is_too_long_is_a_spawn_error(stand: Stand, words: list[str]) -> None:
    """A command line that the system does not take is a permanent error of its own."""
    assert stand.facts("/bin/true", *words).spawn_error == SpawnError.BAD_ARGUMENTS


def test_nul_in_a_command_is_refused_before_there_is_a_run() -> None:
    """A command with a NUL in it never becomes a plan."""
    with pytest.raises(ValueError, match="NUL"):
        SuitePlan(("true", "a\0b"))


# Deadline and stop.


def test_deadline_is_a_reason_and_not_an_exit_code(stand: Stand) -> None:
    """A suite past its deadline is stopped, and its own end counts no longer."""
    facts = stand.facts("/bin/sleep", "600", timeout_seconds=0.3)

    assert (facts.stopped_by, facts.exit_code, facts.signal) == (Stop.DEADLINE, None, None)
    assert facts.supervision == Supervision.SOUND


def test_suite_that_ignores_every_signal_ends_at_its_deadline(stand: Stand) -> None:
    """A suite that ignores TERM is killed when its grace is over."""
    facts = stand.facts(
        "/bin/sh", "-c", "trap '' TERM HUP INT; while :; do sleep 1; done", timeout_seconds=0.3
    )

    assert facts.stopped_by == Stop.DEADLINE


def test_suite_that_stops_itself_ends_at_its_deadline(stand: Stand) -> None:
    """A suite that is stopped by SIGSTOP is past its deadline like any other."""
    facts = stand.facts("/bin/sh", "-c", "kill -STOP $$", timeout_seconds=0.3)

    assert facts.stopped_by == Stop.DEADLINE


def test_success_after_our_signal_is_none(stand: Stand) -> None:
    """A suite that traps TERM, cleans up and exits 0 has no exit code, and has not passed."""
    stand.start(*program("polite"), kill_grace_seconds=PATIENCE_SECONDS)
    stand.lifeline.await_members(1)
    stand.suites.reap(RUN)
    facts = stand.collect().facts

    assert b"cleaned up" in stand.log()
    assert (facts.stopped_by, facts.exit_code) == (Stop.REQUEST, None)
    assert verdict(facts) == Verdict.NOT_EXECUTED


def test_grace_is_for_everybody_below_the_leader(stand: Stand) -> None:
    """A wrapper that dies of TERM at once does not cost the real suite its grace."""
    stand.start(*program("nurse"), kill_grace_seconds=PATIENCE_SECONDS)
    stand.lifeline.await_members(1)
    stand.suites.reap(RUN)

    assert b"cleaned up" in stand.log()


def test_timeout_of_any_length_can_be_waited_for(stand: Stand) -> None:
    """A deadline further away than a system call can wait is a deadline all the same."""
    assert stand.facts("true", timeout_seconds=1e12).exit_code == 0


def test_request_to_stop_that_comes_before_the_suite_keeps_it_from_running(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is stopped between its supervisor's start and its own never runs."""
    patch_supervisor(
        monkeypatch,
        "import os; write = shim.write_identity;"
        "shim.write_identity = lambda *a: (write(*a), os.kill(os.getpid(), 15));"
        "shim.supervise = None;",
    )
    facts = stand.facts("/usr/bin/touch", "it-ran")

    assert facts.stopped_by == Stop.REQUEST
    assert not (stand.root / "tree" / "it-ran").exists()


def test_run_that_was_said_to_be_lost_starts_no_more(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was overtaken by a recovery before its supervisor starts none any more."""
    write, said = RunFolder.write_order, []

    def be_overtaken(folder: RunFolder, order: Order) -> None:
        write(folder, order)
        said.append(stand.suites.condition(RUN))

    monkeypatch.setattr(RunFolder, "write_order", be_overtaken)
    with pytest.raises(PreparationError, match="taken or closed"):
        stand.start("/usr/bin/touch", "it-ran")

    assert said == [RunCondition.LOST]
    assert not (stand.root / "tree" / "it-ran").exists()


#: A supervisor that keeps in what order it does what its promises hang on.
DIARIST = """
import os, stat, sys
diary, write, replace, fsync = open(sys.argv[2] + "/diary", "w"), os.write, os.replace, os.fsync
def note(word):
    print(word, file=diary, flush=True)
def release(fd, data):
    if data == b"1":
        note("gate")
    return write(fd, data)
def rename(source, target):
    replace(source, target)
    note(os.path.basename(target))
def sync(fd):
    fsync(fd)
    note("synced folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "synced file")
def sweep(*arguments, real=shim.sweep):
    left = real(*arguments)
    note("swept")
    return left
os.write, os.replace, os.fsync, shim.sweep = release, rename, sync, sweep
"""


@pytest.mark.parametrize("timeout_seconds", [PATIENCE_SECONDS, 0.05], ids=["ended", "stopped"])
def test_order_of_what_a_supervisor_does_is_the_promise(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, timeout_seconds: float
) -> None:
    """Who a suite is stands there before it runs, and its result once nobody is left, for ever."""
    patch_supervisor(monkeypatch, f"exec({DIARIST!r});")
    command = "true" if timeout_seconds == PATIENCE_SECONDS else "sleep 600"
    stand.run("/bin/sh", "-c", command, timeout_seconds=timeout_seconds)

    assert stand.file("diary").read_text().splitlines() == [
        *("shim", "leader", "gate", "swept"),
        *("synced file", "synced file", "result", "synced folder"),
    ]


# A connection that keeps others off.


@pytest.fixture
def fence() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return both sides of a connection: the worker's, and whoever's it leads to."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_supervisor_holds_the_fence_for_as_long_as_it_lives(
    stand: Stand, fence: tuple[socket.socket, socket.socket]
) -> None:
    """A fence stands until its run has ended, although its worker is gone."""
    ours, theirs = fence
    stand.start(*program("tree", "plain", "stay"), inherited=[ours.fileno()])
    stand.lifeline.await_members(1)
    ours.close()

    assert not is_ready(theirs.fileno(), 0)
    stand.suites.reap(RUN)
    assert is_ready(theirs.fileno())
    assert theirs.recv(1) == b""


def test_suite_has_no_descriptor_but_the_usual(
    stand: Stand, fence: tuple[socket.socket, socket.socket]
) -> None:
    """A suite cannot speak on the connection that fences it off: it does not get it."""
    listing = "import os; print(*sorted(os.listdir('/proc/self/fd')))"
    stand.start(sys.executable, "-c", listing, inherited=[fence[0].fileno()])
    stand.collect()

    # The fourth is the list's own.
    assert stand.log().split() == [b"0", b"1", b"2", b"3"]


#: A supervisor that keeps by which signals it ends its suite.
SIGNALLER = """
signals, sent = shim.Suite.signal_group, open(sys.argv[2] + "/signals", "w")
def signal_group(suite, *numbers):
    print(*map(int, numbers), file=sent, flush=True)
    signals(suite, *numbers)
shim.Suite.signal_group = signal_group
"""


def test_suite_that_lost_its_fence_is_killed_at_once(
    stand: Stand, fence: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the fence breaks, a suite is killed without grace or a word, and has not passed."""
    patch_supervisor(monkeypatch, f"exec({SIGNALLER!r});")
    stubborn = program("tree", "stubborn", "stay")
    stand.start(*stubborn, inherited=[fence[0].fileno()], kill_grace_seconds=100 * PATIENCE_SECONDS)
    stand.lifeline.await_members(1)
    fence[1].close()

    assert stand.lifeline.is_cut()
    assert stand.collect().facts.stopped_by == Stop.FENCE_LOST
    assert stand.file("signals").read_text().split() == [str(signal.SIGKILL.value)]


def test_suite_does_not_start_behind_a_broken_fence(
    stand: Stand, fence: tuple[socket.socket, socket.socket]
) -> None:
    """A worker that was frozen until its fence broke starts nothing any more."""
    fence[1].close()
    stand.start("/usr/bin/touch", "it-ran", inherited=[fence[0].fileno()])

    assert stand.collect().facts.stopped_by == Stop.FENCE_LOST
    assert not (stand.root / "tree" / "it-ran").exists()


def patch_supervisor(monkeypatch: pytest.MonkeyPatch, code: str, before: str = "") -> None:
    """Run `code` in the supervisor before its `main`, and `before` before its import."""
    real = suite_module.SUPERVISOR_CODE
    patched = real.replace("shim.main(", f"{code}shim.main(")
    patched = patched.replace("import shim", f"{before}import shim")
    monkeypatch.setattr(suite_module, "SUPERVISOR_CODE", patched)


# Limits.

CHATTY = "while :; do echo; sleep 0.02; done"
#: Grows by a megabyte at a time, and never lets go of it.
GLUTTON = "hoard = []\nwhile True: hoard.append(b'x' * (1 << 20))"


def test_silence_is_a_reason_of_its_own(stand: Stand) -> None:
    """A suite that prints nothing for too long is stopped, long before its deadline."""
    facts = stand.facts("/bin/sleep", "600", idle_timeout_seconds=0.2)

    assert (facts.stopped_by, facts.exit_code) == (Stop.IDLE, None)


def test_suite_that_goes_on_printing_is_not_idle(stand: Stand) -> None:
    """A suite that prints again and again ends at its deadline, not by its silence."""
    facts = stand.facts("/bin/sh", "-c", CHATTY, idle_timeout_seconds=30, timeout_seconds=0.5)

    assert facts.stopped_by == Stop.DEADLINE


#: A supervisor that falls asleep when it first waits, and wakes when there is output, a minute
#: later by its clock.
SLEEPER = """
clock, turn, late = shim.time.monotonic, shim.Watch.turn, [0.0]
def sleep(watch, seconds):
    if not seconds or late[0]:
        return turn(watch, seconds)
    output = shim.select.poll()
    output.register(watch.suite.output, shim.select.POLLIN)
    output.poll()
    late[0] = 60.0
shim.time.monotonic = lambda: clock() + late[0]
shim.Watch.turn = sleep
"""


def test_supervisor_that_slept_does_not_take_its_own_sleep_for_silence(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was printed while the supervisor could not look is heard before silence is judged."""
    patch_supervisor(monkeypatch, f"exec({SLEEPER!r});")
    facts = stand.facts(
        "/bin/sh", "-c", "echo; sleep 0.3; exit 3", idle_timeout_seconds=50, timeout_seconds=600
    )

    assert (facts.stopped_by, facts.exit_code) == (None, 3)


def test_suite_beyond_its_memory_is_killed_at_once(stand: Stand) -> None:
    """A suite that takes more memory than it may is killed without grace, for that reason."""
    facts = stand.facts(
        *PYTHON, "-c", GLUTTON, memory_max_bytes=64 * MEBIBYTE, kill_grace_seconds=600
    )

    assert (facts.stopped_by, facts.exit_code, facts.signal) == (Stop.MEMORY, None, None)


#: Eight children that share what their parent holds, until their input ends.
SHARING = """
import os
shared = b"x" * (24 << 20)
for _ in range(8):
    if os.fork() == 0:
        break
os.write(1, b".")
os.read(0, 1)
"""


def test_memory_that_is_shared_is_counted_once() -> None:
    """A suite whose processes share their memory is not charged for it by each of them."""
    with subprocess.Popen(
        [*PYTHON, "-c", SHARING], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(9) == b"." * 9
        family = [process.pid, *shim.direct_children(process.pid)]
        shown = sum(map(limits.resident_bytes, family))
        counted = sum(map(limits.proportional_bytes, family))
        below = limits.Sampled(
            shown - MEBIBYTE, 0, lambda pid: family if pid == os.getpid() else []
        )
        beyond = limits.Sampled(counted // 2, 0, lambda pid: family if pid == os.getpid() else [])

        assert counted < shown // 2
        assert (below.breach(), beyond.breach()) == (None, limits.MEMORY)
        process.stdin.close()  # type: ignore[union-attr]  # it is a pipe


def test_suite_with_too_many_processes_is_killed_at_once(stand: Stand) -> None:
    """A suite that has more processes than it may is killed without grace, and nobody is left."""
    facts = stand.facts(*program("tree", "crowd", "stay"), processes_max=100)

    assert facts.stopped_by == Stop.PROCESSES
    assert stand.lifeline.is_cut()


def test_storm_of_forks_is_ended_by_its_limit(stand: Stand) -> None:
    """A suite that forks without end is ended by its limit of processes, not by its deadline."""
    code = "import os, signal\nfor _ in range(10): os.fork()\nsignal.pause()"
    facts = stand.facts(*PYTHON, "-c", code, processes_max=200)

    assert (facts.stopped_by, facts.processes_left) == (Stop.PROCESSES, 0)


def test_suite_within_its_limits_ends_as_it_likes(stand: Stand) -> None:
    """Limits that are not met change nothing."""
    facts = stand.facts(
        "/bin/sh", "-c", "exit 3",
        idle_timeout_seconds=60, memory_max_bytes=MEBIBYTE * 1024,
        processes_max=100, open_files_max=100, file_max_bytes=MEBIBYTE,
    )  # fmt: skip

    assert (facts.exit_code, facts.stopped_by) == (3, None)


def test_file_beyond_its_limit_is_a_signal(stand: Stand) -> None:
    """A suite that writes a larger file than it may is told by a signal, which is a reason."""
    write = "exec head -c 2000000 /dev/zero > big"
    facts = stand.facts("/bin/sh", "-c", write, file_max_bytes=MEBIBYTE)

    assert facts.signal == signal.SIGXFSZ
    assert judge(facts, SuitePlan(("suite",)).judging_policy()).reason == Reason.FILE_SIZE_LIMIT
    assert (stand.root / "tree" / "big").stat().st_size == MEBIBYTE


def test_open_files_are_limited(stand: Stand) -> None:
    """A suite has as many files open as it may, and never more than its worker may."""
    stand.run("/bin/sh", "-c", "ulimit -n; ulimit -Hn", open_files_max=50)
    worker_may = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    assert stand.log() == b"50\n50\n"
    stand.run("/bin/sh", "-c", "ulimit -Hn", open_files_max=2**30, run_id=f"{ATTEMPT}.2")
    assert int(stand.file("output.log", f"{ATTEMPT}.2").read_text()) <= worker_may


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """Return a control group whose members may have 32 MiB together."""
    for base, name in (("memory", "memory.limit_in_bytes"), (".", "memory.max")):
        group = Path("/sys/fs/cgroup", base, f"staging-test-{os.getpid()}")
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / name).write_text(str(32 * MEBIBYTE))
            yield group
        except OSError:
            continue
        else:
            return
        finally:
            group.rmdir()
    pytest.skip("no control group of memory may be made here")


def test_kill_for_want_of_memory_is_told_from_another(stand: Stand, memory_group: Path) -> None:
    """A suite that the kernel killed for want of memory is known by it, and not by its signal."""
    enter = f'echo $$ > {memory_group}/cgroup.procs; exec "$@"'
    starved = stand.facts("/bin/sh", "-c", enter, "sh", *PYTHON, "-c", GLUTTON)
    policy = SuitePlan(("suite",)).judging_policy()

    assert (starved.signal, starved.out_of_memory) == (signal.SIGKILL, True)
    assert judge(starved, policy).reason == Reason.OUT_OF_MEMORY


#: A kernel that says afterwards that the suite met its limit.
TELLTALE = """
class Telltale:
    seconds, events = 3600.0, ()
    add = kill = end = lambda *_: None
    breach = lambda _: "processes" if shim.os.path.exists("done") else None
shim.hold_limits = lambda folder, *_: Telltale()
shim.os.chdir(CWD)
"""


def test_limit_that_was_met_is_no_pass_though_the_suite_got_over_it(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suite that met a limit, and exited 0 all the same, has not passed."""
    tree = str(stand.root / "tree")
    patch_supervisor(monkeypatch, f"exec({TELLTALE.replace('CWD', repr(tree))!r});")
    facts = stand.facts("/bin/sh", "-c", "touch done")

    assert (facts.stopped_by, facts.exit_code) == (Stop.PROCESSES, None)
    assert verdict(facts) == Verdict.NOT_EXECUTED


class KernelGroups:
    """Control groups as files in a folder: what is written there is what a kernel would read."""

    def __init__(self, root: Path) -> None:
        """Make the folder of a group that may be divided."""
        self.root, self.mkdir = root, os.mkdir
        root.mkdir()
        for name in ("cgroup.subtree_control", "cgroup.procs"):
            (root / name).touch()

    def make(self, path: str) -> None:
        """Make a group with its files, as the kernel does."""
        self.mkdir(path)
        group = Path(path)
        for name in ("memory.max", "memory.oom.group", "pids.max", "cgroup.procs", "cgroup.kill"):
            (group / name).touch()
        (group / "memory.events").write_text("low 0\noom 0\noom_kill 0\n")
        (group / "pids.events").write_text("max 0\n")


@pytest.mark.parametrize(
    ("events", "text", "limit"),
    [
        ("memory.events", "low 0\noom 1\noom_kill 1\n", limits.MEMORY),
        ("pids.events", "max 3\n", limits.PROCESSES),
        ("memory.events", "low 9\noom 0\noom_kill 0\n", None),
    ],
)
def test_control_group_holds_limits_and_says_which_was_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: str, text: str, limit: str | None
) -> None:
    """A group gets its limits and its suite, is killed as one, and tells which limit was met."""
    kernel = KernelGroups(tmp_path / "delegated")
    monkeypatch.setattr(limits, "delegated", lambda: [str(kernel.root)])
    monkeypatch.setattr(os, "mkdir", kernel.make)
    held = limits.hold(RUN, 1000, 20, lambda _: [])
    assert isinstance(held, limits.Group)
    group = Path(held.path)
    held.add(4711)
    before = held.breach()
    (group / events).write_text(text)
    held.kill()
    written = {
        name: (group / name).read_text()
        for name in ("memory.max", "memory.oom.group", "pids.max", "cgroup.procs", "cgroup.kill")
    }

    assert (kernel.root / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert list(written.values()) == ["1000", "1", "20", "4711", "1"]
    assert (before, held.breach()) == (None, limit)
    shutil.rmtree(group)
    held.end()


def test_kernel_holds_a_group_to_its_limits(tmp_path: Path) -> None:
    """Where control groups may be made, the kernel tells of a limit, and a kill leaves nobody."""
    held = limits.hold(f"{os.getpid()}.1", 512 * MEBIBYTE, 8, lambda _: [])
    if not isinstance(held, limits.Group):
        pytest.skip("no cgroup v2 with memory and pids may be divided here")
    crowd = "read go; for i in 1 2 3 4 5 6 7 8 9; do setsid sleep 600 & done; wait"
    with subprocess.Popen(["/bin/sh", "-c", crowd], stdin=subprocess.PIPE, cwd=tmp_path) as suite:
        held.add(suite.pid)
        before = held.breach()
        assert suite.stdin is not None
        suite.stdin.write(b"\n")
        suite.stdin.close()
        told = select.poll()
        for fd in held.events:
            told.register(fd, select.POLLPRI)
        assert told.poll(PATIENCE_SECONDS * 1000)
        met = held.breach()
        held.kill()
    held.end()

    assert (before, met) == (None, limits.PROCESSES)
    assert suite.returncode == -signal.SIGKILL
    assert not os.path.exists(held.path)  # noqa: PTH110  # the supervisor's paths are texts


def test_group_without_its_controllers_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a group cannot hold the limit, somebody looks instead, and no group is left over."""
    monkeypatch.setattr(limits, "delegated", lambda: [str(tmp_path)])
    (tmp_path / "cgroup.procs").touch()

    assert isinstance(limits.hold(RUN, 1000, 0, lambda _: []), limits.Sampled)
    assert [path.name for path in tmp_path.iterdir()] == ["cgroup.procs"]


def test_group_that_a_dead_supervisor_left_is_removed(stand: Stand) -> None:
    """A sweep removes the group of its run, and no other one that a suite may have named."""
    ours, other = stand.root / f"staging-{RUN}", stand.root / f"staging-{ATTEMPT}.2"
    for group in (ours, other):
        group.mkdir()
        stand.file(".").mkdir(parents=True, exist_ok=True)
        stand.file("group").write_text(str(group))
        stand.suites.sweep(RUN)

    assert (ours.exists(), other.exists()) == (False, True)


# Nobody is left.


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_outlives_a_suite_that_ends(stand: Stand, kind: str) -> None:
    """Whatever a suite leaves behind when it ends is dead before there is a report."""
    facts = stand.facts(*program("tree", kind, "exit"))

    stand.lifeline.await_members(1)
    assert stand.lifeline.is_cut()
    assert (facts.exit_code, facts.stopped_by, facts.processes_left) == (0, None, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_outlives_a_suite_that_is_stopped(stand: Stand, kind: str) -> None:
    """Whoever a suite has started is dead when it has been stopped."""
    stand.start(*program("tree", kind, "stay"))
    stand.lifeline.await_members(1)
    stand.suites.reap(RUN)

    assert stand.lifeline.is_cut()
    assert stand.collect().facts.stopped_by == Stop.REQUEST


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "daemon"])
def test_nobody_outlives_a_supervisor_that_is_killed(stand: Stand, kind: str) -> None:
    """If the supervisor is killed, the run is lost, and whoever carries its mark is killed."""
    stand.start(*program("tree", kind, "stay"))
    stand.lifeline.await_members(1)
    os.kill(stand.pid(), signal.SIGKILL)
    facts = stand.collect().facts

    assert stand.lifeline.is_cut()
    assert facts.supervision == Supervision.LOST
    assert verdict(facts) == Verdict.NOT_EXECUTED


def test_what_a_supervisor_could_not_stop_its_worker_does(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that says it left somebody alive is believed: the worker looks and kills."""
    patch_supervisor(monkeypatch, "shim.sweep = lambda *_: 1;")
    facts = stand.facts(*program("tree", "session", "exit"))

    assert stand.lifeline.is_cut()
    assert (facts.exit_code, facts.processes_left) == (0, 1)


def test_leader_dies_with_its_supervisor(stand: Stand) -> None:
    """The kernel kills the leader of a suite whose supervisor is gone, though nobody looks."""
    stand.start(*program("tree", "plain", "stay"))
    stand.lifeline.await_members(1)
    leader = stand.pid("leader")
    os.kill(stand.pid(), signal.SIGKILL)

    assert has_ended(leader)


def test_storm_of_forks_ends(stand: Stand) -> None:
    """A suite that forks and flees while it is being killed is killed."""
    stand.start(*program("storm", "20", "100000"))
    stand.lifeline.await_members(20)
    stand.suites.reap(RUN)

    assert stand.lifeline.is_cut()
    assert stand.collect().facts.processes_left == 0


def test_what_outlived_the_suite_is_said(stand: Stand) -> None:
    """A report says how many processes outlived the suite."""
    report = stand.run(*program("tree", "session", "exit"))

    assert report.detail == "1 processes outlived the suite and were killed"


def test_grandchild_that_holds_the_output_does_not_delay_the_end(stand: Stand) -> None:
    """A run ends with its leader, not with the last one that could still print."""
    report = stand.run(*program("holder"))

    assert (report.facts.exit_code, report.facts.stopped_by) == (0, None)
    assert report.duration_seconds is not None
    assert report.duration_seconds < PATIENCE_SECONDS
    assert stand.lifeline.is_cut()


def test_end_of_output_is_not_the_end_of_the_suite(stand: Stand) -> None:
    """A suite that closes its output runs on and has the exit code that it ends with."""
    stand.start(*program("closer"))
    stand.lifeline.await_members(1)
    stand.let_go()

    assert stand.collect().facts.exit_code == 3
    assert stand.log() == b"the last words\n"


# Output.


def peak_bytes(pid: int | str) -> int:
    """Return the most memory that a process ever held."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def test_memory_is_flat_whatever_a_suite_prints(stand: Stand) -> None:
    """Two hundred megabytes of output cost neither supervisor nor worker any memory."""
    size, limit = 200 * MEBIBYTE, MEBIBYTE
    stand.start(*program("spew", str(size)), log_max_bytes=limit)
    stand.lifeline.await_members(1)
    supervisor = stand.pid()
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes(supervisor), peak_bytes("self")
    stand.let_go()
    stand.lifeline.await_members(1)
    after = peak_bytes(supervisor)
    stand.let_go()
    report = stand.collect()
    log = stand.log()

    assert after - before[0] < FLAT_BYTES
    assert peak_bytes("self") - before[1] < FLAT_BYTES
    assert report.facts.log_complete
    assert report.log_bytes == size + len(b"HEADTAIL")
    assert report.log_dropped_bytes == size + len(b"HEADTAIL") - kept_bytes(log)
    assert kept_bytes(log) <= limit
    assert log.startswith(b"HEADxxx")
    assert log.endswith(b"xxxTAIL")


def kept_bytes(log: bytes) -> int:
    """Return how much of a log is output."""
    head, _, rest = log.partition(b"\n[staging_fsm: ")
    return len(head) + len(rest.partition(b"dropped here]\n")[2])


def test_line_of_any_length_is_output(stand: Stand) -> None:
    """A line of fifty megabytes passes like any other."""
    report = stand.run("/bin/sh", "-c", "head -c 52428800 /dev/zero | tr '\\0' x; echo; echo end")

    assert report.log_bytes == 50 * MEBIBYTE + len("\nend\n")
    assert stand.log().endswith(b"x\nend\n")


def test_output_is_kept_byte_for_byte(stand: Stand) -> None:
    """NUL, invalid UTF-8 and control sequences are kept as they were printed."""
    wanted = b"\0\xff\xfe\xc3(\x1b[31m\r\n\x07" * 100
    (stand.root / "tree" / "output").write_bytes(wanted)
    report = stand.run("/bin/cat", "output")

    assert stand.log() == wanted
    assert (report.log_bytes, report.log_dropped_bytes) == (len(wanted), 0)
    assert stand.suites.log_tail(RUN, 7) == wanted[-7:]


def test_tail_is_without_secrets_and_stays_as_it_was(stand: Stand) -> None:
    """The end of a run's output shows no secret, live or ended, also after one was changed."""
    variables = {**stand.variables, "GIVEN": "a given value", "API_TOKEN": "never given"}
    order = RunOrder(
        RUN,
        stand.root / "tree",
        UNVERSIONED,
        SuitePlan(("/bin/sh", "-c", 'echo "$GIVEN, never given"'), environment=("GIVEN", "PATH")),
    )
    suites = LocalSuites(stand.state, variables)
    suites.start(order)
    assert has_ended(stand.pid())
    live = suites.log_tail(RUN, 100)
    suites.await_report(RUN)
    changed = LocalSuites(stand.state, {"API_TOKEN": "another one"})

    assert live == suites.log_tail(RUN, 100) == changed.log_tail(RUN, 100) == b"***, ***\n"
    assert suites.log_tail(RUN, 5) == b" ***\n"
    assert stand.log() == b"a given value, never given\n"


def test_command_is_shown_without_secrets_and_stays_as_it_was(stand: Stand) -> None:
    """A secret among the arguments is masked in command and output, as it was when it started."""
    command = ("/bin/echo", "--token=hunter22", "swordfish")
    suites = LocalSuites(stand.state, {**stand.variables, "API_KEY": "swordfish"})
    changed = LocalSuites(stand.state, {**stand.variables, "API_KEY": "barracuda"})
    suite = SuitePlan(command)
    suites.start(RunOrder(RUN, stand.root / "tree", UNVERSIONED, suite))
    suites.await_report(RUN)

    assert suites.log_tail(RUN, 100) == b"--token=*** ***\n"
    assert suites.shown_command(RUN, suite) == ("/bin/echo", "--token=***", "***")
    assert changed.shown_command(RUN, suite) == suites.shown_command(RUN, suite)
    assert changed.shown_command("unknown.1", suite)[2] == "swordfish"
    assert stand.log() == b"--token=hunter22 swordfish\n"


@pytest.mark.parametrize("deed", ["printf 'run=attempt.1\ncommand=[]\n'", "echo"])
def test_command_that_the_suite_shows_in_our_place_is_not_believed(stand: Stand, deed: str) -> None:
    """What a suite calls its command is not what is shown as such."""
    command = ("/bin/sh", "-c", f"{deed} > {stand.state.run(RUN)}/shown")
    stand.run(*command)

    assert stand.suites.shown_command(RUN, SuitePlan(command)) == command


def test_command_is_shown_without_secrets_by_who_never_had_the_run(stand: Stand) -> None:
    """What a suite is given by name is masked in its command, wherever that is written."""
    suite = SuitePlan(("/bin/echo", "swordfish"), environment=("GIVEN",))
    elsewhere = LocalSuites(stand.state, {**stand.variables, "GIVEN": "swordfish"})

    assert elsewhere.shown_command("unknown.1", suite) == ("/bin/echo", "***")


def test_secret_that_begins_before_the_tail_is_masked_whole(stand: Stand) -> None:
    """A tail that would begin in the middle of a secret shows no part of it."""
    suites = LocalSuites(stand.state, {"TOKEN": "0123456789" * 5})
    suites.start(RunOrder(RUN, stand.root, UNVERSIONED, SuitePlan(("echo", "0123456789" * 5))))
    has_ended(stand.pid())

    assert suites.log_tail(RUN, 3) == b"**\n"


@settings(deadline=None, max_examples=150)
@given(
    limit=st.integers(1, 200),
    blocks=st.lists(st.binary(min_size=1, max_size=300), max_size=30),
)
def test_log_is_head_note_and_tail(
    limit: int, blocks: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A log is all output, or its head and its newest part with the number of bytes between."""
    folder = tmp_path_factory.mktemp("log")
    log = BoundedLog(str(folder), limit)
    for block in blocks:
        log.write(block)
    log.finish()
    os.close(log.fd)
    written = b"".join(blocks)
    kept = (folder / "output.log").read_bytes()
    head = written[: limit // 2]
    note = b"\n[staging_fsm: %d bytes of output dropped here]\n" % log.dropped
    tail = written[len(head) + log.dropped :]

    assert log.complete
    assert log.total == len(written)
    assert kept == (head + note + tail if log.dropped else written)
    assert len(head) + len(tail) <= max(limit, 3)
    assert not log.dropped or len(tail) >= max(1, limit // 4)
    assert sorted(path.name for path in folder.iterdir()) == ["output.log"]


def test_log_with_a_gap_ends_there(tmp_path: Path) -> None:
    """Once output could not be kept, nothing more is: a log has no gap that it hides."""
    log = BoundedLog(str(tmp_path), 8)
    (tmp_path / "output.tail").mkdir()
    log.write(b"head")
    log.write(b"lost")
    (tmp_path / "output.tail").rmdir()
    log.write(b"tail")
    log.finish()
    os.close(log.fd)

    assert (log.complete, log.total) == (False, 12)
    assert (tmp_path / "output.log").read_bytes() == b"head"


def test_log_on_a_full_disk_is_incomplete_and_the_run_is_not(stand: Stand) -> None:
    """Where the disk is full the log says that it is incomplete, and the result is there."""
    stand.state.ensure()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(stand.state.root)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("a disk of its own takes root")
    try:
        facts = stand.facts("/bin/sh", "-c", "head -c 8388608 /dev/zero; exit 7")
    finally:
        subprocess.run(["umount", "--lazy", str(stand.state.root)], check=True)

    assert (facts.supervision, facts.exit_code) == (Supervision.SOUND, 7)
    assert not facts.log_complete


def test_log_that_cannot_be_written_is_incomplete(stand: Stand) -> None:
    """A suite that passed, but whose output could not be kept, has not passed."""
    stand.start(*program("spew", str(8 * MEBIBYTE)))
    stand.lifeline.await_members(1)
    resource.prlimit(stand.pid(), resource.RLIMIT_FSIZE, (MEBIBYTE, MEBIBYTE))
    stand.let_go()
    stand.lifeline.await_members(1)
    stand.let_go()
    facts = stand.collect().facts

    assert (facts.supervision, facts.exit_code, facts.log_complete) == (Supervision.SOUND, 0, False)
    assert verdict(facts) == Verdict.NOT_EXECUTED


# A suite against its supervisor.


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGUSR1])
def test_suite_that_kills_its_supervisor_gets_no_verdict(
    stand: Stand, number: signal.Signals
) -> None:
    """A suite whose supervisor died has no verdict, and nobody of it is left."""
    facts = stand.facts(*program("parricide", str(number.value), "once"))

    assert (facts.supervision, verdict(facts)) == (Supervision.LOST, Verdict.NOT_EXECUTED)
    assert stand.lifeline.is_cut()


def test_suite_that_terminates_its_supervisor_is_stopped(stand: Stand) -> None:
    """A suite that sends TERM to its supervisor has asked to be stopped."""
    facts = stand.facts(*program("parricide", str(signal.SIGTERM.value), "once"))

    assert facts.stopped_by == Stop.REQUEST
    assert stand.lifeline.is_cut()


def test_supervisor_that_was_stopped_is_woken_at_the_deadline(stand: Stand) -> None:
    """A suite that stops its supervisor ends at its deadline all the same."""
    facts = stand.facts(
        *program("parricide", str(signal.SIGSTOP.value), "once"), timeout_seconds=0.3
    )

    assert (facts.supervision, facts.stopped_by) == (Supervision.SOUND, Stop.DEADLINE)
    assert stand.lifeline.is_cut()


def test_suite_that_ended_unseen_has_not_ended_in_time(stand: Stand) -> None:
    """A suite that ended while its supervisor was stopped, until after the deadline, is late."""
    facts = stand.facts(
        *program("parricide", str(signal.SIGSTOP.value), "leave"), timeout_seconds=0.3
    )

    assert (facts.stopped_by, facts.exit_code) == (Stop.DEADLINE, None)


#: A supervisor that is held up between the suite's first moment and its own first look.
LATECOMER = """
clock, opened, late = shim.time.monotonic, shim.Watch.open_output, [0.0]
def open_late(watch):
    late[0] = 60.0
    opened(watch)
shim.time.monotonic = lambda: clock() + late[0]
shim.Watch.open_output = open_late
"""


def test_deadline_counts_from_the_first_moment_of_a_suite(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suite that stops its supervisor at once gains no time by it."""
    patch_supervisor(monkeypatch, f"exec({LATECOMER!r});")
    facts = stand.facts("true", timeout_seconds=30)

    assert (facts.stopped_by, facts.exit_code) == (Stop.DEADLINE, None)


#: A supervisor that is held up, by its clock for an hour, before it sees that the suite has ended.
OVERSLEEPER = """
clock, look, late = shim.time.monotonic, shim.Suite.look, [0.0]
def see(suite):
    look(suite)
    late[0] = 3600.0 * suite.ended
shim.time.monotonic = lambda: clock() + late[0]
shim.Suite.look = see
"""


def test_end_that_is_seen_after_the_deadline_is_late(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exit code of 0 that is found after the deadline is none: nobody saw it come in time."""
    patch_supervisor(monkeypatch, f"exec({OVERSLEEPER!r});")
    facts = stand.facts("true")

    assert (facts.stopped_by, facts.exit_code) == (Stop.DEADLINE, None)


def test_supervisor_that_was_stopped_can_be_told_to_stop(stand: Stand) -> None:
    """A run whose supervisor is stopped can be reaped."""
    stand.start(*program("parricide", str(signal.SIGSTOP.value), "once"))
    stand.lifeline.await_members(1)
    stand.suites.reap(RUN)

    assert stand.lifeline.is_cut()


def test_suite_that_never_lets_its_supervisor_go_gets_no_verdict(stand: Stand) -> None:
    """A suite that stops its supervisor again and again is killed over its head."""
    facts = stand.facts(
        *program("parricide", str(signal.SIGSTOP.value), "again"), timeout_seconds=0.3
    )

    assert verdict(facts) == Verdict.NOT_EXECUTED
    assert stand.lifeline.is_cut()


@pytest.mark.parametrize("kind", ["crowd", "daemon"])
def test_supervisor_that_hangs_is_ended_with_all_that_is_below_it(
    stand: Stand, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that does not do its work in time loses it, and nobody gets away."""
    monkeypatch.setattr(suite_module, "SUPERVISOR_MARGIN_SECONDS", 0.1)
    patch_supervisor(monkeypatch, "shim.supervise = lambda *_: shim.select.poll().poll();")
    stand.start(*program("tree", kind, "stay"), timeout_seconds=0.1)
    stand.lifeline.await_members(1)
    facts = stand.collect().facts

    assert facts.supervision == Supervision.LOST
    assert stand.lifeline.is_cut()


@pytest.mark.parametrize(
    "deed", ["success", "unsealed", "garbage", "empty", "pipe", "link", "folder", "huge"]
)
def test_result_that_the_suite_wrote_is_found_out(stand: Stand, deed: str) -> None:
    """Whatever a suite puts in the place of its result, it is no result and nobody waits for it."""
    facts = stand.facts(*program("forger", "result", deed))

    assert (facts.supervision, facts.exit_code) == (Supervision.FORGED, None)
    assert verdict(facts) == Verdict.NOT_EXECUTED


def test_sealed_result_of_another_run_is_found_out(stand: Stand) -> None:
    """A result is of one run: sealed as it is, it proves nothing in another."""
    assert stand.facts("true", run_id=f"{ATTEMPT}.0").supervision == Supervision.SOUND

    assert stand.facts(*program("forger", "result", "replay")).supervision == Supervision.FORGED


@pytest.mark.parametrize("deed", ["success", "empty", "pipe", "link", "folder", "huge", "nothing"])
def test_no_file_of_the_control_folder_makes_a_pass(stand: Stand, deed: str) -> None:
    """A suite that tampers with what its result is made from gets no result."""
    facts = stand.facts(*program("forger", "result.new", deed))

    assert facts.supervision != Supervision.SOUND
    assert verdict(facts) == Verdict.NOT_EXECUTED


@pytest.mark.parametrize("name", ["shim", "leader", "shim.stderr", "lock", "closed", "command"])
@pytest.mark.parametrize("deed", ["garbage", "pipe", "link", "huge", "nothing"])
def test_tampering_elsewhere_never_hangs(stand: Stand, name: str, deed: str) -> None:
    """Whatever else a suite does to its control folder, its run ends and is judged by its end."""
    facts = stand.facts(*program("forger", name, deed))

    assert (facts.supervision, facts.exit_code) == (Supervision.SOUND, 0)


@pytest.mark.parametrize("deed", ["garbage", "pipe", "link", "huge", "nothing"])
def test_log_that_was_replaced_is_incomplete(stand: Stand, deed: str) -> None:
    """A suite that replaces its own log has not passed, and nobody waits for what it put there."""
    facts = stand.facts(*program("forger", "output.log", deed))

    assert verdict(facts) == Verdict.NOT_EXECUTED
    assert len(stand.suites.log_tail(RUN, 100)) <= 100


@pytest.mark.parametrize("deed", ["cut short", "longer"])
def test_log_of_another_length_is_incomplete(stand: Stand, deed: str) -> None:
    """A suite that makes its own log longer or shorter than what it printed has not passed."""
    facts = stand.facts(*program("forger", "output.log", deed))

    assert (facts.exit_code, facts.log_complete) == (0, False)
    assert verdict(facts) == Verdict.NOT_EXECUTED


@pytest.mark.parametrize("deed", ["cut short", "longer", "another of its size"])
def test_log_that_changes_after_the_end_is_incomplete(stand: Stand, deed: str) -> None:
    """Between the end of a run and its report nobody can put another log in its place."""
    stand.start("/bin/sh", "-c", "echo hello")
    stand.await_result()
    log = stand.file("output.log")
    if deed == "another of its size":
        log.with_name("another").write_bytes(b"HELLO\n")
        log.with_name("another").replace(log)
    else:
        os.truncate(log, 3 if deed == "cut short" else 30)

    assert not stand.collect().facts.log_complete


@pytest.mark.parametrize("deed", ["garbage", "deep", "pipe", "link", "folder", "huge", "nothing"])
def test_order_that_was_replaced_ends_the_run(stand: Stand, deed: str) -> None:
    """A run whose order cannot be read any more has no verdict, and nobody of it is left."""
    forger = " ".join(program("forger", "order.json", deed))
    stand.start("/bin/sh", "-c", f"{forger}; echo > $LIFELINE; exec sleep 600")
    stand.lifeline.await_members(1)

    with pytest.raises(PreparationError, match="order"):
        stand.collect()
    assert has_ended(stand.pid("leader"))


def test_forger_that_killed_its_supervisor_leaves_nobody(stand: Stand) -> None:
    """A forged result does not keep what the dead supervisor left from being killed."""
    stand.start(*program("tree", "crowd", "stay"))
    stand.lifeline.await_members(1)
    os.kill(stand.pid(), signal.SIGKILL)
    stand.file("result").write_text(f"run={RUN}\nexit_code=0\n" + "0" * 64 + "\n")

    assert stand.collect().facts.supervision == Supervision.FORGED
    assert stand.lifeline.is_cut()


@pytest.mark.parametrize("killed", ["supervisor killed", "supervisor alive"])
def test_result_sealed_with_a_stolen_secret_is_none(stand: Stand, *, killed: str) -> None:
    """A suite that takes the secret and seals a result of its own has no verdict by it."""
    stand.start("/bin/sh", "-c", "until test -e go; do sleep 0.01; done; exit 1")
    supervisor = stand.pid()
    facts = {"run": RUN, "exit_code": 0, "signal": "", "spawn_error": "", "stopped_by": ""}
    facts |= {"out_of_memory": 0, "spawn_detail": "", "duration_seconds": 1, "survivors": 0}
    facts |= {"processes_left": 0, "log_bytes": 0, "log_dropped_bytes": 0, "log_complete": 1}
    found = stand.file("output.log").stat()
    facts |= {"log_file": f"{found.st_ino}:{found.st_size}", "report": "", "foreign_result": 0}
    forged = shim.sealed(stand.state.secret(), shim.lines_of(**facts))
    stand.file("result").write_bytes(forged)
    if killed == "supervisor killed":
        os.kill(supervisor, signal.SIGKILL)
    (stand.root / "tree" / "go").touch()

    assert stand.collect().facts.supervision == Supervision.FORGED


def test_command_of_another_suite_is_not_run(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changes what a run was ordered to do, before it begins, makes it a tool error."""
    start = subprocess.Popen

    def meddled(*arguments: Any, **how: Any) -> Any:
        stand.file("command").write_bytes(b"/bin/true")
        return start(*arguments, **how)

    monkeypatch.setattr(subprocess, "Popen", meddled)
    report = stand.run("/bin/false")

    assert report.facts.supervision == Supervision.LOST
    assert report.detail == "the command is not the one that was ordered"


@pytest.mark.parametrize("how", [Stop.REQUEST, Stop.FENCE_LOST])
def test_stop_that_is_heard_of_after_the_end_is_one(stand: Stand, how: Stop) -> None:
    """A suite that ends because everything is ended, its supervisor too, has not passed."""
    ours, theirs = socket.socketpair()
    waiting = "until test -e go; do sleep 0.01; done"
    with ours, theirs:
        stand.start("/bin/sh", "-c", waiting, inherited=[ours.fileno()])
        leader, supervisor = stand.pid("leader"), stand.pid()
        os.kill(supervisor, signal.SIGSTOP)
        if how is Stop.REQUEST:
            os.kill(supervisor, signal.SIGTERM)
        else:
            theirs.close()
        (stand.root / "tree" / "go").touch()
        assert has_ended(leader)
        os.kill(supervisor, signal.SIGCONT)

        assert stand.collect().facts.stopped_by == how


def test_result_that_was_altered_after_the_run_is_found_out(stand: Stand) -> None:
    """A sealed result in which one character is changed is no result any more."""
    stand.start("/bin/sh", "-c", "exit 1")
    assert has_ended(stand.pid())
    result = stand.file("result")
    result.write_text(result.read_text().replace("exit_code=1", "exit_code=0"))

    assert stand.collect().facts.supervision == Supervision.FORGED


# A worker that is gone.


@pytest.fixture
def orphaned(stand: Stand) -> Callable[..., Stand]:
    """Return a starter of runs whose worker is killed as soon as the run has begun."""

    def start(*command: str) -> Stand:
        abandoning = subprocess.Popen(
            worker_command(stand, "abandon", *command),
            env={**os.environ, **stand.variables},
            stdout=subprocess.PIPE,
        )
        with abandoning:
            assert abandoning.stdout is not None
            assert abandoning.stdout.readline() == b"started\n"
            stand.pid("leader")
            abandoning.kill()
        return stand

    return start


def test_run_outlives_its_worker_and_is_collected_by_another(
    orphaned: Callable[..., Stand],
) -> None:
    """A run goes on when its worker is killed; another worker adopts it and gets its result."""
    stand = orphaned(*program("closer"))
    stand.lifeline.await_members(1)

    assert stand.suites.condition(RUN) == RunCondition.LIVE
    stand.let_go()
    assert (stand.collect().facts.exit_code, stand.log()) == (3, b"the last words\n")


def test_run_that_ended_without_its_worker_is_finished(orphaned: Callable[..., Stand]) -> None:
    """A run whose worker died is finished when its result is there, and has lost nothing."""
    stand = orphaned("/bin/sh", "-c", "exit 4")
    assert has_ended(stand.pid())

    assert stand.suites.condition(RUN) == RunCondition.FINISHED
    assert stand.collect().facts.exit_code == 4


def test_live_run_of_another_worker_can_be_stopped(orphaned: Callable[..., Stand]) -> None:
    """A run can be reaped by a worker that did not start it."""
    stand = orphaned(*program("tree", "crowd", "stay"))
    stand.lifeline.await_members(1)
    stand.suites.reap(RUN)

    assert stand.lifeline.is_cut()
    assert stand.suites.condition(RUN) == RunCondition.FINISHED


def test_adopted_run_keeps_its_deadline(
    orphaned: Callable[..., Stand], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adopted supervisor that hangs has the time left that it had, not its whole time again."""
    waits: list[float] = []

    def wait(identity: ProcessIdentity, seconds: float) -> bool:
        waits.append(seconds)
        return wait_for_end(identity, 0.0)

    monkeypatch.setattr(suite_module, "wait_for_end", wait)
    monkeypatch.setattr(suite_module, "age_seconds", lambda _: PATIENCE_SECONDS)
    stand = orphaned(*program("tree", "plain", "stay"))
    stand.lifeline.await_members(1)
    stand.collect()

    assert waits[0] == suite_module.SUPERVISOR_LATE_SECONDS


def test_run_that_was_given_up_can_no_longer_start(stand: Stand) -> None:
    """Once a run is said to be lost, nobody can start it."""
    assert stand.suites.condition(RUN) == RunCondition.LOST

    with pytest.raises(PreparationError):
        stand.start("/usr/bin/touch", "it-ran")
    assert not (stand.root / "tree" / "it-ran").exists()


@pytest.fixture
def asleep(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> "subprocess.Popen[bytes]":
    """Return the supervisor of a run, stopped before it did anything."""
    patch_supervisor(monkeypatch, "", before="import os; os.kill(os.getpid(), 19); ")
    stand.start("/usr/bin/touch", "it-ran")
    supervisor, _ = suite_module._CHILDREN[str(stand.state.run(RUN))]
    os.waitid(os.P_PID, supervisor.pid, os.WSTOPPED | os.WNOWAIT)
    return supervisor


def test_supervisor_lives_from_its_first_moment(
    stand: Stand, asleep: "subprocess.Popen[bytes]"
) -> None:
    """A run whose supervisor has only just been started is live, though nobody waits for it."""
    assert stand.suites.condition(RUN) == RunCondition.LIVE
    asleep.send_signal(signal.SIGCONT)

    assert stand.collect().facts.exit_code == 0
    assert (stand.root / "tree" / "it-ran").exists()


def test_supervisor_that_never_begins_is_ended_by_another_worker(
    stand: Stand, asleep: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that does not say who it is in time is found by its mark, and ended."""
    monkeypatch.setattr(suite_module, "SUPERVISOR_START_SECONDS", 0.1)
    monkeypatch.setattr(suite_module, "_CHILDREN", {})
    stand.suites.reap(RUN)

    assert asleep.wait() == -signal.SIGKILL
    assert stand.suites.condition(RUN) == RunCondition.LOST
    assert not (stand.root / "tree" / "it-ran").exists()


def test_run_has_one_supervisor(stand: Stand) -> None:
    """While its supervisor lives, nobody else gets the lock of a run, and then anybody does."""
    stand.start(*program("closer"))
    stand.lifeline.await_members(1)
    folder = RunFolder(stand.state, RUN)
    with folder.lock() as taken:
        stand.let_go()
    stand.collect()
    with folder.lock() as free:
        pass

    assert taken is None
    assert free is not None


def test_who_waits_for_a_run_that_is_stopped_learns_of_it(stand: Stand) -> None:
    """A worker that waits for a run which somebody else reaps is told that it was stopped."""
    stand.start(*program("tree", "plain", "stay"))
    stand.lifeline.await_members(1)
    reports: list[RunReport] = []
    waiting = threading.Thread(target=lambda: reports.append(stand.collect()))
    waiting.start()
    stand.suites.reap(RUN)
    waiting.join()

    assert [report.facts.stopped_by for report in reports] == [Stop.REQUEST]


class BusyLock:
    """A lock that another thread has, whoever asks for it first."""

    def __init__(self) -> None:
        """Make the lock."""
        self.lock, self.asked = threading.Lock(), 0

    def acquire(self, *how: Any) -> bool:
        """Take the lock, if this is not the first time that it is asked for."""
        self.asked += 1
        return self.asked > 1 and self.lock.acquire(*how)

    def release(self) -> None:
        """Give the lock back."""
        self.lock.release()


def test_two_that_wait_for_a_supervisor_both_learn_how_it_ended(stand: Stand) -> None:
    """A thread that asks how a supervisor ended while another does waits for the answer."""
    stand.start("true")
    child, _ = suite_module._CHILDREN[str(stand.state.run(RUN))]
    busy = BusyLock()
    child._waitpid_lock = busy  # type: ignore[attr-defined]  # the standard library's own

    assert stand.collect().facts.supervision == Supervision.SOUND
    assert busy.asked > 1


def test_run_is_started_once(stand: Stand) -> None:
    """A run that was started once is not started again: it is one execution."""
    stand.run("true")

    with pytest.raises(PreparationError, match="exists"):
        stand.start("/usr/bin/touch", "it-ran")
    assert not (stand.root / "tree" / "it-ran").exists()


def test_run_of_another_machine_is_left_alone(stand: Stand) -> None:
    """A run that another machine started is neither judged nor touched."""
    stand.run("true")
    order = json.loads(stand.file("order.json").read_bytes())
    order |= {"scope": "elsewhere:boot:1", "workspace": Workspace.WORKTREE}
    stand.file("order.json").write_text(json.dumps(order))
    stand.file("result").unlink()
    stand.state.worktree(RUN).mkdir(parents=True)
    stand.suites.reap(RUN)

    assert stand.suites.condition(RUN) == RunCondition.FOREIGN
    assert not stand.file("closed").exists()
    assert stand.state.worktree(RUN).exists()


def test_bystander_with_the_number_of_a_supervisor_is_never_signalled(stand: Stand) -> None:
    """A process that was given the number of a supervisor that is gone survives its reaping."""
    stand.run("true")
    stand.file("result").unlink()
    with (
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as bystander,
        stand.file("lock").open("rb") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        start = start_ticks(bystander.pid)
        assert start is not None
        for name in ("shim", "leader"):
            stand.file(name).write_text(f"pid={bystander.pid}\nstart={start - 1}\n")
        assert stand.suites.condition(RUN) == RunCondition.LIVE
        stand.suites.reap(RUN)
        answer, _ = bystander.communicate(b"alive")

    assert (answer, bystander.returncode) == (b"alive", 0)


def test_bystander_with_another_mark_survives_the_sweep(stand: Stand) -> None:
    """A sweep kills whoever carries the mark of its run, to the letter, and nobody else."""
    environment = {"STAGING_ATTEMPT": RUN + "0", "PATH": os.environ["PATH"]}
    with subprocess.Popen(
        ["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as bystander:
        left = stand.suites.sweep(RUN)
        answer, _ = bystander.communicate(b"alive")

    assert (left, answer) == (0, b"alive")


# What is kept.


def test_old_runs_are_removed_and_none_that_is_needed(stand: Stand) -> None:
    """What ended long ago is removed, but for unfinished attempts, live runs and other machines."""
    for run in ("old.1", "unfinished.1", "foreign.1", "young.1"):
        stand.run("true", run_id=run)
    stand.start(*program("closer"), run_id="live.1")
    stand.lifeline.await_members(1)
    order = json.loads(stand.file("order.json", "foreign.1").read_bytes())
    foreign = order | {"scope": "elsewhere:boot:1"}
    stand.file("order.json", "foreign.1").write_text(json.dumps(foreign))
    runs = stand.state.root / "runs"
    for run in ("old.1", "unfinished.1", "foreign.1", "live.1"):
        os.utime(runs / run, (0, 0))
    stand.suites.prune(0, lambda: {"unfinished"})
    before = sorted(stand.state.run_ids())
    stand.suites.prune(1, lambda: {"unfinished"})
    left = sorted(stand.state.run_ids())
    stand.let_go()

    assert before == ["foreign.1", "live.1", "old.1", "unfinished.1", "young.1"]
    assert left == ["foreign.1", "live.1", "unfinished.1", "young.1"]
    assert not stand.state.reports("old.1").exists()
    assert stand.collect("live.1").facts.exit_code == 3


def test_nobody_is_asked_while_nothing_is_old(stand: Stand) -> None:
    """As long as there is nothing to remove, the database is left alone."""
    stand.suites.prune(1, lambda: pytest.fail("asked"))
    stand.run("true")

    stand.suites.prune(1, lambda: pytest.fail("asked"))


def test_old_runs_are_not_looked_for_at_each_launch(stand: Stand) -> None:
    """All run folders are looked at once in a while, however many launches there are."""
    of_one_worker = stand.suites
    of_one_worker.prune(1, lambda: pytest.fail("asked"))
    stand.run("true", run_id="old.1")
    os.utime(stand.state.root / "runs" / "old.1", (0, 0))
    of_one_worker.prune(1, frozenset)
    left = stand.state.run_ids()
    stand.suites.prune(1, frozenset)

    assert left == ["old.1"]
    assert stand.state.run_ids() == []


# Who is nobody's root, and other machines.


def as_nobody(*paths: Path) -> tuple[str, ...]:
    """Return what makes a command run without root, as the owner of `paths`."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("root, and cannot run anything without")
    nobody = 65534
    for path in paths:
        os.chown(path, nobody, nobody)
    # The right to read is kept: this interpreter may stand where only root may look.
    rights = "+dac_read_search"
    return (
        "setpriv", f"--reuid={nobody}", f"--regid={nobody}", "--clear-groups",
        f"--inh-caps={rights}", f"--ambient-caps={rights}",
    )  # fmt: skip


def test_supervision_needs_no_root(stand: Stand) -> None:
    """Without root, a run is supervised, swept and collected like any other."""
    command = program("tree", "crowd", "exit")
    shown = worker(stand, "collect", *command, before=as_nobody(*stand.paths))

    assert shown[:3] == [Supervision.SOUND, 0, None]
    assert shown[3] != 0
    assert stand.lifeline.is_cut()


def test_supervisor_keeps_its_secret(stand: Stand) -> None:
    """A suite of the same user cannot look into the supervisor that holds the seal."""
    looks = "for file in environ maps mem; do head -c 1 /proc/$PPID/$file && exit 1; done; exit 0"
    shown = worker(stand, "collect", "/bin/sh", "-c", looks, before=as_nobody(*stand.paths))

    assert shown[:2] == [Supervision.SOUND, 0]


@pytest.mark.parametrize(("code", "ends"), [("exit 3", (3, None)), ("kill -9 $$", (None, 9))])
def test_supervisor_works_with_what_macos_has(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, code: str, ends: tuple[int | None, int | None]
) -> None:
    """Where there is no subreaper, no pidfd and no waitid, a suite is supervised all the same."""
    without = "import os, sys; sys.platform = 'darwin'; del os.waitid, os.pidfd_open;"
    patch_supervisor(monkeypatch, "", before=without)
    facts = stand.facts("/bin/sh", "-c", code)
    left = stand.facts(*program("tree", "plain", "exit"), run_id=f"{ATTEMPT}.3")
    late = stand.facts("/bin/sleep", "600", run_id=f"{ATTEMPT}.2", timeout_seconds=0.2)

    assert (facts.exit_code, facts.signal) == ends
    assert (left.exit_code, stand.lifeline.is_cut()) == (0, True)
    assert late.stopped_by == Stop.DEADLINE


# Waiting costs nothing.


def activity(task: Path) -> tuple[str, ...]:
    """Return how often a thread gave up the processor, and how long it had it."""
    status = (task / "status").read_text()
    times = (task / "stat").read_text().rpartition(")")[2].split()[11:13]
    return (status.split("\nvoluntary_ctxt_switches:")[1].split()[0], *times)


def test_waiting_costs_nothing(stand: Stand) -> None:
    """While a suite says nothing, neither its supervisor nor its worker ever wakes up."""
    stand.start(*program("closer"))
    stand.lifeline.await_members(1)
    waiting = threading.Thread(target=stand.collect)
    waiting.start()
    tasks = [Path(f"/proc/{stand.pid()}"), Path(f"/proc/self/task/{waiting.native_id}")]
    deadline = time.monotonic() + PATIENCE_SECONDS
    before: list[tuple[str, ...]] = []
    after = [activity(task) for task in tasks]
    # At first both still have something to do; who polls never comes to rest.
    while before != after and time.monotonic() < deadline:
        before = after
        assert not has_ended(stand.pid(), 0.5)
        after = [activity(task) for task in tasks]
    stand.let_go()
    waiting.join()

    assert after == before


# Evidence.

JUNIT = '<testsuite><testcase name="a"/></testsuite>'
OVERSIZE = f"""
    exec > $STAGING_REPORT_DIR/junit.xml
    echo '<testsuite>'; head -c {REPORT_MAX_BYTES} /dev/zero | tr '\\0' ' '; echo '</testsuite>'
"""


def evidence(stand: Stand, script: str, report: str = "junit.xml") -> EvidenceState:
    """Return what became of the report of a suite that is a shell script."""
    return stand.facts("/bin/sh", "-c", script, report=report).evidence.state


@pytest.mark.parametrize(
    ("script", "state"),
    [
        (f"echo '{JUNIT}' > $STAGING_REPORT_DIR/junit.xml", EvidenceState.READ),
        ("true", EvidenceState.MISSING),
        ("echo '<testsuite>' > $STAGING_REPORT_DIR/junit.xml", EvidenceState.UNREADABLE),
        ("mkfifo $STAGING_REPORT_DIR/junit.xml", EvidenceState.UNREADABLE),
        ("mkdir $STAGING_REPORT_DIR/junit.xml", EvidenceState.UNREADABLE),
        ("ln -s /dev/zero $STAGING_REPORT_DIR/junit.xml", EvidenceState.UNREADABLE),
        (
            f"echo '{JUNIT}' > real.xml; ln -s $PWD/real.xml $STAGING_REPORT_DIR/junit.xml",
            EvidenceState.UNREADABLE,
        ),
        (OVERSIZE, EvidenceState.UNREADABLE),
    ],
)
def test_report_is_a_readable_file_of_this_run(
    stand: Stand, script: str, state: EvidenceState
) -> None:
    """Only a complete report, in a regular file of bounded size, is evidence."""
    assert evidence(stand, script) == state


@pytest.mark.parametrize(
    ("script", "state"),
    [
        ("true", EvidenceState.STALE),
        ("cat report.xml > copy.xml; mv copy.xml report.xml", EvidenceState.READ),
        ("cp -p report.xml copy.xml; mv copy.xml report.xml", EvidenceState.READ),
        (
            "touch -r report.xml t; cp report.xml x; cat x >report.xml; touch -r t report.xml",
            EvidenceState.READ,
        ),
        ("rm report.xml", EvidenceState.MISSING),
    ],
)
def test_report_outside_the_runs_folder_must_be_of_this_run(
    stand: Stand, script: str, state: EvidenceState
) -> None:
    """A report that was there before is stale unless it was written, whatever time it carries."""
    report = stand.root / "tree" / "report.xml"
    report.write_text(JUNIT)

    assert evidence(stand, script, str(report)) == state


@pytest.mark.parametrize(
    ("stamp", "state", "dated"),
    [
        ("$(date -u -d '3 hours ago' +%FT%TZ)", EvidenceState.STALE, None),
        ("$(date -u +%FT%T)", EvidenceState.READ, True),
        ("$(date +%FT%T)", EvidenceState.READ, True),
        ("", EvidenceState.READ, False),
    ],
)
def test_report_out_of_a_cache_is_found_out(
    stand: Stand, stamp: str, state: EvidenceState, *, dated: bool | None
) -> None:
    """A report that is new as a file, and says itself that it is old, is stale."""
    report = f'<testsuite timestamp=\\"{stamp}\\"><testcase/></testsuite>'
    script = f'echo "{report}" > $STAGING_REPORT_DIR/junit.xml'
    found = stand.facts("/bin/sh", "-c", script, report="junit.xml").evidence

    assert found.state == state
    assert (found.counts and found.counts.dated) == dated


def test_report_outside_the_runs_folder_has_one_writer(stand: Stand) -> None:
    """Two runs that would write the same report are never under way at once."""
    report = str(stand.root / "tree" / "report.xml")
    another = f"{ATTEMPT}.2"
    stand.start("/bin/sh", "-c", "until test -e go; do sleep 0.01; done", report=report)
    with pytest.raises(PreparationError, match="another run that writes the report"):
        stand.start("true", run_id=another, report=report)
    stand.start("true", run_id=f"{ATTEMPT}.3", report="report.xml")
    stand.suites.await_report(f"{ATTEMPT}.3")
    (stand.root / "tree" / "go").touch()
    stand.collect()

    stand.start("true", run_id=f"{ATTEMPT}.4", report=report)
    stand.suites.await_report(f"{ATTEMPT}.4")


def test_report_counts_as_it_was_when_its_run_ended(stand: Stand) -> None:
    """What is written between the end of a run and its verdict is another run's report."""
    report = stand.root / "tree" / "report.xml"
    stand.start("true", report=str(report))
    stand.await_result()
    report.write_text(JUNIT)

    assert stand.collect().facts.evidence.state == EvidenceState.MISSING


@pytest.mark.parametrize("change", ["rm secret; mkfifo secret", "echo short > secret"])
def test_worker_does_not_wait_for_a_secret_that_is_none(stand: Stand, change: str) -> None:
    """A suite that replaces what results are sealed with loses its verdict, and stops nobody."""
    report = stand.run("/bin/sh", "-c", f"cd {stand.state.root} && {change}")

    assert report.facts.supervision == Supervision.FORGED
    with pytest.raises(PreparationError, match="is not the secret"):
        stand.start("true", run_id=f"{ATTEMPT}.2")


def test_start_that_fails_keeps_nothing_open(stand: Stand) -> None:
    """However often a run cannot be started, the worker holds no descriptor more for it."""
    stand.run("true")
    (stand.state.root / "secret").write_text("none")
    opened = len([*Path("/proc/self/fd").iterdir()])
    for number in range(2, 6):
        with pytest.raises(PreparationError):
            stand.start("true", run_id=f"{ATTEMPT}.{number}", report=str(stand.root / "r.xml"))

    assert len([*Path("/proc/self/fd").iterdir()]) == opened


@pytest.mark.parametrize("zone", ["Asia/Kathmandu", "America/St_Johns"])
def test_time_stamp_without_a_zone_may_be_a_local_one(
    stand: Stand, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report of a suite that writes the time of its own zone is of this run."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        stamp = "$(date +%FT%T)"
        script = f'echo "<testsuite timestamp=\\"{stamp}\\"><testcase/></testsuite>"'
        command = ("/bin/sh", "-c", f"TZ={zone}; export TZ; {script} > $STAGING_REPORT_DIR/j.xml")
        found = stand.facts(*command, report="j.xml").evidence
    finally:
        monkeypatch.undo()
        time.tzset()

    assert (found.state, found.counts and found.counts.dated) == (EvidenceState.READ, True)


def test_what_is_left_is_killed_before_its_checkout_goes(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody who could write into a checkout is left when it is removed."""
    done: list[str] = []
    for name in ("sweep", "_remove_checkout"):
        whole = getattr(LocalSuites, name)

        def noted(*what: Any, name: str = name, whole: Any = whole) -> Any:
            done.append(name)
            return whole(*what)

        monkeypatch.setattr(LocalSuites, name, noted)
    stand.start("/bin/sleep", "600")
    stand.suites.reap(RUN)

    assert done == ["sweep", "_remove_checkout"]


def test_command_is_told_where_its_report_goes(stand: Stand) -> None:
    """The placeholder in a command stands for the run's report folder."""
    report = stand.run("/bin/cp", "junit.xml", "{report_dir}/junit.xml", report="junit.xml")

    assert report.facts.exit_code == 1
    assert str(stand.state.reports(RUN)).encode() not in stand.log()
    (stand.root / "tree" / "junit.xml").write_text(JUNIT)
    again = stand.facts(
        "/bin/cp", "junit.xml", "{report_dir}/junit.xml", report="junit.xml", run_id=f"{ATTEMPT}.2"
    )
    assert again.evidence.state == EvidenceState.READ

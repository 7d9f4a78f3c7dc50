"""Process identities: a number alone is nobody, and nobody else is ever signalled."""

import ctypes
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import attrs
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hosts import no_descriptors_left
from staging_fsm.effects import processes
from staging_fsm.effects.processes import (
    ProcessIdentity,
    _stat,
    age_seconds,
    identify,
    is_alive,
    is_stopped,
    kill_descendants,
    kill_marked,
    send_signal,
    this_process,
    this_scope,
    wait_for_end,
)
from staging_fsm.effects.supervisor import limits
from stand import await_that

#: Its own in each process of the tests, of which several may run on a machine.
MARK = f"STAGING_TEST_MARK_{os.getpid()}"
#: Carried by no process: a killed one shows its mark until it is gone, also to the next test.
NOBODY = "nobody"
PATIENCE_SECONDS = 60.0


@attrs.define
class Bystanders:
    """Processes that live until their input ends or somebody kills them."""

    stack: ExitStack
    started: list[subprocess.Popen[bytes]] = attrs.field(factory=list)

    def start(self, *command: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start one that answers what it is sent."""
        process = subprocess.Popen(
            command or ("cat",),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], **variables},
        )
        self.stack.enter_context(process)
        self.stack.callback(process.kill)
        self.started.append(process)
        return process


@pytest.fixture
def bystanders() -> Iterator[Bystanders]:
    """Return a starter of processes; all are gone afterwards."""
    with ExitStack() as stack:
        yield Bystanders(stack)


@pytest.fixture(params=["linux", "portable"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Hold on Linux, and on a system without its process files and descriptors."""
    if request.param == "portable":
        monkeypatch.setattr(processes, "_HAS_PROC", False)
        monkeypatch.setattr(processes, "_HAS_PIDFD", False)
    return str(request.param)


def identity_of(process: subprocess.Popen[bytes]) -> ProcessIdentity:
    """Return the identity of a process that lives."""
    found = identify(process.pid)
    assert found is not None
    return found


def answers(process: subprocess.Popen[bytes]) -> bool:
    """Say whether a process lives, by asking it; it ends then."""
    try:
        return process.communicate(b"alive", PATIENCE_SECONDS)[0] == b"alive"
    except BrokenPipeError:
        return False


def another(identity: ProcessIdentity) -> ProcessIdentity:
    """Return a process that had the same number earlier."""
    return attrs.evolve(identity, start=identity.start - 1)


@given(
    scope=st.text(st.characters(codec="ascii", exclude_characters="/\n")),
    pid=st.integers(0),
    start=st.integers(0),
)
def test_identity_survives_being_written_down(scope: str, pid: int, start: int) -> None:
    """An identity is the same after it was written to a row and read back."""
    identity = ProcessIdentity(scope, pid, start)

    assert ProcessIdentity.parse(str(identity)) == identity


@pytest.mark.parametrize("text", ["", "worker", "a/b", "a/1/x", "a//1"])
def test_text_that_is_no_identity_is_refused(text: str) -> None:
    """What is no identity is never read as one."""
    with pytest.raises(ValueError, match=r"unpack|invalid"):
        ProcessIdentity.parse(text)


def test_process_is_alive_until_it_ends(system: str, bystanders: Bystanders) -> None:
    """A process lives until it ends; a zombie that nobody has waited for does not."""
    process = bystanders.start()
    identity = identity_of(process)
    assert is_alive(identity)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    assert is_alive(identity) is False, system
    process.wait()
    assert is_alive(identity) is False


def test_number_that_was_given_to_another_process_is_not_alive(
    system: str, bystanders: Bystanders
) -> None:
    """A process that started at another time is another process, whatever its number."""
    assert is_alive(another(identity_of(bystanders.start()))) is False, system


def test_this_process_knows_itself(system: str) -> None:
    """The calling process has an identity, and it is alive."""
    assert is_alive(this_process()), system


@pytest.mark.parametrize("name", ["(sd-pam)", "a) R 1", ") (", "a b"])
def test_name_of_a_process_is_no_fact_about_it(
    bystanders: Bystanders, tmp_path: Path, name: str
) -> None:
    """Whatever a process is called: its start, session and threads are found behind its name."""
    plain = bystanders.start()
    program = tmp_path / name
    shutil.copy(shutil.which("cat") or "/bin/cat", program)
    process = bystanders.start(str(program))
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"a")
    process.stdin.flush()
    assert process.stdout.read(1) == b"a"
    found, called = _stat(process.pid), Path(f"/proc/{process.pid}/comm").read_text()

    assert called == f"{name}\n"
    assert found is not None
    assert (found.session, found.start >= identity_of(plain).start) == (os.getsid(0), True)
    assert is_alive(identity_of(process))
    assert limits.threads(process.pid) == 1
    assert identity_of(process).start == found.start


def test_process_of_an_earlier_boot_is_dead_and_one_of_another_machine_unknown() -> None:
    """After a reboot of this machine all are dead; of another machine nothing is known."""
    host, boot, namespace = this_scope().rsplit(":", 2)

    assert is_alive(ProcessIdentity(f"{host}:another-boot:{namespace}", os.getpid(), 1)) is False
    assert is_alive(ProcessIdentity(f"another:{boot}:{namespace}", os.getpid(), 1)) is None
    assert is_alive(ProcessIdentity(f"{host}:{boot}:0", os.getpid(), 1)) is None


@pytest.mark.parametrize(
    ("apart", "is_ours"), [(("--mount",), True), (("--pid", "--fork"), False)], ids=str
)
def test_scope_is_where_numbers_of_processes_mean_the_same(
    apart: tuple[str, ...], *, is_ours: bool
) -> None:
    """Whoever has other mounts has the same processes, and another process namespace has others."""
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", *apart, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("no namespace may be made here")
    code = "from staging_fsm.effects.processes import this_scope; print(this_scope(), end='')"
    asked = ["unshare", *apart, sys.executable, "-c", code]
    scope = subprocess.run(asked, check=True, capture_output=True, text=True).stdout

    assert (scope == this_scope()) == is_ours
    assert scope.rpartition(":")[0] == this_scope().rpartition(":")[0]


@pytest.mark.skipif(not processes._HAS_PIDFD, reason="there are no descriptors of processes")
def test_without_a_descriptor_to_look_nobody_is_dead(bystanders: Bystanders) -> None:
    """Where no descriptor is left nothing is known of a process: none passes for dead or gone."""
    living = identity_of(bystanders.start("cat", **{MARK: "ours"}))
    questions = (
        lambda: is_alive(living),
        lambda: identify(living.pid),
        lambda: is_stopped(living),
        lambda: wait_for_end(living, 0),
        lambda: send_signal(living, signal.SIGTERM),
        lambda: kill_descendants(living),
        lambda: kill_marked(MARK, "ours"),
    )
    for question in questions:
        with no_descriptors_left(), pytest.raises(OSError, match="Too many open files"):
            question()

    assert is_alive(living) is True


@pytest.mark.skipif(not processes._HAS_PIDFD, reason="there are no descriptors of processes")
def test_marked_process_that_cannot_be_looked_at_is_not_overlooked(bystanders: Bystanders) -> None:
    """A sweep that has a descriptor for a process and none for its environment says so."""
    living = identity_of(bystanders.start("cat", **{MARK: "ours"}))
    mark = f"{MARK}=ours".encode()

    with no_descriptors_left(), pytest.raises(OSError, match="Too many open files"):
        processes._is_marked(living.pid, mark)


def test_signal_reaches_its_process_and_never_another(system: str, bystanders: Bystanders) -> None:
    """A signal reaches the process that is meant, and nobody who has its number now."""
    process = bystanders.start()
    identity = identity_of(process)
    send_signal(another(identity), signal.SIGKILL)
    send_signal(attrs.evolve(identity, scope="elsewhere:boot:1"), signal.SIGKILL)
    assert answers(process), system
    process = bystanders.start()
    send_signal(identity_of(process), signal.SIGKILL)

    assert process.wait(PATIENCE_SECONDS) == -signal.SIGKILL


@pytest.mark.skipif(not processes._HAS_PIDFD, reason="there are no descriptors of processes")
def test_nobody_is_signalled_by_number(
    bystanders: Bystanders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the look a number may be another process: the one that was looked at is signalled."""
    asked = bystanders.start()
    marked = bystanders.start("cat", **{MARK: "ours"})

    def refuse(pid: int, number: int) -> None:
        message = f"{number} was sent to {pid}, whoever that is"
        raise AssertionError(message)

    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", refuse)
        send_signal(identity_of(asked), signal.SIGTERM)
        kill_marked(MARK, "ours")

    assert (asked.wait(), marked.wait()) == (-signal.SIGTERM, -signal.SIGKILL)


@pytest.mark.skipif(not processes._HAS_PIDFD, reason="there are no descriptors of processes")
def test_process_is_held_before_it_is_looked_at(
    bystanders: Bystanders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever gets a number between look and signal is safe: the look is at who is held."""
    process, order = bystanders.start(), []
    opened, looked = os.pidfd_open, processes.is_alive

    def hold(pid: int) -> int:
        order.append("hold")
        return opened(pid)

    def look(identity: ProcessIdentity) -> bool | None:
        order.append("look")
        return looked(identity)

    monkeypatch.setattr(os, "pidfd_open", hold)
    monkeypatch.setattr(processes, "is_alive", look)
    send_signal(identity_of(process), signal.SIGKILL)

    assert order[:2] == ["hold", "look"]
    assert process.wait(PATIENCE_SECONDS) == -signal.SIGKILL


def test_machine_is_called_what_it_calls_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name service has a say in which machine this is: what it answers changes."""

    def refuse(*_: object) -> None:
        message = "a name service was asked"
        raise AssertionError(message)

    for name in ("getfqdn", "gethostbyaddr", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)

    assert this_scope.__wrapped__().startswith(f"{socket.gethostname()}:")


def test_signal_to_a_dead_process_is_nothing(system: str, bystanders: Bystanders) -> None:
    """Who is gone is signalled without a complaint."""
    process = bystanders.start()
    identity = identity_of(process)
    process.kill()
    process.wait()
    send_signal(identity, signal.SIGKILL)

    assert wait_for_end(identity, PATIENCE_SECONDS), system


def test_end_is_waited_for(system: str, bystanders: Bystanders) -> None:
    """Who lives is waited for as long as was asked, and who ends no longer."""
    process = bystanders.start()
    identity = identity_of(process)
    assert not wait_for_end(identity, 0.05), system
    process.kill()

    assert wait_for_end(identity, 1e9)
    assert process.wait(PATIENCE_SECONDS) == -signal.SIGKILL


def test_end_of_another_is_not_waited_for(system: str, bystanders: Bystanders) -> None:
    """A process whose number was given to another has ended."""
    process = bystanders.start()

    assert wait_for_end(another(identity_of(process)), PATIENCE_SECONDS), system
    assert answers(process)


@pytest.mark.skipif(not processes._HAS_PIDFD, reason="there are no descriptors of processes")
def test_end_of_a_process_that_is_hidden_is_waited_for(
    bystanders: Bystanders, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where the system shows nobody another's process, its descriptor tells of its end."""
    process = bystanders.start()
    identity = identity_of(process)
    monkeypatch.setattr(processes, "_PROC", tmp_path)

    assert not wait_for_end(identity, 0.05)
    assert answers(process)
    assert wait_for_end(identity, PATIENCE_SECONDS)


def test_wait_longer_than_a_system_call_can_is_made_of_several(
    system: str, bystanders: Bystanders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait goes on after each of the waits it is made of."""
    monkeypatch.setattr(processes, "_WAIT_MAX_SECONDS", 0.01)
    process = bystanders.start()

    assert not wait_for_end(identity_of(process), 0.05), system
    assert answers(process)


def test_age_is_counted_from_the_start(system: str, bystanders: Bystanders) -> None:
    """A process is as old as the time since it started, by a clock that nobody can set."""
    before = time.monotonic()
    identity = identity_of(bystanders.start())
    waited = time.monotonic() - before
    older = age_seconds(attrs.evolve(identity, start=identity.start - 100 * 3600))

    assert 3600 - 1 < older < 3600 + waited + PATIENCE_SECONDS, system
    assert age_seconds(attrs.evolve(identity, start=identity.start + 100 * 3600)) == 0


@pytest.mark.skipif(not processes._HAS_PROC, reason="starts are told in the time of day")
def test_sleep_of_the_machine_counts_as_age(
    bystanders: Bystanders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that started before the machine was suspended is older by that time, too."""
    identity = identity_of(bystanders.start())
    earlier = attrs.evolve(identity, start=identity.start - 7200 * os.sysconf("SC_CLK_TCK"))
    clock = time.clock_gettime

    def as_after_an_hour_of_sleep(which: int) -> float:
        return clock(which) - 3600 * (which == time.CLOCK_MONOTONIC)

    monkeypatch.setattr(time, "clock_gettime", as_after_an_hour_of_sleep)

    assert 7200 - 1 < age_seconds(earlier) < 7200 + PATIENCE_SECONDS


def test_stopped_process_is_seen(bystanders: Bystanders) -> None:
    """A process that was stopped says so, until it goes on."""
    process = bystanders.start()
    identity = identity_of(process)
    assert not is_stopped(identity)
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)

    assert is_stopped(identity)
    assert not is_stopped(another(identity))
    assert is_alive(identity)


PTRACE_ATTACH, PTRACE_DETACH = 16, 17


def test_process_that_a_tracer_holds_is_stopped(bystanders: Bystanders) -> None:
    """A process that is held by a tracer goes on as little as one that was stopped."""
    process = bystanders.start("sh", "-c", 'echo; read -r line; printf %s "$line"')
    identity = identity_of(process)
    assert process.stdout is not None
    # Whoever is caught while it begins its program is stopped twice.
    assert process.stdout.read(1) == b"\n"
    ptrace = ctypes.CDLL(None).ptrace
    if ptrace(PTRACE_ATTACH, process.pid, None, None) != 0:
        pytest.skip("no process may be traced here")
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    held = is_stopped(identity)
    ptrace(PTRACE_DETACH, process.pid, None, None)

    assert held
    assert not is_stopped(another(identity))
    assert answers(process)


def test_marked_processes_are_killed_and_no_others(system: str, bystanders: Bystanders) -> None:
    """Whoever carries the mark to the letter is killed, and nobody who carries almost the same."""
    marked = [bystanders.start(**{MARK: "run.1"}) for _ in range(3)]
    others = [
        bystanders.start(**{MARK: "run.10"}),
        bystanders.start(**{MARK + "S": "run.1"}),
        bystanders.start(OTHER=f"{MARK}=run.1"),
        bystanders.start("cat", "-", A=f"\n{MARK}=run.1"),
    ]

    assert kill_marked(MARK, "run.1") == len(marked), system
    assert [process.wait(PATIENCE_SECONDS) for process in marked] == [-signal.SIGKILL] * 3
    assert kill_marked(MARK, "run.1") == 0
    assert all(answers(process) for process in others)


@pytest.mark.skipif(not processes._HAS_PIDFD, reason="there are no descriptors of processes")
def test_nobody_goes_on_without_another_that_was_killed(
    bystanders: Bystanders, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A process whose child is killed before it learns nothing of that: it was stopped before."""
    went_on, script = tmp_path / "went on", 'sleep 600 & echo $!; wait; touch "$0"; sleep 600'
    parent = bystanders.start("sh", "-c", script, str(went_on), **{MARK: "run.2"})
    identity = identity_of(parent)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    send = signal.pidfd_send_signal

    def slowly(descriptor: int, number: int) -> None:
        send(descriptor, number)
        if number == signal.SIGKILL:
            await_that(
                lambda: is_stopped(identity) or not is_alive(identity) or went_on.exists(),
            )

    monkeypatch.setattr(psutil, "pids", lambda: [child, parent.pid])
    monkeypatch.setattr(signal, "pidfd_send_signal", slowly)
    kill_marked(MARK, "run.2")

    assert parent.wait(PATIENCE_SECONDS) == -signal.SIGKILL
    assert not went_on.exists()


def test_caller_that_carries_the_mark_itself_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sweeps does not sweep itself, though it may carry the mark."""
    code = (
        "import sys; from staging_fsm.effects.processes import kill_marked;"
        f"sys.exit(kill_marked('{MARK}', 'mine'))"
    )
    monkeypatch.setenv(MARK, "mine")

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


#: Leads a session, with a member that has an emptied environment and says when it is there.
LEADER = "exec env -i sh -c 'echo; exec sleep 600' & wait"


def test_session_of_a_leader_that_can_still_be_seen_is_swept(tmp_path: Path) -> None:
    """Members of a session are killed, also without a mark, while its leader is to be seen."""
    output, into = os.pipe()
    leader = subprocess.Popen(
        ["sh", "-c", LEADER], stdout=into, start_new_session=True, cwd=tmp_path
    )
    os.close(into)
    assert os.read(output, 1) == b"\n"
    identity = identity_of(leader)
    leader.kill()
    os.waitid(os.P_PID, leader.pid, os.WEXITED | os.WNOWAIT)
    assert kill_marked(MARK, NOBODY, another(identity)) == 0
    assert kill_marked(MARK, NOBODY, identity) == 1
    leader.wait()

    poll = select.poll()
    poll.register(output, select.POLLIN)
    assert poll.poll(PATIENCE_SECONDS * 1000)
    assert os.read(output, 1) == b""
    os.close(output)


@pytest.mark.skipif(not processes._HAS_PIDFD, reason="there are no descriptors of processes")
def test_session_is_swept_whole_however_soon_its_leader_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a session whose leader is reaped as soon as it is killed, no member stays behind."""
    leader = subprocess.Popen(["sh", "-c", LEADER], stdout=subprocess.PIPE, start_new_session=True)
    assert leader.stdout is not None
    assert leader.stdout.read(1) == b"\n"
    identity, pid, send = identity_of(leader), leader.pid, signal.pidfd_send_signal

    def and_reap(descriptor: int, number: int) -> None:
        send(descriptor, number)
        of_leader = f"Pid:\t{pid}\n" in Path(f"/proc/self/fdinfo/{descriptor}").read_text()
        if number == signal.SIGKILL and of_leader:
            leader.wait(PATIENCE_SECONDS)

    with monkeypatch.context() as patch:
        patch.setattr(signal, "pidfd_send_signal", and_reap)
        assert kill_marked(MARK, NOBODY, identity) == 2  # the leader and its member

    poll = select.poll()
    poll.register(leader.stdout, select.POLLIN)
    assert poll.poll(PATIENCE_SECONDS * 1000)
    assert leader.stdout.read(1) == b""
    leader.stdout.close()


def test_session_that_was_given_the_number_of_a_leader_meanwhile_survives(
    bystanders: Bystanders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that gets the number of a dead leader between two looks at it is not swept."""
    stranger = bystanders.start("setsid", "sh", "-c", "echo; exec cat")
    assert stranger.stdout is not None
    assert stranger.stdout.read(1) == b"\n"
    dead = another(identity_of(stranger))
    look, looks = processes._stat, list[int]()

    def look_once_in_time(pid: int) -> processes._Stat | None:
        found = look(pid)
        if pid == stranger.pid and not looks:
            looks.append(pid)
            return found and attrs.evolve(found, start=dead.start)
        return found

    monkeypatch.setattr(processes, "_stat", look_once_in_time)
    monkeypatch.setattr(psutil, "pids", lambda: [stranger.pid])

    assert kill_marked(MARK, NOBODY, dead) == 0
    assert looks == [stranger.pid]
    assert answers(stranger)


def test_everything_below_a_process_is_killed_and_it_is_not(bystanders: Bystanders) -> None:
    """Descendants are killed in whatever session they are; who is above them is not."""
    process = bystanders.start(
        "sh", "-c", "setsid sleep 600 & sleep 600 & echo ready; wait; exec cat"
    )
    identity = identity_of(process)
    assert process.stdout is not None
    assert process.stdout.read(6) == b"ready\n"
    assert kill_descendants(another(identity)) == 0
    killed = 0
    deadline = time.monotonic() + PATIENCE_SECONDS
    while killed < 2 and time.monotonic() < deadline:
        killed += kill_descendants(identity)

    assert killed >= 2
    assert answers(process)

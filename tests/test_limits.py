"""Limits of silence, memory, processes and files, with the kernel's own means where they are."""

import errno
import io
import os
import resource
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from staging_fsm.core.outcome import Reason, Stop, Verdict, judge
from staging_fsm.core.plan import SuitePlan
from staging_fsm.effects.supervisor import limits
from staging_fsm.effects.supervisor.sweep import direct_children
from stand import (
    ATTEMPT,
    MEBIBYTE,
    PATIENCE_SECONDS,
    PYTHON,
    RUN,
    Stand,
    patch_supervisor,
    program,
    verdict,
)

CHATTY = "while :; do echo; sleep 0.02; done"
#: Grows by a megabyte at a time, and never lets go of it.
GLUTTON = "hoard = []\nwhile True: hoard.append(b'x' * (1 << 20))"
#: A kernel that kills somebody for want of memory while the suite runs. Only a control group
#: of memory brings a real one about, and seldom may one be made.
KERNEL_KILLS = "kills = iter((0, 1)); main.oom_kills = lambda: next(kills);"
#: A kernel that has enough memory.
KERNEL_KEEPS = "main.oom_kills = lambda: 1;"


def test_silence_is_a_reason_of_its_own(stand: Stand) -> None:
    """A suite that prints nothing for too long is stopped, long before its deadline."""
    facts = stand.facts("/bin/sleep", "600", idle_timeout_seconds=0.2)

    assert (facts.stopped_by, facts.exit_code) == (Stop.IDLE, None)


def test_silent_suite_that_ignores_its_end_has_no_more_than_its_grace(stand: Stand) -> None:
    """The grace begins when a suite is told to end, and not with its deadline."""
    script = "trap '' TERM; exec sleep 600"
    report = stand.run("/bin/sh", "-c", script, idle_timeout_seconds=0.2)

    assert report.facts.stopped_by == Stop.IDLE
    assert report.duration_seconds is not None
    assert report.duration_seconds < PATIENCE_SECONDS


def test_suite_is_idle_whoever_of_it_ends(stand: Stand) -> None:
    """That processes of a suite come and go without a word is no sign of its life."""
    coming = "while :; do (sleep 0.05 &); sleep 0.05; done"
    facts = stand.facts("/bin/sh", "-c", coming, idle_timeout_seconds=0.5, timeout_seconds=20)

    assert facts.stopped_by == Stop.IDLE


def test_suite_that_has_closed_its_output_is_silent(stand: Stand) -> None:
    """A suite that prints to nobody any more has its time of silence as any other."""
    facts = stand.facts("/bin/sh", "-c", "exec sleep 600 >&- 2>&-", idle_timeout_seconds=0.2)

    assert facts.stopped_by == Stop.IDLE


def test_suite_that_goes_on_printing_is_not_idle(stand: Stand) -> None:
    """A suite that prints again and again ends at its deadline, not by its silence."""
    facts = stand.facts("/bin/sh", "-c", CHATTY, idle_timeout_seconds=30, timeout_seconds=0.5)

    assert facts.stopped_by == Stop.DEADLINE


#: A supervisor that falls asleep when it first waits, and wakes when there is output, a minute
#: later by its clock.
SLEEPER = """
import select
clock, turn, late = main.time.monotonic, main.Watch.turn, [0.0]
def sleep(watch, seconds):
    if not seconds or late[0]:
        return turn(watch, seconds)
    output = select.poll()
    output.register(watch.suite.output, select.POLLIN)
    output.poll()
    late[0] = 60.0
main.time.monotonic = lambda: clock() + late[0]
main.Watch.turn = sleep
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
    """A suite beyond its memory is killed without grace, and not only when its time is over."""
    report = stand.run(
        *PYTHON, "-c", GLUTTON, memory_max_bytes=64 * MEBIBYTE, kill_grace_seconds=600
    )
    facts = report.facts

    assert (facts.stopped_by, facts.exit_code, facts.signal) == (Stop.MEMORY, None, None)
    assert report.duration_seconds is not None
    assert report.duration_seconds < PATIENCE_SECONDS


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
        family = [process.pid, *direct_children(process.pid)]
        shown = sum(map(limits.resident_bytes, family))
        counted = sum(map(limits.proportional_bytes, family))
        below = limits.Sampled(
            shown - MEBIBYTE, 0, lambda pid: family if pid == os.getpid() else []
        )
        beyond = limits.Sampled(counted // 2, 0, lambda pid: family if pid == os.getpid() else [])

        assert counted < shown // 2
        assert (below.breach(), beyond.breach()) == (None, limits.MEMORY)
        process.stdin.close()  # type: ignore[union-attr]  # it is a pipe


def test_memory_is_counted_in_bytes_whatever_the_size_of_a_page() -> None:
    """What a process is charged is what the system says in bytes that it holds."""
    charged = limits.resident_bytes(os.getpid())
    status = Path("/proc/self/status").read_text()
    told = int(status.split("VmRSS:")[1].split()[0]) * 1024

    # The kernel counts the two at different moments, and not to the page.
    assert told * 2 // 3 < charged < told * 3 // 2


def test_memory_that_cannot_be_shared_out_is_charged_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a process of another user shares nobody can tell: it is charged for all it has."""
    read = limits._read
    monkeypatch.setattr(
        limits, "_read", lambda pid, name: b"" if name == "smaps_rollup" else read(pid, name)
    )

    assert limits.proportional_bytes(os.getpid()) == limits.resident_bytes(os.getpid()) > 0


#: A process whose child was started by another thread than its first.
FORKING = """
import os, subprocess, threading
def start():
    subprocess.Popen(["cat"]).wait()
threading.Thread(target=start).start()
import time
while not open(f"/proc/self/task/{os.getpid()}/children").read() and not any(
    open(f"/proc/self/task/{one}/children").read() for one in os.listdir("/proc/self/task")
):
    os.sched_yield()
os.write(1, b".")
"""


def test_children_of_every_thread_are_seen() -> None:
    """Whichever thread of a suite has started a process, it is one of the suite's."""
    with subprocess.Popen(
        [*PYTHON, "-c", FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"."
        children = direct_children(process.pid)
        process.stdin.close()  # type: ignore[union-attr]  # it is a pipe

    assert len(children) == 1


#: A process of four threads, until its input ends.
THREADED = """
import os, threading
for _ in range(3):
    threading.Thread(target=os.read, args=(0, 1)).start()
os.write(1, b".")
"""


@pytest.mark.parametrize(("most", "breach"), [(4, None), (3, limits.PROCESSES)])
def test_threads_are_counted_as_the_kernel_counts_them(most: int, breach: str | None) -> None:
    """A suite may have as many processes as its limit says, each thread being one, and no more."""
    with subprocess.Popen(
        [*PYTHON, "-c", THREADED], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"."
        suite = limits.Sampled(0, most, lambda pid: [process.pid] if pid == os.getpid() else [])

        assert suite.breach() == breach
        process.stdin.close()  # type: ignore[union-attr]  # it is a pipe


def test_suite_with_too_many_processes_is_killed_at_once(stand: Stand) -> None:
    """A suite that has more processes than it may is killed without grace, and nobody is left."""
    facts = stand.facts(*program("tree", "crowd", "stay"), processes_max=100)

    assert facts.stopped_by == Stop.PROCESSES
    assert stand.lifeline.is_cut()


@pytest.mark.parametrize(
    ("deed", "limit"),
    [
        ("for _ in range(9): os.fork() or signal.pause()", {"processes_max": 5}),
        ("hoard = b'x' * (96 << 20)", {"memory_max_bytes": 64 * MEBIBYTE}),
    ],
    ids=["processes", "memory"],
)
def test_suite_beyond_a_limit_is_not_asked_to_end(
    stand: Stand, deed: str, limit: dict[str, int]
) -> None:
    """A suite that uses up the machine hears of no end: in its grace it would only use up more."""
    code = f"""
import os, signal
def hear(*_):
    open("heard", "x").close()
    os._exit(0)
signal.signal(signal.SIGTERM, hear)
{deed}
while True: signal.pause()
"""
    facts = stand.facts(*PYTHON, "-c", code, kill_grace_seconds=PATIENCE_SECONDS, **limit)

    assert facts.stopped_by in (Stop.PROCESSES, Stop.MEMORY)
    assert not (stand.root / "tree" / "heard").exists()


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


def test_limits_of_files_hold_together(stand: Stand) -> None:
    """A limit on the number of open files takes none of their size, nor the other way round."""
    both: dict[str, Any] = {"open_files_max": 50, "file_max_bytes": MEBIBYTE}
    stand.run("/bin/sh", "-c", "ulimit -n; ulimit -f", **both)

    # In blocks of 512 bytes, or of 1,024.
    assert stand.log() in (b"50\n2048\n", b"50\n1024\n")


@pytest.mark.parametrize(
    ("memory", "processes", "breach"),
    [(1, 1000, limits.MEMORY), (2**40, 0, None), (2**40, 1000, None), (0, 1000, None)],
)
def test_limits_that_are_looked_at_hold_together(
    memory: int, processes: int, breach: str | None
) -> None:
    """Where nobody but the supervisor holds the limits, each is looked at beside the other."""
    with subprocess.Popen(["sleep", "600"]) as process:
        suite = limits.Sampled(
            memory, processes, lambda pid: [process.pid] if pid == os.getpid() else []
        )
        found = suite.breach()
        process.kill()

    assert found == breach


def test_suite_that_cannot_be_put_under_its_limits_does_not_run(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control group that takes the suite in no more is an error, and no run without limits."""
    made = "group = main.limits.Group.__new__(main.limits.Group); group.path = '/nowhere';"
    code = f"from supervisor import limits; main.limits = limits; {made}"
    there = "group.seconds, group.events, group.breach = 1.0, [], lambda: None;"
    hold = "main.hold_limits = lambda *_: group;"
    patch_supervisor(monkeypatch, f"{code}{there}{hold}")
    report = stand.run("/bin/sh", "-c", "touch ran", memory_max_bytes=MEBIBYTE)

    assert verdict(report.facts) == Verdict.NOT_EXECUTED
    assert "No such file" in (report.detail or "")
    assert not (stand.root / "tree" / "ran").exists()


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


def test_want_of_memory_is_told_of_a_suite_below_a_shell(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a shell has made an exit code of a signal, a kill for want of memory is one still."""
    patch_supervisor(monkeypatch, KERNEL_KILLS)
    starved = stand.facts("/bin/sh", "-c", 'sh -c "kill -9 \\$\\$"; exit $?')
    policy = SuitePlan(("suite",)).judging_policy()

    assert (starved.exit_code, starved.out_of_memory) == (128 + signal.SIGKILL, True)
    assert judge(starved, policy).reason == Reason.OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("kernel", "code", "is_told"),
    [(KERNEL_KILLS, 1, True), (KERNEL_KILLS, 0, False), (KERNEL_KEEPS, 1, False)],
)
def test_want_of_memory_is_told_beside_failed_tests(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, kernel: str, code: int, *, is_told: bool
) -> None:
    """Who reads that tests failed reads, too, that the kernel killed for want of memory meanwhile.

    A runner of tests that outlives its workers reports the one that was killed as a failure. The
    verdict stays what the report says. Of a suite that exits with 0 nothing is told: whom the
    kernel killed is not known.
    """
    patch_supervisor(monkeypatch, kernel)
    report = '<testsuite><testcase name="a"><failure/></testcase></testsuite>'
    script = f"echo '{report}' >$STAGING_REPORT_DIR/r.xml; exit {code}"
    found = stand.run("/bin/sh", "-c", script, report="r.xml")
    policy = SuitePlan(("suite",), report="r.xml").judging_policy()

    assert judge(found.facts, policy).reason == Reason.TESTS_FAILED
    assert (found.detail is not None and "for want of memory" in found.detail) == is_told


#: A kernel that says afterwards that the suite met its limit.
TELLTALE = """
class Telltale:
    seconds, events = 3600.0, ()
    add = kill = end = lambda *_: None
    breach = lambda _: "processes" if main.os.path.exists("done") else None
main.hold_limits = lambda folder, *_: Telltale()
main.os.chdir(CWD)
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

    files: tuple[str, ...] = (
        *("memory.max", "memory.oom.group", "pids.max"),
        *("cgroup.procs", "cgroup.kill"),
    )

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
        for name in self.files:
            (group / name).touch()
        (group / "memory.events").write_text("low 0\noom 0\noom_kill 0\n")
        (group / "pids.events").write_text("max 0\n")


@pytest.mark.parametrize(
    ("events", "text", "limit"),
    [
        ("memory.events", "low 0\noom 1\noom_kill 1\n", limits.MEMORY),
        ("pids.events", "max 3\n", limits.PROCESSES),
        ("memory.events", "low 9\noom 0\noom_kill 0\n", None),
        # It was short of memory, and nobody had to be killed for it.
        ("memory.events", "low 9\noom 3\noom_kill 0\n", None),
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
    written = [(group / name).read_text() for name in kernel.files]

    assert (kernel.root / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert written == ["1000", "1", "20", "4711", "1"]
    assert (before, held.breach()) == (None, limit)
    shutil.rmtree(group)
    held.end()


def test_group_with_a_limit_of_memory_gets_no_swap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suite beyond its memory is stopped, and not swapped out, where the machine has swap."""
    kernel = KernelGroups(tmp_path / "delegated")
    kernel.files = (*kernel.files, "memory.swap.max")
    monkeypatch.setattr(limits, "delegated", lambda: [str(kernel.root)])
    monkeypatch.setattr(os, "mkdir", kernel.make)
    held = limits.hold(RUN, 1000, 0, lambda _: [])
    assert isinstance(held, limits.Group)
    group = Path(held.path)
    swap = (group / "memory.swap.max").read_text()
    shutil.rmtree(group)
    held.end()

    assert swap == "0"


@pytest.mark.parametrize(
    ("delegated", "user", "ours"), [(b"1", 0, True), (None, 0, False), (None, 1000, True)]
)
def test_group_is_divided_by_whom_it_was_given_to(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    delegated: bytes | None,
    user: int,
    *,
    ours: bool,
) -> None:
    """Root may write to every group, and divides those alone that systemd marks as meant for it."""

    def attribute(_path: str, _name: str) -> bytes:
        if delegated is None:
            raise OSError(errno.ENODATA, "No data available")
        return delegated

    monkeypatch.setattr(os, "getxattr", attribute)
    monkeypatch.setattr(os, "geteuid", lambda: user)

    assert limits.is_delegated(str(tmp_path)) is ours


def test_looking_takes_its_share_of_the_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a look at all processes takes, the next one is that much later."""
    now = [100.0]

    def children(_pid: int) -> list[int]:
        now[0] += 2.0
        return []

    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: now[0]))
    suite = limits.Sampled(1, 0, children)
    suite.breach()
    looked = now[0]
    now[0] = 100.0 + 2.0 / limits.LOOK_SHARE - 0.1
    suite.breach()
    early = now[0]
    now[0] += 0.2
    suite.breach()

    assert looked == 102.0
    assert early == 100.0 + 2.0 / limits.LOOK_SHARE - 0.1
    assert now[0] > early + 2.0


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
    ours, *others = (stand.root / f"staging-{run}" for run in (RUN, f"{ATTEMPT}.2", f"{RUN}2"))
    for group in (ours, *others):
        group.mkdir()
        stand.file(".").mkdir(parents=True, exist_ok=True)
        stand.file("group").write_text(str(group))
        stand.suites.sweep(RUN)

    assert not ours.exists()
    assert all(group.exists() for group in others)


@pytest.mark.parametrize(
    ("ours", "found"),
    [
        ("/docker/abc/run", ["/sys/fs/cgroup", "/sys/fs/cgroup/run"]),
        ("/docker/abc", ["/sys/fs/cgroup"]),
        ("/docker/another", []),
        ("/", []),
    ],
)
def test_own_group_is_found_in_what_a_container_sees(
    monkeypatch: pytest.MonkeyPatch, ours: str, found: list[str]
) -> None:
    """A container that is shown only its own part of all groups finds its own one in there."""
    told = {
        "/proc/self/cgroup": f"0::{ours}\n",
        "/proc/self/mountinfo": "30 24 0:26 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw\n",
    }
    monkeypatch.setattr(
        limits, "open", lambda path, _mode: io.BytesIO(told[path].encode()), raising=False
    )
    monkeypatch.setattr(limits, "is_delegated", lambda _base: True)

    assert limits.delegated() == found

"""The output of a run: kept byte for byte, bounded, and shown without secrets."""

import os
import resource
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from staging_fsm.core.outcome import Supervision, Verdict
from staging_fsm.core.plan import UNVERSIONED, SuitePlan
from staging_fsm.core.ports import RunOrder
from staging_fsm.effects import suite as suite_module
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.effects.suite import LocalSuites
from staging_fsm.effects.supervisor.log import BoundedLog
from stand import MEBIBYTE, RUN, Stand, has_ended, program, verdict

FLAT_BYTES = 16 * MEBIBYTE


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


def test_suite_that_removes_its_order_shows_no_secret(stand: Stand) -> None:
    """Which variables a suite was given its worker knows, whatever the suite makes of its order."""
    script = f'rm {stand.file("order")} && echo "$GIVEN"'
    plan = SuitePlan(("/bin/sh", "-c", script), environment=("GIVEN", "PATH"))
    suites = LocalSuites(stand.state, {**stand.variables, "GIVEN": "a given value"})
    suites.start(RunOrder(RUN, stand.root / "tree", UNVERSIONED, plan))
    stand.await_result()
    suites.await_report(RUN)

    assert suites.log_tail(RUN, 100) == b"***\n"


@pytest.mark.parametrize("size", range(1, 39, 6))
def test_tail_of_a_run_that_has_not_ended_is_its_newest_output(tmp_path: Path, size: int) -> None:
    """The end of a log whose parts are not joined yet, or never will be, is in its order."""
    state = StateDir(tmp_path)
    state.run(RUN).mkdir(parents=True)
    log = BoundedLog(str(state.run(RUN)), 40)
    # A head of twenty, one segment of ten that is set aside, and eight.
    written = bytes(range(ord("A"), ord("A") + 38))
    log.write(written)
    tail = LocalSuites(state, {}).log_tail(RUN, size)
    for fd in (log.fd, log.segment_fd):
        assert fd is not None
        os.close(fd)

    assert tail == written[-size:]


def test_tail_is_kept_before_the_report_is_collected(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no report can be had, the output is still masked as it was when its run had ended."""

    def refuse(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(suite_module, "report_of", refuse)
    knowing = LocalSuites(stand.state, {**stand.variables, "API_KEY": "swordfish"})
    suite = SuitePlan(("/bin/echo", "swordfish"))
    knowing.start(RunOrder(RUN, stand.root / "tree", UNVERSIONED, suite))
    with pytest.raises(OSError, match="Too many"):
        knowing.await_report(RUN)

    assert stand.suites.log_tail(RUN, 100) == b"***\n"


def test_tail_that_the_suite_left_is_not_its_output(stand: Stand) -> None:
    """What is shown of a run is the end of its log, whatever its suite put in that place."""
    stand.run("/bin/sh", "-c", f"echo seven; echo eight > {stand.file('tail')}")

    assert stand.suites.log_tail(RUN, 100) == b"seven\n"


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


def test_variable_that_every_suite_gets_is_no_secret(stand: Stand) -> None:
    """A plan that names what its suite would have anyway makes no secret of it."""
    variables = {**stand.variables, "HOME": "/home/somebody"}
    suite = SuitePlan(("/bin/echo", "/home/somebody/x"), environment=("HOME",))
    suites = LocalSuites(stand.state, variables)
    suites.start(RunOrder(RUN, stand.root / "tree", UNVERSIONED, suite))
    suites.await_report(RUN)

    assert suites.log_tail(RUN, 100) == b"/home/somebody/x\n"
    assert suites.shown_command(RUN, suite) == suite.command


def test_command_is_masked_before_its_suite_starts(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies as it starts a suite leaves the command masked to who goes on with it."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(suite_module, "start_supervisor", die)
    suite = SuitePlan(("/bin/echo", "swordfish"))
    dying = LocalSuites(stand.state, {**stand.variables, "API_KEY": "swordfish"})
    with pytest.raises(KeyboardInterrupt):
        dying.start(RunOrder(RUN, stand.root / "tree", UNVERSIONED, suite))

    assert stand.suites.shown_command(RUN, suite) == ("/bin/echo", "***")


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


@pytest.mark.parametrize("part", ["output.tail", "output.tail.old"])
@pytest.mark.parametrize("size", [None, 2, 30], ids=["removed", "cut short", "longer"])
def test_log_whose_newest_part_was_changed_is_incomplete(
    tmp_path: Path, part: str, size: int | None
) -> None:
    """Of a long output the newest part, too, is as it was printed, or the log is incomplete."""
    log = BoundedLog(str(tmp_path), 40)
    # A head of twenty, one segment of ten that is set aside, and five.
    log.write(b"x" * 35)
    if size is None:
        (tmp_path / part).unlink()
    else:
        os.truncate(tmp_path / part, size)
    log.write(b"end")
    log.finish()
    os.close(log.fd)

    assert not log.complete


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

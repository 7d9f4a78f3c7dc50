"""What a run showed: whose report it is, how it looked when the suite had ended."""

import errno
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest

from hosts import no_descriptors_left
from staging_fsm.core.errors import PreparationError
from staging_fsm.core.evidence import REPORT_MAX_BYTES, EvidenceState
from staging_fsm.core.outcome import Reason, Stop, Supervision, judge
from staging_fsm.core.plan import UNVERSIONED, Preset, SuitePlan
from staging_fsm.core.ports import RunOrder
from staging_fsm.effects import files, run_report
from staging_fsm.effects.run_folder import RunFolder
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.effects.suite import LocalSuites
from stand import ATTEMPT, PATIENCE_SECONDS, RUN, Stand, await_that, has_ended, patch_supervisor

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
        ("ln -s nowhere $STAGING_REPORT_DIR/junit.xml", EvidenceState.UNREADABLE),
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
        ("$(date -u -d '5 minutes ago' +%FT%TZ)", EvidenceState.STALE, None),
        ("$(date -u +%FT%T)", EvidenceState.READ, True),
        ("$(date +%FT%T)", EvidenceState.READ, True),
        ("$(date -R)", EvidenceState.READ, None),
        ("", EvidenceState.READ, False),
    ],
)
def test_report_out_of_a_cache_is_found_out(
    stand: Stand, stamp: str, state: EvidenceState, *, dated: bool | None
) -> None:
    """A report that is new as a file, and says itself that it is old, is stale."""
    report = f'<testsuite timestamp=\\"{stamp}\\"><testcase name=\\"a\\"/></testsuite>'
    script = f'echo "{report}" > $STAGING_REPORT_DIR/junit.xml'
    found = stand.facts("/bin/sh", "-c", script, report="junit.xml").evidence

    assert found.state == state
    assert (found.counts and found.counts.dated) == dated


@pytest.mark.parametrize(
    ("touched", "stamp", "state"),
    [
        ("-d '2 days ago'", "", EvidenceState.STALE),
        ("-d '5 minutes ago'", "", EvidenceState.STALE),
        ("-d '2 days'", "", EvidenceState.STALE),
        ("-d @99999999999", "", EvidenceState.STALE),
        ("-d @0", "", EvidenceState.READ),
        ("-d '30 seconds ago'", "", EvidenceState.READ),
        ("-d '30 seconds'", "", EvidenceState.READ),
        ("-d '2 days ago'", 'timestamp="yesterday"', EvidenceState.STALE),
        ("-d '2 days ago'", 'timestamp="$(date -u +%FT%TZ)"', EvidenceState.READ),
    ],
)
def test_report_without_stamps_is_of_the_time_of_its_file(
    stand: Stand, touched: str, stamp: str, state: EvidenceState
) -> None:
    """A report that does not say when it was made is stale where its file says it is old."""
    report = f"<testsuite {stamp}><testcase name='a'/></testsuite>".replace('"', '\\"')
    path = "$STAGING_REPORT_DIR/junit.xml"
    script = f'echo "{report}" > {path}; touch {touched} {path}'

    assert stand.facts("/bin/sh", "-c", script, report="junit.xml").evidence.state == state


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "printf '<testsuite>\\n& ' > $R",
            "no readable JUnit XML: not well-formed .*: line 2, column",
        ),
        ("printf '<testsuite>' > $R", "no element found: line 1, column 11"),
        ("echo '<!DOCTYPE t><testsuite/>' > $R", "it has a document type"),
        ("echo '<html/>' > $R", "its root is <html>"),
        ("echo '<testsuite errors=\"no\"/>' > $R", "no number of errors: 'no'"),
        (OVERSIZE, f"it is larger than {REPORT_MAX_BYTES} bytes"),
        ("mkdir $R", "no regular file"),
        (
            "echo '<testsuite timestamp=\"2001-02-03T04:05:06Z\"/>' > $R",
            "ran at 2001-02-03T04:05:06Z, and not in this run, from 2.* to 2.*:..$",
        ),
        (
            "echo '<testsuite timestamp=\"2001-02-03T04:05:06\"/>' > $R",
            "from 2.* to 2.*, by UTC or by the clock here, as it names no zone$",
        ),
        (f"echo '{JUNIT}' > $R; touch -d '2 days ago' $R", "written outside of this run"),
    ],
)
def test_what_is_wrong_with_a_report_is_told(stand: Stand, script: str, words: str) -> None:
    """Whoever has to mend a report that cannot be believed is told what is wrong with it."""
    setting = "R=$STAGING_REPORT_DIR/junit.xml"
    detail = stand.run("/bin/sh", "-c", f"{setting}; {script}", report="junit.xml").detail

    assert detail is not None
    assert re.search(words, detail)


def test_report_that_is_not_of_its_run_is_told_of(stand: Stand) -> None:
    """Why a report that is there is none of this run is told."""
    report = stand.root / "tree" / "r.xml"
    report.write_text(JUNIT)
    before = stand.run("true", report=str(report)).detail
    deed = f"ln -s {stand.root}/tree $STAGING_REPORT_DIR/out; echo '{JUNIT}' > r.xml"
    run_id = f"{ATTEMPT}.2"
    linked = stand.run("/bin/sh", "-c", deed, run_id=run_id, report="out/r.xml").detail
    stand.start("/bin/sh", "-c", "echo > r.xml", run_id=f"{ATTEMPT}.3", report=str(report))
    await_that(stand.file("result", f"{ATTEMPT}.3").exists)
    report.write_text(JUNIT)
    late = stand.collect(f"{ATTEMPT}.3").detail

    assert before == "the report was there before this run, which did not write it"
    assert linked == "a link leads to the report, to where others may write it"
    assert late == "the report was written again after the suite had ended"


def test_words_of_a_report_are_shown_as_harmless_as_its_output(stand: Stand) -> None:
    """What is told of a report shows no secret of its suite, moves no cursor, and is short."""
    suites = LocalSuites(stand.state, {**stand.variables, "GIVEN": "a given value"})
    claims = ("$GIVEN", "\u202e\u2028", "x" * 4000)
    script = f"""
        exec > $STAGING_REPORT_DIR/junit.xml
        echo "<testsuite failures='{"".join(claims)}'/>"
        rm {stand.file("order")}
    """
    environment = ("GIVEN", "PATH")
    plan = SuitePlan(("/bin/sh", "-c", script), report="junit.xml", environment=environment)
    suites.start(RunOrder(RUN, stand.root / "tree", UNVERSIONED, plan))
    detail = suites.await_report(RUN).detail

    assert detail is not None
    assert "no number of failures: '***\ufffd\ufffdxxx" in detail
    assert len(detail) == 500


def test_report_that_counts_needs_no_words(stand: Stand) -> None:
    """Nothing is told of a report that is read, nor of one that is not there."""
    script = f"echo '{JUNIT}' > $STAGING_REPORT_DIR/junit.xml"

    assert stand.run("/bin/sh", "-c", script, report="junit.xml").detail is None
    assert stand.run("true", run_id=f"{ATTEMPT}.2", report="junit.xml").detail is None


def test_supervisor_that_cannot_be_started_is_no_other_runs_report(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no process can be started now, that is said, and no run is made up that writes."""

    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)

    with pytest.raises(PreparationError, match="Resource temporarily unavailable"):
        stand.start("true", report=str(stand.root / "tree" / "report.xml"))


def test_report_outside_the_runs_folder_has_one_writer(stand: Stand) -> None:
    """Two runs that would write the same report are never under way at once, by whatever name."""
    report = str(stand.root / "tree" / "report.xml")
    another = f"{ATTEMPT}.2"
    stand.start("/bin/sh", "-c", "until test -e go; do sleep 0.01; done", report=report)
    with pytest.raises(PreparationError, match="another run that writes the report"):
        stand.start("true", run_id=another, report=report)
    (stand.root / "link").symlink_to(stand.root / "tree")
    with pytest.raises(PreparationError, match="another run that writes the report"):
        stand.start("true", run_id=f"{ATTEMPT}.5", report=f"{stand.root}/link/report.xml")
    stand.start("true", run_id=f"{ATTEMPT}.3", report="report.xml")
    stand.suites.await_report(f"{ATTEMPT}.3")
    (stand.root / "tree" / "go").touch()
    stand.collect()

    stand.start("true", run_id=f"{ATTEMPT}.4", report=report)
    stand.suites.await_report(f"{ATTEMPT}.4")


def test_report_that_is_named_out_of_its_runs_folder_has_one_writer(stand: Stand) -> None:
    """A name that leads out of a run's own report folder is no name within it."""
    stand.start("/bin/sh", "-c", "until test -e go; do sleep 0.01; done", report="../report.xml")
    with pytest.raises(PreparationError, match="another run that writes the report"):
        stand.start("true", run_id=f"{ATTEMPT}.2", report="sub/../../report.xml")
    (stand.root / "tree" / "go").touch()
    stand.collect()


@pytest.mark.skipif(sys.platform != "linux", reason="only its kernel keeps names")
@pytest.mark.parametrize("way", ["tree", "link"])
def test_report_outside_the_runs_folder_has_one_writer_on_the_machine(
    stand: Stand, way: str
) -> None:
    """Two runs that would write the same report are never under way, whoever keeps their state."""
    (stand.root / "link").symlink_to(stand.root / "tree")
    wait = ("/bin/sh", "-c", "until test -e go; do sleep 0.01; done")
    stand.start(*wait, report=str(stand.root / "tree" / "report.xml"))
    suites = LocalSuites(StateDir(stand.root / "another"), stand.variables)
    plan = SuitePlan(("true",), report=str(stand.root / way / "report.xml"))
    order = RunOrder(f"{ATTEMPT}.2", stand.root / "tree", UNVERSIONED, plan)
    with pytest.raises(PreparationError, match="another run that writes the report"):
        suites.start(order)
    (stand.root / "tree" / "go").touch()
    stand.collect()

    suites.start(attrs.evolve(order, run_id=f"{ATTEMPT}.3"))
    assert suites.await_report(f"{ATTEMPT}.3").facts.exit_code == 0


@pytest.mark.parametrize("missing", ["another system", "no sockets"])
def test_machine_that_keeps_no_names_runs_suites_all_the_same(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Where the kernel holds no name for a report, the runs of one state folder hold it."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported")

    if missing == "no sockets":
        monkeypatch.setattr(socket, "socket", refuse)
    else:
        monkeypatch.setattr(files, "IS_LINUX", False)
    report = str(stand.root / "tree" / "report.xml")
    stand.start("/bin/sh", "-c", "until test -e go; do sleep 0.01; done", report=report)
    with pytest.raises(PreparationError, match="another run that writes the report"):
        stand.start("true", run_id=f"{ATTEMPT}.2", report=report)
    (stand.root / "tree" / "go").touch()

    assert stand.collect().facts.exit_code == 0


@pytest.mark.parametrize(
    ("report", "deed", "state"),
    [
        ("out/j.xml", "ln -s $COMMON $STAGING_REPORT_DIR/out", EvidenceState.STALE),
        # One whose name begins like the run's own, as that of a later run may.
        ("out/j.xml", "cd $STAGING_REPORT_DIR; mkdir ${PWD}0; ln -s ${PWD}0 out",
         EvidenceState.STALE),
        ("j.xml", "rmdir $STAGING_REPORT_DIR; ln -s $COMMON $STAGING_REPORT_DIR",
         EvidenceState.STALE),
        ("{tree}/out/j.xml", "ln -s $COMMON out", EvidenceState.STALE),
        ("{tree}/link/j.xml", "true", EvidenceState.READ),
        ("{tree}/link/j.xml", "rm link; mkdir link", EvidenceState.STALE),
        ("out/j.xml", "cd $STAGING_REPORT_DIR; mkdir real; ln -s real out", EvidenceState.READ),
    ],
)  # fmt: skip
def test_report_is_no_evidence_where_a_link_leads_out_of_what_is_held(
    stand: Stand, report: str, deed: str, state: EvidenceState
) -> None:
    """A report is of its run only where no other run may write it, whatever links there are."""
    common, tree = stand.root / "common", stand.root / "tree"
    common.mkdir()
    (tree / "link").symlink_to(common)
    place = report.format(tree=tree)
    path = place if place.startswith("/") else f"$STAGING_REPORT_DIR/{place}"
    script = f"COMMON={common}; {deed}; echo '{JUNIT}' > {path}"

    assert evidence(stand, script, place) == state


def test_report_counts_as_it_was_when_its_run_ended(stand: Stand) -> None:
    """What is written between the end of a run and its verdict is another run's report."""
    report = stand.root / "tree" / "report.xml"
    stand.start("true", report=str(report))
    stand.await_result()
    report.write_text(JUNIT)

    assert stand.collect().facts.evidence.state == EvidenceState.MISSING


def test_report_counts_as_it_was_when_nothing_of_its_run_was_left(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a process that outlives its suite still writes is of its run, until it is killed."""
    report = stand.root / "tree" / "report.xml"
    late = f"open({str(report)!r}, 'w').write({JUNIT!r})"
    patch_supervisor(
        monkeypatch, f"sweep = main.sweep; main.sweep = lambda *a: ({late}, sweep(*a))[1];"
    )

    assert stand.facts("true", report=str(report)).evidence.state == EvidenceState.READ


def test_report_that_changed_after_the_end_is_stale(stand: Stand) -> None:
    """A report that its suite left, and somebody wrote again before the verdict, is nobody's."""
    report = stand.root / "tree" / "report.xml"
    stand.start("/bin/sh", "-c", f"echo '<testsuite/>' > {report}", report=str(report))
    stand.await_result()
    report.write_text(JUNIT)

    assert stand.collect().facts.evidence.state == EvidenceState.STALE


def test_report_that_comes_after_the_end_is_missing(stand: Stand) -> None:
    """A report that somebody writes for a suite that left none is no evidence of its run."""
    report = stand.root / "tree" / "report.xml"
    stand.start("true", report=str(report))
    stand.await_result()
    report.write_text(JUNIT)

    assert stand.collect().facts.evidence.state == EvidenceState.MISSING


def test_report_that_is_rewritten_at_its_old_time_after_the_end_is_stale(stand: Stand) -> None:
    """A report rewritten in place before the verdict is nobody's, whatever its size and time."""
    report = stand.root / "tree" / "report.xml"
    stand.start("/bin/sh", "-c", f"echo '{JUNIT}' > {report}", report=str(report))
    stand.await_result()
    before = report.stat()

    def rewritten() -> bool:
        report.write_text(JUNIT.replace('"a"', '"b"') + "\n")
        os.utime(report, ns=(before.st_atime_ns, before.st_mtime_ns))
        # The kernel's clock of files may stand still for some milliseconds.
        return report.stat().st_ctime_ns != before.st_ctime_ns

    await_that(rewritten)
    after = report.stat()

    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert stand.collect().facts.evidence.state == EvidenceState.STALE


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


#: A zone in which it is summer all year but around New Year.
SUMMER = "WINTER0SUMMER-2,J2/0,J365/23"


@pytest.mark.parametrize("zone", ["Asia/Kathmandu", "America/St_Johns", SUMMER])
def test_time_stamp_without_a_zone_may_be_a_local_one(
    stand: Stand, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report of a suite that writes the time of its own zone, as it is now, is of this run."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        stamp = "$(date +%FT%T)"
        script = f'echo "<testsuite timestamp=\\"{stamp}\\"><testcase name=\\"a\\"/></testsuite>"'
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


@pytest.mark.parametrize("name", ["a state", 'a "state"', "it's $HOME"])
def test_preset_finds_its_report_wherever_the_state_folder_lies(stand: Stand, name: str) -> None:
    """The option that a preset adds is one word to its program, after those that were there."""
    state = StateDir(stand.root / name)
    suites = LocalSuites(state, {**stand.variables, "PYTEST_ADDOPTS": "-q"})
    command = ("/bin/sh", "-c", 'printf %s "$PYTEST_ADDOPTS"')
    given = ("PYTEST_ADDOPTS",)
    plan = SuitePlan(command, preset=Preset.PYTEST, report="junit.xml", environment=given)
    suites.start(RunOrder(RUN, stand.root / "tree", UNVERSIONED, plan))
    suites.await_report(RUN)
    words = shlex.split((state.run(RUN) / "output.log").read_text())

    assert words == ["-q", f"--junit-xml={state.reports(RUN)}/junit.xml"]


def test_worker_without_descriptors_accuses_nobody(stand: Stand) -> None:
    """A result that a worker has no descriptor left to read is none of a forger's."""
    stand.start("true")
    stand.await_result()
    folder = RunFolder(stand.state, RUN)

    with no_descriptors_left(), pytest.raises(OSError, match="Too many open files"):
        folder.sealed("result")
    assert stand.collect().facts.supervision is Supervision.SOUND


def test_report_is_of_its_run_whatever_the_deadline(stand: Stand) -> None:
    """How long a run might have taken says nothing of when it began: an older report is stale."""
    stamp = (datetime.now(UTC) - timedelta(minutes=20)).isoformat(timespec="seconds")
    script = f'echo "<testsuite timestamp=\\"{stamp}\\"><testcase name=\\"a\\"/></testsuite>"'
    command = ("/bin/sh", "-c", f"{script} > $STAGING_REPORT_DIR/junit.xml")
    facts = stand.facts(*command, report="junit.xml", timeout_seconds=3600)

    assert facts.evidence.state is EvidenceState.STALE


REPORTING = SuitePlan(("make",), report="junit.xml")
FAILED = '<testsuite><testcase name="a"><failure/></testcase></testsuite>'


def test_report_that_came_after_a_stop_is_late(stand: Stand) -> None:
    """What a suite reports once it was told to stop may be its signal's doing: it is not read."""
    tree = stand.root / "tree"
    (tree / "failed.xml").write_text(FAILED)
    on_term = "cp failed.xml $STAGING_REPORT_DIR/junit.xml; exit 1"
    script = f"trap '{on_term}' TERM; touch up; while :; do sleep 0.01; done"
    command = ("/bin/sh", "-c", script)
    stand.start(*command, report="junit.xml", kill_grace_seconds=PATIENCE_SECONDS)
    await_that((tree / "up").exists)
    stand.suites.reap(RUN)
    facts = stand.collect().facts

    assert (facts.stopped_by, facts.evidence.state) == (Stop.REQUEST, EvidenceState.LATE)
    assert judge(facts, REPORTING.judging_policy()).reason is Reason.STOPPED


def test_failures_that_were_reported_before_a_stop_count(stand: Stand) -> None:
    """A report that was there when the suite was told to stop, and stayed as it was, is read."""
    script = f"echo '{FAILED}' > $STAGING_REPORT_DIR/junit.xml; touch reported; exec sleep 600"
    stand.start("/bin/sh", "-c", script, report="junit.xml")
    await_that((stand.root / "tree" / "reported").exists)
    stand.suites.reap(RUN)
    facts = stand.collect().facts

    assert (facts.stopped_by, facts.evidence.state) == (Stop.REQUEST, EvidenceState.READ)
    assert judge(facts, REPORTING.judging_policy()).reason is Reason.TESTS_FAILED


def test_report_of_a_run_that_is_collected_late_counts(stand: Stand) -> None:
    """A worker that comes back long after a run has ended finds its report as good as ever."""
    begun = datetime.now(UTC) - timedelta(hours=5)
    stamp = (begun + timedelta(seconds=1)).isoformat(timespec="seconds")
    script = f'echo "<testsuite timestamp=\\"{stamp}\\"><testcase name=\\"a\\"/></testsuite>"'
    stand.start("/bin/sh", "-c", f"{script} > $STAGING_REPORT_DIR/junit.xml", report="junit.xml")
    stand.await_result()
    stand.reorder(started_at=begun.timestamp())
    folder = RunFolder(stand.state, RUN)
    result = folder.sealed("result")
    assert result is not None
    assert has_ended(stand.pid())
    stand.file("result").unlink()
    facts = {name: fact for name, fact in result.items() if name != "run"}
    folder.seal("result", **facts | {"ended_at": f"{begun.timestamp() + 2:.6f}"})

    assert stand.collect().facts.evidence.state is EvidenceState.READ


@pytest.mark.parametrize(
    ("ago", "state"), [("now", EvidenceState.READ), ("5 minutes ago", EvidenceState.STALE)]
)
def test_run_of_which_nobody_says_when_it_ended_is_judged(
    stand: Stand, ago: str, state: EvidenceState
) -> None:
    """A run from before an update, whose supervisor knew no end, lasted from its order to now."""
    script = f'echo "<testsuite timestamp=\\"$(date -u -d \'{ago}\' +%FT%TZ)\\"/>"'
    stand.start("/bin/sh", "-c", f"{script} > $STAGING_REPORT_DIR/junit.xml", report="junit.xml")
    stand.await_result()
    assert has_ended(stand.pid())
    folder = RunFolder(stand.state, RUN)
    sealed = folder.sealed("result") or {}
    assert {"run", "ended_at"} <= sealed.keys()
    stand.file("result").unlink()
    folder.seal("result", **{name: sealed[name] for name in sealed.keys() - {"run", "ended_at"}})

    assert stand.collect().facts.evidence.state is state


@pytest.mark.parametrize("days_behind", [0, 30])
def test_clock_that_is_set_right_during_a_run_makes_no_old_report_one_of_it(
    stand: Stand, days_behind: int
) -> None:
    """A run is as long ago as its supervisor measured, whatever the clock said as it began."""
    stamp = (datetime.now(UTC) - timedelta(days=20)).isoformat(timespec="seconds")
    script = f'echo "<testsuite timestamp=\\"{stamp}\\"><testcase name=\\"a\\"/></testsuite>"'
    stand.start("/bin/sh", "-c", f"{script} > $STAGING_REPORT_DIR/junit.xml", report="junit.xml")
    begun = datetime.now(UTC) - timedelta(days=days_behind)
    stand.reorder(started_at=begun.timestamp())

    assert stand.collect().facts.evidence.state is EvidenceState.STALE


@pytest.mark.parametrize("stamp", ["", 'timestamp="$(date -u +%FT%T)"'])
def test_clock_that_is_set_back_during_a_run_makes_no_report_of_it_old(
    stand: Stand, stamp: str
) -> None:
    """A report counts though the clock stood a day ahead when its run was ordered."""
    report = f"<testsuite {stamp}><testcase name='a'/></testsuite>".replace('"', '\\"')
    script = f'echo "{report}" > $STAGING_REPORT_DIR/junit.xml'
    stand.start("/bin/sh", "-c", script, report="junit.xml")
    stand.reorder(started_at=(datetime.now(UTC) + timedelta(days=1)).timestamp())

    assert stand.collect().facts.evidence.state is EvidenceState.READ


def test_run_says_that_a_skipped_subtest_may_hide_what_passed(stand: Stand) -> None:
    """If every test is skipped and pytest claims passed ones, the detail says what that may be."""
    case = "<testcase name='a'><skipped/></testcase>"
    report = f"<testsuite name='pytest' tests='21' skipped='1'>{case}</testsuite>"
    script = f'echo "{report}" > $STAGING_REPORT_DIR/junit.xml'
    stand.start("/bin/sh", "-c", script, report="junit.xml")

    assert "subtests maybe" in (stand.collect().detail or "")


def test_clock_that_is_set_back_after_a_run_makes_no_report_of_it_new(stand: Stand) -> None:
    """A report of a run that ended by a clock that stood ahead is of its run, and of then."""
    ahead = datetime.now(UTC) + timedelta(days=1)
    stamp = ahead.isoformat(timespec="seconds")
    script = f'echo "<testsuite timestamp=\\"{stamp}\\"><testcase name=\\"a\\"/></testsuite>"'
    stand.start("/bin/sh", "-c", f"{script} > $STAGING_REPORT_DIR/junit.xml", report="junit.xml")
    stand.await_result()
    assert has_ended(stand.pid())
    folder = RunFolder(stand.state, RUN)
    facts = dict(folder.sealed("result") or {})
    assert facts.pop("run") == RUN
    folder.seal("result", **facts | {"ended_at": f"{ahead.timestamp() + 1:.6f}"})

    assert stand.collect().facts.evidence.state is EvidenceState.READ


def test_run_that_is_collected_later_is_of_its_own_time(stand: Stand) -> None:
    """When a run ended is what its supervisor sealed, and not when somebody asks for it."""
    script = (
        'echo "<testsuite timestamp=\\"$(date -u +%FT%T)\\"><testcase name=\\"a\\"/></testsuite>"'
    )
    stand.start("/bin/sh", "-c", f"{script} > $STAGING_REPORT_DIR/junit.xml", report="junit.xml")
    stand.await_result()
    sealed = RunFolder(stand.state, RUN).sealed("result")
    assert sealed is not None
    order = RunFolder(stand.state, RUN).order()

    begun = float(sealed["ended_at"]) - float(sealed["duration_seconds"])
    assert order.started_at <= begun <= float(sealed["ended_at"])
    assert stand.collect().facts.evidence.state is EvidenceState.READ


def test_report_of_a_suite_that_was_killed_counts(stand: Stand) -> None:
    """What a suite has reported before a signal ended it is evidence: a failure stays one."""
    report = '<testsuite><testcase name="a"><failure/></testcase></testsuite>'
    script = f"echo '{report}' > $STAGING_REPORT_DIR/junit.xml; kill -9 $$"
    facts = stand.facts("/bin/sh", "-c", script, report="junit.xml")

    assert (facts.signal, facts.evidence.state) == (signal.SIGKILL, EvidenceState.READ)
    assert facts.evidence.counts is not None
    assert facts.evidence.counts.failures == 1


def test_report_that_nobody_could_open_is_not_the_suites_fault(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a worker has no descriptor for a report, that is an error of the worker's."""
    stand.start("/bin/sh", "-c", f"echo '{JUNIT}' > $STAGING_REPORT_DIR/j.xml", report="j.xml")
    stand.await_result()

    def refuse(_: Path) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(run_report, "open_regular", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            stand.collect()
    assert stand.collect().facts.evidence.state is EvidenceState.READ


def test_report_folder_of_a_run_is_its_own(stand: Stand) -> None:
    """A report folder that somebody has made, and perhaps filled, beforehand is no run's."""
    folder = stand.state.reports(RUN)
    folder.mkdir(parents=True)
    (folder / "junit.xml").write_text(JUNIT)

    with pytest.raises(PreparationError, match="File exists"):
        stand.start("true", report="junit.xml")


def test_processes_that_are_left_are_told_of_a_failed_suite_too(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a suite exits with, whoever it left and nobody could kill is counted."""
    patch_supervisor(monkeypatch, "real = main.sweep; main.sweep = lambda *a: real(*a) + 1;")

    assert stand.facts("/bin/sh", "-c", "exit 1").processes_left == 1


def test_end_of_what_a_supervisor_said_is_told(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a supervisor that broke, the last of its words are told: there the error stands."""
    long = "main.sys.stderr.write('frame ' * 500);"
    patch_supervisor(monkeypatch, f"{long} main.sys.exit('no room for a result')\n")
    detail = stand.run("true").detail

    assert detail is not None
    assert "frame frame" in detail
    assert detail.endswith("no room for a result")


def test_log_that_is_not_the_supervisors_is_not_named(stand: Stand) -> None:
    """A person is not led to a file that a suite has put in the place of its log."""
    script = f"ln -sf /etc/passwd {stand.state.run(RUN)}/output.log"
    report = stand.run("/bin/sh", "-c", script)

    assert (report.log, report.log_sha256, report.facts.log_complete) == (None, None, False)


def test_report_from_after_its_run_is_stale(stand: Stand) -> None:
    """However long a run might have taken: what was written after it was judged is not of it."""
    stamp = (datetime.now(UTC) + timedelta(minutes=20)).isoformat(timespec="seconds")
    report = f'<testsuite timestamp=\\"{stamp}\\"><testcase name=\\"a\\"/></testsuite>'
    script = f'echo "{report}" > $STAGING_REPORT_DIR/junit.xml'
    facts = stand.facts("/bin/sh", "-c", script, report="junit.xml", timeout_seconds=3600)

    assert facts.evidence.state is EvidenceState.STALE

"""The request's stories: what happens in each, as steps of a script."""

import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from script import Script
from staging_fsm.drive.engine import run_id_of

PASSING = 'command = ["true"]'
FAILING = 'command = ["sh", "-c", "exit 7"]'
BROKEN = 'command = ["sh", "-c", "exit 75"]\ntool_exit_codes = [75]'
MISSING = 'command = ["no-such-command"]'
Begin = Callable[..., Script]


def tc_01_passed_suite_advances(begin: Begin) -> Script:
    """A suite that ran and passed opens the gate, and the deploy job is queued."""
    script = begin(PASSING)
    script.launch()
    return script


def tc_02_failed_suite_rolls_back(begin: Begin) -> Script:
    """A suite that ran and failed goes back to development and costs one developer retry."""
    script = begin(FAILING)
    script.launch()
    return script


def tc_03_tool_error_is_deferred(begin: Begin) -> Script:
    """A suite that did not run defers, costs no developer retry, and may still pass."""
    script = begin('command = ["sh", "-c", "test -e $FOLDER/up || exit 75"]\n'
                   'tool_exit_codes = [75]\nenvironment = ["FOLDER"]')  # fmt: skip
    script.launch()
    script.launch()
    script.note("staging comes up")
    (Path(script.variables["FOLDER"]) / "up").touch()
    script.wait(minutes=2)
    script.launch()
    return script


def tc_04_exhaustion_fails_closed(begin: Begin) -> Script:
    """When the budget is spent the attempt fails closed, with an alert: infrastructure's fault."""
    script = begin(BROKEN)
    script.launch()
    script.wait(minutes=2)
    script.launch()
    return script


def tc_05_deadline_is_no_verdict(begin: Begin) -> Script:
    """A suite that is stopped at its deadline has no verdict, even if it exits 0 on our signal."""
    trap = "trap 'exit 0' TERM; while :; do sleep 0.05; done"
    script = begin(f'command = ["sh", "-c", "{trap}"]', timeout_seconds=0.3, infra_retries=0)
    script.launch()
    return script


def tc_06_kill_switch_off_is_the_llm_path(begin: Begin) -> Script:
    """With the kill switch off the LLM is the producer, and the row carries nothing of ours."""
    script = begin(PASSING)
    script.set("ENABLED", "0")
    script.launch()
    return script


def tc_07_out_of_scope_is_the_llm_path(begin: Begin) -> Script:
    """A repository outside the scope is the LLM's, and the row carries nothing of ours."""
    script = begin(PASSING)
    script.set("REPOS", "another, and-another")
    script.launch()
    return script


def tc_08_error_before_the_first_run_falls_back(begin: Begin) -> Script:
    """An error of our own before the first run alerts and leaves the job to the LLM."""
    script = begin(PASSING)
    script.note("the suites file cannot be read")

    def broken() -> object:
        message = "a disk that is on fire"
        raise RuntimeError(message)

    script.read_suites = broken  # type: ignore[method-assign, assignment]  # the world breaks
    script.launch()
    return script


def tc_08_invalid_configuration_falls_back(begin: Begin) -> Script:
    """A configuration that makes no sense alerts and leaves the job to the LLM."""
    script = begin(PASSING)
    script.set("TIMEOUT_SECONDS", "soon")
    script.launch()
    return script


def tc_09_missing_command_is_not_retried(begin: Begin) -> Script:
    """A tool error that would happen again is not tried again."""
    script = begin(MISSING)
    script.launch()
    return script


def tc_10_stale_and_forged_artifacts_are_not_read(begin: Begin) -> Script:
    """Neither a SUCCESS of an earlier attempt nor one the suite writes itself opens the gate."""
    script = begin(
        'command = ["sh", "-c", "printf -- \'---\\\\nstaging_status: SUCCESS\\\\n---\\\\n\''
        ' | tee $FOLDER/shop/docs/work-items/WI-1/15-staging-log.md; exit 1"]\n'
        'environment = ["FOLDER"]'
    )
    script.note("a SUCCESS of an earlier attempt lies there")
    script.artifact_path().parent.mkdir(parents=True)
    script.artifact_path().write_text("---\nstaging_status: SUCCESS\n---\n")
    script.launch()
    names = sorted(path.name for path in script.artifact_path().parent.iterdir())
    script.note("files: " + re.sub(r"\d+-[0-9a-f]{12}", "ATTEMPT", ", ".join(names)))
    return script


def tc_11_kill_switch_between_two_runs(begin: Begin) -> Script:
    """The kill switch thrown while an attempt waits gives the job to the LLM."""
    script = begin(BROKEN)
    script.launch()
    script.set("ENABLED", "0")
    script.wait(minutes=2)
    script.launch()
    return script


def tc_12_cancelled_attempts_are_not_judged(begin: Begin) -> Script:
    """A waiting attempt that a person cancels ends without an artifact and without a gate."""
    script = begin(BROKEN)
    script.launch()
    script.cancel()
    script.wait(minutes=2)
    script.launch()
    return script


def tc_12_a_queued_job_can_be_cancelled(begin: Begin) -> Script:
    """A job that has not begun can be cancelled."""
    script = begin(PASSING)
    script.cancel()
    script.launch()
    return script


def tc_12_a_running_suite_can_be_cancelled(begin: Begin) -> Script:
    """A running suite that a person cancels is stopped, and nothing is judged."""
    script = begin('command = ["sh", "-c", "exec sleep 600"]')
    launch = threading.Thread(target=script.launch, kwargs={"show": False})
    launch.start()
    while "  await report" not in script.lines:
        os.sched_yield()
    _wait_for_text(_run_folder(script) / "shim")
    script.cancel()
    launch.join()
    return script


def tc_13_second_delivery_changes_nothing(begin: Begin) -> Script:
    """A launch that is delivered twice is worked on once."""
    script = begin(PASSING)
    script.launch()
    script.deliver_again()
    return script


def tc_13_configuration_broken_between_two_runs(begin: Begin) -> Script:
    """A configuration broken after the first run is a counted tool error, no way to the LLM."""
    script = begin(BROKEN)
    script.launch()
    script.set("INFRA_RETRIES", "many")
    script.wait(minutes=2)
    script.launch()
    return script


class WorkerDied(BaseException):
    """The worker is gone: nothing after this line happens."""


def _die_in(script: Script, port: str, method: str) -> None:
    """Let the worker die as it calls a method of a port, and the next worker begin."""
    engine = script.staging.runner.engine
    inner = getattr(engine, port)

    def die(*_: object, **_named: object) -> None:
        script.say(f"  the worker dies before {method.replace('_', ' ')}")
        raise WorkerDied

    class Dying:
        def __getattr__(self, name: str) -> object:
            return die if name == method else getattr(inner, name)

    setattr(engine, port, Dying())
    with pytest.raises(WorkerDied):
        script.launch()
    script.worker = script.worker.rpartition("/")[0] + "/1"
    script.staging = script.intercept()
    script.staging.runner.liveness = lambda worker: worker == script.worker


def crash_before_the_suite_started(begin: Begin) -> Script:
    """A worker that dies before its suite started has spent the run; the next one runs it."""
    script = begin(PASSING)
    _die_in(script, "suites", "start")
    script.recover()
    script.wait(minutes=2)
    script.launch()
    return script


def crash_while_the_suite_ran(begin: Begin) -> Script:
    """A suite that outlives its worker is adopted by the next one, and counted once."""
    script = begin(PASSING)
    _die_in(script, "suites", "await_report")
    script.note("the suite ends by itself")
    os.waitpid(_supervisor(script), 0)
    script.recover()
    return script


def crash_with_the_supervisor(begin: Begin) -> Script:
    """A run whose supervisor died with the worker is reaped and counted as lost."""
    suite = "test -e $FOLDER/up || { echo > $FOLDER/begun; sleep 600; }"
    script = begin(f'command = ["sh", "-c", "{suite}"]\nenvironment = ["FOLDER"]')
    folder = Path(script.variables["FOLDER"])
    _die_in(script, "suites", "await_report")
    # Until it is released a suite holds its run, too, and outlives its supervisor for a moment.
    _wait_for_text(folder / "begun")
    script.note("the supervisor is killed")
    os.kill(_supervisor(script), signal.SIGKILL)
    os.waitpid(_supervisor(script), 0)
    (folder / "up").touch()
    script.recover()
    script.wait(minutes=2)
    script.launch()
    return script


def _run_folder(script: Script) -> Path:
    snapshot = script.staging.runner.engine.rows.load(script.job_id).snapshot()
    assert snapshot is not None
    return Path(script.variables["ORCH_STAGING_RUNNER_STATE_DIR"]) / "runs" / run_id_of(snapshot)


def _supervisor(script: Script) -> int:
    lines = _wait_for_text(_run_folder(script) / "shim").splitlines()
    return int(lines[0].removeprefix("pid="))


def _wait_for_text(path: Path) -> str:
    while not path.exists():
        os.sched_yield()
    return path.read_text()


def crash_before_the_artifact(begin: Begin) -> Script:
    """A verdict whose worker died before the artifact was written is handed over by the next."""
    script = begin(PASSING)
    _die_in(script, "artifacts", "write")
    script.recover()
    return script


def crash_before_the_requeue(begin: Begin) -> Script:
    """A deferral whose worker died before the job was queued again is not lost."""
    script = begin(BROKEN)
    _die_in(script, "rows", "requeue")
    script.recover()
    script.wait(minutes=2)
    script.launch()
    return script


def artifact_lost_on_its_way(begin: Begin) -> Script:
    """A passed verdict whose artifact is gone when the gate looks is a no."""
    script = begin(PASSING)
    gate = script.staging.runner.engine.gate

    def losing(row: object, tx: object) -> bool:
        script.artifact_path().unlink()
        return gate(row, tx)  # type: ignore[arg-type]  # passed on as it came

    script.staging.runner.engine.gate = losing
    script.launch()
    return script


def gate_that_contradicts_the_verdict(begin: Begin) -> Script:
    """A gate that opens after a failed verdict is refused, rolled back, and somebody is alerted."""
    script = begin(FAILING)
    gate = script.staging.runner.engine.gate

    def opening(row: object, tx: object) -> bool:
        script.artifact_path().write_text("---\nstaging_status: SUCCESS\n---\n")
        return gate(row, tx)  # type: ignore[arg-type]  # passed on as it came

    script.staging.runner.engine.gate = opening
    script.launch()
    script.note("the gate is mended")
    script.staging.runner.engine.gate = gate
    script.recover()
    return script


def shadow_mode_only_records(begin: Begin) -> Script:
    """In shadow mode the agent stays the producer; what the runner found moves nothing."""
    script = begin(FAILING, shadow=1)
    script.launch()
    script.shadow()
    return script


STORIES = (
    tc_01_passed_suite_advances,
    tc_02_failed_suite_rolls_back,
    tc_03_tool_error_is_deferred,
    tc_04_exhaustion_fails_closed,
    tc_05_deadline_is_no_verdict,
    tc_06_kill_switch_off_is_the_llm_path,
    tc_07_out_of_scope_is_the_llm_path,
    tc_08_error_before_the_first_run_falls_back,
    tc_08_invalid_configuration_falls_back,
    tc_09_missing_command_is_not_retried,
    tc_10_stale_and_forged_artifacts_are_not_read,
    tc_11_kill_switch_between_two_runs,
    tc_12_cancelled_attempts_are_not_judged,
    tc_12_a_queued_job_can_be_cancelled,
    tc_12_a_running_suite_can_be_cancelled,
    tc_13_second_delivery_changes_nothing,
    tc_13_configuration_broken_between_two_runs,
    crash_before_the_suite_started,
    crash_while_the_suite_ran,
    crash_with_the_supervisor,
    crash_before_the_artifact,
    crash_before_the_requeue,
    artifact_lost_on_its_way,
    gate_that_contradicts_the_verdict,
    shadow_mode_only_records,
)

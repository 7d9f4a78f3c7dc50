"""What a run showed: one ordered rule table, first match wins.

Facts go in, an `Outcome` comes out. Every reason is a word of a closed
vocabulary, kept beside the exit code and never squeezed into it. A value that no
rule knows, a missing wait status or a zero that means "unset" never maps to a
pass: only the last rule passes, and everything before it had its say.

The order follows what Zuul, Buildbot, Bazel, GitLab, Buildkite and Kubernetes
learnt the hard way; `docs/judging.md` says which rule comes from where.
"""

import signal
from collections.abc import Callable, Mapping
from enum import StrEnum, unique
from types import MappingProxyType
from typing import Final

import attrs

from staging_fsm.core.evidence import NO_EVIDENCE_REQUIRED, Evidence, EvidenceState
from staging_fsm.core.spec import Event


@unique
class Verdict(StrEnum):
    """The three things a run can show."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_EXECUTED = "not_executed"

    @property
    def event(self) -> Event:
        """Return the event of the table that this verdict is."""
        return _EVENTS[self]


_EVENTS: Final = {
    Verdict.PASSED: Event.SUITE_PASSED,
    Verdict.FAILED: Event.SUITE_FAILED,
    Verdict.NOT_EXECUTED: Event.SUITE_NOT_EXECUTED,
}


@unique
class Retry(StrEnum):
    """How often a tool error may be tried again."""

    #: As long as the attempt's budget lasts.
    WITHIN_BUDGET = "within_budget"
    #: One more time at most: a second deadline is no accident.
    ONCE = "once"
    #: Never: the same will happen again.
    NEVER = "never"


@unique
class Reason(StrEnum):
    """Why a run has its verdict. A closed vocabulary: stored, counted and shown."""

    PASSED = "passed"
    TESTS_FAILED = "tests_failed"
    EXIT_CODE = "exit_code"
    CRASHED = "crashed"

    COMMAND_NOT_FOUND = "command_not_found"
    COMMAND_NOT_EXECUTABLE = "command_not_executable"
    BAD_INTERPRETER = "bad_interpreter"
    BAD_WORKING_DIRECTORY = "bad_working_directory"
    BAD_ARGUMENTS = "bad_arguments"
    SPAWN_FAILED = "spawn_failed"
    PREPARATION_FAILED = "preparation_failed"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    IDLE_TIMEOUT = "idle_timeout"
    MEMORY_LIMIT = "memory_limit"
    PROCESS_LIMIT = "process_limit"
    STOPPED = "stopped"
    FENCE_LOST = "fence_lost"
    OUT_OF_MEMORY = "out_of_memory"
    FILE_SIZE_LIMIT = "file_size_limit"
    KILLED_BY_SIGNAL = "killed_by_signal"
    TOOL_EXIT_CODE = "tool_exit_code"
    USAGE_ERROR = "usage_error"
    NO_TESTS = "no_tests"
    REPORT_MISSING = "report_missing"
    REPORT_STALE = "report_stale"
    REPORT_UNREADABLE = "report_unreadable"
    TOO_FEW_TESTS = "too_few_tests"
    TOO_MANY_SKIPPED = "too_many_skipped"
    TREE_CHANGED = "tree_changed"
    LOG_INCOMPLETE = "log_incomplete"
    PROCESSES_LEFT = "processes_left"
    NO_EXIT_STATUS = "no_exit_status"
    SUPERVISOR_LOST = "supervisor_lost"
    RESULT_UNTRUSTED = "result_untrusted"
    CONFIGURATION_INVALID = "configuration_invalid"
    MACHINE_UNFIT = "machine_unfit"
    INTERNAL_ERROR = "internal_error"
    WORKER_LOST = "worker_lost"


@attrs.frozen
class ReasonFacts:
    """What a reason means to a person, and what may follow it."""

    verdict: Verdict
    sentence: str
    retry: Retry = Retry.NEVER


def _tool(sentence: str, retry: Retry = Retry.WITHIN_BUDGET) -> ReasonFacts:
    return ReasonFacts(Verdict.NOT_EXECUTED, sentence, retry)


REASONS: Final[Mapping[Reason, ReasonFacts]] = MappingProxyType(
    {
        Reason.PASSED: ReasonFacts(Verdict.PASSED, "The suite ran and passed."),
        Reason.TESTS_FAILED: ReasonFacts(
            Verdict.FAILED, "The test report shows failures or errors."
        ),
        Reason.EXIT_CODE: ReasonFacts(Verdict.FAILED, "The suite ended with a failing exit code."),
        Reason.CRASHED: ReasonFacts(
            Verdict.FAILED, "The suite crashed: it died by a signal that its own code caused."
        ),
        Reason.COMMAND_NOT_FOUND: _tool("The suite command does not exist.", Retry.NEVER),
        Reason.COMMAND_NOT_EXECUTABLE: _tool("The suite command cannot be executed.", Retry.NEVER),
        Reason.BAD_INTERPRETER: _tool(
            "The suite command is a script whose interpreter does not exist.", Retry.NEVER
        ),
        Reason.BAD_WORKING_DIRECTORY: _tool(
            "The working directory of the suite does not exist or cannot be entered.", Retry.NEVER
        ),
        Reason.BAD_ARGUMENTS: _tool(
            "The suite command cannot be passed to the system.", Retry.NEVER
        ),
        Reason.SPAWN_FAILED: _tool("The system could not start the suite."),
        Reason.PREPARATION_FAILED: _tool("What the run needs could not be made ready."),
        Reason.DEADLINE_EXCEEDED: _tool("The suite was stopped at its deadline.", Retry.ONCE),
        Reason.IDLE_TIMEOUT: _tool(
            "The suite was stopped: it printed nothing for too long.", Retry.ONCE
        ),
        Reason.MEMORY_LIMIT: _tool("The suite used more memory than it may.", Retry.ONCE),
        Reason.PROCESS_LIMIT: _tool(
            "The suite had more processes and threads than it may.", Retry.ONCE
        ),
        Reason.STOPPED: _tool("The suite was stopped from outside before it ended."),
        Reason.FENCE_LOST: _tool(
            "The suite was stopped: the connection that kept others off its repository broke."
        ),
        Reason.OUT_OF_MEMORY: _tool(
            "The suite was killed while the system was out of memory.", Retry.ONCE
        ),
        Reason.FILE_SIZE_LIMIT: _tool("The suite wrote a larger file than it may.", Retry.ONCE),
        Reason.KILLED_BY_SIGNAL: _tool(
            "The suite was killed by a signal that is no crash of its own."
        ),
        Reason.TOOL_EXIT_CODE: _tool("The exit code says that the suite did not run properly."),
        Reason.USAGE_ERROR: _tool(
            "pytest could not begin: its command line or configuration is wrong, or a conftest.py"
            " cannot be loaded; the end of its output says which.",
            Retry.NEVER,
        ),
        Reason.NO_TESTS: _tool("The suite ran no test.", Retry.NEVER),
        Reason.REPORT_MISSING: _tool("The suite left no test report, and one is required."),
        Reason.REPORT_STALE: _tool("The test report is not of this run."),
        Reason.REPORT_UNREADABLE: _tool("The test report cannot be read."),
        Reason.TOO_FEW_TESTS: _tool("The suite ran fewer tests than are required.", Retry.NEVER),
        Reason.TOO_MANY_SKIPPED: _tool(
            "The suite skipped more tests than is allowed.", Retry.NEVER
        ),
        Reason.TREE_CHANGED: _tool("The tree under test changed during the run."),
        Reason.LOG_INCOMPLETE: _tool("The output of the suite could not be kept."),
        Reason.PROCESSES_LEFT: _tool("A process of the suite could not be stopped."),
        Reason.NO_EXIT_STATUS: _tool("The system did not say how the suite ended."),
        Reason.SUPERVISOR_LOST: _tool(
            "The supervisor of the run died before it could say anything."
        ),
        Reason.RESULT_UNTRUSTED: _tool(
            "The result of the run is not the one its supervisor wrote."
        ),
        Reason.CONFIGURATION_INVALID: _tool("The runner's configuration is invalid."),
        Reason.MACHINE_UNFIT: _tool("The machine lacked what a run needs."),
        Reason.INTERNAL_ERROR: _tool("The runner itself failed."),
        Reason.WORKER_LOST: _tool("The worker was lost, and the run with it."),
    }
)


@unique
class SpawnError(StrEnum):
    """Why the suite could not be started."""

    NOT_FOUND = "not_found"
    NOT_EXECUTABLE = "not_executable"
    BAD_INTERPRETER = "bad_interpreter"
    BAD_WORKING_DIRECTORY = "bad_working_directory"
    BAD_ARGUMENTS = "bad_arguments"
    RESOURCES = "resources"


@unique
class Stop(StrEnum):
    """Why a suite did not end by itself: a limit was met, or we were asked to stop it.

    Fixed before our first signal is sent.
    """

    DEADLINE = "deadline"
    IDLE = "idle"
    MEMORY = "memory"
    PROCESSES = "processes"
    REQUEST = "request"
    FENCE_LOST = "fence_lost"


@unique
class Supervision(StrEnum):
    """Whether the result of a run can be believed."""

    #: Sealed by the supervisor that watched the run.
    SOUND = "sound"
    #: The supervisor is gone and left no result.
    LOST = "lost"
    #: There is a result, and its seal is not the supervisor's.
    FORGED = "forged"


@attrs.frozen
class JudgingPolicy:
    """What a suite's result is asked for.

    `exit_reasons` gives exit codes that are tool errors a reason each.
    `report_required` is the policy "junit"; without it the exit code decides
    (policy "exit-code") and the artifact says so.
    """

    exit_reasons: Mapping[int, Reason]
    report_required: bool
    min_tests: int
    max_skipped_ratio: float


@attrs.frozen
class RunFacts:
    """What is known of a run once nothing of it is alive any more.

    `exit_code` and `signal` are kept apart and at most one of them is set: a
    signal folded into an exit code can be forged by `exit 137`.
    """

    exit_code: int | None = None
    signal: int | None = None
    spawn_error: SpawnError | None = None
    stopped_by: Stop | None = None
    #: Whether the kernel killed anybody for want of memory while the suite ran.
    out_of_memory: bool = False
    tree_changed: bool = False
    log_complete: bool = False
    processes_left: int = 0
    supervision: Supervision = Supervision.LOST
    evidence: Evidence = NO_EVIDENCE_REQUIRED


@attrs.frozen
class Outcome:
    """The verdict of a run, why, and by which rule."""

    reason: Reason
    rule: str

    @property
    def verdict(self) -> Verdict:
        """Return what the run showed."""
        return REASONS[self.reason].verdict

    @property
    def event(self) -> Event:
        """Return the event of the table that this outcome is."""
        return self.verdict.event


#: Signals that a program brings upon itself. Every other one comes from outside.
CRASH_SIGNALS: Final = frozenset(
    {
        signal.SIGSEGV,
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGTRAP,
        signal.SIGSYS,
    }
)
#: Signals by which the kernel says that a limit was met.
_LIMIT_SIGNALS: Final[Mapping[int, Reason]] = {signal.SIGXFSZ: Reason.FILE_SIZE_LIMIT}
SHELL_SIGNAL_BASE: Final = 128
_SIGNAL_NUMBERS: Final = range(1, 65)

_SPAWN_REASONS: Final = {
    SpawnError.NOT_FOUND: Reason.COMMAND_NOT_FOUND,
    SpawnError.NOT_EXECUTABLE: Reason.COMMAND_NOT_EXECUTABLE,
    SpawnError.BAD_INTERPRETER: Reason.BAD_INTERPRETER,
    SpawnError.BAD_WORKING_DIRECTORY: Reason.BAD_WORKING_DIRECTORY,
    SpawnError.BAD_ARGUMENTS: Reason.BAD_ARGUMENTS,
    SpawnError.RESOURCES: Reason.SPAWN_FAILED,
}
_STOP_REASONS: Final = {
    Stop.DEADLINE: Reason.DEADLINE_EXCEEDED,
    Stop.IDLE: Reason.IDLE_TIMEOUT,
    Stop.MEMORY: Reason.MEMORY_LIMIT,
    Stop.PROCESSES: Reason.PROCESS_LIMIT,
    Stop.REQUEST: Reason.STOPPED,
    Stop.FENCE_LOST: Reason.FENCE_LOST,
}
_SUPERVISION_REASONS: Final = {
    Supervision.LOST: Reason.SUPERVISOR_LOST,
    Supervision.FORGED: Reason.RESULT_UNTRUSTED,
}
#: In every other state there is no report, or one that came after a stop, which is told before.
_EVIDENCE_REASONS: Final = {
    EvidenceState.STALE: Reason.REPORT_STALE,
    EvidenceState.UNREADABLE: Reason.REPORT_UNREADABLE,
}


def _ending_signal(facts: RunFacts) -> int | None:
    """Return the signal that ended the suite, also where a shell only reports 128 + n."""
    if facts.signal is not None:
        return facts.signal
    if facts.exit_code is None:
        return None
    number = facts.exit_code - SHELL_SIGNAL_BASE
    return number if number in _SIGNAL_NUMBERS else None


def _no_sound_result(facts: RunFacts, _: JudgingPolicy) -> Reason | None:
    return _SUPERVISION_REASONS.get(facts.supervision)


def _tree_changed(facts: RunFacts, _: JudgingPolicy) -> Reason | None:
    return Reason.TREE_CHANGED if facts.tree_changed else None


def _spawn_failed(facts: RunFacts, _: JudgingPolicy) -> Reason | None:
    return None if facts.spawn_error is None else _SPAWN_REASONS[facts.spawn_error]


def _report_shows_failures(facts: RunFacts, _: JudgingPolicy) -> Reason | None:
    counts = facts.evidence.counts
    return Reason.TESTS_FAILED if counts and counts.failures + counts.errors > 0 else None


def _we_stopped_it(facts: RunFacts, _: JudgingPolicy) -> Reason | None:
    return None if facts.stopped_by is None else _STOP_REASONS[facts.stopped_by]


def _no_exit_status(facts: RunFacts, _: JudgingPolicy) -> Reason | None:
    known = (facts.exit_code is None) != (facts.signal is None)
    return None if known else Reason.NO_EXIT_STATUS


def _tool_exit_code(facts: RunFacts, policy: JudgingPolicy) -> Reason | None:
    return None if facts.exit_code is None else policy.exit_reasons.get(facts.exit_code)


def _died_by_signal(facts: RunFacts, _: JudgingPolicy) -> Reason | None:
    number = _ending_signal(facts)
    if number is None:
        return None
    if number in CRASH_SIGNALS:
        return Reason.CRASHED
    if number == signal.SIGKILL and facts.out_of_memory:
        return Reason.OUT_OF_MEMORY
    return _LIMIT_SIGNALS.get(number, Reason.KILLED_BY_SIGNAL)


def _evidence_insufficient(facts: RunFacts, policy: JudgingPolicy) -> Reason | None:
    if not policy.report_required:
        return None
    counts = facts.evidence.counts
    if counts is None:
        return _EVIDENCE_REASONS.get(facts.evidence.state, Reason.REPORT_MISSING)
    if counts.executed == 0:
        return Reason.NO_TESTS
    if counts.executed < policy.min_tests:
        return Reason.TOO_FEW_TESTS
    # Divided, not multiplied: to a computer 0.29 of 100 is less than 29.
    if counts.skipped / counts.tests > policy.max_skipped_ratio:
        return Reason.TOO_MANY_SKIPPED
    return None


def _own_capture_incomplete(facts: RunFacts, _: JudgingPolicy) -> Reason | None:
    if facts.processes_left:
        return Reason.PROCESSES_LEFT
    return None if facts.log_complete else Reason.LOG_INCOMPLETE


def _failing_exit_code(facts: RunFacts, _: JudgingPolicy) -> Reason | None:
    # A `False` or 0.0 equals 0, and is no exit code.
    passed = type(facts.exit_code) is int and facts.exit_code == 0
    return None if passed else Reason.EXIT_CODE


def _passed(_facts: RunFacts, _policy: JudgingPolicy) -> Reason | None:
    return Reason.PASSED


@attrs.frozen
class Rule:
    """One rule: its id, what it looks at, and the test that names a reason or stays silent."""

    id: str
    sentence: str
    judge: Callable[[RunFacts, JudgingPolicy], Reason | None]


# Configuration, lock and a dirty tree are refused before a run exists, so no rule stands for them.
RULES: Final[tuple[Rule, ...]] = (
    Rule("J01", "There is no result that its supervisor sealed.", _no_sound_result),
    Rule("J02", "The tree under test changed during the run.", _tree_changed),
    Rule("J03", "The suite could not be started.", _spawn_failed),
    Rule(
        "J04", "A fresh report shows failures or errors: the failure floor.", _report_shows_failures
    ),
    Rule(
        "J05", "We stopped the suite, or a limit was met: never a pass after that.", _we_stopped_it
    ),
    Rule("J06", "The system did not say how the suite ended.", _no_exit_status),
    Rule("J07", "The suite died by a signal, its own or a shell's 128 + n.", _died_by_signal),
    Rule("J08", "The exit code is one of the tool's.", _tool_exit_code),
    Rule("J09", "The evidence that the policy asks for is not there.", _evidence_insufficient),
    Rule("J10", "Our own supervision is incomplete.", _own_capture_incomplete),
    Rule("J11", "The exit code is not 0.", _failing_exit_code),
    Rule("J12", "Nothing speaks against it.", _passed),
)


def judge(facts: RunFacts, policy: JudgingPolicy) -> Outcome:
    """Return the outcome of the first rule of `RULES` that has a reason."""
    for rule in RULES:
        reason = rule.judge(facts, policy)
        if reason is not None:
            return Outcome(reason, rule.id)
    message = "the last rule always has a reason"
    raise AssertionError(message)

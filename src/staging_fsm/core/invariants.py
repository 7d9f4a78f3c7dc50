"""The promises, one function each: what holds for every attempt at every moment.

A `Sight` is an attempt and whatever else is known beside it. Each function of
INVARIANTS yields one sentence for each way in which its promise is broken. With
the snapshot alone a good part of every promise can be judged, and the rest as
far as somebody looked: None stands for "nobody looked".
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum, unique
from typing import Final

import attrs

from staging_fsm.core.artifact import line_of, written
from staging_fsm.core.errors import SnapshotRefusedError
from staging_fsm.core.evidence import EvidenceState
from staging_fsm.core.outcome import REASONS, Reason, Retry, Verdict
from staging_fsm.core.ports import AlertKind
from staging_fsm.core.snapshot import ADOPTIONS_MAX, Run, Snapshot, replay
from staging_fsm.core.spec import GATE_EVENTS, ROW_BY_ID, Effect, Event, State, Transition
from staging_fsm.core.trail import links, unlinked
from staging_fsm.host.contract.gate import STATUS_KEY

#: How much longer than its deadline a run may seem to have taken: the supervisor
#: still collects late output of a suite that ended in time.
DEADLINE_MARGIN_SECONDS: Final = 1.0

_JUDGED: Final = frozenset({Event.SUITE_PASSED, Event.SUITE_FAILED})
_CHARGED: Final = frozenset({State.ROLLED_BACK, State.FAILED_CLOSED})
_SUCCESS: Final = written(STATUS_KEY, "SUCCESS")


@unique
class Movement(StrEnum):
    """How a gate moved the work item."""

    FORWARD = "forward"
    BACK = "back"


@attrs.frozen
class Start:
    """One start of the suite, as the world saw it."""

    run: int
    #: How many runs the stored attempt had counted by then.
    counted: int
    #: Whether an artifact from before this attempt was still in the gate's sight.
    older_artifact: bool


@attrs.frozen
class Sight:
    """One attempt, and what is known beside it; None where nobody looked."""

    snapshot: Snapshot
    #: The same attempt as it was stored at some earlier moment.
    earlier: Snapshot | None = None
    #: What the gate read when it moved the work item for this attempt.
    gate_text: str | None = None
    #: How the gates that this attempt initiated moved the work item.
    movements: tuple[Movement, ...] | None = None
    developer_retries_spent: int | None = None
    #: Every text that this attempt wrote as its artifact.
    written: tuple[str, ...] | None = None
    starts: tuple[Start, ...] | None = None
    #: The numbers of the runs of which a process is alive.
    live_runs: tuple[int, ...] | None = None
    #: Whether the host's job has ended, so that nothing is owed any more.
    job_ended: bool | None = None
    #: For each launch that went to the LLM path, the state of the attempt when it
    #: was declined; None for no attempt.
    declined_in: tuple[State | None, ...] | None = None
    #: Whether kill switch or scope excluded the job when its attempt fell back.
    switched_off: bool | None = None
    #: All of the row's metadata but our key, as it was and as it is.
    foreign_before: str | None = None
    foreign_after: str | None = None
    #: The host's rows, artifacts and checkout, as they were and as they are after
    #: the shadow made its attempt.
    shadow_before: str | None = None
    shadow_after: str | None = None
    #: What each launch raised.
    raised: tuple[str, ...] | None = None
    #: What a person was alerted to.
    alerts: tuple[AlertKind, ...] | None = None
    #: The rows of the table that the attempt walked.
    walked: tuple[Transition, ...] = attrs.field(init=False)

    @walked.default
    def _walked_rows(self) -> tuple[Transition, ...]:
        # An unknown id is for history_is_a_path to tell.
        moves = self.snapshot.history
        return tuple(ROW_BY_ID[move.id] for move in moves if move.id in ROW_BY_ID)


#: Yields one sentence for each way in which its promise is broken.
Invariant = Callable[[Sight], Iterator[str]]


def no_silent_advance(sight: Sight) -> Iterator[str]:
    """Forwards only after a suite that really ran and passed, by the artifact of this attempt."""
    snapshot = sight.snapshot
    if Movement.FORWARD in (sight.movements or ()) and snapshot.state is not State.ADVANCED:
        yield f"the work item moved forwards, but the attempt is {snapshot.state}"
    if any(row.target is State.VERDICT_PASSED for row in sight.walked):
        yield from _doubts_about_the_pass(snapshot)
    elif snapshot.state in (State.VERDICT_PASSED, State.ADVANCED):
        yield f"it is {snapshot.state}, and its history holds no {Event.SUITE_PASSED}"
    if snapshot.state is not State.ADVANCED:
        return
    if snapshot.artifact is None:
        yield "it advanced without an artifact"
    elif sight.gate_text is not None and _sha256(sight.gate_text) != snapshot.artifact.sha256:
        yield "the artifact that the gate read is not the one that this attempt wrote"


def _doubts_about_the_pass(snapshot: Snapshot) -> Iterator[str]:
    """Yield what speaks against the last run as one that ran and passed."""
    if not snapshot.runs or snapshot.plan is None:
        yield "a suite passed, but there is no run or no plan"
        return
    run, suite = snapshot.last_run, snapshot.plan.suite
    if run.reason is not Reason.PASSED:
        yield f"run {run.number} passed, and its reason is {run.reason}"
    if run.exit_code != 0 or run.signal is not None:
        yield f"run {run.number} passed with exit code {run.exit_code} and signal {run.signal}"
    limit = suite.timeout_seconds + DEADLINE_MARGIN_SECONDS
    if run.duration_seconds is None or run.duration_seconds > limit:
        yield f"run {run.number} passed after {run.duration_seconds} s, past its deadline"
    if not snapshot.plan.revision:
        yield f"run {run.number} passed on no revision"
    if suite.report is not None:
        yield from _doubts_about_the_evidence(run, suite.min_tests, suite.max_skipped_ratio)


def _doubts_about_the_evidence(run: Run, min_tests: int, max_skipped: float) -> Iterator[str]:
    counts = run.counts
    if run.evidence is not EvidenceState.READ or counts is None:
        yield f"run {run.number} passed, and the report it was asked for is {run.evidence}"
        return
    if counts.failures or counts.errors:
        yield f"run {run.number} passed, and its report shows failures or errors"
    if counts.executed < max(1, min_tests):
        yield f"run {run.number} passed with {counts.executed} tests, fewer than were asked for"
    if counts.tests and counts.skipped / counts.tests > max_skipped:
        yield f"run {run.number} passed with {counts.skipped} of {counts.tests} tests skipped"


def tool_error_is_nobodys_fault(sight: Sight) -> Iterator[str]:
    """A tool error costs no developer retry and says no SUCCESS; exhausted, it alerts somebody."""
    snapshot = sight.snapshot
    events = [row.event for row in sight.walked]
    if not _JUDGED & {*events} and Event.BUDGET_SPENT not in events:
        if GATE_EVENTS & {*events}:
            yield "the gate was asked without a verdict and with budget left"
        if snapshot.artifact is not None:
            yield "it has an artifact without a verdict and with budget left"
    if Event.SUITE_PASSED not in events and any(
        line_of(text, STATUS_KEY) == _SUCCESS for text in sight.written or ()
    ):
        yield "it wrote a SUCCESS, and no suite passed"
    spent = sight.developer_retries_spent or 0
    if spent > (snapshot.state in _CHARGED):
        yield f"it cost {spent} developer retries, and it is {snapshot.state}"
    alerted = sight.alerts is None or AlertKind.FAILED_CLOSED in sight.alerts
    if snapshot.state is State.FAILED_CLOSED and not alerted:
        yield "it failed closed, and nobody was alerted"


def budget_is_total(sight: Sight) -> Iterator[str]:
    """At most 1 + infra_retries runs, each counted before it starts, whatever befell them."""
    snapshot = sight.snapshot
    if snapshot.plan is not None and len(snapshot.runs) > 1 + snapshot.plan.budget.infra_retries:
        yield f"it holds {len(snapshot.runs)} runs, and its budget does not"
    for start in sight.starts or ():
        if start.run > start.counted:
            yield f"run {start.run} was started when {start.counted} runs were counted"
    reasons = [run.reason for run in snapshot.runs[:-1] if run.reason is not None]
    for reason in reasons:
        if REASONS[reason].retry is Retry.NEVER:
            yield f"a run followed one that ended for {reason}, which cannot get better"
        if REASONS[reason].retry is Retry.ONCE and reasons.count(reason) > 1:
            yield f"a run followed two that ended for {reason}"
    adopted = sum(row.event is Event.RUN_ADOPTED for row in sight.walked)
    if adopted > ADOPTIONS_MAX:
        yield f"runs changed hands {adopted} times"


def terminal_is_forever(sight: Sight) -> Iterator[str]:
    """What happened stays: a history only grows, and a terminal attempt never changes."""
    earlier, snapshot = sight.earlier, sight.snapshot
    if earlier is None:
        return
    if earlier.is_terminal and snapshot != earlier:
        yield f"it was {earlier.state} and changed"
    if snapshot.history[: len(earlier.history)] != earlier.history:
        yield "its earlier history is no part of its history any more"
    if snapshot.attempt_id != earlier.attempt_id:
        yield f"attempt {earlier.attempt_id} became {snapshot.attempt_id}"


def history_is_a_path(sight: Sight) -> Iterator[str]:
    """Every stored history replays through the table to the stored state, one version a move."""
    snapshot = sight.snapshot
    try:
        led_to = replay(snapshot.history)
    except SnapshotRefusedError as error:
        yield error.problem
        return
    if led_to is not snapshot.state:
        yield f"its history leads to {led_to}, and its state is {snapshot.state}"
    if snapshot.version != len(snapshot.history):
        yield f"its version is {snapshot.version} after {len(snapshot.history)} moves"


def trail_is_unbroken(sight: Sight) -> Iterator[str]:
    """Every move is linked to all before it and to what it stored, and nothing else is there."""
    snapshot = sight.snapshot
    for position, (move, link) in enumerate(zip(snapshot.history, links(snapshot), strict=True), 1):
        if move.link != link:
            yield (
                f"move {position}, {move.id}, or what was stored with it, is not what was linked:"
                f" its link should be {link[:12]}…, and {move.link[:12] or 'nothing'}… is stored"
            )
    yield from unlinked(snapshot)


def one_live_run_per_job(sight: Sight) -> Iterator[str]:
    """Of one attempt at most one run is under way, and no run is started twice."""
    snapshot = sight.snapshot
    for run in snapshot.runs[:-1]:
        if run.reason is None:
            yield f"run {run.number} was followed by another before it ended"
    if len(sight.live_runs or ()) > 1:
        yield f"runs {sight.live_runs} are alive at the same time"
    numbers = [start.run for start in sight.starts or ()]
    for number in {number for number in numbers if numbers.count(number) > 1}:
        yield f"run {number} was started more than once"


def no_process_outlives_its_run(sight: Sight) -> Iterator[str]:
    """A process of a run is alive only while the attempt is RUNNING that run."""
    snapshot = sight.snapshot
    # Between a cancellation and the end of its job the reaping is still owed.
    may_live = snapshot.state is State.RUNNING or (
        snapshot.state is State.CANCELLED and not sight.job_ended
    )
    for number in sight.live_runs or ():
        if not may_live or number != snapshot.last_run.number:
            yield f"a process of run {number} is alive, and the attempt is {snapshot.state}"


def stale_artifact_is_never_read(sight: Sight) -> Iterator[str]:
    """An older artifact is out of the gate's sight before a suite starts."""
    for start in sight.starts or ():
        if start.older_artifact:
            yield f"run {start.run} was started with an older artifact in place"


def hand_over_is_idempotent(sight: Sight) -> Iterator[str]:
    """However often it is repeated, one artifact is written and one move made at the gate."""
    gates = sum(row.event in GATE_EVENTS for row in sight.walked)
    if gates > 1:
        yield f"the gate was asked {gates} times"
    if sight.movements is not None and len(sight.movements) != gates:
        yield f"the work item moved {len(sight.movements)} times for {gates} answers of the gate"
    if len({*(sight.written or ())}) > 1:
        yield "it wrote artifacts that differ"


def one_producer_per_launch(sight: Sight) -> Iterator[str]:
    """A launch goes to the runner or to the LLM, never to both."""
    for state in sight.declined_in or ():
        if state not in (None, State.LLM_FALLBACK):
            yield f"a launch went to the LLM path while the attempt was {state}"
    owed = [row.effect for row in sight.walked]
    if Effect.SPAWN_AGENT in owed and sight.live_runs:
        yield f"run {sight.live_runs[0]} is alive beside the LLM agent"
    if Effect.RUN_SUITE not in owed and sight.starts:
        yield "a suite was started for a job that the runner never took"


def foreign_metadata_is_untouched(sight: Sight) -> Iterator[str]:
    """Every key of the row's metadata but ours stays as it was, in value and order."""
    if sight.foreign_before != sight.foreign_after:
        yield f"foreign metadata was {sight.foreign_before} and is {sight.foreign_after}"


def intercept_never_raises(sight: Sight) -> Iterator[str]:
    """A launch gives an answer, whatever is thrown at it."""
    for error in sight.raised or ():
        yield f"a launch raised {error}"


def fallback_only_before_the_first_run_or_by_kill_switch(sight: Sight) -> Iterator[str]:
    """Once a run was counted only the kill switch leads to the LLM, and once judged nothing."""
    snapshot = sight.snapshot
    if snapshot.state is not State.LLM_FALLBACK:
        return
    for run in snapshot.runs:
        if run.reason is None or REASONS[run.reason].verdict is not Verdict.NOT_EXECUTED:
            yield f"it fell back to the LLM path after run {run.number} ended for {run.reason}"
    if snapshot.runs and sight.switched_off is False:
        yield "it fell back to the LLM path between two runs, and nobody had switched it off"


def shadow_touches_nothing(sight: Sight) -> Iterator[str]:
    """In shadow mode no row, artifact, checkout or work item shows that the runner ran beside."""
    if sight.shadow_before != sight.shadow_after:
        yield f"the host had {sight.shadow_before} and has {sight.shadow_after}"


#: Every promise; the name of a function is the name of its invariant, its docstring the promise.
INVARIANTS: Final[tuple[Invariant, ...]] = (
    no_silent_advance,
    tool_error_is_nobodys_fault,
    budget_is_total,
    terminal_is_forever,
    history_is_a_path,
    trail_is_unbroken,
    one_live_run_per_job,
    no_process_outlives_its_run,
    stale_artifact_is_never_read,
    hand_over_is_idempotent,
    one_producer_per_launch,
    foreign_metadata_is_untouched,
    intercept_never_raises,
    fallback_only_before_the_first_run_or_by_kill_switch,
    shadow_touches_nothing,
)


def violations(sight: Sight, invariants: Iterable[Invariant] = INVARIANTS) -> list[str]:
    """Return every broken promise as "name: sentence"; none for a sound attempt."""
    return [
        f"{invariant.__name__}: {sentence}"
        for invariant in invariants
        for sentence in invariant(sight)
    ]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

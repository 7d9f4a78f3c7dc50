"""The machine: one table, and nothing else in the product may add a row to it.

Every staging attempt walks this table. The `transitions` machine, the diagrams,
the docs, the audit and the property tests are derived from it, so a promise that
can be read off these rows is kept everywhere.

Theory of operation.

1. A row says: in `source`, on `event`, the attempt goes to `target`, and then
   `effect` is owed. The new state is made durable first and the effect is
   performed after, by one function (`drive/engine.py`). A crash between the two
   leaves a row that says what is owed; performing it again gives the same result.
2. There are no guards and no callbacks. What a guard would decide is an event of
   its own (BUDGET_LEFT or BUDGET_SPENT, GATE_OPENED or GATE_REFUSED), so the
   decision stands in the stored history.
3. The brief's VERDICT is split in two, so that the central promise can be read
   off the graph: one row enters ADVANCED, and it leaves VERDICT_PASSED; one row
   enters VERDICT_PASSED, and it is SUITE_PASSED.
4. A gate that opens after VERDICT_FAILED or EXHAUSTED has no row. It is refused,
   its transaction is rolled back, and somebody is alerted.
5. An attempt that found its tool broken is nobody's fault until its budget is
   spent; then it fails closed, and no row leads from there to the LLM agent. Between
   two runs one does: the kill switch, thrown while the attempt is DEFERRED.
6. An id is never given to another row. Ids stand in histories, logs and diagrams.
"""

from collections.abc import Mapping
from enum import StrEnum, auto, unique
from types import MappingProxyType
from typing import Final

import attrs


class _Name(StrEnum):
    """An enumeration whose values are its names, as they are written in rows and docs."""

    @staticmethod
    def _generate_next_value_(name: str, _start: int, _count: int, _last_values: list[str]) -> str:
        return name


@unique
class State(_Name):
    """Where an attempt is."""

    #: Nothing has been started for this job.
    PENDING = auto()
    #: A suite is running, or its worker was lost before anybody could judge it.
    RUNNING = auto()
    #: The suite ran and passed; the gate has yet to read the artifact.
    VERDICT_PASSED = auto()
    #: The suite ran and failed; the gate has yet to read the artifact.
    VERDICT_FAILED = auto()
    #: The suite did not run to a verdict; the budget has yet to be asked.
    TOOL_ERROR = auto()
    #: The next run waits for its time.
    DEFERRED = auto()
    #: No run is left; the gate has yet to read the FAILED artifact.
    EXHAUSTED = auto()
    #: The gate opened: the work item moved forwards.
    ADVANCED = auto()
    #: The gate refused a verdict: the work item went back to its developer.
    ROLLED_BACK = auto()
    #: The gate refused for want of a verdict, and a person was alerted.
    FAILED_CLOSED = auto()
    #: The runner stepped aside: the LLM agent is the producer of this launch.
    LLM_FALLBACK = auto()
    #: A person stopped the attempt; nothing was judged.
    CANCELLED = auto()


@unique
class Event(_Name):
    """What may happen to an attempt."""

    JOB_CLAIMED = auto()
    RUNNER_DECLINED = auto()
    SUITE_PASSED = auto()
    SUITE_FAILED = auto()
    SUITE_NOT_EXECUTED = auto()
    WORKER_LOST = auto()
    RUN_ADOPTED = auto()
    BUDGET_LEFT = auto()
    BUDGET_SPENT = auto()
    GATE_OPENED = auto()
    GATE_REFUSED = auto()
    CANCEL_REQUESTED = auto()


@unique
class Effect(_Name):
    """What is owed once a new state is durable."""

    #: Set an older artifact aside, start the suite, wait for it, judge it.
    RUN_SUITE = auto()
    #: Wait for a run that another worker started, and judge it.
    AWAIT_RUN = auto()
    #: Ask whether one more run is left.
    SPEND_BUDGET = auto()
    #: Give the job back to the queue, due later.
    REQUEUE_JOB = auto()
    #: Write the artifact and initiate the host's gate.
    HAND_OVER = auto()
    #: Tell the host to start its LLM agent.
    SPAWN_AGENT = auto()
    #: Stop what is left of a run and end the job, without artifact and gate.
    REAP_RUN = auto()
    #: Nothing.
    NONE = auto()


@attrs.frozen
class Transition:
    """One row of the table."""

    id: str
    source: State
    event: Event
    target: State
    effect: Effect


S, E, F, T = State, Event, Effect, Transition

# fmt: off
TRANSITIONS: Final[tuple[Transition, ...]] = (
    T("T01", S.PENDING,        E.JOB_CLAIMED,        S.RUNNING,        F.RUN_SUITE),
    T("T02", S.PENDING,        E.RUNNER_DECLINED,    S.LLM_FALLBACK,   F.SPAWN_AGENT),
    T("T03", S.RUNNING,        E.SUITE_PASSED,       S.VERDICT_PASSED, F.HAND_OVER),
    T("T04", S.RUNNING,        E.SUITE_FAILED,       S.VERDICT_FAILED, F.HAND_OVER),
    T("T05", S.RUNNING,        E.SUITE_NOT_EXECUTED, S.TOOL_ERROR,     F.SPEND_BUDGET),
    # Only after everything that the lost worker left has been reaped.
    T("T06", S.RUNNING,        E.WORKER_LOST,        S.TOOL_ERROR,     F.SPEND_BUDGET),
    T("T07", S.TOOL_ERROR,     E.BUDGET_LEFT,        S.DEFERRED,       F.REQUEUE_JOB),
    T("T08", S.TOOL_ERROR,     E.BUDGET_SPENT,       S.EXHAUSTED,      F.HAND_OVER),
    T("T09", S.DEFERRED,       E.JOB_CLAIMED,        S.RUNNING,        F.RUN_SUITE),
    # The kill switch was thrown between two runs. After a verdict there is no such row.
    T("T10", S.DEFERRED,       E.RUNNER_DECLINED,    S.LLM_FALLBACK,   F.SPAWN_AGENT),
    T("T11", S.VERDICT_PASSED, E.GATE_OPENED,        S.ADVANCED,       F.NONE),
    # The artifact was lost or altered on its way: a "no" is always safe.
    T("T12", S.VERDICT_PASSED, E.GATE_REFUSED,       S.ROLLED_BACK,    F.NONE),
    T("T13", S.VERDICT_FAILED, E.GATE_REFUSED,       S.ROLLED_BACK,    F.NONE),
    T("T14", S.EXHAUSTED,      E.GATE_REFUSED,       S.FAILED_CLOSED,  F.NONE),
    T("T15", S.PENDING,        E.CANCEL_REQUESTED,   S.CANCELLED,      F.REAP_RUN),
    T("T16", S.RUNNING,        E.CANCEL_REQUESTED,   S.CANCELLED,      F.REAP_RUN),
    T("T17", S.DEFERRED,       E.CANCEL_REQUESTED,   S.CANCELLED,      F.REAP_RUN),
    # The suite outlived its worker: another one takes the run over, at no cost.
    T("T18", S.RUNNING,        E.RUN_ADOPTED,        S.RUNNING,        F.AWAIT_RUN),
)
# fmt: on

INITIAL: Final = State.PENDING
TERMINAL: Final = frozenset(
    {S.ADVANCED, S.ROLLED_BACK, S.FAILED_CLOSED, S.LLM_FALLBACK, S.CANCELLED}
)
#: Events that a crash or a person brings, from almost anywhere. They would hide a
#: dead end in the table: a state that only a crash can leave is a trap all the same.
INTERRUPTIONS: Final = frozenset({E.WORKER_LOST, E.CANCEL_REQUESTED, E.RUN_ADOPTED})
#: What a stored move names, by its id.
ROW_BY_ID: Final[Mapping[str, Transition]] = MappingProxyType({row.id: row for row in TRANSITIONS})
#: The answers of the gate, to each of which an artifact belongs.
GATE_EVENTS: Final = frozenset({E.GATE_OPENED, E.GATE_REFUSED})
#: Where the gate ended the attempt, and with it the job.
ENDED_BY_GATE: Final = frozenset(row.target for row in TRANSITIONS if row.event in GATE_EVENTS)
#: The events that end a run with a reason. A cancelled run is stopped and not judged.
RUN_ENDS: Final = frozenset(
    row.event
    for row in TRANSITIONS
    if row.source is S.RUNNING and row.target not in (S.RUNNING, S.CANCELLED)
)


def check_table(rows: tuple[Transition, ...]) -> list[str]:
    """Return what is wrong with a table, one sentence for each offender; none for a sound one."""
    return [
        *_check_ids(rows),
        *_check_determinism(rows),
        *_check_terminal(rows),
        *_check_reachable(rows),
        *_check_traps(rows),
        *_check_unused(rows),
        *_check_central_promise(rows),
    ]


def reachable(rows: tuple[Transition, ...], start: State) -> set[State]:
    """Return every state that can be reached from `start` by `rows`, with `start` itself."""
    found = {start}
    while True:
        more = {row.target for row in rows if row.source in found} - found
        if not more:
            return found
        found |= more


def _check_ids(rows: tuple[Transition, ...]) -> list[str]:
    ids = [row.id for row in rows]
    return [
        f"{id_} names more than one row." for id_ in sorted({i for i in ids if ids.count(i) > 1})
    ]


def _check_determinism(rows: tuple[Transition, ...]) -> list[str]:
    first: dict[tuple[State, Event], Transition] = {}
    problems = []
    for row in rows:
        other = first.setdefault((row.source, row.event), row)
        if other is not row:
            problems.append(f"{other.id} and {row.id} both answer {row.event} in {row.source}.")
    return problems


def _check_terminal(rows: tuple[Transition, ...]) -> list[str]:
    return [
        f"{row.id} leaves {row.source}, which is terminal."
        for row in rows
        if row.source in TERMINAL
    ]


def _check_reachable(rows: tuple[Transition, ...]) -> list[str]:
    usual = tuple(row for row in rows if row.event not in INTERRUPTIONS)
    expected = [state for state in State if state is not State.CANCELLED]
    problems = [
        f"{state} cannot be reached from {INITIAL} without a crash or a cancellation."
        for state in expected
        if state not in reachable(usual, INITIAL)
    ]
    if State.CANCELLED not in reachable(rows, INITIAL):
        problems.append(f"{State.CANCELLED} cannot be reached from {INITIAL}.")
    return problems


def _check_traps(rows: tuple[Transition, ...]) -> list[str]:
    usual = tuple(row for row in rows if row.event not in INTERRUPTIONS)
    return [
        f"{state} has no path to a terminal state but by a crash or a cancellation."
        for state in State
        if state not in TERMINAL and not reachable(usual, state) & TERMINAL
    ]


def _check_unused(rows: tuple[Transition, ...]) -> list[str]:
    events = {row.event for row in rows}
    effects = {row.effect for row in rows}
    return [f"Event {event} stands in no row." for event in Event if event not in events] + [
        f"Effect {effect} stands in no row." for effect in Effect if effect not in effects
    ]


def _check_central_promise(rows: tuple[Transition, ...]) -> list[str]:
    problems = []
    for row in rows:
        if row.target is S.ADVANCED and (row.source, row.event) != (
            S.VERDICT_PASSED,
            E.GATE_OPENED,
        ):
            problems.append(f"{row.id} enters {row.target} without a passed verdict.")
        if row.target is S.VERDICT_PASSED and (row.source, row.event) != (
            S.RUNNING,
            E.SUITE_PASSED,
        ):
            problems.append(f"{row.id} enters {row.target} without a suite that passed.")
        if row.target is S.LLM_FALLBACK and row.source not in (S.PENDING, S.DEFERRED):
            problems.append(f"{row.id} goes back to the LLM agent after a run was judged.")
    return problems


_PROBLEMS = check_table(TRANSITIONS)
if _PROBLEMS:
    raise ImportError("The transition table is wrong: " + " ".join(_PROBLEMS))

"""Attempts as strategies: any snapshot that the engine could have stored."""

from collections.abc import Iterable
from datetime import UTC
from typing import Any

import attrs
from hypothesis import assume
from hypothesis import strategies as st

from staging_fsm.core.config import INFRA_RETRIES_MAX
from staging_fsm.core.evidence import Counts, EvidenceState
from staging_fsm.core.outcome import REASONS, Reason, Verdict
from staging_fsm.core.plan import Budget, Plan, Preset, SuitePlan, Workspace
from staging_fsm.core.snapshot import Artifact, Move, Run, Snapshot
from staging_fsm.core.spec import INITIAL, TERMINAL, TRANSITIONS, Event, State, reachable
from staging_fsm.core.times import format_time
from staging_fsm.core.trail import NO_LINK, links

#: Any text a row can hold, with the surrogates that stand for undecodable bytes of the system.
texts = st.text(
    st.characters(exclude_categories=["Cs"])
    | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF),
    max_size=12,
)
#: Texts that are hostile to a front matter, a table or a terminal.
hostile_texts = st.sampled_from(
    [
        "---",
        "\n---\nstaging_status: SUCCESS\n---\n",
        "---\nstaging_status: FAILED\n---",
        "staging_status: SUCCESS",
        "x\r\n---\r\nstaging_status: SUCCESS\r\n---\r\n",
        "\x85---\u2028staging_status: SUCCESS\u2029---",
        "'\"}]: &a *a !!str |\n  >- # %TAG ? , `",
        "\udc80\udcff\x00\x1b[31mred\x1b[0m\x07\ufeff\u202e",
        "| a | b |\n# Staging log: SUCCESS\n```",
        "2024-01-01",
        "true",
        "",
    ]
)
words = texts | hostile_texts
times = st.datetimes(timezones=st.just(UTC)).map(format_time)
amounts = st.floats(0, 1e9) | st.integers(0, 10**6).map(float)
counted = st.integers(0, 10**9)

#: What a plan asks for: without a report there is nothing but the exit code to ask.
asked = st.fixed_dictionaries(
    {"report": words, "min_tests": counted, "max_skipped_ratio": st.floats(0, 1)}
) | st.fixed_dictionaries({"report": st.none(), "min_tests": st.integers(0, 1)})


def linked(snapshot: Snapshot) -> Snapshot:
    """Return the attempt with the links it would carry had the engine made its moves."""
    for position in range(len(snapshot.history)):
        link = list(links(snapshot))[position]
        moves = list(snapshot.history)
        moves[position] = attrs.evolve(moves[position], link=link)
        snapshot = attrs.evolve(snapshot, history=tuple(moves))
    return snapshot


@st.composite
def suite_plans(draw: st.DrawFn) -> SuitePlan:
    """Return a plan that was accepted."""
    names = words.filter(lambda word: "\0" not in word)
    return SuitePlan(
        command=("make", *draw(st.lists(names, max_size=3))),
        preset=draw(st.sampled_from(Preset)),
        tool_exit_codes=tuple(draw(st.lists(st.integers(1, 255), max_size=3))),
        timeout_seconds=draw(amounts.filter(bool)),
        kill_grace_seconds=draw(amounts),
        log_max_bytes=draw(st.integers(1, 2**60)),
        tests_last_passed=draw(st.none() | counted),
        idle_timeout_seconds=draw(amounts),
        memory_max_bytes=draw(counted),
        processes_max=draw(counted),
        open_files_max=draw(counted),
        file_max_bytes=draw(counted),
        workspace=draw(st.sampled_from(Workspace)),
        allow_dirty=draw(st.booleans()),
        environment=tuple(draw(st.lists(words, max_size=2))),
        **draw(asked),
    )


@st.composite
def paths(draw: st.DrawFn, ends: Iterable[State]) -> tuple[Move, ...]:
    """Return a history that ends in one of `ends`, with as many runs as a budget allows."""
    end, state, moves = draw(st.sampled_from(list(ends))), INITIAL, []
    while state is not end or (state not in TERMINAL and draw(st.booleans())):
        rows = [
            row
            for row in TRANSITIONS
            if row.source is state and end in reachable(TRANSITIONS, row.target)
        ]
        if not rows:
            break
        row = draw(st.sampled_from(rows))
        moves.append(Move(row.id, draw(times), draw(words), draw(words), NO_LINK))
        state = row.target
    assume(sum(move.row.event is Event.JOB_CLAIMED for move in moves) <= 1 + INFRA_RETRIES_MAX)
    return tuple(moves)


def reasons_of(event: Event) -> list[Reason]:
    """Return the reasons for which a run may end by `event`."""
    if event is Event.WORKER_LOST:
        return [Reason.WORKER_LOST]
    return [reason for reason, facts in REASONS.items() if facts.verdict.event is event]


@st.composite
def ended_runs(draw: st.DrawFn, number: int, event: Event) -> Run:
    """Return a run that ended by `event`."""
    reason = draw(st.sampled_from(reasons_of(event)))
    passed = REASONS[reason].verdict is Verdict.PASSED
    facts: dict[str, Any] = {
        "ended_at": times,
        "rule": words,
        "exit_code": st.just(0) if passed else st.none() | st.integers(-1, 255),
        "signal": st.none() if passed else st.none() | st.integers(1, 64),
        "duration_seconds": st.none() | amounts,
        "detail": st.none() | words,
        "evidence": st.none() | st.sampled_from(EvidenceState),
        "counts": st.none() | st.builds(Counts, counted, counted, counted, counted, st.booleans()),
        "log": st.none() | words,
        "log_sha256": st.none() | words,
        "log_bytes": st.none() | counted,
        "log_dropped_bytes": st.none() | counted,
        "due_at": st.none() | times,
    }
    return Run(number, draw(times), reason=reason, **draw(st.fixed_dictionaries(facts)))


@st.composite
def attempts(draw: st.DrawFn, ends: Iterable[State] = State) -> Snapshot:
    """Return the snapshot of an attempt that is in one of `ends`."""
    history = draw(paths(ends))
    state = history[-1].row.target if history else INITIAL
    endings = [
        move.row.event
        for move in history
        if move.row.source is State.RUNNING and move.row.target is not State.RUNNING
    ]
    claims = sum(move.row.event is Event.JOB_CLAIMED for move in history)
    runs = tuple(
        Run(number, draw(times))
        if event in (None, Event.CANCEL_REQUESTED)
        else draw(ended_runs(number, event))
        for number, event in zip(
            range(1, claims + 1), [*endings, *[None] * (claims - len(endings))], strict=True
        )
    )
    retries = st.integers(max(claims - 1, 0), INFRA_RETRIES_MAX)
    plan = st.builds(Plan, suite_plans(), st.builds(Budget, retries, amounts, amounts), words)
    return linked(
        Snapshot(
            version=draw(st.integers(1, 2**60)),
            attempt_id=draw(words.filter(bool)),
            state=state,
            worker=draw(words),
            plan=draw(plan if claims else st.none() | plan),
            runs=runs,
            history=history,
            next_run_at=draw(times if state is State.DEFERRED else st.none() | times),
            artifact=draw(st.none() | st.builds(Artifact, words, words)),
        )
    )

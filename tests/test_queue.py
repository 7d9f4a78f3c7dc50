"""The block `staging_runner`: what it says of each state, of hostile rows, and what it costs."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import attrs
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from attempts import attempts, words
from memory import MemoryRows, Record, SureHands, Tables
from served import GONE, ME, NOW, WAYS, attempt
from staging_fsm.core.config import variable_name
from staging_fsm.core.jobs import SNAPSHOT_KEY, JobRow
from staging_fsm.core.machine import step
from staging_fsm.core.snapshot import Snapshot, dump_snapshot
from staging_fsm.core.spec import TERMINAL, Event, State
from staging_fsm.core.times import format_time
from staging_fsm.core.trail import walk
from staging_fsm.effects.rows import SqlRows
from staging_fsm.faces.queue import (
    LISTED_MAX,
    OUTCOMES_LISTED,
    RECENT_JOBS,
    STUCK_SECONDS,
    StagingRunnerBlock,
    active_attempt,
    staging_runner_block,
)
from staging_fsm.faces.views import attempt_view, credible_seconds, duration_words, sentence
from staging_fsm.host.database import open_database
from staging_fsm.host.store import SqlHostStore
from trails import BROKEN, CLAIM, CLAIM_AGAIN, ERROR, FAILED, WAIT, walked


def block_of(
    *jobs: Snapshot | str | None, variables: dict[str, str] | None = None, status: str = "running"
) -> StagingRunnerBlock:
    """Return the block over jobs 1, 2, …: an attempt, a broken metadata, or nothing."""
    tables = Tables()
    for number, job in enumerate(jobs, 1):
        text = f'{{"{SNAPSHOT_KEY}": {dump_snapshot(job)}}}' if isinstance(job, Snapshot) else job
        ended = isinstance(job, Snapshot) and job.is_terminal
        tables.jobs[number] = Record(
            number,
            "shop",
            f"WI-{number}",
            "deploy-staging",
            "deployer",
            "done" if ended else status,
            metadata=text or "{}",
        )
    return staging_runner_block(MemoryRows(tables, SureHands()), variables or {}, NOW)


@pytest.mark.parametrize("state", [state for state in WAYS if state not in TERMINAL])
def test_unfinished_attempt_says_what_comes_next(state: State) -> None:
    """Every state that is not terminal is counted and listed, with what happens next in words."""
    block = block_of(attempt(state))
    one = block["attempts"][0]

    assert block["counts"] == {state: 1}
    assert (one["state"], one["run"], one["runs_max"], one["stuck"]) == (state, 1, 3, None)
    assert one["next"].endswith(".")


def test_running_attempt_shows_its_time_against_its_deadline() -> None:
    """A running suite is shown with how long it has lasted and when it will be stopped."""
    one = block_of(attempt(State.RUNNING, ago=90))["attempts"][0]

    assert (one["elapsed_seconds"], one["timeout_seconds"]) == (90.0, 600.0)
    assert one["next"] == "Judged when it ends; stopped in 8 min 30 s."


def test_deferred_attempt_says_when_it_runs_again() -> None:
    """An attempt that waits says for which run, and until when."""
    block = block_of(attempt(State.DEFERRED, due=40))

    assert block["attempts"][0]["next"] == "Run 2 of 3 in 40 s."
    assert block["attempts"][0]["fault"] == "infrastructure"
    assert block["oldest_waiting"] == {
        "job_id": 1,
        "repo": "shop",
        "work_item": "WI-1",
        "state": State.DEFERRED,
        "seconds": 5.0,
    }


def test_longest_wait_is_told_and_listed_first() -> None:
    """Of attempts that wait the one that has waited longest is the oldest, wherever its job is."""
    block = block_of(
        *(attempt(State.DEFERRED, ago=ago, due=40) for ago in (5, 50_000, 500)),
    )

    assert [one["job_id"] for one in block["attempts"]] == [2, 3, 1]
    assert block["oldest_waiting"] is not None
    assert block["oldest_waiting"]["job_id"] == 2


def test_attempt_that_is_stuck_has_not_waited_longest_for_that() -> None:
    """What is listed first, because it will not go on by itself, need not be the oldest."""
    block = block_of(
        attempt(State.DEFERRED, ago=500, due=-LATE), attempt(State.DEFERRED, ago=50_000, due=40)
    )

    assert [one["job_id"] for one in block["attempts"]] == [1, 2]
    assert block["oldest_waiting"] is not None
    assert block["oldest_waiting"]["job_id"] == 2


def test_adopted_run_lasts_since_it_was_started() -> None:
    """A run that changed hands is shown with all its time, and stopped at its old deadline."""
    running = attempt(State.RUNNING, ago=90)
    adopted = walk(
        running, step(State.RUNNING, Event.RUN_ADOPTED), format_time(NOW), "it lives", ME, {}
    )

    assert block_of(adopted)["attempts"][0]["elapsed_seconds"] == 90.0


LATE: Final = STUCK_SECONDS + 1
STUCK: Final = {
    "worker gone": (attempt(State.RUNNING, worker=GONE), "worker is gone"),
    "worker gone with a verdict": (attempt(State.VERDICT_PASSED, worker=GONE), "worker is gone"),
    "past its deadline": (attempt(State.RUNNING, ago=610 + LATE), "Past its deadline by"),
    "not launched": (attempt(State.DEFERRED, due=-LATE), "claimed, but its run has not begun"),
    "not handed over": (attempt(State.EXHAUSTED, ago=LATE), "hand-over has not succeeded"),
}
NOT_STUCK: Final = {
    "worker elsewhere": attempt(State.RUNNING, worker="another-boot/1/1"),
    "worker of no name": attempt(State.RUNNING, worker="?"),
    "being stopped": attempt(State.RUNNING, ago=605),
    "being stopped for as long as its grace": attempt(State.RUNNING, ago=600 + STUCK_SECONDS + 5),
    "just due": attempt(State.DEFERRED, due=-1),
    "deferred by a worker that is gone": attempt(State.DEFERRED, worker=GONE),
    "handing over": attempt(State.EXHAUSTED, ago=LATE - 2),
}


@pytest.mark.parametrize("name", STUCK)
def test_stuck_attempt_comes_first_and_says_why(name: str) -> None:
    """What will not go on by itself is listed before everything else, with the reason."""
    stuck, words_ = STUCK[name]
    block = block_of(attempt(State.RUNNING, ago=90), stuck)

    assert words_ in (block["attempts"][0]["stuck"] or "")
    assert block["attempts"][1]["stuck"] is None


@pytest.mark.parametrize("name", NOT_STUCK)
def test_slow_attempt_is_not_called_stuck(name: str) -> None:
    """What is merely slow, or cannot be judged from this machine, is not called stuck."""
    assert block_of(NOT_STUCK[name])["attempts"][0]["stuck"] is None


@pytest.mark.parametrize("status", ["queued", "running"])
@pytest.mark.parametrize("state", [State.ADVANCED, State.ROLLED_BACK, State.FAILED_CLOSED])
def test_job_that_was_opened_again_after_its_attempt_ended_is_stuck(
    state: State, status: str
) -> None:
    """Nothing ends a job whose gate has ended it before: a person has to."""
    opened, done = (
        JobRow(1, "shop", "WI-1", "deploy-staging", word, None, None) for word in (status, "done")
    )
    ended = attempt(state)

    assert "opened again" in (active_attempt(opened, ended, {}, NOW)["stuck"] or "")
    assert active_attempt(done, ended, {}, NOW)["stuck"] is None


@pytest.mark.parametrize(
    ("status", "due", "told"),
    [
        (
            "queued",
            -LATE,
            (
                "Due 1 min 1 s ago, and no worker has claimed it: is one running? What"
                " staging-fsm run began goes on if you type the same once more."
            ),
        ),
        ("running", -LATE, "Due 1 min 1 s ago, and claimed, but its run has not begun"),
        ("queued", -STUCK_SECONDS, ""),
        ("running", -STUCK_SECONDS, ""),
        ("ON_HOLD", 40.0, "Its job is ON_HOLD, so nobody claims it any more"),
        ("done", -LATE, "Its job is done, so nobody claims it any more"),
    ],
)
def test_next_run_that_does_not_begin_says_whose_turn_it_is(
    status: str, due: float, told: str
) -> None:
    """Of a run that is due it is told whether its job waits for a claim, is claimed, or is over."""
    row = JobRow(1, "shop", "WI-1", "deploy-staging", status, None, None)
    stuck = active_attempt(row, attempt(State.DEFERRED, due=due), {}, NOW)["stuck"] or ""

    assert stuck.startswith(told)
    assert bool(stuck) is bool(told)


def test_job_of_an_agent_is_not_stuck() -> None:
    """A job that the LLM path has is open for as long as the agent takes, and nobody is told."""
    working = JobRow(1, "shop", "WI-1", "deploy-staging", "running", None, None)

    assert active_attempt(working, attempt(State.LLM_FALLBACK), {}, NOW)["stuck"] is None


@pytest.mark.parametrize(
    ("status", "has_agent", "is_stuck"),
    [("queued", False, True), ("queued", True, False), ("running", False, False)],
)
def test_declined_job_that_waits_for_no_agent_is_stuck(
    status: str, *, has_agent: bool, is_stuck: bool
) -> None:
    """Where no agent is configured nobody takes what was declined, and that is said."""
    row = JobRow(1, "shop", "WI-1", "deploy-staging", status, None, None)
    declined = attempt(State.LLM_FALLBACK)
    said = active_attempt(row, declined, {}, NOW, has_agent=has_agent)["stuck"] or ""

    assert ("no LLM agent is configured" in said) is is_stuck


def test_suite_that_runs_does_not_wait() -> None:
    """How long an attempt waits is told of those whose suite does not run."""
    assert block_of(attempt(State.RUNNING, ago=500))["oldest_waiting"] is None


def test_all_that_failed_closed_of_a_day_is_counted() -> None:
    """What failed closed is counted, and not only as far as outcomes are listed."""
    many = OUTCOMES_LISTED + 3

    assert block_of(*[attempt(State.FAILED_CLOSED)] * many)["failed_closed_last_day"] == many


GATE_READ: Final = {
    State.ADVANCED: "SUCCESS",
    State.ROLLED_BACK: "FAILED",
    State.FAILED_CLOSED: "FAILED",
}


@pytest.mark.parametrize("state", WAYS)
def test_view_says_what_the_gate_read(state: State) -> None:
    """The status of an attempt is the word in the artifact that its gate read, or nothing."""
    row = JobRow(1, "shop", "WI-1", "deploy-staging", "running", None, None)
    view = attempt_view(row, attempt(state), None)

    assert view["status"] == GATE_READ.get(state)
    assert [run["duration_seconds"] for run in view["runs"]] == [None] * len(view["runs"])


@pytest.mark.parametrize("state", WAYS)
def test_evidence_is_that_of_a_run_that_was_judged(state: State) -> None:
    """What an outcome rests on is said as soon as there is one, and never before."""
    row = JobRow(1, "shop", "WI-1", "deploy-staging", "running", None, None)
    snapshot = attempt(state)
    view = attempt_view(row, snapshot, None)

    assert (view["evidence"] is None) is (snapshot.last_reason is None)
    assert view["evidence"] in (None, "exit-code")


def test_time_that_cannot_be_is_not_believed() -> None:
    """A clock that was set back makes no time less than nothing, and damage none over a month."""
    assert [credible_seconds(seconds) for seconds in (-5.0, 5.0, 1e12)] == [0.0, 5.0, 30 * 86_400.0]


def test_refused_rows_are_listed_whether_finished_or_not() -> None:
    """A row that cannot be read is listed with its problem, also where its job has ended."""
    damaged = '{"staging_runner": 17}'
    queued = block_of(attempt(State.RUNNING), damaged)
    done = block_of(attempt(State.RUNNING), damaged, status="done")

    for block in (queued, done):
        assert [row["job_id"] for row in block["refused"]] == [2]
        assert "it is a int, not an object" in block["refused"][0]["problem"]


def test_row_that_can_hold_no_attempt_is_not_listed() -> None:
    """Metadata that cannot be read, and does not name our key, is the agent's affair."""
    assert block_of(attempt(State.RUNNING), '["ui"]')["refused"] == []


def test_outcomes_are_the_last_ones_newest_first() -> None:
    """What ended is listed by the time of its end, the last one first, and not without end."""
    ended = [attempt(State.ADVANCED, ago=float(10 * n)) for n in range(OUTCOMES_LISTED + 5)]
    block = block_of(*reversed(ended))
    times = [end["ended_at"] for end in block["last_outcomes"]]

    assert len(times) == OUTCOMES_LISTED
    assert times == sorted(times, reverse=True)
    assert times[0] == format_time(NOW)


def test_failed_closed_of_the_last_day_are_counted() -> None:
    """FAILED_CLOSED counts for a day; whether more jobs than are looked at fell into it is said."""
    day = 24 * 3600.0
    fresh, old = attempt(State.FAILED_CLOSED, day - 1), attempt(State.FAILED_CLOSED, day)
    few = block_of(fresh, old, attempt(State.ADVANCED))
    many = block_of(fresh, *[None] * (RECENT_JOBS - 1))
    many_and_old = block_of(old, fresh, *[None] * (RECENT_JOBS - 2))

    assert (few["failed_closed_last_day"], few["last_day_is_whole"]) == (1, True)
    assert (many["failed_closed_last_day"], many["last_day_is_whole"]) == (1, False)
    assert (many_and_old["failed_closed_last_day"], many_and_old["last_day_is_whole"]) == (1, True)


def test_counts_count_what_is_not_listed() -> None:
    """However many attempts are active, the list is bounded and the counts are not."""
    block = block_of(*[attempt(State.RUNNING)] * (LISTED_MAX + 1))

    assert len(block["attempts"]) == LISTED_MAX
    assert block["counts"] == {State.RUNNING: LISTED_MAX + 1}


def test_configuration_is_said() -> None:
    """Kill switch and scope are shown; an invalid configuration shows as off, and why."""
    on = {variable_name("enabled"): "1", variable_name("repos"): "b,a"}
    wrong = {variable_name("enabled"): "1", variable_name("timeout_seconds"): "soon"}

    assert block_of(variables=on)["enabled"]
    assert block_of(variables=on)["scope"] == ["a", "b"]
    assert not block_of(variables=wrong)["enabled"]
    assert variable_name("timeout_seconds") in block_of(variables=wrong)["problems"][0]


@pytest.mark.parametrize(("enabled", "shadow"), [("1", "1"), ("1", "0"), ("0", "1")])
def test_shadow_mode_is_said(enabled: str, shadow: str) -> None:
    """Who is the producer is shown: in shadow mode the LLM agent is, unless the runner is off."""
    said = {variable_name("enabled"): enabled, variable_name("shadow"): shadow}

    assert block_of(variables=said)["shadow"] == (enabled == shadow == "1")


@settings(max_examples=40)
@given(attempts=st.lists(attempts() | words, max_size=3), names=words, status=words)
def test_any_row_makes_a_block_of_plain_json(
    attempts: list[Snapshot | str], names: str, status: str
) -> None:
    """Whatever stands in the rows, the block is JSON that any client reads, and moves no cursor."""
    tables = Tables()
    for number, job in enumerate(attempts, 1):
        ours = dump_snapshot(job) if isinstance(job, Snapshot) else json.dumps(job)
        metadata = f'{{"{SNAPSHOT_KEY}": {ours}}}'
        word = ["running", "queued", status][number % 3]
        tables.jobs[number] = Record(number, names, names, "s", "a", word, metadata=metadata)
    block = staging_runner_block(MemoryRows(tables, SureHands()), {}, NOW)
    text = json.dumps(block, ensure_ascii=False, allow_nan=False)

    assert json.loads(text.encode()) == block
    assert all(ord(character) >= 0x20 for character in text)


@pytest.fixture
def state(tmp_path: Path) -> dict[str, str]:
    """Return the variables of a state folder with one run's output."""
    folder = tmp_path / "state" / "runs" / "a.1"
    folder.mkdir(parents=True)
    (folder / "output.log").write_text("first\n\x1b[31mtest_two <b>\x1b[0m\n\n")
    return {variable_name("state_dir"): str(tmp_path / "state")}


def test_last_output_is_the_last_line_that_says_something(state: dict[str, str]) -> None:
    """A running suite is shown with the last line it printed, without its colours."""
    one = block_of(attempt(State.RUNNING), variables=state)["attempts"][0]

    assert one["last_output"] == "test_two <b>"


def test_last_output_is_that_of_the_run_in_hand(state: dict[str, str]) -> None:
    """A second run is shown with what it printed itself, and with nothing before it did."""
    again = walked(CLAIM, ERROR, WAIT, CLAIM_AGAIN)
    runs = Path(state[variable_name("state_dir")]) / "runs"
    for number in (1, 2):
        folder = runs / f"{again.attempt_id}.{number}"
        folder.mkdir()
        (folder / "output.log").write_text(f"of run {number}\n")

    assert block_of(again, variables=state)["attempts"][0]["last_output"] == "of run 2"


@pytest.mark.parametrize(
    "name",
    [
        *("../..", "../../other/x", "x/../../../secret", "\0", "link", "/etc"),
        # One that lies beside it by a name that begins alike, and one within a run's own.
        *("../runs.old/x", "a.1/x"),
    ],
)
def test_no_name_in_a_row_leaves_the_folder_of_runs(
    name: str, state: dict[str, str], tmp_path: Path
) -> None:
    """An attempt's id that names another folder, or a link out of ours, reads nothing."""
    state_dir = tmp_path / "state"
    within = (state_dir, state_dir / "runs.old" / "x.1", state_dir / "runs" / "a.1" / "x.1")
    for folder in (tmp_path, tmp_path / "secret.1", *within):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "output.log").write_text("secret\n")
    (state_dir / "runs" / "link.1").symlink_to(tmp_path / "secret.1")
    running = attrs.evolve(attempt(State.RUNNING), attempt_id=name)

    assert block_of(running, variables=state)["attempts"][0]["last_output"] is None


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-1, "0 s"),
        (0.52, "0.5 s"),
        (9.95, "10 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (7265, "2 h 1 min"),
        (180_000, "2 d 2 h"),
    ],
)
def test_spans_are_said_in_two_units(seconds: float, expected: str) -> None:
    """A span of time is said as a person would, in two units at most."""
    assert duration_words(seconds) == expected


@pytest.mark.parametrize("event", [Event.CANCEL_REQUESTED, Event.RUNNER_DECLINED])
def test_attempt_that_was_stopped_says_by_whom(event: Event) -> None:
    """Where no run was judged any more the reason is that, and not why an earlier run had ended."""
    stopped = walked(CLAIM, ERROR, WAIT, (event, {}))

    assert sentence(stopped) == stopped.history[-1].reason


def test_log_of_an_attempt_is_that_of_its_last_run() -> None:
    """The log that is named for an attempt is that of the run which decided."""
    first, last = (f"/runs/{number}/output.log" for number in (1, 2))
    runs = (attrs.evolve(BROKEN, log=first), attrs.evolve(FAILED, number=2, log=last))
    failed = walked(CLAIM, ERROR, WAIT, CLAIM_AGAIN, (Event.SUITE_FAILED, {"runs": runs}))
    row = JobRow(7, "shop", "WI-1", "deploy-staging", "running", None, None)

    assert attempt_view(row, failed, None)["log"] == last


@pytest.fixture
def make_table(tmp_path: Path) -> Iterator[Callable[[int], tuple[SqlRows, list[int]]]]:
    """Return a maker of the host's table with so many finished jobs, and a count of its work."""
    engines = []

    def make(finished: int) -> tuple[SqlRows, list[int]]:
        engine = open_database(f"sqlite:///{tmp_path}/{finished}.db")
        engines.append(engine)
        SqlHostStore(engine).create_schema()
        metadata = f'{{"{SNAPSHOT_KEY}": {dump_snapshot(attempt(State.ADVANCED))}}}'
        fill = sa.text(
            "WITH RECURSIVE n (id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < :many)"
            " INSERT INTO jobs SELECT id, 'shop', 'WI-1', 'deploy-staging', 'deployer',"
            " iif(id % (:many / 10) = 0, 'running', 'done'), NULL, NULL,"
            " iif(id > :many - 600, :metadata, '{}'), '', '' FROM n"
        )
        with engine.begin() as connection:
            connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
            connection.execute(fill, {"many": finished, "metadata": metadata})
        engine.dispose()
        work = [0]

        def count() -> int:
            work[0] += 1
            return 0

        sa.event.listen(
            engine, "connect", lambda connection, _: connection.set_progress_handler(count, 100)
        )
        return SqlRows(engine), work

    yield make
    for engine in engines:
        engine.dispose()


def test_cost_does_not_grow_with_what_has_ended(
    make_table: Callable[[int], tuple[SqlRows, list[int]]],
) -> None:
    """For a hundred times as many finished jobs the database does no more than twice the work."""
    small, large = make_table(1_000), make_table(100_000)
    for rows, work in (small, large):
        rows.check()
        work[0] = 0
        assert len(staging_runner_block(rows, {}, NOW)["last_outcomes"]) == OUTCOMES_LISTED

    assert small[1][0] > 0
    assert large[1][0] <= 2 * small[1][0]

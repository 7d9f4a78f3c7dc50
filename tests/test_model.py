"""The model: SPIN tries every interleaving and finds no broken promise, but every seeded bug."""

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import attrs
import pytest

from sources import ROOT
from staging_fsm.core.spec import TERMINAL, TRANSITIONS, Effect, Event, State, Transition
from staging_fsm.faces.diagrams.spin import FILE_NAME, LIVENESS, PROPERTIES, promela

DOCUMENT: Final = ROOT / "docs" / "model.md"

SPIN: Final = shutil.which("spin")
CC: Final = shutil.which("cc")
needs_spin = pytest.mark.skipif(
    SPIN is None or CC is None,
    reason="SPIN and a C compiler check the model: apt-get install spin gcc",
)

DEPTH: Final = 10_000
MEMORY_MEGABYTES: Final = 2_000
SECONDS: Final = 600
#: No partial order reduction: then nobody has to argue that it is sound for these models.
COMMON: Final = ("-w", "-DNOREDUCE", f"-DMEMLIM={MEMORY_MEGABYTES}")
SAFETY: Final = (*COMMON, "-DSAFETY", "-DNOCLAIM")
#: What is searched in full: more crashes with one retry, more retries with one crash.
BOUNDS: Final = (("-DRETRIES=1", "-DCRASHES=2"), ("-DRETRIES=2", "-DCRASHES=1"))
SMALL: Final = ("-DRETRIES=1", "-DCRASHES=1")
STATES_MIN: Final = 1_000_000


@attrs.frozen
class Search:
    """What SPIN's verifier said, and where it was told."""

    model: str
    folder: Path
    output: str

    @property
    def errors(self) -> int:
        """Return how many errors were found."""
        return int(self._number(r"errors: (\d+)"))

    @property
    def states(self) -> int:
        """Return how many states were stored."""
        return int(self._number(r"(\d+) states, stored"))

    @property
    def is_complete(self) -> bool:
        """Say whether every reachable state was searched, with no limit met."""
        limits = ("Search not completed", "max search depth too small", "MEMLIM", "out of memory")
        return not any(words in self.output for words in limits)

    @property
    def found(self) -> str:
        """Return the first error in the verifier's own words, or nothing."""
        found = re.search(r"^pan:1: (.+?) \(at depth", self.output, re.MULTILINE)
        return found[1] if found else ""

    @property
    def has_trail(self) -> bool:
        """Say whether there is a trail that leads to the error."""
        return (self.folder / f"{FILE_NAME}.trail").is_file()

    def unreached(self) -> list[str]:
        """Return the lines of the model, without process ends, that no interleaving reaches."""
        processes = self.output.partition("unreached in proctype")[2].partition("in claim")[0]
        found = re.findall(rf'{re.escape(FILE_NAME)}:(\d+), state \d+, "(.*)"', processes)
        # The ends of the processes are always among them: no list at all is no answer.
        assert found, self.output
        lines = self.model.splitlines()
        return sorted({lines[int(number) - 1] for number, words in found if words != "-end-"})

    def _number(self, pattern: str) -> str:
        found = re.search(pattern, self.output)
        assert found, self.output
        return found[1]


def search(
    model: str,
    folder: Path,
    bounds: tuple[str, ...],
    compiled: tuple[str, ...],
    *options: str,
) -> Search:
    """Have SPIN make a verifier of a model, compile it, and run it."""
    (folder / FILE_NAME).write_text(model, encoding="utf-8")
    _run(folder, str(SPIN), "-a", *bounds, FILE_NAME)
    _run(folder, str(CC), *compiled, "-o", "pan", "pan.c")
    return Search(model, folder, _run(folder, "./pan", f"-m{DEPTH}", *options))


def _run(folder: Path, *command: str) -> str:
    ended = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert ended.returncode == 0 or command[0] == "./pan", f"{command}: {ended.stdout}"
    return ended.stdout + ended.stderr


def marked(model: str) -> str:
    """Return a model in which a choice that only jumps can be seen to be made, as any other."""
    return model.replace("-> goto", "-> assert(true); goto")


def isolate(model: str, name: str) -> str:
    """Return a model that checks one property and passes over every other."""
    for other in PROPERTIES:
        if other != name:
            model = model.replace(f"check({other},", f"pass_over({other},")
    return model.replace(
        "inline check(", "inline pass_over(property, condition) {\n    skip\n}\n\ninline check(", 1
    )


@pytest.mark.parametrize("row", TRANSITIONS, ids=lambda row: row.id)
def test_changed_row_changes_the_model(row: Transition) -> None:
    """The model's moves are the table's rows: without a row, its move is gone."""
    others = tuple(other for other in TRANSITIONS if other is not row)

    assert f"/* {row.id} */" in promela()
    assert f"/* {row.id} */" not in promela(others)


@pytest.mark.parametrize("name", PROPERTIES)
def test_each_property_is_declared_and_checked(name: str) -> None:
    """Each property stands in model and document with its sentence, and is checked somewhere."""
    document = DOCUMENT.read_text(encoding="utf-8")

    assert f"/* {PROPERTIES[name]} */\nbool {name} = true;" in promela()
    assert f"check({name}," in promela()
    assert f"| `{name}` | {PROPERTIES[name]} |" in document


@needs_spin
@pytest.mark.parametrize("bounds", BOUNDS, ids=" ".join)
def test_no_interleaving_breaks_a_property(tmp_path: Path, bounds: tuple[str, ...]) -> None:
    """Of millions of states, all that there are, none breaks a property and none is a dead end."""
    found = search(promela(), tmp_path, bounds, ("-O2", *SAFETY))

    assert (found.found, found.errors, found.is_complete) == ("", 0, True)
    assert re.search(r"assertion violations\s+\+", found.output)
    assert re.search(r"invalid end states\s+\+", found.output)
    assert found.states > STATES_MIN


@needs_spin
def test_every_attempt_ends(tmp_path: Path) -> None:
    """No run of the model goes on for ever without ending its job, fair or not."""
    found = search(promela(), tmp_path, BOUNDS[0], ("-O2", *COMMON), "-a")

    assert (found.found, found.errors, found.is_complete) == ("", 0, True)
    assert re.search(rf"never claim\s+\+ \({LIVENESS}\)", found.output)
    assert re.search(r"acceptance\s+cycles\s+\+", found.output)
    assert found.states > STATES_MIN


@needs_spin
def test_nothing_in_the_model_is_vacuous(tmp_path: Path) -> None:
    """Every choice of the model is made: each row is walked, each terminal state entered."""
    found = search(marked(promela()), tmp_path, BOUNDS[0], ("-O2", *SAFETY))
    unreached = found.unreached()
    walked = [row for row in TRANSITIONS if not any(f"/* {row.id} */" in x for x in unreached)]

    assert found.is_complete
    assert unreached == []
    assert [row.id for row in walked] == [row.id for row in TRANSITIONS]
    assert {row.target for row in walked} >= TERMINAL


IDLE_ROW: Final = (State.EXHAUSTED, Event.BUDGET_LEFT, State.DEFERRED, Effect.NONE)


@needs_spin
@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: added(*IDLE_ROW), "/* T99 */"),
        (lambda: edited((":: effect == NONE ->", ":: false -> goto idle :: else ->")), ":: false"),
    ],
    ids=["row", "choice"],
)
def test_what_nobody_reaches_is_seen(tmp_path: Path, make: Callable[[], str], line: str) -> None:
    """A row that nobody walks, and a choice that nobody makes, show up as unreached."""
    bounds = ("-DRETRIES=1", "-DCRASHES=0", "-DDUPLICATES=0")

    found = search(marked(make()), tmp_path, bounds, ("-O0", *SAFETY))

    assert found.is_complete
    assert any(line in unreached for unreached in found.unreached())


def changed(id_: str, **changes: Any) -> str:
    """Return the model of a table in which one row is different."""
    return promela(
        tuple(attrs.evolve(row, **changes) if row.id == id_ else row for row in TRANSITIONS)
    )


def added(source: State, event: Event, target: State, effect: Effect) -> str:
    """Return the model of a table with one row more."""
    return promela((*TRANSITIONS, Transition("T99", source, event, target, effect)))


def without(id_: str) -> str:
    """Return the model of a table without one of its rows."""
    return promela(tuple(row for row in TRANSITIONS if row.id != id_))


def edited(*edits: tuple[str, str]) -> str:
    """Return the model with pieces of its text replaced, each of which stands there once."""
    model = promela()
    for old, new in edits:
        assert model.count(old) == 1, old
        model = model.replace(old, new)
    return model


MOVED_ONCE: Final = "moves++;\n                check(work_item_moves_once, moves == 1);\n"
NOT_RUNNING: Final = ":: s.state != RUNNING -> goto drive"
RUNS_AGAIN: Final = ":: s.state == RUNNING -> suite[s.runs] = UNBORN; goto set_aside"
GATE_READS: Final = "event = (is_success(artifact) -> GATE_OPENED : GATE_REFUSED);"

#: Each seeded bug: the property that stands against it, and the model that has it.
BUGS: Final[Mapping[str, tuple[str, Callable[[], str]]]] = MappingProxyType(
    {
        "failed_suite_is_a_pass": (
            "no_silent_advance",
            partial(changed, "T04", target=State.VERDICT_PASSED),
        ),
        "gate_may_read_any_artifact": (
            "no_silent_advance",
            partial(edited, ("event == GATE_OPENED && !is_ours(artifact) -> goto write", "false")),
        ),
        "gate_may_contradict_the_verdict": (
            "no_silent_advance",
            partial(added, State.VERDICT_FAILED, Event.GATE_OPENED, State.ADVANCED, Effect.NONE),
        ),
        "suite_is_started_before_its_run_is_counted": (
            "budget_is_total",
            partial(
                edited,
                (
                    "s.version == 0 && !off_at_first -> event = JOB_CLAIMED",
                    "s.version == 0 && !off_at_first -> suite[1] = STARTING; event = JOB_CLAIMED",
                ),
            ),
        ),
        "budget_is_never_spent": (
            "budget_is_total",
            partial(
                edited, ("effect == SPEND_BUDGET && s.runs < RUNS_MAX", "effect == SPEND_BUDGET")
            ),
        ),
        "compare_and_swap_is_dropped": (
            "terminal_is_forever",
            partial(edited, (":: row.version != s.version -> forget(); goto idle\n", "")),
        ),
        "agent_after_the_last_tool_error": (
            "one_producer_per_launch",
            partial(changed, "T08", target=State.LLM_FALLBACK, effect=Effect.SPAWN_AGENT),
        ),
        "agent_after_any_tool_error": (
            "one_producer_per_launch",
            partial(changed, "T07", target=State.LLM_FALLBACK, effect=Effect.SPAWN_AGENT),
        ),
        "switching_off_between_runs_is_not_recorded": (
            "one_producer_per_launch",
            partial(
                edited,
                (
                    ":: s.state == DEFERRED -> event = RUNNER_DECLINED",
                    ":: s.state == DEFERRED -> switched_off = true; goto spawn_agent",
                ),
            ),
        ),
        "recovery_takes_a_claim_away": (
            "one_producer_per_launch",
            partial(
                edited,
                ("(status == QUEUED || queued_again)", "status == QUEUED"),
                (":: queued_again -> forget(); goto idle", ":: false"),
            ),
        ),
        "stale_artifact_is_not_set_aside": (
            "stale_artifact_is_never_read",
            partial(
                edited, ("set_aside:\n        atomic { artifact = ABSENT }", "set_aside: skip;")
            ),
        ),
        "recovery_runs_the_suite_again": (
            "one_live_run_per_job",
            partial(
                edited,
                (NOT_RUNNING, f"{NOT_RUNNING} {RUNS_AGAIN}"),
            ),
        ),
        "lost_run_is_not_reaped": (
            "one_live_run_per_job",
            partial(edited, ("reap_run(); event = WORKER_LOST", "event = WORKER_LOST")),
        ),
        "lost_run_may_still_start": (
            "one_live_run_per_job",
            partial(edited, (":: else -> close_run()", ":: else")),
        ),
        "cancelled_run_is_not_reaped": (
            "no_process_outlives_its_run",
            partial(edited, ("close_run(); reap_run()", "close_run()")),
        ),
        "gate_is_outside_the_transaction": (
            "work_item_moves_once",
            partial(
                edited,
                (f"{MOVED_ONCE}                check(no", "check(no"),
                (GATE_READS, f"{GATE_READS} {MOVED_ONCE}"),
            ),
        ),
        "exhaustion_goes_back_to_the_tool_error": (
            "ended_job_is_terminal",
            partial(changed, "T14", target=State.TOOL_ERROR),
        ),
        "lost_worker_has_no_row": ("table_answers_every_event", partial(without, "T06")),
        "deferred_job_is_not_queued": (LIVENESS, partial(changed, "T07", effect=Effect.NONE)),
        "tool_error_is_forgotten": (LIVENESS, partial(changed, "T05", effect=Effect.NONE)),
    }
)


def test_every_property_can_be_broken() -> None:
    """For each property there is a bug that breaks it."""
    assert {name for name, _ in BUGS.values()} == {*PROPERTIES, LIVENESS}


@needs_spin
@pytest.mark.parametrize("bug", BUGS)
def test_seeded_bug_leaves_a_trail(tmp_path: Path, bug: str) -> None:
    """Each seeded bug breaks the property that stands against it, and SPIN shows how."""
    name, make = BUGS[bug]
    model = isolate(make(), name)

    if name == LIVENESS:
        found = search(model, tmp_path, SMALL, ("-O0", *COMMON), "-a")
        wanted = "acceptance cycle"
    else:
        # -E: a bug may also leave everybody stuck, which is not asked here.
        found = search(model, tmp_path, SMALL, ("-O0", *SAFETY), "-E")
        wanted = f"assertion violated {name}"

    assert (found.found, found.has_trail) == (wanted, True)


@needs_spin
def test_first_launch_relies_on_the_claim_of_its_host(tmp_path: Path) -> None:
    """Only the host's claim keeps two deliveries of a first launch apart when one is switched off.

    A runner that is switched off leaves no trace, so the other delivery cannot see it.
    """
    model = edited(("s.version == 0 && off_at_first ->", "s.version == 0 ->"))
    name = "one_producer_per_launch"

    found = search(isolate(model, name), tmp_path, SMALL, ("-O0", *SAFETY), "-E")

    assert (found.found, found.has_trail) == (f"assertion violated {name}", True)

"""The rules of judging: each rule, each reason, each precedence, and what a pass must show."""

import io
import signal
from collections.abc import Mapping
from itertools import combinations, product
from typing import Any

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from columns import aligned
from conftest import Golden
from staging_fsm.core.evidence import (
    NO_EVIDENCE_REQUIRED,
    Counts,
    Evidence,
    EvidenceState,
    read_junit,
)
from staging_fsm.core.outcome import (
    CRASH_SIGNALS,
    REASONS,
    RULES,
    SHELL_SIGNAL_BASE,
    JudgingPolicy,
    Outcome,
    Reason,
    Retry,
    Rule,
    RunFacts,
    SpawnError,
    Stop,
    Supervision,
    Verdict,
    judge,
)
from staging_fsm.core.plan import PRESETS, Preset, Workspace
from staging_fsm.core.spec import TRANSITIONS, Event

REASONS_HEADER = """\
Every reason: its verdict, how often it may be tried again, and its sentence.
Reasons are stored in rows and counted by people: none is ever renamed.
`pytest --rewrite` writes this file afresh. Commit that only if the change of a verdict
or of a retry was meant, and nothing that was no pass has become one.
"""
WORDS_HEADER = """\
The words that are stored in rows, in results of runs and in artifacts.
`pytest --rewrite` writes this file afresh. Commit that only if a word was added:
one that is renamed cannot be read any more where it was stored.
"""
RULES_HEADER = """\
The rules in their order, first match wins, and the exit codes that each preset knows.
`pytest --rewrite` writes this file afresh. Commit that only if the change was meant:
an order that lets a later rule speak first can turn a tool error into a pass.
"""
SIGNAL_NUMBERS = range(1, 65)
PASSING = Evidence(EvidenceState.READ, Counts(tests=3, failures=0, errors=0, skipped=1))
#: Facts that nothing speaks against, and a policy that asks for all there is to ask.
CLEAN = RunFacts(exit_code=0, log_complete=True, supervision=Supervision.SOUND, evidence=PASSING)
PYTEST = JudgingPolicy(
    PRESETS[Preset.PYTEST].exit_reasons, report_required=True, min_tests=2, max_skipped_ratio=0.5
)
EXIT_CODE_ONLY = JudgingPolicy(
    PRESETS[Preset.NONE].exit_reasons, report_required=False, min_tests=1, max_skipped_ratio=1.0
)
#: Reasons that the engine gives where there are no facts to judge.
OF_THE_ENGINE = {
    Reason.PREPARATION_FAILED,
    Reason.CONFIGURATION_INVALID,
    Reason.MACHINE_UNFIT,
    Reason.INTERNAL_ERROR,
    Reason.WORKER_LOST,
}


def counted(tests: int, failures: int = 0, errors: int = 0, skipped: int = 0) -> Evidence:
    """Return the evidence of a report that was read."""
    return Evidence(EvidenceState.READ, Counts(tests, failures, errors, skipped))


#: Rule, what is different from CLEAN, and the reason that follows.
CASES: list[tuple[str, dict[str, Any], Reason]] = [
    ("J01", {"supervision": Supervision.LOST}, Reason.SUPERVISOR_LOST),
    ("J01", {"supervision": Supervision.FORGED}, Reason.RESULT_UNTRUSTED),
    ("J02", {"tree_changed": True}, Reason.TREE_CHANGED),
    ("J03", {"spawn_error": SpawnError.NOT_FOUND}, Reason.COMMAND_NOT_FOUND),
    ("J03", {"spawn_error": SpawnError.NOT_EXECUTABLE}, Reason.COMMAND_NOT_EXECUTABLE),
    ("J03", {"spawn_error": SpawnError.BAD_INTERPRETER}, Reason.BAD_INTERPRETER),
    ("J03", {"spawn_error": SpawnError.BAD_WORKING_DIRECTORY}, Reason.BAD_WORKING_DIRECTORY),
    ("J03", {"spawn_error": SpawnError.BAD_ARGUMENTS}, Reason.BAD_ARGUMENTS),
    ("J03", {"spawn_error": SpawnError.RESOURCES}, Reason.SPAWN_FAILED),
    ("J04", {"evidence": counted(3, failures=1)}, Reason.TESTS_FAILED),
    ("J04", {"evidence": counted(3, errors=1)}, Reason.TESTS_FAILED),
    ("J04", {"evidence": counted(0, errors=1)}, Reason.TESTS_FAILED),
    ("J05", {"stopped_by": Stop.DEADLINE}, Reason.DEADLINE_EXCEEDED),
    ("J05", {"stopped_by": Stop.IDLE}, Reason.IDLE_TIMEOUT),
    ("J05", {"stopped_by": Stop.MEMORY}, Reason.MEMORY_LIMIT),
    ("J05", {"stopped_by": Stop.PROCESSES}, Reason.PROCESS_LIMIT),
    ("J05", {"stopped_by": Stop.REQUEST}, Reason.STOPPED),
    ("J05", {"stopped_by": Stop.FENCE_LOST}, Reason.FENCE_LOST),
    ("J06", {"exit_code": None}, Reason.NO_EXIT_STATUS),
    ("J06", {"signal": signal.SIGKILL}, Reason.NO_EXIT_STATUS),
    ("J06", {"signal": signal.SIGKILL, "exit_code": 2}, Reason.NO_EXIT_STATUS),
    ("J07", {"signal": signal.SIGSEGV, "exit_code": None}, Reason.CRASHED),
    ("J07", {"exit_code": 139}, Reason.CRASHED),
    ("J07", {"signal": signal.SIGKILL, "exit_code": None}, Reason.KILLED_BY_SIGNAL),
    ("J07", {"exit_code": 137}, Reason.KILLED_BY_SIGNAL),
    ("J07", {"exit_code": 143, "out_of_memory": True}, Reason.KILLED_BY_SIGNAL),
    ("J07", {"exit_code": 130, "out_of_memory": True}, Reason.KILLED_BY_SIGNAL),
    ("J07", {"exit_code": 134, "out_of_memory": True}, Reason.CRASHED),
    ("J07", {"exit_code": 137, "out_of_memory": True}, Reason.OUT_OF_MEMORY),
    (
        "J07",
        {"signal": signal.SIGKILL, "exit_code": None, "out_of_memory": True},
        Reason.OUT_OF_MEMORY,
    ),
    ("J07", {"signal": signal.SIGXFSZ, "exit_code": None}, Reason.FILE_SIZE_LIMIT),
    ("J08", {"exit_code": 127}, Reason.TOOL_EXIT_CODE),
    ("J08", {"exit_code": 4}, Reason.USAGE_ERROR),
    ("J08", {"exit_code": 5}, Reason.NO_TESTS),
    ("J09", {"evidence": Evidence(EvidenceState.MISSING)}, Reason.REPORT_MISSING),
    ("J09", {"evidence": Evidence(EvidenceState.STALE)}, Reason.REPORT_STALE),
    ("J09", {"evidence": Evidence(EvidenceState.UNREADABLE)}, Reason.REPORT_UNREADABLE),
    ("J09", {"evidence": NO_EVIDENCE_REQUIRED}, Reason.REPORT_MISSING),
    ("J09", {"evidence": Evidence(EvidenceState.READ)}, Reason.REPORT_MISSING),
    ("J09", {"evidence": counted(0)}, Reason.NO_TESTS),
    ("J09", {"evidence": counted(3, skipped=3)}, Reason.NO_TESTS),
    ("J09", {"evidence": counted(1)}, Reason.TOO_FEW_TESTS),
    ("J09", {"evidence": counted(5, skipped=3)}, Reason.TOO_MANY_SKIPPED),
    # How many are missing says more than why.
    ("J09", {"evidence": counted(5, skipped=4)}, Reason.TOO_FEW_TESTS),
    ("J10", {"processes_left": 1}, Reason.PROCESSES_LEFT),
    ("J10", {"log_complete": False}, Reason.LOG_INCOMPLETE),
    ("J10", {"processes_left": 1, "log_complete": False}, Reason.PROCESSES_LEFT),
    ("J11", {"exit_code": 1}, Reason.EXIT_CODE),
    ("J11", {"exit_code": 128}, Reason.EXIT_CODE),
    ("J11", {"exit_code": 193}, Reason.EXIT_CODE),
    ("J11", {"exit_code": 255}, Reason.EXIT_CODE),
    ("J11", {"exit_code": -1}, Reason.EXIT_CODE),
    ("J12", {}, Reason.PASSED),
    ("J12", {"out_of_memory": True}, Reason.PASSED),
    ("J12", {"evidence": counted(2)}, Reason.PASSED),
    ("J12", {"evidence": counted(4, skipped=2)}, Reason.PASSED),
]
#: Which facts each rule looks at; to the others it is blind.
LOOKS_AT = {
    "J01": {"supervision"},
    "J02": {"tree_changed"},
    "J03": {"spawn_error"},
    "J04": {"evidence"},
    "J05": {"stopped_by"},
    "J06": {"exit_code", "signal"},
    "J07": {"exit_code", "signal", "out_of_memory"},
    "J08": {"exit_code"},
    "J09": {"evidence"},
    "J10": {"processes_left", "log_complete"},
    "J11": {"exit_code"},
    "J12": set(),
}
CASE_IDS = [f"{rule}-{reason}-{number}" for number, (rule, _, reason) in enumerate(CASES)]

counts = st.builds(Counts, *(st.just(0) | st.integers(0, 9) for _ in attrs.fields(Counts)))
evidences = st.builds(Evidence, st.sampled_from(EvidenceState), st.none() | counts)
policies = st.builds(
    JudgingPolicy,
    exit_reasons=st.sampled_from([facts.exit_reasons for facts in PRESETS.values()]),
    report_required=st.booleans(),
    min_tests=st.integers(0, 5),
    max_skipped_ratio=st.sampled_from([0.0, 0.5, 1.0]),
)
#: What may be different from CLEAN: any fields, to anything, however senseless.
differences = st.fixed_dictionaries(
    {},
    optional={
        "exit_code": st.none() | st.integers() | st.sampled_from([0, False, 0.0]),
        "signal": st.none() | st.integers(-1, 70),
        "spawn_error": st.none() | st.sampled_from(SpawnError),
        "stopped_by": st.none() | st.sampled_from(Stop),
        "out_of_memory": st.booleans(),
        "tree_changed": st.booleans(),
        "log_complete": st.booleans(),
        "processes_left": st.integers(-1, 2),
        "supervision": st.sampled_from(Supervision),
        "evidence": evidences,
    },
)


def test_reasons_are_the_golden_reasons(golden: Golden) -> None:
    """Each reason has the verdict, the retry and the sentence that were agreed on."""
    rows = [
        (reason, facts.verdict, facts.retry, facts.sentence) for reason, facts in REASONS.items()
    ]

    golden("reasons.txt", aligned(rows), REASONS_HEADER)


def test_rules_and_presets_are_the_golden_ones(golden: Golden) -> None:
    """The rules stand in the order, and the presets know the exit codes, that were agreed on."""
    rules = aligned((rule.id, rule.sentence) for rule in RULES)
    codes = aligned(
        (preset, code, reason)
        for preset, facts in PRESETS.items()
        for code, reason in sorted(facts.exit_reasons.items())
    )
    reports = aligned(
        (preset, facts.report, *(facts.reporting or (None, None)))
        for preset, facts in PRESETS.items()
    )

    golden("rules.txt", f"{rules}\n{codes}\n{reports}", RULES_HEADER)


def test_stored_words_are_the_golden_words(golden: Golden) -> None:
    """Each word that is stored anywhere is the one that was agreed on."""
    vocabularies = (Verdict, Retry, SpawnError, Stop, Supervision, EvidenceState, Preset, Workspace)
    rows = [(words.__name__, ", ".join(words)) for words in vocabularies]

    golden("words.txt", aligned(rows), WORDS_HEADER)


@pytest.mark.parametrize(("rule", "changes", "reason"), CASES, ids=CASE_IDS)
def test_rule_gives_its_reason(rule: str, changes: Mapping[str, Any], reason: Reason) -> None:
    """What alone is wrong with a run is what its verdict says."""
    assert judge(attrs.evolve(CLEAN, **changes), PYTEST) == Outcome(reason, rule)


def test_every_rule_and_every_reason_has_its_case() -> None:
    """No rule and no reason is without a case, and no reason is without its facts."""
    assert {rule for rule, _, _ in CASES} == {rule.id for rule in RULES}
    assert {reason for _, _, reason in CASES} == set(Reason) - OF_THE_ENGINE
    assert list(REASONS) == list(Reason)


def test_rules_are_numbered_in_their_order() -> None:
    """The id of a rule says its place, and only the last rule always has a reason."""
    assert [rule.id for rule in RULES] == [f"J{n:02}" for n in range(1, len(RULES) + 1)]
    silent = [rule.id for rule in RULES if rule.judge(CLEAN, PYTEST) is None]
    assert silent == [rule.id for rule in RULES[:-1]]


def coinciding(first: Rule, second: Rule) -> list[tuple[RunFacts, JudgingPolicy, Reason]]:
    """Return facts in which both rules have a reason, with the reason of the first."""
    policy = attrs.evolve(PYTEST, exit_reasons={**PYTEST.exit_reasons, 137: Reason.TOOL_EXIT_CODE})
    changes = {rule.id: [c for id_, c, _ in CASES if id_ == rule.id] for rule in RULES}
    found = []
    for ours, theirs in product(changes[first.id], changes[second.id]):
        for merged in ({**theirs, **ours}, {**ours, **theirs}):
            facts = attrs.evolve(CLEAN, **merged)
            reason = first.judge(facts, policy)
            if reason is not None and second.judge(facts, policy) is not None:
                found.append((facts, policy, reason))
    return found


@pytest.mark.parametrize(
    ("first", "second"), list(combinations(RULES, 2)), ids=lambda rule: rule.id
)
def test_earlier_rule_wins_over_a_later_one(first: Rule, second: Rule) -> None:
    """Where two rules have a reason, no later one is heard, for each pair of rules."""
    cases = coinciding(first, second)
    earlier = RULES[: RULES.index(first)]

    assert cases
    for facts, policy, reason in cases:
        if all(rule.judge(facts, policy) is None for rule in earlier):
            assert judge(facts, policy) == Outcome(reason, first.id)
    assert any(all(rule.judge(f, p) is None for rule in earlier) for f, p, _ in cases)


def test_rules_stand_in_the_order_of_the_design() -> None:
    """Each fact outranks the ones below it: dropped one by one, each in turn is the verdict."""
    everything: dict[str, Any] = {
        "supervision": Supervision.LOST,
        "tree_changed": True,
        "spawn_error": SpawnError.NOT_FOUND,
        "evidence": counted(1, failures=1),
        "stopped_by": Stop.DEADLINE,
        "signal": signal.SIGKILL,
        "exit_code": 139,
        "processes_left": 1,
        "log_complete": False,
    }
    better: list[tuple[dict[str, Any], Reason]] = [
        ({}, Reason.SUPERVISOR_LOST),
        ({"supervision": Supervision.SOUND}, Reason.TREE_CHANGED),
        ({"tree_changed": False}, Reason.COMMAND_NOT_FOUND),
        ({"spawn_error": None}, Reason.TESTS_FAILED),
        ({"evidence": counted(1)}, Reason.DEADLINE_EXCEEDED),
        ({"stopped_by": None}, Reason.NO_EXIT_STATUS),
        ({"signal": None}, Reason.CRASHED),
        ({"exit_code": 127}, Reason.TOOL_EXIT_CODE),
        ({"exit_code": 1}, Reason.TOO_FEW_TESTS),
        ({"evidence": PASSING}, Reason.PROCESSES_LEFT),
        ({"processes_left": 0}, Reason.LOG_INCOMPLETE),
        ({"log_complete": True}, Reason.EXIT_CODE),
        ({"exit_code": 0}, Reason.PASSED),
    ]
    found = []
    for changes, _ in better:
        everything |= changes
        found.append(judge(attrs.evolve(CLEAN, **everything), PYTEST).reason)

    assert found == [reason for _, reason in better]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_rule_is_blind_to_all_but_its_own_facts(rule: Rule) -> None:
    """Whatever else is known of a run, a rule says what it says of its own facts alone."""
    differences_ = [changes for _, changes, _ in CASES]
    for one, other in product(differences_, differences_):
        merged = {**one, **other}
        own = {name: value for name, value in merged.items() if name in LOOKS_AT[rule.id]}
        for policy in (PYTEST, EXIT_CODE_ONLY):
            said = rule.judge(attrs.evolve(CLEAN, **merged), policy)

            assert said == rule.judge(attrs.evolve(CLEAN, **own), policy), merged


@pytest.mark.parametrize("number", SIGNAL_NUMBERS)
def test_signal_and_its_shell_code_mean_the_same(number: int) -> None:
    """A crash of the suite's own is FAILED, any other signal a tool error, also as 128 + n."""
    own = number in {
        signal.SIGILL,
        signal.SIGTRAP,
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGSEGV,
        signal.SIGSYS,
    }
    other = Reason.FILE_SIZE_LIMIT if number == signal.SIGXFSZ else Reason.KILLED_BY_SIGNAL
    expected = Outcome(Reason.CRASHED if own else other, "J07")
    killed = attrs.evolve(CLEAN, exit_code=None, signal=number)
    shell = attrs.evolve(CLEAN, exit_code=SHELL_SIGNAL_BASE + number)

    assert (number in CRASH_SIGNALS) is own
    for policy in (PYTEST, EXIT_CODE_ONLY):
        assert judge(killed, policy) == judge(shell, policy) == expected
    if number != signal.SIGKILL:
        # Somebody else was killed for want of memory.
        starved = attrs.evolve(killed, out_of_memory=True)
        assert judge(starved, PYTEST) == expected


@pytest.mark.parametrize("code", [number for number in range(256) if number != 0])
def test_no_other_exit_code_passes(code: int) -> None:
    """Of all exit codes a process can have, only 0 is a pass, with a report and without."""
    for policy in (PYTEST, EXIT_CODE_ONLY):
        assert judge(attrs.evolve(CLEAN, exit_code=code), policy).verdict is not Verdict.PASSED


@pytest.mark.parametrize("policy", [PYTEST, EXIT_CODE_ONLY], ids=["pytest", "exit-code"])
def test_nothing_known_is_no_pass(policy: JudgingPolicy) -> None:
    """Facts that nobody filled in are a tool error, and none of them looks like a success."""
    assert attrs.astuple(RunFacts(), recurse=False) == (
        *(None, None, None, None, False, False, False, 0),
        Supervision.LOST,
        NO_EVIDENCE_REQUIRED,
    )
    assert judge(RunFacts(), policy).verdict is Verdict.NOT_EXECUTED


@given(differences, policies)
@example({"exit_code": False}, EXIT_CODE_ONLY)
@example({"exit_code": 0.0}, EXIT_CODE_ONLY)
def test_pass_shows_everything(changes: dict[str, Any], policy: JudgingPolicy) -> None:
    """A pass has exit code 0, sound and complete supervision, its tree and the evidence asked."""
    facts = attrs.evolve(CLEAN, **changes)
    if judge(facts, policy).verdict is not Verdict.PASSED:
        return

    assert type(facts.exit_code) is int
    assert facts.exit_code == 0
    assert (facts.signal, facts.spawn_error, facts.stopped_by) == (None, None, None)
    assert facts.supervision is Supervision.SOUND
    assert (facts.tree_changed, facts.log_complete, facts.processes_left) == (False, True, 0)
    shown = facts.evidence.counts
    if shown is not None:
        assert (shown.failures, shown.errors) == (0, 0)
    if policy.report_required:
        assert shown is not None
        assert shown.executed >= max(policy.min_tests, 1)
        assert shown.skipped / shown.tests <= policy.max_skipped_ratio


@given(st.integers(1, 50), st.integers(0, 50), st.integers(0, 50), st.floats(0, 1))
def test_what_was_asked_for_is_enough(
    executed: int, skipped: int, min_tests: int, ratio: float
) -> None:
    """A clean run passes exactly if it ran enough tests and skipped no more than is allowed."""
    facts = attrs.evolve(CLEAN, evidence=counted(executed + skipped, skipped=skipped))
    policy = attrs.evolve(PYTEST, min_tests=min_tests, max_skipped_ratio=ratio)
    enough = executed >= min_tests and skipped / (executed + skipped) <= ratio

    assert (judge(facts, policy).verdict is Verdict.PASSED) is enough


@pytest.mark.parametrize(
    ("ratio", "tests", "allowed"),
    [
        *[("0.00", 100, 0), ("0.01", 100, 1), ("0.29", 100, 29)],
        *[("0.57", 100, 57), ("0.58", 100, 58), ("0.99", 100, 99)],
        *[("0.501", 1000, 501), ("0.5", 1000, 500), ("0.99999", 100_000, 99_999)],
    ],
)
def test_share_of_skipped_tests_is_met_to_the_test(ratio: str, tests: int, allowed: int) -> None:
    """Just as many tests may be skipped as the ratio says, however many there are, and no more."""
    policy = attrs.evolve(PYTEST, min_tests=0, max_skipped_ratio=float(ratio))
    just, more = (
        judge(attrs.evolve(CLEAN, evidence=counted(tests, skipped=skipped)), policy)
        for skipped in (allowed, allowed + 1)
    )

    assert just.reason is Reason.PASSED
    assert more.verdict is Verdict.NOT_EXECUTED


@pytest.mark.parametrize("counts", [Counts(0, 0, 0, 0), Counts(7, 0, 0, 7)], ids=str)
def test_not_one_test_is_no_pass_whatever_was_asked_for(counts: Counts) -> None:
    """A suite that was asked for no test, and ran none, says nothing of what it is to test."""
    policy = attrs.evolve(PYTEST, min_tests=0)
    facts = attrs.evolve(CLEAN, evidence=Evidence(EvidenceState.READ, counts))

    assert judge(facts, policy).reason is Reason.NO_TESTS


@given(evidences)
def test_exit_code_policy_asks_for_no_report(evidence: Evidence) -> None:
    """Where no report is asked for, exit code 0 passes, unless a report shows failures."""
    shown = evidence.counts
    failing = shown is not None and shown.failures + shown.errors > 0
    outcome = judge(attrs.evolve(CLEAN, evidence=evidence), EXIT_CODE_ONLY)

    assert outcome.reason is (Reason.TESTS_FAILED if failing else Reason.PASSED)


@given(differences, policies, st.integers(0, 9), st.integers(0, 9))
def test_failure_floor_is_never_lifted(
    changes: dict[str, Any], policy: JudgingPolicy, failures: int, errors: int
) -> None:
    """A report of this run that shows a failure is FAILED, whatever ended the suite."""
    facts = attrs.evolve(
        CLEAN,
        **{
            **changes,
            "evidence": counted(9, failures, errors + (failures == 0)),
            "supervision": Supervision.SOUND,
            "tree_changed": False,
            "spawn_error": None,
        },
    )

    assert judge(facts, policy) == Outcome(Reason.TESTS_FAILED, "J04")


@given(differences, policies, st.sampled_from(Stop))
def test_stopped_suite_never_passes(
    changes: dict[str, Any], policy: JudgingPolicy, stop: Stop
) -> None:
    """After our own signal there is no pass, whatever the suite said."""
    facts = attrs.evolve(CLEAN, **{**changes, "stopped_by": stop})

    assert judge(facts, policy).verdict is not Verdict.PASSED


@pytest.mark.parametrize(
    ("cases", "reason"),
    [
        ('<testcase name="a"><failure/></testcase><testcase name="a"/>', Reason.TESTS_FAILED),
        ('<testcase name="a"><flakyFailure/></testcase>', Reason.PASSED),
    ],
)
def test_retry_that_is_a_case_of_its_own_lifts_no_failure(cases: str, reason: Reason) -> None:
    """A test that passed when it was tried again has failed, unless its one case says it was flaky.

    Gradle writes the one or the other, as `mergeReruns` says, and gotestsum the first.
    """
    report = f'<testsuite name="s">{cases}</testsuite>'.encode()
    evidence = Evidence(EvidenceState.READ, read_junit(io.BytesIO(report)))
    policy = attrs.evolve(PYTEST, min_tests=1)

    assert judge(attrs.evolve(CLEAN, evidence=evidence), policy).reason is reason


@given(differences, policies)
def test_every_facts_have_one_outcome(changes: dict[str, Any], policy: JudgingPolicy) -> None:
    """Any facts have an outcome, always the same: the first reason of the rules."""
    facts = attrs.evolve(CLEAN, **changes)
    outcome = judge(facts, policy)
    spoken = [
        (reason, rule.id) for rule in RULES if (reason := rule.judge(facts, policy)) is not None
    ]

    assert outcome == judge(facts, policy)
    assert (outcome.reason, outcome.rule) == spoken[0]


@pytest.mark.parametrize(
    ("verdict", "event"),
    [
        (Verdict.PASSED, Event.SUITE_PASSED),
        (Verdict.FAILED, Event.SUITE_FAILED),
        (Verdict.NOT_EXECUTED, Event.SUITE_NOT_EXECUTED),
    ],
)
def test_verdict_is_an_event_of_the_table(verdict: Verdict, event: Event) -> None:
    """Each verdict is one event, and the table has a row for it."""
    reason = next(reason for reason, facts in REASONS.items() if facts.verdict is verdict)

    assert verdict.event is Outcome(reason, "").event is event
    assert event in {row.event for row in TRANSITIONS}


def test_one_reason_passes() -> None:
    """Of all reasons only `passed` is a pass, and it is of the last rule alone."""
    passing = [reason for reason, facts in REASONS.items() if facts.verdict is Verdict.PASSED]

    assert passing == [Reason.PASSED]
    assert [rule for rule, _, reason in CASES if reason is Reason.PASSED] == ["J12"] * 4

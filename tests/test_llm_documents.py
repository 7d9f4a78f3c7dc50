"""The documents about LLMs: what they say to a machine is what the code does."""

import ast
import re
from collections.abc import Iterator

import pytest

from blocks import SITES, yaml_block
from sources import MODULES, ROOT, SOURCE, nodes, tree
from specification import test_functions
from staging_fsm.core.jobs import STAGE
from staging_fsm.faces.settings import every_setting
from staging_fsm.host.contract.gate import ARTIFACT_NAME, STATUS_KEY, _parse_staging_status
from staging_fsm.host.contract.self_deploy import map_exit_code_to_status
from staging_fsm.host.contract.stages import STAGE_AGENTS
from staging_fsm.host.launcher import RESERVED_AGENTS
from staging_fsm.host.settings import HostSettings

ITEMS = yaml_block("docs/llm-determinization-roadmap.md")["items"]
RULES = yaml_block("docs/llm-usage-policy.md")["rules"]
DEPLOYER = yaml_block("agents/deployer.md")
LLM_STAGES = {stage: agent for stage, agent in STAGE_AGENTS.items() if agent not in RESERVED_AGENTS}


def functions() -> Iterator[str]:
    """Yield every function of the code as a site."""
    for module in MODULES:
        for node in ast.walk(tree(SOURCE / module)):
            if isinstance(node, ast.FunctionDef):
                yield f"{module}::{node.name}"


def test_every_stage_is_listed_with_its_producer() -> None:
    """Each stage is a call site: of the LLM, of code, or of the runner with the LLM behind it."""
    producers = {
        stage: "code" if agent in RESERVED_AGENTS else "llm"
        for stage, agent in STAGE_AGENTS.items()
    } | {STAGE: "staging-runner"}
    rows = SITES["call_sites"]

    assert [(row["stage"], row["agent"]) for row in rows] == list(STAGE_AGENTS.items())
    assert {row["stage"]: row["producer"] for row in rows} == producers
    assert [row["stage"] for row in rows if row.get("fallback") == "llm"] == [STAGE]
    assert SITES["command"] == "ORCH_AGENT_COMMAND"
    assert hasattr(HostSettings, "agent_command")


def test_every_llm_stage_is_an_item_of_the_roadmap() -> None:
    """The roadmap decides on each LLM agent, numbered in the order of the stages."""
    assert [(item["stage"], item["agent"]) for item in ITEMS] == list(LLM_STAGES.items())
    assert [item["id"] for item in ITEMS] == [f"A{n}" for n in range(1, len(ITEMS) + 1)]
    assert all(item["why"] for item in ITEMS)


def test_a6_is_the_one_that_is_implemented() -> None:
    """A6, the deployer of deploy-staging, is implemented, by functions and settings that exist."""
    [built] = [item for item in ITEMS if item["status"] == "implemented"]

    assert (built["id"], built["stage"]) == ("A6", STAGE)
    assert {built["implementation"], built["intercept"], built["fallback"]} <= set(functions())
    assert built["fallback"] == SITES["transport"]
    assert {built["kill_switch"], built["scope"]} <= {row.name for row in every_setting()}
    assert (ROOT / built["prompt"]).is_file()


def test_runner_is_asked_before_the_transport() -> None:
    """In `launch_job` the intercept's answer comes before `_spawn`, which it may rule out."""
    [launch_job] = [
        node
        for node in tree(SOURCE / "host/launcher.py").body
        if isinstance(node, ast.FunctionDef) and node.name == "launch_job"
    ]
    called = [
        node.func.id
        for _, node in nodes(launch_job)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]

    assert [n for n in called if n in {"_run_staging_runner_job", "_spawn"}] == [
        "_run_staging_runner_job",
        "_spawn",
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["id"]))
def test_every_rule_of_the_policy_is_held_by_a_test(rule: dict[str, list[str]]) -> None:
    """A rule of the usage policy is a sentence, and the tests that hold it exist."""
    assert str(rule["rule"]).endswith(".")
    assert rule["held_by"]
    assert set(rule["held_by"]) <= set(test_functions())


def test_deployers_prompt_is_that_of_the_fallback() -> None:
    """The deployer's prompt speaks of the stage, the artifact and the words that the gate knows."""
    assert {
        "agent": STAGE_AGENTS[STAGE],
        "stage": STAGE,
        "role": "fallback",
        "primary": "staging-runner",
        "artifact": ARTIFACT_NAME,
        "status_key": STATUS_KEY,
        "status_words": [map_exit_code_to_status(0), map_exit_code_to_status(1)],
    } == DEPLOYER


def test_artifacts_in_the_prompt_are_read_by_the_gate() -> None:
    """An artifact written as the prompt shows it is understood by the gate, word for word."""
    text = (ROOT / "agents/deployer.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)

    assert [_parse_staging_status(block) for block in shown] == DEPLOYER["status_words"]


def test_no_document_speaks_of_code_that_is_gone() -> None:
    """A file or function that a document about LLMs names is there."""
    names = {site.partition("::")[2] for site in functions()}
    for document in sorted(ROOT.glob("docs/llm-*.md")):
        text = document.read_text(encoding="utf-8")
        files = re.findall(r"\b((?:core|drive|effects|host|faces)/[\w/]+\.py)\b", text)

        assert [name for name in files if not (SOURCE / name).is_file()] == []
        assert set(re.findall(r"`(_\w+|launch_job)`", text)) <= names

"""The stages a work item passes, and where each gate outcome leads.

Nothing here knows who produces an artifact; a gate outcome is all that moves a
work item.
"""

from types import MappingProxyType
from typing import Final, Literal

GateOutcome = Literal["success", "failure"]

STAGES: Final = (
    "analysis",
    "architecture",
    "development",
    "review",
    "testing",
    "deploy-staging",
    "deploy",
    "post-deploy",
    "done",
)

#: (stage, gate outcome) -> next stage. A "failure" costs one developer retry.
STAGE_TRANSITIONS: Final = MappingProxyType(
    {
        ("analysis", "success"): "architecture",
        ("analysis", "failure"): "analysis",
        ("architecture", "success"): "development",
        ("architecture", "failure"): "architecture",
        ("development", "success"): "review",
        ("development", "failure"): "development",
        ("review", "success"): "testing",
        ("review", "failure"): "development",
        ("testing", "success"): "deploy-staging",
        ("testing", "failure"): "development",
        ("deploy-staging", "success"): "deploy",
        ("deploy-staging", "failure"): "development",
        ("deploy", "success"): "post-deploy",
        ("deploy", "failure"): "development",
        ("post-deploy", "success"): "done",
        ("post-deploy", "failure"): "development",
    }
)

#: Who works on a stage. The last two are reserved agents: code, not an LLM.
STAGE_AGENTS: Final = MappingProxyType(
    {
        "analysis": "analyst",
        "architecture": "architect",
        "development": "developer",
        "review": "reviewer",
        "testing": "tester",
        "deploy-staging": "deployer",
        "deploy": "deploy-finalizer",
        "post-deploy": "post-deploy-monitor",
    }
)

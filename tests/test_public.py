"""What an orchestrator author imports, and what importing costs."""

import subprocess
import sys

import pytest

import staging_fsm

#: What is loaded for a job that may be ours, and for no other.
NOT_TO_DECLINE = {"yaml", "sqlalchemy", "defusedxml", "structlog", "psutil", "msgspec",
                  "transitions", "subprocess", "socket"}  # fmt: skip


@pytest.mark.parametrize("name", staging_fsm.__all__)
def test_public_name_is_there_and_says_what_it_promises(name: str) -> None:
    """Each public name can be imported, and each class and function of them has a docstring."""
    value = getattr(staging_fsm, name)

    assert not callable(value) or value.__doc__


def test_public_names_are_listed_once() -> None:
    """`__all__`, the homes and `dir` agree."""
    assert sorted(staging_fsm._HOMES) == sorted(staging_fsm.__all__) == sorted(dir(staging_fsm))


def test_unknown_name_is_an_attribute_error() -> None:
    """A name that is not public is refused as any module would."""
    with pytest.raises(AttributeError, match="no attribute 'Runner'"):
        staging_fsm.Runner  # noqa: B018  # looking it up is the point


def test_importing_the_package_loads_no_dependency() -> None:
    """`import staging_fsm` alone loads neither the database library nor the machine's."""
    code = "import staging_fsm, sys; print(sorted({'sqlalchemy', 'transitions'} & {*sys.modules}))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ended.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("stage", "variables"),
    [
        ("development", {"ENABLED": "1", "REPOS": "*"}),
        ("deploy-staging", {}),
        ("deploy-staging", {"ENABLED": "1", "REPOS": "another"}),
    ],
    ids=["another stage", "switched off", "out of scope"],
)
def test_declined_launch_loads_little(stage: str, variables: dict[str, str]) -> None:
    """Whoever declines a launch loads the settings and no more of us: no runner, no table."""
    said = {f"ORCH_STAGING_RUNNER_{name}": value for name, value in variables.items()}
    code = f"""
import sys, staging_fsm
class Rows:
    def check(self): pass
    def load(self, job_id):
        return staging_fsm.JobRow(job_id, "shop", "WI-1", {stage!r}, "running", None, None)
staging = staging_fsm.StagingIntercept.for_host(Rows(), None, None, {said!r})
assert not staging.launch(1)
print(*sorted({{*{sorted(NOT_TO_DECLINE)}}} & {{*sys.modules}}))
print(*sorted(name for name in sys.modules if name.startswith("staging_fsm.")))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    libraries, ours = (set(line.split()) for line in ended.stdout.splitlines())
    loaded = {"core", "core.config", "core.errors", "core.jobs", "core.settings", "drive",
              "drive.intercept", "drive.rulings", "effects", "effects.forks"}  # fmt: skip

    assert not libraries
    assert ours == {f"staging_fsm.{name}" for name in loaded}
    assert ended.stderr == ""

"""What an orchestrator author imports, and what importing costs."""

import subprocess
import sys

import pytest

import staging_fsm


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


def test_declined_launch_loads_little() -> None:
    """A launch that is declined loads no YAML, no database library, no XML and no log renderer."""
    code = """
import sys, staging_fsm
class Rows:
    def check(self): pass
    def load(self, job_id):
        return staging_fsm.JobRow(job_id, "shop", "WI-1", "deploy-staging", "running", None, None)
staging = staging_fsm.StagingIntercept.for_host(Rows(), None, None, {})
assert not staging.launch(1)
print(sorted({"yaml", "sqlalchemy", "defusedxml", "structlog", "psutil"} & {*sys.modules}))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert (ended.stdout.strip(), ended.stderr) == ("[]", "")

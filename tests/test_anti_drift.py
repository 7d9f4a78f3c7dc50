"""TC-14: only one function of the code base starts an LLM, shown on the syntax tree."""

import ast
from collections.abc import Iterator
from pathlib import Path

import staging_fsm

SOURCE = Path(staging_fsm.__file__).parent
#: Whatever can start a process, in any module.
STARTERS = {
    "Popen",
    "run",
    "call",
    "check_call",
    "check_output",
    "system",
    "popen",
    "fork",
    "posix_spawn",
    "posix_spawnp",
    "execv",
    "execve",
    "execvp",
    "execvpe",
    "spawnv",
    "create_subprocess_exec",
    "create_subprocess_shell",
}
MODULES_THAT_START = {"subprocess", "os", "asyncio", "pty", "multiprocessing"}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Yield (function, call) for every call, with the function or method it stands in."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Call):
                    yield function.name, node


def starts_process(call: ast.Call) -> bool:
    """Say whether a call names a way of starting a process."""
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and function.attr in STARTERS
        and isinstance(function.value, ast.Name)
        and function.value.id in MODULES_THAT_START
    )


def test_every_process_start_is_listed() -> None:
    """Each function that starts a process is known here, with what it starts."""
    found = {
        (path.relative_to(SOURCE).as_posix(), name)
        for path in SOURCE.rglob("*.py")
        for name, call in calls(ast.parse(path.read_text(encoding="utf-8")))
        if starts_process(call)
    }

    assert found == {
        ("effects/shim.py", "start"),  # forks the suite
        ("effects/shim.py", "_become_suite"),  # the suite itself
        ("effects/suite.py", "_start_supervisor"),  # the supervisor
        ("effects/worktree.py", "_git"),  # git
        ("faces/demo.py", "_git"),  # git
        ("host/launcher.py", "_git"),  # git
        ("host/launcher.py", "_probe"),  # the monitor's probe
        ("host/launcher.py", "_spawn"),  # the LLM agent: the only transport
    }


def test_only_spawn_starts_the_agent_command() -> None:
    """The configured agent command is read by one function, and only `_spawn` calls it."""
    readers, callers = set(), set()
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and node.attr == "agent_command":
                    readers.add(function.name)
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Name)
                    and node.func.id == "agent_command"
                ):
                    callers.add(function.name)

    assert readers == {"agent_command"}
    assert callers == {"_spawn"}


def test_spawn_is_called_by_launch_job_alone() -> None:
    """No face, no drive and no recovery can start an LLM: `launch_job` is the only way to it."""
    callers = {
        name
        for path in SOURCE.rglob("*.py")
        for name, call in calls(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call.func, ast.Name) and call.func.id == "_spawn"
    }

    assert callers == {"launch_job"}

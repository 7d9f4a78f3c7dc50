"""TC-14: only one function of the code base starts an LLM, shown on the syntax tree.

What may start a process or speak to the network stands in `docs/llm-call-sites.md`.
"""

import ast
import sys
from collections.abc import Iterator

import pytest

from blocks import SITES
from sources import MODULES, SOURCE, nodes, tree

#: Whatever can start a process, in any module.
STARTERS = {
    "Popen",
    "run",
    "call",
    "check_call",
    "check_output",
    "getoutput",
    "getstatusoutput",
    "system",
    "popen",
    "fork",
    "forkpty",
    "posix_spawn",
    "posix_spawnp",
    *(f"exec{suffix}" for suffix in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")),
    *(f"spawn{suffix}" for suffix in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")),
    "spawn",
    "Process",
    "create_subprocess_exec",
    "create_subprocess_shell",
}
MODULES_THAT_START = {"subprocess", "os", "asyncio", "pty", "multiprocessing"}
#: What of the standard library an LLM could be asked through, and what tells other people.
NETWORK_CLIENTS = {
    "apprise",
    "ftplib",
    "http.client",
    "smtplib",
    "socket",
    "ssl",
    "telnetlib",
    "urllib.request",
    "xmlrpc.client",
}


def starts_process(node: ast.AST) -> bool:
    """Say whether a node names a way of starting a process, called or only passed on.

    `asyncio.run` runs a coroutine, in this process.
    """
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        return node.id == "ProcessPoolExecutor"
    return (
        isinstance(node, ast.Attribute)
        and node.attr in STARTERS
        and isinstance(node.value, ast.Name)
        and node.value.id in MODULES_THAT_START
        and (node.value.id, node.attr) != ("asyncio", "run")
    )


def users(name: str) -> set[str]:
    """Return the functions, as sites, that use a function or a setting by its name."""
    return {
        f"{module}::{function}"
        for module in MODULES
        for function, node in nodes(tree(SOURCE / module))
        if (isinstance(node, ast.Attribute) and node.attr == name)
        or (isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load))
    }


def test_every_process_start_is_listed() -> None:
    """Each function that starts a process is listed with what it starts."""
    found = {
        f"{module}::{function}"
        for module in MODULES
        for function, node in nodes(tree(SOURCE / module))
        if starts_process(node)
    }

    assert found == {row["site"] for row in SITES["process_starts"]}
    assert all(row["starts"] for row in SITES["process_starts"])


@pytest.mark.parametrize("module", MODULES)
def test_no_start_hides_behind_another_name(module: str) -> None:
    """What can start a process is called by its module's own name, where it can be seen."""
    hidden = []
    for node in ast.walk(tree(SOURCE / module)):
        if isinstance(node, ast.Import):
            hidden += [n.name for n in node.names if n.name in MODULES_THAT_START and n.asname]
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES_THAT_START:
            hidden += [n.name for n in node.names if n.name in STARTERS | {"*"}]

    assert hidden == []


def test_every_network_client_is_listed() -> None:
    """Each module that imports a client of the network is listed with whom it speaks to."""
    found = set()
    for module in MODULES:
        for _, node in nodes(tree(SOURCE / module)):
            names = [n.name for n in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{n.name}" for n in node.names)]
            found |= {(module, name) for name in names if name in NETWORK_CLIENTS}

    assert found == {(row["module"], row["imports"]) for row in SITES["network_clients"]}
    assert all(row["speaks_to"] for row in SITES["network_clients"])


def imported(module: str) -> Iterator[str]:
    """Yield what a module imports, as dotted names."""
    for node in ast.walk(tree(SOURCE / module)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def test_every_library_is_listed() -> None:
    """Code of others that is used is listed, so that a client of an LLM cannot come in unseen."""
    found = {name.partition(".")[0] for module in MODULES for name in imported(module)}

    assert found - {"staging_fsm", *sys.stdlib_module_names} == set(SITES["libraries"])


def test_spawn_is_the_only_transport() -> None:
    """One function reads the agent's command, and only `_spawn` calls it.

    Everybody else may know no more than whether there is one.
    """
    transports = [row["site"] for row in SITES["process_starts"] if row.get("llm")]

    assert SITES["transport"] == "host/launcher.py::_spawn"
    assert transports == [SITES["transport"]]
    assert users("agent_command") == {
        "host/launcher.py::agent_command",
        "host/settings.py::has_agent",
        SITES["transport"],
    }


def test_spawn_is_called_by_launch_job_alone() -> None:
    """No face, no drive and no recovery can start an LLM: `launch_job` is the only way to it."""
    assert users("_spawn") == {SITES["caller"]}
    assert SITES["caller"] == "host/launcher.py::launch_job"

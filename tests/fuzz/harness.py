"""The runner of the fuzz targets: each for a while, and a crash is named with its reproducer.

`python -m fuzz.harness SECONDS CORPUS_DIR` fuzzes every target and keeps what it finds
in CORPUS_DIR. `python -m fuzz.harness TARGET FILE` runs one target over one file.
"""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType

HERE = Path(__file__).parent
TARGETS = sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.py"))
#: The gate reads 64 KiB of front matter: no input may be so long that it has to say no.
INPUT_MAX_BYTES = 4096
#: A target that needs more than this for one input hangs or hoards.
INPUT_SECONDS, MEMORY_MIB = 60, 1024


def target(name: str) -> ModuleType:
    """Return the target of that name, a module with `fuzz`, which asserts the promise.

    It may have `mutate`, which changes an input as its structure is, or `WORDS` that
    are worth inserting, and `INPUT_MAX_BYTES` where long inputs are slow.
    """
    return importlib.import_module(f"fuzz.fuzz_{name}")


def seeds(name: str) -> list[Path]:
    """Return the committed seeds of a target."""
    return sorted((HERE / "corpus" / name).iterdir())


def fuzz_one(name: str, arguments: list[str]) -> None:
    """Fuzz one target in this process, as libFuzzer's `arguments` say; never returns."""
    import atheris  # type: ignore[import-untyped]  # noqa: PLC0415  # only FUZZ_VENV has it

    with atheris.instrument_imports():
        module = target(name)

    def run(data: bytes) -> None:
        module.fuzz(data)

    mutators: dict[str, Callable[[bytes, int, int], bytes]] = {}
    if hasattr(module, "mutate"):

        def mutate(data: bytes, size_max: int, seed: int) -> bytes:
            def any_bytes(part: bytes) -> bytes:
                return bytes(atheris.Mutate(part, max(len(part) + 16, 64)))

            random = Random(seed)  # noqa: S311  # a mutation is no secret
            return bytes(module.mutate(data, random, any_bytes))[:size_max]

        mutators["custom_mutator"] = mutate
    atheris.Setup([name, *arguments], run, **mutators)
    atheris.Fuzz()


def fuzz_for(name: str, seconds: int, corpus: Path) -> bool:
    """Fuzz one target for a while in a process of its own; return whether it kept its promise."""
    found, crashes = corpus / name, corpus / "crashes"
    found.mkdir(parents=True, exist_ok=True)
    crashes.mkdir(exist_ok=True)
    module, words = target(name), corpus / f"{name}.words"
    # libFuzzer refuses an empty file, wants quotes, and takes any byte as hexadecimal.
    lines = [
        "".join(f"\\x{byte:02x}" for byte in word.encode()) for word in getattr(module, "WORDS", ())
    ]
    words.write_text("# one a line\n" + "".join(f'"{line}"\n' for line in lines), encoding="ascii")
    flags = [
        f"-dict={words}",
        f"-max_total_time={seconds}",
        f"-max_len={getattr(module, 'INPUT_MAX_BYTES', INPUT_MAX_BYTES)}",
        f"-timeout={INPUT_SECONDS}",
        f"-rss_limit_mb={MEMORY_MIB}",
        f"-artifact_prefix={crashes}/{name}-",
        "-print_final_stats=1",
    ]
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "fuzz.harness",
            name,
            *flags,
            str(found),
            str(HERE / "corpus" / name),
        ],
        check=False,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
    )
    said = ended.stderr.decode("utf-8", "replace")
    executions = re.search(r"stat::number_of_executed_units:\s*(\d+)", said)
    kept = ended.returncode == 0 and executions is not None
    if executions and kept:
        report = f"{name}: {executions[1]} executions in {seconds} s, 0 crashes"
    else:
        trail = re.sub(r"(?m)^(#\d|INFO:).*\n", "", said)
        unit = re.search(r"Test unit written to (\S+)", said)
        again = f"PYTHONPATH={HERE.parent} {sys.executable} -m fuzz.harness {name}"
        report = f"{trail}\n{name}: CRASHED; again by: {again} {unit[1] if unit else ''}"
    print(report, flush=True)  # noqa: T201  # the terminal is where a person reads it
    return kept


def main(first: str, *rest: str) -> int:
    """Fuzz every target, or one as libFuzzer's arguments say; return the exit code."""
    if first in TARGETS:
        fuzz_one(first, list(rest))
    kept = [fuzz_for(name, int(first), Path(rest[0]).absolute()) for name in TARGETS]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""`staging-fsm shadow-report`: the evidence for throwing the switch."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from staging_fsm.core.visible import visible
from staging_fsm.drive.shadow import Shadow
from staging_fsm.faces.console import LookingConsole
from staging_fsm.faces.options import json_option
from staging_fsm.faces.shadow import DISAGREED, Comparison, shadow_view


@click.command()
@json_option
def shadow_report(*, as_json: bool) -> None:
    """Show where agent and runner agreed in shadow mode, where not, and what each cost."""
    view = shadow_view(Shadow(os.environ).records.records())
    if as_json:
        click.echo(json.dumps(view))
        return
    console = LookingConsole(highlight=False)
    if not view["launches"]:
        console.print("no launch was noted: shadow mode has not been on, or nothing was launched")
        return
    console.print(_table(view))
    for launch in view["launches"]:
        if launch["comparison"] in DISAGREED:
            _print_disagreement(console, launch)
        elif launch["comparison"] == Comparison.DAMAGED:
            title = f"{launch['work_item']} in {launch['repo']}: damaged. {launch['problem']}."
            console.print(Text(f"\n{visible(title)}"), soft_wrap=True)
    for line in _summary(view):
        console.print(line, soft_wrap=True)


def _table(view: dict[str, Any]) -> Table:
    table = Table("job", "repo", "work item", "agent", "for", "runner", "for", "comparison")
    for launch in view["launches"]:
        agent, runner = launch["agent"], launch["runner"]
        cells = [
            launch["job_id"],
            launch["repo"],
            launch["work_item"],
            "-" if agent is None else ("opened" if agent["opened"] else "refused"),
            "-" if agent is None else f"{agent['seconds']:.1f} s",
            "-" if runner is None else runner["state"],
            "-" if runner is None else f"{runner['seconds']:.1f} s",
            launch["comparison"],
        ]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _print_disagreement(console: Console, launch: dict[str, Any]) -> None:
    agent, runner = launch["agent"], launch["runner"]
    title = f"{launch['work_item']} in {launch['repo']}: {launch['comparison']}. {runner['reason']}"
    console.print(Text(f"\n{visible(title)}"), soft_wrap=True)
    for who, path in (("agent", agent["artifact"]), ("runner", runner["artifact"])):
        console.print(Text(f"  {who}: {path or 'left no artifact'}"), soft_wrap=True)
        if path:
            text = visible(Path(path).read_text(encoding="utf-8", errors="replace"))
            for line in text.splitlines():
                console.print(Text(f"    {line}"), soft_wrap=True)


def _summary(view: dict[str, Any]) -> Iterator[str]:
    counts = view["counts"]
    compared = sum(counts[kind] for kind in (Comparison.AGREED, *DISAGREED))
    disagreed = sum(counts[kind] for kind in DISAGREED)
    tokens = "no agent told of its tokens"
    if view["launches_with_tokens"]:
        tokens = (
            f"{view['input_tokens']:,} tokens in and {view['output_tokens']:,} out,"
            f" as {view['launches_with_tokens']} launches tell"
        )
    others = [Comparison.NO_VERDICT, Comparison.NOT_RUN, Comparison.WAITING]
    if counts[Comparison.DAMAGED]:
        others.append(Comparison.DAMAGED)
    rest = ", ".join(f"{counts[kind]} {kind}" for kind in others)
    yield ""
    yield (
        f"{compared} compared: {counts[Comparison.AGREED]} agreed, {disagreed} disagreed;"
        f" besides, {rest}"
    )
    yield (
        f"where both ran, the agent took {view['agent_seconds']:.1f} s and {tokens};"
        f" the runner took {view['runner_seconds']:.1f} s and none"
    )

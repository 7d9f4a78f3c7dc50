"""The audit as one HTML file that needs nothing else: to be mailed, printed and kept.

It loads nothing, holds no script, and whatever came out of a row is escaped.
"""

from collections.abc import Iterable
from datetime import datetime
from html import escape
from typing import Final

from staging_fsm.core.invariants import INVARIANTS
from staging_fsm.core.snapshot import Snapshot
from staging_fsm.core.times import format_time
from staging_fsm.core.visible import visible
from staging_fsm.faces.audit import Audit, Finding, Severity
from staging_fsm.faces.diagrams import Diagram, svg
from staging_fsm.faces.views import trail_view

_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid; }
td, th { border-color: color-mix(in srgb, currentColor 25%, transparent); }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
td, p { overflow-wrap: anywhere; }
.word { font-weight: 700; padding: .1rem .5rem; border: 2px solid; border-radius: .4rem; }
.sound { color: light-dark(#116329, #3fb950); }
.deviates { color: light-dark(#a40e26, #f85149); }
svg { max-width: 100%; height: auto; }
@media print {
  :root { color-scheme: light; }
  body { margin: 0; max-width: none; font-size: 10pt; }
  tr, figure { break-inside: avoid; }
}
"""
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
_ALSO: Final = (
    "Of each attempt also: the digests of its artifact and its logs, the word in its artifact,"
    " the job's status, and where its work item went."
)


def html_report(seen: Audit, now: datetime, snapshot: Snapshot | None = None) -> str:
    """Return the report of an audit, of one attempt where `snapshot` is given."""
    drawn = Diagram(counts=seen.walked) if snapshot is None else Diagram.of_attempt(snapshot)
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>Audit of staging attempts</title><style>{_STYLE}</style></head><body>",
        "<h1>Audit of staging attempts</h1>",
        *_summary(seen, now),
        *_findings("Deviations", seen, Severity.DEVIATION),
        *_findings("Unclear", seen, Severity.UNCLEAR),
        *_findings("Missing files", seen, Severity.MISSING),
        *([] if snapshot is None else _trail(snapshot)),
        "<h2>What was walked</h2><figure>" + svg(drawn) + "</figure>",
        "<h2>What was checked</h2>",
        _table(
            ("invariant", "promise"),
            ((check.__name__, check.__doc__ or "") for check in INVARIANTS),
        ),
        f"<p>{_ALSO}</p></body></html>\n",
    ]
    return "\n".join(parts)


def _summary(seen: Audit, now: datetime) -> Iterable[str]:
    deviations, missing, unclear = (seen.counts[severity] for severity in Severity)
    word = "DEVIATIONS" if deviations else "UNCLEAR" if unclear else "SOUND"
    kind = "deviates" if deviations or unclear else "sound"
    yield f'<p><span class="word {kind}">{word}</span> as of {format_time(now)}</p>'
    yield (
        f"<p>{seen.attempts} attempts in {seen.rows} rows of the table: {deviations} deviations,"
        f" {missing} files missing{f', {unclear} unclear' if unclear else ''}.</p>"
    )
    yield _table(("state", "attempts"), sorted(seen.states.items()))


def _findings(title: str, seen: Audit, severity: Severity) -> Iterable[str]:
    found = seen.of(severity)
    if not found:
        return
    yield f"<h2>{title}</h2>"
    yield _table(("job", "work item", "check", "what", "what to do"), map(_cells, found))
    if more := seen.counts[severity] - len(found):
        yield f"<p>{more} more of the kind.</p>"


def _cells(finding: Finding) -> tuple[object, ...]:
    whose = f"{finding.repo} {finding.work_item}"
    return finding.job_id, whose, finding.check, finding.problem, finding.to_do


def _trail(snapshot: Snapshot) -> Iterable[str]:
    yield f"<h2>Attempt {_text(snapshot.attempt_id)}</h2>"
    names = ("time", "id", "event", "target", "reason", "worker", "link")
    yield _table(names, ([move[name] for name in names] for move in trail_view(snapshot)))


def _table(names: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in names)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"


def _cell(value: object) -> str:
    number = ' class="number"' if isinstance(value, int) else ""
    return f"<td{number}>{_text(value)}</td>"


def _text(value: object) -> str:
    return escape(visible(str(value)))

"""HTML from templates: everything a row or a suite says is escaped, whatever it is."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import jinja2
from fastapi import Request
from fastapi.responses import HTMLResponse

from staging_fsm.faces.views import duration_words, moment
from staging_fsm.faces.web.pages import FAULTS, TONES
from staging_fsm.faces.web.plot import GLYPHS

#: What the tones of a plot stand for.
LEGEND: Final = {
    "good": "passed",
    "code": "the code failed",
    "bad": "infrastructure: no verdict",
    "running": "running",
    "waiting": "waiting",
    "quiet": "not judged",
}


def _clock(text: str) -> str:
    """Return the time of day of a moment, with its day if that is another than today."""
    when = moment(text)
    if when is None:
        return text
    today = when.date() == datetime.now(UTC).date()
    return when.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def _segment(value: object) -> str:
    """Return a value as one segment of a path."""
    return quote(str(value).encode("utf-8", "replace"), safe="")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clock": _clock, "segment": _segment, "span": duration_words}
    environment.globals |= {
        "tones": TONES,
        "glyphs": GLYPHS,
        "faults": FAULTS,
        "legend": LEGEND,
    }
    return environment


_TEMPLATES: Final = _environment()


def page(
    request: Request, name: str, facts: dict[str, Any], *, status: int = 200, events: str = ""
) -> HTMLResponse:
    """Return the page `name` with `facts`; `events` is what its live updates are asked with."""
    root = request.scope.get("root_path", "")
    text = _TEMPLATES.get_template(f"{name}.html").render(
        root=quote(root),
        here=name,
        as_of=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        events=f"{quote(root)}/events{events}",
        **facts,
    )
    return HTMLResponse(text, status)

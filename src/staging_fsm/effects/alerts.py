"""Alerts: to the log, to a file, and by Apprise where addresses are configured.

An alert never blocks or breaks a move: what goes wrong here is logged and that
is all. The file keeps every alert, delivered or not.
"""

import json
from collections.abc import Callable
from pathlib import Path

from staging_fsm.core.ports import AlertKind
from staging_fsm.core.times import format_time
from staging_fsm.effects.clock import Clock
from staging_fsm.effects.journal import log_error


class FileAlerts:
    """Alerts of one machine."""

    def __init__(
        self, path: Path, clock: Clock, urls: Callable[[], tuple[str, ...]] = tuple
    ) -> None:
        """Append alerts to `path`, and send them to the Apprise addresses `urls` returns."""
        self._path, self._clock, self._urls = path, clock, urls

    def send(self, kind: AlertKind, job_id: object, text: str) -> None:
        """Alert a person. Never raises."""
        try:
            log_error(text, alert=str(kind), job=str(job_id))
            alert = {
                "time": format_time(self._clock.now()),
                "kind": str(kind),
                "job": str(job_id),
                "text": text,
            }
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(alert) + "\n")
            if urls := self._urls():
                self._notify(urls, kind, f"job {job_id}: {text}")
        except Exception as error:  # noqa: BLE001  # an alert that fails must not fail what it tells of
            log_error("an alert could not be delivered", error=str(error), alert=str(kind))

    def _notify(self, urls: tuple[str, ...], kind: AlertKind, text: str) -> None:
        import apprise  # noqa: PLC0415  # optional: the extra "alerts"

        service = apprise.Apprise()
        for url in urls:
            service.add(url)
        if not service.notify(title=f"staging_fsm: {kind}", body=text):
            log_error("Apprise could not deliver an alert", alert=str(kind))

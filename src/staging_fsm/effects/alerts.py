"""Alerts: to the log, to a file, and by Apprise where addresses are configured.

At least once: an alert is on disk before the move it tells of goes on, and what
Apprise could not deliver stays in the outbox and is tried again, later and later.
Never in a storm: the same alert is sent once a day at most, however many workers of
this machine meet its cause, and what has piled up goes out as one message.
Nothing of it blocks or breaks a move: addresses are called from a thread.
"""

import atexit
import contextlib
import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import attrs
import msgspec

from staging_fsm.core.errors import in_words
from staging_fsm.core.ports import AlertKind, Clock
from staging_fsm.core.times import format_time, parse_time
from staging_fsm.effects.files import create_durably, locked, write_durably
from staging_fsm.effects.forks import begin_anew_after_forks
from staging_fsm.effects.journal import log_error
from staging_fsm.effects.state_dir import StateDir

#: So long the same alert is not sent again; then a problem that lasts is told once more.
REPEAT_SECONDS: Final = 86_400
#: Wait before the second try of a delivery; doubled for each further one.
BACKOFF_SECONDS: Final = 60.0
BACKOFF_MAX_SECONDS: Final = 3600.0
#: A delivery that takes longer hangs, and no longer keeps others waiting.
HANGING_SECONDS: Final = 60.0
#: So long a process that ends waits for a delivery under way.
FAREWELL_SECONDS: Final = 5.0
#: More alerts than that are counted in a message, not quoted.
QUOTED_MAX: Final = 20

#: What is told of once for each attempt, whatever it says; the rest once for what it says.
_OF_AN_ATTEMPT: Final = frozenset(
    {AlertKind.FAILED_CLOSED, AlertKind.GATE_CONTRADICTED_VERDICT, AlertKind.INTERNAL_ERROR}
)
#: What many jobs meet at once: the same words are the same alert, whichever job it was.
_OF_A_MACHINE: Final = frozenset({AlertKind.CONFIGURATION_INVALID, AlertKind.MACHINE_UNFIT})
#: A time, an amount, the number of a process, an identifier: another one at each look.
_FLEETING: Final = re.compile(r"[\w-]*\d[\w-]*")


@attrs.frozen
class Alert:
    """One alert in the outbox."""

    time: str
    kind: str
    job: str
    text: str
    tries: int = 0
    next_try_at: str | None = None
    #: Digests of the addresses that have it: an address may hold a secret.
    told: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """Return the alert as one line of a message."""
        return f"{self.kind}: job {self.job}: {self.text}"


@attrs.frozen
class Outbox:
    """The alerts of one machine that have not reached everybody. Its files are its state.

    `<key>.json` is owed, `told/<key>.json` was delivered and keeps its like from
    being sent again; the key says what makes two alerts the same.
    """

    folder: Path

    @property
    def _told(self) -> Path:
        return self.folder / "told"

    def put(self, key: str, alert: Alert) -> bool:
        """Keep an alert durably; False if its like was kept within REPEAT_SECONDS."""
        self._told.mkdir(parents=True, exist_ok=True)
        if self._was_told(key, alert):
            return False
        if not create_durably(self.folder / f"{key}.json", _written(alert)):
            # Of two workers one sends.
            return False
        if self._was_told(key, alert):
            # Delivered between the first look and the link. No lock: a worker that is
            # stopped while it holds one would keep every other from moving.
            (self.folder / f"{key}.json").unlink(missing_ok=True)
            return False
        return True

    def _was_told(self, key: str, alert: Alert) -> bool:
        told = _read(self._told / f"{key}.json")
        return told is not None and _is_like_of(told, alert)

    def owed(self) -> list[Alert]:
        """Return what has not reached everybody yet, oldest first."""
        found = [alert for path in self._names() if (alert := _read(path)) is not None]
        return sorted(found, key=lambda alert: alert.time)

    def _names(self) -> list[Path]:
        try:
            return sorted(self.folder.glob("*.json"))
        except OSError:
            return []

    def is_empty(self) -> bool:
        """Say whether nothing is owed."""
        try:
            with os.scandir(self.folder) as entries:
                return not any(entry.name.endswith(".json") for entry in entries)
        except OSError:
            return True

    def lease(self, now: datetime) -> list[tuple[Path, Alert]]:
        """Return what is due, with its next try put off: for a while it is the caller's alone.

        So a delivery that hangs or crashes counts as one that failed.
        """
        leased = []
        with locked(os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)) as ours:
            # One process at a time; the others have nothing to do here.
            for path in self._names() if ours else ():
                alert = _read(path)
                if alert is None or not _is_due(alert, now):
                    continue
                due = format_time(now + timedelta(seconds=_wait_seconds(alert.tries)))
                alert = attrs.evolve(alert, tries=alert.tries + 1, next_try_at=due)
                write_durably(path, _written(alert))
                leased.append((path, alert))
        return sorted(leased, key=lambda item: item[1].time)

    def settle(self, path: Path, alert: Alert, *, everybody: bool) -> None:
        """Note whom an alert reached; once that is everybody, it is owed no more."""
        if not everybody:
            write_durably(path, _written(alert))
            return
        with contextlib.suppress(FileNotFoundError):
            path.replace(self._told / path.name)
        self._prune(alert)

    def _prune(self, newest: Alert) -> None:
        for path in self._told.glob("*.json"):
            alert = _read(path)
            if alert is None or not _is_like_of(alert, newest):
                path.unlink(missing_ok=True)


class FileAlerts:
    """Alerts of one machine. Safe to use from several threads and processes."""

    def __init__(
        self, state: StateDir, clock: Clock, urls: Callable[[], tuple[str, ...]] = tuple
    ) -> None:
        """Keep alerts in `state`, and send them to the Apprise addresses `urls` returns."""
        self._path, self._clock, self._urls = state.alerts, clock, urls
        self.outbox = Outbox(state.outbox)
        self.begin_anew()
        begin_anew_after_forks(self)

    def begin_anew(self) -> None:
        """Have no thread at work; in a process that was just forked there is none."""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._started, self._wanted = 0.0, False

    def send(
        self, kind: AlertKind, job_id: object, text: str, attempt_id: str | None = None
    ) -> None:
        """Alert a person, unless the same was sent a short while ago. Never raises or waits."""
        try:
            alert = Alert(format_time(self._clock.now()), str(kind), str(job_id), text)
            if self._keep(_key(kind, job_id, text, attempt_id), alert):
                log_error(text, alert=alert.kind, job=alert.job)
                self._append(alert)
            self.deliver()
        except Exception as error:  # noqa: BLE001  # an alert that fails must not fail what it tells of
            log_error(
                "an alert could not be kept", error=in_words(error), alert=str(kind), told=text
            )

    def _keep(self, key: str, alert: Alert) -> bool:
        try:
            return self.outbox.put(key, alert)
        except OSError as error:
            # A full disk is worth an alert: it goes out from memory, as often as it is met.
            log_error("an alert could not be kept", error=in_words(error), alert=alert.kind)
            threading.Thread(target=self._tell_from_memory, args=(alert,), daemon=True).start()
            return True

    def _tell_from_memory(self, alert: Alert) -> None:
        try:
            self._tell([alert])
        except Exception as error:  # noqa: BLE001  # nothing is left to be done about it
            log_error("an alert was lost", error=in_words(error))

    def _append(self, alert: Alert) -> None:
        told = {"time": alert.time, "kind": alert.kind, "job": alert.job, "text": alert.text}
        # Nobody waits for whoever would read a pipe that was put there.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(self._path, flags, 0o644), "a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")

    def deliver(self) -> None:
        """Try what is owed and due, in a thread. Never raises or waits."""
        if self.outbox.is_empty():
            return
        with self._lock:
            self._wanted = True
            if self._thread is not None and time.monotonic() - self._started < HANGING_SECONDS:
                return
            if not self._started:
                # Apprise needs it, and in a process that ends nobody can import it any more.
                import concurrent.futures.thread  # noqa: F401, PLC0415  # seldom needed

                atexit.register(self._farewell)
            self._thread = threading.Thread(target=self._deliver, daemon=True)
            self._started = time.monotonic()
            self._thread.start()

    def _deliver(self) -> None:
        try:
            while self._is_wanted():
                batch = self.outbox.lease(self._clock.now())
                told = self._tell([alert for _, alert in batch])
                for (path, _), (alert, everybody) in zip(batch, told, strict=True):
                    self.outbox.settle(path, alert, everybody=everybody)
        except Exception as error:  # noqa: BLE001  # whatever a service raises: what is owed stays owed
            log_error("alerts could not be delivered", error=in_words(error))
            with self._lock:
                if self._thread is threading.current_thread():
                    self._thread = None

    def _is_wanted(self) -> bool:
        """Say whether this thread shall look once more; if not, it is nobody's any more."""
        with self._lock:
            if self._thread is not threading.current_thread():
                return False
            wanted, self._wanted = self._wanted, False
            if not wanted:
                self._thread = None
            return wanted

    def _tell(self, alerts: list[Alert]) -> list[tuple[Alert, bool]]:
        """Send to each address what it does not have; return whom each alert reached, and if all.

        With no address there is nobody to tell: log and file are all there is.
        """
        urls = {hashlib.sha256(url.encode()).hexdigest()[:16]: url for url in self._urls()}
        reached = {alert: {*alert.told} for alert in alerts}
        for mark, url in urls.items():
            owed = [alert for alert in alerts if mark not in reached[alert]]
            if owed and _notify(url, owed):
                for alert in owed:
                    reached[alert].add(mark)
        return [
            (attrs.evolve(alert, told=tuple(sorted(marks))), marks.issuperset(urls))
            for alert, marks in reached.items()
        ]

    def _farewell(self) -> None:
        thread = self._thread
        if thread is not None:
            thread.join(FAREWELL_SECONDS)


def _key(kind: AlertKind, job_id: object, text: str, attempt_id: str | None) -> str:
    """Return what two alerts have in common that are the same.

    Words in which a digit stands are none of it, or a problem that is worded anew at each
    look would be told at each. Those of a configuration are: they only change if it does,
    and are of no job that could tell two repositories apart. So are a machine's folders.
    Whose attempt is told of is said by `attempt_id`, not by the words.
    """
    about: tuple[str, ...]
    lasting = text
    if kind is not AlertKind.CONFIGURATION_INVALID:
        words = text.split(" ")
        keeps = kind is AlertKind.MACHINE_UNFIT
        lasting = " ".join(
            word if keeps and "/" in word else _FLEETING.sub("#", word) for word in words
        )
    if kind in _OF_A_MACHINE:
        about = (kind, lasting)
    elif attempt_id is None:
        about = (kind, f"{job_id}: {lasting}")
    elif kind in _OF_AN_ATTEMPT:
        about = (kind, attempt_id)
    else:
        about = (kind, attempt_id, lasting)
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]


def is_known_address(url: str) -> bool:
    """Say whether Apprise knows how to reach an address; nobody is asked for that.

    Needs the extra "alerts".
    """
    return _service_at(url) is not None


def _service_at(url: str) -> Any:
    """Return what speaks to an address, None for one that Apprise does not know."""
    import apprise  # noqa: PLC0415  # optional: the extra "alerts"

    # Neither at once nor under a time limit of Apprise's own: both would take threads,
    # and a process that ends starts none any more.
    service = apprise.Apprise(asset=apprise.AppriseAsset(async_mode=False, service_timeout=0))
    with _unheard("apprise"):
        return service if service.add(url) else None


@contextlib.contextmanager
def _unheard(name: str) -> Iterator[None]:
    """Keep what this thread logs under `name` out of every log.

    Apprise writes an address that it does not know there, and whatever is secret in it.
    """
    thread = threading.get_ident()

    def is_heard(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger = logging.getLogger(name)
    logger.addFilter(is_heard)
    try:
        yield
    finally:
        logger.removeFilter(is_heard)


def _notify(url: str, alerts: list[Alert]) -> bool:
    """Send alerts as one message; Apprise waits no longer than four seconds for each answer."""
    service = _service_at(url)
    if service is None:
        # Without the address: it may hold a secret.
        log_error("an address of ORCH_STAGING_RUNNER_ALERT_URLS is none that Apprise knows")
        return False
    title = f"staging_fsm: {alerts[0].kind if len(alerts) == 1 else f'{len(alerts)} alerts'}"
    lines = [f"{alert.time} {alert.line}" for alert in alerts[:QUOTED_MAX]]
    if len(alerts) > QUOTED_MAX:
        lines.append(f"and {len(alerts) - QUOTED_MAX} more: see alerts.jsonl")
    return bool(service.notify(title=title, body="\n".join(lines)))


def _written(alert: Alert) -> bytes:
    return json.dumps(attrs.asdict(alert)).encode()


def _read(path: Path) -> Alert | None:
    """Return the alert in a file; None if it is gone, or no alert."""
    try:
        found = json.loads(path.read_bytes())
        alert = msgspec.convert(found, Alert)
        for moment in (alert.time, alert.next_try_at or alert.time):
            parse_time(moment)
    except (OSError, ValueError, RecursionError):
        return None
    # One of a newer version is left to it: what else it says would be lost.
    return alert if found.keys() <= attrs.fields_dict(Alert).keys() else None


def _wait_seconds(tries: int) -> float:
    # An address may be dead for months: so many times two is beyond every float.
    doubled = BACKOFF_SECONDS * 2.0 ** min(tries, 60)
    return min(BACKOFF_MAX_SECONDS, doubled)


def _is_like_of(told: Alert, alert: Alert) -> bool:
    """Say whether an alert was told a short while before; none is from a time that is to come."""
    age = (parse_time(alert.time) - parse_time(told.time)).total_seconds()
    return 0 <= age < REPEAT_SECONDS


def _is_due(alert: Alert, now: datetime) -> bool:
    """Say whether an alert may be tried; a wait beyond the longest is none: the clock was set."""
    if alert.next_try_at is None:
        return True
    wait = (parse_time(alert.next_try_at) - now).total_seconds()
    return not 0 < wait <= BACKOFF_MAX_SECONDS

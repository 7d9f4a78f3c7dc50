"""Alerts: at least once, never in a storm, and never in the way, at a real HTTP server."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from hosts import HostKit
from staging_fsm.core.ports import AlertKind
from staging_fsm.core.times import format_time
from staging_fsm.effects import alerts as alerting
from staging_fsm.effects.alerts import Alert, FileAlerts, Outbox
from staging_fsm.effects.clock import SystemClock
from staging_fsm.effects.files import create_durably, locked
from staging_fsm.effects.preflight import Health
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.faces.doctor import examine
from staging_fsm.host.launcher import staging_intercept
from webhooks import Webhook, webhooks

#: Apprise imports a module of the standard library that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

PATIENCE_SECONDS = 30
#: Alerts that need nothing but to be sent.
KIND = AlertKind.FAILED_CLOSED


@pytest.fixture
def make_webhook() -> Iterator[Callable[[], Webhook]]:
    """Return a maker of webhooks that answer."""
    with webhooks() as make:
        yield make


@pytest.fixture
def webhook(make_webhook: Callable[[], Webhook]) -> Webhook:
    """Return one webhook."""
    return make_webhook()


@attrs.define
class Calendar:
    """A clock that a test sets."""

    time: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        """Return the time of day."""
        return self.time

    def wait(self, seconds: float) -> None:
        """Set the clock forward."""
        self.time += timedelta(seconds=seconds)

    def wake(self) -> None:
        """Do nothing: nobody sleeps."""


@pytest.fixture
def clock() -> Calendar:
    """Return a clock."""
    return Calendar()


@pytest.fixture
def make(tmp_path: Path, clock: Calendar) -> Callable[..., FileAlerts]:
    """Return a maker of workers' alerts on one machine."""

    def worker(*webhooks: Webhook) -> FileAlerts:
        state = StateDir(tmp_path)
        return FileAlerts(state, clock, lambda: tuple(webhook.url for webhook in webhooks))

    return worker


def settled(alerts: FileAlerts) -> None:
    """Wait until no delivery is under way."""
    thread = alerts._thread
    if thread is not None:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


def kept(folder: Path) -> list[str]:
    """Return the texts of every alert in the file, in order."""
    lines = StateDir(folder).alerts.read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def test_alert_arrives(make: Callable[..., FileAlerts], webhook: Webhook, tmp_path: Path) -> None:
    """An alert is in the file, arrives at the address with job and words, and is owed no more."""
    alerts = make(webhook)
    alerts.send(KIND, 7, "it failed", "7-a")
    settled(alerts)

    assert kept(tmp_path) == ["it failed"]
    assert [message["title"] for message in webhook.messages] == [f"staging_fsm: {KIND}"]
    assert "job 7: it failed" in webhook.text
    assert alerts.outbox.is_empty()


def test_refused_alert_is_kept_and_tried_again(
    make: Callable[..., FileAlerts], webhook: Webhook, clock: Calendar
) -> None:
    """An alert that the address refuses is tried again, later and later, until it arrives."""
    webhook.refuses = True
    alerts = make(webhook)
    alerts.send(KIND, 7, "it failed", "7-a")
    settled(alerts)
    alerts.deliver()
    settled(alerts)
    asked_at_once = webhook.asked
    clock.wait(alerting.BACKOFF_SECONDS)
    alerts.deliver()
    settled(alerts)
    clock.wait(alerting.BACKOFF_SECONDS)
    alerts.deliver()
    settled(alerts)

    # The second wait is twice the first.
    assert (asked_at_once, webhook.asked, webhook.messages) == (1, 2, [])
    assert [alert.tries for alert in alerts.outbox.owed()] == [2]

    webhook.refuses = False
    clock.wait(alerting.BACKOFF_MAX_SECONDS)
    alerts.deliver()
    settled(alerts)

    assert webhook.text.count("it failed") == 1
    assert alerts.outbox.is_empty()


#: An alert that is owed, as its file holds it.
OWED: Final = {"time": "2026-01-31T12:00:00.000000Z", "kind": "k", "job": "1", "text": "it failed"}


def test_address_that_is_dead_for_months_keeps_no_alert(
    make: Callable[..., FileAlerts], webhook: Webhook
) -> None:
    """However often an alert was tried, it is tried again an hour later, and so is every other."""
    alerts = make(webhook)
    alerts.send(KIND, 7, "at first", "7-a")
    settled(alerts)
    webhook.refuses = True
    (alerts.outbox.folder / "old.json").write_text(json.dumps(OWED | {"tries": 100_000}))
    alerts.deliver()
    settled(alerts)
    [owed] = alerts.outbox.owed()
    alerts.deliver()
    settled(alerts)

    assert (owed.tries, webhook.asked) == (100_001, 2)


@pytest.mark.parametrize(
    "document",
    [
        [],
        17,
        OWED | {"tries": "many"},
        OWED | {"told": 7},
        OWED | {"told": [7]},
        OWED | {"time": "today"},
        OWED | {"next_try_at": "tomorrow"},
        OWED | {"text": None},
        OWED | {"of a newer version": 1},
        {"text": "it failed"},
    ],
    ids=str,
)
def test_file_that_is_no_alert_keeps_none(
    make: Callable[..., FileAlerts], webhook: Webhook, document: object
) -> None:
    """What cannot be read as an alert is left where it is, and every other one is delivered."""
    alerts = make(webhook)
    alerts.outbox.folder.mkdir(parents=True)
    strange = alerts.outbox.folder / "0.json"
    strange.write_text(json.dumps(document))
    alerts.send(KIND, 7, "it failed", "7-a")
    settled(alerts)

    assert (webhook.asked, webhook.text.count("it failed")) == (1, 1)
    assert json.loads(strange.read_bytes()) == document


def test_alert_outlives_its_worker(
    make: Callable[..., FileAlerts], webhook: Webhook, clock: Calendar
) -> None:
    """What a worker that is gone could not deliver, the next one of the machine delivers."""
    webhook.refuses = True
    first = make(webhook)
    first.send(KIND, 7, "it failed", "7-a")
    settled(first)
    webhook.refuses = False
    clock.wait(alerting.BACKOFF_MAX_SECONDS)
    second = make(webhook)
    second.deliver()
    settled(second)

    assert webhook.text.count("it failed") == 1


def test_alert_outlives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but what is synced is left after a power cut: an alert's file, and then its name."""
    box, sync = Outbox(tmp_path / "alerts"), os.fsync
    synced = list[tuple[bool, list[str]]]()

    def watched(descriptor: int) -> None:
        names = sorted(path.name for path in box.folder.glob("*.json"))
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), names))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    box.put("key", Alert(format_time(datetime.now(UTC)), KIND, "7", "it failed"))

    assert synced == [(False, []), (True, ["key.json"])]
    assert {path.name for path in box.folder.iterdir()} == {"told", "key.json"}


def test_hanging_address_keeps_nobody_waiting(
    make: Callable[..., FileAlerts], webhook: Webhook, tmp_path: Path
) -> None:
    """While an address hangs, alerts are taken; once it answers, what piled up is one message."""
    webhook.answers.clear()
    alerts = make(webhook)
    alerts.send(KIND, 0, "the first", "0-a")
    webhook.wait_for(lambda: webhook.asked == 1)
    more = alerting.QUOTED_MAX + 5
    for number in range(1, more + 1):
        alerts.send(KIND, number, f"number {number:02}", f"{number}-a")

    assert webhook.messages == []
    assert len(kept(tmp_path)) == more + 1

    webhook.answers.set()
    settled(alerts)

    assert len(webhook.messages) == 2
    assert webhook.messages[1]["title"] == f"staging_fsm: {more} alerts"
    assert webhook.messages[1]["message"].splitlines()[-1] == "and 5 more: see alerts.jsonl"
    assert alerts.outbox.is_empty()


@pytest.mark.parametrize("broken_first", [False, True])
def test_address_that_has_an_alert_is_not_told_again(
    make: Callable[..., FileAlerts],
    make_webhook: Callable[[], Webhook],
    clock: Calendar,
    *,
    broken_first: bool,
) -> None:
    """Where one of two addresses refuses, the other has it at once, and only that one waits."""
    sound, broken = make_webhook(), make_webhook()
    broken.refuses = True
    alerts = make(*[broken, sound] if broken_first else [sound, broken])
    alerts.send(KIND, 7, "it failed", "7-a")
    settled(alerts)
    at_once = [len(webhook.messages) for webhook in (sound, broken)]
    broken.refuses = False
    clock.wait(alerting.BACKOFF_MAX_SECONDS)
    alerts.deliver()
    settled(alerts)

    assert at_once == [1, 0]
    assert [len(webhook.messages) for webhook in (sound, broken)] == [1, 1]


def test_address_that_is_new_is_told_what_is_owed(
    tmp_path: Path, make_webhook: Callable[[], Webhook], clock: Calendar
) -> None:
    """Whom an alert has reached is known by the address, wherever in the list it stands today."""
    old, broken, new = make_webhook(), make_webhook(), make_webhook()
    addresses = [old, broken]
    urls = lambda: tuple(webhook.url for webhook in addresses)  # noqa: E731  # as it is today
    alerts = FileAlerts(StateDir(tmp_path), clock, urls)
    broken.refuses = True
    alerts.send(KIND, 7, "it failed", "7-a")
    settled(alerts)
    broken.refuses = False
    addresses[:] = [new, broken, old]
    clock.wait(alerting.BACKOFF_MAX_SECONDS)
    alerts.deliver()
    settled(alerts)

    assert [len(webhook.messages) for webhook in (old, broken, new)] == [1, 1, 1]


def test_attempt_is_told_of_once_for_each_kind(
    make: Callable[..., FileAlerts], tmp_path: Path
) -> None:
    """An attempt of which an error was told is told of all the same when it fails closed."""
    alerts = make()
    for kind in (AlertKind.INTERNAL_ERROR, AlertKind.FAILED_CLOSED, AlertKind.FAILED_CLOSED):
        alerts.send(kind, 7, str(kind), "7-a")
        settled(alerts)

    assert kept(tmp_path) == [AlertKind.INTERNAL_ERROR, AlertKind.FAILED_CLOSED]


def test_alert_under_way_is_its_workers_alone_from_the_first_try_on(
    make: Callable[..., FileAlerts], webhook: Webhook, clock: Calendar
) -> None:
    """What one worker is sending no other one sends, until its time for that is over."""
    webhook.refuses = True
    one, other = make(webhook), make(webhook)
    one.outbox.put("key", Alert(format_time(clock.now()), "k", "7", "it failed"))
    first = one.outbox.lease(clock.now())
    second = other.outbox.lease(clock.now())
    clock.wait(alerting.BACKOFF_SECONDS)
    third = other.outbox.lease(clock.now())

    assert [len(leased) for leased in (first, second, third)] == [1, 0, 1]
    assert third[0][1].tries == 2


SAME: dict[str, tuple[AlertKind, tuple[Any, str, str | None], tuple[Any, str, str | None]]] = {
    "an attempt that fails closed twice, by a crash": (
        AlertKind.FAILED_CLOSED,
        (7, "in run 2", "7-a"),
        (7, "in run 2, once more", "7-a"),
    ),
    "a configuration that stops every job": (
        AlertKind.CONFIGURATION_INVALID,
        (7, "no number", "7-a"),
        (8, "no number", "8-a"),
    ),
    "a damaged row that every recovery meets": (
        AlertKind.ROW_REFUSED,
        (7, "no JSON", None),
        (7, "no JSON", None),
    ),
    "an attempt gone from its row that two workers meet": (
        AlertKind.ROW_REFUSED,
        (7, "attempt 7-0a1 is gone", "7-0a1"),
        (7, "attempt 7-0a1 is gone", "7-0a1"),
    ),
    "a machine that is full, and fuller, and that attempts meet": (
        AlertKind.MACHINE_UNFIT,
        (7, "disk: 30 MiB free at /srv", "7-a"),
        (8, "disk: 9 MiB free at /srv", "8-a"),
    ),
    "a machine that is full, and fuller, and that jobs meet": (
        AlertKind.MACHINE_UNFIT,
        (7, "disk: 30 MiB and 1023 inodes free at /srv", None),
        (8, "disk: 9 MiB and 17 inodes free at /srv", None),
    ),
    "a remote that says when it refused a push": (
        AlertKind.INTERNAL_ERROR,
        (7, "refused at 2026-01-31T12:00:00.5Z: protected", None),
        (7, "refused at 2026-02-01T01:02:03.25Z: protected", None),
    ),
    "a gate whose error names processes, objects and requests": (
        AlertKind.INTERNAL_ERROR,
        (7, "process 4711, <Tx at 0x7fa0>, id 1b4e28ba-2fa1-11d2-883f-b9a761bde3fb", None),
        (7, "process 12, <Tx at 0x55be1c>, id 6fa459ea-ee8a-3ca4-894e-db77e160355e", None),
    ),
}
OTHER: dict[str, tuple[AlertKind, tuple[Any, str, str | None], tuple[Any, str, str | None]]] = {
    "two attempts of one job": (
        AlertKind.FAILED_CLOSED,
        (7, "in run 2", "7-a"),
        (7, "in run 2", "7-b"),
    ),
    "two attempts of one job that are gone from its row": (
        AlertKind.ROW_REFUSED,
        (7, "attempt 7-0a1 is gone", "7-0a1"),
        (7, "attempt 7-0b2 is gone", "7-0b2"),
    ),
    "two problems of the row of one attempt": (
        AlertKind.ROW_REFUSED,
        (7, "the attempt is gone", "7-a"),
        (7, "the attempt has ended", "7-a"),
    ),
    "two problems of a configuration": (
        AlertKind.CONFIGURATION_INVALID,
        (7, "no number", "7-a"),
        (7, "no suite", "7-a"),
    ),
    "two configurations that differ by a number": (
        AlertKind.CONFIGURATION_INVALID,
        (7, "shop1 has no suite", "7-a"),
        (8, "shop2 has no suite", "8-a"),
    ),
    "two problems of a machine": (
        AlertKind.MACHINE_UNFIT,
        (7, "disk: 30 MiB free at /srv", None),
        (7, "state folder: /srv is no folder", None),
    ),
    "two folders of a machine that differ by a number": (
        AlertKind.MACHINE_UNFIT,
        (7, "repository: /srv/api-v1 is no folder", None),
        (8, "repository: /srv/api-v2 is no folder", None),
    ),
    "two problems of one job": (
        AlertKind.INTERNAL_ERROR,
        (7, "refused at 12:00: protected", None),
        (7, "refused at 12:01: too large", None),
    ),
    "one problem of two jobs, by their numbers": (
        AlertKind.INTERNAL_ERROR,
        (7, "refused at 12:00: protected", None),
        (8, "refused at 12:00: protected", None),
    ),
    "two damaged rows": (
        AlertKind.ROW_REFUSED,
        (7, "no JSON", None),
        (8, "no JSON", None),
    ),
}


@pytest.mark.parametrize(("kind", "first", "second"), SAME.values(), ids=SAME)
def test_same_alert_is_sent_once_by_all_workers(
    make: Callable[..., FileAlerts], kind: AlertKind, first: Any, second: Any, tmp_path: Path
) -> None:
    """What many workers meet, or one worker many times, is told once."""
    make().send(kind, *first)
    make().send(kind, *second)

    assert kept(tmp_path) == [first[1]]


@pytest.mark.parametrize(("kind", "first", "second"), OTHER.values(), ids=OTHER)
def test_another_alert_is_no_repetition(
    make: Callable[..., FileAlerts], kind: AlertKind, first: Any, second: Any, tmp_path: Path
) -> None:
    """Another attempt, another row or another problem is another alert."""
    make().send(kind, *first)
    make().send(kind, *second)

    assert kept(tmp_path) == [first[1], second[1]]


def test_problem_that_lasts_is_told_again_the_next_day(
    make: Callable[..., FileAlerts], clock: Calendar, tmp_path: Path
) -> None:
    """The same problem is told again a day later, and not before."""
    alerts = make()
    for wait in (0, alerting.REPEAT_SECONDS - 1, 1):
        clock.wait(wait)
        alerts.send(AlertKind.ROW_REFUSED, 7, "no JSON")
        settled(alerts)

    assert len(kept(tmp_path)) == 2


def test_problems_that_alternate_are_told_once_each(
    make: Callable[..., FileAlerts], clock: Calendar, tmp_path: Path
) -> None:
    """A problem that was told is not told again the same day because another one came between."""
    alerts = make()
    for job_id in (7, 8, 7, 8):
        alerts.send(AlertKind.ROW_REFUSED, job_id, f"no JSON in {job_id}")
        settled(alerts)
        clock.wait(60)

    assert kept(tmp_path) == ["no JSON in 7", "no JSON in 8"]


def test_wait_by_a_clock_that_was_ahead_is_none(
    make: Callable[..., FileAlerts], webhook: Webhook, clock: Calendar
) -> None:
    """An alert that was put off by a clock that was ahead is tried as soon as that is set right."""
    webhook.refuses = True
    ahead = 2 * alerting.BACKOFF_MAX_SECONDS
    clock.wait(ahead)
    alerts = make(webhook)
    alerts.send(KIND, 7, "it failed", "7-a")
    settled(alerts)
    webhook.refuses = False
    clock.wait(-ahead)
    alerts.deliver()
    settled(alerts)

    assert webhook.text.count("it failed") == 1


def test_alert_of_a_time_to_come_silences_nothing(
    make: Callable[..., FileAlerts], clock: Calendar, tmp_path: Path
) -> None:
    """A clock that was ahead and is set back lets nobody wait until it is there again."""
    alerts = make()
    clock.wait(10 * alerting.REPEAT_SECONDS)
    alerts.send(AlertKind.ROW_REFUSED, 7, "no JSON")
    settled(alerts)
    clock.wait(-10 * alerting.REPEAT_SECONDS)
    alerts.send(AlertKind.ROW_REFUSED, 7, "no JSON")
    settled(alerts)

    assert len(kept(tmp_path)) == 2


def test_pipe_in_the_place_of_the_file_keeps_nobody_waiting(
    make: Callable[..., FileAlerts], tmp_path: Path, webhook: Webhook
) -> None:
    """Where the file of alerts is a pipe nobody reads, an alert is delivered all the same."""
    os.mkfifo(tmp_path / "alerts.jsonl")
    alerts = make(webhook)
    alerts.send(KIND, 7, "it failed", "7-a")
    alerts.deliver()
    settled(alerts)

    assert len(webhook.messages) == 1


def test_two_workers_do_not_deliver_the_same(
    make: Callable[..., FileAlerts], webhook: Webhook, clock: Calendar
) -> None:
    """What is owed is leased by one worker at a time, and tried by that one alone."""
    webhook.refuses = True
    workers = [make(webhook), make(webhook)]
    workers[0].send(KIND, 7, "it failed", "7-a")
    settled(workers[0])
    clock.wait(alerting.BACKOFF_SECONDS)
    webhook.refuses = False
    webhook.answers.clear()
    for worker in workers:
        worker.deliver()
    webhook.wait_for(lambda: webhook.asked == 2)
    webhook.answers.set()
    for worker in workers:
        settled(worker)

    assert (webhook.asked, len(webhook.messages)) == (2, 1)


def test_only_one_worker_leases_at_a_time(
    make: Callable[..., FileAlerts], clock: Calendar, webhook: Webhook
) -> None:
    """While one worker leases what is owed, there is nothing to lease for any other."""
    webhook.refuses = True
    one, other = make(webhook), make(webhook)
    one.send(KIND, 7, "it failed", "7-a")
    settled(one)
    clock.wait(alerting.BACKOFF_MAX_SECONDS)

    with locked(os.open(one.outbox.folder, os.O_RDONLY)) as ours:
        assert (ours, other.outbox.lease(clock.now())) == (True, [])
    assert [alert.text for _, alert in other.outbox.lease(clock.now())] == ["it failed"]


def test_alert_that_another_has_delivered_meanwhile_is_not_sent_again(
    make: Callable[..., FileAlerts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two workers that meet one cause the second sends nothing, however late it is."""
    first, second = make(), make()
    create = create_durably

    def overtaken(path: Path, data: bytes) -> bool:
        monkeypatch.setattr(alerting, "create_durably", create)
        first.send(KIND, 7, "it failed", "7-a")
        settled(first)
        return create(path, data)

    monkeypatch.setattr(alerting, "create_durably", overtaken)
    second.send(KIND, 7, "it failed", "7-a")
    settled(second)

    assert kept(tmp_path) == ["it failed"]
    assert second.outbox.is_empty()


def test_forked_worker_waits_for_no_delivery_of_its_parent(
    make: Callable[..., FileAlerts],
) -> None:
    """A process that is forked while its parent delivers alerts at once all the same."""
    alerts = make()
    told, tell = os.pipe()
    alerts._lock.acquire()
    # As by a thread, which the new process does not have.
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(PATIENCE_SECONDS))
        try:
            alerts.send(KIND, 7, "it failed", "7-a")
            os.write(tell, b"alerted")
        finally:
            os._exit(0)
    alerts._lock.release()
    os.close(tell)
    with os.fdopen(told, "rb") as reading:
        answer = reading.read()
    os.waitpid(pid, 0)

    assert answer == b"alerted"


#: Alerts somebody and has nothing else to do.
LAST_WORDS = """
import pathlib, sys
from staging_fsm.core.ports import AlertKind
from staging_fsm.effects import alerts
from staging_fsm.effects.clock import SystemClock
from staging_fsm.effects.state_dir import StateDir
alerts.FAREWELL_SECONDS = 120.0
state, url = StateDir(pathlib.Path(sys.argv[1])), sys.argv[2]
alerts.FileAlerts(state, SystemClock(), lambda: (url,)).send(
    AlertKind.FAILED_CLOSED, 7, "it failed", "7-a"
)
"""


def test_process_that_ends_waits_for_its_last_delivery(tmp_path: Path, webhook: Webhook) -> None:
    """A command that alerts somebody and ends at once has its alert delivered before."""
    subprocess.run([sys.executable, "-c", LAST_WORDS, str(tmp_path), webhook.url], check=True)

    assert "it failed" in webhook.text


def test_alert_that_cannot_be_linked_goes_out_all_the_same(
    make: Callable[..., FileAlerts], webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a name that is taken says that another sends: a file system without links says none."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    make(webhook).send(KIND, 7, "it failed", "7-a")
    webhook.wait_for(lambda: bool(webhook.messages))

    assert "it failed" in webhook.text


def test_alert_that_cannot_be_kept_goes_out_from_memory(tmp_path: Path, webhook: Webhook) -> None:
    """Where the state folder cannot be written, an alert is sent all the same."""
    (tmp_path / "state").write_text("no folder")
    state = StateDir(tmp_path / "state")
    FileAlerts(state, SystemClock(), lambda: (webhook.url,)).send(KIND, 7, "it failed", "7-a")
    webhook.wait_for(lambda: bool(webhook.messages))

    assert "it failed" in webhook.text


@pytest.mark.parametrize("address", ["no address", "json://127.0.0.1:1"])
def test_address_that_cannot_be_reached_breaks_nothing(
    tmp_path: Path, clock: Calendar, address: str
) -> None:
    """An address that is none, or that nobody listens at, leaves the alert owed."""
    alerts = FileAlerts(StateDir(tmp_path), clock, lambda: (address,))
    alerts.send(KIND, 7, "it failed", "7-a")
    settled(alerts)

    assert [alert.text for alert in alerts.outbox.owed()] == ["it failed"]


def test_address_that_apprise_does_not_know_is_in_no_log(
    tmp_path: Path, clock: Calendar, caplog: pytest.LogCaptureFixture
) -> None:
    """An address may hold a secret: one that is mistyped is told of, and written nowhere."""
    url = "https//hooks.example.org/T/hunter2"
    alerts = FileAlerts(StateDir(tmp_path), clock, lambda: (url,))
    alerts.send(KIND, 7, "it failed", "7-a")
    settled(alerts)
    list(examine({"ORCH_STAGING_RUNNER_ALERT_URLS": url}, StateDir(tmp_path), lambda: "one"))

    assert "is none that Apprise knows" in caplog.text
    assert "hunter2" not in caplog.text


def test_doctor_tells_of_undelivered_alerts(
    make: Callable[..., FileAlerts], webhook: Webhook, tmp_path: Path
) -> None:
    """`doctor` fails while an alert is owed, and says since when and what it says."""
    webhook.refuses = True
    variables = {"ORCH_STAGING_RUNNER_ALERT_URLS": webhook.url}

    def looked_at() -> tuple[Health, str]:
        findings = examine(variables, StateDir(tmp_path), lambda: "a database")
        return next((found.health, found.words) for found in findings if found.name == "alerts")

    before = looked_at()
    alerts = make(webhook)
    alerts.send(KIND, 7, "it failed", "7-a")
    settled(alerts)
    health, words = looked_at()

    assert before == (Health.OK, "1 addresses, nothing undelivered")
    assert health is Health.FAILED
    assert words == (
        f"1 undelivered since 2026-01-01T00:00:00.000000Z, tried 1 times: {KIND}: job 7: it failed"
    )


@pytest.mark.parametrize(
    "address",
    ["slack://bad", '"json://localhost"', "https//hooks.example.org/T/hunter2", "ops@example.org"],
)
def test_doctor_tells_of_an_address_that_apprise_does_not_know(
    tmp_path: Path, webhook: Webhook, address: str
) -> None:
    """`doctor` fails where an alert could reach nobody, says which address, and calls none."""
    variables = {"ORCH_STAGING_RUNNER_ALERT_URLS": f"{webhook.url} {address}"}
    checks = examine(variables, StateDir(tmp_path), lambda: "a database")
    [found] = [check for check in checks if check.name == "alerts"]

    assert found.health is Health.FAILED
    assert "of 2 addresses Apprise does not know number 2: " in found.words
    assert address not in found.words
    assert webhook.asked == 0


@pytest.fixture
def left_behind(tmp_path: Path, webhook: Webhook) -> Callable[[], dict[str, str]]:
    """Return what leaves an alert undelivered, and returns the settings of the next worker."""

    def leave() -> dict[str, str]:
        webhook.refuses = True
        state = StateDir(tmp_path / "state")
        yesterday = Calendar(datetime.now(UTC) - timedelta(hours=12))
        gone = FileAlerts(state, yesterday, lambda: (webhook.url,))
        gone.send(KIND, 7, "it failed", "7-a")
        settled(gone)
        webhook.refuses = False
        return {
            "ORCH_STAGING_RUNNER_STATE_DIR": str(state.root),
            "ORCH_STAGING_RUNNER_ALERT_URLS": webhook.url,
        }

    return leave


def test_recovery_delivers_what_is_owed(
    make_host: Callable[..., HostKit], webhook: Webhook, left_behind: Callable[[], dict[str, str]]
) -> None:
    """What a worker could not deliver goes out when the next one recovers."""
    staging_intercept(make_host().store, SystemClock(), left_behind()).recover()
    webhook.wait_for(lambda: bool(webhook.messages))

    assert webhook.text.count("it failed") == 1

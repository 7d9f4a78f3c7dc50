"""What every store of job rows has to hold, as tests that the author of an adapter subclasses.

    class TestMyRows(JobRowsContract):
        def bench(self):
            return MyBench()

`pytest` collects the tests of the class; another runner calls its methods that begin
with `test_`. Each gets a bench of its own: the rows, and a way round them to the store.
A test that fails says in its docstring what is not held.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

import attrs

from staging_fsm.core.errors import JobNotFoundError, SnapshotRefusedError, StaleSnapshotError
from staging_fsm.core.jobs import QUEUED, SNAPSHOT_KEY, JobRows
from staging_fsm.core.machine import step
from staging_fsm.core.plan import Budget, Plan, SuitePlan
from staging_fsm.core.snapshot import Run, Snapshot, fresh_snapshot
from staging_fsm.core.spec import Event
from staging_fsm.core.times import format_time
from staging_fsm.core.trail import walk

__all__ = ["Bench", "JobRowsContract", "attempt"]

NOW: Final = datetime(2026, 3, 29, 1, 30, 0, 500_000, UTC)
LATER: Final = NOW + timedelta(minutes=15)
#: Keys of the host, of every type that JSON has.
THEIRS: Final[Mapping[str, Any]] = {
    "note": 'é\u2028"\\',
    "nested": {"list": [1, 2.5, None, True, {}], SNAPSHOT_KEY: "not at the top"},
    "": "",
}
#: So many writes by each of two writers at once.
ROUNDS: Final = 20


class Bench(Protocol):
    """The rows under test over an empty store, and what their host does to its own table."""

    @property
    def rows(self) -> JobRows:
        """Return the rows, the same each time."""

    def add(self, metadata: Mapping[str, Any], repo: str = "shop") -> Any:
        """Add a claimed job of `repo` at `deploy-staging`, and return its id."""

    def missing(self) -> Any:
        """Return an id that no job has."""

    def metadata(self, job_id: Any) -> dict[str, Any]:
        """Return the job's metadata as stored, decoded, our key among it."""

    def set_key(self, job_id: Any, key: str, value: Any) -> None:
        """Set one key of the metadata as the host does, beside whoever writes another."""

    def remove_key(self, job_id: Any, key: str) -> None:
        """Remove one key of the metadata as the host does."""


def attempt(version: int, name: str = "contract") -> Snapshot:
    """Return an attempt that was written `version` times: it started, and then changed hands."""
    plan = Plan(SuitePlan(("run-the-suite", "é\u2028\\")), Budget(), "abc123")
    begun = {"plan": plan, "runs": (Run(1, format_time(NOW)),)}
    snapshot = fresh_snapshot(f"1-{name}", "worker")
    for number in range(version):
        event, changes = (Event.RUN_ADOPTED, {}) if number else (Event.JOB_CLAIMED, begun)
        row = step(snapshot.state, event)
        snapshot = walk(snapshot, row, format_time(NOW), "the contract", "worker", changes)
    return snapshot


@contextmanager
def _refused(*kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kinds:
        return
    names = " or ".join(kind.__name__ for kind in kinds)
    message = f"nothing was refused: expected {names}"
    raise AssertionError(message)


def _at_once(*works: Callable[[], None]) -> None:
    """Do all works at the same time; raise what the first of them raised."""
    failures: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # raised again below
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


class JobRowsContract:
    """The contract of `JobRows`, one rule a test."""

    def bench(self) -> Bench:
        """Return a bench over an empty store; called once by each test."""
        message = f"{type(self).__name__} must override bench() to return a Bench over its store"
        raise NotImplementedError(message)

    def test_store_fits(self) -> None:
        """A store that is as it should be has nothing to complain about."""
        self.bench().rows.check()

    def test_what_was_saved_is_loaded(self) -> None:
        """A saved attempt comes back exactly as it was."""
        bench = self.bench()
        job = bench.add({})

        bench.rows.save(job, attempt(1))
        bench.rows.save(job, attempt(2))

        assert bench.rows.load(job).snapshot() == attempt(2)

    def test_row_tells_what_the_host_wrote(self) -> None:
        """A row without our key has no attempt, and everything else as the host wrote it."""
        bench = self.bench()
        job = bench.add(THEIRS)

        row = bench.rows.load(job)

        assert (row.id, row.repo, row.stage) == (job, "shop", "deploy-staging")
        assert (row.status, row.document, row.snapshot()) == ("running", None, None)

    def test_job_that_is_not_there_is_refused(self) -> None:
        """A job that does not exist is not found, and nothing can be saved to it."""
        bench = self.bench()
        job = bench.add({})
        missing = bench.missing()

        with _refused(JobNotFoundError):
            bench.rows.load(missing)
        with _refused(StaleSnapshotError, JobNotFoundError):
            bench.rows.save(missing, attempt(1))

        assert bench.rows.load(job).document is None

    def test_of_two_first_saves_one_wins(self) -> None:
        """The first save of an attempt needs a row without one."""
        bench = self.bench()
        job = bench.add({})
        bench.rows.save(job, attempt(1, "first"))

        with _refused(StaleSnapshotError):
            bench.rows.save(job, attempt(1, "second"))

        assert bench.rows.load(job).snapshot() == attempt(1, "first")

    def test_worker_that_lost_its_claim_changes_nothing(self) -> None:
        """Every write is refused unless the stored version is exactly the one it comes from."""
        bench = self.bench()
        job = bench.add(THEIRS)
        for version in (1, 2, 3):
            bench.rows.save(job, attempt(version))
        before = bench.metadata(job)

        for version in (1, 2, 3, 5):
            with _refused(StaleSnapshotError):
                bench.rows.save(job, attempt(version))
        for version in (1, 2, 4):
            with _refused(StaleSnapshotError):
                bench.rows.requeue(job, LATER, attempt(version))
            with _refused(StaleSnapshotError):
                bench.rows.cancel(job, attempt(version))

        assert bench.metadata(job) == before
        assert bench.rows.load(job).status == "running"

    def test_worker_of_an_attempt_that_was_replaced_changes_nothing(self) -> None:
        """Where another attempt has come to the same version, a worker of the first is refused.

        So it goes where somebody removed our key, to start afresh, while a worker lived.
        """
        bench = self.bench()
        job = bench.add(THEIRS)
        bench.rows.save(job, attempt(1, "first"))
        bench.remove_key(job, SNAPSHOT_KEY)
        bench.rows.save(job, attempt(1, "second"))
        before = bench.metadata(job)

        with _refused(StaleSnapshotError):
            bench.rows.save(job, attempt(2, "first"))
        for once in (False, True):
            with _refused(StaleSnapshotError):
                bench.rows.requeue(job, LATER, attempt(1, "first"), once=once)
        with _refused(StaleSnapshotError):
            bench.rows.cancel(job, attempt(1, "first"))

        assert bench.metadata(job) == before
        assert bench.rows.load(job).status == "running"

    def test_attempt_that_somebody_removed_stays_removed(self) -> None:
        """An attempt whose key is gone is not brought back by its worker."""
        bench = self.bench()
        job = bench.add(THEIRS)
        bench.rows.save(job, attempt(1))
        bench.remove_key(job, SNAPSHOT_KEY)

        with _refused(StaleSnapshotError):
            bench.rows.save(job, attempt(2))

        assert bench.metadata(job) == THEIRS

    def test_other_keys_stay_as_they_are(self) -> None:
        """Whatever we write, the host's keys keep their values."""
        bench = self.bench()
        job = bench.add(THEIRS)

        bench.rows.save(job, attempt(1))
        bench.rows.save(job, attempt(2))
        bench.rows.requeue(job, LATER, attempt(2))
        bench.rows.cancel(job, attempt(2))

        metadata = bench.metadata(job)
        assert metadata.pop(SNAPSHOT_KEY)["version"] == 2
        assert metadata == THEIRS

    def test_key_that_the_host_wrote_meanwhile_stays(self) -> None:
        """A key that the host wrote between our read and our write is kept."""
        bench = self.bench()
        job = bench.add({})
        bench.rows.save(job, attempt(1))
        row = bench.rows.load(job)
        bench.set_key(job, "note", "written in between")

        bench.rows.save(row.id, attempt(2))

        assert bench.metadata(job)["note"] == "written in between"

    def test_host_and_runner_that_write_at_once_lose_nothing(self) -> None:
        """While the host sets keys of its own, each of them and each of our versions arrives."""
        bench = self.bench()
        job = bench.add({})

        def host() -> None:
            for number in range(ROUNDS):
                bench.set_key(job, f"key-{number}", number)

        def runner() -> None:
            for version in range(1, ROUNDS + 1):
                bench.rows.save(job, attempt(version))

        _at_once(host, runner)

        metadata = bench.metadata(job)
        assert metadata.pop(SNAPSHOT_KEY)["version"] == ROUNDS
        assert metadata == {f"key-{number}": number for number in range(ROUNDS)}

    def test_of_two_writers_at_once_one_wins(self) -> None:
        """Of two saves of one version of an attempt at the same time exactly one is accepted."""
        bench = self.bench()
        job = bench.add({})
        together = threading.Barrier(2)
        accepted: list[int] = []

        def writer(name: str) -> Callable[[], None]:
            def write() -> None:
                for version in range(1, ROUNDS + 1):
                    together.wait()
                    try:
                        bench.rows.save(job, attrs.evolve(attempt(version), worker=name))
                    except StaleSnapshotError:
                        continue
                    accepted.append(version)

            return write

        _at_once(writer("one"), writer("other"))

        assert accepted == list(range(1, ROUNDS + 1))

    def test_requeued_job_waits(self) -> None:
        """A requeued job is queued, and due when it was said or within the second after."""
        bench = self.bench()
        job = bench.add({})
        bench.rows.save(job, attempt(1))

        bench.rows.requeue(job, LATER, attempt(1))

        row = bench.rows.load(job)
        assert row.status == QUEUED
        assert row.snapshot() == attempt(1)
        # A store without due times has none to show.
        assert row.not_before is None or LATER <= row.not_before < LATER + timedelta(seconds=1)

    def test_job_that_was_queued_again_is_not_queued_once_more(self) -> None:
        """A job that is to be queued once and is due then already keeps what became of it since.

        So whoever is late takes no claim away. A worker that lost its claim is refused.
        """
        bench = self.bench()
        job = bench.add({})
        bench.rows.save(job, attempt(1))

        bench.rows.requeue(job, LATER, attempt(1), once=True)
        queued = bench.rows.load(job)
        bench.rows.cancel(job, attempt(1))
        with _refused(StaleSnapshotError):
            bench.rows.requeue(job, LATER, attempt(2), once=True)
        # A store without due times cannot know.
        if queued.not_before is not None:
            bench.rows.requeue(job, LATER, attempt(1), once=True)

        assert queued.status == QUEUED
        assert bench.rows.load(job).status == "cancelled"

    def test_job_that_has_ended_is_not_queued_again(self) -> None:
        """A job that somebody has ended stays so, and whoever would queue it is refused."""
        bench = self.bench()
        job = bench.add({})
        bench.rows.save(job, attempt(1))
        bench.rows.cancel(job, attempt(1))

        for once in (False, True):
            with _refused(StaleSnapshotError):
                bench.rows.requeue(job, LATER, attempt(1), once=once)
        # Whoever asks for the same end again has it.
        bench.rows.cancel(job, attempt(1))

        assert bench.rows.load(job).status == "cancelled"

    def test_unfinished_are_the_queued_and_running_rows_with_our_key(self) -> None:
        """Recovery is shown each queued or running row with our key, however broken, and no other.

        An audit is shown those that have ended, too.
        """
        bench = self.bench()
        without, running, queued, cancelled, broken = (bench.add({}) for _ in range(5))
        for job in (running, queued, cancelled):
            bench.rows.save(job, attempt(1))
        bench.rows.requeue(queued, LATER, attempt(1))
        bench.rows.cancel(cancelled, attempt(1))
        bench.set_key(broken, SNAPSHOT_KEY, 17)

        found = {row.id for row in bench.rows.unfinished()}

        assert found == {running, queued, broken}
        assert without not in found
        assert bench.rows.load(cancelled).status == "cancelled"
        every = sorted([running, queued, cancelled, broken])
        assert [row.id for row in bench.rows.attempts()] == every

    def test_damaged_attempt_is_refused_and_never_written_over(self) -> None:
        """What stands under our key and is no attempt is refused by name, and stays."""
        bench = self.bench()
        documents: tuple[Any, ...] = (17, [], "RUNNING", {}, {"version": None}, {"format": 99})
        for damaged in documents:
            job = bench.add({**THEIRS, SNAPSHOT_KEY: damaged})

            with _refused(SnapshotRefusedError):
                bench.rows.load(job).snapshot()
            with _refused(StaleSnapshotError):
                bench.rows.save(job, attempt(1))

            assert bench.metadata(job) == {**THEIRS, SNAPSHOT_KEY: damaged}

    def test_transaction_that_ends_commits_all(self) -> None:
        """What is saved within a transaction is there when it has ended, and not before."""
        bench = self.bench()
        one, other = bench.add({}), bench.add({})

        with bench.rows.transaction() as tx:
            bench.rows.save(one, attempt(1), tx)
            bench.rows.save(other, attempt(1), tx)
            assert bench.rows.load(one).document is None

        assert bench.rows.load(one).snapshot() == attempt(1)
        assert bench.rows.load(other).snapshot() == attempt(1)

    def test_transaction_that_raises_leaves_nothing_behind(self) -> None:
        """A refused save takes everything back that was saved before it in its transaction."""
        bench = self.bench()
        one, other = bench.add(THEIRS), bench.add(THEIRS)

        with _refused(StaleSnapshotError), bench.rows.transaction() as tx:
            bench.rows.save(one, attempt(1), tx)
            bench.rows.save(other, attempt(7), tx)

        assert bench.metadata(one) == bench.metadata(other) == THEIRS

    def test_recent_are_the_rows_with_the_greatest_ids(self) -> None:
        """The newest rows come greatest id first, and those of one repository are among them."""
        bench = self.bench()
        jobs = [bench.add({}), bench.add(THEIRS, "other"), bench.add({}), bench.add({})]
        bench.rows.save(jobs[2], attempt(1))
        expected = sorted(jobs, reverse=True)[:3]

        found = bench.rows.recent(3)

        assert [row.id for row in found] == expected
        assert [row.snapshot() for row in found if row.id == jobs[2]] == [attempt(1)]
        assert [row.repo for row in bench.rows.recent(4, "other")] == ["other"]
        assert bench.rows.recent(2, "other") == []
        assert bench.rows.recent(4, "Other") == []
        assert bench.rows.recent(0) == []

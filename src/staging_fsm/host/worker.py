"""The worker loop: claim a due job, launch it, go on."""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

import attrs

from staging_fsm.core.errors import StagingError, in_words
from staging_fsm.core.jobs import STAGE
from staging_fsm.drive.recovery import Liveness, worker_is_alive
from staging_fsm.effects.metadata import our_document
from staging_fsm.host.launcher import Host, end_agent_of_dead, launch_job
from staging_fsm.host.pipeline import JobAlreadyEndedError
from staging_fsm.host.store import Job

if TYPE_CHECKING:
    from staging_fsm.core.ports import Clock

IDLE_SECONDS: Final = 1.0
_LOG: Final = logging.getLogger(__name__)


@attrs.define
class Worker:
    """One process that works on jobs, up to `concurrency` of them at once.

    A job in hand is a thread that waits for a process: it costs no processor time. Looking
    for what others left behind is work like a job's, and done beside them.
    """

    host: Host
    identity: str
    launch: Callable[[Host, Job], object] = launch_job
    liveness: Liveness = worker_is_alive
    concurrency: int = 1
    stopping: bool = False
    #: How many launches here have raised an error.
    failed: int = attrs.field(default=0, init=False)
    #: Ends the agent of a job whose worker is dead; says whether nothing of it is left.
    end_agent: "Callable[[Clock, Job], bool]" = end_agent_of_dead
    #: When each job was claimed here last, as far as the answer of the store arrived.
    _claimed: dict[int, str] = attrs.field(factory=dict, init=False)
    #: How many launches of each job are under way here, or are about to begin.
    _in_hand: Counter[int] = attrs.field(factory=Counter, init=False)
    #: Jobs whose last launch here came to its end without an error.
    _let_go: set[int] = attrs.field(factory=set, init=False)
    #: How many claims have been asked for whose answers are under way.
    _asking: int = attrs.field(default=0, init=False)
    #: Held over these, and never while the store is asked.
    _books: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    #: When the last recovery began that did not fail.
    _recovered: datetime | None = attrs.field(default=None, init=False)

    def stop(self) -> None:
        """Let the loop end after the jobs in hand; may be called from a signal handler."""
        self.stopping = True
        self.host.clock.wake()

    def requeue_abandoned(self) -> list[Job]:
        """Queue again what dead workers of this machine left behind; return those jobs.

        A job without a readable claim, or claimed on another machine, is left alone.
        A claim of this worker of which it never heard, because the connection was lost
        on the way back, is nobody's either, unless its answer may still be under way, and
        nor is one that it left to the runner, and whose attempt a person has removed.
        What is alive of a dead worker's agent is ended first; a job whose agent stays
        alive is left for the next look.
        """
        with self._books:
            heard_before = self._claimed.copy()
            # Whoever has one of them in hand now may be about to begin an attempt.
            let_go = self._let_go - self._in_hand.keys()
        running = self.host.store.running_jobs()
        with self._books:
            # What was claimed before the look is heard of, unless something is still asked.
            asking, heard_of = self._asking > 0, self._claimed.copy()
            self._forget(heard_before, {job.id for job in running})
        requeued = []
        for job in running:
            ours = job.claimed_by == self.identity and not asking
            unheard = ours and heard_of.get(job.id) != job.updated_at
            removed = ours and job.id in let_go and self._lost_its_attempt(job)
            # Of a claim that was not heard of no agent was started, nor of what the runner took.
            abandoned = unheard or removed or self._is_left_by_the_dead(job)
            if abandoned and self.host.store.requeue_abandoned(job, self.host.clock.now()):
                requeued.append(job)
        return requeued

    def _lost_its_attempt(self, job: Job) -> bool:
        """Say whether a job that was let go has no attempt any more: no agent, no gate ends it."""
        is_the_runners = self.host.staging is not None and job.stage == STAGE
        return is_the_runners and our_document(job.metadata) is None

    def _is_left_by_the_dead(self, job: Job) -> bool:
        """Say whether a job's worker is dead, and nothing of its agent is alive any more."""
        if self.liveness(job.claimed_by or "") is not False:
            return False
        try:
            is_ended = self.end_agent(self.host.clock, job)
        except Exception:  # noqa: BLE001  # one that cannot be looked for keeps no other job waiting
            _LOG.exception("what worker %s left of job %s is not known", job.claimed_by, job.id)
            return False
        if not is_ended:
            words = (
                f"{job.work_item} waits: the agent that worker {job.claimed_by} left stays alive,"
                " end it by hand"
            )
            _LOG.error("job %s: %s", job.id, words)
            self._tell(job, words)
        return is_ended

    def _tell(self, job: Job, words: str) -> None:
        """Alert a person to a job that does not go on, where there is a runner to do it by."""
        if self.host.staging is not None:
            self.host.staging.tell(job.id, words)

    def _forget(self, heard_before: dict[int, str], running: set[int]) -> None:
        """Forget the claims that had ended at the last look, and were not made anew since."""
        for job_id, claimed in heard_before.items():
            if job_id not in running and self._claimed.get(job_id) == claimed:
                del self._claimed[job_id]
        self._let_go &= self._claimed.keys()

    def recover(self) -> None:
        """Take up what dead workers left behind: staging attempts first, then every other job."""
        if self.host.staging is not None:
            self.host.staging.recover()
        self.requeue_abandoned()

    def run_one(self, only: int | None = None) -> Job | None:
        """Claim and launch one due job; return it, or None when none was due.

        A launch that raises is logged, told of where there is a runner to alert by, and
        its job stays claimed, for a person to look at: launching it again at once would
        only fail again.
        """
        job = self._claim(only)
        if job is not None:
            self._launch(job)
        return job

    def _claim(self, only: int | None = None) -> Job | None:
        with self._books:
            self._asking += 1
        try:
            job = self.host.store.claim_next(self.host.clock.now(), self.identity, only)
            if job is not None:
                with self._books:
                    self._claimed[job.id] = job.updated_at
                    self._in_hand[job.id] += 1
                    self._let_go.discard(job.id)
        finally:
            with self._books:
                self._asking -= 1
        return job

    def _launch(self, job: Job) -> None:
        try:
            self.launch(self.host, job)
        except JobAlreadyEndedError:
            words = (
                f"{job.work_item} has not moved: its job had ended before agent {job.agent} did,"
                " so no gate was asked. What the agent has left is there still: look at it"
                " before the work item goes on"
            )
            _LOG.error("job %s: %s", job.id, words)
            self._tell(job, words)
        except Exception as error:  # noqa: BLE001  # one broken launch must not end the worker
            with self._books:
                self.failed += 1
            # Where it came from helps nobody if it is a refusal of ours, which says what to do.
            trace = None if isinstance(error, StagingError) else error
            what = "job %s of agent %s could not be launched: %s"
            _LOG.error(what, job.id, job.agent, in_words(error), exc_info=trace)
            words = (
                f"agent {job.agent} could not be launched for {job.work_item}, and the job"
                " stays claimed until this worker ends or somebody sets it to queued again:"
                f" {in_words(error)}"
            )
            self._tell(job, words)
        else:
            with self._books:
                self._let_go.add(job.id)
        finally:
            with self._books:
                self._in_hand -= Counter([job.id])

    def run_until_idle(self) -> int:
        """Work until nothing is due and nothing in hand; return how many jobs were launched.

        Whoever is never idle recovers, too: at first, and every `recovery_seconds`.
        """
        launched = 0
        in_hand: set[Future[None]] = set()
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="launch") as pool:
            while not self.stopping:
                try:
                    has_room = len(in_hand) < self.concurrency
                    if has_room and self._recovery_is_due():
                        self._recovered = self.host.clock.now()
                        in_hand.add(pool.submit(self._recover))
                    elif has_room and (job := self._claim()) is not None:
                        in_hand.add(pool.submit(self._launch, job))
                        launched += 1
                    elif in_hand:
                        # What has ended may have queued the next job; others queue jobs too.
                        ended, in_hand = wait(in_hand, IDLE_SECONDS, FIRST_COMPLETED)
                        for work in ended:
                            work.result()
                    else:
                        break
                except Exception:
                    # To raise is to wait for the longest of what is in hand.
                    if not in_hand:
                        raise
                    self._tell_and_wait()
        return launched

    def run_forever(self) -> None:
        """Work until `stop` is called. A store that is away is waited for."""
        while not self.stopping:
            try:
                launched = self.run_until_idle()
            except Exception:  # noqa: BLE001  # a store that is away comes back
                self._tell_and_wait()
                continue
            if launched == 0 and not self.stopping:
                self.host.clock.wait(IDLE_SECONDS)

    def _tell_and_wait(self) -> None:
        _LOG.exception("the worker could not look for work")
        if not self.stopping:
            self.host.clock.wait(IDLE_SECONDS)

    def _recovery_is_due(self) -> bool:
        if self._recovered is None:
            return True
        pause = timedelta(seconds=max(self.host.settings.recovery_seconds, IDLE_SECONDS))
        # A clock that was set back must not put it off.
        return not self._recovered <= self.host.clock.now() < self._recovered + pause

    def _recover(self) -> None:
        try:
            self.recover()
        except Exception:
            self._recovered = None
            raise

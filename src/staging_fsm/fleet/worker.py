"""One worker process of a fleet: it works on deliveries, sweeps, and ends when in doubt.

A process that has lost the database is of no use and may be wrong about what is its
own, so it ends, and whoever started it starts it again: whatever it had in hand is
taken up from the rows. Suites are not its children but their supervisors', and do
not end with it.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from functools import cache
from typing import Any, Final

import procrastinate
import sqlalchemy as sa
from procrastinate.exceptions import JobAborted
from procrastinate.job_context import AbortReason, JobContext
from procrastinate.jobs import DeleteJobCondition

from staging_fsm.core.config import alert_urls
from staging_fsm.core.jobs import QUEUED
from staging_fsm.core.spec import State
from staging_fsm.effects.alerts import FileAlerts
from staging_fsm.effects.clock import SystemClock
from staging_fsm.effects.files import sha256_of_text
from staging_fsm.effects.processes import this_process
from staging_fsm.effects.state_dir import StateDir
from staging_fsm.effects.suite import LocalSuites
from staging_fsm.fleet.deliveries import QUEUE, TASK, Deliveries, OtherPapersError, queue_of
from staging_fsm.fleet.delivery import Delivery
from staging_fsm.fleet.fence import Presence, Server, is_present
from staging_fsm.fleet.fleet import Fleet, FleetRows, FleetStore, machine_of
from staging_fsm.fleet.settings import load_fleet_settings
from staging_fsm.host.settings import load_host_settings

POLLING_SECONDS: Final = 0.5
#: How long a worker that is told to stop waits for what it has in hand. Suites go on.
STOP_SECONDS: Final = 5.0
_SWEEP: Final = "staging_fsm.sweep"
_LOG: Final = logging.getLogger(__name__)


class WorkerExit(IntEnum):
    """How a worker process ends. Whatever it is, it is to be started again."""

    #: It was told to stop.
    STOPPED = 0
    #: It would stage another branch than the fleet's others, as one that does not start.
    REFUSED = 4
    #: It lost the database, or failed (EX_TEMPFAIL of sysexits.h).
    LOST = 75


def open_fleet(engine: sa.Engine, state: StateDir, variables: Mapping[str, str]) -> Fleet:
    """Return this machine's part of the fleet whose database `engine` leads to.

    A machine, to a fleet, is a state folder: it keeps its name over restarts of
    process, container and system. Raises ConfigInvalidError.
    """
    settings = load_fleet_settings(variables)
    server = Server.behind(engine, settings.schema)
    deliveries = Deliveries(server)
    name = sha256_of_text(state.secret().hex())[:8]
    machine = f"{socket.gethostname().replace('/', '-').replace(':', '-')}-{name}"
    clock = SystemClock()
    return Fleet(
        server=server,
        engine=engine,
        deliveries=deliveries,
        settings=settings,
        host_settings=load_host_settings(variables),
        variables=variables,
        state=state,
        clock=clock,
        machine=machine,
        worker=f"{machine}/{this_process()}",
        store=FleetStore(engine, deliveries),
        rows=FleetRows(engine, deliveries),
        suites=LocalSuites(state, variables),
        alerts=FileAlerts(state, clock, lambda: alert_urls(variables)),
    )


def run_worker(fleet: Fleet, concurrency: int) -> WorkerExit:
    """Work until told to stop, or until the database is lost. Raises psycopg.Error at the start.

    The caller ends the process afterwards, at once: threads that wait for suites are
    still there, and others take their jobs up.
    """
    presence = Presence(fleet.server, fleet.machine)
    # One more for each delivery that is being cancelled, and one for the sweep.
    with_threads = ThreadPoolExecutor(2 * concurrency + 1)
    return asyncio.run(_work(fleet, with_threads, presence, concurrency))


async def _work(
    fleet: Fleet, threads: ThreadPoolExecutor, presence: Presence, concurrency: int
) -> WorkerExit:
    loop = asyncio.get_running_loop()
    lost, refused = loop.create_future(), loop.create_future()
    in_hand: dict[Callable[[], asyncio.Future[None]], int] = {}
    app = _app(fleet, threads, refused, in_hand)

    def stop(job_id: int) -> None:
        for stop_it in [one for one, job in in_hand.items() if job == job_id]:
            stop_it()

    presence.hear(stop)
    async with app.open_async():
        working = asyncio.ensure_future(
            app.run_worker_async(
                queues=[QUEUE, queue_of(fleet.machine)],
                name=fleet.worker,
                concurrency=concurrency,
                fetch_job_polling_interval=POLLING_SECONDS,
                abort_job_polling_interval=POLLING_SECONDS,
                update_heartbeat_interval=fleet.settings.heartbeat_seconds,
                stalled_worker_timeout=fleet.settings.stalled_seconds,
                shutdown_graceful_timeout=STOP_SECONDS,
                delete_jobs=DeleteJobCondition.ALWAYS,
            )
        )
        _watch(presence, lost)
        _tell(fleet)
        await asyncio.wait([working, lost, refused], return_when=asyncio.FIRST_COMPLETED)
        if refused.done() and not lost.done():
            _LOG.error("%s: this worker ends", refused.result())
            # What it has in hand is left as by one that is told to stop.
            working.cancel()
            await asyncio.wait([working, lost], return_when=asyncio.FIRST_COMPLETED)
            return WorkerExit.REFUSED
        if lost.done():
            _LOG.error("the connection to the database was lost: this worker ends")
            os._exit(WorkerExit.LOST)
        try:
            working.result()
        except Exception:  # noqa: BLE001  # whatever it was, a fresh process is the answer
            _LOG.exception("the worker failed")
            return WorkerExit.LOST
        return WorkerExit.STOPPED


def _watch(presence: Presence, lost: "asyncio.Future[None]") -> None:
    """Resolve `lost` when the presence's connection ends, and hear what comes by it."""
    loop, descriptor = asyncio.get_running_loop(), presence.fileno()

    def look() -> None:
        if presence.is_lost():
            loop.remove_reader(descriptor)
            lost.set_result(None)

    loop.add_reader(descriptor, look)


def _tell(fleet: Fleet) -> None:
    """Deliver what this machine could not tell, now and every `sweep_seconds` from now on.

    Not in the sweep, which is some machine's: what a machine owes no other one has.
    """
    fleet.alerts.deliver()
    asyncio.get_running_loop().call_later(fleet.settings.sweep_seconds, _tell, fleet)


def _app(
    fleet: Fleet,
    threads: ThreadPoolExecutor,
    refused: "asyncio.Future[str]",
    in_hand: "dict[Callable[[], asyncio.Future[None]], int]",
) -> procrastinate.App:
    """Return the engine's tasks.

    `refused` is resolved when this machine may take no job. In `in_hand` stands what stops
    each delivery that is worked on, and of which job it is.
    """
    connector = procrastinate.PsycopgConnector(
        conninfo=fleet.server.conninfo, min_size=1, max_size=3
    )
    app = procrastinate.App(connector=connector)

    @app.task(name=TASK, queue=QUEUE, pass_context=True)
    async def attempt(context: JobContext, job_id: int, repo: str, tries: int = 0) -> None:
        loop = asyncio.get_running_loop()
        delivery = Delivery(fleet, job_id, repo, tries)
        running = loop.run_in_executor(threads, delivery.run)
        # Once, however often and on whichever way it is asked for.
        stop = cache(lambda: loop.run_in_executor(threads, delivery.cancel))
        in_hand[stop] = job_id
        try:
            await asyncio.shield(running)
        except OtherPapersError as error:
            if not refused.done():
                refused.set_result(str(error))
        except asyncio.CancelledError:
            if context.abort_reason() is not AbortReason.USER_REQUEST:
                # Told to stop: the suite goes on, and whoever comes next takes it up.
                raise
            await stop()
            await running
            raise JobAborted from None
        finally:
            del in_hand[stop]

    # A task of its own, without the lock of any repository: it must never wait for one.
    @app.periodic(cron=f"* * * * * */{fleet.settings.sweep_seconds}")
    @app.task(name=_SWEEP, queue=QUEUE, queueing_lock=_SWEEP)
    async def sweep(timestamp: int) -> None:  # noqa: ARG001  # when it was due
        await asyncio.get_running_loop().run_in_executor(threads, redeliver, fleet)

    return app


def redeliver(fleet: Fleet) -> list[int]:
    """Deliver again what stalled workers had, and what nobody will be told of; return their ids."""
    rows, now = fleet.rows, fleet.clock.now()
    with fleet.engine.begin() as tx:
        found = fleet.deliveries.take_stalled(tx, fleet.settings.stalled_seconds)
        fleet.deliveries.bring_home(tx, lambda machine: is_present(tx, fleet.server, machine))
        found |= {
            job_id: repo
            for job_id, repo, status, holder in fleet.deliveries.undelivered(tx)
            # Where the fleet has a job in hand, it has its delivery, or has lost both.
            if status == QUEUED
            or machine_of(holder or "") is not None
            or _is_in_work(rows.load(job_id).document)
        }
        for job_id, repo in found.items():
            fleet.deliveries.defer(tx, job_id, repo, now)
    return sorted(found)


def _is_in_work(document: Any) -> bool:
    """Say whether a foreign worker's job is the runner's to go on with, not an LLM agent's."""
    return isinstance(document, dict) and document.get("state") != State.LLM_FALLBACK

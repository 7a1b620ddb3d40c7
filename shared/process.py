"""A worker as a process: signals, back-off between sessions, exit codes."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from time import monotonic
from typing import Any, Final

import asyncpg
import structlog
import uvloop
from tenacity import AsyncRetrying, RetryCallState, retry_if_not_exception_type
from tenacity.wait import wait_random_exponential

from shared.broker import BROKER_ERRORS, ConnectionLost
from shared.errors import (
    ConsentError,
    SchemaError,
    SettingsError,
    first_cause,
)
from shared.garbage import collect_seldom
from shared.metrics import SESSIONS_LOST
from shared.observer import Observer
from shared.operations import serve_operations
from shared.readiness import Readiness
from shared.reasons import missing_for, reason_of, words_of
from shared.settings import WorkerSettings

STOPPING: Final = (signal.SIGTERM, signal.SIGINT)
DRAIN_S: Final = 8
"""Below the ten seconds after which a container engine kills."""
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 2.0
STEADY_S: Final = 15.0
"""A session that was lost so long after the one before had held."""
SAY_AGAIN_S: Final = 30
HURRIED: Final = 3
"""Exit code of a worker that left before it was drained."""

EXPECTED: Final = (
    ConsentError,
    *BROKER_ERRORS,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a connection torn in the middle of a message
)
"""What a dependency that is away, or another worker, can cause; anything else is a bug."""

Session = Callable[[asyncio.Event], Awaitable[None]]

log = structlog.get_logger()


def run_process(
    session: Session, settings: WorkerSettings, readiness: Readiness, observer: Observer
) -> None:
    """Run sessions until a signal says stop; returns when drained.

    Raises SettingsError and SchemaError, which an operator must mend.
    """
    collect_seldom()
    uvloop.run(_run(session, settings, readiness, observer))


async def _run(
    session: Session, settings: WorkerSettings, readiness: Readiness, observer: Observer
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_tell)
    for number in STOPPING:
        loop.add_signal_handler(number, _stop, stop, loop)
    observing = observer.running() if settings.http_port else nullcontext()
    async with serve_operations(settings.http_port, readiness), observing:
        log.info("worker.started", worker_id=settings.worker_id)
        await supervise(session, readiness, stop)
        for number in STOPPING:  # to ask again must not turn a good end into a bad one now
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        log.info("worker.stopped")


def _tell(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what nobody caught; asyncio's own line would quote what the callback was called with."""
    error = context.get("exception")
    reason = reason_of(error) if error else context["message"]
    log.error("error.uncaught", reason=reason, exc_info=error)


def _stop(stop: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
    if stop.is_set():
        _leave_at_once("second signal")
    log.info("worker.draining", seconds=DRAIN_S)
    stop.set()
    loop.call_later(DRAIN_S, _leave_at_once, "the drain time ran out")


def _leave_at_once(why: str) -> None:
    """Leave without tidying up: what was in hand is delivered again, and decided once."""
    log.warning("worker.left_at_once", reason=why)
    os._exit(HURRIED)


async def supervise(session: Session, readiness: Readiness, stop: asyncio.Event) -> None:
    """Begin a new session whenever one is lost, with growing pauses while none can begin."""
    failures = _Failures(readiness)

    def stopped(state: RetryCallState) -> None:
        """Whoever is stopped while it waits has nothing in hand; while it drains, it has."""
        if readiness.missing == "drain" and state.outcome is not None:
            lost = reason_of(state.outcome.exception() or ConnectionLost())
            _leave_at_once(f"the session was lost in the drain: {lost}")

    while not stop.is_set():
        async for attempt in AsyncRetrying(
            retry=retry_if_not_exception_type((SettingsError, SchemaError)),
            wait=wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE_S),
            before_sleep=failures.note,
            sleep=lambda seconds: _pause(seconds, stop),
            stop=lambda _: stop.is_set(),
            retry_error_callback=stopped,
        ):
            with attempt:
                await _one_session(session, readiness, stop, failures)


async def _one_session(
    session: Session, readiness: Readiness, stop: asyncio.Event, failures: "_Failures"
) -> None:
    """Run a session; one that had been ready and is lost begins anew without the long pauses."""
    try:
        await session(stop)
    except Exception as error:  # noqa: BLE001 - whatever ended it, the next one may hold
        reason = first_cause(error)
        if isinstance(reason, (SettingsError, SchemaError)):
            raise reason from None
        was_ready = readiness.missing is None
        if readiness.missing != "drain" and (missing := missing_for(reason)):
            readiness.waits_for(missing)
        readiness.failed(words_of(reason))
        if not was_ready:
            raise reason from None
        SESSIONS_LOST.inc()
        failures.say(reason, "session.lost")
        await _pause(failures.next_pause(), stop)


async def _pause(seconds: float, stop: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return


class _Failures:
    """Says why there is no session: when the reason changes, and now and then."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
        self._said = ""
        self._said_at = 0.0
        self._lost_at = 0.0
        self._pause_s = FIRST_PAUSE_S

    def next_pause(self) -> float:
        """Tell how long to pause: longer each time while no session holds."""
        now = monotonic()
        soon = now - self._lost_at < STEADY_S
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) if soon else FIRST_PAUSE_S
        self._lost_at = now
        return self._pause_s

    def note(self, state: RetryCallState) -> None:
        if state.outcome is not None and (error := state.outcome.exception()) is not None:
            self.say(error, "session.waiting")

    def say(self, error: BaseException, event: str) -> None:
        reason = reason_of(error)
        said_before = event != "session.lost" and reason == self._said
        if said_before and monotonic() - self._said_at < SAY_AGAIN_S:
            return
        self._said, self._said_at = reason, monotonic()
        unexpected = None if isinstance(error, EXPECTED) else error
        log.warning(event, missing=self._readiness.missing, reason=reason, exc_info=unexpected)

"""A worker as a process: signals, back-off between sessions, exit codes."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from math import inf
from random import uniform
from time import monotonic
from typing import Any, Final

import asyncpg
import structlog
import uvloop

from shared.errors import ConsentError, SchemaError, SettingsError, first_cause
from shared.errors.connection import BROKER_ERRORS
from shared.errors.text import missing_for, reason_of, words_of
from shared.settings import WorkerSettings
from shared.telemetry.metrics import SESSIONS_LOST
from shared.telemetry.readiness import Readiness
from shared.worker.gc_tuning import collect_seldom
from shared.worker.leaving import leave_at_once
from shared.worker.observer import Observer
from shared.worker.scheduling import let_others_finish

STOPPING: Final = (signal.SIGTERM, signal.SIGINT)
DRAIN_S: Final = 8
"""Below the ten seconds after which a container engine kills."""
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 2.0
STEADY_S: Final = 15.0
"""What ends a session so long after the last one ended found one that had held."""
SAY_AGAIN_S: Final = 30

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
    let_others_finish()
    uvloop.run(_run(session, settings, readiness, observer))


async def _run(
    session: Session, settings: WorkerSettings, readiness: Readiness, observer: Observer
) -> None:
    # Here, since its library takes as long to import as half of the rest, and only `run` serves.
    from shared.worker.http import serve_operations  # noqa: PLC0415

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_tell)
    for number in STOPPING:
        loop.add_signal_handler(number, _stop, stop, loop)
    observing = observer.running() if settings.http_port else nullcontext()
    async with serve_operations(settings.http_host, settings.http_port, readiness), observing:
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
        leave_at_once("second signal")
    log.info("worker.draining", seconds=DRAIN_S)
    stop.set()
    loop.call_later(DRAIN_S, leave_at_once, "the drain time ran out")


async def supervise(session: Session, readiness: Readiness, stop: asyncio.Event) -> None:
    """Begin a new session whenever one is lost, with growing pauses while none holds."""
    failures = _Failures(readiness)
    while not stop.is_set():
        try:
            await session(stop)
        except Exception as error:  # noqa: BLE001 - whatever ended it, the next one may hold
            reason = first_cause(error)
            if isinstance(reason, (SettingsError, SchemaError)):
                raise reason from None
            if readiness.missing == "drain":  # who is stopped while it waits has nothing in hand
                leave_at_once(f"the session was lost in the drain: {reason_of(reason)}")
            failures.note(reason)
            await _pause(failures.next_pause(), stop)


async def _pause(seconds: float, stop: asyncio.Event) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()


class _Failures:
    """Says why there is no session, when that changes and now and then; and how long to pause."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
        self._said = ""
        self._said_at = 0.0
        self._failed_at = -inf
        self._pause_s = FIRST_PAUSE_S

    def note(self, reason: BaseException) -> None:
        """Note what ended a session, or kept it from beginning."""
        was_ready = self._readiness.missing is None
        if missing := missing_for(reason):
            self._readiness.waits_for(missing)
        self._readiness.failed(words_of(reason))
        if was_ready:
            SESSIONS_LOST.inc()
        self._say(reason, "session.lost" if was_ready else "session.waiting")

    def next_pause(self) -> float:
        """Tell how long to pause: longer each time while no session holds, and never in step."""
        now = monotonic()
        steady = now - self._failed_at > STEADY_S
        self._failed_at = now
        self._pause_s = FIRST_PAUSE_S if steady else min(2 * self._pause_s, LONGEST_PAUSE_S)
        return uniform(self._pause_s / 2, self._pause_s)  # noqa: S311 - it guards nothing

    def _say(self, error: BaseException, event: str) -> None:
        reason = reason_of(error)
        said_before = event != "session.lost" and reason == self._said
        if said_before and monotonic() - self._said_at < SAY_AGAIN_S:
            return
        self._said, self._said_at = reason, monotonic()
        unexpected = None if isinstance(error, EXPECTED) else error
        log.warning(event, missing=self._readiness.missing, reason=reason, exc_info=unexpected)

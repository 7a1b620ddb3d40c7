"""The path of a rebuild: shadow → fill → catch up → hold → switch, or compare instead."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

import asyncpg
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_random_exponential

from projection_service.rebuild.backfill import Filling
from projection_service.rebuild.diff import Compared, compare
from projection_service.rebuild.progress import Progress
from projection_service.rebuild.shadow import Shadow, open_shadow
from projection_service.settings import ProjectionSettings
from shared.errors import Fenced, NoAnswer, NotConnected, NotNow, Unsure
from shared.errors.connection import BROKER_ERRORS
from shared.event_log.log_client import LogClient
from shared.event_log.set_back import LogPlace, SetBack
from shared.rabbitmq.connection import connect
from shared.rabbitmq.rpc_client import Requests

SWITCH_WHEN_BEHIND: Final = 500
"""So few events behind, the rest is applied while everybody is kept out."""
HOLD_S: Final = 1.0
"""How long queries are kept waiting at most, before it is given up and tried again."""
MOST_PATIENCE: Final = 8
"""How many times as long later tries may take, lest a busy machine keeps it away for ever."""
TRY_AGAIN_S: Final = 0.5
PING_S: Final = 2.0
ATTEMPTS: Final = 10
"""How often the broker may be lost, or nobody answer, in one rebuild."""
LONGEST_PAUSE_S: Final = 5.0
LOST: Final = (
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
)
"""What ends a rebuild with its connection to the read model."""
_UNSURE: Final = (
    "the connection to the read model was lost while it was switched to the new one: it was, or "
    "nothing has changed; `rebuild --dry-run` finds what differs, and `rebuild` again does no harm"
)


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild did."""

    switched: bool
    events: int
    seconds: float
    held_milliseconds: float
    """How long the read model was held."""
    parked: int
    """Events that can't be applied."""
    set_back: list[SetBack] = field(default_factory=list)
    """Partitions of which the read model had what the log does not have any more."""
    compared: list[Compared] = field(default_factory=list)

    @property
    def differences(self) -> int:
        """Rows that are not as the log says."""
        return sum(table.different for table in self.compared)


async def rebuild(settings: ProjectionSettings, progress: Progress, *, dry_run: bool) -> Rebuilt:
    """Build the read model anew out of the log, and put it in the place of the old one.

    With `dry_run` it is compared with the old one instead. Raises NotNow where something
    is in the way, SettingsError, SchemaError and NotConnected where something must be mended;
    nothing has changed then. Raises Unsure where it was lost what became of the switch.
    """
    try:
        async with open_shadow(settings.read_model_url, settings.consent_partitions) as shadow:
            work = _with_log(settings, shadow, progress, dry_run=dry_run)
            return await _while_locked(work, shadow)
    except NoAnswer as error:
        raise NotNow(f"{error}; is a command worker running?") from None
    except Fenced:
        raise NotNow("another rebuild has taken over: let it end, then try again") from None
    except LOST as error:
        raise NotNow(_lost(error)) from error


def _lost(error: BaseException) -> str:
    return f"the connection to the read model was lost: {error}"


async def _while_locked(work: Coroutine[None, None, Rebuilt], shadow: Shadow) -> Rebuilt:
    """Work as long as the connection is there that keeps other rebuilds away.

    What becomes of a switch, only the work itself can say.
    """
    watch, job = asyncio.create_task(_watch(shadow)), asyncio.create_task(work)
    try:
        await asyncio.wait((watch, job), return_when=asyncio.FIRST_COMPLETED)
        if not job.done() and not shadow.switching.is_set():
            watch.result()
        return await job
    finally:
        watch.cancel()
        job.cancel()
        await asyncio.gather(watch, job, return_exceptions=True)


async def _watch(shadow: Shadow) -> None:
    """Look after the connection; traffic also keeps it from being cut off for its silence."""
    while True:
        try:
            await shadow.ping()
        except (OSError, *LOST) as error:
            raise NotNow(_lost(error)) from error
        await asyncio.sleep(PING_S)


async def _with_log(
    settings: ProjectionSettings, shadow: Shadow, progress: Progress, *, dry_run: bool
) -> Rebuilt:
    """Go on where it was interrupted when the broker is lost or nobody answers."""
    began = monotonic()
    async for attempt in AsyncRetrying(
        retry=retry_if_exception(_may_pass),
        wait=wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE_S),
        stop=stop_after_attempt(ATTEMPTS),
        before_sleep=lambda state: progress.say(f"waiting: {_reason(state)}"),
        reraise=True,
    ):
        with attempt:
            async with connect(settings.rabbitmq_url, name="rebuild") as broker:
                log = LogClient(await Requests.open(broker), await shadow.followed_log())
                rebuild = _Rebuild(shadow, log, progress, began)
                return await (rebuild.compare() if dry_run else rebuild.switch())
    raise AssertionError  # the last attempt raises its own error


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, (NoAnswer, *BROKER_ERRORS)) and not isinstance(error, NotConnected)


def _reason(state: RetryCallState) -> str:
    error = state.outcome.exception() if state.outcome else None
    return str(error) or type(error).__name__


class _Rebuild:
    """One attempt, over one connection to the broker."""

    def __init__(self, shadow: Shadow, log: LogClient, progress: Progress, began: float) -> None:
        self._shadow = shadow
        self._log = log
        self._progress = progress
        self._began = began
        self._patience = 1
        self._filling = Filling(log, shadow, progress.advance)
        self._set_back: dict[int, SetBack] = {}
        """What the log does not have any more is no target: of it, only what the log has."""

    async def switch(self) -> Rebuilt:
        """Catch up, and switch as soon as nobody is in the way."""
        committing = False
        while True:
            await self._catch_up(self._heads)
            try:
                async with self._shadow.held("ACCESS EXCLUSIVE", self._patience) as live:
                    held_at = monotonic()
                    await self._finish(live)
                    parked = await self._shadow.count_parked()
                    await self._shadow.switch()
                    committing = True
                return self._done(True, parked, monotonic() - held_at)
            except (OSError, *LOST) as error:
                if committing:
                    raise Unsure(_UNSURE) from error
                raise
            except (asyncpg.LockNotAvailableError, TimeoutError):
                await self._wait_for_others()

    async def compare(self) -> Rebuilt:
        """Catch up, and compare at equal positions; the projection waits only to make them so."""
        while True:
            await self._catch_up(self._live_positions)
            try:
                async with self._shadow.snapshot() as reader:
                    async with self._shadow.held("SHARE", self._patience) as live:
                        held_at = monotonic()
                        await self._finish(live)
                        await reader.execute("SELECT")  # from here on it sees nothing later
                    held_s = monotonic() - held_at
                    self._progress.say("comparing")
                    parked = await self._shadow.count_parked()
                    return self._done(False, parked, held_s, await compare(reader))
            except (asyncpg.LockNotAvailableError, TimeoutError):
                await self._wait_for_others()

    async def _catch_up(self, read_targets: Callable[[], Awaitable[dict[int, int]]]) -> None:
        """Follow the log until only a few events are left of what is in the read model."""
        behind = SWITCH_WHEN_BEHIND + 1
        while behind > SWITCH_WHEN_BEHIND:
            targets = await read_targets()
            self._progress.expect(_missing(await self._shadow.positions(), targets))
            await self._filling.reach(targets)
            live = await self._shadow.live_places()
            positions = {number: place.position for number, place in live.items()}
            behind = _missing(await self._shadow.positions(), self._followed(positions))
        # Nearly all of it, before anybody is kept waiting.
        await self._shadow.forget_purged(self._shadow.pool)

    async def _heads(self) -> dict[int, int]:
        """Read where the logs end."""
        return {
            number: head if number in self._set_back else max(place.position, head)
            for number, (place, head) in (await self._compared()).items()
        }

    async def _live_positions(self) -> dict[int, int]:
        """Read how far the read model is; where the log is set back, as far as both go."""
        return {
            number: min(place.position, head) if number in self._set_back else place.position
            for number, (place, head) in (await self._compared()).items()
        }

    async def _compared(self) -> dict[int, tuple[LogPlace, int]]:
        """Compare the read model's checkpoints with the log; return both."""
        live = await self._shadow.live_places()
        pages = await asyncio.gather(
            *(self._log.read(n, max(0, place.position - 1), 1) for n, place in live.items())
        )
        found = {n: page.differs(n, live[n]) for n, page in zip(live, pages, strict=True)}
        self._set_back = {number: set_back for number, set_back in found.items() if set_back}
        return {n: (live[n], page.head) for n, page in zip(live, pages, strict=True)}

    def _followed(self, live: Mapping[int, int]) -> dict[int, int]:
        """Leave out the partitions whose log was set back."""
        return {n: position for n, position in live.items() if n not in self._set_back}

    async def _finish(self, live: Mapping[int, int]) -> None:
        """Make the shadow what the read model should be that is held now."""
        async with asyncio.timeout(HOLD_S * self._patience):
            await self._filling.reach(self._followed(live))
            await self._shadow.give_up_discarded()
            await self._shadow.forget_purged(self._shadow.connection)

    async def _wait_for_others(self) -> None:
        """Let go for a moment: a long query, say of a backup, uses the read model."""
        self._progress.say(f"waiting: {await self._shadow.who_is_in_the_way()}")
        await asyncio.sleep(TRY_AGAIN_S)
        self._patience = min(2 * self._patience, MOST_PATIENCE)

    def _done(
        self, switched: bool, parked: int, held_s: float, compared: Sequence[Compared] = ()
    ) -> Rebuilt:
        return Rebuilt(
            switched=switched,
            events=self._progress.events,
            seconds=round(monotonic() - self._began, 3),
            held_milliseconds=round(held_s * 1000, 1),
            parked=parked,
            set_back=list(self._set_back.values()),
            compared=list(compared),
        )


def _missing(positions: Mapping[int, int], targets: Mapping[int, int]) -> int:
    """Count the events up to the targets that are not projected."""
    return sum(max(0, target - positions[number]) for number, target in targets.items())

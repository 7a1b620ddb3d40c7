"""Takes no commands for a log that was set back, until an operator has decided."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import structlog

from command_service.log_identity.witness import Witness
from command_service.store.event_store import EventStore
from shared.errors import Fenced, ServerLeft
from shared.errors.connection import ConnectionLost
from shared.event_log.set_back import SetBack
from shared.telemetry.metrics import SET_BACK
from shared.telemetry.readiness import Readiness
from shared.values.partition import Lease

LOOK_AGAIN_S: Final = 1.0
LOOK_AT_OTHERS_S: Final = 15.0
"""A partition that is worked on is compared too: its log may be one that others have left."""
LOG: Final = "log"
"""Under what the readiness keeps what is wrong with it."""
REMEDY: Final = (
    "commands wait; bring the right log back, or take it as it is: "
    "`python -m command_service accept-log`"
)

log = structlog.get_logger()


class DisputedLogs:
    """Holds the partitions of this worker whose log lacks what was published of it.

    Those of other workers are looked at too, since any worker tells readers of any log.
    """

    def __init__(
        self, witness: Witness, store: EventStore, readiness: Readiness,
        begin: Callable[[Lease], Awaitable[None]], *, partitions: int, go_on: bool,
    ) -> None:  # fmt: skip
        """`begin` works on a partition whose log is not disputed any more."""
        self._witness = witness
        self._store = store
        self._readiness = readiness
        self._begin = begin
        self._partitions = partitions
        self._elsewhere: set[int] = set()
        self._go_on = go_on
        self._owned: dict[int, Lease] = {}
        self._waiting: dict[int, SetBack] = {}
        self._one_at_a_time: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    def is_disputed(self, partition: int) -> bool:
        """Whether a partition's log lacks what was published of it, whoever owns it."""
        return partition in self._waiting or partition in self._elsewhere

    async def look(self) -> None:
        """Compare every partition, before any reader is told of a log.

        Raises ServerLeft on a server that another has taken over from: it may not even be read,
        since others would compare what they took with a log that is not the right one any more.
        """
        for number in range(self._partitions):
            await self._compare_elsewhere(number, any_server=False)
            SET_BACK.labels(number).set(0)  # its owner tells of it

    async def _look_elsewhere(self, *, everywhere: bool) -> None:
        """Compare the partitions that this worker does not own, or those of them in dispute."""
        for number in range(self._partitions):
            if number not in self._owned and (everywhere or number in self._elsewhere):
                with suppress(ConnectionLost):  # a queue without a leader tells nothing now
                    await self._compare_elsewhere(number, any_server=True)

    async def _compare_elsewhere(self, number: int, *, any_server: bool) -> None:
        found = await self._compare(number, any_server=any_server)
        if found is None or number in self._owned:
            self._elsewhere.discard(number)
        else:
            self._elsewhere.add(number)

    async def _compare(self, number: int, *, any_server: bool = False) -> SetBack | None:
        try:
            return await self._witness.compare(number, any_server=any_server)
        except ServerLeft:
            SET_BACK.labels(number).set(1)
            raise

    async def take(self, lease: Lease) -> None:
        """Begin with a partition, now or when its log is not disputed any more."""
        async with self._one_at_a_time[lease.partition]:
            self._owned[lease.partition] = lease
            self._elsewhere.discard(lease.partition)
            found = await self._compare(lease.partition)
            if found is not None:
                log.error(
                    "log.set_back",
                    partition=found.partition,
                    position=found.position,
                    head=found.head,
                    commands="go on" if self._go_on else "wait",
                )
            if found is None or self._go_on:
                if found is not None:
                    await self._store.begin_generation(lease)
                await self._witness.begin(lease)
                await self._begin(lease)
                return
            self._waiting[lease.partition] = found
            self._tell()

    async def drop(self, partition: int) -> bool:
        """Forget a partition that is handed over; whether nothing of it was begun."""
        async with self._one_at_a_time[partition]:
            del self._owned[partition]
            waited = self._waiting.pop(partition, None) is not None
            if waited:  # its next owner may take a while, and readers ask meanwhile
                self._elsewhere.add(partition)
            SET_BACK.labels(partition).set(0)  # its next owner tells of it
            self._tell()
            return waited

    async def run(self) -> None:
        """Compare again and again, until cancelled; raises Fenced where work must begin anew."""
        rounds = 0
        try:
            while True:
                await asyncio.sleep(LOOK_AGAIN_S)
                rounds += 1
                everyone = rounds % round(LOOK_AT_OTHERS_S / LOOK_AGAIN_S) == 0
                for lease in list(self._owned.values()):
                    if everyone or lease.partition in self._waiting:
                        await self._look_at(lease)
                await self._look_elsewhere(everywhere=everyone)
        finally:
            self._waiting.clear()
            self._tell()

    async def _look_at(self, lease: Lease) -> None:
        number = lease.partition
        async with self._one_at_a_time[number]:
            if self._owned.get(number) is not lease:
                return
            found = await self._compare(number)
            if found is None and number in self._waiting:
                del self._waiting[number]
                await self._witness.begin(lease)
                await self._begin(lease)
                self._tell()
            elif found is not None and number not in self._waiting:
                raise Fenced(f"{found}")

    def _tell(self) -> None:
        for number in self._owned.keys() | self._waiting.keys():
            SET_BACK.labels(number).set(number in self._waiting)
        if self._waiting:
            numbers = ", ".join(map(str, sorted(self._waiting)))
            reason = f"the log of partition {numbers} was set back: {REMEDY}"
            self._readiness.report(LOG, "log_set_back", reason)
        else:
            self._readiness.report(LOG)

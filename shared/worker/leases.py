"""Shares the partitions out among the workers of one kind, by leases in their database.

Each worker says every second that it lives, renews what it owns, hands over what is more than its
fair share and takes what nobody owns. Taking over increments the partition's epoch, and a write
under an older epoch is refused: so a worker that slept past its lease can do no harm.
A worker that died lets go of its presence, an advisory lock of its keeper's own connection: by
that the others notice it, long before its leases run out.
The leases follow those of Orleans and Kinesis, the epoch is Kleppmann's fencing token.
"""

import asyncio
import math
import secrets
from collections.abc import Callable, Coroutine, Sequence
from time import monotonic
from typing import Final

import asyncpg

from shared.errors import Fenced
from shared.postgres.connection import Connection
from shared.postgres.statements import statement
from shared.values.partition import Lease

LEASE_S: Final = 5.0
RENEW_EVERY_S: Final = 1.0

_BE_PRESENT = statement("shared.postgres", "be_present")
_KEEP_LEASES = statement("shared.postgres", "keep_leases")
_FAIR_SHARE = statement("shared.postgres", "fair_share")
_TAKE_PARTITIONS = statement("shared.postgres", "take_partitions")
_RELEASE_PARTITIONS = statement("shared.postgres", "release_partitions")
_LEAVE = statement("shared.postgres", "leave")


Callback = Callable[[Lease], Coroutine[None, None, None]]


class LeaseKeeper:
    """Keeps the leases of one worker session."""

    def __init__(
        self,
        connection: Connection,
        owner: str,
        *,
        on_taken: Callback,
        on_drain: Callback,
    ) -> None:
        """`connection` is the keeper's alone: the leases end with it. `owner` is this session's.

        `on_taken` begins to work on a partition, `on_drain` returns when nothing of it is in hand.
        """
        self._connection = connection
        self._one_at_a_time = asyncio.Lock()
        self._owner = owner
        self._presence = secrets.randbits(63)
        self._on_taken = on_taken
        self._on_drain = on_drain
        self._leaving = False
        self._sharing = asyncio.Lock()
        self._opening: dict[Lease, asyncio.Task[None]] = {}
        self._draining: set[Lease] = set()
        self._all_released = asyncio.Event()
        self._valid_until = 0.0
        self._kept_at = math.inf
        self.owned: dict[int, Lease] = {}
        self.first_round = asyncio.Event()
        """Set once this worker has taken what was free for it."""

    def is_valid(self) -> bool:
        """Whether the last renewal still covers this moment, by this machine's own clock."""
        return monotonic() < self._valid_until and not self._connection.is_closed()

    def seconds_since_renewal(self) -> float:
        """How long ago the leases were last renewed; a renewal that hangs lets it grow."""
        return max(0.0, monotonic() - self._kept_at)

    async def ran_out(self) -> None:
        """Return once the leases ran out without a renewal, whatever that waits for."""
        while (left := LEASE_S - self.seconds_since_renewal()) > 0:  # noqa: ASYNC110 - it ends late
            await asyncio.sleep(left)

    async def run(self) -> None:
        """Keep the leases until cancelled.

        Raises Fenced when another worker has taken a partition: all that is in hand is void then.
        """
        self._kept_at = monotonic()
        await self._fetch(_BE_PRESENT, self._presence)
        async with asyncio.TaskGroup() as group:
            while True:
                async with self._sharing:
                    await self._keep()
                    if not self._leaving:
                        await self._share_out(group)
                await asyncio.sleep(RENEW_EVERY_S)

    async def hand_over_all(self) -> None:
        """Take nothing new, drain and release every partition; `run` must still be running."""
        self._leaving = True
        async with self._sharing:  # what is being taken just now must be handed over as well
            await self._fetch(_LEAVE, self._owner)
        waiting = [lease for lease in self.owned.values() if lease not in self._draining]
        self._draining.update(waiting)
        await asyncio.gather(*(self._hand_over(lease) for lease in waiting))
        if self._draining:  # one that was on its way already
            self._all_released.clear()
            await self._all_released.wait()

    async def abandon(self) -> None:
        """Release everything at once; what was in hand will be delivered to another worker.

        What was being taken just now is among it: this waits for the answer, or comes after it.
        """
        self.owned.clear()
        self._valid_until = 0.0
        await self._fetch(_RELEASE_PARTITIONS, self._owner, None)
        await self._fetch(_LEAVE, self._owner)

    async def _fetch(self, sql: str, *arguments: object) -> Sequence[asyncpg.Record]:
        async with self._one_at_a_time:
            return await self._connection.fetch(sql, *arguments)

    async def _keep(self) -> None:
        asked_at = monotonic()
        rows = await self._fetch(
            _KEEP_LEASES, self._owner, LEASE_S, not self._leaving, self._presence
        )
        kept = {row["partition"]: row["epoch"] for row in rows}
        for lease in self.owned.values():
            if kept.get(lease.partition) != lease.epoch:
                raise Fenced(f"another worker has taken partition {lease.partition}")
        self._valid_until = asked_at + LEASE_S
        self._kept_at = monotonic()

    async def _share_out(self, group: asyncio.TaskGroup) -> None:
        """Hand over what is too much, take what is too little; both beside the renewals."""
        (share,) = [row["share"] for row in await self._fetch(_FAIR_SHARE, self._owner)] or [0]
        kept = [lease for lease in self.owned.values() if lease not in self._draining]
        for lease in kept[share:]:
            self._draining.add(lease)
            group.create_task(self._hand_over(lease))
        if len(self.owned) < share:
            taken = await self._take(share - len(self.owned))
            for lease in taken:
                self._opening[lease] = group.create_task(self._on_taken(lease))
        if not self.first_round.is_set():
            group.create_task(self._end_first_round())

    async def _take(self, most: int) -> list[Lease]:
        rows = await self._fetch(_TAKE_PARTITIONS, self._owner, LEASE_S, most)
        taken = [Lease(row["partition"], row["epoch"]) for row in rows]
        self.owned.update({lease.partition: lease for lease in taken})
        return taken

    async def _end_first_round(self) -> None:
        await asyncio.gather(*self._opening.values())
        self.first_round.set()

    async def _hand_over(self, lease: Lease) -> None:
        await self._opening.pop(lease)
        await self._on_drain(lease)
        del self.owned[lease.partition]  # before the release, or `_keep` would miss it
        await self._fetch(_RELEASE_PARTITIONS, self._owner, [lease.partition])
        self._draining.discard(lease)
        if not self._draining:
            self._all_released.set()

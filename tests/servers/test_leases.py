"""Sharing the partitions out: fair, fenced, and handed over without a gap."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic

import asyncpg
import pytest

from shared.errors import Fenced
from shared.postgres.connection import Connection, Pool
from shared.values.partition import Lease
from shared.worker.leases import RENEW_EVERY_S, LeaseKeeper
from tests.chaos.links import Disorder, open_wires
from tests.conftest import PARTITIONS
from tests.support.eventually import eventually

ROUND_WITHIN_S = 30


@dataclass
class Worker:
    """Takes what it gets and drains at once."""

    keeper: LeaseKeeper
    running: "asyncio.Task[None]"
    taken: list[Lease]
    connection: Connection
    drained: list[Lease] = field(default_factory=list)

    async def owns(self) -> set[int]:
        return set(self.keeper.owned)


@asynccontextmanager
async def worker(url: str, name: str, *, drains: bool = True) -> AsyncIterator[Worker]:
    taken: list[Lease] = []
    drained: list[Lease] = []

    async def take(lease: Lease) -> None:
        taken.append(lease)

    async def drain(lease: Lease) -> None:
        if not drains:
            await asyncio.Event().wait()
        drained.append(lease)

    connection = await asyncpg.connect(url)
    keeper = LeaseKeeper(connection, name, on_taken=take, on_drain=drain)
    made = Worker(keeper, asyncio.create_task(keeper.run()), taken, connection, drained)
    yield made
    made.running.cancel()
    with suppress(asyncio.CancelledError, ExceptionGroup):
        await made.running
    connection.terminate()


async def owners(pool: Pool) -> dict[int, str]:
    rows = await pool.fetch("SELECT partition, owner FROM partitions WHERE owner IS NOT NULL")
    return {row["partition"]: row["owner"] for row in rows}


async def test_one_worker_owns_everything_from_the_start(event_store_url: str) -> None:
    async with worker(event_store_url, "one") as one:
        async with asyncio.timeout(ROUND_WITHIN_S):
            await one.keeper.first_round.wait()
        assert await one.owns() == set(range(PARTITIONS))
        assert one.keeper.is_valid()
        assert {lease.epoch for lease in one.taken} == {1}


@pytest.mark.parametrize("workers", [2, 3, 4])
async def test_workers_get_shares_that_differ_by_one_at_most(
    event_store_pool: Pool, event_store_url: str, workers: int
) -> None:
    async with AsyncExitStack() as stack:
        all_ = [
            await stack.enter_async_context(worker(event_store_url, f"w{number}"))
            for number in range(workers)
        ]

        async def fair() -> bool:
            sizes = [len(one.keeper.owned) for one in all_]
            return sum(sizes) == PARTITIONS and max(sizes) - min(sizes) <= 1

        await eventually(fair)
        owned = await owners(event_store_pool)
        for one, name in zip(all_, (f"w{n}" for n in range(workers)), strict=True):
            assert {number for number, owner in owned.items() if owner == name} == (
                await one.owns()
            )


async def test_a_worker_that_leaves_hands_over_at_once_after_draining(
    event_store_pool: Pool, event_store_url: str
) -> None:
    async with worker(event_store_url, "stays") as stays:
        async with worker(event_store_url, "leaves") as leaves:

            async def has_its_share() -> bool:
                return len(leaves.keeper.owned) == PARTITIONS // 2

            await eventually(has_its_share)
            had = dict(leaves.keeper.owned)
            await leaves.keeper.hand_over_all()
            assert leaves.drained == list(had.values())
            assert not leaves.keeper.owned
            assert "leaves" not in (await owners(event_store_pool)).values()

        async def has_all() -> bool:
            return len(stays.keeper.owned) == PARTITIONS

        await eventually(has_all)
        for number, lease in had.items():
            assert stays.keeper.owned[number].epoch == lease.epoch + 1


async def test_a_worker_that_freezes_is_replaced_when_its_lease_ran_out(
    event_store_url: str,
) -> None:
    async with worker(event_store_url, "freezes") as freezes, worker(event_store_url, "lives"):
        await eventually(freezes.owns)
        freezes.running.cancel()  # its connection stays

        async with worker(event_store_url, "joins") as joins:

            async def they_have_all() -> bool:
                return len(joins.keeper.owned) == PARTITIONS // 2

            await eventually(they_have_all)
            assert {lease.epoch for lease in joins.keeper.owned.values()} >= {2}


async def test_a_worker_that_dies_is_replaced_long_before_its_lease_runs_out(
    event_store_pool: Pool, event_store_url: str
) -> None:
    async with worker(event_store_url, "dies") as dies:
        await eventually(dies.owns)
        dies.running.cancel()
        await event_store_pool.execute(
            "UPDATE partitions SET leased_until = now() + interval '1 day'"
        )
        await event_store_pool.execute("UPDATE workers SET alive_until = now() + interval '1 day'")
        dies.connection.terminate()
        async with worker(event_store_url, "lives") as lives:

            async def has_all() -> bool:
                return len(lives.keeper.owned) == PARTITIONS

            await eventually(has_all)
            assert {lease.epoch for lease in lives.keeper.owned.values()} == {2}
        assert await event_store_pool.fetchval("SELECT count(*) FROM workers") == 1


async def test_a_worker_that_dies_while_it_leaves_is_replaced_as_soon(
    event_store_pool: Pool, event_store_url: str
) -> None:
    async with worker(event_store_url, "leaves", drains=False) as leaves:
        await eventually(leaves.owns)
        leaving = asyncio.create_task(leaves.keeper.hand_over_all())

        async def has_left() -> bool:
            return not await event_store_pool.fetchval(
                "SELECT count(*) FROM workers WHERE alive_until > now()"
            )

        await eventually(has_left)
        leaves.running.cancel()
        leaving.cancel()
        await event_store_pool.execute(
            "UPDATE partitions SET leased_until = now() + interval '1 day'"
        )
        leaves.connection.terminate()
        async with worker(event_store_url, "lives") as lives:

            async def has_all() -> bool:
                return len(lives.keeper.owned) == PARTITIONS

            await eventually(has_all)


async def test_a_worker_of_before_shows_no_presence_and_keeps_its_lease(
    event_store_pool: Pool, event_store_url: str
) -> None:
    await event_store_pool.execute(
        "INSERT INTO workers (owner, alive_until) VALUES ('old', now() + interval '1 day')"
    )
    await event_store_pool.execute(
        "UPDATE partitions SET owner = 'old', epoch = 1, leased_until = now() + interval '1 day'"
        " WHERE partition = 0"
    )
    async with worker(event_store_url, "new") as new:
        async with asyncio.timeout(ROUND_WITHIN_S):
            await new.keeper.first_round.wait()
        kept_at = monotonic() - new.keeper.seconds_since_renewal()

        async def renewed() -> bool:
            return monotonic() - new.keeper.seconds_since_renewal() > kept_at + RENEW_EVERY_S / 2

        await eventually(renewed)
        assert (await owners(event_store_pool))[0] == "old"
        assert len(new.keeper.owned) == PARTITIONS // 2


async def test_a_keeper_whose_connection_ends_has_no_valid_lease_and_ends(
    event_store_url: str,
) -> None:
    async with worker(event_store_url, "cut off") as cut_off:
        await eventually(cut_off.owns)
        cut_off.connection.terminate()
        assert not cut_off.keeper.is_valid()
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.timeout(ROUND_WITHIN_S):
                await cut_off.running
        assert caught.group_contains(asyncpg.InterfaceError)


async def test_what_is_being_taken_while_a_session_ends_is_given_up_as_well(
    event_store_pool: Pool, event_store_url: str
) -> None:
    with open_wires() as wires:
        link = wires.lay(event_store_url)
        link.disturb(Disorder("silence", ("down",), waits_for=(f"UPDATE {PARTITIONS}\0".encode(),)))
        async with worker(link.url, "takes") as takes:

            async def owner_names() -> bool:
                return set((await owners(event_store_pool)).values()) == {"takes"}

            await eventually(owner_names)
            assert not takes.keeper.owned  # the answer has not arrived
            takes.running.cancel()
            await asyncio.sleep(0)
            link.disturb(None)
            await takes.keeper.abandon()
            assert await owners(event_store_pool) == {}


async def test_a_worker_that_slept_past_its_lease_finds_out(
    event_store_pool: Pool, event_store_url: str
) -> None:
    async with worker(event_store_url, "sleeper") as sleeper:
        await eventually(sleeper.owns)
        await event_store_pool.execute(
            "UPDATE partitions SET owner = 'other', epoch = epoch + 1 WHERE partition = 0"
        )
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.timeout(ROUND_WITHIN_S):
                await sleeper.running
        assert caught.group_contains(Fenced)

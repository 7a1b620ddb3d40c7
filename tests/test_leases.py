"""Sharing the partitions out: fair, fenced, and handed over without a gap."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from shared.database import Pool
from shared.errors import Fenced
from shared.leases import Lease, LeaseKeeper
from tests.conftest import PARTITIONS
from tests.eventually import eventually

ROUND_WITHIN_S = 30


@dataclass
class Worker:
    """Takes what it gets and drains at once."""

    keeper: LeaseKeeper
    running: "asyncio.Task[None]"
    taken: list[Lease]
    drained: list[Lease] = field(default_factory=list)

    async def owns(self) -> set[int]:
        return set(self.keeper.owned)


@asynccontextmanager
async def worker(pool: Pool, name: str) -> AsyncIterator[Worker]:
    taken: list[Lease] = []
    drained: list[Lease] = []

    async def take(lease: Lease) -> None:
        taken.append(lease)

    async def drain(lease: Lease) -> None:
        drained.append(lease)

    keeper = LeaseKeeper(pool, name, on_taken=take, on_drain=drain)
    made = Worker(keeper, asyncio.create_task(keeper.run()), taken, drained)
    yield made
    made.running.cancel()
    with suppress(asyncio.CancelledError, ExceptionGroup):
        await made.running


async def owners(pool: Pool) -> dict[int, str]:
    rows = await pool.fetch("SELECT partition, owner FROM partitions WHERE owner IS NOT NULL")
    return {row["partition"]: row["owner"] for row in rows}


async def test_one_worker_owns_everything_from_the_start(event_store_pool: Pool) -> None:
    async with worker(event_store_pool, "one") as one:
        await asyncio.wait_for(one.keeper.first_round.wait(), ROUND_WITHIN_S)
        assert await one.owns() == set(range(PARTITIONS))
        assert one.keeper.is_valid()
        assert {lease.epoch for lease in one.taken} == {1}


@pytest.mark.parametrize("workers", [2, 3, 4])
async def test_workers_get_shares_that_differ_by_one_at_most(
    event_store_pool: Pool, workers: int
) -> None:
    async with AsyncExitStack() as stack:
        all_ = [
            await stack.enter_async_context(worker(event_store_pool, f"w{number}"))
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
    event_store_pool: Pool,
) -> None:
    async with worker(event_store_pool, "stays") as stays:
        async with worker(event_store_pool, "leaves") as leaves:
            await eventually(leaves.owns)
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


async def test_a_worker_that_dies_is_replaced_when_its_lease_ran_out(
    event_store_pool: Pool,
) -> None:
    async with worker(event_store_pool, "dies") as dies:
        await eventually(dies.owns)
    async with worker(event_store_pool, "lives") as lives:

        async def has_all() -> bool:
            return len(lives.keeper.owned) == PARTITIONS

        await eventually(has_all)
        assert {lease.epoch for lease in lives.keeper.owned.values()} == {2}


async def test_a_worker_that_slept_past_its_lease_finds_out(event_store_pool: Pool) -> None:
    async with worker(event_store_pool, "sleeper") as sleeper:
        await eventually(sleeper.owns)
        await event_store_pool.execute(
            "UPDATE partitions SET owner = 'other', epoch = epoch + 1 WHERE partition = 0"
        )
        with pytest.raises(ExceptionGroup) as caught:
            await asyncio.wait_for(sleeper.running, ROUND_WITHIN_S)
        assert caught.group_contains(Fenced)

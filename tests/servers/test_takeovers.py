"""How a round of chaos measures who serves the partitions of a worker that fell silent."""

from datetime import UTC, datetime

import asyncpg
import pytest

from tests.chaos import takeovers
from tests.chaos.takeovers import Progress, Takeovers


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WAITS_S", "LATEST_WORK_S", "STEADY_S", "LOOKS_EVERY_S"):
        monkeypatch.setattr(takeovers, name, 0.05)
    monkeypatch.setattr(takeovers, "STEADY_WITHIN_S", 1.0)


async def test_a_partition_that_waits_in_vain_is_told_and_an_idle_one_is_not() -> None:
    def look(_: datetime) -> Progress:
        return Progress(waiting={1, 2}, done={2})

    measured = Takeovers("", "", look)
    await measured.measure("command", "command_service-1", {1, 2, 3})
    served, overdue = measured.found
    assert (served.partition, served.seconds) == (2, 0.0)
    assert (overdue.partition, overdue.seconds) == (1, None)


async def test_only_commands_since_the_silence_are_looked_at() -> None:
    asked: list[datetime] = []

    def look(since: datetime) -> Progress:
        asked.append(since)
        return Progress({1}, {1})

    began = datetime.now(UTC)
    await Takeovers("", "", look).measure("command", "command_service-1", {1})
    assert began <= asked[0] <= datetime.now(UTC)


async def test_two_workers_are_steady_when_only_they_own_partitions(
    event_store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = ["command_service-1", "command_service-2"]
    database = await asyncpg.connect(event_store_url)
    measured = Takeovers(event_store_url, "", lambda _: Progress((), ()))
    await _share(database, "command_service-1/a", "1 hour", [0, 1])
    await _share(database, "command_service-2/b", "-1 hour", [2, 3])
    with pytest.raises(AssertionError):
        await measured.steady("command", workers)
    monkeypatch.setattr(takeovers, "STEADY_WITHIN_S", 30.0)
    await _share(database, "command_service-2/b", "1 hour", [2, 3])
    owned = await measured.steady("command", workers)
    await database.close()
    assert owned == {"command_service-1": {0, 1}, "command_service-2": {2, 3}}


async def _share(
    database: "asyncpg.Connection[asyncpg.Record]", owner: str, lasts: str, partitions: list[int]
) -> None:
    await database.execute(
        "INSERT INTO partitions (partition, owner, leased_until)"
        " SELECT n, $1, now() + $2::text::interval FROM unnest($3::int[]) AS n"
        " ON CONFLICT (partition) DO UPDATE SET owner = $1, leased_until = EXCLUDED.leased_until",
        owner, lasts, partitions,
    )  # fmt: skip

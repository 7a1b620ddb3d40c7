"""Clocks that differ by minutes, and step back: no consent outlives its end by more than that."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from shared.messages.timestamp import timestamp
from tests.support.amqp import Client
from tests.support.clock import NOW, DatabaseClock
from tests.support.deployment import SERVICES, Deployment
from tests.support.eventually import eventually
from tests.support.facts import fetch

MINUTES: Final = timedelta(minutes=5)
SOON: Final = timedelta(seconds=4)


@pytest.fixture
async def log_clock(deployment: Deployment) -> AsyncIterator[DatabaseClock]:
    """Give the clock of the event store's server."""
    clock = await DatabaseClock.open(deployment.event_store_url)
    yield clock
    await clock.close()


def end_in(after: timedelta) -> str:
    return timestamp(datetime.now(UTC) + after)


async def grant(client: Client, patient_id: str, after: timedelta) -> Any:  # noqa: ANN401
    return await client.command("GrantConsent", patient_id, expires_at=end_in(after))


async def has_consent(client: Client, patient_id: str) -> bool:
    found = await client.query(
        "HasConsent",
        patient_id=patient_id,
        entity_name="doctor",
        entity_id="d-1",
        permission="exams",
        min_version=1,
    )
    return bool(found["has_consent"])


async def log_of(deployment: Deployment, patient_id: str) -> list[Any]:
    return await fetch(
        deployment.event_store_url,
        f"SELECT * FROM events WHERE stream_id = '{patient_id}' ORDER BY stream_version",  # noqa: S608
    )


async def types_of(deployment: Deployment, patient_id: str) -> list[str]:
    return [row["type"] for row in await log_of(deployment, patient_id)]


async def has_expired(deployment: Deployment, patient_id: str) -> None:
    """Wait until the log tells the end, once, and nobody is to look into it again."""

    async def told() -> bool:
        left = await fetch(deployment.event_store_url, "SELECT FROM ends")
        return not left and "ConsentExpired" in await types_of(deployment, patient_id)

    await eventually(told, within=30)
    assert await types_of(deployment, patient_id) == ["ConsentGranted", "ConsentExpired"]


async def test_where_the_logs_clock_is_behind_answers_end_at_their_own_and_the_news_comes_later(
    deployment: Deployment, client: Client, log_clock: DatabaseClock
) -> None:
    await log_clock.set_ahead(-MINUTES)
    deployment.start_both()
    over = await grant(client, "p-over", -MINUTES / 2)
    assert over["status"] == "accepted", "it is not over yet by the log's time"
    await grant(client, "p-soon", SOON)
    assert not await has_consent(client, "p-over")

    async def ended() -> bool:
        return not await has_consent(client, "p-soon")

    await eventually(ended, within=30)
    assert await types_of(deployment, "p-soon") == ["ConsentGranted"]
    await log_clock.set_ahead(NOW)
    await has_expired(deployment, "p-over")
    await has_expired(deployment, "p-soon")
    assert not await has_consent(client, "p-soon")


async def test_where_the_logs_clock_is_ahead_a_grant_ends_by_it_at_the_latest_where_it_is_told(
    deployment: Deployment, client: Client, log_clock: DatabaseClock
) -> None:
    await log_clock.set_ahead(MINUTES)
    deployment.start_both()
    refused = await grant(client, "p-1", MINUTES - SOON)
    assert refused["error"] == "expiry_not_in_the_future"
    accepted = await grant(client, "p-1", MINUTES + SOON)
    assert accepted["status"] == "accepted"
    await has_expired(deployment, "p-1")
    granted, expired = await log_of(deployment, "p-1")
    assert granted["recorded_at"] < expired["recorded_at"]
    assert expired["recorded_at"] > datetime.now(UTC) + MINUTES / 2

    async def ended() -> bool:
        return not await has_consent(client, "p-1")

    await eventually(ended, within=30)


async def test_a_clock_that_is_set_back_sets_the_log_not_back_and_no_end_is_told_twice_or_never(
    deployment: Deployment, client: Client, log_clock: DatabaseClock
) -> None:
    await log_clock.set_ahead(2 * MINUTES)
    worker = deployment.start("command_service")
    worker.wait_ready()
    await grant(client, "p-1", 2 * MINUTES + SOON)
    await has_expired(deployment, "p-1")
    await log_clock.set_ahead(NOW)
    refused = await grant(client, "p-1", MINUTES)
    assert refused["error"] == "expiry_not_in_the_future", "it is later than that in the log"
    accepted = await grant(client, "p-1", 2 * MINUTES + 20 * SOON)
    assert accepted["status"] == "accepted"
    events = await log_of(deployment, "p-1")
    assert [row["type"] for row in events] == ["ConsentGranted", "ConsentExpired", "ConsentGranted"]
    times = [row["recorded_at"] for row in events]
    assert times == sorted(times)
    await log_clock.set_ahead(3 * MINUTES)

    async def told() -> bool:
        return len(await log_of(deployment, "p-1")) == 4

    await eventually(told, within=30)
    assert (await types_of(deployment, "p-1"))[-1] == "ConsentExpired"
    assert worker.metric("consent_sessions_lost_total") == 0


async def test_an_end_that_is_found_just_before_the_clock_steps_back_is_not_forgotten(
    deployment: Deployment, client: Client, log_clock: DatabaseClock
) -> None:
    """Ends are found by one function and decided by the other, a moment later."""
    worker = deployment.start("command_service")
    worker.wait_ready()
    await grant(client, "p-1", MINUTES)
    await log_clock.set_ahead(2 * MINUTES, "statement_timestamp")

    async def looked_into() -> bool:
        return worker.log.count("ends.recorded") >= 2

    await eventually(looked_into, within=30)
    assert await types_of(deployment, "p-1") == ["ConsentGranted"]
    await log_clock.set_ahead(2 * MINUTES)
    await has_expired(deployment, "p-1")


@pytest.mark.parametrize("service", SERVICES)
async def test_check_says_by_how_much_the_databases_clocks_differ(
    deployment: Deployment, log_clock: DatabaseClock, service: str
) -> None:
    await log_clock.set_ahead(MINUTES)
    done = deployment.run(service, "check")
    whose, other, how = (
        ("the event store's", "the read model's", "ahead of")
        if service == "command_service"
        else ("the read model's", "the event store's", "behind")
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if " clocks: " in line]
    assert f"clocks: {whose} is " in line
    assert f" s {how} {other}: set both by NTP" in line
    (difference,) = [word for word in line.split() if word.replace(".", "").isdigit()]
    assert float(difference) == pytest.approx(MINUTES.total_seconds(), abs=10)

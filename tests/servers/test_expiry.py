"""Ends are recorded as events: once each, in order, whoever dies when, and whatever stands by."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from command_service.store.ends import DueEnd, Ends
from shared.messages.timestamp import timestamp
from shared.postgres.connection import Pool
from shared.values.partition import partition_of
from tests.conftest import PARTITIONS
from tests.support.amqp import Client, Json, body_of
from tests.support.deployment import Deployment, Worker
from tests.support.eventually import eventually
from tests.support.facts import fetch

SOON = timedelta(seconds=4)
"""Until then a test does what must be done before an end, on a slow machine too."""


def soon(after: timedelta = SOON) -> str:
    return timestamp(datetime.now(UTC) + after)


async def log_of(deployment: Deployment, patient_id: str) -> list[asyncpg.Record]:
    rows = await fetch(
        deployment.event_store_url, "SELECT * FROM events ORDER BY partition, position"
    )
    return [row for row in rows if row["stream_id"] == patient_id]


async def types_of(deployment: Deployment, patient_id: str) -> list[str]:
    return [row["type"].removeprefix("Consent") for row in await log_of(deployment, patient_id)]


async def ends_left(deployment: Deployment) -> int:
    rows = await fetch(deployment.event_store_url, "SELECT count(*)::int AS n FROM ends")
    return int(rows[0]["n"])


async def recorded(deployment: Deployment, patient_id: str, events: int) -> list[str]:
    """Wait until a patient's history has so many events, and no end is left to look into."""

    async def look() -> bool:
        written = await types_of(deployment, patient_id)
        return len(written) >= events and not await ends_left(deployment)

    await eventually(look, within=30)
    return await types_of(deployment, patient_id)


def start(deployment: Deployment) -> Worker:
    worker = deployment.start("command_service")
    worker.wait_ready()
    return worker


async def test_an_end_that_comes_is_told_to_subscribers_once_without_any_command(
    deployment: Deployment, client: Client
) -> None:
    start(deployment)
    seen: list[Any] = []
    await client.subscribe("expired.#", seen.append)
    end = soon()
    granted = await client.command("GrantConsent", "p-1", target="all", expires_at=end)

    async def told() -> bool:
        return len(seen) == 4

    await eventually(told, within=30)
    assert await recorded(deployment, "p-1", 8) == ["Granted"] * 4 + ["Expired"] * 4
    events = [json.loads(message.body) for message in seen]
    assert [event["streamversion"] for event in events] == [5, 6, 7, 8]
    assert {event["data"]["expires_at"] for event in events} == {end}
    assert all(event["time"] >= end for event in events)
    assert seen[0].routing_key == f"expired.doctor.exams.{granted['partition']}"
    (came,) = {event["causationid"] for event in events}
    assert came != granted["command_id"]
    receipts = await fetch(
        deployment.event_store_url,
        f"SELECT event_count FROM command_receipts WHERE command_id = '{came}'",  # noqa: S608
    )
    assert [row["event_count"] for row in receipts] == [4]


async def test_what_was_revoked_or_extended_does_not_expire(
    deployment: Deployment, client: Client
) -> None:
    start(deployment)
    end, later = soon(), soon(2 * SOON)
    sent = [
        await client.send(type_, body_of(type_, patient, expires_at=expires_at))
        for patient, type_, expires_at in (
            ("p-revoked", "GrantConsent", end),
            ("p-revoked", "RevokeConsent", None),
            ("p-endless", "GrantConsent", end),
            ("p-endless", "GrantConsent", None),
            ("p-later", "GrantConsent", end),
            ("p-later", "GrantConsent", later),
            ("p-control", "GrantConsent", end),
        )
    ]
    for one in sent:
        assert (await client.reply(one))["status"] == "accepted"
    assert await recorded(deployment, "p-later", 3) == ["Granted", "Granted", "Expired"]
    assert await types_of(deployment, "p-control") == ["Granted", "Expired"]
    assert await types_of(deployment, "p-revoked") == ["Granted", "Revoked"]
    assert await types_of(deployment, "p-endless") == ["Granted", "Granted"]


async def test_an_end_that_came_while_nobody_worked_is_recorded_before_the_next_grant(
    deployment: Deployment, client: Client
) -> None:
    worker = start(deployment)
    await client.command("GrantConsent", "p-1", expires_at=soon())
    worker.kill()
    await asyncio.sleep(SOON.total_seconds() + 0.5)  # the end is the stimulus
    again = await client.send("GrantConsent", body_of("GrantConsent", "p-1"))
    start(deployment)
    outcome = await client.reply(again)
    assert [event["type"] for event in outcome["events"]] == ["ConsentGranted"]
    assert outcome["version"] == 3
    assert await recorded(deployment, "p-1", 3) == ["Granted", "Expired", "Granted"]


@asynccontextmanager
async def held_up(
    deployment: Deployment, action: str, table: str, level: str = "STATEMENT"
) -> AsyncIterator[asyncpg.Connection]:
    """Let whoever does this to a table wait, until the lock of this connection is given back."""
    async with closing_connection(deployment.event_store_url) as connection:
        await connection.execute("SELECT pg_advisory_lock(13)")
        await connection.execute(
            "CREATE FUNCTION held_up() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_advisory_xact_lock(13); RETURN NULL; END $$"
        )
        await connection.execute(
            f"CREATE TRIGGER held_up AFTER {action} ON {table} "
            f"FOR EACH {level} EXECUTE FUNCTION held_up()"
        )
        yield connection
        await connection.execute(f"DROP TRIGGER held_up ON {table}")


@asynccontextmanager
async def closing_connection(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


WAITING = (
    "SELECT pid FROM pg_stat_activity "
    "WHERE wait_event = 'advisory' AND datname = current_database()"
)


@pytest.mark.parametrize(
    ("step", "is_done", "recorded_before"),
    [
        ("INSERT ON events", False, 0),
        ("INSERT ON events", True, 1),
        ("DELETE ON ends", False, 1),
        ("DELETE ON ends", True, 1),
    ],
    ids=[
        "before it is appended",
        "when it is appended and the worker has not heard of it",
        "before it is forgotten",
        "when it is forgotten and the worker has not heard of it",
    ],
)
async def test_a_death_on_the_way_has_an_end_recorded_and_told_once_by_whoever_comes_next(
    deployment: Deployment, client: Client, step: str, recorded_before: int, *, is_done: bool
) -> None:
    """A trigger holds the worker up at that step, and there it is killed."""
    worker = start(deployment)
    seen: list[Any] = []
    await client.subscribe("expired.#", seen.append)
    await client.command("GrantConsent", "p-1", target="all", expires_at=soon())
    action, table = step.split(" ON ")
    async with held_up(deployment, action, table) as connection:
        (waiting,) = await eventually(lambda: connection.fetch(WAITING), within=30)
        worker.kill()
        if not is_done:
            await connection.execute(f"SELECT pg_terminate_backend({waiting['pid']})")
        await connection.execute("SELECT pg_advisory_unlock(13)")

        async def nobody_is_held_up() -> bool:
            return not await connection.fetch(WAITING)

        await eventually(nobody_is_held_up, within=30)

    async def as_left() -> bool:
        return (await types_of(deployment, "p-1")).count("Expired") == 4 * recorded_before

    await eventually(as_left)
    start(deployment)
    assert await recorded(deployment, "p-1", 8) == ["Granted"] * 4 + ["Expired"] * 4

    async def told() -> bool:
        return len({message.message_id for message in seen}) == 4

    await eventually(told, within=30)


async def test_ends_that_come_while_workers_die_and_leave_are_recorded_once_each_and_told_in_order(
    deployment: Deployment, client: Client
) -> None:
    first, second = start(deployment), start(deployment)
    seen: list[Any] = []
    await client.subscribe("expired.#", seen.append)
    patients = [f"p-{number}" for number in range(120)]
    end = soon(3 * SOON)
    async with held_up(deployment, "INSERT", "events", "ROW") as connection:
        await connection.execute("SELECT pg_advisory_unlock(13)")
        await asyncio.gather(
            *(client.command("GrantConsent", patient, expires_at=end) for patient in patients)
        )
        await connection.execute("SELECT pg_advisory_lock(13)")
        await eventually(lambda: connection.fetch(WAITING), within=30)
        first.kill()
        await connection.execute("SELECT pg_advisory_unlock(13)")
    third = start(deployment)
    second.stop()
    assert third.process.poll() is None

    async def all_told() -> bool:
        return len({message.message_id for message in seen}) == len(patients)

    await eventually(all_told, within=60)
    await recorded(deployment, patients[0], 2)
    written: dict[str, list[str]] = defaultdict(list)
    for row in await fetch(deployment.event_store_url, "SELECT * FROM events ORDER BY position"):
        written[row["stream_id"]].append(row["type"])
    assert written.keys() == set(patients)
    assert all(types == ["ConsentGranted", "ConsentExpired"] for types in written.values())
    told: dict[int, list[int]] = {}
    for event in (json.loads(message.body) for message in seen):
        positions = told.setdefault(partition_of(event["subject"], PARTITIONS), [])
        if event["position"] not in positions:
            positions.append(event["position"])
    assert all(positions == sorted(positions) for positions in told.values())


async def test_a_patient_whose_ends_cannot_be_appended_is_put_off_and_holds_up_nobody_else(
    deployment: Deployment, client: Client
) -> None:
    worker = start(deployment)
    end = soon(2 * SOON)
    for patient in ("p-odd", "p-1", "p-2"):
        await client.command("GrantConsent", patient, expires_at=end)
    async with closing_connection(deployment.event_store_url) as connection:
        await connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "RAISE unique_violation USING CONSTRAINT = 'events_stream_version_key'; END $$"
        )
        await connection.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW "
            "WHEN (NEW.stream_id = 'p-odd') EXECUTE FUNCTION refuse()"
        )

        async def put_off() -> bool:
            both = [await types_of(deployment, patient) for patient in ("p-1", "p-2")]
            return (
                both == [["Granted", "Expired"]] * 2
                and worker.metric("consent_ends_put_off") == 1
                and await ends_left(deployment) == 1
            )

        await eventually(put_off, within=30)
        assert worker.log.count("ends.put_off") == 1
        assert "p-odd" not in worker.log
        assert worker.metric("consent_sessions_lost_total") == 0
        assert worker.metric("consent_ends_recorded_total") == 2
        worker.kill()
        await connection.execute("DROP TRIGGER refuse ON events")
    start(deployment)
    assert await recorded(deployment, "p-odd", 2) == ["Granted", "Expired"]


async def test_a_patient_whose_history_cannot_be_read_holds_up_nobody_else(
    deployment: Deployment, client: Client
) -> None:
    worker = start(deployment)
    outcome = await client.command("GrantConsent", "p-odd", expires_at=soon(2 * SOON))
    worker.kill()
    await fetch(
        deployment.event_store_url,
        "WITH moved AS (UPDATE partitions SET position = position + 1 "  # noqa: S608
        f"WHERE partition = {outcome['partition']} RETURNING *) "
        "INSERT INTO events SELECT partition, position, 'p-odd', 2, gen_random_uuid(), "
        "'ConsentSold', 1, '{}', recorded_at, 'c', gen_random_uuid() FROM moved",
    )
    worker = start(deployment)
    await client.command("GrantConsent", "p-1", expires_at=soon(2 * SOON))

    async def told() -> bool:
        return await types_of(deployment, "p-1") == ["Granted", "Expired"]

    await eventually(told, within=30)

    async def put_off() -> bool:
        return "ends.put_off" in worker.log

    await eventually(put_off, within=30)
    assert await types_of(deployment, "p-odd") == ["Granted", "Sold"]
    assert await ends_left(deployment) == 1
    assert worker.metric("consent_sessions_lost_total") == 0


async def test_a_worker_that_lost_a_partition_forgets_none_of_its_ends(
    event_store_pool: Pool,
) -> None:
    ends, end = Ends(event_store_pool), datetime.now(UTC) - timedelta(minutes=1)
    partition = partition_of("p-1", PARTITIONS)
    await event_store_pool.execute("INSERT INTO ends VALUES ($1, $2, 'p-1')", partition, end)
    await event_store_pool.execute("UPDATE partitions SET epoch = 7")
    due: list[DueEnd] = await ends.read_due([partition], 10, [])
    assert [(each.expires_at, each.stream_id) for each in due] == [(end, "p-1")]
    assert await ends.read_due([partition], 10, ["p-1"]) == []
    await ends.forget(due, {partition: 6})
    assert await ends.read_due([partition], 10, []) != []
    await ends.forget(due, {partition: 7})
    assert await ends.read_due([partition], 10, []) == []


async def test_the_longest_grant_of_a_deployment_is_kept_to(
    deployment: Deployment, client: Client
) -> None:
    worker = deployment.start("command_service", CONSENT_LONGEST_GRANT="1h")
    worker.wait_ready()
    endless = await client.command("GrantConsent", "p-1")
    longer = await client.command("AskConsent", "p-1", expires_at=soon(timedelta(hours=2)))
    shorter = await client.command("GrantConsent", "p-1", expires_at=soon(timedelta(minutes=59)))
    assert [endless["error"], longer["error"]] == ["grant_too_long"] * 2
    assert endless["details"] == [
        {"field": "expires_at", "message": "must be within 1:00:00 from now"}
    ]
    assert shorter["status"] == "accepted"
    wrong = deployment.run("command_service", "run", CONSENT_LONGEST_GRANT="soon")
    assert wrong.returncode == 2
    assert "CONSENT_LONGEST_GRANT is wrong: 'soon' is no duration" in wrong.stderr


async def test_a_refusal_tells_the_end_that_stands_however_often_it_is_asked(
    deployment: Deployment, client: Client
) -> None:
    start(deployment)
    end = soon(timedelta(hours=1))
    await client.command("GrantConsent", "p-1", expires_at=end)
    body = body_of("GrantConsent", "p-1", expires_at=end)
    command_id = "7f0e0d0c-0b0a-4908-8706-050403020101"
    told: list[Json] = [
        await client.reply(await client.send("GrantConsent", body, message_id=command_id))
        for _ in range(2)
    ]
    assert told[0] == told[1]
    assert told[0]["details"] == [
        {"field": "expires_at", "message": f"exams is granted until {end}"}
    ]

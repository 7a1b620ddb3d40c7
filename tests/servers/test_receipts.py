"""Receipts' retention: what a purge takes, what it leaves, and what is promised after it."""

import asyncio
import json
import os
import subprocess
import sys
from datetime import timedelta
from typing import Any, cast
from uuid import uuid4

import pytest

from command_service.store.event_store import EventStore
from command_service.store.purge_receipts import ROWS_AT_ONCE, PurgedReceipts, purge_receipts
from shared.errors import SettingsError
from shared.postgres.connection import Connection, Pool
from shared.postgres.database import migrate
from shared.postgres.statements import statement
from shared.values.durations import parse_duration
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.servers.test_event_store import EPOCHS, append, decide, grant, received, revoke
from tests.servers.test_least_privilege import with_login
from tests.support import warm
from tests.support.amqp import Client, body_of
from tests.support.deployment import Deployment
from tests.support.facts import fetch, flood, log_size, replies

OLD_RECEIPTS = """
    INSERT INTO command_receipts
    SELECT gen_random_uuid(), '', 'p-old', 0, 1, 1, 0, 'consent_not_granted', '',
           now() - interval '400 days' + number / 100 * interval '1 second'
      FROM generate_series(1, $1) AS number"""


async def purge(pool: Pool, age: timedelta, **more: Any) -> PurgedReceipts:  # noqa: ANN401 - its options
    async with pool.acquire() as connection:
        return await purge_receipts(cast("Connection", connection), age, **more)


def command_line(event_store_url: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the verb with the one setting that it needs."""
    words = [sys.executable, "-m", "command_service", "receipts", "purge", *arguments]
    return warm.run(words, {**os.environ, "EVENT_STORE_URL": event_store_url})


async def test_a_purge_takes_the_old_in_small_parts_and_leaves_the_young_and_the_events(
    event_store_pool: Pool,
) -> None:
    store = EventStore(event_store_pool)
    await append(store, grant("p-1"), grant("p-2"))
    await event_store_pool.execute(OLD_RECEIPTS, 2 * ROWS_AT_ONCE + 7)
    parts: list[int] = []
    purged = await purge(
        event_store_pool, timedelta(days=90), tell=lambda so_far: parts.append(so_far.deleted)
    )
    assert purged.found == purged.deleted == 2 * ROWS_AT_ONCE + 7
    assert parts == [ROWS_AT_ONCE, 2 * ROWS_AT_ONCE, 2 * ROWS_AT_ONCE + 7]
    assert await event_store_pool.fetchval("SELECT count(*) FROM command_receipts") == 2
    assert await event_store_pool.fetchval("SELECT count(*) FROM events") == 2


async def test_after_a_purge_the_same_command_id_counts_as_new(event_store_pool: Pool) -> None:
    store = EventStore(event_store_pool)
    first = received(grant("p-1"))
    await store.append(await decide(store, [first]), EPOCHS)
    await append(store, revoke("p-1"))
    assert await decide(store, [first]) == [], "the receipt still tells the outcome"
    await event_store_pool.execute(
        "UPDATE command_receipts SET recorded_at = recorded_at - interval '91 days'"
    )
    await purge(event_store_pool, timedelta(days=90))
    (decision,) = await decide(store, [first])
    assert decision.version == 3


@pytest.mark.parametrize("name", ["purge_receipts", "count_receipts"])
async def test_old_receipts_are_found_by_the_index_on_their_time(
    event_store_pool: Pool, name: str
) -> None:
    query = statement("command_service", name)
    async with event_store_pool.acquire() as connection:
        prepared = await connection.prepare(query)
        arguments = {
            "interval": timedelta(days=90),
            "timestamptz": await connection.fetchval("SELECT now()"),
            "int4": 10,
        }
        given = [arguments[parameter.name] for parameter in prepared.get_parameters()]
        plan = await connection.fetch(f"EXPLAIN {query}", *given)
    text = "\n".join(row[0] for row in plan)
    assert "command_receipts_recorded_at_idx" in text
    assert "Seq Scan" not in text


async def test_a_purge_beside_a_busy_worker_stops_nobody(
    deployment: Deployment, client: Client
) -> None:
    worker = deployment.start("command_service")
    worker.wait_ready()
    await fetch(deployment.event_store_url, OLD_RECEIPTS.replace("$1", str(5 * ROWS_AT_ONCE)))
    sent = await flood(client, patients=20)
    done = await asyncio.to_thread(
        deployment.run, "command_service", "receipts", "purge", "--older-than", "1y", "--json"
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["found"], told["deleted"]) == (5 * ROWS_AT_ONCE, 5 * ROWS_AT_ONCE)
    assert {one["status"] for one in await replies(client, sent)} == {"accepted"}
    assert await log_size(deployment) == len(sent)
    message_id = str(uuid4())
    body = body_of("GrantConsent", "p-x")
    twice = [await client.send("GrantConsent", body, message_id=message_id) for _ in range(2)]
    first, again = await replies(client, twice)
    assert first == again
    assert "session.lost" not in worker.log


async def test_a_dry_run_counts_and_deletes_nothing(event_store_pool: Pool) -> None:
    await event_store_pool.execute(OLD_RECEIPTS, 10)
    purged = await purge(event_store_pool, timedelta(weeks=1), dry_run=True)
    assert (purged.found, purged.deleted) == (10, 0)
    assert await event_store_pool.fetchval("SELECT count(*) FROM command_receipts") == 10


@pytest.mark.parametrize(
    ("age", "complaint"),
    [
        ("23h", "error: no receipts younger than a day can be purged: --older-than 1d or more"),
        ("99999y", "error: nothing is that old: give a shorter --older-than"),
        (
            "soon",
            (
                "error: --older-than: 'soon' is no duration: "
                "write a number and one of s m h d w y, as 90d"
            ),
        ),
    ],
)
def test_a_silly_age_is_refused_in_one_line(event_store_url: str, age: str, complaint: str) -> None:
    done = command_line(event_store_url, "--older-than", age)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{complaint}\n")


async def test_the_workers_role_may_not_purge_and_is_told_who_may(
    sandbox: Sandbox, event_store_url: str, event_store_pool: Pool
) -> None:
    sandbox.event_store_server.execute("CREATE ROLE receipts_clerk LOGIN PASSWORD 'pw'")
    await event_store_pool.execute(OLD_RECEIPTS, 1)
    await migrate(event_store_url, "command_service", PARTITIONS, worker_role="receipts_clerk")
    url = with_login(event_store_url, "receipts_clerk", "pw")
    done = command_line(url, "--older-than", "90d")
    assert done.returncode == 2
    assert done.stderr.strip().endswith("purge as the owner of the schema")
    await event_store_pool.execute("DROP OWNED BY receipts_clerk")
    sandbox.event_store_server.execute("DROP ROLE receipts_clerk")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90d", timedelta(days=90)),
        ("12h", timedelta(hours=12)),
        ("1y", timedelta(days=365)),
        ("2w", timedelta(days=14)),
        ("5m", timedelta(minutes=5)),
        ("7s", timedelta(seconds=7)),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: str, expected: timedelta) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "90", "d", "-1d", "1.5d", "90 days", "٣d", "999999999y"])
def test_what_is_no_duration_is_told_the_remedy(text: str) -> None:
    with pytest.raises(ValueError, match="write a number and one of s m h d w y"):
        parse_duration(text)


async def test_a_purge_that_finds_an_age_too_short_changes_nothing(event_store_pool: Pool) -> None:
    await event_store_pool.execute(OLD_RECEIPTS, 3)
    with pytest.raises(SettingsError, match="1d or more"):
        await purge(event_store_pool, timedelta(hours=23))
    assert await event_store_pool.fetchval("SELECT count(*) FROM command_receipts") == 3

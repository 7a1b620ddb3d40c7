"""Several workers of a kind: who owns what when they come, leave, die, or sleep too long."""

import asyncio
import json
import signal
from collections import defaultdict
from contextlib import suppress
from subprocess import TimeoutExpired
from time import monotonic
from typing import Any

import pytest

from command_service.path.poison_messages import MOST_ATTEMPTS
from shared.rabbitmq.consumer import SUSPICIOUS
from tests.conftest import PARTITIONS
from tests.support.amqp import Client, body_of
from tests.support.deployment import Deployment, ServiceName, Worker
from tests.support.eventually import eventually
from tests.support.facts import fetch, flood, folded_log, log_size, projected, read_model, replies

TAKEN_HANDED_OVER = ("taken", "handed_over")


def owned(worker: Worker) -> int:
    return int(worker.metric("consent_partition_owned"))


async def shares(deployment: Deployment) -> list[int]:
    """Count what each worker that runs owns, by the leases in its database."""
    rows = await fetch(
        deployment.event_store_url,
        "SELECT count(*) AS n FROM partitions WHERE leased_until > now() GROUP BY owner",
    )
    return sorted(row["n"] for row in rows)


@pytest.mark.parametrize("workers", [1, 2, 3])
async def test_workers_started_together_share_out_fairly(
    deployment: Deployment, workers: int
) -> None:
    for _ in range(workers):
        deployment.start("command_service")
    for worker in deployment.workers:
        worker.wait_ready()
    fair = sorted(len(range(PARTITIONS)[n::workers]) for n in range(workers))

    async def is_fair() -> bool:
        return await shares(deployment) == fair

    await eventually(is_fair)


async def test_a_worker_that_is_stopped_under_load_hands_over_itself_and_nothing_is_done_twice(
    deployment: Deployment, client: Client
) -> None:
    leaving, staying = deployment.start("command_service"), deployment.start("command_service")
    leaving.wait_ready()
    staying.wait_ready()

    async def both_own() -> bool:
        return owned(leaving) == owned(staying) == PARTITIONS / 2

    await eventually(both_own)
    seen: list[Any] = []
    await client.subscribe("#", seen.append)
    sent = await flood(client, patients=40)
    assert leaving.stop() == 0
    taken, handed_over = (leaving.log.count(f'"partition.{done}"') for done in TAKEN_HANDED_OVER)
    assert taken == handed_over, "or its leases would have to run out"

    async def moved() -> bool:
        return owned(staying) == PARTITIONS

    await eventually(moved)
    outcomes = await replies(client, sent)
    assert {one["status"] for one in outcomes} == {"accepted"}

    async def all_told() -> bool:
        return handled(leaving) + handled(staying) >= len(sent)

    await eventually(all_told)
    assert handled(leaving) + handled(staying) == len(sent), "each command was handled once"
    await assert_in_order(seen, len(sent))


def handled(worker: Worker) -> int:
    """Count the deliveries of all batches in a worker's log."""
    whole = worker.log.rpartition("\n")[0]
    lines = (json.loads(line) for line in whole.splitlines() if '"batch.appended"' in line)
    return sum(line["deliveries"] for line in lines)


async def assert_in_order(seen: list[Any], expected: int) -> None:
    """Each partition's events came in order but for repeats, all of them."""

    async def all_seen() -> bool:
        return len({message.message_id for message in seen}) == expected

    await eventually(all_seen)
    highest: dict[int, int] = defaultdict(int)
    for message in seen:
        event = json.loads(message.body)
        if event["position"] > highest[event["partition"]]:
            assert event["position"] == highest[event["partition"]] + 1
            highest[event["partition"]] = event["position"]
    assert sum(highest.values()) == expected


@pytest.mark.parametrize("service", ["command_service", "projection_service"])
async def test_when_a_worker_dies_the_others_have_everything_and_work(
    deployment: Deployment, client: Client, service: ServiceName
) -> None:
    for kind in ("command_service", "projection_service"):
        deployment.start(kind)
    dying = deployment.start(service)
    for worker in deployment.workers:
        worker.wait_ready()

    async def owns_half() -> bool:
        return owned(dying) == PARTITIONS / 2

    await eventually(owns_half)
    sent = await flood(client, patients=10)
    dying.kill()
    sent += await flood(client, patients=5, doctors=1)
    outcomes = await replies(client, sent)
    assert len(outcomes) == len(sent)

    async def all_projected() -> bool:
        return await projected(deployment) == await log_size(deployment)

    await eventually(all_projected)
    assert await read_model(deployment) == await folded_log(deployment)


async def test_a_worker_frozen_past_its_lease_does_no_harm_when_it_wakes_and_rejoins(
    deployment: Deployment, client: Client
) -> None:
    deployment.start("projection_service")
    sleeper, other = deployment.start("command_service"), deployment.start("command_service")
    for worker in deployment.workers:
        worker.wait_ready()

    async def both_own() -> bool:
        return owned(sleeper) == owned(other) == PARTITIONS / 2

    await eventually(both_own)
    seen: list[Any] = []
    await client.subscribe("#", seen.append)
    sent = await flood(client, patients=20)
    sleeper.send(signal.SIGSTOP)

    async def taken_over() -> bool:
        return owned(other) == PARTITIONS

    await eventually(taken_over)
    sent += await flood(client, patients=20, doctors=1)
    outcomes = await replies(client, sent)
    sleeper.send(signal.SIGCONT)
    await eventually(both_own)

    more = await client.command("AskConsent", "p-after")
    assert more["status"] == "accepted"
    assert len({one["command_id"] for one in outcomes}) == len(sent)
    accepted = sum(len(one.get("events", [])) for one in outcomes) + 1
    assert await log_size(deployment) == accepted
    await assert_in_order(seen, accepted)

    async def all_projected() -> bool:
        return await projected(deployment) == accepted

    await eventually(all_projected)
    assert await read_model(deployment) == await folded_log(deployment)
    assert sleeper.process.poll() is None


KILLER = """
import os
from command_service.path import command_path
decode = command_path.decode
def deadly(delivery, partitions):
    if b"p-deadly" in delivery.body:
        os._exit(9)
    return decode(delivery, partitions)
command_path.decode = deadly
from command_service.cli import app
app(["run"])
"""


async def test_a_command_that_kills_the_worker_each_time_is_set_aside_and_takes_no_other_with_it(
    deployment: Deployment, client: Client
) -> None:
    before = [
        await client.send("GrantConsent", body_of("GrantConsent", f"p-{n}")) for n in range(8)
    ]
    deadly = await client.send("GrantConsent", body_of("GrantConsent", "p-deadly"))
    after = [
        await client.send("GrantConsent", body_of("GrantConsent", f"p-{n}")) for n in range(8, 40)
    ]
    queue = await client.channel.get_queue("consent.dead-letters", ensure=False)
    deaths = 0
    while (letter := await queue.get(fail=False)) is None:
        assert deaths < 20, "the command was never set aside"
        worker = deployment.start("command_service", program=("-c", KILLER))
        await asyncio.to_thread(_wait_until_it_dies_or_is_done, worker)
        deaths += worker.process.poll() is not None
        await forget_leases(deployment)
    await letter.ack()

    assert (letter.correlation_id, letter.type) == (deadly, "GrantConsent")
    assert letter.headers["x-consent-error"] == "delivery_limit"
    assert await queue.get(fail=False) is None, "an innocent command was set aside as well"
    outcomes = await replies(client, before + after)
    assert {one["status"] for one in outcomes} == {"accepted"}
    assert deaths == SUSPICIOUS + MOST_ATTEMPTS


def _wait_until_it_dies_or_is_done(worker: Worker) -> None:
    deadline = monotonic() + 60
    while "delivery.set_aside" not in worker.log and monotonic() < deadline:
        with suppress(TimeoutExpired):
            worker.process.wait(0.05)
            return


async def forget_leases(deployment: Deployment) -> None:
    """Spare the test the time until a dead worker's leases run out."""
    await fetch(
        deployment.event_store_url,
        "UPDATE partitions SET leased_until = now() RETURNING partition",
    )

"""What a worker holds in memory does not depend on what others send."""

import asyncio
import json
from pathlib import Path
from uuid import uuid4

from tests.conftest import PARTITIONS
from tests.support.amqp import Client, body_of
from tests.support.deployment import Deployment, Worker
from tests.support.eventually import eventually
from tests.support.raw_amqp import open_raw_publisher, short, table

MIB = 1 << 20
MOST_MIB = 300


def peak_mib(worker: Worker) -> int:
    """Read the most that a process ever had in memory."""
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) // 1024


async def answered(client: Client, patient: str) -> None:
    """Check that an honest command and an honest query are answered behind all that."""
    accepted = await client.command("GrantConsent", patient)
    assert accepted["status"] == "accepted"
    held = await client.query("ListConsents", patient_id=patient, min_version=1)
    assert held["version"] == 1


def lists(size: int) -> bytes:
    """Write JSON that takes the most memory for its size, once it is parsed."""
    return b'{"patient_id":"p","a":[' + b"[]," * (size // 3) + b"[]]}"


async def test_memory_is_bounded_with_every_queue_full_of_huge_messages(
    deployment: Deployment, client: Client
) -> None:
    huge = lists(8 * MIB)
    commands = [(f"ask.{number}", "AskConsent") for number in range(PARTITIONS) for _ in range(8)]
    for key, type_ in commands:
        await client.send(type_, huge, key=key, reply_to=None)
    for type_ in ["ReadEvents"] * 4 + ["ListConsents"] * 16:
        await client.send(type_, huge, exchange="consent.queries", key=type_)
    for number in range(PARTITIONS):
        for _ in range(4):
            await client.send(
                "ConsentAsked", huge, exchange="", key=f"consent.projection.{number}", reply_to=None
            )

    workers = deployment.start_both()
    for number in range(8):
        await answered(client, f"p-{number}")

    assert max(map(peak_mib, workers)) < MOST_MIB
    assert not any("session.lost" in worker.log for worker in workers)


async def test_memory_and_time_are_bounded_with_a_queue_full_of_headers(
    deployment: Deployment, client: Client
) -> None:
    many = table(*((f"{number:05}".encode(), b"V") for number in range(16_000)))
    with open_raw_publisher(deployment.rabbitmq_url) as raw:
        for _ in range(250):
            properties = {
                "type": short(b"AskConsent"),
                "message_id": short(str(uuid4()).encode()),
                "headers": many,
            }
            await asyncio.to_thread(raw.publish, b"consent.commands", b"ask.0", properties, b"no")

    workers = deployment.start_both()
    for number in range(8):
        await answered(client, f"p-{number}")

    assert max(map(peak_mib, workers)) < MOST_MIB
    assert not any("session.lost" in worker.log for worker in workers)


async def test_a_body_of_64_kib_is_read_and_one_byte_more_is_not(
    deployment: Deployment, client: Client
) -> None:
    deployment.start_both()
    good = json.dumps(body_of("GrantConsent", "p-1")).encode()
    key = client.key("GrantConsent", "p-1")
    accepted = await client.reply(await client.send("GrantConsent", good.rjust(65_536), key=key))
    rejected = await client.reply(await client.send("GrantConsent", good.rjust(65_537), key=key))
    assert accepted["status"] == "accepted"
    assert rejected["error"] == "validation_error"
    assert rejected["details"] == [
        {"field": "body", "message": "has 65,537 bytes, and at most 65,536 are read: send less"}
    ]
    (kept,) = await eventually(client.dead_letters)
    assert kept.body == b" " * 8_192

    query = json.dumps({"patient_id": "p-1"}).encode()
    for size, status in ((65_536, "ok"), (65_537, "error")):
        answer = await client.reply(
            await client.send(
                "ListConsents", query.rjust(size), exchange="consent.queries", key="ListConsents"
            )
        )
        assert answer["status"] == status


async def test_a_field_that_is_given_twice_is_refused(
    deployment: Deployment, client: Client
) -> None:
    deployment.start_both()
    body = b'{"patient_id":"p-1","to_entity":"doctor","to_id":"d-1","target":"exams","to_id":"d-2"}'
    key = client.key("GrantConsent", "p-1")
    rejected = await client.reply(await client.send("GrantConsent", body, key=key))
    assert rejected["details"] == [{"field": "to_id", "message": "is given twice: give it once"}]
    body = b'{"patient_id":"p-1","min_version":0,"min_version":1}'
    failed = await client.reply(
        await client.send("ListConsents", body, exchange="consent.queries", key="ListConsents")
    )
    assert [detail["field"] for detail in failed["details"]] == ["min_version"]

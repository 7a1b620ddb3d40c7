"""The load: grants of which every one must be accepted."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from shared.messages import names
from shared.rabbitmq.connection import Broker, Properties
from shared.rabbitmq.publishing import PERSISTENT, Outgoing, publish_in_order
from shared.values.partition import partition_of
from tests.bench.bench import Sizes, expect
from tests.bench.looking import length
from tests.bench.progress import Tell
from tests.support.amqp import body_of

PIECE = 1_000
"""Commands published before the progress is told."""

Reply = dict[str, Any]


@dataclass(frozen=True)
class Grant:
    """One command: this patient grants this doctor the exams."""

    command_id: str
    patient_id: str
    doctor_id: str

    def outgoing(self, reply_to: str, partitions: int) -> Outgoing:
        """Write the message, as the contract says."""
        body = body_of("GrantConsent", self.patient_id, id_=self.doctor_id)
        properties = Properties(
            message_type="GrantConsent",
            message_id=self.command_id,
            content_type="application/json",
            delivery_mode=PERSISTENT,
            reply_to=reply_to or None,
        )
        key = f"grant.{partition_of(self.patient_id, partitions)}"
        return Outgoing(names.COMMANDS, key, json.dumps(body).encode(), properties)


def make_grants(patients: int, each: int) -> list[Grant]:
    """Round after round over all patients, every round for another doctor."""
    return [
        Grant(str(uuid4()), f"patient-{patient}", f"doctor-{doctor}")
        for doctor in range(each)
        for patient in range(patients)
    ]


def per_partition(grants: Iterable[Grant], partitions: int) -> list[int]:
    """Count the grants of each partition; each of them becomes one event."""
    counts = Counter(partition_of(one.patient_id, partitions) for one in grants)
    return [counts[number] for number in range(partitions)]


async def publish_all(
    broker: Broker, grants: Sequence[Grant], partitions: int, reply_to: str, tell: Tell
) -> None:
    """Publish with confirms; return when the broker has all of them."""
    channel = await broker.channel(confirms=True)
    for start in range(0, len(grants), PIECE):
        piece = grants[start : start + PIECE]
        messages = [one.outgoing(reply_to, partitions) for one in piece]
        assert not await publish_in_order(channel, messages)
        tell(start + len(piece))
    await broker.close_channel(channel)


async def read_replies(broker: Broker, queue: str) -> list[Reply]:
    """Take off the queue what is there."""
    channel = await broker.channel()
    present, bodies = await length(channel, queue), list[bytes]()
    taken = channel.create_future()

    async def receive(delivery: Any) -> None:  # noqa: ANN401
        bodies.append(delivery.body)
        if len(bodies) == present:
            taken.set_result(None)

    if present:
        await channel.basic_consume(queue, receive, no_ack=True)
        await taken
    return [json.loads(body) for body in bodies]


def check_replies(replies: Iterable[Reply], grants: Sequence[Grant], sizes: Sizes) -> None:
    """Check that every command was accepted, once, with the next version of its patient."""
    waiting = {one.command_id: one.patient_id for one in grants}
    versions: dict[str, set[int]] = defaultdict(set)
    for reply in replies:
        expect(reply["status"] == "accepted", f"a command was rejected: {reply}")
        patient_id = waiting.pop(reply["command_id"], None)
        expect(patient_id, f"a reply twice, or to nobody's command: {reply}")
        versions[str(patient_id)].add(reply["version"])
    expect(not waiting, f"{len(waiting):,} commands have no reply")
    all_versions = set(range(1, sizes.grants_per_patient + 1))
    wrong = [patient_id for patient_id, seen in versions.items() if seen != all_versions]
    expect(not wrong, f"versions are missing or double for {len(wrong)} patients: {wrong[:3]}")

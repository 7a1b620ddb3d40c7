"""The load: grants of which every one must be accepted, over plain aio-pika."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4
from zlib import crc32

import aio_pika
from aio_pika.abc import AbstractExchange

from tests.amqp import body_of
from tests.bench.progress import Tell

WINDOW = 100
"""Publishes in flight at once."""


@dataclass(frozen=True)
class Grant:
    """One command: this patient grants this doctor the exams."""

    command_id: str
    patient_id: str
    doctor_id: str

    def message(self, reply_to: str) -> aio_pika.Message:
        """Write the message, as the contract says."""
        body = body_of("GrantConsent", self.patient_id, id_=self.doctor_id)
        return aio_pika.Message(
            json.dumps(body).encode(),
            type="GrantConsent",
            message_id=self.command_id,
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            reply_to=reply_to,
        )

    def key(self, partitions: int) -> str:
        """Say where it goes."""
        return f"grant.{crc32(self.patient_id.encode()) % partitions}"


def make_grants(patients: int, each: int) -> list[Grant]:
    """Round after round over all patients, every round for another doctor."""
    return [
        Grant(str(uuid4()), f"patient-{patient}", f"doctor-{doctor}")
        for doctor in range(each)
        for patient in range(patients)
    ]


async def publish_all(
    exchange: AbstractExchange, grants: Sequence[Grant], partitions: int, reply_to: str, tell: Tell
) -> None:
    """Publish with confirms; return when the broker has all of them."""
    for start in range(0, len(grants), WINDOW):
        window = grants[start : start + WINDOW]
        await asyncio.gather(
            *(
                exchange.publish(one.message(reply_to), one.key(partitions), mandatory=True)
                for one in window
            )
        )
        tell(start + len(window))

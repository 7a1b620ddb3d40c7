"""From the confirm of a revoke until a question is answered with no, at a steady rate."""

import asyncio
import json
from collections.abc import Sequence
from time import monotonic
from typing import Final
from uuid import uuid4

from shared.messages import names
from shared.rabbitmq.connection import Properties, connect
from shared.rabbitmq.publishing import PERSISTENT, Outgoing, publish, publish_in_order
from shared.values.partition import partition_of
from tests.bench.bench import UnmetError, expect
from tests.bench.grants import Grant
from tests.bench.questions import Line, encoded, line_of
from tests.support.amqp import body_of
from tests.support.deployment import Deployment

WITHIN_S: Final = 15.0


async def until_no(
    deployment: Deployment, grants: Sequence[Grant], rate_per_s: float
) -> list[float]:
    """Grant all, then revoke each by the clock; return the seconds from confirm to no of each."""
    async with connect(deployment.rabbitmq_url, name="benchmark revokes") as broker:
        line = await line_of(broker)
        channel = await broker.channel(confirms=True)
        given = [grant.outgoing("", deployment.partitions) for grant in grants]
        expect(not await publish_in_order(channel, given), "a grant was refused")
        for grant in grants:
            await _until(line, grant, held=True)

        async def revoke(grant: Grant, due: float) -> float:
            await asyncio.sleep(max(0.0, due - monotonic()))
            await publish(channel, _revoke(grant, deployment.partitions), mandatory=True)
            confirmed = monotonic()
            await _until(line, grant, held=False)
            return monotonic() - confirmed

        start = monotonic() + 0.1
        dues = (start + number / rate_per_s for number in range(len(grants)))
        return list(await asyncio.gather(*map(revoke, grants, dues)))


async def _until(line: Line, grant: Grant, *, held: bool) -> None:
    """Ask until the answer is as wanted."""
    body = encoded(
        patient_id=grant.patient_id,
        entity_name="doctor",
        entity_id=grant.doctor_id,
        permission="exams",
    )
    try:
        async with asyncio.timeout(WITHIN_S):
            while json.loads(await line.ask("HasConsent", body)).get("has_consent") is not held:
                pass
    except TimeoutError:
        raise UnmetError(f"no answer has_consent={held} within {WITHIN_S:g} s") from None


def _revoke(grant: Grant, partitions: int) -> Outgoing:
    body = body_of("RevokeConsent", grant.patient_id, id_=grant.doctor_id)
    properties = Properties(
        message_type="RevokeConsent",
        message_id=str(uuid4()),
        content_type="application/json",
        delivery_mode=PERSISTENT,
    )
    key = f"revoke.{partition_of(grant.patient_id, partitions)}"
    return Outgoing(names.COMMANDS, key, json.dumps(body).encode(), properties)

"""Binding patterns mean here what they mean to the broker."""

import aio_pika
import pytest

from shared.errors import SettingsError
from shared.messages.cloud_event import CloudEvent
from shared.messages.topic_patterns import check, chooses, matches
from tests.support.deployment import Deployment

KEYS = ["asked.doctor.exams.3", "granted.patient.er_visits.0", "revoked.nurse.exams.12"]
PATTERNS = [
    "#", "*", "asked.#", "#.3", "*.*.exams.*", "*.*.exams", "#.exams.#", "granted.*.#", "#.#",
    "asked.doctor.exams.3", "asked.doctor.exams.3.#", "*.#.*", "asked", "#.nurse.*.12", "*.*.*.*.*",
]  # fmt: skip


async def test_a_pattern_chooses_exactly_what_the_broker_routes(deployment: Deployment) -> None:
    async with await aio_pika.connect(deployment.rabbitmq_url) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange("consent.events")
        queues = {pattern: await channel.declare_queue(exclusive=True) for pattern in PATTERNS}
        for pattern, queue in queues.items():
            await queue.bind(exchange, pattern)
        for key in KEYS:
            await exchange.publish(aio_pika.Message(key.encode()), key)
        for pattern, queue in queues.items():
            routed = []
            while (message := await queue.get(no_ack=True, fail=False)) is not None:
                routed.append(message.body.decode())
            assert routed == [key for key in KEYS if matches(pattern, key)], pattern


def event_of(type_: str, **data: str) -> CloudEvent:
    return CloudEvent(
        id="e-1",
        type=type_,
        subject="p-1",
        time="2026-11-23T08:00:00.000000Z",
        schemaversion=1,
        partition=3,
        position=1,
        streamversion=1,
        correlationid="c",
        causationid="c",
        data={"patient_id": "p-1", "target": "exams", **data},
    )


def test_an_event_is_chosen_by_the_key_under_which_it_is_published() -> None:
    asked = event_of("ConsentAsked", by_entity="doctor", by_id="d-1")
    granted = event_of("ConsentGranted", to_entity="nurse", to_id="n-1")
    chosen = chooses(["asked.#", "*.nurse.er_visits.*"])
    assert [chosen(asked), chosen(granted)] == [True, False]
    assert chooses(["#.3"])(granted)


def test_an_event_from_a_newer_writer_is_let_through() -> None:
    assert chooses(["asked.#"])(event_of("ConsentExpired"))


@pytest.mark.parametrize("patterns", [[], [""], ["a" * 256]])
def test_a_pattern_that_can_not_be_bound_is_refused(patterns: list[str]) -> None:
    with pytest.raises(SettingsError, match="pattern"):
        check(patterns)


def test_a_pattern_given_twice_counts_once() -> None:
    assert check(["asked.#", "#.3", "asked.#"]) == ("asked.#", "#.3")

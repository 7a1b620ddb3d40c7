"""Every example of the contract passes through the workers, and what comes back fits its schema."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from aio_pika.abc import AbstractIncomingMessage
from jsonschema import Draft202012Validator

from shared.contract.asyncapi import document
from shared.contract.catalogue import Message, all_messages
from shared.contract.schemas import schema_file
from shared.messages.events import EVENTS
from shared.messages.queries import ANSWERS
from shared.values.partition import partition_of
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.support.amqp import Client, open_client
from tests.support.deployment import Deployment
from tests.support.eventually import eventually
from tests.support.standing import assert_unharmed, standing_deployment

Json = dict[str, Any]
DOCUMENT: Final = document()
MESSAGES: Final = {message.name: message for message in all_messages()}
HAPPENS: Final = {
    "partition": 0,
    "position": 0,
    "head": 0,
    "log": "",
    "id": "",
    "command_id": "",
    "event_id": "",
    "correlationid": "",
    "causationid": "",
}
"""Fields whose values differ from one deployment, or one run, to another."""
A_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@pytest.fixture(scope="module")
def deployment(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    with standing_deployment(sandbox, "contract_examples", migrated) as made:
        yield made


def leveled(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Put aside what differs from run to run, and keep of what kind it was."""
    match value:
        case dict():
            return {
                name: HAPPENS[name]
                if name in HAPPENS and isinstance(one, type(HAPPENS[name]))
                else leveled(one)
                for name, one in value.items()
            }
        case list():
            return [leveled(one) for one in value]
        case str():
            return A_TIME.sub("a time", value)
    return value


def properties_of(message: AbstractIncomingMessage) -> Json:
    found = {
        "type": message.type,
        "message_id": message.message_id,
        "correlation_id": message.correlation_id,
        "content_type": message.content_type,
        "delivery_mode": message.delivery_mode,
    }
    return {name: value for name, value in found.items() if value is not None}


def assert_fits(received: AbstractIncomingMessage, described: Message) -> None:
    """Compare a message that came with its schemas."""
    body = json.loads(received.body)
    Draft202012Validator(
        schema_file(described), format_checker=Draft202012Validator.FORMAT_CHECKER
    ).validate(body)
    Draft202012Validator(described.properties).validate(properties_of(received))
    assert received.content_type == described.content_type


def assert_is_as_told(received: AbstractIncomingMessage, described: Message) -> None:
    """Compare a message that came with its example."""
    assert_fits(received, described)
    told = leveled(described.example)
    assert leveled(json.loads(received.body)) == told, described.name


def in_seconds(number: int) -> str:
    """Write the moment that comes in so many seconds."""
    return (datetime.now(UTC) + timedelta(seconds=number)).isoformat()


class Player:
    """Sends examples as the document says, and compares all that comes back with its examples."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.fitted: set[str] = set()
        self.end = in_seconds(3600)

    async def play(self, name: str, answer: str, **changes: object) -> AbstractIncomingMessage:
        """Send an example, which must be answered with the other one."""
        operation = next(
            one
            for one in DOCUMENT["operations"].values()
            if one["channel"] == {"$ref": f"#/channels/{name}"}
        )
        told = {one["$ref"].rsplit("/", 1)[1] for one in operation["reply"]["messages"]}
        assert answer in told
        body = self.body(name) | changes
        given = {one: value for one, value in body.items() if value is not ...}
        received = await self.ask(name, given)
        assert_is_as_told(received, MESSAGES[answer])
        self.fitted.add(answer)
        return received

    def body(self, name: str) -> Json:
        """Take an example, for this deployment's number of partitions and an end to come."""
        body = dict(MESSAGES[name].example)
        if "partition" in body:
            body["partition"] = partition_of(body["patient_id"], PARTITIONS)
        if "expires_at" in body:
            body["expires_at"] = self.end
        return body

    async def do(self, name: str, **changes: object) -> None:
        """Send an example, with some changes, which must be accepted."""
        answer = json.loads((await self.ask(name, self.body(name) | changes)).body)
        assert answer["status"] == "accepted", answer

    async def ask(self, name: str, body: Json) -> AbstractIncomingMessage:
        channel = DOCUMENT["channels"][name]
        key = channel["address"].format(partition=partition_of("p-1", PARTITIONS))
        exchange = channel["bindings"]["amqp"]["exchange"]["name"]
        sent = await self.client.send(name, body, exchange=exchange, key=key)
        return await self.client.message(sent)

    def saw(self, received: AbstractIncomingMessage) -> None:
        """Compare an event, and the routing key under which it came.

        The first of each type is the one that the examples tell of.
        """
        name = str(received.type)
        compare = assert_fits if name in self.fitted else assert_is_as_told
        compare(received, MESSAGES[name])
        address = re.escape(DOCUMENT["channels"][name]["address"])
        assert re.fullmatch(re.sub(r"\\{\w+\\}", r"\\w+", address), received.routing_key or "")
        self.fitted.add(name)


async def test_the_examples_are_one_story_and_it_happens_as_they_tell(
    deployment: Deployment,
) -> None:
    async with open_client(deployment.rabbitmq_url, PARTITIONS) as client:
        player = Player(client)
        events: list[AbstractIncomingMessage] = []
        await client.subscribe("#", events.append)

        await player.do("AskConsent")
        await player.play("GrantConsent", "CommandAccepted")
        await player.play("GrantConsent", "CommandRejected")
        for query in ANSWERS:
            await player.play(query.type, f"{query.type}Answer")
        await player.play("ListConsents", "QueryFailed", patient_id=...)
        await player.do("RevokeConsent")
        await player.do("GrantConsent", to_entity="nurse", to_id="n-7", expires_at=in_seconds(4))

        async def the_end_came() -> bool:
            """Whatever is sent of this patient then records it first, even what is refused."""
            await player.ask("DenyConsent", player.body("DenyConsent"))
            return any(event.type == "ConsentExpired" for event in events)

        await eventually(the_end_came, within=30)
        await player.do("AskConsent", by_entity="nurse", by_id="n-8")
        await player.do("DenyConsent")
        await player.do("AskConsent", by_entity="nurse", by_id="n-9")
        await player.do("WithdrawRequest")

        async def all_came() -> bool:
            return {event.type for event in events} >= EVENTS.keys()

        await eventually(all_came, within=30)
        for event in events:
            player.saw(event)
    assert player.fitted == {name for name in MESSAGES if MESSAGES[name].direction == "sent"}
    assert_unharmed(deployment)


@pytest.mark.parametrize(
    "name", [name for name, message in MESSAGES.items() if message.direction == "received"]
)
async def test_a_field_that_the_schema_forbids_is_refused_by_the_workers_too(
    deployment: Deployment, name: str
) -> None:
    async with open_client(deployment.rabbitmq_url, PARTITIONS) as client:
        player = Player(client)
        body = player.body(name) | {"unheard_of": 1}
        assert not Draft202012Validator(schema_file(MESSAGES[name])).is_valid(body)
        answer = json.loads((await player.ask(name, body)).body)
        assert answer["error"] == "validation_error"
        assert [one["field"] for one in answer["details"]] == ["unheard_of"]

"""Commands at fault: each is answered once and kept whole, and harms nobody else."""

import asyncio
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import pytest
from aio_pika.abc import AbstractIncomingMessage
from pamqp.commands import Basic

from tests.sandbox import Sandbox
from tests.support.amqp import Client, Json, body_of
from tests.support.deployment import Deployment
from tests.support.eventually import eventually
from tests.support.raw_amqp import RawPublisher, open_raw_publisher, short, table
from tests.support.standing import all_settled, assert_unharmed, standing_deployment

VHOST: Final = "bad_input"
PATIENT: Final = "p-bad"
MIB: Final = 1 << 20


@pytest.fixture(scope="module")
def deployment(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    with standing_deployment(sandbox, VHOST, migrated) as made:
        yield made


@pytest.fixture(autouse=True)
def workers_stand(deployment: Deployment) -> Iterator[None]:
    yield
    assert_unharmed(deployment)


@pytest.fixture
def raw(deployment: Deployment) -> Iterator[RawPublisher]:
    with open_raw_publisher(deployment.rabbitmq_url) as publisher:
        yield publisher


def grant(**changes: object) -> Json:
    """Write a good grant, changed; None leaves a field out."""
    body = body_of("GrantConsent", PATIENT) | changes
    return {name: value for name, value in body.items() if value is not None}


def with_patient(patient_id: object) -> bytes:
    return json.dumps(grant(patient_id=patient_id)).encode()


async def refused(
    client: Client,
    type_: str | None,
    body: Json | bytes,
    **how: Any,  # noqa: ANN401
) -> tuple[Json, AbstractIncomingMessage]:
    """Send a command at fault; return the reply and what is kept of it."""
    how.setdefault("key", "grant.0" if isinstance(body, bytes) else None)
    correlation_id = await client.send(type_, body, **how)
    reply = await client.reply(correlation_id)
    await answered_once(client, correlation_id)
    (kept,) = await client.dead_letters()
    return reply, kept


async def answered_once(client: Client, correlation_id: str) -> None:
    """Check that no second answer comes before that to a good command which follows it."""
    good = await client.command("AskConsent", PATIENT)
    assert good["status"] == "accepted"
    assert client.waiting[correlation_id].empty()


@dataclass(frozen=True)
class Fault:
    """A command at fault, and the field that the answer must name."""

    name: str
    at: str
    body: Json | bytes = field(default_factory=grant)
    type: str | None = "GrantConsent"
    properties: Json = field(default_factory=dict)


def _many_fields() -> bytes:
    return json.dumps(grant() | {f"field_{n}": n for n in range(3_000)}).encode()


FAULTS: Final = (
    Fault("empty body", "body", b""),
    Fault("1 MiB of garbage", "body", bytes(range(256)) * (MIB // 256)),
    Fault("invalid UTF-8", "body", b'{"patient_id":"\xff"}'),
    Fault("an encoded surrogate", "body", b'{"patient_id":"\xed\xa0\x80"}'),
    Fault("a lone surrogate", "body", b'{"patient_id":"\\ud800"}'),
    Fault("deep nesting", "body", b"[" * 60_000),
    Fault("deep nesting in a field", "body", b'{"patient_id":' + b"[" * 60_000),
    Fault("nesting that is too large", "body", b"[" * 100_000),
    Fault("how a delivery begins", "body", Basic.Deliver.index.to_bytes(4)),
    Fault("how a confirm begins", "body", Basic.Ack.index.to_bytes(4)),
    Fault("an array", "body", b"[]"),
    Fault("a string", "body", b'"GrantConsent"'),
    Fault("null", "body", b"null"),
    Fault("a number", "body", b"1e999"),
    Fault("two documents", "body", json.dumps(grant()).encode() * 2),
    Fault("a byte order mark", "body", b"\xef\xbb\xbf" + json.dumps(grant()).encode()),
    Fault("no fields", "patient_id", b"{}"),
    Fault("an unknown field", "surprise", grant(surprise=1)),
    Fault("3,000 unknown fields", "field_0", _many_fields()),
    Fault("fields of another command", "from_id", grant(from_id="d-1")),
    Fault("a missing field", "target", grant(target=None)),
    Fault("null for a field", "target", grant() | {"target": None}),
    Fault("a number for an id", "patient_id", with_patient(1)),
    Fault("a list for an id", "to_id", grant(to_id=["d-1"])),
    Fault("an unknown entity", "to_entity", grant(to_entity="Doctor")),
    Fault("an unknown target", "target", grant(target="x-rays")),
    Fault("an empty id", "to_id", grant(to_id="")),
    Fault("an id of 129 code points", "patient_id", grant(patient_id="x" * 129)),
    Fault("an id of 129 emoji", "patient_id", grant(patient_id="😀" * 129)),
    Fault("NUL in an id", "to_id", grant(to_id="d\x00")),
    Fault("a line break in an id", "to_id", grant(to_id="d\n1")),
    Fault("DEL in an id", "to_id", grant(to_id="d\x7f")),
    Fault("a C1 control character in an id", "to_id", grant(to_id="d\x851")),
    Fault("leading white space", "to_id", grant(to_id=" d-1")),
    Fault("trailing white space", "patient_id", grant(patient_id="p-1\u3000")),
    Fault("the patient's own id", "to_id", grant(to_entity="patient", to_id=PATIENT)),
    Fault("an unknown type", "type", type="DeleteConsent"),
    Fault("a type in other letters", "type", type="grantconsent"),
    Fault("no type", "type", type=None),
    Fault("NUL in the type", "type", type="GrantConsent\x00"),
    Fault("another type's fields", "by_id", type="AskConsent"),
    Fault("a message id that is no UUID", "message_id", properties={"message_id": "42"}),
    Fault("a message id in braces", "message_id", properties={"message_id": f"{{{uuid4()}}}"}),
    Fault("a line break after the id", "message_id", properties={"message_id": f"{uuid4()}\n"}),
    Fault("NUL in the message id", "message_id", properties={"message_id": f"{uuid4()}\x00"}),
    Fault("NUL in the correlation id", "correlation_id", properties={"correlation_id": "c\x00"}),
    Fault("an escape character", "correlation_id", properties={"correlation_id": "\x1b[31m"}),
    Fault("another content type", "content_type", properties={"content_type": "text/xml"}),
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_command_at_fault_is_answered_once_and_kept(client: Client, fault: Fault) -> None:
    properties = {"message_id": str(uuid4()), "headers": {"x-tenant": "north"}, "app_id": "kiosk"}
    properties |= fault.properties
    key = "ask.0" if fault.type == "AskConsent" else "grant.0"

    reply, kept = await refused(client, fault.type, fault.body, key=key, **properties)

    assert (reply["_type"], reply["status"]) == ("CommandRejected", "rejected")
    assert reply["error"] == "validation_error"
    assert reply["command_id"] == properties["message_id"]
    assert fault.at in [detail["field"] for detail in reply["details"]]
    assert all(detail["message"] for detail in reply["details"])
    body = fault.body if isinstance(fault.body, bytes) else json.dumps(fault.body).encode()
    assert kept.body == body[: 8 * 1024]
    assert kept.message_id == properties["message_id"]
    assert (kept.type or None) == fault.type
    assert kept.app_id == "kiosk"
    assert kept.reply_to == client.replies.name
    assert kept.headers["x-tenant"] == "north"
    assert kept.headers["x-consent-error"] == "validation_error"
    assert fault.at in str(kept.headers["x-consent-details"])
    assert kept.headers["x-consent-routing-key"] == key


async def test_a_fault_in_the_fields_still_tells_which_patient(client: Client) -> None:
    reply, _ = await refused(client, "GrantConsent", grant(target="x-rays"))
    assert reply["patient_id"] == PATIENT


async def test_a_command_without_a_reply_to_is_kept_all_the_same(client: Client) -> None:
    correlation_id = await client.send("GrantConsent", b"no", key="grant.0", reply_to=None)
    (kept,) = await eventually(client.dead_letters)
    assert (kept.body, kept.reply_to) == (b"no", None)
    await answered_once(client, correlation_id)


def misrouted_key(client: Client) -> str:
    return client.key("GrantConsent", PATIENT)


def _next_partition(key: str, partitions: int) -> str:
    verb, number = key.split(".")
    return f"{verb}.{(int(number) + 1) % partitions}"


WRONG_KEYS: Final[dict[str, Callable[[str, int], str]]] = {
    "the right verb and another partition": _next_partition,
    "another verb and the right partition": lambda key, _: key.replace("grant", "ask"),
    "a verb that is none": lambda key, _: key.replace("grant", "give"),
    "no verb": lambda key, _: key.replace("grant", ""),
    "no partition": lambda *_: "grant",
    "an empty key": lambda *_: "",
    "a partition that is not there": lambda _, partitions: f"grant.{partitions}",
    "a negative partition": lambda *_: "grant.-1",
    "leading zeros": lambda key, _: key.replace(".", ".0"),
    "a third word": lambda key, _: f"{key}.x",
}


@pytest.mark.parametrize("wrong", WRONG_KEYS)
async def test_a_misrouted_command_is_told_the_right_key_and_kept(
    client: Client, wrong: str
) -> None:
    right = misrouted_key(client)
    key = WRONG_KEYS[wrong](right, client.partitions)

    reply, kept = await refused(client, "GrantConsent", grant(), key=key)

    assert (reply["error"], reply["patient_id"]) == ("misrouted_command", PATIENT)
    (detail,) = reply["details"]
    assert detail["field"] == "routing_key"
    assert right in detail["message"]
    assert kept.body == json.dumps(grant()).encode()
    assert kept.headers["x-consent-error"] == "misrouted_command"
    assert kept.headers["x-consent-exchange"] == "consent.commands"
    assert (kept.headers.get("x-consent-routing-key") or "") == key


async def test_what_cannot_be_read_and_reached_no_queue_is_answered_too(client: Client) -> None:
    reply, kept = await refused(client, "GrantConsent", b"\x00", key="nowhere")
    assert reply["error"] == "misrouted_command"
    assert kept.body == b"\x00"


async def test_a_command_straight_to_a_queue_is_misrouted(client: Client) -> None:
    number = misrouted_key(client).split(".")[1]
    reply, kept = await refused(
        client, "GrantConsent", grant(), exchange="", key=f"consent.commands.{number}"
    )
    assert reply["error"] == "misrouted_command"
    assert kept.headers.get("x-consent-exchange", "") == ""


@pytest.mark.parametrize("header", ["CC", "BCC"])
async def test_a_dead_letter_is_not_copied_to_where_its_sender_says(
    client: Client, header: str
) -> None:
    trap = await client.channel.declare_queue(exclusive=True)
    steering = {header: [trap.name]}

    _, kept = await refused(client, "GrantConsent", b"no", headers=steering)

    if header == "CC":  # the broker itself removes the other one
        assert kept.headers["x-consent-original-CC"] == [trap.name]
    assert await trap.get(fail=False) is None


async def test_a_dead_letter_does_not_expire(client: Client) -> None:
    correlation_id = await client.send("GrantConsent", b"no", key="grant.0", expiration=600)
    await client.reply(correlation_id)
    (kept,) = await client.dead_letters()
    assert kept.expiration is None
    assert kept.headers["x-consent-expiration"] == "600000"


async def test_headers_of_4_kb_are_kept(client: Client) -> None:
    _, kept = await refused(client, "GrantConsent", b"no", headers={"x-large": "h" * 4_000})
    assert kept.headers["x-large"] == "h" * 4_000


@pytest.mark.parametrize("size", [4_100, 130_000])
async def test_headers_that_are_too_large_are_left_out(client: Client, size: int) -> None:
    reply, kept = await refused(client, "GrantConsent", b"no", headers={"x": "h" * size})
    assert reply["error"] == "validation_error"
    assert kept.headers["x-consent-error"] == "validation_error"
    assert kept.headers["x-consent-headers"] == "left out: too large"
    assert kept.body == b"no"


async def test_nobody_can_forge_the_reason_of_a_dead_letter(client: Client) -> None:
    forged = {"x-consent-error": "none", "x-consent-user-id": "admin", "x-consent-expiration": "1"}
    _, kept = await refused(client, "GrantConsent", b"no", headers=forged)
    assert kept.headers["x-consent-error"] == "validation_error"
    assert "x-consent-user-id" not in kept.headers
    assert "x-consent-expiration" not in kept.headers


NOWHERE: Final = {
    "a queue that is gone": "amq.gen-gone",
    "the longest name": "r" * 255,
    "a direct reply-to that is none": "amq.rabbitmq.reply-to.gone",
    "control characters": "\x00\n",
}


@pytest.mark.parametrize("reply_to", NOWHERE.values(), ids=NOWHERE)
async def test_a_reply_that_reaches_nobody_harms_nobody(client: Client, reply_to: str) -> None:
    correlation_id = await client.send(
        "GrantConsent", body_of("GrantConsent", f"p-{uuid4()}"), reply_to=reply_to
    )
    await answered_once(client, correlation_id)
    assert await client.dead_letters() == []


@pytest.mark.parametrize(
    "queue",
    [
        "consent.commands.0",
        "consent.projection.0",
        "consent.unroutable",
        "consent.queries",
        "consent.log",
        "consent.dead-letters",
    ],
)
async def test_no_reply_goes_into_a_queue_of_the_service_itself(client: Client, queue: str) -> None:
    body = body_of("GrantConsent", f"p-{uuid4()}")
    correlation_id = await client.send("GrantConsent", body, reply_to=queue)
    await answered_once(client, correlation_id)
    assert await client.dead_letters() == []


# What only a client that writes its frames by hand can send.

NOT_UTF8: Final = b"\xff\xfe\x80"


async def send_raw(
    client: Client, raw: RawPublisher, body: bytes, key: bytes = b"grant.0", **changes: bytes | None
) -> str:
    """Publish byte by byte, asking for a reply; None leaves a property out."""
    correlation_id = str(uuid4())
    client.waiting[correlation_id] = asyncio.Queue()
    properties = {
        "type": short(b"GrantConsent"),
        "message_id": short(str(uuid4()).encode()),
        "correlation_id": short(correlation_id.encode()),
        "reply_to": short(client.replies.name.encode()),
        **changes,
    }
    given = {name: value for name, value in properties.items() if value is not None}
    await asyncio.to_thread(raw.publish, b"consent.commands", key, given, body)
    return correlation_id


async def test_a_command_without_a_message_id_is_refused(client: Client, raw: RawPublisher) -> None:
    reply = await client.reply(await send_raw(client, raw, with_patient(PATIENT), message_id=None))
    assert reply["error"] == "validation_error"
    assert reply["command_id"] is None
    assert reply["details"][0]["field"] == "message_id"
    (kept,) = await client.dead_letters()
    assert kept.body == with_patient(PATIENT)


@pytest.mark.parametrize("name", ["type", "message_id", "content_type"])
async def test_a_property_that_is_not_utf8_is_refused(
    client: Client, raw: RawPublisher, name: str
) -> None:
    bad = {name: short(NOT_UTF8)}
    reply = await client.reply(await send_raw(client, raw, with_patient(PATIENT), **bad))
    assert reply["error"] == "validation_error"
    assert [detail["field"] for detail in reply["details"]] == [name]
    (kept,) = await client.dead_letters()
    assert kept.body == with_patient(PATIENT)


async def test_a_correlation_id_that_is_not_utf8_is_refused(
    client: Client, raw: RawPublisher
) -> None:
    bad = {"correlation_id": short(NOT_UTF8)}
    correlation_id = await send_raw(client, raw, with_patient(PATIENT), **bad)
    (kept,) = await eventually(client.dead_letters)
    assert str(kept.headers["x-consent-details"]).startswith("correlation_id: ")
    await answered_once(client, correlation_id)


async def test_a_routing_key_that_is_not_utf8_is_misrouted(
    client: Client, raw: RawPublisher
) -> None:
    key = b"grant." + NOT_UTF8
    reply = await client.reply(await send_raw(client, raw, with_patient(PATIENT), key=key))
    assert reply["error"] == "misrouted_command"
    assert len(await client.dead_letters()) == 1


def _nested(depth: int) -> bytes:
    value = b"V"
    for _ in range(depth):
        value = b"A" + struct.pack(">I", len(value)) + value
    return table((b"deep", value))


UNREADABLE: Final = {
    "a name that is not UTF-8": table((NOT_UTF8, b"V")),
    "a time beyond the calendar": table((b"when", b"T" + b"\x7f" + b"\xff" * 7)),
    "480 arrays in one another": _nested(480),
}
LARGE: Final = {
    "2,000 arrays in one another": _nested(2_000),
    "120,000 values in an array": table(
        (b"many", b"A" + struct.pack(">I", 120_000) + b"V" * 120_000)
    ),
    "16,000 headers": table(*((f"{n:05}".encode(), b"V") for n in range(16_000))),
    "101 headers": table(*((f"{n:05}".encode(), b"V") for n in range(101))),
}
READABLE: Final = {
    "text that is not UTF-8": table((b"text", b"S\x00\x00\x00\x03" + NOT_UTF8)),
    "a decimal of 255 places": table((b"decimal", b"D\xff\xff\xff\xff\xff")),
    "a number beyond single precision": table((b"double", b"d" + struct.pack(">d", 1e300))),
    "bytes": table((b"bytes", b"x\x00\x00\x00\x03" + NOT_UTF8)),
    "a trace context of bytes": table((b"traceparent", b"x\x00\x00\x00\x03" + NOT_UTF8)),
    "the same name twice": table((b"n", b"V"), (b"n", b"t\x01")),
    "a name of 255 bytes": table((b"n" * 255, b"V")),
}
ODD_HEADERS: Final = UNREADABLE | LARGE | READABLE


@pytest.mark.parametrize("headers", ODD_HEADERS.values(), ids=ODD_HEADERS)
async def test_a_good_command_with_odd_headers_is_accepted(
    client: Client, raw: RawPublisher, headers: bytes
) -> None:
    patient = f"p-{uuid4()}"
    key = client.key("GrantConsent", patient).encode()
    reply = await client.reply(
        await send_raw(client, raw, with_patient(patient), key, headers=headers)
    )
    assert reply["status"] == "accepted"


@pytest.mark.parametrize("headers", ODD_HEADERS.values(), ids=ODD_HEADERS)
async def test_a_bad_command_with_odd_headers_is_kept(
    client: Client, raw: RawPublisher, headers: bytes
) -> None:
    reply = await client.reply(await send_raw(client, raw, b"no", headers=headers))
    assert reply["error"] == "validation_error"
    (kept,) = await client.dead_letters()
    assert kept.body == b"no"
    assert kept.headers["x-consent-error"] == "validation_error"
    if headers in UNREADABLE.values():
        assert kept.headers["x-consent-headers"] == "left out: unreadable"
    if headers in LARGE.values():
        assert kept.headers["x-consent-headers"] == "left out: too large"


@pytest.mark.parametrize("seconds", [2**63 - 1, 2**64 - 1, 253_402_300_800_000])
async def test_a_time_beyond_the_calendar_harms_nobody(
    client: Client, raw: RawPublisher, seconds: int
) -> None:
    timestamp = struct.pack(">Q", seconds)
    reply = await client.reply(await send_raw(client, raw, b"no", timestamp=timestamp))
    assert reply["error"] == "validation_error"
    (kept,) = await client.dead_letters()
    assert (kept.body, kept.timestamp) == (b"no", None)


async def test_a_time_is_kept(client: Client, raw: RawPublisher) -> None:
    await client.reply(
        await send_raw(client, raw, b"no", timestamp=struct.pack(">Q", 1_800_000_000))
    )
    (kept,) = await client.dead_letters()
    assert kept.timestamp is not None
    assert kept.timestamp.timestamp() == 1_800_000_000


async def test_neighbours_of_faults_are_accepted_in_their_order(
    client: Client, raw: RawPublisher
) -> None:
    patient = f"p-{uuid4()}"
    key = client.key("GrantConsent", patient).encode()
    good: list[str] = []
    for number in range(20):
        bad = {"app_id": short(NOT_UTF8), "headers": _nested(300)}
        await send_raw(client, raw, b"no", key, **bad)
        body = body_of("GrantConsent", patient, id_=f"d-{number}")
        good.append(await client.send("GrantConsent", body))
    assert [(await client.reply(one))["version"] for one in good] == list(range(1, 21))
    assert len(await client.dead_letters()) == 20


async def test_after_all_of_it_nothing_is_left_unsettled(client: Client, sandbox: Sandbox) -> None:
    good = await client.command("GrantConsent", f"p-{uuid4()}")
    assert good["status"] == "accepted"
    await eventually(lambda: all_settled(sandbox, VHOST), every=0.2)

"""A consent without an end is stored and published byte by byte as before there were ends."""

import json
from pathlib import Path
from typing import Any, Final

import pytest
from aio_pika.abc import AbstractIncomingMessage

from tests.support.amqp import Client, body_of
from tests.support.deployment import Deployment
from tests.support.eventually import eventually
from tests.support.facts import fetch

GOLDEN: Final = json.loads((Path(__file__).parents[1] / "golden" / "events.json").read_text())
TYPES: Final = {"ask": "ConsentAsked", "grant": "ConsentGranted", "revoke": "ConsentRevoked"}
COMMANDS: Final = {
    "ask": ("AskConsent", "by"),
    "grant": ("GrantConsent", "to"),
    "revoke": ("RevokeConsent", "from"),
}
PUBLISHED: Final = (
    '{{"specversion":"1.0","id":"{event_id}","source":"consent/command-service","type":"{type}",'
    '"subject":"{stream_id}","time":"{time}","datacontenttype":"application/json",'
    '"schemaversion":1,"partition":{partition},"position":{position},'
    '"streamversion":{stream_version},"correlationid":"{correlation_id}",'
    '"causationid":"{causation_id}","data":{data}}}'
)


def stored_before(type_: str) -> str:
    """Return the data of an event as it was stored before there were ends."""
    row = next(
        one["row"]
        for one in GOLDEN
        if one["row"]["type"] == type_ and one["row"]["schema_version"] == 1
    )
    return str(row["data"])


@pytest.mark.parametrize("verb", TYPES)
async def test_what_has_no_end_is_the_same_bytes_as_ever(
    deployment: Deployment, client: Client, verb: str
) -> None:
    deployment.start("command_service").wait_ready()
    type_, (command, prefix) = TYPES[verb], COMMANDS[verb]
    before = stored_before(type_)
    data: dict[str, Any] = json.loads(before)
    published: list[AbstractIncomingMessage] = []
    await client.subscribe("#", published.append)
    who = {"entity": data[f"{prefix}_entity"], "id_": data[f"{prefix}_id"]}
    if verb == "revoke":
        await client.command("GrantConsent", data["patient_id"], target=data["target"], **who)
    body = body_of(command, data["patient_id"], data["target"], **who)
    assert (await client.reply(await client.send(command, body)))["status"] == "accepted"

    rows = await fetch(
        deployment.event_store_url, "SELECT *, data::text AS written FROM events ORDER BY position"
    )
    row = dict(rows[-1])
    assert (row["type"], row["schema_version"], row["written"]) == (type_, 1, before)

    async def all_came() -> bool:
        return len(published) == len(rows)

    await eventually(all_came)
    time = row["recorded_at"].isoformat(timespec="microseconds").replace("+00:00", "Z")
    expected = PUBLISHED.format(**{**row, "data": before, "time": time})
    assert published[-1].body.decode() == expected

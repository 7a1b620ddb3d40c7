"""A log, a snapshot and a read model of the version before consents could end are taken over.

`tests/golden/before_ends` holds both databases as that version left them, in four partitions: the
commands that it was sent and its replies, a snapshot, and a read model that is some events behind.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import asyncpg
import pytest

from command_service.domain.snapshot import FORMAT
from shared.messages.events import (
    ConsentAsked,
    ConsentExpired,
    ConsentGranted,
    ConsentRevoked,
    read_event,
)
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.support.amqp import Client, Json, open_client
from tests.support.deployment import Deployment, ServiceName, open_deployment
from tests.support.eventually import eventually
from tests.support.facts import fetch, log_size, projected

BEFORE: Final = Path(__file__).parents[1] / "golden" / "before_ends"
SENT: Final[list[Json]] = json.loads((BEFORE / "commands.json").read_text())
PATIENTS: Final = sorted({command["body"]["patient_id"] for command in SENT})

Held = dict[str, dict[str, str | None]]
"""By grantee, what is granted and until when."""
Model = dict[str, list[Json]]
"""By patient, what is listed at each version, from 0."""


@pytest.fixture
def deployment(sandbox: Sandbox) -> Iterator[Deployment]:
    """Give a test the databases as the version before left them, and no workers."""
    with open_deployment(sandbox, "before_ends", partitions=PARTITIONS) as made:
        for server, database in (
            (sandbox.event_store_server, "event_store"),
            (sandbox.read_model_server, "read_model"),
        ):
            server.execute((BEFORE / f"{database}.sql").read_text(), "before_ends")
        yield made


@pytest.fixture
async def client(deployment: Deployment) -> AsyncIterator[Client]:
    async with open_client(deployment.rabbitmq_url, PARTITIONS) as connected:
        yield connected


async def migrate(deployment: Deployment, service: ServiceName) -> None:
    done = await asyncio.to_thread(deployment.run, service, "migrate")
    assert (done.returncode, done.stderr) == (0, "")


async def start(deployment: Deployment, service: ServiceName) -> None:
    await asyncio.to_thread(deployment.start(service).wait_ready)


async def model_of(deployment: Deployment) -> Model:
    """Fold the log as simply as can be: what is to be listed at each version of each patient."""
    listed: Model = defaultdict(lambda: [{}])
    held: dict[str, Held] = defaultdict(lambda: defaultdict(dict))
    asked: dict[str, Held] = defaultdict(lambda: defaultdict(dict))
    for row in await fetch(
        deployment.event_store_url, "SELECT * FROM events ORDER BY partition, position"
    ):
        fact = read_event(row["type"], row["schema_version"], json.loads(row["data"]))
        patient, who, data = row["stream_id"], " ".join(fact.grantee), json.loads(row["data"])
        match fact:
            case ConsentAsked():
                asked[patient][who][fact.target] = data.get("expires_at")
            case ConsentGranted():
                held[patient][who][fact.target] = data.get("expires_at")
                asked[patient][who].pop(fact.target, None)
            case ConsentRevoked():
                del held[patient][who][fact.target]
            case ConsentExpired():
                del held[patient][who][fact.target]
            case _:
                del asked[patient][who][fact.target]
        listed[patient].append(
            {
                each: (dict(held[patient][each]), dict(asked[patient][each]))
                for each in held[patient].keys() | asked[patient].keys()
                if held[patient][each] or asked[patient][each]
            }
        )
    return listed


def still_held(listed: Json) -> Json:
    """Leave out what has ended, as every answer does, though the log may not say so yet."""
    now = datetime.now(UTC).isoformat()
    left = {
        who: ({named: end for named, end in held.items() if end is None or end > now}, asked)
        for who, (held, asked) in listed.items()
    }
    return {who: both for who, both in left.items() if any(both)}


def read_list(answer: Json) -> Json:
    return {
        f"{one['entity_name']} {one['entity_id']}": (
            {named: one.get("until", {}).get(named) for named in one["permissions"]},
            {named: one.get("requested_until", {}).get(named) for named in one["requested"]},
        )
        for one in answer["consents"]
    }


class Asker:
    """Asks all the time what is listed of every patient, and compares with the model."""

    def __init__(self, client: Client, deployment: Deployment) -> None:
        self._client = client
        self._deployment = deployment
        self._model: Model = {}

    async def ask(self) -> None:
        for patient in PATIENTS:
            answer = await self._client.query("ListConsents", patient_id=patient)
            if answer["version"] >= len(self._model.get(patient, ())):
                self._model = await model_of(self._deployment)
            model = self._model[patient][answer["version"]]
            assert read_list(answer) == still_held(model), answer

    async def ask_on(self) -> None:
        while True:
            await self.ask()

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Ask as long as this lasts."""
        asking = asyncio.create_task(self.ask_on())
        try:
            yield
        finally:
            if asking.done():
                await asking  # and raises what was wrong
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking


async def apply_by_the_statement_of_before(deployment: Deployment) -> None:
    """Project the next event as a worker of the version before would, under the new schema."""
    (event,) = await fetch(
        deployment.event_store_url, "SELECT * FROM events WHERE partition = 3 AND position = 40"
    )
    data = json.loads(event["data"])
    whose = ([event["stream_id"]], [data["to_entity"]], [data["to_id"]])
    connection = await asyncpg.connect(deployment.read_model_url)
    moved = await connection.fetch(
        (BEFORE / "project.sql").read_text(),
        [3], [await connection.fetchval("SELECT epoch FROM partitions WHERE partition = 3")],
        [39], [40],
        *whose, [data["target"]], [""],
        [event["stream_id"]], [event["stream_version"]],
        *[[]] * 5,
        *whose, [data["target"]], ["period"], [event["stream_version"]], [event["recorded_at"]],
        [event["causation_id"]], [None], *[[None]] * 4,
        *[[]] * 9,
    )  # fmt: skip
    await connection.close()
    assert [row["partition"] for row in moved] == [3]


async def caught_up(deployment: Deployment) -> bool:
    return await projected(deployment) == await log_size(deployment)


async def test_both_services_are_upgraded_the_projection_first_and_no_answer_is_wrong(
    deployment: Deployment, client: Client
) -> None:
    assert (await fetch(deployment.event_store_url, "SELECT format FROM snapshots"))[0][0] < FORMAT
    asker = Asker(client, deployment)

    await migrate(deployment, "projection_service")
    await apply_by_the_statement_of_before(deployment)
    await migrate(deployment, "command_service")
    deployment.declare()
    await start(deployment, "projection_service")
    await asker.ask()
    async with asker.asking():
        await migrate(deployment, "projection_service")  # once more, while it is at work
        await start(deployment, "command_service")
        await eventually(lambda: caught_up(deployment))
    await asker.ask()
    assert not await fetch(deployment.read_model_url, "SELECT FROM parked_events")

    for command in SENT:  # what was decided stands
        sent = await client.send(command["type"], command["body"], message_id=command["message_id"])
        reply = await client.reply(sent)
        assert {name: reply[name] for name in command["reply"]} == command["reply"]
    await use_what_is_new(client)
    await eventually(lambda: caught_up(deployment))
    assert not await fetch(deployment.read_model_url, "SELECT FROM parked_events")
    await a_rebuild_gives_the_same(deployment, client)


async def use_what_is_new(client: Client) -> None:
    """Go on with what was granted and asked for before, as only this version can."""
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()

    async def command(type_: str, patient: str, target: str, who: str, **more: str) -> str:
        entity, id_ = who.split()
        reply = await client.command(type_, patient, target=target, entity=entity, id_=id_, **more)
        return str(reply.get("error", reply["status"]))

    until = {"expires_at": tomorrow}
    exams = ("exams", "doctor d-1")
    assert await command("GrantConsent", "p-1", *exams, **until) == "consent_already_granted"
    assert await command("RevokeConsent", "p-1", *exams) == "accepted"
    assert await command("GrantConsent", "p-1", *exams, **until) == "accepted"
    assert await command("AskConsent", "p-1", *exams) == "accepted"
    assert await command("GrantConsent", "p-4", "all", "doctor d-1", **until) == "accepted"
    assert await command("GrantConsent", "p-long", "all", "doctor d-1", **until) == "accepted"
    asked_before_the_snapshot = ("conditions", "nurse n-1")
    assert await command("DenyConsent", "p-long", *asked_before_the_snapshot) == "accepted"
    assert await command("WithdrawRequest", "p-2", "all", "nurse n-1") == "accepted"
    soon = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
    assert await command("GrantConsent", "p-3", *exams, expires_at=soon) == "accepted"

    async def over() -> bool:
        asked = {"entity_name": "doctor", "entity_id": "d-1", "permission": "exams"}
        answer = await client.query("HasConsent", patient_id="p-3", min_version=6, **asked)
        return answer["has_consent"] is False

    await eventually(over)


async def a_rebuild_gives_the_same(deployment: Deployment, client: Client) -> None:
    asker = Asker(client, deployment)
    compared = await asyncio.to_thread(
        deployment.run, "projection_service", "rebuild", "--dry-run", "--json"
    )
    for table in json.loads(compared.stdout)["compared"]:
        assert table["different"] == len(table["examples"])
        for found in table["examples"]:  # by which event a period began was not kept before
            assert {**found["live"], "began_event": found["rebuilt"]["began_event"]} == (
                found["rebuilt"]
            )
            assert found["live"]["began_event"] is None
    told = await histories(client)
    async with asker.asking():
        rebuilt = await asyncio.to_thread(deployment.run, "projection_service", "rebuild")
    assert rebuilt.returncode == 0, rebuilt.stderr
    await asker.ask()
    assert await histories(client) == told


async def histories(client: Client) -> list[Json]:
    """Read the periods and requests of all patients; not whether an end is recorded yet."""
    found = []
    for patient in PATIENTS:
        history = await client.query("ConsentHistory", patient_id=patient)
        for period in history["periods"]:
            if period.get("ended", {}).get("cause") == "expired":
                period["ended"] = {"at": period["ended"]["at"]}
        found += [*history["periods"], *history["requests"]]
    return found

"""Takes the log as it is, after it was set back: what it lacks was, and is no more."""

from dataclasses import dataclass
from typing import Final

from command_service.log_identity.deployment import check_deployment
from command_service.log_identity.witness import Witness
from command_service.settings import AcceptLogSettings
from command_service.store.event_store import EventStore
from shared.event_log.set_back import LogPlace
from shared.postgres.connection import Connection
from shared.postgres.database import check_partitions, check_schema, connect_once
from shared.postgres.statements import statement
from shared.rabbitmq.connection import Broker, connect

_ACCEPT_LOG: Final = statement("command_service", "accept_log")


@dataclass(frozen=True, slots=True)
class AcceptedPartition:
    """From behind which position on a partition is of the new generation."""

    partition: int
    after_position: int
    lost: int
    """How many events behind that are known to have been published, and are no more."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What was decided."""

    generation: int
    partitions: list[AcceptedPartition]


async def accept_log(settings: AcceptLogSettings) -> Accepted:
    """Begin a new generation, and have the broker remember the log as it is.

    Workers begin anew with it; done again, it does no harm. Raises SettingsError and SchemaError
    where something must be mended.
    """
    database = await connect_once(settings.event_store_url, "command_service", name="accept-log")
    try:
        await check_schema(database, "command_service")
        await check_partitions(database, settings.consent_partitions)
        async with connect(settings.rabbitmq_url, name="accept-log") as broker:
            return await _accept(database, broker)
    finally:
        database.terminate()


async def _accept(database: Connection, broker: Broker) -> Accepted:
    identity = await check_deployment(database, broker)
    witness = await Witness.open(broker, EventStore(database))
    rows = await database.fetch(_ACCEPT_LOG)
    partitions = []
    for row in rows:
        number, position = row["partition"], row["position"]
        before = await witness.compare(number, any_server=True)
        lost = max(0, before.position - position) if before else 0
        partitions.append(AcceptedPartition(number, position, lost))
        await witness.forget(number)
    places = {
        row["partition"]: LogPlace(row["position"], str(row["event_id"]), row["generation"])
        for row in rows
        if row["event_id"] is not None
    }
    await witness.write(places, identity.log_id)
    return Accepted(rows[0]["generation"], partitions)

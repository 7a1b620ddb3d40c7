"""What `check` finds out about the log, from where it is written."""

from collections.abc import AsyncIterator
from typing import Final

from command_service.log_identity.deployment import check_deployment
from command_service.log_identity.witness import Witness
from command_service.store.event_store import EventStore
from shared.cli.check_log import set_back_finding
from shared.cli.check_results import Finding
from shared.postgres.connection import Pool
from shared.postgres.statements import statement
from shared.rabbitmq.connection import Broker

_READ_OWNERSHIP: Final = statement("shared.postgres", "read_ownership")


async def look_at_log(pool: Pool, broker: Broker) -> AsyncIterator[Finding]:
    """Look whose log it is, and whether it has what the broker remembers of it."""
    identity = await check_deployment(pool, broker)
    yield Finding("identity", True, f"log {identity.log_id}, of this virtual host")
    witness = await Witness.open(broker, EventStore(pool))
    rows = await pool.fetch(_READ_OWNERSHIP)
    found = [await witness.compare(row["partition"]) for row in rows]
    yield set_back_finding(
        [one for one in found if one], "it has all that is known to have been published"
    )

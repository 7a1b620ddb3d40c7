"""What the projection service looks at from outside its work: checkpoints, heads, the parked."""

import asyncio
from datetime import datetime
from time import time
from typing import Final

from projection_service.metrics import LAG, PARKED_EVENTS, PARKED_PATIENTS
from shared.event_log.log_client import LogClient
from shared.messages.cloud_event import CloudEvent
from shared.postgres.connection import Connection
from shared.postgres.statements import statement
from shared.telemetry.metrics import LEASED
from shared.worker.observer import Probe

_OBSERVE_CHECKPOINTS: Final = statement("projection_service", "observe_checkpoints")
_COUNT_PARKED: Final = statement("projection_service", "count_parked")


class Checkpoints:
    """The checkpoints of all partitions, whoever owns them, against the heads of their logs."""

    def __init__(self) -> None:
        self._positions: dict[int, int] = {}

    async def look(self, connection: Connection) -> None:
        """Read how far the read model is."""
        for row in await connection.fetch(_OBSERVE_CHECKPOINTS):
            self._positions[row["partition"]] = row["position"]
            LEASED.labels(row["partition"]).set(row["is_leased"])
        parked = await connection.fetchrow(_COUNT_PARKED)
        PARKED_EVENTS.set(parked["events"] if parked else 0)
        PARKED_PATIENTS.set(parked["patients"] if parked else 0)

    async def ask(self, log: LogClient) -> None:
        """Ask for what follows each checkpoint: how much it is, and how old its first event."""
        asked = (
            self._ask_one(log, partition, position)
            for partition, position in self._positions.items()
        )
        await asyncio.gather(*asked)

    async def _ask_one(self, log: LogClient, partition: int, position: int) -> None:
        looked_at = time()
        page = await log.read(partition, position, limit=1)
        age_s = _age_s(page.events[0], looked_at) if page.events else None
        LAG.see(partition, page.head - position, age_s, looked_at)


def _age_s(event: CloudEvent, now: float) -> float:
    """Age by this machine's clock, of a time by the event store's."""
    return now - datetime.fromisoformat(event.time).timestamp()


def probe(partitions: int) -> Probe:
    """Look at that many partitions from now on."""
    LAG.expect(range(partitions))
    checkpoints = Checkpoints()
    return Probe(checkpoints.look, checkpoints.ask)

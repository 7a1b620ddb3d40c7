"""What the command service looks at from outside its work: the log, and how far it is published."""

from time import time
from typing import Final

from command_service.metrics import LOG_HEAD, PUBLISH_BACKLOG
from shared.postgres.connection import Connection
from shared.postgres.statements import statement
from shared.telemetry.metrics import LEASED
from shared.worker.observer import Probe

_OBSERVE_LOG: Final = statement("command_service", "observe_log")


async def observe_log(connection: Connection) -> None:
    """Set the gauges of all partitions, whoever owns them."""
    looked_at = time()
    for row in await connection.fetch(_OBSERVE_LOG):
        partition, waiting = row["partition"], row["position"] - row["published_position"]
        LOG_HEAD.labels(partition).set(row["position"])
        LEASED.labels(partition).set(row["is_leased"])
        PUBLISH_BACKLOG.see(partition, waiting, row["age_s"], looked_at)


def probe(partitions: int) -> Probe:
    """Look at that many partitions from now on."""
    PUBLISH_BACKLOG.expect(range(partitions))
    return Probe(observe_log)

"""What `check` finds out about the log, from where it is projected."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from projection_service.read_model import ReadModel
from shared.cli.check_log import set_back_finding
from shared.cli.check_results import Finding
from shared.errors import NoAnswer
from shared.event_log.log_client import LogClient
from shared.event_log.set_back import SetBack
from shared.postgres.connection import Pool
from shared.rabbitmq.connection import Broker
from shared.rabbitmq.deployment_mark import check_log_mark
from shared.rabbitmq.rpc_client import Requests

ANSWERED_WITHIN_S: Final = 5.0


async def look_at_log(pool: Pool, broker: Broker) -> AsyncIterator[Finding]:
    """Look which log the read model follows, and whether that has what was projected."""
    model = ReadModel(pool)
    log_id = await model.followed_log()
    if log_id is None:
        yield Finding("identity", True, "it follows no log yet")
    else:
        await check_log_mark(broker, log_id)
        yield Finding("identity", True, f"it follows the log {log_id}, of this virtual host")
    log = LogClient(await Requests.open(broker), log_id)
    try:
        async with asyncio.timeout(ANSWERED_WITHIN_S):
            found = await _compare(model, log)
    except (NoAnswer, TimeoutError):
        yield await _remembered(model)
    else:
        yield set_back_finding(found, "it has all that was projected")


async def _compare(model: ReadModel, log: LogClient) -> list[SetBack]:
    places = await model.read_places()
    pages = await asyncio.gather(
        *(log.read(n, max(0, place.position - 1), 1) for n, place in places.items())
    )
    found = (page.differs(n, places[n]) for n, page in zip(places, pages, strict=True))
    return [one for one in found if one]


async def _remembered(model: ReadModel) -> Finding:
    """Tell what a worker has found, where no command worker answers now."""
    if marked := await model.read_set_back():
        numbers = ", ".join(map(str, sorted(marked)))
        return Finding("log", False, f"the log of partition {numbers} was set back")
    return Finding("log", True, "not compared, no command worker answers")

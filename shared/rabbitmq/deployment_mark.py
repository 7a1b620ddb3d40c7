"""Marks of a virtual host: which log it works on, so that two deployments never share one.

Each is an exchange that nothing is published to. Its name can be looked for without any permission;
and `consent.deployment` has the log's own mark as its alternate exchange, which a broker keeps: to
declare it for another log is refused.
"""

from asyncio import sleep
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar
from uuid import UUID

import structlog

from shared.errors import NotConnected, SettingsError, TopologyMissing
from shared.errors.connection import BROKER_ERRORS
from shared.messages import names
from shared.rabbitmq.connection import Broker, PreconditionFailed, connect
from shared.settings import ClientSettings, read_settings

KIND: Final = "fanout"
DECLARED_WITHIN_S: Final = 1.0
"""How long `topology` needs at most from the first of its marks to the last."""
BIND_IT: Final = (
    "run `python -m command_service topology` with EVENT_STORE_URL, after `migrate`: until then "
    "nobody notices a second deployment in this virtual host"
)

Checked = TypeVar("Checked")

log = structlog.get_logger()


async def mark_log(broker: Broker, log_id: UUID) -> None:
    """Give the virtual host to a log; raises SettingsError where it has another one."""
    channel = await broker.channel(expendable=True)
    mark = names.log_mark(log_id)
    try:
        await channel.exchange_declare(
            names.DEPLOYMENT,
            exchange_type=KIND,
            durable=True,
            arguments={"alternate-exchange": mark},
        )
    except PreconditionFailed as error:
        raise SettingsError(f"{_another(log_id)} ({error})") from None
    await channel.exchange_declare(mark, exchange_type=KIND, durable=True)
    await channel.close()


async def mark_virtual_host(broker: Broker, log_id: UUID, virtual_host: UUID) -> None:
    """Have the log know this virtual host again."""
    channel = await broker.channel()
    mark = names.virtual_host_mark(log_id, virtual_host)
    await channel.exchange_declare(mark, exchange_type=KIND, durable=True)
    await broker.close_channel(channel)


async def is_bound(broker: Broker) -> bool:
    """Whether the virtual host belongs to some log; says so where `topology` was told of none."""
    bound = await broker.has_exchange(names.DEPLOYMENT)
    if not bound:
        log.warning("deployment.unbound", remedy=BIND_IT)
    return bound


async def check_marks(broker: Broker, log_id: UUID, virtual_host: UUID | None) -> None:
    """Look whether the virtual host and the log belong together.

    Raises SettingsError where they do not, TopologyMissing where that is not said yet.
    """
    await _check_log_mark(broker, log_id)
    if virtual_host is None:
        raise TopologyMissing(names.virtual_host_mark(log_id, log_id), "exchange")
    if not await broker.has_exchange(names.virtual_host_mark(log_id, virtual_host)):
        raise SettingsError(
            f"the event store of the log {log_id} works with another virtual host than that of "
            "RABBITMQ_URL: name the other one, or run `python -m command_service topology` here "
            "once no worker of that one runs any more"
        )


async def looking_twice(check: Callable[[], Awaitable[Checked]]) -> Checked:
    """Check again before it is said that marks are another's: `topology` may be making them."""
    try:
        return await check()
    except SettingsError:
        await sleep(DECLARED_WITHIN_S)
        return await check()


async def check_log_mark(broker: Broker, log_id: UUID) -> None:
    """Look whether the virtual host works on this log; raises as `check_marks` does."""
    await looking_twice(lambda: _check_log_mark(broker, log_id))


async def _check_log_mark(broker: Broker, log_id: UUID) -> None:
    if not await broker.has_exchange(names.DEPLOYMENT):
        raise TopologyMissing(names.DEPLOYMENT, "exchange")
    if not await broker.has_exchange(names.log_mark(log_id)):
        raise SettingsError(_another(log_id))


async def refuse_another_log(log_id: UUID) -> None:
    """Raise SettingsError where RABBITMQ_URL is set, and its virtual host is another log's.

    A broker that can't be asked now is no matter here: the workers will ask.
    """
    try:
        url = read_settings(ClientSettings).rabbitmq_url
    except SettingsError:
        return
    with suppress(TopologyMissing, NotConnected, TimeoutError, *BROKER_ERRORS):
        async with connect(url, name="migrate") as broker:
            await check_log_mark(broker, log_id)


def _another(log_id: UUID) -> str:
    return (
        f"the virtual host of RABBITMQ_URL belongs to another deployment than the log {log_id}: "
        "give each deployment a virtual host of its own"
    )

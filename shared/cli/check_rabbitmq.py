"""What `check` finds out about the broker, without changing anything there."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

from shared.cli.check_results import Finding, Needs, is_too_old
from shared.errors import BrokerBlocked, ConsentError
from shared.errors.connection import BROKER_ERRORS
from shared.errors.text import said_by
from shared.messages import names
from shared.rabbitmq.alarms.alarm_probe import AlarmProbe
from shared.rabbitmq.connection import (
    AccessRefused,
    Broker,
    Channel,
    EntityNotFound,
    PreconditionFailed,
    Properties,
    connect,
)
from shared.rabbitmq.connection import virtual_host as virtual_host_of
from shared.rabbitmq.management_api import Managed, NotManaged, read_limits, read_topology
from shared.rabbitmq.policies import policy_complaints
from shared.rabbitmq.publishing import Outgoing, publish
from shared.rabbitmq.topology import EXCHANGES, Exchange, Queue, beyond, is_declared_beyond, queues

OLDEST_RABBITMQ: Final = (3, 10)
"""The first whose quorum queues dead-letter at least once."""
GIVE_UP_S: Final = 30
MOST_NAMED: Final = 10
RUN_TOPOLOGY: Final = "run `python -m command_service topology`"
DEFAULT_EXCHANGE: Final = "the default exchange"


async def broker_findings(needs: Needs, management: str | None) -> AsyncIterator[Finding]:
    """Look at the server, the topology, and what this user may do, and give up in the end."""
    url, name = needs.settings.rabbitmq_url, f"{needs.package} check"
    try:
        async with (
            connect(url, name=name) as broker,
            asyncio.timeout(GIVE_UP_S),
        ):
            yield server_finding(broker.version)
            await (await AlarmProbe.open(broker)).ring()
            if management is None:
                topology = await _seen_topology(broker, needs.settings.consent_partitions)
            else:
                topology = await _managed_topology(needs, management)
            partitions = needs.settings.consent_partitions
            if topology.ok and await is_declared_beyond(broker, partitions):
                topology = Finding("topology", False, beyond(partitions))
            yield topology
            if topology.ok:
                yield await _rights(broker, needs)
        yield await _subscribers(needs, management)
    except BrokerBlocked as error:
        yield Finding("broker alarm", False, str(error))
    except TimeoutError:
        yield Finding("broker", False, "it does not answer in time: see how it is, and its log")
    except (ConsentError, *BROKER_ERRORS) as error:
        yield Finding("broker", False, f"not reached: {said_by(error)}")


def server_finding(version: str) -> Finding:
    """Judge the server's version."""
    oldest = ".".join(map(str, OLDEST_RABBITMQ))
    if is_too_old(version, OLDEST_RABBITMQ):
        return Finding("broker", False, f"RabbitMQ {version} is too old: use {oldest} or newer")
    return Finding("broker", True, f"RabbitMQ {version}")


async def _seen_topology(broker: Broker, partitions: int) -> Finding:
    """Look by AMQP: what is there, and for whom may declare it also with which arguments."""
    looker = _Looker(broker)
    for exchange in EXCHANGES:
        await looker.look(f"exchange {exchange.name}", [_declared_exchange(exchange)])
    for queue in queues(partitions):
        await looker.look(f"queue {queue.name}", _accepted(queue))
    left_out = "bindings" if looker.may_declare else "arguments and bindings"
    return _topology(looker.missing, looker.different, partitions, left_out)


async def _managed_topology(needs: Needs, management: str) -> Finding:
    partitions = needs.settings.consent_partitions
    vhost = virtual_host_of(needs.settings.rabbitmq_url)
    try:
        found = await read_topology(management, vhost)
    except NotManaged as error:
        return Finding("topology", False, f"not compared, the management API {error}")
    expected = Managed.of(EXCHANGES, list(queues(partitions)))
    policies = policy_complaints(found, queues(partitions))
    return _topology(expected.missing_from(found), expected.unlike(found), partitions, "", policies)


def _topology(
    missing: Iterable[str],
    different: Iterable[str],
    partitions: int,
    left_out: str,
    more: Iterable[str] = (),
) -> Finding:
    complaints = []
    if named := list(missing):
        complaints.append(f"{RUN_TOPOLOGY}; missing: {_first_few(named)}")
    if named := list(different):
        complaints.append(
            f"different: {_first_few(named)}: {RUN_TOPOLOGY}, which replaces those of an older "
            "version; others delete first, when empty"
        )
    complaints += more
    if complaints:
        return Finding("topology", False, "; ".join(complaints))
    count = sum(1 for _ in queues(partitions))
    hint = f"; {left_out} not compared, give --management" if left_out else ", all as declared"
    return Finding("topology", True, f"{len(EXCHANGES)} exchanges, {count} queues{hint}")


def _first_few(named: list[str]) -> str:
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    return ", ".join(named[:MOST_NAMED]) + more


Declare = Callable[[Channel, bool], Awaitable[object]]


class _Looker:
    """Declares passively; where a thing exists also actively, which names what is different."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._channel: Channel | None = None
        self.missing: list[str] = []
        self.different: list[str] = []
        self.may_declare = True

    async def look(self, what: str, accepted: Sequence[Declare]) -> None:
        """Look at one thing, which may stand as any of these; a refusal closes the channel."""
        complaints = []
        for declare in accepted:
            try:
                await declare(await self._open(), True)
                if self.may_declare:
                    await declare(await self._open(), False)
            except PreconditionFailed as error:
                complaints.append(str(error).removeprefix("PRECONDITION_FAILED - "))
                self._channel = None
                continue
            except EntityNotFound:
                self.missing.append(what)
                self._channel = None
            except AccessRefused:
                self.may_declare = False
                self._channel = None
            return
        self.different.append(complaints[0])

    async def _open(self) -> Channel:
        if self._channel is None:
            self._channel = await self._broker.channel()
        return self._channel


def _declared_exchange(exchange: Exchange) -> Declare:
    return lambda channel, passive: channel.exchange_declare(
        exchange.name,
        exchange_type=exchange.type,
        durable=True,
        passive=passive,
        arguments=exchange.arguments,
    )


def _accepted(queue: Queue) -> list[Declare]:
    return [_declared_queue(queue, arguments) for arguments in queue.accepted]


def _declared_queue(queue: Queue, arguments: dict[str, Any]) -> Declare:
    return lambda channel, passive: channel.queue_declare(
        queue.name, durable=True, passive=passive, arguments=arguments
    )


async def _subscribers(needs: Needs, management: str | None) -> Finding:
    """Name the queues bound to the events that refuse some, or may: only full ones are at fault.

    A refused event reaches the projection by itself and all other queues as ever, so this is
    about that one queue's reader, and what each refusal costs the publisher.
    """
    if management is None:
        return Finding("subscribers", True, "not looked at, give --management")
    vhost = virtual_host_of(needs.settings.rabbitmq_url)
    try:
        queues = await read_limits(management, vhost, reached_from=names.EVENTS)
    except NotManaged as error:
        return Finding("subscribers", True, f"not looked at, the management API {error}")
    refusing = [queue.described() for queue in queues if queue.refuses]
    may = [queue.described() for queue in queues if queue.may_refuse and not queue.refuses]
    remedy = "read them, or let them drop their oldest (overflow drop-head)"
    found = [f"some refuse events: {_first_few(refusing)}: {remedy}"] if refusing else []
    found += [f"these may refuse events once they are full: {_first_few(may)}"] if may else []
    found += [] if found else [f"{len(queues)} queues get events, none refuses any"]
    return Finding("subscribers", not refusing, "; ".join(found))


async def _rights(broker: Broker, needs: Needs) -> Finding:
    """Ask for what must be refused for another reason, once the right to it is found there.

    So nothing is read or published, whether or not the user may.
    """
    unread = [f"read {queue}" for queue in needs.reads if not await _may_read(broker, queue)]
    unwritten = [exchange for exchange in needs.writes if not await _may_write(broker, exchange)]
    lacking = [*unread, *(f"write {exchange or DEFAULT_EXCHANGE}" for exchange in unwritten)]
    if lacking:
        role = needs.package.replace("_", "-")
        remedy = f"run what `python -m command_service permissions USER {role}` prints"
        return Finding("broker rights", False, f"the user may not {_first_few(lacking)}: {remedy}")
    return Finding("broker rights", True, "all that the worker reads and writes")


async def _may_read(broker: Broker, queue: str) -> bool:
    channel = await broker.channel()
    no_number = {"x-priority": "not a number"}
    return await _permitted(
        broker,
        channel,
        channel.basic_consume(queue, lambda _: None, arguments=no_number),  # type: ignore[arg-type, return-value] # never called
    )


async def _may_write(broker: Broker, exchange: str) -> bool:
    channel = await broker.channel(confirms=True)
    no_time = Outgoing(exchange, "consent.check", b"", Properties(expiration="not a time"))
    return await _permitted(broker, channel, publish(channel, no_time))


async def _permitted(broker: Broker, channel: Channel, attempt: Awaitable[object]) -> bool:
    try:
        await attempt
    except AccessRefused:
        return False
    except PreconditionFailed:
        return True
    await broker.close_channel(channel)
    return True

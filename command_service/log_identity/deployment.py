"""One deployment is one event store and one virtual host: binds them, and checks that they are."""

from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid4

import asyncpg

from shared.errors import SchemaError, SettingsError
from shared.messages import names
from shared.postgres.connection import Queryable
from shared.postgres.database import connect_once
from shared.postgres.statements import statement
from shared.rabbitmq.connection import Broker, connect
from shared.rabbitmq.deployment_mark import (
    check_marks,
    looking_twice,
    mark_log,
    mark_virtual_host,
    refuse_another_log,
)
from shared.rabbitmq.upgrade import upgrade

_READ_IDENTITY: Final = statement("command_service", "read_identity")
_BIND_VIRTUAL_HOST: Final = statement("command_service", "bind_virtual_host")


@dataclass(frozen=True, slots=True)
class Identity:
    """Which log an event store holds, and who works on it."""

    log_id: UUID
    virtual_host: UUID | None
    is_at_work: bool


async def read_identity(database: Queryable) -> Identity:
    """Read which log this is; raises SchemaError before it has an identity."""
    try:
        row = await database.fetchrow(_READ_IDENTITY)
    except asyncpg.UndefinedTableError:
        row = None
    if row is None:
        raise SchemaError("the event store has no identity yet: run `migrate` first")
    return Identity(*row)


async def check_deployment(database: Queryable, broker: Broker) -> Identity:
    """Look whether event store and virtual host belong together.

    Raises SettingsError where they do not, TopologyMissing where `topology` was not run.
    """

    async def check() -> Identity:
        identity = await read_identity(database)
        await check_marks(broker, identity.log_id, identity.virtual_host)
        return identity

    return await looking_twice(check)


async def refuse_another_deployment(event_store_url: str) -> None:
    """Raise SettingsError where RABBITMQ_URL is set, and leads to another log's virtual host."""
    database = await connect_once(event_store_url, "command_service", name="migrate")
    try:
        await refuse_another_log((await read_identity(database)).log_id)
    finally:
        database.terminate()


@dataclass(frozen=True, slots=True)
class Declared:
    """What `topology` has done."""

    things: int
    unbound: str | None
    """Why the virtual host is not bound to an event store yet."""


async def declare_deployment(
    rabbitmq_url: str, event_store_url: str | None, partitions: int
) -> Declared:
    """Declare the topology in a virtual host, and bind it to the event store, if there is one yet.

    Raises SettingsError where one of them belongs to another deployment, and what `declare` raises.
    """
    async with connect(rabbitmq_url, name="topology") as broker:
        if event_store_url is None:
            return Declared(await upgrade(broker, partitions), "EVENT_STORE_URL is not set")
        database = await connect_once(event_store_url, "command_service", name="topology")
        try:
            unbound = await _bind_to(database, broker)
        finally:
            database.terminate()
        return Declared(await upgrade(broker, partitions), unbound)


async def _bind_to(database: Queryable, broker: Broker) -> str | None:
    """Bind the virtual host; return why that can't be done before `migrate`."""
    try:
        identity = await read_identity(database)
    except SchemaError as error:
        return str(error)
    await mark_log(broker, identity.log_id)
    await _bind(database, broker, identity)
    return None


async def _bind(database: Queryable, broker: Broker, identity: Identity) -> None:
    """Make this the virtual host of the event store, unless another one is at work with it."""
    log_id, bound = identity.log_id, identity.virtual_host
    if bound and await broker.has_exchange(names.virtual_host_mark(log_id, bound)):
        return
    if bound and identity.is_at_work:
        raise SettingsError(
            f"the event store of the log {log_id} is at work with another virtual host than that "
            "of RABBITMQ_URL: name that one, or stop its workers first"
        )
    virtual_host = uuid4()
    await mark_virtual_host(broker, log_id, virtual_host)
    await database.execute(_BIND_VIRTUAL_HOST, virtual_host)

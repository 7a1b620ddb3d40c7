"""What the client does with its requests while the broker, or a part of it, is not there."""

import asyncio
from contextlib import suppress
from typing import Any, Final

import pytest
from aio_pika import ExchangeType

from shared.client import ConsentClient
from shared.client.client import PAUSE_S
from shared.errors import NoAnswer, Unroutable
from shared.messages import names
from shared.rabbitmq.rpc_client import Requests
from tests.conftest import PARTITIONS
from tests.support.amqp import Client
from tests.support.deployment import Deployment
from tests.support.eventually import eventually

REQUESTS: Final = 50
WITHIN_S: Final = 2.0


async def test_all_pending_requests_try_one_connection_after_the_other() -> None:
    tries = 0

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    client = ConsentClient(f"amqp://user:password@{host}:{port}/", within=WITHIN_S)
    pending = [client.has_consent(f"p-{n}", "doctor", "d-1") for n in range(REQUESTS)]
    ended = await asyncio.gather(*pending, return_exceptions=True)
    server.close()
    assert all(isinstance(one, NoAnswer) for one in ended)
    assert 2 <= tries <= WITHIN_S / PAUSE_S + 1


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """Give what the tries of requests came to, one after the other."""
    seen: list[Exception] = []
    ask = Requests.ask

    async def noted(*arguments: Any) -> Any:  # noqa: ANN401 - as it is
        try:
            return await ask(*arguments)
        except Exception as error:
            seen.append(error)
            raise

    monkeypatch.setattr(Requests, "ask", noted)
    return seen


async def remove_exchanges(client: Client) -> None:
    for name in (names.QUERIES, names.UNKNOWN_QUERIES):
        await client.channel.exchange_delete(name)


async def declare_exchanges_alone(client: Client) -> None:
    """Do the beginning of what `topology` does."""
    await client.channel.declare_exchange(names.UNKNOWN_QUERIES, ExchangeType.FANOUT, durable=True)
    arguments: dict[str, Any] = {"alternate-exchange": names.UNKNOWN_QUERIES}
    await client.channel.declare_exchange(
        names.QUERIES, ExchangeType.TOPIC, durable=True, arguments=arguments
    )


async def test_a_request_that_waits_goes_on_waiting_while_the_queues_are_declared_anew(
    deployment: Deployment, client: Client, failures: list[Exception]
) -> None:
    deployment.start_both()
    url = deployment.rabbitmq_url
    async with ConsentClient.connect(url, partitions=PARTITIONS, within=120) as asking:
        await remove_exchanges(client)
        pending = asyncio.create_task(asking.list_consents("p-1"))

        async def failed() -> list[Exception]:
            return failures

        async def came_back() -> bool:
            return any(isinstance(one, Unroutable) for one in failures)

        await eventually(failed)
        await declare_exchanges_alone(client)
        await eventually(came_back)
        await asyncio.to_thread(deployment.declare)
        assert (await pending).version == 0


async def test_who_has_met_no_trouble_before_is_told_at_once_that_there_is_no_queue(
    deployment: Deployment, client: Client, failures: list[Exception]
) -> None:
    await remove_exchanges(client)
    await declare_exchanges_alone(client)
    url = deployment.rabbitmq_url
    async with ConsentClient.connect(url, partitions=PARTITIONS, within=3600) as asking:
        with pytest.raises(Unroutable, match="HasConsent reached no queue"):
            await asking.has_consent("p-1", "doctor", "d-1")
    assert len(failures) == 1

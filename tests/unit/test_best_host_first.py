"""Of several hosts, whoever failed lately is tried last."""

import asyncio

import pytest
from aiormq.exceptions import AMQPConnectionError, ConnectionInternalError

from shared.rabbitmq.connection import _best_first, _ended, _failed_at


async def lost(host: str, error: Exception) -> None:
    losing: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    losing.set_exception(error)
    _ended(host, losing)


@pytest.fixture(autouse=True)
def nobody_failed() -> None:
    _failed_at.clear()


async def test_the_last_to_fail_is_tried_last() -> None:
    await lost("a", AMQPConnectionError())
    await lost("b", AMQPConnectionError())
    assert _best_first(["b", "a", "c"]) == ["c", "a", "b"]


async def test_a_host_that_ended_a_connection_for_what_was_sent_has_not_failed() -> None:
    await lost("frozen", AMQPConnectionError())
    await lost("there", ConnectionInternalError())
    assert _best_first(["frozen", "there"]) == ["there", "frozen"]

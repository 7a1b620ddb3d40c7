"""A library that gives a connection up cancels whoever waits there: they must hear of a loss.

Or it raises an Exception of no kind at all, where it knows no reason.

A task that ends cancelled is no failure to a group of tasks, and nobody would begin it anew.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from shared.errors.connection import ConnectionLost
from shared.rabbitmq import rpc_client
from shared.rabbitmq.reply_to.line import ReplyLine
from shared.rabbitmq.rpc_client import Request, Requests

REQUEST = Request("", "queue", "ReadEvents", b"{}", "1")


def ends_by(error: type[BaseException]) -> Callable[..., Awaitable[NoReturn]]:
    async def end(*_: object, **__: object) -> NoReturn:
        raise error

    return end


async def never(*_: object, **__: object) -> NoReturn:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.fixture(params=[asyncio.CancelledError, Exception])
def error(request: pytest.FixtureRequest) -> type[BaseException]:
    """Give what it raises: the second where it knows no reason."""
    found: type[BaseException] = request.param
    return found


@pytest.fixture
async def channel(error: type[BaseException]) -> Any:  # noqa: ANN401
    return SimpleNamespace(
        closing=asyncio.Future(),
        basic_consume=never,
        basic_qos=ends_by(error),
        basic_publish=never,
    )


def requests_on(channel: Any) -> Requests:  # noqa: ANN401
    nothing: Any = None
    return Requests(nothing, rpc_client._Line(channel))  # noqa: SLF001 - as opening would


async def test_who_asks_hears_that_the_connection_is_lost(
    channel: Any,  # noqa: ANN401
    error: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rpc_client, "publish", ends_by(error))
    with pytest.raises(ConnectionLost):
        await requests_on(channel).ask(REQUEST, within=30)


async def test_who_is_cancelled_while_asking_is_cancelled(
    channel: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rpc_client, "publish", never)
    asking = asyncio.create_task(requests_on(channel).ask(REQUEST, within=30))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()


async def test_who_makes_sure_of_replies_hears_that_the_connection_is_lost(
    channel: Any,  # noqa: ANN401
) -> None:
    nothing: Any = None
    line = ReplyLine(AsyncExitStack(), nothing, channel)
    with pytest.raises(ConnectionLost):
        await line.barrier()

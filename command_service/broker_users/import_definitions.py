"""Gives a broker that runs its users, through RabbitMQ's management API."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from yarl import URL

from shared.errors import NotConnected
from shared.rabbitmq.management_api import api_path, host_after_host, log_in

if TYPE_CHECKING:
    from aiohttp import ClientResponseError

UNKNOWN: Final = 404


async def import_definitions(url: str, content: Mapping[str, Any]) -> None:
    """Make users, passwords and permissions as defined; doing it again changes nothing.

    Connections that are open stay so. One host after the other is asked, until one has done it.
    Raises NotConnected where the last one refuses, ConnectionError where it does not answer.
    """
    await host_after_host(url, lambda host: _import(host, content), ConnectionError)


async def _import(url: str, content: Mapping[str, Any]) -> None:
    import aiohttp  # noqa: PLC0415 - as in `log_in`

    try:
        async with log_in(url) as session:
            async with session.post(api_path(url, "definitions"), json=content) as answer:
                answer.raise_for_status()
            for path in _topics_to_clear(content):
                async with session.delete(api_path(url, path)) as answer:
                    if answer.status != UNKNOWN:
                        answer.raise_for_status()
    except aiohttp.ClientResponseError as error:
        raise NotConnected(_refused(URL(url).user, error)) from None
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ConnectionError(f"the management API: {error or type(error).__name__}") from None


def _topics_to_clear(content: Mapping[str, Any]) -> Iterator[str]:
    """Name what an earlier, narrower role left: importing adds, and takes nothing away."""
    limited = {(one["vhost"], one["user"]) for one in content["topic_permissions"]}
    for one in content["permissions"]:
        if (one["vhost"], one["user"]) not in limited:
            yield f"topic-permissions/{quote(one['vhost'], safe='')}/{quote(one['user'], safe='')}"


def _refused(user: str | None, error: "ClientResponseError") -> str:
    return (
        f"the management API refuses {user} ({error.status} {error.message}): it must be "
        "an administrator; where its password is a new one, tell the broker first: "
        f"`rabbitmqctl change_password {user}`"
    )

"""Gives a broker that runs its users, through RabbitMQ's management API."""

from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote

import aiohttp
from yarl import URL

from shared.errors import NotConnected

ANSWER_WITHIN: Final = aiohttp.ClientTimeout(total=20)
UNKNOWN: Final = 404


async def import_definitions(url: str, content: Mapping[str, Any]) -> None:
    """Make users, passwords and permissions as defined; doing it again changes nothing.

    Connections that are open stay so.
    Raises NotConnected where the API refuses, ConnectionError where it does not answer.
    """
    address = URL(url)
    login = aiohttp.encode_basic_auth(address.user or "", address.password or "")
    api = URL(f"{address.with_user(None)}".rstrip("/") + "/api", encoded=True)
    try:
        async with aiohttp.ClientSession(
            timeout=ANSWER_WITHIN, headers={"Authorization": login}
        ) as session:
            async with session.post(f"{api}/definitions", json=content) as answer:
                answer.raise_for_status()
            for path in _topics_to_clear(content):
                async with session.delete(URL(f"{api}/{path}", encoded=True)) as answer:
                    if answer.status != UNKNOWN:
                        answer.raise_for_status()
    except aiohttp.ClientResponseError as error:
        raise NotConnected(_refused(address, error)) from None
    except aiohttp.ClientError as error:
        raise ConnectionError(f"the management API: {error or type(error).__name__}") from None


def _topics_to_clear(content: Mapping[str, Any]) -> Iterator[str]:
    """Name what an earlier, narrower role left: importing adds, and takes nothing away."""
    limited = {(one["vhost"], one["user"]) for one in content["topic_permissions"]}
    for one in content["permissions"]:
        if (one["vhost"], one["user"]) not in limited:
            yield f"topic-permissions/{quote(one['vhost'], safe='')}/{quote(one['user'], safe='')}"


def _refused(address: URL, error: aiohttp.ClientResponseError) -> str:
    return (
        f"the management API refuses {address.user} ({error.status} {error.message}): it must be "
        "an administrator; where its password is a new one, tell the broker first: "
        f"`rabbitmqctl change_password {address.user}`"
    )

"""Gives a broker that runs its users, through RabbitMQ's management API."""

from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import quote

from yarl import URL

from shared.errors import NotConnected
from shared.rabbitmq.management_api import MANAGEMENT_ERRORS, ask_management, said_by_management

UNKNOWN: Final = 404


async def import_definitions(url: str, content: Mapping[str, Any]) -> None:
    """Make users, passwords and permissions as defined; doing it again changes nothing.

    Connections that are open stay so.
    Raises NotConnected where the API refuses, ConnectionError where it does not answer.
    """
    try:
        await ask_management(url, "definitions", method="POST", content=content)
        for path in _topics_to_clear(content):
            try:
                await ask_management(url, path, method="DELETE")
            except HTTPError as error:
                if error.code != UNKNOWN:
                    raise
    except HTTPError as error:
        raise NotConnected(_refused(URL(url).user, error)) from None
    except MANAGEMENT_ERRORS as error:
        raise ConnectionError(f"the management API: {said_by_management(error)}") from None


def _topics_to_clear(content: Mapping[str, Any]) -> Iterator[str]:
    """Name what an earlier, narrower role left: importing adds, and takes nothing away."""
    limited = {(one["vhost"], one["user"]) for one in content["topic_permissions"]}
    for one in content["permissions"]:
        if (one["vhost"], one["user"]) not in limited:
            yield f"topic-permissions/{quote(one['vhost'], safe='')}/{quote(one['user'], safe='')}"


def _refused(user: str | None, error: HTTPError) -> str:
    return (
        f"the management API refuses {user} ({error.code} {error.reason}): it must be "
        "an administrator; where its password is a new one, tell the broker first: "
        f"`rabbitmqctl change_password {user}`"
    )

"""Reads a URL that names several hosts, such as the nodes of a cluster, one of which will do."""

from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

from yarl import URL

AMQP_PORT: Final = 5672
UNVERIFIED: Final = (
    "no_verify_ssl switches the check of the broker's certificate off: leave that out, and name "
    "who signed it by cafile"
)


def one_by_one(text: str) -> tuple[str, ...]:
    """Return a URL for each host of `scheme://user:password@a:1,b:2/path`, in their order.

    Raises ValueError, whose words hold nothing of a password.
    """
    scheme, mark, rest = text.partition("://")
    end = min((place for sign in "/?#" if (place := rest.find(sign)) >= 0), default=len(rest))
    login, at, hosts = rest[:end].rpartition("@")
    found = tuple(f"{scheme}{mark}{login}{at}{host}{rest[end:]}" for host in hosts.split(","))
    if not all(URL(url).host for url in found):
        raise ValueError("a host is missing")
    return found


def trusts_anybody(url: URL) -> bool:
    """Whether TLS is asked for that takes any certificate."""
    return url.scheme == "amqps" and url.query.get("no_verify_ssl", "0") != "0"


def place_of_broker(text: str) -> str:
    """Say which broker and virtual host a URL means, without user and password."""
    hosts = ",".join(_hosts(text))
    return f"{hosts}{unquote(URL(one_by_one(text)[0]).raw_path)}"


def _hosts(text: str) -> Iterator[str]:
    for url in map(URL, one_by_one(text)):
        yield f"{url.host}:{url.port or AMQP_PORT}"

"""Reads a virtual host's topology from RabbitMQ's management API, which alone tells bindings."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

from yarl import URL

from shared.rabbitmq.topology import SPREAD, Exchange, Queue
from shared.values.several_hosts import one_by_one

if TYPE_CHECKING:
    from aiohttp import ClientSession

ANSWER_WITHIN_S: Final = 20.0
Thing = dict[str, Any]
Result = TypeVar("Result")
DROP_HEAD: Final = "drop-head"
"""The broker's own default: a full queue drops its oldest message, and refuses none."""
SILENT: Final = frozenset({"down", "minority", "stopped", "crashed"})
"""States of a queue that confirms nothing."""


class NotManaged(Exception):
    """The management API does not answer as it should; the message says why and what to do."""


@dataclass(frozen=True)
class Managed:
    """A topology: exchanges and queues by name, and bindings."""

    exchanges: dict[str, Thing]
    queues: dict[str, Thing]
    bindings: frozenset[tuple[str, str, str]]
    """Exchange, queue, routing key."""

    @classmethod
    def of(cls, exchanges: Sequence[Exchange], queues: Sequence[Queue]) -> "Managed":
        """Describe what `topology` declares."""
        return cls(
            {
                exchange.name: {"type": exchange.type, "arguments": exchange.arguments}
                for exchange in exchanges
            },
            {queue.name: {"arguments": queue.arguments} for queue in queues},
            frozenset(
                (source, queue.name, key) for queue in queues for source, key in queue.bindings
            ),
        )

    def missing_from(self, found: "Managed") -> Iterator[str]:
        """Name what is not there."""
        for kind, mine, theirs in self._things(found):
            yield from (f"{kind} {name}" for name in mine if name not in theirs)
        for source, queue, key in sorted(self.bindings - found.bindings):
            if source in found.exchanges and queue in found.queues:
                yield f"binding of {queue} to {source} with '{key}'"

    def unlike(self, found: "Managed") -> Iterator[str]:
        """Name what is there with another type or other arguments, and bindings too many."""
        for kind, mine, theirs in self._things(found):
            for name in mine.keys() & theirs.keys():
                yield from _differences(f"{kind} {name}", mine[name], theirs[name])
        for source, queue, key in sorted(found.bindings - self.bindings):
            if queue in self.queues:
                yield f"binding of {queue} to {source} with '{key}', which is one too many"

    def _things(self, found: "Managed") -> Iterator[tuple[str, dict[str, Thing], dict[str, Thing]]]:
        yield "exchange", self.exchanges, found.exchanges
        yield "queue", self.queues, found.queues


async def read_topology(url: str, vhost: str) -> Managed:
    """Read what there is in a virtual host; raises NotManaged."""
    place = quote(vhost, safe="")
    exchanges = await _read(url, f"exchanges/{place}")
    queues = await _read(url, f"queues/{place}")
    bindings = await _read(url, f"bindings/{place}")
    return Managed(
        {exchange["name"]: exchange for exchange in exchanges},
        {queue["name"]: queue for queue in queues},
        frozenset(
            (binding["source"], binding["destination"], binding["routing_key"])
            for binding in bindings
            if binding["source"] and binding["destination_type"] == "queue"
        ),
    )


@dataclass(frozen=True)
class Limits:
    """A queue that events reach: what its arguments and policies make of it when it is full."""

    name: str
    state: str
    overflow: str
    most: int | None
    """Messages; None without a limit."""
    largest: int | None
    """Bytes; None without a limit."""
    messages: int
    size: int

    @classmethod
    def of(cls, queue: Thing) -> "Limits":
        """Read what the management API tells of a queue."""
        arguments, policy = queue["arguments"], queue.get("effective_policy_definition") or {}
        return cls(
            queue["name"],
            queue.get("state", "running"),
            arguments.get("x-overflow") or policy.get("overflow", DROP_HEAD),
            _smaller(arguments.get("x-max-length"), policy.get("max-length")),
            _smaller(arguments.get("x-max-length-bytes"), policy.get("max-length-bytes")),
            queue.get("messages_ready", 0),
            queue.get("message_bytes_ready", 0),
        )

    @property
    def may_refuse(self) -> bool:
        """Whether it refuses what comes when it is full, and can get full."""
        return self.overflow != DROP_HEAD and (self.most, self.largest) != (None, None)

    @property
    def refuses(self) -> bool:
        """Whether it refuses at this moment, or answers nobody."""
        is_full = (self.most is not None and self.messages >= self.most) or (
            self.largest is not None and self.size >= self.largest
        )
        return (self.may_refuse and is_full) or self.state in SILENT

    def described(self) -> str:
        """Say what it is about."""
        if self.state in SILENT:
            return f"{self.name} ({self.state})"
        limits = ((self.most, f"{self.most} messages"), (self.largest, f"{self.largest} bytes"))
        most = ", ".join(text for limit, text in limits if limit is not None)
        return f"{self.name} ({self.messages} messages, at most {most})"


async def read_limits(url: str, vhost: str, *, reached_from: str) -> list[Limits]:
    """Read the limits of all queues that an exchange leads to; raises NotManaged."""
    place = quote(vhost, safe="")
    bindings = await _read(url, f"bindings/{place}")
    exchanges, reached = [reached_from], set[str]()
    for exchange in exchanges:  # it grows: exchanges may be bound to one another
        for binding in bindings:
            if binding["source"] != exchange:
                continue
            if binding["destination_type"] == "queue":
                reached.add(binding["destination"])
            elif binding["destination"] not in exchanges:
                exchanges.append(binding["destination"])
    queues = await _read(url, f"queues/{place}")
    found = [Limits.of(queue) for queue in queues if queue["name"] in reached]
    return sorted(found, key=lambda limits: limits.name)


def _smaller(left: int | None, right: int | None) -> int | None:
    return min((limit for limit in (left, right) if limit is not None), default=None)


def log_in(url: str) -> "ClientSession":
    """Return a session, to be opened, for the API at a URL that holds user and password."""
    import aiohttp  # noqa: PLC0415 - takes as long to import as half of the rest

    address = URL(url)
    login = aiohttp.encode_basic_auth(address.user or "", address.password or "")
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(ANSWER_WITHIN_S), headers={"Authorization": login}
    )


def api_path(url: str, path: str) -> URL:
    """Return where something of the API is; what is odd in `path` is quoted already."""
    return URL(f"{URL(url).with_user(None)}".rstrip("/") + f"/api/{path}", encoded=True)


async def host_after_host(
    url: str, ask: Callable[[str], Awaitable[Result]], passed_over: type[Exception]
) -> Result:
    """Ask one host after the other, until one answers; raises what the last one said."""
    *first, last = one_by_one(url)
    for host in first:
        with suppress(passed_over):
            return await ask(host)
    return await ask(last)


async def _read(url: str, path: str) -> list[Thing]:
    return await host_after_host(url, lambda host: _read_host(host, path), NotManaged)


async def _read_host(url: str, path: str) -> list[Thing]:
    import aiohttp  # noqa: PLC0415 - as in `log_in`

    try:
        async with log_in(url) as session, session.get(api_path(url, path)) as answer:
            answer.raise_for_status()
            found: list[Thing] = await answer.json()
            return found
    except aiohttp.ClientResponseError as error:
        raise NotManaged(
            f"refuses ({error.status} {error.message}): check user, password and virtual host"
        ) from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise NotManaged(
            f"is not reached ({error or type(error).__name__}): check its URL"
        ) from None


def _differences(what: str, mine: Thing, theirs: Thing) -> Iterator[str]:
    if "type" in mine and mine["type"] != theirs["type"]:
        yield f"{what} is a {theirs['type']}, not a {mine['type']}"
    expected, found = mine["arguments"], theirs["arguments"]
    for name in sorted((expected.keys() | found.keys()) - SPREAD.keys()):
        if expected.get(name) != found.get(name):
            yield f"{what} has {name} {found.get(name)}, not {expected.get(name)}"

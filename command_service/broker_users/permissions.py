"""What each user of the broker needs, and no more, as RabbitMQ's regular expressions.

A name in a permission means exchanges and queues alike; `amq.default` is the default exchange,
through which replies and dead letters go. Direct reply-to needs no permission.
"""

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from shared.errors import SettingsError
from shared.messages import names

DEFAULT_EXCHANGE: Final = r"amq\.default"
NOTHING: Final = "^$"


class Role(StrEnum):
    """What a user of the broker is for."""

    TOPOLOGY = "topology"
    COMMAND_SERVICE = "command-service"
    PROJECTION_SERVICE = "projection-service"
    ASKER = "asker"
    SENDER = "sender"
    CHECKER = "checker"
    INQUIRER = "inquirer"
    SUBSCRIBER = "subscriber"


@dataclass(frozen=True)
class Topic:
    """Which routing keys may be published to a topic exchange, and which may be bound."""

    exchange: str
    write: str = NOTHING
    read: str = NOTHING


@dataclass(frozen=True)
class Rights:
    """Patterns of whole names; a topic exchange without a Topic is not limited further."""

    configure: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    topics: tuple[Topic, ...] = ()


def _every(queue: Callable[[int], str]) -> str:
    return re.escape(queue(0)).removesuffix("0") + "[0-9]+"


_OURS: Final = r"consent\..*"
_COMMANDS, _EVENTS, _QUERIES, _CHECKS = map(
    re.escape, (names.COMMANDS, names.EVENTS, names.QUERIES, names.CHECKS)
)

RIGHTS: Final = {
    # Declares queues that dead-letter into the default exchange, and exchanges with alternates;
    # both need the right to write there. What it declares for others it can't publish to.
    Role.TOPOLOGY: Rights(
        configure=(_OURS,),
        write=(_OURS, DEFAULT_EXCHANGE),
        read=(_OURS,),
        topics=tuple(
            Topic(exchange, read=".*") for exchange in (names.COMMANDS, names.EVENTS, names.QUERIES)
        ),
    ),
    Role.COMMAND_SERVICE: Rights(
        write=(_EVENTS, DEFAULT_EXCHANGE),
        read=(
            _every(names.command_queue),
            _every(names.witness_queue),
            re.escape(names.UNROUTABLE),
            re.escape(names.LOG),
        ),
    ),
    Role.PROJECTION_SERVICE: Rights(
        write=(_QUERIES, DEFAULT_EXCHANGE),
        read=(_every(names.projection_queue), _QUERIES, _CHECKS),
        topics=(Topic(names.QUERIES, write=f"^{names.READ_EVENTS}$"),),
    ),
    Role.ASKER: Rights(
        write=(_COMMANDS,), topics=(Topic(names.COMMANDS, write=r"^(ask|withdraw)\."),)
    ),
    Role.SENDER: Rights(write=(_COMMANDS,)),
    Role.CHECKER: Rights(
        write=(_QUERIES,),
        topics=(Topic(names.QUERIES, write=f"^({names.HAS_CONSENT}|{names.CHECK_CONSENTS})$"),),
    ),
    Role.INQUIRER: Rights(write=(_QUERIES,)),
    Role.SUBSCRIBER: Rights(read=(_EVENTS,)),
}


_UNLIMITED: Final = {
    Role.SENDER: names.COMMANDS,
    Role.INQUIRER: names.QUERIES,
    Role.COMMAND_SERVICE: names.EVENTS,
}
"""To which topic exchange a role may publish everything."""
_ARTICLES: Final = {Role.ASKER: "an", Role.CHECKER: "a"}


def rights(user: str, roles: Sequence[Role]) -> Rights:
    """Add up what a user needs for its roles; a subscriber owns the queues that bear its name.

    Raises SettingsError where the sum would be more than its parts, or the name is one of ours.
    """
    if re.match(r"(consent|amq)(\.|$)", user):
        raise SettingsError(f"a user can't be called {user}: queues of that name are not its own")
    for limited in (Role.ASKER, Role.CHECKER):
        if limited in roles and {Role.SUBSCRIBER, Role.TOPOLOGY} & set(roles):
            raise SettingsError(
                f"{_ARTICLES[limited]} {limited} can't be a subscriber or declare the topology as "
                "well: who declares queues can have them dead-letter what is past the limit of its "
                "role; make it two users"
            )
    parts = [RIGHTS[role] for role in roles]
    own = (rf"{re.escape(user)}(\..*)?",) if Role.SUBSCRIBER in roles else ()
    return Rights(
        configure=own + tuple(name for part in parts for name in part.configure),
        write=own + tuple(name for part in parts for name in part.write),
        read=own + tuple(name for part in parts for name in part.read),
        topics=tuple(_limits(roles)),
    )


def _limits(roles: Sequence[Role]) -> Iterator[Topic]:
    """Add up the limits for each exchange; there is none where one of the roles has none there."""
    free = {exchange for role, exchange in _UNLIMITED.items() if role in roles}
    found: dict[str, list[Topic]] = {}
    for role in roles:
        for topic in RIGHTS[role].topics:
            if topic.exchange not in free:
                found.setdefault(topic.exchange, []).append(topic)
    for exchange, topics in found.items():
        yield Topic(
            exchange,
            _either([topic.write for topic in topics]),
            _either([topic.read for topic in topics]),
        )


def _either(patterns_: Sequence[str]) -> str:
    """Write a pattern that matches what one of these does."""
    wanted = list(dict.fromkeys(pattern for pattern in patterns_ if pattern != NOTHING))
    return "|".join(wanted) or NOTHING


def patterns(wanted: Rights) -> dict[str, str]:
    """Write rights as RabbitMQ's three patterns: configure, write, read."""
    parts = {"configure": wanted.configure, "write": wanted.write, "read": wanted.read}
    return {name: _whole(names) for name, names in parts.items()}


def rabbitmqctl_lines(vhost: str, user: str, roles: Sequence[Role]) -> Iterator[str]:
    """Write the commands that give an existing user these rights in a virtual host."""
    wanted = rights(user, roles)
    for topic in wanted.topics:  # first, so that nothing is open for a moment
        exchange = (topic.exchange, topic.write, topic.read)
        yield _line("set_topic_permissions", "-p", vhost, user, *exchange)
    yield _line("set_permissions", "-p", vhost, user, *patterns(wanted).values())
    if not wanted.topics:
        yield _line("clear_topic_permissions", "-p", vhost, user)


def _whole(names: Sequence[str]) -> str:
    return f"^({'|'.join(dict.fromkeys(names))})$" if names else NOTHING


def _line(*words: str) -> str:
    return shlex.join(("rabbitmqctl", *words))

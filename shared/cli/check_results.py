"""What `check` looks at, and what it found."""

import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from shared.postgres.connection import Pool
from shared.rabbitmq.connection import Broker
from shared.settings import WorkerSettings


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; where it is not ok, the detail says what to do."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who works on a partition; nobody where its lease has run out."""

    partition: int
    owner: str | None
    epoch: int


Look = Callable[[Pool, Broker], AsyncIterator[Finding]]


@dataclass(frozen=True)
class Needs:
    """What a service needs."""

    package: str
    settings: WorkerSettings
    database_url: str
    reads: Sequence[str]
    """Queues."""
    writes: Sequence[str]
    """Exchanges; the default one has no name."""
    look: Look
    """Looks at what only the service itself understands, in its database and at the broker."""


def is_too_old(version: str, oldest: tuple[int, ...]) -> bool:
    """Compare a server's version, as it tells it; one that tells none is not too old."""
    numbers = tuple(map(int, re.findall(r"\d+", version)))[: len(oldest)]
    return bool(numbers) and numbers < oldest

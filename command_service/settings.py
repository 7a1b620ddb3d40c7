"""The command service's settings."""

from typing import Literal

from shared.settings import (
    ClientSettings,
    Duration,
    PartitionSettings,
    PostgresUrl,
    WorkerSettings,
)


class EventStoreSettings(PartitionSettings):
    """What the verbs need that only look into the event store."""

    event_store_url: PostgresUrl


class TopologySettings(ClientSettings):
    """What `topology` needs: it binds a virtual host to an event store, where it is told of one."""

    event_store_url: PostgresUrl | None = None


class AcceptLogSettings(ClientSettings, EventStoreSettings):
    """What `accept-log` needs: the log, and the broker that remembers more of it."""


class CommandSettings(WorkerSettings, EventStoreSettings):
    """What the worker reads from the environment."""

    commands_when_set_back: Literal["wait", "go_on"] = "wait"
    """What becomes of commands while the log lacks what was published of it. They wait, since what
    is accepted now may be lost again should the right log come back; answers are refused meanwhile,
    so that to wait gives nobody a wrong yes."""
    consent_longest_grant: Duration | None = None
    """For how long consent may be granted at most; without it, without end."""

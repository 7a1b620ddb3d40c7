"""The command service's settings."""

from shared.settings import Duration, PartitionSettings, PostgresUrl, WorkerSettings


class EventStoreSettings(PartitionSettings):
    """What the verbs need that only look into the event store."""

    event_store_url: PostgresUrl


class CommandSettings(WorkerSettings, EventStoreSettings):
    """What the worker reads from the environment."""

    consent_longest_grant: Duration | None = None
    """For how long consent may be granted at most; without it, without end."""

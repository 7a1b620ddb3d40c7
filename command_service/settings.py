"""The command service's settings."""

from pydantic_settings import BaseSettings

from shared.settings import PostgresUrl, WorkerSettings


class EventStoreSettings(BaseSettings):
    """What the verbs need that only work on the event store."""

    event_store_url: PostgresUrl


class CommandSettings(WorkerSettings, EventStoreSettings):
    """What the worker reads from the environment."""

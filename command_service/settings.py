"""The command service's settings."""

from shared.settings import PostgresUrl, WorkerSettings


class CommandSettings(WorkerSettings):
    """What `python -m command_service` reads from the environment."""

    event_store_url: PostgresUrl

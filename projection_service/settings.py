"""The projection service's settings."""

from pydantic_settings import BaseSettings

from shared.settings import PostgresUrl, WorkerSettings


class ReadModelSettings(BaseSettings):
    """What the verbs need that only look into the read model."""

    read_model_url: PostgresUrl


class ProjectionSettings(WorkerSettings, ReadModelSettings):
    """What the worker reads from the environment."""

"""The projection service's settings."""

from pydantic_settings import BaseSettings

from shared.settings import PartitionSettings, PostgresUrl, WorkerSettings


class ReadModelSettings(BaseSettings):
    """What the verbs need that only look into the read model."""

    model_config = PartitionSettings.model_config  # else a plain one overrules the worker's

    read_model_url: PostgresUrl


class ProjectionSettings(WorkerSettings, ReadModelSettings):
    """What the worker reads from the environment."""

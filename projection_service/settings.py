"""The projection service's settings."""

from shared.settings import PartitionSettings, PostgresUrl, WorkerSettings


class ReadModelSettings(PartitionSettings):
    """What the verbs need that only look into the read model."""

    read_model_url: PostgresUrl


class ProjectionSettings(WorkerSettings, ReadModelSettings):
    """What the worker reads from the environment."""

"""Settings of both services, read from the environment."""

import os
import socket
from datetime import timedelta
from typing import Annotated, Final, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict
from yarl import URL

from shared.errors import SettingsError
from shared.values.database_url import read_database_url
from shared.values.durations import parse_duration
from shared.values.several_hosts import one_by_one

Settings = TypeVar("Settings", bound=BaseSettings)
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
LogFormat = Literal["json", "console"]

EXAMPLES: Final = {
    "RABBITMQ_URL": "amqp://user:password@host:5672/",
    "EVENT_STORE_URL": "postgresql://user:password@host:5432/event_store",
    "READ_MODEL_URL": "postgresql://user:password@host:5432/read_model",
}


def _url_with(*schemes: str) -> AfterValidator:
    def check(text: str) -> str:
        try:
            found = [URL(url).scheme for url in one_by_one(text)]
        except ValueError:
            found = [""]
        if not set(found) <= set(schemes):
            raise PydanticCustomError(
                "url", "must be a URL like {schemes}://user:password@host", {"schemes": schemes[0]}
            )
        return text

    return AfterValidator(check)


def _database_url(text: str) -> str:
    try:
        read_database_url(text)
    except ValueError as error:
        raise PydanticCustomError("url", "{why}", {"why": f"{error}"}) from None
    return text


def _duration(text: object) -> timedelta:
    try:
        return parse_duration(f"{text}")
    except ValueError as error:
        raise PydanticCustomError("duration", "{why}", {"why": f"{error}"}) from None


AmqpUrl = Annotated[str, _url_with("amqp", "amqps")]
Duration = Annotated[timedelta, BeforeValidator(_duration)]
PostgresUrl = Annotated[str, AfterValidator(_database_url)]


def _default_worker_id() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


class PartitionSettings(BaseSettings):
    """What is fixed for a deployment."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    consent_partitions: Annotated[int, Field(ge=1, le=1024)] = 8


class ClientSettings(PartitionSettings):
    """What everybody needs who talks to the services."""

    rabbitmq_url: AmqpUrl


class WorkerSettings(ClientSettings):
    """What both kinds of worker need besides."""

    worker_id: Annotated[str, Field(min_length=1, max_length=100)] = Field(
        default_factory=_default_worker_id
    )
    http_host: Annotated[str, Field(min_length=1, max_length=255)] = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65535)] = 0
    log_level: LogLevel = "INFO"
    log_format: LogFormat = "json"


def read_settings(kind: type[Settings]) -> Settings:
    """Read settings from the environment; raises SettingsError in one line that says what to do."""
    try:
        return kind()
    except ValidationError as error:
        raise SettingsError("; ".join(_complaints(error))) from None


def _complaints(error: ValidationError) -> list[str]:
    found = error.errors(include_url=False, include_input=False)
    return [
        _complaint(str(mistake["loc"][0]).upper(), mistake["type"], mistake["msg"])
        for mistake in found
    ]


def _complaint(name: str, kind: str, message: str) -> str:
    if kind == "missing":
        return f"{name} is not set: give it a value like {EXAMPLES.get(name, '…')}"
    return f"{name} is wrong: {message[0].lower()}{message[1:]}"

"""Settings of both services, read from the environment, and the secret ones from files too."""

import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict
from yarl import URL

from shared.errors import SettingsError
from shared.values.database_url import read_database_url
from shared.values.durations import parse_duration
from shared.values.several_hosts import UNVERIFIED, one_by_one, trusts_anybody

Settings = TypeVar("Settings", bound=BaseSettings)
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
LogFormat = Literal["json", "console"]

_URL: Final = "_url"
_FILE: Final = "_FILE"
"""How settings end that may be in a file, and variables that name one."""

EXAMPLES: Final = {
    "RABBITMQ_URL": "amqp://user:password@host:5672/",
    "EVENT_STORE_URL": "postgresql://user:password@host:5432/event_store",
    "READ_MODEL_URL": "postgresql://user:password@host:5432/read_model",
}


def _broker_url(text: str) -> str:
    try:
        found = [URL(url) for url in one_by_one(text)]
    except ValueError:
        found = [URL()]
    if not {url.scheme for url in found} <= {"amqp", "amqps"}:
        raise PydanticCustomError("url", "must be a URL like amqp://user:password@host")
    if any(map(trusts_anybody, found)):
        raise PydanticCustomError("url", UNVERIFIED)
    return text


def _database_url(text: str) -> str:
    try:
        read_database_url(text)
    except ValueError as error:
        raise PydanticCustomError("url", "{why}", {"why": f"{error}"}) from None
    return text


def _duration(text: object) -> timedelta:
    try:
        if duration := parse_duration(f"{text}"):
            return duration
        why = "must be longer than nothing, as 90d"
    except ValueError as error:
        why = f"{error}"
    raise PydanticCustomError("duration", "{why}", {"why": why})


AmqpUrl = Annotated[str, AfterValidator(_broker_url)]
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
    """Read settings from the environment; raises SettingsError in one line that says what to do.

    Whatever is a URL may hold a password, so it may be in a file instead, as `secret` has it.
    """
    urls = [name for name in kind.model_fields if name.endswith(_URL)]
    given: dict[str, Any] = {name: text for name in urls if (text := secret(name.upper()))}
    try:
        return kind(**given)
    except ValidationError as error:
        raise SettingsError("; ".join(_complaints(error))) from None


def secret(name: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Read a variable, or the file that the variable NAME_FILE names; None where neither is set.

    Empty variables count as not set. Raises SettingsError where both are, or the file can't serve.
    """
    text, file = environment.get(name), environment.get(f"{name}{_FILE}")
    if not file:
        return text or None
    if text:
        raise SettingsError(f"{name} and {name}{_FILE} are both set: leave one of them out")
    try:
        content = Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise SettingsError(
            f"{name}{_FILE}: {file} can't be read ({why}): name a file that this user may read"
        ) from None
    if not (kept := content.rstrip("\r\n")):
        raise SettingsError(f"{name}{_FILE}: {file} is empty: write the value into it")
    return kept


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

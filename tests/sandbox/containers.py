"""The sandbox made of containers, where a Docker engine answers.

Should we die without closing it, the reaper that testcontainers starts removes them.
"""

import secrets
import time
from contextlib import ExitStack

from docker.errors import DockerException
from requests.exceptions import RequestException
from testcontainers.core.container import DockerContainer

from tests.sandbox.home import free_ports
from tests.sandbox.servers import (
    HASTY_POSTGRES_SETTINGS,
    POSTGRES_SETTINGS,
    USER,
    Broker,
    BrokerRefused,
    DatabaseServer,
    Sandbox,
    Server,
    ServerDidNotStart,
)

POSTGRES_IMAGE = "postgres:17"
RABBITMQ_IMAGE = "rabbitmq:4-management"

NO_IMAGES = (DockerException, RequestException)
"""What is raised where the engine is refused an image, or is too slow to get it."""

SECONDS_TO_START = 90.0
SECONDS_TO_STOP = 90


def open_containers(*, durable: bool) -> Sandbox:
    """Raises `ServerDidNotStart`, or what testcontainers raises when an image can't be had."""
    with ExitStack() as containers:
        broker = ContainedBroker(containers)
        event_store = ContainedDatabaseServer(containers, durable=durable)
        read_model = ContainedDatabaseServer(containers, durable=durable)
        # All are starting by now.
        for server in (broker, event_store, read_model):
            server.start()
        return Sandbox(broker, event_store, read_model, close=containers.pop_all().close)


class Contained(Server):
    """A server that is its container's only program."""

    container: DockerContainer

    def start(self) -> None:
        self.container.get_wrapped_container().start()
        deadline = time.monotonic() + SECONDS_TO_START
        while not self.answers():
            if time.monotonic() > deadline:
                raise ServerDidNotStart(self._account())
            time.sleep(0.1)

    def stop(self) -> None:
        # By the signal that the image names: for PostgreSQL's, the one for a fast shutdown.
        self.container.get_wrapped_container().stop(timeout=SECONDS_TO_STOP)

    def kill(self) -> None:
        self.container.get_wrapped_container().kill()

    def _account(self) -> str:
        log = self.container.get_wrapped_container().logs(tail=25).decode(errors="replace")
        return (
            f"{self.container.image} did not answer within {SECONDS_TO_START:g} s;"
            f" its log ends with:\n{log}"
        )


class ContainedBroker(Contained, Broker):
    def __init__(self, containers: ExitStack) -> None:
        password = secrets.token_hex(16)
        container = _with_fixed_ports(DockerContainer(RABBITMQ_IMAGE), 5672, 15672)
        container.with_envs(RABBITMQ_DEFAULT_USER=USER, RABBITMQ_DEFAULT_PASS=password)
        self.container = containers.enter_context(container)
        Broker.__init__(
            self,
            port=container.get_exposed_port(5672),
            management_port=container.get_exposed_port(15672),
            password=password,
            host=container.get_container_host_ip(),
        )

    def ctl(self, *words: str) -> None:
        code, said = self.container.get_wrapped_container().exec_run(["rabbitmqctl", *words])
        if code:
            raise BrokerRefused(said.decode(errors="replace"))


class ContainedDatabaseServer(Contained, DatabaseServer):
    def __init__(self, containers: ExitStack, *, durable: bool) -> None:
        password = secrets.token_hex(16)
        container = _with_fixed_ports(DockerContainer(POSTGRES_IMAGE), 5432)
        container.with_envs(POSTGRES_USER=USER, POSTGRES_PASSWORD=password)
        container.with_envs(POSTGRES_DB="postgres", POSTGRES_INITDB_ARGS="--locale=C -E UTF8")
        container.with_command(_postgres_command(durable=durable))
        self.container = containers.enter_context(container)
        DatabaseServer.__init__(
            self,
            port=container.get_exposed_port(5432),
            password=password,
            host=container.get_container_host_ip(),
        )


def _with_fixed_ports(container: DockerContainer, *ports: int) -> DockerContainer:
    """Ports that the engine chose would be others after each start."""
    for inside, outside in zip(ports, free_ports(len(ports)), strict=True):
        container.with_bind_ports(inside, outside)
    return container


def _postgres_command(*, durable: bool) -> list[str]:
    settings = POSTGRES_SETTINGS | ({} if durable else HASTY_POSTGRES_SETTINGS)
    return ["postgres", *(f"--{name}={value}" for name, value in settings.items())]

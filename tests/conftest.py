"""One sandbox for the whole run; databases and a virtual host of its own for each test."""

import signal
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterator
from itertools import count
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

from shared.postgres.connection import Pool
from shared.postgres.database import open_pool
from tests.sandbox import Sandbox, open_sandbox
from tests.support import warm
from tests.support.amqp import Client, open_client
from tests.support.deployment import Deployment, open_deployment

PARTITIONS: Final = 4
BEGUN_FIRST: Final = ("test_chaos", "test_blocked_broker")
"""They wait for minutes: begun last, one process would be at them when all others have ended."""
TEMPLATE: Final = "template_migrated"
_NUMBERS = count(1)

Deployment.popen = warm.Popen
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background jobs hand that on
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine, or one that stands still for seconds, is no defect of what is tested.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have modules with many tests begin before those with few, and what needs no server last."""
    sizes = Counter(item.path for item in items)

    def place(item: pytest.Item) -> tuple[bool, bool, int]:
        is_last, is_first = item.path.parent.name == "unit", item.path.stem in BEGUN_FIRST
        return is_last, not is_first, -sizes[item.path]

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failure what the workers of its deployments say, before they are ended."""
    report = yield
    if report.failed:
        fixtures = getattr(item, "funcargs", {}).values()
        deployments = {id(one): one for one in (getattr(f, "deployment", f) for f in fixtures)}
        for deployment in deployments.values():
            if isinstance(deployment, Deployment):
                accounts = [worker.account() for worker in deployment.workers]
                report.sections.append(("Workers", "\n\n".join(accounts)))
    return report


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """Start the servers once."""
    with open_sandbox(durable=False) as servers:
        yield servers


@pytest.fixture(scope="session")
def migrated(sandbox: Sandbox) -> str:
    """Name the databases, one on each server, that every test's are copied from."""
    deployment = Deployment(
        rabbitmq_url=sandbox.broker.url,
        event_store_url=sandbox.event_store_server.create_database(TEMPLATE),
        read_model_url=sandbox.read_model_server.create_database(TEMPLATE),
        partitions=PARTITIONS,
        folder=Path(),
    )
    for service in ("command_service", "projection_service"):
        done = deployment.run(service, "migrate")
        assert done.returncode == 0, done.stderr
    return TEMPLATE


@pytest.fixture
def deployment(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    """Give a test databases, a virtual host and the topology, but no workers yet."""
    name = f"test_{next(_NUMBERS)}"
    with open_deployment(sandbox, name, partitions=PARTITIONS, prepared_from=migrated) as made:
        made.declare()
        yield made


@pytest.fixture
async def client(deployment: Deployment) -> AsyncIterator[Client]:
    """Connect a black-box client."""
    async with open_client(deployment.rabbitmq_url, PARTITIONS) as connected:
        yield connected


@pytest.fixture
def event_store_url(sandbox: Sandbox, migrated: str) -> Iterator[str]:
    """Give a test an event store of its own, and nothing else."""
    name = f"events_{next(_NUMBERS)}"
    yield sandbox.event_store_server.create_database(name, migrated)
    sandbox.event_store_server.drop_database(name)


@pytest.fixture
def read_model_url(sandbox: Sandbox, migrated: str) -> Iterator[str]:
    """Give a test a read model of its own, and nothing else."""
    name = f"model_{next(_NUMBERS)}"
    yield sandbox.read_model_server.create_database(name, migrated)
    sandbox.read_model_server.drop_database(name)


@pytest.fixture
async def event_store_pool(event_store_url: str) -> AsyncIterator[Pool]:
    """Open the event store's database."""
    pool = await open_pool(event_store_url, name="test", size=8)
    yield pool
    pool.terminate()


@pytest.fixture
async def read_model_pool(read_model_url: str) -> AsyncIterator[Pool]:
    """Open the read model's database."""
    pool = await open_pool(read_model_url, name="test", size=8)
    yield pool
    pool.terminate()

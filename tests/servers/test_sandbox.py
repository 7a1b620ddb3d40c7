"""The sandbox gives what it promises, and leaves nothing behind."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import aio_pika
import asyncpg
import psutil  # type: ignore[import-untyped, unused-ignore]
import pytest

from tests.sandbox import BrokerRefused, Sandbox, ServerDidNotStart, home, install, open_sandbox

ROOT = Path(__file__).parents[2]

OPEN_AND_WAIT = """
import signal
from tests.sandbox import open_sandbox
with open_sandbox() as sandbox:
    print(sandbox.broker.port, flush=True)
    signal.pause()
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with open_sandbox(durable=False) as opened:
        yield opened


async def test_the_servers_answer_on_their_urls(sandbox: Sandbox) -> None:
    for server in (sandbox.event_store_server, sandbox.read_model_server):
        connection = await asyncpg.connect(server.url())
        assert await connection.fetchval("SHOW server_encoding") == "UTF8"
        await connection.close()
    async with await aio_pika.connect(sandbox.broker.url) as broker:
        assert not broker.is_closed


def test_the_two_database_servers_are_not_one(sandbox: Sandbox) -> None:
    sandbox.event_store_server.create_database("only_here")
    names = [row["datname"] for row in sandbox.read_model_server.fetch("TABLE pg_database")]
    assert "only_here" not in names


def test_a_database_is_copied_from_its_template(sandbox: Sandbox) -> None:
    server = sandbox.event_store_server
    server.create_database("original")
    server.execute("CREATE TABLE fact (number int); INSERT INTO fact VALUES (42)", "original")
    assert server.create_database("copied", template="original") == server.url("copied")
    assert [row["number"] for row in server.fetch("TABLE fact", "copied")] == [42]


async def test_a_database_is_dropped_under_its_clients(sandbox: Sandbox) -> None:
    server = sandbox.event_store_server
    connection = await asyncpg.connect(server.create_database("in use"))
    server.drop_database("in use")
    with pytest.raises(asyncpg.PostgresError):
        await connection.execute("SELECT 1")


async def test_a_virtual_host_is_its_users_until_deleted(sandbox: Sandbox) -> None:
    url = sandbox.broker.create_vhost("one/two")
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.declare_queue("tasks", durable=True)
    assert sandbox.broker.api("GET", "/queues/one%2Ftwo/tasks")["durable"] is True
    sandbox.broker.delete_vhost("one/two")
    with pytest.raises(BrokerRefused, match="404"):
        sandbox.broker.api("GET", "/vhosts/one%2Ftwo")


@pytest.mark.parametrize("take_down", ["stop", "kill"])
def test_a_database_server_comes_back_with_its_port_and_data(
    sandbox: Sandbox, take_down: str
) -> None:
    server = sandbox.read_model_server
    url = server.create_database(f"kept_by_{take_down}")
    server.execute("CHECKPOINT")  # this sandbox is not durable
    getattr(server, take_down)()
    assert not server.answers()
    server.start()
    assert server.url(f"kept_by_{take_down}") == url
    server.execute("SELECT 1", f"kept_by_{take_down}")


async def test_the_broker_comes_back_with_its_port_and_messages(sandbox: Sandbox) -> None:
    url = sandbox.broker.create_vhost("kept")
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.declare_queue("tasks", durable=True)
        persistent = aio_pika.Message(b"kept", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(persistent, "tasks")
    # Killed only then: what was declared must be on disk.
    for take_down in (sandbox.broker.stop, sandbox.broker.kill):
        take_down()
        assert not sandbox.broker.answers()
        sandbox.broker.start()
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue("tasks")
        message = await queue.get(no_ack=True)
    assert message is not None
    assert message.body == b"kept"


@pytest.mark.skipif(install.engine_answers(), reason="testcontainers' reaper does this")
def test_nothing_outlives_the_process_that_opened_a_sandbox() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OPEN_AND_WAIT], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()  # the servers are up
        processes = psutil.Process(owner.pid).children(recursive=True)
        directory = next(Path(process.cwd()) for process in processes if _is_broker(process))
        owner.kill()
    eventually(lambda: not any(map(_is_alive, processes)))
    eventually(lambda: not directory.exists())


SOME_PORTS = range(14_000, 14_040)
ASK_FOR_PORTS = f"""
from tests.sandbox import home

home.PORTS = {SOME_PORTS!r}
print(*home.free_ports(10))
"""


def test_a_port_is_given_but_once_and_to_one_process_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(home, "PORTS", SOME_PORTS)
    ours = home.free_ports(10) + home.free_ports(10)
    others = subprocess.run(
        [sys.executable, "-c", ASK_FOR_PORTS], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert len({*ours, *map(int, others.split())}) == 30


def test_installing_says_nothing_when_all_is_there() -> None:
    ran = subprocess.run(
        [sys.executable, ROOT / "tests/sandbox/install.py"], capture_output=True, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(install, "POSTGRES_ROOT", tmp_path)
    monkeypatch.setattr(install, "RABBITMQ_ROOT", tmp_path)


@pytest.mark.usefixtures("nothing_installed")
def test_who_may_not_install_is_told_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    assert install.main() == install.CANNOT_INSTALL
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "apt-get install --no-install-recommends rabbitmq-server postgresql" in printed.err


@pytest.mark.usefixtures("nothing_installed")
def test_what_some_tests_skip_without_is_installed_for_them_alone() -> None:
    assert install.packages_of_tests() == [
        "openssl",
        "prometheus",
        "pgbouncer",
        "kubernetes-client",
        "nodejs",
        "npm",
    ]
    assert set(install.packages_of_tests()).isdisjoint(install.missing_packages())


@pytest.mark.usefixtures("nothing_installed")
def test_a_sandbox_that_cannot_be_opened_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONSENT_SANDBOX", "programs")
    with pytest.raises(ServerDidNotStart, match="rabbitmq-server, postgresql"):
        open_sandbox()


def test_an_old_postgresql_will_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "OLDEST_POSTGRES", 1_000)
    assert install.postgres_programs() is None


def test_services_are_kept_down_only_while_installing(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    with install.services_kept_down(policy):
        assert subprocess.run([policy], check=False).returncode == 101
    assert list(tmp_path.iterdir()) == []


def test_a_service_policy_that_was_there_is_put_back_after_a_failure(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    policy.symlink_to("/somebody/elses")
    with contextlib.suppress(ZeroDivisionError), install.services_kept_down(policy):
        assert subprocess.run([policy], check=False).returncode == 101
        raise ZeroDivisionError
    assert policy.readlink() == Path("/somebody/elses")
    assert list(tmp_path.iterdir()) == [policy]


def _is_broker(process: psutil.Process) -> bool:
    return "beam" in str(process.name())


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def eventually(fact: Callable[[], bool], within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while not fact():
        assert time.monotonic() < deadline, "not so in time"
        time.sleep(0.05)

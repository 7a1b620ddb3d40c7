"""The port for operators listens where it is told to, and whoever reaches it can cost little."""

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import pytest
from aiohttp import ClientSession
from prometheus_client import REGISTRY, Counter

from shared.telemetry.readiness import Readiness
from shared.worker.health_check import health_check
from shared.worker.http import serve_operations
from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.sandbox.home import free_ports
from tests.support.deployment import Deployment, Worker, open_deployment

NEIGHBOUR: Final = "127.0.0.2"
"""Another address of this machine."""
ENDS_WITHIN_S: Final = 60
MANY: Final = 100
GET_METRICS: Final = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def prepared(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    with open_deployment(sandbox, "ports", partitions=PARTITIONS, prepared_from=migrated) as made:
        made.declare()
        yield made


@pytest.fixture(scope="module")
def worker(prepared: Deployment) -> Worker:
    started = prepared.start("command_service")
    started.wait_ready()
    return started


def dial(worker: Worker, host: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((host, worker.http_port), timeout=ENDS_WITHIN_S)


def whole(connection: socket.socket) -> bytes:
    """Read until the other side has closed the connection."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_it_listens_on_this_machine_alone_unless_it_is_told_otherwise(worker: Worker) -> None:
    dial(worker).close()
    with pytest.raises(ConnectionRefusedError):
        dial(worker, NEIGHBOUR)


@pytest.mark.parametrize("host", ["*", "0.0.0.0", NEIGHBOUR])  # noqa: S104 - that is the point
def test_it_listens_where_it_is_told_to_and_the_health_check_finds_it(
    prepared: Deployment, host: str
) -> None:
    worker = prepared.start("projection_service", HTTP_HOST=host)
    deadline = time.monotonic() + ENDS_WITHIN_S
    while not health_check(worker.http_port, host)[0] and time.monotonic() < deadline:
        time.sleep(0.1)
    dial(worker, NEIGHBOUR).close()
    assert worker.stop() == 0


def test_an_address_that_is_not_this_machines_is_one_line_that_names_the_setting(
    prepared: Deployment,
) -> None:
    done = prepared.run("command_service", "run", HTTP_HOST="192.0.2.1", HTTP_PORT="18080")
    assert done.returncode == 2
    assert "HTTP_HOST is 192.0.2.1, one of this machine's" in done.stderr.splitlines()[-1]


def test_what_is_not_asked_to_the_end_is_not_waited_for(worker: Worker) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(dial(worker)) for _ in range(MANY)]
        for one in held[::2]:  # and the others say nothing at all
            one.sendall(GET_METRICS.removesuffix(b"\r\n") + b"X-A: ")
        assert worker.get("/health/live")[0] == 200
        for one in held:
            try:
                assert whole(one) == b""
            except ConnectionResetError:
                continue


def test_a_connection_has_one_answer_however_much_it_asks_at_once(worker: Worker) -> None:
    with dial(worker) as connection:
        connection.sendall(GET_METRICS * 50)
        try:
            answer = whole(connection)
        except ConnectionResetError:  # what it asked besides was thrown away
            return
    assert answer.count(b"HTTP/1.1 200 OK") == 1
    assert b"Connection: close" in answer


def test_the_metrics_are_counted_up_once_for_many_who_ask(worker: Worker) -> None:
    with ExitStack() as stack:
        many = [stack.enter_context(dial(worker)) for _ in range(MANY)]
        worker.send(signal.SIGSTOP)  # or it might count while the last ones have not asked yet
        for one in many:
            one.sendall(GET_METRICS)
        worker.send(signal.SIGCONT)
        bodies = [whole(one).partition(b"\r\n\r\n")[2] for one in many]
    assert all(b"consent_ready 1.0" in body for body in bodies)
    assert len(set(bodies)) <= MANY / 10


async def test_whoever_asks_finds_what_was_counted_before() -> None:
    counted, readiness = Counter("consent_test_of_the_port", "Counted up by a test"), Readiness()
    (port,) = free_ports(1)
    async with serve_operations("127.0.0.1", port, readiness), ClientSession() as session:
        for times in range(1, 31):
            counted.inc()
            async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                assert f"consent_test_of_the_port_total {times}.0\n" in await answer.text()
    REGISTRY.unregister(counted)


def test_headers_that_are_wrong_and_paths_that_are_not_there_are_refused(worker: Worker) -> None:
    for asked, answered in (
        (b"HEAD /health/ready HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"405"),
        (b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
    ):
        with dial(worker) as connection:
            connection.sendall(asked)
            assert whole(connection).startswith(b"HTTP/1.1 " + answered) or answered == b"400"

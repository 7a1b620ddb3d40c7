"""Whoever reads the logs may go away, stop reading or never have been there: the work goes on."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Queue
from typing import Final

import pytest

from shared.telemetry.standard_streams import MOST_WAITING, StandardError
from tests.sandbox.home import free_ports
from tests.servers.test_cli import CONSENT
from tests.support.amqp import Client
from tests.support.deployment import Deployment, Worker
from tests.support.eventually import eventually

WITHIN_S: Final = 20
PIPE: Final = 4096
"""Bytes that the smallest pipe holds."""
COMMANDS: Final = 40
"""Whose lines would fill such a pipe."""


@contextmanager
def logging_to(deployment: Deployment, descriptor: int, **more: str) -> Iterator[Worker]:
    """Run a command worker that logs to a descriptor, which is closed here."""
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-m", "command_service", "run"],
        env=deployment.environment(HTTP_PORT=str(port), **more),
        stdout=subprocess.DEVNULL,
        stderr=descriptor,
        start_new_session=True,
    )
    os.close(descriptor)
    worker = Worker("command_service", process, port, Path(os.devnull))
    try:
        worker.wait_ready()
        yield worker
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait(WITHIN_S)


async def grant(client: Client, name: str) -> str:
    outcome = await client.command("GrantConsent", name)
    return str(outcome["status"])


async def test_a_worker_whose_logs_reader_is_gone_works_on_and_ends_well(
    deployment: Deployment, client: Client
) -> None:
    reader, writer = os.pipe()
    with logging_to(deployment, writer) as worker:
        os.close(reader)
        assert [await grant(client, f"p-{i}") for i in range(4)] == ["accepted"] * 4

        async def counted() -> bool:
            return worker.metric("consent_log_lines_dropped") > 0

        await eventually(counted)
        assert worker.get("/health/ready")[0] == 200
        assert worker.stop() == 0


async def test_a_worker_whose_log_nobody_reads_works_on_and_says_later_what_it_could_not(
    deployment: Deployment, client: Client
) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE)
    with logging_to(deployment, writer, LOG_LEVEL="INFO") as worker:
        for number in range(COMMANDS):
            assert await grant(client, f"p-{number}") == "accepted"
        assert worker.get("/health/live")[0] == worker.get("/health/ready")[0] == 200
        with os.fdopen(reader) as lines:
            events = [json.loads(next(lines))["event"] for _ in range(COMMANDS)]
        assert "batch.appended" in events, "what waited for its reader arrives"
        assert worker.stop() == 0


async def test_a_worker_that_nobody_reads_ends_all_the_same(deployment: Deployment) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE)
    os.set_blocking(writer, False)
    while True:
        with suppress(BlockingIOError):
            os.write(writer, b"x" * PIPE)
            continue
        break
    os.set_blocking(writer, True)
    with logging_to(deployment, writer) as worker:
        assert worker.stop() == 0
    os.close(reader)


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_worker_that_begins_with_closed_streams_works_and_ends_well(
    deployment: Deployment, closed: str
) -> None:
    worker = deployment.start("command_service", program=("-c", in_a_shell(closed)))
    worker.wait_ready()
    assert worker.stop() == 0


def in_a_shell(closed: str) -> str:
    """Write a program that becomes the worker, by way of a shell that closes its streams."""
    command = f'exec "{sys.executable}" -m command_service run {closed}'
    return f"import os; os.execv('/bin/sh', ['sh', '-c', '''{command}'''])"


@pytest.mark.parametrize("where", ["closed", "gone"])
def test_a_verb_ends_with_its_own_code_though_nobody_hears_its_complaint(
    deployment: Deployment, where: str
) -> None:
    wrong = deployment.environment(CONSENT_PARTITIONS="0")
    for words in ([CONSENT, "list", "p-1"], [sys.executable, "-m", "command_service", "topology"]):
        reader, writer = os.pipe()
        os.close(reader)
        line = " ".join(f"'{word}'" for word in words) + (" 2>&-" if where == "closed" else "")
        done = subprocess.run(["/bin/sh", "-c", line], env=wrong, stderr=writer, check=False)
        os.close(writer)
        assert done.returncode == 2, words


def test_lines_that_do_not_fit_are_dropped_and_counted_and_told_once_there_is_room() -> None:
    reader, writer = os.pipe()
    stream, told = StandardError(writer), Queue[int]()
    stream.on_lost = told.put
    stream.start()
    lines = 2 * MOST_WAITING // PIPE
    for _ in range(lines):
        stream.write("x" * (PIPE - 1) + "\n")
    assert stream.dropped >= lines // 3
    with os.fdopen(reader) as arriving:
        for _ in range(lines - stream.dropped):
            assert len(next(arriving)) == PIPE
        assert told.get(timeout=WITHIN_S) == stream.dropped
        stream.drain()
        os.close(writer)
        assert not arriving.read()


def test_what_is_said_last_is_waited_for_but_not_for_ever() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE)
    program = (
        "import sys; from shared.telemetry.standard_streams import *; guard_standard_streams(); {}"
    )
    for size in (PIPE, 3 * PIPE):
        said = program.format(f"sys.stderr.write('x' * {size}); sys.exit(5)")
        done = subprocess.run([sys.executable, "-c", said], stderr=writer, check=False, timeout=60)
        assert done.returncode == 5
        assert os.read(reader, PIPE) == b"x" * PIPE
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([CONSENT, "partition", "p-1"], 0),
        ([sys.executable, "-m", "command_service", "permissions", "clinic", "asker"], 0),
        ([sys.executable, "-m", "command_service", "check", "--json"], 1),
    ],
)
def test_a_verb_whose_output_nobody_reads_ends_with_its_own_code(
    deployment: Deployment, words: list[str], code: int
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    nowhere = deployment.environment(RABBITMQ_URL="amqp://127.0.0.1:1/")
    done = subprocess.run(
        words, env=nowhere, stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (code, "")

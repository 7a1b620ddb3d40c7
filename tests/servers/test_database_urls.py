"""Every URL that the driver takes is taken; what can't work is one line that names it."""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from time import monotonic
from typing import Final
from urllib.parse import quote, urlsplit

import pytest

from shared.values.database_url import CONNECT_TIMEOUT_S, place_of, read_database_url
from tests.support.deployment import Deployment

STRANGER: Final = 12_345
NEEDS_ROOT: Final = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can become a user without a name"
)
BECOME: Final = f"""
import contextlib, getpass, io, os, pwd
from command_service.cli import app
VERB = ["receipts", "purge", "--older-than", "90d", "--dry-run"]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    app([*VERB, "--help"])
os.setgroups([])
os.setresgid({STRANGER}, {STRANGER}, {STRANGER})
os.setresuid({STRANGER}, {STRANGER}, {STRANGER})
app(VERB)
"""
"""Everything is imported first: root's own Python may be where nobody else can read it."""


class At:
    """The parts of a URL of the sandbox."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.login = parts.netloc.rpartition("@")[0]
        self.host = f"{parts.hostname}"
        self.port = f"{parts.port}"
        self.path = parts.path
        self.user = f"{parts.username}"
        self.password = f"{parts.password}"


@pytest.fixture
def at(event_store_url: str) -> At:
    return At(event_store_url)


@pytest.fixture
def silent_port() -> Iterator[str]:
    """Give a port that takes connections, and never says a word."""
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        yield str(silent.getsockname()[1])


async def migrate(deployment: Deployment, url: str) -> "subprocess.CompletedProcess[str]":
    return await asyncio.to_thread(
        deployment.run, "command_service", "migrate", EVENT_STORE_URL=url
    )


@pytest.mark.parametrize(
    "form",
    [
        "postgresql://{login}@127.0.0.1:1,{host}:{port}{path}?target_session_attrs=read-write",
        "postgres://{login}@{host}:{port},127.0.0.1:1{path}?target_session_attrs=primary",
        "postgresql://{login}@{host}:{port},127.0.0.1:1{path}?target_session_attrs=prefer-standby",
        "postgresql://{login}@{path}?host={host}&port={port}",
        "postgresql://{login}@{path}?host=127.0.0.1,{host}&port=1,{port}",
        "postgresql:///?host={host}&port={port}&user={user}&password={password}&dbname={name}",
        "postgresql://{login}@{host}:{port}{path}?connect_timeout=3&sslmode=prefer",
        "postgresql://{login}@{host}:{port}{path}?application_name=mine&options=-c%20jit%3Doff",
        "postgresql://{login}@%31%32%37.0.0.1:{port}{path}",
    ],
)
async def test_what_the_driver_takes_is_taken(deployment: Deployment, at: At, form: str) -> None:
    done = await migrate(deployment, form.format(**vars(at), name=at.path[1:]))
    assert (done.returncode, done.stderr.strip()) == (0, "")


async def test_a_host_that_is_silent_costs_its_own_time_limit_and_the_next_one_is_tried(
    deployment: Deployment, at: At
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        hosts = f"127.0.0.1:{silent.getsockname()[1]},{at.host}:{at.port}"
        url = f"postgresql://{at.login}@{hosts}{at.path}?connect_timeout=1"
        migrating = asyncio.create_task(migrate(deployment, url))
        bears_silence = await asyncio.to_thread(seconds_until_it_hangs_up, silent)
        done = await migrating
    assert done.returncode == 0, done.stderr
    assert bears_silence < CONNECT_TIMEOUT_S - 1


def seconds_until_it_hangs_up(silent: socket.socket) -> float:
    """Take one connection, say nothing, and wait until the other side has had enough."""
    silent.settimeout(60)
    connection, _ = silent.accept()
    began = monotonic()
    with connection:
        while connection.recv(1024):
            pass
    return monotonic() - began


async def test_a_worker_goes_on_with_the_host_that_takes_writes(
    deployment: Deployment, silent_port: str
) -> None:
    at = At(deployment.event_store_url)
    hosts = f"127.0.0.1:1,127.0.0.1:{silent_port},{at.host}:{at.port}"
    url = f"postgresql://{at.login}@{hosts}{at.path}"
    worker = deployment.start(
        "command_service",
        EVENT_STORE_URL=f"{url}?target_session_attrs=read-write&connect_timeout=1",
    )
    worker.wait_ready()
    told = await asyncio.to_thread(
        deployment.run, "command_service", "check", EVENT_STORE_URL=f"{url}?connect_timeout=1"
    )
    assert told.returncode == 0, told.stdout
    assert f"database {hosts}{at.path}" in told.stdout


async def test_hosts_of_which_none_is_what_was_asked_for_are_named(
    deployment: Deployment, at: At
) -> None:
    hosts = f"{at.host}:{at.port},127.0.0.1:1"
    done = await migrate(
        deployment, f"postgresql://{at.login}@{hosts}{at.path}?target_session_attrs=standby"
    )
    assert done.returncode == 2
    assert "target_session_attrs in EVENT_STORE_URL" in done.stderr


@asynccontextmanager
async def socket_to(at: At) -> AsyncIterator[Path]:
    """Offer the server at a socket in a folder, as one on this machine does."""
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(at.host, int(at.port))
        for each in (pump(reader, back), pump(there, writer)):
            task = asyncio.create_task(each)
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ".s.PGSQL.5432"
        async with await asyncio.start_unix_server(relay, path):
            yield Path(folder)


async def test_a_socket_is_taken_in_each_of_its_ways_and_one_that_is_not_there_is_not_reached(
    deployment: Deployment, at: At
) -> None:
    async with socket_to(at) as folder:
        for url in (
            f"postgresql://{at.login}@{at.path}?host={folder}",
            f"postgresql://{at.login}@{quote(str(folder), safe='')}{at.path}",
        ):
            done = await migrate(deployment, url)
            assert (done.returncode, done.stderr.strip()) == (0, "")
    gone = await migrate(deployment, f"postgresql://{at.login}@{at.path}?host=/nowhere")
    assert gone.returncode == 3
    assert "has no socket there that this user may use (No such file or directory)" in gone.stderr


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://h/x", "must be a URL like postgresql://"),
        ("postgresql://u:12/3@h/x", "not reached"),
        ("postgresql://u:s3cret#x@h/x", "special characters"),
        ("postgresql://u:p@h:70000/x", "port from 1 to 65535"),
        ("postgresql://u:p@h:5432,i:s3cret/x", "port from 1 to 65535"),
        ("postgresql://u:p@h/x?connect_timeout=soon", "connect_timeout must be a number"),
        ("postgresql://u:p@h/x?nonsense", "must be a URL like postgresql://"),
        ("postgresql://u:p@/x?host=a,b&port=1,2,3", "as many as hosts"),
        ("postgresql://u:p@127.0.0.1:1/x?target_session_attrs=best", "target_session_attrs"),
    ],
)
async def test_what_can_not_work_is_one_line_without_the_password(
    deployment: Deployment, url: str, words: str
) -> None:
    done = await migrate(deployment, url)
    assert done.returncode == (3 if words == "not reached" else 2)
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "s3cret" not in done.stderr


async def test_a_parameter_that_the_server_does_not_know_is_named(
    deployment: Deployment, event_store_url: str
) -> None:
    done = await migrate(deployment, f"{event_store_url}?keep_smiling=1")
    assert done.returncode == 2
    assert "EVENT_STORE_URL is wrong: " in done.stderr
    assert "keep_smiling" in done.stderr


def test_a_url_is_shown_without_its_login() -> None:
    assert place_of("postgresql://u:p@h/x") == "h:5432/x"
    assert place_of("postgresql://u:p@h1:1,[::1]:2,h3/x") == "h1:1,[::1]:2,h3:5432/x"
    assert place_of("postgresql://u:p@/x?host=/run/a&port=6000") == "/run/a:6000/x"
    assert place_of("postgresql:///x") == "the driver's host/x"


def test_several_hosts_become_urls_of_one_each() -> None:
    read = read_database_url("postgresql://u:p@a:1,b/x?connect_timeout=4&sslmode=require")
    assert read.one_by_one == (
        "postgresql://u:p@a:1/x?sslmode=require",
        "postgresql://u:p@b/x?sslmode=require",
    )
    assert read.connect_timeout_s == 4


def as_stranger(
    deployment: Deployment, url: str, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Count old receipts as a user without a name."""
    given = deployment.environment(EVENT_STORE_URL=url, **environment)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "PGUSER"):
        given.pop(name, None)
    return subprocess.run(
        [sys.executable, "-c", BECOME],
        env=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@NEEDS_ROOT
def test_a_home_that_belongs_to_somebody_else_is_no_hindrance(
    deployment: Deployment, event_store_url: str
) -> None:
    with tempfile.TemporaryDirectory() as home:  # nobody but its owner may enter it
        done = as_stranger(deployment, event_store_url, HOME=home)
    assert (done.returncode, done.stderr.strip()) == (0, "")


@NEEDS_ROOT
def test_a_user_without_a_name_is_told_to_put_one_into_the_url(
    deployment: Deployment, at: At
) -> None:
    done = as_stranger(deployment, f"postgresql://{at.host}:{at.port}{at.path}", HOME="/")
    assert done.returncode == 2
    assert done.stderr == (
        "error: EVENT_STORE_URL names no user, and the user of this process has no name "
        f"(uid {STRANGER}): put a user before the @ of its host\n"
    )

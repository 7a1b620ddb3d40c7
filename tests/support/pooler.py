"""A PgBouncer before a database server, for the tests that need one."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Final
from urllib.parse import urlsplit

import pytest

from tests.sandbox.home import free_ports
from tests.sandbox.servers import DatabaseServer

PROGRAM: Final = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
NEEDS_POOLER: Final = pytest.mark.skipif(
    PROGRAM is None, reason="there is no pgbouncer on this machine: apt-get install pgbouncer"
)
STARTS_WITHIN_S: Final = 60.0
SETTINGS: Final = """
[databases]
* = host={host} port={server_port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
auth_type = trust
auth_file = {users}
pool_mode = {mode}
default_pool_size = {size}
unix_socket_dir =
max_client_conn = 200
"""


@contextmanager
def pooler(server: DatabaseServer, user: str, *, mode: str, size: int = 40) -> Iterator[str]:
    """Start one in this mode, with its own defaults otherwise; give the start of a URL to it."""
    assert PROGRAM is not None
    (port,) = free_ports(1)
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        users = Path(folder, "users")
        users.write_text(f'"{user}" "{server.password}"\n')
        file = Path(folder, "pgbouncer.ini")
        file.write_text(
            SETTINGS.format(
                host=server.host, server_port=server.port, port=port, users=users, mode=mode,
                size=size,
            )
        )  # fmt: skip
        process = subprocess.Popen(
            [PROGRAM, "-u", "nobody", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_until_it_listens(port)
            yield f"postgresql://{user}:{server.password}@127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def _wait_until_it_listens(port: int) -> None:
    deadline = monotonic() + STARTS_WITHIN_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            assert monotonic() < deadline, "PgBouncer does not listen"
            sleep(0.02)
        else:
            return


def through(pool: str, url: str) -> str:
    """Lead a database's URL through a pooler."""
    return f"{pool}{urlsplit(url).path}"

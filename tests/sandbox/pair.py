"""A PostgreSQL server and its synchronous standby, which takes its place when it dies."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from time import monotonic, sleep
from typing import Final

import asyncpg

from tests.sandbox import install
from tests.sandbox.home import Home, free_ports
from tests.sandbox.programs import PostgresProgram
from tests.sandbox.servers import USER, DatabaseServer, ServerDidNotStart

APPLIED_WITHIN_S: Final = 30.0
IN_STEP: Final = """
SELECT FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'sync'
"""
READ_WRITE: Final = "target_session_attrs=read-write"


class Pair(DatabaseServer):
    """Two servers at a URL that names both; whoever connects gets the one that takes writes."""

    def __init__(self, primary: PostgresProgram, standby: PostgresProgram) -> None:
        super().__init__(primary.port, primary.password)
        self.primary = primary
        self.standby = standby
        self._both = (primary, standby)

    def url(self, database: str = "postgres") -> str:
        hosts = ",".join(f"{server.host}:{server.port}" for server in self._both)
        return f"postgresql://{USER}:{self.password}@{hosts}/{database}?{READ_WRITE}"

    def create_database(self, name: str, template: str | None = None) -> str:
        """Gives its URL once the standby has it too: it may be asked first, and applies later."""
        url = super().create_database(name, template)
        _wait_until(partial(self._standby_has, name))
        return url

    def start(self) -> None:
        self.primary.start()
        self.follow()

    def follow(self) -> None:
        """Make a standby of the primary's data, and return when commits wait for it.

        A standby answers before it has caught up: what was committed until then would be lost by
        another failover.
        """
        self.standby.follow(self.primary)
        self.standby.start()
        self._commits_wait_for("*")
        _wait_until(self._commits_wait)

    def stop(self) -> None:
        self.standby.stop()
        self.primary.stop()

    def kill(self) -> None:
        self.primary.kill()

    def fail_over(self) -> None:
        """Let the primary die, and the standby take its place, without one of its own yet."""
        self.primary.kill()
        self.promote()

    def promote(self) -> None:
        """Let the standby take the place of the primary, whatever that one does."""
        self.standby.execute("SELECT pg_promote()")
        self.primary, self.standby = self.standby, self.primary
        self._commits_wait_for("")

    def _standby_has(self, database: str) -> bool:
        with suppress(asyncpg.InvalidCatalogNameError):
            self.standby.execute("SELECT 1", database)
            return True
        return False

    def _commits_wait(self) -> bool:
        return bool(self.primary.fetch(IN_STEP))

    def _commits_wait_for(self, standbys: str) -> None:
        # The first of them must not wait for a standby that is not there.
        self.primary.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{standbys}'")
        self.primary.execute("SELECT pg_reload_conf()")


def _wait_until(holds: Callable[[], bool]) -> None:
    """Raises `ServerDidNotStart` where it doesn't in time."""
    deadline = monotonic() + APPLIED_WITHIN_S
    while not holds():
        if monotonic() > deadline:
            raise ServerDidNotStart("the standby does not keep up")
        sleep(0.02)


def make_pair(home: Home, name: str) -> Pair:
    """Make a pair in a directory; it is not started yet. Raises `ServerDidNotStart`."""
    programs = install.postgres_programs()
    if programs is None:
        raise ServerDidNotStart(install.advice(install.missing_packages()))
    password = secrets.token_hex(16)
    one, other = (
        PostgresProgram(home, programs, f"{name}_{number}", port, password)
        for number, port in enumerate(free_ports(2), 1)
    )
    one.create(durable=True)
    return Pair(one, other)


@contextmanager
def open_pair(name: str) -> Iterator[Pair]:
    """Start a server and its synchronous standby; raises `ServerDidNotStart`."""
    home = Home()
    try:
        pair = make_pair(home, name)
        pair.start()
        yield pair
    finally:
        home.clear()

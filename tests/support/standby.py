"""A second PostgreSQL server beside one of a sandbox: its standby, or a copy that was put away."""

from pathlib import Path
from urllib.parse import urlsplit

from tests.sandbox.home import Home, free_ports
from tests.sandbox.programs import PostgresProgram
from tests.sandbox.servers import DatabaseServer
from tests.support.eventually import eventually


class PostgresPair:
    """A primary that runs already, and its standby."""

    def __init__(self, primary: DatabaseServer, name: str) -> None:
        assert isinstance(primary, PostgresProgram)
        self.primary = primary
        home, programs = primary._home, primary._programs  # noqa: SLF001 - a server like it
        self.standby = PostgresProgram(home, programs, name, free_ports(1)[0], primary.password)
        copy(primary, self.standby.data, home, programs)
        self.standby.start()

    def url(self, database: str) -> str:
        """Name both, of which whichever takes writes is meant."""
        parts = urlsplit(self.primary.url(database))
        credentials = parts.netloc.rpartition("@")[0]
        hosts = ",".join(f"{one.host}:{one.port}" for one in (self.primary, self.standby))
        both = parts._replace(netloc=f"{credentials}@{hosts}").geturl()
        return f"{both}?target_session_attrs=read-write"

    async def follows(self) -> None:
        """Return once the standby has what the primary has written by now."""
        (row,) = self.primary.fetch("SELECT pg_current_wal_lsn()::text AS written")

        async def has() -> bool:
            (found,) = self.standby.fetch(
                f"SELECT pg_last_wal_replay_lsn() >= '{row['written']}'::pg_lsn AS it"
            )
            return bool(found["it"])

        await eventually(has)

    def falls_behind(self) -> None:
        """Have the standby receive nothing more."""
        self.standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
        self.standby.execute("SELECT pg_reload_conf()")

    def take_over(self) -> None:
        """Kill the primary, and have the standby take its place."""
        self.primary.kill()
        self.standby.execute("SELECT pg_promote()")


def copy(server: DatabaseServer, into: Path, home: Home, programs: Path) -> None:
    """Take a base backup of a server at work."""
    home.run(
        programs / "pg_basebackup",
        f"--dbname={server.url()}",
        f"--pgdata={into}",
        "--write-recovery-conf",
        "--wal-method=stream",
        "--checkpoint=fast",
        "--no-sync",
    )

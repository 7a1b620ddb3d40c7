"""Backs a database up and restores it beneath whoever works with it."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.sandbox.servers import DatabaseServer


@dataclass(frozen=True)
class Backup:
    """A copy of a database, as it was at one moment."""

    server: DatabaseServer
    database: str
    copy: str

    @classmethod
    def take(cls, server: DatabaseServer, url: str, name: str = "backup") -> "Backup":
        """Copy a database; its clients lose their connections."""
        database = urlsplit(url).path[1:]
        made = cls(server, database, f"{database}_{name}")
        made._alone("CREATE DATABASE {copy} TEMPLATE {database}")
        return made

    def restore(self) -> None:
        """Put the copy in the place of the database; its clients lose their connections."""
        self._alone("DROP DATABASE {database}", "CREATE DATABASE {database} TEMPLATE {copy}")

    def drop(self) -> None:
        self.server.drop_database(self.copy)

    def _alone(self, *statements: str) -> None:
        """Run statements that need a database without clients."""
        names = {"database": f'"{self.database}"', "copy": f'"{self.copy}"'}
        self.server.execute(f"ALTER DATABASE {names['database']} ALLOW_CONNECTIONS false")
        try:
            self._cut_off()
            for statement in statements:
                self.server.execute(statement.format(**names))
        finally:
            self.server.execute(f"ALTER DATABASE {names['database']} ALLOW_CONNECTIONS true")

    def _cut_off(self) -> None:
        while self._clients():
            for pid in self._clients():
                self.server.execute(f"SELECT pg_terminate_backend({pid})")

    def _clients(self) -> list[int]:
        rows = self.server.fetch("SELECT pid, datname FROM pg_stat_activity")
        return [row["pid"] for row in rows if row["datname"] == self.database]

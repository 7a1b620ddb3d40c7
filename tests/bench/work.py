"""Counts what a worker asks of its database: batches, statements, and waits for the disk."""

from dataclasses import dataclass, replace

from asyncpg import UndefinedColumnError, UndefinedTableError

from tests.bench.looking import MARK
from tests.sandbox.servers import DatabaseServer
from tests.support.deployment import Worker

BATCHES = {
    "command_service": "consent_command_batch_size_count",
    "projection_service": "consent_projection_batch_size_count",
}
# pg_stat_statements sees every statement of the cluster; the library is loaded by the sandbox.
STATEMENTS = (
    "SELECT coalesce(sum(calls), 0) AS found FROM pg_stat_statements s"
    " JOIN pg_database d ON d.oid = s.dbid WHERE d.datname = '{database}'"
    " AND strpos(query, '{mark}') = 0"
)
CONNECTED = (
    "SELECT 1 FROM pg_stat_activity WHERE datname = '{database}'"
    " AND application_name LIKE '%_service%'"
)
FSYNCS = "SELECT wal_sync AS found FROM pg_stat_wal"


@dataclass(frozen=True)
class Work:
    """What was done so far, or between two readings."""

    batches: float
    statements: float
    fsyncs: float | None
    """Of the log of the whole server; None where this version does not tell so."""

    def since(self, before: "Work") -> "Work":
        """What was done between two readings."""
        known = self.fsyncs is not None and before.fsyncs is not None
        fsyncs = (self.fsyncs or 0) - (before.fsyncs or 0) if known else None
        return Work(self.batches - before.batches, self.statements - before.statements, fsyncs)

    def statements_per_batch(self) -> float:
        """Each is one round trip."""
        return self.statements / max(1, self.batches)

    def fsyncs_per_batch(self) -> list[float]:
        """One value, or none where it is not known."""
        return [] if self.fsyncs is None else [self.fsyncs / max(1, self.batches)]


def read_work(worker: Worker, server: DatabaseServer, url: str) -> Work:
    """Read all now."""
    database = url.rsplit("/", 1)[1]
    (row,) = server.fetch(f"{MARK} {STATEMENTS.format(database=database, mark=MARK)}")
    return Work(worker.metric(BATCHES[worker.service]), float(row["found"]), _fsyncs(server))


def end_and_read_work(worker: Worker, server: DatabaseServer, url: str) -> Work:
    """Read all, and end the worker: only then do its last fsyncs show in PostgreSQL's counters."""
    done = read_work(worker, server, url)
    worker.kill()
    while server.fetch(CONNECTED.format(database=url.rsplit("/", 1)[1])):
        pass
    return replace(done, fsyncs=_fsyncs(server))


def _fsyncs(server: DatabaseServer) -> float | None:
    try:
        (row,) = server.fetch(FSYNCS)
    except (UndefinedColumnError, UndefinedTableError):
        return None
    return float(row["found"])

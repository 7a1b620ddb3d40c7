"""Looks whether everything that a service needs is there, and says what to do where it is not."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import aiormq
import asyncpg
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shared.broker import BROKER_ERRORS, Broker, connect
from shared.command_line import print_json
from shared.database import Pool, check_partitions, check_schema, open_pool
from shared.errors import ConsentError
from shared.settings import WorkerSettings
from shared.statements import statement

_READ_OWNERSHIP: Final = statement("shared", "read_ownership")
_DATABASE_ERRORS: Final = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who works on a partition; nobody where its lease has run out."""

    partition: int
    owner: str | None
    epoch: int


@dataclass(slots=True)
class Report:
    """All that was found."""

    findings: list[Finding] = field(default_factory=list)
    partitions: list[Ownership] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is missing."""
        return all(finding.ok for finding in self.findings)


@dataclass(frozen=True)
class Needs:
    """What a service needs."""

    package: str
    database_url: str
    queues: Sequence[str]


async def check(needs: Needs, settings: WorkerSettings) -> Report:
    """Look at the database, the broker and the leases; never raises for what is missing."""
    report = Report()
    async for finding in _database(needs, settings, report):
        report.findings.append(finding)
    async for finding in _broker(needs, settings):
        report.findings.append(finding)
    return report


async def _database(
    needs: Needs, settings: WorkerSettings, report: Report
) -> AsyncIterator[Finding]:
    try:
        pool = await open_pool(needs.database_url, name="check", size=1, package=needs.package)
    except _DATABASE_ERRORS as error:
        yield Finding("database", False, f"not reached: {error or type(error).__name__}")
        return
    try:
        yield Finding("database", True, f"PostgreSQL {await pool.fetchval('SHOW server_version')}")
        schema = await _tried("schema", "up to date", lambda: check_schema(pool, needs.package))
        yield schema
        if schema.ok:
            count = settings.consent_partitions
            yield await _tried("partitions", f"{count}", lambda: check_partitions(pool, count))
            report.partitions = await _ownership(pool)
            owned = sum(one.owner is not None for one in report.partitions)
            yield Finding("leases", True, f"{owned} of {len(report.partitions)} partitions owned")
    finally:
        pool.terminate()


async def _ownership(pool: Pool) -> list[Ownership]:
    rows = await pool.fetch(_READ_OWNERSHIP)
    return [
        Ownership(row["partition"], row["owner"] if row["is_leased"] else None, row["epoch"])
        for row in rows
    ]


async def _broker(needs: Needs, settings: WorkerSettings) -> AsyncIterator[Finding]:
    try:
        async with connect(settings.rabbitmq_url, name=f"{needs.package} check") as broker:
            yield Finding("broker", True, f"RabbitMQ {broker.version}")
            missing = [queue for queue in needs.queues if not await _exists(broker, queue)]
            found = f"{len(needs.queues)} queues"
            remedy = "run `python -m command_service topology`; missing: " + ", ".join(missing)
            yield Finding("topology", not missing, remedy if missing else found)
    except (ConsentError, *BROKER_ERRORS) as error:
        yield Finding("broker", False, f"not reached: {error or type(error).__name__}")


async def _exists(broker: Broker, queue: str) -> bool:
    channel = await broker.channel()
    try:
        await channel.queue_declare(queue, passive=True)
    except aiormq.exceptions.ChannelNotFoundEntity:
        return False
    await broker.close_channel(channel)
    return True


async def _tried(name: str, detail: str, look: Callable[[], Awaitable[None]]) -> Finding:
    try:
        await look()
    except ConsentError as error:
        return Finding(name, False, str(error))
    return Finding(name, True, detail)


def show(report: Report) -> None:
    """Print a report for people."""
    console = Console(highlight=False)
    for finding in report.findings:
        mark = "[green]✓[/]" if finding.ok else "[red]✗[/]"
        console.print(f"{mark} {finding.name}: {escape(finding.detail)}", soft_wrap=True)
    if report.partitions:
        table = Table("partition", "owner", "epoch")
        for one in report.partitions:
            table.add_row(str(one.partition), escape(one.owner or "nobody"), str(one.epoch))
        console.print(table)


def tell(needs: Needs, settings: WorkerSettings, *, json: bool) -> None:
    """Check, print the report, and exit with 1 where something is missing."""
    report = asyncio.run(check(needs, settings))
    if json:
        print_json({"ok": report.ok, "findings": report.findings, "partitions": report.partitions})
    else:
        show(report)
    if not report.ok:
        raise typer.Exit(1)

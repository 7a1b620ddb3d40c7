"""The command line of the command service."""

import asyncio
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from command_service.receipts import Purged, purge_receipts
from command_service.settings import CommandSettings, EventStoreSettings
from command_service.worker import service
from shared import names
from shared.broker import connect, virtual_host
from shared.check import Needs, tell
from shared.command_line import (
    AsJson,
    WorkerRole,
    clear_errors,
    new_app,
    print_json,
    run_worker,
)
from shared.database import connect_once
from shared.database import migrate as migrate_database
from shared.durations import parse_duration
from shared.errors import SettingsError
from shared.permissions import Role, rabbitmqctl_lines
from shared.settings import ClientSettings, WorkerSettings, read_settings
from shared.topology import declare

app = new_app("Takes consent commands, decides them, appends events and publishes them.")


@app.command()
def migrate(worker_role: WorkerRole = None) -> None:
    """Bring the event store to this version's schema. Doing it again changes nothing.

    Example: EVENT_STORE_URL=postgresql://… python -m command_service migrate
    """
    with clear_errors():
        settings = read_settings(CommandSettings)
        applied = asyncio.run(
            migrate_database(
                settings.event_store_url,
                "command_service",
                settings.consent_partitions,
                worker_role=worker_role,
            )
        )
        typer.echo(f"applied {', '.join(applied)}" if applied else "nothing to apply")


@app.command()
def topology() -> None:
    """Declare the exchanges, queues and bindings. Doing it again changes nothing.

    Example: RABBITMQ_URL=amqp://… python -m command_service topology
    """
    with clear_errors():
        settings = read_settings(WorkerSettings)
        count = asyncio.run(_declare(settings))
        typer.echo(f"declared {count} exchanges, queues and bindings")


@app.command()
def permissions(
    user: Annotated[str, typer.Argument(help="A user that the broker has already.")],
    roles: Annotated[list[Role], typer.Argument(metavar="ROLE...", help=", ".join(Role))],
) -> None:
    """Print the rabbitmqctl commands that give a user of the broker what it needs, and no more.

    Example: RABBITMQ_URL=amqp://… python -m command_service permissions clinic-a asker | sh
    """
    with clear_errors():
        vhost = virtual_host(read_settings(ClientSettings).rabbitmq_url)
        for line in rabbitmqctl_lines(vhost, user, roles):
            typer.echo(line)


@app.command()
def run() -> None:
    """Work until a signal says stop: the first drains, the second leaves at once.

    Example: python -m command_service run
    """
    with clear_errors():
        settings = read_settings(CommandSettings)
        run_worker(service(settings), settings)


receipts_app = new_app("What was decided for each command id, so that it is decided once.")
app.add_typer(receipts_app, name="receipts")


@receipts_app.callback()
def receipts() -> None:
    """What was decided for each command id, so that it is decided once."""


@receipts_app.command(
    epilog="Example: python -m command_service receipts purge --older-than 90d --dry-run"
)
def purge(
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="As 90d: units s m h d w y; 1d at least.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count what would be deleted.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Delete receipts that are so old: a command sent again after that counts as a new one.

    The events stay. Needs the owner of the schema; workers may go on meanwhile.
    """
    with clear_errors():
        url = read_settings(EventStoreSettings).event_store_url
        purged = asyncio.run(_purge(url, _age(older_than), dry_run=dry_run))
    if json:
        print_json({"dry_run": dry_run, **asdict(purged)})
        return
    before = f"from before {purged.before.isoformat(timespec='seconds')}"
    count = f"would delete {purged.found:,}" if dry_run else f"deleted {purged.deleted:,}"
    typer.echo(f"{count} receipts {before}")


def _age(text: str) -> timedelta:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise SettingsError(f"--older-than: {error}") from None


async def _purge(url: str, older_than: timedelta, *, dry_run: bool) -> Purged:
    connection = await connect_once(url, "command_service", name="receipts purge")
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("deleting receipts", total=None)
            return await purge_receipts(
                connection,
                older_than,
                dry_run=dry_run,
                tell=lambda so_far: progress.update(
                    task, completed=so_far.deleted, total=so_far.found
                ),
            )
    finally:
        await connection.close()


async def _declare(settings: WorkerSettings) -> int:
    async with connect(settings.rabbitmq_url, name="topology") as broker:
        return await declare(broker, settings.consent_partitions)


@app.command(epilog="Example: python -m command_service check")
def check(json: AsJson = False) -> None:
    """Look whether everything is there that the service needs, and who owns which partition."""
    with clear_errors():
        settings = read_settings(CommandSettings)
        numbers = range(settings.consent_partitions)
        queues = [names.UNROUTABLE, names.LOG, *map(names.command_queue, numbers)]
        tell(Needs("command_service", settings.event_store_url, queues), settings, json=json)

"""The command line of the command service."""

import asyncio
import json as json_module
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from command_service.broker_users.definitions import definitions, read_user
from command_service.broker_users.import_definitions import import_definitions
from command_service.broker_users.permissions import Role, rabbitmqctl_lines
from command_service.broker_users.private_file import write_private
from command_service.log_identity.accept_log import accept_log
from command_service.log_identity.check_log import look_at_log
from command_service.log_identity.deployment import declare_deployment, refuse_another_deployment
from command_service.settings import (
    AcceptLogSettings,
    CommandSettings,
    EventStoreSettings,
    TopologySettings,
)
from command_service.store.purge_receipts import PurgedReceipts, purge_receipts
from command_service.worker import service
from shared.cli.check import Management, management_option, tell
from shared.cli.check_results import Needs
from shared.cli.service_commands import (
    AsJson,
    OlderThan,
    WorkerRole,
    clear_errors,
    migrate_database,
    new_app,
    print_json,
    run_worker,
)
from shared.errors import SettingsError
from shared.messages import names
from shared.postgres.database import connect_once
from shared.postgres.retention import read_age
from shared.rabbitmq.connection import virtual_host
from shared.rabbitmq.deployment_mark import BIND_IT
from shared.rabbitmq.policies import policy_warnings
from shared.settings import ClientSettings, read_settings

app = new_app(
    "Takes consent commands, decides them, appends events and publishes them.", CommandSettings
)


@app.command()
def migrate(worker_role: WorkerRole = None) -> None:
    """Bring the event store to this version's schema. Doing it again changes nothing.

    Where RABBITMQ_URL is set too, a virtual host of another deployment is refused.
    Example: EVENT_STORE_URL=postgresql://… python -m command_service migrate
    """
    with clear_errors():
        settings = read_settings(EventStoreSettings)
        partitions = settings.consent_partitions
        migrate_database(settings.event_store_url, "command_service", partitions, worker_role)
        asyncio.run(refuse_another_deployment(settings.event_store_url))


@app.command()
def topology(management: Management = None) -> None:
    """Declare the exchanges, queues and bindings. Doing it again changes nothing.

    Binds the virtual host to the event store, and refuses one that belongs to another.
    What an older version declared is replaced where it must be, and keeps what waits there.

    Policies of the broker that would take messages away are warned of.

    Example: RABBITMQ_URL=amqp://… EVENT_STORE_URL=postgresql://… python -m command_service topology
    """
    with clear_errors():
        settings = read_settings(TopologySettings)
        declared = asyncio.run(
            declare_deployment(
                settings.rabbitmq_url, settings.event_store_url, settings.consent_partitions
            )
        )
        typer.echo(f"declared {declared.things} exchanges, queues and bindings")
        if declared.unbound:
            typer.echo(f"warning: {declared.unbound}: {BIND_IT}", err=True)
        if management:
            for line in asyncio.run(policy_warnings(settings, management)):
                typer.echo(f"warning: {line}", err=True)


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


@app.command("definitions")
def definitions_(
    users: Annotated[
        list[str],
        typer.Argument(metavar="NAME=ROLE[,ROLE]...", help="Its password is in PASSWORD_<NAME>."),
    ],
    output: Annotated[
        Path | None, typer.Option(help="A file to write, for its owner alone.")
    ] = None,
    management: Annotated[
        str | None, management_option("to define them at once in a broker that runs")
    ] = None,
) -> None:
    """Define users of the broker, in one that runs or in a file that it reads when it boots.

    Example: PASSWORD_CLINIC_A=… python -m command_service definitions --output f clinic-a=asker
    """
    with clear_errors():
        vhost = virtual_host(read_settings(ClientSettings).rabbitmq_url)
        content = definitions(vhost, [read_user(user) for user in users])
        if output is not None:
            write_private(output, json_module.dumps(content, indent=1), "--output")
            typer.echo(f"defined {len(users)} users in {output}")
        elif management is None:
            raise SettingsError("give --management URL of a broker that runs, or --output FILE")
        else:
            asyncio.run(import_definitions(management, content))
            typer.echo(f"defined {len(users)} users")


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
    older_than: OlderThan,
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
        purged = asyncio.run(_purge(url, read_age(older_than), dry_run=dry_run))
    if json:
        print_json({"dry_run": dry_run, **asdict(purged)})
        return
    before = f"from before {purged.before.isoformat(timespec='seconds')}"
    count = f"would delete {purged.found:,}" if dry_run else f"deleted {purged.deleted:,}"
    typer.echo(f"{count} receipts {before}")


async def _purge(url: str, older_than: timedelta, *, dry_run: bool) -> PurgedReceipts:
    connection = await connect_once(url, "command_service", name="receipts purge")
    try:
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
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


@app.command("accept-log", epilog="Example: python -m command_service accept-log")
def accept_log_(json: AsJson = False) -> None:
    """Take the log as it is, after a restore or a failover that lost some of it.

    Begins a new generation of it: commands that waited go on, subscribers are told what they took
    that is no more, and `python -m projection_service rebuild` makes the read model follow.
    """
    with clear_errors():
        accepted = asyncio.run(accept_log(read_settings(AcceptLogSettings)))
    if json:
        print_json(accepted)
        return
    for one in accepted.partitions:
        if one.lost:
            typer.echo(
                f"partition {one.partition} goes on behind position {one.after_position}; "
                f"{one.lost:,} events that were published are no more"
            )
    typer.echo(f"the log goes on in generation {accepted.generation}")
    typer.echo("now: python -m projection_service rebuild")


@app.command(epilog="Example: python -m command_service check")
def check(json: AsJson = False, management: Management = None) -> None:
    """Look whether everything is there that the service needs, and who owns which partition."""
    with clear_errors():
        tell(lambda: needs(read_settings(CommandSettings)), json=json, management=management)


def needs(settings: CommandSettings) -> Needs:
    """Tell `check` what to look at."""
    queues = map(names.command_queue, range(settings.consent_partitions))
    return Needs(
        "command_service",
        settings,
        settings.event_store_url,
        reads=[names.UNROUTABLE, names.LOG, *queues],
        writes=[names.EVENTS, ""],
        look=look_at_log,
    )

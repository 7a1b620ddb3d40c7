"""The command line of the projection service."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Final, TypeVar

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from projection_service.log_identity.check_log import look_at_log
from projection_service.parked import discard_parked, list_parked, retry_parked, show_parked
from projection_service.purge_history import PurgedHistory, purge_history
from projection_service.read_model import ReadModel
from projection_service.rebuild.diff import Compared
from projection_service.rebuild.progress import show_progress
from projection_service.rebuild.rebuild import Rebuilt
from projection_service.rebuild.rebuild import rebuild as rebuild_read_model
from projection_service.settings import ProjectionSettings, ReadModelSettings
from projection_service.worker import service
from shared.cli.check import Management, tell
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
from shared.cli.terminal import shown
from shared.messages import names
from shared.postgres.connection import Connection
from shared.postgres.database import connect_once
from shared.postgres.retention import read_age
from shared.rabbitmq.deployment_mark import refuse_another_log
from shared.settings import read_settings
from shared.worker.gc_tuning import collect_seldom

Result = TypeVar("Result")

ROWS_SHOWN: Final = 20
"""Differences of one table that a person is shown."""

console = Console(highlight=False)
app = new_app("Keeps the read model of consents, and answers queries from it.", ProjectionSettings)


@app.command()
def migrate(worker_role: WorkerRole = None) -> None:
    """Bring the read model to this version's schema. Doing it again changes nothing.

    Where RABBITMQ_URL is set too, a virtual host of another log than it follows is refused.
    Example: READ_MODEL_URL=postgresql://… python -m projection_service migrate
    """
    with clear_errors():
        settings = read_settings(ReadModelSettings)
        partitions = settings.consent_partitions
        migrate_database(settings.read_model_url, "projection_service", partitions, worker_role)
        asyncio.run(_refuse_another_log(settings.read_model_url))


async def _refuse_another_log(url: str) -> None:
    connection = await connect_once(url, "projection_service", name="migrate")
    try:
        log_id = await ReadModel(connection).followed_log()
    finally:
        await connection.close()
    if log_id is not None:
        await refuse_another_log(log_id)


parked_app = new_app("Events that could not be applied, and their patients' later ones.")
app.add_typer(parked_app, name="parked")


PatientId = Annotated[str, typer.Argument(help="The patient's id.")]


@parked_app.command("list", epilog="Example: python -m projection_service parked list")
def list_(json: AsJson = False) -> None:
    """List the patients who have parked events, those that wait longest first."""
    found = _with_read_model(list_parked)
    if json:
        print_json(found)
        return
    table = Table("patient", "partition", "events", "first position", "since", "reason")
    for patient in found:
        since = patient.parked_at.isoformat(timespec="seconds")
        row = (
            patient.patient_id,
            patient.partition,
            patient.events,
            patient.first_position,
            since,
            patient.reason,
        )
        table.add_row(*(shown(str(value)) for value in row))
    console.print(table if found else "nothing is parked")


@parked_app.command(epilog="Example: python -m projection_service parked show p-1")
def show(patient_id: PatientId) -> None:
    """Show a patient's parked events as JSON, one on a line, in order."""
    for event in _with_read_model(lambda connection: show_parked(connection, patient_id)):
        print_json(event)


@parked_app.command(epilog="Example: python -m projection_service parked retry p-1")
def retry(patient_id: PatientId) -> None:
    """Apply a patient's parked events in order, after what was wrong is mended."""
    done = _with_read_model(lambda connection: retry_parked(connection, patient_id))
    console.print(f"applied {done.applied}, {done.left} still parked")
    if done.left:
        console.print(f"the first of them: {shown(done.reason or '')}")
        raise typer.Exit(1)


@parked_app.command(epilog="Example: python -m projection_service parked discard p-1 42")
def discard(
    patient_id: PatientId,
    position: Annotated[int, typer.Argument(help="The event's position in its partition.")],
) -> None:
    """Give up one parked event for good; then retry the patient's later ones."""
    if not _with_read_model(lambda connection: discard_parked(connection, patient_id, position)):
        console.print("no such event is parked")
        raise typer.Exit(1)
    console.print(f"discarded; now: python -m projection_service parked retry {shown(patient_id)}")


history_app = new_app("When each consent was in force, and when it was asked for.")
app.add_typer(history_app, name="history")


@history_app.command(
    epilog="Example: python -m projection_service history purge --older-than 10y --dry-run"
)
def purge(
    older_than: OlderThan,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count what would be removed.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Remove consents that ended, and requests that were answered, so long ago.

    What is in force or pending stays, however old. Questions about moments before are
    refused from then on. Needs the owner of the schema; workers may go on meanwhile.
    """
    with console.status("looking …") as status:
        purged = _with_read_model(
            lambda connection: purge_history(
                connection,
                read_age(older_than),
                dry_run=dry_run,
                tell=lambda so_far: status.update(_removed(so_far)),
            ),
            name="history purge",
        )
    if json:
        print_json({"dry_run": dry_run, "known_since": purged.until, **_counts(purged)})
        return
    console.print(f"{'would remove' if dry_run else 'removed'} {_removed(purged)}")
    console.print(f"the past is known since {purged.until.isoformat(timespec='seconds')}")


def _counts(purged: PurgedHistory) -> dict[str, int]:
    return {"periods": purged.periods, "requests": purged.requests}


def _removed(purged: PurgedHistory) -> str:
    return f"{purged.periods:,} periods and {purged.requests:,} requests"


def _with_read_model(
    work: Callable[[Connection], Awaitable[Result]], name: str = "parked"
) -> Result:
    async def connected(url: str) -> Result:
        connection = await connect_once(url, "projection_service", name=name)
        try:
            return await work(connection)
        finally:
            await connection.close()

    with clear_errors():
        return asyncio.run(connected(read_settings(ReadModelSettings).read_model_url))


@app.command(epilog="Example: python -m projection_service rebuild --dry-run")
def rebuild(
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Compare instead of switching; exit code 1 where anything differs."
        ),
    ] = False,
    json: AsJson = False,
) -> None:
    """Build the read model anew out of the log, beside the old one, and switch when it is done.

    Workers go on meanwhile. Killed at any point, it leaves the old one as it was.
    Where the log was set back, by a restore for example, it is made of what the log has now.
    """
    with clear_errors():
        settings = read_settings(ProjectionSettings)
        collect_seldom()
        with show_progress() as progress:
            done = uvloop.run(rebuild_read_model(settings, progress, dry_run=dry_run))
    print_json(done) if json else _show_rebuilt(done)
    if done.differences:
        raise typer.Exit(1)


def _show_rebuilt(done: Rebuilt) -> None:
    for found in done.set_back:
        console.print(f"{found}")
    for compared in done.compared:
        _show_compared(compared)
    what = "switched to the new read model" if done.switched else "compared, nothing was changed"
    console.print(
        f"{what}: {done.events:,} events in {done.seconds:,.1f} s; "
        f"held for {done.held_milliseconds:,.0f} ms"
    )
    if done.compared:
        console.print(f"{done.differences:,} differences")
    if done.parked:
        console.print(
            f"{done.parked:,} events are parked: python -m projection_service parked list"
        )


def _show_compared(compared: Compared) -> None:
    if not compared.different:
        return
    examples = compared.examples[:ROWS_SHOWN]
    of = f"{compared.different:,} differences, the first {len(examples)}"
    table = Table("row", "in the read model", "by the log", title=f"{compared.table}: {of}")
    for example in examples:
        table.add_row(*(_cell(value) for value in (example.key, example.live, example.rebuilt)))
    console.print(table)


def _cell(row: dict[str, object] | None) -> str:
    if row is None:
        return "[dim]no such row[/]"
    return "\n".join(shown(f"{name} {_plain(value)}") for name, value in row.items())


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


@app.command()
def run(
    answers_only: Annotated[
        bool,
        typer.Option(
            "--answers-only", help="Project nothing and write nothing: for a standby's URL."
        ),
    ] = False,
) -> None:
    """Work until a signal says stop: the first drains, the second leaves at once.

    Example: python -m projection_service run
    """
    with clear_errors():
        settings = read_settings(ProjectionSettings)
        run_worker(service(settings), settings, answers_only=answers_only)


@app.command(epilog="Example: python -m projection_service check")
def check(json: AsJson = False, management: Management = None) -> None:
    """Look whether everything is there that the service needs, and who owns which partition."""
    with clear_errors():
        tell(lambda: needs(read_settings(ProjectionSettings)), json=json, management=management)


def needs(settings: ProjectionSettings) -> Needs:
    """Tell `check` what to look at."""
    queues = map(names.projection_queue, range(settings.consent_partitions))
    return Needs(
        "projection_service",
        settings,
        settings.read_model_url,
        reads=[names.QUERIES, *queues],
        writes=[names.QUERIES, ""],
        look=look_at_log,
    )

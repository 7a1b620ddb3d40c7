"""The verbs of the `consent` command."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, NoReturn, TypeVar, get_args
from uuid import UUID

import typer
from pydantic import BaseModel, TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from shared.cli.check_lines import check_lines, open_lines, read_lines
from shared.cli.ends import For, Until, end_of, local, subject_of
from shared.cli.terminal import Program, shown, shown_json, tell_version
from shared.cli.timeline.layout import lay_out
from shared.cli.timeline.svg import picture
from shared.cli.timeline.text import ASCII, UNICODE, draw
from shared.client.client import ConsentClient
from shared.errors import (
    BrokerBlocked,
    NoAnswer,
    NotAllowed,
    NotConnected,
    QueryRefused,
    SettingsError,
)
from shared.errors.connection import BROKER_ERRORS
from shared.errors.text import said_by
from shared.event_log.log_client import Page
from shared.messages.cloud_event import CloudEvent
from shared.messages.commands import (
    AskConsent,
    ConsentCommand,
    DenyConsent,
    GrantConsent,
    RevokeConsent,
    Verb,
    WithdrawRequest,
)
from shared.messages.events import UnknownEventError
from shared.messages.queries import ConsentHeld, Consents, ListConsents, PatientSeen
from shared.messages.replies import CommandAccepted, Outcome
from shared.messages.timestamp import REMEDY, Moment, timestamp
from shared.messages.validation import details_of
from shared.rabbitmq.connection import EntityNotFound
from shared.settings import ClientSettings, PartitionSettings, read_settings
from shared.telemetry.libraries import hush_libraries
from shared.telemetry.standard_streams import guard_standard_streams
from shared.values.partition import partition_of
from shared.values.vocabulary import ENTITIES, RECORD_TYPES, Entity, RecordType, Target

REFUSED: Final = 1
"""Exit code where a command is rejected, or a consent does not hold."""
WRONG_USE: Final = 2
NO_ANSWER: Final = 3

HELP: Final = f"""
Ask, grant, deny, withdraw, revoke and check consent, over RabbitMQ.

ENTITY is one of {", ".join(ENTITIES)}; TARGET is one of {", ".join(RECORD_TYPES)}, or all.
RABBITMQ_URL and CONSENT_PARTITIONS say where; `--json` prints what was received.

Exit codes: 0 accepted or yes, 1 rejected or no, 2 wrong use, 3 no answer.
"""

app = Program(help=HELP, no_args_is_help=True, pretty_exceptions_enable=False)
app.callback()(tell_version)
console = Console(highlight=False)
problems = Console(stderr=True, highlight=False)

Patient = Annotated[str, typer.Argument(help="The patient's id.")]
EntityName = Annotated[Entity, typer.Argument(metavar="ENTITY", help="patient, doctor or nurse.")]
EntityId = Annotated[str, typer.Argument(metavar="ID", help="The id of that patient or other.")]
Records = Annotated[Target, typer.Argument(metavar="TARGET", help="A record type, or all.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the message as it was received.")]
Within = Annotated[float, typer.Option(help="Seconds to wait for the reply.", min=0.1, max=86_400)]
CommandId = Annotated[
    UUID | None, typer.Option(help="The idempotency key; a new one where none is given.")
]
MinVersion = Annotated[
    int, typer.Option(help="Wait until the patient is projected to this version.", min=0)
]


def _moment(text: str) -> datetime:
    try:
        return TypeAdapter(Moment).validate_python(text)
    except ValidationError:
        raise typer.BadParameter(REMEDY) from None


At = Annotated[
    datetime | None,
    typer.Option(
        parser=_moment, metavar="TIME", help="Ask about that moment, as 2026-03-01T12:00:00Z."
    ),
]

Result = TypeVar("Result")


@app.command(epilog="Example: consent ask p-1 doctor d-1 exams")
def ask(
    patient_id: Patient,
    entity: EntityName,
    id_: EntityId,
    target: Records = "all",
    until: Until = None,
    for_: For = None,
    command_id: CommandId = None,
    within: Within = 10.0,
    json: AsJson = False,
) -> None:
    """Ask a patient for consent, on behalf of somebody, for ever or until some moment."""
    with _clear_errors():
        command = AskConsent(
            patient_id=patient_id,
            by_entity=entity,
            by_id=id_,
            target=target,
            expires_at=end_of(until, for_),
        )
        _send(command, command_id, within, json)


@app.command(epilog="Example: consent grant p-1 doctor d-1 exams --for 90d")
def grant(
    patient_id: Patient,
    entity: EntityName,
    id_: EntityId,
    target: Records = "all",
    until: Until = None,
    for_: For = None,
    command_id: CommandId = None,
    within: Within = 10.0,
    json: AsJson = False,
) -> None:
    """Grant somebody consent, on behalf of a patient, for ever or until some moment."""
    with _clear_errors():
        command = GrantConsent(
            patient_id=patient_id,
            to_entity=entity,
            to_id=id_,
            target=target,
            expires_at=end_of(until, for_),
        )
        _send(command, command_id, within, json)


@app.command(epilog="Example: consent revoke p-1 doctor d-1 exams")
def revoke(
    patient_id: Patient,
    entity: EntityName,
    id_: EntityId,
    target: Records = "all",
    command_id: CommandId = None,
    within: Within = 10.0,
    json: AsJson = False,
) -> None:
    """Take consent back from somebody, on behalf of a patient."""
    with _clear_errors():
        command = RevokeConsent(
            patient_id=patient_id, from_entity=entity, from_id=id_, target=target
        )
        _send(command, command_id, within, json)


@app.command(epilog="Example: consent deny p-1 doctor d-1 exams")
def deny(
    patient_id: Patient,
    entity: EntityName,
    id_: EntityId,
    target: Records = "all",
    command_id: CommandId = None,
    within: Within = 10.0,
    json: AsJson = False,
) -> None:
    """Say no to what somebody asks for, on behalf of a patient."""
    with _clear_errors():
        command = DenyConsent(patient_id=patient_id, to_entity=entity, to_id=id_, target=target)
        _send(command, command_id, within, json)


@app.command(epilog="Example: consent withdraw p-1 doctor d-1 exams")
def withdraw(
    patient_id: Patient,
    entity: EntityName,
    id_: EntityId,
    target: Records = "all",
    command_id: CommandId = None,
    within: Within = 10.0,
    json: AsJson = False,
) -> None:
    """Take back what was asked for and is not answered, on behalf of who asked."""
    with _clear_errors():
        command = WithdrawRequest(patient_id=patient_id, by_entity=entity, by_id=id_, target=target)
        _send(command, command_id, within, json)


@app.command("list", epilog="Example: consent list p-1")
def list_(
    patient_id: Patient, min_version: MinVersion = 0, within: Within = 10.0, json: AsJson = False
) -> None:
    """List what a patient has granted, and is asked for."""
    found = _talk(within, lambda client: client.list_consents(patient_id, min_version=min_version))
    _print_json(found) if json else _show_consents(found)


@app.command(epilog="Example: consent check p-1 doctor d-1 exams && echo may see them")
def check(
    patient_id: Annotated[
        str,
        typer.Argument(
            metavar="PATIENT_ID|FILE",
            help="The patient's id; or alone, a file of lines like `p-1 doctor d-1 exams`, - for "
            "the standard input.",
        ),
    ],
    entity: Annotated[
        Entity | None, typer.Argument(metavar="ENTITY", help="patient, doctor or nurse.")
    ] = None,
    id_: Annotated[
        str | None, typer.Argument(metavar="ID", help="The id of that patient or other.")
    ] = None,
    permission: Records = "all",
    at: At = None,
    min_version: MinVersion = 0,
    within: Within = 10.0,
    json: AsJson = False,
) -> None:
    """Ask whether somebody may see these records of a patient, or could; of many, line by line."""
    if entity is None:
        _check_lines(patient_id, at, min_version, within, json)
        return
    if id_ is None:
        raise typer.BadParameter("ENTITY needs an ID behind it")
    held = _talk(
        within,
        lambda client: client.has_consent(
            patient_id, entity, id_, permission, min_version=min_version, at=at
        ),
    )
    _print_json(held) if json else _show_held(held, at)
    if not held.has_consent:
        raise typer.Exit(REFUSED)


@app.command(epilog="Example: consent patients doctor d-1 exams")
def patients(
    entity: EntityName,
    id_: EntityId,
    permission: Annotated[
        Target | None,
        typer.Argument(metavar="TARGET", help="A record type, or all; anything by default."),
    ] = None,
    within: Within = 10.0,
    json: Annotated[bool, typer.Option("--json", help="Print a patient on each line.")] = False,
) -> None:
    """List the patients whose records somebody may see."""

    async def show(client: ConsentClient) -> None:
        table = Table(title=f"{entity} {shown(id_)} may see")
        for heading in ("patient", "may see", "until"):
            table.add_column(heading, overflow="fold")
        async for patient in client.patients(entity, id_, permission):
            if json:
                _print_json(patient)
            else:
                table.add_row(*map(shown, _in_columns(patient)))
        if not json:
            console.print(table)

    _talk(within, show)


def _in_columns(patient: PatientSeen) -> tuple[str, str, str]:
    ends = [f"{name} {timestamp(end)}" for name, end in (patient.until or {}).items()]
    return patient.patient_id, ", ".join(patient.permissions), ", ".join(ends)


def _check_lines(
    name: str, at: datetime | None, min_version: int, within: float, json: bool
) -> None:
    try:
        with open_lines(name) as texts:
            lines = read_lines(texts, at, min_version)
            count = _talk(
                within, lambda client: check_lines(client, lines, console, problems, json=json)
            )
    except OSError as error:
        _end(
            f"{name} can't be read ({error.strerror}): name a file, - for the standard input, or "
            "PATIENT_ID ENTITY ID",
            WRONG_USE,
        )
    if not json:
        console.print(str(count))
    if count.wrong:
        raise typer.Exit(WRONG_USE)
    if count.unanswered:
        raise typer.Exit(NO_ANSWER)
    if count.no:
        raise typer.Exit(REFUSED)


@app.command(epilog="Example: consent history p-1 --svg p-1.svg")
def history(
    patient_id: Patient,
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a picture to this file as well.")
    ] = None,
    min_version: MinVersion = 0,
    within: Within = 10.0,
    json: AsJson = False,
) -> None:
    """Draw what a patient had granted to whom and when, who asked, and by which commands."""
    found = _talk(within, lambda client: client.history(patient_id, min_version=min_version))
    timeline = lay_out(found, datetime.now(UTC))
    if json:
        _print_json(found)
    else:
        glyphs = ASCII if console.options.ascii_only else UNICODE
        console.print(draw(timeline, console.width, glyphs))
    if svg is not None:
        _write(svg, picture(timeline))


@app.command(epilog="Example: consent events 3 --after 120 --limit 20")
def events(
    partition: Annotated[int, typer.Argument(help="The partition whose log is read.", min=0)],
    after: Annotated[int, typer.Option(help="Begin behind this position.", min=0)] = 0,
    limit: Annotated[int, typer.Option(help="How many at most.", min=1, max=500)] = 100,
    patient: Annotated[str | None, typer.Option(help="Only this patient's events.")] = None,
    within: Within = 10.0,
    json: AsJson = False,
) -> None:
    """Read the log of a partition."""
    page = _talk(
        within,
        lambda client: client.read_events(
            partition, after_position=after, limit=limit, patient_id=patient
        ),
    )
    _print_json(page) if json else _show_events(page)


@app.command(epilog="Example: consent watch 'asked.#' 'granted.doctor.#'")
def watch(
    patterns: Annotated[
        list[str] | None,
        typer.Argument(
            help="Which events: FACT.ENTITY.RECORD_TYPE.PARTITION, with * and #. All by default."
        ),
    ] = None,
    patient: Annotated[str | None, typer.Option(help="Only this patient's events.")] = None,
    from_origin: Annotated[bool, typer.Option("--from-origin", help="Begin with the log.")] = False,
    from_: Annotated[
        str,
        typer.Option(
            "--from", metavar="PARTITION=POSITION,…", help="Begin behind these; the others now."
        ),
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="Print a CloudEvent on each line.")] = False,
) -> None:
    """Follow the events as they happen, until Ctrl-C."""
    from shared.cli.watch import follow  # noqa: PLC0415 - nobody else needs what follows the log

    # Ctrl-C cancels; asyncio says so in the one way or the other.
    with _clear_errors(), suppress(KeyboardInterrupt, asyncio.CancelledError):
        settings = read_settings(ClientSettings)
        follow(settings, patterns or [], patient, from_, from_origin=from_origin, json=json)


@app.command(epilog="Example: consent partition p-1")
def partition(patient_id: Patient) -> None:
    """Say in which partition a patient is, and with which routing keys to send commands."""
    with _clear_errors():
        ListConsents(patient_id=patient_id)  # or it is said what is wrong with the id
        partitions = read_settings(PartitionSettings).consent_partitions
    number = partition_of(patient_id, partitions)
    keys = ", ".join(f"{verb}.{number}" for verb in get_args(Verb))
    console.print(f"{number} of {partitions}; routing keys {keys}")


def run() -> None:
    """Run the command line."""
    guard_standard_streams()
    hush_libraries()
    app()


def _send(command: ConsentCommand, command_id: UUID | None, within: float, json: bool) -> None:
    outcome = _talk(within, lambda client: client.send(command, command_id))
    end = command.expires_at if isinstance(command, AskConsent | GrantConsent) else None
    _show_outcome(outcome, json, end)


def _talk(within: float, conversation: Callable[[ConsentClient], Awaitable[Result]]) -> Result:
    async def talk(settings: ClientSettings) -> Result:
        async with ConsentClient.connect(
            settings.rabbitmq_url, partitions=settings.consent_partitions, within=within
        ) as client:
            return await conversation(client)

    with _clear_errors():
        return asyncio.run(talk(read_settings(ClientSettings)))


@contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except (SettingsError, NotConnected, NotAllowed) as error:
        _end(str(error), WRONG_USE)
    except ValidationError as error:
        found = "; ".join(
            f"{detail.field} {_begin_low(detail.message)}" for detail in details_of(error)
        )
        _end(found, WRONG_USE)
    except QueryRefused as error:
        _end(str(error), WRONG_USE if error.error == "validation_error" else NO_ANSWER)
    except NoAnswer as error:
        _end(f"{error}{_remedy(error)}", NO_ANSWER)
    except BROKER_ERRORS as error:
        _end(f"the broker is not reached: {said_by(error)}: check RABBITMQ_URL", NO_ANSWER)


def _remedy(error: NoAnswer) -> str:
    if isinstance(error.__cause__, EntityNotFound):
        return ": run `python -m command_service topology`"
    if isinstance(error.__cause__, BrokerBlocked):
        return ""
    return ": are the workers running?"


def _end(line: str, code: int) -> NoReturn:
    problems.print(f"[red]error:[/] {shown(' '.join(line.split()))}", soft_wrap=True)
    raise typer.Exit(code)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        _end(f"--svg: {file} can't be written ({error.strerror}): name another file", WRONG_USE)


def _begin_low(text: str) -> str:
    return text[:1].lower() + text[1:]


def _print_json(message: BaseModel) -> None:
    sys.stdout.write(shown_json(message.model_dump_json(exclude_none=True)) + "\n")


def _show_outcome(outcome: Outcome, json: bool, end: datetime | None) -> None:
    accepted = isinstance(outcome, CommandAccepted)
    if json:
        _print_json(outcome)
    elif isinstance(outcome, CommandAccepted):
        what = ", ".join(f"{event.type} {event.target}" for event in outcome.events)
        until = "" if end is None else f" until {local(end)}"
        console.print(f"[green]accepted[/] {what}{until}; version {outcome.version}")
    else:
        console.print(f"[yellow]rejected[/] {outcome.error}: {shown(outcome.message)}")
        for detail in outcome.details:
            console.print(f"  {shown(detail.field)}: {shown(detail.message)}")
    if not accepted:
        raise typer.Exit(REFUSED)


def _show_consents(found: Consents) -> None:
    table = Table(title=f"Patient {shown(found.patient_id)}, version {found.version}")
    for heading in ("entity", "id", "may see", "asked for"):
        table.add_column(heading)
    for entry in found.consents:
        table.add_row(
            entry.entity_name,
            shown(entry.entity_id),
            _listed(entry.permissions, entry.until),
            _listed(entry.requested, entry.requested_until),
        )
    console.print(table)


def _listed(records: Sequence[RecordType], ends: Mapping[RecordType, datetime] | None) -> str:
    until = {record: f" until {local(end)}" for record, end in (ends or {}).items()}
    return ", ".join(f"{record}{until.get(record, '')}" for record in records)


def _show_held(held: ConsentHeld, at: datetime | None) -> None:
    answer = "[green]yes[/]" if held.has_consent else "[red]no[/]"
    when = "" if at is None else f" at {timestamp(at)}"
    until = "" if held.valid_until is None else f" until {local(held.valid_until)}"
    console.print(f"{answer}{when}{until}, as of version {held.version}")


def _show_events(page: Page) -> None:
    table = Table(title=f"{len(page.events)} events; the log ends at {page.head}")
    for heading in ("position", "time", "patient", "version", "event", "who"):
        table.add_column(heading, overflow="fold", no_wrap=heading in {"event", "time"})
    for event in page.events:
        what, who = _what_and_who(event)
        table.add_row(
            str(event.position),
            shown(event.time[:19]),
            shown(event.subject),
            str(event.streamversion),
            f"{shown(event.type)}\n{what}",
            shown(who),
        )
    console.print(table)


def _what_and_who(event: CloudEvent) -> tuple[str, str]:
    """Say what an event is about, and about whom, as far as this version can read it."""
    try:
        fact = event.event()
    except (UnknownEventError, ValidationError):
        return "which this version can't read", ""
    return subject_of(fact, "\n"), str(fact.grantee)

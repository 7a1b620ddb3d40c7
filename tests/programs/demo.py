"""Plays a whole session on real servers and shows it; `up` starts the same and stays."""

import argparse
import asyncio
import json
import shlex
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shared.client.client import ConsentClient
from shared.messages import names
from shared.messages.commands import (
    AskConsent,
    ConsentCommand,
    DenyConsent,
    GrantConsent,
    RevokeConsent,
    WithdrawRequest,
)
from shared.messages.queries import ConsentHeld, Entry
from shared.messages.replies import CommandAccepted, Outcome
from shared.messages.timestamp import timestamp
from shared.values.partition import partition_of
from shared.values.vocabulary import RECORD_TYPES, Entity, RecordType, Target
from tests.sandbox import open_sandbox
from tests.support.deployment import Deployment, open_deployment

PARTITIONS: Final = 8
PATIENT: Final = "p-1"
DOCTOR: Final = "d-1"
NURSE: Final = "n-1"
LASTS: Final = timedelta(seconds=4)
"""The shift of a nurse, for the purposes of a demo."""
EVENTS_WITHIN_S: Final = 30.0

Arriving = asyncio.Queue[AbstractIncomingMessage]

console = Console(highlight=False)


class Surprise(Exception):
    """Something came out other than it must."""


def expect(found: object, expected: object) -> None:
    """Raise Surprise where something else was found than expected."""
    if found != expected:
        raise Surprise(f"expected {expected!r}, found {found!r}")


@dataclass
class Session:
    """A conversation with the services, shown as it goes."""

    client: ConsentClient
    version: int = 0
    caused: list[str] = field(default_factory=list)
    """The ids of the events that the replies promised."""

    async def accepted(self, command: ConsentCommand, *events: str) -> None:
        """Send a command that must be accepted and cause these events."""
        outcome = await self._send(command)
        if not isinstance(outcome, CommandAccepted):
            raise Surprise(f"{outcome.error}: {outcome.message}")
        found = [f"{event.type} {event.target}" for event in outcome.events]
        console.print(f"  [green]accepted[/], version {outcome.version}: {', '.join(found)}")
        expect(found, list(events))
        self.version = outcome.version
        self.caused += [event.id for event in outcome.events]

    async def rejected(self, command: ConsentCommand, error: str) -> None:
        """Send a command that must be rejected with this error."""
        outcome = await self._send(command)
        if isinstance(outcome, CommandAccepted):
            raise Surprise(f"accepted, where {error} was expected")
        console.print(f"  [yellow]rejected[/], {outcome.error}: {escape(outcome.message)}")
        expect(outcome.error, error)

    async def lists(self, *expected: Entry) -> None:
        """List the patient's consents, which must be these."""
        self._show_query("ListConsents", patient_id=PATIENT, min_version=self.version)
        found = await self.client.list_consents(PATIENT, min_version=self.version)
        for entry in found.consents:
            console.print(
                f"  {entry.model_dump_json(exclude_none=True)}", markup=False, soft_wrap=True
            )
        if not found.consents:
            console.print("  nothing")
        expect(found.consents, list(expected))

    async def checks(self, permission: Target, expected: bool) -> None:
        """Check the doctor's consent, which must be this."""
        self._show_query("HasConsent", patient_id=PATIENT, entity_id=DOCTOR, permission=permission)
        held = await self._held("doctor", DOCTOR, permission)
        self._show_held(held)
        expect(held.has_consent, expected)

    async def ends(self, end: datetime) -> None:
        """Check the nurse's consent until it has ended by itself, which must be at its end."""
        self._show_query("HasConsent", patient_id=PATIENT, entity_id=NURSE, permission="exams")
        held = await self._held("nurse", NURSE, "exams")
        self._show_held(held)
        expect(held.has_consent or datetime.now(UTC) >= end, True)
        with console.status(f"waiting for {timestamp(end)} …"):
            while held.has_consent:
                await asyncio.sleep(0.1)
                held = await self._held("nurse", NURSE, "exams")
        now = datetime.now(UTC)
        console.print(f"  {timestamp(now)}: ", end="")
        self._show_held(held)
        expect(now >= end, True)

    async def _held(self, entity: Entity, id_: str, permission: Target) -> ConsentHeld:
        return await self.client.has_consent(
            PATIENT, entity, id_, permission, min_version=self.version
        )

    def _show_held(self, held: ConsentHeld) -> None:
        answer = "[green]yes[/]" if held.has_consent else "[red]no[/]"
        console.print(f"  {answer}, as of version {held.version}")

    async def _send(self, command: ConsentCommand) -> Outcome:
        key = names.command_key(command, PARTITIONS)
        kind = type(command).__name__
        console.print(f"[bold cyan]{kind}[/] → {names.COMMANDS}, {key}")
        body = command.model_dump_json(exclude_none=True)
        console.print(f"  {body}", style="dim", markup=False, soft_wrap=True)
        return await self.client.send(command)

    def _show_query(self, kind: str, **body: object) -> None:
        console.print(f"[bold magenta]{kind}[/] → {names.QUERIES}, {kind}")
        console.print(f"  {json.dumps(body)}", style="dim", markup=False, soft_wrap=True)


def ask(target: Target) -> AskConsent:
    """Let the doctor ask."""
    return AskConsent(patient_id=PATIENT, by_entity="doctor", by_id=DOCTOR, target=target)


def grant(target: Target) -> GrantConsent:
    """Let the patient grant."""
    return GrantConsent(patient_id=PATIENT, to_entity="doctor", to_id=DOCTOR, target=target)


def revoke(target: Target) -> RevokeConsent:
    """Let the patient revoke."""
    return RevokeConsent(patient_id=PATIENT, from_entity="doctor", from_id=DOCTOR, target=target)


def deny(target: Target) -> DenyConsent:
    """Let the patient say no."""
    return DenyConsent(patient_id=PATIENT, to_entity="doctor", to_id=DOCTOR, target=target)


def withdraw(target: Target) -> WithdrawRequest:
    """Let the doctor no longer ask."""
    return WithdrawRequest(patient_id=PATIENT, by_entity="doctor", by_id=DOCTOR, target=target)


def grant_until(end: datetime) -> GrantConsent:
    """Let the patient grant a nurse consent that ends by itself."""
    return GrantConsent(
        patient_id=PATIENT, to_entity="nurse", to_id=NURSE, target="exams", expires_at=end
    )


def entry(permissions: list[RecordType], requested: list[RecordType]) -> Entry:
    """Write what the doctor may see, and asked to see."""
    return Entry(
        entity_name="doctor", entity_id=DOCTOR, permissions=permissions, requested=requested
    )


async def play(session: Session) -> None:
    """Play the session; raises Surprise where anything comes out other than it must."""
    await session.lists()
    await session.accepted(ask("exams"), "ConsentAsked exams")
    await session.lists(entry([], ["exams"]))
    await session.accepted(deny("exams"), "ConsentDenied exams")
    await session.accepted(ask("exams"), "ConsentAsked exams")
    await session.accepted(grant("exams"), "ConsentGranted exams")
    await session.accepted(ask("conditions"), "ConsentAsked conditions")
    await session.accepted(withdraw("conditions"), "RequestWithdrawn conditions")
    await session.accepted(grant("consultations"), "ConsentGranted consultations")
    await session.rejected(grant("consultations"), "consent_already_granted")
    await session.lists(entry(["consultations", "exams"], []))
    await session.checks("exams", expected=True)
    await session.checks("all", expected=False)
    await session.accepted(revoke("exams"), "ConsentRevoked exams")
    await session.rejected(revoke("exams"), "consent_not_granted")
    await session.checks("exams", expected=False)
    missing = [one for one in RECORD_TYPES if one != "consultations"]
    await session.accepted(grant("all"), *(f"ConsentGranted {one}" for one in missing))
    await session.checks("all", expected=True)
    end = datetime.now(UTC) + LASTS
    await session.accepted(grant_until(end), "ConsentGranted exams")
    await session.ends(end)


@asynccontextmanager
async def subscriber(url: str) -> AsyncIterator[Arriving]:
    """Subscribe as any other service would, to everything, with plain aio-pika."""
    arriving: Arriving = asyncio.Queue()
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(names.EVENTS, "#")

        await queue.consume(arriving.put, no_ack=True)
        yield arriving


async def show_events(arriving: Arriving, expected: list[str]) -> None:
    """Show what the subscriber saw; it must be the promised events, in order, and the end."""
    async with asyncio.timeout(EVENTS_WITHIN_S):
        seen = [await arriving.get() for _ in [*expected, "the end"]]
    table = Table(title="What a subscriber to consent.events saw meanwhile", title_justify="left")
    for heading in ("position", "version", "routing key", "time (UTC)"):
        table.add_column(heading, no_wrap=True)
    for message in seen:
        event: dict[str, Any] = json.loads(message.body)
        time_of_day = event["time"][11:23]
        table.add_row(
            str(event["position"]), str(event["streamversion"]), message.routing_key, time_of_day
        )
    console.print(table)
    expect([message.message_id for message in seen[:-1]], expected)
    expect(seen[-1].type, "ConsentExpired")
    expect(arriving.qsize(), 0)


def start(deployment: Deployment) -> None:
    """Prepare a deployment and start its workers."""
    with console.status("migrating, declaring the topology …"):
        deployment.prepare()
    with console.status("starting one worker of each kind …"):
        workers = deployment.start_both()
    for worker in workers:
        console.print(f"{worker.service} runs as process {worker.process.pid}")


async def demo(deployment: Deployment) -> None:
    """Play the session and show the events."""
    async with (
        subscriber(deployment.rabbitmq_url) as arriving,
        ConsentClient.connect(deployment.rabbitmq_url, partitions=PARTITIONS) as client,
    ):
        session = Session(client)
        await play(session)
        await show_events(arriving, session.caused)


def show_how_to_use(deployment: Deployment, management_url: str) -> None:
    """Print what one needs to try it by hand."""
    settings = {
        "RABBITMQ_URL": deployment.rabbitmq_url,
        "EVENT_STORE_URL": deployment.event_store_url,
        "READ_MODEL_URL": deployment.read_model_url,
        "CONSENT_PARTITIONS": str(PARTITIONS),
    }
    plain = Console(highlight=False, markup=False, soft_wrap=True)
    plain.print("\nIn another terminal:\n")
    for name, value in settings.items():
        plain.print(f"  export {name}={shlex.quote(value)}")
    plain.print("  export PATH=$PWD/.venv/bin:$PATH\n")
    key = f"{partition_of(PATIENT, PARTITIONS)}"
    for command in (
        f"consent ask {PATIENT} doctor {DOCTOR} exams",
        f"consent grant {PATIENT} doctor {DOCTOR} exams",
        f"consent list {PATIENT}",
        f"consent check {PATIENT} doctor {DOCTOR} exams",
        f"consent grant {PATIENT} nurse {NURSE} exams --for 10s",
        f"consent revoke {PATIENT} doctor {DOCTOR} all",
        f"consent events {key}",
    ):
        plain.print(f"  {command}")
    plain.print(f"\nThe broker's own pages: {management_url}")
    for worker in deployment.workers:
        url = f"http://127.0.0.1:{worker.http_port}"
        plain.print(f"{worker.service}: {url}/health/ready, {url}/metrics, log {worker.log_file}")
    plain.print("\nCtrl-C stops everything.")


def stop(deployment: Deployment) -> None:
    """Let the workers drain; each must leave with exit code 0."""
    codes = {worker.service: worker.stop() for worker in deployment.workers}
    expect(codes, dict.fromkeys(codes, 0))
    console.print("both workers drained and left with exit code 0")


def main() -> int:
    """Run the demo, or stay up."""
    parser = argparse.ArgumentParser(prog="python -m tests.programs.demo", description=__doc__)
    parser.add_argument("verb", nargs="?", choices=["demo", "up"], default="demo")
    verb = parser.parse_args().verb
    # A shell that starts it in the background has it ignore Ctrl-C's signal.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    began = time.monotonic()
    try:
        with console.status("starting a private RabbitMQ and two PostgreSQL servers …"):
            sandbox = open_sandbox()
        with sandbox, open_deployment(sandbox, "demo", partitions=PARTITIONS) as deployment:
            start(deployment)
            if verb == "up":
                show_how_to_use(deployment, sandbox.broker.management_url)
                signal.pause()
            asyncio.run(demo(deployment))
            stop(deployment)
    except KeyboardInterrupt:
        console.print("stopped")
        return 0
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the surprise to show
        console.print(f"[bold red]surprise:[/] {escape(f'{type(error).__name__}: {error}')}")
        return 1
    console.print(f"[green]as expected[/], in {time.monotonic() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

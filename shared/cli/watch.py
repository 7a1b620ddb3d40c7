"""Shows events as they happen: one line each, for a person or for a program."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from typing import Final

import typer
from pydantic import ValidationError
from rich.console import Console

from shared.cli.ends import subject_of
from shared.cli.terminal import shown, shown_json
from shared.client.subscription import Start, subscribe
from shared.client.subscription_queue import passing_name
from shared.errors import NotHandled
from shared.messages.cloud_event import CloudEvent
from shared.messages.events import ConsentEvent, UnknownEventError
from shared.messages.topic_patterns import EVERYTHING
from shared.rabbitmq.connection import connect
from shared.settings import ClientSettings
from shared.telemetry.logs import set_up_logs
from shared.telemetry.standard_streams import output_is_read
from shared.values.partition import partition_of

STYLES: Final = {
    "asked": ("yellow", "asked by"),
    "granted": ("green", "granted to"),
    "revoked": ("red", "revoked from"),
    "expired": ("red", "expired for"),
    "denied": ("red", "denied to"),
    "withdrawn": ("yellow", "no longer asked by"),
}

console = Console(highlight=False)


def follow(
    settings: ClientSettings,
    patterns: Sequence[str],
    patient_id: str | None,
    places: str,
    *,
    from_origin: bool,
    json: bool,
) -> None:
    """Follow the log in a loop of its own; raises typer.BadParameter for places that are none."""
    positions = read_positions(places)
    start = Start.ORIGIN if from_origin else Start.NOW
    set_up_logs("WARNING", "console")
    asyncio.run(watch(settings, patterns, patient_id, start, positions, json=json))


async def watch(
    settings: ClientSettings,
    patterns: Sequence[str],
    patient_id: str | None,
    start: Start,
    positions: Mapping[int, int],
    *,
    json: bool,
) -> None:
    """Print events until cancelled, or until nobody reads the output any more.

    A partition that `positions` names begins behind its position, the others at `start`.
    Raises what `subscribe` does, and BROKER_ERRORS where the broker is not reached at first.
    """
    line = json_line if json else readable_line

    async def show(event: CloudEvent) -> None:
        if patient_id in {None, event.subject}:
            sys.stdout.write(line(event) + "\n")
            sys.stdout.flush()
            if not output_is_read():
                raise BrokenPipeError

    async def given() -> Mapping[int, int]:
        return positions

    async with connect(settings.rabbitmq_url, name="consent watch"):
        pass  # a URL that is wrong is said at once; a broker that goes away later is waited for
    try:
        await subscribe(
            settings.rabbitmq_url,
            passing_name(settings.rabbitmq_url, "watch"),
            show,
            given,
            patterns=patterns or _patterns_of(patient_id, settings.consent_partitions),
            start=start,
            partitions=settings.consent_partitions,
            attempts=1,
            waits_for=(),
            durable=False,
        )
    except NotHandled as error:
        if not isinstance(error.__cause__, BrokenPipeError):
            raise


def read_positions(text: str) -> dict[int, int]:
    """Read `3=120,0=7`: by partition, the last position seen; raises typer.BadParameter."""
    try:
        pairs = [pair.split("=") for pair in text.split(",") if pair]
        found = {int(partition): int(position) for partition, position in pairs}
    except ValueError:
        found = {-1: -1}
    if any(number < 0 for pair in found.items() for number in pair):
        raise typer.BadParameter("give PARTITION=POSITION, separated by commas, like 3=120,0=7")
    return found


def _patterns_of(patient_id: str | None, partitions: int) -> Sequence[str]:
    return [EVERYTHING if patient_id is None else f"#.{partition_of(patient_id, partitions)}"]


def json_line(event: CloudEvent) -> str:
    """Write an event as it was received; what can't be seen in it is escaped."""
    return shown_json(event.to_json().decode())


def readable_line(event: CloudEvent) -> str:
    """Write an event for a person, in colours where a terminal shows them."""
    with console.capture() as captured:
        place = f"{event.partition}/{event.position}"
        console.print(
            f"[dim]{shown(event.time)}  {place:>8}[/]  {shown(event.subject)}  {_what(event)}",
            soft_wrap=True,
            end="",
        )
    return captured.get()


def _what(event: CloudEvent) -> str:
    try:
        fact: ConsentEvent = event.event()
    except (UnknownEventError, ValidationError):
        return f"{shown(event.type)}, which this version can't read"
    colour, verb = STYLES[fact.fact]
    return f"[{colour}]{verb}[/] {shown(str(fact.grantee))}  {subject_of(fact, '  ')}"

"""When a consent ends, as a person types it: until a day or a moment, or for how long."""

import re
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Final

import typer
from pydantic import TypeAdapter, ValidationError

from shared.messages.events import ConsentAsked, ConsentEvent, ConsentExpired, ConsentGranted
from shared.messages.timestamp import REMEDY, End, timestamp
from shared.messages.validation import details_of
from shared.values.durations import parse_duration

_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_END: Final[TypeAdapter[datetime]] = TypeAdapter(End)
_SECOND: Final = timedelta(seconds=1)


def read_until(text: str) -> datetime:
    """Read a day, which is its beginning by this machine's zone, or a moment with its own zone.

    Raises typer.BadParameter.
    """
    try:
        return _END.validate_python(_beginning(text) or text)
    except ValidationError as error:
        remedy = details_of(error)[0].message
        if remedy == REMEDY:
            remedy = f"must be a day like 2027-01-01, or {remedy.removeprefix('must be ')}"
        raise typer.BadParameter(remedy) from None


def read_for(text: str) -> timedelta:
    """Read how long a consent lasts; raises typer.BadParameter."""
    try:
        duration = parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if not duration:
        raise typer.BadParameter("must be longer than nothing, as 90d")
    return duration


Until = Annotated[
    datetime | None,
    typer.Option(
        parser=read_until,
        metavar="TIME",
        help="End it by itself at this moment, as 2026-03-01T12:00:00Z, or as 2027-01-01, which"
        " is the beginning of that day where you are.",
    ),
]
For = Annotated[
    timedelta | None,
    typer.Option(
        "--for", parser=read_for, metavar="DURATION", help="End it by itself after so long, as 90d."
    ),
]


def end_of(until: datetime | None, for_: timedelta | None) -> datetime | None:
    """Return the end that was given in the one way or the other; raises typer.BadParameter.

    What lasts for some time ends with a whole second, the next one.
    """
    if for_ is None:
        return until
    if until is not None:
        raise typer.BadParameter("give --until or --for, not both")
    now = datetime.now(UTC)
    try:
        end = now + for_
        return _END.validate_python(end + _SECOND - timedelta(microseconds=end.microsecond))
    except (OverflowError, ValidationError):
        remedy = "--for is too long: leave it out for a consent without an end"
        raise typer.BadParameter(remedy) from None


def local(end: datetime) -> str:
    """Write a moment as this machine's clock shows it, with the zone."""
    return end.astimezone().isoformat()


def _beginning(text: str) -> datetime | None:
    """Return when a day begins here; None where the text is none."""
    try:
        if _DAY.fullmatch(text):
            return datetime.combine(date.fromisoformat(text), time.min).astimezone()
    except (ValueError, OverflowError):
        pass
    return None


def subject_of(fact: ConsentEvent, between: str) -> str:
    """Say which records an event is about, and until when, where that has an end."""
    if isinstance(fact, ConsentAsked | ConsentGranted | ConsentExpired) and fact.expires_at:
        return f"{fact.target}{between}until {timestamp(fact.expires_at)}"
    return fact.target

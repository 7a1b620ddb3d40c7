"""Lays a history out on a time axis, for whatever draws it. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from rich.cells import cell_len, set_cell_size

from shared.messages.queries import Change, Ended, History, Period, RequestMade
from shared.messages.timestamp import timestamp
from shared.values.legible import visible

SHORTEST: Final = timedelta(seconds=1)
"""Even where everything happened at once, an axis has a length."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_STEPS: Final = tuple(
    timedelta(seconds=seconds)
    for seconds in (1, 5, 15, 30, 60, 300, 900, 1800, 3600, 10800, 21600, 43200, 86400, 172800)
)
_WEEK: Final = timedelta(weeks=1)
_MONTHS: Final = (1, 3, 6, 12, 24, 60, 120, 600, 1200)


def cut(text: str, room: int) -> str:
    """Shorten a text to so many columns of a terminal."""
    return text if cell_len(text) <= room else set_cell_size(text, room - 1) + "…"


@dataclass(frozen=True, slots=True)
class Tick:
    """A moment to label on the axis."""

    at: datetime
    label: str


@dataclass(frozen=True, slots=True)
class Axis:
    """The time that is drawn."""

    begin: datetime
    end: datetime

    def share(self, at: datetime) -> float:
        """Say how far along the axis a moment is, from 0 to 1."""
        return min(1.0, max(0.0, (at - self.begin) / (self.end - self.begin)))

    def ticks(self, most: int) -> list[Tick]:
        """Find round moments within the axis, at most so many."""
        for step in _STEPS:
            if (self.end - self.begin) / step <= most:
                return list(self._multiples(step, _EPOCH, self._time_format(step)))
        if (self.end - self.begin) / _WEEK <= most:
            return list(self._multiples(_WEEK, _EPOCH + timedelta(days=4), "%Y-%m-%d"))
        for months in _MONTHS:
            if (found := self._months(months)) and len(found) <= most:
                return found
        return []

    def _time_format(self, step: timedelta) -> str:
        if step >= timedelta(days=1):
            return "%Y-%m-%d"
        if self.end - self.begin > timedelta(days=1):
            return "%m-%d %H:%M"
        return "%H:%M:%S" if step < timedelta(minutes=1) else "%H:%M"

    def _multiples(self, step: timedelta, origin: datetime, format_: str) -> Iterator[Tick]:
        at = origin - ((origin - self.begin) // step) * step
        while at <= self.end:
            if at >= self.begin:
                yield Tick(at, at.strftime(format_))
            at += step

    def _months(self, step: int) -> list[Tick]:
        first = (self.begin.year * 12 + self.begin.month - 1) // step * step
        last = self.end.year * 12 + self.end.month - 1
        months = (
            datetime(number // 12, number % 12 + 1, 1, tzinfo=UTC)
            for number in range(first, last + 1, step)
            if number >= 12
        )
        format_ = "%Y" if step >= 12 else "%Y-%m"
        return [Tick(at, at.strftime(format_)) for at in months if self.begin <= at <= self.end]


@dataclass(slots=True)
class Row:
    """What one grantee may see of one record type, over time."""

    grantee: str
    record_type: str
    periods: list[Period] = field(default_factory=list)
    requests: list[RequestMade] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Entry:
    """A change, in words."""

    at: datetime
    version: int
    what: str
    command_id: str = ""
    issued_by: str = ""


@dataclass(frozen=True, slots=True)
class Timeline:
    """A history, ready to be drawn."""

    title: str
    axis: Axis
    now: datetime
    rows: list[Row]
    changes: list[Entry]
    notes: list[str]

    @property
    def shows_what_comes(self) -> bool:
        """Whether the axis goes on behind now, since something is to end."""
        return self.now < self.axis.end


def lay_out(history: History, now: datetime) -> Timeline:
    """Lay out a history, as seen at a moment."""
    changes = sorted(set(_changes(history)), key=lambda entry: (entry.at, entry.version))
    moments = [entry.at for entry in changes] or [now]
    now = max(now, *moments)
    begin = min(*moments, now - SHORTEST)
    return Timeline(
        title=f"Patient {visible(history.patient_id)}, version {history.version}",
        axis=Axis(begin, _end_of_axis(history, begin, now)),
        now=now,
        rows=_rows(history),
        changes=changes,
        notes=list(_notes(history)),
    )


def _end_of_axis(history: History, begin: datetime, now: datetime) -> datetime:
    """Say until when to draw: to the last end to come, as far as a third of all."""
    to_come = [period.until for period in history.periods if not period.ended and period.until]
    return max(now, min(max(to_come, default=now), now + (now - begin) / 2))


def _rows(history: History) -> list[Row]:
    rows: dict[tuple[str, str, str], Row] = {}

    def row(part: Period | RequestMade) -> Row:
        key = (part.entity_name, part.entity_id, part.record_type)
        return rows.setdefault(key, Row(_grantee(part), part.record_type))

    for period in history.periods:
        row(period).periods.append(period)
    for request in history.requests:
        row(request).requests.append(request)
    return [rows[key] for key in sorted(rows)]


def _changes(history: History) -> Iterator[Entry]:
    extensions = {
        (period.entity_name, period.entity_id, period.record_type, period.ended.version)
        for period in history.periods
        if period.ended and period.ended.cause == "extended"
    }
    for period in history.periods:
        key = (period.entity_name, period.entity_id, period.record_type, period.granted.version)
        yield _entry(period.granted, _granting(period, extends=key in extensions))
        if period.ended is not None and period.ended.cause != "extended":
            yield _entry(period.ended, _ending(period, period.ended))
    for ask in history.requests:
        pending = ", pending" if ask.answered is None else ""
        end = f" {_until(ask.until)}" if ask.until else ""
        yield _entry(ask.asked, f"{_grantee(ask)} asked for {ask.record_type}{end}{pending}")
        if ask.answered is not None and ask.answered.how != "granted":
            yield _entry(ask.answered, _answering(ask))


def _entry(change: Change | Ended, what: str) -> Entry:
    """Write a change down; an end that is not recorded yet comes before what happens then."""
    command_id = str(change.command_id or "")
    return Entry(change.at, change.version or 0, what, command_id, visible(change.issued_by or ""))


def _granting(period: Period, *, extends: bool) -> str:
    if extends:
        end = _until(period.until) if period.until else "without end"
        return f"{period.record_type} extended for {_grantee(period)} {end}"
    end = f" {_until(period.until)}" if period.until else ""
    return f"{period.record_type} granted to {_grantee(period)}{end}"


def _ending(period: Period, ended: Ended) -> str:
    if ended.cause == "revoked":
        return f"{period.record_type} revoked from {_grantee(period)}"
    return f"{period.record_type} ended for {_grantee(period)}, as granted"


def _answering(ask: RequestMade) -> str:
    if ask.answered and ask.answered.how == "denied":
        return f"{ask.record_type} denied to {_grantee(ask)}"
    return f"{_grantee(ask)} no longer asks for {ask.record_type}"


def _until(end: datetime) -> str:
    return f"until {end:%Y-%m-%d %H:%M:%S}"


def _notes(history: History) -> Iterator[str]:
    if history.known_since is not None:
        yield f"What ended up to {timestamp(history.known_since)} was purged."
    elif not history.complete:
        yield "Some of the past is missing, until the read model is rebuilt."


def _grantee(part: Period | RequestMade) -> str:
    return f"{part.entity_name} {visible(part.entity_id)}"

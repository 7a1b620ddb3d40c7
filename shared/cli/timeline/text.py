"""Draws a time line in a terminal: bars on one axis, and the changes in words below. Pure."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from shared.cli.timeline.layout import Entry, Row, Timeline, cut
from shared.messages.queries import Period

NARROW: Final = 64
"""Below, a grantee's name gets a line of its own."""
TICK_EVERY: Final = 13
MOST_CHANGES: Final = 40
SHORT_ID: Final = 8


@dataclass(frozen=True, slots=True)
class Glyphs:
    """What a time line is drawn with; each means something without its colour too."""

    in_force: str
    to_come: str
    on: str
    revoked: str
    end: str
    moment: str
    asked: str
    waiting: str
    axis: str
    tick: str


UNICODE: Final = Glyphs("━", "╌", "▶", "┫", "┤", "╋", "?", "┄", "─", "┬")
ASCII: Final = Glyphs("=", "~", ">", "|", "]", "+", "?", ".", "-", "+")

Cells = list[tuple[str, str]]
"""A line of a drawing: what stands in each column, and its style."""


def draw(timeline: Timeline, width: int, glyphs: Glyphs = UNICODE) -> RenderableType:
    """Draw a time line that is as wide as a terminal."""
    title = Text(timeline.title, style="bold")
    notes = [Text(note, style="yellow") for note in timeline.notes]
    if not timeline.rows:
        return Group(title, Text("nothing was ever granted or asked"), *notes)
    chart = Group(*_chart(timeline, width, glyphs))
    return Group(title, *notes, Text(), chart, Text(), _list_of_changes(timeline, width))


def _chart(timeline: Timeline, width: int, glyphs: Glyphs) -> Iterator[Text]:
    indent = _label_width(timeline, width)
    columns = max(10, width - indent - 1)
    types = max(cell_len(row.record_type) for row in timeline.rows)
    for line in _axis(timeline, columns, glyphs):
        yield Text(" " * indent, no_wrap=True) + line
    before = ""
    for row in timeline.rows:
        if width < NARROW and row.grantee != before:
            yield Text(row.grantee, style="bold", no_wrap=True, overflow="ellipsis")
        name = "" if width < NARROW or row.grantee == before else row.grantee
        label = _label(name, row.record_type, indent - types - 2, indent)
        yield label + _bar(row, timeline, columns, glyphs)
        before = row.grantee
    yield _legend(timeline, glyphs)


def _label_width(timeline: Timeline, width: int) -> int:
    types = max(cell_len(row.record_type) for row in timeline.rows)
    if width < NARROW:
        return types + 4
    return min(max(cell_len(row.grantee) for row in timeline.rows), width // 4) + types + 4


def _label(name: str, record_type: str, room: int, indent: int) -> Text:
    label = Text(set_cell_size(cut(name, room - 2), room), style="bold", no_wrap=True)
    return label.append(set_cell_size(record_type, indent - room), style="not bold")


def _bar(row: Row, timeline: Timeline, columns: int, glyphs: Glyphs) -> Text:
    """Draw one row; what is drawn later in here hides what was before."""
    cells: Cells = [(" ", "")] * columns

    def at(moment: datetime) -> int:
        return round(timeline.axis.share(moment) * (columns - 1))

    now = at(timeline.now)
    for ask in row.requests:
        until = now + 1 if ask.answered is None else at(ask.answered.at)
        cells[at(ask.asked.at) : until] = [(glyphs.waiting, "yellow")] * (until - at(ask.asked.at))
    for period in row.periods:
        if period.ended is None:
            _draw_on(cells, period, timeline, at, glyphs)
        else:
            _draw_over(cells, period, at, glyphs)
    for ask in row.requests:
        cells[at(ask.asked.at)] = (glyphs.asked, "bold yellow")
    for period in row.periods:
        over = period.ended is not None and period.ended.cause != "extended"
        if over and period.ended and at(period.ended.at) <= at(period.granted.at):
            cells[at(period.granted.at)] = (glyphs.moment, "red")
    return Text.assemble(*cells, no_wrap=True)


def _draw_over(cells: Cells, period: Period, at: Callable[[datetime], int], glyphs: Glyphs) -> None:
    """Draw a period that has ended; one that was extended goes on with the next."""
    assert period.ended is not None  # noqa: S101 - the caller looked
    first = at(period.granted.at)
    last = max(first, at(period.ended.at))
    cells[first : last + 1] = [(glyphs.in_force, "green")] * (last + 1 - first)
    if period.ended.cause == "revoked":
        cells[last] = (glyphs.revoked, "red")
    elif period.ended.cause == "expired":
        cells[last] = (glyphs.end, "red")


def _draw_on(
    cells: Cells,
    period: Period,
    timeline: Timeline,
    at: Callable[[datetime], int],
    glyphs: Glyphs,
) -> None:
    """Draw a period that is in force: up to now, and on to its end, or to where the axis ends."""
    first, now = at(period.granted.at), at(timeline.now)
    ends_here = period.until is not None and period.until <= timeline.axis.end
    last = max(now, at(period.until)) if ends_here and period.until else len(cells) - 1
    cells[first : now + 1] = [(glyphs.in_force, "green")] * (now + 1 - first)
    cells[now + 1 : last + 1] = [(glyphs.to_come, "green")] * (last - now)
    cells[last] = (glyphs.end, "yellow") if ends_here else (glyphs.on, "bold green")


def _axis(timeline: Timeline, columns: int, glyphs: Glyphs) -> Iterator[Text]:
    """Draw the labels and the line with its ticks; a label that finds no room is left out."""
    axis, now = timeline.axis, round(timeline.axis.share(timeline.now) * (columns - 1))
    labels, line = [" "] * columns, [glyphs.axis] * columns

    def put(column: int, label: str, begin: int) -> None:
        around = labels[max(0, begin - 2) : begin + len(label) + 2]
        if begin + len(label) <= columns and not "".join(around).strip():
            labels[begin : begin + len(label)] = label
            line[column] = glyphs.tick

    put(now, "now", min(now, columns - len("now")))
    begin = f"{axis.begin:%Y-%m-%d %H:%M}"
    put(0, begin[: max(0, min(now, columns - len("now")) - 2)], 0)
    if timeline.shows_what_comes:
        end = f"{axis.end:%Y-%m-%d}"
        put(columns - 1, end, columns - len(end))
    for tick in axis.ticks(max(1, columns // TICK_EVERY)):
        column = round(axis.share(tick.at) * (columns - 1))
        put(column, tick.label, column)
    yield Text("".join(labels), style="dim", no_wrap=True)
    yield Text("".join(line), style="dim", no_wrap=True)


def _legend(timeline: Timeline, glyphs: Glyphs) -> Text:
    legend = Text.assemble(
        (glyphs.in_force, "green"), " in force  ",
        (glyphs.on, "bold green"), " still  ",
        (glyphs.revoked, "red"), " revoked  ",
        (glyphs.asked, "bold yellow"), " asked  ",
        (glyphs.waiting, "yellow"), " waiting  ",
        (glyphs.moment, "red"), " granted and over",
    )  # fmt: skip
    if any(period.until for row in timeline.rows for period in row.periods):
        legend.append(f"\n{glyphs.to_come}", "green").append(" to come  ")
        legend.append(glyphs.end, "red").append(" its own end")
    legend.stylize("dim")
    return legend


def _list_of_changes(timeline: Timeline, width: int) -> RenderableType:
    shown = timeline.changes[-MOST_CHANGES:]
    table = _narrow(shown) if width < NARROW else _wide(shown, whole_ids=width >= 2 * NARROW)
    hidden = len(timeline.changes) - len(shown)
    if not hidden:
        return table
    return Group(Text(f"… {hidden:,} earlier changes; --json lists them all", style="dim"), table)


def _wide(changes: Sequence[Entry], *, whole_ids: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("when (UTC)", no_wrap=True)
    table.add_column("what", overflow="fold")
    table.add_column("command", no_wrap=True)
    table.add_column("issued by", overflow="fold")
    for entry in changes:
        table.add_row(
            Text(_when(entry)),
            Text(entry.what),
            Text(entry.command_id if whole_ids else entry.command_id[:SHORT_ID], style="dim"),
            Text(entry.issued_by, style="dim"),
        )
    return table


def _narrow(changes: Sequence[Entry]) -> Group:
    lines = []
    for entry in changes:
        command = f", command {entry.command_id[:SHORT_ID]}" if entry.command_id else ""
        issuer = f", issued by {entry.issued_by}" if entry.issued_by else ""
        lines += [
            Text(f"{_when(entry)} UTC{command}", style="dim"),
            Text(f"  {entry.what}{issuer}"),
        ]
    return Group(*lines)


def _when(entry: Entry) -> str:
    return f"{entry.at:%Y-%m-%d %H:%M:%S}"

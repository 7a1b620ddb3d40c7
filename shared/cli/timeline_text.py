"""Draws a time line in a terminal: bars on one axis, and the changes in words below. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from shared.cli.timeline import Axis, Entry, Row, Timeline, cut
from shared.values.legible import visible

NARROW: Final = 64
"""Below, a grantee's name gets a line of its own."""
TICK_EVERY: Final = 13
MOST_CHANGES: Final = 40
SHORT_ID: Final = 8


@dataclass(frozen=True, slots=True)
class Glyphs:
    """What a time line is drawn with; each means something without its colour too."""

    in_force: str
    now: str
    revoked: str
    moment: str
    asked: str
    waiting: str
    axis: str
    tick: str


UNICODE: Final = Glyphs("━", "▶", "┫", "╋", "?", "┄", "─", "┬")
ASCII: Final = Glyphs("=", ">", "|", "+", "?", ".", "-", "+")


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
    for line in _axis(timeline.axis, columns, glyphs):
        yield Text(" " * indent, no_wrap=True) + line
    before = ""
    for row in timeline.rows:
        if width < NARROW and row.grantee != before:
            yield Text(row.grantee, style="bold", no_wrap=True, overflow="ellipsis")
        name = "" if width < NARROW or row.grantee == before else row.grantee
        label = _label(name, row.record_type, indent - types - 2, indent)
        yield label + _bar(row, timeline.axis, columns, glyphs)
        before = row.grantee
    yield _legend(glyphs)


def _label_width(timeline: Timeline, width: int) -> int:
    types = max(cell_len(row.record_type) for row in timeline.rows)
    if width < NARROW:
        return types + 4
    return min(max(cell_len(row.grantee) for row in timeline.rows), width // 4) + types + 4


def _label(name: str, record_type: str, room: int, indent: int) -> Text:
    label = Text(set_cell_size(cut(name, room - 2), room), style="bold", no_wrap=True)
    return label.append(set_cell_size(record_type, indent - room), style="not bold")


def _bar(row: Row, axis: Axis, columns: int, glyphs: Glyphs) -> Text:
    """Draw one row; what is drawn later in here hides what was before."""
    cells: list[tuple[str, str]] = [(" ", "")] * columns

    def at(moment: datetime) -> int:
        return round(axis.share(moment) * (columns - 1))

    for ask in row.requests:
        until = columns if ask.answered is None else at(ask.answered.at)
        cells[at(ask.asked.at) : until] = [(glyphs.waiting, "yellow")] * (until - at(ask.asked.at))
    for period in row.periods:
        first = at(period.granted.at)
        last = columns - 1 if period.revoked is None else at(period.revoked.at)
        cells[first : last + 1] = [(glyphs.in_force, "green")] * (last + 1 - first)
        cells[last] = (glyphs.now, "bold green") if not period.revoked else (glyphs.revoked, "red")
    for ask in row.requests:
        cells[at(ask.asked.at)] = (glyphs.asked, "bold yellow")
    for period in row.periods:
        if period.revoked is not None and at(period.granted.at) == at(period.revoked.at):
            cells[at(period.granted.at)] = (glyphs.moment, "red")
    return Text.assemble(*cells, no_wrap=True)


def _axis(axis: Axis, columns: int, glyphs: Glyphs) -> Iterator[Text]:
    """Draw the labels and the line with its ticks; a label that finds no room is left out."""
    marks = [(0, f"{axis.begin:%Y-%m-%d %H:%M}")]
    end = (columns - len("now"), "now")
    for tick in axis.ticks(max(1, columns // TICK_EVERY)):
        column = round(axis.share(tick.at) * (columns - 1))
        last, label = marks[-1]
        if last + len(label) + 2 <= column and column + len(tick.label) + 2 <= end[0]:
            marks.append((column, tick.label))
    labels = "".join(
        set_cell_size(label, following - column)
        for (column, label), (following, _) in pairwise([*marks, end])
    )
    line = [glyphs.axis] * columns
    for column in [*(column for column, _ in marks), columns - 1]:
        line[column] = glyphs.tick
    yield Text(labels + end[1], style="dim", no_wrap=True)
    yield Text("".join(line), style="dim", no_wrap=True)


def _legend(glyphs: Glyphs) -> Text:
    legend = Text.assemble(
        (glyphs.in_force, "green"), " in force  ",
        (glyphs.now, "bold green"), " still  ",
        (glyphs.revoked, "red"), " revoked  ",
        (glyphs.asked, "bold yellow"), " asked  ",
        (glyphs.waiting, "yellow"), " waiting  ",
        (glyphs.moment, "red"), " granted and revoked",
    )  # fmt: skip
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
        command_id = str(entry.change.command_id)
        table.add_row(
            Text(_when(entry)),
            Text(entry.what),
            Text(command_id if whole_ids else command_id[:SHORT_ID], style="dim"),
            Text(visible(entry.change.issued_by or ""), style="dim"),
        )
    return table


def _narrow(changes: Sequence[Entry]) -> Group:
    lines = []
    for entry in changes:
        issuer = f", issued by {visible(entry.change.issued_by)}" if entry.change.issued_by else ""
        lines += [
            Text(
                f"{_when(entry)} UTC, command {str(entry.change.command_id)[:SHORT_ID]}",
                style="dim",
            ),
            Text(f"  {entry.what}{issuer}"),
        ]
    return Group(*lines)


def _when(entry: Entry) -> str:
    return f"{entry.change.at:%Y-%m-%d %H:%M:%S}"

"""Draws a time line as a picture, in SVG, that stands on its own. Pure."""

from typing import Final
from xml.etree.ElementTree import Element, SubElement, tostring

from shared.cli.timeline.layout import Row, Timeline, cut
from shared.messages.queries import Change, Ended, Period, RequestMade
from shared.messages.timestamp import timestamp
from shared.values.legible import visible

WIDTH: Final = 1000
LABELS: Final = 340
RIGHT: Final = 24
TOP: Final = 84
ROW: Final = 28
BAR: Final = 14
MOST_TICKS: Final = 7
LONGEST_NAME: Final = 24

INK, FAINT, LINE = "#1f2933", "#66727f", "#dde3e9"
GREEN, RED, AMBER = "#2f9e60", "#c8413b", "#d18700"
FONT: Final = "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif"


def picture(timeline: Timeline) -> str:
    """Draw a time line; whoever points at a bar or a mark is told who did it, when and how."""
    height = TOP + ROW * max(1, len(timeline.rows)) + 72
    svg = Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {WIDTH} {height}",
            "width": str(WIDTH),
            "height": str(height),
            "font-family": FONT,
            "font-size": "13",
            "role": "img",
        },
    )
    _named(svg, timeline.title)
    _draw(svg, "rect", width=WIDTH, height=height, fill="#ffffff")
    _text(svg, 24, 32, timeline.title, size=18, weight="600")
    for number, note in enumerate(timeline.notes or ["times are in UTC"]):
        _text(svg, 24, 52 + 16 * number, note, fill=FAINT, size=12)
    _draw_axis(svg, timeline, height - 62)
    before = ""
    for number, row in enumerate(timeline.rows):
        _draw_row(svg, timeline, row, TOP + ROW * number, named=row.grantee != before)
        before = row.grantee
    if not timeline.rows:
        _text(svg, 24, TOP + 18, "nothing was ever granted or asked", fill=FAINT)
    _draw_legend(svg, timeline, height - 24)
    return tostring(svg, encoding="unicode") + "\n"


def _draw_axis(svg: Element, timeline: Timeline, bottom: int) -> None:
    axis, now = timeline.axis, _x(timeline, timeline.axis.share(timeline.now))
    free_from = LABELS + 126.0
    _text(svg, LABELS, TOP - 14, f"{axis.begin:%Y-%m-%d %H:%M}", fill=FAINT, size=11)
    _text(svg, now, TOP - 14, "now", fill=FAINT, size=11, anchor="end")
    for x, stroke in ((float(LABELS), LINE), (float(WIDTH - RIGHT), LINE), (now, FAINT)):
        _draw(svg, "line", x1=x, x2=x, y1=TOP - 8, y2=bottom, stroke=stroke)
    for tick in axis.ticks(MOST_TICKS):
        x = _x(timeline, axis.share(tick.at))
        if free_from <= x <= WIDTH - RIGHT - 70 and not now - 70 < x < now + 45:
            _draw(svg, "line", x1=x, x2=x, y1=TOP - 8, y2=bottom, stroke=LINE)
            _text(svg, x, TOP - 14, tick.label, fill=FAINT, size=11, anchor="middle")
            free_from = x + 90


def _draw_row(svg: Element, timeline: Timeline, row: Row, top: int, *, named: bool) -> None:
    middle = top + ROW // 2
    if named:
        _draw(svg, "line", x1=24, x2=WIDTH - RIGHT, y1=top, y2=top, stroke=LINE)
        name = _text(svg, 24, middle + 4, cut(row.grantee, LONGEST_NAME), weight="600")
        _named(name, row.grantee)
    _text(svg, LABELS - 14, middle + 4, row.record_type, fill=FAINT, anchor="end")
    for ask in row.requests:
        _draw_waiting(svg, timeline, ask, middle)
    for period in row.periods:
        _draw_period(svg, timeline, period, middle)
    for ask in row.requests:
        _draw_ask(svg, timeline, ask, middle)


def _draw_period(svg: Element, timeline: Timeline, period: Period, middle: float) -> None:
    begin = _x(timeline, timeline.axis.share(period.granted.at))
    if period.ended is None:
        end = _x(timeline, timeline.axis.share(timeline.now))
        _draw_what_comes(svg, timeline, period, middle)
    else:
        end = max(begin + 2, _x(timeline, timeline.axis.share(period.ended.at)))
    top = middle - BAR / 2
    width = end - begin
    bar = _draw(svg, "rect", x=begin, y=top, width=width, height=BAR, fill=GREEN, opacity=0.85)
    _named(bar, _told(period))
    if period.ended is not None and period.ended.cause != "extended":
        _draw_edge(svg, end, middle, RED if period.ended.cause == "revoked" else INK)


def _told(period: Period) -> str:
    told = f"granted {_when_and_by_whom(period.granted)}"
    if period.until is not None:
        told += f"\nuntil {timestamp(period.until)}"
    if period.ended is None:
        return f"{told}\nin force"
    return f"{told}\n{period.ended.cause} {_when_and_by_whom(period.ended)}"


def _draw_what_comes(svg: Element, timeline: Timeline, period: Period, middle: float) -> None:
    """Draw the time from now to the end of a period, or to where the axis ends."""
    begin, end = _x(timeline, timeline.axis.share(timeline.now)), float(WIDTH - RIGHT)
    ends_here = period.until is not None and period.until <= timeline.axis.end
    if ends_here and period.until:
        end = max(begin, _x(timeline, timeline.axis.share(period.until)))
    if timeline.shows_what_comes:
        _draw_to_come(svg, begin, end, middle)
    if ends_here:
        _draw_edge(svg, end, middle, INK)
    else:
        _draw_arrow(svg, end, middle)


def _draw_to_come(svg: Element, begin: float, end: float, middle: float) -> None:
    top, width = middle - BAR / 2 + 1, end - begin
    bar = _draw(svg, "rect", x=begin, y=top, width=width, height=BAR - 2, fill=GREEN)
    for name, value in (("fill-opacity", "0.15"), ("stroke", GREEN), ("stroke-dasharray", "3 3")):
        bar.set(name, value)


def _draw_edge(svg: Element, x: float, middle: float, fill: str) -> None:
    _draw(svg, "rect", x=x - 2, y=middle - BAR / 2 - 3, width=3, height=BAR + 6, fill=fill)


def _draw_arrow(svg: Element, x: float, middle: float) -> None:
    points = f"{x:g},{middle - 10:g} {x + 14:g},{middle:g} {x:g},{middle + 10:g}"
    _draw(svg, "polygon", points=points, fill=GREEN)


def _draw_waiting(svg: Element, timeline: Timeline, ask: RequestMade, middle: float) -> None:
    begin = _x(timeline, timeline.axis.share(ask.asked.at))
    until = timeline.now if ask.answered is None else ask.answered.at
    end = _x(timeline, timeline.axis.share(until))
    line = _draw(svg, "line", x1=begin, x2=end, y1=middle, y2=middle, stroke=AMBER)
    line.set("stroke-width", "2")
    line.set("stroke-dasharray", "3 4")


def _draw_ask(svg: Element, timeline: Timeline, ask: RequestMade, middle: float) -> None:
    x = _x(timeline, timeline.axis.share(ask.asked.at))
    end = f"\nuntil {timestamp(ask.until)}" if ask.until else ""
    answer = "pending"
    if ask.answered is not None:
        answer = f"{ask.answered.how} {_when_and_by_whom(ask.answered)}"
    group = SubElement(svg, "g")
    _named(group, f"asked {_when_and_by_whom(ask.asked)}{end}\n{answer}")
    _draw(group, "circle", cx=x, cy=middle, r=7.5, fill=AMBER, stroke="#ffffff")
    _text(group, x, middle + 4, "?", fill="#ffffff", size=11, weight="700", anchor="middle")


def _draw_legend(svg: Element, timeline: Timeline, middle: float) -> None:
    _draw(svg, "rect", x=LABELS, y=middle - 7, width=30, height=BAR, fill=GREEN, opacity=0.85)
    _text(svg, LABELS + 38, middle + 4, "in force", fill=FAINT)
    _draw_edge(svg, LABELS + 112, middle, RED)
    _text(svg, LABELS + 120, middle + 4, "revoked", fill=FAINT)
    _draw_arrow(svg, LABELS + 190, middle)
    _text(svg, LABELS + 212, middle + 4, "still in force", fill=FAINT)
    _draw(svg, "circle", cx=LABELS + 320, cy=middle, r=7.5, fill=AMBER)
    _text(
        svg, LABELS + 320, middle + 4, "?", fill="#ffffff", size=11, weight="700", anchor="middle"
    )
    _text(svg, LABELS + 334, middle + 4, "asked", fill=FAINT)
    line = _draw(svg, "line", x1=LABELS + 390, x2=LABELS + 420, y1=middle, y2=middle, stroke=AMBER)
    line.set("stroke-width", "2")
    line.set("stroke-dasharray", "3 4")
    _text(svg, LABELS + 428, middle + 4, "waiting for an answer", fill=FAINT)
    if any(period.until for row in timeline.rows for period in row.periods):
        _draw_to_come(svg, 24, 54, middle)
        _text(svg, 62, middle + 4, "to come", fill=FAINT)
        _draw_edge(svg, 138, middle, INK)
        _text(svg, 146, middle + 4, "its own end", fill=FAINT)


def _x(timeline: Timeline, share: float) -> float:
    return round(LABELS + share * (WIDTH - RIGHT - LABELS), 2)


def _when_and_by_whom(change: Change | Ended) -> str:
    issuer = f", issued by {visible(change.issued_by)}" if change.issued_by else ""
    command = f" by command {change.command_id}" if change.command_id else ""
    return f"{timestamp(change.at)}{command}{issuer}"


def _draw(parent: Element, tag: str, **attributes: float | str) -> Element:
    return SubElement(parent, tag, {name: str(value) for name, value in attributes.items()})


def _named(element: Element, text: str) -> None:
    title = Element("title")
    title.text = _writable(text)
    element.insert(0, title)


def _text(
    parent: Element,
    x: float,
    y: float,
    text: str,
    *,
    fill: str = INK,
    size: int = 13,
    weight: str = "400",
    anchor: str = "start",
) -> Element:
    element = _draw(parent, "text", x=x, y=y, fill=fill)
    element.set("font-size", str(size))
    element.set("font-weight", weight)
    element.set("text-anchor", anchor)
    element.text = _writable(text)
    return element


def _writable(text: str) -> str:
    """Leave out what XML can't carry; `issued by` may be any text."""
    return "".join(
        character if character >= " " or character == "\n" else "\ufffd" for character in text
    )

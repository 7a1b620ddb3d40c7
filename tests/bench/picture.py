"""Draws, for each figure that has a goal, how far it is from it: an SVG that stands alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from tests.bench.bench import TIMES, Figure, Section

ROW = 26
LEFT, BARS, RIGHT = 330, 420, 210
TOP, BOTTOM = 62, 16
MOST = 2.0
"""Where the scale ends: twice as good as it has to be."""
GREEN, RED = "#2e7d32", "#c62828"


@dataclass(frozen=True)
class Bar:
    """One row: 1 is what has to be reached, more is better."""

    name: str
    share: float
    label: str
    reached: bool


def bars(sections: Sequence[Section]) -> list[Bar]:
    """Make a bar of every figure whose goal can be told."""
    figures = [figure for section in sections for figure in section.figures]
    return [bar for figure in figures if (bar := _bar(figure))]


def draw(sections: Sequence[Section], date: str) -> str:
    """Return the picture as text."""
    rows = bars(sections)
    width, height = LEFT + BARS + RIGHT, TOP + ROW * len(rows) + BOTTOM
    svg = Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        width=str(width),
        height=str(height),
    )
    svg.set("font-family", "sans-serif")
    svg.set("font-size", "13")
    SubElement(svg, "rect", width="100%", height="100%", fill="white")
    _text(svg, 16, 24, "Consent: figures against what they have to reach", weight="bold")
    _text(svg, 16, 44, f"{date}; the line is the goal, further right is better", fill="#666")
    for number, bar in enumerate(rows):
        _draw_bar(svg, TOP + ROW * number, bar)
    goal = LEFT + BARS / MOST
    line = SubElement(svg, "line", x1=f"{goal:g}", x2=f"{goal:g}", y1=str(TOP - 6))
    line.set("y2", str(height - BOTTOM))
    line.set("stroke", "#333")
    line.set("stroke-dasharray", "4 3")
    indent(svg)
    return tostring(svg, encoding="unicode") + "\n"


def _bar(figure: Figure) -> Bar | None:
    goal, summary, reached = figure.goal, figure.summary(), figure.reached()
    if goal is None or summary is None or reached is None:
        return None
    ratio, median = figure.ratio() or 0.0, summary[0]
    shares = [
        *([ratio / goal.at_least] if goal.at_least else []),
        *([goal.at_most / ratio] if goal.at_most and ratio else []),
        *([median / goal.no_less_than] if goal.no_less_than else []),
        *([goal.no_more_than / max(median, 1e-9)] if goal.no_more_than else []),
    ]
    compared = f"{ratio:.2f}{TIMES}, " if figure.limit else ""
    label = f"{median:,.4g} {figure.unit} ({compared}{goal})"
    return Bar(figure.name, min(shares, default=0.0), label, reached)


def _draw_bar(svg: Element, y: int, bar: Bar) -> None:
    colour = GREEN if bar.reached else RED
    length = BARS * min(bar.share, MOST) / MOST
    _text(svg, LEFT - 8, y + 16, bar.name, anchor="end")
    rect = SubElement(svg, "rect", x=str(LEFT), y=str(y + 4), height=str(ROW - 8), fill=colour)
    rect.set("width", f"{max(length, 1):.1f}")
    _text(svg, LEFT + BARS + 8, y + 16, bar.label, fill="#444", size="11")


def _text(
    svg: Element,
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    fill: str = "#111",
    weight: str = "normal",
    size: str = "13",
) -> None:
    text = SubElement(svg, "text", x=f"{x:g}", y=f"{y:g}", fill=fill)
    text.set("text-anchor", anchor)
    text.set("font-weight", weight)
    text.set("font-size", size)
    text.text = words

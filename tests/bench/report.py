"""Shows the figures to people, and writes them for programs."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.bench.bench import TIMES, Figure, Section
from tests.bench.machine import Facts
from tests.bench.picture import draw

FOLDER = Path("bench-results")
WIDTH = 130


def show(machine: Facts, sections: Sequence[Section], *, quick: bool) -> None:
    """Print tables on stdout."""
    console = Console(width=None if Console().is_terminal else WIDTH, highlight=False)
    for section in sections:
        console.print(_table(section))
        for line in section.how:
            console.print(f"• {line}", style="dim", markup=False)
        console.print()
    facts = ", ".join(f"{name} {value}" for name, value in machine.items())
    console.print(facts, style="dim", markup=False)
    if quick:
        console.print("Quick: too little work for figures to quote.", style="yellow")


def write(machine: Facts, sections: Sequence[Section], *, quick: bool) -> list[Path]:
    """Write everything as JSON, and a picture; return where."""
    FOLDER.mkdir(exist_ok=True)
    stem = f"bench-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    content = {"quick": quick, "machine": machine, "sections": [_json(one) for one in sections]}
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    paths = [FOLDER / f"{stem}.json", FOLDER / f"{stem}.svg"]
    for path, body in zip(paths, (text, draw(sections, str(machine["date"]))), strict=True):
        path.write_text(body, encoding="utf-8")
    return paths


def _table(section: Section) -> Table:
    table = Table(title=section.title, title_justify="left", title_style="bold")
    table.add_column("figure", no_wrap=True)
    table.add_column("median", justify="right")
    table.add_column("min to max", justify="right")
    table.add_column("unit")
    table.add_column("limit", justify="right")
    table.add_column("ratio", justify="right")
    table.add_column("to reach", justify="right")
    table.add_column("")
    for figure in section.figures:
        table.add_row(*_row(figure))
    return table


def _row(figure: Figure) -> list[str | Text]:
    summary = figure.summary()
    if summary is None:
        return [figure.name, "not measured", "", figure.unit]
    middle, least, most = summary
    spread = f"{number(least)} to {number(most)}" if len(figure.values) > 1 else ""
    limit, ratio = figure.limit_median(), figure.ratio()
    return [
        figure.name,
        number(middle),
        spread,
        figure.unit,
        "" if limit is None else number(limit),
        "" if ratio is None else f"{ratio:.2f}{TIMES}",
        str(figure.goal or ""),
        _verdict(figure.reached()),
    ]


def _verdict(reached: bool | None) -> str | Text:
    if reached is None:
        return ""
    return Text("✓", style="green") if reached else Text("✗", style="red")


def number(value: float) -> str:
    """Write three digits that matter, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _json(section: Section) -> dict[str, Any]:
    return {
        "title": section.title,
        "how": list(section.how),
        "figures": [_figure_json(one) for one in section.figures],
    }


def _figure_json(figure: Figure) -> dict[str, Any]:
    median, least, most = figure.summary() or (None, None, None)
    return {
        "name": figure.name,
        "unit": figure.unit,
        "median": median,
        "min": least,
        "max": most,
        "values": list(figure.values),
        "limit": figure.limit_median(),
        "limit_values": list(figure.limit),
        "ratio": figure.ratio(),
        "to_reach": str(figure.goal) if figure.goal else None,
        "reached": figure.reached(),
    }

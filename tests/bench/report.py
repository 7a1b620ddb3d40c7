"""Shows the figures to people, and writes them for programs."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.bench import Figure, Section
from tests.bench.machine import Facts

FOLDER = Path("bench-results")


def show(machine: Facts, sections: Sequence[Section], *, quick: bool) -> None:
    """Print tables on stdout."""
    console = Console(width=None if Console().is_terminal else 100, highlight=False)
    for section in sections:
        console.print(_table(section))
        for line in section.how:
            console.print(f"• {line}", style="dim")
        console.print()
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()), style="dim")
    if quick:
        console.print("Quick: too little work for figures to quote.", style="yellow")


def write(machine: Facts, sections: Sequence[Section], *, quick: bool) -> Path:
    """Write everything as JSON, and return where."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"bench-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    content = {"quick": quick, "machine": machine, "sections": [_json(one) for one in sections]}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _table(section: Section) -> Table:
    table = Table(title=section.title, title_justify="left", title_style="bold")
    table.add_column("figure")
    for name in ("median", "min", "max"):
        table.add_column(name, justify="right")
    table.add_column("unit")
    table.add_column("runs", justify="right")
    for figure in section.figures:
        table.add_row(*_row(figure))
    return table


def _row(figure: Figure) -> list[str]:
    summary = figure.summary()
    values = [_number(one) for one in summary] if summary else ["not measured", "", ""]
    if len(figure.values) == 1:
        values[1:] = ["", ""]
    return [figure.name, *values, figure.unit, str(len(figure.values))]


def _number(value: float) -> str:
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
    }

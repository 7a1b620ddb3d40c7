"""Shows on stderr how far a rebuild is: events, rate, time left; no bar where nobody watches."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

RATE_OVER_S: Final = 10.0
"""The rate, and with it the time left, is that of the last seconds."""


class RateColumn(ProgressColumn):
    """Events per second."""

    def render(self, task: Task) -> Text:
        """Write the rate; nothing before there is one."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "", style="progress.data.speed")


@dataclass
class Progress:
    """Told by a rebuild how far it is."""

    bar: Bar
    events: int = 0
    """Projected so far."""
    _said: str = ""

    def expect(self, events: int) -> None:
        """So many events more are to be projected, as is known now."""
        if not self.bar.task_ids:
            self.bar.add_task("events", total=0)
        self.bar.update(self.bar.task_ids[0], total=self.events + events)

    def advance(self, events: int) -> None:
        """So many were projected."""
        self.events += events
        self.bar.update(self.bar.task_ids[0], completed=self.events)

    def say(self, line: str) -> None:
        """Say what is going on besides, or why nothing moves; once."""
        if line != self._said:
            self.bar.console.print(escape(line), soft_wrap=True, highlight=False)
        self._said = line


@contextmanager
def show_progress(console: Console | None = None) -> Iterator[Progress]:
    """Show a bar as long as the rebuild takes, on a terminal."""
    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.completed:,} of {task.total:,} events"),
        BarColumn(),
        RateColumn(),
        TimeRemainingColumn(),
    )
    bar = Bar(
        *columns,
        console=console,
        disable=not console.is_terminal,
        speed_estimate_period=RATE_OVER_S,
        refresh_per_second=4,
    )
    with bar:
        yield Progress(bar)

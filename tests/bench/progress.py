"""Tells on stderr what is going on, and how far it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Tell = Callable[[int], None]


class Steps:
    """One line per step; redrawn seldom, since it competes with what is measured."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Tell]:
        """Show a step while it goes on; yields what to call with how much is done."""
        if not self._console.is_terminal:
            self._console.print(f"{name} …")
            yield lambda _: None
            return
        columns = [TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
        if total is not None:
            columns.insert(2, MofNCompleteColumn())
        with Progress(
            *columns, console=self._console, transient=True, refresh_per_second=2
        ) as progress:
            task = progress.add_task(name, total=total)
            yield lambda done: progress.update(task, completed=done)

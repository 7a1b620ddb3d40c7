"""What a terminal can show, in whatever encoding it is."""

import io
import json
import sys
from contextlib import suppress
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.markup import escape

from shared.values.legible import visible, visible_json


class Program(typer.Typer):
    """A command line that says all it has to say, on whatever terminal."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as typer has it
        """Run it; what the terminal's encoding lacks is written as an escape, never an error."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                with suppress(OSError):  # it may be closed
                    stream.reconfigure(errors="backslashreplace")
        return super().__call__(*args, **kwargs)


def _print_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"consent {version('consent')}\n")
        raise typer.Exit


def tell_version(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version, and end."
        ),
    ] = False,
) -> None:
    """Be the callback of a program's own command line, for options before any verb."""


def can_show(text: str) -> bool:
    """Whether the terminal's encoding has all of this."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def shown_json(text: str) -> str:
    """Write JSON so that the terminal can show it, nothing hides in it, and it stays JSON."""
    text = visible_json(text)
    return text if can_show(text) else "".join(map(_in_ascii, text))


def _in_ascii(character: str) -> str:
    return character if character.isascii() else json.dumps(character)[1:-1]


def shown(text: str) -> str:
    """Write what others sent for a person, in rich's markup."""
    return escape(visible(text))

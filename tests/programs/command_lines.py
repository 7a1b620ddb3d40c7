"""Walks the command lines, and writes the list of them, which `make contract` does too."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import typer

from command_service.cli import app as command_app
from projection_service.cli import app as projection_app
from shared.cli.consent.program import app as consent_app

LIST: Final = Path(__file__).parents[2] / "shared" / "cli" / "README.md"
APPS: Final = {
    "consent": consent_app,
    "python -m command_service": command_app,
    "python -m projection_service": projection_app,
}
BEGIN: Final = "<!-- commands: written by `make contract` -->\n"
END: Final = "<!-- end of commands -->\n"
EXAMPLE: Final = re.compile(r"Example: (.+)")


@dataclass(frozen=True)
class Verb:
    """A command that does something, and the words that lead to it."""

    program: str
    path: tuple[str, ...]
    command: Any
    """A click command, in whichever form typer brings it."""

    @property
    def words(self) -> str:
        """How it is called: `python -m projection_service parked list`."""
        return " ".join((self.program, *self.path))

    @property
    def summary(self) -> str:
        """The first line of its help."""
        return str(self.command.help or "").strip().split("\n")[0]

    @property
    def example(self) -> str | None:
        """The example that its help ends with."""
        found = EXAMPLE.search(f"{self.command.help}\n{self.command.epilog}")
        return found and found[1].strip()

    @property
    def usage(self) -> str:
        """Its words and arguments, and the options that are its own."""
        options = (
            f"{one.opts[0]} {one.metavar}" if one.required else f"[{one.opts[0]}]"
            for one in self.command.params
            if one.param_type_name == "option"
        )
        return " ".join((self.words, *map(_argument, self._arguments()), *options))

    def _arguments(self) -> Iterator[Any]:
        return (one for one in self.command.params if one.param_type_name == "argument")


def _argument(one: Any) -> str:  # noqa: ANN401 - a click parameter
    name = str(one.metavar or one.name.upper()).replace("|", "\\|")
    return name if one.required else f"[{name}]"


def verbs() -> list[Verb]:
    """Every command of the three programs."""
    return [verb for program, app in APPS.items() for verb in _within(program, (), _command(app))]


def _command(app: typer.Typer) -> Any:  # noqa: ANN401 - a click command
    return typer.main.get_command(app)


def _within(program: str, path: tuple[str, ...], command: Any) -> Iterator[Verb]:  # noqa: ANN401
    inner = getattr(command, "commands", None)
    if inner is None:
        yield Verb(program, path, command)
    else:
        for name, one in inner.items():
            yield from _within(program, (*path, name), one)


def reference() -> str:
    """Write the list."""
    rows = (f"| `{verb.usage}` | {verb.summary} |" for verb in verbs())
    return "\n".join(("| command | what it does |", "|---|---|", *rows)) + "\n"


def main() -> None:
    """Put the list into its page, in place of the one that is there."""
    text = LIST.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    LIST.write_text(f"{before}{BEGIN}{reference()}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Checks what stands on many lines, five hundred in a message, and shows answers as they come.

A line is `p-1 doctor d-1 exams`, with quotation marks where an id holds spaces, or a question as
JSON, as the contract has it. Empty lines, and those that begin with #, are left out.
"""

import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Final, TextIO

from pydantic import ValidationError
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from shared.cli.terminal import shown, shown_json
from shared.client.client import ConsentClient
from shared.messages.queries import MOST_QUESTIONS, Actor, ConsentChecked, QueryFailed, Question
from shared.messages.replies import Detail
from shared.messages.timestamp import timestamp
from shared.messages.validation import details_of

STANDARD_INPUT: Final = "-"
LEAST_WORDS, MOST_WORDS = 3, 4
HOW: Final = "must be PATIENT_ID ENTITY ID [TARGET], or a question as JSON"

Answer = ConsentChecked | QueryFailed


@dataclass(frozen=True)
class Line:
    """A line that asks something, or why it does not."""

    number: int
    asked: Question | QueryFailed

    @property
    def names(self) -> tuple[str, str, str]:
        """Say whom it asks about: the patient, the actors, and what is to be seen."""
        if isinstance(self.asked, QueryFailed):
            return "", "", ""
        actors = (f"{actor.entity_name} {actor.entity_id}" for actor in self.asked.actors)
        return self.asked.patient_id, ", ".join(actors), self.asked.permission


@dataclass
class Count:
    """How many answers there were, by kind."""

    yes: int = 0
    no: int = 0
    unanswered: int = 0
    wrong: int = 0

    def add(self, answer: Answer) -> None:
        """Count one more."""
        if isinstance(answer, ConsentChecked):
            self.yes += answer.has_consent
            self.no += not answer.has_consent
        elif answer.error == "validation_error":
            self.wrong += 1
        else:
            self.unanswered += 1

    def __str__(self) -> str:
        decided = ((self.yes, "yes"), (self.no, "no"))
        kinds = (*decided, (self.unanswered, "unanswered"), (self.wrong, "bad"))
        return ", ".join(f"{number:,} {word}" for number, word in kinds if number or word == "yes")


@contextmanager
def open_lines(name: str) -> Iterator[TextIO]:
    """Open a file, or the standard input; raises OSError."""
    if name == STANDARD_INPUT:
        yield sys.stdin
        return
    with open(name, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123 - as typed
        yield file


def read_lines(texts: Iterable[str], at: datetime | None, min_version: int) -> Iterator[Line]:
    """Read what is asked; `at` and `min_version` hold for each line that is not JSON."""
    for number, text in enumerate(texts, start=1):
        line = text.strip()
        if line and not line.startswith("#"):
            yield Line(number, _read(number, line, at, min_version))


def _read(number: int, line: str, at: datetime | None, min_version: int) -> Question | QueryFailed:
    try:
        if line.startswith("{"):
            return Question.model_validate_json(line)
        words = shlex.split(line)
        if not LEAST_WORDS <= len(words) <= MOST_WORDS:
            return _bad(number, [Detail(field="line", message=HOW)])
        return _question(words, at, min_version)
    except ValidationError as error:
        return _bad(number, details_of(error))
    except ValueError:
        return _bad(number, [Detail(field="line", message=f"has an open quotation mark: it {HOW}")])


def _question(words: Sequence[str], at: datetime | None, min_version: int) -> Question:
    patient_id, entity, id_, *more = words
    return Question.model_validate(
        {
            "patient_id": patient_id,
            "actors": [Actor.model_validate({"entity_name": entity, "entity_id": id_})],
            "permission": more[0] if more else "all",
            "at": at,
            "min_version": min_version,
        }
    )


def _bad(number: int, details: list[Detail]) -> QueryFailed:
    return QueryFailed(
        error="validation_error", message=f"line {number} is not valid", details=details
    )


async def check_lines(
    client: ConsentClient, lines: Iterator[Line], out: Console, err: Console, *, json: bool
) -> Count:
    """Ask what stands on these lines, and show the answers in their order; return how many."""
    count = Count()
    with _progress(err) as progress:
        task = progress.add_task("", total=None)
        while chunk := list(islice(lines, MOST_QUESTIONS)):
            answers = await _check(client, chunk)
            for answer in answers:
                count.add(answer)
            (_show_json if json else _show_table)(chunk, answers, out)
            done = count.yes + count.no + count.unanswered + count.wrong
            progress.update(task, completed=done, description=f"checked: {count}")
    return count


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


async def _check(client: ConsentClient, chunk: Sequence[Line]) -> list[Answer]:
    questions = [line.asked for line in chunk if isinstance(line.asked, Question)]
    found = iter(await client.check_consents(questions) if questions else ())
    return [line.asked if isinstance(line.asked, QueryFailed) else next(found) for line in chunk]


def _show_json(_: Sequence[Line], answers: Sequence[Answer], __: Console) -> None:
    for answer in answers:
        sys.stdout.write(shown_json(answer.model_dump_json(exclude_none=True)) + "\n")
    sys.stdout.flush()


def _show_table(chunk: Sequence[Line], answers: Sequence[Answer], out: Console) -> None:
    table = Table()
    for heading in ("line", "patient", "who", "permission", "answer", ""):
        table.add_column(heading, overflow="fold")
    for line, answer in zip(chunk, answers, strict=True):
        word, why = _in_words(answer)
        table.add_row(str(line.number), *map(shown, line.names), word, shown(why))
    out.print(table)


def _in_words(answer: Answer) -> tuple[str, str]:
    if isinstance(answer, QueryFailed):
        details = "; ".join(f"{detail.field} {detail.message}" for detail in answer.details)
        return f"[red]{shown(answer.error)}[/]", details or answer.message
    if not answer.has_consent:
        missing = f"not {', '.join(answer.missing)}" if answer.granted else ""
        return "[red]no[/]", missing
    until = "" if answer.valid_until is None else f"until {timestamp(answer.valid_until)}"
    return "[green]yes[/]", until

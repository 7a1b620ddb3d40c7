"""Reads the log through ReadEvents: catching up, filling a gap, rebuilding."""

from dataclasses import dataclass
from typing import Annotated, Final, TypeVar
from uuid import UUID, uuid4

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from shared.errors import NoAnswer, QueryRefused, SettingsError
from shared.event_log.set_back import LogPlace, SetBack, compare
from shared.messages import names
from shared.messages.cloud_event import CloudEvent
from shared.messages.queries import MOST_EVENTS, GenerationBegan, QueryFailed, ReadEvents
from shared.messages.validation import details_of
from shared.rabbitmq.rpc_client import Request, Requests
from shared.values.oversized import LARGEST_ANSWER, too_large

READ_WITHIN_S: Final = 10.0


class Page(BaseModel):
    """Some of the log, and where the partition's log ends now."""

    events: list[CloudEvent]
    head: int
    log: UUID | None = None
    generations: list[GenerationBegan] = []
    disputed: bool = False
    """Whether it lacks what was published of it, whoever took that."""

    def differs(self, partition: int, taken: LogPlace) -> SetBack | None:
        """Compare what a reader took, where this is what follows the position before it."""
        first = self.events[0] if self.events else None
        there = first.id if first and first.position == taken.position else None
        return compare(partition, taken, self.head, self.generations, there)


PAGE: Final[TypeAdapter[Page | QueryFailed]] = TypeAdapter(
    Annotated[Page | QueryFailed, Field(union_mode="left_to_right")]
)
"""Read as the first that fits: to look for the best fit takes twice as long."""
Reply = TypeVar("Reply")


def query_request(query: BaseModel, type_: str) -> Request:
    """Make the request that asks a query."""
    body = query.model_dump_json(exclude_none=True).encode()
    return Request(names.QUERIES, type_, type_, body, str(uuid4()))


def read_answer(body: bytes, answers: TypeAdapter[Reply | QueryFailed]) -> Reply:
    """Read an answer; raises QueryRefused where it is an error, NoAnswer where it is none."""
    answer = readable(body, answers)
    if isinstance(answer, QueryFailed):
        details = "".join(f"; {detail.field} {detail.message}" for detail in answer.details)
        raise QueryRefused(answer.error, answer.message + details)
    return answer


def readable(body: bytes, answers: TypeAdapter[Reply]) -> Reply:
    """Read a reply; raises NoAnswer where it is none, without a word of what it says instead."""
    if (fault := too_large(body, LARGEST_ANSWER)) is not None:
        raise NoAnswer(f"no answer that can be read: what came back {fault}")
    try:
        return answers.validate_json(body)
    except ValidationError as error:
        wrong = details_of(error)[0]
    raise NoAnswer(f"what came is no answer: {wrong.field} {wrong.message}")


@dataclass(frozen=True)
class LogClient:
    """Asks the command service for what follows a position."""

    requests: Requests
    log_id: UUID | None = None
    """Which log it must be; None where that is not known yet."""

    async def read(self, partition: int, after_position: int, limit: int = MOST_EVENTS) -> Page:
        """Read what follows a position; raises NoAnswer while nobody answers, QueryRefused.

        Raises SettingsError where it is another log.
        """
        query = ReadEvents(partition=partition, after_position=after_position, limit=limit)
        reply = await self.requests.ask(query_request(query, ReadEvents.type), READ_WITHIN_S)
        page = read_answer(reply.body, PAGE)
        if self.log_id and page.log and page.log != self.log_id:
            raise SettingsError(
                f"RABBITMQ_URL leads to the log {page.log}, and what is known here was taken from "
                f"the log {self.log_id}: name a broker and a database of one deployment"
            )
        return page

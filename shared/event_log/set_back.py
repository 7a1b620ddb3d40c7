"""Tells whether the log still has what a reader took from it. Pure.

A log that was restored to an older state counts its positions a second time. So a reader keeps,
beside its position, the id and the generation of the event there, and compares them with the log:
as long as the log has that event at that position, it has all that came before it as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from shared.messages.cloud_event import CloudEvent
from shared.messages.events import UnknownEventError
from shared.messages.queries import GenerationBegan

FIRST_GENERATION: Final = 1


@dataclass(frozen=True, slots=True)
class LogPlace:
    """The last event that a reader took of a partition."""

    position: int
    event_id: str | None = None
    """Not known where only the position was remembered: then less is noticed."""
    generation: int | None = FIRST_GENERATION
    """None where it is not known."""


@dataclass(frozen=True, slots=True)
class SetBack:
    """The log does not have what a reader took."""

    partition: int
    position: int
    """Up to here the reader has taken events."""
    head: int
    """Here the log ends now."""
    parted_at: int | None
    """Up to here both have the same, 0 where that is not known; None until an operator has decided
    to go on with the log as it is."""

    def __str__(self) -> str:
        return (
            f"the log of partition {self.partition} was set back: it ends at {self.head} and does "
            f"not have what was taken up to {self.position}"
        )


def place_of(event: CloudEvent) -> LogPlace:
    """Return the place of an event, for whoever takes it.

    One that can't be read may be anybody's: it is no word of which log this is.
    """
    try:
        event.event()
    except (UnknownEventError, ValidationError):
        event_id = None
    else:
        event_id = event.id
    return LogPlace(event.position, event_id, event.generation or FIRST_GENERATION)


def generation_at(generations: Sequence[GenerationBegan], position: int) -> int:
    """Return the generation of the event at a position; `generations` are in their order."""
    for began in reversed(generations):
        if began.after_position < position:
            return began.generation
    return FIRST_GENERATION


def newest_generation(generations: Sequence[GenerationBegan]) -> int:
    """Return the generation of what is appended now."""
    return generations[-1].generation if generations else FIRST_GENERATION


def compare(
    partition: int,
    taken: LogPlace,
    head: int,
    generations: Sequence[GenerationBegan],
    event_id: str | None,
) -> SetBack | None:
    """Compare what a reader has taken with the log; `event_id` is the log's at that position."""
    if taken.position == 0:
        return None
    known = taken.generation or newest_generation(generations)
    later = [began for began in generations if began.generation > known]
    parted_at = min((began.after_position for began in later), default=None)
    if parted_at is not None and parted_at < taken.position:
        return SetBack(partition, taken.position, head, parted_at)
    same = event_id is not None and taken.event_id in {None, event_id}
    if same and known <= newest_generation(generations):
        return None
    return SetBack(partition, taken.position, head, None if parted_at is None else 0)

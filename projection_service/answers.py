"""Answers queries from the read model, in batches; some wait for the projection to catch up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Final

import structlog

from projection_service.past import Past, is_never
from projection_service.read_model import Held, ReadModel
from shared.cloud_event import timestamp
from shared.intake import Intake, Item
from shared.metrics import QUERIES
from shared.queries import (
    ConsentHeld,
    ConsentHistory,
    Consents,
    HasConsent,
    History,
    ListConsents,
    QueryFailed,
)
from shared.questions import answer, invalid, read_query
from shared.reply_channel import ReplyChannel

MAX_BATCH: Final = 200
WAIT_FOR_VERSION_S: Final = 5.0
LOOK_AGAIN_S: Final = 0.02
"""How often the version is looked up that some query waits for; another worker may project it."""
MOST_WAITING: Final = 250
"""Half of the queries that may be in hand: those that wait must not keep the others away."""

HISTORIES_AT_ONCE: Final = 20
"""How many pages one statement reads, so that what is in memory stays small."""

log = structlog.get_logger()

Query = ListConsents | HasConsent | ConsentHistory
Found = Consents | ConsentHeld | History
Answer = Found | QueryFailed
KINDS: Final[dict[str, type[Query]]] = {
    kind.type: kind for kind in (ListConsents, HasConsent, ConsentHistory)
}


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A query in hand, and until when its version may be waited for."""

    item: Item
    query: Query
    until: float


class Answers:
    """Answers until cancelled."""

    def __init__(
        self, intake: Intake, replies: ReplyChannel, read_model: ReadModel, past: Past
    ) -> None:
        self._intake = intake
        self._replies = replies
        self._read_model = read_model
        self._past = past
        self._waiting: list[Asked] = []
        self._looked_for: frozenset[str] = frozenset()
        """The patients of whom some query in hand wants a version."""

    def progressed(self, versions: Mapping[str, int]) -> None:
        """Look again at once where a query waits for one of these patients."""
        if not self._looked_for.isdisjoint(versions):
            self._intake.wake()

    async def run(self) -> None:
        """Take whatever has been asked, and look again for those that wait."""
        while True:
            items = await self._intake.take(
                MAX_BATCH, within=LOOK_AGAIN_S if self._waiting else None
            )
            began = monotonic()
            asked = [*self._waiting, *await self._read(items)]
            self._looked_for = frozenset(
                one.query.patient_id for one in asked if one.query.min_version
            )
            self._waiting = await self._answer(asked)
            if items:
                log.info(
                    "batch.answered",
                    queries=len(items),
                    waiting=len(self._waiting),
                    milliseconds=round((monotonic() - began) * 1000, 1),
                )

    async def _read(self, items: Sequence[Item]) -> list[Asked]:
        asked = []
        until = monotonic() + WAIT_FOR_VERSION_S
        for item in items:
            query = read_query(item.delivery, KINDS)
            if isinstance(query, QueryFailed):
                await self._reply(item, query)
            else:
                asked.append(Asked(item, query, until))
        return asked

    async def _answer(self, asked: Sequence[Asked]) -> list[Asked]:
        """Answer what can be answered; return those that must wait for their version."""
        waiting: list[Asked] = []
        versions: dict[Asked, int] = {}
        for one, found in zip(asked, await self._look_up([a.query for a in asked]), strict=True):
            if isinstance(found, QueryFailed) or found.version >= one.query.min_version:
                await self._reply(one.item, found)
            elif monotonic() < one.until:
                waiting.append(one)
                versions[one] = found.version
            else:
                await self._reply(one.item, too_late(found.version))
        for one in waiting[:-MOST_WAITING]:
            await self._reply(one.item, too_late(versions[one]))
        return waiting[-MOST_WAITING:]

    async def _look_up(self, queries: Sequence[Query]) -> list[Answer]:
        """Read the answers to all questions of a kind together; return them as they were asked."""
        checks = [one for one in queries if isinstance(one, HasConsent)]
        found: dict[Query, Answer] = {
            **await self._lists([one for one in queries if isinstance(one, ListConsents)]),
            **await self._checks([one for one in checks if one.at is None]),
            **await self._past_checks([one for one in checks if one.at is not None]),
            **await self._histories([one for one in queries if isinstance(one, ConsentHistory)]),
        }
        return [found[query] for query in queries]

    async def _lists(self, asked: Sequence[ListConsents]) -> dict[Query, Answer]:
        if not asked:
            return {}
        listed = await self._read_model.list_consents([one.patient_id for one in asked])
        return {one: listed[one.patient_id] for one in asked}

    async def _checks(self, asked: Sequence[HasConsent]) -> dict[Query, Answer]:
        held = await self._read_model.has_consent(asked) if asked else []
        return {one: _told(one, answer) for one, answer in zip(asked, held, strict=True)}

    async def _past_checks(self, asked: Sequence[HasConsent]) -> dict[Query, Answer]:
        held = await self._past.had_consent(asked) if asked else []
        return {
            one: _unknown(one, answer.known_since) or _told(one, answer)
            for one, answer in zip(asked, held, strict=True)
        }

    async def _histories(self, asked: Sequence[ConsentHistory]) -> dict[Query, Answer]:
        found: dict[Query, Answer] = {}
        for start in range(0, len(asked), HISTORIES_AT_ONCE):
            some = asked[start : start + HISTORIES_AT_ONCE]
            found.update(zip(some, await self._past.read_history(some), strict=True))
        return found

    async def _reply(self, item: Item, found: Answer) -> None:
        await answer(self._replies, item.delivery, found.to_json())
        await self._intake.settle_one(item)
        kind = item.delivery.routing_key
        label = found.error if isinstance(found, QueryFailed) else found.status
        QUERIES.labels(kind if kind in KINDS else "other", label).inc()


def too_late(version: int) -> QueryFailed:
    """Say that the projection did not reach the version in time, and how far it is."""
    return QueryFailed(
        error="not_yet_projected",
        message=f"the patient is projected to version {version}; ask again",
        version=version,
    )


def _told(asked: HasConsent, held: Held) -> ConsentHeld:
    return ConsentHeld(has_consent=held.consent.allows(asked.permission), version=held.version)


def _unknown(asked: HasConsent, known_since: datetime | None) -> QueryFailed | None:
    """Say that a moment is too long ago to be answered with certainty."""
    if known_since is None:
        return None
    if is_never(known_since):
        return invalid("at", "the past is not known here before a rebuild of the read model")
    if asked.at is not None and asked.at >= known_since:
        return None
    return invalid(
        "at", f"the past is known since {timestamp(known_since)}; ask about then or later"
    )

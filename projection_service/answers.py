"""Answers queries from the read model, in batches; some wait for the projection to catch up."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final

from projection_service.read_model import ReadModel
from shared.intake import Intake, Item
from shared.metrics import QUERIES
from shared.queries import ConsentHeld, Consents, HasConsent, ListConsents, QueryFailed
from shared.questions import answer, read_query
from shared.reply_channel import ReplyChannel

MAX_BATCH: Final = 200
WAIT_FOR_VERSION_S: Final = 5.0
LOOK_AGAIN_S: Final = 0.02
"""How often the version is looked up that some query waits for; another worker may project it."""
MOST_WAITING: Final = 250
"""Half of the queries that may be in hand: those that wait must not keep the others away."""

Query = ListConsents | HasConsent
Answer = Consents | ConsentHeld | QueryFailed
KINDS: Final[dict[str, type[Query]]] = {kind.type: kind for kind in (ListConsents, HasConsent)}


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A query in hand, and until when its version may be waited for."""

    item: Item
    query: Query
    until: float


class Answers:
    """Answers until cancelled."""

    def __init__(self, intake: Intake, replies: ReplyChannel, read_model: ReadModel) -> None:
        self._intake = intake
        self._replies = replies
        self._read_model = read_model
        self._waiting: list[Asked] = []

    async def run(self) -> None:
        """Take whatever has been asked, and look again for those that wait."""
        while True:
            items = await self._intake.take(
                MAX_BATCH, within=LOOK_AGAIN_S if self._waiting else None
            )
            asked = [*self._waiting, *await self._read(items)]
            self._waiting = await self._answer(asked)

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
            if found.version >= one.query.min_version:
                await self._reply(one.item, found)
            elif monotonic() < one.until:
                waiting.append(one)
                versions[one] = found.version
            else:
                await self._reply(one.item, too_late(found.version))
        for one in waiting[:-MOST_WAITING]:
            await self._reply(one.item, too_late(versions[one]))
        return waiting[-MOST_WAITING:]

    async def _look_up(self, queries: Sequence[Query]) -> list[Consents | ConsentHeld]:
        lists = [query.patient_id for query in queries if isinstance(query, ListConsents)]
        checks = [query for query in queries if isinstance(query, HasConsent)]
        listed = await self._read_model.list_consents(lists) if lists else {}
        held = iter(await self._read_model.has_consent(checks) if checks else [])
        found: list[Consents | ConsentHeld] = []
        for query in queries:
            if isinstance(query, ListConsents):
                found.append(listed[query.patient_id])
            else:
                one = next(held)
                allowed = one.consent.allows(query.permission)
                found.append(ConsentHeld(has_consent=allowed, version=one.version))
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

"""Answers queries from the read model, in batches; some wait for the projection to catch up."""

from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Final, TypeVar

import structlog

from projection_service.history_queries import Past, is_never
from projection_service.log_identity.set_backs import SetBacks
from projection_service.projections.changes import Held
from projection_service.read_model import ReadModel
from shared.messages.queries import (
    ConsentHeld,
    ConsentHistory,
    Consents,
    HasConsent,
    History,
    ListConsents,
    QueryFailed,
)
from shared.messages.timestamp import timestamp
from shared.rabbitmq.consumer import Consumer, Delivery
from shared.rabbitmq.query_server import answer, invalid, read_query
from shared.rabbitmq.reply_to.publisher import ReplyPublisher
from shared.telemetry.metrics import QUERIES

MAX_BATCH: Final = 200
WAIT_FOR_VERSION_S: Final = 5.0
LOOK_AGAIN_S: Final = 0.02
"""How often the versions are looked up that are waited for: another worker may project them."""
MOST_WAITING: Final = 250
"""Half of the queries that may be in hand: those that wait must not keep the others away."""

PAGES_AT_ONCE: Final = 20
"""How many pages one statement reads, so that what is in memory stays small."""

log = structlog.get_logger()

Query = ListConsents | HasConsent | ConsentHistory
Found = Consents | ConsentHeld | History
Answer = Found | QueryFailed
Asking = TypeVar("Asking", ListConsents, HasConsent, ConsentHistory)
LookUp = Callable[[Sequence[Asking]], Awaitable[Sequence[Answer]]]
KINDS: Final[dict[str, type[Query]]] = {
    kind.type: kind for kind in (ListConsents, HasConsent, ConsentHistory)
}


@dataclass(frozen=True, slots=True, eq=False)
class PendingQuery:
    """A query in hand, and until when its version may be waited for."""

    delivery: Delivery
    query: Query
    until: float


class QueryResponder:
    """Answers until cancelled.

    A query that asks for a version is run once, when its patient is there. Until then only the
    versions are looked up, of all who are waited for in one statement; what this worker projects
    itself it is told.
    """

    def __init__(
        self, consumer: Consumer, replies: ReplyPublisher, read_model: ReadModel, past: Past,
        set_backs: SetBacks,
    ) -> None:  # fmt: skip
        self._consumer = consumer
        self._replies = replies
        self._read_model = read_model
        self._past = past
        self._set_backs = set_backs
        self._waiting: list[PendingQuery] = []
        self._versions: dict[str, int] = {}
        """Of the patients who are waited for: how far they are known to be projected."""

    def progressed(self, versions: Mapping[str, int]) -> None:
        """Note versions just projected, and go on at once where somebody waits for one of them."""
        reached = self._versions.keys() & versions.keys()
        if reached:
            self._versions.update((patient_id, versions[patient_id]) for patient_id in reached)
            self._consumer.wake()

    async def run(self) -> None:
        """Take whatever has been asked, and answer it or let it wait."""
        while True:
            deliveries = await self._consumer.take(
                MAX_BATCH, within=LOOK_AGAIN_S if self._waiting else None
            )
            began = monotonic()
            asked = await self._read(deliveries)
            await self._answer([pending for pending in asked if not pending.query.min_version])
            self._wait([pending for pending in asked if pending.query.min_version])
            if self._waiting:
                await self._answer_who_waits()
            if deliveries:
                log.info(
                    "batch.answered",
                    queries=len(deliveries),
                    waiting=len(self._waiting),
                    milliseconds=round((monotonic() - began) * 1000, 1),
                )

    async def _read(self, deliveries: Sequence[Delivery]) -> list[PendingQuery]:
        asked = []
        until = monotonic() + WAIT_FOR_VERSION_S
        for delivery in deliveries:
            query = read_query(delivery.message, KINDS)
            if isinstance(query, QueryFailed):
                await self._reply(delivery, query)
            else:
                asked.append(PendingQuery(delivery, query, until))
        return asked

    def _wait(self, asked: Sequence[PendingQuery]) -> None:
        """Let these wait too; from here on it is noticed when their patients are projected."""
        self._waiting += asked
        for pending in asked:
            self._versions.setdefault(pending.query.patient_id, 0)

    async def _answer_who_waits(self) -> None:
        """Run the queries whose version is there, and tell who waited long enough."""
        await self._look_up_versions()
        there = [pending for pending in self._waiting if self._is_there(pending)]
        waiting = [pending for pending in self._waiting if not self._is_there(pending)]
        now = monotonic()
        giving_up = {pending for pending in waiting if pending.until <= now}
        giving_up.update(
            _who_gives_way([pending for pending in waiting if pending not in giving_up])
        )
        for pending in giving_up:
            await self._reply(pending.delivery, too_late(self._versions[pending.query.patient_id]))
        self._waiting = [pending for pending in waiting if pending not in giving_up]
        self._versions = {
            patient_id: self._versions[patient_id]
            for patient_id in {pending.query.patient_id for pending in self._waiting}
        }
        await self._answer(there)

    async def _look_up_versions(self) -> None:
        """Look up all who are waited for, whoever projects them."""
        patients = list(
            {pending.query.patient_id for pending in self._waiting if not self._is_there(pending)}
        )
        if patients:
            for patient_id, version in (await self._read_model.read_versions(patients)).items():
                self._versions[patient_id] = max(self._versions[patient_id], version)

    def _is_there(self, pending: PendingQuery) -> bool:
        return self._versions[pending.query.patient_id] >= pending.query.min_version

    async def _answer(self, asked: Sequence[PendingQuery]) -> None:
        """Run these queries, all of a kind together, the short ones first."""
        checks = [
            (pending.delivery, pending.query)
            for pending in asked
            if isinstance(pending.query, HasConsent)
        ]
        lists = [
            (pending.delivery, pending.query)
            for pending in asked
            if isinstance(pending.query, ListConsents)
        ]
        pages = [
            (pending.delivery, pending.query)
            for pending in asked
            if isinstance(pending.query, ConsentHistory)
        ]
        await self._run([check for check in checks if check[1].at is None], self._checks, MAX_BATCH)
        await self._run([check for check in checks if check[1].at], self._past_checks, MAX_BATCH)
        await self._run(lists, self._read_model.list_consents, PAGES_AT_ONCE)
        await self._run(pages, self._past.read_history, PAGES_AT_ONCE)

    async def _run(
        self, asked: Sequence[tuple[Delivery, Asking]], look_up: LookUp[Asking], most: int
    ) -> None:
        """Read the answers to questions of one kind, some in each statement, and send them."""
        for start in range(0, len(asked), most):
            batch = asked[start : start + most]
            answers = await look_up([query for _, query in batch])
            for (delivery, query), found in zip(batch, answers, strict=True):
                refused = self._set_backs.refusal(query.patient_id)
                await self._reply(delivery, refused or found)

    async def _checks(self, asked: Sequence[HasConsent]) -> list[Answer]:
        held = await self._read_model.has_consent(asked)
        return [
            _consent_held(question, answer) for question, answer in zip(asked, held, strict=True)
        ]

    async def _past_checks(self, asked: Sequence[HasConsent]) -> list[Answer]:
        held = await self._past.had_consent(asked)
        return [
            _unknown(question, answer.known_since) or _consent_held(question, answer)
            for question, answer in zip(asked, held, strict=True)
        ]

    async def _reply(self, delivery: Delivery, found: Answer) -> None:
        await answer(self._replies, delivery.message, found.to_json())
        await self._consumer.settle_one(delivery)
        kind = delivery.message.routing_key
        label = found.error if isinstance(found, QueryFailed) else found.status
        QUERIES.labels(kind if kind in KINDS else "other", label).inc()


def _who_gives_way(waiting: Sequence[PendingQuery]) -> Iterator[PendingQuery]:
    """Choose who waits no longer where too many do: of the patient whom most wait for, the newest.

    Where they are spread over many patients the newest of all gives way, so that a crowd does not
    push out who was there before it.
    """
    if len(waiting) <= MOST_WAITING:
        return
    by_patient: dict[str, deque[PendingQuery]] = defaultdict(deque)
    for pending in reversed(waiting):
        by_patient[pending.query.patient_id].append(pending)
    for _ in range(len(waiting) - MOST_WAITING):
        yield max(by_patient.values(), key=len).popleft()


def too_late(version: int) -> QueryFailed:
    """Say that the projection did not reach the version in time, and how far it is."""
    return QueryFailed(
        error="not_yet_projected",
        message=f"the patient is projected to version {version}; ask again",
        version=version,
    )


def _consent_held(asked: HasConsent, held: Held) -> ConsentHeld:
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

"""Answers queries from the read model, in batches; some wait for the projection to catch up."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from time import monotonic
from typing import Any, Final, TypeGuard

from pydantic_core import to_json

from projection_service.answers.check_consents import Checked, Checks
from projection_service.answers.history_queries import Past, unknown_past
from projection_service.answers.list_patients import PatientLists
from projection_service.answers.read_questions import Questions, read_questions
from projection_service.answers.tally import Tally
from projection_service.answers.version_waits import PendingQuery, VersionWaits, too_early
from projection_service.log_identity.set_backs import SetBacks
from projection_service.projections.changes import Held
from projection_service.read_model import ReadModel
from shared.messages.queries import (
    CheckConsents,
    ConsentHistory,
    Consents,
    HasConsent,
    History,
    ListConsents,
    ListPatients,
    Patients,
    QueryFailed,
)
from shared.messages.timestamp import timestamp
from shared.postgres.connection import Queryable
from shared.postgres.kept_connection import KeptConnection
from shared.rabbitmq.consumer import Consumer, Delivery
from shared.rabbitmq.query_server import Kind, answer, kind, read_query
from shared.rabbitmq.reply_to.publisher import ReplyPublisher
from shared.values.oversized import LARGEST_CHECKS
from shared.values.vocabulary import Grantee

MAX_BATCH: Final = 200
GATHER_S: Final = 0.001
"""What a crowd waits, so that it is answered by fewer statements and writes: with a hundred
questions in flight each then costs all processes a sixth less, and comes sooner."""
WAIT_FOR_VERSION_S: Final = 5.0

PAGES_AT_ONCE: Final = 20
"""How many pages one statement reads, so that what is in memory stays small."""
ACTORS_AT_ONCE: Final = 1_000
"""About how many actors one statement looks up: what comes meanwhile waits that long."""

SERVING: Final = 2
"""How many serve the line: the database works for one while the other writes answers."""
LONG: Final = 16_384
"""Bytes of an answer; to encode more than one such in one go would hold up who comes meanwhile."""

Query = ListConsents | HasConsent | Questions | ListPatients | ConsentHistory
Answer = Consents | Checked | Patients | History | QueryFailed
LookUp = Callable[[Sequence[Any]], Awaitable[Sequence[Answer | None]]]
"""None for one whose patient is not projected so far yet."""

KINDS: Final[dict[str, Kind[Query]]] = {
    ListConsents.type: kind(ListConsents),
    HasConsent.type: kind(HasConsent),
    CheckConsents.type: Kind(read_questions, LARGEST_CHECKS),
    ListPatients.type: kind(ListPatients),
    ConsentHistory.type: kind(ConsentHistory),
}


class QueryResponder:
    """Answers until cancelled what comes on one queue.

    Single checks are answered as they come. All others stand in a line that is served beside: so
    nothing long holds a check up.

    A query that asks for a version is run once, when its patient is there. Until then only the
    versions are looked up, of all who are waited for in one statement; what this worker projects
    itself it is told, so of whom it projects it only listens at first, where that is to come.
    """

    def __init__(
        self, consumer: Consumer, replies: ReplyPublisher, database: Queryable, most_waiting: int,
        set_backs: SetBacks, kept: KeptConnection | None = None,
    ) -> None:  # fmt: skip
        """`most_waiting` of the queries in hand may wait: they must not keep the others away."""
        self._consumer = consumer
        self._replies = replies
        self._read_model = ReadModel(database, kept)
        self._past = Past(database)
        self._set_backs = set_backs
        self._waits = VersionWaits(most_waiting)
        self.projected: Callable[[str], int | None] = lambda _: None
        """Tells to which version this process itself has projected a patient lately."""
        self.recall: Callable[[str, Grantee], Held | None] = lambda *_: None
        """Tells what a patient's consents are since then, where that is in memory."""
        self._tally = Tally()
        self._checks: list[PendingQuery] = []
        self._recalled: list[tuple[Delivery, Answer]] = []
        """Answers to queries that waited for what was projected here."""
        self._line: deque[PendingQuery] = deque()
        self._somebody_stands = asyncio.Event()
        self._look_ups: dict[type[Query], LookUp] = {
            ListConsents: self._read_model.list_consents,
            Questions: Checks(database, set_backs.refusal).check,
            ListPatients: PatientLists(database).list_patients,
            ConsentHistory: self._past.read_history,
        }

    def progressed(self, versions: Mapping[str, int]) -> bool:
        """Note versions just projected; go on and say so where somebody waits for one of them.

        Who asked before these were there, and what has changed is in memory, gets that as answer:
        it was the truth at a moment between the question and the answer, as what is read would be.
        """
        if not self._waits.note(versions):
            return False
        for pending in self._waits.take_there():
            if (found := self._recall(pending.query)) is not None:
                self._recalled.append((pending.delivery, found))
            else:
                self._go_on(pending)
        self._consumer.wake()
        return True

    def _recall(self, query: Query) -> Answer | None:
        """Answer from memory a check of what is, if all of it is there."""
        if not _asks_of_now(query):
            return None
        held = self.recall(query.patient_id, Grantee(query.entity_name, query.entity_id))
        return (self._refused(query) or _consent_held(query, held)) if held else None

    def _may_be_there(self, query: Query) -> bool:
        """Whether a query need not wait first: this worker has projected its patient so far.

        What it finds says so, or it waits then.
        """
        if not _asks_of_now(query) or query.min_version is None:
            return False
        return (self.projected(query.patient_id) or 0) >= query.min_version

    def loops(self) -> Iterator[Coroutine[None, None, None]]:
        """What runs as long as the session does."""
        yield self._run()
        for _ in range(SERVING):
            yield self._serve_line()

    async def _run(self) -> None:
        """Take whatever has been asked, and answer it, or let it wait or stand in the line."""
        while True:
            deliveries = await self._consumer.take(
                MAX_BATCH,
                within=self._waits.look_again_s if self._waits else None,
                gather_s=GATHER_S,
            )
            began = monotonic()
            recalled, self._recalled = self._recalled, []
            await self._reply(recalled)
            await self._take_up(deliveries)
            if self._waits:
                await self._see_who_waits()
            await self._answer_checks()
            if deliveries:
                seconds = monotonic() - began
                waiting, in_line = len(self._waits), len(self._line)
                self._tally.tell(len(deliveries), seconds, waiting=waiting, in_line=in_line)

    async def _serve_line(self) -> None:
        """Answer the first in the line, and those behind it who ask the same, again and again."""
        while True:
            while not self._line:
                self._somebody_stands.clear()
                await self._somebody_stands.wait()
            asked = [self._line.popleft()]
            kind_, size = type(asked[0].query), _size(asked[0].query)
            while self._line and isinstance(self._line[0].query, kind_):
                size += _size(self._line[0].query)
                if size > 1:
                    break
                asked.append(self._line.popleft())
            await self._answer(asked, self._look_ups[kind_])

    async def _take_up(self, deliveries: Sequence[Delivery]) -> None:
        failed: list[tuple[Delivery, Answer]] = []
        now = monotonic()
        until = now + WAIT_FOR_VERSION_S
        for delivery in deliveries:
            query = read_query(delivery.message, KINDS)
            if isinstance(query, QueryFailed):
                failed.append((delivery, query))
                continue
            pending = PendingQuery(delivery, query, until, _needs(query))
            if pending.needs and not self._may_be_there(query):
                self._waits.add(pending, self.projected, now)
            else:
                self._go_on(pending)
        await self._reply(failed)

    def _go_on(self, pending: PendingQuery) -> None:
        """Answer it in this turn, or when it comes first in the line."""
        if isinstance(pending.query, HasConsent):
            self._checks.append(pending)
        else:
            self._line.append(pending)
            self._somebody_stands.set()

    async def _see_who_waits(self) -> None:
        """Go on with those whose version is there, and tell who waited long enough."""
        if unreached := self._waits.unreached(monotonic()):
            self._waits.note(await self._read_model.read_versions(unreached))
        for pending in self._waits.take_there():
            self._go_on(pending)
        late: list[tuple[Delivery, Answer]] = []
        for pending in self._waits.take_too_late(monotonic()):
            if isinstance(pending.query, Questions):
                self._go_on(pending)  # which of its questions come too early is in their answers
            else:
                (patient_id,) = pending.needs
                late.append((pending.delivery, too_early(self._waits.version(patient_id))))
        self._waits.forget_others()
        await self._reply(late)

    async def _answer_checks(self) -> None:
        """Answer all single checks, in two statements at most."""
        checks, self._checks = self._checks, []
        present = [pending for pending in checks if pending.query.at is None]
        past = [pending for pending in checks if pending.query.at is not None]
        for asked, look_up in ((present, self._check), (past, self._check_past)):
            if asked:
                await self._answer(asked, look_up)

    async def _answer(self, asked: Sequence[PendingQuery], look_up: LookUp) -> None:
        found = await look_up([pending.query for pending in asked])
        answered = []
        for pending, answer_ in zip(asked, found, strict=True):
            if answer_ is None:
                self._waits.add(pending, self.projected, monotonic())
            else:
                answered.append((pending.delivery, self._refused(pending.query) or answer_))
        await self._reply(answered)

    def _refused(self, query: Query) -> QueryFailed | None:
        """Say why nothing can be answered: its log was set back; of Questions, each one is told."""
        if isinstance(query, ListPatients):
            return self._set_backs.refusal_of_any()
        if isinstance(query, Questions):
            return None
        return self._set_backs.refusal(query.patient_id)

    async def _check(self, asked: Sequence[HasConsent]) -> list[Answer | None]:
        held = await self._read_model.has_consent(asked)
        return [
            None
            if question.min_version and answer_.version < question.min_version
            else _consent_held(question, answer_)
            for question, answer_ in zip(asked, held, strict=True)
        ]

    async def _check_past(self, asked: Sequence[HasConsent]) -> list[Answer]:
        held = await self._past.had_consent(asked)
        return [
            (question.at and unknown_past(question.at, answer_.known_since))
            or _consent_held(question, answer_)
            for question, answer_ in zip(asked, held, strict=True)
        ]

    async def _reply(self, answered: Sequence[tuple[Delivery, Answer]]) -> None:
        """Send these answers together, and be done with their queries."""
        if not answered:
            return
        encoded = []
        for delivery, found in answered:
            encoded.append((delivery.message, found.to_json()))
            if len(encoded[-1][1]) > LONG:
                await asyncio.sleep(0)
        # First, since whoever has seen an answer must find it counted.
        self._tally.count(
            [_kind_and_status(delivery, found) for delivery, found in answered],
            [word for _, found in answered for word in _words(found)],
        )
        await answer(self._replies, encoded)
        await asyncio.sleep(0)  # the loop writes at the end of its turn: no later than now
        await self._consumer.settle(delivery for delivery, _ in answered)


def _asks_of_now(query: Query) -> TypeGuard[HasConsent]:
    """Whether it is a single check of what is, and not of what was."""
    return isinstance(query, HasConsent) and query.at is None


def _needs(query: Query) -> Mapping[str, int]:
    """Say which patients must be projected to which version before a query is answered."""
    if isinstance(query, Questions):
        return query.needs
    if isinstance(query, ListPatients) or not query.min_version:
        return {}
    return {query.patient_id: query.min_version}


def _size(query: Query) -> float:
    """Say how much of what one statement looks up this is."""
    if isinstance(query, Questions):
        return query.actors / ACTORS_AT_ONCE
    return 1 / PAGES_AT_ONCE


def _consent_held(asked: HasConsent, held: Held) -> Checked:
    """Write an answer as ConsentHeld has it: a model for each takes longer."""
    allowed = held.consent.allows(asked.permission)
    answer = {"status": "ok", "has_consent": allowed, "version": held.version}
    if allowed and (end := held.consent.valid_until(asked.permission)) is not None:
        answer["valid_until"] = timestamp(end)
    return Checked(to_json(answer), "ok", ("yes" if allowed else "no",))


def _kind_and_status(delivery: Delivery, found: Answer) -> tuple[str, str]:
    kind_ = delivery.message.routing_key or ""
    status = found.error if isinstance(found, QueryFailed) else found.status
    return (kind_ if kind_ in KINDS else "other", status)


def _words(found: Answer) -> Sequence[str]:
    """Say how each question in a query was answered."""
    return found.answers if isinstance(found, Checked) else ()

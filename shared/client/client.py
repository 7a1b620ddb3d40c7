"""The Python client: send commands, ask queries, and wait for what comes back."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from time import monotonic
from typing import Annotated, Final
from uuid import UUID, uuid4

from pydantic import BaseModel, Field, TypeAdapter

from shared.client.history_pages import joined
from shared.errors import BrokerBlocked, NoAnswer, NotAllowed, NotTaken, QueryRefused, Unroutable
from shared.errors.connection import BROKER, BROKER_ERRORS, ConnectionLost, explained
from shared.errors.text import reason_of, said_by
from shared.event_log.log_client import PAGE, Page, query_request, read_answer, readable
from shared.messages import names
from shared.messages.commands import (
    AskConsent,
    ConsentCommand,
    DenyConsent,
    GrantConsent,
    RevokeConsent,
    WithdrawRequest,
)
from shared.messages.queries import (
    MOST_EVENTS,
    MOST_GRANTEES,
    MOST_PATIENTS,
    MOST_QUESTIONS,
    MOST_SPANS,
    CheckConsents,
    ConsentChecked,
    ConsentHeld,
    ConsentHistory,
    Consents,
    ConsentsChecked,
    GranteePlace,
    HasConsent,
    History,
    ListConsents,
    ListPatients,
    Patients,
    PatientSeen,
    Place,
    QueryFailed,
    Question,
    ReadEvents,
)
from shared.messages.replies import CommandAccepted, CommandRejected, Outcome
from shared.rabbitmq.connection import (
    AccessRefused,
    AmqpMessage,
    Broker,
    connect,
    only_our_cancellation,
)
from shared.rabbitmq.rpc_client import Request, Requests
from shared.values.vocabulary import Entity, Target

WITHIN_S: Final = 10.0
PAUSE_S: Final = 0.2
REFUSED_TWICE: Final = 2
"""Once may be another request's fault: a refusal closes the channel that all of them share."""

_OUTCOME: TypeAdapter[CommandAccepted | CommandRejected] = TypeAdapter(
    CommandAccepted | CommandRejected
)
_CONSENTS: TypeAdapter[Consents | QueryFailed] = TypeAdapter(Consents | QueryFailed)
_HELD: TypeAdapter[ConsentHeld | QueryFailed] = TypeAdapter(ConsentHeld | QueryFailed)
_CHECKED: TypeAdapter[ConsentsChecked | QueryFailed] = TypeAdapter(
    Annotated[ConsentsChecked | QueryFailed, Field(union_mode="left_to_right")]
)
_PATIENTS: TypeAdapter[Patients | QueryFailed] = TypeAdapter(Patients | QueryFailed)
_HISTORY: TypeAdapter[History | QueryFailed] = TypeAdapter(History | QueryFailed)


class ConsentClient:
    """Talks to both services.

    A lost connection is opened again, and the request is sent again: a command carries its id,
    so that it is decided once. Every method raises NoAnswer when no reply came in time, and
    NotAllowed when the broker's user may not send this; a query's raises QueryRefused when the
    answer is an error. What is not valid raises pydantic's ValidationError before it is sent.
    """

    def __init__(self, url: str, *, partitions: int = 8, within: float = WITHIN_S) -> None:
        """`partitions` is the deployment's CONSENT_PARTITIONS; `within` is in seconds."""
        self._url = url
        self._partitions = partitions
        self._within = within
        self._opening = asyncio.Lock()
        self._open = AsyncExitStack()
        self._broker: Broker | None = None
        self._requests: Requests | None = None
        self._next_try = 0.0
        self._failure = ""

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, url: str, *, partitions: int = 8, within: float = WITHIN_S
    ) -> AsyncIterator["ConsentClient"]:
        """Connect, and close the connection in the end; raises BROKER_ERRORS."""
        client = cls(url, partitions=partitions, within=within)
        try:
            with explained(BROKER):
                async with asyncio.timeout(within):
                    await client._connected()
            yield client
        finally:
            await client._open.aclose()

    async def ask(
        self,
        patient_id: str,
        by_entity: Entity,
        by_id: str,
        target: Target,
        *,
        expires_at: datetime | None = None,
        command_id: UUID | None = None,
    ) -> Outcome:
        """Ask a patient for consent, until a moment where one is given."""
        command = AskConsent(
            patient_id=patient_id,
            by_entity=by_entity,
            by_id=by_id,
            target=target,
            expires_at=expires_at,
        )
        return await self.send(command, command_id)

    async def grant(
        self,
        patient_id: str,
        to_entity: Entity,
        to_id: str,
        target: Target,
        *,
        expires_at: datetime | None = None,
        command_id: UUID | None = None,
    ) -> Outcome:
        """Grant consent on a patient's behalf; it ends by itself at a moment that is given.

        `expires_at` has a time zone, and is the first moment without the consent. A later one than
        what stands extends it, and an earlier one changes nothing: revoke first. Whether it is in
        the future, the services' clock says.
        """
        command = GrantConsent(
            patient_id=patient_id,
            to_entity=to_entity,
            to_id=to_id,
            target=target,
            expires_at=expires_at,
        )
        return await self.send(command, command_id)

    async def revoke(
        self,
        patient_id: str,
        from_entity: Entity,
        from_id: str,
        target: Target,
        *,
        command_id: UUID | None = None,
    ) -> Outcome:
        """Take consent back on a patient's behalf."""
        command = RevokeConsent(
            patient_id=patient_id, from_entity=from_entity, from_id=from_id, target=target
        )
        return await self.send(command, command_id)

    async def deny(
        self,
        patient_id: str,
        to_entity: Entity,
        to_id: str,
        target: Target,
        *,
        command_id: UUID | None = None,
    ) -> Outcome:
        """Say no, on a patient's behalf, to what somebody asks for."""
        command = DenyConsent(
            patient_id=patient_id, to_entity=to_entity, to_id=to_id, target=target
        )
        return await self.send(command, command_id)

    async def withdraw(
        self,
        patient_id: str,
        by_entity: Entity,
        by_id: str,
        target: Target,
        *,
        command_id: UUID | None = None,
    ) -> Outcome:
        """Take back, on behalf of who asked, what was asked for and is not answered."""
        command = WithdrawRequest(
            patient_id=patient_id, by_entity=by_entity, by_id=by_id, target=target
        )
        return await self.send(command, command_id)

    async def send(self, command: ConsentCommand, command_id: UUID | None = None) -> Outcome:
        """Send a command and return its outcome.

        The same `command_id` again returns the same outcome again and changes nothing:
        after NoAnswer, send the command with the id that you gave it before.
        """
        request = Request(
            names.COMMANDS,
            names.command_key(command, self._partitions),
            type(command).__name__,
            command.model_dump_json(exclude_none=True).encode(),
            str(command_id or uuid4()),
            persistent=True,
        )
        return readable((await self._ask(request)).body, _OUTCOME)

    async def list_consents(self, patient_id: str, *, min_version: int = 0) -> Consents:
        """List all that a patient has granted and is asked for.

        `min_version`, from an outcome, waits until that version is projected. A list of several
        pages is as of the version of the first, but for what has changed since.
        """
        pages = [await self.list_page(patient_id, min_version=min_version)]
        while (after := pages[-1].next) is not None:
            pages.append(await self.list_page(patient_id, after=after))
        entries = [entry for page in pages for entry in page.consents]
        return pages[0].model_copy(update={"consents": entries, "next": None})

    async def list_page(
        self,
        patient_id: str,
        *,
        min_version: int = 0,
        limit: int = MOST_GRANTEES,
        after: GranteePlace | None = None,
    ) -> Consents:
        """List at most 500 grantees of a patient; `after` is the `next` before."""
        query = ListConsents(
            patient_id=patient_id, min_version=min_version, limit=limit, after=after
        )
        return read_answer((await self._query(query, ListConsents.type)).body, _CONSENTS)

    async def has_consent(
        self,
        patient_id: str,
        entity_name: Entity,
        entity_id: str,
        permission: Target = "all",
        *,
        min_version: int = 0,
        at: datetime | None = None,
    ) -> ConsentHeld:
        """Ask whether somebody may see these records of this patient, or could at some moment.

        `at` has a time zone. What was purged can't be answered: QueryRefused says how far back.
        """
        query = HasConsent(
            patient_id=patient_id,
            entity_name=entity_name,
            entity_id=entity_id,
            permission=permission,
            min_version=min_version,
            at=at,
        )
        return read_answer((await self._query(query, HasConsent.type)).body, _HELD)

    async def check_consents(
        self, questions: Sequence[Question]
    ) -> list[ConsentChecked | QueryFailed]:
        """Ask many questions, 500 in a message; return their answers, in their order.

        What is wrong with one question is its answer, a QueryFailed. Where the answers of a
        message would be too large together, it is asked in halves.
        """
        answers: list[ConsentChecked | QueryFailed] = []
        for start in range(0, len(questions), MOST_QUESTIONS):
            answers += await self._check_some(questions[start : start + MOST_QUESTIONS])
        return answers

    async def _check_some(
        self, questions: Sequence[Question]
    ) -> list[ConsentChecked | QueryFailed]:
        query = CheckConsents(questions=list(questions))
        try:
            answer = await self._query(query, CheckConsents.type)
            return read_answer(answer.body, _CHECKED).answers
        except QueryRefused as refused:
            half = len(questions) // 2
            if refused.error != "validation_error" or not half:
                raise
        return [
            *await self._check_some(questions[:half]),
            *await self._check_some(questions[half:]),
        ]

    async def list_patients(
        self,
        entity_name: Entity,
        entity_id: str,
        permission: Target | None = None,
        *,
        limit: int = MOST_PATIENTS,
        after: str | None = None,
    ) -> Patients:
        """List at most 500 patients whose records somebody may see; `after` is the `next` before.

        There is more as long as there is a `next`, however few a page holds.
        """
        query = ListPatients(
            entity_name=entity_name,
            entity_id=entity_id,
            permission=permission,
            limit=limit,
            after=after,
        )
        return read_answer((await self._query(query, ListPatients.type)).body, _PATIENTS)

    async def patients(
        self, entity_name: Entity, entity_id: str, permission: Target | None = None
    ) -> AsyncIterator[PatientSeen]:
        """Go through all patients whose records somebody may see, sorted by their ids.

        Who is among them from the beginning to the end comes once, whatever else changes.
        """
        page = await self.list_patients(entity_name, entity_id, permission)
        while True:
            for patient in page.patients:
                yield patient
            if page.next is None:
                return
            page = await self.list_patients(entity_name, entity_id, permission, after=page.next)

    async def history(self, patient_id: str, *, min_version: int = 0) -> History:
        """Read a patient's whole history, as it was when its first page was read."""
        pages = [await self.history_page(patient_id, min_version=min_version)]
        while (after := pages[-1].next) is not None:
            pages.append(await self.history_page(patient_id, after=after))
        return joined(pages)

    async def history_page(
        self,
        patient_id: str,
        *,
        min_version: int = 0,
        limit: int = MOST_SPANS,
        after: Place | None = None,
    ) -> History:
        """Read at most 500 periods and requests of a patient; `after` is the `next` before."""
        query = ConsentHistory(
            patient_id=patient_id, min_version=min_version, limit=limit, after=after
        )
        return read_answer((await self._query(query, ConsentHistory.type)).body, _HISTORY)

    async def read_events(
        self,
        partition: int,
        *,
        after_position: int = 0,
        limit: int = MOST_EVENTS,
        patient_id: str | None = None,
    ) -> Page:
        """Read what follows a position in the log of a partition, at most 500 events."""
        query = ReadEvents(
            partition=partition, after_position=after_position, limit=limit, patient_id=patient_id
        )
        return read_answer((await self._query(query, ReadEvents.type)).body, PAGE)

    async def _query(self, query: BaseModel, type_: str) -> AmqpMessage:
        return await self._ask(query_request(query, type_))

    async def _ask(self, request: Request) -> AmqpMessage:
        """Ask, and ask again while there is time: over a new connection, or what was refused.

        What there is no queue for is not asked again, unless this request has met trouble before:
        then the broker's queues may be about to be declared anew.
        """
        failures: list[BaseException] = []
        try:
            async with asyncio.timeout(self._within):
                return await self._ask_until_answered(request, failures)
        except NoAnswer:
            self._blame_alarm(request)
            raise
        except TimeoutError:
            self._blame_alarm(request)
            failure = failures[-1] if failures else None
            raise _no_answer(request, self._within, failure) from failure

    async def _ask_until_answered(
        self, request: Request, failures: list[BaseException]
    ) -> AmqpMessage:
        deadline = monotonic() + self._within
        while True:
            try:
                with only_our_cancellation():
                    requests = await self._connected()
                    return await requests.ask(request, max(0.0, deadline - monotonic()))
            except (*BROKER_ERRORS, NotTaken, Unroutable) as error:
                if isinstance(error, Unroutable) and not failures:
                    raise
                failures.append(error)
                if sum(isinstance(failure, AccessRefused) for failure in failures) == REFUSED_TWICE:
                    raise NotAllowed(f"not allowed to send {request.type}: {error}") from error
            await asyncio.sleep(PAUSE_S)

    def _blame_alarm(self, request: Request) -> None:
        """Raise NoAnswer with the better reason, where the broker takes nothing from anybody."""
        if self._broker is not None and self._broker.alarm.reason:
            blocked = BrokerBlocked(self._broker.alarm.reason)
            raise NoAnswer(f"no answer to {request.type}: {blocked}") from blocked

    async def _connected(self) -> Requests:
        """Return what asks over the connection, which is opened where it is lost."""
        async with self._opening:
            if self._requests is None or self._broker is None or self._broker.is_lost():
                return await self._open_anew()
            return self._requests

    async def _open_anew(self) -> Requests:
        """Open the connection; what one request just failed to do the others do not try at once."""
        if monotonic() < self._next_try:
            raise ConnectionLost(self._failure)
        self._requests = self._broker = None
        await self._open.aclose()
        try:
            broker = await self._open.enter_async_context(connect(self._url, name="consent client"))
            requests = await Requests.open(broker)
        except BROKER_ERRORS as error:
            self._next_try, self._failure = monotonic() + PAUSE_S, said_by(error)
            raise
        self._broker, self._requests = broker, requests
        return requests


def _no_answer(request: Request, within: float, failure: BaseException | None) -> NoAnswer:
    why = f"the connection failed: {reason_of(failure)}" if failure else "not even a connection"
    if isinstance(failure, Unroutable):
        why = f"{failure}"
    elif isinstance(failure, NotTaken):
        why = "its queue refuses it: it is full, or has no leader"
    return NoAnswer(f"no answer to {request.type} within {within:.3g} s: {why}")

"""Bad neighbours at the broker: full queues, giant messages, forged addresses for replies."""

import asyncio
import json
from base64 import b64encode
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from random import Random
from struct import pack
from time import monotonic
from typing import Any
from uuid import UUID

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import ChannelPreconditionFailed, DeliveryError

from tests.chaos.databases import decided_ids
from tests.chaos.evidence import Command, Forgery, Giant, Json
from tests.chaos.listeners import ReplyListener
from tests.chaos.plan import Fault
from tests.chaos.senders import TARGETS, Sender, plain
from tests.sandbox.servers import NOT_YET
from tests.support.eventually import eventually

DIRECT = "amq.rabbitmq.reply-to"
TRAP = "chaos.trap"
TRAP_ARGUMENTS: dict[str, Any] = {"x-max-length": 1, "x-overflow": "reject-publish"}

TRIED_FOR_S = 15.0
"""One try of something that a broker's end may cut short."""
GIVEN_UP_AFTER_S = 180.0

GIANT_MB = 16
GIANT_FIELDS = 500_000
GIANT_ANSWERED_WITHIN_S = 15.0

FORGED_EVERY_S = 1 / 20
HONEST_AMONG = 4
"""With every so many forged addresses, one who is honest asks, too."""
ANSWERED_WITHIN_S = 30.0
"""Longer than a frozen worker's deliveries wait for another one."""
REPLIED_WITHIN_S = 3.0
"""After a command was decided."""
ASKS_AGAIN_EVERY_S = 1.0


class Neighbours:
    """Does what bad neighbours do, beside the wires, and notes what came of it."""

    def __init__(
        self, url: str, partitions: int, listener: ReplyListener, event_store_url: str
    ) -> None:
        self._url = url
        self._event_store_url = event_store_url
        self._partitions = partitions
        self._listener = listener
        self.commands: list[Command] = []
        self.giants: list[Giant] = []
        self.forgeries: list[Forgery] = []

    async def trap(self, fault: Fault) -> None:
        """Bind a queue to the events that is full and refuses more, for a while."""
        await _until_done(partial(_fill_and_bind, self._url))
        await asyncio.sleep(fault.seconds)
        await _until_done(partial(_delete_trap, self._url))

    async def send_giant(self, fault: Fault) -> None:
        """Send the largest message that the broker lets through, up to 16 MB of commands."""
        id_ = _id(Random(repr(fault)))  # noqa: S311 - to be played again
        key = f"ask.{int(fault.amount * self._partitions) % self._partitions}"
        for halved in range(8):
            body = _giant_body(fault.variant, 2**halved)
            found = Giant(id_, fault.variant, len(body), confirmed=False)
            sending = asyncio.ensure_future(_send_giant(self._url, found, key, body))
            await asyncio.wait([sending], timeout=GIVEN_UP_AFTER_S)
            sending.cancel()
            if _has_succeeded(sending):
                self.giants.append(replace(found, confirmed=True, answers=sending.result()))
                return
            if not (sending.done() and _is_refused(sending)):
                self.giants.append(found)  # the broker ended meanwhile: it may be there, or not
                return

    async def forge(self, fault: Fault) -> None:
        """Name addresses of nobody for replies, while honest ones ask beside it."""
        random = Random(repr(fault))  # noqa: S311 - to be played again
        forger = Sender("forger", self._url, self._partitions, reply_to=forged(fault.variant))
        asker = DirectAsker("direct asker", self._url, self._partitions, self._listener)
        honest: list[Command] = []
        at, ends = datetime.now(UTC), monotonic() + fault.seconds
        async with asyncio.TaskGroup() as sending:
            for number in range(int(fault.seconds / FORGED_EVERY_S)):
                await asyncio.sleep(max(0.0, ends - fault.seconds + number * FORGED_EVERY_S
                                        - monotonic()))  # fmt: skip
                sending.create_task(self._send(forger, self._command(random, "forger")))
                if number % HONEST_AMONG == 0:
                    honest.append(self._command(random, "direct asker"))
                    sending.create_task(self._send(asker, honest[-1]))
        self.forgeries.append(await self._outcome(at, asker, honest))
        await forger.close()
        await asker.close()

    async def _outcome(
        self, at: datetime, asker: "DirectAsker", honest: Sequence[Command]
    ) -> Forgery:
        def unanswered() -> list[Command]:
            return [one for one in honest if one.id not in self._listener.answered]

        async def all_answered() -> bool:
            return not unanswered()

        with suppress(AssertionError):
            await eventually(all_answered, within=ANSWERED_WITHIN_S)
        decided = await self._decided(honest)
        await asyncio.sleep(REPLIED_WITHIN_S if unanswered() else 0)
        lost = decided & {one.id for one in unanswered()}
        asked, at_first = (0, 0) if asker.was_cut else (len(decided), len(lost))
        never = await self._ask_again(asker, unanswered)
        return Forgery(at, asked, at_first, never)

    async def _ask_again(
        self, asker: "DirectAsker", unanswered: Callable[[], list[Command]]
    ) -> int:
        """Ask once a second for what was decided; return how many of these stay silent.

        What waits for a worker, since its partition is in the hands of the frozen and the killed,
        is waited for: a command that nobody has decided yet tells nothing about its reply.
        """
        given_up = deadline = monotonic() + GIVEN_UP_AFTER_S
        decided: set[str] = set()
        while (silent := unanswered()) and monotonic() < deadline:
            decided |= await self._decided(silent)
            again = [one for one in silent if one.id in decided]
            waits = len(again) < len(silent)
            deadline = given_up if waits else min(deadline, monotonic() + ANSWERED_WITHIN_S)
            await asyncio.gather(
                *(asker.send(one, "asked again directly", plain(one)) for one in again)
            )
            await asyncio.sleep(ASKS_AGAIN_EVERY_S)
        return sum(one.id in decided for one in unanswered())

    async def _decided(self, commands: Sequence[Command]) -> set[str]:
        """Return the ids of those that have an outcome: the others wait for a worker, yet."""
        with suppress(*NOT_YET):
            return {one.id for one in commands} & await decided_ids(self._event_store_url)
        return set()

    async def _send(self, sender: Sender, command: Command) -> None:
        await sender.send(command, "first", plain(command))

    def _command(self, random: Random, name: str) -> Command:
        """Make a command about a patient of whom nobody else speaks."""
        id_ = _id(random)
        patient_id = f"p-{name.replace(' ', '-')}-{id_[:8]}"
        target = random.choice(TARGETS)
        command = Command(id_, "GrantConsent", patient_id, "doctor", "d-1", target, name)
        self.commands.append(command)
        return command


class DirectAsker(Sender):
    """One who has replies sent to where it sends from."""

    def __init__(self, name: str, url: str, partitions: int, listener: ReplyListener) -> None:
        super().__init__(name, url, partitions, reply_to=DIRECT)
        self._listener = listener

    async def _prepare(self, channel: AbstractChannel) -> None:
        replies = await channel.get_queue(DIRECT, ensure=False)
        await replies.consume(self._listener.receive, no_ack=True)


def forged(variant: str) -> str:
    """Write a direct address that the broker can't deliver to."""
    if variant == "truncated":
        return f"{DIRECT}.g1h2AA5yZXBseUA1.AAAA=="
    node = b"evil@nowhere"
    process = b"\x83Xv" + pack(">H", len(node)) + node + pack(">III", 999, 0, 1)
    return f"{DIRECT}.{b64encode(process).decode()}.AAAA=="


async def _fill_and_bind(url: str) -> None:
    async with await aio_pika.connect(url, timeout=TRIED_FOR_S) as connection:
        channel = await connection.channel(publisher_confirms=True)
        queue = await channel.declare_queue(TRAP, durable=True, arguments=TRAP_ARGUMENTS)
        with suppress(DeliveryError):
            while True:  # until it refuses
                message = aio_pika.Message(b"full", delivery_mode=2)
                await channel.default_exchange.publish(message, TRAP)
        await queue.bind("consent.events", "#")


async def _delete_trap(url: str) -> None:
    async with await aio_pika.connect(url, timeout=TRIED_FOR_S) as connection:
        channel = await connection.channel()
        await channel.queue_delete(TRAP)


async def _until_done(deed: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Try until it succeeds: the broker may be away."""

    async def tried() -> bool:
        # In a task of its own: a broken connection cancels whoever waits in the library.
        trying = asyncio.ensure_future(deed())
        await asyncio.wait([trying], timeout=TRIED_FOR_S)
        trying.cancel()
        return _has_succeeded(trying)

    await eventually(tried, within=GIVEN_UP_AFTER_S, every=0.3)


async def _send_giant(url: str, giant: Giant, key: str, body: bytes) -> list[Json]:
    """Return the answers, once the broker has confirmed it and there was time for them."""
    answers: list[Json] = []

    async def receive(message: AbstractIncomingMessage) -> None:
        answers.append(json.loads(message.body))

    async def any_answer() -> bool:
        return bool(answers)

    is_command = giant.type == "AskConsent"
    name, key = ("consent.commands", key) if is_command else ("consent.queries", giant.type)
    async with await aio_pika.connect(url, timeout=TRIED_FOR_S) as connection:
        channel = await connection.channel(publisher_confirms=True)
        await (await channel.get_queue(DIRECT, ensure=False)).consume(receive, no_ack=True)
        exchange = await channel.get_exchange(name, ensure=False)
        await exchange.publish(_giant_message(giant, body), key)
        with suppress(AssertionError):
            await eventually(any_answer, within=GIANT_ANSWERED_WITHIN_S)
    return answers


def _giant_message(giant: Giant, body: bytes) -> aio_pika.Message:
    return aio_pika.Message(
        body,
        type=giant.type,
        message_id=giant.id,
        correlation_id=giant.id,
        content_type="application/json",
        reply_to=DIRECT,
        delivery_mode=2,
    )


def _giant_body(type_: str, divided_by: int) -> bytes:
    """Write JSON of very many empty lists, or of very many fields that nobody knows."""
    if type_ == "AskConsent":
        lists = GIANT_MB * 1024 * 1024 // divided_by // 3
        return b'{"patient_id":"p-giant","a":[' + b"[]," * lists + b"[]]}"
    fields = range(GIANT_FIELDS // divided_by)
    return b"{" + b",".join(b'"f%d":0' % number for number in fields) + b"}"


def _has_succeeded(task: asyncio.Future[Any]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _is_refused(task: asyncio.Future[Any]) -> bool:
    """Whether the broker takes no message of this size."""
    return not task.cancelled() and isinstance(task.exception(), ChannelPreconditionFailed)


def _id(random: Random) -> str:
    return str(UUID(int=random.getrandbits(128), version=4))

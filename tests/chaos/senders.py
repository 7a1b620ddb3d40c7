"""Sends commands: each patient's one after the other, each with its confirm, and repeats."""

import asyncio
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from random import Random
from uuid import UUID
from zlib import crc32

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange

from tests.chaos.evidence import Command

REPLIES = "chaos.replies"
COMMANDS = "consent.commands"
VERBS = {
    "AskConsent": "ask",
    "GrantConsent": "grant",
    "RevokeConsent": "revoke",
    "DenyConsent": "deny",
    "WithdrawRequest": "withdraw",
}
OFTEN = (25, 35, 26, 8, 6)
"""Of a hundred commands, how many are of each kind."""
SOON_S = 6.0
LATER = timedelta(days=1)
ENDS_OF = {"AskConsent": (0.1, 0.3), "GrantConsent": (0.45, 0.55)}
"""How many of them end soon, and how many of them end at all."""
ELSEWHERE = timezone(timedelta(hours=5, minutes=30))
TARGETS = ("exams", "consultations", "conditions", "er_visits", "all")
GRANTEES = (("doctor", "d-1"), ("doctor", "d-2"), ("nurse", "n-1"), ("patient", "p-other"))
CONFIRM_WITHIN_S = 8.0
AGAIN_AFTER_S = 0.2
HOT_FOR = 50
"""Commands of a lane."""
REMEMBERED = 300


class Sender:
    """A connection that is made anew whenever it breaks; what was unconfirmed is sent again."""

    def __init__(self, name: str, url: str, partitions: int, *, reply_to: str = REPLIES) -> None:
        self.name = name
        self._reply_to = reply_to
        self.reconnects = 0
        self._url = url
        self._partitions = partitions
        self._connection: AbstractConnection | None = None
        self._exchange: AbstractExchange | None = None
        self._connecting = asyncio.Lock()

    @property
    def was_cut(self) -> bool:
        """Whether its connection was lost, so far."""
        whole = self._connection is not None and self._connection.connected.is_set()
        return not whole or self.reconnects > 0

    async def send(self, command: Command, note: str, body: bytes) -> None:
        """Return when the broker has confirmed the command, however often that takes sending."""
        while not await self._try(command, note, body):
            note = "again, since it was not confirmed"
            await asyncio.sleep(AGAIN_AFTER_S)

    async def _try(self, command: Command, note: str, body: bytes) -> bool:
        exchange = await self._connected()
        if exchange is None:
            return False
        key = f"{VERBS[command.type]}.{crc32(command.patient_id.encode()) % self._partitions}"
        command.sent.append((datetime.now(UTC), note))
        # In a task of its own: a broken connection cancels whoever waits in the library.
        message = _message(command, body, self._reply_to)
        publishing = asyncio.ensure_future(exchange.publish(message, key))
        await asyncio.wait([publishing], timeout=CONFIRM_WITHIN_S)
        if publishing.done() and not publishing.cancelled() and publishing.exception() is None:
            return True
        publishing.cancel()
        await self._drop(exchange)
        return False

    async def _connected(self) -> AbstractExchange | None:
        async with self._connecting:
            if self._exchange is None:
                connecting = asyncio.ensure_future(self._connect())
                await asyncio.wait([connecting], timeout=CONFIRM_WITHIN_S)
                if not connecting.done():
                    connecting.cancel()
                elif not connecting.cancelled() and connecting.exception() is None:
                    self._exchange = connecting.result()
            return self._exchange

    async def _connect(self) -> AbstractExchange:
        self._connection = await aio_pika.connect(self._url, timeout=CONFIRM_WITHIN_S)
        channel = await self._connection.channel(publisher_confirms=True)
        await self._prepare(channel)
        return await channel.get_exchange(COMMANDS, ensure=False)

    async def _prepare(self, channel: AbstractChannel) -> None:
        """Do with a new channel what else is needed."""

    async def _drop(self, exchange: AbstractExchange) -> None:
        if self._exchange is exchange:
            self._exchange = None
            self.reconnects += 1
            await self.close()

    async def close(self) -> None:
        """Close the connection, if it still can be."""
        if self._connection is not None:
            closing = asyncio.ensure_future(self._connection.close())
            await asyncio.wait([closing], timeout=2)
            closing.cancel()
            self._connection = None


def _message(command: Command, body: bytes, reply_to: str) -> aio_pika.Message:
    return aio_pika.Message(
        body,
        type=command.type,
        message_id=command.id,
        correlation_id=command.id,
        content_type="application/json",
        reply_to=reply_to,
        delivery_mode=2,
    )


def plain(command: Command) -> bytes:
    """Write a command's body as most would."""
    return json.dumps(command.body()).encode()


def otherwise(command: Command) -> bytes:
    """Write the same in another order and zone, with other white space, and escapes."""
    body = dict(reversed(command.body(ELSEWHERE).items()))
    text = json.dumps(body, indent=3, separators=(" ,", " : "))
    return text.replace("exams", "\\u0065xams").encode() + b"\n"


@dataclass
class Lane:
    """The only one who sends the commands of its patients, never two of a patient at once."""

    sender: Sender
    patients: Sequence[str]
    hot: str | None
    """The name of those who get most of its commands for a while, one after the other: what is
    wrong with one that is left in peace stays wrong, and is found."""
    random: Random
    seconds_between: float
    commands: list[Command] = field(default_factory=list)
    repeats: int = 0
    _recent: "deque[Command]" = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    async def run(self, stop: asyncio.Event) -> None:
        """Send until told to stop, then finish what is under way."""
        burst = 0
        while not stop.is_set():
            await self._one()
            burst = self.random.randint(10, 60) if self.random.random() < 0.01 else burst - 1
            if burst <= 0:
                await _pause(self.random.expovariate(1 / self.seconds_between), stop)

    async def _one(self) -> None:
        chance = self.random.random()
        if chance < 0.10 and self._recent:
            await self._repeat_later()
            return
        command = self._next()
        self.commands.append(command)
        self._recent.append(command)
        if chance < 0.20:
            await self._send_twice_at_once(command)
        else:
            await self.sender.send(command, "first", plain(command))

    async def _repeat_later(self) -> None:
        command = self.random.choice(self._recent)
        body = self.random.choice((plain, otherwise))(command)
        self.repeats += 1
        await self.sender.send(command, "repeat later", body)

    async def _send_twice_at_once(self, command: Command) -> None:
        self.repeats += 1
        write = self.random.choice((plain, otherwise))
        await asyncio.gather(
            self.sender.send(command, "first", plain(command)),
            self.sender.send(command, "repeat at once", write(command)),
        )

    def _next(self) -> Command:
        random = self.random
        is_hot = self.hot and random.random() < 0.6
        hot = f"{self.hot}-{len(self.commands) // HOT_FOR}"
        entity, entity_id = random.choice(GRANTEES)
        type_ = random.choices(tuple(VERBS), OFTEN)[0]
        return Command(
            id=str(UUID(int=random.getrandbits(128), version=4)),
            type=type_,
            patient_id=hot if is_hot else random.choice(self.patients),
            entity=entity,
            entity_id=entity_id,
            target=random.choice(TARGETS),
            sender=self.sender.name,
            expires_at=self._end(type_),
        )

    def _end(self, type_: str) -> datetime | None:
        soon, at_all = ENDS_OF.get(type_, (0.0, 0.0))
        chance, seconds = self.random.random(), self.random.uniform(0.2, SOON_S)
        if chance >= at_all:
            return None
        return datetime.now(UTC) + (timedelta(seconds=seconds) if chance < soon else LATER)


def make_lanes(
    senders: Sequence[Sender], *, lanes: int, hot: int, others: int, rate: float, seed: int
) -> list[Lane]:
    """Share the patients out, each to one lane."""
    other_ones = [f"p-{number}" for number in range(others)]
    return [
        Lane(
            sender=senders[number % len(senders)],
            patients=other_ones[number::lanes],
            hot=f"p-hot-{number}" if number < hot else None,
            random=Random(f"lane {number} {seed}"),  # noqa: S311 - to be played again
            seconds_between=lanes / rate,
        )
        for number in range(lanes)
    ]


async def _pause(seconds: float, stop: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return

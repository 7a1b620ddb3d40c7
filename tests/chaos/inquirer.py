"""Asks all the time whether consents are in force, most of all about those that are ending."""

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from random import Random
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from tests.chaos.evidence import Command, Held, Json

QUERIES = "consent.queries"
DIRECT = "amq.rabbitmq.reply-to"
ASKS_EVERY_S = 0.05
ANSWERS_WITHIN_S = 5.0
AGAIN_AFTER_S = 0.5
LAST = 200
"""Of the commands with an end, so many are looked at for the one whose end is nearest."""


class Inquirer:
    """Asks one question after the other, over a connection that is made anew when it breaks."""

    def __init__(self, url: str, commands: Callable[[], Sequence[Command]], random: Random) -> None:
        self._url = url
        self._commands = commands
        self._random = random
        self._waiting: dict[str, asyncio.Future[Json]] = {}
        self.held: list[Held] = []

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            asking = asyncio.ensure_future(self._ask_over_a_connection())
            try:
                await asyncio.wait([asking])
            finally:
                asking.cancel()
            await asyncio.sleep(AGAIN_AFTER_S)

    async def _ask_over_a_connection(self) -> None:
        connection = await aio_pika.connect(f"{self._url}?heartbeat=5", timeout=ANSWERS_WITHIN_S)
        try:
            channel = await connection.channel()
            replies = await channel.get_queue(DIRECT, ensure=False)
            await replies.consume(self._receive, no_ack=True)
            while connection.connected.is_set():
                if command := self._choice():
                    await self._ask(channel, command)
                await asyncio.sleep(ASKS_EVERY_S)
        finally:
            with suppress(Exception):
                async with asyncio.timeout(2):
                    await connection.close()

    def _choice(self) -> Command | None:
        """Choose somebody whose consent is ending just now, as often as anybody."""
        commands = self._commands()
        ending = [one for one in commands if one.expires_at is not None][-LAST:]
        if ending and self._random.random() < 0.5:
            now = datetime.now(UTC)
            return min(ending, key=lambda one: abs((one.expires_at or now) - now))
        return self._random.choice(commands[-LAST:]) if commands else None

    async def _ask(self, channel: AbstractChannel, command: Command) -> None:
        correlation_id, asked_at = str(uuid4()), datetime.now(UTC)
        self._waiting[correlation_id] = asyncio.get_running_loop().create_future()
        try:
            await self._publish(channel, command, correlation_id)
            async with asyncio.timeout(ANSWERS_WITHIN_S):
                answer = await self._waiting[correlation_id]
        except TimeoutError:
            return
        finally:
            del self._waiting[correlation_id]
        if answer["status"] == "ok":
            who = (command.patient_id, command.entity, command.entity_id, command.target)
            outcome = (answer["version"], answer["has_consent"])
            self.held.append(Held(asked_at, datetime.now(UTC), *who, *outcome))

    async def _publish(
        self, channel: AbstractChannel, command: Command, correlation_id: str
    ) -> None:
        body = {
            "patient_id": command.patient_id,
            "entity_name": command.entity,
            "entity_id": command.entity_id,
            "permission": command.target,
        }
        message = aio_pika.Message(
            json.dumps(body).encode(),
            type="HasConsent",
            correlation_id=correlation_id,
            reply_to=DIRECT,
            expiration=ANSWERS_WITHIN_S,
        )
        exchange = await channel.get_exchange(QUERIES, ensure=False)
        await exchange.publish(message, "HasConsent", mandatory=False)

    async def _receive(self, message: AbstractIncomingMessage) -> None:
        waiting = self._waiting.get(message.correlation_id or "")
        if waiting is not None and not waiting.done():
            waiting.set_result(json.loads(message.body))

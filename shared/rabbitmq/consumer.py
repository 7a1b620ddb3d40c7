"""Takes deliveries from a worker's queues in batches, and settles them in order."""

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Final

import aiormq

from shared.errors import TopologyMissing
from shared.errors.connection import ConnectionLost
from shared.rabbitmq.connection import AmqpMessage, Broker, Channel, consume
from shared.rabbitmq.wire.socket import acknowledge
from shared.values.oversized import LARGEST_REQUEST, bounded
from shared.values.partition import Lease

CONSUMED_WITHIN_S: Final = 30.0
"""RabbitMQ lets whoever would read a quorum queue without a leader wait for over a minute."""
ACKNOWLEDGE_WITHIN_S: Final = 0.25
"""An acknowledgement costs the broker about as much as a message: one settles all until then. What
it was not told comes back after a death, and is known by its receipt or its position."""
LONGEST_PAUSE_S: Final = 0.012
"""Between two batches, however long the first of them took."""
CROWD: Final = 3
"""So many that have arrived at once: fewer would gain less than they wait."""
SUSPICIOUS: Final = 4
"""A message that came back so often may be what kills workers; less can be anybody's bad luck."""


@dataclass(eq=False, slots=True)
class QueueConsumer:
    """A queue being read, on a channel of its own, so that it can be given back in order."""

    queue: str
    channel: Channel
    lease: Lease | None
    """None for a queue that every worker reads."""
    counts: bool = True
    """Whether the broker counts there how often a message comes back, as quorum queues do."""
    ordered: bool = True
    """Whether what comes back must come back in order; else each delivery is settled by itself."""
    stopped: bool = False
    """Whether what is delivered now is left unsettled, to go back when the channel closes."""
    in_hand: int = 0
    """Delivered and not yet settled."""
    settled: set[int] = field(default_factory=set)
    """Delivery tags that are done with, of which the broker has not been told yet."""
    let_go: int | None = None
    """The oldest delivery tag that was let go: it, and what follows it, is not acknowledged."""
    held: set[int] = field(default_factory=set)
    """Delivery tags that stay unsettled after their batch; what follows them is acknowledged."""
    gone: set[int] = field(default_factory=set)
    """Delivery tags that the broker has been told of, though their batch has not ended yet."""
    telling: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the broker is told: it minds the order of acknowledgements."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: dict[int, float] = field(default_factory=dict)
    """When each delivery in hand came, by its tag and the monotonic clock, the oldest first."""

    def settle(self, tag: int) -> None:
        """Be done with a delivery, unless it is held."""
        if tag not in self.held and tag not in self.gone:
            self.settled.add(tag)
        self.gone.discard(tag)

    def take_settled(self) -> tuple[int | None, list[int]]:
        """Take out what to acknowledge: all up to one tag, and others one by one.

        All at once goes as far as nothing before it is still in hand, held or let go. Behind one
        that is held for long, others would take up the prefetch if they waited for it.
        """
        undone = (next(iter(self.arrived), None), self.let_go, min(self.held, default=None))
        first = min((tag for tag in undone if tag is not None), default=None)
        before = {tag for tag in self.settled if first is None or tag < first}
        behind = sorted(self.settled - before) if self.held or not self.ordered else []
        if self.let_go is not None:
            behind = [tag for tag in behind if tag < self.let_go]
        self.settled -= before.union(behind)
        return max(before, default=None), behind


@dataclass(frozen=True, slots=True)
class Delivery:
    """A delivery in hand, and where it came from."""

    source: QueueConsumer
    message: AmqpMessage

    @property
    def tag(self) -> int:
        """What the broker calls it on this channel."""
        return self.message.delivery_tag or 0

    @property
    def arrived(self) -> float:
        """When it came, by the monotonic clock; it must not be settled yet."""
        return self.source.arrived[self.tag]

    @property
    def partition(self) -> int | None:
        """The partition whose queue it came from; None for a queue that every worker reads."""
        return self.source.lease.partition if self.source.lease else None

    @property
    def traceparent(self) -> str | None:
        """Its sender's trace context, as the sender wrote it."""
        return self._text("traceparent")

    @property
    def tracestate(self) -> str | None:
        """What else its sender's tracing system says."""
        return self._text("tracestate")

    def _text(self, header: str) -> str | None:
        value = (self.message.header.properties.headers or {}).get(header)
        return value if isinstance(value, str) else None

    @property
    def delivery_count(self) -> int:
        """How often it was delivered before and came back unsettled.

        The broker says so of what it delivers again; else it is the sender's word, or of another
        life of the message, that ended in the dead letters.
        """
        if not self.message.redelivered or not self.source.counts:
            return 0
        headers = self.message.header.properties.headers or {}
        count = headers.get("x-delivery-count", 0)
        return count if isinstance(count, int) else 0


class Consumer:
    """Reads some queues into one inbox. Its size is bounded by the prefetch of each queue.

    When a worker dies, all that it had in hand comes back, and counts as delivered once more: the
    message that killed it, and every innocent one that was prefetched beside it. So messages that
    came back again and again are handed out one at a time, each settled before the next.

    Of a body that is larger than `largest`, only the beginning is kept in hand.

    The prefetch is never lowered: a quorum queue puts what comes back behind what came back
    before and has not been delivered since. Only a consumer that takes all of it keeps the order.
    """

    def __init__(self, broker: Broker, *, prefetch: int, largest: int = LARGEST_REQUEST) -> None:
        self._broker = broker
        self._prefetch = prefetch
        self._largest = largest
        self._many = prefetch // 4
        """So many that wait to be taken wait no longer, and so many to be acknowledged."""
        self._most_held = prefetch * 2 // 5
        """Of one queue: what is held takes up the prefetch, and the others need the rest."""
        self._inbox: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self._settled = asyncio.Event()
        self._woken = False
        self._taken_at = monotonic()
        self._sources: dict[str, QueueConsumer] = {}

    async def open(
        self, queue: str, lease: Lease | None = None, *, counts: bool = True, ordered: bool = True
    ) -> QueueConsumer:
        """Begin to read a queue; a classic one does not count what comes back."""
        channel = await self._broker.channel()
        source = QueueConsumer(queue, channel, lease, counts, ordered)
        source.idle.set()
        self._sources[queue] = source
        try:
            async with asyncio.timeout(CONSUMED_WITHIN_S):
                await consume(
                    source.channel,
                    queue,
                    self._prefetch,
                    lambda message: self._arrive(Delivery(source, self._bounded(message))),
                )
        except TimeoutError:
            raise ConnectionLost(f"the queue {queue} does not answer: has it a leader?") from None
        except aiormq.exceptions.ChannelNotFoundEntity:
            raise TopologyMissing(queue) from None
        return source

    async def take(
        self,
        most: int,
        within: float | None = None,
        *,
        gather_s: float = 0.0,
        paced: bool = False,
    ) -> list[Delivery]:
        """Return whatever has arrived, at most `most`, oldest first; a suspicious message alone.

        Waits for the first one; in vain when it is woken, or after `within` seconds. Where a crowd
        has arrived, more are on their way: these are given `gather_s` to come, too.

        A batch of one costs as much as one of ten. So who is `paced` and finds that something came
        while the last batch was under way gives the next one as long again to grow: a process is
        never busy for more than half of the time with what could have been done together. What
        comes while nothing is under way is taken at once, and so is what would fill a batch.
        """
        if paced and 0 < len(self._inbox) < self._many:
            await asyncio.sleep(min(monotonic() - self._taken_at, LONGEST_PAUSE_S))
        while not self._inbox and not self._woken:  # what had arrived may be let go meanwhile
            self._arrived.clear()
            try:
                async with asyncio.timeout(within):
                    await self._arrived.wait()
            except TimeoutError:
                return []
        self._woken = False
        if gather_s and CROWD <= len(self._inbox) < most:
            await asyncio.sleep(gather_s)
        if self._inbox and self._inbox[0].delivery_count >= SUSPICIOUS:
            return [self._inbox.popleft()]
        taken: list[Delivery] = []
        while self._inbox and len(taken) < most and self._inbox[0].delivery_count < SUSPICIOUS:
            taken.append(self._inbox.popleft())
        self._taken_at = monotonic()
        return taken

    def wake(self) -> None:
        """Have whoever takes go on, now or when it next waits."""
        self._woken = True
        self._arrived.set()

    async def settle(self, deliveries: Iterable[Delivery]) -> None:
        """Be done with these deliveries, but for those that are held.

        They are acknowledged soon, many at once, when all that came before them on their queues is
        done with too; one that is suspicious at once, and for certain.
        """
        suspicious: set[QueueConsumer] = set()
        touched: set[QueueConsumer] = set()
        for delivery in deliveries:
            source = delivery.source
            source.settle(delivery.tag)
            touched.add(source)
            if delivery.delivery_count >= SUSPICIOUS:
                suspicious.add(source)
            self._done(delivery)
        for source in touched:
            if source in suspicious or len(source.settled) >= self._many:
                await _acknowledge(source)
        for source in suspicious:
            await self._barrier(source)
        self._settled.set()

    async def keep_acknowledging(self) -> None:
        """Acknowledge what is settled, a little later and together, until cancelled."""
        while True:
            await self._settled.wait()
            await asyncio.sleep(ACKNOWLEDGE_WITHIN_S)
            self._settled.clear()
            await self.acknowledge()

    async def acknowledge(self) -> None:
        """Acknowledge all that is settled."""
        for source in list(self._sources.values()):
            await _acknowledge(source)

    def oldest_s(self) -> float:
        """Say for how many seconds the oldest delivery has been in hand; 0 where none is.

        Nothing is any more once the connection is lost: the broker has taken it all back.
        """
        firsts = [
            next(iter(source.arrived.values()))
            for source in self._sources.values()
            if source.arrived
        ]
        if not firsts or self._broker.is_lost():
            return 0.0
        return monotonic() - min(firsts)

    def let_go(self, deliveries: Iterable[Delivery]) -> None:
        """Leave these deliveries unsettled; they go back when their queue is closed."""
        for delivery in deliveries:
            source = delivery.source
            source.let_go = (
                delivery.tag if source.let_go is None else min(source.let_go, delivery.tag)
            )
            self._done(delivery)

    async def settle_one(self, delivery: Delivery) -> None:
        """Acknowledge this delivery alone."""
        self._done(delivery)
        await acknowledge(delivery.source.channel, delivery.tag)

    async def hold(self, delivery: Delivery) -> bool:
        """Keep a delivery unsettled, though its batch is settled, until it is released.

        It goes back when its queue is closed, and nobody waits for it; but it takes up prefetch.
        Where too much of that is taken up, the broker is told to set it aside by itself, and keeps
        it until it can. Returns whether the delivery is held.
        """
        source = delivery.source
        if len(source.held) < self._most_held:
            source.held.add(delivery.tag)
            return True
        source.gone.add(delivery.tag)
        await source.channel.basic_reject(delivery.tag, requeue=False, wait=False)
        return False

    def is_held(self, source: QueueConsumer, tag: int) -> bool:
        """Whether this delivery is held, and its queue still read."""
        return tag in source.held and self._sources.get(source.queue) is source

    async def release(self, source: QueueConsumer, tag: int) -> None:
        """Acknowledge a delivery that is held."""
        async with source.telling:
            source.held.discard(tag)
            if tag in source.arrived:
                source.gone.add(tag)
            await acknowledge(source.channel, tag)

    def stop(self, queue: str) -> None:
        """Take nothing new from a queue: what nobody handles yet goes back when it is closed.

        The consumer stays. RabbitMQ gives the deliveries that cancelling it overtakes back to the
        queue by itself, in any order where they are many; closing the channel keeps the order.
        Until then this worker stays the single active consumer, so that no later command can
        overtake one that is still in hand here, not even when its lease runs out meanwhile.
        """
        source = self._sources[queue]
        source.stopped = True
        self.let_go(self._withdraw(source))

    async def drained(self, queue: str) -> None:
        """Return when all that is in hand of a queue is settled, and the broker told so."""
        source = self._sources[queue]
        await source.idle.wait()
        await _acknowledge(source)

    async def close(self, queue: str) -> None:
        """Stop reading a queue; what is not settled goes back to it in order."""
        source = self._sources.pop(queue)
        self._withdraw(source)
        await self._broker.close_channel(source.channel)

    def _withdraw(self, source: QueueConsumer) -> list[Delivery]:
        """Take out of the inbox what came from a queue, and return it."""
        withdrawn = [delivery for delivery in self._inbox if delivery.source is source]
        self._inbox = deque(delivery for delivery in self._inbox if delivery.source is not source)
        return withdrawn

    async def _barrier(self, source: QueueConsumer) -> None:
        """Return when the broker has done all that this channel asked of it before."""
        await source.channel.basic_qos(prefetch_count=self._prefetch)

    def _done(self, delivery: Delivery) -> None:
        delivery.source.arrived.pop(delivery.tag, None)
        delivery.source.in_hand -= 1
        if delivery.source.in_hand == 0:
            delivery.source.idle.set()

    def _bounded(self, message: AmqpMessage) -> AmqpMessage:
        body = bounded(message.body, self._largest)
        return message if body is message.body else replace(message, body=body)

    def _arrive(self, delivery: Delivery) -> None:
        if delivery.source.stopped:
            return
        delivery.source.arrived[delivery.tag] = monotonic()
        delivery.source.in_hand += 1
        delivery.source.idle.clear()
        self._inbox.append(delivery)
        self._arrived.set()


async def _acknowledge(source: QueueConsumer) -> None:
    """Tell the broker what is settled of a queue."""
    async with source.telling:
        newest, apart = source.take_settled()
        if newest is not None:
            await acknowledge(source.channel, newest, multiple=True)
        for tag in apart:
            await acknowledge(source.channel, tag)

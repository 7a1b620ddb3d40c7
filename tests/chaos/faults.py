"""Makes the planned faults happen to workers, servers and wires."""

import asyncio
import contextlib
import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from http.client import HTTPException
from pathlib import Path
from time import monotonic
from typing import Any

from tests.chaos.evidence import Span
from tests.chaos.links import Direction, Disorder, Wire
from tests.chaos.neighbours import Neighbours
from tests.chaos.plan import LATE_S, LEASE_S, NEIGHBOURS, OVER_AFTER_S, SENDERS, Fault
from tests.chaos.takeovers import Takeovers
from tests.sandbox import Sandbox
from tests.sandbox.cluster import Cluster
from tests.sandbox.pair import Pair
from tests.sandbox.servers import NOT_YET, Broker, BrokerRefused, DatabaseServer, Server
from tests.support.deployment import Deployment, ServiceName, Worker
from tests.support.eventually import eventually

MUTE_BEFORE_END_S = 1.2
BEGINS_WITHIN_S = 4.0
STOPPED_WITHIN_S = 60.0
WHOLE_WITHIN_S = 60.0
VHOST = "chaos"
HURRIED = 3
"""Exit code of a worker that left before it was drained."""
GOOD_EXITS = (0, HURRIED)

ALARMS = {
    "memory": ("set_vm_memory_high_watermark", "0"),
    "disk": ("set_disk_free_limit", "900000GB"),
}
"""By which the broker takes nothing more from whoever publishes."""
ALARMS_OVER = {
    "memory": ("set_vm_memory_high_watermark", "0.4"),
    "disk": ("set_disk_free_limit", "50MB"),
}

ONLY_IN_WRITES = (b"exams", b"consultations", b"conditions", b"er_visits")
"""A worker sends the names of record types to its database only to write them."""
WRITES_WITHIN_S = 3.0

TERMINATE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND datname IS NOT NULL
"""


@dataclass
class Slot:
    """A place for a worker: whoever ends there is followed by another, behind the same wires."""

    name: str
    service: ServiceName
    deployment: Deployment
    broker: Wire
    database: Wire
    worker: Worker = field(init=False)
    strange_ends: list[str] = field(default_factory=list)
    left: int = 0
    """How many workers here left by themselves, lest they hang."""
    largest_mb: float = 0.0
    """The most memory that was seen in a worker here."""

    def start(self) -> None:
        """Start a worker here."""
        database = "EVENT_STORE_URL" if self.service == "command_service" else "READ_MODEL_URL"
        urls = {"RABBITMQ_URL": self.broker.url, database: self.database.url}
        self.worker = self.deployment.start(self.service, **urls)

    def replace(self) -> None:
        """Start another in place of one that has ended."""
        self.start()

    async def ready(self) -> None:
        """Give a young worker the time to begin, mostly: what does nothing yet can break little."""
        self.look()
        with contextlib.suppress(AssertionError):
            await eventually(self._has_begun, within=BEGINS_WITHIN_S, every=0.1)
        self.look()

    async def _has_begun(self) -> bool:
        return "session.started" in self.worker.log

    def look(self) -> None:
        """Note it where a worker has ended by itself, and replace it.

        It may: rather than that it hangs at its end, it leaves, for whoever watches it to replace.
        """
        if (code := self.worker.process.poll()) is not None:
            self.left += code == HURRIED
            if code != HURRIED:
                self.strange_ends.append(f"{self.name} ended by itself with {code}")
            self.start()

    def weigh(self) -> None:
        """Note the most memory that the worker has taken so far, where the system tells it."""
        status = Path(f"/proc/{self.worker.process.pid}/status")
        with contextlib.suppress(OSError, StopIteration):
            lines = status.read_text(encoding="utf-8").splitlines()
            most = next(line for line in lines if line.startswith("VmHWM:"))
            self.largest_mb = max(self.largest_mb, int(most.split()[1]) / 1024)

    def note_exit(self, code: int) -> None:
        """Note it where a worker that was told to stop did not do so well."""
        stopped_too_young = code == -signal.SIGTERM and "worker.started" not in self.worker.log
        if code not in GOOD_EXITS and not stopped_too_young:
            self.strange_ends.append(f"{self.name} was told to stop, and ended with {code}")


class Faults:
    """Everything that faults happen to, and what has happened."""

    def __init__(
        self,
        sandbox: Sandbox,
        slots: Sequence[Slot],
        sender_links: Sequence[Wire],
        neighbours: Neighbours,
        takeovers: Takeovers,
    ) -> None:
        self._neighbours = neighbours
        self._takeovers = takeovers
        self._slots = {slot.name: slot for slot in slots}
        self._links: dict[str, Wire] = {
            f"sender-{number}": link for number, link in enumerate(sender_links)
        }
        for slot in slots:
            self._links[f"{slot.name}/broker"] = slot.broker
            self._links[f"{slot.name}/database"] = slot.database
        self._broker: Broker = sandbox.broker
        self._databases: dict[str, DatabaseServer] = {
            "event_store": sandbox.event_store_server,
            "read_model": sandbox.read_model_server,
        }
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.counts: Counter[str] = Counter()
        self.happened: list[tuple[datetime, Fault]] = []
        self.under_way = 0
        self.problems: list[str] = []
        self.spans: list[Span] = []

    @property
    def slots(self) -> Sequence[Slot]:
        """All places for workers."""
        return list(self._slots.values())

    async def run(self, faults: Sequence[Fault], seconds: float) -> None:
        """Let all faults happen, each at its time; two on the same target wait for each other.

        Whatever has waited until long after that many seconds does not happen.
        """
        began = monotonic()
        ends = began + seconds
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(max(0.0, began + fault.at - monotonic()))
                group.create_task(self._happen(fault, ends))

    async def _happen(self, fault: Fault, ends: float) -> None:
        async with self._locks[fault.target]:
            if monotonic() > ends + (0.0 if fault.kind == "stall" else LATE_S):
                self.counts["left out"] += 1
                return
            self.under_way += 1
            self.counts[fault.kind] += 1
            began = datetime.now(UTC)
            self.happened.append((began, fault))
            await self._deeds()[fault.kind](fault)
            self.spans.append(Span(fault.kind, began, datetime.now(UTC)))
            self.under_way -= 1

    def _deeds(self) -> dict[str, Callable[[Fault], Coroutine[Any, Any, None]]]:
        return {
            "kill": self._kill,
            "freeze": self._freeze,
            "stop": self._stop,
            "cut": self._cut,
            "silence": self._silence,
            "zombie": self._zombie,
            "delay": self._delay,
            "trickle": self._trickle,
            "broker": self._restart_broker,
            "database": self._restart_database,
            "terminate": self._terminate,
            "stall": self._stall,
            "block": self._block,
            "trap": self._neighbours.trap,
            "giant": self._neighbours.send_giant,
            "forge": self._neighbours.forge,
        }

    async def _kill(self, fault: Fault) -> None:
        slot = self._slots[fault.target]
        await slot.ready()
        if fault.variant != "now":
            end, _, direction = fault.variant.partition(" ")
            async with self._locks[f"{slot.name}/{end}"]:
                link: Wire = getattr(slot, end)
                link.disturb(Disorder("silence", _directions(direction)))
                await asyncio.sleep(MUTE_BEFORE_END_S * fault.amount)
                slot.worker.kill()
                # What was silenced on its way up still arrives, from beyond the grave.
                await asyncio.sleep(fault.seconds if direction == "up" else 0)
                link.disturb(None)
        else:
            slot.worker.kill()
        slot.replace()

    async def _freeze(self, fault: Fault) -> None:
        slot = self._slots[fault.target]
        await slot.ready()
        slot.worker.send(signal.SIGSTOP)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            slot.worker.send(signal.SIGCONT)

    async def _stop(self, fault: Fault) -> None:
        slot = self._slots[fault.target]
        await slot.ready()
        if fault.variant == "without its database":
            async with self._locks[f"{slot.name}/database"]:
                slot.database.disturb(Disorder("silence"))
                code = await asyncio.to_thread(slot.worker.stop, STOPPED_WITHIN_S)
                slot.database.disturb(None)
        else:
            if fault.variant == "twice":
                slot.worker.send(signal.SIGTERM)
                await asyncio.sleep(fault.amount)
            code = await asyncio.to_thread(slot.worker.stop, STOPPED_WITHIN_S)
        self.counts["hurried"] += code == HURRIED
        slot.note_exit(code)
        slot.replace()

    async def _cut(self, fault: Fault) -> None:
        link = self._links[fault.target]
        if fault.variant == "torn":
            link.disturb(Disorder("trickle", seconds=0.001))
            await asyncio.sleep(0.1 + fault.amount)
        if fault.variant == "refusing":
            link.disturb(Disorder("refuse"))
            await asyncio.sleep(fault.seconds)
        link.cut()
        link.disturb(None)

    async def _silence(self, fault: Fault) -> None:
        link = self._links[fault.target]
        link.disturb(Disorder("silence", _directions(fault.variant)))
        await asyncio.sleep(fault.seconds)
        if fault.amount < 0.3:
            link.cut()
        link.disturb(None)

    async def _zombie(self, fault: Fault) -> None:
        """Hold back what a worker wrote to its database until another has its partitions."""
        both = [f"{fault.target}-{number}" for number in (0, 1)]
        slot = self._slots[both[fault.amount < 0.5]]
        # The other one is left in peace, to take over. In this order, lest two faults wait
        # for each other: workers before wires.
        async with self._undisturbed(*both, *(f"{one}/database" for one in both)):
            await slot.ready()
            slot.database.disturb(Disorder("silence", ("up",), waits_for=ONLY_IN_WRITES))
            with contextlib.suppress(AssertionError):
                await eventually(partial(_is_silent, slot.database), within=WRITES_WITHIN_S)
            if fault.variant == "without its broker":
                slot.broker.cut()
            await asyncio.sleep(fault.seconds)
            slot.database.disturb(None)

    async def _delay(self, fault: Fault) -> None:
        link = self._links[fault.target]
        link.disturb(Disorder("delay", seconds=0.02 + 0.6 * fault.amount**2))
        await asyncio.sleep(fault.seconds)
        link.disturb(None)

    async def _trickle(self, fault: Fault) -> None:
        link = self._links[fault.target]
        link.disturb(Disorder("trickle", seconds=0.0005 + 0.003 * fault.amount))
        await asyncio.sleep(fault.seconds)
        link.disturb(None)

    async def _restart_broker(self, fault: Fault) -> None:
        if isinstance(self._broker, Cluster):
            await self._lose_node(self._broker, fault)
        else:
            await asyncio.to_thread(_restart, self._broker, fault)

    async def _lose_node(self, cluster: Cluster, fault: Fault) -> None:
        """Take one node away; the next fault of the kind waits until it is back in every queue."""
        node = cluster.nodes[int(fault.amount * len(cluster.nodes)) % len(cluster.nodes)]
        if fault.variant == "freeze":
            node.freeze()
            await asyncio.sleep(fault.seconds)
            node.thaw()  # RabbitMQ 3.10 stays apart from the others, until it begins anew
        await asyncio.to_thread(_restart, node, fault)
        with contextlib.suppress(AssertionError):
            await eventually(partial(_is_whole, cluster), within=WHOLE_WITHIN_S, every=0.5)

    async def _restart_database(self, fault: Fault) -> None:
        server = self._databases[fault.target]
        if isinstance(server, Pair):
            await self._fail_over(server, fault)
        else:
            await asyncio.to_thread(_restart, server, fault)

    async def _fail_over(self, pair: Pair, fault: Fault) -> None:
        """Lose the primary, have the standby take its place, and give it a standby of its own."""
        lost = pair.primary
        if fault.variant == "freeze":
            lost.freeze()
            await asyncio.sleep(min(fault.seconds, LEASE_S))
        elif fault.variant == "stop":
            await asyncio.to_thread(lost.stop)
        else:
            await asyncio.to_thread(lost.kill)
        await asyncio.to_thread(pair.promote)
        if fault.variant == "freeze":
            await asyncio.to_thread(lost.kill_frozen)
        await asyncio.to_thread(pair.follow)

    async def _terminate(self, fault: Fault) -> None:
        server = self._databases[fault.target]
        with contextlib.suppress(*NOT_YET):
            await asyncio.to_thread(partial(server.execute, TERMINATE))

    async def _stall(self, fault: Fault) -> None:
        """Let a worker's database fall silent, for long, and see that another one takes over."""
        kind = fault.target
        victim, other = f"{kind}-0", f"{kind}-1"
        if fault.amount < 0.5:
            victim, other = other, victim
        slot = self._slots[victim]
        async with self._undisturbed(victim, f"{victim}/database"):
            async with self._undisturbed(*self._needed_to_take_over(kind, victim, other)):
                partitions = await self._owned_by(slot, self._slots[other], kind)
                slot.database.disturb(Disorder("silence"))
                silent_since = monotonic()
                await self._takeovers.measure(kind, slot.worker.name, partitions)
            await asyncio.sleep(max(0.0, silent_since + fault.seconds - monotonic()))
            if fault.variant == "cut at last":
                slot.database.cut()
            slot.database.disturb(None)

    def _needed_to_take_over(self, kind: str, victim: str, other: str) -> Sequence[str]:
        """Name what is left in peace meanwhile: only so it can be said how long it takes.

        Workers before wires before servers, lest two faults wait for each other.
        """
        wires = (f"{other}/database", f"{victim}/broker", f"{other}/broker")
        needed = {"command": (*SENDERS, "event_store"), "projection": ("read_model",)}
        return (other, *wires, *needed[kind], "broker")

    async def _owned_by(self, slot: Slot, other: Slot, kind: str) -> set[int]:
        for one in (slot, other):
            await one.ready()
        names = [one.worker.name for one in (slot, other)]
        try:
            return (await self._takeovers.steady(kind, names))[slot.worker.name]
        except AssertionError as error:
            self.problems.append(f"in peace, {' and '.join(names)} did not share: {error}")
            return set()

    @contextlib.asynccontextmanager
    async def _undisturbed(self, *targets: str) -> AsyncIterator[None]:
        """Keep other faults away from these targets."""
        async with contextlib.AsyncExitStack() as held:
            for target in targets:
                await held.enter_async_context(self._locks[target])
            yield

    async def _block(self, fault: Fault) -> None:
        """Let the broker run out of memory, or of disk, by its own measure."""
        try:
            await asyncio.to_thread(self._broker.ctl, *ALARMS[fault.variant])
            await asyncio.sleep(fault.seconds)
        finally:
            await asyncio.to_thread(self._broker.ctl, *ALARMS_OVER[fault.variant])

    def heal(self) -> None:
        """Let every wire carry, and a worker run in every slot."""
        for link in self._links.values():
            link.disturb(None)
        for slot in self._slots.values():
            slot.worker.send(signal.SIGCONT)
            slot.look()


def when_alone(spans: Sequence[Span]) -> list[Span]:
    """Return when bad neighbours were at work, and nothing else was or had just been."""
    others = [one for one in spans if one.kind not in NEIGHBOURS]
    over = timedelta(seconds=OVER_AFTER_S)
    return [
        span
        for span in spans
        if span.kind in NEIGHBOURS
        and all(one.ended + over < span.began or one.began > span.ended for one in others)
    ]


def _directions(named: str) -> tuple[Direction, ...]:
    known: dict[str, tuple[Direction, ...]] = {"up": ("up",), "down": ("down",)}
    return known.get(named, ("up", "down"))


async def _is_whole(cluster: Cluster) -> bool:
    with contextlib.suppress(OSError, HTTPException, BrokerRefused):
        return await asyncio.to_thread(cluster.is_whole, VHOST)
    return False


async def _is_silent(link: Wire) -> bool:
    return link.silent


def _restart(server: Server, fault: Fault) -> None:
    if fault.variant == "stop":
        server.stop()
    else:
        server.kill()
    server.start()

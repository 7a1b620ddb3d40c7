"""One round: start everything, break things for a while, heal, and gather the evidence."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from time import monotonic
from urllib.parse import quote
from zlib import crc32

from tests.chaos.checker import TOLD_WITHIN
from tests.chaos.databases import (
    add_event_store,
    add_read_model,
    cursors,
    decided_ids,
    set_up_witnesses,
)
from tests.chaos.evidence import Command, Evidence
from tests.chaos.faults import Faults, Slot, when_alone
from tests.chaos.inquirer import Inquirer
from tests.chaos.links import Wires, open_wires
from tests.chaos.listeners import ReplyListener, declare_queues, read_dead_letters, read_events
from tests.chaos.neighbours import Neighbours
from tests.chaos.plan import (
    ANSWERED_WITHIN_S,
    MARGIN_S,
    MOST_COPIES,
    SENDERS,
    SLOTS,
    Fault,
    plan,
    repeats_allowed,
)
from tests.chaos.senders import LATER, Sender, make_lanes, plain
from tests.chaos.takeovers import Progress, Takeovers
from tests.sandbox import Sandbox
from tests.support.deployment import Deployment, ServiceName
from tests.support.eventually import eventually

HEALED_WITHIN_S = 180.0
ASKED_AGAIN_WITHIN_S = 120.0
WINDOW = 50
STEADY_S = 6.0
"""The broker counts what its queues hold every five seconds."""

Tell = Callable[[str], None]


class NotHealedError(Exception):
    """Something was still open when everything had long been let heal; the message says what."""


@dataclass(frozen=True)
class Settings:
    """How a round is played."""

    seconds: float = 120.0
    seed: int = 1
    partitions: int = 4
    rate: float = 150.0
    """Commands a second, all senders together, beside bursts."""
    lanes: int = 16
    hot: int = 10
    cluster: bool = False
    """Whether there are three nodes of the broker, and two of each database."""
    others: int = 3000
    only: tuple[str, ...] = ()
    """The kinds of faults; all where none is named."""


@dataclass
class Result:
    """What came of a round."""

    settings: Settings
    evidence: Evidence
    faults: Faults
    happened: Sequence[tuple[datetime, Fault]]
    reconnects: int = 0
    asked_again: int = 0
    problems: list[str] = field(default_factory=list)
    """What went wrong beside what the checker finds."""


class Round:
    """Everything that takes part in a round."""

    def __init__(
        self, settings: Settings, sandbox: Sandbox, deployment: Deployment, wires: Wires, tell: Tell
    ) -> None:
        self._settings = settings
        self._sandbox = sandbox
        self._deployment = deployment
        self._tell = tell
        links = [wires.lay(deployment.rabbitmq_url) for _ in SENDERS]
        url = deployment.rabbitmq_url
        self._broker_url = wires.lay(url).url if settings.cluster else url
        """For those who know one host, and are disturbed by nobody."""
        self._senders = [
            Sender(name, link.url, settings.partitions)
            for name, link in zip(SENDERS, links, strict=True)
        ]
        self._lanes = make_lanes(
            self._senders,
            lanes=settings.lanes,
            hot=settings.hot,
            others=settings.others,
            rate=settings.rate,
            seed=settings.seed,
        )
        self._listener = ReplyListener(self._broker_url)
        self._inquirer = Inquirer(
            self._broker_url,
            self._commands,
            Random(f"inquirer {settings.seed}"),  # noqa: S311 - to be played again
        )
        self._neighbours = Neighbours(
            self._broker_url,
            settings.partitions,
            self._listener,
            deployment.event_store_url,
        )
        self._takeovers = Takeovers(
            deployment.event_store_url, deployment.read_model_url, self._answered_since
        )
        slots = [_slot(name, deployment, wires) for name in SLOTS]
        self._faults = Faults(sandbox, slots, links, self._neighbours, self._takeovers)
        self._problems: list[str] = []

    async def play(self) -> Result:
        """Play it to the end, and return what it left behind."""
        await self._start()
        async with self._listening():
            async with self._weighing():
                await self._break_things()
                healed = await self._heal()
            lost = frozenset(self._ids() - await decided_ids(self._deployment.event_store_url))
            asked_again = await self._ask_again() if healed else 0
            await self._until_ends_were_told()
        evidence = await self._gather(lost)
        for sender in self._senders:
            await sender.close()
        return Result(
            settings=self._settings,
            evidence=evidence,
            faults=self._faults,
            happened=self._faults.happened,
            reconnects=sum(one.reconnects for one in self._senders),
            asked_again=asked_again,
            problems=[
                *self._problems,
                *self._faults.problems,
                *(end for slot in self._faults.slots for end in slot.strange_ends),
            ],
        )

    async def _start(self) -> None:
        self._tell("migrating, declaring queues, starting four workers")
        await asyncio.to_thread(self._deployment.prepare)
        await set_up_witnesses(self._deployment.event_store_url, self._deployment.read_model_url)
        await declare_queues(self._broker_url)
        await asyncio.to_thread(self._sandbox.broker.put_on_disk)
        for slot in self._faults.slots:
            slot.start()
        for slot in self._faults.slots:
            await asyncio.to_thread(slot.worker.wait_ready)

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[None]:
        listening = [
            asyncio.create_task(self._listener.run()),
            asyncio.create_task(self._inquirer.run()),
        ]
        try:
            yield
        finally:
            for task in listening:
                task.cancel()
            for task in listening:
                with suppress(asyncio.CancelledError):
                    await task

    @asynccontextmanager
    async def _weighing(self) -> AsyncIterator[None]:
        async def weigh() -> None:
            while True:
                for slot in self._faults.slots:
                    slot.weigh()
                await asyncio.sleep(0.5)

        weighing = asyncio.create_task(weigh())
        try:
            yield
        finally:
            weighing.cancel()

    def _answered_since(self, moment: datetime) -> Progress:
        sent = {
            command.id: crc32(command.patient_id.encode()) % self._settings.partitions
            for lane in self._lanes
            for command in lane.commands
            if command.sent and command.sent[0][0] > moment
        }
        return Progress(
            set(sent.values()),
            {partition for id_, partition in sent.items() if id_ in self._listener.answered},
        )

    async def _break_things(self) -> None:
        stop = asyncio.Event()
        seconds = self._settings.seconds
        faults = plan(
            self._settings.seed,
            seconds,
            self._settings.only,
            cluster=self._settings.cluster,
        )
        async with asyncio.TaskGroup() as group:
            telling = group.create_task(self._tell_now_and_then())
            breaking = group.create_task(self._faults.run(faults, seconds))
            sending = [group.create_task(lane.run(stop)) for lane in self._lanes]
            await asyncio.sleep(seconds)
            await breaking
            stop.set()
            self._faults.heal()
            await asyncio.gather(*sending)
            telling.cancel()

    async def _tell_now_and_then(self) -> None:
        began = monotonic()
        while True:
            await asyncio.sleep(1)
            happened = len(self._faults.happened)
            self._tell(
                f"{monotonic() - began:.0f} of {self._settings.seconds:.0f} s:"
                f" {len(self._commands())} commands, {len(self._listener.answered)} answered,"
                f" {happened} faults, {self._faults.under_way} under way"
            )

    async def _heal(self) -> bool:
        self._tell("all is let heal")
        try:
            await self._until_quiet(HEALED_WITHIN_S)
        except NotHealedError as error:
            self._problems.append(f"not healed within {HEALED_WITHIN_S:.0f} s: {error}")
            return False
        return True

    async def _until_quiet(self, within: float) -> None:
        """Return when nothing is open any more; raises NotHealedError with what still is."""
        deadline = monotonic() + within
        quiet_since: float | None = None
        while True:
            open_ones = await self._open_ones()
            quiet_since = None if open_ones else quiet_since or monotonic()
            if quiet_since is not None and monotonic() - quiet_since >= STEADY_S:
                return
            if monotonic() > deadline:
                raise NotHealedError("; ".join(open_ones) or "it did not stay quiet")
            await asyncio.sleep(0.3)

    async def _open_ones(self) -> list[str]:
        deployment = self._deployment
        found = await cursors(deployment.event_store_url, deployment.read_model_url)
        behind = [
            f"partition {number} has position {at[0]}, published {at[1]}, projected {at[2]}"
            for number, at in found.items()
            if len(set(at)) > 1
        ]
        return behind + [
            f"{name} holds {depth}" for name, depth in (await self._depths()).items() if depth
        ]

    async def _depths(self) -> dict[str, int]:
        vhost = quote(self._deployment.rabbitmq_url.rsplit("/", 1)[1], safe="")
        queues = await asyncio.to_thread(self._sandbox.broker.api, "GET", f"/queues/{vhost}")
        return {
            queue["name"]: queue.get("messages", 0)
            for queue in queues
            if queue["name"].startswith(("consent.commands.", "consent.projection."))
        }

    async def _ask_again(self) -> int:
        """Send once more what was confirmed and never answered: a broker's end may lose replies."""
        silent = [one for one in self._commands() if one.id not in self._listener.answered]
        self._tell(f"asking again for {len(silent)} replies")
        for some in (silent[n : n + WINDOW] for n in range(0, len(silent), WINDOW)):
            asking = (self._senders[0].send(one, "asked again", plain(one)) for one in some)
            await asyncio.gather(*asking)
        try:
            await eventually(self._all_answered, within=ASKED_AGAIN_WITHIN_S, every=0.2)
            await self._until_quiet(ASKED_AGAIN_WITHIN_S)
        except (AssertionError, NotHealedError) as error:
            self._problems.append(f"after asking again: {error}")
        return len(silent)

    async def _until_ends_were_told(self) -> None:
        """Wait until every end that comes soon has come, and its event had time to come too."""
        self._tell("waiting for the last ends")
        ends = [one.expires_at for one in self._commands() if one.expires_at is not None]
        last = max((end for end in ends if end < datetime.now(UTC) + LATER / 2), default=None)
        if last is not None:
            left = last + TOLD_WITHIN - datetime.now(UTC)
            await asyncio.sleep(max(0.0, left.total_seconds()))
        try:
            await self._until_quiet(ASKED_AGAIN_WITHIN_S)
        except NotHealedError as error:
            self._problems.append(f"after the last ends: {error}")

    async def _all_answered(self) -> bool:
        return self._ids() <= self._listener.answered

    async def _gather(self, lost: frozenset[str]) -> Evidence:
        self._tell("reading the log, the read model and the subscriber's queue")
        deployment = self._deployment
        evidence = Evidence(
            partitions=self._settings.partitions,
            commands=self._commands(),
            without_outcome_when_healed=lost,
            replies=self._listener.replies,
            held=self._inquirer.held,
            received=await read_events(self._broker_url),
            dead_letters=await read_dead_letters(self._broker_url),
            giants=self._neighbours.giants,
            alone=when_alone(self._faults.spans),
            takeovers=self._takeovers.found,
            forgeries=self._neighbours.forgeries,
            largest_mb={slot.name: slot.largest_mb for slot in self._faults.slots},
            answered_within=ANSWERED_WITHIN_S + MARGIN_S,
            repeats_allowed=repeats_allowed(self._faults.counts),
            copies_allowed=MOST_COPIES,
        )
        await add_event_store(evidence, deployment.event_store_url)
        await add_read_model(evidence, deployment.read_model_url)
        return evidence

    def _commands(self) -> list[Command]:
        of_lanes = [command for lane in self._lanes for command in lane.commands]
        return of_lanes + self._neighbours.commands

    def _ids(self) -> set[str]:
        return {command.id for command in self._commands()}


def _slot(name: str, deployment: Deployment, wires: Wires) -> Slot:
    kind = name.partition("-")[0]
    service: ServiceName = "command_service" if kind == "command" else "projection_service"
    urls = {"command": deployment.event_store_url, "projection": deployment.read_model_url}
    broker = wires.lay_all(deployment.rabbitmq_url)
    database = wires.lay_all(_impatient(urls[kind]))
    return Slot(name, service, deployment, broker, database)


def _impatient(url: str) -> str:
    """Have a worker wait for no longer for a host that is frozen, where there is another."""
    return f"{url}&connect_timeout=2" if "target_session_attrs" in url else url


def play(settings: Settings, sandbox: Sandbox, deployment: Deployment, tell: Tell) -> Result:
    """Play a round on servers of its own."""
    with open_wires() as wires:

        async def playing() -> Result:
            return await Round(settings, sandbox, deployment, wires, tell).play()

        return asyncio.run(playing())

"""How many waiting commands per second come to their replies, and to their rows.

The commands are in their queues before the clock starts, held there by a gate, while one worker of
each kind is ready and idle: so neither the start of processes nor the loader's work is measured.
The clock starts when the gate opens. Nobody consumes replies during the run, as that would cost
CPU on the same machine: the length of their queue is looked up every 20 ms, and the replies are
read, and checked one by one, after the run. How far the log is published, and the read model's
checkpoints, are looked up likewise.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any

import aio_pika
import asyncpg
from aio_pika.abc import AbstractChannel, AbstractQueue

from tests.bench.bench import Bench, Figure, Section, Sizes, UnmetError, expect
from tests.bench.cpu import NAMES, CpuMeter, CpuReading, others_figure
from tests.bench.gate import Gate
from tests.bench.grants import Grant, make_grants, publish_all
from tests.bench.progress import Tell
from tests.deployment import Deployment, open_deployment

LOOK_EVERY_S = 0.02
STALLED_S = 10.0
"""A run in which nothing happens for so long has lost something."""
EXCHANGE = "consent.commands"

Count = Callable[[], Awaitable[int]]
Reply = dict[str, Any]

HOW = (
    (
        "{grants:,} grants for {patients:,} patients, all different, wait in {partitions} quorum"
        " queues; one worker of each kind is ready and idle; the clock starts when the queues are"
        " opened to them (start-up and publishing do not count)."
    ),
    (
        "Replies go to one exclusive classic queue. Nobody consumes it during the run: its length"
        " is looked up every 20 ms (so the resolution is 20 ms); afterwards every reply is read and"
        " checked. What delivering replies to their senders costs is thus not in these figures."
    ),
    (
        "Published: how far the event store knows the broker to have confirmed the events; the"
        " worker writes that down every half second, and when nothing is left to publish."
        " Visible: the read model's checkpoints. Both are looked up every 20 ms; afterwards every"
        " event and row is counted."
    ),
    (
        "CPU: from the opening of the queues until all is replied, published and visible, user and"
        " system time of each part with its children, per command."
    ),
    (
        "Used by others: kernel threads and every other program on this machine, as a share of all"
        " its cores; if it is large, the figures are too low."
    ),
)


@dataclass(frozen=True)
class Run:
    """One run, in seconds since the queues were opened."""

    commands: int
    first_reply_s: float
    last_reply_s: float
    last_event_s: float
    last_row_s: float
    cpu: CpuReading


def measure(bench: Bench) -> Section:
    """Run several times, each in a deployment of its own."""
    sizes = bench.sizes
    runs = [_run(bench, number) for number in range(1, sizes.throughput_runs + 1)]
    how = [
        line.format(grants=sizes.grants, patients=sizes.patients, partitions=sizes.partitions)
        for line in HOW
    ]
    return Section("Throughput", how, [*_rates(runs), *_cpu(runs)])


def _rates(runs: Sequence[Run]) -> list[Figure]:
    return [
        Figure(
            "to the last reply", "commands/s", [one.commands / one.last_reply_s for one in runs]
        ),
        Figure(
            "to the last event published", "commands/s", [r.commands / r.last_event_s for r in runs]
        ),
        Figure("to the last row visible", "commands/s", [r.commands / r.last_row_s for r in runs]),
        Figure("until the first reply is seen", "ms", [one.first_reply_s * 1000 for one in runs]),
    ]


def _cpu(runs: Sequence[Run]) -> list[Figure]:
    def per_command(name: str, seconds: Sequence[float]) -> Figure:
        milliseconds = [1000 * s / run.commands for s, run in zip(seconds, runs, strict=False)]
        return Figure(f"CPU {name}", "ms/command", milliseconds)

    parts = [
        per_command(name, [run.cpu.parts[part] for run in runs if part in run.cpu.parts])
        for part, name in NAMES.items()
    ]
    benchmark = per_command("the benchmark's own looking", [run.cpu.benchmark for run in runs])
    return [*parts, benchmark, others_figure(run.cpu for run in runs)]


def _run(bench: Bench, number: int) -> Run:
    sizes = bench.sizes
    name = f"throughput_{number}"
    title = f"throughput, run {number} of {sizes.throughput_runs}"
    with open_deployment(bench.sandbox, name, partitions=sizes.partitions) as deployment:
        with bench.steps.step(f"{title}: new databases and queues"):
            deployment.prepare()
        return asyncio.run(_fill_and_run(bench, deployment, title))


async def _fill_and_run(bench: Bench, deployment: Deployment, title: str) -> Run:
    grants = make_grants(bench.sizes.patients, bench.sizes.grants_per_patient)
    async with await aio_pika.connect(deployment.rabbitmq_url) as connection:
        channel = await connection.channel(on_return_raises=True)
        replies = await channel.declare_queue(exclusive=True)
        gate = await Gate.close(deployment.rabbitmq_url, deployment.partitions)
        with bench.steps.step(f"{title}: filling the queues", len(grants)) as tell:
            exchange = await channel.get_exchange(EXCHANGE, ensure=False)
            await publish_all(exchange, grants, deployment.partitions, replies.name, tell)
        with bench.steps.step(f"{title}: starting the workers"):
            await asyncio.to_thread(deployment.start_both)
            meter = await CpuMeter.of(bench, deployment)
            expect(
                await _length(channel, replies) == 0,
                "a worker took commands behind the closed gate",
            )
        try:
            with bench.steps.step(f"{title}: running", len(grants)) as tell:
                run = await _timed(deployment, gate, meter, (channel, replies), len(grants), tell)
        except UnmetError:
            check_replies(await _read(channel, replies), grants, bench.sizes)
            raise  # no reply tells better why
        with bench.steps.step(f"{title}: checking every reply and row"):
            check_replies(await _read(channel, replies), grants, bench.sizes)
            await _check_rows(deployment, bench.sizes)
        return run


async def _timed(
    deployment: Deployment,
    gate: Gate,
    meter: CpuMeter,
    replies: tuple[AbstractChannel, AbstractQueue],
    commands: int,
    tell: Tell,
) -> Run:
    async with (
        _counting(
            deployment.event_store_url, "SELECT sum(published_position) FROM partitions"
        ) as published,
        _counting(deployment.read_model_url, "SELECT sum(position) FROM checkpoints") as visible,
    ):
        before, start = meter.read(), monotonic()
        await gate.open()
        (first_reply, last_reply), (_, last_event), (_, last_row) = await asyncio.gather(
            _watch("replies", lambda: _length(*replies), commands, tell),
            _watch("events published", published, commands),
            _watch("events visible", visible, commands),
        )
        cpu = meter.read().since(before)
    first_reply, last_reply, last_event, last_row = (
        moment - start for moment in (first_reply, last_reply, last_event, last_row)
    )
    return Run(commands, first_reply, last_reply, last_event, last_row, cpu)


@asynccontextmanager
async def _counting(url: str, sql: str) -> AsyncIterator[Count]:
    """Connect, and yield what asks that one number."""
    connection = await asyncpg.connect(url)
    try:
        statement = await connection.prepare(sql)

        async def count() -> int:
            return int(await statement.fetchval() or 0)

        yield count
    finally:
        await connection.close()


async def _watch(
    what: str, count: Count, wanted: int, tell: Tell = lambda _: None
) -> tuple[float, float]:
    """Look until there are as many as wanted; return when the first and the last were seen."""
    first, found, moved = 0.0, 0, monotonic()
    while found < wanted:
        before, found = found, await count()
        now = monotonic()
        if found > before:
            first, moved = first or now, now
            tell(found)
        expect(
            now < moved + STALLED_S,
            f"only {found:,} of {wanted:,} {what}, and nothing more for {STALLED_S:g} s",
        )
        await asyncio.sleep(LOOK_EVERY_S if found < wanted else 0)
    return first, moved


async def _length(channel: AbstractChannel, queue: AbstractQueue) -> int:
    """Count the messages in a queue, by declaring it passively."""
    found = await channel.declare_queue(queue.name, passive=True)
    return found.declaration_result.message_count or 0


async def _read(channel: AbstractChannel, replies: AbstractQueue) -> list[Reply]:
    """Take off the queue what is there."""
    present = await _length(channel, replies)
    async with replies.iterator(no_ack=True) as messages:
        return [json.loads((await anext(messages)).body) for _ in range(present)]


def check_replies(replies: Iterable[Reply], grants: Sequence[Grant], sizes: Sizes) -> None:
    """Check that every command was accepted, once, with the next version of its patient."""
    waiting = {one.command_id: one.patient_id for one in grants}
    versions: dict[str, set[int]] = defaultdict(set)
    for reply in replies:
        expect(reply["status"] == "accepted", f"a command was rejected: {reply}")
        patient_id = waiting.pop(reply["command_id"], None)
        expect(patient_id, f"a reply twice, or to nobody's command: {reply}")
        versions[str(patient_id)].add(reply["version"])
    expect(not waiting, f"{len(waiting):,} commands have no reply")
    all_versions = set(range(1, sizes.grants_per_patient + 1))
    wrong = [patient_id for patient_id, seen in versions.items() if seen != all_versions]
    expect(not wrong, f"versions are missing or double for {len(wrong)} patients: {wrong[:3]}")


async def _check_rows(deployment: Deployment, sizes: Sizes) -> None:
    """Check that every event is in the log, and every consent in the read model."""
    logged = await _value(deployment.event_store_url, "SELECT count(*) FROM events")
    expect(logged == sizes.grants, f"{logged:,} events in the log, not {sizes.grants:,}")
    rows = await _value(
        deployment.read_model_url,
        "SELECT count(*) FROM patient_consent WHERE permissions = ARRAY['exams']",
    )
    expect(rows == sizes.grants, f"{rows:,} consents in the read model, not {sizes.grants:,}")
    patients = await _value(
        deployment.read_model_url,
        f"SELECT count(*) FROM patients WHERE version = {sizes.grants_per_patient}",  # noqa: S608
    )
    expect(
        patients == sizes.patients,
        f"{patients:,} patients at their last version, not {sizes.patients:,}",
    )


async def _value(url: str, sql: str) -> int:
    async with _counting(url, sql) as count:
        return await count()

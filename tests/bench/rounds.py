"""One run each of what is compared; a round of all of them takes half a minute.

Commands, or events, are in their queues before the clock starts, held there by a gate, while the
process that is measured is ready and idle: so neither its start nor the loader's work is measured.
The clock starts when the gate opens. Nobody consumes replies during a run, as that would cost CPU
on the same machine: the length of their queue is looked up, and the replies are read and checked,
one by one, afterwards.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic

from shared.messages import names
from shared.rabbitmq.connection import Broker, Channel, connect
from tests.bench.bench import Bench, UnmetError, expect
from tests.bench.cpu import CpuMeter, CpuReading
from tests.bench.gate import Gate
from tests.bench.grants import (
    Grant,
    check_replies,
    make_grants,
    per_partition,
    publish_all,
    read_replies,
)
from tests.bench.looking import VISIBLE, counting, length, value, watch, watch_queues
from tests.bench.stage import open_stage
from tests.bench.work import Work, end_and_read_work, read_work
from tests.support.deployment import Deployment, ServiceName, Worker
from tests.support.eventually import eventually


@dataclass(frozen=True)
class Bare:
    """What nothing but the AMQP steps comes to, per second."""

    commands: float
    events_acknowledged: float


@dataclass(frozen=True)
class Write:
    """What one command worker alone comes to, and then one projection worker alone."""

    commands: float
    first_reply_s: float
    command_work: Work
    events_projected: float
    projection_work: Work


@dataclass(frozen=True)
class End:
    """What workers of both kinds come to, together."""

    commands: float
    replied: float
    cpu: CpuReading
    idle: CpuReading | None
    """Measured where there is one worker of each kind, that owns all."""


@dataclass(frozen=True)
class Scene:
    """What a run needs at hand."""

    bench: Bench
    deployment: Deployment
    broker: Broker
    channel: Channel
    replies: str
    grants: Sequence[Grant]
    title: str

    @property
    def command_queues(self) -> list[str]:
        """One for each partition."""
        return [names.command_queue(number) for number in range(self.deployment.partitions)]

    @property
    def projection_queues(self) -> list[str]:
        """One for each partition."""
        return [names.projection_queue(number) for number in range(self.deployment.partitions)]

    async def replied(self) -> int:
        """Count the replies."""
        return await length(self.channel, self.replies)

    async def last_event(self) -> float:
        """Return when the last event was seen in its projection queue."""
        counts = per_partition(self.grants, self.deployment.partitions)
        return await watch_queues(self.channel, self.projection_queues, counts)

    @asynccontextmanager
    async def all_accepted(self) -> AsyncIterator[None]:
        """Check every reply afterwards: where something is missing, they tell best why."""
        try:
            yield
        finally:
            replies = await read_replies(self.broker, self.replies)
            check_replies(replies, self.grants, self.bench.sizes)


def bare(bench: Bench, title: str) -> Bare:
    """Run the AMQP steps alone."""
    with open_stage(bench, "bare") as deployment:
        return asyncio.run(_bare(bench, deployment, title))


def write(bench: Bench, title: str) -> Write:
    """Run one command worker, then one projection worker."""
    with open_stage(bench, "write") as deployment:
        return asyncio.run(_write(bench, deployment, title))


def end_to_end(bench: Bench, title: str, workers: int) -> End:
    """Run so many workers of each kind at once."""
    with open_stage(bench, "end") as deployment:
        return asyncio.run(_end_to_end(bench, deployment, title, workers))


@asynccontextmanager
async def _scene(bench: Bench, deployment: Deployment, title: str) -> AsyncIterator[Scene]:
    """Fill the commands' queues; nobody is there yet to take anything."""
    grants = make_grants(bench.sizes.patients, bench.sizes.grants_per_patient)
    async with connect(deployment.rabbitmq_url, name="benchmark") as broker:
        channel = await broker.channel()
        replies = (await channel.queue_declare(exclusive=True)).queue or ""
        with bench.steps.step(f"{title}: filling the queues", len(grants)) as tell:
            await publish_all(broker, grants, deployment.partitions, replies, tell)
        yield Scene(bench, deployment, broker, channel, replies, grants, title)


async def _bare(bench: Bench, deployment: Deployment, title: str) -> Bare:
    async with _scene(bench, deployment, title) as scene:
        with bench.steps.step(f"{title}: the same AMQP steps alone"):
            commands = await _bare_steps(scene)
        with bench.steps.step(f"{title}: acknowledging the events alone"):
            return Bare(commands, await _bare_acknowledging(scene))


async def _bare_steps(scene: Scene) -> float:
    count = len(scene.grants)
    gate = await Gate.close(scene.deployment.rabbitmq_url, scene.command_queues)
    process = await _start_bare(scene.deployment, "command_service", "steps", count)
    start = monotonic()
    await gate.open()
    try:
        (_, replied), published = await asyncio.gather(
            watch("replies", scene.replied, count), scene.last_event()
        )
    except UnmetError as unmet:
        raise UnmetError(f"{unmet}; {process.log[-2000:]}") from None
    return count / (max(replied, published) - start)


async def _bare_acknowledging(scene: Scene) -> float:
    count = len(scene.grants)
    gate = await Gate.close(scene.deployment.rabbitmq_url, scene.projection_queues)
    process = await _start_bare(scene.deployment, "projection_service", "acknowledge", count)
    start = monotonic()
    await gate.open()
    await asyncio.to_thread(process.process.wait, 60)
    told = process.log.split("done ")
    expect(len(told) == 2, f"the bare process ended early: {process.log[-2000:]}")
    return count / (float(told[1].split()[0]) - start)


async def _start_bare(
    deployment: Deployment, service: ServiceName, verb: str, count: int
) -> Worker:
    program = ("-m", "tests.bench.bare", verb, str(count))
    worker = deployment.start(service, program=program, PYTHONUNBUFFERED="1")
    await eventually(lambda: _says_ready(worker), within=30)
    return worker


async def _says_ready(worker: Worker) -> bool:
    expect(worker.process.poll() is None, f"the bare process ended: {worker.log[-2000:]}")
    return "ready" in worker.log


async def _write(bench: Bench, deployment: Deployment, title: str) -> Write:
    async with _scene(bench, deployment, title) as scene:
        commands, first_reply_s, command_work = await _write_path(scene)
        await _check_log(deployment, len(scene.grants))
        events, projection_work = await _projection(scene)
        await _check_rows(deployment, scene)
    return Write(commands, first_reply_s, command_work, events, projection_work)


async def _write_path(scene: Scene) -> tuple[float, float, Work]:
    """Return commands per second, when the first reply was seen, and what it took."""
    deployment, count = scene.deployment, len(scene.grants)
    database = scene.bench.sandbox.event_store_server, deployment.event_store_url
    gate = await Gate.close(deployment.rabbitmq_url, scene.command_queues)
    worker = deployment.start("command_service")
    await asyncio.to_thread(worker.wait_ready)
    before = await asyncio.to_thread(read_work, worker, *database)
    with scene.bench.steps.step(f"{scene.title}: the write path", count) as tell:
        start = monotonic()
        await gate.open()
        async with scene.all_accepted():
            (first, replied), published = await asyncio.gather(
                watch("replies", scene.replied, count, tell), scene.last_event()
            )
            done = await asyncio.to_thread(end_and_read_work, worker, *database)
    return count / (max(replied, published) - start), first - start, done.since(before)


async def _projection(scene: Scene) -> tuple[float, Work]:
    """Return events per second, and what it took.

    A command worker has nothing to do but to say that the log is the one that was followed:
    without an answer the projection would wait some seconds before it takes anything.
    """
    deployment, count = scene.deployment, len(scene.grants)
    database = scene.bench.sandbox.read_model_server, deployment.read_model_url
    gate = await Gate.close(deployment.rabbitmq_url, scene.projection_queues)
    _, worker = await asyncio.to_thread(deployment.start_both)
    before = await asyncio.to_thread(read_work, worker, *database)
    async with counting(deployment.read_model_url, VISIBLE) as visible:
        with scene.bench.steps.step(f"{scene.title}: the projection", count) as tell:
            start = monotonic()
            await gate.open()
            _, projected = await watch("events visible", visible, count, tell)
    done = await asyncio.to_thread(end_and_read_work, worker, *database)
    return count / (projected - start), done.since(before)


async def _end_to_end(bench: Bench, deployment: Deployment, title: str, workers: int) -> End:
    async with _scene(bench, deployment, title) as scene:
        count = len(scene.grants)
        gate = await Gate.close(deployment.rabbitmq_url, scene.command_queues)
        await _start_workers(deployment, workers)
        meter = await CpuMeter.of(bench, deployment)
        expect(await scene.replied() == 0, "a worker took commands behind the closed gate")
        idle = await _idle(scene, meter) if workers == 1 else None
        async with counting(deployment.read_model_url, VISIBLE) as visible:
            with bench.steps.step(f"{title}: {workers} of each kind", count) as tell:
                before, start = meter.read(), monotonic()
                await gate.open()
                async with scene.all_accepted():
                    (_, replied), (_, seen) = await asyncio.gather(
                        watch("replies", scene.replied, count, tell),
                        watch("events visible", visible, count),
                    )
                    cpu = meter.read().since(before)
        await _check_log(deployment, count)
        await _check_rows(deployment, scene)
    elapsed = max(replied, seen) - start
    return End(count / elapsed, count / (replied - start), cpu, idle)


async def _idle(scene: Scene, meter: CpuMeter) -> CpuReading:
    """Read what is used while nothing is to be done."""
    with scene.bench.steps.step(f"{scene.title}: idle"):
        before = meter.read()
        await asyncio.sleep(scene.bench.sizes.idle_s)
        return meter.read().since(before)


async def _start_workers(deployment: Deployment, each: int) -> None:
    """Return when every worker owns its share."""
    services: tuple[ServiceName, ServiceName] = ("command_service", "projection_service")
    started = [deployment.start(service) for _ in range(each) for service in services]
    for worker in started:
        await asyncio.to_thread(worker.wait_ready)
    share = deployment.partitions // each
    for url in (deployment.event_store_url, deployment.read_model_url):
        await eventually(lambda url=url: _all_own(url, each, share), within=30)  # type: ignore[misc]


async def _all_own(url: str, workers: int, share: int) -> bool:
    """Whether so many workers own that share each."""
    owners = f"SELECT owner FROM partitions GROUP BY owner HAVING count(*) = {share}"  # noqa: S608
    return await value(url, f"SELECT count(*) FROM ({owners}) AS fair") == workers  # noqa: S608


async def _check_log(deployment: Deployment, count: int) -> None:
    """Check that every event is in the log."""
    logged = await value(deployment.event_store_url, "SELECT count(*) FROM events")
    expect(logged == count, f"{logged:,} events in the log, not {count:,}")


async def _check_rows(deployment: Deployment, scene: Scene) -> None:
    """Check that every consent is in the read model."""
    url, sizes = deployment.read_model_url, scene.bench.sizes
    rows = await value(
        url, "SELECT count(*) FROM patient_consent WHERE permissions = ARRAY['exams']"
    )
    expect(rows == sizes.grants, f"{rows:,} consents in the read model, not {sizes.grants:,}")
    last = sizes.grants_per_patient
    patients = await value(url, f"SELECT count(*) FROM patients WHERE version = {last}")  # noqa: S608
    expect(
        patients == sizes.patients,
        f"{patients:,} patients at their last version, not {sizes.patients:,}",
    )

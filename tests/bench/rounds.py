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

from shared import names
from shared.broker import Broker, Channel, connect
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
from tests.deployment import Deployment, ServiceName, Worker
from tests.eventually import eventually


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
    idle: CpuReading


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

    async def check_replies(self) -> None:
        """Check every one."""
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
        count = len(scene.grants)
        url = deployment.rabbitmq_url
        gate = await Gate.close(url, scene.command_queues)
        steps = await _start_bare(deployment, "command_service", "steps", count)
        with bench.steps.step(f"{title}: the same AMQP steps alone"):
            start = monotonic()
            await gate.open()
            try:
                (_, replied), published = await asyncio.gather(
                    watch("replies", scene.replied, count), scene.last_event()
                )
            except UnmetError as unmet:
                raise UnmetError(f"{unmet}; {steps.log[-2000:]}") from None
            commands = count / (max(replied, published) - start)
        gate = await Gate.close(url, scene.projection_queues)
        acknowledging = await _start_bare(deployment, "projection_service", "acknowledge", count)
        with bench.steps.step(f"{title}: acknowledging the events alone"):
            start = monotonic()
            await gate.open()
            await asyncio.to_thread(acknowledging.process.wait, 60)
            done = acknowledging.log.split("done ")
            expect(len(done) == 2, f"the bare process ended early: {acknowledging.log[-2000:]}")
        return Bare(commands, count / (float(done[1]) - start))


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
    servers = bench.sandbox.event_store_server, bench.sandbox.read_model_server
    async with _scene(bench, deployment, title) as scene:
        count = len(scene.grants)
        gate = await Gate.close(deployment.rabbitmq_url, scene.command_queues)
        command = deployment.start("command_service")
        await asyncio.to_thread(command.wait_ready)
        before = read_work(command, servers[0], deployment.event_store_url)
        with bench.steps.step(f"{title}: the write path", count) as tell:
            start = monotonic()
            await gate.open()
            try:
                (first, replied), published = await asyncio.gather(
                    watch("replies", scene.replied, count, tell), scene.last_event()
                )
            except UnmetError:
                await scene.check_replies()
                raise  # no reply tells better why
        done = await asyncio.to_thread(
            end_and_read_work, command, servers[0], deployment.event_store_url
        )
        command_work = done.since(before)
        await scene.check_replies()
        await _check_log(deployment, count)

        gate = await Gate.close(deployment.rabbitmq_url, scene.projection_queues)
        projection = deployment.start("projection_service")
        await asyncio.to_thread(projection.wait_ready)
        before = read_work(projection, servers[1], deployment.read_model_url)
        async with counting(deployment.read_model_url, VISIBLE) as visible:
            with bench.steps.step(f"{title}: the projection", count) as tell:
                opened = monotonic()
                await gate.open()
                _, projected = await watch("events visible", visible, count, tell)
        done = await asyncio.to_thread(
            end_and_read_work, projection, servers[1], deployment.read_model_url
        )
        await _check_rows(deployment, scene)
    return Write(
        commands=count / (max(replied, published) - start),
        first_reply_s=first - start,
        command_work=command_work,
        events_projected=count / (projected - opened),
        projection_work=done.since(before),
    )


async def _end_to_end(bench: Bench, deployment: Deployment, title: str, workers: int) -> End:
    async with _scene(bench, deployment, title) as scene:
        count = len(scene.grants)
        gate = await Gate.close(deployment.rabbitmq_url, scene.command_queues)
        await _start_workers(deployment, workers)
        meter = await CpuMeter.of(bench, deployment)
        expect(await scene.replied() == 0, "a worker took commands behind the closed gate")
        with bench.steps.step(f"{title}: idle"):
            resting = meter.read()
            await asyncio.sleep(bench.sizes.idle_s)
            idle = meter.read().since(resting)
        async with counting(deployment.read_model_url, VISIBLE) as visible:
            with bench.steps.step(f"{title}: {workers} of each kind", count) as tell:
                before, start = meter.read(), monotonic()
                await gate.open()
                (_, replied), (_, seen) = await asyncio.gather(
                    watch("replies", scene.replied, count, tell),
                    watch("events visible", visible, count),
                )
                cpu = meter.read().since(before)
        await scene.check_replies()
        await _check_log(deployment, count)
        await _check_rows(deployment, scene)
    elapsed = max(replied, seen) - start
    return End(count / elapsed, count / (replied - start), cpu, idle)


async def _start_workers(deployment: Deployment, each: int) -> None:
    """Return when every worker owns its share."""
    services: tuple[ServiceName, ServiceName] = ("command_service", "projection_service")
    started = [deployment.start(service) for _ in range(each) for service in services]
    for worker in started:
        await asyncio.to_thread(worker.wait_ready)
    share = deployment.partitions // each
    owned = f"SELECT count(*) FROM (SELECT owner FROM partitions GROUP BY owner HAVING count(*) = {share}) AS fair"  # noqa: E501, S608
    for url in (deployment.event_store_url, deployment.read_model_url):
        async with counting(url, owned) as fair:
            await eventually(lambda fair=fair: _equals(fair, each), within=30)  # type: ignore[misc]


async def _equals(count: object, wanted: int) -> bool:
    return bool(await count() == wanted)  # type: ignore[operator]


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

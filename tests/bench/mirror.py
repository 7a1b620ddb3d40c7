"""A mirror with many patients: how fast it answers and begins, how large it is, how late it is."""

import asyncio
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, perf_counter
from uuid import uuid4

from shared.client import ConsentMirror
from shared.messages import names
from shared.rabbitmq.connection import Properties
from shared.rabbitmq.publishing import PERSISTENT, Outgoing
from shared.values.partition import partition_of
from tests.bench.bench import Bench, Figure, Goal, Section, expect, percentile
from tests.bench.grants import Grant
from tests.bench.mirror_file import fill
from tests.bench.old_log import make_log
from tests.bench.requests import Asker, open_asker
from tests.bench.stage import open_stage
from tests.support.amqp import body_of
from tests.support.deployment import Deployment

RATE_PER_S = 100
LOOK_EVERY_S = 0.0002
AT_ONCE = 50
WITHIN_S = 15.0
CHECKS_PER_PATIENT = 0.2
MOST_US = Goal(no_more_than=10)
MOST_MIB = Goal(no_more_than=500)

HOW = (
    (
        "From the log: a process begins without a file, beside a command worker and a log of"
        " {log_events:,} events; from its start until it has all of them. Then {mirror_patients:,}"
        " patients are added to its file."
    ),
    (
        "From the file: a process begins with that file; from its start, imports included, until"
        " it knows that it has all. It asks about patients at random, each question timed, then"
        " without a clock; the memory is its resident set, with what it has mapped of the file."
    ),
    (
        "Late: consents are revoked at 100/s for {latency_s:g} s, sent by the clock; from the"
        " moment the reply is here until this process, which reads the file that another one"
        " keeps, says no; it looks every 0.2 ms. 0 where it said no before the reply was here."
    ),
)


@dataclass(frozen=True)
class Revoke(Grant):
    """One command: this patient takes the exams back from this doctor."""

    def outgoing(self, reply_to: str, partitions: int) -> Outgoing:
        """Write the message, as the contract says."""
        body = body_of("RevokeConsent", self.patient_id, id_=self.doctor_id)
        properties = Properties(
            message_type="RevokeConsent",
            message_id=self.command_id,
            content_type="application/json",
            delivery_mode=PERSISTENT,
            reply_to=reply_to,
        )
        key = f"revoke.{partition_of(self.patient_id, partitions)}"
        return Outgoing(names.COMMANDS, key, json.dumps(body).encode(), properties)


def measure(bench: Bench) -> Section:
    """Begin from the log, then again and again from the file; then revoke."""
    sizes, figures = bench.sizes, defaultdict[str, list[float]](list)
    with open_stage(bench, "mirror") as deployment, TemporaryDirectory() as folder:
        path = Path(folder) / "mirror.db"
        with bench.steps.step(f"mirror: making a log of {sizes.log_events:,} events"):
            asyncio.run(make_log(deployment.event_store_url, sizes.log_events, sizes.partitions))
            deployment.start("command_service").wait_ready()
        with bench.steps.step("mirror: from the log"), _keeping(deployment, path) as started_s:
            figures["from_log"].append(sizes.log_events / started_s)
        with bench.steps.step(f"mirror: adding {sizes.mirror_patients:,} patients"):
            fill(path, sizes.partitions, sizes.mirror_patients)
        for number in range(1, sizes.runs + 1):
            with bench.steps.step(f"mirror: asking, run {number} of {sizes.runs}"):
                for name, value in _ask(deployment, path, sizes.mirror_patients).items():
                    figures[name].append(value)
            with (
                bench.steps.step(f"mirror: revokes, run {number} of {sizes.runs}"),
                _keeping(deployment, path),
            ):
                late = asyncio.run(_revoke_all(deployment, path, number, sizes.latency_s))
            for percent in (50, 99):
                figures[f"late_{percent}"].append(1000 * percentile(late, percent))
    return Section("Mirror", [line.format(**vars(sizes)) for line in HOW], list(_figures(figures)))


def _figures(values: dict[str, list[float]]) -> Iterator[Figure]:
    yield Figure("mirror: one check, p50", "µs", values["p50_us"], goal=MOST_US)
    yield Figure("mirror: one check, p99", "µs", values["p99_us"])
    yield Figure("mirror: checks by one process", "1/s", values["per_s"])
    yield Figure("mirror: memory of a process", "MiB", values["memory_mib"], goal=MOST_MIB)
    yield Figure("mirror: start from its file", "s", values["started_s"])
    yield Figure("mirror: from the log", "events/s", values["from_log"])
    for percent in (50, 99):
        name = f"mirror: revoke confirmed → no, {RATE_PER_S}/s, p{percent}"
        yield Figure(name, "ms", values[f"late_{percent}"])


def _ask(deployment: Deployment, path: Path, patients: int) -> dict[str, float]:
    checks = round(patients * CHECKS_PER_PATIENT)
    with _process(deployment, path, patients, checks) as process:
        out, _ = process.communicate(timeout=600)
    expect(process.returncode == 0, f"the mirror's process ended with {process.returncode}")
    found: dict[str, float] = {}
    for line in out.splitlines():
        found |= json.loads(line)
    return found


@contextmanager
def _keeping(deployment: Deployment, path: Path) -> Iterator[float]:
    """Have a process keep the file; yields how long it took to begin."""
    with _process(deployment, path, 0, 0) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["started_s"]


@contextmanager
def _process(
    deployment: Deployment, path: Path, patients: int, checks: int
) -> Iterator["subprocess.Popen[str]"]:
    words = (deployment.rabbitmq_url, path, deployment.partitions, patients, checks)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.mirror_process", *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


async def _revoke_all(
    deployment: Deployment, path: Path, number: int, seconds: float
) -> list[float]:
    """Grant, and revoke by the clock; return how late each no was, in seconds."""
    count = round(RATE_PER_S * seconds)
    url, partitions = deployment.rabbitmq_url, deployment.partitions
    revokes = [Revoke(str(uuid4()), f"late-{number}-{one}", "doctor-1") for one in range(count)]
    with ConsentMirror(url, path, partitions=partitions) as mirror:
        async with open_asker(url, partitions) as asker:
            await _grant_all(asker, mirror, revokes)
            start = monotonic() + 0.1
            under_way = []
            for place, revoke in enumerate(revokes):
                await asyncio.sleep(max(0.0, start + place / RATE_PER_S - monotonic()))
                under_way.append(asyncio.create_task(_late(asker, mirror, revoke)))
            return await asyncio.gather(*under_way)


async def _grant_all(asker: Asker, mirror: ConsentMirror, revokes: Sequence[Revoke]) -> None:
    for start in range(0, len(revokes), AT_ONCE):
        some = revokes[start : start + AT_ONCE]
        grants = [Grant(str(uuid4()), one.patient_id, one.doctor_id) for one in some]
        await asyncio.gather(*map(asker.command, grants))
    for revoke in revokes:
        await _until(mirror, revoke, held=True)


async def _late(asker: Asker, mirror: ConsentMirror, revoke: Revoke) -> float:
    reply = await asker.command(revoke)
    replied = perf_counter()
    expect(reply["status"] == "accepted", f"a revoke was rejected: {reply}")
    if not _may(mirror, revoke):
        return 0.0
    await _until(mirror, revoke, held=False)
    return perf_counter() - replied


async def _until(mirror: ConsentMirror, revoke: Revoke, *, held: bool) -> None:
    async with asyncio.timeout(WITHIN_S):
        while _may(mirror, revoke) is not held:  # noqa: ASYNC110 - what is measured tells nobody
            await asyncio.sleep(LOOK_EVERY_S)


def _may(mirror: ConsentMirror, revoke: Revoke) -> bool:
    return mirror.has_consent(revoke.patient_id, "doctor", revoke.doctor_id, "exams")

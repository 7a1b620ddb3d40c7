"""Traces: a sender's context is found at every step of its command, and costs nothing when off."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from shared.client.client import ConsentClient
from tests.conftest import PARTITIONS
from tests.support.amqp import Client, body_of
from tests.support.collector import Collector, Exported, open_collector
from tests.support.deployment import SERVICES, Deployment, ServiceName
from tests.support.eventually import eventually

STEPS: list[tuple[ServiceName, str]] = [
    ("command_service", "process consent.commands"),
    ("command_service", "publish consent.events"),
    ("projection_service", "project consent.events"),
]
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
PATIENT = "p-traced-1"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with open_collector() as opened:
        yield opened


@pytest.fixture
def traced(deployment: Deployment, collector: Collector) -> Deployment:
    """Start workers that export to the collector."""
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **SOON}
    workers = [deployment.start(service, **settings) for service in SERVICES]
    for worker in workers:
        worker.wait_ready()
    return deployment


def context_of(number: int) -> tuple[str, str]:
    """Make a sender's trace context: the header, and how a link names it."""
    trace_id, span_id = f"{number:032x}", f"{number:016x}"
    return f"00-{trace_id}-{span_id}-01", f"{trace_id}-{span_id}"


async def test_a_senders_trace_is_linked_from_every_step_and_stands_in_the_event(
    traced: Deployment, collector: Collector, client: Client
) -> None:
    events: list[Any] = []
    await client.subscribe("#", events.append)
    header, linked = context_of(0xABC)
    await send(client, PATIENT, header, tracestate="vendor=p7")
    refused, linked_too = context_of(0xDEF)
    await client.reply(
        await client.send("GrantConsent", b"{}", key="grant.0", headers={"traceparent": refused})
    )

    await eventually(lambda: every_step_links(collector, linked))
    await eventually(lambda: links(collector, *STEPS[0], linked_too))
    await eventually(lambda: arrived(events, 4))
    assert {message.headers["traceparent"] for message in events} == {header}
    assert {json.loads(message.body)["traceparent"] for message in events} == {header}
    assert {json.loads(message.body)["tracestate"] for message in events} == {"vendor=p7"}


async def arrived(events: Sequence[object], number: int) -> bool:
    return len(events) >= number


async def send(client: Client, patient: str, header: str, **headers: str) -> None:
    body = body_of("GrantConsent", patient, "all")
    sent = await client.send("GrantConsent", body, headers={"traceparent": header, **headers})
    assert (await client.reply(sent))["status"] == "accepted"


async def links(collector: Collector, service: str, name: str, linked: str) -> list[Exported]:
    return [one for one in collector.of(service, name) if linked in one.linked]


async def every_step_links(collector: Collector, linked: str) -> bool:
    return all([await links(collector, *step, linked) for step in STEPS])


async def test_spans_follow_the_conventions_for_messaging_and_hold_no_content(
    traced: Deployment, collector: Collector, client: Client
) -> None:
    header, linked = context_of(1)
    await send(client, PATIENT, header)
    await send(client, "p-traced-2", "not-a-context")
    await eventually(lambda: every_step_links(collector, linked))

    (process, *_) = await links(collector, *STEPS[0], linked)
    assert process.attributes == {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "consent.commands",
        "messaging.batch.message_count": 1,
        "consent.partitions": [int(client.key("GrantConsent", PATIENT).split(".")[1])],
    }
    (publish, *_) = await links(collector, *STEPS[1], linked)
    assert publish.attributes["messaging.operation.type"] == "send"
    assert publish.attributes["messaging.batch.message_count"] == 4
    (project, *_) = await links(collector, *STEPS[2], linked)
    assert project.attributes["messaging.operation.type"] == "process"

    async def both_within() -> bool:
        within = {one.name for one in collector.spans if one.parent_id == process.span_id}
        return within == {"append", "settle consent.commands"}

    await eventually(both_within)
    assert not process.failed
    exported = b"".join(collector.bodies)
    assert not [one for one in (b"p-traced", b"d-1", b"exams") if one in exported]


async def test_the_python_client_sends_the_context_of_the_program_that_calls_it(
    traced: Deployment, collector: Collector
) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("caller")
    async with ConsentClient.connect(traced.rabbitmq_url, partitions=PARTITIONS) as consent:
        with tracer.start_as_current_span("grant") as calling:
            await consent.grant(PATIENT, "doctor", "d-1", "exams")
    context = calling.get_span_context()
    linked = f"{context.trace_id:032x}-{context.span_id:016x}"
    await eventually(lambda: every_step_links(collector, linked))


FAILING = f"""
from command_service.store import event_store
append = event_store.EventStore.append
async def failing(store, decisions, epochs, **options):
    if decisions[0].received.command.patient_id == "{PATIENT}":
        raise RuntimeError("{PATIENT}")
    return await append(store, decisions, epochs, **options)
event_store.EventStore.append = failing
from command_service.cli import app
app(["run"])
"""


async def test_a_span_tells_of_a_failure_by_its_type_alone(
    deployment: Deployment, collector: Collector, client: Client
) -> None:
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **SOON}
    await client.send("GrantConsent", body_of("GrantConsent", PATIENT))
    deployment.start("command_service", program=("-c", FAILING), **settings)

    async def failed() -> list[Exported]:
        return [one for one in collector.of("command_service", "append") if one.failed]

    (span, *_) = await eventually(failed)
    assert span.attributes["error.type"] == "RuntimeError"
    assert PATIENT.encode() not in b"".join(collector.bodies)


async def test_a_collector_that_is_away_keeps_nobody_from_working_or_leaving(
    deployment: Deployment, client: Client
) -> None:
    worker = deployment.start("command_service", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    worker.wait_ready()
    assert (await client.command("GrantConsent", PATIENT))["status"] == "accepted"
    assert worker.stop() == 0, worker.account()


IMPORTED = """
import sys
from shared.cli import service_commands
def only_look(*_):
    print(sorted(name for name in sys.modules if name.startswith("opentelemetry")))
service_commands.run_process = only_look
from command_service.cli import app
app(["run"])
"""
NOT_INSTALLED = """
import sys
sys.modules["opentelemetry.sdk"] = None
from command_service.cli import app
app(["run"])
"""


def run(program: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    urls = {
        "RABBITMQ_URL": "amqp://user:password@127.0.0.1:1/",
        "EVENT_STORE_URL": "postgresql://user:password@127.0.0.1:1/events",
    }
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **urls, **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_nothing_of_opentelemetry_is_imported_unless_it_is_asked_for() -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    off: list[dict[str, str]] = [
        {},
        endpoint | {"OTEL_TRACES_EXPORTER": "none"},
        endpoint | {"OTEL_SDK_DISABLED": "true"},
    ]
    for settings in off:
        done = run(IMPORTED, **settings)
        assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize(
    ("program", "settings", "words"),
    [
        (NOT_INSTALLED, {"OTEL_TRACES_EXPORTER": "otlp"}, "pip install 'consent[tracing]'"),
        (IMPORTED, {"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is wrong"),
        (
            IMPORTED,
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL is wrong: must be http/protobuf",
        ),
    ],
    ids=["not installed", "another exporter", "another protocol"],
)
def test_tracing_that_is_asked_for_and_not_there_is_one_clear_line(
    program: str, settings: dict[str, str], words: str
) -> None:
    done = run(program, **settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1

"""Deployments to measure in, made quickly: databases copied, topology declared from here."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from tests.bench.bench import Bench, expect
from tests.sandbox import Sandbox
from tests.support.deployment import Deployment, open_deployment

TEMPLATE = "bench_template"
_NUMBERS = count(1)


def make_template(sandbox: Sandbox, partitions: int) -> str:
    """Migrate a database on each server; return the name that both have."""
    deployment = Deployment(
        rabbitmq_url=sandbox.broker.url,
        event_store_url=sandbox.event_store_server.create_database(TEMPLATE),
        read_model_url=sandbox.read_model_server.create_database(TEMPLATE),
        partitions=partitions,
        folder=Path(),
    )
    for service in ("command_service", "projection_service"):
        done = deployment.run(service, "migrate")
        expect(done.returncode == 0, f"{service} migrate: {done.stderr}")
    for server in (sandbox.event_store_server, sandbox.read_model_server):
        server.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    return TEMPLATE


@contextmanager
def open_stage(bench: Bench, purpose: str) -> Iterator[Deployment]:
    """Give a deployment without workers; everything in it goes in the end."""
    name = f"bench_{purpose}_{next(_NUMBERS)}"
    partitions = bench.sizes.partitions
    with open_deployment(
        bench.sandbox, name, partitions=partitions, prepared_from=bench.template
    ) as deployment:
        deployment.declare()
        yield deployment

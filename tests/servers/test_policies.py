"""Policies of the broker that would take messages from our queues are named, with the remedy."""

import asyncio
from collections.abc import Iterator
from typing import Final

import pytest

from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.servers.test_check import complaints
from tests.support.deployment import Deployment, open_deployment
from tests.support.eventually import eventually

VHOST: Final = "policies"


@pytest.fixture(scope="module")
def governed(sandbox: Sandbox, migrated: str) -> Iterator[Deployment]:
    with open_deployment(sandbox, VHOST, partitions=PARTITIONS, prepared_from=migrated) as made:
        made.declare()
        yield made


@pytest.mark.parametrize("kind", ["policies", "operator-policies"])
@pytest.mark.parametrize(
    ("limit", "value"),
    [
        ("message-ttl", 1000),
        ("expires", 600_000),
        ("max-length", 10),
        ("max-length-bytes", 10_000),
    ],
)
async def test_a_policy_that_takes_messages_is_named_by_check_and_by_topology(
    governed: Deployment, sandbox: Sandbox, kind: str, limit: str, value: int
) -> None:
    broker = sandbox.broker
    name = f"/{kind}/{VHOST}/sweeping"
    broker.api("PUT", name, {"pattern": ".*", "definition": {limit: value}, "apply-to": "queues"})
    word = "operator policy" if kind == "operator-policies" else "policy"
    try:

        async def told() -> bool:
            done = governed.run(
                "command_service", "topology", RABBITMQ_MANAGEMENT_URL=broker.management_url
            )
            assert done.returncode == 0
            return f"warning: the {word} sweeping sets {limit} {value} on consent." in done.stderr

        await eventually(told)
        (said,) = await _complaints(governed, broker.management_url)
        assert said.startswith(f"topology: the {word} sweeping sets {limit} {value} on consent.")
        assert said.endswith("; let its pattern leave out consent.*")
        assert await _complaints(governed, None) == []  # nobody can see it by AMQP
    finally:
        broker.api("DELETE", name)

    async def passed() -> bool:
        return await _complaints(governed, broker.management_url) == []

    await eventually(passed)


async def test_a_policy_that_takes_nothing_is_no_matter(
    governed: Deployment, sandbox: Sandbox
) -> None:
    broker = sandbox.broker
    name = f"/policies/{VHOST}/generous"
    limits = {"message-ttl": 31_536_000_000_000, "delivery-limit": 10_000_000}
    queries = {"pattern": "^consent.queries$", "definition": limits, "apply-to": "queues"}
    broker.api("PUT", name, queries)
    try:
        assert await _complaints(governed, broker.management_url) == []
    finally:
        broker.api("DELETE", name)


async def _complaints(deployment: Deployment, management: str | None) -> list[str]:
    return await asyncio.to_thread(complaints, deployment, management)

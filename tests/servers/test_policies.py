"""Policies of the broker that would take messages from our queues are named, with the remedy."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import pytest

from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.sandbox.servers import Broker
from tests.servers.test_check import complaints
from tests.support.deployment import Deployment, open_deployment
from tests.support.eventually import eventually

LIMITS: Final = {
    "message-ttl": 1000,
    "expires": 600_000,
    "max-length": 10,
    "max-length-bytes": 10_000,
}
KINDS: Final = {"policies": "policy", "operator-policies": "operator policy"}
OFTEN_S: Final = 0.5
"""The broker takes up to some ten seconds to tell of a policy."""


@dataclass
class Governed:
    """A deployment in a virtual host that has a policy."""

    broker: Broker
    deployment: Deployment
    path: str

    def put(self, pattern: str, definition: dict[str, int]) -> None:
        policy = {"pattern": pattern, "definition": definition, "apply-to": "queues"}
        self.broker.api("PUT", self.path, policy)

    def lift(self) -> None:
        self.broker.api("DELETE", self.path)

    async def complaints(self, management: str | None) -> list[str]:
        return await asyncio.to_thread(complaints, self.deployment, management)


@pytest.fixture(scope="module")
def governed(sandbox: Sandbox, migrated: str) -> Iterator[dict[tuple[str, str], Governed]]:
    """Have all of these policies at once, each for itself: waiting for one is waiting for all."""
    with ExitStack() as stack:
        made = {}
        for kind, limit in [(kind, limit) for kind in KINDS for limit in LIMITS]:
            vhost = f"{kind}-{limit}"
            opened = open_deployment(sandbox, vhost, partitions=PARTITIONS, prepared_from=migrated)
            one = Governed(sandbox.broker, stack.enter_context(opened), f"/{kind}/{vhost}/sweeping")
            one.deployment.declare()
            one.put(".*", {limit: LIMITS[limit]})
            made[kind, limit] = one
        yield made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", LIMITS)
async def test_a_policy_that_takes_messages_is_named_by_check_and_by_topology(
    governed: dict[tuple[str, str], Governed], sandbox: Sandbox, kind: str, limit: str
) -> None:
    one, management = governed[kind, limit], sandbox.broker.management_url
    named = f"the {KINDS[kind]} sweeping sets {limit} {LIMITS[limit]} on consent."

    async def told() -> bool:
        done = one.deployment.run("command_service", "topology", RABBITMQ_MANAGEMENT_URL=management)
        assert done.returncode == 0
        return f"warning: {named}" in done.stderr

    await eventually(told, within=60, every=OFTEN_S)
    (said,) = await one.complaints(management)
    assert said.startswith(f"topology: {named}")
    assert said.endswith("; let its pattern leave out consent.*")
    assert await one.complaints(None) == []  # nobody can see it by AMQP


async def test_of_policies_that_are_no_more_nothing_is_said(
    governed: dict[tuple[str, str], Governed], sandbox: Sandbox
) -> None:
    for one in governed.values():
        one.lift()
    for one in governed.values():

        async def passed(one: Governed = one) -> bool:
            return await one.complaints(sandbox.broker.management_url) == []

        await eventually(passed, within=60, every=OFTEN_S)


async def test_a_policy_that_takes_nothing_is_no_matter(
    deployment: Deployment, sandbox: Sandbox
) -> None:
    vhost = deployment.rabbitmq_url.rsplit("/", 1)[1]
    one = Governed(sandbox.broker, deployment, f"/policies/{vhost}/generous")
    limits = {"message-ttl": 31_536_000_000_000, "delivery-limit": 10_000_000}
    one.put("^consent.queries$", limits)

    async def holds() -> Any:  # noqa: ANN401 - any JSON
        there = sandbox.broker.api("GET", f"/queues/{vhost}/consent.queries")
        return there.get("effective_policy_definition")

    assert await eventually(holds, every=OFTEN_S) == limits
    assert await one.complaints(sandbox.broker.management_url) == []

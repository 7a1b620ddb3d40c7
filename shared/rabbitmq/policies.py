"""Finds policies of the broker that take from our queues what they are declared to keep.

A policy, and an operator policy, adds to a queue what its arguments do not say; of two limits the
lower one holds. So one for all queues can make commands vanish, and no queue can defend itself.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

from shared.rabbitmq.connection import virtual_host
from shared.rabbitmq.management_api import Managed, NotManaged, Thing, read_topology
from shared.rabbitmq.topology import Queue, queues
from shared.settings import ClientSettings

HARM: Final = {
    "message-ttl": "messages that wait longer vanish, commands without a reply",
    "expires": "the queue vanishes when nobody reads it for that long",
    "max-length": "what is more is refused, or the oldest dropped",
    "max-length-bytes": "what is more is refused, or the oldest dropped",
    "delivery-limit": "messages vanish that came back so often, though nothing is wrong with them",
}
MOST_NAMED: Final = 3


def policy_complaints(found: Managed, declared: Iterable[Queue]) -> Iterator[str]:
    """Say which policies give our queues a lower limit than they are declared with."""
    harmed: dict[tuple[str, str, int], list[str]] = defaultdict(list)
    for queue in declared:
        there = found.queues.get(queue.name, {})
        for name, value in _limits(there):
            if value < queue.arguments.get(f"x-{name}", value + 1):
                harmed[_policies(there), name, value].append(queue.name)
    for (policies, name, value), named in harmed.items():
        more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
        yield (
            f"{policies} sets {name} {value} on {', '.join(named[:MOST_NAMED])}{more}: "
            f"{HARM[name]}; let its pattern leave out consent.*"
        )


async def policy_warnings(settings: ClientSettings, management: str) -> list[str]:
    """Ask the management API, and say what harms us, or why nothing is known."""
    try:
        found = await read_topology(management, virtual_host(settings.rabbitmq_url))
    except NotManaged as error:
        return [f"policies were not looked at, the management API {error}"]
    return list(policy_complaints(found, queues(settings.consent_partitions)))


def _limits(there: Thing) -> Iterator[tuple[str, int]]:
    given = there.get("effective_policy_definition") or {}  # an empty list where there is none
    for name in HARM:
        if name in given:
            yield name, int(given[name])


def _policies(there: Thing) -> str:
    """Name those that match: the broker does not say which of them a limit comes from."""
    kinds = {"policy": "the policy", "operator_policy": "the operator policy"}
    return " or ".join(f"{kind} {there[key]}" for key, kind in kinds.items() if there.get(key))

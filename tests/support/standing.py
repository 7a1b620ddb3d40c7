"""Two workers that stand through a whole module of attacks, and what must still be true of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

from tests.conftest import PARTITIONS
from tests.sandbox import Sandbox
from tests.support.deployment import Deployment, open_deployment


@contextmanager
def standing_deployment(sandbox: Sandbox, name: str, migrated: str) -> Iterator[Deployment]:
    """Start a deployment with one worker of each kind."""
    with open_deployment(sandbox, name, partitions=PARTITIONS, prepared_from=migrated) as made:
        made.declare()
        made.start_both()
        yield made


def assert_unharmed(deployment: Deployment) -> None:
    """Check that the workers are in their first session, and that nothing surprised them."""
    for worker in deployment.workers:
        assert worker.process.poll() is None, worker.log
        for trouble in ("session.lost", "session.waiting", "exception", "Traceback", "never await"):
            assert trouble not in worker.log, worker.log[-3000:]
        assert worker.log.count('"session.started"') == 1


async def all_settled(sandbox: Sandbox, vhost: str) -> bool:
    """Whether no queue holds a message, delivered or not, but those that remember the logs."""
    queues = sandbox.broker.api("GET", f"/queues/{quote(vhost, safe='')}")
    ours = [
        queue
        for queue in queues
        if queue["name"].startswith("consent.") and not queue["name"].startswith("consent.witness.")
    ]
    return len(ours) == 5 + 2 * PARTITIONS and not any(queue.get("messages", 1) for queue in ours)

"""A RabbitMQ cluster of three nodes, from the programs on the machine."""

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import quote

from tests.sandbox import install
from tests.sandbox.home import Home, free_ports
from tests.sandbox.programs import Membership, RabbitmqProgram
from tests.sandbox.servers import USER, Broker, ServerDidNotStart

NODES: Final = 3


class Cluster(Broker):
    """Three nodes that look like one broker, at a URL that names them all."""

    def __init__(self, nodes: list[RabbitmqProgram]) -> None:
        first = nodes[0]
        super().__init__(first.port, first.management_port, first.password)
        self.nodes = nodes

    @property
    def url(self) -> str:
        hosts = ",".join(f"{node.host}:{node.port}" for node in self.nodes)
        return f"amqp://{USER}:{self.password}@{hosts}/"

    @property
    def management_url(self) -> str:
        hosts = ",".join(f"{node.host}:{node.management_port}" for node in self.nodes)
        return f"http://{USER}:{self.password}@{hosts}"

    def start(self) -> None:
        first, *others = self.nodes
        first.start()
        with ThreadPoolExecutor() as threads:
            list(threads.map(RabbitmqProgram.start, others))

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def put_on_disk(self) -> None:
        for node in self.nodes:
            node.put_on_disk()

    def answers(self) -> bool:
        return all(node.answers() for node in self.nodes)

    def ctl(self, *words: str) -> None:
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda node: node.ctl(*words), self.nodes))

    def api(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - any JSON
        for node in self.nodes[:-1]:
            try:
                return node.api(method, path, body)
            except (OSError, HTTPException):
                continue
        return self.nodes[-1].api(method, path, body)

    def create_vhost(self, name: str) -> str:
        """Give the URL of a new virtual host that runs on every node.

        A node takes clients a moment before it counts as running, and what is made in that moment
        does not run there.
        """
        url, path = super().create_vhost(name), f"/vhosts/{quote(name, safe='')}"
        for node, state in self.api("GET", path)["cluster_state"].items():
            if state != "running":
                self.api("POST", f"{path}/start/{node}")
        return url

    def queues(self, vhost: str) -> list[dict[str, Any]]:
        """Tell of the queues of a virtual host what the management API knows."""
        found: list[dict[str, Any]] = self.api("GET", f"/queues/{quote(vhost, safe='')}")
        return found

    def is_whole(self, vhost: str) -> bool:
        """Whether every queue of ours has a leader, and a replica on each node.

        Not those of others, declared a moment before: RabbitMQ 3.10, killed, forgets such.
        """
        return all(
            queue.get("leader") and len(queue.get("online", ())) == len(self.nodes)
            for queue in self.queues(vhost)
            if queue["name"].startswith("consent.")
        )


@contextmanager
def open_cluster() -> Iterator[Cluster]:
    """Start three nodes; raises `ServerDidNotStart`."""
    programs = install.rabbitmq_programs()
    if programs is None:
        raise ServerDidNotStart(install.advice(install.missing_packages()))
    secret = secrets.token_hex(16)
    names = [f"consent-{number}-{secret[:8]}@localhost" for number in range(1, NODES + 1)]
    names_port, *ports = free_ports(1 + 3 * NODES)
    with ExitStack() as homes:
        nodes = []
        for number, name in enumerate(names):
            home = Home()
            homes.callback(home.clear)
            port, management_port, node_port = ports[3 * number : 3 * number + 3]
            own = [port, management_port, node_port, names_port, 0]
            member = Membership(name, names[0], secret)
            nodes.append(RabbitmqProgram(home, programs, own, None, member))
        cluster = Cluster(nodes)
        cluster.start()
        yield cluster

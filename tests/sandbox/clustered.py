"""A sandbox of which any one server may be lost: a broker of three nodes, databases in pairs."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from tests.sandbox.cluster import open_cluster
from tests.sandbox.pair import open_pair
from tests.sandbox.servers import Sandbox


@contextmanager
def open_clustered() -> Iterator[Sandbox]:
    """Start all of it; raises `ServerDidNotStart`."""
    with ExitStack() as opened, ThreadPoolExecutor() as threads:
        cluster = threads.submit(opened.enter_context, open_cluster())
        event_store = threads.submit(opened.enter_context, open_pair("event_store"))
        read_model = threads.submit(opened.enter_context, open_pair("read_model"))
        yield Sandbox(
            cluster.result(), event_store.result(), read_model.result(), close=opened.close
        )

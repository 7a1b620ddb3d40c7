"""The web handler on the mirror's page runs as it stands there."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from tests.sandbox.home import free_ports
from tests.support.amqp import Client
from tests.support.deployment import Deployment
from tests.support.eventually import eventually

PAGE = Path(__file__).parents[2] / "shared/client/mirror/README.md"


@pytest.fixture
def port(deployment: Deployment, tmp_path: Path) -> Iterator[int]:
    """Serve the example."""
    found = re.search(
        r"<!-- test: records.py -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL
    )
    assert found
    (tmp_path / "records.py").write_text(found[1])
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "records.py"],
        cwd=tmp_path,
        env=deployment.environment(PORT=str(port)),
        stdout=subprocess.DEVNULL,
    )
    yield port
    process.terminate()
    try:
        assert process.wait(30) == 0
    finally:
        process.kill()


def status(port: int) -> int:
    """Ask as doctor d-1 for p-1's exams; 0 where nobody answers."""
    url = f"http://127.0.0.1:{port}/patients/p-1/exams"
    try:
        with urlopen(Request(url, headers={"X-Doctor": "d-1"}), timeout=5) as answer:
            return int(answer.status)
    except URLError as error:
        return int(getattr(error, "code", 0))
    except OSError:
        return 0


async def test_the_web_handler_lets_in_who_has_consent_and_says_when_it_does_not_know(
    deployment: Deployment, client: Client, port: int
) -> None:
    async def is_(expected: int) -> bool:
        return status(port) == expected

    await eventually(lambda: is_(503), within=40)
    worker = deployment.start("command_service")
    worker.wait_ready()
    await eventually(lambda: is_(403), within=40)
    await client.command("GrantConsent", "p-1")
    await eventually(lambda: is_(200), within=40)
    await client.command("RevokeConsent", "p-1")
    await eventually(lambda: is_(403), within=40)
    worker.kill()
    await eventually(lambda: is_(503), within=40)


def test_what_the_page_links_to_is_there() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", PAGE.read_text())
    assert [link for link in links if not (PAGE.parent / link).exists()] == []

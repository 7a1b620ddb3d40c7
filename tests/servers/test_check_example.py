"""The contract's example of many questions in JavaScript runs as it stands."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.amqp import Client
from tests.support.deployment import Deployment
from tests.support.javascript import NoNode, node_folder

PAGE = Path(__file__).parents[2] / "shared" / "contract" / "README.md"


async def test_the_questions_in_javascript_are_answered(
    deployment: Deployment, client: Client, tmp_path: Path
) -> None:
    try:
        (tmp_path / "node_modules").symlink_to(node_folder() / "node_modules")
    except NoNode as why:
        pytest.skip(str(why))
    found = re.search(
        r"<!-- test: check.mjs -->\n```\w+\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    assert found
    script = tmp_path / "check.mjs"
    script.write_text(found[1])
    deployment.start_both()
    granted = await client.command("GrantConsent", "p-1")
    await client.query("ListConsents", patient_id="p-1", min_version=granted["version"])
    done = subprocess.run(
        ["node", script],
        env=deployment.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("p-1 yes\np-2 no\n", "")

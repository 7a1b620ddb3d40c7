"""The example of the contract's page runs as it stands."""

import re
import subprocess
from pathlib import Path

import pytest

import shared.contract
from tests.support.deployment import Deployment
from tests.support.eventually import eventually
from tests.support.javascript import NoNode, node_folder

PAGE = Path(shared.contract.__file__).with_name("README.md")


def example(name: str) -> str:
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"<!-- test: {re.escape(name)} -->\n```\w+\n(.*?)```", text, re.DOTALL)
    assert found, f"the page has no example {name}"
    return found[1]


async def test_the_end_of_a_consent_is_told_to_a_subscriber_in_javascript(
    deployment: Deployment, tmp_path: Path
) -> None:
    try:
        (tmp_path / "node_modules").symlink_to(node_folder() / "node_modules")
    except NoNode as why:
        pytest.skip(str(why))
    if subprocess.run(
        ["node", "-e", "process.exit(+!require('zlib').crc32)"], check=False
    ).returncode:
        pytest.skip("needs Node 20.15 or newer")
    deployment.start("command_service").wait_ready()
    script, out = tmp_path / "ends.mjs", tmp_path / "out.txt"
    script.write_text(example("ends.mjs"))
    with out.open("w") as stream:
        process = subprocess.Popen(
            ["node", script], cwd=tmp_path, env=deployment.environment(), stdout=stream
        )

    async def told() -> bool:
        return out.read_text() == "p-1: nurse n-1 had consent to exams true\n"

    try:
        await eventually(told, within=60)
    finally:
        process.kill()
        process.wait(10)

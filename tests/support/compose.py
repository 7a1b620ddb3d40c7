"""Reads compose.yaml as the engine does, as far as it is used there, and runs it without one.

Each service's command runs as it stands, under its own users and in nothing but its own
environment; only the names of the servers, and the folder of a volume, become those of the sandbox.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.sandbox.install import postgres_programs
from tests.support import warm

ROOT: Final = Path(__file__).parents[2]
FILE: Final = ROOT / "compose.yaml"
PROGRAMS: Final = Path(sys.executable).parent
VARIABLE: Final = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}|(\$\$)")


def interpolate(text: str, variables: dict[str, str]) -> str:
    """Fill in `${NAME:-default}`, and make `$$` a dollar sign."""

    def value(found: re.Match[str]) -> str:
        return "$" if found[3] else variables.get(found[1]) or found[2] or ""

    return VARIABLE.sub(value, text)


def read_compose(**variables: str) -> dict[str, Any]:
    """Read the file with its anchors, merges and variables resolved."""

    def filled(node: Any) -> Any:  # noqa: ANN401 - whatever YAML has
        match node:
            case str():
                return interpolate(node, variables)
            case list():
                return [filled(one) for one in node]
            case dict():
                return {name: filled(one) for name, one in node.items()}
            case _:
                return node

    content: dict[str, Any] = filled(yaml.safe_load(FILE.read_text(encoding="utf-8")))
    return content


@dataclass
class Uncontained:
    """Runs the services of compose.yaml as processes of this machine."""

    services: dict[str, Any]
    replaced: dict[str, str] = field(default_factory=dict)
    """What stands in the file, and what the sandbox has in its place."""

    def here(self, text: str) -> str:
        """Put the sandbox's servers in place of the containers'."""
        for theirs, ours in self.replaced.items():
            text = text.replace(theirs, ours)
        return text

    def environment(self, service: str, **more: str) -> dict[str, str]:
        """Give what the file gives, and the paths of this checkout, and nothing else."""
        given = self.services[service].get("environment", {})
        path = os.pathsep.join((str(PROGRAMS), os.defpath))
        paths = {"PATH": path, "PYTHONPATH": str(ROOT)}
        return {**paths, **{name: self.here(str(one)) for name, one in given.items()}, **more}

    def words(self, service: str) -> list[str]:
        """Give the command, with the entry point before it."""
        made = self.services[service]
        return [self.here(word) for word in (*made.get("entrypoint", ()), *made["command"])]

    def run_roles(self, job: str, **more: str) -> "subprocess.CompletedProcess[str]":
        """Run the script of a service that runs psql; skips where there is none."""
        programs = postgres_programs()
        psql = shutil.which("psql") or (programs and shutil.which("psql", path=str(programs)))
        if psql is None:
            pytest.skip("needs psql")
        (mounted,) = self.services[job]["volumes"]
        script, inside, _ = mounted.split(":")
        assert self.services[job]["entrypoint"] == ["sh", inside]
        return subprocess.run(
            ["sh", ROOT / script],
            env={**self.environment(job, **more), "PATH": f"{Path(psql).parent}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def run(self, service: str, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
        """Run a service's command to its end, or these words after its entry point."""
        command = [*self.services[service].get("entrypoint", ()), *words]
        environment = self.environment(service, **more)
        return warm.run(command if words else self.words(service), environment)

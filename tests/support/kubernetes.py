"""Reads the Kustomize base as a cluster does, as far as it is used there, and runs it without one.

Each container's command runs as it stands, in nothing but its own environment, with its secrets as
files; only the names of the servers, and the folder of the secrets, become those of the sandbox.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.support import warm
from tests.support.compose import PROGRAMS, ROOT

BASE: Final = ROOT / "shared" / "containers" / "kubernetes"
MOUNTED: Final = "/secrets"
VARIABLE: Final = re.compile(r"\$\((\w+)\)")

Manifest = dict[str, Any]


def kustomization() -> Manifest:
    found: Manifest = yaml.safe_load((BASE / "kustomization.yaml").read_text(encoding="utf-8"))
    return found


def manifests() -> list[Manifest]:
    """Read everything that the base is made of."""
    files = (BASE / name for name in kustomization()["resources"])
    return [one for file in files for one in yaml.safe_load_all(file.read_text(encoding="utf-8"))]


def of_kind(*kinds: str) -> Iterator[Manifest]:
    return (one for one in manifests() if one["kind"] in kinds)


def made_secrets() -> dict[str, dict[str, str]]:
    """Run the script that makes them; give each one's entries by its name."""
    done = subprocess.run(
        ["sh", BASE / "make_secrets.sh"], capture_output=True, text=True, check=True
    )
    made = yaml.safe_load_all(done.stdout)
    return {one["metadata"]["name"]: one["stringData"] for one in made}


@dataclass
class Uncontained:
    """Runs the containers of the base as processes of this machine."""

    folder: Path
    """Where the secrets are, each one a folder of files."""
    secrets: dict[str, dict[str, str]]
    replaced: dict[str, str]
    """What stands in the files, and what the sandbox has in its place."""

    def __post_init__(self) -> None:
        """Write the secrets, as the kubelet does."""
        for name, entries in self.secrets.items():
            (self.folder / name).mkdir()
            for key, value in entries.items():
                (self.folder / name / key).write_text(self.here(value), encoding="utf-8")

    def here(self, text: str) -> str:
        """Put the sandbox's servers in place of the cluster's."""
        for theirs, ours in {**self.replaced, MOUNTED: str(self.folder)}.items():
            text = text.replace(theirs, ours)
        return text

    def pod(self, name: str) -> Manifest:
        """Return what is said of a Job's or Deployment's pods."""
        (found,) = (m for m in of_kind("Job", "Deployment") if m["metadata"]["name"] == name)
        spec: Manifest = found["spec"]["template"]["spec"]
        return spec

    def environment(self, name: str, **more: str) -> dict[str, str]:
        """Give what the container is given, and the paths of this checkout, and nothing else."""
        pod = self.pod(name)
        (container,) = pod["containers"]
        (generated,) = kustomization()["configMapGenerator"]
        assert container["envFrom"] == [{"configMapRef": {"name": generated["name"]}}]
        given = dict(one.split("=", 1) for one in generated["literals"])
        for variable in container["env"]:
            text = self._value(variable, name)
            given[variable["name"]] = VARIABLE.sub(lambda found: given[found[1]], text)
        self._check_mounts(pod, given)
        path = os.pathsep.join((str(PROGRAMS), os.defpath))
        here = {variable: self.here(text) for variable, text in given.items()}
        return {"PATH": path, "PYTHONPATH": str(ROOT), **here, **more}

    def _value(self, variable: Manifest, pod: str) -> str:
        match variable:
            case {"value": text}:
                return str(text)
            case {"valueFrom": {"secretKeyRef": {"name": name, "key": key}}}:
                return self.secrets[name][key]
            case {"valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}:
                return f"{pod}-1"
        raise AssertionError(f"{variable} is not understood")

    def _check_mounts(self, pod: Manifest, given: dict[str, str]) -> None:
        """Each file that is named is one of a secret that is mounted there."""
        (container,) = pod["containers"]
        volumes = {one["name"]: one["secret"]["secretName"] for one in pod["volumes"]}
        mounts = {one["mountPath"]: volumes[one["name"]] for one in container["volumeMounts"]}
        for name, text in given.items():
            if name.endswith("_FILE"):
                folder, _, key = text.rpartition("/")
                assert key in self.secrets[mounts[folder]], (name, text)

    def words(self, name: str) -> list[str]:
        (container,) = self.pod(name)["containers"]
        words: list[str] = container["command"]
        return words

    def run(self, name: str, **more: str) -> "subprocess.CompletedProcess[str]":
        """Run a container's command to its end."""
        return warm.run(self.words(name), self.environment(name, **more), within=120)

"""Gives the tests Node and the packages pinned in tests/node, or says why there are none."""

import shutil
import subprocess
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "node"
LOCK: Final = FOLDER / "package-lock.json"
INSTALLED: Final = FOLDER / "node_modules" / ".complete"
INSTALL_WITHIN_S: Final = 90


class NoNode(Exception):
    """Node or its packages can't be had here; the message is one line."""


def node_folder() -> Path:
    """Return the folder beside whose `node_modules` scripts run; installs them the first time."""
    npm = shutil.which("npm")
    if shutil.which("node") is None or npm is None:
        raise NoNode("Node and npm are not installed")
    if not _is_installed():
        _install(npm)
    return FOLDER


def run_node(*arguments: str | Path, within: float = 60) -> "subprocess.CompletedProcess[str]":
    """Run a script of the folder to its end."""
    return subprocess.run(
        ["node", *arguments],
        cwd=node_folder(),
        capture_output=True,
        text=True,
        timeout=within,
        check=False,
    )


def _is_installed() -> bool:
    return INSTALLED.exists() and INSTALLED.read_bytes() == LOCK.read_bytes()


def _install(npm: str) -> None:
    quiet = ("--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
    try:
        done = subprocess.run(
            [npm, "ci", *quiet],
            cwd=FOLDER,
            capture_output=True,
            text=True,
            timeout=INSTALL_WITHIN_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NoNode(f"npm did not install its packages within {INSTALL_WITHIN_S} s") from None
    if done.returncode:
        said = (done.stderr.strip() or "npm failed").splitlines()[0]
        raise NoNode(f"npm can't install its packages here ({said})")
    INSTALLED.write_bytes(LOCK.read_bytes())

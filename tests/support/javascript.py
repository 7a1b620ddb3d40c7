"""Gives the tests Node and the packages pinned in tests/node, or says why there are none."""

import fcntl
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parents[1] / "node"
LOCK: Final = FOLDER / "package-lock.json"
INSTALLED: Final = FOLDER / "node_modules" / ".complete"
INSTALL_WITHIN_S: Final = 60
OLDEST: Final = 20
"""The oldest Node on which the packages were tried."""


class NoNode(Exception):
    """Node or its packages can't be had here; the message is one line."""


def node_folder() -> Path:
    """Return the folder whose `node_modules` has the packages; installs them the first time."""
    if why := _why_not():
        raise NoNode(why)
    return FOLDER


def run_node(*arguments: str | Path, within: float = 110) -> "subprocess.CompletedProcess[str]":
    """Run a script of the folder to its end."""
    return subprocess.run(
        ["node", *arguments],
        cwd=node_folder(),
        capture_output=True,
        text=True,
        timeout=within,
        check=False,
    )


@cache
def _why_not() -> str:
    """Say why there is no Node or no package; nothing where both are there. Tries but once."""
    npm = shutil.which("npm")
    if shutil.which("node") is None or npm is None:
        return "Node and npm are not installed"
    told = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout
    if int("".join(re.findall(r"^v(\d+)", told)) or 0) < OLDEST:
        return f"Node {told.strip()} is older than {OLDEST}"
    with LOCK.open() as lock:  # `npm ci` takes away what is there, beneath others that run it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return "" if _is_installed() else "npm can't install its packages here, says another"
        return "" if _is_installed() else _install(npm)


def _is_installed() -> bool:
    return INSTALLED.exists() and INSTALLED.read_bytes() == LOCK.read_bytes()


def _install(npm: str) -> str:
    quiet = ("--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
    soon = ("--fetch-retries=1", "--fetch-timeout=20000")
    try:
        done = subprocess.run(
            [npm, "ci", *quiet, *soon],
            cwd=FOLDER,
            capture_output=True,
            text=True,
            timeout=INSTALL_WITHIN_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"npm did not install its packages within {INSTALL_WITHIN_S} s"
    if done.returncode:
        said = (done.stderr.strip() or "it does not say why").splitlines()[0]
        return f"npm can't install its packages here ({said})"
    INSTALLED.write_bytes(LOCK.read_bytes())
    return ""

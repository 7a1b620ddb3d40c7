"""Finds the programs a sandbox needs and installs what is missing: `python3 install.py`.

`python3 install.py tests` also installs, where it may, what some tests skip without.

Runs before there is a virtual environment, so it needs nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

OLDEST_POSTGRES = 13
POSTGRES_ROOT = Path("/usr/lib/postgresql")
RABBITMQ_ROOT = Path("/usr/lib/rabbitmq/lib")
SERVICE_POLICY = Path("/usr/sbin/policy-rc.d")

PROGRAMS_OF_TESTS = {
    "openssl": "openssl",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "pgbouncer": "pgbouncer",
    "kubectl": "kubernetes-client",
    "node": "nodejs",
    "npm": "npm",
}
"""By program, the package that has it; what needs one that is missing skips, and says so."""

ALL_THERE, NOT_INSTALLED, CANNOT_INSTALL = 0, 1, 2


def main(*, tests: bool = False) -> int:
    missing = missing_packages()
    if missing and not may_install():
        print(advice(missing), file=sys.stderr)
        return CANNOT_INSTALL
    if tests and may_install():
        missing += packages_of_tests()
    if not missing:
        return ALL_THERE
    print(f"Installing {', '.join(missing)}, without starting them as services.", flush=True)
    with services_kept_down(SERVICE_POLICY):
        output = install_packages(missing)
    if still_missing := [*missing_packages(), *(packages_of_tests() if tests else ())]:
        print(f"{output}\nCould not install {', '.join(still_missing)}.", file=sys.stderr)
        return NOT_INSTALLED
    return ALL_THERE


def missing_packages() -> list[str]:
    """What is missing, by the names of its Debian packages."""
    missing = []
    if rabbitmq_programs() is None:
        missing.append("rabbitmq-server")
    if postgres_programs() is None:
        missing.append("postgresql")
    if missing and engine_answers():
        missing = []
    if importlib.util.find_spec("ensurepip") is None:
        missing.append("python3-venv")
    return missing


def packages_of_tests() -> list[str]:
    """What some tests skip without, and is missing, by the names of its Debian packages."""
    wanted = (name for program, name in PROGRAMS_OF_TESTS.items() if shutil.which(program) is None)
    return list(dict.fromkeys(wanted))


def advice(missing: list[str]) -> str:
    command = f"sudo apt-get install --no-install-recommends {' '.join(missing)}"
    return (
        f"Missing: {', '.join(missing)}. On Debian or Ubuntu run `{command}`; elsewhere install"
        f" the same (PostgreSQL {OLDEST_POSTGRES} or newer) and have it on the PATH; or start a"
        " Docker engine, which replaces the two servers."
    )


def postgres_programs() -> Path | None:
    """The folder of the newest PostgreSQL's `initdb`, `postgres` and their like."""
    folders = [*_holding(POSTGRES_ROOT, "*/bin/initdb"), *_on_path("initdb")]
    return next((each for each in folders if _postgres_version(each) >= OLDEST_POSTGRES), None)


def rabbitmq_programs() -> Path | None:
    """The folder of the newest RabbitMQ's own scripts.

    A distribution's wrappers around them insist on running as a certain user.
    """
    folders = _holding(RABBITMQ_ROOT, "rabbitmq_server-*/sbin/rabbitmq-server")
    return next(iter([*folders, *_on_path("rabbitmq-server")]), None)


def engine_answers() -> bool:
    """Whether a Docker engine can be used."""
    if shutil.which("docker") is None:
        return False
    question = ["docker", "info", "--format", "{{.ServerVersion}}"]
    try:
        answer = subprocess.run(question, capture_output=True, timeout=5, check=False)
    except subprocess.TimeoutExpired:
        return False
    return answer.returncode == 0 and bool(answer.stdout.strip())


def may_install() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install_packages(packages: list[str]) -> str:
    """Gives what was printed meanwhile, whether it went well or not."""
    install = ["install", "-y", "-q", "--no-install-recommends", *packages]
    done, output = _apt_get(*install)
    if done:
        return output
    # The lists of packages are absent or old.
    _, updated = _apt_get("update", "-q")
    return updated + _apt_get(*install)[1]


@contextlib.contextmanager
def services_kept_down(policy: Path) -> Iterator[None]:
    """Meanwhile, the policy that Debian's packages ask forbids them to start their services.

    A policy that was there already waits under another name, also if we are killed.
    """
    aside = policy.with_name(f"{policy.name}.set-aside")
    if os.path.lexists(policy) and not os.path.lexists(aside):
        policy.rename(aside)
    previous = signal.signal(signal.SIGTERM, _leave)
    try:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        yield
    finally:
        policy.unlink(missing_ok=True)
        if os.path.lexists(aside):
            aside.rename(policy)
        signal.signal(signal.SIGTERM, previous)


def _leave(number: int, _frame: FrameType | None) -> None:
    """Ends the program by an exception, so that what was changed for a while is put back."""
    raise SystemExit(128 + number)


def _apt_get(*arguments: str) -> tuple[bool, str]:
    ran = subprocess.run(
        ["apt-get", "-o", "DPkg::Lock::Timeout=120", *arguments],
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    return ran.returncode == 0, ran.stdout


def _holding(root: Path, pattern: str) -> list[Path]:
    """The folders of the programs that the pattern finds, the newest version first."""
    folders = [program.parent for program in root.glob(pattern)]
    return sorted(folders, key=_numbers, reverse=True)


def _on_path(program: str) -> list[Path]:
    found = shutil.which(program)
    return [Path(found).resolve().parent] if found else []


def _numbers(text: object) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(text))]


def _postgres_version(programs: Path) -> int:
    version = subprocess.run([programs / "postgres", "--version"], capture_output=True, check=False)
    return next(iter(_numbers(version.stdout)), 0)


if __name__ == "__main__":
    sys.exit(main(tests="tests" in sys.argv[1:]))

"""Each import wall catches what it is there for: a violation is planted, and is named."""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

HERE: Final = Path(__file__).parents[2]
PACKAGES: Final = ("command_service", "projection_service", "shared")

PLANTED: Final = {
    "The services never import each other": [
        ("command_service/publisher.py", "projection_service.settings"),
        ("projection_service/projections/fold.py", "command_service.domain.patient"),
    ],
    "Shared imports neither service": [
        ("shared/cli/check.py", "command_service.settings"),
        ("shared/messages/names.py", "projection_service.projections.changes"),
    ],
    "Shared is built in layers": [
        ("shared/rabbitmq/connection.py", "shared.worker.leases"),
        ("shared/rabbitmq/topology.py", "shared.postgres.database"),
        ("shared/worker/session.py", "shared.client.client"),
        ("shared/values/partition.py", "shared.messages.names"),
        ("shared/drawer/__init__.py", "shared.errors"),
    ],
    "Rules and messages do no I/O": [
        ("shared/messages/events.py", "asyncpg"),
        ("shared/values/partition.py", "shared.telemetry.metrics"),
        ("command_service/domain/decisions.py", "shared.rabbitmq.connection"),
        ("projection_service/projections/fold.py", "projection_service.read_model"),
    ],
    "Only what serves people knows a terminal": [
        ("shared/worker/session.py", "typer"),
        ("shared/client/client.py", "rich.console"),
    ],
    "Only the broker's room speaks AMQP": [
        ("shared/client/client.py", "aiormq"),
        ("command_service/publisher.py", "aio_pika"),
        ("shared/worker/session.py", "pamqp.commands"),
    ],
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what the walls stand in."""
    folder = tmp_path_factory.mktemp("walls")
    shutil.copy(HERE / "pyproject.toml", folder)
    compiled = shutil.ignore_patterns("__pycache__")
    for package in PACKAGES:
        shutil.copytree(HERE / package, folder / package, ignore=compiled)
    return folder


@contextmanager
def planted(file: Path, module: str) -> Iterator[None]:
    """Have a file import a module for a while; one that is not there yet, goes again."""
    before = file.read_text() if file.exists() else None
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{before or ''}\nimport {module}\n")
    try:
        yield
    finally:
        if before is None:
            shutil.rmtree(file.parent)
        else:
            file.write_text(before)


def broken(folder: Path) -> list[str]:
    """Return the walls that do not hold."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    names = [
        line.removesuffix(" BROKEN").strip()
        for line in done.stdout.splitlines()
        if line.endswith(" BROKEN")
    ]
    assert done.returncode == bool(names), done.stdout + done.stderr
    return names


def test_every_wall_has_its_violations() -> None:
    contracts = tomllib.loads((HERE / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert [one["name"] for one in contracts["contracts"]] == list(PLANTED)


def test_the_walls_hold(copy: Path) -> None:
    assert broken(copy) == []


@pytest.mark.parametrize(
    ("wall", "file", "module"),
    [(wall, file, module) for wall, planted_ in PLANTED.items() for file, module in planted_],
)
def test_a_wall_catches_what_is_planted(copy: Path, wall: str, file: str, module: str) -> None:
    with planted(copy / file, module):
        assert wall in broken(copy)


@pytest.mark.parametrize(
    ("program", "unused"),
    [
        ("shared.cli.consent.program", {"aiohttp", "prometheus_client", "sqlite3", "structlog"}),
        ("command_service.cli", {"aiohttp", "opentelemetry", "sqlite3"}),
        ("projection_service.cli", {"aiohttp", "opentelemetry", "sqlite3"}),
    ],
)
def test_a_program_imports_nothing_large_that_it_does_not_use(
    program: str, unused: set[str]
) -> None:
    code = f"import sys, {program}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not unused & set(done.stdout.split())

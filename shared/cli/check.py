"""Looks whether everything that a service needs is there, and says what to do where it is not."""

import asyncio
import platform
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Table
from yarl import URL

from shared.cli.check_log import log_findings
from shared.cli.check_postgres import database_findings, ownership
from shared.cli.check_rabbitmq import broker_findings
from shared.cli.check_results import Finding, Needs, Ownership
from shared.cli.service_commands import print_json
from shared.cli.terminal import can_show, shown
from shared.errors import SettingsError
from shared.settings import secret
from shared.values.database_url import place_of
from shared.values.several_hosts import one_by_one, place_of_broker

_URL_SETTING: Final = "RABBITMQ_MANAGEMENT_URL"
_PASSWORD: Final = "RABBITMQ_MANAGEMENT_PASSWORD"  # noqa: S105 - a variable's name


def _with_password(
    context: typer.Context, parameter: typer.CallbackParam, text: str | None
) -> str | None:
    """Add the password to the URL; raises BadParameter where it was on the command line."""
    if text is None and (text := _secret(_URL_SETTING)) is None:
        return None
    try:
        url = URL(one_by_one(text)[0])
    except ValueError as error:
        raise typer.BadParameter(f"it is no URL ({error})") from None
    given = context.get_parameter_source(parameter.name or "")
    on_the_line = given is not None and given.name == "COMMANDLINE"
    if url.password is not None and on_the_line:
        raise typer.BadParameter(
            "every user of this machine can read a command line: leave the password out and set "
            f"{_PASSWORD}, or set the whole URL as {_URL_SETTING}"
        )
    password = _secret(_PASSWORD)
    if url.user is None or url.password is not None or password is None:
        return text
    user, at, hosts = text.rpartition("@")
    return f"{user}:{quote(password, safe='')}{at}{hosts}"


def _secret(name: str) -> str | None:
    try:
        return secret(name)
    except SettingsError as error:
        raise typer.BadParameter(str(error)) from None


def management_option(purpose: str) -> Any:  # noqa: ANN401 - what typer makes of it
    """Describe an option for the management API, whose password is never on a command line."""
    return typer.Option(
        metavar="URL",
        envvar=_URL_SETTING,
        callback=_with_password,
        help=f"RabbitMQ's management API, http://user@host:15672, {purpose}; "
        f"the password is in {_PASSWORD}.",
    )


Management = Annotated[
    str | None, management_option("to compare bindings, and look for harmful policies")
]
MARKS: Final = ("✓", "✗")
ASCII_MARKS: Final = ("ok", "NO")
"""For a terminal whose encoding lacks the others."""


@dataclass(slots=True)
class Report:
    """All that was found."""

    findings: list[Finding] = field(default_factory=list)
    partitions: list[Ownership] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is missing."""
        return all(finding.ok for finding in self.findings)


async def check(read_needs: Callable[[], Needs], management: str | None = None) -> Report:
    """Look at settings, database, broker and leases; never raises for what is missing."""
    try:
        needs = read_needs()
    except SettingsError as error:
        return Report([Finding("settings", False, str(error))])
    findings = [finding async for finding in _findings(needs, management)]
    return Report(findings, await ownership(needs))


async def _findings(needs: Needs, management: str | None) -> AsyncIterator[Finding]:
    yield Finding("settings", True, ", ".join(_servers_meant(needs)))
    running = f"consent {version('consent')} on Python {platform.python_version()}"
    yield Finding("version", True, running)
    async for finding in database_findings(needs):
        yield finding
    async for finding in broker_findings(needs, management):
        yield finding
    async for finding in log_findings(needs):
        yield finding
    yield Finding("plugins", True, "none are needed")


def _servers_meant(needs: Needs) -> Iterator[str]:
    """Say which servers are meant, without users and passwords."""
    yield f"broker {place_of_broker(needs.settings.rabbitmq_url)}"
    yield f"database {place_of(needs.database_url)}"
    yield f"{needs.settings.consent_partitions} partitions"


def show(report: Report) -> None:
    """Print a report for people."""
    console = Console(highlight=False)
    good, bad = MARKS if can_show("".join(MARKS)) else ASCII_MARKS
    for finding in report.findings:
        mark = f"[green]{good}[/]" if finding.ok else f"[red]{bad}[/]"
        console.print(f"{mark} {finding.name}: {shown(finding.detail)}", soft_wrap=True)
    if report.partitions:
        table = Table("partition", "owner", "epoch")
        for lease in report.partitions:
            table.add_row(str(lease.partition), shown(lease.owner or "nobody"), str(lease.epoch))
        console.print(table)


def tell(read_needs: Callable[[], Needs], *, json: bool, management: str | None) -> None:
    """Check, print the report, and exit with 1 where something is missing."""
    report = asyncio.run(check(read_needs, management))
    if json:
        print_json({"ok": report.ok, "findings": report.findings, "partitions": report.partitions})
    else:
        show(report)
    if not report.ok:
        raise typer.Exit(1)

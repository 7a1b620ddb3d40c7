"""Runs the benchmark: `python -m tests.bench [--quick] [--only throughput]`."""

import signal
from typing import Annotated

import typer

from shared.worker.gc_tuning import collect_seldom
from tests.bench import (
    append,
    catch_up,
    checks,
    growth,
    latency,
    midnight,
    mirror,
    peers,
    throughput,
)
from tests.bench.bench import FULL, QUICK, Bench, UnmetError
from tests.bench.machine import check_durable, facts, give_memory
from tests.bench.progress import Steps
from tests.bench.report import show, write
from tests.bench.stage import make_template
from tests.sandbox import ServerDidNotStart, open_sandbox
from tests.support.deployment import WorkerDidNotStart

SECTIONS = {
    "throughput": throughput.measure,
    "append": append.measure,
    "catch-up": catch_up.measure,
    "latency": latency.measure,
    "checks": checks.measure,
    "growth": growth.measure,
    "midnight": midnight.measure,
    "mirror": mirror.measure,
    "peers": peers.measure,
}

Quick = Annotated[bool, typer.Option("--quick", help="Far less work: does it all still run?")]
Only = Annotated[
    list[str] | None, typer.Option(help=f"A section, as often as you like: {', '.join(SECTIONS)}.")
]

app = typer.Typer(add_completion=False)


@app.command()
def main(*, quick: Quick = False, only: Only = None) -> None:
    """Measure on real servers, print a table, write JSON and a picture.

    Exit code 1 where anything was lost or refused: such figures would prove nothing.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started ends with it
    collect_seldom()  # as the workers do
    unknown = set(only or ()) - SECTIONS.keys()
    if unknown:
        raise typer.BadParameter(f"no section {', '.join(unknown)}: use {', '.join(SECTIONS)}")
    try:
        _run(only or list(SECTIONS), quick=quick)
    except (UnmetError, WorkerDidNotStart, ServerDidNotStart) as unmet:
        typer.echo(f"the benchmark failed: {unmet}", err=True)
        raise typer.Exit(1) from None


def _run(wanted: list[str], *, quick: bool) -> None:
    steps, sizes = Steps(), QUICK if quick else FULL
    with steps.step("starting two databases and a broker"):
        sandbox = open_sandbox(durable=True)
    with sandbox:
        give_memory(sandbox)
        check_durable(sandbox)
        machine = facts(sandbox)
        with steps.step("migrating the databases that others are copied from"):
            template = make_template(sandbox, sizes.partitions)
        bench = Bench(sandbox, sizes, steps, template)
        sections = [SECTIONS[name](bench) for name in SECTIONS if name in wanted]
    show(machine, sections, quick=quick)
    for path in write(machine, sections, quick=quick):
        typer.echo(f"written to {path}")


if __name__ == "__main__":
    app()

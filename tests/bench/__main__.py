"""Runs the benchmark: `python -m tests.bench [--quick]`."""

from typing import Annotated

import typer

from tests.bench import latency, throughput
from tests.bench.bench import FULL, QUICK, Bench, UnmetError
from tests.bench.machine import check_durable, facts
from tests.bench.progress import Steps
from tests.bench.report import show, write
from tests.deployment import WorkerDidNotStart
from tests.sandbox import ServerDidNotStart, open_sandbox

FIGURES = (throughput.measure, latency.measure)

Quick = Annotated[bool, typer.Option("--quick", help="Far less work: does it all still run?")]

app = typer.Typer(add_completion=False)


@app.command()
def main(*, quick: Quick = False) -> None:
    """Measure on real servers, print tables, write JSON.

    Exit code 1 where anything was lost or refused: such figures would prove nothing.
    """
    try:
        _run(quick=quick)
    except (UnmetError, WorkerDidNotStart, ServerDidNotStart) as unmet:
        typer.echo(f"the benchmark failed: {unmet}", err=True)
        raise typer.Exit(1) from None


def _run(*, quick: bool) -> None:
    steps = Steps()
    with steps.step("starting two databases and a broker"):
        sandbox = open_sandbox(durable=True)
    with sandbox:
        check_durable(sandbox)
        machine = facts(sandbox)
        bench = Bench(sandbox, QUICK if quick else FULL, steps)
        sections = [measure(bench) for measure in FIGURES]
    show(machine, sections, quick=quick)
    typer.echo(f"written to {write(machine, sections, quick=quick)}")


if __name__ == "__main__":
    app()

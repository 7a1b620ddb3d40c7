"""Plays a round of chaos: `python -m tests.chaos [--seconds N] [--seed S] …`."""

import logging
import pickle
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from time import monotonic
from typing import Annotated

import typer
from rich.console import Console
from rich.status import Status

from tests.chaos.checker import check
from tests.chaos.plan import DECK
from tests.chaos.report import show
from tests.chaos.round import Result, Settings, play
from tests.sandbox import ServerDidNotStart, open_sandbox
from tests.sandbox.clustered import open_clustered
from tests.support.deployment import Deployment, WorkerDidNotStart, open_deployment

TELL_EVERY_S = 15.0

Seconds = Annotated[float, typer.Option(help="How long things are broken.")]
Seed = Annotated[int, typer.Option(help="Decides which faults there are, and what is sent.")]
Partitions = Annotated[int, typer.Option(help="Partitions of the deployment.")]
Rate = Annotated[float, typer.Option(help="Commands a second, beside bursts.")]
Hot = Annotated[int, typer.Option(help="Patients at a time who get many commands.")]
Others = Annotated[int, typer.Option(help="Patients who share the rest.")]
OnCluster = Annotated[
    bool,
    typer.Option(
        "--cluster", help="Three nodes of the broker, and a synchronous standby of each database."
    ),
]
Only = Annotated[list[str] | None, typer.Option(help=f"A kind of fault: {', '.join(DECK)}.")]

app = typer.Typer(add_completion=False)


@app.command()
def main(
    *,
    seconds: Seconds = 120.0,
    seed: Seed = 1,
    partitions: Partitions = 4,
    rate: Rate = 150.0,
    hot: Hot = 10,
    others: Others = 3000,
    only: Only = None,
    cluster: OnCluster = False,
) -> None:
    """Break everything that may break while commands come in, heal it, and check what is left.

    Exit code 1 where anything was lost, doubled, out of order or contradictory.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started ends with it
    # The libraries tell of each broken connection, which is what this is about.
    for library in ("aiormq", "aio_pika", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    kinds = tuple(only or ())
    if unknown := set(kinds) - DECK.keys():
        raise typer.BadParameter(f"there is no fault of the kind {', '.join(sorted(unknown))}")
    settings = Settings(
        seconds, seed, partitions, rate, hot=hot, others=others, only=kinds, cluster=cluster
    )
    try:
        found = _play(settings)
    except (WorkerDidNotStart, ServerDidNotStart) as error:
        typer.echo(f"the round could not be played: {error}", err=True)
        raise typer.Exit(1) from None
    raise typer.Exit(1 if found else 0)


def _play(settings: Settings) -> bool:
    with Teller() as teller:
        teller.tell("starting the databases and the broker")
        with (
            open_clustered() if settings.cluster else open_sandbox(durable=True) as sandbox,
            open_deployment(sandbox, "chaos", partitions=settings.partitions) as deployment,
        ):
            result = play(settings, sandbox, deployment, teller.tell)
            teller.tell("checking")
            findings = check(result.evidence)
            bad = bool(findings or result.problems)
            kept = _keep(result, deployment) if bad else None
    show(result, findings)
    _show_logs(result, kept)
    return bad


def _keep(result: Result, deployment: Deployment) -> Path:
    kept = Path(tempfile.mkdtemp(prefix="chaos-logs-"))
    with (kept / "evidence.pickle").open("wb") as file:
        pickle.dump((result.evidence, result.happened), file)
    for log in deployment.folder.glob("*.log"):
        shutil.copy(log, kept)
    return kept


def _show_logs(result: Result, kept: Path | None) -> None:
    if kept is not None:
        typer.echo(f"The workers' logs and the evidence are in {kept}; play it again with:")
        settings = result.settings
        only = "".join(f" --only {kind}" for kind in settings.only)
        only += " --cluster" if settings.cluster else ""
        again = f"--seed {settings.seed} --seconds {settings.seconds:.0f}{only}"
        typer.echo(f"  make chaos ARGS='{again}'")


class Teller:
    """Tells people on stderr what is going on: in one line on a terminal, else now and then."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._status = Status("", console=console) if console.is_terminal else None
        self._said_at = 0.0

    def tell(self, what: str) -> None:
        """Say what is going on."""
        if self._status is not None:
            self._status.update(what)
        elif not what[0].isdigit() or monotonic() - self._said_at > TELL_EVERY_S:
            self._said_at = monotonic()
            sys.stderr.write(f"{what}\n")

    def __enter__(self) -> "Teller":
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()


if __name__ == "__main__":
    app()

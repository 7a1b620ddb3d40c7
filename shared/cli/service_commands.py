"""What the command lines of both services share."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final, NoReturn

import asyncpg
import typer
from pydantic_core import to_json
from pydantic_settings import BaseSettings

from shared.cli.terminal import Program, shown_json, tell_version
from shared.errors import NotConnected, NotNow, SchemaError, SettingsError, Unsure
from shared.errors.connection import BROKER_ERRORS
from shared.errors.text import said_by, words_of
from shared.postgres.database import migrate
from shared.rabbitmq.wire.lenient_decoding import bound_headers
from shared.settings import WorkerSettings
from shared.telemetry.libraries import hush_libraries
from shared.telemetry.logs import set_up_logs
from shared.telemetry.metrics import LOG_LINES_DROPPED, tell_build
from shared.telemetry.readiness import Readiness
from shared.telemetry.standard_streams import guard_standard_streams
from shared.telemetry.tracing import tracing
from shared.values.legible import visible
from shared.worker.answering import run_answering_session
from shared.worker.observer import Observer
from shared.worker.process import run_process
from shared.worker.session import Service, run_session

AsJson = Annotated[bool, typer.Option("--json", help="Print data instead of a table.")]

OlderThan = Annotated[
    str, typer.Option(metavar="AGE", help="As 90d: units s m h d w y; 1d at least.")
]

WorkerRole = Annotated[
    str | None,
    typer.Option(
        metavar="ROLE", help="A role of the database: give it what the worker needs, and no more."
    ),
]

MUST_BE_MENDED: Final = 2
"""Exit code where a setting, a schema or the topology is wrong."""
NOT_REACHED: Final = 3
"""Exit code of a one-time command whose broker or database did not answer."""


EXIT_CODES: Final = (
    "Exit codes: 0 done, 1 something is missing or left over, 2 wrong use, or a setting or the "
    "schema must be mended, 3 a server is not reached, or a worker left in a hurry."
)


def new_app(help_: str, settings: type[BaseSettings] | None = None) -> typer.Typer:
    """Make a command line that lists its verbs when it is given none.

    A program's own is given its settings, to name them. It has no shell completion, since no
    shell completes what follows `python -m`.
    """
    epilog = f"{_told(settings)} {EXIT_CODES}" if settings else None
    app = Program(
        help=help_,
        epilog=epilog,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    if settings:
        app.callback()(tell_version)
    return app


@contextmanager
def clear_errors() -> Iterator[None]:
    """End with one line instead of a traceback, where somebody can mend what is wrong."""
    hush_libraries()
    try:
        yield
    except (SettingsError, SchemaError, NotConnected) as error:
        _end(str(error), MUST_BE_MENDED)
    except (NotNow, Unsure) as error:
        _end(str(error), NOT_REACHED)
    except BROKER_ERRORS as error:
        why = f"{said_by(error)}: check its URL, and whether the server runs"
        _end(f"not reached: {why}", NOT_REACHED)
    except asyncpg.UndefinedTableError as error:
        _end(f"the schema is missing or older than this ({error}): run `migrate`", MUST_BE_MENDED)
    except asyncpg.PostgresError as error:
        _end(f"the database refused: {words_of(error)}", NOT_REACHED)


def print_json(value: object) -> None:
    """Print a value on one line, for a machine to read."""
    sys.stdout.write(shown_json(to_json(value).decode()) + "\n")


def migrate_database(url: str, service: str, partitions: int, worker_role: str | None) -> None:
    """Bring a database to this version's schema, and say by which migrations."""
    applied = asyncio.run(
        migrate(
            url,
            service,
            partitions,
            worker_role=worker_role,
            tell=lambda line: typer.echo(line, err=True),
        )
    )
    typer.echo(f"applied {', '.join(applied)}" if applied else "nothing to apply")


def run_worker(service: Service, settings: WorkerSettings, *, answers_only: bool = False) -> None:
    """Run a worker process to its end."""
    bound_headers()
    stream = guard_standard_streams()
    set_up_logs(
        settings.log_level,
        settings.log_format,
        service=service.package,
        worker_id=settings.worker_id,
    )
    tell_build(service.package)
    LOG_LINES_DROPPED.set_function(lambda: stream.dropped)
    readiness = Readiness()
    session = run_answering_session if answers_only else run_session
    observer = Observer(service.package, service.database_url, settings, readiness, service.probe)
    with tracing(service.package, settings.worker_id):
        run_process(
            lambda stop: session(service, settings, readiness, stop),
            settings,
            readiness,
            observer,
        )


def _told(settings: type[BaseSettings]) -> str:
    names = ", ".join(name.upper() for name in settings.model_fields)
    return f"Settings, from the environment: {names}; a URL may be in a file that …_URL_FILE names."


def _end(line: str, code: int) -> NoReturn:
    typer.echo(f"error: {visible(' '.join(line.split()))}", err=True)
    raise typer.Exit(code)

"""Sets up structlog: JSON lines for machines, coloured lines for people, and no content in either.

A traceback tells types and places. It has neither local variables nor the exceptions' own words:
these may quote the record that they stumbled over.
"""

import logging
from contextvars import copy_context
from typing import Any, Final, TextIO

import structlog
from structlog.typing import ExcInfo, Processor

from shared.settings import LogFormat, LogLevel
from shared.telemetry.libraries import hush_libraries
from shared.telemetry.standard_streams import StandardError, guard_standard_streams

_TRACEBACKS: Final = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
_KEPT: Final = ("exc_type", "is_cause", "is_group", "frames")

log = structlog.get_logger()


def set_up_logs(level: LogLevel, format_: LogFormat, **bound: str) -> None:
    """Log to standard error from here on; `bound` is on every line.

    Where lines are lost since nobody reads them, the next one that arrives says how many.
    """
    stream = guard_standard_streams()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, *_renderer(format_, stream)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),  # type: ignore[arg-type] # it is one in all but name
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**bound)
    _adopt_standard_logging(shared, format_, stream)
    context = copy_context()
    stream.on_lost = lambda lines: context.run(_tell_lost, lines)


def _tell_lost(lines: int) -> None:
    log.warning("log.dropped", lines=lines)


def _renderer(format_: LogFormat, stream: StandardError) -> list[Processor]:
    if format_ == "console":
        return [
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(),
                repr_native_str=True,  # what others sent may hold line breaks and escape codes
                exception_formatter=_write_traceback,
            )
        ]
    return [
        structlog.processors.ExceptionRenderer(_traceback),
        structlog.processors.JSONRenderer(),
    ]


def _traceback(exc_info: ExcInfo) -> list[dict[str, Any]]:
    return [_without_words(stack) for stack in _TRACEBACKS(exc_info)]


def _without_words(stack: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in stack.items() if name in _KEPT}
    groups = stack.get("exceptions", ())
    return {**kept, "exceptions": [[_without_words(inner) for inner in group] for group in groups]}


def _write_traceback(out: TextIO, exc_info: ExcInfo) -> None:
    for stack in _flat(_traceback(exc_info)):
        out.writelines(
            f"\n  {frame['filename']}:{frame['lineno']} in {frame['name']}"
            for frame in stack["frames"]
        )
        out.write(f"\n{stack['exc_type']}")


def _flat(stacks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """List the causes before what they caused."""
    return [
        entry
        for stack in reversed(stacks)
        for entry in (*(each for group in stack["exceptions"] for each in _flat(group)), stack)
    ]


def _adopt_standard_logging(
    shared: list[Processor], format_: LogFormat, stream: StandardError
) -> None:
    """Give the lines of libraries that use the standard logging the same form."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderer(format_, stream),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    hush_libraries()

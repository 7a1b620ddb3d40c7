"""Sets up structlog: JSON lines for machines, coloured lines for people, never a local variable."""

import logging
import sys

import structlog
from structlog.typing import Processor

from shared.settings import LogFormat, LogLevel

_TELL_US_THEMSELVES = ("aiormq", "aio_pika")
"""Libraries whose errors reach us as exceptions; their own lines would say it twice."""


def set_up_logs(level: LogLevel, format_: LogFormat, **bound: str) -> None:
    """Log to standard error from here on; `bound` is on every line."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, *_renderer(format_)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**bound)
    _adopt_standard_logging(shared, format_)


def _renderer(format_: LogFormat) -> list[Processor]:
    if format_ == "console":
        plain = structlog.dev.plain_traceback
        colors = sys.stderr.isatty()
        return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [
        structlog.processors.ExceptionRenderer(tracebacks),
        structlog.processors.JSONRenderer(),
    ]


def _adopt_standard_logging(shared: list[Processor], format_: LogFormat) -> None:
    """Give the lines of libraries that use the standard logging the same form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderer(format_),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    hush_libraries()


def hush_libraries() -> None:
    """Keep libraries from saying what they raise."""
    for name in _TELL_US_THEMSELVES:
        logging.getLogger(name).setLevel(logging.CRITICAL)

"""What libraries say in the logs."""

import logging

_TELL_US_THEMSELVES = ("aiormq", "aio_pika", "asyncpg")
"""Libraries whose errors reach us as exceptions; their own lines would say it twice."""


def hush_libraries() -> None:
    """Keep libraries from saying what they raise."""
    for name in _TELL_US_THEMSELVES:
        logging.getLogger(name).setLevel(logging.CRITICAL)

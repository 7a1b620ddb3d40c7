"""Bounds what others may send: what is larger is cut to its beginning before anybody reads it.

A worker holds hundreds of messages of each queue, so what each of them may cost decides what all
of them do. Pure.
"""

from hashlib import sha256
from typing import Final

LARGEST_REQUEST: Final = 65_536
"""Bytes of a command's or a query's body; a well-formed one is below 4 KiB, unless it is padded."""
LARGEST_CHECKS: Final = 1_048_576
"""Bytes of a CheckConsents, and of its answer: 500 questions with 20 usual ids each."""
LARGEST_EVENT: Final = 16_384
"""Bytes of an event's body. Ours are below 8 KiB; a larger one is read from the log instead."""
LARGEST_ANSWER: Final = 4_194_304
"""Bytes of a reply or an answer; a page ends at about 1 MiB."""
KEPT: Final = 8_192
"""Bytes that are kept of what is too large."""


class Beginning(bytes):
    """The first bytes of a body, which know how large the whole of it was, and its digest."""

    size: int
    sha256: str
    """In hexadecimal digits."""


def beginning(body: bytes) -> Beginning:
    """Return at most the first 8 KiB of a body; a beginning stays what it is."""
    if isinstance(body, Beginning):
        return body
    kept = Beginning(body[:KEPT])
    kept.size = len(body)
    kept.sha256 = sha256(body).hexdigest()
    return kept


def bounded(body: bytes, most: int) -> bytes:
    """Return a body, or only its beginning where it is larger than `most` bytes."""
    return body if len(body) <= most else beginning(body)


def too_large(body: bytes, most: int) -> str | None:
    """Say what is wrong with a body of more than `most` bytes; None where nothing is."""
    size = body.size if isinstance(body, Beginning) else len(body)
    if size <= most:
        return None
    return f"has {size:,} bytes, and at most {most:,} are read: send less"

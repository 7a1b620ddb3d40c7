"""Writes a file that only its owner can read, from its first byte on."""

import os
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from shared.errors import SettingsError


def write_private(path: Path, text: str, option: str) -> None:
    """Write a file of mode 0600; one that was there is replaced, whoever may have it open.

    What is no file, such as /dev/stdout, is written to as it is.
    Raises SettingsError, which names the option that named the path.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
        else:
            _replace(path.resolve(), text)
    except OSError as error:
        raise SettingsError(
            f"{option}: {path} can't be written ({error.strerror}): name another file"
        ) from None


def _replace(target: Path, text: str) -> None:
    """Write beside it, into a file that is private by its making, and put that in its place."""
    with NamedTemporaryFile("w", encoding="utf-8", dir=target.parent, delete=False) as file:
        try:
            file.write(text)
            file.flush()
            os.replace(file.name, target)  # noqa: PTH105 - the name is a text
        except BaseException:
            with suppress(OSError):
                os.unlink(file.name)  # noqa: PTH108
            raise

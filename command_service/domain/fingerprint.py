"""Tells whether a command that comes under a known id is the one that was decided for it. Pure.

A receipt keeps the fingerprint for as long as the receipt is kept, so every byte of it is made
here, of named fields: no library's way of writing has a part in it.
"""

from hashlib import blake2b
from typing import Final

from shared.messages.commands import AskConsent, ConsentCommand, GrantConsent
from shared.messages.timestamp import timestamp

VERSION: Final = b"\x01"
"""The first byte. Another way to make fingerprints has another one, and still knows this one."""
NO_COMMAND: Final = b"\x00"
"""In the place of a fingerprint where nobody sent a command: none is known as it."""
UNVERSIONED: Final = 16
"""Bytes of the oldest fingerprints: a digest alone, of pydantic's JSON."""


def fingerprint(command: ConsentCommand) -> bytes:
    """Digest what a command says, however its JSON was written.

    A field that a later version adds is named only where it is given, so that a command without
    it keeps its fingerprint. No value holds the control character between them.
    """
    who = command.grantee
    content = (
        f"verb={command.verb}\0patient_id={command.patient_id}"
        f"\0entity={who.entity}\0id={who.id}\0target={command.target}"
    )
    if isinstance(command, AskConsent | GrantConsent) and command.expires_at is not None:
        content += f"\0expires_at={timestamp(command.expires_at)}"
    return VERSION + blake2b(content.encode(), digest_size=16).digest()


def is_of(known: bytes, command: ConsentCommand) -> bool:
    """Whether a fingerprint that was kept, now or by an older version, is this command's."""
    if len(known) == UNVERSIONED:
        return known == _unversioned(command)
    return known == fingerprint(command)


def _unversioned(command: ConsentCommand) -> bytes:
    """Digest it as was done before fingerprints had versions."""
    content = f"{command.verb}{command.model_dump_json(exclude_none=True)}".encode()
    return blake2b(content, digest_size=16).digest()

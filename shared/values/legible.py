"""Which characters of a text a person can't see, and how to show it so that they do. Pure."""

import re
import unicodedata
from typing import Final

_UNSEEN: Final = (
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U00013441\U00013442\U00016fe4\U0001d159\U000e0100-\U000e01ef"
)
"""Marks and letters that leave no ink: Unicode's default ignorables that Python calls printable
(joiners, fillers, variation selectors), and what is drawn blank: the braille pattern without dots,
two hieroglyphs, the filler of Khitan, the notehead that is none."""
_UNSEEN_ONE: Final = re.compile(f"[{_UNSEEN}]")
_SHOWN_CODE: Final = re.compile(r"\\(?=u\{)")


def is_plain(text: str) -> bool:
    """Whether a text is of ASCII's printable characters alone, as nearly all ids are."""
    return text.isascii() and text.isprintable()


def hidden_character(text: str) -> str | None:
    """Find the first character that can't be seen for what it is; a plain space can.

    It may be a control or format character, one that turns the line around, a surrogate, one for
    private use, one that Unicode has not assigned, white space that is no plain space, or a mark
    that leaves no ink.
    """
    if text.isprintable() and (text.isascii() or not _UNSEEN_ONE.search(text)):
        return None
    return next(character for character in text if _is_hidden(character))


def uncomposed_character(text: str) -> str | None:
    """Find the first character by which a text is not in NFC, Unicode's composed form."""
    if unicodedata.is_normalized("NFC", text):
        return None
    ends = range(1, len(text) + 1)
    return next(text[end - 1] for end in ends if not unicodedata.is_normalized("NFC", text[:end]))


def code_point(character: str) -> str:
    """Name a character as Unicode does: U+200B ZERO WIDTH SPACE."""
    return f"U+{ord(character):04X} {unicodedata.name(character, '')}".rstrip()


def visible(text: str) -> str:
    r"""Write what others sent so that nothing in it is hidden, and no line is turned around.

    What can't be seen is written like `\u{200b}`; of a text that is not in NFC, so is all that is
    not ASCII, since it may look the same as another one.
    """
    composed = unicodedata.is_normalized("NFC", text)
    if composed and hidden_character(text) is None and "\\u{" not in text:
        return text
    unambiguous = _SHOWN_CODE.sub(r"\\u{5c}", text)
    return "".join(
        f"\\u{{{ord(character):x}}}"
        if _is_hidden(character) or not (composed or character.isascii())
        else character
        for character in unambiguous
    )


def visible_json(text: str) -> str:
    """Escape in JSON what can't be seen; it says the same to a program as before."""
    if hidden_character(text) is None:
        return text
    return "".join(
        _escaped(character) if _is_hidden(character) else character for character in text
    )


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


def _is_hidden(character: str) -> bool:
    return not character.isprintable() or bool(_UNSEEN_ONE.match(character))

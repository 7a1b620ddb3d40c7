"""Puts the pages of a history together, as of one version. Pure."""

from collections.abc import Sequence

from shared.messages.queries import History, Period, RequestMade


def joined(pages: Sequence[History]) -> History:
    """Join pages, read one after the other, as all of it was at the version of the first.

    What began later is left out, and what ended later is open: so nobody sees half a change.
    """
    first = pages[0]
    return first.model_copy(
        update={
            "periods": [
                _period_at(first.version, one)
                for page in pages
                for one in page.periods
                if one.granted.version <= first.version
            ],
            "requests": [
                _request_at(first.version, one)
                for page in pages
                for one in page.requests
                if one.asked.version <= first.version
            ],
            "next": None,
            "complete": all(page.complete for page in pages),
            "known_since": pages[-1].known_since,
        }
    )


def _period_at(version: int, one: Period) -> Period:
    later = one.revoked is not None and one.revoked.version > version
    return one.model_copy(update={"revoked": None}) if later else one


def _request_at(version: int, one: RequestMade) -> RequestMade:
    later = one.answered is not None and one.answered.version > version
    return one.model_copy(update={"answered": None}) if later else one

"""Puts the pages of a history together, as of one version. Pure."""

from collections.abc import Sequence

from shared.messages.queries import History, Period, RequestMade


def joined(pages: Sequence[History]) -> History:
    """Join pages, read one after the other, as all of it was at the version of the first.

    What began later is left out, and what was ended later is open: so nobody sees half a change.
    What has come to its own end has ended: that is no change.
    """
    first = pages[0]
    return first.model_copy(
        update={
            "periods": [
                _period_at(first.version, period)
                for page in pages
                for period in page.periods
                if period.granted.version <= first.version
            ],
            "requests": [
                _request_at(first.version, request)
                for page in pages
                for request in page.requests
                if request.asked.version <= first.version
            ],
            "next": None,
            "complete": all(page.complete for page in pages),
            "known_since": pages[-1].known_since,
        }
    )


def _period_at(version: int, period: Period) -> Period:
    ended = period.ended
    if ended is None or ended.cause == "expired" or (ended.version or 0) <= version:
        return period
    return period.model_copy(update={"ended": None})


def _request_at(version: int, request: RequestMade) -> RequestMade:
    later = request.answered is not None and request.answered.version > version
    return request.model_copy(update={"answered": None}) if later else request

"""Why a mirror does not answer, beyond being stale for a while."""

from shared.errors import Stale


class LogSetBack(Stale):
    """The log has lost what a mirror took from it, or it is another deployment's."""

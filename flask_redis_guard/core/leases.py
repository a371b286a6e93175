"""Permits that come back by themselves: a probe that is never settled cannot wedge the breaker."""

from __future__ import annotations

from flask_redis_guard.core.states import Permit


class Leases:
    """A limited number of permits in flight, each for a limited time.

    :param permits: how many at once.
    :param seconds: after which one that was not ended is given to somebody else.
    """

    def __init__(self, permits: int, seconds: float) -> None:
        self._permits = permits
        self._seconds = seconds
        self._expiry: dict[Permit, float] = {}

    def grant(self, generation: int, now: float) -> Permit | None:
        """Give a permit, or ``None`` while all are in flight."""
        for permit in [p for p, expires in self._expiry.items() if expires <= now]:
            del self._expiry[permit]
        if len(self._expiry) >= self._permits:
            return None
        permit = Permit(generation)
        self._expiry[permit] = now + self._seconds
        return permit

    def end(self, permit: Permit, now: float) -> bool:
        """Take a permit back.

        :returns: whether it was in flight and in time.
        """
        expires = self._expiry.pop(permit, None)
        return expires is not None and now < expires

    def next_free(self, now: float) -> float:
        """Return when, on the clock, the first one in flight comes back at the latest."""
        return min(list(self._expiry.values()), default=now)

    def clear(self) -> None:
        """Forget all that are in flight."""
        self._expiry.clear()

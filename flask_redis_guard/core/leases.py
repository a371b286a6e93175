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
        self._reservation = 0.0
        self._reserved_until = 0.0

    def begin(self, now: float) -> None:
        """Forget all that are in flight, and reserve the first one anew."""
        self._expiry.clear()
        self._reserved_until = now + self._reservation

    def reserve(self, seconds: float, now: float) -> None:
        """Keep the first permit for the background monitor, for so long each time."""
        self._reservation = seconds
        self._reserved_until = min(self._reserved_until, now + seconds)

    def end_reservation(self) -> None:
        """Let users have permits at once."""
        self._reserved_until = 0.0

    def is_reserved(self, now: float) -> bool:
        """Whether the first permit is still kept for the background monitor."""
        return now < self._reserved_until

    def grant(self, generation: int, now: float, *, probe: bool = False) -> Permit | None:
        """Give a permit, or ``None`` while all are in flight or kept for the monitor's probe."""
        if self.is_reserved(now) and not probe:
            return None
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
        """Return when, on the clock, users may have the next one at the latest."""
        return max(self._reserved_until, min(list(self._expiry.values()), default=now))

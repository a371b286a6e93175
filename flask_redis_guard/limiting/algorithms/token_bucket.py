"""The token bucket as GCRA: one time, at which the bucket is full again.

Rules in Redis: token_bucket.lua. Model of its promise: ``BucketModel`` in
``tests/integration/limiting/models.py``.
"""

from __future__ import annotations

from typing import Final

from flask_redis_guard.core import rates
from flask_redis_guard.limiting.algorithms.base import Algorithm


class Bucket:
    """The in-process twin, with times in 1/limit microseconds, which Python's integers hold.

    :param rate: what it counts.
    """

    __slots__ = ("arrival", "burst", "each", "returned", "scale")

    def __init__(self, rate: rates.Rate) -> None:
        self.scale = rate.limit
        self.each = rate.per_seconds * 1_000_000
        self.burst = rate.capacity
        self.arrival = 0
        self.returned = 0

    def _debt(self, now: int) -> int:
        return max(0, self.arrival - now * self.scale)

    def wait(self, now: int, cost: int) -> int:
        """See :class:`.base.Counter`."""
        over = self._debt(now) + (cost - self.burst) * self.each
        return max(0, -(-over // self.scale))

    def reset(self, now: int) -> int:
        """See :class:`.base.Counter`."""
        return -(-self._debt(now) // self.scale)

    def remaining(self, now: int) -> int:
        """See :class:`.base.Counter`."""
        return (self.burst * self.each - self._debt(now)) // self.each

    def take(self, now: int, cost: int) -> int:
        """See :class:`.base.Counter`."""
        self.arrival = now * self.scale + self._debt(now) + cost * self.each
        return self.arrival + self.returned

    def give(self, now: int, cost: int, mark: int) -> None:
        """See :class:`.base.Counter`."""
        # As in token_bucket.lua: what may have flowed in since is not given back again.
        back = max(0, min(cost * self.each, mark - self.returned - now * self.scale))
        self.arrival -= back
        self.returned += back


TOKEN_BUCKET: Final = Algorithm(rates.TOKEN_BUCKET, b"t", "token_bucket.lua", Bucket)

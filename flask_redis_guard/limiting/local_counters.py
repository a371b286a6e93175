"""What the in-process limiter counts with: one rate and subject each, as the scripts count."""

from __future__ import annotations

from typing import Protocol

from flask_redis_guard.core.rates import EXACT_LIMIT, FIXED_WINDOW, TOKEN_BUCKET, Rate


class Counter(Protocol):
    """One rate's count of one subject; all times in whole microseconds."""

    def wait(self, now: int, cost: int) -> int:
        """Time until the cost fits (cost at most the capacity; 0 if it does now)."""

    def reset(self, now: int) -> int:
        """Time until nothing is counted any more."""

    def remaining(self, now: int) -> int:
        """What fits now."""

    def take(self, now: int, cost: int) -> int:
        """Count it; the mark tells :meth:`give` where."""

    def give(self, now: int, cost: int, mark: int) -> None:
        """Take back what was counted, as far as it still is."""


class _Slots:
    """Sliding and fixed windows: counts that leave together at a known time.

    A slot is a moment for limits up to 16, a sixteenth of the period above, a calendar period for
    fixed windows; there are never more than seventeen.
    """

    __slots__ = ("limit", "slots", "stay", "width")

    def __init__(self, rate: Rate) -> None:
        period = rate.per_seconds * 1_000_000
        self.limit = rate.limit
        # [when it leaves, count], oldest first. An empty deque would be ten times as large.
        self.slots: list[list[int]] = []
        if rate.effective_algorithm == FIXED_WINDOW:
            self.width, self.stay = period, period
        elif rate.limit <= EXACT_LIMIT:
            self.width, self.stay = 1, period
        else:
            self.width, self.stay = period // 16, period // 16 * 17

    def _count(self, now: int) -> int:
        while self.slots and self.slots[0][0] <= now:
            del self.slots[0]
        return sum(count for _, count in self.slots)

    def wait(self, now: int, cost: int) -> int:
        excess = self._count(now) + cost - self.limit
        leaves = now
        for leaves, count in self.slots if excess > 0 else ():  # noqa: B007 - the last one tells
            excess -= count
            if excess <= 0:
                break
        return leaves - now

    def reset(self, now: int) -> int:
        return self.slots[-1][0] - now if self._count(now) else 0

    def remaining(self, now: int) -> int:
        return self.limit - self._count(now)

    def take(self, now: int, cost: int) -> int:
        leaves = now // self.width * self.width + self.stay
        if self.slots and self.slots[-1][0] == leaves:
            self.slots[-1][1] += cost
        else:
            self.slots.append([leaves, cost])
        return leaves

    def give(self, now: int, cost: int, mark: int) -> None:
        for slot in self.slots:
            if slot[0] == mark:
                slot[1] -= min(cost, slot[1])
        self.slots = [slot for slot in self.slots if slot[1]]


class _Bucket:
    """GCRA with times in 1/limit microseconds, which Python's integers hold exactly."""

    __slots__ = ("arrival", "burst", "each", "returned", "scale")

    def __init__(self, rate: Rate) -> None:
        self.scale = rate.limit
        self.each = rate.per_seconds * 1_000_000
        self.burst = rate.capacity
        self.arrival = 0
        self.returned = 0

    def _debt(self, now: int) -> int:
        return max(0, self.arrival - now * self.scale)

    def wait(self, now: int, cost: int) -> int:
        over = self._debt(now) + (cost - self.burst) * self.each
        return max(0, -(-over // self.scale))

    def reset(self, now: int) -> int:
        return -(-self._debt(now) // self.scale)

    def remaining(self, now: int) -> int:
        return (self.burst * self.each - self._debt(now)) // self.each

    def take(self, now: int, cost: int) -> int:
        self.arrival = now * self.scale + self._debt(now) + cost * self.each
        return self.arrival + self.returned

    def give(self, now: int, cost: int, mark: int) -> None:
        # As in refund.lua: what may have flowed in since is not given back again.
        back = max(0, min(cost * self.each, mark - self.returned - now * self.scale))
        self.arrival -= back
        self.returned += back


def new_counter(rate: Rate) -> Counter:
    """Return a counter of a rate, with nothing counted."""
    return _Bucket(rate) if rate.effective_algorithm == TOKEN_BUCKET else _Slots(rate)

"""What the in-process twins of all windows share: counts that leave together at a known time."""

from __future__ import annotations


class Windows:
    """Counts by the time at which they leave; there are never more than seventeen.

    :param limit: the most that may be counted.
    :param width: what is charged within so many microseconds leaves together.
    :param stay: how long after the beginning of that time it leaves.
    """

    __slots__ = ("limit", "slots", "stay", "width")

    def __init__(self, limit: int, width: int, stay: int) -> None:
        self.limit = limit
        self.width = width
        self.stay = stay
        # [when it leaves, count], oldest first. An empty deque would be ten times as large.
        self.slots: list[list[int]] = []

    def _count(self, now: int) -> int:
        while self.slots and self.slots[0][0] <= now:
            del self.slots[0]
        return sum(count for _, count in self.slots)

    def wait(self, now: int, cost: int) -> int:
        """See :class:`.base.Counter`."""
        excess = self._count(now) + cost - self.limit
        leaves = now
        for leaves, count in self.slots if excess > 0 else ():  # noqa: B007 - the last one tells
            excess -= count
            if excess <= 0:
                break
        return leaves - now

    def reset(self, now: int) -> int:
        """See :class:`.base.Counter`."""
        return self.slots[-1][0] - now if self._count(now) else 0

    def remaining(self, now: int) -> int:
        """See :class:`.base.Counter`."""
        return self.limit - self._count(now)

    def take(self, now: int, cost: int) -> int:
        """See :class:`.base.Counter`."""
        leaves = now // self.width * self.width + self.stay
        if self.slots and self.slots[-1][0] == leaves:
            self.slots[-1][1] += cost
        else:
            self.slots.append([leaves, cost])
        return leaves

    def give(self, now: int, cost: int, mark: int) -> None:
        """See :class:`.base.Counter`."""
        for slot in self.slots:
            if slot[0] == mark:
                slot[1] -= min(cost, slot[1])
        self.slots = [slot for slot in self.slots if slot[1]]

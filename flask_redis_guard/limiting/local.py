"""An in-process stand-in for the limiter, for limits that choose it while Redis is away."""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Protocol

from flask_redis_guard.core.rates import (
    EXACT_LIMIT,
    FIXED_WINDOW,
    TOKEN_BUCKET,
    Decision,
    Rate,
    RateState,
    parse_rates,
)

from .charges import Charge, Plan, Receipt, Row
from .keys import KeyMaker, Rates, Subject

#: Counters of each limit that subjects share who come when the memory is full.
_SHARED: Final = 64


class _Counter(Protocol):
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

    def __init__(self, rate: Rate) -> None:
        period = rate.per_seconds * 1_000_000
        self.limit = rate.limit
        self.slots: deque[list[int]] = deque()  # [when it leaves, count], oldest first
        if rate.effective_algorithm == FIXED_WINDOW:
            self.width, self.stay = period, period
        elif rate.limit <= EXACT_LIMIT:
            self.width, self.stay = 1, period
        else:
            self.width, self.stay = period // 16, period // 16 * 17

    def _count(self, now: int) -> int:
        while self.slots and self.slots[0][0] <= now:
            self.slots.popleft()
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
        self.slots = deque(slot for slot in self.slots if slot[1])


class _Bucket:
    """GCRA with times in 1/limit microseconds, which Python's integers hold exactly."""

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


class LocalLimiter:
    """The methods of :class:`.limiter.RateLimiter`, counting in this process only.

    Each process admits its share of every limit, ``max(1, limit // processes)``, from an empty
    count on: what Redis had counted is not known here. Memory is bounded: subjects beyond
    ``max_counters`` share a few counters of each limit, so that who brings many subjects gets
    less, never more.

    :param keys: names the counters, as in Redis.
    :param processes: app processes in all.
    :param max_counters: the most counters of single subjects.
    :param clock: microseconds since the Unix epoch; never set back.
    """

    def __init__(
        self,
        keys: KeyMaker,
        *,
        processes: int = 1,
        max_counters: int = 100_000,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self._keys = keys
        self._processes = processes
        self._max = max_counters
        # Calendar time for fixed windows, but going on from now by the monotonic clock.
        offset = time.time_ns() - time.monotonic_ns()
        self._clock = clock or (lambda: (time.monotonic_ns() + offset) // 1000)
        self._counters: dict[bytes, _Counter] = {}
        self._shared: dict[bytes, _Counter] = {}
        self._swept = 0
        self._locks: dict[int, threading.Lock] = {}

    def hit(self, rates: Rates, key: Subject, cost: int = 1, scope: str = "") -> Decision:
        """As :meth:`.limiter.RateLimiter.hit`, without Redis."""
        return self.judge([Charge(parse_rates(rates), key, cost, scope)])[0]

    def judge(self, charges: Sequence[Charge]) -> list[Decision]:
        """As :meth:`.limiter.RateLimiter.judge`, without Redis."""
        shares = [replace(c, rates=tuple(map(self._share, c.rates))) for c in charges]
        plan = Plan(shares, self._keys)
        with self._locked():
            now = self._clock()
            counters = [self._counter(row, now) for row in plan.rows]
            waits = [self._wait(c, r, now) for c, r in zip(counters, plan.rows, strict=True)]
            full = {row.group for row, wait in zip(plan.rows, waits, strict=True) if wait}
            for row, counter, wait in zip(plan.rows, counters, waits, strict=True):
                row.charged = 0 not in full and row.group not in full
                if row.charged:
                    row.marks = (counter.take(now, row.cost), 0)
                row.state = RateState(
                    row.rate,
                    not wait,
                    counter.remaining(now),
                    counter.reset(now) / 1e6,
                    wait / 1e6,
                )
        return plan.decisions()

    def refund(self, *decisions: Decision) -> None:
        """As :meth:`.limiter.RateLimiter.refund`, for decisions made here."""
        for decision in decisions:
            if not isinstance(decision.receipt, Receipt):
                continue
            with self._locked():
                now = self._clock()
                for row in decision.receipt.redeem():
                    self._counter(row, now).give(now, row.cost, row.marks[0])

    def reset(self, rates: Rates, key: Subject, cost: int = 1, scope: str = "") -> None:
        """As :meth:`.limiter.RateLimiter.reset`, without Redis."""
        shares = tuple(map(self._share, parse_rates(rates)))
        with self._locked():
            for row in Plan([Charge(shares, key, cost, scope)], self._keys).rows:
                self._counters.pop(row.key, None)

    def _share(self, rate: Rate) -> Rate:
        if self._processes == 1:
            return rate
        burst = None if rate.burst is None else max(1, rate.burst // self._processes)
        return replace(rate, limit=max(1, rate.limit // self._processes), burst=burst)

    def _wait(self, counter: _Counter, row: Row, now: int) -> int:
        if row.cost > row.rate.capacity:
            return row.rate.per_seconds * 1_000_000
        return counter.wait(now, row.cost)

    def _counter(self, row: Row, now: int) -> _Counter:
        counter = self._counters.get(row.key)
        if counter is not None:
            return counter
        if len(self._counters) >= self._max and now - self._swept >= 1_000_000:
            self._swept = now
            self._counters = {k: c for k, c in self._counters.items() if c.reset(now)}
            self._shared = {k: c for k, c in self._shared.items() if c.reset(now)}
        counters, key = self._counters, row.key
        if len(counters) >= self._max:
            limit, _, subject = key.rpartition(b"{")
            counters, key = self._shared, b"%b%d" % (limit, zlib.crc32(subject) % _SHARED)
        if key not in counters:
            bucket = row.rate.effective_algorithm == TOKEN_BUCKET
            counters[key] = _Bucket(row.rate) if bucket else _Slots(row.rate)
        return counters[key]

    def _locked(self) -> threading.Lock:
        # Made at the first use and again after a fork, whatever was imported or patched before.
        pid = os.getpid()
        return self._locks.get(pid) or self._locks.setdefault(pid, threading.Lock())

"""An in-process stand-in for the limiter, for limits that choose it while Redis is away."""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Final

from flask_redis_guard.core.rates import Decision, Rate, RateState, parse_rates
from flask_redis_guard.limiting.algorithms import Counter, algorithm_of
from flask_redis_guard.limiting.keys import KeyMaker, Rates, Subject
from flask_redis_guard.limiting.plan import Charge, Plan, Row, refund

#: Counters of each limit that subjects share who come when the memory is full.
_SHARED: Final = 64
#: Counters looked at when one is to be added to a full memory: more than one, so that it empties.
_LOOKED_AT: Final = 4


class LocalLimiter:
    """The methods of :class:`.limiter.RateLimiter`, counting in this process only.

    Each process admits its share of every limit, ``max(1, limit // processes)``, from an empty
    count on: what Redis had counted is not known here. Memory is bounded: subjects beyond
    ``max_counters`` share a few counters of each limit, so that who brings many subjects gets
    less, never more. What a subject may have been charged there goes on counting when there is
    room for it again.

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
        self._counters: OrderedDict[bytes, Counter] = OrderedDict()
        self._shared: OrderedDict[bytes, Counter] = OrderedDict()
        self._locks: dict[int, threading.Lock] = {}

    def hit(self, rates: Rates, key: Subject, cost: int = 1, scope: str = "") -> Decision:
        """As :meth:`.limiter.RateLimiter.hit`, without Redis."""
        return self.judge([Charge(parse_rates(rates), key, cost, scope)])[0]

    def judge(self, charges: Sequence[Charge]) -> list[Decision]:
        """As :meth:`.limiter.RateLimiter.judge`, without Redis."""
        shares = [replace(c, rates=tuple(map(self._share, c.rates))) for c in charges]
        plan = Plan(shares, self._keys, self)
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
        """As :meth:`.limiter.RateLimiter.refund`."""
        refund(decisions)

    def give_back(self, rows: Sequence[Row]) -> None:
        """See :class:`.plan.Issuer`."""
        with self._locked():
            now = self._clock()
            for row in rows:
                self._counter(row, now).give(now, row.cost, row.marks[0])

    def reset(self, rates: Rates, key: Subject, cost: int = 1, scope: str = "") -> None:
        """As :meth:`.limiter.RateLimiter.reset`, without Redis."""
        shares = tuple(map(self._share, parse_rates(rates)))
        with self._locked():
            for row in Plan([Charge(shares, key, cost, scope)], self._keys, self).rows:
                self._counters.pop(row.key, None)

    def _share(self, rate: Rate) -> Rate:
        if self._processes == 1:
            return rate
        burst = None if rate.burst is None else max(1, rate.burst // self._processes)
        return replace(rate, limit=max(1, rate.limit // self._processes), burst=burst)

    def _wait(self, counter: Counter, row: Row, now: int) -> int:
        if row.cost > row.rate.capacity:
            return row.rate.per_seconds * 1_000_000
        return counter.wait(now, row.cost)

    def _counter(self, row: Row, now: int) -> Counter:
        counter = self._counters.get(row.key)
        if counter is not None:
            return counter
        limit, _, subject = row.key.rpartition(b"{")
        bucket = b"%b%d" % (limit, zlib.crc32(subject) % _SHARED)
        shared = self._shared.get(bucket)
        if not self._has_room(now):
            if shared is None:
                shared = self._shared[bucket] = _new_counter(row.rate)
            return shared
        counter = (
            deepcopy(shared) if shared is not None and shared.reset(now) else _new_counter(row.rate)
        )
        self._counters[row.key] = counter
        return counter

    def _has_room(self, now: int) -> bool:
        """Look for room, a few counters at a time: looking at all would stop the process."""
        if len(self._counters) < self._max:
            return True
        for counters in (self._shared, self._counters):
            for _ in range(min(_LOOKED_AT, len(counters))):
                key, counter = counters.popitem(last=False)
                if counter.reset(now):
                    counters[key] = counter  # as the last: others are looked at next time
        return len(self._counters) < self._max

    def _locked(self) -> threading.Lock:
        # Made at the first use and again after a fork, whatever was imported or patched before.
        pid = os.getpid()
        return self._locks.get(pid) or self._locks.setdefault(pid, threading.Lock())


def _new_counter(rate: Rate) -> Counter:
    return algorithm_of(rate).counter(rate)

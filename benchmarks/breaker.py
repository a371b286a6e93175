"""What the breaker adds to a call that succeeds, beside pybreaker and circuitbreaker.

Run ``python benchmarks/breaker.py``. The others wrap a function, so they are measured around one
that does nothing, less what calling it bare costs. The contestants take turns in the same
process, so that noise meets all of them; reported are the best and the median of the rounds.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from flask_redis_guard.core.breaker import CircuitBreaker, Outcome, Permit

ROUNDS, CALLS = 40, 20_000
Loop = Callable[[int], float]


def nothing() -> None:
    """Stand in for a call to Redis."""


def calls_of(function: Callable[[], Any]) -> Loop:
    """Return a loop that calls a function so many times and tells the seconds."""

    def loop(calls: int) -> float:
        numbers = range(calls)
        started = time.perf_counter()
        for _ in numbers:
            function()
        return time.perf_counter() - started

    return loop


def acquire_and_settle(breaker: CircuitBreaker) -> Loop:
    """Return a loop that does what the gate does around each call."""

    def loop(calls: int) -> float:
        acquire, settle, success = breaker.try_acquire, breaker.settle, Outcome.SUCCESS
        numbers = range(calls)
        started = time.perf_counter()
        for _ in numbers:
            permit = acquire()
            if isinstance(permit, Permit):
                settle(permit, success)
        return time.perf_counter() - started

    return loop


def contestants() -> Iterator[tuple[str, Loop, bool]]:
    """Yield names, loops, and whether a bare call is part of what is measured."""
    yield "a bare call", calls_of(nothing), False
    yield "flask-redis-guard, closed", acquire_and_settle(CircuitBreaker()), False
    pending = CircuitBreaker(window_seconds=3600, failure_rate=1.0, minimum_calls=10**9)
    permit = pending.try_acquire()
    if isinstance(permit, Permit):
        pending.settle(permit, Outcome.FAILURE)
    yield "flask-redis-guard, after a failure", acquire_and_settle(pending), False
    refusing = CircuitBreaker()
    refusing.force_open()
    yield "flask-redis-guard, refusing", calls_of(refusing.try_acquire), False
    for name, wrap in others():
        yield name, calls_of(wrap), True


def others() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what other libraries make of a function that does nothing, where installed."""
    try:
        pybreaker = importlib.import_module("pybreaker")
        circuitbreaker = importlib.import_module("circuitbreaker")
    except ImportError:
        print("pip install 'flask-redis-guard[bench]' measures the others too", file=sys.stderr)
        return
    yield "pybreaker", pybreaker.CircuitBreaker()(nothing)
    yield "circuitbreaker", circuitbreaker.CircuitBreaker()(nothing)


def main() -> None:
    """Print nanoseconds for each call."""
    found = list(contestants())
    seconds: dict[str, list[float]] = {name: [] for name, _, _ in found}
    for _ in range(ROUNDS):
        for name, loop, _ in found:
            seconds[name].append(loop(CALLS) / CALLS)
    bare = statistics.median(seconds["a bare call"])
    print(f"Python {sys.version.split()[0]}; {ROUNDS} rounds of {CALLS} calls; ns a call")
    print(f"{'':36}{'best':>8}{'median':>8}")
    for name, _, wrapped in found:
        cost = [value - bare * wrapped for value in seconds[name]]
        print(f"{name:36}{min(cost) * 1e9:8.0f}{statistics.median(cost) * 1e9:8.0f}")


if __name__ == "__main__":
    main()

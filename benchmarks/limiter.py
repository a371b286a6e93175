"""What a decision costs beside a plain ``INCR``, and beside other limiters.

Run ``python benchmarks/limiter.py redis://localhost:6379/0`` against a server whose data may be
lost: it writes keys. All candidates take turns in the same run, so that noise meets all of them;
reported is the median of the rounds. ``limits`` and ``throttled-py`` are measured if installed.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import redis

from flask_redis_guard.core.rates import parse_rates
from flask_redis_guard.limiting.limiter import RateLimiter

ROUNDS, CALLS = 120, 20
ONE = "1000000/minute"
THREE = "1000000/minute; 2000000/hour; 3000000/day"


def candidates(url: str) -> dict[str, Callable[[], object]]:
    client = redis.Redis.from_url(url)
    limiter = RateLimiter(client)
    found: dict[str, Callable[[], object]] = {"INCR": lambda: client.incr("benchmark:plain")}
    digest = client.script_load("return 1")
    found["EVALSHA of 'return 1'"] = lambda: client.evalsha(digest, 0)
    for algorithm in ("sliding-window", "token-bucket", "fixed-window"):
        one, three = (parse_rates(text, algorithm=algorithm) for text in (ONE, THREE))
        found[f"{algorithm}, 1 rate"] = partial(limiter.hit, one, "203.0.113.9")
        found[f"{algorithm}, {len(three)} rates"] = partial(limiter.hit, three, "203.0.113.9")
    found.update(of_limits(url))
    found.update(of_throttled(url))
    limiter.hit("1/day", "refused")
    found["a remembered refusal"] = lambda: limiter.hit("1/day", "refused")
    return found


def of_limits(url: str) -> dict[str, Callable[[], object]]:
    try:
        from limits import parse_many, storage, strategies
    except ImportError:
        return {}
    store = storage.storage_from_string(url)
    kinds = {
        "limits, moving window": strategies.MovingWindowRateLimiter,
        "limits, sliding window counter": strategies.SlidingWindowCounterRateLimiter,
    }
    found: dict[str, Callable[[], object]] = {}
    for name, kind in kinds.items():
        hits = [partial(kind(store).hit, item, "203.0.113.9") for item in parse_many(THREE)]
        found[f"{name}, 1 rate"] = hits[0]
        found[f"{name}, 3 rates, 3 calls"] = partial(in_turn, hits)
    return found


def of_throttled(url: str) -> dict[str, Callable[[], object]]:
    try:
        from throttled import RateLimiterType, Throttled, per_day, per_hour, per_min, store
    except ImportError:
        return {}
    found: dict[str, Callable[[], object]] = {}
    quotas = (per_min(1_000_000), per_hour(2_000_000), per_day(3_000_000))
    for kind in (RateLimiterType.SLIDING_WINDOW, RateLimiterType.GCRA):
        hits = [
            Throttled(
                key=f"203.0.113.9:{number}",
                using=kind.value,
                quota=quota,
                store=store.RedisStore(url),
            ).limit
            for number, quota in enumerate(quotas)
        ]
        found[f"throttled-py, {kind.value}, 1 rate"] = hits[0]
        found[f"throttled-py, {kind.value}, 3 rates, 3 calls"] = partial(in_turn, hits)
    return found


def in_turn(calls: Sequence[Callable[[], object]]) -> None:
    """What a library does that knows one rate at a time."""
    for call in calls:
        call()


def main(url: str) -> None:
    calls = candidates(url)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            seconds[name].append((time.perf_counter() - start) / CALLS)
    plain = statistics.median(seconds["INCR"])
    for name, measured in seconds.items():
        median = statistics.median(measured)
        print(f"{name:46}{median * 1e6:8.1f} us{median / plain:8.2f} x INCR")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "redis://localhost:6379/0")

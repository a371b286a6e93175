"""What a guarded operation costs beside a plain one, in one run on one server.

``python -m benchmarks.client`` prints microseconds per call and the ratio; rounds of both
alternate, and the median counts, so that a busy machine slows both alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import redis

from tests.support import RedisServer
from tests.support.guarded import Guarded

CALLS = 1000
ROUNDS = 11


def _pipeline(client: Any) -> None:
    client.pipeline(transaction=False).get("k").get("k").get("k").execute()


WORK: dict[str, Callable[[Any], Any]] = {
    "get": lambda client: client.get("k"),
    "pipeline of three": _pipeline,
}


def measure(client: Any, work: Callable[[Any], Any]) -> float:
    """Return microseconds per call, over one round."""
    started = time.perf_counter()
    for _ in range(CALLS):
        work(client)
    return (time.perf_counter() - started) / CALLS * 1e6


def main() -> None:
    """Print one line for each kind of work."""
    with RedisServer() as server, redis.Redis(port=server.port) as plain:
        guarded = Guarded(server.url)
        for name, work in WORK.items():
            rounds = [(measure(plain, work), measure(guarded.client, work)) for _ in range(ROUNDS)]
            bare, ours = (statistics.median(column) for column in zip(*rounds, strict=True))
            print(f"{name}: plain {bare:.0f} us, guarded {ours:.0f} us, ratio {ours / bare:.2f}")
        guarded.close()


if __name__ == "__main__":
    main()

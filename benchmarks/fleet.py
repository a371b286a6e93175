"""What one Redis server carries for a fleet: a simulation from measured service times.

``python -m benchmarks.fleet``. Assumptions: the server works through commands one after another
(as Redis does), each takes what was measured here; requests of many workers together arrive at
random (Poisson); the network adds a constant that is left out. So waiting is that of an M/D/1
queue. A flood of one client is refused from memory by every worker, which asks Redis about it once
a second at most.
"""

from __future__ import annotations

import math
import random
import statistics
from typing import Any

from benchmarks.harness import Table, publish, server
from benchmarks.peers import guarded_app
from flask_redis_guard import Rate

#: Seconds that a caller waits at most: the default of ``REDIS_GUARD_TIMEOUT``.
TIMEOUT = 0.5
ARRIVALS = 200_000
THREE = ((1000, 60), (10_000, 3600), (100_000, 86400))


def service_times() -> dict[str, float]:
    """Measure the server's CPU for a decision, in microseconds."""
    found = {}
    with server() as running, running.client() as admin:
        app, guard = guarded_app(running.url)
        with app.app_context():
            limiter = guard.limiter
        cases = {"1 rate": (Rate(*THREE[0]),), "3 rates": tuple(Rate(*each) for each in THREE)}
        for name, rates in cases.items():
            for number in range(500):
                limiter.hit(rates, f"user:{number}")
            before, calls = _cpu(admin), 5000
            for number in range(calls):
                limiter.hit(rates, f"user:{number % 500}")
            found[name] = (_cpu(admin) - before) * 1e6 / calls
    return found


def _cpu(admin: Any) -> float:
    told = admin.info("cpu")
    return float(told["used_cpu_user_main_thread"] + told["used_cpu_sys_main_thread"])


def waits(service: float, load: float) -> list[float]:
    """Simulate the server's queue, and return what each caller waited, in seconds.

    :param service: seconds for each command.
    :param load: arrivals times service: the part of the time in which the server works.
    """
    dice, free, now, found = random.Random(3), 0.0, 0.0, []
    for _ in range(ARRIVALS):
        now += dice.expovariate(load / service)
        free = max(free, now) + service
        found.append(free - now)
    return found


def capacity(times: dict[str, float]) -> Table:
    """Simulate rising load on one server."""
    rows: list[list[Any]] = []
    for name, microseconds in times.items():
        for load in (0.3, 0.5, 0.7, 0.9, 1.1):
            found = sorted(waits(microseconds / 1e6, load))
            rows.append(
                [
                    name,
                    f"{load:.0%}",
                    round(load * 1e6 / microseconds),
                    f"{statistics.median(found) * 1e3:.3f}",
                    f"{found[int(len(found) * 0.99)] * 1e3:.3f}",
                    f"{sum(wait > TIMEOUT for wait in found) / len(found):.1%}",
                ]
            )
    head = ["decision", "load", "decisions/s", "p50 ms", "p99 ms", "past the deadline"]
    return Table("One server under a fleet's load (simulated)", head, rows)


def flood(times: dict[str, float]) -> Table:
    """Work out what a flood of clients over their limit costs the server."""
    rows: list[list[Any]] = []
    service = times["1 rate"]
    for clients, rate, workers in ((1, 10_000, 8), (100, 100, 64), (10_000, 10, 64)):
        asked = clients * min(rate, workers)
        without = clients * rate
        rows.append(
            [
                f"{clients} x {rate}/s, {workers} workers",
                without,
                asked,
                f"{without * service / 1e6:.0%}",
                f"{asked * service / 1e6:.0%}",
                math.ceil(asked * service / 1e6 / 0.7),
            ]
        )
    head = ["flood", "requests/s", "reach Redis/s", "load without memory", "load", "shards needed"]
    return Table("A flood over its limit, refused from memory", head, rows)


def measure() -> list[Table]:
    """Return both tables."""
    times = service_times()
    return [capacity(times), flood(times)]


if __name__ == "__main__":
    publish(measure())

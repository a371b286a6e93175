"""How cost grows: callers, limits of a request, subjects, and one server beside a cluster.

``python -m benchmarks.growth``. The greenlets are measured by a process of their own, which gevent
patches (``benchmarks.greenlets``).
"""

from __future__ import annotations

import statistics
import threading
import time
from typing import Any

from benchmarks.harness import Table, interleave, on_one_core, publish, ratio, repeat, server
from benchmarks.peers import ALGORITHMS, BASE, deciders, guarded_app
from flask_redis_guard import Rate
from tests.support.topologies import ClusterSetup


def threads(url: str) -> Table:
    """Measure decisions a second from 1 to 64 threads."""
    ours = "flask-redis-guard sliding-window"
    found = deciders(url, [(1_000_000, 60)])
    rows: list[list[Any]] = []
    for count in (1, 2, 4, 8, 16, 32, 64):
        speeds = []
        for name in (BASE, ours):
            decide, calls = found[name], 4000 // count
            running = [
                threading.Thread(
                    target=lambda decide=decide, calls=calls, n=n: [
                        decide(f"t{n}") for _ in range(calls)
                    ]
                )
                for n in range(count)
            ]
            started = time.perf_counter()
            for one in running:
                one.start()
            for one in running:
                one.join()
            speeds.append(calls * count / (time.perf_counter() - started))
        rows.append([count, round(speeds[0]), round(speeds[1]), speeds[1] / speeds[0]])
    head = ["threads", "INCR/s", "decisions/s", "ratio"]
    return Table("Decisions by the number of threads", head, rows)


def limits(url: str) -> Table:
    """Measure a decision on 1 to 20 rates, beside one ``INCR``."""
    app, guard = guarded_app(url, REDIS_GUARD_KEY_PREFIX="growth:")
    with app.app_context():
        limiter = guard.limiter
    incr = deciders(url, [(1, 60)])[BASE]
    blocks = {"INCR": repeat(lambda: incr("k"))}
    counts = (1, 2, 3, 5, 10, 20)
    for count in counts:
        rates = tuple(Rate(1_000_000 + n, 60 * (n + 1)) for n in range(count))
        blocks[str(count)] = repeat(lambda rates=rates: limiter.hit(rates, "k"))  # type: ignore[misc]
    found = interleave(blocks, 200, 9)
    rows: list[list[Any]] = [
        [count, statistics.median(found[str(count)].wall), ratio(found, str(count), "INCR")]
        for count in counts
    ]
    return Table("A decision by its number of rates", ["rates", "µs", "ratio to one INCR"], rows)


def memory() -> Table:
    """Measure the server's memory by subjects and algorithm, and extrapolate to ten million."""
    rows: list[list[Any]] = []
    for algorithm in ALGORITHMS:
        used: dict[int, float] = {}
        with server() as running, running.client() as admin:
            app, guard = guarded_app(running.url)
            with app.app_context():
                limiter = guard.limiter
            before = admin.info("memory")["used_memory"]
            rate, done = Rate(1000, 3600, algorithm=algorithm), 0
            for subjects in (1_000, 10_000, 100_000):
                for number in range(done, subjects):
                    limiter.hit(rate, f"user:{number}")
                done = subjects
                used[subjects] = (admin.info("memory")["used_memory"] - before) / subjects
        last = used[100_000]
        rows.append(
            [algorithm, *(round(v) for v in used.values()), f"{last * 1e7 / 2**30:.1f} GiB"]
        )
    head = ["algorithm", "bytes/subject at 10³", "10⁴", "10⁵", "10⁷ (extrapolated)"]
    note = "One counter a subject; `used_memory` beyond the empty server's, by subjects."
    return Table("Server memory by subjects", head, rows, note)


def topologies() -> Table:
    """Measure a decision on one server beside a cluster of three primaries."""
    with server() as running, ClusterSetup() as cluster:
        blocks = {}
        for name, url in (("one server", running.url), ("cluster of three", cluster.url)):
            app, guard = guarded_app(url)
            with app.app_context():
                limiter = guard.limiter
            keys = iter(range(10**9))
            blocks[name] = repeat(
                lambda limiter=limiter, keys=keys: limiter.hit(  # type: ignore[misc]
                    "1000000/minute", f"user:{next(keys) % 500}"
                )
            )
        found = interleave(blocks, 300, 11)
    rows: list[list[Any]] = [
        [name, statistics.median(found[name].wall), ratio(found, name, "one server")]
        for name in blocks
    ]
    return Table("One server beside a cluster", ["topology", "µs", "ratio"], rows)


def measure() -> list[Table]:
    """Return all tables."""
    with on_one_core(), server() as running:
        tables = [threads(running.url), limits(running.url)]
    return [*tables, memory(), topologies()]


if __name__ == "__main__":
    publish(measure())

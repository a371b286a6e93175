"""Many greenlets, or threads, that decide at once in one process.

``python -m benchmarks.greenlets`` (gevent), ``python -m benchmarks.greenlets threads``
"""

from __future__ import annotations

import sys

THREADS = sys.argv[1:2] == ["threads"]
if not THREADS:
    from gevent import monkey

    monkey.patch_all()

import itertools
import statistics
import threading
from collections.abc import Callable
from typing import Any

from benchmarks.harness import (
    Block,
    Table,
    interleave,
    on_one_core,
    publish,
    quartiles,
    ratio,
    server,
)
from benchmarks.peers import ALGORITHMS, BASE, Decide, deciders

EACH, ROUNDS = 25, 9
KEYS = [f"user:{number:04d}" for number in range(500)]
KIND = "threads" if THREADS else "greenlets"


def at_once(callers: int, decide: Decide) -> Block:
    """Return what shares decisions out among so many threads (greenlets, where patched)."""

    def block(calls: int) -> None:
        turn = itertools.cycle(KEYS)
        wrong: list[str] = []

        def work(count: int) -> None:
            for _ in range(count):
                key = next(turn)
                if not decide(key):
                    wrong.append(key)

        running = [
            threading.Thread(target=work, args=(max(1, calls // callers),)) for _ in range(callers)
        ]
        for one in running:
            one.start()
        for one in running:
            one.join()
        assert not wrong, "a key below its limit was refused"

    return block


def compare(callers: int, url: str, wanted: Callable[[str], bool]) -> Table:
    """Measure contenders with so many callers at once."""
    found = {k: d for k, d in deciders(url, [(1_000_000, 60)]).items() if k == BASE or wanted(k)}
    blocks = {name: at_once(callers, decide) for name, decide in found.items()}
    times = interleave(blocks, callers * EACH, ROUNDS, warm=callers * 4)
    rows: list[list[Any]] = [
        [
            name,
            round(1e6 / statistics.median(times[name].wall)),
            1 / ratio(times, name, BASE),
            quartiles(times[name].wall),
            ratio(times, name, BASE, "cpu"),
        ]
        for name in found
    ]
    head = ["contender", "decisions/s", "ratio to INCR", "µs, quartiles", "CPU ratio"]
    note = "The ratio is of decisions a second: above 1 is faster than the same callers' `INCR`."
    return Table(f"{callers} {KIND} at once", head, rows, note)


def growth(url: str) -> Table:
    """Measure our decisions a second from 1 to 1 000 callers."""
    ours = f"flask-redis-guard {ALGORITHMS[0]}"
    rows: list[list[Any]] = []
    for callers in (1, 4, 16, 64, 256, 1000):
        base, mine = compare(callers, url, lambda name: name == ours).rows
        rows.append([callers, base[1], mine[1], mine[2]])
    head = [KIND, "INCR/s", "decisions/s", "ratio"]
    return Table(f"Decisions by the number of {KIND}", head, rows)


def measure() -> list[Table]:
    """Return a table for 64 callers, and how that grows."""
    with on_one_core(), server() as running:
        return [compare(64, running.url, lambda name: True), growth(running.url)]


if __name__ == "__main__":
    publish(measure())

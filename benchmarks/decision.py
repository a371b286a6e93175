"""One rate-limit decision beside a plain ``INCR``, and beside other limiters.

``python -m benchmarks.decision``
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

from benchmarks.harness import (
    Block,
    Table,
    function_calls,
    interleave,
    on_one_core,
    publish,
    quartiles,
    ratio,
    server,
)
from benchmarks.peers import BASE, Decide, Quota, deciders

CALLS, ROUNDS = 200, 25
CASES: list[tuple[str, list[Quota]]] = [
    ("admitted, 1 rate", [(1000, 60)]),
    ("admitted, 3 rates", [(1000, 60), (10_000, 3600), (100_000, 86400)]),
    ("refused, 1 rate", [(5, 3600)]),
]


def over(decide: Decide, keys: list[str]) -> Block:
    """Return what takes decisions, one key after the other."""
    turn = itertools.cycle(keys)

    def block(calls: int) -> None:
        for _ in range(calls):
            decide(next(turn))

    return block


def compare(title: str, url: str, quotas: list[Quota]) -> Table:
    """Measure every contender on these quotas."""
    found = deciders(url, quotas)
    refused = title.startswith("refused")
    keys = [f"user:{number:04d}" for number in range(20 if refused else 500)]
    if refused:
        for decide in found.values():
            for key in keys * 6:
                decide(key)
    times = interleave({name: over(decide, keys) for name, decide in found.items()}, CALLS, ROUNDS)
    rows: list[list[Any]] = []
    for name, decide in found.items():
        admitted = name == BASE or bool(decide(keys[0]))
        assert name == BASE or admitted is not refused, f"{name} decided wrongly"
        wall = times[name].wall
        rows.append(
            [
                name,
                statistics.median(wall),
                quartiles(wall),
                ratio(times, name, BASE),
                ratio(times, name, BASE, "cpu"),
                round(function_calls(lambda decide=decide: decide(keys[1]))),  # type: ignore[misc]
            ]
        )
    head = ["contender", "µs", "quartiles", "ratio to INCR", "CPU ratio", "function calls"]
    return Table(f"A decision, {title}", head, rows)


def measure() -> list[Table]:
    """Return a table for each case."""
    tables = []
    for title, quotas in CASES:
        with on_one_core(), server() as running:
            tables.append(compare(title, running.url, quotas))
    return tables


if __name__ == "__main__":
    publish(measure())

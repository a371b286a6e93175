"""What the guarded client adds to redis-py, and breakers to a call, closed and open.

``python -m benchmarks.client``
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable
from typing import Any

import redis

from benchmarks.harness import (
    Table,
    function_calls,
    interleave,
    on_one_core,
    publish,
    quartiles,
    ratio,
    repeat,
    server,
)
from benchmarks.peers import guarded_app
from flask_redis_guard import CircuitOpen

CALLS, ROUNDS = 300, 30


def _pipeline(client: Any) -> Callable[[], object]:
    return lambda: client.pipeline(transaction=False).get("k").get("k").get("k").execute()


def guarded_calls(url: str) -> Table:
    """Compare the guarded client with the plain one, and with others' breakers around the plain."""
    app, guard = guarded_app(url)
    plain, guarded = redis.Redis.from_url(url), guard.client_for(app)
    plain.set("k", b"v" * 64)
    work: dict[str, Callable[[], object]] = {
        "GET: redis-py": lambda: plain.get("k"),
        "GET: redis-py again (noise)": lambda: plain.get("k"),
        "GET: guarded client": lambda: guarded.get("k"),
        "pipeline of 3: redis-py": _pipeline(plain),
        "pipeline of 3: guarded client": _pipeline(guarded),
    }
    for name, wrap in breakers().items():
        work[f"GET: {name} around redis-py"] = wrap(lambda: plain.get("k"))
    found = interleave({name: repeat(call) for name, call in work.items()}, CALLS, ROUNDS)
    rows: list[list[Any]] = []
    for name, call in work.items():
        base = name.partition(":")[0] + ": redis-py"
        wall = found[name].wall
        rows.append(
            [
                name,
                statistics.median(wall),
                quartiles(wall),
                ratio(found, name, base),
                ratio(found, name, base, "cpu"),
                round(function_calls(call)),
            ]
        )
    head = ["call", "µs", "quartiles", "ratio", "CPU ratio", "function calls"]
    return Table("A guarded call beside a plain one", head, rows)


def breakers() -> dict[str, Callable[[Callable[[], Any]], Callable[[], Any]]]:
    """Return the other breaker libraries, as what wraps a function; those that are installed."""
    found: dict[str, Callable[[Callable[[], Any]], Callable[[], Any]]] = {}
    for name in ("pybreaker", "circuitbreaker"):
        try:
            module: Any = importlib.import_module(name)
        except ImportError:
            continue
        found[name] = module.CircuitBreaker()
    return found


def refusals(url: str) -> Table:
    """Compare what a refusal by an open breaker costs."""
    app, guard = guarded_app(url)
    client = guard.client_for(app)
    with app.app_context():
        guard.breaker.force_open()

    def ours() -> None:
        try:
            client.get("k")
        except CircuitOpen:
            return
        raise AssertionError("admitted by an open breaker")

    work: dict[str, Callable[[], object]] = {"guarded client: GET": ours, **_others_open()}
    found = interleave({name: repeat(call) for name, call in work.items()}, 2000, ROUNDS)
    rows: list[list[Any]] = [
        [
            name,
            statistics.median(found[name].wall),
            quartiles(found[name].wall, 2),
            round(function_calls(call)),
        ]
        for name, call in work.items()
    ]
    head = ["open breaker", "µs", "quartiles", "function calls"]
    return Table("A refusal by an open breaker", head, rows)


def _others_open() -> dict[str, Callable[[], None]]:
    """Return calls that the other libraries' open breakers refuse."""

    def fail() -> None:
        raise ConnectionError

    def refused(guarded: Callable[[], Any], error: type[Exception]) -> Callable[[], None]:
        def call() -> None:
            try:
                guarded()
            except error:
                return
            raise AssertionError("admitted by an open breaker")

        return call

    found: dict[str, Callable[[], None]] = {}
    for name, wrap in breakers().items():
        module: Any = importlib.import_module(name)
        guarded = wrap(fail)
        for _ in range(10):
            try:
                guarded()
            except (ConnectionError, module.CircuitBreakerError):
                continue
        found[name] = refused(guarded, module.CircuitBreakerError)
    return found


def measure() -> list[Table]:
    """Return both tables."""
    with on_one_core(), server() as running:
        return [guarded_calls(running.url), refusals(running.url)]


if __name__ == "__main__":
    publish(measure())

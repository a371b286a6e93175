"""What an operation costs, in counts that are the same on every machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import redis
from flask import Flask

from flask_redis_guard import CircuitOpen, RateLimiter, RedisGuard
from tests.support import ClusterSetup, RedisServer
from tests.support.guarded import Guarded

PACKAGE = "flask_redis_guard."


def profiled(call: Callable[[], object]) -> tuple[int, list[str]]:
    """Count the function calls of one call, and tell the package's modules in their order."""
    calls = 0
    modules: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")
        module = frame.f_globals.get("__name__", "")
        if event == "call" and module.startswith(PACKAGE) and module not in modules[-1:]:
            modules.append(module)

    for _ in range(5):
        call()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return calls, modules


def test_a_command_costs_less_than_redis_py_alone(redis_server: RedisServer) -> None:
    app = Flask("guarded")
    app.config.update(REDIS_URL=redis_server.url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0)
    client = RedisGuard(app).client_for(app)
    with redis.Redis(port=redis_server.port) as plain:
        theirs, _ = profiled(lambda: plain.get("k"))
    ours, modules = profiled(lambda: client.get("k"))
    assert ours <= theirs
    assert len(set(modules)) <= 6, modules
    assert len(modules) - 1 <= 10, modules
    client.connection_pool.disconnect()


def test_an_open_breaker_refuses_with_few_calls() -> None:
    guarded = Guarded("redis://127.0.0.1:1/0")
    guarded.gate.breaker.force_open()

    def refused() -> None:
        try:
            guarded.client.get("k")
        except CircuitOpen:
            return
        raise AssertionError("admitted")

    calls, _ = profiled(refused)
    assert calls <= 16


@pytest.mark.parametrize(
    "ask",
    [lambda client: client.get("k"), lambda client: client.mget("a", "b")],
    ids=["get", "mget"],
)
def test_a_command_is_one_command(ask: Callable[[Any], object], redis_server: RedisServer) -> None:
    guarded = Guarded(redis_server.url)
    ask(guarded.client)
    before = redis_server.calls()
    for _ in range(10):
        ask(guarded.client)
    assert redis_server.calls() - before == 10
    guarded.close()


def test_a_decision_on_a_cluster_costs_less_than_a_command_of_redis_py(
    cluster_setup: ClusterSetup,
) -> None:
    guarded = Guarded(cluster_setup.url)
    limiter = RateLimiter(guarded.client)
    ours, _ = profiled(lambda: limiter.hit("1000/minute", "somebody"))
    with cluster_setup.client() as plain:
        theirs, _ = profiled(lambda: plain.incr("k"))
    assert ours <= theirs
    guarded.close()


def test_sharing_with_the_host_costs_a_closed_circuit_no_call(redis_server: RedisServer) -> None:
    """It is a comparison with the clock reading that each operation takes."""
    counts = []
    for where in ("off", None):
        shared = {} if where is None else {"REDIS_GUARD_HOST_STATE": where}
        guarded = Guarded(redis_server.url, **shared)
        guarded.client.get("k")
        guarded.gate.look_at = max(guarded.gate.look_at, time.monotonic() + 60)  # no look just now
        counts.append(profiled(lambda client=guarded.client: client.get("k"))[0])  # type: ignore[misc]
        assert guarded.guard.workers(guarded.app) if where is None else True
        guarded.close()
    assert counts[0] == counts[1]

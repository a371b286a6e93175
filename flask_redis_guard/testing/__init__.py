"""Outages on demand, for the tests of an application that uses the guard.

Each context manager makes the app's Redis fail in one way while the block lasts. The fault is made
where an operation begins, so everything behind it is real: the exceptions, the breaker, the
signals, the 503s. No server is needed; with one, or with the in-memory store, what does not fail
goes on working. While a fault lasts the app behaves as in production: no in-memory store stands in.

At the end of the block the breaker is as new, so that no test is in the way of the next one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import redis
from flask import Flask
from redis.commands.cluster import READ_COMMANDS

from flask_redis_guard import runtime
from flask_redis_guard.client.operation import Operation
from flask_redis_guard.core.breaker import CircuitBreaker
from flask_redis_guard.errors import GuardError

__all__ = ["hang", "outage", "read_only", "slow"]

#: What a read-only server answers beside the reading commands.
_HARMLESS = frozenset(READ_COMMANDS) | {"PING", "INFO", "TIME", "CONNECTION", "CONNECT"}

Fault = Callable[[Operation], object]


@contextlib.contextmanager
def outage(app: Flask) -> Iterator[CircuitBreaker]:
    """Make every operation fail as if nobody listened at Redis's address.

    :param app: an app that ``init_app`` was called with.
    :returns: the app's breaker. After ``REDIS_GUARD_FAILURE_THRESHOLD`` operations it opens.
    """

    def refuse(operation: Operation) -> None:
        raise redis.ConnectionError("Connection refused (flask_redis_guard.testing)")

    with _fault(app, refuse) as breaker:
        yield breaker


@contextlib.contextmanager
def hang(app: Flask) -> Iterator[CircuitBreaker]:
    """Make every operation wait until its deadline (``REDIS_GUARD_TIMEOUT``) and fail.

    :param app: as of :func:`outage`.
    """
    with slow(app, float("inf")) as breaker:
        yield breaker


@contextlib.contextmanager
def slow(app: Flask, seconds: float) -> Iterator[CircuitBreaker]:
    """Make every operation wait before it is carried out; one whose deadline passes fails.

    :param app: as of :func:`outage`.
    :param seconds: how long.
    """

    def wait(operation: Operation) -> None:
        end = time.monotonic() + seconds

        def late(part: float) -> bool:
            time.sleep(max(0.0, min(part, end - time.monotonic())))
            return time.monotonic() >= end

        if not operation.wait(late):
            raise redis.TimeoutError("Timeout reading from socket (flask_redis_guard.testing)")

    with _fault(app, wait) as breaker:
        yield breaker


@contextlib.contextmanager
def read_only(app: Flask) -> Iterator[CircuitBreaker]:
    """Refuse what may write, as a replica does after a failover; reading goes on.

    Pipelines and scripts count as writing, and so does the background check.

    :param app: as of :func:`outage`.
    """

    def refuse(operation: Operation) -> None:
        if operation.name not in _HARMLESS:
            raise redis.exceptions.ReadOnlyError("You can't write against a read only replica.")

    with _fault(app, refuse) as breaker:
        yield breaker


@contextlib.contextmanager
def _fault(app: Flask, fault: Fault) -> Iterator[CircuitBreaker]:
    guarded = runtime.of(app)
    gate = guarded.gate
    if gate.fault is not None:
        raise GuardError("This app has a fault already: end that block first")
    before = gate.in_memory, gate.memory_only, gate.serving_memory
    memory_only = gate.memory_only

    def inject(operation: Operation) -> None:
        operation.in_memory = memory_only  # what passes is served from where it was before
        fault(operation)

    gate.in_memory = gate.memory_only = gate.serving_memory = False
    gate.fault = inject
    try:
        yield gate.breaker
    finally:
        gate.fault = None
        gate.in_memory, gate.memory_only, gate.serving_memory = before
        gate.breaker.reset()
        guarded.monitor.forget()

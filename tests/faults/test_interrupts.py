"""A signal in the middle of an operation, whose handler raises or calls the client itself.

Python delivers signals between two instructions of the main thread. So each of these hammers the
main thread with signals and then asks, from another thread, whether everything is still usable.
"""

from __future__ import annotations

import gc
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flask_redis_guard import RedisUnavailable
from flask_redis_guard.core.breaker import CircuitBreaker, Outcome, Permit
from tests.support import Proxy, RedisServer
from tests.support.guarded import NEVER_OPENS, Guarded

SECONDS = 3.0


class Alarm(BaseException):
    """What the signal handler raises."""


@contextmanager
def ringing(handler: Callable[..., object]) -> Iterator[None]:
    """Have signals handled so, as long as the block lasts."""
    before, unseen = signal.signal(signal.SIGALRM, handler), sys.unraisablehook
    # Where it rings in a finalizer, nobody sees what it raises; pytest would keep its frames.
    sys.unraisablehook = lambda unraisable: None
    try:
        yield
    finally:
        sys.unraisablehook = unseen
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def hammer(work: Callable[[], object]) -> int:
    """Do something again and again, each time with an alarm a moment later.

    :returns: how often it was interrupted.
    """
    rung = 0

    def ring(*_: object) -> None:
        raise Alarm

    dice = random.Random(7)
    end = time.monotonic() + SECONDS
    with ringing(ring):
        while time.monotonic() < end:
            try:
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.000_05, 0.002))
                late = time.monotonic() + 0.01  # where it rang in a finalizer
                try:
                    while time.monotonic() < late:
                        work()
                except RedisUnavailable:
                    time.sleep(0.01)  # the alarm rings here, if it has not before
            except Alarm:
                rung += 1
    return rung


def in_another_thread(call: Callable[[], Any]) -> Any:
    """Call something in another thread, which must not wait for what the main thread holds."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    thread.join(10)
    assert results, "something is locked for ever"
    return results[0]


def test_a_signal_that_raises_leaves_no_reply_behind(redis_server: RedisServer) -> None:
    def ring(*_: object) -> None:
        raise Alarm

    with ringing(ring), Proxy(redis_server.port) as proxy:
        guarded = Guarded(proxy.url, REDIS_GUARD_TIMEOUT=5, REDIS_GUARD_MAX_CONNECTIONS=1)
        guarded.client.ping()
        proxy.delay(0.01)
        rung = 0
        for number in range(40):
            own = str(number).encode()
            signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.0008 * number)
            try:
                assert guarded.client.echo(own) == own
                time.sleep(1)  # the alarm rings here, if it has not before
            except Alarm:
                rung += 1
        assert rung > 30
        assert guarded.client.echo("at last") == b"at last"
        assert {outcome for _, outcome, _ in guarded.finished} == {"success", "neutral"}
        assert guarded.client.connection_pool.in_use == 0
        guarded.close()


def test_signals_that_raise_do_not_use_up_the_pool(redis_server: RedisServer) -> None:
    guarded = Guarded(redis_server.url, REDIS_GUARD_MAX_CONNECTIONS=2, **NEVER_OPENS)
    number = 0

    def ask() -> None:
        nonlocal number
        number += 1
        own = str(number).encode()
        assert guarded.client.echo(own) == own
        assert guarded.client.pipeline().echo(own).ping().execute() == [own, True]

    assert hammer(ask) > 300
    gc.collect()  # what a traceback or a half-made connection has kept
    assert guarded.client.connection_pool.in_use == 0
    assert in_another_thread(lambda: guarded.client.echo("still")) == b"still"
    taken = [guarded.client.connection_pool.get_connection("_") for _ in range(2)]
    for connection in taken:
        guarded.client.connection_pool.release(connection)
    guarded.close()


def test_signals_that_raise_while_connections_are_closed(redis_server: RedisServer) -> None:
    guarded = Guarded(redis_server.url, REDIS_GUARD_MAX_CONNECTIONS=2, **NEVER_OPENS)
    pool = guarded.client.connection_pool
    number = 0

    def ask() -> None:
        nonlocal number
        number += 1
        own = str(number).encode()
        assert guarded.client.echo(own) == own
        pool.disconnect(inuse_connections=False)

    assert hammer(ask) > 300
    assert guarded.client.echo("at last") == b"at last"
    guarded.close()


def test_signals_that_raise_leave_the_breaker_usable() -> None:
    dice = random.Random(3)
    breaker = CircuitBreaker(open_seconds=0.001, failure_threshold=2, window_seconds=1)

    def use() -> None:
        permit = breaker.try_acquire()
        if isinstance(permit, Permit):
            breaker.settle(permit, dice.choice((Outcome.SUCCESS, Outcome.FAILURE)))
        _ = breaker.retry_after, breaker.state, breaker.refusing
        if dice.random() < 0.1:
            breaker.reset()

    assert hammer(use) > 300
    assert in_another_thread(lambda: breaker.state).value in ("closed", "open", "half-open")
    breaker.reset()
    assert breaker.state.value == "closed"
    assert in_another_thread(breaker.try_acquire)


def test_signals_that_raise_in_whole_outages(own_server: RedisServer) -> None:
    guarded = Guarded(
        own_server.url,
        REDIS_GUARD_OPEN_SECONDS=0.05,
        REDIS_GUARD_FAILURE_THRESHOLD=2,
        REDIS_GUARD_TIMEOUT=0.05,
        REDIS_GUARD_MAX_CONNECTIONS=4,
    )
    with guarded.app.app_context():
        limiter, sessions = guarded.guard.limiter, guarded.guard.sessions

    def use() -> None:
        limiter.hit("1000000/minute; 10000000/hour", "somebody")
        sessions.set("id", {"n": 1})
        guarded.client.incr("n")

    stop = threading.Event()

    def disturb() -> None:  # so that the breaker opens and closes all the time
        while not stop.wait(0.1):
            own_server.pause()
            stop.wait(0.1)
            own_server.resume()

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        assert hammer(use) > 300
    finally:
        stop.set()
        disturber.join()
    own_server.resume()

    def served() -> bool:
        deadline = time.monotonic() + 5
        while True:
            try:
                use()
                return True
            except RedisUnavailable:
                assert time.monotonic() < deadline, "it is refused for ever"
                time.sleep(0.02)

    assert in_another_thread(served)
    assert in_another_thread(served)
    guarded.close()


@pytest.mark.parametrize("protocol", ["plain", "pipeline"])
def test_a_handler_may_call_the_client(protocol: str, redis_server: RedisServer) -> None:
    guarded = Guarded(redis_server.url, REDIS_GUARD_MAX_CONNECTIONS=4, **NEVER_OPENS)
    answers: list[bytes] = []
    dice = random.Random(5)
    number = 0

    def call(*_: object) -> None:
        own = f"handler {len(answers)}".encode()
        answer = guarded.client.echo(own)
        assert answer == own
        answers.append(answer)
        signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.000_05, 0.002))

    end = time.monotonic() + SECONDS
    with ringing(call):
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        while time.monotonic() < end:
            number += 1
            own = str(number).encode()
            if protocol == "plain":
                assert guarded.client.echo(own) == own
            else:
                assert guarded.client.pipeline().echo(own).ping().execute() == [own, True]
    assert len(answers) > 300
    assert guarded.client.connection_pool.in_use == 0
    guarded.close()

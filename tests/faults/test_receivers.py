"""Receivers may fail, use the guard themselves or be killed: the breaker stays right."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask

from flask_redis_guard import (
    CircuitOpen,
    CircuitState,
    RedisGuard,
    RedisUnavailable,
    circuit_state_changed,
    redis_failure,
    redis_recovered,
)
from tests.support import RedisServer, eventually, run_python


def test_receivers_that_raise_and_that_use_the_guard(
    own_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    app = Flask("app")
    app.config.update(
        REDIS_URL=own_server.url,
        REDIS_GUARD_OPEN_SECONDS=0.3,
        REDIS_GUARD_HEALTH_CHECK_INTERVAL=0,
    )
    guard = RedisGuard(app)
    client = guard.client_for(app)
    seen: list[tuple[str, str]] = []
    inside: list[str] = []
    downtimes: list[float] = []

    def raising(app: Flask, **event: Any) -> None:
        raise RuntimeError("receiver")

    def using(app: Flask, **event: Any) -> None:
        seen.append((event["previous"].value, event["current"].value))
        try:
            inside.append(str(client.incr("from-receiver")))
        except RedisUnavailable as error:
            inside.append(type(error).__name__)

    def recovered(app: Flask, downtime: float) -> None:
        downtimes.append(downtime)

    for signal in (circuit_state_changed, redis_failure, redis_recovered):
        signal.connect(raising, app)
    circuit_state_changed.connect(using, app)
    redis_recovered.connect(recovered, app)
    with app.app_context():
        client.get("key")
        own_server.kill()
        for _ in range(5):
            with pytest.raises(RedisUnavailable):
                client.get("key")
        assert guard.breaker.state is CircuitState.OPEN
        with pytest.raises(CircuitOpen):
            client.get("key")
        assert inside == ["CircuitOpen"]
        own_server.start()
        eventually(lambda: guard.breaker.state is CircuitState.HALF_OPEN)
        client.get("key")
        eventually(lambda: guard.breaker.state is CircuitState.CLOSED)
        assert client.get("key") is None
    assert seen == [("closed", "open"), ("open", "half-open"), ("half-open", "closed")]
    # Its probe on the way to half-open, and its call once closed, went through.
    assert inside == ["CircuitOpen", "1", "2"]
    assert len(downtimes) == 1
    assert "A receiver of the signal 'circuit-state-changed' failed" in caplog.text


def test_greenlet_killed_inside_a_receiver() -> None:
    told = run_python(
        """
        from gevent import monkey; monkey.patch_all()
        import gevent
        from flask import Flask
        from flask_redis_guard import (
            CircuitState, GuardError, RedisGuard, circuit_state_changed, redis_recovered,
        )
        from tests.support import RedisServer

        app = Flask("app")
        with RedisServer() as server:
            app.config.update(
                REDIS_URL=server.url, REDIS_GUARD_FAILURE_THRESHOLD=1,
                REDIS_GUARD_OPEN_SECONDS=0.2, REDIS_GUARD_SUCCESS_THRESHOLD=1,
                REDIS_GUARD_HEALTH_CHECK_INTERVAL=0,
            )
            guard = RedisGuard(app)
            client = guard.client_for(app)
            inside = gevent.event.Event()
            seen, recoveries = [], []

            def slow(app, current, **event):
                if current is CircuitState.OPEN:
                    inside.set()
                    gevent.sleep(60)

            def note(app, current, **event):
                seen.append(current.value)

            def recovered(app, downtime):
                recoveries.append(downtime)

            circuit_state_changed.connect(slow, app)
            circuit_state_changed.connect(note, app)
            redis_recovered.connect(recovered, app)
            server.kill()
            victim = gevent.spawn(client.get, "key")
            inside.wait()
            victim.kill()
            server.start()
            with app.app_context():
                print(guard.breaker.state)
                while guard.breaker.state is CircuitState.OPEN:
                    gevent.sleep(0.02)
                client.get("key")
                print(guard.breaker.state, guard.breaker.failure_count)
            print(*seen, len(recoveries))
        """
    )
    assert told.split() == ["open", "closed", "0", "open", "half-open", "closed", "1"]

"""However many wait for Redis to come back, it sees the permitted probes only."""

from __future__ import annotations

import threading
import time

import pytest
from flask import Flask

from flask_redis_guard import CircuitOpen, CircuitState, RedisGuard, RedisTimeout
from tests.support import SilentServer, run_python

TIMEOUT = 0.5


@pytest.mark.parametrize("permits", [1, 2])
def test_64_threads(permits: int) -> None:
    with SilentServer() as silent:
        app = Flask("app")
        app.config.update(
            REDIS_URL=silent.url,
            REDIS_GUARD_TIMEOUT=TIMEOUT,
            REDIS_GUARD_FAILURE_THRESHOLD=1,
            REDIS_GUARD_HALF_OPEN_PERMITS=permits,
            REDIS_GUARD_OPEN_SECONDS=0.2,
            REDIS_GUARD_HEALTH_CHECK_INTERVAL=0,
        )
        guard = RedisGuard(app)
        client = guard.client_for(app)
        with pytest.raises(RedisTimeout):
            client.get("key")
        assert silent.accepted == 1
        barrier = threading.Barrier(64)
        ended: list[tuple[type, float]] = []

        def ask() -> None:
            barrier.wait()
            started = time.monotonic()
            try:
                client.get("key")
            except (CircuitOpen, RedisTimeout) as error:
                ended.append((type(error), time.monotonic() - started))

        threads = [threading.Thread(target=ask) for _ in range(64)]
        with app.app_context():
            while guard.breaker.state is CircuitState.OPEN:
                time.sleep(0.01)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ended) == 64
        assert sum(kind is RedisTimeout for kind, _ in ended) == permits
        assert silent.accepted == 1 + permits
        assert max(seconds for _, seconds in ended) < 1.5


def test_500_greenlets() -> None:
    told = run_python(
        f"""
        from gevent import monkey; monkey.patch_all()
        import gevent, time
        from collections import Counter
        from flask import Flask
        from flask_redis_guard import CircuitState, GuardError, RedisGuard
        from tests.support import SilentServer

        app = Flask("app")
        with SilentServer() as silent:
            app.config.update(
                REDIS_URL=silent.url, REDIS_GUARD_TIMEOUT={TIMEOUT},
                REDIS_GUARD_FAILURE_THRESHOLD=1, REDIS_GUARD_OPEN_SECONDS=0.2,
                REDIS_GUARD_HEALTH_CHECK_INTERVAL=0,
            )
            guard = RedisGuard(app)
            client = guard.client_for(app)

            def ask():
                started = time.monotonic()
                try:
                    client.get("key")
                except GuardError as error:
                    return type(error).__name__, time.monotonic() - started

            print(ask()[0])
            with app.app_context():
                while guard.breaker.state is CircuitState.OPEN:
                    gevent.sleep(0.01)
            greenlets = [gevent.spawn(ask) for _ in range(500)]
            gevent.joinall(greenlets)
            ended = Counter(greenlet.value[0] for greenlet in greenlets)
            print(ended["RedisTimeout"], ended["CircuitOpen"], silent.accepted)
            print(max(greenlet.value[1] for greenlet in greenlets) < 1.5)
        """
    )
    assert told.split() == ["RedisTimeout", "1", "499", "2", "True"]

"""Outages on demand behave as real ones do, with and without a server."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import redis
from flask import Flask

from flask_redis_guard import (
    CircuitOpen,
    CircuitState,
    GuardError,
    RedisGuard,
    RedisTimeout,
    RedisUnavailable,
    circuit_state_changed,
    redis_failure,
)
from flask_redis_guard.testing import hang, outage, read_only, slow
from tests.support import RedisServer, eventually, run_python


def make_app(url: str, **config: Any) -> Flask:
    app = Flask("testing-test")
    app.config.update(REDIS_URL=url, ENVIRONMENT="testing", REDIS_GUARD_HEALTH_CHECK_INTERVAL=0)
    app.config.update(config)
    guard = RedisGuard(app)

    @app.get("/count")
    def count() -> str:
        return str(guard.client.incr("n"))

    @app.get("/read")
    def read() -> str:
        return str(guard.client.get("n"))

    return app


@pytest.fixture(params=["memory", "server"])
def app(request: pytest.FixtureRequest, redis_server: RedisServer) -> Flask:
    return make_app("memory://" if request.param == "memory" else redis_server.url)


def test_outage_refuses_opens_the_breaker_and_leaves_no_trace(app: Flask) -> None:
    client: Any = app.test_client()
    assert client.get("/count").text == "1"
    with outage(app) as breaker:
        for _ in range(5):
            assert breaker.state is CircuitState.CLOSED
            response = client.get("/count")
            assert response.status_code == 503
            assert response.mimetype == "application/problem+json"
        assert breaker.state is CircuitState.OPEN
        assert int(client.get("/count").headers["Retry-After"]) >= 30
        assert client.get("/api/v1/health/ready").json["status"] == "warn"
        assert client.get("/api/v1/health/detailed").json["redis"]["is_mock"] is False
    assert client.get("/count").text == "2"
    assert client.get("/api/v1/health/detailed").json["redis"]["healthy"] is True


def test_exceptions_and_signals_are_the_real_ones(app: Flask) -> None:
    guard = RedisGuard()
    failures: list[str] = []
    states: list[CircuitState] = []

    def failed(_: Flask, *, error: RedisUnavailable, **__: Any) -> None:
        failures.append(error.reason)

    def changed(_: Flask, *, current: CircuitState, **__: Any) -> None:
        states.append(current)

    redis_failure.connect(failed, app)
    circuit_state_changed.connect(changed, app)
    with app.app_context(), outage(app):
        for _ in range(5):
            with pytest.raises(redis.ConnectionError) as caught:
                guard.client.get("n")
            assert caught.value.__cause__ is not None
        with pytest.raises(CircuitOpen):
            guard.client.get("n")
        with pytest.raises(CircuitOpen):
            guard.limiter.hit("5/minute", "somebody")
        with pytest.raises(CircuitOpen):
            guard.require_redis("login")
    assert failures == ["connection"] * 5
    assert states == [CircuitState.OPEN, CircuitState.CLOSED]


def test_every_door_is_shut(app: Flask) -> None:
    with app.app_context():
        client: Any = RedisGuard().client
        with outage(app), pytest.raises(RedisUnavailable):
            client.pipeline().set("a", 1).execute()
        with outage(app), pytest.raises(RedisUnavailable):
            redis.Redis(connection_pool=client.connection_pool).get("a")
        with outage(app), pytest.raises(RedisUnavailable):
            client.pubsub().subscribe("news")
        with outage(app), pytest.raises(RedisUnavailable):
            client.register_script("return 1")()


def test_hang_takes_until_the_deadline(redis_server: RedisServer) -> None:
    app = make_app(redis_server.url, REDIS_GUARD_TIMEOUT=0.2)
    with app.app_context(), hang(app):
        started = time.monotonic()
        with pytest.raises(RedisTimeout):
            RedisGuard().client.get("n")
        assert time.monotonic() - started >= 0.2


def test_slow_answers_late_or_never(app: Flask) -> None:
    client: Any = app.test_client()
    with slow(app, 0.05):
        started = time.monotonic()
        assert client.get("/count").text == "1"
        assert time.monotonic() - started >= 0.05
    with slow(app, 3600):
        assert client.get("/count").status_code == 503


def test_read_only_reads(app: Flask) -> None:
    client: Any = app.test_client()
    client.get("/count")
    with read_only(app):
        assert client.get("/count").status_code == 503
        assert client.get("/read").text == "b'1'"
        with app.app_context(), pytest.raises(RedisUnavailable) as caught:
            RedisGuard().limiter.hit("5/minute", "somebody")
        assert caught.value.reason == "read-only"


def test_background_check_sees_the_fault_too(redis_server: RedisServer) -> None:
    app = make_app(redis_server.url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0.05)
    guard = app.extensions["redis_guard"]
    with outage(app) as breaker:
        guard.monitor.start()
        eventually(lambda: breaker.state is CircuitState.OPEN, 5)
    guard.monitor.stop()


def test_other_apps_and_threads(redis_server: RedisServer) -> None:
    broken, fine = make_app(redis_server.url), make_app(redis_server.url)
    answers: list[int] = []
    with outage(broken):
        assert fine.test_client().get("/count").status_code == 200
        thread = threading.Thread(
            target=lambda: answers.append(broken.test_client().get("/count").status_code)
        )
        thread.start()
        thread.join()
    assert answers == [503]


def test_it_ends_when_the_test_fails(app: Flask) -> None:
    with pytest.raises(ZeroDivisionError), outage(app):
        raise ZeroDivisionError
    assert app.test_client().get("/count").status_code == 200


def test_one_fault_at_a_time(app: Flask) -> None:
    with outage(app), pytest.raises(GuardError, match="already"), hang(app):
        pass
    with pytest.raises(GuardError, match="init_app"), outage(Flask("unguarded")):
        pass


def test_fixtures_in_a_users_suite() -> None:
    """A suite of a user, run by pytest in a process of its own."""
    output = run_python(
        '''
        import pathlib, subprocess, sys, tempfile, textwrap

        with tempfile.TemporaryDirectory() as directory:
            pathlib.Path(directory, "conftest.py").write_text(textwrap.dedent("""
                import pytest
                from flask import Flask
                from flask_redis_guard import RedisGuard

                pytest_plugins = ["flask_redis_guard.testing.fixtures"]

                @pytest.fixture
                def app():
                    app = Flask("shop")
                    app.config.update(REDIS_URL="memory://", ENVIRONMENT="testing")
                    guard = RedisGuard(app)
                    app.get("/")(lambda: str(guard.client.incr("n")))
                    return app
            """))
            pathlib.Path(directory, "test_shop.py").write_text(textwrap.dedent("""
                def test_outage(app, redis_outage):
                    assert app.test_client().get("/").status_code == 503

                def test_hang(app, redis_hang):
                    assert app.test_client().get("/").status_code == 503

                def test_read_only(app, redis_read_only):
                    assert app.test_client().get("/").status_code == 503
                    assert redis_read_only.failure_count == 1

                def test_well(app):
                    assert app.test_client().get("/").text == "1"
            """))
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", directory]
            print(subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout)
        '''
    )
    assert "4 passed" in output

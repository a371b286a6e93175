"""Several apps in one process, and the in-memory store of development."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from flask import Flask

from flask_redis_guard import (
    ConfigurationError,
    GuardError,
    RedisGuard,
    RedisUnavailable,
    circuit_state_changed,
    rate_limited,
)
from tests.support import RedisServer, eventually


def make_app(guard: RedisGuard, name: str, url: str, **config: Any) -> Flask:
    app = Flask(name)
    app.config.update(REDIS_URL=url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0, **config)
    guard.init_app(app)

    @app.get("/")
    @rate_limited("3/minute")
    def index() -> str:
        return name

    return app


def test_two_apps_do_not_influence_each_other(
    own_server: RedisServer, redis_server: RedisServer
) -> None:
    guard = RedisGuard()
    frail = make_app(guard, "frail", own_server.url, REDIS_GUARD_FAILURE_THRESHOLD=1)
    other = make_app(
        guard,
        "other",
        redis_server.url,
        REDIS_GUARD_KEY_PREFIX="other:",
        REDIS_GUARD_HEALTH_URL_PREFIX="/status",
    )
    changes: list[str] = []

    def changed(app: Flask, **event: Any) -> None:
        changes.append(app.name)

    circuit_state_changed.connect(changed)
    with frail.app_context():
        guard.client.set("mine", "frail")
    with other.app_context():
        assert guard.client.get("mine") is None
    own_server.kill()
    assert frail.test_client().get("/").status_code == 503
    assert other.test_client().get("/").status_code == 200
    with frail.app_context():
        assert guard.breaker.state.value == "open"
        assert guard.health()["healthy"] is False
        with other.app_context():
            assert guard.breaker.state.value == "closed"
            assert guard.health()["healthy"] is True
        with pytest.raises(RedisUnavailable):
            guard.client.get("mine")
    assert changes == ["frail"]
    assert other.test_client().get("/status/detailed").status_code == 200
    assert other.test_client().get("/api/v1/health/detailed").status_code == 404
    assert frail.test_client().get("/api/v1/health/detailed").status_code == 503
    assert frail.test_client().get("/api/v1/health/live").status_code == 200
    with redis_server.client() as plain:
        assert plain.keys("guard:*") == []
        assert plain.keys("other:*")


def test_guard_tells_what_was_forgotten() -> None:
    guard = RedisGuard()
    with pytest.raises(GuardError, match="There is no current app"):
        _ = guard.client
    with pytest.raises(GuardError, match="'bare' has no guard"):
        guard.client_for(Flask("bare"))
    app = Flask("app")
    guard.init_app(app)
    with pytest.raises(GuardError, match="twice"):
        guard.init_app(app)


def test_bad_settings_leave_the_app_without_a_guard() -> None:
    app = Flask("app")
    app.config["REDIS_GUARD_FAILURE_THRESHOLD"] = 0
    with pytest.raises(ConfigurationError):
        RedisGuard(app)
    assert app.extensions == {}
    with pytest.raises(ConfigurationError, match="rates"):
        rate_limited("often")


@pytest.mark.parametrize("environment", ["development", "testing", "local"])
def test_development_carries_on_in_memory_and_comes_back(
    own_server: RedisServer, environment: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="flask_redis_guard")
    guard = RedisGuard()
    app = make_app(
        guard,
        "app",
        own_server.url,
        ENVIRONMENT=environment,
        REDIS_GUARD_OPEN_SECONDS=0.2,
        REDIS_GUARD_DENIAL_CACHE_SIZE=0,
    )
    http = app.test_client()
    with app.app_context():
        guard.client.set("where", "server")
        assert not guard.health()["is_mock"]
        own_server.kill()
        assert guard.client.get("where") is None
        guard.client.set("where", "memory")
        assert guard.client.get("where") == b"memory"
        assert guard.health()["is_mock"]
        guard.require_redis("anything")
        # Not real, but a limit nevertheless.
        assert [http.get("/").status_code for _ in range(5)] == [200, 200, 200, 429, 429]
        assert http.get("/api/v1/health/ready").status_code == 200
        own_server.start()
        eventually(lambda: guard.client.get("where") is None and not guard.health()["is_mock"])
        assert guard.client.get("where") is None
        assert http.get("/").status_code == 200
    assert caplog.text.count("using the in-memory store (development only)") == 1
    assert caplog.text.count("Redis is back") == 1


@pytest.mark.parametrize("environment", [None, "production", "staging", "devlopment", ""])
def test_everything_else_fails_closed(own_server: RedisServer, environment: str | None) -> None:
    guard = RedisGuard()
    named = {} if environment is None else {"ENVIRONMENT": environment}
    app = make_app(guard, "app", own_server.url, **named)
    own_server.kill()
    assert [app.test_client().get("/").status_code for _ in range(7)] == [503] * 7
    with app.app_context():
        assert guard.health()["is_mock"] is False


def test_memory_url_needs_no_server() -> None:
    guard = RedisGuard()
    app = make_app(guard, "app", "memory://", ENVIRONMENT="testing")
    http = app.test_client()
    assert [http.get("/").status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    with app.app_context():
        assert guard.health()["is_mock"] is True
    with pytest.raises(ConfigurationError, match="memory://"):
        make_app(RedisGuard(), "app", "memory://")


def test_memory_stores_of_two_apps_are_two() -> None:
    guard = RedisGuard()
    one, two = (make_app(guard, n, "memory://", ENVIRONMENT="local") for n in ("one", "two"))
    with one.app_context():
        guard.client.set("key", "one")
    with two.app_context():
        assert guard.client.get("key") is None


def test_left_over_settings_of_other_extensions_are_warned_of(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    left = {"RATELIMIT_DEFAULT": "5/minute", "RATELIMIT_STORAGE_URI": "redis://:hunter2@h"}
    app = Flask("migrated")
    app.config.update(REDIS_URL=redis_server.url, SESSION_TYPE="redis", **left)
    RedisGuard(app)
    rates, sessions = [record.getMessage() for record in caplog.records]
    assert "limit nothing: RATELIMIT_DEFAULT, RATELIMIT_STORAGE_URI." in rates
    assert "GuardedSessionInterface(guard)" in sessions
    assert "hunter2" not in caplog.text


def test_settings_of_extensions_that_are_in_use_are_left_alone(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    from cachelib import SimpleCache
    from flask_session import Session

    app = Flask("both")
    app.config.update(REDIS_URL=redis_server.url, RATELIMIT_DEFAULT="5/minute")
    app.config.update(SESSION_TYPE="cachelib", SESSION_CACHELIB=SimpleCache())
    app.extensions["limiter"] = {object()}  # as Flask-Limiter registers itself
    Session(app)
    caplog.clear()
    RedisGuard(app)
    assert caplog.records == []

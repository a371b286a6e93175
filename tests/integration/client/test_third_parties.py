"""Libraries that are handed the guard's client run unchanged; during an outage they answer 503."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask, session
from redis.backoff import NoBackoff
from redis.retry import Retry

from flask_redis_guard import ConfigurationError, RedisGuard
from tests.support import RedisServer
from tests.support.guarded import Guarded

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")


@pytest.fixture
def app(own_server: RedisServer) -> Flask:
    app = Flask("third-parties", static_folder=None)
    app.config.update(REDIS_URL=own_server.url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0)
    app.secret_key = "secret"
    return app


def guarded_client(app: Flask) -> Any:
    return RedisGuard(app).client_for(app)


def test_flask_session(app: Flask, own_server: RedisServer) -> None:
    from flask_session import Session

    app.config.update(SESSION_TYPE="redis", SESSION_REDIS=guarded_client(app))
    Session(app)

    @app.get("/")
    def visits() -> str:
        session["visits"] = session.get("visits", 0) + 1
        return str(session["visits"])

    browser = app.test_client()
    assert [browser.get("/").text for _ in range(3)] == ["1", "2", "3"]
    own_server.kill()
    answer = browser.get("/")
    assert answer.status_code == 503
    assert answer.content_type == "application/problem+json"
    own_server.start()
    assert browser.get("/").status_code == 200


def test_flask_caching(app: Flask, own_server: RedisServer) -> None:
    from flask_caching import Cache
    from flask_caching.backends.rediscache import RedisCache

    calls: list[int] = []
    cache = Cache(app, config={"CACHE_TYPE": "NullCache", "CACHE_NO_NULL_WARNING": True})
    # The backend takes any client in place of a host's name.
    app.extensions["cache"][cache] = RedisCache(host=guarded_client(app))

    @app.get("/")
    def page() -> str:
        value = cache.get("page")
        if value is None:
            calls.append(1)
            value = "made"
            cache.set("page", value, timeout=30)
        return str(value)

    browser = app.test_client()
    assert [browser.get("/").text for _ in range(3)] == ["made"] * 3
    assert len(calls) == 1
    own_server.kill()
    assert browser.get("/").status_code == 503
    own_server.start()
    assert browser.get("/").status_code == 200


def test_rq(app: Flask, own_server: RedisServer) -> None:
    from rq import Queue

    queue = Queue(connection=guarded_client(app))

    @app.post("/")
    def enqueue() -> str:
        queue.enqueue("time.sleep", 0)
        return str(len(queue))

    browser = app.test_client()
    assert [browser.post("/").text for _ in range(2)] == ["1", "2"]
    own_server.kill()
    assert browser.post("/").status_code == 503
    own_server.start()
    assert browser.post("/").text == "1"


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "redis+cluster://127.0.0.1:1"])
def test_no_client_is_made_to_try_again(url: str) -> None:
    client = Guarded(url).client
    with pytest.raises(ConfigurationError, match="one operation is one try"):
        client.set_retry(Retry(NoBackoff(), 3))


def test_no_pool_is_made_to_try_again() -> None:
    pool = Guarded("redis://127.0.0.1:1").client.connection_pool
    with pytest.raises(ConfigurationError, match="one operation is one try"):
        pool.set_retry(Retry(NoBackoff(), 3))

"""The health routes: what they say, to whom, and what they cost."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask, request

from flask_redis_guard import CircuitOpen, ConfigurationError, RedisGuard, runtime
from flask_redis_guard.core.breaker import Outcome, Permit
from flask_redis_guard.events import LimitExceeded
from flask_redis_guard.runtime import Runtime
from tests.support import GunicornApp, RedisServer, SilentServer, eventually

TOKEN = "health-test-token-0123456789"
PREFIX = "/api/v1/health"
FIVE = {"healthy", "latency_ms", "circuit_state", "failure_count", "is_mock"}
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def make_app(url: str, **config: Any) -> Flask:
    app = Flask("health-test")
    app.config.update(REDIS_URL=url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0, **config)
    guard = RedisGuard(app)

    @app.get("/")
    def index() -> str:
        return str(guard.client.incr("n"))

    return app


def ask(app: Flask) -> Any:
    return app.test_client().get(f"{PREFIX}/detailed").json


def runtime_of(app: Flask) -> Runtime:
    guard = app.extensions["redis_guard"]
    assert isinstance(guard, Runtime)
    return guard


# -- what is said ------------------------------------------------------------------------------


def test_healthy(redis_server: RedisServer) -> None:
    client: Any = make_app(redis_server.url).test_client()
    for path in ("live", "ready", "detailed"):
        response = client.get(f"{PREFIX}/{path}")
        assert response.status_code == 200
        assert response.mimetype == "application/health+json"
        assert response.headers["Cache-Control"] == "no-store"
        assert response.json is not None
        assert response.json["status"] == "pass"


def test_failing_is_a_warning_and_open_is_a_failure(own_server: RedisServer) -> None:
    app = make_app(own_server.url, REDIS_GUARD_FAILURE_THRESHOLD=3, REDIS_GUARD_READY="redis")
    client: Any = app.test_client()
    own_server.kill()
    response = client.get(f"{PREFIX}/detailed")
    assert (response.status_code, response.json["status"]) == (200, "warn")
    assert client.get(f"{PREFIX}/ready").status_code == 200
    for _ in range(3):
        assert client.get("/").status_code == 503
    response = client.get(f"{PREFIX}/detailed")
    assert (response.status_code, response.json["status"]) == (503, "fail")
    assert response.json["redis"] == {
        "healthy": False,
        "latency_ms": None,
        "circuit_state": "open",
        "failure_count": 3,
        "is_mock": False,
    }
    ready = client.get(f"{PREFIX}/ready")
    assert ready.status_code == 503
    assert 1 <= int(ready.headers["Retry-After"]) <= 40
    assert client.get(f"{PREFIX}/live").status_code == 200


def test_an_instance_stays_ready_while_redis_is_away(own_server: RedisServer) -> None:
    client: Any = make_app(own_server.url, REDIS_GUARD_FAILURE_THRESHOLD=1).test_client()
    own_server.kill()
    assert client.get("/").status_code == 503
    ready = client.get(f"{PREFIX}/ready")
    assert (ready.status_code, ready.json) == (200, {"status": "warn"})
    assert client.get(f"{PREFIX}/detailed").status_code == 503


def test_user_who_may_neither_write_nor_ping_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer(acl=["user default on nopass ~* &* +@all -set -ping"]) as server:
        app = make_app(server.url, REDIS_GUARD_HEALTH_TOKEN=TOKEN)
        for headers in ({}, BEARER):
            response: Any = app.test_client().get(f"{PREFIX}/detailed", headers=headers)
            assert response.status_code == 200
            assert (response.json["status"], response.json["redis"]["healthy"]) == ("warn", False)
        assert app.test_client().get("/").status_code == 200  # what it may do, it can
    assert "may not write" in caplog.text


def test_without_the_monitor_traffic_is_let_back_after_the_open_time(
    own_server: RedisServer,
) -> None:
    app = make_app(
        own_server.url,
        REDIS_GUARD_FAILURE_THRESHOLD=1,
        REDIS_GUARD_OPEN_SECONDS=0.2,
        REDIS_GUARD_RECOVERY_INTERVAL=0,
        REDIS_GUARD_READY="redis",
    )
    client: Any = app.test_client()
    own_server.kill()
    client.get("/")
    assert client.get(f"{PREFIX}/ready").status_code == 503
    eventually(lambda: client.get(f"{PREFIX}/ready").status_code == 200, 2)
    assert runtime_of(app).breaker.state.value == "half-open"


def test_with_the_monitor_traffic_waits_for_its_probe(redis_server: RedisServer) -> None:
    app = make_app(
        redis_server.url,
        REDIS_GUARD_SUCCESS_THRESHOLD=2,
        REDIS_GUARD_OPEN_SECONDS=0.1,
        REDIS_GUARD_RECOVERY_INTERVAL=0,
        REDIS_GUARD_READY="redis",
    )
    guard = runtime_of(app)
    client: Any = app.test_client()
    guard.breaker.reserve_probes(60.0)  # as a running monitor does
    for _ in range(5):
        permit = guard.breaker.try_acquire()
        assert isinstance(permit, Permit)
        guard.breaker.settle(permit, Outcome.FAILURE)
    eventually(lambda: guard.breaker.state.value == "half-open", 2)
    assert client.get(f"{PREFIX}/ready").status_code == 503
    with app.app_context(), pytest.raises(CircuitOpen):
        RedisGuard().require_redis("login")
    assert guard.monitor.check().healthy
    assert guard.breaker.state.value == "half-open"
    assert client.get(f"{PREFIX}/ready").status_code == 200


def test_operator_keeps_traffic_out(redis_server: RedisServer) -> None:
    app = make_app(redis_server.url)
    runtime_of(app).breaker.force_open()
    response: Any = app.test_client().get(f"{PREFIX}/detailed")
    assert response.status_code == 503
    assert response.json["redis"]["circuit_state"] == "forced-open"


def test_in_memory_store_is_ready_and_says_so() -> None:
    app = make_app("memory://", ENVIRONMENT="development")
    response: Any = app.test_client().get(f"{PREFIX}/detailed")
    assert response.status_code == 200
    assert response.json["redis"]["is_mock"] is True


def test_prefix_and_none(redis_server: RedisServer) -> None:
    elsewhere: Any = make_app(redis_server.url, REDIS_GUARD_HEALTH_URL_PREFIX="/ops").test_client()
    assert elsewhere.get("/ops/live").status_code == 200
    with elsewhere.get("/ops/static/status.js") as script:
        assert script.status_code == 200
    nowhere = make_app(redis_server.url, REDIS_GUARD_HEALTH_URL_PREFIX=None)
    assert not [rule for rule in nowhere.url_map.iter_rules() if "health" in rule.rule]


# -- to whom -----------------------------------------------------------------------------------


def states(app: Flask, server: RedisServer) -> dict[str, Callable[[], object]]:
    breaker = runtime_of(app).breaker
    return {
        "closed": lambda: None,
        "failing": server.kill,
        "open": lambda: [app.test_client().get("/") for _ in range(5)],
        "forced-open": breaker.force_open,
        "disabled": breaker.disable,
        "reset": breaker.reset,
    }


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Token {TOKEN}"},
        {"Authorization": "Basic ????"},
        {"Authorization": "Basic " + base64.b64encode(f"{TOKEN}:x".encode()).decode()},
        {"Authorization": "Bearer \xff\xfe"},
        {"X-Forwarded-User": "admin"},
    ],
)
def test_strangers_see_five_fields_in_any_state(
    own_server: RedisServer, headers: dict[str, str]
) -> None:
    app = make_app(own_server.url, REDIS_GUARD_HEALTH_TOKEN=TOKEN, REDIS_GUARD_METRICS=True)
    client: Any = app.test_client()
    for state, enter in states(app, own_server).items():
        enter()
        body = client.get(f"{PREFIX}/detailed", headers=headers).json
        assert set(body) == {"status", "redis"}, state
        assert set(body["redis"]) == FIVE, state
        for path in ("live", "ready"):
            answer = client.get(f"{PREFIX}/{path}", headers=headers).json
            assert set(answer) == {"status"}, state
        for path in ("status", "status.json", "metrics"):
            response = client.get(f"{PREFIX}/{path}", headers=headers)
            assert response.status_code == 401
            assert response.text == "Not authorised.\n"


@pytest.mark.parametrize(
    "headers",
    [
        BEARER,
        {"Authorization": f"bearer  {TOKEN} "},
        {"Authorization": "Basic " + base64.b64encode(f"anyone:{TOKEN}".encode()).decode()},
    ],
)
def test_token_shows_the_rest(own_server: RedisServer, headers: dict[str, str]) -> None:
    app = make_app(own_server.url, REDIS_GUARD_HEALTH_TOKEN=TOKEN)
    client: Any = app.test_client()
    shown = client.get(f"{PREFIX}/detailed", headers=headers).json
    assert shown["process"] == os.getpid()
    details = shown["details"]
    assert details["server_version"].split()[0] in ("Redis", "Valkey")
    assert details["connections_at_most"] == 64
    assert details["last_failure"] is None
    own_server.kill()
    for _ in range(5):
        client.get("/")
    answer = client.get(f"{PREFIX}/detailed", headers=headers)
    details = answer.json["details"]
    assert details["last_failure"]["reason"] == "connection"
    assert details["downtime"] >= 0
    assert details["server_version"] is None
    # Not even operators are shown addresses and texts of exceptions.
    assert str(own_server.port) not in answer.text


def test_callable_decides(redis_server: RedisServer) -> None:
    def from_inside() -> bool:
        return request.headers["X-Network"] == "inside"  # raises without the header

    app = make_app(redis_server.url, REDIS_GUARD_HEALTH_AUTHORIZE=from_inside)
    client: Any = app.test_client()
    inside = client.get(f"{PREFIX}/detailed", headers={"X-Network": "inside"})
    assert "details" in inside.json
    outside = client.get(f"{PREFIX}/detailed", headers={"X-Network": "outside"})
    assert "details" not in outside.json
    assert "details" not in client.get(f"{PREFIX}/detailed").json
    # There is no token that a browser could ask for.
    assert client.get(f"{PREFIX}/status").status_code == 403


def test_callable_that_needs_redis_is_a_no_in_an_outage(
    own_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    guard = RedisGuard()
    app = Flask("by-redis")
    app.config.update(
        REDIS_URL=own_server.url,
        REDIS_GUARD_HEALTH_CHECK_INTERVAL=0,
        REDIS_GUARD_HEALTH_AUTHORIZE=lambda: guard.client.ping(),
    )
    guard.init_app(app)
    client = app.test_client()
    assert client.get(f"{PREFIX}/status").status_code == 200
    own_server.kill()
    assert client.get(f"{PREFIX}/status").status_code == 403
    assert "AUTHORIZE needs Redis" in caplog.text
    assert "Traceback" not in caplog.text


def test_async_callable_authorises_nobody(redis_server: RedisServer) -> None:
    async def nobody() -> bool:
        return False

    with pytest.raises(ConfigurationError, match="not async"):
        make_app(redis_server.url, REDIS_GUARD_HEALTH_AUTHORIZE=nobody)
    # A coroutine is true, whatever it would say.
    app = make_app(redis_server.url, REDIS_GUARD_HEALTH_AUTHORIZE=lambda: nobody())
    client: Any = app.test_client()
    assert "details" not in client.get(f"{PREFIX}/detailed").json
    assert client.get(f"{PREFIX}/status.json").status_code == 403


def test_without_any_authorisation_nobody_is_shown_more(redis_server: RedisServer) -> None:
    client: Any = make_app(redis_server.url).test_client()
    assert "details" not in client.get(f"{PREFIX}/detailed", headers=BEARER).json
    assert client.get(f"{PREFIX}/status").status_code == 403


def test_development_is_open_until_a_token_is_set(redis_server: RedisServer) -> None:
    app = make_app(redis_server.url, ENVIRONMENT="development")
    assert app.test_client().get(f"{PREFIX}/status").status_code == 200
    app = make_app(redis_server.url, ENVIRONMENT="development", REDIS_GUARD_HEALTH_TOKEN=TOKEN)
    assert app.test_client().get(f"{PREFIX}/status").status_code == 401


@pytest.mark.parametrize("token", ["", "short", "with spaces in it all along", 1234567890123456])
def test_token_that_can_be_guessed_or_sent_wrongly_is_refused(token: object) -> None:
    with pytest.raises(ConfigurationError, match="REDIS_GUARD_HEALTH_TOKEN") as caught:
        make_app("redis://localhost", REDIS_GUARD_HEALTH_TOKEN=token)
    assert not str(token) or str(token) not in str(caught.value)


def test_limits_are_counted_by_rate(redis_server: RedisServer) -> None:
    app = make_app(redis_server.url, REDIS_GUARD_HEALTH_TOKEN=TOKEN)
    with app.app_context():
        limiter = RedisGuard().limiter
        limiter.hit("1/minute", "a")
        decision = limiter.hit("1/minute", "a")
    bus = runtime.of(app).bus
    bus.emit(LimitExceeded(decision, None, "", shadow=False))
    bus.emit(LimitExceeded(decision, None, "", shadow=True))
    client: Any = app.test_client()
    details = client.get(f"{PREFIX}/detailed", headers=BEARER).json["details"]
    assert details["limited"] == {"1/minute": 1}
    history = client.get(f"{PREFIX}/status.json", headers=BEARER).json["history"]
    assert sum(history["limited"]) == 1


# -- at what cost ------------------------------------------------------------------------------


def test_a_thousand_requests_are_one_check(redis_server: RedisServer) -> None:
    app = make_app(redis_server.url, REDIS_GUARD_HEALTH_TOKEN=TOKEN)
    # Long enough for all of them.
    runtime_of(app).monitor.interval = 60.0
    before = redis_server.calls()

    def ask(number: int) -> int:
        path = ("detailed", "ready", "live", "status.json")[number % 4]
        return app.test_client().get(f"{PREFIX}/{path}", headers=BEARER).status_code

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(ask, range(1000))) == {200}
    assert redis_server.calls() - before == 1  # INFO, for the version, is one more; not counted
    assert redis_server.calls("set") == 1


def test_hung_redis_delays_no_more_than_one_request() -> None:
    with SilentServer() as silent:
        app = make_app(silent.url, REDIS_GUARD_TIMEOUT=0.2)
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: ask(app), range(100)))
        assert {answer["status"] for answer in answers} == {"warn"}
        assert silent.accepted == 1


APP = """
from flask import Flask
from flask_redis_guard import RedisGuard

app = Flask(__name__)
app.config.update(
    REDIS_GUARD_HEALTH_CHECK_INTERVAL=1, REDIS_GUARD_HEALTH_TOKEN="health-test-token-0123456789"
)
guard = RedisGuard(app)
"""


def test_checks_under_gunicorn_keep_to_the_interval(own_server: RedisServer) -> None:
    with GunicornApp(
        APP, worker_class="gthread", threads=8, env={"REDIS_URL": own_server.url}
    ) as app:
        began = time.monotonic()
        with own_server.client() as client:
            client.config_resetstat()
        process = json.loads(app.get(f"{PREFIX}/detailed", headers=BEARER).text)["process"]
        with ThreadPoolExecutor(8) as pool:
            responses = list(
                pool.map(lambda _: app.get(f"{PREFIX}/detailed", headers=BEARER), range(1000))
            )
        assert {response.status_code for response in responses} == {200}
        assert {response.json()["process"] for response in responses} == {process}
        checks = own_server.calls("set")
        # One for each interval that began, and one that the first request may have caused.
        assert checks <= time.monotonic() - began + 2

"""What a failure becomes in a Flask app: 503 with Retry-After, unless the app decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from flask import Flask, Response, session
from flask.sessions import SecureCookieSessionInterface, SessionMixin
from flask.testing import FlaskClient
from werkzeug.exceptions import HTTPException
from werkzeug.test import TestResponse

from flask_redis_guard import (
    CircuitOpen,
    RateLimitExceeded,
    RedisGuard,
    RedisUnavailable,
    rate_limited,
    request_refused,
)
from tests.support import RedisServer
from tests.support.ports import PortLease


class Guarded:
    """An app whose Redis does not exist: connections to it are refused."""

    def __init__(self, url: str, **config: Any) -> None:
        self.app = Flask("app")
        self.app.secret_key = "secret"
        self.app.config.update(REDIS_URL=url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0, **config)
        self.guard = RedisGuard(self.app)
        self.refusals: list[dict[str, Any]] = []
        request_refused.connect(self._refused, self.app)
        self.app.add_url_rule("/quiet", "quiet", lambda: "quiet")
        self.app.add_url_rule("/redis", "redis", self.ask)

    def _refused(self, app: Flask, **event: Any) -> None:
        self.refusals.append(event)

    def ask(self, *_: Any) -> Any:
        return str(self.guard.client.get("key"))

    @property
    def http(self) -> FlaskClient:
        return self.app.test_client()


@pytest.fixture
def dead() -> Iterator[Callable[..., Guarded]]:
    with PortLease() as lease:
        yield lambda **config: Guarded(f"redis://:hunter2@127.0.0.1:{lease.port}/0", **config)


def bug(*_: Any) -> str:
    raise ZeroDivisionError


def is_refusal(response: TestResponse) -> bool:
    assert response.status_code == 503
    assert response.mimetype == "application/problem+json"
    assert response.json is not None
    assert response.json["status"] == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert response.headers["Cache-Control"] == "no-store"
    assert "hunter2" not in response.text
    return True


@pytest.mark.parametrize("mode", [{}, {"TESTING": True}, {"DEBUG": True}])
@pytest.mark.parametrize("more", [{}, {"PROPAGATE_EXCEPTIONS": True}])
def test_view_that_lets_it_through(
    dead: Callable[..., Guarded], mode: dict[str, Any], more: dict[str, Any]
) -> None:
    guarded = dead(**mode, **more)
    assert is_refusal(guarded.http.get("/redis"))
    (event,) = guarded.refusals
    assert isinstance(event["error"], RedisUnavailable)
    assert event["error"].reason == "connection"
    assert event["endpoint"] == "redis"


def test_before_request(dead: Callable[..., Guarded]) -> None:
    guarded = dead()
    guarded.app.before_request(guarded.ask)
    assert is_refusal(guarded.http.get("/quiet"))
    assert is_refusal(guarded.http.get("/no-such-url"))


def test_after_request_even_on_errors_and_unknown_urls(dead: Callable[..., Guarded]) -> None:
    guarded = dead()

    @guarded.app.after_request
    def save(response: Response) -> Response:
        guarded.ask()
        return response

    guarded.app.add_url_rule("/bug", "bug", bug)
    for url in ("/quiet", "/redis", "/no-such-url"):
        guarded.refusals.clear()
        assert is_refusal(guarded.http.get(url))
        assert len(guarded.refusals) == 1


def test_after_request_of_others_still_runs(dead: Callable[..., Guarded]) -> None:
    guarded = dead()

    @guarded.app.after_request
    def stamp(response: Response) -> Response:
        response.headers["X-Stamp"] = "1"
        return response

    response = guarded.http.get("/redis")
    assert is_refusal(response)
    assert response.headers["X-Stamp"] == "1"


class Opening(SecureCookieSessionInterface):
    """A session interface that needs Redis to open a session."""

    def open_session(self, app: Flask, request: Any) -> Any:
        app.extensions["redis_guard"].client.get("session")
        return super().open_session(app, request)


class Saving(SecureCookieSessionInterface):
    """A session interface that needs Redis to save a session."""

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        app.extensions["redis_guard"].client.set("session", "x")


@pytest.mark.parametrize("interface", [Opening, Saving])
def test_foreign_session_interfaces(
    dead: Callable[..., Guarded],
    interface: type[SecureCookieSessionInterface],
    caplog: pytest.LogCaptureFixture,
) -> None:
    guarded = dead()
    guarded.app.session_interface = interface()

    @guarded.app.after_request
    def look(response: Response) -> Response:
        response.headers["X-User"] = str(session.get("user"))
        return response

    response = guarded.http.get("/quiet")
    assert is_refusal(response)
    assert response.headers["X-User"] == "None"
    assert len(guarded.refusals) == 1
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("caught", [503, HTTPException, redis.ConnectionError, RedisUnavailable])
@pytest.mark.parametrize("where", ["view", "before", "after"])
def test_handler_of_the_app_decides_and_retry_after_survives(
    dead: Callable[..., Guarded], caught: Any, where: str
) -> None:
    guarded = dead()

    @guarded.app.errorhandler(caught)
    def handler(error: Exception) -> tuple[str, int]:
        assert isinstance(error, RedisUnavailable)
        return "our own page", 503

    if where == "before":
        guarded.app.before_request(guarded.ask)
    if where == "after":
        guarded.app.after_request(guarded.ask)
    response = guarded.http.get("/redis" if where == "view" else "/quiet")
    assert (response.status_code, response.text) == (503, "our own page")
    assert int(response.headers["Retry-After"]) >= 1
    assert len(guarded.refusals) == 1


def test_handler_of_the_app_may_carry_on_without_redis(dead: Callable[..., Guarded]) -> None:
    guarded = dead()
    guarded.app.register_error_handler(redis.ConnectionError, lambda _: ("from a copy", 200))
    response = guarded.http.get("/redis")
    assert (response.status_code, response.text) == (200, "from a copy")
    assert "Retry-After" not in response.headers
    assert guarded.refusals == []


def test_handler_of_the_app_keeps_its_own_retry_after(dead: Callable[..., Guarded]) -> None:
    guarded = dead()
    guarded.app.register_error_handler(503, lambda _: ("later", 503, {"Retry-After": "120"}))
    assert guarded.http.get("/redis").headers["Retry-After"] == "120"


def test_handler_that_needs_redis_itself_is_a_503(dead: Callable[..., Guarded]) -> None:
    guarded = dead()
    guarded.app.register_error_handler(503, guarded.ask)
    assert is_refusal(guarded.http.get("/redis"))
    assert len(guarded.refusals) == 1


def test_handler_with_a_bug_is_a_500(dead: Callable[..., Guarded]) -> None:
    guarded = dead()
    guarded.app.register_error_handler(503, bug)
    assert guarded.http.get("/redis").status_code == 500


def test_other_errors_are_none_of_our_business(dead: Callable[..., Guarded]) -> None:
    guarded = dead()
    guarded.app.add_url_rule("/bug", "bug", bug)
    assert guarded.http.get("/bug").status_code == 500
    assert guarded.http.get("/none").status_code == 404
    assert guarded.refusals == []


def test_existing_except_clauses_work(dead: Callable[..., Guarded]) -> None:
    guarded = dead()
    with guarded.app.app_context():
        assert isinstance(guarded.guard.client, redis.Redis)
        with pytest.raises(redis.ConnectionError):
            guarded.guard.client.get("key")
        for _ in range(4):
            with pytest.raises(redis.RedisError):
                guarded.guard.client.set("key", "value")
        with pytest.raises(CircuitOpen):
            guarded.guard.require_redis("password reset")


def test_answers_stay_the_same_once_the_breaker_is_open(dead: Callable[..., Guarded]) -> None:
    guarded = dead()
    answers = [guarded.http.get("/redis") for _ in range(8)]
    assert all(is_refusal(answer) for answer in answers)
    # 30 s, up to 10 % more of the breaker's, and up to 20 % so that clients do not come in step.
    assert 29 <= int(answers[-1].headers["Retry-After"]) <= 40
    assert {event["error"].reason for event in guarded.refusals} == {"connection", "circuit-open"}


def test_limited_view_fails_closed(dead: Callable[..., Guarded]) -> None:
    guarded = dead()
    called: list[int] = []

    @guarded.app.get("/login")
    @rate_limited("5/minute")
    def login() -> str:
        called.append(1)
        return "in"

    assert is_refusal(guarded.http.get("/login"))
    assert called == []


def test_refused_by_a_limit_is_a_429(redis_server: RedisServer) -> None:
    def once() -> str:
        return "once"

    guarded = Guarded(redis_server.url)
    guarded.app.add_url_rule("/once", "once", rate_limited("1/minute")(once))
    assert guarded.http.get("/once").status_code == 200
    response = guarded.http.get("/once")
    assert response.status_code == 429
    assert response.mimetype == "application/problem+json"
    assert 1 <= int(response.headers["Retry-After"]) <= 64
    assert guarded.refusals == []

    pretty = Guarded(redis_server.url)
    pretty.app.add_url_rule("/once", "once", rate_limited("1/minute")(once))

    @pretty.app.errorhandler(RateLimitExceeded)
    def page(error: RateLimitExceeded) -> tuple[str, int]:
        return f"{error.decision.limit} is enough", 429

    response = pretty.http.get("/once")
    assert response.text == "1 is enough"
    assert int(response.headers["Retry-After"]) >= 1

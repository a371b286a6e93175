"""What becomes of a response whose session could not be saved."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest
from flask import Flask, Response, flash, redirect, request_finished, send_file, session
from flask.typing import ResponseReturnValue

from flask_redis_guard import RedisUnavailable, request_refused
from tests.support import RedisServer
from tests.support.session_apps import session_app


class Closes:
    """A streamed body that knows whether it was closed, and whether anybody read it."""

    def __init__(self) -> None:
        self.closed = self.read = False

    def __iter__(self) -> Iterator[bytes]:
        self.read = True
        yield b"streamed secret"

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def app(own_server: RedisServer) -> Flask:
    """An app whose views kill the server between reading and saving the session."""
    app, _ = session_app(own_server.url)
    app.config["OWN_SERVER"] = own_server

    @app.before_request
    def look() -> None:
        session.get("a")
        own_server.kill()
        session["a"] = 2

    return app


def assert_is_the_503(response: Any) -> None:
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert response.content_type == "application/problem+json"
    assert response.json["status"] == 503
    assert "secret" not in response.text
    allowed = {"content-type", "content-length", "cache-control", "retry-after", "vary"}
    left = {name.lower() for name in response.headers.keys()} - allowed  # noqa: SIM118
    assert {name for name in left if not name.startswith("access-control-")} == set()


def test_nothing_of_it_is_left_but_vary_and_cors(app: Flask) -> None:
    @app.post("/order")
    def order() -> ResponseReturnValue:
        response = redirect("/secret")
        response.set_cookie("remember_token", "secret")
        response.set_etag("secret")
        response.headers["Content-Encoding"] = "gzip"
        response.headers["X-Order"] = "secret"
        response.vary.add("Accept-Language")
        return response

    @app.after_request
    def cors(response: Response) -> Response:
        response.headers["Access-Control-Allow-Origin"] = "https://front.example"
        response.headers["Access-Control-Allow-Credentials"] = "true"
        response.vary.add("Origin")
        return response

    response = app.test_client().post("/order")
    assert_is_the_503(response)
    assert response.headers["Access-Control-Allow-Origin"] == "https://front.example"
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    assert set(response.vary) == {"Accept-Language", "Origin", "Cookie"}


@pytest.mark.parametrize("option", ["TESTING", "DEBUG", "PROPAGATE_EXCEPTIONS"])
def test_it_is_a_503_while_developing_too(app: Flask, option: str) -> None:
    app.config[option] = True
    assert_is_the_503(app.test_client().get("/untouched"))


def test_a_streamed_body_is_closed_and_never_read(app: Flask) -> None:
    body, calls = Closes(), []

    @app.get("/stream")
    def stream() -> Response:
        response = Response(body)
        response.call_on_close(lambda: calls.append("closed"))
        return response

    assert_is_the_503(app.test_client().get("/stream"))
    assert (body.closed, body.read, calls) == (True, False, ["closed"])


def test_a_file_is_closed(app: Flask) -> None:
    file = BytesIO(b"secret")

    @app.get("/file")
    def download() -> Response:
        return send_file(file, "text/plain", as_attachment=True, download_name="secret.txt")

    assert_is_the_503(app.test_client().get("/file"))
    assert file.closed


def test_hooks_run_once_and_teardown_and_signals_learn_of_it(app: Flask) -> None:
    story: list[Any] = []

    @app.after_request
    def after(response: Response) -> Response:
        story.append("after_request")
        return response

    @app.teardown_request
    def teardown(error: BaseException | None) -> None:
        story.append(type(error).__name__)

    def finished(sender: Flask, response: Response) -> None:
        story.append(response.status_code)

    def refused(sender: Flask, error: RedisUnavailable, endpoint: str) -> None:
        story.append((endpoint, error.reason))

    with request_finished.connected_to(finished, app), request_refused.connected_to(refused, app):
        response = app.test_client().get("/untouched")
    assert_is_the_503(response)
    assert story == ["after_request", ("untouched", "connection"), 503, "RedisUnavailable"]


def test_an_apps_own_handler_decides_and_no_cookie_gets_through(app: Flask) -> None:
    @app.errorhandler(503)
    def apologise(error: RedisUnavailable) -> ResponseReturnValue:
        assert session["a"] == 2  # reading what was read before is no harm
        return "we are sorry", 503

    response = app.test_client().get("/untouched")
    assert (response.status_code, response.text) == (503, "we are sorry")
    assert "Retry-After" in response.headers
    assert "Set-Cookie" not in response.headers


def test_a_handler_that_writes_the_session_gives_way_to_the_plain_503(app: Flask) -> None:
    @app.errorhandler(503)
    def apologise(error: RedisUnavailable) -> ResponseReturnValue:
        flash("please try again")
        return "we are sorry", 503

    assert_is_the_503(app.test_client().get("/untouched"))


def test_a_handler_that_needs_redis_as_well_gives_way_to_the_plain_503(
    own_server: RedisServer,
) -> None:
    app, guard = session_app(own_server.url)

    @app.errorhandler(503)
    def apologise(error: RedisUnavailable) -> str:
        return f"we are sorry, {session.get('user')}: {guard.client.get('apology')!r}"

    client = app.test_client()
    client.post("/login/5")
    own_server.kill()
    assert_is_the_503(client.get("/read"))


def test_a_session_that_could_not_be_read_is_not_asked_for_again(own_server: RedisServer) -> None:
    app, guard = session_app(own_server.url)
    errors: list[RedisUnavailable] = []

    @app.get("/stubborn")
    def stubborn() -> str:
        for _ in range(3):
            with pytest.raises(RedisUnavailable) as raised:
                session.get("a")
            errors.append(raised.value)
        with pytest.raises(RedisUnavailable):
            session["a"] = 1
        return "fallback"

    client = app.test_client()
    client.post("/write", json={"a": 1})
    own_server.kill()
    response = client.get("/stubborn")
    assert (response.status_code, response.text) == (200, "fallback")  # it chose to go on without
    assert "Set-Cookie" not in response.headers
    assert {error.reason for error in errors} == {"connection"}
    with app.app_context():
        assert guard.breaker.failure_count == 1

"""A refusal ahead of the view is what raising it would come to, at less cost."""

from __future__ import annotations

import cProfile
import itertools
import pstats
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import redis
from flask import Blueprint, Flask, Response, got_request_exception, request, request_finished
from werkzeug.exceptions import HTTPException, TooManyRequests

from flask_redis_guard import (
    RateLimitExceeded,
    RedisUnavailable,
    rate_limit_exceeded,
    rate_limited,
    request_refused,
)
from tests.integration.limits.conftest import Made

Make = Callable[..., Made]
NOWHERE = {"REDIS_URL": "redis://127.0.0.1:1/0"}


def limited(made: Made, blueprint: Blueprint | None = None) -> Made:
    where: Any = made.app if blueprint is None else blueprint
    where.add_url_rule("/", "index", rate_limited("1/minute")(lambda: "in"))
    if blueprint is not None:
        made.app.register_blueprint(blueprint)
    return made


def raised(made: Made) -> list[BaseException]:
    """The refusals that came to Flask's handling of errors from now on."""
    seen: list[BaseException] = []
    handle = made.app.handle_user_exception

    def spy(*args: Any) -> Any:
        seen.append(args[-1])
        return handle(*args)

    vars(made.app)["handle_user_exception"] = spy
    return seen


@pytest.mark.parametrize("outage", [False, True])
def test_early_and_raised_are_one_answer(make_app: Make, outage: bool) -> None:
    answers = []
    for early in (True, False):
        made = limited(make_app(REDIS_GUARD_KEY_PREFIX=f"{early}:", **(NOWHERE if outage else {})))
        seen = [] if early else raised(made)
        responses = [made.client.get("/") for _ in range(7)]
        assert (seen == []) == early
        answers.append(responses[-1])
    early_answer, raised_answer = answers
    assert early_answer.status_code == raised_answer.status_code == (503 if outage else 429)
    assert early_answer.json == raised_answer.json
    assert {name for name, _ in early_answer.headers} == {name for name, _ in raised_answer.headers}
    for name in ("Content-Type", "Cache-Control", "RateLimit-Policy"):
        assert early_answer.headers.get(name) == raised_answer.headers.get(name)


@pytest.mark.parametrize("outage", [False, True])
def test_hooks_behind_the_view_and_signals_see_it(make_app: Make, outage: bool) -> None:
    made = limited(make_app(**(NOWHERE if outage else {})))
    heard: list[str] = []

    @made.app.after_request
    def after(response: Response) -> Response:
        response.headers["X-After"] = str(response.status_code)
        return response

    @made.app.before_request
    def before() -> None:
        heard.append("before")

    def refused(app: Flask, *, endpoint: str | None, **_: Any) -> None:
        heard.append(f"refused {endpoint}")

    def finished(app: Flask, response: Response, **_: Any) -> None:
        heard.append(f"finished {response.status_code}")

    signal = request_refused if outage else rate_limit_exceeded
    made.client.get("/")
    heard.clear()
    with signal.connected_to(refused, made.app), request_finished.connected_to(finished, made.app):
        response = made.client.get("/")
    code = 503 if outage else 429
    assert response.headers["X-After"] == str(code)
    assert heard == ["refused index", f"finished {code}"]


@pytest.mark.parametrize(
    "kind", [429, TooManyRequests, HTTPException, Exception, RateLimitExceeded]
)
@pytest.mark.parametrize("of_blueprint", [False, True])
def test_an_own_handler_of_429_is_asked(make_app: Make, kind: Any, of_blueprint: bool) -> None:
    made = make_app()
    blueprint = Blueprint("shop", __name__)
    where: Any = blueprint if of_blueprint else made.app
    where.register_error_handler(kind, lambda error: ("slower", 429))
    limited(made, blueprint if of_blueprint else None)
    made.client.get("/")
    response = made.client.get("/")
    assert response.get_data(as_text=True) == "slower"
    assert int(response.headers["Retry-After"]) >= 55


@pytest.mark.parametrize("kind", [503, redis.ConnectionError, RedisUnavailable, HTTPException])
def test_an_own_handler_of_503_is_asked(make_app: Make, kind: Any) -> None:
    made = make_app(**NOWHERE)
    made.app.register_error_handler(kind, lambda error: ("later", 503))
    limited(made)
    for _ in range(7):
        response = made.client.get("/")
        assert response.get_data(as_text=True) == "later"
        assert int(response.headers["Retry-After"]) >= 1


def test_an_app_that_handles_errors_itself_is_asked(make_app: Make) -> None:
    made = limited(make_app())
    seen = raised(made)
    made.client.get("/")
    assert made.client.get("/").status_code == 429
    assert [type(error) for error in seen] == [RateLimitExceeded]


def test_an_own_response_class_makes_it(make_app: Make) -> None:
    made = limited(make_app())

    class Own(Response):
        pass

    made.app.response_class = Own
    made.client.get("/")
    with made.app.test_request_context("/", environ_base={"REMOTE_ADDR": "127.0.0.1"}):
        assert isinstance(made.app.preprocess_request(), Own)


def test_no_view_and_no_hook_runs_where_the_circuit_is_open(make_app: Make) -> None:
    made = limited(make_app())
    seen = raised(made)
    with made.app.app_context():
        made.guard.breaker.force_open()
    made.app.before_request_funcs[None] = [lambda: pytest.fail("a hook ran")]
    assert made.client.get("/").status_code == 503
    assert len(seen) == 1  # the spy stands in for the app's own handling


def _calls(made: Made, status: int) -> float:
    """The function calls of a request, by the profiler: the same on every machine."""
    environ = made.app.test_request_context("/", headers={"X-Client": "a"}).request.environ

    def start(line: str, headers: Any, exc_info: Any = None, /) -> Callable[[bytes], object]:
        assert line.startswith(str(status))
        return lambda data: None

    def call() -> None:
        response: Any = made.app.wsgi_app(dict(environ), start)
        list(response)
        response.close()

    for _ in range(20):
        call()
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(50):
        call()
    profile.disable()
    return pstats.Stats(profile).total_calls / 50  # type: ignore[attr-defined, no-any-return]


def _one(make_app: Make, prefix: str, *limits: str) -> Made:
    made = make_app(REDIS_GUARD_KEY_PREFIX=prefix)
    view: Callable[..., Any] = lambda: "in"  # noqa: E731
    if limits:
        view = rate_limited(";".join(limits), key=lambda: request.headers["X-Client"])(view)
    made.app.add_url_rule("/", "index", view)
    return made


def test_a_limit_costs_few_calls(make_app: Make) -> None:
    """The parts below the limiter have budgets of their own; what is tested is all together."""
    unlimited = _calls(_one(make_app, "none:"), 200)
    one = _calls(_one(make_app, "one:", "1000000/minute"), 200) - unlimited
    three = ("1000000/minute", "10000000/hour", "100000000/day")
    several = _calls(_one(make_app, "three:", *three), 200) - unlimited
    refused_app = _one(make_app, "refused:", "1/hour")
    refused_app.client.get("/", headers={"X-Client": "a"})
    refused = _calls(refused_app, 429) - unlimited
    assert one <= 130
    assert several <= 150
    assert refused <= 120


def test_a_limited_request_enters_few_modules(make_app: Make) -> None:
    made = _one(make_app, "way:", "1000000/minute")
    seen: list[str] = []

    def profile(frame: FrameType, event: str, argument: object) -> None:
        module = frame.f_globals.get("__name__", "")
        if event == "call" and module.startswith("flask_redis_guard."):
            seen.append(module)

    ways = []
    for _ in range(8):  # the first ones connect, and on a busy machine one may meet an interruption
        seen.clear()
        sys.setprofile(profile)
        try:
            made.client.get("/", headers={"X-Client": "a"})
        finally:
            sys.setprofile(None)
        ways.append(list(seen))
    way = min(ways[5:], key=lambda modules: len(set(modules)))
    own = [module for module in set(way) if ".web." in module]
    assert len(own) <= 3, sorted(own)
    assert len(set(way)) <= 13, sorted(set(way))
    assert sum(one != other for one, other in itertools.pairwise(way)) <= 30


def test_an_exception_in_flight_is_none_of_a_refusals(make_app: Make) -> None:
    made = limited(make_app())
    seen: list[BaseException] = []

    def note(app: Flask, exception: BaseException, **_: Any) -> None:
        seen.append(exception)

    with got_request_exception.connected_to(note, made.app):
        assert made.codes("/", 2) == [200, 429]
    assert seen == []

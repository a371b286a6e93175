"""Wherever a decorator stands, and whatever stands beside it, its limit applies."""

from __future__ import annotations

import functools
import logging
import types
from collections.abc import Callable
from typing import Any

import pytest
from flask import Blueprint, abort, request, session
from flask.views import MethodView
from werkzeug.local import LocalProxy

from flask_redis_guard import (
    ConfigurationError,
    concurrency_limited,
    rate_limited,
    websocket_limited,
)
from tests.integration.limits.conftest import Made

Make = Callable[..., Made]


def wrapping(view: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as it should be."""

    @functools.wraps(view)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return view(*args, **kwargs)

    return wrapper


def bare(view: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that does without functools.wraps."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return view(*args, **kwargs)

    wrapper.__name__ = view.__name__
    return wrapper


def plain(view: Callable[..., Any]) -> Callable[..., Any]:
    """No decorator."""
    return view


class Guarding:
    """A decorator that is a class; it lets nobody in who is called nobody."""

    def __init__(self, view: Callable[..., Any]) -> None:
        self.view = view

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return ("who are you?", 401) if "nobody" in request.args else self.view(*args, **kwargs)


@pytest.mark.parametrize("below", [plain, wrapping, bare])
@pytest.mark.parametrize("between", [plain, wrapping, bare])
def test_a_limit_above_its_route_applies(
    make_app: Make,
    between: Callable[..., Any],
    below: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = make_app()

    @rate_limited(
        "2/minute",
    )
    @between
    @made.app.get("/<name>")
    @below
    def greet(name: str) -> str:
        return f"hello {name}"

    assert made.codes("/you", 4) == [200, 200, 429, 429]
    assert caplog.text.count("stands above its route") == 1


def test_so_do_several_and_one_below(make_app: Make) -> None:
    made = make_app()

    @rate_limited("3/minute")
    @rate_limited("4/minute", methods=["POST"])
    @made.app.route("/", methods=["GET", "POST"])
    @rate_limited("2/minute", methods=["GET"])
    def view() -> str:
        return "in"

    assert made.codes("/", 3) == [200, 200, 429]
    assert made.codes("/", 2, "POST") == [200, 429]
    rows = made.app.test_cli_runner().invoke(args=["redis-guard", "limits"]).output.splitlines()
    assert len([row for row in rows if "endpoint:view" in row]) == 3


@pytest.mark.parametrize("first", ["request", "command"])
def test_so_does_one_above_the_route_of_a_blueprint(make_app: Make, first: str) -> None:
    blueprint = Blueprint("shop", __name__)

    @rate_limited("1/minute", defer=True)
    @blueprint.get("/")
    async def buy() -> str:
        return "bought"

    for prefix in ("one:", "two:"):
        made = make_app(REDIS_GUARD_KEY_PREFIX=prefix)
        made.app.register_blueprint(blueprint)
        if first == "command":
            listed = made.app.test_cli_runner().invoke(args=["redis-guard", "limits"]).output
            assert "endpoint:shop.buy" in listed
        assert made.codes("/", 2) == [200, 429]


def test_so_does_one_on_a_lambda_and_one_from_a_decorator_of_the_users(make_app: Make) -> None:
    made = make_app()
    rate_limited("1/minute")(made.app.get("/a", endpoint="a")(lambda: "a"))

    def api(path: str) -> Callable[..., Any]:
        return lambda view: rate_limited("1/minute")(made.app.get(path)(view))

    @api("/b")
    def view() -> str:
        return "b"

    assert made.codes("/a", 2) == made.codes("/b", 2) == [200, 429]


def test_a_concurrency_limit_above_its_route_applies(make_app: Make) -> None:
    made = make_app()
    inner: list[int] = []

    @concurrency_limited(1)
    @made.app.get("/")
    def view() -> str:
        if not inner:
            inner.append(0)
            inner[0] = made.app.test_client().get("/").status_code
        return "in"

    assert made.codes("/", 2) == [200, 200]
    assert inner == [429]


def test_limits_above_hooks_and_error_handlers_apply(make_app: Make) -> None:
    made = make_app()

    @rate_limited("3/minute")
    @made.app.before_request
    def hook() -> None:
        return None

    @rate_limited("1/minute")
    @made.app.errorhandler(404)
    def not_found(error: Exception) -> tuple[str, int]:
        return "nothing", 404

    made.app.add_url_rule("/", "index", lambda: "in")
    assert made.codes("/none", 2) == [404, 429]
    assert made.codes("/", 2) == [200, 429]


def test_whichever_function_an_app_registers_its_limits_apply(
    make_app: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def view() -> str:
        return "in"

    one, two = make_app(), make_app(REDIS_GUARD_KEY_PREFIX="two:")
    one.app.add_url_rule("/before", "before", view)
    limited = rate_limited("1/minute")(view)
    one.app.add_url_rule("/", "index", limited)
    two.app.add_url_rule("/", "index", view)
    assert one.codes("/", 2) == one.codes("/before", 2) == two.codes("/", 2) == [200, 429]
    assert "endpoint:before" in caplog.text


def test_two_limited_forms_of_one_function_are_two_limits(make_app: Make) -> None:
    made = make_app()

    def view() -> str:
        return "in"

    made.app.add_url_rule("/three", "three", rate_limited("3/minute")(view))
    made.app.add_url_rule("/one", "one", rate_limited("1/minute")(view))
    assert made.codes("/three", 4) == [200, 200, 200, 429]
    assert made.codes("/one", 2) == [200, 429]


def test_a_helper_that_a_decorator_closes_over_is_not_limited_as_a_hook(make_app: Make) -> None:
    made = make_app()

    @made.app.before_request
    def authenticate() -> None:
        return None

    def checked(view: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper() -> Any:
            authenticate()
            return view()

        return wrapper

    made.app.add_url_rule("/", "index", rate_limited("1/minute")(_of_another_module(checked(str))))
    made.app.add_url_rule("/free", "free", lambda: "free")
    assert made.codes("/free", 3) == [200] * 3
    assert made.codes("/", 2) == [200, 429]


@pytest.mark.parametrize(
    "decorate", [rate_limited("1/minute"), concurrency_limited(1), websocket_limited(concurrent=1)]
)
@pytest.mark.parametrize("given", [None, MethodView])
def test_what_would_have_no_limit_is_not_decorated(
    decorate: Callable[..., Any], given: Any
) -> None:
    with pytest.raises(ConfigurationError, match="a function"):  # None: what @sock.route returns
        decorate(given)


def test_functions_that_share_a_decorator_are_limited_each(make_app: Make) -> None:
    made = make_app()
    strict = rate_limited("3/minute")

    @strict
    def send_letter() -> None:
        return None

    @made.app.get("/")
    @strict
    def view() -> str:
        for _ in range(int(request.args["letters"])):
            send_letter()
        return "sent"

    assert made.codes("/?letters=2", 2) == [200, 429]
    assert made.codes("/?letters=0", 2) == [200, 429]


def test_a_limited_function_that_a_view_was_handed_is_charged_for_each_call(
    make_app: Make,
) -> None:
    made = make_app()

    def send_letter() -> None:
        return None

    limited = rate_limited("3/minute")(_of_another_module(send_letter))

    def make_view(send: Callable[[], None]) -> None:
        @made.app.get("/")
        def view() -> str:
            for _ in range(int(request.args["letters"])):
                send()
            return "sent"

    make_view(limited)
    assert made.codes("/?letters=2", 2) == [200, 429]
    assert made.codes("/?letters=1", 1) == [429]


def _of_another_module(function: Callable[..., Any]) -> Callable[..., Any]:
    function.__module__, function.__qualname__ = "letters", function.__name__
    return function


def test_a_decorator_that_is_a_class_hides_nothing(make_app: Make) -> None:
    made = make_app()
    made.app.add_url_rule("/", "index", Guarding(rate_limited("2/minute")(lambda: "in")))
    assert made.codes("/?nobody=1", 3) == [401, 401, 429]


@pytest.mark.parametrize("defer", [True, False])
def test_objects_and_partial_functions_are_limited(make_app: Make, defer: bool) -> None:
    made = make_app()
    views: dict[str, Callable[..., Any]] = {
        "a": Guarding(lambda: "a"),
        "b": functools.partial(str, "b"),
    }
    for name, view in views.items():
        limited = rate_limited("1/minute", defer=defer)(concurrency_limited(1)(view))
        made.app.add_url_rule(f"/{name}", name, limited)
    assert made.codes("/a", 2) == made.codes("/b", 2) == [200, 429]


def test_a_decorator_of_a_method_view_hides_no_limit_of_a_method(make_app: Make) -> None:
    made = make_app()

    class Account(MethodView):
        decorators = [Guarding]  # noqa: RUF012

        @rate_limited("2/minute")
        def get(self) -> str:
            return "shown"

        @rate_limited("1/minute")
        def post(self) -> str:
            return "changed"

    made.app.add_url_rule("/account", view_func=_with_class(Account))
    assert made.codes("/account?nobody=1", 3) == [401, 401, 429]
    assert made.codes("/account", 1, "HEAD") == [429]
    assert made.codes("/account", 2, "POST") == [200, 429]


def _with_class(view_class: type[MethodView]) -> Any:
    view: Any = view_class.as_view("account")
    view.__name__ = "account"
    return view


def test_proxies_in_a_closure_are_left_alone(make_app: Make) -> None:
    made = make_app()
    asked: list[str] = []

    def load() -> Any:
        asked.append("loaded")
        return types.SimpleNamespace(name="x")

    user: Any = LocalProxy(load)

    @made.app.get("/")
    @rate_limited("1/minute")
    def view() -> str:
        return str(session.get("x")) if request.args else str(user.name)

    assert made.codes("/", 2) == [200, 429]
    assert asked == ["loaded"]
    assert made.app.test_cli_runner().invoke(args=["redis-guard", "limits"]).exit_code == 0


def test_an_error_handler_that_calls_the_view_is_charged_for_it(make_app: Make) -> None:
    made = make_app()

    @made.app.get("/")
    @rate_limited("1/minute", scope="view")
    def view() -> str:
        return "in"

    made.app.register_error_handler(429, lambda error: view())
    assert made.codes("/", 3) == [200, 429, 429]


def test_hooks_that_push_the_check_aside_do_not_turn_it_off(make_app: Make) -> None:
    made = make_app()
    made.app.add_url_rule("/", "index", rate_limited("1/minute")(lambda: "in"))
    made.app.before_request_funcs[None] = [lambda: None]
    assert made.codes("/", 2) == [200, 429]
    made.app.before_request_funcs[None] = [lambda: "maintenance"]
    assert made.codes("/", 1) == [429]


def test_an_abort_in_a_key_hides_no_other_limit(make_app: Make) -> None:
    made = make_app()

    @made.app.post("/")
    @rate_limited("2/minute")
    @rate_limited("5/minute", key=lambda: request.form["user"])
    @rate_limited("5/minute", cost=lambda: int(request.args.get("cost", 1)))
    def view() -> str:
        abort(500)

    assert made.codes("/", 2, "POST") == [400, 400]
    assert made.codes("/?cost=none", 1, "POST", data={"user": "a"}) == [429]


def test_methods_that_are_never_accepted_are_reported(
    make_app: Make, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_app()
    view = rate_limited("1/minute", methods=["PSOT"])(
        rate_limited("1/minute", methods=["HEAD"])(lambda: "in")
    )
    made.app.add_url_rule("/", "index", view, methods=["GET", "POST"])
    with caplog.at_level(logging.WARNING, "flask_redis_guard"):
        made.codes("/", 2)
    assert sum("PSOT" in record.getMessage() for record in caplog.records) == 1

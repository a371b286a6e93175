"""What counts together and what does not, who is counted by default, and who is exempt."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, request
from flask.views import MethodView

from flask_redis_guard import ConfigurationError, concurrency_limited, rate_limited
from tests.integration.limits.conftest import Made

Make = Callable[..., Made]


def test_two_keys_of_one_view_are_two_counts(make_app: Make) -> None:
    made = make_app()

    @made.app.get("/")
    @rate_limited("3/minute", key=lambda: request.args.get("user"))
    @rate_limited("3/minute", key=lambda: request.args.get("device"))
    def view() -> str:
        return "in"

    assert made.codes("/?device=alice", 4) == [200, 200, 200, 429]
    assert made.codes("/?user=alice", 3, environ_base={"REMOTE_ADDR": "192.0.2.1"}) == [200] * 3


def test_two_limits_by_address_for_two_methods_are_two_counts(make_app: Make) -> None:
    made = make_app()

    @made.app.route("/", methods=["GET", "POST"])
    @rate_limited("2/minute", methods=["GET"])
    @rate_limited("2/minute", methods=["POST"])
    def view() -> str:
        return "in"

    assert made.codes("/", 3) == made.codes("/", 3, "POST") == [200, 200, 429]


def test_dynamic_rates_never_share_with_another_limit(make_app: Make) -> None:
    made = make_app()

    @made.app.get("/")
    @rate_limited("4/minute", refund_when=lambda response: True)
    @rate_limited(lambda: "4/minute")
    def view() -> str:
        return "in"

    assert made.codes("/", 5) == [200] * 4 + [429]


def test_a_scope_joins_what_would_be_apart(make_app: Make) -> None:
    made = make_app()

    @made.app.get("/")
    @rate_limited("3/minute", key=lambda: request.args.get("user"), scope="both")
    @rate_limited("3/minute", key=lambda: request.args.get("device"), scope="both")
    def view() -> str:
        return "in"

    assert made.codes("/?device=alice", 3, environ_base={"REMOTE_ADDR": "192.0.2.1"}) == [200] * 3
    assert made.codes("/?user=alice", 1, environ_base={"REMOTE_ADDR": "192.0.2.2"}) == [429]


@pytest.mark.parametrize("as_view", [True, False])
def test_two_lambdas_have_places_of_their_own(make_app: Make, as_view: bool) -> None:
    made = make_app()
    inner: list[int] = []

    def enter() -> str:
        inner.append(made.app.test_client().get("/second").status_code)
        return "in"

    first, second = concurrency_limited(1)(lambda: enter()), concurrency_limited(1)(lambda: "in")
    if not as_view:
        first, second = (functools.partial(lambda f: f(), view) for view in (first, second))
    made.app.add_url_rule("/first", "first", first)
    made.app.add_url_rule("/second", "second", second)
    assert made.codes("/first", 1) == [200]
    assert inner == [200]


def test_a_function_that_is_defined_again_goes_on_counting(make_app: Make) -> None:
    made = make_app()

    @made.app.get("/")
    def view() -> str:
        @rate_limited("2/minute")
        def send() -> None:
            return None

        send()
        return "sent"

    assert made.codes("/", 3) == [200, 200, 429]


def test_the_default_key_counts_where_a_limit_names_none(make_app: Make) -> None:
    made = make_app(REDIS_GUARD_DEFAULT_KEY="header:X-Api-Key", REDIS_GUARD_DEFAULT_LIMITS="9/hour")
    made.app.add_url_rule("/", "index", rate_limited("1/minute")(lambda: "in"))
    by_address = rate_limited("1/minute", key="address")(lambda: "in")
    made.app.add_url_rule("/address", "address", by_address)
    assert made.codes("/", 2, headers={"X-Api-Key": "a"}) == [200, 429]
    assert made.codes("/", 2, headers={"X-Api-Key": "b"}) == [200, 429]
    assert [
        made.client.get("/address", headers={"X-Api-Key": key}).status_code for key in "ab"
    ] == [200, 429]


def test_the_default_key_may_be_a_function(make_app: Make) -> None:
    made = make_app(REDIS_GUARD_DEFAULT_KEY=lambda: request.args["who"])
    made.app.add_url_rule("/", "index", rate_limited("1/minute")(lambda: "in"))
    assert made.codes("/?who=a", 2) == made.codes("/?who=b", 2) == [200, 429]


@pytest.mark.parametrize("key", ["cookie", 3.5, None])
def test_a_default_key_that_names_nobody_is_refused(make_app: Make, key: object) -> None:
    with pytest.raises(ConfigurationError, match="REDIS_GUARD_DEFAULT_KEY"):
        make_app(REDIS_GUARD_DEFAULT_KEY=key)


def test_views_classes_and_blueprints_are_exempt_from_limits_of_the_app(make_app: Make) -> None:
    made = make_app(REDIS_GUARD_DEFAULT_LIMITS="2/minute")
    outer, inner = Blueprint("outer", __name__), Blueprint("inner", __name__)
    inner.add_url_rule("/inner", "page", lambda: "in")
    outer.register_blueprint(inner)
    made.app.register_blueprint(outer)

    @made.app.get("/hook")
    @made.guard.exempt
    @rate_limited("3/minute")
    def hook() -> str:
        return "in"

    class Feed(MethodView):
        def get(self) -> str:
            return "in"

    made.app.add_url_rule("/feed", view_func=Feed.as_view("feed"))
    made.app.add_url_rule("/page", "page", lambda: "in")
    assert made.codes("/feed", 1) == made.codes("/inner", 1) == [200]
    for target in (Feed, outer):
        assert made.guard.exempt(target) is target
    assert made.codes("/page", 1) == [429]
    assert made.codes("/feed", 4) == made.codes("/inner", 4) == [200] * 4
    assert made.codes("/hook", 4) == [200] * 3 + [429]
    with pytest.raises(ConfigurationError, match="a view"):
        made.guard.exempt("page")


def test_an_exemption_may_stand_above_a_limit_and_a_route(make_app: Make) -> None:
    made = make_app(REDIS_GUARD_DEFAULT_LIMITS="1/minute")

    @made.guard.exempt
    @rate_limited("3/minute")
    @concurrency_limited(1)
    @made.app.get("/")
    def view() -> str:
        return "in"

    assert made.codes("/", 4) == [200] * 3 + [429]


def test_an_exemption_of_a_wrapper_does_not_reach_the_bare_function(make_app: Make) -> None:
    made = make_app(REDIS_GUARD_DEFAULT_LIMITS="1/minute")

    def view() -> str:
        return "in"

    @functools.wraps(view)
    def wrapper() -> str:
        return view()

    made.app.add_url_rule("/bare", "bare", view)
    made.app.add_url_rule("/", "index", made.guard.exempt(wrapper))
    assert made.codes("/", 3) == [200] * 3
    assert made.codes("/bare", 2) == [200, 429]


def test_an_endpoint_may_have_a_dot_without_a_blueprint(make_app: Make) -> None:
    made = make_app()
    made.app.add_url_rule("/free", "foo.free", lambda: "in")
    made.app.add_url_rule("/", "foo.bar", rate_limited("1/minute")(lambda: "in"))
    made.app.add_url_rule("/static/<filename>", "foo.static", lambda filename: filename)
    assert made.codes("/free", 2) == [200, 200]
    assert made.codes("/", 2) == [200, 429]
    made.guard.limit_app("1/minute")
    assert made.codes("/free", 2) == [200, 429]
    assert made.codes("/static/x", 1) == [429]


def test_static_files_are_exempt_wherever_their_folder_is_set(
    make_app: Make, tmp_path: Path
) -> None:
    (tmp_path / "style.css").write_text("a {}")
    made = make_app(REDIS_GUARD_DEFAULT_LIMITS="1/minute")
    made.app.static_folder = str(tmp_path)
    assert made.codes("/static/style.css", 3, buffered=True) == [200] * 3
    assert made.codes("/static/none.css", 2) == [404, 429]


def test_whatever_says_nothing_about_redis_refuses(make_app: Make) -> None:
    made = make_app(REDIS_GUARD_MAX_CONNECTIONS=1, REDIS_GUARD_TIMEOUT=0.2)
    for on_outage in ("allow", "local"):
        options: dict[str, Any] = {"on_outage": on_outage}
        made.app.add_url_rule(
            f"/{on_outage}", on_outage, rate_limited("1/minute", **options)(lambda: "in")
        )
    places = concurrency_limited(1, on_outage="allow")(lambda: "in")
    made.app.add_url_rule("/places", "places", places)
    paths = ("/allow", "/local", "/places")
    client = made.guard.client_for(made.app)
    connection = client.connection_pool.get_connection()
    try:
        assert [made.client.get(path).status_code for path in paths] == [503] * 3
    finally:
        client.connection_pool.release(connection)
    assert [made.client.get(path).status_code for path in paths] == [200] * 3

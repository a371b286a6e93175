"""Where limits apply: ahead of everything, on every kind of view, and what is exempt."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask, abort, g, request
from flask.views import MethodView

from flask_redis_guard import RateLimitExceeded, RedisGuard, rate_limited
from tests.integration.limits.conftest import Made
from tests.support import RedisServer

Make = Callable[..., Made]


def test_all_limits_of_a_request_cost_one_command(
    make_app: Make, redis_server: RedisServer
) -> None:
    made = make_app(REDIS_GUARD_DEFAULT_LIMITS="1000/hour; 100/minute")
    blueprint = Blueprint("shop", __name__)
    made.guard.limit_blueprint(blueprint, "50/minute")

    @blueprint.get("/buy")
    @rate_limited("5/minute; 20/hour")
    def buy() -> str:
        return "bought"

    made.app.register_blueprint(blueprint)
    assert made.codes("/buy", 5) == [200] * 5
    assert redis_server.calls("eval") == 1  # the script's first use
    assert redis_server.calls("evalsha") == 4
    before = redis_server.calls()
    assert made.codes("/buy", 20) == [429] * 20
    # One more asked, the others were remembered. Counts inside the script come on top.
    assert redis_server.calls("evalsha") == 5
    assert redis_server.calls() > before


def test_an_authentication_hook_in_front_hides_nothing(redis_server: RedisServer) -> None:
    app = Flask("tests")
    app.config.update(REDIS_URL=redis_server.url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0)

    @app.before_request
    def authenticate() -> None:
        abort(401)

    RedisGuard(app)

    @app.post("/login")
    @rate_limited("3/minute")
    def login() -> str:
        return "in"

    client = app.test_client()
    assert [client.post("/login").status_code for _ in range(5)] == [401] * 3 + [429] * 2


@pytest.mark.parametrize("wraps", [True, False])
def test_a_decorator_above_hides_nothing(make_app: Make, wraps: bool) -> None:
    made = make_app()

    def login_required(view: Callable[..., Any]) -> Callable[..., Any]:
        def unauthorised(*args: Any) -> Any:
            return ("who are you?", 401) if "nobody" in request.args else view(*args)

        if wraps:
            return functools.wraps(view)(unauthorised)
        unauthorised.__name__ = view.__name__
        return unauthorised

    def limited() -> str:
        return "in"

    view = login_required(rate_limited("2/minute")(_named(limited)))
    made.app.add_url_rule("/secret", "secret", view)
    assert made.codes("/secret?nobody=1", 3) == [401, 401, 429]


def _named(function: Callable[..., Any]) -> Callable[..., Any]:
    function.__qualname__ = "a_view_of_another_module"
    return function


def test_a_view_is_not_charged_for_a_limited_neighbour(make_app: Make) -> None:
    made = make_app()

    @made.app.get("/letter")
    @rate_limited("1/minute")
    def letter() -> str:
        return "sent"

    @made.app.get("/page")
    def page() -> str:
        return letter.__name__

    assert made.codes("/page", 3) == [200] * 3
    assert made.codes("/letter", 2) == [200, 429]


def test_pre_flights_static_files_and_health_are_exempt_from_app_limits(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    (tmp_path / "style.css").write_text("a {}")
    app = Flask("tests", static_folder=str(tmp_path), static_url_path="/static")
    app.config.update(
        REDIS_URL=redis_server.url,
        REDIS_GUARD_HEALTH_CHECK_INTERVAL=0,
        REDIS_GUARD_DEFAULT_LIMITS="2/minute",
    )
    RedisGuard(app)
    app.add_url_rule("/page", view_func=lambda: "page", endpoint="page")
    client = app.test_client()
    for path in ("/static/style.css", "/api/v1/health/live"):
        assert [client.get(path, buffered=True).status_code for _ in range(4)] == [200] * 4
    assert [client.options("/page").status_code for _ in range(4)] == [200] * 4
    assert [client.get("/page").status_code for _ in range(3)] == [200, 200, 429]
    assert client.get("/static/style.css", buffered=True).status_code == 200


def test_a_scan_of_unmatched_urls_is_limited(make_app: Make) -> None:
    made = make_app()
    made.guard.limit_app("3/minute")
    codes = [made.client.get(f"/wp-admin-{n}").status_code for n in range(5)]
    assert codes == [404, 404, 404, 429, 429]
    # So is one by methods, and an endpoint of the user's that is called "static".
    assert made.client.put("/api/v1/health/live").status_code == 429


def test_a_scan_under_static_urls_is_limited(redis_server: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "app.js").write_text("")
    app = Flask("tests", static_folder=str(tmp_path), static_url_path="")
    app.config.update(
        REDIS_URL=redis_server.url,
        REDIS_GUARD_HEALTH_CHECK_INTERVAL=0,
        REDIS_GUARD_DEFAULT_LIMITS="3/minute",
    )
    RedisGuard(app)
    blueprint = Blueprint("files", __name__, static_folder=str(tmp_path), url_prefix="/files")
    app.register_blueprint(blueprint)
    client = app.test_client()

    def code(path: str) -> int:
        with client.get(path) as response:
            return response.status_code

    files = ["/app.js", f"/files/{tmp_path.name}/app.js"]
    assert [code(path) for path in files * 2] == [200] * 4
    scan = [".env", "..%2f..%2fetc/passwd", f"files/{tmp_path.name}/no.js", "a%00b", ".git/config"]
    assert [code(f"/{path}") for path in scan] == [404, 404, 404, 429, 429]
    assert [code(path) for path in files] == [200, 200]


def test_an_own_endpoint_cannot_pose_as_static(make_app: Make) -> None:
    made = make_app(REDIS_GUARD_DEFAULT_LIMITS="1/minute")
    blueprint = Blueprint("files", __name__)
    blueprint.add_url_rule("/files/<filename>", "static", lambda filename: filename)
    made.app.register_blueprint(blueprint)
    assert made.codes("/files/a", 2) == [200, 429]


def test_method_views_and_methods_of_their_own(make_app: Make) -> None:
    made = make_app()

    class Account(MethodView):
        decorators = [rate_limited("2/minute", methods=["POST"])]  # noqa: RUF012

        def get(self) -> str:
            return "shown"

        def post(self) -> str:
            return "changed"

        @rate_limited("1/minute")
        def delete(self) -> str:
            return "deleted"

    made.app.add_url_rule("/account", view_func=Account.as_view("account"))
    assert made.codes("/account", 3) == [200] * 3
    assert made.codes("/account", 3, "POST") == [200, 200, 429]
    assert made.codes("/account", 2, "DELETE") == [200, 429]


def test_head_counts_as_get(make_app: Make) -> None:
    made = make_app()

    @made.app.get("/page")
    @rate_limited("2/minute", methods=["GET"])
    def page() -> str:
        return "page"

    assert made.codes("/page", 3, "HEAD") == [200, 200, 429]


def test_async_views_are_limited(make_app: Make) -> None:
    made = make_app()

    @rate_limited("1/minute")
    async def fetch() -> str:
        return "fetched"

    made.app.add_url_rule("/fetch", view_func=fetch)
    assert made.codes("/fetch", 2) == [200, 429]


def test_a_plain_function_counts_each_call(make_app: Make) -> None:
    made = make_app()

    @rate_limited("3/minute", key=lambda: "everybody")
    def send_letter() -> None:
        return None

    @made.app.get("/two")
    def two() -> str:
        send_letter()
        send_letter()
        return "sent"

    assert made.codes("/two", 2) == [200, 429]
    with made.app.app_context(), pytest.raises(RateLimitExceeded):
        send_letter()


def test_defer_waits_for_the_user(make_app: Make) -> None:
    made = make_app()

    @made.app.before_request
    def who() -> None:
        g.user = request.args.get("user")

    @made.app.get("/me")
    @rate_limited("1/minute", key=lambda: g.user, defer=True)
    def me() -> str:
        return "you"

    assert [made.client.get(f"/me?user={u}").status_code for u in "abba"] == [200, 200, 429, 429]


def test_a_shared_scope_is_one_count(make_app: Make) -> None:
    made = make_app()
    for name in ("one", "two"):
        view = rate_limited("3/minute", scope="both")(lambda: "done")
        made.app.add_url_rule(f"/{name}", name, view)
    assert made.codes("/one", 2) == [200, 200]
    assert made.codes("/two", 2) == [200, 429]


def test_two_apps_share_nothing(make_app: Make) -> None:
    one, two = make_app(), make_app(REDIS_GUARD_KEY_PREFIX="two:")
    view = rate_limited("1/minute")(lambda: "done")
    for made in (one, two):
        made.app.add_url_rule("/", "index", view)
    assert one.codes("/", 2) == two.codes("/", 2) == [200, 429]


def test_a_url_value_preprocessor_that_refuses_hides_nothing(make_app: Make) -> None:
    made = make_app()

    @made.app.url_value_preprocessor
    def find_tenant(endpoint: str | None, values: dict[str, Any] | None) -> None:
        if request.args.get("tenant") != "known":
            abort(404)

    made.app.add_url_rule("/", "index", rate_limited("2/minute")(lambda: "in"))
    assert made.codes("/?tenant=guessed", 3) == [404, 404, 429]
    assert made.codes("/?tenant=known", 1) == [429]


def test_a_key_may_need_what_a_url_value_preprocessor_found(make_app: Make) -> None:
    made = make_app()

    @made.app.url_value_preprocessor
    def find_tenant(endpoint: str | None, values: dict[str, Any] | None) -> None:
        if request.args["tenant"] == "unknown":
            abort(404)
        g.tenant = request.args["tenant"]

    view = rate_limited("1/minute", key=lambda: g.tenant)(lambda: "in")
    made.app.add_url_rule("/", "index", view)
    assert made.codes("/?tenant=a", 2) == [200, 429]
    assert made.codes("/?tenant=b", 1) == [200]
    assert made.codes("/?tenant=unknown", 2) == [404, 404]  # who would be counted is not known


def test_a_view_called_without_its_request_being_dispatched_is_limited(make_app: Make) -> None:
    made = make_app()

    @made.app.get("/")
    @rate_limited("2/minute")
    def view() -> str:
        return "in"

    for _ in range(2):
        with made.app.test_request_context("/"), made.app.test_request_context("/other"):
            assert view() == "in"
    with made.app.test_request_context("/"), pytest.raises(RateLimitExceeded):
        view()


def test_a_replaced_view_keeps_the_limits_of_the_new_one(make_app: Make) -> None:
    made = make_app()
    made.app.add_url_rule("/", "index", lambda: "unlimited")
    assert made.codes("/", 3) == [200] * 3
    made.app.view_functions["index"] = rate_limited("1/minute")(lambda: "limited")
    assert made.codes("/", 2) == [200, 429]


def test_nested_and_renamed_blueprints_are_limited(make_app: Make) -> None:
    made = make_app()
    outer, inner = Blueprint("outer", __name__), Blueprint("inner", __name__)
    inner.add_url_rule("/page", "page", lambda: "page")
    made.guard.limit_blueprint(outer, "2/minute")
    outer.register_blueprint(inner, name="renamed", url_prefix="/inner")
    made.app.register_blueprint(outer, name="other", url_prefix="/outer")
    assert made.codes("/outer/inner/page", 3) == [200, 200, 429]


def test_limits_hold_on_every_host_and_subdomain(redis_server: RedisServer) -> None:
    app = Flask("tests", subdomain_matching=True)
    app.config.update(
        REDIS_URL=redis_server.url,
        REDIS_GUARD_HEALTH_CHECK_INTERVAL=0,
        REDIS_GUARD_DEFAULT_LIMITS="3/minute",
        SERVER_NAME="example.org",
    )
    RedisGuard(app)
    app.add_url_rule("/", "api", lambda: "api", subdomain="<customer>", defaults=None)
    app.view_functions["api"] = lambda customer: customer
    client = app.test_client()
    hosts = ["a.example.org", "b.example.org", "c.example.org", "d.example.org"]
    codes = [client.get("/", base_url=f"http://{host}").status_code for host in hosts]
    assert codes == [200, 200, 200, 429]

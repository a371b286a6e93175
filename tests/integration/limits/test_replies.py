"""429 and 503 on the wire, checked with a structured-fields library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import redirect, request
from http_sfv.list import List as StructuredList

from flask_redis_guard import Rate, RateLimitExceeded, concurrency_limited, rate_limited
from tests.integration.limits.conftest import Made
from tests.support import RedisServer

Make = Callable[..., Made]


def parsed(field: str) -> dict[str, dict[str, Any]]:
    fields = StructuredList()
    fields.parse(field.encode())
    return {item.value: dict(item.params) for item in fields}


def limited(made: Made, *args: Any, **options: Any) -> Made:
    made.app.add_url_rule("/", "index", rate_limited(*args, **options)(lambda: "done"))
    return made


def test_every_limit_is_named_in_the_drafts_grammar(make_app: Make) -> None:
    made = make_app(REDIS_GUARD_DEFAULT_LIMITS="5/minute")
    limited(made, [Rate(5, 60), Rate(100, 3600, name='tricky "\\\u00fc name'), "7/day"])
    response = made.client.get("/")
    policy, now = (parsed(response.headers[h]) for h in ("RateLimit-Policy", "RateLimit"))
    assert policy == {
        "5/minute": {"q": 5, "w": 60},
        "5/minute (2)": {"q": 5, "w": 60},
        "tricky  name": {"q": 100, "w": 3600},
        "7/day": {"q": 7, "w": 86400},
    }
    assert list(now) == list(policy)
    assert now["5/minute"]["r"] == 4
    assert 0 < now["5/minute"]["t"] <= 60


def test_refusal(make_app: Make) -> None:
    made = limited(make_app(), "1/minute; 100/hour")
    made.client.get("/")
    response = made.client.get("/")
    assert response.status_code == 429
    assert response.mimetype == "application/problem+json"
    assert response.json is not None
    assert response.json["type"].endswith("#quota-exceeded")
    assert response.json["status"] == 429
    assert response.json["violated-policies"] == ["1/minute"]
    assert parsed(response.headers["RateLimit"])["1/minute"]["r"] == 0
    assert 55 <= int(response.headers["Retry-After"]) <= 60


def test_unavailable(make_app: Make, own_server: RedisServer) -> None:
    made = limited(make_app(REDIS_URL=own_server.url), "1/minute")
    own_server.kill()
    response = made.client.get("/")
    assert response.status_code == 503
    assert response.mimetype == "application/problem+json"
    assert response.json is not None
    assert response.json["type"].endswith("#temporary-reduced-capacity")
    assert int(response.headers["Retry-After"]) >= 1
    assert "RateLimit" not in response.headers
    assert str(own_server.port) not in response.get_data(as_text=True)


@pytest.mark.parametrize(
    ("style", "draft", "legacy"),
    [("draft", True, False), ("legacy", False, True), ("both", True, True), ("none", False, False)],
)
def test_header_styles(make_app: Make, style: str, draft: bool, legacy: bool) -> None:
    made = limited(make_app(REDIS_GUARD_RATE_LIMIT_HEADERS=style), "5/minute")
    headers = made.client.get("/").headers
    assert ("RateLimit" in headers) == ("RateLimit-Policy" in headers) == draft
    assert ("X-RateLimit-Remaining" in headers) == legacy


def test_a_limit_asked_many_times_is_named_once_and_gives_all_of_it_back(make_app: Make) -> None:
    made = make_app()

    @rate_limited("5/minute", refund_when=lambda response: response.status_code == 202)
    def send() -> str:
        return "sent"

    made.app.add_url_rule("/", "index", lambda: ([send() for _ in range(4)], 202))
    for _ in range(2):
        response = made.client.get("/")
        assert {n: p["r"] for n, p in parsed(response.headers["RateLimit"]).items()} == {
            "5/minute": 1
        }


def test_the_apps_own_handler_decides(make_app: Make) -> None:
    made = limited(make_app(), "1/minute")

    @made.app.errorhandler(RateLimitExceeded)
    def slow_down(error: RateLimitExceeded) -> tuple[str, int]:
        return f"at most {error.decision.rate}", 429

    made.client.get("/")
    response = made.client.get("/")
    assert response.get_data(as_text=True) == "at most 1/minute"
    assert int(response.headers["Retry-After"]) >= 55


def test_whoever_keeps_to_what_remains_keeps_to_the_rate(make_app: Make) -> None:
    made = make_app()
    rates = [
        Rate(100, 60, algorithm="token-bucket", name="bucket"),
        Rate(10, 60, burst=40, name="burst"),
        Rate(100, 60, name="window"),
        Rate(100, 3600, algorithm="fixed-window", name="fixed"),
    ]
    limited(made, rates)
    now = parsed(made.client.get("/").headers["RateLimit"])
    for rate in rates:
        told = now[str(rate.name)]
        assert told["r"] == rate.capacity - 1
        assert told["r"] * rate.per_seconds <= told["t"] * rate.limit
    assert now["bucket"]["t"] == 60
    assert now["burst"]["t"] == 234


def test_a_refusal_violates_what_the_header_names(make_app: Make) -> None:
    made = make_app(REDIS_GUARD_DEFAULT_LIMITS="2/minute", REDIS_GUARD_DENIAL_CACHE_SIZE=0)
    limited(made, "1/minute; 2/minute")
    made.app.add_url_rule("/other", "other", rate_limited("2/minute; 3/hour")(lambda: "done"))
    made.client.get("/")
    response = made.client.get("/")
    assert list(parsed(response.headers["RateLimit-Policy"])) == [
        "2/minute",
        "1/minute",
        "2/minute (2)",
    ]
    assert response.json is not None
    assert response.json["violated-policies"] == ["1/minute"]
    made.client.get("/other")
    response = made.client.get("/other")
    assert response.json is not None
    assert response.json["violated-policies"] == ["2/minute"]


def test_the_policies_stay_the_same_where_a_refusal_is_remembered(make_app: Make) -> None:
    made = make_app(REDIS_GUARD_DEFAULT_LIMITS="1/minute")
    limited(made, "5/minute", key=lambda: "other")
    policies = {made.client.get("/").headers["RateLimit-Policy"] for _ in range(4)}
    assert policies == {'"1/minute";q=1;w=60, "5/minute";q=5;w=60'}


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_at_once(make_app: Make, code: int) -> None:
    made = make_app(REDIS_GUARD_RATE_LIMIT_HEADERS="both")
    made.app.add_url_rule("/", "index", rate_limited("1/minute")(lambda: redirect("/to", code)))
    headers = made.client.get("/").headers
    assert [name for name, _ in headers.items() if "ratelimit" in name.lower()] == []


def test_concurrency_is_no_quota_of_requests(make_app: Make) -> None:
    made = make_app()
    inner: list[Any] = []

    @made.app.get("/")
    @concurrency_limited(2, key=lambda: request.args["who"])
    def view() -> str:
        if len(inner) < 2:
            inner.append(made.app.test_client().get("/?who=a"))
        return "in"

    response = made.client.get("/?who=a")
    assert response.headers["RateLimit-Policy"] == '"concurrency";q=2;qu="concurrent-requests"'
    assert parsed(response.headers["RateLimit-Policy"]) == {
        "concurrency": {"q": 2, "qu": "concurrent-requests"}
    }
    assert parsed(response.headers["RateLimit"]) == {"concurrency": {"r": 1}}
    refused = inner[0]
    assert refused.status_code == 429
    assert refused.json["violated-policies"] == ["concurrency"]
    assert parsed(refused.headers["RateLimit"])["concurrency"]["r"] == 0
    assert parsed(refused.headers["RateLimit"])["concurrency"]["t"] >= 55


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "application/problem+json"),
        ("*/*", "application/problem+json"),
        ("application/json, text/html", "application/problem+json"),
        ("text/html;q=0.3, application/problem+json;q=0.5", "application/problem+json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
        ("text/html", "text/html"),
    ],
)
@pytest.mark.parametrize("outage", [False, True])
def test_who_prefers_html_gets_a_page(
    make_app: Make, accept: str | None, kind: str, outage: bool
) -> None:
    url = {"REDIS_URL": "redis://127.0.0.1:1/0"} if outage else {}
    made = limited(make_app(**url), Rate(1, 60, name="<b>"))
    headers = {} if accept is None else {"Accept": accept}
    made.client.get("/", headers=headers)
    response = made.client.get("/", headers=headers)
    assert response.status_code == (503 if outage else 429)
    assert response.mimetype == kind
    assert response.headers["Cache-Control"] == "no-store"  # and so it needs no Vary
    assert int(response.headers["Retry-After"]) >= 1
    if kind == "text/html":
        text = response.get_data(as_text=True)
        assert text.startswith("<!doctype html>")
        assert '<meta name="viewport" content="width=device-width' in text  # readable on a phone
        assert ("Service Unavailable" if outage else "Too Many Requests") in text
        assert f"Try again in {response.headers['Retry-After']} s" in text


@pytest.mark.parametrize("style", ["draft", "both"])
def test_fields_of_a_view_itself_give_way(make_app: Make, style: str) -> None:
    made = make_app(REDIS_GUARD_RATE_LIMIT_HEADERS=style)
    upstream = {"RateLimit": '"up";r=1;t=1', "x-ratelimit-limit": "1", "X-Own": "kept"}
    view = rate_limited("5/minute")(lambda: ("done", 200, upstream))
    made.app.add_url_rule("/", "index", view)
    headers = made.client.get("/").headers
    assert [value for name, value in headers if name == "RateLimit"] == ['"5/minute";r=4;t=60']
    assert headers.getlist("X-RateLimit-Limit") == (["5"] if style == "both" else ["1"])
    assert headers["X-Own"] == "kept"


def test_a_response_that_is_made_without_wsgi_names_its_limits(make_app: Make) -> None:
    made = limited(make_app(), "5/minute")
    full_dispatch: Any = made.app.full_dispatch_request
    with made.app.test_request_context("/") as context:
        # From Flask 3.2 on it takes the context.
        arguments = (context,) if hasattr(context, "has_request") else ()
        response = full_dispatch(*arguments)
    assert parsed(response.headers["RateLimit"])["5/minute"]["r"] == 4
    assert response.headers["RateLimit-Policy"] == '"5/minute";q=5;w=60'


def test_an_app_inside_another_has_limits_of_its_own(make_app: Make) -> None:
    outer, inner = make_app(), limited(make_app(REDIS_GUARD_KEY_PREFIX="inner:"), "2/minute")
    limited(outer, "9/minute")
    outer.app.view_functions["index"] = rate_limited("9/minute")(lambda: inner.app.wsgi_app)
    responses = [outer.client.get("/") for _ in range(3)]
    assert [response.status_code for response in responses] == [200, 200, 429]
    assert "9/minute" in parsed(responses[-1].headers["RateLimit"])

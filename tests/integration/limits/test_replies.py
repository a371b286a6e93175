"""429 and 503 on the wire, checked with a structured-fields library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from http_sfv.list import List as StructuredList

from flask_redis_guard import Rate, RateLimitExceeded, rate_limited
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

"""``flask redis-guard limits`` and ``reset``."""

from __future__ import annotations

import decimal
import enum
import ipaddress
import json
import re
import uuid
from collections.abc import Callable

import pytest
from flask import Blueprint
from flask.views import MethodView

from flask_redis_guard import concurrency_limited, rate_limited, websocket_limited
from tests.integration.limits.conftest import Made
from tests.support import RedisServer

Make = Callable[..., Made]


@pytest.fixture
def made(make_app: Make) -> Made:
    made = make_app(REDIS_GUARD_DEFAULT_LIMITS="1000/hour", REDIS_GUARD_DENIAL_CACHE_SIZE=0)
    blueprint = Blueprint("shop", __name__)
    made.guard.limit_blueprint(blueprint, "50/minute", shadow=True)
    blueprint.add_url_rule("/shop", "buy", lambda: "bought")
    made.app.register_blueprint(blueprint)

    @made.app.post("/login")
    @rate_limited("2/minute", methods=["POST"])
    def login() -> str:
        return "in"

    @made.app.get("/mail")
    @rate_limited("1/minute", key="header:X-Api-Key")
    def mail() -> str:
        return "sent"

    @made.app.get("/later")
    @rate_limited("1/minute", key=lambda: 42, defer=True)
    def later() -> str:
        return "later"

    @made.app.get("/dynamic")
    @rate_limited(lambda: "1/minute")
    def dynamic() -> str:
        return "dynamic"

    return made


def run(made: Made, *arguments: str) -> tuple[int, str]:
    result = made.app.test_cli_runner().invoke(args=["redis-guard", *arguments])
    return result.exit_code, result.output


def test_limits_lists_every_route(made: Made) -> None:
    code, output = run(made, "limits")
    assert code == 0
    for part in ("1000/hour", "blueprint:shop", "/login", "2/minute", "header:X-Api-Key", "shadow"):
        assert part in output
    code, output = run(made, "limits", "--json")
    rows = [json.loads(line) for line in output.splitlines()]
    assert {row["scope"] for row in rows} >= {"app", "blueprint:shop", "endpoint:login"}
    assert next(row for row in rows if row["rule"] == "/login")["methods"] == ["POST"]


def test_reset_frees_one_subject(made: Made) -> None:
    assert made.codes("/login", 3, "POST") == [200, 200, 429]
    code, output = run(made, "reset", "192.0.2.1")
    assert code == 1
    assert output.endswith("Error: Nothing is counted of 192.0.2.1.\n")
    assert made.codes("/login", 1, "POST") == [429]
    assert run(made, "reset", "127.0.0.1", "--route", "login")[0] == 0
    assert made.codes("/login", 3, "POST") == [200, 200, 429]


@pytest.mark.parametrize(("path", "key"), [("/mail", "secret-key"), ("/later", "42")])
def test_reset_finds_other_subjects(made: Made, path: str, key: str) -> None:
    headers = {"X-Api-Key": "secret-key"}
    assert made.codes(path, 2, headers=headers) == [200, 429]
    assert run(made, "reset", key)[0] == 0
    assert made.codes(path, 2, headers=headers) == [200, 429]


def test_reset_route_frees_everybody(made: Made) -> None:
    for address in ("192.0.2.1", "192.0.2.2"):
        where = {"environ_base": {"REMOTE_ADDR": address}}
        assert made.codes("/login", 3, "POST", **where) == [200, 200, 429]
    assert run(made, "reset", "--route", "login") == (
        0,
        "Freed everybody: 2 counters were found and deleted.\n",
    )
    for address in ("192.0.2.1", "192.0.2.2"):
        where = {"environ_base": {"REMOTE_ADDR": address}}
        assert made.codes("/login", 1, "POST", **where) == [200]


def test_reset_route_frees_the_places_of_everybody(made: Made) -> None:
    inside: list[tuple[int, str]] = []

    @concurrency_limited(1, key="header:X-Api-Key", lease=30)
    def report() -> str:
        inside.append(run(made, "reset", "--route", "report"))
        with made.app.test_client() as other:
            headers = {"X-Api-Key": "a"}
            return str(other.get("/report", headers=headers).status_code if len(inside) < 2 else 0)

    made.app.add_url_rule("/report", "report", report)
    # The place of the one who asks is freed while it is held, so that somebody else gets it.
    assert made.client.get("/report", headers={"X-Api-Key": "a"}).text == "200"
    assert [code for code, _ in inside] == [0, 0]
    assert "1 counters were found" in inside[0][1]
    assert run(made, "reset", "--route", "report")[0] == 1  # nobody holds one now


def test_reset_frees_what_is_counted_under_a_functions_name(make_app: Make) -> None:
    made = make_app()

    class Account(MethodView):
        @rate_limited("1/minute")
        def get(self) -> str:
            return "shown"

    def undecorated() -> str:
        return "in"

    deferred = rate_limited("1/minute", defer=True)(undecorated)
    made.app.add_url_rule("/a", view_func=Account.as_view("a"))
    made.app.add_url_rule("/b", "b", deferred)
    for _ in range(2):
        assert made.codes("/a", 2) == made.codes("/b", 2) == [200, 429]
        assert run(made, "reset", "127.0.0.1") == (
            0,
            "Freed 127.0.0.1: 2 counters were found and deleted.\n",
        )


def test_reset_says_what_it_cannot_do(made: Made) -> None:
    assert run(made, "reset")[0] == 2
    code, output = run(made, "reset", "--route", "nowhere")
    assert code == 1
    assert "no limit of endpoint:nowhere" in output
    assert "worked out for each request" in run(made, "reset", "127.0.0.1", "--route", "dynamic")[1]


def test_reset_without_redis_fails(made: Made, own_server: RedisServer, make_app: Make) -> None:
    dead = make_app(REDIS_URL=own_server.url, REDIS_GUARD_DEFAULT_LIMITS="1/hour")
    own_server.kill()
    code, output = run(dead, "reset", "127.0.0.1")
    assert code == 1
    assert "unavailable" in output


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "typed"),
    [
        ("bob", "bob"),
        (b"bob", "bob"),
        (7.5, "7.5"),
        (True, "True"),
        (("a", 1), "('a', 1)"),
        (["a"], "['a']"),
        (uuid.UUID(int=7), str(uuid.UUID(int=7))),
        (decimal.Decimal("1.50"), "1.50"),
        (ipaddress.ip_address("192.0.2.1"), "192.0.2.1"),
        (Colour.RED, "Colour.RED"),
        (None, "127.0.0.1"),
    ],
)
def test_a_subject_is_found_as_key_functions_write_it(
    make_app: Make, value: object, typed: str
) -> None:
    made = make_app()
    view = rate_limited("1/minute", key=lambda: value)(lambda: "in")
    made.app.add_url_rule("/", "index", view)
    for _ in range(2):
        assert made.codes("/", 2) == [200, 429]
        code, output = run(made, "show", typed)
        assert code == 0
        assert "endpoint:index" in output
        # A busy machine may take some seconds from the request to the command.
        assert re.search(r"used 1 of 1, refused for (60|5\d) s, all free in (60|5\d) s", output)
        assert run(made, "reset", typed)[0] == 0
    assert run(made, "show", "alice") == (1, "Error: Nothing is counted of alice.\n")


def test_places_are_shown_and_freed(make_app: Make) -> None:
    made = make_app()
    shown: list[str] = []

    @made.app.get("/")
    @concurrency_limited(1, lease=30)
    def view() -> str:
        shown.append(run(made, "show", "127.0.0.1")[1])
        assert run(made, "reset", "127.0.0.1")[0] == 0
        return str(made.app.test_client().get("/").status_code if len(shown) == 1 else 0)

    assert made.client.get("/").get_data(as_text=True) == "200"
    assert "used 1 of 1, refused, all free in 30 s" in shown[0]
    assert run(made, "reset", "--route", "index")[0] == 1


def test_every_kind_of_limit_is_listed(made: Made) -> None:
    made.app.add_url_rule("/one", "one", concurrency_limited(2, lease=30)(lambda: "one"))
    handler = websocket_limited(
        connections="5/minute", concurrent=3, messages="60/minute", max_message_size=4096
    )(lambda ws: "")
    made.app.add_url_rule("/ws", "ws", handler, websocket=True)
    _, output = run(made, "limits", "--json")
    rows = [json.loads(line) for line in output.splitlines()]
    assert {(row["kind"], row["limit"]) for row in rows if row["rule"] in ("/one", "/ws")} == {
        ("at once", "2 at once"),
        ("at once", "3 at once"),
        ("connections", "5/minute"),
        ("messages", "60/minute"),
        ("message size", "4096 bytes"),
    }

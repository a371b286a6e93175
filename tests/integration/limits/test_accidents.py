"""No input and no accident makes a limit vanish."""

from __future__ import annotations

import decimal
import gc
import ipaddress
import logging
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import redis
from flask import Blueprint, Flask, Response, abort
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_redis_guard import (
    ConfigurationError,
    RedisGuard,
    concurrency_limited,
    rate_limit_exceeded,
    rate_limited,
)
from tests.integration.limits.conftest import Made
from tests.support import RedisServer

Make = Callable[..., Made]


def _broken() -> Any:
    raise KeyError("no such user")


async def _later() -> bool:
    return False


def limited(made: Made, *args: Any, **options: Any) -> Made:
    made.app.add_url_rule("/", "index", rate_limited(*args, **options)(lambda: "done"))
    return made


@pytest.mark.parametrize(
    "options",
    [
        {"rates": "2/minute", "key": _broken},
        {"rates": "2/minute", "exempt_when": _broken},
        {"rates": "2/minute", "cost": _broken},
        {"rates": "2/minute", "cost": lambda: 0},
        {"rates": "2/minute", "cost": lambda: -5},
        {"rates": "2/minute", "cost": lambda: 0.5},
        {"rates": "2/minute", "cost": lambda: True},
        {"rates": lambda: "many/minute"},
        {"rates": lambda: None},
        {"rates": lambda: ""},
        {"rates": list},
        {"rates": _broken},
        {"rates": "2/minute", "key": "user"},
        {"rates": "2/minute", "key": "session"},
        # What would be another subject at every request, and what is true without saying so.
        {"rates": "2/minute", "key": object},
        {"rates": "2/minute", "key": lambda: ("a", object())},
        {"rates": "2/minute", "exempt_when": lambda: _later()},
    ],
)
def test_what_cannot_be_worked_out_is_refused(make_app: Make, options: dict[str, Any]) -> None:
    made = limited(make_app(), **options)
    response = made.client.get("/")
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("nothing", [None, "", b""])
def test_a_key_that_gives_nothing_counts_the_address(make_app: Make, nothing: Any) -> None:
    made = limited(make_app(), "2/minute", key=lambda: nothing)
    assert made.codes("/", 3) == [200, 200, 429]
    assert made.codes("/", 1, environ_base={"REMOTE_ADDR": "192.0.2.9"}) == [200]


@pytest.mark.parametrize(
    "value",
    [
        "a",
        "a" * 100_000,
        "}{",
        "{a}",
        "\x00\xff",
        "\udcff",
        b"\x00\xff}",
        7,
        7.5,
        ("a", "b"),
        False,
    ],
)
def test_any_subject_is_counted(make_app: Make, redis_server: RedisServer, value: Any) -> None:
    made = limited(make_app(), "2/minute", key=lambda: value)
    assert made.codes("/", 3) == [200, 200, 429]
    for key in redis_server.client().scan_iter():
        assert len(key) < 80
        assert key.count("{") == key.count("}") == 1


def test_subjects_do_not_collide(make_app: Make) -> None:
    made = make_app()
    subjects = iter(["a", b"a", "61", 1, "1", True, "address", "127.0.0.1"])
    limited(made, "1/minute", key=lambda: next(subjects))
    assert made.codes("/", 8) == [200] * 8


def test_a_header_cannot_pose_as_an_address(make_app: Make) -> None:
    made = make_app()
    limited(made, "2/minute")
    for n in range(2):
        forwarded = {"X-Forwarded-For": f"10.0.0.{n}", "Forwarded": f"for=10.0.0.{n}"}
        assert made.client.get("/", headers=forwarded).status_code == 200
    assert made.client.get("/", headers={"X-Forwarded-For": "10.9.9.9"}).status_code == 429


def test_the_forms_of_an_address_are_one(make_app: Make) -> None:
    made = limited(make_app(), "2/minute")
    addresses = ["192.0.2.1", "::ffff:192.0.2.1", "::ffff:c000:201"]
    codes = [
        made.client.get("/", environ_base={"REMOTE_ADDR": address}).status_code
        for address in addresses
    ]
    assert codes == [200, 200, 429]
    network = ["2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:0:5::%eth0", "2001:db8:0:1::1"]
    codes = [
        made.client.get("/", environ_base={"REMOTE_ADDR": address}).status_code
        for address in network
    ]
    assert codes == [200, 200, 429, 200]


@pytest.mark.parametrize(
    ("addresses", "codes"),
    [
        # Some proxies write the port into X-Forwarded-For: each connection has another.
        (["192.0.2.1:4001", "192.0.2.1:4002", " 192.0.2.1"], [200, 200, 429]),
        (["[2001:db8::1]:4001", "[2001:db8::1]:4002", "[2001:db8::1]"], [200, 200, 429]),
        (["[::ffff:192.0.2.1]:4001", "[fe80::1%eth0]:1", "[fe80::2%eth1]:2"], [200, 200, 200]),
        # What a translator made of IPv4 is not one customer's network.
        (["64:ff9b::192.0.2.1", "64:ff9b::192.0.2.2", "64:ff9b::192.0.2.3"], [200] * 3),
        (["64:ff9b::192.0.2.1", "192.0.2.1", "192.0.2.1:80"], [200, 200, 429]),
        (["unknown", "unknown", "unknown"], [200, 200, 429]),
    ],
)
def test_neither_a_port_nor_a_translator_makes_another_client(
    make_app: Make, addresses: list[str], codes: list[int]
) -> None:
    made = limited(make_app(), "2/minute")
    made.app.wsgi_app = ProxyFix(made.app.wsgi_app)  # type: ignore[method-assign]
    assert [
        made.client.get("/", headers={"X-Forwarded-For": address}).status_code
        for address in addresses
    ] == codes


def test_a_missing_address_is_one_bucket(make_app: Make, caplog: pytest.LogCaptureFixture) -> None:
    made = limited(make_app(), "2/minute")
    assert made.codes("/", 3, environ_base={"REMOTE_ADDR": ""}) == [200, 200, 429]
    warnings = [r for r in caplog.records if "without a client address" in r.getMessage()]
    assert len(warnings) == 1


def test_a_proxy_that_is_not_trusted_is_reported_once(
    make_app: Make, caplog: pytest.LogCaptureFixture
) -> None:
    made = limited(make_app(), "9/minute")
    made.codes("/", 3, headers={"X-Forwarded-For": "192.0.2.1"})
    assert sum("ProxyFix" in record.getMessage() for record in caplog.records) == 1


def test_weak_limits_are_reported_once(make_app: Make, caplog: pytest.LogCaptureFixture) -> None:
    made = make_app()
    limited(made, "9/minute", key="header:X-Api-Key", on_outage="allow", shadow=True)
    made.codes("/", 2)
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert sum("does not fail closed" in message for message in messages) == 1
    assert sum("can change at will" in message for message in messages) == 1
    assert sum("shadow mode" in message for message in messages) == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rates": "often"}, "rates"),
        ({"rates": ""}, "rates"),
        ({"rates": "0/minute"}, "rates"),
        ({"rates": 5}, "rates"),
        ({"rates": "5/minute", "key": "cookie"}, "key"),
        ({"rates": "5/minute", "key": "header: X-Api-Key"}, "key"),
        ({"rates": "5/minute", "key": "header:X-Api-Key:"}, "key"),
        ({"rates": "5/minute", "shadow": "0"}, "shadow"),
        ({"rates": "5/minute", "defer": None}, "defer"),
        ({"rates": "5/minute", "scope": 5}, "scope"),
        ({"rates": "5/minute", "cost": 0}, "cost"),
        ({"rates": "5/minute", "cost": True}, "cost"),
        ({"rates": "5/minute", "methods": "POST"}, "methods"),
        ({"rates": "5/minute", "algorithm": "guess"}, "algorithm"),
        ({"rates": "5/minute", "on_outage": "shrug"}, "on_outage"),
        ({"rates": "5/minute", "exempt_when": True}, "exempt_when"),
        ({"rates": "5/minute", "methods": []}, "methods"),
        ({"rates": "5/minute", "methods": [None]}, "methods"),
        ({"rates": "5/minute", "key": _later}, "key"),
        ({"rates": "5/minute", "exempt_when": _later}, "exempt_when"),
        ({"rates": "5/minute", "refund_when": _later}, "refund_when"),
        ({"rates": _later}, "rates"),
    ],
)
def test_bad_arguments_stop_the_decoration(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        rate_limited(**options)


def test_parentheses_that_were_left_out_are_noticed_at_once(make_app: Make) -> None:
    app = make_app().app

    def view() -> str:
        return "in"

    def view_of(name: str) -> str:
        return name

    undecorated: Any = view
    with pytest.raises(ConfigurationError, match="in parentheses"):
        app.get("/a")(rate_limited(undecorated))
    with pytest.raises(ConfigurationError, match="in parentheses"):
        app.get("/b", endpoint="b")(rate_limited(undecorated))
    with pytest.raises(ConfigurationError, match="in parentheses"):
        rate_limited("5/minute")(rate_limited(undecorated))
    with pytest.raises(ConfigurationError, match="in parentheses"):
        rate_limited(undecorated)()  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError, match="in parentheses"):
        rate_limited(cast("Any", view_of))
    with pytest.raises(ConfigurationError, match="whole number"):
        concurrency_limited(undecorated)


def test_rates_may_come_from_a_function_with_a_name(make_app: Make) -> None:
    made = make_app()

    def rates() -> str:
        return "1/minute"

    made.app.add_url_rule("/", "index", rate_limited(rates)(lambda: "in"))
    assert made.codes("/", 2) == [200, 429]


@pytest.mark.parametrize("rates", ["5/min", "", "often", 5])
def test_what_is_no_rate_is_told_in_one_line(rates: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        rate_limited(rates)
    text = str(caught.value)
    assert text.startswith(f"rates is {rates!r}; accepted: Rate or text such as '5/minute'")
    assert text.count("accepted") == 1


def test_misspelt_options_are_named(make_app: Make) -> None:
    guard: Any = make_app().guard
    for limit in (guard.limit_app, partial(guard.limit_blueprint, Blueprint("a", __name__))):
        with pytest.raises(ConfigurationError, match=r"on_outge .* known: on_outage"):
            limit("5/minute", on_outge="deny")


def test_whole_apps_and_blueprints_have_nothing_to_defer(make_app: Make) -> None:
    guard = make_app().guard
    for limit in (guard.limit_app, partial(guard.limit_blueprint, Blueprint("a", __name__))):
        with pytest.raises(ConfigurationError, match="defer"):
            limit("5/minute", defer=True)


def test_whole_apps_and_blueprints_are_named_by_themselves(make_app: Make) -> None:
    guard: Any = make_app().guard
    with pytest.raises(ConfigurationError, match="app"):
        guard.limit_app("5/minute", app="tests")
    with pytest.raises(ConfigurationError, match="blueprint"):
        guard.limit_blueprint("shop", "5/minute")


def test_limits_on_a_guard_without_an_app_are_reported(
    make_app: Make, caplog: pytest.LogCaptureFixture
) -> None:
    gc.collect()  # guards of other tests
    made = make_app()
    other = RedisGuard()  # as a second one made by mistake
    other.limit_app("1/minute")
    made.codes("/", 2)
    assert caplog.text.count("guards no app") == 1
    caplog.clear()
    made = make_app()
    other.init_app(Flask("other"))
    made.codes("/", 2)
    assert "guards no app" not in caplog.text


def test_an_error_reply_refuses(make_app: Make, redis_server: RedisServer) -> None:
    made = limited(make_app(), "2/minute")
    assert made.codes("/", 1) == [200]
    client: redis.Redis = redis_server.client()
    (key,) = client.keys()
    client.delete(key)
    client.rpush(key, "not a counter")
    assert made.codes("/", 2) == [503, 503]


def test_an_abort_in_a_key_is_the_answer(make_app: Make) -> None:
    made = limited(make_app(), "2/minute", key=lambda: abort(401))
    assert made.codes("/", 1) == [401]


def test_shadow_mode_counts_and_announces_only(make_app: Make) -> None:
    made = limited(make_app(), "1/minute", shadow=True)
    heard: list[dict[str, Any]] = []

    def hear(app: Any, **event: Any) -> None:
        heard.append(event)

    with rate_limit_exceeded.connected_to(hear, made.app):
        assert made.codes("/", 3) == [200] * 3
    assert [event["shadow"] for event in heard] == [True, True]
    assert not heard[0]["decision"].allowed
    assert heard[0]["endpoint"] == "index"


@pytest.mark.parametrize("fault", [_broken, lambda: abort(400)])
def test_a_fault_in_a_shadow_limit_refuses_nobody(
    make_app: Make, fault: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    made = make_app()
    made.guard.limit_app("2/minute")
    limited(made, "1/minute", key=fault, shadow=True)
    assert made.codes("/", 3) == [200, 200, 429]
    assert "could not be worked out" in caplog.text


def test_refund_gives_back_what_succeeded(make_app: Make) -> None:
    made = make_app()
    statuses = iter([200, 200, 401, 401, 200])
    view = rate_limited("2/minute", refund_when=lambda response: response.status_code == 200)(
        lambda: Response("", next(statuses))
    )
    made.app.add_url_rule("/", "index", view)
    assert made.codes("/", 5) == [200, 200, 401, 401, 429]


@pytest.mark.parametrize(
    ("on_outage", "codes"),
    [("deny", [503] * 4), ("allow", [200] * 4), ("local", [200, 200, 429, 429])],
)
def test_on_outage(
    own_server: RedisServer, make_app: Make, on_outage: str, codes: list[int]
) -> None:
    made = limited(make_app(REDIS_URL=own_server.url), "2/minute", on_outage=on_outage)
    own_server.kill()
    assert made.codes("/", 4) == codes


def test_an_awaitable_refunds_nothing(make_app: Make) -> None:
    made = limited(make_app(), "2/minute", refund_when=lambda response: _later())
    assert made.codes("/", 3) == [200, 200, 429]


def test_subjects_of_the_usual_types_last(make_app: Make) -> None:
    address = ipaddress.ip_address("192.0.2.1")
    for value in (uuid.UUID(int=7), address, decimal.Decimal(7), ["a", 1]):
        made = limited(make_app(), "2/minute", key=lambda value=value: value)
        assert made.codes("/", 3) == [200, 200, 429]


@pytest.mark.parametrize("failing", [KeyError("boom"), RuntimeError("boom")])
def test_a_receiver_that_fails_lets_nobody_in(make_app: Make, failing: Exception) -> None:
    made = limited(make_app(), "1/minute")

    def fail(app: Any, **event: Any) -> None:
        raise failing

    with rate_limit_exceeded.connected_to(fail, made.app):
        assert made.codes("/", 3) == [200, 429, 429]


def test_in_development_the_in_memory_store_limits_as_well(make_app: Make) -> None:
    made = limited(make_app(REDIS_URL="memory://", ENVIRONMENT="development"), "2/minute; 30/hour")
    assert made.codes("/", 3) == [200, 200, 429]

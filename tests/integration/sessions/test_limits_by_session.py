"""Limits that count the user or the session that a request brought."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient

from flask_redis_guard import rate_limited
from tests.support import RedisServer

from .conftest import Setup, round_trips

HERE, THERE = "192.0.2.1", "198.51.100.1"


@pytest.fixture
def limits(setup: Setup) -> Setup:
    for kind in ("user", "session"):

        @rate_limited("3/minute", key=kind)
        def view() -> str:
            return "ok"

        setup.app.add_url_rule(f"/by-{kind}", f"by-{kind}", view)
    return setup


def statuses(client: FlaskClient, path: str, *addresses: str) -> list[int]:
    return [
        client.get(path, environ_base={"REMOTE_ADDR": address}).status_code for address in addresses
    ]


def test_a_user_is_counted_from_every_address_and_browser(limits: Setup) -> None:
    one, two = limits.client(), limits.client()
    for client in (one, two):
        client.post("/login/5")
    assert statuses(one, "/by-user", *(f"192.0.2.{n}" for n in range(2))) == [200] * 2
    assert statuses(two, "/by-user", *(f"192.0.2.{n}" for n in range(2, 4))) == [200, 429]
    other = limits.client()
    other.post("/login/6")
    assert statuses(other, "/by-user", "192.0.2.1") == [200]  # behind the first one's address


def test_who_ended_is_counted_by_address(limits: Setup) -> None:
    client = limits.client()
    client.post("/login/5")
    assert statuses(client, "/by-user", *[HERE] * 4) == [200, 200, 200, 429]
    limits.store.revoke_user(5)
    assert statuses(client, "/by-user", *[HERE] * 4) == [200, 200, 200, 429]
    assert statuses(client, "/by-user", THERE) == [200]


def test_only_a_stored_session_counts(limits: Setup) -> None:
    """A client that names none, or forges one each time, is counted by its address."""
    for _ in range(3):
        assert statuses(limits.client(), "/by-session", HERE) == [200]
    forger = limits.client()
    forger.set_cookie("session", limits.store.new_id() + "." + "A" * 43)
    assert statuses(forger, "/by-session", HERE) == [429]
    real = limits.client()
    real.post("/write", json={"a": 1})
    assert statuses(real, "/by-session", *[HERE, THERE] * 2) == [200, 200, 200, 429]
    assert statuses(limits.client(), "/by-session", HERE, THERE) == [429, 200]


def test_limit_and_session_are_two_round_trips(limits: Setup, redis_server: RedisServer) -> None:
    client = limits.client()
    client.post("/login/5")
    client.get("/by-user")
    with round_trips(redis_server) as asked:
        client.get("/by-user")
    assert asked == ["EVALSHA", "EVALSHA"]


def test_an_operator_frees_a_user_by_their_own_id(limits: Setup) -> None:
    client = limits.client()
    client.post("/login/bob")
    assert statuses(client, "/by-user", *[HERE] * 4) == [200, 200, 200, 429]
    result = limits.app.test_cli_runner().invoke(args=["redis-guard", "reset", "bob"])
    assert result.exit_code == 0, result.output
    assert statuses(client, "/by-user", HERE) == [200]

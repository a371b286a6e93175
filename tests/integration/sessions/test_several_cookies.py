"""Several cookies of the session's name: the first whose session is alive is the one."""

from __future__ import annotations

import itertools

import pytest
from flask.testing import FlaskClient

from tests.support import ClusterSetup
from tests.support.session_apps import session_app

from .conftest import Setup, cookie_of, round_trips


def read(setup: Setup, *cookies: str) -> object:
    plain = setup.app.test_client(use_cookies=False)
    header = "; ".join(f"session={cookie}" for cookie in cookies)
    return plain.get("/read", headers={"Cookie": header}).json


def dead_cookie(setup: Setup, user: str | None = None) -> str:
    client = setup.client()
    client.post(f"/login/{user}") if user else client.post("/write", json={"old": True})
    cookie = cookie_of(client)
    client.post("/logout")
    return cookie


@pytest.fixture
def live(setup: Setup) -> FlaskClient:
    client = setup.client()
    client.post("/login/5")
    return client


def test_a_dead_one_that_comes_first_shadows_nothing(setup: Setup, live: FlaskClient) -> None:
    dead = [dead_cookie(setup), dead_cookie(setup, "5"), dead_cookie(setup, "6")]
    alive = cookie_of(live)
    for order in itertools.permutations([*dead[:2], "forged", alive]):
        assert read(setup, *order) == {"user": "5"}
    assert read(setup, *dead) == {}
    for cookies in ([alive, dead[2]], [dead[2], alive], [alive] * 3):
        with round_trips(setup.server) as asked:
            assert read(setup, *cookies) == {"user": "5"}
        assert asked == ["EVALSHA"]


def test_of_two_that_are_alive_the_first_counts(setup: Setup, live: FlaskClient) -> None:
    other = setup.client()
    other.post("/login/6")
    assert read(setup, cookie_of(live), cookie_of(other)) == {"user": "5"}
    assert read(setup, cookie_of(other), cookie_of(live)) == {"user": "6"}


def test_the_one_that_is_found_lives_longer_and_no_other(setup: Setup, live: FlaskClient) -> None:
    other = setup.client()
    other.post("/write", json={"a": 1})
    with setup.server.client() as plain:
        for key in setup.stored_keys():
            plain.pexpire(key, 5000)
        read(setup, dead_cookie(setup), cookie_of(live), cookie_of(other))
        renewed = [key for key in setup.stored_keys() if plain.pttl(key) > 5000]
    assert len(renewed) == 2  # the session and the index of its user
    assert len(setup.stored_keys()) == 3


def test_a_change_goes_to_the_one_that_was_found(setup: Setup, live: FlaskClient) -> None:
    plain = setup.app.test_client(use_cookies=False)
    header = f"session={dead_cookie(setup)}; session={cookie_of(live)}"
    response = plain.post("/write", json={"b": 1}, headers={"Cookie": header})
    assert cookie_of(live) in response.headers["Set-Cookie"]
    assert live.get("/read").json == {"user": "5", "b": 1}


def test_one_that_cannot_be_read_is_no_reason_to_take_the_next(setup: Setup) -> None:
    broken, other = setup.client(), setup.client()
    broken.post("/write", json={"a": 1})
    with setup.server.client() as plain:
        plain.hset(setup.stored_keys()[0], '"a"', "no json")
    other.post("/login/6")
    assert read(setup, cookie_of(broken), cookie_of(other)) == {}


def test_on_a_cluster_they_are_asked_for_one_by_one(cluster_setup: ClusterSetup) -> None:
    app, _ = session_app(cluster_setup.url, REDIS_GUARD_TIMEOUT=2)
    dead, alive = app.test_client(), app.test_client()
    dead.post("/login/5")
    cookies = [cookie_of(dead)]
    dead.post("/logout")
    alive.post("/login/6")
    cookies.append(cookie_of(alive))
    plain = app.test_client(use_cookies=False)
    header = "; ".join(f"session={cookie}" for cookie in cookies)
    assert plain.get("/read", headers={"Cookie": header}).json == {"user": "6"}

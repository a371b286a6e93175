"""Whose a session is: who is bound to it, until when, and how a request is told apart by it."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, IntEnum

import pytest
from flask import Response, flash, jsonify
from markupsafe import Markup

from flask_redis_guard import SessionStore, session
from flask_redis_guard.sessions.ids import new_id, user_tag
from flask_redis_guard.web.sessions.session import Identity
from tests.support import RedisServer
from tests.support.session_apps import session_app

from .conftest import Setup, round_trips

MakeSetup = Callable[..., Setup]


class Name(str, Enum):
    BOB = "bob"


class Number(IntEnum):
    FIVE = 5


def with_goodbye(setup: Setup) -> None:
    @setup.app.post("/goodbye")
    def goodbye() -> Response:
        session.clear()
        flash("goodbye")
        return jsonify(sid=session.sid)


# -- after a logout ------------------------------------------------------------------------


def test_what_is_put_in_after_clearing_belongs_to_nobody(setup: Setup) -> None:
    with_goodbye(setup)
    client = setup.client()
    client.post("/login/5")
    sid = client.post("/goodbye").json["sid"]  # type: ignore[index]
    assert sid.startswith("a")
    assert user_tag(5) not in sid
    assert setup.store.revoke_user(5) == 0
    assert client.get("/read").json == {"_flashes": [[" t", ["message", "goodbye"]]]} or (
        client.get("/read").json == {"_flashes": [["message", "goodbye"]]}
    )
    assert len(setup.stored_keys()) == 1  # no index of the user is left


def test_logouts_with_a_message_push_no_session_out(make_setup: MakeSetup) -> None:
    setup = make_setup(REDIS_GUARD_SESSION_MAX_PER_USER=3)
    with_goodbye(setup)
    real = setup.client()
    real.post("/login/5")
    for _ in range(3):
        other = setup.client()
        other.post("/login/5")
        other.post("/goodbye")
    assert real.get("/read").json == {"user": "5"}
    assert setup.store.revoke_user(5) == 1


def test_clearing_takes_back_a_login_of_the_same_request(setup: Setup) -> None:
    @setup.app.post("/undo")
    def undo() -> str:
        session.bind_user(5)
        session.clear()
        session["a"] = 1
        return session.sid

    fresh, known = setup.client(), setup.client()
    known.post("/login/6")
    for client in (fresh, known):
        assert client.post("/undo").text.startswith("a")
        assert client.get("/read").json == {"a": 1}
    assert setup.store.revoke_user(5) == setup.store.revoke_user(6) == 0


def test_a_login_after_clearing_is_one(setup: Setup) -> None:
    @setup.app.post("/again")
    def again() -> str:
        session.clear()
        session["user"] = 6
        session.bind_user(6)
        return "logged in"

    client = setup.client()
    client.post("/login/5")
    client.post("/again")
    assert setup.store.revoke_user(5) == 0
    assert client.get("/read").json == {"user": 6}
    assert setup.store.revoke_user(6) == 1


# -- what names a user ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user_id", "text"), [(Name.BOB, "bob"), (Number.FIVE, "5"), (Markup("bob"), "bob")]
)
def test_an_id_of_a_kind_of_its_own_names_whom_its_value_names(
    store: SessionStore, user_id: str | int, text: str
) -> None:
    bound = store.new_id(user_id)
    store.set(bound, {})
    assert store.revoke_user(text) == 1
    store.set(store.new_id(text), {})
    assert store.revoke_user(user_id) == 1


def test_apps_with_a_prefix_each_do_not_revoke_each_others_users(
    redis_server: RedisServer, setup: Setup
) -> None:
    other, guard = session_app(redis_server.url, REDIS_GUARD_KEY_PREFIX="other:")
    here, there = setup.client(), other.test_client()
    here.post("/login/5")
    there.post("/login/5")
    assert guard.sessions_for(other).revoke_user(5) == 1
    assert here.get("/read").json == {"user": "5"}
    assert there.get("/read").json == {}


# -- telling a request apart by its session ------------------------------------------------


def with_identity(setup: Setup) -> list[Identity]:
    told: list[Identity] = []

    @setup.app.before_request
    def ask() -> None:
        told.append(session.identity())

    return told


def test_the_identity_is_that_of_a_session_which_is_stored(setup: Setup) -> None:
    told = with_identity(setup)
    client = setup.client()
    client.get("/untouched")
    assert told.pop() == (None, None)
    client.post("/write", json={"a": 1})
    assert told.pop() == (None, None)  # nothing was stored when it came
    client.get("/untouched")
    anonymous = told.pop()
    assert anonymous.session_id is not None
    assert anonymous.user is None
    sid = client.post("/login/5").json["sid"]  # type: ignore[index]
    assert told.pop() == anonymous
    client.get("/untouched")
    assert told.pop() == (sid, user_tag(5))
    setup.store.revoke_user("5")
    client.get("/untouched")
    assert told.pop() == (None, None)


def test_a_forged_cookie_has_no_identity_and_asks_nobody(setup: Setup) -> None:
    told = with_identity(setup)
    client = setup.client()
    client.set_cookie("session", f"{new_id(5)}.{'A' * 43}")
    with round_trips(setup.server) as asked:
        client.get("/untouched")
    assert told == [(None, None)]
    assert asked == []


def test_the_identity_takes_the_round_trip_of_the_session_itself(setup: Setup) -> None:
    told = with_identity(setup)
    client = setup.client()
    client.post("/login/5")
    client.get("/read")
    with round_trips(setup.server) as asked:
        assert client.get("/read").json == {"user": "5"}
    assert asked == ["EVALSHA"]
    assert told[-1].user == user_tag(5)


def test_the_identity_stays_the_same_when_the_session_changes_hands(setup: Setup) -> None:
    told: list[Identity] = []

    @setup.app.post("/twice")
    def twice() -> str:
        told.append(session.identity())
        session.bind_user(6)
        told.append(session.identity())
        return ""

    @setup.app.teardown_request
    def after(error: BaseException | None) -> None:
        if told:
            told.append(session.identity())

    client = setup.client()
    client.post("/login/5")
    client.post("/twice")
    assert {identity.user for identity in told} == {user_tag(5)}
    assert len({identity.session_id for identity in told}) == 1
    assert len(told) == 3

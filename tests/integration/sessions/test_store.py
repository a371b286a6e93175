"""``SessionStore``: the explicit interface, for apps that carry a token themselves."""

from __future__ import annotations

import secrets
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from markupsafe import Markup

from flask_redis_guard import RedisUnavailable, SessionStore, SessionTooLarge, session_unreadable
from tests.support import RedisServer, eventually
from tests.support.session_apps import session_app

from .conftest import Setup


def test_a_session_is_there_until_it_is_deleted(store: SessionStore) -> None:
    token = store.new_id()
    assert store.get(token) is None
    store.set(token, {"user": 5, "roles": ["admin"]})
    assert store.get(token) == {"user": 5, "roles": ["admin"]}
    assert store.delete(token) is True
    assert store.get(token) is None
    assert store.delete(token) is False


def test_an_empty_session_is_a_session(store: SessionStore) -> None:
    store.set("token", {})
    assert store.get("token") == {}
    assert store.delete("token") is True


def test_set_replaces_all_of_what_was_there(store: SessionStore) -> None:
    store.set("token", {"a": 1, "b": 2})
    store.set("token", {"b": 3})
    assert store.get("token") == {"b": 3}


def test_values_keep_the_types_of_flasks_own_session(store: SessionStore) -> None:
    data: dict[str, Any] = {
        "bytes": b"\xff\x00",
        "tuple": (1, (2, 3)),
        "uuid": UUID(int=7),
        "markup": Markup("<b>"),
        "nested": {"list": [None, True, 1.5, "text"], " t": 1},
        "": "the empty key",
        "\ud800": "half a surrogate \udfff",
        'quote"\n': 1,
        "v": "as the marker",
    }
    store.set("token", data)
    assert store.get("token") == data


@pytest.mark.parametrize("expire", [0.2, timedelta(milliseconds=200)])
def test_a_session_expires(store: SessionStore, expire: float | timedelta) -> None:
    store.set("token", {"a": 1}, expire=expire)
    assert store.get("token") == {"a": 1}
    eventually(lambda: store.get("token") is None, 2)


def test_looking_at_a_session_does_not_make_it_live_longer(
    store: SessionStore, redis_server: RedisServer
) -> None:
    store.set("token", {"a": 1}, expire=100)
    with redis_server.client() as plain:
        (key,) = plain.keys("*")
        plain.pexpire(key, 50_000)
        assert store.get("token") == {"a": 1}
        assert 0 < plain.pttl(key) <= 50_000


@pytest.mark.parametrize("expire", [0, -1, float("nan"), float("inf"), timedelta(0), 10**12])
def test_a_lifetime_that_is_none_is_refused(store: SessionStore, expire: Any) -> None:
    with pytest.raises(ValueError, match="expire"):
        store.set("token", {}, expire=expire)


@pytest.mark.parametrize("session_id", [None, 5, b"token"])
def test_an_id_that_is_no_text_is_refused(store: SessionStore, session_id: Any) -> None:
    for call in (store.get, store.delete, lambda token: store.set(token, {})):
        with pytest.raises(ValueError, match="session id"):
            call(session_id)


def test_a_request_without_a_token_has_no_session(store: SessionStore) -> None:
    assert store.get("") is None
    assert store.delete("") is False
    with pytest.raises(ValueError, match="session id"):
        store.set("", {"a": 1})


def test_nothing_on_the_server_tells_an_id(setup: Setup) -> None:
    ours, mine = setup.store.new_id(5), "my-own-token" + secrets.token_hex()
    with setup.app.app_context():
        setup.store.set(ours, {"a": 1})
        setup.store.set(mine, {"a": 1})
    keys = " ".join(setup.stored_keys())
    assert len(setup.stored_keys()) == 3  # two sessions and the index of user 5
    for part in (ours, ours[1:21], ours[21:], mine, "my-own"):
        assert part not in keys


def test_keys_are_of_one_length_whatever_the_id(store: SessionStore, setup: Setup) -> None:
    for token in ("x", "x" * 10_000, "a{b}c\x00*", store.new_id(), "å\ud800"):
        store.set(token, {})
    assert len({len(key) for key in setup.stored_keys()}) == 1


def test_ids_have_256_bits_and_never_repeat(store: SessionStore) -> None:
    tokens = {store.new_id(5) for _ in range(1000)}
    secret_parts = {token[-43:] for token in tokens}
    assert len(secret_parts) == 1000
    assert len({token[:-43] for token in tokens}) == 1  # the user's slot


# -- users ---------------------------------------------------------------------------------


def test_revoking_a_user_ends_all_of_their_sessions_and_nobody_elses(store: SessionStore) -> None:
    theirs = [store.new_id(5) for _ in range(20)]
    others = [store.new_id(6), store.new_id(), "my own token"]
    for token in theirs + others:
        store.set(token, {"a": 1})
    assert store.revoke_user(5) == 20
    assert [store.get(token) for token in theirs] == [None] * 20
    assert [store.get(token) for token in others] == [{"a": 1}] * 3
    assert store.revoke_user(5) == 0


def test_a_number_and_its_text_are_the_same_user(store: SessionStore) -> None:
    for bound, revoked in ((5, "5"), ("6", 6), (UUID(int=7), str(UUID(int=7)))):
        token = store.new_id(bound)
        store.set(token, {})
        assert store.revoke_user(revoked) == 1
        assert store.get(token) is None


@pytest.mark.parametrize("user_id", ["", None, True, 1.5, b"5", object()])
def test_an_id_that_names_nobody_is_refused(store: SessionStore, user_id: Any) -> None:
    with pytest.raises(ValueError, match="user id"):
        store.revoke_user(user_id)
    if user_id is not None:
        with pytest.raises(ValueError, match="user id"):
            store.new_id(user_id)


def test_the_index_forgets_what_was_deleted_and_what_expired(
    store: SessionStore, redis_server: RedisServer
) -> None:
    kept, deleted, expired = (store.new_id(5) for _ in range(3))
    store.set(kept, {})
    store.set(deleted, {})
    store.set(expired, {}, expire=0.05)
    store.delete(deleted)
    eventually(lambda: store.get(expired) is None, 2)
    store.set(store.new_id(5), {})
    with redis_server.client() as plain:
        (index,) = plain.keys("*sessions:*")
        assert plain.zcard(index) == 2


def test_the_index_goes_with_the_last_session(
    store: SessionStore, redis_server: RedisServer
) -> None:
    token = store.new_id(5)
    store.set(token, {})
    store.delete(token)
    store.set(store.new_id(5), {}, expire=0.05)
    with redis_server.client() as plain:
        eventually(lambda: plain.dbsize() == 0, 5)


def test_the_index_lives_as_long_as_the_longest_session(
    store: SessionStore, redis_server: RedisServer
) -> None:
    long = store.new_id(5)
    store.set(long, {}, expire=1000)
    store.set(store.new_id(5), {}, expire=1)
    with redis_server.client() as plain:
        (index,) = plain.keys("*sessions:*")
        assert plain.pttl(index) > 990_000


def test_a_users_sessions_are_bounded_and_the_soonest_to_expire_goes_first(
    redis_server: RedisServer,
) -> None:
    with redis_server.client() as client:
        store = SessionStore(client, max_per_user=3)
        tokens = [store.new_id(5) for _ in range(4)]
        for token, expire in zip(tokens, (300, 100, 200, 50), strict=True):
            store.set(token, {}, expire=expire)
        assert [store.get(token) is not None for token in tokens] == [True, False, True, True]
        store.set(tokens[0], {"again": True}, expire=10)  # no fourth one
        assert [store.get(token) is not None for token in tokens] == [True, False, True, True]
        assert store.revoke_user(5) == 3


# -- limits and what cannot be read --------------------------------------------------------


def test_a_session_that_is_too_large_is_not_stored_and_the_error_names_the_key(
    redis_server: RedisServer,
) -> None:
    with redis_server.client() as client:
        store = SessionStore(client, max_bytes=1000)
        store.set("token", {"a": "x" * 900})
        with pytest.raises(SessionTooLarge, match=r'1000 bytes.*"cart", 1008 bytes') as raised:
            store.set("token", {"a": 1, "cart": "x" * 1000})
        assert isinstance(raised.value, ValueError)
        assert store.get("token") == {"a": "x" * 900}


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ('"a"', "{", "payload"),
        ('"a"', "\xff", "payload"),
        ('"a"', '{" u":"no uuid"}', "payload"),
        ('"a"', '{" b":5}', "payload"),
        ('"a"', '{" di":{}}', "payload"),
        ('"a"', '{" d":"Mon, 01 Jan 99999999999999999999 00:00:00 GMT"}', "payload"),
        ('"a"', "[" * 100_000, "payload"),
        ('"a', "1", "payload"),
        ("v", "2", "format"),
        ("v", None, "format"),
    ],
)
def test_what_cannot_be_read_is_no_session_and_is_told_of(
    setup: Setup, caplog: pytest.LogCaptureFixture, field: str, value: str | None, reason: str
) -> None:
    told: list[str] = []

    def receive(app: object, reason: str) -> None:
        assert app is setup.app
        told.append(reason)

    setup.store.set("token", {"a": 1, "b": 2})
    with setup.server.client(encoding="latin-1") as plain:
        (key,) = plain.keys("*")
        plain.hdel(key, field) if value is None else plain.hset(key, field, value)
    with session_unreadable.connected_to(receive, setup.app):
        assert setup.store.get("token") is None
    assert told == [reason]
    assert "cannot be read" in caplog.text
    assert caplog.records[-1].reason == reason  # type: ignore[attr-defined]


def test_every_error_of_the_server_refuses(setup: Setup) -> None:
    setup.store.set("token", {"a": 1})
    with setup.server.client() as plain:
        (key,) = plain.keys("*")
        plain.delete(key)
        plain.set(key, "of another type")
    for call in (setup.store.get, setup.store.delete):
        with pytest.raises(RedisUnavailable) as raised:
            call("token")
        assert raised.value.reason == "rejected"


def test_each_operation_raises_when_there_is_no_server(own_server: RedisServer) -> None:
    app, guard = session_app(own_server.url)
    store = guard.sessions_for(app)
    store.set("token", {"a": 1})
    own_server.kill()
    for call in (
        lambda: store.set("token", {}),
        lambda: store.get("token"),
        lambda: store.delete("token"),
        lambda: store.revoke_user(5),
    ):
        with pytest.raises(RedisUnavailable):
            call()


def test_replies_may_be_decoded(redis_server: RedisServer) -> None:
    app, guard = session_app(
        redis_server.url, REDIS_GUARD_CLIENT_OPTIONS={"decode_responses": True}
    )
    store = guard.sessions_for(app)
    store.set("token", {"\ud800": b"\xff", "å": "ä"})
    assert store.get("token") == {"\ud800": b"\xff", "å": "ä"}
    with redis_server.client(encoding="latin-1") as plain:
        plain.hset(plain.keys("*")[0], '"a"', "\xff")
    with suppress(RedisUnavailable):  # but hiredis hands on the bytes, which are no session
        assert store.get("token") is None


def test_a_script_that_the_server_forgot_costs_one_operation(setup: Setup) -> None:
    store = setup.store
    store.set("token", {"a": 1})
    with setup.server.client() as plain:
        plain.script_flush()
    assert store.get("token") == {"a": 1}


def test_development_goes_on_in_memory(own_server: RedisServer) -> None:
    app, _ = session_app(own_server.url, ENVIRONMENT="development")
    own_server.kill()
    client = app.test_client()
    assert client.post("/write", json={"a": [1]}).status_code == 200
    assert client.post("/login/5").status_code == 200
    assert client.get("/read").json == {"a": [1], "user": "5"}
    assert client.post("/logout").status_code == 200
    assert client.get("/read").json == {}

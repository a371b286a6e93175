"""The guarded ``session`` as views, hooks and browsers see it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import (
    Flask,
    Response,
    copy_current_request_context,
    flash,
    get_flashed_messages,
    jsonify,
    session,
    stream_with_context,
)
from flask.sessions import SecureCookieSessionInterface
from flask.testing import FlaskClient

import flask_redis_guard
from flask_redis_guard import (
    ConfigurationError,
    GuardedSessionInterface,
    GuardError,
    RedisGuard,
    RedisUnavailable,
    SessionTooLarge,
)
from tests.support import RedisServer, eventually
from tests.support.session_apps import session_app

from .conftest import Setup, cookie_of, round_trips

MakeSetup = Callable[..., Setup]


# -- what it costs -------------------------------------------------------------------------


def test_round_trips(setup: Setup) -> None:
    client = setup.client()
    client.post("/write", json={"a": 1, "big": ["x"] * 100})
    client.post("/write", json={"a": 2})  # both scripts are known to the server from here on
    with round_trips(setup.server) as untouched:
        client.get("/untouched")
    assert untouched == []
    with round_trips(setup.server) as read:
        client.get("/read")
    assert read == ["EVALSHA"]
    with round_trips(setup.server) as changed:
        client.post("/write", json={"a": 3})
    assert changed == ["EVALSHA", "EVALSHA"]
    with round_trips(setup.server) as login:
        client.post("/login/5")
    assert login == ["EVALSHA", "EVALSHA"]
    with round_trips(setup.server) as regenerated:
        client.post("/regenerate")
    assert regenerated == ["EVALSHA", "EVALSHA"]
    with round_trips(setup.server) as unchanged:
        client.post("/write", json={"a": 3})
    assert unchanged == ["EVALSHA"]


@pytest.mark.parametrize(
    "forge",
    [
        lambda cookie: "x" * 64 + "." + cookie.partition(".")[2],
        lambda cookie: cookie[:-5] + "AAAAA",
        lambda cookie: cookie.partition(".")[0],
        lambda cookie: "",
        lambda cookie: "." * 4000,
        lambda cookie: "ü\ufffd",
        lambda cookie: "5",
    ],
)
def test_a_forged_cookie_costs_no_round_trip(setup: Setup, forge: Callable[[str], str]) -> None:
    client = setup.client()
    client.post("/write", json={"a": 1})
    client.set_cookie("session", forge(cookie_of(client)))
    with round_trips(setup.server) as forged:
        assert client.get("/read").json == {}
    assert forged == []


def test_a_cookie_of_flasks_own_session_is_no_id(setup: Setup) -> None:
    plain = Flask("plain")
    plain.secret_key = setup.app.secret_key
    signer = SecureCookieSessionInterface().get_signing_serializer(plain)
    assert signer is not None
    client = setup.client()
    client.set_cookie("session", signer.dumps({"user": "admin"}))
    with round_trips(setup.server) as asked:
        assert client.get("/read").json == {}
    assert asked == []


def test_only_what_changed_is_sent(setup: Setup) -> None:
    client = setup.client()
    client.post("/write", json={"a": 1, "big": "x" * 10_000})
    client.post("/write", json={"a": 0})  # the server knows both scripts
    with setup.server.client() as plain:
        plain.config_resetstat()
        client.post("/write", json={"a": 2})
        assert plain.info("stats")["total_net_input_bytes"] < 2000


# -- lifetimes and ids ---------------------------------------------------------------------


def test_a_read_renews_the_lifetime(make_setup: MakeSetup) -> None:
    setup = make_setup(PERMANENT_SESSION_LIFETIME=1000)
    client = setup.client()
    client.post("/login/5")
    with setup.server.client() as plain:
        for key in setup.stored_keys():
            plain.pexpire(key, 5000)
        client.get("/untouched")
        assert all(plain.pttl(key) <= 5000 for key in setup.stored_keys())
        client.get("/read")
        assert all(plain.pttl(key) > 900_000 for key in setup.stored_keys())


def test_without_refresh_the_lifetime_runs_from_the_last_change(make_setup: MakeSetup) -> None:
    setup = make_setup(PERMANENT_SESSION_LIFETIME=1000, SESSION_REFRESH_EACH_REQUEST=False)
    client = setup.client()
    client.post("/write", json={"a": 1, "_permanent": True})
    with setup.server.client() as plain:
        (key,) = setup.stored_keys()
        plain.pexpire(key, 5000)
        assert "Set-Cookie" not in client.get("/read").headers
        assert plain.pttl(key) <= 5000
        assert "Set-Cookie" in client.post("/write", json={"a": 1}).headers
        assert plain.pttl(key) > 900_000


def test_an_expired_session_is_empty_and_its_id_is_not_used_again(setup: Setup) -> None:
    client = setup.client()
    client.post("/write", json={"a": 1})
    before = cookie_of(client)
    with setup.server.client() as plain:
        plain.flushdb()
    assert client.get("/read").json == {}
    client.post("/write", json={"b": 1})
    assert cookie_of(client) != before
    assert client.get("/read").json == {"b": 1}


def test_login_changes_the_id_and_the_old_one_is_refused(setup: Setup) -> None:
    victim = setup.client()
    victim.post("/write", json={"cart": [1]})
    attacker = setup.client(like=victim)
    victim.post("/login/5")
    assert cookie_of(victim) != cookie_of(attacker)
    assert victim.get("/read").json == {"cart": [1], "user": "5"}
    assert attacker.get("/read").json == {}
    assert attacker.post("/write", json={"a": 1}).status_code == 200
    assert victim.get("/read").json == {"cart": [1], "user": "5"}


def test_regenerate_keeps_the_data_and_the_user(setup: Setup) -> None:
    client = setup.client()
    client.post("/login/5")
    old = setup.client(like=client)
    sid = client.post("/regenerate").json["sid"]  # type: ignore[index]
    assert old.get("/read").json == {}
    assert client.get("/read").json == {"user": "5"}
    assert setup.store.get(sid) == {"user": "5"}
    assert setup.store.revoke_user(5) == 1
    assert client.get("/read").json == {}
    assert setup.stored_keys() == []


def test_regenerating_what_was_never_stored_stores_it_once(setup: Setup) -> None:
    @setup.app.post("/twice")
    def twice() -> str:
        session.regenerate()  # type: ignore[attr-defined]
        session["a"] = 1
        session.bind_user(5)  # type: ignore[attr-defined]
        session.regenerate()  # type: ignore[attr-defined]
        return str(session.sid)  # type: ignore[attr-defined]

    sid = setup.client().post("/twice").text
    assert setup.store.get(sid) == {"a": 1}
    assert setup.store.revoke_user(5) == 1


def test_a_session_goes_from_one_user_to_another(setup: Setup) -> None:
    client = setup.client()
    client.post("/login/5")
    client.post("/login/6")
    assert setup.store.revoke_user(5) == 0
    assert client.get("/read").json == {"user": "6"}
    assert setup.store.revoke_user(6) == 1
    assert client.get("/read").json == {}


@pytest.mark.parametrize("logout", ["clear", "remove"])
def test_a_cookie_from_before_a_logout_stays_dead_at_the_next_login(
    setup: Setup, logout: str
) -> None:
    @setup.app.post("/goodbye")
    def goodbye() -> str:
        session.clear() if logout == "clear" else session.pop("user")
        flash("goodbye")
        return "logged out"

    client = setup.client()
    client.post("/login/5")
    stolen = setup.client(like=client)
    client.post("/goodbye")
    if logout == "clear":
        assert stolen.get("/read").json == {}
    client.post("/login/5")
    assert client.get("/read").json["user"] == "5"  # type: ignore[index]
    assert stolen.get("/read").json == {}
    assert setup.store.revoke_user(5) == 1


def test_what_is_put_in_after_clearing_is_under_a_new_id(setup: Setup) -> None:
    @setup.app.post("/start-anew")
    def start_anew() -> Response:
        session.clear()
        session["user"] = 6
        return jsonify(sid=session.sid)  # type: ignore[attr-defined]

    client = setup.client()
    client.post("/write", json={"planted": True})
    planted = setup.client(like=client)
    sid = client.post("/start-anew").json["sid"]  # type: ignore[index]
    assert setup.store.get(sid) == {"user": 6} == client.get("/read").json
    assert planted.get("/read").json == {}
    assert len(setup.stored_keys()) == 1


def test_binding_twice_in_one_request_is_binding_once(setup: Setup) -> None:
    @setup.app.post("/twice")
    def twice() -> Response:
        session["user"] = 5
        session.bind_user(5)  # type: ignore[attr-defined]
        first = session.sid  # type: ignore[attr-defined]
        session.bind_user("5")  # type: ignore[attr-defined]
        return jsonify(first == session.sid)  # type: ignore[attr-defined]

    assert setup.client().post("/twice").json is True


def test_revoking_a_user_reaches_every_browser(setup: Setup) -> None:
    browsers = [setup.client() for _ in range(5)]
    for browser in browsers:
        browser.post("/login/5")
    other = setup.client()
    other.post("/login/6")
    with setup.app.app_context():
        assert setup.guard.sessions.revoke_user("5") == 5
    assert [browser.get("/read").json for browser in browsers] == [{}] * 5
    assert other.get("/read").json == {"user": "6"}


def test_a_session_can_be_ended_by_its_id(setup: Setup) -> None:
    client = setup.client()
    sid = client.post("/login/5").json["sid"]  # type: ignore[index]
    assert setup.store.get(sid) == {"user": "5"}
    assert setup.store.delete(sid) is True
    assert client.get("/read").json == {}
    assert setup.stored_keys() == []


def test_secret_key_rotation(make_setup: MakeSetup) -> None:
    old = make_setup(SECRET_KEY="old")
    client = old.client()
    client.post("/write", json={"a": 1})
    first = cookie_of(client)
    new = make_setup(SECRET_KEY="new", SECRET_KEY_FALLBACKS=["older", "old"])
    rotated = new.client(like=client)
    assert rotated.get("/read").json == {"a": 1}
    assert cookie_of(rotated) != first  # signed with the new key while the old one is known
    last = make_setup(SECRET_KEY="new")
    assert last.client(like=rotated).get("/read").json == {"a": 1}
    assert last.client(like=client).get("/read").json == {}


# -- changes -------------------------------------------------------------------------------


def test_changes_inside_a_value_are_noticed(setup: Setup) -> None:
    @setup.app.post("/inside")
    def inside() -> str:
        session["deep"]["list"].append(3)
        assert not session.modified
        return ""

    client = setup.client()
    client.post("/write", json={"deep": {"list": [1, 2]}, "other": 1})
    client.post("/inside")
    assert client.get("/read").json == {"deep": {"list": [1, 2, 3]}, "other": 1}


def test_whole_numbers_as_keys_are_not_taken_for_a_change(setup: Setup) -> None:
    @setup.app.post("/numbers")
    def numbers() -> str:
        session["n"] = {10: "ten", 9: "nine"}
        return ""

    client = setup.client()
    client.post("/numbers")
    client.get("/read")
    with round_trips(setup.server) as read:
        assert client.get("/read").json == {"n": {"10": "ten", "9": "nine"}}
    assert read == ["EVALSHA"]


def test_session_is_a_mapping_like_flasks_own(setup: Setup) -> None:
    with setup.app.test_request_context():
        ours: Any = session._get_current_object()  # type: ignore[attr-defined]
        assert ours.new
        assert not ours.modified
        assert not ours
        session.update(a=1, b=2)
        ours |= {"c": 3}
        assert ours.modified
        assert session.pop("a") == 1
        assert session.pop("a", None) is None
        assert session.setdefault("d", 4) == 4
        assert "b" in session
        assert dict(session) == ours.copy() == {"b": 2, "c": 3, "d": 4}
        assert {**session} == ours | {}
        assert len(session) == 3
        assert sorted(session) == ["b", "c", "d"]
        assert json.dumps(ours.copy())
        assert session == {"b": 2, "c": 3, "d": 4}
        assert repr(session) == "{'b': 2, 'c': 3, 'd': 4}"
        ours[5] = "five"
        del ours[5]
        session.clear()
        assert not session


def test_keys_become_texts_as_in_json(setup: Setup) -> None:
    @setup.app.post("/number")
    def number() -> str:
        session[5] = "five"  # type: ignore[index]
        return ""

    client = setup.client()
    client.post("/number")
    assert client.get("/read").json == {"5": "five"}


def test_a_value_that_cannot_be_stored_is_the_apps_fault(setup: Setup) -> None:
    @setup.app.post("/unfit")
    def unfit() -> str:
        session["a"] = 2
        session["unfit"] = object()
        return "saved"

    client = setup.client()
    client.post("/write", json={"a": 1})
    response = client.post("/unfit")
    assert response.status_code == 500
    assert "Set-Cookie" not in response.headers
    assert client.get("/read").json == {"a": 1}
    setup.app.testing = True
    with pytest.raises(TypeError, match=r"under 'unfit' cannot be stored.* keep an object's id"):
        client.post("/unfit")


def test_a_session_that_grows_too_large_is_a_clear_error(make_setup: MakeSetup) -> None:
    setup = make_setup(REDIS_GUARD_SESSION_MAX_BYTES=1000, TESTING=True)
    client = setup.client()
    client.post("/write", json={"a": "x" * 600})
    for text in ("x" * 600, "x" * 2000):  # together, and by itself
        with pytest.raises(SessionTooLarge, match="REDIS_GUARD_SESSION_MAX_BYTES"):
            client.post("/write", json={"b": text})
    setup.app.testing = False
    response = client.post("/write", json={"b": "x" * 600})
    assert response.status_code == 500
    assert "Set-Cookie" not in response.headers
    assert client.get("/read").json == {"a": "x" * 600}
    assert client.post("/remove/a").status_code == 200


def test_what_cannot_be_read_is_an_empty_session_under_a_new_id(setup: Setup) -> None:
    client = setup.client()
    client.post("/write", json={"a": 1})
    before = cookie_of(client)
    with setup.server.client() as plain:
        plain.hset(setup.stored_keys()[0], '"a"', "no json")
    response = client.get("/read")
    assert (response.status_code, response.json) == (200, {})
    client.post("/write", json={"b": 1})
    assert cookie_of(client) != before
    assert client.get("/read").json == {"b": 1}


# -- several requests at once --------------------------------------------------------------


def meanwhile(setup: Setup, happen: Callable[[], Any], then: Callable[[], Any]) -> None:
    """Make ``/slow`` let something happen after it has read, and then do something itself."""
    setup.app.config["SLOW"] = [happen, then]


def test_two_requests_that_change_different_keys_both_win(setup: Setup) -> None:
    client = setup.client()
    client.post("/write", json={"a": 0, "b": 0, "gone": 0})
    other = setup.client(like=client)

    def change() -> None:
        session["a"] = 1
        del session["gone"]

    meanwhile(setup, lambda: other.post("/write", json={"b": 2, "c": 3}), change)
    assert client.post("/slow").status_code == 200
    assert client.get("/read").json == {"a": 1, "b": 2, "c": 3}


def test_removing_the_last_key_spares_what_another_request_added(setup: Setup) -> None:
    client = setup.client()
    client.post("/write", json={"a": 0})
    other = setup.client(like=client)
    meanwhile(setup, lambda: other.post("/write", json={"b": 1}), lambda: session.pop("a"))
    before = cookie_of(client)
    client.post("/slow")
    assert cookie_of(client) == before
    assert client.get("/read").json == {"b": 1}


def test_removing_the_last_key_ends_the_session(setup: Setup) -> None:
    client = setup.client()
    client.post("/login/5")
    assert client.post("/remove/user").status_code == 200
    assert client.get_cookie("session") is None
    assert setup.stored_keys() == []


def test_clearing_takes_along_what_another_request_added(setup: Setup) -> None:
    client = setup.client()
    client.post("/write", json={"a": 0})
    other = setup.client(like=client)

    def change() -> None:
        session.clear()
        session["user"] = 5

    meanwhile(setup, lambda: other.post("/write", json={"b": 1}), change)
    client.post("/slow")
    assert client.get("/read").json == {"user": 5}


def test_a_logout_stays_one_against_a_request_that_changes(setup: Setup) -> None:
    client = setup.client()
    client.post("/login/5")
    other = setup.client(like=client)
    meanwhile(
        setup,
        lambda: other.post("/logout"),
        lambda: session.__setitem__("a", 1),
    )
    response = client.post("/slow")
    assert response.status_code == 503  # it is not saved, and so nothing says that it is
    assert "saved" not in response.text
    assert "Set-Cookie" not in response.headers
    assert setup.stored_keys() == []
    assert client.get("/read").json == {}
    assert client.post("/write", json={"a": 1}).status_code == 200  # a second try starts anew
    assert client.get("/read").json == {"a": 1}


@pytest.mark.parametrize("end", ["logout", "revoke", "regenerate"])
@pytest.mark.parametrize("change", ["regenerate", "bind", "nothing"])
def test_nothing_brings_back_a_session_that_ended(setup: Setup, end: str, change: str) -> None:
    client = setup.client()
    client.post("/login/5")
    other = setup.client(like=client)
    changes: dict[str, Callable[[], Any]] = {
        "regenerate": lambda: session.regenerate(),  # type: ignore[attr-defined]
        "bind": lambda: session.bind_user(6),  # type: ignore[attr-defined]
        "nothing": lambda: None,
    }
    ends: dict[str, Callable[[], Any]] = {
        "logout": lambda: other.post("/logout"),
        "revoke": lambda: setup.store.revoke_user(5),
        "regenerate": lambda: other.post("/regenerate"),
    }
    meanwhile(setup, ends[end], changes[change])
    response = client.post("/slow")
    assert response.status_code == (200 if change == "nothing" else 503)
    assert client.get("/read").json == {}
    assert other.get("/read").json == ({"user": "5"} if end == "regenerate" else {})


def test_a_login_at_the_moment_of_a_revocation_is_dead_or_revocable(setup: Setup) -> None:
    client = setup.client()
    client.post("/write", json={"a": 1})

    def bind() -> None:
        session.bind_user(5)  # type: ignore[attr-defined]

    meanwhile(setup, lambda: setup.store.revoke_user(5), bind)
    assert client.post("/slow").status_code == 200
    assert client.get("/read").json == {"a": 1}  # stored after it: a new login
    assert setup.store.revoke_user(5) == 1
    assert client.get("/read").json == {}


def test_many_requests_at_once_lose_nothing(setup: Setup) -> None:
    first = setup.client()
    first.post("/write", json={"a": 1})

    def write(number: int) -> int:
        client = setup.client(like=first)
        return sum(
            client.post("/write", json={f"{number}-{turn}": turn}).status_code for turn in range(10)
        )

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(write, range(8))) == [10 * 200] * 8
    assert len(first.get("/read").json) == 1 + 80  # type: ignore[arg-type]


def test_no_login_escapes_revocations_that_run_beside_it(setup: Setup) -> None:
    done = threading.Event()

    def log_in(number: int) -> list[FlaskClient]:
        clients = [setup.client() for _ in range(20)]
        for client in clients:
            client.post("/write", json={"cart": number})
            assert client.post("/login/5").status_code == 200
        return clients

    def revoke() -> int:
        ended = 0
        while not done.is_set():
            ended += setup.store.revoke_user(5)
        return ended

    with ThreadPoolExecutor(5) as pool:
        revoker = pool.submit(revoke)
        clients = [client for group in pool.map(log_in, range(4)) for client in group]
        done.set()
        ended = revoker.result()
    ended += setup.store.revoke_user(5)
    assert ended == len(clients) == 80  # each exactly once
    assert [client.get("/read").json for client in clients] == [{}] * 80
    assert setup.stored_keys() == []


# -- when it is saved ----------------------------------------------------------------------


def test_a_write_in_a_streamed_body_raises_and_a_read_does_not(setup: Setup) -> None:
    seen: list[object] = []

    @setup.app.get("/stream")
    def stream() -> Response:
        def body() -> Iterator[str]:
            seen.append(session.get("a"))
            yield "begun"
            try:
                session["late"] = 1
            except GuardError as error:
                seen.append(error)
            yield "done"

        return Response(stream_with_context(body()))

    client = setup.client()
    client.post("/write", json={"a": 1})
    assert client.get("/stream").text == "begundone"
    assert seen[0] == 1
    assert "change of the session would be lost" in str(seen[1])
    assert client.get("/read").json == {"a": 1}


def test_a_change_inside_a_value_in_a_streamed_body_is_told_of(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    @setup.app.post("/stream/<late>")
    def stream(late: str) -> Response:
        session["seen"] = ["before"]

        def body() -> Iterator[str]:
            yield "begun"
            if late == "late":
                session["seen"].append("late")

        return Response(stream_with_context(body()))

    client = setup.client()
    assert client.post("/stream/no", buffered=True).text == "begun"
    assert caplog.text == ""
    assert client.post("/stream/late", buffered=True).text == "begun"
    assert "A change inside a session is lost" in caplog.text
    assert client.get("/read").json == {"seen": ["before"]}


def test_a_streamed_logout_tells_of_no_loss(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    @setup.app.post("/streamed-logout")
    def streamed() -> Response:
        session.clear()
        return Response(iter(["goodbye"]))

    client = setup.client()
    client.post("/login/5")
    assert client.post("/streamed-logout", buffered=True).text == "goodbye"
    assert "is lost" not in caplog.text


def test_threads_of_one_request_share_its_session(setup: Setup) -> None:
    @setup.app.post("/threads")
    def threads() -> str:
        together = threading.Barrier(8)

        def write(number: int) -> None:
            together.wait(10)
            session[str(number)] = number

        with ThreadPoolExecutor(8) as pool:
            for number in range(8):
                pool.submit(copy_current_request_context(write), number)
        return "written"

    client = setup.client()
    client.post("/write", json={"0": None})
    for _ in range(5):
        client.post("/threads")
        assert client.get("/read").json == {str(number): number for number in range(8)}
        client.post("/logout")
        client.post("/write", json={"0": None})


def test_changes_of_after_request_functions_are_saved(setup: Setup) -> None:
    @setup.app.after_request
    def count(response: Response) -> Response:
        session["count"] = session.get("count", 0) + 1
        return response

    client = setup.client()
    for _ in range(3):
        client.get("/untouched")
    assert client.get("/read").json == {"count": 3}


def test_changes_before_an_error_of_the_view_are_saved(setup: Setup) -> None:
    @setup.app.post("/broken")
    def broken() -> str:
        session["attempts"] = 1
        raise ZeroDivisionError

    client = setup.client()
    assert client.post("/broken").status_code == 500
    assert client.get("/read").json == {"attempts": 1}


def test_flashed_messages_go_to_the_next_request_only(setup: Setup) -> None:
    @setup.app.post("/flash")
    def send() -> str:
        flash("hello", "info")
        return ""

    @setup.app.get("/flashed")
    def flashed() -> Response:
        return jsonify(get_flashed_messages(with_categories=True))

    client = setup.client()
    client.post("/flash")
    assert client.get("/flashed").json == [["info", "hello"]]
    assert client.get("/flashed").json == []
    assert setup.stored_keys() == []


def test_the_test_clients_session_transaction(own_server: RedisServer) -> None:
    app, _ = session_app(own_server.url)
    client = app.test_client()
    with client.session_transaction() as transaction:
        transaction["a"] = 1
    with client.session_transaction() as transaction:
        assert transaction["a"] == 1
        transaction["b"] = 2
    assert client.get("/read").json == {"a": 1, "b": 2}
    unsaved = client.session_transaction()
    unsaved.__enter__()["c"] = 3
    own_server.kill()
    with pytest.raises(RedisUnavailable):
        unsaved.__exit__(None, None, None)


def test_without_a_secret_key_it_says_so(make_setup: MakeSetup) -> None:
    setup = make_setup(SECRET_KEY=None)
    with setup.app.test_request_context():
        assert session.get("a") is None
        with pytest.raises(RuntimeError, match="secret key"):
            session["a"] = 1
    assert setup.client().get("/untouched").status_code == 200


@pytest.mark.parametrize("kind", ["app", "class", "nothing"])
def test_an_interface_for_something_else_than_a_guard_is_refused(setup: Setup, kind: str) -> None:
    given: Any = {"app": setup.app, "class": RedisGuard, "nothing": None}[kind]
    with pytest.raises(ConfigurationError) as raised:
        GuardedSessionInterface(given)
    assert "as in GuardedSessionInterface(guard)" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_typed_session_is_flasks_own() -> None:
    assert flask_redis_guard.session is session


def test_an_app_without_the_guard_says_so(setup: Setup) -> None:
    app = Flask("another")
    app.secret_key = "key"
    app.testing = True
    app.session_interface = setup.app.session_interface
    with pytest.raises(GuardError, match="init_app"):
        app.test_client().get("/")


def test_one_interface_serves_several_apps_and_they_share_nothing(
    setup: Setup, own_server: RedisServer
) -> None:
    app = Flask("another")
    app.config.update(setup.app.config, REDIS_URL=own_server.url)
    setup.guard.init_app(app)
    app.session_interface = setup.app.session_interface
    app.add_url_rule("/read", view_func=setup.app.view_functions["read"])
    client = setup.client()
    client.post("/write", json={"a": 1})
    other = app.test_client()
    other.set_cookie("session", cookie_of(client))
    assert other.get("/read").json == {}
    assert client.get("/read").json == {"a": 1}


def test_a_session_expires_for_the_browser_too(make_setup: MakeSetup) -> None:
    setup = make_setup(PERMANENT_SESSION_LIFETIME=0.3)
    client = setup.client()
    client.post("/login/5")
    assert client.get("/read").json == {"user": "5"}
    with setup.server.client() as plain:
        eventually(lambda: plain.keys("*session:*") == [], 3)
    assert client.get("/read").json == {}

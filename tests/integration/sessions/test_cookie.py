"""The session cookie, case by case as Flask's own session sets it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from flask import Flask, Response, session
from flask.sessions import SecureCookieSessionInterface, SessionMixin
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.support.session_apps import session_app

from .conftest import Setup, cookie_of

MakeSetup = Callable[..., Setup]

#: From Flask 3.1.3 on its own session notices ``in`` as a look at it; ours always did.
TRACKS_IN = SessionMixin.accessed is False


def attributes(response: TestResponse) -> dict[str, str]:
    """The attributes of the one session cookie that a response sets, without its value."""
    (header,) = response.headers.getlist("Set-Cookie")
    pairs = [part.strip().partition("=") for part in header.split(";")]
    return {name.lower(): value for name, _, value in pairs[1:]}


def test_by_default_it_is_for_this_host_and_hidden_from_scripts(setup: Setup) -> None:
    assert attributes(setup.client().post("/write", json={"a": 1})) == {"httponly": "", "path": "/"}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"SESSION_COOKIE_SECURE": True}, {"secure": ""}),
        ({"SESSION_COOKIE_SAMESITE": "Strict"}, {"samesite": "Strict"}),
        ({"SESSION_COOKIE_DOMAIN": "example.com"}, {"domain": "example.com"}),
        ({"SESSION_COOKIE_PATH": "/app"}, {"path": "/app"}),
        ({"APPLICATION_ROOT": "/root"}, {"path": "/root"}),
        ({"APPLICATION_ROOT": "/root", "SESSION_COOKIE_PATH": "/app"}, {"path": "/app"}),
    ],
)
def test_settings_are_honoured(
    make_setup: MakeSetup, config: dict[str, Any], expected: dict[str, str]
) -> None:
    setup = make_setup(**config)
    response = setup.client().post("/write", json={"a": 1})
    assert attributes(response) == {"httponly": "", "path": "/"} | expected


def test_it_can_be_shown_to_scripts(make_setup: MakeSetup) -> None:
    setup = make_setup(SESSION_COOKIE_HTTPONLY=False)
    assert attributes(setup.client().post("/write", json={"a": 1})) == {"path": "/"}


def test_another_cookie_of_its_name_does_not_hide_it(setup: Setup) -> None:
    client = setup.client()
    client.post("/write", json={"a": 1})
    ours = f"session={cookie_of(client)}"
    for header in (f"session=planted; {ours}", f"{ours}; session=planted"):
        plain = setup.app.test_client(use_cookies=False)
        assert plain.get("/read", headers={"Cookie": header}).json == {"a": 1}
    both = setup.app.test_client(use_cookies=False)
    assert both.get("/read", headers={"Cookie": "session=a; session=b"}).json == {}


def test_its_name_can_be_chosen(make_setup: MakeSetup) -> None:
    setup = make_setup(SESSION_COOKIE_NAME="__Host-id", SESSION_COOKIE_SECURE=True)
    client = setup.client()
    client.post("/write", json={"a": 1}, base_url="https://localhost")
    assert client.get("/read", base_url="https://localhost").json == {"a": 1}
    assert client.get_cookie("__Host-id") is not None


@pytest.mark.skipif(
    not hasattr(SecureCookieSessionInterface, "get_cookie_partitioned"), reason="from Flask 3.1 on"
)
def test_it_can_be_partitioned(make_setup: MakeSetup) -> None:
    setup = make_setup(SESSION_COOKIE_PARTITIONED=True, SESSION_COOKIE_SECURE=True)
    assert "partitioned" in attributes(setup.client().post("/write", json={"a": 1}))


def test_deleting_it_names_the_same_domain_path_and_flags(make_setup: MakeSetup) -> None:
    setup = make_setup(
        SESSION_COOKIE_DOMAIN="localhost",
        SESSION_COOKIE_PATH="/",
        SESSION_COOKIE_SECURE=True,
        SESSION_COOKIE_SAMESITE="Lax",
    )
    client = setup.client()
    secure = "https://localhost"
    created = attributes(client.post("/write", json={"a": 1}, base_url=secure))
    deleted = attributes(client.post("/logout", base_url=secure))
    assert deleted.pop("max-age") == "0"
    assert parsedate_to_datetime(deleted.pop("expires")) < datetime.now(timezone.utc)
    assert created == deleted


def test_a_permanent_session_has_an_expiry_and_another_lasts_as_long_as_the_browser(
    make_setup: MakeSetup,
) -> None:
    setup = make_setup(PERMANENT_SESSION_LIFETIME=timedelta(days=3))
    client = setup.client()
    permanent = attributes(client.post("/write", json={"_permanent": True}))
    expires = parsedate_to_datetime(permanent["expires"])
    left = expires - datetime.now(timezone.utc)
    assert timedelta(days=3, minutes=-1) < left <= timedelta(days=3, seconds=1)
    browser = attributes(client.post("/write", json={"_permanent": False}))
    assert "expires" not in browser
    assert "max-age" not in browser


@pytest.mark.parametrize("permanent", [True, False])
@pytest.mark.parametrize("refresh", [True, False])
def test_a_read_sets_the_cookie_again_for_permanent_sessions_that_refresh(
    make_setup: MakeSetup, permanent: bool, refresh: bool
) -> None:
    setup = make_setup(SESSION_REFRESH_EACH_REQUEST=refresh)
    client = setup.client()
    client.post("/write", json={"_permanent": permanent})
    assert ("Set-Cookie" in client.get("/read").headers) is (permanent and refresh)
    assert "Set-Cookie" not in client.get("/untouched").headers


def test_a_change_sets_the_cookie_again(setup: Setup) -> None:
    client = setup.client()
    client.post("/write", json={"a": 1})
    before = cookie_of(client)
    assert "Set-Cookie" in client.post("/write", json={"a": 2}).headers
    assert cookie_of(client) == before


def test_an_empty_session_sets_none(setup: Setup) -> None:
    response = setup.client().get("/read")
    assert "Set-Cookie" not in response.headers
    assert setup.stored_keys() == []


#: Every way to touch a session, by the path of the view that does it.
ACTIONS: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "put": lambda: session.update(test=1),
    "get": lambda: session.get("a"),
    "getitem": lambda: session["test"],
    "setdefault": lambda: session.setdefault("test", 1),
    "contains": lambda: "other" in session,
    "permanent": lambda: setattr(session, "permanent", True),
    "clear": lambda: session.clear(),
    "get-none": lambda: session.get("a"),
    "vary-already": lambda: session.get("a"),
}


def with_actions(app: Flask) -> FlaskClient:
    for name, action in ACTIONS.items():

        def view(name: str = name, action: Callable[[], object] = action) -> Response:
            action()
            headers = {"Vary": "Accept-Encoding, Origin"} if name == "vary-already" else None
            return Response("", headers=headers)

        app.add_url_rule(f"/{name}", name, view)
    return app.test_client()


def test_vary_and_set_cookie_are_as_flasks_own(setup: Setup) -> None:
    """Side by side with Flask of this version; the cookie's value differs, of course."""
    own = Flask("own")
    own.secret_key = "key"
    guarded, _ = session_app(setup.server.url)
    ours, flasks = with_actions(guarded), with_actions(own)
    for name in ACTIONS:
        expected, got = flasks.get(f"/{name}"), ours.get(f"/{name}")
        assert got.status_code == expected.status_code == 200
        for header in ("Set-Cookie", "Vary"):
            if name == "contains" and header == "Vary" and not TRACKS_IN:
                continue
            theirs, mine = expected.headers.getlist(header), got.headers.getlist(header)
            assert (len(mine), name) == (len(theirs), name)
            if header == "Vary":
                assert (mine, name) == (theirs, name)

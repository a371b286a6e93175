"""Flask-Login on guarded sessions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask, Response, jsonify, request
from flask.testing import FlaskClient
from flask_login import (
    LoginManager,
    UserMixin,
    confirm_login,
    current_user,
    fresh_login_required,
    login_fresh,
    login_required,
    login_user,
    logout_user,
    user_logged_in,
    user_logged_out,
)

from flask_redis_guard import session
from tests.support import RedisServer
from tests.support.session_apps import session_app

from .conftest import Setup, cookie_of

# Flask-Login calls datetime.utcnow().
pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")


class User(UserMixin):  # type: ignore[misc]
    """A user whose id is a name."""

    def __init__(self, name: str) -> None:
        self.id = name


class FrugalLoginManager(LoginManager):  # type: ignore[misc]
    """The recipe of the documentation: a response does not look into an untouched session."""

    def _update_remember_cookie(self, response: Response) -> Response:
        loaded = session.loaded
        return super()._update_remember_cookie(response) if loaded else response


def add_login(app: Flask, manager_class: type = LoginManager) -> None:
    manager = manager_class(app)
    manager.user_loader(lambda name: User(name))

    @app.post("/sign-in/<name>")
    def sign_in(name: str) -> Response:
        login_user(User(name), remember="remember" in request.args)
        return jsonify(saved=True)

    @app.post("/confirm")
    def confirm() -> Response:
        confirm_login()
        return jsonify(saved=True)

    @app.post("/sign-out")
    def sign_out() -> Response:
        logout_user()
        return jsonify(saved=True)

    @app.get("/me")
    @login_required  # type: ignore[untyped-decorator]
    def me() -> Response:
        return jsonify(name=current_user.id, fresh=login_fresh())

    @app.get("/fresh")
    @fresh_login_required  # type: ignore[untyped-decorator]
    def fresh() -> str:
        return "fresh"


@pytest.fixture
def login(setup: Setup) -> Iterator[Setup]:
    """An app with Flask-Login, wired as the documentation says."""
    add_login(setup.app)

    def signed_in(sender: Flask, user: User) -> None:
        session.regenerate()
        session.bind_user(user.get_id())

    def signed_out(sender: Flask, user: User) -> None:
        session.unbind_user()

    with (
        user_logged_in.connected_to(signed_in, setup.app),
        user_logged_out.connected_to(signed_out, setup.app),
    ):
        yield setup


def forget_session(client: FlaskClient) -> None:
    client.delete_cookie("session")


def test_login_and_logout(login: Setup) -> None:
    client = login.client()
    assert client.get("/me").status_code == 401
    client.post("/sign-in/ann")
    assert client.get("/me").json == {"name": "ann", "fresh": True}
    stolen = login.client(like=client)
    client.post("/sign-out")
    assert client.get("/me").status_code == 401
    assert stolen.get("/me").status_code == 401


def test_login_ends_the_id_from_before(login: Setup) -> None:
    client = login.client()
    client.post("/write", json={"cart": 1})
    planted = login.client(like=client)
    client.post("/sign-in/ann")
    assert cookie_of(client) != cookie_of(planted)
    assert planted.get("/me").status_code == 401
    assert client.get("/me").json == {"name": "ann", "fresh": True}
    assert client.get("/read").json["cart"] == 1  # type: ignore[index]


def test_what_a_logout_leaves_is_nobodys(login: Setup) -> None:
    client, elsewhere = login.client(), login.client()
    for browser in (client, elsewhere):
        browser.post("/write", json={"cart": 1})
        browser.post("/sign-in/ann")
    stolen = login.client(like=client)
    client.post("/sign-out")
    assert client.get("/read").json["cart"] == 1  # type: ignore[index]
    assert login.store.revoke_user("ann") == 1
    assert client.get("/read").json["cart"] == 1  # type: ignore[index]
    assert elsewhere.get("/read").json == stolen.get("/read").json == {}


def test_revoking_ends_every_login_of_a_user(login: Setup) -> None:
    clients = [login.client() for _ in range(3)]
    for client in clients:
        client.post("/sign-in/ann")
    assert login.store.revoke_user("ann") == 3
    assert [client.get("/me").status_code for client in clients] == [401] * 3


def test_remembered_logins_outlive_the_session_and_are_not_fresh(login: Setup) -> None:
    client = login.client()
    client.post("/sign-in/ann?remember")
    assert client.get_cookie("remember_token") is not None
    assert client.get("/fresh").status_code == 200
    forget_session(client)
    assert client.get("/me").json == {"name": "ann", "fresh": False}
    assert client.get("/fresh").status_code == 401
    client.post("/confirm")
    assert client.get("/fresh").status_code == 200
    client.post("/sign-out")
    assert client.get_cookie("remember_token") is None
    assert client.get("/me").status_code == 401


@pytest.mark.parametrize(
    ("mode", "status", "fresh"), [("basic", 200, False), ("strong", 401, None), (None, 200, True)]
)
def test_session_protection(login: Setup, mode: str | None, status: int, fresh: bool) -> None:
    login.app.config["SESSION_PROTECTION"] = mode
    client = login.client()
    client.post("/sign-in/ann", headers={"User-Agent": "mine"})
    response = client.get("/me", headers={"User-Agent": "another"})
    assert response.status_code == status
    if status == 200:
        assert response.json == {"name": "ann", "fresh": fresh}
    back = client.get("/me", headers={"User-Agent": "mine"})
    assert back.status_code == status


@pytest.mark.parametrize("refresh", [True, False])
def test_a_login_that_was_not_saved_sets_no_remember_me_token(
    own_server: RedisServer, refresh: bool
) -> None:
    app, _ = session_app(own_server.url, REMEMBER_COOKIE_REFRESH_EACH_REQUEST=refresh)
    add_login(app)

    @app.before_request
    def outage() -> None:
        session.get("a")
        own_server.kill()

    response = app.test_client().post("/sign-in/ann?remember")
    assert response.status_code == 503
    assert "Set-Cookie" not in response.headers
    assert "saved" not in response.text


def test_a_logout_that_was_not_saved_is_known(own_server: RedisServer) -> None:
    app, _ = session_app(own_server.url)
    add_login(app)

    @app.after_request
    def outage(response: Response) -> Response:
        if request.path == "/sign-out":
            own_server.kill()
        return response

    client = app.test_client()
    client.post("/sign-in/ann?remember")
    response = client.post("/sign-out")
    assert response.status_code == 503
    assert "Set-Cookie" not in response.headers
    assert client.get_cookie("remember_token") is not None  # still logged in, as far as one knows


@pytest.mark.parametrize(("manager", "status"), [(LoginManager, 503), (FrugalLoginManager, 200)])
def test_routes_without_a_session_stay_up_if_the_manager_lets_them(
    own_server: RedisServer, manager: type, status: int
) -> None:
    app, _ = session_app(own_server.url)
    add_login(app, manager)
    client = app.test_client()
    client.post("/sign-in/ann?remember")
    assert client.get_cookie("remember_token") is not None
    own_server.kill()
    assert client.get("/untouched").status_code == status
    assert client.get("/me").status_code == 503

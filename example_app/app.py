"""The guarded application: a login with tight limits, an API, and sessions, all on Redis."""

from __future__ import annotations

import logging
import os
import secrets
from typing import Any

from flask import Flask, Response, current_app, jsonify, render_template, request
from flask.typing import ResponseReturnValue
from werkzeug.security import check_password_hash, generate_password_hash

from example_app.alerts import Narrator
from example_app.chat import Room, chat
from example_app.controls import controls, from_this_machine
from example_app.laboratory import Laboratory
from example_app.webhook import webhook
from flask_redis_guard import GuardedSessionInterface, RedisGuard, rate_limited, session

guard = RedisGuard()

# A real application keeps werkzeug's default, which takes longer: here two applications are
# flooded with guesses on one machine.
METHOD = "pbkdf2:sha256:60000"
#: Who may log in. A real application asks its database.
USERS = {"ada": generate_password_hash("lovelace", METHOD)}
#: Compared for unknown names, so that they take as long as known ones.
NOBODY = generate_password_hash(secrets.token_hex(), METHOD)
BOOKS = ("Release It!", "Site Reliability Engineering", "The Art of Computer Programming")


def for_worker() -> Flask:
    """Return the application in a worker of the laboratory, checking Redis from the start."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-8s %(message)s")
    lab = Laboratory.from_environment()
    app = create_app(lab)
    guard.start(app)
    lab.tell("worker", "A worker serves", "good")
    return app


def create_app(lab: Laboratory, room: Room | None = None) -> Flask:
    """Return the application.

    :param lab: says which Redis to use, in production mode; without one the in-memory store is
        used, in development mode.
    :param room: who listens to the chat in this process.
    """
    app = Flask(__name__)
    app.secret_key = lab.secret
    narrator = Narrator(lab, webhook())
    app.config.update(
        ENVIRONMENT="production" if lab.redis_url else "development",
        REDIS_URL=lab.redis_url or "memory://",
        SESSION_COOKIE_SAMESITE="Strict",
        REDIS_GUARD_ALERT_DELIVERY=narrator.deliver,
        # The laboratory listens on 127.0.0.1 only. A real application sets a token.
        REDIS_GUARD_HEALTH_AUTHORIZE=from_this_machine,
        UNGUARDED_PORT=lab.unguarded_port,
    )
    guard.init_app(app)
    app.session_interface = GuardedSessionInterface(guard)
    narrator.listen(app)
    app.register_blueprint(controls(lab, guard))
    app.register_blueprint(chat(guard, Room() if room is None else room))
    app.add_url_rule("/", view_func=index)
    app.add_url_rule("/login", view_func=login, methods=["POST"])
    app.add_url_rule("/logout", view_func=logout, methods=["POST"])
    app.add_url_rule("/me", view_func=me)
    app.add_url_rule("/api/token", view_func=token, methods=["POST"])
    app.add_url_rule("/api/books", view_func=books)
    app.add_url_rule("/api/basket", view_func=basket, methods=["POST"])
    app.after_request(_headers)
    return app


def index() -> str:
    """Show the laboratory. It needs no Redis: who visits is asked by the page."""
    return render_template("index.html", unguarded=current_app.config["UNGUARDED_PORT"])


def account() -> str | None:
    """Return who wants to log in: failed attempts are counted for each account as well."""
    name = _credentials().get("username")
    return name.casefold() if isinstance(name, str) else None


@rate_limited("5 per 10 seconds")
def token() -> ResponseReturnValue:
    """Exchange a name and a password for a token, as an API does."""
    name = _authenticated()
    if name is None:
        return jsonify(error="Wrong name or password."), 401
    return jsonify(user=name, token=secrets.token_urlsafe())


# Two limits in one round trip: five attempts a minute from one address, and ten failed ones an
# hour for one account, from wherever they come. Those that succeed are given back.
@rate_limited("5/minute")
@rate_limited("10/hour", key=account, refund_when=lambda response: response.status_code == 200)
def login() -> ResponseReturnValue:
    """Log in with a name and a password, as JSON or as a form."""
    name = _authenticated()
    if name is None:
        return jsonify(error="Wrong name or password."), 401
    session["user"] = name
    session.bind_user(name)  # a new id: nobody has seen it before
    return jsonify(user=name)


def logout() -> ResponseReturnValue:
    """End the session."""
    session.clear()
    return "", 204


def me() -> Response:
    """Tell who is logged in, and how much is in the basket."""
    return jsonify(user=session.get("user"), basket=session.get("basket", 0))


@rate_limited("600/minute")
def books() -> ResponseReturnValue:
    """List books, and count how often they were listed."""
    return jsonify(books=BOOKS, listed=guard.client.incr("example:listed"))


@rate_limited("600/minute")
def basket() -> ResponseReturnValue:
    """Put something into the basket, which is kept in the session."""
    session["basket"] = session.get("basket", 0) + 1
    return jsonify(basket=session["basket"])


def _authenticated() -> str | None:
    given = _credentials()
    name, password = str(given.get("username", "")).casefold(), str(given.get("password", ""))
    return name if check_password_hash(USERS.get(name, NOBODY), password) else None


def _credentials() -> dict[str, Any]:
    given = request.get_json(silent=True) if request.is_json else request.form.to_dict()
    return given if isinstance(given, dict) else {}


def _headers(response: Response) -> Response:
    """Name the worker, and let the page load nothing that is not its own."""
    response.headers["X-Worker"] = str(os.getpid())
    host, port = request.host.rpartition(":")[0], current_app.config["UNGUARDED_PORT"]
    response.headers.setdefault(
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        f"connect-src 'self' http://{host}:{port} ws://{request.host}; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    )
    return response

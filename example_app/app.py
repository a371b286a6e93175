"""The application: a login with tight limits, an API with a looser one, a page to try them."""

from __future__ import annotations

import secrets
from typing import Any

from flask import Flask, jsonify, render_template, request, session
from flask.typing import ResponseReturnValue
from gevent import get_hub
from werkzeug.security import check_password_hash, generate_password_hash

from example_app.alerts import AlertLog
from example_app.chat import blueprint as chat
from example_app.controls import controls, from_this_machine
from example_app.embedded import EmbeddedServer
from example_app.webhook import webhook
from flask_redis_guard import RedisGuard, rate_limited

guard = RedisGuard()

#: Who may log in. A real application asks its database.
USERS = {"ada": generate_password_hash("lovelace")}
#: Compared for unknown names, so that they take as long as known ones.
NOBODY = generate_password_hash(secrets.token_hex())
BOOKS = ("Release It!", "Site Reliability Engineering", "The Art of Computer Programming")


def create_app(server: EmbeddedServer | None) -> Flask:
    """Return the application.

    :param server: the Redis to use, in production mode; without one the in-memory store is used,
        in development mode.
    """
    app = Flask(__name__)
    app.secret_key = secrets.token_bytes(32)
    app.config.update(
        ENVIRONMENT="production" if server else "development",
        REDIS_URL=server.url if server else "memory://",
        SESSION_COOKIE_SAMESITE="Strict",
        REDIS_GUARD_ALERT_DELIVERY=webhook(),
        # The demo listens on 127.0.0.1 only. A real application sets REDIS_GUARD_HEALTH_TOKEN.
        REDIS_GUARD_HEALTH_AUTHORIZE=from_this_machine,
    )
    guard.init_app(app)
    alerts = AlertLog(app)
    app.register_blueprint(controls(server, alerts))
    app.register_blueprint(chat)
    app.add_url_rule("/", view_func=index)
    app.add_url_rule("/login", view_func=login, methods=["POST"])
    app.add_url_rule("/logout", view_func=logout, methods=["POST"])
    app.add_url_rule("/api/books", view_func=books)
    return app


def index() -> str:
    """Show what there is to try."""
    return render_template("index.html", user=session.get("user"), base=request.host_url)


def account() -> str | None:
    """Return who wants to log in: failed attempts are counted for each account as well."""
    name = _credentials().get("username")
    return name.casefold() if isinstance(name, str) else None


# Two limits in one round trip: five attempts a minute from one address, and ten failed ones an
# hour for one account, from wherever they come. Those that succeed are given back.
@rate_limited("5/minute")
@rate_limited("10/hour", key=account, refund_when=lambda response: response.status_code == 200)
def login() -> ResponseReturnValue:
    """Log in with a name and a password, as JSON or as a form."""
    given = _credentials()
    name, password = str(given.get("username", "")), str(given.get("password", ""))
    # Hashing takes a tenth of a second of CPU: in a real thread, or every greenlet would wait.
    hashed = USERS.get(name.casefold(), NOBODY)
    if not get_hub().threadpool.apply(check_password_hash, (hashed, password)):
        return jsonify(error="Wrong name or password."), 401
    session["user"] = name.casefold()
    return jsonify(user=name.casefold())


def logout() -> ResponseReturnValue:
    """Forget who is logged in."""
    session.clear()
    return "", 204


@rate_limited("60/minute")
def books() -> ResponseReturnValue:
    """List books, and count how often they were listed."""
    return jsonify(books=BOOKS, listed=guard.client.incr("example:listed"))


def _credentials() -> dict[str, Any]:
    given = request.get_json(silent=True) if request.is_json else request.form.to_dict()
    return given if isinstance(given, dict) else {}

"""The same application on plain redis-py, as it is mostly written. Not a model: the comparison.

The limit fails open, because "a rate limiter must not take the site down". The client has
redis-py's own timeouts and retries. Nobody has thought of what a session does without Redis.
"""

from __future__ import annotations

import logging
import os
import secrets

import redis
from flask import Flask, Response, current_app, jsonify, request
from flask.typing import ResponseReturnValue
from werkzeug.security import check_password_hash

from example_app.app import BOOKS, NOBODY, USERS
from example_app.controls import from_this_machine
from example_app.laboratory import Laboratory


def for_worker() -> Flask:
    """Return the application in a worker of the laboratory."""
    return create_app(Laboratory.from_environment())


def create_app(lab: Laboratory) -> Flask:
    """Return the application.

    :param lab: names the Redis that the guarded application uses too.
    """
    app = Flask(__name__)
    app.logger.setLevel(logging.CRITICAL)  # tracebacks of every outage would fill the terminal
    app.extensions["redis"] = redis.Redis.from_url(lab.redis_url or "redis://localhost")
    app.add_url_rule("/api/token", view_func=token, methods=["POST"])
    app.add_url_rule("/api/books", view_func=books)
    app.add_url_rule("/api/basket", view_func=basket, methods=["POST"])
    app.after_request(_for_the_page)
    return app


def store() -> redis.Redis:
    """Return the app's client."""
    client: redis.Redis = current_app.extensions["redis"]
    return client


def allowed(name: str, limit: int, seconds: int) -> bool:
    """Tell whether one more request of this address is within a limit."""
    key = f"plain:{name}:{request.remote_addr}"
    try:
        count = int(store().incr(key))
        if count == 1:
            store().expire(key, seconds)
    except redis.RedisError:
        return True  # Redis is away: better to let them in than to be down
    return count <= limit


def token() -> ResponseReturnValue:
    """Exchange a name and a password for a token."""
    if not allowed("token", 5, 10):
        return jsonify(error="Too many attempts."), 429
    name, password = request.form.get("username", ""), request.form.get("password", "")
    if not check_password_hash(USERS.get(name.casefold(), NOBODY), password):
        return jsonify(error="Wrong name or password."), 401
    return jsonify(user=name.casefold(), token=secrets.token_urlsafe())


def books() -> ResponseReturnValue:
    """List books."""
    if not allowed("books", 600, 60):
        return jsonify(error="Too many requests."), 429
    return jsonify(books=BOOKS)


def basket() -> ResponseReturnValue:
    """Put something into the basket, which is kept under a cookie."""
    sid = request.cookies.get("plain_session") or secrets.token_urlsafe()
    response = jsonify(basket=store().hincrby(f"plain:session:{sid}", "basket", 1))
    response.set_cookie("plain_session", sid, httponly=True, samesite="Strict")
    return response


def _for_the_page(response: Response) -> Response:
    """Let the laboratory's page, which comes from another port of this host, read the answer."""
    origin = request.headers.get("Origin", "")
    if from_this_machine() and origin.rpartition(":")[0] == f"http://{_host()}":
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Allow-Credentials"] = "true"
        response.headers["Access-Control-Expose-Headers"] = "X-Worker"
        response.vary.add("Origin")
    response.headers["X-Worker"] = str(os.getpid())
    return response


def _host() -> str:
    return request.host.rpartition(":")[0]
